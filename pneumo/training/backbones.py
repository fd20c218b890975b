"""Table of backbones.

TensorFlow is imported only when a network is built, so that a wrong name or depth is rejected
without waiting for the import.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """A network that turns pixels into features, and its properties.

    Attributes:
        application: Name in `keras.applications`, which also has its ImageNet weights; None for the
            CNN of this project, which has none.
        block_end: Pattern of the name of the layer that ends a block. It counts only if the graph
            is one tensor wide there. What follows the last end belongs to the top block.
        blocks: Number of blocks that this gives.
        scale: Factor of gray pixels 0–255 in its own preprocessing, for all channels or for each of
            the three. A network that preprocesses itself needs neither scale nor offset.
        offset: Added to the scaled pixels, for all channels or for each of the three.
        scalable: Whether `alpha` can multiply its channels.
    """

    application: str | None
    block_end: str
    blocks: int
    scale: float | tuple[float, float, float] = 1.0
    offset: float | tuple[float, float, float] = 0.0
    scalable: bool = False

    def build(self, alpha: float, weights: str | None = None, **options: Any) -> "keras.Model":
        """Build the application without its top.

        Args:
            alpha: Multiplier of the channels, ignored unless `scalable`.
            weights: As in `keras.applications`; None for random ones.
            **options: Further arguments of the application.
        """
        from keras import applications

        if self.scalable:
            options["alpha"] = alpha
        return getattr(applications, self.application)(
            include_top=False, weights=weights, **options
        )


BACKBONES = {
    "cnn": Backbone(None, r"block_\d_out", 2, 1 / 255),
    "mobilenet": Backbone("MobileNet", r"conv_pw_\d+_relu", 13, 1 / 127.5, -1.0, scalable=True),
    "resnet50v2": Backbone("ResNet50V2", r"conv\d_block\d_out", 16, 1 / 127.5, -1.0),
}
