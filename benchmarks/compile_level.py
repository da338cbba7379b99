"""What LLVM's level of optimisation costs to compile, and buys: 2 against XLA's default, 3.

    python benchmarks/compile_level.py [--rounds 5] [--json PATH]

A process of each level for every network of `shapes.py`, without a compile cache; they take turns,
and the best of the rounds counts. Besides: normal random numbers of a shape of their own, which
every notebook draws more than once.
"""

import argparse
import json
import os
import subprocess
import sys

import machine
import report
from shapes import SHAPES
from worker import Worker

LEVELS = {"2": "--xla_backend_optimization_level=2", "3": "--xla_backend_optimization_level=3"}
NORMAL = """
import time, jax
key = jax.random.key(0)
jax.random.normal(key, (3,))  # what a first draw compiles besides
draw = jax.jit(lambda key: jax.random.normal(key, (64, 28, 28, 1))).lower(key)
begin = time.process_time()
draw.compile()
print(time.process_time() - begin)
"""


def normal(level: str) -> float:
    """Processor seconds to compile a draw of normal numbers, in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": LEVELS[level]}
    done = subprocess.run(
        [sys.executable, "-c", NORMAL], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def compiled(shape: str, level: str) -> float:
    """Seconds to compile the training step of a network, in a process of its own."""
    with Worker("ours.py", shape, XLA_FLAGS=LEVELS[level]) as worker:
        return worker("first_steps", repeat=1)["seconds"]


def network(shape: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds to compile the training step; milliseconds of a step and of DDIM-50: the best."""
    found = {level: {"compile_s": float("inf")} for level in LEVELS}
    for turn in range(2 * rounds):  # 2 3 3 2: who comes first reads its libraries from the disk
        level = "2332"[turn % 4]
        found[level]["compile_s"] = min(found[level]["compile_s"], compiled(shape, level))
    with (
        Worker("ours.py", shape, XLA_FLAGS=LEVELS["2"]) as two,
        Worker("ours.py", shape, XLA_FLAGS=LEVELS["3"]) as three,
    ):
        sides = {"2": two, "3": three}
        for name, repeat in (("train", 5), ("ddim", 1)):
            for worker in sides.values():
                worker(name, repeat=1)  # compiles
            times = {level: [] for level in sides}
            for _ in range(rounds):
                for level, worker in sides.items():
                    times[level].append(1e3 * worker(name, repeat=repeat))
            for level in sides:
                found[level][f"{name}_ms"] = min(times[level])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--json", default=report.RESULTS / "compile_level.json")
    options = parser.parse_args()
    found = {"machine": machine.describe(), "rounds": options.rounds}
    found["normal_compile_s"] = {
        level: min(normal(level) for _ in range(options.rounds)) for level in LEVELS
    }
    found["networks"] = {shape: network(shape, options.rounds) for shape in options.only}
    report.write(options.json, found)
    print(json.dumps({k: v for k, v in found.items() if k != "machine"}, indent=1))


if __name__ == "__main__":
    main()
