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
# **The question.** DDPM evaluates the network a thousand times for one picture. Are so many evaluations
# necessary?
#
# At the end of this chapter you will be able to
#
# - derive DDIM: a whole family of samplers for one trained network, with a number $\eta$ that leads from
#   DDPM to no noise at all;
# - say when 20 steps are enough, and measure it;
# - turn a picture into the noise that draws it, and interpolate between two noises correctly;
# - write a second-order solver, measure its order, and count evaluations honestly;
# - find the noise that a wrong last step leaves in every sample.
#
# **You need** chapters 01 to 03. **Time**: about 85 minutes of reading. The cells run for one and a half
# to two minutes on two CPU cores.

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

from diffusion_course import data, denoiser, editing, process, samplers, sampling, weights
from diffusion_course.data import toy2d
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.notebook import plots, widgets
from diffusion_course.weights import features

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# A network trained on MNIST draws ten digits, three times. Two of the rows cost a thousand evaluations
# per digit, and one row costs twenty. All rows use the same weights and start from the same noise.
#
# The loop below is `sampling.sample` on a uniform grid, with one difference. The number of steps is an
# argument of the compiled program, so 20 and 1000 steps share one program.


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
# **Predict, then run.** Which of the three rows took only twenty steps?

# %% alt="Ten digits in three rows, A, B and C. A and B show nearly the same digits; those of C are as clear, but others."
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

# %% tags=["claims"]
# @title Checked: B repeats A, and C is a different picture
# Measured .06 and .66: B is the same picture, C is another one of the same class.
assert rms(twenty - thousand) < 0.15 < 0.3 < rms(ddpm - thousand)

# %% [markdown]
# Row B took twenty steps. It repeats A almost pixel for pixel, at a fiftieth of the price. Row C is DDPM,
# the sampler of chapter 03. It draws fresh noise a thousand times, and it ends at other pictures of the
# same classes. So A and B must follow a path that is fixed once the start is known. Where does this path
# come from?

# %% [markdown]
# ## 2 · One network, many processes
#
# Look again at what training used: pairs of $x_0$ and $x_t = \alpha_t x_0 + \sigma_t\varepsilon$. Only
# the **marginals** $q(x_t \mid x_0)$ enter the loss. Training never asked how $x_t$ and $x_s$ of *one* path
# belong together. So we may choose this.
#
# Given $x_0$, if we know $x_t$ then we also know its noise, $\varepsilon = (x_t - \alpha_t x_0)/\sigma_t$.
# We let the noise at $s < t$ be a mix of this old noise and fresh noise $z$. For example, with
# $c = 0.6\,\sigma_s$ we keep a part of the old noise, and $g = 0.8\,\sigma_s$ of fresh noise fills up the
# rest:
#
# $$x_s = \alpha_s x_0 + c\,\varepsilon + g\,z, \qquad c^2 + g^2 = \sigma_s^2. \tag{1}$$
#
# Variances of independent noises add up, so the marginal at $s$ is right for **every** $g$ from 0 to
# $\sigma_s$ (Song, Meng & Ermon 2021, eq. 7; their $\sigma_t$ is our $g$). Except for one $g$, that of DDPM, these
# processes are no Markov chains (**non-Markovian**) when we read them forwards in time: $x_t$ depends on $x_s$ and
# on $x_0$. This does no harm, because we only go backwards.

# %% [markdown]
# The paper measures the fresh noise in units of DDPM's own. Let $\tilde\beta$ be the variance of the
# posterior $q(x_s \mid x_t, x_0)$ of chapter 03. Then
#
# $$g = \eta\,\sqrt{\tilde\beta}, \qquad
# \tilde\beta = \sigma_s^2\Big(1 - \frac{\mathrm{SNR}_t}{\mathrm{SNR}_s}\Big),
# \qquad \mathrm{SNR} = \frac{\alpha^2}{\sigma^2} \tag{2}$$
#
# (eq. 16, for any two times $s < t$). At $\eta = 1$ this *is* DDPM. Its posterior is linear in $x_0$ and
# $x_t$, has this variance and keeps the marginal, and (1) allows only one such process. At $\eta = 0$ no
# noise is added at all.
#
# **Predict, then run.** We draw 50,000 pairs $(x_t, x_s)$ for one fixed $x_0$, with three values of
# $\eta$. What will differ: the two histograms, or the cloud?

# %% alt="The state at s against the noise in the state at t, for three values of eta. At 0 the points lie on a line, at 0.5 they form a narrow cloud, at 1 a wide one. Along both axes they spread alike in all three."
t, s, x0 = 0.6, 0.4, 0.8
alpha_s, sigma_s = float(p.alpha(s)), float(p.sigma(s))
snr_ratio = float(jnp.exp(p.log_snr(t) - p.log_snr(s)))
eps, fresh = np.random.default_rng(0).standard_normal((2, 50_000))
mixed = {}
fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), sharex=True, sharey=True)
for ax, eta in zip(axes, (0.0, 0.5, 1.0), strict=True):
    g = eta * np.sqrt(sigma_s**2 * (1 - snr_ratio))
    mixed[g] = alpha_s * x0 + np.sqrt(sigma_s**2 - g**2) * eps + g * fresh
    ax.plot(eps[:1500], mixed[g][:1500], ".", ms=2, color=plots.DATA, alpha=0.5)
    correlation = np.corrcoef(eps, mixed[g])[0, 1]
    ax.set(title=f"$\\eta$ = {eta}: correlation {correlation:.2f}", xlabel="noise in $x_t$")
axes[0].set_ylabel("$x_s$")
plt.show()

# %% tags=["claims"]
# @title Checked: mean and spread are the same for each η, and the correlation follows (1)
# Standard errors of 50,000 draws: σ/224 of a mean, σ/316 of a standard deviation.
for g, x_s in mixed.items():
    assert abs(x_s.mean() - alpha_s * x0) < 4 * sigma_s / 224
    assert abs(x_s.std() - sigma_s) < 4 * sigma_s / 316
    assert abs(np.corrcoef(eps, x_s)[0, 1] - np.sqrt(1 - g**2 / sigma_s**2)) < 0.02

# %% [markdown]
# The distributions along both axes are the same in all three panels. Only the clouds differ. In training the
# network sees single points, and never pairs. So it cannot tell these processes apart.
#
# ## 3 · DDIM, written out
#
# When we sample, $x_0$ is unknown. As in DDPM, we put the network's guess in its place. The noise is then
# what remains of $x_t$ without the guess:
#
# $$x_s = \alpha_s\,\hat x_0 + \sqrt{\sigma_s^2 - \eta^2\tilde\beta}\;\hat\varepsilon
# + \eta\sqrt{\tilde\beta}\;z, \qquad
# \hat\varepsilon = \frac{x_t - \alpha_t\hat x_0}{\sigma_t} \tag{3}$$
#
# (Song et al. 2021, eq. 12, which names the three parts: predicted $x_0$, "direction pointing to $x_t$", and
# random noise). This is the chapter's algorithm. Here it is as a loop over any falling list of times.


# %% tags=["comparison"]
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
    theirs, _ = sampling.sample(samplers.ddim(p, eta), gm.denoise, noise, grid, key)
    print(f"eta = {eta}: largest difference to the library {jnp.abs(ours - theirs).max():.1e}")
    # 30 steps of float32; points between two clouds amplify rounding.
    np.testing.assert_allclose(ours, theirs, atol=2e-3)

