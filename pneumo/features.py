"""What the frozen part of a network gives, computed once and shared by all trials.

The blocks that do not train give the same for the same image in every epoch of every trial, and
cost nearly all of its time. So their output is kept on disk: of each image as it is, and of a
fixed number of its variations at each strength of the augmentation.
"""

import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pneumo import models
from pneumo.augment import AUGMENTATION, CHANCES, Variation, augment, chances
from pneumo.backbones import BACKBONES
from pneumo.config import RunConfig
from pneumo.data import cache
from pneumo.data.dataset import Split
from pneumo.errors import Mistake
from pneumo.parallel import in_batches

# Versions of an image that the epochs take in turn: as it is, which is how validation and patients'
# images come and what all strengths share, and varied
VIEWS = 2

FOLDER = "features"  # of the cache
ARRAY, FACTS = "features.npy", "facts.json"  # of each folder in it

GIB = 2**30


@dataclass(frozen=True)
class View:
    """A split in one version, the same for all runs: as it is, or varied.

    `number` tells those that vary alike apart; 0 is the images as they are.
    """

    split: Split
    variation: Variation = Variation()
    number: int = 0

    @property
    def chances(self) -> np.ndarray:
        """How each image is varied, as `augment.chances` gives it; 0 is not at all."""
        count = len(self.split.labels)
        if not any(self.variation):
            return np.zeros((count, CHANCES), np.float32)
        return chances(count, self.number)


def view_of(split: Split, epoch: int, variation: Variation) -> View:
    """What an epoch, from 0, trains on where features are shared."""
    number = epoch % VIEWS
    return View(split, variation, number) if number and any(variation) else View(split)


class Frozen:
    """A backbone that computes features; none of its blocks ever trains."""

    def __init__(self, network: keras.Model, name: str) -> None:
        self._network, self._name = network, name
        self._blocks = models.blocks(network, name)
        self.cuts = models.cuts(network, name)
        self.pixels = len(self._blocks)  # the depth of the cut below all blocks
        self._digests: dict[int, str] = {}
        self._functions: dict[tuple[int, int, Variation], Callable[..., tf.Tensor]] = {}

    def digest(self, depth: int) -> str:
        """64 hex digits that name the weights below a cut."""
        if depth not in self._digests:
            digest = hashlib.sha256()
            for block in self._blocks[: len(self._blocks) - depth]:
                for layer in block:
                    for weight in layer.get_weights():
                        digest.update(np.ascontiguousarray(weight))
            self._digests[depth] = digest.hexdigest()
        return self._digests[depth]

    def compiled(self, lower: int, upper: int, variation: Variation) -> Callable[..., tf.Tensor]:
        """Augmentation and the blocks between two cuts, as in inference, compiled.

        With weights as constants TensorFlow would fold batch normalisation into convolutions,
        which is faster; but the rounding that this changes grows in fine-tuning until it shows in
        the probabilities. As it is, training with and without the store is the same to the bit.
        """
        if (lower, upper, variation) not in self._functions:
            part = models.between(self._network, self._name, lower, upper)
            self._functions[lower, upper, variation] = tf.function(
                lambda inputs, chance: part(augment(inputs, variation, chance), training=False),
                [
                    tf.TensorSpec(part.input.shape, part.input.dtype),
                    tf.TensorSpec((None, CHANCES), tf.float32),
                ],
                jit_compile=False,  # XLA makes the convolutions several times slower on a CPU
            )
        return self._functions[lower, upper, variation]


@functools.lru_cache(maxsize=1)  # all trials of a study share the network and what is compiled
def _pretrained(backbone: str, alpha: float, weights: str, size: int) -> Frozen:
    config = RunConfig(
        backbone=backbone, alpha=alpha, weights=weights, image_size=size, unfreeze_depth=0
    )
    return Frozen(models.backbone(config), backbone)


