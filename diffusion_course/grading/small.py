"""Small programs without a compiler: what JAX would compile for a few numbers, NumPy computes.

JAX runs Python's lines one operation at a time, and compiles a program for each operation and
shape: 40 to 60 ms for an addition of twelve numbers, which was nearly all the time of grading. In
the sandbox, where every exercise begins anew, `install` takes XLA's place for such programs: JAX
traces them as ever, with all its checks and errors, and NumPy follows the trace, operation by
operation. A result differs from XLA's by rounding only.

Whatever is not known here goes to XLA: other types than float32, int32 and bool, many numbers,
random keys, loops, most indices that are arrays, effects, several devices, and what is called
often. `check` in a notebook does not use this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from scipy import special

_LARGEST = 1 << 14  # values of an array
_OFTEN = 2000  # calls times operations: beyond, a program is worth its compilation
_DTYPES = tuple(map(np.dtype, ("float32", "int32", "bool")))
_TINY = np.finfo(np.float32).tiny


class _Unknown(Exception):
    """This program, or these values of it, are for XLA."""


def install() -> bool:
    """From now on, NumPy computes small programs in this process. False where JAX is another."""
    try:
        from jax._src import pjit

        if pjit._pjit_call_impl_python is not _call:
            _xla.append(pjit._pjit_call_impl_python)
            pjit._pjit_call_impl_python = _call
    except (ImportError, AttributeError):
        return False
    return True


@contextmanager
def installed() -> Iterator[bool]:
    """`install` for a while, with none of JAX's compiled programs before and after."""
    jax.clear_caches()
    try:
        yield install()
    finally:
        if _xla:
            from jax._src import pjit

            pjit._pjit_call_impl_python = _xla.pop()
        jax.clear_caches()


_xla: list[Callable[..., Any]] = []  # what compiles and runs a program
_calls: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # of each program, so far


def _call(*args, **params):
    """In the place of JAX's own: the results, and no program to keep."""
    try:
        results = _results(args, params)
    except Exception:  # also a change in JAX: XLA does it as ever
        return _xla[-1](*args, **params)
    return results, None, None, []


def _results(args: Sequence[Any], params: dict[str, Any]) -> list[jax.Array]:
    closed = params["jaxpr"]
    strict = jax.config.jax_debug_nans or jax.config.jax_debug_infs or jax.config.jax_enable_x64
    if strict or closed.effects or any(params["donated_invars"]):
        raise _Unknown
    _calls[closed] = calls = _calls.get(closed, 0) + 1
    if calls * (10 + len(closed.jaxpr.eqns)) > _OFTEN:
        raise _Unknown
    _check(closed.jaxpr)
    for arg in args:
        if isinstance(arg, jax.Array) and len(arg.devices()) > 1:
            raise _Unknown
    with np.errstate(all="ignore"):
        found = _evaluate(closed, args)
    return [_on_device(x, v.aval) for x, v in zip(found, closed.jaxpr.outvars, strict=True)]


def _check(jaxpr: Any) -> None:
    """Raises: _Unknown unless NumPy can do all of it."""
    for variable in (*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars):
        _fits(variable.aval)
    for equation in jaxpr.eqns:
        if equation.primitive.name not in _RULES:
            raise _Unknown(equation.primitive.name)
        for variable in equation.outvars:
            _fits(variable.aval)


def _fits(aval: Any) -> None:
    if aval.dtype not in _DTYPES or aval.size > _LARGEST:
        raise _Unknown(str(aval))


def _evaluate(closed: Any, args: Sequence[Any]) -> list[np.ndarray]:
    """The results of a traced program, operation by operation."""
    jaxpr, values = closed.jaxpr, {}
    inputs = zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True)
    for variable, value in inputs:
        values[variable] = _as(value, variable.aval)

    def read(atom: Any) -> np.ndarray:
        return _as(atom.val, atom.aval) if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        found = _RULES[equation.primitive.name](*map(read, equation.invars), **equation.params)
        found = found if equation.primitive.multiple_results else [found]
        for variable, value in zip(equation.outvars, found, strict=True):
            values[variable] = _as(value, variable.aval)
    return [read(atom) for atom in jaxpr.outvars]


def _as(value: Any, aval: Any) -> np.ndarray:
    """A value of this shape and type. Raises: _Unknown if it is of another shape or kind."""
    array = np.asarray(value)
    if array.shape != aval.shape or not np.can_cast(array.dtype, aval.dtype, "same_kind"):
        raise _Unknown(f"{array.dtype}{array.shape} for {aval}")
    return array.astype(aval.dtype, copy=False)


