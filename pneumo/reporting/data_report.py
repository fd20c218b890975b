"""Report on a data set: findings, plots and an HTML page."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from pneumo.data.dataset import DecodedDataset
from pneumo.data.schema import CLASSES
from pneumo.evaluation.dataset import profile
from pneumo.evaluation.dataset.shortcuts import describe_attribute_leakage
from pneumo.evaluation.intervals import format_number, format_with_interval
from pneumo.reporting import data_plots
from pneumo.reporting.html_report import render_template
from pneumo.reporting.style import to_png

MAX_LISTED = 200  # files of a list on the page; the CSVs contain all of them
MAX_PREVALENCE_SHIFT = (
    0.05  # difference of prevalence between train and test that is worth a finding
)

# Format of each number on the page
NUMBER_FORMATS = {
    "pixels": ",.0f",
    "aspect": ".2f",
    "bytes": ",.0f",
    "mean": ".1f",
    "sharpness": ".1f",
}

# What the classifiers of `profile.measure_metadata_leakage` distinguish
TARGET_TITLES = {
    "label": "PNEUMONIA vs. NORMAL",
    "split": "test vs. training images",
    **{f"split_{name.lower()}": f"test vs. training, {name} only" for name in CLASSES},
}


def list_findings(numbers: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a reader must know about a data set, the most severe first.

    Args:
        numbers: As `profile.compute_statistics` returns them.
    """
    yield from _duplicate_findings(numbers)
    yield from _leakage_findings(numbers["shortcut_auc"])
    yield from describe_attribute_leakage(numbers["attributes"])
    rates = _prevalences(numbers["classes"])
    if len(rates) == 2 and abs(rates["train"] - rates["test"]) > MAX_PREVALENCE_SHIFT:
        yield (
            f"The prevalence of PNEUMONIA is {rates['train']:.1%} in the training images and "
            f"{rates['test']:.1%} in the test images. A threshold that fits one may not fit the "
            "other."
        )
    if numbers["unreadable"]:
        yield f"{numbers['unreadable']} files are unreadable. The report lists the reasons."
    if numbers["lateral"]:
        yield f"{numbers['lateral']} of these are lateral views, which are left out everywhere."
    if numbers["unknown_patients"]:
        yield (
            f"{numbers['unknown_patients']} file names contain no patient id. Each of these images "
            "counts as a separate patient, so one patient may be in two splits. Add a patients.csv."
        )
    yield from _color_findings(numbers)
    if count := numbers["patients_with_several_images"]:
        yield (
            f"{count} of {numbers['patients']} patients have more than one image, "
            f"one has {numbers['max_images_per_patient']}. The images must be split by patient."
        )


def _duplicate_findings(numbers: Mapping[str, Any]) -> Iterator[str]:
    copies = numbers["duplicates"]
    if copies["across_splits"]:
        yield (
            f"{copies['across_splits']} groups of identical files are in more than one split, so a "
            "model would be tested on training images."
        )
    if shared := numbers["shared_patients"]:
        yield f"{len(shared)} patients are in more than one split, for example {shared[0]}."
    if copies["across_classes"]:
        yield (
            f"{copies['across_classes']} groups of identical files are labeled both NORMAL and "
            "PNEUMONIA, so one of the labels is wrong."
        )
    if copies["across_patients"]:
        yield f"{copies['across_patients']} groups of identical files belong to different patients."
    if copies["groups"]:
        yield (
            f"{copies['groups']} groups of identical files contain {copies['files']} files. Each "
            "file counts as a separate image."
        )


