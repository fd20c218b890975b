"""What users find with MLflow's own API, without anything of this package."""

from pathlib import Path

import mlflow
import pytest

from pneumo.commands.evaluation import evaluate_model, evaluation_run
from pneumo.tracking import models
from pneumo.tracking.model_files import SERVING_REQUIREMENTS


def runs_of(client, kind: str) -> list:
    found = client.search_runs(["0"], f"tags.`pneumo.kind` = '{kind}'")
    return [client.get_run(run.info.run_id) for run in found]  # with inputs and outputs


@pytest.mark.slow
def test_five_calls_find_the_best_model_on_a_data_set(study, client, sample):
    [study] = runs_of(client, "study")
    [winner] = study.inputs.model_inputs
    source = mlflow.get_logged_model(winner.model_id).source_run_id
    [loser] = (
        trial.outputs.model_outputs[0].model_id
        for trial in runs_of(client, "trial")
        if trial.info.run_id != source
    )
    other = models.find_model(f"models:/{loser}")
    with evaluation_run(other, sample, "test") as (run_id, images):
        evaluate_model(other, images, "test")
    evaluation = client.get_run(run_id)
    [given] = evaluation.inputs.dataset_inputs
    assert (given.dataset.name, given.tags[0].value) == ("sample/test", "testing")
    assert [given.model_id for given in evaluation.inputs.model_inputs] == [loser]
    expected = max(study, evaluation, key=lambda run: run.data.metrics["test_auc"])
    assert study.data.metrics["test_auc"] != evaluation.data.metrics["test_auc"]

    data = {"dataset_name": "sample/test", "dataset_digest": sample.images_digest("test")}
    best, _ = mlflow.search_logged_models(
        datasets=[data],
        filter_string="metrics.test_auc > 0",
        order_by=[{"field_name": "metrics.test_auc", "ascending": False, **data}],
        output_format="list",
    )
    assert best.model_id == expected.inputs.model_inputs[0].model_id
    best = mlflow.get_logged_model(best.model_id)
    found = {
        metric.key: metric.value
        for metric in best.metrics
        if metric.dataset_digest == data["dataset_digest"]
    }
    assert {"test_auc", "test_auc_low", "test_auc_high"} <= set(found)
    assert found == {
        name: value for name, value in expected.data.metrics.items() if name.startswith("test_")
    }
    trial = mlflow.get_run(best.source_run_id)
    trained_on = {item.dataset.name: item.dataset.digest for item in trial.inputs.dataset_inputs}
    splits = "train", "val"
    assert trained_on == {f"sample/{split}": sample.images_digest(split) for split in splits}
    requirements = Path(mlflow.pyfunc.get_model_dependencies(best.model_uri)).read_text()
    assert {line.partition("==")[0] for line in requirements.split()} == set(SERVING_REQUIREMENTS)
