"""Two streams of tokens and one attention: the multimodal transformer."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, initial, normals, output_of, parameters, shape_of

from diffusion_course import weights
from diffusion_course.models import attention
from diffusion_course.models.mmdit import JointBlock, LastBlock, MMDiT

rng = np.random.default_rng(71)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


array = normals(rng)


def make(**more):
    options = {"patch": 2, "width": 24, "depth": 3, "head_size": 12, "num_classes": 6}
    return MMDiT((4, 6), 2, **(options | more), rngs=nnx.Rngs(1))


X, T = array(3, 4, 6, 2), np.float32([0.1, 0.5, 0.9])
CAPTIONS = np.array([[0, 5, 3, 6], [2, 6, 6, 6], [4, 1, 1, 2]])  # of 3, 1 and 4 tokens


@jax.jit
def forward(model, x, t, cond):
    return model(x, t, cond)


def call(model, x, t, cond):
    return np.asarray(forward(model, x, t, np.asarray(cond)))


@cache
def trained():
    return drawn(make, seed=4)


def test_an_untrained_model_says_zero_and_each_of_its_parameters_learns():
    graph, params = nnx.split(initial(make))
    y = array(*X.shape)

    @jax.jit
    def run(params):
        def loss(params):
            out = nnx.merge(graph, params)(X, T, CAPTIONS)
            return jnp.mean((out - y) ** 2), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    # One after the other move the output layer, the gates of the image's blocks, those of the
    # context's, which reach the output through the image alone, and what lies behind these.
    for step in range(4):
        (_, out), gradient = run(params)
        assert out.shape == X.shape and out.dtype == jnp.float32
        if step == 0:
            np.testing.assert_array_equal(out, 0)
        alive = {jax.tree_util.keystr(path): np.asarray(leaf)
                 for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]}  # fmt: skip
        params = jax.tree.map(
            lambda p, g: p - 0.1 * g / (1e-8 + jnp.abs(g).max()), params, gradient
        )
    for key, leaf in alive.items():
        # Each of the stacked blocks and each token's embedding, too.
        rows = leaf if "blocks" in key or "embedding" in key else leaf[None]
        assert (np.abs(rows).reshape(len(rows), -1).max(1) > 0).all(), key


def test_what_fills_up_a_caption_changes_nothing():
    model = trained()
    whole = call(model, X, T, CAPTIONS)
    alone = call(model, X, T, np.tile(CAPTIONS[1, :1], (3, 1)))
    np.testing.assert_allclose(alone[1], whole[1], rtol=1e-4, atol=1e-5)
    longer = np.concatenate([CAPTIONS, np.full((3, 2), 6)], axis=1)
    np.testing.assert_allclose(call(model, X, T, longer), whole, rtol=1e-4, atol=1e-5)


def test_a_caption_is_heard_word_by_word_and_in_its_order():
    model = trained()
    whole = call(model, X, T, CAPTIONS)
    for b, place, word in ((0, 2, 1), (1, 0, 3), (2, 1, 5)):
        other = CAPTIONS.copy()
        other[b, place] = word
        moved = np.abs(call(model, X, T, other) - whole).max((1, 2, 3)) > 1e-4
        np.testing.assert_array_equal(moved, np.arange(3) == b)
    swapped = CAPTIONS[:, [1, 0, 2, 3]]
    moved = np.abs(call(model, X, T, swapped) - whole).max((1, 2, 3)) > 1e-4
    assert moved.all()
    assert (
        np.abs(call(model, X, T * np.float32(0.9), CAPTIONS) - whole).max((1, 2, 3)) > 1e-4
    ).all()
    order = [2, 0, 1]
    np.testing.assert_allclose(
        call(model, X[order], T[order], CAPTIONS[order]), whole[order], rtol=1e-4, atol=1e-5
    )


def test_a_label_is_a_caption_of_one_word_and_no_label_is_none():
    model = trained()
    labels = np.array([4, 0, 6])
    got = call(model, X, T, labels)
    np.testing.assert_array_equal(got, call(model, X, T, labels[:, None]))
    # Without a context the image attends to itself alone, whatever the number of fillers.
    nothing = np.asarray(jax.jit(lambda m: m(X, T))(model))
    np.testing.assert_array_equal(nothing[2], got[2])
    assert np.abs(nothing - got)[:2].max((1, 2, 3)).min() > 1e-3
    assert model.null_label == 6


def full_attention(q, k, v):
    """Softmax attention in float64 NumPy: [B, H, N, d] -> [B, N, H·d]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(len(q), q.shape[2], -1)


