"""What a command's run does to its MLflow experiment."""

from pneumo.tracking import runs
from pneumo.tracking.tags import NOTE


def test_an_experiment_is_described_unless_somebody_has_done_that(store, monkeypatch):
    described = store.create_experiment("described", tags={NOTE: "Ours."})
    for experiment_id, text in {"0": runs.EXPERIMENT_DESCRIPTION, described: "Ours."}.items():
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
        with runs.command_run("explore", "", {}) as run_id:
            assert store.get_run(run_id).info.experiment_id == experiment_id
        assert store.get_experiment(experiment_id).tags[NOTE] == text
