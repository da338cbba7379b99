"""Each exercise is graded alone: what an answer may use, and what is said if it uses more."""

import linecache

import pytest

from diffusion_course.grading import alone, answers, check, checking

OTHERS = {"kl_bits": "05.1", "best_variance": "05.2", "sample": "06.6"}
HEAD = """
import functools
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.stats import norm
"""
KL = "def kl_bits(a, b):\n    return a - b\n"


def function(*cells, name="f"):
    """The function of that name after these cells, each compiled under a name of its own."""
    space = {"__name__": "__main__"}
    for number, source in enumerate((HEAD, *cells)):
        file = f"<cell {number} of {abs(hash(cells))}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        exec(compile(source, file, "exec"), space)
    return space[name]


def refusal(*cells, library=()):
    return alone.refusal(function(*cells), OTHERS, library)


CALLS = {
    "by its name": "def f(x):\n    return kl_bits(x, 1)",
    "inside another function": "def f(x):\n    return (lambda y: kl_bits(y, 1))(x)",
    "in a comprehension": "def f(x):\n    return [kl_bits(y, 1) for y in x]",
    "through a helper": "def g(x):\n    return kl_bits(x, 1)\ndef f(x):\n    return g(x)",
    "under another name": "g = kl_bits\ndef f(x):\n    return g(x, 1)",
    "as a default": "def f(x, g=kl_bits):\n    return g(x, 1)",
    "partially": "f = functools.partial(kl_bits, b=1)",
    "compiled": "f = jax.jit(lambda x: kl_bits(x, 1))",
    "compiled by flax": "f = nnx.jit(lambda x: kl_bits(x, 1))",
    "mapped": "f = jax.vmap(functools.partial(kl_bits, b=1))",
    "decorated": "@jax.jit\ndef f(x):\n    return kl_bits(x, 1)",
    "from a list": "tools = [kl_bits]\ndef f(x):\n    return tools[0](x, 1)",
    "from a dictionary": "tools = {'kl': kl_bits}\ndef f(x):\n    return tools['kl'](x, 1)",
    "in a closure": "def make(g):\n    return lambda x: g(x, 1)\nf = make(kl_bits)",
    "in a method": "class G:\n  def __call__(self, x):\n    return kl_bits(x, 1)\nf = G()",
    "in a static method": (
        "class G:\n  @staticmethod\n  def g(x):\n    return kl_bits(x, 1)\n"
        "def f(x):\n    return G.g(x)"
    ),
    "as an attribute": (
        "class G:\n  def __init__(self):\n    self.g = kl_bits\n"
        "  def __call__(self, x):\n    return self.g(x, 1)\nf = G()"
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", CALLS.values(), ids=CALLS)
def test_the_function_of_another_exercise_is_refused_and_named(source):
    text = refusal(KL, source)
    assert text.startswith(
        "your answer calls kl_bits, the function of exercise 05.1: each exercise"
    )
    assert "write what you need of it into this cell" in text


@pytest.mark.parametrize(
    "definition",
    [
        "kl_bits = lambda a, b: a - b",
        "@jax.jit\ndef kl_bits(a, b):\n    return a - b",
        "kl_bits = jax.vmap(lambda a: a - 1)",
        "class Kl:\n  def __call__(self, a, b):\n    return a - b\nkl_bits = Kl()",
    ],
)
def test_another_exercises_function_may_be_any_callable(definition):
    assert "calls kl_bits" in refusal(definition, "def f(x):\n    return kl_bits(x, 1)")


def test_the_helper_is_named_that_uses_what_must_not_be_used():
    helper = "def g(x):\n    return kl_bits(x, 1)"
    assert refusal(KL, helper, "def f(x):\n    return g(x)").endswith("(your function g does)")


LIBRARY = {
    "a module's": ("from diffusion_course import bound", "bound.gaussian_kl(x)"),
    "by its whole name": (
        "import diffusion_course.bound", "diffusion_course.bound.gaussian_kl(x)",
    ),
    "by name": ("from diffusion_course.bound import gaussian_kl", "gaussian_kl(x)"),
    "imported inside": ("", "__import__('diffusion_course.bound')"),
}  # fmt: skip


@pytest.mark.parametrize(("imports", "call"), LIBRARY.values(), ids=LIBRARY)
def test_a_function_of_the_course_is_refused_and_named(imports, call):
    text = refusal(imports, f"def f(x):\n    return {call}")
    assert text.startswith("your answer uses diffusion_course.bound")
    assert ".gaussian_kl" in text or "__import__" in call
    assert text.endswith("may use only what the exercise's cells import (here nothing)")


@pytest.mark.parametrize(
    "source",
    [
        "from diffusion_course.editing import slerp as f",
        "from diffusion_course.editing import slerp\nf = jax.jit(slerp)",
        "from diffusion_course import editing\nf = functools.partial(editing.slerp, 1)",
        "def f(x):\n    from diffusion_course.editing import slerp\n    return slerp(x, x, 1)",
        "def f(x):\n    from diffusion_course import editing as e\n    return e.slerp(x, x, 1)",
        "def f(x):\n    import diffusion_course.editing\n    return x",
        "import importlib\ndef f(x):\n"
        "    return importlib.import_module('diffusion_course.editing').slerp(x, x, 1)",
    ],
)
def test_the_courses_own_function_is_no_answer(source):
    assert refusal(source).startswith("your answer uses diffusion_course.editing")


def test_an_object_of_the_course_is_refused_by_its_type():
    made = "from diffusion_course import process\np = process.vp_cosine()"
    text = refusal(made, "def f(x):\n    return p.alpha(x)")
    assert text.startswith("your answer uses diffusion_course.process.Process")


def test_what_the_exercises_cells_import_is_allowed_and_named():
    made = "from diffusion_course import process\np = process.vp_cosine()"
    uses = "def f(x):\n    b = process.linear_betas(3)\n    return p.alpha(x) + b"
    assert refusal(made, uses, library=("diffusion_course.process",)) == ""
    exact = "from diffusion_course.grading.inputs import GaussianDenoiser"
    library = ("diffusion_course.grading.inputs.GaussianDenoiser",)
    assert refusal(exact, "def f(x):\n    return GaussianDenoiser(1, 2)(x, 1, 1)") != ""
    uses = "def f(x):\n    return GaussianDenoiser(1, 2)(x, 1, 1)"
    assert refusal(exact, uses, library=library) == ""
    inside = f"def f(x):\n    {exact}\n    return GaussianDenoiser(1, 2)(x, 1, 1)"
    assert refusal(inside, library=library) == ""
    text = refusal(made, "def f(x):\n    return p.alpha(x)", library=library)
    assert text.endswith("import (GaussianDenoiser)")


HONEST = {
    "packages": "def f(x):\n    return jnp.exp(x) + np.ones(3) + norm.pdf(1) + jax.nn.relu(x)",
    "a package's own": "f = jnp.exp",
    "a helper of another cell": "def f(x):\n    return helper(x)",
    "a helper's constant": "def f(x):\n    return helper(x) * SCALE",
    "itself": "def f(x):\n    return x if x < 1 else f(x - 1)",
    "a local name": "def f(x):\n    kl_bits = lambda a, b: a - b\n    return kl_bits(x, 1)",
    "an argument": "def f(kl_bits):\n    return kl_bits(1, 2)",
    "a copy in its own cell": f"{KL}def f(x):\n    return kl_bits(x, 1)",
    "a number of that name": "best_variance = 1.5\ndef f(x):\n    return best_variance * x",
    "a package's under that name": (
        "from jax.random import normal as sample\ndef f(x):\n    return sample(x)"
    ),
    "a missing name": "def f(x):\n    return nowhere(x)",
    "a mention": "def f(x):\n    'As diffusion_course.bound and kl_bits do.'\n    return x",
    "a class": (
        "class G:\n  def __init__(self):\n    self.c = {1: [2]}\n"
        "  def g(self, x):\n    return helper(x)\ndef f(x):\n    return G().g(x)"
    ),
    "a strange object": (
        "class S:\n  def __getattribute__(self, name):\n    raise RuntimeError\n"
        "s = S()\ndef f(x):\n    return s"
    ),
    "much": "many = list(range(10**5))\ndef f(x):\n    return many[x]",
    "a circle": "ring = []\nring.append(ring)\ndef f(x):\n    return ring",
}


@pytest.mark.parametrize("source", HONEST.values(), ids=HONEST)
def test_an_honest_answer_is_not_refused(source):
    helper = "SCALE = 2.0\ndef helper(x):\n    return jnp.exp(x) * SCALE"
    given = [KL, helper] if not source.startswith("def kl_bits") else [helper]
    assert refusal(*given, source) == ""


def test_check_refuses_before_it_calls(capsys):
    given = function(KL, "def f(a, b, c, d):\n    return kl_bits(a, b)")
    check("05.2", given)
    text = capsys.readouterr().out
    assert "0 of 3 points" in text
    assert "your answer calls kl_bits, the function of exercise 05.1" in text


def test_the_librarys_own_functions_earn_nothing():
    import diffusion_course.betas
    import diffusion_course.bound
    import diffusion_course.editing

    for name, own in {
        "01.4": diffusion_course.betas.cosine_betas,
        "05.1": diffusion_course.bound.gaussian_kl,
        "06.4": diffusion_course.editing.slerp,
    }.items():
        found = checking.verdict_of(answers.find(name), own)
        assert found.points == 0 and "of diffusion_course an answer may use only" in found.message
