"""The command `predict`, and the CSV that it writes."""

import csv
import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumo.commands.options.inputs import find_images
from pneumo.evaluation.heat_maps import HiResCam
from pneumo.inference.decode import decode
from pneumo.reporting.plots import overlay_heat_map
from pneumo.runtime.errors import UserError
from pneumo.tracking import model_files, models, registry
from tests.support.commands import run_here, start
from tests.support.studies import tags, text

HEADER = ["path", "probability", "label", "threshold", "model_version", "model_id", "error"]
MODEL = "models:/pneumonia-sample@challenger"


@pytest.fixture
def few(folder) -> Path:
    """Write the test images, and files that are not images."""
    (folder / "test" / "notes.txt").write_text("notes")
    (folder / "test" / "empty.png").write_bytes(b"")
    (folder / "test" / ".DS_Store").write_bytes(b"junk")
    return folder / "test"


def rows(out) -> list[list[str]]:
    with open(out, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out.csv"


def predicted(images, out) -> tuple[int, str, str]:
    return run_here("predict", "--model", MODEL, "--images", str(images), "--out", str(out))


def predicted_here(images, out, *flags: str) -> tuple[int, str, str]:
    where = ["--images", str(images), "--out", str(out)]
    return run_here("predict", "--model", MODEL, *where, *flags)


def test_files_of_a_folder_a_glob_and_one(few, tmp_path, monkeypatch):
    everything = find_images(str(few), tmp_path / "out.csv")
    assert len(everything) == 146 + 2  # the files that are no images too, hidden ones not
    assert everything == sorted(everything)
    normal = find_images(f"{few}/NORMAL/*.png", tmp_path / "out.csv")
    assert normal == [path for path in everything if "/NORMAL/" in path]
    assert find_images(f"{few}/**/*.png", tmp_path / "out.csv") == everything[:147]
    assert find_images(normal[0], tmp_path / "out.csv") == normal[:1]
    assert find_images(f"{few}/NORM*", tmp_path / "out.csv") == normal
    strange = few / "a [b].png"
    strange.write_bytes(b"")
    assert find_images(str(strange), tmp_path / "out.csv") == [str(strange)]
    assert str(few / "notes.txt") not in find_images(str(few), few / "notes.txt")  # that is out
    monkeypatch.chdir(few)
    assert find_images("NORMAL", Path("out.csv"))[0].startswith("NORMAL/IM-")


@pytest.mark.parametrize("images", ["nowhere", "NORMAL/*.dcm", "empty"])
def test_no_files(few, tmp_path, monkeypatch, images):
    monkeypatch.chdir(few)
    (few / "empty").mkdir()
    with pytest.raises(UserError, match="images must be a file, a folder or a glob of image files"):
        find_images(images, Path("out.csv"))


@pytest.mark.slow
def test_every_file_has_its_row(study, client, few, out):
    before = {run.info.run_id for run in client.search_runs(["0"])}
    model_id = models.find_model(MODEL).model_id
    code, output, errors = predicted(few, out)
    assert code == 0, errors
    header, *found = rows(out)
    assert header == HEADER
    assert [path for path, *_ in found] == find_images(str(few), out)
    by_name = {Path(path).name: values for path, *values in found}
    reason = "not a supported image format"
    for name, why in (("notes.txt", reason), ("empty.png", f"{reason}: the file is empty")):
        assert by_name.pop(name) == ["", "", "", "1", model_id, why]
    # as the study has found them
    run_id = study.study.user_attrs["run_id"]
    stored = pd.read_csv(f"{client.get_run(run_id).info.artifact_uri}/test/predictions.csv")
    threshold = client.get_run(run_id).data.metrics["test_threshold"]
    numbers = json.loads(text(run_id, "test/metrics.json"))
    far = numbers["input_gate"]["out_of_range"]
    limit = f"limit {numbers['input_gate']['limit']:.1f}"
    assert far == sum(row[-1].startswith("far from the training images: ") for row in found)
    for path, probability in zip(stored["path"], stored["probability"], strict=True):
        values = by_name.pop(Path(path).name)
        assert float(values[0]) == pytest.approx(probability, abs=1e-6)
        assert values[1] == str(int(float(values[0]) >= threshold))
        assert values[2:5] == [str(threshold), "1", model_id]
        assert values[5] == "" or values[5].endswith(limit)
    assert not by_name
    [made] = [run for run in client.search_runs(["0"]) if run.info.run_id not in before]
    positive = sum(row[2] == "1" for row in found)
    counts = {"images": 148, "positive": positive, "unreadable": 2, "out_of_range": far}
    assert made.data.metrics == counts
    assert tags(made) == {
        "pneumo.kind": "predict",
        "pneumo.model": "pneumonia-sample version 1",
        "pneumo.data": "test",
    }
    assert (
        f"predicted 148 images: {positive} positive (pneumonia), 2 unreadable, {far} far from the "
        f"training images; see {out}" in output
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["warn", "refuse", "ignore"])
def test_images_far_from_the_training_images(study, sample, out, tmp_path, mode):
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    trained = sample.rows["path"][sample.rows["split"] == "train"].iloc[0]
    shutil.copy(sample.base / trained, folder / "trained.png")
    code, output, _ = predicted_here(folder, out, "--out_of_range", mode)
    assert code == 0
    far, near = pd.read_csv(out).to_dict("records")
    assert near["probability"] > 0
    assert pd.isna(near["error"])
    warns = r"far from the training images: distance \d+\.\d, limit \d+\.\d"
    assert pd.isna(far["error"]) if mode == "ignore" else re.fullmatch(warns, far["error"])
    assert pd.isna([far["probability"], far["label"]]).tolist() == 2 * [mode == "refuse"]
    assert f"0 unreadable, {int(mode != 'ignore')} far from the training images;" in output
    if mode != "ignore":  # of which no row shows how it was made
        other = {"warn": "refuse", "refuse": "warn"}[mode]
        before = out.read_text()
        code, _, errors = predicted_here(folder, out, "--out_of_range", other)
        assert code == 2
        assert f"only predictions with out_of_range={other}: '{out}' contains some with" in errors
        assert out.read_text() == before


@pytest.mark.slow
def test_an_existing_csv_is_continued(study, few, out):
    assert predicted_here(few, out)[0] == 0
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:100]) + lines[100][:30])  # as a killed process leaves
    code, output, _ = predicted_here(few, out)
    assert code == 0
    continued = out.read_text()
    assert continued.splitlines()[:100] == whole.splitlines()[:100]
    # The batches are others than in one go, and on some processors that decides the last digits
    pd.testing.assert_frame_equal(
        *(pd.read_csv(io.StringIO(content)) for content in (continued, whole)), rtol=0, atol=1e-6
    )
    assert f"skipped 99 images that {out} already contains" in output
    assert list(out.parent.glob("out.csv*")) == [out]
    code, output, _ = predicted_here(few, out)
    assert code == 0
    assert f"skipped 148 images that {out} already contains" in output
    assert out.read_text() == continued


