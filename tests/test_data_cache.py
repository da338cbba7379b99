"""Decoded data on disk: read as they were written, or decoded again, never read wrong."""

import os

import numpy as np
import pytest

from diffusion_course.data import cache
from diffusion_course.data.decode import Decoded

IMAGES = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
DECODED = Decoded(IMAGES, np.array([2, 0, 1], np.int32), ("a", "b", "c"))


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "deep" / "digits.npz"
    assert cache.read(path) is None
    cache.write(path, DECODED)
    found = cache.read(path)
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.labels, [2, 0, 1])
    assert found.label_names == ("a", "b", "c") and found.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": np.array([2, 0, 3.7])}, "labels must be whole numbers"),  # not 3
        ({"labels": np.array([2, 0, 3], np.int32)}, "labels must be in 0 … 2, got 0 … 3"),
        ({"labels": np.array([2, 0], np.int32)}, "labels must be whole numbers of shape"),
        ({"images": IMAGES / 255}, "images must be uint8"),
        ({"images": IMAGES[..., 0]}, "images must be uint8"),
    ],
)
def test_a_file_with_something_else_is_decoded_again(tmp_path, changes, says):
    np.savez(tmp_path / "digits.npz", **(DECODED._asdict() | changes))
    with pytest.warns(UserWarning, match=f"is damaged .{says}.*decoding again"):
        assert cache.read(tmp_path / "digits.npz") is None


@pytest.mark.parametrize("place", ["replace", "fsync"])
def test_a_full_disk_costs_a_warning_and_leaves_what_was_there(tmp_path, monkeypatch, place):
    path = tmp_path / "digits.npz"
    cache.write(path, DECODED)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, place, full)
    with pytest.warns(UserWarning, match=r"could not be written .*going on without"):
        cache.write(path, DECODED._replace(images=IMAGES + 1))
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before
