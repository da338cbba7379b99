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
# # 06 · DDIM and fast solvers
#
# **The question.** A thousand evaluations of a network for one picture. Must it be a thousand?
#
# At the end of this chapter you will be able to
#
# - derive DDIM: a whole family of samplers for one trained network, with a dial $\eta$ from DDPM to
#   no noise at all;
# - say when 20 steps are enough, and measure it;
# - turn a picture into the noise that draws it, and interpolate between noises without leaving
#   the place where noise lives;
# - write a second-order solver, measure its order, and count evaluations honestly;
# - find the noise that a careless last step leaves in every sample.
#
# **You need** chapters 01 to 03. **Time**: about 80 minutes of reading; the cells run for about a
# minute and a half on two CPU cores.

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
from scipy.special import ndtr

from diffusion_course import data, denoiser, editing, process
from diffusion_course.evaluation import metrics
from diffusion_course.notebook import plots
from diffusion_course import samplers, sampling, weights
from diffusion_course.notebook import widgets
from diffusion_course.data import toy2d
from diffusion_course.models.classifier import judge
from diffusion_course.weights import features

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# A network trained on MNIST draws ten digits, three times. Two rows cost a thousand evaluations per
# digit, one row costs twenty. All rows use the very same weights and start from the same noise.
#
# The loop below is `sampling.sample` on a uniform grid, with one difference: the number of steps is
# an argument of the compiled program, so that 20 and 1000 steps share it.


# %%
def walk(sampler, D, x, steps, key, begin=1.0, end=0.0):
    """Runs a sampler over `steps` equal steps of time, from begin to end."""

    def body(i, carry):
        t, s = (end + (begin - end) * (1 - j / steps) for j in (i, i + 1))  # exact at the end
        x, state = carry
        return sampler.step(D, x, t, s, jax.random.fold_in(key, i), state)

    return jax.lax.fori_loop(0, steps, body, (x, sampler.init(x)))[0]


p = process.vp_cosine()  # both released networks were trained with it, to predict v


@partial(jax.jit, static_argnames="make")
def draw(model, x, labels, steps, key, eta=0.0, end=0.0, make=None):
    D = denoiser.denoiser(model, p, "v", labels)
    sampler = samplers.ddim(p, eta) if make is None else make(p)
    return walk(sampler, D, x, steps, key, end=end)


# %% [markdown]
# **Predict, then run.** Which of the three rows took twenty steps?

# %%
mnist = weights.load("mnist")
ten = jnp.arange(10)
start = jax.random.normal(jax.random.key(0), (10, 28, 28, 1))
twenty = draw(mnist.model, start, ten, 20, jax.random.key(1))
thousand = draw(mnist.model, start, ten, 1000, jax.random.key(1))
ddpm = draw(mnist.model, start, ten, 1000, jax.random.key(1), eta=1.0)
plots.image_grid([thousand, twenty, ddpm], ["A", "B", "C"])
plt.show()

# %%
rms = lambda difference: float(np.sqrt(np.mean(np.square(difference))))
print(f"A and B differ by {rms(twenty - thousand):.3f} rms, A and C by {rms(ddpm - thousand):.3f}")
# Measured .06 and .66: B is the same picture, C is another one of the same class.
assert rms(twenty - thousand) < 0.15 < 0.3 < rms(ddpm - thousand)

# %% [markdown]
# B. It repeats A almost pixel for pixel, at a fiftieth of the price. C is DDPM, the sampler of
# chapter 03, with its thousand draws of fresh noise; it ends somewhere else. So A and B must
# follow a road that is fixed once the start is known. Where does that road come from?

# %% [markdown]
# ## 2 · One network, many processes
#
# Look again at what training used: pairs of $x_0$ and $x_t = \alpha_t x_0 + \sigma_t\varepsilon$. Only
# the **marginals** $q(x_t \mid x_0)$ enter the loss. How $x_t$ and $x_s$ of *one* path belong together
# was never asked. So we may choose it.
#
# Given $x_0$, knowing $x_t$ is knowing its noise, $\varepsilon = (x_t - \alpha_t x_0)/\sigma_t$. Let the
# noise at $s < t$ be a mix of this old noise and fresh noise $z$:
#
# $$x_s = \alpha_s x_0 + c\,\varepsilon + g\,z, \qquad c^2 + g^2 = \sigma_s^2. \tag{1}$$
#
# By Pythagoras the marginal at $s$ is right for **every** $g$ from 0 to $\sigma_s$
# (Song, Meng & Ermon 2021, eq. 7; their $\sigma_t$ is our $g$). These processes are not Markov chains
# forwards (**non-Markovian**): $x_t$ depends on $x_s$ and on $x_0$. Nobody minds, since we only go backwards.

# %% [markdown]
# The paper measures the fresh noise in units of DDPM's own. With $\tilde\beta$ the variance of the
# posterior $q(x_s \mid x_t, x_0)$ of chapter 03,
#
# $$g = \eta\,\sqrt{\tilde\beta}, \qquad
# \tilde\beta = \sigma_s^2\Big(1 - \frac{\mathrm{SNR}_t}{\mathrm{SNR}_s}\Big),
# \qquad \mathrm{SNR} = \frac{\alpha^2}{\sigma^2} \tag{2}$$
#
# (eq. 16, for any two times $s < t$). At $\eta = 1$ this *is* DDPM: its posterior is linear in $x_0$
# and $x_t$, has this variance and keeps the marginal, and (1) leaves only one such thing. At
# $\eta = 0$ no noise is added at all.
#
# **Predict, then run.** We draw 50,000 pairs $(x_t, x_s)$ for one fixed $x_0$, with three values of
# $\eta$. What will differ: the two histograms, or the cloud?

# %%
t, s, x0 = 0.6, 0.4, 0.8
alpha_s, sigma_s = float(p.alpha(s)), float(p.sigma(s))
snr_ratio = float(jnp.exp(p.log_snr(t) - p.log_snr(s)))
rng = np.random.default_rng(0)
eps, z = rng.standard_normal((2, 50_000))
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), sharex=True, sharey=True)
for ax, eta in zip(axes, (0.0, 0.5, 1.0), strict=True):
    g = eta * np.sqrt(sigma_s**2 * (1 - snr_ratio))
    x_s = alpha_s * x0 + np.sqrt(sigma_s**2 - g**2) * eps + g * z
    correlation = np.corrcoef(eps, x_s)[0, 1]
    # Standard errors of 50,000 draws: σ/224 of a mean, σ/316 of a standard deviation.
    assert abs(x_s.mean() - alpha_s * x0) < 4 * sigma_s / 224
    assert abs(x_s.std() - sigma_s) < 4 * sigma_s / 316
    assert abs(correlation - np.sqrt(1 - g**2 / sigma_s**2)) < 0.02
    ax.plot(eps[:1500], x_s[:1500], ".", ms=2, color=plots.DATA, alpha=0.5)
    ax.set(title=f"$\\eta$ = {eta}: correlation {correlation:.2f}", xlabel="noise in $x_t$")
