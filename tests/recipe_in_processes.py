"""What test_recipe_in_processes.py runs: the command ``train`` with a small recipe, in several
processes as in one."""

import os
import sys
from dataclasses import replace

import jax

from diffusion_course import data
from diffusion_course.app import cli
from diffusion_course.training import distributed, recipes, resume

SMALL = replace(
    recipes.RECIPES["toy2d"],
    model={"class": "MLP", "num_classes": 3, "width": 16, "depth": 1},
    steps=8,
    batch_size=32,
    # Adam turns a difference in the last bits of a small gradient into one of its sign: with a
    # small rate that stays below what is compared.
    learning_rate=1e-4,
    options={"kind": "mixture", "n": 100},
    samples=20,
    sampling_steps=2,
)


class Interrupted(Exception):
    """Half of the steps are done."""


def begin(out: str) -> None:
    """Half of the run, whose state is kept."""
    run = recipes.run

    def half(*args, **options):
        run(*args, **options, stop=4)
        raise Interrupted

    recipes.run = half
    try:
        recipes.train("toy2d", out=out)
    except Interrupted:
        print("half")
    recipes.run = run
    try:
        recipes.train("toy2d", out=out)
    except resume.ResumeError as error:
        print("told:", error)


def lose_data() -> None:
    """Process 1 finds no data; the others would wait for it."""
    load = data.load

    def missing(*args, **options):
        if jax.process_index() == 1:
            raise data.DataUnavailableError("no data on this machine")
        return load(*args, **options)

    data.load = missing


def main(what: str, *arguments: str) -> None:
    recipes.RECIPES["toy2d"] = SMALL
    if what == "begins":
        distributed.connect()
        begin(*arguments)
        return
    if what == "loses its data":
        lose_data()
    if what == "differs":
        index = os.environ["DIFFUSION_COURSE_PROCESS"].split(",")[2]
        arguments = (*arguments, "--steps", str(8 + int(index)))
    raise SystemExit(cli.main(["train", "toy2d", *arguments]))


if __name__ == "__main__":
    main(*sys.argv[1:])
