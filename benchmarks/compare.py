"""This library against PyTorch, on the CPU, interleaved in one run.

    python benchmarks/compare.py [--rounds 6] [--only unet8 dit8] [--quick] [--json PATH]

For each network three processes take turns: this library; its twin in PyTorch (`twins.py`: the
same layers and weights, checked before anything is measured), which ratios refer to; and the
nearest model of diffusers, which has other parameters and is shown apart. A round is a turn of
each, about a second long; the best and the median of the rounds are reported.
"""

import argparse
import json
import tempfile
from pathlib import Path

import machine
import report
from shapes import DDIM_STEPS, SHAPES
from worker import Worker, compile_cache

SIDES = ("ours", "twin", "diffusers")
MEASURES = ("train", "forward", "ddim")
TOLERANCE = 1e-3  # float32 through some thirty layers, summed in another order: about 1e-5
CHECKED_STEPS = 3


def start(side: str, shape: str, cache: str) -> Worker:
    """A new worker process of one side; `cache` is the folder of JAX's compiled programs."""
    if side == "ours":
        return Worker("ours.py", shape, **compile_cache(cache))
    return Worker("peer.py", shape, side)


def measure(shape: str, rounds: int, starts: int, seconds: float) -> dict:
    """Everything about one shape; `seconds` is how long a side's turn in a round should take."""
    others = machine.Others()
    with (
        tempfile.TemporaryDirectory() as cache,
        start("ours", shape, cache) as ours,
        start("twin", shape, cache) as twin,
        start("diffusers", shape, cache) as diffusers,
    ):
        sides = dict(zip(SIDES, (ours, twin, diffusers), strict=True))
        found = {"agreement": check(ours, twin, str(Path(cache) / "weights.npz"))}
        found |= first_steps(sides)
        found["seconds"] = {"train": turns(sides, "train", rounds, seconds)}
        found["peak_mib"] = {side: worker("peak_mib") for side, worker in sides.items()}
        for name in MEASURES[1:]:
            found["seconds"][name] = turns(sides, name, rounds, seconds)
        found["products"] = {side: [] for side in SIDES[:2]}
        for _ in range(rounds):
            for side, rates in found["products"].items():
                rates.append(sides[side]("products", repeat=10))
        # The counting last: it takes another way through attention.
        found["size"] = {side: sides[side]("size") for side in SIDES[1:]}
        found["torch_threads"] = twin("threads")
    found["first_samples"] = first_samples(shape, starts)
    found["cores_of_others"] = others.cores()
    return found


def check(ours: Worker, twin: Worker, path: str) -> float:
    """Gives the twin our weights. Raises: SystemExit if it then computes something else."""
    ours("export", path=path)
    difference = twin("agreement", path=path)
    if not difference < TOLERANCE:
        raise SystemExit(f"{twin.name}: outputs differ by {difference:.1e} of the largest")
    return difference


def first_steps(sides: dict[str, Worker]) -> dict:
    """Seconds to compile; a few steps whose losses show that ours and the twin train alike."""
    found = {side: worker("first_steps", repeat=CHECKED_STEPS) for side, worker in sides.items()}
    pairs = zip(found["ours"]["losses"], found["twin"]["losses"], strict=True)
    difference = max(abs(a / b - 1) for a, b in pairs)
    if not difference < TOLERANCE:
        raise SystemExit(f"{sides['twin'].name}: losses differ by a factor 1 ± {difference:.1e}")
    return {"compile_seconds": found["ours"]["seconds"], "loss_agreement": difference}


def turns(sides: dict[str, Worker], name: str, rounds: int, seconds: float) -> dict[str, list]:
    """Seconds per call of every round: A B C A B C …"""
    repeats = {}
    for side, worker in sides.items():
        worker(name, repeat=1)  # compiles
        repeats[side] = max(1, min(500, round(seconds / worker(name, repeat=2))))
    found = {side: [] for side in sides}
    for _ in range(rounds):
        for side, worker in sides.items():
            found[side].append(worker(name, repeat=repeats[side]))
    return found


def first_samples(shape: str, starts: int) -> dict[str, list[float]]:
    """Seconds from the start of a process to its first batch of samples."""
    found = {"ours, cold": [], "ours, warm": [], "twin": [], "diffusers": []}
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as cache:
            for name, seconds in found.items():
                with start(name.split(",")[0], shape, cache) as worker:
                    worker("ddim", repeat=1)
                    seconds.append(worker.age)
    return found


def parser() -> argparse.ArgumentParser:
    p = report.options(
        __doc__.split("\n")[0], "compare.json", "2 rounds of 0.2 s, 1 start: a trial"
    )
    p.add_argument("--rounds", type=int, default=6)
    p.add_argument("--starts", type=int, default=3, help="fresh processes for the first sample")
    p.add_argument("--seconds", type=float, default=1.0, help="length of a side's turn in a round")
    p.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="SHAPE")
    return p


def main() -> None:
    options = parser().parse_args()
    if options.show:
        print(report.compare(json.loads(options.json.read_text()), options.markdown))
        return
    machine.need_peers()
    if options.quick:
        options.rounds, options.starts, options.seconds = 2, 1, 0.2
    result = {
        "machine": machine.describe(),
        "settings": {
            "rounds": options.rounds,
            "starts": options.starts,
            "seconds_per_turn": options.seconds,
            "ddim_steps": DDIM_STEPS,
        },
        "shapes": {},
    }
    for shape in options.only:
        print(f"{shape} …", flush=True)
        result["shapes"][shape] = measure(shape, options.rounds, options.starts, options.seconds)
        report.write(options.json, result)
    print(report.compare(result, options.markdown))


if __name__ == "__main__":
    main()
