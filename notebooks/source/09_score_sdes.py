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
# # 09 · Score matching and SDEs
#
# **The question.** Samplers with noise and samplers without noise use the same network. Which law do they
# all obey?
#
# At the end of this chapter you will be able to
#
# - draw the score as a field, follow it with Langevin dynamics, and say why this gets stuck;
# - learn a score from data in three ways, and scale a network's output for it;
# - write every process of this course as a stochastic differential equation, and simulate it;
# - run it backwards with any amount of noise, from none to more than DDPM's;
# - say where each method's error comes from, with the sampler's exact distribution in hand;
# - recognise a reverse process with a wrong score term by its spread.
#
# **You need** chapters 01 to 03, 05 for section 10, and 06 for sections 8, 10 and 13. **Time**: about 90
# minutes of reading. The cells run for about a minute and a half on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
from functools import partial

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.special import ndtr, softmax

from diffusion_course import (
    data, denoiser, losses, process, samplers, sampling, sde, sde_samplers, weights,
)  # fmt: skip
from diffusion_course.data import toy2d
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.notebook import plots, widgets
from diffusion_course.weights import features

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# The data are numbers from three groups. Below, seven of them are drawn from noise three times, from right
# ($t = 1$) to left ($t = 0$). All panels use the same exact denoiser and the same starts. Only a number
# $\eta$ differs: it says how much fresh noise the sampler adds on its way.

# %%
MEANS, STDS, SHARES = (
    np.array([-1.2, 0.3, 1.1]),
    np.array([0.2, 0.3, 0.1]),
    np.array([0.35, 0.4, 0.25]),
)
PROCESSES = {
    "VP": process.vp_linear(), "sub-VP": process.sub_vp(), "cosine": process.vp_cosine(),
    "flow": process.rectified_flow(), "VE": process.variance_exploding(0.01, 5.0),
}  # fmt: skip
# Where a run begins: cosine and flow keep no signal at t = 1 (section 7).
FIRST = {name: 0.95 if name in ("cosine", "flow") else 1.0 for name in PROCESSES}
STEPS, MANY = 500, 2000


def oracle(p):
    return denoiser.gaussian_mixture(p, MEANS[:, None], STDS, SHARES)


@partial(jax.jit, static_argnames="name")
def backwards(name, eta, x, key):
    """All states [STEPS + 1, N] of the reverse process with this eta, from FIRST to 0."""
    p, times = PROCESSES[name], np.linspace(FIRST[name], 0, STEPS + 1)
    sampler = sde_samplers.reverse_sde(p, eta)
    _, path = sampling.sample(sampler, oracle(p).denoise, x[:, None], times, key)
    return jnp.concatenate([x[None], path[:, :, 0]])


# %%
def starts(name, n=MANY, seed=0):
    """Exact draws of x at the time FIRST."""
    key_x, key_eps = jax.random.split(jax.random.key(seed))
    x0 = oracle(PROCESSES[name]).sample(key_x, n)[:, 0]
    eps = jax.random.normal(key_eps, (n,))
    return process.add_noise(PROCESSES[name], x0, eps, FIRST[name])


def density(x, alpha=1.0, sigma=0.0):
    """The density of x_t, a mixture of three Gaussians."""
    spread = np.hypot(alpha * STDS, sigma)
    z = (np.asarray(x)[:, None] - alpha * MEANS) / spread
    return (SHARES * np.exp(-(z**2) / 2) / spread).sum(1) / np.sqrt(2 * np.pi)


first_look = {eta: backwards("VP", eta, starts("VP"), jax.random.key(1)) for eta in (0.0, 1.0, 2.0)}
fig, axes = plt.subplots(1, 3, figsize=(7.5, 2.4), sharey=True)
for ax, (eta, path) in zip(axes, first_look.items(), strict=True):
    ax.plot(np.linspace(1, 0, STEPS + 1)[::8], path[::8, :7], lw=0.8, color=plots.PREDICTION)
    ax.set(title=f"$\\eta$ = {eta:g}", xlabel="time $t$", ylim=(-3, 3), xlim=(0, 1))
axes[0].set_ylabel("state $x_t$")
plt.show()

# %%
for eta, path in first_look.items():
    x = path[-1]
    print(f"eta = {eta:g}: mean {x.mean():+.3f}, std {x.std():.3f}, "
          f"share below -0.5: {(x < -0.5).mean():.3f}")  # fmt: skip
true_mean = SHARES @ MEANS
true_std = np.sqrt(SHARES @ (STDS**2 + MEANS**2) - true_mean**2)
true_share = SHARES @ ndtr((-0.5 - MEANS) / STDS)
print(f"data:    mean {true_mean:+.3f}, std {true_std:.3f}, share below -0.5: {true_share:.3f}")

# %% tags=["claims"]
# @title Checked: smooth, rough and very rough paths end in the same distribution
# 2,000 draws: 4 standard errors of a mean, of a standard deviation (at most 1/√(2N)), of a share.
for path in first_look.values():
    x = np.asarray(path[-1])
    assert abs(x.mean() - true_mean) < 4 * true_std / np.sqrt(MANY)
    assert abs(x.std() / true_std - 1) < 4 / np.sqrt(2 * MANY)
    assert abs((x < -0.5).mean() - true_share) < 4 * np.sqrt(0.35 * 0.65 / MANY)
roughness = [float(jnp.abs(jnp.diff(path, axis=0)).sum(0).mean()) for path in first_look.values()]
assert roughness[0] * 3 < roughness[1] < roughness[2] / 1.5

# %% [markdown]
# The paths on the left are smooth. Those on the right are wild. And still all three end in the same
# distribution, within the scatter of 2,000 draws. This chapter explains why. It begins with the quantity
# that all of them follow.

# %% [markdown]
# ## 2 · The score is a field
#
# A density says how likely a point is. Its **score** says in which direction the density grows fastest:
#
# $$s_t(x) = \nabla_x \log p_t(x). \tag{1}$$
#
# It is an arrow at each point. Unlike the density, it needs no normalisation: a constant factor of $p_t$
# becomes a constant summand of $\log p_t$, and its gradient is 0. In chapter 02 you met the score of noisy
# data: $s_t(x) = (\alpha_t\,\hat x_0 - x)/\sigma_t^2 = -\hat\varepsilon/\sigma_t$ (Tweedie). So a denoiser
# *is* a score.
#
# Below are three clouds in the plane, with noise of three levels. **Predict, then run.** Far from all data,
# where do the arrows point at low noise, and where at high noise?

# %%
ve = process.variance_exploding(0.01, 5.0)


def time_of(level):
    """The time at which the VE process has this noise level: alpha is 1, so log-SNR = −2·log σ."""
    return float(process.time_at(ve, -2 * np.log(level)))


clouds = denoiser.gaussian_mixture(ve, *toy2d.MIXTURE)
spots = plots.plane(-1.6, 1.6, 11)
levels = {f"σ = {level:g}": level for level in (0.05, 0.4, 2.0)}
noisy = {}
for name, level in levels.items():
    x = clouds.sample(jax.random.key(2), 600)
    noisy[name] = x + level * jax.random.normal(jax.random.key(3), x.shape)
fig = plots.panels(noisy, color=plots.DATA, limits=(-1.7, 1.7), alpha=0.3, scale=2.2)
for ax, level in zip(fig.axes, levels.values(), strict=True):
    field = np.asarray(clouds.score(spots, time_of(level)))
    unit = field / np.linalg.norm(field, axis=1, keepdims=True)
    plots.arrows(ax, spots, spots + 0.2 * unit)
fig.suptitle("direction of the score (arrows of equal length) over noisy data", x=0.02, ha="left")
plt.show()