# %% [markdown]
# With $\eta = 1$ it must be DDPM on *any* grid: on a coarse one, a squared one, or a random one. A formula
# that takes $\beta_n$ from the training chain would fail here, because a long step adds more noise than a
# short one. We compare with `samplers.ddpm`, using the same noise. We also compare the variance with Bayes'
# rule, where precisions add up.

# %% tags=["comparison"]
uneven = np.sort(np.random.default_rng(1).uniform(0.02, 0.98, 10))[::-1]


@jax.jit
def both(times):
    makers = (samplers.ddpm, lambda p: samplers.ddim(p, eta=1.0))
    return [sampling.sample(make(p), gm.denoise, noise, times, key)[0] for make in makers]


for times in (sampling.uniform(9), sampling.quadratic(9), uneven):
    np.testing.assert_allclose(*both(jnp.float32(times)), atol=2e-3)
for pair in pairwise(uneven):
    (a_t, v_t), (a_s, v_s) = ((float(p.alpha(u)), float(p.sigma(u)) ** 2) for u in pair)
    scale = a_t / a_s
    bayes = 1 / (1 / v_s + scale**2 / (v_t - scale**2 * v_s))  # prior and likelihood of x_s
    from_paper = v_s * (1 - (a_t**2 / v_t) / (a_s**2 / v_s))
    np.testing.assert_allclose(from_paper, bayes, rtol=1e-3)  # α and σ come in float32
print("eta = 1 is DDPM on three grids of 9 steps")

# %% [markdown]
# ## 4 · Explore: η and the number of steps
#
# On the left are ten MNIST digits, always from the same ten noises. On the right is the exact denoiser in the
# plane: the ends of forty paths (orange) over the data (blue), and six of the paths (grey). Choose $\eta$ in
# the menu, and the number of steps with the slider.
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
# Here is the same without a kernel. In the first figure, the six digits on the left have $\eta = 0$, and the
# six on the right have $\eta = 1$. Below are the paths.

# %% alt="Two figures. Digits after 2 to 100 steps: with eta = 0 each stays the same from 5 steps on, and with eta = 1 it changes with the number of steps. Paths in the plane, with 10 and 100 steps: smooth at eta = 0, and ever more jagged up to eta = 1. All end in the clouds."
shown = (2, 5, 10, 20, 100)
left_and_right = [np.concatenate([digits[0.0, n][:6], digits[1.0, n][:6]]) for n in shown]
titles = [f"{n} steps" for n in shown]
plots.image_grid(left_and_right, titles, "η = 0 (left six), η = 1 (right six)")
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
opposite = [paths(x, jax.random.key(6), 1.0, 20)[20] for x in (noise[:40], -noise[:40])]
print(f"eta = 1, opposite starts: the ends differ by {rms(opposite[0] - opposite[1]):.0e}")

# %% tags=["claims"]
# @title Checked: η = 0 keeps the digit, η = 1 forgets its start
assert same[0.0] < 0.12 < 0.25 < same[1.0]  # measured .05 and .5, on ten digits
to_100 = [rms(digits[0.0, n] - digits[0.0, 100]) for n in counts]
assert np.all(np.diff(to_100) < 0)  # more steps draw it better
assert length[1.0] > 3 * length[0.0]  # forty paths
np.testing.assert_allclose(*opposite, atol=1e-4)  # the same fresh noise in both

# %% [markdown]
# With $\eta = 0$ the paths are smooth, and few straight pieces can follow a smooth path. So the same start
# gives the same digit for any number of steps. More steps draw it better, and from 20 on one hardly sees a
# change. The paper calls this **consistency** (section 5.2). The start is a code for the picture.
#
# With $\eta = 1$ a path is a random walk. It is many times as long (pieces of it leave the frame), and each
# number of steps ends in a different drawing. With this schedule not even the start matters. At $t = 1$ no
# signal is left, and by (2) the first step replaces *all* noise by fresh noise. So opposite starts end in the
# same point.

# %% [markdown]
# ## 5 · Twenty steps against a thousand
#
# It is not enough to look at the pictures, so we measure. We take the 8×8 digits, because their network is
# small enough for a thousand steps. The measure is the one of chapter 03: the Fréchet distance between the
# judge's features of samples and those of the training set. We also give this distance for unseen real
# digits. All counts are 360, because there are 360 unseen digits, and the distance depends on the count.
#
# **Predict, then run.** Rank these three: DDIM with 20 steps, $\eta = 1$ with 10 steps, DDPM with 1000 steps.

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
    for eta in (0.0, 1.0)
    for n in few
}
floor = metrics.frechet(judge(expert.model, unseen.x)[1], real)
for (eta, n), (distance, accuracy) in quality.items():
    print(f"eta = {eta}, {n:4} steps: Fréchet {distance:.2f}, recognised {accuracy:.1%} of {N}")
print(f"unseen real digits: Fréchet {floor:.2f}")

# %% [markdown]
# These are the numbers of one seed, and another seed gives other numbers. So the next cell holds a *recorded*
# table: the same measurement with eight seeds, also with 200 and 1,000 steps of both samplers. The script is
# `benchmarks/many_steps.py`. It took twenty minutes, and so we do not repeat all of it here. In the rows of 5 to
# 50 steps, the first number must agree with what we have just measured. The figure shows the mean of the eight,
# and bars of one standard deviation.

# %%
# Recorded on 2026-11-26 with two CPU cores: Fréchet distances of eight seeds, 360 samples each.
RECORDED = {
    (0.0, 5): (1.627, 1.518, 1.653, 1.664, 1.528, 1.543, 1.547, 1.561),
    (0.0, 10): (1.134, 1.032, 1.077, 1.093, 1.000, 1.015, 0.962, 1.071),
    (0.0, 20): (0.988, 0.881, 0.861, 0.891, 0.828, 0.821, 0.760, 0.898),
    (0.0, 50): (0.944, 0.823, 0.764, 0.800, 0.759, 0.734, 0.673, 0.820),
    (0.0, 200): (0.937, 0.805, 0.726, 0.766, 0.740, 0.702, 0.642, 0.794),
    (0.0, 1000): (0.937, 0.802, 0.718, 0.759, 0.737, 0.696, 0.636, 0.790),
    (1.0, 5): (1.854, 1.976, 2.230, 2.273, 2.208, 2.010, 2.218, 2.144),
    (1.0, 10): (1.226, 1.513, 1.304, 1.368, 1.214, 1.165, 1.212, 1.263),
    (1.0, 20): (1.071, 1.024, 1.036, 1.292, 0.915, 0.881, 0.936, 1.132),
    (1.0, 50): (1.056, 0.894, 0.840, 0.892, 0.912, 0.975, 1.004, 0.818),
    (1.0, 200): (1.238, 0.858, 0.944, 0.768, 0.851, 0.815, 0.793, 0.740),
    (1.0, 1000): (0.805, 0.752, 0.674, 1.022, 0.733, 0.858, 0.669, 0.777),
}  # fmt: skip
WEIGHTS = "c66bd0b5"  # the first digits of the SHA-256 of the network's file

