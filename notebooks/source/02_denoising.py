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
# **The question.** You see a noisy $x_t$ and want the clean $x_0$. What is the best guess, and why
# is learning it all that a diffusion model ever does?
#
# Nothing is trained in this chapter. In small worlds the best denoiser can be written down
# exactly, so that every claim about it can be checked on the spot, to several digits.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from diffusion_course import data, denoiser, parameterization, process
from diffusion_course.notebook import plots
from diffusion_course import samplers, sampling
from diffusion_course.notebook import widgets
from diffusion_course.data import toy2d

plots.use_style()

# %% [markdown]
# A digit under more and more noise, and below it the best possible guess at what it was. No network
# made that row. It is computed exactly, by Bayes' rule from 1,437 other digits. For digits drawn
# from those, no method has a smaller squared error on average. And yet it blurs, until all that is
# left is grey fog. Why is fog the best answer? By the end you will know, and you will know why a
# model that answers "fog" can still draw sharp digits.

# %%
p = process.vp_cosine()  # the cosine schedule of chapter 01, in continuous time
digits, unseen = data.load("digits"), data.load("digits", split="test")
best_guess = denoiser.ideal(p, digits.x)  # section 7 opens this box

times = np.array([0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], np.float32)
six = np.repeat(unseen.x[13:14], len(times), axis=0)
eps = np.repeat(jax.random.normal(jax.random.key(3), (1, 8, 8, 1)), len(times), axis=0)
noisy = process.add_noise(p, six, eps, times)
rows = {"a six": six, "noisy": noisy, "best guess": best_guess(noisy, times)}
title = "From little noise (left) to noise only (right)"
plots.image_grid(list(rows.values()), list(rows), title, scale=0.9)
plt.show()

# %% [markdown]
# ## 1 · The best guess is an average
#
# Start with single numbers. They are lopsided: three quarters of them lie near −0.2, the rest near
# 1.6. We add noise as in chapter 01, $x_t = \alpha\,x_0 + \sigma\,\varepsilon$, at $t = ½$, where
# signal and noise have about equal shares. Then we play: I show you an $x_t$, you name a number
# $c$, and you pay $(x_0 - c)^2$.

# %%
means, stds, weights = np.array([[-0.2], [1.6]]), np.array([0.25, 0.15]), np.array([0.75, 0.25])
t, N = 0.5, 400_000
alpha, sigma = float(p.alpha(t)), float(p.sigma(t))

rng = np.random.default_rng(0)
group = (rng.random(N) < weights[1]).astype(int)
x0 = means[group, 0] + stds[group] * rng.standard_normal(N)
x_t = alpha * x0 + sigma * rng.standard_normal(N)

shown = np.abs(x_t - 0.95) < 0.05  # the rounds in which I showed you about 0.95
print(f"alpha = {alpha:.2f}, sigma = {sigma:.2f}; {shown.sum()} of {N} rounds show 0.95")
assert abs(alpha - sigma) < 0.02

# %% [markdown]
# **Predict, then run.** I show you $x_t = 0.95$. Which $c$ costs you least on average: −0.2, 1.6,
# or something else?

# %%
c = np.linspace(-0.6, 2.0, 261)
cost = np.mean((x0[shown, None] - c) ** 2, axis=0)
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3), width_ratios=[1.3, 1, 1])
left.plot(x_t[:2000], x0[:2000], ".", ms=2, color=plots.DATA, alpha=0.5)
left.axvspan(0.9, 1.0, color=plots.NOISE, alpha=0.6, lw=0)
left.set(xlabel="$x_t$, what you see", ylabel="$x_0$, the truth", title="2,000 rounds")
middle.hist(x0[shown], np.linspace(-1, 2.2, 81), density=True, color=plots.DATA, alpha=0.6)
middle.set(xlabel="$x_0$, the truth", ylabel="density", title="the rounds with $x_t ≈ 0.95$")
right.plot(c, cost, color=plots.PREDICTION)
right.plot(c[cost.argmin()], cost.min(), "o", color=plots.PREDICTION)
right.annotate("least", (c[cost.argmin()], cost.min()), (0, 10), textcoords="offset points",
               ha="center", color=plots.PREDICTION)  # fmt: skip
right.set(xlabel="$c$, your guess", ylabel="mean of $(x_0 - c)^2$", title="what the guess costs")
plt.show()

# %%
best, average = c[cost.argmin()], x0[shown].mean()
near = np.mean(np.abs(x0 - best) < 0.2)
print(f"cheapest guess {best:.2f}, average of x0 in these rounds {average:.3f}; "
      f"{near:.2%} of all x0 lie within 0.2 of it")  # fmt: skip
assert abs(best - average) <= 0.005 + 1e-9  # the candidates c are 0.01 apart
assert near < 0.01

# %% [markdown]
# The cheapest guess lies in the gap, where there is next to no data. It isn't a *plausible* $x_0$.
# It is the *average* of the plausible ones, and it is cheapest for a simple reason: with
# $m = \mathbb E[x_0 \mid x_t]$,
#
# $$\mathbb E\big[(x_0 - c)^2 \mid x_t\big] = \operatorname{Var}(x_0 \mid x_t) + (c - m)^2. \tag{1}$$
#
# The first part is bad luck, and no guess changes it. The second part is up to you, and it is zero
# for $c = m$. So whoever minimises squared error over all functions of $x_t$ ends at the
# **posterior mean** $\mathbb E[x_0 \mid x_t]$. A network trained on squared error is on its way
# there.
#
# To see the whole function, cut the axis into 40 bins and average $x_0$ in each. Equation (1) says
# that these averages are the least-squares fit among all step functions. Beside them we put the
# library's exact answer, the **oracle**; section 3 takes it apart.

# %%
oracle = denoiser.gaussian_mixture(p, means, stds, weights)
exact = np.asarray(oracle.denoise(jnp.asarray(x_t, jnp.float32)[:, None], t))[:, 0]
edges = np.linspace(-2.2, 3.0, 41)
bin_of = np.digitize(x_t, edges)
bins = [b for b in range(1, 41) if np.sum(bin_of == b) >= 100]
averages = np.array([x0[bin_of == b].mean() for b in bins])
for b in bins:
    error = (x0 - exact)[bin_of == b]
    # 40 bins: 4 standard errors are exceeded by chance once in 400 such notebooks.
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(error.size), b
print(f"{len(bins)} bins agree with the oracle within 4 standard errors")

