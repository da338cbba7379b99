"""Whole runs of a sampler on an exact denoiser, compiled once for all processes, data and grids.

A program of its own for every process, grid and data set would be nearly all the time of these
tests. Here all three are arguments of the program. The one that notes where the denoiser is
evaluated is small: a program that calls Python is compiled anew in every run of the tests.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from networks import quick_compiler
from oracles import NO_SIGNAL_AT_ONE, PROCESSES

from diffusion_course import denoiser, process, samplers, sde_samplers, solvers

STEPS = 1000  # the longest grid; of a shorter one the rest is not run
SAMPLERS = {
    "ddpm posterior": samplers.ddpm,
    "ddpm transition": lambda p: samplers.ddpm(p, "transition"),
    "ddim": samplers.ddim,
    "ddim 0.4": lambda p: samplers.ddim(p, 0.4),
    "ddim 1": lambda p: samplers.ddim(p, 1.0),
    "reverse_sde": sde_samplers.reverse_sde,
    "reverse_sde_log_snr 0.4": lambda p: sde_samplers.reverse_sde_log_snr(p, 0.4),
    "predictor_corrector": lambda p: sde_samplers.predictor_corrector(samplers.ddpm(p), p),
    "sde_dpm_solver_pp_2m": solvers.sde_dpm_solver_pp_2m,
    "sa_solver": solvers.sa_solver,
}
SOLVERS = {
    "euler": samplers.euler,
    "heun": samplers.heun,
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "dpm_solver 1": lambda p: samplers.dpm_solver(p, 1),
    "dpm_solver 2": lambda p: samplers.dpm_solver(p, 2),
    "dpm_solver 3": lambda p: samplers.dpm_solver(p, 3),
    "pndm": samplers.pndm,
    "dpm_solver_pp_3m": solvers.dpm_solver_pp_3m,
    "unipc": solvers.unipc,
    "deis": solvers.deis,
}
# Schedules whose signal float32 cannot hold at the end, or whose neighbours it cannot tell apart.
EXTREME = {
    "a thousand betas up to .5": process.from_betas(process.linear_betas(1000, 1e-4, 0.5)),
    "twenty thousand betas": process.from_betas(process.linear_betas(20_000)),
    "vp_linear up to 400": process.vp_linear(0.1, 400.0),
}
STRAIGHT = {"edm, straight": process.edm(rho=1.0)}  # on a clock that is sigma itself
ALL = {name: o.process for name, o in PROCESSES.items()} | EXTREME | STRAIGHT


def one_of_all(index, names=tuple(ALL)) -> process.Process:
    """The process with this number among those of these names; the number may be traced."""
    among = [ALL[name] for name in names]

    def choose(functions):
        return lambda t: jax.lax.switch(index, functions, jnp.asarray(t, jnp.float32))

    alpha, sigma = (choose([getattr(p, f) for p in among]) for f in ("alpha", "sigma"))
    log_alpha = choose([p.log_alpha or (lambda t, p=p: jnp.log(p.alpha(t))) for p in among])
    return process.Process(alpha, sigma, log_alpha=log_alpha)


def _walk(sampler, D, x, times, n, key):
    """The last state of n steps along the times."""

    def body(i, carry):
        x, state = carry
        return sampler.step(D, x, times[i], times[i + 1], jax.random.fold_in(key, i), state)

    return jax.lax.fori_loop(0, n, body, (x, sampler.init(x)))[0]


@cache
def _program(name: str):
    make = (SAMPLERS | SOLVERS)[name]

    @jax.jit
    def program(index, data, x, times, n, key):
        p = one_of_all(index)
        return _walk(make(p), denoiser.GaussianMixture(p, *data).denoise, x, times, n, key)

    return program


def run(sampler: str, of: str, data, x, times, seed: int = 0) -> np.ndarray:
    """The last state, float64 [N], of a sampler and a process of these names, from x [N]."""
    times = np.asarray(times, np.float32)
    padded = np.concatenate([times, np.zeros(STEPS + 1 - len(times), np.float32)])
    means, stds, weights = (np.asarray(part, np.float32) for part in data)
    # One shape for all data: a component of next to no weight is none.
    fill = 3 - len(means)
    means = np.concatenate([means, np.full(fill, means[0])])[:, None]
    stds = np.concatenate([stds, np.full(fill, stds[0])])
    weights = np.concatenate([weights, np.full(fill, 1e-30, np.float32)])
    x = jnp.asarray(np.asarray(x)[:, None], jnp.float32)
    index, n = np.int32(list(ALL).index(of)), np.int32(len(times) - 1)
    got = _program(sampler)(index, (means, stds, weights), x, padded, n, jax.random.key(seed))
    return np.asarray(got, np.float64)[:, 0]


# Schedules on which a solver leaves something out, and a few on which it does not.
WATCHED = ("vp_linear", "linear chain", *NO_SIGNAL_AT_ONE, *EXTREME)


@cache
def _watched(name: str):
    """A small program: few processes, a simple denoiser, hardly optimised."""
    make, seen = (SAMPLERS | SOLVERS)[name], []

    def D(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return 0.3 * x

    @jax.jit
    def program(index, x, times, n, key):
        return _walk(make(one_of_all(index, WATCHED)), D, x, times, n, key)

    return program, seen


def evaluated(sampler: str, of: str, times) -> list[float]:
    """The times at which a sampler asks the denoiser on its way along these times."""
    program, seen = _watched(sampler)
    seen.clear()
    padded = np.float32([*times, *np.zeros(30 - len(times))])
    with quick_compiler():
        program(WATCHED.index(of), jnp.ones((2, 1)), padded, len(times) - 1, jax.random.key(0))
        jax.effects_barrier()
    return list(seen)


def quantile(exact, quantiles, t):
    """Where the exact distribution at time t has these quantiles."""
    low, high = np.full_like(quantiles, -500.0), np.full_like(quantiles, 500.0)
    for _ in range(80):
        middle = (low + high) / 2
        below = exact.cdf(middle, t) < quantiles
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def noise_of(of: str, n: int, seed: int = 0) -> np.ndarray:
    """n draws of the noise that a run from t = 1 begins with."""
    return float(ALL[of].sigma(1.0)) * np.random.default_rng(seed).normal(size=n)
