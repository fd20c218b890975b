"""The gate on a store without some files and runs, and the earlier champions."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest

from pneumo.commands.evaluation import evaluate_model, evaluation_run, threshold_rule
from pneumo.commands.options.arguments import EvaluateOptions
from pneumo.commands.promote import promote_version, roll_back
from pneumo.data.dataset import open_dataset
from pneumo.tracking import models, registry
from pneumo.tracking.models import logged_model_id
from tests.bad import models as bad
from tests.support.commands import run_here
from tests.support.decisions import COMPARED, aliases, last_promotion
from tests.support.handmade import register, run_of, write_images
from tests.support.removal import remove_runs
from tests.support.stores import copy_stores, files_of, store_in
from tests.support.studies import tags, text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]

NAME = "pneumonia"
POOR, GOOD, POOR_AGAIN, GOOD_AGAIN = 1, 2, 3, 4


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A data set that counts as real."""
    folder = write_images(tmp_path_factory.mktemp("images") / "halves")
    return open_dataset(str(folder), required_splits=("train", "test"))


@pytest.fixture(scope="module")
def original(images, tmp_path_factory):
    """Make stores in which version 2 replaced version 1, with two equal candidates."""
    folder = tmp_path_factory.mktemp("original")
    with store_in(folder):
        for number in (POOR, GOOD, POOR_AGAIN, GOOD_AGAIN):
            register(run_of("right" if number % 2 else "left", images), NAME)
            if number in (POOR, GOOD):
                assert promote_version(NAME, "challenger", images, "test", 0.02).is_promoted
    return folder


@pytest.fixture
def client(original, tmp_path):
    """Copy the stores, and return MLflow's client."""
    with store_in(tmp_path) as client:
        copy_stores(original, tmp_path)
        yield client


def version(client, number):
    return client.get_model_version(NAME, str(number))


def remove_files(client, number):
    shutil.rmtree(files(client, number))


def change_files(client, number):
    bad.other_threshold(files(client, number))


def remove_trial(client, number):
    remove_runs(version(client, number).run_id)


def files(client, number) -> Path:
    return files_of(Path.cwd(), version(client, number).source)


def evaluation(client, number) -> str:
    return version(client, number).tags["pneumo.evaluation_run"]


def evaluations(client) -> int:
    return len(client.search_runs(["0"], "tags.`pneumo.kind` = 'evaluate'"))


GONE = {
    "files missing": (remove_files, "digest {digest}: they are missing. Do not use this version."),
    "files changed": (change_files, ". Do not use this version."),
    "run removed": (remove_trial, "has been removed. Pass another model, or train a new one."),
}


def test_equal_and_worse_challengers_and_a_rollback(client, images):
    call = ["promote", "--model_name", NAME, "--data", str(images.base)]
    assert aliases(client, NAME) == {"challenger": 4, "champion": 2, "previous": 1}
    code, output, _ = run_here(*call, "--candidate", str(POOR_AGAIN))
    assert code == 3
    assert f"{NAME} version 3: rejected: non-inferiority of its AUC " in output
    rejected = last_promotion(client, NAME)
    assert rejected.info.status == "FINISHED"
    reasons = json.loads(text(rejected.info.run_id, "promotion.json"))["reasons"]
    assert all(f"to {NAME} version 2 is not shown" in text for text in reasons)
    assert aliases(client, NAME) == {"challenger": 4, "champion": 2, "previous": 1}
    assert run_here(*call)[0] == 0  # the challenger, an equal one
    assert aliases(client, NAME) == {"challenger": 4, "champion": 4, "previous": 2}
    code, output, _ = run_here(*call, "--rollback", "TRUE")
    assert code == 0
    assert f"{NAME} version 4: replaced by version 2 in a rollback" in output
    rollback = last_promotion(client, NAME)
    assert tags(rollback)["pneumo.rollback"] == tags(rollback)["pneumo.promoted"] == "true"
    assert aliases(client, NAME) == {"challenger": 4, "champion": 2, "previous": 4}
    roll_back(NAME)
    assert aliases(client, NAME) == {"challenger": 4, "champion": 4, "previous": 2}
    found = {number: version(client, number).tags for number in range(1, 5)}
    # each was held against test once, and that evaluation was taken for every decision
    assert [of_version["pneumo.test_evaluations"] for of_version in found.values()] == ["1"] * 4
    assert {number: of_version["pneumo.promotion"] for number, of_version in found.items()} == {
        1: "replaced by version 2",
        2: "replaced by version 4 in a rollback",
        3: f"rejected: {'; '.join(reasons)}",
        4: "restored as champion in place of version 2",
    }
    # which versions have been champion, and the threshold of those that were promoted
    assert {number for number in found if "pneumo.was_champion" in found[number]} == {1, 2, 4}
    thresholds = {number: found[number].get("pneumo.threshold") for number in found}
    assert thresholds == {1: "0.3", 2: "0.3", 3: None, 4: "0.3"}
    client.delete_registered_model_alias(NAME, "champion")  # by hand: the way back still works
    roll_back(NAME)
    assert aliases(client, NAME)["champion"] == 2
    assert version(client, GOOD).tags["pneumo.promotion"] == "restored as champion"


