"""The trials of a process whose store has failed between two of them."""

import optuna
from optuna.trial import TrialState

from pneumo.runtime.process import ProcessId
from pneumo.tuning import worker
from pneumo.tuning.worker import _TrialLoop


def test_a_score_that_did_not_arrive_is_told_and_other_trials_of_this_process_fail(monkeypatch):
    study = optuna.create_study(direction="maximize")
    here = ProcessId.current()
    for process in (here, here, here._replace(pid=1)):
        study.ask().set_user_attr("process", list(process))
    replaced = []
    monkeypatch.setattr(worker, "replace_lost_trials", lambda *given: replaced.append(given))
    work = _TrialLoop(study, "spec", lambda: None, False)
    work._scores = {1: 0.75}
    for _ in range(2):
        work.finish_own_trials()
        states = [trial.state for trial in study.trials]
        assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.RUNNING]
    assert study.trials[1].value == 0.75
    assert replaced == [(study, "spec")]  # once, because the second time none was lost
