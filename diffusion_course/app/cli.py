"""The command ``diffusion-course``: open the course, check a machine, run, train, grade.

Exit codes: 0 it worked, 1 it ran and failed (a cell raised, the course would not run here),
2 the command was given something it cannot use; then one line says what to do.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from diffusion_course import __version__, files, paths
from diffusion_course.app import runner


class _Parser(argparse.ArgumentParser):
    """A mistake is one line with the remedy, not the whole usage."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 65535, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _from_zero(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line, as data."""
    top = _Parser(
        prog="diffusion-course",
        description="A course on diffusion models: notebooks and the library behind them.",
        epilog="Start with: diffusion-course lab",
    )
    top.add_argument("--version", action="version", version=f"diffusion-course {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, function, text: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=epilog)
        sub.set_defaults(function=function)
        return sub

    def course_option(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--course",
            metavar="FOLDER",
            help="the folder with notebooks/ in it (default: where the package was installed "
            "from, else the current folder)",
        )

    sub = command("lab", lab, "Open JupyterLab on the course's first page.")
    sub.add_argument("--port", type=_port, default=8888, help="default: 8888, or the next free one")
    sub.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    course_option(sub)

    sub = command(
        "doctor",
        doctor,
        "Check whether the course runs on this machine.",
        "Each line is ok, a note, or a PROBLEM with its remedy. Exit code 1 if there is a problem.",
    )
    sub.add_argument(
        "--workshop",
        action="store_true",
        help="check a room's machine: accelerator, speed, Colab's versions, sliders, data",
    )

    sub = command(
        "run",
        run,
        "Run a chapter from top to bottom without a browser.",
        "Example: diffusion-course run 01. The chapter's file is not changed.",
    )
    sub.add_argument("chapter", help="its number (01) or the start of its file name")
    sub.add_argument(
        "--timeout", type=_positive, default=600, metavar="S", help="seconds a cell may take (600)"
    )
    sub.add_argument("--out", metavar="FILE", help="write the executed notebook here")
    course_option(sub)

    sub = command(
        "train",
        train,
        "Train a model of the course by its recorded recipe.",
        "An unknown NAME lists the recipes.",
    )
    sub.add_argument("name", metavar="NAME", help="a recipe")
    sub.add_argument("--out", metavar="DIR", help="folder for the weights (runs)")
    sub.add_argument("--steps", type=_positive, metavar="N", help="instead of the recipe's own")
    sub.add_argument(
        "--resume", action="store_true", help="go on from the state of an interrupted run in DIR"
    )
    among = sub.add_argument_group(
        "several processes, on one machine or on several",
        "Start the same command once for each, with another --index. Each finds the data itself; "
        "number 0 writes the weights.",
    )
    among.add_argument("--address", metavar="HOST:PORT", help="where number 0 listens")
    among.add_argument("--processes", type=_positive, metavar="N", help="how many there are")
    among.add_argument("--index", type=_from_zero, metavar="I", help="of this one, from 0")

    sub = command(
        "notebooks",
        notebooks,
        "Copy all chapters and exercises into a folder, to work in.",
        "Then: cd FOLDER && diffusion-course lab. Files with your answers are not replaced.",
    )
    sub.add_argument("folder", metavar="FOLDER", help="is made if need be")
    sub.add_argument("--force", action="store_true", help="replace files that differ")
    course_option(sub)

    sub = command(
        "pack",
        pack,
        "Pack chapters for a workshop: wheel, notebooks, exercises, one notebook for Colab.",
        "Example: diffusion-course pack 03 07 --out workshop.zip. It holds no solutions.",
    )
    sub.add_argument("chapters", metavar="CHAPTER", nargs="+", help="as for run")
    sub.add_argument("--out", metavar="FILE", default="workshop.zip", help="(workshop.zip)")
    sub.add_argument("--force", action="store_true", help="replace FILE")
    course_option(sub)

    sub = command(
        "slides",
        slides,
        "Make slides of chapters, from their questions, predictions, figures and recaps.",
        "Example: diffusion-course slides build/slides 06 07. Open FOLDER/06_ddim.html: the arrow "
        "keys move on. No cell runs, and no network is needed.",
    )
    sub.add_argument("folder", metavar="FOLDER", help="is made if need be; decks are replaced")
    sub.add_argument("chapters", metavar="CHAPTER", nargs="*", help="as for run; all without any")
    course_option(sub)

    sub = command(
        "assign",
        assign,
        "Write the students' notebooks, exercises/, from the masters in solutions/.",
    )
    course_option(sub)

    sub = command(
        "grade",
        grade,
        "Grade a folder of submissions, each in a sandbox.",
        "One notebook per student, or one folder per student. Writes OUT, a .json twin and a "
        "folder of feedback pages; run again, an interrupted run goes on where it was.",
    )
    _submissions_options(
        sub, "grades.csv", 60, "seconds for an exercise; a notebook has four times as many (60)"
    )
    sub.add_argument("--chapter", type=_chapter, metavar="NN", help="grade this chapter only")
    _site_option(sub)

    sub = command(
        "leaderboard",
        leaderboard,
        "Play a folder of samplers against the course's own, at 1, 2, 4 and 8 evaluations.",
        "Each notebook defines sample(denoise, noise, evaluations, seed). Writes OUT and an .html "
        "page beside it.",
    )
    _submissions_options(sub, "leaderboard.csv", 240, "seconds of a submission (240)")
    sub.add_argument("--images", type=_images, default=1000, metavar="N", help="per budget (1000)")
    sub.add_argument(
        "--no-baselines", action="store_true", help="leave the course's own samplers out"
    )

    sub = command("report", report, "Sum a class up: exercises, diagnoses, who needs help.")
    sub.add_argument("grades", metavar="grades.csv", help="what grade wrote")
    sub.add_argument("--before", metavar="earlier.csv", help="show how the class has moved since")
    sub.add_argument(
        "--answers",
        metavar="SUBMISSIONS",
        help="write a page of the written answers beside their rubrics; points go into "
        "grades_by_hand.csv, which grade and report read",
    )
    _site_option(sub)
    return top


def _site_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--site",
        metavar="ADDRESS",
        default=os.environ.get("DIFFUSION_COURSE_SITE", ""),
        help="the course's site, or the folder that make site has built: with it the pages link to "
        "the section that says it right (DIFFUSION_COURSE_SITE)",
    )


