"""The peer of `study` and `budget`: KerasTuner's BayesianOptimization, written as in its guides.

`image_dataset_from_directory`, augmentation and rescaling as layers of the model, frozen layers by
`trainable=False`, the backbone called with `training=False`.
"""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import psutil
import tensorflow as tf
from keras import layers

from pneumo.training.backbones import BACKBONES
from tests.benchmarks.study_space import DROPOUT, RATE, STRENGTH, WIDTHS, arguments

options = arguments().parse_args()


def build_model(hp: keras_tuner.HyperParameters) -> keras.Model:
    """Build a compiled model for one choice of the five hyperparameters."""
    facts = BACKBONES[options.backbone]
    strength = hp.Float("augment_strength", *STRENGTH[:2], step=STRENGTH[2])
    inputs = keras.Input((options.size, options.size, 3))
    x = layers.RandomZoom(0.2 * strength)(inputs)
    x = layers.RandomRotation(0.1 * strength)(x)
    x = layers.RandomContrast(0.4 * strength)(x)
    x = layers.Rescaling(facts.scale, facts.offset)(x)
    base = facts.build(options.alpha, input_shape=(options.size, options.size, 3))
    base.load_weights(options.weights)
    unfreeze(base, hp.Int("unfreeze_depth", 0, options.depth))
    x = layers.GlobalAveragePooling2D()(base(x, training=False))
    dropout = hp.Float("dropout", *DROPOUT)
    for position, (low, high, step) in enumerate(WIDTHS):
        if width := hp.Int(f"dense_widths_{position + 1}", low, high, step=step):
            x = layers.Dense(width, activation="relu")(x)
            x = layers.Dropout(dropout)(x)
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    model.compile(
        optimizer=keras.optimizers.Adam(hp.Float("learning_rate", *RATE, sampling="log")),
        loss="binary_crossentropy",
        metrics=[keras.metrics.AUC(name="auc")],
    )
    return model


def unfreeze(base: keras.Model, depth: int) -> None:
    """Freeze all but the `depth` topmost blocks, which end where pneumo's end."""
    from pneumo.training.network import blocks

    base.trainable = True
    groups = blocks(base, options.backbone)
    for position, group in enumerate(groups):
        for layer in group:
            layer.trainable = position >= len(groups) - depth


def images(split: str, shuffle: bool = False) -> tf.data.Dataset:
    """Return the batches of a split."""
    return keras.utils.image_dataset_from_directory(
        Path(options.folder) / "peer" / split,
        label_mode="binary",
        batch_size=options.batch,
        image_size=(options.size, options.size),
        shuffle=shuffle,
        seed=0,
        verbose=False,
    ).prefetch(tf.data.AUTOTUNE)


class Tuner(keras_tuner.BayesianOptimization):
    """A search that ends with `--seconds` of its process, if they are given.

    KerasTuner has no limit on time. The last trial starts if half of one still fits.
    """

    def on_trial_end(self, trial: keras_tuner.engine.trial.Trial) -> None:
        """Let no other trial start if there is no time."""
        super().on_trial_end(trial)
        elapsed, count = time.time() - psutil.Process().create_time(), len(self.oracle.trials)
        if options.seconds and elapsed * (count + 0.5) / count > options.seconds:
            self.oracle.max_trials = count


def search() -> dict[str, Any]:
    """Run the whole study."""
    keras.utils.set_random_seed(options.seed)
    with tempfile.TemporaryDirectory() as directory:
        tuner = Tuner(
            build_model,
            objective=keras_tuner.Objective("val_auc", "max"),
            max_trials=options.trials,
            seed=options.seed,
            directory=directory,
            project_name="peer",
        )
        tuner.search(
            images("train", shuffle=True),
            validation_data=images("val"),
            epochs=options.epochs,
            verbose=0,
        )
        [best] = tuner.get_best_models(1)
        test = images("test")
        test_auc = best.evaluate(test, verbose=0, return_dict=True)["auc"]
        score = tuner.oracle.get_best_trials(1)[0].score
        probabilities = best.predict(test, verbose=0)[:, 0].tolist()
    names = [path.name for path in sorted(Path(options.folder, "peer", "test").glob("*/*"))]
    return {
        "val_auc": score,
        "test_auc": test_auc,
        "trials": len(tuner.oracle.trials),
        "probabilities": dict(zip(names, probabilities, strict=True)),
    }


def seconds_of_epochs() -> list[float]:
    """Return the seconds of an epoch at each depth."""
    found = []
    for depth in range(options.depth + 1):
        hp = keras_tuner.HyperParameters()
        hp.Fixed("augment_strength", 0.5)
        hp.Fixed("unfreeze_depth", depth)
        model = build_model(hp)
        for _ in range(2):  # the first epoch compiles
            began = time.perf_counter()
            model.fit(images("train", shuffle=True), validation_data=images("val"), verbose=0)
        found.append(time.perf_counter() - began)
    return found


if options.by_epoch:
    result = {"epochs": seconds_of_epochs(), "val_auc": math.nan, "test_auc": math.nan}
else:
    result = search()
print(json.dumps(result))
