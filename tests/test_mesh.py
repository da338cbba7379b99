"""Eight simulated devices, in a process of their own, give the gradients of one."""

import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from flax import nnx

from diffusion_course.models.dit import DiT
from diffusion_course.models.mlp import MLP
from diffusion_course.training import tensor_parallel
from diffusion_course.training.mesh import device_mesh, shard_batch

SCRIPT = """
import json, sys
import jax, numpy as np
from flax import nnx
from diffusion_course import losses, process
from diffusion_course.training import loop
from diffusion_course.training.mesh import device_mesh, replicate, shard_batch
from diffusion_course.models.classifier import Classifier
from diffusion_course.models.mlp import MLP

def loss(model, x, labels, key):
    return losses.diffusion_loss(model, process.vp_cosine(), "v", x, labels, key)

def image_loss(model, x, labels, key):  # draws noise, like the other
    x = x + jax.random.normal(key, x.shape)
    return -jax.numpy.take_along_axis(jax.nn.log_softmax(model(x)), labels[:, None], 1).mean()

rng = np.random.default_rng(0)
batch = (rng.normal(0.2, 0.6, (16, 8, 8, 1)).astype(np.float32), rng.integers(0, 10, 16))
# Convolutions, norms and dense layers, and compiled in a fraction of a U-Net's time.
model = Classifier(width=8, rngs=nnx.Rngs(0))
graph, params = nnx.split(model)
params = jax.tree.map(lambda p: p + 0.02, params)  # no zero-initialised layer hides a gradient

def gradients(devices):
    mesh = device_mesh(devices=devices)
    x, labels = shard_batch(mesh, batch)
    key = jax.random.key(3)
    grad = jax.jit(jax.grad(lambda p: image_loss(nnx.merge(graph, p), x, labels, key)))
    return jax.tree.leaves(grad(replicate(mesh, params))), x

many, sharded = gradients(jax.devices())
one, _ = gradients(jax.devices()[:1])
largest = max(float(np.abs(np.asarray(g)).max()) for g in one)
error = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(one, many))

points = (rng.normal(0.2, 0.6, (16, 2)).astype(np.float32), rng.integers(0, 10, 16))
small = MLP(2, width=32, num_classes=10, rngs=nnx.Rngs(0))

def batches():
    while True:
        yield points

key = jax.device_put(jax.random.key(1), jax.devices()[0])  # committed to one device
results = {
    n: loop.fit(small, loss, batches(), steps=5, key=key, progress=False,
                 mesh=device_mesh(devices=jax.devices()[:n]))
    for n in (1, 8)
}
run = {n: result.history.loss for n, result in results.items()}
x0 = jax.device_put(points[0], jax.devices()[0])
used = results[8].ema(x0, jax.numpy.full(16, 0.5), None).shape
shards = [list(s.data.shape) for s in sharded.addressable_shards]
print(json.dumps({"error": error, "largest": largest, "shards": shards, "run": run, "used": used}))
"""


