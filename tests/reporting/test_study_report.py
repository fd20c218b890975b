"""The page of a real study, read from its run, and the page of other studies."""

import html
import re
import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from pneumo.__main__ import main
from pneumo.commands.tune import tune_and_register
from pneumo.evaluation import bootstrap
from pneumo.evaluation.intervals import format_with_interval, metric_intervals
from pneumo.evaluation.metrics import compute_metrics
from pneumo.experiment import load_experiment
from pneumo.reporting.study_plots import STUDY_PLOTS
from pneumo.reporting.study_report import StudyReport
from pneumo.reporting.study_summary import DONE, RUNNING, STOPPED
from pneumo.tracking import runs, session
from pneumo.tuning import selection
from pneumo.tuning.limits import StudyLimits
from pneumo.tuning.output import study_page
from pneumo.tuning.output.study_page import StudyPage, summarize
from pneumo.tuning.spec import StudySpec
from tests.support.stores import store_in
from tests.support.studies import children, files, predictions, text, without_pictures

pytestmark = pytest.mark.slow

FIXED = {"image_size": "32", "epochs": "2"}
FIELDS = ["dropout", "dense_widths", "augment_strength", "unfreeze_depth", "learning_rate"]
MOST = 8_000_000  # bytes of a page


@pytest.fixture(scope="module")
def spec(sample) -> StudySpec:
    return StudySpec(load_experiment("tune"), sample, FIXED)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, spec):
    """Run a study of three trials; return it and the folder of its stores."""
    folder = tmp_path_factory.mktemp("searched")
    with store_in(folder), without_pictures():
        return tune_and_register(
            spec, trials=3, model_name="pneumonia-sample", name="night"
        ), folder


@pytest.fixture
def study(searched, tmp_path):
    """Return the study, with stores that a test may change."""
    outcome, folder = searched
    for database in folder.glob("*.db"):
        shutil.copy(database, tmp_path)
    with store_in(tmp_path):
        yield optuna.load_study(study_name="night", storage=f"sqlite:///{tmp_path}/optuna.db")


def run_id(study) -> str:
    return study.user_attrs["run_id"]


def page_of(study) -> str:
    """Return the study's page, without the megabytes of script."""
    page = text(run_id(study), "study/study.html")
    return html.unescape(re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S))


def as_text(page: str) -> str:
    """Return the visible text of a page."""
    without = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without)))


@contextmanager
def begun(spec, name: str):
    """Create a study without trials, within its run."""
    with runs.command_run("study", "", {}) as parent:
        study = optuna.create_study(direction="maximize", study_name=name)
        for key, value in {**spec.identity(), "run_id": parent}.items():
            study.set_user_attr(key, value)
        StudyLimits(5).save(study)
        yield study


def trial_like(best, value: float, **params):
    return create_trial(
        params=best.params | params,
        distributions=best.distributions,
        value=value,
        user_attrs=best.user_attrs,
        intermediate_values={1: value - 0.1, 2: value},
    )


def test_the_page(study):
    client = mlflow.MlflowClient()
    assert files(client, run_id(study), "study") == {"study/study.html"}
    page = page_of(study)
    for name in STUDY_PLOTS:
        assert page.count(f'id="{name}"') == 1
    read = as_text(page)
    assert "Study night" in read
    assert "finished trials 3 of 3" in read
    assert f"Command that trains trial {study.best_trial.number} again:" in read
    columns = f"trial state validation AUC {' '.join(FIELDS).replace('_', ' ')} epochs time"
    assert columns in read


def test_the_best_is_compared_with_the_baseline(study):
    best = study.best_trial
    runs = [study.trials[0].user_attrs["run_id"], best.user_attrs["run_id"]]
    tables = [predictions(one, "val") for one in runs]
    thresholds = [mlflow.get_run(one).data.metrics["val_threshold"] for one in runs]
    for table, threshold in zip(tables, thresholds, strict=True):
        values = compute_metrics(
            table["label"].to_numpy(), table["probability"].to_numpy(), threshold
        )
        values |= metric_intervals(table, threshold)
        for name in ("auc", "sensitivity", "specificity", "accuracy"):
            assert format_with_interval(values, name) in page_of(study)


def bound_of(study, others: int) -> dict:
    """Return the improvement as stored, of trial 2 over trial 0, chosen among `others`."""
    tables = [predictions(trial.user_attrs["run_id"], "val") for trial in study.trials[:3]]
    found = bootstrap.bound_improvement(tables[0], tables[2], [tables[1]] * others)
    return {"difference": found.difference, "low": found.low, "trials": found.trials}