axes[0].set_ylabel("$x_s$")
plt.show()

# %% [markdown]
# The histograms along both axes are the same three times; only the cloud differs. A network sees
# points, never pairs: it cannot tell these processes apart.
#
# ## 3 · DDIM, written out
#
# When we sample, $x_0$ is unknown. As in DDPM, the network's guess takes its place, and the noise is
# what the guess leaves:
#
# $$x_s = \alpha_s\,\hat x_0 + \sqrt{\sigma_s^2 - \eta^2\tilde\beta}\;\hat\varepsilon
# + \eta\sqrt{\tilde\beta}\;z, \qquad
# \hat\varepsilon = \frac{x_t - \alpha_t\hat x_0}{\sigma_t} \tag{3}$$
#
# (Song et al. 2021, eq. 12: predicted $x_0$, "direction pointing to $x_t$", random noise). It is the
# chapter's algorithm, as a loop over any falling list of times.


# %%
def ddim(denoise, x, times, eta, keys):
    """Equation (3) along times[0] > … > times[-1]; one evaluation of the denoiser per step."""
    for t, s, key in zip(times[:-1], times[1:], keys, strict=True):
        alpha_t, sigma_t, alpha_s, sigma_s = p.alpha(t), p.sigma(t), p.alpha(s), p.sigma(s)
        x0 = denoise(x, t)
        eps = (x - alpha_t * x0) / sigma_t
        beta = sigma_s**2 - (alpha_t / sigma_t * sigma_s**2 / alpha_s) ** 2  # equation (2)
        g = eta * jnp.sqrt(beta)
        x = alpha_s * x0 + jnp.sqrt(sigma_s**2 - g**2) * eps + g * jax.random.normal(key, x.shape)
    return x


gm = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)  # the three clouds, with their exact denoiser
noise = jax.random.normal(jax.random.key(2), (3000, 2))
key, grid = jax.random.key(3), sampling.uniform(30)
keys = [jax.random.fold_in(key, i) for i in range(30)]
denoise = jax.jit(gm.denoise)
for eta in (0.0, 0.6, 1.0):
    ours = ddim(denoise, noise, grid, eta, keys)
    library, _ = sampling.sample(samplers.ddim(p, eta), gm.denoise, noise, grid, key)
    print(f"eta = {eta}: largest difference to the library {jnp.abs(ours - library).max():.1e}")
    # 30 steps of float32; points between two clouds amplify rounding.
    np.testing.assert_allclose(ours, library, atol=2e-3)

# %% [markdown]
# And $\eta = 1$ must be DDPM on *any* grid: coarse, squared, or random. A formula that
# takes $\beta_n$ of the training chain would fail here, since a long step adds more noise than a
# short one. We compare with `samplers.ddpm` noise for noise, and the variance with Bayes' rule
# by adding precisions.

# %%
uneven = np.sort(np.random.default_rng(1).uniform(0.02, 0.98, 10))[::-1]


@jax.jit
def both(times):
    makers = (samplers.ddpm, lambda p: samplers.ddim(p, eta=1.0))
    return [sampling.sample(make(p), gm.denoise, noise, times, key)[0] for make in makers]


for times in (sampling.uniform(9), sampling.quadratic(9), uneven):
    np.testing.assert_allclose(*both(jnp.float32(times)), atol=2e-3)
for t, s in pairwise(uneven):
    (a_t, v_t), (a_s, v_s) = ((float(p.alpha(u)), float(p.sigma(u)) ** 2) for u in (t, s))
    scale = a_t / a_s
    bayes = 1 / (1 / v_s + scale**2 / (v_t - scale**2 * v_s))  # prior and likelihood of x_s
    paper = v_s * (1 - (a_t**2 / v_t) / (a_s**2 / v_s))
    np.testing.assert_allclose(paper, bayes, rtol=1e-3)  # α and σ come in float32
print("eta = 1 is DDPM on three grids of 9 steps")

# %% [markdown]
# ## 4 · Explore: η and the number of steps
#
# Left, ten MNIST digits, always from the same ten noises. Right, the exact denoiser in the plane:
# the ends of forty paths (orange) over the data (blue), and six of the paths (grey). The menu chooses
# $\eta$, the slider the number of steps.
#
# **Predict, then run.** With $\eta = 0$, from how many steps on do the digits stay the same? And with
# $\eta = 1$?

# %%
counts, etas = (2, 3, 5, 10, 20, 50, 100), (0.0, 0.5, 1.0)
clean = np.asarray(gm.sample(jax.random.key(5), 400))


@jax.jit
def paths(x, key, eta, steps):
    """All states of DDIM in the plane; rows after `steps` repeat the start."""

    def body(i, path):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        step, key_i = samplers.ddim(p, eta).step, jax.random.fold_in(key, i)
        return path.at[i + 1].set(step(gm.denoise, path[i], t, s, key_i, ())[0])

    return jax.lax.fori_loop(0, steps, body, jnp.tile(x, (max(counts) + 1, 1, 1)))


digits, roads = {}, {}
for eta in etas:
    for n in counts:
        digits[eta, n] = np.asarray(draw(mnist.model, start, ten, n, jax.random.key(1), eta))
        roads[eta, n] = np.asarray(paths(noise[:40], jax.random.key(6), eta, n))[: n + 1]


# %%
def road(ax, eta, n):
    """Where forty points end, and the paths of six of them."""
    plots.points(ax, clean, size=4, alpha=0.4)
    ax.plot(roads[eta, n][:, :6, 0], roads[eta, n][:, :6, 1], color=plots.NOISE, lw=0.8, zorder=1)
    plots.points(ax, roads[eta, n][-1], plots.PREDICTION, size=14, alpha=0.9, zorder=3)
    ax.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), title=f"$\\eta$ = {eta}, {n} steps")


def frame(eta, n):
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=[1.3, 1])
    left.imshow(plots.tile(digits[eta, n], 5), interpolation="nearest")
    left.set(xticks=[], yticks=[], title=f"ten digits, {n} evaluations each")
    road(right, eta, n)
    right.set(xlabel="$x_1$", ylabel="$x_2$")
    return fig


frames = {f"η = {eta}": widgets.render(partial(frame, eta), counts) for eta in etas}
widgets.explorer(frames, [f"{n} steps" for n in counts], slider="steps", choice="noise", start=3)

# %% [markdown]
# The same on paper: six of the digits with $\eta = 0$ at the left and with $\eta = 1$ at the right,
# then the paths.

