"""Calibration of logits, and its adjustment to another prevalence."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit


class Calibration(NamedTuple):
    """Straight line from logits to calibrated logits (Platt scaling).

    Attributes:
        slope: Factor of the logits, above 0.
        intercept: What is added to them.
    """

    slope: float
    intercept: float

    def calibrate(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated logits, of the shape and dtype of `logits`."""
        return self.slope * logits + self.intercept

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probability of pneumonia for each logit, 0 to 1, shape and dtype as given."""
        return expit(self.calibrate(logits))


UNCALIBRATED = Calibration(1.0, 0.0)


def prevalence_shift(old: float, new: float) -> float:
    """Return what is added to calibrated logits if the prevalence changes.

    By Bayes' theorem the odds of each image change by the same factor, if the images of each class
    stay alike (Saerens et al., Neural Computation 2002, 14:21).

    Args:
        old: Prevalence for which the logits are calibrated, above 0 and below 1.
        new: The other prevalence, above 0 and below 1.
    """
    return float(logit(new) - logit(old))


def shift_probabilities(probabilities: np.ndarray | float, shift: float) -> np.ndarray:
    """Return probabilities whose logits are moved by `shift`; 0 and 1 stay."""
    return expit(logit(probabilities) + shift)
