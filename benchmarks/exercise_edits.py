"""All slips of one place in a function's text: what `exercise_mutants` tries.

An edit replaces one piece of the text, so that everything else, names and layout, stays as it is.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Functions that are taken for each other.
SIBLINGS = (
    *(("exp", "expm1"), ("log", "log1p"), ("mean", "sum"), ("zeros", "ones"), ("min", "max")),
    *(("zeros_like", "ones_like"), ("maximum", "minimum"), ("normal", "uniform"), ("sin", "cos")),
    *(("cumsum", "cumprod"), ("var", "std"), ("concatenate", "stack"), ("round", "int")),
    *(("softmax", "log_softmax"), ("cdf", "sf"), ("argmin", "argmax"), ("arccos", "arcsin")),
    *(("sqrt", "square"), ("tanh", "arctan"), ("any", "all"), ("prod", "sum"), ("sum", "mean")),
)
# What someone writes who doesn't know the function that is safe.
UNSTABLE = {
    "expm1": "jnp.exp({0}) - 1",
    "log1p": "jnp.log(1 + {0})",
    "softmax": "jnp.exp({0}) / jnp.exp({0}).sum({axis}, keepdims=True)",
    "logaddexp": "jnp.log(jnp.exp({0}) + jnp.exp({1}))",
    "tanh": "(jnp.exp({0}) - jnp.exp(-({0}))) / (jnp.exp({0}) + jnp.exp(-({0})))",
}
OPERATORS = {
    ast.Add: ("+", "-", "*"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Pow: ("**", "*"),
    ast.MatMult: ("@", "*"),
    ast.Mod: ("%", "//"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
COMPARISONS = {
    ast.Lt: ("<", "<=", ">"),
    ast.LtE: ("<=", "<", ">="),
    ast.Gt: (">", ">=", "<"),
    ast.GtE: (">=", ">", "<="),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
SYMMETRIC = ("min", "max", "minimum", "maximum", "logaddexp")
STABILISER = "1e-3"  # far above an exercise's tolerance, where values are of size 1
MARGIN = "1.001"  # an answer that is wrong by a thousandth is wrong


@dataclass(frozen=True)
class Edit:
    """Replaces the bytes from `start` to `end` of a source by `text`; `kind` says what slip it is.

    Attributes:
      label: the changed lines, ``old -> new``; what the list of equivalents calls it.
    """

    kind: str
    start: int
    end: int
    text: str
    label: str
    source: str


class Text:
    """A source and its tree, whose nodes know their place in it."""

    def __init__(self, source: str):
        self.source, self.bytes, self.tree = source, source.encode(), ast.parse(source)
        lengths = [len(line) for line in self.bytes.splitlines(keepends=True)]
        self._starts = [0, *itertools.accumulate(lengths)]

    def span(self, node: ast.AST) -> tuple[int, int]:
        first = self._starts[node.lineno - 1] + node.col_offset
        return first, self._starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.AST) -> str:
        first, last = self.span(node)
        return self.bytes[first:last].decode()

    def lines(self) -> str:
        """The source as labels quote it: in one line, without comments."""
        return _one_line(self.bytes)

    def edit(self, kind: str, start: int, end: int, text: str) -> Edit:
        new = self.bytes[:start] + text.encode() + self.bytes[end:]
        first = self.bytes.rfind(b"\n", 0, start) + 1
        stop = self.bytes.find(b"\n", end)
        stop = len(self.bytes) if stop < 0 else stop
        old = _one_line(self.bytes[first:stop])
        changed = _one_line(new[first : stop + len(new) - len(self.bytes)])
        return Edit(kind, start, end, text, f"{old} -> {changed}", new.decode())


def _one_line(text: bytes) -> str:
    """Without comments, which no edit changes."""
    return " ".join(" ".join(line.split("  #")[0].split()) for line in text.decode().split("\n"))


def _bracketed(text: str) -> str:
    """The expression, safe to stand anywhere; what isn't one stays as it is."""
    try:
        body = ast.parse(f"({text}\n)", mode="eval").body
    except SyntaxError:  # such as *axes
        return text
    loose = (ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.IfExp, ast.Lambda, ast.Tuple)
    return f"({text})" if isinstance(body, loose) else text


def all_edits(source: str) -> list[Edit]:
    """Every slip in this source but those that need its inputs; each result once."""
    text = Text(source)
    return _different(source, itertools.chain(_everywhere(text), _of_statements(text)))


def _different(source: str, edits: Iterable[Edit]) -> list[Edit]:
    """Without edits that change nothing, make no program, or make the same one as another."""
    seen = {ast.dump(ast.parse(source))}
    kept = []
    for edit in edits:
        try:
            tree = ast.dump(ast.parse(edit.source))
        except SyntaxError:
            continue
        if tree not in seen:
            seen.add(tree)
            kept.append(edit)
    return kept


