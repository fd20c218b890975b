"""Ensembles of a study's trials."""

import json
import time

import keras
import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import create_trial
from sklearn.metrics import roc_auc_score

from pneumo.evaluation.metrics import fit_calibration
from pneumo.evaluation.robustness import ROBUST_VERSIONS, robust_auc
from pneumo.inference.logits import (
    build_ensemble,
    ensemble_members,
    member_weight,
    predict_logits,
)
from pneumo.runtime.errors import StudyFailedError
from pneumo.tracking import model_files, models, results
from pneumo.training import network
from pneumo.training.config import RunConfig
from pneumo.tuning.ensemble import (
    Candidates,
    estimate_gain,
    read_candidates,
    select_members,
)
from tests.support.studies import METRICS, children, files, predictions, run_study, tags, text


def create_candidates(
    logits: np.ndarray, labels: np.ndarray, objective: str = "val_auc", folds: int = 1
) -> Candidates:
    """Return candidates whose versions of each image have the same logits, except for noise."""
    rng = np.random.default_rng(0)
    versions = {
        version: logits + (rng.normal(size=logits.shape) if version else 0)
        for version in ROBUST_VERSIONS
    }
    rows = pd.DataFrame({"label": labels, "patient": [f"p{n // 2}" for n in range(len(labels))]})
    fold = np.arange(len(labels)) // 2 % folds
    return Candidates([], versions, logits, rows, fold, objective)


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).permutation(np.arange(120) % 2)


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("objective", ["val_auc", "val_robust_auc"])
def test_scores_are_the_objective_in_the_mean_over_folds(labels, objective, folds):
    logits = np.random.default_rng(2).normal(size=(4, 120)).round(1)  # with ties
    candidates = create_candidates(logits + labels, labels, objective, folds)
    expected = []
    for trial in range(4):
        values = []
        for fold in range(folds):
            chosen = candidates.folds == fold
            own = {key: array[trial, chosen] for key, array in candidates.logits.items()}
            plain = roc_auc_score(labels[chosen], own[None])
            values.append(plain if objective == "val_auc" else robust_auc(labels[chosen], own))
        expected.append(np.mean(values))
    assert candidates.scores(candidates.logits) == pytest.approx(expected)


def test_a_score_without_both_classes_in_a_fold_is_unknown(labels):
    candidates = create_candidates(np.zeros((2, 120)), np.ones(120, int))
    assert np.isnan(candidates.scores(candidates.logits)).all()


def test_each_step_adds_the_candidate_that_helps_the_most(labels):
    noise = np.random.default_rng(3).normal(size=(6, 120))
    candidates = create_candidates(1.5 * labels + noise, labels)
    logits = candidates.logits[None]

    def auc(members: list[int]) -> float:
        return roc_auc_score(labels, logits[members].mean(axis=0))

    expected = [2]
    for _ in range(6):
        expected.append(max(range(6), key=lambda added: auc([*expected, added])))
    aucs = [auc(expected[: count + 1]) for count in range(7)]
    best = expected[: int(np.argmax(aucs)) + 1]
    assert 1 < len(best)
    assert select_members(candidates, 2, 7) == best
    assert auc(best) == max(aucs) > auc([2])
    assert select_members(candidates, 2, 1) == [2]


def test_nothing_is_added_that_does_not_help(labels):
    candidates = create_candidates(np.stack([labels * 9.0, labels * 1.0]), labels)
    assert select_members(candidates, 0, 5) == [0]


def test_the_gain_of_equally_good_trials_is_corrected_for_the_selection(labels):
    rng = np.random.default_rng(4)
    common = labels + 1.2 * rng.normal(size=120)
    candidates = create_candidates(common + 0.2 * rng.normal(size=(12, 120)), labels)
    members = select_members(candidates, 0, 5)
    means = candidates.logits[None][members].mean(axis=0)
    apparent = roc_auc_score(labels, means) - roc_auc_score(labels, candidates.logits[None][0])
    gains = estimate_gain(candidates, 5, draws=100)
    assert len(gains) == 100
    assert gains.mean() < apparent
    low, high = np.percentile(gains, [2.5, 97.5])
    assert low < 0 < high


