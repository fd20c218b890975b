"""Data sets whose images and labels are listed in a table, `labels.csv` next to the images."""

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path, PurePosixPath

import pandas as pd

from pneumo.data.attributes import MAX_LENGTH, format_age, format_sex
from pneumo.data.schema import ATTRIBUTES, CLASSES, COLUMNS, FORMAT, SPLITS
from pneumo.runtime.errors import UserError, is_printable_text, quoted

LABELS_FILE = "labels.csv"

REQUIRED = ("path", "label")
OPTIONAL = ("patient", "split", "subtype", *ATTRIBUTES)

# Labels that need no mapping → label of the index
LABELS = {**{name.lower(): label for label, name in enumerate(CLASSES)}, "0": 0, "1": 1}
SEPARATOR = "|"  # between several labels of one image
MAX_LISTED = 6  # labels in a message


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV table in UTF-8, every value as text.

    The patients '007', '07' and '7' stay distinct, and 'NA', 'nan' and '' stay text.

    Raises:
        ValueError: The file is not such a table.
    """
    return pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def read_columns(file: Path, required: Collection[str]) -> pd.DataFrame:
    """Read a table that must have some columns.

    Raises:
        UserError: The file is not a table, or lacks one of them.
    """
    names = " and ".join(required)
    try:
        table = read_table(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} must be a CSV in UTF-8 with the columns {names}: it cannot be read "
            f"({str(error).strip()}). Check its permissions. Save it in that format."
        ) from None
    if missing := [name for name in required if name not in table]:
        raise UserError(
            f"{file} must be a CSV with the columns {names}: it has no {missing[0]}, "
            f"and its first line is '{quoted(','.join(table))}'. Add the column."
        )
    return table


def list_images(file: Path, positive: Collection[str]) -> pd.DataFrame:
    """List the images of a data set, as `labels.csv` describes them.

    Args:
        file: The table.
        positive: Labels that mean pneumonia, see `to_listing`.

    Returns:
        See `to_listing`.

    Raises:
        UserError: The table is invalid, or lists a file that does not exist.
    """
    table = read_columns(file, REQUIRED)
    table["path"] = [_normalize(path) for path in table["path"]]
    missing = [path for path in table["path"] if not _is_file_below(file.parent, path)]
    if missing:
        raise UserError(
            f"{file} must list files in its own folder: {len(missing)} of {len(table)} do not "
            f"exist there, the first is '{quoted(missing[0])}'. Use paths relative to the folder "
            "of the table, or add the files."
        )
    return to_listing(file, table, positive)


def _normalize(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).as_posix()


def _is_file_below(base: Path, path: str) -> bool:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not is_printable_text(path):
        return False
    return os.path.isfile(base / parts)  # unlike Path.is_file, it takes any length


def to_listing(file: Path, table: pd.DataFrame, positive: Collection[str]) -> pd.DataFrame:
    """Return a table's images with the labels, splits and attributes of an index.

    Args:
        file: The file of the table, for messages.
        table: Columns `REQUIRED` and any of `OPTIONAL`, every value text. A label is one of
            `LABELS`, or several labels between `SEPARATOR`, which need `positive`.
        positive: Labels that mean pneumonia. All others then mean normal.

    Returns:
        Columns path, label, and those of `OPTIONAL` that the table has with any value; sorted by
        path.

    Raises:
        UserError: An image is listed twice, or a value is not permitted.
    """
    if table.empty:
        raise UserError(f"{file} must list images, but it has no rows. Add some.")
    _require_unique(file, table)
    listing = pd.DataFrame(
        {"path": table["path"], "label": _map_labels(file, table["label"], positive)}
    )
    for name in OPTIONAL:
        if name in table and (table[name] != "").any():
            listing[name] = convert_values(file, name, table[name])
    return listing.sort_values("path", ignore_index=True)


def _require_unique(file: Path, table: pd.DataFrame) -> None:
    repeated = table[table["path"].duplicated(keep=False)]
    if repeated.empty:
        return
    first = repeated["path"].iloc[0]
    labels = repeated["label"][repeated["path"] == first].unique()
    kind = "with different labels" if len(labels) > 1 else "twice"
    raise UserError(
        f"{file} must list each image once: '{quoted(first)}' is listed {kind}. Remove the rows "
        "that are wrong."
    )


def _map_labels(file: Path, labels: pd.Series, positive: Collection[str]) -> list[int]:
    parts = [[label.strip() for label in text.split(SEPARATOR)] for text in labels]
    found = sorted({label for of_image in parts for label in of_image})
    if not positive:
        if unknown := [label for label in found if label.lower() not in LABELS]:
            raise UserError(
                f"{file} may contain only the labels NORMAL and PNEUMONIA, or 0 and 1: found "
                f"{_list(unknown)}. Rename the labels, or name those that mean pneumonia, for "
                f"example -P positive={_example(found)}; all others then mean normal."
            )
        numbers = [{LABELS[label.lower()] for label in of_image} for of_image in parts]
        if any(len(of_image) > 1 for of_image in numbers):
            raise UserError(
                f"{file} must have one class for each image: an image has the labels 0 and 1, or "
                "NORMAL and PNEUMONIA. Correct its label."
            )
        return [min(of_image) for of_image in numbers]
    if count := sum(not any(of_image) for of_image in parts):
        raise UserError(
            f"{file} must have a label in every row: {count} rows have none. Add the labels, or "
            "remove these rows."
        )
    if absent := sorted(set(positive) - set(found)):
        raise UserError(
            f"positive must name labels of {file}: '{quoted(absent[0])}' is not one. It contains "
            f"{_list(found)}."
        )
    return [int(any(label in positive for label in of_image)) for of_image in parts]


def _list(labels: list[str]) -> str:
    more = f" and {len(labels) - MAX_LISTED} more" if len(labels) > MAX_LISTED else ""
    return ", ".join(f"'{quoted(label)}'" for label in labels[:MAX_LISTED]) + more


def _example(labels: list[str]) -> str:
    likely = [label for label in labels if "pneumonia" in label.lower()]
    return quoted((likely or labels)[0]) or "LABEL"


def convert_values(file: Path, name: str, values: pd.Series) -> list[str]:
    """Return the values of an optional column as an index has them.

    Args:
        file: The file of the table, for messages.
        name: Name of the column.
        values: Text of each row.

    Raises:
        UserError: A value is not permitted.
    """
    rule, convert = RULES.get(name, (TEXT_RULE, _to_text))
    values = values.str.strip()
    converted = [convert(value) for value in values]
    for value, result in zip(values, converted, strict=True):
        if result == "" and (value or name in ("split", "patient")):
            raise UserError(f"{file} must have {rule} in the column {name}: got '{quoted(value)}'.")
    return converted


def _to_text(value: str, max_length: int = MAX_LENGTH) -> str:
    return value if len(value) <= max_length and is_printable_text(value) else ""


MAX_PATIENT_LENGTH = 255  # characters
TEXT_RULE = f"text of at most {MAX_LENGTH} characters"
RULES: dict[str, tuple[str, Callable[[str], str]]] = {
    "age": ("an age in years, or such as 18M,", format_age),
    "sex": ("M, F or O", format_sex),
    # A file name may stand for a patient
    "patient": (
        f"text of at most {MAX_PATIENT_LENGTH} characters",
        partial(_to_text, max_length=MAX_PATIENT_LENGTH),
    ),
    "split": ("train, val or test in every row", lambda value: SPLITS.get(value.lower(), "")),
}


def write_listing(rows: pd.DataFrame, folder: Path) -> None:
    """Write an index as `labels.csv` of a folder, so that the folder is a data set."""
    table = rows.assign(label=[CLASSES[label] for label in rows["label"]])
    names = [name for name in COLUMNS if name not in ("sha256", FORMAT)]
    table[names].to_csv(folder / LABELS_FILE, index=False)
