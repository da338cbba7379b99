# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Probability flow and likelihood
#
# **The question.** A diffusion model draws pictures. Can it also say how probable a given picture is, and
# does this number tell us whether the picture is a good one?
#
# At the end of this chapter you will be able to
#
# - derive the probability flow from the Fokker–Planck equation, and say why one network has two processes;
# - compute $\log p(x)$ of any point in one run of an ODE, and check it in three independent ways;
# - estimate a trace with random vectors, and predict the scatter of the estimate;
# - report bits per dimension of pixels, and find the factor that is so often forgotten;
# - say what a likelihood does *not* tell: quality, and whether a picture belongs to the data.
#
# **You need** chapters 02 (score), 05 (bits) and 06 (DDIM). **Time**: about 80 minutes of reading.
# The cells run for about 80 seconds on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import logsumexp, ndtri

from diffusion_course import data, denoiser, likelihood, process, samplers, sampling, sde, weights
from diffusion_course.data import toy2d
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# Chapter 06 showed that DDIM with $\eta = 0$ follows a path that is fixed once its start is known. For small
# steps this path solves an ordinary differential equation (ODE), the **probability flow**.
#
# The figure shows 41 such paths in one dimension. We chose their starts in pure noise (on the right) so that
# each gap between two neighbours holds the same probability, 1/42. The paths go left, to the data.
#
# **Predict, then run.** Can you read the density of the data from the left ends of the lines?

# %%
p = process.vp_cosine(s=0.0)  # α = cos(πt/2), σ = sin(πt/2)
line = denoiser.gaussian_mixture(p, [[-0.9], [0.4], [1.3]], [0.2, 0.35, 0.15], [0.3, 0.5, 0.2])


@jax.jit
def go(x, times):
    """Down the flow, from times[0] to times[-1]."""
    return likelihood.decode(p, line.denoise, x, times)


clock = np.linspace(1, 0, 41)
paths = [ndtri(np.arange(1, 42)[:, None] / 42)]
for high, low in pairwise(clock):
    paths.append(np.asarray(go(paths[-1], np.linspace(high, low, 4))))
paths = np.stack(paths)[:, :, 0]

# %%
ends = paths[-1]
from_gaps = 1 / 42 / np.diff(ends)  # probability by width
middles = (ends[1:] + ends[:-1]) / 2
across = np.linspace(-2, 2.2, 400)
density = np.exp(line.log_prob(across[:, None], 0.0))

fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True, width_ratios=[1, 2.2])
left.plot(density, across, color=plots.DATA)
left.plot(from_gaps, middles, "o", ms=3, color=plots.PREDICTION)
left.set(xlabel="density of the data", ylabel="$x_t$", xlim=(1.1, 0))
left.text(1.05, -1.9, "line: exact\ndots: (1/42) / gap", size="small")
right.plot(clock, paths, color=plots.TRUTH, lw=0.6)
right.set(xlabel="time $t$ (0 data, 1 noise)", xlim=(0, 1), ylim=(-2.3, 2.3))
plt.show()

# %% tags=["claims"]
# @title Checked: the gaps give the density of the data
# The mean density over a gap is not the one in its middle: measured 2.3 % apart (median).
wanted = np.exp(line.log_prob(middles[:, None], 0.0))
assert np.median(np.abs(from_gaps / wanted - 1)) < 0.05
assert np.abs(from_gaps / wanted - 1).max() < 0.5

# %% [markdown]
# Yes: where the lines lie close together, the density is high. No line crosses another, so each gap keeps
# its probability all the way. Only its width changes. This chapter does the same with a single path: it
# measures how much the flow stretches space *around* the path, and gets $\log p(x)$ from it.

# %% [markdown]
# ## 2 · From Fokker–Planck to the probability flow
#
# In small steps of time, the forward process is a **stochastic differential equation** (SDE):
# $dx = f\,x\,dt + g\,dw$. In each step the drift $f\,x$ moves the state, and $g\,dw$ adds fresh noise of variance
# $g^2 dt$. Each path is random, but the density $p_t$ of all paths changes by a fixed rule, the
# **Fokker–Planck equation**:
#
# $$\frac{\partial p_t}{\partial t} = -\nabla\!\cdot\!(f\,x\,p_t) + \tfrac12 g^2\,\Delta p_t \tag{1}$$
#
# The first term moves probability along the drift. The second spreads it, as heat spreads. Now one line of
# algebra. Since $\nabla p_t = p_t\nabla\log p_t$, we can write $\Delta p_t = \nabla\cdot(p_t\nabla\log p_t)$,
# and (1) becomes
#
# $$\frac{\partial p_t}{\partial t} = -\nabla\!\cdot\!(v\,p_t), \qquad
# v = f\,x - \tfrac12 g^2\,\nabla\log p_t(x). \tag{2}$$
#
# Equation (2) has no spreading term. It describes points that move with the velocity $v$ and *without any
# noise*: the ODE $dx/dt = v(x, t)$. It has the same $p_t$ at every time as the SDE (Song et al. 2021, section
# 4.3 and appendix D.1). A network that knows the score knows both.

# %% [markdown]
# First we check the algebra on our mixture, in float64 and with finite differences: the change of $p_t$ in
# time, and the right sides of (1) and (2).

# %% tags=["comparison"]
means, stds, shares = np.array([-0.9, 0.4, 1.3]), np.array([0.2, 0.35, 0.15]), [0.3, 0.5, 0.2]


def density_at(x, t):
    alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    std = np.hypot(alpha * stds, sigma)
    return np.exp(-0.5 * ((x[:, None] - alpha * means) / std) ** 2) / std @ shares / 2.5066282746


t, dx, dt = 0.4, 0.002, 1e-4
wide = np.arange(-4, 4, dx)
slope = lambda y: np.gradient(y, dx, edge_order=2)
f, g2 = float(sde.drift(p, t)), float(sde.diffusion_squared(p, t))
now = density_at(wide, t)
change = (density_at(wide, t + dt) - density_at(wide, t - dt)) / (2 * dt)
by_1 = -slope(f * wide * now) + g2 / 2 * slope(slope(now))
velocity_2 = f * wide - g2 / 2 * slope(np.log(now))
by_2 = -slope(velocity_2 * now)
for name, side in {"(1), with spreading": by_1, "(2), with the flow": by_2}.items():
    print(f"{name}: off by at most {np.abs(side - change)[5:-5].max():.0e}"
          f" of {np.abs(change).max():.2f}")  # fmt: skip
    # Differences of second order: dx² times a fourth derivative of some hundreds.
    np.testing.assert_allclose(side[5:-5], change[5:-5], atol=2e-3)

# %% [markdown]
# Both sides agree. So we have two ways from data to noise. We start 3,000 points of the data on each of them.
#
# **Predict, then run.** Look at single paths, and at the histograms at $t = 0.7$. What will be the same in
# both panels?

# %%
clean = line.sample(jax.random.key(0), 3000)
rising = np.linspace(0, 0.7, 141)
_, random_paths = sde.forward(p, clean, rising, jax.random.key(1))
smooth_paths = [clean]
for s, t in pairwise(rising[::4]):
    encode = jax.jit(lambda x, times: likelihood.encode(p, line.denoise, x, times))
    smooth_paths.append(encode(smooth_paths[-1], np.linspace(t, s, 3)))
both = {
    "SDE: with noise": np.concatenate([clean[None], random_paths])[:, :, 0],
    "probability flow": np.stack(smooth_paths)[:, :, 0],
}

