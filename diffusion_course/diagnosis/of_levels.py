"""Checks of the network against its process: is what it says right, level by level?"""

import numpy as np

from diffusion_course import checks
from diffusion_course.diagnosis.case import Case, Level, Outcome, Unchecked
from diffusion_course.diagnosis.report import Finding
from diffusion_course.parameterization import KINDS, to_x0
from diffusion_course.process import rectified_flow, time_at, vp_cosine

# An error that is this much smaller in another reading of the same output is no accident. No
# released network is better in another reading (benchmarks/results/diagnosis.json).
_OTHER_KIND = 0.67
# No released network would gain from another time (a factor of at most 1, the same record).
_OTHER_TIME = 1.25
_NONE = 0.01  # an error, against the linear denoiser's, that doesn't matter
# A trained network beats the linear denoiser wherever the data are not Gaussian noise.
_WORSE = 1.1


def kind(case: Case) -> Outcome:
    """Would the same output be better as another kind, or with the other sign?"""
    _needs_denoiser(case)
    if case.kind == "edm":
        raise Unchecked("the input of this kind is scaled, so its output is no other kind's")
    own = float(case.errors.mean())
    found = {}
    for sign in (1, -1):
        for name in KINDS:
            if (name, sign) != (case.kind, 1) and name != "edm":
                errors = case.errors_of([sign * v.y for v in case.levels], name)
                found[name, sign] = float(np.mean(errors / case.linear))
    found = {other: value for other, value in found.items() if np.isfinite(value)}
    (name, sign), best = min(found.items(), key=lambda item: item[1])
    other = f'{"" if sign == 1 else "minus "}"{name}"'
    measured = (
        f'read as "{case.kind}" the output has {own:.3g} times the error of a linear denoiser, '
        f"as {other} {best:.3g} times"
    )
    if best > _OTHER_KIND * own or best > 1:
        return Outcome(measured)
    # A wrong clock spoils the error too. What explains more of it goes first.
    clock = float(np.mean([told.best for told in case.told] / case.linear))
    if clock < best:
        return Outcome(f"{measured}; told other times, {clock:.3g} times")
    cause = f"the network was trained to predict {other}"
    if sign == -1:
        cause += ": its paper's time or velocity runs the other way"
    finding = Finding(
        "another kind",
        measured,
        cause,
        f"tell the sampler what the network predicts: {other}, "
        + ("or train it again" if sign == 1 else "with the sign turned"),
        "02",
    )
    return Outcome(measured, (finding,))


def schedule(case: Case) -> Outcome:
    """At each noise level, would the network do better at another time, or in another process?"""
    _needs_denoiser(case)
    rows = case.told
    ratios = [_ratio(told.own, told.best, v) for told, v in zip(rows, case.levels, strict=True)]
    worst = int(np.argmax(ratios))
    level = case.levels[worst]
    measured = (
        f"told another time, the error would be smaller by a factor of up to {ratios[worst]:.3g} "
        f"(at sigma/alpha = {level.ratio * case.std:.2g}, t = {level.t:.2f}, "
        f"told {rows[worst].t:.2f})"
    )
    wrong = [i for i, ratio in enumerate(ratios) if ratio > _OTHER_TIME]
    # One level may be an accident of few examples.
    if len(wrong) < 2:
        return _other_process(case, measured)
    moved = ", ".join(f"{case.levels[i].t:.2f} → {rows[i].t:.2f}" for i in wrong)
    finding = Finding(
        "schedule mismatch",
        f"{measured}; at {len(wrong)} of {len(rows)} noise levels the factor is above "
        f"{_OTHER_TIME:g}; times that fit better: {moved}",
        "the network was trained with other levels alpha(t), sigma(t) than it is used with: "
        "another table of betas, a formula in its place, or a clock that runs the other way",
        "build the process from the betas of the training itself, and count time as it did",
        "01",
    )
    return Outcome(measured, (finding,))


# The two shapes of a process: alpha² + sigma² = 1, and alpha + sigma = 1. Each noise level of one
# is a level of the other, with x_t scaled by a number; times are those of that level.
_SHAPES = {"process.vp_cosine()": vp_cosine, "process.rectified_flow()": rectified_flow}


