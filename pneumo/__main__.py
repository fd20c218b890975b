"""Arguments to calls: one command for each entry point of MLproject."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pneumo import attributes, interrupt, tag_names
from pneumo.config import RunConfig
from pneumo.errors import (
    PREFIX,
    USER_ERROR,
    Mistake,
    StudyStopped,
    is_text,
    reason_for,
    shown,
)

# Nothing here may import TensorFlow or MLflow before the arguments are known to be right.

REFUSED = 3  # exit code: the gate has been closed to a candidate, which is a result

DATA = "sample, mendeley (is downloaded), a folder, a .zip or a .tar.gz"

MOST = 10**9  # of what is counted, and of seconds
MOST_WORKERS = 1_000
LONGEST_VALUE = 4_096  # characters, as many as a path may have
LONGEST_FILE_NAME = 240  # bytes: a file system takes 255, and what goes with it is longer
LONGEST_NAME = 60  # characters; files are named after studies and models

# The kind of a command's run, if its name is another
KINDS = {"tune": "study"}

INTERRUPTED = "interrupted; what was finished is kept"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def parse_known_args(self, *arguments: Any) -> tuple[argparse.Namespace, list[str]]:
        """Refuses what it does not know itself, so that the command's own help is named."""
        options, unknown = super().parse_known_args(*arguments)
        if unknown:
            self.error(f"unrecognized arguments: {shown(' '.join(unknown))}")
        if lost := [name for name, value in vars(options).items() if value == []]:
            self.error(f"argument --{lost[0]}: must not be '--'")  # of which argparse makes a list
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Raises `Mistake`."""
        raise Mistake(f"{message}; see python -m {self.prog} --help")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    0 done, 2 the user's mistake, 3 a promotion refused, 1 anything else.
    """
    interrupt.install()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = _parser().parse_args(arguments)
        return options.command(options)
    except StudyStopped as reason:
        _print_error(reason)
        return 1
    except Mistake as mistake:
        _print_error(mistake)
        _end_unused_run(arguments, str(mistake))
        return USER_ERROR
    except KeyboardInterrupt:
        _print_error(INTERRUPTED)
        _end_unused_run(arguments, INTERRUPTED)
        return 1
    except Exception as error:
        _end_unused_run(arguments, reason_for(error))
        raise


def _print_error(reason: object) -> None:
    print(f"{PREFIX}{reason}", file=sys.stderr)


def _end_unused_run(arguments: list[str], reason: str) -> None:
    """Store in the run that `mlflow run` has made why the command failed, if it used none."""
    if "MLFLOW_RUN_ID" in os.environ:  # MLflow removes it when the run is used
        from pneumo import tracking

        command = next(iter(arguments), "")
        tracking.end_unused_run(KINDS.get(command, command), reason)


