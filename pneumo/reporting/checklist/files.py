"""The checklist of reporting guidelines, filled in for one evaluation, in HTML and in Markdown."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any, NamedTuple

from pneumo.data.dataset import DecodedDataset
from pneumo.data.layouts.table import read_table
from pneumo.evaluation.metrics import Evaluation
from pneumo.reporting.checklist.facts import Fact, collect_facts
from pneumo.reporting.html_report import TEMPLATE_FOLDER, TEMPLATES, render_template
from pneumo.tracking.models import LoadedModel

# Items of the guidelines in other words. Columns guideline, item, section, topic, fact (names in
# `collect_facts`, separated by spaces) and to_complete (what only the authors know)
ITEMS_FILE = TEMPLATE_FOLDER / "checklist.csv"


class Item(NamedTuple):
    """Item of a guideline, filled in.

    Attributes:
        guideline: Name of the guideline.
        number: Number in the guideline.
        section: Section of the guideline.
        topic: What to report.
        facts: What is known of it.
        to_complete: What the authors must add, or ''.
    """

    guideline: str
    number: str
    section: str
    topic: str
    facts: list[Fact]
    to_complete: str

    @property
    def state(self) -> str:
        """Return how much of the item is filled in."""
        if not self.facts:
            return "to be completed"
        return "partly" if self.to_complete else "from the run"


def fill_items(facts: Mapping[str, Fact]) -> Iterator[Item]:
    """Yield all items, filled in.

    Args:
        facts: As `collect_facts` returns them. A fact that is not known is named in `to_complete`.
    """
    for row in read_table(ITEMS_FILE).itertuples():
        names = row.fact.split()
        missing = [
            f"{name.replace('_', ' ')} (not known)" for name in names if not facts[name].value
        ]
        hints = [*missing, *filter(None, [row.to_complete])]
        known = [facts[name] for name in names if facts[name].value]
        yield Item(row.guideline, row.item, row.section, row.topic, known, "; ".join(hints))


def render_checklist(
    loaded_model: LoadedModel,
    images: DecodedDataset,
    split: str,
    evaluation: Evaluation,
    numbers: Mapping[str, Any],
) -> dict[str, bytes]:
    """Render the checklist of an evaluation.

    Args:
        loaded_model: The model.
        images: The data set of the split, as the model takes its images.
        split: `test`, `val` or `train`.
        evaluation: The evaluation of the model on the split.
        numbers: As they are stored in `metrics.json`.

    Returns:
        Name → file.
    """
    items = list(fill_items(collect_facts(loaded_model, images, split, evaluation, numbers)))
    states = Counter(item.state for item in items)
    values = {
        "model": loaded_model.title,
        "split": split,
        "run": loaded_model.trial.info.run_id,
        "day": date.today().isoformat(),
        "items": items,
        "findings": numbers["findings"],
        "headline": {"items": len(items)}
        | {state: states[state] for state in ("from the run", "partly", "to be completed")},
    }
    text = TEMPLATES.get_template("checklist.md").render(values, data=images.dataset)
    page = render_template("checklist.html", images, {}, **values)
    return {"checklist.html": page.encode(), "checklist.md": text.encode()}
