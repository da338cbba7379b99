"""Linear operators against their matrices in float64, written out without the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course import operators

rng = np.random.default_rng(190)
KEY = jax.random.key(19)
SEEN = rng.uniform(size=(3, 5, 2)) < 0.6
KERNEL = rng.normal(size=(3, 5))
# On four rows this kernel has no response to what alternates from row to row.
SINGULAR = np.array([[0.25], [0.5], [0.25]])
WIDE, TALL = rng.normal(size=(3, 4)), rng.normal(size=(5, 3))
DEFICIENT = np.outer(rng.normal(size=4), rng.normal(size=3))

OPERATORS = {
    "mask": operators.mask(SEEN),
    "average": operators.average((4, 6, 2), 2),
    "blur": operators.blur((4, 6, 2), KERNEL),
    "singular blur": operators.blur((4, 3, 2), SINGULAR),
    "wide": operators.matrix(WIDE),
    "tall": operators.matrix(TALL),
    "deficient": operators.matrix(DEFICIENT),
}
each = pytest.mark.parametrize("name", OPERATORS)


def random(n, shape):
    return jnp.asarray(rng.normal(0.3, 1.4, (n, *shape)), jnp.float32)


def flat(batch):
    return np.asarray(batch, np.float64).reshape(len(batch), -1)


def blurred64(x, kernel):
    """The convolution, pixel by pixel, with edges that continue on the other side."""
    out = np.zeros_like(x)
    rows, columns = (np.arange(k) - k // 2 for k in kernel.shape)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            out += kernel[i, j] * np.roll(x, (a, b), axis=(1, 2))
    return out


def averaged64(x, k):
    n, h, w, c = x.shape
    out = np.zeros((n, h // k, w // k, c))
    for i in range(h // k):
        for j in range(w // k):
            out[:, i, j] = x[:, k * i : k * i + k, k * j : k * j + k].mean(axis=(1, 2))
    return out


MEASURED = {
    "mask": lambda x: np.where(SEEN, x, 0),
    "average": lambda x: averaged64(x, 2),
    "blur": lambda x: blurred64(x, KERNEL),
    "singular blur": lambda x: blurred64(x, SINGULAR),
    "wide": lambda x: x @ WIDE.T,
    "tall": lambda x: x @ TALL.T,
    "deficient": lambda x: x @ DEFICIENT.T,
}


@each
def test_an_operator_measures_what_it_says(name):
    A = OPERATORS[name]
    x = random(3, A.shape)
    y = A.apply(x)
    assert y.shape == (3, *A.measured)
    # Sums of at most 15 products of size 5.
    np.testing.assert_allclose(y, MEASURED[name](np.float64(x)), atol=1e-5)
    np.testing.assert_allclose(flat(x) @ operators.as_matrix(A).T, flat(y), atol=1e-5)


@each
def test_the_adjoint_moves_the_operator_across_the_inner_product(name):
    A = OPERATORS[name]
    x, y = random(4, A.shape), random(4, A.measured)
    left = np.sum(flat(A.apply(x)) * flat(y), axis=1)
    right = np.sum(flat(x) * flat(A.adjoint(y)), axis=1)
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-4)


@each
def test_pseudo_inverse_projection_and_rank_are_those_of_the_matrix(name):
    A = OPERATORS[name]
    exact = operators.as_matrix(A)
    inverse = np.linalg.pinv(exact, rcond=1e-4)
    y = random(3, A.measured)
    # The blur's least response is a fiftieth of its largest, so float32 keeps five digits less two.
    np.testing.assert_allclose(flat(A.pseudo_inverse(y)), flat(y) @ inverse.T, atol=1e-3)
    np.testing.assert_allclose(flat(A.project(y)), flat(y) @ (exact @ inverse).T, atol=1e-5)
    assert A.rank == np.linalg.matrix_rank(exact, tol=1e-4)
    # Of a measurement it finds an x with the same one.
    measured = A.apply(random(3, A.shape))
    np.testing.assert_allclose(A.apply(A.pseudo_inverse(measured)), measured, atol=1e-4)


@each
def test_solve_inverts_the_covariance_of_a_measurement(name):
    A = OPERATORS[name]
    exact = operators.as_matrix(A)
    y, variance = random(3, A.measured), np.array([0.4, 1.7, 3.0])
    found = jax.jit(A.solve)(y, variance.reshape(-1, *[1] * len(A.measured)), 0.3)
    for i in range(3):
        covariance = variance[i] * exact @ exact.T + 0.3 * np.eye(len(exact))
        wanted = np.linalg.solve(covariance, flat(y)[i])
        np.testing.assert_allclose(flat(found)[i], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mask", "deficient"])
def test_noise_has_its_deviation_where_something_is_measured(name):
    A = OPERATORS[name]
    n = 4000
    y = operators.measure(A, jnp.broadcast_to(random(1, A.shape), (n, *A.shape)), 0.7, KEY)
    exact = operators.as_matrix(A)
    range_of_A = exact @ np.linalg.pinv(exact, rcond=1e-4)
    covariance = np.cov(flat(y).T)
    # Four standard errors of a covariance of two variables of variance .49.
    np.testing.assert_allclose(covariance, 0.49 * range_of_A, atol=4 * 0.49 * np.sqrt(2 / n))
    assert (y[:, ~SEEN] == 0).all() if name == "mask" else True
    x = random(2, A.shape)
    np.testing.assert_array_equal(operators.measure(A, x, 0.0, KEY), A.apply(x))


def test_a_gaussian_kernel_sums_to_one_and_falls_as_a_gaussian():
    kernel = operators.gaussian_kernel(5, 0.8)
    assert kernel.sum() == pytest.approx(1.0)
    i, j = np.mgrid[-2:3, -2:3]
    np.testing.assert_allclose(kernel / kernel[2, 2], np.exp(-(i**2 + j**2) / (2 * 0.64)))
    x = jnp.full((1, 5, 6, 1), 0.3)  # a flat picture stays as it is
    np.testing.assert_allclose(operators.blur((5, 6, 1), kernel).apply(x), x, atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: operators.mask([0, 2]), "seen must be boolean"),
        (lambda: operators.mask([0, 0]), "seen must be an array with at least one True"),
        (lambda: operators.mask(True), "seen must be an array"),
        (lambda: operators.average((4, 6), 2), r"shape must be that of one picture, \(H, W, C\)"),
        (lambda: operators.average((4, 6, 1), 0), "factor must be a whole number at least 1"),
        (lambda: operators.average((4, 6, 1), 4), r"factor must divide .* \[4, 6, 1\], got 4"),
        (lambda: operators.blur((4, 6, 1), np.ones((2, 3))), "kernel must have two odd sides"),
        (lambda: operators.blur((4, 6, 1), np.ones((5, 3))), "of at most 4 and 6"),
        (lambda: operators.blur((4, 6, 1), np.ones(3)), "kernel must have two odd sides"),
        (lambda: operators.blur((4, 6, 1), np.zeros((3, 3))), "not all 0"),
        (lambda: operators.blur((4, 6, 1), np.full((3, 3), np.nan)), "kernel must hold finite"),
        (lambda: operators.gaussian_kernel(4, 1.0), "size must be odd, got 4"),
        (lambda: operators.gaussian_kernel(3, 0.0), "std must be positive"),
        (lambda: operators.matrix(np.ones(3)), r"entries must be a matrix \[M, D\]"),
        (lambda: operators.matrix(np.zeros((2, 2))), "not all 0"),
    ],
)
def test_a_bad_operator_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bad_measurement_is_refused():
    A = OPERATORS["wide"]
    with pytest.raises(ValueError, match=r"x must have shape \[B, 4\].* got shape \[2, 3\]"):
        operators.measure(A, np.ones((2, 3)), 0.1, KEY)
    with pytest.raises(ValueError, match="sigma_y must be in"):
        operators.measure(A, np.ones((2, 4)), -0.1, KEY)
    with pytest.raises(ValueError, match="key must be one random key"):
        operators.measure(A, np.ones((2, 4)), 0.1, 3)
