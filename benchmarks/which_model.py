"""Which generative model? The 8×8 digits, the same processor seconds, the same judges.

    python benchmarks/which_model.py        half an hour on two quiet cores

Each contender of `contenders.py` is trained for the same processor time (user and system time of
this process, all threads, after compilation). First three learning rates are tried for a quarter of
it, with a seed of their own, and the one with the least Fréchet distance is kept. Then every seed
is trained for the whole of it. The steps are counted beforehand from the least time of a few, so
that seeds have equally many; what a run then took is recorded as well.

All samples are clipped to [−1, 1] and rounded to the data's 17 grey levels before they are judged:
36 of each class. The result is written after every run, and a run that was recorded with the same
budget is not repeated: stop it whenever you like.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import contenders
import jax
import jax.numpy as jnp
import machine
import numpy as np
from contenders import CLASSES, LEVELS, SIZE, processor_seconds

from diffusion_course import data, likelihood, setup, weights
from diffusion_course.evaluation import kernels, metrics, neighbours
from diffusion_course.evaluation.quality import judge_all
from diffusion_course.models import autoregressive
from diffusion_course.weights import features

RESULTS = Path(__file__).parent / "results" / "which_model.json"
COUNT, TUNING_SEED, TUNING_SHARE = 360, 9, 0.25
COLLAPSED = 0.5  # coverage below this share of that of unseen digits
DIGITS = "0123456789abcdefg"  # a grey level each
NOT_COMPARABLE = (
    "Bits per dimension: the pixel model's are exact, the others are upper bounds on discrete "
    "pixels of different tightness; GAN and MeanFlow have none, retrieval's would be infinite.",
    "Samples of the VAE are usually its means, which are not draws of the model that the bits "
    "belong to; both are judged.",
    "The rates were chosen by the distance of samples to the training set, which no model of "
    "likelihood is trained for, and after a quarter of the time.",
    "Precision, recall, coverage and both distances live in the features of a classifier of the "
    "same data: class errors weigh more there than to an eye.",
    "A processor second counts alike for one thread or two; a GPU, which favours the models with "
    "few large operations, would give other times.",
    "One architecture each, of about the same number of parameters up to a factor of about five, "
    "and 1,437 images: with more of both the order may be another.",
)


class Judges:
    """Everything that samples are compared with, computed once."""

    def __init__(self):
        self.train, self.test = data.load("digits"), data.load("digits", split="test")
        self.expert = weights.load("digits_classifier")
        self.moments = features.load("digits", self.expert.card)
        self.real = judge_all(self.expert.model, self.train.x)[1]

    def grade(self, x: np.ndarray, labels: np.ndarray) -> dict:
        """All measures of samples [N, 8, 8, 1] that were asked to be of these labels."""
        finite = bool(np.isfinite(x).all())
        index = np.asarray(autoregressive.to_levels(np.nan_to_num(x), LEVELS))
        x = np.asarray(autoregressive.from_levels(index, LEVELS))
        seen, traits = judge_all(self.expert.model, x)
        by_class = metrics.per_class_accuracy(seen, labels, CLASSES)
        copied = neighbours.copies(x, self.train.x, self.test.x)
        return {
            "frechet": round(metrics.frechet(traits, self.moments), 3),
            "kid": round(kernels.kid(traits, self.real), 4),
            "precision": round(neighbours.precision(traits, self.real), 3),
            "recall": round(neighbours.recall(traits, self.real), 3),
            "coverage": round(metrics.coverage(traits, self.real), 3),
            "recognised": round(metrics.class_accuracy(seen, labels), 3),
            "worst class": round(float(by_class.min()), 3),
            "copies": round(float(copied.flagged.mean()), 3),
            "copies by chance": float(f"{copied.chance:.2g}"),
            "finite": finite,
            # The first of each class, to look at.
            "images": ["".join(DIGITS[k] for k in image.ravel()) for image in index[:CLASSES]],
        }


def labels_of(count: int = COUNT) -> np.ndarray:
    return (np.arange(count) % CLASSES).astype(np.int32)


class Sampler:
    """Draws with programs that are compiled once for each way of drawing."""

    def __init__(self):
        self.programs = {}

    def __call__(self, name: str, draw, models, key) -> tuple[np.ndarray, float]:
        """The samples, and the processor seconds of 100 of them."""
        labels = jnp.asarray(labels_of())
        if name not in self.programs:
            self.programs[name] = jax.jit(draw).lower(models, labels, key).compile()
        begin = processor_seconds()
        x = np.asarray(self.programs[name](models, labels, key))
        return x, round(100 * (processor_seconds() - begin) / COUNT, 4)


compiled = cache(jax.jit)


def bits_of(contender, models, judges: Judges, key) -> dict:
    """Mean bits per dimension of unseen digits with their standard error, and of training ones."""
    found, as_many = {}, judges.train.subset(np.arange(len(judges.test)) * 3)
    for name, part in {"test": judges.test, "train": as_many}.items():
        x, labels = jnp.asarray(part.x), jnp.asarray(part.labels)
        bits = np.asarray(compiled(contender.bits)(models, x, labels, key))
        found[f"bits, {name}"] = round(float(bits.mean()), 4)
        if name == "test":
            found["bits error"] = round(float(bits.std(ddof=1) / np.sqrt(len(bits))), 4)
    return found


# --------------------------------------------------------------------------------------------
# Baselines: nothing is trained
# --------------------------------------------------------------------------------------------


def baselines(judges: Judges, seed: int) -> Iterator[tuple[str, dict]]:
    """Unseen digits, copies of training digits, and a Gaussian for each class."""
    rng, labels, train = np.random.default_rng(seed), labels_of(), judges.train
    members = [np.flatnonzero(train.labels == c) for c in range(CLASSES)]
    if seed == 0:
        yield "unseen digits", judges.grade(judges.test.x, judges.test.labels)
    begin = processor_seconds()
    chosen = train.x[[rng.choice(members[c]) for c in labels]]
    noisy = chosen + rng.normal(0, 0.1, chosen.shape).astype(np.float32)
    took = {"processor seconds per 100": round(100 * (processor_seconds() - begin) / COUNT, 4)}
    yield "retrieval with noise", judges.grade(noisy, labels) | took
    begin = processor_seconds()
    fits = [_gaussian(train.x[m]) for m in members]
    fitted = round(processor_seconds() - begin, 2)
    begin = processor_seconds()
    draws = np.stack([fits[c][0] + fits[c][1] @ rng.normal(size=SIZE**2) for c in labels])
    took = {"processor seconds per 100": round(100 * (processor_seconds() - begin) / COUNT, 4)}
    x = draws.reshape(-1, SIZE, SIZE, 1).astype(np.float32)
    bits = {f"bits, {k}": _gaussian_bits(fits, part, seed)
            for k, part in {"test": judges.test, "train": train}.items()}  # fmt: skip
    yield (
        "a Gaussian per class",
        judges.grade(x, labels) | took | bits | {"processor seconds": fitted},
    )


def _gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and Cholesky root of the covariance, with the variance of uniform bins added."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    width = 2 / (LEVELS - 1)
    covariance = np.cov(flat.T) + width**2 / 12 * np.eye(flat.shape[1])
    return flat.mean(axis=0), np.linalg.cholesky(covariance)


def _gaussian_bits(fits, part, seed: int) -> float:
    """As of the normalising flow: uniform dequantisation."""
    x = np.asarray(likelihood.dequantize(part.x, LEVELS, jax.random.key(seed)), np.float64)
    total = 0.0
    for row, label in zip(x.reshape(len(x), -1), part.labels, strict=True):
        mean, root = fits[label]
        z = np.linalg.solve(root, row - mean)
        total += -0.5 * (z @ z + len(z) * np.log(2 * np.pi)) - np.log(np.diag(root)).sum()
    return round(float(likelihood.bits_per_dim(total / len(x), SIZE**2, LEVELS)), 4)


# --------------------------------------------------------------------------------------------
# The race
# --------------------------------------------------------------------------------------------


class Record:
    """The result file, which is written after each run."""

    def __init__(self, file: Path, budget: float):
        self.file = file
        old = json.loads(file.read_text()) if file.exists() else {}
        if old.get("budget") == budget:
            self.content = old
        else:
            self.content = {
                "machine": machine.describe(),
                "sha256": {"digits_classifier": weights.load("digits_classifier").card.sha256},
                "budget": budget,
                "samples": COUNT,
                "complete": False,
                "not comparable": list(NOT_COMPARABLE),
                "about": {},
                "tried": [],
                "rows": [],
            }

    def rows(self, kind: str, **wanted) -> list[dict]:
        return [r for r in self.content[kind] if all(r.get(k) == v for k, v in wanted.items())]

    def add(self, kind: str, row: dict) -> None:
        self.content[kind].append(row)
        self.write()
        shown = {k: v for k, v in row.items() if k != "images"}
        print(shown, flush=True)

    def write(self) -> None:
        self.content["summary"] = summary(self.content["rows"])
        self.file.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")


def summary(rows: list[dict]) -> dict:
    """Mean, least and largest over the seeds, and how many runs failed."""
    floor = next((r["coverage"] for r in rows if r["model"] == "unseen digits"), None)
    found = {}
    for name in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == name]
        values = {k: [r[k] for r in mine if k in r] for r in mine for k, v in r.items()
                  if isinstance(v, float)}  # fmt: skip
        found[name] = {
            k: [round(float(f(v)), 4) for f in (np.mean, min, max)] for k, v in values.items()
        } | {
            "seeds": len(mine),
            "diverged": sum(r.get("failed", False) or not r["finite"] for r in mine),
            "collapsed": sum(floor is not None and r["coverage"] < COLLAPSED * floor for r in mine),
        }
    return found


def try_rates(name, contender, record: Record, judges, sampler, budget: float) -> float:
    """The learning rate with the least Fréchet distance after a quarter of the budget."""
    (way, draw), *_ = contender.draws.items()
    for rate in contender.rates:
        if not record.rows("tried", model=name, rate=rate):
            models, log = contender.train(rate, TUNING_SEED, TUNING_SHARE * budget)
            x, _ = sampler(way, draw, models, jax.random.key(TUNING_SEED))
            graded = judges.grade(x, labels_of())
            graded.pop("images")
            record.add("tried", {"model": name, "rate": rate, "way": way} | log | graded)
    tried = record.rows("tried", model=name)
    return min(tried, key=lambda r: (r["failed"] or not r["finite"], r["frechet"]))["rate"]


def race(name, contender, seed: int, record: Record, judges, sampler, budget: float) -> None:
    rate = try_rates(name, contender, record, judges, sampler, budget)
    models, log = contender.train(rate, seed, budget)
    key_bits, key = jax.random.split(jax.random.key(1000 + seed))
    if contender.bits is not None:
        log |= bits_of(contender, models, judges, key_bits)
    for way, draw in contender.draws.items():
        x, each = sampler(way, draw, models, key)
        row = {"model": way, "contender": name, "seed": seed, "rate": rate}
        took = {"processor seconds per 100": each}
        record.add("rows", row | log | took | judges.grade(x, labels_of()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=60.0, help="processor seconds of a run")
    parser.add_argument("--only", nargs="*", choices=contenders.ALL, default=list(contenders.ALL))
    parser.add_argument("--file", type=Path, default=RESULTS)
    args = parser.parse_args()
    setup("cpu", quiet=True)
    judges, sampler, record = Judges(), Sampler(), Record(args.file, args.budget)
    racing = {name: contenders.ALL[name]() for name in args.only}
    record.content["about"] |= {
        name: {"likelihood": c.likelihood, "can be told": c.told} for name, c in racing.items()
    }
    for seed in range(args.seeds):
        if not record.rows("rows", model="a Gaussian per class", seed=seed):
            for way, row in baselines(judges, seed):
                record.add("rows", {"model": way, "seed": seed} | row)
        for name, contender in racing.items():
            # A run that was cut off between two ways of drawing is done again, as a whole.
            if len(record.rows("rows", contender=name, seed=seed)) == len(contender.draws):
                continue
            record.content["rows"] = [
                r for r in record.content["rows"]
                if (r.get("contender"), r["seed"]) != (name, seed)
            ]  # fmt: skip
            race(name, contender, seed, record, judges, sampler, args.budget)
    record.content["complete"] = set(args.only) == set(contenders.ALL) and args.seeds >= 3
    record.write()
    print(machine.line(record.content["machine"]))


if __name__ == "__main__":
    main()
