"""The doctor's checks of a room: what is a problem, what only a note, and what is to change."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from diffusion_course.app import cli, doctor, workshop

COURSE = Path(__file__).resolve().parent.parent


@pytest.fixture
def colab(monkeypatch):
    monkeypatch.setattr(workshop, "on_colab", lambda: True)


def test_colab_is_known_by_its_package_also_where_there_is_no_google(monkeypatch):
    def no_google(name):
        raise ModuleNotFoundError("No module named 'google'")

    for find_spec, there in ((no_google, False), (lambda name: None, False), (str, True)):
        monkeypatch.setattr(workshop.importlib.util, "find_spec", find_spec)
        assert workshop.on_colab() is there


def test_the_table_of_colabs_versions_is_the_one_that_the_tests_run_with():
    rows = (COURSE / ".ci" / "colab-constraints.txt").read_text().splitlines()
    pins = dict(row.split("==") for row in rows if "==" in row)
    assert {name: pins[name] for name in workshop.COLAB} == workshop.COLAB


# The accelerator


class Device(SimpleNamespace):
    def memory_stats(self):
        return self.stats


def on(monkeypatch, platform, kind, gib=None):
    stats = None if gib is None else {"bytes_limit": gib * 2**30}
    device = Device(platform=platform, device_kind=kind, stats=stats)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    return workshop.accelerator()


def test_a_cpu_is_fine_but_colab_has_something_better(monkeypatch):
    monkeypatch.setattr(workshop, "on_colab", lambda: False)
    check = on(monkeypatch, "cpu", "cpu")
    assert (check.status, check.remedy) == ("ok", "") and "none" in check.found
    monkeypatch.setattr(workshop, "on_colab", lambda: True)
    check = on(monkeypatch, "cpu", "cpu")
    assert check.status == "note" and "Change runtime type" in check.remedy


@pytest.mark.parametrize(
    ("gib", "status", "said"),
    [(15.75, "ok", "TPU v5 lite, 15.8 GiB"), (2, "ok", "2.0 GiB"), (1.5, "note", "1.5 GiB"),
     (None, "ok", "memory unknown")],
)  # fmt: skip
def test_an_accelerator_is_named_with_its_memory(gib, status, said, monkeypatch):
    check = on(monkeypatch, "tpu", "TPU v5 lite", gib)
    assert check.status == status and said in check.found
    assert ("DIFFUSION_COURSE_PROFILE=cpu" in check.remedy) == (status == "note")


def test_a_jax_that_does_not_start_is_a_problem(monkeypatch):
    def broken():
        raise RuntimeError("no backend\nmore")

    monkeypatch.setattr(jax, "devices", broken)
    assert workshop.accelerator().status == "PROBLEM"


# Versions


def pretend(monkeypatch, **changed):
    def version(name):
        found = (workshop.COLAB | changed)[name]
        if found is None:
            raise workshop.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(workshop.metadata, "version", version)


def test_the_same_versions_and_others(monkeypatch, colab):
    pretend(monkeypatch)
    assert workshop.versions() == doctor.Check("as on Colab", "ok", "the same versions")
    pretend(monkeypatch, jax="9.9", optax=None)
    check = workshop.versions()
    assert check.status == "note" and "restart" in check.remedy
    assert "jax 9.9 (there 0.7.2), optax none (there 0.2.6)" in check.found
    assert "flax" not in check.found
    monkeypatch.setattr(workshop, "on_colab", lambda: False)
    assert workshop.versions().status == "ok"  # at home other versions are usual


# Speed


def timed(monkeypatch, seconds):
    """A check of something whose calls take these seconds, the last of them for ever."""
    rest = iter(seconds)
    last = seconds[-1]
    monkeypatch.setattr(workshop, "_seconds", lambda call: next(rest, last))
    monkeypatch.setattr(workshop, "MEASURED", {"thing": 0.020})
    return workshop.speed("thing", lambda: None)


def test_the_best_call_counts_and_not_the_one_that_compiles(monkeypatch):
    check = timed(monkeypatch, [9.0, 5.0, 0.030, 5.0])
    assert check == doctor.Check(
        "thing", "ok", "30 ms (20 ms on two CPU cores, 2026-11-26); the first one 9 s"
    )
    # A first call that is fast by chance is not the machine's speed.
    assert timed(monkeypatch, [0.001, 0.5]).status == "note"


@pytest.mark.parametrize(("seconds", "status"), [(0.0599, "ok"), (0.0601, "note"), (2.0, "note")])
def test_three_times_slower_is_a_note_and_never_a_problem(seconds, status, monkeypatch):
    check = timed(monkeypatch, [1.0, seconds])
    assert check.status == status
    if status == "note":
        assert f"{seconds / 0.02:.0f} times slower" in check.found
        assert "close other programs" in check.remedy


def test_what_cannot_be_timed_is_a_problem_in_one_line(capsys):
    def broken():
        raise OSError("weights are gone\nmore")

    check = workshop.speed("sampler", broken)
    assert (check.status, check.found) == ("PROBLEM", "failed: OSError: weights are gone")
    assert check.remedy == doctor.REINSTALL


def test_the_training_step_trains_and_the_sampler_draws(monkeypatch):
    once = workshop.training_step()
    losses = [float(once()) for _ in range(40)]
    # Adam's warm-up is 5 % of the recipe: 40 steps are its beginning, and the loss of v begins
    # near 1, the variance of its target.
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    images = np.asarray(workshop.sampler()())
    assert images.shape == (workshop.BATCH, 8, 8, 1) and images.std() > 0.3
    assert set(workshop.MEASURED) == {"training step", "sampler"}


# Sliders and data


def test_sliders_need_jupyterlabs_extension(monkeypatch, tmp_path):
    monkeypatch.setattr(workshop, "on_colab", lambda: False)
    monkeypatch.setattr(workshop, "_jupyter_folders", lambda: [str(tmp_path)])
    check = workshop.sliders()
    assert check.status == "note" and "jupyterlab_widgets" in check.remedy
    place = tmp_path / "labextensions" / "@jupyter-widgets" / "jupyterlab-manager"
    place.mkdir(parents=True)
    (place / "package.json").write_text("{}")
    assert workshop.sliders().status == "ok"
    monkeypatch.setattr(workshop, "_jupyter_folders", list)
    assert workshop.sliders().status == "note"
    monkeypatch.setattr(workshop, "on_colab", lambda: True)
    assert workshop.sliders().status == "ok"


def test_sliders_are_found_where_the_course_is_installed():
    pytest.importorskip("jupyterlab")
    assert workshop.sliders().status == "ok"


@pytest.mark.parametrize(
    ("backend", "source", "status", "said"),
    [("cpu", "bundled", "ok", "digits, bundled"), ("tpu", "hub", "ok", "mnist, hub"),
     ("tpu", "unavailable", "note", "mnist is not here")],
)  # fmt: skip
def test_the_data_are_those_of_the_devices_profile(backend, source, status, said, monkeypatch):
    from diffusion_course import data

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(data, "source_of", lambda name: source)
    check = workshop.data()
    assert (check.status, check.found) == (status, said)
    assert ("DIFFUSION_COURSE_DATA" in check.remedy) == (status == "note")


def test_a_profile_that_does_not_exist_is_a_problem(monkeypatch):
    monkeypatch.setenv("DIFFUSION_COURSE_PROFILE", "gpu")
    check = workshop.data()
    assert check.status == "PROBLEM" and "'gpu'" in check.found


# The command


def test_the_doctor_looks_at_the_room_only_when_asked(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Check("Python", "ok", "3")])
    room = [doctor.Check("sampler", "note", "slow", "close programs")]
    monkeypatch.setattr(workshop, "examine", lambda: room)
    assert cli.main(["doctor"]) == 0
    assert "sampler" not in capsys.readouterr().out
    assert cli.main(["doctor", "--workshop"]) == 0  # a note is no failure
    out = capsys.readouterr().out
    assert "note     sampler  slow\n" in out and "→ close programs" in out
    room.append(doctor.Check("accelerator", "PROBLEM", "none", "mend it"))
    assert cli.main(["doctor", "--workshop"]) == 1
    assert "see accelerator above" in capsys.readouterr().out


def test_all_checks_are_made(monkeypatch):
    monkeypatch.setattr(workshop, "speed", lambda name, prepare: doctor.Check(name, "ok", ""))
    names = [check.name for check in workshop.examine()]
    assert names == ["accelerator", "as on Colab", "training step", "sampler", "sliders",
                     "chapters' data"]  # fmt: skip
