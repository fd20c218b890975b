"""The rules by which a plan chooses what the experiment `auto` does not search.

This is the only place where they are. Of each topic, the first rule that applies is used. The
module imports nothing slow, because the arguments of a command are checked with it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pneumo.tuning.planning.budget import format_seconds
from pneumo.tuning.planning.fingerprint import N_FOLDS, Fingerprint

AUTO = "auto"  # the experiment that a plan completes

# Fields that a backbone needs
BACKBONE_FIELDS = {
    "mobilenet": {"alpha": "0.25", "weights": "imagenet"},
    "resnet50v2": {"alpha": "1.0", "weights": "imagenet"},
    "cnn": {"alpha": "1.0", "weights": "none", "unfreeze_depth": "2"},
}
MIN_VALIDATION_IMAGES = 100
MIN_SIDE = 96  # pixels, to which smaller images are enlarged
N_TRIALS_FOR_FOLDS = 30

NOT_MEASURED = "not measured"

Fields = Mapping[str, str]  # all fields of a run as text: those of a rule and of earlier topics


@dataclass(frozen=True)
class Condition:
    """When a rule applies.

    Attributes:
        text: The condition in words.
        holds: Whether it holds.
        budget: The budget in seconds that it would need, or None if more time would not help.
    """

    text: str
    holds: Callable[[Fingerprint, Fields], bool]
    budget: Callable[[Fingerprint, Fields], float | None] = lambda fingerprint, fields: None


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        topic: What is chosen.
        choice: The choice in words.
        fields: Fields of `RunConfig` that it fixes, with their values as text.
        condition: When it applies.
        reason: Why.
        source: Where that was measured.
    """

    topic: str
    choice: str
    fields: Fields
    condition: Condition
    reason: str
    source: str


@dataclass(frozen=True)
class Choice:
    """A choice of a plan, as its page shows it.

    Attributes:
        topic: See `Rule`.
        choice: See `Rule`.
        condition: The condition in words.
        reason: See `Rule`.
        source: See `Rule`.
        omitted: Earlier rules of the topic for which there is no time, with the budget they need.
    """

    topic: str
    choice: str
    condition: str
    reason: str
    source: str
    omitted: list[str]


OTHERWISE = Condition("otherwise", lambda fingerprint, fields: True)
ALWAYS = Condition("always", lambda fingerprint, fields: True)


def _time_for(count: int) -> Condition:
    """Return the condition that images are large enough, and that `count` trials fit the time."""

    def is_large_enough(fingerprint: Fingerprint, fields: Fields) -> bool:
        return int(fields["image_size"]) <= max(fingerprint.dataset.side, MIN_SIDE)

    def holds(fingerprint: Fingerprint, fields: Fields) -> bool:
        is_in_time = fingerprint.count_trials(fields) >= count
        return is_large_enough(fingerprint, fields) and is_in_time

    def budget(fingerprint: Fingerprint, fields: Fields) -> float | None:
        if not is_large_enough(fingerprint, fields):
            return None
        return fingerprint.budget_for(count, fields)

    return Condition(f"time for {count} trials, and images of that size", holds, budget)


def _needs_folds(fingerprint: Fingerprint, fields: Fields) -> bool:
    is_small = fingerprint.dataset.images["val"] < MIN_VALIDATION_IMAGES
    needed = 1 if is_small else N_TRIALS_FOR_FOLDS
    return fingerprint.dataset.can_fold and fingerprint.count_trials(fields) >= needed


def _budget_for_folds(fingerprint: Fingerprint, fields: Fields) -> float | None:
    can_fold = fingerprint.dataset.can_fold
    return fingerprint.budget_for(N_TRIALS_FOR_FOLDS, fields) if can_fold else None


def _trains_head_only(fingerprint: Fingerprint, fields: Fields) -> bool:
    return fields["unfreeze_depth"] == "0" and fields["feature_cache"] == "on"


