"""Seconds that the compile cache saves when a notebook is started a second time.

    python benchmarks/compile_cache.py [STARTS]

Each start is a new Python, as a new kernel is: it imports the course, trains the course's U-Net
on the digits for three steps and draws 64 images with 20 DDIM steps. The first start fills an
empty cache, the later ones read it; the last row has no cache.
"""

import json
import os
import subprocess
import sys
import tempfile

START = """
import json, time
begin = time.perf_counter()
seconds = {}
def lap(name):
    global begin
    now = time.perf_counter()
    seconds[name], begin = now - begin, now

import jax
from flax import nnx
from diffusion_course import data, denoiser, losses, process, samplers, sampling, setup, train
from diffusion_course.models.unet import UNet
setup("cpu", quiet=True)
digits = data.load("digits")
lap("imports, data")
model = UNet(1, (32, 64), num_classes=10, rngs=nnx.Rngs(0))
lap("model")
p = process.vp_cosine()
def loss(model, x, labels, key):
    return losses.diffusion_loss(model, p, "v", x, labels, key)
batches = data.batches(digits, size=128, seed=0)
trained = train.fit(model, loss, batches, steps=3, key=jax.random.key(0), progress=False).ema
lap("3 training steps")
@jax.jit
def draw(model, noise, labels, key):
    D = denoiser.denoiser(model, p, "v", labels)
    return sampling.sample(samplers.ddim(p), D, noise, sampling.uniform(20), key)[0]
noise = jax.random.normal(jax.random.key(1), (64, 8, 8, 1))
labels = jax.numpy.arange(64) % 10
draw(trained, noise, labels, jax.random.key(2)).block_until_ready()
lap("20-step samples")
print(json.dumps(seconds))
"""


def start(folder: str, cache: bool) -> dict[str, float]:
    """Seconds of each part of one start."""
    environment = os.environ | {
        "DIFFUSION_COURSE_CACHE": folder,
        "DIFFUSION_COURSE_COMPILE_CACHE": str(int(cache)),
    }
    done = subprocess.run(
        [sys.executable, "-c", START], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    starts = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        rows = {f"start {n}": start(folder, cache=True) for n in range(1, starts + 1)}
        files = [entry for entry in os.scandir(os.path.join(folder, "jax")) if entry.is_file()]
        size = sum(entry.stat().st_size for entry in files)
        rows["no cache"] = start(folder, cache=False)
    parts = list(rows["no cache"])
    print("seconds".ljust(12) + "".join(part.rjust(18) for part in [*parts, "total"]))
    for name, row in rows.items():
        values = [*row.values(), sum(row.values())]
        print(name.ljust(12) + "".join(f"{value:18.1f}" for value in values))
    saved = sum(rows["no cache"].values()) - sum(rows[f"start {starts}"].values())
    print(
        f"saved: {saved:.1f} s of a start; the cache holds {len(files)} files, {size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