def _images(text: str) -> int:
    if not text.isdecimal() or not 100 <= int(text) <= 5000:
        raise argparse.ArgumentTypeError(f"must be a number from 100 to 5000, got {text!r}")
    return int(text)


def _submissions_options(sub, out: str, timeout: int, about_timeout: str) -> None:
    """What every command takes that runs a folder of unknown notebooks."""
    sub.add_argument("submissions", metavar="SUBMISSIONS", help="the folder")
    sub.add_argument("--out", default=out, metavar="FILE", help=f"default: {out}")
    sub.add_argument("--seed", metavar="SECRET", help="what everything is drawn from (random)")
    sub.add_argument("--jobs", type=_positive, default=2, metavar="N", help="at once (2)")
    sub.add_argument("--timeout", type=_positive, default=timeout, metavar="S", help=about_timeout)
    sub.add_argument(
        "--allow-unsandboxed",
        action="store_true",
        help="where there is no sandbox, run the students' code with your own rights; it can then "
        "import the right answers",
    )


def _chapter(text: str) -> str:
    if not text.isdecimal() or len(text) > 2:
        raise argparse.ArgumentTypeError(f"must be a chapter's number, such as 03, got {text!r}")
    return f"{int(text):02d}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = parser().parse_args(argv)
    code = _answer(arguments)
    if code and arguments.command == "train":
        from diffusion_course.training import distributed

        distributed.leave(code)
    return code


