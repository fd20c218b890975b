"""Fit of one network on the images of one fold."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import keras
import numpy as np
from keras.optimizers.schedules import CosineDecay
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score

from pneumo.data import perturb
from pneumo.data.dataset import Fold
from pneumo.evaluation.robustness import (
    ROBUST_VERSIONS,
    Version,
    VersionLogits,
    robust_auc,
)
from pneumo.inference.logits import build_ensemble, optimize_for_inference, predict_logits
from pneumo.runtime.cache_entries import GIB, available_bytes
from pneumo.runtime.console import echo
from pneumo.training import feature_cache, network
from pneumo.training.augment import AugmentationConfig
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig
from pneumo.training.feature_cache import FeatureCache
from pneumo.training.input_pipeline import (
    BatchFeeder,
    CachedFeatureSource,
    InputSource,
    PixelSource,
)

# Called after each epoch with its number, as `train.train` counts, and the metrics `loss`, `auc`,
# `val_loss`, `val_auc` and the objective. If it returns True, the network trains no further, and
# keeps the weights of its best epoch. An exception that it raises ends the training and reaches the
# caller.
EpochCallback = Callable[[int, Mapping[str, float]], bool | None]

LogitHistory = list[VersionLogits]  # of validation after each epoch

ROBUST_OBJECTIVE = "val_robust_auc"


class TrainingDivergedError(ArithmeticError):
    """An error for a loss or a logit that is NaN or infinite."""


@dataclass(frozen=True)
class Phase:
    """Part of a fit.

    Attributes:
        unfreeze_depth: Number of blocks that train.
        learning_rate: Learning rate, or its maximum in a schedule.
        end_epoch: Last epoch at most, counted from 1 over the whole fit.
    """

    unfreeze_depth: int
    learning_rate: float
    end_epoch: int


def phases(config: RunConfig) -> list[Phase]:
    """Return the phases of a fit. Pretrained blocks are frozen first, then fine-tuned more slowly.

    The gradients of a random head would undo what the blocks have learned. The last phase has at
    least one epoch: with `epochs` 1, or `head_epochs` 0, it is the only one. Random weights and
    depth 0 have a single phase, at the full learning rate.
    """
    depth, rate = config.unfreeze_depth, config.learning_rate
    if config.weights == "none" or depth == 0:
        return [Phase(depth, rate, config.epochs)]
    head = Phase(0, rate, min(config.head_epochs, config.epochs - 1))
    fine_tuning = Phase(depth, rate * config.fine_tune_lr_factor, config.epochs)
    return [head, fine_tuning] if head.end_epoch else [fine_tuning]


@dataclass(frozen=True)
class FittedNetwork:
    """A fitted network.

    Attributes:
        model: The network with the weights of its best epoch, the first of equals.
        best_epoch: Best epoch, from 1.
        logits: Logits of validation with these weights, for `ROBUST_VERSIONS`.
        perturbed_logits: Logits of validation if `perturb.ALL_PERTURBATIONS` change the images in
            turn: float64, shape (images,).
    """

    model: keras.Model
    best_epoch: int
    logits: VersionLogits
    perturbed_logits: np.ndarray


def fit_network(
    config: RunConfig,
    fold: Fold,
    callbacks: Sequence[EpochCallback],
    earlier_epochs: int,
    max_unfreeze_depth: int,
) -> FittedNetwork:
    """Fit one network, and keep the weights of its best epoch.

    Args:
        config: Config of the run, with the seed of this network.
        fold: Images to train on, and to validate with.
        callbacks: Called after each epoch.
        earlier_epochs: Number of epochs before the first one of this network.
        max_unfreeze_depth: See `train.train`.

    Raises:
        TrainingDivergedError: The loss or a logit is not finite.
        Exception: Whatever a callback raises.
    """
    report = _EpochEnd(callbacks, earlier_epochs)
    keras.utils.clear_session()  # the state of a previous model would stay in memory
    history: LogitHistory = []
    with _input_sources(config, fold, max_unfreeze_depth) as source_of:
        model = network.build_model(config)
        results: list[_PhaseResult] = []
        for phase in phases(config):
            results.append(_fit_phase(config, phase, model, source_of(phase), history, report))
            if report.is_stopped:
                break
        best = max(results, key=lambda phase: phase.score)  # the first of equals
        model.set_weights(best.weights)
        part, source, known = best.part, best.source, history[best.epoch]
        if config.flip_tta == "on":  # flipped images have no cached features
            part = optimize_for_inference(build_ensemble([model], flip_tta=True))
            source, known = PixelSource(fold, config, shared=False), {}
        logits = _predict_versions(part, source, ROBUST_VERSIONS, known)
        perturbed = predict_logits(part, source.perturb_val(perturb.ALL_PERTURBATIONS))
    return FittedNetwork(model, best.epoch + 1, logits, perturbed)


def _predict_versions(
    part: keras.Model,
    source: InputSource,
    needed: Iterable[Version],
    known: Mapping[Version, np.ndarray],
) -> VersionLogits:
    """Return the logits of validation for the needed versions, and compute only unknown ones."""
    return {
        version: known[version]
        if version in known
        else predict_logits(part, source.perturb_val((version,)) if version else source.val)
        for version in needed
    }


@contextmanager
def _input_sources(
    config: RunConfig, fold: Fold, max_unfreeze_depth: int
) -> Iterator[Callable[[Phase], InputSource]]:
    """Yield a function from a phase to its source: cached features if they pay and fit the disk.

    Otherwise the source is pixels, augmented like them, and the result is the same except for
    rounding. That holds for all depths of a pretrained backbone, so that a search over
    `unfreeze_depth` does not compare two kinds of augmentation. If the cache is off, or if all
    blocks train from random weights, every epoch has variations of its own.
    """
    trains_all = config.unfreeze_depth == BACKBONES[config.backbone].blocks
    if config.feature_cache == "off" or (trains_all and config.weights == "none"):
        yield lambda _: PixelSource(fold, config, shared=False)
        return
    with feature_cache.open_feature_cache(config, max_unfreeze_depth) as store:
        depths = {
            phase.unfreeze_depth
            for phase in phases(config)
            if store.is_worth_storing(phase.unfreeze_depth)
        }
        if depths and not _features_fit_budget(config, fold, store, depths):
            depths.clear()

        def source_of(phase: Phase) -> InputSource:
            if phase.unfreeze_depth in depths:
                return CachedFeatureSource(fold, config, store, phase.unfreeze_depth)
            return PixelSource(fold, config, shared=True)

        yield source_of


def _features_fit_budget(
    config: RunConfig, fold: Fold, store: FeatureCache, depths: set[int]
) -> bool:
    train_split, val = fold.train.split, fold.val.split
    epochs, augmentation = (
        range(min(config.epochs, feature_cache.N_VIEWS)),
        AugmentationConfig.from_config(config),
    )
    views = [
        feature_cache.view_for_epoch(train_split, epoch, augmentation, config.seed)
        for epoch in epochs
    ]
    views.append(feature_cache.View(val))
    for specs in (
        perturb.ALL_PERTURBATIONS,
        *((version,) for version in ROBUST_VERSIONS if version),
    ):
        views.append(
            feature_cache.View(
                replace(val, preprocessing=perturb.describe_preprocessing(val, specs))
            )
        )
    sizes = store.sizes(views, depths)
    needed, allowed = sum(sizes.values()), available_bytes(sizes)
    if needed <= allowed:
        return True
    echo(
        f"the features of this run need {needed / GIB:.1f} GiB of disk space, but only "
        f"{allowed / GIB:.1f} GiB are available. The run trains without the feature cache, more "
        "slowly. To use the cache, increase PNEUMO_CACHE_GIB or free disk space."
    )
    return False


@dataclass(frozen=True)
class _PhaseResult:
    """A phase that has ended.

    Attributes:
        score: Objective of its best epoch.
        epoch: Best epoch, from 0.
        weights: Weights of the whole model at that epoch.
        part: The part that was fitted.
        source: Source of its inputs.
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
    # Statistics of random weights carry no information: MobileNet does not learn if they are fixed
    part = network.TrainablePart(
        model, source.depth, phase.unfreeze_depth, freeze_batch_norm=config.weights != "none"
    )
    feeder = BatchFeeder(source, config)
    steps = (phase.end_epoch - len(history)) * feeder.steps_per_epoch
    cosine = config.lr_schedule == "cosine"
    rate = _cosine(phase.learning_rate, steps) if cosine else phase.learning_rate
    network.compile_for_training(part, rate, len(source.train.labels))
    stopping = keras.callbacks.EarlyStopping(
        config.objective, mode="max", patience=config.patience, restore_best_weights=True
    )
    part.fit(
        feeder.batches(),
        initial_epoch=len(history),
        epochs=phase.end_epoch,
        class_weight=class_weights(source.train.labels),
        # Each callback needs what the ones before it do
        callbacks=[feeder, _Validation(source, config.objective, history), report, stopping],
        shuffle=False,  # `BatchFeeder` shuffles
        verbose=0,
    )
    return _PhaseResult(stopping.best, stopping.best_epoch, model.get_weights(), part, source)


