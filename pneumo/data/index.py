"""Index of a data set: one row per image."""

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from pneumo.data.attributes import pseudonym, read_dicom
from pneumo.data.layouts import folders, published, table
from pneumo.data.layouts.folders import is_junk
from pneumo.data.layouts.table import LABELS_FILE, convert_values, read_columns
from pneumo.data.pixels import read_file
from pneumo.data.schema import ATTRIBUTES, COLUMNS, DICOM, FORMAT
from pneumo.inference.batches import map_in_threads
from pneumo.inference.decode import is_dicom
from pneumo.inference.untrusted import is_lateral
from pneumo.runtime.cache_entries import is_own
from pneumo.runtime.errors import UserError, quoted

PATIENTS_FILE = "patients.csv"
TABLES = (LABELS_FILE, *published.PUBLISHED_TABLES)

# Each of four name prefixes numbers its patients independently, so the prefix is part of the key.
PATIENT_PATTERN = re.compile(r"person\d+_(?P<kind>bacteria|virus)|(?P<series>(NORMAL2-)?IM)-\d+")


def find_base(root: Path) -> Path:
    """Return the folder of a data set: `root` or the shallowest one below it.

    It contains one of `TABLES` or the split folders. Kaggle's archive contains a second full copy
    one level deeper, hence the shallowest.

    Raises:
        UserError: There is no such folder.
    """
    tables = (
        file for name in TABLES for depth in ("", "*/", "*/*/") for file in root.glob(depth + name)
    )
    bases = [file.parent for file in tables if file.is_file() and not is_junk(file, root)]
    bases += folders.find_bases(root)
    if not bases:
        raise folders.no_base_error(root)
    return min(bases, key=lambda base: (len(base.parts), base))


def build_index(base: Path, positive: Collection[str] = ()) -> pd.DataFrame:
    """Index the images of a data set.

    Args:
        base: Folder as `find_base` returns it.
        positive: Labels of a table that mean pneumonia; none if it has only two.

    Returns:
        One row per image, sorted by path, with the columns `COLUMNS`:
            path: From `base`, with `/`.
            label: 0 normal, 1 pneumonia.
            subtype: From the table, or `bacteria`, `virus`, `IM` or `NORMAL2-IM` from the file
                name; '' if neither has one.
            patient: From the table or `patients.csv`, else the pseudonym of a DICOM file's patient,
                else from the file name.
            split: `train` or `test`, as published; '' in all rows of a table without splits.
            sha256: Of the file.
            `ATTRIBUTES`: From the table, or from a DICOM file.
            format: `DICOM`, or '' for any other format.

    Raises:
        UserError: There is no image, or an unknown folder. Or a name is not printable text, the
            disk cannot read a file, or a table does not match the images.
    """
    listing = _list_images(base, positive)
    paths = listing["path"]
    patients = _listed_patients(base, listing)
    described = map_in_threads(_describe, [base / path for path in paths])
    of_files = pd.DataFrame(described)
    salt = digest_of(of_files["unstored"])
    pseudonyms = [pseudonym(name, salt) if name else "" for name in of_files["patient_id"]]
    keys, kinds = zip(*map(parse_file_name, paths), strict=True)
    unknown = pd.Series("", index=listing.index)
    columns = {
        "path": paths,
        "label": listing["label"],
        "subtype": _first_known(listing.get("subtype", unknown), kinds),
        "patient": _first_known([patients.get(path, "") for path in paths], pseudonyms, keys),
        "split": listing.get("split", unknown),
        "sha256": of_files["sha256"],
        FORMAT: of_files[FORMAT],
        **{name: _first_known(listing.get(name, unknown), of_files[name]) for name in ATTRIBUTES},
    }
    return pd.DataFrame(columns, columns=COLUMNS)


def parse_file_name(path: str) -> tuple[str, str]:
    """Return the patient and the subtype that a file name contains; without one, itself and ''."""
    name = path.rpartition("/")[2]
    match = PATIENT_PATTERN.match(name)
    return (match[0], match["kind"] or match["series"]) if match else (name, "")


def _first_known(*columns: Iterable[str]) -> list[str]:
    """Return the first value of each row that is not '', or ''."""
    return [next(filter(None, values), "") for values in zip(*columns, strict=True)]


