"""What there is to compute with, and work on many images, shared out among the cores."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from joblib import cpu_count

from pneumo import interrupt

T = TypeVar("T")

BATCH = 16  # images per step: what a network makes of them stays near the processor


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [it.strip() for it in allowed.split(",") if it.strip() not in ("", "-1")]
    # Asking TensorFlow would take memory of each of them
    return [str(place) for place, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def in_batches(step: Callable[..., T], *rows: Sequence) -> Iterator[T]:
    """What `step` gives for each `BATCH` rows of sequences of the same length, in their order.

    Several run at once: the layers of small networks are too short for all cores, one by one.
    """

    def batch(start: int) -> T:
        interrupt.check()
        return step(*(sequence[start : start + BATCH] for sequence in rows))

    with ThreadPoolExecutor(cpu_count()) as threads:
        yield from threads.map(batch, range(0, len(rows[0]), BATCH))
