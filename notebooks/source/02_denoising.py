# ---
# jupyter:
#   jupytext:
#     formats: ipynb,source//py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Denoising is the posterior mean
#
# **The question.** You see a noisy $x_t$ and want the clean $x_0$. What is the best guess? And why
# does a diffusion model need to learn nothing else?
#
# This chapter trains nothing. For simple data we can write the best denoiser down exactly. So we
# can check every claim about it at once, to several digits.

# %% [markdown]
# **You will be able to**
#
# - say what a network trained on squared error converges to, and why that looks blurry;
# - compute it from noisy data alone, with Tweedie's formula;
# - convert between predictions of $x_0$, $\varepsilon$, $v$, score and velocity, and say where each
#   conversion breaks down;
# - derive DDPM's simple loss from the variational bound, and name the weight that is dropped;
# - explain why a *perfect* denoiser of the training set would be useless.
#
# **You need** chapter 01, Bayes' rule and the Gaussian distribution.
#
# **Time:** about 75 minutes to read and play; the cells run in about half a minute on two CPU
# cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffusion_course import data, denoiser, parameterization, process, samplers, sampling
from diffusion_course.data import toy2d
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# The next figure shows a digit under more and more noise. Below it stands the best possible guess at
# what it was. No network made this row. We compute it exactly, by Bayes' rule, from the 1,437 digits of
# the training set. This six is one of them. For a digit drawn from this set, no method has a smaller
# squared error on average. Nevertheless the guess becomes blurred, and in the end it is grey fog. Why is
# fog the best answer? And how can a model that answers "fog" draw sharp digits? This chapter answers
# both questions.

# %% alt="A six at nine times: clean, noisy, and the best guess. Up to t = 0.7 the guess is a six that gets softer; at 0.8 it is blurred, and at 1 it is grey fog."
p = process.vp_cosine()  # the cosine schedule of chapter 01, in continuous time
digits, unseen = data.load("digits"), data.load("digits", split="test")
best_guess = denoiser.ideal(p, digits.x)  # section 7 opens this box

times = np.array([0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], np.float32)
six = digits.x[digits.labels == 6][:1]
six_noise = jax.random.normal(jax.random.key(3), six.shape)
sixes, noises = (np.repeat(a, len(times), axis=0) for a in (six, six_noise))
noisy_sixes = process.add_noise(p, sixes, noises, times)
first = {"a six": sixes, "noisy": noisy_sixes, "best guess": best_guess(noisy_sixes, times)}
fig = plots.image_grid(list(first.values()), list(first),
                       "Above: the time $t$; at $t$ = 1 there is noise only", scale=0.9)  # fmt: skip
fig.axes[0].set_xticks(4.5 + 9 * np.arange(len(times)), [f"{t:g}" for t in times])
fig.axes[0].tick_params(labeltop=True, labelbottom=False, length=0)
plt.show()

# %% [markdown]
# ## 1 · The best guess is an average
#
# We start with single numbers. They are lopsided: three quarters of them lie near −0.2, and the others
# near 1.6. We add noise as in chapter 01, $x_t = \alpha\,x_0 + \sigma\,\varepsilon$. We do this at
# $t = ½$, where $\alpha$ and $\sigma$ are about equal. Then we play a game: I show you an $x_t$, you
# name a number $c$, and you pay $(x_0 - c)^2$.

# %%
means, stds, weights = np.array([[-0.2], [1.6]]), np.array([0.25, 0.15]), np.array([0.75, 0.25])
middle_time, N = 0.5, 400_000
alpha, sigma = float(p.alpha(middle_time)), float(p.sigma(middle_time))

rng = np.random.default_rng(0)
group = (rng.random(N) < weights[1]).astype(int)
x0 = means[group, 0] + stds[group] * rng.standard_normal(N)
x_t = alpha * x0 + sigma * rng.standard_normal(N)

shown = np.abs(x_t - 0.95) < 0.05  # the rounds in which I showed you about 0.95
print(f"alpha = {alpha:.2f}, sigma = {sigma:.2f}; {shown.sum()} of {N} rounds show 0.95")

# %% [markdown]
# **Predict, then run.** I show you $x_t = 0.95$. Which $c$ costs you least on average: −0.2, 1.6,
# or something else?

# %% alt="Three panels. Points in two bands, a strip marked where the noisy value is near 0.95. The histogram of the truth in this strip, with peaks near 0 and 1.6. The cost of a guess, a parabola whose least value lies between the two peaks."
c = np.linspace(-0.6, 2.0, 261)
cost = np.mean((x0[shown, None] - c) ** 2, axis=0)
best, average = c[cost.argmin()], x0[shown].mean()
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3), width_ratios=[1.3, 1, 1])
axes[0].plot(x_t[:2000], x0[:2000], ".", ms=2, color=plots.DATA, alpha=0.5)
axes[0].axvspan(0.9, 1.0, color=plots.NOISE, alpha=0.6, lw=0)
axes[0].set(xlabel="$x_t$, what you see", ylabel="$x_0$, the truth", title="2,000 rounds")
axes[1].hist(x0[shown], np.linspace(-1, 2.2, 81), density=True, color=plots.DATA, alpha=0.6)
axes[1].set(xlabel="$x_0$, the truth", ylabel="density", title="the rounds with $x_t ≈ 0.95$")
axes[2].plot(c, cost, color=plots.PREDICTION)
axes[2].plot(best, cost.min(), "o", color=plots.PREDICTION)
axes[2].annotate("least", (best, cost.min()), (0, 10), textcoords="offset points",
                 ha="center", color=plots.PREDICTION)  # fmt: skip
axes[2].set(xlabel="$c$, your guess", ylabel="mean of $(x_0 - c)^2$", title="what the guess costs")
plt.show()
near = np.mean(np.abs(x0 - best) < 0.2)
print(f"cheapest guess {best:.2f}, average of x0 in these rounds {average:.3f}; "
      f"{near:.2%} of all x0 lie within 0.2 of it")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the cheapest guess is the average, and it lies where there is hardly any data
assert abs(alpha - sigma) < 0.02
assert abs(best - average) <= 0.005 + 1e-9  # the candidates c are 0.01 apart
assert near < 0.01

# %% [markdown]
# The cheapest guess lies in the gap between the groups, where there is almost no data. It isn't a
# *plausible* $x_0$. It is the *average* of the plausible ones. There is a simple reason for this: with
# $m = \mathbb E[x_0 \mid x_t]$,
#
# $$\mathbb E\big[(x_0 - c)^2 \mid x_t\big] = \operatorname{Var}(x_0 \mid x_t) + (c - m)^2. \tag{1}$$
#
# No guess can change the first part. You can change the second part, and it is zero for $c = m$. So if
# we minimise the squared error over all functions of $x_t$, we get the **posterior mean**
# $\mathbb E[x_0 \mid x_t]$. A network that is trained on squared error approaches it.

# %% [markdown]
# Look at what happened here. The target $x_0$ is random: $x_t$ does not determine it. Least squares
# replaced it by its average, given $x_t$. This works for *any* target that is made from $x_0$ and
# $\varepsilon$: train on the target of the single example (the *conditional* one), and you learn its
# average over all examples that fit $x_t$ (the *marginal* one). We call this the
# **conditional-to-marginal argument**. Denoising score matching (Vincent 2011) and flow matching (Lipman
# et al. 2023) are named after their targets, and both rest on it.
#
# To see the whole function, we cut the axis into 40 bins and average $x_0$ in each. By equation (1)
# these averages are the least-squares fit among all step functions. Beside them we plot the
# library's exact answer, the **oracle**. Section 3 explains how it works.

# %%
oracle = denoiser.gaussian_mixture(p, means, stds, weights)
exact = np.asarray(oracle.denoise(jnp.asarray(x_t, jnp.float32)[:, None], middle_time))[:, 0]
edges = np.linspace(-2.2, 3.0, 41)
bin_of = np.digitize(x_t, edges)
bins = [b for b in range(1, 41) if np.sum(bin_of == b) >= 100]
averages = np.array([x0[bin_of == b].mean() for b in bins])
off_in_bin = [(x0 - exact)[bin_of == b] for b in bins]
worst = max(abs(off.mean()) * np.sqrt(off.size) / off.std() for off in off_in_bin)
print(f"{len(bins)} bins: the largest gap to the oracle is {worst:.1f} standard errors")

# %% alt="Clean against noisy numbers. The oracle's curve is S-shaped, from about −0.4 to 1.65, and the averages of 40 bins lie on it. A straight line misses it."
grid = np.linspace(-2.6, 3.4, 451)
curve = np.asarray(oracle.denoise(jnp.asarray(grid, jnp.float32)[:, None], middle_time))[:, 0]
slope, offset = np.polyfit(x_t, x0, 1)
centres = (edges[:-1] + edges[1:]) / 2
fig, ax = plt.subplots(figsize=(6.5, 3.4))
ax.plot(x_t[:2000], x0[:2000], ".", ms=2, color=plots.NOISE, alpha=0.4)
ax.plot(grid, slope * grid + offset, ":", color=plots.TRUTH, lw=1)
ax.plot(grid, curve, color=plots.TRUTH)
ax.plot(centres[[b - 1 for b in bins]], averages, "o", ms=4, color=plots.PREDICTION)
ax.text(1.75, 0.6, "oracle (line), averages (dots)", color=plots.PREDICTION, size="small")
ax.text(-2.1, -1.2, "straight line", size="small")
ax.set(xlabel="$x_t$, what you see", ylabel="$x_0$", xlim=(-2.6, 3.4), ylim=(-1.4, 2.3))
plt.show()

