"""The program in the sandbox understands what a notebook does; it runs here in the tests' process.

`test_grading_jupyter.py` compares it with a real kernel.
"""

import signal
import sys

import IPython
import pytest

from diffusion_course.grading import student, wire
from diffusion_course.grading.exercise import Exercise, Failure, Part
from diffusion_course.grading.submissions import Cell, answer_cells, last_check, setup_cells


@pytest.fixture(autouse=True)
def _this_process_is_itself_again_afterwards(monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", IPython.get_ipython)
    monkeypatch.setattr(IPython.core.getipython, "get_ipython", IPython.get_ipython)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)


DOUBLE = "def double(x):\n    return 2 * x"
STUB = "def double(x):\n    raise NotImplementedError"


def answer(source, after=False):
    return {"source": source, "answer": True, "after": after}


def other(source, after=False):
    return {"source": source, "answer": False, "after": after}


def outcome(cells, every=None, seconds=1000, **terms):
    """What comes of calling the function with 3.0: a number, or the message of its failure."""
    job = {
        "cells": cells,
        "all_cells": every if every is not None else cells,
        "function": "double",
        "cases": [[[wire.pack(3.0)]]],
        "terms": {"others": {}, "library": [], "parameters": ["x"]} | terms,
        "timeout": seconds,
    }
    ((message,),) = student._run(job)
    found = wire.unpack_outcome(message)
    return found.message if isinstance(found, Failure) else float(found[0])


@pytest.mark.parametrize(
    "source",
    [
        f"{DOUBLE}\nassert double(2) == 5, 'a trial of the student that fails'",
        f"from google.colab import drive\n{DOUBLE}",
        f"drive = missing.drive\n{DOUBLE}",
        f"%timeit 1\n{DOUBLE}",
        f"%%time\n{DOUBLE}",
        f"import IPython\nIPython.get_ipython().run_line_magic('timeit', '1')\n{DOUBLE}",
        f"from IPython import get_ipython\nget_ipython().system('ls')\n{DOUBLE}",
        f"get_ipython().ast_node_interactivity = 'all'\n{DOUBLE}",
        f"get_ipython().run_cell({DOUBLE!r})",
        f"with get_ipython().capture() as out:\n    display(1)\nlen(out), out[0]\n{DOUBLE}",
        f"{DOUBLE}\nraise SystemExit",
        f"{DOUBLE}\nraise KeyboardInterrupt",
    ],
)
def test_what_a_notebook_survives_defines_the_function_here_too(source):
    assert outcome([answer(source)]) == 6


def test_imports_of_colab_do_not_void_the_setup_cell():
    setup = other("from google.colab import drive\nimport math\nfrom math import tau")
    uses = answer("def double(x):\n    return 2 * x + 0 * (math.pi + tau)")
    assert outcome([setup, uses]) == 6


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (["1 / 0"], "raised ZeroDivisionError"),
        (["import sys\nsys.exit()"], "your code ends the program (SystemExit)"),
        (["x = 1"], "your cells define no function double"),
        (["double = 3"], "your cells define no function double"),
        ([STUB], "not attempted yet"),
        ([STUB, "def double(x)\n    return 2 * x"], "raised SyntaxError"),
        ([STUB, "double = nothing"], "raised NameError"),
    ],
)
def test_an_answer_that_is_none_says_why(cells, says):
    assert says in outcome([answer(source) for source in cells])


def test_the_line_of_an_exception_is_that_of_the_cell():
    text = outcome([answer(f"%%time\n\n{DOUBLE[:-1]}y")])
    assert text.endswith("(line 4: return 2 * y)")


HELPED = "def double(x):\n    return FACTOR * x"


def test_other_cells_are_run_only_if_something_fails_without_them():
    trap = other("double = lambda x: 0")
    assert outcome([answer(DOUBLE)], [answer(DOUBLE), trap]) == 6
    assert outcome([answer(HELPED)], [other("FACTOR = 2"), answer(HELPED)]) == 6


def test_cells_below_the_check_are_run_only_if_those_above_are_not_enough():
    below = [other("FACTOR = 3", after=True), other("double = None", after=True)]
    assert outcome([answer(HELPED)], [other("FACTOR = 2"), answer(HELPED), *below]) == 6
    # Defined below, and run before: the notebook knew it. The name's new meaning is not asked for.
    assert outcome([answer(HELPED)], [answer(HELPED), *below]) == 9


def test_where_no_cells_help_the_first_failure_is_told():
    fails = answer("def double(x):\n    return [][3]")
    worse = [other("raise ValueError"), answer("def double(x):\n    return 1 / 0")]
    assert "IndexError" in outcome([fails], worse)


def test_other_cells_that_take_too_long_leave_the_first_failure():
    slow = other("import time\ntime.sleep(30)")
    assert "NameError" in outcome([answer(HELPED)], [slow, answer(HELPED)], seconds=1)


def test_what_a_student_tries_out_below_the_function_may_take_long():
    slow = "import time\ntime.sleep(1000)"
    assert outcome([answer(f"{DOUBLE}\n{slow}")], seconds=1) == 6


