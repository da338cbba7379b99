"""What each of the library's fast paths buys on this CPU.

    python benchmarks/fast_paths.py [ROUNDS [JSON]]

Every row times a plain way and the library's way in turns (A B A B …) and prints the best of
each. "gradient" is the value and the gradient of all inputs. The last rows time a U-Net's whole
training step in processes of their own, with and without each setting.
"""

import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import machine
from flax import nnx

from diffusion_course.models import fast, layers
from diffusion_course.notebook import memory

BATCH = 64

STEP = """
import sys, time
import jax, jax.numpy as jnp
from flax import nnx
from diffusion_course.notebook import memory
from diffusion_course.models import fast
from diffusion_course.models.unet import UNet
from diffusion_course.training import update
if sys.argv[1] != "no memory":
    memory.keep_freed_memory()
if sys.argv[1] == "plain":
    fast.conv3x3 = fast.plain_conv
size = int(sys.argv[2])
model = UNet(1, (32, 64) if size == 8 else (32, 64, 64), num_classes=10, rngs=nnx.Rngs(0))
def loss(model, x, labels, key):
    return jnp.mean((model(x, jnp.linspace(0, 1, len(x)), labels) - 1) ** 2)
optimizer = update.adam(1e-3, 1000)
step = update.make_step(model, loss, optimizer, 0.999)
state = update.create_state(model, optimizer)
batch = jax.random.normal(jax.random.key(0), (64, size, size, 1)), jnp.arange(64) % 10
best = float("inf")
for n in range(12):
    begin = time.perf_counter()
    state, value = step(state, batch, jax.random.key(1))
    jax.block_until_ready(state)
    best = min(best, time.perf_counter() - begin)
print(1e3 * best)
"""


def normal(*shape: int):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def cases():
    """Yields (name, plain function, fast function, arguments)."""
    for size, c_in, c_out in ((4, 64, 64), (8, 96, 32), (16, 32, 32), (28, 32, 32), (14, 128, 64)):
        x, kernel = normal(BATCH, size, size, c_in), normal(3, 3, c_in, c_out)
        yield f"winograd {size}×{size}, {c_in}→{c_out}", fast.plain_conv, fast.winograd, (x, kernel)
    for size in (8, 28):
        x, kernel = normal(BATCH, size, size, 64), normal(3, 3, 64, 1)
        yield f"thin_conv {size}×{size}, 64→1", fast.plain_conv, fast.thin_conv, (x, kernel)
        x, rngs = normal(BATCH, size, size, 64), nnx.Rngs(0)
        ready, ours = nnx.GroupNorm(64, 8, rngs=rngs), layers.GroupNorm(64, 8, rngs=rngs)
        yield f"GroupNorm {size}×{size}×64", ready, ours, (x,)
        yield f"upsample {size}×{size}×64", _resize, layers.upsample, (x,)
        conv, dense = nnx.Conv(64, 32, (1, 1), rngs=rngs), layers.Linear(64, 32, rngs=rngs)
        yield f"Linear for a 1×1 conv, {size}×{size}, 64→32", conv, dense, (x,)
    for tokens, c_in, c_out in ((16, 128, 512), (49, 128, 512), (49, 512, 128)):
        x, kernel, bias = normal(BATCH, tokens, c_in), normal(c_in, c_out), normal(c_out)
        name = f"dense, {tokens} tokens, {c_in}→{c_out}"
        yield name, fast.plain_dense, fast.dense_of_rows, (x, kernel, bias)


def _resize(x):
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, 2 * height, 2 * width, channels), "nearest")


def gradient(function):
    def run(*arguments):
        value, back = jax.vjp(function, *arguments)
        return value, back(jnp.ones_like(value))

    return run


def milliseconds(functions, arguments, rounds: int) -> list[float]:
    """The best time of each function, called in turns."""
    compiled = [jax.jit(function) for function in functions]
    for call in compiled:
        jax.block_until_ready(call(*arguments))
    best = [float("inf")] * len(compiled)
    for _ in range(rounds):
        for n, call in enumerate(compiled):
            begin = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            best[n] = min(best[n], 1e3 * (time.perf_counter() - begin))
    return best


def whole_step(setting: str, size: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", STEP, setting, str(size)],
        capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    memory.keep_freed_memory()
    rows = {}
    print("milliseconds".ljust(46) + "plain".rjust(9) + "fast".rjust(9) + "faster".rjust(9))

    def report(name: str, plain: float, quick: float) -> None:
        rows[name] = {"plain": plain, "fast": quick}
        print(f"{name:<46}{plain:9.2f}{quick:9.2f}{plain / quick:8.2f}×", flush=True)

    for name, plain, quick, arguments in cases():
        report(name, *milliseconds([plain, quick], arguments, rounds))
        report(
            f"{name}, gradient",
            *milliseconds([gradient(plain), gradient(quick)], arguments, rounds),
        )
    for size in (8, 28):
        ours = min(whole_step("ours", size) for _ in range(2))
        report(
            f"training step {size}×{size}: keep_freed_memory", whole_step("no memory", size), ours
        )
        report(f"training step {size}×{size}: fast.conv3x3", whole_step("plain", size), ours)
    if len(sys.argv) > 2:
        with open(sys.argv[2], "w", encoding="utf-8") as file:
            json.dump({"machine": machine.describe(), "milliseconds": rows}, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
