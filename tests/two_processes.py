"""What test_distributed.py runs: alone when imported, and as a script in several processes."""

import json
import os
import signal
import sys

import jax
import numpy as np
import optax
from flax import nnx

from diffusion_course import losses, process
from diffusion_course.data import batches
from diffusion_course.models.mlp import MLP
from diffusion_course.training import distributed, loop
from diffusion_course.training.checkpoints import Checkpoints
from diffusion_course.training.update import create_state

# Plain descent with momentum: Adam would turn a difference in the last bits of a small gradient
# into one of its sign.
OPTIMIZER = optax.flatten(optax.sgd(0.1, momentum=0.9))


def loss(model, x, labels, key):
    return losses.diffusion_loss(model, process.vp_cosine(), "v", x, labels, key)


def model():
    return MLP(2, width=16, num_classes=10, rngs=nnx.Rngs(0))


def data():
    rng = np.random.default_rng(0)
    return rng.normal(0.3, 0.7, (50, 2)).astype(np.float32), rng.integers(0, 10, 50)


def train(rows=slice(None), source=batches, state=None, **options):
    start = int(state.step) if state is not None else 0
    return loop.fit(
        model(), loss, source(data(), 16, seed=1, start=start, rows=rows), steps=6,
        key=jax.random.key(5), optimizer=OPTIMIZER, ema=0.9, state=state, progress=False, **options,
    )  # fmt: skip


def until_death(*args, **options):
    """Batches; before the fourth, process 1 is killed."""
    for n, batch in enumerate(batches(*args, **options)):
        if n == 3 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch


def main(folder: str, dies: bool):
    distributed.connect()
    with Checkpoints(folder) as saved:
        like = create_state(model(), OPTIMIZER)
        state = saved.restore(like) if saved.latest_step() else None
        source = until_death if dies else batches
        # At first with a copy on each device, then cut among all of them.
        rows, save = distributed.own_rows(16), loop.Save(2, saved.save)
        result = train(rows, source, state, fsdp=not dies, save=save)
        told = ""
        try:
            saved.save(result.state)
        except ValueError as error:
            told = str(error)
        report = {
            "first": result.history.first_step,
            "loss": result.history.loss,
            "params": np.asarray(result.state.params).tolist(),
            "ema": jax.tree.leaves(nnx.state(result.ema))[0].sum().item(),
            "devices": len(jax.devices()),
            "steps": saved.steps(),
            "told": told,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], dies=sys.argv[2] == "dies")
