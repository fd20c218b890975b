"""The command `tune`: a study, its table, its winner and how to look at it."""

from pneumo.commands.arguments import TuneOptions
from pneumo.data.dataset import open_dataset
from pneumo.experiment import load_experiment
from pneumo.runtime.machine import require_gpus
from pneumo.search import require_fits
from pneumo.training.pretrained import prepare_to_fit


def tune(options: TuneOptions) -> int:
    """Search with Optuna and register the best model."""
    if options.launcher == "local":  # a cluster gives out its GPUs itself
        require_gpus(options.workers, options.workers_per_gpu)
    experiment = load_experiment(options.experiment, searched=True)
    base = experiment.base.override(options.overrides)
    require_fits(experiment, base, options.overrides)
    dataset = open_dataset(options.data, needs=("train", "test"))
    if options.workers == 1 and options.launcher == "local":
        prepare_to_fit(base)  # workers in other processes do that themselves

    # They import MLflow, which a mistake in the arguments or the data need not wait for
    from pneumo import cluster
    from pneumo.study import Plan
    from pneumo.tracking import session
    from pneumo.tune import show, tune

    if options.launcher == "ray":
        cluster.require()
    session.connect()
    outcome = tune(
        Plan(experiment, dataset, options.overrides),
        trials=options.trials,
        model_name=options.model_name or "",
        name=options.study or "",
        timeout=options.timeout,
        keep_models=None if options.keep_models == "all" else options.keep_models,
        workers=options.workers,
        launcher=options.launcher,
        trial_timeout=options.trial_timeout,
    )
    show(outcome)
    return 0