def _leakage_findings(leakage: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    label = leakage.get("label")
    if label and label["auc_low"] > 0.5:
        yield (
            "Size, aspect ratio, file size, intensity and sharpness alone separate PNEUMONIA from "
            f"NORMAL with an AUC of {format_with_interval(label, 'auc')}. A model can reach that "
            "without using the lungs (shortcut learning)."
        )
    for name in CLASSES:
        shift = leakage.get(f"split_{name.lower()}")
        if shift and shift["auc_low"] > 0.5:
            yield (
                f"The same metadata separate test images of {name} from training images (AUC "
                f"{format_with_interval(shift, 'auc')}, 0.5 means no dataset shift). A choice made "
                "on validation may not hold on test."
            )


def _color_findings(numbers: Mapping[str, Any]) -> Iterator[str]:
    constant, color_counts = numbers["constant"], numbers["coloured"]
    if color_counts and "colour" not in constant:
        counts = ", ".join(f"{count} {name}" for name, count in color_counts.items())
        yield f"Some images are stored in color ({counts}). All are decoded as grayscale."
    constant_titles = [
        profile.METADATA_TITLES[name] for name in profile.METADATA_TITLES if name in constant
    ]
    if "colour" in constant:
        constant_titles.append(f"color ({constant['colour']})")
    if constant_titles:
        yield f"Constant in this data set, so not a shortcut: {', '.join(constant_titles)}."


def _prevalences(classes: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Return the prevalence, 0 to 1, in each published split that has images."""
    prevalences = {}
    for split, parts in (("train", ("train", "val")), ("test", ("test",))):
        negatives, positives = (
            sum(classes.get(f"{part}_{name.lower()}", {"images": 0})["images"] for part in parts)
            for name in CLASSES
        )
        if negatives + positives:
            prevalences[split] = positives / (negatives + positives)
    return prevalences


def draw_figures(files: pd.DataFrame, images: DecodedDataset) -> dict[str, bytes]:
    """Draw the plots of a data set.

    Args:
        files: As `profile.profile_files` returns them.
        images: The images at the size at which they are compared.

    Returns:
        Name → PNG file.
    """
    readable = profile.readable_files(files)
    sizes = {name: profile.METADATA_TITLES[name] for name in ("pixels", "aspect", "bytes")}
    statistics = {name: profile.METADATA_TITLES[name] for name in ("mean", "sharpness")}
    figures = {
        "samples.png": data_plots.plot_samples(readable, images.pixels),
        "images_per_patient.png": data_plots.plot_images_per_patient(
            profile.images_per_patient(files)
        ),
        "sizes.png": data_plots.plot_distributions(readable, sizes),
        "looks.png": data_plots.plot_boxplots(readable, statistics),
    }
    return {name: to_png(figure) for name, figure in figures.items()}


def render_page(
    images: DecodedDataset,
    files: pd.DataFrame,
    copies: pd.DataFrame,
    numbers: Mapping[str, Any],
    findings: list[str],
    pictures: Mapping[str, bytes],
) -> str:
    """Render the HTML page on a data set.

    Args:
        images: The images at the size at which they are compared.
        files: As `profile.profile_files` returns them.
        copies: As `profile.find_duplicates` returns them.
        numbers: As `profile.compute_statistics` returns them.
        findings: Sentences that `list_findings` yields.
        pictures: As `draw_figures` returns them.
    """
    leakage, problems = numbers["shortcut_auc"], list(profile.file_issues(files))
    return render_template(
        "explore.html",
        images,
        pictures,
        numbers=numbers,
        findings=findings,
        headline={
            "images": f"{numbers['images']:,}",
            "patients": f"{numbers['patients']:,}",
            "identical files": f"{numbers['duplicates']['files']:,}",
            "AUC of metadata alone": _label_auc(numbers["shortcut_auc"]),
        },
        counts=profile.count_images(files).to_dict("records"),
        sizes=_ranges(files, ["class"], ("pixels", "aspect", "bytes")),
        looks=_ranges(files, ["split", "class"], ("mean", "sharpness")),
        targets=[TARGET_TITLES[name] for name in leakage],
        together=[format_with_interval(values, "auc") for values in leakage.values()],
        alone=[
            (
                title,
                [
                    _format_single_auc(values[name], name in numbers["constant"])
                    for values in leakage.values()
                ],
            )
            for name, title in profile.METADATA_TITLES.items()
        ],
        attributes=list(_attribute_rows(numbers["attributes"])),
        copies=copies[:MAX_LISTED].to_dict("records"),
        problems=problems[:MAX_LISTED],
        problem_count=len(problems),
    )


def _label_auc(leakage: Mapping[str, Mapping[str, float]]) -> str:
    return (
        format_with_interval(leakage["label"], "auc") if "label" in leakage else "too few patients"
    )


def _attribute_rows(
    attributes: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, Mapping[str, float], list[str]]]:
    """Yield attribute, group, its counts, and the AUCs of the attribute in its first row."""
    for name, values in attributes.items():
        aucs = [_format_auc(values[of]) for of in ("label", "metadata", "pixels")]
        for group, counts in values["groups"].items():
            yield name, group, counts, aucs
            aucs = [""] * len(aucs)


def _format_auc(values: Mapping[str, float] | None) -> str:
    return format_with_interval(values, "auc") if values else "too few patients"


def _format_single_auc(auc: float, constant: bool) -> str:
    return "constant" if constant else format_number(auc)


def _ranges(
    files: pd.DataFrame, by: list[str], names: tuple[str, ...]
) -> list[tuple[str, str, list[str]]]:
    """Return for each column and group its title, its name, and minimum, median and maximum."""
    ranges, constant = (
        profile.value_ranges(files, by),
        profile.constant_columns(files),
    )
    rows = []
    for name in names:
        if name in constant:
            rows.append(
                (
                    profile.METADATA_TITLES[name],
                    f"constant: {constant[name]:{NUMBER_FORMATS[name]}}",
                    [],
                )
            )
            continue
        for group, values in ranges[name].iterrows():
            group_name = group if isinstance(group, str) else " ".join(group)
            rows.append(
                (
                    profile.METADATA_TITLES[name],
                    group_name,
                    [f"{value:{NUMBER_FORMATS[name]}}" for value in values],
                )
            )
    return rows
