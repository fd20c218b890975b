"""Which validation metric ranks trials as test does, and which threshold fits test.

    python -m tests.benchmarks.criterion --data ARCHIVE --study NAME …

Run it after the studies, in the folder of their stores. Every trial is evaluated on test, which
counts as a look of its model. The logits are stored in `criterion/`, so each model runs once. There
are two tables for each study and two for all trials:

- The first has, for each criterion, the rank correlation with AUC on test (Spearman) with its
  interval, and the interval of its gain over `val_auc`. It also has the regret: the difference in
  AUC on test between the best trial and the chosen one, and its average over studies of 20 of the
  trials. The cost is in passes over validation.
- The second has, for each method to choose a threshold, the mean, median and greatest |accuracy on
  validation − accuracy on test|, and the mean accuracy on test.

Intervals are 95 %, by resampling of settings, each with its seeds, and of test's patients.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import optuna
import pandas as pd
from scipy.special import expit
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import log_loss, roc_auc_score

from pneumo.data.dataset import open_dataset
from pneumo.evaluation import bootstrap
from pneumo.evaluation.metrics import (
    fit_calibration,
    midpoint_threshold,
    threshold_at_sensitivity,
    youden_threshold,
)
from pneumo.inference.calibration import Calibration
from pneumo.tracking import runs, session
from pneumo.tuning.storage import open_storage
from tests.benchmarks.criterion_trials import CLEAN, TEST, VERSIONS, Trial, in_turn, trials_of

SMOKE = "--data sample --study {study} --draws 3"
STUDY = 20  # trials


def partial_auc(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the partial AUC in which at least 95 % of the positive images are found."""
    return roc_auc_score(1 - labels, -logits, max_fpr=0.05)


