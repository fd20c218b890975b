"""Several processes with one cache, and a cache that is deleted during use."""

import shutil
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import mlflow
import pytest
from mlflow.store.tracking.dbmodels.models import SqlExperimentTag
from sqlalchemy.orm import Session

from pneumo.data.sources import archive
from pneumo.runtime import cache
from pneumo.tracking import results, runs
from pneumo.tracking.tags import NOTE
from tests.support.commands import run_here, start
from tests.support.handmade import write_images
from tests.support.studies import LIMIT, SMALL, at_work, until

WAITING = "waiting for another process that holds the cache lock 'archives'\n"


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """Make an archive of a small data set."""
    folder = tmp_path_factory.mktemp("packed")
    write_images(folder / "halves")
    with tarfile.open(folder / "A.tar.gz", "w:gz") as tar:
        tar.add(folder / "halves", "halves")
    return folder / "A.tar.gz"


@contextmanager
def seen(folder: Path):
    """Collect the inodes that appear in a folder, hidden or not."""
    found, over = set(), threading.Event()

    def look() -> None:
        while not over.wait(0.001):
            found.update(path.stat().st_ino for path in folder.glob("*") if path.is_dir())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_one_of_two_simultaneous_imports_unpacks(store, own_cache, packed):
    call = ["prepare", "--data", str(packed), "--image_size", "32"]
    sha256 = archive.hashlib.sha256(packed.read_bytes()).hexdigest()
    with seen(own_cache / "archives") as folders:
        with cache.lock(f"archives/{sha256}"):
            both = [start(*call), start(*call)]
            for process in both:
                assert process.stdout.readline() == WAITING
            assert not folders
        ended = [(*process.communicate(timeout=LIMIT), process.returncode) for process in both]
    for output, errors, code in ended:
        assert (code, errors) == (0, "")
        assert output.endswith("0 unreadable, 0 of unknown patients\n")
    [unpacked] = (own_cache / "archives").iterdir()
    assert folders == {unpacked.stat().st_ino}
    assert {run.info.status for run in store.search_runs(["0"])} == {"FINISHED"}


def test_two_commands_may_log_the_same_data_at_once(store, sample):
    images, together = sample.decode(32, 0), Barrier(2)

    def log_data(name: str) -> str:
        with mlflow.start_run() as run:
            together.wait()
            results.log_data(replace(images, dataset=replace(sample, name=name)))
        return run.info.run_id

    with ThreadPoolExecutor(2) as threads:
        for name in map(str, range(8)):  # without care, 7 of 10 end in an error
            for run_id in threads.map(log_data, [name] * 2):
                inputs = store.get_run(run_id).inputs.dataset_inputs
                assert {given.dataset.name for given in inputs} == {
                    f"{name}/{split}" for split in ("train", "val", "test")
                }


def test_the_first_two_commands_of_a_store_may_begin_at_once(store, monkeypatch):
    """Both describe MLflow's experiment, which has no description yet."""
    merge, together, firsts = Session.merge, Barrier(2), iter([True, True])

    def merge_together(session: Session, row: object) -> object:
        merged = merge(session, row)
        if isinstance(row, SqlExperimentTag) and next(firsts, False):
            together.wait()  # until neither has found the row
        return merged

    monkeypatch.setattr(Session, "merge", merge_together)
    with ThreadPoolExecutor(2) as threads:
        begun = [threads.submit(runs._describe_experiment, "0") for _ in range(2)]
        assert [future.result() for future in begun] == [None, None]
    assert store.get_experiment("0").tags == {NOTE: runs.EXPERIMENT_DESCRIPTION}


@pytest.mark.slow
def test_a_cache_that_is_deleted_ends_a_study_in_one_line_and_the_next_run_works(
    store, own_cache, packed
):
    flags = ["--data", str(packed), *SMALL, "--patience", "20"]
    process = start("tune", *flags, "--trials", "2", "--epochs", "20")
    until(lambda: at_work(store))
    shutil.rmtree(own_cache, ignore_errors=True)
    output, errors = process.communicate(timeout=LIMIT)
    assert "trial   0  val AUC" in output  # which had its images; the next asks for them again
    assert process.returncode == 1
    assert errors.startswith(
        "pneumo: 3 consecutive trials failed with the same type of error (UserError: the cache at "
    )
    assert "was deleted while it was in use. Run the same command again." in errors
    assert errors.count("\n") == 1
    assert "RUNNING" not in {run.info.status for run in store.search_runs(["0"])}
    code, output, errors = run_here("train", *flags, "--epochs", "1")
    assert (code, errors) == (0, "")
