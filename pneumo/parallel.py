"""Work on many images, shared out among the cores."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from joblib import cpu_count

from pneumo import interrupt

T = TypeVar("T")

BATCH = 16  # images per step: what a network makes of them stays near the processor


def in_batches(step: Callable[..., T], *rows: Sequence) -> Iterator[T]:
    """What `step` gives for each `BATCH` rows of sequences of the same length, in their order.

    Several run at once: the layers of small networks are too short for all cores, one by one.
    """

    def batch(start: int) -> T:
        interrupt.check()
        return step(*(sequence[start : start + BATCH] for sequence in rows))

    with ThreadPoolExecutor(cpu_count()) as threads:
        yield from threads.map(batch, range(0, len(rows[0]), BATCH))
