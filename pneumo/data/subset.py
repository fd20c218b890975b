"""A copy of a data set with a selection of its test images."""

import shutil
from pathlib import Path
from uuid import uuid4

import pandas as pd

from pneumo.data import index
from pneumo.data.attributes import PSEUDONYM_PREFIX
from pneumo.data.dataset import Dataset
from pneumo.data.layouts.table import read_table, write_listing
from pneumo.data.pixels import read_file
from pneumo.data.schema import CLASSES
from pneumo.runtime.console import track
from pneumo.runtime.errors import UserError, quoted


def write_subset(dataset: Dataset, list_file: Path, out: Path) -> None:
    """Copy all training images of a data set, and those of its test images that a file lists.

    Files are copied and not linked, so that a later change of the copy changes neither the original
    nor the cache. The folder appears when it is complete, or not at all.

    Args:
        dataset: The data set.
        list_file: Text file in UTF-8 with one path per line, as in the data set: `test/CLASS/FILE`.
        out: Folder to write: new or empty, in a folder that exists.

    Raises:
        UserError: A line names no test image of the data set, or a class has no test image left.
            The data set is synthetic, so that its copy would pass for real images. A file cannot be
            read. Or `out` is not free or cannot be written.
    """
    if dataset.is_synthetic:
        raise UserError(
            f"--test_images requires real images: {dataset.name} is synthetic. Pass another "
            "--data, or omit --test_images and --out."
        )
    rows = _select(dataset, list_file)
    draft = out.with_name(f".{out.name}.{uuid4().hex}")
    try:
        _require_free(out)
        _copy(dataset.base, rows, draft)
        draft.rename(out)  # replaces an empty folder, and raises if it is no longer empty
    except OSError as error:
        raise UserError(
            f"--out must be a writable folder: got '{quoted(out)}' ({error.strerror}). Check the "
            "free disk space and the permissions, or choose another folder."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _select(dataset: Dataset, list_file: Path) -> pd.DataFrame:
    """Return the rows of the training images and of the test images that are listed."""
    rows, names = dataset.rows, _read_list(list_file)
    is_test = rows["split"] == "test"
    if unknown := sorted(names - set(rows["path"][is_test])):
        raise UserError(
            f"--test_images must list test images of {dataset.name}, such as "
            f"'{quoted(rows['path'][is_test].iloc[0])}': "
            f"{len(unknown)} of {len(names)} lines match none, the first is "
            f"'{quoted(unknown[0])}'. Pass the data set of the list, or correct the list."
        )
    is_listed = rows["path"].isin(names)
    for label, class_name in enumerate(CLASSES):
        if not (is_listed & (rows["label"] == label)).any():
            raise UserError(
                f"--test_images must list images of both classes: '{quoted(list_file)}' lists none "
                f"in test/{class_name}. Add some."
            )
    return rows[is_listed | ~is_test]


def _read_list(file: Path) -> set[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--test_images must be a text file in UTF-8 with one path per line: got "
            f"'{quoted(file)}' ({getattr(error, 'strerror', None) or error}). Check the file."
        ) from None
    return {line.strip() for line in lines} - {""}


def _require_free(out: Path) -> None:
    is_free = not any(out.iterdir()) if out.is_dir() else not out.exists()
    if not is_free or out.is_symlink() or not out.parent.is_dir():
        raise UserError(
            "--out must be a new or empty folder in an existing folder: got "
            f"'{quoted(out)}'. Choose another folder."
        )


def _copy(base: Path, rows: pd.DataFrame, folder: Path) -> None:
    """Copy images, and the lines of `patients.csv` about them, or a table of them."""
    paths = rows["path"].tolist()
    for path in track(paths, len(paths), "Copying"):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(read_file(base / path))
    patients_file = base / index.PATIENTS_FILE
    if index.table_of(base):
        write_listing(rows, folder)
    elif patients_file.is_file():
        listed = read_table(patients_file)
        listed[listed["path"].isin(paths)].to_csv(folder / patients_file.name, index=False)
    elif (is_pseudonym := rows["patient"].str.startswith(PSEUDONYM_PREFIX)).any():
        # They follow from all files, and the copy has fewer
        listed = rows.loc[is_pseudonym, ["path", "patient"]]
        listed.to_csv(folder / patients_file.name, index=False)
