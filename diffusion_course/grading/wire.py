"""What crosses the sandbox's wall: JSON, whose arrays are base64. Nothing here can run code."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

import numpy as np

from diffusion_course.grading import text as texts
from diffusion_course.grading.exercise import Failure, Result
from diffusion_course.grading.inputs import FUNCTIONS

# Answers are small: the largest of the course has a few thousand numbers.
MAX_BYTES = 8_000_000
_DTYPES = {"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32"}
_DTYPES |= {"uint16", "uint8", "bool", "complex64", "complex128"}
_STATUSES = {"error", "not attempted"}
_MAX_ARRAYS = 16


class Malformed(ValueError):
    """A message that no honest program sends."""


def pack(value: Any) -> Any:
    """An argument or array as JSON."""
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": data}
    if type(value).__name__ in FUNCTIONS:
        return {"function": type(value).__name__, "settings": vars(value)}
    return {"value": value}


def unpack(message: Any) -> Any:
    """The inverse of `pack`, for messages from the grader itself."""
    if "function" in message:
        return FUNCTIONS[message["function"]](**message["settings"])
    return message["value"] if "value" in message else unpack_array(message)


def unpack_array(message: Any) -> np.ndarray:
    """An array from a message that nobody vouches for. Raises: Malformed."""
    try:
        dtype, shape, data = message["dtype"], message["shape"], message["data"]
    except (TypeError, KeyError) as error:
        raise Malformed("an array needs dtype, shape and data") from error
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise Malformed("an array's dtype must be a plain number's")
    if not isinstance(shape, list) or len(shape) > 16:
        raise Malformed("an array's shape must be a short list")
    if not all(type(n) is int and 0 <= n <= MAX_BYTES for n in shape):
        raise Malformed("an array's sizes must be whole numbers")
    try:
        content = base64.b64decode(data, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise Malformed("an array's data must be base64") from error
    if len(content) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise Malformed("an array's data must fill its shape")
    try:
        return np.frombuffer(content, dtype).reshape(shape)
    except ValueError as error:  # empty, and its other sizes too large to be multiplied
        raise Malformed("an array's sizes must fit into memory") from error


def pack_outcome(outcome: Result | Failure) -> dict:
    """What a student's function returned, as JSON."""
    if isinstance(outcome, Failure):
        return {"status": outcome.status, "message": outcome.message}
    if sum(array.nbytes for array in outcome) > MAX_BYTES // 2:
        return {"status": "error", "message": "your result is far too large"}
    if len(outcome) > _MAX_ARRAYS:
        text = f"your function returned {len(outcome)} arrays: make one array of them"
        return {"status": "error", "message": text}
    return {"arrays": [pack(_plain(array)) for array in outcome]}


def _plain(array: np.ndarray) -> np.ndarray:
    """An honest array in a dtype that passes: no other byte order, no extended precision."""
    array = np.asarray(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if str(array.dtype) in _DTYPES:
        return array
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def unpack_outcome(message: Any) -> Result | Failure:
    """The inverse, for a message that nobody vouches for. Raises: Malformed."""
    if not isinstance(message, dict):
        raise Malformed("an outcome must be an object")
    if "arrays" in message:
        arrays = message["arrays"]
        if not isinstance(arrays, list) or len(arrays) > _MAX_ARRAYS:
            raise Malformed("an outcome's arrays must be a short list")
        return tuple(unpack_array(array) for array in arrays)
    status, text = message.get("status"), message.get("message")
    if not isinstance(status, str) or status not in _STATUSES or not isinstance(text, str):
        raise Malformed("an outcome must have arrays, or a known status and a message")
    return Failure(status, texts.line(text[:400]))


def decode(line: bytes) -> Any:
    """One line of JSON. Raises: Malformed for anything else, however large or deep."""
    if len(line) > MAX_BYTES:
        raise Malformed("a message is too long")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed("a message must be JSON") from error
