"""What there is to compute with, and work on many images, shared out among the cores."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from joblib import cpu_count

from pneumo.errors import Mistake

S = TypeVar("S")
T = TypeVar("T")

AHEAD = 4  # items per core that are taken before the caller asks for their results

BATCH = 16  # images per step: what a network makes of them stays near the processor


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them.

    Without that variable they are those that NVIDIA's driver lists (NVML). It needs no `/proc`,
    which WSL2 does not fill, and unlike TensorFlow it takes none of their memory.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [it.strip() for it in allowed.split(",") if it.strip() not in ("", "-1")]
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, and so no GPU
        return []
    try:
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def require_gpus(workers: int, workers_per_gpu: int) -> None:
    """Raise `Mistake` if workers would share a GPU and the user has not allowed it.

    Args:
        workers: Processes of this command that search at the same time.
        workers_per_gpu: How many of them may share one GPU. Without GPUs any number may work.
    """
    found = gpus()
    if found and workers > len(found) * workers_per_gpu:
        raise Mistake(
            f"workers must be at most {len(found) * workers_per_gpu} with {len(found)} GPU and "
            f"--workers_per_gpu {workers_per_gpu}: got {workers}; give fewer, or --workers_per_gpu "
            f"{math.ceil(workers / len(found))}, or CUDA_VISIBLE_DEVICES=-1 to use no GPU"
        )


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield what a function returns for each item, in the order of the items.

    The function runs in as many threads as there are cores, for at most `AHEAD` items per core
    before the caller asks for their results. As soon as the caller stops, by an exception, a signal
    or the end of this generator, no further item starts. Items that are being processed are not
    waited for, since a large image takes longer than Ctrl-C may take.

    Args:
        function: Called with one item at a time. It must write nothing, because a call may go on
            after the caller has stopped.
        items: What it is called with.

    Yields:
        The result for each item.

    Raises:
        Exception: What the function raises, at the place of that item in the order.
    """
    cores = cpu_count()
    threads = ThreadPoolExecutor(cores)
    taken: deque[Future[T]] = deque()
    try:
        for item in items:
            if len(taken) == AHEAD * cores:
                yield taken.popleft().result()
            taken.append(threads.submit(function, item))
        while taken:
            yield taken.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def in_batches(step: Callable[..., T], *rows: Sequence) -> Iterator[T]:
    """What `step` gives for each `BATCH` rows of sequences of the same length, in their order.

    Several run at once, as in `in_threads`: the layers of small networks are too short for all
    cores, one by one.
    """

    def batch(start: int) -> T:
        return step(*(sequence[start : start + BATCH] for sequence in rows))

    return in_threads(batch, range(0, len(rows[0]), BATCH))
