"""Each untrusted input, passed to its command."""

import csv
import re
from pathlib import Path

import mlflow
import pytest

from pneumo.__main__ import main
from tests.bad.cases import CASES, MODELS
from tests.bad.images import CASES as IMAGES
from tests.bad.images import LATERAL, READABLE, UNREADABLE
from tests.bad.payloads import RAN
from tests.bad.xrays import prepare, xrays
from tests.support.stores import store_in


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Make the stores once for all cases, because that takes longer than most cases."""
    with store_in(tmp_path_factory.mktemp("stores")) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, IMAGES[0], IMAGES[-1]], ids=lambda case: case.name)
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
def test_each_file_that_is_no_image_is_listed_with_its_reason(
    stores, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    files = list((UNREADABLE | LATERAL).values())
    data = xrays_with([content for content, _ in files], tmp_path / "xrays")
    assert main(prepare(data, "--max_unreadable", "0.9")) == 0
    assert capsys.readouterr().err == ""
    assert not list(cache.rglob(".*.draft"))
    [run] = stores.search_runs(["0"], max_results=1)  # the newest
    table = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/data/unreadable.csv")
    rows = csv.DictReader(table.splitlines())
    reasons = {row["path"]: row["reason"] for row in rows}
    patterns = {
        f"train/NORMAL/IM-{9000 + number}-0001.jpeg": reason
        for number, (_, reason) in enumerate(files)
    }
    assert set(reasons) == set(patterns)
    unmatched = {
        path: reason for path, reason in reasons.items() if not re.search(patterns[path], reason)
    }
    assert unmatched == {}


@pytest.mark.slow
def test_each_image_of_an_unusual_format_is_decoded(stores, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = xrays_with(list(READABLE.values()), tmp_path / "xrays")
    assert main(prepare(data)) == 0
    counts = r"test (\d+), train (\d+), val (\d+) images, 0 unreadable"
    output, errors = capsys.readouterr()
    assert errors == ""
    [found] = re.findall(counts, output)
    assert sum(map(int, found)) == 52 + len(READABLE)


def xrays_with(contents: list[bytes], folder: Path) -> Path:
    """Write a data set with these files among its normal images."""
    data = xrays(folder)
    for number, content in enumerate(contents):
        (data / "train" / "NORMAL" / f"IM-{9000 + number}-0001.jpeg").write_bytes(content)
    return data


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
