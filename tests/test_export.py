"""Programs lowered for platforms that this computer does not have.

Lowering takes seconds and compiles nothing. A CPU gets Winograd's convolutions; everything else
gets XLA's own, which it knows best how to compute.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export
from networks import drawn, parameters

from diffusion_course import denoiser, losses, process, samplers, sampling
from diffusion_course.models.classifier import Classifier
from diffusion_course.models.dit import DiT
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet
from diffusion_course.training import update

P = process.vp_cosine()
PLATFORMS = ("tpu", "cuda", "cpu")


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


MODELS = {
    "UNet": (partial(UNet, 1, (16, 32), num_classes=3), (2, 8, 8, 1)),
    "DiT": (partial(DiT, (8, 4), width=32, depth=1, num_classes=3), (2, 8, 4, 1)),
    "MLP": (partial(MLP, 2, 8, 1, num_classes=3), (2, 2)),
    "Classifier": (partial(Classifier, 1, 8, 3, width=16, features=4), (2, 8, 8, 1)),
}
LABELS, KEY = array(2, dtype=jnp.int32), jax.eval_shape(lambda: jax.random.key(0))


def built(name):
    make, shape = MODELS[name]
    return drawn(lambda: make(rngs=nnx.Rngs(0)), seed=1), array(*shape)


def forward(name):
    """A model's forward pass and what it is called with."""
    model, x = built(name)
    graph, params = nnx.split(model)
    conditions = () if name == "Classifier" else (array(2), LABELS)
    run = jax.jit(lambda params, *inputs: nnx.merge(graph, params)(*inputs))
    return run, (params, x, *conditions)


def training(name):
    """A training step, as `fit` compiles it, and what it is called with."""
    model, x = built(name)

    def loss(model, x, labels, key):
        return losses.diffusion_loss(model, P, "v", x, labels, key)

    optimizer = update.adam(1e-3, 10)
    step = update.make_step(model, loss, optimizer, 0.9)
    params = nnx.split(model)[1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = update.TrainState(
        params=array(size),
        ema=array(size),
        opt_state=jax.eval_shape(optimizer.init, params),
        step=array(dtype=jnp.int32),
        failed=array(dtype=jnp.bool_),
    )
    return step, (state, (x, LABELS), KEY)


def drawing(name):
    """A whole trajectory of DDIM, and what it is called with."""
    model, x = built(name)
    graph, params = nnx.split(model)

    @jax.jit
    def draw(params, x, labels, key):
        D = denoiser.denoiser(nnx.merge(graph, params), P, "v", labels)
        return sampling.sample(samplers.ddim(P), D, x, sampling.uniform(3), key)

    return draw, (params, x, LABELS, KEY)


PROGRAMS = {
    **{f"{name} forward": partial(forward, name) for name in MODELS},
    "UNet training": partial(training, "UNet"),
    "DiT training": partial(training, "DiT"),
    "UNet DDIM": partial(drawing, "UNet"),
}

# A 3×3 convolution: its kernel is the second operand. Winograd's 36 products: a batch of 36.
CONVOLUTION = re.compile(
    r"stablehlo\.convolution\(.*\) *dim_numbers = \[b, 0, 1, f\]x\[0, 1, i, o\]"
    r".*: \(tensor<[^>]*>, tensor<3x3x(\d+)x(\d+)xf32>\)"
)
WINOGRAD = re.compile(
    r"stablehlo\.dot_general .*batching_dims = \[0\] x \[0\].*: \(tensor<36x\d+x(\d+)xf32>, "
    r"tensor<36x\d+x(\d+)xf32>\)"
)


def convolutions(text: str):
    """Channels in and out of the plain convolutions, and how many of Winograd's products."""
    plain = {(int(c_in), int(c_out)) for c_in, c_out in CONVOLUTION.findall(text)}
    return plain, len(WINOGRAD.findall(text))


@pytest.mark.parametrize("name", PROGRAMS)
def test_accelerators_get_the_plain_convolutions_and_a_cpu_gets_winograd_s(name):
    program, inputs = PROGRAMS[name]()
    plain, quick = {}, {}
    for platform in PLATFORMS:
        exported = export.export(program, platforms=[platform])(*inputs)
        assert exported.platforms == (platform,)
        plain[platform], quick[platform] = convolutions(exported.mlir_module())
    model = built(name.split()[0])[0]
    kernels = {leaf.shape[2:] for leaf in parameters(model).values() if leaf.shape[:2] == (3, 3)}
    assert bool(kernels) == (name.split()[0] in ("UNet", "Classifier"))
    for platform in ("tpu", "cuda"):
        assert plain[platform] == kernels and quick[platform] == 0
    # What is left to the CPU's plain convolution: too few channels, and strides.
    left = {"UNet": {(1, 16), (16, 16)}, "Classifier": {(1, 16), (16, 32), (32, 32)}}
    assert plain["cpu"] == left.get(name.split()[0], set())
    assert (quick["cpu"] > 0) == (name.split()[0] == "UNet")


def test_one_program_for_several_platforms_holds_both_ways():
    program, inputs = forward("UNet")
    text = export.export(program, platforms=["tpu", "cpu"])(*inputs).mlir_module()
    plain, quick = convolutions(text)
    assert (32, 32) in plain and quick > 0
