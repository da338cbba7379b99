"""The wall: few-step methods on MNIST at 1, 2, 4 and 8 evaluations, on one network and one budget.

    python benchmarks/wall.py train METHOD … [--folder runs/wall]
    python benchmarks/wall.py measure METHOD … [--folder runs/wall] [--out …/results/wall.json]

Consistency distillation and MeanFlow are released weights (`diffusion-course train
mnist_consistency`); the others are trained here. Every method trains the U-Net of the released
MNIST weights for 10,000 steps of 128 images in all: minutes on a GPU, hours on two cores. All of
them aim at the guidance scale 1.5, but consistency training, which has no teacher to guide. What
follows a teacher starts from its weights, and the teacher's own training is not counted. `measure`
draws 5,000 digits from the same noise for every row.

Each row has the share that the judge recognises, that of the worst class, the Fréchet distances to
the training set and to what the row's teacher draws with 50 steps of DDIM, the share of unseen
digits with a sample near by (coverage), distances to the nearest training digit, and, where the
method follows its teacher's map, the mean square per pixel from where the map leads. The rows of
the teachers' own samplers are the baseline.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from machine import describe

from diffusion_course import data, flow, flow_map, losses, samplers, sampling, weights
from diffusion_course.denoiser import Denoiser, denoiser
from diffusion_course.evaluation import metrics, quality
from diffusion_course.guidance import classifier_free_batched
from diffusion_course.process import rectified_flow, vp_cosine
from diffusion_course.training import loop, recipes, update
from diffusion_course.weights import card, features

BATCH, STEPS, W = 128, 10_000, 1.5
COUNTS = 1, 2, 4, 8
SAMPLES, CHUNK, NULL = 5000, 1000, 10
UNET = {"class": "UNet", "channels": [32, 64], "stem": 2, "num_classes": NULL}
TOLD = UNET | {"extras": 1, "time_scale": 20.0}
VP, FLOW = vp_cosine(), rectified_flow()
MEAN_FLOW, CONSISTENCY = (recipes.RECIPES[f"mnist_{name}"] for name in ("meanflow", "consistency"))


def guided(model, p, kind, labels, w=W) -> Denoiser:
    return classifier_free_batched(model, p, kind, labels, jnp.full_like(labels, NULL), w)


def plain_jump(model, labels) -> flow_map.Jump:
    return flow_map.of_denoiser(denoiser(model, VP, "v", labels))


def fit(model, loss, batches, *, steps=STEPS, rate, ema=0.999, seed=0, **options) -> nnx.Module:
    """The averaged weights of a run by the course's own loop."""
    run = loop.fit(
        model, loss, batches, steps=steps, key=jax.random.key(seed), ema=ema,
        optimizer=update.adam(rate, steps), progress=False, **options,
    )  # fmt: skip
    print(f"loss {np.mean(run.history.loss[-100:]):.4f}, {run.history.seconds:.0f} s", flush=True)
    return run.ema


def digits(seed: int = 0):
    return data.batches(data.load("mnist"), size=BATCH, seed=seed)


# --------------------------------------------------------------------------------------------
# Training. Each returns networks by the number of evaluations that they are for; 0 for all.
# --------------------------------------------------------------------------------------------


def progressive() -> dict[int, nnx.Module]:
    """Five stages, each from the last one's average; the first from the guided teacher's steps."""

    def loss_of(n: int, teach: Callable):
        def loss(model, x, labels, key, *, teacher):
            D = teach(teacher, labels)
            return flow_map.progressive_loss(plain_jump(model, labels), VP, "v", x, key, D, n)

        return loss

    def alone(teacher, labels):
        return denoiser(teacher, VP, "v", labels)

    found, teacher = {}, weights.load("mnist").model
    for stage, (n, share) in enumerate([(16, 3), (8, 3), (4, 3), (2, 4), (1, 7)]):
        loss = loss_of(n, alone if stage else lambda m, labels: guided(m, VP, "v", labels))
        teacher = found[n] = fit(
            teacher, loss, digits(stage), steps=STEPS * share // 20, rate=1e-3, ema=0.99,
            seed=stage, teacher=teacher,
        )  # fmt: skip
    return found


