"""The command `worker`: trials of a study that another process has begun, up to its goal."""

from pneumo import attributes
from pneumo.commands.arguments import WorkerOptions
from pneumo.data.dataset import open_dataset
from pneumo.runtime import signals
from pneumo.runtime.console import say
from pneumo.runtime.machine import require_gpus
from pneumo.tracking.tags import PARENT, STUDY
from pneumo.training.pretrained import prepare_to_fit


def worker(options: WorkerOptions) -> int:
    """Search a study that another process has begun."""
    return _drive(options) if options.driven else _join(options)


def _join(options: WorkerOptions) -> int:
    """Search a study with a run and a display of its own."""
    require_gpus(options.workers, options.workers_per_gpu)
    dataset = open_dataset(options.data, needs=("train", "test"))

    # They import MLflow and Optuna, which a mistake in the data need not wait for
    from pneumo import tune
    from pneumo.study import Goal, counted, find, warn_of_other_commit
    from pneumo.tracking import runs, session

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
        tune.search(study, plan, options.workers)
    return 0


def _drive(options: WorkerOptions) -> int:
    """Search a study for another process, which has started this one and shows what it does."""
    signals.end_with_input()

    # They import MLflow and Optuna, and the end of the input is to be heard before
    from pneumo.study import OUTAGE, end_dead, find, settle
    from pneumo.tracking import session

    session.set_up()
    dataset = open_dataset(options.data, needs=("train", "test"))
    study, plan = find(options.study, dataset, options.weights or "", OUTAGE)
    end_dead(study)  # a worker that ran here before, on behalf of a cluster
    settle(study)
    prepare_to_fit(plan.base)
    from pneumo.work import search_trials  # imports TensorFlow, as just prepared

    search_trials(study, plan, enforce_timeout=True)
    return 0