# %%
grid = np.linspace(-2.6, 3.4, 451)
curve = np.asarray(oracle.denoise(jnp.asarray(grid, jnp.float32)[:, None], t))[:, 0]
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
# A step function, a straight line, a constant: how much does each way of guessing cost over all
# rounds? Nothing may beat the oracle, and by equation (1) the price of any other guess is exactly
# its mean squared distance from the oracle.

# %%
steps = np.array([x0[bin_of == b].mean() for b in range(42)])[bin_of]
guesses = {"constant": np.full(N, x0.mean()), "straight line": slope * x_t + offset,
           "40 steps": steps, "oracle": exact, "x_t itself": x_t}  # fmt: skip
for name, guess in guesses.items():
    cost, distance = np.mean((x0 - guess) ** 2), np.mean((guess - exact) ** 2)
    print(
        f"{name:14s} cost {cost:.4f} = oracle's {np.mean((x0 - exact) ** 2):.4f} + {distance:.4f}"
    )
    # What is left over is the mean of 2·(x0 − exact)·(exact − guess), whose expectation is 0.
    # The 42 steps and the line were fitted to these very rounds: a few parameters' worth of gain,
    # of order 42·cost/N, on top of 4 standard errors.
    rest = 2 * (x0 - exact) * (exact - guess)
    slack = 4 * rest.std() / np.sqrt(N) + 2 * 42 * cost / N
    assert abs(cost - np.mean((x0 - exact) ** 2) - distance) < slack

# %% [markdown]
# ## 2 · Tweedie's formula
#
# Now a harder game. I show you many noisy numbers and *never* a clean one. Can you still find the
# best guess? It sounds hopeless. In 1956 Herbert Robbins published a formula for it, which he
# credited to Maurice Tweedie:
#
# $$\mathbb E[x_0 \mid x_t] \;=\; \frac{x_t + \sigma^2\,\nabla \log p_t(x_t)}{\alpha} \tag{2}$$
#
# (Robbins 1956; Efron 2011, section 1, has it for $\alpha = 1$.) Here $p_t$ is the density of the
# *noisy* data, and $\nabla\log p_t$ is called the **score**: the direction in which noisy data get
# denser.
#
# The proof is short. $p_t(x) = \int p(x_0)\,\mathcal N(x;\alpha x_0,\sigma^2)\,dx_0$, and the
# derivative of the Gaussian with respect to $x$ is $(\alpha x_0 - x)/\sigma^2$ times itself. So
# $\nabla\log p_t(x)$ is the average of $(\alpha x_0 - x)/\sigma^2$ over the posterior, and solving
# for the average of $x_0$ gives (2).

# %% [markdown]
# We check it by brute force, without any formula for mixtures: lay a fine grid over $x_0$,
# multiply prior and likelihood, add up. Once for the posterior mean, by Bayes' rule. Once for
# $\log p_t$, whose slope we take from differences.

# %%
x0_grid = np.linspace(-2.5, 3.5, 6001)
bell = lambda x, mean, std: np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
prior = sum(w * bell(x0_grid, m, s) for w, m, s in zip(weights, means[:, 0], stds, strict=True))
joint = prior * bell(grid[:, None], alpha * x0_grid, sigma)  # [x_t, x0]

by_bayes = (joint @ x0_grid) / joint.sum(axis=1)
slope_of_log = np.gradient(np.log(joint.sum(axis=1)), grid, edge_order=2)
by_tweedie = (grid + sigma**2 * slope_of_log) / alpha

# The sums are exact to rounding for densities this smooth; the oracle is in float32 (1e-6).
np.testing.assert_allclose(by_bayes, curve, atol=1e-5)
# Differences at a spacing h = 0.013 are off by about h²/6 times the third derivative.
np.testing.assert_allclose(by_tweedie, curve, atol=1e-3)
print(f"largest gap to the oracle: Bayes {np.abs(by_bayes - curve).max():.0e}, "
      f"Tweedie {np.abs(by_tweedie - curve).max():.0e}")  # fmt: skip

# %% [markdown]
# **Predict, then run.** Now play the hard game. From here on only `x_t` may be used: a histogram of
# noisy numbers, a smooth curve through the logarithm of its counts (a polynomial, as Efron does
# it), the slope of the curve, formula (2). How close will it come to the oracle, which knows
# everything?

# %%
counts, cut = np.histogram(x_t, np.linspace(*np.quantile(x_t, [0.0005, 0.9995]), 61))
middle_of = (cut[:-1] + cut[1:]) / 2
# A count n has a standard error of sqrt(n), its logarithm one of 1/sqrt(n): hence the weights.
log_density = np.polynomial.Polynomial.fit(middle_of, np.log(counts), 8, w=np.sqrt(counts))
blind = (middle_of + sigma**2 * log_density.deriv()(middle_of)) / alpha

truth = np.interp(middle_of, grid, curve)
off = np.sqrt(np.average((blind - truth) ** 2, weights=counts))
print(f"blind guess against the oracle: rms {off:.3f}, where x0 has a std of {x0.std():.2f}")
assert off < 0.05 * x0.std()  # measured 2 %: the polynomial is a little too stiff

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3))
left.plot(middle_of, np.log(counts), ".", color=plots.NOISE)
left.plot(middle_of, log_density(middle_of), color=plots.PREDICTION)
left.set(xlabel="$x_t$, noisy numbers", ylabel="logarithm of the count", title="all that we saw")
right.plot(grid, curve, color=plots.TRUTH)
right.plot(middle_of, blind, "o", ms=4, color=plots.PREDICTION)
right.set(
    xlabel="$x_t$", ylabel="best guess at $x_0$", title="oracle (line) and blind guess (dots)"
)
plt.show()

# %% [markdown]
# The blind guess follows the oracle, though no clean number was ever used. (It goes astray at the
# two ends, where hardly any number fell: a slope is hard to learn where there is no data.) Whoever
# knows the *shape* of the noisy data knows the posterior mean, and the other way round: denoiser
# and score are the same knowledge. This is why "denoising" models and "score-based" models turned
# out to be one thing (Vincent 2011; Song et al. 2021).

