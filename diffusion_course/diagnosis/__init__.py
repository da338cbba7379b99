"""``diagnose(model, process, kind, data)``: what is wrong with a diffusion model or its sampler.

Checks run from the network to the samples. Where a finding would show again in a later check, as
a consequence, that check is left out, and the report says so.
"""

from collections.abc import Callable
from typing import NamedTuple

from diffusion_course.diagnosis import of_levels, of_network, of_samples, of_training
from diffusion_course.diagnosis.case import Case, Outcome, Unchecked
from diffusion_course.diagnosis.report import Finding, Report

__all__ = ["CHECKS", "Case", "Check", "Finding", "Outcome", "Report", "Unchecked", "diagnose"]


class Check(NamedTuple):
    """One question to a case.

    Attributes:
      name: in the report.
      ask: ``Case -> Outcome``; raises Unchecked where it can't be answered.
      after: names of checks whose findings would show again in this one.
    """

    name: str
    ask: Callable[[Case], Outcome]
    after: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """What it asks, in a sentence."""
        return (self.ask.__doc__ or "").partition("\n")[0].partition(" (")[0]


_NUMBERS = ("pixels", "finite")
_NETWORK = (*_NUMBERS, "modes", "hidden", "time", "batch")
_TRAINED = (*_NETWORK, "condition", "gradient", "step", "history")
_LEVELS = (*_TRAINED, "kind", "labels", "schedule", "learnt")
_SAMPLES = (*_LEVELS, "start", "end", "sampler")

# In the order in which they are made.
CHECKS = (
    Check("pixels", of_network.pixels),
    Check("finite", of_network.finite),
    Check("modes", of_network.modes),
    Check("hidden", of_network.hidden),
    Check("time", of_network.time, _NUMBERS),
    Check("condition", of_network.condition, _NUMBERS),
    Check("batch", of_network.batch, _NUMBERS),
    Check("control", of_network.control, _NUMBERS),
    Check("gradient", of_training.gradient, _NUMBERS),
    Check("step", of_training.step, _NUMBERS),
    Check("history", of_training.history, _NETWORK),
    Check("kind", of_levels.kind, _TRAINED),
    Check("labels", of_network.labels, (*_TRAINED, "kind")),
    Check("schedule", of_levels.schedule, (*_TRAINED, "kind", "labels")),
    Check("learnt", of_levels.linear, (*_TRAINED, "kind", "labels", "schedule")),
    Check("average", of_levels.average, _NETWORK),
    Check("memory", of_training.memory),
    Check("start", of_samples.start),
    Check("end", of_samples.end),
    Check("sampler", of_samples.exact),
    Check("compiled", of_samples.compiled),
    Check("samples", of_samples.numbers, _SAMPLES),
    Check("colours", of_samples.colours, (*_SAMPLES, "samples")),
    Check("sharpness", of_samples.sharpness, (*_SAMPLES, "samples")),
    Check("variety", of_samples.variety, (*_SAMPLES, "samples", "sharpness")),
    Check("copies", of_samples.copies, (*_SAMPLES, "samples", "sharpness", "variety")),
)


def diagnose(
    model=None,
    process=None,
    kind: str | None = None,
    data=None,
    *,
    null=None,
    sampler=None,
    times=None,
    w: float = 1.0,
    samples=None,
    generate: Callable | None = None,
    loss: Callable | None = None,
    step: Callable | None = None,
    history=None,
    batch_size: int | None = None,
    memory: float | None = None,
    control: tuple | None = None,
    average=None,
    few_steps: bool = False,
    seed: int = 0,
) -> Report:
    """Looks a diffusion model, its sampler and its training through for the faults of the field.

    The first four arguments are enough for half of the checks. Each further one makes others
    possible; the report lists those that were not made, and why. It takes seconds for a small
    network on two cores: one program of 64 examples is compiled and called some 200 times.

    >>> from diffusion_course import data, diagnose, weights
    >>> toy = weights.load("toy2d")
    >>> points = data.load("toy2d", kind="mixture", n=2000)
    >>> diagnose(toy.model, toy.process, toy.card.kind, points).names
    ()

    Args:
      model: ``model(x, t, cond)`` or ``model(x, t)``, x [B, …], t [B] in [0, 1]; an NNX module,
        or a function, whose parameters can't be looked at. It is not changed.
      process: the `Process` that it was trained with.
      kind: what it predicts: "x0", "eps", "v", "score", "flow" or "edm".
      data: what it was trained on: a `Dataset`, a pair (x [N, …], labels [N] or captions [N, L]),
        or x alone; N at least 8, some hundreds are enough.
      null: the label or caption [L] that stands for none; by default ``model.null_label``.
      sampler: a `Sampler`; by default DDIM.
      times: its grid [n + 1], falling within [1, 0]; by default 25 equal steps.
      w: guidance scale.
      samples: your own samples [n, …], in place of those drawn here.
      generate: your own sampling function, ``f(model, key, n, labels) -> samples [n, …]``; it is
        called four times at most.
      loss: the training's loss, ``f(model, x, labels, key) -> scalar``.
      step: one step of your own training, ``f(model, x, labels, key) -> loss``, which changes the
        model in place. Three are made, and the model is put back; the optimiser's state is not.
      history: the loss of every step of a training, at least 100.
      batch_size: that has to fit into memory.
      memory: bytes that there are; by default what the device says.
      control: (steer, images [N, …]) with ``steer(images [64, …]) -> model``, N at least 64.
      average: the model with averaged weights.
      few_steps: whether the model jumps to a sample (consistency, MeanFlow), so that its output
        is no mean of x0 given x_t, which several checks need.
      seed: of all random numbers here.

    The first four have defaults only so that one that was forgotten is named.

    Raises: ValueError for an argument of another type, shape or range.
    """
    case = Case(
        model, process, kind, data, null, sampler, times, w, samples, generate, loss, step,
        history, batch_size, memory, control, average, few_steps, seed,
    )  # fmt: skip
    findings: dict[str, tuple[Finding, ...]] = {}
    notes, measured, unchecked, questions = [], {}, {}, {}
    for check in CHECKS:
        first = next((findings[name] for name in check.after if findings.get(name)), None)
        if first:
            unchecked[check.name] = f'may show "{first[0].name}" again: cure that first'
            continue
        try:
            outcome = check.ask(case)
        except Unchecked as reason:
            unchecked[check.name] = str(reason)
            continue
        findings[check.name] = outcome.findings
        notes += outcome.notes
        measured[check.name] = outcome.measured
        for found in (*outcome.findings, *outcome.notes):
            questions.setdefault(found.name, check.question)
    flat = tuple(finding for group in findings.values() for finding in group)
    return Report(flat, tuple(notes), measured, unchecked, questions)
