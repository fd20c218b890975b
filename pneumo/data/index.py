"""Index of a data set: one row per image."""

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

# Folder → official split. Kaggle's 16 `val` images come from train, and are too few for
# validation.
SPLIT_OF_FOLDER = {"train": "train", "val": "train", "test": "test"}

COLUMNS = ["path", "label", "subtype", "patient", "split", "sha256"]

# Each of four name prefixes numbers its patients independently, so the prefix is part of the key.
PATIENT_PATTERN = re.compile(r"person\d+_(?P<kind>bacteria|virus)|(?P<series>(NORMAL2-)?IM)-\d+")


def build_index(root: Path) -> pd.DataFrame:
    """Index the images below a folder.

    Args:
        root: Any folder above `{train,val,test}/{NORMAL,PNEUMONIA}`.

    Returns:
        One row per image, sorted by path, with the columns `COLUMNS`:
            path: From the folder that contains the splits, with `/`.
            label: 0 normal, 1 pneumonia.
            subtype: `bacteria`, `virus`, `IM` or `NORMAL2-IM`; '' if the name contains none.
            patient: From `patients.csv` if it lists the image, else from the file name.
            split: `train` or `test`, as published.
            sha256: Of the file.

    Raises:
        UserError: There is no image, or an unknown folder. Or a name is not printable text, the
            disk cannot read a file, or `patients.csv` does not match the images.
    """
    base = find_split_root(root)
    _require_known_folders(base)
    files = {file.relative_to(base).as_posix(): file for file in _files(base)}
    if not files:
        raise UserError(f"{base} has the folders of a data set, but no images. Add images to them.")
    paths = sorted(files)
    require_text(paths)
    patients = _listed_patients(base, paths)
    digests = map_in_threads(_sha256, [files[path] for path in paths])
    rows = [
        (*_parse_path(path, patients.get(path)), digest)
        for path, digest in zip(paths, digests, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _listed_patients(base: Path, paths: list[str]) -> dict[str, str]:
    """Return path → patient from the data set's own `patients.csv`; empty without one."""
    file = base / "patients.csv"
    if not file.is_file():
        return {}
    try:
        table = read_table(file)
    except ValueError as error:
        raise UserError(
            f"{file} must be a CSV in UTF-8 with the columns path and patient: it cannot be read "
            f"({str(error).strip()}). Save it in that format."
        ) from None
    if missing := {"path", "patient"} - set(table):
        raise UserError(
            f"{file} must be a CSV with the columns path and patient: it has no {min(missing)}, "
            f"and its first line is '{quoted(','.join(table))}'. Add the column."
        )
    rows = list(zip(table["path"], table["patient"], strict=True))
    listed = dict(rows)
    if len(listed) < len(rows) or not all(listed.values()):
        raise UserError(
            f"{file} must list each image at most once, with a patient. Remove duplicate paths, "
            "and add missing patients."
        )
    if unknown_paths := sorted(listed.keys() - set(paths)):
        raise UserError(
            f"{file} must list images of the data set: '{quoted(unknown_paths[0])}' is not one. "
            f"Use paths relative to the folder of the file, for example {paths[0]}."
        )
    return listed


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV table in UTF-8, every value as text.

    The patients '007', '07' and '7' stay distinct, and 'NA', 'nan' and '' stay text.

    Raises:
        ValueError: The file is not such a table.
    """
    return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def find_split_root(root: Path) -> Path:
    """Return the folder that contains the split folders: `root` or the shallowest one below it.

    Kaggle's archive contains a second full copy one level deeper, hence the shallowest.

    Raises:
        UserError: There is no such folder.
    """
    at_top = [root / folder / name for folder in SPLIT_OF_FOLDER for name in CLASSES]
    below = (folder for name in CLASSES for folder in root.rglob(name))  # rglob follows no links
    bases = {
        folder.parents[1]
        for folder in (*at_top, *below)
        if folder.is_dir() and folder.parent.name in SPLIT_OF_FOLDER and not is_junk(folder, root)
    }
    if not bases:
        raise UserError(
            f"{root} must contain the folders train/NORMAL, train/PNEUMONIA, test/NORMAL and "
            f"test/PNEUMONIA: it contains {_list_folders(root)}. Pass another folder or archive, "
            "or rename the folders."
        )
    return min(bases, key=lambda base: (len(base.parts), base))


def _list_folders(root: Path, max_listed: int = 6) -> str:
    """Return the folders in a folder, and in those, as text for a message."""
    folders = [
        folder for pattern in ("*", "*/*") for folder in root.glob(pattern) if folder.is_dir()
    ]
    names = sorted(
        folder.relative_to(root).as_posix() for folder in folders if not is_junk(folder, root)
    )
    remainder = [f"{len(names) - max_listed} more"] if len(names) > max_listed else []
    return ", ".join([*names[:max_listed], *remainder]) or "no folders"


def _require_known_folders(base: Path) -> None:
    splits = [base / name for name in SPLIT_OF_FOLDER if (base / name).is_dir()]
    unknown = [
        folder for split in splits for folder in split.iterdir() if folder.name not in CLASSES
    ]
    others = (folder for folder in base.iterdir() if folder.name not in SPLIT_OF_FOLDER)
    unknown += [folder for folder in others if any((folder / name).is_dir() for name in CLASSES)]
    names = [folder.relative_to(base).as_posix() for folder in unknown if folder.is_dir()]
    if names := sorted(folder for folder in names if not is_junk(base / folder, base)):
        raise UserError(
            f"{base} may contain only the classes NORMAL and PNEUMONIA, in folders train, val and "
            f"test: found {', '.join(names[:6])}. Rename these folders, or move them elsewhere."
        )


def require_text(paths: Collection[str]) -> None:
    """Raise `UserError` if a path cannot be printed and stored as text."""
    if bad := [path for path in paths if not is_printable_text(path)]:
        raise UserError(
            f"file names must be UTF-8 without control characters: {len(bad)} of {len(paths)} "
            f"are not, the first is '{quoted(bad[0])}'. Rename them, for example with "
            "convmv -r -f latin1 -t utf8 --notest FOLDER"
        )


def digest(rows: pd.DataFrame) -> str:
    """Return 16 hex digits that identify an index's paths, labels, patients, splits and files."""
    text = rows[["path", "label", "patient", "split", "sha256"]].to_csv(
        index=False, lineterminator="\n"
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def has_unknown_patient(rows: pd.DataFrame) -> pd.Series:
    """Return whether each image's name contains no patient: bool, one per row.

    Such an image counts as a patient of its own.
    """
    names = rows["path"].str.rpartition("/")[2]
    # A file name may consist of the patient's key alone
    return (rows["patient"] == names) & ~names.str.match(PATIENT_PATTERN)


def count_files(root: Path) -> dict[str, int]:
    """Count the files below `root` by kind, without the cache's own ones.

    Returns:
        `found`: all files. `junk`: hidden ones and those of `__MACOSX`. `elsewhere`: those outside
        the class folders, such as a second copy one level deeper or a list of patients. `images`:
        the rest.
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
    """Return whether a path is hidden, or belongs to what macOS adds to archives.

    Args:
        path: A path below `root`.
        root: Folder above the path; hidden folders above `root` do not count.
    """
    parts = path.relative_to(root).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def _sha256(file: Path) -> str:
    return hashlib.sha256(read_file(file)).hexdigest()


def _parse_path(path: str, listed_patient: str | None) -> tuple[str, int, str, str, str]:
    folder, class_name, file_name = path.split("/")
    match = PATIENT_PATTERN.match(file_name)
    patient = listed_patient or (match[0] if match else file_name)
    subtype = (match["kind"] or match["series"]) if match else ""
    return path, CLASSES.index(class_name), subtype, patient, SPLIT_OF_FOLDER[folder]