# %% [markdown]
# ## 3 · The exact denoiser of a mixture, written out
#
# Let the data be a mixture: component $k$ has weight $w_k$, mean $\mu_k$ and covariance $s_k^2 I$.
# Noise keeps it a mixture. Component $k$ of $x_t$ has mean $\alpha\mu_k$ and variance
# $v_k = \alpha^2 s_k^2 + \sigma^2$, and within one component the posterior mean is that of two
# Gaussians. Bayes' rule weighs the components:
#
# $$r_k = \frac{w_k\,\mathcal N(x_t;\,\alpha\mu_k,\,v_k I)}{\sum_j w_j\,\mathcal N(x_t;\,\alpha\mu_j,\,v_j I)},
# \qquad
# \mathbb E[x_0 \mid x_t] = \sum_k r_k \Big(\mu_k + \frac{\alpha s_k^2}{v_k}\,(x_t - \alpha\mu_k)\Big)
# \tag{3}$$
#
# (Bishop 2006, eq. 2.113 to 2.117, gives the Gaussian step.) This is the chapter's algorithm, and
# it is ten lines.


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
# The library's version must give the same numbers, in the plane as well. So must Tweedie's formula,
# with the score taken from `log_prob` by automatic differentiation, and Bayes' rule on a grid.
# From now on our data are three unequal clouds.

# %%
gm = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
log_p = lambda x, t: gm.log_prob(x[None], t)[0]
points = jax.random.normal(jax.random.key(0), (200, 2)) * 1.2
for t in (0.05, 0.3, 0.6, 0.95):
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    ours = exact_denoiser(np.asarray(points, np.float64), alpha, sigma, *toy2d.MIXTURE)
    # float32 carries 7 digits; near t = 0 the logits differ by hundreds and lose three of them.
    np.testing.assert_allclose(gm.denoise(points, t), ours, atol=2e-4)
    score = jax.vmap(jax.grad(log_p), (0, None))(points, t)
    np.testing.assert_allclose(gm.score(points, t), score, rtol=1e-3, atol=1e-3)
    # Dividing by alpha magnifies rounding.
    np.testing.assert_allclose((points + sigma**2 * score) / alpha, ours, atol=2e-4 / alpha)
print("equation (3), the library and Tweedie's formula agree")

# %%
plane = plots.plane(-1.8, 1.8, 361).astype(np.float64)  # x0 on a grid, spacing 0.01
prior = sum(w * np.exp(-0.5 * np.sum((plane - m) ** 2, axis=1) / s**2) / s**2
            for m, s, w in zip(*toy2d.MIXTURE, strict=True))  # fmt: skip
for t in (0.3, 0.6):
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    distance = np.sum((np.asarray(points)[:20, None] - alpha * plane) ** 2, axis=-1)
    posterior = prior * np.exp(-0.5 * (distance - distance.min(1, keepdims=True)) / sigma**2)
    by_bayes = posterior @ plane / posterior.sum(axis=1, keepdims=True)
    # A Gaussian sampled at a seventh of its standard deviation is summed exactly, to rounding.
    np.testing.assert_allclose(gm.denoise(points[:20], t), by_bayes, atol=2e-4)
print("and so does brute force in the plane")

# %% [markdown]
# ## 4 · Explore: when does the arrow know where to go?
#
# Below, every arrow starts at a possible $x_t$ and shows the first quarter of the way to the best
# guess $\mathbb E[x_0 \mid x_t]$; an orange dot marks where it would end. The lines are contours of
# $p_t$, the density of noisy data; the blue dots are clean data. The slider runs from $t = 1$ down
# to 0.
#
# **Predict, then run.** At $t = 1$, to how many different places do the arrows point? And what will
# the orange dots do before they settle in the three clouds?


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
    fig, ax = plt.subplots(figsize=(6, 6))
    field(ax, t).set(xlabel="first coordinate", ylabel="second coordinate")
    return fig


moments = np.linspace(1, 0, 21)
labels = [f"t = {t:.2f}, log-SNR {float(p.log_snr(t)):.1f}" for t in moments]
widgets.explorer(widgets.render(frame, moments), labels, slider="t")

# %% [markdown]
# The same on paper, at four times.

# %%
fig, axes = plt.subplots(2, 2, figsize=(8, 8), sharex=True, sharey=True)
for ax, t in zip(axes.ravel(), (0.95, 0.5, 0.3, 0.12), strict=True):
    field(ax, t)
axes[1, 0].set(xlabel="first coordinate", ylabel="second coordinate")
plt.show()

# %% [markdown]
# At $t = 1$ all arrows end in one point: the mean of all data, where there *is* no data. As the
# noise falls, the dots fill a triangle between the clouds, for each is an average of the three.
# Then the triangle empties into its corners, and each cloud owns a region. Between the regions run
# seams, where the best guess jumps from cloud to cloud within a short way. A network must learn
# these seams, and they get steeper as $t$ falls. At $t = 0$ nothing moves: what you see is the
# answer.
#
# In numbers: call an arrow undecided if no cloud has more than 95 % of the posterior. We count
# among points that really occur, draws of $x_t$.

# %%
clean = gm.sample(jax.random.key(1), 4000)
noise = jax.random.normal(jax.random.key(2), clean.shape)
undecided = {}
for t in (1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05):
    noisy = process.add_noise(p, clean, noise, t)
    undecided[t] = float(np.mean(np.asarray(gm.responsibilities(noisy, t)).max(axis=1) < 0.95))
    spread = float(np.std(np.asarray(gm.denoise(noisy, t)), axis=0).mean())
    print(f"t = {t:.2f}   undecided {undecided[t]:6.1%}   spread of the best guesses {spread:.3f}")
overall = toy2d.MIXTURE.weights @ toy2d.MIXTURE.means
np.testing.assert_allclose(gm.denoise(starts, 1.0), np.tile(overall, (len(starts), 1)), atol=1e-6)
# The order of these shares is not a matter of luck: their standard errors are below 0.8 %.
assert undecided[1.0] == 1 and undecided[0.4] > 0.8 and undecided[0.1] < 0.1
assert np.all(np.diff(list(undecided.values())) <= 0)

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
# Each is $y = a\,x_0 + b\,\varepsilon$: one row of numbers. Together with what the network was
# shown we have two equations for two unknowns,
#
# $$\begin{pmatrix} a & b \\ \alpha & \sigma \end{pmatrix}
# \begin{pmatrix} x_0 \\ \varepsilon \end{pmatrix} = \begin{pmatrix} y \\ x_t \end{pmatrix},
# \qquad \det = a\sigma - b\alpha. \tag{4}$$
#
# So one prediction gives all the others, and since (4) is linear, averages convert like values: the
# best `eps` *is* the best `x0` in other clothes. Only where $\det = 0$ does this fail.

