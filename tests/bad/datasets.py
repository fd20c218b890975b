"""Data sets that are invalid in one way each, or only seem invalid."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad import Case
from tests.bad.images import GREY, PNG
from tests.bad.xrays import first, prepare, xrays
from tests.support.images import file_of

CLEAN = r"train \d+, val \d+ images, 0 unreadable"


def spoiled(spoil: Callable[[Path], None], *flags: str) -> Callable[[Path], list[str]]:
    """Return a function that makes a data set and then spoils it."""

    def make(folder: Path) -> list[str]:
        data = xrays(folder / "xrays")
        spoil(data)
        return prepare(data, *flags)

    return make


def one_class(data: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(data / split / "PNEUMONIA")


def no_normal_image(data: Path) -> None:
    for file in (data / "train" / "NORMAL").iterdir():
        file.unlink()


def one_patient(data: Path) -> None:
    only, *others = sorted((data / "train" / "NORMAL").iterdir())
    for file in others:
        file.unlink()


def of_both_labels(data: Path) -> None:
    for file in sorted((data / "train" / "NORMAL").iterdir())[:2]:
        shutil.copy(file, data / "train" / "PNEUMONIA" / file.name)


def tested_and_trained(data: Path) -> None:
    shutil.copy(first(data / "test" / "NORMAL"), data / "train" / "NORMAL" / "IM-9999-0001.png")


def twice_in_a_class(data: Path) -> None:
    shutil.copy(first(data / "train" / "NORMAL"), data / "train" / "NORMAL" / "IM-9999-0001.png")


def patients_tested_and_trained(data: Path) -> None:
    """Make a patient of each class with different images in train and in test."""
    for number, name in enumerate(("NORMAL/IM-0001-0099.png", "PNEUMONIA/person10_virus_99.png")):
        (data / "train" / name).write_bytes(file_of(GREY.rotate(90 * number), "PNG"))


def same_note_everywhere(data: Path) -> None:
    for place in ("train/NORMAL", "train/PNEUMONIA", "test/NORMAL"):
        (data / place / "desktop.ini").write_text("[ViewState]")


def sick(data: Path) -> None:
    (data / "train" / "PNEUMONIA").rename(data / "train" / "SICK")


def third_class(data: Path) -> None:
    shutil.copytree(data / "train" / "PNEUMONIA", data / "train" / "COVID")


def folder_in_a_class(data: Path) -> None:
    folder = data / "train" / "PNEUMONIA" / "batch2"
    folder.mkdir()
    (folder / "person9_virus_1.png").write_bytes(PNG)


def lower_case(data: Path) -> None:
    for folder in sorted(data.glob("*/*")):
        folder.rename(folder.with_name(folder.name.lower()))


def other_split(data: Path) -> None:
    (data / "test").rename(data / "validation")


def undecodable_name(data: Path) -> None:
    Path(os.fsdecode(os.fsencode(data / "train" / "NORMAL") + b"/K\xf6ln.png")).write_bytes(PNG)


def name_with_an_escape(data: Path) -> None:
    (data / "train" / "NORMAL" / "a\n\x1b[2Jb.png").write_bytes(PNG)


def looping_links(data: Path) -> None:
    (data / "again").symlink_to(data)
    (data / "train" / "PNEUMONIA" / "itself.png").symlink_to("itself.png")


def linked_folder(data: Path) -> None:
    for split in ("train", "test"):
        elsewhere = data.parent / f"elsewhere_{split}"
        (data / split).rename(elsewhere)
        (data / split).symlink_to(elsewhere)


def broken_disk(data: Path) -> None:
    (data / "train" / "NORMAL" / "scan.png").symlink_to("/proc/self/mem")  # gives no first byte


def patients(data: bytes) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> None:
        (folder / "patients.csv").write_bytes(data)

    return spoiled(write)


def read_only(folder: Path) -> list[str]:
    data = xrays(folder / "xrays")
    for place in (*data.rglob("*"), data):
        place.chmod(0o555 if place.is_dir() else 0o444)
    return prepare(data)


def far_away(folder: Path) -> list[str]:
    data = xrays(folder / "Röntgen bilder  2026" / "胸部 — X光")
    name = first(data / "train" / "NORMAL")
    name.rename(name.with_name("Aufnahme №1 (Kopie) 🫁.png"))
    return prepare(data)


def changed_since(content: bytes, *flags: str) -> Callable[[Path], list[str]]:
    """Return a function that makes a data set and changes a file after it was decoded."""

    def make(folder: Path) -> list[str]:
        from pneumo.data.dataset import open_dataset

        data = xrays(folder / "xrays")
        open_dataset(str(data)).decode(32, 0)
        first(data / "train" / "NORMAL").write_bytes(content)
        return prepare(data, *flags)

    return make


def in_conflict(
    *command: str, spoil: Callable[[Path], None] = of_both_labels
) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        data = xrays(folder / "xrays")
        spoil(data)
        return [*command, "--data", str(data)]

    return make


def named(data: str) -> Callable[[Path], list[str]]:
    return lambda _: ["prepare", "--data", data]


BOTH_LABELS = (
    r"no image may be in both classes, because .*: 2 are, the first as train/NORMAL/(\S+) and "
    r"train/PNEUMONIA/\1\. Remove one file of each pair\. The command explore lists all"
)

BOTH_SPLITS = (
    r"no patient may be in train and in test, because train and test would not be independent: 2 "
    r"are, the first is 'IM-0001' with train/NORMAL/IM-0001-0099\.png and "
    r"test/NORMAL/IM-0001-0001\.png\. If these are different people, list the right patients in "
    r"patients\.csv or the table\. Otherwise remove the images of one split\. The command explore "
    r"lists all of them in numbers\.json\.\n"
)
COMMANDS = ("prepare", "train", "tune", "worker --study night", "evaluate", "promote")

CASES: list[Case] = [
    Case(
        "one class only", spoiled(one_class), "must contain images in test/PNEUMONIA: it has none"
    ),
    Case("empty class", spoiled(no_normal_image), "images in train/NORMAL: it has none. Add"),
    Case("a class of one patient", spoiled(one_patient), "of at least two patients.* got 1. Add"),
    Case("an image under both labels", spoiled(of_both_labels), BOTH_LABELS),
    Case("labels in conflict, tune", in_conflict("tune"), BOTH_LABELS),
    Case("labels in conflict, train", in_conflict("train"), BOTH_LABELS),
    Case("labels in conflict, evaluate", in_conflict("evaluate", "--split", "val"), BOTH_LABELS),
    Case(
        "an image in train and in test",
        spoiled(tested_and_trained),
        r"no image may be in train and in test, .*: 1 is, the first as test/NORMAL/\S+ and "
        r"train/NORMAL/IM-9999-0001\.png\. Remove one",
    ),
    *(
        Case(
            f"patients in train and in test, {command}",
            in_conflict(*command.split(), spoil=patients_tested_and_trained),
            BOTH_SPLITS,
        )
        for command in COMMANDS
    ),
    Case("an image twice in a class", spoiled(twice_in_a_class), CLEAN, refused=False),
    Case(
        "the same note in all folders",
        spoiled(same_note_everywhere, "--max_unreadable", "0.1"),
        "3 unreadable",
        refused=False,
    ),
    Case("SICK for PNEUMONIA", spoiled(sick), "found train/SICK. Rename"),
    Case("a third class", spoiled(third_class), "found train/COVID. Rename these folders, or move"),
    Case(
        "a folder in a class",
        spoiled(folder_in_a_class),
        "without further folders: found train/PNEUMONIA/batch2. Rename",
    ),
    Case("classes in lower case", spoiled(lower_case), "it contains .*test/normal.* rename the"),
    Case("another split", spoiled(other_split), "found validation. Rename"),
    Case(
        "no folder at all",
        lambda folder: prepare(folder),
        "it contains no folders. Pass another folder",
    ),
    Case("a name in Latin 1", spoiled(undecodable_name), r"train/NORMAL/K\\udcf6ln.png'. Rename"),
    Case("a name with an escape", spoiled(name_with_an_escape), r"/a\\n\\x1b\[2Jb.png'. Rename"),
    Case("links in a loop", spoiled(looping_links), CLEAN, refused=False),
    Case("linked folders", spoiled(linked_folder), CLEAN, refused=False),
    Case("a broken disk", spoiled(broken_disk), "scan.png cannot be read from the disk .*Check"),
    Case("a read-only folder", read_only, CLEAN, refused=False),
    Case("Unicode and spaces", far_away, f"{CLEAN}, 1 of unknown patients", refused=False),
    Case("changed since it was decoded", changed_since(PNG), "Decoding to 32 px", refused=False),
    Case("broken since it was decoded", changed_since(b""), "1 of 52 are"),
    Case("binary patients.csv", patients(bytes(range(256))), "patients.csv must be a CSV .*Save"),
    Case("UTF-16 patients.csv", patients("path,patient\n".encode("utf-16")), "in UTF-8.*Save it"),
    Case("semicolons", patients(b"path;patient\na;b\n"), "its first line is 'path;patient'. Add"),
    Case("ragged patients.csv", patients(b"path,patient\na,b\na,b,c\n"), "cannot be read.*line 3"),
    Case("patients.csv of Excel", patients(b"\xef\xbb\xbfpath,patient\r\n"), CLEAN, refused=False),
    Case("a path that is too long", named("x" * 4_000), "'x+…x+' does not exist. Check"),
    Case("a home of nobody", named("~nobody-here/xrays"), "'~nobody-here/xrays' does not exist"),
]
