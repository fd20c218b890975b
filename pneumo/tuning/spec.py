"""What a study searches: the space, the fixed fields, the baseline, the sampler."""

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

# Set here though some are Optuna's defaults, which have changed between its versions
TPE_OPTIONS = {"n_startup_trials": 8, "multivariate": True, "group": False, "constant_liar": True}


class PerTrialSeededTPESampler(BaseSampler):
    """TPE whose random numbers follow from the study's seed and the trial's number alone.

    A seeded sampler would start again with every process: a resumed study would repeat its
    first trials, and several workers would propose the same ones.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._tpe = self._fresh(0)

    def _fresh(self, number: int) -> TPESampler:
        return TPESampler(seed=derive_seed(self._seed, number), **TPE_OPTIONS)

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


class PartiallyFixedTrial:
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
        field, value = field_and_base_value(self._base, name)
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


def validate_search_space(
    experiment: Experiment, base: RunConfig, fixed: Mapping[str, str]
) -> None:
    """Raises `UserError` where a value of the search space is none that a run can have.

    `base`: the experiment's own with what is `fixed`, which the space may contradict. Tried are
    the ends of each range, and each choice, with the base's values for all others.
    """
    whole = PartiallyFixedTrial(base, fixed)
    experiment.suggest(whole, base)
    for name, it in whole.distributions.items():
        ends = it.choices if isinstance(it, CategoricalDistribution) else (it.low, it.high)
        for value in ends:
            try:
                experiment.suggest(PartiallyFixedTrial(base, fixed, chosen={name: value}), base)
            except UserError as mistake:
                raise UserError(
                    f"experiments/{experiment.name}.py searches {name} as far as {value}, which "
                    f"cannot be: {mistake}; give --{field_and_base_value(base, name)[0]} too, or "
                    "change the range"
                ) from None


def field_and_base_value(base: RunConfig, name: str) -> tuple[str, Any]:
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


# Nothing here needs TensorFlow: a process that lets others search does without.

# Set here though some are Optuna's defaults, which have changed between its versions
MEDIAN_PRUNER_OPTIONS = {"n_startup_trials": 4, "n_warmup_steps": 2, "interval_steps": 1}

STUDY_FIELDS = (
    "epochs",
    "seed",
    "objective",
)  # fields that a study keeps beside those fixed by hand


@dataclass(frozen=True)
class StudySpec:
    """What a study searches: an experiment, on which data, with which fields fixed by hand.

    `fixed` maps fields of `RunConfig` to their values as text; they leave the search.
    """

    experiment: Experiment
    dataset: Dataset
    fixed: Mapping[str, str]

    @property
    def base(self) -> RunConfig:
        """The baseline; its `seed` is the study's. Raises `UserError` for a wrong fixed value."""
        return self.experiment.base.override(self.fixed)

    @classmethod
    def of(cls, study: optuna.Study, dataset: Dataset, weights: str = "") -> "StudySpec":
        """What a study was begun with. `weights`: where its file of weights lies here, if any."""
        facts = study.user_attrs
        fixed = rename_fields(facts["fixed"])
        fixed |= {name: str(facts[name]) for name in STUDY_FIELDS}
        if weights:
            fixed["weights"] = weights
        elif ":" in fixed.get("weights", ""):
            raise UserError(
                f"study '{study.study_name}' begins from the weights {fixed['weights']} (name and "
                "sha256): give --weights, the path of that file here"
            )
        return cls(load_experiment(facts["experiment"], searched=True), dataset, fixed)

    def facts(self) -> dict[str, Any]:
        """What makes a study this one and no other."""
        base = self.base
        own = {name: getattr(base, name) for name in STUDY_FIELDS}
        text = base.as_text()  # names a file of weights by its content, wherever it lies
        return {
            "experiment": self.experiment.name,
            "fixed": {field: text[field] for field in self.fixed if field not in own},
            **own,
            "data_digest": self.dataset.digest,
            "base": text,
        }

    def search_space(self) -> dict[str, BaseDistribution]:
        """Return the distribution of each suggestion, by its name."""
        search = PartiallyFixedTrial(self.base, self.fixed)
        self.experiment.suggest(search, self.base)
        return search.distributions

    def sampler(self) -> PerTrialSeededTPESampler:
        """What suggests a trial's values."""
        return PerTrialSeededTPESampler(self.base.seed)

    def pruner(self) -> BasePruner:
        """What ends bad trials early."""
        return MedianPruner(**MEDIAN_PRUNER_OPTIONS) if self.experiment.prune else NopPruner()

    def suggest(self, trial: optuna.Trial) -> RunConfig:
        """The config of a trial, with a seed of its own and the fixed fields as they are."""
        config = self.experiment.suggest(
            PartiallyFixedTrial(self.base, self.fixed, trial), self.base
        )
        kept = {field: getattr(self.base, field) for field in self.fixed}
        kept["seed"] = derive_seed(self.base.seed, trial.number)
        return config.model_copy(update=kept)

    def baseline(self) -> dict[str, Any]:
        """The suggestions that give the base. Raises `UserError` where none do."""
        search = PartiallyFixedTrial(self.base, self.fixed)
        config = self.experiment.suggest(search, self.base)
        different = [
            field
            for field in RunConfig.model_fields
            if field not in self.fixed and getattr(config, field) != getattr(self.base, field)
        ]
        if different:
            raise UserError(
                f"suggest in experiments/{self.experiment.name}.py must be able to give BASE, "
                f"and cannot in {', '.join(different)}; change one of the two"
            )
        return search.baseline

    def searched(self) -> list[str]:
        """The fields of a run that are searched, in the order in which they are suggested."""
        return list(
            dict.fromkeys(field_and_base_value(self.base, name)[0] for name in self.baseline())
        )

    def asked(self) -> list[dict[str, Any]]:
        """The suggestions that a study begins with: the baseline, and what its experiment queues.

        What is queued without a value has the baseline's; a fixed field leaves that, too. Raises
        `UserError` as `baseline`, and for a name that is not suggested.
        """
        baseline, queue = self.baseline(), self.experiment.enqueued_trials
        whole = PartiallyFixedTrial(self.base, ())
        self.experiment.suggest(whole, self.base)
        for name in {name for values in queue for name in values} - whole.baseline.keys():
            raise UserError(
                f"ENQUEUED_TRIALS in experiments/{self.experiment.name}.py must hold what its "
                f"suggest suggests, {', '.join(whole.baseline)}: got '{name}'"
            )
        return [
            baseline,
            *({name: it.get(name, baseline[name]) for name in baseline} for it in queue),
        ]
