"""Seconds until training runs, and what the compile cache saves of them on a second start.

    python benchmarks/compile_cache.py [STARTS]

Each start is a new Python, as a new kernel is: it imports the course, loads the digits, builds
the course's default model, takes the first training step and draws 64 images with 50 DDIM steps.
The first start fills an empty cache, the later ones read it; the last row has no cache.
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
from diffusion_course import data, samplers, sampling, setup, weights
from diffusion_course.training import loop, recipes
setup("cpu", quiet=True)
lap("imports")
digits = data.load("digits")
lap("data")
recipe = recipes.RECIPES["digits"]
p = weights.build_process(recipe.process)
model = weights.build(recipe.model)
lap("model")
batches = data.batches(digits, size=recipe.batch_size, seed=0)
objective = recipes.diffusion_objective(recipe)
key = jax.random.key(0)
trained = loop.fit(model, objective, batches, steps=100, stop=1, key=key, progress=False).ema
lap("first step")
generate = sampling.generator(p, "v", samplers.ddim(p), sampling.uniform(50), (8, 8, 1))
generate(trained, key, 64, jax.numpy.arange(64) % 10).block_until_ready()
lap("samples")
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
    print("seconds".ljust(12) + "".join(part.rjust(12) for part in [*parts, "total"]))
    for name, row in rows.items():
        values = [*row.values(), sum(row.values())]
        print(name.ljust(12) + "".join(f"{value:12.1f}" for value in values))
    saved = sum(rows["no cache"].values()) - sum(rows[f"start {starts}"].values())
    print(
        f"saved: {saved:.1f} s of a start; the cache holds {len(files)} files, {size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
