"""The leaderboard of a folder: every submission and every baseline, as a CSV file and one page."""

from __future__ import annotations

import base64
import csv
import io
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_course import files
from diffusion_course.grading import sandbox
from diffusion_course.grading import text as texts
from diffusion_course.grading.markup import document, escape, table
from diffusion_course.grading.submissions import Notebook, read_all
from diffusion_course.leaderboard import match
from diffusion_course.leaderboard.baselines import BASELINES
from diffusion_course.leaderboard.game import BUDGETS, Dealer
from diffusion_course.leaderboard.match import Played
from diffusion_course.leaderboard.scores import Judge, Score

MEASURES = ("frechet", "coverage", "accuracy", "copies")
_SHOWN = 10  # images of a row on the page


@dataclass(frozen=True)
class Row:
    """One submission or baseline at one budget.

    Attributes:
      name: whose, or the baseline's.
      chapter: of a baseline; empty for a submission.
      evaluations: allowed for each image.
      used: of the image that had most.
      status: "played", or why there is no score.
      message: for the author.
      score: None unless it was played.
      pixels: the first images, or None.
    """

    name: str
    chapter: str
    evaluations: int
    used: int
    status: str
    message: str = ""
    score: Score | None = None
    pixels: np.ndarray | None = field(default=None, repr=False, compare=False)


def rows_of(
    name: str, chapter: str, played: dict[int, Played], dealer: Dealer, judge: Judge
) -> list[Row]:
    """The rows of one player, with the scores of its images."""
    found = []
    for budget, p in played.items():
        row = (name, chapter, budget, p.used, p.status, p.message)
        if p.pixels is None:
            found.append(Row(*row))
        else:
            score = judge.score(p.pixels, dealer.deal(budget).labels)
            # One image of each class, in the order of the classes.
            first = np.unique(dealer.deal(budget).labels, return_index=True)[1][:_SHOWN]
            found.append(Row(*row, score, p.pixels[first]))
    return found


def baselines(dealer: Dealer, judge: Judge, names: Iterable[str] = tuple(BASELINES)) -> list[Row]:
    """The rows of baselines, played in this process: they are ours."""
    rows = []
    for name in names:
        chapter, sample = BASELINES[name]
        rows += rows_of(name, chapter, match.here(sample, dealer), dealer, judge)
    return rows


