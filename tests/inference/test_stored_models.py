"""Models that a study has stored, loaded and run."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumo.inference.calibration import UNCALIBRATED, Calibration
from pneumo.inference.decode import decode
from pneumo.inference.logits import predict_proba
from pneumo.tracking import model_files
from tests.support.paths import ROOT
from tests.support.studies import children, predictions, run_study

pytestmark = pytest.mark.slow


def test_reloaded_models_give_the_trained_ones_probabilities(study, client, sample):
    logged = mlflow.search_logged_models(["0"], output_format="list")
    assert {model.name for model in logged} == {"model"}
    assert len(logged) == 3  # one a trial, and the winner's second
    addresses = [model.model_uri for model in logged] + ["models:/pneumonia-sample@challenger"]
    runs = [model.source_run_id for model in logged] + [study.study.best_trial.user_attrs["run_id"]]
    images = sample.decode(32, 0).split("val").images
    for address, run_id in zip(addresses, runs, strict=True):
        table = predictions(run_id, "val")
        expected = pytest.approx(table["probability"].to_numpy(), abs=1e-6)
        folder = mlflow.artifacts.download_artifacts(address)
        alone = keras.models.load_model(f"{folder}/artifacts/model.keras", safe_mode=True)
        settings = json.loads(Path(folder, "artifacts/settings.json").read_text())
        calibration = Calibration(settings["slope"], settings["intercept"])
        assert calibration != UNCALIBRATED  # else the next line could not tell
        assert predict_proba(alone, images, calibration) == expected
        served = mlflow.pyfunc.load_model(address)
        data = [(sample.base / path).read_bytes() for path in table["path"]]
        answer = served.predict(pd.DataFrame({"image": data}))
        assert answer["probability"].to_numpy(float) == expected
        threshold = client.get_run(run_id).data.metrics["val_threshold"]
        assert set(answer["threshold"]) == {threshold}
        clear = np.abs(table["probability"] - threshold) > 1e-6
        assert answer["label"][clear].equals(
            (table["probability"] >= threshold)[clear].astype(int).astype(object).rename("label")
        )
        assert answer["error"].isna().all()


def test_the_stored_model_works_where_the_project_is_not(study, sample, tmp_path):
    folder = mlflow.artifacts.download_artifacts("models:/pneumonia-sample@challenger")
    table = predictions(study.study.best_trial.user_attrs["run_id"], "val")
    code = (
        "import sys, json, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "data = [open(path, 'rb').read() for path in sys.argv[2:]]\n"
        "answer = model.predict(pd.DataFrame({'image': data}))\n"
        "import pneumo; assert pneumo.__file__.startswith(sys.argv[1])\n"
        "print(json.dumps(answer['probability'].tolist()))\n"
    )
    files = [str(sample.base / path) for path in table["path"]]
    process = subprocess.run(
        [sys.executable, "-I", "-c", code, folder, *files],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    served = json.loads(process.stdout)
    assert served == pytest.approx(table["probability"].tolist(), abs=1e-6)


def test_a_stored_model_carries_what_it_runs_and_nothing_else(study):
    folder = Path(mlflow.artifacts.download_artifacts("models:/pneumonia-sample@challenger"))
    carried = {file.relative_to(folder / "code") for file in folder.glob("code/**/*.py")}
    inference = {
        "__init__.py",
        "batches.py",
        "calibration.py",
        "decode.py",
        "dicom.py",
        "dicom_jpeg.py",
        "input_gate.py",
        "logits.py",
        "pyfunc.py",
        "untrusted.py",
    }
    names = {"pneumo/__init__.py", *(f"pneumo/inference/{name}" for name in inference)}
    assert {path.as_posix() for path in carried} == names
    required = {line.partition("==")[0] for line in _requirements(folder)}
    libraries = {"mlflow", "tensorflow", "keras", "numpy", "scipy", "pandas", "pillow", "joblib"}
    libraries |= {"pydicom", "imagecodecs", "pyjpegls"}
    assert required == libraries
    imported = set()
    for path in carried:
        for node in ast.walk(ast.parse((folder / "code" / path).read_text())):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
    modules = {name for name in imported if name.partition(".")[0] == "pneumo"}
    assert modules <= {f"pneumo.inference.{Path(name).stem}" for name in inference}
    packages = {name.partition(".")[0] for name in imported - modules} - sys.stdlib_module_names
    # pydicom imports pyjpegls
    assert packages == (libraries - {"pillow", "pyjpegls"}) | {"PIL"}


def _requirements(folder: Path) -> list[str]:
    return (folder / "requirements.txt").read_text().split()


def test_the_project_is_importable_after_a_model_was_loaded(study, tmp_path):
    folder = mlflow.artifacts.download_artifacts("models:/pneumonia-sample@challenger")
    code = (
        "import sys, mlflow\n"
        "mlflow.pyfunc.load_model(sys.argv[1])\n"
        "import pneumo.inference.decode, pneumo.runtime.errors\n"
        "print(pneumo.inference.decode.__file__.startswith(sys.argv[1]))\n"
        "print(pneumo.runtime.errors.__file__)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, folder],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ["True", str(ROOT / "pneumo/runtime/errors.py")]


def test_the_served_model_names_what_it_cannot_read(study, sample):
    served = mlflow.pyfunc.load_model("models:/pneumonia-sample@challenger")
    good = (sample.base / sample.rows["path"][0]).read_bytes()
    answer = served.predict(pd.DataFrame({"image": [b"text", good, good[:200]]}))
    assert list(answer) == ["probability", "label", "threshold", "error"]
    assert answer["error"][0] == "not a supported image format"
    assert answer["probability"].notna().tolist() == [False, True, False]
    assert answer["label"].notna().tolist() == [False, True, False]
    assert answer["error"].notna().tolist() == [True, False, True]


def test_how_images_become_square_goes_with_the_model(store, sample, without_plots, without_pages):
    outcome = run_study(sample, trials=1, fixed={"resize": "pad"})
    assert children(store, outcome)[0].data.params["resize"] == "pad"
    file = io.BytesIO()
    Image.fromarray(np.full((20, 40), 200, np.uint8)).save(file, format="PNG")
    model = model_files.load_model("models:/pneumonia-sample@challenger")
    assert model.settings["resize"] == "pad"
    answer = model.predict(None, pd.DataFrame({"image": [file.getvalue()]}))
    padded = decode(file.getvalue(), 32, "pad")[None, ..., None]
    [expected] = predict_proba(model.keras_model, padded, model.calibration)
    assert answer["probability"][0] == pytest.approx(expected, abs=1e-6)
    squashed = decode(file.getvalue(), 32, "squash")[None, ..., None]
    [other] = predict_proba(model.keras_model, squashed, model.calibration)
    assert abs(other - expected) > 1e-3  # so that the test can tell
