"""The registry on a file and on a real server: versions, promotion, rollback, races."""

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from pneumo.commands.promote import promote_version, roll_back
from pneumo.data.dataset import open_dataset
from pneumo.runtime import cache
from pneumo.runtime.errors import UserError
from pneumo.tracking import evaluations, model_files, models, registry
from pneumo.tracking.runs import command_run, provenance_tags
from tests.support.commands import run_here, start
from tests.support.decisions import COMPARED, aliases, last_promotion
from tests.support.handmade import register, run_of, write_images
from tests.support.services import mlflow_server, postgresql
from tests.support.stores import store_in
from tests.support.studies import METRICS, predictions, tags, text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]

TRAINING = "?workflowType=machine_learning"  # else MLflow shows what it has for language models


@pytest.fixture(scope="module")
def client(tmp_path_factory, cache):
    """Return MLflow's client of a server with PostgreSQL and its artifact proxy."""
    folder = tmp_path_factory.mktemp("server")
    with (
        postgresql() as database,
        mlflow_server(database.address, folder / "artifacts") as server,
        store_in(folder, server.address) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Make a data set that counts as real; return it and its folder."""
    folder = write_images(tmp_path_factory.mktemp("images") / "halves")
    return open_dataset(str(folder), required_splits=("train", "test")), folder


@pytest.fixture(scope="module")
def runs(client, images):
    """Return the run of each kind of model in this store."""
    dataset = images[0]
    return {
        "good": run_of("left", dataset),
        "poor": run_of("right", dataset),
        "doomed": run_of("left", dataset),
        "synthetic": run_of("left", dataset, **{"pneumo.synthetic": "true"}),
    }


@pytest.fixture
def name(request) -> str:
    """Return a registered model's name that only this test uses."""
    return request.node.originalname


def promoted(name, images, candidate="challenger") -> bool:
    return promote_version(name, candidate, images[0], "test", 0.02).is_promoted


def test_better_equal_and_worse_challengers_and_a_rollback(client, images, runs, name):
    register(runs["poor"], name)
    assert promoted(name, images)  # the first champion needs the floors alone
    assert aliases(client, name) == {"challenger": 1, "champion": 1}
    register(runs["good"], name)
    assert promoted(name, images)
    register(runs["poor"], name)
    decision = promote_version(name, "challenger", images[0], "test", 0.02)
    assert all(f"to {name} version 2 is not shown" in text for text in decision.reasons)
    assert aliases(client, name) == {"challenger": 3, "champion": 2, "previous": 1}
    register(runs["good"], name)
    assert promoted(name, images)  # an equal one
    assert aliases(client, name) == {"challenger": 4, "champion": 4, "previous": 2}
    roll_back(name)
    assert aliases(client, name) == {"challenger": 4, "champion": 2, "previous": 4}
    roll_back(name)
    assert aliases(client, name) == {"challenger": 4, "champion": 4, "previous": 2}
    versions = {
        int(version.version): version.tags
        for version in client.search_model_versions(f"name='{name}'")
    }
    # each was held against test once, and that evaluation was taken for every decision
    assert [versions[number]["pneumo.test_evaluations"] for number in (1, 2, 3, 4)] == ["1"] * 4
    assert versions[1]["pneumo.promotion"] == "replaced by version 2"
    assert versions[2]["pneumo.promotion"] == "replaced by version 4 in a rollback"
    assert versions[3]["pneumo.promotion"] == f"rejected: {'; '.join(decision.reasons)}"
    # which versions have been champion, and the threshold of those that were promoted
    assert {version for version in versions if "pneumo.was_champion" in versions[version]} == {
        1,
        2,
        4,
    }
    assert {version: versions[version].get("pneumo.threshold") for version in versions} == {
        **dict.fromkeys((1, 2, 4), "0.3"),
        3: None,
    }
    assert versions[4]["pneumo.promotion"] == "restored as champion in place of version 2"
    client.delete_registered_model_alias(name, "champion")  # by hand: the way back still works
    roll_back(name)
    assert aliases(client, name)["champion"] == 2
    assert client.get_model_version(name, "2").tags["pneumo.promotion"] == "restored as champion"


def test_what_a_decision_leaves(client, images, runs, name):
    register(runs["good"], name)
    promote_version(name, "challenger", images[0], "test", 0.02)
    register(runs["poor"], name)
    decision = promote_version(name, "2", images[0], "test", 0.02)
    made = last_promotion(client, name)
    assert made.info.status == "FINISHED"
    assert made.data.metrics == decision.metrics
    both = {f"{who}_{metric}" for who in ("champion", "candidate") for metric in METRICS}
    assert set(decision.metrics) == both | {"candidate_adjusted_ece"} | COMPARED
    dataset = images[0]
    assert decision.reasons
    assert tags(made) == {
        "pneumo.kind": "promote",
        "pneumo.data": "halves",
        "pneumo.data_digest": dataset.digest,
        "pneumo.synthetic": "false",
        "pneumo.split": "test",
        "pneumo.model": name,
        "pneumo.candidate": "2",
        "pneumo.champion": "1",
        "pneumo.promoted": "false",
        "pneumo.reason": "; ".join(decision.reasons),
    }
    stored = json.loads(text(made.info.run_id, "promotion.json"))
    assert stored == {"promoted": False, "reasons": decision.reasons, **decision.metrics}
    # the evaluation that was missing is a child, made as `evaluate` makes it
    below = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{made.info.run_id}'")
    assert [tags(run)["pneumo.kind"] for run in below] == ["evaluate"]
    table = predictions(below[0].info.run_id, "test")
    assert len(table) == 200
    for version in ("1", "2"):
        found = client.get_model_version(name, version)
        assert found.tags["pneumo.promotion_run"] == made.info.run_id
        assert f"(#/experiments/0/runs/{made.info.run_id}{TRAINING})" in found.description


def test_the_description_of_a_version(client, images, runs, name):
    stored = register(runs["good"], name)
    trial = client.get_run(runs["good"][0])
    version = client.get_model_version(name, "1")
    assert version.run_id == trial.info.run_id
    commit = trial.data.tags.get("mlflow.source.git.commit")
    shown = ("auc", "sensitivity", "specificity", "accuracy")
    assert version.tags == {
        "pneumo.experiment": "handmade",
        "pneumo.data": "halves",
        "pneumo.data_digest": images[0].digest,
        "pneumo.synthetic": "false",
        **{f"val_{name}": str(trial.data.metrics[f"val_{name}"]) for name in shown},
        "pneumo.model_digest": model_files.model_digest(
            Path(mlflow.artifacts.download_artifacts(f"models:/{stored.model_id}"))
        ),
        **({"pneumo.git_commit": commit} if commit else {}),
    }
    values = [f"{trial.data.metrics[f'val_{metric}']:.3f}" for metric in shown]
    sentence = "On validation: AUC {}, sensitivity {}, specificity {}, accuracy {}.".format(*values)
    assert sentence in version.description
    assert f"(#/experiments/0/runs/{trial.info.run_id}{TRAINING})" in version.description
    assert "On test" not in version.description
    assert "`@champion` is the version to use" in client.get_registered_model(name).description
    promote_version(name, "1", images[0], "test", 0.02)
    version = client.get_model_version(name, "1")
    evaluation = client.get_run(version.tags["pneumo.evaluation_run"])
    for metric in shown:
        assert float(version.tags[f"test_{metric}"]) == evaluation.data.metrics[f"test_{metric}"]
    page = f"#/experiments/0/runs/{evaluation.info.run_id}/artifacts/test/evidence.html{TRAINING}"
    assert f"[evaluation report]({page})" in version.description
    assert "Last decision: promoted as the first champion." in version.description


def test_training_images_are_not_evidence(client, images, runs, name):
    register(runs["good"], name)
    for split in ("val", "train"):
        *_, reason = promote_version(name, "challenger", images[0], split, 0.02).reasons
        count = (images[0].rows["split"] == split).sum()
        assert reason.startswith(f"{count} of the {count} images are training or validation images")
    assert "pneumo.test_evaluations" not in client.get_model_version(name, "1").tags
    assert aliases(client, name) == {"challenger": 1}


def test_the_champion_itself_and_a_demo_are_refused(client, images, runs, name):
    register(runs["poor"], name)
    assert promoted(name, images)
    decision = promote_version(name, "champion", images[0], "test", 0.02)
    assert decision.reasons == ["version 1 is already the champion"]
    sentence = client.get_model_version(name, "1").tags["pneumo.promotion"]
    assert sentence == "stays champion; it was also the candidate"
    register(runs["synthetic"], name)
    [reason] = promote_version(name, "challenger", images[0], "test", 0.02).reasons
    assert "version 2 was trained on synthetic images, " in reason
    assert aliases(client, name) == {"challenger": 2, "champion": 1}
    assert (
        "this model has learned nothing about patients"
        in client.get_model_version(name, "2").description
    )


def test_files_that_were_changed_are_refused_unopened(client, images, runs, name, request):
    stored = register(runs["good"], name)
    before = client.get_model_version(name, "1").tags["pneumo.model_digest"]
    [folder] = Path.cwd().rglob(f"{stored.model_id}/artifacts")
    [code] = folder.glob("pyfunc.py")
    code.write_text("raise SystemExit('it ran')\n" + code.read_text())
    [reason] = promote_version(name, "challenger", images[0], "test", 0.02).reasons
    assert reason.startswith(
        f"the files of {name} version 1 must be those that were registered, with digest {before}: "
    )
    assert aliases(client, name) == {"challenger": 1}
    with pytest.raises(models.ModelTamperedError, match="Do not use this version"):
        models.find_model(f"models:/{name}@challenger")


def test_a_champion_without_files_and_evaluation(client, images, runs, name):
    stored = register(runs["good"], name)
    assert promoted(name, images)
    register(runs["poor"], name)
    client.delete_run(client.get_model_version(name, "1").tags["pneumo.evaluation_run"])
    [folder] = Path.cwd().rglob(f"{stored.model_id}/artifacts")
    shutil.rmtree(folder)
    decision = promote_version(name, "challenger", images[0], "test", 0.02)
    assert decision.is_promoted
    assert "they are missing. Do not use this version" in decision.champion_vacant
    assert last_promotion(client, name).data.tags["pneumo.champion_vacant"]
    assert aliases(client, name) == {"challenger": 2, "champion": 2, "previous": 1}
    with pytest.raises(
        models.ModelTamperedError, match="they are missing. Do not use this version"
    ):
        roll_back(name)


def test_user_errors(client, images, runs, name):
    with pytest.raises(UserError, match="must be a registered model in .*got 'nobody'"):
        promote_version("nobody", "challenger", images[0], "test", 0.02)
    register(runs["good"], name)
    with pytest.raises(UserError, match="got 'second'. The latest model of tune or train"):
        promote_version(name, "second", images[0], "test", 0.02)
    with pytest.raises(UserError, match="must be one of 1: got 7"):
        promote_version(name, "7", images[0], "test", 0.02)
    with pytest.raises(UserError, match="--rollback requires a previous champion"):
        roll_back(name)
    assert aliases(client, name) == {"challenger": 1}
    assert not client.search_runs(["0"], f"tags.`pneumo.model` = '{name}'")


def test_one_of_two_simultaneous_promotions_succeeds(client, images, runs, name):
    for _ in range(2):
        register(runs["good"], name)
    call = ["promote", "--model_name", name, "--data", str(images[1]), "--candidate"]
    with cache.lock(f"promote {name}"):  # until both have weighed against the same champion
        both = [start(*call, version) for version in ("1", "2")]
        deadline = time.monotonic() + 120
        while True:
            found = client.search_runs(
                ["0"], f"tags.`pneumo.kind` = 'promote' and tags.`pneumo.model` = '{name}'"
            )
            if len(found) == 2:
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
    ended = [(process, *process.communicate(timeout=120)) for process in both]
    assert sorted(process.returncode for process, *_ in ended) == [0, 3], ended
    winner, loser = sorted((1, 2), key=lambda number: ended[number - 1][0].returncode)
    assert aliases(client, name)["champion"] == winner
    assert f"version {winner} became champion in the meantime" in ended[loser - 1][1]
    found = [client.get_run(run.info.run_id) for run in found]
    assert sorted(tags(run)["pneumo.promoted"] for run in found) == ["false", "true"]
    assert {run.info.status for run in found} == {"FINISHED"}
    sentence = client.get_model_version(name, str(winner)).tags["pneumo.promotion"]
    assert sentence in (
        "promoted as the first champion",  # whichever wrote last
        f"stays champion; version {loser} was rejected",
    )


def test_the_command(client, images, runs, name):
    register(runs["poor"], name)
    call = ["promote", "--model_name", name]
    code, output, errors = run_here(*call, "--data", str(images[1]), "--margin", "0")
    assert (code, errors) == (0, "")
    assert f"{name} version 1: promoted as the first champion" in output
    register(runs["good"], name)
    assert run_here(*call, "--data", str(images[1]))[0] == 0
    code, output, _ = run_here(*call, "--data", str(images[1]), "--candidate", "1")
    assert code == 3
    assert f"{name} version 1: rejected: non-inferiority of its AUC " in output
    assert last_promotion(client, name).info.status == "FINISHED"
    code, output, _ = run_here(*call, "--rollback", "TRUE")
    assert code == 0
    assert f"{name} version 2: replaced by version 1 in a rollback" in output
    assert aliases(client, name) == {"challenger": 2, "champion": 1, "previous": 2}
    rollback = last_promotion(client, name)
    assert tags(rollback)["pneumo.rollback"] == tags(rollback)["pneumo.promoted"] == "true"


def test_an_evaluation_is_found_by_model_data_and_split(client, images, runs, name):
    stored = register(runs["good"], name)
    promote_version(name, "1", images[0], "test", 0.02)
    found = evaluations.find_evaluation(stored.model_id, images[0].digest, "test")
    assert client.get_run(found).data.tags["pneumo.model_id"] == stored.model_id
    assert evaluations.find_evaluation("m-other", images[0].digest, "test") is None
    assert evaluations.find_evaluation(stored.model_id, "0" * 16, "test") is None
    assert evaluations.find_evaluation(stored.model_id, images[0].digest, "val") is None


def test_an_incomplete_evaluation_does_not_count(client, images):
    def evaluate(model_id: str, fails: bool) -> None:
        with evaluations.tag_evaluation("a model", model_id, "test", is_external=False):
            if fails:
                raise RuntimeError

    def found(model_id: str) -> str | None:
        return evaluations.find_evaluation(model_id, images[0].digest, "test")

    with command_run("study", "handmade", provenance_tags("handmade", images[0])) as run_id:
        evaluate("m-first", fails=False)
        assert found("m-first") == run_id
        with pytest.raises(RuntimeError):
            evaluate("m-second", fails=True)
        # whose predictions are there now, nobody knows
        assert found("m-first") is None
        assert found("m-second") is None


def test_a_version_names_its_evaluation_only_when_it_has_all_metrics(monkeypatch):
    stored = []
    monkeypatch.setattr(registry, "set_version_tags", lambda *given: stored.append(given))
    monkeypatch.setattr(registry, "update_description", lambda *_: None)
    metrics = {"auc": 0.9, "sensitivity": 0.8, "specificity": 0.7, "accuracy": 0.6}
    registry.record_test_metrics(SimpleNamespace(name="m", version=2), "r", metrics)
    [(name, version, written)] = stored
    assert (name, version) == ("m", 2)
    expected = {f"test_{metric}": str(value) for metric, value in metrics.items()}
    assert list(written.items()) == [*expected.items(), ("pneumo.evaluation_run", "r")]


def test_a_model_is_deleted_with_its_files(client, images, runs):
    run_id, uri = runs["doomed"]
    model_id = uri.removeprefix("models:/")
    assert list(Path.cwd().rglob(f"{model_id}/artifacts/MLmodel"))
    assert model_files.is_stored(uri)
    for _ in range(2):  # once more is no mistake
        model_files.delete_model(uri)
    assert not model_files.is_stored(uri)
    assert not [path for path in Path.cwd().rglob(f"{model_id}/**/*") if path.is_file()]
    with pytest.raises(MlflowException, match="not found"):
        client.get_logged_model(model_id)
    assert client.get_run(run_id).info.status == "FINISHED"