# --------------------------------------------------------------------------------- expressions


def _everywhere(text: Text) -> Iterator[Edit]:
    names = _names(text.tree)
    strings = sorted(
        {n.value for n in ast.walk(text.tree) if isinstance(n, ast.Constant) and _is_word(n.value)}
    )
    skipped, counted, squared = _not_mutated(text.tree), _counted(text.tree), _squared(text.tree)
    for node in ast.walk(text.tree):
        if id(node) in skipped or not isinstance(node, ast.expr):
            continue
        for kind, new in _of_expression(text, node, names, strings):
            if not (kind in ("sign", "power") and id(node) in counted) and not (
                kind == "sign" and id(node) in squared
            ):
                yield text.edit(kind, *text.span(node), _bracketed(new))
        if isinstance(node, ast.BinOp):
            edits = _other_operators(text, node)
            yield from (e for e in edits if not (e.kind == "swapped" and id(node) in squared))
        elif isinstance(node, ast.Compare):
            yield from _other_comparisons(text, node)
        elif isinstance(node, ast.Call):
            yield from _other_calls(text, node)
        elif isinstance(node, ast.Slice):
            yield from _other_slices(text, node)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _not_mutated(tree: ast.AST) -> set[int]:
    """Docstrings, what is assigned to, and the 1 of a counted axis, −1, where −2 is as good."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "reshape":
            minus = (n for a in node.args for n in ast.walk(a) if isinstance(n, ast.UnaryOp))
            skipped |= {id(n.operand) for n in minus}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(getattr(node, "ctx", None), ast.Store):
            skipped.add(id(node))
    return skipped


def _counted(tree: ast.AST) -> set[int]:
    """What only its shape is asked of: its values can't be seen."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in ("len", "zeros_like", "ones_like"):
            found |= {id(argument) for argument in node.args}
        elif isinstance(node, ast.Attribute) and node.attr in ("shape", "ndim", "size"):
            found.add(id(node.value))
    return found


def _squared(tree: ast.AST) -> set[int]:
    """What is raised to the power of 2: its sign can't be seen."""
    return {
        id(node.left)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Pow)
        and getattr(node.right, "value", None) == 2
    }


def _names(tree: ast.AST) -> list[str]:
    """Arguments and variables."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found[node.arg] = None
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id != "_":
            found[node.id] = None
    return list(found)


def _of_expression(
    text: Text, node: ast.expr, names: Sequence[str], strings: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Kinds and texts that may stand in the place of an expression."""
    if isinstance(node, ast.Constant):
        yield from (("constant", new) for new in _other_constants(node.value, strings))
    elif isinstance(node, ast.Attribute) and node.attr == "pi":
        yield from (("constant", new) for new in ("3.14", f"2 * {text.of(node)}"))
    elif isinstance(node, ast.Name) and node.id in names:
        yield from (("name", other) for other in names if other != node.id)
        yield from (("sign", f"-{node.id}"), ("power", f"{node.id} ** 2"))
        yield from (("power", f"{node.id} ** 0.5"),)
    elif isinstance(node, ast.UnaryOp):
        yield "sign", text.of(node.operand)
    elif isinstance(node, ast.BinOp):
        left, right = text.of(node.left), text.of(node.right)
        yield from (("dropped", left), ("dropped", right))
        if isinstance(node.op, ast.Sub):
            yield "dropped", f"-{_bracketed(right)}"
        if isinstance(node.op, ast.Div):
            yield "dropped", f"1 / {_bracketed(right)}"
            yield "stabiliser", f"{left} / ({right} + {STABILISER})"
        if isinstance(node.op, ast.Pow):
            yield "power", f"abs({left})"
    elif isinstance(node, ast.IfExp):
        yield from (("branch", text.of(node.body)), ("branch", text.of(node.orelse)))
    elif isinstance(node, ast.BoolOp):
        yield from (("dropped", text.of(value)) for value in node.values)
    elif isinstance(node, ast.Call):
        yield from _instead_of_call(text, node)
    elif isinstance(node, ast.Subscript):
        yield from _instead_of_subscript(text, node)
    elif isinstance(node, ast.Tuple | ast.List):
        yield from (("swapped", new) for new in _swapped(text, node.elts, node))
    elif isinstance(node, ast.Dict):
        yield from (("swapped", new) for new in _swapped(text, node.values, node))


