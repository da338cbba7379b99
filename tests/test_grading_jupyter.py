"""The same notebooks in a real Jupyter kernel and in the batch grader: the same points.

All run one after the other in one kernel, whose names are cleared in between, and all in one
sandbox. The exercise is 01.2, whose answer needs no compiler.
"""

import json
import re
import shutil
from dataclasses import replace

import nbclient
import pytest
from nbformat.v4 import new_code_cell, new_notebook, writes

from diffusion_course.grading import answers, batch, sandbox, submissions
from diffusion_course.grading.judging import judge

EXERCISE = answers.find("01.2")
FULL = EXERCISE.points
SETUP = "import jax\nimport jax.numpy as jnp\nimport numpy as np\n"
SETUP += "from diffusion_course.grading import check"
CHECK = 'check("01.2", alpha_bar)'
STUB = "def alpha_bar(betas):\n    raise NotImplementedError('return the table')"
BODY = "return np.concatenate([[1.0], np.cumprod(1 - betas)])"
GOOD = f"def alpha_bar(betas):\n    {BODY}"
WRONG = "def alpha_bar(betas):\n    return np.cumprod(1 - betas)"
JAX = "jnp.concatenate([jnp.ones(1), jnp.cumprod(1 - jnp.asarray(betas))])"


def own(source):
    return new_code_cell(source)


def given(role, source, exercise="01-2"):
    return new_code_cell(source, metadata={"nbgrader": {"grade_id": f"{role}-{exercise}"}})


def setup(source=SETUP):
    return new_code_cell(source, metadata={"tags": ["setup"]})


def notebook(answer, above=(), below=(), after=(), setup_cell=SETUP, check=CHECK):
    """A student's: own cells above the answer's, between it and its check, and after that."""
    return [
        setup(setup_cell), *map(own, above), given("answer", answer), *map(own, below),
        given("check", check), *map(own, after),
    ]  # fmt: skip


