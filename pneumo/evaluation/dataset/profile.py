"""Profile of a data set: properties of its files and statistics, computed before training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import laplace
from sklearn.metrics import roc_auc_score

from pneumo.data.dataset import DecodedDataset
from pneumo.data.index import has_unknown_patient
from pneumo.data.schema import CLASSES
from pneumo.data.split import shared_patients
from pneumo.evaluation.dataset.shortcuts import (
    cross_validated_auc,
    has_enough_patients,
    measure_attribute_leakage,
)
from pneumo.inference.batches import map_batches, map_in_threads
from pneumo.inference.decode import read_size
from pneumo.inference.untrusted import LATERAL_REASON

# Side in pixels at which intensity and sharpness are measured, so that they are comparable
PROFILE_SIZE = 224
SPLITS = ("train", "val", "test")

# Properties of a file that are known without a look at the lungs
METADATA_TITLES = {
    "pixels": "size in pixels (width × height)",
    "aspect": "aspect ratio (width / height)",
    "bytes": "file size in bytes",
    "mean": "intensity (mean pixel value)",
    "sharpness": "sharpness",
}

# Pillow's modes without color
GRAYSCALE_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "LA", "La")


def profile_files(images: DecodedDataset) -> pd.DataFrame:
    """Describe each file in a class folder.

    Args:
        images: The data set, decoded at `PROFILE_SIZE`.

    Returns:
        One row per file, with the columns of the index and:
            class: Name of the class.
            bytes: Size of the file.
            width, height: Size in pixels, from the file's header.
            colour: `grey`, or Pillow's name of the mode, as `RGB`.
            pixels: Width times height.
            aspect: Width / height.
            mean: Mean of the pixels of `images`, 0 black to 255 white.
            sharpness: Variance of their Laplacian (Pech-Pacheco et al., ICPR 2000).
            unknown: Whether the file name contains no patient.
            error: Reason why the file is unreadable, else ''.
        For an unreadable file `colour` is '', and what depends on the image is NaN.
    """
    rows, base = images.dataset.rows, images.dataset.base
    headers = list(map_in_threads(read_file_header, [base / path for path in rows["path"]]))
    statistics = np.concatenate(list(map_batches(_pixel_statistics, images.pixels)))
    files = rows.assign(
        split=pd.Categorical(rows["split"], SPLITS).remove_unused_categories(),
        **{"class": [CLASSES[label] for label in rows["label"]]},
        **pd.DataFrame(headers, columns=["bytes", "width", "height", "colour"], index=rows.index),
        **pd.DataFrame(statistics, columns=["mean", "sharpness"], index=rows.index),
        unknown=has_unknown_patient(rows),
        error=[images.unreadable.get(path, "") for path in rows["path"]],
    )
    files["pixels"] = files["width"] * files["height"]
    files["aspect"] = files["width"] / files["height"]
    numeric = ["width", "height", "pixels", "aspect", "mean", "sharpness"]
    files[numeric] = files[numeric].astype(float).where(files["error"] == "")
    files["colour"] = files["colour"].where(files["error"] == "", "")
    return files


def read_file_header(file: Path) -> tuple[int, int, int, str]:
    """Return bytes, width, height and color; 0, 0 and '' for the last three if unreadable."""
    size = file.stat().st_size
    try:
        width, height, mode = read_size(file)
        return size, width, height, "grey" if mode in GRAYSCALE_MODES else mode
    except Exception:  # `DecodedDataset.unreadable` has the reason
        return size, 0, 0, ""


def _pixel_statistics(pixels: np.ndarray) -> np.ndarray:
    """Compute mean and sharpness of each image: float64, shape (images, 2)."""
    return np.array([(image.mean(), laplace(image.astype(np.float32)).var()) for image in pixels])


def readable_files(files: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of readable images."""
    return files[files["error"] == ""]