# %%
nearest, to_mean = [], []
for level in levels.values():
    far = 1.6 * jnp.stack([jnp.cos(jnp.arange(60) / 9.5), jnp.sin(jnp.arange(60) / 9.5)], 1)
    pull = clouds.score(far, time_of(level))
    alike = lambda a, b: float(
        (jnp.sum(a * b, 1) / jnp.linalg.norm(a, axis=1) / jnp.linalg.norm(b, axis=1)).mean()
    )
    centre = toy2d.MIXTURE.weights @ toy2d.MIXTURE.means
    to_mean.append(alike(pull, jnp.asarray(centre) - far))
    nearest.append(float((clouds.responsibilities(far, time_of(level)).max(1) > 0.99).mean()))
    print(f"sigma = {level}: one cloud alone decides at {nearest[-1]:.0%} of 60 far points; "
          f"cosine to the direction of the mean {to_mean[-1]:.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: at low noise one cloud decides, at high noise all pull to the mean
assert nearest[0] > 0.8 and nearest[2] == 0  # exact numbers, no draws
assert to_mean[2] > 0.995 and to_mean[0] < 0.97

# %% [markdown]
# At low noise a point sees one cloud alone. Which one decides, changes abruptly along a border. At high noise
# the clouds have merged, and every arrow points to their common mean. Remember the first panel for the next
# section.
#
# ## 3 · Langevin dynamics, and where it gets stuck
#
# We know the arrows and want samples. If a point only follows its arrow, it ends on a peak. **Langevin
# dynamics** adds noise after each step:
#
# $$x \leftarrow x + h\,s(x) + \sqrt{2h}\;z, \qquad z \sim \mathcal N(0, I). \tag{2}$$
#
# For example, with $h = 0.002$ the noise of one step is 0.06. For small $h$ the points then have the density
# $p$ in the long run (Roberts & Tweedie 1996; Song & Ermon 2019, eq. 4, writes $\epsilon = 2h$).


# %% tags=["comparison"]
def langevin(score, x, h, keys):
    """Equation (2), one step for each key."""
    for key in keys:
        x = x + h * score(x) + jnp.sqrt(2 * h) * jax.random.normal(key, x.shape)
    return x


low = time_of(0.05)
scattered = 0.9 * jax.random.normal(jax.random.key(4), (1000, 2))
steps_40, key = sampling.uniform(40), jax.random.key(5)
keys = [jax.random.fold_in(key, i) for i in range(40)]
ours = langevin(jax.jit(lambda x: clouds.score(x, low)), scattered, 0.002, keys)
theirs, _ = sampling.sample(
    sde_samplers.langevin(ve, 0.002, level=low), clouds.denoise, scattered, steps_40, key
)
print(f"largest difference to the library {jnp.abs(ours - theirs).max():.1e}")
np.testing.assert_allclose(ours, theirs, atol=2e-3)  # 40 steps of float32, steep at the borders

# %% [markdown]
# **Predict, then run.** A thousand points start anywhere and take 4,000 steps. The clouds hold 50 %, 30 % and
# 20 % of the data. Which shares will the points have?


# %%
@jax.jit
def long_run(x, key):
    """States of Langevin dynamics after 2,000 and after 4,000 steps."""
    step = sde_samplers.langevin(ve, 0.002, level=low).step
    move = lambda i, x: step(clouds.denoise, x, 1.0, 0.0, jax.random.fold_in(key, i), ())[0]
    half = jax.lax.fori_loop(0, 2000, move, x)
    return half, jax.lax.fori_loop(2000, 4000, move, half)


def shares(x, level=0.05):
    """How many points belong to each cloud."""
    return np.bincount(np.argmax(clouds.responsibilities(x, time_of(level)), 1), minlength=3) / len(
        x
    )


at_half, at_end = long_run(scattered, key)
stuck = float((clouds.responsibilities(at_half, low).argmax(1)
               == clouds.responsibilities(at_end, low).argmax(1)).mean())  # fmt: skip
mixed = float(np.sum(toy2d.MIXTURE.weights**2))
print("data          ", *np.round(toy2d.MIXTURE.weights, 2))
print("start         ", *shares(scattered))
print("after 2,000   ", *shares(at_half))
print("after 4,000   ", *shares(at_end))
print(f"in the same cloud at both times: {stuck:.1%}; if the clouds mixed freely: {mixed:.1%}")
known = {"start": scattered, "4,000 steps": at_end, "data": clouds.sample(jax.random.key(6), 1000)}
plots.panels(known, limits=(-2.2, 2.2), color={"data": plots.DATA, "start": plots.NOISE})
plt.show()

# %% tags=["claims"]
# @title Checked: few points change their cloud in 2,000 steps, so the shares are wrong
# If 2,000 steps mixed the clouds, a point would be where it was with probability Σ w² = .38.
assert mixed < 0.4 and stuck > 0.9  # 1,000 points: a standard error of .01
# The standard error of a share is at most .016.
assert np.abs(shares(at_end) - toy2d.MIXTURE.weights).max() > 4 * 0.016
assert np.abs(shares(at_end) - shares(at_half)).max() < 2 * 0.016
# The right shape: in each cloud the spread of the data with noise, but for the error of (3).
in_cloud = np.argmax(clouds.responsibilities(at_end, low), 1)
for k, narrow in enumerate(np.hypot(toy2d.MIXTURE.stds, 0.05)):
    apart_from = np.asarray(at_end)[in_cloud == k] - toy2d.MIXTURE.means[k]
    by_3 = narrow / np.sqrt(1 - 0.002 / (2 * narrow**2))
    assert abs(np.sqrt(np.mean(apart_from**2)) / by_3 - 1) < 4 / np.sqrt(2 * apart_from.size)
from_start, from_data = (
    np.abs(shares(at_end) - other).sum() for other in (shares(scattered), toy2d.MIXTURE.weights)
)
assert from_start < from_data / 2

# %% [markdown]
# Each cloud has the right *shape*, and the wrong number of points. In 2,000 steps fewer than one point in
# ten changes its cloud. Between the clouds the density is nearly 0, so a path of small steps rarely leads
# across. The arrows cannot help: within one cloud they say nothing about the weight of another. After 4,000
# steps the shares are still nearer to those of the *regions* in which the points started than to the data's.
#
# There is a second error. It is small, and it can be computed. For $\mathcal N(0, v)$ the score is $-x/v$.
# Then (2) multiplies $x$ by $1 - h/v$ and adds the variance $2h$. The variance that repeats itself is
#
# $$\frac{2h}{1 - (1 - h/v)^2} = \frac{v}{1 - h/(2v)}. \tag{3}$$


# %%
@jax.jit
def bell(h, x, key):
    """200 steps for N(0, 0.49): flow's marginal at t = 0.7 when the data are the point 0."""
    flow = process.rectified_flow()
    step = sde_samplers.langevin(flow, h, level=0.7).step
    move = lambda i, x: step(lambda x, t: 0 * x, x, 1.0, 0.0, jax.random.fold_in(key, i), ())[0]
    return jax.lax.fori_loop(0, 200, move, x)


v, relative = 0.7**2, np.array([0.05, 0.25, 0.5, 1.0, 1.5])
found_v = np.array([float(bell(r * v, jnp.zeros(40_000), key).var()) for r in relative])
fine_r = np.linspace(0, 1.6, 200)
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(fine_r, 1 / (1 - fine_r / 2), color=plots.TRUTH)
ax.plot(relative, found_v / v, "o", color=plots.PREDICTION)
ax.text(1.05, 3.0, "equation (3)", ha="right")
ax.set(xlabel="step size $h$ in units of $v$", ylabel="variance in units of $v$")
plt.show()

# %% tags=["claims"]
# @title Checked: the variance of Langevin dynamics is v/(1 − h/(2v))
# 40,000 draws: the standard error of a variance is √(2/N) = .7 %.
np.testing.assert_allclose(found_v, v / (1 - relative / 2), rtol=4 * np.sqrt(2 / 40_000))

# %% [markdown]
# With $h = v/20$ the variance is 2.6 % too large. At $h = 2v$ it is infinite. So $h$ must be small compared
# with the *smallest* variance of the data, and one step of that size is tiny for the largest.

# %% [markdown]
# ## 4 · Annealed Langevin dynamics
#
# The cure for both is in section 2. At high noise the clouds have merged, and nothing gets stuck. So start
# there, and lower the noise in small steps. At each level take a few Langevin steps, with a size that shrinks
# with the level:
#
# $$h_t = r\,\sigma_t^2. \tag{4}$$
#
# This is **annealed Langevin dynamics**, the sampler of the first score-based models (Song & Ermon 2019,
# algorithm 1; the network is the NCSN). The last line, one step with the denoiser, is from
# Jolicoeur-Martineau et al. (2021).


# %% tags=["comparison"]
def annealed(gm, x, times, r, steps, key):
    """`steps` Langevin steps at times[0], times[1], …; then x0 at the last of them."""
    score_at = jax.jit(gm.score)
    for i, t in enumerate(times[:-1]):
        h = r * ve.sigma(t) ** 2
        for j in range(steps):
            noise = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), j), x.shape)
            x = x + h * score_at(x, t) + jnp.sqrt(2 * h) * noise
    return gm.denoise(x, times[-2])


wide = float(ve.sigma(1.0)) * jax.random.normal(jax.random.key(7), (1000, 2))
ladder = sampling.uniform(20)
annealed_by_hand = annealed(clouds, wide, ladder, 0.1, 3, key)
annealed_by_library, _ = sampling.sample(
    sde_samplers.annealed_langevin(ve, 0.1, 3), clouds.denoise, wide, ladder, key
)
# 60 steps of float32; a point on a border between two clouds may fall to either side.
difference = np.abs(annealed_by_hand - annealed_by_library).max(1)
print(f"difference to the library: median {np.median(difference):.1e}")
assert np.quantile(difference, 0.99) < 2e-3

# %% [markdown]
# **Predict, then run.** Will the shares be right now?


# %%
@jax.jit
def cool(x, key):
    """The last state, and the states after every level."""
    sampler = sde_samplers.annealed_langevin(ve, 0.05, 40)
    return sampling.sample(sampler, clouds.denoise, x, sampling.uniform(50), key)


cooled, cooling = cool(wide, key)
print("data      ", *np.round(toy2d.MIXTURE.weights, 2))
print("annealed  ", *shares(cooled), " of 1,000 points, 2,001 evaluations")
shown = [0, 24, 33, 49]
titles = [f"σ = {float(ve.sigma(sampling.uniform(50)[i])):.2f}" for i in shown[:3]] + ["at the end"]
sizes = dict(zip(titles, [cooling[i] for i in shown], strict=True))
fig = plots.panels({name: x for name, x in sizes.items()}, limits=(-2.2, 2.2))
plt.show()

# %% tags=["claims"]
# @title Checked: annealed, the shares are those of the data
# 4 standard errors of 1,000 points, and 2 % for what freezes too early.
assert np.abs(shares(cooled) - toy2d.MIXTURE.weights).max() < 4 * 0.016 + 0.02

# %% [markdown]
# They are. The price is high: 2,001 evaluations for one sample. Sections 8 to 11 do better with the same
# score. But first: where does a score come from, if all we have are data?

# %% [markdown]
# ## 5 · Three ways to learn a score
#
# We would like to minimise $\tfrac12 E\|s(x) - \nabla\log p(x)\|^2$. But $\nabla\log p$ is unknown. Hyvärinen
# (2005, theorem 1) integrates the mixed term by parts. What remains contains the model only:
#
# $$J(s) = E\Big[\operatorname{tr}\frac{\partial s}{\partial x} + \tfrac12\|s(x)\|^2\Big]. \tag{5}$$
#
# In words: the field should be short, and it should flow *together* where data lie (a negative trace). The
# trace needs one derivative per dimension: 784 for an MNIST digit.
#
# **Sliced** score matching asks along a random direction $v$ only, since $E[v^\top A v] = \operatorname{tr} A$
# for independent signs $v$ (Song et al. 2019, eq. 8):
#
# $$J(s) = E\Big[v^\top\frac{\partial s}{\partial x}v + \tfrac12\|s(x)\|^2\Big]. \tag{6}$$
#
# **Denoising** score matching adds noise and asks for the score of the *noisy* density. It is the regression
# of chapter 02, $E\|s(x_t) + \varepsilon/\sigma_t\|^2$, without any derivative (Vincent 2011).


# %% tags=["comparison"]
def hyvarinen(score, x):
    """Equation (5) for a batch [B, D], with the whole Jacobian of each point."""
    each = lambda point: score(point[None])[0]
    traces = jax.vmap(lambda point: jnp.trace(jax.jacfwd(each)(point)))(x)
    return jnp.mean(traces + jnp.sum(score(x) ** 2, 1) / 2)


def sliced(score, x, key):
    """Equation (6), one direction for each point."""
    v = jax.random.rademacher(key, (1, *x.shape), x.dtype)[0]
    along = jnp.sum(v * jax.jvp(score, (x,), (v,))[1], 1)
    return jnp.mean(along + jnp.sum(score(x) ** 2, 1) / 2)


some = clouds.sample(jax.random.key(8), 500)
guess = lambda x: jnp.sin(x) - 2 * x[:, ::-1] * x
np.testing.assert_allclose(hyvarinen(guess, some), losses.hyvarinen(guess, some), rtol=1e-5)
np.testing.assert_allclose(sliced(guess, some, key), losses.sliced(guess, some, key), rtol=1e-5)
print(f"(5) gives {hyvarinen(guess, some):.3f}, (6) gives {sliced(guess, some, key):.3f}")

# %% [markdown]
# Now we fit. The model is a sum of 30 bumps, $s(x) = \sum_k a_k\,\varphi_k(x)$, on the numbers of section 1.
# All three losses are quadratic in $a$, so one linear system solves each. (A small penalty on $a$ keeps it
# solvable.) No training can hide a difference.
#
# **Predict, then run.** Two of the three curves will lie on top of each other, and we draw one of the two.
# Which?

# %%
numbers = oracle(PROCESSES["VP"]).sample(jax.random.key(9), 20_000)
centres = jnp.linspace(-2.2, 2.0, 30)
bumps = lambda x: jnp.exp(-(((x - centres) / 0.2) ** 2) / 2)  # [B, 1] -> [B, 30]
model = lambda a: lambda x: (bumps(x) @ a)[:, None]
noise_level, eps = 0.15, jax.random.normal(jax.random.key(10), numbers.shape)


def denoising(a):
    """Denoising score matching at one noise level."""
    return jnp.mean((model(a)(numbers + noise_level * eps) + eps / noise_level) ** 2) / 2


objectives = {
    "Hyvärinen": lambda a: losses.hyvarinen(model(a), numbers),
    "sliced": lambda a: losses.sliced(model(a), numbers, key),
    "denoising": denoising,
}
fitted = {}
for name, loss in objectives.items():
    nothing = jnp.zeros(30)
    slope, curvature = jax.jit(jax.grad(loss))(nothing), jax.jit(jax.hessian(loss))(nothing)
    fitted[name] = jnp.linalg.solve(curvature + 1e-4 * jnp.eye(30), -slope)

# %%
line = np.linspace(-1.9, 1.6, 300)


def true_score(x, sigma):
    h = 1e-4
    return (np.log(density(x + h, 1, sigma)) - np.log(density(x - h, 1, sigma))) / (2 * h)


fig, ax = plt.subplots(figsize=(7, 3.6))
ax.set(ylim=(-14, 14), xlim=(-1.9, 1.6))
plots.curves(
    line,
    {name: model(a)(line[:, None])[:, 0] for name, a in fitted.items() if name != "sliced"},
    ax=ax, xlabel="$x$", ylabel="score $s(x)$", label_at=0.3,
)  # fmt: skip
ax.plot(line, true_score(line, 0), color=plots.TRUTH, lw=0.8, zorder=0)
ax.plot(line, true_score(line, noise_level), ":", color=plots.TRUTH, lw=0.8, zorder=0)
ax.fill_between(line, -14, -14 + 5 * density(line), color=plots.DATA, alpha=0.2, lw=0)
ax.set_title("thin black: the score of the data, and dotted of noisy data; blue: the data.\n"
             "Sliced is not drawn: it lies on Hyvärinen's", size="small")  # fmt: skip
plt.show()

# %%
off = {}
for name, a in fitted.items():
    at_data = np.asarray(model(a)(numbers))[:, 0]
    for kind, sigma in (("clean", 0.0), ("noisy", noise_level)):
        gap = at_data - true_score(np.asarray(numbers, np.float64)[:, 0], sigma)
        off[name, kind] = float(np.sqrt(np.mean(gap**2)))
    print(f"{name:10} rms distance at the data: to the score of the data {off[name, 'clean']:.2f}, "
          f"of noisy data {off[name, 'noisy']:.2f}")  # fmt: skip