def test_the_rule_for_answers_holds_here_too():
    cells = [other("def halve(x):\n    return x / 2"), answer(f"{DOUBLE} + halve(0)")]
    assert outcome(cells) == 6
    assert "halve, the function of exercise 01.9" in outcome(cells, others={"halve": "01.9"})


def test_arguments_by_name_only_are_given_by_name():
    assert outcome([answer("def double(*, x):\n    return 2 * x")]) == 6
    says = "takes (y), but it is called with (x, t)"
    assert says in student._attempt(
        [answer("def double(y):\n    return y")], [[(1.0, 2.0)]],
        {"function": "double", "terms": {"others": {}, "library": [], "parameters": ["x", "t"]}},
        1000,
    ).outcomes[0][0].message  # fmt: skip


def test_a_module_that_a_cell_writes_is_found_and_hides_no_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my_doubles", "colorsys"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    written = other(f"%%writefile my_doubles.py\n{DOUBLE}")
    hiding = other("%%writefile colorsys.py\nhls_to_rgb = None")
    uses = answer("from my_doubles import double\nimport colorsys\ncolorsys.hls_to_rgb(0, 0, 0)")
    function, raised = student._function([written, hiding, uses], "double", 1000, False)
    assert function is None and isinstance(raised, ImportError)  # nothing is searched there yet
    assert outcome([written, hiding, uses]) == 6
    assert student._function([uses], "double", 1000, False)[1] is None


def test_the_answers_module_is_main():
    source = "class A: pass\nimport __main__\ndef double(x):\n    return 2 * x * (__main__.A is A)"
    assert outcome([answer(source)]) == 6


EXERCISE = Exercise(
    id="01.1",
    title="Double",
    function="double",
    parts=(Part("any", 1, lambda rng: [(1.0,)]),),
    oracle=lambda x: 2 * x,
)


def cell(source, grade_id="", kind="code", setup=False):
    return Cell(kind=kind, source=source, grade_id=grade_id, setup=setup)


GIVEN, CHECK = cell(STUB, "answer-01-1"), cell("check('01.1', double)", "check-01-1")


def test_the_function_in_a_cell_of_the_students_own_below_the_stub_counts():
    own = cell(DOUBLE)
    later = cell("def double(x):\n    return 0")
    assert answer_cells((GIVEN, own, CHECK, later), EXERCISE) == [GIVEN, own]
    # What stands above the given cell is replaced by it, as it is in the notebook.
    assert answer_cells((own, GIVEN, CHECK), EXERCISE) == [GIVEN]
    assert answer_cells((own, CHECK), EXERCISE) == [own]


def test_the_last_check_says_which_cells_count():
    again, both = cell("print(check( '01.1', double))"), cell(f"{DOUBLE}\ncheck('01.1', double)")
    own, of_another = cell(DOUBLE), cell("x = 1", "answer-01-2")
    assert answer_cells((GIVEN, CHECK, own, again), EXERCISE) == [GIVEN, own]
    assert answer_cells((GIVEN, CHECK, own, cell("# check('01.1', double)")), EXERCISE) == [GIVEN]
    assert answer_cells((GIVEN, CHECK, own, cell("check('01.10', f)")), EXERCISE) == [GIVEN]
    assert answer_cells((GIVEN, CHECK, both), EXERCISE) == [GIVEN, both]
    assert last_check((GIVEN, CHECK, own, again, own), EXERCISE) == 3
    # Without any check: down to the next exercise.
    assert answer_cells((GIVEN, own, of_another, own), EXERCISE) == [GIVEN, own]
    assert answer_cells((GIVEN, own), EXERCISE) == [GIVEN, own]
    with_answer = cell(f"{DOUBLE}\ncheck('01.1', double)", "check-01-1")
    assert answer_cells((GIVEN, with_answer), EXERCISE) == [GIVEN, with_answer]


@pytest.mark.parametrize(
    ("source", "defines"),
    [
        ("double = lambda x: 2 * x", True),
        ("double: Callable = halve", True),
        ("a, double = 1, halve", True),
        ("double, a = halve, 1", True),
        ("a = double = halve", True),
        ("if True:\n    def double(x):\n        return x", True),
        ("class double:\n    pass", True),
        ("from helpers import halve, twice as double", True),
        ("from double import halve", False),
        ("double == 3", False),
        ("a = double", False),
        ("plot(double(x), label=3)", False),
        ("double(x, y=3)", False),
        ("doubled = 3", False),
        ("# double = 3", False),
    ],
)
def test_what_defines_the_function(source, defines):
    own = cell(source)
    assert answer_cells((GIVEN, own, CHECK), EXERCISE) == ([GIVEN, own] if defines else [GIVEN])


def test_what_is_set_for_all_of_jax_is_part_of_the_setup():
    setup, sets = cell("import jax", setup=True), cell("jax.config.update('jax_enable_x64', True)")
    assert setup_cells((setup, cell("import os"), sets)) == [setup, sets]
