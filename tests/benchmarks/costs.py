"""Cost model of a study: the cost of each step per image, and the minimum of a study.

As a program it measures the steps on the machine that it runs on, each in memory and on its own.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pneumo.data.dataset import open_dataset
from pneumo.inference.batches import map_batches
from pneumo.inference.decode import decode
from pneumo.inference.logits import optimize_for_inference, predict_logits, predict_proba
from pneumo.training import network
from pneumo.training.augment import AugmentationConfig, augment, sample_factors
from pneumo.training.feature_cache import N_VIEWS, FeatureExtractor
from pneumo.training.network import TrainablePart, build_model, compile_for_training
from tests.benchmarks.study_space import STRENGTH, arguments, config_of

# So that each step takes a second or more
IMAGES = {"cnn": 2048, "mobilenet": 2048, "resnet50v2": 96}


@dataclass(frozen=True)
class Costs:
    """Seconds for one image, by the name of the step; cuts are in the order of their depth."""

    decode: float
    augment: float
    frozen: list[float]  # from pixels to the cut
    trained: list[float]  # one epoch's forward and backward pass above the cut
    predicted: list[float]  # the forward pass alone
    whole: float  # the whole model's forward pass, for test

    def table(self) -> str:
        """Return all of them, per 1,000 images."""
        lines = [f"  decode {1000 * self.decode:.2f}, augmentation {1000 * self.augment:.2f}"]
        for depth, costs in enumerate(zip(self.frozen, self.trained, self.predicted, strict=True)):
            frozen, trained, predicted = (1000 * cost for cost in costs)
            lines.append(
                f"  depth {depth}: frozen part {frozen:.2f}, trained part {trained:.2f}, "
                f"validation {predicted:.2f}"
            )
        return "\n".join(lines)

    def parts(self, study: Mapping[str, Any]) -> dict[str, float]:
        """Return the minimum seconds that a study's trials need, by part.

        Each view is computed once, up to the lowest cut; each epoch trains what is above its cut.
        If the study is `fresh`, every epoch computes a view of its own, up to its own cut.
        """
        images, trials = study["images"], study["trials"]
        deepest = max(trial["depth"] for trial in trials)
        if study["fresh"]:
            views = [(trial["strength"], depth) for trial in trials for depth in _depths(trial)]
        else:
            shared = {
                (trial["strength"], epoch % N_VIEWS if trial["strength"] else 0)
                for trial in trials
                for epoch in range(trial["epochs"])
            }
            views = [(strength, deepest) for strength, _ in shared]
        varied = len([strength for strength, _ in views if strength])
        frozen = images["train"] * sum(self.frozen[depth] for _, depth in views)
        return {
            "decode": self.decode * sum(images.values()),
            "augmentation": self.augment * images["train"] * varied,
            "frozen part": frozen + self.frozen[deepest] * images["val"],
            "trained part": sum(self._trial(trial, images) for trial in trials),
            "test": self.whole * images["test"],
        }

    def _trial(self, trial: Mapping[str, Any], images: Mapping[str, int]) -> float:
        """Return the seconds above the cut of all epochs of one trial."""
        return sum(
            self.trained[depth] * images["train"] + self.predicted[depth] * images["val"]
            for depth in _depths(trial)
        )

    def least(self, study: Mapping[str, Any]) -> float:
        """Return the sum of the parts: no harness that does the same work can be faster."""
        return sum(self.parts(study).values())

    def predict_seconds(self, study: Mapping[str, Any], trials: int) -> float:
        """Predict the seconds of a study of more trials, with the overhead of this one.

        All views of all strengths are computed. The time of a trial is the mean of this study.
        """
        parts, count = self.parts(study), len(study["trials"])
        images = study["images"]
        strengths = round((STRENGTH[1] - STRENGTH[0]) / STRENGTH[2])  # beside 0
        varied = strengths * N_VIEWS * images["train"]
        once = parts["decode"] + parts["test"] + self.augment * varied
        once += self.frozen[-1] * (varied + images["train"] + images["val"])
        per_trial = (study["seconds"] - self.least(study) + parts["trained part"]) / count
        return once + per_trial * trials


def _depths(trial: Mapping[str, Any]) -> list[int]:
    """Return the depth of each epoch of a trial, of which the first trains the head alone."""
    return [0] + [trial["depth"]] * (trial["epochs"] - 1)


def per_image(step: Callable[[], object], images: int) -> float:
    """Return the seconds for one image: the minimum of five runs; the first one compiles.

    The minimum counts because other programs can only add to it, and the sum of all costs must be
    the least time that a study can take.
    """
    times = []
    for _ in range(5):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return min(times) / images


def outputs(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Return the output of a function for arrays, as `feature_cache` computes it."""
    return np.concatenate(list(map_batches(function, *arrays)))


def above_the_cut(
    options: argparse.Namespace, images: np.ndarray, depth: int
) -> tuple[float, float, float]:
    """Measure the frozen part below a cut, and training and prediction above it, in seconds."""
    count, labels = len(images), np.resize([0, 1], len(images))
    config = config_of(options).override({"unfreeze_depth": depth})
    model = build_model(config)
    network = FeatureExtractor(model.get_layer("backbone"), config.backbone)
    compiled = network.compile_segment(network.input_depth, depth)

    def frozen() -> np.ndarray:
        return outputs(lambda rows: compiled(rows).numpy(), images)

    inputs = frozen()
    part = TrainablePart(model, depth, depth, freeze_batch_norm=True)
    compile_for_training(part, config.learning_rate, count)
    return (
        per_image(frozen, count),
        per_image(lambda: part.fit(inputs, labels, options.batch, verbose=0), count),
        per_image(lambda: predict_logits(part, inputs), count),
    )


def measure(options: argparse.Namespace) -> Costs:
    """Measure all costs on this machine."""
    dataset = open_dataset(f"{options.folder}/ours")
    paths = dataset.rows["path"].head(IMAGES[options.backbone])
    files, count = [dataset.base / path for path in paths], len(paths)

    def decode_all() -> list[np.ndarray]:
        with ThreadPoolExecutor() as threads:
            read = threads.map(lambda file: decode(file.read_bytes(), options.size), files)
            return list(read)

    images, chance = np.stack(decode_all())[..., np.newaxis], sample_factors(count, 0)

    def vary(images: np.ndarray, factors: np.ndarray) -> np.ndarray:
        return augment(images, AugmentationConfig(0.5), factors)

    cuts = [above_the_cut(options, images, depth) for depth in range(options.depth + 1)]
    frozen, trained, predicted = (list(costs) for costs in zip(*cuts, strict=True))
    whole = optimize_for_inference(network.build_model(config_of(options)))
    return Costs(
        decode=per_image(decode_all, count),
        augment=per_image(lambda: outputs(vary, images, chance), count),
        frozen=frozen,
        trained=trained,
        predicted=predicted,
        whole=per_image(lambda: predict_proba(whole, images), count),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(measure(arguments().parse_args()))))
