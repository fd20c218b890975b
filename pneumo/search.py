"""What a study suggests: the sampler, and a trial that some fields are kept out of."""

import warnings
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from pneumo.experiment import Experiment
from pneumo.runtime.errors import Mistake
from pneumo.training.config import RunConfig, derived_seed

DISTRIBUTIONS = {
    "suggest_float": FloatDistribution,
    "suggest_int": IntDistribution,
    "suggest_categorical": CategoricalDistribution,
}

# Set here though some are Optuna's defaults, which have changed between its versions
SAMPLER = {"n_startup_trials": 8, "multivariate": True, "group": False, "constant_liar": True}


class ReseededTPE(BaseSampler):
    """TPE whose random numbers follow from the study's seed and the trial's number alone.

    A seeded sampler would start again with every process: a resumed study would repeat its
    first trials, and several workers would propose the same ones.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = self._fresh(0)

    def _fresh(self, number: int) -> TPESampler:
        return TPESampler(seed=derived_seed(self._seed, number), **SAMPLER)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As `optuna.samplers.BaseSampler.before_trial`."""
        self._tpe = self._fresh(trial.number)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        """As `optuna.samplers.BaseSampler.infer_relative_search_space`."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, *args: Any) -> dict[str, Any]:
        """As `optuna.samplers.BaseSampler.sample_relative`."""
        return self._tpe.sample_relative(*args)

    def sample_independent(self, *args: Any) -> Any:
        """As `optuna.samplers.BaseSampler.sample_independent`."""
        return self._tpe.sample_independent(*args)

    def after_trial(self, *args: Any) -> None:
        """As `optuna.samplers.BaseSampler.after_trial`."""
        self._tpe.after_trial(*args)


class Search:
    """A trial in which some fields are fixed: they keep the base's values and leave the search.

    Without a `trial` nothing is searched: each suggestion is the base's own value, or the one that
    is `chosen` for it by its name.

    Attributes:
        baseline: What a search without a trial has suggested, by name.
        distributions: The distribution of each of these.
    """

    def __init__(
        self,
        base: RunConfig,
        fixed: Collection[str],
        trial: optuna.Trial | None = None,
        chosen: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._base, self._fixed, self._trial, self._chosen = base, fixed, trial, chosen
        self.baseline: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_float(self, name: str, *space: Any, **options: Any) -> float:
        """As `optuna.Trial.suggest_float`."""
        return self._suggest("suggest_float", name, space, options)

    def suggest_int(self, name: str, *space: Any, **options: Any) -> int:
        """As `optuna.Trial.suggest_int`."""
        return self._suggest("suggest_int", name, space, options)

    def suggest_categorical(self, name: str, *space: Any, **options: Any) -> Any:
        """As `optuna.Trial.suggest_categorical`."""
        return self._suggest("suggest_categorical", name, space, options)

    def _suggest(self, method: str, name: str, space: tuple, options: dict) -> Any:
        field, value = base_value(self._base, name)
        if field in self._fixed:
            return value
        if self._trial is not None:
            return getattr(self._trial, method)(name, *space, **options)
        with warnings.catch_warnings():
            # Of a range that its step does not divide Optuna warns when a trial suggests it
            warnings.simplefilter("ignore", UserWarning)
            self.distributions[name] = DISTRIBUTIONS[method](*space, **options)
        self.baseline[name] = self._chosen.get(name, value)
        return self.baseline[name]


def require_fits(experiment: Experiment, base: RunConfig, fixed: Mapping[str, str]) -> None:
    """Raises `Mistake` where a value of the search space is none that a run can have.

    `base`: the experiment's own with what is `fixed`, which the space may contradict. Tried are
    the ends of each range, and each choice, with the base's values for all others.
    """
    whole = Search(base, fixed)
    experiment.suggest(whole, base)
    for name, it in whole.distributions.items():
        ends = it.choices if isinstance(it, CategoricalDistribution) else (it.low, it.high)
        for value in ends:
            try:
                experiment.suggest(Search(base, fixed, chosen={name: value}), base)
            except Mistake as mistake:
                raise Mistake(
                    f"experiments/{experiment.name}.py searches {name} as far as {value}, which "
                    f"cannot be: {mistake}; give --{base_value(base, name)[0]} too, or change "
                    "the range"
                ) from None


def base_value(base: RunConfig, name: str) -> tuple[str, Any]:
    """The field that a suggestion's name stands for, and the base's value of it.

    A field's own name stands for it; `dense_widths_2` stands for its second width, 0 where
    there is none. Raises `KeyError` for a name that stands for no field.
    """
    if name in RunConfig.model_fields:
        return name, getattr(base, name)
    field, _, position = name.rpartition("_")
    if field not in RunConfig.model_fields or not position.isdigit():
        raise KeyError(f"a suggestion must be named after a field of RunConfig: got '{name}'")
    widths = getattr(base, field)
    return field, widths[int(position) - 1] if int(position) <= len(widths) else 0
