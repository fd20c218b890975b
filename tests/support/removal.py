"""Permanent removal of runs from a store."""

import mlflow
from mlflow.cli import gc  # imported while no test's store is the current one


def remove_runs(*run_ids: str) -> None:
    """Delete runs and have `mlflow gc` remove them from the current store."""
    client = mlflow.MlflowClient()
    for run_id in run_ids:
        client.delete_run(run_id)
    store = ["--backend-store-uri", mlflow.get_tracking_uri()]
    gc.main([*store, "--run-ids", ",".join(run_ids)], standalone_mode=False)
