"""The transformer's choices: conditioning, positions, long skips, normalised queries and keys."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, initial, normals, output_of, parameters, shape_of

from diffusion_course.models import attention, layers
from diffusion_course.models.dit import CONDITIONING, Block, DiT

rng = np.random.default_rng(61)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


array = normals(rng)


# Every choice stands in one of them, beside others, in images that are not square.
VARIANTS = {
    "adaln-single, rotary": {"conditioning": "adaln-single", "positions": "rotary", "depth": 2},
    "in-context, skips": {
        "conditioning": "in-context",
        "positions": "rotary",
        "long_skips": True,
        "depth": 3,
    },
    "cross, norm": {"conditioning": "cross-attention", "qk_norm": True, "depth": 2},
    "adaln-zero, everything": {
        "positions": "rotary",
        "long_skips": True,
        "qk_norm": True,
        "learned_variance": True,
        "depth": 2,
    },
}
every_variant = pytest.mark.parametrize("name", VARIANTS)
X, T, LABELS = array(3, 4, 6, 2), np.float32([0.1, 0.5, 0.9]), np.array([0, 3, 1])
EXTRAS = array(3, 1)


def make(name, **more):
    options = {"patch": 2, "width": 24, "head_size": 12, "num_classes": 3, "extras": 1}
    return DiT((4, 6), 2, **(options | VARIANTS[name] | more), rngs=nnx.Rngs(1))


@cache
def program(graph):
    """One compiled program for each variant: its output and a gradient."""

    def loss(params, x, t, cond, extras, y):
        out = nnx.merge(graph, params)(x, t, cond, extras)
        return jnp.mean((out - y) ** 2), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@every_variant
def test_an_untrained_variant_says_zero_and_each_of_its_parameters_learns(name):
    graph, params = nnx.split(initial(partial(make, name)))
    y = array(3, 4, 6, 2 * (2 if "everything" in name else 1))
    alive = []
    for step in range(3):
        (_, out), gradient = program(graph)(params, X, T, LABELS, EXTRAS, y)
        assert out.shape == y.shape and out.dtype == jnp.float32
        if step == 0:
            np.testing.assert_array_equal(out, 0)
        moved = {jax.tree_util.keystr(path): np.abs(leaf).max() > 0
                 for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]}  # fmt: skip
        alive.append([path for path, is_moved in moved.items() if is_moved])
        params = jax.tree.map(
            lambda p, g: p - 0.1 * g / (1e-8 + jnp.abs(g).max()), params, gradient
        )
    # Behind the zero output layer nothing else has a gradient at first. Two steps later all have,
    # and in each block of a stack.
    assert len(alive[0]) == 2 and all("final" in path for path in alive[0])
    assert [path for path in moved if path not in alive[2]] == []
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        key = jax.tree_util.keystr(path)
        if "blocks" in key or "second_half" in key:
            per_block = np.abs(leaf).reshape(leaf.shape[0], -1).max(1)
            assert (per_block > 0).all(), key


@every_variant
def test_a_variant_hears_time_label_and_numbers_and_sees_where_a_patch_lies(name):
    graph, params = nnx.split(drawn(partial(make, name), seed=4))
    y = np.zeros((3, 4, 6, 2 * (2 if "everything" in name else 1)), np.float32)

    def call(x=X, t=T, cond=LABELS, extras=EXTRAS):
        return np.asarray(program(graph)(params, x, t, cond, extras, y)[0][1])

    whole = call()
    for changed in (
        call(t=T + np.float32(0.03)),
        call(cond=(LABELS + 1) % 4),
        call(extras=EXTRAS + np.float32(0.2)),
    ):
        assert (np.abs(changed - whole).reshape(3, -1).max(1) > 1e-3).all()
    order = [2, 0, 1]
    other = call(X[order], T[order], LABELS[order], EXTRAS[order])
    np.testing.assert_allclose(other, whole[order], rtol=1e-3, atol=1e-4)
    # Moving the patches among their six places does not just move what comes out.
    patches = np.asarray(layers.space_to_depth(jnp.asarray(X), 2)).reshape(3, 6, 8)
    places = [4, 0, 5, 2, 1, 3]

    def image(patches):
        grid = jnp.asarray(patches.reshape(3, 2, 3, -1))
        return np.asarray(layers.depth_to_space(grid, 2))

    moved = call(image(patches[:, places]))
    kept = np.asarray(layers.space_to_depth(jnp.asarray(whole), 2)).reshape(3, 6, -1)
    assert np.abs(moved - image(kept[:, places])).max() > 1e-2


@pytest.mark.parametrize("name", ["in-context, skips", "adaln-zero, everything"])
def test_bfloat16_stays_near_float32(name):
    fine = drawn(partial(make, name), seed=5)
    half = shape_of(partial(make, name, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in parameters(half).values()} == {jnp.dtype("float32")}
    coarse = nnx.merge(nnx.split(half)[0], nnx.state(fine))
    run = jax.jit(lambda model: model(X, T, LABELS))
    got, want = np.asarray(run(coarse)), np.asarray(run(fine))
    assert got.dtype == np.float32
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    # bfloat16 has 8 bits, a relative error of .004 per operation; some twenty follow each other.
    assert 1e-5 < error < 0.03


# ------------------------------------------------------------------------------------- the blocks


def told_for(conditioning, batch=2, width=24):
    return {
        "adaln-zero": array(batch, width),
        "adaln-single": np.zeros((batch, 6 * width), np.float32),  # a shared layer at its start
        "in-context": None,
        "cross-attention": array(batch, 3, width),
    }[conditioning]


@pytest.mark.parametrize("conditioning", ["adaln-zero", "adaln-single"])
def test_a_block_with_adaptive_norms_starts_as_the_identity_with_a_gradient_into_its_gates(
    conditioning,
):
    block = Block(24, 2, conditioning=conditioning, rngs=nnx.Rngs(3))
    graph, params = nnx.split(block)
    x, y, told = array(2, 5, 24), array(2, 5, 24), told_for(conditioning)

    @jax.jit
    def run(params):
        def loss(params):
            out = nnx.merge(graph, params)(x, told)
            return ((out - y) ** 2).sum(), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, out), gradient = run(params)
    np.testing.assert_array_equal(out, x)
    flat = {jax.tree_util.keystr(path): np.abs(leaf)
            for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]}  # fmt: skip
    # Of shift, scale, gate, shift, scale, gate only the gates feel anything: what they multiply is
    # not 0. All that lies behind a gate waits for it to open.
    for key, size in flat.items():
        if "modulation" in key or "table" in key:
            six = size.reshape(-1, 6, 24).max(axis=(0, 2))
            np.testing.assert_array_equal(six > 0, [False, False, True] * 2)
        else:
            assert (size == 0).all(), key


def numpy_block(p, x, told, heads, conditioning, skip=None, angles=None, caption=None):
    """The block in float64 NumPy, written from the papers' figures."""
    context, counts = (told, None) if caption is None else caption

    def dense(h, name):
        return h @ p[f"{name}.kernel"] + p[f"{name}.bias"]

    def norm(h):
        centred = h - h.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)

    def rms(h, name):
        if f"{name}.scale" not in p:
            return h
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}.scale"]

    def by_head(h):
        return h.reshape(*h.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def turned(h):
        if angles is None:
            return h
        a, b = np.split(h, 2, -1)
        c = (a + 1j * b) * np.exp(1j * angles)
        return np.concatenate([c.real, c.imag], -1)

    def attend(q, k, v, counts=None):
        logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        if counts is not None:
            logits = np.where(counts[:, None, None], logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return mixed.transpose(0, 2, 1, 3).reshape(len(q), q.shape[2], -1)

    if skip is not None:
        x = dense(np.concatenate([x, skip], -1), "skip")
    if conditioning == "adaln-zero":
        six = dense(told / (1 + np.exp(-told)), "modulation")
    elif conditioning == "adaln-single":
        six = told + p["table"]
    else:
        one, zero = np.ones((len(x), x.shape[-1])), np.zeros((len(x), x.shape[-1]))
        six = np.concatenate([zero, zero, one, zero, zero, one], -1)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(six[:, None], 6, -1)
    q, k, v = np.split(dense(norm(x) * (1 + scale_a) + shift_a, "qkv"), 3, -1)
    q, k = turned(rms(by_head(q), "q_norm")), turned(rms(by_head(k), "k_norm"))
    x = x + gate_a * dense(attend(q, k, by_head(v)), "out")
    if conditioning == "cross-attention" or caption is not None:
        k, v = np.split(dense(context, "cross.kv"), 2, -1)
        q, k = (
            rms(by_head(dense(norm(x), "cross.q")), "cross.q_norm"),
            rms(by_head(k), "cross.k_norm"),
        )
        x = x + dense(attend(q, k, by_head(v), counts), "cross.out")
    h = dense(norm(x) * (1 + scale_m) + shift_m, "mlp_in")
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + gate_m * dense(h, "mlp_out")


@pytest.mark.parametrize(
    ("conditioning", "captioned"),
    [*((c, False) for c in CONDITIONING), ("adaln-zero", True), ("adaln-single", True)],
)
def test_a_block_computes_what_its_paper_says(conditioning, captioned):
    rich = conditioning in ("adaln-single", "cross-attention")
    options = {"conditioning": conditioning, "qk_norm": rich, "long_skip": not rich}
    options |= {"captioned": captioned}
    block = drawn(lambda: Block(24, 2, **options, rngs=nnx.Rngs(0)), seed=8)
    p = {re.sub(r"\W+", ".", key).strip(".").removesuffix(".value"): np.asarray(leaf, np.float64)
         for key, leaf in parameters(block).items()}  # fmt: skip
    x, told = array(2, 6, 24), told_for(conditioning)
    told = told + array(*told.shape) if conditioning == "adaln-single" else told
    skip = None if rich else array(2, 6, 24)
    angles = attention.rotary_angles(2, 3, 12)
    # Of the second caption only one token counts.
    caption = array(2, 4, 24), np.array([[True, True, True, False], [True, False, False, False]])
    inputs = x, told, skip, angles, caption if captioned else None
    got = jax.jit(lambda block, *inputs: block(*inputs))(block, *inputs)
    want = numpy_block(p, x, told, 2, conditioning, *inputs[2:])
    # Sums of up to 96 products of size 1 in float32.
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4)


def test_long_skips_join_the_first_block_with_the_last():
    # Four blocks that add 1, 10, 100 and 1000 to their input. The inner skip adds what it brings,
    # the outer one twice that: ((x + 11) + (x + 11) + 100) + 2·(x + 1) + 1000.
    model = shape_of(
        lambda: DiT(4, width=4, head_size=4, depth=4, long_skips=True, rngs=nnx.Rngs(0))
    )
    model = nnx.merge(
        nnx.split(model)[0], jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), nnx.split(model)[1])
    )
    for half, adds in ((model.blocks, (1, 10)), (model.second_half, (100, 1000))):
        gates = np.zeros((2, 6, 4), np.float32)
        gates[:, 5] = 1
        half.modulation.bias[...] = jnp.asarray(gates.reshape(2, 24))
        half.mlp_out.bias[...] = jnp.asarray(np.array(adds, np.float32)[:, None] * np.ones((1, 4)))
    kernels = [np.concatenate([np.eye(4), times * np.eye(4)]) for times in (1, 2)]
    model.second_half.skip.kernel[...] = jnp.asarray(np.stack(kernels), jnp.float32)
    x = array(2, 4, 4)
    got = model._through_blocks(jnp.asarray(x), jnp.zeros((2, 4)))
    np.testing.assert_allclose(got, 4 * x + 1124, rtol=1e-6)


