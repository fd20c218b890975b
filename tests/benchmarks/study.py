"""The same study by KerasTuner and by pneumo, one process after another.

    python -m tests.benchmarks.study --data ARCHIVE --weights FILE
    python -m tests.benchmarks.study --data ARCHIVE --backbone resnet50v2 --images 400 --alone

The benchmark needs `keras-tuner` and `tensorboard` in addition to conda.yaml. It prints times,
ratios with their upper limit by the cost model, and the AUCs. Our study prunes no trial, because
KerasTuner prunes none, and starts from empty caches. `--repetitions` run one after the other, the
two sides in turn. With `--by_epoch` KerasTuner trains two epochs at each depth, and its study is
summed from the second ones, without what it does between epochs and trials. With `--fresh` pneumo
does not store features, and varies every image anew in every epoch, as KerasTuner does. With
`--alone` KerasTuner does not run, because its study of ResNet50V2 takes most of an hour, and the
fraction of the limit does not need it.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from pneumo.data.dataset import Dataset, open_dataset
from pneumo.data.schema import CLASSES
from pneumo.training.backbones import BACKBONES
from tests.benchmarks.costs import Costs
from tests.benchmarks.study_space import arguments
from tests.support.weights import write

SWITCHES = ("alone", "by_epoch", "fresh")
SMOKE = (
    "--data sample --images 60 --alone --backbone cnn --weights none --size 32 --epochs 1 "
    "--trials 1"
)
MANY = 100  # trials of the study that the cost model predicts

Repetition = tuple[dict[str, Any] | None, dict[str, Any]]  # results of the peer and of pneumo


def main() -> None:
    """Run all processes and print the report."""
    options = arguments().parse_args()
    if not options.alone and importlib.util.find_spec("keras_tuner") is None:
        sys.exit("this benchmark needs its peer: pip install keras-tuner==1.4.8 tensorboard")
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        if not options.weights:
            options.weights = _random_weights(options, Path(folder))
        lay_out(open_dataset(options.data), Path(folder), options.images)
        before = process("costs", options)
        runs = [_repetition(options) for _ in range(options.repetitions)]
        after = process("costs", options)
    _report(options, _mean(before, after), runs)


def _repetition(options: argparse.Namespace) -> Repetition:
    peer = None if options.alone else process("peer", options)
    ours = process("ours", options)
    if peer and options.by_epoch:
        peer["seconds"] = sum(
            trial["epochs"] * peer["epochs"][trial["depth"]] for trial in ours["trials"]
        )
    return peer, ours


def _mean(*measured: dict[str, Any]) -> Costs:
    """Average the costs before and after the studies, because a machine's speed varies."""
    names = measured[0]
    return Costs(
        **{name: np.mean([costs[name] for costs in measured], axis=0).tolist() for name in names}
    )


def _random_weights(options: argparse.Namespace, folder: Path) -> str:
    """Write a file of random weights, for networks whose weights are not available."""
    path = folder / f"{options.backbone}_random_no_top.h5"
    network = BACKBONES[options.backbone].build(options.alpha, input_shape=(224, 224, 3))
    with h5py.File(path, "w") as file:
        write(network, file)
    return str(path)


def lay_out(dataset: Dataset, folder: Path, images: int) -> None:
    """Links to the files, as published for us and split as we do it for the peer.

    With `images`, that many of validation and training together, and as large a share of test.
    """
    rows = dataset.rows
    share = images / (rows["split"] != "test").sum() if images else 1
    few = rows.groupby(["split", "label"]).sample(frac=share, random_state=0)
    published = few.assign(split=few["split"].replace("val", "train"))
    _link(published, dataset.base, folder / "ours")
    mine = open_dataset(str(folder / "ours"))
    _link(mine.rows, mine.base, folder / "peer")


def _link(rows: pd.DataFrame, base: Path, folder: Path) -> None:
    for row in rows.itertuples():
        target = folder / row.split / CLASSES[row.label] / Path(row.path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(base / row.path)


def process(module: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a process; return what it prints last, and its `seconds` with imports."""
    own = *SWITCHES, "repetitions"
    given = {k: v for k, v in vars(options).items() if k not in own and v not in (None, "")}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    chosen = {"by_epoch": options.by_epoch, "fresh": options.fresh}
    flags += [f"--{name}" for name, is_on in chosen.items() if is_on]
    print(f"{module}…", flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *flags]
    with tempfile.TemporaryDirectory() as cache:  # an empty one for each
        environment = {**os.environ, "PNEUMO_CACHE": cache, "TF_CPP_MIN_LOG_LEVEL": "2"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        seconds = time.monotonic() - began  # without the removal of the cache
    if done.returncode:
        sys.exit(f"{module} failed")
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"  {seconds:.0f} s", flush=True)
    return result if module == "costs" else {**result, "seconds": seconds}


def _report(options: argparse.Namespace, costs: Costs, runs: list[Repetition]) -> None:
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {date.today()}")
    name = options.backbone + (f" {options.alpha:g}" if options.backbone == "mobilenet" else "")
    print(
        f"{name} at {options.size} px, {options.trials} trials of {options.epochs} epochs, "
        f"0 to {options.depth} blocks unfrozen, {'fresh' if options.fresh else 'stored'} views"
    )
    print("\nseconds per 1,000 images")
    print(costs.table())
    peer, ours = (
        np.array([run["seconds"] if run else np.nan for run in side])
        for side in zip(*runs, strict=True)
    )
    least = np.array([costs.least(run) for _, run in runs])
    columns = {
        "KerasTuner, seconds": peer,
        "pneumo, seconds": ours,
        "ratio": peer / ours,
        "ceiling": peer / least,
        "share of it": least / ours,
    }
    print(f"\n{'':24}{'median':>10}{'least':>10}{'most':>10}")
    for name, values in columns.items():
        if not np.isnan(values).any():  # KerasTuner may not have run
            bounds = np.median(values), min(values), max(values)
            print(f"{name:24}" + "".join(f"{value:10.2f}" for value in bounds))
    for name, run in zip(("KerasTuner", "pneumo"), runs[-1], strict=True):
        if run and not np.isnan(run["val_auc"]):  # nor searched
            print(f"AUC of {name}: validation {run['val_auc']:.4f}, test {run['test_auc']:.4f}")
    last = runs[-1][1]
    parts, spent = costs.parts(last), last["spent"]
    _seconds("the least, by the cost model", {**parts, "sum": sum(parts.values())})
    imports = last["seconds"] - sum(spent.values())
    _seconds("the last study", {"imports": imports, **spent, "sum": last["seconds"]})
    print("anonymous memory after each trial, MiB:", *last["memory"])
    if not options.alone and not options.fresh:
        ratio = np.median(peer) * MANY / options.trials / costs.predict_seconds(last, MANY)
        print(f"{MANY} trials, predicted: {ratio:.1f} times")


def _seconds(heading: str, values: dict[str, float]) -> None:
    print(f"\n{heading}, in seconds")
    for what, seconds in values.items():
        print(f"  {what:32}{seconds:8.1f}")


if __name__ == "__main__":
    main()
