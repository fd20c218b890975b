"""A model on pixels / 255, and that no other code path accepts such pixels."""

import json

import numpy as np
import pytest

from pneumo.data.dataset import open_dataset
from pneumo.evaluation import preprocessing_skew
from pneumo.inference.logits import build_ensemble, predict_logits, predict_proba
from pneumo.tracking import evaluations
from pneumo.training import network
from pneumo.training.config import RunConfig
from tests.support import handmade
from tests.support.commands import run_here
from tests.support.studies import EVIDENCE, INTERVALS, METRICS, files, predictions


@pytest.fixture(scope="module", params=[([0], False), ([0, 1, 1], True)])
def model(request):
    seeds, mirror = request.param
    networks = {seed: network.build_model(RunConfig(image_size=32, seed=seed)) for seed in seeds}
    return build_ensemble([networks[seed] for seed in seeds], mirror)


def test_the_float_clone_equals_the_model_on_undivided_pixels(model):
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 1), np.uint8)
    twin = preprocessing_skew.with_float_input(model)
    assert predict_logits(twin, images.astype(np.float32)) == pytest.approx(
        predict_logits(model, images), abs=1e-6
    )
    black = predict_logits(model, np.zeros_like(images))
    mistaken = predict_logits(twin, images.astype(np.float32) / 255)
    assert mistaken == pytest.approx(black, abs=0.01)
    assert len(set(mistaken)) == 9  # not cast to black, but nearly


def test_the_model_itself_refuses_such_pixels(model):
    with pytest.raises(TypeError, match="images must have dtype uint8 .*: got float32"):
        predict_proba(model, np.zeros((1, 32, 32, 1), np.float32))


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_an_evaluation_with_skew(store, tmp_path):
    data = str(handmade.write_images(tmp_path / "xrays"))
    stored = handmade.register(handmade.run_of("left", open_dataset(data)), "handmade")
    flags = ["--model", "models:/handmade/1", "--data", data, "--preprocessing_skew", "true"]
    code, output, errors = run_here("evaluate", *flags)
    assert (code, errors) == (0, "")
    runs = store.search_runs(["0"], "tags.`pneumo.kind` = 'evaluate'")
    [skewed] = [run for run in runs if "pneumo.preprocessing_skew" in run.data.tags]
    [sound] = [run for run in runs if run is not skewed]
    assert skewed.data.tags["mlflow.parentRunId"] == sound.info.run_id
    assert "pneumo.model_id" not in skewed.data.tags  # so that no decision is made on it
    digest = sound.data.tags["pneumo.data_digest"]
    assert evaluations.find_evaluation(stored.model_id, digest, "test") == sound.info.run_id
    assert set(skewed.data.metrics) == {f"test_{name}" for name in METRICS | INTERVALS}
    assert set(sound.data.metrics) == set(skewed.data.metrics)
    assert files(store, sound.info.run_id) == {f"test/{name}" for name in EVIDENCE}
    # Each counts as a look, the second one after the first has written its page
    assert json.loads(skewed.data.tags["pneumo.test_looks"]) == {stored.model_id: 1}
    assert json.loads(sound.data.tags["pneumo.test_looks"]) == {stored.model_id: 1}
    assert store.get_model_version("handmade", "1").tags["pneumo.test_evaluations"] == "2"
    # All images are nearly black to it, so all get the same answer
    found = predictions(skewed.info.run_id, "test")["probability"]
    assert found.max() - found.min() < 0.01
    rates = [skewed.data.metrics[f"test_{name}"] for name in ("sensitivity", "specificity")]
    assert rates == [0, 1]
    assert skewed.data.metrics["test_accuracy"] == 0.5
    assert sound.data.metrics["test_accuracy"] > 0.9
    assert sound.data.metrics["test_threshold"] == skewed.data.metrics["test_threshold"] == 0.3
    for row, made in (("with skew", skewed), ("without skew", sound)):
        auc, low, high = (made.data.metrics[f"test_auc{end}"] for end in ("", "_low", "_high"))
        [line] = [line for line in output.splitlines() if line.startswith(row)]
        assert f"{auc:.3f} ({low:.3f}–{high:.3f})" in line
    assert "note (with preprocessing skew): The model predicts NORMAL for every image." in output
