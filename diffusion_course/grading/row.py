"""One line of what grading finds out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
      student: whose.
      exercise: its id; empty for a file that is not graded.
      points: earned, halves only where a person gave them; None for what waits for a person.
      out_of: how many there are; None for a file that is not graded.
      status: "right", "partly right", "wrong", "not attempted", "error", "timeout", "stopped",
        "missing", "manual", "unreadable", "duplicate" or "not graded".
      message: what is wrong, or the beginning of a written answer.
      file: the path in the folder of submissions.
    """

    student: str
    exercise: str
    points: float | None
    out_of: int | None
    status: str
    message: str
    file: str
