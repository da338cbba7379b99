"""What a diagnosis says: findings with their evidence, notes, and what could not be checked."""

from dataclasses import dataclass, field
from textwrap import wrap

_WIDTH = 96  # of a printed report, in characters


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and how it shows.

    Attributes:
      name: of the finding, in a few words.
      evidence: what was measured, with its numbers and the limit it was held against.
      cause: the likely cause.
      cure: what to change.
      chapter: of the course, where this is explained: its number.
    """

    name: str
    evidence: str
    cause: str
    cure: str
    chapter: str

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.name}  (chapter {self.chapter})",
                *_row("evidence", self.evidence),
                *_row("cause", self.cause),
                *_row("cure", self.cure),
            ]
        )


def _row(name: str, text: str) -> list[str]:
    first, rest = f"  {name:<9} ", " " * 12
    return wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest)


@dataclass(frozen=True)
class Report:
    """The answer of `diagnose`; ``print(report)`` is the whole of it.

    Attributes:
      findings: what is wrong, in the order of the checks: a later one may follow from an earlier.
      notes: what looks like a fault and is none.
      measured: what each check that ran has measured, by the check's name.
      unchecked: for each check that did not run, why, by the check's name.
      questions: for each finding and note, by its name, what the check that gave it asks.
    """

    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    measured: dict[str, str]
    unchecked: dict[str, str]
    questions: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the findings."""
        return tuple(finding.name for finding in self.findings)

    def __str__(self) -> str:
        count = len(self.findings)
        lines = [f"{count or 'No'} finding{'' if count == 1 else 's'}, {len(self.measured)} checks"]
        lines += [f"\n{finding}" for finding in self.findings]
        if self.notes:
            lines += ["\nNo fault, though it may look like one", *map(str, self.notes)]
        lines += ["\nMeasured", *self._rows(self.measured)]
        if self.unchecked:
            lines += ["\nNot checked", *self._rows(self.unchecked)]
        return "\n".join(lines)

    @staticmethod
    def _rows(texts: dict[str, str]) -> list[str]:
        width = max(map(len, texts), default=0)
        rows = []
        for name, text in texts.items():
            first, rest = f"  {name:<{width}}  ", " " * (width + 4)
            rows += wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest)
        return rows