def _other_constants(value: Any, strings: Sequence[str]) -> list[str]:
    if isinstance(value, bool):
        return [str(not value)]
    if isinstance(value, str):
        return [repr(other) for other in strings if other != value]
    if not isinstance(value, int | float):
        return []
    others = [0, 1, value + 1, value - 1, 2 * value, value / 2, -value]
    if 0 < abs(value) < 0.01:
        others += [value * 10, value / 10, value * 1.5]
    if isinstance(value, int) and abs(value) > 5:
        others += [value * 1.01]
    return [repr(other) for other in dict.fromkeys(others) if other != value]


def _swapped(text: Text, parts: Sequence[ast.AST], whole: ast.AST) -> Iterator[str]:
    """The text of `whole` with each two of its parts exchanged."""
    start, end = text.span(whole)
    for one, two in itertools.combinations(parts, 2):
        if isinstance(one, ast.Starred) or isinstance(two, ast.Starred):
            continue
        (a, b), (c, d) = text.span(one), text.span(two)
        pieces = (text.bytes[start:a], text.bytes[c:d], text.bytes[b:c], text.bytes[a:b])
        yield b"".join((*pieces, text.bytes[d:end])).decode()


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _instead_of_call(text: Text, node: ast.Call) -> Iterator[tuple[str, str]]:
    yield from (("call dropped", text.of(argument)) for argument in node.args)
    if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name):
        yield "call dropped", text.of(node.func.value)
    name = _called(node)
    if name not in SYMMETRIC:
        yield from (("swapped", new) for new in _swapped(text, node.args, node))
    if name in UNSTABLE:
        axis = next((text.of(k.value) for k in node.keywords if k.arg == "axis"), "-1")
        yield "unstable", UNSTABLE[name].format(*map(text.of, node.args), axis=axis)
    if name in ("sqrt", "log"):
        argument = text.of(node.args[0])
        function = text.of(node.func)
        yield "stabiliser", f"{function}({argument} + {STABILISER})"
        yield "clip", f"{function}(jnp.maximum({argument}, {STABILISER}))"
    if name in ("zip", "enumerate", "range"):
        yield from (("loop", f"list({text.of(node)}){cut}") for cut in ("[1:]", "[:-1]", "[::-1]"))


def _instead_of_subscript(text: Text, node: ast.Subscript) -> Iterator[tuple[str, str]]:
    yield "index dropped", text.of(node.value)
    if isinstance(node.slice, ast.Tuple):
        yield from (("index", new) for new in _swapped(text, node.slice.elts, node))
    elif not isinstance(node.slice, ast.Slice | ast.Constant):
        value, index = text.of(node.value), text.of(node.slice)
        yield from (("index", f"{value}[{index} {step}]") for step in ("+ 1", "- 1"))


def _other_operators(text: Text, node: ast.BinOp) -> Iterator[Edit]:
    start, end = text.span(node)
    left, right = text.of(node.left), text.of(node.right)
    for operator in OPERATORS[type(node.op)][1:]:
        new = f"{_bracketed(left)} {operator} {_bracketed(right)}"
        yield text.edit("operator", start, end, _bracketed(new))
    if isinstance(node.op, ast.Sub | ast.Div | ast.Pow | ast.FloorDiv | ast.MatMult):
        operator = OPERATORS[type(node.op)][0]
        new = f"{_bracketed(right)} {operator} {_bracketed(left)}"
        yield text.edit("swapped", start, end, _bracketed(new))


def _other_comparisons(text: Text, node: ast.Compare) -> Iterator[Edit]:
    start, end = text.span(node)
    if len(node.ops) != 1 or type(node.ops[0]) not in COMPARISONS:
        return
    left, right = text.of(node.left), text.of(node.comparators[0])
    for operator in COMPARISONS[type(node.ops[0])][1:]:
        yield text.edit("comparison", start, end, f"({left} {operator} {right})")


def _other_calls(text: Text, node: ast.Call) -> Iterator[Edit]:
    """Another function, and keywords left out."""
    name = _called(node)
    _, end = text.span(node.func)
    for pair in SIBLINGS:
        if name in pair:
            other = pair[1 - pair.index(name)]
            yield text.edit("sibling", end - len(name), end, other)
    start, end = text.span(node)
    for keyword in node.keywords:
        a, b = text.span(keyword)
        before = text.bytes[start:a].rstrip().removesuffix(b",")
        new = before + text.bytes[b:end]
        yield text.edit("keyword dropped", start, end, new.decode())


def _other_slices(text: Text, node: ast.Slice) -> Iterator[Edit]:
    """A bound left out or added."""
    start, end = text.span(node)
    lower = text.of(node.lower) if node.lower else ""
    upper = text.of(node.upper) if node.upper else ""
    step = f":{text.of(node.step)}" if node.step else ""
    others = (f":{upper}", f"{lower}:", f"{lower or 1}:{upper}", f"{lower}:{upper or -1}", "::-1")
    for other in others:
        yield text.edit("slice", start, end, other if other == "::-1" else other + step)


