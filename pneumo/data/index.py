"""One row per image."""

import hashlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd

from pneumo.data.pixels import read_file
from pneumo.inference.batches import map_in_threads
from pneumo.runtime.cache_entries import is_own
from pneumo.runtime.errors import UserError, is_printable_text, quoted

CLASSES = ("NORMAL", "PNEUMONIA")  # a label is a position in this tuple

# Which part of the official split a folder belongs to: Kaggle's 16 `val` images were
# taken out of train, and too few to validate on.
SPLIT_OF_FOLDER = {"train": "train", "val": "train", "test": "test"}

COLUMNS = ["path", "label", "subtype", "patient", "split", "sha256"]

# Four name counters that restart independently: the name is part of the patient's key.
PATIENT_PATTERN = re.compile(r"person\d+_(?P<kind>bacteria|virus)|(?P<series>(NORMAL2-)?IM)-\d+")


def build_index(root: Path) -> pd.DataFrame:
    """The images below `root`, one row each, sorted by path.

    `root` is any folder above `{train,val,test}/{NORMAL,PNEUMONIA}`. Columns: `path`
    (from the folder that holds the splits, with `/`), `label` (0 normal, 1 pneumonia),
    `subtype` (`bacteria`, `virus`, `IM`, `NORMAL2-IM`; '' where the name does not tell),
    `patient` (from `patients.csv` where that names the image, else from the file name),
    `split` (`train` or `test`, as published), `sha256` of the file. Raises `UserError` where
    there is no image, a folder beside those, a name that is no text, a file that the disk does not
    give, or a `patients.csv` that does not fit the images.
    """
    base = find_split_root(root)
    _require_known_folders(base)
    files = {file.relative_to(base).as_posix(): file for file in _files(base)}
    if not files:
        raise UserError(f"{base} has the folders of a data set but no image in them; fill them")
    paths = sorted(files)
    require_text(paths)
    patients = _listed_patients(base, paths)
    digests = map_in_threads(_sha256, [files[path] for path in paths])
    rows = [
        (*_row(path, patients.get(path)), digest)
        for path, digest in zip(paths, digests, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _listed_patients(base: Path, paths: list[str]) -> dict[str, str]:
    """Path → patient, as the data set's own `patients.csv` says it; empty without one."""
    file = base / "patients.csv"
    if not file.is_file():
        return {}
    try:
        table = read_table(file)
    except ValueError as error:
        raise UserError(
            f"{file} must be a CSV with columns path and patient, in UTF-8: it cannot be read "
            f"({str(error).strip()}); save it as such"
        ) from None
    if missing := {"path", "patient"} - set(table):
        raise UserError(
            f"{file} must be a CSV with columns path and patient, and has no {min(missing)}: "
            f"its first line is '{quoted(','.join(table))}'; mend that"
        )
    rows = list(zip(table["path"], table["patient"], strict=True))
    listed = dict(rows)
    if len(listed) < len(rows) or not all(listed.values()):
        raise UserError(f"{file} must name each image once, with a patient; mend it")
    if strangers := sorted(listed.keys() - set(paths)):
        raise UserError(
            f"{file} names '{quoted(strangers[0])}', which is no image here; "
            f"paths start at its own folder, as {paths[0]}"
        )
    return listed


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV table in UTF-8, every value as text.

    The patients '007', '07' and '7' stay three, and 'NA', 'nan' and '' stay what they are.

    Raises:
        ValueError: The file is not such a table.
    """
    return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def find_split_root(root: Path) -> Path:
    """The folder that holds the split folders: `root` or the shallowest one below it.

    Kaggle's archive holds a second full copy one level deeper, hence the shallowest.
    """
    at_top = [root / folder / name for folder in SPLIT_OF_FOLDER for name in CLASSES]
    below = (folder for name in CLASSES for folder in root.rglob(name))  # which follows no links
    bases = {
        folder.parents[1]
        for folder in (*at_top, *below)
        if folder.is_dir() and folder.parent.name in SPLIT_OF_FOLDER and not is_junk(folder, root)
    }
    if not bases:
        raise UserError(
            f"{root} holds no data set: a data set has folders train/NORMAL, train/PNEUMONIA, "
            f"test/NORMAL and test/PNEUMONIA, and here is {_folders(root)}; give a folder or "
            "archive that does, or rename what is here"
        )
    return min(bases, key=lambda base: (len(base.parts), base))


def _folders(root: Path, most: int = 6) -> str:
    """The folders in a folder and in those, as a message names them."""
    found = [it for pattern in ("*", "*/*") for it in root.glob(pattern) if it.is_dir()]
    names = sorted(it.relative_to(root).as_posix() for it in found if not is_junk(it, root))
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "no folder"


def _require_known_folders(base: Path) -> None:
    splits = [base / name for name in SPLIT_OF_FOLDER if (base / name).is_dir()]
    unknown = [it for split in splits for it in split.iterdir() if it.name not in CLASSES]
    others = (it for it in base.iterdir() if it.name not in SPLIT_OF_FOLDER)
    unknown += [it for it in others if any((it / name).is_dir() for name in CLASSES)]
    names = [it.relative_to(base).as_posix() for it in unknown if it.is_dir()]
    if names := sorted(it for it in names if not is_junk(base / it, base)):
        raise UserError(
            f"{base} must hold no classes but NORMAL and PNEUMONIA, in no folders but train, val "
            f"and test: found {', '.join(names[:6])}; rename it, or move it elsewhere"
        )


def require_text(paths: Collection[str]) -> None:
    """Raise `UserError` if a path cannot be printed and stored as text."""
    if odd := [path for path in paths if not is_printable_text(path)]:
        raise UserError(
            f"file names must be UTF-8 without control characters: got {len(odd)} of {len(paths)} "
            f"that are not, the first '{quoted(odd[0])}'; rename them, as with "
            "convmv -r -f latin1 -t utf8 --notest FOLDER"
        )


def digest(rows: pd.DataFrame) -> str:
    """16 hex digits that name the content of an index: its paths, labels, patients and files."""
    text = rows[["path", "label", "patient", "split", "sha256"]].to_csv(
        index=False, lineterminator="\n"
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def has_unknown_patient(rows: pd.DataFrame) -> pd.Series:
    """Whether an image's name tells no patient, and so counts as one of its own: bool."""
    names = rows["path"].str.rpartition("/")[2]
    return (rows["patient"] == names) & ~names.str.match(
        PATIENT_PATTERN
    )  # a name may be all patient


def count_files(root: Path) -> dict[str, int]:
    """What lies below `root`: all files `found` but the cache's, and what they are.

    `junk`: hidden ones and those of `__MACOSX`; `elsewhere`: in none of the data set's class
    folders, as a second copy one level deeper or a list of patients; `images`: the rest.
    """
    files = [file for file in root.rglob("*") if file.is_file() and not is_own(file)]
    junk = sum(is_junk(file, root) for file in files)
    images = sum(1 for _ in _files(find_split_root(root)))
    elsewhere = len(files) - junk - images
    return {"found": len(files), "junk": junk, "elsewhere": elsewhere, "images": images}


def _files(base: Path) -> Iterator[Path]:
    for folder in SPLIT_OF_FOLDER:
        for name in CLASSES:
            for file in (base / folder / name).glob("*"):
                if file.is_file() and not is_junk(file, base):
                    yield file


def is_junk(path: Path, root: Path) -> bool:
    """Return whether a path below `root` is hidden, or of those that macOS adds to archives."""
    parts = path.relative_to(root).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def _sha256(file: Path) -> str:
    return hashlib.sha256(read_file(file)).hexdigest()


def _row(path: str, listed_patient: str | None) -> tuple[str, int, str, str, str]:
    folder, class_name, file_name = path.split("/")
    match = PATIENT_PATTERN.match(file_name)
    patient = listed_patient or (match[0] if match else file_name)
    subtype = (match["kind"] or match["series"]) if match else ""
    return path, CLASSES.index(class_name), subtype, patient, SPLIT_OF_FOLDER[folder]