# %% [markdown]
# How much does each way of guessing cost over all rounds: a step function, a straight line, a
# constant? No way may cost less than the oracle. By equation (1) the extra cost of any other guess is
# exactly its mean squared distance from the oracle.

# %%
steps = np.array([x0[bin_of == b].mean() for b in range(42)])[bin_of]
guesses = {"constant": np.full(N, x0.mean()), "straight line": slope * x_t + offset,
           "40 steps": steps, "oracle": exact, "x_t itself": x_t}  # fmt: skip
costs = {name: np.mean((x0 - guess) ** 2) for name, guess in guesses.items()}
extra = {name: np.mean((guess - exact) ** 2) for name, guess in guesses.items()}
for name in guesses:
    print(f"{name:14s} cost {costs[name]:.4f} = oracle's {costs['oracle']:.4f} + {extra[name]:.4f}")

# %% tags=["claims"]
# @title Checked: the averages are the oracle; any other guess costs its distance from it
# 40 bins: 4 standard errors are exceeded by chance once in 400 such notebooks.
assert worst < 4
for name, guess in guesses.items():
    # What is left over is the mean of 2·(x0 − exact)·(exact − guess), whose expectation is 0.
    # The 42 steps and the line were fitted to these very rounds: a few parameters' worth of gain,
    # of order 42·cost/N, on top of 4 standard errors.
    rest = 2 * (x0 - exact) * (exact - guess)
    slack = 4 * rest.std() / np.sqrt(N) + 2 * 42 * costs[name] / N
    assert abs(costs[name] - costs["oracle"] - extra[name]) < slack

# %% [markdown]
# ## 2 · Tweedie's formula
#
# The next game is harder. I show you many noisy numbers and *never* a clean one. Can you still find
# the best guess? You can. In 1956 Herbert Robbins published a formula for it, which he credited to
# Maurice Tweedie. It needs only the density of the noisy numbers. Suppose this density rises by 10 % from
# $x$ to $x + 0.1$. Then the slope of its logarithm is about 1, and the best guess is about
# $(x + \sigma^2)/\alpha$. In general,
#
# $$\mathbb E[x_0 \mid x_t] \;=\; \frac{x_t + \sigma^2\,\nabla \log p_t(x_t)}{\alpha} \tag{2}$$
#
# (Robbins 1956; Efron 2011, section 1, has it for $\alpha = 1$.) Here $p_t$ is the density of the
# *noisy* data, and $\nabla\log p_t$ is called the **score**. It points in the direction in which the
# noisy data get denser. (In formulas, $p$ and $q$ are densities. In code, `p` is the process.)
#
# The proof is short. We have $p_t(x) = \int p(x_0)\,\mathcal N(x;\alpha x_0,\sigma^2)\,dx_0$. The
# derivative of the Gaussian with respect to $x$ is the Gaussian times $(\alpha x_0 - x)/\sigma^2$. So
# $\nabla\log p_t(x)$ is the average of $(\alpha x_0 - x)/\sigma^2$ over the posterior. Solve this
# for the average of $x_0$, and you get (2).

# %% [markdown]
# We check the formula by brute force, without any formula for mixtures. We lay a fine grid over
# $x_0$, multiply prior and likelihood, and add up. By Bayes' rule this gives the posterior mean. It also
# gives $\log p_t$, whose slope we take from differences.

# %% tags=["comparison"]
x0_grid = np.linspace(-2.5, 3.5, 6001)
bell = lambda x, mean, std: np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
prior = sum(w * bell(x0_grid, m, s) for w, m, s in zip(weights, means[:, 0], stds, strict=True))
joint = prior * bell(grid[:, None], alpha * x0_grid, sigma)  # [x_t, x0]

by_bayes = (joint @ x0_grid) / joint.sum(axis=1)
slope_of_log = np.gradient(np.log(joint.sum(axis=1)), grid, edge_order=2)
from_score = (grid + sigma**2 * slope_of_log) / alpha

# The sums are exact to rounding for densities this smooth; the oracle is in float32 (1e-6).
np.testing.assert_allclose(by_bayes, curve, atol=1e-5)
# Differences at a spacing h = 0.013 are off by about h²/6 times the third derivative.
np.testing.assert_allclose(from_score, curve, atol=1e-3)
print(f"largest gap to the oracle: Bayes {np.abs(by_bayes - curve).max():.0e}, "
      f"Tweedie {np.abs(from_score - curve).max():.0e}")  # fmt: skip

# %% [markdown]
# **Predict, then run.** Now we play the hard game. From here on we may use only `x_t`. We make a
# histogram of the noisy numbers. We lay a smooth curve through the logarithm of its counts (a
# polynomial, as Efron does). We take the slope of the curve and use formula (2). How close will this
# come to the oracle, which knows the clean data?

# %%
counts, cut = np.histogram(x_t, np.linspace(*np.quantile(x_t, [0.0005, 0.9995]), 61))
middle_of = (cut[:-1] + cut[1:]) / 2


def blind_guess(counts):
    """A smooth curve through the logarithms of the counts, and (2) with its slope."""
    # A count n has a standard error of sqrt(n), its logarithm one of 1/sqrt(n): hence the weights.
    log_curve = np.polynomial.Polynomial.fit(middle_of, np.log(counts), 8, w=np.sqrt(counts))
    return log_curve, (middle_of + sigma**2 * log_curve.deriv()(middle_of)) / alpha


log_curve, blind = blind_guess(counts)
truth = np.interp(middle_of, grid, curve)
off = np.sqrt(np.average((blind - truth) ** 2, weights=counts))
print(f"blind guess against the oracle: rms {off:.3f}, where x0 has a std of {x0.std():.2f}")

# %% alt="Left: the logarithm of the counts of noisy numbers, with a smooth curve through them. Right: the guess made from this curve alone. It lies on the oracle's line, except at the two ends, where there are few numbers."
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3))
axes[0].plot(middle_of, np.log(counts), ".", color=plots.NOISE)
axes[0].plot(middle_of, log_curve(middle_of), color=plots.PREDICTION)
axes[0].set(xlabel="$x_t$, noisy numbers", ylabel="logarithm of the count", title="all that we saw")
axes[1].plot(grid, curve, color=plots.TRUTH)
axes[1].plot(middle_of, blind, "o", ms=4, color=plots.PREDICTION)
axes[1].set(xlabel="$x_t$", ylabel="best guess at $x_0$",
            title="oracle (line) and blind guess (dots)")  # fmt: skip
plt.show()

# %% tags=["claims"]
# @title Checked: the blind guess follows the oracle, but for the ends: stiffness and few numbers
assert off < 0.05 * x0.std()  # measured 2 %: the polynomial is a little too stiff
# Why it is wrong at the ends. Stiffness: so it is with the counts that N → ∞ would give. Few numbers:
# 100 new draws of the counts scatter by 0.3 there (standard error 7 %), in the middle by 0.004.
log_of_p = np.interp(middle_of, grid, np.log(joint.sum(axis=1) * (x0_grid[1] - x0_grid[0])))
endless = N * (cut[1] - cut[0]) * np.exp(log_of_p)
at_ends = (blind_guess(endless)[1] - truth)[[0, -1]]
assert np.allclose(at_ends, (0.25, 0.49), atol=0.02)
redrawn = np.array([blind_guess(each)[1] for each in rng.poisson(endless, (100, 60))])
assert np.all(np.abs(redrawn.std(axis=0)[[0, -1]] - 0.28) < 0.09)
assert redrawn.std(axis=0)[30] < 0.006

# %% tags=["claims"]
# @title Checked: the average of the single scores in a bin is the score
# Each example's own score is −ε/σ = (α·x0 − x_t)/σ²; its average in a bin is that of the true score.
single = (alpha * x0 - x_t) / sigma**2
true_score = np.asarray(oracle.score(jnp.asarray(x_t, jnp.float32)[:, None], middle_time))[:, 0]
for b in bins:
    rest = (single - true_score)[bin_of == b]
    assert abs(rest.mean()) < 4 * rest.std() / np.sqrt(rest.size)

# %% [markdown]
# The blind guess follows the oracle, although we used no clean number. It is wrong at the two ends, for two
# reasons. A polynomial of degree 8 is too stiff there: with endless data it would still be off by 0.25 at the
# left end and by 0.5 at the right. And hardly any number fell there: with new numbers the guess would move by
# about 0.3 (in the middle by 0.004).
#
# If you know the *shape* of the noisy
# data, you know the posterior mean. If you know the posterior mean, you know the shape. So denoiser and
# score contain the same information. "Score-based" models (Song & Ermon 2019) learn the score at many
# noise levels, and "denoising" models learn the posterior mean. They turned out to be the same (Vincent
# 2011; Song et al. 2021).