same = float(jnp.abs(fitted["sliced"] - fitted["Hyvärinen"]).max())
print(f"in one dimension sliced and Hyvärinen differ by {same:.1e}")

# %% tags=["claims"]
# @title Checked: (5) and (6) learn the score of the data, denoising that of noisy data
assert same < 1e-3  # v² = 1: the same loss, up to rounding
# 20,000 numbers; distances .89 against 3.24, and .21 against 3.43.
assert off["Hyvärinen", "clean"] < off["Hyvärinen", "noisy"] / 2
assert off["denoising", "noisy"] < off["denoising", "clean"] / 4

# %% [markdown]
# In one dimension there is one direction only, so sliced *is* Hyvärinen's. Both learn the score of the data.
# Denoising learns the score of noisy data, which is smoother. That is no fault: sampling needs exactly these
# scores, at all levels. (Where there are no data, left and right, all of them are free to be wrong.)
#
# In many dimensions the direction $v$ costs accuracy instead of time. For a linear score with matrix $A$ the
# loss of one point scatters with the variance $\sum_{i<j}(A_{ij} + A_{ji})^2$. Denoising pays as well: at a
# low level its target $-\varepsilon/\sigma$ is large. Its mean square is $1/\sigma^2$ for each dimension.
# Almost all of today's models pay this price, and so did all chapters before.

# %%
matrix = np.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0], [0.0, 1.5, 2.0]])
points_3d = jax.random.normal(jax.random.key(20), (1, 3))
one_each = jax.vmap(lambda key: losses.sliced(lambda x: x @ matrix.T, points_3d, key))
scatter = float(one_each(jax.random.split(jax.random.key(21), 20_000)).var())
predicted_scatter = float(np.sum(np.triu(matrix + matrix.T, 1) ** 2))
print(f"variance over directions {scatter:.2f}, from the formula {predicted_scatter:.2f}")
target = jax.random.normal(jax.random.key(22), (20_000,)) / noise_level
print(f"mean square of denoising's target at σ = {noise_level}: {jnp.mean(target**2):.1f}")

# %% tags=["claims"]
# @title Checked: how sliced and denoising score matching scatter
# 20,000 draws. Three signs give four values only (v and −v give the same): the scatter is known well.
assert abs(scatter / predicted_scatter - 1) < 0.05
assert abs(float(jnp.mean(target**2)) * noise_level**2 - 1) < 4 * np.sqrt(2 / 20_000)

# %% [markdown]
# ## 6 · The size of the output
#
# One network must serve all noise levels. What should it output? The score of points is large at low noise and
# small at high noise: at level $\sigma$ it is of the size $1/\sigma$. For levels from 0.01 to 50 this is a
# factor of 5,000, and a network's layers do not like to produce it. The cure is one division:
#
# $$s_\theta(x, \sigma) = \frac{n_\theta(x, \sigma)}{\sigma}$$
#
# (Song & Ermon 2020, technique 3; there $n_\theta$ is not even told $\sigma$). Then the network $n_\theta$ always
# has an output of the size 1 or below. It is $-\hat\varepsilon$: an old acquaintance.
#
# We train a small network twice on the three clouds, with three seeds each. It sees levels from 0.02 to 5. Both
# runs minimise the same loss, $E\|\sigma s + \varepsilon\|^2$. Only the division is left out in one of them.
#
# **Predict, then run.** At which levels will the network without the division be worse?


# %%
def network(params, x, level):
    """A net with two hidden layers; its inputs have the size 1 at every level."""
    h = jnp.concatenate([x / jnp.sqrt(1 + level**2), jnp.log(level) / 4], axis=1)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias)
    weight, bias = params[-1]
    return h @ weight + bias


def learned_score(params, x, level, scaled):
    return network(params, x, level) / jnp.where(scaled, level, 1.0)


def weighted_loss(params, key, scaled):
    """Denoising score matching at log-uniform levels; the weight σ² makes all levels equal."""
    key_x, key_level, key_eps = jax.random.split(key, 3)
    x0 = clouds.sample(key_x, 256)
    level = 0.02 * 250 ** jax.random.uniform(key_level, (256, 1))
    eps = jax.random.normal(key_eps, x0.shape)
    s = learned_score(params, x0 + level * eps, level, scaled)
    return jnp.mean((level * s + eps) ** 2)


# %%
adam = optax.adam(3e-3)


@jax.jit
@partial(jax.vmap, in_axes=(0, None))
def train(key, scaled):
    """2,000 steps from random weights, for each key [seeds]: the weights at the end."""
    sizes, keys = [(3, 64), (64, 64), (64, 2)], jax.random.split(key, 3)
    params = [(jax.random.normal(k, (a, b)) / np.sqrt(a), jnp.zeros(b))
              for k, (a, b) in zip(keys, sizes, strict=True)]  # fmt: skip

    def step(carry, i):
        params, state = carry
        slope = jax.grad(weighted_loss)(params, jax.random.fold_in(key, i), scaled)
        move, state = adam.update(slope, state)
        return (optax.apply_updates(params, move), state), None

    return jax.lax.scan(step, (params, adam.init(params)), jnp.arange(2000))[0][0]


seeds_at_once = {scaled: train(jax.vmap(jax.random.key)(jnp.arange(30, 33)), scaled)
                 for scaled in (False, True)}  # fmt: skip
trained = {(scaled, seed): jax.tree.map(lambda w, seed=seed: w[seed], params)
           for scaled, params in seeds_at_once.items() for seed in range(3)}  # fmt: skip

# %%
tested = (0.02, 0.05, 0.15, 0.5, 1.5, 5.0)
size_of_score, error_of = [], {False: [], True: []}
for level in tested:
    x = clouds.sample(jax.random.key(31), 4000)
    x = x + level * jax.random.normal(jax.random.key(32), x.shape)
    wanted = clouds.score(x, time_of(level))
    size_of_score.append(float(jnp.sqrt(jnp.mean(wanted**2))))
    for scaled, rows in error_of.items():
        gaps = [learned_score(trained[scaled, seed], x, jnp.full((4000, 1), level), scaled) - wanted
                for seed in range(3)]  # fmt: skip
        rows.append([level * float(jnp.sqrt(jnp.mean(gap**2))) for gap in gaps])
error_of = {scaled: np.array(rows) for scaled, rows in error_of.items()}
print(
    "level   rms of the score   error·σ of a score of 0   without the division     with it    (3 seeds)"
)
for level, size, without, with_it in zip(tested, size_of_score, *error_of.values(), strict=True):
    print(f"{level:5} {size:14.2f} {level * size:20.3f} {without.mean():20.3f} ± {without.std():.3f} "
          f"{with_it.mean():16.3f} ± {with_it.std():.3f}")  # fmt: skip

# %%
panels_of = {f"σ = {level}": clouds.sample(jax.random.key(33), 400) for level in (0.05, 0.5)}
fig = plots.panels(panels_of, color=plots.DATA, limits=(-1.5, 1.5), alpha=0.3, scale=2.3)
for ax, level in zip(fig.axes, (0.05, 0.5), strict=True):
    column = jnp.full((len(spots), 1), level)
    for field, color in ((clouds.score(spots, time_of(level)), plots.TRUTH),
                         (learned_score(trained[True, 0], spots, column, True), plots.PREDICTION)):  # fmt: skip
        longest = np.linalg.norm(field, axis=1, keepdims=True)
        plots.arrows(ax, spots, spots + 0.2 * np.asarray(field) / longest, color)
fig.suptitle("direction of the exact (black) and the learned score (orange)", x=0.02, ha="left")
plt.show()

# %% tags=["claims"]
# @title Checked: the division helps at 0.05, 0.15 and 5, and on average; at the lowest level it hurts
assert size_of_score[0] > 30 * size_of_score[-1]
for level in (
    0.05,
    0.15,
    5.0,
):  # three seeds: even the best without it is worse than the worst with it
    row = tested.index(level)
    assert error_of[False][row].min() > error_of[True][row].max()
assert error_of[True][0].min() > error_of[False][0].max()
assert error_of[True][0].mean() > 0.95 * tested[0] * size_of_score[0]  # no better than a score of 0
assert error_of[False].mean(0).min() > 1.2 * error_of[True].mean(0).max()

# %% [markdown]
# On average over the levels the error is smaller with the division, for each of the seeds. It helps most at
# $\sigma = 0.05$ and 0.15, where the output must be large, and at 5, where it must be small. At the lowest
# level it hurts: the error, 0.19, is no smaller than that of a score that is 0 everywhere, 0.18; without the
# division it is 0.14. A likely reason: our clouds are smooth, so the score stops growing at levels below
# their own width, and from there on $1/\sigma$ is too large a factor. (Chapter 12 scales input, output and loss in
# one system.)
#
# The learned arrows agree with the exact ones around the clouds. (Arrows of equal length show the direction
# only. Between the clouds at $\sigma = 0.5$ the score is nearly 0, and small errors turn it.) Far from all
# data, at low noise, they may point elsewhere: the network has seen no example there.

# %% [markdown]
# ## 7 · Every process is an SDE
#
# Up to here noise was a list of levels. Now let it grow continuously. In a short time $dt$ the state shrinks
# a little, and a little noise is added:
#
# $$dx = f(t)\,x\,dt + g(t)\,dw. \tag{7}$$
#
# $dw$ is a Gaussian with variance $dt$, new at each moment (**Brownian motion** $w$). Such an equation is a
# **stochastic differential equation**, or SDE (Song et al. 2021, eq. 5). Which $f$ and $g$ belong to our
# $\alpha$ and $\sigma$? The mean of (7) obeys $\dot\alpha = f\alpha$. The drift changes the variance at the rate
# $2f\sigma^2$ (it shrinks where $f < 0$), and the noise adds $g^2$. So
#
# $$f = \frac{\dot\alpha}{\alpha}, \qquad g^2 = \frac{d\sigma^2}{dt} - 2f\sigma^2. \tag{8}$$
#
# For a *constant* rate $\beta$, $\alpha = e^{-\beta t/2}$ and $\sigma^2 = 1 - \alpha^2$ give $f = -\beta/2$ and
# $g^2 = \beta$. This is the **Ornstein–Uhlenbeck process**, an old model of a particle on a spring in water.
# The VP process is the same with a rate $\beta(t)$ that grows. `sde.drift` and `sde.diffusion_squared` take
# (8) from any process, by exact derivatives.
#
# With $\beta = 2$ the equation is $dx = -x\,dt + \sqrt2\,dw$. This is Langevin dynamics (2) for
# $\mathcal N(0, 1)$, whose score is $-x$, with $h = dt$. So it keeps $\mathcal N(0, 1)$ as it is, and after
# the time $t$ the factor $e^{-\beta t/2}$ of the start is left.

# %%
spring = process.vp_linear(2.0, 2.0)  # a rate that does not grow
at_rest = jax.random.normal(jax.random.key(40), (20_000, 1))
later, _ = sde.forward(spring, at_rest, np.linspace(0, 1, 101), jax.random.key(41))
left_of_start = float(jnp.mean(at_rest * later) / jnp.mean(at_rest**2))
print(f"f = {sde.drift(spring, 0.3):.3f}, g² = {sde.diffusion_squared(spring, 0.3):.3f}; at t = 1: "
      f"std {later.std():.3f}, left of the start {left_of_start:.3f} (e⁻¹ = {np.exp(-1):.3f})")  # fmt: skip

# %% tags=["claims"]
# @title Checked: a constant rate is the Ornstein–Uhlenbeck process
np.testing.assert_allclose(
    [sde.drift(spring, 0.3), sde.diffusion_squared(spring, 0.3)], [-1, 2], rtol=1e-4
)
# 20,000 paths: 4 standard errors, and .5 % for steps of 1/100 (by (3) with h = .01: .25 %).
assert abs(later.std() - 1) < 4 / np.sqrt(40_000) + 0.005
assert abs(left_of_start - np.exp(-1)) < 4 / np.sqrt(20_000) + 0.005

