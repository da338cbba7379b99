"""What a mark in the noise survives: 200 MNIST pictures, one key each, under every attack.

    python benchmarks/watermark.py

Writes benchmarks/results/watermark.json, which chapter 25 shows; the chapter computes rows of it
again with 20 pictures. Unguided samples (w = 1), 20 steps of DDIM down and 20 back up; who looks
for the key knows neither label nor attack.
"""

import io
import json
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion_course import denoiser, editing, samplers, sampling, watermark, weights

RECORD = Path(__file__).resolve().parent / "results" / "watermark.json"
SECRET, COUNT, BATCH = b"only our server knows this", 200, 20
RELEASED = weights.load("mnist")
P, TIMES = RELEASED.process, sampling.uniform(20)


@jax.jit
def draw(model, noise, labels):
    D = denoiser.denoiser(model, P, "v", labels)
    return sampling.sample(samplers.ddim(P), D, noise, TIMES, jax.random.key(0))[0]


@jax.jit
def back(model, pictures):
    D = denoiser.denoiser(model, P, "v", jnp.full(len(pictures), model.null_label))
    return editing.invert(P, D, pictures, TIMES)[0]


@jax.jit
def redraw(model, pictures, key, strength):
    """SDEdit without a label: noise and denoise again, with somebody's own copy of a model."""
    D = denoiser.denoiser(model, P, "v", jnp.full(len(pictures), model.null_label))
    return editing.sdedit(samplers.ddim(P), D, P, pictures, strength, 10, key)


def pixels(x):
    return np.uint8(np.rint((np.clip(np.asarray(x), -1, 1) + 1) * 127.5))


def floats(pixels):
    return np.float32(pixels) / 127.5 - 1


def jpeg(x, quality):
    out = []
    for picture in pixels(x)[..., 0]:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(buffer)))
    return floats(np.stack(out))[..., None]


def resized(x, side):
    small = [Image.fromarray(a).resize((side, side), Image.BICUBIC) for a in pixels(x)[..., 0]]
    large = [np.asarray(a.resize((28, 28), Image.BICUBIC)) for a in small]
    return floats(np.stack(large))[..., None]


def shifted(x):
    return np.roll(np.asarray(x), 1, axis=2)


def noisy(x, std, seed):
    noise = np.random.default_rng(seed).normal(0, std, np.shape(x))
    return np.float32(np.clip(np.asarray(x) + noise, -1, 1))


def attacks(seed: int) -> dict:
    model = RELEASED.model
    again = lambda s: lambda x: redraw(model, jnp.asarray(x), jax.random.key(seed), s)  # noqa: E731
    return {
        "none": lambda x: x,
        "8 bits": lambda x: floats(pixels(x)),
        "JPEG 90": lambda x: jpeg(x, 90),
        "JPEG 50": lambda x: jpeg(x, 50),
        "JPEG 20": lambda x: jpeg(x, 20),
        "to 24 and back": lambda x: resized(x, 24),
        "to 14 and back": lambda x: resized(x, 14),
        "one pixel aside": shifted,
        "noise of .1": lambda x: noisy(x, 0.1, seed),
        "drawn again, .3": again(0.3),
        "drawn again, .6": again(0.6),
    }


def main() -> None:
    found = {"unmarked": []} | {name: [] for name in attacks(0)}
    for start in range(0, COUNT, BATCH):
        names = [f"picture {i}" for i in range(start, start + BATCH)]
        keys = np.stack([watermark.signs(SECRET, name, (28, 28, 1)) for name in names])
        noise = jax.random.normal(jax.random.key(start), (BATCH, 28, 28, 1))
        labels = jnp.arange(BATCH) % 10
        marked = draw(RELEASED.model, watermark.mark(noise, keys), labels)
        pictures = {"unmarked": draw(RELEASED.model, noise, labels)}
        pictures |= {name: attack(marked) for name, attack in attacks(start).items()}
        for name, x in pictures.items():
            z = back(RELEASED.model, jnp.asarray(x, jnp.float32))
            found[name] += [round(float(s), 3) for s in watermark.score(z, keys)]
    rows = {
        name: {
            "correlation": round(float(np.mean(s)) / 28, 3),
            "found": int((np.array(s) > watermark.threshold(0.01)).sum()),
        }
        for name, s in found.items()
    }
    for name, row in rows.items():
        print(f"{name:16} {row}")
    record = {
        "pictures": COUNT,
        "false_alarms": 0.01,
        "weights_sha256": RELEASED.card.sha256,
        "versions": {name: version(name) for name in ("jax", "pillow")},
        "machine": platform.machine(),
        "rows": rows,
        "scores": found,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