# %% alt="The Fréchet distance against the evaluations, from 5 to 1,000, with bars for the scatter of eight seeds. Both lines fall and flatten above the line of unseen real digits. The line of eta = 0 is the lower one, clearly so at 5 and 10 evaluations."
recorded = {kind: np.array(values) for kind, values in RECORDED.items()}
grid_of_steps = sorted({n for _, n in recorded})
fig, ax = plt.subplots(figsize=(6, 3.4))
ax.set(ylim=(0, 2.5), xlim=(4.5, 1300))
series = {f"η = {eta:g}": [recorded[eta, n].mean() for n in grid_of_steps] for eta in (0.0, 1.0)}
plots.curves(grid_of_steps, series, ax=ax, log="x", xlabel="evaluations per digit",
             ylabel="Fréchet distance", label_at=0.1)  # fmt: skip
for (eta, n), values in recorded.items():
    ax.errorbar(n, values.mean(), values.std(), color=plots.SERIES[int(eta)], capsize=3, lw=1)
ax.axhline(floor, color=plots.TRUTH, lw=1)
ax.text(5, floor - 0.2, "unseen real digits", size="small")
ax.set_xticks(grid_of_steps, grid_of_steps)
ax.minorticks_off()
plt.show()
for n in (20, 50, 200, 1000):
    none, full = recorded[0.0, n], recorded[1.0, n]
    print(f"{n:4} steps: η = 0 {none.mean():.2f} ± {none.std() / 8**0.5:.2f}, "
          f"η = 1 {full.mean():.2f} ± {full.std() / 8**0.5:.2f} (standard errors, 8 seeds)")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the record is right; 20 steps come close to 1,000; η = 1 is worse with few steps
assert small.card.sha256.startswith(WEIGHTS)
for kind, (distance, accuracy) in quality.items():
    # On another machine rounding differs, and a random walk amplifies it in a few samples.
    assert abs(distance / recorded[kind][0] - 1) < 0.05 and accuracy > 0.97
mean = {kind: values.mean() for kind, values in recorded.items()}
best = mean[1.0, 1000]
assert mean[0.0, 5] > 1.8 * best  # measured 2.0
assert 1.0 < mean[0.0, 20] / best < 1.2 and 0.9 < mean[0.0, 50] / best < 1.1  # 1.10 and 1.01
# Both samplers have the same starts, so we compare seed by seed: noise costs .53, .24, .17 and .13.
extra = {n: recorded[1.0, n] - recorded[0.0, n] for n in grid_of_steps}
in_errors = {n: e.mean() / (e.std(ddof=1) / 8**0.5) for n, e in extra.items()}
assert all(in_errors[n] > 3 for n in few) and in_errors[200] > 0 and abs(in_errors[1000]) < 2
accuracies = [accuracy for _, accuracy in quality.values()]
assert np.ptp(accuracies) < 0.02  # it sees none of this
distances = [distance for distance, _ in quality.values()]
assert max(distances) > 1.8 * min(distances)  # measured .94 to 1.85

# %% [markdown]
# So the rule "20 to 50 steps instead of 1000" holds. Over eight seeds, twenty steps of DDIM have a distance that
# is a tenth larger than that of DDPM's thousand steps. Fifty steps have the same, within the errors. (With the
# first seed alone we would have said "not yet": its start noise happens to be a bad one for $\eta = 0$.) The
# accuracy shows no difference between 5 and 50 steps, while the distance falls to a half.

# %% [markdown]
# With *few* steps, $\eta = 1$ is worse. Section 8 shows one reason, at 50 steps: its variance $\tilde\beta$ is right
# for a *known* $x_0$, and for a long step it is too small, so that variety is lost. (A little more noise helps
# there.) With more steps this price becomes smaller. At 1,000 steps we cannot tell the two
# apart. Karras et al. (2022, section 4) report networks for which a well-chosen amount of noise *helps* with
# many steps, because it lets the sampler forget earlier errors. On this network we do not see it, with 200 or
# with 1,000 steps. So the best $\eta$ depends on the network, and on how many evaluations you can afford.

# %% [markdown]
# ## 6 · DDIM follows a differential equation
#
# We take (3) with $\eta = 0$, divide it by $\alpha_s$, and use
# $\hat x_0 = (x_t - \sigma_t\hat\varepsilon)/\alpha_t$:
#
# $$\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \Big(\frac{\sigma_s}{\alpha_s} -
# \frac{\sigma_t}{\alpha_t}\Big)\,\hat\varepsilon(x_t, t). \tag{4}$$
#
# In words: new place = old place + length of the step × slope. This is **Euler's method** for a differential
# equation in the coordinates $\bar x = x/\alpha$ and $\bar\sigma = \sigma/\alpha$:
#
# $$\frac{d\bar x}{d\bar\sigma} = \hat\varepsilon \tag{5}$$
#
# (Song et al. 2021, eq. 13 and 14). With an exact denoiser, (5) is the **probability flow** (Song,
# Sohl-Dickstein et al. 2021; chapter 10). It carries the noisy distribution of each time exactly into that of
# any other time.
#
# For single numbers we can therefore compute the solution. Paths of (5) cannot cross. So if a point starts
# with 30 % of all points below it, it also ends with 30 % below it. With $F_t$ the cumulative distribution at
# $t$,
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


# %% alt="Exact paths as lines, and DDIM with four steps as dots, which drift away from the outer lines. In the coordinates of equation (5) each step is a straight piece that misses the bend of the exact path."
BEGIN, END = 0.9, 0.2
clock, share = np.linspace(BEGIN, END, 71), np.linspace(0.03, 0.97, 13)
exact = np.stack([at_share(share, t) for t in clock])
alphas, sigmas = levels64(clock)
nodes = np.linspace(BEGIN, END, 5).astype(np.float32)  # four steps
place = jnp.asarray(exact[:1].T, jnp.float32)
_, stops = sampling.sample(samplers.ddim(p), oracle.denoise, place, nodes, jax.random.key(0))
stops = np.concatenate([place.T, stops[..., 0]])
alpha_nodes, sigma_nodes = levels64(nodes)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
left.plot(clock, exact, color=plots.TRUTH, lw=0.8)
left.plot(nodes, stops[:, ::3], "o", ms=4, color=plots.PREDICTION)
left.set(xlabel="time $t$", ylabel="$x_t$", xlim=(BEGIN + 0.02, END - 0.02))
right.plot(sigmas / alphas, exact / alphas[:, None], color=plots.TRUTH, lw=0.8)
along_nodes = sigma_nodes / alpha_nodes, (stops / alpha_nodes[:, None])[:, ::3]
right.plot(*along_nodes, "o-", ms=4, lw=1, color=plots.PREDICTION)
right.set(xlabel=r"$\bar\sigma = \sigma/\alpha$", ylabel=r"$\bar x = x/\alpha$",
          xlim=(2.3, 0.2), ylim=(-4.2, 4.2))  # fmt: skip
left.set_title("exact paths (lines), DDIM with 4 steps (dots)")
right.set_title("the last three steps in the coordinates of (5)")
plt.show()

# %% [markdown]
# In the right panel each orange piece is straight. It has the direction of the exact path *through its
# beginning*, and it misses the bend that follows. With more steps the error shrinks in proportion to the
# length of a step: DDIM is a method of **order one**. Section 9 does better. Before that, sections 7 and 8
# use two benefits of a path without noise.