# %%
clock = np.linspace(0, 0.98, 200)
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8))
for ax, rate, label in zip(axes, (lambda p, t: -sde.drift(p, t), sde.diffusion_squared),
                           ("$-f(t)$", "$g^2(t)$"), strict=True):  # fmt: skip
    ax.set(ylim=(0, 32), xlim=(0, 1))
    plots.curves(clock, {name: rate(p, clock) for name, p in PROCESSES.items()}, ax=ax,
                 xlabel="time $t$", ylabel=label, label_at=0.85)  # fmt: skip
plt.show()

# %% tags=["comparison"]
beta = 0.1 + clock * 19.9
closed = {  # Song et al. 2021, eq. 30 to 33, and (8) by hand for the straight line
    "VP": (-beta / 2, beta),
    "sub-VP": (-beta / 2, beta * -np.expm1(-2 * (0.1 * clock + 9.95 * clock**2))),
    "VE": (0 * clock, 2 * np.log(500) * 0.01**2 * 500 ** (2 * clock)),
    "flow": (-1 / (1 - clock), 2 * clock / (1 - clock)),
}
for name, (f, g2) in closed.items():
    np.testing.assert_allclose(sde.drift(PROCESSES[name], clock), f, rtol=1e-4)
    np.testing.assert_allclose(
        sde.diffusion_squared(PROCESSES[name], clock), g2, rtol=1e-3, atol=1e-5
    )  # float32; near t = 0 sub-VP's g² is a small difference
print("drift and diffusion agree with four closed forms at 200 times")

# %% [markdown]
# To simulate (7) we make $dt$ a small step $h$. This is the **Euler–Maruyama** method:
#
# $$x_{t+h} = x_t + f(t)\,x_t\,h + g(t)\,\sqrt h\;z. \tag{9}$$
#
# The noise has the factor $\sqrt h$, not $h$, because variances add up and standard deviations do not.


# %% tags=["comparison"]
def simulate(p, x, times, increments):
    """Equation (9) along rising times; the increments √h·z are given."""
    path = []
    for t, s, dw in zip(times[:-1], times[1:], increments, strict=True):
        x = x + sde.drift(p, t) * x * (s - t) + jnp.sqrt(sde.diffusion_squared(p, t)) * dw
        path.append(x)
    return jnp.stack(path)


begin = oracle(PROCESSES["VP"]).sample(jax.random.key(11), 200)
forty = np.linspace(0, 1, 41, dtype=np.float32)
dw = sde.brownian(jax.random.key(12), forty, begin.shape)
by_hand = simulate(PROCESSES["VP"], begin, forty, dw)
_, by_library = sde.forward(PROCESSES["VP"], begin, forty, jax.random.key(12))
print(f"largest difference to the library {jnp.abs(by_hand - by_library).max():.1e}")
np.testing.assert_allclose(by_hand, by_library, atol=1e-4)  # 40 steps of float32

# %% [markdown]
# **Predict, then run.** We simulate paths of five processes. Will the spread of the paths be that of the
# closed form $\sqrt{\alpha^2\,\mathrm{std}^2 + \sigma^2}$ (dashed)?


# %%
@partial(jax.jit, static_argnames="name")
def forwards(name, x0, key):
    times = np.linspace(0, FIRST[name], STEPS + 1)
    return jnp.concatenate([x0[None], sde.forward(PROCESSES[name], x0, times, key)[1]])[:, :, 0]


fig, axes = plt.subplots(1, 5, figsize=(9, 2.1))
gathered = {}
for ax, (name, p) in zip(axes, PROCESSES.items(), strict=True):
    path = forwards(name, oracle(p).sample(jax.random.key(13), MANY), jax.random.key(14))
    time = np.linspace(0, FIRST[name], STEPS + 1)
    spread = np.hypot(p.alpha(time) * true_std, p.sigma(time))
    middle = p.alpha(time) * true_mean
    gathered[name] = np.asarray(path), middle, spread
    ax.plot(time[::8], path[::8, :6], lw=0.5, color=plots.NOISE)
    for side in (-2, 2):
        ax.plot(time, middle + side * spread, "--", color=plots.TRUTH, lw=1)
        ax.plot(time, path.mean(1) + side * path.std(1), color=plots.PREDICTION, lw=1)
    ax.set(title=name, xlabel="time $t$")
axes[0].set_ylabel("$x_t$; mean ± 2 std")
plt.show()

# %% tags=["claims"]
# @title Checked: simulated means and spreads are the closed form
# At 3 times; 2,000 paths, 4 standard errors; Euler–Maruyama's own error is below one of them.
for path, middle, spread in gathered.values():
    for i in (STEPS // 3, STEPS // 2, STEPS):
        assert abs(path[i].mean() - middle[i]) < 4 * spread[i] / np.sqrt(MANY)
        assert abs(path[i].std() / spread[i] - 1) < 4 / np.sqrt(2 * MANY)

# %% [markdown]
# They agree. Two paragraphs of warning belong here.
#
# **At the end of cosine and flow** $\alpha = 0$. There $f = \dot\alpha/\alpha$ and $g^2$ are infinite, as the
# figure of $f$ and $g^2$ shows. So we stopped at $t = 0.95$, and `sde.forward` refuses $t = 1$. What would happen? On a
# straight line the last step has $f = -1/h$. It multiplies the state by $1 - h/h = 0$ and adds noise of the
# variance $g^2h \approx 2$. So Euler–Maruyama ends at variance 2 where 1 is right, however small its steps are.
#
# **How large is the error of a step?** There are two answers. The *strong* error compares single paths, with
# the same Brownian motion. The *weak* error compares distributions, for example their means. Both have an
# order. We fit them.

# %%
COUNTS, FINE = np.array([16, 32, 64, 128]), 2048
paths_dw = sde.brownian(jax.random.key(15), np.linspace(0, 1, FINE + 1), (2000, 1))


def strong(drift, diffusion, exact=None):
    """Mean error of a path at t = 1, by number of steps; the same Brownian paths throughout."""

    def run(n):
        coarse = paths_dw.reshape(n, FINE // n, *paths_dw.shape[1:]).sum(1)
        one = jnp.ones(paths_dw.shape[1:])
        return sde.euler_maruyama(drift, diffusion, one, np.linspace(0, 1, n + 1), coarse)[0]

    truth = run(FINE) if exact is None else exact(paths_dw.sum(0))
    return np.array([float(jnp.abs(run(int(n)) - truth).mean()) for n in COUNTS])


slow = process.vp_linear(0.3, 3.0)
f_of, g_of = (lambda t: sde.drift(slow, t)), (lambda t: jnp.sqrt(sde.diffusion_squared(slow, t)))
mean_error = [abs(float(jnp.prod(1 + f_of(np.arange(n) / n) / n)) - float(slow.alpha(1.0)))
              for n in COUNTS]  # fmt: skip
em_errors = {
    "strong, noise × x": strong(lambda x, t: 0.3 * x, lambda x, t: 0.8 * x,
                                lambda w: jnp.exp(0.3 - 0.32 + 0.8 * w)),
    "strong, VP": strong(lambda x, t: f_of(t) * x, lambda x, t: g_of(t)),
    "weak, mean of VP": np.array(mean_error),
}  # fmt: skip
ax = plots.curves(COUNTS, em_errors, log="xy", xlabel="steps", ylabel="error at t = 1")
ax.set_xticks(COUNTS, COUNTS)
ax.minorticks_off()
plt.show()

# %%
em_orders = {name: -np.polyfit(np.log(COUNTS), np.log(e), 1)[0] for name, e in em_errors.items()}
for name, order in em_orders.items():
    print(f"{name:18} fitted order {order:.2f}")
fractions = np.arange(100) / 100
shrink, add = 1 - 0.01 / (1 - fractions), 2 * fractions / (1 - fractions) * 0.01
at_one = sum(a * np.prod(shrink[i + 1 :] ** 2) for i, a in enumerate(add))
print(f"flow up to t = 1 in 100 steps: variance {at_one:.2f}, of which the last step {add[-1]:.2f}")

# %% tags=["claims"]
# @title Checked: strong order one for our processes, one half with multiplicative noise, weak order one
assert 0.9 < em_orders["strong, VP"] < 1.15  # 2,000 paths
assert 0.4 < em_orders["strong, noise × x"] < 0.6
assert 0.9 < em_orders["weak, mean of VP"] < 1.1  # exact
assert abs(at_one - 2) < 0.05

# %% [markdown]
# If the noise is multiplied by the state, halving a strong error needs four times as many steps (order ½).
# In diffusion models $g$ depends on the time alone (**additive** noise). Then the strong order is 1, like the
# weak order.
#
# ## 8 · Backwards in time
#
# Anderson (1982) found that the reverse of (7) is an SDE as well. Its drift has one more term, and this term
# is the score:
#
# $$dx = \big[f\,x - g^2\,s_t(x)\big]\,dt + g\,d\bar w, \qquad dt < 0 \tag{10}$$
#
# (Song et al. 2021, eq. 6). Why the score? Forwards, the noise spreads the points. Backwards, something must
# gather them, and the gathering must be strong where the density changes fast.
#
# We may also trade noise against score. A piece of Langevin dynamics (2) keeps $p_t$ as it is. So at every
# moment we may add as much of it as we like, or take some away. Noise $\eta\,g$ instead of $g$ gives the whole
# family
#
# $$dx = \Big[f\,x - \frac{1 + \eta^2}{2}\,g^2\,s_t(x)\Big]dt + \eta\,g\,d\bar w. \tag{11}$$
#
# $\eta = 1$ is (10). $\eta = 0$ has no noise: it is the probability flow of chapter 06. Compare $\eta$ with 0:
# the difference is $\eta^2g^2/2$ of score and $\eta g$ of noise, which is (2) with $h = \eta^2g^2|dt|/2$.


# %% tags=["comparison"]
def reverse(p, score, x, times, eta, keys):
    """Euler–Maruyama for equation (11) along falling times, all above 0."""
    for t, s, key in zip(times[:-1], times[1:], keys, strict=True):
        f, g2, dt = sde.drift(p, t), sde.diffusion_squared(p, t), s - t  # dt < 0
        slope = f * x - (1 + eta**2) / 2 * g2 * score(x, t)
        x = x + slope * dt + eta * jnp.sqrt(g2 * -dt) * jax.random.normal(key, x.shape)
    return x


vp = PROCESSES["VP"]
hundred = np.linspace(1, 0.02, 101, dtype=np.float32)
noise = jax.random.normal(jax.random.key(16), (500, 1))
keys_100 = [jax.random.fold_in(key, i) for i in range(100)]
vp_score = jax.jit(oracle(vp).score)
for eta in (0.0, 1.0, 1.5):
    hand = reverse(vp, vp_score, noise, hundred, eta, keys_100)
    book, _ = sampling.sample(
        sde_samplers.reverse_sde(vp, eta), oracle(vp).denoise, noise, hundred, key
    )
    print(f"eta = {eta}: largest difference to the library {jnp.abs(hand - book).max():.1e}")
    np.testing.assert_allclose(hand, book, atol=3e-3)  # 100 steps of float32

# %% [markdown]
# The library's last step, to $t = 0$, returns the denoiser's guess, as in all samplers of this course.
#
# **Stochastic interpolants** (Albergo et al. 2023) build the same family from the other side. They start
# from $x_t = \alpha_tx_0 + \sigma_t\varepsilon$, with any $\alpha$ and $\sigma$, and add a free diffusion
# $\epsilon(t)$ to the probability flow. Their $\epsilon$ is $\eta^2g^2/2$ here. It may even change with
# time.
#
# ## 9 · Explore: the dial η
#
# Choose a process in the menu, and $\eta$ with the slider. The left panel shows six paths, from noise on the
# right to data on the left. The right panel shows the histogram of 2,000 ends (orange) and the density of the
# data (black).
#
# **Predict, then run.** Which of the two panels will not move with $\eta$?

# %%
ETAS = (0.0, 0.5, 1.0, 1.5, 2.0)
roads = {(name, eta): np.asarray(backwards(name, eta, starts(name), jax.random.key(17)))
         for name in PROCESSES for eta in ETAS}  # fmt: skip
bins = np.linspace(-2.2, 1.9, 50)


def road(left, right, name, eta):
    """Six paths at every eighth step, and the histogram of all ends."""
    path = roads[name, eta]
    left.plot(np.linspace(FIRST[name], 0, STEPS + 1)[::8], path[::8, :6], lw=0.6,
              color=plots.PREDICTION)  # fmt: skip
    reach = 3 * path[0].std()
    left.set(xlim=(0, FIRST[name]), ylim=(-reach, reach), title=f"{name}, $\\eta$ = {eta:g}")
    right.hist(path[-1], bins, density=True, color=plots.PREDICTION, alpha=0.6)
    right.plot(bins, density(bins), color=plots.TRUTH)
    right.set(ylim=(0, 1.2), yticks=[])


def frame(name, eta):
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2), width_ratios=[3, 2], layout="none")
    fig.subplots_adjust(0.08, 0.17, 0.98, 0.91, wspace=0.12)
    road(left, right, name, eta)
    left.set(xlabel="time $t$", ylabel="$x_t$")
    right.set(xlabel="$x_0$", title="where 2,000 paths end")
    return fig


