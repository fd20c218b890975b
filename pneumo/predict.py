"""Scores for many image files, in a CSV that can be continued, and heat maps beside it."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pneumo.evaluation.heat_maps import HiResCam
from pneumo.inference.decode import UnreadableImage
from pneumo.inference.pyfunc import COLUMNS
from pneumo.reporting.plots import overlay
from pneumo.runtime.console import track
from pneumo.runtime.errors import Mistake
from pneumo.tracking import results
from pneumo.tracking.models import Stored

AT_ONCE = 64  # files in memory: enough for all cores, whatever the number of files
HEADER = ["path", "probability", "label", "threshold", "model_version", "model_id", "error"]
WITHOUT_ID = [name for name in HEADER if name != "model_id"]  # as earlier versions wrote it


def predict(stored: Stored, files: Sequence[str], out: Path) -> Counter[str]:
    """Adds a row to `out` for each of `files` that has none; counts what became of those.

    Columns: path, probability, label, threshold, model_version, model_id, error; a file that cannot
    be read has its `error` and no values. Counts `images`, `positive` and `unreadable`. Raises
    `Mistake` where `out` is another table, or another model's.
    """
    done = _continued(out, stored)
    left = [file for file in files if file not in done]
    counts = Counter(images=0, positive=0, unreadable=0)
    starts = range(0, len(left), AT_ONCE)
    rows = (row for at in starts for row in _rows(stored, left[at : at + AT_ONCE]))
    with out.open("a", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for row in track(rows, len(left), f"Predicting with {stored.title}"):
            table.writerow(row)
            counts["images"] += 1
            counts["positive"] += row[HEADER.index("label")] == 1
            counts["unreadable"] += row[HEADER.index("error")] is not None
    results.log_counts(counts)
    return counts


def _rows(stored: Stored, paths: Sequence[str]) -> list[list]:
    whose = {"model_version": stored.version or stored.model_id, "model_id": stored.model_id}
    files: dict[str, bytes] = {}
    answers: dict[str, dict] = {}
    for path in paths:
        try:
            files[path] = Path(path).read_bytes()
        except OSError as error:
            answers[path] = {**dict.fromkeys(COLUMNS), "error": error.strerror}
    given = pd.DataFrame({"image": list(files.values())}, index=list(files))
    answers |= stored.model.predict(None, given).to_dict("index")
    for path, answer in answers.items():
        answer.update(path=path, **whose)
    return [[answers[path][name] for name in HEADER] for path in paths]


def _continued(out: Path, stored: Stored) -> set[str]:
    """Return the files that `out` has whole rows of; write its header if it is not there.

    A version's number does not name a model: each registered model has a version 1.
    """
    if not out.exists() or not out.stat().st_size:
        _write(out, [HEADER])
        return set()
    with out.open(newline="", errors="replace") as file:
        text = file.read()
    header, *rows = csv.reader(text.splitlines(keepends=True))
    if header == WITHOUT_ID:
        raise Mistake(
            f"out must have the columns {','.join(HEADER)}: '{out}' was written by an earlier "
            "pneumo, without model_id; give another out"
        )
    if header != HEADER:
        raise Mistake(f"out must be a CSV that predict has written, or new: got '{out}'")
    cut_off = rows and not (text.endswith("\n") and len(rows[-1]) == len(HEADER))
    whole = rows[:-1] if cut_off else rows  # the process died while it wrote
    if others := {row[HEADER.index("model_id")] for row in whole} - {stored.model_id}:
        raise Mistake(
            f"out must hold predictions of {stored.title} alone, model_id {stored.model_id}: "
            f"'{out}' holds some of {', '.join(sorted(others))}; give another out"
        )
    if cut_off:
        mended = out.with_name(f"{out.name}.part")
        _write(mended, [HEADER, *whole])
        mended.rename(out)  # at once: what is there is never lost
    return {path for path, *_ in whole}


def _write(out: Path, rows: list[list[str]]) -> None:
    with out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def explain(stored: Stored, files: Sequence[str], folder: Path) -> None:
    """Writes each image beside itself with its heat map, as a PNG, into `folder`.

    They show what the model sees, grey and square, and are named after the files, from the folder
    on that all of these have in common. What is there is kept; a file that cannot be read has none.
    """
    common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    places = {file: folder / f"{os.path.relpath(file, common)}.png" for file in files}
    left = [file for file in files if not places[file].exists()]
    for file, picture in track(_explained(stored, left), len(left), "Explaining"):
        if picture is not None:
            place = places[file]
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_name(f".{place.name}")
            Image.fromarray(picture).save(draft, "PNG")
            draft.rename(place)  # so that an interrupt leaves no half of one


def _explained(stored: Stored, paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray | None]]:
    """Each file with its picture, uint8, shape (size, 2 size, 3); None where it is no image."""
    hires_cam = HiResCam(stored.model.keras_model)
    for start in range(0, len(paths), AT_ONCE):
        batch = paths[start : start + AT_ONCE]
        images = dict(_decoded(stored, batch))
        heat_maps = hires_cam(np.stack([*images.values()])[..., np.newaxis]) if images else ()
        pictures = {
            path: np.hstack([overlay(pixels, 0 * heat), overlay(pixels, heat)])
            for (path, pixels), heat in zip(images.items(), heat_maps, strict=True)
        }
        yield from ((path, pictures.get(path)) for path in batch)


def _decoded(stored: Stored, paths: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The files that can be read, as the model takes them: uint8, shape (size, size)."""
    for path in paths:
        with suppress(OSError, UnreadableImage):  # its row has the reason
            yield path, stored.model.decode(Path(path).read_bytes())
