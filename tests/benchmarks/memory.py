"""Whether a study's memory grows with its trials.

    python -m tests.benchmarks.memory --data ARCHIVE --weights FILE --trials 20 --epochs 2

It runs the study of `study` on all images, and prints the anonymous memory of its process after
each trial (without memory-mapped files).
"""

import tempfile
from pathlib import Path

from pneumo.data.dataset import open_dataset
from tests.benchmarks.study import lay_out, process
from tests.benchmarks.study_space import arguments

SMOKE = "--data sample --images 60 --backbone cnn --weights none --size 32 --epochs 1 --trials 1"


def main() -> None:
    """Print the results."""
    options = arguments().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        lay_out(open_dataset(options.data), Path(folder), options.images)
        memory = process("ours", options)["memory"]
    print("anonymous memory after each trial, MiB:", *memory)
    print(f"trial 5: {memory[:5][-1]}, last trial: {memory[-1]}, greatest: {max(memory)}")


if __name__ == "__main__":
    main()