def test_the_gain_of_complementary_trials_is_certain(labels):
    halves = np.arange(120) % 4 < 2
    strong = np.where(halves, 6.0 * labels, 0.0), np.where(halves, 0.0, 6.0 * labels)
    noise = np.random.default_rng(5).normal(size=(2, 120))
    gains = estimate_gain(create_candidates(np.stack(strong) + noise, labels), 2, draws=100)
    assert np.percentile(gains, 2.5) > 0


def test_too_few_patients_have_no_estimate():
    candidates = create_candidates(np.ones((2, 4)), np.array([0, 0, 1, 1]), folds=2)
    assert len(estimate_gain(candidates, 2, draws=20)) == 0


def test_a_gain_for_which_there_is_no_time_is_not_estimated():
    labels = np.repeat([0, 1], 30)
    candidates = create_candidates(np.stack([labels, labels]) + 0.1, labels)
    assert len(estimate_gain(candidates, 2, draws=5, end=time.time() + 60)) == 5
    assert len(estimate_gain(candidates, 2, draws=5, end=time.time() - 1)) == 0


@pytest.mark.parametrize("mirror", [False, True])
def test_a_model_that_is_listed_twice_counts_twice(tmp_path, mirror):
    first, second = (network.build_model(RunConfig(image_size=32, seed=seed)) for seed in (0, 1))
    model = build_ensemble([first, second, second], mirror)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [member_weight(member) for member in ensemble_members(loaded)] == [1, 2]
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
    views = [images, images[:, :, ::-1]] if mirror else [images]
    own, other = (
        np.mean([predict_logits(it, view) for view in views], axis=0) for it in (first, second)
    )
    assert predict_logits(loaded, images) == pytest.approx((own + 2 * other) / 3, abs=1e-5)


@pytest.fixture
def search(monkeypatch) -> optuna.Study:
    """Return a study whose trials' logits are all 10 times the trial's number."""
    study = optuna.create_study(direction="maximize")
    for number, size in enumerate((32, 32, 64, 32, 32)):
        config = RunConfig(image_size=size, dropout=number / 10).to_params()
        study.add_trial(
            create_trial(
                value=1 - number / 10,
                user_attrs={"run_id": f"r{number}", "config": config, "model_uri": f"m{number}"},
            )
        )

    def read(run_id: str):
        if run_id == study.user_attrs.get("lost"):
            raise OSError("gone")
        logits = np.full(82, 10.0 * int(run_id[1]))
        return dict.fromkeys(ROBUST_VERSIONS, logits), logits

    monkeypatch.setattr(results, "read_logits", read)
    monkeypatch.setattr(
        model_files, "is_stored", lambda uri: uri not in study.user_attrs.get("deleted", [])
    )
    return study


def candidates_of(study: optuna.Study, sample) -> list[int]:
    found = read_candidates(study, sample.decode(32, 0), RunConfig(image_size=32))
    numbers = [trial.number for trial in found.trials]
    for logits in (*found.logits.values(), found.perturbed_logits):
        assert logits[:, 0].tolist() == [10 * number for number in numbers]
        assert logits.shape == (len(numbers), 82)
    return numbers


def test_members_have_models_and_networks_of_one_input_size(search, sample):
    assert candidates_of(search, sample) == [0, 1, 3, 4]
    search.set_user_attr("deleted", ["m3"])  # by an earlier command with keep_models
    assert candidates_of(search, sample) == [0, 1, 4]


def test_a_trial_without_logits_is_no_candidate(search, sample, capsys):
    search.set_user_attr("lost", "r1")
    assert candidates_of(search, sample) == [0, 3, 4]
    line = "trial 1 cannot be in the ensemble: no logits can be read (OSError: gone)\n"
    assert capsys.readouterr().out == line
    search.set_user_attr("lost", "r0")
    with pytest.raises(StudyFailedError, match="needs the logits of the best trial 0, which"):
        candidates_of(search, sample)


