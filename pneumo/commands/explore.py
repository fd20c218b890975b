"""The command `explore`: counts, problems and figures of a data set."""

from pneumo.commands.arguments import ExploreOptions
from pneumo.data.dataset import open_dataset


def explore(options: ExploreOptions) -> int:
    """Look at a data set before anyone trains."""
    dataset = open_dataset(options.data, needs=(), in_conflict=True)

    # They import MLflow, which a mistake in the data need not wait for
    from pneumo.explore import explore
    from pneumo.tracking import session

    session.connect()
    explore(dataset)
    return 0
