"""The command `worker`: trials of a study that another process has created."""

from pneumo.commands.options.arguments import WorkerOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.commands.tune import run_search
from pneumo.data.dataset import Dataset
from pneumo.runtime import signals
from pneumo.runtime.console import echo
from pneumo.tracking import runs, session
from pneumo.tracking.tags import PARENT, STUDY
from pneumo.training.pretrained import prepare_to_fit
from pneumo.tuning import attributes
from pneumo.tuning.limits import StudyLimits, count_finished_trials
from pneumo.tuning.storage import MAX_OUTAGE
from pneumo.tuning.study import attach_to_study, replace_lost_trials, warn_of_other_commit


def worker(options: WorkerOptions, inputs: Inputs) -> int:
    """Search a study that another process has created, and return the exit code."""
    return (_drive if options.driven else _join)(options, inputs.dataset)


def _join(options: WorkerOptions, dataset: Dataset) -> int:
    """Search a study with a run and a display of its own."""
    session.connect()
    study, spec = attach_to_study(options.study, dataset, options.weights or "")
    limits, n_done = StudyLimits.from_study(study), count_finished_trials(study)
    if limits.is_reached(study):
        echo(f"study {options.study} needs no more trials: {n_done} are finished")
        return 0
    if options.workers == 1:
        prepare_to_fit(spec.base)
    tags = runs.provenance_tags(spec.experiment.name, dataset) | runs.process_tags()
    tags |= {STUDY: options.study, PARENT: attributes.RUN_ID.read(study)}
    with runs.command_run("worker", f"of {options.study}", tags) as run_id:
        warn_of_other_commit(study, run_id)
        echo(f"joined study {options.study}: {n_done} trials are finished")
        run_search(study, spec, options.workers)
    return 0


def _drive(options: WorkerOptions, dataset: Dataset) -> int:
    """Search a study for the process that has started this one and displays its output."""
    signals.terminate_with_stdin()
    session.configure_mlflow()
    study, spec = attach_to_study(options.study, dataset, options.weights or "", MAX_OUTAGE)
    replace_lost_trials(study, spec)  # of an earlier worker of a cluster on this machine
    prepare_to_fit(spec.base)
    from pneumo.tuning.worker import run_trials  # imports TensorFlow

    run_trials(study, spec, enforce_timeout=True)
    return 0
