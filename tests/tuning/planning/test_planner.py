"""Plans from real images and measurements, and studies that follow them."""

import json
import time
from dataclasses import replace

import mlflow
import optuna
import pytest

from pneumo.experiment import load_experiment
from pneumo.runtime.errors import UserError
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.training.config import RunConfig
from pneumo.tuning import attributes
from pneumo.tuning.planning import planner, speed
from pneumo.tuning.planning.budget import Budget
from pneumo.tuning.planning.dataset_fingerprint import describe_dataset
from pneumo.tuning.planning.fingerprint import TrainingSpeed
from pneumo.tuning.planning.plan import StudyPlan
from pneumo.tuning.spec import StudySpec, validate_search_space
from pneumo.tuning.storage import open_storage
from tests.support.commands import run_here
from tests.support.studies import tags, without_registration
from tests.support.training import without_fits
from tests.tuning.planning.test_rules import DATASET

SMALL = ("--backbone", "cnn", "--image_size", "32", "--epochs", "1", "--folds", "1")
SPEED = TrainingSpeed(1.0, 0.001, 1e-7)


@pytest.fixture
def without_measuring(monkeypatch):
    monkeypatch.setattr(planner, "measure_training", lambda config: SPEED)


def test_time_for_the_end_grows_with_what_is_predicted_and_on_slow_machines():
    images = {"train": 3_000, "val": 1_000, "test": 500}
    params = load_experiment("auto").base.override({"image_size": 100}).to_params()
    speed = TrainingSpeed(6.3, 0.002, 1e-7)  # 1 ms for a prediction
    estimate = planner._estimate_end
    assert estimate(speed, images, params, 1) == pytest.approx(25 + 3 + 5.5)
    assert estimate(speed, images, params, 3) == pytest.approx(25 + 3 + 3 * 5.5)
    folds = params | {"folds": "5"}
    assert estimate(speed, images, folds, 3) == pytest.approx(25 + 3 + 15 * 5.5)
    slow = TrainingSpeed(12.6, 0.004, 2e-7)
    assert estimate(slow, images, params, 1) == pytest.approx(2 * (25 + 3 + 5.5))


def test_fingerprint_of_the_sample(sample):
    fingerprint = describe_dataset(sample)
    assert fingerprint.images == {"train": 318, "val": 82, "test": 146}
    outside_test = sample.rows[sample.rows["split"] != "test"]
    assert fingerprint.patients == outside_test["patient"].nunique()
    assert fingerprint.prevalence == outside_test["label"].mean()
    assert fingerprint.duplicates == 0
    assert fingerprint.side == 96
    assert fingerprint.aspect_ratio == 1.0
    assert fingerprint.can_fold
    assert 0 < fingerprint.decoding_seconds < 1


def test_fingerprint_of_few_and_unreadable_images(folder):
    from pneumo.data.dataset import open_dataset

    for name in ("NORMAL", "PNEUMONIA"):
        files = sorted((folder / "train" / name).iterdir())
        for file in files[:20]:
            file.write_text(f"no image: {file}")
        for file in files[40:]:
            file.unlink()
    fingerprint = describe_dataset(open_dataset(str(folder)))
    assert fingerprint.side == 96  # of the readable ones
    for file in (folder / "train").rglob("*.png"):
        file.write_text(f"no image: {file}")
    with pytest.raises(UserError, match="must contain readable images: none of 80 is"):
        describe_dataset(open_dataset(str(folder)))


@pytest.mark.slow
def test_the_speed_is_measured_once(own_cache, monkeypatch):
    import_tensorflow()
    config = RunConfig(dense_widths=(8,), objective="val_robust_auc")
    measured = speed.measure_training(config)
    assert min(measured.start, measured.per_image + measured.per_pixel) > 0

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(speed, "_measure", fail)
    other = config.override({"epochs": 3, "image_size": 224, "dropout": 0.1})
    assert speed.measure_training(other) == measured
    monkeypatch.setattr(speed, "_measure", lambda config: SPEED)
    assert speed.measure_training(config.override({"unfreeze_depth": 1})) == SPEED
    file = own_cache / ".pneumo-speed.json"
    stored = json.loads(file.read_text())
    key = next(key for key in stored if "unfreeze_depth 2" in key)
    stored[key]["time"] -= 8 * 24 * 3_600
    file.write_text(json.dumps(stored))
    assert speed.measure_training(config) == SPEED  # the other one is too old
    monkeypatch.setattr(speed, "_measure", lambda config: measured)
    file.write_text('{"half')
    assert speed.measure_training(config) == measured