# %%
shown = (2, 5, 10, 20, 100)
rows = [np.concatenate([digits[0.0, n][:6], digits[1.0, n][:6]]) for n in shown]
plots.image_grid(rows, [f"{n} steps" for n in shown], "η = 0 (left six), η = 1 (right six)")
fig, axes = plt.subplots(2, 3, figsize=(9, 6), sharex=True, sharey=True)
for row, n in zip(axes, (10, 100), strict=True):
    for ax, eta in zip(row, etas, strict=True):
        road(ax, eta, n)
axes[1, 1].set_xlabel("$x_1$")
axes[0, 0].set_ylabel("$x_2$")
plt.show()

# %%
same = {eta: rms(digits[eta, 20] - digits[eta, 100]) for eta in etas}
length = {
    eta: np.linalg.norm(np.diff(roads[eta, 100], axis=0), axis=-1).sum(0).mean() for eta in etas
}
for eta in etas:
    print(f"eta = {eta}: digits at 20 and at 100 steps differ by {same[eta]:.3f} rms; "
          f"mean length of a path of 100 steps {length[eta]:.1f}")  # fmt: skip
assert same[0.0] < 0.12 < 0.25 < same[1.0]  # measured .05 and .5, on ten digits
assert length[1.0] > 3 * length[0.0]  # forty paths
ends = [paths(z, jax.random.key(6), 1.0, 20)[20] for z in (noise[:40], -noise[:40])]
np.testing.assert_allclose(*ends, atol=1e-4)  # opposite starts, the same fresh noise

# %% [markdown]
# With $\eta = 0$ the paths are smooth, and a smooth path can be followed with few straight pieces.
# So the same start gives the same digit, better drawn, whatever the number of steps, and from 20 on one
# hardly sees a change: the paper calls it **consistency** (section 5.2). The start is a code for the picture.
#
# With $\eta = 1$ a path is a random walk, many times as long (pieces of it leave the frame), and every
# number of steps ends in another drawing. On this schedule the start doesn't even matter: at $t = 1$ no signal is left, and by
# (2) the first step replaces *all* noise by fresh noise: opposite starts end in the same point.

# %% [markdown]
# ## 5 · Twenty steps against a thousand
#
# Looking is not measuring. For numbers we take the 8×8 digits, whose network is small enough to run
# a thousand steps. The measure is chapter 03's: the Fréchet distance between the judge's features of
# samples and those of the training set, beside the same distance for unseen real digits. All counts are 360,
# because there are 360 unseen digits, and the distance depends on the count.
#
# **Predict, then run.** Rank these: DDIM with 20 steps, $\eta = 1$ with 10 steps, DDPM with 1000.

# %%
small, expert = weights.load("digits"), weights.load("digits_classifier")
real, unseen = features.load("digits", expert.card), data.load("digits", split="test")
N = len(unseen)
labels, begin = jnp.arange(N) % 10, jax.random.normal(jax.random.key(8), (N, 8, 8, 1))


def measure(images):
    """Fréchet distance to the training set, and the share that is recognised."""
    seen, found = judge(expert.model, images)
    return metrics.frechet(found, real), metrics.class_accuracy(seen, labels)


few = (5, 10, 20, 50)
quality = {
    (eta, n): measure(draw(small.model, begin, labels, n, jax.random.key(9), eta))
    for eta, n in [*((eta, n) for eta in (0.0, 1.0) for n in few), (1.0, 1000)]
}
floor = metrics.frechet(judge(expert.model, unseen.x)[1], real)
for (eta, n), (distance, accuracy) in quality.items():
    print(f"eta = {eta}, {n:4} steps: Fréchet {distance:.2f}, recognised {accuracy:.1%} of {N}")
print(f"unseen real digits: Fréchet {floor:.2f}")

# %%
fig, ax = plt.subplots(figsize=(6, 3.4))
ax.set(ylim=(0, 2.5), xlim=(4.5, 1300))
series = {f"η = {eta:g}": [quality[eta, n][0] for n in few] for eta in (0.0, 1.0)}
plots.curves(few, series, ax=ax, log="x", xlabel="evaluations per digit",
             ylabel="Fréchet distance", label_at=0.1)  # fmt: skip
ax.plot(1000, quality[1.0, 1000][0], "o", color=plots.SERIES[1])
ax.annotate("DDPM", (1000, quality[1.0, 1000][0]), (0, 8), textcoords="offset points", ha="center")
ax.axhline(floor, color=plots.TRUTH, lw=1)
ax.text(5, floor - 0.2, "unseen real digits", size="small")
ax.set_xticks([*few, 1000], [*few, 1000])
ax.minorticks_off()
plt.show()

# %%
best = quality[1.0, 1000][0]
# Another seed moves each number by about .08. Over four seeds DDIM had 1.2 to 1.4 times DDPM's
# distance with 20 steps, 1.1 to 1.3 times with 50, and 2.0 to 2.5 times with 5.
assert quality[0.0, 20][0] < 1.65 * best and quality[0.0, 50][0] < 1.5 * best
assert quality[0.0, 5][0] > 1.7 * best and quality[0.0, 50][0] > best
# With few steps fresh noise hurts: over four seeds the sum was 1.1 to 1.35 times as large.
assert quality[0.0, 5][0] + quality[0.0, 10][0] < quality[1.0, 5][0] + quality[1.0, 10][0]
assert all(accuracy > 0.97 for _, accuracy in quality.values())  # blind to all of this

# %% [markdown]
# So the slogan "20 to 50 steps instead of 1000" holds, with a footnote. Twenty steps bring the
# distance close to that of DDPM's thousand, and fifty closer; they don't beat it. Accuracy sees no
# difference even at five steps.
#
# With *few* steps, noise hurts: what a step throws in, the next ones must remove again. With *many* steps it
# can help, since it forgets errors that were made on the way (Karras et al. 2022, section 4, measure
# it). The best $\eta$ depends on your budget.

# %% [markdown]
# ## 6 · Where the road comes from
#
# Divide (3), with $\eta = 0$, by $\alpha_s$, and use $\hat x_0 = (x_t - \sigma_t\hat\varepsilon)/\alpha_t$:
#
# $$\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \Big(\frac{\sigma_s}{\alpha_s} -
# \frac{\sigma_t}{\alpha_t}\Big)\,\hat\varepsilon(x_t, t). \tag{4}$$
#
# New place = old place + length of the step × slope. That is **Euler's method** for a differential
# equation in the coordinates $\bar x = x/\alpha$ and $\bar\sigma = \sigma/\alpha$:
#
# $$\frac{d\bar x}{d\bar\sigma} = \hat\varepsilon \tag{5}$$
#
# (Song et al. 2021, eq. 13 and 14). With an exact denoiser it is the **probability flow** (Song,
# Sohl-Dickstein et al. 2021; chapter 10): it carries the noisy distribution of every time exactly into
# that of every other.
#
# For single numbers this makes the solution computable. Paths of (5) cannot cross, so a point that
# starts with 30 % of all points below it ends so. With $F_t$ the cumulative distribution at $t$,
#
# $$x_s = F_s^{-1}\big(F_t(x_t)\big). \tag{6}$$

