"""Train states on disk, saved with orbax."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp


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
