"""The champion in an environment of its own requirements, loaded and served over HTTP."""

import base64
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from PIL import Image

from pneumo.commands.predict import predict_files
from pneumo.data.dataset import open_dataset
from pneumo.tracking import models
from pneumo.tracking.model_files import model_digest
from tests.support.dicom import compressed, radiograph, to_bytes
from tests.support.images import RAMP, file_of
from tests.support.paths import ROOT
from tests.support.services import model_server
from tests.support.stores import copy_of

MODEL = "models:/pneumonia-sample@champion"


@pytest.fixture(scope="module")
def stores(finished, tmp_path_factory):
    """Return the folder of a study's stores, with its model as champion."""
    folder = tmp_path_factory.mktemp("stores")
    with copy_of(finished, folder):
        client = mlflow.MlflowClient()
        client.set_registered_model_alias("pneumonia-sample", "champion", "1")
        yield folder


@pytest.fixture(scope="module")
def own_environment(stores, tmp_path_factory) -> Path:
    """Return the Python of a new environment with the model's requirements, without the project."""
    uv = shutil.which("uv")
    if not uv:
        pytest.skip("needs uv: pip install uv")
    place = tmp_path_factory.mktemp("own") / "venv"
    requirements = mlflow.pyfunc.get_model_dependencies(MODEL)
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, place], check=True)
    install = [uv, "pip", "install", "-q", "--python", place / "bin" / "python"]
    subprocess.run([*install, "-r", requirements], check=True)
    take_compiled(place)
    return place / "bin" / "python"


def take_compiled(place: Path) -> None:
    """Copy what Python has compiled of the same packages here, which would take it seconds there.

    Python compiles anew what does not fit its source file.
    """
    here = Path(sysconfig.get_path("purelib"))
    [there] = place.glob("lib/*/site-packages")
    for file in here.rglob("__pycache__/*.pyc"):
        copy = there / file.relative_to(here)
        if copy.parents[1].is_dir():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


@pytest.fixture(scope="module")
def expected(stores, real_archive) -> dict[str, float]:
    """Return path → probability of 50 real images, as the harness predicts them."""
    dataset = open_dataset(str(real_archive))
    files = [str(dataset.base / path) for path in dataset.rows["path"][::100][:50]]
    with mlflow.start_run():
        predict_files(models.find_model(MODEL), files, stores / "out.csv")
    table = pd.read_csv(stores / "out.csv")
    assert len(table) == 50
    # The model has seen only synthetic images
    assert table["error"].str.startswith("far from the training images: ").all()
    return dict(zip(table["path"], table["probability"], strict=True))


@pytest.fixture(scope="module")
def address(own_environment, expected, tmp_path_factory):
    with model_server(own_environment, MODEL, tmp_path_factory.mktemp("elsewhere")) as server:
        yield server.address


@pytest.mark.slow
def test_a_container_gets_the_registered_files_and_their_requirements(stores, tmp_path):
    command = ["mlflow", "models", "generate-dockerfile", "-m", MODEL, "-d", str(tmp_path / "it")]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True, timeout=300)
    lines = (tmp_path / "it" / "Dockerfile").read_text().splitlines()
    python, *_ = sys.version.partition(" ")
    assert f"FROM python:{python}-slim" in lines
    assert f"RUN pip install mlflow=={mlflow.__version__}" in lines
    assert "COPY model_dir /opt/ml/model" in lines
    version = mlflow.MlflowClient().get_model_version("pneumonia-sample", "1")
    folder = tmp_path / "it" / "model_dir"
    assert model_digest(folder) == version.tags["pneumo.model_digest"]
    # `own_environment` installs the same, and is served
    requirements = Path(mlflow.pyfunc.get_model_dependencies(MODEL)).read_text()
    assert (folder / "requirements.txt").read_text() == requirements


@pytest.mark.slow
def test_the_project_is_not_where_it_is_served(own_environment, tmp_path):
    code = (
        "from importlib.util import find_spec\n"
        "print(find_spec('mlflow') is None, find_spec('pneumo'))"
    )
    command = [own_environment, "-c", code]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.stdout == "False None\n", process.stderr


def post(address: str, body: dict) -> requests.Response:
    return requests.post(f"{address}/invocations", json=body, timeout=120)


def records(images: list[str | None]) -> dict:
    return {"dataframe_records": [{"image": image} for image in images]}


SHAPES = {
    "dataframe_records": records,
    "dataframe_split": lambda images: {
        "dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}
    },
    "instances": lambda images: {"instances": [{"image": image} for image in images]},
    "inputs": lambda images: {"inputs": {"image": images}},
    "inputs, a list": lambda images: {"inputs": images},
}


@pytest.mark.slow
def test_the_command_in_the_readme(address, expected, tmp_path):
    if not (shutil.which("jq") and shutil.which("curl")):
        pytest.skip("needs jq and curl: apt install jq curl")
    [command] = re.findall(r"^base64 < .*$", (ROOT / "README.md").read_text(), re.M)
    image, probability = next(iter(expected.items()))
    command = command.replace("IMAGE.jpeg", f"'{image}'").replace("http://127.0.0.1:5001", address)
    answer = json.loads(subprocess.run(command, shell=True, capture_output=True, check=True).stdout)
    [prediction] = answer["predictions"]
    assert set(prediction) == {"probability", "label", "threshold", "error"}
    assert prediction["probability"] == pytest.approx(probability, abs=1e-6)


