"""Saving and loading train states: nothing is lost, and nothing wrong is loaded."""

import json
import shutil
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples

from diffusion_course import data, losses, process
from diffusion_course.models.mlp import MLP
from diffusion_course.training import checkpoints, loop, resume, update

POINTS = data.load("toy2d", n=200, seed=4)
ADAM = update.adam(3e-3, 24)


def mlp(seed=0, width=16):
    return MLP(2, width=width, depth=1, rngs=nnx.Rngs(seed))


LIKE = update.create_state(mlp(seed=3), ADAM)


def loss(model, x, labels, key):
    return losses.diffusion_loss(model, process.vp_cosine(), "v", x, None, key)


STEP = update.make_step(mlp(), loss, ADAM, 0.999)


@pytest.fixture(autouse=True)
def one_program(monkeypatch):
    """All runs of this file take the same step; it is compiled once."""
    monkeypatch.setattr(loop, "make_step", lambda *_, **__: STEP)


def fit(stop, start=0, state=None, save=None):
    source = data.batches(POINTS, size=32, seed=9, start=start)
    return loop.fit(
        mlp(), loss, source, steps=24, stop=stop, key=jax.random.key(2), state=state,
        save=save, progress=False, optimizer=ADAM,
    )  # fmt: skip


def at(step):
    """A state of that step, with numbers of its own."""
    return LIKE._replace(step=jnp.int32(step), params=LIKE.params + step)


