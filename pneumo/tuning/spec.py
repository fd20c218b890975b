"""Specification of a study: search space, fixed fields, baseline, sampler and pruner.

Nothing here needs TensorFlow, so a process whose workers search need not import it.
"""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from pneumo.data.dataset import Dataset
from pneumo.experiment import Experiment, load_experiment
from pneumo.runtime.errors import UserError
from pneumo.training.config import RunConfig, derive_seed, rename_fields

DISTRIBUTIONS = {
    "suggest_float": FloatDistribution,
    "suggest_int": IntDistribution,
    "suggest_categorical": CategoricalDistribution,
}

# Some are Optuna's defaults. They are set here because defaults have changed between versions
TPE_OPTIONS = {"n_startup_trials": 8, "multivariate": True, "group": False, "constant_liar": True}
MEDIAN_PRUNER_OPTIONS = {"n_startup_trials": 4, "n_warmup_steps": 2, "interval_steps": 1}

# Fields that a study stores besides the fixed ones
STUDY_FIELDS = ("epochs", "seed", "objective")


class PerTrialSeededTPESampler(BaseSampler):
    """TPE sampler whose random numbers depend only on the study's seed and the trial's number.

    A sampler with one seed would start again in every process. A resumed study would then repeat
    its first trials, and several workers would suggest the same ones.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = self._fresh(0)

    def _fresh(self, number: int) -> TPESampler:
        return TPESampler(seed=derive_seed(self._seed, number), **TPE_OPTIONS)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Implement `optuna.samplers.BaseSampler.before_trial`."""
        self._tpe = self._fresh(trial.number)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        """Implement `optuna.samplers.BaseSampler.infer_relative_search_space`."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, *args: Any) -> dict[str, Any]:
        """Implement `optuna.samplers.BaseSampler.sample_relative`."""
        return self._tpe.sample_relative(*args)

    def sample_independent(self, *args: Any) -> Any:
        """Implement `optuna.samplers.BaseSampler.sample_independent`."""
        return self._tpe.sample_independent(*args)

    def after_trial(self, *args: Any) -> None:
        """Implement `optuna.samplers.BaseSampler.after_trial`."""
        self._tpe.after_trial(*args)


class PartiallyFixedTrial:
    """A trial in which some fields are fixed: they keep the base's values and leave the search.

    Without a `trial` nothing is searched. Each suggestion is then the base's own value, or the
    value of that name in `chosen`.

    Attributes:
        baseline: Suggestion's name → value, if there is no trial.
        distributions: Suggestion's name → distribution, if there is no trial.
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
        """Implement `optuna.Trial.suggest_float`."""
        return self._suggest("suggest_float", name, space, options)

    def suggest_int(self, name: str, *space: Any, **options: Any) -> int:
        """Implement `optuna.Trial.suggest_int`."""
        return self._suggest("suggest_int", name, space, options)

    def suggest_categorical(self, name: str, *space: Any, **options: Any) -> Any:
        """Implement `optuna.Trial.suggest_categorical`."""
        return self._suggest("suggest_categorical", name, space, options)

    def _suggest(self, method: str, name: str, space: tuple, options: dict) -> Any:
        field, value = field_and_base_value(self._base, name)
        if field in self._fixed:
            return value
        if self._trial is not None:
            return getattr(self._trial, method)(name, *space, **options)
        with warnings.catch_warnings():
            # Optuna warns of a range that its step does not divide when a trial suggests it
            warnings.simplefilter("ignore", UserWarning)
            self.distributions[name] = DISTRIBUTIONS[method](*space, **options)
        self.baseline[name] = self._chosen.get(name, value)
        return self.baseline[name]


def validate_search_space(
    experiment: Experiment, base: RunConfig, fixed: Mapping[str, str]
) -> None:
    """Require that every value of a search space gives a valid `RunConfig`.

    The function tests the ends of each range and each choice, with the base's values for all other
    suggestions.

    Args:
        experiment: The experiment.
        base: The experiment's base config with the fixed fields, which the space may contradict.
        fixed: Fields that are not searched, with their values as text.

    Raises:
        UserError: A value of the search space is invalid.
    """
    recorder = PartiallyFixedTrial(base, fixed)
    experiment.suggest(recorder, base)
    for name, distribution in recorder.distributions.items():
        ends = (
            distribution.choices
            if isinstance(distribution, CategoricalDistribution)
            else (distribution.low, distribution.high)
        )
        for value in ends:
            try:
                experiment.suggest(PartiallyFixedTrial(base, fixed, chosen={name: value}), base)
            except UserError as error:
                raise UserError(
                    f"the search space of experiments/{experiment.name}.py contains {name} "
                    f"{value}, which is invalid: {error}. Set "
                    f"--{field_and_base_value(base, name)[0]} too, or change the range."
                ) from None


def field_and_base_value(base: RunConfig, name: str) -> tuple[str, Any]:
    """Return the field of `RunConfig` that a suggestion is named after, and its value in the base.

    A suggestion may have a field's own name. `dense_widths_2` stands for the second width, which is
    0 if the base has none.

    Args:
        base: The base config.
        name: Name of the suggestion.

    Raises:
        KeyError: The name stands for no field.
    """
    if name in RunConfig.model_fields:
        return name, getattr(base, name)
    field, _, position = name.rpartition("_")
    if field not in RunConfig.model_fields or not position.isdigit():
        raise KeyError(f"a suggestion must be named after a field of RunConfig: got '{name}'")
    widths = getattr(base, field)
    return field, widths[int(position) - 1] if int(position) <= len(widths) else 0