def _parser() -> Parser:
    parser = Parser(prog="pneumo", description="An experiment harness for chest X-rays.")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=Parser)

    command = _command(commands, "tune", tune, "search with Optuna, register the best model")
    _experiment(command, default="tune")
    _option(command, "trials", 20, "trials to complete or prune", _whole)
    _option(command, "workers", 1, "processes that search at the same time", _workers)
    _option(command, "workers_per_gpu", 1, "of them that may share one GPU", _workers)
    _option(command, "launcher", "local", "of the workers: local, or ray for a cluster", _launcher)
    _option(command, "study", "", "name of the study (default: made from the run's id)", _name)
    _option(command, "timeout", "", "seconds after which no new trial starts", _whole)
    _option(command, "trial_timeout", "", "seconds that a trial may take, or it fails", _whole)
    what = "registered model (default: the study's own, pneumonia or pneumonia-sample)"
    _option(command, "model_name", "", what, _name)
    _option(command, "keep_models", "all", "all, or of how many of the best trials", _kept)

    command = _command(commands, "worker", worker, "join a study that is running elsewhere")
    _required(command, "study", "its name", _name)
    _data(command, required=True)
    _option(command, "workers", 1, "processes that search at the same time", _workers)
    _option(command, "workers_per_gpu", 1, "of them that may share one GPU", _workers)
    _option(command, "weights", "", "path of the study's file of weights, if it has one")
    what = "true: leave runs and display to the process that has started this one, and end with it"
    _option(command, "driven", False, what, _truth)

    command = _command(commands, "train", train, "one Keras run of one experiment")
    _experiment(command, default="cnn")
    _option(command, "model_name", "", "registered model (default: do not register)", _name)

    command = _command(commands, "evaluate", evaluate, "the evidence for one model on one split")
    _option(command, "model", "models:/pneumonia@challenger", "models:/NAME@ALIAS, or /VERSION")
    _data(command, required=True)  # a real model is not held against the sample by accident
    _option(command, "split", "test", "test, val or train", _split)
    _option(
        command,
        "sensitivity",
        "",
        "on validation, at which the threshold is chosen (default: the model's own threshold)",
        _share,
    )
    what = "true: evaluate it on pixels / 255 as well, a published bug, in a run of its own"
    _option(command, "preprocessing_skew", False, what, _truth)

    command = _command(commands, "promote", promote, "make a version the champion, if it is fit")
    _option(command, "model_name", "pneumonia", "registered model", _name)
    _option(command, "candidate", "challenger", "alias or number of the version", _name)
    _option(command, "data", "", f"{DATA}; needed but for a rollback")
    _option(command, "split", "test", "test, val or train", _split)
    _option(command, "margin", 0.02, "by how much its AUC may be smaller, 0 to 1", _margin)
    what = "by how much its sensitivity may be smaller, 0 to 1"
    _option(command, "sensitivity_margin", 0.05, what, _margin)
    _option(command, "rollback", False, "true: bring @previous back", _truth)

    command = _command(commands, "predict", predict, "score image files, to a CSV")
    _option(command, "model", "models:/pneumonia@champion", "models:/NAME@ALIAS, or /VERSION")
    _required(command, "images", "a file, a folder or a glob of image files")
    _required(command, "out", "the CSV; one that is there is continued")
    _option(command, "explain", False, "true: heat maps, in a folder beside out", _truth)

    command = _command(commands, "explore", explore, "look at a data set before anyone trains")
    _data(command, required=True)

    command = _command(commands, "prepare", prepare, "import a data set and fill the pixel cache")
    _data(command)
    what = "text file that lists the test images to keep, one path a line; needs out"
    _option(command, "test_images", "", what)
    _option(command, "out", "", "folder, new or empty: a copy of data with these test images only")
    _fields(command, ["image_size", "resize", "max_unreadable"])

    _command(commands, "test", test, "the test suite")
    return parser


def _command(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int], what: str
) -> Parser:
    command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    command.set_defaults(command=call)
    return command


def _experiment(command: Parser, default: str) -> None:
    _option(command, "experiment", default, "file of experiments/, without .py")
    _data(command)
    _fields(command, RunConfig.model_fields)


def _data(command: Parser, required: bool = False) -> None:
    if required:
        _required(command, "data", DATA)
    else:
        _option(command, "data", "sample", DATA)


def _fields(command: Parser, names: Any) -> None:
    for name in names:
        _option(command, name, "", RunConfig.model_fields[name].description)


def _required(command: Parser, name: str, what: str, kind: Any = str) -> None:
    command.add_argument(
        f"--{name}",
        required=True,
        metavar="VALUE",
        type=lambda text: kind(_text(text)),
        help=what,
    )


def _option(command: Parser, name: str, default: Any, what: str, kind: Any = str) -> None:
    # An empty value is one that was not given: MLproject has no other way to say so
    otherwise = "" if default == "" else f" (default: {default})"
    command.add_argument(
        f"--{name}",
        default=default,
        metavar="VALUE",
        type=lambda text: kind(_text(text)) if text else default,
        help=what + otherwise,
    )


