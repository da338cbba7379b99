"""Layers that keep sizes: measured on random numbers, at the start and after training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.integrate import quad
from scipy.stats import norm

from diffusion_course import losses, process
from diffusion_course.models import magnitude
from diffusion_course.training import update

rng = np.random.default_rng(93)


def size(x):
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))


def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_a_layer_keeps_the_size_whatever_its_weights():
    x = normal(4000, 48)
    layer = magnitude.MPLinear(48, 30, rngs=nnx.Rngs(0))
    first = layer(x)
    # The mean square of 120,000 numbers, 30 of which share an x: a standard error of .3 %.
    np.testing.assert_allclose(size(first), 1, atol=0.02)
    layer.direction[...] = 7 * layer.direction[...]
    np.testing.assert_allclose(layer(x), first, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(layer(x, 0.25), 0.25 * first, rtol=1e-3, atol=1e-4)


def test_columns_have_unit_length_and_a_column_of_zeros_stays():
    columns = magnitude.unit_columns(jnp.array([[3.0, 0.0, 1e-20], [4.0, 0.0, 0.0]]))
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0)[:2], [1, 0], atol=1e-3)
    assert np.isfinite(columns).all()


def test_silu_is_divided_by_its_root_mean_square_on_normal_numbers():
    square, _ = quad(lambda z: (z / (1 + np.exp(-z))) ** 2 * norm.pdf(z), -15, 15)
    z = normal(5)
    wanted = np.asarray(z) / (1 + np.exp(-np.asarray(z))) / np.sqrt(square)
    np.testing.assert_allclose(magnitude.mp_silu(z), wanted, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_sum_keeps_the_size_of_what_is_uncorrelated(share):
    a, b = normal(200_000), normal(200_000)
    total = magnitude.mp_sum(a, b, share)
    np.testing.assert_allclose(size(total), 1, atol=0.01)
    # The shares are those of lerp: the quotient of the two contributions.
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    root = np.hypot(1 - share, share)
    np.testing.assert_allclose(total, ((1 - share) * a + share * b) / root, atol=1e-5)


@pytest.fixture(scope="module")
def network():
    return magnitude.MagnitudeMLP(3, width=64, depth=2, num_classes=4, rngs=nnx.Rngs(1))


def test_every_activation_has_unit_size_at_the_start(network):
    x, t = normal(4000, 3), jnp.asarray(rng.uniform(size=4000), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 5, 4000))
    for h in network.hidden(x, t, labels):
        # Activations have a mean, and one network's 64 columns do not average over its sign.
        np.testing.assert_allclose(size(h), 1, atol=0.2)
    np.testing.assert_array_equal(network(x, t, labels), 0)


def train(optimizer, steps=60):
    """The network after some steps, always from the same start; and the losses."""
    network = magnitude.MagnitudeMLP(3, width=64, depth=2, num_classes=4, rngs=nnx.Rngs(1))
    p = process.edm(sigma_data=1.0)

    def loss(model, x, labels, key):
        return losses.diffusion_loss(model, p, "edm", x, labels, key)

    state = update.create_state(network, optimizer)
    step = update.make_step(network, loss, optimizer, 0.9)
    values = []
    for n in range(steps):
        x = np.sign(np.random.default_rng(n).normal(size=(64, 3))).astype(np.float32)  # corners
        labels = (x[:, 0] > 0).astype(np.int32)
        state, value = step(state, (jnp.asarray(x), jnp.asarray(labels)), jax.random.key(0))
        values.append(float(value))
    return update.merge(network, state.params), values


def lengths(model):
    """Of all columns, as multiples of the root of their number of entries."""
    leaves = [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model))
        if "direction" in str(path)
    ]
    return np.concatenate([np.linalg.norm(w, axis=0) / np.sqrt(len(w)) for w in leaves])


def test_columns_grow_while_training_and_are_held_by_the_forced_norm():
    held, losses_held = train(optax.chain(optax.adam(1e-2), magnitude.forced_norm()))
    free, _ = train(optax.adam(3e-2))
    np.testing.assert_allclose(lengths(held), 1, rtol=1e-5)
    grown = lengths(free) / lengths(
        magnitude.MagnitudeMLP(3, 64, 2, num_classes=4, rngs=nnx.Rngs(1))
    )
    # A gradient is perpendicular to its column, and what Adam makes of it nearly.
    assert np.median(grown) > 1.02
    assert np.mean(losses_held[-10:]) < 0.9 * np.mean(losses_held[:10])


def test_every_parameter_has_a_gradient_after_a_few_steps():
    network, _ = train(optax.adam(1e-2), steps=5)
    x, t = normal(16, 3), jnp.asarray(rng.uniform(size=16), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 5, 16))
    gradient = nnx.grad(lambda model: (model(x, t, labels) ** 2).sum())(network)
    leaves = jax.tree.leaves(gradient)
    # Six layers and a time, three gains, a label matrix.
    assert all(np.abs(leaf).max() > 0 for leaf in leaves) and len(leaves) == 13


def test_gains_and_other_parameters_are_left_to_the_optimiser():
    transform = magnitude.forced_norm()
    params = {"gain": jnp.float32(2.0), "layer": {"direction": normal(4, 3)}}
    changes = {"gain": jnp.float32(0.5), "layer": {"direction": normal(4, 3)}}
    got, _ = transform.update(changes, transform.init(params), params)
    assert got["gain"] == 0.5
    moved = params["layer"]["direction"] + got["layer"]["direction"]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=0), 2.0, rtol=1e-5)
    wanted = params["layer"]["direction"] + changes["layer"]["direction"]
    np.testing.assert_allclose(moved / 2, wanted / np.linalg.norm(wanted, axis=0), rtol=1e-4)
    with pytest.raises(ValueError, match="params must be given"):
        transform.update(changes, optax.EmptyState())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: magnitude.MPLinear(0, 3, rngs=nnx.Rngs(0)), "c_in must be"),
        (lambda: magnitude.mp_sum(jnp.ones(1), jnp.ones(1), 1.5), r"share must be in \[0, 1\]"),
        (lambda: magnitude.MagnitudeMLP(2, 7, rngs=nnx.Rngs(0)), "width must be"),
        (lambda: magnitude.MagnitudeMLP(2, 8, 0, rngs=nnx.Rngs(0)), "depth must be"),
        (lambda: small()(jnp.ones((2, 3)), jnp.ones(2)), "x must have shape"),
        (lambda: small()(jnp.ones((2, 2)), jnp.ones(2), jnp.zeros(2, int)), "cond"),
    ],
)
def test_what_cannot_be_used_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def small():
    return magnitude.MagnitudeMLP(2, 8, 1, rngs=nnx.Rngs(0))
