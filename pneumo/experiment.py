"""The files of `experiments/`: one question each."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pneumo.runtime.errors import UserError, quoted
from pneumo.training.config import RunConfig

EXPERIMENTS_DIR = Path(__file__).parent.parent / "experiments"

# What a file may hold, by the field of `Experiment` that it gives
OPTIONAL_ATTRIBUTES = {
    "resources": "RESOURCES",
    "queue": "QUEUE",
    "prune": "PRUNE",
}


@dataclass(frozen=True)
class Experiment:
    """An experiment's base config, and its search space if it has one.

    `suggest(trial, base)` gives the config of an Optuna trial. `resources`: what one of its trials
    takes of a Ray cluster, as `num_cpus` and `num_gpus`. `queue`: what a study tries first, after
    the baseline, as suggestions' names and values, one trial each; the same ones again are tried
    with another seed. `prune`: whether bad trials end early; a question about all of them needs
    them whole. `question`: what it asks, the first line of its note.
    """

    name: str
    base: RunConfig
    suggest: Callable[[Any, RunConfig], RunConfig] | None
    resources: Mapping[str, float] = field(default_factory=lambda: {"num_cpus": 1})
    queue: Sequence[Mapping[str, Any]] = ()
    prune: bool = True
    question: str = ""


def list_experiments() -> list[str]:
    """The experiments that there are, sorted."""
    return sorted(file.stem for file in EXPERIMENTS_DIR.glob("*.py"))


def load_experiment(name: str, searched: bool = False) -> Experiment:
    """The experiment in `experiments/NAME.py`.

    Raises `UserError` where there is none, or none with a search space where one is needed.
    """
    names = list_experiments()
    if name not in names:
        raise UserError(
            f"experiment must be one of {', '.join(names)}: got '{quoted(name)}'; "
            "to add one, copy the nearest file of experiments/"
        )
    module = importlib.import_module(f"experiments.{name}")
    suggest = getattr(module, "suggest", None)
    if searched and suggest is None:
        raise UserError(
            f"a study needs suggest(trial, base) in experiments/{name}.py, and there is none; "
            f"train it instead: python -m pneumo train --experiment {name}"
        )
    given = {
        field: getattr(module, it)
        for field, it in OPTIONAL_ATTRIBUTES.items()
        if hasattr(module, it)
    }
    question = (module.__doc__ or "").partition("\n")[0]
    return Experiment(name, module.BASE, suggest, question=question, **given)
