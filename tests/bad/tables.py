"""Data sets with a table `labels.csv`, which is wrong or unusual."""

import csv
from collections.abc import Callable
from pathlib import Path

from tests.bad import Case
from tests.bad.xrays import prepare, xrays

LABELS = {"NORMAL": "0", "PNEUMONIA": "1"}

Rows = list[dict[str, str]]


def rows_of(folder: Path) -> Rows:
    """Return the rows of a right table, with all kinds of columns, for the images of `xrays`."""
    paths = sorted(file.relative_to(folder) for file in folder.rglob("*.png"))
    return [
        {
            "path": path.as_posix(),
            "label": LABELS[path.parts[1]],
            "patient": path.stem,
            "split": path.parts[0],
            "age": "4",
            "sex": "F",
            "site": "A",
        }
        for path in paths
    ]


def listed(spoil: Callable[[Rows], Rows | None], *flags: str) -> Callable[[Path], list[str]]:
    """Return a function that makes a data set, and its table after a change of the rows."""

    def make(folder: Path) -> list[str]:
        data = xrays(folder / "xrays")
        rows = rows_of(data)
        rows = spoil(rows) or rows
        with (data / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return prepare(data, *flags)

    return make


def containing(content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        data = xrays(folder / "xrays")
        (data / "labels.csv").write_bytes(content)
        return prepare(data)

    return make


def changed(**values: str) -> Callable[[Rows], None]:
    """Return a function that changes values of the fourth row."""
    return lambda rows: rows[3].update(values)


def without(name: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{key: row[key] for key in row if key != name} for row in rows]


def of_one_patient_in_both_splits(rows: Rows) -> None:
    rows[0]["patient"] = rows[-1]["patient"] = "p"


def with_many_labels(rows: Rows) -> None:
    for number, row in enumerate(rows):
        row["label"] = ["Pneumonia|Mass", "No Finding", "Lung_Opacity", "Edema"][number % 4]


def with_labels_that_lack_one(rows: Rows) -> None:
    with_many_labels(rows)
    rows[0]["label"] = " "


def with_one_label(rows: Rows) -> None:
    for row in rows:
        row["label"] = "1"


BY_SITE = ["--split_by", "site", "--folds", "2"]
NOT_THERE = "labels.csv must list files in its own folder: 1 of 52 do not exist there, the first is"
FILE = r"'test/NORMAL/IM-0001-0003\.png'"

CASES: list[Case] = [
    Case("a right table", listed(lambda rows: rows), "train 32, val 8, test 12|images", False),
    Case("a table of other words", listed(changed(label="Pneumonia")), "images", False),
    Case("a table without splits", listed(without("split")), "has no column split: 20%", False),
    Case(
        "mapped labels",
        listed(with_many_labels, "--positive", "Pneumonia, Lung_Opacity"),
        "52 images|images",
        False,
    ),
    Case("empty labels.csv", containing(b""), "labels.csv must be a CSV .* cannot be read"),
    Case("labels.csv without rows", containing(b"path,label\n"), "it has no rows. Add some"),
    Case("binary labels.csv", containing(bytes(range(256))), "must be a CSV in UTF-8 .*Save it"),
    Case("unclosed quotes", containing(b'path,label\n"a'), "must be a CSV in UTF-8 .*Save it"),
    Case("labels.csv with semicolons", containing(b"path;label\na;0\n"), "is 'path;label'. Add"),
    Case("a table without paths", listed(without("path")), "path and label: it has no path, and"),
    Case("a table without labels", listed(without("label")), "path and label: it has no label"),
    Case("a listed file that is missing", listed(changed(path="a.png")), f"{NOT_THERE} 'a.png'"),
    Case("an absolute path", listed(changed(path="/etc/passwd")), f"{NOT_THERE} '/etc/passwd'"),
    Case("a path out of the folder", listed(changed(path="../xrays/a.png")), f"{NOT_THERE} '../x"),
    Case("an empty path", listed(changed(path="")), f"{NOT_THERE} '.'"),
    Case("a folder as an image", listed(changed(path="train")), f"{NOT_THERE} 'train'"),
    Case("an image twice", listed(lambda rows: [*rows, rows[2]]), f"{FILE} is listed twice"),
    Case(
        "an image with two labels",
        listed(lambda rows: [*rows, rows[2] | {"label": "1"}]),
        f"{FILE} is listed with different labels. Remove",
    ),
    Case(
        "an image twice, by two paths",
        listed(changed(path="./test/NORMAL/IM-0001-0003.png")),
        f"{FILE} is listed twice",
    ),
    Case("an empty label", listed(changed(label="")), "found ''. Rename"),
    Case(
        "an empty label among many",
        listed(with_labels_that_lack_one, "--positive", "Pneumonia"),
        "labels.csv must have a label in every row: 1 rows have none. Add",
    ),
    Case(
        "both classes at once",
        listed(changed(label="0|PNEUMONIA")),
        "labels.csv must have one class for each image: .* Correct its label",
    ),
    Case("a third label", listed(changed(label="2")), "found '2'. Rename the labels, or name"),
    Case(
        "many labels",
        listed(with_many_labels),
        "found 'Edema', 'Lung_Opacity', 'Mass', 'No Finding'. .* -P positive=Pneumonia; all",
    ),
    Case(
        "a positive label that no image has",
        listed(with_many_labels, "--positive", "Fracture"),
        "positive must name labels of .*: 'Fracture' is not one. It contains 'Edema', 'Lung_Op",
    ),
    Case("one label only", listed(with_one_label), "must contain images in test/NORMAL: it has no"),
    Case("a row without a split", listed(changed(split="")), "in every row in the column spl"),
    Case("an unknown split", listed(changed(split="dev")), "in the column split: got 'dev'"),
    Case("a row without a patient", listed(changed(patient="")), "in the column patient: got ''"),
    Case(
        "a long patient", listed(changed(patient="p" * 256)), "at most 255 characters in the colu"
    ),
    Case("an age in words", listed(changed(age="old")), "must have an age in years, .* got 'old'"),
    Case("a negative age", listed(changed(age="-4")), "in the column age: got '-4'"),
    Case("an unknown sex", listed(changed(sex="x")), "must have M, F or O in the column sex: got"),
    Case("a site with an escape", listed(changed(site="\x1b[2J")), r"site: got '\\x1b\[2J'"),
    Case(
        "a patient of a table in train and in test",
        listed(of_one_patient_in_both_splits),
        "no patient may be in train and in test, .* the first is 'p' with",
    ),
    Case("a path longer than any", listed(changed(path="a" * 4_000)), "1 of 52 do not exist there"),
    Case(
        "sites that make no folds",
        lambda folder: ["train", *listed(lambda rows: rows)(folder)[1:], *BY_SITE],
        r"split_by=site requires folds to be the number of sites, .* from 1 \(A\)\. Change folds",
    ),
    Case(
        "sites that nobody knows",
        lambda folder: ["tune", *listed(without("site"))(folder)[1:], *BY_SITE],
        "split_by=site requires a site for each training image: 40 of 40 have none",
    ),
    Case(
        "positive without a table",
        lambda folder: prepare(xrays(folder / "xrays"), "--positive", "PNEUMONIA"),
        "positive requires a table of labels: .* Omit positive, or add the table",
    ),
]
