"""How often a study claims an improvement, if there is none and if there is one.

    python -m tests.benchmarks.selection

Simulates the scores of a baseline and of 1, 20 and 100 trials for the same validation patients, of
which they share most of the noise. All are equally good, or one of the trials is better. The study
chooses the trial of the highest AUC. Prints the share of studies that claim that it is better than
the baseline: with the interval of one planned comparison (`bootstrap.compare_models`), and with the
bound that accounts for the choice (`bootstrap.bound_improvement`).
"""

import argparse
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from pneumo.evaluation import bootstrap

TRIALS = 1, 20, 100
PATIENTS, SICK = 200, 0.7  # of one image each, and the share of them with pneumonia
SHARED = 0.9  # share of the variance of a class's scores that all models have in common
AUC = 0.97  # of the baseline
GAINS = 0.0, 0.02  # of the AUC of one trial; the other ones are as good as the baseline

SMOKE = "--studies 1 --draws 20"


@dataclass(frozen=True)
class Claims:
    """Fractions of studies that claim an improvement: by the interval and by the bound."""

    interval: float
    bound: float


def simulate(trials: int, gain: float, studies: int, draws: int, seed: int = 0) -> Claims:
    """Return the shares of simulated studies that claim an improvement.

    Args:
        trials: Number of trials besides the baseline.
        gain: True difference of AUC between one of the trials and the baseline.
        studies: Number of studies.
        draws: Number of bootstrap samples for each interval and each bound.
        seed: Seed of the simulation.

    Returns:
        The shares, from 0 to 1.
    """
    rng = np.random.default_rng(seed)
    claims = np.array([claim(*models(rng, trials, gain), draws) for _ in range(studies)])
    return Claims(*map(float, claims.mean(axis=0)))


def models(
    rng: np.random.Generator, trials: int, gain: float
) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """Draw the predictions of a baseline and of its study's trials.

    Within a class the scores are normal with variance 1, so that the AUC follows from the distance
    of the classes' means.
    """
    sick = np.arange(PATIENTS) < SICK * PATIENTS
    names = np.arange(PATIENTS)
    frame = pd.DataFrame({"path": names, "patient": names, "label": sick.astype(int)})
    noise = np.sqrt(SHARED) * rng.normal(size=PATIENTS)
    own = np.sqrt(1 - SHARED) * rng.normal(size=(trials + 1, PATIENTS))
    aucs = np.full(trials + 1, AUC)
    aucs[1] += gain
    distances = np.array([np.sqrt(2) * NormalDist().inv_cdf(auc) for auc in aucs])
    scores = distances[:, None] * sick + noise + own
    baseline, *tried = (frame.assign(probability=row) for row in scores)
    return baseline, tried


def claim(baseline: pd.DataFrame, tried: list[pd.DataFrame], draws: int) -> tuple[bool, bool]:
    """Return whether the best trial counts as better, by its interval and by the bound."""
    once = np.ones((1, PATIENTS), int)
    best = int(np.argmax([bootstrap.bootstrap_auc(trial, once)[0] for trial in tried]))
    others = tried[:best] + tried[best + 1 :]
    interval = bootstrap.compare_models(baseline, tried[best], (0.5, 0.5), draws)
    bound = bootstrap.bound_improvement(baseline, tried[best], others, draws)
    return interval.low > 0, bound.low > 0


def main() -> None:
    """Print a line for each gain and each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    print(
        f"{options.studies} studies each, {PATIENTS} patients, {options.draws} bootstrap samples; "
        f"baseline AUC {AUC}, {SHARED:.0%} of the noise shared"
    )
    print("gain of one trial  trials  claims by interval  claims by bound")
    for gain in GAINS:
        for trials in TRIALS:
            found = simulate(trials, gain, options.studies, options.draws)
            print(
                f"{gain:17.2f}{trials:8}{found.interval:19.1%}{found.bound:17.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
