"""Make the README's pictures, of a study of the synthetic sample.

python -m tests.support.pictures .github/pictures
"""

import argparse
import io
import tempfile
from pathlib import Path

import mlflow
import pytest
from PIL import Image
from playwright.sync_api import Page
from rich.console import Console

from pneumo.commands.explore import explore_dataset
from pneumo.commands.tune import tune_and_register
from pneumo.data.dataset import open_dataset
from pneumo.experiment import load_experiment
from pneumo.runtime import console
from pneumo.tuning.output.study_table import StudyResult, print_study
from pneumo.tuning.spec import StudySpec
from tests.support.browser import WINDOW, chromium, walk
from tests.support.services import mlflow_server
from tests.support.stores import store_in

COLOURS = 128  # of a picture: a fifth of the bytes, and nothing to be seen of it
STEPS = {"3-study": "run", "5-compare": "compare", "8-model": "model"}


def main() -> None:
    """Write the pictures to the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    pictures = options.folder.resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, chromium() as page:
        folder = Path(name)
        server = mlflow_server(f"sqlite:///{folder}/runs.db", folder / "artifacts")
        with server as mlflows, store_in(folder, mlflows.address):
            spec = StudySpec(load_experiment("tune"), open_dataset("sample"), {})
            result = tune_and_register(spec, trials=options.trials, model_name="pneumonia-sample")
            walk(page, mlflows.address, result, folder)
            for step, picture in STEPS.items():
                _keep(folder / f"{step}.png", pictures / f"{picture}.png")
            _take_terminal(page, result, pictures)
            _take_pages(page, result, folder, pictures)


def _keep(taken: Path, place: Path) -> None:
    Image.open(taken).convert("RGB").quantize(COLOURS).save(place, optimize=True)


def _take_terminal(page: Page, result: StudyResult, pictures: Path) -> None:
    """Draw the output at the end of a study."""
    recorder = Console(
        record=True, width=100, file=io.StringIO(), force_terminal=True, highlight=False
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "console", recorder)
        print_study(result)
    page.set_content(recorder.export_html())
    page.add_style_tag(content="pre { white-space: pre-wrap; padding: 12px; }")
    page.locator("pre").screenshot(path=pictures / "terminal.png")
    _keep(pictures / "terminal.png", pictures / "terminal.png")


def _take_pages(page: Page, result: StudyResult, folder: Path, pictures: Path) -> None:
    """Draw the pages that pneumo makes, each as a file."""
    explore_dataset(open_dataset("sample"))
    [explored] = mlflow.search_runs(
        filter_string="tags.`pneumo.kind` = 'explore'", output_format="list"
    )
    study = result.study.user_attrs["run_id"]
    for run_id, file in (
        (study, "study/study.html"),
        (study, "test/evidence.html"),
        (explored.info.run_id, "explore/explore.html"),
    ):
        local = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{file}", dst_path=str(folder))
        page.set_viewport_size({**WINDOW, "height": 1500})
        page.goto(f"file://{local}")
        page.wait_for_timeout(1000)  # the graphs come one after the other
        taken = folder / "taken.png"
        page.screenshot(path=taken)
        _keep(taken, pictures / f"{Path(file).stem}.png")


if __name__ == "__main__":
    main()
