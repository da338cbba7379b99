"""The notes of a run: cut off anywhere, any JSON, two runs at once."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples

from diffusion_course.grading.journal import Journal, Unusable
from diffusion_course.grading.row import Row

HEADER = {"seed": "secret", "limits": {"seconds": 60}}
ROWS = [Row("anna", "01.1", 1, 2, "wrong", "\ud800 \u2028 β\n", "anna.ipynb")]
OTHER = [Row("bert", "01.2", None, 3, "manual", "", "bert.ipynb")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "grades.unfinished"


def write(path, header=HEADER):
    with Journal(path) as notes:
        notes.begin(header)
        notes.note("a", ROWS)
        notes.note("b", OTHER)
    return path.read_bytes()


def test_what_was_noted_is_known_again_under_the_same_header_only(path):
    content = write(path)
    with Journal(path) as notes:
        assert notes.seed == "secret" and notes.unread == 0
        notes.begin(HEADER)
        assert (notes.rows("a"), notes.rows("b"), notes.rows("c")) == (ROWS, OTHER, None)
    assert path.read_bytes() == content
    with Journal(path) as notes:
        notes.begin(HEADER | {"seed": "another"})
        assert notes.rows("a") is None
    assert path.stat().st_mode & 0o077 == 0  # it holds the seed


def test_a_journal_that_was_cut_off_anywhere_is_read_as_far_as_it_goes(path):
    content = write(path)
    ends = [n for n, byte in enumerate(content, start=1) if byte == ord("\n")]
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        with Journal(path) as notes:
            whole = sum(end <= cut for end in ends)
            assert notes.seed == ("secret" if whole else None)
            assert notes.unread == (cut not in [0, *ends])
            notes.begin(HEADER)
            assert notes.rows("a") == (ROWS if whole > 1 else None)
            notes.note("b", OTHER)
        with Journal(path) as notes:  # and it goes on, behind what was whole
            assert notes.unread == 0 and notes.rows("b") == OTHER


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["key", "rows", "seed", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
rows = st.fixed_dictionaries({name: json_values for name in Row.__dataclass_fields__})
entries = st.fixed_dictionaries({"key": json_values, "rows": st.lists(rows | json_values)})


@examples
@given(st.lists(json_values | entries | st.just(HEADER), max_size=4), st.binary(max_size=20))
def test_any_lines_are_entries_or_are_left_out(tmp_path_factory, lines, end):
    path = tmp_path_factory.mktemp("journal") / "j"
    path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + end)
    with Journal(path) as notes:
        known = dict(notes._known)
        assert all(isinstance(row, Row) for found in known.values() for row in found)
        notes.begin(HEADER)
        notes.note("a", ROWS)
    with Journal(path) as notes:
        assert notes.rows("a") == ROWS and notes.seed == "secret"


def test_deep_and_endless_lines_are_left_out(path):
    write(path)
    with path.open("ab") as file:
        for line in (b"[" * 10**5, b'{"key":' * 10**5, b"9" * 10**5, b"\xff\x00", b"NaN"):
            file.write(line + b"\n")
    with Journal(path) as notes:
        assert notes.unread == 5 and notes.rows("b") == OTHER


def test_a_second_run_on_the_same_results_is_refused_and_harms_nothing(path):
    with Journal(path) as notes:
        notes.begin(HEADER)
        notes.note("a", ROWS)
        content = path.read_bytes()
        with pytest.raises(Unusable, match=r"another run writes to .*grades\.unfinished"):
            Journal(path).__enter__()
        assert path.read_bytes() == content
        notes.remove()
    assert not path.exists()
    with Journal(path) as notes:
        assert notes.rows("a") is None and path.exists()


def test_a_link_a_pipe_a_folder_and_anothers_file_are_refused(path, tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    for make in (
        lambda: path.symlink_to(tmp_path / "precious"),
        lambda: os.link(tmp_path / "precious", path),
        lambda: path.symlink_to(tmp_path / "nothing"),
        lambda: os.mkfifo(path),
        path.mkdir,
    ):
        make()
        with pytest.raises(Unusable, match="remove it"):
            Journal(path).__enter__()
        path.rmdir() if path.is_dir() else path.unlink()
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()
    write(path)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Unusable, match="no file of yours"):
        Journal(path).__enter__()
