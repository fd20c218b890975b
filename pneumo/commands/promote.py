"""The command `promote`: the gate to `@champion`, or the way back."""

from pneumo.commands.arguments import PromoteOptions
from pneumo.data.dataset import open_dataset, published_splits
from pneumo.runtime.errors import Mistake
from pneumo.runtime.tensorflow_import import import_tensorflow

REFUSED = 3  # exit code: the gate stays closed to a candidate, which is a result


def promote(options: PromoteOptions) -> int:
    """Make a version the champion if it is fit, or bring the previous one back."""
    if options.rollback:
        dataset = None
    elif options.data:
        dataset = open_dataset(options.data, needs=published_splits(options.split))
    else:
        raise Mistake("promote needs data to decide on: give --data, or --rollback true")
    import_tensorflow()

    # They import MLflow and TensorFlow, which a mistake need not wait for
    from pneumo.promote import promote, roll_back
    from pneumo.tracking import session

    session.connect()
    if dataset is None:
        roll_back(options.model_name)
        return 0
    decision = promote(
        options.model_name,
        options.candidate,
        dataset,
        options.split,
        options.margin,
        options.sensitivity_margin,
    )
    return 0 if decision.promoted else REFUSED