# %%
means, stds, shares = np.array([-0.9, 0.4, 1.3]), np.array([0.15, 0.3, 0.08]), [0.3, 0.5, 0.2]
oracle = denoiser.gaussian_mixture(p, means[:, None], stds, shares)


def levels64(t, shift=0.008):
    """α and σ of the cosine schedule in float64 (chapter 01)."""
    angle = lambda t: (t + shift) / (1 + shift) * np.pi / 2
    alpha = np.cos(angle(t)) / np.cos(angle(0))
    return alpha, np.sqrt(1 - alpha**2)


def share_below(x, t):
    alpha, sigma = levels64(t)
    return ndtr((x[:, None] - alpha * means) / np.hypot(alpha * stds, sigma)) @ shares


def at_share(share, t):
    """F_t^{-1}, by bisection."""
    low, high = np.full_like(share, -9.0), np.full_like(share, 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = share_below(middle, t) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


# %%
BEGIN, END = 0.9, 0.2
clock, share = np.linspace(BEGIN, END, 71), np.linspace(0.03, 0.97, 13)
exact = np.stack([at_share(share, t) for t in clock])
alphas, sigmas = levels64(clock)
nodes = np.linspace(BEGIN, END, 5).astype(np.float32)  # four steps
place = jnp.asarray(exact[:1].T, jnp.float32)
_, stops = sampling.sample(samplers.ddim(p), oracle.denoise, place, nodes, jax.random.key(0))
stops = np.concatenate([place.T, stops[..., 0]])
a, b = levels64(nodes)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.plot(clock, exact, color=plots.TRUTH, lw=0.8)
left.plot(nodes, stops[:, ::3], "o", ms=4, color=plots.PREDICTION)
left.set(xlabel="time $t$", ylabel="$x_t$", xlim=(BEGIN + 0.02, END - 0.02))
right.plot(sigmas / alphas, exact / alphas[:, None], color=plots.TRUTH, lw=0.8)
right.plot(b / a, (stops / a[:, None])[:, ::3], "o-", ms=4, lw=1, color=plots.PREDICTION)
right.set(xlabel=r"$\bar\sigma = \sigma/\alpha$", ylabel=r"$\bar x = x/\alpha$",
          xlim=(2.3, 0.2), ylim=(-4.2, 4.2))  # fmt: skip
left.set_title("exact paths (lines), DDIM with 4 steps (dots)")
right.set_title("the last three steps in the coordinates of (5)")
plt.show()

# %% [markdown]
# In the right panel each orange piece is straight, and points where the exact path *through its beginning*
# points there. It misses the bend that follows. With more steps the miss shrinks like the length of a
# step: DDIM is a method of **order one**. Section 9 does better. First, two gifts of a
# road without noise.

# %% [markdown]
# ## 7 · Inversion: from a picture to its noise
#
# A road can be walked both ways. Which noise would DDIM have turned into *this* digit? Solve (3) for
# $x_t$. Its $\hat\varepsilon$ belongs to $x_t$, which is what we want to know. DDIM inversion takes the
# guess at the point where we stand, $x_s$, as if it were $x_t$: the network is told the time $t$ (Song et
# al. 2021, section 5.4). Or we go on guessing: insert the
# result, evaluate again, and so on. If this settles, it settles at the *exact* inverse of the step (a
# fixed point; Pan et al. 2023).
#
# A detail for both ends of the clock: keeping $\hat\varepsilon$ fixed divides by $\alpha$, keeping
# $\hat x_0$ fixed divides by $\sigma$. We keep whichever is safe.


# %%
def climb(D, x_s, s, t, refinements):
    """One step of DDIM upwards, s to t > s; refinements are further evaluations."""
    alpha_s, sigma_s, alpha_t, sigma_t = p.alpha(s), p.sigma(s), p.alpha(t), p.sigma(t)

    def again(_, x_t):
        x0 = D(x_t, t)
        eps = (x_t - alpha_t * x0) / sigma_t
        keep_eps = alpha_t * (x_s - sigma_s * eps) / alpha_s + sigma_t * eps
        keep_x0 = alpha_t * x0 + sigma_t * (x_s - alpha_s * x0) / jnp.maximum(sigma_s, 1e-6)
        return jnp.where(sigma_s > alpha_s, keep_x0, keep_eps)

    return jax.lax.fori_loop(0, refinements + 1, again, x_s)


@jax.jit
def round_trip(model, x, labels, steps, refinements):
    """Up to the noise and down again: both ends."""
    D = denoiser.denoiser(model, p, "v", labels)
    up = lambda i, x: climb(D, x, i / steps, (i + 1) / steps, refinements)
    top = jax.lax.fori_loop(0, steps, up, x)
    return top, walk(samplers.ddim(p), D, top, steps, jax.random.key(0))


# %%
x, y = jnp.asarray(unseen.x[:40]), jnp.asarray(unseen.labels[:40])  # real, never trained on
top, again = round_trip(small.model, x, y, 20, 1)
D = denoiser.denoiser(small.model, p, "v", y)
library, _ = jax.jit(
    lambda x: editing.invert(p, D, x, sampling.uniform(20), refinements=1)
)(x)  # fmt: skip
np.testing.assert_allclose(top, library, atol=2e-3)  # 20 steps of float32 through a network
top0, again0 = round_trip(small.model, x, y, 20, 0)
rows = [x[:12], top[:12] / 2, again0[:12], again[:12]]
names = ["real digits", "half their noise", "again", "again, refined once"]
plots.image_grid(rows, names, "Up and down again with 20 steps")
plt.show()

# %% [markdown]
# **Predict, then run.** Walk up and down with more and more steps. How fast does the error fall? And
# is an evaluation better spent on a further step or on a refinement?

# %%
ladder, refinements = (5, 10, 20, 50, 100), (0, 1, 5)
trips = {(n, r): round_trip(small.model, x, y, n, r) for r in refinements for n in ladder}
error = {k: rms(down - x) for k, (_, down) in trips.items()}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
for r, color, dash in zip(refinements, plots.SERIES, plots.DASHES, strict=False):
    values = [error[n, r] for n in ladder]
    for ax, cost in zip(axes, (ladder, [n * (r + 1) for n in ladder]), strict=True):
        ax.loglog(cost, values, "o", ls=dash, ms=3, color=color)
        ax.annotate(f" {r}", (cost[-1], values[-1]), color=color, va="center")
axes[0].set(xlabel="steps up (and down)", ylabel="rms error of the round trip",
            title="lines: number of refinements")  # fmt: skip
axes[1].set(xlabel="evaluations on the way up", title="the same at equal cost")
plt.show()

# %%
order = -np.polyfit(np.log(ladder[1:]), np.log([error[n, 0] for n in ladder[1:]]), 1)[0]
print(f"without refinement the error falls like steps^-{order:.2f} (40 real digits)")
print(f"100 evaluations: 100 steps {error[100, 0]:.4f}; 50 steps, refined {error[50, 1]:.4f}")
assert 0.7 < order < 1.2  # order one; measured .85
assert error[50, 1] < 0.85 * error[100, 0]  # measured 0.6 times
assert error[50, 1] < error[20, 5]  # 100 evaluations against 120
assert all(error[n, 5] < error[n, 0] / 2 for n in ladder)  # measured a half to a tenth

# %% [markdown]
# Without refinement the error falls with order one, like DDIM itself. One refinement is worth more
# than twice as many steps; several buy little for their price.
#
# The trip closes, so have we found *the* noise? For once we can know: take digits that the network drew
# itself, from a start that we kept.
#
# **Predict, then run.** Invert them. How far is the noise that we find from the start that drew them?
# (Two independent noises are $\sqrt 2$ apart, in rms.)

# %%
own, found_std = draw(small.model, begin, labels, 20, key)[:40], []
for r in (*refinements, 20):
    found, down = round_trip(small.model, own, labels[:40], 20, r)
    off = rms(found - begin[:40])
    print(f"{r} refinements: round trip off by {rms(down - own):.4f}; noise found: "
          f"std {float(found.std()):.2f}, {off:.2f} from the true start")  # fmt: skip
    found_std.append(float(found.std()))
    assert rms(down - own) < 0.06 and off > 0.4  # 40 digits; measured at most .03, at least .7
# Measured .62, .76, .98 and 1.33.
assert found_std[0] < 0.8 and all(np.diff(found_std) > 0.05) and found_std[-1] > 1.15

# %% [markdown]
# Far. The trip closes, and yet the code is another one. Digits fill few of the 64 dimensions, and along
# the others the road narrows on its way down: starts that lie far apart arrive at nearly the same
# picture. On the way up that is an amplifier, for errors of a step as well as for details of a real digit
# that this network would never draw.
#
# So a closed round trip is no proof of a natural code. Look at the standard deviation of the noise
# you find, which should be 1: here it is too small at first, and refinement makes it larger, past 1 and on.
# Chapter 08 edits with inversion all the same; with strong guidance it needs other
# cures (Mokady et al. 2023).

# %% [markdown]
# ## 8 · Between two noises
#
# If noise is a code for the picture, what lies between two codes? The straight line
# $(1-u)\,a + u\,b$ seems natural and is wrong. In $d$ dimensions noise has length about $\sqrt d$: all
# of it lives near a sphere. Halfway along the line the variance is only
# $\tfrac14 + \tfrac14 = \tfrac12$. No noise is that short. The arc stays on the sphere:
#
# $$\operatorname{slerp}(a, b, u) = \frac{\sin((1-u)\,\theta)}{\sin\theta}\,a +
# \frac{\sin(u\,\theta)}{\sin\theta}\,b, \qquad \cos\theta = \frac{a\cdot b}{\|a\|\,\|b\|} \tag{7}$$
#
# (Shoemake 1985; for latent noise Song et al. 2021, appendix D.5).
#
# **Predict, then run.** The denoiser is told $t = 1$, and gets noise that is 30 % too short. Will the
# digits at the middle of the line be blurred, broken, or too good?


# %%
def slerp(a, b, u):
    """Equation (7) for one pair of noises."""
    theta = jnp.arccos(jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))
    return (jnp.sin((1 - u) * theta) * a + jnp.sin(u * theta) * b) / jnp.sin(theta)