# %%
key_x, key_eps = jax.random.split(jax.random.key(4))
x0 = 0.3 + 1.4 * jax.random.normal(key_x, (500, 2))  # neither centred nor of unit size
eps = jax.random.normal(key_eps, (500, 2))
kinds = ("x0", "eps", "v", "score", "flow")
for t in (0.05, 0.4, 0.9):
    x_t = process.add_noise(p, x0, eps, t)
    for kind in kinds:
        y = parameterization.target(kind, p, x0, eps, t)
        a, b = parameterization.row(kind, p, t)
        matrix = np.array([[a, b], [p.alpha(t), p.sigma(t)]], np.float64)
        by_hand = np.linalg.solve(matrix, np.stack([y, x_t]).reshape(2, -1)).reshape(2, 500, 2)
        # float32 rounds at 1e-7; conversions magnify it, here about tenfold, and targets reach 50.
        assert np.allclose(by_hand, np.stack([x0, eps]), atol=2e-4)
        assert np.allclose(parameterization.to_x0(kind, p, y, x_t, t), x0, atol=1e-4)
        assert np.allclose(parameterization.to_eps(kind, p, y, x_t, t), eps, atol=1e-4)
print("solving the system, to_x0 and to_eps agree: the round trip is closed for all five")

# %%
for t in (0.05, 0.4, 0.9):
    x_t = process.add_noise(p, x0, eps, t)
    for kind in kinds:
        y = parameterization.target(kind, p, x0, eps, t)
        score = parameterization.to_score(kind, p, y, x_t, t)
        assert np.allclose(score, parameterization.target("score", p, x0, eps, t), atol=2e-3)
        velocity = parameterization.velocity(kind, p, y, x_t, t)
        assert np.allclose(velocity, parameterization.target("flow", p, x0, eps, t), atol=2e-3)
    # Averages convert too: the oracle's posterior mean becomes the oracle's score.
    converted = parameterization.to_score("x0", p, gm.denoise(x_t, t), x_t, t)
    assert np.allclose(converted, gm.score(x_t, t), rtol=1e-3, atol=1e-3)
print("to_score and velocity agree; the exact denoiser, converted, is the exact score")

# %% [markdown]
# ### The determinant is the lesson
#
# A network is never perfect. Let its output be off by $\delta$. Solving (4), $x_0$ is then off by
# $(\sigma/|\det|)\,\delta$ and $\varepsilon$ by $(\alpha/|\det|)\,\delta$.
#
# **Predict, then run.** Near pure noise ($\alpha \to 0$), which prediction is hopeless for $x_0$?
# Near the data ($\sigma \to 0$), which one is hopeless for $\varepsilon$? We give every prediction
# an error of the same size, 0.01, convert with the library, and measure (dots). The lines are the
# formulas.

# %%
when = np.array([0.002, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.998], np.float32)
delta = 0.01 * jax.random.normal(jax.random.key(5), (500, 2))
rms = lambda difference: float(np.sqrt(np.mean(np.square(difference))))
measured = {}
for kind in kinds:
    for t in when:
        x_t = process.add_noise(p, x0, eps, t)
        y = parameterization.target(kind, p, x0, eps, t) + delta
        x0_off = rms(parameterization.to_x0(kind, p, y, x_t, t) - x0) / rms(delta)
        eps_off = rms(parameterization.to_eps(kind, p, y, x_t, t) - eps) / rms(delta)
        measured[kind, t] = x0_off, eps_off
        det = abs(float(parameterization.determinant(kind, p, t)))
        # Rounding is 1e-4 of the added error at worst, where the targets themselves are large.
        theory = float(p.sigma(t)) / det, float(p.alpha(t)) / det
        np.testing.assert_allclose((x0_off, eps_off), theory, rtol=0.02, atol=2e-4)

# %%
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
first, last = measured["x0", when[0]], measured["eps", when[-1]]
print(f"t = {when[0]:.3f}: an error in x0 becomes {first[1]:.0f} times that in eps")
print(f"t = {when[-1]:.3f}: an error in eps becomes {last[0]:.0f} times that in x0")
assert first[1] > 50 and last[0] > 100
worst_v = max(max(measured["v", t]) for t in when)
print(f"v: never more than {worst_v:.2f} times, in either direction")
assert worst_v < 1.001  # alpha and sigma are at most 1
assert np.allclose(dets["v"], 1, atol=1e-5)  # variance-preserving: alpha² + sigma² = 1
(a_v, b_v), (a_f, b_f) = (parameterization.row(kind, p, clock) for kind in ("v", "flow"))
assert np.allclose(a_f * b_v, b_f * a_v, atol=1e-3)  # two rows of one direction
flow = process.rectified_flow()
assert np.allclose(parameterization.determinant("flow", flow, clock), -1, atol=1e-5)

# %% [markdown]
# - `eps` loses $x_0$ as $\alpha \to 0$: at $t = 1$ the input *is* the noise, and repeating it is a
#   perfect answer that says nothing about the data.
# - `x0` loses $\varepsilon$ as $\sigma \to 0$: the input *is* the data.
# - `v` never loses anything: its row is at right angles to $(\alpha, \sigma)$ at every time.
# - `flow` on a variance-preserving schedule is `v` times a number that depends on $t$ only: the
#   point $(\alpha, \sigma)$ moves on a quarter circle, and the number is its speed.
# - `score` looks safe in both panels, but only because its target grows like $1/\sigma$: an error of
#   0.01 is then a tiny one, relatively. It fails just where `eps` does.
#
# Chapter 03 trains `eps` where DDPM did, and `v` elsewhere, for this reason.

# %% [markdown]
# ## 6 · From the bound to the simple loss
#
# Where does squared error come from in the first place? DDPM minimises an upper bound on
# $-\log p(x_0)$ (Ho et al. 2020, eq. 5):
#
# $$\mathbb E\Big[ \underbrace{\mathrm{KL}\big(q(x_T|x_0)\,\|\,p(x_T)\big)}_{L_T}
# + \sum_{n=2}^{T} \underbrace{\mathrm{KL}\big(q(x_{n-1}|x_n,x_0)\,\|\,p_\theta(x_{n-1}|x_n)\big)}_{L_{n-1}}
# \underbrace{-\log p_\theta(x_0|x_1)}_{L_0} \Big] \tag{5}$$

