"""The race of `benchmarks/which_model.py`: what it compiles can be traced."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from diffusion_course.models.unet import UNet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import contenders


@pytest.mark.parametrize("batch", [2, 3])
def test_the_bits_of_diffusion_can_be_traced(batch):
    """They are computed under jit, where no time of their grid may be asked for."""
    unet = nnx.eval_shape(lambda: UNet(1, (64,), stem=2, num_classes=10, rngs=nnx.Rngs(0)))
    x, labels = jnp.zeros((batch, 8, 8, 1)), jnp.zeros(batch, jnp.int32)
    bits = jax.eval_shape(contenders.diffusion().bits, unet, x, labels, jax.random.key(0))
    assert bits.shape == (batch,) and bits.dtype == jnp.float32