def table_of(base: Path) -> Path | None:
    """Return the table that lists the images of a data set, or None if its folders do."""
    return next((base / name for name in TABLES if (base / name).is_file()), None)


def default_positive(base: Path) -> tuple[str, ...]:
    """Return the labels of a published table that mean pneumonia; none for other data sets."""
    file = table_of(base)
    source = published.PUBLISHED_TABLES.get(file.name) if file else None
    return source.positive if source else ()


def _list_images(base: Path, positive: Collection[str]) -> pd.DataFrame:
    """Return the columns path and label, and those that a table or the folders have besides."""
    file = table_of(base)
    if file is None:
        if positive:
            raise UserError(
                f"positive requires a table of labels: {base} has class folders and no "
                f"{LABELS_FILE}. Omit positive, or add the table."
            )
        return folders.list_images(base)
    return (table if file.name == LABELS_FILE else published).list_images(file, positive)


def _listed_patients(base: Path, listing: pd.DataFrame) -> dict[str, str]:
    """Return path → patient, from the column of a table or from the data set's `patients.csv`."""
    file, paths = base / PATIENTS_FILE, listing["path"]
    if not file.is_file():
        return dict(zip(paths, listing["patient"], strict=True)) if "patient" in listing else {}
    if "patient" in listing:
        raise UserError(
            f"{base} must name patients once, but it has {PATIENTS_FILE} and a table with the "
            "column patient. Remove one of them."
        )
    rows = read_columns(file, ("path", "patient"))
    listed = dict(zip(rows["path"], rows["patient"].str.strip(), strict=True))
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
    return dict(zip(listed, convert_values(file, "patient", rows["patient"]), strict=True))


def _describe(file: Path) -> dict[str, str]:
    """Return sha256 and attributes of a file, and a second hash, which is stored nowhere.

    The salt of pseudonyms follows from the second one. From the first, which runs list, everybody
    who can read a run could compute it.
    """
    data = read_file(file)
    digest = hashlib.sha256(data)
    second = digest.copy()
    second.update(b"patients")
    attributes = read_dicom(data) or dict.fromkeys((*ATTRIBUTES, "patient_id"), "")
    return {
        "sha256": digest.hexdigest(),
        "unstored": second.hexdigest(),
        FORMAT: DICOM if is_dicom(data) else "",
        **attributes,
    }


def digest_of(files: Iterable[str]) -> str:
    """Return 16 hex digits that identify a set of files, given as their sha256, in any order."""
    return hashlib.sha256("\n".join(sorted(set(files))).encode()).hexdigest()[:16]


def digest(rows: pd.DataFrame) -> str:
    """Return 16 hex digits that identify an index's paths, labels, patients, splits and files.

    Sites count too, if any is known, because they can decide the folds. So do lateral views, if
    there are any, because they are left out.
    """
    columns = ["path", "label", "patient", "split", "sha256"]
    if "site" in rows and (rows["site"] != "").any():
        columns.append("site")
    if "view" in rows and (is_lateral_view := rows["view"].map(is_lateral)).any():
        rows = rows.assign(is_lateral=is_lateral_view)
        columns.append("is_lateral")
    text = rows[columns].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def has_unknown_patient(rows: pd.DataFrame) -> pd.Series:
    """Return whether each image's name contains no patient: bool, one per row.

    Such an image counts as a patient of its own.
    """
    names = rows["path"].str.rpartition("/")[2]
    # A file name may consist of the patient's key alone
    return (rows["patient"] == names) & ~names.str.match(PATIENT_PATTERN)


def count_files(root: Path, images: int) -> dict[str, int]:
    """Count the files below `root` by kind, without the cache's own ones.

    Args:
        root: Folder of a data set.
        images: Number of files in its index.

    Returns:
        `found`: all files. `junk`: hidden ones and those of `__MACOSX`. `images`: those in the
        index. `elsewhere`: the rest, such as a second copy one level deeper or a table.
    """
    files = [file for file in root.rglob("*") if file.is_file() and not is_own(file)]
    junk = sum(is_junk(file, root) for file in files)
    elsewhere = len(files) - junk - images
    return {"found": len(files), "junk": junk, "elsewhere": elsewhere, "images": images}