# %% [markdown]
# ## 3 · The exact denoiser of a mixture, written out
#
# We want data for which we know the best denoiser exactly. Let the data be a mixture: component $k$
# has weight $w_k$, mean $\mu_k$ and covariance $s_k^2 I$. With noise it is still a mixture. Component
# $k$ of $x_t$ has mean $\alpha\mu_k$ and variance $v_k = \alpha^2 s_k^2 + \sigma^2$. If we knew that
# $x_0$ came from component $k$, the posterior mean would be $\mu_k$ plus a share
# $\alpha s_k^2 / v_k$ of the distance $x_t - \alpha\mu_k$. We do not know the component, so Bayes' rule
# gives each one a weight $r_k$:
#
# $$r_k = \frac{w_k\,\mathcal N(x_t;\,\alpha\mu_k,\,v_k I)}{\sum_j w_j\,\mathcal N(x_t;\,\alpha\mu_j,\,v_j I)},
# \qquad
# \mathbb E[x_0 \mid x_t] = \sum_k r_k \Big(\mu_k + \frac{\alpha s_k^2}{v_k}\,(x_t - \alpha\mu_k)\Big)
# \tag{3}$$
#
# (Bishop 2006, eq. 2.113 to 2.117, gives the Gaussian step.) This is the chapter's algorithm. It has
# ten lines.


# %%
def exact_denoiser(x_t, alpha, sigma, mu, s, w):
    """E[x0 | x_t], equation (3). x_t [B, D]; mu [K, D]; s, w [K]."""
    D = x_t.shape[1]
    v = alpha**2 * s**2 + sigma**2  # variance of component k of x_t
    gap = x_t[:, None, :] - alpha * mu  # [B, K, D]
    log_r = np.log(w) - D / 2 * np.log(v) - np.sum(gap**2, axis=-1) / (2 * v)
    r = np.exp(log_r - log_r.max(axis=1, keepdims=True))  # the largest is 1: nothing overflows
    r = r / r.sum(axis=1, keepdims=True)
    guess = mu + (alpha * s**2 / v)[:, None] * gap  # each component's own posterior mean
    return np.sum(r[:, :, None] * guess, axis=1)


# %% [markdown]
# The library's version must give the same numbers, also in the plane. Tweedie's formula must give them
# too, with the score taken from `log_prob` by automatic differentiation. So must Bayes' rule on a
# grid. From now on our data are three unequal clouds.

# %% tags=["comparison"]
gm = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
log_p = lambda x, t: gm.log_prob(x[None], t)[0]
points = jax.random.normal(jax.random.key(0), (200, 2)) * 1.2
for t in (0.05, 0.3, 0.6, 0.95):
    a, s = float(p.alpha(t)), float(p.sigma(t))
    ours = exact_denoiser(np.asarray(points, np.float64), a, s, *toy2d.MIXTURE)
    # float32 carries 7 digits; near t = 0 the logits differ by hundreds and lose three of them.
    np.testing.assert_allclose(gm.denoise(points, t), ours, atol=2e-4)
    score = jax.vmap(jax.grad(log_p), (0, None))(points, t)
    np.testing.assert_allclose(gm.score(points, t), score, rtol=1e-3, atol=1e-3)
    # Dividing by alpha magnifies rounding.
    np.testing.assert_allclose((points + s**2 * score) / a, ours, atol=2e-4 / a)
print("equation (3), the library and Tweedie's formula agree")

# %% tags=["comparison"]
plane = plots.plane(-1.8, 1.8, 361).astype(np.float64)  # x0 on a grid, spacing 0.01
plane_prior = sum(w * np.exp(-0.5 * np.sum((plane - m) ** 2, axis=1) / s**2) / s**2
                  for m, s, w in zip(*toy2d.MIXTURE, strict=True))  # fmt: skip
for t in (0.3, 0.6):
    a, s = float(p.alpha(t)), float(p.sigma(t))
    squared = np.sum((np.asarray(points)[:20, None] - a * plane) ** 2, axis=-1)
    product = plane_prior * np.exp(-0.5 * (squared - squared.min(1, keepdims=True)) / s**2)
    by_grid = product @ plane / product.sum(axis=1, keepdims=True)
    # A Gaussian sampled at a seventh of its standard deviation is summed exactly, to rounding.
    np.testing.assert_allclose(gm.denoise(points[:20], t), by_grid, atol=2e-4)
print("brute force in the plane agrees as well")

# %% [markdown]
# ## 4 · Explore: where does the best guess point?
#
# In the next figure, every arrow starts at a possible $x_t$. It shows the first quarter of the way to
# the best guess $\mathbb E[x_0 \mid x_t]$. An orange dot marks the end of the way. The lines are
# contours of $p_t$, the density of noisy data. The blue dots are clean data. The slider runs from
# $t = 1$ down to 0.
#
# **Predict, then run.** At $t = 1$, to how many different places do the arrows point? And how do
# the orange dots move as $t$ falls, until the noise is gone?


# %%
starts = jnp.asarray(plots.plane(-1.6, 1.6, 11))
fine = jnp.asarray(plots.plane(-1.7, 1.7, 69))
denoise, log_density = jax.jit(gm.denoise), jax.jit(gm.log_prob)
cloud = data.load("toy2d", kind="mixture", n=300).x


def field(ax, t):
    """Contours of p_t, clean data, and a quarter of each way from x_t to E[x0 | x_t]."""
    density = np.exp(np.asarray(log_density(fine, t))).reshape(69, 69)
    u = np.linspace(-1.7, 1.7, 69)
    levels = density.max() * np.array([0.03, 0.1, 0.3, 0.6])
    ax.contour(u, u, density, levels, colors=plots.NOISE, linewidths=0.8)
    plots.points(ax, cloud, size=5, alpha=0.6)
    ends = np.asarray(denoise(starts, t))
    plots.arrows(ax, starts, ends, scale=0.25)
    plots.points(ax, ends, plots.PREDICTION, size=14, alpha=0.9)
    ax.set(xlim=(-1.75, 1.75), ylim=(-1.75, 1.75), title=f"$t$ = {t:.2f}")
    return ax


# %%
def frame(t):
    """One picture of the explorer."""
    fig, ax = plt.subplots(figsize=(6, 6), layout="none")
    fig.subplots_adjust(0.12, 0.09, 0.98, 0.95)
    field(ax, t).set(xlabel="first coordinate", ylabel="second coordinate")
    return fig


moments = np.linspace(1, 0, 21)
labels = [f"t = {t:.2f}, log-SNR {float(p.log_snr(t)):.1f}" for t in moments]
widgets.explorer(widgets.render(frame, moments), labels, slider="t")

# %% [markdown]
# Here are four times without a slider.

# %% alt="Arrows from noisy points to their best guesses, at four times, over three clouds of data. At t = 0.95 all end near one point. At 0.5 the ends fill a triangle between the clouds, at 0.3 they gather at its corners, and at 0.12 each cloud has its own ends."
fig, axes = plt.subplots(2, 2, figsize=(8, 8), sharex=True, sharey=True)
for ax, t in zip(axes.ravel(), (0.95, 0.5, 0.3, 0.12), strict=True):
    field(ax, t)
axes[1, 0].set(xlabel="first coordinate", ylabel="second coordinate")
plt.show()

# %% [markdown]
# At $t = 1$ all arrows end in one point. It is the mean of all data, and there *is* no data at this
# point. With less noise, the dots fill a triangle between the clouds, because each is an average of the
# three. With still less noise, the dots move into the corners of the triangle, and each cloud has its
# own region. At the borders between the regions the best guess changes quickly from one cloud to
# the next. A network must learn these borders, and they get steeper as $t$ falls. At last the dots leave
# the corners and return to where their arrows start. At $t = 0$ no arrow has any length, because $x_t$ is
# then the answer.
#
# Now we count. We call an arrow undecided if no cloud has more than 95 % of the posterior. We count
# among points that really occur, that is, among draws of $x_t$.

# %%
draws = gm.sample(jax.random.key(1), 4000)
draw_noise = jax.random.normal(jax.random.key(2), draws.shape)
undecided = {}
for t in (1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05):
    noisy = process.add_noise(p, draws, draw_noise, t)
    undecided[t] = float(np.mean(np.asarray(gm.responsibilities(noisy, t)).max(axis=1) < 0.95))
    spread = float(np.std(np.asarray(gm.denoise(noisy, t)), axis=0).mean())
    print(f"t = {t:.2f}   undecided {undecided[t]:6.1%}   spread of the best guesses {spread:.3f}")

# %% tags=["claims"]
# @title Checked: all arrows end in the mean at t = 1; fewer are undecided as t falls
overall = toy2d.MIXTURE.weights @ toy2d.MIXTURE.means
np.testing.assert_allclose(gm.denoise(starts, 1.0), np.tile(overall, (len(starts), 1)), atol=1e-6)
# The order of these shares is not a matter of luck: their standard errors are below 0.8 %.
assert undecided[1.0] == 1 and undecided[0.4] > 0.8 and undecided[0.1] < 0.1
assert np.all(np.diff(list(undecided.values())) <= 0)
# Nothing lies at the mean: it is more than 4 standard deviations away from each cloud.
away_by = np.linalg.norm(toy2d.MIXTURE.means - overall, axis=1) / toy2d.MIXTURE.stds
assert away_by.min() > 4
np.testing.assert_allclose(gm.denoise(starts, 0.0), starts, atol=1e-5)  # no arrow has any length
changes = []  # of the guess between neighbours on a fine grid, where it changes fastest
for t in (0.8, 0.5, 0.3, 0.12):
    a, s = float(p.alpha(t)), float(p.sigma(t))
    guesses_on_grid = exact_denoiser(np.asarray(fine, np.float64), a, s, *toy2d.MIXTURE)
    changes.append(np.abs(np.diff(guesses_on_grid.reshape(69, 69, 2), axis=0)).max())
