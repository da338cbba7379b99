"""Eight simulated devices, in a process of their own, give the gradients of one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

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


@pytest.fixture(scope="module")
def report():
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=1800
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_each_of_eight_devices_holds_an_eighth_of_the_batch(report):
    assert report["shards"] == [[2, 8, 8, 1]] * 8


def test_sharded_gradients_equal_those_of_one_device(report):
    assert report["largest"] > 1e-3  # there is something to compare
    assert report["error"] < 1e-5


def test_sharded_training_follows_the_run_on_one_device(report):
    # Sums in another order differ in the last bits, which five steps of Adam amplify.
    np.testing.assert_allclose(report["run"]["8"], report["run"]["1"], rtol=1e-3)


def test_a_batch_that_does_not_divide_is_an_error():
    mesh = device_mesh()

    class Three:
        size = 3

    with pytest.raises(ValueError, match="multiple of the 3 devices, got 16"):
        shard_batch(Three, np.zeros((16, 2)))
    assert shard_batch(mesh, np.zeros((16, 2))).shape == (16, 2)


def test_no_device_and_a_number_for_a_batch_are_errors():
    with pytest.raises(ValueError, match="devices must hold at least one device, got none"):
        device_mesh(devices=[])
    with pytest.raises(ValueError, match=r"batch must hold arrays \[B, …\], got the number 3"):
        shard_batch(device_mesh(), 3)


def test_trained_models_can_be_used_with_arrays_on_one_device(report):
    assert report["used"] == [16, 2]
