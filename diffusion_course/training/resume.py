"""The folder of one long run, from which it can go on after an interruption."""

import json
import shutil
import time
from pathlib import Path

from diffusion_course.training.checkpoints import Checkpoints


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