@pytest.mark.slow
@pytest.mark.usefixtures("without_measuring", "without_plots")
def test_a_study_with_a_budget_is_continued(store):
    with without_fits(), without_registration():
        code, output, errors = run_here(
            "tune", "--budget", "10m", "--study", "a", "--trials", "1", *SMALL
        )
    assert code == 0, errors
    text = "image_size 32, epochs 1, patience 16 (given: image_size, epochs)"
    assert f"plan: size and epochs: {text}. A long search" in output
    assert output.rstrip().endswith("--study a --budget +1h")
    [study_run] = [run for run in store.search_runs(["0"]) if tags(run)["pneumo.kind"] == "study"]
    study = optuna.load_study(study_name="a", storage=open_storage())
    plan = StudyPlan.from_study(study)
    assert (plan.budget, plan.ensemble, plan.like) == (600, 5, "")
    assert plan.fields == {
        **{"alpha": "1.0", "weights": "none", "unfreeze_depth": "2"},
        **{"objective": "val_robust_auc", "batch_size": "32", "patience": "16"},
    }
    given = dict(zip((flag.removeprefix("--") for flag in SMALL[::2]), SMALL[1::2], strict=True))
    assert attributes.FIXED.read(study) == {
        name: value
        for name, value in (plan.fields | given).items()
        if name not in ("objective", "epochs")
    }
    assert {trial.params.get("unfreeze_depth") for trial in study.trials} == {None}
    limits, spent = attributes.LIMITS.read(study), attributes.SPENT_SECONDS.read(study)
    assert (limits["trials"], limits["deadline"]) == (1, None)
    assert limits["end"] == plan.end
    page = mlflow.artifacts.load_text(f"{study_run.info.artifact_uri}/study/study.html")
    for text in ("<h2>Plan</h2>", "train 318, val 82, test 146", "<td>10 min</td>", "given"):
        assert text in page

    command = ["tune", "--budget", "+5m", "--study", "a", "--trials", "2", "--workers", "2"]
    code, output, errors = run_here(*command, *SMALL)
    assert code == 0, errors
    study = optuna.load_study(study_name="a", storage=open_storage())
    extended = StudyPlan.from_study(study)
    assert extended.budget == 900
    assert extended.choices == plan.choices
    assert attributes.SPENT_SECONDS.read(study) > spent > 0
    assert len(study.trials) >= 2  # up to one more with two workers
    assert attributes.LIMITS.read(study)["epoch_seconds"] > limits["epoch_seconds"]

    # A new study on the same images begins with the best trials of that one
    with without_fits(), without_registration():
        code, output, errors = run_here(
            "tune", "--budget", "10m", "--study", "b", "--trials", "2", *SMALL
        )
    assert code == 0, errors
    after = optuna.load_study(study_name="b", storage=open_storage())
    assert StudyPlan.from_study(after).like == "a"
    tried = [trial.params for trial in study.trials]
    assert after.trials[1].params in tried[1:]


@pytest.mark.slow
@pytest.mark.usefixtures("without_measuring", "without_training", "without_winner")
def test_another_experiment_with_a_budget_is_not_planned(store):
    command = ["tune", "--experiment", "tune", "--study", "a", "--image_size", "32"]
    command += ["--epochs", "1", "--trials", "1"]
    code, output, errors = run_here(*command, "--budget", "1h")
    assert code == 0, errors
    assert "plan: size" not in output
    study = optuna.load_study(study_name="a", storage=open_storage())
    plan = StudyPlan.from_study(study)
    assert (plan.choices, plan.fields, plan.ensemble, plan.speed) == ([], {}, 1, SPEED)
    assert plan.trial_seconds > plan.speed.start
    assert attributes.FIXED.read(study) == {"image_size": "32"}
    code, output, errors = run_here(*command)
    assert code == 2
    assert "study 'a' has a budget: got none" in errors


# Each with a value other than that of the experiment
FIELDS = {
    **{"backbone": "cnn", "alpha": "0.5", "weights": "none", "image_size": "64", "resize": "pad"},
    **{"dropout": "0.3", "dense_widths": "64", "augment_strength": "0.5"},
    **{"max_crop_fraction": "0.4", "horizontal_flip": "on", "sharpness_jitter": "0.5"},
    **{"flip_tta": "on", "unfreeze_depth": "3", "learning_rate": "0.002"},
    **{"lr_schedule": "constant", "head_epochs": "1", "fine_tune_lr_factor": "0.1"},
    **{"batch_size": "16", "epochs": "3", "patience": "2", "ensemble_size": "2", "folds": "3"},
    **{"split_by": "patient", "repeats": "2", "seed": "5", "objective": "val_auc"},
    **{"threshold_rule": "youden", "feature_cache": "on", "max_unreadable": "0.5"},
}


