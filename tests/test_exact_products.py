"""Products of float32 matrices are exact on every device, where a result is called exact.

A TPU rounds their entries to bfloat16 unless it is told otherwise, so each product must say so: in
the library where it stands, in notebooks by `setup`. A CPU shows no difference; what is tested is
what each program asks for.
"""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_course
from diffusion_course import (
    cascade,
    denoiser,
    discrete,
    discrete_exact,
    particles,
    process,
    rendering,
    rollouts,
    rotations,
)
from diffusion_course.linear_gaussian import full_mixture
from diffusion_course.models import counting, fast, layers
from diffusion_course.notebook import setup

LIBRARY = Path(diffusion_course.__file__).parent
# What networks compute in is their user's choice: `setup` makes it for notebooks.
NETWORKS = ("models", "training", "grading/answers")
PRODUCTS = ("matmul", "einsum", "tensordot", "dot", "vdot", "inner", "dot_general", "convolve")
# Files that use JAX, and how many products of NumPy's arrays they write as ``a @ b``.
OF_NUMPY = {
    "cascade.py": 9,
    "discrete_exact.py": 2,
    "evaluation/metrics.py": 11,
    "leaderboard/game.py": 3,
    "linear_gaussian.py": 8,
}
EXACT = (jax.lax.Precision.HIGHEST,) * 2


def without_precision(text):
    """The calls of JAX's products in a file's text that name no precision."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in PRODUCTS
        and ast.unparse(call.func.value) in ("jnp", "jax.lax", "lax")
        and not {"precision", None} & {keyword.arg for keyword in call.keywords}
    ]


def test_every_product_of_the_library_names_its_precision():
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        name = path.relative_to(LIBRARY).as_posix()
        if not name.startswith(NETWORKS) and (calls := without_precision(path.read_text("utf-8"))):
            found[name] = calls
    assert found == {}


def test_a_product_by_its_sign_is_one_of_numpy_s_arrays():
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        name, text = path.relative_to(LIBRARY).as_posix(), path.read_text("utf-8")
        signs = sum(isinstance(node, ast.MatMult) for node in ast.walk(ast.parse(text)))
        if signs and "jax.numpy" in text and not name.startswith(NETWORKS):
            found[name] = signs
    assert found == OF_NUMPY  # of a new one: does it multiply JAX's arrays?


def test_a_product_without_a_precision_is_noticed():
    text = 'jnp.matmul(a, b); np.matmul(a, b); jnp.einsum("i,i", a, b, precision="highest")'
    assert without_precision(text) == ["jnp.matmul(a, b)"]


def products(function, *arguments):
    """The precision of each product in a function's program, those of inner functions too."""

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                yield equation.params["precision"]
            for inner in counting._inner(equation):
                yield from inside(inner)

    return list(inside(jax.make_jaxpr(function)(*arguments).jaxpr))


P = process.vp_cosine()
RNG = np.random.default_rng(0)
X, KEY = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32), jax.random.key(0)
COVARIANCE = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]])
MIXTURE = full_mixture(P, RNG.normal(size=(2, 3)), [COVARIANCE] * 2, [0.3, 0.7])
STAGE = cascade.linear_stage(P, [0.1, 0.2, 0.3], COVARIANCE, [[1.0, 0.5, 0.0], [0, 0.3, 1]])
CLIPS = rollouts.GaussianClips(P, COVARIANCE, 0.3)
SEVEN = jnp.asarray(RNG.normal(size=(7, 3, 2)), jnp.float32)
CHAIN = discrete.uniform(3)
LETTERS = discrete.denoiser(
    discrete_exact.exact_model(CHAIN, RNG.dirichlet(np.ones(9)).reshape(3, 3)), CHAIN
)
FIELD = rendering.Field(jnp.ones((4, 4, 4)), jnp.ones((4, 4, 4, 3)))
CLOUD = particles.Particles(X, jnp.log(jnp.full(5, 0.2)), jnp.zeros(()), jnp.ones(2))

