"""What chapter 23 shows of the released network of clips: three schedules, and long clips.

    PYTHONPATH=benchmarks python benchmarks/clips.py

Draws with three keys along every schedule, all frames at once with as many evaluations as one after
the other, and frame by frame. Then goes on from true frames, four at a time, with three levels of
noise on the context, and asks which shape and colour are left.

Writes benchmarks/results/clips.json. Takes a quarter of an hour on one core.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import machine
import numpy as np

from diffusion_course import rollouts, weights
from diffusion_course.data import clips
from diffusion_course.training import clipped, recipes

RECORD = Path(__file__).resolve().parent / "results" / "clips.json"
RECIPE = recipes.RECIPES["clips"]
SEEDS, FRAMES, COUNT = (1, 2, 3), 8, RECIPE.samples
CONTEXT, NEW, TURNS = 4, 4, 8  # 32 new frames, half of each window
CONTEXT_TIMES = (0.0, 0.05, 0.2)
AT = (0, 7, 15, 31)  # frames at which the drift is stated


def schedules(model, key) -> dict:
    rows = {"frame by frame": clipped.frame_by_frame(RECIPE, model, key, COUNT, FRAMES)}
    for kind in rollouts.KINDS:
        rows[kind] = clipped.drawer(RECIPE, kind)(model, key, COUNT, FRAMES)
    # As many evaluations as "autoregressive" has: its advantage could be their number.
    often = replace(RECIPE, sampling_steps=FRAMES * RECIPE.sampling_steps)
    rows["full, more steps"] = clipped.drawer(often, "full")(model, key, COUNT, FRAMES)
    return {name: clipped.describe(x) for name, x in rows.items()}


def long_clips(model, key, truth) -> dict:
    """Drift and motion of the roll-outs; the windows are of eight frames each."""
    roll, context = clipped.roller(RECIPE, TURNS, NEW), truth.x[:, :CONTEXT]
    rows = {}
    for time in CONTEXT_TIMES:
        made = np.asarray(roll(model, jnp.asarray(context), key, time))
        windows = [clipped.describe(made[:, i : i + 8]) for i in range(0, TURNS * NEW, 8)]
        rows[f"context time {time:g}"] = clipped.drift(made, truth, AT) | {
            name: [window[name] for window in windows] for name in windows[0]
        }
    return rows


def main():
    found = weights.load("clips")
    truth = clips.load("test", n=COUNT, frames=CONTEXT)
    rows = {"data": clipped.describe(clips.load("test", n=COUNT, frames=FRAMES).x)}
    for seed in SEEDS:
        key = jax.random.key(seed)
        rows[f"seed {seed}"] = schedules(found.model, key) | long_clips(found.model, key, truth)
        print(seed, json.dumps(rows[f"seed {seed}"], indent=1), flush=True)
    record = {
        "machine": machine.describe(),
        "sha256": found.card.sha256,
        "clips": COUNT,
        "at": AT,
        "rows": rows,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
