"""User attributes of Optuna's studies and trials, with their types."""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Owner(Protocol):
    """A study or a trial of Optuna."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Return the attributes, as `optuna.Study.user_attrs` does."""

    def set_user_attr(self, key: str, value: Any) -> None:
        """Store an attribute, as `optuna.Study.set_user_attr` does."""


@dataclass(frozen=True)
class Attribute(Generic[T]):
    """A user attribute in Optuna's storage, which stores it as JSON.

    Attributes:
        name: Name of the attribute.
    """

    name: str

    def read(self, owner: Owner) -> T:
        """Return the attribute's value.

        Raises:
            KeyError: The attribute is not set.
        """
        return owner.user_attrs[self.name]

    def get(self, owner: Owner, default: T) -> T:
        """Return the attribute's value, or `default` if it is not set."""
        return owner.user_attrs.get(self.name, default)

    def set(self, owner: Owner, value: T) -> None:
        """Store a value."""
        owner.set_user_attr(self.name, value)


RUN_ID: Attribute[str] = Attribute("run_id")  # of the MLflow run, of a study and of a trial

# Of a study. `StudySpec.identity` has more: a study is compared by it with a command's options
FIXED: Attribute[dict[str, str]] = Attribute("fixed")  # field that is not searched → value
OBJECTIVE: Attribute[str] = Attribute("objective")
SEARCH_SPACE: Attribute[dict[str, str]] = Attribute("search_space")  # distributions as JSON
LIMITS: Attribute[dict[str, Any]] = Attribute("goal")  # the fields of `StudyLimits`
PLAN: Attribute[dict[str, Any]] = Attribute("plan")  # of a study with a budget
SPENT_SECONDS: Attribute[float] = Attribute("spent_seconds")  # of its budget, by its commands
MODEL_NAME: Attribute[str] = Attribute("model_name")  # registered model of the winner
WINNER: Attribute[dict[str, Any]] = Attribute("winner")  # trial, version, evaluation on test
WARM_START: Attribute[dict[str, Any]] = Attribute("warm_start")  # the fields of `WarmStart`
ENSEMBLE: Attribute[dict[str, Any]] = Attribute("ensemble")  # the fields of `EnsembleSummary`
IMPROVEMENT: Attribute[dict[str, Any]] = Attribute("improvement")  # best over baseline

# Of a trial
PROCESS: Attribute[list] = Attribute("process")  # the `ProcessId` that runs it
CONFIG: Attribute[dict[str, str]] = Attribute("config")  # fields of `RunConfig` as text
NAME: Attribute[str] = Attribute("name")  # of its run
ERROR: Attribute[str] = Attribute("error")  # type and message of the exception that ended it
IS_CUT: Attribute[bool] = Attribute("is_cut")  # whether it had no time for its other epochs
MODEL_URI: Attribute[str] = Attribute("model_uri")
SECONDS: Attribute[dict[str, float]] = Attribute("seconds")  # by stage, see `trial.STAGES`
