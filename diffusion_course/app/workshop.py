"""Is this machine ready for a workshop? The checks behind ``diffusion-course doctor --workshop``.

A slow machine is a note and no problem: the course runs on it, only the waiting is longer.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from diffusion_course.app.doctor import REINSTALL, Check

# What .ci/colab-constraints.txt pins: the tests run with these, and with those of constraints.txt.
COLAB = {
    "jax": "0.7.2",
    "flax": "0.11.2",
    "optax": "0.2.6",
    "orbax-checkpoint": "0.11.25",
    "numpy": "2.1.3",
    "ipywidgets": "7.7.1",
}

# Seconds, measured as below (AMD EPYC, jax 0.10.2, the best of thirty calls), and how many times
# longer a machine may take. Other programs on the same cores cost a factor of 2; from 3 on a
# chapter of 100 s takes 5 minutes, which a room notices. No accelerator has been measured: it is
# held to the same numbers, which it must not miss either.
MEASURED = {"training step": 0.022, "sampler": 0.153}
MEASURED_ON = "two CPU cores, 2026-11-26"
SLOWER = 3

BATCH = 64  # digits, of a training step and of a sampler's run
STEPS = 25  # of the sampler
CALLS = 10  # of which the best counts
LEAST_MEMORY = 2  # GiB of an accelerator; a training step of MNIST takes a tenth of it


def examine() -> list[Check]:
    """All checks of a room's machine, in the order in which they are shown."""
    checks = [accelerator(), versions()]
    checks += [speed("training step", training_step), speed("sampler", sampler)]
    return [*checks, sliders(), data()]


def on_colab() -> bool:
    """Whether this is a Colab session."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:  # not even google
        return False


def accelerator() -> Check:
    """What the networks run on, and how much memory it has."""
    try:
        import jax

        device = jax.devices()[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
    except Exception as error:  # a broken JAX; "devices" above shows it too
        return Check("accelerator", "PROBLEM", f"{type(error).__name__}", REINSTALL)
    if device.platform == "cpu":
        remedy = "Runtime, Change runtime type: choose a TPU or GPU" if on_colab() else ""
        found = "none; the chapters take the sizes for a CPU"
        return Check("accelerator", "note" if remedy else "ok", found, remedy)
    memory = (stats or {}).get("bytes_limit", 0) / 2**30
    found = f"{device.device_kind}, " + (f"{memory:.1f} GiB" if memory else "memory unknown")
    if 0 < memory < LEAST_MEMORY:
        remedy = "end other programs that use it, or set DIFFUSION_COURSE_PROFILE=cpu"
        return Check("accelerator", "note", found, remedy)
    return Check("accelerator", "ok", found)


def versions() -> Check:
    """The versions here beside those of Colab, with which the course is tested as well."""
    differ = []
    for name, there in COLAB.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "none"
        if here != there:
            differ.append(f"{name} {here} (there {there})")
    if not differ:
        return Check("as on Colab", "ok", "the same versions")
    if on_colab():
        remedy = "restart the runtime if a cell has installed others; Colab's may also be newer"
        return Check("as on Colab", "note", f"differs: {', '.join(differ)}", remedy)
    return Check("as on Colab", "ok", f"other versions, which is fine: {', '.join(differ)}")


def speed(name: str, prepare: Callable[[], Callable[[], object]]) -> Check:
    """How long something takes, beside what was measured.

    Args:
      name: a key of `MEASURED`.
      prepare: gives what is timed; its first call compiles.
    """
    try:
        call = prepare()
        compiled = _seconds(call)
        best = min(_seconds(call) for _ in range(CALLS))
    except Exception as error:
        found = f"failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return Check(name, "PROBLEM", found, REINSTALL)
    usual = MEASURED[name]
    there = f"{1000 * usual:.0f} ms on {MEASURED_ON}"
    found = f"{1000 * best:.0f} ms ({there}); the first one {compiled:.0f} s"
    if best > SLOWER * usual:
        remedy = "close other programs, or use Colab; else plan more time than README's table says"
        return Check(name, "note", f"{found}: {best / usual:.0f} times slower", remedy)
    return Check(name, "ok", found)


def _seconds(call: Callable[[], object]) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def training_step() -> Callable[[], object]:
    """One step of the recipe "digits", the model that chapters 03 to 08 train and use."""
    import jax

    from diffusion_course import data, setup, weights
    from diffusion_course.training import objectives, recipes, update

    setup(quiet=True)  # the compile cache
    recipe = recipes.RECIPES["digits"]
    model = weights.build(recipe.model, recipe.seed)
    optimizer = update.adam(recipe.learning_rate, recipe.steps)
    step = update.make_step(model, objectives.diffusion_objective(recipe), optimizer, recipe.ema)
    digits = data.load("digits")
    batch = jax.device_put((digits.x[:BATCH], digits.labels[:BATCH]))
    state = update.create_state(model, optimizer)

    def once():
        nonlocal state
        state, loss = step(state, batch, jax.random.key(0))
        return loss

    return once


def sampler() -> Callable[[], object]:
    """Digits drawn with the released weights and DDIM."""
    import jax

    from diffusion_course import denoiser, samplers, sampling, setup, weights

    setup(quiet=True)
    model, card, p = weights.load("digits")
    labels = jax.numpy.arange(BATCH) % 10
    noise = jax.random.normal(jax.random.key(0), (BATCH, 8, 8, 1))
    D = denoiser.denoiser(model, p, card.kind, labels)
    ddim, grid, key = samplers.ddim(p), sampling.uniform(STEPS), jax.random.key(1)
    draw = jax.jit(lambda noise: sampling.sample(ddim, D, noise, grid, key)[0])
    return lambda: draw(noise)


def sliders() -> Check:
    """Does the page that shows the notebooks know the explorers' widgets?"""
    if on_colab():
        return Check("sliders", "ok", "Colab brings its own")
    name = "@jupyter-widgets/jupyterlab-manager/package.json"
    places = [Path(folder) / "labextensions" / name for folder in _jupyter_folders()]
    if not any(place.exists() for place in places):
        remedy = "pip install jupyterlab_widgets, then start JupyterLab again"
        return Check("sliders", "note", "JupyterLab would not show them", remedy)
    return Check("sliders", "ok", "JupyterLab shows them")


def _jupyter_folders() -> list[str]:
    try:
        from jupyter_core.paths import jupyter_path
    except ImportError:  # no Jupyter here: "jupyterlab" above is a problem
        return []
    return jupyter_path()


def data() -> Check:
    """The data set that the chapters train on with this device, or what they fall back to."""
    try:
        import jax

        from diffusion_course.notebook import setup

        accelerated = jax.default_backend() != "cpu"
        profile = setup.choose_profile() or setup.PROFILES["accelerator" if accelerated else "cpu"]
        found = setup.data_source(profile.dataset)
    except Exception as error:  # DIFFUSION_COURSE_PROFILE may hold anything, libraries be broken
        text = next(iter(str(error).splitlines()), "")
        return Check("chapters' data", "PROBLEM", f"{type(error).__name__}: {text}", REINSTALL)
    if "not found" in found:
        remedy = "a local copy in DIFFUSION_COURSE_DATA, or DIFFUSION_COURSE_PROFILE=cpu"
        return Check("chapters' data", "note", f"{profile.dataset} is not here", remedy)
    return Check("chapters' data", "ok", found)
