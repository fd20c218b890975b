"""Each untrusted input, passed to its command."""

import mlflow
import pytest

from pneumo.__main__ import main
from tests.bad.cases import CASES, MODELS
from tests.bad.payloads import RAN
from tests.bad.xrays import prepare, xrays
from tests.support.stores import store_in


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Make the stores once for all cases, because that takes longer than most cases."""
    with store_in(tmp_path_factory.mktemp("stores")) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_input_is_rejected_with_a_reason_or_handled(
    case, stores, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments, before = case.make(tmp_path), set(cache.glob("archives/*"))
    capsys.readouterr()
    code = main(arguments)
    output, errors = capsys.readouterr()
    assert case.verdict(code, output, errors) == ""
    assert stores.search_runs(["0"], "attributes.status = 'RUNNING'") == []
    if "unpacked" in errors:
        assert set(cache.glob("archives/*")) == before
    assert not list(cache.rglob(".*.draft"))


@pytest.mark.slow
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_a_model_is_rejected_with_a_reason_or_handled(case, store, tmp_path, capsys):
    arguments = case.make(tmp_path)
    capsys.readouterr()
    code = main(arguments)
    assert case.verdict(code, *capsys.readouterr()) == ""
    assert store.search_runs(["0"], "attributes.status = 'RUNNING'") == []
    assert not (tmp_path / RAN).exists()  # whatever came with the input did not run


@pytest.mark.slow
def test_what_stops_a_command_is_listed_and_counted_in_its_run(stores, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = xrays(tmp_path / "xrays")
    files = sorted((data / "train" / "NORMAL").iterdir())[:5]
    for file in files:
        file.write_bytes(b"")
    for command in (prepare(data), ["train", "--data", str(data)], ["tune", "--data", str(data)]):
        assert main(command) == 2
        [run] = stores.search_runs(["0"], max_results=1)  # the newest
        assert run.info.status == "FAILED"
        assert run.data.metrics == {"images": 47, "unreadable": 5}
        table = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/data/unreadable.csv")
        reason = "not a supported image format: the file is empty"
        assert table == "path,reason\n" + "".join(
            f"{file.relative_to(data)},{reason}\n" for file in files
        )