a, b = jax.random.normal(jax.random.key(11), (2, 1, 28, 28, 1))
along = jnp.linspace(0, 1, 10)
arc = jnp.concatenate([slerp(a, b, u) for u in along])
line = jnp.concatenate([(1 - u) * a + u * b for u in along])
library = jnp.concatenate([editing.slerp(a, b, u) for u in along])
np.testing.assert_allclose(arc, library, atol=1e-5)  # float32 in the angle
rows = {
    f"{label}, {name}": draw(mnist.model, way, jnp.full(10, label), 20, jax.random.key(0))
    for label in (2, 4, 8) for name, way in (("arc", arc), ("line", line))
}  # fmt: skip
plots.image_grid(list(rows.values()), list(rows), "From one noise to another")
plt.show()

# %%
others = jax.random.normal(jax.random.key(12), begin.shape)
middles = {"one end": begin, "arc": editing.slerp(begin, others, 0.5), "line": (begin + others) / 2}
found = {}
for name, z in middles.items():
    images = draw(small.model, z, labels, 20, jax.random.key(9))
    variety = float(jnp.stack([images[c::10].std(axis=0).mean() for c in range(10)]).mean())
    found[name] = (rms(z), *measure(images), variety)
    print(f"{name:8} noise {found[name][0]:.3f}, Fréchet {found[name][1]:.2f}, "
          f"recognised {found[name][2]:.1%}, variety in a class {variety:.3f}")  # fmt: skip
# 360 × 64 numbers: the standard error of their rms is 0.5 %.
assert abs(found["arc"][0] - 1) < 0.02 and abs(found["line"][0] - 0.5**0.5) < 0.02
# Over three seeds: one end .6 to 1.0, arc .7 to .85, line 1.9 to 2.2.
assert found["line"][1] > 1.5 * max(found["arc"][1], found["one end"][1])
assert found["line"][3] < 0.95 * min(found["arc"][3], found["one end"][3])
assert found["line"][2] > found["one end"][2] - 0.02

# %% [markdown]
# Too good, in a way. Short noise is *central* noise, and it is drawn as a central digit: legible,
# and like the next one. On 360 digits the Fréchet distance about doubles, while the judge
# recognises them as well as ever. Along the arc, samples stay as good and as varied as at its ends.
#
# (The same trade, on purpose, is the temperature of `samplers.ddpm` and, in a better way, guidance:
# chapter 07.)

# %% [markdown]
# ## 9 · Faster: better averages of ε
#
# DDIM takes the slope at the beginning of a step for the whole of it. Numerical analysis has known for a
# century how to do better. Three ideas:
#
# - **Heun**: take the step, look at the slope there, and repeat the step with the mean of both. Two
#   evaluations per step; order 2 (Karras et al. 2022, algorithm 1).
# - **DPM-Solver**: use $\lambda = \log(\alpha/\sigma)$, half the log-SNR, as the clock. In it (5) has
#   an exact solution but for one integral over $\hat\varepsilon$, which is replaced by a polynomial.
#   Order 1 is DDIM again; orders 2 and 3 look at one or two points within the step and then forget them,
#   which makes it a *single-step* method (Lu et al. 2022a, eq. 3.7, algorithms 1 and 2).
# - **Multistep**: don't look at new points, remember old ones. One evaluation per step. PNDM
#   averages the last four $\hat\varepsilon$ (Liu et al. 2022, eq. 12), DPM-Solver++(2M) extrapolates
#   the last two $\hat x_0$ (Lu et al. 2022b, algorithm 2).