@dataclass(frozen=True)
class StudySpec:
    """A study's search: an experiment, its data, and the fields that a person has fixed.

    Attributes:
        experiment: The experiment.
        dataset: The data.
        fixed: Fields of `RunConfig` that leave the search, with their values as text.
    """

    experiment: Experiment
    dataset: Dataset
    fixed: Mapping[str, str]

    @property
    def base(self) -> RunConfig:
        """Return the baseline's config, whose `seed` is the study's.

        Raises:
            UserError: A fixed value is invalid.
        """
        return self.experiment.base.override(self.fixed)

    @classmethod
    def from_study(cls, study: optuna.Study, dataset: Dataset, weights: str = "") -> "StudySpec":
        """Read the search with which a study was created.

        Args:
            study: The study.
            dataset: Its data.
            weights: Path of its file of weights on this machine, or '' if it has none.

        Raises:
            UserError: The study has a file of weights and `weights` is '', or its experiment cannot
                be loaded.
        """
        stored = study.user_attrs
        fixed = rename_fields(stored["fixed"])
        fixed |= {name: str(stored[name]) for name in STUDY_FIELDS}
        if weights:
            fixed["weights"] = weights
        elif ":" in fixed.get("weights", ""):
            raise UserError(
                f"study '{study.study_name}' starts from the weights {fixed['weights']} (name and "
                "sha256). Pass the path of that file on this machine as --weights."
            )
        return cls(load_experiment(stored["experiment"], require_search_space=True), dataset, fixed)

    def identity(self) -> dict[str, Any]:
        """Return the values that distinguish a study from all others."""
        base = self.base
        study_fields = {name: getattr(base, name) for name in STUDY_FIELDS}
        params = base.to_params()  # has a digest of the file of weights, not its path
        return {
            "experiment": self.experiment.name,
            "fixed": {field: params[field] for field in self.fixed if field not in study_fields},
            **study_fields,
            "data_digest": self.dataset.digest,
            "base": params,
        }

    def search_space(self) -> dict[str, BaseDistribution]:
        """Return the distribution of each suggestion, by its name."""
        recorder = PartiallyFixedTrial(self.base, self.fixed)
        self.experiment.suggest(recorder, self.base)
        return recorder.distributions

    def sampler(self) -> PerTrialSeededTPESampler:
        """Return the sampler that suggests a trial's values."""
        return PerTrialSeededTPESampler(self.base.seed)

    def pruner(self) -> BasePruner:
        """Return the pruner that ends bad trials early."""
        return MedianPruner(**MEDIAN_PRUNER_OPTIONS) if self.experiment.prune else NopPruner()

    def suggest(self, trial: optuna.Trial) -> RunConfig:
        """Return a trial's config, with its own seed and the fixed fields unchanged."""
        config = self.experiment.suggest(
            PartiallyFixedTrial(self.base, self.fixed, trial), self.base
        )
        unchanged = {field: getattr(self.base, field) for field in self.fixed}
        unchanged["seed"] = derive_seed(self.base.seed, trial.number)
        return config.model_copy(update=unchanged)

    def baseline(self) -> dict[str, Any]:
        """Return the suggestions that give the base config.

        Raises:
            UserError: No suggestions give the base config.
        """
        recorder = PartiallyFixedTrial(self.base, self.fixed)
        config = self.experiment.suggest(recorder, self.base)
        different = [
            field
            for field in RunConfig.model_fields
            if field not in self.fixed and getattr(config, field) != getattr(self.base, field)
        ]
        if different:
            raise UserError(
                f"suggest in experiments/{self.experiment.name}.py must be able to return BASE: "
                f"it cannot return its {', '.join(different)}. Change suggest or BASE."
            )
        return recorder.baseline

    def searched_fields(self) -> list[str]:
        """Return the fields of a run that are searched, in the order of their suggestions."""
        return list(
            dict.fromkeys(field_and_base_value(self.base, name)[0] for name in self.baseline())
        )

    def initial_params(self) -> list[dict[str, Any]]:
        """Return the suggestions of a study's first trials: the baseline, and the enqueued trials.

        An enqueued trial has the baseline's value for each name that it omits. Fixed fields are
        left out.

        Raises:
            UserError: No suggestions give the base config, or an enqueued trial has a name that is
                not suggested.
        """
        baseline, queue = self.baseline(), self.experiment.enqueued_trials
        recorder = PartiallyFixedTrial(self.base, ())
        self.experiment.suggest(recorder, self.base)
        for name in {name for values in queue for name in values} - recorder.baseline.keys():
            raise UserError(
                f"ENQUEUED_TRIALS in experiments/{self.experiment.name}.py may contain only the "
                f"names that suggest uses, {', '.join(recorder.baseline)}: got '{name}'"
            )
        return [
            baseline,
            *(
                {name: distribution.get(name, baseline[name]) for name in baseline}
                for distribution in queue
            ),
        ]