assert all(later > 2 * earlier for earlier, later in itertools.pairwise(changes))
# The ends as averages of the three means: inside their triangle at first, later in its corners.
corners = np.vstack([toy2d.MIXTURE.means.T, np.ones(3)])
parts = {t: np.linalg.solve(corners, np.vstack([denoise(starts, t).T, np.ones(121)]))
         for t in (0.6, 0.12)}  # fmt: skip
assert parts[0.6].min() > -0.05 and parts[0.6].max() < 0.95
assert np.mean(parts[0.12].max(axis=0) > 0.95) > 0.75

# %% [markdown]
# ## 5 · Five names for one answer
#
# Papers train networks to predict different things:
#
# | name | target $y$ | $(a, b)$ | source |
# |---|---|---|---|
# | `x0` | the data | $(1, 0)$ | |
# | `eps` | the noise | $(0, 1)$ | Ho et al. 2020 |
# | `v` | $\alpha\,\varepsilon - \sigma\,x_0$ | $(-\sigma, \alpha)$ | Salimans & Ho 2022 |
# | `score` | $-\varepsilon/\sigma$ | $(0, -1/\sigma)$ | Song et al. 2021 |
# | `flow` | $\dot\alpha\,x_0 + \dot\sigma\,\varepsilon$ | $(\dot\alpha, \dot\sigma)$ | Lipman et al. 2023 |
#
# ($\dot\alpha$ and $\dot\sigma$ are the derivatives of $\alpha$ and $\sigma$ by $t$.) Each target is
# $y = a\,x_0 + b\,\varepsilon$, so it is given by two numbers. We also know $x_t$. Together these are
# two equations for two unknowns,
#
# $$\begin{pmatrix} a & b \\ \alpha & \sigma \end{pmatrix}
# \begin{pmatrix} x_0 \\ \varepsilon \end{pmatrix} = \begin{pmatrix} y \\ x_t \end{pmatrix},
# \qquad \det = a\sigma - b\alpha. \tag{4}$$
#
# So one prediction gives all the others. Since (4) is linear, we may convert averages like single
# values: convert the best `eps`, and you get the best `x0`. This fails only where $\det = 0$.

# %% tags=["comparison"]
key_x, key_eps = jax.random.split(jax.random.key(4))
x0s = 0.3 + 1.4 * jax.random.normal(key_x, (500, 2))  # neither centred nor of unit size
epses = jax.random.normal(key_eps, (500, 2))
kinds = ("x0", "eps", "v", "score", "flow")
for t in (0.05, 0.4, 0.9):
    x = process.add_noise(p, x0s, epses, t)
    for kind in kinds:
        y = parameterization.target(kind, p, x0s, epses, t)
        a, b = parameterization.row(kind, p, t)
        matrix = np.array([[a, b], [p.alpha(t), p.sigma(t)]], np.float64)
        by_hand = np.linalg.solve(matrix, np.stack([y, x]).reshape(2, -1)).reshape(2, 500, 2)
        # float32 rounds at 1e-7; conversions magnify it, here about tenfold, and targets reach 50.
        assert np.allclose(by_hand, np.stack([x0s, epses]), atol=2e-4)
        assert np.allclose(parameterization.to_x0(kind, p, y, x, t), x0s, atol=1e-4)
        assert np.allclose(parameterization.to_eps(kind, p, y, x, t), epses, atol=1e-4)
print("solving the system, to_x0 and to_eps agree: the round trip is closed for all five")

# %% tags=["comparison"]
for t in (0.05, 0.4, 0.9):
    x = process.add_noise(p, x0s, epses, t)
    for kind in kinds:
        y = parameterization.target(kind, p, x0s, epses, t)
        score = parameterization.to_score(kind, p, y, x, t)
        assert np.allclose(score, parameterization.target("score", p, x0s, epses, t), atol=2e-3)
        velocity = parameterization.velocity(kind, p, y, x, t)
        assert np.allclose(velocity, parameterization.target("flow", p, x0s, epses, t), atol=2e-3)
    # Averages convert too: the oracle's posterior mean becomes the oracle's score.
    converted = parameterization.to_score("x0", p, gm.denoise(x, t), x, t)
    assert np.allclose(converted, gm.score(x, t), rtol=1e-3, atol=1e-3)
print("to_score and velocity agree; the exact denoiser, converted, is the exact score")

# %% [markdown]
# ### The determinant says where a prediction fails
#
# A network is never perfect. Suppose its output is off by $\delta$. By (4), $x_0$ is then off by
# $(\sigma/|\det|)\,\delta$ and $\varepsilon$ by $(\alpha/|\det|)\,\delta$.
#
# **Predict, then run.** Near pure noise ($\alpha \to 0$), which predictions are useless for $x_0$?
# Near the data ($\sigma \to 0$), which one is useless for $\varepsilon$? We give every prediction
# an error of the same size, 0.01. Then we convert with the library and measure the errors (dots). The
# lines are the formulas.

# %%
when = np.array([0.002, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.998], np.float32)
delta = 0.01 * jax.random.normal(jax.random.key(5), (500, 2))
rms = lambda difference: float(np.sqrt(np.mean(np.square(difference))))
measured = {}
for kind in kinds:
    for t in when:
        x = process.add_noise(p, x0s, epses, t)
        y = parameterization.target(kind, p, x0s, epses, t) + delta
        x0_off = rms(parameterization.to_x0(kind, p, y, x, t) - x0s) / rms(delta)
        eps_off = rms(parameterization.to_eps(kind, p, y, x, t) - epses) / rms(delta)
        measured[kind, t] = x0_off, eps_off

# %% alt="Three panels over time with a curve for each of five predictions: the determinant, and what an error of the prediction becomes in x0 and in the noise. Near pure noise the error of x0 explodes for eps and score. Near the data the error of the noise explodes for x0."
clock = np.linspace(0.002, 0.998, 499)
dets = {k: np.abs(parameterization.determinant(k, p, clock)) for k in kinds}
panels = {
    "|det| of the system": dets,
    "error of $x_0$ per error of $y$": {k: p.sigma(clock) / d for k, d in dets.items()},
    r"error of $\varepsilon$ per error of $y$": {k: p.alpha(clock) / d for k, d in dets.items()},
}
fig, axes = plt.subplots(1, 3, figsize=(12.5, 4.2), sharey=True)
for ax, (title, lines), at in zip(axes, panels.items(), (0.2, 0.8, 0.2), strict=True):
    ax.set_ylim(2e-3, 500)
    plots.curves(clock, lines, ax=ax, log="y", xlabel="time $t$", ylabel="", label_at=at)
    ax.set_title(title)
for kind, color in zip(kinds, plots.SERIES, strict=False):
    dots = np.array([measured[kind, t] for t in when])
    axes[1].plot(when, dots[:, 0], "o", ms=3, color=color)
    axes[2].plot(when, dots[:, 1], "o", ms=3, color=color)
axes[0].set_ylabel("factor")
plt.show()

# %%
worst_v = max(max(measured["v", t]) for t in when)
factor = measured["x0", when[0]][1]
print(f"t = {when[0]:.3f}: where a predicted x0 is off by 1, eps is off by {factor:.0f}")
for kind in ("eps", "score"):
    factor = measured[kind, when[-1]][0]
    print(f"t = {when[-1]:.3f}: where a predicted {kind} is off by 1, x0 is off by {factor:.0f}")
print(f"v: never more than {worst_v:.2f} times, in either direction")

# %% tags=["claims"]
# @title Checked: the dots lie on the formulas; v is safe everywhere, the others at one end only
for (kind, t), both in measured.items():
    det = abs(float(parameterization.determinant(kind, p, t)))
    # Rounding is 1e-4 of the added error at worst, where the targets themselves are large.
    formulas = float(p.sigma(t)) / det, float(p.alpha(t)) / det
    np.testing.assert_allclose(both, formulas, rtol=0.02, atol=2e-4)
assert measured["x0", when[0]][1] > 50 and measured["eps", when[-1]][0] > 100
assert measured["score", when[-1]][0] > 300
assert max(measured["score", t][1] for t in when) < 1.02
assert worst_v < 1.001  # alpha and sigma are at most 1
assert np.allclose(dets["v"], 1, atol=1e-5)  # variance-preserving: alpha² + sigma² = 1
(a_v, b_v), (a_f, b_f) = (parameterization.row(kind, p, clock) for kind in ("v", "flow"))
assert np.allclose(a_f * b_v, b_f * a_v, atol=1e-3)  # two rows of one direction
# The factor is the speed on the quarter circle: differences of the angle, away from the ends.
angle = np.arctan2(np.float64(p.sigma(clock)), np.float64(p.alpha(clock)))
ratio_of_rows = a_f * a_v + b_f * b_v  # the row of v has the length 1
assert np.allclose(ratio_of_rows[50:-1], np.gradient(angle, clock)[50:-1], rtol=5e-3)
flow = process.rectified_flow()
assert np.allclose(parameterization.determinant("flow", flow, clock), -1, atol=1e-5)

