"""The worker of this library for `compare.py`: ``python benchmarks/ours.py SHAPE``.

The training step is written out here and not `diffusion_course.training.update.make_step`, which
always keeps an average of the weights and checks that all is finite: the peer does neither.
Everything else is as there: parameters in one vector, one compiled step, donated buffers.
"""

import sys
import time
from functools import cached_property, partial

import jax
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from shapes import BATCH, DDIM_STEPS, LEARNING_RATE, PRODUCTS, SHAPES, batch
from worker import peak_mib, seconds_per_call, serve

from diffusion_course import process, samplers, sampling, setup


class Ours:
    """One network and what is measured with it; the first call of anything compiles it."""

    def __init__(self, name: str):
        self.shape = SHAPES[name]
        arguments = {k: v for k, v in self.shape.model.items() if k != "class"}
        self.model = model_class(self.shape.model["class"])(**arguments, rngs=nnx.Rngs(0))
        self.batch = jax.device_put(batch(self.shape.size))

    def export(self, path: str) -> dict:
        """Draws every parameter anew (output layers start at zero), and writes them and an output.

        The network keeps a trained one's scale: kernels preserve variance, norms stay near 1.
        """
        from diffusion_course.weights.card import flat_params

        rng = np.random.default_rng(1)

        def draw(path, leaf):
            noise = rng.standard_normal(leaf.shape).astype(leaf.dtype)
            if "kernel" in str(path):  # [C, O], [H, W, C, O], or [depth, C, O] of stacked blocks
                fan_in = leaf.shape[-2] if leaf.ndim == 3 else np.prod(leaf.shape[:-1])
                return noise / np.sqrt(fan_in)
            return 0.1 * noise + ("scale" in str(path))

        params = jax.tree_util.tree_map_with_path(draw, nnx.state(self.model, nnx.Param))
        nnx.update(self.model, params)
        parameters = flat_params(self.model)
        np.savez(path, output=self.predict(), **parameters)
        return {"parameters": sum(array.size for array in parameters.values())}

    @cached_property
    def _predict(self):
        graph, params = nnx.split(self.model)
        forward = jax.jit(lambda params, x, t, cond: nnx.merge(graph, params)(x, t, cond))
        return partial(forward, params)

    def predict(self) -> jax.Array:
        b = self.batch
        return self._predict(b["x"], b["t"], b["labels"]).block_until_ready()

    def forward(self, repeat: int) -> float:
        return seconds_per_call(self.predict, repeat)

    @cached_property
    def _train(self):
        import optax  # not above: sampling starts without it

        graph, params = nnx.split(self.model)
        vector, unflatten = ravel_pytree(params)
        optimizer = optax.adam(LEARNING_RATE)

        def loss(vector, b):
            y = nnx.merge(graph, unflatten(vector))(b["x"], b["t"], b["labels"])
            return ((y - b["target"]) ** 2).mean()

        @partial(jax.jit, donate_argnums=0)
        def step(state, b):
            vector, opt_state = state
            value, gradient = jax.value_and_grad(loss)(vector, b)
            updates, opt_state = optimizer.update(gradient, opt_state, vector)
            return (optax.apply_updates(vector, updates), opt_state), value

        self.state = (vector, optimizer.init(vector))
        return step

    def train_once(self) -> jax.Array:
        self.state, loss = self._train(self.state, self.batch)
        return loss

    def first_steps(self, repeat: int) -> dict:
        """Losses of the first steps, and how long the first one took: it compiles."""
        _ = self._train  # the optimiser's state is made before the clock starts
        begin = time.perf_counter()
        losses = [float(self.train_once())]
        seconds = time.perf_counter() - begin
        losses += [float(self.train_once()) for _ in range(repeat - 1)]
        return {"losses": losses, "seconds": seconds}

    def train(self, repeat: int) -> float:
        """Steps are handed to JAX without waiting for each other, as `train.fit` does."""
        begin = time.perf_counter()
        for _ in range(repeat):
            loss = self.train_once()
        jax.block_until_ready((loss, self.state))
        return (time.perf_counter() - begin) / repeat

    @cached_property
    def _generate(self):
        p = process.vp_cosine()
        one = (self.shape.size, self.shape.size, 1)
        return sampling.generator(p, "v", samplers.ddim(p), sampling.uniform(DDIM_STEPS), one)

    def draw(self) -> np.ndarray:
        labels = batch(self.shape.size)["labels"]
        return np.asarray(self._generate(self.model, jax.random.key(0), BATCH, labels))

    def ddim(self, repeat: int) -> float:
        return seconds_per_call(self.draw, repeat)

    def products(self, repeat: int) -> list[float]:
        """GFLOP/s of each matrix product of PRODUCTS."""
        return [self._product(*product, repeat) for product in PRODUCTS]

    def _product(self, m: int, k: int, n: int, repeat: int) -> float:
        a, b = jax.numpy.ones((m, k)), jax.numpy.ones((k, n))
        matmul = jax.jit(jax.numpy.matmul)
        matmul(a, b).block_until_ready()
        seconds = seconds_per_call(lambda: matmul(a, b).block_until_ready(), repeat)
        return 2e-9 * m * k * n / seconds


def model_class(name: str) -> type[nnx.Module]:
    """A network of the library, without importing the others."""
    if name == "UNet":
        from diffusion_course.models.unet import UNet

        return UNet
    from diffusion_course.models.dit import DiT

    return DiT


def main() -> None:
    setup("cpu", quiet=True)
    side = Ours(sys.argv[1])
    names = "export", "forward", "first_steps", "train", "ddim", "products"
    serve({name: getattr(side, name) for name in names} | {"peak_mib": peak_mib})


if __name__ == "__main__":
    main()