def submissions(
    folder: Path, dealer: Dealer, judge: Judge, limits: sandbox.Limits, walled: bool = True,
    jobs: int = 2, progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:  # fmt: skip
    """The rows of every notebook below a folder; of several of one student, the last attempt.

    Args:
      folder: of the submissions, as `grade` takes it.
      dealer: of the games.
      judge: of the images.
      limits: of each submission.
      walled: whether they run in the sandbox.
      jobs: how many at once.
      progress: called with how many are done and how many there are.

    Raises: OSError if the folder cannot be opened; sandbox.NotStarted.
    """
    notebooks, refused, _ = read_all(folder)
    best: dict[str, Notebook] = {}
    for n in notebooks:
        before = best.get(n.student)
        if before is None or (before.attempt, before.path) < (n.attempt, n.path):
            best[n.student] = n
    for budget in BUDGETS:
        dealer.deal(budget)  # before there are threads
    first = dealer.game(1)
    first.denoise(first.deal.noise, 1.0)  # compiled before anybody's time runs
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for student in sorted(best):
        waiting.put(student)
    workers = min(jobs, len(best))
    for _ in range(workers):
        args = (waiting, done, best, dealer, judge, limits, walled)
        threading.Thread(target=_work, args=args, daemon=True).start()
    rows, again = [], []
    for number in range(1, len(best) + 1):
        student, found = done.get()
        if isinstance(found, BaseException):
            raise found
        if workers > 1 and any(row.status in ("timeout", "stopped") for row in found):
            again.append(student)  # it may have been another's victim
        else:
            rows += found
        progress(number - len(again), len(best))
    for student in again:
        rows += _played(best[student], dealer, judge, limits, walled)
        progress(len(best) - len(again) + again.index(student) + 1, len(best))
    for r in refused:
        if r.student not in best:
            rows += [Row(r.student, "", b, 0, r.status, r.message) for b in BUDGETS]
    return rows


def _work(waiting, done, best, dealer, judge, limits, walled) -> None:
    while True:
        try:
            student = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            done.put((student, _played(best[student], dealer, judge, limits, walled)))
        except BaseException as error:  # for whoever waits
            done.put((student, error))


def _played(notebook: Notebook, dealer, judge, limits, walled) -> list[Row]:
    cells = [cell.source for cell in notebook.cells if cell.kind == "code"]
    played = match.in_sandbox(cells, dealer, limits, walled)
    return rows_of(notebook.student, "", played, dealer, judge)


def ranking(rows: Iterable[Row], evaluations: int) -> list[Row]:
    """The rows of one budget, the smallest Fréchet distance first; those without a score last."""
    mine = [row for row in rows if row.evaluations == evaluations]
    return sorted(
        mine,
        key=lambda r: (
            r.score is None,
            r.score.frechet.value if r.score else 0.0,
            r.chapter,
            r.name,
        ),
    )


def tied(row: Row, best: Row) -> bool:
    """Whether the Fréchet intervals of two rows overlap: then the order says little."""
    return row.score.frechet.low <= best.score.frechet.high


# --------------------------------------------------------------------------- what is written

_COLUMNS = ("name", "chapter", "evaluations", "used", "status")
_ENDS = ("value", "low", "high")


def to_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, budget by budget, the best first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    named = [f"{m}_{end}".removesuffix("_value") for m in MEASURES for end in _ENDS]
    writer.writerow([*_COLUMNS, *named, "message"])
    for row in _in_order(rows):
        cells = [texts.cell(row.name), row.chapter, row.evaluations, row.used, row.status]
        for measure in MEASURES:
            interval = getattr(row.score, measure) if row.score else ("", "", "")
            cells += [f"{end:.4f}" if row.score else "" for end in interval]
        writer.writerow([*cells, texts.cell(row.message)])
    return out.getvalue()


def _in_order(rows: Sequence[Row]) -> list[Row]:
    budgets = sorted({row.evaluations for row in rows})
    return [row for budget in budgets for row in ranking(rows, budget)]


_NAMED = 80  # characters of a name on the page
# The name stays where it is while the rest scrolls, or nobody would know whose numbers they are.
# It clips what stands on top of letters: accents in a pile would reach into other rows.
_STYLE = """<style>
body { max-width: 72rem }
img { image-rendering: pixelated; height: 24px; vertical-align: middle }
td.text { min-width: 8rem; max-width: 15rem; overflow-wrap: anywhere }
td.text, th.text { position: sticky; left: 0; background: Canvas }
.name { overflow: hidden }
@media (max-width: 40rem) { td.text { max-width: 8rem } }
</style>"""


def page(rows: Sequence[Row], images: int) -> str:
    """One HTML page: a table for each budget. Everything from a submission is escaped.

    Args:
      rows: of all players.
      images: how many each of them drew with each budget.
    """
    parts = [
        _STYLE,
        f"<p>{images} images with each budget, the same noise and classes for everybody. Sorted by "
        "the Fréchet distance, which is lower for better images. ± is half a 95 % interval; = "
        "means that the interval overlaps the first row's. Grey names are the course's baselines."
        "</p>",
    ]
    numbers = dict.fromkeys(("coverage", "accuracy", "copies", "used"), "number")
    columns = {"": "number", "name": "text", "Fréchet": "number", "images": ""} | numbers
    if not rows:
        parts.append("<p>Nobody has played yet.</p>")
    for budget in sorted({row.evaluations for row in rows}):
        plural = "" if budget == 1 else "s"
        order = ranking(rows, budget)
        lines = [_table_row(n, row, order[0]) for n, row in enumerate(order, start=1)]
        parts += [f"<h2>{budget} evaluation{plural} per image</h2>", table(columns, lines)]
    return document("Leaderboard", "\n".join(parts))


def _table_row(number: int, row: Row, best: Row) -> list[str]:
    """The cells of a row; who has no score reads the reason below the name."""
    name = texts.line(row.name) or "(no name)"
    name = escape(name if len(name) <= _NAMED else name[: _NAMED - 1] + "…")
    if row.chapter:
        name = f'<span class="quiet">{name} <small>chapter {escape(row.chapter)}</small></span>'
    name = f'<div class="name">{name}</div>'
    if row.score is None:
        said = f"{escape(row.status)}: {escape(texts.line(row.message))}"
        return ["", f"{name}<small>{said}</small>", "", "", "", "", "", f"{row.used}"]
    same = " =" if number > 1 and tied(row, best) else ""
    s = row.score
    half = (s.frechet.high - s.frechet.low) / 2
    shares = [f"{100 * getattr(s, m).value:.1f} %" for m in MEASURES[1:]]
    shown = [f"{s.frechet.value:.2f} ± {half:.2f}", _picture(row), *shares, f"{row.used}"]
    return [f"{number}{same}", name, *shown]


def _picture(row: Row) -> str:
    """The row's images as one small PNG inside the page."""
    import matplotlib.image

    strip = np.concatenate(list(row.pixels[..., 0]), axis=1)
    content = io.BytesIO()
    matplotlib.image.imsave(content, strip, vmin=-1, vmax=1, cmap="gray", format="png")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="one image of each class" src="data:image/png;base64,{data}">'


def write(out: Path, rows: Sequence[Row], images: int) -> tuple[Path, Path]:
    """Writes OUT and the page beside it.

    Args:
      out: path of the CSV file.
      rows: of all players.
      images: of each game.

    Returns: both paths.
    """
    beside = out.with_suffix(".html")
    contents = {out: to_csv(rows), beside: page(rows, images)}
    files.write_together(
        {path: text.encode("utf-8", "backslashreplace") for path, text in contents.items()}
    )
    return out, beside
