"""Whose file is it? The names that learning platforms give to what they let one download."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import examples

from diffusion_course.grading.senders import Sender, senders

DATE, LATER = "2026-01-01-10-00-00", "2026-01-02-09-30-00"


def read(*names):
    return senders([PurePosixPath(name) for name in names])


@pytest.mark.parametrize(
    ("name", "student", "file"),
    [
        ("Anna Schmidt_12345_assignsubmission_file_/01_a.ipynb", "Anna Schmidt", "01_a.ipynb"),
        ("Anna Schmidt_12345_assignsubmission_file/01_a.ipynb", "Anna Schmidt", "01_a.ipynb"),
        ("Anna Schmidt_12345_assignsubmission_file_01_a.ipynb", "Anna Schmidt", "01_a.ipynb"),
        ("Jürgen O'Neil_7_assignsubmission_file_/deep/01_a.ipynb", "Jürgen O'Neil", "01_a.ipynb"),
        ("schmidtanna_12345_67890_01_a-1.ipynb", "schmidtanna", "01_a-1.ipynb"),
        ("schmidtanna_LATE_12345_67890_01_a.ipynb", "schmidtanna", "01_a.ipynb"),
        ("müllerjö_12345_67890_01_a.ipynb", "müllerjö", "01_a.ipynb"),
        (f"Homework 1_aschmidt_attempt_{DATE}_01_a.ipynb", "aschmidt", "01_a.ipynb"),
        (f"My_first_homework_aschmidt_attempt_{DATE}_01_a.ipynb", "aschmidt", "01_a.ipynb"),
        (f"Homework_aschmidt_attempt_{DATE}.txt", "aschmidt", "txt"),
        ("anna/01_a.ipynb", "anna", "01_a.ipynb"),
        ("anna.ipynb", "anna", "anna.ipynb"),
        # Nearly a platform's, but none: as it was handed in.
        ("hw_1_2_anna.ipynb", "hw_1_2_anna", "hw_1_2_anna.ipynb"),
        ("anna_2026_03.ipynb", "anna_2026_03", "anna_2026_03.ipynb"),
        ("anna_12345_67890_x/01.ipynb", "anna_12345_67890_x", "01.ipynb"),
        ("Anna_assignsubmission_file_01.ipynb", "Anna_assignsubmission_file_01", None),
        ("x_attempt_yesterday_01.ipynb", "x_attempt_yesterday_01", None),
    ],
)
def test_a_name_tells_student_and_file(name, student, file):
    (found,) = read(name)
    assert (found.student, found.file) == (student, file or name)


def test_several_files_of_one_student_are_one_student():
    for names in (
        ["Anna_1_assignsubmission_file_/01.ipynb", "Anna_1_assignsubmission_file_/02.ipynb"],
        ["Anna_1_assignsubmission_file_01.ipynb", "Anna_1_assignsubmission_file_02.ipynb"],
        ["anna_11111_22222_01.ipynb", "anna_11111_33333_02-1.ipynb"],
        [f"HW_anna_attempt_{DATE}_01.ipynb", f"HW_anna_attempt_{LATER}_02.ipynb"],
    ):
        assert len({sender.student for sender in read(*names)}) == 1, names


def test_students_of_one_name_stay_apart():
    one, other, third = read(
        "Anna Lee_1_assignsubmission_file_01.ipynb",
        "Anna Lee_2_assignsubmission_file_01.ipynb",
        "Bert_3_assignsubmission_file_01.ipynb",
    )
    assert (one.student, other.student, third.student) == ("Anna Lee (1)", "Anna Lee (2)", "Bert")
    apart = read("lee_11111_22222_01.ipynb", "lee_33333_44444_01.ipynb", "lee/01.ipynb")
    assert len({sender.student for sender in apart}) == 3


def test_lines_in_blackboards_user_names_are_kept_where_the_homework_is_known():
    names = [f"HW_1_{who}_attempt_{DATE}_01.ipynb" for who in ("john_smith", "anna_smith")]
    assert [sender.student for sender in read(*names)] == ["john_smith", "anna_smith"]


def test_the_time_of_an_attempt_is_kept():
    early, late = read(f"H_a_attempt_{DATE}_1.ipynb", f"H_a_attempt_{LATER}_1.ipynb")
    assert early == Sender("a", "1.ipynb", DATE) and late.attempt > early.attempt


@pytest.mark.parametrize(
    "given_name",
    [
        "x_999_assignsubmission_file_01.ipynb",
        "bert_99999_88888_01.ipynb",
        f"HW_bert_attempt_{LATER}_01.ipynb",
    ],
)
def test_a_student_cannot_hand_in_under_anothers_name(given_name):
    # The platform's part comes first; only what stands behind it is the student's.
    for start, name in (
        ("anna_12345_67890_", "anna"),
        ("Anna_1_assignsubmission_file_", "Anna"),
        (f"HW_anna_attempt_{DATE}_", "anna"),
    ):
        (found,) = read(start + given_name)
        assert found.student not in ("bert", "x") and found.student.lower().startswith(
            ("anna", f"hw_anna_attempt_{DATE}")
        ), (start, found, name)


file_names = st.text(
    st.characters(exclude_characters="/\x00", codec="utf-8"), min_size=1, max_size=9
)
who = st.from_regex(r"[A-Za-z][A-Za-z .']{0,8}[a-z]", fullmatch=True)


@examples
@given(
    st.lists(
        st.tuples(who, st.integers(1, 10**6), file_names), max_size=6, unique_by=lambda t: t[1]
    )
)
def test_every_moodle_name_gives_its_student_back(students):
    names = [f"{name}_{id}_assignsubmission_file_{file}.ipynb" for name, id, file in students]
    found = read(*names)
    assert [s.student.split(" (")[0] for s in found] == [name for name, _, _ in students]
    assert [s.file for s in found] == [f"{file}.ipynb" for _, _, file in students]
    assert len({s.student for s in found}) == len(students)  # nobody gets another's points


@examples
@given(st.lists(file_names, max_size=5, unique=True))
def test_any_names_are_answered(names):
    assert len(read(*names)) == len(names)
