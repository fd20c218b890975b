"""Detection of images that are far from the training images (out-of-distribution detection)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

OUT_OF_RANGE = "far from the training images"  # how the error of such an image starts


@dataclass(frozen=True)
class InputGate:
    """Mahalanobis distance of images from the training images, and its limit.

    It is the distance of an image's features from their mean, in units of their covariance (Lee et
    al., NeurIPS 2018). The features are the channel means of one layer of the backbone: see
    `logits.with_features`.

    Attributes:
        layer: Name of the layer.
        mean: Means of the features: float32, shape (features,).
        precision: Inverse of their covariance: float32, shape (features, features).
        limit: Distance above which an image is out of range, 0 or more.
    """

    layer: str
    mean: np.ndarray
    precision: np.ndarray
    limit: float

    def measure_distances(self, features: np.ndarray) -> np.ndarray:
        """Return the distance of each image.

        Args:
            features: Floats of shape (images, features).

        Returns:
            Floats of shape (images,), 0 or more.
        """
        centered = features - self.mean
        return np.sqrt(np.sum(centered @ self.precision * centered, axis=1))

    def describe(self, distance: float) -> str | None:
        """Return why an image is out of range, or None if it is not.

        Args:
            distance: As `measure_distances` returns it.
        """
        if distance <= self.limit:
            return None
        return f"{OUT_OF_RANGE}: distance {distance:.1f}, limit {self.limit:.1f}"

    def save(self, file: Path) -> None:
        """Write the gate to a file in NumPy's format `.npz`."""
        np.savez(
            file,
            layer=np.array(self.layer),
            mean=self.mean,
            precision=self.precision,
            limit=np.array(self.limit),
        )

    @classmethod
    def load(cls, file: Path) -> "InputGate":
        """Read a gate from a file, of which no code is executed.

        Raises:
            ValueError: The content is not that of a gate.
        """
        with np.load(file, allow_pickle=False) as arrays:
            gate = cls(
                str(arrays["layer"]), arrays["mean"], arrays["precision"], float(arrays["limit"])
            )
        is_finite = np.isfinite(gate.mean).all() and np.isfinite(gate.precision).all()
        if gate.precision.shape != 2 * gate.mean.shape or not is_finite or not gate.limit >= 0:
            raise ValueError("the arrays are not those of an input gate")
        return gate
