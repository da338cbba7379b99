"""Saving and loading: nothing is lost, and nothing wrong is loaded."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from diffusion_course import data, losses, process
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet
from diffusion_course.training import checkpoints, loop, resume, update
from diffusion_course.weights import card

CARD = card.Card(name="tiny", model={"class": "MLP"}, data={}, recipe={})


def mlp(seed=0, width=16):
    return MLP(2, width=width, depth=2, rngs=nnx.Rngs(seed))


def loss(model, x, labels, key):
    return losses.diffusion_loss(model, process.vp_cosine(), "v", x, None, key)


def fit(stop, start=0, state=None, save=None):
    source = data.batches(data.load("toy2d", n=200, seed=4), size=32, seed=9, start=start)
    return loop.fit(
        mlp(), loss, source, steps=24, stop=stop, key=jax.random.key(2), state=state,
        save=save, progress=False,
    )  # fmt: skip


def assert_equal_trees(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_run_resumed_from_disk_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = fit(24)
    with checkpoints.Checkpoints(tmp_path / "run") as saved:
        fit(11, save=loop.Save(5, saved.save))
        assert saved.latest_step() == 11
    with checkpoints.Checkpoints(tmp_path / "run") as saved:
        state = saved.restore(update.create_state(mlp(seed=3), update.adam(3e-3, 24)))
    assert int(state.step) == 11
    resumed = fit(24, start=int(state.step), state=state)
    assert_equal_trees(whole.state, resumed.state)


def test_the_newest_states_are_kept(tmp_path):
    with checkpoints.Checkpoints(tmp_path, keep=2) as saved:
        assert saved.latest_step() is None
        state = fit(1).state
        for step in (1, 2, 3):
            saved.save(state._replace(step=np.int32(step)))
        assert saved.latest_step() == 3
        with pytest.raises(FileNotFoundError, match="no state of step 1"):
            saved.restore(state, step=1)


def test_a_step_that_would_be_hidden_by_a_later_one_is_refused(tmp_path):
    state = fit(1).state
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(state._replace(step=np.int32(5)))
        for step in (5, 3):
            with pytest.raises(ValueError, match=f"must exceed the newest .* 5, got {step}"):
                saved.save(state._replace(step=np.int32(step)))


def test_an_empty_folder_is_named(tmp_path):
    with (
        checkpoints.Checkpoints(tmp_path) as saved,
        pytest.raises(FileNotFoundError, match="saved steps: none"),
    ):
        saved.restore(fit(1).state)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        checkpoints.Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("make", [mlp, lambda seed: UNet(3, (8, 32), rngs=nnx.Rngs(seed))])
def test_weights_come_back_as_they_were(tmp_path, make):
    model, other = make(seed=1), make(seed=2)
    path = card.save_weights(tmp_path, model, CARD)
    found = card.load_weights(path, other)
    assert_equal_trees(nnx.state(model, nnx.Param), nnx.state(other, nnx.Param))
    assert found.name == "tiny" and len(found.sha256) == 64


def test_names_of_weights_are_paths_in_the_model():
    names = card.flat_params(mlp())
    assert "first.kernel" in names and "hidden.1.bias" in names
    assert names["first.kernel"].shape == (2, 16)


def test_a_damaged_file_is_refused(tmp_path):
    path = card.save_weights(tmp_path, mlp(), CARD)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    model = mlp(seed=2)
    before = card.flat_params(model)
    with pytest.raises(ValueError, match="must have the SHA-256 of its card"):
        card.load_weights(path, model)
    for name, array in card.flat_params(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    path = card.save_weights(tmp_path, mlp(), CARD)
    with pytest.raises(ValueError, match=r"first.bias has shape \(24,\).*\(16,\)"):
        card.load_weights(path, mlp(width=24))


def test_a_missing_parameter_is_named(tmp_path):
    path = card.save_weights(tmp_path, mlp(), CARD)
    with pytest.raises(ValueError, match=r"hidden\.2\.bias has shape \(16,\) .* None"):
        card.load_weights(path, MLP(2, width=16, depth=3, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("text", ["not json", json.dumps({"surprise": 1}), "[]"])
def test_a_file_that_is_no_card_is_named(tmp_path, text):
    path = card.save_weights(tmp_path, mlp(), CARD)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=r"tiny\.json is not a card"):
        card.load_card(path)


# ------------------------------------------------------------------------------- interrupted runs


def tiny_run(folder, resume=False, run=None):
    return resume.RunFolder(folder, run or {"steps": 24, "widths": (3, 4)}, resume)


def test_a_run_folder_gives_back_its_newest_state_and_counts_all_its_minutes(tmp_path):
    like = update.create_state(mlp(), update.adam(3e-3, 24))
    first = tiny_run(tmp_path / "run")
    assert first.restore(like) is None
    fit(11, save=loop.Save(5, first.save))
    again = tiny_run(tmp_path / "run", resume=True)
    state = again.restore(like)
    assert int(state.step) == 11
    assert again.minutes >= first.minutes - 0.1 and again.minutes > 0
    assert_equal_trees(
        fit(24).state, fit(24, start=11, state=state, save=loop.Save(5, again.save)).state
    )
    again.remove()
    assert not (tmp_path / "run").exists()


def test_a_kept_state_is_neither_overwritten_nor_taken_for_that_of_another_run(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(resume.ResumeError, match=r"nothing to resume: .*run holds no state"):
        tiny_run(folder, resume=True)
    tiny_run(folder).save(update.create_state(mlp(), update.adam(3e-3, 24)))
    with pytest.raises(resume.ResumeError, match="holds the state of an interrupted run"):
        tiny_run(folder)
    with pytest.raises(resume.ResumeError, match=r"differs in steps$"):
        tiny_run(folder, resume=True, run={"steps": 25, "widths": [3, 4]})
    tiny_run(folder, resume=True)