@pytest.mark.slow
def test_each_image_is_explained(study, few):
    out = few / "scores.csv"  # within the images, as people do
    call = ["--model", MODEL, "--images", str(few), "--out", str(out)]
    folder = few / "scores_explained"
    assert run_here("predict", *call)[0] == 0
    assert not folder.exists()
    code, output, errors = run_here("predict", *call, "--explain", "true")
    assert (code, errors) == (0, "")
    assert f"skipped 148 images that {out} already contains" in output
    assert f"heat maps: {folder}" in output
    readable = [path for path, *_, error in rows(out)[1:] if not error]
    assert len(readable) == 146
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert made == {f"{path[1:]}.png" for path in readable}  # their paths are absolute
    # the image as the model takes it, and beside it the same below its heat map
    path, model = readable[7], models.find_model(MODEL).model
    pixels = decode(Path(path).read_bytes(), 32)
    [heat] = HiResCam(model.keras_model)(pixels[np.newaxis, ..., np.newaxis])
    picture = np.asarray(Image.open(folder / f"{path[1:]}.png"))
    assert (picture[:, :32] == pixels[..., np.newaxis]).all()
    assert np.abs(picture[:, 32:].astype(int) - overlay_heat_map(pixels, heat)).max() <= 1
    # what is missing or of another model is made, the rest is kept, and none is taken for an image
    torn, other, kept = sorted(folder.rglob("*.png"))[:3]
    torn.unlink()
    Image.open(other).save(other)  # without the name of its model
    drawn = kept.stat().st_mtime_ns
    code, output, errors = run_here("predict", *call, "--explain", "true")
    assert (code, errors) == (0, "")
    assert "Drawing heat maps: 4 images" in output  # these, and the two that are no images
    assert torn.exists()
    with Image.open(other) as picture:
        assert picture.info["model_id"] == models.find_model(MODEL).model_id
    assert kept.stat().st_mtime_ns == drawn
    assert len(rows(out)) == 149


