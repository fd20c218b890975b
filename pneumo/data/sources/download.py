"""Data sets that are downloaded by name."""

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import requests

from pneumo.data.sources import archive
from pneumo.runtime.cache import lock
from pneumo.runtime.cache_entries import DOWNLOADED, DOWNLOADS, cache_path, hold, make_held
from pneumo.runtime.console import echo, track
from pneumo.runtime.errors import UserError

CHUNK = 2**20  # bytes
MAX_ATTEMPTS = 4  # consecutive connections without a byte
INITIAL_BACKOFF = 1.0  # seconds before the second attempt; doubled for each further one
READ_TIMEOUT = 60  # seconds without a byte, after which a connection is closed
MAX_BYTES = 2**32  # no data set here is larger, and a server might send without end


@dataclass(frozen=True)
class RemoteDataset:
    """A published data set, and the values that its download is verified with.

    Attributes:
        url: Address of the archive.
        file_name: Name of the archive.
        sha256: SHA-256 of the archive.
        images: Published split → number of images.
        license: Owner and license of the data.
    """

    url: str
    file_name: str
    sha256: str
    images: dict[str, int]
    license: str


REMOTE_DATASETS = {
    "mendeley": RemoteDataset(
        "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
        "ChestXRay2017.zip",
        "13efc055629733dbab07877f8b3c9f81097840dbcdaa326a8542322c2281ce36",
        {"train": 5232, "test": 624},
        "Kermany, Zhang, Goldbaum: Mendeley Data, doi 10.17632/rscbjbr9sj.2, CC BY 4.0",
    )
}


def fetch(name: str) -> Path:
    """Download and unpack a data set in `REMOTE_DATASETS` once, and return its folder.

    The bytes of a broken connection are kept. The next connection resumes after them, even in
    another process. If several processes need the data set, one fetches it and the others wait.

    Raises:
        UserError: The file cannot be downloaded; the message describes a workaround.
    """
    source = REMOTE_DATASETS[name]
    unpacked = cache_path(archive.name_of(source.sha256))
    if not hold(unpacked):
        with lock(f"{DOWNLOADS}/{name}"):
            if not hold(unpacked):  # another process has fetched it meanwhile
                _download_and_unpack(source)
    with suppress(OSError):  # a read-only cache
        (unpacked / DOWNLOADED).touch()
    return unpacked


def _download_and_unpack(source: RemoteDataset) -> None:
    file = make_held(cache_path(DOWNLOADS)) / source.file_name
    if not file.exists():
        _download(source, file)
    archive.unpack(file)
    file.unlink()


def check_image_counts(rows: pd.DataFrame, source: RemoteDataset) -> None:
    """Raise `UserError` if an index does not have the published numbers of images.

    Args:
        rows: The index before its validation split.
        source: The data set that it must be.

    Raises:
        UserError: The numbers differ.
    """
    counts = rows["split"].value_counts().to_dict()
    if counts != source.images:
        raise UserError(f"{source.file_name} must contain {source.images} images: got {counts}")


def _download(source: RemoteDataset, file: Path) -> None:
    part = file.with_name(f"{file.name}.part")
    try:
        _download_with_retries(source, part)
    except UserError:
        part.unlink(missing_ok=True)  # a later attempt cannot resume from it
        raise
    except requests.HTTPError as error:
        raise _failure(
            source, f"the server responded with status {error.response.status_code}"
        ) from None
    except requests.RequestException as error:
        raise _failure(source, f"the connection failed ({type(error).__name__})") from None
    with part.open("rb") as downloaded:
        sha256 = hashlib.file_digest(downloaded, "sha256").hexdigest()
    if sha256 != source.sha256:
        part.unlink()  # a later attempt cannot resume from it
        raise _failure(source, f"the downloaded file has another sha256, {sha256}")
    part.rename(file)


def _failure(source: RemoteDataset, reason: str) -> UserError:
    return UserError(
        f"{source.file_name} could not be downloaded: {reason}. Try again, or "
        f"1. download {source.url} with a browser, "
        f"2. check that its sha256 is {source.sha256}, "
        f"3. pass the file: data=PATH/{source.file_name}"
    )


def _download_with_retries(source: RemoteDataset, part: Path) -> None:
    """Fill `part`, over as many connections as needed while each of them brings bytes."""
    failures = 0
    while True:
        size_before = _size(part)
        try:
            return _download_once(source, part, size_before)
        except requests.RequestException:
            failures = 1 if _size(part) > size_before else failures + 1
            if failures == MAX_ATTEMPTS:
                raise
            seconds = INITIAL_BACKOFF * 2 ** (failures - 1)
            echo(f"waiting for {urlsplit(source.url).netloc}: the next try is in {seconds:.0f} s")
            time.sleep(seconds)


def _download_once(source: RemoteDataset, part: Path, offset: int) -> None:
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with requests.get(source.url, headers=headers, stream=True, timeout=READ_TIMEOUT) as response:
        _require_same_scheme(source, response)
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing
        response.raise_for_status()
        is_partial = response.status_code == requests.codes.partial_content
        megabytes = int(response.headers.get("Content-Length", 0)) // CHUNK
        chunks = response.iter_content(CHUNK)
        with part.open("ab" if is_partial else "wb") as file:
            for chunk in track(chunks, megabytes, f"Downloading {source.file_name}", "MB"):
                file.write(chunk)
                if file.tell() > MAX_BYTES:
                    raise _failure(source, f"the server sent more than {MAX_BYTES:,} bytes")


def _require_same_scheme(source: RemoteDataset, response: requests.Response) -> None:
    """Raise `UserError` if a redirect leaves https: others could change what it sends."""
    scheme = urlsplit(source.url).scheme
    for redirect in (*response.history, response):
        if urlsplit(redirect.url).scheme != scheme:
            raise _failure(source, f"the server redirected from {scheme} to {redirect.url}")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
