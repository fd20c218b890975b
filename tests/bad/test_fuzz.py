"""Arbitrary values of every flag, arbitrary names and arbitrary files, with general rules.

PNEUMO_FUZZ multiplies the number of examples.
"""

import io
import subprocess
import sys
import warnings
from contextlib import redirect_stderr

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from pneumo.__main__ import main
from pneumo.commands.options.arguments import COMMANDS
from pneumo.commands.options.parser import flags_of
from pneumo.data import index
from pneumo.inference.decode import decode
from pneumo.inference.untrusted import UnreadableImageError
from pneumo.runtime.errors import UserError, is_printable_text
from pneumo.training.config import RunConfig
from tests.bad.images import READABLE, UNREADABLE
from tests.support.fuzzing import NASTY, examples, is_one_line, result
from tests.support.images import file_of
from tests.support.paths import ROOT

HEAVY = ("tensorflow", "keras", "mlflow", "optuna")


TEXT = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(), max_size=30),  # which has surrogates
    st.floats().map(str),
    st.integers().map(str),
    st.lists(st.integers(-1, 5_000), max_size=6).map(lambda widths: "-".join(map(str, widths))),
)
ANYTHING = st.one_of(
    TEXT,
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=9)),
    st.lists(st.one_of(st.integers(), TEXT), max_size=6),
)


@examples(400)
@given(st.sampled_from(sorted(RunConfig.model_fields)), ANYTHING)
def test_a_field_takes_a_value_or_says_why_not(field, value):
    config = result(RunConfig().override, {field: value})
    if isinstance(config, UserError):
        assert is_one_line(str(config))
        assert str(config).startswith(f"{field} must be ")
    else:
        assert RunConfig().override(config.model_dump()) == config
        assert all(map(is_printable_text, config.to_params().values()))


def flags() -> list[tuple[str, str]]:
    """Return each command with each of its flags."""
    return [
        (name, flag) for name, command in COMMANDS.items() for flag in flags_of(command.options)
    ]


# What each command needs, and none of it there: whatever else is given, there is something to say
NOWHERE = {
    "worker": ["--study=night", "--data=nowhere"],
    "predict": ["--images=nowhere", "--out=out.csv"],
    "test": ["--data=nowhere"],
}


def reads_the_disk(flag: str, text: str) -> bool:
    """Return whether a value may name an existing file, or selects another path in the command."""
    paths = flag in ("data", "images") and (
        text.startswith((".", "/", "~")) or text in ("", "sample")
    )
    return paths or (flag == "rollback" and text.lower() == "true")


@pytest.mark.slow
@examples(500)
@given(st.sampled_from(flags()), TEXT, st.booleans())
@example(("predict", "images"), "**", True)
def test_a_flag_takes_a_value_or_the_command_ends_in_one_line(
    tmp_path, monkeypatch, of, value, joined
):
    command, flag = of
    assume(not reads_the_disk(flag, value) and (joined or not value.startswith("-")))
    monkeypatch.chdir(tmp_path)
    needed = [
        argument
        for argument in NOWHERE.get(command, ["--data=nowhere"])
        if f"--{flag}=" not in argument
    ]
    printed = io.StringIO()
    with redirect_stderr(printed):
        code = main(
            [command, *needed, *([f"--{flag}={value}"] if joined else [f"--{flag}", value])]
        )
    assert code == 2
    printed = printed.getvalue()
    assert printed.startswith("pneumo: ")
    assert printed.endswith("\n")
    assert is_one_line(printed[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--dropout", "nan"],
        ["tune", "--seed", "9" * 5_000],
        ["tune", "--experiment", "tune_resnet", "--backbone", "cnn", "--weights", "none"],
        ["evaluate", "--data", "no\nwhere"],
    ],
)
def test_a_user_error_imports_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys\nfrom pneumo.__main__ import main\n"
        f"code = main({arguments!r})\n"
        f"print(code, [it for it in {HEAVY[:3]} if it in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "2 []\n"
    assert process.stderr.count("\n") == 1


@examples(300)
@given(st.text(st.characters(exclude_characters="/"), min_size=1, max_size=40))
def test_every_name_has_a_patient(name):
    patient, subtype = index.parse_file_name(f"val/PNEUMONIA/{name}")
    assert patient
    assert name.startswith(patient)
    assert bool(subtype) == (index.PATIENT_PATTERN.match(name) is not None)


KINDS = {"person{}_bacteria": "bacteria", "person{}_virus": "virus"}
KINDS |= {"IM-{}": "IM", "NORMAL2-IM-{}": "NORMAL2-IM"}


@pytest.mark.slow
@examples(300)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 10**9),
    st.from_regex(r"([-_]\d{1,6}){0,2}(\.(jpeg|png))?", fullmatch=True),
)
def test_a_patient_has_one_name_whatever_follows_it(kind, number, rest):
    patient = kind.format(number)
    path = f"train/NORMAL/{patient}{rest}"
    assert index.parse_file_name(path) == (patient, KINDS[kind])
    rows = pd.DataFrame({"path": [path], "patient": [patient]})
    assert not index.has_unknown_patient(rows).any()


GREY = Image.fromarray(np.arange(24 * 24, dtype=np.uint16).reshape(24, 24).astype(np.uint8))
FILES = [
    *(file_of(GREY, kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")),
    *(file_of(GREY.convert("RGB"), kind) for kind in ("JPEG", "JPEG2000", "MPO")),
    *(
        file_of(GREY, "TIFF", compression=method)
        for method in ("tiff_lzw", "tiff_deflate", "packbits")
    ),
    file_of(GREY.convert("RGBA"), "PNG"),
    *(content for content in READABLE.values() if len(content) < 20_000),
    *(content for content, _ in UNREADABLE.values() if len(content) < 20_000),
]


@st.composite
def torn(draw) -> bytes:
    """Return a file with some bytes changed, removed or added, perhaps truncated."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data[: draw(st.one_of(st.none(), st.integers(0, len(data))))])


@examples(300)
@given(st.one_of(st.binary(max_size=300), torn()), st.sampled_from(["squash", "pad"]))
def test_bytes_are_pixels_or_say_why_not(capfd, data, resize):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = result(decode, data, 32, resize)
    if isinstance(pixels, UnreadableImageError):
        assert str(pixels)
    else:
        assert (pixels.shape, pixels.dtype) == ((32, 32), np.uint8)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")  # a library in C might write there
