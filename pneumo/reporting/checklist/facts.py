"""What is known about a model and its evaluation, each fact with its source."""

import importlib.metadata
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from jinja2 import UndefinedError
from mlflow.entities import Run

from pneumo.data.dataset import DecodedDataset
from pneumo.data.index import table_of
from pneumo.data.layouts.table import read_table
from pneumo.data.schema import CLASSES
from pneumo.data.split import TEST_FRACTION, VALIDATION_FRACTION
from pneumo.evaluation.bootstrap import N_RESAMPLES
from pneumo.evaluation.intervals import format_with_interval
from pneumo.evaluation.metrics import HEADLINE_METRICS, Evaluation, metric_title
from pneumo.evaluation.robustness import NUISANCES, describe_reliance
from pneumo.reporting.evaluation.page import METRIC_TITLES, THRESHOLD_RULES, describe_selection
from pneumo.reporting.html_report import INTENDED_USE, OUT_OF_SCOPE, TEMPLATE_FOLDER, TEMPLATES
from pneumo.tracking.model_files import SERVING_REQUIREMENTS
from pneumo.tracking.models import LoadedModel
from pneumo.tracking.tags import MEMBERS
from pneumo.training.config import complete_fields, rename_fields

# Names of the facts. Columns fact, value and source; the last two are templates
FACTS_FILE = TEMPLATE_FOLDER / "checklist_facts.csv"

UNITS = ["images", "patients"]

# A difference of so many standard errors is found with 80 % power at a two-sided level of 5 %:
# 1.96 + 0.84. A 95 % interval is 2 · 1.96 standard errors wide
POWER_FACTOR, INTERVAL_WIDTH = 2.8, 3.92


class Fact(NamedTuple):
    """Something that is known about a model or its evaluation.

    Attributes:
        value: The fact in words, or '' if it is not known.
        source: Where it comes from.
    """

    value: str
    source: str


class Part(NamedTuple):
    """Images of one split, counted.

    Attributes:
        name: Name of the data set and the split.
        counts: Class → `images` and `patients`.
    """

    name: str
    counts: Mapping[str, Mapping[str, int]]

    @property
    def description(self) -> str:
        """Return the counts in words."""
        counts = [
            f"{label} {of_class['images']} of {of_class['patients']} patients"
            for label, of_class in self.counts.items()
        ]
        return f"Images of {self.name}: {', '.join(counts)}"

    @property
    def profile(self) -> str:
        """Return what can be compared with another part."""
        images, patients = (
            sum(of_class[unit] for of_class in self.counts.values()) for unit in UNITS
        )
        return (
            f"{self.name}: prevalence {self.counts[CLASSES[1]]['images'] / images:.1%}, "
            f"{images / patients:.2f} images per patient"
        )


def collect_facts(
    loaded_model: LoadedModel,
    images: DecodedDataset,
    split: str,
    evaluation: Evaluation,
    numbers: Mapping[str, Any],
) -> dict[str, Fact]:
    """Collect all facts that the checklist can name.

    Args:
        loaded_model: The model.
        images: The data set of the split, as the model takes its images.
        split: `test`, `val` or `train`.
        evaluation: The evaluation of the model on the split.
        numbers: As they are stored in `metrics.json`.

    Returns:
        Name → fact. The names are always the same; what an older run does not store is empty.
    """
    trial, version = loaded_model.trial, loaded_model.version
    evaluated = _evaluated(f"{images.dataset.name}/{split}", evaluation)
    development = list(_development(trial))
    known = {
        "run": f"run {trial.info.run_id[:8]}",  # the head of the list has all digits
        "params": _fields(trial),
        "tags": trial.data.tags,
        "split": split,
        "dataset": images.dataset,
        "numbers": numbers,
        "confusion": evaluation.confusion,
        "title": loaded_model.title,
        "uri": f"models:/{f'{loaded_model.name}/{version}' if version else loaded_model.model_id}",
        "model": loaded_model.model,
        "is_own_threshold": math.isclose(
            numbers["at_threshold"]["threshold"], loaded_model.model.threshold
        ),
        "rules": THRESHOLD_RULES,
        "selection": describe_selection(trial),
        "software": ", ".join(_versions()),
        "development": development,
        "evaluated": evaluated,
        "parts": {part.name: part for part in [*development, evaluated]}.values(),
        "excluded": ", ".join(_excluded(images)),
        "validation_fraction": VALIDATION_FRACTION,
        "test_fraction": TEST_FRACTION,
        "table": table_of(images.dataset.base),
        "classes": CLASSES,
        "list_metrics": _list_metrics,
        "interval": format_with_interval,
        "measures": [METRIC_TITLES[name] for name in METRIC_TITLES if name != "threshold"],
        "nuisances": [nuisance.title for nuisance in NUISANCES.values()],
        "reliance": describe_reliance(numbers["nuisances"]),
        "resamples": N_RESAMPLES,
        "power_factor": POWER_FACTOR,
        "interval_width": INTERVAL_WIDTH,
        "intended_use": INTENDED_USE,
        "out_of_scope": OUT_OF_SCOPE,
    }
    return {
        row.fact: Fact(_render(row.value, known), _render(row.source, known))
        for row in read_table(FACTS_FILE).itertuples()
    }


def _fields(trial: Run) -> dict[str, str]:
    """Return the fields of a run's config. An ensemble has only those that its members share."""
    fields = trial.data.params
    return rename_fields(fields) if MEMBERS in trial.data.tags else complete_fields(fields)


def _render(text: str, known: Mapping[str, Any]) -> str:
    """Render a template, or return '' if it needs a value that an older run does not store."""
    try:
        return TEMPLATES.from_string(text).render(known).removesuffix(".")
    except UndefinedError:
        return ""


def _evaluated(name: str, evaluation: Evaluation) -> Part:
    patients = evaluation.predictions.groupby("label")["patient"]
    counts = patients.agg(images="size", patients="nunique").rename(index=dict(enumerate(CLASSES)))
    return Part(name, counts.to_dict("index"))


def _development(trial: Run) -> Iterator[Part]:
    """Yield the parts of the data that a Keras run has logged as inputs, with their counts."""
    for logged in trial.inputs.dataset_inputs:
        values = {tag.key: tag.value for tag in logged.tags}
        with suppress(KeyError):  # an older run has no counts
            counts = {
                name: {unit: int(values[f"{name.lower()}_{unit}"]) for unit in UNITS}
                for name in CLASSES
            }
            yield Part(logged.dataset.name, counts)


def _excluded(images: DecodedDataset) -> Iterator[str]:
    """Yield the number of unreadable images and lateral views in each split and class."""
    rows = images.dataset.rows
    groups = rows[rows["path"].isin(images.unreadable)].groupby(["split", "label"])
    for (split, label), count in groups.size().items():
        yield f"{split}/{CLASSES[label]} {count}"


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for package in SERVING_REQUIREMENTS:
        yield f"{package} {importlib.metadata.version(package)}"


def _list_metrics(values: Mapping[str, float]) -> str:
    return ", ".join(
        f"{metric_title(name)} {format_with_interval(values, name)}" for name in HEADLINE_METRICS
    )