@pytest.mark.usefixtures("store", "without_measuring")
def test_each_field_can_be_fixed(sample, monkeypatch):
    assert FIELDS.keys() == RunConfig.model_fields.keys()
    monkeypatch.setattr(planner, "load_pretrained_weights", lambda _: None)
    monkeypatch.setattr(planner, "describe_dataset", lambda _: DATASET)
    for name, value in FIELDS.items():
        spec = StudySpec(load_experiment("auto"), sample, {name: value})
        plan = planner.plan_study(spec, Budget(3_600, False), "", time.time(), 1, "local")
        planned = replace(spec, fixed={**plan.fields, **spec.fixed})
        assert planned.base.to_params()[name] == value
        validate_search_space(planned.experiment, planned.base, planned.fixed)
        assert planned.initial_params()


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--budget 5", "argument --budget: must be at least a minute"),
        ("--budget 1h --timeout 60", "--budget and --timeout exclude each other"),
        ("--budget +1h", "--budget +… requires the name of an existing study: got --study ''"),
        ("--budget 1h --backbone mobilnet", "backbone must be one of: cnn"),
        ("--budget 1h --backbone cnn --alpha 0.5", "alpha must be 1 with backbone cnn"),
        ("--budget 1h --weights missing.h5", "weights must be none"),
    ],
)
def test_mistakes(flags, message):
    code, _, errors = run_here("tune", *flags.split())
    assert code == 2
    [line] = errors.strip().splitlines()
    assert message in line


@pytest.mark.slow
def test_a_study_without_a_budget_gets_none(study):
    name = study.study.study_name
    code, _, errors = run_here("tune", "--experiment", "tune", "--budget", "1h", "--study", name)
    assert code == 2
    assert f"study '{name}' was created without --budget" in errors


@pytest.mark.usefixtures("store", "without_measuring")
def test_without_weights_the_plan_says_why(sample, monkeypatch, capsys):
    def fail(config):
        if config.weights == "imagenet":
            raise UserError("weights=imagenet cannot be downloaded")

    monkeypatch.setattr(planner, "load_pretrained_weights", fail)
    spec = StudySpec(load_experiment("auto"), sample, {})
    plan = planner.plan_study(spec, Budget(3_600, False), "", 1e12, 1, "local")
    assert plan.fields["backbone"] == "cnn"
    assert "note: weights=imagenet cannot be downloaded" in capsys.readouterr().out
    given = StudySpec(load_experiment("auto"), sample, {"backbone": "mobilenet"})
    with pytest.raises(UserError, match="cannot be downloaded"):
        planner.plan_study(given, Budget(3_600, False), "", 1e12, 1, "local")


@pytest.mark.usefixtures("store", "without_measuring")
def test_a_field_that_only_a_pretrained_network_has_needs_weights(sample, monkeypatch):
    def fail(config):
        raise UserError("weights=imagenet cannot be downloaded")

    monkeypatch.setattr(planner, "load_pretrained_weights", fail)
    spec = StudySpec(load_experiment("auto"), sample, {"alpha": "0.5"})
    with pytest.raises(UserError, match="cannot be downloaded"):
        planner.plan_study(spec, Budget(3_600, False), "", 1e12, 1, "local")


@pytest.mark.usefixtures("store", "without_measuring")
def test_no_path_of_weights_is_stored(sample, weights):
    fixed = {"weights": str(weights), "alpha": "0.25"}
    spec = StudySpec(load_experiment("auto"), sample, fixed)
    plan = planner.plan_study(spec, Budget(3_600, False), "", 1e12, 1, "local")
    assert str(weights.parent) not in json.dumps(plan.to_dict())
    assert weights.name in plan.choices[0].choice


def test_plans_are_plain_values(sample):
    plan = StudyPlan(60.0, 1.0, 61.0, 2.0, dataset=describe_dataset(sample), speed=SPEED)
    study = optuna.create_study()
    attributes.PLAN.set(study, plan.to_dict())
    json.dumps(attributes.PLAN.read(study))
    assert StudyPlan.from_study(study) == plan
