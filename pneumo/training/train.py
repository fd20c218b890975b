"""One fit of one model. Knows neither MLflow nor Optuna."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers.schedules import CosineDecay, LearningRateSchedule
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from pneumo.data import perturb
from pneumo.data.dataset import DecodedDataset, Split
from pneumo.inference.logits import build_ensemble, predict_logits
from pneumo.runtime.cache_entries import GIB, available_bytes
from pneumo.runtime.console import echo
from pneumo.training import feature_cache, network
from pneumo.training.augment import AugmentationConfig
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig, derive_seed
from pneumo.training.feature_cache import FeatureCache
from pneumo.training.input_pipeline import (
    BatchFeeder,
    CachedFeatureSource,
    InputSource,
    PixelSource,
)

# Called after each epoch with its number, from 1 and through all members, and the metrics `loss`,
# `auc`, `val_loss`, `val_auc` and the objective; an exception that it raises ends the training and
# reaches the caller.
EpochCallback = Callable[[int, Mapping[str, float]], None]

# After each epoch: the logits of validation as it is, and as the objective scores it
LogitHistory = list[tuple[np.ndarray, np.ndarray]]

# Small trained parts take no longer than Python between two steps
STEPS_PER_EXECUTION = 8

GradsAndVars = Iterable[tuple[tf.Tensor, keras.Variable]]  # gradients and what they are of


class TrainingDivergedError(ArithmeticError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class TrainingResult:
    """A trained model, each of its members with the weights of its best epoch, the first of equals.

    `best_epochs`: of each member, from 1; `score`: of the model by the objective; `val_logits`,
    `perturbed_logits`: what it says of the validation images in their order, as they are and as all
    of `perturb.ALL_PERTURBATIONS` change them in turn, float64.
    """

    model: keras.Model
    best_epochs: tuple[int, ...]
    score: float
    val_logits: np.ndarray
    perturbed_logits: np.ndarray


@dataclass(frozen=True)
class Phase:
    """A part of a fit: the depth that trains, at which rate, up to which epoch of the whole."""

    unfreeze_depth: int
    learning_rate: float
    until: int


def phases(config: RunConfig) -> list[Phase]:
    """What trains when. Pretrained blocks wait until the head makes sense, then go more slowly.

    The gradients of a random head would undo what they have learned. The last phase has one
    epoch at least: with `epochs` 1, or `head_epochs` 0, it is the only one. Random weights and
    depth 0 have a single phase, at the full rate.
    """
    depth, rate = config.unfreeze_depth, config.learning_rate
    if config.weights == "none" or depth == 0:
        return [Phase(depth, rate, config.epochs)]
    head = Phase(0, rate, min(config.head_epochs, config.epochs - 1))
    whole = Phase(depth, rate * config.fine_tune_lr_factor, config.epochs)
    return [head, whole] if head.until else [whole]


def train(
    config: RunConfig,
    images: DecodedDataset,
    callbacks: Sequence[EpochCallback] = (),
    deepest: int = 0,
) -> TrainingResult:
    """Fits the model of `config` on `train`, and keeps the weights that do best on `val`.

    Several members are fitted one after the other, each from its own seed; epochs are counted
    through all of them. A phase ends after `patience` epochs without a better objective. The
    classes weigh the same, whatever their share: probabilities are those of a world with as many
    normal as sick.
    `deepest`: the greatest `unfreeze_depth` among the runs that share stored features with this
    one. Raises `TrainingDivergedError` when the loss is not finite, and whatever a callback raises.
    """
    report = _EpochEnd(callbacks)
    members = [
        _fit_member(config.model_copy(update={"seed": seed}), images, deepest, report)
        for seed in _member_seeds(config)
    ]
    said = zip(*(member.logits for member in members), strict=True)
    val, scored, changed = (np.mean(logits, axis=0) for logits in said)
    model = build_ensemble([member.model for member in members], config.flip_tta == "on")
    score = float(roc_auc_score(images.split("val").labels, scored))
    return TrainingResult(
        model, tuple(member.best_epoch for member in members), score, val, changed
    )


def _member_seeds(config: RunConfig) -> list[int]:
    """The config's own, and others that follow from it."""
    others = (derive_seed(config.seed, number) for number in range(1, config.ensemble_size))
    return [config.seed, *others]


