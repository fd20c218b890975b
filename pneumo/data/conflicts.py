"""Images that contradict each other: one file with two labels, or both trained on and tested."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from pneumo.data.pixels import UnreadableImage, decode, read
from pneumo.errors import Mistake, shown

# The column of an index that the places of one file must agree in, and what else is said
RULES = {
    "label": ("under both labels", "one of the labels is wrong"),
    "split": ("in train and in test", "what is tested would have been trained on"),
}


def require_none(base: Path, rows: pd.DataFrame) -> None:
    """Raises `Mistake` where an index, not yet cut for validation, has such images."""
    for column, (where, why) in RULES.items():
        if pairs := list(_pairs(base, rows, column)):
            first, second = (shown(path) for path in pairs[0])
            raise Mistake(
                f"no image may be {where} ({why}), and {len(pairs)} {_are(pairs)}, the first as "
                f"{first} and {second}; remove one of each pair: explore lists them all, in "
                "duplicates.csv"
            )


def _pairs(base: Path, rows: pd.DataFrame, column: str) -> Iterator[tuple[str, str]]:
    """Of each image whose places differ in `column`: the first two that do."""
    values = rows.groupby("sha256")[column].transform("nunique")
    for _, places in rows[values > 1].groupby("sha256", sort=False):
        first, second = places.drop_duplicates(column)["path"]
        if _is_image(base / first):  # else it is one of the unreadable files
            yield first, second


def _is_image(file: Path) -> bool:
    try:
        decode(read(file), 8)
    except UnreadableImage:
        return False
    return True


def _are(pairs: list) -> str:
    return "is" if len(pairs) == 1 else "are"