def criteria(trial: Trial, rows: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """Return the criteria of one trial, greater is better, with their passes over validation."""
    labels, clean = rows["label"].to_numpy(), trial.logits[CLEAN]
    calibration = fit_calibration(labels, clean)
    versions = {name: trial.logits[name] for name in VERSIONS}
    every = [clean, *versions.values()]

    def auc(logits: np.ndarray) -> float:
        return roc_auc_score(labels, logits)

    def fit(logits: np.ndarray) -> float:
        return -log_loss(labels, calibration.to_probabilities(logits))

    def one_class(changed: np.ndarray) -> list[float]:
        return [auc(np.where(labels == label, changed, clean)) for label in (0, 1)]

    def pooled(score: Callable[[np.ndarray, np.ndarray], float]) -> float:
        return score(np.tile(labels, len(every)), np.concatenate(every))

    aucs, fits = (
        [auc(logits) for logits in every],
        [fit(logits) for logits in every],
    )
    apart = [value for version in versions.values() for value in one_class(version)]
    return {
        "val_auc": (aucs[0], 1),
        "AUC, all versions in turn": (auc(in_turn(trial)), 1),
        "log loss": (fit(clean), 1),
        "log loss, calibrated": (fits[0], 1),
        "partial AUC": (partial_auc(labels, clean), 1),
        "AUC, smoother half of the normal": (_half(trial, labels, 0), 1),
        "AUC, sharper half of the sick": (_half(trial, labels, 1), 1),
        "AUC, worse of two series of normal": (min(_series(rows, clean)), 1),
        **{f"AUC, {name}": (auc(value), 1) for name, value in versions.items()},
        **{f"log loss, {name}": (fit(value), 1) for name, value in versions.items()},
        **{
            f"AUC, one class {name}": (min(one_class(value)), 2) for name, value in versions.items()
        },
        "AUC, mean of all versions": (np.mean(aucs), len(every)),
        "AUC, worst of all versions": (min(aucs), len(every)),
        "AUC, all versions pooled": (pooled(roc_auc_score), len(every)),
        "partial AUC, all versions pooled": (pooled(partial_auc), len(every)),
        "log loss, mean of all versions": (np.mean(fits), len(every)),
        "log loss, worst of all versions": (min(fits), len(every)),
        "AUC, one class changed, mean": (np.mean(apart), len(every)),
        "AUC, one class changed, worst": (min(apart), len(every)),
    }


def _half(trial: Trial, labels: np.ndarray, label: int) -> float:
    """Return the AUC with the half of a class that is most similar to the other class."""
    among = labels == label
    sharp = trial.sharpness > np.median(trial.sharpness[among])
    chosen = ~among | (sharp == bool(label))
    return roc_auc_score(labels[chosen], trial.logits[CLEAN][chosen])


def _series(rows: pd.DataFrame, logits: np.ndarray) -> Iterator[float]:
    """Return the AUC with the normal images of each of the two kinds in their names."""
    labels, normal2 = rows["label"], rows["patient"].str.startswith("NORMAL2")
    for series in (normal2, ~normal2):
        chosen = (labels == 1) | series
        yield roc_auc_score(labels[chosen], logits[chosen])


def of_seeds(trials: list[Trial], table: pd.DataFrame) -> pd.DataFrame:
    """Return criteria that need trials of the same setting with other seeds, or NaN."""
    settings = pd.Series([trial.setting for trial in trials])
    several = settings.groupby(settings).transform("size") > 1
    agreement = [
        np.mean(
            [
                spearmanr(trial.logits[CLEAN], other.logits[CLEAN]).statistic
                for other in trials
                if other is not trial and other.setting == trial.setting
            ]
        )
        if known
        else np.nan
        for trial, known in zip(trials, several, strict=True)
    ]
    mean = table["val_auc"].groupby(settings).transform("mean").where(several)
    return pd.DataFrame({"agreement of seeds": agreement, "val_auc, mean of seeds": mean})


def correlation(values: np.ndarray, truth: np.ndarray) -> float:
    """Return Spearman's correlation over the trials with known values."""
    known = np.isfinite(values)
    return np.corrcoef(rankdata(values[known]), rankdata(truth[known]))[0, 1]


def draws(settings: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Return positions of trials: settings drawn with replacement, each with its seeds."""
    rng, names = np.random.default_rng(0), np.unique(settings)
    places = {name: np.flatnonzero(settings == name) for name in names}
    for _ in range(count):
        yield np.concatenate([places[name] for name in rng.choice(names, len(names))])


def regret(values: np.ndarray, truth: np.ndarray) -> float:
    """Return the difference between the best trial and the chosen one."""
    return truth.max() - truth[np.argmax(np.where(np.isfinite(values), values, -np.inf))]


def regret_of_studies(values: np.ndarray, truth: np.ndarray, count: int) -> float:
    """Return the mean regret over `count` studies of some of the trials."""
    rng, size = np.random.default_rng(0), min(STUDY, len(values))
    chosen = [rng.choice(len(values), size, replace=False) for _ in range(count)]
    return float(np.mean([regret(values[index], truth[index]) for index in chosen]))


def ranking(
    table: pd.DataFrame, costs: dict[str, int], settings: np.ndarray, truth: np.ndarray
) -> pd.DataFrame:
    """Return how each criterion, a column of `table`, ranks the trials.

    `truth`: AUC on test, shape (trials, 1 + draws), of all patients and in each draw of them.
    """
    count = truth.shape[1] - 1
    drawn = list(enumerate(draws(settings, count), start=1))
    whole, found = truth[:, 0], []

    def of_draws(name: str) -> np.ndarray:
        values = table[name].to_numpy()
        return np.array(
            [correlation(values[indices], truth[indices, draw]) for draw, indices in drawn]
        )

    plain = of_draws("val_auc")
    for name in table:
        values, these = table[name].to_numpy(), of_draws(name)
        low, high = np.percentile(these, bootstrap.CI_PERCENTILES)
        gain_low, gain_high = np.percentile(these - plain, bootstrap.CI_PERCENTILES)
        found.append(
            {
                "criterion": name,
                "rho": f"{correlation(values, whole):.3f} ({low:.3f} to {high:.3f})",
                "above val_auc": f"{gain_low:+.3f} to {gain_high:+.3f}",
                "regret": f"{regret(values, whole):.4f}",
                f"of {STUDY}": f"{regret_of_studies(values, whole, count):.4f}",
                "passes": costs.get(name, "trials"),
            }
        )
    return pd.DataFrame(found).sort_values("rho", ascending=False)


def greatest_accuracy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    order = np.argsort(-probabilities)
    return float(probabilities[order][np.argmax(np.cumsum(2 * labels[order] - 1))])


def equal_rates(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the threshold at which sensitivity and specificity are closest."""
    order = np.argsort(-probabilities)
    found = np.cumsum(labels[order]) / labels.sum()
    spared = 1 - np.cumsum(1 - labels[order]) / (1 - labels).sum()
    return float(probabilities[order][np.argmin(np.abs(found - spared))])


def of_patient_samples(rows: pd.DataFrame, probabilities: np.ndarray) -> float:
    labels = rows["label"].to_numpy()
    found = [
        youden_threshold(np.repeat(labels, count), np.repeat(probabilities, count))
        for count in bootstrap.resample_patients(rows, 200)
    ]
    return float(np.median(found))


def thresholds(trial: Trial, rows: pd.DataFrame, calibration: Calibration) -> dict[str, float]:
    """Return the threshold of each method."""
    labels = rows["label"].to_numpy()
    calibrated, changed_logits = map(calibration.calibrate, (trial.logits[CLEAN], in_turn(trial)))
    clean, changed = expit(calibrated), expit(changed_logits)
    blurred = calibration.to_probabilities(trial.logits["blur 0.01"])
    versions = [clean, *(calibration.to_probabilities(trial.logits[name]) for name in VERSIONS)]
    many, pooled = np.tile(labels, len(versions)), np.concatenate(versions)
    each = [youden_threshold(labels, version) for version in versions]
    return {
        "Youden": each[0],
        "Youden, versions in turn": youden_threshold(labels, changed),
        "Youden, blurred": youden_threshold(labels, blurred),
        "Youden, median of patient samples": of_patient_samples(rows, clean),
        "midpoint": midpoint_threshold(labels, calibrated),
        "midpoint, versions in turn": midpoint_threshold(labels, changed_logits),
        "greatest accuracy": greatest_accuracy(labels, clean),
        "equal rates": equal_rates(labels, clean),
        "equal rates, versions in turn": equal_rates(labels, changed),
        "0.5": 0.5,
        "the share of the sick": float(labels.mean()),
        "sensitivity 95 %": threshold_at_sensitivity(0.95, labels, clean),
        "sensitivity 90 %": threshold_at_sensitivity(0.90, labels, clean),
        "Youden, all versions pooled": youden_threshold(many, pooled),
        "equal rates, all versions pooled": equal_rates(many, pooled),
        "Youden, median of all versions": float(np.median(each)),
    }


def carried_over(trials: list[Trial], val: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Return the differences of accuracy between validation and test for each method."""
    accuracies: dict[str, list[tuple[float, float]]] = {}
    for trial in trials:
        calibration = fit_calibration(val["label"].to_numpy(), trial.logits[CLEAN])
        scored = [
            (calibration.to_probabilities(trial.logits[key]), rows)
            for key, rows in ((CLEAN, val), (TEST, test))
        ]
        for name, threshold in thresholds(trial, val, calibration).items():
            both = [
                float(((probabilities >= threshold) == rows["label"]).mean())
                for probabilities, rows in scored
            ]
            accuracies.setdefault(name, []).append(tuple(both))
    found = []
    for name, pairs in accuracies.items():
        on_val, on_test = np.array(pairs).T
        gap = np.abs(on_val - on_test)
        values = {"mean gap": gap.mean(), "median": np.median(gap), "greatest": gap.max()}
        found.append({"threshold": name, **values, "accuracy on test": on_test.mean()})
    return pd.DataFrame(found).sort_values("mean gap").round(4)


def report(trials: list[Trial], val: pd.DataFrame, test: pd.DataFrame, draws: int) -> None:
    """Print both tables, with intervals from that many draws."""
    drawn = np.vstack([np.ones(len(test), int), bootstrap.resample_patients(test, draws)])
    rows = (test.assign(probability=trial.logits[TEST]) for trial in trials)
    truth = np.stack([bootstrap.bootstrap_auc(predictions, drawn) for predictions in rows])
    found = [criteria(trial, val) for trial in trials]
    table = pd.DataFrame([{name: value for name, (value, _) in row.items()} for row in found])
    table = table.join(of_seeds(trials, table))
    costs = {name: cost for name, (_, cost) in found[0].items()}
    settings = np.array([trial.setting for trial in trials])
    whole = truth[:, 0]
    print(f"\n{len(trials)} trials, AUC on test {whole.min():.3f} to {whole.max():.3f}")
    print(ranking(table, costs, settings, truth).to_string(index=False))
    print(carried_over(trials, val, test).to_string(index=False))


def main() -> None:
    """Print the tables of each study, and of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--study", required=True, nargs="+")
    parser.add_argument("--above", type=float, default=0, help="leave out trials of less val_auc")
    parser.add_argument("--draws", type=int, default=1000, help="of settings and of patients")
    options = parser.parse_args()
    session.configure_mlflow()
    dataset = open_dataset(options.data, required_splits=("train", "test"))
    images = dataset.decode(64, 0.01)
    val, test = images.split("val").rows, images.split("test").rows
    storage, every = open_storage(), []
    for name in options.study:
        study = optuna.load_study(storage=storage, study_name=name)
        with runs.command_run("criterion", name, {}):
            trials = trials_of(study, dataset)
        good = [
            trial
            for trial in trials
            if roc_auc_score(val["label"], trial.logits[CLEAN]) >= options.above
        ]
        print(f"\n{name}")
        report(good, val, test, options.draws)
        every += good
    if len(options.study) > 1:
        print("\nall")
        report(every, val, test, options.draws)


if __name__ == "__main__":
    main()
