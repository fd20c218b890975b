"""Downloads: resumed, checked, and rejected if a redirect leaves the server's scheme."""

import hashlib
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pneumo.data import index
from pneumo.data.dataset import open_dataset
from pneumo.data.sources import download
from pneumo.data.sources.download import CHUNK, REMOTE_DATASETS, RemoteDataset
from pneumo.runtime.cache_entries import DOWNLOADED, IN_USE
from pneumo.runtime.errors import UserError
from tests.support.http_server import serving

PATH = "/files/xrays.zip"


@pytest.fixture(scope="module")
def content(sample, tmp_path_factory) -> bytes:
    """Pack the sample as the archive that a server offers."""
    file = tmp_path_factory.mktemp("offered") / "xrays.zip"
    with zipfile.ZipFile(file, "w") as zipped:
        for image in sorted(sample.base.rglob("*.png")):
            zipped.write(image, f"chest_xray/{image.relative_to(sample.base)}")
    return file.read_bytes()


@pytest.fixture
def source(content, own_cache, monkeypatch):
    """Make `mendeley` come from the local server."""
    monkeypatch.setattr(download, "INITIAL_BACKOFF", 0.0)

    def set_source(address: str, **facts) -> None:
        known = {
            "url": f"{address}{PATH}",
            "file_name": "xrays.zip",
            "sha256": hashlib.sha256(content).hexdigest(),
            "images": {"train": 400, "test": 146},
            "license": "CC BY 4.0",
        }
        monkeypatch.setitem(REMOTE_DATASETS, "mendeley", RemoteDataset(**{**known, **facts}))

    return set_source


def certified(file: Path) -> Path:
    """Make a certificate of this machine with its key, in one file, by OpenSSL."""
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    options += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", "-"]
    made = subprocess.run(["openssl", "req", "-x509", *options], capture_output=True, check=True)
    file.write_bytes(file.read_bytes() + made.stdout)
    return file


def left(own_cache) -> list[str]:
    names = [file.name for file in (own_cache / "downloads").iterdir()]
    return [name for name in names if name != IN_USE]


def test_what_is_downloaded_is_the_data_set(sample, content, source, own_cache):
    with serving({PATH: content}) as server:
        source(server.address)
        dataset = open_dataset("mendeley", required_splits=("train", "test"))
        assert open_dataset("mendeley").digest == dataset.digest == sample.digest
    assert server.requests == [(PATH, None)]  # once
    assert dataset.name == "mendeley"
    assert not dataset.is_synthetic
    assert (dataset.root / DOWNLOADED).exists()  # the last to make room for others
    assert left(own_cache) == []


def test_of_two_processes_one_downloads(sample, content, source):
    with serving({PATH: content}) as server, ThreadPoolExecutor(2) as threads:
        source(server.address)
        roots = list(threads.map(lambda _: download.fetch("mendeley"), range(2)))
    assert server.requests == [(PATH, None)]
    assert roots[0] == roots[1]
    assert index.find_base(roots[0]).name == "chest_xray"


