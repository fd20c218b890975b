"""Each input from strangers' disks, given to the command that takes it."""

import pytest

from pneumo.__main__ import main
from tests.bad.archives import CASES as ARCHIVES

CASES = [*ARCHIVES]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_with_its_reason_or_handled(case, store, tmp_path, own_cache, capsys):
    arguments = case.make(tmp_path)
    capsys.readouterr()
    code = main(arguments)
    assert case.verdict(code, *capsys.readouterr()) == ""
    assert "RUNNING" not in {run.info.status for run in store.search_runs(["0"])}
    drafts = [it for it in own_cache.rglob(".*") if it.name.endswith(".draft")]
    assert drafts == []
