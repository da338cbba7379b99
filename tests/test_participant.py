"""A participant can begin with what is in a pack, without a network, and keeps jax."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import jax
import pytest

from diffusion_course.app import pack

TESTS = Path(__file__).resolve().parent
COURSE = TESTS.parent


def environment(folder):
    """An environment with all that is installed here except the course; returns its Python."""
    venv.create(folder / "env", symlinks=os.name != "nt")
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    others = folder / "others"
    others.mkdir()
    for place in {Path(p) for p in sys.path if p.endswith("-packages")}:
        for entry in place.iterdir():
            mine = re.match(r"_*(editable_*)?diffusion[_-]course", entry.name)
            if not mine and not (others / entry.name).exists():
                (others / entry.name).symlink_to(entry)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{others}\n")
    return python


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_participant_can_begin_without_a_network_and_keeps_jax(tmp_path):
    archive = tmp_path / "workshop.zip"
    archive.write_bytes(pack.pack(COURSE, ["03"]))
    python = environment(tmp_path)
    room = tmp_path / "a room"
    room.mkdir()
    # bubblewrap leaves nothing of the network but the loopback; elsewhere proxies lead nowhere.
    alone = ["bwrap", "--dev-bind", "/", "/", "--unshare-net"]
    if (
        not shutil.which("bwrap")
        or subprocess.run([*alone, "true"], capture_output=True).returncode
    ):
        alone = []
    dead = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= dead | {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*alone, str(python), str(TESTS / "participant.py"), str(archive)],
        cwd=room, env=clean, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["jax before"] == jax.__version__
    without = report["seen"].pop("without the wheel")
    assert without["errors"][0].startswith("SystemExit: The course is not here: drag diffusion_")
    assert list(report["seen"]) == ["content/colab.ipynb", "workshop/exercises/03_ddpm.ipynb"]
    for seen in report["seen"].values():
        assert seen["errors"] == []
        assert seen["jax"] == jax.__version__
        assert Path(seen["course"]).is_relative_to(tmp_path / "env")
    # The first one installs; the other finds the course in the environment.
    first = [seen["printed"][0] for seen in report["seen"].values()]
    assert ["installing the course\n" in text for text in first] == [True, False]


def test_the_participants_script_uses_nothing_of_the_course():
    tree = ast.parse((TESTS / "participant.py").read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    assert "diffusion_course" not in names
