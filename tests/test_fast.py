import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course.models import fast
from diffusion_course.models.unet import UNet

rng = np.random.default_rng(41)


def array(*shape, mean=0.3, std=1.4):
    return jnp.asarray(rng.normal(mean, std, shape), jnp.float32)


# Sizes with whole and broken 4×4 tiles, unequal sides, unequal channels.
SHAPES = [(2, 8, 12, 16, 24), (3, 5, 7, 20, 16), (1, 4, 4, 33, 17), (2, 14, 9, 16, 3)]
WAYS = [fast.winograd, fast.thin_conv]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
every_shape = pytest.mark.parametrize(("b", "h", "w", "c_in", "c_out"), SHAPES)


def assert_close(got, want):
    # The transforms multiply by up to 8 and back, so some 1e-5 of the largest value is lost; a
    # wrong coefficient or a shifted tile would be an error of its own size.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@every_way
@every_shape
def test_a_fast_convolution_equals_the_plain_one_in_value_and_gradient(way, b, h, w, c_in, c_out):
    x, kernel, y = array(b, h, w, c_in), array(3, 3, c_in, c_out), array(b, h, w, c_out)
    got, got_back = jax.vjp(way, x, kernel)
    want, want_back = jax.vjp(fast.plain_conv, x, kernel)
    assert_close(got, want)
    for mine, plain in zip(got_back(y), want_back(y), strict=True):
        assert_close(mine, plain)


@every_way
def test_a_fast_convolution_has_forward_and_second_derivatives(way):
    x, kernel, dx, dk = (
        array(2, 6, 5, 16),
        array(3, 3, 16, 2),
        array(2, 6, 5, 16),
        array(3, 3, 16, 2),
    )

    def energy(conv):
        return lambda x, kernel: jnp.sum(conv(x, kernel) ** 3) / 1e4

    for derivative in (
        lambda f: jax.jvp(f, (x, kernel), (dx, dk))[1],
        lambda f: jax.jvp(jax.grad(f), (x, kernel), (dx, dk))[1],
    ):
        assert_close(derivative(energy(way)), derivative(energy(fast.plain_conv)))


@every_way
def test_a_fast_convolution_can_be_mapped_over_kernels(way):
    x, kernels = array(2, 4, 6, 16), array(3, 3, 3, 16, 2)
    got = jax.vmap(way, in_axes=(None, 0))(x, kernels)
    assert_close(got, jnp.stack([fast.plain_conv(x, kernel) for kernel in kernels]))


def convolutions(x, kernel, stride=1):
    """How many of XLA's own convolutions `conv3x3` uses."""
    text = str(jax.make_jaxpr(lambda x, kernel: fast.conv3x3(x, kernel, stride))(x, kernel))
    return text.count("conv_general_dilated[")


@pytest.mark.parametrize(
    ("h", "c_in", "c_out", "stride", "plain"),
    [
        (8, 16, 16, 1, 0),
        (4, 32, 4, 1, 0),  # few outputs
        (8, 1, 32, 1, 1),  # too few channels for the transforms to pay
        (8, 15, 16, 1, 1),
        (3, 32, 32, 1, 1),  # smaller than a tile
        (8, 32, 32, 2, 1),
    ],
)
def test_the_way_is_chosen_by_shape(h, c_in, c_out, stride, plain):
    x, kernel = array(2, h, h + 1, c_in), array(3, 3, c_in, c_out)
    assert convolutions(x, kernel, stride) == plain
    assert_close(fast.conv3x3(x, kernel, stride), fast.plain_conv(x, kernel, stride))


def test_bfloat16_and_accelerators_take_the_plain_convolution(monkeypatch):
    x, kernel = array(2, 8, 8, 16), array(3, 3, 16, 16)
    assert convolutions(x, kernel) == 0
    assert convolutions(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 1
    monkeypatch.setattr(fast, "on_cpu", lambda: False)
    assert convolutions(x, kernel) == 1


def test_a_whole_network_is_the_same_with_plain_operations(monkeypatch):
    from flax import nnx

    graph, params = nnx.split(UNet(1, (16, 32), num_classes=3, rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf + jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype) for leaf in leaves]
    params, x, t = jax.tree.unflatten(tree, leaves), array(4, 8, 8, 1), jnp.linspace(0.1, 0.9, 4)

    def value_and_gradient():
        def loss(params):
            return jnp.mean((nnx.merge(graph, params)(x, t, jnp.arange(4)) - 0.3) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    got = value_and_gradient()
    monkeypatch.setattr(fast, "on_cpu", lambda: False)
    want = value_and_gradient()
    for mine, plain in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Ten layers deep: ten times the error of one.
        np.testing.assert_allclose(mine, plain, rtol=0, atol=1e-3 * (np.abs(plain).max() + 1e-3))
