"""Pixels of a data set: decoded once, cached, and assigned to the right row."""

from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from pneumo.data.dataset import open_dataset
from pneumo.inference.decode import decode
from pneumo.runtime.errors import UserError
from tests.support.dicom import radiograph, to_bytes
from tests.support.images import RAMP, file_of


def test_decoded_once_wherever_the_files_lie(folder, own_cache, tmp_path):
    first = open_dataset(str(folder)).decode(32, 0)
    assert not first.pixels.flags.writeable
    moved = folder.rename(tmp_path / "moved")
    dataset = open_dataset(str(moved))
    for file in moved.rglob("*.png"):
        file.unlink()  # a second decoding could not read them
    assert np.array_equal(dataset.decode(32, 0).pixels, first.pixels)
    assert len(list((own_cache / "pixels").iterdir())) == 1


def test_each_size_has_its_own_pixels(sample, own_cache):
    for size in (32, 48):
        assert sample.decode(size, 0).pixels.shape == (546, size, size)
    assert len(list((own_cache / "pixels").iterdir())) == 2


def test_each_way_to_the_square_has_its_own_pixels(folder, own_cache):
    file = sorted((folder / "test" / "NORMAL").iterdir())[0]
    file.write_bytes(file_of(Image.fromarray(np.full((20, 40), 200, np.uint8))))
    dataset = open_dataset(str(folder))
    for resize, lit in (("squash", 32 * 32), ("pad", 16 * 32)):
        test = dataset.decode(32, 0, resize).split("test")
        [row] = np.flatnonzero(test.rows["path"] == file.relative_to(folder).as_posix())
        assert (test.images[row] > 100).sum() == lit


def test_each_row_has_its_own_pixels(sample):
    images = sample.decode(32, 0)
    test = images.split("test")
    assert test.images.shape == (len(test.rows), 32, 32, 1)
    for row in (0, 17, len(test.rows) - 1):
        expected = decode((sample.base / test.rows["path"][row]).read_bytes(), 32)
        assert np.array_equal(test.images[row, ..., 0], expected)


def test_an_unreadable_image_is_left_out_and_named_up_to_a_limit(folder, own_cache):
    broken = next((folder / "train" / "NORMAL").iterdir())
    broken.write_bytes(b"no image")
    dataset = open_dataset(str(folder))
    path = broken.relative_to(folder).as_posix()
    images = dataset.decode(32, max_unreadable=0.01)
    assert images.unreadable == {path: "not a supported image format"}
    splits = [images.split(name) for name in ("train", "val", "test")]
    assert sum(len(split.rows) for split in splits) == len(dataset.rows) - 1
    assert not any((split.rows["path"] == path).any() for split in splits)
    with pytest.raises(UserError, match=f"1 of 546 are, the first is {path}"):
        dataset.decode(32, max_unreadable=0.001)


def test_a_class_without_readable_images_is_rejected_when_it_is_needed(folder, own_cache):
    for file in (folder / "test" / "NORMAL").iterdir():
        file.write_bytes(b"")
    images = open_dataset(str(folder)).decode(32, max_unreadable=1)
    assert len(images.split("train").rows) > 0
    with pytest.raises(UserError, match="test must contain readable images of NORMAL: it has none"):
        images.split("test")


def test_a_disk_error_is_not_cached_as_an_unreadable_image(folder, own_cache):
    dataset = open_dataset(str(folder))
    away = folder.rename(folder.with_name("away"))
    with pytest.raises(
        UserError, match=r"cannot be read from the disk \(No such file or directory\)"
    ):
        dataset.decode(32, 1)
    away.rename(folder)
    assert dataset.decode(32, 0).unreadable == {}


@pytest.mark.parametrize("decoder", ["decode._open_gray", "dicom.pixel_array"])
def test_a_lack_of_memory_is_not_cached_as_an_unreadable_image(folder, own_cache, decoder):
    (folder / "train" / "NORMAL" / "scan.dcm").write_bytes(to_bytes(radiograph(RAMP)))
    dataset = open_dataset(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"pneumo.inference.{decoder}", Mock(side_effect=MemoryError))
        with pytest.raises(UserError, match=r" needs more memory than is free\. Close other"):
            dataset.decode(32, 1)
    assert dataset.decode(32, 0).unreadable == {}


def test_a_cache_that_calls_dicom_unreadable_is_not_used(folder):
    plain = open_dataset(str(folder)).decode(32, 0)
    assert plain.preprocessing == "3 32 squash"
    file = folder / "train" / "NORMAL" / "IM-0101-0001.png"
    file.write_bytes(to_bytes(radiograph(RAMP)))
    assert open_dataset(str(folder)).decode(32, 0).preprocessing == "3 32 squash DICOM"
