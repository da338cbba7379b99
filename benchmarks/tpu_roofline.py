"""What a TPU's compiler wrote, counted; and how fast a chip could run it at best.

Nothing here needs a TPU or its compiler: it reads the text of a compiled program.
"""

import hashlib
import math
import re
from typing import NamedTuple


class Chip(NamedTuple):
    """What one device of a generation could do at best.

    Attributes:
      flops: products and sums of bfloat16 a second.
      hbm: bytes a second to and from its memory.
      ici: bytes a second that it sends to its neighbours, over all links together.
      memory: bytes of HBM.
      source: of the numbers.
    """

    flops: float
    hbm: float
    ici: float
    memory: float
    source: str


# Where sources differ the larger number stands here: a bound of the time may not be too high.
CHIPS = {
    "v5e": Chip(
        197e12,
        819e9,
        1600e9 / 8,
        16e9,
        "Google Cloud, TPU v5e: 197 TFLOP/s, 16 GB, 819 GB/s, 1600 Gbit/s "
        "(docs.cloud.google.com/tpu/docs/v5e)",
    ),
    "v6e": Chip(
        918e12,
        1640e9,
        3584e9 / 8,
        32e9,
        "Google Cloud, TPU v6e: 918 TFLOP/s, 32 GB, 1640 GB/s, 3584 Gbit/s "
        "(docs.cloud.google.com/tpu/docs/v6e)",
    ),
    # A chip has two cores, which JAX shows as two devices: a device has half of it. All four links
    # are counted for each, since it may be alone in using them.
    "v2": Chip(
        46e12 / 2,
        700e9 / 2,
        4 * 496e9 / 8,
        16e9 / 2,
        "Jouppi et al. 2020, A domain-specific supercomputer for training deep neural networks, "
        "Communications of the ACM 63(7): a chip of two cores has 46 TFLOP/s, 16 GB, 700 GB/s, "
        "four links of 496 Gbit/s",
    ),
}

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128}


def bits_of(dtype: str) -> int:
    """Bits of an entry, from HLO's name of its type, such as f32; 0 for what holds no numbers."""
    found = re.fullmatch(r"[a-z](\d+)(e\d\w*)?", dtype)
    return BITS.get(dtype, int(found[1]) if found else 0)


class Buffer(NamedTuple):
    """An array as the compiler laid it out.

    Attributes:
      plain: bytes of its entries.
      padded: bytes that it takes in memory, with its two smallest axes filled up to whole tiles.
      space: 0 in the device's large memory (HBM), 1 in the small one on the chip (VMEM).
      label: its type and shape.
    """

    plain: int
    padded: int
    space: int
    label: str


_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")


def buffers(shape: str) -> list[Buffer]:
    """The arrays of an HLO shape, which may be a tuple.

    >>> buffers("f32[300,200]{0,1:T(8,128)S(1)}")
    [Buffer(plain=240000, padded=307200, space=1, label='f32[300,200]')]

    The axis that changes fastest, here the one of 300, is filled up to 384 = 3·128, the next one
    to 200 = 25·8.
    """
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        bits = bits_of(dtype)
        if not bits:
            continue
        sizes = [int(size) for size in sizes.split(",") if size]
        order, _, rest = layout.partition(":")
        order = [int(axis) for axis in order.split(",") if axis]
        tile = re.search(r"T\(([\d,]+)\)", rest)
        space = re.search(r"S\((\d+)\)", rest)
        full = list(sizes)
        if tile and order:
            for axis, step in zip(order, reversed(tile[1].split(",")), strict=False):
                full[axis] = -(-full[axis] // int(step)) * int(step)
        plain, padded = (math.ceil(math.prod(x) * bits / 8) for x in (sizes, full))
        label = f"{dtype}[{','.join(map(str, sizes))}]"
        found.append(Buffer(plain, padded, int(space[1]) if space else 0, label))
    return found


class Instruction(NamedTuple):
    """A line of a program: its name, its shape, what it does and what it is given."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    line: str


_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of an HLO module by name, and the name of the one that it starts with."""
    found, current, entry = {}, None, ""
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _LINE.match(line)):
            name, shape, opcode, rest = match.groups()
            given = re.findall(r"%([\w.\-]+)", _until_closed(rest))
            current.append(Instruction(name, shape, opcode, tuple(given), line))
    return found, entry


