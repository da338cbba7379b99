"""Checks of a sampler on data that are known exactly, and of its samples against the data."""

from typing import ClassVar

import jax
import numpy as np
from flax import nnx

from diffusion_course import sampling
from diffusion_course.denoiser import gaussian_mixture
from diffusion_course.diagnosis.case import Case, Outcome, Unchecked
from diffusion_course.diagnosis.report import Finding
from diffusion_course.evaluation import metrics

_POINTS = 4000  # one-dimensional samples: their deviation is known to 1/√(2·4000), 1.1 %
_FINE = 400  # steps, after which a first-order sampler's own error is below 3 % (tests)
_OFF = 0.1  # of the deviation: three times both together
_LEFT = 0.05  # noise at the end against the data's deviation; nobody sees less
# A signal at the start, against the noise there, along the direction where it is largest. With 1,
# q(x_1) has √2 times the deviation that the sampler starts with.
_VISIBLE = 1.0


def start(case: Case) -> Outcome:
    """Is anything left of the data at the time that the sampler starts with?"""
    t = float(case.times[0])
    alpha, sigma = float(case.process.alpha(t)), float(case.process.sigma(t))
    few = case.x[np.linspace(0, len(case.x) - 1, min(len(case.x), 500)).round().astype(int)]
    few = few.reshape(len(few), -1)
    # The root mean square along the direction of the data that has the largest one.
    largest = float(np.linalg.norm(few, 2) / np.sqrt(len(few)))
    visible = alpha * largest / sigma
    measured = (
        f"at t = {t:g} alpha is {alpha:.2g} and sigma {sigma:.3g}: a signal of {visible:.2g} times "
        "the noise, along the data's main direction"
    )
    if visible < _VISIBLE:
        return Outcome(measured)
    finding = Finding(
        "signal at the start",
        f"{measured}; from {_VISIBLE:g} on, x_t is not the noise that sampling starts from",
        "the betas are too few or too small (a table for 1,000 steps cut to fewer), the grid "
        "starts before t = 1, or the schedule keeps signal at its end: the network reads "
        "brightness and colours off noise that has none of its own, and all samples turn out "
        "alike in them",
        "a schedule that ends without signal (cosine, zero_terminal_snr) and a grid from t = 1",
        "01",
    )
    return Outcome(measured, (finding,))


def end(case: Case) -> Outcome:
    """Does the grid of times end at the data?"""
    t = float(case.times[-1])
    left = float(case.process.sigma(t)) / (float(case.process.alpha(t)) * case.std)
    measured = f"at the last time, t = {t:g}, the noise is {left:.2g} times the data's deviation"
    if left <= _LEFT:
        return Outcome(measured)
    finding = Finding(
        "noise left",
        f"{measured}; above {_LEFT:g} it can be seen",
        "the grid stops at its last noisy time, instead of taking one more step to t = 0",
        "end the grid with t = 0, or return the denoiser's estimate at the last time",
        "06",
    )
    return Outcome(measured, (finding,))