# %% [markdown]
# $L_T$ has nothing to learn. In each $L_{n-1}$ both are Gaussians, and here is DDPM's choice: the
# model's variance $\sigma_n^2$ is fixed. With $\sigma_n^2 = \tilde\beta_n$, the variance of $q$
# itself, the KL divergence of two Gaussians is a squared distance of their means,
#
# $$L_{n-1} = \frac{1}{2\sigma_n^2}\,\|\tilde\mu_n(x_n, x_0) - \mu_\theta(x_n, n)\|^2 \tag{6}$$
#
# (eq. 8; with any other fixed $\sigma_n^2$ a constant is added). The mean
# $\tilde\mu_n$ is linear in $x_0$ (eq. 7). Let the model use the same formula with its guess
# $\hat x_0$: all that remains is the error of the guess. With $\mathrm{SNR} = \alpha^2/\sigma^2$,
# $s = (n-1)/T$ and $t = n/T$,
#
# $$L_{n-1} = \tfrac12\big(\mathrm{SNR}(s) - \mathrm{SNR}(t)\big)\,\|x_0 - \hat x_0\|^2
# = \tfrac12\Big(\tfrac{\mathrm{SNR}(s)}{\mathrm{SNR}(t)} - 1\Big)\,\|\varepsilon - \hat\varepsilon\|^2. \tag{7}$$

# %% [markdown]
# The first form is from Kingma et al. 2021, section 4. The second is DDPM's eq. 12, whose weight
# reads $\beta_n^2 \big/ \big(2\sigma_n^2\,(1-\beta_n)(1-\bar\alpha_n)\big)$.
#
# We trust none of this. Take the posterior from the library, integrate
# $\int q\,\log(q/p)$ numerically, and compare with both forms of (7) and with DDPM's weight.

# %%
T = 1000
betas = process.linear_betas(T)
chain, alpha_bar = process.from_betas(betas), np.concatenate([[1], np.cumprod(1 - betas)])
truth, guess, noise = 1.1, 0.4, -0.3  # x0, a bad guess at it, and eps


def kl_by_integration(mean_q, mean_p, variance):
    """∫ q log(q/p) for Gaussians with one variance, on a grid."""
    std = np.sqrt(variance)
    x = np.linspace(min(mean_q, mean_p) - 10 * std, max(mean_q, mean_p) + 10 * std, 20_001)
    log_ratio = ((x - mean_p) ** 2 - (x - mean_q) ** 2) / (2 * variance)
    return np.sum(bell(x, mean_q, std) * log_ratio) * (x[1] - x[0])


# %%
print("   n      KL by integral   weight × x0 error   weight × eps error   DDPM, eq. 12")
for n in (2, 10, 100, 500, 1000):
    t, s = n / T, (n - 1) / T
    x_n = process.add_noise(chain, jnp.array([truth]), jnp.array([noise]), t)
    q, model = (process.posterior(chain, jnp.array([g]), x_n, t, s) for g in (truth, guess))
    kl = kl_by_integration(float(q[0][0]), float(model[0][0]), float(q[1]))

    snr_s, snr_t = (alpha_bar[m] / (1 - alpha_bar[m]) for m in (n - 1, n))
    by_x0 = 0.5 * (snr_s - snr_t) * (truth - guess) ** 2
    eps_guess = (float(x_n[0]) - np.sqrt(alpha_bar[n]) * guess) / np.sqrt(1 - alpha_bar[n])
    by_eps = 0.5 * (snr_s / snr_t - 1) * (noise - eps_guess) ** 2
    beta, variance = betas[n - 1], (1 - alpha_bar[n - 1]) / (1 - alpha_bar[n]) * betas[n - 1]
    weight = beta**2 / (2 * variance * (1 - beta) * (1 - alpha_bar[n]))
    ddpm = weight * (noise - eps_guess) ** 2
    print(f"{n:4d} {kl:19.4e} {by_x0:19.4e} {by_eps:20.4e} {ddpm:14.4e}")
    # The posterior is float32: at n = 1000 two means that differ by 1e-4 keep three digits.
    np.testing.assert_allclose([kl, by_eps, ddpm], by_x0, rtol=1e-2)

# %% [markdown]
# All four columns agree. And now DDPM's bold move (eq. 14): **drop the weight in front of
# $\|\varepsilon - \hat\varepsilon\|^2$**, the whole of it, for every $n$, and put 1:
#
# $$L_\text{simple} = \mathbb E_{n, x_0, \varepsilon}\;
# \big\|\varepsilon - \varepsilon_\theta(x_n, n)\big\|^2. \tag{8}$$
#
# May one do that? By equation (1) the best guess at each $(x_n, n)$ is the posterior mean, whatever
# positive number stands before the square. The weight changes nothing about the *goal*. It
# changes how a network of limited size spends its effort.

# %%
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
assert dropped[98] > 20 and dropped.max() > 60 and dropped[-1] < dropped.max()
levels_of_noise = np.sqrt(1 - alpha_bar[1:3]) / (2 / 255)  # steps 1 and 2; pixels are in [−1, 1]
assert np.all((levels_of_noise > 1) & (levels_of_noise < 2))

# %% [markdown]
# The bound cares most for the first steps, where the noise is but one or two grey levels of an
# 8-bit picture. Compared with it, the simple loss shifts effort to the noisy steps, where a
# picture's content is decided. Ho et al. 2020 reported better-looking samples and slightly worse
# likelihoods (their table 1). Chapter 05 returns to the bound.
#
# In the right panel the simple loss is no "weight 1" at all: on $x_0$ it is the SNR. So "unweighted
# loss" means nothing until one says *of what*.

# %% [markdown]
# ## 7 · A perfect denoiser only memorises
#
# A training set is finite: $N$ points and nothing in between. What is the posterior mean *of the
# training set*? It is equation (3) with $s_k = 0$, a cloud of no width at each image:
#
# $$D(x_t, t) = \sum_i r_i\,x_i, \qquad r = \operatorname{softmax}_i
# \Big(-\frac{\|x_t - \alpha x_i\|^2}{2\sigma^2}\Big) \tag{9}$$
#
# (Karras et al. 2022, appendix B.3.) No network can have a lower training loss than this. It is
# `denoiser.ideal`, the box of the first picture.

# %%
some = digits.x[:300].reshape(300, 64)
x_t = 0.8 * jax.random.normal(jax.random.key(6), (50, 64))
for t in (0.3, 0.6, 0.9):
    ours = exact_denoiser(np.asarray(x_t, np.float64), float(p.alpha(t)), float(p.sigma(t)),
                          some.astype(np.float64), np.zeros(300), np.full(300, 1 / 300))  # fmt: skip
    # The logits are of order 64/sigma² and float32; an error of 1e-4 in one moves a weight by 1e-4.
    np.testing.assert_allclose(denoiser.ideal(p, some)(x_t, t), ours, atol=1e-3)
