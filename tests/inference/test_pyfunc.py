"""Each invalid value of a request gets a reason, and the others a prediction.

PNEUMO_FUZZ multiplies the number of examples.
"""

import base64
import io
import json
import math
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pneumo.inference.pyfunc import OUTPUT_COLUMNS, PneumoniaModel, to_file_bytes
from pneumo.inference.untrusted import UnreadableImageError
from tests.support.fuzzing import examples
from tests.support.handmade import SIDE, looking
from tests.support.images import RAMP, file_of

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000")


def _file(kind: str) -> bytes:
    file = io.BytesIO()
    ramp = np.tile(np.arange(SIDE, dtype=np.uint8) * 8, (SIDE, 1))
    Image.fromarray(ramp).save(file, kind)
    return file.getvalue()


FILES = [_file(kind) for kind in FORMATS]


@st.composite
def _broken_files(draw) -> bytes:
    """Generate files of some format, with some bytes replaced, and truncated."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        new = draw(st.binary(max_size=8))
        data[at : at + draw(st.integers(0, 8))] = new
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


# Text with halves of surrogate pairs: JSON can name those, and UTF-8 cannot
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), ANY_TEXT),
    *(_broken_files(), _broken_files().map(lambda content: base64.b64encode(content).decode())),
    st.text("ABCabc012+/= \n"),
)
VALUES = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(ANY_TEXT, values, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def model():
    """Build a model of one half of each image."""
    model = PneumoniaModel()
    model.keras_model = model._network = looking("left")
    model.settings = {"threshold": 0.5, "slope": 1.0, "intercept": 0.0, "resize": "squash"}
    return model


def answers(model, values: list) -> list[dict]:
    column = pd.Series(values, dtype=object)
    table = model.predict(None, pd.DataFrame({"image": column}))
    assert list(table) == OUTPUT_COLUMNS
    return table.to_dict("records")


def require_answers(model, values: list, good: int) -> None:
    """Require a prediction or an error for each value; that of `good` does not change."""
    found = answers(model, values)
    assert len(found) == len(values)
    json.dumps(found, allow_nan=False).encode()
    assert found[good] == answers(model, [FILES[0]])[0]
    for row in found:
        if row["error"] is None:
            assert 0 <= row["probability"] <= 1
            assert row["label"] == (row["probability"] >= row["threshold"])
        else:
            assert row["error"].encode()
            assert {row[name] for name in OUTPUT_COLUMNS} == {None, row["error"]}


@given(VALUES)
@examples(150)
def test_a_value_is_bytes_or_unreadable(value):
    with suppress(UnreadableImageError):
        assert type(to_file_bytes(value)) is bytes


@pytest.mark.slow
@given(st.lists(VALUES, max_size=20), st.data())
@examples(150)
def test_each_value_gets_its_own_prediction(model, values, data):
    place = data.draw(st.integers(0, len(values)))
    require_answers(model, [*values[:place], FILES[0], *values[place:]], place)


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",  # half of a surrogate pair, as "\\ud800" in JSON
        "A" * 20_000_000,
        b"\xff" * 20_000_000,
        [[[["deep"] * 3] * 3] * 3] * 1000,
        {"image": "iVBORw0KGgo="},
        math.inf,
        -(10**400),
        np.float32(1),
        np.zeros((3, 3)),
        bytearray(FILES[0]),
        pd.NaT,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_odd_and_very_large_values(model, value):
    require_answers(model, [value, FILES[0]], 1)
    assert answers(model, [value])[0]["error"]


def test_an_empty_request_gives_no_rows(model):
    assert answers(model, []) == []


def test_files_come_as_bytes_or_base64():
    file = file_of(Image.fromarray(RAMP))
    wrapped = base64.encodebytes(file)  # with line ends, as `base64` prints it
    for value in (file, wrapped, wrapped.decode(), base64.b64encode(file).decode()):
        assert to_file_bytes(value) == file
    assert to_file_bytes(b"no base64!") == b"no base64!"
    for value in (None, 1.5, float("nan"), [1]):
        with pytest.raises(
            UnreadableImageError, match=f"not an image file, but {type(value).__name__}"
        ):
            to_file_bytes(value)
