"""The table of backbones.

TensorFlow is imported where a network is built and not before: a wrong name or depth is refused
without waiting for it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """A network that turns pixels into features, and what must be known of it.

    `application`: its name in `keras.applications`, which also has its ImageNet weights; None
    for the CNN of this project, which has none. `block_end`: pattern of the layer that ends a
    block; it counts where the graph is one tensor wide there, and what follows the last end
    belongs to the top block. `blocks`: how many that gives. `scale`, `offset`: its own
    preprocessing, for all channels or for each of the three: grey pixels 0–255 times `scale`
    plus `offset`; what a network preprocesses itself needs neither. `scalable`: whether its
    channels can be multiplied by `alpha`.
    """

    application: str | None
    block_end: str
    blocks: int
    scale: float | tuple[float, float, float] = 1.0
    offset: float | tuple[float, float, float] = 0.0
    scalable: bool = False

    def network(self, alpha: float, weights: str | None = None, **options: Any) -> "keras.Model":
        """The application itself, without its top; `options`: further ones of Keras."""
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
