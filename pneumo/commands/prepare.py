"""The command `prepare`: a data set is indexed, decoded and counted, or a part of it copied."""

from pneumo.commands.options.arguments import PrepareOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.runtime.console import echo, print_table
from pneumo.tracking import results, runs, session


def prepare(_: PrepareOptions, inputs: Inputs) -> int:
    """Import a data set and fill the pixel cache, and return the exit code."""
    config, dataset = inputs.config, inputs.dataset
    session.connect()
    with runs.command_run("prepare", dataset.name, runs.data_tags(dataset)):
        images = results.decode_and_log(dataset, config)
    counts = images.counts()
    print_table(f"{dataset.name}, digest {dataset.digest}", list(counts), counts.to_numpy())
    echo(images.summary())
    return 0
