"""A recipe is run by two processes as by one: the same weights, one card, one kept state."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recipe_in_processes import SMALL

from diffusion_course import weights
from diffusion_course.app import cli
from diffusion_course.training import distributed, recipes
from diffusion_course.weights import card

FILE = Path(__file__).with_name("recipe_in_processes.py")


def parameters(folder):
    return card.flat_params(weights.load("toy2d", folder=folder).model)


def commands(*folders):
    """What processes print, each with a folder, told of each other on their command lines."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, FILE, "runs", "--address", address, "--processes", "2"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen(
            [*command, "--index", str(i), "--out", out], env=env, stdout=subprocess.PIPE, text=True
        )
        for i, out in enumerate(folders)
    ]
    printed = [child.communicate(timeout=240)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    return printed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Weights of one process alone; of two; and of two that stop half way and one that goes on."""
    alone, two, mixed = (tmp_path_factory.mktemp(name) for name in ("alone", "two", "mixed"))
    told = distributed.launch(FILE, "begins", str(mixed), processes=2)
    done = commands(two, two / "of 1")  # the second one has no such folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "toy2d", SMALL)
        recipes.train("toy2d", out=alone)
        recipes.train("toy2d", out=mixed, resume=True)
    return {"alone": alone, "two": two, "mixed": mixed}, told, done


@pytest.mark.parametrize("name", ["two", "mixed"])
def test_two_processes_make_the_weights_of_one(folders, name):
    expected, found = parameters(folders[0]["alone"]), parameters(folders[0][name])
    start = card.flat_params(weights.build(SMALL.model, SMALL.seed))
    for key, array in expected.items():
        # Sums in another order; what eight steps change is a hundred times as much.
        np.testing.assert_allclose(found[key], array, rtol=0, atol=2e-6)
    assert max(np.abs(start[key] - array).max() for key, array in expected.items()) > 2e-4


def test_one_process_writes_and_nothing_else_is_left(folders):
    places, _, done = folders
    for folder in places.values():
        assert {path.name for path in folder.iterdir()} == {"toy2d.safetensors", "toy2d.json"}
    first, second = done
    assert f"wrote {places['two'] / 'toy2d.safetensors'}\n" in first and "wrote" not in second
    about = [weights.load("toy2d", folder=places[name]).card for name in ("two", "alone")]
    assert about[0].recipe["device"].endswith("× 2")
    for key, value in about[1].metrics.items():
        if isinstance(value, float):
            assert about[0].metrics[key] == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_every_process_is_told_of_a_kept_state(folders):
    _, told, _ = folders
    for text in told:
        assert text.startswith("half\n") and "holds the state of an interrupted run" in text


def test_a_mistake_in_one_process_ends_all_with_its_line(tmp_path):
    begin = time.monotonic()
    with pytest.raises(
        distributed.ProcessFailed,
        match=r"(?s)process 1 of 2 ended with exit code 2 .*: no data on this machine",
    ):
        distributed.launch(FILE, "loses its data", "--out", str(tmp_path), heartbeat=200)
    assert time.monotonic() - begin < 200  # it does not wait until the silence is noticed


def test_processes_with_different_runs_do_not_begin(tmp_path):
    with pytest.raises(
        distributed.ProcessFailed,
        match=r"(?s)process 1 of 2 .*all processes need the same run; this one differs in steps",
    ):
        distributed.launch(FILE, "differs", "--out", str(tmp_path), heartbeat=30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--processes", "2"], "address, processes and index belong together"),
        (["--address", "h:1", "--processes", "2", "--index", "2"], "index must be"),
        (["--index", "x"], "'x'"),
        (["--address", "h", "--processes", "2", "--index", "0"], "HOST:PORT, got 'h'"),
        (["--address", "h:x", "--processes", "2", "--index", "0"], "HOST:PORT, got 'h:x'"),
    ],
)
def test_places_that_cannot_be_are_one_line(capsys, given, says):
    try:
        code = cli.main(["train", "toy2d", *given])
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.count("\n") == 1
