"""Every knob of one Keras run."""

from collections.abc import Mapping
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

from pneumo.errors import Mistake

# Blocks of each backbone. Stated here, and held against the graph by a test, so that
# a wrong depth is refused before TensorFlow is imported.
BLOCKS = {"cnn": 2}


def _widths_from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [] if value.strip().lower() == "none" else value.split("-")


def _without_absent(widths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(width for width in widths if width)


def _widths_to_text(widths: tuple[int, ...]) -> str:
    return "-".join(map(str, widths)) or "none"


# A width of 0 is no layer, so that a search can have a fixed number of dimensions.
DenseWidths = Annotated[
    tuple[Annotated[int, Field(ge=0, le=4096)], ...],
    BeforeValidator(_widths_from_text),
    AfterValidator(_without_absent),
    PlainSerializer(_widths_to_text),
]


class RunConfig(BaseModel):
    """One Keras run, complete: the same config, data and machine give the same metrics.

    Frozen and typed; unknown keys and values out of range are refused. The descriptions
    are what `--help` and the error messages say.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    backbone: str = Field("cnn", description="one of: " + ", ".join(BLOCKS))
    weights: Literal["none"] = Field("none", description="none (random initial weights)")
    image_size: int = Field(
        128, ge=32, le=1024, description="side of the square input in pixels, 32 to 1024"
    )
    dropout: float = Field(
        0.5, ge=0, le=0.9, description="share of units dropped in the head, 0 to 0.9"
    )
    dense_widths: DenseWidths = Field(
        (128, 64),
        max_length=4,
        description="up to four widths of dense layers in the head, 1 to 4096, as 128-64, or none",
    )
    augment_strength: float = Field(
        0.5, ge=0, le=1, description="strength of the augmentation, 0 (none) to 1"
    )
    unfreeze_depth: int = Field(
        2, ge=0, description="blocks of the backbone that train, from its top; 0 is the head alone"
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Adam's step, above 0, up to 1")
    batch_size: int = Field(32, ge=1, le=1024, description="images per step, 1 to 1024")
    epochs: int = Field(10, ge=1, le=1000, description="passes over the data at most, 1 to 1000")
    patience: int = Field(
        3, ge=1, le=1000, description="epochs without a better objective before stopping, 1 to 1000"
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of weights, order and augmentation, 0 to 2**32 - 1"
    )
    objective: Literal["val_auc"] = Field(
        "val_auc", description="what chooses the epoch and the trial: val_auc"
    )
    max_unreadable: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images that is tolerated, 0 to 1"
    )

    @field_validator("backbone")
    @classmethod
    def _is_known(cls, backbone: str) -> str:
        if backbone not in BLOCKS:
            raise ValueError
        return backbone

    @model_validator(mode="after")
    def _depth_fits_the_backbone(self) -> Self:
        blocks = BLOCKS[self.backbone]
        if self.unfreeze_depth > blocks:
            raise ValueError(
                f"unfreeze_depth must be 0 to {blocks}, the blocks of {self.backbone}: "
                f"got {self.unfreeze_depth}"
            )
        return self

    def override(self, values: Mapping[str, Any]) -> "RunConfig":
        """A copy with `values`, as text or typed, in place of its own.

        Raises `Mistake` for an unknown field, a wrong type or a value out of range.
        """
        try:
            return type(self)(**{**self.model_dump(), **values})
        except ValidationError as error:
            raise Mistake(_in_one_line(error)) from None

    def as_text(self) -> dict[str, str]:
        """Every field as MLflow shows it, and as a flag takes it back."""
        return {name: str(value) for name, value in self.model_dump().items()}


def _in_one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    name = first["loc"][0]
    field = RunConfig.model_fields.get(name)
    if field is None:
        return f"'{name}' is no field of a run; the fields are: {', '.join(RunConfig.model_fields)}"
    return f"{name} must be {field.description}: got '{first['input']}'"
