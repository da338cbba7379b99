"""One line at the top of every notebook: ``course = setup()``.

It chooses sizes that suit the device, switches JAX's persistent compilation cache on, and says
what it found. The cells that follow read ``course.profile`` and are the same on every device.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusion_course import paths
from diffusion_course.notebook import memory


@dataclass(frozen=True)
class Profile:
    """Sizes that suit a kind of device.

    Attributes:
      name: ``"cpu"`` or ``"accelerator"``.
      dataset: what a chapter trains on, a name for `diffusion_course.data.load`.
      batch_size: images per training step.
      train_steps: steps of a "watch it learn" training.
      samples: images drawn where a chapter measures quality.
      dtype: that networks compute in while they train; parameters are float32 everywhere.
    """

    name: str
    dataset: str
    batch_size: int
    train_steps: int
    samples: int
    dtype: str


PROFILES = {
    profile.name: profile
    for profile in (
        # Half a minute of training on two cores; the data set is part of the package.
        Profile("cpu", "digits", 64, 1200, 500, "float32"),
        # Full size; MNIST comes from a local copy or the hub.
        Profile("accelerator", "mnist", 512, 4000, 5000, "bfloat16"),
    )
}


@dataclass(frozen=True)
class Course:
    """What `setup` found and chose. ``devices`` are JAX's."""

    profile: Profile
    devices: tuple[Any, ...]


def setup(
    profile: str | None = None,
    cache: bool = True,
    quiet: bool = False,
    wait: bool = True,
    devices: int | None = None,
    exact: bool = True,
) -> Course:
    """Prepare a notebook; may be called any number of times.

    Args:
      profile: ``"cpu"`` or ``"accelerator"``; chosen from JAX's default device when neither
        this nor the environment variable DIFFUSION_COURSE_PROFILE says otherwise.
      cache: keep compiled programs on disk, so that the next start of a notebook does not
        compile them again. DIFFUSION_COURSE_COMPILE_CACHE=0 switches it off everywhere.
      quiet: print nothing.
      wait: on a CPU, have compiled calls finish before they return, in memory that is kept
        (`diffusion_course.notebook.memory`): training is up to a quarter faster. It takes effect
        if this comes before JAX's first computation. An accelerator always returns at once.
      devices: how many devices to simulate where JAX runs on the CPU, to try out what is meant for
        several. They share its cores, so they are no faster than one. Where there is an
        accelerator, its own devices are used.
      exact: have an accelerator multiply float32 matrices as a CPU does, unless
        ``jax_default_matmul_precision`` is set already.

    Raises:
      ValueError: there is no such profile, or devices is below 1.
      RuntimeError: JAX has started already with any other number of devices.
    """
    chosen = choose_profile(profile)  # before JAX starts, so that a typing error shows at once
    import jax

    if wait:
        memory.keep_freed_memory()
    if devices is not None:
        _simulate(devices)
    folder = compile_cache_folder() if cache else None
    if folder is not None and not is_writable(folder):
        folder = None
    _use_compile_cache(folder)
    if exact:
        _multiply_exactly()
    if chosen is None:
        chosen = PROFILES["cpu" if jax.default_backend() == "cpu" else "accelerator"]
    course = Course(chosen, tuple(jax.devices()))
    if not quiet:
        print(report(course, folder))
    return course


def _multiply_exactly() -> None:
    """Has an accelerator multiply float32 matrices as a CPU does.

    By default a TPU rounds them to bfloat16, with 8 bits, and many GPUs to 11 bits: a formula of a
    chapter and the library's own result would differ in the third digit. Products of bfloat16 are
    as fast as before.
    """
    import jax

    if jax.default_backend() != "cpu" and jax.config.jax_default_matmul_precision is None:
        jax.config.update("jax_default_matmul_precision", "highest")


def _simulate(devices: int) -> None:
    """Has JAX make this many devices of the CPU. Raises: RuntimeError if it has made others."""
    import jax

    from diffusion_course import checks

    checks.integer("devices", devices, minimum=1)
    # Set twice, JAX refuses to start.
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # it has started; perhaps with as many
            jax.config.update("jax_num_cpu_devices", devices)
    if jax.default_backend() == "cpu" and len(jax.devices()) != devices:
        raise RuntimeError(
            f"devices must be chosen before JAX starts, got {devices} after it has started with "
            f"{len(jax.devices())}: restart the kernel, and call setup(devices={devices}) first"
        )


def choose_profile(name: str | None = None) -> Profile | None:
    """The profile that the argument or the environment names; None leaves it to the device."""
    name = name or os.environ.get("DIFFUSION_COURSE_PROFILE")
    if not name:
        return None
    if name not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]


def compile_cache_folder() -> Path | None:
    """Where compiled programs are kept, or None where the environment switches that off."""
    if os.environ.get("DIFFUSION_COURSE_COMPILE_CACHE", "1").lower() in ("0", "off", "no", "false"):
        return None
    return paths.cache_dir() / "jax"


def is_writable(folder: Path) -> bool:
    """Can files be made in a folder? Makes the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _use_compile_cache(folder: Path | None) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    wanted = None if folder is None else str(folder)
    if jax.config.jax_compilation_cache_dir != wanted:
        jax.config.update("jax_compilation_cache_dir", wanted)
        compilation_cache.reset_cache()  # JAX opens the folder once and then keeps it
    if wanted:
        # All programs, also the small ones: a notebook has hundreds (benchmarks/compile_cache.py).
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def report(course: Course, cache_folder: Path | None) -> str:
    """What `setup` prints. It holds no absolute path: notebooks are committed with it."""
    profile, devices = course.profile, course.devices
    kind = devices[0].device_kind if devices[0].platform != "cpu" else "CPU"
    rows = {
        "device": kind if len(devices) == 1 else f"{len(devices)} × {kind}",
        "profile": f"{profile.name}: {profile.dataset}, batches of {profile.batch_size}, "
        f"{profile.train_steps} training steps, {profile.samples} samples, {profile.dtype}",
        "versions": f"jax {version('jax')}, flax {version('flax')}",
        "data": data_source(profile.dataset),
        "compile cache": "off" if cache_folder is None else f"on{_home_relative(cache_folder)}",
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def data_source(name: str) -> str:
    """Where `diffusion_course.data.load` would take a data set from, and what helps if nowhere."""
    from diffusion_course import data

    found = data.source_of(name)
    if found != "unavailable":
        return f"{name}, {found}"
    return (
        f"{name}, not found. Name a folder with a copy in DIFFUSION_COURSE_DATA, "
        'or use the bundled digits: setup(profile="cpu")'
    )


def _home_relative(folder: Path) -> str:
    """``" (~/...)"`` for a folder in the user's home, else nothing."""
    try:
        return f" (~/{folder.resolve().relative_to(Path.home().resolve()).as_posix()})"
    except (ValueError, RuntimeError):  # elsewhere, or a user without a home
        return ""
