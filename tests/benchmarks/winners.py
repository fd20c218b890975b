"""Registered models compared with others, the references, on test, from stored predictions.

    python -m tests.benchmarks.winners --reference NAME [NAME ...] --models NAME [NAME ...]

Run it in the folder of the stores. A name stands for the `@challenger` of a registered model, which
must have been evaluated on test, or is a file of predictions that `budget` has written, whose
threshold is 0.5. No model predicts anything, so this is no look at test.

The difference of the mean AUC of the models from that of the references has a 95 % interval, by
resampling of patients. All models are scored on the same samples.
"""

import argparse

import mlflow
import numpy as np
import pandas as pd

from pneumo.evaluation import bootstrap
from pneumo.evaluation.metrics import HEADLINE_METRICS, compute_metrics
from pneumo.tracking import results, session, tags

SMOKE = "--reference {model} --models {model} {model}"


def stored_evaluation(name: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return a model's predictions for test, sorted by path, and its metrics on both splits."""
    if name.endswith(".csv"):
        predictions = pd.read_csv(name, dtype={"path": str, "patient": str})
        labels, probabilities = (predictions[it].to_numpy() for it in ("label", "probability"))
        values = compute_metrics(labels, probabilities, threshold=0.5)
        metrics = {f"test {metric}": values[metric] for metric in HEADLINE_METRICS}
        return predictions.sort_values("path", ignore_index=True), metrics
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias(name, "challenger")
    evaluation = version.tags[tags.EVALUATION_RUN]
    predictions = results.read_predictions(evaluation, "test")
    metrics = {
        f"{split} {metric}": client.get_run(run_id).data.metrics[f"{split}_{metric}"]
        for split, run_id in (("val", version.run_id), ("test", evaluation))
        for metric in HEADLINE_METRICS
    }
    return predictions.sort_values("path", ignore_index=True), metrics


def mean_difference(
    references: list[pd.DataFrame], models: list[pd.DataFrame], draws: int = bootstrap.N_RESAMPLES
) -> tuple[float, float, float]:
    """Return the mean AUC of models minus that of the references, with its 95 % interval.

    Args:
        references: Predictions of each reference, columns as in `metrics.Evaluation`, sorted by
            path.
        models: Predictions of each model, sorted by path.
        draws: Number of samples of patients.
    """
    first = references[0]
    if not all(bootstrap.is_paired(model, first) for model in [*references, *models]):
        raise SystemExit("all models must be evaluated on the same images")
    original = np.ones((1, len(first)), int)
    counts = np.vstack([original, bootstrap.resample_patients(first, draws)])
    means = (
        np.mean([bootstrap.bootstrap_auc(model, counts) for model in group], axis=0)
        for group in (models, references)
    )
    difference, *sampled = np.subtract(*means)
    return float(difference), *map(float, np.percentile(sampled, bootstrap.CI_PERCENTILES))


def main() -> None:
    """Print the metrics of each model, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", nargs="+", required=True)
    parser.add_argument("--models", nargs="+", required=True)
    options = parser.parse_args()
    session.configure_mlflow()
    names = [*options.reference, *options.models]
    evaluated = [stored_evaluation(name) for name in names]
    table = pd.DataFrame([metrics for _, metrics in evaluated], index=names)
    table["val - test accuracy"] = table["val accuracy"] - table["test accuracy"]
    print(table.round(4).T.to_string())
    predictions, count = [of_test for of_test, _ in evaluated], len(options.reference)
    difference, low, high = mean_difference(predictions[:count], predictions[count:])
    references = ", ".join(options.reference)
    print(f"mean AUC minus that of {references}: {difference:.4f} ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
