"""Batch grading against submissions that mean harm: all in one folder, graded in one run."""

import contextlib
import hashlib
import inspect
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import nbformat
import pytest

from diffusion_course.grading import answers, assign, batch, results, sandbox, submissions
from diffusion_course.grading.journal import Journal
from diffusion_course.grading.row import Row

COURSE = Path(__file__).resolve().parent.parent
SECRET = "the secret seed of this test"
SECONDS = 8

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and "CI" not in os.environ, reason="bubblewrap is not installed"
)

SETUP = "import jax.numpy as jnp\nimport numpy as np\nfrom diffusion_course.grading import check"
GOOD = "def tweedie(x, score, alpha, sigma):\n    return (x + sigma**2 * score) / alpha"
RIGHT = """
def gaussian_posterior_mean(x, mean, std, alpha, sigma):
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return mean + gain * (x - alpha * mean)
"""
WRONG = "def gaussian_posterior_mean(x, *others):\n    return jnp.zeros_like(x)\n"

# What harm is done -> (source of the answer, status, share of the points, part of the message).
# FUNCTION is the name that the answer must have, EXERCISE its number, RIGHT
# and WRONG a right and a wrong answer.
ATTACKS = {
    "endless loop": ("while True: pass", "timeout", 0, f"longer than {SECONDS} s"),
    "endless loop that swallows interrupts": (
        "while True:\n try:\n  while True: pass\n except BaseException: pass",
        "timeout", 0, f"longer than {SECONDS} s",
    ),
    "exit": ("import sys; sys.exit(0)", "error", 0, "SystemExit"),
    "exit without saying": ("import os; os._exit(0)", "stopped", 0, "ended the process"),
    "exit in the call": (
        "def FUNCTION(*a): raise SystemExit", "error", 0, "ends the program",
    ),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", "stopped", 0, "signal 11"),
    "200 children": (
        "import os, time\nfor n in range(200):\n if os.fork() == 0: time.sleep(3600)\nRIGHT",
        "stopped", 0, "too much memory or processes",
    ),
    "kills its parent": ("import os; os.kill(os.getppid(), 9)", "stopped", 0, "ended the process"),
    "kills everybody": ("import os; os.kill(-1, 9)", "stopped", 0, "ended the process"),
    "10 GB": ("x = np.ones(10 * 2**30 // 8)", "error", 0, "MemoryError"),
    "huge output": ("for n in range(100): print('x' * 10**6)\nRIGHT", "right", 1, ""),
    "huge result": (
        "def FUNCTION(x, *a): return np.zeros(30_000_000)", "error", 0, "too large",
    ),
    "warnings": (
        "import sys, warnings\nwarnings.warn('!' * 1000)\nsys.stderr.write('x' * 10**6)\nRIGHT",
        "right", 1, "",
    ),
    "patched comparison": (
        "yes = lambda *a, **k: True\n"
        "np.allclose = np.isclose = jnp.allclose = jnp.isclose = np.testing.assert_allclose = yes\n"
        "check = yes\n"
        "__builtins__ = {'all': yes}\nWRONG",
        "wrong", 0, "",
    ),
    "patched language": (
        "import builtins as b\nb.isinstance = b.all = b.len = lambda *a: 1\nWRONG",
        None, 0, "",
    ),
    "patched grader": (
        "from diffusion_course.grading import calling, checking, judging, wire\n"
        "judging.judge = checking.verdict_of = lambda *a: 2\n"
        "wire.pack_outcome = lambda outcome: {'status': 'right', 'message': ''}\nWRONG",
        "stopped", 0, "interfered",
    ),
    "printed scores": (
        "print('EXERCISE: 2 of 2 points')\nprint('{\"points\": 2, \"status\": \"right\"}')\nWRONG",
        "wrong", 0, "",
    ),
    "forged answers": (
        "import glob, json, os\n"
        "line = json.dumps({'job': 'EXERCISE', 'outcome': 'right', 'points': 2}) + '\\n'\n"
        "line += json.dumps({'job': '02.9', 'outcome': [[{'arrays': []}]]}) + '\\n' + '[' * 9999\n"
        "for n in range(3, 64):\n"
        " try: os.write(n, line.encode())\n"
        " except OSError: pass\n"
        "for path in glob.glob('/proc/[0-9]*/fd/*'):\n"
        " try:\n"
        "  if not path.startswith('/proc/self'): open(path, 'w').write(line)\n"
        " except OSError: pass\nWRONG",
        None, 0, "",
    ),
    "transformed cells": (
        "%load_ext autoreload\n!rm -rf /\n"
        "ip = get_ipython()\n"
        "ip.input_transformers_post.append(lambda lines: ['check = print\\n'])\n"
        "ip.input_transformer_manager.cleanup_transforms.insert(0, lambda lines: [])\nWRONG",
        "wrong", 0, "",
    ),
    "recursion": ("def f(): f()\nf()", "error", 0, "RecursionError"),
    "forged array": (
        "class Fake(np.ndarray): pass\n"
        "def FUNCTION(x, *a):\n return np.array([object()] * 5)",
        "error", 0, "must be an array",
    ),
    "threads": (
        "import threading, time\nthreading.stack_size(65536)\n"
        "for n in range(600): threading.Thread(target=time.sleep, args=(60,)).start()\nRIGHT",
        None, 0, "",
    ),
    "children that live on": (
        "import os, signal\nfor n in range(4):\n if os.fork() == 0:\n"
        "  os.setsid()\n  signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\n"
        "  if os.fork(): os._exit(0)\n  while True: pass\nRIGHT",
        "right", 1, "",
    ),
    "overwrites its parent's pipes": (
        "import os\ndef FUNCTION(*a):\n folder = f'/proc/{os.getppid()}/fd'\n"
        " for n in os.listdir(folder):\n"
        "  if 'pipe' in os.readlink(f'{folder}/{n}'):\n"
        "   pipe = os.open(f'{folder}/{n}', os.O_WRONLY)\n"
        "   while True: os.write(pipe, b'x' * 60000)\n",
        "error", 0, "PermissionError",
    ),
    "array that lies about itself": (
        "class Fake(np.ndarray):\n nbytes, shape = 0, (10**9,)\n def tobytes(self): return b''\n"
        "def FUNCTION(x, *a): return np.zeros(19).view(Fake)",
        "wrong", 0, "expected shape",
    ),
    "exception that ends the program when shown": (
        "class E(Exception):\n def __str__(self): raise KeyboardInterrupt\nraise E",
        "stopped", 0, "ended the process",
    ),
    "deeply nested expression": ("RIGHT\nx = a" + ".b" * 100_000, "error", 0, "RecursionError"),
    "half a character as the reason of its end": (
        "import os\nline = b'{\"died\": \"\\\\ud800 \\\\u001b[31m\"}\\n'\n"
        "for n in range(3, 64):\n"
        " try: os.write(n, line)\n"
        " except OSError: pass\n"
        "os._exit(0)",
        "stopped", 0, "ended the process",
    ),
    "message of control characters": (
        "raise ValueError('\\x00\\x1b]0;title\\x07\\u202e\\u2028\\udfff=1')", "error", 0, "=1",
    ),
    "line without an end": (
        "import os\nfor n in range(3, 64):\n"
        " try:\n  for k in range(300): os.write(n, b'[' * 65536)\n"
        " except OSError: pass\n",
        "stopped", 0, "returned too much",
    ),
    "halts its parent": (
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(3600)",
        "stopped", 0, "ended the process",
    ),
    "takes its descriptors' places": (
        "import os\nfor n in range(3, 256):\n"
        " try: os.dup2(1, n)\n"
        " except OSError: pass\nRIGHT",
        "stopped", 0, "ended the process",
    ),
    "a folder a thousand deep, and files that cannot be deleted": (
        "import os\nhere = os.getcwd()\nfor n in range(1200):\n os.mkdir('d'); os.chdir('d')\n"
        "open('/tmp/readonly', 'w'); os.chmod('/tmp', 0o500); os.chdir(here)\nRIGHT",
        "right", 1, "",
    ),
}  # fmt: skip
# These take all the time they are given, or end or talk over the whole sandbox.
LOOPS = ["endless loop", "endless loop that swallows interrupts"]
BREAKERS = ["200 children", "kills its parent", "forged answers", "threads"]
BREAKERS += ["overwrites its parent's pipes"]
HALTS = ["halts its parent"]
# The second of them runs after the first, in the same notebook.
PLANTS = {
    "plants modules": (
        "import os, sys\nfor folder in {os.getcwd(), '/tmp', os.environ['HOME'], *sys.path}:\n"
        " try: open(f'{folder}/planted.py', 'w').write('found = True')\n"
        " except OSError: pass\n"
        "import atexit; atexit.register(print)\nRIGHT"
    ),
    "imports them": (
        "import glob, os, sys\n"
        "left = glob.glob('/tmp/*/planted.py') + glob.glob('/tmp/planted.py') + os.listdir('.')\n"
        "try: import planted; left.append('imported')\n"
        "except ImportError: pass\n"
        "assert os.environ['HOME'] == os.environ['TMPDIR'] == os.getcwd()\n"
        f"path = [p for p in sys.path if os.access(p, os.W_OK) and p != {str(COURSE)!r}]\n"
        "path.remove(os.getcwd())\n"
        "def FUNCTION(*a): raise RuntimeError(f'left: {left}; path: {path}')"
    ),
}
CALLS = (
    "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "def errno(*a): return ctypes.get_errno() if libc.syscall(*a) < 0 else 0\n"
    "number = {'x86_64': (250, 101, 272, 425), 'aarch64': (219, 117, 97, 425)}\n"
    "keyctl, ptrace, unshare, io_uring = number[__import__('platform').machine()]\n"
    "said = [errno(keyctl, 0, -3, 0), errno(ptrace, 0, 0, 0, 0), errno(unshare, 0x10000000)]\n"
    "said += [errno(io_uring, 1, 0), errno({250: 41, 219: 198}[keyctl], 40, 1, 0)]\n"
    "raise RuntimeError(f'said: {said}')"
)
# What root could write, and memory that no limit counts.
UNWRITABLE = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
]
UNWRITABLE += ["/new", "/dev/new", "/root/new", "/usr/new"]
if not COURSE.is_relative_to("/tmp"):  # there it is the sandbox's own /tmp, which may be written
    UNWRITABLE.append(f"{COURSE}/new")