def exact(case: Case) -> Outcome:
    """Does the sampler keep the mean and the deviation of data whose denoiser is known?"""
    if not case.own_sampler:
        raise Unchecked("no sampler of yours: pass sampler=… and times=…")
    p, mean, std = case.process, 0.6 * case.std, case.std
    oracle = gaussian_mixture(p, [[mean]], [std], [1.0])
    grid = _refined(case.times, _FINE)
    t, s = float(grid[0]), float(grid[-1])

    def deviation(t):
        return float(np.hypot(p.alpha(t) * std, p.sigma(t)))

    x = p.alpha(t) * mean + deviation(t) * jax.random.normal(case.key("exact"), (_POINTS, 1))

    @jax.jit
    def run(x):
        return sampling.sample(case.sampler, oracle.denoise, x, grid, case.key("noise"))[0]

    found = np.asarray(run(x))
    ratio = float(found.std() / deviation(s))
    shift = float((found.mean() - p.alpha(s) * mean) / deviation(s))
    measured = (
        f"on Gaussian data with their exact denoiser, {len(grid) - 1} steps give {ratio:.3f} times "
        f"the deviation, and a mean that is {shift:+.3f} deviations off"
    )
    if abs(ratio - 1) < _OFF and abs(shift) < _OFF:
        return Outcome(measured)
    if not np.isfinite(ratio):
        name, cause = "sampler diverges", "a step divides by a level that is 0, or has no noise cap"
    elif ratio >= 1 + _OFF:
        name = "too much noise in the sampler"
        cause = (
            "a temperature above 1, a standard deviation where a variance belongs, or fresh noise "
            "on top of old noise that was not reduced. It is no cure for samples that are too "
            "smooth or too few: it adds grain, and moves away from the data"
        )
    elif ratio <= 1 - _OFF:
        name = "too little noise in the sampler"
        cause = "the step's fresh noise is missing, or has a temperature below 1"
    else:
        name = "sampler off centre"
        cause = "swapped or wrong coefficients in the mean of the step"
    finding = Finding(
        name,
        f"{measured}; more than {_OFF:g} is beyond its discretisation and chance",
        cause,
        "temperature 1, and the posterior's mean and variance as in process.posterior; too smooth "
        "samples need more steps or a better network",
        "03" if "temperature" not in cause else "06",
    )
    return Outcome(measured, (finding,))


