"""Programs as files, smaller weights, queues and signed pictures."""

import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import drawn, quick_compiler
from PIL import Image

from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet
from diffusion_course.serving import batching, export, precision, provenance, prune
from diffusion_course.weights import card

SECRET = b"a secret of some length"


def unet(seed=1):
    return drawn(lambda: UNet(1, (16, 32), num_classes=3, rngs=nnx.Rngs(0)), seed)


def inputs(batch, seed=0):
    rng = np.random.default_rng(seed)
    x = np.float32(rng.normal(0.3, 1.4, (batch, 8, 8, 1)))
    t = np.float32(rng.uniform(0.1, 0.9, batch))
    return jnp.asarray(x), jnp.asarray(t), jnp.asarray(rng.integers(4, size=batch), jnp.int32)


# --- export


def test_a_saved_program_gives_the_model_s_numbers_for_every_batch_size(tmp_path):
    model = unet()
    with quick_compiler():
        export.save(tmp_path, "net", export.freeze(model, *inputs(2)))
        loaded = export.load(tmp_path, "net")
        for batch in (1, 5):
            # The same operations; XLA may order the sums of another shape otherwise.
            expected = np.asarray(jax.jit(lambda m, *given: m(*given))(model, *inputs(batch, 7)))
            np.testing.assert_allclose(loaded(*inputs(batch, 7)), expected, atol=2e-5)
            assert np.abs(expected).max() > 0.1


def test_weights_are_an_argument_of_the_program():
    x, t = jnp.asarray([[0.2, -1.3], [2.0, 0.4], [-0.4, 0.1]]), jnp.asarray([0.2, 0.7, 0.5])
    first, second = (drawn(lambda: MLP(2, 8, 1, rngs=nnx.Rngs(0)), seed) for seed in (1, 2))
    frozen = export.freeze(first, x[:2], t[:2])
    assert set(frozen.weights) == set(card.flat_params(first))
    other = frozen.program.call(card.flat_params(second), x, t)
    np.testing.assert_allclose(other, second(x, t), atol=1e-5)
    assert np.abs(other - first(x, t)).max() > 0.1
    # A hundred times the weights, the same program to a few bytes.
    sizes = []
    for width in (8, 80):
        model = MLP(2, width, 1, rngs=nnx.Rngs(0))
        program = export.freeze(model, jnp.ones((2, 2)), jnp.ones(2)).program
        sizes.append(len(program.serialize()))
    assert abs(sizes[1] - sizes[0]) < 500


def test_a_process_without_course_and_flax_runs_the_files(tmp_path):
    model = drawn(lambda: MLP(2, 8, 1, rngs=nnx.Rngs(0)), 3)
    x, t = jnp.asarray([[0.2, -1.3], [2.0, 0.4]]), jnp.asarray([0.2, 0.7])
    export.save(tmp_path, "net", export.freeze(model, x, t))
    client = """
import sys, json, numpy as np, safetensors.numpy
sys.modules["diffusion_course"] = sys.modules["flax"] = None  # an import of either fails
from jax import export
program = export.deserialize(bytearray(open("net.stablehlo", "rb").read()))
weights = safetensors.numpy.load_file("net.safetensors")
x, t = np.float32([[0.2, -1.3], [2.0, 0.4]]), np.float32([0.2, 0.7])
print(json.dumps(np.asarray(program.call(weights, x, t)).tolist()))
"""
    run = subprocess.run(
        [sys.executable, "-c", client], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    np.testing.assert_allclose(json.loads(run.stdout), model(x, t), atol=1e-6)


def test_an_exported_file_that_was_changed_is_refused(tmp_path):
    frozen = export.freeze(
        drawn(lambda: MLP(2, 8, 1, rngs=nnx.Rngs(0)), 3), jnp.ones((2, 2)), jnp.ones(2)
    )
    path = export.save(tmp_path, "net", frozen)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"net.stablehlo must have the SHA-256"):
        export.load(tmp_path, "net")


def test_what_cannot_be_frozen_is_refused(tmp_path):
    model = MLP(2, 8, 1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="examples must be one or more"):
        export.freeze(model)
    with pytest.raises(ValueError, match="platforms must be one of cpu"):
        export.freeze(model, jnp.ones((2, 2)), jnp.ones(2), platforms=("abacus",))
    with pytest.raises(ValueError, match="parameters alone"):
        export.freeze(nnx.Dropout(0.1, rngs=nnx.Rngs(0)), jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="without a dot"):
        export.save(tmp_path, "a.b", None)


