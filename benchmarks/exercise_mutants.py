"""Do an exercise's inputs notice a wrong symbol? Changes one at a time in its solution.

    python benchmarks/exercise_mutants.py [CHAPTER or EXERCISE …]      such as 02 or 03.4, or all

What is changed is the solution in the master. It stands on its own and uses what a student has:
an oracle may call its chapter's helpers, or look into a denoiser. Every mutant is judged as an
answer is, on the inputs of `check` and on those of a few secret seeds. It survives if it gets all
points on any of them. Mutants that compute the same stand in exercise_mutants_equivalent.toml,
each with the reason. What a docstring calls a size, such as B, should take two values too.

Prints what survived, writes results/exercise_mutants.json, and exits with 1 if something did.
Numbers are as in a notebook, so it takes minutes: to be run by hand after an exercise has changed.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import signal
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import exercise_edits as edits
import jax
import machine
import numpy as np

from diffusion_course.grading import answers
from diffusion_course.grading.calling import call
from diffusion_course.grading.exercise import Arguments, Exercise, Failure
from diffusion_course.grading.judging import Key

HERE = Path(__file__).resolve().parent
COURSE = HERE.parent
EQUIVALENT = HERE / "exercise_mutants_equivalent.toml"
RESULTS = HERE / "results" / "exercise_mutants.json"
SEEDS = ((0,), (1, 1234), (2, 1234), (3, 1234))  # that of `check`, and some like the batch's
SECONDS = 5.0  # for one call of a mutant
MEMORY = 4 << 30  # bytes that mutants may ask for
MOST_VALUES = 6  # of a shape or an argument that are tried in its place


# ------------------------------------------------------------------------------------- masters


def cells(chapter: str) -> list[tuple[str, str]]:
    """Heads and texts of a master's cells."""
    (path,) = (COURSE / "solutions" / "source").glob(f"{chapter}_*.py")
    pieces = re.split(r"(?m)^# %%(.*)\n", path.read_text(encoding="utf-8"))
    return list(zip(pieces[1::2], pieces[2::2], strict=True))


def solution(exercise: Exercise) -> str:
    """The text of an exercise's answer cell."""
    head = f'exercise="{exercise.id}" role="answer"'
    (text,) = (text for found, text in cells(exercise.id[:2]) if found.strip() == head)
    return text.strip() + "\n"


def names(chapter: str) -> dict[str, Any]:
    """What the setup cells of a chapter define."""
    space: dict[str, Any] = {}
    for head, text in cells(chapter):
        if head.strip() == 'role="setup"':
            exec(text, space)
    return space


# ------------------------------------------------------------------------------------- judging


class Judge:
    """The course's own judge, which hears one case after the other and stops at the first fault.

    Args:
      exercise: which one. Why an answer is wrong isn't asked, so its mistakes are left out.
      seeds: the inputs are drawn from each.
    """

    def __init__(self, exercise: Exercise, seeds: Sequence[Sequence[int]] = SEEDS):
        self.exercise = exercise
        self.inputs: list[list[Arguments]] = []
        self._keys: list[list[Key]] = []
        for seed in seeds:
            drawn = exercise.cases(seed)
            self.inputs.append([case for part in drawn for case in part])
            pairs = zip(exercise.parts, drawn, strict=True)
            self._keys.append(
                [
                    Key(replace(exercise, parts=(part,), mistakes={}), [[case]])
                    for part, cases in pairs
                    for case in cases
                ]
            )

    def passed(self, function: Callable[..., Any]) -> int:
        """The number of seeds whose inputs find nothing wrong with a function."""
        return sum(self._right(function, keys) for keys in self._keys)

    def _right(self, function: Callable[..., Any], keys: list[Key]) -> bool:
        for place, key in enumerate(keys):
            arguments = key.cases[0][0]
            outcome = limited(partial(call, function, arguments))
            if key.verdict([[outcome]]).status != "right":
                keys.insert(0, keys.pop(place))  # what has found a fault may find the next soon
                return False
        return True


