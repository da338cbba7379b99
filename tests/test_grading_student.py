"""The program in the sandbox understands what a notebook does."""

import IPython
import pytest

from diffusion_course.grading import student
from diffusion_course.grading.exercise import Exercise, Part
from diffusion_course.grading.submissions import Cell, answer_cells


@pytest.fixture(autouse=True)
def _ipython_is_itself_again_afterwards(monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", IPython.get_ipython)
    monkeypatch.setattr(IPython.core.getipython, "get_ipython", IPython.get_ipython)


def function_of(*sources, setup=""):
    cells = [{"source": setup, "answer": False}]
    cells += [{"source": source, "answer": True} for source in sources]
    return student._function(cells, "double")


DOUBLE = "def double(x):\n    return 2 * x"


@pytest.mark.parametrize(
    "source",
    [
        f"{DOUBLE}\nassert double(2) == 5, 'a trial of the student that fails'",
        f"from google.colab import drive\n{DOUBLE}",
        f"drive = missing.drive\n{DOUBLE}",
        f"%timeit 1\n{DOUBLE}",
        f"import IPython\nIPython.get_ipython().run_line_magic('timeit', '1')\n{DOUBLE}",
        f"from IPython import get_ipython\nget_ipython().system('ls')\n{DOUBLE}",
        f"get_ipython().ast_node_interactivity = 'all'\n{DOUBLE}",
    ],
)
def test_what_a_notebook_survives_defines_the_function_here_too(source):
    assert function_of(source)(3) == 6


def test_imports_of_colab_do_not_void_the_setup_cell():
    setup = "from google.colab import drive\nimport math\nfrom math import tau"
    assert function_of("def double(x):\n    return math.pi + tau + x", setup=setup)(0) > 9


def test_a_cell_that_never_defines_the_function_says_what_it_raised():
    with pytest.raises(ZeroDivisionError):
        function_of("1 / 0")
    with pytest.raises(SystemExit):
        function_of(f"{DOUBLE}\nraise SystemExit")
    with pytest.raises(student._Missing):
        function_of("x = 1")


def test_a_slip_of_syntax_below_the_stub_is_told_and_not_taken_for_the_stub():
    stub = "def double(x):\n    raise NotImplementedError"
    with pytest.raises(SyntaxError):
        function_of(stub, "def double(x)\n    return 2 * x")


EXERCISE = Exercise(
    id="01.1",
    title="Double",
    function="double",
    parts=(Part("any", 1, lambda rng: [(1.0,)]),),
    oracle=lambda x: 2 * x,
)


def cell(source, grade_id="", kind="code"):
    return Cell(kind=kind, source=source, grade_id=grade_id, setup=False)


def test_the_function_in_a_cell_of_the_students_own_below_the_stub_counts():
    stub = cell("def double(x):\n    raise NotImplementedError", "answer-01-1")
    own, check = cell(DOUBLE), cell("check('01.1', double)", "check-01-1")
    later = cell("def double(x):\n    return 0")
    assert answer_cells((stub, own, check, later), EXERCISE) == [stub, own]
    # What stands above the given cell is replaced by it, as it is in the notebook.
    assert answer_cells((own, stub, check), EXERCISE) == [stub]
    assert answer_cells((own, check), EXERCISE) == [own]
