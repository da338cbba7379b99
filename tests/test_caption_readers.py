"""Captions through one door: transformers of one stream and of two read them as a U-Net does.

That of the U-Net itself is tested in test_text.py.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from networks import drawn, initial, normals, parameters, shape_of

from diffusion_course import guidance, process, samplers, sampling
from diffusion_course.denoiser import denoiser
from diffusion_course.models.blocks import Block
from diffusion_course.models.cross import ImageCrossAttention
from diffusion_course.models.dit import CONDITIONING, DiT
from diffusion_course.models.layers import layer_norm
from diffusion_course.models.mmdit import MMDiT

rng = np.random.default_rng(83)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


array = normals(rng)

SIZES = {"patch": 2, "width": 24, "head_size": 12, "depth": 1, "num_classes": 6}
READERS = {
    "DiT": lambda: DiT((4, 6), 2, captions=True, **SIZES, rngs=nnx.Rngs(0)),
    "MMDiT": lambda: MMDiT((4, 6), 2, **SIZES, rngs=nnx.Rngs(0)),
}
every_reader = pytest.mark.parametrize("name", READERS)
X, T = array(3, 4, 6, 2), np.float32([0.1, 0.5, 0.9])
CAPTIONS = np.array([[0, 5, 3, 6], [2, 6, 6, 6], [6, 6, 6, 6]])  # of 3 words, of 1, of none


@cache
def reader(name):
    return drawn(READERS[name], seed=5)


forward = jax.jit(lambda model, cond: model(X, T, cond))


@every_reader
def test_padding_changes_nothing_and_every_word_something(name):
    model = reader(name)
    whole = np.asarray(forward(model, CAPTIONS))
    longer = np.concatenate([CAPTIONS, np.full((3, 3), 6)], axis=1)
    np.testing.assert_allclose(forward(model, longer), whole, rtol=1e-4, atol=1e-5)
    if name == "DiT":  # the other is asked in a file of its own
        nothing = np.asarray(forward(model, None))
        np.testing.assert_allclose(whole[2], nothing[2], rtol=1e-4, atol=1e-5)
        assert np.abs(whole - nothing)[:2].max((1, 2, 3)).min() > 1e-3
    for b, place, word in ((0, 0, 4), (0, 2, 1), (1, 0, 3), (2, 0, 0)):
        other = CAPTIONS.copy()
        other[b, place] = word
        moved = np.abs(forward(model, other) - whole).max((1, 2, 3)) > 1e-3
        np.testing.assert_array_equal(moved, np.arange(3) == b)
    swapped = np.abs(forward(model, CAPTIONS[:, [1, 0, 2, 3]]) - whole).max((1, 2, 3))
    assert swapped[0] > 1e-3  # the order of the words counts


@every_reader
def test_a_reader_takes_part_in_guidance_and_sampling_as_any_model(name):
    p, times = process.vp_cosine(), sampling.uniform(3)

    @jax.jit
    def draw(model, noise, w):
        told, untold = (
            denoiser(model, p, "v", c) for c in (jnp.asarray(CAPTIONS), jnp.full((3, 4), 6))
        )
        D = guidance.classifier_free(told, untold, w)
        return sampling.sample(samplers.ddim(p), D, noise, times, jax.random.key(0))[0]

    free, told, guided = (np.asarray(draw(reader(name), X, w)) for w in (0.0, 1.0, 3.0))
    # The third caption is the null caption: guidance has nothing to push with.
    np.testing.assert_allclose(guided[2], free[2], rtol=1e-4, atol=1e-4)
    for a, b in ((free, told), (told, guided)):
        assert np.abs(a - b)[:2].max((1, 2, 3)).min() > 1e-3
    assert np.isfinite(guided).all()


# ------------------------------------------------------------------------------ the DiT's own part


def make_block():
    return Block(24, 2, captioned=True, rngs=nnx.Rngs(3))


@cache
def new_block():
    return nnx.split(initial(make_block))


def test_a_new_block_hears_no_word_and_is_the_identity_bit_for_bit():
    block = nnx.merge(*new_block())
    x, told = array(2, 6, 24), array(2, 24)
    caption = array(2, 5, 24), np.array([[True] * 5, [True] + [False] * 4])
    run = jax.jit(lambda block, caption: block(x, told, caption=caption))
    np.testing.assert_array_equal(run(block, caption), x)
    # With everything but the last layer of the reading moved, it still hears no word.
    moved = drawn(make_block, seed=6)
    want = np.asarray(run(moved, caption))
    last = moved.cross.out
    last.kernel[...], last.bias[...] = jnp.zeros((24, 24)), jnp.zeros(24)
    deaf = np.asarray(run(moved, caption))
    np.testing.assert_array_equal(deaf, run(moved, (7 * caption[0], caption[1])))
    assert np.abs(deaf - want).max() > 1e-2


def test_patches_read_a_caption_as_the_pixels_of_a_unet_do():
    # Behind closed gates all that a block does is to read, by the very layer of the U-Net.
    layer = drawn(lambda: ImageCrossAttention(24, 24, 12, rngs=nnx.Rngs(0)), seed=7)
    block = nnx.merge(*new_block())
    block.cross = layer.cross
    x, words = array(2, 2, 3, 24), array(2, 5, 24)
    mask = np.array([[True] * 5, [True, True, False, False, False]])

    @jax.jit
    def both(block, layer):
        tokens = x.reshape(2, 6, 24)
        read = block(tokens, jnp.zeros((2, 24)), caption=(words, mask)) - tokens
        layer._tokens = lambda x: layer_norm(x.reshape(2, 6, 24))  # the norm of transformers
        return read, (layer(x, words, mask) - x).reshape(read.shape)

    ours, theirs = both(block, layer)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(ours).max() > 0.1


def test_a_dit_learns_what_only_the_caption_says():
    # Four grey images, one for each caption; x is noise that says nothing. A network that is deaf
    # can say the mean of the four at best, at an error of their variance.
    greys, captions = (
        np.float32([-0.75, -0.25, 0.25, 1.0]),
        np.array([[0, 1], [1, 0], [2, 3], [3, 3]]),
    )
    images = np.broadcast_to(greys[:, None, None, None], (4, 4, 6, 2))
    deaf = greys.var()
    graph, params = nnx.split(reader("DiT"))
    before = {path: np.array(value) for path, value in parameters(params).items()}
    optimizer = optax.flatten(optax.adam(1e-2))

    @jax.jit
    def step(params, state, x):
        def loss(params):
            return jnp.mean((nnx.merge(graph, params)(x, jnp.ones(4), captions) - images) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses, own = optimizer.init(params), [], normals(np.random.default_rng(2))
    for _ in range(60):
        params, state, value = step(params, state, own(4, 4, 6, 2))
        losses.append(float(value))
    # It ends at a tenth of what a deaf one could reach, and began above that.
    assert np.mean(losses[-3:]) < deaf / 10 < deaf < losses[0]
    # Adam leaves a parameter where it is if its gradient is always 0.
    after = {path: np.asarray(value) for path, value in parameters(params).items()}
    assert all((after[path] != value).any() for path, value in before.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            (
                {"conditioning": c},
                f"conditioning must be adaln-zero or adaln-single for captions, got {c}",
            )
            for c in CONDITIONING[2:]
        ),
        ({"num_classes": None}, "num_classes must be the number of words for captions, got None"),
    ],
)
def test_captions_that_nobody_could_read_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        shape_of(partial(DiT, 4, captions=True, **(SIZES | changes), rngs=nnx.Rngs(0)))


def test_a_row_of_another_batch_or_with_an_unknown_word_is_refused():
    model = reader("DiT")
    with pytest.raises(ValueError, match=r"cond must be labels \[B\] or tokens \[B, L\]"):
        model(X, T, CAPTIONS[:2])
    with pytest.raises(ValueError, match="cond must be"):
        model(X, T, CAPTIONS + 1)
