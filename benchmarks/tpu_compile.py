"""What the course's programs are on a TPU: compiled for it here, without one.

    make tpu                               in an environment of its own, .venv-tpu (1.3 GB)
    python benchmarks/tpu_compile.py       the table of what is recorded; needs no compiler
                                           (with --page it goes to docs/tpu.md)
    python benchmarks/tpu_compile.py --compile [--minutes 30] [--together 2] [WORD ...]

A compilation takes a minute or several on two cores. Each one is kept as soon as it is done, by the
hash of its program, its devices and its compiler, so a run may be stopped at any time: the next one
compiles what is missing or has changed, the most important first. Words choose programs: those that
have all of them in their names. TPU_TEXTS=FOLDER also keeps what the compiler wrote.

Nothing here runs on a TPU. What the compiler says of its own program (memory, operations, bytes) is
recorded, and from the bytes and the chip's peaks a least time for each step: a bound, not a
measurement.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path

import machine
import tpu_roofline as roofline

RESULTS = Path(__file__).parent / "results" / "tpu_compile.json"
PAGE = Path(__file__).parent.parent / "docs" / "tpu.md"
_BEGIN, _END = "<!-- the table -->", "<!-- its end -->"
LIMIT = 1500  # seconds for one program

# JAX's arguments for each, and the devices that it then has.
TOPOLOGIES = {
    "v5e-1": ({"topology_name": "v5e:1x1", "chips_per_host_bounds": [1, 1, 1]}, 1),
    "v6e-1": ({"topology_name": "v6e:1x1", "chips_per_host_bounds": [1, 1, 1]}, 1),
    "v5e-8": ({"topology_name": "v5e:2x4"}, 8),
    "v2-8": ({"topology_name": "v2:2x2"}, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only programs with all of these in their names")
    parser.add_argument("--compile", action="store_true", help="compile what is missing")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing new after these")
    parser.add_argument("--together", type=int, default=1, help="so many at a time")
    parser.add_argument("--page", action="store_true", help="put the table on docs/tpu.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(compiled(json.loads(args.one))))
    elif args.compile:
        compile_missing(args.words, args.minutes, args.together)
    if args.page:
        write_page(read())
    print("" if args.one else table(read()))


def read() -> dict:
    """What is recorded so far."""
    if RESULTS.exists():
        return json.loads(RESULTS.read_text(encoding="utf-8"))
    return {"programs": {}}


# One sampler of each family: a U-Net, a DiT, one in latents, an MLP, captions, and few steps.
_DRAWN = ("mnist", "mnist_dit", "mnist_latent", "toy2d", "shapes_text", "mnist_consistency",
          "mnist_meanflow")  # fmt: skip
_FIRST = ("mnist", "digits", "shapes", "mnist_dit", "mnist_latent")


def wanted() -> list[dict]:
    """The programs, the most important first; in bfloat16 those whose networks compute in it."""
    from tpu_programs import ACCELERATOR_BATCH, Program, in_bfloat16, recipes

    step, draw, half, full = "training step", "sampler", "bfloat16", "float32"
    own = {name: recipe.batch_size for name, recipe in recipes.RECIPES.items()}
    rest, large = [name for name in own if name not in _FIRST], ACCELERATOR_BATCH

    def steps(names, dtype, topology, batch=None):
        return [(name, step, dtype, batch or own[name], topology) for name in names]

    def drawn(dtype, topology):
        return [(name, draw, dtype, large, topology) for name in _DRAWN]

    chosen = [
        *steps(_FIRST[:1], half, "v5e-1"),
        *steps(_FIRST[:1], full, "v5e-1"),
        *steps(_FIRST, half, "v5e-1"),
        *steps(("mnist", "mnist_dit"), half, "v5e-8", large),
        *steps(("mnist", "mnist_dit"), half, "v5e-1", large),
        *steps(("toy2d",), full, "v5e-1"),
        *drawn(half, "v5e-1"),
        *steps(("mnist", "mnist_dit"), half, "v6e-1"),
        *steps(("toy2d",), full, "v5e-8", large),
        *steps(("toy2d",), full, "v2-8", large),
        *steps(rest, half, "v5e-1"),
        *steps(("mnist_latent",), half, "v5e-8", large),
        *steps(("mnist", "mnist_dit", "mnist_latent"), half, "v2-8", large),
        *drawn(half, "v6e-1"),
        *steps(own, half, "v6e-1"),
        # Exact products take the compiler several times as long.
        *drawn(full, "v5e-1"),
        *steps(own, full, "v5e-1"),
        *drawn(full, "v6e-1"),
        *steps(own, full, "v6e-1"),
    ]
    programs = [Program(*row) for row in dict.fromkeys(chosen)]
    return [
        p._asdict() for p in programs if p.dtype == full or in_bfloat16(recipes.RECIPES[p.recipe])
    ]


def name_of(program: dict) -> str:
    """The key of a program in the record."""
    return ", ".join(str(program[k]) for k in ("recipe", "what", "dtype", "batch", "topology"))


def compile_missing(words: list[str], minutes: float, together: int = 1) -> None:
    """Compiles what is missing or has changed, and records each program as soon as it is done."""
    start, record = time.monotonic(), read()
    programs = {name_of(program): program for program in wanted()}
    # What is no longer wanted goes.
    record["programs"] = {k: v for k, v in record["programs"].items() if k in programs}

    def one(name: str) -> tuple[str, dict | str]:
        known = record["programs"].get(name, {}).get("key")
        return name, attempt(programs[name] | {"known": known})

    chosen = [name for name in programs if all(word in name for word in words)]
    # The threads only wait: each program is compiled in a process of its own.
    with ThreadPoolExecutor(together) as pool:
        running = set()
        while chosen or running:
            if time.monotonic() - start > 60 * minutes:
                chosen = []
            while chosen and len(running) < together:
                running.add(pool.submit(one, chosen.pop(0)))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for name, row in (each.result() for each in done):
                keep(record, name, row, list(programs))


def keep(record: dict, name: str, row: dict | str, names: list[str]) -> None:
    """Says how a program did, and records it if it was compiled."""
    if row == "unchanged":
        print(f"{name}: unchanged", flush=True)
        return
    print(f"{name}: {row.get('failed') or str(row['compile_seconds']) + ' s'}", flush=True)
    record["programs"][name] = row
    write(record, names)


def write(record: dict, names: list[str]) -> None:
    missing = [name for name in names if name not in record["programs"]]
    ordered = {name: record["programs"][name] for name in names if name in record["programs"]}
    whole = {
        "machine": machine.describe(),
        "libtpu": compiler_version(),
        "chips": {name: chip._asdict() for name, chip in roofline.CHIPS.items()},
        "complete": not missing and not any("failed" in row for row in ordered.values()),
        "missing": missing,
        "programs": ordered,
    }
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    partial.replace(RESULTS)  # whole at all times, however this is stopped


def attempt(program: dict) -> dict | str:
    """One program in a process of its own: a compiler that crashes or hangs takes nothing along."""
    command = [sys.executable, __file__, "--one", json.dumps(program)]
    try:
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return _plain(program) | {"failed": f"took more than {LIMIT} s"}
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return _plain(program) | {"failed": "".join(last)[:300] or f"exit {done.returncode}"}
    try:
        return json.loads(done.stdout.splitlines()[0])
    except (IndexError, ValueError):  # others' programs are compiled beside this one
        return _plain(program) | {"failed": f"printed {done.stdout[:200]!r}"}


def environment() -> dict[str, str]:
    """Variables for the compiler: it must not look for a TPU, nor ask a network what it is."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        # There is no TPU that two processes could fight for.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _plain(program: dict) -> dict:
    return {k: v for k, v in program.items() if k != "known"}


