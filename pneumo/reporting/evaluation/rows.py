"""Rows of the tables on the page of an evaluation, as text."""

from collections.abc import Iterator, Mapping
from typing import Any

from pneumo.evaluation.intervals import format_number, format_with_interval
from pneumo.evaluation.metrics import metric_title

CALIBRATION_TITLES = {
    "slope": "calibration slope, 1 is best",
    "intercept": "calibration intercept, 0 is best",
    "ece": "expected calibration error, 0 is best",
}


def group_rows(groups: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each group of patients or images.

    Args:
        groups: As `subgroups.group_metrics` returns them.

    Yields:
        Attribute and group, images with pneumonia and all, patients, AUC, sensitivity, specificity,
        difference of AUC from all others, and the detectable difference; a dash for what is not
        known of a small group.
    """
    for attribute, of_attribute in groups.items():
        for name, values in of_attribute.items():
            yield (
                f"{attribute}: {name}",
                f"{values['positive']} of {values['images']}",
                f"{values['patients']}",
                *(
                    format_with_interval(values, metric) if metric in values else "–"
                    for metric in ("auc", "sensitivity", "specificity", "difference")
                ),
                format_number(values["detectable"]) if "detectable" in values else "–",
            )


def external_rows(internal: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield title, value on the own data, value on these, and the difference of each metric.

    Args:
        internal: Under this name in `metrics.json`.
    """
    for name, values in internal["comparison"].items():
        columns = ("internal", "external", "difference")
        yield metric_title(name), *(format_with_interval(values, column) for column in columns)


def recalibration_rows(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield title, value on the own data, and on these before and after the recalibration.

    Args:
        numbers: Content of `metrics.json`.
    """
    internal, after = numbers["internal"], numbers["recalibration"]
    sources = internal, numbers, after
    for name, title in CALIBRATION_TITLES.items():
        yield title, *(_cell(source, "calibration", name) for source in sources)
    for name in ("brier", "log_loss", "threshold", "sensitivity", "specificity"):
        title = name.replace("_", " ").replace("brier", "Brier score")
        yield title, *(_cell(source, "at_threshold", name) for source in sources)


def _cell(source: Mapping[str, Any] | None, part: str, name: str) -> str:
    return format_with_interval(source[part], name) if source else "–"