# %% [markdown]
# - `eps` loses $x_0$ as $\alpha \to 0$. At $t = 1$ the input *is* the noise, so a network can repeat it
#   as a perfect answer, and this says nothing about the data.
# - `x0` loses $\varepsilon$ as $\sigma \to 0$, because the input then *is* the data.
# - `v` never loses anything: its row is at right angles to $(\alpha, \sigma)$ at every time.
# - `flow` on a variance-preserving schedule is `v` times a number that depends on $t$ only. The
#   point $(\alpha, \sigma)$ moves on a quarter circle, and the number is its speed.
# - `score` is safe for $\varepsilon$ only. It is safe there because its target grows like $1/\sigma$,
#   so that an error of 0.01 is relatively small. For $x_0$ its factor is $\sigma^2/\alpha$, which is
#   more than 300 at $t = 0.998$. So it loses $x_0$ just where `eps` does.
#
# For this reason chapter 03 trains `eps` only where DDPM did, and `v` elsewhere.

# %% [markdown]
# ### A network that gives back $x_0$ does not give a score
#
# Some guides train a network to give back $x_0$, call this "score matching", and use its *output* as the
# score. By (2) the score is $(\alpha D - x_t)/\sigma^2$, and not $D$ itself. **Predict, then run:** at
# how many points do $D(x_t)$ and the score point in opposite directions (more than 90° apart)?

# %%
away = {}
for t in (0.2, 0.5, 0.8):
    x = process.add_noise(p, draws, draw_noise, t)
    guessed, wanted = np.asarray(gm.denoise(x, t)), np.asarray(gm.score(x, t))
    away[t] = np.mean(np.sum(guessed * wanted, axis=1) < 0)
    print(f"t = {t}: the guess points away from the score at {away[t]:.0%} of 4,000 points")

# %% tags=["claims"]
# @title Checked: a guess at x0, taken for a score, points the wrong way at most points
# The standard error of a share of 4,000 is at most 0.8 %.
assert all(share > 0.6 for share in away.values()) and away[0.5] > 0.9

# %% [markdown]
# At most points the two directions disagree, and at $t = 0.5$ nearly everywhere. The guess is a *place* near
# the data, seen from the origin. The score is a *direction*, seen from $x_t$. The two losses also weigh
# the noise levels differently: an error of the score is $\alpha/\sigma^2$ times the error of $x_0$.

# %% [markdown]
# ## 6 · From the bound to the simple loss
#
# Why do we train with squared error at all? Our model is the sampler. It draws $x_T$ from a standard
# normal $p(x_T)$. Then it draws each $x_{n-1}$ from a Gaussian $p_\theta(x_{n-1} \mid x_n)$, whose mean
# a network with the parameters $\theta$ computes. So every image $x_0$ has a density $p_\theta(x_0)$
# under the model. We want it to be high for real data. We cannot compute it, since it is an integral over
# all ways that lead to $x_0$. So DDPM minimises an upper bound on $-\log p_\theta(x_0)$. (Its negative, a lower
# bound on $\log p_\theta(x_0)$, is called the **ELBO**: evidence lower bound.)
#
# Let $q$ stand for the densities of the noising chain. The Kullback–Leibler divergence of two densities
# is $\mathrm{KL}(q\,\|\,p) = \int q \log (q/p)$. It is 0 if they are the same, and positive otherwise.
# The bound is (Sohl-Dickstein et al. 2015; in this form Ho et al. 2020, eq. 5)
#
# $$\mathbb E\Big[ \underbrace{\mathrm{KL}\big(q(x_T|x_0)\,\|\,p(x_T)\big)}_{L_T}
# + \sum_{n=2}^{T} \underbrace{\mathrm{KL}\big(q(x_{n-1}|x_n,x_0)\,\|\,p_\theta(x_{n-1}|x_n)\big)}_{L_{n-1}}
# \underbrace{-\log p_\theta(x_0|x_1)}_{L_0} \Big] \tag{5}$$

# %% [markdown]
# $L_T$ has no parameter to learn. Each $L_{n-1}$ compares two Gaussians.
#
# The first, $q(x_{n-1}|x_n,x_0)$, is the posterior that we met in chapter 01: one step back, if $x_0$ is
# known. Let $s = (n-1)/T$ and $t = n/T$, write $\alpha_s$ for $\alpha(s)$ and so on, and
# $\mathrm{SNR} = \alpha^2/\sigma^2$. By Bayes' rule its mean $\tilde\mu$ and its variance
# $\tilde\beta$ are
#
# $$\tilde\mu = \alpha_s\, \rho\, x_0 + \frac{\alpha_t\,\sigma_s^2}{\alpha_s\,\sigma_t^2}\,x_n, \qquad
# \tilde\beta = \sigma_s^2\, \rho, \qquad \rho = 1 - \frac{\mathrm{SNR}(t)}{\mathrm{SNR}(s)} \tag{6}$$
#
# (DDPM's eq. 6 and 7 in other letters; chapter 03 writes them with $\beta$). The second,
# $p_\theta(x_{n-1}|x_n)$, has the same formulas with the network's guess $\hat x_0$ in the place of
# $x_0$: the mean $\mu_\theta$, and the variance $\tilde\beta$.

# %% [markdown]
# Three lines lead to the loss:
#
# $$\begin{aligned} L_{n-1} &= \frac{\|\tilde\mu - \mu_\theta\|^2}{2\,\tilde\beta} \\
# &= \frac{\alpha_s^2\, \rho^2}{2\,\sigma_s^2\, \rho}\;\|x_0 - \hat x_0\|^2 \\
# &= \tfrac12\big(\mathrm{SNR}(s) - \mathrm{SNR}(t)\big)\,\|x_0 - \hat x_0\|^2. \end{aligned} \tag{7}$$
#
# 1. This is the KL divergence of two Gaussians with one variance (DDPM's eq. 8).
# 2. Both means have the same term with $x_n$. It cancels, and only the error of the guess remains.
# 3. $\alpha_s^2/\sigma_s^2$ is $\mathrm{SNR}(s)$, and $\mathrm{SNR}(s)\,\rho = \mathrm{SNR}(s) - \mathrm{SNR}(t)$.
#
# This is from Kingma et al. 2021, section 4. Since $x_n = \alpha_t x_0 + \sigma_t\varepsilon$, we also have
# $\|x_0 - \hat x_0\|^2 = \|\varepsilon - \hat\varepsilon\|^2 / \mathrm{SNR}(t)$, so the weight on the
# error of $\varepsilon$ is $\frac12(\mathrm{SNR}(s)/\mathrm{SNR}(t) - 1)$. DDPM's eq. 12 writes this weight as
# $\beta_n^2 / \big(2\tilde\beta_n\,(1-\beta_n)(1-\bar\alpha_n)\big)$.

# %% [markdown]
# We check all of this. We compare (6) with the library's posterior, and integrate $\int q\,\log(q/p)$
# numerically. Then we compare the result with both forms of the weight.

# %%
T = 1000
betas = process.linear_betas(T)
chain, alpha_bar = process.from_betas(betas), np.concatenate([[1], np.cumprod(1 - betas)])
x0_true, x0_guess, eps_true = 1.1, 0.4, -0.3  # the guess is bad on purpose


def posterior_by_hand(alpha_bar_s, alpha_bar_t, x0, x_n):
    """Mean and variance of equation (6), with α² = ᾱ and σ² = 1 − ᾱ."""
    var_s, var_t = 1 - alpha_bar_s, 1 - alpha_bar_t
    rho = 1 - (alpha_bar_t / var_t) / (alpha_bar_s / var_s)
    of_x_n = np.sqrt(alpha_bar_t / alpha_bar_s) * var_s / var_t
    return np.sqrt(alpha_bar_s) * rho * x0 + of_x_n * x_n, var_s * rho


def kl_by_integration(mean_q, mean_p, variance):
    """∫ q log(q/p) for Gaussians with one variance, on a grid."""
    std = np.sqrt(variance)
    x = np.linspace(min(mean_q, mean_p) - 10 * std, max(mean_q, mean_p) + 10 * std, 20_001)
    log_ratio = ((x - mean_p) ** 2 - (x - mean_q) ** 2) / (2 * variance)
    return np.sum(bell(x, mean_q, std) * log_ratio) * (x[1] - x[0])


# %% tags=["comparison"]
print("   n      KL by integral   weight × x0 error   weight × eps error   DDPM, eq. 12")
for n in (2, 10, 100, 500, 1000):
    t, s = n / T, (n - 1) / T
    x_n = process.add_noise(chain, jnp.array([x0_true]), jnp.array([eps_true]), t)
    known, model = (process.posterior(chain, jnp.array([g]), x_n, t, s)
                    for g in (x0_true, x0_guess))  # fmt: skip
    kl = kl_by_integration(float(known[0][0]), float(model[0][0]), float(known[1]))

    snr_s, snr_t = (alpha_bar[m] / (1 - alpha_bar[m]) for m in (n - 1, n))
    by_6 = posterior_by_hand(alpha_bar[n - 1], alpha_bar[n], x0_true, float(x_n[0]))
    # float32; at n = 2 and in one step of the thousand ρ is a difference of close numbers.
    np.testing.assert_allclose(by_6, (known[0][0], known[1]), rtol=1e-3)
    by_x0 = 0.5 * (snr_s - snr_t) * (x0_true - x0_guess) ** 2
    eps_guess = (float(x_n[0]) - np.sqrt(alpha_bar[n]) * x0_guess) / np.sqrt(1 - alpha_bar[n])
    by_eps = 0.5 * (snr_s / snr_t - 1) * (eps_true - eps_guess) ** 2
    beta, variance = betas[n - 1], (1 - alpha_bar[n - 1]) / (1 - alpha_bar[n]) * betas[n - 1]
    weight = beta**2 / (2 * variance * (1 - beta) * (1 - alpha_bar[n]))
    ddpm = weight * (eps_true - eps_guess) ** 2
    print(f"{n:4d} {kl:19.4e} {by_x0:19.4e} {by_eps:20.4e} {ddpm:14.4e}")
    # The posterior is float32: at n = 1000 two means that differ by 1e-4 keep three digits.
    np.testing.assert_allclose([kl, by_eps, ddpm], by_x0, rtol=1e-2)