# %%
fig, axes = plt.subplots(1, 4, figsize=(10, 3), sharey=True, width_ratios=[3, 1, 3, 1])
for (road, side), (name, states) in zip(axes.reshape(2, 2), both.items(), strict=True):
    road.plot(np.linspace(0, 0.7, len(states)), states[:, :25], lw=0.6, color=plots.PREDICTION)
    road.set(title=name, xlabel="time $t$", xlim=(0, 0.7), ylim=(-3, 3))
    side.hist(states[-1], np.linspace(-3, 3, 41), density=True, orientation="horizontal",
              color=plots.NOISE)  # fmt: skip
    side.plot(density_at(np.linspace(-3, 3, 200), 0.7), np.linspace(-3, 3, 200), color=plots.TRUTH)
    side.set(xlabel="at 0.7", xticks=[])
axes[0].set_ylabel("$x_t$")
plt.show()

# %%
order_kept = {}
for name, states in both.items():
    below = np.cumsum(density_at(wide, 0.7)) * dx  # the exact distribution function
    shares_of = np.sort(np.interp(states[-1], wide, below))
    largest = np.abs(shares_of - (np.arange(3000) + 0.5) / 3000).max()
    ranks = [np.argsort(np.argsort(states[i])) for i in (0, -1)]
    order_kept[name] = np.corrcoef(*ranks)[0, 1], largest
    print(f"{name:17}: distribution function off by at most {largest:.3f}; "
          f"rank correlation of start and end {order_kept[name][0]:.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the same marginal from both, and only the flow keeps the order
# Kolmogorov's bound at one in a thousand: 1.95/√3000; the float32 flow may swap close neighbours.
assert all(largest < 1.95 / np.sqrt(3000) for _, largest in order_kept.values())
assert order_kept["probability flow"][0] > 0.9999 > 0.7 > order_kept["SDE: with noise"][0]

# %% [markdown]
# The histograms are the same: both are draws of the exact density (black). The paths are not. Along the flow
# the highest point stays the highest. Along the SDE a point soon forgets where it began. A flow without
# noise can be run backwards, and that is what makes likelihoods possible.
#
# ## 3 · The change of the density along a path
#
# What happens to $\log p_t(x_t)$ while $x_t$ moves along the flow? Both the density and the point change:
#
# $$\frac{d}{dt}\log p_t(x_t) = \frac{1}{p_t}\Big(\frac{\partial p_t}{\partial t} + v\cdot\nabla p_t\Big)
# = \frac{1}{p_t}\big(-\nabla\!\cdot\!(v\,p_t) + v\cdot\nabla p_t\big) = -\nabla\!\cdot\! v. \tag{3}$$
#
# This is the **instantaneous change of variables** (Chen et al. 2018, theorem 1). The divergence
# $\nabla\cdot v$ is the trace of the Jacobian $\partial v/\partial x$. If it is positive, the volume
# around the point grows, and the density falls. Now integrate (3) from the data to the noise:
#
# $$\log p_0(x_0) = \log p_1(x_1) + \int_0^1 \nabla\!\cdot\! v(x_t, t)\,dt. \tag{4}$$
#
# At $t = 1$ the density is known: pure noise. So $\log p_0$ of *any* point costs one run of the flow from the
# point to the noise.

# %% [markdown]
# One difficulty remains: $f$ and $g^2$ are infinite at $t = 1$, where no signal is left. We need a better
# coordinate. With $\alpha = \cos\varphi$ and $\sigma = \sin\varphi$ we use the angle $\varphi$ as the time,
# from 0 (data) to $\pi/2$ (noise). The velocity per unit of angle is the $v$ of chapter 04, and everything
# stays finite:
#
# $$\frac{dx}{d\varphi} = \alpha\,\hat\varepsilon - \sigma\,\hat x_0
# = \frac{\cos\varphi\;x - D(x, t)}{\sin\varphi}, \qquad
# \frac{d\log p}{d\varphi} = -\frac{d\cos\varphi - \operatorname{tr}\,\partial D/\partial x}{\sin\varphi}
# \tag{5}$$
#
# ($d$ is the number of coordinates). At $\varphi = 0$ both are 0 if the data have a density, because $D$ then
# differs from $x$ by a term of order $\varphi^2$ only. If a process does not preserve variance, we divide $x$
# by $\sqrt{\alpha^2 + \sigma^2}$ first.
#
# Our process `p` has $\varphi = \tfrac{\pi}{2}t$. This is the chapter's algorithm: (5) with the exact trace,
# for three Runge–Kutta methods.


# %%
METHODS = {  # how far along the step each evaluation is, and its weight
    "Euler": ([0], [1]),
    "Heun": ([0, 1], [1 / 2, 1 / 2]),
    "RK4": ([0, 1 / 2, 1 / 2, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}


def slopes(D, x, angle):
    """Equation (5): velocity [B, d] and divergence [B]."""
    inside = jnp.where(angle > 0, angle, 1.0)  # at angle 0 both are 0
    v = lambda x: (jnp.cos(angle) * x - D(x[None], 2 * angle / jnp.pi)[0]) / jnp.sin(inside)
    jacobian = jax.vmap(jax.jacfwd(v))(x)
    both = jax.vmap(v)(x), jnp.trace(jacobian, axis1=1, axis2=2)
    return [jnp.where(angle > 0, part, 0.0) for part in both]


# %%
@partial(jax.jit, static_argnames=("D", "method"))
def log_density(D, x, steps, method="RK4"):
    """Equation (4) in equal steps of the angle; also the noise that x comes from."""
    h = jnp.pi / 2 / steps

    def step(i, carry):
        x, gained = carry
        k, total = (0 * x, 0 * gained), (0 * x, 0 * gained)
        for reach, weight in zip(*METHODS[method], strict=True):
            k = slopes(D, x + reach * h * k[0], (i + reach) * h)
            total = [a + weight * b for a, b in zip(total, k, strict=True)]
        return x + h * total[0], gained + h * total[1]

    z, gained = jax.lax.fori_loop(0, steps, step, (x, jnp.zeros(len(x))))
    return z, gained - 0.5 * jnp.sum(z**2, axis=1) - 0.5 * x.shape[1] * jnp.log(2 * jnp.pi)


# %% [markdown]
# We compare with the library, and with the exact density of the three clouds in the plane.
# `likelihood.log_prob` takes a grid of times like every sampler, from 1 to 0.

# %% tags=["comparison"]
gm = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
points = gm.sample(jax.random.key(2), 200)
truth = np.float64(gm.log_prob(points, 0.0))

z, by_hand = log_density(gm.denoise, points, 64)
library = likelihood.log_prob(p, gm.denoise, points, sampling.uniform(64))
encoded = likelihood.encode(p, gm.denoise, points, sampling.uniform(64))
print(f"written out and library differ by at most {np.abs(by_hand - library).max():.0e} nats")
print(f"64 steps: off the exact log p by {np.abs(by_hand - truth).max():.0e} nats at most")
np.testing.assert_allclose(by_hand, library, atol=1e-3)  # 64 steps of float32
np.testing.assert_allclose(z, encoded, atol=1e-3)

# %% [markdown]
# ## 4 · Two independent checks
#
# **The order.** Runge–Kutta's classical method, RK4, is of order 4: for short steps its error is like
# $h^4$. Heun's method is of order 2, and Euler's of order 1.
#
# **Predict, then run.** Twice as many steps divide RK4's error by how much? And where does its line end?

# %%
counts = np.array([8, 12, 18, 27, 40, 60, 90, 135])
shown = jnp.asarray(np.linspace(-1.3, 1.6, 100)[:, None], jnp.float32)
exact_line = np.log(density_at(np.float64(shown[:, 0]), 0.0))
rms = lambda values: float(np.sqrt(np.mean(np.square(values))))
errors = {m: [rms(log_density(line.denoise, shown, int(n), m)[1] - exact_line) for n in counts]
          for m in METHODS}  # fmt: skip
fitted = {m: -np.polyfit(np.log(counts[2:6]), np.log(e[2:6]), 1)[0] for m, e in errors.items()}
for m, e in errors.items():
    print(f"{m:5} order {fitted[m]:.2f}; error in nats", *(f"{v:.0e}" for v in e))

# %%
ax = plots.curves(counts, errors, log="xy", xlabel="steps from data to noise",
                  ylabel="rms error of $\\log p$, nats")  # fmt: skip
ax.set_xticks(counts, counts)
ax.minorticks_off()
plt.show()

# %% tags=["claims"]
# @title Checked: the fitted orders, from 18 to 60 steps, are those of the methods
# 100 points of the mixture on the line; the grid is uniform in the angle. Float32 ends RK4's line.
assert 3.5 < fitted["RK4"] < 4.5 and 1.6 < fitted["Heun"] < 2.4 and 0.7 < fitted["Euler"] < 1.3
assert errors["RK4"][-1] < 5e-6 < 1e-4 < errors["Heun"][-1]
assert errors["RK4"][-2] < 2 * errors["RK4"][-1]

# %% [markdown]
# Sixteen times less, as long as the steps are short, until float32 has no more digits to win. Heun needs many
# more steps for the same error, and Euler never comes close. `likelihood` has RK4 built in, since a
# density is asked for its digits, while a picture is not.
#
# **Another solver, another formula.** SciPy's `solve_ivp` chooses its own steps, in float64. We give it the
# ODE in its other form, $v = f x - \tfrac12 g^2\nabla\log p_t$, and the divergence of the exact score. It
# shares no line with the library. We write it for the three clouds; at the end we stop just before the
# singular point.

# %%
CENTRES, WIDTHS, PARTS = (np.float64(part) for part in toy2d.MIXTURE)


def rates(angle, state):
    """Per unit of angle: f = −tan, g²/2 = tan. State, and the integral of the divergence."""
    v = (np.cos(angle) * WIDTHS) ** 2 + np.sin(angle) ** 2
    pull = (np.cos(angle) * CENTRES - state[:2]) / v[:, None]  # each cloud's score
    joint = np.log(PARTS / v) - 0.5 * v * (pull**2).sum(1)
    r = np.exp(joint - logsumexp(joint))
    score = r @ pull
    laplacian = r @ ((pull**2).sum(1) - 2 / v) - score @ score
    return np.append(-np.tan(angle) * (state[:2] + score), -np.tan(angle) * (2 + laplacian))


END = np.pi / 2 - 1e-6
by_scipy, asked = [], 0
for point in np.float64(points[:8]):
    run = solve_ivp(rates, (0, END), np.append(point, 0.0), "DOP853", rtol=1e-9, atol=1e-10)
    there, gained = run.y[:2, -1], run.y[2, -1]
    by_scipy.append(gained - 0.5 * there @ there - np.log(2 * np.pi))
    asked += run.nfev / 8
by_scipy = np.array(by_scipy)
ours = likelihood.log_prob(p, gm.denoise, points[:8], sampling.uniform(250))
print(f"SciPy and the exact density: {np.abs(by_scipy - truth[:8]).max():.0e} nats apart;"
      f" {asked:.0f} evaluations per point")  # fmt: skip
print(f"SciPy and our 250 steps:     {np.abs(by_scipy - ours).max():.0e} nats apart")

# %% tags=["claims"]
# @title Checked: SciPy agrees with the exact density to 1e-5, and with the library up to float32
# The start at END instead of π/2 costs 1e-6; 250 steps of float32 on sums of some ten nats.
assert np.abs(by_scipy - truth[:8]).max() < 1e-5
assert np.abs(by_scipy - ours).max() < 1e-4

# %% [markdown]
# ## 5 · Hutchinson's estimate
#
# The exact trace needs one product with the Jacobian per coordinate: 2 in the plane, 64 for an 8×8 digit, and
# more than three thousand for a small photograph. Hutchinson (1990) needs one product with a random vector.
# Let $z$ have independent coordinates of mean 0 and variance 1. Then
#
# $$\mathbb E\big[z^\top J z\big] = \sum_{ij} J_{ij}\,\mathbb E[z_i z_j] = \operatorname{tr} J. \tag{6}$$
#
# With $m$ vectors (**probes**) we take the *mean* of the $m$ numbers. $z^\top J z$ sees only the symmetric part
# $S = (J + J^\top)/2$, and its variance is
#
# $$\text{Gaussian } z:\ \frac2m\sum_{ij}S_{ij}^2, \qquad
# \text{Rademacher } z = \pm 1:\ \frac2m\sum_{i\ne j}S_{ij}^2. \tag{7}$$
#
# A Rademacher probe pays nothing for the diagonal, because there $z_i^2 = 1$ in every draw.
#
# **Predict, then run.** Take a Gaussian with strongly correlated coordinates, in 16 dimensions. Its denoiser
# is linear, so (7) is exact. How many probes bring the scatter from one probe down to a tenth?

# %%
SIZE = 16
places = np.arange(SIZE)
COVARIANCE = 0.3 * np.exp(-np.abs(places[:, None] - places) / 3)  # neighbours are alike


def jacobian(angle):
    """∂D/∂x of the denoiser of N(0, COVARIANCE), in float64."""
    noisy = np.cos(angle) ** 2 * COVARIANCE + np.sin(angle) ** 2 * np.eye(SIZE)
    return np.cos(angle) * np.linalg.solve(noisy, COVARIANCE)


J = jacobian(0.4)
rng = np.random.default_rng(0)
DRAW = {"Rademacher": lambda *shape: rng.choice([-1.0, 1.0], shape),
        "Gaussian": lambda *shape: rng.standard_normal(shape)}  # fmt: skip
in_closed_form = {"Gaussian": 2 * (J**2).sum()}
in_closed_form["Rademacher"] = in_closed_form["Gaussian"] - 2 * (np.diag(J) ** 2).sum()
scatter = {}
for kind, m in ((k, m) for k in DRAW for m in (1, 10, 100)):
    probes = DRAW[kind](2000, m, SIZE)
    estimates = np.einsum("nmi,ij,nmj->nm", probes, J, probes).mean(1)
    scatter[kind, m] = estimates.mean() - np.trace(J), estimates.std()
    print(f"{kind:10} {m:3} probes: off by {scatter[kind, m][0]:+.3f}, scatter {estimates.std():.3f}, "
          f"by (7) {np.sqrt(in_closed_form[kind] / m):.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: unbiased, with the scatter of (7), and a hundred probes for a tenth
# 2,000 repeats: the scatter is known to 1/√4000 times √((kurtosis − 1)/2), at most 2: 3 %.
for (kind, m), (off, spread) in scatter.items():
    wanted_spread = np.sqrt(in_closed_form[kind] / m)
    assert abs(off) < 4 * wanted_spread / np.sqrt(2000)
    assert abs(spread / wanted_spread - 1) < 0.13
assert scatter["Rademacher", 1][1] < scatter["Gaussian", 1][1]

# %% [markdown]
# A hundred. In one run of the flow, there is a cheaper way to get more probes: the trace is needed at *many*
# times. The library draws a fresh probe at each evaluation. FFJORD (Grathwohl et al. 2019) keeps one $z$ for
# the whole run, because a solver that chooses its own steps needs a fixed function. On a fixed grid there is
# no such need. (The state never feels the probes: only the sum does.)
#
# **Predict, then run.** One probe, kept for the whole run, or drawn anew at each of 4 × 32 evaluations. How
# do their scatters differ?

# %%
linear = lambda x, t: x @ jnp.float32(jacobian_at(t)).T


def jacobian_at(t):
    """The same as `jacobian`, for JAX: t may be traced."""
    cos, sin = p.alpha(t), p.sigma(t)
    return cos * jnp.linalg.solve(cos**2 * COVARIANCE + sin**2 * jnp.eye(SIZE), COVARIANCE)


@partial(jax.jit, static_argnames="probes")
def fresh(x, key, probes):
    return likelihood.log_prob(p, linear, x, sampling.uniform(32), key, probes)


one_point = rng.multivariate_normal(np.zeros(SIZE), COVARIANCE)
drawn = np.float64(fresh(jnp.tile(jnp.float32(one_point), (4000, 1)), jax.random.key(3), 1))
# Kept: zᵀ(∫ −J/sin dφ)z, with the integral by the same four evaluations per step.
angles = np.linspace(0, np.pi / 2, 65)[1:]  # at angle 0 nothing is added
weights_of = np.resize([4, 2], 64) * np.pi / 2 / 32 / 6  # Simpson: RK4 where the state is not felt
weights_of[-1] /= 2
whole = sum(w * jacobian(a) / np.sin(a) for w, a in zip(weights_of, angles, strict=True))
kept = np.sqrt(2 * (whole**2).sum() - 2 * (np.diag(whole) ** 2).sum())
exact_log_p = -0.5 * (one_point @ np.linalg.solve(COVARIANCE, one_point)
                      + np.linalg.slogdet(2 * np.pi * COVARIANCE)[1])  # fmt: skip
print(f"exact log p {exact_log_p:.2f}; mean of 4,000 estimates {drawn.mean():.2f}")
print(f"scatter of log p: one probe kept {kept:.2f} nats, fresh ones {drawn.std():.2f} nats")

# %% tags=["claims"]
# @title Checked: fresh probes scatter at least four times less, and the mean is right
assert abs(drawn.mean() - exact_log_p) < 4 * drawn.std() / np.sqrt(4000) + 1e-2  # and the steps
assert drawn.std() < kept / 4

# %% [markdown]
# The mean is right for both. Fresh probes scatter far less: an integral over many independent estimates is an
# average of them. The trace enters $\log p$ linearly, so the result is unbiased for $\log p$, and not for $p$.
#
# ## 6 · Encoding and decoding
#
# Now a network: the released one for the 8×8 digits, with its own process `q`. The flow gives each picture one
# point of the noise, its **latent**, and leads back from there. `likelihood.encode` and `likelihood.decode`
# use the same steps in both directions.
#
# We need a grid. Digits are made of exact grey levels, so the network changes quickly at low noise. Our grid
# has angles that grow like squares: short steps near the data, and long ones near the noise.
#
# **Predict, then run.** If the network were perfect, what would the latents of unseen digits look like? And
# the latent of a grey picture, which is no digit?

# %%
released = weights.load("digits")
q = released.process  # the cosine process of the course; the network predicts v
unseen, seen = data.load("digits", split="test"), data.load("digits")


def squared_angles(n, end=0.0):
    """n + 1 times from 1 to `end`; the angles above that of `end` grow like squares."""
    last = np.arctan2(float(q.sigma(end)), float(q.alpha(end)))
    inside = last + (np.pi / 2 - last) * np.linspace(1, 0, n + 1)[1:-1] ** 2
    times = process.time_at(q, -2 * np.log(np.tan(inside)))
    return np.concatenate([[1.0], times, [end]]).astype(np.float32)


@jax.jit
def round_trip(model, x, times):
    D = denoiser.denoiser(model, q, "v")
    z = likelihood.encode(q, D, x, times)
    return z, likelihood.decode(q, D, z, times)


# %%
grey = np.zeros((1, 8, 8, 1), np.float32)
hundred = unseen.x[:100]
some = np.concatenate([hundred[:99], grey])
some = likelihood.dequantize(some, 17, jax.random.key(4))  # section 7 says why
back_off = {}
for n in (4, 8, 16):
    latents, back = round_trip(released.model, some, squared_angles(n))
    back_off[n] = 8 * rms(back - some)
    print(f"{n:2} steps: there and back differ by {back_off[n]:.5f} grey levels (rms)")
size_of = lambda z: np.mean(np.square(z), axis=(1, 2, 3))  # of pure noise: 1 ± .18
energy = size_of(latents)
print(f"mean square of the latents: digits {energy[:99].mean():.2f} ± {energy[:99].std():.2f}, "
      f"the grey picture {energy[99]:.2f}; noise 1.00 ± {np.sqrt(2 / 64):.2f}")  # fmt: skip
plots.image_grid([some[92:], latents[92:], back[92:]], ["picture", "latent", "decoded"])
plt.show()

# %% tags=["claims"]
# @title Checked: the round trip closes with the steps; the latents of digits are too large
assert back_off[4] > 5 * back_off[8] and back_off[16] < 0.002
assert 1.6 < energy[:99].mean() < 2.6 and energy[:99].min() > 1 + np.sqrt(2 / 64)
assert energy[99] > energy[:99].mean() + 3 * energy[:99].std()

# %% [markdown]
# The round trip closes quickly. But look at the size of the latents. The grey picture does not fit: its latent
# is far too large. And the latents of real digits are too large as well: their mean square is about 2, and each
# of the 99 is above 1. Pictures from a network's own distribution would give 1. Something is wrong with these
# digits, and the likelihood must suffer from it.

# %% [markdown]
# ## 7 · Bits of pixels: dequantisation
#
# A digit of 17 grey levels is a point on a grid, and chapter 05 showed what a *density* at such points is
# worth: it can grow without end. The remedy is **dequantisation**. We add to each pixel a uniform
# $u$ that fills its bin of width $\Delta = 2/(K - 1)$, here $2/16$, and take the mean of the log-density there.
# Jensen's inequality says what this mean is:
#
# $$\log P(x) = \log\int_{\text{bin}} p(x + u)\,du
# \;\ge\; \mathbb E_u\big[\log p(x + u)\big] + d\,\log\Delta \tag{8}$$
#
# (Theis, van den Oord & Bethge 2016, section 3.1). $P$ is a probability of discrete pixels, so its bits can be
# compared with chapter 05. In bits per dimension we get an **upper bound**:
#
# $$\text{bits/dim} \;\le\; -\frac{\mathbb E_u \log p(x + u)}{d\,\log 2} + \log_2\frac{K-1}{2}. \tag{9}$$
#
# The last term is $\log_2 8 = 3$ for our 17 levels, and $\log_2 127.5$ for 256.

# %% tags=["comparison"]
# One pixel with a known P: a model N(0.1, 0.07²), cut into 17 bins.
LEVELS = np.linspace(-1, 1, 17)
fine = LEVELS[:, None] + (np.arange(500) + 0.5) / 500 / 8 - 1 / 16
log_p = -0.5 * ((fine - 0.1) / 0.07) ** 2 - np.log(0.07 * np.sqrt(2 * np.pi))
exact_bits = -np.log2(np.exp(log_p).mean(1) / 8)
bound_bits = -log_p.mean(1) / np.log(2) + np.log2(8)
by_library = np.asarray(likelihood.bits_per_dim(log_p, 1, levels=17)).mean(1)
for k in (8, 9, 12):
    print(
        f"pixel {LEVELS[k]:+.3f}: exact {exact_bits[k]:.2f} bits, dequantised {bound_bits[k]:.2f}"
    )
np.testing.assert_allclose(by_library, bound_bits, rtol=1e-5)
assert (bound_bits >= exact_bits).all()
assert abs(np.sum(2.0**-exact_bits) - 1) < 1e-4  # probabilities add up to 1

# %% [markdown]
# Now the digits: 100 unseen ones, with one Rademacher probe per evaluation. Beside them stand two numbers of
# chapter 05: its bound, 2.03 bits/dim at 32 steps with the best variance, and a histogram for each pixel, which
# is no model at all. We compute the second one again, for these hundred digits.
#
# **Predict, then run.** Will the flow need fewer bits than the bound? Look at the uniform grid first.


# %%
@jax.jit
def flow_log_prob(model, x, times, key):
    return likelihood.log_prob(q, denoiser.denoiser(model, q, "v"), x, times, key, probes=1)


def uniform_bits(x, times, seed=5):
    x = likelihood.dequantize(np.float32(x), 17, jax.random.key(seed))
    found = flow_log_prob(released.model, x, times, jax.random.key(seed + 1))
    return np.asarray(likelihood.bits_per_dim(found, 64, levels=17))


grey_of = lambda images: np.rint((images.reshape(-1, 64) + 1) * 8).astype(int)
counted = np.stack([(grey_of(seen.x) == k).sum(0) for k in range(17)]) + 1  # one of each at first
by_histogram = -np.log2(counted / counted.sum(0))[grey_of(hundred), np.arange(64)].mean()
print(f"a histogram for each pixel: {by_histogram:.3f} bits/dim")
by_grid = {f"{n} steps, {name}": uniform_bits(hundred, grid(n)) for n in (32, 64)
           for name, grid in (("uniform", sampling.uniform), ("squared", squared_angles))}  # fmt: skip
for name, bits in by_grid.items():
    print(f"{name}: {bits.mean():.3f} ± {bits.std() / 10:.3f} bits/dim")

# %%
few = some[:6]  # the exact trace for six of them: 64 products per evaluation
sixteen = squared_angles(16)
exact_trace = jax.jit(lambda model, x: likelihood.log_prob(
    q, denoiser.denoiser(model, q, "v"), x, sixteen))(released.model, few)  # fmt: skip
guesses = [flow_log_prob(released.model, few, sixteen, jax.random.key(k)) for k in range(20)]
guesses = np.stack(guesses) / 64 / np.log(2)
by_exact = np.asarray(exact_trace) / 64 / np.log(2)
apart = np.abs(guesses.mean(0) - by_exact).max()
print(f"exact trace and the mean of 20 estimates: at most {apart:.3f} bits/dim apart; "
      f"one estimate scatters by {guesses.std(0).mean():.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: Hutchinson agrees with the exact trace; a uniform grid of 32 steps flatters
errors_20 = guesses.std(0, ddof=1) / np.sqrt(20)
assert (np.abs(guesses.mean(0) - by_exact) < 4.5 * errors_20).all()  # six at once
squared = by_grid["64 steps, squared"].mean()
assert abs(by_grid["32 steps, squared"].mean() - squared) < 0.02
assert by_grid["32 steps, uniform"].mean() < squared - 0.2
assert squared > by_histogram + 0.1

# %% [markdown]
# The flow needs 2.6 bits/dim: *more* than the histograms. And the uniform grid with 32 steps says 2.2. This
# is not a better model, but an error of the integral, and it flatters. **A likelihood is a number only
# after its grid has converged.** Twice as many of the squared steps change it by less than 0.02.

# %% [markdown]
# ## 8 · Where the bits go, and a better noise
#
# Why is the flow so bad, and why are its latents too large? Uniform noise in a bin has a standard deviation of
# 0.29 grey levels. But the flow begins at $t = 0$, where the network is told that there is none. So it takes
# this noise for a part of the picture, which no digit has. The latents become too large, and that costs bits.
#
# So let us tell the network how much noise there is, and take the kind that it was trained with. We take
# $x_\tau = \alpha_\tau x + \sigma_\tau \varepsilon$ at a small time $\tau$, let the flow begin there, and
# round the receiver's pixels by Bayes' rule:
#
# $$-\log P(x) \le \mathbb E\Big[-\log p_\tau(x_\tau) + \log q(x_\tau|x) - \log P(x|x_\tau)\Big], \qquad
# P(\ell\,|\,x_\tau) \propto e^{-(x_\tau - \alpha_\tau\ell)^2/2\sigma_\tau^2} \tag{10}$$
#
# for each pixel's level $\ell$. It is Jensen's inequality once more, as in (8), with another distribution in
# the place of the uniform one (variational dequantisation; Ho et al. 2019).
#
# **Predict, then run.** Two things change: the network is told the noise level, and the noise is Gaussian. Do
# they make up the difference to the bound? Which of the two matters more?

# %%
GREY_LEVELS = jnp.linspace(-1, 1, 17)


@jax.jit
def own_noise_bits(model, x, times, key):
    """Equation (10) in bits per dimension, for the time τ = times[-1], one draw each."""
    tau, (key_eps, key_z) = times[-1], jax.random.split(key)
    alpha, sigma = q.alpha(tau), q.sigma(tau)
    eps = jax.random.normal(key_eps, x.shape)
    x_tau = alpha * x + sigma * eps
    D = denoiser.denoiser(model, q, "v")
    flow = likelihood.log_prob(q, D, x_tau, times, key_z, probes=1)
    # log q(x_τ|x), and the log-probability of the right level among 17.
    noise = -0.5 * eps**2 - jnp.log(sigma) - 0.5 * jnp.log(2 * jnp.pi)
    shares = jax.nn.log_softmax(-((x_tau - alpha * GREY_LEVELS) ** 2) / (2 * sigma**2), axis=-1)
    right = jnp.rint((x[..., 0] + 1) * 8).astype(int)
    level = jnp.take_along_axis(shares, right[..., None], axis=-1)
    return (-flow + jnp.sum(noise - level, axis=(1, 2, 3))) / 64 / jnp.log(2)


# %%
taus = np.array([0.005, 0.01, 0.015, 0.02, 0.03, 0.05])
of_tau = []
for tau in taus:
    of_tau.append(np.asarray(
        own_noise_bits(released.model, hundred, squared_angles(32, tau), jax.random.key(7))))  # fmt: skip
    print(f"τ = {tau}: noise of {8 * float(q.sigma(tau)):.2f} grey levels, "
          f"{of_tau[-1].mean():.3f} ± {of_tau[-1].std() / 10:.3f} bits/dim")  # fmt: skip
best = np.argmin(np.mean(of_tau, axis=1))
TAU = taus[best]
fig, ax = plt.subplots(figsize=(5.6, 3.2))
ax.errorbar([8 * float(q.sigma(tau)) for tau in taus], np.mean(of_tau, axis=1),
            np.std(of_tau, axis=1) / 10, color=plots.PREDICTION, marker="o", ms=4)  # fmt: skip
for level, name in ((squared, "uniform dequantisation"), (by_histogram, "a histogram for each pixel"),
                    (2.03, "chapter 05's bound, 32 steps")):  # fmt: skip
    ax.axhline(level, color=plots.TRUTH, lw=0.6, ls="--")
    ax.text(0.72, level, name, va="bottom" if level > 2.1 else "top", ha="right", size="small")
ax.set(xlabel="noise at τ, grey levels", ylabel="bits/dim", ylim=(1.85, 2.85))
plt.show()

# %%
# One thing at a time: uniform noise, the same draws as above, but the flow begins at τ.
alpha_tau = float(q.alpha(TAU))
uniform = alpha_tau * likelihood.dequantize(hundred, 17, jax.random.key(5))
told = flow_log_prob(released.model, uniform, squared_angles(32, TAU), jax.random.key(6))
told = np.asarray(likelihood.bits_per_dim(told, 64, levels=17)) - np.log2(alpha_tau)
from_zero = by_grid["32 steps, squared"]
print(f"uniform noise, from t = 0: {from_zero.mean():.3f}, the same from τ: {told.mean():.3f}, "
      f"Gaussian from τ: {of_tau[best].mean():.3f} bits/dim")  # fmt: skip
z_tau = jax.random.normal(jax.random.key(14), hundred.shape)
z_tau = q.alpha(TAU) * hundred + q.sigma(TAU) * z_tau
own_energy, told_energy = (size_of(round_trip(released.model, x, squared_angles(16, TAU))[0])
                           for x in (z_tau, uniform))  # fmt: skip
print(f"mean square of the latents from τ on: {own_energy.mean():.2f} ± {own_energy.std():.2f}, "
      f"with uniform noise {told_energy.mean():.2f} ± {told_energy.std():.2f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: with a noise level that the network is told the flow is as good as the bound, within .1
# Paired: the same hundred digits. Chapter 05 measured 2.03 at 32 steps, and 1.93 at 256.
saved = by_grid["64 steps, squared"] - of_tau[best]
assert saved.mean() > 0.5 and saved.mean() > 10 * saved.std() / 10
assert 1.88 < of_tau[best].mean() < 2.08 and 0 < best < len(taus) - 1
again = [own_noise_bits(released.model, hundred, squared_angles(64, TAU), jax.random.key(k)).mean()
         for k in (8, 9)]  # fmt: skip
assert all(abs(value - of_tau[best].mean()) < 0.05 for value in again)
assert abs(own_energy.mean() - 1) < 0.2 < abs(energy[:99].mean() - 1)
# The level is most of it: the same uniform noise, and only where the flow begins has changed.
by_level, by_shape = from_zero - told, told - of_tau[best]
assert by_level.mean() > 5 * by_shape.mean() > 0 and by_level.mean() > 10 * by_level.std() / 10
assert abs(told_energy.mean() - 1) < 0.2

# %% [markdown]
# They do. With Gaussian noise of a third of a grey level the flow needs 1.96 bits/dim, more than half a bit less.
# It is about as good as chapter 05's bound (2.03 at 32 steps and 1.95 at 128, on all unseen digits; our 32 steps
# are 128 evaluations). The level matters most: the *same* uniform noise, begun at $\tau$, has nearly the whole
# gain. The latents now have the size of noise. With more noise the receiver's rounding costs bits. A network that
# is *trained* on dequantised pixels does not have this problem.
#
# ## 9 · Likelihood is not quality
#
# **A simple picture beats a digit.** The MNIST network draws ten digits, and we measure their bits beside those
# of a black picture (256 levels, 24 steps, uniform dequantisation for all).
#
# **Predict, then run.** Which of the eleven pictures is the most probable one?

# %%
mnist = weights.load("mnist")


@jax.jit
def of_mnist(model, noise, labels, times, key):
    """Ten drawn digits and a black picture at 256 levels, and their bits per dimension."""
    D = denoiser.denoiser(model, q, "v", labels)
    sampler = samplers.dpm_solver_pp_2m(q)
    drawn, _ = sampling.sample(sampler, D, noise, sampling.uniform(30), key)
    drawn = jnp.rint((jnp.clip(drawn, -1, 1) + 1) * 127.5) / 127.5 - 1
    pictures = jnp.concatenate([drawn, -jnp.ones_like(drawn[:1])])
    spread = likelihood.dequantize(pictures, 256, key)
    D = denoiser.denoiser(model, q, "v")  # without a label
    found = likelihood.log_prob(q, D, spread, times, key, probes=1)
    return pictures, likelihood.bits_per_dim(found, 784, levels=256)


# %%
noise = jax.random.normal(jax.random.key(10), (10, 28, 28, 1))
made, mnist_bits = of_mnist(
    mnist.model, noise, jnp.arange(10), squared_angles(24), jax.random.key(11)
)
fig, axes = plt.subplots(1, 11, figsize=(10, 1.4))
for ax, picture, bits in zip(axes, made, mnist_bits, strict=True):
    ax.imshow(picture[..., 0], vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[], xlabel=f"{bits:.2f}")
fig.suptitle("bits/dim under each picture", size="medium")
plt.show()
nats = 784 * np.log(2) * (np.asarray(mnist_bits[:10]) - float(mnist_bits[10]))
print(
    f"the black picture has e^{nats.min():.0f} to e^{nats.max():.0f} times the density of a digit"
)

# %% tags=["claims"]
# @title Checked: the black picture has fewer bits than each of the ten digits
# Measured .7 against more than 2; one probe scatters by less than .1 bits/dim.
assert mnist_bits[10] < 1 < mnist_bits[:10].min() - 0.3

# %% [markdown]
# The black picture wins by far, though no one has ever drawn it. It is simply easy to describe: no edge, no
# grey level to specify. High likelihood means *few bits*, and most bits describe
# details (chapter 05). It does not mean "typical": in many dimensions, the most probable point is not where the
# samples are. For $\mathcal N(0, I)$ it is the origin, and all samples lie near radius $\sqrt d$.
#
# **The other way round.** Take a good model and replace 99 % of its samples by noise. Then
#
# $$\log\big(0.01\,p(x) + 0.99\,p_{\text{noise}}(x)\big) \ge \log p(x) - \log 100, \tag{11}$$
#
# so each picture costs at most 6.6 bits more, and these are spread over all $d$ dimensions (Theis et al. 2016,
# section 3.2). We mix our model of the digits with pixels drawn evenly from the 17 levels.

# %%
mixed = {}
for name, share in (("the model", 1.0), ("1 % of it, 99 % noise", 0.01)):
    log_noise = -64 * np.log(17) * np.ones(100)
    log_model = -of_tau[best] * 64 * np.log(2)
    with np.errstate(divide="ignore"):
        parts = np.stack([log_model + np.log(share), log_noise + np.log(1 - share)])
    mixed[name] = -logsumexp(parts, axis=0).mean() / 64 / np.log(2)
    print(f"{name}: {mixed[name]:.3f} bits/dim")
cost = mixed["1 % of it, 99 % noise"] - mixed["the model"]
print(f"a model of 32×32×3 pixels would pay {np.log2(100) / 3072:.4f} bits/dim")

# %% tags=["claims"]
# @title Checked: 99 % noise costs a tenth of a bit per dimension, less than the dequantisation did
assert 0.09 < cost <= np.log2(100) / 64 + 1e-6
assert cost < saved.mean() / 4

# %% [markdown]
# A tenth of a bit separates a good generator from a useless one. Our choice of the dequantisation noise
# mattered more than four times as much. So bits and pictures have to be measured separately.
#
# **Out of distribution.** Can we say that a picture does not belong to the data, because its likelihood is low? We
# measure the same bits (10) for other pictures of 8×8 pixels and 17 levels. AUROC is the probability that a random
# picture of the other kind has more bits than a random unseen digit: 1 is perfect, 0.5 is a guess.
#
# **Predict, then run.** Which of them will the likelihood miss?

# %%
shuffled = np.random.default_rng(1).permuted(hundred.reshape(100, 64), axis=1)
kinds = {
    "unseen digits": hundred,
    "training digits": seen.x[400:500],
    "upside down": hundred[:, ::-1],
    "half the contrast": np.rint((hundred + 1) * 4) / 8 - 1,
    "black": -np.ones_like(hundred),
    "shuffled pixels": shuffled.reshape(hundred.shape),
}
bits_of, auroc = {}, {}
for name, batch in kinds.items():
    bits_of[name] = np.asarray(own_noise_bits(
        released.model, np.float32(batch), squared_angles(32, TAU), jax.random.key(12)))  # fmt: skip
    auroc[name] = np.mean(bits_of[name][:, None] > bits_of["unseen digits"])
    print(f"{name:17} {bits_of[name].mean():5.2f} ± {bits_of[name].std():.2f} bits/dim, "
          f"AUROC {auroc[name]:.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: gross changes are found; one picture in six or more of those upside down passes
# A hundred pictures of each kind: an AUROC is known to about .03.
assert all(auroc[name] > 0.98 for name in ("black", "shuffled pixels"))
assert auroc["half the contrast"] > 0.95
assert 0.7 < auroc["upside down"] < auroc["half the contrast"]
assert auroc["training digits"] < 0.5
line_5 = np.quantile(bits_of["unseen digits"], 0.95)  # one digit in twenty is refused
missed = np.mean(bits_of["upside down"] < line_5)
assert missed > 1 / 6

# %%
print(f"refusing 5 % of the digits, {missed:.0%} of those upside down pass")

# %% [markdown]
# The likelihood finds the gross changes. It misses many digits upside down: their strokes are strokes. Here a
# black picture costs *more* than a digit, on MNIST it costs far less. So which pictures a likelihood misses depends
# on the data. Nalisnick et al. (2019) found the famous case: flows trained on photographs of objects (CIFAR-10)
# give a higher likelihood to house numbers (SVHN), which are smoother.
#
# ## 10 · The same number without a flow: I-MMSE
#
# Chapter 05's bound is a sum over noise levels, and the flow is an integral along one path. There is a third
# way, which is exact and needs neither. Let $\gamma$ be the SNR and
# $\mathrm{mmse}(x, \gamma) = \mathbb E_\varepsilon\|x - \hat x_0\|^2$, the mean squared error of the exact
# denoiser *for this* $x$. Then
#
# $$-\log p(x) = \frac d2\log 2\pi e - \frac12\int_0^\infty\Big[\frac{d}{1+\gamma} -
# \mathrm{mmse}(x,\gamma)\Big]\,d\gamma \tag{12}$$
#
# (Kong, Brekelmans & Ver Steeg 2023). The first two terms are those of a standard Gaussian. The integral is
# what the data are easier to denoise than that. The equation is named after the link between information (I)
# and minimum mean squared error (MMSE).

# %% [markdown]
# In float32 there is a trap. At high SNR, $x - \hat x_0$ is the small difference of two nearly equal numbers, and it
# is multiplied by $\gamma$ when we integrate over $\log\gamma$. But $\gamma\,\|x - \hat x_0\|^2 = \|\varepsilon -
# \hat\varepsilon\|^2$, and $\hat\varepsilon = -\sigma\nabla\log p_t$ comes from the score, without any difference. This is
# the **ε-form**:
#
# $$-\log p(x) = \frac d2\log 2\pi e - \frac12\int_{-\infty}^\infty\Big[\frac{\gamma d}{1+\gamma} -
# \mathbb E\|\varepsilon - \hat\varepsilon\|^2\Big]\,d\log\gamma. \tag{13}$$
#
# **Predict, then run.** Both forms in float32, and the ε-form also in float64, all on the same nodes. What
# happens as we take the integral further and further to the right?

# %%
log_gammas, dg = np.linspace(-22, 30, 521, retstep=True)
epsilons, de = np.linspace(-8, 8, 1601, retstep=True)


def i_mmse(x, form, dtype):
    """Equation (12) or (13) for one x of the mixture on the line, by two trapezoidal sums."""
    eps, inside = epsilons.astype(dtype), np.zeros(len(log_gammas))
    for i, log_gamma in enumerate(log_gammas):
        gamma = np.exp(log_gamma)
        alpha, sigma = (dtype(np.sqrt(part / (1 + gamma))) for part in (gamma, 1))
        x_t = alpha * dtype(x) + sigma * eps
        v = (alpha * stds.astype(dtype)) ** 2 + sigma**2
        pull = (alpha * means.astype(dtype) - x_t[:, None]) / v
        joint = np.log(np.asarray(shares, dtype)) - np.log(v) / 2 - pull**2 * v / 2
        r = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        score = (r * pull).sum(1)
        if form == "plain":
            x0 = (x_t + sigma**2 * score) / alpha
            squared_error = gamma * np.float64(dtype(x) - x0) ** 2
        else:
            squared_error = np.float64(eps + sigma * score) ** 2
        mean = np.sum(squared_error * np.exp(-(epsilons**2) / 2)) * de / np.sqrt(2 * np.pi)
        inside[i] = gamma / (1 + gamma) - mean
    return -0.5 * np.log(2 * np.pi * np.e) + 0.5 * np.cumsum(inside) * dg  # up to each node


# %%
spots = np.array([-1.1, 0.05, 0.8, 1.3])
goal = np.log(density_at(spots, 0.0))
uppers = {int(u): np.argmin(np.abs(log_gammas - u)) for u in (12, 16, 20, 24, 28)}
off_by = {}
for form, dtype in (("plain", np.float32), ("ε-form", np.float32), ("ε-form", np.float64)):
    up_to = np.stack([i_mmse(x, form, dtype) for x in spots])
    for upper, node in uppers.items():
        off_by[form, dtype, upper] = np.abs(up_to[:, node] - goal).max()
    print(f"{form:6} in {dtype.__name__}, up to γ = e^12, e^16, …, e^28: off by",
          *(f"{off_by[form, dtype, u]:.0e}" for u in uppers), "nats")  # fmt: skip

# %% tags=["claims"]
# @title Checked: I-MMSE to 1e-5; at the end the plain form in float32 is a thousand times worse
# What lies beyond the last node is about e^-upper/std² at most.
assert all(
    off_by["ε-form", kind, u] < 1e-5 for kind in (np.float32, np.float64) for u in (20, 24, 28)
)
assert off_by["ε-form", np.float64, 28] < 1e-8
plain = [off_by["plain", np.float32, u] for u in (20, 24, 28)]
assert 4e-4 < plain[2] < 3e-3 and plain[2] > 5 * plain[1]  # measured 9e-4
assert plain[0] < plain[1] < plain[2] and plain[2] > 1000 * off_by["ε-form", np.float32, 28]

# %% [markdown]
# The nodes, the data and the precision of the first two rows are the same: only the form differs. Float32 holds
# $x_t$ to
# 7 digits, and so $x - \hat x_0$ has an error of about $10^{-7}$. The plain form squares it and multiplies by
# $\gamma$: from $e^{20}$ on it only gets worse, and at $e^{28}$ it is off by nearly $10^{-3}$. The ε-form only
# gets better. If you use (12) on a network, write it with $\varepsilon$.
#
# ## 11 · Explore: a grid in the flow
#
# Each cell of the grid is carried from the data to the noise. Its colour is the fall of $\log p$
# since $t = 0$, by (4): orange cells have grown and lost density, violet ones have shrunk.
#
# **Predict, then run.** Which cells grow most: those in the clouds, or those between them?

# %%
SIDE = 41
lattice = plots.plane(-1.3, 1.3, SIDE)
stops = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


@jax.jit
def carried(x, times):
    return likelihood.encode(p, gm.denoise, x, times)


places_at = [lattice]
for begin, finish in pairwise(stops):
    places_at.append(np.asarray(carried(places_at[-1], np.linspace(finish, begin, 17))))


def areas(points_of):
    """The areas of the cells, from their corners (the shoelace formula)."""
    grid = np.float64(points_of).reshape(SIDE, SIDE, 2)
    a, b = grid[1:, 1:] - grid[:-1, :-1], grid[1:, :-1] - grid[:-1, 1:]
    return np.abs(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]) / 2


growth = np.stack([np.log(areas(place) / areas(lattice)) for place in places_at])

# %%
show_path = np.asarray(gm.sample(jax.random.key(13), 60))
dots_at = [show_path]
for begin, finish in pairwise(stops):
    dots_at.append(np.asarray(carried(dots_at[-1], np.linspace(finish, begin, 17))))


def cells(ax, i, what):
    corners = places_at[i].reshape(SIDE, SIDE, 2)
    ax.pcolormesh(corners[..., 0], corners[..., 1], growth[i], cmap="PuOr_r", vmin=-5, vmax=5)
    if what == "cells and data":
        plots.points(ax, dots_at[i], plots.TRUTH, size=5, alpha=0.9)
    ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"$t$ = {stops[i]:.1f}")


def frame(what, i):
    fig, ax = plt.subplots(figsize=(4.2, 4.2))
    cells(ax, i, what)
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    return fig


frames = {what: widgets.render(partial(frame, what), range(len(stops)))
          for what in ("cells", "cells and data")}  # fmt: skip
widgets.explorer(frames, [f"t = {t:.1f}" for t in stops], slider="time")

# %% [markdown]
# Here is the same without a kernel, at four times.

# %%
fig, axes = plt.subplots(1, 4, figsize=(10.5, 2.9), sharey=True)
for ax, i in zip(axes, (0, 3, 6, 10), strict=True):
    cells(ax, i, "cells and data")
    ax.set(xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
plt.show()

# %% tags=["claims"]
# @title Checked: cells in the clouds grow more than those outside; areas are equation (4)
centre = lattice.reshape(SIDE, SIDE, 2)
centre = (centre[1:, 1:] + centre[:-1, :-1]) / 2
start_p = np.asarray(gm.log_prob(jnp.asarray(centre.reshape(-1, 2)), 0.0)).reshape(SIDE - 1, -1)
last = growth[-1]
in_clouds, outside = (np.median(last[mask]) for mask in (start_p > 0, start_p < -4))
assert in_clouds > outside + 1
shrunk = last < 0  # cells of 2.6/40 by 2.6/40
assert 1 / 4 < shrunk.mean() < 0.4 and np.exp(start_p[shrunk]).sum() * (2.6 / 40) ** 2 < 0.02
log_r = np.sort(gm.log_responsibilities(jnp.asarray(centre.reshape(-1, 2)), 0.0), axis=1)
doubt = (log_r[:, -2] - log_r[:, -1]).reshape(last.shape)  # of the second cloud against the first
assert np.median(doubt[shrunk]) > np.median(doubt[~shrunk]) + 10
# log p at the start, minus log p at the end, is the growth; cells are not points: the median.
end_p = -0.5 * np.sum(np.square(carried(centre.reshape(-1, 2), np.linspace(1, 0, 65))), axis=1)
end_p = (end_p - np.log(2 * np.pi)).reshape(SIDE - 1, -1)
assert np.median(np.abs(start_p - end_p - last)) < 0.1

# %% [markdown]
# Cells in the clouds grow most: the flow makes room where the probability is. About a third of the cells shrink to thin
# seams. They lie mostly between clouds, where two of them compete for a point, and hold about 1 % of the probability.
# The growth of each cell is the fall of $\log p$ from (4).
#
# ## 12 · Break it on purpose: bits on the wrong scale
#
# Equation (9) has the term $\log_2\frac{K-1}{2}$. It is easy to forget: the log-density is right, everything converges,
# and only the reported number is wrong. Often nobody notices, since one's own numbers are compared with one's own. We
# leave it out, for the same 100 digits on three scales: $[-1, 1]$, $[0, 1]$ and the grey levels 0 … 16.
#
# **Predict, then run.** Which scale will look best?

# %%
log_density_of = -(by_grid["64 steps, squared"] - 3) * 64 * np.log(2)  # nats, on [−1, 1]
reports = {}
for name, stretch in (("[-1, 1]", 1.0), ("[0, 1]", 0.5), ("0 … 16", 8.0)):
    stretched = log_density_of - 64 * np.log(stretch)  # a change of variables
    width = 2 / 16 * stretch
    forgotten = -stretched.mean() / 64 / np.log(2)
    reports[name] = forgotten, forgotten - np.log2(width)
    print(
        f"scale {name:7}: {forgotten:+.2f} “bits/dim” without the term, {reports[name][1]:.2f} with it"
    )
one_pixel = -log_p / np.log(2)  # section 7's model of one pixel, without the term
print(f"2^-bits of its 17 levels add up to {np.exp2(-one_pixel).mean(1).sum():.2f}")

# %% tags=["claims"]
# @title Checked: without the term the scale decides; with it, it does not matter
assert reports["[0, 1]"][0] < reports["[-1, 1]"][0] < 0 < reports["0 … 16"][0]
assert np.ptp([right for _, right in reports.values()]) < 1e-5
assert abs(np.exp2(-one_pixel).mean(1).sum() - 8) < 1e-3
assert abs(np.exp2(-(one_pixel + 3)).mean(1).sum() - 1) < 1e-4

# %% [markdown]
# The same model, the same pixels: $-1.4$, $-0.4$ or $2.6$. Only on the scale where neighbouring levels are 1 apart is
# nothing forgotten. **How to find it.** A negative number of bits is impossible for discrete pixels. And a code
# must satisfy $\sum 2^{-\text{bits}} \le 1$ over all pictures; on a model of one pixel you can add them up:
# without the term you get 8.
#
# ## 13 · What to inspect
#
# 1. **The grid**: twice the steps, the same bits? A coarse grid can flatter (section 7).
# 2. **The probes**: scatter over keys, against (7). If the mean changes with their number, they were summed.
# 3. **The round trip**: encode, decode, compare. If it does not close, no likelihood of this run means anything.
# 4. **The size of the latents**: about 1 for data. If it is not, the network does not know these pictures, or
#    was told another noise than they have.
# 5. **Trivial codes** beside the bits: histograms, and the black picture.
# 6. **What was added to the pixels**, and whether the network is told how much noise it is.

# %% [markdown]
# ## Recap
#
# 1. Fokker–Planck's spreading term is a velocity: so one ODE has all the marginals of the SDE.
# 2. Along it $\log p$ changes by minus the divergence. One run from data to noise gives $\log p(x)$.
# 3. Hutchinson's estimate needs random vectors instead of a trace; fresh ones at each evaluation scatter less.
# 4. Bits of pixels need dequantisation, the bin's width, a converged grid and noise whose level the
#    network is told.
# 5. Likelihood is a number of bits. It is neither quality nor a test of belonging to the data.
#
# **Exercises:** [10 · exercises](../exercises/10_likelihood.ipynb).
#
# ## Try it yourself
#
# 1. Section 5 with `3 * SIZE` coordinates: how does the scatter of one probe grow, and that of the trace?
# 2. Section 8 for the training digits: how large is the gap of chapter 05's section 10 here?
# 3. `jax.grad` of `log_prob` at a digit: which pixels does it want to change? Follow it for ten steps.

# %% [markdown]
# ## Further reading
#
# - Y. Song, J. Sohl-Dickstein, D. Kingma, A. Kumar, S. Ermon, B. Poole. *Score-Based Generative Modeling through
#   Stochastic Differential Equations.* ICLR 2021. [arXiv:2011.13456](https://arxiv.org/abs/2011.13456).
# - R. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud. *Neural Ordinary Differential Equations.* NeurIPS 2018.
#   [arXiv:1806.07366](https://arxiv.org/abs/1806.07366).
# - W. Grathwohl, R. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud. *FFJORD.* ICLR 2019.
#   [arXiv:1810.01367](https://arxiv.org/abs/1810.01367).
# - M. Hutchinson. *A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines.*
#   Communications in Statistics, 1990.
# - L. Theis, A. van den Oord, M. Bethge. *A Note on the Evaluation of Generative Models.* ICLR 2016.
#   [arXiv:1511.01844](https://arxiv.org/abs/1511.01844).
# - J. Ho, X. Chen, A. Srinivas, Y. Duan, P. Abbeel. *Flow++.* ICML 2019.
#   [arXiv:1902.00275](https://arxiv.org/abs/1902.00275). Variational dequantisation.

# %% [markdown]
# - E. Nalisnick, A. Matsukawa, Y. W. Teh, D. Gorur, B. Lakshminarayanan. *Do Deep Generative Models Know What They
#   Don't Know?* ICLR 2019. [arXiv:1810.09136](https://arxiv.org/abs/1810.09136).
# - X. Kong, R. Brekelmans, G. Ver Steeg. *Information-Theoretic Diffusion.* ICLR 2023.
#   [arXiv:2302.03792](https://arxiv.org/abs/2302.03792).
#
# **New words:** probability flow, Fokker–Planck equation, instantaneous change of variables, divergence, probe,
# Hutchinson's estimate, latent, dequantisation, I-MMSE, AUROC.
