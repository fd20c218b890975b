"""Images of a split that made a model, and the number of looks at test images."""

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from pneumo.commands.evaluation import evaluate_model, evaluation_run
from pneumo.commands.promote import promote_version
from pneumo.data.dataset import open_dataset
from pneumo.evaluation.dataset.overlap import find_overlap
from pneumo.tracking import evaluations, models, registry, results
from tests.support.handmade import register, run_of, write_images
from tests.support.stores import copy_stores, store_in
from tests.support.studies import tags, text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]

NAME = "halves"
ALL = 200  # test images of the handmade data set, and as many patients


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Make a data set that counts as real."""
    folder = write_images(tmp_path_factory.mktemp("images") / "halves")
    return open_dataset(str(folder), required_splits=("train", "test"))


@pytest.fixture(scope="module")
def original(dataset, tmp_path_factory):
    """Make stores with a registered model of that data set."""
    folder = tmp_path_factory.mktemp("original")
    with store_in(folder):
        register(run_of("left", dataset), NAME)
    return folder


@pytest.fixture
def stored(original, store, tmp_path):
    """Copy these stores, and load the model."""
    copy_stores(original, tmp_path)
    return models.find_model(f"models:/{NAME}/1")


def evaluated(stored, dataset, split="test"):
    """Evaluate; return the run, its `metrics.json` and its findings."""
    with evaluation_run(stored, dataset, split) as (run_id, images):
        found = evaluate_model(stored, images, split)
    numbers = json.loads(text(run_id, f"{split}/metrics.json"))
    return mlflow.get_run(run_id), numbers, " ".join(found.findings)


def as_test(dataset, split, folder, *, name="{}", change=False, every=1):
    """Make a data set with every n-th image of a split in `test/`; `change` replaces files."""
    rows = dataset.rows[dataset.rows["split"] == split]
    for _, of_class in rows.groupby("label"):
        for path in of_class["path"][::every]:
            _, class_name, file = path.split("/")
            target = folder / "test" / class_name / name.format(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(dataset.base / path, target)
            if change:
                image = Image.open(target)
                image.putpixel((0, 0), image.getpixel((0, 0)) ^ 1)
                image.save(target)
    return open_dataset(str(folder), required_splits=("test",))


def reasons(dataset, split="test") -> list[str]:
    return promote_version(NAME, "challenger", dataset, split, 0.02).reasons


def looks(numbers) -> tuple[int, int]:
    """Return the looks by this model and by all models."""
    return numbers["test_evaluations"], numbers["test_evaluations_of_all_models"]


def tagged(client, version="1") -> str | None:
    return client.get_model_version(NAME, version).tags.get("pneumo.test_evaluations")


@pytest.mark.parametrize(("split", "count"), [("train", 64), ("val", 16)])
def test_training_images_used_as_test_are_detected(stored, dataset, tmp_path, split, count):
    """They have other names and other patients."""
    again = as_test(dataset, split, tmp_path / "again", name="again-{}")
    run, numbers, findings = evaluated(stored, again)
    assert numbers["overlap"] == {"images": count, "patients": 0, "own_test": 0}
    assert tags(run)["pneumo.external"] == "false"
    why = (
        f"{count} of the {count} images are training or validation images of the model, and 0 show"
    )
    assert findings.startswith(why)
    assert why in text(run.info.run_id, "test/evidence.html")
    assert "External data" not in findings
    *_, reason = reasons(again)
    assert reason.startswith(why)
    assert registry.version_by_alias(NAME, "champion") == 0


def test_a_split_of_the_models_own_data(stored, dataset):
    run, numbers, findings = evaluated(stored, dataset, "val")
    assert numbers["overlap"] == {"images": 16, "patients": 16, "own_test": 0}
    why = (
        "16 of the 16 images are training or validation images of the model, and 16 show the same "
        "patients, so the results do not show how it performs on new patients"
    )
    assert findings.startswith(why)
    assert tags(run)["pneumo.external"] == "false"
    assert why in reasons(dataset, "val")
    run, numbers, findings = evaluated(stored, dataset)
    assert numbers["overlap"] == {"images": 0, "patients": 0, "own_test": ALL}
    assert tags(run)["pneumo.external"] == "false"
    assert "training or validation" not in findings
    assert "Evaluations on these test images" not in findings  # the first one needs no warning
    assert reasons(dataset) == []


def test_other_images_of_the_same_patients(stored, dataset, tmp_path):
    again = as_test(dataset, "train", tmp_path / "again", change=True)
    run, numbers, findings = evaluated(stored, again)
    assert numbers["overlap"] == {"images": 0, "patients": 64, "own_test": 0}
    assert tags(run)["pneumo.external"] == "false"
    assert findings.startswith("64 of the 64 images show patients with whom the model was trained")
    [reason] = reasons(again)
    assert reason.endswith("give them different ids in patients.csv or the table")
    # As the reason says
    for path in again.base.rglob("*.png"):
        path.rename(path.with_name(path.name.replace("person", "person9").replace("IM-", "IM-9")))
    others = open_dataset(str(again.base), required_splits=("test",))
    run, numbers, findings = evaluated(stored, others)
    assert numbers["overlap"] == {"images": 0, "patients": 0, "own_test": 0}
    assert tags(run)["pneumo.external"] == "true"
    assert (
        "External data: none of these images or patients was used to develop the model." in findings
    )
    assert reasons(others) == []


def test_names_without_a_patient_show_no_overlap(store, tmp_path):
    """If `train` accepts such data, `promote` does, too."""
    folder = write_images(tmp_path / "numbered")
    for split in ("train", "test"):
        for name in ("NORMAL", "PNEUMONIA"):
            for number, file in enumerate(sorted((folder / split / name).iterdir())):
                file.rename(file.with_name(f"{name[0]}{number:04}.png"))
    data = open_dataset(str(folder), required_splits=("train", "test"))
    assert data.unknown_patients == len(data.rows) == ALL + 80
    stored = register(run_of("left", data), NAME)
    trained, _ = results.read_files(stored.trial.info.run_id)
    tested = data.rows["patient"][data.rows["split"] == "test"]
    assert tested.isin(trained["patient"]).sum() == 80
    run, numbers, findings = evaluated(stored, data)
    assert numbers["overlap"] == {"images": 0, "patients": 0, "own_test": ALL}
    assert f"{ALL + 80} images have no known patient, and each counts as a separate" in findings
    assert reasons(data) == []


def test_some_of_the_models_own_test_images_are_not_external(store, stored, dataset, tmp_path):
    half = as_test(dataset, "test", tmp_path / "half", every=2)
    run, numbers, findings = evaluated(stored, half)
    assert numbers["overlap"] == {"images": 0, "patients": 0, "own_test": ALL // 2}
    assert tags(run)["pneumo.external"] == "false"
    assert "External data" not in findings
    assert reasons(half) == []
    assert tagged(store) is None  # other images than all of them


def test_a_model_whose_list_of_files_is_lost(store, stored, dataset, tmp_path):
    shutil.rmtree(Path(stored.trial.info.artifact_uri) / "data")
    _, numbers, _ = evaluated(stored, dataset)
    assert numbers["overlap"] == {"images": 0, "patients": 0, "own_test": ALL}
    assert tagged(store) == "1"
    files = results.known_files(stored.trial, dataset)
    assert find_overlap(files, dataset, "val").images == 16
    others = as_test(dataset, "test", tmp_path / "others", name="9{}", change=True)
    run, numbers, findings = evaluated(stored, others)
    assert numbers["overlap"] is None
    assert tags(run)["pneumo.external"] == "false"
    why = "t is unknown which images the model was trained on"
    assert f"I{why}" in findings
    assert why in text(run.info.run_id, "test/evidence.html")
    [reason] = reasons(others)
    assert reason == f"i{why}, because its run has no data/files.csv; train it again"


def test_looks_are_counted_by_images_and_by_model(store, stored, dataset, tmp_path):
    other = register(run_of("right", dataset), NAME)
    assert looks(evaluated(stored, dataset)[1]) == (1, 1)
    first, numbers, _ = evaluated(other, dataset)
    assert looks(numbers) == (1, 2)
    # A validation split shows the looks at test of the same data without being one
    assert looks(evaluated(stored, dataset, "val")[1]) == (1, 2)
    assert (tagged(store, "1"), tagged(store, "2")) == ("1", "1")
    # Deleting a run does not undo the look at its results
    store.delete_run(first.info.run_id)
    # The same images in an archive, and alone
    with tarfile.open(tmp_path / "halves.tar.gz", "w:gz") as archive:
        archive.add(dataset.base, "halves")
    packed = open_dataset(str(tmp_path / "halves.tar.gz"), required_splits=("train", "test"))
    run, numbers, findings = evaluated(stored, packed)
    assert looks(numbers) == (2, 3)
    assert "Evaluations on these test images: 2 of this model, 3 of all models." in findings
    alone = as_test(dataset, "test", tmp_path / "alone")
    assert looks(evaluated(stored, alone)[1]) == (3, 4)
    assert (tagged(store, "1"), tagged(store, "2")) == ("3", "1")
    # Other images have their own count
    others = as_test(dataset, "test", tmp_path / "others", name="9{}", change=True)
    assert looks(evaluated(stored, others)[1]) == (1, 1)
    assert tagged(store) == "3"


def test_many_looks_by_other_models_are_reported(store, stored, dataset):
    digest = dataset.images_digest("test")
    elsewhere = store.create_experiment("elsewhere")
    for number in range(3):
        with mlflow.start_run(experiment_id=elsewhere):
            evaluations.record_look(f"m-{number}", digest)
    store.delete_experiment(elsewhere)
    run, numbers, findings = evaluated(stored, dataset)
    assert looks(numbers) == (1, 4)
    said = "Evaluations on these test images: 1 of this model, 4 of all models. If test results"
    assert said in findings
    page = text(run.info.run_id, "test/evidence.html")
    assert said in page
    assert "1 of this model,\n4 of all models." in page


def test_a_run_counts_the_looks_of_each_of_its_winners(store):
    with mlflow.start_run() as run:
        for model_id in ("m-first", "m-second", "m-second"):
            evaluations.record_look(model_id, "0" * 16)
    assert evaluations.count_looks("0" * 16) == {"m-first": 1, "m-second": 2}
    assert evaluations.count_looks("1" * 16) == {}
    found = tags(store.get_run(run.info.run_id))
    assert found["pneumo.images_digest"] == "0" * 16
    assert json.loads(found["pneumo.test_looks"]) == {"m-first": 1, "m-second": 2}


def test_a_look_is_recorded_before_anything_is_computed(stored, dataset, monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr("pneumo.inference.logits.predict_logits", fail)
    with pytest.raises(RuntimeError), evaluation_run(stored, dataset, "test") as (_, images):
        evaluate_model(stored, images, "test")
    assert evaluations.count_looks(dataset.images_digest("test")) == {stored.model_id: 1}


def test_the_digest_of_a_splits_images(dataset, tmp_path):
    rows = dataset.rows
    found = sorted(set(rows["sha256"][rows["split"] == "test"]))
    expected = hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
    assert dataset.images_digest("test") == expected
    alone = as_test(dataset, "test", tmp_path / "alone", name="x{}")
    assert alone.digest != dataset.digest
    assert alone.images_digest("test") == expected
    assert alone.images_digest("val") == ""
    assert as_test(dataset, "test", tmp_path / "half", every=2).images_digest("test") != expected
