"""What it costs to grade a notebook: the programs that XLA compiles, and processor seconds.

    python benchmarks/exercise_programs.py [CHAPTER …]      such as 02 05, or all

Each exercise is graded in a process of its own. There NumPy computes the small operations, and
XLA compiles a program for each of the others, which takes 40 to 60 ms and more. This runs the
master's solutions as the batch grader runs a student's, without walls, counts what each exercise
compiles, and judges what it returns.

`start` is a notebook's share for Python, JAX and what is imported, once for all its exercises.
Prints a table and writes results/exercise_programs.json; the rows of other chapters stay.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
COURSE = HERE.parent
RESULTS = HERE / "results" / "exercise_programs.json"
SEED = "programs"
COMPILED = "/jax/core/compile/backend_compile_duration"


def inside() -> None:
    """The program in the sandbox, whose outcomes also say what they cost."""
    from diffusion_course.grading import student

    run = student._run

    def counted(job: dict) -> dict:
        import jax

        seconds = []

        def heard(event: str, took: float, **_) -> None:
            if event == COMPILED:
                seconds.append(took)

        jax.monitoring.register_event_duration_secs_listener(heard)
        outcome = run(job)
        took = {"xla": sum(seconds), "seconds": time.process_time()}  # since the fork
        return {"outcome": outcome, "programs": len(seconds)} | took

    student._run = counted
    student.main()


def measure(chapter: str) -> dict:
    """The costs of a chapter's exercises. Raises: ValueError if the solutions are refused."""
    from diffusion_course.grading import answers, batch, sandbox, walls
    from diffusion_course.grading.exercise import Exercise
    from diffusion_course.grading.submissions import collect

    found, _ = collect(COURSE / "solutions", answers.chapters(), chapter)
    (submission,) = (s for s in found if s.path.endswith(".ipynb"))
    group = [e for e in answers.chapters()[chapter] if isinstance(e, Exercise)]
    keys = {e.id: batch._key_of(e.id, SEED) for e in group}
    jobs = {e.id: batch._job(submission, e, keys[e.id].cases) for e in group}
    limits = sandbox.Limits(seconds=900)  # others may use the computer
    lines = "".join(json.dumps(job.message(limits, alone=False)) + "\n" for job in jobs.values())
    here, there = os.pipe()
    before = _children()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "exercise_programs.py"), "--inside", str(there)],
            stdin=subprocess.PIPE, pass_fds=[there], env=walls.environment(folder), cwd=folder,
        )  # fmt: skip
        os.close(there)
        process.stdin.write(lines.encode())
        process.stdin.close()
        with open(here, "rb") as pipe:
            said = [json.loads(line) for line in pipe]
        process.wait()
    total = _children() - before
    exercises = {}
    for message in said:
        if "outcome" not in message:
            continue
        name, found = message["job"], message["outcome"]
        if "outcome" not in found:
            raise ValueError(f"{name}: the solution was stopped: {found}")
        outcome = sandbox._outcomes(found["outcome"], jobs[name], limits)
        _, status, text = batch._judge(keys[name], outcome)
        if status != "right":
            raise ValueError(f"{name}: the solution is {status}: {text}")
        exercises[name] = {
            "programs": found["programs"],
            "xla": round(found["xla"], 2),
            "seconds": round(found["seconds"], 2),
        }
    if missing := set(jobs) - set(exercises):
        raise ValueError(f"the program ended before {', '.join(sorted(missing))}")
    spent = sum(row["seconds"] for row in exercises.values())
    return {"start": round(total - spent, 2), "exercises": exercises}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    import machine

    from diffusion_course.grading import answers

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args()
    chapters = list(answers.chapters())
    if unknown := set(options.chapters) - set(chapters):
        parser.error(f"chapters are {', '.join(chapters)}, got {', '.join(sorted(unknown))}")
    figures = {}
    if options.out.exists():
        figures = json.loads(options.out.read_text(encoding="utf-8"))["chapters"]
    described = machine.describe()
    for chapter in options.chapters or chapters:
        figures[chapter] = found = measure(chapter)
        rows = found["exercises"]
        for name, row in rows.items():
            print(f"{name}  {row['programs']:4d} programs  {row['xla']:5.1f} s in XLA  "
                  f"{row['seconds']:5.1f} s", flush=True)  # fmt: skip
        programs = sum(row["programs"] for row in rows.values())
        seconds = found["start"] + sum(row["seconds"] for row in rows.values())
        print(f"{chapter}    {programs:4d} programs, {seconds:.1f} s, of them {found['start']:.1f} "
              "s to start", flush=True)  # fmt: skip
    text = {"machine": described, "chapters": {name: figures[name] for name in sorted(figures)}}
    options.out.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        del sys.argv[1]  # what remains is the program's own
        inside()
    else:
        sys.exit(main())
