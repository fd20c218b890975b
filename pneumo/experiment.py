"""Experiments: files of `experiments/`, one question each."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pneumo.runtime.errors import UserError, quoted
from pneumo.training.config import RunConfig

EXPERIMENTS_DIR = Path(__file__).parent.parent / "experiments"

# Field of `Experiment` → optional attribute of an experiment's file
OPTIONAL_ATTRIBUTES = {
    "resources": "RESOURCES",
    "enqueued_trials": "ENQUEUED_TRIALS",
    "prune": "PRUNE",
}


@dataclass(frozen=True)
class Experiment:
    """An experiment's base config, and its search space if it has one.

    Attributes:
        name: Name of its file.
        base: Config of one run, and the baseline of a study.
        suggest: Called with an Optuna trial and the base; returns the config of the trial.
        resources: Resources of a trial on a Ray cluster, as `num_cpus` and `num_gpus`.
        enqueued_trials: Hyperparameters that a study tries first, after the baseline. Repeated
            ones are tried with another seed.
        prune: Whether bad trials end early.
        question: Question of the experiment: the first line of its docstring.
    """

    name: str
    base: RunConfig
    suggest: Callable[[Any, RunConfig], RunConfig] | None
    resources: Mapping[str, float] = field(default_factory=lambda: {"num_cpus": 1})
    enqueued_trials: Sequence[Mapping[str, Any]] = ()
    prune: bool = True
    question: str = ""


def list_experiments() -> list[str]:
    """Return the names of all experiments, sorted."""
    return sorted(file.stem for file in EXPERIMENTS_DIR.glob("*.py"))


def load_experiment(name: str, require_search_space: bool = False) -> Experiment:
    """Load the experiment in `experiments/NAME.py`.

    Args:
        name: Name of the file, without .py.
        require_search_space: Whether the experiment must have a search space.

    Raises:
        UserError: The experiment does not exist, or lacks a search space that is required.
    """
    names = list_experiments()
    if name not in names:
        raise UserError(
            f"experiment must be one of {', '.join(names)}: got '{quoted(name)}'. "
            "To add one, copy the most similar file in experiments/."
        )
    module = importlib.import_module(f"experiments.{name}")
    suggest = getattr(module, "suggest", None)
    if require_search_space and suggest is None:
        raise UserError(
            f"a study requires a function suggest(trial, base): experiments/{name}.py has none. "
            f"Train it without a search: python -m pneumo train --experiment {name}"
        )
    attributes = {
        field: getattr(module, attribute)
        for field, attribute in OPTIONAL_ATTRIBUTES.items()
        if hasattr(module, attribute)
    }
    question = (module.__doc__ or "").partition("\n")[0]
    return Experiment(name, module.BASE, suggest, question=question, **attributes)
