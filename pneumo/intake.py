"""The images that a command works on, and in its run what had to be left out of them."""

from pneumo import tracking
from pneumo.data.dataset import Dataset, Images
from pneumo.training.config import RunConfig


def take(dataset: Dataset, config: RunConfig) -> Images:
    """The images as `config` asks for them, told to the active run.

    What cannot be read is listed and counted there also if it is too much, and `Mistake` raised.
    """
    images = dataset.decode(config.image_size, max_unreadable=1, resize=config.resize)
    tracking.log_data(images)
    if unreadable := len(images.unreadable):
        readable = len(dataset.rows) - unreadable
        tracking.log_counts({"images": readable, "unreadable": unreadable})
    images.require_readable(config.max_unreadable)
    return images