LAYOUTS = """
import json, tempfile
import jax, numpy as np, optax
from flax import nnx
from diffusion_course import losses, process
from diffusion_course.data import batches
from diffusion_course.models.dit import DiT
from diffusion_course.models.mlp import MLP
from diffusion_course.training import loop, mesh as m, update
from diffusion_course.training.checkpoints import Checkpoints

jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs once
rng = np.random.default_rng(0)
devices, optimizer = jax.devices(), optax.flatten(optax.sgd(1.0, momentum=0.9))

def loss(model, x, labels, key):
    return losses.diffusion_loss(model, process.vp_cosine(), "v", x, labels, key)

def shaken(model):  # no zero-initialised layer hides a gradient
    graph, params = nnx.split(model)
    leaves, tree = jax.tree.flatten(params)
    moved = [w + rng.normal(0.02, 0.1, w.shape).astype(np.float32) for w in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved))

def one_step(model, batch, mesh, fsdp=False):
    layout = m.Layout(mesh, fsdp)
    step = update.make_step(model, loss, optimizer, 0.9, layout=layout)
    state = update.create_state(model, optimizer)
    before = np.asarray(state.params)
    placed, key = layout.place(state), m.replicate(mesh, jax.random.key(3))
    args = placed, m.shard_batch(mesh, batch), key
    compiled = step.lower(*args).compile()
    report = {"bytes": m.bytes_per_device(placed)}
    new, value = compiled(*args)
    kept = layout.whole(new, state)
    return report | {
        # The momentum after one step is the gradient itself.
        "gradient": np.asarray(jax.tree.leaves(kept.opt_state)[0]).tolist(),
        "loss": float(value),
        "kinds": m.collectives(compiled),
        "spec": list(new.params.sharding.spec),
        "parts": sorted({s.data.size for s in new.params.addressable_shards}),
        "moved": bool(np.allclose(
            np.asarray(kept.params), before - np.asarray(jax.tree.leaves(kept.opt_state)[0]),
            rtol=0, atol=1e-6)),
    }

points = rng.normal(0.2, 0.6, (16, 2)).astype(np.float32), rng.integers(0, 10, 16)
images = rng.normal(0.2, 0.6, (8, 4, 4, 1)).astype(np.float32), rng.integers(0, 10, 8)
mlp = shaken(MLP(2, width=14, num_classes=10, rngs=nnx.Rngs(0)))
dit = shaken(DiT(4, width=16, depth=2, head_size=4, num_classes=10, positions="rotary",
                 qk_norm=True, rngs=nnx.Rngs(0)))
reader = shaken(DiT(4, width=16, depth=1, head_size=4, num_classes=5, captions=True,
                    rngs=nnx.Rngs(0)))
told = images[0], rng.integers(0, 6, (8, 3))  # 5 fills up short captions
one, eight = m.device_mesh(devices=devices[:1]), m.device_mesh()
out = {
    "mlp": {
        "one": one_step(mlp, points, one),
        "dp": one_step(mlp, points, eight),
        "fsdp": one_step(mlp, points, eight, fsdp=True),
    },
    "dit": {
        "one": one_step(dit, images, one),
        "tp": one_step(dit, images, m.device_mesh(1, 2, devices[:2])),
        "all": one_step(dit, images, m.device_mesh(2, 4), fsdp=True),
    },
    "reader": {
        "one": one_step(reader, told, one),
        "all": one_step(reader, told, m.device_mesh(2, 2, devices[:4])),
    },
}

# Resume: four steps at once, or two, saved from eight devices, and two more on others.
def train(n, fsdp=True, **options):
    start = 0 if options.get("state") is None else int(options["state"].step)
    data = rng_data, rng_labels
    return loop.fit(mlp, loss, batches(data, 16, 1, start), steps=4, key=jax.random.key(1),
                    optimizer=optax.flatten(optax.sgd(0.1, momentum=0.9)), fsdp=fsdp,
                    mesh=m.device_mesh(devices=devices[:n]), progress=False, **options)

rng_data, rng_labels = rng.normal(0.2, 0.6, (40, 2)).astype(np.float32), rng.integers(0, 10, 40)
with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saved:
    whole = train(8).state
    train(8, stop=2, save=loop.Save(2, saved.save))
    resumed = {n: train(n, state=saved.restore(whole), fsdp=n != 1).state for n in (8, 2, 1)}
out["resume"] = {
    n: max(float(np.abs(np.asarray(a) - np.asarray(b)).max())
           for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(s)) if a.ndim)
    for n, s in resumed.items()
}
begin = np.asarray(update.create_state(mlp, optimizer).params)
out["moved"] = float(np.abs(np.asarray(whole.params) - begin).max())
print(json.dumps(out))
"""


def on_eight_devices(script):
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=1800
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report():
    return on_eight_devices(SCRIPT)


@pytest.fixture(scope="module")
def layouts():
    return on_eight_devices(LAYOUTS)


def test_each_of_eight_devices_holds_an_eighth_of_the_batch(report):
    assert report["shards"] == [[2, 8, 8, 1]] * 8


def test_sharded_gradients_equal_those_of_one_device(report):
    assert report["largest"] > 1e-3  # there is something to compare
    assert report["error"] < 1e-5