def _on_device(value: np.ndarray, aval: Any) -> jax.Array:
    array = jax.device_put(np.array(value))  # a copy: NumPy's arrays can change
    if isinstance(array, jax.core.Tracer):
        raise _Unknown
    if aval.weak_type:
        shape = array.aval.update(weak_type=True)
        array = type(array)(shape, array.sharding, array._arrays, committed=False)
    return array


# --- What each operation of JAX is in NumPy ----------------------------------------------------
def _normal(array: np.ndarray) -> np.ndarray:
    """Without the numbers below 1e-38, which XLA's programs take for 0."""
    if array.dtype != np.float32 or not (small := np.abs(array) < _TINY).any():
        return array
    return np.where(small, np.copysign(np.float32(0), array), array)


def _float(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A rule for float32 alone."""

    def rule(*arrays, accuracy=None, **params):
        if accuracy is not None or any(a.dtype != np.float32 for a in arrays):
            raise _Unknown
        return _normal(np.asarray(function(*map(_normal, arrays), **params)))

    return rule


def _any(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A rule for all types; whole numbers wrap around in NumPy as they do in XLA."""

    def rule(*arrays, **params):
        return _normal(np.asarray(function(*map(_normal, arrays), **params)))

    return rule


def _truth(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A rule for bool alone."""

    def rule(*arrays, **params):
        if any(a.dtype != np.bool_ for a in arrays):
            raise _Unknown
        return function(*arrays, **params)

    return rule


def _over_axes(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, *, axes, **params: _plain(params) or function(x, axis=tuple(axes))


def _plain(params: dict[str, Any]) -> None:
    """Raises: _Unknown where a parameter that is seldom used is used."""
    if any(value is not None for value in params.values()):
        raise _Unknown


def _times(x, y, *, out_dtype=None):
    if out_dtype is not None and np.dtype(out_dtype) != x.dtype:
        raise _Unknown
    return x * y


def _integer_pow(x, *, y):
    if x.dtype != np.float32 and y < 0:
        raise _Unknown
    return x**y if y >= 0 else 1 / x**-y


def _round(x, *, rounding_method):
    if int(rounding_method) == 1:  # a half to the even number, as NumPy does
        return np.rint(x)
    whole = np.trunc(x)  # a half away from zero
    return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)


def _power(x, y):
    # NumPy takes a root where one exponent is 0.5, and a root of −∞ is no number.
    return np.power(*map(np.array, np.broadcast_arrays(x, y)))


def _convert(x, *, new_dtype, weak_type, sharding=None):
    if np.dtype(new_dtype) == np.int32 and x.dtype == np.float32 and not (np.abs(x) < 2**31).all():
        raise _Unknown  # what is too large for a whole number is each processor's own
    return x.astype(new_dtype)


def _select(which, *cases):
    if which.dtype != np.bool_ or len(cases) != 2:
        raise _Unknown
    return np.where(which, cases[1], cases[0])


def _broadcast(x, *, shape, broadcast_dimensions, sharding=None):
    wide = [1] * len(shape)
    for axis, length in zip(broadcast_dimensions, x.shape, strict=True):
        wide[axis] = length
    return np.broadcast_to(x.reshape(wide), shape)


def _reshape(x, *, new_sizes, dimensions=None, sharding=None):
    _plain({"dimensions": dimensions})
    return x.reshape(new_sizes)


def _slice(x, *, start_indices, limit_indices, strides):
    steps = strides or [1] * x.ndim
    bounds = zip(start_indices, limit_indices, steps, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


def _dynamic_slice(x, *starts, slice_sizes):
    starts = [
        np.clip(s, 0, n - size) for s, n, size in zip(starts, x.shape, slice_sizes, strict=True)
    ]
    return x[tuple(slice(s, s + size) for s, size in zip(starts, slice_sizes, strict=True))]


def _gather(x, places, *, dimension_numbers, slice_sizes, **_):
    """Whole rows, or what is a row along one axis, at places that exist."""
    d, within = dimension_numbers, places.ndim - 1
    axis, *more = d.collapsed_slice_dims or (0,)
    rest = [n for n in range(x.ndim - 1 + within) if not axis <= n < axis + within]
    sizes = [1 if n == axis else size for n, size in enumerate(x.shape)]
    one = not more and tuple(d.start_index_map) == tuple(d.collapsed_slice_dims) == (axis,)
    if d.operand_batching_dims or not one or rest != list(d.offset_dims):
        raise _Unknown
    if sizes != list(slice_sizes) or (places < 0).any() or (places >= x.shape[axis]).any():
        raise _Unknown
    return np.take(x, places[..., 0], axis)


def _pad(x, value, *, padding_config):
    if any(low < 0 or high < 0 or between for low, high, between in padding_config):
        raise _Unknown
    widths = [(low, high) for low, high, _ in padding_config]
    return np.pad(x, widths, constant_values=value)


def _split(x, *, sizes, axis):
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _unstack(x, *, axis):
    return list(np.moveaxis(x, axis, 0))


def _stack(*arrays, axis):
    return np.stack(arrays, axis)


def _iota(*, dtype, shape, dimension, sharding=None):
    along = [1] * len(shape)
    along[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(along), shape)


def _cumulated(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def rule(x, *, axis, reverse):
        return np.flip(function(np.flip(x, axis), axis), axis) if reverse else function(x, axis)

    return rule


def _arg(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, *, axes, index_dtype: function(x, axes[0]).astype(index_dtype)


def _dot(a, b, *, dimension_numbers, **params):
    (sum_a, sum_b), (same_a, same_b) = dimension_numbers
    names = iter(range(a.ndim + b.ndim))
    of_a = [next(names) for _ in range(a.ndim)]
    of_b = [None] * b.ndim
    for one, other in zip((*sum_a, *same_a), (*sum_b, *same_b), strict=True):
        of_b[other] = of_a[one]
    of_b = [next(names) if name is None else name for name in of_b]
    rest = [n for i, n in enumerate(of_a) if i not in (*sum_a, *same_a)]
    rest += [n for i, n in enumerate(of_b) if i not in (*sum_b, *same_b)]
    return np.einsum(a, of_a, b, of_b, [of_a[i] for i in same_a] + rest)


def _inner(*args, jaxpr, **_):
    return _program(jaxpr, args)


def _custom(*args, call_jaxpr, **_):
    return _program(call_jaxpr, args)


def _program(closed: Any, args: Sequence[np.ndarray]) -> list[np.ndarray]:
    if closed.effects:
        raise _Unknown
    _check(closed.jaxpr)
    return _evaluate(closed, args)


_RULES: dict[str, Callable[..., Any]] = {
    **{
        name: _float(function)
        for name, function in {
            "exp": np.exp,
            "exp2": np.exp2,
            "expm1": np.expm1,
            "log": np.log,
            "log1p": np.log1p,
            "sin": np.sin,
            "cos": np.cos,
            "tan": np.tan,
            "tanh": np.tanh,
            "asin": np.arcsin,
            "acos": np.arccos,
            "atan": np.arctan,
            "atan2": np.arctan2,
            "sqrt": np.sqrt,
            "rsqrt": lambda x: 1 / np.sqrt(x),
            "logistic": lambda x: 1 / (1 + np.exp(-x)),
            "erf": special.erf,
            "erfc": special.erfc,
            "erf_inv": special.erfinv,
            "pow": _power,
            "div": np.divide,
            "rem": np.fmod,
            "floor": np.floor,
            "ceil": np.ceil,
            "round": _round,
            "is_finite": np.isfinite,
            "dot_general": _dot,
        }.items()
    },
    **{
        name: _any(function)
        for name, function in {
            "add": np.add,
            "add_any": np.add,
            "sub": np.subtract,
            "mul": _times,
            "neg": np.negative,
            "abs": np.abs,
            "sign": lambda x: np.where(x == 0, x, np.sign(x)),
            "square": np.square,
            "integer_pow": _integer_pow,
            "max": np.maximum,
            "min": np.minimum,
            "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "reduce_sum": _over_axes(np.sum),
            "reduce_prod": _over_axes(np.prod),
            "reduce_max": _over_axes(np.max),
            "reduce_min": _over_axes(np.min),
            "cumsum": _cumulated(np.cumsum),
            "cumprod": _cumulated(np.cumprod),
            "convert_element_type": _convert,
            "argmax": _arg(np.argmax),
            "argmin": _arg(np.argmin),
        }.items()
    },
    "not": _truth(np.logical_not),
    "and": _truth(np.logical_and),
    "or": _truth(np.logical_or),
    "xor": _truth(np.logical_xor),
    "reduce_and": _truth(_over_axes(np.all)),
    "reduce_or": _truth(_over_axes(np.any)),
    "select_n": _select,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
    "rev": lambda x, *, dimensions: np.flip(x, tuple(dimensions)),
    "concatenate": lambda *arrays, dimension: np.concatenate(arrays, dimension),
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "pad": _pad,
    "split": _split,
    "unstack": _unstack,
    "stack": _stack,
    "iota": _iota,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "stop_gradient": lambda x: x,
    "jit": _inner,
    "pjit": _inner,
    "custom_jvp_call": _custom,
}