frames = {name: widgets.render(partial(frame, name), ETAS) for name in PROCESSES}
widgets.explorer(frames, [f"η = {eta:g}" for eta in ETAS], slider="η", choice="process", start=2)

# %% [markdown]
# The same without a kernel, for three of the processes and three values of $\eta$:

# %%
fig, axes = plt.subplots(3, 6, figsize=(8.6, 3.7), width_ratios=[1.5, 1] * 3)
for row, name in zip(axes, ("VP", "flow", "VE"), strict=True):
    for column, eta in enumerate((0.0, 1.0, 2.0)):
        road(row[2 * column], row[2 * column + 1], name, eta)
for ax in axes[-1, ::2]:
    ax.set_xlabel("time $t$")
for ax in axes[-1, 1::2]:
    ax.set_xlabel("$x_0$")
plt.show()

# %%
lengths = {k: float(np.abs(np.diff(path, axis=0)).sum(0).mean()) for k, path in roads.items()}
for name in PROCESSES:
    print(f"{name:7}", *(f"eta {eta:g}: std {roads[name, eta][-1].std():.3f}, length of a path "
                        f"{lengths[name, eta]:5.1f};" for eta in (0.0, 1.0, 2.0)))  # fmt: skip
print(f"data:   std {true_std:.3f}")
memory = {
    eta: float(np.corrcoef(roads["VP", eta][400], roads["VP", eta][-1])[0, 1]) for eta in ETAS
}
print("VP, correlation of x at t = 0.2 with the end:",
      *(f"eta {eta:g}: {value:.2f}  " for eta, value in memory.items()))  # fmt: skip

# %% tags=["claims"]
# @title Checked: for every process and every η the ends have the moments and shares of the data
# 2,000 draws, 4 standard errors, and half of one for 500 steps of Euler–Maruyama.
for (name, eta), path in roads.items():
    x = path[-1]
    assert abs(x.mean() - true_mean) < 4.5 * true_std / np.sqrt(MANY), (name, eta)
    assert abs(x.std() / true_std - 1) < 4.5 / np.sqrt(2 * MANY), (name, eta)
    assert abs((x < -0.5).mean() - true_share) < 4.5 * np.sqrt(0.35 * 0.65 / MANY), (name, eta)
    assert lengths[name, 0.0] < lengths[name, 1.0] < lengths[name, 2.0]
for name in PROCESSES:  # without noise the order of the points stays
    assert (np.diff(roads[name, 0.0][-1][np.argsort(roads[name, 0.0][0])]) > -1e-4).all()
assert memory[0.0] > 0.9 > memory[1.0] > memory[2.0] + 0.1  # a standard error of .022

# %% [markdown]
# The marginals stay, and the paths change. With $\eta = 0$ the paths never cross, and the start decides the
# end. With more noise a path forgets sooner where it came from. All points together have the same distribution
# for every $\eta$. The fate of a single point is not the same.

# %% [markdown]
# ## 10 · The same η as in chapter 06
#
# Chapter 06 had an $\eta$ too: DDIM's fresh noise has the variance $\eta^2\tilde\beta$, and $\eta = 1$ is DDPM.
# Is it the same number? We solve (11) once more, exactly this time: we keep $\hat x_0$ fixed during a step from
# $t$ to $s$. Then (11) is linear, and its solution is short:
#
# $$x_s = \alpha_s\hat x_0 + \sigma_s\big(\sqrt k\;\hat\varepsilon + \sqrt{1 - k}\;z\big), \qquad
# k = \Big(\frac{\mathrm{SNR}_t}{\mathrm{SNR}_s}\Big)^{\eta^2}. \tag{12}$$
#
# A share $k$ of the old noise's variance stays, and fresh noise fills it up (Lu et al. 2022b have this
# solution for $\eta = 0$ and 1, Xue et al. 2023 for every $\eta$). For $\eta = 0$, $k = 1$: DDIM. For
# $\eta = 1$ the fresh part is $\sigma_s^2(1 - \mathrm{SNR}_t/\mathrm{SNR}_s) = \tilde\beta$: **DDPM,
# exactly**. So ancestral sampling is a discretisation of the reverse SDE, and the SDE is its limit for
# small steps. In between, DDIM has $\eta^2(1 - \mathrm{SNR}_t/\mathrm{SNR}_s)$ where (12) has $1 - k$.

# %% tags=["comparison"]
cosine = PROCESSES["cosine"]
gm, ten = oracle(cosine), sampling.uniform(10)


def run_with(sampler):
    return sampling.sample(sampler, gm.denoise, noise, ten, key)[0]


pairs = {
    "eta = 0 and DDIM": (sde_samplers.reverse_sde_log_snr(cosine, 0.0), samplers.ddim(cosine)),
    "eta = 1 and DDPM": (sde_samplers.reverse_sde_log_snr(cosine, 1.0), samplers.ddpm(cosine)),
}
for name, pair in pairs.items():
    one, other = map(run_with, pair)
    print(f"{name}: largest difference {jnp.abs(one - other).max():.1e}")
    np.testing.assert_allclose(one, other, atol=2e-3)  # ten steps of float32

# %%
ratio = np.linspace(0.001, 1, 300)  # SNR_t/SNR_s: 1 is no step at all
fig, ax = plt.subplots(figsize=(5.5, 3.3))
curves_of_share = {}
for eta, color in zip((0.3, 0.6, 1.0), plots.SERIES, strict=False):
    exact_share, ddim_share = 1 - ratio ** (eta**2), eta**2 * (1 - ratio)
    curves_of_share[eta] = exact_share, ddim_share
    ax.plot(ratio, exact_share, color=color)
    ax.plot(ratio, ddim_share, "--", color=color)
    ax.text(0.12, exact_share[35] + 0.03, f"$\\eta$ = {eta}", color=color)
ax.set(xlabel=r"$\mathrm{SNR}_t/\mathrm{SNR}_s$ (1: a very short step)", ylim=(0, 1.05), xlim=(0, 1),
       ylabel="share of the noise that is fresh", title="lines: equation (12); dashed: DDIM")  # fmt: skip
plt.show()

# %% tags=["claims"]
# @title Checked: the two dials agree for short steps and at η = 0 and 1
for eta, (exact_share, ddim_share) in curves_of_share.items():
    near = ratio > 0.9
    np.testing.assert_allclose(exact_share[near], ddim_share[near], rtol=0.06, atol=1e-12)
    assert (np.abs(exact_share - ddim_share).max() > 0.1) == (eta < 1)
    assert (exact_share >= ddim_share - 1e-12).all()  # DDIM adds less

# %% [markdown]
# For short steps the two dials agree. For long steps DDIM adds less fresh noise. And (12) is finite at both
# ends of *every* process. It divides by no $\alpha$ and needs no $f$ or $g$, so cosine and flow may start at
# $t = 1$.
#
# ### Is the exact step more accurate?
#
# We can answer this without any draw. In one dimension we carry the sampler's whole *distribution* along: a
# mass for each cell of a grid. A step sends the mass of a cell to a Gaussian, whose mean and standard
# deviation the sampler's formula gives. So $N$ is infinite, and no scatter hides a difference. The error is
# the **Wasserstein distance** to the data: how far the mass must be moved on average.
#
# Each step of a stochastic sampler has two parts, a mean and a noise. We take each of them from (11) or from
# (12). A third noise is that of chapter 05's *transition*, the upper limit of sensible variances.


# %%
@jax.jit
def collect(mass, mean, std, edges):
    """How much comes to lie between the edges [n + 1] when the mass of each cell is spread."""
    return mass @ jnp.diff(jsp.special.ndtr((edges - mean[:, None]) / std), axis=1)


def carry(mass, mean, std, x):
    """The mass of each cell jumps to N(mean, std²), and is collected in the cells around x."""
    if std == 0:
        return mean, mass  # without noise the cells themselves move
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    mass = np.float64(collect(mass, mean, std, edges))  # in float32: 1e-7 of the mass is lost
    # Unstable steps send the states away: then there is no result.
    return x, mass if mass[0] + mass[-1] < 1e-3 else mass * np.nan


# %%
def cells(alpha, sigma, n):
    return alpha * true_mean + (2.2 * alpha + 6 * sigma) * np.linspace(-1, 1, n)


def slope_of_log(x, alpha, sigma):
    """The exact score in float64."""
    spread = np.hypot(alpha * STDS, sigma)
    z = (x[:, None] - alpha * MEANS) / spread
    return -(softmax(np.log(SHARES / spread) - z**2 / 2, axis=1) * z / spread).sum(1)


def off_data(x, mass):
    """Wasserstein distance to the data, and the relative error of the spread."""
    F = ndtr(((x[1:] + x[:-1])[:, None] / 2 - MEANS) / STDS) @ SHARES
    spread = np.sqrt(mass @ (x - mass @ x) ** 2)
    return np.sum(np.abs(np.cumsum(mass)[:-1] - F) * np.diff(x)), spread / true_std - 1


# %%
def law(p, times, eta=1.0, mean="(11)", noise="(11)", r=0.0, begin=None, n=601):
    """States and masses after a run; r is the corrector's ratio (section 11), begin the start."""
    a, sg = (np.float64(level(times)) for level in (p.alpha, p.sigma))
    rates = [np.float64(c(p, times[:-1])) for c in (sde.drift, sde.diffusion_squared)]
    x = cells(a[0], sg[0], n)
    mass = density(x, a[0], sg[0]) if begin is None else begin(x)
    mass = mass / mass.sum()
    for i, (f, g2) in enumerate(zip(*rates, strict=True)):
        dt, e = times[i + 1] - times[i], eta(times[i]) if callable(eta) else eta
        score = slope_of_log(x, a[i], sg[i])
        x0, (a_s, sg_s) = (x + sg[i] ** 2 * score) / a[i], (a[i + 1], sg[i + 1])
        k = (a[i] * sg_s / (a_s * sg[i])) ** (2 * e**2)
        means = {"(11)": x + (f * x - (1 + e**2) / 2 * g2 * score) * dt,
                 "(12)": a_s * x0 - sg_s * np.sqrt(k) * sg[i] * score}  # fmt: skip
        stds = {"(11)": e * np.sqrt(-g2 * dt), "(12)": sg_s * np.sqrt(1 - k),
                "transition": sg[i] * np.sqrt(1 - k)}  # fmt: skip
        last, new = times[i + 1] == 0, cells(a_s, sg_s, n)
        x, mass = carry(mass, x0 if last else means[mean], 0 if last else stds[noise], new)
        if r and not last:
            s = slope_of_log(x, a_s, sg_s)
            h = 2 * (r * np.sqrt(2 / np.pi) / (mass @ np.abs(s))) ** 2  # E|z| = √(2/π)
            x, mass = carry(mass, x + h * s, np.sqrt(2 * h), new)
    return x, mass


grid_of = lambda name, steps: np.linspace(FIRST[name], 0, steps + 1)

