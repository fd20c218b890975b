"""A store that an earlier commit has written, used by the present code."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
from PIL import Image

from pneumo.__main__ import main
from pneumo.training.config import rename_fields
from tests.support import earlier
from tests.support.commands import run_here
from tests.support.decisions import aliases, last_promotion
from tests.support.paths import ROOT
from tests.support.stores import copy_stores, store_in
from tests.support.studies import files, text, without_pictures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_plots")]

COMMIT = "52744135fe8e05f9148e0e5de3357b7955d75992"

TRIED = "models:/pneumonia-sample/1"  # the best of the study
CHAMPION = "models:/pneumonia@champion"
PREDICTED = {TRIED: "tried.csv", CHAMPION: "champion.csv"}

GROUPS = ("pixels", "perturbed", "features")  # of the cache

# What a process does that knows nothing of pneumo
SERVE = f"""
import importlib.util, json, mlflow, pandas, sys
known = importlib.util.find_spec("pneumo") is not None
images = [open(path, "rb").read() for path in sys.argv[1:]]
answers = mlflow.pyfunc.load_model("{TRIED}").predict(pandas.DataFrame({{"image": images}}))
found = answers["probability"].tolist()
print(json.dumps({{"known": known, "found": found, "code": sys.modules["pneumo"].__file__}}))
"""

SMALL = ["--image_size", "32", "--epochs", "1"]


def tune(trials: int) -> list[str]:
    return ["tune", "--experiment", "tune", "--study", "night", "--trials", str(trials), *SMALL]


def train_pretrained(weights: Path) -> list[str]:
    """Train the head alone, on cached features of the sample."""
    network = ["--backbone", "mobilenet", "--alpha", "0.25", "--weights", str(weights)]
    return ["train", *network, "--unfreeze_depth", "0", *SMALL]


def train(images: Path) -> list[str]:
    """Train for so many steps that the model passes the gate."""
    steps = ["--batch_size", "1", "--learning_rate", "0.003", "--augment_strength", "0"]
    network = ["--dense_widths", "32", "--dropout", "0"]
    return ["train", "--data", str(images), "--model_name", "pneumonia", *network, *steps, *SMALL]


def promote(images: Path) -> list[str]:
    return ["promote", "--data", str(images)]


def predict(model: str, images: Path, out: Path) -> list[str]:
    return ["predict", "--model", model, "--images", str(images), "--out", str(out)]


def write_stripes(folder: Path) -> Path:
    """Write an easy data set of stripes, which are vertical for pneumonia."""
    rng = np.random.default_rng(0)
    upright = np.tile(np.repeat([88, 168], 4), (32, 4))
    for number in range(200):
        part = "train" if number < 100 else "test"
        normal, sick = f"NORMAL/IM-{number}-1.png", f"PNEUMONIA/person{number}_virus_1.png"
        for name, stripes in ((normal, upright.T), (sick, upright)):
            pixels = np.clip(stripes + rng.normal(0, 20, stripes.shape), 0, 255)
            place = folder / part / name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place)
    return folder


@pytest.fixture(scope="module")
def stripes(tmp_path_factory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("images") / "stripes")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Return the cache that the earlier and the present code share."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def images(kept) -> Path:
    """Return the folder of the sample's test images, which a command has made."""
    return kept / "sample-1" / "test"


@pytest.fixture(scope="module")
def older(images, weights, stripes, tmp_path_factory) -> Path:
    """Make stores with a study, a champion and predictions of both; return their folder."""
    code, folder = tmp_path_factory.mktemp("earlier"), tmp_path_factory.mktemp("older")
    earlier.unpack(COMMIT, code)
    predictions = (predict(model, images, folder / out) for model, out in PREDICTED.items())
    with store_in(folder):
        learned = tune(trials=2), train_pretrained(weights), train(stripes)
        earlier.give(code, *learned, promote(stripes), *predictions)
    return folder


@contextmanager
def copies(original: Path, folder: Path) -> Iterator[mlflow.MlflowClient]:
    """Copy stores to another folder as the current ones; return MLflow's client."""
    with store_in(folder) as client:
        copy_stores(original, folder)
        shutil.copy(original / "optuna.db", folder)
        yield client


@pytest.fixture
def client(older, tmp_path):
    """Copy the stores for this test; return MLflow's client."""
    with copies(older, tmp_path) as client:
        yield client


@pytest.fixture(scope="module")
def newer(older, stripes, tmp_path_factory) -> Path:
    """Return the folder of stores in which a present version has replaced the champion."""
    folder = tmp_path_factory.mktemp("newer")
    with copies(older, folder), without_pictures():
        assert main(train(stripes)) == 0
        assert main(promote(stripes)) == 0
    return folder


def give(*arguments: str) -> None:
    """Run a command of the present code."""
    code, _, errors = run_here(*arguments)
    assert (code, errors) == (0, "")


def night() -> optuna.Study:
    return optuna.load_study(study_name="night", storage=os.environ["PNEUMO_STORAGE"])


def runs(client, kind: str) -> dict[str, tuple[dict, dict, dict, set]]:
    """Return params, metrics, tags and files of the study's runs of a kind, by run id."""
    below = f"tags.`mlflow.parentRunId` = '{night().user_attrs['run_id']}'"
    found = client.search_runs(["0"], f"{below} and tags.`pneumo.kind` = '{kind}'")
    return {
        run.info.run_id: (
            *(run.data.params, run.data.metrics, run.data.tags),
            files(client, run.info.run_id),
        )
        for run in found
    }