def test_a_broken_connection_is_resumed(sample, content, source, capsys):
    # what came of a chunk that did not end is asked for again
    with serving({PATH: content}, breaks_after=[CHUNK + 9, 0, CHUNK]) as server:
        source(server.address)
        assert open_dataset("mendeley").digest == sample.digest
    ranges = [None, f"bytes={CHUNK}-", f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert server.requests == [(PATH, requested_range) for requested_range in ranges]
    wait = f"waiting for {server.address.removeprefix('http://')}: the next try is in 0 s\n"
    assert capsys.readouterr().out.count(wait) == 3


def test_another_process_goes_on_where_one_gave_up(sample, content, source, own_cache):
    with serving({PATH: content}, breaks_after=[2 * CHUNK, 0, 0, 0]) as server:
        source(server.address)
        with pytest.raises(UserError, match=r"the connection failed \(ChunkedEncodingError\)"):
            open_dataset("mendeley")
        assert left(own_cache) == ["xrays.zip.part"]
        assert open_dataset("mendeley").digest == sample.digest
    assert server.requests[-1] == (PATH, f"bytes={2 * CHUNK}-")


def test_a_server_that_cannot_resume_starts_again(sample, content, source):
    with serving({PATH: content}, breaks_after=[CHUNK + 9], resumes=False) as server:
        source(server.address)
        assert open_dataset("mendeley").digest == sample.digest
    assert len(server.requests) == 2


def test_a_part_that_is_whole_is_only_checked(sample, content, source, own_cache):
    (own_cache / "downloads").mkdir(parents=True)
    (own_cache / "downloads" / "xrays.zip.part").write_bytes(content)
    with serving({PATH: content}) as server:
        source(server.address)
        assert open_dataset("mendeley").digest == sample.digest
    assert server.requests == [(PATH, f"bytes={len(content)}-")]


def test_other_content_is_refused_and_does_not_stay(content, source, own_cache):
    with serving({PATH: b"error page"}) as server:
        source(server.address)
        with pytest.raises(UserError, match="the downloaded file has another sha256") as raised:
            open_dataset("mendeley")
    assert left(own_cache) == []
    manual_way = str(raised.value).partition("Try again, or ")[2]
    assert manual_way == (
        f"1. download {server.address}{PATH} with a browser, "
        f"2. check that its sha256 is {hashlib.sha256(content).hexdigest()}, "
        "3. pass the file: data=PATH/xrays.zip"
    )


def test_a_server_that_stops_sending_is_tried_again(sample, content, source, monkeypatch):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.5)
    with serving({PATH: content}, breaks_after=[2 * CHUNK]) as server:
        server.silence = 2
        source(server.address)
        assert open_dataset("mendeley").digest == sample.digest
    assert server.requests == [(PATH, None), (PATH, f"bytes={2 * CHUNK}-")]


def test_a_server_that_announces_more_than_there_is(content, source):
    with serving({PATH: content}) as server:
        server.lie = 1000
        source(server.address)
        with pytest.raises(UserError, match=r"the connection failed \(ChunkedEncodingError\)"):
            open_dataset("mendeley")


def test_a_server_that_announces_less_than_there_is(content, source, own_cache):
    with serving({PATH: content}) as server:
        server.lie = -1000
        source(server.address)
        with pytest.raises(UserError, match="the downloaded file has another sha256"):
            open_dataset("mendeley")
    assert left(own_cache) == []


def test_a_server_that_sends_without_end(content, source, own_cache, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", CHUNK)
    with serving({PATH: content}) as server:
        source(server.address)
        with pytest.raises(UserError, match="the server sent more than 1,048,576 bytes"):
            open_dataset("mendeley")
    assert left(own_cache) == []


def test_a_server_that_leads_out_of_https(content, source, own_cache, tmp_path, monkeypatch):
    certificate = certified(tmp_path / "server.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serving({PATH: content}) as open_to_all, serving({}) as server:
        server.encrypt(certificate)
        server.leads[PATH] = f"{open_to_all.address}{PATH}"
        source(server.address)
        with pytest.raises(
            UserError, match="the server redirected from https to http://127.0.0.1:"
        ):
            open_dataset("mendeley")
    assert left(own_cache) == []


def test_a_server_that_leads_to_files_of_this_machine(content, source):
    with serving({}) as server:
        server.leads[PATH] = "file:///etc/passwd"
        source(server.address)
        with pytest.raises(UserError, match=r"the connection failed \(InvalidSchema\)"):
            open_dataset("mendeley")


def test_a_server_without_the_file(source):
    with serving({}) as server:
        source(server.address)
        with pytest.raises(
            UserError, match="the server responded with status 404. Try again, or 1"
        ):
            open_dataset("mendeley")


def test_the_number_of_images_is_checked(content, source):
    with serving({PATH: content}) as server:
        source(server.address, images={"train": 5232, "test": 624})
        with pytest.raises(UserError, match=r"must contain .*5232.*: got .*400"):
            open_dataset("mendeley")


def test_the_published_data_set():
    source = REMOTE_DATASETS["mendeley"]
    assert sum(source.images.values()) == 5856
    assert source.url.startswith("https://data.mendeley.com/public-files/datasets/rscbjbr9sj/")
    assert len(source.sha256) == 64