def test_the_bound_accounts_for_the_choice(study):
    assert study.best_trial.number == 2
    stored = study.user_attrs["improvement"]
    assert stored == bound_of(study, 1) | {"complete": 3}
    assert stored["low"] < 0 < stored["difference"]
    gain, low = f"{stored['difference']:+.4f}", f"{stored['low']:+.4f}"
    bound = f"at least {low} at 97.5 % confidence, corrected for the selection among 2 trials."
    page = as_text(page_of(study))
    assert f"gain over the baseline {gain} (≥ {low}) test AUC" in page
    assert f"Difference in AUC: {gain}, {bound} The bound is one-sided and is corrected" in page
    said = f"Its AUC differs from the baseline's by {gain}, which may be chance: {bound} On test,"
    assert said in page
    assert said in mlflow.get_run(run_id(study)).data.tags["mlflow.note.content"]
    # the interval of this comparison alone, if it had been the only one, is nowhere
    tables = [predictions(study.trials[place].user_attrs["run_id"], "val") for place in (0, 2)]
    alone = bootstrap.compare_models(*tables, (0.5, 0.5))
    assert f"{alone.low:+.4f}" not in page


def with_predictions(study, change) -> optuna.trial.FrozenTrial:
    """Add a complete trial like the best, with the baseline's predictions after `change`."""
    table = change(predictions(study.trials[0].user_attrs["run_id"], "val"))
    client = mlflow.MlflowClient()
    made = client.create_run("0").info.run_id
    client.log_text(made, table.to_csv(index=False), "val/predictions.csv")
    client.log_metric(made, "val_threshold", 0.5)
    return like_best(study, made)


def like_best(study, of_run: str) -> optuna.trial.FrozenTrial:
    trial = trial_like(study.best_trial, study.best_value + 0.01, dropout=0.5)
    trial.user_attrs = trial.user_attrs | {"run_id": of_run}
    return trial


def perfect(table):
    return table.assign(probability=0.1 * table["probability"] + 0.9 * table["label"])


def test_an_improvement_is_claimed_if_the_bound_is_above_0(study, spec):
    study.add_trial(with_predictions(study, perfect))
    read = as_text(StudyReport(summarize(study, spec, RUNNING)).page())
    gain = f"{1 - study.trials[0].value:+.4f}"
    assert f"gain over the baseline {gain} test AUC" in read  # the stored bound is of fewer trials
    assert f"Difference in AUC: {gain}." in read
    assert (
        f"Its AUC differs from the baseline's by {gain}; its confidence bound is computed when the "
        "study ends."
    ) in read
    selection.store_improvement(study, spec)
    stored = study.user_attrs["improvement"]
    assert stored["difference"] == pytest.approx(1 - study.trials[0].value)
    assert (stored["trials"], stored["complete"]) == (3, 4)
    low = f"{stored['low']:+.4f}"
    assert 0 < stored["low"] < stored["difference"]
    read = as_text(StudyReport(summarize(study, spec, DONE)).page())
    assert f"gain over the baseline {gain} (≥ {low}) test AUC" in read
    assert (
        f"Its AUC is higher than the baseline's by {gain}: at least {low} at 97.5 % confidence, "
        "corrected for the selection among 3 trials."
    ) in read


def test_a_bound_is_computed_once(study, spec, monkeypatch):
    tables = []

    def improvement(baseline, best, others):
        tables.append([baseline, best, *others])
        return bootstrap.Improvement(0.5, 0.25, len(tables[-1]) - 1)

    monkeypatch.setattr(bootstrap, "bound_improvement", improvement)
    stored = study.user_attrs["improvement"]
    selection.store_improvement(study, spec)
    assert not tables
    assert study.user_attrs["improvement"] == stored
    study.add_trial(with_predictions(study, perfect))
    selection.store_improvement(study, spec)
    selection.store_improvement(study, spec)
    assert [len(table) for table in tables] == [4]
    new = {"difference": 0.5, "low": 0.25, "trials": 3, "complete": 4}
    assert study.user_attrs["improvement"] == new