# %% [markdown]
# ## 7 · Inversion: from a picture to its noise
#
# A path can be followed in both directions. Which noise would DDIM have turned into *this* digit? To find
# it, we solve (3) for $x_t$. But its $\hat\varepsilon$ belongs to $x_t$, and $x_t$ is what we want to know.
# DDIM inversion evaluates the network at the point where we stand, $x_s$, as if it were $x_t$, with the
# time $t$ (Song et al. 2021, section 5.4). We can also repeat this: we insert the result, evaluate again,
# and so on. If the result stops changing, it is the *exact* inverse of the step (a fixed point; Pan et al.
# 2023).
#
# One detail matters at both ends of the time axis. If we keep $\hat\varepsilon$ fixed, we divide by
# $\alpha$. If we keep $\hat x_0$ fixed, we divide by $\sigma$. We always choose the one with the larger
# divisor.


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


# %% tags=["comparison"]
x, y = jnp.asarray(unseen.x[:40]), jnp.asarray(unseen.labels[:40])  # real, never trained on
top, again = round_trip(small.model, x, y, 20, 1)
D = denoiser.denoiser(small.model, p, "v", y)
up_by_library, _ = jax.jit(
    lambda x: editing.invert(p, D, x, sampling.uniform(20), refinements=1)
)(x)  # fmt: skip
print(f"largest difference to the library {jnp.abs(top - up_by_library).max():.1e}")
np.testing.assert_allclose(top, up_by_library, atol=2e-3)  # 20 steps of float32, a network

# %% alt="Twelve real digits, the noise that belongs to them, and the digits after the way down again, without and with a refinement. All three rows of digits look alike."
_, again_unrefined = round_trip(small.model, x, y, 20, 0)
plots.image_grid(
    [x[:12], top[:12] / 2, again_unrefined[:12], again[:12]],
    ["real digits", "half their noise", "again", "again, refined once"],
    "Up and down again with 20 steps",
)
plt.show()

# %% [markdown]
# **Predict, then run.** Go up and down with more and more steps. How fast does the error fall? And what is an
# extra evaluation better used for: a further step, or a refinement?

# %% alt="The error of the round trip, both axes logarithmic, for 0, 1 and 5 refinements. Against the steps, more refinements are always better. At equal evaluations one refinement is the best from about 20 evaluations on."
ladder, refinements = (5, 10, 20, 50, 100), (0, 1, 5)
trips = {
    (n, r): round_trip(small.model, x, y, n, r)
    for r in refinements for n in ladder if n * (r + 1) <= 300  # evaluations on the way up
}  # fmt: skip
error = {k: rms(down - x) for k, (_, down) in trips.items()}
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
for r, color, dash in zip(refinements, plots.SERIES, plots.DASHES, strict=False):
    climbed = [n for n in ladder if (n, r) in error]
    values = [error[n, r] for n in climbed]
    for ax, evaluations in zip(axes, (climbed, [n * (r + 1) for n in climbed]), strict=True):
        ax.loglog(evaluations, values, "o", ls=dash, ms=3, color=color)
        ax.annotate(f" {r}", (evaluations[-1], values[-1]), color=color, va="center")
axes[0].set(xlabel="steps up (and down)", ylabel="rms error of the round trip",
            title="lines: number of refinements")  # fmt: skip
axes[1].set(xlabel="evaluations on the way up", title="the same at equal evaluations")
plt.show()

# %%
order = -np.polyfit(np.log(ladder[1:]), np.log([error[n, 0] for n in ladder[1:]]), 1)[0]
print(f"without refinement the error falls like steps^-{order:.2f} (40 real digits)")
print(f"100 evaluations: 100 steps {error[100, 0]:.4f}; 50 steps, refined {error[50, 1]:.4f}")

# %% tags=["claims"]
# @title Checked: the error has order one, and one refinement is worth more than twice the steps
assert 0.7 < order < 1.2  # order one; measured .85
assert error[50, 1] < 0.85 * error[100, 0]  # measured 0.6 times
assert error[50, 1] < error[20, 5]  # 100 evaluations against 120
assert all(error[n, 5] < error[n, 0] / 2 for n in ladder[:-1])  # measured a half to a tenth

# %% [markdown]
# Without refinement the error falls with order one, like DDIM itself. One refinement is worth more than twice
# as many steps. Several refinements add little for their price.
#
# The round trip closes, so have we found *the* noise? For once we can check this. We take digits that the
# network drew itself, from a start that we kept.
#
# **Predict, then run.** We invert these digits. How far is the noise that we find from the start that drew
# them? (Two independent noises are $\sqrt 2$ apart, in rms.)

# %%
own, inverted = draw(small.model, begin, labels, 20, key)[:40], []
for r in (*refinements, 20):
    z, down = round_trip(small.model, own, labels[:40], 20, r)
    inverted.append((rms(down - own), float(z.std()), rms(z - begin[:40])))
    print(f"{r} refinements: round trip off by {inverted[-1][0]:.4f}; noise found: "
          f"std {inverted[-1][1]:.2f}, {inverted[-1][2]:.2f} from the true start")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the round trip closes, and the noise is not the start
# 40 digits; measured at most .03, at least .7.
assert all(closes < 0.06 and off > 0.4 for closes, _, off in inverted)
# Digits fill few of the 64 dimensions: the effective number, (Σλ)²/Σλ² of the covariance, is 13.
along_axes = np.linalg.eigvalsh(np.cov(unseen.x.reshape(N, 64).T))
assert along_axes.sum() ** 2 / np.sum(along_axes**2) < 16
found_std = [std for _, std, _ in inverted]  # measured .62, .76, .98 and 1.33
assert found_std[0] < 0.8 and all(np.diff(found_std) > 0.05) and found_std[-1] > 1.15

# %% [markdown]
# The noise is far from the true start. The round trip closes, and still the code is a different one. Digits
# fill only few of the 64 dimensions. Along the other dimensions the paths come together on their way down, so
# starts that lie far apart arrive at nearly the same picture. On the way up, this works as an amplifier. It
# amplifies the errors of a step, and also details of a real digit that this network would never draw.
#
# So a closed round trip does not prove that the code is a natural one. Look at the standard deviation of
# the noise that you find. It should be 1. Here it is too small at first. Refinement makes it larger, and in
# the end larger than 1. Chapter 08 edits with inversion all the same. With strong guidance, inversion needs
# other methods (Mokady et al. 2023).

# %% [markdown]
# ## 8 · Between two noises
#
# If noise is a code for the picture, what lies between two codes? The straight line $(1-u)\,a + u\,b$ seems
# natural, but it is wrong. In $d$ dimensions noise has a length of about $\sqrt d$, so all noise lies near a
# sphere. Halfway along the line the variance is only $\tfrac14 + \tfrac14 = \tfrac12$. No true noise is so
# short. The arc stays on the sphere:
#
# $$\operatorname{slerp}(a, b, u) = \frac{\sin((1-u)\,\theta)}{\sin\theta}\,a +
# \frac{\sin(u\,\theta)}{\sin\theta}\,b, \qquad \cos\theta = \frac{a\cdot b}{\|a\|\,\|b\|} \tag{7}$$
#
# (Shoemake 1985; for latent noise Song et al. 2021, appendix D.5).
#
# **Predict, then run.** We tell the denoiser $t = 1$, but halfway along the line the noise is 30 % too short.
# Will the digits there be blurred, broken, or too good?


# %% tags=["comparison"]
def slerp(a, b, u):
    """Equation (7) for one pair of noises."""
    theta = jnp.arccos(jnp.sum(a * b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b)))
    return (jnp.sin((1 - u) * theta) * a + jnp.sin(u * theta) * b) / jnp.sin(theta)