def test_the_champion_itself_is_refused(client, images):
    decision = promote_version(NAME, "champion", images, "test", 0.02)
    assert decision.reasons == ["version 2 is already the champion"]
    sentence = version(client, GOOD).tags["pneumo.promotion"]
    assert sentence == "stays champion; it was also the candidate"
    assert aliases(client, NAME) == {"challenger": 4, "champion": 2, "previous": 1}


def test_training_images_are_not_evidence(client, images):
    client.delete_registered_model_alias(NAME, "champion")  # which would be evaluated as well
    for split in ("val", "train"):
        *_, reason = promote_version(NAME, "challenger", images, split, 0.02).reasons
        count = (images.rows["split"] == split).sum()
        assert reason.startswith(f"{count} of the {count} images are training or validation images")
    assert "pneumo.test_evaluations" not in version(client, GOOD_AGAIN).tags
    assert aliases(client, NAME) == {"challenger": 4, "previous": 1}


@pytest.mark.parametrize("what", GONE)
def test_a_champion_is_compared_by_its_stored_evaluation(client, images, what):
    spoil, _ = GONE[what]
    stored = client.get_run(evaluation(client, GOOD)).data.metrics
    spoil(client, GOOD)
    before = evaluations(client)
    decision = promote_version(NAME, str(GOOD_AGAIN), images, "test", 0.02)
    assert decision.is_promoted
    assert decision.champion_vacant == ""
    assert evaluations(client) == before + 1  # of the candidate
    for name in ("auc", "sensitivity", "threshold", "ece"):
        assert decision.metrics[f"champion_{name}"] == stored[f"test_{name}"]
    assert decision.metrics["auc_difference_low"] == 0
    made = last_promotion(client, NAME)
    compared = [logged_model_id(version(client, number)) for number in (GOOD_AGAIN, GOOD)]
    given = client.get_run(made.info.run_id).inputs.model_inputs
    assert sorted(model.model_id for model in given) == sorted(compared)
    assert "pneumo.champion_vacant" not in made.data.tags
    assert "champion_vacant" not in json.loads(text(made.info.run_id, "promotion.json"))
    assert aliases(client, NAME) == {"challenger": 4, "champion": 4, "previous": 2}
    assert version(client, GOOD).tags["pneumo.promotion"] == "replaced by version 4"


@pytest.mark.parametrize("what", GONE)
def test_a_champion_without_evidence_counts_as_vacant(client, images, what):
    spoil, reason = GONE[what]
    digest = version(client, GOOD).tags["pneumo.model_digest"]
    remove_runs(evaluation(client, GOOD))
    spoil(client, GOOD)
    call = ["promote", "--data", str(images.base), "--candidate", str(GOOD_AGAIN)]
    code, output, errors = run_here(*call)
    assert (code, errors) == (0, "")
    made = last_promotion(client, NAME)
    why = made.data.tags["pneumo.champion_vacant"]
    assert why.endswith(reason.format(digest=digest))
    assert f"note: no comparison with @champion: {why}" in output
    assert tags(made)["pneumo.champion"] == "2"
    # the best champion that is left is compared all the same
    champion = {f"best_champion_{name}" for name in registry.DESCRIBED_METRICS}
    assert champion | {f"best_{name}" for name in COMPARED} <= set(made.data.metrics)
    assert not set(made.data.metrics) & (COMPARED | {"champion_auc"})
    stored = json.loads(text(made.info.run_id, "promotion.json"))
    assert stored == {
        "promoted": True,
        "reasons": [],
        "champion_vacant": why,
        **made.data.metrics,
    }
    assert aliases(client, NAME) == {"challenger": 4, "champion": 4, "previous": 2}
    decision = version(client, GOOD_AGAIN).tags["pneumo.promotion"]
    assert decision == "promoted in place of version 2, which could not be compared"


