"""Whether the robust validation AUC ranks models as test does.

    python -m tests.benchmarks.robust --data ARCHIVE --study NAME

Run it after the study, in the folder of its stores. Every complete trial is evaluated once on test,
which counts as a look of its model. The logits are stored in `criterion/`. For each score, which is
computed from validation alone, the table has

- Spearman's rank correlation with AUC on test,
- the difference between this correlation and that of `val_auc`,
- the regret: the difference in AUC on test between the best trial and the chosen one, as its
  average over studies of 20 of the trials.

Intervals are 95 %, by resampling of trials and of test's patients. `--enqueued` adds both scores by
crop, and the effect of each hyperparameter on `val_robust_auc`.
"""

import argparse
from collections.abc import Callable

import numpy as np
import optuna
import pandas as pd
from scipy.stats import norm

from experiments import robust
from pneumo.data.dataset import open_dataset
from pneumo.evaluation import bootstrap
from pneumo.evaluation.robustness import NUISANCES, opposed_auc, versions
from pneumo.tracking import runs, session
from pneumo.tuning.storage import open_storage
from tests.benchmarks.criterion import STUDY, correlation, draws, regret_of_studies
from tests.benchmarks.criterion_trials import (
    TEST,
    Trial,
    trials_of,
    version_name,
)

SMOKE = "--data sample --study {study} --above 0 --draws 3 --nuisances geometry"


def scores(trial: Trial, labels: np.ndarray, nuisances: list[str]) -> dict[str, float]:
    """Return the scores of a trial, from validation alone."""
    found = {name: trial.metrics[name] for name in ("val_auc", "val_robust_auc")}
    logits = {version: trial.logits[version_name(version)] for version in versions(nuisances)}
    for name in nuisances:
        found[f"opposed {name}"] = opposed_auc(labels, logits, NUISANCES[name])
    opposed = [found[f"opposed {name}"] for name in nuisances]
    if opposed:
        found["minimum of these"] = min(opposed)
        found["mean of val_auc and these"] = float(np.mean([found["val_auc"], *opposed]))
    return found


def ranking(table: pd.DataFrame, truth: np.ndarray) -> pd.DataFrame:
    """Return how each column of `table` ranks the trials.

    `truth`: AUC on test, shape (trials, 1 + draws), of all patients and in each draw of them.
    """
    count = truth.shape[1] - 1
    drawn = list(enumerate(draws(np.arange(len(table)), count), start=1))

    def interval(values: np.ndarray) -> str:
        low, high = np.nanpercentile(values, bootstrap.CI_PERCENTILES)
        return f"{low:+.3f} to {high:+.3f}"

    def over_draws(of: Callable[[np.ndarray, np.ndarray], float], name: str) -> np.ndarray:
        values = table[name].to_numpy()
        return np.array([of(values[indices], truth[indices, draw]) for draw, indices in drawn])

    plain = over_draws(correlation, "val_auc")
    rows = []
    for name in table:
        values, correlations = table[name].to_numpy(), over_draws(correlation, name)
        rho = correlation(values, truth[:, 0])
        rows.append(
            {
                "score": name,
                "rho": f"{rho:+.3f} ({interval(correlations)})",
                "above val_auc": interval(correlations - plain),
                f"regret of {STUDY}": f"{regret_of_studies(values, truth[:, 0], count):.4f}",
            }
        )
    return pd.DataFrame(rows)


def means_by_crop(trials: list[Trial]) -> pd.DataFrame:
    """Return the mean of both scores for each maximum crop."""
    crops = [round(trial.params["max_crop_fraction"], 2) for trial in trials]
    table = pd.DataFrame([trial.metrics for trial in trials])[["val_auc", "val_robust_auc"]]
    return table.groupby(pd.Series(crops, name="max_crop_fraction")).agg(["mean", "size"]).round(3)


def effects(trials: list[Trial]) -> pd.DataFrame:
    """Return the effect of each hyperparameter on `val_robust_auc` among trials with crops.

    The model is linear. An effect is that of one standard deviation, with a 95 % interval of normal
    errors.
    """
    table = pd.DataFrame([trial.params for trial in trials])
    table["horizontal_flip"] = (table["horizontal_flip"] == "on").astype(float)
    table["learning_rate"] = np.log(table["learning_rate"])
    score = pd.Series([trial.metrics["val_robust_auc"] for trial in trials])
    chosen = table["max_crop_fraction"] > 0
    table, score = table[chosen], score[chosen].to_numpy()
    design = np.column_stack([np.ones(len(table)), (table - table.mean()) / table.std()])
    found, *_ = np.linalg.lstsq(design, score)
    residuals = score - design @ found
    variance = residuals @ residuals / (len(score) - design.shape[1])
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    rows = {"effect": found, "±": norm.ppf(0.975) * errors}
    return pd.DataFrame(rows, index=["mean", *table]).round(4)


def main() -> None:
    """Print the table of the trials whose validation AUC is high enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--study", required=True)
    parser.add_argument(
        "--above", type=float, default=0.98, help="leave out trials of less val_auc"
    )
    parser.add_argument(
        "--enqueued",
        action="store_true",
        help="only the settings of experiments/robust.py, and the effects of hyperparameters",
    )
    parser.add_argument("--draws", type=int, default=1000, help="of trials and of patients")
    parser.add_argument(
        "--nuisances", nargs="*", default=[], choices=NUISANCES, help="further scores: their AUCs"
    )
    options = parser.parse_args()
    session.configure_mlflow()
    dataset = open_dataset(options.data, required_splits=("train", "test"))
    images = dataset.decode(64, 0.01)
    labels, test = images.split("val").labels, images.split("test").rows
    study = optuna.load_study(storage=open_storage(), study_name=options.study)
    needed = {version_name(version): version for version in versions(options.nuisances) if version}
    with runs.command_run("criterion", options.study, {}):
        trials = trials_of(study, dataset, needed)
    if options.enqueued:
        numbers = range(1, 1 + len(robust.ENQUEUED_TRIALS))  # trial 0 is the baseline
        trials = [trial for trial in trials if trial.number in numbers]
        print(means_by_crop(trials).to_string())
        print(effects(trials).to_string())
    good = [trial for trial in trials if trial.metrics["val_auc"] >= options.above]
    drawn = np.vstack([np.ones(len(test), int), bootstrap.resample_patients(test, options.draws)])
    rows = (test.assign(probability=trial.logits[TEST]) for trial in good)
    truth = np.stack([bootstrap.bootstrap_auc(predictions, drawn) for predictions in rows])
    whole = truth[:, 0]
    print(f"{len(good)} of {len(trials)} trials with val_auc of {options.above} or more")
    print(f"AUC on test {whole.min():.3f} to {whole.max():.3f}")
    table = pd.DataFrame([scores(trial, labels, options.nuisances) for trial in good])
    print(ranking(table, truth).to_string(index=False))
    for name in ("val_auc", "val_robust_auc"):
        print(f"chosen of all by {name}: AUC on test {whole[table[name].argmax()]:.3f}")


if __name__ == "__main__":
    main()
