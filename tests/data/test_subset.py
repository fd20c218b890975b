"""A copy of a data set with only the listed test images, and the list of the README's half."""

import re
import shlex
import shutil
from collections import Counter

import pandas as pd
import pytest
from PIL import Image

from pneumo.__main__ import main
from pneumo.data import index
from pneumo.data.dataset import open_dataset
from pneumo.data.subset import write_subset
from pneumo.runtime.errors import UserError
from tests.support.paths import ROOT

HALF = ROOT / "experiments" / "test_half.txt"
# The test images of 0000 to 0003 of the sample's first counter, and of two of its sick patients
KEPT = re.compile(r"test/(NORMAL/IM-000[0-3]|PNEUMONIA/person1[01]_)")


def listed_in(file, paths):
    """Write a list of paths to a file, as a Windows editor may save it."""
    file.write_bytes("\r\n".join(["\ufeff", *paths, ""]).encode())
    return file


@pytest.fixture
def kept(sample) -> list[str]:
    """Return some test images of the sample, of both classes."""
    return [path for path in sample.rows["path"] if KEPT.match(path)]


def test_the_copy_has_all_training_images_and_the_listed_test_images(folder, kept, tmp_path):
    # Kaggle's part of train, a patient from a list, and what is no image of the data set
    (folder / "val").mkdir()
    (folder / "train" / "NORMAL").rename(folder / "val" / "NORMAL")
    (folder / ".DS_Store").touch()
    shutil.copytree(folder / "test", folder / "chest_xray" / "test")
    unlisted = "test/NORMAL/NORMAL2-IM-0001-0001.png"
    listed = {
        kept[0]: ("007", "NA"),
        unlisted: ("07", ""),
        "val/NORMAL/IM-0101-0001.png": ("7", ""),
    }
    table = pd.DataFrame.from_dict(listed, orient="index", columns=["patient", "age"])
    table.to_csv(folder / "patients.csv", index_label="path")
    original = open_dataset(str(folder), required_splits=("train", "test"))
    out = tmp_path / "half"
    write_subset(original, listed_in(tmp_path / "list.txt", kept), out)
    copy = open_dataset(str(out), required_splits=("train", "test"))
    wanted = (original.rows["split"] != "test") | original.rows["path"].isin(kept)
    assert 0 < len(kept) < (original.rows["split"] == "test").sum()
    expected = original.rows[wanted].reset_index(drop=True)
    pd.testing.assert_frame_equal(copy.rows, expected)
    assert copy.file_counts["elsewhere"] == 1
    assert (out / "patients.csv").read_text() == (
        f"path,patient,age\n{kept[0]},007,NA\nval/NORMAL/IM-0101-0001.png,7,\n"
    )
    # A change of the copy is none of the original
    (out / kept[1]).write_bytes(b"")
    assert index.digest(index.build_index(folder)) == original.digest
    assert {path.name for path in tmp_path.iterdir()} == {"xrays", "list.txt", "half"}


def test_an_empty_folder_is_filled(folder, kept, tmp_path):
    out = tmp_path / "half"
    out.mkdir()
    write_subset(open_dataset(str(folder)), listed_in(tmp_path / "list.txt", kept), out)
    assert sorted(path.relative_to(out).as_posix() for path in out.glob("test/*/*")) == kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda paths: [*paths, "test/NORMAL/IM-9.png", "train/NORMAL/IM-0101-0001.png", "x"],
            "must list test images of xrays, such as 'test/NORMAL/IM-0001-0001.png': 3 of {} lines "
            "match none, the first is 'test/NORMAL/IM-9.png'. Pass the data set of the list, or",
        ),
        (
            lambda paths: [path for path in paths if "NORMAL" in path],
            "must list images of both classes: '{}' lists none in test/PNEUMONIA. Add some.",
        ),
        (lambda paths: [], "must list images of both classes: '{}' lists none in test/NORMAL. Add"),
    ],
    ids=["unknown", "one class", "empty"],
)
def test_an_invalid_list_is_rejected(folder, kept, tmp_path, change, message):
    lines = change(kept)
    file = listed_in(tmp_path / "list.txt", lines)
    with pytest.raises(UserError) as raised:
        write_subset(open_dataset(str(folder)), file, tmp_path / "half")
    expected = message.format(len(lines) if "lines" in message else file)
    assert str(raised.value).startswith(f"--test_images {expected}")
    assert {path.name for path in tmp_path.iterdir()} == {"xrays", "list.txt"}


