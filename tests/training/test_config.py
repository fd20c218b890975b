"""The config of a run: its text, its rules, and messages about invalid values."""

import pytest
from pydantic import ValidationError

from pneumo.runtime.errors import UserError
from pneumo.training.config import RENAMED_FIELDS, RunConfig, rename_fields


def test_text_and_back():
    config = RunConfig(dropout=0.1, dense_widths=(128, 64), epochs=3)
    assert RunConfig().override(config.to_params()) == config


@pytest.mark.parametrize(
    ("text", "widths"),
    [("128-64", (128, 64)), ("none", ()), ("None", ()), ("32", (32,)), ("0-64-0", (64,))],
)
def test_dense_widths(text, widths):
    assert RunConfig().override({"dense_widths": text}).dense_widths == widths


def test_no_dense_layer_is_written_none():
    assert RunConfig(dense_widths=(0, 0)).to_params()["dense_widths"] == "none"


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
        ("weights", "nowhere.h5"),
        ("alpha", "0"),
        ("resize", "stretch"),
        ("head_epochs", "-1"),
        ("fine_tune_lr_factor", "2"),
        ("max_unreadable", "2"),
    ],
)
def test_a_bad_value_is_named_in_one_line(field, value):
    with pytest.raises(UserError) as mistake:
        RunConfig().override({field: value})
    message = str(mistake.value)
    assert message.startswith(f"{field} must be {RunConfig.model_fields[field].description}")
    assert message.endswith(f": got '{value}'")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"unfreeze_depth": "3"}, "unfreeze_depth must be 0 to 2 with backbone cnn: got 3"),
        (
            {"backbone": "mobilenet", "unfreeze_depth": "14"},
            "unfreeze_depth must be 0 to 13 with backbone mobilenet: got 14",
        ),
        ({"alpha": "0.5"}, "alpha must be 1 with backbone cnn: got 0.5"),
        ({"weights": "imagenet"}, "weights must be none with backbone cnn: got imagenet"),
    ],
)
def test_what_must_fit_the_backbone(values, rule):
    with pytest.raises(UserError) as mistake:
        RunConfig().override(values)
    assert str(mistake.value) == rule


def test_weights_are_shown_by_name_and_content(tmp_path):
    file = tmp_path / "mine.h5"
    file.write_bytes(b"abc")
    config = RunConfig(backbone="mobilenet", weights=file)
    assert config == RunConfig(backbone="mobilenet", weights=str(file))
    assert config.to_params()["weights"] == "mine.h5:ba7816bf"
    assert config.override({"dropout": "0.1"}).weights == str(file)
    assert RunConfig(backbone="mobilenet", weights="ImageNet").to_params()["weights"] == "imagenet"


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match="'dropot' is not a field of a run. The fields are: backbone, "
    ):
        RunConfig().override({"dropot": "0.4"})


@pytest.mark.parametrize("value", [None, 7, ["a"]])
def test_weights_of_another_type_are_refused(value):
    with pytest.raises(UserError, match="weights must be none "):
        RunConfig().override({"weights": value})


def test_stored_fields_get_the_names_of_today():
    stored = {"mirror": "on", "crop": "0.4", "members": "2", "schedule": "cosine", "dropout": "0.5"}
    renamed = rename_fields({**stored, "fine_tuning_factor": "0.1"})
    assert renamed == {
        "horizontal_flip": "on",
        "flip_tta": "on",
        "max_crop_fraction": "0.4",
        "ensemble_size": "2",
        "lr_schedule": "cosine",
        "dropout": "0.5",
        "fine_tune_lr_factor": "0.1",
    }
    assert RunConfig().override(renamed).ensemble_size == 2
    assert {name for names in RENAMED_FIELDS.values() for name in names} <= set(
        RunConfig.model_fields
    )


@pytest.mark.parametrize(
    ("text", "value"), [("on", "on"), ("true", "on"), ("OFF", "off"), ("False", "off")]
)
def test_switches_are_on_and_off_or_true_and_false(text, value):
    for field in ("horizontal_flip", "flip_tta", "feature_cache"):
        config = RunConfig().override({field: text})
        assert config.to_params()[field] == value


def test_the_path_of_weights_is_absolute(tmp_path, monkeypatch):
    (tmp_path / "w.h5").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    config = RunConfig(backbone="mobilenet", weights="w.h5", unfreeze_depth=0)
    assert config.weights == str(tmp_path / "w.h5")
