"""The command `explore`: counts, problems and figures of a data set."""

from pneumo.commands.arguments import ExploreOptions
from pneumo.data.dataset import open_dataset


def explore(options: ExploreOptions) -> int:
    """Look at a data set before anyone trains."""
    dataset = open_dataset(options.data, needs=(), in_conflict=True)

    # They import MLflow, which a mistake in the data need not wait for
    from pneumo import explore as exploration
    from pneumo import tracking

    tracking.connect()
    exploration.explore(dataset)
    return 0
