import pytest
from pydantic import ValidationError

from pneumo.config import RunConfig
from pneumo.errors import Mistake


def test_text_and_back():
    config = RunConfig(dropout=0.1, dense_widths=(128, 64), epochs=3)
    assert RunConfig().override(config.as_text()) == config


@pytest.mark.parametrize(
    ("text", "widths"),
    [("128-64", (128, 64)), ("none", ()), ("None", ()), ("32", (32,)), ("0-64-0", (64,))],
)
def test_dense_widths(text, widths):
    assert RunConfig().override({"dense_widths": text}).dense_widths == widths


def test_no_dense_layer_is_written_none():
    assert RunConfig(dense_widths=(0, 0)).as_text()["dense_widths"] == "none"


def test_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().dropout = 0.1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout", "0.91"),
        ("dropout", "-0.1"),
        ("dropout", "nan"),
        ("dropout", "much"),
        ("dense_widths", "128,64"),
        ("dense_widths", "-5"),
        ("dense_widths", "1-2-3-4-5"),
        ("augment_strength", "1.01"),
        ("learning_rate", "0"),
        ("learning_rate", "inf"),
        ("image_size", "31"),
        ("image_size", "64.5"),
        ("batch_size", "0"),
        ("epochs", "0"),
        ("seed", "-1"),
        ("objective", "accuracy"),
        ("backbone", "vgg"),
        ("weights", "imagenet"),
        ("max_unreadable", "2"),
    ],
)
def test_a_bad_value_is_named_in_one_line(field, value):
    with pytest.raises(Mistake) as mistake:
        RunConfig().override({field: value})
    message = str(mistake.value)
    assert message.startswith(f"{field} must be {RunConfig.model_fields[field].description}")
    assert f"'{value}'" in message or field == "dense_widths"
    assert "\n" not in message


def test_the_depth_must_fit_the_backbone():
    with pytest.raises(Mistake, match="must be 0 to 2, the blocks of cnn: got 3"):
        RunConfig().override({"unfreeze_depth": "3"})


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(Mistake, match="'dropot' is no field of a run; the fields are: backbone, "):
        RunConfig().override({"dropot": "0.4"})