a, b = jax.random.normal(jax.random.key(11), (2, 1, 28, 28, 1))
along = jnp.linspace(0, 1, 10)
arc = jnp.concatenate([slerp(a, b, u) for u in along])
line = jnp.concatenate([(1 - u) * a + u * b for u in along])
arc_by_library = jnp.concatenate([editing.slerp(a, b, u) for u in along])
print(f"largest difference to the library {jnp.abs(arc - arc_by_library).max():.1e}")
np.testing.assert_allclose(arc, arc_by_library, atol=1e-5)  # float32 in the angle

# %% alt="Two figures. Along the arc from one noise to another, a 2, a 4 and an 8 change their shape little by little. Half-way between ten other pairs of noises, digits from the arc and from the straight line can both be read."
along_arc = [draw(mnist.model, arc, jnp.full(10, k), 20, jax.random.key(0)) for k in (2, 4, 8)]
plots.image_grid(along_arc, ["2", "4", "8"], "Along the arc, from one noise to another")
one_side, other_side = jax.random.normal(jax.random.key(13), (2, 10, 28, 28, 1))
half_way = {"arc": editing.slerp(one_side, other_side, 0.5), "line": (one_side + other_side) / 2}
in_the_middle = {
    f"{label}, {name}": draw(mnist.model, z, jnp.full(10, label), 20, jax.random.key(0))
    for label in (2, 4) for name, z in half_way.items()
}  # fmt: skip
plots.image_grid(list(in_the_middle.values()), list(in_the_middle), "Half-way: ten other pairs")
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

# %% tags=["claims"]
# @title Checked: the line is too short and less varied, and the arc is as good as its ends
# 360 × 64 numbers: the standard error of their rms is 0.5 %.
assert abs(found["arc"][0] - 1) < 0.02 and abs(found["line"][0] - 0.5**0.5) < 0.02
# Over three seeds: one end .6 to 1.0, arc .7 to .85, line 1.9 to 2.2.
assert found["line"][1] > 1.5 * max(found["arc"][1], found["one end"][1])
assert found["arc"][1] < 1.5 * found["one end"][1]
assert abs(found["arc"][3] / found["one end"][3] - 1) < 0.05
assert found["line"][3] < 0.95 * min(found["arc"][3], found["one end"][3])
assert found["line"][2] > found["one end"][2] - 0.02

# %% [markdown]
# The digits are too good, in a way. Short noise lies close to the centre of all noises, and the network
# draws a typical digit from it. Such a digit is easy to read, and it looks like the next one. On 360 digits
# the Fréchet distance about doubles, while the judge recognises them as well as before. Along the arc,
# samples stay as good and as varied as at its ends.
#
# ### Temperature
#
# One can also make the noise shorter on purpose. The samplers of the course have a **temperature** $\tau$: it
# multiplies the *fresh* noise of every step. A language model draws typical words at a low temperature and
# unusual ones at a high temperature. Is it the same here?
#
# **Predict, then run.** We take $\eta = 1$ and 50 steps. What will $\tau = 0.8$ and $\tau = 1.2$ do to the
# distance, to the recognised share, and to the variety within a class?


# %% alt="Twenty digits from the same seeds at the temperatures 0.8, 1.0 and 1.2. All three rows show digits; their shapes differ a little."
@jax.jit
def draw_at(model, x, labels, key, temperature):
    D = denoiser.denoiser(model, p, "v", labels)
    return walk(samplers.ddim(p, 1.0, temperature), D, x, 50, key)


warmth = (0.8, 1.0, 1.2)
tempered, shown_at = {tau: [] for tau in warmth}, {}
for seed in range(3):
    z = jax.random.normal(jax.random.key(30 + seed), begin.shape)
    for tau in warmth:
        images = draw_at(small.model, z, labels, jax.random.key(40 + seed), tau)
        variety = float(jnp.stack([images[c::10].std(axis=0).mean() for c in range(10)]).mean())
        tempered[tau].append((*measure(images), variety))
        shown_at.setdefault(f"τ = {tau}", images[:20])
plots.image_grid(list(shown_at.values()), list(shown_at), "The same seeds, three temperatures")
plt.show()
tempered = {tau: np.array(values) for tau, values in tempered.items()}
for tau, values in tempered.items():
    print(f"τ = {tau}: Fréchet {values[:, 0].min():.2f} to {values[:, 0].max():.2f} (3 seeds), "
          f"recognised {values[:, 1].mean():.1%}, variety {values[:, 2].mean():.3f}")  # fmt: skip
real_variety = np.mean([unseen.x[unseen.labels == c].std(axis=0).mean() for c in range(10)])
print(f"unseen real digits: variety {real_variety:.3f}")

# %% tags=["claims"]
# @title Checked: more temperature, more variety and less recognised; the distance prefers 1.2
# The same three seeds for all. The variety differs by .002 between seeds, the distance by .1.
low, plain, high = (tempered[tau].mean(0) for tau in (0.8, 1.0, 1.2))
assert (np.diff([tempered[tau][:, 2].mean() for tau in warmth]) > 0.02).all()
assert 1.4 < low[0] / plain[0] < 2 and low[1] > 0.995  # 1.54 against .89, all but one recognised
assert high[0] < plain[0] and plain[1] - 0.03 < high[1] < plain[1] - 0.005  # .80, 98.2 %
assert abs(high[2] / real_variety - 1) < 0.04 and low[2] < 0.85 * real_variety

# %% [markdown]
# A low temperature buys typical digits, as in a language model: nearly all are recognised. It costs variety,
# and so the distance grows by about 70 %. A high temperature buys variety: at $\tau = 1.2$ it equals that of
# real digits, and the distance is even a little smaller than at 1. Its price: more digits are not recognised.
#
# Why is 1 not the best here? One reason is known. At $\eta = 1$ the fresh noise has the variance $\tilde\beta$
# of (2), which is right for a *known* $x_0$. In long steps this is too little, because the guess is uncertain
# (chapter 05 computes the right variance), and a temperature above 1 adds to it. Whether this is all, our table
# does not say. So take 1.2 as no general rule: measure it with your own network and number of steps.

# %% [markdown]
# ## 9 · Faster: better averages of ε
#
# DDIM takes the slope at the beginning of a step for the whole step. Numerical analysis has known better
# methods for a century. Three ideas:
#
# - **Heun**: take the step, evaluate the slope there, and repeat the step with the mean of both slopes.
#   This costs two evaluations per step and has order 2 (Karras et al. 2022, algorithm 1).
# - **DPM-Solver**: measure time by $\lambda = \log(\alpha/\sigma)$, half the log-SNR. Then (5) has an exact
#   solution, except for one integral over $\hat\varepsilon$. A polynomial replaces the integral. Order 1 is
#   DDIM again. Orders 2 and 3 evaluate one or two points within the step and then forget them. This makes
#   it a *single-step* method (Lu et al. 2022a, eq. 3.7, algorithms 1 and 2).
# - **Multistep**: keep the evaluations of earlier steps instead of making new ones. This costs one
#   evaluation per step. PNDM averages the last four $\hat\varepsilon$ (Liu et al. 2022, eq. 12).
#   DPM-Solver++(2M) extrapolates the last two $\hat x_0$ (Lu et al. 2022b, algorithm 2).

