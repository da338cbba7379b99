"""The fast convolutions and dense layers equal the plain ones in value and every derivative."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import examples

from diffusion_course.models import fast

rng = np.random.default_rng(41)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def array(*shape, mean=0.3, std=1.4):
    return rng.normal(mean, std, shape).astype(np.float32)


# Sizes with whole and broken 4×4 tiles, unequal sides, unequal channels.
SHAPES = [(2, 8, 12, 16, 24), (3, 5, 7, 20, 16), (1, 4, 4, 33, 17), (2, 14, 9, 16, 3)]
WAYS = {"winograd": fast.winograd, "thin_conv": fast.thin_conv}
every_way = pytest.mark.parametrize("way", WAYS)


def conv64(x, kernel, stride=1):
    """The sum that defines a 3×3 convolution with zeros around the image, in NumPy float64."""
    batch, height, width, _ = x.shape
    rows, cols = -(-height // stride), -(-width // stride)
    # "SAME": with a stride of 2 an even side gets its zeros at the end only.
    above, left = (
        max((n - 1) * stride + 3 - size, 0) // 2 for n, size in ((rows, height), (cols, width))
    )
    padded = np.pad(x.astype(np.float64), ((0, 0), (above, 3), (left, 3), (0, 0)))
    y = np.zeros((batch, rows, cols, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + rows * stride : stride, j : j + cols * stride : stride]
            y += part[:, :rows, :cols] @ kernel[i, j].astype(np.float64)
    return y


def assert_close(got, want):
    # The transforms multiply by up to 8 and back, so some 1e-5 of the largest value is lost; a
    # wrong coefficient or a shifted tile would be an error of its own size.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@every_way
@pytest.mark.parametrize(("b", "h", "w", "c_in", "c_out"), SHAPES)
def test_a_fast_convolution_equals_the_plain_one_in_value_and_gradient(way, b, h, w, c_in, c_out):
    x, kernel, y = array(b, h, w, c_in), array(3, 3, c_in, c_out), array(b, h, w, c_out)

    @jax.jit
    def value_and_gradients(x, kernel, y):
        value, back = jax.vjp(WAYS[way], x, kernel)
        return value, *back(y)

    value, to_x, to_kernel = value_and_gradients(x, kernel, y)
    assert_close(value, conv64(x, kernel))
    # The adjoints of the sum: by x with the taps turned round, by each tap with a shifted image.
    assert_close(to_x, conv64(y, kernel[::-1, ::-1].transpose(0, 1, 3, 2)))
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = [
        [np.einsum("bhwc,bhwo->co", padded[:, i : i + h, j : j + w], y) for j in range(3)]
        for i in range(3)
    ]
    assert_close(to_kernel, np.array(want))


@every_way
def test_a_fast_convolution_has_forward_and_second_derivatives_and_can_be_mapped(way):
    x, kernel, dx, dk = (
        array(2, 6, 5, 16),
        array(3, 3, 16, 2),
        array(2, 6, 5, 16),
        array(3, 3, 16, 2),
    )
    kernels = array(3, 3, 3, 16, 2)

    @jax.jit
    def derivatives(x, kernel, dx, dk, kernels):
        def all_of(conv):
            energy = lambda x, kernel: jnp.sum(conv(x, kernel) ** 3) / 1e4  # noqa: E731
            forward = jax.jvp(energy, (x, kernel), (dx, dk))[1]
            second = jax.jvp(jax.grad(energy), (x, kernel), (dx, dk))[1]
            return forward, second, jax.vmap(conv, in_axes=(None, 0))(x, kernels)

        return all_of(WAYS[way]), all_of(fast.plain_conv)

    for got, want in zip(*derivatives(x, kernel, dx, dk, kernels), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize(
    ("h", "c_in", "c_out", "stride", "want"),
    [
        (8, 16, 16, 1, fast.winograd),
        (4, 32, 4, 1, fast.thin_conv),  # few outputs
        (8, 1, 32, 1, None),  # too few channels for the transforms to pay
        (8, 15, 16, 1, None),
        (3, 32, 32, 1, None),  # smaller than a tile
        (8, 32, 32, 2, None),
        (8, 64, 1, 2, None),
    ],
)
def test_the_way_is_chosen_by_shape(h, c_in, c_out, stride, want):
    x, kernel = jnp.zeros((2, h, h + 1, c_in)), jnp.zeros((3, 3, c_in, c_out))
    assert fast.quick_way(x, kernel, stride) is want
    half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert fast.quick_way(*half, stride) is (want if want is fast.thin_conv else None)


def test_a_convolution_with_a_stride_skips_pixels():
    x, kernel = array(2, 6, 7, 3), array(3, 3, 3, 4)
    assert_close(fast.conv3x3(x, kernel, 2), conv64(x, kernel, 2))


# --------------------------------------------------------------------- where the choice is made

PLAIN = re.compile(r"stablehlo\.convolution")
# Winograd's 36 matrix products; thin_conv's nine taps in one.
QUICK = {
    "winograd": re.compile(r"dot_general.*tensor<36x"),
    "thin_conv": re.compile(r"dot_general"),
}
SIZES = {"winograd": (16, 16), "thin_conv": (16, 2)}


def under(transformation):
    """`conv3x3` as another function sees it, from x [2, 4, 5, C] and a kernel."""
    square = lambda x, kernel: jnp.sum(fast.conv3x3(x, kernel) ** 2)  # noqa: E731
    return {
        "value": fast.conv3x3,
        "grad": jax.grad(square, (0, 1)),
        "jvp": lambda x, kernel: jax.jvp(fast.conv3x3, (x, kernel), (x, kernel)),
        "vmap": lambda x, kernel: jax.vmap(fast.conv3x3, (None, 0))(
            x, jnp.stack([kernel, -kernel])
        ),
        "vmap of grad": lambda x, kernel: jax.vmap(
            lambda x: jax.grad(square, (0, 1))(x[None], kernel)
        )(x),
        "scan": lambda x, kernel: jax.lax.scan(
            lambda x, _: (fast.conv3x3(x, kernel)[..., :1] + x, None), x, length=2
        )[0],
    }[transformation]


@every_way
@pytest.mark.parametrize("transformation", ["value", "grad", "jvp", "vmap", "vmap of grad", "scan"])
def test_each_platform_gets_its_own_way_where_the_program_is_lowered(way, transformation):
    c_in, c_out = SIZES[way]
    traced = jax.jit(under(transformation)).trace(
        jax.ShapeDtypeStruct((2, 4, 5, c_in), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, c_in, c_out), jnp.float32),
    )
    # One and the same traced function.
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert QUICK[way].search(cpu) and not PLAIN.search(cpu)
    for platform in ("cuda", "rocm", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert PLAIN.search(text) and not QUICK[way].search(text)


@pytest.mark.parametrize("transformation", ["grad", "jvp", "vmap", "vmap of grad"])
def test_what_was_chosen_is_right_under_every_transformation(transformation, monkeypatch):
    x, kernel = array(2, 4, 5, 16), array(3, 3, 16, 16)
    got = jax.jit(under(transformation))(x, kernel)
    monkeypatch.setattr(fast, "conv3x3", fast.plain_conv)
    want = jax.jit(under(transformation))(x, kernel)
    for mine, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(mine, plain)


def test_the_compiled_program_of_a_cpu_holds_neither_a_choice_nor_the_plain_convolution():
    arrays = array(2, 4, 5, 16), array(3, 3, 16, 16)
    x, kernel = jax.device_put(arrays, jax.local_devices(backend="cpu")[0])
    program = jax.jit(under("grad")).lower(x, kernel).compile().as_text()
    assert not re.search(r"\b(conditional|convolution)\(", program)
    assert "f32[36," in program


@examples
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=5),
    st.lists(st.integers(1, 9), min_size=3, max_size=5),
    st.integers(-2, 3),
)
def test_shapes_that_do_not_belong_together_are_refused_by_name(x_shape, kernel_shape, stride):
    x = jax.ShapeDtypeStruct(tuple(x_shape), jnp.float32)
    kernel = jax.ShapeDtypeStruct(tuple(kernel_shape), jnp.float32)
    fits = len(x_shape) == 4 and len(kernel_shape) == 4 and kernel_shape[:3] == [3, 3, x_shape[3]]
    convolve = lambda x, kernel: fast.conv3x3(x, kernel, stride)  # noqa: E731
    if fits and stride > 0:
        assert jax.eval_shape(convolve, x, kernel).shape[-1] == kernel_shape[-1]
        return
    with pytest.raises(ValueError, match=r"^(stride|x and kernel) must "):
        jax.eval_shape(convolve, x, kernel)


@settings(examples, max_examples=20)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 3),
)
def test_every_way_has_the_shape_and_dtype_of_the_plain_convolution(size, channels, stride):
    (b, h, w), (c_in, c_out) = size, channels
    x = jax.ShapeDtypeStruct((b, h, w, c_in), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, c_in, c_out), jnp.float32)
    want = jax.ShapeDtypeStruct((b, -(-h // stride), -(-w // stride), c_out), jnp.float32)
    assert jax.eval_shape(lambda x, k: fast.conv3x3(x, k, stride), x, kernel) == want
    if stride == 1:
        for way in WAYS.values():
            assert jax.eval_shape(way, x, kernel) == want


def test_a_kernel_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match="kernel must have x's dtype float32, got bfloat16"):
        fast.conv3x3(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1), jnp.bfloat16))


# --------------------------------------------------------------------------------- dense layers


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("lead", [(), (3,), (3, 5), (2, 3, 4), (0, 3), (3, 0)])
def test_a_dense_layer_is_the_plain_one_in_value_and_every_derivative(lead, with_bias):
    x, kernel, bias = array(*lead, 6), array(6, 7), array(7) if with_bias else None
    there = (x, kernel, bias) if with_bias else (x, kernel)
    moves = tuple(array(*a.shape) for a in there)

    @jax.jit
    def derivatives(there, moves):
        def all_of(layer):
            energy = lambda *there: jnp.sum(jnp.sin(layer(*there)))  # noqa: E731
            first = jax.grad(energy, tuple(range(len(there))))
            stacked = jnp.stack([there[0], 2 * there[0]])
            return (
                layer(*there),
                first(*there),
                jax.jvp(energy, there, moves)[1],
                jax.jvp(first, there, moves)[1],
                jax.vmap(lambda x: first(x, *there[1:]))(stacked),
            )

        return all_of(fast.dense), all_of(fast.plain_dense)

    got, want = derivatives(there, moves)
    want64 = x.astype(np.float64) @ kernel.astype(np.float64) + (bias if with_bias else 0)
    assert got[0].shape == want64.shape
    if 0 not in lead:
        assert_close(got[0], want64)
    for mine, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=0, atol=1e-4 * np.abs(plain).max(initial=0))


@pytest.mark.parametrize(("x", "kernel"), [((2, 3, 4), (5, 7)), ((2, 4), (1, 4, 7)), ((), (4, 7))])
def test_a_dense_layer_of_other_shapes_is_refused(x, kernel):
    with pytest.raises(ValueError, match=re.escape(f"got {list(x)} and {list(kernel)}")):
        fast.dense(jnp.zeros(x), jnp.zeros(kernel))


def test_each_platform_gets_its_own_dense_layer():
    def gradient(x, kernel, bias):
        return jax.grad(lambda *a: jnp.sum(fast.dense(*a) ** 2), (0, 1, 2))(x, kernel, bias)

    shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 5, 6), (6, 7), (7,)))
    traced = jax.jit(gradient).trace(*shapes)
    product_of_rows = re.compile(r"dot_general.*tensor<15x")
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "optimization_barrier" in cpu and product_of_rows.search(cpu)
    for platform in ("cuda", "rocm", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "optimization_barrier" not in text and not product_of_rows.search(text)
