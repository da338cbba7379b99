"""The benchmarks' results: their file, and tables as text or as Markdown."""

import argparse
import json
from pathlib import Path
from statistics import mean, median

import machine
from shapes import BATCH

RESULTS = Path(__file__).parent / "results"
TITLES = {"train": "training step", "forward": "forward pass", "ddim": "DDIM-50"}
PRODUCTS_NOTE = (
    "Peak: the best rate of any matrix product in this run. A share counts the operations of the "
    "direct computation; ours takes 3×3 convolutions by Winograd's algorithm, which needs fewer, "
    "so its share can exceed what a direct convolution reaches."
)


def options(description: str, file: str, quick: str) -> argparse.ArgumentParser:
    """A command line with what every benchmark offers: its file of results, tables, a trial."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--quick", action="store_true", help=quick)
    p.add_argument("--json", type=Path, default=RESULTS / file)
    p.add_argument("--markdown", action="store_true", help="print tables for docs/benchmarks.md")
    p.add_argument(
        "--show", action="store_true", help="print the tables of --json, measure nothing"
    )
    return p


def write(path: Path, result: dict) -> None:
    """Saves a result as JSON; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def table(header: list[str], rows: list[list[str]], markdown: bool) -> str:
    """Lines up columns, the first two to the left and the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def joined(line):
        pairs = enumerate(zip(line, widths, strict=True))
        cells = (c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in pairs)
        return f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()

    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    if not markdown:
        rule = ["-" * w for w in widths]
    return "\n".join([joined(header), joined(rule), *map(joined, rows)])


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def best_and_median(seconds: list[float]) -> str:
    return f"{duration(min(seconds))} ({duration(median(seconds))})"


def peak(result: dict) -> dict[str, float]:
    """Best GFLOP/s of a matrix product, by side."""
    best = {}
    for found in result["shapes"].values():
        for side, rounds in found["products"].items():
            best[side] = max(best.get(side, 0.0), *(rate for rates in rounds for rate in rates))
    return best


def compare(result: dict, markdown: bool) -> str:
    """All tables of `compare.py`."""
    rates = peak(result)
    parts = [
        "This library against the same network in PyTorch: best (median) of "
        f"{result['settings']['rounds']} interleaved rounds, batch {BATCH}.",
        _against_twin(result, max(rates.values()), markdown),
        f"{PRODUCTS_NOTE} Here: ours {rates['ours']:.0f}, PyTorch {rates['twin']:.0f} GFLOP/s.",
        "Starting, and memory after training.",
        _starting(result, markdown),
        "First samples: from the start of a process to its first DDIM-50 batch. Peak memory "
        "includes the libraries and, for ours, the compiler.",
        "The nearest models of diffusers, which have other parameters.",
        _against_diffusers(result, markdown),
        machine.disturbance([x["cores_of_others"] for x in result["shapes"].values()]),
        machine.line(result["machine"]),
    ]
    return "\n\n".join(parts)


def _against_twin(result: dict, peak_rate: float, markdown: bool) -> str:
    header = "network|measure|ours|PyTorch|ratio|images/s ours|PyTorch|of peak, ours|PyTorch"
    rows = []
    for shape, found in result["shapes"].items():
        gflop = found["size"]["twin"]["gflop"]
        for measure, title in TITLES.items():
            seconds = [found["seconds"][measure][side] for side in ("ours", "twin")]
            best = [min(values) for values in seconds]
            rows.append(
                [shape, title]
                + [best_and_median(values) for values in seconds]
                + [f"{best[1] / best[0]:.2f}×"]
                + [f"{BATCH / b:.0f}" for b in best]
                + [f"{gflop[measure] / b / peak_rate:.0%}" for b in best]
            )
    return table(header.split("|"), rows, markdown)


def _starting(result: dict, markdown: bool) -> str:
    header = ["network", "compile", "first samples: ours, cold", "ours, warm", "PyTorch"]
    header += ["peak MiB: ours", "PyTorch"]
    rows = []
    for shape, found in result["shapes"].items():
        first, memory = found["first_samples"], found["peak_mib"]
        rows.append(
            [shape, duration(found["compile_seconds"])]
            + [best_and_median(first[name]) for name in ("ours, cold", "ours, warm", "twin")]
            + [f"{memory[side]:.0f}" for side in ("ours", "twin")]
        )
    return table(header, rows, markdown)


def _against_diffusers(result: dict, markdown: bool) -> str:
    header = ["network", "side", "parameters", "GFLOP/pass", *TITLES.values()]
    header += ["first samples", "peak MiB"]
    rows = []
    for shape, found in result["shapes"].items():
        for side, title in {"ours": "ours", "diffusers": "diffusers"}.items():
            size = found["size"]["twin" if side == "ours" else side]
            first = found["first_samples"]["ours, warm" if side == "ours" else side]
            rows.append(
                [shape, title, f"{size['parameters']:,}", f"{size['gflop']['forward']:.2f}"]
                + [duration(min(found["seconds"][measure][side])) for measure in TITLES]
                + [duration(min(first)), f"{found['peak_mib'][side]:.0f}"]
            )
    return table(header, rows, markdown)


def quality_line(run: dict) -> str:
    """One run of `time_to_quality.py`, while it goes on."""
    return (
        f"{run['side']:<10} {run['steps']:>5} steps, seed {run['seed']}: {run['accuracy']:.1%} "
        f"after {run['seconds']:.1f} s ({run['start_up']:.1f} s to the first step)"
    )


def quality(result: dict, markdown: bool) -> str:
    """The tables of `time_to_quality.py`."""
    header = ["side", "first length that passes", "seconds", "to the first step", "training"]
    rows = []
    for side, runs in result["passed"].items():
        means = [mean(r[k] for r in runs) for k in ("seconds", "start_up", "training") if runs]
        length = f"{runs[0]['steps']} steps" if runs else "none"
        rows.append([side, length, *([f"{x:.1f}" for x in means] or ["–"] * 3)])
    parts = [
        f"Seconds until {result['enough']:.0%} of the samples are recognised, mean of "
        f"{result['settings']['seeds']} seeds.",
        table(header, rows, markdown),
        "All runs: recognised by seed, and mean seconds from the start of the process.",
        _quality_runs(result["runs"], markdown),
        machine.disturbance([result.get("cores_of_others")]),
        machine.line(result["machine"]),
    ]
    return "\n\n".join(parts)


def _quality_runs(runs: list[dict], markdown: bool) -> str:
    sides = list(dict.fromkeys(run["side"] for run in runs))
    rows = []
    for steps in sorted({run["steps"] for run in runs}):
        for side in sides:
            these = [run for run in runs if (run["steps"], run["side"]) == (steps, side)]
            if these:
                recognised = " ".join(f"{run['accuracy']:.1%}" for run in these)
                rows.append([side, f"{steps} steps", recognised])
                rows[-1] += [
                    f"{mean(run[k] for run in these):.1f}" for k in ("seconds", "start_up")
                ]
    return table(["side", "length", "recognised", "seconds", "to the first step"], rows, markdown)
