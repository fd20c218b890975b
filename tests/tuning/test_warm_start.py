"""A study that first tries the best trials of an earlier one."""

import json
import os
import re

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from pneumo.runtime.errors import UserError
from pneumo.tuning import study as studies
from pneumo.tuning.selection import MAX_WARM_START_TRIALS, WarmStart, find_warm_start
from pneumo.tuning.spec import StudySpec
from pneumo.tuning.storage import open_storage
from tests.support.commands import run_here
from tests.support.studies import TINY, run_study, text

SPACE = {"dropout": FloatDistribution(0, 0.9), "epochs": IntDistribution(1, 50)}


@pytest.fixture
def spec(store, sample) -> StudySpec:
    return StudySpec(TINY, sample, {})


def create_earlier(*trials: tuple[float, float], **more: FloatDistribution) -> optuna.Study:
    """Create a study of complete trials with these scores and dropouts in the current store."""
    study = optuna.create_study(storage=open_storage(), study_name="earlier", direction="maximize")
    for score, dropout in trials:
        params = {"dropout": dropout, "epochs": 3, **dict.fromkeys(more, 0.5)}
        study.add_trial(create_trial(value=score, params=params, distributions=SPACE | more))
    return study


def test_the_best_distinct_trials_that_fit_come_first(spec):
    earlier = create_earlier(
        (0.7, 0.1),
        (0.9, 0.8),  # beyond the range of 0 to 0.6
        (0.8, 0.2),
        (0.6, 0.2),  # the same again
        (0.85, TINY.base.dropout),  # the baseline
        (0.75, 0.6),
    )
    distributions = {"dropout": SPACE["dropout"]}
    for state in (TrialState.PRUNED, TrialState.FAIL):
        earlier.add_trial(
            create_trial(state=state, params={"dropout": 0.3}, distributions=distributions)
        )
    baseline = spec.baseline()
    assert set(baseline) > {"dropout"}
    assert find_warm_start(open_storage(), "earlier", spec) == WarmStart(
        "earlier", [2, 5, 0], [baseline | {"dropout": value} for value in (0.2, 0.6, 0.1)]
    )


def test_there_are_at_most_five(spec):
    create_earlier(*((0.5 + number / 100, number / 100) for number in range(9)))
    found = find_warm_start(open_storage(), "earlier", spec)
    assert found.trials == [8, 7, 6, 5, 4]
    assert len(found.params) == MAX_WARM_START_TRIALS == 5


def test_what_the_space_has_not_is_left_out_and_what_it_has_more_is_the_baselines(sample, store):
    create_earlier((0.9, 0.1), max_crop_fraction=FloatDistribution(0, 1))
    spec = StudySpec(TINY, sample, {"learning_rate": "0.001"})
    [params] = find_warm_start(open_storage(), "earlier", spec).params
    assert params == spec.baseline() | {"dropout": 0.1}
    assert "learning_rate" not in params


@pytest.mark.parametrize("fixed", [{"dropout": "0.3"}, {}])
def test_a_study_of_which_no_trial_fits_is_refused(sample, store, fixed):
    create_earlier((0.9, 0.8))
    reason = "search space of experiments/tiny.py and differs from its baseline: 'earlier' has none"
    with pytest.raises(UserError, match=re.escape(reason)):
        find_warm_start(open_storage(), "earlier", StudySpec(TINY, sample, fixed))


def test_a_study_that_is_not_there_is_refused_before_there_is_a_run(store):
    create_earlier((0.9, 0.1))
    code, output, errors = run_here("tune", "--like", "early")
    place = os.environ["PNEUMO_STORAGE"]
    assert code == 2
    assert errors == (
        f"pneumo: --like must be a study in Optuna's database at {place}, which has earlier: "
        "got 'early'. Set PNEUMO_STORAGE to its database, or omit --like.\n"
    )
    assert store.search_runs(["0"]) == []


def test_a_lost_trial_of_a_warm_start_is_enqueued_again(spec, monkeypatch):
    warm_start = WarmStart("earlier", [3], [spec.baseline() | {"dropout": 0.5}])
    monkeypatch.setattr(studies, "reconcile_runs", lambda _: None)
    with studies.runs.command_run("study", "", {}) as run_id:
        study = studies.create_study(open_storage(), "later", spec, run_id, warm_start)
    study.ask()
    study.tell(study.ask(), state=TrialState.FAIL)
    studies.prepare_resume(study, spec)
    [waiting] = study.get_trials(states=(TrialState.WAITING,))
    assert waiting.number == 2
    assert waiting.system_attrs["fixed_params"] == warm_start.params[0]


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots", "without_training", "without_winner")
def test_a_study_like_an_earlier_one(sample, store):
    create_earlier((0.9, 0.1), (0.8, 0.4))
    later = run_study(sample, trials=1, name="later", like="earlier")
    queue = [trial.system_attrs["fixed_params"] for trial in later.study.trials]
    assert [params["dropout"] for params in queue] == [TINY.base.dropout, 0.1, 0.4]
    assert [trial.state.name for trial in later.study.trials] == ["COMPLETE", "WAITING", "WAITING"]
    run_id = later.study.user_attrs["run_id"]
    stored = json.loads(text(run_id, "study.json"))["warm_start"]
    assert (stored["study"], stored["trials"]) == ("earlier", [0, 1])
    assert [params["dropout"] for params in stored["params"]] == [0.1, 0.4]
    assert (
        "After the baseline, it first tries the best trials of study earlier that fit the search "
        "space (0, 1)."
    ) in text(run_id, "study/study.html")
    with pytest.raises(UserError, match="'later' was created with like earlier: got later"):
        run_study(sample, name="later", like="later")
