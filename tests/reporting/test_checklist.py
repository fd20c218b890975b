"""The checklist of reporting guidelines: its table, and what it says of stored evaluations."""

import html
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import mlflow
import pytest
from mlflow.entities import Param, Run, RunData, RunInputs, RunTag

from pneumo.commands.evaluation import evaluate_model, evaluation_run, images_for
from pneumo.data.dataset import open_dataset
from pneumo.data.layouts.table import read_table
from pneumo.evaluation.intervals import format_with_interval
from pneumo.reporting.checklist.facts import FACTS_FILE, collect_facts
from pneumo.reporting.checklist.files import ITEMS_FILE, fill_items
from pneumo.reporting.html_report import TEMPLATES
from pneumo.tracking import results
from tests.support.handmade import register, run_of, write_images
from tests.support.stores import store_in
from tests.support.studies import predictions, text, without_pictures

ITEMS = read_table(ITEMS_FILE)
FACTS = read_table(FACTS_FILE)

# The numbers of both guidelines. TRIPOD+AI divides some of its 27 items
CLAIM = [str(number) for number in range(1, 45)]
PARTS = {3: 3, 5: 2, 6: 3, 8: 3, 9: 3, 12: 7, 18: 6, 20: 3, 23: 2, 27: 3}
TRIPOD = [
    f"{number}{letter}"
    for number in range(1, 28)
    for letter in ("abcdefg"[: PARTS[number]] if number in PARTS else [""])
]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_each_item_of_the_guidelines_is_there_once():
    assert len(TRIPOD) == 52
    numbers = ITEMS.groupby("guideline", sort=False)["item"].agg(list).to_dict()
    assert numbers == {"CLAIM": CLAIM, "TRIPOD+AI": TRIPOD}


def test_each_item_has_a_fact_or_a_hint():
    assert ((ITEMS["fact"] != "") | (ITEMS["to_complete"] != "")).all()
    assert (ITEMS["topic"] != "").all()


def test_the_items_name_all_facts_and_no_others():
    named = {name for names in ITEMS["fact"] for name in names.split()}
    assert named == set(FACTS["fact"])
    assert FACTS["fact"].is_unique


@pytest.mark.parametrize(
    ("content", "cell"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("a\n b", "a b"),
        ("<b>[x](y)`z`", r"\<b>\[x](y)\`z\`"),
        ("dense_widths 128-64", "dense_widths 128-64"),
    ],
)
def test_a_cell_of_a_markdown_table_keeps_its_content(content, cell):
    assert TEMPLATES.from_string("{{ content|cell }}").render(content=content) == cell


class _Rows(HTMLParser):
    """Rows of the tables of a page, by the heading before them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.heading, self.tag, self.in_cell = "", "", False
        self.rows: list[tuple[str, list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        if tag == "h2":
            self.heading = ""
        elif tag == "tr":
            self.rows.append((self.heading, []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.tag == "h2":
            self.heading += data.strip()
        elif self.in_cell:
            self.rows[-1][1][-1] += data


def markdown_rows(content: str) -> list[tuple[str, list[str]]]:
    """Return guideline and cells of each row of the tables."""
    rows, guideline = [], ""
    for line in content.splitlines():
        if line.startswith("## "):
            guideline = line[3:]
        elif line.startswith("| ") and not line.startswith("| item"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            rows.append((guideline, [cell.strip() for cell in cells]))
    return rows


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Evaluate a handmade model on a data set whose name must be escaped."""
    folder = tmp_path_factory.mktemp("checklist")
    with store_in(folder), without_pictures():
        images = write_images(folder / "left|<b>right")
        dataset = open_dataset(str(images), required_splits=("train", "test"))
        made = run_of("left", dataset, **{"mlflow.source.git.commit": COMMIT})
        with mlflow.start_run(run_id=made[0]):
            results.log_inputs(dataset.decode(32, 0), ("train",), ("val",))
        model = register(made, "halves")
        (images / "test" / "NORMAL" / "IM-9999-1.png").write_bytes(b"no image")
        dataset = open_dataset(str(images), required_splits=("train", "test"))
        with evaluation_run(model, dataset, "test") as (run_id, decoded):
            result = evaluate_model(model, decoded, "test")
        yield model, decoded, run_id, result