@pytest.mark.parametrize("name", ["nowhere.txt", "xrays", "words.bin"])
def test_what_is_no_list_is_refused(folder, tmp_path, name):
    (tmp_path / "words.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=f"test_images must be a text file .*/{name}' .*Check the"):
        write_subset(open_dataset(str(folder)), tmp_path / name, tmp_path / "half")


@pytest.mark.parametrize("name", ["xrays", "list.txt", "nowhere/half", "link"])
def test_an_occupied_folder_is_rejected(folder, kept, tmp_path, name):
    file = listed_in(tmp_path / "list.txt", kept)
    (tmp_path / "link").symlink_to("elsewhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"out must be a new or empty folder .*/{name}'. Choose"):
        write_subset(open_dataset(str(folder)), file, tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_fails_leaves_nothing(folder, kept, tmp_path):
    file = listed_in(tmp_path / "list.txt", kept)
    dataset = open_dataset(str(folder))
    with pytest.raises(UserError, match=r"out must be a writable folder: .*name too long"):
        write_subset(dataset, file, tmp_path / ("x" * 255))
    last = folder / dataset.rows["path"].iloc[-1]
    last.unlink()
    with pytest.raises(UserError, match=f"{last} cannot be read from the disk"):
        write_subset(dataset, file, tmp_path / "half")
    assert {path.name for path in tmp_path.iterdir()} == {"xrays", "list.txt"}


def test_the_sample_stays_synthetic(sample, kept, tmp_path):
    with pytest.raises(UserError, match="requires real images: sample is synthetic. Pass"):
        write_subset(sample, listed_in(tmp_path / "list.txt", kept), tmp_path / "half")


@pytest.mark.parametrize("flag", ["test_images", "out"])
def test_the_list_and_the_folder_go_together(capsys, flag):
    assert main(["prepare", f"--{flag}", "half"]) == 2
    said = "pneumo: --test_images and --out require each other. Pass both, or neither.\n"
    assert capsys.readouterr().err == said


def test_the_half_that_the_results_are_for():
    paths = HALF.read_text().splitlines()
    assert paths == sorted(set(paths))
    counts = Counter(path.rpartition("/")[0] for path in paths)
    assert counts == {"test/NORMAL": 117, "test/PNEUMONIA": 195}
    patients = [index.parse_file_name(path)[0] for path in paths]
    rows = pd.DataFrame({"path": paths, "patient": patients})
    assert not index.has_unknown_patient(rows).any()


def with_others(base, folder):
    """Make a data set with other training images, its test images, and some more of these."""
    folder.mkdir()
    (folder / "train").symlink_to(base / "train")
    shutil.copytree(base / "test", folder / "test")
    for number, name in enumerate(("NORMAL/IM-9001-0001", "PNEUMONIA/person9002_virus_1")):
        Image.new("L", (16, 16), number).save(folder / "test" / f"{name}.jpeg")
    return folder


@pytest.mark.slow
def test_the_half_of_the_real_images(real_archive, tmp_path):
    original = open_dataset(str(real_archive), required_splits=("train", "test"))
    whole = open_dataset(str(with_others(original.base, tmp_path / "whole")))
    assert len(whole.rows) == len(original.rows) + 2
    write_subset(whole, HALF, tmp_path / "half")
    half = open_dataset(str(tmp_path / "half"))
    assert half.digest == original.digest
    pd.testing.assert_frame_equal(half.rows, original.rows)


@pytest.mark.slow
def test_the_command_of_the_readme(store, folder, tmp_path, capsys):
    readme = (ROOT / "experiments" / "README.md").read_text()
    [command] = re.findall(r"`(mlflow run \. -e prepare [^`]*test_half\.txt[^`]*)`", readme)
    words = [word for word in shlex.split(command.replace("\n", " ")) if "=" in word]
    given = dict(word.split("=") for word in words)
    assert list(given) == ["data", "test_images", "out"]
    shutil.rmtree(folder / "test")
    for file in folder.rglob("*.png"):  # other patients than those of the list
        file.rename(file.with_name(file.name.replace("person", "person9").replace("IM-", "IM-9")))
    for number, path in enumerate(HALF.read_text().splitlines()):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8 + number, 8)).save(target)
    expected = open_dataset(str(folder))
    whole = with_others(folder, tmp_path / "whole")
    given |= {"data": str(whole), "test_images": str(ROOT / given["test_images"])}
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    assert main(["prepare", *flags, "--image_size", "32"]) == 0, capsys.readouterr().err
    half = open_dataset(given["out"])
    assert half.digest == expected.digest
    [run] = store.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["pneumo.data"] == given["out"]
    assert run.data.tags["pneumo.data_digest"] == expected.digest
    assert f"{given['out']} (digest {half.digest}): test 312, train" in capsys.readouterr().out
    # The folder is there now
    assert main(["prepare", *flags]) == 2
    assert "out must be a new or empty folder" in capsys.readouterr().err


def test_the_copy_of_a_table_is_a_table(tmp_path):
    base = tmp_path / "hospital"
    base.mkdir()
    lines = ["path,label,patient,sex"]
    for number in range(20):
        Image.effect_noise((32, 32), 50).save(base / f"{number:02}.png")
        lines.append(f"{number:02}.png,{['Mass', 'Pneumonia|Mass'][number % 2]},p{number},F")
    (base / "labels.csv").write_text("\n".join(lines))
    dataset = open_dataset(str(base), positive=("Pneumonia",))
    tested = dataset.rows["path"][dataset.rows["split"] == "test"].tolist()
    assert len(tested) == 4
    kept = [tested[0], next(path for path in tested if int(path[:2]) % 2 != int(tested[0][:2]) % 2)]
    write_subset(dataset, listed_in(tmp_path / "list.txt", kept), tmp_path / "half")
    copy = open_dataset(str(tmp_path / "half"), required_splits=("train", "test"))
    assert copy.rows["path"][copy.rows["split"] == "test"].tolist() == sorted(kept)
    expected = dataset.rows[~dataset.rows["path"].isin(set(tested) - set(kept))]
    assert copy.rows.equals(expected.reset_index(drop=True))
