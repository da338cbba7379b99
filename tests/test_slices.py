"""A cell runs alone with the cells that `slices.needed` names."""

import sys
from pathlib import Path

from diffusion_course import paths
from diffusion_course.notebook import widgets

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))
import slices  # noqa: E402 (notebooks/slices.py)

CELLS = [
    "import numpy as np\nfrom math import sqrt",  # 0
    "x = np.ones(3)",  # 1
    "y = 2 * x",  # 2
    "x[0] = 7",  # 3
    "def f(n):\n    return [scale * i for i in range(n)] + list(x)",  # 4
    "scale = 3",  # 5
    "np.set_printoptions(precision=3)",  # 6
    "items = []\nitems.append(sqrt(4))",  # 7
    "items.append(y)",  # 8
    "shown = f(2)",  # 9
    "total = sum(i for i in items)",  # 10
    "x = 1",  # 11
    "x += 1",  # 12
    "print(x)",  # 13
    "%pip install something\n# only a remark",  # 14
]


def test_a_cell_needs_what_binds_and_what_changes_its_names():
    assert slices.needed(CELLS, 2) == [0, 1, 2]
    assert slices.needed(CELLS, 10) == [0, 1, 2, 7, 8, 10]  # x is changed after y was made


def test_a_function_may_use_what_is_bound_below_it():
    # `scale` stands below f and above its call; x is changed before it.
    assert slices.needed(CELLS, 9) == [0, 1, 3, 4, 5, 9]


def test_calling_a_function_of_a_module_does_not_change_it():
    assert 6 not in slices.needed(CELLS, 10)


def test_the_last_binding_counts_and_what_changes_it_after():
    assert slices.needed(CELLS, 13) == [11, 12, 13]


def test_a_cell_without_code_needs_nothing():
    assert slices.needed(CELLS, 14) == [14]


def test_what_is_kept_runs_and_gives_the_same():
    whole, alone = {}, {}
    for source in CELLS[:11]:
        exec(source, whole)
    for number in sorted({*slices.needed(CELLS, 9), *slices.needed(CELLS, 10)}):
        exec(CELLS[number], alone)
    assert list(alone["shown"]) == list(whole["shown"])
    assert str(alone["total"]) == str(whole["total"])


def test_a_chapter_s_explorers_come_after_its_setup():
    # Without it a kernel would compile anew what the notebook has compiled, in a folder of its own.
    chapters = paths.chapters(Path(__file__).parent.parent / "notebooks")
    for chapter in chapters:
        sources, _ = slices.explorers(chapter)
        assert "course = setup(" in sources[0], chapter.name


def test_the_names_of_widgets_are_functions_of_the_library():
    assert all(callable(getattr(widgets, name)) for name in slices.WIDGETS)
