"""The published mistake, on purpose: a model trained on pixels 0-255 is scored on pixels / 255."""

import keras
import numpy as np
from scipy.special import expit

from pneumo import evidence, models, tracking
from pneumo.console import say, table
from pneumo.data.dataset import Images
from pneumo.evaluate import HEADLINE, Evaluation, evaluate
from pneumo.pages import with_interval
from pneumo.registry import Stored

SHOWN = ("accuracy", "sensitivity", "specificity", "auc")


def hold_against_test(stored: Stored, images: Images) -> None:
    """Holds a model against test, once with the mistake and once without, as two runs.

    The one with the mistake has the tag `pneumo.mistake`, and is no evaluation that anything else
    would take for one.
    """
    test, threshold = images.split("test"), stored.model.settings["threshold"]
    tags = tracking.subject_tags(stored.trial.data.tags["pneumo.experiment"], images.dataset)
    with tracking.command_run(
        "evaluate", f"{stored.title}, mistaken", {**tags, "pneumo.mistake": "pixels / 255"}
    ):
        tracking.record_look(stored.model_id, images.dataset.images_digest("test"))
        twin = as_published(stored.model.keras_model)
        # As in `models.probabilities`, but for the check of uint8 pixels, which would refuse them
        logits = models.logits(twin, test.images.astype(np.float32) / 255)
        probabilities = expit(logits / stored.model.settings["temperature"])
        mistaken = evaluate(test, probabilities, threshold, intervals=True)
        tracking.log_evaluation("test", mistaken)
    numbers = {
        "at_threshold": mistaken.metrics,
        "validation": {name: stored.trial.data.metrics[f"val_{name}"] for name in HEADLINE},
        "accuracy_of_all_pneumonia": float(test.labels.mean()),
    }
    with evidence.evaluation_run(stored, images.dataset):
        found = evidence.examine(stored, images, "test").evaluation
    _show({"with the mistake": mistaken, "with the harness": found})
    for finding in evidence.failures(numbers, "test"):
        say(f"what evaluate would say of the mistake: {finding}")


def as_published(model: keras.Model) -> keras.Model:
    """The same layers and weights behind a float input: it takes pixels of any range as they are.

    The model itself would refuse them, or, called past that, cast them to whole numbers.
    """
    twins = [_behind_float_input(member) for member in models.members_of(model)]
    return models.average(twins, models.is_mirrored(model))


def _behind_float_input(member: keras.Model) -> keras.Model:
    network = member.get_layer("backbone")
    pixels = keras.Input(member.input_shape[1:], dtype="float32")
    twin = keras.models.clone_model(network, input_tensors=pixels)
    twin.set_weights(network.get_weights())
    return keras.Model(pixels, member.get_layer("head")(twin.output))


def _show(evaluations: dict[str, Evaluation]) -> None:
    """What became of the same model on test."""
    rows = [
        (name, *(with_interval(it.metrics, metric) for metric in SHOWN), str(it.confusion))
        for name, it in evaluations.items()
    ]
    table("The same model on test", ("", *SHOWN, "counts"), rows)
