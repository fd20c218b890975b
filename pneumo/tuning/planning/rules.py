"""The rules by which a plan chooses what the experiment `auto` does not search.

This is the only place where they are. Of each topic, the first rule that applies is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pneumo.tuning.planning.budget import format_seconds
from pneumo.tuning.planning.facts import N_FOLDS, Facts

AUTO = "auto"  # the experiment that a plan completes

# Fields that a backbone needs if the user has chosen it
BACKBONE_FIELDS = {
    "mobilenet": {"alpha": "0.25", "weights": "imagenet"},
    "resnet50v2": {"alpha": "1.0", "weights": "imagenet"},
    "cnn": {"alpha": "1.0", "weights": "none", "unfreeze_depth": "2"},
}
MIN_VALIDATION_IMAGES = 100

SEVERAL_HOURS = "experiments/best.py: 160 px and 16 epochs, chosen by hand, are as good on test"
HALF_AN_HOUR = "experiments/best.py: three studies of half an hour"
NOT_MEASURED = "not measured"

Fields = Mapping[str, str]


@dataclass(frozen=True)
class Condition:
    """When a rule applies.

    Attributes:
        text: The condition in words.
        holds: Whether it holds, from the facts and the fields of earlier topics.
        needs: What it would need, in words, if it does not hold for want of time; or None.
    """

    text: str
    holds: Callable[[Facts, Fields], bool]
    needs: Callable[[Facts], str] | None = None


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
        omitted: Better choices of this topic for which there is no time, with what they need.
    """

    topic: str
    choice: str
    condition: str
    reason: str
    source: str
    omitted: list[str]


OTHERWISE = Condition("otherwise", lambda facts, fields: True)
ALWAYS = Condition("always", lambda facts, fields: True)


def _trials_fit(count: int, side: int, epochs: int) -> Condition:
    def holds(facts: Facts, _: Fields) -> bool:
        is_large_enough = side <= max(facts.data.side, 96)
        return is_large_enough and facts.count_trials(side, epochs) >= count

    def needs(facts: Facts) -> str:
        if side > max(facts.data.side, 96):
            return f"images with {side} pixels per side"
        seconds = count * facts.trial_seconds(side, epochs)
        return f"{format_seconds(seconds)} for {count} trials"

    text = f"time for {count} trials, and images with as many pixels"
    return Condition(text, holds, needs)


def _needs_folds(facts: Facts, fields: Fields) -> bool:
    trials = facts.count_trials(int(fields["image_size"]), int(fields["epochs"]), N_FOLDS)
    is_small = facts.data.images["val"] < MIN_VALIDATION_IMAGES
    return facts.data.can_fold and trials >= (1 if is_small else 30)


RULES = (
    Rule(
        "backbone",
        "MobileNet 0.25 with ImageNet's weights",
        {"backbone": "mobilenet", **BACKBONE_FIELDS["mobilenet"]},
        Condition("its weights are available", lambda facts, fields: not facts.weights_error),
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
        "size and schedule",
        "160 px, 16 epochs",
        {"image_size": "160", "epochs": "16", "patience": "16"},
        _trials_fit(60, 160, 16),
        "More pixels and more epochs raise the AUC a little once the search has time.",
        SEVERAL_HOURS,
    ),
    Rule(
        "size and schedule",
        "128 px, 8 epochs",
        {"image_size": "128", "epochs": "8", "patience": "8"},
        _trials_fit(4, 128, 8),
        "The baseline is good at this size, and further trials improve it.",
        HALF_AN_HOUR,
    ),
    Rule(
        "size and schedule",
        "96 px, 8 epochs",
        {"image_size": "96", "epochs": "8", "patience": "8"},
        _trials_fit(4, 96, 8),
        "Smaller images leave time for some trials.",
        NOT_MEASURED,
    ),
    Rule(
        "size and schedule",
        "96 px, 4 epochs",
        {"image_size": "96", "epochs": "4", "patience": "4"},
        _trials_fit(2, 96, 4),
        "Fewer epochs leave time for a second trial.",
        NOT_MEASURED,
    ),
    Rule(
        "size and schedule",
        "96 px, 4 epochs, only the head trains",
        {
            **{"image_size": "96", "epochs": "4", "patience": "4"},
            **{"unfreeze_depth": "0", "feature_cache": "on", "augment_strength": "0.0"},
            **{"max_crop_fraction": "0.0", "sharpness_jitter": "0.0"},
            **{"horizontal_flip": "off", "flip_tta": "off"},
        },
        Condition(
            "a pretrained network that cannot train twice",
            lambda facts, fields: fields["weights"] != "none",
        ),
        "The backbone sees each image once, for all trials.",
        "tests.benchmarks.study",
    ),
    Rule(
        "size and schedule",
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
            f"fewer than {MIN_VALIDATION_IMAGES} validation images, or time for 30 such trials",
            _needs_folds,
            lambda facts: "time for 30 trials of five networks each",
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
        "crops, flips, sharpness",
        "none",
        {},
        Condition("only the head trains", lambda facts, fields: fields["unfreeze_depth"] == "0"),
        "Each variation would be another pass of all images.",
        NOT_MEASURED,
    ),
    Rule(
        "crops, flips, sharpness",
        "searched",
        {},
        OTHERWISE,
        "Which of them help depends on the images.",
        HALF_AN_HOUR,
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


def complete(fields: Fields) -> dict[str, str]:
    """Return the fields that a user has fixed, with those that the user's backbone needs."""
    return BACKBONE_FIELDS.get(fields.get("backbone", ""), {}) | dict(fields)


def apply_rules(facts: Facts, given: Fields, base: Fields) -> tuple[dict[str, str], list[Choice]]:
    """Choose what the user has not fixed.

    A topic is left to the user who has fixed one of the fields of its first rule.

    Args:
        facts: What the rules know.
        given: Fields that the user has fixed, as text.
        base: All fields of the experiment's base config, as text.

    Returns:
        All fixed fields, and a choice for each topic.
    """
    fields, choices = complete(given), []
    for topic in dict.fromkeys(rule.topic for rule in RULES):
        rules = [rule for rule in RULES if rule.topic == topic]
        if fixed := {name: fields[name] for name in rules[0].fields if name in fields}:
            values = ", ".join(f"{name} {value}" for name, value in fixed.items())
            choices.append(Choice(topic, values, "given", "", "", []))
            continue
        rule, omitted = _first_that_applies(rules, facts, {**base, **fields})
        fields = {**rule.fields, **fields}
        choices.append(
            Choice(topic, rule.choice, rule.condition.text, rule.reason, rule.source, omitted)
        )
    return fields, choices


def _first_that_applies(rules: list[Rule], facts: Facts, fields: Fields) -> tuple[Rule, list[str]]:
    """Return the first rule that applies, and what the rules before it would need."""
    omitted: list[str] = []
    for rule in rules[:-1]:
        if rule.condition.holds(facts, fields):
            return rule, omitted
        if rule.condition.needs:
            omitted.append(f"{rule.choice}: {rule.condition.needs(facts)}")
    return rules[-1], omitted  # the last rule of a topic has no condition