# %% tags=["comparison"]
states, masses = law(vp, grid_of("VP", 40))
drawn, _ = sampling.sample(sde_samplers.reverse_sde(vp), oracle(vp).denoise, starts("VP", 20_000)[:, None],
                           grid_of("VP", 40), jax.random.key(42))  # fmt: skip
drawn = np.asarray(drawn)[:, 0]
steps_of_law = np.interp([-1.0, 0.0, 1.0], states, np.cumsum(masses) - masses / 2)
shares_drawn = (drawn[:, None] < [-1.0, 0.0, 1.0]).mean(0)
print("share below −1, 0 and 1: carried", steps_of_law.round(3), "drawn", shares_drawn.round(3))
# 4 standard errors of 20,000 draws, and .003 for cells of .009.
assert np.abs(steps_of_law - shares_drawn).max() < 4 * 0.5 / np.sqrt(20_000) + 0.003

# %% [markdown]
# **Predict, then run.** $\eta = 1$ and 40 steps: which comes closer to the data, Euler–Maruyama (11) or the
# exact step (12), which is DDPM?

# %%
parts = {}
for name in ("VP", "VE", "cosine"):
    for mean in ("(11)", "(12)"):
        for noise_part in ("(11)", "(12)", "transition"):
            ended = law(PROCESSES[name], grid_of(name, 40), mean=mean, noise=noise_part)
            parts[name, mean, noise_part] = off_data(*ended)
            distance, widened = parts[name, mean, noise_part]
            print(f"{name:6} mean of {mean}, noise of {noise_part:10}: distance {distance:.4f}, "
                  f"spread {widened:+.1%}")  # fmt: skip
dialled = off_data(*law(vp, grid_of("VP", 160), eta=lambda t: 2 * t))[0]
finer = off_data(*law(vp, grid_of("VP", 40), n=901))[0]
print(f"η = 2t on VP, 160 steps: distance {dialled:.4f}; the first row with 901 cells: {finer:.4f}")

# %% tags=["claims"]
# @title Checked: with 40 steps at η = 1 Euler–Maruyama is closer, and the noise decides the spread
for name in ("VP", "VE", "cosine"):
    w = {pair: parts[name, *pair] for pair in [(m, q) for m in ("(11)", "(12)")
                                               for q in ("(11)", "(12)", "transition")]}  # fmt: skip
    assert w["(11)", "(11)"][0] < w["(12)", "(12)"][0] / 1.5  # no scatter; measured 2.3 to 2.9
    assert w["(12)", "(12)"][1] < -0.015 and w["(11)", "(12)"][1] < -0.015
    assert all(w["(11)", q][1] < w["(12)", q][1] for q in ("(11)", "(12)"))  # its mean narrows
    by_noise = [w[m, "(11)"][1] - w[m, "(12)"][1] for m in ("(11)", "(12)")]
    by_mean = [abs(w["(12)", q][1] - w["(11)", q][1]) for q in ("(11)", "(12)")]
    assert min(by_noise) > max(by_mean)
    assert w["(12)", "transition"][0] < w["(12)", "(12)"][0]
    t = grid_of(name, 40)[:-1]
    fresh = sde.diffusion_squared(PROCESSES[name], t) / 40 * FIRST[name]
    exact_fresh = process.new_noise(PROCESSES[name], t, grid_of(name, 40)[1:]) * PROCESSES[name].sigma(
        grid_of(name, 40)[1:]) ** 2  # fmt: skip
    assert (fresh > exact_fresh).all()
assert (
    parts["VE", "(12)", "(11)"][0] > parts["VE", "(12)", "(12)"][0]
)  # the noise alone is not enough
assert abs(finer - parts["VP", "(11)", "(11)"][0]) < 0.001 and dialled < 0.01

# %% [markdown]
# Euler–Maruyama is closer on all three processes. Look at the spread first. With the noise of (12) it is
# too small, whichever mean we take; to change the noise moves the spread more than to change the mean. Step
# (12) holds $\hat x_0$ as if it were *certain*. But $x_0$ given $x_t$ is uncertain, and this uncertainty is
# missing from the noise. It is chapter 05's lower limit of the variance, and with the upper limit (12) gets
# better. Euler–Maruyama takes $g^2$ from the beginning of the step, where it is larger, so it adds more noise.
# Its mean narrows the spread, and the two errors partly cancel. Both parts are needed: on VE the noise of (11)
# with the mean of (12) is too wide, and no closer to the data than DDPM.
#
# The last line checks a claim of section 8: $\eta$ may change with time, here $\eta = 2t$.
#
# "Exact" means: exact for a fixed $\hat x_0$. This is an advantage at the ends of a process, and, as section 13
# shows, for long steps at large $\eta$. It is none for the spread.

# %% [markdown]
# ## 11 · Predictor and corrector
#
# A step of (11) makes an error. Langevin dynamics (2) knows the right marginal, and pulls the state towards it.
# So alternate: one step to $s$ (the **predictor**), then one or more Langevin steps *at* $s$ (the
# **corrector**; Song et al. 2021, algorithms 1 and 4). The size of a corrector step is chosen by a ratio $r$ of
# its signal (the drift) to its noise:
#
# $$h = 2\Big(r\,\frac{\|z\|}{\|s_t(x)\|}\Big)^2, \tag{13}$$
#
# where both norms are Euclidean and averaged over the batch. Then the drift $h\|s\|$ is $r$ times as long as
# the noise $\sqrt{2h}\|z\|$. A classic slip takes a norm over the *whole batch* on one side only, and makes the
# step larger with every example in the batch.


# %% tags=["comparison"]
def correct(score, x, r, key):
    """One corrector step (13) on a batch [B, …]."""
    z = jax.random.normal(key, x.shape)
    size = lambda a: jnp.linalg.norm(a.reshape(len(a), -1), axis=1).mean()
    h = 2 * (r * size(z) / size(score)) ** 2
    return x + h * score + jnp.sqrt(2 * h) * z


before, t_before, t_after = clouds.sample(jax.random.key(19), 64), 0.5, 0.45
key_step, key_then = jax.random.split(key)
predictor = sde_samplers.reverse_sde(ve)
moved, _ = predictor.step(clouds.denoise, before, t_before, t_after, key_step, ())
corrected = correct(clouds.score(moved, t_after), moved, 0.16, jax.random.fold_in(key_then, 0))
pc = sde_samplers.predictor_corrector(predictor, ve, snr=0.16)
by_pc, _ = pc.step(clouds.denoise, before, t_before, t_after, key, ())
np.testing.assert_allclose(corrected, by_pc, atol=1e-4)  # float32
print("one predictor and one corrector step agree with the library")

# %% [markdown]
# Does it pay? A step with a corrector costs two evaluations. So the baseline is the predictor alone with
# twice as many steps. The paper found that correctors help (Song et al. 2021, table 1). We carry the
# distributions once more, on the VE process with $\sigma_{\max} = 5$, for three predictors and four ratios
# $r$. (In brackets: the relative error of the spread. The last step has no corrector, so the runs with one
# spend one evaluation less.)
#
# **Predict, then run.** Which of the three predictors will a corrector help most?

