"""Pictures from captions: trains the models of `shapes` and counts how often a caption is obeyed.

    python benchmarks/shapes_text.py [judge] [text] [control] [clip] [--out runs] [--steps-of 1.0]

    judge    a classifier of all four attributes
    text     a U-Net with captions, measured by the judge for 1,000 captions at each w
    control  a ControlNet of the trained U-Net, from edges
    clip     the contrastive pair, and its score beside the judge's word

Each writes NAME.safetensors and NAME.results.json into the folder. A ninth of the combinations of
attributes is held out of every training but the judge's and is reported apart. Without names all
four run, in this order; on one GPU they take some minutes, on a CPU with two cores hours.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from machine import describe

from diffusion_course import guidance, losses, samplers, sampling
from diffusion_course.data import batches, shapes
from diffusion_course.denoiser import denoiser
from diffusion_course.models import control
from diffusion_course.models.classifier import AttributeClassifier, attribute_loss
from diffusion_course.models.contrastive import Contrastive, info_nce
from diffusion_course.models.text import Tokeniser
from diffusion_course.models.unet import UNet
from diffusion_course.process import vp_cosine
from diffusion_course.training import loop, update
from diffusion_course.weights.card import as_safetensors, flat_params

P, SIZE, HELD_OUT = vp_cosine(), 32, 9
LANGUAGE = Tokeniser(shapes.WORDS, shapes.LONGEST_CAPTION)
NULL = LANGUAGE.padding
STEPS = {"judge": 2000, "text": 8000, "control": 3000, "clip": 2000}
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
SAMPLES, CHUNK = 1000, 500


class Pictures:
    """Images, answers and captions; and which of them are of held-out combinations."""

    def __init__(self, split: str, n: int):
        data = shapes.load(split, n=n, size=SIZE)
        self.x, self.answers = data.x, shapes.answers(data)
        self.captions = LANGUAGE(data.attributes["caption"].tolist())
        self.held = self.answers.sum(axis=1) % HELD_OUT == 0

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x[~self.held], self.captions[~self.held]


def unet() -> UNet:
    return UNet(
        3, (32, 64), stem=2, num_classes=NULL, conditioning="cross-attention", rngs=nnx.Rngs(0)
    )


def train(name, model, loss, data, options, *, rate=3e-3, size=128, **more):
    steps = max(1, round(STEPS[name] * options.steps_of))
    start = time.perf_counter()
    result = loop.fit(
        model, loss, batches(data, size, seed=0), steps=steps, key=jax.random.key(0),
        optimizer=update.adam(rate, steps), progress=False, **more,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return result.ema, {"steps": steps, "batch": size, "rate": rate, "seconds": round(seconds)}


def judge(options) -> None:
    model = AttributeClassifier(3, SIZE, answers=tuple(map(len, shapes.ATTRIBUTES.values())),
                                width=16, rngs=nnx.Rngs(0))  # fmt: skip

    def loss(model, x, cond, key):
        # Samples are never quite clean: the judge must not depend on single pixels.
        noisy = x + 0.1 * jax.random.normal(key, x.shape)
        return attribute_loss(model(noisy), cond["answers"])

    def with_answers():
        pictures = options.train
        for x, answers in batches((pictures.x, pictures.answers), 128, seed=0):
            yield x, {"answers": answers}  # the loop leaves a dictionary to the loss

    steps = max(1, round(STEPS["judge"] * options.steps_of))
    model = loop.fit(model, loss, with_answers(), steps=steps, key=jax.random.key(0),
                     optimizer=update.adam(2e-3, steps), progress=False).ema  # fmt: skip
    found = judged(model, options.test.x)
    right = found == options.test.answers
    save(options, "shapes_judge", model, {"steps": steps, "unseen": len(right)} | shares(right))


def judged(model, x) -> np.ndarray:
    each = jax.jit(lambda model, x: model.judge(x))
    return np.concatenate([each(model, x[i : i + CHUNK]) for i in range(0, len(x), CHUNK)])


def shares(right: np.ndarray) -> dict[str, float]:
    """How often each attribute is right, and all of them."""
    of = dict(zip(shapes.ATTRIBUTES, right.mean(axis=0), strict=True)) | {
        "all": right.all(1).mean()
    }
    return {name: round(float(share), 4) for name, share in of.items()}


def text(options) -> None:
    def loss(model, x, captions, key):
        key_drop, key_loss = jax.random.split(key)
        captions = losses.drop_labels(key_drop, captions, NULL, 0.1)
        return losses.diffusion_loss(model, P, "v", x, captions, key_loss)

    model, about = train("text", unet(), loss, options.train.seen(), options)
    expert = loaded(options, "shapes_judge")
    wanted, captions = options.test.answers[:SAMPLES], options.test.captions[:SAMPLES]
    held = options.test.held[:SAMPLES]
    rows = []
    for w in SCALES:
        x = generate(model, captions, w)
        right = judged(expert, x) == wanted
        row = {"w": w} | shares(right)
        row |= {"seen": shares(right[~held])["all"], "held out": shares(right[held])["all"]}
        print(json.dumps(row), flush=True)
        rows.append(row)
    about |= {"samples": SAMPLES, "held out of them": int(held.sum()), "sampler": "DDIM, 50 steps"}
    save(options, "shapes_text", model, about | {"rows": rows})


GENERATE = sampling.generator(P, "v", samplers.ddim(P), sampling.uniform(50), (SIZE, SIZE, 3))


def generate(model, captions, w) -> np.ndarray:
    parts = range(0, len(captions), CHUNK)
    keys = jax.random.split(jax.random.key(1), len(parts))
    return np.concatenate(
        [GENERATE(model, key, CHUNK, captions[i : i + CHUNK], w)
         for i, key in zip(parts, keys, strict=True)]
    )  # fmt: skip


def clip(options) -> None:
    model = Contrastive(SIZE, 3, num_words=NULL, dim=32, width=16, text_width=32, rngs=nnx.Rngs(0))

    def loss(model, x, captions, key):
        noisy = x + 0.1 * jax.random.normal(key, x.shape)
        return info_nce(model(noisy, captions), captions)

    model, about = train("clip", model, loss, options.train.seen(), options, rate=2e-3, size=256)
    some = slice(0, SAMPLES)
    x, captions = options.test.x[some], options.test.captions[some]
    logits = np.asarray(jax.jit(lambda m, x, c: m(x, c))(model, x, captions))
    best = captions[logits.argmax(axis=1)]
    about["captions found among 1,000"] = round(float((best == captions).all(1).mean()), 4)
    expert, painter = loaded(options, "shapes_judge"), loaded(options, "shapes_text")
    score = jax.jit(lambda m, x, c: m.score(x, c))
    rows = []
    for w in SCALES:
        x = generate(painter, captions, w)
        right = (judged(expert, x) == options.test.answers[some]).all(axis=1)
        scores = np.asarray(score(model, x, captions))
        rows.append(
            {"w": w, "score": round(float(scores.mean()), 4), "all": round(right.mean(), 4)}
        )
        print(json.dumps(rows[-1]), flush=True)
    real = score(model, options.test.x[some], captions)
    about["score of real pictures"] = round(float(real.mean()), 4)
    save(options, "shapes_clip", model, about | {"rows": rows})


def steer(options) -> None:
    base = loaded(options, "shapes_text")

    def loss(model, x, captions, key, *, teacher):
        key_drop, key_loss = jax.random.split(key)
        # Half of the captions go, so that the control learns to read the edges by itself.
        captions = losses.drop_labels(key_drop, captions, NULL, 0.5)
        steered = model.steer(teacher, control.edges(x))
        return losses.diffusion_loss(steered, P, "v", x, captions, key_loss)

    model = control.ControlNet(base, 1, rngs=nnx.Rngs(0))
    model, about = train(
        "control", model, loss, options.train.seen(), options, rate=1e-3, teacher=base
    )
    wanted = control.edges(options.test.x[:SAMPLES])
    captions = options.test.captions[:SAMPLES]

    @jax.jit
    def draw(base, model, key, captions, edges, strength, w):
        steered = model.steer(base, edges, strength)
        null = jnp.full_like(captions, NULL)
        D = guidance.classifier_free(
            denoiser(steered, P, "v", captions), denoiser(steered, P, "v", null), w
        )
        noise = jax.random.normal(key, (len(captions), SIZE, SIZE, 3))
        return sampling.sample(samplers.ddim(P), D, noise, sampling.uniform(50), key)[0]

    rows, expert = [], loaded(options, "shapes_judge")
    for strength in (0.0, 0.5, 1.0, 1.5):
        x = np.concatenate(
            [draw(base, model, jax.random.key(i), captions[i : i + CHUNK], wanted[i : i + CHUNK],
                  strength, 2.0) for i in range(0, SAMPLES, CHUNK)]
        )  # fmt: skip
        agreed = float(control.agreement(control.edges(x), wanted).mean())
        right = judged(expert, x) == options.test.answers[:SAMPLES]
        rows.append({"strength": strength, "agreement": round(agreed, 4)} | shares(right))
        print(json.dumps(rows[-1]), flush=True)
    save(options, "shapes_control", model, about | {"w": 2.0, "samples": SAMPLES, "rows": rows})


def save(options, name: str, model, results: dict) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    content = as_safetensors(flat_params(model))
    (options.out / f"{name}.safetensors").write_bytes(content)
    about = {"machine": describe(), "device": jax.devices()[0].device_kind, "bytes": len(content)}
    path = options.out / f"{name}.results.json"
    path.write_text(json.dumps(about | results, indent=1) + "\n")
    options.models[name] = model
    print(name, json.dumps(results), flush=True)


def loaded(options, name: str):
    """A model that an earlier part of this run trained."""
    if name not in options.models:
        raise SystemExit(f"{name} is trained by another part: name it before this one")
    return options.models[name]


PARTS = {"judge": judge, "text": text, "control": steer, "clip": clip}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument(
        "--steps-of", type=float, default=1.0, help="share of the steps, for a trial"
    )
    parser.add_argument("--images", type=int, default=60_000)
    options = parser.parse_args()
    options.models = {}
    options.train = Pictures("train", options.images)
    options.test = Pictures("test", max(SAMPLES, options.images // 10))
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()
