"""What grading leaves behind: the table, its twin, feedback pages, and the view of a class."""

import csv
import html.parser
import io
import json
import os
import re
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import examples

from diffusion_course.grading import class_page, overview, places, results
from diffusion_course.grading.exercise import Exercise, Part, Written
from diffusion_course.grading.inputs import GaussianDenoiser
from diffusion_course.grading.judging import judge
from diffusion_course.grading.row import Row

many = settings(examples, max_examples=100)

SCRIPT = "<script>alert('β')</script>"


def row(student="anna", exercise="01.1", points=2, out_of=3, status="wrong", message="", file=None):
    return Row(student, exercise, points, out_of, status, message, file or f"{student}/01.ipynb")


ROWS = [
    row(points=3, status="right"),
    row(exercise="01.2", points=0, message="the sign is wrong everywhere (called with [3], 0.5)"),
    row(exercise="01.3", points=None, out_of=4, status="manual", message='Because, "β" isn\'t.'),
    row("bert", "", None, None, "unreadable", "not JSON", "bert.ipynb"),
]


def written(tmp_path, rows, name="grades.csv", secret="s"):
    return results.write(tmp_path / name, rows, secret)


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --------------------------------------------------------------------------------- files


def test_the_table_has_exactly_these_columns(tmp_path):
    out, twin, pages = written(tmp_path, ROWS)
    first = out.read_text(encoding="utf-8").splitlines()[0]
    assert first == "student,exercise,points,out_of,status,message,file"
    assert (twin.name, pages.name) == ("grades.json", "grades_feedback")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, twin.name, pages.name])


def test_what_is_graded_by_hand_or_not_at_all_has_no_points(tmp_path):
    found = table(written(tmp_path, ROWS)[0])
    assert [(r["points"], r["out_of"]) for r in found] == [
        ("3", "3"), ("0", "3"), ("", "4"), ("", ""),
    ]  # fmt: skip


def test_the_twin_equals_the_rows(tmp_path):
    rows = [*ROWS, row(SCRIPT, message="=1+1\n"), row("Jürgen\n", points=1.5)]
    twin = written(tmp_path, rows)[1]
    assert [Row(**entry) for entry in json.loads(twin.read_text(encoding="utf-8"))] == rows


def test_a_table_is_read_as_it_was_written(tmp_path):
    assert results.read_csv(written(tmp_path, ROWS)[0]) == ROWS


plain = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=12).filter(
    # These begin a formula, which is made text, also behind what a spreadsheet takes for a comma.
    lambda text: not any(sign in text for sign in "=+-@＝＋－＠")
)
points = st.integers(0, 9) | st.sampled_from([0.5, 2.25])


exercises = st.from_regex(r"[0-9]{2}\.[1-9]", fullmatch=True)
any_rows = st.lists(
    st.builds(Row, plain, exercises, points, points, plain, plain, plain), max_size=4
)


@many
@given(any_rows)
def test_any_printable_text_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "grades.csv"
    path.write_text(results.to_csv(rows), encoding="utf-8")
    assert results.read_csv(path) == rows


