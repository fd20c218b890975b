"""The command `predict`: image files to a CSV of their probabilities."""

import os
from pathlib import Path

from pneumo.commands.arguments import PredictOptions
from pneumo.data.index import explained, find_images
from pneumo.runtime.console import say
from pneumo.runtime.errors import Mistake, shown
from pneumo.runtime.tensorflow_import import import_tensorflow
from pneumo.tracking.tags import DATA, MODEL

LONGEST_FILE_NAME = 240  # bytes: a file system takes 255, and what goes with it is longer


def predict(options: PredictOptions) -> int:
    """Score image files."""
    out = _path_of_csv(options.out)
    files = find_images(options.images, out)
    import_tensorflow()

    # They import MLflow and TensorFlow, which a mistake need not wait for
    from pneumo.predict import explain, predict
    from pneumo.tracking import models, runs, session

    session.connect()
    stored = models.find(options.model)
    tags = {MODEL: stored.title, DATA: Path(options.images).name}
    with runs.command_run("predict", tags[DATA], tags):
        counts = predict(stored, files, out)
        if options.explain:
            explain(stored, files, explained(out))
    if before := len(files) - counts["images"]:
        say(f"{before} images were in {out} before")
    say(
        f"{counts['images']} images, {counts['positive']} called pneumonia, "
        f"{counts['unreadable']} unreadable: {out}"
    )
    if options.explain:
        say(f"what speaks for pneumonia in each: {explained(out)}")
    return 0


def _path_of_csv(given: str) -> Path:
    """Return the path of the CSV. Raise `Mistake` if no file can be written there."""
    out = Path(os.path.expanduser(given))
    if len(os.fsencode(out.name)) > LONGEST_FILE_NAME:
        raise Mistake(
            f"out must have a name of up to {LONGEST_FILE_NAME} bytes: got '{shown(out.name)}'"
        )
    if os.path.isdir(out) or not os.path.isdir(out.absolute().parent):
        raise Mistake(f"out must be a CSV file in a folder that is there: got '{shown(given)}'")
    return out