print("denoiser.ideal is equation (3) with clouds of no width")

# %% [markdown]
# **Predict, then run.** We give this perfect denoiser to DDIM, a sampler of chapter 06 that adds no
# noise of its own: from $x_t$ it guesses $x_0$, moves a little way towards the guess, and
# repeats. We start from pure noise, 64 times. What comes out: fog, new digits, or old ones?

# %%
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
rows = {"drawn": drawn[:12], "nearest in the\ntraining set": digits.x[which[:12]]}
plots.image_grid(list(rows.values()), list(rows), "Samples of the perfect denoiser", 0.7)
plt.show()

# %%
print(f"largest distance of a sample to its nearest training image: {distance.max():.1e}")
print(f"for comparison, digits that are really new: median {np.median(usual):.2f}, "
      f"least {usual.min():.2f}")  # fmt: skip
print(f"{len(set(which))} different images in 64 samples")
# The last call of D is at t = 0.02. There the noise, 0.04 per pixel, is so small beside the distance
# between two digits that the softmax gives one of them all the weight: only rounding is left.
assert distance.max() < 1e-5 < usual.min()
assert len(set(which)) > 55  # 64 draws out of 1,437 with equal chances: about 62.6 different ones

# %% [markdown]
# All 64 are training images, to the last decimal. The perfect student has learned its examples by
# heart.
#
# The plane shows what went wrong. We take 60 points of the three clouds as training set, and
# compare three denoisers: the perfect one of the 60 points, the true one of the clouds, and a
# *slightly wrong* one, which believes that each of the 60 points is a small cloud of width 0.08.

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

# %%
fig, axes = plt.subplots(1, 3, figsize=(10.5, 4.1), sharex=True, sharey=True)
for ax, (name, x) in zip(axes, clouds.items(), strict=True):
    plots.points(ax, x, color=plots.PREDICTION, size=8, alpha=0.5)
    ax.plot(few[:, 0], few[:, 1], "+", ms=5, mew=0.8, color=plots.DATA)
    ax.set(title=name, xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), xlabel="first coordinate")
axes[0].set_ylabel("second coordinate")
axes[0].text(-1.2, 1.1, "+ training points", color=plots.DATA, size="small")
axes[0].text(-1.2, 0.95, "● 600 samples", color=plots.PREDICTION, size="small")
plt.show()

# %%
t = 0.05
print("                        loss on the 60   loss on fresh data   samples' distance to the 60")
losses, gaps = {}, {}
for name, D in denoisers.items():
    loss = []
    for i, x in enumerate((few, fresh)):
        x = jnp.tile(x, (200 if x is few else 6, 1))  # 12,000 noisy copies, the same for all D
        noisy = process.add_noise(p, x, jax.random.normal(jax.random.key(11 + i), x.shape), t)
        loss.append(float(jnp.mean((D(noisy, t) - x) ** 2)))
    losses[name], gaps[name] = loss, np.median(nearest(clouds[name], few)[1])
    print(f"{name:22s} {loss[0]:14.4f} {loss[1]:18.4f} {gaps[name]:24.4f}")
perfect, wrong, true = losses.values()
assert perfect[0] < min(wrong[0], true[0]) and true[1] < wrong[1] < perfect[1]
assert gaps["perfect for 60 points"] < 1e-3 < gaps["slightly wrong"]

# %% [markdown]
# Look at the two losses, taken at $t = 0.05$. On its 60 points the perfect denoiser beats even the
# truth; on fresh data it is the worst of the three. It is the optimum of the training loss, and it
# is overfitted as far as one can be.
#
# So if a diffusion model draws anything new, then only because it has *not* reached the optimum of
# its loss. What generalises is the **network's imperfection**: it is smooth where equation (9) is
# steep, it looks at neighbourhoods where (9) looks at whole images. Our "slightly wrong" denoiser
# is a crude stand-in. On digits it fails: it returns training images with noise on top.

# %%
blurred = denoiser.gaussian_mixture(p, digits.x.reshape(-1, 64), np.full(1437, 0.08), np.ones(1437))
start = sampling.start_noise(p, jax.random.key(13), (16, 64))
drawn, _ = sampling.sample(
    samplers.ddim(p), blurred.denoise, start, sampling.quadratic(100), jax.random.key(14)
)
_, off = nearest(drawn, digits.x)
print(f"distance to the nearest training image: {off.min():.3f} to {off.max():.3f}; noise of 0.08")
# 64 pixels: the rms of noise of std 0.08 has a standard error of 0.08/sqrt(128), 9 % of it.
assert np.all(np.abs(off / 0.08 - 1) < 4 / np.sqrt(128))
assert abs(off.mean() / 0.08 - 1) < 4 / np.sqrt(128 * 16)  # 16 samples

# %% [markdown]
# A good network is wrong in a better way. In what way is a question of current research (Kadkhodaie
# et al. 2024; Kamb & Ganguli 2024), and large models do sometimes slip and reproduce training
# images (Carlini et al. 2023).

# %% [markdown]
# ## 8 · Break it on purpose: a score without its $\sigma$
#
# The network predicts $\varepsilon$, and some other code wants the score: a sampler, a guidance
# rule, Tweedie's formula. The score is $-\varepsilon/\sigma$. Two slips lie close at hand. **A**:
# the minus sign is forgotten. **B**: the division by $\sigma$ is forgotten.
#
# **Predict, then run.** Which of the two will you notice at once, and which one not at all?

# %%
right_score = lambda eps, sigma: -eps / sigma
bugs = {"right": right_score, "A: no sign": lambda eps, sigma: eps / sigma,
        "B: no σ": lambda eps, sigma: -eps}  # fmt: skip


def by_tweedie(score_of, D):
    """A denoiser that goes by way of a score, as equation (2) says; right if score_of is."""

    def broken(x, t):
        t = jnp.asarray(t)
        alpha, sigma = process.levels(p, t, x)
        eps = (x - alpha * D(x, t)) / sigma
        return (x + sigma**2 * score_of(eps, sigma)) / alpha

    return broken