class Features:
    """The stored output of frozen blocks, at any cut of the backbone.

    `deepest`: the most blocks that this run or a later one of its study will train. What is
    computed from pixels is kept at that cut too, so that all other cuts start from there.
    """

    def __init__(
        self, frozen: Frozen, config: RunConfig, deepest: int, folder: str = FOLDER
    ) -> None:
        self._frozen, self._config, self._folder = frozen, config, folder
        self._deepest = min(max(deepest, config.unfreeze_depth), frozen.pixels - 1)

    def of(self, view: View, depth: int) -> np.ndarray:
        """What the blocks below the `depth` topmost ones give for each image of a view.

        A read-only memory map, float32, shape (images, …), in the order of the split.
        """
        name = self.name(view, depth)
        while True:
            folder = cache.keep(name, lambda draft: self._compute(view, depth, draft), _is_whole)
            with suppress(FileNotFoundError):  # another process has just made room for its own
                os.utime(folder)  # what was used the longest ago makes room first
                return np.load(folder / ARRAY, mmap_mode="r")

    def bytes_needed(self, train: int, val: int) -> int:
        """The disk space of a whole run on `train` and `val` images, whatever is there already."""
        config = self._config
        views = min(VIEWS, config.epochs) if any(Variation.of(config)) else 1
        depths = {0, config.unfreeze_depth, self._deepest}
        return sum((train * views + val) * self._bytes(depth) for depth in depths)

    def key(self, view: View, depth: int) -> dict[str, str | int | float]:
        """All that decides what is stored, and nothing else."""
        return {
            "data": view.split.digest,
            "size": self._config.image_size,
            "backbone": repr(BACKBONES[self._config.backbone]),
            "alpha": self._config.alpha,
            "weights": self._frozen.digest(depth),
            "depth": depth,
            **view.variation._asdict(),
            "view": view.number,
            "augmentation": AUGMENTATION,
        }

    def _bytes(self, depth: int) -> int:
        """Of one image's features."""
        return 4 * math.prod(self._frozen.cuts[depth].shape[1:])

    def name(self, view: View, depth: int) -> str:
        """The folder of the cache where it is stored."""
        text = json.dumps(self.key(view, depth))
        return f"{self._folder}/{hashlib.sha256(text.encode()).hexdigest()}"

    def _compute(self, view: View, depth: int, draft: Path) -> None:
        """Writes what one cut gives, with its checksum."""
        if depth < self._deepest:
            self.of(view, self._deepest)
        count = len(view.split.labels)
        make_room(count * self._bytes(depth))
        checksum = 0
        with open(draft / ARRAY, "wb") as file:
            shape = (count, *self._frozen.cuts[depth].shape[1:])
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for given in self._outputs(view, depth):
                data = given.astype("<f4", copy=False)
                checksum = zlib.crc32(data, checksum)
                file.write(data)
        facts = {**self.key(view, depth), "crc32": checksum}
        (draft / FACTS).write_text(json.dumps(facts, indent=1))

    def _outputs(self, view: View, depth: int) -> Iterator[np.ndarray]:
        """Batches of what a cut gives, from the nearest stored one below it, or from pixels."""
        chance, lower = view.chances, self._nearest(view, depth)
        if lower == self._frozen.pixels:
            inputs, positions = view.split.pixels[..., np.newaxis], view.split.positions
            compute = self._frozen.compiled(lower, depth, view.variation)
        else:
            inputs, positions = self.of(view, lower), np.arange(len(chance))
            compute = self._frozen.compiled(lower, depth, Variation())  # it is in there already

        def step(positions: np.ndarray, chance: np.ndarray) -> np.ndarray:
            return compute(inputs[positions], chance).numpy()

        return in_batches(step, positions, chance)

    def _nearest(self, view: View, depth: int) -> int:
        """The nearest cut below `depth` that is stored, else that of the pixels."""
        lower = range(depth + 1, self._frozen.pixels)
        stored = (it for it in lower if cache.place(self.name(view, it)).is_dir())
        return next(stored, self._frozen.pixels)


def _is_whole(folder: Path) -> bool:
    try:
        facts, file = json.loads((folder / FACTS).read_text()), folder / ARRAY
        state = file.stat()
        found = _checksum(file, state.st_ino, state.st_size, state.st_mtime_ns)
        return facts["crc32"] == found
    except (OSError, ValueError, KeyError):
        return False


@functools.cache  # a process reads each file through once
def _checksum(file: Path, *_: int) -> int:
    """Of a stored array; the rest is what would change with it."""
    return zlib.crc32(np.load(file, mmap_mode="r"))


def budget() -> int:
    """The bytes that stored features may take: `PNEUMO_FEATURES`, in GiB, by default 20.

    Never more than leaves half of the free disk space free. Raises `Mistake` for anything but a
    whole number.
    """
    text = os.environ.get("PNEUMO_FEATURES") or "20"
    if not text.isdecimal():
        raise Mistake(f"PNEUMO_FEATURES must be a whole number of GiB, 0 or more: got '{text}'")
    cache.place(FOLDER).mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache.place(FOLDER)).free
    return min(int(text) * GIB, sum(_sizes().values()) + free // 2)


def _sizes() -> dict[Path, int]:
    """The bytes of all stored features, those used the longest ago first."""
    found = []
    for folder in cache.folders(FOLDER):
        if not (folder / FACTS).is_file():  # a run's, or a draft that somebody is at work on
            continue
        with suppress(FileNotFoundError):  # another process may make room, too
            size = (folder / ARRAY).stat().st_size
            found.append((folder.stat().st_mtime_ns, folder, size))
    return {folder: size for _, folder, size in sorted(found)}


def make_room(needed: int) -> None:
    """Removes what was used the longest ago until `needed` more bytes are within the budget."""
    cache.sweep(FOLDER)
    sizes, allowed = _sizes(), budget()
    while sizes and sum(sizes.values()) + needed > allowed:
        oldest = next(iter(sizes))
        shutil.rmtree(oldest, ignore_errors=True)
        del sizes[oldest]


@contextmanager
def opened(config: RunConfig, deepest: int) -> Iterator[Features]:
    """The features of a run. Those of random weights, which no other run has, go with it."""
    if config.weights != "none":
        shared = _pretrained(config.backbone, config.alpha, config.weights, config.image_size)
        yield Features(shared, config, deepest)
        return
    frozen = Frozen(models.backbone(config), config.backbone)
    cache.place(FOLDER).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=cache.place(FOLDER)) as folder:
        yield Features(frozen, config, deepest, f"{FOLDER}/{Path(folder).name}")
