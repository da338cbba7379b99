"""How much each part of a U-Net helps, and how long a memory its averaged weights need.

    python benchmarks/network_parts.py        ten minutes on two quiet cores

The networks are those of chapter 04, and so is their text: the forward pass with parts left out is
read from the chapter's source. Networks of one seed see the same images in the same order. The
chapter shows the errors without a part in section 3, and those of the averages in section 5.
"""

import argparse
import ast
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np
import optax
from flax import nnx

from diffusion_course import data, losses, process, setup
from diffusion_course.evaluation import metrics
from diffusion_course.models.layers import depth_to_space, space_to_depth, upsample
from diffusion_course.models.unet import UNet
from diffusion_course.training import loop, update

COURSE = Path(__file__).resolve().parent.parent
RESULTS = COURSE / "benchmarks" / "results" / "network_parts.json"
TIMES = np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
STEPS, AVERAGED_STEPS, KEPT = 300, 600, (150, 300, 600)
DECAYS = (0.0, 0.9, 0.97, 0.99, 0.995, 0.999, 0.9999)
VARIANTS = {  # skips, time, attention, scale of FiLM
    "complete": (1, 1, 1, 1),
    "no skips": (0, 1, 1, 1),
    "no time": (1, 0, 1, 1),
    "no attention": (1, 1, 0, 1),
    "plain addition": (1, 1, 1, 0),
}
p = process.vp_cosine()


def written_out():
    """`unet(net, x, t, labels, keep)` of chapter 04."""
    source = (COURSE / "notebooks" / "source" / "04_networks.py").read_text(encoding="utf-8")
    wanted = ("residual_block", "attention", "unet")
    functions = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    names = {
        "jax": jax, "jnp": jnp, "np": np, "upsample": upsample,
        "space_to_depth": space_to_depth, "depth_to_space": depth_to_space,
    }  # fmt: skip
    exec(compile(ast.Module(functions, []), "04_networks.py", "exec"), names)
    return names["unet"]


unet = written_out()


def in_parts(net, x, t, cond):
    return unet(net, x, t, *cond)


def loss_in_parts(net, x, cond, key):
    labels, keep = cond
    key_drop, key_loss = jax.random.split(key)
    labels = losses.drop_labels(key_drop, labels, 10, 0.1)
    model = partial(in_parts, net)
    return losses.diffusion_loss(model, p, "v", x, (labels, keep), key_loss)


def error_in_parts(net, x0, eps, t, cond):
    return losses.squared_error(partial(in_parts, net), p, "v", x0, eps, t, cond)


def without(keep, seed: int, digits, unseen) -> list[float]:
    """Error of v on unseen digits at each time of a network with some parts, [7]."""
    keep = np.float32(keep)
    batches = (
        (x, (y, np.tile(keep, (64, 1)))) for x, y in data.batches(digits, size=64, seed=seed)
    )
    net = loop.fit(
        UNet(1, (16, 32), num_classes=10, rngs=nnx.Rngs(seed)), loss_in_parts, batches,
        steps=STEPS, key=jax.random.key(seed), optimizer=update.adam(3e-3, STEPS), progress=False,
    ).ema  # fmt: skip
    labels = unseen.labels, np.tile(keep, (len(unseen.labels), 1))
    error = metrics.loss_by_time(error_in_parts, net, unseen.x, labels, TIMES, jax.random.key(9), 4)
    return [round(float(e), 4) for e in error]


def averages(seed: int, digits, unseen) -> dict[str, dict[str, float]]:
    """Error of v on unseen digits of every average of one run: {steps: {decay: error}}."""
    kept, vectors = {}, {}

    def collect(state):
        n, now = int(state.step), np.array(state.params)
        rates = {d: d for d in DECAYS} | {"warm-up": float(update.ema_decay(n, 0.9999))}
        for d, rate in rates.items():
            vectors[d] = update.ema_update(vectors.get(d, now), now, rate)
        if n in KEPT:
            kept[n] = dict(vectors)

    def loss(net, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        labels = losses.drop_labels(key_drop, labels, 10, 0.1)
        return losses.diffusion_loss(net, p, "v", x, labels, key_loss)

    def error(net, x0, eps, t, labels):
        return losses.squared_error(net, p, "v", x0, eps, t, labels)

    net = UNet(1, (16, 32), num_classes=10, rngs=nnx.Rngs(0))
    loop.fit(
        net, loss, data.batches(digits, size=64, seed=seed), steps=AVERAGED_STEPS,
        key=jax.random.key(seed), optimizer=optax.adam(1e-2), save=loop.Save(1, collect),
        progress=False,
    )  # fmt: skip
    measure = partial(
        metrics.loss_by_time, x0=unseen.x, cond=unseen.labels, times=TIMES[[1, 3, 5]],
        key=jax.random.key(9), repeats=1,
    )  # fmt: skip
    return {
        str(n): {
            str(d): round(float(measure(error, update.merge(net, vector)).mean()), 4)
            for d, vector in vectors.items()
        }
        for n, vectors in kept.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    setup("cpu", quiet=True)
    digits, unseen = data.load("digits"), data.load("digits", split="test")
    result = {"machine": machine.describe(), "times": TIMES.tolist(), "parts": {}, "averages": []}
    for name, keep in VARIANTS.items():
        result["parts"][name] = [without(keep, s, digits, unseen) for s in range(args.seeds)]
        print(name, result["parts"][name], flush=True)
    for seed in range(args.seeds):
        # Seed 0 is the chapter's own run.
        result["averages"].append(averages(seed + 1, digits, unseen))
        print(result["averages"][-1], flush=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(machine.line(result["machine"]))


if __name__ == "__main__":
    main()