# --- precision


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_packed_weight_is_off_by_at_most_half_a_scale(bits, per_channel):
    rng = np.random.default_rng(bits)
    array = np.float32(rng.normal(0.2, 1, (3, 3, 5, 7)) * 10.0 ** np.arange(-3, 4))
    packed = precision.pack(array, bits, per_channel)
    error = np.abs(precision.unpack(packed) - array)
    most = np.abs(array).max(axis=(0, 1, 2)) if per_channel else np.abs(array).max()
    bound = most / (2**bits - 2)
    assert (error <= bound * (1 + 1e-5)).all()  # rounding of the product in float32
    assert error.max() > 0.8 * np.max(bound)  # hundreds of weights: one of them is near the bound
    assert np.abs(packed.values).max() == 2 ** (bits - 1) - 1
    assert packed.scale.shape == ((7,) if per_channel else (1,))


def test_one_scale_for_all_loses_the_small_channels():
    array = np.float32([[1e-3, 1.0], [-2e-3, 0.5]])
    assert (precision.unpack(precision.pack(array, 8, False))[:, 0] == 0).all()
    np.testing.assert_allclose(
        precision.unpack(precision.pack(array))[:, 0], array[:, 0], rtol=0.01
    )


def test_zero_stays_zero_and_extremes_stay_exact():
    packed = precision.pack(np.float32([[0, 3, -4], [0, -6, 2]]))
    out = precision.unpack(packed)
    assert (out[:, 0] == 0).all() and out[1, 1] == -6 and out[0, 2] == -4


def test_bytes_are_counted_as_they_are_stored():
    arrays = {"kernel": np.ones((3, 5), np.float32), "bias": np.ones(5, np.float32)}

    def count(*kind, **options):
        return precision.byte_count(precision.compress(arrays, *kind, **options))

    assert count("float32") == 80 and count("float16") == 40
    assert count("integers") == 15 + 20 + 20  # values, scales, bias
    assert count("integers", bits=4) == 8 + 20 + 20  # 15 half bytes are 8 bytes
    assert count("integers", per_channel=False) == 15 + 4 + 20
    restored = precision.expand(precision.compress(arrays, "integers"))
    assert {a.dtype.name for a in restored.values()} == {"float32"}
    with pytest.raises(ValueError, match="within ±65504 for float16, got kernel"):
        precision.compress({"kernel": np.float32([[1e5]])}, "float16")
    with pytest.raises(ValueError, match=r"bits must be a whole number in \[2, 8\], got 1"):
        precision.pack(np.ones((2, 2)), 1)
    with pytest.raises(ValueError, match="finite"):
        precision.pack(np.float32([[np.nan]]))


def test_a_model_is_filled_with_other_weights_and_the_old_one_stays():
    x, t = jnp.asarray([[0.2, -1.3], [2.0, 0.4]]), jnp.asarray([0.2, 0.7])
    first, second = (drawn(lambda: MLP(2, 8, 1, rngs=nnx.Rngs(0)), seed) for seed in (1, 2))
    before = card.flat_params(first)
    new = card.filled(first, card.flat_params(second))
    np.testing.assert_array_equal(new(x, t), second(x, t))
    for name, array in card.flat_params(first).items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(ValueError, match="in arrays"):
        card.filled(first, {"kernel": np.ones(3)})


# --- pruning


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_the_smallest_weights_become_zero_and_no_others(share, scope):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(0, 1, (5, 7)), "b": rng.normal(0, 9, (3, 4, 2)), "bias": np.ones(3)}
    pruned = prune.magnitude(arrays, share, scope)
    groups = [["a", "b"]] if scope == "global" else [["a"], ["b"]]
    for group in groups:
        old = np.concatenate([arrays[name].ravel() for name in group])
        new = np.concatenate([pruned[name].ravel() for name in group])
        gone = new == 0
        assert gone.sum() == int(share * len(old))
        np.testing.assert_array_equal(new[~gone], old[~gone])
        if gone.any() and not gone.all():
            assert np.abs(old[gone]).max() < np.abs(old[~gone]).min()
    np.testing.assert_array_equal(pruned["bias"], 1)
    assert abs(prune.zeros(pruned) - share) < 0.03  # rounded down in each tensor


def test_pruning_takes_exactly_its_share_of_equal_weights():
    assert prune.magnitude({"k": np.ones((2, 5))}, 0.3)["k"].ravel().tolist() == [0] * 3 + [1] * 7
    assert (prune.magnitude({"k": np.ones((10, 10))}, 0.29)["k"] == 0).sum() == 29  # 100·.29 < 29
    with pytest.raises(ValueError, match="share must be in"):
        prune.magnitude({"k": np.ones((2, 2))}, 1.2)


# --- queues


def test_without_batches_the_mean_latency_is_pollaczek_s():
    for rate, seconds in ((0.5, 1.0), (4.0, 0.2)):
        latency = batching.serve(batching.poisson(rate, 50_000, seed=1), [seconds]).latency
        # Latencies of neighbours are correlated: ten blocks give the error of the mean.
        error = latency.reshape(10, -1).mean(1).std(ddof=1) / np.sqrt(10)
        assert abs(latency.mean() - batching.mean_latency(rate, seconds)) < 4 * error
        assert error < 0.02 * latency.mean()


