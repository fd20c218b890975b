"""Data sets whose folders are the splits and classes: `{train,val,test}/{NORMAL,PNEUMONIA}`."""

from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd

from pneumo.data.schema import CLASSES, SPLITS
from pneumo.runtime.errors import UserError, is_printable_text, quoted


def find_bases(root: Path) -> list[Path]:
    """Return the folders that contain split folders: `root` or any below it."""
    at_top = [root / folder / name for folder in SPLITS for name in CLASSES]
    below = (folder for name in CLASSES for folder in root.rglob(name))  # rglob follows no links
    bases = {
        folder.parents[1]
        for folder in (*at_top, *below)
        if folder.is_dir() and folder.parent.name in SPLITS and not is_junk(folder, root)
    }
    return list(bases)


def no_base_error(root: Path) -> UserError:
    """Return the error for a folder that is no data set."""
    return UserError(
        f"{root} must contain the folders train/NORMAL, train/PNEUMONIA, test/NORMAL and "
        f"test/PNEUMONIA, or a table labels.csv: it contains {_list_folders(root)}. Pass another "
        "folder or archive, rename the folders, or add the table."
    )


def _list_folders(root: Path, max_listed: int = 6) -> str:
    """Return the folders in a folder, and in those, as text for a message."""
    folders = [
        folder for pattern in ("*", "*/*") for folder in root.glob(pattern) if folder.is_dir()
    ]
    names = sorted(
        folder.relative_to(root).as_posix() for folder in folders if not is_junk(folder, root)
    )
    remainder = [f"{len(names) - max_listed} more"] if len(names) > max_listed else []
    return ", ".join([*names[:max_listed], *remainder]) or "no folders"


def list_images(base: Path) -> pd.DataFrame:
    """List the images in the class folders of a data set, sorted by path.

    Args:
        base: The folder that contains the splits.

    Returns:
        Columns path, label and split, as in an index.

    Raises:
        UserError: There is no image, an unknown folder, or a name that is not printable text.
    """
    _require_known_folders(base)
    paths = sorted(file.relative_to(base).as_posix() for file in _files(base))
    if not paths:
        raise UserError(f"{base} has the folders of a data set, but no images. Add images to them.")
    require_text(paths)
    parts = [path.split("/") for path in paths]
    labels = [CLASSES.index(class_name) for _, class_name, _ in parts]
    splits = [SPLITS[folder] for folder, _, _ in parts]
    return pd.DataFrame({"path": paths, "label": labels, "split": splits})


def require_text(paths: Collection[str]) -> None:
    """Raise `UserError` if a path cannot be printed and stored as text."""
    if bad := [path for path in paths if not is_printable_text(path)]:
        raise UserError(
            f"file names must be UTF-8 without control characters: {len(bad)} of {len(paths)} "
            f"are not, the first is '{quoted(bad[0])}'. Rename them, for example with "
            "convmv -r -f latin1 -t utf8 --notest FOLDER"
        )


def _require_known_folders(base: Path) -> None:
    splits = [base / name for name in SPLITS if (base / name).is_dir()]
    unknown = [
        folder for split in splits for folder in split.iterdir() if folder.name not in CLASSES
    ]
    unknown += [
        folder for split in splits for name in CLASSES for folder in (split / name).glob("*/")
    ]
    others = (folder for folder in base.iterdir() if folder.name not in SPLITS)
    unknown += [folder for folder in others if any((folder / name).is_dir() for name in CLASSES)]
    names = [folder.relative_to(base).as_posix() for folder in unknown if folder.is_dir()]
    if names := sorted(folder for folder in names if not is_junk(base / folder, base)):
        raise UserError(
            f"{base} may contain only the classes NORMAL and PNEUMONIA, in folders train, val and "
            f"test, without further folders: found {', '.join(names[:6])}. Rename these folders, "
            "or move them or their images elsewhere."
        )


def _files(base: Path) -> Iterator[Path]:
    for folder in SPLITS:
        for name in CLASSES:
            for file in (base / folder / name).glob("*"):
                if file.is_file() and not is_junk(file, base):
                    yield file


def is_junk(path: Path, root: Path) -> bool:
    """Return whether a path is hidden, or belongs to what macOS adds to archives.

    Args:
        path: A path below `root`.
        root: Folder above the path; hidden folders above `root` do not count.
    """
    parts = path.relative_to(root).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)
