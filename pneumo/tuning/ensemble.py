"""Ensemble of a study's trials: greedy selection, its gain, and its run in MLflow."""

import json
import time
from dataclasses import asdict, dataclass, replace

import mlflow
import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import DecodedDataset
from pneumo.evaluation.bootstrap import CI_PERCENTILES, resample_patients
from pneumo.evaluation.robustness import (
    NUISANCES,
    ROBUST_NUISANCES,
    VersionLogits,
    opposed_scores,
    robust_auc,
)
from pneumo.inference.logits import build_ensemble, ensemble_members
from pneumo.reporting.study_summary import EnsembleSummary
from pneumo.runtime import signals
from pneumo.runtime.console import echo, track
from pneumo.runtime.errors import StudyFailedError, format_error
from pneumo.tracking import model_files, results, runs
from pneumo.tracking.tags import MEMBERS, STUDY
from pneumo.training.config import RunConfig, complete_fields
from pneumo.training.fit import ROBUST_OBJECTIVE
from pneumo.training.train import TrainingResult
from pneumo.tuning import attributes
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.selection import complete_trials, rank_trials
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.trial import log_evaluation, log_inputs, log_model

# Fields that members have in common: their networks get the same input and the same weight, and the
# ensemble has one rule for its threshold
SHARED_FIELDS = ("image_size", "resize", "flip_tta", "ensemble_size", "threshold_rule")

N_RESAMPLES = 200  # of patients, in each of which members are selected again


@dataclass(frozen=True)
class Candidates:
    """Trials that can be members, and what their networks predict for the same images.

    Attributes:
        trials: The trials. The first one is the best of the study.
        logits: Logits of each version of the images: shape (trials, images).
        perturbed_logits: Logits of perturbed images: shape (trials, images).
        rows: Row of each image: columns patient and label.
        folds: Fold of each image: integers of shape (images,).
        objective: Objective of the study.
    """

    trials: list[FrozenTrial]
    logits: VersionLogits
    perturbed_logits: np.ndarray
    rows: pd.DataFrame
    folds: np.ndarray
    objective: str

    def of_images(self, chosen: np.ndarray) -> "Candidates":
        """Return the same for some of the images, given by their positions."""
        return replace(
            self,
            logits={version: values[:, chosen] for version, values in self.logits.items()},
            perturbed_logits=self.perturbed_logits[:, chosen],
            rows=self.rows.iloc[chosen],
            folds=self.folds[chosen],
        )

    def scores(self, logits: VersionLogits) -> np.ndarray:
        """Return the objective of other logits of the same images: the mean over folds.

        Args:
            logits: Logits of each version of the images: shape (…, images).

        Returns:
            float64 array of the remaining shape. NaN if a fold lacks a class.
        """
        labels = self.rows["label"].to_numpy()
        of_folds = []
        for fold in np.unique(self.folds):
            chosen = self.folds == fold
            own = {version: values[..., chosen] for version, values in logits.items()}
            of_folds.append(_objective(self.objective, labels[chosen], own))
        return np.mean(of_folds, axis=0)


def _objective(objective: str, labels: np.ndarray, logits: VersionLogits) -> np.ndarray:
    """Return what `roc_auc_score` or `robust_auc` returns, for many models at once."""
    aucs = [_auc(labels, logits[None])]
    if objective == ROBUST_OBJECTIVE:
        for name in ROBUST_NUISANCES:
            pairings = opposed_scores(labels, logits, NUISANCES[name])
            aucs.append(np.min([_auc(labels, scores) for scores in pairings], axis=0))
    return np.mean(aucs, axis=0)