# ------------------------------------------------------------------------------ rotary, norm, mask


def test_rotary_scores_depend_on_where_one_patch_lies_from_the_other_alone():
    rows, cols, d = 5, 7, 12
    angles = attention.rotary_angles(rows, cols, d)
    q, k = array(d), array(d)
    turned = [np.asarray(attention.rotate(jnp.tile(v, (rows * cols, 1)), angles), np.float64)
              for v in (q, k)]  # fmt: skip
    scores = (turned[0] @ turned[1].T).reshape(rows, cols, rows, cols)
    seen = {}
    for place in np.ndindex(scores.shape):
        seen.setdefault((place[2] - place[0], place[3] - place[1]), []).append(scores[place])
    # Twelve products of size 1 in float32, at angles up to 6.
    assert max(np.ptp(values) for values in seen.values()) < 1e-5
    assert len(seen) == (2 * rows - 1) * (2 * cols - 1)
    # Exactly the score of the key turned by the difference, rows in the first half of the angles.
    frequencies = attention.ROTARY_PERIOD ** (-np.arange(3) / 3)
    for (down, right), values in seen.items():
        turn = np.exp(1j * np.concatenate([down * frequencies, right * frequencies]))
        complexes = [v[:6].astype(np.float64) + 1j * v[6:] for v in (q, k)]
        want = (complexes[0].conj() * complexes[1] * turn).real.sum()
        assert values[0] == pytest.approx(want, abs=1e-5)
    # Different displacements have different scores, also mirrored ones.
    means = {place: np.mean(values) for place, values in seen.items()}
    assert abs(means[1, 2] - means[2, 1]) > 1e-3 and abs(means[1, 2] - means[-1, -2]) > 1e-3
    # Lengths stay, and the first patch is not turned.
    np.testing.assert_allclose(np.linalg.norm(turned[0], axis=1), np.linalg.norm(q), rtol=1e-6)
    np.testing.assert_array_equal(turned[0][0], q)


