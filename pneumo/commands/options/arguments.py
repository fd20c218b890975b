"""Arguments of the commands: a model of the options of each.

The module imports nothing slow, because `--help` and errors in the arguments need nothing else.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WrapValidator,
)

from pneumo.training.config import RunConfig
from pneumo.tuning.planning.budget import Budget, parse_budget

MAX_INT = 10**9  # for counts and seconds
MAX_WORKERS = 1_000
MAX_MEMBERS = 20  # of an ensemble of trials
MAX_NAME_LENGTH = 60  # characters; files are named after studies and models

COUNT_RULE = f"an integer from 1 to {MAX_INT}"
BOOLEANS = {"true": True, "on": True, "false": False, "off": False}

DATA = "sample, mendeley (downloaded), or the path of a folder, .zip or .tar.gz"
MODEL = "URI of the model: models:/NAME@ALIAS or models:/NAME/VERSION"
REGISTERED = "name of the registered model"


def _must_be(rule: str) -> WrapValidator:
    """Return a validator that replaces pydantic's message for an invalid value by a rule."""

    def check(text: str, validate: Callable[[str], Any]) -> Any:
        try:
            return validate(text)
        except ValidationError:
            raise ValueError(f"must be {rule}") from None

    return WrapValidator(check)


Count = Annotated[int, Field(ge=1, le=MAX_INT), _must_be(COUNT_RULE)]
WorkerCount = Annotated[
    int, Field(ge=1, le=MAX_WORKERS), _must_be(f"an integer from 1 to {MAX_WORKERS}")
]
EnsembleSize = Annotated[
    int, Field(ge=1, le=MAX_MEMBERS), _must_be(f"an integer from 1 to {MAX_MEMBERS}")
]
CountOrAll = Annotated[Literal["all"] | Count, BeforeValidator(str.lower), _must_be(COUNT_RULE)]
Fraction = Annotated[float, Field(gt=0, le=1), _must_be("a fraction above 0, up to 1")]
Prevalence = Annotated[float, Field(gt=0, lt=1), _must_be("a fraction above 0 and below 1")]
Margin = Annotated[float, Field(ge=0, le=1), _must_be("a number from 0 to 1")]
Boolean = Annotated[
    bool, BeforeValidator(lambda text: BOOLEANS.get(text.lower())), _must_be("true or false")
]
Name = Annotated[
    str,
    Field(max_length=MAX_NAME_LENGTH, pattern=re.compile(r"^\w[\w .-]*\Z")),
    _must_be(f"a name of at most {MAX_NAME_LENGTH} letters, digits, '_', '-', '.' and spaces"),
]
OutOfRange = Annotated[Literal["warn", "refuse", "ignore"], _must_be("warn, refuse or ignore")]
Launcher = Annotated[Literal["local", "ray"], _must_be("local or ray")]

# Flags that several commands have
ToPrevalence = Annotated[
    Prevalence | None,
    Field(
        description="prevalence to which probabilities and threshold are adjusted (default: that "
        "for which the model is calibrated)"
    ),
]
Experiment = Annotated[str, Field(description="name of a file in experiments/, without .py")]
Data = Annotated[str, Field(description=DATA)]
Positive = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda text: tuple(filter(None, map(str.strip, text.split(","))))),
    Field(
        description="labels of the data's table that mean pneumonia, separated by commas, if it "
        "has more than two"
    ),
]
Workers = Annotated[WorkerCount, Field(description="number of worker processes")]
WorkersPerGpu = Annotated[WorkerCount, Field(description="maximum number of workers per GPU")]
Split = Annotated[
    Literal["test", "val", "train"],
    Field(description="test, val or train"),
    _must_be("test, val or train"),
]


