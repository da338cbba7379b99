"""Guidance: functions from denoisers to denoisers that trade diversity for fidelity."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from diffusion_course.checks import concrete
from diffusion_course.denoiser import Denoiser, denoiser
from diffusion_course.process import Process, expand


def classifier_free(D_cond: Denoiser, D_uncond: Denoiser, w) -> Denoiser:
    """``D_u + w·(D_c − D_u)``: w = 0 is unconditional, w = 1 conditional, w > 1 extrapolates.

    Papers that write ``(1 + w')·eps_c − w'·eps_u`` mean w = 1 + w'. Since eps, v and the score
    are affine in x0 with the same coefficients, guiding x0 is guiding each of them.

    Args:
      D_cond: the conditional denoiser.
      D_uncond: the unconditional denoiser.
      w: guidance scale: a scalar (it may be traced), an array that broadcasts against x, or a
        function of time such as `limited`, which gets t in a shape that broadcasts against x.

    Source: Ho & Salimans 2022, eq. 6 (arXiv:2207.12598).
    """

    def D(x, t):
        return _extrapolate(D_cond(x, t), D_uncond(x, t), w, x, t)

    return D


def classifier_free_batched(
    model, p: Process, kind: str, labels: Array, null: Array, w, share: float | None = None
) -> Denoiser:
    """`classifier_free` of one model, with one evaluation of twice the batch instead of two.

    Args:
      model: ``model(x, t, cond)``.
      p: the process.
      kind: what the model predicts.
      labels: of the conditional half, [B].
      null: of the unconditional half, [B].
      w: guidance scale, as in `classifier_free`.
      share: as in `rescale`; without it nothing is rescaled.

    Raises: ValueError unless share is in [0, 1].
    """
    if share is not None:
        _check_share(share)
    both = denoiser(model, p, kind, jnp.concatenate([labels, null]))

    def D(x, t):
        times = jnp.broadcast_to(t, x.shape[:1])
        estimates = both(jnp.concatenate([x, x]), jnp.concatenate([times, times]))
        conditional, unconditional = jnp.split(estimates, 2)
        guided = _extrapolate(conditional, unconditional, w, x, t)
        return guided if share is None else _restore_deviation(guided, conditional, share)

    return D


def _extrapolate(conditional: Array, unconditional: Array, w, x: Array, t) -> Array:
    scale = w(expand(t, x)) if callable(w) else w
    return unconditional + scale * (conditional - unconditional)


def limited(w, low: float, high: float) -> Callable[[Array], Array]:
    """A guidance scale that is w for times in [low, high], and 1 (plainly conditional) elsewhere.

    Guidance does harm where noise is high and nothing where it is low; between them it helps.

    Raises: ValueError unless 0 <= low < high <= 1.
    Source: Kynkäänniemi et al. 2024, section 3 (arXiv:2404.07724), in t instead of sigma.
    """
    if concrete(low, high) and not 0 <= low < high <= 1:
        raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {low} and {high}")
    return lambda t: jnp.where((t >= low) & (t <= high), w, 1.0)


def interval(D_cond: Denoiser, D_uncond: Denoiser, w, low: float, high: float) -> Denoiser:
    """`classifier_free` with a `limited` scale.

    Raises: ValueError unless 0 <= low < high <= 1.
    """
    return classifier_free(D_cond, D_uncond, limited(w, low, high))


def rescale(D_cond: Denoiser, D_uncond: Denoiser, w, share: float = 0.7) -> Denoiser:
    """`classifier_free` whose estimates are scaled back to the conditional one's deviation.

    Large w makes pictures too rich in contrast. Each example is multiplied by
    ``share·std(D_c)/std(D_guided) + 1 − share``, both standard deviations over all its pixels.

    Raises: ValueError unless share is in [0, 1].
    Source: Lin et al. 2024, eq. 15–16 (arXiv:2305.08891), applied to x0.
    """
    _check_share(share)

    def D(x, t):
        conditional = D_cond(x, t)
        guided = _extrapolate(conditional, D_uncond(x, t), w, x, t)
        return _restore_deviation(guided, conditional, share)

    return D


def _check_share(share) -> None:
    if concrete(share) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")


def _restore_deviation(guided: Array, conditional: Array, share) -> Array:
    axes = tuple(range(1, guided.ndim))
    wanted, got = (jnp.std(y, axis=axes, keepdims=True) for y in (conditional, guided))
    return guided * (share * wanted / got + 1 - share)


def classifier(
    D: Denoiser, p: Process, log_prob: Callable[[Array, Array], Array], scale=1.0
) -> Denoiser:
    """Classifier guidance: ``D + scale·(sigma²/alpha)·grad_x log p(y | x_t)``.

    With scale = 1 and the exact classifier of noisy data it is the conditional denoiser, by
    Bayes' rule for scores and Tweedie's formula. Where alpha = 0 a state tells nothing about its
    class, and D stays as it is.

    Args:
      D: the unconditional denoiser.
      p: the process.
      log_prob: ``(x, t) -> [B]``, the log-probability of each example's wanted class.
      scale: strength, a scalar.

    Source: Dhariwal & Nichol 2021, section 4 (arXiv:2105.05233).
    """

    def guided(x, t):
        # The sum keeps examples apart: each one's gradient is its own, whatever the batch.
        gradient = jax.grad(lambda x: log_prob(x, t).sum())(x)
        alpha, sigma = expand(p.alpha(t), x), expand(p.sigma(t), x)
        factor = jnp.where(alpha > 0, sigma**2 / jnp.where(alpha > 0, alpha, 1.0), 0.0)
        return D(x, t) + scale * factor * gradient

    return guided


def inpaint(D: Denoiser, known: Array, mask: Array) -> Denoiser:
    """The denoiser that knows some pixels: its estimate there is the truth.

    Every sampler then moves these pixels along q(x_s | x_t, x0 = known), at the right noise level
    all the way, and ends in them exactly. What the rest makes of it is the network's.

    Args:
      D: the denoiser.
      known: the picture [B, …]; only where the mask is True does it count.
      mask: True for known pixels, broadcasts against known.

    Source: Lugmayr et al. 2022, eq. 8 (arXiv:2201.09865), with the sampler's own noise.
    """
    return lambda x, t: jnp.where(mask, known, D(x, t))


def match_coarse(D: Denoiser, coarse: Array) -> Denoiser:
    """The denoiser whose estimate, averaged over blocks of pixels, is a given coarse picture.

    What the coarse picture says replaces what the estimate says about it, and the details within
    blocks stay: ``x0 + enlarge(coarse − average(x0))``. With it a model refines a picture from one
    resolution to the next, and every sampler ends in a picture that shrinks to the coarse one.

    Args:
      D: the denoiser of pictures [B, H, W, C].
      coarse: [B, h, w, C] (B may be 1), where H and W are multiples of h and w.

    Raises: ValueError, from the denoiser, if the shapes do not fit.
    Source: Wang, Yu & Zhang 2023, DDNM, for averages (arXiv:2212.00490); Choi et al. 2021
    (arXiv:2108.02938), there with another filter and at the level of x_t.
    """

    def matched(x, t):
        x0 = D(x, t)
        rows, columns = _blocks(x0.shape, coarse.shape)
        n, h, w, c = x0.shape
        average = x0.reshape(n, h // rows, rows, w // columns, columns, c).mean(axis=(2, 4))
        missing = coarse - average
        return x0 + jnp.repeat(jnp.repeat(missing, rows, axis=1), columns, axis=2)

    return matched


def _blocks(fine: tuple[int, ...], coarse: tuple[int, ...]) -> tuple[int, int]:
    fits = len(coarse) == len(fine) == 4 and coarse[0] in (1, fine[0]) and coarse[3] == fine[3]
    if not (fits and fine[1] % coarse[1] == 0 and fine[2] % coarse[2] == 0):
        raise ValueError(
            f"coarse must have shape [B or 1, h, w, C] whose h and w divide those of {fine}, "
            f"got {coarse}"
        )
    return fine[1] // coarse[1], fine[2] // coarse[2]