# %% [markdown]
# Many image generators use DPM-Solver++(2M) today, so here it is in full. Let $h = \lambda_s - \lambda_t$
# be the length of the step, and $h'$ that of the step before. If both are equal, the first formula adds
# half of the last change of the guess:
#
# $$\hat x = \hat x_0 + \frac{h}{2h'}\big(\hat x_0 - \hat x_0'\big), \qquad
# x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \Big(\alpha_s - \alpha_t\frac{\sigma_s}{\sigma_t}\Big)\hat x. \tag{8}$$
#
# The second formula is DDIM's step without $\varepsilon$. Its bracket is the paper's
# $-\alpha_s(e^{-h} - 1)$. The first formula extrapolates the guess to the middle of the step, where it is a
# better average of the whole step. The first step has no step before it, so it is plain DDIM. A step to
# $\sigma_s = 0$ is plain DDIM too, because $h$ is infinite there. If the grid begins at $t = 1$, where no
# signal is left, $h'$ is infinite in the second step. There the library extrapolates along $\alpha/\sigma$.
# We compare on a grid that begins at $t = 0.98$.


# %% tags=["comparison"]
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


with_signal = jnp.linspace(0.98, 0.0, 31)
own_2m = dpm_solver_pp_2m(denoise, noise, with_signal)
library_2m, _ = sampling.sample(samplers.dpm_solver_pp_2m(p), gm.denoise, noise, with_signal, key)
np.testing.assert_allclose(own_2m, library_2m, atol=2e-3)  # as for DDIM
one = [
    walk(make(p), oracle.denoise, place, 17, key, BEGIN, END)
    for make in (samplers.ddim, lambda p: samplers.dpm_solver(p, 1))
]
np.testing.assert_allclose(*one, atol=1e-5)
print("2M equals the library's; DPM-Solver-1 equals DDIM to 1e-5")

# %% [markdown]
# ### Count evaluations, not steps
#
# Steps cost nothing; evaluations of the network cost time. So we must compare a solver that takes two
# evaluations per step with one that takes twice as many steps. A denoiser that counts its calls tells us
# what 20 steps from $t = 0.9$ to the data cost.

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

    solve = jax.jit(lambda x, n, begin, end: walk(make(p), counted, x, n, key, begin, end))

    def run(x, n, end, begin=BEGIN):
        seen.clear()
        result = np.float64(solve(x, n, begin, end))[:, 0]
        jax.effects_barrier()  # until all counts have arrived
        return result, len(seen)

    return run


# %%
ranks = np.linspace(0.03, 0.97, 41)
x_begin, x_end = jnp.asarray(at_share(ranks, BEGIN)[:, None], jnp.float32), at_share(ranks, END)
solve = {name: counting(make) for name, make in SOLVERS.items()}
cost = {name: solve[name](x_begin, 20, 0.0)[1] for name in SOLVERS}
print("evaluations of 20 steps to the data:", cost)

# %% tags=["claims"]
# @title Checked: evaluations of each solver
assert list(cost.values()) == [20, 39, 20, 39, 58, 29]

# %% [markdown]
# Heun and DPM-Solver save one or two evaluations in the step to $t = 0$, which returns the denoiser's
# guess. PNDM needs $3 \times 3$ extra evaluations for its first three steps, because it has no earlier
# steps to use there.
#
# ### The order plot
#
# A method of order $k$ has an error like $n^{-k}$. For $k = 2$, twice as many steps leave a quarter of the
# error. On log-log axes this is a line of slope $-k$. We solve (5) from $t = 0.9$ to $0.2$ and compare with
# the exact answer (6).
#
# **Predict, then run.** At 24 evaluations, which solver is best, and by what factor is it better than DDIM?

# %%
STEPS = {name: (12, 18, 24, 36, 48) for name in SOLVERS} | {"DPM-3": (4, 6, 8, 12)}
errors, costs, orders = {}, {}, {}
for name in SOLVERS:
    runs = [solve[name](x_begin, n, END) for n in STEPS[name]]
    errors[name], costs[name] = [rms(x - x_end) for x, _ in runs], [count for _, count in runs]
    orders[name] = -np.polyfit(np.log(STEPS[name]), np.log(errors[name]), 1)[0]
    print(f"{name:6} order {orders[name]:.2f}, error {errors[name][-1]:.1e} "
          f"at {costs[name][-1]} evaluations")  # fmt: skip

# %% alt="The error of six solvers against the evaluations, both axes logarithmic. DDIM is the highest line, and falls slowly, with order 1. Heun, DPM-2, 2M and PNDM fall with order 2. DPM-3 is the lowest, with order 3."
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
at_24 = {name: np.exp(np.interp(np.log(24), np.log(costs[name]), np.log(errors[name])))
         for name in SOLVERS}  # fmt: skip
print("error at 24 evaluations:", {name: f"{e:.1e}" for name, e in at_24.items()})

# %% tags=["claims"]
# @title Checked: orders 1, 2 and 3, and the ranking at 24 evaluations
assert 0.9 < orders["DDIM"] < 1.1
assert all(1.8 < orders[name] < 2.3 for name in ("Heun", "2M", "DPM-2"))
assert orders["DPM-3"] > 2.6
assert orders["PNDM"] > 1.8  # the paper proves order 2; at first it does better
# Exact arithmetic would give the same on every machine; float32 adds about 1e-6.
assert at_24["DPM-3"] < at_24["2M"] / 3 and at_24["2M"] < at_24["DDIM"] / 10
assert at_24["2M"] < at_24["Heun"] / 3

# %% [markdown]
# Look at the vertical gaps between lines of equal slope. Heun, DPM-2 and 2M all have order 2. But at equal
# *cost* 2M is several times better than Heun, because it needs one evaluation per step. DPM-Solver-3 is the
# best of all on this smooth path, with an exact denoiser. Is it also the best for pictures?
#
# ## 10 · The same comparison on a network
#
# We draw ten MNIST digits with the network, from pure noise to the data. As the truth we take 2M with 300
# steps.
#
# **Predict, then run.** With ten evaluations, will Heun, of order 2, be better than DDIM, of order 1?

# %% alt="Two figures. Ten digits from 300 evaluations, and from 6 with DDIM, Heun and 2M; Heun's two is broken. The distance to 300 steps against the evaluations: 2M is the lowest everywhere, and Heun is above DDIM up to about 20 evaluations and below it at 40."
truth = draw(mnist.model, start, ten, 300, key, make=samplers.dpm_solver_pp_2m)
budgets, race, pictures, spent = (6, 10, 20, 40), {}, {}, {}
for name in ("DDIM", "Heun", "2M"):
    race[name] = []
    for budget in budgets:
        # From t = 1 to the data, n steps of Heun take 2n − 2 evaluations.
        n = budget // 2 + 1 if name == "Heun" else budget
        make = None if name == "DDIM" else SOLVERS[name]
        pictures[name, budget] = draw(mnist.model, start, ten, n, key, make=make)
        race[name].append(rms(pictures[name, budget] - truth))
        spent[name, budget] = solve[name](x_begin, n, 0.0, begin=1.0)[1]  # counted in one dimension
six = [pictures[name, 6] for name in race]
plots.image_grid([truth, *six], ["2M, 300", *(f"{name}, 6" for name in race)], "Evaluations")
ax = plots.curves(budgets, race, xlabel="evaluations per digit", log="xy",
                  ylabel="rms distance to 300 steps")  # fmt: skip
ax.set_xticks(budgets, budgets)
ax.set_yticks([0.02, 0.05, 0.1, 0.2], ["0.02", "0.05", "0.1", "0.2"])
ax.minorticks_off()
plt.show()

