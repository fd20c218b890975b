"""The command `evaluate`: numbers, pictures and the evidence page for one model on one split."""

from pneumo.commands.arguments import EvaluateOptions
from pneumo.data.dataset import open_dataset, published_splits
from pneumo.runtime.console import say
from pneumo.runtime.tensorflow_import import import_tensorflow


def evaluate(options: EvaluateOptions) -> int:
    """Evaluate one model on one split."""
    dataset = open_dataset(options.data, needs=published_splits(options.split))
    import_tensorflow()

    # They import MLflow and TensorFlow, which a mistake in the data need not wait for
    from pneumo import evidence
    from pneumo.tracking import models, session

    session.connect()
    stored = models.find(options.model)
    with evidence.evaluation_run(stored, dataset) as (run_id, images):
        found = evidence.examine(stored, images, options.split, options.sensitivity)
    evidence.show(stored, options.split, found)
    if options.preprocessing_skew:
        from pneumo.skew import evaluate_with_skew  # imports TensorFlow

        evaluate_with_skew(stored, images, options.split, found, run_id)
    say(session.how_to_look(run_id))
    return 0