def test_a_mask_leaves_out_keys_as_if_they_were_not_there():
    q, k, v = array(2, 3, 4, 6), array(2, 3, 7, 6), array(2, 3, 7, 5)
    counts = np.array([[True] * 7, [True, False, True, True, False, False, True]])
    got = attention.attention(q, k, v, counts)
    assert got.shape == (2, 4, 15)
    for b in range(2):
        alone = attention.attention(
            q[b : b + 1], k[b : b + 1][:, :, counts[b]], v[b : b + 1][:, :, counts[b]]
        )
        np.testing.assert_allclose(got[b], alone[0], rtol=1e-5, atol=1e-6)
    # Whatever stands under the mask, be it huge.
    k[1][:, ~counts[1]], v[1][:, ~counts[1]] = 1e30, -1e30
    np.testing.assert_array_equal(attention.attention(q, k, v, counts), got)


def test_each_query_may_have_keys_of_its_own():
    q, k, v = array(2, 3, 4, 6), array(2, 3, 7, 6), array(2, 3, 7, 5)
    mask = rng.uniform(size=(2, 4, 7)) < 0.6
    mask[:, :, 2] = True
    for which in (mask, mask[:1]):
        got = attention.attention(q, k, v, which)
        for n in range(4):
            rows = np.broadcast_to(which[:, n], (2, 7))
            one = attention.attention(q[:, :, n : n + 1], k, v, rows)
            np.testing.assert_allclose(got[:, n : n + 1], one, rtol=1e-5, atol=1e-6)


