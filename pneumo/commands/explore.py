"""The command `explore`: counts, problems and plots of a data set."""

import json

from pneumo.commands.options.arguments import ExploreOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.data.dataset import Dataset
from pneumo.evaluation.dataset import profile
from pneumo.evaluation.dataset.profile import compute_statistics, to_metrics
from pneumo.reporting.data_report import draw_figures, list_findings, render_page
from pneumo.runtime.console import echo, print_table
from pneumo.runtime.errors import UserError
from pneumo.tracking import results, runs, session


def explore(_: ExploreOptions, inputs: Inputs) -> int:
    """Explore a data set before any training, and return the exit code."""
    session.connect()
    explore_dataset(inputs.dataset)
    return 0


def explore_dataset(dataset: Dataset) -> None:
    """Compute and log the statistics of a data set, and print its findings.

    Raises:
        UserError: No image is readable.
    """
    with runs.command_run("explore", dataset.name, runs.data_tags(dataset)) as run_id:
        images = dataset.decode(profile.PROFILE_SIZE, max_unreadable=1)
        files = profile.profile_files(images)
        if profile.readable_files(files).empty:
            raise UserError(
                f"{dataset.name} must contain readable images: none of its {len(files)} files is "
                "readable. Fix or replace them."
            )
        results.log_data(images)
        numbers = compute_statistics(files, images.pixels)
        copies = profile.find_duplicates(files)
        findings, pictures = list(list_findings(numbers)), draw_figures(files, images)
        page = render_page(images, files, copies, numbers, findings, pictures)
        artifacts = {
            "explore.html": page.encode(),
            "numbers.json": json.dumps(numbers, indent=1).encode(),
            "files.csv": files.drop(columns=["label", "age", "sex"]).to_csv(index=False).encode(),
            "duplicates.csv": copies.to_csv(index=False).encode(),
            **pictures,
        }
        results.log_exploration(to_metrics(numbers), artifacts)
    counts = profile.count_images(files)
    print_table(f"{dataset.name}, digest {dataset.digest}", list(counts), counts.to_numpy())
    for finding in findings:
        echo(f"note: {finding}")
    echo(session.view_hint(run_id))
