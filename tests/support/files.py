"""All that files contain."""

import zipfile
from collections.abc import Iterator
from pathlib import Path


def contents_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield all files below a folder, and the members of archives."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield str(file), file.read_bytes()
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as packed:
                    yield from (
                        (f"{file}: {member}", packed.read(member)) for member in packed.namelist()
                    )