# ---------------------------------------------------------------------------------- statements


def _of_statements(text: Text) -> Iterator[Edit]:
    for node in ast.walk(text.tree):
        start, end = text.span(node) if isinstance(node, ast.stmt) else (0, 0)
        if isinstance(node, ast.Assign | ast.AugAssign) or (
            isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        ):
            yield text.edit("statement removed", start, end, "pass")
        elif isinstance(node, ast.If):
            first, last = text.span(node.test)
            for value in ("True", "False"):
                yield text.edit("branch", first, last, value)
        elif isinstance(node, ast.Return) and node.value is not None:
            yield from _other_results(text, node.value)
        elif isinstance(node, ast.For):
            body_end = text.span(node.body[-1])[1]
            indent = " " * node.body[-1].col_offset
            yield text.edit("loop", body_end, body_end, f"\n{indent}break")


def _other_results(text: Text, value: ast.expr) -> Iterator[Edit]:
    start, end = text.span(value)
    result = text.of(value)
    if isinstance(value, ast.Tuple):
        return
    for new in (f"-({result})", f"({result}) * {MARGIN}"):
        yield text.edit("margin" if MARGIN in new else "sign", start, end, new)
    for bounds in ("-1, 1", "0, None", "None, 0"):
        yield text.edit("clip", start, end, f"jnp.clip({result}, {bounds})")
    yield text.edit("sign", start, end, f"jnp.abs({result})")


# --------------------------------------------------------------------- what the inputs happen to be


NOTE = "_note_"


@dataclass(frozen=True)
class Noted:
    """A place whose value depends on the inputs' shapes, and the source that notes it."""

    start: int
    end: int
    source: str


def places(source: str) -> list[Noted]:
    """The shapes, lengths and counted axes of a source, each with a source that reports its value.

    That source calls ``_note_(value)``, which must return it.
    """
    text = Text(source)
    found = []
    for node in ast.walk(text.tree):
        shape = getattr(node, "attr", "") in ("shape", "ndim", "size")
        entry = isinstance(node, ast.Subscript) and getattr(node.value, "attr", "") == "shape"
        length = isinstance(node, ast.Call) and _called(node) == "len"
        if shape or entry or length:
            start, end = text.span(node)
            new = text.edit("", start, end, f"{NOTE}({text.of(node)})").source
            found.append(Noted(start, end, new))
        if isinstance(node, ast.Call) and _called(node) == "reshape":
            found += _counted_axes(text, node)
    return found


def _counted_axes(text: Text, node: ast.Call) -> Iterator[Noted]:
    """The −1 of a reshape: what it stands for is noted after the call."""
    method = not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "jnp"))
    wanted = node.args if method else node.args[1:]
    if len(wanted) == 1 and isinstance(wanted[0], ast.Tuple):
        wanted = wanted[0].elts
    for number, argument in enumerate(wanted):
        if text.of(argument) != "-1":
            continue
        # Starred arguments count more than once, so look from the end there.
        starred = any(isinstance(other, ast.Starred) for other in wanted[:number])
        axis = number - len(wanted) if starred else number
        a, b = text.span(node)
        call = text.of(node)
        source = text.edit("", a, b, f"{NOTE}({call}, {axis})").source
        yield Noted(*text.span(argument), source)


def noted_edits(source: str, values: Mapping[Noted, Iterable[Any]]) -> list[Edit]:
    """Shapes replaced by the values that they take."""
    text = Text(source)
    edits = []
    for place, taken in values.items():
        for value in taken:
            edits.append(text.edit("hard-coded shape", place.start, place.end, repr(value)))
    return _different(source, edits)


def argument_edits(source: str, function: str, values: Mapping[str, Iterable[Any]]) -> list[Edit]:
    """Arguments that are given the values which they take in the inputs."""
    text = Text(source)
    (definition,) = (
        n for n in text.tree.body if isinstance(n, ast.FunctionDef) and n.name == function
    )
    body = [s for s in definition.body if not _is_docstring(s)]
    place = text.span(body[0])[0]
    indent = " " * body[0].col_offset
    edits = []
    for name, taken in values.items():
        for value in taken:
            new = f"{name} = {value!r}\n{indent}"
            edit = text.edit("hard-coded argument", place, place, new)
            edits.append(
                Edit(edit.kind, place, place, new, f"first {name} = {value!r}", edit.source)
            )
    return _different(source, edits)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
