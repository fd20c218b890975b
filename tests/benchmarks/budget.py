"""The best model that KerasTuner finds in the time of a budget.

    python -m tests.benchmarks.budget --data ARCHIVE --weights FILE --seconds 600 --seed 0 \\
        --output keras-0.csv

Its search is that of `study`, as KerasTuner's guides write it. It ends by time, see `peer.Tuner`.
The predictions for test are written to a file, which `winners` compares with registered models.
The benchmark needs `keras-tuner` and `tensorboard` in addition to conda.yaml, except with
`--alone`, which only tries its other parts, with a constant prediction.
"""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from pneumo.data.dataset import open_dataset
from tests.benchmarks.study import lay_out, process
from tests.benchmarks.study_space import arguments

SMOKE = "--data sample --images 60 --alone --output keras.csv"
ALL = 1_000_000  # trials, more than there is time for


def main() -> None:
    """Run the search, and write its predictions."""
    parser = arguments()
    parser.add_argument("--output", required=True, help="CSV file of the predictions")
    options = parser.parse_args()
    output = vars(options).pop("output")  # the process of KerasTuner does not know it
    options.trials = ALL
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        dataset = open_dataset(options.data)
        lay_out(dataset, Path(folder), options.images)
        names = sorted(path.name for path in Path(folder, "peer", "test").glob("*/*"))
        result = {"probabilities": dict.fromkeys(names, 0.5)}
        if not options.alone:
            result = process("peer", options)
    rows = dataset.rows[dataset.rows["split"] == "test"]
    probabilities = rows["path"].map(lambda path: result["probabilities"].get(Path(path).name))
    columns = ["path", "patient", "label"]
    predictions = rows[columns].assign(probability=probabilities.astype(np.float64)).dropna()
    predictions.to_csv(output, index=False)
    summary = {name: value for name, value in result.items() if name != "probabilities"}
    print(pd.Series({**summary, "images": len(predictions)}).to_string())


if __name__ == "__main__":
    main()
