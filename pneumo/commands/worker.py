"""The command `worker`: trials of a study that another process has begun, up to its goal."""

from pneumo import attributes, interrupt, tag_names
from pneumo.commands.arguments import WorkerOptions
from pneumo.console import say
from pneumo.data.dataset import open_dataset
from pneumo.parallel import require_gpus
from pneumo.pretrained import prepare_to_fit


def worker(options: WorkerOptions) -> int:
    """Search a study that another process has begun."""
    return _drive(options) if options.driven else _join(options)


def _join(options: WorkerOptions) -> int:
    """Search a study with a run and a display of its own."""
    require_gpus(options.workers, options.workers_per_gpu)
    dataset = open_dataset(options.data, needs=("train", "test"))

    # They import MLflow and Optuna, which a mistake in the data need not wait for
    from pneumo import study as studies
    from pneumo import tracking, tune

    tracking.connect()
    study, plan = studies.find(options.study, dataset, options.weights or "")
    goal, done = studies.Goal.of(study), studies.counted(study)
    if goal.reached(study):
        say(f"study {options.study} needs no more trials: {done} are done")
        return 0
    if options.workers == 1:
        prepare_to_fit(plan.base)
    tags = tracking.subject_tags(plan.experiment.name, dataset) | tracking.process_tags()
    tags |= {tag_names.STUDY: options.study, tag_names.PARENT: attributes.RUN_ID.of(study)}
    with tracking.command_run("worker", f"of {options.study}", tags) as run_id:
        studies.warn_of_other_commit(study, run_id)
        say(f"joined study {options.study}: {done} trials are done")
        tune.search(study, plan, options.workers)
    return 0


def _drive(options: WorkerOptions) -> int:
    """Search a study for another process, which has started this one and shows what it does."""
    interrupt.end_with_input()

    # They import MLflow and Optuna, and the end of the input is to be heard before
    from pneumo import study as studies
    from pneumo import tracking

    tracking.set_up()
    dataset = open_dataset(options.data, needs=("train", "test"))
    study, plan = studies.find(options.study, dataset, options.weights or "", studies.OUTAGE)
    studies.end_dead(study)  # a worker that ran here before, on behalf of a cluster
    studies.settle(study)
    prepare_to_fit(plan.base)
    from pneumo.work import search_trials  # imports TensorFlow, as just prepared

    search_trials(study, plan, enforce_timeout=True)
    return 0
