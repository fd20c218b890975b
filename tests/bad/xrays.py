"""Small data sets to spoil: some patients of the synthetic sample."""

from functools import cache
from pathlib import Path

from pneumo.data.sources.sample import make_sample

# Images of each class
IMAGES = {"train": 20, "test": 6}


@cache
def _sample() -> dict[str, bytes]:
    """Return the files of a small data set by their paths."""
    base = make_sample()
    return {
        file.relative_to(base).as_posix(): file.read_bytes()
        for split, count in IMAGES.items()
        for name in ("NORMAL", "PNEUMONIA")
        for file in sorted((base / split / name).iterdir())[:count]
    }


def xrays(folder: Path) -> Path:
    """Write a data set of 52 images to `folder`, and return the folder."""
    for path, content in _sample().items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def first(folder: Path) -> Path:
    """Return the first file of a folder."""
    return sorted(folder.iterdir())[0]


def prepare(data: Path, *flags: str) -> list[str]:
    """Return the arguments of the cheapest command that reads all images."""
    return ["prepare", "--data", str(data), "--image_size", "32", *flags]
