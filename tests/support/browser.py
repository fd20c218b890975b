"""A walk through MLflow's pages of a study, in Chromium."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from pneumo.tuning.output.study_table import StudyResult
from tests.support.studies import until

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WINDOW = {"width": 1280, "height": 900}
PATIENCE = 30_000  # milliseconds that a page may take
EXPERIMENT = "Default"

# What MLflow's plot of trials begins with: of the params that differ the first three by name, and
# the metric that all have and that was the first to be logged
AXES = ["augment_strength", "dense_widths", "dropout", "epoch/val_auc"]


@contextmanager
def chromium() -> Iterator[Page]:
    """Open a page of a headless Chromium without stored state."""
    program = shutil.which("chromium") or shutil.which("/usr/bin/chromium")
    if not program:
        pytest.skip("needs Chromium: apt install chromium")
    expect.set_options(timeout=PATIENCE)
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=program, args=FLAGS) as browser,
        browser.new_page(viewport=WINDOW) as page,
    ):
        page.set_default_timeout(PATIENCE)
        yield page


def walk(page: Page, address: str, outcome: StudyResult, folder: Path) -> None:
    """Walk from the server's experiments to the registered model; save each page to `folder`.

    Runs and model are those of `outcome`, the only study in its experiment. The walk fails if a
    page does not show what a person looks for.
    """
    name = mlflow.get_run(outcome.study.user_attrs["run_id"]).info.run_name
    steps = {
        "experiments": lambda: see_experiments(page, address),
        "runs": lambda: see_runs(page, name, len(outcome.study.trials)),
        "study": lambda: see_study(page, name, outcome),
        "trials": lambda: select_trials(page, len(outcome.study.trials)),
        "compare": lambda: see_comparison(page, len(outcome.study.trials)),
        "page": lambda: see_artifact(page, name, "study/study.html", "compared with the baseline"),
        "evidence": lambda: see_artifact(page, name, "test/evidence.html", "Performance"),
        "model": lambda: see_model(page, outcome),
        "version": lambda: see_version(page, outcome),
    }
    for number, (step, take) in enumerate(steps.items(), 1):
        take()
        page.screenshot(path=folder / f"{number}-{step}.png", animations="disabled")


def see_experiments(page: Page, address: str) -> None:
    """Check the experiments; MLflow opens the view for language models, next to a chat."""
    page.goto(f"{address}/#/experiments")
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("heading", name="Experiments")).to_be_visible()
    expect(page.get_by_role("link", name=EXPERIMENT, exact=True)).to_be_visible()


def see_runs(page: Page, name: str, trials: int) -> None:
    """Check that only the study is listed, until its row is expanded."""
    page.get_by_role("link", name=EXPERIMENT, exact=True).click()
    expect(row_of(page, name)).to_be_visible()
    expect(trial_rows(page)).to_have_count(0)
    row_of(page, name).get_by_role("button").first.click()
    expect(trial_rows(page)).to_have_count(trials)
    expect(page.get_by_text(f"{trials + 1} matching runs")).to_be_visible()


def row_of(page: Page, name: str | re.Pattern) -> Locator:
    """Return the rows of the runs with that name, in the table of runs."""
    return page.get_by_role("row").filter(has=page.get_by_role("link", name=name))


def trial_rows(page: Page) -> Locator:
    """Return the rows of the trials in the table of runs."""
    return row_of(page, re.compile(r"^trial \d+ · "))


def see_study(page: Page, name: str, outcome: StudyResult) -> None:
    """Check the run of the study: its description, its trials, and its winner on test."""
    page.get_by_role("link", name=name).click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.get_by_text("pneumo.kind: study")).to_be_visible()
    for words in ("Question", "Result"):  # of the description
        expect(page.get_by_text(words, exact=True)).to_be_visible()
    newest = re.compile(rf"^trial {len(outcome.study.trials) - 1} · ")  # ten of them are listed
    expect(page.get_by_role("link", name=newest)).to_be_visible()
    auc = page.get_by_role("row").filter(has=page.get_by_role("link", name="test_auc", exact=True))
    expect(auc).to_contain_text(f"{outcome.test_metrics['auc']}"[:8])


def select_trials(page: Page, trials: int) -> None:
    """Return to the runs, and select each trial."""
    page.go_back()
    expect(trial_rows(page)).to_have_count(trials)
    for number in range(trials):
        tick = row_of(page, re.compile(rf"^trial {number} · ")).locator(".ag-selection-checkbox")
        tick.get_by_role("checkbox").check()
    expect(page.get_by_role("button", name="Compare")).to_be_enabled()


def see_comparison(page: Page, trials: int) -> None:
    """Check the plot with its axes, and a line for each trial."""
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name=f"Comparing {trials} Runs")).to_be_visible()
    plot = page.locator(".pcp-plot")
    expect(plot.locator(".axis-title")).to_have_text(AXES)
    for axis in AXES:
        expect(plot.get_by_text(axis, exact=True)).to_be_visible()
    lines = plot.locator("canvas.gl-canvas-focus")  # they come after the axes
    until(lambda: coloured(lines) > 100 * trials)


def coloured(canvas: Locator) -> int:
    """Count the pixels of a canvas that are neither black nor white nor gray."""
    file = base64.b64decode(canvas.evaluate("it => it.toDataURL()").partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    return int((np.ptp(pixels, axis=2) > 50).sum())


def see_artifact(page: Page, name: str, artifact: str, words: str) -> None:
    """Check a page among the files of the study's run, which MLflow shows in a frame."""
    page.get_by_role("link", name="Runs", exact=True).first.click()
    page.get_by_role("link", name=name).click()
    page.get_by_role("tab", name="Artifacts").click()
    for part in artifact.split("/"):
        page.get_by_text(part, exact=True).click()
    shown = page.frame_locator("iframe.mlflow-html-iframe")
    expect(shown.get_by_role("heading", level=1)).to_be_visible()
    expect(shown.get_by_text(words).first).to_be_visible()


def see_model(page: Page, outcome: StudyResult) -> None:
    """Check the registered model, whose newest version is the challenger."""
    page.get_by_role("link", name="Model registry").click()
    page.get_by_role("button", name="Try it now").click()
    page.get_by_role("link", name=outcome.model_name, exact=True).click()
    expect(page.get_by_role("heading", name=outcome.model_name)).to_be_visible()
    expect(page.get_by_text("@champion is the version to use")).to_be_visible()
    version = page.get_by_role("row").filter(has_text=f"Version {outcome.version}")
    expect(version.get_by_text("challenger")).to_be_visible()


def see_version(page: Page, outcome: StudyResult) -> None:
    """Check that version: its origin, and its metrics on test."""
    page.get_by_role("link", name=f"Version {outcome.version}", exact=True).click()
    expect(page.get_by_role("heading", name=f"Version {outcome.version}")).to_be_visible()
    expect(page.get_by_text("challenger").first).to_be_visible()
    best = outcome.study.best_trial.number
    expect(page.get_by_text(f"Trial {best} of study {outcome.study.study_name}")).to_be_visible()
    expect(page.get_by_text(f"On test: AUC {outcome.test_metrics['auc']:.3f}")).to_be_visible()
