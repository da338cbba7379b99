"""Calling a student's function: whatever it does, the outcome is arrays or a `Failure`."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course.grading import arrays
from diffusion_course.grading.arrays import as_result
from diffusion_course.grading.exercise import RAISED, Arguments, Failure, Result

_LONGEST_MESSAGE = 300


class _Signature(TypeError):
    """The function does not take the exercise's arguments."""


def call(
    function: Callable[..., Any], arguments: Arguments, names: Sequence[str] = ()
) -> Result | Failure:
    """What the function returns for copies of these arguments, or why it returns nothing.

    Args:
      function: the student's.
      arguments: a case's.
      names: of the arguments, by which keyword-only ones are passed.
    """
    try:
        given = tuple(map(_given, arguments))
        positional, named = _bound(function, given, names)
        # A TPU would multiply matrices in bfloat16, and a right answer would look wrong.
        with jax.default_matmul_precision("highest"):
            return as_result(function(*positional, **named))
    except _Signature as error:
        return Failure("error", _short(str(error)))
    except Exception as error:
        return failure(error)
    except SystemExit:
        return Failure("error", "your code ends the program: remove exit() or sys.exit()")


def _bound(
    function: Callable[..., Any], given: Arguments, names: Sequence[str]
) -> tuple[Arguments, dict[str, Any]]:
    """The arguments as the function takes them. Raises: _Signature if it does not."""
    try:
        wanted = inspect.signature(function)
    except Exception:  # a program in C, or an object that objects: the call will tell
        return given, {}
    by_name = dict(zip(names, given, strict=False))
    for positional, named in ((given, {}), ((), by_name)):
        try:
            wanted.bind(*positional, **named)
            return positional, named
        except TypeError:
            continue
    takes = wanted.replace(return_annotation=inspect.Signature.empty)
    called = ", ".join(names) or f"{len(given)} positional arguments"
    raise _Signature(f"your function takes {takes}, but it is called with ({called})")


def failure(error: BaseException) -> Failure:
    """What a student reads about an exception of the code."""
    if isinstance(error, NotImplementedError):
        return Failure("not attempted", "not attempted yet")
    if isinstance(error, TypeError) and error.__traceback__ is not None:
        frames = traceback.extract_tb(error.__traceback__)
        # A wrong signature, or as_result's.
        if frames and frames[-1].filename in (__file__, arrays.__file__):
            return Failure("error", _short(str(error)))
    try:
        text = str(error)
    except Exception:  # the student's own exception, with a __str__ that raises
        text = "it cannot be shown"
    # A long text is cut, and not the line that the student must find.
    line = _short(_line(error), _LONGEST_MESSAGE // 2)
    text = _short(f"{RAISED}{type(error).__name__}: {text}", _LONGEST_MESSAGE - len(line) - 1)
    return Failure("error", f"{text} {line}".strip())


def _line(error: BaseException) -> str:
    """The last line of the student's own code, which is in no file of an installed package."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        # Jupyter's /tmp/ipykernel_7/8.py, Colab's /tmp/ipython-input-7-8.py, the sandbox's <cell 7>
        own = name.startswith("<") or "ipykernel_" in name or "ipython-input-" in name
        if own and frame.lineno:
            text = f": {frame.line.strip()}" if frame.line else ""
            return f"(line {frame.lineno}{text})"
    return ""


def _short(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _given(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return value.copy() if value.dtype == np.float64 else jnp.asarray(value)