class Options(BaseModel):
    """Options of one command: a flag for each field, whose description is the flag's help.

    A field `overrides` stands for the flags that are fields of `RunConfig`. It contains the
    flags that are set, as text. `RunConfig` validates them when the experiment is known.

    Attributes:
        run_fields: Names of the fields of `RunConfig` that are flags of the command.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run_fields: ClassVar[tuple[str, ...]] = ()


class TuneOptions(Options):
    """Options of `tune`."""

    run_fields = tuple(RunConfig.model_fields)

    experiment: str | None = Field(
        None,
        description="name of a file in experiments/, without .py (default: tune, or auto with "
        "--budget)",
    )
    data: Data = "sample"
    positive: Positive = ()
    overrides: dict[str, str] = {}
    budget: Annotated[Budget, PlainValidator(parse_budget), PlainSerializer(str)] | None = Field(
        None,
        description="time for the whole study in seconds, minutes or hours, as 600, 10m or 1h; "
        "+1h continues an existing study",
    )
    trials: Count | None = Field(
        None,
        description="number of trials (completed + pruned; default: 20, or no limit with --budget)",
    )
    workers: Workers = 1
    workers_per_gpu: WorkersPerGpu = 1
    launcher: Launcher = Field("local", description="where workers run: local or ray")
    study: Name | None = Field(
        None,
        description="name of the study; an existing one is resumed (default: from the run's id)",
    )
    like: Name | None = Field(
        None, description="name of an earlier study, whose best trials a new study tries first"
    )
    timeout: Count | None = Field(None, description="seconds after which no new trial starts")
    trial_timeout: Count | None = Field(
        None, description="maximum seconds per trial; a longer trial fails"
    )
    model_name: Name | None = Field(
        None,
        description=f"{REGISTERED} (default: pneumonia, or pneumonia-sample with data=sample; a "
        "resumed study keeps its own)",
    )
    keep_models: CountOrAll = Field("all", description="models to keep: all, or the n best")
    ensemble: EnsembleSize | None = Field(
        None,
        description="maximum number of trials whose ensemble is registered, selected greedily on "
        "validation (default: 1, or 5 if experiment auto has a budget)",
    )


class WorkerOptions(Options):
    """Options of `worker`."""

    study: Name = Field(description="name of the study")
    data: Data
    positive: Positive = ()
    workers: Workers = 1
    workers_per_gpu: WorkersPerGpu = 1
    weights: str | None = Field(
        None, description="path of the study's weights file on this machine, if it uses one"
    )
    driven: Boolean = Field(
        False,
        description="true (internal): the worker has no run and no progress display, and ends with "
        "the process that started it",
    )


class TrainOptions(Options):
    """Options of `train`."""

    run_fields = tuple(RunConfig.model_fields)

    experiment: Experiment = "cnn"
    data: Data = "sample"
    positive: Positive = ()
    overrides: dict[str, str] = {}
    model_name: Name | None = Field(None, description=f"{REGISTERED} (default: do not register)")


class EvaluateOptions(Options):
    """Options of `evaluate`."""

    model: str = Field("models:/pneumonia@challenger", description=MODEL)
    data: Data  # required: a real model must not be evaluated on the sample by accident
    positive: Positive = ()
    split: Split = "test"
    sensitivity: Fraction | None = Field(
        None,
        description="target sensitivity on validation, which sets the threshold (default: the "
        "model's own threshold)",
    )
    net_benefit_at: Prevalence | None = Field(
        None,
        description="probability above which a patient should be treated; the threshold then has "
        "the greatest net benefit on validation",
    )
    prevalence: ToPrevalence = None
    recalibrate: Prevalence | None = Field(
        None,
        description="share of the patients of external data on whom calibration and threshold are "
        "fitted again; the others are evaluated with both",
    )
    preprocessing_skew: Boolean = Field(
        False,
        description="true: also evaluate the model on pixels / 255 (training-serving skew), in a "
        "separate run",
    )


class PromoteOptions(Options):
    """Options of `promote`."""

    model_name: Name = Field("pneumonia", description=REGISTERED)
    candidate: Name = Field("challenger", description="alias or number of the candidate version")
    data: str | None = Field(None, description=f"{DATA}; required unless --rollback true")
    positive: Positive = ()
    split: Split = "test"
    margin: Margin = Field(0.02, description="non-inferiority margin for the AUC, 0 to 1")
    sensitivity_margin: Margin = Field(
        0.05, description="non-inferiority margin for the sensitivity, 0 to 1"
    )
    rollback: Boolean = Field(False, description="true: make @previous the champion again")


class PredictOptions(Options):
    """Options of `predict`."""

    model: str = Field("models:/pneumonia@champion", description=MODEL)
    images: str = Field(description="a file, a folder or a glob of image files")
    out: str = Field(
        description="path of the output CSV; images that it already contains are skipped"
    )
    prevalence: ToPrevalence = None
    out_of_range: OutOfRange = Field(
        "warn",
        description="for images far from the training images: warn (probability and error), refuse "
        "(error only) or ignore (probability only)",
    )
    explain: Boolean = Field(
        False, description="true: also write heat maps to a folder next to --out"
    )


class ExploreOptions(Options):
    """Options of `explore`."""

    data: Data
    positive: Positive = ()


class PrepareOptions(Options):
    """Options of `prepare`."""

    run_fields = "image_size", "resize", "max_unreadable"

    data: Data = "sample"
    positive: Positive = ()
    test_images: str | None = Field(
        None,
        description="text file with the test images to keep, one path per line; requires --out",
    )
    out: str | None = Field(
        None,
        description="new or empty folder for a copy of the data set with only these test images",
    )
    overrides: dict[str, str] = {}


class TestOptions(Options):
    """Options of `test`, which has none."""


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        options: Model of its options.
        description: Description in its help.
    """

    options: type[Options]
    description: str


COMMANDS = {
    "tune": Command(TuneOptions, "tune hyperparameters with Optuna and register the best model"),
    "worker": Command(WorkerOptions, "join a running study from another machine"),
    "train": Command(TrainOptions, "train one model without a search"),
    "evaluate": Command(
        EvaluateOptions, "evaluate one model on one split and write an HTML report"
    ),
    "promote": Command(PromoteOptions, "promote a model version to champion if it passes the gate"),
    "predict": Command(PredictOptions, "predict image files and write a CSV"),
    "explore": Command(ExploreOptions, "explore a data set before training"),
    "prepare": Command(PrepareOptions, "import a data set and fill the pixel cache"),
    "test": Command(TestOptions, "run the tests"),
}
