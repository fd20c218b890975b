"""Payloads that would run if they were imported, unpickled or called."""

import importlib.util
import json
import marshal
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras

from tests.support.handmade import SIDE

RAN = "it-ran"  # the file that a payload leaves in the working directory
Spoil = Callable[[Path], None]  # takes the folder of a model's files
PAYLOAD = f"open({RAN!r}, 'w').close()\n"


class Payload:
    def __reduce__(self):
        return exec, (PAYLOAD,)


def first_line(file: str) -> Spoil:
    """Return code that runs when the file is imported."""

    def spoil(place: Path) -> None:
        code = place / file
        code.write_text(PAYLOAD + code.read_text())

    return spoil


def _bytecode(flags: int, source: Path | None = None) -> bytes:
    """Return a `.pyc` with the payload; `flags` 0 names the source's age, 1 an unchecked hash."""
    state = source and source.stat()
    age = [int(state.st_mtime), state.st_size] if state else [0, 0]
    header = importlib.util.MAGIC_NUMBER + flags.to_bytes(4, "little")
    header += b"".join(number.to_bytes(4, "little") for number in age)
    rest = source.read_text() if source else ""  # so that it does what its source does
    return header + marshal.dumps(compile(PAYLOAD + rest, "payload", "exec"))


def beside_its_source(flags: int) -> Spoil:
    def spoil(place: Path) -> None:
        source = place / "pyfunc.py"
        cached = Path(importlib.util.cache_from_source(str(source)))
        cached.parent.mkdir(exist_ok=True)
        cached.write_bytes(_bytecode(flags, source))

    return spoil


def without_a_source(place: Path) -> None:
    (place / "code" / "colorsys.pyc").write_bytes(_bytecode(0))


def pickled(file: str) -> Spoil:
    return lambda place: (place / file).write_bytes(pickle.dumps(Payload()))


def with_lambda(place: Path) -> None:
    pixels = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    ran = keras.layers.Lambda(lambda x: [open("it-ran", "w").close(), x][1], name="backbone")
    outputs = keras.layers.Dense(1, name="head")(keras.layers.Flatten()(ran(pixels)))
    keras.Model(pixels, outputs).save(place / "artifacts" / "model.keras")


def function_of_another_module(place: Path) -> None:
    file = place / "artifacts" / "model.keras"
    with zipfile.ZipFile(file) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] |= {"module": "os", "class_name": "mkdir", "config": RAN}
    with zipfile.ZipFile(file, "w") as whole:
        for name, content in (members | {"config.json": json.dumps(config)}).items():
            whole.writestr(name, content)