# %% [markdown]
# All four columns agree. Now DDPM simplifies the bound (eq. 14): **it drops the whole weight in front
# of $\|\varepsilon - \hat\varepsilon\|^2$** and puts 1 in its place, for every $n$:
#
# $$L_\text{simple} = \mathbb E_{n, x_0, \varepsilon}\;
# \big\|\varepsilon - \varepsilon_\theta(x_n, n)\big\|^2. \tag{8}$$
#
# May one do that? By equation (1) the best guess at each $(x_n, n)$ is the posterior mean, whatever
# positive number stands before the square. So the weight does not change the *goal*. It changes how a
# network of limited size spends its effort.

# %% alt="The weight of each step in the bound and in the simple loss, on the error of the noise and on that of x0. Relative to the simple loss, the bound's weight is largest at the first steps, and lowest around step 350."
n = np.arange(2, T + 1)
snr = alpha_bar[1:] / (1 - alpha_bar[1:])  # snr[n - 1] belongs to step n
bound_eps, bound_x0 = 0.5 * (snr[:-1] / snr[1:] - 1), 0.5 * (snr[:-1] - snr[1:])
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2))
plots.curves(n, {"bound": bound_eps, "simple": np.ones(T - 1)}, ax=axes[0], log="xy",
             xlabel="step $n$", ylabel=r"weight on the error of $\varepsilon$")  # fmt: skip
plots.curves(n, {"bound": bound_x0, "simple": snr[1:]}, ax=axes[1], log="xy",
             xlabel="step $n$", ylabel="weight on the error of $x_0$")  # fmt: skip
plt.show()
dropped = bound_eps[0] / bound_eps
print(f"relative to step 2, the bound weighs step 100 {dropped[98]:.0f} times less, "
      f"its lightest step {n[dropped.argmax()]} {dropped.max():.0f} times less")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the bound weighs the first steps most, where the noise is one or two grey levels
assert dropped[98] > 20 and dropped.max() > 60 and dropped[-1] < dropped.max()
assert dropped.argmin() == 0  # no step is weighed more than step 2
levels_of_noise = np.sqrt(1 - alpha_bar[1:3]) / (2 / 255)  # steps 1 and 2; pixels are in [−1, 1]
assert np.all((levels_of_noise > 1) & (levels_of_noise < 2))

# %% [markdown]
# The bound gives the first steps the largest weight. There the noise is only one or two grey levels of
# an 8-bit picture. Compared with the bound, the simple loss puts more weight on the noisy steps,
# which decide the content of a picture. Ho et al. 2020 reported better-looking samples and slightly
# worse likelihoods (their table 1). Chapter 05 returns to the bound.
#
# In the right panel the weight of the simple loss is not 1. On the error of $x_0$ its weight is the
# SNR. So always say which error an "unweighted loss" does not weight.

# %% [markdown]
# ## 7 · A perfect denoiser only memorises
#
# A training set has finitely many points. What is the posterior mean *of the training set*? We put a
# cloud of no width at each image. So it is equation (3) with $s_k = 0$:
#
# $$D(x_t, t) = \sum_i r_i\,x_i, \qquad r = \operatorname{softmax}_i
# \Big(-\frac{\|x_t - \alpha x_i\|^2}{2\sigma^2}\Big) \tag{9}$$
#
# (Karras et al. 2022, appendix B.3.) No network can have a lower training loss than this. The first
# picture of the chapter used it as `denoiser.ideal`.

# %% tags=["comparison"]
some = digits.x[:300].reshape(300, 64)
probe = 0.8 * jax.random.normal(jax.random.key(6), (50, 64))
for t in (0.3, 0.6, 0.9):
    ours = exact_denoiser(np.asarray(probe, np.float64), float(p.alpha(t)), float(p.sigma(t)),
                          some.astype(np.float64), np.zeros(300), np.full(300, 1 / 300))  # fmt: skip
    # The logits are of order 64/sigma² and float32; an error of 1e-4 in one moves a weight by 1e-4.
    np.testing.assert_allclose(denoiser.ideal(p, some)(probe, t), ours, atol=1e-3)
print("denoiser.ideal is equation (3) with clouds of no width")

# %% [markdown]
# **Predict, then run.** We give this perfect denoiser to DDIM, a sampler of chapter 06 that adds no
# noise of its own. From $x_t$ it guesses $x_0$, moves a little way towards the guess, and
# repeats. We start from pure noise, 64 times. What will the samples be: fog, new digits, or digits of
# the training set?

# %% alt="Twelve samples of the perfect denoiser above their nearest training images. The two rows look the same."
start = sampling.start_noise(p, jax.random.key(7), (64, 8, 8, 1))
drawn, _ = sampling.sample(
    samplers.ddim(p), best_guess, start, sampling.uniform(50), jax.random.key(8)
)


def nearest(x, among):
    """For each x the closest of `among`: its index, and the rms difference per value."""
    x, among = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, among))
    closest = np.argmin(np.sum(among**2, axis=1) - 2 * x @ among.T, axis=1)
    return closest, np.sqrt(np.mean((x - among[closest]) ** 2, axis=1))


which, distance = nearest(drawn, digits.x)
_, usual = nearest(unseen.x, digits.x)
copies = {"drawn": drawn[:12], "nearest in the\ntraining set": digits.x[which[:12]]}
plots.image_grid(list(copies.values()), list(copies), "Samples of the perfect denoiser", 0.7)
plt.show()
print(f"largest distance of a sample to its nearest training image: {distance.max():.1e}")
print(f"for comparison, digits that are really new: median {np.median(usual):.2f}, "
      f"least {usual.min():.2f}")  # fmt: skip
print(f"{len(set(which))} different images in 64 samples")

# %% tags=["claims"]
# @title Checked: every sample is a training image
# The last call of D is at t = 0.02. There the noise, 0.04 per pixel, is so small beside the distance
# between two digits that the softmax gives one of them all the weight: only rounding is left.
assert distance.max() < 1e-5 < usual.min()
assert len(set(which)) > 55  # 64 draws out of 1,437 with equal chances: about 62.6 different ones

# %% [markdown]
# All 64 samples are training images, up to rounding. The perfect denoiser has memorised its
# training set.
#
# In the plane we can see why. We take 60 points of the three clouds as a training set, and compare
# three denoisers. The first is perfect for the 60 points. The second is *slightly wrong*: it replaces
# each of the 60 points by a small cloud of width 0.08. The third is the true denoiser of the clouds.

# %%
few = data.load("toy2d", kind="mixture", n=60).x
fresh = data.load("toy2d", split="test", kind="mixture", n=2000).x
denoisers = {
    "perfect for 60 points": denoiser.ideal(p, few),
    "slightly wrong": denoiser.gaussian_mixture(p, few, np.full(60, 0.08), np.ones(60)).denoise,
    "truth": gm.denoise,
}
start = sampling.start_noise(p, jax.random.key(9), (600, 2))
clouds = {
    name: np.asarray(
        sampling.sample(samplers.ddim(p), D, start, sampling.quadratic(100), jax.random.key(10))[0]
    )
    for name, D in denoisers.items()
}

# %% alt="Samples of three denoisers over 60 training points in three clouds. Perfect for the 60 points: every sample lies on a training point. Slightly wrong: the samples spread around the points. Truth: the samples fill the clouds."
fig = plots.panels(clouds, limits=(-1.3, 1.3), size=8, alpha=0.5, scale=3.3)
for ax in fig.axes:
    ax.plot(*few.T, "+", ms=5, mew=0.8, color=plots.DATA)
fig.axes[0].text(-1.2, 1.1, "+ training points", color=plots.DATA, size="small")
fig.axes[0].text(-1.2, 0.95, "● 600 samples", color=plots.PREDICTION, size="small")
plt.show()

# %%
low = 0.05  # a time with little noise
print("                        loss on the 60   loss on fresh data   samples' distance to the 60")
losses, gaps = {}, {}
for name, D in denoisers.items():
    loss = []
    for i, x in enumerate((few, fresh)):
        x = jnp.tile(x, (200 if x is few else 6, 1))  # 12,000 noisy copies, the same for all D
        noisy = process.add_noise(p, x, jax.random.normal(jax.random.key(11 + i), x.shape), low)
        loss.append(float(jnp.mean((D(noisy, low) - x) ** 2)))
    losses[name], gaps[name] = loss, np.median(nearest(clouds[name], few)[1])
    print(f"{name:22s} {loss[0]:14.4f} {loss[1]:18.4f} {gaps[name]:24.4f}")

# %% tags=["claims"]
# @title Checked: the perfect denoiser is best on its 60 points and worst on fresh data
perfect, wrong, true = losses.values()
assert perfect[0] < min(wrong[0], true[0]) and true[1] < wrong[1] < perfect[1]
assert gaps["perfect for 60 points"] < 1e-3 < gaps["slightly wrong"]

