"""Whose file is it? Learning platforms write that into the names of what they let one download.

| platform | name below the folder of submissions |
|---|---|
| Moodle | ``Anna Schmidt_12345_assignsubmission_file_/work.ipynb``, or one name with all of it |
| Canvas | ``schmidtanna_12345_67890_work-1.ipynb``, ``schmidtanna_LATE_12345_67890_work.ipynb`` |
| Blackboard | ``Homework_aschmidt_attempt_2026-01-31-10-00-00_work.ipynb`` |
| none | ``anna/work.ipynb`` or ``anna.ipynb``, which are two students where there are both |

A student chooses only what stands behind the platform's own part, so every pattern stops at the
first place where it fits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import PurePath

from diffusion_course.grading import text

_MOODLE = re.compile(r"(?P<who>.+?)_(?P<id>\d+)_assignsubmission_file(?:_(?P<file>.*))?", re.S)
_BLACKBOARD = re.compile(
    r"(?P<who>.+?)_attempt_(?P<when>\d{4}(?:-\d\d){5})(?:[_.](?P<file>.*))?", re.S
)
# Four digits at least: hw_1_2_anna.ipynb and hw_1_3_bert.ipynb are not two files of one hw.
_CANVAS = re.compile(
    r"(?P<who>[^\W\d_]+)_(?:LATE_)?(?P<id>\d{4,})_\d{4,}_(?P<file>.+)", re.S | re.I
)


@dataclass(frozen=True)
class Sender:
    """What a path says.

    Attributes:
      student: a name that can be printed, and that looks like no other student's of the folder.
      file: the file's name, as the student had it.
      attempt: when it was handed in, as sortable text; empty where the path does not say.
    """

    student: str
    file: str
    attempt: str = ""


@dataclass(frozen=True)
class _Read:
    """A path by one platform's pattern; `id` tells students of one name apart."""

    platform: str
    who: str
    id: str
    file: str
    attempt: str = ""

    @property
    def person(self) -> tuple[str, str, str]:
        return self.platform, self.who, self.id


def senders(paths: Sequence[PurePath]) -> list[Sender]:
    """The sender of every file of a folder of submissions.

    Args:
      paths: of the files, from that folder.

    Returns: a sender for each path, in their order. Files of one student have one name; students
      of one name, or of names that look alike, have a number behind it.
    """
    folders = {path.parts[0] for path in paths if len(path.parts) > 1}
    found = [_read(path, folders) for path in paths]
    homework = _shared([read.who for read in found if read.platform == "Blackboard"])
    found = [_without(read, homework) for read in found]
    people = defaultdict(set)
    for read in found:
        people[read.who].add((read.platform, read.id))
    names = text.distinct(
        {
            read.person: f"{read.who} ({read.id})"
            if read.id and len(people[read.who]) > 1
            else read.who
            for read in found
        }
    )
    return [Sender(names[read.person], read.file, read.attempt) for read in found]


def _read(path: PurePath, folders: set[str]) -> _Read:
    top, name = path.parts[0], path.name
    alone = len(path.parts) == 1
    patterns = {"Moodle": _MOODLE, "Blackboard": _BLACKBOARD}
    if alone:  # Canvas makes no folders
        patterns["Canvas"] = _CANVAS
    matches = {platform: pattern.fullmatch(top) for platform, pattern in patterns.items()}
    fitting = {platform: match for platform, match in matches.items() if match}
    if not fitting:
        if not alone:
            return _Read("", top, "", name)
        # Beside alice's folder, alice.ipynb may be anybody's.
        return _Read("", path.stem, name if path.stem in folders else "", name)
    # The platform's part is the first that fits; a later one is a name that a student has chosen.
    platform = min(fitting, key=lambda platform: fitting[platform].end("who"))
    parts = fitting[platform].groupdict()
    file = (parts["file"] or name) if alone else name
    return _Read(platform, parts["who"], parts.get("id") or "", file, parts.get("when") or "")


def _shared(names: list[str]) -> str:
    """What all names of one Blackboard download begin with: the homework's name and a line."""
    # Letter by letter, since these are no paths.
    start = commonprefix(names) if len(set(names)) > 1 else "".join(names[:1])  # noqa: RUF071
    return start[: start.rfind("_") + 1]


def _without(read: _Read, homework: str) -> _Read:
    if read.platform != "Blackboard":
        return read
    return _Read(read.platform, read.who[len(homework) :], "", read.file, read.attempt)
