"""Guidance: functions from denoisers to denoisers that trade diversity for fidelity."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser, denoiser
from diffusion_course.process import Process, expand, levels
from diffusion_course.steps import denoise

EPS = np.finfo(np.float32).eps


def classifier_free(D_cond: Denoiser, D_uncond: Denoiser, w) -> Denoiser:
    """``D_u + w·(D_c − D_u)``: w = 0 is unconditional, w = 1 conditional, w > 1 extrapolates.

    Papers that write ``(1 + w')·eps_c − w'·eps_u`` mean w = 1 + w'. Since eps, v and the score
    are affine in x0 with the same coefficients, guiding x0 is guiding each of them.

    Args:
      D_cond: the conditional denoiser.
      D_uncond: the unconditional denoiser.
      w: guidance scale: a number (it may be traced), one per example [B], an array that
        broadcasts to x, or a function of time such as `limited`, which gets t as a scalar or
        [B, 1, …, 1] and returns one of these.

    Returns: D(x, t). Raises: ValueError, from D, if w or an estimate does not have such a shape.
    Source: Ho & Salimans 2022, eq. 6 (arXiv:2207.12598).

    >>> D_cond, D_uncond = lambda x, t: x + 1, lambda x, t: x
    >>> guided = classifier_free(D_cond, D_uncond, 3.0)
    >>> guided(jnp.zeros((2, 1)), 0.5).tolist()
    [[3.0], [3.0]]
    """
    _check_scale("w", w)

    def D(x, t):
        return _extrapolate(D_cond(x, t), D_uncond(x, t), w, x, t)

    return D


def autoguidance(D: Denoiser, D_bad: Denoiser, w) -> Denoiser:
    """``D_bad + w·(D − D_bad)``: away from a worse version of the same denoiser.

    Both see the same condition, so that for w > 1 samples leave what the bad version adds to the
    good one's distribution, and not the other classes as in `classifier_free`. In scores it is
    ``∇log p₁ + (w − 1)·∇log(p₁/p₀)``, p₁ being the good one's distribution and p₀ the bad one's.

    Args:
      D: the denoiser.
      D_bad: one that errs in the same places but more, such as a smaller network or an earlier
        state of the same training.
      w: guidance scale, as in `classifier_free`; 1 is D alone.

    Returns: D(x, t). Raises: ValueError, from it, if w or an estimate does not have such a shape.
    Source: Karras et al. 2024, section 4 (arXiv:2406.02507).

    >>> guided = autoguidance(lambda x, t: x + 1, lambda x, t: x - 1, 2.0)
    >>> guided(jnp.zeros((1, 1)), 0.5).tolist()
    [[3.0]]
    """
    return classifier_free(D, D_bad, w)


def classifier_free_batched(
    model, p: Process, kind: str, labels: Array, null: Array, w, share: float | None = None
) -> Denoiser:
    """`classifier_free` of one model, with one evaluation of twice the batch instead of two.

    Args:
      model: ``model(x, t, cond)``.
      p: the process.
      kind: what the model predicts.
      labels: of the conditional half, whole numbers [B], or captions [B, L].
      null: of the unconditional half, of the same shape; for captions all padding, or others to be
        led away from.
      w: guidance scale, as in `classifier_free`.
      share: as in `rescale`; without it nothing is rescaled.

    Returns: D(x, t), x [B, …]. Raises: ValueError unless labels and null are such whole numbers, at
    most the model's null label, and share is in [0, 1]; from D, if x has another B.
    """
    _check_scale("w", w)
    share = None if share is None else _check_share(share)
    # A plain function has no null label that would bound the others.
    most = getattr(model, "null_label", None)
    most = np.iinfo(np.int32).max if most is None else most
    shape = checks.rows_shape(labels) or (1,)
    checks.labels("labels", labels, shape, most)
    checks.labels("null", null, shape, most)
    both = denoiser(model, p, kind, jnp.concatenate([jnp.asarray(labels), jnp.asarray(null)]))

    def D(x, t):
        if x.shape[:1] != shape[:1]:
            raise ValueError(
                f"labels must be one per example, {list(x.shape[:1])}, got shape {list(shape)}"
            )
        times = jnp.broadcast_to(t, x.shape[:1])
        estimates = both(jnp.concatenate([x, x]), jnp.concatenate([times, times]))
        conditional, unconditional = jnp.split(estimates, 2)
        guided = _extrapolate(conditional, unconditional, w, x, t)
        return guided if share is None else _restore_deviation(guided, conditional, share)

    return D


def two_scales(
    D_full: Denoiser, D_image: Denoiser, D_uncond: Denoiser, w_image, w_text
) -> Denoiser:
    """``D_u + w_image·(D_i − D_u) + w_text·(D_full − D_i)``: guidance by an image and by a text.

    In scores it is that of p(x)·p(image | x)^w_image·p(text | image, x)^w_text: how much the sample
    keeps of the image, and how much it does of what the text asks for, each with its own scale.

    Args:
      D_full: given image and text.
      D_image: given the image and the null caption.
      D_uncond: given neither.
      w_image: scale of the image, as w in `classifier_free`.
      w_text: scale of the text. With both 1 the result is D_full; with w_image = 1 it is
        `classifier_free` of D_full and D_image, with both equal of D_full and D_uncond.

    Returns: D(x, t). Raises: ValueError, from it, if a scale or an estimate has a wrong shape.
    Source: Brooks, Holynski & Efros 2022, InstructPix2Pix, eq. 3 (arXiv:2211.09800).

    >>> guided = two_scales(lambda x, t: x + 3, lambda x, t: x + 1, lambda x, t: x, 2.0, 10.0)
    >>> guided(jnp.zeros((1, 1)), 0.5).tolist()  # 2·1 + 10·2
    [[22.0]]
    """
    _check_scale("w_image", w_image)
    _check_scale("w_text", w_text)

    def D(x, t):
        image = D_image(x, t)
        kept = _extrapolate(image, D_uncond(x, t), w_image, x, t, "w_image")
        checks.same_shape("D_full(x, t)", full := D_full(x, t), "x", x)
        return kept + _scale_at("w_text", w_text, x, t) * (full - image)

    return D


def compose(D_uncond: Denoiser, D_conds: Sequence[Denoiser], scales: Sequence) -> Denoiser:
    """``D_u + Σ scales_i·(D_i − D_u)``: several conditions at once, and some to be led away from.

    In scores it is that of p(x)·Π (p(x | c_i)/p(x))^scales_i. With scales of 1 that is p(x | all of
    them) where the conditions are independent given x *and* the same holds of the noisy states;
    elsewhere it is an approximation. A negative scale leads away from its condition: a negative
    prompt. (The common negative prompt, ``classifier_free(D_c, D_negative, w)``, is the case of
    scales w and 1 − w: it leads the more strongly away, the larger w is.)

    Args:
      D_uncond: the unconditional denoiser.
      D_conds: one denoiser for each condition.
      scales: one for each of them, as w in `classifier_free`.

    Returns: D(x, t). Raises: ValueError for no conditions or another number of scales and, from D,
    if a scale or an estimate has a wrong shape.
    Source: Liu et al. 2022, section 4 (arXiv:2206.01714).

    >>> both = compose(lambda x, t: x, [lambda x, t: x + 1, lambda x, t: x - 5], [2.0, -1.0])
    >>> both(jnp.zeros((1, 1)), 0.5).tolist()  # 2·1 + 1·5
    [[7.0]]
    """
    if not D_conds or len(D_conds) != len(scales):
        raise ValueError(
            "D_conds must hold at least one denoiser and scales as many numbers, "
            f"got {len(D_conds)} and {len(scales)}"
        )
    for i, w in enumerate(scales):
        _check_scale(f"scales[{i}]", w)

    def composed(x, t):
        uncond = D_uncond(x, t)
        checks.same_shape("D_uncond(x, t)", uncond, "x", x)
        total = uncond
        for i, (D, w) in enumerate(zip(D_conds, scales, strict=True)):
            checks.same_shape(f"D_conds[{i}](x, t)", estimate := D(x, t), "x", x)
            total = total + _scale_at(f"scales[{i}]", w, x, t) * (estimate - uncond)
        return total

    return composed


def _check_scale(argument: str, given) -> None:
    if not callable(given):
        checks.within(argument, given, -np.inf, np.inf, ends="()")


def _scale_for(argument: str, scale, x: Array) -> Array:
    """A scale that multiplies x: a number, [B] as one per example, or what broadcasts to x."""
    scale = jnp.asarray(scale, jnp.float32)
    # One per example: a [B] left as it is would be one per channel.
    scale = expand(scale, x) if scale.shape == x.shape[:1] else scale
    if scale.ndim == 1 and x.ndim > 1:
        raise ValueError(
            f"{argument} must be a number, one per example {list(x.shape[:1])}, or broadcast to "
            f"x, {list(x.shape)}; got shape {list(scale.shape)}"
        )
    checks.broadcasts(argument, scale, "x", x)
    return scale


def _scale_at(argument: str, w, x: Array, t) -> Array:
    """`_scale_for` of a scale that may be a function of time."""
    return _scale_for(argument, w(expand(t, x)) if callable(w) else w, x)


def _extrapolate(conditional: Array, unconditional: Array, w, x: Array, t, name="w") -> Array:
    checks.same_shape("D_cond(x, t)", conditional, "x", x)
    checks.same_shape("D_uncond(x, t)", unconditional, "x", x)
    return unconditional + _scale_at(name, w, x, t) * (conditional - unconditional)


def limited(w, low: float, high: float) -> Callable[[Array], Array]:
    """A guidance scale that is w for times in [low, high], and 1 (plainly conditional) elsewhere.

    Guidance does harm where noise is high and nothing where it is low; between them it helps.

    Args:
      w: the scale, a number, one per example [B], or an array that broadcasts to x.
      low: where it begins, a time.
      high: where it ends, a time.

    Returns: a function of time, for the w of this module's other functions.
    Raises: ValueError unless 0 <= low < high <= 1, or for a w that is a function itself.
    Source: Kynkäänniemi et al. 2024, section 3 (arXiv:2404.07724), in t instead of sigma.

    >>> w = limited(3.0, 0.2, 0.6)
    >>> [float(w(t)) for t in (0.1, 0.5, 0.9)]
    [1.0, 3.0, 1.0]
    """
    if callable(w):
        raise ValueError("w must be a number or an array, got a function")
    _check_scale("w", w)
    w = jnp.asarray(w, jnp.float32)
    if checks.concrete(low, high) and not 0 <= low < high <= 1:
        raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {low} and {high}")

    def scale(t):
        # Times of their own come as [B, 1, …, 1], and one scale per example goes along.
        each = expand(w, t) if np.ndim(w) == 1 and np.ndim(t) > 1 else w
        return jnp.where((t >= low) & (t <= high), each, 1.0)

    return scale


def interval(D_cond: Denoiser, D_uncond: Denoiser, w, low: float, high: float) -> Denoiser:
    """`classifier_free` with a `limited` scale.

    Args:
      D_cond: the conditional denoiser.
      D_uncond: the unconditional denoiser.
      w: guidance scale, as in `limited`.
      low: where guidance begins, a time.
      high: where it ends, a time.

    Returns: D(x, t). Raises: ValueError unless 0 <= low < high <= 1.
    """
    return classifier_free(D_cond, D_uncond, limited(w, low, high))


def rescale(D_cond: Denoiser, D_uncond: Denoiser, w, share: float = 0.7) -> Denoiser:
    """`classifier_free` whose estimates are scaled back to the conditional one's deviation.

    Large w makes pictures too rich in contrast. Each example is multiplied by
    ``share·std(D_c)/std(D_guided) + 1 − share``, both standard deviations over all its pixels. A
    guided estimate without any deviation, a flat picture, stays as it is.

    Args:
      D_cond: the conditional denoiser.
      D_uncond: the unconditional denoiser.
      w: guidance scale, as in `classifier_free`.
      share: how far it is scaled back, in [0, 1].

    Returns: D(x, t). Raises: ValueError unless share is in [0, 1].
    Source: Lin et al. 2024, eq. 15–16 (arXiv:2305.08891), applied to x0.
    """
    _check_scale("w", w)
    share = _check_share(share)

    def D(x, t):
        conditional = D_cond(x, t)
        guided = _extrapolate(conditional, D_uncond(x, t), w, x, t)
        return _restore_deviation(guided, conditional, share)

    return D


def _check_share(share):
    share = checks.number("share", share)
    checks.within("share", share, 0, 1)
    return share


def _restore_deviation(guided: Array, conditional: Array, share) -> Array:
    axes = tuple(range(1, guided.ndim))
    wanted, got = (jnp.var(y, axis=axes, keepdims=True) for y in (conditional, guided))
    # The sums behind a mean round: what they leave of a flat picture's deviation is no contrast.
    size = jnp.mean(guided**2, axis=axes, keepdims=True)
    flat = got <= (100 * EPS) ** 2 * size
    # The root is taken of the ratio, and of 1 where it would be 0: there its slope is infinite.
    ratio = jnp.where(flat, 1.0, wanted / jnp.where(flat, 1.0, got))
    some = ratio > 0
    factor = jnp.where(some, jnp.sqrt(jnp.where(some, ratio, 1.0)), 0.0)
    return guided * (share * factor + 1 - share)


def classifier(
    D: Denoiser, p: Process, log_prob: Callable[[Array, Array], Array], scale=1.0
) -> Denoiser:
    """Classifier guidance: ``D + scale·(sigma²/alpha)·grad_x log p(y | x_t)``.

    With scale = 1 and the exact classifier of noisy data it is the conditional denoiser, by
    Bayes' rule for scores and Tweedie's formula. Where float32 holds no signal beside the noise a
    state tells nothing about its class, and D stays as it is.

    Args:
      D: the unconditional denoiser.
      p: the process.
      log_prob: ``(x, t) -> [B]``, the log-probability of each example's wanted class.
      scale: strength: a number, one per example [B], or what broadcasts to x.

    Returns: D(x, t). Raises: ValueError, from D, if scale or log_prob has another shape.
    Source: Dhariwal & Nichol 2021, section 4 (arXiv:2105.05233).
    """
    _check_scale("scale", scale)

    def guided(x, t):
        def total(x):
            each = log_prob(x, t)
            if each.shape != x.shape[:1]:
                raise ValueError(
                    f"log_prob(x, t) must have shape {list(x.shape[:1])}, one number per example, "
                    f"got shape {list(each.shape)}"
                )
            # The sum keeps examples apart: each one's gradient is its own, whatever the batch.
            return each.sum()

        alpha, sigma = levels(p, t, x)
        signal = alpha > EPS * sigma
        factor = jnp.where(signal, sigma**2 / jnp.where(signal, alpha, 1.0), 0.0)
        return denoise(D, x, t) + _scale_for("scale", scale, x) * factor * jax.grad(total)(x)

    return guided


def inpaint(D: Denoiser, known: Array, mask: Array) -> Denoiser:
    """The denoiser that knows some pixels: its estimate there is the truth.

    Every sampler then moves these pixels along q(x_s | x_t, x0 = known), at the right noise level
    all the way, and ends in them exactly. The denoiser fills in the other pixels.

    Args:
      D: the denoiser.
      known: the picture [B, …], float32; only where the mask is True does it count.
      mask: True, or 1, for known pixels and False, or 0, for the others; broadcasts to known.

    Returns: D(x, t). Raises: ValueError if the mask holds other values, if it does not broadcast
    to known or, from D, known does not broadcast to x.
    Source: Lugmayr et al. 2022, eq. 8 (arXiv:2201.09865), with the sampler's own noise.

    >>> known, mask = jnp.full((1, 3), 0.5), np.array([True, False, True])
    >>> inpaint(lambda x, t: 0 * x, known, mask)(jnp.ones((1, 3)), 0.4).tolist()
    [[0.5, 0.0, 0.5]]
    """
    known = checks.state("known", known)
    mask = checks.binary("mask", mask)
    checks.broadcasts("mask", mask, "known", known)

    def completed(x, t):
        checks.broadcasts("known", known, "x", x)
        return jnp.where(mask, known, denoise(D, x, t))

    return completed


def match_coarse(D: Denoiser, coarse: Array) -> Denoiser:
    """The denoiser whose estimate, averaged over blocks of pixels, is a given coarse picture.

    What the coarse picture says replaces what the estimate says about it, and the details within
    blocks stay: ``x0 + enlarge(coarse − average(x0))``. With it a model refines a picture from one
    resolution to the next, and every sampler ends in a picture that shrinks to the coarse one.

    Args:
      D: the denoiser of pictures [B, H, W, C].
      coarse: [B, h, w, C], float32 (B may be 1), where H and W are multiples of h and w.

    Returns: D(x, t). Raises: ValueError, from D, if the shapes do not fit.
    Source: Wang, Yu & Zhang 2023, DDNM, for averages (arXiv:2212.00490); Choi et al. 2021
    (arXiv:2108.02938), there with another filter and at the level of x_t.
    """
    coarse = checks.state("coarse", coarse)

    def matched(x, t):
        x0 = denoise(D, x, t)
        rows, columns = _blocks(x0.shape, coarse.shape)
        n, h, w, c = x0.shape
        average = x0.reshape(n, h // rows, rows, w // columns, columns, c).mean(axis=(2, 4))
        missing = coarse - average
        return x0 + jnp.repeat(jnp.repeat(missing, rows, axis=1), columns, axis=2)

    return matched


def _blocks(fine: tuple[int, ...], coarse: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the blocks of fine pixels that are one coarse pixel each."""
    fits = len(coarse) == len(fine) == 4 and coarse[0] in (1, fine[0]) and coarse[3] == fine[3]
    fits = fits and 0 not in coarse[1:3]
    if not (fits and fine[1] % coarse[1] == 0 and fine[2] % coarse[2] == 0):
        raise ValueError(
            f"coarse must have shape [B or 1, h, w, C] whose h and w divide those of {list(fine)}, "
            f"got {list(coarse)}"
        )
    return fine[1] // coarse[1], fine[2] // coarse[2]