def contents(cache: Path) -> dict[str, int]:
    """Return the files of the cache and their modification times."""
    found = {path.relative_to(cache): path.stat() for path in cache.rglob("[!.]*.*")}
    return {str(path): stat.st_mtime_ns for path, stat in found.items() if path.parts[0] != "locks"}


def added_entries(cache: Path, before: dict[str, int]) -> list[str]:
    """Return the folders of entries that were added; all earlier files must be unchanged."""
    now = contents(cache)
    assert {name: now.get(name) for name in before} == before
    return sorted({name.rpartition("/")[0] for name in now.keys() - before.keys()})


def scores(file: Path) -> pd.Series:
    """Return path → probability from the CSV of `predict`."""
    table = pd.read_csv(file, index_col="path")
    assert table["error"].isna().all()
    assert table["probability"].nunique() > len(table) / 2  # else they would say little
    return table["probability"]


def test_a_study_goes_on_with_its_trials_as_they_were(client, kept):
    study, before, cached = night(), runs(client, "trial"), contents(kept)
    trials = study.trials
    assert len(before) == len(trials) == 2
    assert {name.partition("/")[0] for name in cached} == {*GROUPS, "sample-1"}
    give(*tune(trials=3))
    assert night().user_attrs["run_id"] == study.user_attrs["run_id"]
    assert night().trials[:2] == trials
    assert [trial.state.name for trial in night().trials] == ["COMPLETE"] * 3
    after = runs(client, "trial")
    assert {run_id: after.pop(run_id) for run_id in before} == before
    assert len(runs(client, "resume")) == 1
    [added], *others = after.values(), *before.values()
    for params, *other in others:  # whatever was stored of a trial is stored of the next
        assert set(added[0]) >= set(rename_fields(params))
        assert all(set(new) >= set(old) for new, old in zip(added[1:], other, strict=True))
    # The robust AUC needs four versions of validation that older code did not make
    kinds = [entry.partition("/")[0] for entry in added_entries(kept, cached)]
    assert kinds == ["perturbed"] * 4


def test_what_pretrained_blocks_give_is_computed_again_once(client, weights, kept):
    cached = contents(kept)
    give(*train_pretrained(weights))
    kinds = [entry.partition("/")[0] for entry in added_entries(kept, cached)]
    # Older code computed features in another way. These are of the training images after an
    # augmentation, and of six versions of validation
    assert kinds.count("features") == 7
    assert {*kinds} <= {"features", "perturbed"}
    cached = contents(kept)
    give(*train_pretrained(weights))
    assert list(added_entries(kept, cached)) == []


def test_a_version_is_evaluated_as_its_trial_was(client):
    give("evaluate", "--model", TRIED, "--data", "sample", "--split", "val")
    [made] = client.search_runs(["0"], "tags.`pneumo.split` = 'val'")
    trial = client.get_model_version("pneumonia-sample", "1").run_id
    again, before = (
        pd.read_csv(io.StringIO(text(run_id, "val/predictions.csv")))
        for run_id in (made.info.run_id, trial)
    )
    pd.testing.assert_frame_equal(again, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", [TRIED, CHAMPION])
def test_a_version_repeats_its_earlier_predictions(client, older, images, tmp_path, model):
    give(*predict(model, images, tmp_path / "out.csv"))
    found, expected = scores(tmp_path / "out.csv"), scores(older / PREDICTED[model])
    pd.testing.assert_series_equal(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("known", [False, True])
def test_a_version_is_served_by_its_own_code(client, older, images, tmp_path, known):
    """It is, whether or not the present package can be imported there."""
    expected = scores(older / "tried.csv")[::40]
    path = {"PYTHONPATH": str(ROOT) if known else ""}
    process = subprocess.run(
        [sys.executable, "-P", "-c", SERVE, *expected.index],
        cwd=tmp_path,
        env=os.environ | path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout.splitlines()[-1])
    assert answer["known"] == known
    assert not Path(answer["code"]).is_relative_to(ROOT)
    assert answer["found"] == pytest.approx(list(expected), abs=1e-6)


def test_a_champion_is_replaced_and_restored(newer, tmp_path):
    with copies(newer, tmp_path) as client:
        evaluated = client.search_runs(["0"], "tags.`pneumo.kind` = 'evaluate'")
        assert len(evaluated) == 2  # the champion was held by what was stored of it
        assert aliases(client, "pneumonia") == {"challenger": 2, "champion": 2, "previous": 1}
        decision = last_promotion(client, "pneumonia")
        assert {"champion_auc", "auc_difference_low"} <= set(decision.data.metrics)
        give("promote", "--rollback", "true")
        assert aliases(client, "pneumonia") == {"challenger": 2, "champion": 1, "previous": 2}


def test_a_new_version_is_loaded_beside_an_old_one(newer, older, images, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow adds to it
    expected = scores(older / "champion.csv")
    with copies(newer, tmp_path):
        model = mlflow.pyfunc.load_model("models:/pneumonia/2")
        data = [Path(path).read_bytes() for path in expected.index]
        answer = model.predict(pd.DataFrame({"image": data}))
        for version in ("1", "2"):
            out = tmp_path / f"{version}.csv"
            # The new one has never seen such images
            call = predict(f"models:/pneumonia/{version}", images, out)
            give(*call, "--out_of_range", "ignore")
    assert answer["probability"].tolist() == pytest.approx(
        list(scores(tmp_path / "2.csv")), abs=1e-6
    )
    pd.testing.assert_series_equal(scores(tmp_path / "1.csv"), expected, rtol=0, atol=1e-6)
