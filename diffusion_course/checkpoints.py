"""Saving and loading: train states with orbax, released weights with safetensors and a card."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import nnx


class Checkpoints:
    """A folder of train states, the newest few of which are kept.

    A run that goes on from a saved state equals one that was never interrupted, bit for bit on
    one device, if its batches go on from the same step (`diffusion_course.data.batches` with
    ``start=int(state.step)``).

    Args:
      folder: where to save; it is made if it doesn't exist.
      keep: number of states that are kept.

    Raises: ValueError if keep is below 1.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.folder = Path(folder).absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def save(self, state) -> None:
        """Saves a train state under its step number, and waits until it is on the disk.

        Raises: ValueError if this step or a later one is saved already: two runs need two folders.
        """
        step, newest = int(state.step), self.latest_step()
        if newest is not None and step <= newest:
            raise ValueError(
                f"the state's step must exceed the newest in {self.folder}, {newest}, got {step}"
            )
        self._manager.save(step, args=ocp.args.StandardSave(_tree(state)))
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The newest saved step, or None for an empty folder."""
        return self._manager.latest_step()

    def restore(self, like, step: int | None = None):
        """The state saved at a step, by default the newest.

        Args:
          like: a state of the same shape, such as ``train.create_state(model, optimizer)``.
          step: which one.

        Raises: FileNotFoundError if there is no such state.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            saved = list(self._manager.all_steps())
            raise FileNotFoundError(
                f"no state of step {step} in {self.folder}; saved steps: {saved or 'none'}"
            )
        arrays = self._manager.restore(step, args=ocp.args.StandardRestore(_tree(like)))
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[k] for k in sorted(arrays)])


def _tree(state) -> dict[str, jax.Array]:
    """A flat dictionary of arrays: readable by any version of Flax, whatever its own classes."""
    # Old versions of orbax know arrays only, not NumPy scalars.
    return {f"{i:05d}": jax.numpy.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}


class ResumeError(ValueError):
    """A run cannot be resumed as it was asked to; the message says what to do."""


class RunFolder:
    """The newest state of one long run, with a note of which run it is, so that it can go on.

    Args:
      folder: of this run alone.
      run: everything that says which run it is, as JSON can hold it.
      resume: whether to go on from a state that is kept there.

    Raises: ResumeError if the folder holds a state and resume is False, if it holds none and resume
      is True, or if its state is that of another run.
    """

    def __init__(self, folder: str | Path, run: dict, resume: bool = False):
        self.folder, self._run = Path(folder), json.loads(json.dumps(run))
        self._note = self.folder / "run.json"
        kept = json.loads(self._note.read_text("utf-8")) if self._note.exists() else None
        if kept is not None and not resume:
            raise ResumeError(
                f"{self.folder} holds the state of an interrupted run; resume it (--resume), or "
                "remove the folder to start again"
            )
        if kept is None and resume:
            raise ResumeError(f"there is nothing to resume: {self.folder} holds no state")
        if kept is not None and kept["run"] != self._run:
            other = sorted(k for k in self._run if self._run[k] != kept["run"].get(k))
            raise ResumeError(
                f"only the same run can be resumed; that in {self.folder} differs in "
                f"{', '.join(other)}"
            )
        self._earlier = kept["minutes"] if kept else 0.0
        self._resume, self._begin = resume, time.perf_counter()

    @property
    def minutes(self) -> float:
        """How long the run has taken, earlier sittings included."""
        return self._earlier + (time.perf_counter() - self._begin) / 60

    def restore(self, like):
        """The kept state, of the shape of `like`; None for a new run."""
        if not self._resume:
            return None
        with Checkpoints(self.folder / "states", keep=1) as states:
            return states.restore(like)

    def save(self, state) -> None:
        """Keeps a state, in place of the one before."""
        with Checkpoints(self.folder / "states", keep=1) as states:
            states.save(state)
        note = {"run": self._run, "minutes": self.minutes}
        self._note.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """Removes the folder: the run is over."""
        shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Card:
    """What must be known about released weights; it is saved as JSON beside them.

    Attributes:
      name: of the weights.
      model: class name and constructor arguments, from which the model is built again.
      process: constructor name and arguments of the process, for a diffusion model.
      kind: what the model predicts, for a diffusion model.
      data: name, split, size, source and licence of the training data.
      recipe: the command and every setting of the training.
      metrics: measured quality, each with its sample count.
      sha256: of the weights file.
    """

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    sha256: str = ""


def flat_params(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters by their path, such as "down.0.conv1.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {".".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in leaves}


def save_weights(folder: str | Path, model: nnx.Module, card: Card) -> Path:
    """Writes NAME.safetensors and NAME.json; returns the first one's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card.name}.safetensors"
    path.write_bytes(safetensors.numpy.save(flat_params(model)))
    document = asdict(card) | {"sha256": sha256(path.read_bytes())}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path


def load_card(path: str | Path) -> Card:
    """The card beside a weights file. Raises: FileNotFoundError, ValueError if it isn't one."""
    path = Path(path).with_suffix(".json")
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path.name} is not a card of released weights: {error}") from error


def sha256(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_verified(path: Path, expected: str) -> bytes:
    """A file's content. Raises: ValueError if it does not have the SHA-256 of its card."""
    content = path.read_bytes()
    found = sha256(content)
    if found != expected:
        raise ValueError(
            f"{path.name} must have the SHA-256 of its card, {expected[:12]}…, "
            f"got {found[:12]}…: it is damaged or belongs to another card"
        )
    return content


def load_weights(path: str | Path, model: nnx.Module) -> Card:
    """Fills a model with saved weights, in place, and returns their card.

    Args:
      path: of the .safetensors file.
      model: of the shape that the card describes.

    Raises: FileNotFoundError; ValueError if the file doesn't match its card's hash, or if its
      names or shapes are not the model's (the first that differs is named).
    """
    path, card = Path(path), load_card(path)
    content = read_verified(path, card.sha256)
    arrays, expected = safetensors.numpy.load(content), flat_params(model)
    for name in sorted(expected.keys() | arrays.keys()):
        shapes = [tree[name].shape if name in tree else None for tree in (expected, arrays)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path.name} must hold the model's parameters; {name} has shape {shapes[0]} "
                f"in the model and {shapes[1]} in the file (None: missing)"
            )
    _fill(model, arrays)
    return card


def _fill(model: nnx.Module, arrays: dict[str, np.ndarray]) -> None:
    state = nnx.state(model, nnx.Param)
    pure = nnx.to_pure_dict(state)
    filled = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.numpy.asarray(arrays[".".join(str(k.key) for k in path)]), pure
    )
    nnx.replace_by_pure_dict(state, filled)
    nnx.update(model, state)