ORACLES = {
    "mean of a mixture": (lambda: MIXTURE.mean(), ()),
    "covariance of a mixture": (lambda: MIXTURE.covariance(), ()),
    "denoiser of a mixture": (lambda x: MIXTURE.denoise(x, 0.3), (X,)),
    "density of a mixture": (lambda x: MIXTURE.log_prob(x, 0.3), (X,)),
    "draws of a mixture": (lambda key: MIXTURE.sample(key, 4), (KEY,)),
    "stage of a cascade": (STAGE.given(X[:, :2], 0.2), (X, 0.3)),
    "denoiser of a data set": (denoiser.ideal(P, SEVEN[:, 0]), (X[:, :2], 0.3)),
    "denoiser of listed clips": (rollouts.ideal(P, SEVEN), (SEVEN[:5], 0.3)),
    "denoiser of clips": (lambda x: CLIPS.denoise(x, 0.3), (SEVEN,)),
    "draws of clips": (lambda key: CLIPS.sample(key, 4, (2,)), (KEY,)),
    "denoiser of words": (LETTERS, (jnp.array([[0, 1], [2, 1]]), 0.3)),
    "law of a sampler of words": (
        lambda: discrete_exact.distribution(CHAIN, LETTERS, 2, np.array([1.0, 0.5, 0])), ()),
    "mean of particles": (CLOUD.expect, (X,)),
    "a picture of a field": (lambda field: rendering.render(field, 0.3, 5), (FIELD,)),
    "a rotation by a vector": (rotations.from_vector, (X,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ORACLES)
def test_an_exact_result_asks_for_exact_products(name):
    function, arguments = ORACLES[name]
    found = products(function, *arguments)
    assert found and set(found) == {EXACT}


@pytest.fixture
def precision():
    """JAX's setting as it was, afterwards."""
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", None)
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.parametrize(("backend", "found"), [("cpu", None), ("gpu", EXACT), ("tpu", EXACT)])
def test_setup_makes_products_of_notebooks_exact(backend, found, precision, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    setup.setup(quiet=True, cache=False, exact=False)
    assert products(lambda a: a @ a.T, X) == [None]
    setup.setup(quiet=True, cache=False)
    assert products(lambda a: a @ a.T, X) == [found]


def test_setup_leaves_a_precision_that_was_chosen(precision, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    setup.setup(quiet=True, cache=False)
    assert jax.config.jax_default_matmul_precision == "bfloat16"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("setting", "platform", "found"),
    [("highest", "tpu", "HIGH"), ("highest", "cuda", "HIGHEST"), (None, "tpu", "DEFAULT")],
)
def test_a_tpu_makes_three_products_of_each_of_a_convolution(
    stride, setting, platform, found, precision
):
    jax.config.update("jax_default_matmul_precision", setting)
    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 8, 8, 16), (3, 3, 16, 17)))
    step = jax.jit(jax.grad(lambda x, kernel: fast.conv3x3(x, kernel, stride).sum()))
    text = step.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert set(re.findall(r"#stablehlo<precision (\w+)>", text)) == {found}


def test_three_products_of_bfloat16_are_as_exact_as_winograd_s():
    x, kernel = RNG.normal(size=(2, 9, 8, 32)), RNG.normal(size=(3, 3, 32, 16))
    x, kernel = (jnp.asarray(a, jnp.float32) for a in (x, kernel))
    exact = sum(
        np.einsum("bhwc,co->bhwo", np.pad(np.float64(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
                  [:, i : i + 9, j : j + 8], np.float64(kernel[i, j]))
        for i in range(3) for j in range(3)
    )  # fmt: skip

    def short(a):
        return jax.lax.reduce_precision(a, exponent_bits=8, mantissa_bits=7)  # bfloat16's

    def off(found):
        return np.abs(np.float64(found) - exact).max() / np.abs(exact).max()

    first, rest = short(x), short(x - short(x))
    large, small = short(kernel), short(kernel - short(kernel))
    once = fast.plain_conv(first, large)
    thrice = once + fast.plain_conv(first, small) + fast.plain_conv(rest, large)
    assert off(thrice) < 2 * off(fast.winograd(x, kernel)) < 1e-4 < 1e-3 < off(once)


def test_a_dense_layer_follows_the_setting(precision):
    jax.config.update("jax_default_matmul_precision", "highest")
    assert set(products(layers.Linear(3, 4, rngs=layers.nnx.Rngs(0)), X)) == {EXACT}