def compiler_version() -> str:
    return version("libtpu")


def compiled(program: dict) -> dict | str:
    """Compiles a program and returns what the compiler says of it; "unchanged" for a known one."""
    import jax
    from jax.experimental import topologies
    from tpu_programs import Program, evaluations, lower

    from diffusion_course.models import attention

    known = program.pop("known", None)
    # As `setup` and a network have it where there is a TPU.
    jax.config.update("jax_default_matmul_precision", "highest")
    attention.computes_again = lambda: True
    arguments, count = TOPOLOGIES[program["topology"]]
    devices = topologies.get_topology_desc(platform="tpu", **arguments).devices
    if len(devices) != count:
        raise SystemExit(f"{program['topology']} should have {count} devices, has {len(devices)}")
    lowered = lower(Program(**program), devices)
    key = roofline.key(lowered.as_text(), program["topology"], compiler_version())
    if key == known:
        return "unchanged"
    begin, busy = time.perf_counter(), time.process_time()
    result = lowered.compile()
    # On a computer that others use as well the processor's time says more than the clock's.
    seconds = time.perf_counter() - begin, time.process_time() - busy
    turns = evaluations(program["recipe"]) if program["what"] == "sampler" else 1
    return program | {"key": key} | described(result, program, seconds, count, turns)


