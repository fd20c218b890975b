"""Pictures for the README: MLflow's pages of a study of the synthetic sample.

python -m tests.pictures FOLDER
"""

import argparse
import tempfile
from pathlib import Path

from pneumo.data.dataset import open_dataset
from pneumo.experiment import load_experiment
from pneumo.study import Plan
from pneumo.tune import tune
from tests.browser import chromium, walk
from tests.conftest import store_in
from tests.services import mlflow_server


def main() -> None:
    """Leaves a picture of each page in the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args()
    pictures = options.folder.resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, chromium() as page:
        folder = Path(name)
        store = f"sqlite:///{folder}/runs.db"
        with mlflow_server(store, folder) as server, store_in(folder, server.address):
            plan = Plan(load_experiment("tune"), open_dataset("sample"), {})
            outcome = tune(plan, trials=options.trials, model_name="pneumonia-sample")
            walk(page, server.address, outcome, pictures)


if __name__ == "__main__":
    main()
