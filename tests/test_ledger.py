"""The ledger of claims: what it shows is what the notebooks print, and its verdicts follow."""

import re
import sys
from pathlib import Path

import pytest

COURSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(COURSE / "notebooks"))

import ledger  # noqa: E402 (notebooks/ledger.py)

ROW = {
    "claim": "B is less than a",
    "source": "somebody",
    "chapter": "01",
    "here": "a = {a}, b = {b}, {ratio:.1f} times as much",
    "prints": ["first {a} ± … last {b}% of {n}"],
    "derive": {"ratio": "a / b"},
    "rule": "b < a",
    "contrary": "b > 2 * a",
}


def printed(a="2.50", b="-1.0e-01"):
    return ["", f"first   {a} ± 0.1\nsecond 7 ± 1\nlast {b}% of 4,096\n", "third 5\n", "third 5\n"]


def test_the_page_is_what_the_executed_notebooks_say():
    assert (COURSE / ledger.PAGE).read_text("utf-8") == ledger.page(COURSE), (
        "python notebooks/ledger.py writes it"
    )


def test_every_source_is_one_that_a_chapter_cites():
    chapters = "".join(path.read_text("utf-8") for path in COURSE.glob("notebooks/source/*.py"))
    lines = [line for group in ledger.entries(COURSE).values() for line in group]
    assert len(lines) > 30
    cited = [line.link.removeprefix("https://arxiv.org/abs/") for line in lines if line.link]
    assert [link for link in cited if link not in chapters] == []


def test_every_verdict_occurs_and_no_number_stands_in_a_template():
    lines = [line for group in ledger.entries(COURSE).values() for line in group]
    assert {line.verdict for line in lines} == set(ledger.VERDICTS)
    # A decimal in the text of a line must come from a cell: by hand it could become untrue.
    by_hand = re.compile(r"here = .*[^=\w{.:][\d]+\.\d+")
    table = (COURSE / ledger.TABLE).read_text("utf-8")
    assert [line for line in table.splitlines() if by_hand.search(line)] == []


def test_numbers_are_read_as_they_are_printed():
    found = ledger.numbers(ROW, printed())
    assert (found["a"], found["b"], found["n"], found["ratio"]) == (2.5, -0.1, 4096, -25)
    assert ROW["here"].format(**found) == "a = 2.50, b = -1.0e-01, -25.0 times as much"


@pytest.mark.parametrize(
    ("b", "verdict"), [("2.4", "reproduced"), ("2.6", "not here"), ("5.1", "the opposite")]
)
def test_the_verdict_follows_from_the_numbers(b, verdict):
    assert ledger.verdict(ROW, ledger.numbers(ROW, printed(b=b))) == verdict


def test_a_rule_and_its_contrary_exclude_each_other():
    with pytest.raises(ValueError, match="rule and contrary cannot both hold"):
        ledger.verdict(ROW | {"contrary": "b < 2 * a"}, ledger.numbers(ROW, printed()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prints": ["fourth {a}"]}, "chapter 01: 'fourth {a}' must be what one cell prints; 0 do"),
        ({"prints": ["third {a}"]}, "'third {a}' must be what one cell prints; 2 do"),
        ({"prints": ["last"]}, "a pattern must hold a {name} for a number, got 'last'"),
        ({"derive": {"ratio": "a / c"}}, "'a / c' with .*: name 'c' is not defined"),
        ({"derive": {"ratio": "a / (a - a)"}}, "division by zero"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        ledger.numbers(ROW | change, printed())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "reproduced"}, r"unknown keys \['verdict'\], missing keys \[\]"),
        ({"rule": None}, r"unknown keys \[\], missing keys \['rule'\]"),
        ({"chapter": "99"}, "no chapter '99' is there"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(change, message):
    row = {name: value for name, value in (ROW | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        ledger._check(row, {"01": "01_forward_process"})


def test_a_claim_that_nothing_measures_says_why():
    row = {"claim": "c", "source": "s", "chapter": "01", "why": "no meter"}
    ledger._check(row, {"01": "01_forward_process"})
    entry = ledger._entry(row, [])
    assert (entry.here, entry.rule, entry.verdict) == ("no meter", "", "not measured")