def consistency_training(start: str = "mnist", grids=(8, 16, 32, 64), rate=2e-4):
    """Without a teacher's steps; the grid doubles from stage to stage.

    Args:
      start: released weights to begin with, or "" for none.
      grids: numbers of times, one for each stage.
      rate: Adam's peak. From nothing 2e-3 (over 1, 2, 3, 4, with grids from 16 to 128 and an
        average of .999) ended at 18 % recognised; 1e-3 with grids from 2 to 32 at 94 %.
    """
    model = weights.load(start).model if start else weights.build(UNET)
    for stage, grid in enumerate(grids):

        def loss(model, x, labels, key, grid=grid):
            jump = plain_jump(model, labels)
            return flow_map.consistency_loss(
                jump, jump, VP, "v", x, key, steps=grid, distance=flow_map.pseudo_huber(0.1)
            )

        steps = STEPS // len(grids)
        model = fit(model, loss, digits(stage), steps=steps, rate=rate, ema=0.99, seed=stage)
    return {0: model}


def consistency_training_from_nothing():
    return consistency_training(start="", grids=(2, 4, 8, 16), rate=3e-4)


def shortcut() -> dict[int, nnx.Module]:
    """From nothing: three quarters of each batch learn the denoiser, one quarter the jumps."""

    def loss(model, x, labels, key, *, averaged):
        key_drop, key_loss, key_jump = jax.random.split(key, 3)
        first = 3 * len(x) // 4
        dropped = losses.drop_labels(key_drop, labels[:first], NULL, 0.1)
        told = lambda x, t, cond: model(x, t, cond, jnp.zeros((len(x), 1)))  # noqa: E731
        simple = losses.diffusion_loss(told, FLOW, "flow", x[:first], dropped, key_loss)
        of_class = labels[first:]
        target = with_guided_start(averaged, of_class)
        jump = flow_map.network_jump(model, FLOW, "flow", of_class)
        return simple + flow_map.shortcut_loss(
            jump, target, FLOW, "flow", x[first:], key_jump, lengths=7
        )

    return {0: fit(weights.build(TOLD), loss, digits(), rate=3e-3, averaged=True)}


def with_guided_start(model, labels) -> flow_map.Jump:
    """A jump whose shortest steps, those of the denoiser, are guided."""
    jump = flow_map.network_jump(model, FLOW, "flow", labels)
    free = flow_map.network_jump(model, FLOW, "flow", jnp.full_like(labels, NULL))

    def guided_jump(x, t, s):
        w = jnp.where(t == s, W, 1.0)[:, None, None, None]
        return w * jump(x, t, s) + (1 - w) * free(x, t, s)

    return guided_jump


def reflow() -> dict[int, nnx.Module]:
    """60,000 pairs of noise and where the guided flow leads it, in 50 steps of Euler."""
    teacher = weights.load("mnist_flow").model
    labels = np.arange(60_000) % 10
    start = np.asarray(jax.random.normal(jax.random.key(7), (len(labels), 28, 28, 1)))
    ends = in_chunks(follow(FLOW, "flow"), teacher, start, labels)
    pairs = flow.paired(ends, start, labels, BATCH, seed=0)

    def loss(model, x0, extra, key):
        labels, x1 = extra
        return losses.pair_loss(model, FLOW, "flow", x0, x1, labels, key)

    return {0: fit(teacher, loss, pairs, rate=1e-3)}


class Pair(nnx.Module):
    """A generator, and the denoiser of what it makes."""

    def __init__(self, generator: nnx.Module, fake: nnx.Module):
        self.generator, self.fake = generator, fake


def distribution() -> dict[int, nnx.Module]:
    """Distribution matching in one step; both networks start from the teacher and learn at once.

    Their losses are added: no gradient of the one reaches the other.
    """

    def loss(pair, x, labels, key, *, teacher):
        keys = jax.random.split(key, 5)
        noise, eps = (jax.random.normal(k, x.shape) for k in keys[:2])
        made = denoiser(pair.generator, VP, "v", labels)(noise, jnp.ones(len(x)))
        t = jax.random.uniform(keys[2], (len(x),), minval=0.02, maxval=0.98)
        fake = denoiser(pair.fake, VP, "v", labels)
        toward = flow_map.distribution_loss(
            VP, made, eps, t, guided(teacher, VP, "v", labels), fake
        )
        still = jax.lax.stop_gradient(made)
        of_fake = losses.diffusion_loss(pair.fake, VP, "v", still, labels, keys[3])
        return toward / made[0].size + of_fake

    teacher, generator = (weights.load("mnist").model for _ in range(2))
    pair = Pair(generator, weights.load("mnist").model)
    return {1: fit(pair, loss, digits(), rate=2e-4, ema=0.99, teacher=teacher).generator}


