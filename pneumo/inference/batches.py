"""Work on many images, shared out among the cores."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from joblib import cpu_count

S = TypeVar("S")
T = TypeVar("T")

MAX_AHEAD = 4  # items per core that are taken before the caller asks for their results

BATCH_SIZE = 16  # images per step: what a network makes of them stays near the processor


def map_in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield what a function returns for each item, in the order of the items.

    The function runs in as many threads as there are cores, for at most `MAX_AHEAD` items per core
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
            if len(taken) == MAX_AHEAD * cores:
                yield taken.popleft().result()
            taken.append(threads.submit(function, item))
        while taken:
            yield taken.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def map_batches(step: Callable[..., T], *rows: Sequence) -> Iterator[T]:
    """What `step` gives for each `BATCH_SIZE` rows of sequences of the same length, in their order.

    Several run at once, as in `map_in_threads`: the layers of small networks are too short for all
    cores, one by one.
    """

    def batch(start: int) -> T:
        return step(*(sequence[start : start + BATCH_SIZE] for sequence in rows))

    return map_in_threads(batch, range(0, len(rows[0]), BATCH_SIZE))
