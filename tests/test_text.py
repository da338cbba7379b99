"""Captions: their numbers, the network that reads them, and a U-Net that attends to them."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, initial, normals, output_of, parameters, shape_of

from diffusion_course import data, denoiser, guidance, losses, process, samplers, sampling
from diffusion_course.data import shapes
from diffusion_course.models import attention
from diffusion_course.models.cross import CrossAttention, ImageCrossAttention
from diffusion_course.models.text import TextEncoder, Tokeniser
from diffusion_course.models.unet import UNet

rng = np.random.default_rng(15)
LANGUAGE = shapes.LANGUAGE


pytestmark = pytest.mark.usefixtures("quickly_compiled")


array = normals(rng)


# ----------------------------------------------------------------------------------- tokeniser


def test_every_caption_of_the_shapes_comes_back_from_its_numbers():
    captions = [shapes.caption(*words) for words in itertools.product(*shapes.ATTRIBUTES.values())]
    tokens = LANGUAGE(captions)
    assert tokens.shape == (6 * 8 * 2 * 9, 8) and tokens.dtype == np.int32
    assert LANGUAGE.captions(tokens) == captions
    # Every word is used but the free one, and no column is without a word.
    assert set(np.unique(tokens)) == {*range(LANGUAGE.padding + 1)} - {shapes.WORDS.index("*")}
    assert (tokens != LANGUAGE.padding).any(axis=0).all()
    np.testing.assert_array_equal(LANGUAGE.mask(tokens).sum(1), [len(c.split()) for c in captions])


def test_a_word_is_the_number_of_its_place_and_the_rest_is_padding():
    tokeniser = Tokeniser(("ring", "a", "red"), 4)
    assert tokeniser.padding == 3
    assert tokeniser("A  red ring").tolist() == [[1, 2, 0, 3]]
    assert tokeniser(["", "ring"]).tolist() == [[3, 3, 3, 3], [0, 3, 3, 3]]
    assert tokeniser.captions(np.array([[3, 1, 3, 0]])) == ["a ring"]
    assert tokeniser([]).shape == (0, 4)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("a large purpel ring", "captions must use the 27 known words, got 'purpel'; .* 'purple'"),
        (["a", "a large xyzzy"], r"captions must use the 27 known words, got 'xyzzy'$"),
        ("a " * 9, "captions must have at most 8 words, got 9"),
        (["a", None], "captions must be strings, got None"),
    ],
)
def test_a_caption_of_another_language_is_refused(captions, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LANGUAGE(captions)


@pytest.mark.parametrize(
    ("words", "length", "message"),
    [
        ((), 4, "words must be a tuple of at least one word"),
        (["a"], 4, "words must be a tuple of at least one word"),
        (("a", "b", "a"), 4, "words must differ, got 'a' twice"),
        (("a", "two words"), 4, "words must be single words in lower case, got 'two words'"),
        (("a", "Red"), 4, "words must be single words in lower case, got 'Red'"),
        (("a", ""), 4, "words must be single words in lower case, got ''"),
        (("a",), 1, "length must be a whole number at least 2, got 1"),
    ],
)
def test_a_language_without_sense_is_refused(words, length, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Tokeniser(words, length)


def test_a_number_that_is_no_word_is_refused():
    with pytest.raises(ValueError, match=r"cond must be in 0 … 27, got 0 … 28"):
        LANGUAGE.captions(np.array([[0, 28]]))


def test_the_answers_about_a_picture_are_those_its_caption_gives():
    some = shapes.load("test", n=50, size=8)
    got = shapes.answers(some)
    assert got.shape == (50, 4) and got.dtype == np.int32
    lists = list(shapes.ATTRIBUTES.values())
    for row, said in zip(got, some.attributes["caption"], strict=True):
        assert said == shapes.caption(*(names[k] for k, names in zip(row, lists, strict=True)))
    np.testing.assert_array_equal(shapes.answers(some.subset([7, 3])), got[[7, 3]])
    with pytest.raises(ValueError, match="data must be of shapes"):
        shapes.answers(data.load("toy2d", n=10))


# --------------------------------------------------------------------------------- cross-attention


def test_cross_attention_is_a_weighted_mean_of_the_words_that_count():
    layer = drawn(lambda: CrossAttention(6, 3, context=4, qk_norm=False, rngs=nnx.Rngs(0)), seed=3)
    x, context = array(2, 5, 6), array(2, 7, 4)
    mask = np.array([[1, 1, 0, 1, 0, 0, 1], [0, 1, 1, 1, 1, 1, 1]], bool)
    p = {k: np.asarray(v, np.float64) for k, v in parameters(layer).items()}
    p = {"".join(c for c in k if c.isalpha() or c == "_"): v for k, v in p.items()}
    p = {k.removesuffix("value"): v for k, v in p.items()}
    q = (x @ p["qkernel"] + p["qbias"]).reshape(2, 5, 3, 2)
    k, v = np.split(context @ p["kvkernel"] + p["kvbias"], 2, axis=-1)
    k, v = k.reshape(2, 7, 3, 2), v.reshape(2, 7, 3, 2)
    weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(2)) * mask[:, None, None]
    weights = weights / weights.sum(-1, keepdims=True)
    want = np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 5, 6) @ p["outkernel"] + p["outbias"]
    np.testing.assert_allclose(layer(x, context, mask), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.weights(x, context, mask), weights, rtol=1e-4, atol=1e-6)
    # Whatever stands under the mask, be it huge: −∞ leaves it no weight at all.
    np.testing.assert_array_equal(
        layer(x, np.where(mask[..., None], context, 1e20).astype(np.float32), mask),
        layer(x, context, mask),
    )


def test_a_row_without_a_word_that_counts_is_finite_and_says_nothing():
    q, k, v = array(2, 3, 4, 6), array(2, 3, 5, 6), array(2, 3, 5, 2)
    mask = np.array([[False] * 5, [True, False, True, True, False]])

    def mixed(q, k, v):
        return attention.attention(q, k, v, mask)

    got = np.asarray(mixed(q, k, v))
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_array_equal(attention.attention_weights(q, k, mask)[0], 0)
    np.testing.assert_array_equal(got[1:], attention.attention(q[1:], k[1:], v[1:], mask[1:]))
    slopes = jax.grad(lambda *parts: mixed(*parts).sum(), argnums=(0, 1, 2))(q, k, v)
    for slope in slopes:
        assert np.isfinite(slope).all() and (slope[0] == 0).all()
        assert np.abs(slopes[2][1]).max() > 0


def test_the_weights_of_an_attention_are_those_it_mixes_with():
    q, k, v = array(2, 3, 4, 6), array(2, 3, 5, 6), array(2, 3, 5, 2)
    for mask in (None, np.array([[True] * 5, [False, True, True, False, True]])):
        weights = attention.attention_weights(q, k, mask)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
        want = np.einsum("bhnm,bhme->bnhe", weights, v).reshape(2, 4, 6)
        np.testing.assert_allclose(attention.attention(q, k, v, mask), want, rtol=1e-5, atol=1e-6)


def test_an_image_that_reads_a_context_starts_as_it_is():
    layer = initial(lambda: ImageCrossAttention(16, 6, 8, rngs=nnx.Rngs(0)))
    x, context = array(2, 3, 5, 16), array(2, 4, 6)
    np.testing.assert_array_equal(layer(x, context), x)
    maps = layer.maps(x, context, np.array([[True, True, False, True]] * 2))
    assert maps.shape == (2, 3, 5, 4)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-6)


# ----------------------------------------------------------------------------------- the encoder


WORDS = 7
CAPTIONS = np.array(
    [[4, 0, 6, 2, 7, 7], [1, 5, 7, 7, 7, 7], [7, 7, 7, 7, 7, 7], [3, 3, 2, 1, 0, 5]]
)


@cache
def encoder():
    return drawn(lambda: TextEncoder(WORDS, 24, 2, head_size=12, rngs=nnx.Rngs(0)), seed=5)


read = jax.jit(lambda model, captions: model(captions))


def test_padding_changes_nothing():
    tokens, mask = read(encoder(), CAPTIONS)
    assert tokens.shape == (4, 7, 24) and mask.dtype == bool
    np.testing.assert_array_equal(mask[:, 0], True)
    np.testing.assert_array_equal(mask[:, 1:], CAPTIONS != WORDS)
    for row, length in enumerate((4, 2, 1, 6)):
        alone, _ = read(encoder(), CAPTIONS[row : row + 1, :length])
        n = 1 + (CAPTIONS[row] != WORDS).sum()
        # The same terms in sums of another length: their rounding may differ.
        np.testing.assert_allclose(tokens[row, :n], alone[0, :n], rtol=1e-5, atol=1e-5)


def test_a_captions_numbers_hang_on_its_words_and_on_their_order():
    tokens = np.asarray(read(encoder(), CAPTIONS)[0])
    swapped, other = CAPTIONS.copy(), CAPTIONS.copy()
    swapped[0, :2] = swapped[0, 1::-1]
    other[1, 1] = 4
    assert np.abs(read(encoder(), swapped)[0][0, 0] - tokens[0, 0]).max() > 1e-2
    changed = np.abs(read(encoder(), other)[0] - tokens).max(axis=-1)
    assert (changed[1, :3] > 1e-2).all()  # also of the first token, which sums it up
    assert (changed[[0, 2, 3]] == 0).all()  # of no other caption


def test_the_null_caption_has_a_trained_token_and_is_not_zero():
    def summary(model):
        return model(CAPTIONS)[0][2, 0]

    assert np.abs(summary(encoder())).max() > 0.1
    slope = jax.grad(lambda model: (summary(model) * np.arange(24)).sum())(encoder())
    embedding = np.asarray(slope.words.embedding[...])
    assert (np.abs(embedding).max(axis=1) > 0).tolist() == [False] * WORDS + [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_words": 0}, "num_words must be a whole number at least 1, got 0"),
        ({"depth": 0}, "depth must be a whole number at least 1, got 0"),
        ({"width": 20}, "head_size must divide channels = 20, got 16"),
        ({"width": 33, "head_size": 11}, "width must be a multiple of 2, got 33"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        shape_of(lambda: TextEncoder(**{"num_words": 3} | options, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (np.array([[0, 8]]), r"cond must be in 0 … 7, got 0 … 8"),
        (np.array([[0.5, 1.0]]), "cond must be whole numbers"),
        (np.zeros((2, 0), int), "cond must be labels .* or tokens"),
    ],
)
def test_captions_that_are_no_numbers_of_words_are_refused(captions, message):
    with pytest.raises(ValueError, match=message):
        encoder()(captions)


# ---------------------------------------------------------------------------- a U-Net with captions


def unet(**options):
    options = {"num_classes": WORDS, "conditioning": "cross-attention"} | options
    return UNet(2, (16, 32), stem=2, **options, rngs=nnx.Rngs(0))


X, T = array(4, 8, 16, 2), np.float32([0.1, 0.4, 0.6, 0.9])


@cache
def program(graph):
    def loss(params, x, t, cond, y):
        out = nnx.merge(graph, params)(x, t, cond)
        return jnp.mean((out - y) ** 2), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def call(model, cond, x=X, t=T):
    graph, params = nnx.split(model)
    return np.asarray(program(graph)(params, x, t, cond, np.zeros_like(x))[0][1])


@cache
def reader():
    return drawn(unet, seed=8)


def test_a_unet_hears_every_word_of_its_caption():
    whole = call(reader(), CAPTIONS)
    assert whole.shape == X.shape
    for row, place in ((0, 0), (0, 3), (1, 1), (3, 5)):
        other = CAPTIONS.copy()
        other[row, place] = (other[row, place] + 1) % WORDS
        changed = np.abs(call(reader(), other) - whole).reshape(4, -1).max(1)
        assert changed[row] > 1e-4 and (np.delete(changed, row) == 0).all()


def test_padding_and_no_caption_are_nothing_to_a_unet():
    whole = call(reader(), CAPTIONS)
    longer = np.pad(CAPTIONS, ((0, 0), (0, 3)), constant_values=WORDS)
    np.testing.assert_allclose(call(reader(), longer), whole, rtol=1e-4, atol=1e-5)
    nothing = np.full_like(CAPTIONS, WORDS)
    np.testing.assert_allclose(call(reader(), None), call(reader(), nothing), rtol=1e-4, atol=1e-5)
    assert np.abs(call(reader(), nothing)[0] - whole[0]).max() > 1e-3
    np.testing.assert_array_equal(call(reader(), nothing)[2], whole[2])


def test_every_parameter_of_a_unet_with_captions_learns():
    graph, params = nnx.split(initial(unet))
    y, first = array(*X.shape), None
    for _ in range(4):  # the last layer, the zero layers inside, what stands behind them, and on
        (_, out), gradient = program(graph)(params, X, T, CAPTIONS, y)
        first = out if first is None else first
        params = jax.tree.map(
            lambda p, g: np.asarray(p) - 0.1 * np.asarray(g) / (1e-8 + np.abs(g).max()),
            params,
            gradient,
        )
    np.testing.assert_array_equal(first, 0)
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]
        if not np.abs(leaf).max() > 0
    ]
    assert dead == []
    assert any("cross" in key for key in parameters(nnx.merge(graph, params)))


def test_a_map_for_each_word_adds_up_to_one_and_padding_has_none():
    maps = jax.jit(lambda model, *inputs: model.attention_maps(*inputs))(reader(), X, T, CAPTIONS)
    assert maps.shape == (4, 2, 4, 7)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    assert (np.asarray(maps)[..., 1:][np.broadcast_to((CAPTIONS == WORDS)[:, None, None], (4, 2, 4, 6))] == 0).all()  # fmt: skip  # noqa: E501
    assert (np.asarray(maps)[..., 1:][3] > 0).all()
    # Of the null caption only its own token is left.
    np.testing.assert_allclose(maps[2, ..., 0], 1, rtol=1e-6)


def test_without_captions_a_unet_has_the_parameters_of_before():
    film = shape_of(lambda: UNet(2, (16, 32), num_classes=WORDS, rngs=nnx.Rngs(0)))
    assert not any("text" in key or "cross" in key for key in parameters(film))
    assert film.embed.label is not None and shape_of(unet).embed.label is None
    with pytest.raises(ValueError, match='attention_maps needs a model with conditioning="cross'):
        output_of(film, X, T, CAPTIONS[:, 0])
        film.attention_maps(X, T, CAPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"conditioning": "cross"},
            "conditioning must be one of film, cross-attention, got 'cross'",
        ),
        ({"num_classes": None}, "num_classes must be the number of words for captions, got None"),
    ],
)
def test_a_unet_that_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        shape_of(lambda: unet(**options))


def test_a_caption_of_another_number_of_examples_is_refused():
    with pytest.raises(
        ValueError, match=r"cond must be labels \[B\] or tokens \[B, L\] with B = 4"
    ):
        output_of(shape_of(unet), X, T, CAPTIONS[:3])


# --------------------------------------------------------- captions in losses, guidance and batches


def spoken(x, t, cond):
    """A network, as far as guidance can see: every example by itself, with its time and caption."""
    told = jnp.sin(cond * jnp.arange(1, 7)).sum(axis=1)
    return jnp.tanh(x * (1 + told[:, None])) - t[:, None]


def test_one_batched_evaluation_with_captions_equals_two():
    p, x, t = process.vp_cosine(), array(4, 3), np.float32([0.2, 0.5, 0.6, 0.8])
    null = np.full_like(CAPTIONS, WORDS)
    got = guidance.classifier_free_batched(spoken, p, "v", CAPTIONS, null, 2.5)(x, t)
    each = (denoiser.denoiser(spoken, p, "v", cond) for cond in (CAPTIONS, null))
    np.testing.assert_allclose(got, guidance.classifier_free(*each, 2.5)(x, t), atol=1e-5)
    with pytest.raises(ValueError, match=r"null must be whole numbers of shape \[4, 6\]"):
        guidance.classifier_free_batched(spoken, p, "v", CAPTIONS, null[:, :5], 2.5)
    with pytest.raises(ValueError, match=r"labels must be one per example, \[3\]"):
        guidance.classifier_free_batched(spoken, p, "v", CAPTIONS, null, 2.5)(x[:3], 0.5)


class Speaker(nnx.Module):
    def __init__(self):
        self.null_label = WORDS

    def __call__(self, x, t, cond):
        return spoken(x, t, cond)


def test_a_generator_takes_captions_and_guides_them():
    p = process.vp_cosine()
    generate = sampling.generator(p, "v", samplers.ddim(p), sampling.uniform(2), (3,))
    key = jax.random.key(3)
    zero, one, two = (generate(Speaker(), key, 4, CAPTIONS, w) for w in (0.0, 1.0, 2.0))
    nothing = generate(Speaker(), key, 4, np.full_like(CAPTIONS, WORDS))
    np.testing.assert_allclose(zero, nothing, atol=1e-5)
    assert np.abs(one - zero)[[0, 1, 3]].min() > 1e-4 and np.abs(two - one).max() > 1e-3
    np.testing.assert_allclose(one[2], zero[2], atol=1e-5)  # the null caption
    with pytest.raises(ValueError, match=r"labels must be whole numbers of shape \[4, 6\]"):
        generate(Speaker(), key, 4, CAPTIONS[:3])


def test_captions_are_dropped_as_a_whole():
    n = 4000
    captions = rng.integers(0, WORDS, (n, 3))
    got = np.asarray(losses.drop_labels(jax.random.key(2), captions, WORDS, 0.3))
    dropped = (got == WORDS).all(axis=1)
    np.testing.assert_array_equal(got[~dropped], captions[~dropped])
    assert abs(dropped.mean() - 0.3) <= 4 * np.sqrt(0.3 * 0.7 / n)  # four standard errors


def test_captions_can_be_trained_on_with_their_padding():
    data.check_batch(X, CAPTIONS, WORDS)
    with pytest.raises(ValueError, match=r"labels must be in 0 … 6, got 0 … 7"):
        data.check_batch(X, CAPTIONS, WORDS - 1)
    with pytest.raises(ValueError, match=r"labels must be in 0 … 6, got 7 … 7"):
        data.check_batch(X, np.full(4, WORDS), WORDS)