COLAB = "from google.colab import drive\ndrive.mount('/content/drive')\n"
RIGHT = {
    "plain": notebook(GOOD),
    "%%time": notebook(f"%%time\n{GOOD}"),
    "%%time and an exception": notebook(f"%%time\n{GOOD}\nalpha_bar()"),
    "%%capture": notebook(f"%%capture\n{GOOD}\nprint(1)"),
    "%%capture with a name": notebook(f"%%capture out\n{GOOD}", below=["out.show()"]),
    "%%capture and %%time": notebook(f"%%capture\n%%time\n{GOOD}"),
    "%%prun": notebook(f"%%prun -q\n{GOOD}"),
    "%time for a constant": notebook(
        f"def alpha_bar(betas):\n    return START * {BODY[7:]}", above=["%time START = 1.0"]
    ),
    "%timeit and a question": notebook(
        f"{GOOD}\n%timeit -n1 -r1 alpha_bar(np.ones(2))\nalpha_bar?"
    ),
    "magics of other cells": notebook(GOOD, above=["%load_ext autoreload\n%autoreload 0", "%who"]),
    "%matplotlib and a plot": notebook(
        f"%matplotlib inline\nimport matplotlib.pyplot as plt\n{GOOD}\n"
        "plt.plot(alpha_bar(np.ones(3) / 9))\nplt.show()"
    ),
    "%%writefile": notebook(
        "from my_tables import table\ndef alpha_bar(betas):\n    return table(betas)",
        above=[f"%%writefile my_tables.py\nimport numpy as np\ndef table(betas):\n    {BODY}"],
    ),
    "shell lines": notebook(
        f"!pip --version > pip.txt\nfiles = !ls\nfor file in files:\n    len(file)\n{GOOD}"
    ),
    "get_ipython": notebook(
        "get_ipython().run_line_magic('matplotlib', 'inline')\n"
        "from IPython import get_ipython as shell\nshell().system('true')\n"
        f"assert shell() is not None and get_ipython() is not None\n{GOOD}"
    ),
    "display": notebook(
        f"from IPython.display import Markdown, clear_output\n{GOOD}\n"
        "display(Markdown('**done**'), alpha_bar(np.ones(2)))\nclear_output()"
    ),
    "display in the function": notebook(f"def alpha_bar(betas):\n    display(betas)\n    {BODY}"),
    "check in the answer's cell": notebook(f"{GOOD}\n\n{CHECK}"),
    "await": notebook(f"import asyncio\nawait asyncio.sleep(0)\n{GOOD}"),
    "a constant that is awaited": notebook(
        f"async def one():\n    return 1.0\nONE = await one()\nMORE = [x async for x in ones()]\n"
        f"def alpha_bar(betas):\n    return ONE * MORE[0] * {BODY[7:]}",
        above=["import asyncio\nasync def ones():\n    yield 1.0", "asyncio.get_running_loop()"],
    ),
    "an exception after the function": notebook(f"{GOOD}\nassert alpha_bar(np.ones(2)) is None"),
    "an exit after the function": notebook(f"{GOOD}\nimport sys\nsys.exit(0)"),
    "a cell with an error in between": notebook(
        GOOD, above=["1 / 0", "def broken("], below=["alpha_bar(1, 2, 3)"]
    ),
    "below the stub": notebook(STUB, below=[GOOD]),
    "below a trial that fails": notebook(STUB, below=[GOOD, "alpha_bar = nothing(alpha_bar)"]),
    "in the check's cell": notebook(STUB, check=f"{GOOD}\n{CHECK}"),
    "below the check, with another": notebook(STUB, after=[GOOD, CHECK]),
    "in one cell with another check": notebook(WRONG, after=[f"{GOOD}\n{CHECK}"]),
    "its cell was deleted": [setup(), own(GOOD), given("check", CHECK)],
    "no metadata is left": [own(SETUP), own(GOOD), own(CHECK), own("alpha_bar = None")],
    "in the cell of another exercise": [
        setup(), given("answer", f"def noise_step(x):\n    return x\n{GOOD}", "01-1"),
        given("check", CHECK),
    ],
    "split cells": notebook("# my answer", above=[GOOD]),
    "Colab's imports first": notebook(f"{COLAB}{GOOD}"),
    "Colab's imports in the setup cell": notebook(GOOD, setup_cell=f"{COLAB}{SETUP}"),
    "Colab's form": notebook(
        f'# @title The table {{ run: "auto" }}\nstart = 1.0  # @param {{type:"number"}}\n'
        f"def alpha_bar(betas):\n    return start * {BODY[7:]}"
    ),
    "a helper of another cell": notebook(
        "def alpha_bar(betas):\n    return helper(betas)",
        above=[f"def helper(betas):\n    {BODY}"],
        after=["def helper(betas):\n    return 0 * betas"],
    ),
    "imports of another cell": notebook(
        "def alpha_bar(betas):\n    return npy.append(1.0, npy.cumprod(1 - betas))",
        above=["import numpy as npy"],
    ),
    "a name that means something else": notebook(
        "def alpha_bar(betas):\n"
        "    table = np.ones(len(betas) + 1)\n    return table.at[1:].set(np.cumprod(1 - betas))",
        above=["from jax import numpy as np"],
    ),
    "filled in another cell": notebook(
        f"def alpha_bar(betas):\n    return TABLE['one'] * {BODY[7:]}",
        above=["TABLE = {}", "TABLE['one'] = 1.0"], after=["TABLE.clear()"],
    ),
    "a constant that changes below": notebook(
        f"def alpha_bar(betas):\n    return ONE * {BODY[7:]}",
        above=["ONE = 1.0"], after=["ONE = 9"],
    ),
    "overwritten below": notebook(GOOD, after=[WRONG, "alpha_bar = 3"]),
    "unicode": notebook(
        "def alpha_bar(betas):\n    β = betas  # ᾱ_n = Π(1 − β) 🎲\n"
        "    αs = np.cumprod(1 - β)\n    return np.append(1.0, αs)\nprint('ᾱ', '—', '\u2028')"
    ),
    "jit": notebook(f"@jax.jit\ndef alpha_bar(betas):\n    return {JAX}"),
    "jit of a lambda": notebook(f"alpha_bar = jax.jit(lambda betas: {JAX})"),
    "an annotated lambda": notebook(
        f"from typing import Callable\nalpha_bar: Callable = lambda betas: {BODY[7:]}"
    ),
    "partial": notebook(
        f"import functools\ndef table(first, betas):\n    return first * {BODY[7:]}\n"
        "alpha_bar = functools.partial(table, 1.0)"
    ),
    "a decorator of another cell": notebook(
        f"@loud\n{GOOD}",
        above=[
            "import functools\ndef loud(f):\n    @functools.wraps(f)\n"
            "    def inner(*a, **k):\n        print(f.__name__)\n        return f(*a, **k)\n"
            "    return inner"
        ],
    ),
    "annotations of the future": notebook(
        f"def alpha_bar(betas: Undefined) -> Another:\n    {BODY}",
        above=["from __future__ import annotations"],
    ),
    "annotations that are read": notebook(
        f"@dataclass\nclass Table:\n    first: Number\n    def of(self, betas):\n"
        f"        return self.first * {BODY[7:]}\nHINTS = typing.get_type_hints(Table)\n"
        "def alpha_bar(betas):\n    return HINTS['first'](1) * Table(1.0).of(betas)",
        above=["import typing\nfrom dataclasses import dataclass", "Number = float"],
    ),
    "an object": notebook(
        f"class Table:\n    def __call__(self, betas):\n        {BODY}\nalpha_bar = Table()"
    ),
    "keyword-only": notebook(f"def alpha_bar(*, betas):\n    {BODY}"),
    "a class as the function": notebook(
        f"class alpha_bar:\n    def __init__(self, betas):\n        self.table = {BODY[7:]}\n"
        "    def __array__(self, *a, **k):\n        return self.table"
    ),
    "64 bits": notebook(
        # In float32 nothing is left of the small part.
        "def alpha_bar(betas):\n    big = jnp.cumprod(1 - jnp.asarray(betas)) + 1e6\n"
        "    return jnp.concatenate([jnp.ones(1), big - 1e6])",
        above=["jax.config.update('jax_enable_x64', True)"],
    ),
    "an indented cell": notebook(f"    {GOOD}".replace("\n", "\n    ")),
    "prompts": notebook(">>> " + GOOD.replace("\n", "\n... ")),
    "in an if": notebook(f"if True:\n    {GOOD}".replace("\n    return", "\n        return")),
    "assigned with another": notebook(
        STUB, below=[f"def g(betas):\n    {BODY}\na, alpha_bar = 1, g"]
    ),
    "imported": notebook(
        STUB, below=[f"def g(betas):\n    {BODY}", "from __main__ import g as alpha_bar"]
    ),
}  # fmt: skip