TRAIN = {
    "progressive distillation": progressive,
    "consistency training": consistency_training,
    "consistency training from nothing": consistency_training_from_nothing,
    "shortcut": shortcut,
    "reflow": reflow,
    "distribution matching": distribution,
}


# --------------------------------------------------------------------------------------------
# Drawing
# --------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """How a method draws.

    Attributes:
      make: ``n -> generate(model, key, start, labels)``, compiled.
      teacher: the released weights whose guided map the method follows, "" for none.
      counts: numbers of evaluations.
    """

    make: Callable
    teacher: str
    counts: tuple[int, ...] = COUNTS


def drawn(sampler, source) -> Callable:
    """``source(model, labels)`` is the sampler's D."""

    def make(n: int):
        @jax.jit
        def generate(model, key, start, labels):
            times = sampling.uniform(n)
            return sampling.sample(sampler, source(model, labels), start, times, key)[0]

        return generate

    return make


def follow(p, kind: str, steps: int = 50):
    """The teacher's own guided DDIM."""
    return drawn(samplers.ddim(p), lambda model, labels: guided(model, p, kind, labels))(steps)


def of_teacher(sampler) -> Callable:
    return drawn(sampler, lambda model, labels: guided(model, VP, "v", labels))


def by_jumps(model, labels):
    return flow_map.network_jump(model, FLOW, "flow", labels)


DDIM, SOLVER = "DDIM of the teacher", "DPM-Solver++(2M) of the teacher"
DRAW = {
    DDIM: Draw(of_teacher(samplers.ddim(VP)), "mnist", (*COUNTS, 50)),
    SOLVER: Draw(of_teacher(samplers.dpm_solver_pp_2m(VP)), "mnist", (*COUNTS, 50)),
    "progressive distillation": Draw(
        drawn(samplers.ddim(VP), lambda m, labels: denoiser(m, VP, "v", labels)), "mnist"
    ),
    "consistency distillation": Draw(
        lambda n: recipes.few_steps(CONSISTENCY, n), "mnist"
    ),
    "consistency training": Draw(
        drawn(flow_map.consistency(VP), lambda m, labels: denoiser(m, VP, "v", labels)), ""
    ),
    "consistency training from nothing": Draw(
        drawn(flow_map.consistency(VP), lambda m, labels: denoiser(m, VP, "v", labels)), ""
    ),
    "shortcut": Draw(drawn(flow_map.jumps(FLOW), by_jumps), ""),
    "MeanFlow": Draw(lambda n: recipes.few_steps(MEAN_FLOW, n), ""),
    "flow, Euler": Draw(
        drawn(samplers.ddim(FLOW), lambda m, labels: guided(m, FLOW, "flow", labels)),
        "mnist_flow", (*COUNTS, 50),
    ),
    "reflow": Draw(
        drawn(samplers.ddim(FLOW), lambda m, labels: denoiser(m, FLOW, "flow", labels)),
        "mnist_flow",
    ),
    "distribution matching": Draw(
        drawn(samplers.ddim(VP), lambda m, labels: denoiser(m, VP, "v", labels)), "", (1,)
    ),
}  # fmt: skip
RELEASED = {
    DDIM: "mnist",
    SOLVER: "mnist",
    "flow, Euler": "mnist_flow",
    "consistency distillation": "mnist_consistency",
    "MeanFlow": "mnist_meanflow",
}


def in_chunks(generate, model, start, labels, seed: int = 3) -> np.ndarray:
    """All samples, a thousand at a time for memory."""
    parts = range(0, len(labels), CHUNK)
    return np.concatenate(
        [
            generate(model, jax.random.key(seed + i), start[i : i + CHUNK], labels[i : i + CHUNK])
            for i in parts
        ]
    )


# --------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------