# What the right functions take from SciPy, which starts threads of its own.
SOFTMAX = """
def softmax(logits, axis):
    r = np.exp(logits - logits.max(axis, keepdims=True))
    return r / r.sum(axis, keepdims=True)
"""


def right_answer(exercise):
    """The right function itself, which needs no compiler."""
    return inspect.getsource(answers.find(exercise).oracle)


def in_one_notebook(texts):
    """Up to five attacks, each on an exercise of its own, between two right answers.

    They share a start of the sandbox, as the exercises of any submission do.
    Returns: the notebook, and exercise by attack.
    """
    where = dict(zip(texts, (f"02.{n}" for n in range(2, 7)), strict=False))
    sources = {"02.1": right_answer("02.1")}
    for name, exercise in where.items():
        function = answers.find(exercise).function
        text = texts[name].replace("EXERCISE", exercise)
        text = text.replace("RIGHT", f"\n{right_answer(exercise)}\n")
        text = text.replace("WRONG", f"\ndef {function}(*others):\n    return 0.0\n")
        sources[exercise] = text.replace("FUNCTION", function)
    sources["02.7"] = right_answer("02.7")
    made = nbformat.v4.new_notebook()
    made.cells.append(nbformat.v4.new_code_cell(SETUP + SOFTMAX, metadata={"tags": ["setup"]}))
    for exercise, text in sources.items():
        named = {"nbgrader": {"grade_id": assign.grade_id("answer", exercise)}}
        made.cells.append(nbformat.v4.new_code_cell(text, metadata=named))
    return made, where


