"""The registry on a real server: versions, decisions about them, races."""

import json
import shutil
from pathlib import Path
from threading import Event, Thread
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
from tests.support.studies import METRICS, predictions, tags, text, until, without_pictures

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
    halves = {"good": "left", "poor": "right", "doomed": "left"}
    return {kind: run_of(half, images[0]) for kind, half in halves.items()}


@pytest.fixture
def name(request) -> str:
    """Return a registered model's name that only this test uses."""
    return request.node.originalname


@pytest.fixture(scope="module")
def decided(client, images, runs) -> SimpleNamespace:
    """Promote a first version, reject the next one, and return what there was after each step.

    The command makes the first decision.
    """
    name = "decided"
    call = ["promote", "--model_name", name, "--data", str(images[1]), "--margin", "0"]
    with without_pictures():
        stored = register(runs["good"], name)
        registered = client.get_model_version(name, "1")
        files = mlflow.artifacts.download_artifacts(f"models:/{stored.model_id}")
        printed = run_here(*call)
        promoted = client.get_model_version(name, "1")
        evaluation = evaluations.find_evaluation(stored.model_id, images[0].digest, "test")
        register(runs["poor"], name)
        decision = promote_version(name, "2", images[0], "test", 0.02)
    return SimpleNamespace(
        name=name,
        model_id=stored.model_id,
        digest=model_files.model_digest(Path(files)),
        registered=registered,
        printed=printed,
        promoted=promoted,
        evaluation=evaluation,
        decision=decision,
        run=last_promotion(client, name),
        versions=[client.get_model_version(name, number) for number in ("1", "2")],
    )


def test_the_command_promotes_the_first_version(decided):
    code, output, errors = decided.printed
    assert (code, errors) == (0, "")
    assert f"{decided.name} version 1: promoted as the first champion" in output


def test_what_a_decision_leaves(client, images, decided):
    made, decision = decided.run, decided.decision
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
        "pneumo.model": decided.name,
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
    for found in decided.versions:
        assert found.tags["pneumo.promotion_run"] == made.info.run_id
        assert f"(#/experiments/0/runs/{made.info.run_id}{TRAINING})" in found.description


def test_the_description_of_a_version(client, images, runs, decided):
    trial = client.get_run(runs["good"][0])
    version = decided.registered
    assert version.run_id == trial.info.run_id
    commit = trial.data.tags.get("mlflow.source.git.commit")
    shown = ("auc", "sensitivity", "specificity", "accuracy")
    assert version.tags == {
        "pneumo.experiment": "handmade",
        "pneumo.data": "halves",
        "pneumo.data_digest": images[0].digest,
        "pneumo.synthetic": "false",
        **{f"val_{name}": str(trial.data.metrics[f"val_{name}"]) for name in shown},
        "pneumo.model_digest": decided.digest,
        **({"pneumo.git_commit": commit} if commit else {}),
    }
    values = [f"{trial.data.metrics[f'val_{metric}']:.3f}" for metric in shown]
    sentence = "On validation: AUC {}, sensitivity {}, specificity {}, accuracy {}.".format(*values)
    assert sentence in version.description
    assert f"(#/experiments/0/runs/{trial.info.run_id}{TRAINING})" in version.description
    assert "On test" not in version.description
    about = client.get_registered_model(decided.name).description
    assert "`@champion` is the version to use" in about
    version = decided.promoted
    evaluation = client.get_run(version.tags["pneumo.evaluation_run"])
    for metric in shown:
        assert float(version.tags[f"test_{metric}"]) == evaluation.data.metrics[f"test_{metric}"]
    page = f"#/experiments/0/runs/{evaluation.info.run_id}/artifacts/test/evidence.html{TRAINING}"
    assert f"[evaluation report]({page})" in version.description
    assert "Last decision: promoted as the first champion." in version.description


def test_an_evaluation_is_found_by_model_data_and_split(client, images, decided):
    found, digest = decided.evaluation, images[0].digest
    assert client.get_run(found).data.tags["pneumo.model_id"] == decided.model_id
    assert evaluations.find_evaluation("m-other", digest, "test") is None
    assert evaluations.find_evaluation(decided.model_id, "0" * 16, "test") is None
    assert evaluations.find_evaluation(decided.model_id, digest, "val") is None


def test_a_champion_without_files_and_evaluation(client, images, decided):
    name = decided.name
    client.delete_run(decided.evaluation)
    [folder] = Path.cwd().rglob(f"{decided.model_id}/artifacts")
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
    decisions = f"tags.`pneumo.kind` = 'promote' and tags.`pneumo.model` = '{name}'"
    call = ["promote", "--model_name", name, "--data", str(images[1]), "--candidate"]
    is_held = Event()

    def hold() -> None:  # until both have weighed against the same champion
        with cache.lock(f"promote {name}"):
            is_held.set()
            until(lambda: len(client.search_runs(["0"], decisions)) == 2)

    holder = Thread(target=hold)
    holder.start()
    is_held.wait()
    other = start(*call, "1")
    mine = run_here(*call, "2")
    holder.join()
    output, errors = other.communicate(timeout=120)
    ended = [(other.returncode, output, errors), mine]
    assert sorted(code for code, *_ in ended) == [0, 3], ended
    winner, loser = sorted((1, 2), key=lambda number: ended[number - 1][0])
    assert aliases(client, name)["champion"] == winner
    assert f"version {winner} became champion in the meantime" in ended[loser - 1][1]
    found = client.search_runs(["0"], decisions)
    assert sorted(tags(run)["pneumo.promoted"] for run in found) == ["false", "true"]
    assert {run.info.status for run in found} == {"FINISHED"}
    sentence = client.get_model_version(name, str(winner)).tags["pneumo.promotion"]
    assert sentence in (
        "promoted as the first champion",  # whichever wrote last
        f"stays champion; version {loser} was rejected",
    )


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