def _text(text: str) -> str:
    if text and len(text) <= LONGEST_VALUE and is_text(text):
        return text
    raise argparse.ArgumentTypeError(
        f"must be 1 to {LONGEST_VALUE} characters in UTF-8, no control characters: "
        f"got '{shown(text)}'"
    )


def _name(text: str) -> str:
    if len(text) > LONGEST_NAME or not re.fullmatch(r"\w[\w .-]*", text):
        raise argparse.ArgumentTypeError(
            f"must be a name of letters, digits, '_', '-', '.' and spaces, up to {LONGEST_NAME} "
            f"characters: got '{shown(text)}'"
        )
    return text


def _whole(text: str, most: int = MOST) -> int:
    number = int(text) if text.isdecimal() and len(text) <= len(str(MOST)) else 0
    if not 1 <= number <= most:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to {most}: got '{shown(text)}'"
        )
    return number


def _workers(text: str) -> int:
    return _whole(text, MOST_WORKERS)


def _split(text: str) -> str:
    if text not in ("test", "val", "train"):
        raise argparse.ArgumentTypeError(f"must be test, val or train: got '{shown(text)}'")
    return text


def _share(text: str) -> float:
    share = _number(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"must be a share above 0, up to 1: got '{shown(text)}'")
    return share


def _margin(text: str) -> float:
    margin = _number(text)
    if not 0 <= margin <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1: got '{shown(text)}'")
    return margin


