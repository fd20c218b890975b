"""Configuration of one Keras run, with every hyperparameter."""

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from pneumo.runtime.errors import UserError, quoted
from pneumo.training.backbones import BACKBONES


def _widths_from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [] if value.strip().lower() == "none" else value.split("-")


def _drop_zero_widths(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(width for width in widths if width)


def _widths_to_text(widths: tuple[int, ...]) -> str:
    return "-".join(map(str, widths)) or "none"


# A width of 0 means no layer, so that a search can have a fixed number of dimensions.
DenseWidths = Annotated[
    tuple[Annotated[int, Field(ge=0, le=4096)], ...],
    BeforeValidator(_widths_from_text),
    AfterValidator(_drop_zero_widths),
    PlainSerializer(_widths_to_text),
]


def _weights(value: str | Path) -> str:
    """Return `none` or `imagenet` in lower case, or else the absolute path of a file."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError
    if str(value).lower() in ("none", "imagenet"):
        return str(value).lower()
    path = os.path.abspath(os.path.expanduser(value))  # also for a process in another folder
    if not os.path.isfile(path):  # unlike Path.is_file, it takes any text
        raise ValueError
    return path


@lru_cache
def _file_name_and_hash(path: str) -> str:
    with open(path, "rb") as file:
        return f"{Path(path).name}:{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"


def _on_off(value: Any) -> Any:
    return {"true": "on", "false": "off"}.get(str(value).lower(), str(value).lower())


OnOff = Annotated[Literal["off", "on"], BeforeValidator(_on_off)]

# Fields by the names that earlier versions stored them under
RENAMED_FIELDS = {
    "crop": ("max_crop_fraction",),
    "mirror": ("horizontal_flip", "flip_tta"),
    "schedule": ("lr_schedule",),
    "fine_tuning_factor": ("fine_tune_lr_factor",),
    "members": ("ensemble_size",),
}


def rename_fields(values: Mapping[str, str]) -> dict[str, str]:
    """Return stored values of fields under the names that the fields have today."""
    return {
        new: value for name, value in values.items() for new in RENAMED_FIELDS.get(name, (name,))
    }


# Fields that earlier versions did not have → the value that these versions worked with
ADDED_FIELDS = {"folds": "1", "repeats": "1", "sharpness_jitter": "0.0", "split_by": "patient"}


def complete_fields(values: Mapping[str, str]) -> dict[str, str]:
    """Return all fields of a stored config, with those that its version did not have."""
    return ADDED_FIELDS | rename_fields(values)


# Objective → its name in messages
OBJECTIVE_LABELS = {"val_auc": "val AUC", "val_robust_auc": "robust val AUC"}


def objective_title(objective: str) -> str:
    """Return the name of an objective on a page."""
    return OBJECTIVE_LABELS[objective].replace("val", "validation")


class RunConfig(BaseModel):
    """Complete configuration of one Keras run.

    The same config, data and machine give the same metrics. It is frozen and typed; unknown keys
    and values out of range are rejected. `--help` and the error messages print the descriptions.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    backbone: str = Field("cnn", description="one of: " + ", ".join(BACKBONES))
    alpha: float = Field(
        1.0, gt=0, le=4, description="the width multiplier of MobileNet, above 0, up to 4"
    )
    weights: Annotated[str, BeforeValidator(_weights)] = Field(
        "none", description="none (random initialization), imagenet, or the path of a weights file"
    )
    image_size: int = Field(
        128, ge=32, le=1024, description="the side of the square input in pixels, 32 to 1024"
    )
    resize: Literal["squash", "pad"] = Field(
        "squash", description="squash, or pad (with black), to make images square"
    )
    dropout: float = Field(
        0.5, ge=0, le=0.9, description="the fraction of units dropped in the head, 0 to 0.9"
    )
    dense_widths: DenseWidths = Field(
        (128, 64),
        max_length=4,
        description="widths of up to four dense layers in the head, each 1 to 4096, as 128-64, or "
        "none",
    )
    augment_strength: float = Field(
        0.5, ge=0, le=1, description="the strength of the augmentation, 0 (none) to 1"
    )
    max_crop_fraction: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="the maximum fraction of the side that random crops of training images "
        "remove, 0 to 0.9 (aspect ratio up to 4:3)",
    )
    horizontal_flip: OnOff = Field(
        "off", description="on (training images are flipped with probability 0.5) or off"
    )
    sharpness_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="the strength of random blur and sharpening of training images, 0 (none) to 1",
    )
    flip_tta: OnOff = Field(
        "off",
        description="on (test-time augmentation: the mean over an image and its flipped image) or "
        "off",
    )
    unfreeze_depth: int = Field(
        2,
        ge=0,
        description="the number of trainable blocks at the top of the backbone; 0 trains only the "
        "head",
    )
    learning_rate: float = Field(
        1e-3, gt=0, le=1, description="Adam's learning rate, above 0, up to 1"
    )
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="constant, or cosine (in each phase linear warm-up for a tenth of it, then "
        "cosine decay to 0)",
    )
    head_epochs: int = Field(
        1,
        ge=0,
        le=1000,
        description="the number of epochs that train only the head, before fine-tuning "
        "pretrained blocks, 0 to 1000",
    )
    fine_tune_lr_factor: float = Field(
        0.1,
        gt=0,
        le=1,
        description="the factor on learning_rate during fine-tuning, above 0, up to 1",
    )
    batch_size: int = Field(
        32, ge=1, le=1024, description="the number of images per step, 1 to 1024"
    )
    epochs: int = Field(
        10, ge=1, le=1000, description="the maximum number of passes over the data, 1 to 1000"
    )
    patience: int = Field(
        3,
        ge=1,
        le=1000,
        description="the epochs without a better objective before early stopping, 1 to 1000",
    )
    ensemble_size: int = Field(
        1,
        ge=1,
        le=20,
        description="the number of networks whose logits one model averages, 1 to 20",
    )
    folds: int = Field(
        1,
        ge=1,
        le=10,
        description="the number of folds of cross-validation, 1 (the validation split) to 10",
    )
    split_by: Literal["patient", "site"] = Field(
        "patient",
        description="patient, or site (each fold of cross-validation is one site, so folds must be "
        "the number of sites)",
    )
    repeats: int = Field(
        1,
        ge=1,
        le=10,
        description="the number of fits with different seeds in each fold, 1 to 10",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="the seed of weights, image order and augmentation, 0 to 2**32 - 1",
    )
    objective: Literal["val_auc", "val_robust_auc"] = Field(
        "val_auc",
        description="val_auc, or val_robust_auc (its mean with the AUCs under reversed aspect "
        "ratio and sharpness), which selects the epoch and the trial",
    )
    threshold_rule: Literal["youden", "midpoint"] = Field(
        "youden",
        description="youden (maximum of sensitivity + specificity), or midpoint (midway between "
        "the mean logits of the classes), on perturbed validation images",
    )
    feature_cache: OnOff = Field(
        "on",
        description="on (the outputs of frozen blocks are computed once and cached) or off (they "
        "are computed in every epoch, with new augmentation)",
    )
    max_unreadable: float = Field(
        0.01, ge=0, le=1, description="the maximum fraction of unreadable images, 0 to 1"
    )

    @field_validator("backbone")
    @classmethod
    def _check_backbone(cls, backbone: str) -> str:
        if backbone not in BACKBONES:
            raise ValueError
        return backbone

    @model_validator(mode="after")
    def _check_backbone_compatibility(self) -> Self:
        backbone = BACKBONES[self.backbone]
        self._require(
            "unfreeze_depth", self.unfreeze_depth <= backbone.blocks, f"0 to {backbone.blocks}"
        )
        self._require("alpha", backbone.scalable or self.alpha == 1, "1")
        self._require("weights", bool(backbone.application) or self.weights == "none", "none")
        return self

    def _require(self, field: str, is_valid: bool, rule: str) -> None:
        if not is_valid:
            value = quoted(getattr(self, field))
            raise ValueError(f"{field} must be {rule} with backbone {self.backbone}: got {value}")

    def override(self, values: Mapping[str, Any]) -> "RunConfig":
        """Return a copy with other values.

        Args:
            values: Field → value, as text or typed.

        Returns:
            The validated copy.

        Raises:
            UserError: A field is unknown, or a value has a wrong type or is out of range.
        """
        try:
            return type(self)(**{**self.model_dump(), **values})
        except ValidationError as error:
            raise UserError(_format_validation_error(error, values)) from None

    def to_params(self) -> dict[str, str]:
        """Return every field as text, as MLflow shows it and a flag accepts it.

        Only the path of a weights file is replaced, by the file's name and the first 8 hex digits
        of its sha256.
        """
        params = {name: str(value) for name, value in self.model_dump().items()}
        if self.weights not in ("none", "imagenet"):
            params["weights"] = _file_name_and_hash(self.weights)
        return params


def derive_seed(seed: int, number: int) -> int:
    """Derive a seed of 32 bits, independent of those for other seeds and numbers.

    Args:
        seed: Non-negative integer.
        number: Non-negative integer.
    """
    import numpy as np  # imported here so that --help does not wait for it

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _format_validation_error(error: ValidationError, given: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    name = first["loc"][0]
    field = RunConfig.model_fields.get(name)
    if field is None:
        fields = ", ".join(RunConfig.model_fields)
        return f"'{quoted(name)}' is not a field of a run. The fields are: {fields}"
    return f"{name} must be {field.description}: got '{quoted(given.get(name, first['input']))}'"