def test_a_batch_starts_when_it_is_full_or_when_the_oldest_has_waited():
    seconds = [1.0, 1.2, 1.3]
    #    full at 0.3: all three start there; the last one is alone and waits its half second
    served = batching.serve([0.0, 0.2, 0.3, 5.0], seconds, wait=0.5)
    np.testing.assert_allclose(served.latency, [1.6, 1.4, 1.3, 1.5])
    assert served.batches.tolist() == [3, 1]
    #    patience ends at 0.5: the third one, at 0.6, waits for the next start
    served = batching.serve([0.0, 0.2, 0.6], seconds, wait=0.5)
    np.testing.assert_allclose(served.latency, [1.7, 1.5, 2.1])
    assert served.batches.tolist() == [2, 1]
    #    a fourth does not fit into a batch of three
    served = batching.serve([0.0, 0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0])
    assert served.batches.tolist() == [1, 3, 1]
    np.testing.assert_allclose(served.latency, [1, 1.9, 1.8, 1.7, 2.6])


def test_busy_is_the_share_of_time_that_the_server_works():
    assert batching.serve([0.0, 3.0], [1.0]).busy == pytest.approx(2 / 4)


def test_queues_refuse_what_they_cannot_serve():
    with pytest.raises(ValueError, match="do not fall"):
        batching.serve([1.0, 0.5], [1.0])
    for never in (np.nan, np.inf):
        with pytest.raises(ValueError, match="arrivals must be finite"):
            batching.serve([0.0, never], [1.0])
    with pytest.raises(ValueError, match="seconds must be positive"):
        batching.serve([1.0], [0.0])
    with pytest.raises(ValueError, match="load, must be below 1, got 2"):
        batching.mean_latency(2.0, 1.0)


# --- provenance

NOTE = {"model": "digits", "seed": 7, "time": "2026-01-01T00:00:00Z"}


def pixels(height=6, width=4):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_signed_picture_is_valid_and_keeps_its_pixels():
    content = provenance.sign(pixels(), NOTE, SECRET)
    assert provenance.check(content, SECRET) == ("valid", NOTE)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels())


def resaved(content, change=lambda picture: picture, keep=True, **note):
    """The file written anew: with another picture or note, or without a note."""
    from PIL import PngImagePlugin

    picture, extra = Image.open(io.BytesIO(content)), PngImagePlugin.PngInfo()
    picture.load()
    told = json.loads(picture.info[provenance.FIELD])
    told["note"] |= note
    if keep:
        extra.add_itxt(provenance.FIELD, json.dumps(told))
    buffer = io.BytesIO()
    change(picture).save(buffer, "PNG", pnginfo=extra)
    return buffer.getvalue()


def test_a_change_of_note_pixels_shape_or_secret_shows():
    content = provenance.sign(pixels(), NOTE, SECRET)

    def one_bit(picture):
        array = np.array(picture)
        array[2, 1, 0] ^= 1
        return Image.fromarray(array)

    def other_shape(picture):
        return Image.fromarray(np.asarray(picture).reshape(4, 6, 3))

    verdict = lambda content, secret=SECRET: provenance.check(content, secret).verdict  # noqa: E731
    assert verdict(resaved(content)) == "valid"
    assert verdict(resaved(content, one_bit)) == "altered"
    assert verdict(resaved(content, other_shape)) == "altered"
    assert verdict(resaved(content, seed=8)) == "altered"
    assert verdict(content, b"another secret of its own") == "altered"
    assert provenance.check(resaved(content, keep=False), SECRET) == ("missing", None)


def test_a_note_that_is_no_note_is_altered():
    from PIL import PngImagePlugin

    surrogate = '{"note": {"a": "\\ud800"}, "signature": "0"}'
    for text in (
        "no JSON", "[]", '{"note": {}}', '{"note": {}, "signature": 5}', "[" * 100_000, surrogate,
        '{"note": {}, "signature": "\\ud800"}',
    ):  # fmt: skip
        extra, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
        extra.add_itxt(provenance.FIELD, text)
        Image.fromarray(pixels()).save(buffer, "PNG", pnginfo=extra)
        assert provenance.check(buffer.getvalue(), SECRET).verdict == "altered"


def test_provenance_refuses_floats_and_short_secrets():
    with pytest.raises(ValueError, match="pixels must be uint8"):
        provenance.sign(np.zeros((4, 4)), NOTE, SECRET)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        provenance.sign(pixels(), NOTE, b"short")
    for note in ({"a": "\ud800"}, {1: 2, "a": 3}, {"a": {1, 2}}):
        with pytest.raises(ValueError, match="note must hold what JSON can"):
            provenance.sign(pixels(), note, SECRET)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        provenance.check(provenance.sign(pixels(), NOTE, SECRET), b"short")