@pytest.mark.slow
def test_an_interrupt_loses_no_row(study, few, out):
    many = few / "many"
    many.mkdir()
    image = next((few / "NORMAL").iterdir())
    for number in range(20_000):
        os.link(image, many / f"{number:05}.png")
    call = ["--model", MODEL, "--images", str(many), "--out", str(out)]
    process = start("predict", *call, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out.exists() and len(rows(out)) > 100):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "pneumo: interrupted; finished work is kept\n"
    found = rows(out)
    assert 100 < len(found) < 20_000
    assert {len(row) for row in found} == {7}
    assert [row[0] for row in found[1:]] == [
        f"{many}/{number:05}.png" for number in range(len(found) - 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "out must be a new file, or a CSV that predict has written: got '"),
        (
            ",".join(HEADER) + "\nx.png,0.5,1,0.5,1,m-7,\n",
            "' contains predictions of m-7. Choose another file.",
        ),
        (
            "path,probability,label,threshold,model_version,error\nx.png,0.5,1,0.5,1,\n",
            f"out must have the columns {','.join(HEADER)}: '",
        ),
    ],
)
def test_another_table_stays_as_it_is(study, few, out, content, message):
    out.write_text(content)
    code, _, errors = predicted_here(few, out)
    assert code == 2
    [line] = errors.splitlines()
    assert message in line
    assert line.endswith("Choose another file.")
    assert out.read_text() == content


@pytest.mark.slow
def test_another_prevalence_changes_probabilities_and_no_label(study, few, out):
    where = ["--model", MODEL, "--images", str(few / "NORMAL")]
    assert run_here("predict", *where, "--out", str(out))[0] == 0
    rare = out.with_name("rare.csv")
    code, output, errors = run_here("predict", *where, "--out", str(rare), "--prevalence", "0.1")
    assert (code, errors) == (0, "")
    model = models.find_model(MODEL).model
    own = model.settings["prevalence"]
    said = f"adjusted from a prevalence of {own:.1%}, for which the model is calibrated, to 10.0%"
    assert said in " ".join(output.split())
    before, after = pd.read_csv(out), pd.read_csv(rare)
    odds = [table["probability"] / (1 - table["probability"]) for table in (before, after)]
    factor = (0.1 / 0.9) / (own / (1 - own))
    assert (odds[1] / odds[0]).to_numpy() == pytest.approx(factor, rel=1e-6)
    assert after["label"].equals(before["label"])
    [threshold] = set(after["threshold"])
    [own_threshold] = set(before["threshold"])
    odds_of_threshold = threshold / (1 - threshold) / (own_threshold / (1 - own_threshold))
    assert odds_of_threshold == pytest.approx(factor, rel=1e-9)
    content = out.read_text()
    code, _, errors = run_here("predict", *where, "--out", str(out), "--prevalence", "0.1")
    assert code == 2
    assert errors.startswith(
        f"pneumo: --out must contain only predictions at the threshold {threshold}: "
    )
    assert out.read_text() == content


@pytest.mark.slow
def test_version_1_of_another_model_does_not_continue(study, few, out):
    image = str(next((few / "NORMAL").iterdir()))
    assert predicted_here(image, out)[0] == 0
    before = out.read_text()
    first = models.find_model(MODEL)
    run_id = first.trial.info.run_id
    other = registry.register(
        run_id, model_files.load_model(f"models:/{first.model_id}"), "pneumonia"
    )
    assert (other.version, first.version) == (1, 1)
    call = ["predict", "--model", "models:/pneumonia/1", "--images", image, "--out", str(out)]
    code, _, errors = run_here(*call)
    assert code == 2
    assert errors == (
        "pneumo: --out must contain only predictions of pneumonia version 1 (model_id "
        f"{other.model_id}): '{out}' contains predictions of {first.model_id}. "
        "Choose another file.\n"
    )
    assert out.read_text() == before
    # the same model by its other address
    call[2] = f"models:/{first.model_id}"
    assert run_here(*call)[0] == 0
    assert out.read_text() == before
