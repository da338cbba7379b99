"""Each exercise is graded alone: what an answer may use.

An answer may use JAX, NumPy, SciPy and any other package, and functions, classes and constants of
the student's own, in whatever cell they stand. It may not use the function of another exercise of
its notebook, unless its own cell defines it too; and of `diffusion_course` it may use only what the
exercise's cells import, which is seldom anything. `check` and the batch grader ask the same
question of the same object, the function, before they call it.

It is a rule for honest people: it reads what a function refers to, and does not run it.
"""

from __future__ import annotations

import dis
import functools
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

_PACKAGE = __package__.partition(".")[0]
_INSIDE = re.compile(rf"{_PACKAGE}(\.\w+)*")
_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_MANY = 1000  # entries of a list, and values in all: nobody's answer refers to more


def refusal(answer: Any, others: Mapping[str, str], library: tuple[str, ...] | list[str]) -> str:
    """Why an answer is not judged; empty if it uses nothing that it must not.

    Args:
      answer: the function, or what else is called like one.
      others: the functions of the notebook's other exercises, and whose they are.
      library: what the exercise's cells import from `diffusion_course`, with its whole name.
    """
    search = _Search(answer, others, tuple(library))
    for use, helper in search.uses():
        return use + (f" (your function {helper} does)" if helper else "")
    return ""


