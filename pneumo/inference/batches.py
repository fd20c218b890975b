"""Work on many images in parallel threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from typing import TypeVar

from joblib import cpu_count

S = TypeVar("S")
T = TypeVar("T")

MAX_AHEAD = 4  # items per thread that are taken before the caller takes their results

BATCH_SIZE = 16  # images per step, so few that activations stay in the processor's cache


def map_in_threads(
    function: Callable[[S], T], items: Iterable[S], max_threads: float = inf
) -> Iterator[T]:
    """Yield what a function returns for each item, in the order of the items.

    The function runs in as many threads as there are cores, but at most `max_threads`. At most
    `MAX_AHEAD` items per thread are taken before the caller takes their results. If the caller
    stops, by an exception, a signal or the end of this generator, no further item starts. Items in
    progress are not waited for, because a large image takes longer than Ctrl-C may take.

    Args:
        function: Called with one item at a time. It must be thread-safe and write nothing, because
            a call may continue after the caller has stopped.
        items: Arguments of the calls.
        max_threads: Maximum number of threads, if the function needs much memory.

    Yields:
        The result for each item.

    Raises:
        Exception: Whatever the function raises, in place of the item's result.
    """
    n_threads = min(cpu_count(), max_threads)
    threads = ThreadPoolExecutor(n_threads)
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            if len(pending) == MAX_AHEAD * n_threads:
                yield pending.popleft().result()
            pending.append(threads.submit(function, item))
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def map_batches(step: Callable[..., T], *rows: Sequence) -> Iterator[T]:
    """Apply a function to batches of rows in threads, and return its results in order.

    Several batches run at once, as in `map_in_threads`. The layers of small networks are too short
    for a single batch to keep all cores busy.

    Args:
        step: Called with the same rows of each sequence, at most `BATCH_SIZE`.
        *rows: Sequences of the same length.

    Returns:
        Iterator over the results, one per batch.
    """

    def batch(start: int) -> T:
        return step(*(sequence[start : start + BATCH_SIZE] for sequence in rows))

    return map_in_threads(batch, range(0, len(rows[0]), BATCH_SIZE))