def saved_by_a_spreadsheet(rows, separator, encoding, comma):
    """The table as a spreadsheet of some country writes it."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\r\n")
    writer.writerow(results.COLUMNS)
    for r in rows:
        numbers = ["" if v is None else f"{v:g}" for v in (r.points, r.out_of)]
        numbers = [v.replace(".", ",") if comma else v for v in numbers]
        writer.writerow([r.student, r.exercise, *numbers, r.status, r.message, r.file])
    return text.getvalue().encode(encoding)


SAVED = [
    (separator, encoding, comma)
    for separator in ",;\t"
    for encoding in ("utf-8", "utf-8-sig", "utf-16")
    for comma in (False, True)
    if not (separator == "," and comma)
]


@examples
@given(any_rows, st.sampled_from(SAVED))
@example(ROWS, (";", "utf-8-sig", True))
@example([row(points=2.5, out_of=3, message='a;b, "c"')], ("\t", "utf-16", True))
def test_a_table_that_any_spreadsheet_has_saved_is_read(tmp_path_factory, rows, saved):
    path = tmp_path_factory.mktemp("csv") / "grades.csv"
    path.write_bytes(saved_by_a_spreadsheet(rows, *saved))
    assert results.read_csv(path) == rows


def test_an_exercise_that_became_a_number_gets_its_zero_back_and_a_date_is_named(tmp_path):
    path = tmp_path / "grades.csv"
    for found in ("1.2", "1,2", " 01.2"):
        path.write_text(HEADER.replace(",", ";") + f"anna;{found};1;2;right;;f\n;;;;;;\n")
        assert [r.exercise for r in results.read_csv(path)] == ["01.2"]
    path.write_text(HEADER.replace(",", ";") + "anna;01. Feb;1;2;right;;f\n")
    with pytest.raises(ValueError, match=r"line 2: exercise must look like 01.2, got '01. Feb'"):
        results.read_csv(path)


def test_points_that_were_added_by_hand_are_read(tmp_path):
    out = written(tmp_path, ROWS)[0]
    text = out.read_text(encoding="utf-8")
    assert "anna,01.3,,4," in text
    out.write_text(text.replace("anna,01.3,,4,", "anna,01.3,2.5,4,"), encoding="utf-8")
    by_hand = results.read_csv(out)[2]
    assert (by_hand.points, by_hand.out_of, by_hand.status) == (2.5, 4, "manual")


HEADER = ",".join(results.COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must have the columns student, exercise, points, out_of"),
        ("name,grade\nanna,1\n", "must have the columns"),
        (HEADER.replace("points,out_of", "out_of,points"), "must have the columns"),
        (HEADER.replace(",", "|"), "must have the columns"),
        (HEADER + "anna,01.1,nan,2,right,,f\n", "line 2: not a row of grades: 'nan' is no number"),
        (HEADER + 'anna,01.1,"2,5",3,right,,f\n', "line 2: not a row"),
        (HEADER + "anna,01.1,1,2,right,,f\nanna,01.2,many,2,right,,f\n", "line 3: not a row"),
        (HEADER + "anna,01.1,1,2,right,,f,more\n", "line 2: not a row"),
        (HEADER + "anna,01.1\n", "line 2: not a row"),
        (HEADER + "anna,01.1,2,,right,,f\n", "line 2: not a row"),
        (HEADER + "anna,01.1,1,2,right," + "x" * 200_000 + ",f\n", "must be a CSV file"),
        (b"\x89PNG\r\n\x1a\n", "must be a CSV file"),
        ((HEADER + "Jürgen,01.1,1,2,right,,f\n").encode("latin-1"), "must be a CSV file"),
    ],
    ids=lambda text: repr(text[-30:]),
)
def test_another_table_is_refused_by_name_and_line(tmp_path, text, says):
    path = tmp_path / "other.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"^other.csv.*{says}"):
        results.read_csv(path)


FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\r\n=1",
    "\n@x",
    "\x00=1",
    "=1",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_field_is_a_formula_or_breaks_its_line(tmp_path, text):
    rows = [row(text, message=text, file=text)]
    out = written(tmp_path, rows)[0]
    (found,) = table(out)
    for name in ("student", "message", "file"):
        assert not found[name].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert found[name].isprintable() and found[name].lstrip(" '") == text.strip("\x00").strip()
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
    assert results.to_csv(results.read_csv(out)).count("'") == out.read_text().count("'")


texts_of_attackers = st.lists(
    st.sampled_from([*"=+-@＝＋－＠;,\t|:^~ \"'(1x.", "\n", "\u200b", "=HYPERLINK(1)", '"=1'])
    | st.characters(),
    max_size=12,
).map("".join)
NEGATIVE = re.compile(r"-\d+(\.\d+)?(e[+-]?\d+)?([\s,;)\]}].*)?", re.S)


@many
@given(texts_of_attackers, st.sampled_from(";\t|:^~ #&%$§·"), st.sampled_from([0, 3]))
@example(';"=HYPERLINK(1);"', ";", 0)
@example("x |=1|", "|", 3)
@example('a" =1+1 ', " ", 0)
def test_no_cell_is_a_formula_whatever_is_taken_for_the_separator(text, separator, quoting):
    line = results.to_csv([row(text, message=text, file=text)]).splitlines()[1]
    for found in csv.reader([line], delimiter=separator, quoting=quoting):
        for cell in found:
            start = cell.lstrip(' "')
            formula = start.startswith(tuple("=+-@＝＋－＠")) and len(start) > 1
            alone = start[1:2] == " " or NEGATIVE.fullmatch(start) or not cell.strip(' "=+-@<>')
            assert not formula or alone, (line, cell)


def test_what_is_no_formula_stays_as_it_is():
    for said in (
        "called with [3, 2], -0.5) x = y @ z, a == b -> c, f(-x), t=1",
        "your code raised TypeError: unsupported operand (line 3: return x*-1 + 2**-y)",
    ):
        assert said in results.to_csv([row(message=said)])


def test_files_of_an_earlier_run_are_replaced(tmp_path):
    written(tmp_path, [row("zoe")])
    out, _, pages = written(tmp_path, ROWS)
    assert {r["student"] for r in table(out)} == {"anna", "bert"}
    assert len(list(pages.iterdir())) == 2 and not list(pages.glob("zoe*"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    written(tmp_path, ROWS)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_crash_leaves_the_grades_of_the_earlier_run(tmp_path, monkeypatch):
    def content():
        return {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    written(tmp_path, [row()])
    before, replace, calls = content(), os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:  # the table has its name already, its twin has not
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError):
        written(tmp_path, ROWS)
    assert content() == before


def test_half_a_character_from_a_submission_ends_nobodys_run(tmp_path):
    rows = [row("\ud800", message="\udfff")]
    out, twin, pages = written(tmp_path, rows)
    assert [Row(**entry) for entry in json.loads(twin.read_text(encoding="utf-8"))] == rows
    assert results.read_csv(out)[0].points == 2 and len(list(pages.iterdir())) == 1


def test_nothing_is_written_through_a_link_or_into_anothers_folder(tmp_path, monkeypatch):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "a-0123456789abcdef.html").write_text("mine")
    for name in ("grades.csv", "grades.json", "grades_feedback"):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"{name} is not an ordinary"):
            written(tmp_path, ROWS)
        (tmp_path / name).unlink()
    (tmp_path / "grades_feedback").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="somebody else's"):
        written(tmp_path, ROWS)
    assert [p.name for p in target.iterdir()] == ["a-0123456789abcdef.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grades_feedback", "mine"]


def test_files_that_are_no_feedback_are_left_in_its_folder(tmp_path):
    (tmp_path / "grades_feedback").mkdir()
    (tmp_path / "grades_feedback" / "index.html").write_text("mine")
    pages = written(tmp_path, ROWS)[2]
    assert (pages / "index.html").read_text() == "mine" and len(list(pages.iterdir())) == 3


def test_the_name_of_a_page_cannot_be_guessed_without_the_secret(tmp_path):
    one, other = (written(tmp_path / s, ROWS, secret=s)[2] for s in folders(tmp_path, "ab"))
    names = [{path.name for path in pages.iterdir()} for pages in (one, other)]
    assert not names[0] & names[1]


def folders(base, names):
    for name in names:
        (base / name).mkdir()
    return names


def test_an_empty_class_is_a_header_and_an_empty_list(tmp_path):
    out, twin, pages = written(tmp_path, [])
    assert results.read_csv(out) == [] and json.loads(twin.read_text()) == []
    assert list(pages.iterdir()) == []


# ------------------------------------------------------------------------- feedback pages


class Elements(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *attributes))

    def handle_data(self, data):
        self.text += data + "\n"


def test_a_page_tells_points_outcomes_and_what_is_left_to_grade():
    text = Elements(results.page("anna", ROWS[:3])).text
    assert "3 of 10 points. 1 written answer is still to be graded by hand." in text
    titled = Elements(results.page("anna", ROWS[:3], {"01.2": "The table"})).text
    assert "The table" in titled and "The table" not in text
    for part in ("anna", "01.2", "0 / 3", "the sign is wrong everywhere", " / 4", "isn't"):
        assert part in text
    assert "by hand" not in results.page("anna", ROWS[:2])


def test_a_file_that_was_not_graded_is_on_its_students_page():
    text = Elements(results.page("bert", ROWS[3:])).text
    assert "bert.ipynb" in text and "unreadable" in text and "not JSON" in text


@pytest.mark.parametrize("field", ["student", "message", "file", "status", "exercise"])
def test_nothing_from_a_student_is_markup(field):
    changes = {"exercise": "", "points": None, "out_of": None} | {field: SCRIPT}
    one = row(**changes)
    found = Elements(results.page(one.student, [one]))
    safe = Elements(results.page("anna", [row(exercise="", points=None, out_of=None)]))
    assert found.tags == safe.tags and SCRIPT in found.text


@pytest.mark.parametrize(
    "student",
    ["anna", "../../etc/passwd", "a b", "Jürgen", "a\nb", "x" * 300, "", SCRIPT, "CON", "."],
)
def test_the_name_of_a_page_is_plain(student):
    name = results.page_name(student, "s")
    assert re.fullmatch(r"[A-Za-z0-9_-]{0,40}-[0-9a-f]{16}\.html", name)
    assert name != results.page_name(student, "another secret")


def test_students_whose_names_look_alike_have_their_own_pages(tmp_path):
    names = ["a b", "a_b", "a.b", "a/b", "ä", "ö", "x" * 50 + "1", "x" * 50 + "2", "A_b"]
    pages = written(tmp_path, [row(name) for name in names])[2]
    assert len({path.name.lower() for path in pages.iterdir()}) == len(names)


# ---------------------------------------------------------------------------------- a class


def grades():
    """Four students: (points of 01.1, 01.2, 01.3), of 2, 4 and 3; 01.3 is graded by hand."""
    rows = []
    sign, flip = "the sign is wrong everywhere", "the order is reversed"
    for student, first, second, by_hand, message in [
        ("anna", 2, 4, 3, ""),
        ("bert", 2, 1, None, f"{sign} (called with [3])"),
        ("cleo", 0, 0, None, f"{sign} (called with [7], 0.25)"),
        ("dora", 2, 2, None, flip),
    ]:
        none = ("x", "") if first else ("not attempted", "not attempted yet")
        rows.append(row(student, "01.1", first, 2, *none))
        rows.append(row(student, "01.2", second, 4, "x", message))
        rows.append(row(student, "01.3", by_hand, 3, "manual", "words words"))
    return [*rows, row("emil", "", None, None, "unreadable", "not JSON", "emil.ipynb")]


def test_means_and_counts_of_the_exercises():
    one, two, three = overview.overview(grades()).exercises
    assert (one.exercise, one.mean, one.out_of, one.graded, one.right) == ("01.1", 1.5, 2, 4, 3)
    assert (two.exercise, two.mean, two.out_of, two.graded, two.right) == ("01.2", 1.75, 4, 4, 1)
    # By hand: whoever isn't graded yet doesn't count.
    assert (three.exercise, three.mean, three.graded, three.right) == ("01.3", 3, 1, 1)


def test_the_most_common_diagnosis_counts_whatever_the_inputs_were():
    one, two, three = overview.overview(grades()).exercises
    assert one.diagnosis == ("", 0) and one.untouched == 1
    assert two.diagnosis == ("the sign is wrong everywhere", 2)
    assert three.diagnosis == ("", 0)  # an answer in words is no diagnosis
    (by_hand,) = overview.overview([row(points=1, status="manual", message="words")]).exercises
    assert (by_hand.diagnoses, by_hand.partly) == ((), 1)


def test_diagnoses_of_the_judge_are_equal_for_functions_with_other_settings():
    def said(mean, std):
        case = (GaussianDenoiser(mean, std), 0.5, "vp")
        part = Part("all", 1, lambda rng: [case])
        wanted = Exercise("01.1", "A test", "f", (part,), lambda d, a, s: np.array([1.5, 2.5]))
        return judge(wanted, [[case]], [[(np.array([-1.5, -2.5]),)]]).message

    rows = [row(s, points=0, message=said(*v)) for s, v in [("a", (0.3, 1.7)), ("b", (-2.1, 0.4))]]
    assert rows[0].message != rows[1].message
    (summary,) = overview.overview(rows).exercises
    assert summary.diagnosis == ("the sign is wrong everywhere", 2)


def test_the_weakest_come_first_and_those_below_half_need_help():
    view = overview.overview(grades())
    # anna 9 of 9, bert 3 of 6, cleo 0 of 6, dora 4 of 6; emil has nothing to be graded.
    assert view.students == (
        ("cleo", 0, 6), ("emil", 0, 0), ("bert", 3, 6), ("dora", 4, 6), ("anna", 9, 9),
    )  # fmt: skip
    assert view.need_help == [("cleo", 0, 6)]  # bert has exactly half


def test_what_could_not_be_graded_is_listed():
    assert overview.overview(grades()).problems == (("emil", "emil.ipynb", "not JSON"),)


def test_the_overview_of_a_table_that_was_read_is_the_same(tmp_path):
    path = written(tmp_path, grades())[0]
    assert overview.overview(results.read_csv(path)) == overview.overview(grades())


def test_the_text_says_it_all():
    lines = overview.text(overview.overview(grades())).splitlines()
    said = [" ".join(line.split()) for line in lines]
    assert said[1] == "01.1 1.5 of 2 3 of 4"
    assert said[2] == "01.2 1.8 of 4 1 of 4 2 × the sign is wrong everywhere"
    assert "below half of the points: cleo (0 of 6)" in lines
    assert "not graded: emil emil.ipynb: not JSON" in lines
    assert all(len(line) < 130 for line in lines)


def test_an_exercise_that_nobody_has_graded_yet_is_marked():
    text = overview.text(overview.overview([row(points=None, status="manual")]))
    assert re.search(r"^01\.1 +by hand$", text, re.M)


def bars(axes):
    """Label -> length of its bar."""
    places = {round(tick): label.get_text() for tick, label in
              zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}  # fmt: skip
    return {places[round(b.get_y() + b.get_height() / 2)]: b.get_width() for b in axes.patches}


def test_the_figure_has_a_bar_for_every_exercise_and_student():
    left, right = overview.figure(overview.overview(grades())).axes
    assert bars(left) == {"01.1": 0.75, "01.2": 1.75 / 4, "01.3": 1.0}
    assert bars(right) == {"cleo": 0.0, "bert": 0.5, "dora": 4 / 6, "anna": 1.0}
    pale, dark = right.patches[0].get_facecolor(), right.patches[1].get_facecolor()
    assert pale[0] > dark[0]
    for axes in (left, right):
        assert axes.get_xlim() == (0, 1) and axes.yaxis_inverted()


def test_students_whose_names_begin_alike_have_their_own_bars():
    names = ["a_very_long_folder_name_of_" + name for name in ("anna", "bert")]
    rows = [row(name, points=p) for name, p in zip(names, (1, 3), strict=True)]
    _, right = overview.figure(overview.overview(rows)).axes
    assert len({b.get_y() for b in right.patches}) == 2
    assert [b.get_width() for b in right.patches] == [1 / 3, 1.0]


@pytest.mark.parametrize("name", ["$\\frac$", "$x^$", "a$b$c{", SCRIPT, "%s{0}", "", "𝔘"])
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_any_name_may_be_drawn_and_none_is_markup(name):
    def made(student, message, title):
        rows = [row(student, message=message), row(student, "", None, None, "x", message, message)]
        view, moved = overview.overview(rows), overview.movement(rows, rows)
        overview.figure(view)
        return Elements(class_page.page(view, {"01.1": title}, {student: f"f/{student}"}, moved))

    found, plain = made(name, SCRIPT, SCRIPT), made("anna", "wrong", "a title")
    assert [tag for tag, *_ in found.tags] == [tag for tag, *_ in plain.tags]
    assert name in found.text and found.text.count(SCRIPT) >= 4
    assert ("a", ("href", f"f/{name}")) in found.tags


def words(page):
    return " ".join(Elements(page).text.split())


def class_of(rows, titles=None, pages=None, before=None):
    moved = overview.movement(before, rows) if before is not None else None
    return class_page.page(overview.overview(rows), titles or {}, pages or {}, moved)


def test_the_page_shows_how_the_points_are_spread():
    said = words(class_of(grades(), {"01.2": "The table"}))
    assert "5 students 59% of all points 1 below half 3 answers to grade by hand" in said
    assert "01.1 3 all points, 1 nothing handed in 1.5 of 2" in said.replace("  ", " ")
    assert "01.2 The table 1 all points, 2 some points, 1 no points 1.8 of 4" in said
    bars = [tag for tag in Elements(class_of(grades())).tags if tag[0] == "i"]
    assert [dict(tag[1:]) for tag in bars[2:5]] == [
        {"class": "right", "style": "width:25%"},
        {"class": "partly", "style": "width:50%"},
        {"class": "wrong", "style": "width:25%"},
    ]


def test_the_page_lists_diagnoses_by_frequency_and_where_to_read_again():
    said = words(class_of(grades()))
    most, then = said.index("2 × the sign is wrong everywhere"), said.index("1 × the order is")
    assert most < then and "read again: chapter 01" in said[most:then]


PLACE = places.Place("chapter 01, section 2 · <All> steps", "https://x.org/c/01.html#2-%C2%B7-All")


@pytest.mark.parametrize("address", [PLACE.address, ""])
def test_a_diagnosis_leads_to_the_section_that_says_it_right(address):
    where = {"01.2": places.Place(PLACE.text, address)}
    link = ("a", ("href", address))
    for page, missing in (
        (class_page.page(overview.overview(grades()), {}, {}, None, where), 2),  # two diagnoses
        (results.page("bert", [row("bert", "01.2", 1, 4)], None, where), 1),
        (results.page("bert", [row("bert", "01.2", 4, 4)], None, where), 0),
        (results.page("bert", [row("bert", "01.2", None, 4, "manual")], None, where), 0),
    ):
        assert words(page).count(f"read again: {PLACE.text}") == missing
        assert Elements(page).tags.count(link) == (missing if address else 0)


def test_a_place_is_a_section_and_its_address_on_the_site():
    exercise = Written("01.5", "t", 2, section="6 · At $t = 1$: ΠGDM")
    here = places.place(exercise, "https://x.org/c", "01_forward_process")
    assert here.text == "chapter 01, section 6 · At t = 1: ΠGDM"
    page, _, fragment = here.address.partition("#")
    assert page == "https://x.org/c/notebooks/01_forward_process.html"
    assert unquote(fragment) == "6-·-At-$t-=-1$:-ΠGDM" and fragment.isascii()
    assert places.place(exercise) == places.Place(here.text)
    assert places.place(Written("01.5", "t", 2)) is None
    found = places.places([exercise, Written("02.1", "t", 1)], "x", {"02": "y"})
    assert found == {"01.5": places.Place(here.text)}


def test_a_site_is_an_address_or_a_folder_that_was_built(tmp_path):
    assert places.site("https://x.org/c/") == "https://x.org/c"
    for text in (str(tmp_path), "x.org", "javascript:alert(1)", "ftp://x.org"):
        with pytest.raises(ValueError, match=r"begins with https://, or a folder .* got "):
            places.site(text)
    (tmp_path / "index.html").touch()
    (tmp_path / "notebooks").mkdir()
    assert places.site(str(tmp_path)) == tmp_path.as_uri()


def test_every_student_leads_to_the_feedback_page(tmp_path):
    rows = [*grades(), row('<b> "&', points=1)]
    out, _, folder = written(tmp_path, rows)
    pages = results.feedback_pages(out)
    assert set(pages) == {r.student for r in rows}
    assert all((tmp_path / link).is_file() for link in pages.values())
    links = [dict(tag[1:])["href"] for tag in Elements(class_of(rows, pages=pages)).tags
             if tag[0] == "a"]  # fmt: skip
    assert sorted(links) == sorted(pages.values())
    (folder / "notes.html").write_text("<title>zoe</title>")  # somebody's own
    assert "zoe" not in results.feedback_pages(out)


def test_how_a_class_moved_is_over_what_both_hand_ins_have():
    before = [row("anna", "01.1", 1, 2), row("bert", "01.1", 2, 2), row("gone", "01.1", 2, 2),
              row("anna", "01.2", 1, 4), row("anna", "01.3", None, 3)]  # fmt: skip
    moved = overview.movement(before, grades())
    assert moved.exercises == {"01.1": (0.75, 1.0), "01.2": (0.25, 1.0)}
    assert moved.students == {"anna": (2.0, 6.0), "bert": (2.0, 2.0)}
    said = words(class_of(grades(), before=before))
    assert "75% → 100%" in said and "anna" in said
    assert "9 of 9 +4" in said and "3 of 6 +0" in said and "0 of 6 –" in said


def test_pages_need_no_network_and_fit_a_phone(tmp_path):
    for page in (class_of(grades()), results.page("anna", ROWS, {"01.1": "One step"})):
        assert 'name="viewport" content="width=device-width' in page and "@media print" in page
        assert not re.search(r"https?:|<script|<link|url\(", page)
        assert not [tag for tag in Elements(page).tags if tag[0] in ("script", "link", "img")]


def test_an_empty_class_has_an_overview():
    view = overview.overview([])
    assert view == overview.Overview((), (), ())
    assert "below half of the points: nobody" in overview.text(view)
    assert "0 students" in words(class_page.page(view, {}, {}))