class _Search:
    """All that a function can reach, without what belongs to other packages."""

    def __init__(self, answer: Any, others: Mapping[str, str], library: tuple[str, ...]):
        self.answer, self.others, self.library = answer, others, library
        code = _code(answer)
        # A partial of another exercise's function has no cell of its own that would show.
        self.home = code.co_filename if code and code.co_name not in others else ""
        self.seen: dict[int, Any] = {}  # holds the values, so that no two have one id

    def uses(self) -> Iterator[tuple[str, str]]:
        """What must not be used, and the helper that uses it, or "" for the answer itself."""
        todo = [("", self.answer, "")]
        while todo and len(self.seen) < _MANY:
            name, value, helper = todo.pop(0)
            if id(value) in self.seen:
                continue
            self.seen[id(value)] = value
            try:
                problem = self._problem(name, value)
                inside = [] if problem else list(self._inside(value, name or helper))
            except Exception:  # a strange object of the student's
                continue
            if problem:
                yield problem, helper
            todo += inside

    def _problem(self, name: str, value: Any) -> str:
        exercise = self._other(name, value)
        if exercise:
            return (
                f"your answer calls {self._called(name, value)}, the function of exercise "
                f"{exercise}: each exercise is graded alone, so write what you need of it into "
                "this cell, too"
            )
        origin = _origin(value)
        if _INSIDE.fullmatch(origin) and not self._allowed(origin):
            only = ", ".join(path.rpartition(".")[2] for path in self.library)
            return (
                f"your answer uses {origin}: each exercise is graded alone, and of {_PACKAGE} an "
                f"answer may use only what the exercise's cells import ({only or 'here nothing'})"
            )
        return ""

    def _other(self, name: str, value: Any) -> str:
        """The exercise whose function this is, or ""; the answer's own cell may define it anew."""
        if value is self.answer or not callable(value) or _file(value) in (None, self.home):
            return ""
        return self.others.get(self._called(name, value), "")

    def _called(self, name: str, value: Any) -> str:
        code = _code(value)
        return code.co_name if code is not None and code.co_name in self.others else name

    def _allowed(self, origin: str) -> bool:
        return any(origin == path or origin.startswith(f"{path}.") for path in self.library)

    def _inside(self, value: Any, name: str) -> Iterator[tuple[str, Any, str]]:
        """What a value refers to, each with its name and the helper it was found in."""
        helper = "" if value is self.answer else name
        for part in _parts(value):
            yield "", part, helper
        if isinstance(value, types.FunctionType):
            if not _is_own(value):
                return
            if helper:
                helper = value.__name__
            for found, part in self._referred(value.__code__, value.__globals__):
                yield found, part, helper

    def _referred(self, code: types.CodeType, space: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """Global names of a code and of those inside it, with their values; what it imports."""
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from self._referred(constant, space)
            elif isinstance(constant, str) and _INSIDE.fullmatch(constant):
                yield "", _Named(constant)  # for importlib
        steps = list(dis.get_instructions(code))
        for number, step in enumerate(steps, start=1):
            if step.opname in _GLOBAL and step.argval in space:
                yield step.argval, self._followed(space[step.argval], steps[number:])
            elif step.opname == "IMPORT_NAME" and _INSIDE.fullmatch(step.argval or ""):
                names = [f"{step.argval}.{name}" for name in _imported(steps[number:])]
                for found in names or [step.argval]:
                    yield "", _Named(found)

    def _followed(self, value: Any, steps: list[dis.Instruction]) -> Any:
        """What an expression such as ``bound.gaussian_kl`` means: the module's own object."""
        for step in steps:
            ours = isinstance(value, types.ModuleType) and _INSIDE.fullmatch(value.__name__)
            if not ours or step.opname not in _ATTRIBUTE or self._allowed(value.__name__):
                break
            value = getattr(value, step.argval, _Named(f"{value.__name__}.{step.argval}"))
        return value


def _imported(steps: list[dis.Instruction]) -> Iterator[str]:
    """The names that a ``from … import`` takes, from what follows it."""
    for step in steps:
        if step.opname == "IMPORT_FROM":
            yield step.argval
        elif not step.opname.startswith("STORE_"):
            break


class _Named(str):
    """The whole name of something that is imported or named in a function's text."""


def _parts(value: Any) -> Iterator[Any]:
    """What a value holds, if that may be the student's own."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, staticmethod | classmethod):
        yield value.__func__
    elif isinstance(value, property):
        yield from (value.fget, value.fset)
    elif isinstance(value, dict):
        yield from list(value.values())[:_MANY]
    elif isinstance(value, list | tuple | set | frozenset):
        yield from list(value)[:_MANY]
    elif isinstance(value, type):
        if value.__module__ == "__main__":
            yield from (*vars(value).values(), *value.__mro__[1:-1])
    elif isinstance(value, types.FunctionType):
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not bound yet
                continue
    elif type(value).__module__ == "__main__":
        yield from (type(value), *getattr(value, "__dict__", {}).values())
    if callable(value) and not isinstance(value, type):
        wrapped = _attribute(value, "__wrapped__")  # jit's, vmap's, a decorator's
        if wrapped is not None:
            yield wrapped


def _origin(value: Any) -> str:
    """Where in the course's package a value comes from; empty for everything else."""
    if isinstance(value, _Named):
        return str(value)
    if isinstance(value, types.ModuleType):
        return value.__name__ if _INSIDE.fullmatch(value.__name__) else ""
    for thing in (value, type(value)):
        module = getattr(thing, "__module__", None)
        if isinstance(module, str) and _INSIDE.fullmatch(module):
            return f"{module}.{getattr(thing, '__qualname__', type(value).__qualname__)}"
    return ""


def _is_own(function: types.FunctionType) -> bool:
    """Whether a notebook's cell defines it: a decorated one carries another's name and module."""
    return function.__globals__.get("__name__") == "__main__"


def _code(value: Any) -> types.CodeType | None:
    """The code that a student wrote for a function, under what was wrapped around it."""
    for _ in range(20):
        if isinstance(value, types.FunctionType) and _is_own(value):
            return value.__code__
        inner = value.func if isinstance(value, functools.partial) else None
        inner = inner or _attribute(value, "__func__") or _attribute(value, "__wrapped__")
        if inner is None and not isinstance(value, type):
            # An object of the student's own class.
            inner = inspect.getattr_static(type(value), "__call__", None)
        if inner is None:
            return None
        value = inner
    return None


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # a strange object of the student's
        return None


def _file(value: Any) -> str | None:
    """The cell that defines a function, by the name that its kernel has given it."""
    code = _code(value)
    return None if code is None else code.co_filename