def test_a_trial_without_predictions_is_left_out(study, spec, capsys):
    lost = like_best(study, mlflow.MlflowClient().create_run("0").info.run_id)
    lost.value = 0.5
    study.add_trial(lost)
    selection.store_improvement(study, spec)
    assert "the predictions of trial 3 cannot be read (" in capsys.readouterr().out
    assert study.user_attrs["improvement"] == bound_of(study, 1) | {"complete": 4}
    read = as_text(StudyReport(summarize(study, spec, DONE)).page())
    assert "corrected for the selection among 2 of 3 trials." in read


def test_no_bound_without_comparable_predictions(study, spec, capsys):
    before = study.user_attrs["improvement"]
    study.add_trial(with_predictions(study, perfect))
    study.add_trial(with_predictions(study, lambda table: table.iloc[1:]))
    selection.store_improvement(study, spec)
    assert (
        "no confidence bound for the gain over the baseline (ValueError: "
        in capsys.readouterr().out
    )
    assert study.user_attrs["improvement"] == before  # of three trials, and not read for five
    read = as_text(StudyReport(summarize(study, spec, DONE)).page())
    assert "which may be chance: no confidence bound could be computed." in read
    assert "≥" not in read


def test_no_bound_without_a_baseline(study, spec):
    alone = optuna.create_study(direction="maximize")
    for name in study.user_attrs.keys() - {"improvement"}:
        alone.set_user_attr(name, study.user_attrs[name])
    for trial in study.trials[1:]:
        alone.add_trial(trial)
    selection.store_improvement(alone, spec)
    assert "improvement" not in alone.user_attrs
    assert "gain over the baseline –" in as_text(StudyReport(summarize(alone, spec, DONE)).page())


def test_every_trial_leads_to_its_run(study):
    runs = children(mlflow.MlflowClient(), run_id(study))
    links = re.findall(r'<a href="([^"]+)" target="_blank">(\d+)</a>', page_of(study))
    assert links == [(session.ui_url(run), str(place)) for place, run in enumerate(runs)]
    assert [run.info.run_name for run in runs] == [
        f"trial {trial.number} · {trial.user_attrs['name']}" for trial in study.trials
    ]
    assert runs[0].info.run_name == "trial 0 · 64 · drop 0.25 · unfreeze 2"
    assert mlflow.get_run(run_id(study)).info.run_name == "study night"


def test_the_description(study):
    best, test = study.best_trial, study.user_attrs["winner"]["test_metrics"]
    run = mlflow.get_run(run_id(study))
    question, findings, next_step, link = run.data.tags["mlflow.note.content"].split("\n\n")
    assert question == (
        "**Question** Does the whole workflow run on this machine, from images to a registered "
        "model, in minutes? Experiment tune on sample, 3 trials of at most 2 epochs. Searched: "
        f"{', '.join(FIELDS)}. Fixed: image_size 32."
    )
    assert findings.startswith(
        f"**Result** 3 of 3 trials are finished. The best is trial {best.number} "
        f"({best.user_attrs['name']}) with validation AUC {best.value:.3f} ("
    )
    assert findings.endswith(
        f"On test, trial {best.number} has an AUC of {format_with_interval(test, 'auc')}."
    )
    assert next_step.endswith("These images are synthetic. Use real X-rays (-P data=PATH).")
    page = f"#/experiments/0/runs/{run_id(study)}/artifacts/study/study.html"
    assert link == f"[Report on this study]({page}?workflowType=machine_learning)"


def test_the_command_repeats_the_best_trial(study, tmp_path, capsys):
    [command] = re.findall(r"<pre>(mlflow run .*?)</pre>", page_of(study))
    before, _, given = command.partition(" -P ")
    assert before == "mlflow run . -e train --env-manager uv"
    flags = [f"--{parameter}" for parameter in shlex.split(given.replace(" -P ", " "))]
    assert main(["train", *flags]) == 0
    [again] = mlflow.search_runs(
        filter_string="tags.`pneumo.kind` = 'trial' and tags.`pneumo.study` IS NULL",
        output_format="list",
    )
    first = mlflow.get_run(study.best_trial.user_attrs["run_id"])
    assert again.data.params == first.data.params
    assert again.data.metrics == first.data.metrics
    assert again.data.metrics["val_auc"] == study.best_value


def test_where_the_time_went(study):
    trials = study.trials
    spent = study_page._time_by_activity(trials)
    parts = ("training", "evaluation", "storing the model")
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    for part in parts:
        whole = sum(trial.user_attrs["seconds"][part] for trial in complete)
        assert spent[f"{part} of complete trials"] == pytest.approx(whole)
    wall = (trials[-1].datetime_complete - trials[0].datetime_start).total_seconds()
    assert sum(spent.values()) == pytest.approx(wall)
    assert min(spent.values()) >= 0