def _number(text: str) -> float:
    """`text` as a number; NaN, which is in no range, where it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false: got '{shown(text)}'")
    return text.lower() == "true"


def _launcher(text: str) -> str:
    if text not in ("local", "ray"):
        raise argparse.ArgumentTypeError(f"must be local or ray: got '{shown(text)}'")
    return text


def _kept(text: str) -> int | str:
    return "all" if text.lower() == "all" else _whole(text)


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    """The fields of `RunConfig` that were given, as text."""
    given = {name: getattr(options, name, "") for name in RunConfig.model_fields}
    return {name: value for name, value in given.items() if value}


def _needs(split: str) -> tuple[str]:
    """The part of a data set, as it is published, that holds a split."""
    return ("test",) if split == "test" else ("train",)  # validation is cut from train


def _require_fit(config: RunConfig) -> None:
    """Imports TensorFlow; what it alone can find wrong is said before a run is made."""
    from pneumo.console import import_tensorflow

    import_tensorflow()
    from pneumo.data.cache_entries import limit
    from pneumo.pretrained import pretrained

    pretrained(config)
    limit()


def tune(options: argparse.Namespace) -> int:
    """A study, its table, its winner and the way to look at it."""
    from pneumo.data.dataset import open_dataset
    from pneumo.experiment import load_experiment
    from pneumo.parallel import require_gpus
    from pneumo.search import require_fits

    if options.launcher == "local":  # a cluster gives out its GPUs itself
        require_gpus(options.workers, options.workers_per_gpu)
    experiment = load_experiment(options.experiment, searched=True)
    fixed = _overrides(options)
    base = experiment.base.override(fixed)  # a wrong value is said before the data is opened
    require_fits(experiment, base, fixed)
    dataset = open_dataset(options.data, needs=("train", "test"))
    if options.workers == 1 and options.launcher == "local":
        _require_fit(base)
    from pneumo import cluster, tracking
    from pneumo import tune as studies
    from pneumo.study import Plan

    if options.launcher == "ray":
        cluster.require()
    tracking.connect()
    outcome = studies.tune(
        Plan(experiment, dataset, fixed),
        trials=options.trials,
        model_name=options.model_name,
        name=options.study,
        timeout=options.timeout or None,
        keep_models=None if options.keep_models == "all" else options.keep_models,
        workers=options.workers,
        launcher=options.launcher,
        trial_timeout=options.trial_timeout or None,
    )
    studies.show(outcome)
    return 0


def worker(options: argparse.Namespace) -> int:
    """Trials of a study that another process has begun, until its goal is reached."""
    return _drive(options) if options.driven else _join(options)


def _join(options: argparse.Namespace) -> int:
    """Search a study with a run and a display of its own."""
    from pneumo.data.dataset import open_dataset
    from pneumo.parallel import require_gpus

    require_gpus(options.workers, options.workers_per_gpu)
    dataset = open_dataset(options.data, needs=("train", "test"))
    from pneumo import study as studies
    from pneumo import tracking, tune
    from pneumo.console import say

    tracking.connect()
    study, plan = studies.find(options.study, dataset, options.weights)
    goal, done = studies.Goal.of(study), studies.counted(study)
    if goal.reached(study):
        say(f"study {options.study} needs no more trials: {done} are done")
        return 0
    if options.workers == 1:
        _require_fit(plan.base)
    tags = tracking.subject_tags(plan.experiment.name, dataset) | tracking.process_tags()
    tags |= {tag_names.STUDY: options.study, tag_names.PARENT: attributes.RUN_ID.of(study)}
    with tracking.command_run("worker", f"of {options.study}", tags) as run_id:
        studies.warn_of_other_commit(study, run_id)
        say(f"joined study {options.study}: {done} trials are done")
        tune.search(study, plan, options.workers)
    return 0


def _drive(options: argparse.Namespace) -> int:
    """Search a study for another process, which has started this one and shows what it does."""
    interrupt.end_with_input()
    from pneumo import study as studies
    from pneumo import tracking
    from pneumo.data.dataset import open_dataset

    tracking.set_up()
    dataset = open_dataset(options.data, needs=("train", "test"))
    study, plan = studies.find(options.study, dataset, options.weights, studies.OUTAGE)
    studies.end_dead(study)  # a worker that ran here before, on behalf of a cluster
    studies.settle(study)
    _require_fit(plan.base)
    from pneumo.work import search_trials

    search_trials(study, plan, enforce_timeout=True)
    return 0


def train(options: argparse.Namespace) -> int:
    """One Keras run; registered where a model is named."""
    from pneumo.data.dataset import open_dataset
    from pneumo.experiment import load_experiment

    experiment = load_experiment(options.experiment)
    config = experiment.base.override(_overrides(options))
    dataset = open_dataset(options.data, needs=("train",))
    _require_fit(config)
    from pneumo import intake, registry, tracking
    from pneumo.console import say, say_epoch
    from pneumo.trial import run_name, run_trial

    tracking.connect()
    tags = tracking.subject_tags(experiment.name, dataset)
    with tracking.command_run("train", experiment.name, tags) as run_id:
        intake.take(dataset, config)
        name = run_name(config)
        trial = run_trial(config, dataset, [say_epoch], parent_id=run_id, name=name, tags=tags)
        for metric, value in trial.metrics.items():
            say(f"val_{metric} {value:.4f}")
        if options.model_name:
            model = registry.load(trial.model_uri)
            stored = registry.register(trial.run_id, model, options.model_name)
            say(f"registered {stored.title} as @{registry.CHALLENGER}")
    say(tracking.how_to_look(run_id))
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """One model held against one split: numbers, pictures and the evidence page."""
    from pneumo.data.dataset import open_dataset

    dataset = open_dataset(options.data, needs=_needs(options.split))
    from pneumo.console import import_tensorflow

    import_tensorflow()
    from pneumo import evidence, registry, tracking
    from pneumo.console import say

    tracking.connect()
    stored = registry.find(options.model)
    with evidence.evaluation_run(stored, dataset) as (run_id, images):
        found = evidence.examine(stored, images, options.split, options.sensitivity or None)
    evidence.show(stored, options.split, found)
    if options.preprocessing_skew:
        from pneumo.skew import evaluate_with_skew

        evaluate_with_skew(stored, images, options.split, found, run_id)
    say(tracking.how_to_look(run_id))
    return 0


def promote(options: argparse.Namespace) -> int:
    """The gate to `@champion`, or the way back; 3 where the candidate is refused."""
    from pneumo.data.dataset import open_dataset

    if not options.rollback and not options.data:
        raise Mistake("promote needs data to decide on: give --data, or --rollback true")
    dataset = None if options.rollback else open_dataset(options.data, needs=_needs(options.split))
    from pneumo.console import import_tensorflow

    import_tensorflow()
    from pneumo import promote as promotion
    from pneumo import tracking

    tracking.connect()
    if dataset is None:
        promotion.roll_back(options.model_name)
        return 0
    margins = options.margin, options.sensitivity_margin
    name, candidate = options.model_name, options.candidate
    decision = promotion.promote(name, candidate, dataset, options.split, *margins)
    return 0 if decision.promoted else REFUSED


def predict(options: argparse.Namespace) -> int:
    """Image files to a CSV of their probabilities."""
    from pneumo.data.index import explained, find_images

    out = Path(os.path.expanduser(options.out))
    if len(os.fsencode(out.name)) > LONGEST_FILE_NAME:
        raise Mistake(
            f"out must have a name of up to {LONGEST_FILE_NAME} bytes: got '{shown(out.name)}'"
        )
    if os.path.isdir(out) or not os.path.isdir(out.absolute().parent):
        raise Mistake(
            f"out must be a CSV file in a folder that is there: got '{shown(options.out)}'"
        )
    files = find_images(options.images, out)
    from pneumo.console import import_tensorflow

    import_tensorflow()
    from pneumo import predict as prediction
    from pneumo import registry, tracking
    from pneumo.console import say

    tracking.connect()
    stored = registry.find(options.model)
    tags = {tag_names.MODEL: stored.title, tag_names.DATA: Path(options.images).name}
    with tracking.command_run("predict", tags[tag_names.DATA], tags):
        counts = prediction.predict(stored, files, out)
        if options.explain:
            prediction.explain(stored, files, explained(out))
    if before := len(files) - counts["images"]:
        say(f"{before} images were in {out} before")
    say(
        f"{counts['images']} images, {counts['positive']} called pneumonia, "
        f"{counts['unreadable']} unreadable: {out}"
    )
    if options.explain:
        say(f"what speaks for pneumonia in each: {explained(out)}")
    return 0


def explore(options: argparse.Namespace) -> int:
    """A data set looked at: counts, problems, figures."""
    from pneumo.data.dataset import open_dataset

    dataset = open_dataset(options.data, needs=(), in_conflict=True)
    from pneumo import explore as exploration
    from pneumo import tracking

    tracking.connect()
    exploration.explore(dataset)
    return 0


def prepare(options: argparse.Namespace) -> int:
    """The data unpacked, indexed, decoded and counted, or a copy with some test images only."""
    from pneumo.data.dataset import open_dataset

    config = RunConfig().override(_overrides(options))
    if bool(options.test_images) != bool(options.out):
        raise Mistake("test_images and out go together: give both, or neither")
    dataset = open_dataset(options.data, needs=("test",) if options.out else ())
    if options.out:
        from pneumo.data.subset import write_subset

        given = options.test_images, options.out
        listed, out = (Path(os.path.abspath(os.path.expanduser(it))) for it in given)
        write_subset(dataset, listed, out)
        dataset = open_dataset(str(out), needs=())
    from pneumo import intake, tracking
    from pneumo.console import say, table

    tracking.connect()
    with tracking.command_run("prepare", dataset.name, tracking.data_tags(dataset)):
        images = intake.take(dataset, config)
    counts = images.counts()
    table(f"{dataset.name}, digest {dataset.digest}", list(counts), counts.to_numpy())
    say(images.summary())
    return 0


def test(_: argparse.Namespace) -> int:
    """The test suite, in this environment."""
    return subprocess.call([sys.executable, "-m", "pytest"], cwd=Path(__file__).parent.parent)


if __name__ == "__main__":
    interrupt.leave(main())
