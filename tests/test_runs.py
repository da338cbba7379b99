"""What a run takes: the tests that versions could break, a quarter of the notebooks, the time."""

import importlib.util
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import turns
from test_imports import imports
from versions import depends_on_versions

TESTS = Path(__file__).resolve().parent
COURSE = TESTS.parent


def quarter(*arguments):
    command = [sys.executable, str(COURSE / ".ci" / "quarter.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=TESTS)


def loaded(name):
    """A module of `.ci`, for this test alone."""
    spec = importlib.util.spec_from_file_location(name, COURSE / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_uses_flax_optax_orbax_or_widgets_depends_on_versions():
    for name in ("models", "layers", "training", "checkpoints", "weights", "widgets", "mesh"):
        assert depends_on_versions(TESTS / f"test_{name}.py"), name


def test_the_site_and_slides_are_built_with_our_versions_only():
    # They read the whole package; but the environment with Colab's versions has no Sphinx and no
    # MathJax, which are in the extra `site`.
    of_slides = {path.name for path in TESTS.glob("test_*.py") if "app.slides" in imports(path)}
    assert "test_slides.py" in of_slides
    assert not (of_slides | {"test_site.py"}) & turns.version_files("all")


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
    stable, file = tmp_path / "test_x.py", tmp_path / "test_y.py"
    stable.write_text("import jax.numpy as jnp\nimport jax\njax.jit, jnp.ones, jax.disable_jit\n")
    assert not depends_on_versions(stable)
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
    seconds = [sum(part.values()) for part in loaded("quarter").quarters()]
    # By number, every fourth chapter, the longest took 1.7 times as long as the shortest.
    assert max(seconds) < 1.2 * min(seconds)


def test_make_test_runs_every_chapter_and_the_rest_in_turn():
    every, part = quarter("all").stdout.split(), quarter("2").stdout.split()
    found = quarter("2", "--every-chapter").stdout.split()
    assert set(found) - set(part) == {
        name for name in every if name.startswith("notebooks/") and name not in part
    }
    assert set(part) < set(found) < set(every)


def test_a_quarter_is_left_out_where_it_runs_with_other_versions():
    every, part = quarter("all").stdout.split(), quarter("2").stdout.split()
    left = quarter("2", "--every-chapter", "--without", "2").stdout.split()
    assert sorted(left) == sorted(
        name for name in every if name.startswith("notebooks/") and name not in part
    )
    assert quarter("all", "--without", "5").returncode == 1


def only_chapters(*arguments):
    return [name for name in quarter(*arguments).stdout.split() if name.startswith("notebooks/")]


def test_the_quarter_left_out_names_the_chapters_that_come_last():
    chapters = [only_chapters(str(n)) for n in range(4)]
    for out in range(4):
        following = chapters[out + 1 :] + chapters[:out]
        assert only_chapters("all", "--without", str(out)) == list(chain(*following))
    folders = [name.partition("/")[0] for name in quarter("all").stdout.split()]
    assert folders == sorted(folders, key=["solutions", "exercises", "notebooks"].index)


@pytest.fixture
def run_notebooks(tmp_path):
    """Runs two notebooks with the plugin; gives pytest's result and which of them ran."""

    def run(until):
        for name in "ab":
            cells = [nbformat.v4.new_code_cell(f"open('{name}', 'w')")]
            nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
        plugins = ["-p", "until", "-p", "no:cacheprovider"]
        options = ["--nbval-lax", "--nbval-current-env", "-n", "1", "--dist", "loadscope"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *plugins, *options, "a.ipynb", "b.ipynb"],
            env=os.environ | {"PYTHONPATH": str(COURSE / ".ci"), "UNTIL": until},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        return done, {name for name in "ab" if (tmp_path / name).exists()}

    return run


def test_a_notebook_that_has_begun_is_run_to_its_end(monkeypatch):
    module = loaded("until")
    clock = iter([9, 11, 12])
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    plugin = module.Until(10)
    cells = [
        SimpleNamespace(nodeid=f"notebooks/{name}") for name in ("a::0", "a::1", "b::0", "b::1")
    ]
    plugin.pytest_runtest_setup(cells[0])
    plugin.pytest_runtest_setup(cells[1])
    for cell in cells[2:]:
        with pytest.raises(pytest.skip.Exception, match="not run, time was up"):
            plugin.pytest_runtest_setup(cell)


@pytest.mark.parametrize("until, ran", [("1", set()), ("", {"a", "b"})])
def test_after_the_end_nothing_begins_and_without_one_everything_runs(run_notebooks, until, ran):
    done, found = run_notebooks(until)
    assert done.returncode == 0 and found == ran, done.stdout
    assert done.stdout.count("NOT RUN") == 2 - len(ran)


def test_an_end_that_is_no_time_is_a_mistake_told_in_one_line(run_notebooks):
    done, ran = run_notebooks("noon")
    assert done.returncode != 0 and not ran
    assert "UNTIL must be whole seconds since 1970, got 'noon'" in done.stdout + done.stderr


@pytest.mark.parametrize("wanted, chapters", [("1", "some"), ("all", "all")])
def test_the_browser_moves_the_explorers_whose_turn_it_is(wanted, chapters):
    command = [sys.executable, "-m", "pytest", "tests/test_browser.py", "--collect-only", "-q"]
    found = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--quarter", wanted],
        capture_output=True,
        text=True,
        cwd=COURSE,
    ).stdout
    every = {Path(name).stem for name in quarter("all").stdout.split()}
    here = {Path(name).stem for name in quarter(wanted).stdout.split()}
    assert {name for name in every if f"explorer_of_a_chapter_moves[{name}]" in found} == here
    assert "in_a_tiny_notebook" in found and (here == every) == (chapters == "all")


def test_each_file_that_depends_on_versions_has_its_turn():
    parts = [turns.version_files(str(n)) for n in range(4)]
    names = [name for part in parts for name in part]
    assert set(names) == turns.version_files("all") and len(names) == len(set(names))
    assert "test_models.py" in names and "test_process.py" not in names
    seconds = [sum(turns.seconds().get(n, turns.UNKNOWN) for n in part) for part in parts]
    assert max(seconds) < 1.2 * min(seconds)


def test_without_a_commit_all_chapters_run(tmp_path):
    for name in (
        ".ci/quarter.py",
        "notebooks/chapters.py",
        "notebooks/pages.py",
        "notebooks/chapters.toml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(COURSE / name, tmp_path / name)
    (tmp_path / "notebooks" / "03_ddpm.ipynb").write_text("")
    command = [sys.executable, str(tmp_path / ".ci" / "quarter.py"), "commit"]
    found = subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "", "GIT_DIR": str(tmp_path)}
    )
    assert found.stdout == "notebooks/03_ddpm.ipynb\n"
    assert found.stderr == "No commit here that could choose a quarter: all chapters run.\n"


def test_another_quarter_is_a_mistake_told_in_one_line():
    found = quarter("4")
    assert found.returncode == 1
    assert found.stderr == "QUARTER must be 0, 1, 2, 3, commit or all, got '4'\n"
