"""What options name: the experiment, the data set and the files.

They are loaded before any library that takes seconds to import, so that a user error in them is
found soon.
"""

import glob
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pneumo.commands.options.arguments import (
    EvaluateOptions,
    ExploreOptions,
    Options,
    PredictOptions,
    PrepareOptions,
    PromoteOptions,
    TrainOptions,
    TuneOptions,
    WorkerOptions,
)
from pneumo.data.dataset import Dataset, open_dataset, published_splits
from pneumo.data.layouts.folders import is_junk, require_text
from pneumo.data.subset import write_subset
from pneumo.experiment import Experiment, load_experiment
from pneumo.runtime.errors import UserError, quoted
from pneumo.runtime.machine import require_gpus
from pneumo.training.config import RunConfig
from pneumo.tuning.planning.rules import AUTO, add_backbone_fields

MAX_FILE_NAME_BYTES = 240  # a file system allows 255, and the heat maps' folder needs some


@dataclass(frozen=True)
class Inputs:
    """Loaded inputs of a command; None or empty if the command has no such input.

    Attributes:
        experiment: The experiment.
        config: The config of a run, or the baseline of a study.
        dataset: The data set, not decoded yet.
        files: Paths of image files.
        out: Path of the CSV to write.
        begin: When the command began, in seconds since 1970.
    """

    experiment: Experiment | None = None
    config: RunConfig | None = None
    dataset: Dataset | None = None
    files: tuple[str, ...] = ()
    out: Path | None = None
    begin: float = 0.0


def load_inputs(options: Options) -> Inputs:
    """Load the inputs that a command's options name.

    Raises:
        UserError: One of them does not exist, or does not fit the command.
    """
    begin = time.time()
    return replace(LOADERS[type(options)](options), begin=begin)


def _open(options: Options, *required_splits: str) -> Dataset:
    return open_dataset(options.data, required_splits, positive=options.positive)


def _load_tune(options: TuneOptions) -> Inputs:
    from pneumo.tuning.spec import validate_search_space  # imports Optuna, which others do not need

    if options.launcher == "local":  # a cluster assigns its own GPUs
        require_gpus(options.workers, options.workers_per_gpu)
    if options.budget and options.timeout:
        raise UserError("--budget and --timeout exclude each other. Pass one of them.")
    default = AUTO if options.budget else "tune"
    experiment = load_experiment(options.experiment or default, require_search_space=True)
    fixed = options.overrides
    if options.budget and experiment.name == AUTO:
        fixed = add_backbone_fields(fixed)
    config = experiment.base.override(fixed)
    validate_search_space(experiment, config, fixed)
    dataset = _open(options, "train", "test")
    _require_folds(dataset, config)
    return Inputs(experiment, config, dataset)


def _load_worker(options: WorkerOptions) -> Inputs:
    if not options.driven:  # the process that starts a driven worker assigns its GPU
        require_gpus(options.workers, options.workers_per_gpu)
    return Inputs(dataset=_open(options, "train", "test"))


def _load_train(options: TrainOptions) -> Inputs:
    experiment = load_experiment(options.experiment)
    config = experiment.base.override(options.overrides)
    dataset = _open(options, "train")
    _require_folds(dataset, config)
    return Inputs(experiment, config, dataset)


def _require_folds(dataset: Dataset, config: RunConfig) -> None:
    """Raise `UserError` if the data set cannot be cut into the folds of a config."""
    if config.folds > 1 or config.split_by != "patient":
        dataset.assign_folds(config.folds, config.split_by)


def _load_evaluate(options: EvaluateOptions) -> Inputs:
    return Inputs(dataset=_open(options, *published_splits(options.split)))


def _load_promote(options: PromoteOptions) -> Inputs:
    if options.rollback:
        return Inputs()
    if not options.data:
        raise UserError(
            "promote requires --data unless --rollback is true. Pass the data set on which the "
            "models are compared."
        )
    return Inputs(dataset=_open(options, *published_splits(options.split)))


def _load_predict(options: PredictOptions) -> Inputs:
    out = _path_of_csv(options.out)
    return Inputs(files=tuple(find_images(options.images, out)), out=out)


def _load_explore(options: ExploreOptions) -> Inputs:
    dataset = open_dataset(options.data, (), allow_conflicts=True, positive=options.positive)
    return Inputs(dataset=dataset)


def _load_prepare(options: PrepareOptions) -> Inputs:
    config = RunConfig().override(options.overrides)
    if bool(options.test_images) != bool(options.out):
        raise UserError("--test_images and --out require each other. Pass both, or neither.")
    dataset = _open(options, *(["test"] if options.out else []))
    if options.out:
        out = _absolute(options.out)
        write_subset(dataset, _absolute(options.test_images), out)
        dataset = open_dataset(str(out), required_splits=())
    return Inputs(config=config, dataset=dataset)


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _path_of_csv(path: str) -> Path:
    """Return the path of the CSV; raise `UserError` if no file can be written there."""
    out = Path(os.path.expanduser(path))
    if len(os.fsencode(out.name)) > MAX_FILE_NAME_BYTES:
        raise UserError(
            f"--out must have a file name of at most {MAX_FILE_NAME_BYTES} bytes: "
            f"got '{quoted(out.name)}'"
        )
    if os.path.isdir(out) or not os.path.isdir(out.absolute().parent):
        raise UserError(f"--out must be a CSV file in an existing folder: got '{quoted(path)}'")
    if not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
        raise UserError(
            f"--out must be a file that can be written: got '{quoted(path)}'. Check the "
            "permissions, or choose another file."
        )
    return out


def find_images(pattern: str, out: Path) -> list[str]:
    """Find image files.

    Hidden files, `__MACOSX`, `out` itself and its heat maps are left out.

    Args:
        pattern: A file, a folder, which is searched with all its subfolders, or a glob of either.
        out: Path of the CSV.

    Returns:
        Paths of the files, sorted.

    Raises:
        UserError: There are no files.
    """
    # A file name may contain characters that are special in a glob
    roots = [pattern] if os.path.exists(pattern) else glob.iglob(pattern, recursive=True)
    candidates = {file for root in map(Path, roots) for file in _files_at(root)}
    outputs = out.resolve(), heat_map_folder(out).resolve()
    files = sorted(
        str(file)
        for file in candidates
        if not any(output in (file.resolve(), *file.resolve().parents) for output in outputs)
    )
    if not files:
        raise UserError(
            "--images must be a file, a folder or a glob of image files: "
            f"'{quoted(pattern)}' matches none"
        )
    require_text(files)
    return files


def heat_map_folder(out: Path) -> Path:
    """Return the folder of the heat maps for the CSV `out`."""
    return out.with_name(f"{out.stem}_explained")


def _files_at(path: Path) -> list[Path]:
    """Return the file itself, or all files below a folder except junk."""
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and not is_junk(file, path)]


LOADERS: dict[type[Options], Callable[..., Inputs]] = {
    TuneOptions: _load_tune,
    WorkerOptions: _load_worker,
    TrainOptions: _load_train,
    EvaluateOptions: _load_evaluate,
    PromoteOptions: _load_promote,
    PredictOptions: _load_predict,
    ExploreOptions: _load_explore,
    PrepareOptions: _load_prepare,
}
