"""How often the gate of `promote` rejects a model that is as good as earlier champions.

    python -m tests.benchmarks.gate [--decisions 300]

Simulated models on as many images as the official test split has (390 with pneumonia, 234 normal,
one for each patient), with a true AUC of 0.985. The scores of two models for the images of one
class correlate with 0.8. Each has Youden's threshold of 777 + 270 validation images of its own. A
candidate follows one champion, or the last of five equally good ones, of which the best and the
most sensitive count, too.

Of 300 candidates after one champion 78.7 % pass with a `sensitivity_margin` of 0.05 and 38.7 % with
0.02. With 0.05, 82 of 100 pass after five champions and 70 of 100 after 14. If the sensitivity had
to show by its bound that it is near that of the most sensitive one, these would be 69 and 48.
"""

import argparse

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm

from pneumo.evaluation.comparison import (
    MOST_SENSITIVE,
    Decision,
    EvaluatedModel,
    Margins,
    choose_references,
    gate,
)
from pneumo.evaluation.metrics import youden_threshold

SICK, NORMAL = 390, 234
VALIDATION = (777, 270)
AUC, CORRELATION = 0.985, 0.8
MARGIN, SENSITIVITY_MARGINS = 0.02, (0.02, 0.05)
SMOKE = "--decisions 1"
DRIFT = np.linspace(0.9986, 0.9754, 15)  # true AUC of models each a little worse than the last


def held(number: int, noise: np.ndarray, spread: float, threshold: float) -> EvaluatedModel:
    """Return a calibrated model whose classes lie at ±1 and spread by as much.

    Args:
        number: Number of its version.
        noise: float64 array of shape (SICK + NORMAL,), with a standard deviation of `spread`.
        spread: Standard deviation of the scores of a class.
        threshold: Threshold of the probability.
    """
    labels = np.repeat([1, 0], [SICK, NORMAL])
    predictions = pd.DataFrame(
        {
            "path": [f"{image}.png" for image in range(len(labels))],
            "patient": [f"person{image}" for image in range(len(labels))],
            "label": labels,
            "probability": expit((2 * labels - 1 + noise) * 2 / spread**2),
        }
    )
    return EvaluatedModel(predictions, threshold, f"m version {number}", is_synthetic=False)


def spread_of(auc: float) -> float:
    """Return the standard deviation at which classes at ±1 have a true AUC."""
    return np.sqrt(2) / norm.ppf(auc)


def equals(count: int, rng: np.random.Generator) -> list[EvaluatedModel]:
    """Return equally good models, each with a threshold from other images."""
    spread = spread_of(AUC)
    common, *own = spread * rng.normal(size=(count + 1, SICK + NORMAL))
    labels = np.repeat([1, 0], VALIDATION)
    found = []
    for number, noise in enumerate(own, 1):
        scores = 2 * labels - 1 + spread * rng.normal(size=len(labels))
        threshold = youden_threshold(labels, expit(scores * 2 / spread**2))
        noise = np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * noise
        found.append(held(number, noise, spread, threshold))
    return found


def drifting(seed: int = 0) -> list[EvaluatedModel]:
    """Return fifteen models, each with some noise more than the one before."""
    rng = np.random.default_rng(seed)
    spreads = spread_of(DRIFT)
    steps = np.sqrt(np.diff(spreads**2, prepend=0))
    noises = np.cumsum(steps[:, np.newaxis] * rng.normal(size=(15, SICK + NORMAL)), axis=0)
    pairs = zip(noises, spreads, strict=True)
    return [held(number, noise, spread, 0.2) for number, (noise, spread) in enumerate(pairs, 1)]


def decide(
    champions: list[EvaluatedModel], candidate: EvaluatedModel, margins: Margins
) -> Decision:
    """Return the decision on a candidate after all champions so far, the last one current."""
    numbers = dict(enumerate(champions, 1))
    references = choose_references(numbers, len(champions) + 1, len(champions))
    return gate(candidate, references, synthetic_images=False, margins=margins)


def shares_of_equals(champions: int, decisions: int, seed: int = 0) -> dict[float, float]:
    """Return the fraction of equally good candidates that pass, by the sensitivity margin."""
    rng = np.random.default_rng(seed)
    passed = dict.fromkeys(SENSITIVITY_MARGINS, 0)
    for _ in range(decisions):
        *before, candidate = equals(champions + 1, rng)
        decision = decide(before, candidate, Margins(MARGIN, 1))
        lows = ["sensitivity_difference_low", "best_sensitivity_difference_low"]
        lows.append(f"{MOST_SENSITIVE}sensitivity_difference")
        low = min(decision.metrics.get(name, 0) for name in lows)
        for margin in passed:
            passed[margin] += decision.is_promoted and low > -margin
    return {margin: count / decisions for margin, count in passed.items()}


def main() -> None:
    """Print the fractions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=300)
    options = parser.parse_args()
    for champions in (1, 5):
        shares = shares_of_equals(champions, options.decisions)
        for margin, share in shares.items():
            print(f"{champions} champions, sensitivity_margin {margin}: {share:.1%} pass")


if __name__ == "__main__":
    main()