def _other_process(case: Case, measured: str) -> Outcome:
    """The same noise levels as states of another process: scaled as there, with its times."""
    if case.kind == "edm":  # its input is scaled, whatever the process
        return Outcome(measured)
    found = {}
    for name, make in _SHAPES.items():
        ratios = [
            _ratio(own, error, level)
            for own, error, level in zip(
                case.own_errors, _errors_in(case, make()), case.levels, strict=True
            )
        ]
        found[name] = np.nan_to_num(ratios)
    name, ratios = max(found.items(), key=lambda item: item[1].mean())
    measured += f"; as states of {name} it would be so by a factor of up to {ratios.max():.3g}"
    wrong = ratios > _OTHER_TIME
    if wrong.sum() < 2 or ratios.mean() < _OTHER_TIME:
        return Outcome(measured)
    finding = Finding(
        "schedule mismatch",
        f"{measured}; at {wrong.sum()} of {len(wrong)} noise levels the factor is above "
        f"{_OTHER_TIME:g}",
        "the network was trained with another process than it is used with: with the same noise "
        "beside the data, but x_t of another size",
        f"the process of the training itself; it is more like {name}",
        "17",
    )
    return Outcome(measured, (finding,))


def _errors_in(case: Case, other) -> np.ndarray:
    """The model's mean squared error at each level, if x_t is made a state of another process."""
    own_times = np.float32([level.t for level in case.levels])
    alphas = np.asarray(case.process.alpha(own_times))
    # All levels at once: what is not compiled costs as much for one as for five.
    times = np.asarray(time_at(other, case.process.log_snr(own_times)))
    factors = np.asarray(other.alpha(times)) / alphas
    errors = []
    for level, t, factor in zip(case.levels, times, factors, strict=True):
        x_t = level.x_t * factor
        errors.append(case.error(to_x0(case.kind, other, case.predict(x_t, t, case.cond), x_t, t)))
    return np.array(errors)


def linear(case: Case) -> Outcome:
    """Is the network better than the best denoiser that looks at one number at a time?"""
    _needs_denoiser(case)
    ratios = case.errors
    texts = [f"{r:.2f}" for r in ratios]
    measured = f"error against the linear denoiser, from low noise to high: {', '.join(texts)}"
    if ratios.mean() < 1 and ratios.max() < _WORSE:
        return Outcome(measured)
    finding = Finding(
        "nothing learnt",
        f"{measured}; a trained network is below 1",
        "too few steps, too low a learning rate, a target that doesn't belong to the input (fresh "
        "noise that was never added to x), or weights that were not loaded",
        "overfit one batch first: if its loss doesn't fall far below the others', the target is "
        "wrong; if it does, train longer",
        "02",
    )
    return Outcome(measured, (finding,))


def average(case: Case) -> Outcome:
    """Is the averaged model as good as the last one?"""
    if case.average is None:
        raise Unchecked("no averaged model: pass average=model_with_averaged_weights")
    _needs_denoiser(case)
    outputs = []
    for level in case.levels:
        y = case.predict(case.scaled(level.x_t, level.t), level.t, case.cond, case.average)
        checks.same_shape("the output of average", y, "x", level.x_t)
        outputs.append(y)
    rows = zip(case.errors_of(outputs), case.own_errors, case.levels, strict=True)
    ratio = float(np.mean([_ratio(error, own, level) for error, own, level in rows]))
    measured = f"the averaged model has {ratio:.3g} times the error of the last one"
    # An average is at most a few per cent worse, where training still moves fast.
    if ratio < _OTHER_TIME:
        return Outcome(measured)
    finding = Finding(
        "average of random weights",
        measured,
        "the average began with the random weights before the first step, and its decay is too "
        "near 1 for the length of the run: .9999 keeps 82 % of them after 2,000 steps",
        "warm the decay up, min(decay, (1 + step)/(10 + step)), or take one whose 1/(1 − decay) is "
        "a tenth of the run",
        "04",
    )
    return Outcome(measured, (finding,))


def _ratio(error: float, other: float, level: Level) -> float:
    """error/other, where errors below _NONE of the linear denoiser's are as good as none."""
    least = _NONE * level.linear
    return (error + least) / (other + least)


def _needs_denoiser(case: Case) -> None:
    if case.few_steps:
        raise Unchecked("a few-step model gives samples, not the mean that this compares with")