@dataclass(frozen=True)
class _MemberResult:
    """A fitted member: its best epoch, from 1, and the logits of those weights, float64.

    `logits`: of validation as it is, as the objective scores it, and as in `perturbed_logits`.
    """

    model: keras.Model
    best_epoch: int
    logits: tuple[np.ndarray, np.ndarray, np.ndarray]


def _fit_member(
    config: RunConfig, images: DecodedDataset, deepest: int, report: keras.callbacks.Callback
) -> _MemberResult:
    keras.utils.clear_session()  # what a previous model left behind would stay in memory
    history: LogitHistory = []
    with _input_sources(config, images, deepest) as source_of:
        model = network.build_model(config)
        ended = [
            _fit_phase(config, phase, model, source_of(phase), history, report)
            for phase in phases(config)
        ]
        best = max(ended, key=lambda phase: phase.score)  # the first of equals
        model.set_weights(best.weights)
        if config.flip_tta == "on":
            said = _mirrored_logits(config, model, images.split("val"))
        else:
            changed = predict_logits(best.part, best.source.perturbed(perturb.ALL_PERTURBATIONS))
            said = (*history[best.epoch], changed)
    return _MemberResult(model, best.epoch + 1, said)


def _mirrored_logits(
    config: RunConfig, member: keras.Model, val: Split
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_MemberResult.logits`, each the mean of an image and its mirror image."""
    mirrored = build_ensemble([member], mirror=True)
    as_is = scored = predict_logits(mirrored, val.images)
    if config.objective == "val_blurred_auc":
        scored = predict_logits(mirrored, perturb.perturb_split(val, perturb.BLUR_ONLY).images)
    changed = predict_logits(mirrored, perturb.perturb_split(val, perturb.ALL_PERTURBATIONS).images)
    return as_is, scored, changed


@contextmanager
def _input_sources(
    config: RunConfig, images: DecodedDataset, deepest: int
) -> Iterator[Callable[[Phase], InputSource]]:
    """Yield what a phase is fitted on: stored features if they pay and the disk has room for them.

    Otherwise it is fitted on pixels, varied alike, with the same result but for rounding.
    """
    if config.feature_cache == "off" or config.unfreeze_depth == BACKBONES[config.backbone].blocks:
        yield lambda _: PixelSource(images, config, shared=False)
        return
    with feature_cache.open_feature_cache(config, deepest) as store:
        depths = {it.unfreeze_depth for it in phases(config) if store.pays(it.unfreeze_depth)}
        if depths and not _features_fit_budget(config, images, store, depths):
            depths.clear()

        def source_of(phase: Phase) -> InputSource:
            if phase.unfreeze_depth in depths:
                return CachedFeatureSource(images, config, store, phase.unfreeze_depth)
            return PixelSource(images, config, shared=True)

        yield source_of


def _features_fit_budget(
    config: RunConfig, images: DecodedDataset, store: FeatureCache, depths: set[int]
) -> bool:
    fitting, val = images.split("train"), images.split("val")
    epochs, variation = (
        range(min(config.epochs, feature_cache.N_VIEWS)),
        AugmentationConfig.of(config),
    )
    views = [feature_cache.view_for_epoch(fitting, epoch, variation) for epoch in epochs]
    views.append(feature_cache.View(val))
    for ends in (perturb.ALL_PERTURBATIONS, perturb.BLUR_ONLY):  # which not every run needs
        views.append(feature_cache.View(replace(val, made_by=perturb.made_by(val, ends))))
    sizes = store.sizes(views, depths)
    needed, allowed = sum(sizes.values()), available_bytes(sizes)
    if needed <= allowed:
        return True
    echo(
        f"the features of this run need {needed / GIB:.1f} GiB of disk, and {allowed / GIB:.1f} "
        "are allowed: it trains without them, more slowly; raise PNEUMO_CACHE_GIB or free disk "
        "space"
    )
    return False


@dataclass(frozen=True)
class _PhaseResult:
    """A phase that has ended: its best epoch, from 0, with that one's weights of the model.

    `part`, `source`: what was fitted, and on what.
    """

    score: float
    epoch: int
    weights: list[np.ndarray]
    part: keras.Model
    source: InputSource


def _fit_phase(
    config: RunConfig,
    phase: Phase,
    model: keras.Model,
    source: InputSource,
    history: LogitHistory,
    report: keras.callbacks.Callback,
) -> _PhaseResult:
    network.unfreeze(model, phase.unfreeze_depth)
    # The statistics of random weights are those of nothing: MobileNet would not learn with them
    part = network.TrainablePart(model, source.depth, fixed_statistics=config.weights != "none")
    feed = BatchFeeder(source, config)
    steps = (phase.until - len(history)) * feed.steps
    cosine = config.lr_schedule == "cosine"
    compile_model(part, _cosine(phase.learning_rate, steps) if cosine else phase.learning_rate)
    stopping = keras.callbacks.EarlyStopping(
        config.objective, mode="max", patience=config.patience, restore_best_weights=True
    )
    part.fit(
        feed.batches(),
        initial_epoch=len(history),
        epochs=phase.until,
        class_weight=class_weights(source.fitting.labels),
        # Each needs what the ones before it do
        callbacks=[feed, _Validation(source, config.objective, history), report, stopping],
        shuffle=False,  # `BatchFeeder` does it
        verbose=0,
    )
    return _PhaseResult(stopping.best, stopping.best_epoch, model.get_weights(), part, source)


def _cosine(rate: float, steps: int) -> CosineDecay:
    """Up to `rate` in a tenth of the steps, and down to 0 in the others.

    Adam's first steps are as long as its rate, whatever the gradients: at the full rate they would
    undo what pretrained blocks have learned.
    """
    rising = steps // 10
    return CosineDecay(0.0, steps - rising, warmup_target=rate, warmup_steps=rising)


class OneDeviceAdam(keras.optimizers.Adam):
    """Adam for a model without replicas; as Keras' own otherwise."""

    def _all_reduce_sum_gradients(self, grads_and_vars: GradsAndVars) -> GradsAndVars:
        # Keras sums over the replicas of the model, be there only one, by a function whose gradient
        # TensorFlow registers for good: the graph of each step would stay in memory with it
        return grads_and_vars


def compile_model(model: keras.Model, learning_rate: float | LearningRateSchedule) -> None:
    """Makes a model that gives one logit ready for `fit`."""
    model.compile(
        optimizer=OneDeviceAdam(learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True, name="auc")],
        jit_compile=False,  # XLA makes convolutions several times slower on a CPU
        steps_per_execution=STEPS_PER_EXECUTION,
    )
    # Else Adam makes its variables inside the compiled step, which TensorFlow then never frees
    model.optimizer.build(model.trainable_variables)


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """The weight of an image of each class, such that both classes weigh the same, mean 1."""
    counts = np.bincount(labels, minlength=2)
    return {label: len(labels) / (2 * count) for label, count in enumerate(counts)}


class _Validation(keras.callbacks.Callback):
    """Adds exact `val_loss`, `val_auc` and the objective to an epoch's metrics; keeps the logits.

    As in the training loss, both classes weigh the same in `val_loss`. Keras' own AUC approximates
    with 200 thresholds, too coarse where models score 0.99.
    """

    def __init__(self, source: InputSource, objective: str, history: LogitHistory) -> None:
        super().__init__()
        self._source, self._objective, self._history = source, objective, history

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        labels, logits = self._source.val_labels, predict_logits(self.model, self._source.val)
        if not (np.isfinite(logs["loss"]) and np.isfinite(logits).all()):
            raise TrainingDivergedError(
                f"the loss is {logs['loss']} after epoch {epoch + 1}: lower learning_rate"
            )
        weights = np.take(list(class_weights(labels).values()), labels)
        logs["val_loss"] = log_loss(labels, expit(logits), sample_weight=weights)
        logs["val_auc"] = roc_auc_score(labels, logits)
        scored = logits
        if self._objective == "val_blurred_auc":
            scored = predict_logits(self.model, self._source.perturbed(perturb.BLUR_ONLY))
            logs["val_blurred_auc"] = roc_auc_score(labels, scored)
        self._history.append((logits, scored))


class _EpochEnd(keras.callbacks.Callback):
    """Calls functions after each epoch, counted from 1 through all fits that it is given to."""

    def __init__(self, functions: Sequence[EpochCallback]) -> None:
        super().__init__()
        self._functions, self._epochs = functions, itertools.count(1)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        number, metrics = next(self._epochs), {name: float(it) for name, it in logs.items()}
        for function in self._functions:
            function(number, metrics)