def _until_closed(text: str) -> str:
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:i]
    return text


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(text: str) -> dict[str, dict[str, int]]:
    """How many collectives of each kind a program holds, and the bytes of what they return.

    An asynchronous one is counted where it starts. The bytes are those of the entries, not of the
    tiles, on one device. One inside a loop is counted once.

    Args:
      text: of a compiled module.

    Returns: ``{kind: {"count": …, "bytes": …}}`` for the kinds that occur.
    """
    found = {}
    parts, _ = computations(text)
    for instruction in (i for part in parts.values() for i in part):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        results = _results(instruction)
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += sum(result.plain for result in results)
    return found


def _second(shape: str) -> list[Buffer]:
    """The arrays of the second entry of a tuple; of a shape that is no tuple, its own."""
    if not shape.startswith("("):
        return buffers(shape)
    depth, parts = 0, [""]
    for letter in shape.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return buffers(parts[1])


# These move nothing: they name a buffer, or wait for what has begun before.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "add-dependency", "domain",
}  # fmt: skip


_SLICES = ("slice", "dynamic-slice")


def traffic(text: str, turns: int = 1) -> dict[str, int]:
    """The bytes that the instructions of a program read and write, by memory.

    What a fusion keeps to itself is not counted. Of an array that is only cut, the cuts are; one
    that is updated in place is counted whole.

    Args:
      text: of a compiled and scheduled module.
      turns: of its outer loops; a loop inside of a loop is counted as if it had one.

    Returns: ``hbm`` and ``vmem``, the padded bytes in each memory, and ``plain``, those of the
      entries alone in HBM.
    """
    parts, entry = computations(text)
    sums, todo, seen = {"hbm": 0, "vmem": 0, "plain": 0}, [(entry, 1)], set()
    while todo:
        name, times = todo.pop()
        if name in seen or name not in parts:
            continue
        seen.add(name)
        shapes = {i.name: i.shape for i in parts[name]}
        for i in parts[name]:
            if i.opcode in ("while", "call", "conditional"):
                inside = turns if i.opcode == "while" and name == entry else times
                called = re.findall(r"(?:body|to_apply|_computation)=%?([\w.\-]+)", i.line)
                todo += [(each, inside) for each in called]
            elif i.opcode not in _FREE and not i.opcode.endswith("-done"):
                for buffer in _results(i) + _read(i, shapes, parts):
                    sums["vmem" if buffer.space else "hbm"] += times * buffer.padded
                    sums["plain"] += 0 if buffer.space else times * buffer.plain
    return sums


def _read(i: Instruction, shapes: dict[str, str], parts: dict) -> list[Buffer]:
    """What an instruction reads: its operands, or the cuts that it takes of them."""
    if i.opcode in _SLICES or i.opcode == "slice-start":
        space = [b.space for b in buffers(shapes.get(i.operands[0], ""))][:1] or [0]
        return [b._replace(space=space[0]) for b in _results(i)]
    called = re.search(r"calls=%?([\w.\-]+)", i.line)
    inner = parts.get(called[1], []) if i.opcode == "fusion" and called else []
    cuts = _cuts(inner)
    found, counted = [], set()
    for number, operand in enumerate(i.operands):
        outer = buffers(shapes.get(operand, ""))
        if number in cuts and len(outer) == 1:
            found += [b._replace(space=outer[0].space) for b in cuts[number]]
        elif operand not in counted:
            counted.add(operand)
            found += outer
    return found


