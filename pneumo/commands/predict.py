"""The command `predict`: a CSV with the predicted probabilities of image files."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pneumo.commands.options.arguments import PredictOptions
from pneumo.commands.options.inputs import Inputs, heat_map_folder
from pneumo.inference.input_gate import OUT_OF_RANGE
from pneumo.inference.untrusted import UnreadableImageError
from pneumo.reporting.plots import overlay_heat_map
from pneumo.runtime.console import echo, track
from pneumo.runtime.errors import UserError
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.tracking import models, results, runs, session
from pneumo.tracking.models import LoadedModel
from pneumo.tracking.tags import DATA, MODEL, PREVALENCE

CHUNK_SIZE = 64  # files in memory: enough for all cores, whatever the number of files
VALUES = "probability", "label", "threshold"  # of a readable image
HEADER = ["path", *VALUES, "model_version", "model_id", "error"]
MODEL_KEY = "model_id"  # of the text in a picture that names its model
WITHOUT_ID = [name for name in HEADER if name != "model_id"]  # header of a CSV of earlier versions


def predict(options: PredictOptions, inputs: Inputs) -> int:
    """Predict image files, and return the exit code."""
    files, out = inputs.files, inputs.out
    import_tensorflow()
    session.connect()
    loaded_model = models.find_model(options.model)
    tags = {MODEL: loaded_model.title, DATA: Path(options.images).name}
    if options.prevalence:
        loaded_model.model.adjust_to_prevalence(options.prevalence)
        tags[PREVALENCE] = str(options.prevalence)
    with runs.command_run("predict", tags[DATA], tags):
        counts = predict_files(loaded_model, files, out, options.out_of_range)
        if options.explain:
            write_heat_maps(loaded_model, files, heat_map_folder(out))
    if already_done := len(files) - counts["images"]:
        echo(f"skipped {already_done} images that {out} already contains")
    echo(
        f"predicted {counts['images']} images: {counts['positive']} positive (pneumonia), "
        f"{counts['unreadable']} unreadable, {counts['out_of_range']} {OUT_OF_RANGE}; see {out}"
    )
    if options.prevalence:
        echo(
            "probabilities and threshold are adjusted from a prevalence of "
            f"{loaded_model.model.settings['prevalence']:.1%}, for which the model is calibrated, "
            f"to {options.prevalence:.1%}"
        )
    if options.explain:
        echo(f"heat maps: {heat_map_folder(out)}")
    return 0


def predict_files(
    loaded_model: LoadedModel, files: Sequence[str], out: Path, out_of_range: str = "warn"
) -> Counter[str]:
    """Add a row to `out` for each file that has none.

    The columns are path, probability, label, threshold, model_version, model_id and error. An
    unreadable file has its `error` and no values. The `error` of an image that is far from the
    training images says so.

    Args:
        loaded_model: The model.
        files: Paths of image files.
        out: Path of the CSV, which is created if it does not exist.
        out_of_range: What to do with images far from the training images: see
            `pyfunc.OUT_OF_RANGE_MODES`.

    Returns:
        Numbers of new rows: `images`, and among them `positive`, `unreadable` and `out_of_range`.

    Raises:
        UserError: `out` is another table, or has predictions of another model.
    """
    completed = _completed_paths(out, loaded_model, out_of_range)
    remaining = [file for file in files if file not in completed]
    counts = Counter(images=0, positive=0, unreadable=0, out_of_range=0)
    starts = range(0, len(remaining), CHUNK_SIZE)
    rows = (
        row
        for start in starts
        for row in _predict_rows(loaded_model, remaining[start : start + CHUNK_SIZE], out_of_range)
    )
    with out.open("a", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        for row in track(rows, len(remaining), f"Predicting with {loaded_model.title}"):
            table.writerow(row)
            counts["images"] += 1
            counts["positive"] += row[HEADER.index("label")] == 1
            if error := row[HEADER.index("error")]:
                counts["out_of_range" if error.startswith(OUT_OF_RANGE) else "unreadable"] += 1
    results.log_counts(counts)
    return counts


def _predict_rows(loaded_model: LoadedModel, paths: Sequence[str], out_of_range: str) -> list[list]:
    model_columns = {
        "model_version": loaded_model.version or loaded_model.model_id,
        "model_id": loaded_model.model_id,
    }
    files: dict[str, bytes] = {}
    predictions: dict[str, dict] = {}
    for path in paths:
        try:
            files[path] = Path(path).read_bytes()
        except OSError as error:
            predictions[path] = {**dict.fromkeys(VALUES), "error": error.strerror}
    model_input = pd.DataFrame({"image": list(files.values())}, index=list(files))
    params = {"out_of_range": out_of_range}
    predictions |= loaded_model.model.predict(None, model_input, params).to_dict("index")
    for path, prediction in predictions.items():
        prediction.update(path=path, **model_columns)
    return [[predictions[path][name] for name in HEADER] for path in paths]


def _completed_paths(out: Path, model: LoadedModel, out_of_range: str) -> set[str]:
    """Return the files that have complete rows in `out`; write its header if `out` does not exist.

    A version's number does not identify a model, because each registered model has a version 1.
    """
    if not out.exists() or not out.stat().st_size:
        _write(out, [HEADER])
        return set()
    with out.open(newline="", errors="replace") as file:
        text = file.read()
    header, *rows = csv.reader(text.splitlines(keepends=True))
    if header == WITHOUT_ID:
        raise UserError(
            f"--out must have the columns {','.join(HEADER)}: '{out}' was written by an older "
            "version of pneumo, without model_id. Choose another file."
        )
    if header != HEADER:
        raise UserError(
            f"--out must be a new file, or a CSV that predict has written: got '{out}'. "
            "Choose another file."
        )
    is_cut_off = rows and not (text.endswith("\n") and len(rows[-1]) == len(HEADER))
    complete_rows = rows[:-1] if is_cut_off else rows  # without the row that a dead process began
    if other_models := {row[HEADER.index("model_id")] for row in complete_rows} - {model.model_id}:
        raise UserError(
            f"--out must contain only predictions of {model.title} (model_id {model.model_id}): "
            f"'{out}' contains predictions of {', '.join(sorted(other_models))}. Choose another "
            "file."
        )
    thresholds = {row[HEADER.index("threshold")] for row in complete_rows} - {""}
    if other_thresholds := thresholds - {str(model.model.threshold)}:
        raise UserError(
            f"--out must contain only predictions at the threshold {model.model.threshold}: "
            f"'{out}' contains predictions at {', '.join(sorted(other_thresholds))}, for another "
            "prevalence. Choose another file."
        )
    _require_mode(complete_rows, out_of_range, out)
    if is_cut_off:
        repaired = out.with_name(f"{out.name}.part")
        _write(repaired, [HEADER, *complete_rows])
        repaired.rename(out)  # atomic, so complete rows are never lost
    return {path for path, *_ in complete_rows}


def _require_mode(rows: list[list[str]], out_of_range: str, out: Path) -> None:
    """Raise `UserError` if rows show another way to treat images far from the training images."""
    modes = {
        "warn" if row[HEADER.index("probability")] else "refuse"
        for row in rows
        if row[HEADER.index("error")].startswith(OUT_OF_RANGE)
    }
    if other_modes := modes - {out_of_range}:
        raise UserError(
            f"--out must contain only predictions with out_of_range={out_of_range}: '{out}' "
            f"contains some with {', '.join(sorted(other_modes))}. Choose another file."
        )


def _write(out: Path, rows: list[list[str]]) -> None:
    with out.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def write_heat_maps(loaded_model: LoadedModel, files: Sequence[str], folder: Path) -> None:
    """Write a PNG for each image: the image, and next to it the image under its heat map.

    The pictures show the model's input, gray and square. Their paths below `folder` are those of
    the files in the CSV, absolute if they contain `..`. Existing pictures of this model are kept.
    An unreadable file has none.

    Args:
        loaded_model: The model.
        files: Paths of image files.
        folder: Folder for the pictures.
    """
    paths = {file: _picture_path(file, folder) for file in files}
    model_id = loaded_model.model_id
    remaining = [file for file in files if _model_of_picture(paths[file]) != model_id]
    metadata = PngInfo()
    metadata.add_text(MODEL_KEY, model_id)
    for file, picture in track(
        _draw_heat_maps(loaded_model, remaining), len(remaining), "Drawing heat maps"
    ):
        if picture is not None:
            path = paths[file]
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}")
            Image.fromarray(picture).save(draft, "PNG", pnginfo=metadata)
            draft.rename(path)  # so that an interrupt leaves no incomplete file


def _picture_path(file: str, folder: Path) -> Path:
    path = os.path.abspath(file) if ".." in Path(file).parts else file
    return folder / f"{path.lstrip(os.sep)}.png"


def _model_of_picture(path: Path) -> str:
    """Return MLflow's id of the model that a picture explains, or '' if there is no picture."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(MODEL_KEY, "")
    except OSError:  # Pillow's error for other files is one, too
        return ""


def _draw_heat_maps(
    loaded_model: LoadedModel, paths: Sequence[str]
) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yield each file with its picture, uint8, shape (size, 2 size, 3), or None if unreadable."""
    from pneumo.evaluation.heat_maps import HiResCam  # imports TensorFlow

    hires_cam = HiResCam(loaded_model.model.keras_model)
    for start in range(0, len(paths), CHUNK_SIZE):
        batch = paths[start : start + CHUNK_SIZE]
        images = dict(_decode_readable(loaded_model, batch))
        heat_maps = hires_cam(np.stack([*images.values()])[..., np.newaxis]) if images else ()
        pictures = {
            path: np.hstack([overlay_heat_map(pixels, 0 * heat), overlay_heat_map(pixels, heat)])
            for (path, pixels), heat in zip(images.items(), heat_maps, strict=True)
        }
        yield from ((path, pictures.get(path)) for path in batch)


def _decode_readable(
    loaded_model: LoadedModel, paths: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the readable files with their pixels as the model takes them: uint8, (size, size)."""
    for path in paths:
        with suppress(OSError, UnreadableImageError):  # its row has the reason
            yield path, loaded_model.model.decode(Path(path).read_bytes())
