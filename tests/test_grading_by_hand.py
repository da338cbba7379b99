"""Written answers: the page with the rubrics, and the points that a person enters."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from test_grading_results import SCRIPT, Elements, row, words

from diffusion_course.app import cli
from diffusion_course.grading import answers, by_hand, results, submissions
from diffusion_course.grading.by_hand import Entry
from diffusion_course.grading.exercise import Written

COURSE = Path(__file__).resolve().parent.parent
ROWS = [
    row("anna", "01.7", None, 2, "manual", "Because …"),
    row("bert", "01.7", None, 2, "manual", "No idea, but …"),
    row("bert", "01.1", 3, 3, "right"),
    row("cleo", "01.7", 0, 2, "not attempted", "no answer written"),
]


def entered(tmp_path, *lines):
    path = tmp_path / "grades_by_hand.csv"
    path.write_text("\n".join(["student,exercise,points,out_of,comment", *lines, ""]), "utf-8")
    return path


def test_every_answer_that_waits_gets_a_line_and_no_line_is_changed(tmp_path):
    path = entered(tmp_path, "gone,01.7,1,2,left the course", "anna,01.7,1.5,2,", "zoe,01.7,,2,?")
    old = by_hand.read(path)
    new = by_hand.extended(old, ROWS)
    assert new[: len(old)] == old and new[len(old) :] == [Entry("bert", "01.7", None, 2)]
    by_hand.write(path, new)
    assert by_hand.read(path) == new
    assert by_hand.extended(new, ROWS) == new


def test_a_file_that_is_not_there_yet_is_empty(tmp_path):
    assert by_hand.read(tmp_path / "grades_by_hand.csv") == []


def test_points_and_comments_are_merged_into_written_answers_only():
    entries = [
        Entry("anna", "01.7", 1.5, 2, "the second half is missing"),
        Entry("bert", "01.7", None, 2, "later"),
        Entry("bert", "01.1", 0, 3, "not by hand"),
        Entry("cleo", "01.7", 2, 2),
    ]
    anna, bert, machine, cleo = by_hand.merged(ROWS, entries)
    assert (anna.points, anna.message) == (1.5, "the second half is missing")
    assert (bert, machine, cleo) == tuple(ROWS[1:])
    whole = by_hand.merged(ROWS, [Entry("anna", "01.7", 2.0, 2)])[0]
    assert (repr(whole.points), whole.message) == ("2", "Because …")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("anna,01.7,3,2,", "line 3: points must be within 0 … 2, got 3"),
        ("anna,01.7,-1,2,", "line 3: points must be within 0 … 2, got -1"),
        ("anna,01.7,nan,2,", "line 3: .*'nan' is no number of points"),
        ("anna,01.7,good,2,", "line 3: .*'good' is no number of points"),
        ("anna,01.7,1,,", "line 3: out_of is empty"),
        ("anna,01.7,1,2", "line 3: not a row of grades: 4 columns"),
        ("first,01.7,1,2,", "line 3: first 01.7 stands there twice"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, message):
    path = entered(tmp_path, "first,01.7,1,2,", line)
    with pytest.raises(ValueError, match=f"grades_by_hand.csv, {message}"):
        by_hand.read(path)


def test_a_spreadsheet_may_have_saved_it(tmp_path):
    path = tmp_path / "grades_by_hand.csv"
    path.write_bytes(
        "student;exercise;points;out_of;comment\njürgen;01.7;1,5;2;gut\n".encode("utf-16")
    )
    assert by_hand.read(path) == [Entry("jürgen", "01.7", 1.5, 2, "gut")]


def test_no_comment_is_a_formula(tmp_path):
    path = tmp_path / "grades_by_hand.csv"
    by_hand.write(path, [Entry("=cmd()", "01.7", 1, 2, "=1+1")])
    assert not re.search(r"(^|,)=", path.read_text("utf-8"), re.M)


def test_every_written_question_has_a_rubric_in_the_masters():
    asked = [e for group in answers.chapters().values() for e in group if isinstance(e, Written)]
    rubrics = by_hand.rubrics(COURSE)
    assert len(asked) > 15 and {e.id for e in asked} == set(rubrics)
    assert all("###" not in text and len(text) > 100 for text in rubrics.values())


def test_every_written_question_has_examples_that_earn_less():
    asked = [e for group in answers.chapters().values() for e in group if isinstance(e, Written)]
    examples = by_hand.examples(COURSE)
    assert set(examples) == {e.id for e in asked}
    for question in asked:
        found = examples[question.id]
        assert [set(each) for each in found] == [{"points", "answer", "why"}] * len(found)
        earned = [each["points"] for each in found]
        assert earned == sorted(set(earned), reverse=True)
        assert earned[-1] == 0 and len(earned) >= 2 and earned[0] < question.points
        assert all(len(each["answer"]) > 40 and len(each["why"]) > 15 for each in found)


@pytest.fixture
def handed_in(tmp_path):
    """Ada has solved chapter 01, Ben has not begun, and Eve writes markup."""
    for student, folder in (("ada", "solutions"), ("ben", "exercises"), ("eve", "solutions")):
        (tmp_path / "subs" / student).mkdir(parents=True)
        shutil.copy(COURSE / folder / "01_forward_process.ipynb", tmp_path / "subs" / student)
    path = tmp_path / "subs" / "eve" / "01_forward_process.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id", "").startswith("written"):
            cell.source = SCRIPT
    nbformat.write(notebook, path)
    return tmp_path / "subs"


def test_answers_stand_beside_their_rubric(handed_in):
    found, _ = submissions.collect(handed_in, answers.chapters())
    known = by_hand.rubrics(COURSE), by_hand.examples(COURSE)
    (question,) = by_hand.questions(found, answers.chapters(), *known)
    assert list(question.answers) == ["ada", "eve"]  # ben's is the prompt, untouched
    made = by_hand.page([question], [Entry("ada", question.exercise, 1, 2, "see 2.")], "f.csv")
    said = words(made)
    assert question.title in said and "ada 1 of" in said and "see 2." in said and "eve –" in said
    assert said.count("ben") == 0 and SCRIPT in Elements(made).text
    assert not [tag for tag in Elements(made).tags if tag[0] == "script"]
    assert "Answers that earn less 1 of 2 “1. At n = 0 alpha_bar" in said.replace("  ", " ")
    empty = by_hand.questions(found, answers.chapters(), {}, {})
    assert "The rubric is in the course's folder" in words(by_hand.page(empty, [], "f.csv"))


def test_points_find_their_way_into_report_and_feedback(handed_in, tmp_path, capsys):
    question = next(e for e in answers.chapters()["01"] if isinstance(e, Written))
    rows = [row(s, question.id, None, question.points, "manual", "words") for s in ("ada", "eve")]
    out = results.write(tmp_path / "grades.csv", rows, "s")[0]
    before = out.read_bytes()
    assert cli.main(["report", str(out), "--answers", str(handed_in)]) == 0
    assert "enter points in" in capsys.readouterr().out
    entries = by_hand.entries_file(out)
    said = entries.read_text("utf-8")
    assert "2 answers to grade by hand" in words(out.with_suffix(".html").read_text("utf-8"))

    entries.write_text(said.replace(f"ada,{question.id},,", f"ada,{question.id},1,"), "utf-8")
    assert cli.main(["report", str(out), "--answers", str(handed_in)]) == 0
    assert f"ada,{question.id},1," in entries.read_text("utf-8")  # never overwritten
    assert out.read_bytes() == before
    assert "1 answers to grade by hand" in words(out.with_suffix(".html").read_text("utf-8"))
    feedback = next((tmp_path / "grades_feedback").glob("ada-*.html")).read_text("utf-8")
    assert f"1 of {question.points} points." in feedback


def test_a_wrong_line_ends_report_before_anything_is_written(tmp_path, capsys):
    out = results.write(tmp_path / "grades.csv", ROWS, "s")[0]
    entered(tmp_path, "anna,01.7,7,2,")
    assert cli.main(["report", str(out)]) == 2
    assert "points must be within 0 … 2, got 7" in capsys.readouterr().err
    assert not out.with_suffix(".html").exists()
