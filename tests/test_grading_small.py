"""What NumPy computes in XLA's place is what XLA computes, and the rest is left to XLA."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy.special import erfc, erfinv, logsumexp
from jax.scipy.stats import norm

from diffusion_course.grading import small

COMPILED = "/jax/core/compile/backend_compile_duration"
_programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: _programs.append(event) if event == COMPILED else None
)

_RNG = np.random.default_rng(5)
X = _RNG.normal(size=(3, 4)).astype(np.float32)
Y = _RNG.normal(size=(3, 4)).astype(np.float32)
SQUARE = _RNG.normal(size=(2, 3, 3)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.1)
ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 2e-39, -2e-39, 0.5, 1.5, -2.5], np.float32)
WHOLE = np.array([[3, -2, 7], [2**31 - 1, -(2**31), 0]], np.int32)
TRUTH = X > 0

FUNCTIONS = {
    "arithmetic": (lambda x, y: (x + y) * 2 - x / (y + 3) + 1 / x - -y, X, Y),
    "of odd numbers": (lambda x: (x + 1, x * 3, 2 - x, x / x, 1 / x, abs(x), -x), ODD),
    "below 1e-38": (lambda x: (x * 1e-37, jnp.exp(-x), jnp.exp(-x) * 1e20), X * 5 + 92),
    "whole numbers": (lambda n: (n + 1, n * 3, n - n[::-1], abs(n), -n, n**2, jnp.sign(n)), WHOLE),
    "whole beside others": (lambda n, x: (n * 0.5, n + x[:2, :3], n / 2, n > x[0, 0]), WHOLE, X),
    "powers": (lambda x: (x**2, x**3, x**-2, x**0, x**0.5, x**-1.5, 2.0**x), POSITIVE),
    "powers of odd numbers": (lambda x: (x**2, x**-1, x**0, x**0.5, jnp.square(x)), ODD),
    "exp": (lambda x: (jnp.exp(x), jnp.expm1(x), jnp.exp2(x), jnp.exp(90 * x)), X),
    "exp of odd numbers": (lambda x: (jnp.exp(x), jnp.expm1(x)), ODD),
    "log": (lambda x: (jnp.log(x), jnp.log1p(x), jnp.log2(x)), POSITIVE),
    "log of odd numbers": (lambda x: (jnp.log(x), jnp.log1p(x)), ODD),
    "roots": (lambda x: (jnp.sqrt(x), lax.rsqrt(x)), np.append(POSITIVE, ODD)),
    "waves": (lambda x: (jnp.sin(x), jnp.cos(x), jnp.tan(x), jnp.tanh(x)), 5 * X),
    "angles": (lambda x, y: (jnp.arctan2(x, y), jnp.arctan(x)), X, Y),
    "angles in a circle": (lambda x: (jnp.arcsin(x), jnp.arccos(x)), np.sin(Y)),
    "networks": (lambda x: (jax.nn.silu(x), jax.nn.sigmoid(x), jax.nn.relu(x)), 5 * X),
    "softmax": (lambda x: (jax.nn.softmax(x), logsumexp(x, axis=1), jax.nn.softplus(x)), 9 * X),
    "error functions": (lambda x: (norm.cdf(x), erfc(x), erfinv(jnp.tanh(x))), 2 * X),
    "remainders": (lambda x, y: (x % y, jnp.fmod(x, y), x // y), 3 * X, POSITIVE),
    "rounded": (lambda x: (jnp.floor(x), jnp.ceil(x), jnp.round(x), jnp.sign(x)), 5 * X),
    "rounded odd numbers": (lambda x: (jnp.floor(x), jnp.round(x), jnp.sign(x)), ODD),
    "compared": (lambda x, y: (x < y, x <= y, x > y, x >= y, x == y, x != y), X, Y),
    "compared odd numbers": (lambda x: (x < 0, x >= 0, x == 0, x != x, jnp.isfinite(x)), ODD),
    "larger": (lambda x: (jnp.maximum(x, 0), jnp.minimum(x, 0), jnp.clip(x, -1, 1)), ODD),
    "truths": (lambda t, x: (t & (x > 1), t | (x > 1), t ^ (x > 1), ~t), TRUTH, X),
    "all and any": (lambda t: (t.all(), t.any(0), t.all(1), t.sum(1)), TRUTH),
    "chosen": (lambda t, x, y: (jnp.where(t, x, y), jnp.where(t, x, 0)), TRUTH, X, Y),
    "types": (lambda x, t: (x.astype(int), t.astype(jnp.float32), t * 1, x * t), 5 * X, TRUTH),
    "sums": (lambda x: (x.sum(), x.mean(1), x.var(0), jnp.prod(x, 1), x.max(), x.min(0)), X),
    "sums of odd numbers": (lambda x: (x.sum(), x.max(), x.min(), jnp.nansum(x)), ODD),
    "sums of whole numbers": (lambda n: (n.sum(), n.max(0), n.mean(1)), WHOLE),
    "cumulated": (lambda x: (jnp.cumsum(x, 1), jnp.cumprod(x), lax.cumsum(x, 1, reverse=True)), X),
    "places": (lambda x: (x.argmax(), x.argmin(1), jnp.argmax(x, 0)), X),
    "places of odd numbers": (lambda x: (x.argmax(), x[:4].argmin()), ODD),
    "shapes": (lambda x: (x.reshape(2, -1), x.T, x[None], x[:, :, None, None].squeeze(-1)), X),
    "wide": (lambda x: (jnp.broadcast_to(x[:, None], (3, 2, 4)), jnp.zeros((2, 3)), x + x[0]), X),
    "pieces": (lambda x: (x[1], x[1:], x[-1, 2], x[::-1], jnp.flip(x, 1), *x), X),
    # Some versions of JAX take steps by an array of places, which is XLA's here.
    "every second": (lambda x: lax.slice(x, (1, 0), (3, 4), (1, 2)), X),
    "at a place": (lambda x: (lax.dynamic_slice(x, (1, 3), (2, 2)), x[:, -2]), X),
    "at places": (lambda x, n: (x[n], x[:, n], x[n[None]], x[-n]), X, np.array([2, 0])),
    "joined": (lambda x, y: (jnp.concatenate([x, y], 1), jnp.stack([x, y], 2)), X, Y),
    "apart": (lambda x: (*jnp.split(x, 2, axis=1), *jnp.split(x, [1], axis=0)), X),
    "around": (lambda x: (jnp.pad(x, 1), jnp.pad(x, ((0, 1), (2, 0)), constant_values=3)), X),
    "counted": (lambda x: (jnp.arange(3.0) * x[:, 0], jnp.eye(3), jnp.linspace(0, 1, 4)), X),
    "copied": (lambda x: (jnp.array(x, copy=True), lax.stop_gradient(x)), X),
    "products": (lambda x, y: (x @ y.T, x[0] @ y[1], x @ y[0], jnp.einsum("ij,ij->j", x, y)), X, Y),
    "many products": (lambda a: (a @ a, a @ a[0], jnp.einsum("bij,bkj->bki", a, a)), SQUARE),
    "gradients": (lambda x: jax.grad(lambda x: (jnp.exp(-x) * x[:, :2].sum()).mean())(x), X),
    "jvp": (lambda x, y: jax.jvp(lambda x: jax.nn.relu(x) * jnp.tanh(x), (x,), (y,)), X, Y),
    "vmap": (lambda a: jax.vmap(lambda m: m @ m[0])(a), SQUARE),
    "jit": (lambda x, y: jax.jit(lambda x, y: jnp.where(x > y, x * y, x.sum()))(x, y), X, Y),
}  # fmt: skip


def _both(function, arguments):
    """XLA's results and NumPy's, and how many programs were compiled for NumPy's.

    XLA compiles the whole function at once, which is quicker, and NumPy goes line by line.
    """
    given = tuple(map(jnp.asarray, arguments))
    right = jax.tree.leaves(jax.jit(function)(*given))
    with small.installed() as there:
        assert there, "this JAX cannot do without XLA"
        before = len(_programs)
        got = jax.tree.leaves(function(*given))
        compiled = len(_programs) - before
    return right, got, compiled


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_computes_what_xla_computes(name):
    function, *arguments = FUNCTIONS[name]
    right, got, compiled = _both(function, arguments)
    assert compiled == 0, "XLA was needed, so no rule was tried"
    assert len(got) == len(right)
    for a, b in zip(right, got, strict=True):
        assert isinstance(b, jax.Array)
        assert (a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type)
        # Sums of a few float32 numbers, in another order: some roundings of 6e-8.
        np.testing.assert_allclose(b, a, rtol=3e-6, atol=1e-6 if a.dtype == np.float32 else 0)


def _operations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                yield from _operations(value.jaxpr)


def test_every_rule_is_tried():
    tried = set()
    for function, *arguments in FUNCTIONS.values():
        tried.update(_operations(jax.make_jaxpr(function)(*arguments).jaxpr))
    names_elsewhere = {"pjit", "jit", "copy_p", "copy", "stop_gradient", "unstack", "stack"}
    names_elsewhere |= {
        "split",
        "square",
        "clamp",
        "exp2",
        "tan",
        "erf_inv",
        "asin",
        "acos",
    }  # not in every JAX
    assert set(small._RULES) - tried <= names_elsewhere


OTHERS = {
    "random numbers": (lambda: jax.random.normal(jax.random.key(0), (3,)),),
    "a loop": (lambda x: lax.scan(lambda c, row: (c + row, c), x[0], x), X),
    "a place outside": (lambda x: jnp.take(x, jnp.array([2, 7]), 0), X),
    "other places": (lambda x: x[jnp.array([2, 0]), jnp.array([1, 1])], X),
    "a new value": (lambda x: x.at[1].set(0), X),
    "too large for a whole number": (lambda x: (x * 1e12).astype(int), X),
    "another type": (lambda x: x.astype(jnp.bfloat16) * 2, X),
    "many numbers": (lambda x: jnp.ones((200, 100)) * 2, X),
    "a quotient of whole numbers": (lambda n: lax.div(n, jnp.int32(2)), WHOLE),
    "a shift": (lambda n: n << 1, WHOLE),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_known_is_xlas(name):
    function, *arguments = OTHERS[name]
    right, got, compiled = _both(function, arguments)
    assert compiled > 0
    for a, b in zip(right, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors_are_jaxs_own():
    def decide(x):
        return x if x > 0 else -x

    with small.installed():
        with pytest.raises(jax.errors.TracerBoolConversionError):
            jax.jit(decide)(1.0)
        with pytest.raises(TypeError, match="incompatible shapes"):
            jnp.ones(3) + jnp.ones(4)
        with pytest.raises(TypeError, match="item assignment"):
            jnp.ones(3)[0] = 1
        assert float(decide(jnp.float32(-2))) == 2


def test_debug_nans_is_obeyed():
    with small.installed(), jax.debug_nans(True), pytest.raises(FloatingPointError):
        jnp.log(jnp.full(3, -1.0))


def test_a_result_does_not_change_with_the_array_it_came_from():
    with small.installed():
        table = np.ones(64, np.float32)
        view = jax.jit(lambda x: x.reshape(8, 8))(table)
        table[:] = 5
        assert (np.asarray(view) == 1).all()


def test_what_is_called_often_is_compiled():
    """An operation takes NumPy some 0.2 ms and XLA 0.01 ms, so a loop must not stay with NumPy."""
    x = jnp.asarray(X)
    with small.installed():
        before = len(_programs)
        for _ in range(400):
            x = x + 1
        assert len(_programs) == before + 1
    np.testing.assert_allclose(x, X + 400, rtol=1e-4)


def test_programs_that_are_gone_are_not_counted():
    with small.installed():
        for n in range(3, 8):
            jax.jit(lambda x, n=n: x * n)(jnp.asarray(X))
    gc.collect()
    assert len(small._calls) < 1000


def test_afterwards_xla_is_back():
    with small.installed():
        pass
    before = len(_programs)
    jnp.asarray(X) * 2
    assert len(_programs) > before