RULES = (
    Rule(
        "backbone",
        "MobileNet 0.25 with ImageNet's weights",
        {"backbone": "mobilenet", **BACKBONE_FIELDS["mobilenet"]},
        Condition(
            "its weights are available", lambda fingerprint, fields: not fingerprint.weights_error
        ),
        "A pretrained network is better on test than a CNN from scratch, and this one is small.",
        "experiments/best.py and tune_cnn.py",
    ),
    Rule(
        "backbone",
        "a small CNN from scratch",
        {"backbone": "cnn", **BACKBONE_FIELDS["cnn"]},
        OTHERWISE,
        "It needs no weights.",
        "experiments/tune_cnn.py",
    ),
    Rule(
        "size and epochs",
        "160 px, 16 epochs",
        {"image_size": "160", "epochs": "16", "patience": "16"},
        _time_for(60),
        "A long search has time for more pixels and more epochs.",
        NOT_MEASURED,
    ),
    Rule(
        "size and epochs",
        "128 px, 8 epochs",
        {"image_size": "128", "epochs": "8", "patience": "8"},
        _time_for(4),
        "The baseline is good at this size, and further trials improve it.",
        "experiments/best.py",
    ),
    Rule(
        "size and epochs",
        "96 px, 8 epochs",
        {"image_size": "96", "epochs": "8", "patience": "8"},
        _time_for(4),
        "Smaller images leave time for some trials.",
        NOT_MEASURED,
    ),
    Rule(
        "size and epochs",
        "96 px, 4 epochs",
        {"image_size": "96", "epochs": "4", "patience": "4"},
        _time_for(2),
        "Fewer epochs leave time for a second trial.",
        NOT_MEASURED,
    ),
    Rule(
        "size and epochs",
        "96 px, 4 epochs, only the head trains",
        {
            **{"image_size": "96", "epochs": "4", "patience": "4"},
            **{"unfreeze_depth": "0", "feature_cache": "on"},
        },
        Condition(
            "the network is pretrained",
            lambda fingerprint, fields: (
                fields["weights"] != "none" and _trains_head_only(fingerprint, fields)
            ),
        ),
        "The backbone sees each image once, for all trials.",
        "tests.benchmarks.study",
    ),
    Rule(
        "size and epochs",
        "64 px, 2 epochs",
        {"image_size": "64", "epochs": "2", "patience": "2"},
        OTHERWISE,
        "Nothing larger can train twice.",
        NOT_MEASURED,
    ),
    Rule(
        "folds",
        f"{N_FOLDS} folds",
        {"folds": f"{N_FOLDS}"},
        Condition(
            f"fewer than {MIN_VALIDATION_IMAGES} validation images, or time for "
            f"{N_TRIALS_FOR_FOLDS} such trials",
            _needs_folds,
            _budget_for_folds,
        ),
        "All images validate, so the choice among trials depends less on chance.",
        "experiments/tune_mobilenet.py",
    ),
    Rule(
        "folds",
        "one validation split",
        {"folds": "1"},
        OTHERWISE,
        "Five networks for each trial would leave too few trials.",
        "experiments/tune_mobilenet.py",
    ),
    Rule(
        "objective",
        "AUC that changes of aspect ratio and sharpness do not lower",
        {"objective": "val_robust_auc"},
        ALWAYS,
        "It ranks trials as test does; the plain AUC on validation does not.",
        "experiments/criterion.py and robust.py",
    ),
    Rule(
        "augmentation",
        "none",
        {
            **{"augment_strength": "0.0", "max_crop_fraction": "0.0", "sharpness_jitter": "0.0"},
            **{"horizontal_flip": "off", "flip_tta": "off"},
        },
        Condition("only the head trains, on cached features", _trains_head_only),
        "Each variation would be another pass of all images.",
        NOT_MEASURED,
    ),
    Rule(
        "augmentation",
        "searched: strength, crops, flips, sharpness",
        {},
        OTHERWISE,
        "Which of them help depends on the images.",
        "experiments/best.py",
    ),
    Rule(
        "batch size",
        "32 images",
        {"batch_size": "32"},
        ALWAYS,
        "All experiments were measured with it.",
        "experiments/README.md",
    ),
)


def add_backbone_fields(fields: Fields) -> dict[str, str]:
    """Return the fields that a user has fixed, with those that the user's backbone needs."""
    return BACKBONE_FIELDS.get(fields.get("backbone", ""), {}) | dict(fields)


def apply_rules(
    fingerprint: Fingerprint, fixed: Fields, base: Fields
) -> tuple[dict[str, str], list[Choice]]:
    """Choose what the user has not fixed.

    Args:
        fingerprint: What the rules know.
        fixed: Fields that the user has fixed, as text.
        base: All fields of the experiment's base config with them, as `RunConfig.to_params` returns
            them.

    Returns:
        All fields that are fixed then, and a choice for each topic.
    """
    fields, choices = add_backbone_fields(fixed), []
    if "image_size" in fixed:  # a user may enlarge images
        dataset = replace(fingerprint.dataset, side=math.inf)
        fingerprint = replace(fingerprint, dataset=dataset)
    for topic in dict.fromkeys(rule.topic for rule in RULES):
        rules = [rule for rule in RULES if rule.topic == topic]
        rule, omitted = _first_that_applies(rules, fingerprint, {**base, **fields}, fields)
        given = [name for name in rule.fields if name in fields]
        fields = {**rule.fields, **fields}
        values = {**rule.fields, **{name: base[name] for name in given}}
        text = ", ".join(f"{name} {value}" for name, value in values.items())
        if given and len(given) == len(rule.fields):
            choices.append(Choice(topic, text, "given", "", "", []))
            continue
        choice = f"{text} (given: {', '.join(given)})" if given else rule.choice
        choices.append(
            Choice(topic, choice, rule.condition.text, rule.reason, rule.source, omitted)
        )
    return fields, choices


def _first_that_applies(
    rules: list[Rule], fingerprint: Fingerprint, all_fields: Fields, fixed: Fields
) -> tuple[Rule, list[str]]:
    """Return the first rule that applies, and what the rules before it would need."""
    omitted: list[str] = []
    for rule in rules[:-1]:  # the last rule of a topic has no condition
        fields = {**all_fields, **rule.fields, **fixed}
        if rule.condition.holds(fingerprint, fields):
            return rule, omitted
        budget = rule.condition.budget(fingerprint, fields)
        if budget:
            omitted.append(f"{rule.choice}: a budget of about {format_seconds(budget)}")
    return rules[-1], omitted
