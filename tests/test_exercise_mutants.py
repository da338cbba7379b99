"""The mutants of the exercises: a lucky input shows its survivor, a designed one refuses it."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_course.grading.calling import call
from diffusion_course.grading.exercise import Exercise, Failure, Part

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "benchmarks"))
mutants = importlib.import_module("exercise_mutants")
edits = importlib.import_module("exercise_edits")

SPACE = {"np": np, "jnp": np}
SOURCE = '''def weighted(x, w):
    """x [N], w [N] -> the mean of the products, one number."""
    return np.sum(x * w) / len(x)  # N is in both
'''
SAME = "return np.sum(x * w) / len(x) -> return np.sum(x * w) / len(w)"
LUCKY = "return np.sum(x * w) / len(x) -> return np.sum(x * w) / 3"


def examined(lengths, equivalent=()):
    space = dict(SPACE)
    exec(SOURCE, space)

    def cases(rng):
        for sign in (1, -1):
            for n in lengths:
                x, w = rng.uniform(0.5, 2.0, n), rng.uniform(0.5, 2.0, n)
                yield sign * x, w

    part = Part("any numbers", 1, cases)
    exercise = Exercise("99.1", "A toy", "weighted", (part,), space["weighted"])
    with np.errstate(all="ignore"):
        return mutants.examine(exercise, SOURCE, SPACE, equivalent, seeds=((0,), (1,)))


def test_a_lucky_input_shows_its_survivor_and_the_size_that_never_changes():
    found = examined((3,), [SAME])
    assert found.survivors == {LUCKY: 2}
    assert found.single == ["the N of x is always 3", "the N of w is always 3"]
    assert not found.complete


def test_designed_inputs_refuse_all_but_what_is_listed_as_equivalent():
    found = examined((3, 5), [SAME])
    assert found.complete and found.equivalent == 1
    assert found.refused == found.mutants - 1 > 20
    assert examined((3, 5)).survivors == {SAME: 2}


def test_a_listed_edit_that_does_not_survive_is_told():
    assert examined((3, 5), [SAME, LUCKY]).stale == [LUCKY]


def test_a_solution_that_is_refused_itself_is_no_measure():
    exercise = Exercise("99.1", "A toy", "weighted", (), lambda x, w: 0.0)
    exercise = mutants.replace(
        exercise, parts=(Part("any", 1, lambda rng: [(np.ones(2), np.ones(2))]),)
    )
    with pytest.raises(ValueError, match=r"99\.1: the solution itself is refused"):
        mutants.examine(exercise, SOURCE, SPACE)


@pytest.mark.parametrize(
    ("source", "edit"),
    [
        ("y = f(a, b=1)", "y = f(a, b=1) -> y = f(a)"),
        ("y = x[1:]", "y = x[1:] -> y = x[:]"),
        ("y = x[:, None]", "y = x[:, None] -> y = x[None, :]"),
        ("y = np.sqrt(x)", "y = np.sqrt(x) -> y = x"),
        ("y = np.exp(x)", "y = np.exp(x) -> y = np.expm1(x)"),
        ("y = a < b", "y = a < b -> y = (a <= b)"),
        ("y = a ** 2", "y = a ** 2 -> y = a ** 3"),
        ("y = x + 1e-5", "y = x + 1e-5 -> y = x + 0.0001"),
        ("y = a - b", "y = a - b -> y = (a + b)"),
        ("y = {'a': a, 'b': b}", "y = {'a': a, 'b': b} -> y = {'a': b, 'b': a}"),
        ("y = a / b", "y = a / b -> y = (a / (b + 1e-3))"),
        ("y = a & b", "y = a & b -> y = (a | b)"),
    ],
)
def test_every_kind_of_slip_is_tried(source, edit):
    text = f"def f(a, b, x):\n    {source}\n    return y\n"
    assert edit in {found.label for found in edits.all_edits(text)}


def test_an_edit_keeps_its_place_beside_letters_of_two_bytes():
    (found,) = (
        e for e in edits.all_edits("def f(x):\n    λ = 2  # λ\n    return λ\n") if e.text == "3"
    )
    assert found.source == "def f(x):\n    λ = 3  # λ\n    return λ\n"


def test_an_endless_loop_ends(monkeypatch):
    monkeypatch.setattr(mutants, "SECONDS", 0.05)

    def endless():
        while True:
            pass

    outcome = mutants.limited(lambda: call(endless, ()))
    assert isinstance(outcome, Failure) and "took more than 0.05 s" in outcome.message


def test_what_is_listed_as_equivalent_is_an_edit_of_a_line_that_stands_in_the_solution():
    known = {exercise.id: exercise for exercise in mutants.wanted([])}
    for name, labels in mutants.listed().items():
        lines = edits.Text(mutants.solution(known[name])).lines()
        assert len(set(labels)) == len(labels)
        for label in labels:
            old, arrow, new = label.partition(" -> ")
            assert arrow and new and (old in lines or old.startswith("first ")), label