def limited(action: Callable[[], Any]) -> Any:
    """The action's result; a `Failure` when it takes too long."""

    def late(*_):
        raise TimeoutError(f"took more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        return action()
    except (TimeoutError, MemoryError) as error:
        return Failure("error", str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """A mutant that asks for more than `MEMORY` gets an error instead."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))


def defined(source: str, space: dict[str, Any], function: str) -> Callable[..., Any]:
    space = dict(space)
    exec(compile(source, "<mutant>", "exec"), space)
    return space[function]


# ------------------------------------------------------------------------------------- mutants


@dataclass
class Report:
    """What became of an exercise's mutants.

    Attributes:
      mutants: their number.
      survivors: labels of those that got all points, with the number of seeds on which they did.
      equivalent: the number of those that compute the same, by the list.
      stale: entries of the list that no mutant needs.
      single: sizes in the docstring that take one value only.
    """

    mutants: int = 0
    survivors: dict[str, int] = field(default_factory=dict)
    equivalent: int = 0
    stale: list[str] = field(default_factory=list)
    single: list[str] = field(default_factory=list)

    @property
    def refused(self) -> int:
        return self.mutants - self.equivalent - len(self.survivors)

    @property
    def complete(self) -> bool:
        return not (self.survivors or self.stale or self.single)


def examine(
    exercise: Exercise,
    source: str,
    space: dict[str, Any],
    equivalent: Sequence[str] = (),
    seeds: Sequence[Sequence[int]] = SEEDS,
) -> Report:
    """Tries every edit of an exercise's solution.

    Args:
      exercise: which one.
      source: the text that defines the right function.
      space: what the text may use.
      equivalent: labels of edits that change nothing that can be seen.
      seeds: of the inputs.

    Raises: ValueError if the solution itself doesn't get all points.
    """
    judge = Judge(exercise, seeds)
    if judge.passed(defined(source, space, exercise.function)) != len(seeds):
        raise ValueError(f"{exercise.id}: the solution itself is refused")
    report = Report(single=single_sizes(exercise, source, judge.inputs[0]))
    unused = set(equivalent)
    for edit in _mutants(exercise, source, space, judge):
        report.mutants += 1
        try:
            function = defined(edit.source, space, exercise.function)
        except Exception:  # raised where the function is defined
            continue
        passed = judge.passed(function)
        if passed and edit.label in equivalent:
            report.equivalent += 1
            unused.discard(edit.label)
        elif passed:
            report.survivors[edit.label] = passed
    report.stale = sorted(unused)
    return report


def _mutants(
    exercise: Exercise, source: str, space: dict[str, Any], judge: Judge
) -> Iterator[edits.Edit]:
    yield from edits.all_edits(source)
    noted = {place: _values(exercise, place.source, space, judge) for place in edits.places(source)}
    yield from edits.noted_edits(source, noted)
    yield from edits.argument_edits(source, exercise.function, _constants(source, exercise, judge))


def _values(exercise: Exercise, source: str, space: dict[str, Any], judge: Judge) -> list[Any]:
    """What a noted place is on the inputs of the first seed."""
    seen: dict[Any, None] = {}

    def note(value, axis=None):
        taken = value if axis is None else value.shape[axis]
        seen[taken if isinstance(taken, tuple) else int(taken)] = None
        return value

    function = defined(source, {**space, edits.NOTE: note}, exercise.function)
    for arguments in judge.inputs[0]:
        call(function, arguments)
    return list(seen)[:MOST_VALUES]


def _parameters(source: str, function: str) -> list[str]:
    (found,) = re.findall(rf"(?m)^def {function}\(([^)]*)\)", source)
    return [name.split("=")[0].strip() for name in found.split(",")]


def _constants(source: str, exercise: Exercise, judge: Judge) -> dict[str, list[Any]]:
    """Numbers and strings that an argument takes whatever the seed."""
    taken = {}
    for place, name in enumerate(_parameters(source, exercise.function)):
        of_seeds = [
            {v for v in (case[place] for case in inputs) if isinstance(v, int | float | str)}
            for inputs in judge.inputs
        ]
        shared = set.intersection(*of_seeds)
        taken[name] = sorted(shared, key=repr)[:MOST_VALUES]
    return taken


_SIZES = re.compile(r"(?P<names>\w+(?:(?:, | and )\w+)*) \[(?P<axes>[^\]]*)\]")


def single_sizes(exercise: Exercise, source: str, inputs: Sequence[Arguments]) -> list[str]:
    """Axes of the docstring's arguments, and whole numbers, that take one value in all inputs."""
    parameters = _parameters(source, exercise.function)
    promised = re.search(r'"""(.*?)->', source, re.S)
    single = []
    for found in _SIZES.finditer(promised[1] if promised else ""):
        axes = found["axes"].split(", ")
        for name in re.split(", | and ", found["names"]):
            if name not in parameters:
                continue
            shapes = [np.shape(case[parameters.index(name)]) for case in inputs]
            if axes != ["..."] and not any(shapes):
                continue  # a number, named before an array
            for number, axis in enumerate(axes):
                if axis == "...":
                    taken = {shape[number:] for shape in shapes}
                else:
                    taken = {shape[number] for shape in shapes if len(shape) > number}
                if len(taken) == 1 and not axis.isdigit():
                    single.append(f"the {axis} of {name} is always {taken.pop()}")
    for place, name in enumerate(parameters):
        numbers = {case[place] for case in inputs if isinstance(case[place], int | str)}
        if len(numbers) == 1:
            single.append(f"{name} is always {numbers.pop()!r}")
    return single


# ---------------------------------------------------------------------------------------- main


def listed() -> dict[str, list[str]]:
    """The edits that change nothing, by exercise."""
    if not EQUIVALENT.exists():
        return {}
    found: dict[str, list[str]] = {}
    for entry in tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("equivalent", []):
        if not entry["reason"]:
            raise ValueError(f"{EQUIVALENT.name}: {entry['edits']} need a reason")
        found.setdefault(entry["exercise"], []).extend(entry["edits"])
    return found


def wanted(arguments: Sequence[str]) -> list[Exercise]:
    """The graded exercises with these numbers, or of these chapters. Raises: ValueError."""
    known = [e for group in answers.chapters().values() for e in group if isinstance(e, Exercise)]
    for argument in arguments:
        if not any(argument in (e.id, e.id[:2]) for e in known):
            raise ValueError(f"{argument} is neither a chapter nor an exercise that is graded")
    return [e for e in known if not arguments or {e.id, e.id[:2]} & set(arguments)]


def show(exercise: Exercise, report: Report, seconds: float) -> None:
    print(
        f"{exercise.id}  {report.mutants:4d} mutants, {report.refused:4d} refused, "
        f"{report.equivalent:3d} equivalent, {len(report.survivors):3d} survive   {seconds:.0f} s",
        flush=True,
    )
    for label, seeds in report.survivors.items():
        old, _, new = label.partition(" -> ")
        print(f"    on {seeds} of {len(SEEDS)} seeds" + f"\n      - {old}\n      + {new}")
    for text in report.single:
        print(f"    {text}")
    for label in report.stale:
        print(f"    listed as equivalent, but no such mutant survives: {label}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("exercises", nargs="*", metavar="CHAPTER or EXERCISE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args()
    try:
        exercises = wanted(options.exercises)
    except ValueError as error:
        parser.error(str(error))
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    figures = {}
    if options.out.exists():
        figures = json.loads(options.out.read_text(encoding="utf-8"))["exercises"]
    equivalent, complete = listed(), True
    jax.numpy.ones(3).block_until_ready()
    limit_memory()
    for exercise in exercises:
        begin = time.perf_counter()
        space = names(exercise.id[:2])
        report = examine(exercise, solution(exercise), space, equivalent.get(exercise.id, ()))
        show(exercise, report, time.perf_counter() - begin)
        complete &= report.complete
        figures[exercise.id] = {
            "mutants": report.mutants,
            "refused": report.refused,
            "equivalent": report.equivalent,
            "survivors": list(report.survivors),
            "one value only": report.single,
        }
    known = {e.id for e in wanted([])}
    text = {
        "machine": machine.describe(),
        "seeds": [list(seed) for seed in SEEDS],
        "exercises": {name: figures[name] for name in sorted(figures) if name in known},
    }
    options.out.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