def assert_equal_trees(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def whole():
    """The state after a run that was never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", lambda *_, **__: STEP)
        return jax.tree.map(np.array, fit(24).state)


def test_a_run_resumed_from_disk_equals_an_uninterrupted_one_bit_for_bit(tmp_path, whole):
    with checkpoints.Checkpoints(tmp_path / "run") as saved:
        fit(11, save=loop.Save(5, saved.save))
        assert saved.latest_step() == 11
    with checkpoints.Checkpoints(tmp_path / "run") as saved:
        state = saved.restore(LIKE)
    assert int(state.step) == 11
    assert_equal_trees(whole, fit(24, start=int(state.step), state=state).state)


def test_the_newest_states_are_kept(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=2) as saved:
        assert saved.latest_step() is None and saved.steps() == []
        for step in (1, 2, 3):
            saved.save(at(step))
        assert saved.latest_step() == 3 and saved.steps() == [2, 3]
        assert_equal_trees(saved.restore(LIKE, step=2), at(2))
        with pytest.raises(FileNotFoundError, match="no state of step 1"):
            saved.restore(LIKE, step=1)
        for step in (3, 2):
            with pytest.raises(ValueError, match=f"must exceed the newest .* 3, got {step}"):
                saved.save(at(step))


def test_an_empty_folder_is_named(tmp_path):
    with (
        checkpoints.Checkpoints(tmp_path) as saved,
        pytest.raises(FileNotFoundError, match="saved steps: none"),
    ):
        saved.restore(LIKE)


@pytest.mark.parametrize("keep", [0, 1.5, True])
def test_keep_must_be_positive(tmp_path, keep):
    with pytest.raises(ValueError, match="keep must be a whole number at least 1, got"):
        checkpoints.Checkpoints(tmp_path, keep=keep)


# ------------------------------------------------------------------------------ damaged states


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    """A folder with states of the steps 10 and 20."""
    folder = tmp_path_factory.mktemp("states")
    with checkpoints.Checkpoints(folder) as saved:
        for step in (10, 20):
            saved.save(at(step))
    return folder


@pytest.fixture
def states(two_states, tmp_path):
    return shutil.copytree(two_states, tmp_path / "states")


def largest(folder):
    """The file that holds the arrays."""
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x5A
    path.write_bytes(bytes(content))


DAMAGE = {
    "a byte has changed": lambda folder: flip(largest(folder)),  # orbax would not notice
    "cut": lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:-9]),
    "empty": lambda folder: largest(folder).write_bytes(b""),
    "gone": lambda folder: largest(folder).unlink(),
    "no list": lambda folder: (folder / "contents.json").unlink(),
    "an empty list": lambda folder: (folder / "contents.json").write_text(""),
    "another list": lambda folder: (folder / "contents.json").write_text("[7]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_newest_state_is_told_and_the_one_before_is_used(states, damage, capfd):
    damage(states / "20")
    with checkpoints.Checkpoints(states) as saved:
        with pytest.warns(UserWarning, match=r"step 20 in .* is damaged: .*going on from step 10"):
            state = saved.restore(LIKE)
        assert_equal_trees(state, at(10))
        assert saved.latest_step() == 10
        saved.save(at(20))  # the run comes by again
        assert_equal_trees(saved.restore(LIKE), at(20))
    assert (states / "20.damaged").is_dir()
    assert "Traceback" not in capfd.readouterr().err


def test_a_damaged_state_that_is_asked_for_is_an_error(states):
    flip(largest(states / "10"))
    with checkpoints.Checkpoints(states) as saved:
        with pytest.raises(checkpoints.DamagedState, match=r"step 10 .* Other saved steps: \[20\]"):
            saved.restore(LIKE, step=10)
        with warnings.catch_warnings():  # the newest is good: nothing is said of the other
            warnings.simplefilter("error")
            assert int(saved.restore(LIKE).step) == 20


def test_where_all_states_are_damaged_all_are_named_and_none_is_moved(states):
    for step in ("10", "20"):
        flip(largest(states / step))
    with (
        checkpoints.Checkpoints(states) as saved,
        pytest.raises(checkpoints.DamagedState, match=r"step 20 .*step 10 .*steps: none"),
    ):
        saved.restore(LIKE)
    assert (states / "10").is_dir() and (states / "20").is_dir()


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            update.create_state(mlp(width=32), ADAM),
            r"params is float32 \[\d+\] in like and float32 \[\d+\] in the saved state",
        ),
        (update.create_state(mlp(), optax.sgd(0.1)), r"opt_state.* is missing in like"),
        (LIKE._replace(step=jnp.float32(0)), r"step is float32 \[\] in like and int32 \[\] in"),
    ],
)
def test_the_state_of_another_model_or_optimiser_is_told_by_what_differs(two_states, like, message):
    with (
        checkpoints.Checkpoints(two_states) as saved,
        pytest.raises(ValueError, match="like must be of the model and optimiser .*" + message),
    ):
        saved.restore(like)


# ------------------------------------------------------------------------------- interrupted runs


def tiny_run(folder, again=False, run=None):
    return resume.RunFolder(folder, run or {"steps": 24, "widths": (3, 4)}, again)


@pytest.fixture
def clock(monkeypatch):
    """Minutes that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(resume, "time", SimpleNamespace(perf_counter=lambda: now[0] * 60))
    return now


def test_a_run_folder_gives_back_its_newest_state_and_counts_all_its_minutes(
    tmp_path, whole, clock
):
    folder = tmp_path / "run"
    first = tiny_run(folder)
    assert first.restore(LIKE) is None
    clock[0] += 3
    fit(11, save=loop.Save(5, first.save))
    clock[0] += 100  # the computer was off
    again = tiny_run(folder, again=True)
    assert again.minutes == pytest.approx(3)
    clock[0] += 2
    assert again.minutes == pytest.approx(5)
    state = again.restore(LIKE)
    assert int(state.step) == 11
    assert_equal_trees(whole, fit(24, start=11, state=state, save=loop.Save(5, again.save)).state)
    again.remove()
    assert not folder.exists()


def test_the_state_before_the_newest_is_kept_too_and_used_where_that_is_damaged(tmp_path):
    run = tiny_run(tmp_path)
    for step in (1, 2, 3):
        run.save(at(step))
    flip(largest(tmp_path / "states" / "3"))
    with pytest.warns(UserWarning, match="going on from step 2"):
        assert_equal_trees(tiny_run(tmp_path, again=True).restore(LIKE), at(2))


def test_states_that_cannot_be_used_are_told_with_the_remedy(tmp_path):
    tiny_run(tmp_path).save(at(1))
    again = tiny_run(tmp_path, again=True)
    with pytest.raises(resume.ResumeError, match=r"params is .* remove .* to start again"):
        again.restore(update.create_state(mlp(width=32), ADAM))
    flip(largest(tmp_path / "states" / "1"))
    with pytest.raises(resume.ResumeError, match=r"step 1 .*damaged.*; remove .* to start again"):
        again.restore(LIKE)


def test_a_kept_state_is_neither_overwritten_nor_taken_for_that_of_another_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(resume.ResumeError, match=r"nothing to resume: .*run holds no state"):
        tiny_run(folder, again=True)
    tiny_run(folder).save(LIKE)
    with pytest.raises(resume.ResumeError, match="holds the state of an interrupted run"):
        tiny_run(folder)
    other = {"widths": [3, 4], "kind": "v"}  # steps are missing, kind is new
    with pytest.raises(resume.ResumeError, match=r"differs in kind, steps$"):
        tiny_run(folder, again=True, run=other)
    tiny_run(folder, again=True)


NOTES = ["", "not json", "[]", "{}", '{"run": [], "minutes": 1}', '{"run": {}}', "[" * 10**5,
         '{"run": {}, "minutes": "x"}', b"\xff\xfe", None]  # fmt: skip


@pytest.mark.parametrize("again", [False, True])
def test_a_note_that_is_damaged_or_gone_is_told_in_one_line(tmp_path, again):
    (tmp_path / "states" / "7").mkdir(parents=True)
    for text in NOTES:
        note = tmp_path / "run.json"
        if text is None:
            note.unlink()
        else:
            note.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(resume.ResumeError, match=r"run.json is \w+, so .*remove the folder"):
            tiny_run(tmp_path, again=again)


def test_a_note_without_states_is_no_run(tmp_path):
    (tmp_path / "run.json").write_text("whatever a crash left")
    run = tiny_run(tmp_path)
    assert run.restore(LIKE) is None
    run.save(at(1))
    assert json.loads((tmp_path / "run.json").read_text())["run"] == {"steps": 24, "widths": [3, 4]}


def test_a_crash_while_the_state_is_saved_leaves_the_one_before(tmp_path, monkeypatch):
    run = tiny_run(tmp_path)
    run.save(at(1))
    with monkeypatch.context() as context:
        # Before the state's list is there.
        context.setattr(checkpoints, "files", SimpleNamespace(as_json=str, write=lambda *_: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run.save(at(2))
    with pytest.warns(UserWarning, match="going on from step 1"):
        assert int(tiny_run(tmp_path, again=True).restore(LIKE).step) == 1


@examples
@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.booleans(), max_size=3)
)
def test_a_run_is_known_by_any_note(tmp_path_factory, described):
    folder = tmp_path_factory.mktemp("run")
    (folder / "states" / "3").mkdir(parents=True)
    run = resume.RunFolder(folder / "new", described)
    run.folder = folder
    note = resume.files.as_json({"run": run._run, "minutes": 2.5})
    (folder / "run.json").write_bytes(note)
    assert resume.RunFolder(folder, described, True).minutes >= 2.5
    with pytest.raises(resume.ResumeError, match="differs in"):
        resume.RunFolder(folder, described | {"one more": 1}, True)