OTHERS = {
    "the stub": (notebook(STUB), 0),
    "a slip of syntax": (notebook(STUB, below=[GOOD.replace(":", "")]), 0),
    "wrong": (notebook(WRONG), 0),
    "checked once more, and wrong": (notebook(GOOD, after=[WRONG, CHECK]), 0),
    "another exercise's function": (
        [
            setup(),
            given("answer", "def noise_step(x, beta, eps):\n    return x * (1 - beta)**.5", "01-1"),
            *notebook(
                "def alpha_bar(betas):\n    table = [1.0]\n    for beta in betas:\n"
                "        table.append(noise_step(table[-1]**.5, beta, 0.0)**2)\n"
                "    return np.array(table)"
            )[1:],
        ],
        0,
    ),
    "the course's own function": (
        notebook(
            "from diffusion_course import process\n"
            "def alpha_bar(betas):\n    p = process.from_betas(betas)\n"
            "    return p.alpha(np.arange(len(betas) + 1) / len(betas))**2"
        ),
        0,
    ),
}
NOTEBOOKS = RIGHT | {name: cells for name, (cells, _) in OTHERS.items()}

BEGIN = """
%reset -f
get_ipython().compile.reset_compiler_flags()
import sys, types, jax
from diffusion_course.grading import checking
checking._earned.clear()
jax.config.update("jax_enable_x64", False)
sys.modules.pop("my_tables", None)
for name in ("google", "google.colab", "google.colab.drive"):  # as on Colab
    sys.modules[name] = types.ModuleType(name)
sys.modules["google.colab"].drive = sys.modules["google.colab.drive"]
sys.modules["google.colab.drive"].mount = print
del sys, types, jax, checking, name
"""
END = """
import json
from diffusion_course.grading import checking
print("EARNED", json.dumps(checking._earned.get("01.2", 0)))
"""


@pytest.fixture(scope="module")
def in_jupyter(tmp_path_factory):
    """The points of each notebook in a kernel: those that `check` counts."""
    cells = []
    for notebook_cells in NOTEBOOKS.values():
        cells += [own(BEGIN), *map(copied, notebook_cells), own(END)]
    together = new_notebook(cells=cells)
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("jupyter"))}}
    client = nbclient.NotebookClient(
        together, timeout=300, allow_errors=True, kernel_name="python3", resources=place
    )
    client.execute()
    ends = [cell for cell in together.cells if cell.source == END]
    said = ["".join(out.get("text", "") for out in cell.outputs) for cell in ends]
    points = [json.loads(re.search(r"EARNED (\d+)", text)[1]) for text in said]
    return dict(zip(NOTEBOOKS, points, strict=True))


def copied(cell):
    return own(cell.source)


@pytest.fixture(scope="module")
def in_the_batch():
    """The points of each notebook from the batch grader, on inputs of a secret seed."""
    cases, jobs = EXERCISE.cases((20, 26)), []
    for name, cells in NOTEBOOKS.items():
        content = submissions.read(writes(new_notebook(cells=cells)).encode())
        submission = submissions.Submission("a student", "01", "a.ipynb", content, "")
        job = batch._job(submission, EXERCISE, cases)
        jobs.append(replace(job, job=name))
    outcomes = sandbox.run(jobs, sandbox.Limits(), walled=shutil.which("bwrap") is not None)
    return {name: judge(EXERCISE, cases, outcomes[name]) for name in NOTEBOOKS}


def test_there_are_more_than_forty():
    assert len(RIGHT) > 40 and len(NOTEBOOKS) == len(RIGHT) + len(OTHERS)


def test_a_kernel_gives_the_points_that_are_expected(in_jupyter):
    expected = {name: FULL for name in RIGHT} | {name: n for name, (_, n) in OTHERS.items()}
    assert in_jupyter == expected


def test_the_batch_gives_the_points_of_the_kernel(in_jupyter, in_the_batch):
    differ = {
        name: (in_jupyter[name], verdict.points, verdict.message)
        for name, verdict in in_the_batch.items()
        if verdict.points != in_jupyter[name]
    }
    assert differ == {}


def test_the_batch_says_why_where_it_gives_none(in_the_batch):
    said = {name: in_the_batch[name].message for name in OTHERS}
    assert said["the stub"] == "not attempted yet"
    assert said["a slip of syntax"].startswith("your code raised SyntaxError")
    assert "noise_step, the function of exercise 01.1" in said["another exercise's function"]
    assert "uses diffusion_course.process.from_betas" in said["the course's own function"]
