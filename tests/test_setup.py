"""setup(): the profile, the report, and the cache of compiled programs."""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import jax
import pytest

import diffusion_course
from diffusion_course import data
from diffusion_course.notebook import setup

SOURCE = Path(diffusion_course.__file__).parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own; JAX's setting as it was, afterwards."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    setup._use_compile_cache(None if before is None else Path(before))


def python(code, **environment):
    """Run code in an interpreter of its own; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_profile_follows_the_device():
    expected = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    assert setup.setup(quiet=True).profile.name == expected


@pytest.mark.parametrize(
    ("backend", "name"), [("cpu", "cpu"), ("gpu", "accelerator"), ("tpu", "accelerator")]
)
def test_every_backend_has_a_profile(backend, name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert setup.setup(quiet=True).profile.name == name


@pytest.mark.parametrize("name", ["cpu", "accelerator"])
def test_argument_and_environment_name_the_profile(name, monkeypatch):
    assert setup.setup(name, quiet=True).profile.name == name
    monkeypatch.setenv("DIFFUSION_COURSE_PROFILE", name)
    assert setup.setup(quiet=True).profile.name == name


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_PROFILE", "accelerator")
    assert setup.setup("cpu", quiet=True).profile.name == "cpu"


def test_an_unknown_profile_is_named_with_the_choices(monkeypatch):
    with pytest.raises(ValueError, match="must be one of cpu, accelerator, got 'gpu'"):
        setup.setup("gpu")
    monkeypatch.setenv("DIFFUSION_COURSE_PROFILE", "tpu")
    with pytest.raises(ValueError, match="'tpu'"):
        setup.setup()


def test_profiles_name_data_sets_and_types_that_exist():
    for profile in setup.PROFILES.values():
        assert profile.dataset in data.names()
        assert min(profile.batch_size, profile.train_steps, profile.samples) > 0
        assert profile.dtype in ("float32", "bfloat16")


def test_profile_and_course_cannot_be_changed():
    found = setup.setup(quiet=True)
    with pytest.raises(FrozenInstanceError):
        found.profile.batch_size = 1
    with pytest.raises(FrozenInstanceError):
        found.profile = None


def test_a_second_setup_says_the_same(capsys):
    first = setup.setup()
    said = capsys.readouterr().out
    assert setup.setup() == first
    assert capsys.readouterr().out == said


def test_the_report_names_what_a_reader_needs_and_no_folder_of_the_machine(capsys, own_cache):
    setup.setup("cpu")
    said = capsys.readouterr().out
    assert f"jax {jax.__version__}" in said
    assert "digits, bundled" in said
    assert f"batches of {setup.PROFILES['cpu'].batch_size}" in said
    assert str(own_cache) not in said
    assert "compile cache  on" in said


def test_a_cache_folder_at_home_is_shown_from_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    setup.setup("cpu")
    assert "on (~/cache/jax)" in capsys.readouterr().out


def test_data_that_cannot_be_had_is_reported_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFUSION_COURSE_DATA", str(tmp_path))  # an empty folder
    setup.setup("accelerator")
    assert "mnist, not found. Name a folder with a copy in DIFFUSION_COURSE_DATA" in (
        capsys.readouterr().out
    )


def test_quiet_prints_nothing(capsys):
    setup.setup(quiet=True)
    assert capsys.readouterr().out == ""


def test_the_cache_is_switched_on_and_off(own_cache, monkeypatch):
    setup.setup(quiet=True)
    assert jax.config.jax_compilation_cache_dir == str(own_cache / "jax")
    setup.setup(cache=False, quiet=True)
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv("DIFFUSION_COURSE_COMPILE_CACHE", "0")
    setup.setup(quiet=True)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_cannot_be_written_is_off_and_no_error(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path / "file"))
    setup.setup()
    assert "compile cache  off" in capsys.readouterr().out


COMPILE = """
import jax, jax.numpy as jnp
jax.jit(lambda x: x + 1)(1.0)        # something was compiled before setup
from diffusion_course import setup
setup(quiet=True)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((37, 37)))
print(sum(name.endswith("/cache_hits") for name in hits))
"""


def test_a_program_is_compiled_once_for_two_starts(own_cache):
    assert int(python(COMPILE)) == 0
    assert list((own_cache / "jax").iterdir())
    assert int(python(COMPILE)) > 0


def test_importing_the_package_does_not_import_jax():
    # jax takes a second; the command line's --help and a doctor without jax need it not.
    code = (
        "import sys, diffusion_course.app.cli; print('jax' in sys.modules, 'numpy' in sys.modules)"
    )
    assert python(code).split() == ["False", "False"]


DEVICES = """
from diffusion_course import setup
print(len(setup("cpu", quiet=True, devices=3).devices), len(setup("cpu", quiet=True).devices))
setup("cpu", quiet=True, devices=3)  # again: a cell may be run twice
try:
    setup("cpu", quiet=True, devices=2)
except RuntimeError as error:
    print(error)
"""


def test_devices_are_simulated_if_jax_has_not_started():
    first, said = python(DEVICES).splitlines()
    assert first == "3 3"
    assert said.startswith("devices must be chosen before JAX starts, got 2 after it has started")


def test_fewer_than_one_device_is_an_error():
    with pytest.raises(ValueError, match="devices must be"):
        setup.setup(quiet=True, devices=0)
