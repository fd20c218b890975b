"""One row per image."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from pneumo.errors import Mistake

CLASSES = ("NORMAL", "PNEUMONIA")  # a label is a position in this tuple

# Which part of the official split a folder belongs to: Kaggle's 16 `val` images were
# taken out of train, and too few to validate on.
FOLDERS = {"train": "train", "val": "train", "test": "test"}

COLUMNS = ["path", "label", "subtype", "patient", "split", "sha256"]

# Four name counters that restart independently: the name is part of the patient's key.
PATIENT = re.compile(r"person\d+_(?P<kind>bacteria|virus)|(?P<series>(NORMAL2-)?IM)-\d+")


def build_index(root: Path) -> pd.DataFrame:
    """The images below `root`, one row each, sorted by path.

    `root` is any folder above `{train,val,test}/{NORMAL,PNEUMONIA}`. Columns: `path`
    (from the folder that holds the splits, with `/`), `label` (0 normal, 1 pneumonia),
    `subtype` (`bacteria`, `virus`, `IM`, `NORMAL2-IM`; '' where the name does not tell),
    `patient`, `split` (`train` or `test`, as published), `sha256` of the file.
    Raises `Mistake` where there is no image.
    """
    base = find_base(root)
    files = sorted(_files(base), key=lambda file: file.relative_to(base).as_posix())
    if not files:
        raise Mistake(f"{base} has the folders of a data set but no image in them; fill them")
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(_sha256, files))
    rows = [_row(base, *pair) for pair in zip(files, digests, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def find_base(root: Path) -> Path:
    """The folder that holds the split folders: `root` or the shallowest one below it.

    Kaggle's archive holds a second full copy one level deeper, hence the shallowest.
    """
    bases = {
        folder.parents[1]
        for name in CLASSES
        for folder in root.rglob(name)
        if folder.is_dir() and folder.parent.name in FOLDERS and not _is_junk(folder, root)
    }
    if not bases:
        raise Mistake(
            f"{root} holds no data set: a data set has folders train/NORMAL, train/PNEUMONIA, "
            "test/NORMAL and test/PNEUMONIA; give a folder or archive that does"
        )
    return min(bases, key=lambda base: (len(base.parts), base))


def digest(rows: pd.DataFrame) -> str:
    """16 hex digits that name the content of an index: its paths, labels, patients and files."""
    text = rows[["path", "label", "patient", "split", "sha256"]].to_csv(
        index=False, lineterminator="\n"
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unknown_patients(rows: pd.DataFrame) -> int:
    """How many images have a name that tells no patient, and so count as one patient each."""
    return int((rows["subtype"] == "").sum())


def _files(base: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for name in CLASSES:
            for file in (base / folder / name).glob("*"):
                if file.is_file() and not _is_junk(file, base):
                    yield file


def _is_junk(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _row(base: Path, file: Path, sha256: str) -> tuple[str, int, str, str, str, str]:
    folder, name = file.relative_to(base).parts[:2]
    match = PATIENT.match(file.name)
    patient = match[0] if match else file.name
    subtype = (match["kind"] or match["series"]) if match else ""
    path = file.relative_to(base).as_posix()
    return path, CLASSES.index(name), subtype, patient, FOLDERS[folder], sha256