def color_images(files: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of images that are stored in color, even if they look gray."""
    return files[~files["colour"].isin(["", "grey"])]


def count_images(files: pd.DataFrame) -> pd.DataFrame:
    """Count images and patients: columns split, class, subtype ('' unknown), images, patients."""
    groups = readable_files(files).groupby(["split", "class", "subtype"], observed=True)["patient"]
    return groups.agg(images="size", patients="nunique").reset_index()


def images_per_patient(files: pd.DataFrame) -> pd.Series:
    """Count the images of each patient: int, index (split, patient)."""
    return readable_files(files).groupby(["split", "patient"], observed=True).size()


def find_duplicates(files: pd.DataFrame) -> pd.DataFrame:
    """Find the images whose file is identical to another one, byte for byte.

    Returns:
        Columns group (from 1), path, split, class, patient; sorted by group and path.
    """
    groups = readable_files(files).groupby("sha256")["path"]
    duplicates = readable_files(files)[groups.transform("size") > 1].sort_values("path")
    number = 1 + pd.factorize(duplicates["sha256"])[0]
    duplicates = duplicates.assign(group=number).sort_values(["group", "path"])
    return duplicates[["group", "path", "split", "class", "patient"]]


def count_duplicates(duplicates: pd.DataFrame) -> dict[str, int]:
    """Count the groups and files that `find_duplicates` returns.

    Returns:
        `groups`, `files`, and the groups `across_splits`, `across_classes`, `across_patients`.
    """
    groups = duplicates.groupby("group")
    across = {
        f"across_{name}": int((groups[column].nunique() > 1).sum())
        for name, column in (("splits", "split"), ("classes", "class"), ("patients", "patient"))
    }
    return {"groups": groups.ngroups, "files": len(duplicates), **across}


def constant_columns(files: pd.DataFrame) -> dict[str, Any]:
    """Return the value of each of `METADATA_TITLES` and `colour` that all images share."""
    images = readable_files(files)
    return {
        name: images[name].tolist()[0]
        for name in (*METADATA_TITLES, "colour")
        if images[name].nunique() == 1
    }


def value_ranges(files: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Compute minimum, median and maximum of `METADATA_TITLES` in each group.

    Args:
        files: Table of `profile_files`.
        by: Columns to group by.

    Returns:
        Index `by`, columns (name, statistic).
    """
    groups = readable_files(files).groupby(by, observed=True)
    return groups[list(METADATA_TITLES)].agg(["min", "median", "max"])


def measure_metadata_leakage(files: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Measure how well file metadata alone predict the label and the split.

    See `shortcuts.cross_validated_auc`.

    Args:
        files: Table of `profile_files`.

    Returns:
        Target → values. The targets are:
            label: Pneumonia or normal, of the images outside test, or of test if it is alone.
            split: Test or other images, which needs both.
            split_normal, split_pneumonia: The same within a class.
        The values are `auc` of the classifier, its 95 % confidence interval by patient (`auc_low`,
        `auc_high`), and the AUC of each of `METADATA_TITLES` alone. That is above 0.5 if the value
        is greater in pneumonia, or in test. A target is left out if one of its sides has fewer
        patients than `shortcuts.N_FOLDS`.
    """
    images = readable_files(files)
    is_test = images["split"] == "test"
    targets = {"label": (images if is_test.all() else images[~is_test], "label")}
    images = images.assign(test=is_test.astype(int))
    targets["split"] = images, "test"
    targets |= {
        f"split_{name.lower()}": (images[images["class"] == name], "test") for name in CLASSES
    }
    return {
        name: _metadata_aucs(of_target, of_target[target].to_numpy())
        for name, (of_target, target) in targets.items()
        if has_enough_patients(of_target[target], of_target["patient"])
    }


def _metadata_aucs(images: pd.DataFrame, target: np.ndarray) -> dict[str, float]:
    values = images[list(METADATA_TITLES)].to_numpy()
    return {
        **cross_validated_auc(values, target, images["patient"]),
        **{name: float(roc_auc_score(target, images[name])) for name in METADATA_TITLES},
    }


def file_issues(files: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield path and description of each file that differs from what is expected."""
    for row in files.itertuples():
        if row.error:
            yield row.path, f"unreadable: {row.error}"
    for path in files["path"][files["unknown"]]:
        yield path, "the file name contains no patient id: counted as a separate patient"
    if "colour" not in constant_columns(files):
        for row in color_images(files).itertuples():
            yield row.path, f"stored in color ({row.colour}): decoded as grayscale"


def compute_statistics(files: pd.DataFrame, pixels: np.ndarray) -> dict[str, Any]:
    """Compute all statistics of a data set.

    Args:
        files: Table of `profile_files`.
        pixels: The images at `PROFILE_SIZE`, in the order of `files`: uint8.
    """
    images, sizes = readable_files(files), images_per_patient(files)
    is_trained = (files["error"] == "") & (files["split"] != "test")
    classes = images.groupby(["split", "class"], observed=True)["patient"]
    return {
        "images": len(images),
        "patients": images["patient"].nunique(),
        "patients_with_several_images": int((sizes > 1).sum()),
        "max_images_per_patient": int(sizes.max()),
        "unreadable": len(files) - len(images),
        "lateral": int((files["error"] == LATERAL_REASON).sum()),
        "unknown_patients": int(files["unknown"].sum()),
        "shared_patients": shared_patients(images),
        "coloured": color_images(files)["class"].value_counts().to_dict(),
        "constant": constant_columns(files),
        "classes": {
            f"{split}_{name.lower()}": {"images": len(rows), "patients": rows.nunique()}
            for (split, name), rows in classes
        },
        "duplicates": count_duplicates(find_duplicates(files)),
        "shortcut_auc": measure_metadata_leakage(files),
        "attributes": measure_attribute_leakage(files[is_trained], pixels, list(METADATA_TITLES)),
    }


def to_metrics(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return the statistics as MLflow metrics, by which data sets can be compared."""
    scalar_names = (
        *("images", "patients", "patients_with_several_images", "max_images_per_patient"),
        *("unreadable", "unknown_patients"),
    )
    return {
        **{name: numbers[name] for name in scalar_names},
        "shared_patients": len(numbers["shared_patients"]),
        "coloured": sum(numbers["coloured"].values()),
        **{
            f"{class_name}_{count_name}": class_counts[count_name]
            for class_name, class_counts in numbers["classes"].items()
            for count_name in class_counts
        },
        **{f"duplicate_{name}": value for name, value in numbers["duplicates"].items()},
        **{
            f"{name}_{suffix}": values[suffix]
            for name, values in numbers["shortcut_auc"].items()
            for suffix in ("auc", "auc_low", "auc_high")
        },
    }