def _auc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the AUC of scores of shape (…, images), from the ranks of the positive images."""
    positive = labels == 1
    n_positive, n_negative = positive.sum(), (~positive).sum()
    if not n_positive or not n_negative:
        return np.full(scores.shape[:-1], np.nan)
    ranks = rankdata(scores, axis=-1)[..., positive].sum(axis=-1)
    return (ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def select_members(candidates: Candidates, first: int, size: int) -> list[int]:
    """Select members greedily, with replacement (Caruana et al., ICML 2004).

    Each step adds the candidate with which the mean of the logits has the highest objective, the
    first of equals. The shortest of the ensembles on the way with the highest objective is
    returned, so its objective is at least that of `first` alone.

    Args:
        candidates: The candidates.
        first: Position of the first member.
        size: Maximum number of members.

    Returns:
        Positions of the members among the candidates, some of them perhaps several times.
    """
    members = [first]
    total = {version: values[first] for version, values in candidates.logits.items()}
    history = [float(candidates.scores(total))]
    while len(members) < size:
        # The AUC of a sum of logits is that of their mean
        sums = {version: total[version] + values for version, values in candidates.logits.items()}
        scores = candidates.scores(sums)
        members.append(int(np.argmax(scores)))
        history.append(float(scores[members[-1]]))
        total = {version: values[members[-1]] for version, values in sums.items()}
    return members[: int(np.argmax(history)) + 1]


def estimate_gain(
    candidates: Candidates, size: int, draws: int = N_RESAMPLES, end: float | None = None
) -> np.ndarray:
    """Estimate the gain over the best single trial, corrected for both selections.

    In each sample of patients the best trial and the members are selected again. Both are scored on
    the patients that are not in the sample, a third of all, which neither selection has seen. With
    fewer patients the estimates vary more, so their percentiles are a conservative interval.

    Args:
        candidates: The candidates.
        size: Maximum number of members.
        draws: Number of samples.
        end: When it must stop, in seconds since 1970, or None.

    Returns:
        Differences of the objective: float64 array with an item for each sample in which, and
        outside of which, each fold has both classes. It is empty if there was no time for all.
    """
    differences = []
    samples = resample_patients(candidates.rows, draws)
    for counts in track(samples, len(samples), "Estimating the gain of the ensemble", "samples"):
        if end is not None and time.time() > end:
            return np.array([])
        sample = candidates.of_images(np.repeat(np.arange(len(counts)), counts))
        others = candidates.of_images(np.flatnonzero(counts == 0))
        singles = sample.scores(sample.logits)
        if np.isnan(singles).any():
            continue
        best = int(np.argmax(singles))
        members = select_members(sample, best, size)
        means = {version: values[members].mean(axis=0) for version, values in others.logits.items()}
        alone = {version: values[best] for version, values in others.logits.items()}
        differences.append(float(others.scores(means) - others.scores(alone)))
    return np.array([difference for difference in differences if np.isfinite(difference)])


def log_ensemble(
    study: optuna.Study, spec: StudySpec, size: int, limits: StudyLimits
) -> EnsembleSummary | None:
    """Select an ensemble of a study's trials, and log it as a run below the study's.

    A study that has logged the same ensemble before keeps that run.

    Args:
        study: A study with at least one complete trial.
        spec: Search of the study.
        size: Maximum number of members.
        limits: Limits of the study, which say how much time there is.

    Returns:
        The ensemble, or None if it is the best trial alone.
    """
    best, *_ = rank_trials(complete_trials(study))
    config = spec.base.override(_shared_values(best))
    images = spec.dataset.decode(config.image_size, config.max_unreadable, config.resize)
    candidates = read_candidates(study, images, config)
    positions = select_members(candidates, 0, size)
    if set(positions) == {0}:
        echo(f"no ensemble of up to {size} trials is better on validation than the best trial")
        return None
    members = [candidates.trials[position].number for position in positions]
    stored = attributes.ENSEMBLE.get(study, {})
    if stored and (stored["members"], stored["size"]) == (members, size):
        return EnsembleSummary(**stored)
    trials = [candidates.trials[position] for position in positions]
    run_ids = [attributes.RUN_ID.read(trial) for trial in trials]
    with runs.trial_run(
        attributes.RUN_ID.read(study),
        name=f"ensemble of trials {', '.join(map(str, dict.fromkeys(members)))}",
        params=_common_params(trials),
        tags=runs.provenance_tags(spec.experiment.name, spec.dataset)
        | {STUDY: study.study_name, MEMBERS: json.dumps(members)},
        kind="ensemble",
    ) as run_id:
        log_inputs(config, images)
        result = _combine(candidates, positions, images, config)
        evaluation = log_evaluation(config, images, result)
        found = EnsembleSummary(
            members=members,
            size=size,
            candidates=len(candidates.trials),
            score=float(candidates.scores(result.logits)),
            best_score=float(candidates.scores(candidates.logits)[0]),
            **_interval_of_gain(candidates, size, limits),
            run_id=run_id,
            model_uri=log_model(run_id, config, result, evaluation),
        )
        distinct = list(dict.fromkeys(run_ids))
        mlflow.log_dict(asdict(found) | {"member_runs": distinct}, results.ENSEMBLE_FILE)
    attributes.ENSEMBLE.set(study, asdict(found))
    return found


def _interval_of_gain(
    candidates: Candidates, size: int, limits: StudyLimits
) -> dict[str, float | None]:
    # The rest of the reserve is for registration and evaluation
    end = limits.end and limits.end - limits.reserve / 2
    gains = estimate_gain(candidates, size, end=end)
    if not len(gains):
        return dict.fromkeys(("gain", "gain_low", "gain_high"))
    low, high = np.percentile(gains, CI_PERCENTILES)
    return {"gain": float(gains.mean()), "gain_low": float(low), "gain_high": float(high)}


def read_candidates(study: optuna.Study, images: DecodedDataset, config: RunConfig) -> Candidates:
    """Read the trials that can be members, the best first.

    They have the best trial's values of `SHARED_FIELDS`, and their models were not deleted, as
    `keep_models` does. A trial without readable logits is left out, and a line says why.

    Raises:
        StudyFailedError: The logits of the best trial cannot be read.
    """
    ranked = rank_trials(complete_trials(study))
    best, trials, logits, perturbed = ranked[0], [], [], []
    for trial in ranked:
        signals.raise_if_interrupted()
        if _shared_values(trial) != _shared_values(best):
            continue
        model_uri = attributes.MODEL_URI.read(trial)
        if trial.number != best.number and not model_files.is_stored(model_uri):
            continue
        try:
            own, own_perturbed = results.read_logits(attributes.RUN_ID.read(trial))
        except Exception as error:
            reason = format_error(error).partition("\n")[0]
            if trial.number == best.number:
                raise StudyFailedError(
                    f"an ensemble needs the logits of the best trial {trial.number}, which cannot "
                    f"be read ({reason}). Trials of earlier versions have none. Resume the study "
                    "without --ensemble."
                ) from None
            echo(
                f"trial {trial.number} cannot be in the ensemble: no logits can be read ({reason})"
            )
            continue
        trials.append(trial)
        logits.append(own)
        perturbed.append(own_perturbed)
    folds = np.zeros(len(images.validation(config.folds).rows), int)
    for number, fold in enumerate(images.folds(config.folds, config.split_by)):
        folds[fold.val.indices] = number
    return Candidates(
        trials=trials,
        logits={version: np.stack([own[version] for own in logits]) for version in logits[0]},
        perturbed_logits=np.stack(perturbed),
        rows=images.validation(config.folds).rows,
        folds=folds,
        objective=config.objective,
    )


def _shared_values(trial: FrozenTrial) -> dict[str, str]:
    config = complete_fields(attributes.CONFIG.read(trial))
    return {name: config[name] for name in SHARED_FIELDS}


def _common_params(members: list[FrozenTrial]) -> dict[str, str]:
    """Return the fields in which all members agree, as text."""
    first, *others = (attributes.CONFIG.read(trial) for trial in members)
    return {
        name: value
        for name, value in first.items()
        if all(other.get(name) == value for other in others)
    }


def _combine(
    candidates: Candidates, positions: list[int], images: DecodedDataset, config: RunConfig
) -> TrainingResult:
    """Build the ensemble, with the means of its members' logits."""
    trials = [candidates.trials[position] for position in positions]
    models = {
        trial.number: model_files.load_model(attributes.MODEL_URI.read(trial)).keras_model
        for trial in trials
    }
    members = [network for trial in trials for network in ensemble_members(models[trial.number])]
    backbone = models[trials[0].number].name  # a member of another ensemble has another name
    logits = {
        version: values[positions].mean(axis=0) for version, values in candidates.logits.items()
    }
    aucs, robust_aucs = [], []
    for fold in images.folds(config.folds, config.split_by):
        own = {version: values[fold.val.indices] for version, values in logits.items()}
        aucs.append(float(roc_auc_score(fold.val.labels, own[None])))
        robust_aucs.append(robust_auc(fold.val.labels, own))
    return TrainingResult(
        model=build_ensemble(members, config.flip_tta == "on", backbone),
        best_epochs=(),
        logits=logits,
        perturbed_logits=candidates.perturbed_logits[positions].mean(axis=0),
        aucs=tuple(aucs),
        robust_aucs=tuple(robust_aucs),
    )
