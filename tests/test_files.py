"""A file is written whole or not at all, whatever happens while it is written."""

import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import examples

from diffusion_course import files


class Crash(BaseException):
    """Not an Exception: Ctrl-C and a kill are none either."""


def crash(*_, **__):
    raise Crash


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "content", ["grüße\n", b"\x00\xff", lambda file: np.save(file, np.ones(3))]
)
def test_what_is_written_is_read(tmp_path, content):
    path = files.write(tmp_path / "a", content)
    found = path.read_bytes()
    if isinstance(content, str):
        assert found.decode("utf-8") == content  # no other line ends on any system
    elif isinstance(content, bytes):
        assert found == content
    else:
        np.testing.assert_array_equal(np.load(path), np.ones(3))
    assert list(tmp_path.iterdir()) == [path]


# Everything that a write goes through, and may be interrupted in.
STEPS = [(os, "fsync"), (os, "replace"), (Path, "open"), (Path, "is_file")]


@pytest.mark.parametrize("old", [None, b"before"])
@pytest.mark.parametrize(
    ("place", "name"), STEPS, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_crash_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place, name, old):
    if old is not None:
        (tmp_path / "a").write_bytes(old)
    before = listing(tmp_path)
    with monkeypatch.context() as context:
        context.setattr(place, name, crash)
        with pytest.raises(Crash):
            files.write(tmp_path / "a", b"after")
    assert listing(tmp_path) == before
    files.write(tmp_path / "a", b"after")  # and the next attempt works
    assert listing(tmp_path) == {"a": b"after"}


@pytest.mark.parametrize("error", [Crash, OSError(28, "No space left on device")])
def test_a_crash_in_the_middle_of_the_content_leaves_the_old_file(tmp_path, error):
    files.write(tmp_path / "a", "before")

    def half(file):
        file.write(b"aft")
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        files.write(tmp_path / "a", half)
    assert listing(tmp_path) == {"a": b"before"}


@pytest.mark.parametrize("fails", [0, 1, 2])
@pytest.mark.parametrize("old", [{}, {"a": b"1"}, {"a": b"1", "b": b"2", "c": b"3"}], ids=len)
def test_files_that_belong_together_are_all_new_or_all_old(tmp_path, monkeypatch, fails, old):
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == fails + 1:
            raise PermissionError("the file is open in another program")
        replace(source, target)

    new = {tmp_path / name: name.encode() * 5 for name in "abc"}
    with monkeypatch.context() as context:
        context.setattr(os, "replace", failing)
        with pytest.raises(PermissionError):
            files.write_together(new)
    assert listing(tmp_path) == old
    files.write_together(new)
    assert listing(tmp_path) == {path.name: content for path, content in new.items()}


def test_a_folder_of_that_name_is_an_error_and_stays(tmp_path):
    (tmp_path / "a" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        files.write(tmp_path / "a", b"x")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "inside"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.write(tmp_path / "none" / "a", b"x")


@pytest.mark.skipif(sys.platform == "win32", reason="other permissions")
def test_permissions_are_those_of_the_old_file_or_of_any_new_one(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    files.write(tmp_path / "new", b"")
    mode = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    (tmp_path / "plain").chmod(0o640)
    files.write(tmp_path / "plain", b"x")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o640


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "a").symlink_to(tmp_path / "target")
    files.write(tmp_path / "a", b"x")
    assert listing(tmp_path) == {"target": b"mine", "a": b"x"}


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path):
    files.write(tmp_path / ("x" * 250 + ".json"), b"x")
    assert len(list(tmp_path.iterdir())) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@examples
@given(json_values)
@example("\ud800 and \\ud800")
def test_any_document_comes_back_from_its_json(document):
    assert json.loads(files.as_json(document).decode("utf-8")) == document