# %%
t = 0.3
clean = gm.sample(jax.random.key(20), 60)
noisy = process.add_noise(p, clean, jax.random.normal(jax.random.key(21), clean.shape), t)
broken = {name: by_tweedie(score_of, gm.denoise) for name, score_of in bugs.items()}
fig, axes = plt.subplots(1, 3, figsize=(11, 4.3), sharex=True, sharey=True)
for ax, (name, D) in zip(axes, broken.items(), strict=True):
    plots.points(ax, cloud, size=5, alpha=0.5)
    plots.arrows(ax, noisy, D(noisy, t))
    plots.points(ax, D(noisy, t), plots.PREDICTION, size=10, alpha=0.9)
    ax.set(title=name, xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), xlabel="first coordinate")
axes[0].set_ylabel("second coordinate")
plt.show()

# %% [markdown]
# Arrows from 60 noisy points to their best guesses at $t = 0.3$. A points away from the data, and
# nobody overlooks that. B points the right way and stops short. By how much? Insert it into (2):
# the right answer removes $\sigma\hat\varepsilon$, B removes $\sigma^2\hat\varepsilon$. What is
# left over is
#
# $$\frac{\sigma\,(1 - \sigma)}{\alpha}\;\hat\varepsilon, \tag{10}$$
#
# zero at $\sigma = 0$, zero at $\sigma = 1$: like the bug of chapter 01, it is right at both ends.

# %%
clean = gm.sample(jax.random.key(22), 2000)
noise = jax.random.normal(jax.random.key(23), clean.shape)
print("   t    direction: A      B     length of the step: A      B (right: 1)     σ")
for t in (0.05, 0.2, 0.5, 0.8, 0.99):
    x = process.add_noise(p, clean, noise, t)
    alpha, sigma = float(p.alpha(t)), float(p.sigma(t))
    removed = {name: x - alpha * D(x, t) for name, D in broken.items()}
    size = {name: jnp.linalg.norm(step, axis=1) for name, step in removed.items()}
    row = []
    for name in ("A: no sign", "B: no σ"):
        cosine = jnp.sum(removed[name] * removed["right"], 1) / (size[name] * size["right"])
        row += [float(jnp.median(cosine)), float(jnp.median(size[name] / size["right"]))]
    print(f"{t:5.2f} {row[0]:13.3f} {row[2]:8.3f} {row[1]:20.3f} {row[3]:8.3f} {sigma:17.3f}")
    # Up to float32, which loses digits in x − alpha·D where the noise is small.
    np.testing.assert_allclose(row, [-1, 1, 1, sigma], atol=2e-3)

# %% [markdown]
# **Predict, then run.** A test that compares *directions* passes B. So does a test at $t = 1$. Will
# its samples look right? (We start at $t = 0.99$, since (2) divides by $\alpha$, which is 0 at
# $t = 1$.)

# %%
start = sampling.start_noise(p, jax.random.key(24), (600, 2), 0.99)
results = {
    name: np.asarray(sampling.sample(samplers.ddim(p), D, start, 0.99 * sampling.uniform(100),
                                     jax.random.key(25))[0])
    for name, D in broken.items()
}  # fmt: skip
fig, axes = plt.subplots(1, 3, figsize=(11, 4.3), sharex=True, sharey=True)
for ax, (name, x) in zip(axes, results.items(), strict=True):
    plots.points(ax, x, plots.PREDICTION, size=8, alpha=0.5)
    plots.points(ax, cloud[:200], size=5, alpha=0.5)
    inside = np.mean(np.abs(x).max(axis=1) < 2.1)
    ax.set(title=f"{name}: {inside:.0%} in view", xlim=(-2.1, 2.1), ylim=(-2.1, 2.1))
    ax.set_xlabel("first coordinate")
axes[0].set_ylabel("second coordinate")
plt.show()

# %%
data_std = gm.sample(jax.random.key(26), 20_000).std(axis=0)
for name, x in results.items():
    log_likelihood = float(gm.log_prob(jnp.asarray(x), 0.0).mean())
    print(f"{name:11s} std {x.std(axis=0)[0]:10.3f} {x.std(axis=0)[1]:10.3f} "
          f"(data {data_std[0]:.3f} {data_std[1]:.3f}), mean log-density {log_likelihood:.3g}")  # fmt: skip
right, no_sign, no_sigma = results.values()
# 600 samples: the standard error of a std is about 3 % of it, and 100 steps add about 1 %.
assert np.all(np.abs(right.std(axis=0) / data_std - 1) < 0.12)
assert np.abs(no_sign).max() > 100
assert np.all(no_sigma.std(axis=0) > 1.3 * data_std)

# %% [markdown]
# A explodes. B draws three smears, in about the right places: plausible for a model that is "not
# trained enough yet", which is what one would conclude. But this denoiser is exact, and no amount
# of training would help.
#
# **The lesson:** test a conversion against an oracle, by *length* as well as direction, and at a
# time where $\alpha$, $\sigma$ and 1 are all different. Best of all, don't write conversions twice:
# solve (4) in one place.

# %% [markdown]
# ## 9 · What to inspect
#
# Back to the first picture. Of any denoiser, look at the guesses $\hat x_0$ at several noise
# levels. At high noise they *should* be blurry. The answer to the riddle of the fog is in the
# posterior: equation (9) gives each training digit a probability, so we can draw from it and see
# what the guess is an average *of*.


# %%
def posterior(x_t, t):
    """The probability of each training digit, given x_t: r of equation (9)."""
    squared = np.sum((x_t - float(p.alpha(t)) * digits.x) ** 2, axis=(1, 2, 3), dtype=np.float64)
    r = np.exp(-(squared - squared.min()) / (2 * float(p.sigma(t)) ** 2))
    return r / r.sum()


six, eps = unseen.x[13:14], jax.random.normal(jax.random.key(3), (1, 8, 8, 1))
rng, rows = np.random.default_rng(2), {}
for t in (0.5, 0.6, 0.7, 0.8, 0.9):
    noisy = np.asarray(process.add_noise(p, six, eps, t))
    r, guess = posterior(noisy, t), np.asarray(best_guess(noisy, t))
    # float32 in the softmax of best_guess: logits of about 100, so weights are good to 1e-4.
    np.testing.assert_allclose(np.tensordot(r, digits.x, axes=1), guess[0], atol=1e-3)
    draws = digits.x[rng.choice(len(r), size=9, p=r)]
    rows[f"$t$ = {t}"] = np.concatenate([noisy, guess, draws])
title = "Noisy, best guess, and nine digits that it could be"
plots.image_grid(list(rows.values()), list(rows), title, scale=0.75)
plt.show()