@pytest.mark.slow
def test_a_study_registers_its_ensemble(store, sample, capsys):
    options = {"name": "night", "fixed": {"folds": "2"}, "ensemble": 4}
    outcome = run_study(sample, trials=3, **options)
    study, found = outcome.study, outcome.ensemble
    trials = [study.trials[number] for number in found.members]
    assert trials[0].number == study.best_trial.number
    assert 1 < len(trials) <= 4
    run = store.get_run(found.run_id)
    assert (run.data.tags["pneumo.kind"], run.info.status) == ("ensemble", "FINISHED")
    assert json.loads(run.data.tags["pneumo.members"]) == found.members
    assert run.data.tags["mlflow.parentRunId"] == study.user_attrs["run_id"]
    own = [trial.user_attrs["config"] for trial in trials]
    common = {name: value for name, value in own[0].items() if all(it[name] == value for it in own)}
    assert run.data.params == common
    assert {"image_size", "folds", "objective"} <= set(common)

    # Each image is predicted by the networks of its own fold alone
    images = sample.decode(32, 0)
    logits = np.zeros(len(images.validation(2).rows))
    networks = [
        ensemble_members(model_files.load_model(trial.user_attrs["model_uri"]).keras_model)
        for trial in trials
    ]
    table = predictions(found.run_id, "val", "fold")
    aucs = []
    for number, fold in enumerate(images.folds(2)):
        rows = fold.val.indices
        logits[rows] = np.mean([predict_logits(it[number], fold.val.images) for it in networks], 0)
        aucs.append(roc_auc_score(fold.val.labels, logits[rows]))
        calibration = fit_calibration(fold.val.labels, logits[rows])
        probabilities = calibration.to_probabilities(logits[rows])
        assert table["probability"].to_numpy()[rows] == pytest.approx(probabilities, abs=1e-4)
    metrics = {name for name in run.data.metrics if name.startswith("val_")}
    assert metrics == {f"val_{name}" for name in METRICS | {"robust_auc", "auc_sd"}}
    assert run.data.metrics["val_auc"] == pytest.approx(np.mean(aucs), abs=1e-6)
    assert found.score == pytest.approx(run.data.metrics["val_auc"])
    assert found.score > found.best_score == pytest.approx(study.best_value)

    # The version is the ensemble, which alone was evaluated on test
    version = store.get_model_version("pneumonia-sample", outcome.version)
    assert version.run_id == found.run_id
    assert version.tags["pneumo.members"] == json.dumps(found.members)
    assert "optuna.trial_number" not in version.tags
    names = ", ".join(map(str, found.weights))
    assert f"Ensemble of trials {names} of study night" in version.description
    model = model_files.load_model(f"models:/pneumonia-sample/{outcome.version}").keras_model
    test = images.split("test").images
    every = np.mean([predict_logits(it, test) for own in networks for it in own], axis=0)
    assert predict_logits(model, test) == pytest.approx(every, abs=1e-5)
    by_uri = models.find_model(f"models:/pneumonia-sample/{outcome.version}")
    assert by_uri.trial.info.run_id == found.run_id
    looks = store.search_runs(["0"], "tags.`pneumo.split` = 'test'")
    assert [run.info.run_id for run in looks] == [study.user_attrs["run_id"]]
    epochs = results.read_epochs(found.run_id)
    assert epochs["network"].unique().tolist() == list(range(2 * len(found.weights)))
    evidence = text(study.user_attrs["run_id"], "test/evidence.html")
    assert f"Ensemble of trials {names} of study night" in evidence
    assert "cross-validation in 2 folds" in evidence
    page = text(study.user_attrs["run_id"], "study/study.html")
    assert f"The registered model is {found.title}." in page
    assert f"{found.gain:+.4f} ({found.gain_low:+.4f} to {found.gain_high:+.4f})" in page

    again = run_study(sample, trials=3, **options)
    assert (again.version, again.ensemble) == (outcome.version, found)
    kinds = [tags(run)["pneumo.kind"] for run in store.search_runs(["0"])]
    assert kinds.count("ensemble") == 1
    assert len(store.search_model_versions("name = 'pneumonia-sample'")) == 1
    assert files(store, found.run_id, "val") == {
        f"val/{name}"
        for name in (
            "predictions.csv",
            "confusion_matrix.json",
            "confusion_matrix.png",
            "logits.npz",
        )
    }
    assert len(children(store, outcome)) == 3
