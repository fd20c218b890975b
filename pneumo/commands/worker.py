"""The command `worker`: trials of a study that another process has begun, up to its goal."""

from pneumo.commands import tune
from pneumo.commands.arguments import WorkerOptions
from pneumo.data.dataset import open_dataset
from pneumo.runtime import signals
from pneumo.runtime.console import say
from pneumo.runtime.machine import require_gpus
from pneumo.tracking import runs, session
from pneumo.tracking.tags import PARENT, STUDY
from pneumo.training.pretrained import prepare_to_fit
from pneumo.tuning import attributes
from pneumo.tuning.storage import OUTAGE
from pneumo.tuning.study import Goal, counted, end_dead, find, settle, warn_of_other_commit


def worker(options: WorkerOptions) -> int:
    """Search a study that another process has begun."""
    return _drive(options) if options.driven else _join(options)


def _join(options: WorkerOptions) -> int:
    """Search a study with a run and a display of its own."""
    require_gpus(options.workers, options.workers_per_gpu)
    dataset = open_dataset(options.data, needs=("train", "test"))
    session.connect()
    study, plan = find(options.study, dataset, options.weights or "")
    goal, done = Goal.of(study), counted(study)
    if goal.reached(study):
        say(f"study {options.study} needs no more trials: {done} are done")
        return 0
    if options.workers == 1:
        prepare_to_fit(plan.base)
    tags = runs.subject_tags(plan.experiment.name, dataset) | runs.process_tags()
    tags |= {STUDY: options.study, PARENT: attributes.RUN_ID.of(study)}
    with runs.command_run("worker", f"of {options.study}", tags) as run_id:
        warn_of_other_commit(study, run_id)
        say(f"joined study {options.study}: {done} trials are done")
        tune.run_search(study, plan, options.workers)
    return 0


def _drive(options: WorkerOptions) -> int:
    """Search a study for another process, which has started this one and shows what it does."""
    signals.end_with_input()
    session.set_up()
    dataset = open_dataset(options.data, needs=("train", "test"))
    study, plan = find(options.study, dataset, options.weights or "", OUTAGE)
    end_dead(study)  # a worker that ran here before, on behalf of a cluster
    settle(study)
    prepare_to_fit(plan.base)
    from pneumo.tuning.worker import search_trials  # waits for TensorFlow

    search_trials(study, plan, enforce_timeout=True)
    return 0
