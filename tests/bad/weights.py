"""Weights files that are foreign, broken, or made to run code."""

import pickle
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import h5py

from tests.bad import Case
from tests.bad.payloads import Payload
from tests.support.weights import network, write


@lru_cache(maxsize=1)
def _weights() -> bytes:
    """Make a complete weights file that fits."""
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/weights.h5", "w") as file:
            write(network(), file)
        return Path(folder, "weights.h5").read_bytes()


def of_another_width(file: Path) -> None:
    with h5py.File(file, "w") as stored:
        write(network(alpha=0.5), stored)


def cut_off(file: Path) -> None:
    file.write_bytes(_weights()[: len(_weights()) // 2])


def table(file: Path) -> None:
    with h5py.File(file, "w") as stored:
        stored["patients"] = [1, 2, 3]


def odd_layers(file: Path) -> None:
    with h5py.File(file, "w") as stored:
        stored.attrs["layer_names"] = 7


def from_elsewhere(file: Path) -> None:
    """Make weights that HDF5 would read from another file of the disk."""
    file.with_name("secret.h5").write_bytes(_weights())
    file.write_bytes(_weights())
    with h5py.File(file, "r+") as stored:
        del stored["conv1"]
        stored["conv1"] = h5py.ExternalLink("secret.h5", "/conv1")


NO_WEIGHTS = "does not fit mobilenet with alpha 0.25: it is not an HDF5 file in the layout of Keras"
WEIGHTS = [
    ("of another width", "w.h5", of_another_width, "does not fit mobilenet .*: where it has conv1"),
    ("text", "w.h5", lambda file: file.write_text("words"), NO_WEIGHTS),
    ("pickle", "w.pkl", lambda file: file.write_bytes(pickle.dumps(Payload())), NO_WEIGHTS),
    ("torn", "w.h5", cut_off, NO_WEIGHTS),
    ("a table", "w.h5", table, NO_WEIGHTS),
    ("layers that are a number", "w.h5", odd_layers, NO_WEIGHTS),
    ("of another file", "w.h5", from_elsewhere, NO_WEIGHTS),
    ("by another name", "w.dat", lambda file: file.write_bytes(_weights()), "Download it again"),
]


def _with_weights(name: str, make: Callable[[Path], None]) -> Callable:
    def arguments(folder: Path) -> list[str]:
        make(folder / name)
        network = ["--experiment", "tune_mobilenet", "--alpha", "0.25"]
        return ["train", *network, "--weights", name, "--image_size", "32"]

    return arguments


CASES: list[Case] = [
    Case(f"weights, {name}", _with_weights(file, make), says) for name, file, make, says in WEIGHTS
]
