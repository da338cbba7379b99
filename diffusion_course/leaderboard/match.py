"""A submission plays every budget: in the sandbox, with the harness at the other end of a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from diffusion_course import weights
from diffusion_course.grading import calling, sandbox, text, wire
from diffusion_course.leaderboard.game import BUDGETS, Dealer, Game, TooMany


@dataclass(frozen=True)
class Played:
    """What came of one budget.

    Attributes:
      status: "played", or why there are no images: "error", "refused" (too many evaluations),
        "timeout", "stopped".
      message: for the author; empty if all is well.
      used: evaluations of the image that had most.
      pixels: images [N, H, W, C], or None.
    """

    status: str
    message: str
    used: int
    pixels: np.ndarray | None = None


class _Ended(Exception):
    """The submission cannot go on; the arguments are the status and the message."""


def here(sample: Callable, dealer: Dealer, budgets: Sequence[int] = BUDGETS) -> dict[int, Played]:
    """Plays a function in this process: for baselines, and for trying out one's own.

    Args:
      sample: as a submission defines it.
      dealer: of the games.
      budgets: evaluations per image.

    Returns: budget -> what came of it.
    """
    found = {}
    for budget in budgets:
        game = dealer.game(budget)
        deal = game.deal
        try:
            y = sample(game.denoise, deal.noise.copy(), budget, deal.seed)
        except Exception as error:
            y, failed = None, calling.failure(error).message
        else:
            failed = ""
        found[budget] = _outcome(game, y, failed)
    return found


def _outcome(game: Game, y, failed: str) -> Played:
    used = int(game.counts.max())
    if game.refused:  # whatever the submission has made of the refusal
        return Played("refused", game.refused, used)
    if failed:
        return Played("error", failed, used)
    try:
        return Played("played", "", used, game.pixels(y))
    except ValueError as error:
        return Played("error", text.line(str(error)), used)


def in_sandbox(
    cells: Sequence[str], dealer: Dealer, limits: sandbox.Limits, walled: bool = True,
    budgets: Sequence[int] = BUDGETS,
) -> dict[int, Played]:  # fmt: skip
    """Plays a notebook's `sample`, which nobody trusts.

    Args:
      cells: its code.
      dealer: of the games.
      limits: of the submission; `notebook` seconds for all budgets together, in which the
        time of the network does not count, but for the rows that a call leaves empty: whoever asks
        row by row would keep the machine busy for an hour.
      walled: False runs it as an ordinary process.
      budgets: evaluations per image, in the order in which they are played.

    Returns: budget -> what came of it.
    Raises: sandbox.NotStarted if the machine cannot run it.
    """
    found: dict[int, Played] = {}
    for budget in budgets:
        dealer.deal(budget)  # before anybody's time runs
    with sandbox.opened("diffusion_course.leaderboard.player", limits, walled, hidden()) as opened:
        talk = _Talk(*opened, limits)
        try:
            talk.begin(cells)
            for budget in budgets:
                found[budget] = _play(talk, dealer.game(budget))
        except _Ended as ended:
            status, message = ended.args
    if not talk.began:
        raise sandbox.NotStarted(sandbox.not_started())
    left = [budget for budget in budgets if budget not in found]
    return found | {budget: Played(status, message, 0) for budget in left}


def hidden() -> list[Path]:
    """What a submission may not read: all weights, the judges' features, the digits themselves.

    A second wall: whoever could read them would not know the images' coordinates.
    """
    told = (".py", ".json", "")  # cards, and folders; networks come in more than one format
    files = [path for path in weights.FOLDER.iterdir() if path.suffix not in told]
    with contextlib.suppress(AttributeError, TypeError):
        folder = Path(find_spec("sklearn").submodule_search_locations[0], "datasets", "data")
        files += [path for path in folder.glob("digits.csv*") if path.is_file()]
    return sorted(files)


def _play(talk: _Talk, game: Game) -> Played:
    deal = game.deal
    noise = wire.pack(deal.noise)
    talk.write({"evaluations": deal.evaluations, "seed": deal.seed, "noise": noise})
    while True:
        message = talk.read()
        if "ask" in message:
            begin, before = time.monotonic(), game.counts.sum()
            answer = _answer(game, message)
            # What was refused, or wrong, has no rows: its time is the submission's own.
            talk.excuse(time.monotonic() - begin, game.share(int(game.counts.sum() - before)))
            talk.write(answer)
        elif "done" in message:
            return _outcome(game, _array(message["done"]), "")
        elif isinstance(message.get("failed"), str):
            return _outcome(game, None, text.line(message["failed"][:400]))
        else:
            raise _Ended("stopped", _INTERFERED)


_INTERFERED = "your code interfered with the game: it sent what no honest program sends"


def _array(message) -> np.ndarray:
    try:
        return wire.unpack_array(message)
    except wire.Malformed:
        raise _Ended("stopped", _INTERFERED) from None


def _answer(game: Game, message: dict) -> dict:
    asked = message["ask"]
    if not isinstance(asked, list) or len(asked) != 3:
        raise _Ended("stopped", _INTERFERED)
    x, t, images = (None if part is None else _array(part) for part in asked)
    try:
        return {"said": wire.pack(game.denoise(x, t, images, message.get("null") is True))}
    except TooMany as error:
        return {"refused": str(error)}
    except ValueError as error:
        return {"wrong": text.line(str(error))}


class _Talk:
    """A conversation with the program in the sandbox, which may be slow, silent, huge, or lie.

    Attributes:
      began: whether it has said that its own imports are done.
    """

    def __init__(self, process: subprocess.Popen, pipe: int, limits: sandbox.Limits):
        self.began = False
        self._process, self._pipe, self._limits = process, pipe, limits
        self._left: float = sandbox.START_SECONDS
        self._before, self._rest, self._next_look = sandbox.shared(), b"", 0.0
        self._since, self._padding = time.monotonic(), 0.0
        os.set_blocking(process.stdin.fileno(), False)

    def begin(self, cells: Sequence[str]) -> None:
        """Has it run the cells. Raises: _Ended unless it then has a function `sample`."""
        self.write({"cells": list(cells), "limits": self._limits.of_a_process()})
        if "began" not in self.read():
            raise _Ended("stopped", _INTERFERED)
        self.began, self._left = True, float(self._limits.notebook)
        message = self.read()
        if isinstance(message.get("failed"), str):
            raise _Ended("error", text.line(message["failed"][:400]))

    def excuse(self, seconds: float, share: float) -> None:
        """Does not count this share of the seconds that have just passed."""
        self._since += share * seconds
        self._padding += (1 - share) * seconds

    def write(self, message: dict) -> None:
        """Sends a line. Raises: _Ended."""
        content = memoryview(json.dumps(message).encode() + b"\n")
        stdin = self._process.stdin.fileno()
        while content:
            if self._wait([], [stdin]):
                try:
                    content = content[os.write(stdin, content) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise _Ended("stopped", _DIED) from None

    def read(self) -> dict:
        """The next line, an object. Raises: _Ended."""
        while b"\n" not in self._rest:
            if self._wait([self._pipe], []):
                piece = os.read(self._pipe, 1 << 16)
                self._rest += piece
                if not piece:
                    raise _Ended("stopped", _DIED)
                if len(self._rest) > wire.MAX_BYTES:
                    raise _Ended("stopped", "your code returned too much")
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            message = wire.decode(line)
        except wire.Malformed:
            message = None
        if not isinstance(message, dict):
            raise _Ended("stopped", _INTERFERED)
        return message

    def _wait(self, reading: list[int], writing: list[int]) -> bool:
        """Whether one is ready within a moment; the time since the last look is counted."""
        begin = time.monotonic()
        ready = select.select(reading, writing, [], min(sandbox.LOOK_SECONDS, max(self._left, 0)))
        if begin > self._next_look:
            self._next_look = begin + sandbox.LOOK_SECONDS
            if sandbox.too_much(self._process.pid, self._limits, self._before):
                raise _Ended("stopped", _DIED)
        now = time.monotonic()
        self._left, self._since = self._left - (now - self._since), now
        if self._left <= 0:
            seconds = self._limits.notebook
            said = f"your notebook took longer than {seconds} s in all"
            if self._padding > seconds / 2:
                said += "; most of it went to calls of denoise with few rows: ask for many at once"
            raise _Ended("timeout", said)
        return bool(ready[0] or ready[1])


_DIED = "your code ended the process that runs it, or used too much memory or processes"
