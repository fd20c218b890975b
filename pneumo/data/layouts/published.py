"""Published data sets that come with a table of their own, read as they are.

Only the images that are in the folder count, because most people have a part of them.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pneumo.data.attributes import format_age
from pneumo.data.layouts.folders import is_junk
from pneumo.data.layouts.table import read_columns, to_listing
from pneumo.runtime.console import echo
from pneumo.runtime.errors import UserError

# Train and test of NIH ChestX-ray14 by patient, one file name per line
NIH_TEST_LIST = "test_list.txt"


@dataclass(frozen=True)
class PublishedTable:
    """A published table of images and labels.

    Attributes:
        title: Name of the data set.
        url: Address of the data set.
        license: License or terms of use.
        images: Number of images in the whole data set.
        required: Columns that are read.
        positive: Labels that mean pneumonia unless the user names others; see
            `index.default_positive`.
        convert: Function of the folder and the table, which returns the columns of `labels.csv`.
    """

    title: str
    url: str
    license: str
    images: int
    required: tuple[str, ...]
    positive: tuple[str, ...]
    convert: Callable[[Path, pd.DataFrame], pd.DataFrame]


def _convert_rsna(base: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per image; the table has one per opacity, which all have Target 1."""
    targets = table.groupby("patientId", as_index=False)["Target"].max()
    return pd.DataFrame(
        {
            "path": _paths(base, targets["patientId"] + ".dcm"),
            "label": targets["Target"],
            "patient": targets["patientId"],
        }
    )


def _convert_nih(base: Path, table: pd.DataFrame) -> pd.DataFrame:
    ages = table.get("Patient Age", pd.Series("", table.index))
    sex = "Patient Sex" if "Patient Sex" in table else "Patient Gender"  # by version of the table
    listing = pd.DataFrame(
        {
            "path": _paths(base, table["Image Index"]),
            "label": table["Finding Labels"],
            "patient": table["Patient ID"],
            "age": ages.where(ages.map(format_age) != "", ""),  # some are above 400 years
            "sex": table.get(sex, ""),
            "view": table.get("View Position", ""),
        }
    )
    test_list = base / NIH_TEST_LIST
    if test_list.is_file():
        try:
            tested = test_list.read_text().split()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{test_list} must be a text file with one file name per line: it cannot be read "
                f"({error}). Check its permissions, or download it again."
            ) from None
        is_test = table["Image Index"].isin(tested)
        listing["split"] = is_test.map({True: "test", False: "train"})
    return listing


def _paths(base: Path, names: pd.Series) -> list[str]:
    """Return the path of each file below a folder, '' if it is not there.

    Of several files with a name the shallowest counts.
    """
    suffixes = {Path(name).suffix for name in names}
    files = [file for suffix in sorted(suffixes) for file in base.rglob(f"*{suffix}")]
    files = [file for file in files if not is_junk(file, base)]
    files.sort(key=lambda file: (-len(file.parts), file))  # the shallowest one remains
    path_of = {file.name: file.relative_to(base).as_posix() for file in files}
    return [path_of.get(name, "") for name in names]


_NIH = PublishedTable(
    title="NIH ChestX-ray14",
    url="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    license="Wang et al., CVPR 2017, NIH Clinical Center; see the data set's own terms",
    images=112_120,
    required=("Image Index", "Finding Labels", "Patient ID"),
    positive=("Pneumonia",),  # against all other images, as Rajpurkar et al. (CheXNet, 2017)
    convert=_convert_nih,
)

# File name of the table → the data set
PUBLISHED_TABLES = {
    "stage_2_train_labels.csv": PublishedTable(
        title="RSNA Pneumonia Detection",
        url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        # Shih et al., Radiology: Artificial Intelligence 2019
        license="RSNA, 2018, from images of NIH ChestX-ray14; see the rules of the challenge",
        images=26_684,
        required=("patientId", "Target"),
        positive=(),
        convert=_convert_rsna,
    ),
    "Data_Entry_2017.csv": _NIH,
    "Data_Entry_2017_v2020.csv": _NIH,
}


def list_images(file: Path, positive: Collection[str]) -> pd.DataFrame:
    """List the images of a published data set that are below the folder of its table.

    Args:
        file: The table, one of `PUBLISHED_TABLES`.
        positive: Labels that mean pneumonia, see `table.to_listing`.

    Returns:
        See `table.to_listing`.

    Raises:
        UserError: The table is not the published one, or no image is in the folder.
    """
    source = PUBLISHED_TABLES[file.name]
    table = source.convert(file.parent, read_columns(file, source.required))
    present = table[table["path"] != ""].reset_index(drop=True)
    if present.empty:
        raise UserError(
            f"{file} lists {len(table)} images of {source.title}, but its folder contains none of "
            "them. Unpack the images there."
        )
    if len(present) < source.images:
        echo(f"{source.title}: {len(present):,} of its {source.images:,} images are here")
    return to_listing(file, present, positive)