# %% [markdown]
# Look at the two losses, taken at $t = 0.05$. On its 60 points the perfect denoiser is better even
# than the true one. On fresh data it is the worst of the three. It is the optimum of the training
# loss, and it is as overfitted as possible.
#
# So a diffusion model can draw something new only because it has *not* reached the optimum of its
# loss. It generalises because **the network is imperfect**. It is smooth where equation (9) is steep.
# It looks at neighbourhoods where (9) looks at whole images. Our "slightly wrong" denoiser imitates
# this only roughly. On digits it fails: it returns training images with noise on top.

# %%
blurred = denoiser.gaussian_mixture(p, digits.x.reshape(-1, 64), np.full(1437, 0.08), np.ones(1437))
start = sampling.start_noise(p, jax.random.key(13), (16, 64))
drawn, _ = sampling.sample(
    samplers.ddim(p), blurred.denoise, start, sampling.quadratic(100), jax.random.key(14)
)
_, residue = nearest(drawn, digits.x)
print(f"distance to the nearest training image: {residue.min():.3f} to {residue.max():.3f}; "
      f"noise of 0.08")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the samples are training images with noise of 0.08 on top
# 64 pixels: the rms of noise of std 0.08 has a standard error of 0.08/sqrt(128), 9 % of it.
assert np.all(np.abs(residue / 0.08 - 1) < 4 / np.sqrt(128))
assert abs(residue.mean() / 0.08 - 1) < 4 / np.sqrt(128 * 16)  # 16 samples

# %% [markdown]
# The errors of a good network are more useful. Why they are is a question of current research
# (Kadkhodaie et al. 2024; Kamb & Ganguli 2024). Large models do sometimes reproduce training images
# (Carlini et al. 2023).

# %% [markdown]
# ## 8 · Break it on purpose: a score without its $\sigma$
#
# Suppose the network predicts $\varepsilon$, and other code needs the score: a sampler, a guidance
# rule, or Tweedie's formula. The score is $-\varepsilon/\sigma$. Two mistakes are easy to make. **Bug
# A** forgets the minus sign. **Bug B** forgets the division by $\sigma$.
#
# **Predict, then run.** Which of the two will you notice at once, and which one will you not notice
# at all?

# %%
bugs = {"right": lambda eps, sigma: -eps / sigma, "A: no sign": lambda eps, sigma: eps / sigma,
        "B: no σ": lambda eps, sigma: -eps}  # fmt: skip


def by_tweedie(score_of, D):
    """A denoiser that goes by way of a score, as equation (2) says; right if score_of is."""

    def broken(x, t):
        t = jnp.asarray(t)
        alpha, sigma = process.levels(p, t, x)
        eps = (x - alpha * D(x, t)) / sigma
        return (x + sigma**2 * score_of(eps, sigma)) / alpha

    return broken


# %% alt="Arrows from 60 noisy points to their best guesses. Right: they end in the clouds. Without the sign they point away from the data. Without sigma they point the right way, and stop too early."
broken = {name: by_tweedie(score_of, gm.denoise) for name, score_of in bugs.items()}
sixty = gm.sample(jax.random.key(20), 60)
seen = process.add_noise(p, sixty, jax.random.normal(jax.random.key(21), sixty.shape), 0.3)
ends = {name: D(seen, 0.3) for name, D in broken.items()}
fig = plots.panels(ends, behind=cloud, limits=(-2.1, 2.1), size=8, alpha=0.9, scale=3.4)
for ax, end in zip(fig.axes, ends.values(), strict=True):
    plots.arrows(ax, seen, end)
plt.show()

# %% [markdown]
# The arrows go from 60 noisy points to their best guesses at $t = 0.3$. With bug A they point away
# from the data, and everybody notices that. With bug B they point in the right direction and stop too
# early. How much too early? Insert the score into (2). The right score removes
# $\sigma\hat\varepsilon$ from $x_t$, and bug B removes $\sigma^2\hat\varepsilon$. The difference is
#
# $$\frac{\sigma\,(1 - \sigma)}{\alpha}\;\hat\varepsilon. \tag{10}$$
#
# It is zero at $\sigma = 0$ and at $\sigma = 1$. So bug B is right at both ends, like bug B of chapter
# 01.

# %% tags=["comparison"]
clean = gm.sample(jax.random.key(22), 2000)
noise = jax.random.normal(jax.random.key(23), clean.shape)
print("   t    direction: A      B     length of the step: A      B (right: 1)     σ")
for t in (0.05, 0.2, 0.5, 0.8, 0.99):
    x = process.add_noise(p, clean, noise, t)
    a, s = float(p.alpha(t)), float(p.sigma(t))
    removed = {name: x - a * D(x, t) for name, D in broken.items()}
    size = {name: jnp.linalg.norm(step, axis=1) for name, step in removed.items()}
    row = []
    for name in ("A: no sign", "B: no σ"):
        cosine = jnp.sum(removed[name] * removed["right"], 1) / (size[name] * size["right"])
        row += [float(jnp.median(cosine)), float(jnp.median(size[name] / size["right"]))]
    print(f"{t:5.2f} {row[0]:13.3f} {row[2]:8.3f} {row[1]:20.3f} {row[3]:8.3f} {s:17.3f}")
    # Up to float32, which loses digits in x − alpha·D where the noise is small.
    np.testing.assert_allclose(row, [-1, 1, 1, s], atol=2e-3)

# %% [markdown]
# **Predict, then run.** A test that compares *directions* does not find bug B. A test at $t = 1$ does
# not find it either. Will the samples of bug B look right? (We start at $t = 0.99$, because (2) divides
# by $\alpha$, which is 0 at $t = 1$.)

# %% alt="Samples over three clouds of data. Right: they lie in the clouds. Without the sign none is in view. Without sigma they form one wide cloud around all three."
from_noise = sampling.start_noise(p, jax.random.key(24), (600, 2), 0.99)
results = {
    name: np.asarray(sampling.sample(samplers.ddim(p), D, from_noise, 0.99 * sampling.uniform(100),
                                     jax.random.key(25))[0])
    for name, D in broken.items()
}  # fmt: skip
in_view = {name: np.mean(np.abs(x).max(axis=1) < 2.1) for name, x in results.items()}
titled = {f"{name}: {in_view[name]:.0%} in view": x for name, x in results.items()}
plots.panels(titled, behind=cloud[:200], limits=(-2.1, 2.1), size=8, alpha=0.5, scale=3.4)
plt.show()