def test_joint_attention_is_full_attention_over_both_streams_together():
    block = drawn(lambda: JointBlock(24, 2, qk_norm=True, dtype=jnp.float32, rngs=nnx.Rngs(0)), 3)
    x, c, emb = array(2, 6, 24), array(2, 3, 24), array(2, 24)
    counts = np.ones((2, 9), bool)
    angles = attention.rotary_angles(2, 3, 12)
    got = jax.jit(lambda b, x, c: b((x, c), emb, counts, angles))(block, x, c)

    def stream(part, tokens, angles):
        six = part.six(emb)
        return six, part.qkv_of(tokens, six, angles)

    (six_x, own), (six_c, other) = stream(block.image, x, angles), stream(block.context, c, None)
    mixed = full_attention(*(np.concatenate(pair, 2) for pair in zip(own, other, strict=True)))
    want = (
        block.image.finish(x, jnp.float32(mixed[:, :6]), six_x),
        block.context.finish(c, jnp.float32(mixed[:, 6:]), six_c),
    )
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    # With the same weights for both streams it is the ordinary block over one sequence.
    block.context = block.image
    joined = jax.jit(lambda b, x, c: b((x, c), emb, counts))(block, x, c)
    one = jax.jit(lambda b, x: b(x, emb))(block.image, np.concatenate([x, c], 1))
    np.testing.assert_allclose(np.concatenate(joined, 1), one, rtol=1e-4, atol=1e-4)


def test_the_last_block_gives_the_image_the_same_as_a_whole_one():
    whole = drawn(lambda: JointBlock(24, 2, qk_norm=True, dtype=jnp.float32, rngs=nnx.Rngs(0)), 3)
    last = drawn(lambda: LastBlock(24, 2, qk_norm=True, dtype=jnp.float32, rngs=nnx.Rngs(0)), 5)
    last.image, c = whole.image, whole.context
    for mine, its in (
        (last.modulation.kernel, c.modulation.kernel[...][:, :48]),  # shift and scale
        (last.modulation.bias, c.modulation.bias[...][:48]),
        (last.kv.kernel, c.qkv.kernel[...][:, 24:]),  # keys and values
        (last.kv.bias, c.qkv.bias[...][24:]),
        (last.k_norm.scale, c.k_norm.scale[...]),
    ):
        assert mine.shape == its.shape
        mine[...] = jnp.asarray(its)
    streams, emb = (array(2, 6, 24), array(2, 3, 24)), array(2, 24)
    counts = np.array([[True] * 9, [True] * 7 + [False] * 2])
    run = jax.jit(lambda block: block(streams, emb, counts))
    np.testing.assert_allclose(run(last), run(whole)[0], rtol=1e-5, atol=1e-5)


def test_a_joint_block_starts_as_the_identity_with_a_gradient_into_its_gates():
    block = initial(lambda: JointBlock(24, 2, qk_norm=True, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(block)
    streams, emb = (array(2, 6, 24), array(2, 3, 24)), array(2, 24)
    y = (array(2, 6, 24), array(2, 3, 24))

    @jax.jit
    def run(params):
        def loss(params):
            out = nnx.merge(graph, params)(streams, emb, np.ones((2, 9), bool))
            return sum(((a - b) ** 2).sum() for a, b in zip(out, y, strict=True)), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, out), gradient = run(params)
    for got, want in zip(out, streams, strict=True):
        np.testing.assert_array_equal(got, want)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        key = jax.tree_util.keystr(path)
        if "modulation" in key:
            six = np.abs(leaf).reshape(-1, 6, 24).max(axis=(0, 2))
            np.testing.assert_array_equal(six > 0, [False, False, True] * 2)
        else:
            assert not np.asarray(leaf).any(), key


def test_bfloat16_stays_near_float32():
    fine = trained()
    half = shape_of(partial(make, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in parameters(half).values()} == {jnp.dtype("float32")}
    coarse = nnx.merge(nnx.split(half)[0], nnx.state(fine))
    got = call(coarse, X, T, CAPTIONS)
    want = call(fine, X, T, CAPTIONS)
    assert got.dtype == np.float32
    # bfloat16 has 8 bits, a relative error of .004 per operation; some thirty follow each other.
    assert 1e-5 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.03


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (np.zeros((2, 3), int), r"cond must be labels \[B\] or tokens .* B = 3 .*shape \[2, 3\]"),
        (np.zeros((3, 0), int), r"cond must be .*L at least 1, got shape \[3, 0\]"),
        (np.zeros((3, 2, 1), int), r"cond must be whole numbers of shape \[3\], .*\[3, 2, 1\]"),
        (np.zeros((3, 2)), "cond must be whole numbers .*got float64"),
        (np.full((3, 2), 7), r"cond must be in 0 … 6, got 7 … 7"),
        (np.full(3, -1), r"cond must be in 0 … 6, got -1 … -1"),
    ],
)
def test_a_context_that_is_none_is_refused_by_name(cond, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(lambda model: model(X, T, cond), shape_of(make))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be a whole number at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be a whole number at least 1, got 0"),
        ({"positions": "none"}, "positions must be one of sin-cos, rotary, got 'none'"),
        ({"head_size": 10}, "head_size must divide channels = 24, got 10"),
        ({"patch": 4}, r"patch must divide image_size = \(4, 6\), got 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        shape_of(partial(make, **change))


def test_it_is_built_from_a_card_with_a_variance_and_with_one_block():
    description = {"class": "MMDiT", "image_size": [4, 8], "image_channels": 3, "num_classes": 5,
                   "width": 32, "depth": 1, "positions": "rotary", "qk_norm": False,
                   "learned_variance": True}  # fmt: skip
    model = shape_of(lambda: weights.build(description))
    x = np.zeros((2, 4, 8, 3), np.float32)
    assert output_of(model, x, T[:2], np.array([[1, 2, 5], [5, 5, 5]])).shape == (2, 4, 8, 6)
    assert not any("norm" in path for path in parameters(model))
