"""Overhead of the harness for each trial, compared with a bare Keras loop of the same fit.

    python -m tests.benchmarks.overhead

The same fit of the small CNN on the synthetic sample runs in four ways: in a bare loop with as many
steps per call as pneumo's fit; in a bare loop with one step per call, as in a notebook; as trials
of a study; and in a bare loop with `mlflow.keras.autolog`. The bare loops alternate, half of them
before the study and half after it. Then a study of 500 trials with a stub for the fit shows whether
the harness slows down.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

from pneumo.commands.tune import tune_and_register
from pneumo.data.dataset import DecodedDataset, open_dataset
from pneumo.experiment import Experiment
from pneumo.training import network
from pneumo.training.config import RunConfig
from pneumo.training.fit import class_weights
from pneumo.tuning import spec, trial
from tests.benchmarks.stub import stub_of
from tests.support.stores import store_in

SMOKE = "--trials 1 --stubs 1 --warm 0"

CONFIG = RunConfig(image_size=64, epochs=2, patience=2, dense_widths=(32,), augment_strength=0)


def bare(images: DecodedDataset, steps_per_execution: int = 1) -> None:
    """Fit one model as a notebook would."""
    train, val = images.split("train"), images.split("val")
    keras.utils.clear_session()
    model = network.build_model(CONFIG)
    model.compile(
        keras.optimizers.Adam(CONFIG.learning_rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True, name="auc")],
        jit_compile=False,
        steps_per_execution=steps_per_execution,
    )
    model.fit(
        train.images,
        train.labels,
        batch_size=CONFIG.batch_size,
        epochs=CONFIG.epochs,
        class_weight=class_weights(train.labels),
        validation_data=(val.images, val.labels),
        verbose=0,
    )


def with_autolog(images: DecodedDataset) -> None:
    """Fit the same model under MLflow's autologging."""
    with mlflow.start_run():
        bare(images)


def in_turn(sides: Sequence[Callable[[], Any]], count: int) -> list[list[float]]:
    """Call all functions in turn, `count` times; return the seconds of each."""
    taken = [[] for _ in sides]
    for _ in range(count):
        for side, seconds in zip(sides, taken, strict=True):
            began = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - began)
    return taken


def of_a_study(count: int) -> list[float]:
    """Return the seconds from each trial's start to the next one's, in a study of `count`."""
    experiment = Experiment("overhead", CONFIG, lambda trial, base: base)
    study_spec = spec.StudySpec(experiment, open_dataset("sample"), {})
    result = tune_and_register(
        study_spec, trials=count + 1, model_name="overhead", name=f"{count} trials"
    )
    starts = [trial.datetime_start.timestamp() for trial in result.study.get_trials(deepcopy=False)]
    return list(np.diff(starts))


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=15, help="of the real fits")
    parser.add_argument("--stubs", type=int, default=500, help="trials with a stub fit")
    parser.add_argument("--warm", type=int, default=5, help="of each, at the start, do not count")
    options = parser.parse_args()
    warm, images = options.warm, open_dataset("sample").decode(CONFIG.image_size, 0)
    sides = (lambda: bare(images, network.STEPS_PER_EXECUTION)), (lambda: bare(images))
    with (
        tempfile.TemporaryDirectory() as folder,
        store_in(Path(folder)),
        pytest.MonkeyPatch.context() as patch,
    ):
        # All trials do the same work
        patch.setitem(spec.MEDIAN_PRUNER_OPTIONS, "n_warmup_steps", CONFIG.epochs + 1)
        before = in_turn(sides, options.trials)
        harness = of_a_study(options.trials)
        after = in_turn(sides, options.trials)
        mlflow.keras.autolog()
        [autolog] = in_turn([lambda: with_autolog(images)], options.trials)
        mlflow.keras.autolog(disable=True)
        patch.setattr(trial, "train", stub_of(CONFIG))
        stubs = of_a_study(options.stubs)
    alone, notebook = (a[warm:] + b[warm:] for a, b in zip(before, after, strict=True))
    fair = median(alone)
    print(f"\n{'seconds for a trial':38}{'all':>8}{'added':>8}")
    for label, taken in (
        (f"bare, {network.STEPS_PER_EXECUTION} steps per call as pneumo", alone),
        ("pneumo", harness[warm:]),
        ("bare, one step per call", notebook),
        ("the same with mlflow.keras.autolog", autolog[warm:]),
    ):
        print(f"{label:38}{median(taken):8.2f}{median(taken) - fair:8.2f}")
    first, last = median(stubs[warm : warm + 20]), median(stubs[-20:])
    print(f"with a stub fit: trials {warm} to {warm + 20} {first:.2f} s, the last 20 {last:.2f} s")


if __name__ == "__main__":
    main()
