"""Disk cache of the activations of frozen blocks, computed once and shared by all trials.

Frozen blocks return the same for the same image in every epoch of every trial, and take nearly all
of a trial's time. So the cache stores their output for the validation images, and for `N_VIEWS`
augmented views of the training images for each setting of the augmentation.

Cuts near the pixels are not worth it: their features are large and little computation precedes
them. See `FeatureCache.is_worth_storing`.
"""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from pneumo.data.dataset import Split
from pneumo.inference.batches import map_batches
from pneumo.inference.logits import Inference, compile_inference, optimize_for_inference
from pneumo.runtime import cache
from pneumo.runtime.cache_entries import RUNS, cache_path, release, run_folder
from pneumo.training import network
from pneumo.training.augment import (
    AUGMENTATION_VERSION,
    N_FACTORS,
    AugmentationConfig,
    augment,
    sample_factors,
)
from pneumo.training.backbones import BACKBONES
from pneumo.training.config import RunConfig
from pneumo.training.network import blocks, cut_tensors, submodel_between

# Augmented views of the training images that epochs use in turn
N_VIEWS = 4

CACHE_DIR = RUNS  # in the cache
ARRAY_FILE, METADATA_FILE = "features.npy", "facts.json"  # in each folder there

# Multiply-adds that take as long as reading one byte. In the first blocks, which have large maps of
# few channels, a laptop's two cores do about 1,500 million per second. A busy disk reads 100 MB in
# that time
WORTH_A_BYTE = 15


@dataclass(frozen=True)
class View:
    """A split in one version, the same for all runs: unaugmented or augmented.

    Attributes:
        split: The split.
        augmentation: Settings of the augmentation.
        number: Seed of the random factors, which distinguishes views with equal settings; 0 for the
            unaugmented images.
    """

    split: Split
    augmentation: AugmentationConfig = AugmentationConfig()
    number: int = 0

    @property
    def factors(self) -> np.ndarray:
        """Random factors: see `sample_factors`; all 0 without augmentation."""
        count = len(self.split.labels)
        if not any(self.augmentation):
            return np.zeros((count, N_FACTORS), np.float32)
        return sample_factors(count, self.number)


def view_for_epoch(split: Split, epoch: int, augmentation: AugmentationConfig, seed: int) -> View:
    """Return the view on which an epoch trains if views are shared.

    With augmentation, each view is drawn as an epoch without sharing draws its own. All runs have
    the same `N_VIEWS` views, in an order that depends on their seed.

    Args:
        split: The training images.
        epoch: Number of the epoch, from 0.
        augmentation: Settings of the augmentation.
        seed: Seed of the run.
    """
    if not any(augmentation):
        return View(split)
    # The 2 distinguishes this seed from those of other orders and factors
    order = np.random.default_rng([seed, 0, 2]).permutation(N_VIEWS)
    return View(split, augmentation, 1 + int(order[epoch % N_VIEWS]))


class FeatureExtractor:
    """A backbone that computes features; none of its blocks is ever trained.

    Args:
        network: Backbone as `network.build_backbone` returns it.
        name: Its key in `BACKBONES`.

    Attributes:
        cuts: Tensors at which the backbone can be cut, by the number of blocks above them.
        input_depth: Depth of the cut below all blocks.
    """

    def __init__(self, network: keras.Model, name: str) -> None:
        self._network, self._name = network, name
        self._blocks = blocks(network, name)
        self.cuts = cut_tensors(network, name)
        self.input_depth = len(self._blocks)  # depth of the cut below all blocks
        self._digests: dict[int, str] = {}
        self._functions: dict[tuple[int, int], Inference] = {}

    def digest(self, depth: int) -> str:
        """Return 64 hex digits that identify the weights below the cut at `depth`."""
        if depth not in self._digests:
            digest = hashlib.sha256()
            for block in self._blocks[: len(self._blocks) - depth]:
                for layer in block:
                    for weight in layer.get_weights():
                        digest.update(np.ascontiguousarray(weight))
            self._digests[depth] = digest.hexdigest()
        return self._digests[depth]

    def multiply_adds(self, depth: int) -> int:
        """Return the multiply-adds of one image from the pixels to the cut at `depth`.

        Only convolutions and dense layers count, which do nearly all of them. Each weight of a
        kernel is used once at each place of the output.
        """
        below = self._blocks[: len(self._blocks) - depth]
        layers = [layer for block in below for layer in block if hasattr(layer, "kernel")]
        return sum(math.prod((*layer.kernel.shape, *layer.output.shape[1:-1])) for layer in layers)

    def feature_bytes(self, depth: int) -> int:
        """Return the bytes of one image's features at the cut at `depth`."""
        return 4 * math.prod(self.cuts[depth].shape[1:])

    def compile_segment(self, lower: int, upper: int) -> Inference:
        """Compile the blocks between two cuts, in inference mode, with `optimize_for_inference`.

        Args:
            lower: Depth of the cut of the inputs.
            upper: Depth of the cut of the outputs, less than `lower`.

        Returns:
            Function from inputs, shape (batch, …), to features, float32, shape (batch, …).
        """
        if (lower, upper) not in self._functions:
            part = optimize_for_inference(submodel_between(self._network, self._name, lower, upper))
            self._functions[lower, upper] = compile_inference(
                part, part.input.shape[1:], part.input.dtype
            )
        return self._functions[lower, upper]


@functools.lru_cache(maxsize=1)  # all trials of a study share the network and its functions
def _pretrained(backbone: str, alpha: float, weights: str, size: int) -> FeatureExtractor:
    config = RunConfig(
        backbone=backbone, alpha=alpha, weights=weights, image_size=size, unfreeze_depth=0
    )
    return FeatureExtractor(network.build_backbone(config), backbone)