class Ruler:
    """What every row is compared with, made once."""

    def __init__(self):
        self.train, self.test = (data.load("mnist", split=split) for split in ("train", "test"))
        self.labels = np.arange(SAMPLES) % 10
        self.start = np.asarray(jax.random.normal(jax.random.key(1), (SAMPLES, 28, 28, 1)))
        self.expert = weights.load("mnist_classifier")
        self.real = features.load("mnist", self.expert.card)
        unseen = self.test.x[np.linspace(0, len(self.test) - 1, SAMPLES).round().astype(int)]
        self.unseen = self._judged(unseen)[1]
        self.near = metrics.nearest(unseen[::5], self.train.x)[1]
        self.floor = metrics.frechet(self.unseen, self.real)
        self.teachers = {}

    def _judged(self, x):
        return quality.judge_all(self.expert.model, x)

    def teacher(self, name: str):
        """What a teacher draws with 50 guided steps: its images, and their features' moments."""
        if name not in self.teachers:
            p, kind = (VP, "v") if name == "mnist" else (FLOW, "flow")
            x = in_chunks(follow(p, kind), weights.load(name).model, self.start, self.labels)
            self.teachers[name] = x, metrics.moments(self._judged(x)[1])
        return self.teachers[name]

    def row(self, x: np.ndarray, teacher: str) -> dict:
        predicted, found = self._judged(x)
        by_class = metrics.per_class_accuracy(predicted, self.labels, 10)
        near = metrics.nearest(x[:CHUNK], self.train.x)[1]  # a hundred of each class
        # A method without a teacher is compared with the samples of the released network.
        images, moments = self.teacher(teacher or "mnist")
        row = {
            "recognised": metrics.class_accuracy(predicted, self.labels),
            "worst class": float(by_class.min()),
            "to the data": metrics.frechet(found, self.real),
            "to the teacher": metrics.frechet(found, moments),
            "coverage": metrics.coverage(found, self.unseen),
            "nearest": float(np.median(near)),
            "copies": float((near < 0.1 * np.median(self.near)).mean()),
        }
        if teacher:
            row["square from the map"] = float(((x - images) ** 2).mean())
        return {name: round(value, 5) for name, value in row.items()}


def measure(method: str, folder: Path, ruler: Ruler) -> list[dict]:
    draw, rows = DRAW[method], []
    for n in draw.counts:
        model = load(method, n, folder)
        x = in_chunks(draw.make(n), model, ruler.start, ruler.labels)
        rows.append({"method": method, "evaluations": n, **ruler.row(x, draw.teacher)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def starts(ruler: Ruler, folder: Path, method: str = "consistency distillation") -> dict:
    """How much other noises move one of the distances: what a difference must exceed."""
    model, generate, found = load(method, 1, folder), DRAW[method].make(1), []
    first = jax.random.key(1)
    for key in (first, jax.random.split(first)[0], jax.random.key(77)):
        noise = np.asarray(jax.random.normal(key, ruler.start.shape))
        x = in_chunks(generate, model, noise, ruler.labels)
        found.append(
            round(metrics.frechet(quality.judge_all(ruler.expert.model, x)[1], ruler.real), 5)
        )
    return {f"{method}, 1 evaluation, to the data, from three sets of 5,000 noises": found}


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------


def called(method: str, n: int) -> str:
    return f"{method.replace(' ', '-')}-{n}"


def keep(method: str, n: int, model: nnx.Module, folder: Path) -> None:
    described = TOLD if method == "shortcut" else UNET
    about = card.Card(called(method, n), model=described, data={}, recipe={"method": method})
    card.save_weights(folder, model, about)


def load(method: str, n: int, folder: Path) -> nnx.Module:
    """The network of a method for n evaluations, or the one for all numbers."""
    if method in RELEASED:
        return weights.load(RELEASED[method]).model
    for_these = called(method, n)
    name = for_these if for_these in weights.names(folder) else called(method, 0)
    return weights.load(name, folder).model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("train", "measure"))
    parser.add_argument("methods", nargs="*", help="all by default")
    parser.add_argument("--folder", type=Path, default=Path("runs/wall"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/wall.json"))
    options = parser.parse_args()
    if options.what == "train":
        for method in options.methods or TRAIN:
            begin = perf_counter()
            for n, model in TRAIN[method]().items():
                keep(method, n, model, options.folder)
            print(f"{method}: {perf_counter() - begin:.0f} s", flush=True)
        return
    ruler = Ruler()
    known = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    about = {"machine": describe(), "device": jax.devices()[0].device_kind,
             "w": W, "samples": SAMPLES, "steps": STEPS, "batch": BATCH}  # fmt: skip
    about["floor"] = {
        "to the data": round(ruler.floor, 5), "nearest": round(float(np.median(ruler.near)), 5)
    }  # fmt: skip
    about["starts"] = starts(ruler, options.folder)
    for method in options.methods or DRAW:
        known = [row for row in known if row["method"] != method]
        known += measure(method, options.folder, ruler)
        options.out.write_text(json.dumps(about | {"rows": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
