"""Each chapter's sampler as a submission: what the board is to be beaten with.

A function here is what a notebook's `sample` would be. Where a method needs more evaluations than
the budget has, its first step has the method's own fallback, which is DDIM's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffusion_course import edm, flow_map, samplers, sampling, sde_samplers, solvers
from diffusion_course.leaderboard.game import PROCESS as P
from diffusion_course.leaderboard.playing import along, guided
from diffusion_course.process import time_at
from diffusion_course.samplers import Sampler

Play = Callable[..., np.ndarray]


def run(sampler: Sampler, times: Callable[[int], np.ndarray] = sampling.uniform) -> Play:
    """A submission that takes a step of this sampler for each evaluation.

    Args:
      sampler: with one evaluation per step.
      times: the grid of n steps.
    """

    def sample(denoise, noise, evaluations, seed):
        return along(sampler, denoise, noise, times(evaluations), seed)

    return sample


def log_snr(n: int) -> np.ndarray:
    """n + 1 times, equally spaced in log-SNR but for the first and the last."""
    # The process keeps no signal at t = 1: the spacing begins a little below.
    return sampling.log_snr_uniform(P, n, t_min=0.03, t_max=0.98)


def flow_times(n: int) -> np.ndarray:
    """n + 1 times of the cosine process at which sigma/alpha is that of a uniform flow."""
    share = np.linspace(1, 0, n + 1)[1:-1]
    inner = time_at(P, 2 * np.log((1 - share) / share)) if n > 1 else []
    return np.concatenate([[1.0], inner, [0.0]]).astype(np.float32)


def karras(n: int) -> np.ndarray:
    """n + 1 times with EDM's noise levels, from 80 to .02, and then 0."""
    return sampling.karras(P, n, sigma_min=0.02, sigma_max=80.0)


def guidance(denoise, noise, evaluations, seed, w: float = 1.5) -> np.ndarray:
    """DDIM with classifier-free guidance: half as many steps, two evaluations each."""
    if evaluations == 1:
        return along(_DDIM, denoise, noise, sampling.uniform(1), seed)
    D, times = guided(denoise, w), sampling.uniform(evaluations // 2)
    return along(_DDIM, D, noise, times, seed)


# Standard deviation of the noise, for each budget: found by trying a few on other games.
_ON_TOP = {1: 0.3, 2: 0.25, 4: 0.12, 8: 0.06}


def noise_on_top(denoise, noise, evaluations, seed) -> np.ndarray:
    """DDIM, and then noise: it needs no thought, and a Fréchet distance rewards it.

    Images of few evaluations vary too little in their pixels, and the judge is too sure of them;
    noise brings both nearer to what they are for real images.
    """
    x = along(_DDIM, denoise, noise, sampling.uniform(evaluations), seed)
    return x + _ON_TOP[evaluations] * np.random.default_rng(seed).standard_normal(x.shape)


def _two_per_step(sampler: Sampler, times: Callable[[int], np.ndarray]) -> Play:
    """A submission whose sampler corrects every step but the first, from noise, and the last."""

    def sample(denoise, noise, evaluations, seed):
        steps = evaluations if evaluations < 3 else (evaluations + 2) // 2
        return along(sampler, denoise, noise, times(steps), seed)

    return sample


def _most_steps(sampler: Sampler, costs: dict[int, int]) -> Play:
    """A submission that takes costs[evaluations] steps."""

    def sample(denoise, noise, evaluations, seed):
        steps = max(n for budget, n in costs.items() if budget <= evaluations)
        return along(sampler, denoise, noise, sampling.uniform(steps), seed)

    return sample


# Samplers are made once: their compiled steps are kept with them.
_DDIM = samplers.ddim(P)

# Name -> the chapter that teaches it, and the submission.
BASELINES: dict[str, tuple[str, Play]] = {
    "DDPM": ("03", run(samplers.ddpm(P))),
    "DDIM": ("06", run(_DDIM)),
    "DDIM, quadratic grid": ("06", run(_DDIM, sampling.quadratic)),
    "DDIM, guided (w = 1.5)": ("07", guidance),
    "reverse SDE": ("09", run(sde_samplers.reverse_sde(P))),
    "Euler in time": ("09", run(samplers.euler(P))),
    "PNDM": ("11", _most_steps(samplers.pndm(P), {1: 1, 2: 2, 6: 3})),
    "DPM-Solver++(2M)": ("11", run(samplers.dpm_solver_pp_2m(P))),
    "DPM-Solver++(2M), log-SNR grid": ("11", run(samplers.dpm_solver_pp_2m(P), log_snr)),
    "SDE-DPM-Solver++(2M)": ("11", run(solvers.sde_dpm_solver_pp_2m(P))),
    "UniPC": ("11", run(solvers.unipc(P))),
    "DEIS": ("11", run(solvers.deis(P))),
    "SA-Solver": ("11", run(solvers.sa_solver(P))),
    "Heun": ("12", _two_per_step(samplers.heun(P), sampling.uniform)),
    "Heun, EDM's noise levels": ("12", _two_per_step(samplers.heun(P), karras)),
    "Heun with churn": ("12", _two_per_step(edm.churn(samplers.heun(P), P, 0.2), sampling.uniform)),
    "flow matching's grid": ("17", run(_DDIM, flow_times)),
    "consistency sampler": ("18", run(flow_map.consistency(P))),
    "DDIM, with noise on top": ("26", noise_on_top),
}
