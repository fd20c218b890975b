"""What a plan depends on: the images, the speed of the machine, and the time."""

from collections.abc import Mapping
from dataclasses import dataclass

N_FOLDS = 5  # that a plan may choose
# A trial besides its training: evaluation, storing, bookkeeping (the page of a study has them)
TRIAL_SECONDS = 1.0
# Epochs of full training that take as long as a trial of the head alone, with the features of all
# images (47,000 images at 96 px: 61 s)
HEAD_ONLY_EPOCHS = 0.5


@dataclass(frozen=True)
class DatasetFingerprint:
    """Properties of a data set, without its test labels.

    Attributes:
        images: Split → number of images.
        patients: Number of patients outside test.
        prevalence: Fraction of pneumonia outside test, 0 to 1.
        duplicates: Number of images outside test whose file is identical to another one.
        side: Median of the shorter side in pixels.
        aspect_ratio: Median of width / height.
        metadata_auc: AUC with which size, aspect ratio and bytes of a file predict its label, or
            None if there are too few patients.
        decoding_seconds: Time to decode an image, with all cores.
        can_fold: Whether each class has enough patients for `N_FOLDS` folds.
    """

    images: dict[str, int]
    patients: int
    prevalence: float
    duplicates: int
    side: float
    aspect_ratio: float
    metadata_auc: float | None
    decoding_seconds: float
    can_fold: bool


@dataclass(frozen=True)
class TrainingSpeed:
    """How long one network trains on this machine.

    Attributes:
        start: Seconds for what does not depend on the number of epochs: building, compiling, the
            last predictions.
        per_image: Seconds for a training image in an epoch, with its share of validation, besides
            what depends on the size.
        per_pixel: Seconds for each pixel of that image.
    """

    start: float
    per_image: float
    per_pixel: float

    def epoch_seconds(self, side: int, n_train: float) -> float:
        """Return the duration of an epoch on `n_train` images of `side` pixels."""
        return n_train * (self.per_image + self.per_pixel * side**2)


@dataclass(frozen=True)
class Fingerprint:
    """What the rules know.

    Attributes:
        dataset: Properties of the images.
        speed: Speed of the machine with the backbone of the plan, whose unfrozen blocks train.
        search_seconds: Time for decoding and for trials.
        end_seconds: Time for all else.
        throughput: Number of trials that run at once, as fast as a single one.
        weights_error: Why ImageNet's weights cannot be loaded, or ''.
    """

    dataset: DatasetFingerprint
    speed: TrainingSpeed
    search_seconds: float
    end_seconds: float
    throughput: float
    weights_error: str

    def trial_seconds(self, fields: Mapping[str, str]) -> float:
        """Return the expected duration of a trial: see `estimate_trial`."""
        return estimate_trial(self.speed, self.dataset.images, fields)

    def count_trials(self, fields: Mapping[str, str]) -> float:
        """Return the number of trials with such a config that fit the time."""
        seconds = max(0.0, self.search_seconds - self._decoding_seconds)
        return seconds * self.throughput / self.trial_seconds(fields)

    def budget_for(self, count: int, fields: Mapping[str, str]) -> float:
        """Return the seconds of a budget for `count` trials with such a config."""
        trials = count * self.trial_seconds(fields) / self.throughput
        return self.end_seconds + self._decoding_seconds + trials

    @property
    def _decoding_seconds(self) -> float:
        return self.dataset.decoding_seconds * sum(self.dataset.images.values())


def count_networks(fields: Mapping[str, str]) -> int:
    """Return the number of networks that a trial with such a config trains."""
    return int(fields["folds"]) * int(fields["repeats"]) * int(fields["ensemble_size"])


def estimate_trial(
    speed: TrainingSpeed, images: Mapping[str, int], fields: Mapping[str, str]
) -> float:
    """Return the expected duration of a trial in seconds, without decoding.

    Args:
        speed: Speed of the machine, with unfrozen blocks.
        images: Split → number of images.
        fields: All fields of the trial's config as text.
    """
    side, folds = int(fields["image_size"]), int(fields["folds"])
    n_train: float = images["train"]
    if folds > 1:
        n_train = (n_train + images["val"]) * (folds - 1) / folds
    trains_head_only = fields["unfreeze_depth"] == "0" and fields["feature_cache"] == "on"
    epochs = HEAD_ONLY_EPOCHS if trains_head_only else int(fields["epochs"])
    network = speed.start + epochs * speed.epoch_seconds(side, n_train)
    return TRIAL_SECONDS + count_networks(fields) * network
