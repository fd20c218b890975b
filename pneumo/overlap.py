"""Overlap of an evaluated split with the images and patients that a model was made with."""

from pneumo import tracking
from pneumo.evaluation.overlap import Overlap


def explain(overlap: Overlap | None) -> str:
    """Return in words why a split does not test a model, '' if it does.

    Args:
        overlap: As `find_overlap` returns it.
    """
    if overlap is None:
        return (
            "it is not known which images the model was trained on, because its run has no "
            f"{tracking.TRAINING_FILES}; train it again"
        )
    if overlap.images:
        return (
            f"{overlap.images} of the {overlap.total} images are training or validation images of "
            f"the model, and {overlap.patients} are of the same patients: they do not show how it "
            "does on new ones"
        )
    if overlap.patients:
        return (
            f"{overlap.patients} of the {overlap.total} images are of patients that the model was "
            "trained or chosen with: they do not show how it does on new ones; if these are "
            "different people, give them different ids in patients.csv"
        )
    return ""
