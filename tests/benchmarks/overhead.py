"""What the harness adds to each trial, over a bare Keras loop that does the same fit.

    python -m tests.benchmarks.overhead

The same fit of the small CNN on the synthetic sample three times over: bare, with
`mlflow.keras.autolog`, and as a study's trials. Then a study of 500 trials whose fit is a stub,
to see whether the harness slows down.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import keras
import mlflow
import numpy as np

from pneumo import models, tracking, trial
from pneumo import study as studies
from pneumo.config import RunConfig
from pneumo.data.dataset import Images, open_dataset
from pneumo.experiment import Experiment
from pneumo.train import Result, class_weights
from pneumo.tune import tune

CONFIG = RunConfig(image_size=64, epochs=2, patience=2, dense_widths=(32,), augment_strength=0)
WARM = 5  # trials that do not count: the first ones make tables and folders


def bare(images: Images) -> keras.Model:
    """One fit as a notebook would write it."""
    train, val = images.split("train"), images.split("val")
    keras.utils.clear_session()
    model = models.build(CONFIG)
    model.compile(
        keras.optimizers.Adam(CONFIG.learning_rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True, name="auc")],
        jit_compile=False,
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
    return model


def with_autolog(images: Images) -> None:
    """The same under MLflow's own autologging."""
    with mlflow.start_run():
        bare(images)


def times(step: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of `count` calls."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return taken


def of_a_study(count: int) -> list[float]:
    """Seconds from each trial's start to the next one's, in a study of `count`."""
    experiment = Experiment("overhead", CONFIG, lambda trial, base: base)
    plan = studies.Plan(experiment, open_dataset("sample"), {})
    outcome = tune(plan, trials=count + 1, model_name="overhead", name=f"{count} trials")
    starts = [it.datetime_start.timestamp() for it in outcome.study.get_trials(deepcopy=False)]
    return list(np.diff(starts))


def stub(images: Images) -> Callable[..., Result]:
    """A training that takes no time and gives what a real one gives."""
    model = models.build(CONFIG)
    labels = images.split("val").labels
    scores = np.random.default_rng(0).uniform(size=len(labels))

    def train(config: RunConfig, images: Images, callbacks: Any, deepest: int = 0) -> Result:
        metrics = dict.fromkeys(("loss", "auc", "val_loss", "val_auc"), 0.5)
        for epoch in range(1, config.epochs + 1):
            for callback in callbacks:
                callback(epoch, metrics)
        return Result(model, 1, scores)

    return train


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=15, help="of the real fits")
    parser.add_argument("--stubs", type=int, default=500, help="trials with a stub fit")
    options = parser.parse_args()
    tracking.set_up()
    studies.PRUNER["n_warmup_steps"] = CONFIG.epochs + 1  # all trials do the same work
    images = open_dataset("sample").decode(CONFIG.image_size, 0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PNEUMO_STORAGE"] = f"sqlite:///{folder}/optuna.db"
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("overhead", f"{folder}/artifacts")
        mlflow.set_experiment("overhead")
        alone = median(times(lambda: bare(images), options.trials)[WARM:])
        harness = median(of_a_study(options.trials)[WARM:])
        mlflow.keras.autolog()
        autolog = median(times(lambda: with_autolog(images), options.trials)[WARM:])
        mlflow.keras.autolog(disable=True)
        trial.train = stub(images)
        stubs = of_a_study(options.stubs)
    print(f"\n{'seconds for a trial':24}{'all':>8}{'added':>8}")
    for label, seconds in (("bare", alone), ("pneumo", harness), ("autolog", autolog)):
        print(f"{label:24}{seconds:8.2f}{seconds - alone:8.2f}")
    first, last = median(stubs[WARM : WARM + 20]), median(stubs[-20:])
    print(f"with a stub fit: trials {WARM} to {WARM + 20} {first:.2f} s, the last 20 {last:.2f} s")


if __name__ == "__main__":
    main()
