"""The command `prepare`, and its run."""

import mlflow
import pytest
from PIL import Image

from pneumo.data.dataset import open_dataset
from tests.support.commands import run_here


@pytest.mark.slow
def test_prepare(store, folder):
    Image.new("L", (8, 8)).save(folder / "train" / "NORMAL" / "scan.png")
    (folder / "train" / "NORMAL" / "IM-9999-0001.jpeg").write_bytes(b"no image")
    code, output, errors = run_here("prepare", "--data", str(folder), "--image_size", "32")
    assert (code, errors) == (0, "")
    assert "val 82 images, 1 unreadable, 1 of unknown patients" in output
    dataset = open_dataset(str(folder))
    [prepared] = store.search_runs(["0"])
    given = prepared.inputs.dataset_inputs
    assert {one.dataset.name: one.dataset.digest for one in given} == {
        f"xrays/{split}": dataset.images_digest(split) for split in ("train", "val", "test")
    }
    assert prepared.info.status == "FINISHED"
    assert {k: v for k, v in prepared.data.tags.items() if k.startswith("pneumo.")} == {
        "pneumo.kind": "prepare",
        "pneumo.data": "xrays",
        "pneumo.data_digest": dataset.digest,
        "pneumo.synthetic": "false",
        "pneumo.patients": "unknown",
    }
    table = mlflow.artifacts.load_text(f"runs:/{prepared.info.run_id}/data/unreadable.csv")
    assert table == ("path,reason\ntrain/NORMAL/IM-9999-0001.jpeg,not a supported image format\n")