# %% [markdown]
# Each draw is a sharp digit. The guess is their average, so it is as sharp as they are alike. Blur
# is honest doubt. And this is why a model that answers "fog" can draw sharp digits: a sampler never
# believes the guess. It takes a small step towards it and asks again, with less doubt.
#
# The **law of total variance** makes it exact:
#
# $$\operatorname{Var}(x_0) = \underbrace{\operatorname{Var}\big(\mathbb E[x_0 \mid x_t]\big)}_{\text{variety of the guesses}}
# + \underbrace{\mathbb E\big[\operatorname{Var}(x_0 \mid x_t)\big]}_{\text{doubt: the loss of } x_0} \tag{11}$$
#
# Guesses vary less than data, at every $t$. And the second term is the loss of the *best possible*
# denoiser. A training loss that stays above zero is therefore no sign of failure.
#
# **Predict, then run.** At which $t$ are the two halves equal?

# %%
whole = digits.x.astype(np.float64)
centre = whole.mean(axis=0)
total = np.mean((whole - centre) ** 2)
clock = np.linspace(0.02, 1, 50)
variety, doubt = [], []
guess_all = jax.jit(best_guess)
for i, t in enumerate(clock):
    eps = jax.random.normal(jax.random.key(100 + i), digits.x.shape)
    guess = np.asarray(guess_all(process.add_noise(p, digits.x, eps, t), t), np.float64)
    variety.append(np.mean((guess - centre) ** 2))
    doubt.append(np.mean((guess - whole) ** 2))
    # The two add up to the total but for 2·(guess − centre)·(guess − x0), of mean 0, per image.
    rest = np.mean(2 * (guess - centre) * (guess - whole), axis=(1, 2, 3))
    assert abs(variety[-1] + doubt[-1] - total) < 4 * rest.std() / np.sqrt(len(rest)) + 1e-6
    assert variety[-1] <= total + 4 * rest.std() / np.sqrt(len(rest)) + 1e-6
half = clock[np.argmax(np.array(doubt) > np.array(variety))]
print(f"variance of a pixel {total:.3f}; half of it is doubt from t = {half:.2f}, "
      f"log-SNR {float(p.log_snr(half)):.1f}")  # fmt: skip

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.2))
ax.stackplot(clock, variety, doubt, colors=[plots.DATA, plots.NOISE], alpha=0.7)
ax.axhline(total, color=plots.TRUTH, lw=1)
ax.text(0.03, total * 1.03, "variance of the digits", size="small")
ax.text(0.2, 0.12, "variety of the best guesses", color="white")
ax.text(0.72, 0.2, "doubt that remains")
ax.set(xlabel="time $t$", ylabel="variance per pixel", xlim=(0.02, 1), ylim=(0, 1.15 * total))
plt.show()
assert 0.4 < half < 0.8 and doubt[0] < 1e-3 * total
assert abs(doubt[-1] / total - 1) < 0.01  # at t = 1 nothing is known; only rounding is left

# %% [markdown]
# A checklist for any denoiser, trained or not:
#
# 1. pictures of $\hat x_0$ at several $t$: sharp at low noise, the *mean of the data* at $t = 1$;
# 2. the loss of $x_0$ per noise level, between 0 and the variance of the data;
# 3. the variance of the guesses: if it *exceeds* that of the data, something is wrong;
# 4. the loss on unseen data beside the training loss (section 7);
# 5. one round trip through every conversion that you use.

# %% [markdown]
# ## Recap
#
# 1. Squared error is minimised by the posterior mean $\mathbb E[x_0 \mid x_t]$: an average, blurry
#    where there is doubt.
# 2. Tweedie: the posterior mean and the score of the noisy data are the same knowledge.
# 3. $x_0$, $\varepsilon$, $v$, score and velocity are rows of one 2×2 system; its determinant says
#    where a conversion fails.
# 4. DDPM's bound is a weighted squared error of $\varepsilon$; the simple loss drops the weight and
#    keeps the goal.
# 5. The perfect denoiser of a finite set can only repeat it. What is new comes from the network's
#    imperfection.

# %% [markdown]
# ## Try it yourself
#
# 1. Minimise $|x_0 - c|$ instead of $(x_0 - c)^2$ in section 1. Where does the best $c$ jump, and
#    what would a network trained on absolute error show at high noise?
# 2. Efron (2011) also gives the posterior *variance* from the score: $\operatorname{Var}(x_0 \mid
#    x_t) = \sigma^2\,(1 + \sigma^2\,\nabla^2\log p_t)/\alpha^2$ for single numbers. Check it with
#    `jax.hessian` and `oracle.log_prob`.
# 3. Make "slightly wrong" of section 7 more and less wrong: which width has the lowest loss on fresh
#    data, and does it depend on the number of training points?

# %% [markdown]
# ## Further reading
#
# - H. Robbins. *An Empirical Bayes Approach to Statistics.* Proceedings of the Third Berkeley
#   Symposium on Mathematical Statistics and Probability, vol. 1, 157–163, 1956.
# - B. Efron. *Tweedie's Formula and Selection Bias.* Journal of the American Statistical Association
#   106(496), 1602–1614, 2011. Sections 1 and 2.
# - P. Vincent. *A Connection Between Score Matching and Denoising Autoencoders.* Neural Computation
#   23(7), 1661–1674, 2011.
# - C. M. Bishop. *Pattern Recognition and Machine Learning.* Springer, 2006. Section 2.3.3.
# - J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020.
#   [arXiv:2006.11239](https://arxiv.org/abs/2006.11239). Section 3.
# - D. P. Kingma, T. Salimans, B. Poole, J. Ho. *Variational Diffusion Models.* NeurIPS 2021.
#   [arXiv:2107.00630](https://arxiv.org/abs/2107.00630). Section 4.
# - T. Salimans, J. Ho. *Progressive Distillation for Fast Sampling of Diffusion Models.* ICLR 2022.
#   [arXiv:2202.00512](https://arxiv.org/abs/2202.00512). Appendix D: $v$.
# - Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon, B. Poole. *Score-Based Generative
#   Modeling through Stochastic Differential Equations.* ICLR 2021.
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456).

# %% [markdown]
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
# **New words:** posterior mean, oracle, score, Tweedie's formula, parameterisation ($x_0$,
# $\varepsilon$, $v$, score, flow), determinant, ELBO (the bound), KL divergence, simple loss,
# memorisation, law of total variance.
