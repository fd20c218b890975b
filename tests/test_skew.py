"""The published mistake, and that nothing else makes it."""

import json

import numpy as np
import pytest

from pneumo import models, skew
from pneumo.config import RunConfig
from tests.studies import EVIDENCE, INTERVALS, METRICS, files, predictions, tags, text
from tests.test_command_line import run


@pytest.fixture(scope="module", params=[(1, False), (2, True)])
def model(request):
    count, mirror = request.param
    members = [models.build(RunConfig(image_size=32, seed=seed)) for seed in range(count)]
    return models.average(members, mirror)


def test_the_twin_is_the_model_until_its_pixels_are_divided(model):
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 1), np.uint8)
    twin = skew.as_published(model)
    assert models.logits(twin, images.astype(np.float32)) == pytest.approx(
        models.logits(model, images), abs=1e-6
    )
    black = models.logits(model, np.zeros_like(images))
    mistaken = models.logits(twin, images.astype(np.float32) / 255)
    assert mistaken == pytest.approx(black, abs=0.01)
    assert len(set(mistaken)) == 9  # not cast to black, but nearly


def test_the_model_itself_refuses_such_pixels(model):
    with pytest.raises(TypeError, match="images must be uint8 pixels 0 to 255: got float32"):
        models.probabilities(model, np.zeros((1, 32, 32, 1), np.float32))


@pytest.mark.slow
def test_the_mistake_beside_the_harness(store):
    fields = {"image_size": "32", "epochs": "2", "dense_widths": "32"}
    flags = [word for name, value in fields.items() for word in (f"--{name}", value)]
    code, output, errors = run("train", "--experiment", "published_cnn", *flags)
    assert code == 0, errors
    runs = {it.info.run_id: it for it in store.search_runs(["0"])}
    [command] = [it for it in runs.values() if it.data.tags["pneumo.kind"] == "train"]
    below = [it for it in runs.values() if "mlflow.parentRunId" in it.data.tags]
    assert {it.data.tags["mlflow.parentRunId"] for it in below} == {command.info.run_id}
    [mistaken] = [it for it in below if "pneumo.mistake" in it.data.tags]
    [trial] = [it for it in below if it.data.tags["pneumo.kind"] == "trial"]
    [sound] = [it for it in below if it not in (mistaken, trial)]
    assert tags(mistaken)["pneumo.kind"] == tags(sound)["pneumo.kind"] == "evaluate"
    assert "pneumo.model_id" not in tags(mistaken)  # so that no decision is made on it
    assert set(mistaken.data.metrics) == {f"test_{it}" for it in METRICS | INTERVALS}
    assert set(sound.data.metrics) == set(mistaken.data.metrics)
    assert files(store, sound.info.run_id) == {f"test/{it}" for it in EVIDENCE}
    # both show how the model does on test
    looks = json.loads(text(sound.info.run_id, "test/metrics.json"))
    assert (looks["test_evaluations"], looks["test_evaluations_of_all_models"]) == (2, 2)
    # all images are the same to it, so all get the same answer
    found = predictions(mistaken.info.run_id, "test")["probability"]
    assert found.max() - found.min() < 0.01
    rates = [mistaken.data.metrics[f"test_{it}"] for it in ("sensitivity", "specificity")]
    assert sorted(rates) == [0, 1]
    share = predictions(mistaken.info.run_id, "test")["label"].mean()
    assert mistaken.data.metrics["test_accuracy"] == pytest.approx(share if rates[0] else 1 - share)
    assert sound.data.metrics["test_threshold"] == mistaken.data.metrics["test_threshold"]
    for row, made in (("with the mistake", mistaken), ("with the harness", sound)):
        found = made.data.metrics
        shown = (
            f"{found['test_auc']:.3f} ({found['test_auc_low']:.3f}–{found['test_auc_high']:.3f})"
        )
        [line] = [it for it in output.splitlines() if row in it]
        assert shown in line
    assert "what evaluate would say of the mistake: The model calls every image" in output


@pytest.mark.slow
def test_it_needs_test_images(store, folder):
    for file in (folder / "test").rglob("*.png"):
        file.unlink()
    code, _, errors = run("train", "--experiment", "published_cnn", "--data", str(folder))
    assert code == 2
    assert "must hold images in test/NORMAL, and has none; add them" in errors
    assert store.search_runs(["0"]) == []