# %% [markdown]
# DPM-Solver++(2M) is what many image generators run today, so here it is in full. With
# $h = \lambda_s - \lambda_t$, the length of the step, and $h'$ that of the step before:
#
# $$\hat x = \hat x_0 + \frac{h}{2h'}\big(\hat x_0 - \hat x_0'\big), \qquad
# x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \Big(\alpha_s - \alpha_t\frac{\sigma_s}{\sigma_t}\Big)\hat x. \tag{8}$$
#
# The second formula is DDIM's step with $\varepsilon$ eliminated; its bracket is the paper's
# $-\alpha_s(e^{-h} - 1)$. The first one follows the guess to the middle of the step, where it is a
# better average. Nothing lies before the first step, so it is plain DDIM; and so is a step to
# $\sigma_s = 0$, where $h$ is infinite.


# %%
def dpm_solver_pp_2m(denoise, x, times):
    """Equation (8) along falling times; one evaluation per step."""
    before = h_before = None
    for t, s in pairwise(times):
        alpha_t, sigma_t, alpha_s, sigma_s = p.alpha(t), p.sigma(t), p.alpha(s), p.sigma(s)
        h = (p.log_snr(s) - p.log_snr(t)) / 2
        x0 = ahead = denoise(x, t)
        if before is not None and s > 0:
            ahead = x0 + h / (2 * h_before) * (x0 - before)
        x = sigma_s / sigma_t * x + (alpha_s - alpha_t * sigma_s / sigma_t) * ahead
        before, h_before = x0, h
    return x


ours = dpm_solver_pp_2m(denoise, noise, grid)
library, _ = sampling.sample(samplers.dpm_solver_pp_2m(p), gm.denoise, noise, grid, key)
np.testing.assert_allclose(ours, library, atol=2e-3)  # as for DDIM
one = [
    walk(make(p), oracle.denoise, place, 17, key, BEGIN, END)
    for make in (samplers.ddim, lambda p: samplers.dpm_solver(p, 1))
]
np.testing.assert_allclose(*one, atol=1e-5)
print("2M equals the library's; DPM-Solver-1 equals DDIM to 1e-5")

# %% [markdown]
# ### Count evaluations, not steps
#
# Steps are free; evaluations of the network cost. A solver with two evaluations per step must be
# compared with one that takes twice as many steps. Let a counting denoiser say what a walk of 20 steps
# from $t = 0.9$ to the data costs.

# %%
SOLVERS = {
    "DDIM": samplers.ddim,
    "Heun": samplers.heun,
    "2M": samplers.dpm_solver_pp_2m,
    "DPM-2": partial(samplers.dpm_solver, order=2),
    "DPM-3": partial(samplers.dpm_solver, order=3),
    "PNDM": samplers.pndm,
}


