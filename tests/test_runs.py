"""What a run takes: the tests that versions could break, a quarter of the notebooks."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from versions import depends_on_versions

TESTS = Path(__file__).resolve().parent
COURSE = TESTS.parent


def quarter(*arguments):
    command = [sys.executable, str(COURSE / ".ci" / "quarter.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=TESTS)


def test_what_uses_flax_optax_orbax_or_widgets_depends_on_versions():
    for name in ("models", "layers", "training", "checkpoints", "weights", "widgets", "mesh"):
        assert depends_on_versions(TESTS / f"test_{name}.py"), name


def test_arithmetic_on_jax_numpy_and_files_does_not():
    for name in ("process", "parameterization", "grading_wire", "notebooks_style"):
        assert not depends_on_versions(TESTS / f"test_{name}.py"), name


@pytest.mark.parametrize(
    "line",
    [
        "import optax",
        "from flax import nnx",
        "from jax.sharding import Mesh",
        "import jax\njax.make_mesh",
        "from diffusion_course.training import loop",
    ],
)
def test_a_line_that_makes_a_file_depend_on_versions(tmp_path, line):
    file = tmp_path / "test_x.py"
    file.write_text("import jax.numpy as jnp\nimport jax\njax.jit, jnp.ones, jax.disable_jit\n")
    assert not depends_on_versions(file)
    file.write_text(line)
    assert depends_on_versions(file)


def test_the_quarters_are_all_notebooks_each_once():
    every = quarter("all").stdout.split()
    parts = [quarter(str(n)).stdout.split() for n in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(every) and len(every) == len(
        set(every)
    )
    assert all((COURSE / name).exists() for name in every) and min(map(len, parts)) > 0


def test_the_quarters_take_about_as_long():
    spec = importlib.util.spec_from_file_location("quarter", COURSE / ".ci" / "quarter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seconds = [sum(part.values()) for part in module.quarters()]
    # By number, every fourth chapter, the longest took 1.7 times as long as the shortest.
    assert max(seconds) < 1.2 * min(seconds)


def test_another_quarter_is_a_mistake_told_in_one_line():
    found = quarter("4")
    assert found.returncode == 1
    assert found.stderr == "QUARTER must be 0, 1, 2, 3, commit or all, got '4'\n"
