"""Seconds of training until the digits are good enough: this library against PyTorch, on the CPU.

    python benchmarks/time_to_quality.py [--lengths 200 250 300 350 400 500] [--seeds 2]

Good enough: of 500 samples (DDIM, 50 steps, w = 1) a classifier trained on real digits recognises
93 %. Each length is a complete run with its own warm-up and decay, in a fresh process whose clock
starts with it: imports, data, compilation and training count, sampling and judging do not. Runs
take turns: ours with an empty compile cache, PyTorch, ours again with the cache that the first
one left. A side stops at the first length at which every seed passes.
"""

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import machine
import report
from worker import Worker, compile_cache

SIDES = {"ours, cold": "quality_ours.py", "PyTorch": "quality_peer.py"}
SIDES["ours, warm"] = "quality_ours.py"
SAMPLES, DDIM_STEPS, ENOUGH = 500, 50, 0.93


def measure(side: str, cache: str, judge: Worker, settings: dict) -> dict:
    """One run of one side: seconds of its parts, and how many samples are recognised."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(SIDES[side], **compile_cache(cache)) as worker,
    ):
        run, total = worker("train", **settings), worker.age
        begin = time.perf_counter()
        samples = str(Path(folder) / "samples.npz")
        worker("sample", path=samples, count=SAMPLES, steps=DDIM_STEPS)
        accuracy = judge("accuracy", path=samples)
    training = run["seconds_after_first_step"]
    return {
        "side": side,
        "steps": settings["steps"],
        "seed": settings["seed"],
        "accuracy": accuracy,
        "seconds": total,
        "start_up": total - training,
        "training": training,
        "evaluation_not_counted": time.perf_counter() - begin,
        "last_loss": run["last_loss"],
    }


def passing(runs: list[dict], side: str) -> list[dict]:
    """The runs of the shortest length at which every seed is good enough; none if there is none."""
    for steps in sorted({run["steps"] for run in runs}):
        found = [run for run in runs if run["side"] == side and run["steps"] == steps]
        if found and all(run["accuracy"] >= ENOUGH for run in found):
            return found
    return []


def settings_of(side: str, options) -> dict:
    if side == "PyTorch":
        return {"learning_rate": options.peer_learning_rate, "model": options.peer_model}
    return {"learning_rate": options.learning_rate, "model": options.model}


def run_all(options, save) -> list[dict]:
    """Every run; `save` is called with those so far."""
    runs = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        judge = stack.enter_context(Worker("quality_judge.py", **compile_cache(f"{folder}/judge")))
        for steps in sorted(options.lengths):
            # Decided for a whole length: no side is judged by fewer seeds than another.
            sides = [side for side in SIDES if options.all or not passing(runs, side)]
            for seed in range(options.seeds):
                for side in sides:
                    settings = {"steps": steps, "seed": seed} | settings_of(side, options)
                    runs.append(measure(side, f"{folder}/{steps}-{seed}", judge, settings))
                    print(report.quality_line(runs[-1]), flush=True)
                    save(runs)
    return runs


def parser() -> argparse.ArgumentParser:
    p = report.options(
        __doc__.split("\n")[0], "time_to_quality.json", "1 seed of 40 and 120 steps: a trial"
    )
    p.add_argument("--lengths", type=int, nargs="+", default=[200, 250, 300, 350, 400, 500])
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--learning-rate", type=float, default=6e-3)
    p.add_argument("--peer-learning-rate", type=float, default=6e-3)
    p.add_argument("--model", type=json.loads, help="ours, as weights.build takes it, in JSON")
    p.add_argument("--peer-model", type=json.loads, help="the same for the twin; UNet (32, 64)")
    p.add_argument("--all", action="store_true", help="run every length on every side")
    return p


def main() -> None:
    options = parser().parse_args()
    if options.show:
        result = json.loads(options.json.read_text())
    else:
        machine.need_peers()
        if options.quick:
            options.lengths, options.seeds = [40, 120], 1
        names = "lengths", "seeds", "learning_rate", "peer_learning_rate", "model", "peer_model"
        settings = {name: getattr(options, name) for name in names}
        result = {"machine": machine.describe(), "enough": ENOUGH, "settings": settings}

        def save(runs):
            passed = {side: passing(runs, side) for side in SIDES}
            report.write(options.json, result | {"passed": passed, "runs": runs})

        others = machine.Others()
        run_all(options, save)
        result = json.loads(options.json.read_text()) | {"cores_of_others": others.cores()}
        report.write(options.json, result)
    print(report.quality(result, options.markdown))


if __name__ == "__main__":
    main()
