"""Train states on disk, saved with orbax, each with a list of what it holds.

A state is saved whole, whatever devices and processes it was cut among, so a run can go on with
others. With several processes number 0 alone writes and reads, and the others get from it what it
has read: they need no common disk.

Orbax stores arrays without a checksum: a byte that changes on the disk comes back as another
number, and a damaged file ends in many lines of its own text. So every state keeps the shapes of
its arrays and the SHA-256 of its files, and they are compared before orbax reads anything.
"""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffusion_course import checks, files
from diffusion_course.training import distributed

_CONTENTS = "contents.json"


class DamagedState(ValueError):
    """A saved state is not what was saved; the text says which one, and what is wrong with it."""


class Checkpoints:
    """A folder of train states, the newest few of which are kept.

    A run that goes on from a saved state equals one that was never interrupted, bit for bit on
    the same devices, if its batches go on from the same step (`diffusion_course.data.batches` with
    ``start=int(state.step)``). With several processes each of them calls every method.

    Args:
      folder: where to save; it is made if it does not exist.
      keep: number of states that are kept, at least 1.

    Raises: ValueError if keep is below 1.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        checks.integer("keep", keep, minimum=1)
        self.folder = Path(folder).absolute()
        if jax.process_index() > 0:
            self._manager = None
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # With several processes orbax would wait for the others, which leave it to this one.
        alone = {"active_processes": {0}} if jax.process_count() > 1 else {}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=0, **alone),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        if self._manager is not None:
            self._manager.close()

    def save(self, state) -> None:
        """Saves a train state under its step number, and waits until it is on the disk.

        Args:
          state: a `TrainState`, or another tree of arrays with a `step`.

        Raises: ValueError if this step or a later one is saved already: two runs need two folders.
        """
        if jax.process_count() > 1:
            state = jax.device_get(state)
        distributed.from_first(lambda: self._save(state))

    def _save(self, state) -> None:
        step, newest = int(state.step), max(self._manager.all_steps(), default=None)
        if newest is not None and step <= newest:
            raise ValueError(
                f"the state's step must exceed the newest in {self.folder}, {newest}, got {step}"
            )
        self._manager.save(step, args=ocp.args.StandardSave(_tree(state)))
        self._manager.wait_until_finished()
        contents = {"arrays": _describe(state), "sha256": _sums(self._place(step))}
        files.write(self._place(step) / _CONTENTS, files.as_json(contents))

    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return distributed.from_first(lambda: sorted(self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """The newest saved step, or None for an empty folder."""
        return max(self.steps(), default=None)

    def restore(self, like, step: int | None = None):
        """The state saved at a step, by default the newest that is not damaged.

        Damaged states that are newer than it are reported in a warning and set aside, as folders
        STEP.damaged, so that the run can save these steps again.

        Args:
          like: a state of the same shape, such as ``update.create_state(model, optimizer)``.
          step: which one.

        Raises:
          FileNotFoundError: there is no such state.
          DamagedState: it, or every state, is damaged.
          ValueError: it is the state of another model or optimiser; what differs is named.
        """
        leaves = distributed.from_first(lambda: self._restore(like, step))
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _restore(self, like, step: int | None) -> list:
        saved = sorted(self._manager.all_steps())
        if not saved or step not in (None, *saved):
            raise FileNotFoundError(
                f"no state of step {step} in {self.folder}; saved steps: {saved or 'none'}"
            )
        damaged = {}
        for number in reversed(saved) if step is None else [step]:
            try:
                contents = _verified(self._place(number))
            except DamagedState as error:
                damaged[number] = str(error)
                continue
            _compare(self._place(number), contents["arrays"], _describe(like))
            arrays = self._manager.restore(number, args=ocp.args.StandardRestore(_tree(like)))
            self._set_aside(damaged, number)
            if jax.process_count() > 1:
                arrays = jax.device_get(arrays)
            return [arrays[k] for k in sorted(arrays)]
        reasons = "; ".join(damaged.values())
        others = [n for n in saved if n not in damaged]
        raise DamagedState(f"{reasons}. Other saved steps: {others or 'none'}")

    def _place(self, step: int) -> Path:
        return self.folder / str(step)

    def _set_aside(self, damaged: dict[int, str], used: int) -> None:
        for step, reason in damaged.items():
            aside = self.folder / f"{step}.damaged"
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier accident
            self._place(step).rename(aside)
            warnings.warn(
                f"{reason}. It is now in {aside.name}; going on from step {used}", stacklevel=5
            )
        if damaged:
            self._manager.reload()


def _tree(state) -> dict[str, jax.Array]:
    """A flat dictionary of arrays: readable by any version of Flax, whatever its own classes."""
    # Old versions of orbax know arrays only, not NumPy scalars. And with several processes it takes
    # an array of JAX for one that all of them hold a part of.
    array = np.asarray if jax.process_count() > 1 else jax.numpy.asarray
    return {f"{i:05d}": array(x) for i, x in enumerate(jax.tree.leaves(state))}


def _describe(state) -> dict[str, str]:
    """Name -> type and shape of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path).lstrip("."): f"{jax.numpy.result_type(x)} {list(np.shape(x))}"
        for path, x in leaves
    }


def _sums(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _CONTENTS
    }


def _verified(folder: Path) -> dict:
    """What a state holds by its list. Raises: DamagedState if its files are others."""
    where = f"the state of step {folder.name} in {folder.parent} is damaged"
    try:
        contents = json.loads((folder / _CONTENTS).read_text(encoding="utf-8"))
        wanted, _ = dict(contents["sha256"]), dict(contents["arrays"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise DamagedState(f"{where}: {_CONTENTS} is missing or cannot be read") from None
    found = _sums(folder)
    for name, expected in wanted.items():
        if found.get(name) != expected:
            what = "has changed" if name in found else "is missing"
            raise DamagedState(f"{where}: its file {name} {what}")
    return contents


def _compare(folder: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Raises: ValueError for the first array that one of the two states has otherwise."""
    for name in [*wanted, *(name for name in saved if name not in wanted)]:
        ours, theirs = wanted.get(name, "missing"), saved.get(name, "missing")
        if ours != theirs:
            raise ValueError(
                f"like must be of the model and optimiser whose state {folder} holds; {name} is "
                f"{ours} in like and {theirs} in the saved state"
            )