def in_fives(names):
    return [names[n : n + 5] for n in range(0, len(names), 5)]


def notebook(answer, setup=SETUP, good=GOOD):
    """A submission to chapter 02 with two answers: the one under attack first."""
    made = nbformat.v4.new_notebook()
    for source, metadata in (
        (setup, {"tags": ["setup"]}),
        (answer, {"nbgrader": {"grade_id": assign.grade_id("answer", "02.2")}}),
        (good, {"nbgrader": {"grade_id": assign.grade_id("answer", "02.1")}}),
    ):
        if source:
            made.cells.append(nbformat.v4.new_code_cell(source, metadata=metadata))
    return made


def read_them(paths):
    """Code that reports which of these files can be seen from inside."""
    return (
        "import os, pathlib\nseen = []\n"
        f"for path in {[str(p) for p in paths]!r}:\n"
        " try: seen.append((path, len(os.listdir(path)) or None)) if os.path.isdir(path) else "
        "seen.append((path, open(path).read(9)))\n"
        " except OSError: pass\n"
        "seen = [s for s in seen if s[1]]\n"
        "raise RuntimeError(f'seen: {seen}; nothing else')\n"
    )


def open_them(paths):
    """Code that reports which of these files can be opened for writing; it writes nothing."""
    return (
        "import os\nopened = []\n"
        f"for path in {paths!r}:\n"
        " try: os.close(os.open(path, os.O_WRONLY | ('new' in path and os.O_CREAT)))\n"
        " except OSError: continue\n"
        " opened.append(path)\n"
        "raise RuntimeError(f'opened: {opened}; nothing else')\n"
    )


