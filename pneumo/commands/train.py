"""The command `train`: one Keras run of one experiment."""

from pneumo.commands.options.arguments import TrainOptions
from pneumo.commands.options.inputs import Inputs
from pneumo.runtime.console import echo, print_epoch
from pneumo.tracking import registry, results, runs, session
from pneumo.training.pretrained import prepare_to_fit


def train(options: TrainOptions, inputs: Inputs) -> int:
    """Train one model, register it if a name is given, and return the exit code."""
    experiment, config, dataset = inputs.experiment, inputs.config, inputs.dataset
    prepare_to_fit(config)
    from pneumo.tuning.trial import load_with_gate, run_name, run_trial

    session.connect()
    tags = runs.provenance_tags(experiment.name, dataset)
    with runs.command_run("train", experiment.name, tags) as run_id:
        results.decode_and_log(dataset, config)
        name = run_name(config)
        result = run_trial(config, dataset, [print_epoch], parent_id=run_id, name=name, tags=tags)
        for metric, value in result.metrics.items():
            echo(f"val_{metric} {value:.4f}")
        if options.model_name:
            model = load_with_gate(result.model_uri, dataset, config.max_unreadable)
            loaded_model = registry.register(result.run_id, model, options.model_name)
            echo(f"registered {loaded_model.title} as @{registry.CHALLENGER}")
    echo(session.view_hint(run_id))
    return 0
