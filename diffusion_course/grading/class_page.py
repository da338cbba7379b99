"""A class on one page: how the exercises went, what went wrong, who needs help, who moved."""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_course.grading.markup import bar, document, escape, read_again, table
from diffusion_course.grading.overview import Movement, Overview, Summary
from diffusion_course.grading.places import Place

_WORDS = {
    "right": "all points",
    "partly": "some points",
    "wrong": "no points",
    "untouched": "nothing handed in",
}
_MOST = 20  # diagnoses that are shown


def page(
    view: Overview,
    titles: Mapping[str, str],
    pages: Mapping[str, str],
    moved: Movement | None = None,
    places: Mapping[str, Place] | None = None,
) -> str:
    """The class as one HTML file, for a screen, a phone and paper. Needs no script and no network.

    Args:
      view: of the class.
      titles: exercise -> its title; one that is not there is shown by its number.
      pages: student -> the feedback page, a link relative to this one.
      moved: since an earlier hand-in, or None.
      places: exercise -> the section that says it right.

    Returns: the page. Everything from students is escaped.
    """
    parts = [
        _cards(view),
        "<h2>Exercises</h2>",
        _key(),
        _exercises(view, titles, moved),
        _diagnoses(view, titles, places or {}),
        "<h2>Students</h2>",
        '<p class="quiet">The weakest first. Marked: below half of the points.</p>',
        _students(view, pages, moved),
    ]
    if view.problems:
        lines = [[escape(cell) for cell in problem] for problem in view.problems]
        columns = {"student": "text", "file": "text", "why": "text"}
        parts += ["<h2>Not graded</h2>", table(columns, lines)]
    return document("The class", "\n".join(parts))


def _cards(view: Overview) -> str:
    counted = [(points, of) for _, points, of in view.students if of]
    points, possible = (sum(each) for each in zip(*counted, strict=True)) if counted else (0, 0)
    share = f"{points / possible:.0%}" if possible else "–"
    numbers = {
        "students": len(view.students),
        "of all points": share,
        "below half": len(view.need_help),
        "answers to grade by hand": view.waiting,
        "files not graded": len(view.problems),
    }
    cards = "".join(f'<div class="card"><b>{n}</b>{said}</div>' for said, n in numbers.items())
    return f'<div class="cards">{cards}</div>'


def _key() -> str:
    keys = "".join(f'<span class="key {name}"></span>{said}' for name, said in _WORDS.items())
    return f'<p class="quiet">{keys}</p>'


def _exercises(view: Overview, titles: Mapping[str, str], moved: Movement | None) -> str:
    columns = {"exercise": "text", "students": "", "mean": "number"}
    if moved:
        columns["before → now"] = "number"
    rows = []
    for each in view.exercises:
        name = f"<b>{escape(each.exercise)}</b> {escape(titles.get(each.exercise, ''))}"
        mean = "by hand" if each.mean is None else f"{each.mean:.1f} of {each.out_of:g}"
        row = [name, _counts(each), mean]
        if moved:
            row.append(_before(moved, each))
        rows.append(row)
    return table(columns, rows)


def _counts(each: Summary) -> str:
    if not each.graded:
        return '<span class="quiet">not graded yet</span>'
    counts = {name: getattr(each, name) for name in _WORDS}
    said = ", ".join(f"{n} {_WORDS[name]}" for name, n in counts.items() if n)
    shares = {name: n / each.graded for name, n in counts.items()}
    return f"{bar(shares, said)}<small>{said}</small>"


def _before(moved: Movement, each: Summary) -> str:
    if each.exercise not in moved.exercises:
        return "–"
    before, after = moved.exercises[each.exercise]
    return f"{before:.0%} → {after:.0%}"


def _diagnoses(view: Overview, titles: Mapping[str, str], places: Mapping[str, Place]) -> str:
    said = [
        (count, each.exercise, message)
        for each in view.exercises
        for message, count in each.diagnoses
    ]
    said.sort(key=lambda line: (-line[0], line[1]))
    if not said:
        return ""
    rows = [
        [
            f"{count} ×",
            escape(message),
            f"<b>{escape(exercise)}</b> {escape(titles.get(exercise, ''))}"
            f"{read_again(places.get(exercise) or Place(f'chapter {exercise[:2]}'))}",
        ]
        for count, exercise, message in said[:_MOST]
    ]
    more = f'<p class="quiet">and {len(said) - _MOST} more</p>' if len(said) > _MOST else ""
    columns = {"students": "number", "what went wrong": "text", "where": "text"}
    return f"<h2>What went wrong, the most frequent first</h2>\n{table(columns, rows)}{more}"


def _students(view: Overview, pages: Mapping[str, str], moved: Movement | None) -> str:
    columns = {"student": "text", "share": "", "points": "number"}
    if moved:
        columns["moved"] = "number"
    weak = set(view.need_help)
    rows = []
    for student in view.students:
        name, points, of = student
        shown = escape(name)
        if name in pages:
            shown = f'<a href="{escape(pages[name])}">{shown}</a>'
        if student in weak:
            shown = f'<div class="help">{shown}</div>'
        share = points / of if of else 0
        said = f"{share:.0%} of the points" if of else "nothing graded"
        row = [shown, bar({"right": min(max(share, 0), 1)}, said), f"{points:g} of {of:g}"]
        if moved:
            before, after = moved.students.get(name, (0, 0))
            row.append(f"{after - before:+g}" if name in moved.students else "–")
        rows.append(row)
    return table(columns, rows)
