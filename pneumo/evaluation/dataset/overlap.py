"""Overlap of an evaluated split with the images and patients that a model was made with."""

from dataclasses import dataclass

import pandas as pd

from pneumo.data.dataset import Dataset
from pneumo.data.index import has_unknown_patient


@dataclass(frozen=True)
class Overlap:
    """Images of a split that were used to make a model.

    Two images are the same if their files are identical, byte for byte. An image whose name
    contains no patient shares none with any other image.

    Attributes:
        total: Number of images of the split, unreadable ones included.
        images: Number of them that are training or validation images of the model.
        patients: Number of them whose patient has training or validation images.
        own_test: Number of them that are test images of the data set that made the model.
        is_own_test: Whether the split is exactly the test split of that data set.
    """

    total: int
    images: int
    patients: int
    own_test: int
    is_own_test: bool

    @property
    def is_external(self) -> bool:
        """Whether none of the images, and none of their patients, was used to make the model."""
        return not (self.images or self.patients or self.own_test)

    def counts(self) -> dict[str, int]:
        """Return the counts that `metrics.json` stores."""
        return {"images": self.images, "patients": self.patients, "own_test": self.own_test}


def find_overlap(
    files: tuple[pd.DataFrame, pd.DataFrame] | None, dataset: Dataset, split: str
) -> Overlap | None:
    """Compare a split with the files that a model was made with.

    Args:
        files: The model's training and validation files (columns patient and sha256), and the test
            files of its data set (column sha256); None if they are not known.
        dataset: The data set of the split.
        split: `train`, `val` or `test`.

    Returns:
        The overlap, or None if the files are not known.
    """
    if files is None:
        return None
    used_files, test_files = files
    rows = dataset.rows[dataset.rows["split"] == split]
    known_patients = rows["patient"][~has_unknown_patient(rows)]
    return Overlap(
        total=len(rows),
        images=int(rows["sha256"].isin(used_files["sha256"]).sum()),
        patients=int(known_patients.isin(used_files["patient"]).sum()),
        own_test=int(rows["sha256"].isin(test_files["sha256"]).sum()),
        is_own_test=split == "test" and set(rows["sha256"]) == set(test_files["sha256"]),
    )
