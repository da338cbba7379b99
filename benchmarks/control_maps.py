"""What a control gives for a filled mask, and for edges: the overlap with what was asked for.

    python benchmarks/control_maps.py [--draws 3] [--out FILE]

The two released controls learned by one recipe, with the same seed for as many steps; only the map
differs. Here both get the maps of the same unseen pictures and the same noise, beside three
captions: none (w = 0), the picture's own (w = 2), and one of which all four words are another's
(w = 2, and w = 1, which is no guidance). For each of these, and for no control, it records

    mask, edge   intersection over union of silhouettes, and of edges, with those of the picture
    of picture   shares of samples with each attribute of the picture that gave the map, by the
                 released judge
    of caption   the same for the attributes that the caption names

each of them for every draw of the noise. On one shared core it takes about ten minutes. Writes
results/control_maps.json.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from machine import describe

from diffusion_course import data, denoiser, guidance, samplers, sampling, weights
from diffusion_course.data import shapes
from diffusion_course.models import control
from diffusion_course.training import captioned, recipes

RESULTS = Path(__file__).parent / "results" / "control_maps.json"
CONTROLS = {"edges": "shapes_control", "silhouette": "shapes_control_mask"}
CONDITIONS = (("none", 0.0), ("own", 2.0), ("another's", 2.0), ("another's", 1.0))  # caption, w


def contradicting(wanted: np.ndarray) -> np.ndarray:
    """For each picture the next one, in a circle, that shares none of its attributes: places [N].

    Args:
      wanted: attributes of the pictures, [N, 4].
    """
    count = len(wanted)
    apart = (wanted[:, None] != wanted[None]).all(axis=-1)
    around = (np.arange(count)[:, None] + np.arange(count)) % count
    return around[np.arange(count), np.take_along_axis(apart, around, axis=1).argmax(axis=1)]


def measure(draws: int) -> dict:
    recipe = recipes.RECIPES["shapes_control"]
    some = data.load("shapes", "test", **recipe.options).subset(np.arange(recipe.samples))
    wanted, count = shapes.answers(some), len(some)
    own = shapes.LANGUAGE(some.attributes["caption"].tolist())
    other = contradicting(wanted)
    assert (wanted[other] != wanted).all()
    captions = {
        "none": np.full_like(own, shapes.LANGUAGE.padding),
        "own": own,
        "another's": own[other],
    }
    named = {"none": None, "own": wanted, "another's": wanted[other]}
    maps = {name: control.MAPS[name](some.x) for name in CONTROLS}
    base, judge = weights.load(recipe.base), weights.load(recipe.judge)
    nets = {name: weights.load(released) for name, released in CONTROLS.items()}
    for name, released in CONTROLS.items():
        about = recipes.RECIPES[released]
        assert replace(about, map="edges") == recipe and about.map == name
        assert nets[name].card.recipe["stopped"] == nets["edges"].card.recipe["stopped"]
    p, times = weights.build_process(recipe.process), sampling.uniform(recipe.sampling_steps)

    @jax.jit
    def draw(net, base, noise, captions, seen, strength, w):
        steered = net.steer(base, seen, strength)
        null = jnp.full_like(captions, base.null_label)
        told, untold = (denoiser.denoiser(steered, p, recipe.kind, c) for c in (captions, null))
        D = guidance.classifier_free(told, untold, w)
        return sampling.sample(samplers.ddim(p), D, noise, times, jax.random.key(0))[0]

    rows = []
    for caption, w in CONDITIONS:
        for name in (None, *CONTROLS):
            net = nets[name or "edges"].model
            found = {"control": name, "caption": caption, "w": w, "mask": [], "edge": []}
            found |= {"of picture": [], "of caption": []}
            for seed in range(draws):
                noise = jax.random.normal(jax.random.key(seed), some.x.shape)
                seen = maps[name or "edges"]
                x = draw(
                    net, base.model, noise, captions[caption], seen, float(name is not None), w
                )
                for key, of in (("mask", "silhouette"), ("edge", "edges")):
                    found[key].append(
                        float(control.agreement(control.MAPS[of](x), maps[of]).mean())
                    )
                said = captioned.judged(judge.model, np.asarray(x))
                found["of picture"].append(captioned.shares(said == wanted))
                if named[caption] is not None:
                    found["of caption"].append(captioned.shares(said == named[caption]))
            rows.append(found)
            print(
                json.dumps({k: v for k, v in found.items() if not k.startswith("of")}), flush=True
            )
    return {
        "machine": describe(),
        "device": jax.devices()[0].device_kind,
        "samples": count,
        "draws": draws,
        "steps": recipe.sampling_steps,
        "sha256": {n: weights.card.load_card(weights.FOLDER / f"{r}.safetensors").sha256
                   for n, r in CONTROLS.items()},
        "judge on the pictures": captioned.shares(captioned.judged(judge.model, some.x) == wanted),
        "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.write_text(json.dumps(measure(options.draws), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
