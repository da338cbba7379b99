"""Clouds: what turns with them, what stays, and the geometry of a chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import kstest

from diffusion_course.data import clouds
from diffusion_course.models import equivariant
from diffusion_course.models.equivariant import EGNN

rng = np.random.default_rng(243)
B, N = 3, 5
X = np.float32(rng.normal(0.2, 1.3, (B, N, 3)))
T = np.float32([0.1, 0.5, 0.95])
TYPES = np.array([[0, 1, 1, 2, 0], [2, 1, 0, 0, 1], [0, 0, 2, 1, 1]])
TURN = np.float32(clouds.rotations(rng.normal(size=(1, 4)))[0])
MIRROR = np.diag(np.float32([1, -1, 1]))


def trained():
    """A network whose weights are all different from 0, as they are after training."""
    model = EGNN(3, width=16, depth=2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


MODEL = trained()
call = jax.jit(lambda x, t, types: MODEL(x, t, types))
OUT = np.array(call(X, T, TYPES))


def close(found, want):
    # Sums of float32 in another order: 1e-5 of the largest entry.
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(OUT).max())


def test_the_output_depends_on_everything():
    assert np.abs(OUT).max() > 0.1
    assert np.abs(call(X, T[::-1], TYPES) - OUT).max() > 1e-3 * np.abs(OUT).max()
    assert np.abs(call(X, T, 2 - TYPES) - OUT).max() > 1e-2 * np.abs(OUT).max()


@pytest.mark.parametrize("matrix", [TURN, MIRROR, TURN @ MIRROR], ids=["turn", "mirror", "both"])
def test_the_output_turns_and_mirrors_with_the_input(matrix):
    assert np.abs(X @ matrix.T - X).max() > 0.5
    close(call(X @ matrix.T, T, TYPES), OUT @ matrix.T)


def test_moving_the_input_changes_nothing():
    close(call(X + np.float32([0.5, -1.5, 1.0]), T, TYPES), OUT)


def test_points_may_be_counted_in_any_order():
    order = np.array([3, 0, 4, 1, 2])
    close(call(X[:, order], T, TYPES[:, order]), OUT[:, order])
    close(call(X[::-1], T[::-1], TYPES[::-1]), OUT[::-1])


def test_the_output_has_mean_zero_and_an_untrained_network_is_zero():
    assert np.abs(OUT.mean(1)).max() < 1e-6 * np.abs(OUT).max()
    assert not EGNN(rngs=nnx.Rngs(0))(X, T).any()


def test_every_parameter_has_a_gradient_also_where_points_coincide():
    graph, params = nnx.split(MODEL)
    x = X.copy()
    x[0, 1] = x[0, 0]
    slopes = jax.grad(lambda q: jnp.sum(nnx.merge(graph, q)(x, T, TYPES) ** 2))(params)
    largest = [float(jnp.abs(a).max()) for a in jax.tree.leaves(slopes)]
    assert np.isfinite(largest).all()
    # Nothing hears the last round's types any more: its update of h is unused.
    unused = len(jax.tree.leaves(nnx.state([MODEL.layers[-1].node, MODEL.layers[-1].update])))
    assert sum(size == 0 for size in largest) == unused == 4


def test_noise_is_centred_and_has_the_density_of_a_subspace():
    noise = np.array(equivariant.centred_noise(jax.random.key(0), (4000, N, 3)))
    assert np.abs(noise.mean(1)).max() < 1e-6
    assert noise.var() == pytest.approx(1 - 1 / N, abs=0.02)  # 60,000 numbers: .005
    # An orthonormal basis of the subspace, in which the noise is standard normal.
    basis = np.linalg.svd(np.eye(N) - 1 / N)[0][:, : N - 1]
    inside = np.einsum("bna,nk->bka", noise, basis)
    assert kstest(inside.ravel(), "norm").pvalue > 1e-3
    std = 1.7
    want = (-(inside**2) / 2 - 0.5 * np.log(2 * np.pi) - np.log(std)).sum((1, 2))
    found = equivariant.centred_log_prob(std * noise, std)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


def test_wrong_arguments_of_the_network_are_named():
    with pytest.raises(ValueError, match="x must have shape"):
        MODEL(X[..., :2], T)
    with pytest.raises(ValueError, match=r"cond must be in 0 … 2, got 0 … 3"):
        MODEL(X, T, TYPES + (TYPES == 2))
    with pytest.raises(ValueError, match="cond must be whole numbers of shape"):
        MODEL(X, T, TYPES[:, :2])
    with pytest.raises(ValueError, match="num_types must be a whole number at least 1, got 0"):
        EGNN(0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="std must be positive"):
        equivariant.centred_log_prob(X, 0.0)


# ------------------------------------------------------------------------------ chains of atoms


def test_a_chain_has_the_lengths_and_angles_that_were_asked_for():
    bonds, angles = rng.uniform(0.8, 1.6, 5), rng.uniform(1.3, 2.4, 4)
    asked = rng.uniform(-3, 3, (6, 3))
    x = clouds.place_chain(bonds, angles, asked)
    steps = np.diff(x, axis=1)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=-1), np.tile(bonds, (6, 1)))
    cosines = -(steps[:, 1:] * steps[:, :-1]).sum(-1) / bonds[1:] / bonds[:-1]
    np.testing.assert_allclose(np.arccos(cosines), np.tile(angles, (6, 1)))
    np.testing.assert_allclose(clouds.torsions(x), asked)
    turned = x @ TURN.T + 3
    np.testing.assert_allclose(clouds.torsions(turned), asked, atol=1e-5)
    np.testing.assert_allclose(clouds.torsions(x @ MIRROR), -asked)


def test_a_torsion_of_zero_is_a_u_and_a_positive_one_turns_clockwise():
    x = clouds.place_chain([1, 1, 1], [np.pi / 2] * 2, [[0.0], [np.pi / 2]])
    np.testing.assert_allclose(x[0, 3], [0, 1, 0], atol=1e-12)
    # The middle bond points up (+y), the first atom lies at −x of it. Seen from below, upwards,
    # with −x at twelve o'clock, +z is at three o'clock: a quarter clockwise.
    np.testing.assert_allclose(x[1, 3], [1, 1, 1], atol=1e-12)


def test_molecules_have_exact_bonds_and_their_torsions():
    found = clouds.load("peroxide", n=300, turned=True)
    d = clouds.distances(found.x)
    np.testing.assert_allclose(d[:, [0, 1, 2], [1, 2, 3]], [[0.95, 1.475, 0.95]] * 300, atol=1e-5)
    np.testing.assert_allclose(clouds.torsions(found.x), found.torsions, atol=1e-4)
    assert np.degrees(found.torsions).mean() == pytest.approx(111.8, abs=4 * 8 / np.sqrt(300))
    assert np.abs(found.x.mean(1)).max() < 1e-6
    pentane = clouds.load("pentane", n=1000)
    assert pentane.x.shape == (1000, 5, 3) and pentane.torsions.shape == (1000, 2)
    far = np.abs(pentane.torsions) > 2
    assert far.mean() == pytest.approx(0.6, abs=4 * np.sqrt(0.24 / 2000))


def test_the_first_molecules_do_not_depend_on_how_many_there_are():
    for kind in clouds.KINDS:
        few, many = (clouds.load(kind, n=n, turned=True) for n in (3, 50))
        np.testing.assert_array_equal(few.x, many.x[:3])
    assert (clouds.load(split="test", n=3).x != clouds.load(n=3).x).any()
    assert (clouds.load(seed=1, n=3).x != clouds.load(n=3).x).any()


def test_uniform_rotations_have_no_direction():
    found = clouds.rotations(rng.normal(size=(20_000, 4)))
    np.testing.assert_allclose(found[:9] @ found[:9].transpose(0, 2, 1), [np.eye(3)] * 9, atol=1e-9)
    assert np.linalg.det(found).min() > 0.999
    assert np.abs(found.mean(0)).max() < 4 / np.sqrt(3 * 20_000)


def test_wrong_arguments_of_the_data_are_named():
    with pytest.raises(ValueError, match="kind must be one of peroxide, pentane"):
        clouds.load("water")
    with pytest.raises(ValueError, match="n must be a whole number at least 1, got 0"):
        clouds.load(n=0)
    with pytest.raises(ValueError, match="bonds, angles and torsions must have shapes"):
        clouds.place_chain([1, 1, 1], [1, 1], [[0.0, 1.0]])
