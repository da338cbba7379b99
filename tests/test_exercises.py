"""The exercises: the stub earns nothing, the solution everything, a mistake less, and says so."""

import importlib
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from diffusion_course.grading import answers, assign, checking
from diffusion_course.grading.exercise import Exercise, Written

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))
build = importlib.import_module("build")

CHAPTERS = answers.chapters()
EXERCISES = [e for group in CHAPTERS.values() for e in group if isinstance(e, Exercise)]
MUTANTS = [m for n in CHAPTERS for m in importlib.import_module(f"mutants.chapter_{n}").MUTANTS]


def source(chapter):
    (path,) = (COURSE / "solutions" / "source").glob(f"{chapter}_*.py")
    return path


def master(chapter):
    return build.read_source(source(chapter))


MASTERS = {chapter: master(chapter) for chapter in CHAPTERS}


def cell_of(notebook, role, exercise):
    wanted = assign.grade_id(role, exercise)
    (cell,) = (
        c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == wanted
    )
    return cell


def setup_of(notebook):
    return [c.source for c in notebook.cells if c.metadata.get("tags") == ["setup"]]


def verdict(exercise, answer_source, notebook=None):
    """The verdict on an answer cell with this source."""
    space = {}
    for text in [*setup_of(notebook or MASTERS[exercise.id[:2]]), answer_source]:
        exec(text, space)
    return checking.verdict_of(exercise, space[exercise.function])


each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)


@each_exercise
def test_the_solution_earns_every_point_in_under_two_seconds(exercise):
    begin = time.perf_counter()
    found = verdict(exercise, cell_of(MASTERS[exercise.id[:2]], "answer", exercise.id).source)
    assert found.message == "" and found.points == exercise.points == found.possible
    # Measured: at most half a second on two quiet cores.
    assert time.perf_counter() - begin < 6


@each_exercise
def test_the_solution_is_right_on_the_inputs_of_many_seeds(exercise, monkeypatch):
    text = cell_of(MASTERS[exercise.id[:2]], "answer", exercise.id).source
    for seed in range(3, 8):
        monkeypatch.setattr(checking, "_SEED", (seed, 1234))
        assert verdict(exercise, text).message == ""


@each_exercise
def test_the_stub_earns_nothing_and_says_what_to_return(exercise):
    student = assign.student_version(MASTERS[exercise.id[:2]])
    text = cell_of(student, "answer", exercise.id).source
    assert re.search(r'raise NotImplementedError\("return .+"\)', text)
    found = verdict(exercise, text)
    assert found.points == 0 and found.status == "not attempted"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.exercise}: {m.says[:40]}")
def test_a_mistake_earns_less_and_is_named(mutant):
    text = cell_of(MASTERS[mutant.exercise[:2]], "answer", mutant.exercise).source
    assert text.count(mutant.old) == 1
    exercise = answers.find(mutant.exercise)
    found = verdict(exercise, text.replace(mutant.old, mutant.new))
    assert found.points < exercise.points
    assert mutant.says in found.message


@each_exercise
def test_every_exercise_has_three_mutants_at_least(exercise):
    mine = [m for m in MUTANTS if m.exercise == exercise.id]
    assert len(mine) >= 3 and len({m.new for m in mine}) == len(mine)


@each_exercise
def test_every_classic_mistake_is_made_by_a_mutant(exercise):
    said = [m.says for m in MUTANTS if m.exercise == exercise.id]
    for message in exercise.mistakes:
        assert any(text in message for text in said), message


@each_exercise
def test_inputs_are_drawn_from_the_seed_and_are_lopsided(exercise):
    def numbers(seed):
        arrays = []
        for part in exercise.cases(seed):
            for case in part:
                arrays += [np.ravel(v) for v in case if isinstance(v, np.ndarray | float)]
        return np.concatenate(arrays).astype(float)

    first, again, other = numbers([5]), numbers([5]), numbers([6])
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_ids_count_from_one_and_the_text_states_what_the_specification_says(chapter):
    group, cells = CHAPTERS[chapter], MASTERS[chapter].cells
    assert [e.id for e in group] == [f"{chapter}.{n}" for n in range(1, len(group) + 1)]
    assert 4 <= len(group) <= 8
    assert any(isinstance(e, Written) for e in group)
    for exercise in group:
        head = re.compile(rf"^## {re.escape(exercise.id)} · {re.escape(exercise.title)}$", re.M)
        (cell,) = (c for c in cells if c.cell_type == "markdown" and head.search(c.source))
        plural = "s" if exercise.points != 1 else ""
        kinds = "warm-up|implement|derive and check|debug this|stretch|written"
        assert re.search(
            rf"^\*({kinds}) · \d+ minutes · {exercise.points} point{plural}\*$", cell.source, re.M
        )


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_a_folded_hint_and_an_expected_output(chapter):
    texts = "\n".join(c.source for c in MASTERS[chapter].cells if c.cell_type == "markdown")
    for exercise in CHAPTERS[chapter]:
        begin = texts.index(f"## {exercise.id} ·")
        end = texts.find("\n## ", begin + 1)
        text = texts[begin : end if end > 0 else None]
        assert "<details><summary>Hint</summary>" in text and "</details>" in text
        if isinstance(exercise, Exercise):
            assert "**Expected.**" in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_solution_reaches_the_student(chapter):
    student = assign.student_version(MASTERS[chapter])
    everything = "\n".join(c.source for c in student.cells)
    assert "SOLUTION" not in everything
    given = {line.strip() for c in student.cells for line in c.source.splitlines()}
    for cell in MASTERS[chapter].cells:
        if not cell.metadata.get("nbgrader", {}).get("solution"):
            continue
        inside = re.findall(r"### BEGIN SOLUTION.*?\n(.*?)### END SOLUTION", cell.source, re.S)
        lines = (line.strip() for text in inside for line in text.splitlines())
        secret = {line for line in lines if line and line != "return x"}
        assert secret and not secret & given


def test_the_students_notebooks_are_made_from_the_masters(tmp_path):
    shutil.copytree(COURSE / "solutions", tmp_path / "solutions")
    made = {path.name: path.read_bytes() for path in assign.write_exercises(tmp_path)}
    committed = {path.name: path.read_bytes() for path in (COURSE / "exercises").glob("*.ipynb")}
    assert made == committed and len(made) == len(CHAPTERS)