# %%
data_std = gm.sample(jax.random.key(26), 20_000).std(axis=0)
for name, x in results.items():
    log_likelihood = float(gm.log_prob(jnp.asarray(x), 0.0).mean())
    print(f"{name:11s} std {x.std(axis=0)[0]:10.3f} {x.std(axis=0)[1]:10.3f} "
          f"(data {data_std[0]:.3f} {data_std[1]:.3f}), mean log-density {log_likelihood:.3g}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: bug A explodes, bug B smears the clouds
outside = {}  # the share of samples more than 3.5 standard deviations from every cloud
for name, x in results.items():
    distances = np.linalg.norm(x[:, None] - toy2d.MIXTURE.means, axis=2) / toy2d.MIXTURE.stds
    outside[name] = np.mean(distances.min(axis=1) > 3.5)
# Of the data exp(−3.5²/2) = 0.2 %. The standard error of a share near 0.63 is 0.02.
assert outside["right"] < 0.02 and outside["B: no σ"] > 0.5 and in_view["B: no σ"] > 0.95
# 600 samples: the standard error of a std is about 3 % of it, and 100 steps add about 1 %.
assert np.all(np.abs(results["right"].std(axis=0) / data_std - 1) < 0.12)
assert np.abs(results["A: no sign"]).max() > 100
assert np.all(results["B: no σ"].std(axis=0) > 1.3 * data_std)

# %% [markdown]
# With bug A the samples explode. With bug B they surround the right places, but more than half of them are
# farther than 3.5 standard deviations from every cloud. One would conclude that the model is not trained
# enough yet. But this denoiser is exact, and no amount of training would help.
#
# **The lesson:** test a conversion against an oracle. Compare *lengths* as well as directions, and
# choose a time at which $\alpha$, $\sigma$ and 1 are all different. It is even better not to write
# conversions twice: solve (4) in one place.

# %% [markdown]
# ## 9 · What to inspect
#
# Let us return to the first picture. For any denoiser, look at the guesses $\hat x_0$ at several noise
# levels. At high noise they *should* be blurred. The posterior shows why: equation (9) gives each
# training digit a probability, so we can draw digits with these probabilities. Then we see the
# digits that the guess averages.


# %% alt="Each row, from t = 0.5 to 0.9, has a noisy six, the best guess, and nine digits that it could be. At 0.5 all nine look like the guess. At 0.9 they are different digits, each one sharp, and the guess is a blur."
def posterior(x_t, t):
    """The probability of each training digit, given x_t: r of equation (9)."""
    squared = np.sum((x_t - float(p.alpha(t)) * digits.x) ** 2, axis=(1, 2, 3), dtype=np.float64)
    r = np.exp(-(squared - squared.min()) / (2 * float(p.sigma(t)) ** 2))
    return r / r.sum()


picker, rows, averaged = np.random.default_rng(2), {}, {}
for t in (0.5, 0.6, 0.7, 0.8, 0.9):
    noisy = np.asarray(process.add_noise(p, six, six_noise, t))
    r, guess = posterior(noisy, t), np.asarray(best_guess(noisy, t))
    averaged[t] = np.tensordot(r, digits.x, axes=1), guess[0]
    possible = digits.x[picker.choice(len(r), size=9, p=r)]
    rows[f"$t$ = {t}"] = np.concatenate([noisy, guess, possible])
plots.image_grid(list(rows.values()), list(rows),
                 "Noisy, best guess, and nine digits that it could be", scale=0.75)  # fmt: skip
plt.show()

# %% [markdown]
# Each of the nine digits is sharp. The guess is their average: it is sharp if they are alike, and
# blurred if they differ. So the blur shows the doubt. Now we can also say why a model that answers
# "fog" can draw sharp digits. A sampler does not take the guess as the result. It takes a small step
# towards the guess and then asks again, and now there is less doubt.
#
# The **law of total variance** says this exactly:
#
# $$\operatorname{Var}(x_0) = \underbrace{\operatorname{Var}\big(\mathbb E[x_0 \mid x_t]\big)}_{\text{variety of the guesses}}
# + \underbrace{\mathbb E\big[\operatorname{Var}(x_0 \mid x_t)\big]}_{\text{doubt: the loss of } x_0} \tag{11}$$
#
# So the guesses vary less than the data, at every $t$. The second term is the loss of the *best
# possible* denoiser. Therefore a training loss above zero is not a sign of failure.
#
# **Predict, then run.** At which $t$ are the two terms equal?

# %%
whole = digits.x.astype(np.float64)
centre = whole.mean(axis=0)
total = np.mean((whole - centre) ** 2)
looks = np.linspace(0.02, 1, 25)
variety, doubt, slacks = [], [], []
guess_all = jax.jit(best_guess)
for i, t in enumerate(looks):
    eps = jax.random.normal(jax.random.key(100 + i), digits.x.shape)
    guess = np.asarray(guess_all(process.add_noise(p, digits.x, eps, t), t), np.float64)
    variety.append(np.mean((guess - centre) ** 2))
    doubt.append(np.mean((guess - whole) ** 2))
    # The two add up to the total but for 2·(guess − centre)·(guess − x0), of mean 0, per image.
    rest = np.mean(2 * (guess - centre) * (guess - whole), axis=(1, 2, 3))
    slacks.append(4 * rest.std() / np.sqrt(len(rest)) + 1e-6)
half = looks[np.argmax(np.array(doubt) > np.array(variety))]
print(f"variance of a pixel {total:.3f}; half of it is doubt from t = {half:.2f}, "
      f"log-SNR {float(p.log_snr(half)):.1f}")  # fmt: skip

# %% alt="The variance of a pixel over time, cut in two: the variety of the best guesses, and the doubt that remains. Up to t = 0.25 it is all variety, at 1 all doubt, and in sum it is constant."
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.stackplot(looks, variety, doubt, colors=[plots.DATA, plots.NOISE], alpha=0.7)
ax.axhline(total, color=plots.TRUTH, lw=1)
ax.text(0.03, total * 1.03, "variance of the digits", size="small")
ax.text(0.2, 0.12, "variety of the best guesses", color="white")
ax.text(0.72, 0.2, "doubt that remains")
ax.set(xlabel="time $t$", ylabel="variance per pixel", xlim=(0.02, 1), ylim=(0, 1.15 * total))
plt.show()

# %% tags=["claims"]
# @title Checked: the guess is the posterior's average; variety and doubt add up to the variance
for by_posterior, guess in averaged.values():
    # float32 in the softmax of best_guess: logits of about 100, so weights are good to 1e-4.
    np.testing.assert_allclose(by_posterior, guess, atol=1e-3)
for one, other, slack in zip(variety, doubt, slacks, strict=True):
    assert abs(one + other - total) < slack and one <= total + slack
assert 0.4 < half < 0.8 and doubt[0] < 1e-3 * total
# More noise, more doubt, and a guess that is more blurred; each look has draws of its own.
assert np.all(np.diff(doubt) > -max(slacks)) and np.all(np.diff(doubt[::4]) > 0)
assert np.all(np.diff(variety[::4]) < max(slacks)) and np.all(np.diff(variety[8::4]) < 0)
assert abs(doubt[-1] / total - 1) < 0.01  # at t = 1 nothing is known; only rounding is left

# %% [markdown]
# Here is a checklist for any denoiser, trained or not. Look at
#
# 1. pictures of $\hat x_0$ at several $t$: they should be sharp at low noise, and show the *mean of the
#    data* at $t = 1$;
# 2. the loss of $x_0$ per noise level: it should lie between 0 and the variance of the data;
# 3. the variance of the guesses: if it *exceeds* that of the data, something is wrong;
# 4. the loss on unseen data beside the training loss (section 7);
# 5. one round trip through every conversion that you use.

# %% [markdown]
# ## Recap
#
# 1. The posterior mean $\mathbb E[x_0 \mid x_t]$ minimises the squared error. It is an average, and it
#    is blurred where there is doubt.
# 2. Tweedie's formula turns the score of the noisy data into the posterior mean, and back.
# 3. $x_0$, $\varepsilon$, $v$, score and velocity are rows of one 2×2 system. Its determinant says
#    where a conversion fails.
# 4. DDPM's bound is a weighted squared error of $\varepsilon$. The simple loss drops the weight and
#    keeps the goal.
# 5. The perfect denoiser of a finite set can only repeat the set. A network draws new images because it
#    is imperfect.

# %% [markdown]
# ## Try it yourself
#
# 1. Minimise $|x_0 - c|$ instead of $(x_0 - c)^2$ in section 1. Where does the best $c$ jump? What
#    would a network trained on absolute error show at high noise?
# 2. Efron (2011) also gives the posterior *variance* from the score: $\operatorname{Var}(x_0 \mid
#    x_t) = \sigma^2\,(1 + \sigma^2\,\nabla^2\log p_t)/\alpha^2$ for single numbers. Check it with
#    `jax.hessian` and `oracle.log_prob`.
# 3. Change the width of the "slightly wrong" denoiser of section 7. Which width has the lowest loss on
#    fresh data? Does it depend on the number of training points?

# %% [markdown]
# ## Further reading
#
# - H. Robbins. *An Empirical Bayes Approach to Statistics.* Proceedings of the Third Berkeley
#   Symposium on Mathematical Statistics and Probability, vol. 1, 157–163, 1956.
# - B. Efron. *Tweedie's Formula and Selection Bias.* Journal of the American Statistical Association
#   106(496), 1602–1614, 2011. Sections 1 and 2.
# - J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli. *Deep Unsupervised Learning using
#   Nonequilibrium Thermodynamics.* ICML 2015. [arXiv:1503.03585](https://arxiv.org/abs/1503.03585).
# - Y. Song, S. Ermon. *Generative Modeling by Estimating Gradients of the Data Distribution.* NeurIPS
#   2019. [arXiv:1907.05600](https://arxiv.org/abs/1907.05600).
# - P. Vincent. *A Connection Between Score Matching and Denoising Autoencoders.* Neural Computation
#   23(7), 1661–1674, 2011.
# - C. M. Bishop. *Pattern Recognition and Machine Learning.* Springer, 2006. Section 2.3.3.
# - J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020.
#   [arXiv:2006.11239](https://arxiv.org/abs/2006.11239). Section 3.
# - D. P. Kingma, T. Salimans, B. Poole, J. Ho. *Variational Diffusion Models.* NeurIPS 2021.
#   [arXiv:2107.00630](https://arxiv.org/abs/2107.00630). Section 4.
# - T. Salimans, J. Ho. *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR 2022.
#   [arXiv:2202.00512](https://arxiv.org/abs/2202.00512). Appendix D: $v$.

# %% [markdown]
# - Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon, B. Poole. *Score-Based Generative
#   Modeling through Stochastic Differential Equations.* ICLR 2021.
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456).
# - Y. Lipman, R. T. Q. Chen, H. Ben-Hamu, M. Nickel, M. Le. *Flow Matching for Generative Modeling.*
#   ICLR 2023. [arXiv:2210.02747](https://arxiv.org/abs/2210.02747).
# - T. Karras, M. Aittala, T. Aila, S. Laine. *Elucidating the Design Space of Diffusion-Based
#   Generative Models.* NeurIPS 2022. [arXiv:2206.00364](https://arxiv.org/abs/2206.00364).
#   Appendix B.3: the ideal denoiser.
# - N. Carlini et al. *Extracting Training Data from Diffusion Models.* USENIX Security 2023.
#   [arXiv:2301.13188](https://arxiv.org/abs/2301.13188).
# - Z. Kadkhodaie, F. Guth, E. P. Simoncelli, S. Mallat. *Generalization in Diffusion Models Arises
#   from Geometry-Adaptive Harmonic Representations.* ICLR 2024.
#   [arXiv:2310.02557](https://arxiv.org/abs/2310.02557).
# - M. Kamb, S. Ganguli. *An Analytic Theory of Creativity in Convolutional Diffusion Models.* 2024.
#   [arXiv:2412.20292](https://arxiv.org/abs/2412.20292).
#
# **New words:** posterior mean, oracle, conditional-to-marginal argument, score, Tweedie's formula,
# parameterisation ($x_0$, $\varepsilon$, $v$, score, flow), determinant, ELBO (the bound), KL divergence,
# simple loss, memorisation, law of total variance.