def delete_them(paths):
    return (
        "import os, shutil\n"
        f"for path in {[str(p) for p in paths]!r}:\n"
        " shutil.rmtree(path, ignore_errors=True)\n"
        " try: os.remove(path)\n"
        " except OSError: pass\n"
        " try: open(path, 'w').write('harm')\n"
        " except OSError: pass\nRIGHT"
    )


def fingerprint(*folders):
    """Every file below the folders, with a hash of its content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def grade(folder, journal, settings, progress=lambda done, total: None):
    """As the command does it: with its notes in a file, which is left there."""
    with Journal(journal) as notes:
        return batch.grade(folder, notes, settings, progress)


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """All attacks, graded once: their rows, each with those of its neighbours; what happened."""
    base = tmp_path_factory.mktemp("hostile")
    folder, alone, journal = base / "submissions", base / "alone", base / "grades.unfinished"
    folder.mkdir()
    alone.mkdir()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    port = listener.getsockname()[1]
    secrets = [Path(answers.__file__).parent, COURSE / "solutions", COURSE / "tests", folder, base]
    secrets += [journal, Path(answers.__file__), COURSE / "README.md", Path.home() / ".bashrc"]
    texts = {name: attack[0] for name, attack in ATTACKS.items()}
    texts["reads what it must not"] = read_them(secrets)
    texts["deletes"] = delete_them(
        [folder, base, journal, COURSE / "solutions", COURSE / "LICENSE"]
    )
    texts["writes where it must not"] = open_them(UNWRITABLE)
    texts |= PLANTS | {"makes forbidden calls": CALLS}
    texts["calls home"] = (
        f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2).send(b'x')"
    )
    # Who is stopped while others run beside it is graded once more: those in one notebook, and
    # whoever costs many starts or much time in a run of its own.
    apart = [*BREAKERS, *LOOPS, *HALTS, *PLANTS]
    others = [name for name in texts if name not in apart]
    others.sort(key=lambda name: name in ATTACKS and ATTACKS[name][1] in ("stopped", None))
    place = {}  # attack -> (student, exercise)
    for group in [*in_fives(others), [*PLANTS], BREAKERS, [*LOOPS, *HALTS]]:
        student = f"student {len(place)}"
        made, where = in_one_notebook({name: texts[name] for name in group})
        below = folder if group[0] in (*others, *PLANTS) else alone
        nbformat.write(made, below / f"{student}.ipynb")
        place |= {name: (student, exercise) for name, exercise in where.items()}
    (folder / "not json.ipynb").write_text("{'cells': oh no")
    (folder / "notes.txt").write_text("not a notebook")
    shifted = notebook(RIGHT.replace("x - alpha", "shifted(x) - alpha"), good="")
    shifted.cells.insert(0, nbformat.v4.new_code_cell("def shifted(x):\n    return x"))
    nbformat.write(shifted, folder / "missing cell.ipynb")
    twice = notebook(RIGHT)
    twice.cells += [nbformat.v4.new_code_cell(c.source, metadata=c.metadata) for c in twice.cells]
    nbformat.write(twice, folder / "every cell twice.ipynb")

    before = fingerprint(folder, COURSE / "solutions", COURSE / "diffusion_course")
    limits = sandbox.Limits(processes=48, notebook=100_000)
    found = grade(folder, journal, batch.Settings(SECRET, limits=limits, jobs=2)).rows
    limits = sandbox.Limits(seconds=SECONDS, processes=48, notebook=100_000)
    settings = batch.Settings(SECRET, limits=limits, jobs=1)
    found += grade(alone, base / "alone.unfinished", settings).rows
    try:
        connection = listener.accept()
    except TimeoutError:
        connection = None
    listener.close()
    after = fingerprint(folder, COURSE / "solutions", COURSE / "diffusion_course")
    rows = {(row.student, row.exercise): row for row in found}
    attacked = {name: rows[where] for name, where in place.items()}
    happened = {"before": before, "after": after, "connection": connection}
    return rows, happened | {"attacked": attacked, "rows": found}


@needs_bubblewrap
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gets_its_row_and_costs_one_exercise_only(graded, name):
    rows, happened = graded
    _, status, share, says = ATTACKS[name]
    row = happened["attacked"][name]
    assert row.points == share * row.out_of and says in row.message, row
    assert status is None or row.status == status, row
    for neighbour in ("02.1", "02.7"):  # before it and behind it
        assert rows[row.student, neighbour].status == "right", rows[row.student, neighbour]


@needs_bubblewrap
def test_nothing_secret_can_be_read(graded):
    row = graded[1]["attacked"]["reads what it must not"]
    assert row.message.startswith("your code raised RuntimeError: seen: []; nothing else"), row


@needs_bubblewrap
def test_nothing_can_be_written_but_temporary_files(graded):
    row = graded[1]["attacked"]["writes where it must not"]
    assert row.message.startswith("your code raised RuntimeError: opened: []; nothing else"), row


@needs_bubblewrap
def test_nothing_was_deleted_or_changed(graded):
    happened = graded[1]
    assert (
        happened["attacked"]["deletes"].status == "right"
    )  # it harmed nothing, so its answer counts
    assert happened["before"] == happened["after"]


@needs_bubblewrap
def test_no_connection_reached_the_outside(graded):
    happened = graded[1]
    assert happened["connection"] is None
    assert "ConnectionRefusedError" in happened["attacked"]["calls home"].message


@needs_bubblewrap
def test_no_exercise_finds_what_another_has_left(graded):
    happened = graded[1]["attacked"]
    assert happened["plants modules"].status == "right"
    assert "left: []; path: []" in happened["imports them"].message, happened["imports them"]


@needs_bubblewrap
def test_keys_other_programs_and_further_sandboxes_are_out_of_reach(graded):
    message = graded[1]["attacked"]["makes forbidden calls"].message
    # keyctl, ptrace, io_uring and a socket to a virtual machine's host are not permitted; there is
    # no room for another user namespace.
    assert "said: [1, 1, 28, 1, 1]" in message or "said: [1, 1, 1, 1, 1]" in message, message


@needs_bubblewrap
def test_every_file_of_results_can_be_written_and_read(graded, tmp_path):
    found = graded[1]["rows"]
    assert all(text.isprintable() for row in found for text in (row.message, row.student, row.file))
    out, *_ = results.write(tmp_path / "grades.csv", found, SECRET)
    assert len(results.read_csv(out)) == len(found)
    with Journal(tmp_path / "grades.unfinished") as notes:
        notes.begin({"seed": SECRET})
        notes.note("all", found)
    with Journal(tmp_path / "grades.unfinished") as notes:
        assert notes.rows("all") == found and not notes.unread


@needs_bubblewrap
def test_no_process_is_left(graded):
    if not Path("/proc").is_dir():
        pytest.skip("no /proc")
    # Those of another grading that runs beside this one have a living parent of their own.
    left = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"diffusion_course.grading.student" in _read(path)
        and _parent(path.parent) in (b"1", str(os.getpid()).encode())
    ]
    assert not left


def _parent(process):
    fields = _read(process / "stat").rpartition(b")")[2].split()
    return fields[1] if fields else b""


def _read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


@needs_bubblewrap
def test_files_that_are_no_submissions_have_a_row(graded):
    rows = {row.file: row for row in graded[1]["rows"]}
    assert rows["not json.ipynb"].status == "unreadable"
    assert "JSON" in rows["not json.ipynb"].message
    assert rows["notes.txt"].status == "unreadable"


@needs_bubblewrap
def test_missing_and_repeated_cells_and_those_that_an_answer_uses(graded):
    rows, _ = graded
    assert rows["missing cell", "02.1"].status == rows["missing cell", "02.3"].status == "missing"
    assert rows["missing cell", "02.2"].status == "right"  # with a function of another cell
    assert rows["every cell twice", "02.1"].status == "right"
    assert rows["every cell twice", "02.2"].status == "right"


# ------------------------------------------------------------------------------- the whole run


def small_folder(folder, count=3):
    folder.mkdir()
    for n in range(count):
        nbformat.write(notebook(RIGHT if n % 2 else WRONG), folder / f"s{n}.ipynb")


@needs_bubblewrap
def test_the_same_seed_gives_the_same_files(tmp_path):
    small_folder(tmp_path / "subs", 1)
    for name in ("a", "b"):
        settings = batch.Settings(SECRET)
        found = grade(tmp_path / "subs", tmp_path / f"{name}.unfinished", settings)
        (tmp_path / name).mkdir()
        results.write(tmp_path / name / "grades.csv", found.rows, SECRET)
    assert fingerprint(tmp_path / "a") != {}
    a, b = (list(fingerprint(tmp_path / name).values()) for name in ("a", "b"))
    assert a == b


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    small_folder(tmp_path / "subs")
    journal, settings = tmp_path / "grades.unfinished", batch.Settings(SECRET, jobs=1)

    def grade_one(s, settings):  # rows that depend on all that a run depends on
        text = f"{s.sha256} {settings.seed}"
        return [Row(s.student, e, 1, 2, "wrong", text, s.path) for e in ("02.1", "02.2")]

    monkeypatch.setattr(batch, "grade_one", grade_one)

    class Interrupted(Exception):
        pass

    def stop(done, total):
        if done == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        grade(tmp_path / "subs", journal, settings, stop)
    with journal.open("a") as file:
        file.write('{"key": "cut o')  # as a crash leaves it
    with Journal(journal) as notes:
        assert notes.seed == SECRET and notes.unread == 1
    seen = []
    again = grade(tmp_path / "subs", journal, settings, lambda n, total: seen.append(n))
    assert seen == [1, 2, 3] and again.submissions == 2
    fresh = grade(tmp_path / "subs", tmp_path / "fresh.unfinished", settings)
    assert again.rows == fresh.rows and len(again.rows) == 6
    other = grade(tmp_path / "subs", journal, batch.Settings("another seed"))
    assert other.submissions == 3 and other.rows != again.rows


def test_without_a_sandbox_the_command_refuses_and_says_how(tmp_path, monkeypatch, capsys):
    from diffusion_course.app import cli

    small_folder(tmp_path / "subs", 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["grade", str(tmp_path / "subs"), "--out", str(tmp_path / "grades.csv")]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "bubblewrap is not installed" in said and "--allow-unsandboxed" in said
    assert not (tmp_path / "grades.csv").exists()

    assert cli.main([*arguments, "--allow-unsandboxed", "--seed", "7"]) == 0
    said = capsys.readouterr().err
    assert "WARNING" in said and "THE RIGHT ANSWERS CAN BE IMPORTED" in said
    rows = json.loads((tmp_path / "grades.json").read_text())
    by_exercise = {row["exercise"]: row["status"] for row in rows}
    assert by_exercise["02.1"] == "right" and by_exercise["02.2"] == "wrong"


@pytest.mark.parametrize("depth", [1, 200, 400, 600, 800, 950, 990, 10**5])
def test_no_structure_that_comes_back_is_too_deep(depth):
    seen = sandbox._Seen([sandbox.Job("02.2", "f", [], [], [[()]])], sandbox.Limits())
    for start, end in (('{"died": ', "}"), ('{"stopped": ', "}"), ("[[", "]]"), ("[", "]")):
        deep = f"{start}{'[' * depth}{']' * depth}{end}"
        seen.found.clear()
        seen.take(f'{{"job": "02.2", "outcome": {deep}}}'.encode())
        assert all(part[0].status == "stopped" for part in seen.found.get("02.2", []))


# --------------------------------------------------------- attacks that are too slow to be played


def test_a_flood_of_lines_wins_no_time(monkeypatch):
    monkeypatch.setattr(sandbox, "_GRACE_SECONDS", 0)
    job = sandbox.Job("02.2", "f", [], [], [[()]])
    ours, theirs = os.pipe()
    end = time.monotonic() + 60  # a hang; it should take a second

    def flood():
        with contextlib.suppress(BrokenPipeError):
            while time.monotonic() < end:
                os.write(theirs, b'\n{"job": "02.2", "begins": true}\n')
                time.sleep(0.05)

    thread = threading.Thread(target=flood)
    thread.start()
    seen = sandbox._Seen([job], sandbox.Limits(seconds=1))
    sandbox._collect(os.getpid(), ours, seen, 1000)
    late = time.monotonic() > end
    os.close(ours)
    thread.join()
    os.close(theirs)
    assert seen.found == {} and not late


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_memory_that_belongs_to_no_process_counts():
    before, limits = sandbox.shared(), sandbox.Limits(memory=100 << 20)
    nobody = 2**30  # no process has this number, nor children
    assert not sandbox.too_much(nobody, limits, before)
    file = os.memfd_create("hidden")
    os.posix_fallocate(file, 0, 200 << 20)
    assert sandbox.too_much(nobody, limits, before)
    os.close(file)


@pytest.mark.parametrize("status", ["timeout", "stopped"])
def test_who_was_late_beside_others_is_graded_once_more_alone(tmp_path, monkeypatch, status):
    small_folder(tmp_path / "subs")
    running, beside = set(), []

    def grade_one(submission, settings, only=None):
        running.add(submission.student)
        beside.append(len(running))
        first = len(beside) <= 3
        time.sleep(0.1)
        running.discard(submission.student)
        bad = first and submission.student == "s1"
        return [Row(submission.student, "02.2", 0, 2, status if bad else "right", "", "")]

    monkeypatch.setattr(batch, "grade_one", grade_one)
    seen = []
    found = grade(
        tmp_path / "subs", tmp_path / "j", batch.Settings(SECRET), lambda n, _: seen.append(n)
    )
    assert [row.status for row in found.rows] == ["right"] * 3
    assert len(beside) == 4 and beside[3] == 1  # nobody else was running
    assert seen == [0, 1, 2, 3]


def graded_without_running(folder, journal, monkeypatch, text):
    rows = lambda s, _: [Row(s.student, "02.2", 0, 2, "error", text, s.path)]  # noqa: E731
    monkeypatch.setattr(batch, "grade_one", rows)
    return grade(folder, journal, batch.Settings(SECRET))


def test_no_message_forges_or_breaks_the_journal(tmp_path, monkeypatch):
    small_folder(tmp_path / "subs", 1)
    (tmp_path / "subs" / "s0.ipynb").rename(tmp_path / "subs" / "a\u20281\u2028b.ipynb")
    ends = "".join(f"{end}1{end}" for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
    first = graded_without_running(tmp_path / "subs", tmp_path / "j", monkeypatch, ends)
    again = graded_without_running(tmp_path / "subs", tmp_path / "j", monkeypatch, ends)
    assert first.submissions == 1 and again.submissions == 0 and again.rows == first.rows


# ------------------------------------------------------- folders and files that never are executed


def test_a_thousand_folders_in_each_other_and_a_path_that_is_too_long(tmp_path):
    here = os.getcwd()
    for name, depth in (("a", 1200), ("b" * 200, 30)):
        os.chdir(tmp_path)
        try:
            for _ in range(depth):
                os.mkdir(name)
                os.chdir(name)
            Path("02.ipynb").write_text("{}")
        finally:
            os.chdir(here)
    try:
        _, refused = submissions.collect(tmp_path, answers.chapters())
    finally:  # pytest's own cleaning recurses, and would fail
        subprocess.run(["rm", "-rf", *map(str, tmp_path.iterdir())], check=True)
    said = {r.student[0]: r.message for r in refused}
    assert set(said) == {"a", "b"} and len(refused) == 2
    assert said["b"] == "a folder that cannot be opened: File name too long"


@pytest.mark.parametrize(
    ("count", "source", "says"),
    [
        (200_000, "x", "200000 cells"),
        (1, "x=1\n" * 400_000, "1.6 MB of code"),
        (10_000, "gaussian_posterior_mean = {}", ""),
    ],
)
def test_huge_notebooks_cost_the_grader_little(count, source, says, tmp_path):
    named = {"nbgrader": {"grade_id": assign.grade_id("answer", "02.2")}}
    cells = [
        {"cell_type": "code", "source": source.format(n), "metadata": named} for n in range(count)
    ]
    (tmp_path / "02.ipynb").write_text(json.dumps({"cells": cells}))
    begin = time.monotonic()
    found, refused = submissions.collect(tmp_path, answers.chapters())
    if says:
        assert not found and says in refused[0].message
    else:
        job = batch._job(found[0], answers.find("02.2"), [[]])
        assert len(job.cells) == count and all(cell["answer"] for cell in job.all_cells)
    assert time.monotonic() - begin < 300  # hours, if every cell is compared with every


@pytest.mark.parametrize("source", ["-" * 10**6 + "1", "a" + ".b" * 400_000, "def\n" * 200_000])
def test_whether_a_cell_answers_is_seen_without_parsing_it(source):
    name = "gaussian_posterior_mean"
    begin = time.monotonic()
    assert not submissions._defines(f"{name}\n{source}", name)
    assert submissions._defines(f"{source}\ndef {name}(x):", name)
    assert time.monotonic() - begin < 300  # parsing these takes all memory, or for ever