@pytest.fixture(scope="module")
def facts(evaluated):
    model, decoded, _, result = evaluated
    return collect_facts(model, decoded, "test", result.evaluation, result.numbers)


@pytest.mark.slow
def test_each_item_is_in_both_files_once(evaluated):
    _, _, run_id, _ = evaluated
    expected = Counter([*(("CLAIM", it) for it in CLAIM), *(("TRIPOD+AI", it) for it in TRIPOD)])
    in_markdown = markdown_rows(text(run_id, "test/checklist.md"))
    assert {len(cells) for _, cells in in_markdown} == {5}
    assert Counter((guideline, cells[0]) for guideline, cells in in_markdown) == expected
    in_html = _Rows(text(run_id, "test/checklist.html")).rows
    found = [(name, cells[0]) for name, cells in in_html if len(cells) == 4 and cells[0] != "item"]
    assert Counter(found) == expected


@pytest.mark.slow
def test_the_facts_are_those_of_the_stored_files(evaluated, facts):
    model, decoded, run_id, _ = evaluated
    trial = model.trial
    numbers = json.loads(text(run_id, "test/metrics.json"))
    here, params = numbers["at_threshold"], trial.data.params
    table = predictions(run_id, "test")
    called = table["probability"] >= here["threshold"]
    wrong = {name: (called & (table["label"] == 0)).sum() for name in ["fp"]}
    wrong["fn"] = (~called & (table["label"] == 1)).sum()
    run = f"run {trial.info.run_id[:8]}"
    width = here["auc_high"] - here["auc_low"]
    expected = {
        "git_commit": (f"Commit {COMMIT}", f"{run}, tag mlflow.source.git.commit"),
        "model_kind": (
            "Deep learning: a convolutional neural network, backbone cnn",
            f"{run}, parameters backbone",
        ),
        "initialization": (
            f"Weights: {params['weights']} (none means random). Seed: {params['seed']}",
            f"{run}, parameters weights, seed",
        ),
        "parameters": ("1,025 parameters", "the stored model"),
        "development_data": (
            f"Development: left|<b>right, digest {trial.data.tags['pneumo.data_digest']}",
            f"{run}, tags pneumo.data, pneumo.data_digest",
        ),
        "development_counts": (
            "Images of left|<b>right/train: NORMAL 32 of 32 patients, PNEUMONIA 32 of 32 patients; "
            "Images of left|<b>right/val: NORMAL 8 of 8 patients, PNEUMONIA 8 of 8 patients",
            f"{run}, inputs",
        ),
        "evaluation_counts": (
            "Images of left|<b>right/test: NORMAL 100 of 100 patients, "
            "PNEUMONIA 100 of 100 patients",
            "predictions.csv",
        ),
        "excluded": (
            "Unreadable images and lateral views of left|<b>right: test/NORMAL 1",
            "evidence.html",
        ),
        "performance": (
            "On test: "
            + ", ".join(
                f"{'AUC' if name == 'auc' else name} {format_with_interval(here, name)}"
                for name in ("auc", "sensitivity", "specificity", "accuracy")
            ),
            "metrics.json",
        ),
        "threshold": (
            "Threshold 0.3000, from validation: Youden's index",
            f"metrics.json; {run}, parameter threshold_rule",
        ),
        "errors": (
            f"{wrong['fp']} false positives and {wrong['fn']} false negatives; "
            "a picture shows the worst",
            "confusion_matrix.json, worst_errors.png",
        ),
        "looks": (
            "Evaluations on the test images: 1 of this model, 1 of all models",
            "metrics.json",
        ),
        "net_benefit": (numbers["benefit"].removesuffix("."), "metrics.json"),
        "updating": ("None: the stored model is evaluated as it is", "metrics.json"),
        "availability": ("halves version 1, models:/halves/1", "MLflow"),
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["detectable_difference"].value.startswith(
        f"Detectable difference: {2.8 * width / 3.92:.3f} of AUC, from a fixed value"
    )
    assert facts["data_differences"].value.endswith(
        "left|<b>right/test: prevalence 50.0%, 1.00 images per patient"
    )
    assert facts["subgroups"].value.count("AUC") == len(numbers["subgroups"])


@pytest.mark.slow
def test_both_files_state_value_and_source_of_each_fact(evaluated, facts):
    _, _, run_id, result = evaluated
    unknown = {name for name, fact in facts.items() if not fact.value}
    assert unknown == (set() if result.findings else {"findings"})
    page = _Rows(text(run_id, "test/checklist.html")).rows
    in_html = {(name, cells[0]): cells for name, cells in page if cells}
    in_markdown = {
        (name, cells[0]): cells for name, cells in markdown_rows(text(run_id, "test/checklist.md"))
    }
    for item in fill_items(facts):
        key = item.guideline, item.number
        for cells in (
            in_html[key][-2:],
            [re.sub(r"\\(.)", r"\1", it) for it in in_markdown[key][-2:]],
        ):
            for fact in item.facts:
                assert f"{fact.value} ({fact.source})" in cells[0]
            assert cells[1] == (f"to be completed: {item.to_complete}" if item.to_complete else "")


@pytest.mark.slow
def test_the_head_counts_the_items(evaluated, facts):
    _, _, run_id, _ = evaluated
    states = Counter(item.state for item in fill_items(facts))
    line = text(run_id, "test/checklist.md").splitlines()[4]
    assert line == (
        f"items: 96, from the run: {states['from the run']}, partly: {states['partly']}, "
        f"to be completed: {states['to be completed']}"
    )
    assert sum(states.values()) == 96
    page = text(run_id, "test/checklist.html")
    assert "data:image" not in page
    assert html.escape("left|<b>right") in page


@pytest.mark.slow
def test_what_an_older_run_does_not_store_is_to_be_completed(evaluated):
    model, _, _, result = evaluated
    data = model.trial.data
    params = [Param(*item) for item in data.params.items() if item[0] != "lr_schedule"]
    tags = [RunTag(*item) for item in data.tags.items() if item[0] != "mlflow.source.git.commit"]
    trial = Run(model.trial.info, RunData([], params, tags), RunInputs([]))
    older = replace(model, trial=trial)
    numbers = {**result.numbers, "overlap": None}
    decoded = images_for(older, evaluated[1].dataset)
    found = collect_facts(older, decoded, "test", result.evaluation, numbers)
    missing = {"git_commit", "training", "development_counts", "data_differences", "overlap"}
    if not result.findings:
        missing.add("findings")
    assert {name for name, fact in found.items() if not fact.value} == missing
    items = {(item.guideline, item.number): item for item in fill_items(found)}
    assert items["CLAIM", "42"].state == "to be completed"
    assert items["CLAIM", "42"].to_complete.startswith("git commit (not known); say where")
    assert items["CLAIM", "23"].state == "partly"
    assert items["CLAIM", "23"].to_complete == "git commit (not known)"
    assert items["TRIPOD+AI", "20c"].facts == []


@pytest.mark.slow
def test_fields_in_which_the_members_of_an_ensemble_differ_are_not_known(evaluated):
    model, decoded, _, result = evaluated
    data = model.trial.data
    params = [Param(*item) for item in data.params.items() if item[0] != "sharpness_jitter"]

    def augmentation(tags: dict[str, str]) -> str:
        tags = [RunTag(*item) for item in (data.tags | tags).items()]
        trial = Run(model.trial.info, RunData([], params, tags), model.trial.inputs)
        ensemble = replace(model, trial=trial)
        found = collect_facts(ensemble, decoded, "test", result.evaluation, result.numbers)
        return found["augmentation"].value

    assert augmentation({}).endswith("sharpness jitter 0.0")  # of an older version
    assert augmentation({"pneumo.members": "1, 2"}) == ""


@pytest.mark.slow
def test_an_ensemble_and_a_recalibration_are_named(evaluated):
    model, decoded, _, result = evaluated
    data = model.trial.data
    tags = [RunTag(*item) for item in (data.tags | {"pneumo.members": "[3, 5]"}).items()]
    params = [Param(*item) for item in data.params.items()]
    ensemble = replace(
        model, trial=Run(model.trial.info, RunData([], params, tags), model.trial.inputs)
    )
    numbers = {**result.numbers, "recalibration": {"images": 40, "patients": 30}}
    found = collect_facts(ensemble, decoded, "test", result.evaluation, numbers)
    assert found["ensemble"].value.startswith(
        "The mean of the logits of the trials [3, 5]. Of each: Networks per fit: 1; "
    )
    assert found["updating"].value == (
        "Calibration and threshold are also fitted again on 40 images of 30 patients of the "
        "evaluation data. All results are of the other patients"
    )
