"""Two processes with two devices each train as one does, and a death ends in clear words."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from two_processes import OPTIMIZER, data, model, train

from diffusion_course.data import batches
from diffusion_course.training import distributed
from diffusion_course.training.update import create_state

FILE = Path(__file__).with_name("two_processes.py")

HANGS = """
import os, signal
from diffusion_course.training import distributed
distributed.connect()
import jax
if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
import time
time.sleep(60)
"""
RAISES = """
import os, sys, time
if os.environ["DIFFUSION_COURSE_PROCESS"].split(",")[2] == "1":
    raise ValueError("batch of process 1")
time.sleep(60)
"""

# What a process writes when a message of a step that another one left in the middle no longer fits.
CROSSED = """terminate called after throwing an instance of 'gloo::EnforceNotMet'
  what():  [enforce fail at pair.cc:457] op.preamble.length <= op.nbytes. 88 vs 8. Received data"""
ABORTS = f"""
import os, signal, sys, time
index = os.environ["DIFFUSION_COURSE_PROCESS"].split(",")[2]
if index == "1" and sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.3)
print({CROSSED!r}, index, file=sys.stderr, flush=True)
os.abort()
"""

# Gloo's lines, the second of which one thread wrote into that of another.
CONNECTED = "is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n"
OF_GLOO = f"[Gloo] Rank 1 {CONNECTED}[Gloo] Rank [Gloo] Rank 0 {CONNECTED}0 {CONNECTED}"


def script(folder, text):
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose second process is killed before step 4; then the same run again, to its end."""
    folder = tmp_path_factory.mktemp("two")
    file, states = FILE, str(folder / "states")
    begin = time.monotonic()
    with pytest.raises(distributed.ProcessFailed) as death:
        distributed.launch(file, states, "dies", processes=2, devices=2, heartbeat=5)
    seconds = time.monotonic() - begin
    printed = distributed.launch(file, states, "lives", processes=2, devices=2)
    return death.value, seconds, [json.loads(text) for text in printed]


@pytest.fixture(scope="module")
def alone():
    return train()


def test_a_killed_process_ends_the_run_with_a_clear_error(runs):
    error, seconds, _ = runs
    assert str(error).startswith("process 1 of 2 was ended by SIGKILL after")
    assert "can go on from its last saved state" in str(error)
    assert (error.process, error.code) == (1, -9)
    assert seconds < 60


def test_it_goes_on_from_the_last_state_in_every_process(runs):
    _, _, printed = runs
    assert [result["first"] for result in printed] == [3, 3]
    assert [result["devices"] for result in printed] == [4, 4]
    assert [result["steps"] for result in printed] == [[2, 4, 6]] * 2
    assert printed[0]["params"] == printed[1]["params"]
    assert printed[0]["ema"] == printed[1]["ema"]


def test_an_error_of_process_0_is_raised_in_all(runs):
    for result in runs[2]:
        assert "the state's step must exceed the newest" in result["told"]


def test_losses_and_parameters_are_those_of_one_process(runs, alone):
    # Sums in another order: the last bits of float32, over six steps.
    for result in runs[2]:
        np.testing.assert_allclose(result["loss"], alone.history.loss[2:], rtol=1e-5)
        np.testing.assert_allclose(result["params"], alone.state.params, rtol=0, atol=1e-5)
    start = np.asarray(create_state(model(), OPTIMIZER).params)
    assert np.abs(start - alone.state.params).max() > 1e-2  # there is something to compare


def test_a_process_that_no_longer_answers_is_named(tmp_path):
    file = script(tmp_path, HANGS)
    begin = time.monotonic()
    with pytest.raises(distributed.ProcessFailed, match=r"process 1 of 2 no longer answers.* 2 s"):
        distributed.launch(file, heartbeat=2, timeout=60)
    assert time.monotonic() - begin < 40


def test_a_message_that_no_longer_fits_is_no_cause_where_a_process_was_killed(tmp_path):
    # Process 0 aborts within the same moment: both have ended when the parent looks.
    with pytest.raises(distributed.ProcessFailed, match=r"process 1 of 2 was ended by SIGKILL"):
        distributed.launch(script(tmp_path, ABORTS), "killed")


def test_messages_that_do_not_fit_are_the_cause_where_nothing_else_happened(tmp_path):
    told = r"(?s)process ([01]) of 2 was ended by SIGABRT .*88 vs 8. Received data \1"
    with pytest.raises(distributed.ProcessFailed, match=told):
        distributed.launch(script(tmp_path, ABORTS), "all")


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_stays_alone_ends_in_words(tmp_path, index):
    text = f"""
from diffusion_course.training import distributed
distributed._PATIENCE = 1
distributed.connect("127.0.0.1:{distributed._free_port()}", 2, {index})
"""
    command = [sys.executable, str(script(tmp_path, text))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    told = rf"error: process {index} of 2 has waited 1 s at 127\.0\.0\.1:\d+, and not all have come"
    assert re.match(told, done.stderr.strip().splitlines()[-1])
    assert "stack" not in done.stderr


def test_an_error_is_shown_with_its_text(tmp_path):
    file = script(tmp_path, RAISES)
    with pytest.raises(
        distributed.ProcessFailed,
        match=r"(?s)process 1 of 2 ended with exit code"
        r" 1 .*ValueError: batch of process 1",
    ):
        distributed.launch(file)


def test_what_gloo_prints_is_no_output_of_a_process(tmp_path):
    file = script(tmp_path, f"print({OF_GLOO!r} + 'loss 0.5')")
    assert distributed.launch(file, processes=2) == ["loss 0.5\n"] * 2


def test_a_run_that_takes_too_long_is_stopped(tmp_path):
    file = script(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(
        distributed.ProcessFailed, match=r"process 0 of 2 has not ended after 0.2 s"
    ):
        distributed.launch(file, timeout=0.2)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"script must be a Python file, got nowhere\.py"):
        distributed.launch("nowhere.py")
    file = script(tmp_path, "")
    with pytest.raises(ValueError, match=r"processes must be .* at least 1, got 0"):
        distributed.launch(file, processes=0)
    with pytest.raises(ValueError, match="belong together, got address=h:1, processes=2"):
        distributed.connect("h:1", 2)
    with pytest.raises(ValueError, match="index must be"):
        distributed.connect("h:1", 2, 2)
    with pytest.raises(ValueError, match="a port from 1 to 65535, got 'h:99999'"):
        distributed.connect("h:99999", 2, 1)


def test_without_launch_a_script_trains_alone(monkeypatch):
    distributed.connect()
    assert distributed.own_rows(7) == slice(0, 7)
    assert distributed.from_first(lambda: 3) == 3
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert distributed.own_rows(6) == slice(3, 6)
    with pytest.raises(ValueError, match="size must be a multiple of the 2 processes, got 7"):
        distributed.own_rows(7)


def test_own_rows_of_the_batches_make_up_the_batch():
    whole, first, second = (
        next(batches(data(), 6, seed=2, start=3, rows=rows))
        for rows in (slice(None), slice(0, 3), slice(3, 6))
    )
    for full, one, two in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(full, np.concatenate([one, two]))