def _answer(arguments: argparse.Namespace) -> int:
    """Runs a command; a mistake in how it was given, or in files, becomes a line and a code."""
    try:
        return arguments.function(arguments)
    except runner.Mistake as mistake:
        print(f"diffusion-course {arguments.command}: {mistake}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is not ours: its text says which
        print(f"diffusion-course {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def lab(arguments: argparse.Namespace) -> int:
    """Start JupyterLab in the foreground; returns its exit code."""
    course = runner.course_folder(arguments.course)
    _need("jupyterlab", 'pip install "diffusion-course[lab]"')
    first = runner.FIRST_PAGE
    if not (course / "notebooks" / first).exists():
        first = runner.chapters(course)[0].name
    server = subprocess.Popen(
        lab_command(course, first, arguments.port, browser=not arguments.no_browser),
        # In an environment of its own the kernel must come from there, not from the user's folder.
        env={"JUPYTER_PREFER_ENV_PATH": "1", **os.environ},
    )
    # Ctrl-C is JupyterLab's: it asks, and ends its kernels.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return server.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def lab_command(course: Path, first: str, port: int, browser: bool) -> list[str]:
    """The command that serves the course, with no look-ups of news or updates."""
    command = [sys.executable, "-m", "jupyterlab"]
    command += [f"--ServerApp.root_dir={course}", f"--ServerApp.port={port}"]
    command += [f"--LabApp.default_url=/lab/tree/notebooks/{first}", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # a container's only user
        command.append("--allow-root")
    return command


def doctor(arguments: argparse.Namespace) -> int:
    """Print the table of checks; 1 if the course would not run."""
    from diffusion_course.app import doctor, workshop

    checks = doctor.examine()
    if arguments.workshop:
        checks += workshop.examine()
    print(doctor.table(checks))
    return 1 if any(check.status == "PROBLEM" for check in checks) else 0


def run(arguments: argparse.Namespace) -> int:
    """Execute a chapter; 1 if a cell fails."""
    course = runner.course_folder(arguments.course)
    path = runner.find_chapter(course, arguments.chapter)
    out = Path(arguments.out) if arguments.out else None
    if out is not None and (out.is_dir() or not out.resolve().parent.is_dir()):
        raise runner.Mistake(f"--out {out}: give a file name in a folder that exists")
    _need("nbclient", 'pip install "diffusion-course[lab]"')
    import nbformat
    from tqdm import tqdm

    notebook = runner.read(path)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    with tqdm(total=cells, desc=path.stem, unit="cell", dynamic_ncols=True) as bar:
        try:
            times = runner.execute(
                notebook,
                path.parent,
                timeout=arguments.timeout,
                before=lambda cell: bar.set_postfix_str(cell.title),
                after=lambda cell: bar.update(),
            )
        except runner.CellFailed as failure:
            bar.close()
            print(f"{path.name}: {failure}", file=sys.stderr)
            return 1
        finally:
            if out is not None:
                files.write(out, nbformat.writes(notebook) + "\n")
    print(runner.summary(times))
    return 0


def train(arguments: argparse.Namespace) -> int:
    """Train by a recipe of `diffusion_course.training.recipes`."""
    from diffusion_course.training import recipes

    names = list(recipes.names())
    if arguments.name not in names:
        raise runner.Mistake(
            f"{arguments.name!r} is not a recipe; choose one of: {', '.join(names)}"
        )
    out = Path(arguments.out or "runs")
    try:  # now, and not after the training
        if not arguments.index:  # the others of several processes write nothing
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise runner.Mistake(
            f"--out {out} cannot be made ({error.strerror}); name a folder that can be written"
        ) from None
    import jax

    from diffusion_course.data import DataUnavailableError
    from diffusion_course.notebook.setup import setup
    from diffusion_course.training.resume import ResumeError

    _join(arguments, recipes)
    try:
        setup(quiet=True, exact=False)  # the compile cache; weights may be rounded as they learn
    except ValueError as error:  # of DIFFUSION_COURSE_PROFILE
        raise runner.Mistake(str(error)) from None

    try:
        path = recipes.train(
            arguments.name, out=out, steps=arguments.steps, resume=arguments.resume
        )
        if jax.process_index() == 0:
            print(f"wrote {path}")
    except (DataUnavailableError, ResumeError) as error:  # their messages say what to do
        raise runner.Mistake(" ".join(str(error).split())) from None
    except OSError as error:
        raise OSError(f"{error}; a state that was saved is kept, go on with --resume") from None
    return 0


def _join(arguments: argparse.Namespace, recipes) -> None:
    """Joins the other processes of a run, if there are some."""
    from diffusion_course.training import distributed

    try:
        distributed.connect(arguments.address, arguments.processes, arguments.index)
        if arguments.processes:
            distributed.own_rows(recipes.RECIPES[arguments.name].batch_size)
    except ValueError as error:
        raise runner.Mistake(str(error)) from None


def notebooks(arguments: argparse.Namespace) -> int:
    """Copy the chapters and exercises, from the source tree or from what the wheel brought."""
    from diffusion_course.app import pack

    folder = _folder(arguments.folder)
    written = pack.unpack(pack.course_folder(arguments.course), folder, arguments.force)
    print(f"wrote {len(written)} files to {folder}; go on with: diffusion-course lab, in there")
    return 0


def _folder(name: str) -> Path:
    """A folder that exists or can be made. Raises: runner.Mistake if something else is there."""
    folder = Path(name)
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise runner.Mistake(f"{there} is not a folder; name a folder, or one that can be made")
    return folder


def pack(arguments: argparse.Namespace) -> int:
    """Write a workshop's archive."""
    from diffusion_course.app import pack

    out = Path(arguments.out)
    if out.suffix != ".zip" or not out.resolve().parent.is_dir():
        raise runner.Mistake(f"--out {out}: give a name that ends in .zip in a folder that exists")
    if out.exists() and not arguments.force:
        raise runner.Mistake(f"{out} is there already; name another file, or give --force")
    content = pack.pack(pack.course_folder(arguments.course), arguments.chapters)
    files.write(out, content)
    print(f"wrote {out}, {len(content) / 1e6:.0f} MB; its README.md says how to start")
    return 0


def slides(arguments: argparse.Namespace) -> int:
    """Write a deck of slides for each chapter."""
    _need("nbconvert", 'pip install "diffusion-course[lab]"')
    from diffusion_course.app import pack, slides

    course = pack.course_folder(arguments.course)
    for path in slides.write(course, _folder(arguments.folder), arguments.chapters):
        print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
    return 0


def assign(arguments: argparse.Namespace) -> int:
    """Write exercises/ from solutions/."""
    from diffusion_course.grading.assign import write_exercises

    course = runner.course_folder(arguments.course)
    for path in write_exercises(course):
        print(f"wrote {path.relative_to(course)}")
    return 0


def grade(arguments: argparse.Namespace) -> int:
    """Grade a folder of submissions and write the results; 1 if something cannot be graded."""
    from diffusion_course.grading import answers, journal, sandbox

    folder, out = _folder_and_out(arguments)
    places = _places(arguments.site)  # a mistake in it is told at once
    if arguments.chapter not in (None, *answers.chapters()):
        known = ", ".join(answers.chapters())
        raise runner.Mistake(f"--chapter {arguments.chapter}: choose one of {known}")
    _apart(folder, out)
    limits = sandbox.Limits(seconds=arguments.timeout, notebook=4 * arguments.timeout)
    try:
        walled = _sandbox(limits, arguments.allow_unsandboxed)
        with journal.Journal(out.with_suffix(".unfinished")) as notes:
            return _grade(arguments, folder, out, places, notes, limits, walled)
    except journal.Unusable as error:
        raise runner.Mistake(str(error)) from None
    except (sandbox.NotStarted, sandbox.CannotGrade) as error:
        print(f"diffusion-course grade: {error}; nobody was given a 0 for it", file=sys.stderr)
        return 1


def _grade(arguments, folder: Path, out: Path, places, notes, limits, walled: bool) -> int:
    from tqdm import tqdm

    from diffusion_course.grading import batch, by_hand, results

    entered = _read(by_hand.read, by_hand.entries_file(out))  # a mistake in it is told at once
    if notes.unread:
        print(f"{notes.path}: {notes.unread} lines cannot be read; what they held is graded again")
    settings = batch.Settings(
        seed=arguments.seed or notes.seed or secrets.token_hex(8),
        chapter=arguments.chapter,
        limits=limits,
        walled=walled,
        jobs=arguments.jobs,
    )
    if arguments.seed is None:
        print(f"inputs are drawn from --seed {settings.seed}", flush=True)
    with tqdm(desc="grading", unit="notebook", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        graded = batch.grade(folder, notes, settings, progress)
    entries = by_hand.extended(entered, graded.rows)
    rows = by_hand.merged(graded.rows, entries)
    written = [*results.write(out, rows, settings.seed, _titles(), places)]
    if entries != entered:
        by_hand.write(by_hand.entries_file(out), entries)
        written.append(by_hand.entries_file(out))
    for path in written:
        print(f"wrote {path}")
    if graded.failed:
        names = ", ".join(graded.failed)
        print(f"diffusion-course grade: not graded, see their rows: {names}", file=sys.stderr)
    else:
        notes.remove()
    if graded.submissions:
        each = graded.seconds / graded.submissions
        print(f"{graded.submissions} notebooks in {graded.seconds:.0f} s, {each:.1f} s each")
    return 1 if graded.failed else 0


def _folder_and_out(arguments) -> tuple[Path, Path]:
    """The folder of submissions and the file of results, which can be read and written."""
    folder, out = Path(arguments.submissions), Path(arguments.out)
    if not folder.is_dir():
        raise runner.Mistake(f"{folder} is not a folder; name the one with the submissions")
    if out.suffix != ".csv" or not out.resolve().parent.is_dir():
        raise runner.Mistake(f"--out {out}: give a name that ends in .csv in a folder that exists")
    return folder, out


def _apart(folder: Path, out: Path) -> None:
    """Results lie outside the submissions, and a submission can read neither."""
    from diffusion_course.grading import results, walls

    inside, pages = folder.resolve(), results.feedback_folder(out).resolve()
    if out.resolve().is_relative_to(inside) or inside.is_relative_to(pages):
        raise runner.Mistake(
            f"--out {out} lies with the submissions, and whoever hands in could write there; "
            "name a file in another folder"
        )
    for path in (folder, out.absolute().parent):
        if (place := walls.shows(path)) is not None:
            raise runner.Mistake(
                f"{path} lies in {place}, which every submission can read; use another folder"
            )
    try:
        results.require(out)
    except ValueError as error:
        raise runner.Mistake(str(error)) from None


def _sandbox(limits, allow_without: bool) -> bool:
    """Whether there is a sandbox; without one the user must have said that it is all right.

    Raises: sandbox.CannotGrade if the program that runs submissions does not start.
    """
    from diffusion_course.grading import sandbox

    if not hasattr(os, "fork"):
        raise runner.Mistake("grading needs Linux or macOS; on Windows use WSL or Colab")
    try:
        for note in sandbox.require(limits):
            print(f"note: {note}", file=sys.stderr, flush=True)
        return True
    except sandbox.NoSandbox as reason:
        if not allow_without:
            raise runner.Mistake(
                f"{reason}. Submissions are unknown code: grade them on Linux with bubblewrap, "
                "or give --allow-unsandboxed to run them with your own rights"
            ) from None
        print(
            f"WARNING: {reason}. Every submission runs with YOUR rights: it can read, change and "
            "delete your files and use your network. THE RIGHT ANSWERS CAN BE IMPORTED: a "
            "submission that does so gets full points. Read the submissions before you trust "
            "these grades.",
            file=sys.stderr,
            flush=True,
        )
    sandbox.require(limits, walled=False)
    return False


def leaderboard(arguments: argparse.Namespace) -> int:
    """Play every submission of a folder and write the board; 1 if it cannot be played."""
    from diffusion_course.grading import sandbox

    folder, out = _folder_and_out(arguments)
    _apart(folder, out)
    limits = sandbox.Limits(seconds=arguments.timeout, notebook=arguments.timeout)
    try:
        walled = _sandbox(limits, arguments.allow_unsandboxed)
        return _leaderboard(arguments, folder, out, limits, walled)
    except (sandbox.NotStarted, sandbox.CannotGrade) as error:
        print(f"diffusion-course leaderboard: {error}; nothing was written", file=sys.stderr)
        return 1


_SECRET = 16  # characters, as many as a drawn one has


def _leaderboard(arguments, folder: Path, out: Path, limits, walled: bool) -> int:
    from tqdm import tqdm

    from diffusion_course.leaderboard import baselines, board, game, scores

    seed = arguments.seed if arguments.seed is not None else secrets.token_hex(8)
    if len(seed) < _SECRET:
        raise runner.Mistake(
            f"--seed must have at least {_SECRET} characters, got {len(seed)}: a submission can "
            "try short ones until it knows every rotation; without --seed a secret one is drawn"
        )
    if arguments.seed is None:
        print(f"games are drawn from --seed {seed}", flush=True)
    dealer, judge = game.Dealer(game.digits(), seed, arguments.images), scores.judge()
    with tqdm(desc="submissions", unit="notebook", dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rows = board.submissions(folder, dealer, judge, limits, walled, arguments.jobs, progress)
    if not arguments.no_baselines:
        for name in tqdm(baselines.BASELINES, desc="baselines", dynamic_ncols=True):
            rows += board.baselines(dealer, judge, [name])
    if not rows:
        raise runner.Mistake(f"{folder} holds no notebook, and --no-baselines leaves nothing else")
    for path in board.write(out, rows, arguments.images):
        print(f"wrote {path}")
    return 0


def _titles() -> dict[str, str]:
    """Exercise -> its title."""
    from diffusion_course.grading import answers

    return {each.id: each.title for group in answers.chapters().values() for each in group}


def _places(given: str) -> dict:
    """Exercise -> the section to read again, with links to the site if one is given."""
    from diffusion_course.app import pack, table
    from diffusion_course.grading import answers, places

    site, files = "", {}
    if given:
        try:
            site = places.site(given)
        except ValueError as error:
            raise runner.Mistake(f"--site {error}") from None
        known, _ = table.read(pack.course_folder())
        files = {chapter.number: name for name, chapter in known.items()}
    every = [each for group in answers.chapters().values() for each in group]
    return places.places(every, site, files)


def _read(reader, path: Path) -> list:
    """A table that a user has named or edited. Raises: runner.Mistake that says what is wrong."""
    try:
        return reader(path)
    except OSError as error:
        raise runner.Mistake(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise runner.Mistake(str(error)) from None


def report(arguments: argparse.Namespace) -> int:
    """Print a class's overview, and write it as PNG and HTML beside the grades."""
    from diffusion_course.grading import by_hand, class_page, overview, results

    path, before = Path(arguments.grades), arguments.before
    places = _places(arguments.site)
    entries = _read(by_hand.read, by_hand.entries_file(path))
    rows = by_hand.merged(_read(results.read_csv, path), entries)
    view = overview.overview(rows)
    moved = overview.movement(_read(results.read_csv, Path(before)), rows) if before else None
    if arguments.answers:
        _written_answers(Path(arguments.answers), path, entries, rows)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # any name, on any terminal
    print(overview.text(view))
    picture, page = path.with_suffix(".png"), path.with_suffix(".html")
    figure = overview.figure(view)
    files.write(picture, lambda file: figure.savefig(file, dpi=100, format="png"))
    results.refresh(path, rows, _titles(), places)
    made = class_page.page(view, _titles(), results.feedback_pages(path), moved, places)
    files.write(page, made.encode("utf-8", "backslashreplace"))
    print(f"wrote {picture} and {page}")
    return 0


def _written_answers(folder: Path, out: Path, entries: list, rows: list) -> None:
    """Writes the page of written answers, and lines for those that nobody has entered."""
    from diffusion_course.grading import answers, by_hand, submissions

    if not folder.is_dir():
        raise runner.Mistake(f"--answers {folder} is not a folder; name the one with submissions")
    found, _ = submissions.collect(folder, answers.chapters())
    course = paths.source_tree()
    known = by_hand.rubrics(course), by_hand.examples(course)
    asked = by_hand.questions(found, answers.chapters(), *known)
    all_entries = by_hand.extended(entries, rows)
    if all_entries != entries:
        by_hand.write(by_hand.entries_file(out), all_entries)
    page = by_hand.page(asked, all_entries, by_hand.entries_file(out).name)
    files.write(by_hand.page_file(out), page.encode("utf-8", "backslashreplace"))
    print(f"wrote {by_hand.page_file(out)}; enter points in {by_hand.entries_file(out)}")


def _need(module: str, remedy: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise runner.Mistake(f"{module} is not installed; run: {remedy}")
