"""What the user passes as a data set: a name, a folder or an archive."""

import os
from pathlib import Path

from pneumo.data.sources import archive
from pneumo.data.sources.download import REMOTE_DATASETS, fetch
from pneumo.data.sources.sample import make_sample
from pneumo.runtime.errors import UserError, quoted

SAMPLE = "sample"

ACCEPTED_SOURCES = ", ".join([SAMPLE, *REMOTE_DATASETS, "a folder, a .zip or a .tar.gz"])


def resolve_source(data: str) -> tuple[str, Path]:
    """Return a data set's name, and its folder, which is made, downloaded or unpacked if needed.

    Args:
        data: `sample`, one of `REMOTE_DATASETS`, or the path of a folder, a `.zip` or a `.tar.gz`.

    Raises:
        UserError: There is no such data set.
    """
    if data == SAMPLE:
        return data, make_sample()
    if data in REMOTE_DATASETS:
        return data, fetch(data)
    path = Path(os.path.expanduser(data))
    if os.path.isdir(path):  # unlike Path.is_dir, it takes any text
        return path.resolve().name, path
    if not os.path.isfile(path):
        raise UserError(
            f"data must be {ACCEPTED_SOURCES}: '{quoted(data)}' does not exist. "
            "Check the path. If MLflow runs the project from a Git URL, it must be absolute."
        )
    if not path.name.lower().endswith(archive.ARCHIVE_SUFFIXES):
        raise UserError(f"data must be {ACCEPTED_SOURCES}: got the file '{quoted(data)}'")
    return path.name, archive.unpack(path)