@pytest.fixture(scope="module")
def encoded(expected) -> list[str]:
    return [base64.b64encode(Path(path).read_bytes()).decode() for path in expected]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same(address, expected, encoded, shape):
    answer = post(address, SHAPES[shape](encoded))
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert [row["probability"] for row in found] == pytest.approx(list(expected.values()), abs=1e-6)
    assert {tuple(row) for row in found} == {("probability", "label", "threshold", "error")}
    for row in found:
        assert row["label"] == int(row["probability"] >= row["threshold"])
        assert row["error"].startswith("far from the training images: ")


@pytest.mark.slow
def test_dicom_files_get_the_same_answer(address, expected):
    path, probability = next(iter(expected.items()))
    pixels = np.asarray(Image.open(path).convert("L"))
    files = [
        to_bytes(radiograph(pixels)),
        compressed(radiograph(pixels.astype(np.uint16) << 4, 12), "lossless JPEG"),
        to_bytes(radiograph(pixels, ViewPosition="LL")),
    ]
    images = [base64.b64encode(content).decode() for content in files]
    *answers, lateral = post(address, records(images)).json()["predictions"]
    assert [row["probability"] for row in answers] == pytest.approx([probability] * 2, abs=0.01)
    assert lateral["probability"] is None
    assert lateral["error"] == "lateral view; only frontal views are supported"


def huge_png(side: int = 30_000) -> bytes:
    """Return a black image of one bit per pixel: some kilobytes that would become 900 MB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 1)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.slow
def test_an_unreadable_image_gets_an_error_and_the_others_a_prediction(address, expected, encoded):
    whole = base64.b64decode(encoded[0])
    bad = {
        "truncated": whole[: len(whole) // 2],
        "not a supported image format": b"This is a text, and no picture at all.",
        "too many pixels for a radiograph": huge_png(),
    }
    files = [base64.b64encode(content).decode() for content in bad.values()]
    answer = post(address, records([*files, encoded[1], ""]))
    assert answer.status_code == 200, answer.text
    *errors, good, empty = answer.json()["predictions"]
    for row, reason in zip([*errors, empty], [*bad, "not a supported image format"], strict=True):
        assert reason in row["error"]
        assert (row["probability"], row["label"], row["threshold"]) == (None, None, None)
    assert good["probability"] == pytest.approx(list(expected.values())[1], abs=1e-6)


@pytest.mark.slow
def test_an_image_far_from_the_training_images_is_refused_on_request(address, encoded, sample):
    trained = sample.rows["path"][sample.rows["split"] == "train"].iloc[0]
    near = base64.b64encode((sample.base / trained).read_bytes()).decode()
    warned = post(address, records([encoded[0], near])).json()["predictions"]
    assert warned[0]["probability"] is not None
    assert warned[0]["error"].startswith("far from the training images: distance ")
    assert warned[1]["error"] is None
    request = records([encoded[0], near]) | {"params": {"out_of_range": "refuse"}}
    refused = post(address, request).json()["predictions"]
    nothing = {"probability": None, "label": None, "threshold": None}
    assert refused == [nothing | {"error": warned[0]["error"]}, warned[1]]
    answer = post(address, request | {"params": {"out_of_range": "maybe"}})
    assert answer.status_code == 400
    assert "out_of_range must be one of warn, refuse, ignore: got 'maybe'" in answer.text


@pytest.mark.slow
@pytest.mark.parametrize("body", ["", "{}", "text", '{"inputs": {"picture": ["x"]}}'])
def test_an_invalid_request_is_rejected_and_the_server_keeps_running(address, encoded, body):
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{address}/invocations", data=body, headers=headers, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")
    assert post(address, records(encoded[:1])).status_code == 200


@pytest.mark.slow
def test_two_hundred_at_once_and_eight_clients_at_once(address, expected, encoded):
    answer = post(address, records(encoded * 4))
    assert answer.status_code == 200
    found = [row["probability"] for row in answer.json()["predictions"]]
    assert found == pytest.approx(list(expected.values()) * 4, abs=1e-6)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda image: post(address, records([image])), encoded))
    found = [row.json()["predictions"][0]["probability"] for row in answers]
    assert found == pytest.approx(list(expected.values()), abs=1e-6)


KINDS = {
    "JPEG": lambda image: file_of(image, "JPEG", quality=95),
    "16 bits": lambda image: file_of(Image.fromarray(np.asarray(image).astype(np.uint16) * 257)),
    "RGB": lambda image: file_of(image.convert("RGB")),
    "RGBA": lambda image: file_of(image.convert("RGBA")),
    "CMYK": lambda image: file_of(image.convert("CMYK"), "JPEG", quality=95),
    "palette": lambda image: file_of(image.convert("P")),
    "two colours": lambda image: file_of(image.convert("1")),
    "turned": lambda image: _turned(image),
}


def _turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.rotate(90, expand=True).save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.slow
def test_every_kind_of_file_is_the_same_image(study):
    image = Image.fromarray(RAMP)
    given = {"PNG": file_of(image)} | {name: make(image) for name, make in KINDS.items()}
    model = mlflow.pyfunc.load_model("models:/pneumonia-sample/1")
    table = pd.DataFrame({"image": list(given.values())})
    answer = model.predict(table, params={"out_of_range": "ignore"})
    answer.index = list(given)
    assert answer["error"].isna().all()
    as_png = answer["probability"]["PNG"]
    for name in ("16 bits", "RGB", "RGBA", "palette"):
        assert answer["probability"][name] == pytest.approx(as_png, abs=1e-6), name
    for name in ("JPEG", "CMYK", "turned"):
        assert answer["probability"][name] == pytest.approx(as_png, abs=0.01), name