# %% tags=["claims"]
# @title Checked: each solver used exactly its budget of evaluations
assert all(count == budget for (_, budget), count in spent.items())

# %%
slope = {name: -np.polyfit(np.log(budgets), np.log(race[name]), 1)[0] for name in race}
for name, values in race.items():
    print(f"{name:4}", *(f"{n}: {e:.3f}  " for n, e in zip(budgets, values, strict=True)),
          f"slope {slope[name]:.2f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: Heun is worse than DDIM at first and better at 40; 2M is best throughout
# The same ten starts for all. Measured, in units of DDIM's error: Heun 1.4, 1.4, 1.05 and .55;
# 2M .75, .63, .5 and .32.
in_ddims = {name: np.divide(values, race["DDIM"]) for name, values in race.items()}
assert in_ddims["Heun"][:2].min() > 1.1 and in_ddims["Heun"][3] < 0.8
assert (in_ddims["2M"] < (0.9, 0.8, 0.7, 0.5)).all()
assert np.less(race["2M"], race["Heun"]).all()
assert all(value < 1.8 for value in slope.values())  # measured .9, 1.4 and 1.3

# %% [markdown]
# With ten evaluations Heun is worse than DDIM. Order is a promise about *small* steps, and with few
# evaluations no step is small. Heun's steps are twice as long, and this costs more than its average of two
# slopes gains. At 40 evaluations it is better than DDIM. 2M is the best of the three at each number of
# evaluations, but its slope is not 2 either. For all three, the first step (from no signal) and the last
# step (to no noise) are DDIM's. And a network is not an exact denoiser.
#
# So use **2M for 10 to 50 evaluations of a network**. Use higher orders where accuracy matters, for example
# for likelihoods (chapter 10). Chapter 11 continues with better grids and adaptive steps.

# %% [markdown]
# ## 11 · Break it on purpose: noise that nobody sees
#
# Here are three bugs. All were seen in published code. Two concern equation (3), and one concerns the grid.
#
# **A.** With $\eta > 0$ the direction term stays $\sigma_s\hat\varepsilon$, where
# $\sqrt{\sigma_s^2 - g^2}\,\hat\varepsilon$ is right. Then the fresh noise comes *on top* of the old noise.
#
# **B.** The list of levels ends at step 1 of the chain instead of at the data. So the last step goes to
# $\bar\alpha_1 < 1$, and the samples keep a noise of $\sigma_1 = \sqrt{\beta_1}$. (In the `diffusers` library
# this is an option, `set_alpha_to_one=False`.)
#
# **C.** The list of 50 steps is 0, 20, 40, …, 980 of 1000. So the *first* step is taken at 980, and pure noise
# is given to the network as if it were at that level.
#
# **Predict, then run.** The data are $\mathcal N(0.7, 0.5^2)$ and the denoiser is exact. Which bug do you
# find if you look at the spread of samples? And does $\eta = 0$ show bug A?


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
z0 = jax.random.normal(jax.random.key(20), (20_000, 1))
spread = {}
for eta in (0.0, 0.3, 0.6, 1.0):
    for name, make in (("right", samplers.ddim), ("A", bug_a)):
        ends = walk(make(p, eta), bell.denoise, z0, 400, jax.random.key(21))
        spread[name, eta] = float(ends.std())
    print(f"eta = {eta}: std {spread['right', eta]:.3f}, with bug A {spread['A', eta]:.3f}; "
          "data 0.500")  # fmt: skip

# %% tags=["claims"]
# @title Checked: bug A adds spread at η > 0 only
# 20,000 draws: a standard error of 0.5 %; 400 steps are about 1 % off themselves.
assert all(abs(value / 0.5 - 1) < 0.03 for (name, _), value in spread.items() if name == "right")
assert abs(spread["A", 0.0] - spread["right", 0.0]) < 1e-3  # rounding
assert spread["A", 1.0] > 1.5 * 0.5 and spread["A", 0.3] > 1.1 * 0.5

# %% [markdown]
# Bug A is easy to see at $\eta = 1$ and invisible at $\eta = 0$. So tests that only run the default never
# find it. The test for it is $c^2 + g^2 = \sigma_s^2$ at some $\eta$ in between.
#
# Now bug B. We take data that are a single point. Then *every* spread that is left comes from the sampler.
# We compute it for two common schedules. After that we look at MNIST, where the sampler stops at
# $t = 0.001$ and, one step too early, at $t = 0.05$.

# %%
residual, in_levels = {}, {}
for name, betas in (("linear", process.linear_betas(1000)),
                    ("scaled linear", process.scaled_linear_betas(1000))):  # fmt: skip
    chain = process.from_betas(betas)
    point = denoiser.gaussian_mixture(chain, [[0.7]], [0.0], [1.0])
    for end in (0.0, 1 / 1000):
        spread_left = float(walk(samplers.ddim(chain), point.denoise, z0, 50, key, end=end).std())
        print(f"{name}, last step to t = {end}: residual noise {spread_left:.4f}")
    residual[name], in_levels[name] = spread_left / np.sqrt(betas[0]), 127.5 * spread_left

# %% tags=["claims"]
# @title Checked: the residual noise is that of the last level
# A point's noise never changes under DDIM: what is left is σ(1/T) times that of the start,
# of 20,000 draws, whose standard error is 0.5 %.
assert all(abs(ratio - 1) < 0.03 for ratio in residual.values())
assert [round(value) for value in in_levels.values()] == [1, 4]  # grey levels of an 8-bit picture

# %% alt="Ten digits in three rows. Where the sampler stops at t = 0 and at 0.001, the ground is black. Where it stops at 0.05, there is grain on the ground."
last_steps = (0.0, 0.001, 0.05)
finished = {end: draw(mnist.model, start, ten, 20, key, end=end) for end in last_steps}
blank = np.asarray(finished[0.0]) < -0.98  # pixels where a finished digit is blank
plots.image_grid(list(finished.values()), [f"t = {end}" for end in finished])
plt.show()
grain = {}
for end in (0.001, 0.05):
    grain[end] = float(np.asarray(finished[end] - finished[0.0])[blank].std())
    print(f"to t = {end}: grain on {blank.sum()} blank pixels {grain[end]:.4f} "
          f"({127.5 * grain[end]:.1f} grey levels); sigma there {float(p.sigma(end)):.4f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the grain has the size of the last level
# The predicted noise has a standard deviation near 1; the guesses differ a little too.
assert all(0.6 < value / float(p.sigma(end)) < 1.5 for end, value in grain.items())

# %% [markdown]
# Bug C is at the other end. The true $x_t$ at step 980 still holds a little of the data, $\alpha_t x_0$. Pure
# noise does not. So the samples lose a part of their mean. We measure the loss on data with mean −0.7, for
# three schedules, and compare it with a start at step 1000.

# %%
schedules = {"linear": process.from_betas(process.linear_betas(1000)), "cosine": p}
schedules["scaled linear"] = process.from_betas(process.scaled_linear_betas(1000))
centred = (z0 - z0.mean()) / z0.std()
late_start, predicted = {}, {}
for name, chain in schedules.items():
    dark = denoiser.gaussian_mixture(chain, [[-0.7]], [0.5], [1.0])
    for first in (1.0, 0.98):
        ends = walk(samplers.ddim(chain), dark.denoise, centred, 400, key, begin=first)
        late_start[name, first] = float(ends.mean()) + 0.7
        alpha, sigma = float(chain.alpha(first)), float(chain.sigma(first))
        # The flow of Gaussian data is linear: missing is α·mean, in units of the std at the start.
        predicted[name, first] = alpha * 0.7 * 0.5 / np.hypot(0.5 * alpha, sigma)
    print(f"{name:13} alpha at 980 {alpha:.3f}; mean off by {late_start[name, 1.0]:.4f} from 1000, "
          f"{late_start[name, 0.98]:.4f} from 980")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the mean that is lost follows from the signal at the start
# float32, and 400 steps are not infinitely many.
assert all(abs(late_start[k] - predicted[k]) < 0.001 for k in predicted)
assert abs(late_start["cosine", 1.0]) < 0.001 < 0.01 < late_start["cosine", 0.98]
cured = 1 - late_start["scaled linear", 1.0] / late_start["scaled linear", 0.98]
assert 0.08 < cured < 0.14  # "a tenth"; by the formula .11

# %% [markdown]
# With the cosine schedule a start at 1000 loses nothing, and a start at 980 makes all images a little too
# grey. With the scaled linear schedule most of the loss is there *before* the bug: the chain still holds signal
# at step 1000, and pure noise is a wrong start even there. So "start at 1000 instead of 980" cures only a
# tenth of it. The cure is a schedule that ends in pure noise (chapter 01).

# %%
# Each bug under each test: the spread of the Gaussian, a point mass, and the Gaussian's mean.
point, at_one = denoiser.gaussian_mixture(p, [[0.7]], [0.0], [1.0]), centred
kinds = {"right": (samplers.ddim(p), {}), "A, η = 0.3": (bug_a(p, 0.3), {}),
         "B": (samplers.ddim(p), {"end": 1 / 1000}), "C": (samplers.ddim(p), {"begin": 0.98})}  # fmt: skip
verdicts = {}
for name, (made, change) in kinds.items():
    ends = walk(made, bell.denoise, at_one, 400, key, **change)
    rest = walk(made, point.denoise, at_one, 400, key, **change)
    verdicts[name] = float(ends.std()) - 0.5, float(rest.std()), float(ends.mean()) - 0.7
    print(f"{name:10} spread off by {verdicts[name][0]:+.4f}, left of a point {verdicts[name][1]:.4f}, "
          f"mean off by {verdicts[name][2]:+.4f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the spread finds bug A, a point mass bug B, a mean that is not 0 bug C, and no other
off_by = np.abs([verdicts[name] for name in kinds])
assert off_by[0].max() < 0.01  # the right sampler, with 400 steps
for test, finds in enumerate((1, 2, 3)):
    the_rest = np.delete(off_by[:, test], finds)
    assert off_by[finds, test] > 2 * the_rest.max(), test

# %% [markdown]
# Back to bug B. At $t = 0.05$ you can see the grain. At the level of the real bug you cannot: the pictures look
# perfect, but every pixel is wrong by about a grey level. With the scaled linear schedule it is wrong by four.
# If you then measure, compress or train on such samples, this noise is part of your data.
#
# **The lesson.** Each bug has a test of its own. The spread finds only bug A, and only at $\eta > 0$. A point mass
# finds only bug B: the result must be exactly this point. Bug C shows on data whose mean is not 0. In this course
# $t = 0$ *is* the data, so nobody can write the bug by accident. In other libraries, look at the last two
# numbers of the grid.

# %% [markdown]
# ## 12 · What to inspect
#
# How many steps does *your* model need? There is no exact flow to compare with, but there is **step
# doubling**: draw with $n$ and with $2n$ steps from the same noise, with $\eta = 0$. If 20 and 40 steps
# differ by 0.03, the error of DDIM at 20 steps is about 0.06. For a method of order $k$ the error at $n$
# steps is about
#
# $$\text{error}(n) \approx \frac{2^k}{2^k - 1}\,\big\|x^{(n)} - x^{(2n)}\big\|. \tag{9}$$
#
# For DDIM this is twice the difference that you can measure. (The idea is due to Richardson.) Does it hold
# for the network?

# %%
doubled = {n: draw(mnist.model, start, ten, n, key) for n in (5, 10, 20, 40, 80)}
estimates = {}
print("steps   2 × difference to twice as many   distance to 300 steps of 2M")
for n in (5, 10, 20, 40):
    estimates[n] = 2 * rms(doubled[n] - doubled[2 * n]), rms(doubled[n] - truth)
    print(f"{n:5} {estimates[n][0]:20.3f} {estimates[n][1]:30.3f}")

# %% tags=["claims"]
# @title Checked: step doubling estimates the error within a factor of 1.7
# The error doesn't fall exactly like 1/n, and its direction turns a little.
assert all(0.6 < guess / error_n < 1.7 for guess, error_n in estimates.values())

# %% [markdown]
# The estimate is good enough to choose $n$. Stop doubling when the difference is smaller than what you can
# see, or smaller than what your metric can measure. A checklist:
#
# 1. the grid starts at $t = 1$, ends at exactly 0, and falls strictly;
# 2. every comparison gives the number of *evaluations*, and a counter has counted them;
# 3. step doubling with the same noise: if the picture *changes*, $n$ is too small or $\eta$ is not 0;
# 4. exact moments, at $\eta = 1$ and at a value in between;
# 5. inverted noise has mean 0 and a standard deviation near 1; if not, expect trouble in editing;
# 6. a distance, with its sample count and floor: the accuracy saw nothing in section 5.

# %% [markdown]
# ## Recap
#
# 1. Training fixes the marginals, not the paths. DDIM is a family of samplers for one network: $\eta = 1$
#    is DDPM on any grid, and $\eta = 0$ adds no noise.
# 2. Without noise the sampler is Euler's method for the probability flow. Its paths are smooth, so few
#    steps are enough, and the start is a code for the picture.
# 3. We can compute this code (inversion; refine once), and we can move between two codes (on the arc, not
#    on the line).
# 4. Higher order is better on smooth paths with small steps. Compare solvers at equal evaluations, and try
#    2M first.
# 5. Check that $c^2 + g^2 = \sigma_s^2$, and that the last step ends at the data.

# %% [markdown]
# **Exercises:** [06 · exercises](../exercises/06_ddim.ipynb).
#
# ## Try it yourself
#
# 1. Give `sampling.sample` the grid `sampling.quadratic(10)` instead of `uniform(10)` on the 8×8 digits.
#    Which grid has the smaller distance to 300 steps, and which has the smaller Fréchet distance?
# 2. Invert a real digit with its label, and draw it again with *another* label. What stays the same?
# 3. In section 9, move `END` to 0.02. Which solver loses most of its order, and why? (The modes separate
#    late.)
# 4. Repeat the measurement of section 8 with $\eta = 0.5$ and a temperature. Is a low temperature better or
#    worse than a smaller $\eta$?

# %% [markdown]
# ## Further reading
#
# - J. Song, C. Meng, S. Ermon. *Denoising Diffusion Implicit Models.* ICLR 2021.
#   [arXiv:2010.02502](https://arxiv.org/abs/2010.02502). Sections 3 to 5.
# - C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu. *DPM-Solver: A Fast ODE Solver for Diffusion
#   Probabilistic Model Sampling in Around 10 Steps.* NeurIPS 2022 (2022a).
#   [arXiv:2206.00927](https://arxiv.org/abs/2206.00927).
# - C. Lu et al. *DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models.* 2022
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
# solver, evaluation count, residual noise, step doubling, temperature.
