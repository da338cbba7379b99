"""Low-rank changes of a model's parameters: what they change, and what they leave alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from networks import drawn, normals, parameters, shape_of

from diffusion_course.models import lora
from diffusion_course.models.dit import DiT
from diffusion_course.models.layers import Conv3x3, Linear
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet
from diffusion_course.training import loop, update

rng = np.random.default_rng(16)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


array = normals(rng)


def mlp():
    return drawn(lambda: MLP(3, 8, 2, num_classes=4, rngs=nnx.Rngs(0)), seed=1)


def moved(adapter, seed=2):
    """The adapter with random numbers in A and B, as after a training."""
    graph, params = nnx.split(adapter)
    numbers = np.random.default_rng(seed)
    new = jax.tree.map(lambda p: jnp.asarray(numbers.normal(0, 0.5, p.shape), p.dtype), params)
    return nnx.merge(graph, new)


X, T, LABELS = array(5, 3), np.float32([0.1, 0.3, 0.5, 0.7, 0.9]), np.array([0, 1, 2, 3, 4])
call = jax.jit(lambda model, *inputs: model(*inputs))


def changed(before, after):
    """Paths of the parameters that differ."""
    old, new = parameters(before), parameters(after)
    return {path for path in old if (np.asarray(old[path]) != np.asarray(new[path])).any()}


# ---------------------------------------------------------------------------------- apply and merge


def test_a_new_adapter_leaves_the_model_bit_for_bit():
    model = mlp()
    adapter = lora.Adapter(model, 2, layers=("0", "last"), rngs=nnx.Rngs(1))
    assert adapter.paths == ("hidden.0.kernel", "last.kernel")
    for scale in (1.0, -3.5):
        np.testing.assert_array_equal(
            call(lora.apply(model, adapter, scale), X, T, LABELS), call(model, X, T, LABELS)
        )
    a, b = adapter.factors()["last.kernel"]
    assert (b == 0).all() and np.abs(a).min() > 0  # B alone is zero: else nothing would learn


class Unmerged(nnx.Module):
    """A layer and its change side by side, as a training would compute them."""

    def __init__(self, layer, a, b, factor):
        self.layer, self.a, self.b, self.factor = layer, nnx.Param(a), nnx.Param(b), factor

    def __call__(self, x):
        return self.layer(x) + self.factor * ((x @ self.a[...]) @ self.b[...])


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(1, None, 1.0), (3, 6.0, 0.7), (2, 0.5, -2)])
def test_merged_is_unmerged_to_rounding(rank, alpha, scale):
    model, other = mlp(), mlp()
    layers = ("hidden.1", "last")
    adapter = moved(lora.Adapter(model, rank, alpha=alpha, layers=layers, rngs=nnx.Rngs(1)), rank)
    factor = scale * (rank if alpha is None else alpha) / rank
    other.hidden[1] = Unmerged(other.hidden[1], *adapter.factors()["hidden.1.kernel"], factor)
    other.last = Unmerged(other.last, *adapter.factors()["last.kernel"], factor)
    got, want = (call(m, X, T, LABELS) for m in (lora.apply(model, adapter, scale), other))
    # Sums of eight products of size 1 in float32, in another order.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want - call(model, X, T, LABELS)).max() > 0.1


class One(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


def test_a_change_of_a_convolution_is_a_convolution_to_rank_channels_and_a_product():
    model = One(drawn(lambda: Conv3x3(4, 6, rngs=nnx.Rngs(0)), seed=4))
    adapter = moved(lora.Adapter(model, 2, alpha=3.0, layers=("layer",), rngs=nnx.Rngs(1)))
    a, b = adapter.factors()["layer.kernel"]
    assert a.shape == (36, 2) and b.shape == (2, 6)
    x = array(2, 5, 7, 4)
    inner = jax.lax.conv_general_dilated(
        x, a.reshape(3, 3, 4, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    want = model(x) + 0.5 * (3 / 2) * (inner @ b)
    np.testing.assert_allclose(lora.apply(model, adapter, 0.5)(x), want, rtol=1e-4, atol=1e-4)


def test_stacked_blocks_have_a_change_each():
    model = drawn(lambda: DiT(4, width=8, depth=3, head_size=4, rngs=nnx.Rngs(0)), seed=3)
    adapter = moved(lora.Adapter(model, 2, layers=("blocks.qkv",), rngs=nnx.Rngs(1)))
    a, b = (np.asarray(m, np.float64) for m in adapter.factors()["blocks.qkv.kernel"])
    assert a.shape == (3, 8, 2) and b.shape == (3, 2, 24)
    new = lora.apply(model, adapter, 2.0)
    want = np.asarray(model.blocks.qkv.kernel[...]) + 2 * np.stack([a[k] @ b[k] for k in range(3)])
    np.testing.assert_allclose(new.blocks.qkv.kernel[...], want, rtol=1e-5, atol=1e-6)
    assert len(changed(model, new)) == 1


def test_by_default_the_layers_of_attention_change():
    film = shape_of(lambda: UNet(1, (16, 32), num_classes=3, rngs=nnx.Rngs(0)))
    adapter = shape_of(lambda: lora.Adapter(film, 2, rngs=nnx.Rngs(1)))
    assert adapter.paths == ("attention.out.kernel", "attention.qkv.kernel")
    reader = shape_of(
        lambda: UNet(1, (16, 32), num_classes=3, conditioning="cross-attention", rngs=nnx.Rngs(0))
    )
    crossing = shape_of(lambda: lora.Adapter(reader, 2, layers=("cross.kv",), rngs=nnx.Rngs(1)))
    assert crossing.paths == ("cross.cross.kv.kernel",)
    assert len(shape_of(lambda: lora.Adapter(reader, 2, rngs=nnx.Rngs(1))).paths) == 7


def test_what_was_added_is_taken_out_again():
    model = mlp()
    pair = [
        moved(lora.Adapter(model, 2, layers=("last", "0"), rngs=nnx.Rngs(1)), s) for s in (1, 2)
    ]
    merged = lora.apply(model, pair, [0.5, -1.5])
    back = lora.unmerge(merged, pair, [0.5, -1.5])
    for path, value in parameters(model).items():
        # Each change of size 1 rounds twice.
        np.testing.assert_allclose(parameters(back)[path], value, rtol=1e-5, atol=1e-6)
    single = lora.unmerge(lora.apply(model, pair[0], 2.0), pair[0], 2.0)
    np.testing.assert_allclose(single.last.kernel[...], model.last.kernel[...], atol=1e-6)


def test_several_adapters_add_up_with_their_scales():
    model = mlp()
    first = moved(lora.Adapter(model, 1, layers=("last",), rngs=nnx.Rngs(1)), 5)
    second = moved(lora.Adapter(model, 3, alpha=1.0, layers=("last", "0"), rngs=nnx.Rngs(2)), 6)
    both = jax.jit(lambda s: lora.apply(model, [first, second], s))(jnp.array([0.5, 2.0]))
    want = model.last.kernel[...] + 0.5 * first.change("last.kernel")
    want = want + 2.0 * second.change("last.kernel")
    np.testing.assert_allclose(both.last.kernel[...], want, rtol=1e-5, atol=1e-6)
    in_turn = lora.apply(lora.apply(model, second, 2.0), first, 0.5)
    for path, value in parameters(in_turn).items():
        np.testing.assert_allclose(parameters(both)[path], value, rtol=1e-5, atol=1e-6)
    assert len(changed(model, both)) == 2
    np.testing.assert_array_equal(
        lora.apply(model, [first, second], 0.0).last.kernel[...], model.last.kernel[...]
    )


# ----------------------------------------------------------------------------------------- training


def batches():
    numbers = np.random.default_rng(0)
    while True:
        yield numbers.normal(0, 1, (6, 3)).astype(np.float32), np.arange(6) % 4


def quadratic(model, x, labels, key):
    return jnp.mean((model(x, jnp.full(len(x), 0.5), labels) - 2 * x) ** 2)


def test_only_the_adapter_changes_in_training():
    model = mlp()
    before = {path: np.array(value) for path, value in parameters(model).items()}
    adapter = lora.Adapter(model, 2, layers=("last", "hidden.0"), rngs=nnx.Rngs(1))

    def loss(adapter, x, labels, key, *, teacher):
        return quadratic(lora.apply(teacher, adapter), x, labels, key)

    result = loop.fit(
        adapter, loss, batches(), steps=30, key=jax.random.key(0), optimizer=optax.adam(0.03),
        teacher=model, progress=False,
    )  # fmt: skip
    for path, value in parameters(model).items():
        np.testing.assert_array_equal(value, before[path])
    assert len(changed(adapter, result.model)) == 4  # A and B of both
    tuned = lora.apply(model, result.model)
    assert len(changed(model, tuned)) == 2
    x, labels = next(batches())
    assert quadratic(tuned, x, labels, None) < 0.9 * quadratic(model, x, labels, None)


def test_a_mask_freezes_every_other_parameter_bit_for_bit():
    model = mlp()
    row = np.arange(5)[:, None] == 3  # of an embedding of five labels

    def chosen(path):
        return row if path == "embed.label.embedding" else path.startswith("last")

    optimizer = update.only(optax.adamw(0.05, weight_decay=0.1), lora.trainable(model, chosen))
    result = loop.fit(
        model, quadratic, batches(), steps=5, key=jax.random.key(0), optimizer=optimizer,
        progress=False,
    )  # fmt: skip
    after = result.model
    assert sum("['last']" in path for path in changed(model, after)) == 2
    assert len(changed(model, after)) == 3
    rows = np.asarray(after.embed.label.embedding[...]) != model.embed.label.embedding[...]
    assert rows.any(axis=1).tolist() == [False, False, False, True, False]


def test_with_fsdp_a_mask_is_refused_in_words():
    model = mlp()
    masked = update.only(optax.sgd(0.1), lora.trainable(model, lambda path: "last" in path))
    options = {"steps": 1, "key": jax.random.key(0), "progress": False, "fsdp": True}
    with pytest.raises(ValueError, match="optimizer must treat all parameters alike with fsdp"):
        loop.fit(model, quadratic, batches(), optimizer=masked, **options)
    loop.fit(model, quadratic, batches(), optimizer=optax.adamw(0.1), **options)


def test_clipping_by_the_norm_counts_what_is_trained_alone():
    optimizer = update.only(optax.clip_by_global_norm(1.0), {"new": True, "old": False})
    gradient = {"new": jnp.array([0.3]), "old": jnp.array([400.0])}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    assert updates["new"].tolist() == pytest.approx([0.3]) and updates["old"].tolist() == [0.0]


# ------------------------------------------------------------------------------------ files, errors


def test_a_file_of_kilobytes_brings_an_adapter_back(tmp_path):
    model = mlp()
    layers = (".first", "hidden.1", "last")
    adapter = moved(lora.Adapter(model, 2, alpha=5.0, layers=layers, rngs=nnx.Rngs(1)))
    path = lora.save(tmp_path / "new.safetensors", adapter)
    assert path.stat().st_size < 2000
    back = lora.load(path, model)
    assert (back.rank, back.alpha, back.paths) == (2, 5.0, adapter.paths)
    assert back.paths == ("first.kernel", "hidden.1.kernel", "last.kernel")
    for name, (a, b) in adapter.factors().items():
        np.testing.assert_array_equal(back.factors()[name][0], a)
        np.testing.assert_array_equal(back.factors()[name][1], b)
    np.testing.assert_array_equal(
        call(lora.apply(model, back), X, T, LABELS), call(lora.apply(model, adapter), X, T, LABELS)
    )


def test_a_file_of_something_else_is_refused(tmp_path):
    model = mlp()
    adapter = lora.Adapter(model, 2, layers=("last",), rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match=r"path must end in .safetensors, got 'new.npz'"):
        lora.save(tmp_path / "new.npz", adapter)
    with pytest.raises(FileNotFoundError):
        lora.load(tmp_path / "none.safetensors", model)
    path = tmp_path / "other.safetensors"
    weights = {"alpha": np.ones(1), "last.kernel": np.ones((2, 2), np.float32)}
    for content in (b"", b"nothing", safetensors.numpy.save(weights)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^other.safetensors is not the file of an adapter"):
            lora.load(path, model)
    lora.save(path, adapter)
    wider = shape_of(lambda: MLP(3, 12, 2, num_classes=4, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"^other.safetensors must be an adapter of this model: last"
    ):
        lora.load(path, wider)
    with pytest.raises(ValueError, match=r"must be an adapter of this model: layers must name"):
        lora.load(path, One(Linear(2, 2, rngs=nnx.Rngs(0))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number at least 1, got 0"),
        ({"rank": 4}, "rank must be at most 3, the smaller side of last.kernel, got 4"),
        ({"rank": 2, "alpha": 0.0}, "alpha must be positive and finite, got 0.0"),
        ({"rank": 2, "layers": ("ast",)}, r"layers must name layers .* got \['ast'\]"),
        ({"rank": 2, "layers": ("last", "qkv")}, r"layers must name layers .* got \['qkv'\]"),
        (
            {"rank": 2, "layers": None},
            r"layers must name layers .* got \['qkv', 'q', 'kv', 'out'\]",
        ),
        ({"rank": 2, "layers": "last"}, "layers must be names of at least one layer, got 'last'"),
        ({"rank": 2, "layers": ()}, r"layers must be names of at least one layer, got \(\)"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(options, message):
    model = shape_of(lambda: MLP(3, 8, 1, rngs=nnx.Rngs(0)))
    make = partial(lora.Adapter, model, **({"layers": ("last",)} | options), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_an_adapter_of_another_model_or_scales_of_another_number_are_refused():
    model = mlp()
    adapter = lora.Adapter(model, 2, layers=("last",), rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="scales must be one for each of the 1 adapters, got 2"):
        lora.apply(model, adapter, [1.0, 2.0])
    other = One(Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match=r"adapters must be made for this model: last.kernel .* no"
    ):
        lora.apply(other, adapter)
    wide = drawn(lambda: MLP(3, 16, 2, num_classes=4, rngs=nnx.Rngs(0)), seed=1)
    with pytest.raises(ValueError, match=r"last.kernel would change by \[8, 3\], .* has \[16, 3\]"):
        lora.apply(wide, adapter)
    flat, high = (One(Linear(*size, rngs=nnx.Rngs(0)))
                  for size in ((2, 6), (6, 2)))  # fmt: skip
    with pytest.raises(ValueError, match=r"layer.kernel would change by \[6, 2\], .* \[2, 6\]"):
        lora.apply(flat, lora.Adapter(high, 1, layers=("layer",), rngs=nnx.Rngs(1)))


def test_a_choice_of_nothing_is_refused():
    model = mlp()
    with pytest.raises(ValueError, match="chosen must choose at least one parameter"):
        lora.trainable(model, lambda path: False)
    with pytest.raises(ValueError, match=r"chosen\('embed.label.embedding'\) must broadcast"):
        lora.trainable(model, lambda path: np.ones(7, bool) if "label" in path else True)
