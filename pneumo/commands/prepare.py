"""The command `prepare`: a data set is indexed, decoded and counted, or a part of it copied."""

import os
from pathlib import Path

from pneumo.commands.arguments import PrepareOptions
from pneumo.data.dataset import open_dataset
from pneumo.data.subset import write_subset
from pneumo.runtime.console import echo, print_table
from pneumo.runtime.errors import UserError
from pneumo.tracking import results, runs, session
from pneumo.training.config import RunConfig


def prepare(options: PrepareOptions) -> int:
    """Import a data set and fill the pixel cache, and return the exit code."""
    config = RunConfig().override(options.overrides)
    if bool(options.test_images) != bool(options.out):
        raise UserError("test_images and out go together: give both, or neither")
    dataset = open_dataset(options.data, needs=("test",) if options.out else ())
    if options.out:
        out = _absolute(options.out)
        write_subset(dataset, _absolute(options.test_images), out)
        dataset = open_dataset(str(out), needs=())
    session.connect()
    with runs.command_run("prepare", dataset.name, runs.data_tags(dataset)):
        images = results.decode_and_log(dataset, config)
    counts = images.counts()
    print_table(f"{dataset.name}, digest {dataset.digest}", list(counts), counts.to_numpy())
    echo(images.summary())
    return 0


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
