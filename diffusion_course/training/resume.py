"""The folder of one long run, from which it can go on after an interruption."""

import json
import shutil
import time
from pathlib import Path

from diffusion_course import files
from diffusion_course.training import distributed
from diffusion_course.training.checkpoints import Checkpoints, DamagedState


class ResumeError(ValueError):
    """A run cannot be resumed as it was asked to; the message says what to do."""


class RunFolder:
    """The newest states of one long run, with a note of which run it is, so that it can go on.

    With several processes each of them calls every method; number 0 alone reads and writes.

    Args:
      folder: of this run alone.
      run: everything that says which run it is, as JSON can hold it.
      resume: whether to go on from a state that is kept there.

    Raises: ResumeError if the folder holds a state and resume is False, if it holds none and resume
      is True, if its state is that of another run, if it cannot be known whose state it is, or in
      a process that was given another run than number 0.
    """

    # Two: if the newest was damaged, there is the one before.
    KEEP = 2

    def __init__(self, folder: str | Path, run: dict, resume: bool = False):
        self.folder, self._run = Path(folder), json.loads(json.dumps(run))
        self._note, self._states = self.folder / "run.json", self.folder / "states"
        first = distributed.from_first(lambda: self._run | {"resume": resume})
        if other := _differing(first, self._run | {"resume": resume}):
            raise ResumeError(f"all processes need the same run; this one differs in {other}")
        kept = distributed.from_first(self._kept)
        if kept is not None and not resume:
            raise ResumeError(
                f"{self.folder} holds the state of an interrupted run; resume it (--resume), or "
                "remove the folder to start again"
            )
        if kept is None and resume:
            raise ResumeError(f"there is nothing to resume: {self.folder} holds no state")
        if kept is not None and kept["run"] != self._run:
            other = _differing(kept["run"], self._run)
            raise ResumeError(
                f"only the same run can be resumed; that in {self.folder} differs in {other}"
            )
        self._earlier = kept["minutes"] if kept else 0.0
        self._resume, self._begin = resume, time.perf_counter()

    def _kept(self) -> dict | None:
        """The note of the run whose states lie here; None where there are no states."""
        places = self._states.iterdir() if self._states.is_dir() else ()
        if not any(place.name.isdecimal() for place in places):
            return None
        again = "whose states lie there cannot be known; remove the folder to start again"
        try:
            kept = json.loads(self._note.read_text("utf-8"))
            if not isinstance(kept["run"], dict):
                raise TypeError("run must be an object")
            return {"run": kept["run"], "minutes": float(kept["minutes"])}
        except FileNotFoundError:
            raise ResumeError(f"{self._note} is missing, so {again}") from None
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise ResumeError(f"{self._note} is damaged, so {again}") from None

    @property
    def minutes(self) -> float:
        """How long the run has taken, earlier sittings included."""
        return self._earlier + (time.perf_counter() - self._begin) / 60

    def restore(self, like):
        """The newest kept state that is not damaged; None for a new run.

        Args:
          like: a state of the same shape.

        Raises: ResumeError if every kept state is damaged, or belongs to another model.
        """
        if not self._resume:
            return None
        try:
            with Checkpoints(self._states, keep=self.KEEP) as states:
                return states.restore(like)
        except DamagedState as error:
            raise ResumeError(f"{error}; remove {self.folder} to start again") from None
        except ValueError as error:
            raise ResumeError(f"{error}; remove {self.folder} to start again") from error

    def save(self, state) -> None:
        """Keeps a state beside the one before.

        Args:
          state: a `TrainState`.
        """
        # The note goes first: states without one would be nobody's.
        distributed.from_first(self._write_note)
        with Checkpoints(self._states, keep=self.KEEP) as states:
            states.save(state)

    def _write_note(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write(self._note, files.as_json({"run": self._run, "minutes": self.minutes}))

    def remove(self) -> None:
        """Removes the folder: the run is over."""
        distributed.from_first(lambda: shutil.rmtree(self.folder))


def _differing(one: dict, other: dict) -> str:
    """The keys whose values differ, or that one of the two lacks."""
    return ", ".join(
        sorted(k for k in one.keys() | other.keys() if one.get(k, ...) != other.get(k, ...))
    )