def test_a_synthetic_model_does_not_replace_a_real_champion(client, images):
    register(run_of("left", images, **{"pneumo.synthetic": "true"}), NAME)
    [reason] = promote_version(NAME, "challenger", images, "test", 0.02).reasons
    assert "version 5 was trained on synthetic images, " in reason
    assert aliases(client, NAME) == {"challenger": 5, "champion": 2, "previous": 1}
    learned_nothing = "this model has learned nothing about patients"
    assert learned_nothing in version(client, 5).description
    # nor one that counts as vacant
    for number in (POOR, GOOD):
        remove_runs(evaluation(client, number))
    remove_files(client, GOOD)
    decision = promote_version(NAME, "challenger", images, "test", 0.02)
    assert "they are missing" in decision.champion_vacant
    assert decision.reasons == [
        "pneumonia version 5 was trained on synthetic images, but pneumonia version 2 on real "
        "images"
    ]
    assert aliases(client, NAME)["champion"] == GOOD


def test_an_evaluation_of_other_images_is_not_compared(client, images):
    run_id = evaluation(client, GOOD)
    table = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    table = table / "test" / "predictions.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:-1]))
    decision = promote_version(NAME, str(GOOD_AGAIN), images, "test", 0.02)
    assert decision.is_promoted
    assert decision.champion_vacant == (
        "the evaluations of pneumonia version 2 and pneumonia version 4 differ in their images, "
        "patients or labels"
    )
    assert "best_auc_difference" in decision.metrics
    # the candidate's own is made again where its table is missing
    run_id = evaluation(client, GOOD_AGAIN)
    shutil.rmtree(Path(client.get_run(run_id).info.artifact_uri) / "test")
    roll_back(NAME)
    promote_version(NAME, str(GOOD_AGAIN), images, "test", 0.02)
    assert evaluation(client, GOOD_AGAIN) != run_id


def test_a_champion_keeps_its_own_threshold(client, images):
    own = client.get_run(evaluation(client, GOOD)).data.metrics["test_threshold"]
    stored = models.find_model(f"models:/{NAME}/{GOOD}")
    rule = threshold_rule(EvaluateOptions(data=str(images.base), sensitivity=1.0))
    with evaluation_run(stored, images, "test") as (run_id, decoded):
        evaluate_model(stored, decoded, "test", rule)
    other = client.get_run(run_id)
    assert other.data.metrics["test_threshold"] != own
    assert [given.model_id for given in other.inputs.model_inputs] == [stored.model_id]
    shown = mlflow.get_logged_model(stored.model_id).metrics
    assert {metric.value for metric in shown if metric.key == "test_threshold"} == {own}
    for spoil in (lambda: None, lambda: remove_trial(client, GOOD)):
        spoil()
        decision = promote_version(NAME, str(POOR_AGAIN), images, "test", 0.02)
        assert decision.metrics["champion_threshold"] == own
    # of a version that was promoted before the threshold was noted
    client.delete_model_version_tag(NAME, str(POOR), "pneumo.threshold")
    assert registry.stored_threshold(version(client, POOR)) == own
    remove_trial(client, POOR)
    assert registry.stored_threshold(version(client, POOR)) is None


