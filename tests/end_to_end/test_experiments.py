"""Every file of experiments/ loads, has a lab note, and trains."""

import ast
import importlib
import re

import pytest
from optuna.trial import FixedTrial

from pneumo.experiment import EXPERIMENTS_DIR, list_experiments, load_experiment
from pneumo.runtime.errors import UserError
from pneumo.tuning.spec import PartiallyFixedTrial, StudySpec

NAMES = list_experiments()
STUDIES = [name for name in NAMES if load_experiment(name).suggest]


def test_the_experiments_that_there_are():
    assert NAMES == [
        *("auto", "best", "cnn", "criterion", "published_cnn", "published_transfer", "robust"),
        *("tune", "tune_cnn", "tune_mobilenet", "tune_resnet"),
    ]
    assert STUDIES == [
        *("auto", "best", "criterion", "robust"),
        *("tune", "tune_cnn", "tune_mobilenet", "tune_resnet"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_lab_note(name):
    note = ast.get_docstring(ast.parse((EXPERIMENTS_DIR / f"{name}.py").read_text()))
    question, *parts = re.split(r"\n\n(?=(?:Command|Expected|Result|Interpretation)\b)", note)
    assert question.endswith("?")
    assert "\n" not in question
    patterns = (
        r"Command:\n    mlflow run \. -e ",
        r"Expected:\n    ",
        r"Result \(\d{4}-\d\d-\d\d\):\n    ",
        r"Interpretation:\n    ",
    )
    for pattern, part in zip(patterns, parts, strict=True):
        assert re.match(pattern, part)


@pytest.mark.parametrize("name", STUDIES)
def test_the_baseline_lies_in_the_search_space(name):
    experiment = load_experiment(name)
    search = PartiallyFixedTrial(experiment.base, {})
    experiment.suggest(search, experiment.base)
    # FixedTrial warns of a value out of range, and a warning is an error here
    assert experiment.suggest(FixedTrial(search.baseline), experiment.base) == experiment.base
    fields = {"dropout", "dense_widths", "augment_strength", "unfreeze_depth", "learning_rate"}
    assert {name.rstrip("_0123456789") for name in search.baseline} >= fields


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_queued_lies_in_the_search_space(name, sample):
    experiment = load_experiment(name)
    spec = StudySpec(experiment, sample, {})
    initial_params = spec.initial_params()
    assert len(initial_params) == 1 + len(experiment.enqueued_trials)
    for suggestions in initial_params:
        experiment.suggest(FixedTrial(suggestions), experiment.base)  # which warns of others


# ImageNet's weights are not everywhere; test_train has what they change
SMALL = {"epochs": 1, "weights": "none", "image_size": 32, "ensemble_size": 1}
# Some experiments differ in their search alone
CONFIGS = {load_experiment(name).base.override(SMALL): name for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=CONFIGS.values())
def test_each_trains(config, sample):
    from pneumo.training.train import train
    from tests.support.features import few_images

    images = few_images(sample)
    result = train(config, images)
    assert result.best_epochs == (1,)
    assert result.val_logits.shape == (len(images.split("val").rows),)


def test_an_experiment_file_sets_the_resources_of_a_trial(monkeypatch):
    assert load_experiment("tune").resources == {"num_cpus": 1}
    resources = {"num_cpus": 4, "num_gpus": 0.5}
    module = importlib.import_module("experiments.tune")
    monkeypatch.setattr(module, "RESOURCES", resources, raising=False)
    assert load_experiment("tune").resources == resources


def test_an_unknown_experiment_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="one of auto, best, cnn, .*: got 'tine'. To add one"):
        load_experiment("tine")


def test_a_study_needs_a_search_space():
    with pytest.raises(UserError, match="requires a function suggest.*: experiments/cnn.py"):
        load_experiment("cnn", require_search_space=True)