# %%
predictors = {"Euler–Maruyama": (1.0, "(11)"), "DDPM": (1.0, "(12)"), "DDIM": (0.0, "(12)")}
budgets, ratios = (12, 24, 48), (0.05, 0.1, 0.16, 0.3)
pc_race = {}
for name, (eta, part) in predictors.items():
    for budget in budgets:
        for r in (0.0, *ratios):
            line_of_times = grid_of("VE", budget // 2 if r else budget)
            few_cells = r or eta  # without any noise the cells only move, and more cost nothing
            ended = law(
                PROCESSES["VE"], line_of_times, eta, part, part, r, n=601 if few_cells else 4001
            )
            pc_race[name, budget, r] = off_data(*ended)
        texts = [f"{d:.3f} ({w:+.0%})" if d > 0 else "runs away"
                 for d, w in (pc_race[name, budget, r] for r in (0.0, *ratios))]  # fmt: skip
        print(f"{name:15}{budget:3} evaluations:", *(f"r = {r}: {text}; " if r else f"alone {text}; "
              for r, text in zip((0.0, *ratios), texts, strict=True)))  # fmt: skip

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
for ax, name in zip(axes, predictors, strict=True):
    rows = {"alone": 0.0, "r = 0.05": 0.05, "r = 0.16": 0.16, "r = 0.3": 0.3}
    ax.set_ylim(0.008, 0.4)
    plots.curves(budgets, {label: [pc_race[name, b, r][0] for b in budgets] for label, r in rows.items()},
                 ax=ax, log="xy", xlabel="evaluations", ylabel="", label_at=0.4)  # fmt: skip
    ax.set(title=name, xticks=budgets, xticklabels=budgets)
    ax.minorticks_off()
axes[0].set_ylabel("distance to the data")
plt.show()

# %% tags=["claims"]
# @title Checked: on this oracle a strong corrector pays for DDPM, and none for Euler–Maruyama
for budget in budgets:
    best = np.min([pc_race["Euler–Maruyama", budget, r][0] for r in ratios])  # no scatter
    assert (
        np.isnan(best) if budget == 12 else best > 1.3 * pc_race["Euler–Maruyama", budget, 0.0][0]
    )
    assert pc_race["DDPM", budget, 0.3][0] < pc_race["DDPM", budget, 0.0][0]
    assert pc_race["DDPM", budget, 0.05][0] > 1.5 * pc_race["DDPM", budget, 0.0][0]
assert pc_race["DDIM", 12, 0.3][0] < pc_race["DDIM", 12, 0.0][0]
assert min(pc_race["DDIM", 48, r][0] for r in ratios) > 0.9 * pc_race["DDIM", 48, 0.0][0]

# %% [markdown]
# It depends on the predictor. Euler–Maruyama loses more by steps of twice the length than any corrector can
# give back; with six steps it even runs away. DDPM gains, if the corrector is strong ($r = 0.3$); a weak
# one ($r = 0.05$) costs half of the steps and corrects little. DDIM gains at 12 evaluations, and at 48 it
# makes no difference.
#
# Be careful with the reason. By (3), a corrector at rest widens a Gaussian's variance by the factor
# $1/(1 - r^2)$, since $h = 2r^2v$; for $r = 0.3$ this is 10 %. DDPM's spread was too *small*. So a part of
# the gain is again one error that hides another. And this is an exact score in one dimension: a network has its
# own errors. Section 13 tries it.

# %% [markdown]
# ## 12 · Where to begin: $\sigma_{\max}$
#
# So far we began with exact draws of $x_1$. In practice we do not have them. We begin with pure noise,
# $\mathcal N(0, \sigma_{\max}^2)$, and neglect the data. How large must $\sigma_{\max}$ be?
#
# For data $\mathcal N(m, s^2)$ (here $s$ is a standard deviation) and $\alpha = 1$ this can be solved. The start
# has the mean 0 where $m$ is right. Along (11) an error of the mean shrinks at the rate
# $\tfrac{1+\eta^2}{2}\,g^2/(s^2 + \sigma^2)$, and $g^2\,dt = d\sigma^2$. So the factor that is left at the
# end is
#
# $$\Big(\frac{s^2}{s^2 + \sigma_{\max}^2}\Big)^{(1 + \eta^2)/2}. \tag{14}$$
#
# With $s = 0.5$ and $\sigma_{\max} = 5$ it is 10 % for $\eta = 0$ and 1 % for $\eta = 1$. **Noise forgets a
# wrong start.** This is one reason to use $\eta > 0$.


# %%
def bell_run(p, steps, eta=1.0, slip="", begin=None, data_mean=0.7, data_std=0.5):
    """Mean and std after (11) for Gaussian data: each step is linear, so nothing is drawn."""
    times = np.linspace(1, 0, steps + 1)
    a, sg = (np.float64(level(times)) for level in (p.alpha, p.sigma))
    v = (a * data_std) ** 2 + sg**2
    f, g2 = (np.float64(c(p, times[:-1])) for c in (sde.drift, sde.diffusion_squared))
    mean, variance = (a[0] * data_mean, v[0]) if begin is None else begin
    pull = (1 + eta**2) / 2 * g2  # the factor of the score, which is (a·m − x)/v
    pull = {"no g²": pull / g2, "g for g²": pull / np.sqrt(g2), "g² at every η": g2}.get(slip, pull)
    for i in range(steps - 1):
        dt = (times[i + 1] - times[i]) * (-1 if slip == "sign of dt" else 1)
        scale = 1 + (f[i] + pull[i] / v[i]) * dt
        mean = scale * mean - pull[i] / v[i] * a[i] * data_mean * dt
        variance = scale**2 * variance + eta**2 * g2[i] / steps
    kept = a[-2] * data_std**2 / v[-2]  # the last step returns E[x0 | x]
    return data_mean + kept * (mean - a[-2] * data_mean), kept * np.sqrt(variance)


# %%
highest, left_over = (0.5, 1.0, 2.0, 5.0, 20.0, 50.0), {}
for eta in (0.0, 0.5, 1.0):
    for top in highest:
        growing = process.variance_exploding(0.01, top)
        ended, _ = bell_run(growing, 2000, eta, begin=(0.0, top**2))
        top_level = float(growing.sigma(1.0))
        formula = (0.25 / (0.25 + top_level**2)) ** ((1 + eta**2) / 2)
        left_over[eta, top] = (0.7 - ended) / 0.7, formula
    print(f"η = {eta}: error of the mean that is left",
          *(f"{top:g}: {left_over[eta, top][0]:.4f} ({left_over[eta, top][1]:.4f})" for top in highest))  # fmt: skip

# %% [markdown]
# (In brackets: equation (14).) So why not take $\sigma_{\max} = 1000$? Because the steps have to cover the
# way. We carry the mixture of three groups from a wrong start, with 20 and with 80 steps of (12).
#
# **Predict, then run.** Where is the best $\sigma_{\max}$ with 20 steps?

# %%
wrong_start = {}
for eta in (0.0, 1.0):
    for steps in (20, 80):
        for top in highest:
            p_top = process.variance_exploding(0.01, top)
            ended = law(p_top, np.linspace(1, 0, steps + 1), eta, "(12)", "(12)",
                        begin=lambda x, top=top: np.exp(-((x / top) ** 2) / 2),
                        n=601 if eta else 4001)  # fmt: skip
            wrong_start[eta, steps, top] = off_data(*ended)[0]
curves_of_start = {f"η = {eta:g}, {steps} steps": [wrong_start[eta, steps, top] for top in highest]
                   for eta in (0.0, 1.0) for steps in (20, 80)}  # fmt: skip
fig, ax = plt.subplots(figsize=(5.5, 3.4))
ax.set_ylim(0.009, 0.6)
plots.curves(highest, curves_of_start, ax=ax, log="xy", ylabel="distance to the data",
             xlabel=r"highest level $\sigma_{\max}$")  # fmt: skip
plt.show()
for name, values in curves_of_start.items():
    print(
        f"{name:15}",
        *(f"{top:g}: {value:.3f} " for top, value in zip(highest, values, strict=True)),
    )

# %% tags=["claims"]
# @title Checked: equation (14); too low a start costs, too high a start costs steps
for found_error, formula in left_over.values():
    assert abs(found_error - formula) < 0.02 * formula + 0.002  # 2,000 steps of Euler–Maruyama
for eta in (0.0, 1.0):
    few = [wrong_start[eta, 20, top] for top in highest]
    many = [wrong_start[eta, 80, top] for top in highest]
    assert 0 < np.argmin(few) < len(highest) - 1 and np.argmin(many) > np.argmin(few)
    assert few[-1] > 1.1 * min(few) and few[0] > 1.5 * min(few)  # no scatter
assert wrong_start[1.0, 80, 2.0] < wrong_start[0.0, 80, 2.0] / 2
assert 2.5 < float(jnp.ptp(numbers)) < 4  # the largest distance of two of 20,000 numbers: about 3

# %% [markdown]
# With 20 steps the curve has a minimum. On the left the start is wrong, on the right the steps are too
# long. With more steps the minimum moves to higher noise. And at $\sigma_{\max} = 2$, with 80 steps, the noise
# of $\eta = 1$ makes up for more than half of the wrong start. Song & Ermon (2020, technique 1) advise the largest
# distance between two data points: then the start cannot tell any two of them apart. Here this is
# about 3. For pictures of 3,072 numbers in $[0, 1]$ they took 50.
#
# For the VP process the same question reads: how much signal is left at $t = 1$? (Chapter 01, section 6.)

# %% [markdown]
# ## 13 · A learned score
#
# Now a network: the released weights for the 8×8 digits. It was trained on the cosine process to predict
# $v$. All samplers of this chapter take its denoiser. We draw 360 digits from pure noise for each row, and
# measure Fréchet distances (chapter 03) with three seeds.
#
# May a network of one process be used in another one? Yes: $\mathrm{SNR}$ decides. A VE state at level $\sigma$
# is $x_0 + \sigma\varepsilon$. Times $\alpha$ it is the cosine process's state at the time with
# $\sigma_t/\alpha_t = \sigma$. So we can run the sampler of 2019, annealed Langevin dynamics, with a network
# that was trained as a VP model.


# %%
def as_exploding(D, p, exploding):
    """A denoiser of p, for the states of a process with alpha = 1."""

    def D_exploding(x, u):
        t = process.time_at(p, exploding.log_snr(u))
        return D(p.alpha(t) * x, t)

    return D_exploding


wide_ve = process.variance_exploding(0.02, 20.0)
MAKE = {
    "(11)": lambda eta: sde_samplers.reverse_sde(cosine, eta),
    "(12)": lambda eta: sde_samplers.reverse_sde_log_snr(cosine, eta),
    "(12) + corrector": lambda eta: sde_samplers.predictor_corrector(
        sde_samplers.reverse_sde_log_snr(cosine, eta), cosine, 0.3),
    "Langevin, r = 0.1": lambda eta: sde_samplers.annealed_langevin(wide_ve, 0.1, 4),
    "Langevin, r = 0.5": lambda eta: sde_samplers.annealed_langevin(wide_ve, 0.5, 4),
}  # fmt: skip


# %%
@partial(jax.jit, static_argnames="name")
def draw(model, x, labels, steps, key, eta, name):
    """Samples, and the standard deviation of the states after each step [100]."""
    D, sampler = denoiser.denoiser(model, cosine, "v", labels), MAKE[name](eta)
    if name.startswith("Langevin"):
        D, x = as_exploding(D, cosine, wide_ve), wide_ve.sigma(1.0) * x

    def body(i, carry):
        x, spreads = carry
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        x, _ = sampler.step(D, x, t, s, jax.random.fold_in(key, i), ())
        return x, spreads.at[i].set(x.std())

    return jax.lax.fori_loop(0, steps, body, (x, jnp.zeros(100)))


small, expert = weights.load("digits"), weights.load("digits_classifier")
real, LABELS = features.load("digits", expert.card), jnp.arange(360) % 10
noises = [jax.random.normal(jax.random.key(50 + seed), (360, 8, 8, 1)) for seed in range(3)]


digits_of, spreads_of = {}, {}


def scored(name, steps, eta=1.0):
    """Fréchet distances of 360 digits, for three seeds."""
    found = []
    for seed, x in enumerate(noises):
        digits, spreads = draw(small.model, x, LABELS, steps, jax.random.key(seed), eta, name)
        found.append(metrics.frechet(judge(expert.model, digits)[1], real))
    digits_of[name, steps, eta], spreads_of[name, steps, eta] = digits[:20], spreads[:steps]
    return np.array(found)


# %% [markdown]
# **Predict, then run.** Section 10 says that Euler–Maruyama at $\eta = 1$ is better than DDPM, section 11
# that a corrector may help DDPM. Which of the two will survive on the network?

# %%
runs = [("(12)", 10, 0.0), ("(12)", 10, 1.0), ("(11)", 10, 1.0), ("(12)", 10, 2.0), ("(11)", 10, 2.0),
        ("(12)", 40, 0.0), ("(12)", 40, 1.0), ("(11)", 40, 1.0),
        ("(12) + corrector", 5, 1.0), ("(12) + corrector", 20, 1.0),
        ("Langevin, r = 0.1", 10, 1.0), ("Langevin, r = 0.5", 10, 1.0)]  # fmt: skip
scores = {(name, steps, eta): scored(name, steps, eta) for name, steps, eta in runs}
for (name, steps, eta), values in scores.items():
    evaluations = {"(12) + corrector": 2 * steps - 1, "(11)": steps, "(12)": steps}.get(
        name, 4 * steps + 1
    )
    dial = "" if name.startswith("Langevin") else f", η = {eta:g}"
    print(
        f"{name + dial:25} {evaluations:2} evaluations: {values.mean():6.2f} ± {values.std():.2f}"
    )

# %%
with_exact = {}
for n in (10, 40):  # the same corrector with the exact score, on section 10's numbers
    exact_pc = [
        off_data(*law(cosine, grid_of("cosine", m), 1.0, "(12)", "(12)", r))[0]
        for m, r in ((n, 0.0), (n // 2, 0.3))
    ]
    with_exact[n] = exact_pc
    print(f"exact score, cosine, {n} evaluations: alone {exact_pc[0]:.4f}, "
          f"with the corrector {exact_pc[1]:.4f}")  # fmt: skip
held = data.load("digits", "test").x[:360]
floor = metrics.frechet(judge(expert.model, held)[1], real)
print(f"360 unseen real digits: {floor:.2f}")

# %%
shown_runs = {"DDIM, 40": ("(12)", 40, 0.0), "DDPM, 40": ("(12)", 40, 1.0), "(11), η = 2, 10": ("(11)", 10, 2.0),
              "(12), η = 2, 10": ("(12)", 10, 2.0), "Langevin .1, 41": ("Langevin, r = 0.1", 10, 1.0),
              "Langevin .5, 41": ("Langevin, r = 0.5", 10, 1.0)}  # fmt: skip
plots.image_grid([digits_of[run] for run in shown_runs.values()], list(shown_runs),
                 "digits of 8×8 pixels; the last number counts evaluations", scale=0.45)  # fmt: skip
plt.show()

# %% tags=["claims"]
# @title Checked: on the network, what section 10 says holds, and the corrector does not pay
# 360 digits and three seeds a row; scatter up to .2, so that a verdict needs .3.
mean_of = {key: values.mean() for key, values in scores.items()}
assert mean_of["(11)", 10, 1.0] < mean_of["(12)", 10, 1.0] - 0.3
assert mean_of["(12)", 10, 0.0] < mean_of["(12)", 10, 1.0] - 0.2
assert mean_of["(11)", 10, 2.0] > 5 * mean_of["(12)", 10, 2.0]
at_eta_2 = [float(spreads_of[name, 10, 2.0][:-1].max()) for name in ("(11)", "(12)")]
assert at_eta_2[0] > 3 > 1.2 > at_eta_2[1]  # states of a spread near 1: several times too wide
assert abs(mean_of["(11)", 40, 1.0] - mean_of["(12)", 40, 0.0]) < 0.15
for few, alone in ((5, 10), (20, 40)):  # paired seeds; a standard error of .1
    assert mean_of["(12) + corrector", few, 1.0] > mean_of["(12)", alone, 1.0]
for alone, corrected_law in with_exact.values():  # no scatter
    ve_alone, ve_corrected = pc_race["DDPM", 12, 0.0][0], pc_race["DDPM", 12, 0.3][0]
    assert 0.93 < corrected_law / alone < 1 and ve_corrected / ve_alone < 0.9
langevin_at = {r: mean_of[f"Langevin, r = {r}", 10, 1.0] for r in (0.1, 0.5)}
assert mean_of["(12)", 40, 1.0] + 0.15 < langevin_at[0.5] < mean_of["(12)", 10, 1.0]
assert langevin_at[0.1] > 10

# %% [markdown]
# What section 10 says survives: with ten evaluations Euler–Maruyama at $\eta = 1$ is clearly better than
# DDPM. But at $\eta = 2$ its ten steps are too long: the states become several times too wide on the way, while
# (12) stays bounded. The corrector with $r = 0.3$ does not pay here, with neither budget. Several things differ
# from section 11: the score is learned, the process is cosine and not VE, and digits have 64 numbers. With the
# *exact* score the same corrector gains a few percent on the cosine process, and much more on VE. So the
# process alone takes most of the gain away. A result on one process is a reason to try something on another
# one, not a verdict.
#
# With 40 evaluations Euler–Maruyama at $\eta = 1$ and DDIM cannot be told apart by this measure. Annealed
# Langevin dynamics with 41 depends on its step size: with $r = 0.1$ the four steps of a level cannot follow
# the falling noise, and the digits stay noisy. With $r = 0.5$ they can, and the result is better than that of ten
# steps of DDPM, but not of forty.

# %% [markdown]
# ## 14 · Break it on purpose: the wrong factor before the score
#
# Equation (11) is short, and easy to write wrongly. Four slips that are easy to make:
#
# - **A**: no $g^2$ before the score;
# - **B**: $g$ in the place of $g^2$;
# - **C**: $\eta$ changes the noise, but the factor $\tfrac{1+\eta^2}{2}g^2$ stays $g^2$ at every $\eta$ (to make the
#   SDE an ODE, the noise is simply left out);
# - **D**: the grid of times is reversed, and the sign of $dt$ is not.
#
# **Predict, then run.** The data are $\mathcal N(0.7, 0.5^2)$, the score is exact, the process is VP. Which
# of the four can *not* be found with $\eta = 1$?

# %%
slips = {"right": "", "A": "no g²", "B": "g for g²", "C": "g² at every η", "D": "sign of dt"}
broken = {(name, eta): bell_run(vp, 400, eta, slip) for name, slip in slips.items()
          for eta in (0.0, 0.5, 1.0)}  # fmt: skip
for name, slip in slips.items():
    print(f"{name:6}{slip:14}", *(f"η = {eta:g}: mean {broken[name, eta][0]:7.3f}, "
                                  f"std {broken[name, eta][1]:8.4f};" for eta in (0.0, 0.5, 1.0)))  # fmt: skip

# %% tags=["claims"]
# @title Checked: each slip shows in the spread, C at η < 1 only
assert all(abs(broken["right", eta][1] / 0.5 - 1) < 0.01 for eta in (0.0, 0.5, 1.0))  # 400 steps
assert broken["A", 1.0][1] > 20 and broken["B", 1.0][1] > 3 and broken["D", 1.0][1] > 100
assert broken["C", 1.0] == broken["right", 1.0]
assert abs(broken["C", 0.5][1] / 0.25 - 1) < 0.03 and broken["C", 0.0][1] < 0.01
assert abs(broken["A", 1.0][0] - 0.7) < 0.05 and abs(broken["B", 1.0][0] - 0.7) < 0.05

# %% [markdown]
# A, B and D explode in the spread, although A and B keep the *mean* almost right. Slip C is the silent one.
# At $\eta = 1$ it is no mistake. At $\eta = 0.5$ the spread is half of what it should be, and without noise
# all samples are nearly the same point. On pictures the samples would be too smooth and too much alike.
#
# ### A corrector that depends on the batch
#
# One more slip is in (13). It was described in section 11: a norm over the whole batch on one side only. What
# does it do?


# %%
def correct_badly(score, x, r, key):
    """As `correct`, but the noise's norm is that of the whole batch."""
    z = jax.random.normal(key, x.shape)
    per_example = jnp.linalg.norm(score.reshape(len(score), -1), axis=1).mean()
    h = 2 * (r * jnp.linalg.norm(z) / per_example) ** 2
    return x + h * score + jnp.sqrt(2 * h) * z


widths = {}
for count in (4, 16, 64):
    flat = jax.random.normal(jax.random.key(60), (count, 4096))  # a batch of N(0, 1), score −x
    for name, function in (("right", correct), ("wrong", correct_badly)):
        widths[name, count] = float(function(-flat, flat, 0.16, jax.random.key(61)).std())
    print(f"batch of {count:2}: one correction of N(0, 1) gives std {widths['right', count]:.3f}, "
          f"with the slip {widths['wrong', count]:.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the slip grows with the batch, the right corrector does not know it
# h²/2 = .0013, and 4 standard errors of at least 16,384 numbers.
assert all(
    abs(widths["right", count] - 1) < 0.0013 + 4 / np.sqrt(2 * 16_384) for count in (4, 16, 64)
)
assert (
    1 < widths["wrong", 4] < widths["wrong", 16] < widths["wrong", 64] and widths["wrong", 64] > 2
)

# %% [markdown]
# A step that grows with the number of examples is wrong. To look for this is a test that needs no oracle.
#
# **The lesson.** Run a reverse process on Gaussian data with the exact score, at $\eta = 0$, 0.5 and 1, and look
# at the spread. The mean alone passes A, B and C, and $\eta = 1$ alone passes C.

# %% [markdown]
# ## 15 · What to inspect
#
# A network has no closed form to compare its samples with, but its *states* have one: at every time their
# variance must be $\alpha^2\,\operatorname{Var}(x_0) + \sigma^2$ (the variance of all pixels of all
# pictures). For any $\eta$, it is the same curve.

# %%
pixels = np.asarray(data.load("digits").x)
on_the_way = np.linspace(1, 0, 41)[1:]
expected = np.hypot(cosine.alpha(on_the_way) * pixels.std(), cosine.sigma(on_the_way))
along = {"closed form": expected}
for name, eta in (("(12)", 0.0), ("(12)", 1.0), ("(11)", 1.0)):
    along[f"{name}, η = {eta:g}"] = np.asarray(spreads_of[name, 40, eta])
fig, ax = plt.subplots(figsize=(6.5, 3.4))
ax.set(xlim=(1, 0), ylim=(0.55, 1.5))
plots.curves(on_the_way, along, ax=ax, xlabel="time $t$ (sampling runs to the right)",
             ylabel="std of all pixels of $x_t$")  # fmt: skip
plt.show()
relative_gap = {name: np.abs(values / expected - 1)[:-1] for name, values in along.items()}
for name, values in list(relative_gap.items())[1:]:
    print(f"{name:12} largest gap before t = 0.5: {values[on_the_way[:-1] > 0.5].max():.1%}, "
          f"after it: {values[on_the_way[:-1] <= 0.5].max():.1%}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: (12) follows the curve; (11) leaves it where f is nearly infinite, and comes back
# 360 × 64 pixels of one run: less than 1 % of scatter.
assert all(relative_gap[f"(12), η = {eta}"].max() < 0.03 for eta in (0, 1))
early = on_the_way[:-1] > 0.5
assert relative_gap["(11), η = 1"][early].max() > 0.2
assert relative_gap["(11), η = 1"][~early].max() < 0.05

# %% [markdown]
# The two runs of (12) follow the curve. Euler–Maruyama does not: its first steps, where $f$ and $g^2$ are
# nearly infinite, make the states far too wide. It is the variance 2 of section 7. The later steps forget
# it, by the law of section 12, and the *digits* do not show it. This curve does.
#
# What to look at when you write a sampler of your own:
#
# 1. **the spread** on Gaussian data with the exact score, for several $\eta$ (section 14);
# 2. **the spread of the states** against the closed form, as above: it says at which time something goes wrong;
# 3. **the two ends**: where $\alpha = 0$, $f$ is infinite; where $\sigma = 0$, the score is;
# 4. **the start**: how much signal is left at $t = 1$, or $\sigma_{\max}$ against the size of the data;
# 5. **the corrector**: its drift is $r$ times as long as its noise, for every batch size;
# 6. **evaluations**, counted, with the baseline that spends the same number without the new part.

# %% [markdown]
# ## Recap
#
# 1. The score is a field. Langevin dynamics follows it, and gets stuck between modes; noise of many levels cures
#    this.
# 2. A score is learned by Hyvärinen's loss, by its sliced form, or by denoising, which needs no derivative. The
#    network's output is divided by $\sigma$.
# 3. Every process is an SDE: $f = \dot\alpha/\alpha$ and $g^2 = d\sigma^2/dt - 2f\sigma^2$. Where $\alpha = 0$ both
#    are infinite.
# 4. Backwards, $\eta$ adds noise and score in the right proportion. The marginals stay, the paths change, and a
#    wrong start is forgotten faster.
# 5. $\eta = 0$ is DDIM and the probability flow, $\eta = 1$ is DDPM and the reverse SDE. Every $\eta$ must give the
#    spread of the data: test it.

# %% [markdown]
# **Exercises:** [09 · exercises](../exercises/09_score_sdes.ipynb).
#
# ## Try it yourself
#
# 1. Section 3 with five times the step size, `0.01`. Do more points change their cloud? What does equation (3)
#    say about the smallest cloud, whose standard deviation is 0.07?
# 2. Section 10 with the VP process and 12 steps. Does Euler–Maruyama still win? And with the cosine process?
# 3. Section 11 with `r = 0.5`. Look at the spread, too.
# 4. Section 12 with $\eta = 2$. Equation (14) says that the start is forgotten even faster. Why is the distance
#    with 20 steps not smaller?
# 5. Section 6 with the levels 0.002 to 50. How large is the gain of the division now?

# %% [markdown]
# ## Further reading
#
# - Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon, B. Poole. *Score-Based Generative
#   Modeling through Stochastic Differential Equations.* ICLR 2021.
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456).
# - Y. Song, S. Ermon. *Generative Modeling by Estimating Gradients of the Data Distribution.* NeurIPS 2019.
#   [arXiv:1907.05600](https://arxiv.org/abs/1907.05600). Annealed Langevin dynamics, NCSN.
# - Y. Song, S. Ermon. *Improved Techniques for Training Score-Based Generative Models.* NeurIPS 2020.
#   [arXiv:2006.09011](https://arxiv.org/abs/2006.09011).
# - A. Hyvärinen. *Estimation of Non-Normalized Statistical Models by Score Matching.* Journal of Machine
#   Learning Research 6, 2005.
# - P. Vincent. *A Connection Between Score Matching and Denoising Autoencoders.* Neural Computation 23, 2011.
# - Y. Song, S. Garg, J. Shi, S. Ermon. *Sliced Score Matching: A Scalable Approach to Density and Score
#   Estimation.* UAI 2019. [arXiv:1905.07088](https://arxiv.org/abs/1905.07088).

# %% [markdown]
# - B. D. O. Anderson. *Reverse-Time Diffusion Equation Models.* Stochastic Processes and their Applications 12,
#   1982.
# - T. Karras, M. Aittala, T. Aila, S. Laine. *Elucidating the Design Space of Diffusion-Based Generative
#   Models.* NeurIPS 2022. [arXiv:2206.00364](https://arxiv.org/abs/2206.00364). Section 4: noise and score.
# - C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu. *DPM-Solver++.* 2022 (2022b).
#   [arXiv:2211.01095](https://arxiv.org/abs/2211.01095). S. Xue et al. *SA-Solver.* NeurIPS 2023.
#   [arXiv:2305.14267](https://arxiv.org/abs/2305.14267).
# - M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden. *Stochastic Interpolants: A Unifying Framework for Flows and
#   Diffusions.* 2023. [arXiv:2303.08797](https://arxiv.org/abs/2303.08797).
# - A. Jolicoeur-Martineau, R. Piché-Taillefer, R. Tachet des Combes, I. Mitliagkas. *Adversarial Score Matching
#   and Improved Sampling for Image Generation.* ICLR 2021.
#   [arXiv:2009.05475](https://arxiv.org/abs/2009.05475).
# - G. O. Roberts, R. L. Tweedie. *Exponential Convergence of Langevin Distributions and Their Discrete
#   Approximations.* Bernoulli 2, 1996.
# - P. E. Kloeden, E. Platen. *Numerical Solution of Stochastic Differential Equations.* Springer, 1992.
#
# **New words:** score field, Langevin dynamics, annealed Langevin dynamics, Hyvärinen's and sliced score
# matching, stochastic differential equation, drift, diffusion, Brownian motion, Euler–Maruyama method,
# strong and weak order, additive and multiplicative noise, Ornstein–Uhlenbeck process, reverse SDE,
# stochastic interpolant, predictor, corrector, Wasserstein distance.
