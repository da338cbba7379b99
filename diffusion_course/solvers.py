"""Multistep solvers: third order, stochastic ones, and ones that correct their last step.

They are one method, `exponential.multistep`, with other orders: a polynomial in log-SNR through the
last few x0. Only `deis` has one in time, through the last few eps. All of them are first-order
where float32 holds no signal, and from there on gain one order with each step.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.polynomial.legendre import leggauss

from diffusion_course import checks
from diffusion_course.exponential import LINES, divided_differences, multistep
from diffusion_course.process import Process
from diffusion_course.samplers import Sampler
from diffusion_course.steps import can_correct, estimates, has_signal, state_at


def dpm_solver_pp_3m(p: Process) -> Sampler:
    """DPM-Solver++(3M): a parabola through this x0 and the two before.

    One evaluation per step; order 3 once it has its history. The first step is `ddim`'s, the
    second that of `dpm_solver_pp_2m`, and that warm-up leaves an order between 2 and 3 of a whole
    run. The step to s = 0 returns D(x, t).

    The authors' code, and what was copied from it, has half the weight on the second difference,
    which is order 2 for ever; here it is the parabola's.

    Args:
      p: signal and noise levels.

    Source: it is in the code of Lu et al. 2022 (github.com/LuChengTHU/dpm-solver, function
    multistep_dpm_solver_third_update) and not in their paper (arXiv:2211.01095).
    """
    return multistep(p, order=3, B="bh2")


def sde_dpm_solver_pp_2m(p: Process, eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M): the reverse SDE, with x0 extrapolated as in `dpm_solver_pp_2m`.

    One evaluation per step. The first step and, without its noise, the one to s = 0 are those of
    `ddpm`. With eta = 0 and signal where it begins it is `dpm_solver_pp_2m`; from a start without
    signal that one extrapolates already in its second step, and this one from its third on.

    Args:
      p: signal and noise levels.
      eta: how much noise is added and removed, at least 0; 1 is the reverse SDE.

    Raises: ValueError if eta is negative.
    Source: Lu et al. 2022, section 5 and appendix A (arXiv:2211.01095), for eta = 1.
    """
    return multistep(p, order=2, B="bh2", eta=checks.non_negative("eta", eta))


def unipc(p: Process, order: int = 3, B: str = "bh2") -> Sampler:
    """UniPC: a predictor, and a corrector that uses the next evaluation to mend the step before.

    One evaluation per step: the x0 that the next step needs anyway is the corrector's new point.
    The predictor has this order, and the corrected states one more. The state that a step returns
    is predicted, so the last one is never corrected; a step to s = 0 returns D(x, t).

    B(h) matters only where a line takes the place of the polynomial: in a predictor of order 2
    and a corrector of order 1, and in the warm-up. Elsewhere it cancels.

    Args:
      p: signal and noise levels.
      order: of the predictor: 1, 2 or 3.
      B: "bh1" for B(h) = h, "bh2" for e^h − 1, or "exact": the line's own integral.

    Raises: ValueError if order or B is none of these.
    Source: Zhao et al. 2023, algorithms 1 to 3 and section 3.2 (arXiv:2302.04867).
    """
    order = checks.integer("order", order, 1, 3)
    return multistep(p, order=order, corrector=order, B=checks.one_of("B", B, tuple(LINES)))


def sa_solver(
    p: Process, eta: float | Callable[[Array], Array] = 1.0, order: int = 3, corrector: int = 3
) -> Sampler:
    """SA-Solver: predictor and corrector for the whole family between flow and reverse SDE.

    One evaluation per step. The corrector repeats the step before with the same noise. The state
    that a step returns is predicted; a step to s = 0 returns D(x, t).

    Args:
      p: signal and noise levels.
      eta: tau in the paper, at least 0: a number, or a function of the time at which a step begins.
      order: evaluations in the predictor's polynomial, 1 to 3.
      corrector: evaluations in the corrector's, beside the new one, 0 (no corrector) to 3.

    Raises: ValueError if eta is negative, or order or corrector is none of these.
    Source: Xue et al. 2023, eq. 14, 17 and 20 and algorithm 1 (arXiv:2305.14267).
    """
    order = checks.integer("order", order, 1, 3)
    corrector = checks.integer("corrector", corrector, 0, 3)
    return multistep(
        p, order, corrector, eta=eta if callable(eta) else checks.non_negative("eta", eta)
    )


def deis(p: Process, order: int = 3) -> Sampler:
    """DEIS: a polynomial in time through the last eps, integrated exactly (tAB-DEIS).

    One evaluation per step. It begins as `ddim` and gains an order with each step; the step to
    s = 0 returns D(x, t).

    Args:
      p: signal and noise levels.
      order: how many eps the polynomial goes through, 1 to 4: one more than its degree, which is
        the r of the paper's tABr.

    Raises: ValueError if order is none of these.
    Source: Zhang & Chen 2023, eq. 14 and 15 (arXiv:2204.13902).
    """
    order = checks.integer("order", order, 1, 4)

    def init(x):
        return jnp.zeros((order - 1, *x.shape), x.dtype), jnp.zeros(order - 1, jnp.float32)

    def step(D, x, t, s, key, state):
        before, when = state
        x0, eps = estimates(p, D, x, t)
        # Newton's polynomial through the last eps; 0 is the time of those that are not there yet.
        usable = [can_correct(p, t, s)]
        for time in when:
            usable.append(usable[-1] & (time > t))
        places = [jnp.where(u, r - t, 0.0) for u, r in zip(usable[1:], when, strict=True)]
        rises = divided_differences([jnp.float32(0.0), *places], [eps, *before], usable)
        # x_s = DDIM's + alpha_s·∫_s^t (ratio(u) − ratio(s))·polynomial'(u) du, ratio = sigma/alpha:
        # by parts, so that it does not need ratio', which is infinite at the ends.
        moved = state_at(p, x0, eps, s)
        u = _NODES * (s - t)
        heights = p.alpha(s) * (t - s) * _WEIGHTS * (_ratio(p, t + u) - _ratio(p, s))
        for slope, rise in zip(_slopes(u, [0.0, *places]), rises[1:], strict=True):
            moved = moved + jnp.sum(heights * slope) * rise
        kept = jnp.concatenate([eps[None], before])[: order - 1]
        return moved, (kept, jnp.append(jnp.asarray(t, jnp.float32), when)[: order - 1])

    return Sampler(init, step)


# Of eight evaluations on [0, 1].
_NODES, _WEIGHTS = (np.float32(part) for part in (leggauss(8) + np.array([[1], [0]])) / 2)


def _ratio(p: Process, t) -> Array:
    """sigma/alpha; 0 where it has no meaning, and counts for nothing."""
    signal = has_signal(p, t)
    return jnp.where(signal, p.sigma(t) / jnp.where(signal, p.alpha(t), 1.0), 0.0)


def _slopes(u: Array, places: Sequence[Array]) -> list[Array]:
    """The derivatives at u of Newton's u − places[0], (u − places[0])·(u − places[1]), …"""
    slopes, product, slope = [], jnp.ones_like(u), jnp.zeros_like(u)
    for place in places[: len(places) - 1]:
        slope = slope * (u - place) + product
        product = product * (u - place)
        slopes.append(slope)
    return slopes