def test_sharded_training_follows_the_run_on_one_device(report):
    # Sums in another order differ in the last bits, which five steps of Adam amplify.
    np.testing.assert_allclose(report["run"]["8"], report["run"]["1"], rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "layout"),
    [("mlp", "dp"), ("mlp", "fsdp"), ("dit", "tp"), ("dit", "all"), ("reader", "all")],
)
def test_every_layout_has_the_gradient_of_one_device(layouts, model, layout):
    one, other = layouts[model]["one"], layouts[model][layout]
    # float32, whose sums are taken in another order: 1e-7 of entries of size 1 at most.
    np.testing.assert_allclose(other["gradient"], one["gradient"], rtol=0, atol=1e-5)
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert np.count_nonzero(np.abs(one["gradient"]) > 1e-4) > 0.6 * len(one["gradient"])
    assert other["moved"]  # the parameters went against it


def test_each_device_holds_what_the_layout_says(layouts):
    one, dp, fsdp = (layouts["mlp"][name] for name in ("one", "dp", "fsdp"))
    size = len(one["gradient"])
    assert size % 8  # so there is padding
    part = -(-size // 8)
    assert dp["parts"] == [size] and fsdp["parts"] == [part]
    # Parameters, average and momentum in float32, and the numbers `step` (4 bytes), `failed` (1).
    assert one["bytes"] == dp["bytes"] == 3 * 4 * size + 5
    assert fsdp["bytes"] == 3 * 4 * part + 5
    assert fsdp["spec"] == layouts["dit"]["all"]["spec"] == [["data", "model"]]


def test_each_layout_needs_its_collectives(layouts):
    mlp, dit = layouts["mlp"], layouts["dit"]
    assert mlp["one"]["kinds"] == dit["one"]["kinds"] == {}
    assert set(mlp["dp"]["kinds"]) == {"all-reduce"}
    # The parameters are gathered once. The gradient is summed and each device keeps its part.
    assert set(mlp["fsdp"]["kinds"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert mlp["fsdp"]["kinds"]["all-gather"] == 1
    # Two pairs in each of the two blocks, and each pair one sum forward and one backward at least.
    assert dit["tp"]["kinds"]["all-reduce"] >= 8


def test_a_run_goes_on_on_other_devices(layouts):
    assert layouts["resume"]["8"] == 0.0  # the same devices: bit for bit
    # Others add up in another order: the last bits of float32, in two steps.
    assert layouts["resume"]["2"] < 1e-5 and layouts["resume"]["1"] < 1e-5
    assert layouts["moved"] > 1e-2


def test_a_batch_that_does_not_divide_is_an_error():
    mesh = device_mesh()
    three = types.SimpleNamespace(local_mesh=types.SimpleNamespace(shape={"data": 3}))
    three.shape = {"model": 1}
    with pytest.raises(ValueError, match="multiple of the 3 devices, got 16"):
        shard_batch(three, np.zeros((16, 2)))
    assert shard_batch(mesh, np.zeros((16, 2))).shape == (16, 2)


def test_a_mesh_that_does_not_fit_the_devices_is_an_error():
    with pytest.raises(ValueError, match="data·model must be the number of devices, 1, got 2·1"):
        device_mesh(2, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"model must be .* at least 1, got 0"):
        device_mesh(model=0)


def test_only_a_dit_whose_heads_divide_is_divided():
    mlp, dit = (
        jax.eval_shape(lambda make=make: make(nnx.Rngs(0)))
        for make in (
            lambda rngs: MLP(2, width=8, rngs=rngs),
            lambda rngs: DiT(4, width=12, head_size=4, depth=1, rngs=rngs),
        )
    )
    columns = types.SimpleNamespace(shape={"model": 2})
    with pytest.raises(ValueError, match="must be a DiT for a mesh with 2 columns, got MLP"):
        tensor_parallel.divide(mlp, columns)
    with pytest.raises(ValueError, match="columns must divide the model's 3 heads, got 2"):
        tensor_parallel.divide(dit, columns)
    assert tensor_parallel.divide(mlp, device_mesh(devices=jax.devices()[:1])) is mlp


def test_no_device_and_a_number_for_a_batch_are_errors():
    with pytest.raises(ValueError, match="devices must hold at least one device, got none"):
        device_mesh(devices=[])
    with pytest.raises(ValueError, match=r"batch must hold arrays \[B, …\], got the number 3"):
        shard_batch(device_mesh(), 3)


def test_trained_models_can_be_used_with_arrays_on_one_device(report):
    assert report["used"] == [16, 2]