def _cosine(rate: float, steps: int) -> CosineDecay:
    """Return a schedule that rises to `rate` in a tenth of the steps, and falls to 0 in the others.

    Adam's first steps are as long as its learning rate, whatever the gradients. At the full rate
    they would undo what pretrained blocks have learned.
    """
    warmup_steps = steps // 10
    return CosineDecay(0.0, steps - warmup_steps, warmup_target=rate, warmup_steps=warmup_steps)


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """Return the weight of an image of each class, with which both classes weigh the same.

    Args:
        labels: Integers of shape (images,), 0 or 1, both among them.

    Returns:
        Label → weight; the mean over images is 1.
    """
    counts = np.bincount(labels, minlength=2)
    return {label: len(labels) / (2 * count) for label, count in enumerate(counts)}


class _Validation(keras.callbacks.Callback):
    """Callback that adds exact `val_loss`, `val_auc` and the objective to an epoch's metrics.

    It also keeps the logits. As in the training loss, both classes weigh the same in `val_loss`.
    Keras' own AUC approximates with 200 thresholds, which is too coarse if models score 0.99.
    """

    def __init__(self, source: InputSource, objective: str, history: LogitHistory) -> None:
        super().__init__()
        self._source, self._objective, self._history = source, objective, history

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        labels = self._source.val_labels
        needed = ROBUST_VERSIONS if self._objective == ROBUST_OBJECTIVE else [None]
        version_logits = _predict_versions(self.model, self._source, needed, {})
        logits = version_logits[None]
        if not (np.isfinite(logs["loss"]) and np.isfinite(logits).all()):
            raise TrainingDivergedError(
                f"the loss is {logs['loss']} after epoch {epoch + 1}. Use a lower learning_rate."
            )
        weights = np.take(list(class_weights(labels).values()), labels)
        logs["val_loss"] = log_loss(labels, expit(logits), sample_weight=weights)
        logs["val_auc"] = roc_auc_score(labels, logits)
        if self._objective == ROBUST_OBJECTIVE:
            logs[ROBUST_OBJECTIVE] = robust_auc(labels, version_logits)
        self._history.append(version_logits)


class _EpochEnd(keras.callbacks.Callback):
    """Callback that calls functions after each epoch.

    Attributes:
        is_stopped: Whether a function has returned True.
    """

    def __init__(self, functions: Sequence[EpochCallback], earlier_epochs: int) -> None:
        super().__init__()
        self._functions, self._earlier_epochs = functions, earlier_epochs
        self.is_stopped = False

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        metrics = {name: float(value) for name, value in logs.items()}
        for function in self._functions:
            if function(self._earlier_epochs + epoch + 1, metrics) is True:
                self.is_stopped = self.model.stop_training = True