def described(result, program: dict, seconds: tuple, devices: int, turns: int) -> dict:
    """The numbers of a compiled program, all of one device."""
    text, cost, memory = result.as_text(), result.cost_analysis(), result.memory_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    if folder := os.environ.get("TPU_TEXTS"):
        name = name_of(program).replace(", ", "-").replace(" ", "_")
        (Path(folder) / f"{name}.txt").write_text(text, encoding="utf-8")
    chip = roofline.CHIPS[program["topology"].split("-")[0]]
    moved, bytes_of = roofline.collectives(text), roofline.traffic(text, turns)
    # XLA counts one turn of a loop, and what lies outside of it, which is little. Its bytes are of
    # both memories, but it knows what is updated in place: the smaller is the safer for a bound.
    hbm = min(bytes_of["hbm"], turns * cost["bytes accessed"])
    least = roofline.bound(chip, turns * cost["flops"], hbm, moved, devices)
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "compile_seconds": round(seconds[0], 1),
        "compile_processor_seconds": round(seconds[1], 1),
        "devices": devices,
        "turns": turns,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "program": memory.generated_code_size_in_bytes,
        },
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "hbm_bytes": hbm,
        "hbm_bytes_unpadded": min(bytes_of["plain"], hbm),
        "vmem_bytes": bytes_of["vmem"],
        "collectives": moved,
        "padding": roofline.padding(text),
        "bound": least,
        "images_per_second_at_most": program["batch"] / least["seconds"],
    }


_COLUMNS = (
    "program", "devices", "compiled in¹", "HBM²", "GFLOP", "MB³", "op/byte", "collectives⁴",
    "at least", "images/s⁵", "limit",
)  # fmt: skip


def table(record: dict) -> str:
    """What is recorded, as the table of docs/tpu.md; memory and bytes of one device."""
    lines = [
        "| " + " | ".join(_COLUMNS) + " |",
        "|---|---" + "|--:" * (len(_COLUMNS) - 3) + "|---|",
        *(_line(row) for row in record["programs"].values()),
    ]
    missing = len(record.get("missing", []))
    return "\n".join(lines) + f"\n\n{len(record['programs'])} recorded, {missing} missing"


def write_page(record: dict) -> None:
    """Puts the table on its page."""
    text = PAGE.read_text(encoding="utf-8")
    begin, end = text.index(_BEGIN) + len(_BEGIN), text.index(_END)
    PAGE.write_text(f"{text[:begin]}\n{table(record)}\n{text[end:]}", encoding="utf-8")


def _line(row: dict) -> str:
    name = f"{row['recipe']}, {row['what']}, {row['dtype']}, {row['batch']}"
    if "failed" in row:
        return f"| {name} | {row['topology']} | {row['failed']} |" + " |" * (len(_COLUMNS) - 3)
    bound = row["bound"]
    cells = [
        name,
        row["topology"],
        f"{row['compile_processor_seconds']:.0f} s",
        f"{row['memory']['peak'] / 1e6:.1f} MB",
        f"{row['turns'] * row['flops'] / 1e9:.2f}",
        f"{row['hbm_bytes'] / 1e6:.2f}",
        f"{bound['intensity']:.0f}",
        ", ".join(f"{n['count']} {kind}" for kind, n in row["collectives"].items()),
        f"{1e6 * bound['seconds']:.1f} µs",
        f"{row['images_per_second_at_most']:,.0f}",
        bound["limit"],
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