class FeatureCache:
    """Disk cache of the output of frozen blocks, at any cut of the backbone.

    Args:
        extractor: The backbone.
        config: Config of the run.
        max_unfreeze_depth: Greatest `unfreeze_depth` of this run and the later ones of its study.
            What is computed from pixels is also stored at that cut, or at the deepest one above it
            that `is_worth_storing`. All other cuts start from there.
        folder: Folder in the cache.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        config: RunConfig,
        max_unfreeze_depth: int,
        folder: str = CACHE_DIR,
    ) -> None:
        self._extractor, self._config, self._folder = extractor, config, folder
        lowest = min(max(max_unfreeze_depth, config.unfreeze_depth), extractor.input_depth - 1)
        self._max_unfreeze_depth = max(filter(self.is_worth_storing, range(lowest + 1)), default=0)
        self._used: set[Path] = set()

    def is_worth_storing(self, depth: int) -> bool:
        """Return whether reading the features at a cut is faster than computing them.

        That is so if the multiply-adds of an image below the cut are at least `WORTH_A_BYTE` times
        its features' bytes. Counts decide, not the clock, so all machines store the same cuts.
        """
        return self._extractor.multiply_adds(depth) >= WORTH_A_BYTE * self._extractor.feature_bytes(
            depth
        )

    def get(self, view: View, depth: int) -> np.ndarray:
        """Return the features of each image of a view, and compute them if they are not stored.

        Args:
            view: The view.
            depth: Number of blocks above the cut.

        Returns:
            A read-only memory map, float32, shape (images, …), in the order of the split.
        """
        name = self.name(view, depth)
        folder = cache.get_or_build(name, lambda draft: self._compute(view, depth, draft))
        self._used.add(folder)
        return np.load(folder / ARRAY_FILE, mmap_mode="r")

    def sizes(self, views: Iterable[View], depths: Iterable[int]) -> dict[str, int]:
        """Return the bytes of all entries that `get` stores for some views and cuts.

        Args:
            views: The views.
            depths: Depths of the cuts.

        Returns:
            Name in the cache → bytes.
        """
        depths = {*depths, self._max_unfreeze_depth}
        return {
            self.name(view, depth): len(view.split.labels) * self._extractor.feature_bytes(depth)
            for view in views
            for depth in depths
        }

    def release(self) -> None:
        """Allow the eviction of all entries that this run has used."""
        for folder in self._used:
            release(folder)

    def key(self, view: View, depth: int) -> dict[str, str | int | float]:
        """Return everything that decides what is stored, and nothing else.

        Args:
            view: The view.
            depth: Number of blocks above the cut.
        """
        return {
            "data": view.split.digest,
            "size": self._config.image_size,
            "backbone": repr(BACKBONES[self._config.backbone]),
            "alpha": self._config.alpha,
            "weights": self._extractor.digest(depth),
            "depth": depth,
            **view.augmentation._asdict(),
            "view": view.number,
            "augmentation": AUGMENTATION_VERSION,
        }

    def name(self, view: View, depth: int) -> str:
        """Return the name of an entry in the cache.

        Args:
            view: The view.
            depth: Number of blocks above the cut.
        """
        text = json.dumps(self.key(view, depth))
        return f"{self._folder}/{hashlib.sha256(text.encode()).hexdigest()}"

    def _compute(self, view: View, depth: int, draft: Path) -> None:
        """Write the features of one cut, and the key that they are stored under."""
        if depth < self._max_unfreeze_depth:
            self.get(view, self._max_unfreeze_depth)
        count = len(view.split.labels)
        cache.require_space(draft, count * self._extractor.feature_bytes(depth))
        with open(draft / ARRAY_FILE, "wb") as file:
            shape = (count, *self._extractor.cuts[depth].shape[1:])
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for features in self._outputs(view, depth):
                file.write(features.astype("<f4", copy=False))
        (draft / METADATA_FILE).write_text(json.dumps(self.key(view, depth), indent=1))

    def _outputs(self, view: View, depth: int) -> Iterator[np.ndarray]:
        """Return batches of features, from the nearest stored cut below or from pixels."""
        lower = self._nearest(view, depth)
        compute = self._extractor.compile_segment(lower, depth)
        if lower < self._extractor.input_depth:
            return map_batches(lambda inputs: compute(inputs).numpy(), self.get(view, lower))
        pixels = view.split.pixels[..., np.newaxis]

        def step(positions: np.ndarray, factors: np.ndarray) -> np.ndarray:
            return compute(augment(pixels[positions], view.augmentation, factors)).numpy()

        return map_batches(step, view.split.positions, view.factors)

    def _nearest(self, view: View, depth: int) -> int:
        """Return the nearest stored cut below `depth`, or else that of the pixels."""
        lower = range(depth + 1, self._extractor.input_depth)
        stored = (
            depth_below
            for depth_below in lower
            if cache_path(self.name(view, depth_below)).is_dir()
        )
        return next(stored, self._extractor.input_depth)


@contextmanager
def open_feature_cache(config: RunConfig, max_unfreeze_depth: int) -> Iterator[FeatureCache]:
    """Open the feature cache of a run, and release its entries at the end of the block.

    With random weights no other run has the same features, so they are deleted at the end.

    Args:
        config: Config of the run.
        max_unfreeze_depth: See `FeatureCache`.

    Yields:
        The cache.
    """
    with ExitStack() as stack:
        if config.weights == "none":
            folder = stack.enter_context(run_folder())
            extractor = FeatureExtractor(network.build_backbone(config), config.backbone)
        else:
            folder = CACHE_DIR
            extractor = _pretrained(
                config.backbone, config.alpha, config.weights, config.image_size
            )
        store = FeatureCache(extractor, config, max_unfreeze_depth, folder)
        stack.callback(store.release)
        yield store