def _cuts(inner: list[Instruction]) -> dict[int, list[Buffer]]:
    """The arguments of a fused computation that are only cut, by number, with the cuts."""
    found = {}
    for parameter in inner:
        number = re.search(r"parameter\((\d+)\)", parameter.line)
        if parameter.opcode != "parameter" or not number:
            continue
        users = [i for i in inner if parameter.name in i.operands]
        if users and all(i.opcode in _SLICES and i.operands[0] == parameter.name for i in users):
            found[int(number[1])] = [b for i in users for b in buffers(i.shape)]
    return found


def _results(i: Instruction) -> list[Buffer]:
    """What an instruction writes. What starts something also names what is read, and a context."""
    if not i.opcode.endswith("-start") or i.opcode == "all-reduce-start":
        return buffers(i.shape)
    if i.opcode == "copy-start":
        return buffers(i.shape)[:1]  # (to, from, context)
    return _second(i.shape)  # (from, to, …)


def padding(text: str, largest: int = 5) -> list[dict]:
    """The arrays in HBM that lose the most bytes to whole tiles, summed over equal shapes.

    Args:
      text: of a compiled module.
      largest: how many shapes.

    Returns: for each its label, how many instructions return it, and the bytes of its entries
      and of its tiles, summed over these.
    """
    parts, entry = computations(text)
    lost = {}
    for i in parts[entry]:
        if i.opcode in _FREE - {"parameter"} or i.opcode.endswith("-done"):
            continue
        for buffer in _results(i):
            if buffer.space == 0:
                row = lost.setdefault(buffer.label, [0, 0, 0])
                row[0], row[1], row[2] = row[0] + 1, row[1] + buffer.plain, row[2] + buffer.padded
    rows = sorted(lost.items(), key=lambda item: item[1][1] - item[1][2])[:largest]
    return [
        {"array": label, "count": n, "bytes": plain, "padded": padded}
        for label, (n, plain, padded) in rows
        if padded > plain
    ]


def bound(
    chip: Chip, flops: float, hbm_bytes: float, moved: dict[str, dict[str, int]], devices: int
) -> dict:
    """The least time that one run of a program can take on a chip, and what limits it.

    Each of three numbers is a bound by itself: no chip computes, reads or sends faster than at its
    peak. The largest of them is the bound. A program that reaches it would have to do all three at
    the same time, each at its peak; a measured time is longer.

    Args:
      chip: from `CHIPS`.
      flops: of one device.
      hbm_bytes: that one device reads and writes.
      moved: from `collectives`.
      devices: that take part.

    Returns: ``seconds``, ``limit`` ("compute", "memory" or "network"), the three times, and
      ``intensity``, the operations per byte.

    Source: Williams, Waterman & Patterson 2009, Roofline (Communications of the ACM 52(4)).
    """
    sent = sum(_share(kind, devices) * row["bytes"] for kind, row in moved.items() if devices > 1)
    times = {
        "compute": flops / chip.flops,
        "memory": hbm_bytes / chip.hbm,
        "network": sent / chip.ici,
    }
    limit = max(times, key=times.get)
    return {
        "seconds": times[limit],
        "limit": limit,
        **{f"{name}_seconds": value for name, value in times.items()},
        "intensity": flops / hbm_bytes if hbm_bytes else math.inf,
    }


def _share(kind: str, n: int) -> float:
    """The bytes that each of n devices sends at least, in bytes that the collective returns.

    A reduction of B bytes over a ring is a scatter and a gather, and each sends (n − 1)/n of B.
    What a scatter returns is an n-th of what it reads.
    """
    return {
        "all-reduce": 2 * (n - 1) / n,
        "all-gather": (n - 1) / n,
        "reduce-scatter": n - 1.0,
        "all-to-all": (n - 1) / n,
        "collective-permute": 1.0,
    }[kind]


def key(program: str, topology: str, compiler: str) -> str:
    """Names a compilation: 16 hexadecimal digits of the hash of all that decides its result.

    Args:
      program: text of the lowered module (StableHLO).
      topology: which devices it is compiled for.
      compiler: its version.
    """
    whole = "\0".join((program, topology, compiler))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]