def _refined(times: np.ndarray, steps: int) -> np.ndarray:
    """The grid with every interval cut into equal parts, so many steps or a few more in all."""
    times = np.asarray(times, np.float64)
    parts = -(-steps // (len(times) - 1))
    places = np.arange((len(times) - 1) * parts + 1) / parts
    return np.interp(places, np.arange(len(times)), times).astype(np.float32)


def compiled(case: Case) -> Outcome:
    """Does the reader's function compile once, for other keys and other weights?"""
    if case.generate is None:
        raise Unchecked("no function: pass generate=f with f(model, key, n, labels) -> samples")
    case.generated(case.key("samples"))
    with _Compilations() as again:
        case.generated(case.key("other"))
    measured = f"programs compiled by a second call, with another key: {again.count}"
    if case.module:
        graph, state = nnx.split(case.model)
        moved = nnx.merge(graph, jax.tree.map(lambda a: a * 1, state))
        with _Compilations() as other:
            case.generated(case.key("other"), moved)
        measured += f"; by a third, with another model of the same shape: {other.count}"
    else:
        other = again
    if not again.count and not other.count:
        return Outcome(measured)
    finding = Finding(
        "compiled again and again",
        measured,
        "jax.jit is called inside the function, times or weights are constants of the program, "
        "or shapes change from call to call"
        if again.count
        else "the model is closed over, so that its weights are constants of the program",
        "make the compiled function once, outside; pass model, labels and key as its arguments; "
        "loop over times with lax.scan (sampling.sample)",
        "00",
    )
    return Outcome(measured, (finding,))


class _Compilations:
    """Counts the programs that are compiled while it is open."""

    open: ClassVar[list] = []
    listening: ClassVar[bool] = False

    def __init__(self):
        self.count = 0

    def __enter__(self):
        if not _Compilations.listening:
            jax.monitoring.register_event_duration_secs_listener(_heard)
            _Compilations.listening = True
        _Compilations.open.append(self)
        return self

    def __exit__(self, *_):
        _Compilations.open.remove(self)


def _heard(event: str, seconds: float, **_) -> None:
    # The event is sent for programs that the cache on disk has too: a call waits for both.
    if event == "/jax/core/compile/backend_compile_duration":
        for counter in _Compilations.open:
            counter.count += 1


# ------------------------------------------------------------------------------ samples

# Shares and ratios, each between what healthy released networks give and what the patients do.
_OUTSIDE, _WIDE = 0.03, 1.3
_DULL = 0.45
_MANY = 50  # steps, after which too few of them are not the cause of blur
_SAME = 0.4
_COPY = 0.25
_SHIFT, _ERRORS = 0.15, 5.0


def numbers(case: Case) -> Outcome:
    """Are the samples finite, and do they lie where the data lie?"""
    x = case.drawn
    bad = float(np.mean(~np.isfinite(x)))
    if bad:
        finding = Finding(
            "NaN in the samples",
            f"{bad:.0%} of the samples' numbers are not finite",
            "a step divides by sigma(0) or alpha(1), such as a corrector after the last step, or a "
            "prediction that is a little wrong is divided by a tiny alpha",
            "look at the state after every step, and at the first time where it is not finite",
            "06",
        )
        return Outcome("samples that are not finite", (finding,))
    outside, wide = _excess(case, x)
    measured = (
        f"{outside:.1%} of the samples' numbers lie outside the data's range, and their "
        f"deviation is {wide:.2f} times the data's"
    )
    if outside <= _OUTSIDE and wide <= _WIDE:
        return Outcome(measured)
    evidence = f"{measured}, for limits of {_OUTSIDE:.0%} and {_WIDE:g}"
    if case.w != 1 and case.samples is None and case.generate is None:
        at_one = _excess(case, case.draw(w=1.0))
        evidence += f"; from the same noise with w = 1 they are {at_one[0]:.1%} and {at_one[1]:.2f}"
        if at_one[0] <= _OUTSIDE and at_one[1] <= _WIDE:
            finding = Finding(
                "guidance too strong",
                f"with w = {case.w:g} {evidence}",
                "the push of every step goes beyond the data: colours saturate, contrast grows, "
                "and samples of a class become alike",
                "w between 1.5 and 3 for such networks; dynamic thresholding, guidance in an "
                "interval of noise levels, or rescaling where a larger one is wanted",
                "07",
            )
            return Outcome(measured, (finding,))
    finding = Finding(
        "samples out of range",
        evidence,
        "the sampler's steps are too long for its order, guidance is too strong inside your own "
        "function, or the data were scaled in another way for the training",
        "more steps; compare the range of the training's data with that of these data",
        "06",
    )
    return Outcome(measured, (finding,))


def _excess(case: Case, x: np.ndarray) -> tuple[float, float]:
    low, high = case.x.min(), case.x.max()
    # A tenth of the range is what an honest denoiser may overshoot at an edge.
    margin = 0.1 * (high - low)
    return float(np.mean((x < low - margin) | (x > high + margin))), float(x.std() / case.x.std())


def _like(case: Case) -> np.ndarray:
    """Data to compare the samples with: of the same labels where they were drawn here."""
    return case.x[case.rows] if case.samples is None else case.x


def colours(case: Case) -> Outcome:
    """Is the mean of every channel that of the data?"""
    x, real = case.drawn, _like(case)
    if x.ndim < 3:
        raise Unchecked("the data are points, which have no channels")
    axes = tuple(range(1, x.ndim - 1))
    mine, theirs = x.mean(axis=axes), real.mean(axis=axes)
    # One number per image and channel: images are independent, their pixels are not.
    error = np.sqrt(mine.var(axis=0) / len(mine) + theirs.var(axis=0) / len(theirs)) + 1e-12
    shift = mine.mean(axis=0) - theirs.mean(axis=0)
    worst = int(np.abs(shift / error).argmax())
    share, sigmas = float(shift[worst] / real.std()), float(shift[worst] / error[worst])
    measured = (
        f"the mean of channel {worst} is off by {share:+.2f} deviations of the data, "
        f"{abs(sigmas):.1f} standard errors"
    )
    if abs(share) < _SHIFT or abs(sigmas) < _ERRORS:
        return Outcome(measured)
    finding = Finding(
        "colour shift",
        measured,
        "training data and these data are scaled differently, pixels are put back with another "
        "mean or in another order of the channels, x0 is clipped although the data reach further, "
        "or a chain of many steps adds up a small mean error of the network",
        "compare means of one training batch, of D(x_t, t) at a few levels, and of the samples: "
        "the first that differs is the place",
        "01",
    )
    return Outcome(measured, (finding,))


def sharpness(case: Case) -> Outcome:
    """Have the samples as much fine detail as the data?"""
    x, real = case.drawn, _like(case)
    if x.ndim != 4 or min(x.shape[1:3]) < 6:
        raise Unchecked("fine detail is that of images, of at least 6 pixels")
    fine = _fine(x) / _fine(real)
    measured = f"the samples have {fine:.2f} times the data's power at high frequencies"
    if fine >= _DULL:
        return Outcome(measured)
    evidence, cause = f"{measured}; below {_DULL:g} they are blurred", None
    if case.samples is None and case.generate is None and len(case.times) <= _MANY:
        times = _refined(case.times, _MANY)
        again = _fine(case.draw(times=times)) / _fine(real)
        evidence += f"; with {len(times) - 1} steps from the same noise {again:.2f} times"
        if again >= _DULL:
            cause = (
                f"too few steps: with {len(case.times) - 1} the sampler returns averages of what "
                "the images could have been"
            )
            cure = "more steps, a solver of higher order, or a model that was distilled for few"
            chapter = "06"
    if cause is None:
        cause = (
            "the network is too small or too little trained, so that it answers with averages; or "
            "the autoencoder that decodes it is"
        )
        cure = "train longer, with an average of the weights; more channels at the finest level"
        chapter = "04"
    return Outcome(measured, (Finding("blur", evidence, cause, cure, chapter),))


def _fine(x: np.ndarray) -> float:
    """Mean power above half of the highest frequency."""
    power = np.abs(np.fft.fft2(x - x.mean(axis=(1, 2), keepdims=True), axes=(1, 2))) ** 2
    f = [np.abs(np.fft.fftfreq(n)) for n in x.shape[1:3]]
    high = np.maximum(f[0][:, None], f[1][None]) > 0.25
    return float(power[:, high].mean()) + 1e-12


def variety(case: Case) -> Outcome:
    """Do samples differ from each other as the data do, and does another key give others?"""
    x, real = case.drawn, _like(case)
    if case.generate is not None:
        other = case.generated(case.key("other"))
        if (np.abs(other - x) < 1e-6).all():
            finding = Finding(
                "repetitive samples",
                "two calls with different keys give the same samples, number for number",
                "the function has a key of its own, and doesn't use the one that it is given",
                "pass the key through, and split it for the start and for the steps",
                "00",
            )
            return Outcome("another key changes nothing", (finding,))
    n = min(len(x), len(real))
    rows = np.linspace(0, len(real) - 1, n).round().astype(int)
    mine = np.median(metrics.nearest(x[:n], x[:n], exclude_self=True)[1])
    theirs = np.median(metrics.nearest(real[rows], real[rows], exclude_self=True)[1])
    if theirs == 0:
        raise Unchecked("most of these examples are equal to another one")
    ratio = float(mine / theirs)
    measured = (
        f"a sample's nearest other is {ratio:.2f} times as far away as an example's, of {n} each"
    )
    if ratio >= _SAME:
        return Outcome(measured)
    finding = Finding(
        "repetitive samples",
        f"{measured}; below {_SAME:g} they repeat each other",
        "one key for several batches or for every example, a start that is broadcast, guidance "
        "that is too strong, or training data with many copies",
        "split keys, one for each batch; look at the starts first, then at w, then at the data",
        "13",
    )
    return Outcome(measured, (finding,))


def copies(case: Case) -> Outcome:
    """Are samples copies of the data?"""
    x = case.drawn
    data = case.x
    mine = np.median(metrics.nearest(x, data)[1])
    theirs = np.median(_to_others(data, case.rows))
    if theirs == 0:
        raise Unchecked("most of these examples are equal to another one")
    ratio = float(mine / theirs)
    measured = f"samples lie {ratio:.2f} times as near to the data as the data to each other"
    if ratio >= _COPY:
        return Outcome(measured)
    finding = Finding(
        "copies of the data",
        f"{measured}; below {_COPY:g} they are copies",
        "the network has learnt its examples by heart: too few of them for its size and the "
        "length of the training",
        "more data, augmentation, a smaller network, or an earlier stop; watch the loss on unseen "
        "examples",
        "13",
    )
    return Outcome(measured, (finding,))


def _to_others(data: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The distance of each of these rows to the nearest other row."""
    flat = data.reshape(len(data), -1).astype(np.float64)
    squared = ((flat[rows] ** 2).sum(1)[:, None] + (flat**2).sum(1)) - 2 * flat[rows] @ flat.T
    squared[np.arange(len(rows)), rows] = np.inf
    return np.sqrt(np.maximum(squared.min(axis=1), 0))
