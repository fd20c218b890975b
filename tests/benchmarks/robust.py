"""Whether the robust validation AUC ranks models as test does.

    python -m tests.benchmarks.robust --data ARCHIVE --study NAME

Where the study was searched, after it. Each complete trial is evaluated once on test, and that is
counted as a look at test; the logits are kept in `criterion/`. For scores that are computed from
validation alone, the table has Spearman's rank correlation with the AUC on test, the difference of
that from the one of `val_auc`, and the regret: how much less AUC on test the chosen trial has than
the best, on average over studies of 20 of the trials. Intervals are 95 %, from resampled trials and
resampled patients of test.
"""

import argparse

import numpy as np
import optuna
import pandas as pd
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import open_dataset
from pneumo.evaluation import bootstrap
from pneumo.evaluation.robustness import NUISANCES, opposed_auc, robust_auc, versions
from pneumo.tracking import runs, session
from pneumo.tuning.storage import open_storage
from tests.benchmarks.criterion import DRAWS, STUDY, correlation, draws, regret_of_studies
from tests.benchmarks.criterion_trials import CLEAN, TEST, Trial, trials_of, version_name

SMOKE = "--data sample --study {study} --above 0"


def scores(trial: Trial, labels: np.ndarray) -> dict[str, float]:
    """Scores of a trial from validation alone."""
    logits = {it: trial.logits[version_name(it)] for it in versions(NUISANCES)}
    opposed = {name: opposed_auc(labels, logits, it) for name, it in NUISANCES.items()}
    plain = float(roc_auc_score(labels, trial.logits[CLEAN]))
    return {
        "val_auc": plain,
        "val_robust_auc": robust_auc(labels, logits),
        **{f"opposed {name}": value for name, value in opposed.items()},
        "mean of geometry and spectrum": np.mean([opposed["geometry"], opposed["spectrum"]]),
        "minimum of geometry and spectrum": min(opposed["geometry"], opposed["spectrum"]),
        "val_auc and all six, mean": np.mean([plain, *opposed.values()]),
    }


def ranking(table: pd.DataFrame, truth: np.ndarray) -> pd.DataFrame:
    """How each column of `table` ranks trials.

    `truth`: AUC on test, shape (trials, 1 + draws), of all patients and in each sample of them.
    """
    samples = list(enumerate(draws(np.arange(len(table))), start=1))
    correlations = {
        name: np.array([correlation(values.to_numpy()[it], truth[it, n]) for n, it in samples])
        for name, values in table.items()
    }
    rows = []
    for name, values in table.items():
        low, high = np.nanpercentile(correlations[name], bootstrap.CI_PERCENTILES)
        gains = correlations[name] - correlations["val_auc"]
        gain_low, gain_high = np.nanpercentile(gains, bootstrap.CI_PERCENTILES)
        rows.append(
            {
                "score": name,
                "rho": f"{correlation(values.to_numpy(), truth[:, 0]):+.3f} "
                f"({low:+.3f} to {high:+.3f})",
                "above val_auc": f"{gain_low:+.3f} to {gain_high:+.3f}",
                f"regret of {STUDY}": f"{regret_of_studies(values.to_numpy(), truth[:, 0]):.4f}",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Prints the table of the trials whose validation AUC is high enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--study", required=True)
    parser.add_argument(
        "--above", type=float, default=0.98, help="leave out trials of less val_auc"
    )
    options = parser.parse_args()
    session.configure_mlflow()
    dataset = open_dataset(options.data, required_splits=("train", "test"))
    images = dataset.decode(64, 0.01)
    labels, test = images.split("val").labels, images.split("test").rows
    study = optuna.load_study(storage=open_storage(), study_name=options.study)
    with runs.command_run("criterion", options.study, {}):
        trials = trials_of(study, dataset)
    good = [it for it in trials if roc_auc_score(labels, it.logits[CLEAN]) >= options.above]
    table = pd.DataFrame([scores(it, labels) for it in good])
    drawn = np.vstack([np.ones(len(test), int), bootstrap.resample_patients(test, DRAWS)])
    rows = (test.assign(probability=it.logits[TEST]) for it in good)
    truth = np.stack([bootstrap.bootstrap_auc(it, drawn) for it in rows])
    of_test = truth[:, 0]
    print(f"{len(good)} of {len(trials)} trials with val_auc of {options.above} or more")
    print(f"AUC on test {of_test.min():.3f} to {of_test.max():.3f}")
    print(ranking(table, truth).to_string(index=False))


if __name__ == "__main__":
    main()
