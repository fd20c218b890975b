"""What is made once and kept: folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def place(name: str) -> Path:
    """Where `name` is in the cache: `PNEUMO_CACHE`, by default `~/.cache/pneumo`."""
    return Path(os.environ.get("PNEUMO_CACHE") or "~/.cache/pneumo").expanduser() / name


def keep(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, built by `build(folder)` if it is not there yet.

    It is built beside its place and renamed, so that a killed or failed build leaves
    nothing that is later believed. Of two processes that build the same folder at once,
    the first to finish wins.
    """
    folder = place(name)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(draft)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
