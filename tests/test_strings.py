"""The transformer for strings: what each place sees, and what each model is told."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, initial, parameters, shape_of

from diffusion_course import discrete
from diffusion_course.models.strings import StringTransformer

rng = np.random.default_rng(20)
K, L = 5, 6
X = rng.integers(0, K + 1, (3, L))
T = np.float32([0.1, 0.5, 0.9])


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def make(**more):
    options = {"width": 24, "depth": 2, "head_size": 12}
    return StringTransformer(K, L, **(options | more), rngs=nnx.Rngs(1))


@cache
def model(**more):
    return drawn(lambda: make(**more), seed=4)


@jax.jit
def forward(model, x, t, cond):
    return model(x, t, cond)


def call(model, x=X, t=T, cond=None):
    return np.asarray(forward(model, np.asarray(x), t, cond))


def test_an_untrained_model_gives_all_letters_the_same_and_each_of_its_parameters_learns():
    graph, params = nnx.split(initial(lambda: make(features=4)))
    x, cond = rng.integers(0, K + 1, (64, L)), rng.normal(0, 1, (64, 4)).astype(np.float32)
    x0, t = rng.integers(0, K, (64, L)), np.full(64, 0.5, np.float32)

    @jax.jit
    def run(params):
        def loss(params):
            out = nnx.merge(graph, params)(x, t, cond)
            nll = -jax.nn.log_softmax(out)[jnp.arange(64)[:, None], jnp.arange(L), x0]
            return nll.mean(), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    # One after the other move the output layer, the gates, and what lies behind them.
    for step in range(4):
        (loss, out), gradient = run(params)
        if step == 0:
            np.testing.assert_array_equal(out, np.zeros((64, L, K)))
            assert loss == pytest.approx(np.log(K))
        alive = {jax.tree_util.keystr(path): np.abs(leaf).max()
                 for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]}  # fmt: skip
        params = jax.tree.map(
            lambda p, g: p - 0.1 * g / (1e-8 + jnp.abs(g).max()), params, gradient
        )
    assert min(alive.values()) > 0, alive


def moved(model, place):
    """Whose logits change if the token at a place does: [L]."""
    other = X.copy()
    other[:, place] = (other[:, place] + 1) % (K + 1)
    return np.abs(call(model, other) - call(model)).max((0, 2)) > 1e-5


def test_a_causal_place_depends_on_the_letters_before_it_alone():
    for place in range(L):
        np.testing.assert_array_equal(moved(model(causal=True), place), np.arange(L) > place)


def test_without_that_every_place_depends_on_every_token():
    assert all(moved(model(), place).all() for place in range(L))


def test_both_have_the_same_parameters():
    both = [parameters(shape_of(lambda causal=causal: make(causal=causal))) for causal in (0, 1)]
    assert {k: v.shape for k, v in both[0].items()} == {k: v.shape for k, v in both[1].items()}


def test_only_a_model_that_reads_the_time_is_told_it():
    other = T * np.float32(0.7)
    np.testing.assert_array_equal(call(model(), t=other), call(model()))
    apart = np.abs(call(model(reads_time=True), t=other) - call(model(reads_time=True)))
    assert apart.max((1, 2)).min() > 1e-4


def test_labels_and_features_are_heard_by_their_own_example():
    for more, cond, other in (
        ({"num_classes": 3}, np.array([0, 2, 1]), np.array([0, 2, 2])),
        (
            {"features": 4},
            np.ones((3, 4), np.float32),
            np.float32([[1] * 4, [1] * 4, [1, 1, 1, 2]]),
        ),
    ):
        apart = np.abs(call(model(**more), cond=other) - call(model(**more), cond=cond))
        np.testing.assert_array_equal(apart.max((1, 2)) > 1e-4, [False, False, True])
    labelled = model(num_classes=3)
    assert labelled.null_label == 3
    np.testing.assert_array_equal(call(labelled), call(labelled, cond=np.array([3, 3, 3])))
    pictured = model(features=4)
    np.testing.assert_array_equal(call(pictured), call(pictured, cond=np.zeros((3, 4), np.float32)))


def test_examples_do_not_mix_and_places_are_told_apart():
    order = [2, 0, 1]
    np.testing.assert_allclose(call(model(), X[order], T[order]), call(model())[order], atol=1e-5)
    masks = call(model(), np.full((3, L), K))
    assert min(np.abs(masks[0, i] - masks[0, j]).max() for i in range(L) for j in range(i)) > 1e-4


def test_it_is_a_model_of_the_chains():
    for chain in (discrete.absorbing(K), discrete.uniform(K)):
        x = np.minimum(X, chain.states - 1)
        D = discrete.denoiser(model(num_classes=3), chain, np.array([0, 1, 3]))
        np.testing.assert_allclose(np.exp(jax.jit(D)(x, 0.4)).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "run, message",
    [
        (lambda: make(width=25, head_size=5), "width must be a multiple of 2"),
        (lambda: make(head_size=7), "head_size must divide"),
        (lambda: make(depth=0), "depth must be"),
        (lambda: make(num_classes=3, features=2), "features must be 0 in a model with labels"),
        (lambda: model()(X[:, 1:], T), r"x must have shape \[B, 6\]"),
        (lambda: model()(X + 1, T), "x must be in 0"),
        (lambda: model()(X, T[:2]), r"t must have shape"),
        (lambda: model()(X, T, np.array([0, 1, 2])), "cond must be None"),
        (lambda: model(features=4)(X, T, np.ones((3, 5), np.float32)), "must have shape"),
    ],
)
def test_bad_input_is_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()