def test_normalised_vectors_bound_the_logits():
    d = 12
    model = layers.RMSNorm(d, rngs=nnx.Rngs(0))
    q, k = model(array(5, 9, d, std=300.0)), model(array(5, 7, d, std=1e-2))
    np.testing.assert_allclose((np.asarray(q) ** 2).mean(-1), 1, rtol=1e-4)
    logits = np.einsum("bqd,bkd->bqk", q, k) / np.sqrt(d)
    assert np.abs(logits).max() <= np.sqrt(d)  # two vectors of length √d, divided by √d
    x, scale = array(4, d), array(d)
    model.scale[...] = jnp.asarray(scale)
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(model(x), want, rtol=1e-5)
    assert model(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_tokens_of_a_conditioning_add_up_to_its_embedding():
    told = drawn(lambda: layers.Conditioning(8, 3, extras=2, rngs=nnx.Rngs(0)), seed=2)
    tokens = told.tokens(T, LABELS, array(3, 2))
    assert tokens.shape == (3, 4, 8)
    extras = array(3, 2)
    np.testing.assert_allclose(
        told.tokens(T, LABELS, extras).sum(1), told(T, LABELS, extras), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(told.tokens(T, None)[:, 1], told.label(np.full(3, 3)))


# ------------------------------------------------------------------------------------ the door


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditioning": "adaLN-Zero"}, "conditioning must be one of adaln-zero, .*'adaLN-Zero'"),
        ({"conditioning": None}, "conditioning must be one of .*got None"),
        ({"positions": "learned"}, "positions must be one of sin-cos, rotary, got 'learned'"),
        ({"positions": "rotary", "head_size": 6}, "head_size .*rotary.* multiple of 4, got 6"),
        ({"depth": 1, "long_skips": True}, "depth must be at least 2 for long_skips, got 1"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        shape_of(lambda: DiT(4, width=24, **change, rngs=nnx.Rngs(0)))


def test_the_default_has_the_parameters_that_released_weights_have():
    model = shape_of(lambda: DiT(4, width=32, depth=2, num_classes=3, rngs=nnx.Rngs(0)))
    layers_of_block = ("modulation", "qkv", "out", "mlp_in", "mlp_out")
    want = {f"['blocks']['{name}']" for name in layers_of_block}
    want |= {"['patchify']", "['modulation']", "['final']", "['embed']['label']"}
    want |= {f"['embed']['time']['{name}']" for name in ("first", "second")}
    got = {key.rpartition("['")[0] for key in (k.removesuffix(".value") for k in parameters(model))}
    assert got == want
    assert output_of(model, np.zeros((2, 4, 4, 1), np.float32), T[:2]).shape == (2, 4, 4, 1)