def counting(make):
    """The solver on our example, compiled once: (start, steps, end) -> result, evaluations."""
    seen = []

    def counted(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return oracle.denoise(x, t)

    solve = jax.jit(lambda x, n, end: walk(make(p), counted, x, n, key, BEGIN, end))

    def run(x, n, end):
        seen.clear()
        result = np.float64(solve(x, n, end))[:, 0]
        jax.effects_barrier()  # until all counts have arrived
        return result, len(seen)

    return run


# %%
share = np.linspace(0.03, 0.97, 41)
x_begin, x_end = jnp.asarray(at_share(share, BEGIN)[:, None], jnp.float32), at_share(share, END)
solve = {name: counting(make) for name, make in SOLVERS.items()}
cost = {name: solve[name](x_begin, 20, 0.0)[1] for name in SOLVERS}
print("evaluations of 20 steps to the data:", cost)
assert list(cost.values()) == [20, 39, 20, 39, 58, 29]

# %% [markdown]
# Heun and DPM-Solver save one or two in the step to $t = 0$, which returns the denoiser's guess. PNDM
# pays $3 \times 3$ extra for its first three steps, where there is no past to remember.
#
# ### The order plot
#
# A method of order $k$ has an error like $n^{-k}$: on log-log axes, a line of slope $-k$. We solve (5) from
# $t = 0.9$ to $0.2$ and compare with the exact answer (6).
#
# **Predict, then run.** At 24 evaluations, which solver is best, and by what factor does it beat DDIM?

# %%
STEPS = {name: (12, 18, 24, 36, 48) for name in SOLVERS} | {"DPM-3": (4, 6, 8, 12)}
errors, costs, orders = {}, {}, {}
for name in SOLVERS:
    runs = [solve[name](x_begin, n, END) for n in STEPS[name]]
    errors[name], costs[name] = [rms(x - x_end) for x, _ in runs], [count for _, count in runs]
    orders[name] = -np.polyfit(np.log(STEPS[name]), np.log(errors[name]), 1)[0]
    print(f"{name:6} order {orders[name]:.2f}, error {errors[name][-1]:.1e} "
          f"at {costs[name][-1]} evaluations")  # fmt: skip

# %%
fig, ax = plt.subplots(figsize=(6.5, 4.2))
for (name, values), color, dash in zip(errors.items(), plots.SERIES, plots.DASHES, strict=True):
    ax.loglog(costs[name], values, "o", ls=dash, ms=4, color=color)
    above = 1.25 if name in ("Heun", "DDIM") else 0.8
    ax.text(costs[name][-1] * 1.05, values[-1] * above, f"{name} ({orders[name]:.1f})",
            color=color, va="center", size="small")  # fmt: skip
ax.set(xlabel="evaluations of the denoiser", ylabel="rms error against the exact flow",
       xlim=(10, 160), ylim=(3e-5, 0.06), title="fitted order in brackets")  # fmt: skip
ax.set_xticks([12, 24, 48, 96], [12, 24, 48, 96])
ax.minorticks_off()
plt.show()

# %%
assert 0.9 < orders["DDIM"] < 1.1
assert all(1.8 < orders[name] < 2.3 for name in ("Heun", "2M", "DPM-2"))
assert orders["DPM-3"] > 2.6
assert orders["PNDM"] > 1.8  # the paper proves order 2; at first it does better
at_24 = {name: np.exp(np.interp(np.log(24), np.log(costs[name]), np.log(errors[name])))
         for name in SOLVERS}  # fmt: skip
print("error at 24 evaluations:", {name: f"{e:.1e}" for name, e in at_24.items()})
# Exact arithmetic would give the same on every machine; float32 adds about 1e-6.
assert at_24["DPM-3"] < at_24["2M"] / 3 and at_24["2M"] < at_24["DDIM"] / 10
assert at_24["2M"] < at_24["Heun"] / 3

# %% [markdown]
# Look at the vertical gaps between lines of equal slope. Heun, DPM-2 and 2M are all of order 2, but at
# equal *cost* 2M is several times better than Heun: it pays for one evaluation per step. And
# DPM-Solver-3 beats everybody, on a smooth road with an exact denoiser. Is it the best for pictures?
#
# ## 10 · The same race on a network
#
# Ten MNIST digits, from pure noise to the data, with the network. The truth is a walk of 2M with 300
# steps.
#
# **Predict, then run.** With ten evaluations, will Heun, of order 2, beat DDIM, of order 1?

# %%
truth = draw(mnist.model, start, ten, 300, key, make=samplers.dpm_solver_pp_2m)
budgets = (6, 10, 20, 40)
race = {name: [] for name in ("DDIM", "Heun", "2M")}
pictures = {}
for name in race:
    make = None if name == "DDIM" else SOLVERS[name]
    for budget in budgets:
        # n steps of Heun take 2n − 1 evaluations: here one more than the budget, in its favour.
        n = budget // 2 + 1 if name == "Heun" else budget
        images = draw(mnist.model, start, ten, n, key, make=make)
        race[name].append(rms(images - truth))
        pictures[name, budget] = images
rows = [truth, *(pictures[name, 6] for name in race)]
plots.image_grid(rows, ["2M, 300", "DDIM, 6", "Heun, 7", "2M, 6"], "Number of evaluations")
ax = plots.curves(budgets, race, xlabel="evaluations per digit", log="xy",
                  ylabel="rms distance to 300 steps")  # fmt: skip
ax.set_xticks(budgets, budgets)
ax.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
ax.minorticks_off()
plt.show()

# %%
slope = {name: -np.polyfit(np.log(budgets), np.log(race[name]), 1)[0] for name in race}
for name, values in race.items():
    print(f"{name:4}", *(f"{n}: {e:.3f}  " for n, e in zip(budgets, values, strict=True)),
          f"slope {slope[name]:.2f}")  # fmt: skip
# The same ten starts for all. Measured: Heun 1.4 times DDIM's error at 6 and at 10 evaluations;
# 2M 0.6 times at 20 and 0.4 times at 40.
assert race["Heun"][0] > 1.1 * race["DDIM"][0] and race["Heun"][1] > 1.1 * race["DDIM"][1]
assert race["2M"][2] < 0.85 * race["DDIM"][2] and race["2M"][3] < 0.85 * race["DDIM"][3]
assert race["2M"][2] < race["Heun"][2] and race["2M"][3] < race["Heun"][3] < race["DDIM"][3]
assert all(value < 1.8 for value in slope.values())  # measured .8, 1.3 and 1.2

# %% [markdown]
# No. Order is a promise about *small* steps, and with a handful of evaluations no step is small: half
# as many steps, twice as long, cost Heun more than its averaging gains; at 40 it has overtaken DDIM. 2M is
# the best of the three from 20 evaluations on, but its slope is not 2 either. The first step (from no signal) and the last (to no
# noise) are DDIM's, and a network is no exact denoiser.
#
# So: **2M for 10 to 50 evaluations of a network**, higher orders where accuracy counts, such as
# likelihoods (chapter 10). Chapter 11 goes on with better grids and adaptive steps.

# %% [markdown]
# ## 11 · Break it on purpose: noise that nobody sees
#
# Two bugs of equation (3), both seen in published code.
#
# **A.** With $\eta > 0$ the direction term is left at $\sigma_s\hat\varepsilon$ instead of
# $\sqrt{\sigma_s^2 - g^2}\,\hat\varepsilon$. Then noise is *added on top*.
#
# **B.** The list of levels ends at step 1 of the chain instead of at the data: the last step goes to
# $\bar\alpha_1 < 1$. The samples keep a noise of $\sigma_1 = \sqrt{\beta_1}$. (In the `diffusers` library
# this is an option, `set_alpha_to_one=False`.)
#
# **Predict, then run.** The data are $\mathcal N(0.7, 0.5^2)$ and the denoiser is exact. Which bug is found
# by looking at the spread of samples? And what does $\eta = 0$ say about A?


# %%
def bug_a(p, eta):
    """DDIM whose direction term forgets the fresh noise."""

    def step(D, x, t, s, key, state):
        x0 = D(x, t)
        eps = (x - p.alpha(t) * x0) / p.sigma(t)
        g = eta * jnp.sqrt(process.posterior(p, x0, x, t, s)[1])
        fresh = g * jax.random.normal(key, x.shape)
        return p.alpha(s) * x0 + p.sigma(s) * eps + fresh, state

    return samplers.Sampler(lambda x: (), step)


bell = denoiser.gaussian_mixture(p, [[0.7]], [0.5], [1.0])
z = jax.random.normal(jax.random.key(20), (20_000, 1))
spread = {}
for eta in (0.0, 0.3, 0.6, 1.0):
    for name, make in (("right", samplers.ddim), ("A", bug_a)):
        x = walk(make(p, eta), bell.denoise, z, 400, jax.random.key(21))
        spread[name, eta] = float(x.std())
    print(f"eta = {eta}: std {spread['right', eta]:.3f}, with bug A {spread['A', eta]:.3f}; "
          "data 0.500")  # fmt: skip
    # 20,000 draws: a standard error of 0.5 %; 400 steps are about 1 % off themselves.
    assert abs(spread["right", eta] / 0.5 - 1) < 0.03
assert abs(spread["A", 0.0] - spread["right", 0.0]) < 1e-3  # rounding
assert spread["A", 1.0] > 1.5 * 0.5 and spread["A", 0.3] > 1.1 * 0.5

# %% [markdown]
# A is loud at $\eta = 1$ and silent at $\eta = 0$: tests that only run the default never find it. Its
# test is Pythagoras, $c^2 + g^2 = \sigma_s^2$, at some $\eta$ in between.
#
# Now B. We compute what is left on data that are a single point, so that *every* spread is the
# sampler's, for two common schedules; then we look at MNIST, where the walk stops at $t = 0.001$ and,
# one step too early, at $t = 0.05$.

# %%
for name, betas in (("linear", process.linear_betas(1000)),
                    ("scaled linear", process.scaled_linear_betas(1000))):  # fmt: skip
    chain = process.from_betas(betas)
    point = denoiser.gaussian_mixture(chain, [[0.7]], [0.0], [1.0])
    for end in (0.0, 1 / 1000):
        x = walk(samplers.ddim(chain), point.denoise, z, 50, key, end=end)
        print(f"{name}, last step to t = {end}: residual noise {float(x.std()):.4f}")
    # A point's noise never changes under DDIM: what is left is σ(1/T) times that of the start,
    # of 20,000 draws, whose standard error is 0.5 %.
    assert abs(float(x.std()) / np.sqrt(betas[0]) - 1) < 0.03

# %%
stops = {end: draw(mnist.model, start, ten, 20, key, end=end) for end in (0.0, 0.001, 0.05)}
paper = np.asarray(stops[0.0]) < -0.98  # where a finished digit is blank
plots.image_grid(list(stops.values()), [f"t = {end}" for end in stops])
plt.show()
for end in (0.001, 0.05):
    grain = float(np.asarray(stops[end] - stops[0.0])[paper].std())
    print(f"to t = {end}: grain on {paper.sum()} blank pixels {grain:.4f} "
          f"({127.5 * grain:.1f} grey levels); sigma there {float(p.sigma(end)):.4f}")  # fmt: skip
    # The predicted noise has a standard deviation near 1; the guesses differ a little too.
    assert 0.6 < grain / float(p.sigma(end)) < 1.5

# %% [markdown]
# At $t = 0.05$ the grain can be seen. At the real bug's level it cannot: the pictures look perfect, and
# every pixel is off by about a grey level; with the scaled linear schedule, by four. Whatever is done with
# such samples afterwards, measuring, compressing, training on them, starts from noise that nobody
# ordered.
#
# **The lesson.** Run a sampler on a point mass. Its result must be the point, exactly. In this course
# $t = 0$ *is* the data, so the bug cannot be written by accident; elsewhere, look at the last two numbers
# of the grid.

# %% [markdown]
# ## 12 · What to inspect
#
# How many steps does *your* model need? There is no exact flow to compare with. But there is
# **step doubling**: draw with $n$ and with $2n$ steps from the same noise, with $\eta = 0$. For a method
# of order $k$ the error at $n$ steps is about
#
# $$\text{error}(n) \approx \frac{2^k}{2^k - 1}\,\big\|x^{(n)} - x^{(2n)}\big\|: \tag{9}$$
#
# for DDIM, twice the difference that you can see. (Richardson's old trick.) Does it hold for the network?

# %%
doubled = {n: draw(mnist.model, start, ten, n, key) for n in (5, 10, 20, 40, 80)}
print("steps   2 × difference to twice as many   distance to 300 steps of 2M")
for n in (5, 10, 20, 40):
    guess, error_n = 2 * rms(doubled[n] - doubled[2 * n]), rms(doubled[n] - truth)
    print(f"{n:5} {guess:20.3f} {error_n:30.3f}")
    # The error doesn't fall exactly like 1/n, and its direction turns a little.
    assert 0.6 < guess / error_n < 1.7

# %% [markdown]
# The estimate is good enough to choose $n$ by: stop doubling when the difference is below what you
# can see, or below what your metric resolves. A checklist:
#
# 1. the grid: starts at $t = 1$, ends at exactly 0, and falls strictly;
# 2. *evaluations*, counted by a counter, beside every comparison;
# 3. step doubling with the same noise; if the picture *changes*, $n$ is too small or $\eta$ isn't 0;
# 4. $\eta = 1$ and a value in between against exact moments;
# 5. inverted noise: mean 0 and standard deviation near 1, else expect trouble in editing;
# 6. a distance with its sample count and floor: accuracy saw nothing in section 5.

# %% [markdown]
# ## Recap
#
# 1. Training fixes the marginals, not the paths. DDIM is a family of samplers for one network;
#    $\eta = 1$ is DDPM on any grid, $\eta = 0$ adds no noise.
# 2. Without noise the sampler is Euler's method for the probability flow: smooth paths, few steps, and
#    a start that is a code for the picture.
# 3. The code can be computed (inversion; refine once) and walked through (on the arc, not the line).
# 4. Higher order pays on smooth roads and small steps. Compare at equal evaluations; 2M is the one
#    to try first.
# 5. Check $c^2 + g^2 = \sigma_s^2$, and that the last step ends at the data.

# %% [markdown]
# **Exercises:** [06 · exercises](../exercises/06_ddim.ipynb).
#
# ## Try it yourself
#
# 1. Give `sampling.sample` the grid `sampling.quadratic(10)` instead of `uniform(10)` on the 8×8
#    digits. Which has the smaller distance to 300 steps, and which the smaller Fréchet distance?
# 2. Invert a real digit with its label, and draw it again with *another* label. What survives?
# 3. In section 9, move `END` to 0.02. Which solver loses most of its order, and why? (The modes
#    part late.)
# 4. Repeat section 5 with `temperature=0.9` in `samplers.ddim(p, 1.0, …)`. Is it better or worse than a
#    smaller $\eta$?

# %% [markdown]
# ## Further reading
#
# - J. Song, C. Meng, S. Ermon. *Denoising Diffusion Implicit Models.* ICLR 2021.
#   [arXiv:2010.02502](https://arxiv.org/abs/2010.02502). Sections 3 to 5.
# - C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu. *DPM-Solver: A Fast ODE Solver for Diffusion
#   Probabilistic Model Sampling in Around 10 Steps.* NeurIPS 2022 (2022a).
#   [arXiv:2206.00927](https://arxiv.org/abs/2206.00927).
# - The same. *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models.* 2022
#   (2022b). [arXiv:2211.01095](https://arxiv.org/abs/2211.01095).
# - L. Liu, Y. Ren, Z. Lin, Z. Zhao. *Pseudo Numerical Methods for Diffusion Models on Manifolds.*
#   ICLR 2022. [arXiv:2202.09778](https://arxiv.org/abs/2202.09778).
# - T. Karras, M. Aittala, T. Aila, S. Laine. *Elucidating the Design Space of Diffusion-Based
#   Generative Models.* NeurIPS 2022. [arXiv:2206.00364](https://arxiv.org/abs/2206.00364).

# %% [markdown]
# - Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon, B. Poole. *Score-Based Generative
#   Modeling through Stochastic Differential Equations.* ICLR 2021.
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456).
# - R. Mokady, A. Hertz, K. Aberman, Y. Pritch, D. Cohen-Or. *Null-text Inversion for Editing Real Images
#   using Guided Diffusion Models.* CVPR 2023. [arXiv:2211.09794](https://arxiv.org/abs/2211.09794).
# - Z. Pan, R. Gherardi, X. Xie, S. Huang. *Effective Real Image Editing with Accelerated Iterative
#   Diffusion Inversion.* ICCV 2023. [arXiv:2309.04907](https://arxiv.org/abs/2309.04907).
# - K. Shoemake. *Animating Rotation with Quaternion Curves.* SIGGRAPH 1985.
# - E. Hairer, S. P. Nørsett, G. Wanner. *Solving Ordinary Differential Equations I.* Springer, 1993.
#   Chapters II and III: one-step and multistep methods.
#
# **New words:** marginal, non-Markovian process, $\eta$, deterministic sampler, consistency, probability
# flow, Euler's method, order of a method, inversion, fixed point, slerp, single-step and multistep
# solver, evaluation count, residual noise, step doubling.
