from pathlib import Path

import pytest

from diffusion_course import paths


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in ("DIFFUSION_COURSE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_course_s_own_variable_wins_on_every_system(monkeypatch, tmp_path, platform):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path / "mine"))
    assert paths.cache_dir() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("platform", "variable"),
    [("linux", "XDG_CACHE_HOME"), ("darwin", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA")],
)
def test_each_system_s_variable_is_followed(monkeypatch, tmp_path, platform, variable):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert paths.cache_dir() == tmp_path / "diffusion-course"


def test_without_variables_the_cache_is_under_the_home_folder(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert paths.cache_dir() == Path.home() / ".cache" / "diffusion-course"
    monkeypatch.setattr("sys.platform", "win32")
    assert paths.cache_dir() == Path.home() / "AppData" / "Local" / "diffusion-course"


@pytest.mark.parametrize("useless", ["", "relative/folder"])
def test_an_xdg_folder_that_is_not_absolute_is_ignored(monkeypatch, useless):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", useless)
    assert paths.cache_dir() == Path.home() / ".cache" / "diffusion-course"


def test_asking_for_the_folder_does_not_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_COURSE_CACHE", str(tmp_path / "not yet"))
    assert not paths.cache_dir().exists()