def test_pruned_and_failed_trials(study, spec):
    best = study.best_trial
    pruned = {"state": TrialState.PRUNED, "intermediate_values": {1: 0.61}}
    same = {"params": best.params, "distributions": best.distributions}
    study.add_trial(create_trial(**same, **pruned, user_attrs={"name": "-", "config": {}}))
    lost = {"error": "ValueError: <b>no</b> weights"}
    study.add_trial(create_trial(**same, state=TrialState.FAIL, user_attrs=lost))
    page = StudyReport(summarize(study, spec, RUNNING)).page()
    assert "ValueError: &lt;b&gt;no&lt;/b&gt; weights" in page
    read = as_text(page)
    assert "3 pruned 0.6100" in read
    assert "4 failed" not in read  # Optuna's word is FAIL
    assert "4 fail " in read
    assert "finished trials 4 of 3" in read
    assert "The study is running. This report is updated about once a minute." in read


def test_a_study_that_has_nothing_yet(spec, store):
    with begun(spec, "young") as study:
        StudyPage(study, spec).write(STOPPED)
    assert files(store, run_id(study), "study") == {"study/study.html"}
    read = as_text(page_of(study))
    assert "finished trials 0 of 5 best validation AUC –" in read
    assert "No trial is complete yet." in read
    assert "run the same command with --study young" in read
    assert "This plot requires at least 2 complete trials." in read


def test_the_baseline_may_be_the_best(study, spec):
    baseline = study.trials[0]
    alone = optuna.create_study(direction="maximize")
    for name in study.user_attrs.keys() - {"improvement"}:
        alone.set_user_attr(name, study.user_attrs[name])
    alone.add_trial(baseline)
    selection.store_improvement(alone, spec)
    assert "improvement" not in alone.user_attrs
    read = as_text(StudyReport(summarize(alone, spec, DONE)).page())
    assert "It is the baseline: no other trial is better." in read
    assert "gain over the baseline the baseline is best" in read
    assert "Difference in AUC" not in read


@pytest.mark.parametrize(
    ("rate", "wants_room"), [(1e-4, True), (1.05e-4, True), (1e-3, False), (1e-2, True)]
)
def test_best_values_at_the_edge_of_a_range_are_reported(rate, wants_room):
    space = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert study_page._is_near_edge(rate, space) == wants_room


def test_there_is_no_better_value_below_zero():
    space = optuna.distributions.FloatDistribution(0.0, 0.6)
    assert not study_page._is_near_edge(0.0, space)
    assert study_page._is_near_edge(0.6, space)


def test_a_hundred_trials_fit_on_a_page(study, spec):
    best = study.best_trial
    for place in range(100 - len(study.trials)):
        study.add_trial(trial_like(best, 0.5 + place / 1000, dropout=place / 200))
    page = StudyReport(summarize(study, spec, DONE)).page()
    assert len(re.findall(r"<td>complete</td>", page)) >= 97
    assert len(page.encode()) < MOST


def test_it_is_rewritten_at_most_once_a_minute(study, spec, monkeypatch):
    pruned = {"state": TrialState.PRUNED, "intermediate_values": {1: 0.61}}
    like = {"params": study.best_trial.params, "distributions": study.best_trial.distributions}
    with begun(spec, "young") as young:
        page, seen = StudyPage(young, spec), []

        def one_more() -> None:
            young.add_trial(create_trial(**like, **pruned))
            page.refresh()
            seen.append(re.findall(r"finished trials (\d) of 5", as_text(page_of(young))))

        one_more()
        one_more()
        monkeypatch.setattr(study_page, "MIN_REFRESH_SECONDS", 0)
        monkeypatch.setattr(study_page, "MAX_OVERHEAD_FRACTION", 1e9)
        page.write(RUNNING)
        one_more()
    assert seen == [["1"], ["1"], ["3"]]


def test_a_page_that_cannot_be_written_costs_nothing_else(study, spec, capsys):
    client = mlflow.MlflowClient()
    place = Path(client.get_run(run_id(study)).info.artifact_uri) / "study"
    kept = place.rename(place.with_name("kept"))
    place.write_text("in the way")
    try:
        StudyPage(study, spec).write(DONE)
    finally:
        place.unlink()
        kept.rename(place)
    assert "the study report could not be written (" in capsys.readouterr().out
