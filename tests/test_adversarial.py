"""Games of two networks: their values in closed form, and how they are trained."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from networks import drawn, output_of, shape_of

from diffusion_course.models import adversarial as models
from diffusion_course.models.adversarial import Discriminator, Generator
from diffusion_course.training import adversarial
from diffusion_course.training.record import TrainingDiverged

pytestmark = pytest.mark.usefixtures("quickly_compiled")
RNG = np.random.default_rng(12)


def build(make, *sizes, **more):
    """Calls a constructor with small sizes, and with random numbers of its own."""
    options = {"channels": (8,), "stem": 2, "num_classes": 3} | more
    return make(*sizes, **options, rngs=nnx.Rngs(0))


def two_distributions(n=6):
    p, q = RNG.dirichlet(np.ones(n), 2)
    return p, q


def divergence(p, q):
    return (p * np.log(p / q)).sum()


def paid(game, p, q, logits):
    """What each player pays on average, over a finite set."""
    real, fake, generator = (np.asarray(f(jnp.asarray(logits)), np.float64) for f in game)
    return (p * real + q * fake).sum(), (q * generator).sum()


# -------------------------------------------------------------------------------------- games


def test_at_the_best_discriminator_the_value_is_twice_the_jensen_shannon_divergence_less_log_4():
    p, q = two_distributions()
    m = (p + q) / 2
    jensen_shannon = (divergence(p, m) + divergence(q, m)) / 2
    cost, gain = paid(models.saturating(), p, q, np.log(p / q))
    assert -cost == pytest.approx(2 * jensen_shannon - np.log(4), abs=1e-5)  # float32 logits
    # What the generator can change of it is the part of its own samples.
    assert gain == pytest.approx((q * np.log(p / (p + q) * q / p)).sum(), abs=1e-5)


@pytest.mark.parametrize("game", [models.saturating(), models.non_saturating()])
def test_no_discriminator_pays_less_than_the_log_ratio(game):
    p, q = two_distributions()
    best = np.log(p / q)
    least = paid(game, p, q, best)[0]
    for size in (0.1, 1.0):
        for _ in range(5):
            assert paid(game, p, q, best + RNG.normal(0, size, len(p)))[0] > least


def test_the_hinge_pays_two_less_twice_the_total_variation_at_best():
    p, q = two_distributions()
    total_variation = np.abs(p - q).sum() / 2
    least, at_best = paid(models.hinge(), p, q, np.sign(p - q))
    assert least == pytest.approx(2 - 2 * total_variation, abs=1e-6)
    assert at_best == pytest.approx(-(q * np.sign(p - q)).sum(), abs=1e-6)
    for _ in range(10):
        assert paid(models.hinge(), p, q, RNG.normal(0, 2, len(p)))[0] > least
    # Beyond ±1 on the right side nothing more is gained.
    assert paid(models.hinge(), p, q, 3 * np.sign(p - q))[0] > least


def test_the_non_saturating_gradient_is_that_of_the_kl_less_two_jensen_shannon():
    p, _ = two_distributions()
    theta = jnp.asarray(RNG.normal(0, 1, len(p)), jnp.float32)
    logits = np.log(p) - np.asarray(jax.nn.log_softmax(theta))  # the best against this q, held
    game = models.non_saturating()
    found = jax.grad(lambda t: (jax.nn.softmax(t) * game.generator(jnp.asarray(logits))).sum())

    def aim(t):
        q = jax.nn.softmax(t)
        m = (p + q) / 2
        kl = lambda a, b: (a * jnp.log(a / b)).sum()  # noqa: E731
        return kl(q, p) - (kl(p, m) + kl(q, m))

    np.testing.assert_allclose(found(theta), jax.grad(aim)(theta), atol=1e-6)
    assert np.abs(np.asarray(found(theta))).max() > 0.01


def test_where_the_discriminator_is_sure_one_gradient_vanishes_and_the_other_does_not():
    sure = -20.0
    slope = {g: float(jax.grad(g().generator)(sure)) for g in (models.saturating, models.hinge)}
    assert abs(slope[models.saturating]) < 1e-8 and slope[models.hinge] == -1
    assert jax.grad(models.non_saturating().generator)(sure) == pytest.approx(-1)
    # All generators want larger logits.
    for game in (models.saturating, models.non_saturating, models.hinge):
        assert jax.grad(game().generator)(0.3) < 0


# ------------------------------------------------------------------------------------ penalty


def test_the_penalty_is_the_squared_slope_of_each_example():
    x, labels = RNG.normal(0, 1, (5, 2, 3)).astype(np.float32), np.array([0, 1, 1, 2, 0])
    weight = RNG.normal(0, 1, (3, 2, 3)).astype(np.float32)

    def quadratic(x, cond):
        return ((x * weight[cond]) ** 2).sum(axis=(1, 2)) / 2

    expected = (x**2 * weight[labels] ** 4).sum(axis=(1, 2))
    np.testing.assert_allclose(models.gradient_penalty(quadratic, x, labels), expected, rtol=1e-5)


def test_the_discriminator_pays_for_both_batches_and_half_the_weight_of_the_slope():
    game, slope = models.non_saturating(), jnp.array([1.0, -2.0])
    critic = lambda x, cond: x @ slope + 0.3 * cond  # noqa: E731
    real, fake = (RNG.normal(m, 1, (4, 2)).astype(np.float32) for m in (0.5, -1.0))
    cond = np.array([0.0, 1.0, 2.0, 1.0], np.float32)
    softplus = lambda v: np.log1p(np.exp(np.asarray(v, np.float64)))  # noqa: E731
    plain = (softplus(-critic(real, cond)) + softplus(critic(fake, cond))).mean()
    loss = partial(models.discriminator_loss, critic, game, real, fake, cond)
    assert loss() == pytest.approx(plain, rel=1e-5)
    assert loss(3.0) == pytest.approx(plain + 3.0 / 2 * 5, rel=1e-5)
    shift = lambda z, cond: z - 0.7  # noqa: E731
    found = models.generator_loss(shift, critic, game, real, cond)
    assert found == pytest.approx(softplus(-critic(real - 0.7, cond)).mean(), rel=1e-5)


# ----------------------------------------------------------------------------------- networks


@cache
def pair():
    g = drawn(lambda: build(Generator, (4, 6), 2, latents=5), seed=1)
    d = drawn(lambda: build(Discriminator, (4, 6), 2, features=7), seed=2)
    return g, d


def test_the_two_networks_fit_each_other_and_hear_the_label():
    g, d = pair()
    z = g.noise(jax.random.key(0), 4)
    images = [np.asarray(g(z, np.full(4, label))) for label in range(4)]
    logits = [np.asarray(d(images[0], np.full(4, label))) for label in range(4)]
    assert images[0].shape == (4, 4, 6, 2) and logits[0].shape == (4,)
    assert np.abs(images[0]).max() <= 1
    for told in (images, logits):
        for label in range(1, 4):
            assert np.abs(told[0] - told[label]).max() > 1e-3
    np.testing.assert_array_equal(g(z), images[3])  # no label is the null label
    np.testing.assert_array_equal(d(images[0]), logits[3])


def test_a_logit_depends_on_its_own_image_alone():
    g, d = pair()
    x = np.asarray(g(g.noise(jax.random.key(1), 3), np.array([0, 1, 2])))
    one = d(x[1:2], np.array([1]))
    np.testing.assert_allclose(d(x, np.array([0, 1, 2]))[1], one[0], rtol=1e-5)


def test_every_parameter_of_both_has_a_gradient_through_the_penalty_as_well():
    (g_graph, g), (d_graph, d) = (nnx.split(model) for model in pair())
    labels = np.array([0, 1, 2, 3, 1])
    x = jnp.asarray(RNG.uniform(-1, 1, (5, 4, 6, 2)), jnp.float32)
    z = jax.random.normal(jax.random.key(0), (5, 5))

    @jax.jit
    def gradients(g, d):
        def pays(d):
            return models.gradient_penalty(nnx.merge(d_graph, d), x, labels).sum()

        def forges(g):
            game = models.non_saturating()
            return models.generator_loss(
                nnx.merge(g_graph, g), nnx.merge(d_graph, d), game, z, labels
            )

        return jax.grad(forges)(g), jax.grad(pays)(d)

    of_g, of_d = gradients(g, d)
    for path, slope in jax.tree_util.tree_leaves_with_path(of_g):
        assert np.abs(slope).max() > 0, path
    for path, slope in jax.tree_util.tree_leaves_with_path(of_d):
        # The logit's own offset, which is one number alone, has no part in a slope.
        assert slope.shape == (1,) or np.abs(slope).max() > 0, path


# ----------------------------------------------------------------------------------- training


class Place(nnx.Module):
    """A generator of one point, wherever the noise lies."""

    def __init__(self, start):
        self.point = nnx.Param(jnp.asarray([start], jnp.float32))

    def noise(self, key, count):
        return jax.random.normal(key, (count, 1))

    def __call__(self, z, cond):
        return jnp.broadcast_to(self.point[...], z.shape)


class Slope(nnx.Module):
    """A linear discriminator."""

    def __init__(self, start):
        self.weight = nnx.Param(jnp.asarray([start], jnp.float32))

    def __call__(self, x, cond):
        return x @ self.weight[...]


def batches():
    while True:
        yield np.zeros((4, 1), np.float32), None


def dirac(penalty, steps, game=None, rate=0.1, **more):
    """Data at 0, a generator of one point, a linear discriminator: no network is smaller."""
    return adversarial.fit(
        Place(1.0), Slope(0.5), batches(), steps=steps, key=jax.random.key(0), penalty=penalty,
        optimizer=optax.sgd(rate), game=game, **more,
    )  # fmt: skip


@pytest.mark.parametrize("penalty", [0.0, 0.6])
def test_the_players_take_turns_the_discriminator_first(penalty):
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    point, weight, pays = 1.0, 0.5, []
    for _ in range(7):
        pays.append(np.log(2) + np.log1p(np.exp(weight * point)) + penalty / 2 * weight**2)
        # d/dw of softplus(0) + softplus(w·point) + γ/2·w², and then d/dpoint of softplus(−w·point).
        weight = weight - 0.1 * (sigmoid(weight * point) * point + penalty * weight)
        point = point + 0.1 * sigmoid(-weight * point) * weight
    found = dirac(penalty, 7)
    assert float(found.generator.model.point[0]) == pytest.approx(point, rel=1e-5)
    assert float(found.discriminator.model.weight[0]) == pytest.approx(weight, rel=1e-5)
    np.testing.assert_allclose(found.discriminator.history.loss, pays, rtol=1e-5)


def test_without_the_penalty_they_circle_and_with_it_they_settle():
    def away(penalty):
        found = dirac(penalty, 600)
        point = float(found.generator.model.point[0])
        return np.hypot(point, float(found.discriminator.model.weight[0]))

    # From a distance of 1.1: the steps of a tenth lose a part of it, the penalty all.
    assert away(0.0) > 0.2 and away(1.0) < 1e-3


def test_the_average_of_a_circle_lies_inside_it():
    found = dirac(0.0, 600)
    raw, mean = (float(m.point[0]) for m in (found.generator.model, found.generator.ema))
    weight = float(found.discriminator.model.weight[0])
    assert abs(mean) < 0.5 * np.hypot(raw, weight)


def test_a_training_of_two_networks_changes_neither_and_says_when_it_fails():
    place, slope = Place(1.0), Slope(0.5)
    options = {"steps": 3, "key": jax.random.key(0), "optimizer": optax.sgd(0.1)}
    adversarial.fit(place, slope, batches(), **options)
    assert place.point[0] == 1 and slope.weight[0] == 0.5
    with pytest.raises(ValueError, match="batches must yield 3, ended after 1"):
        adversarial.fit(place, slope, [next(batches())], **options)
    with pytest.raises(ValueError, match="steps must be a whole number at least 1, got 0"):
        adversarial.fit(place, slope, batches(), **options | {"steps": 0})
    bad = [(np.full((4, 1), np.inf, np.float32), None)] * 3
    with pytest.raises(TrainingDiverged, match="stopped at step 1"):
        adversarial.fit(place, slope, bad, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(Generator, (4, 5)), "image_size must be a multiple of 2, got 5"),
        (lambda: build(Generator, 4, latents=0), "latents must be a whole number at least 1"),
        (lambda: build(Generator, 4, channels=(12,)), "channels must be multiples of 8"),
        (lambda: build(Discriminator, 4, features=0), "features must be a whole number at least"),
        (lambda: build(Discriminator, 4, num_classes=0), "num_classes must be a whole"),
        (lambda: pair()[0](np.zeros((2, 4))), r"x must have shape \[B, 5\], got \[2, 4\]"),
        (lambda: pair()[1](np.zeros((2, 6, 4, 2))), r"x must have shape \[B, 4, 6, 2\], got \[2"),
        (lambda: pair()[0].noise(jax.random.key(0), 0), "count must be a whole number at least 1"),
        (lambda: pair()[1](np.zeros((2, 4, 6, 2)), np.array([0, 4])), "cond must be in 0 … 3"),
        (
            lambda: models.discriminator_loss(
                None, models.hinge(), np.zeros((2, 3)), np.zeros((3, 2)), None
            ),
            r"fake must have the shape of real, \[2, 3\], got shape \[3, 2\]",
        ),
        (
            lambda: models.discriminator_loss(
                None, models.hinge(), np.zeros((2, 3)), np.zeros((2, 3)), None, -1.0
            ),
            "penalty must be in",
        ),
    ],
)
def test_bad_arguments_of_a_game_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_pair_without_labels_takes_none():
    g = shape_of(lambda: build(Generator, 8, latents=5, num_classes=None))
    d = shape_of(lambda: build(Discriminator, 8, num_classes=None))
    z, x = jnp.zeros((2, 5)), jnp.zeros((2, 8, 8, 1))
    assert output_of(g, z).shape == x.shape and output_of(d, x).shape == (2,)
    for model, given in ((g, z), (d, x)):
        with pytest.raises(ValueError, match="cond must be None"):
            output_of(model, given, jnp.zeros(2, int))
