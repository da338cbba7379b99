"""Guidance: functions from denoisers to denoisers that trade diversity for fidelity."""

from diffusion_course.denoiser import Denoiser


def classifier_free(D_cond: Denoiser, D_uncond: Denoiser, w) -> Denoiser:
    """``D_u + w·(D_c − D_u)``: w = 0 is unconditional, w = 1 conditional, w > 1 extrapolates.

    Papers that write ``(1 + w')·eps_c − w'·eps_u`` mean w = 1 + w'. Since eps, v and the score
    are affine in x0 with the same coefficients, guiding x0 is guiding each of them.

    Args:
      D_cond: the conditional denoiser.
      D_uncond: the unconditional denoiser.
      w: guidance scale, a scalar (it may be traced) or one that broadcasts against x.

    Source: Ho & Salimans 2022, eq. 6 (arXiv:2207.12598).
    """

    def D(x, t):
        unconditional = D_uncond(x, t)
        return unconditional + w * (D_cond(x, t) - unconditional)

    return D