def test_small_steps_down_from_the_best_champion_are_refused(client, images):
    assert promote_version(NAME, str(POOR_AGAIN), images, "test", 1, 1).is_promoted
    assert promote_version(NAME, str(POOR), images, "test", 1, 1).is_promoted
    assert aliases(client, NAME) == {"challenger": 4, "champion": 1, "previous": 3}
    # version 2 has no alias any more; its tag says that it was champion
    assert set(registry.champions(NAME)) == {1, 2, 3}
    decision = promote_version(NAME, str(POOR_AGAIN), images, "test", 0.02)
    assert decision.metrics["auc_difference"] == 0
    best = client.get_run(evaluation(client, GOOD)).data.metrics
    assert decision.metrics["best_champion_auc"] == best["test_auc"]
    assert decision.reasons
    named = "to pneumonia version 2 (the best champion so far) is not shown"
    assert all(named in reason for reason in decision.reasons)
    made = last_promotion(client, NAME)
    assert made.data.metrics == decision.metrics
    assert tags(made)["pneumo.reason"] == "; ".join(decision.reasons)
    client.delete_run(evaluation(client, GOOD))
    decision = promote_version(NAME, str(POOR_AGAIN), images, "test", 0.02)
    assert decision.is_promoted
    assert not [name for name in decision.metrics if name.startswith("best_")]


def test_a_deleted_version_is_no_longer_the_best(client, images):
    assert promote_version(NAME, str(POOR_AGAIN), images, "test", 1, 1).is_promoted
    client.delete_model_version(NAME, str(GOOD))
    assert set(registry.champions(NAME)) == {1, 3}
    assert promote_version(NAME, str(POOR), images, "test", 0.02).is_promoted


def test_earlier_champions_are_tagged_when_they_are_replaced(client):
    for number in (POOR, GOOD):
        client.delete_model_version_tag(NAME, str(number), "pneumo.was_champion")
    assert set(registry.champions(NAME)) == {1, 2}  # by their aliases
    assert registry.set_champion(NAME, GOOD_AGAIN, POOR) == GOOD
    assert set(registry.champions(NAME)) == {1, 2}
    assert registry.set_champion(NAME, GOOD_AGAIN, GOOD) == GOOD
    assert set(registry.champions(NAME)) == {1, 2, 4}
    found = {
        number: version(client, number).tags.get("pneumo.was_champion") for number in range(1, 5)
    }
    assert found == {1: "true", 2: "true", 3: None, 4: "true"}
    roll_back(NAME)
    assert set(registry.champions(NAME)) == {1, 2, 4}


def links(client, number) -> list[str]:
    last = version(client, number).description.rpartition("\n\n")[2]
    return [link.partition("]")[0].removeprefix("[") for link in last.split(" · ")]


def test_a_description_has_no_links_to_runs_that_were_removed(client):
    every = ["training run", "evaluation report", "last decision"]
    assert links(client, GOOD) == every
    runs = [
        version(client, GOOD).run_id,
        evaluation(client, GOOD),
        version(client, GOOD).tags["pneumo.promotion_run"],
    ]
    for run_id, link in zip(runs, every, strict=True):
        client.delete_run(run_id)
        registry.update_description(NAME, GOOD)
        assert links(client, GOOD) == [text for text in every if text != link]
        client.restore_run(run_id)
    remove_runs(*runs[1:])
    registry.update_description(NAME, GOOD)
    assert links(client, GOOD) == every[:1]
    remove_runs(runs[0])
    registry.update_description(NAME, GOOD)
    assert not set(every) & set(links(client, GOOD))


def test_a_candidate_whose_run_was_removed(client, images):
    remove_trial(client, GOOD_AGAIN)
    call = ["promote", "--data", str(images.base)]
    code, _, errors = run_here(*call)
    assert code == 2
    [line] = errors.splitlines()
    assert line.startswith(f"pneumo: the run that trained a model must be in {mlflow_store()}: run")
    assert "'models:/pneumonia/4' has been removed" in line
    assert aliases(client, NAME)["champion"] == GOOD


def mlflow_store() -> str:
    return mlflow.get_tracking_uri()


def test_a_rollback_needs_only_the_files(client, images):
    runs = [run.info.run_id for run in client.search_runs(["0"])]
    remove_runs(*runs)
    code, output, errors = run_here("promote", "--rollback", "true")
    assert (code, errors) == (0, "")
    assert aliases(client, NAME) == {"challenger": 4, "champion": 1, "previous": 2}
    remove_files(client, GOOD)
    code, _, errors = run_here("promote", "--rollback", "true")
    assert code == 2
    [line] = errors.splitlines()
    assert line.endswith("they are missing. Do not use this version.")
    assert aliases(client, NAME)["champion"] == POOR
