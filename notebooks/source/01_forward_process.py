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
# # 01 · The forward process
#
# **The question.** How can we turn a picture into pure noise so gradually that each small step
# could be undone? And what sets the pace?
#
# A diffusion model learns to remove noise. Before it can learn this, we must add noise, in a way
# that we understand completely. This chapter adds the noise. It trains nothing, and a cell computes
# every number in the text.
#
# **You will be able to**
#
# - write the noising chain of DDPM, and jump to any of its steps at once;
# - read a schedule from three curves: $\beta$, $\bar\alpha$ and the log signal-to-noise ratio;
# - say what is left of the data at the last step, and remove it;
# - recognise a schedule that wastes its steps;
# - find a standard deviation in the place of a variance.
#
# **You need** Python, NumPy, means and variances, and the Gaussian distribution.
# **Time:** about an hour to read and play; the cells run in about half a minute on two CPU cores.

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

from diffusion_course import data, process
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# The next figure shows our goal. It mixes the same digit with the same noise in three ways, over the
# same span of time. One of the three never reaches pure noise. One reaches it almost at once and then
# wastes its remaining steps. By the end of the chapter you can say why, and which line of code is
# the cause.

# %% alt="One digit under the same noise at nine times, in three rows. As intended: the last pictures are noise. Never noise: the digit can still be seen at the end. Over at once: from the third picture on there is only noise."
digits = data.load("digits")  # 1,437 handwritten digits, 8 × 8, grey levels in [−1, 1]
one_digit = digits.x[13:14]
noise = jax.random.normal(jax.random.key(1), one_digit.shape)
times = np.linspace(0, 1, 9)


def strip(betas):
    """One digit at 9 equally spaced times, always with the same noise."""
    p = process.from_betas(betas)
    return np.concatenate([process.add_noise(p, one_digit, noise, t) for t in times])


def show_strips(rows, title):
    """Rows of 9 pictures of 8 × 8 pixels, with the time above each column."""
    ax = plots.image_grid(list(rows.values()), list(rows), title, scale=0.8).axes[0]
    ax.set_xticks(4.5 + 9 * np.arange(9), [f"{t:g}" for t in times])
    ax.tick_params(labeltop=True, labelbottom=False, length=0)
    plt.show()


rows = {
    "as intended": strip(process.linear_betas(1000)),
    "never noise": strip(process.linear_betas(100)),
    "over at once": strip(process.linear_betas(1000, 1e-4, 0.2)),
}
show_strips(rows, "From data ($t$ = 0) to the end of the schedule ($t$ = 1)")

# %% [markdown]
# ## 1 · One small step
#
# We want many small steps, and each should be easy to undo. Take a picture $x_{n-1}$. Shrink it a
# little, and add a little Gaussian noise $\varepsilon_n$. With $\beta_n = 0.01$, for instance, we keep
# 99.5 % of the picture's amplitude and add noise of standard deviation 0.1:
#
# $$x_n = \sqrt{1-\beta_n}\;x_{n-1} + \sqrt{\beta_n}\;\varepsilon_n ,\qquad
# \varepsilon_n \sim \mathcal N(0, I) \tag{1}$$
#
# This is equation 2 of DDPM (Ho, Jain & Abbeel 2020). The idea to destroy data step by step, and to
# learn the way back, is from Sohl-Dickstein et al. 2015. The number $\beta_n$, between 0 and 1, is
# the **variance** of the noise that step $n$ adds. The list $\beta_1, \dots, \beta_T$ is the
# **schedule**.
#
# Why do we shrink the picture? The variances of independent numbers add up. If $x_{n-1}$ has variance
# 1, then $x_n$ has variance $(1-\beta_n)\cdot 1 + \beta_n = 1$. The scale stays the same, however many
# steps follow. Such a process is called *variance-preserving*.
#
# The algorithm fits on a few lines. We write it out in full, with the paper's symbols. It yields
# every step on the way.


# %%
@jax.jit
def noising_step(x, beta, key):
    """DDPM, eq. 2: x_n from x_{n−1}."""
    eps = jax.random.normal(key, x.shape)
    return jnp.sqrt(1 - beta) * x + jnp.sqrt(beta) * eps


def chain(x, betas, key, step=noising_step):
    """The chain of DDPM: yields x_0, x_1, …, x_T."""
    yield x
    for n, beta in enumerate(betas, start=1):
        x = step(x, beta, jax.random.fold_in(key, n))
        yield x


# %% [markdown]
# To see what the chain does, we use single numbers instead of pictures. Our data are lopsided on
# purpose: a quarter of the points lie near 1.6, and the others lie near −0.2. The mean is not 0 and the
# variance is not 1, so that a mistake in a formula becomes visible.

# %%
N = 20_000
rng = np.random.default_rng(0)
is_right = rng.random(N) < 0.25
numbers = (np.where(is_right, 1.6, -0.2) + 0.15 * rng.standard_normal(N)).astype(np.float32)

betas = process.linear_betas(1000)  # DDPM's own schedule: β grows from 1e-4 to 0.02
path = np.stack(list(chain(jnp.asarray(numbers), betas, jax.random.key(2))))
print(f"path {path.shape}: mean {path[0].mean():.2f} -> {path[-1].mean():.2f}, "
      f"std {path[0].std():.2f} -> {path[-1].std():.2f}")  # fmt: skip

# %% alt="Left: the paths of 40 numbers over 1,000 steps. Two groups start near 1.6 and near −0.2, spread, and mix. Right: four histograms, which go from two peaks to the bell curve of the standard normal."
fig, (wide, *narrow) = plt.subplots(1, 5, figsize=(9, 3), sharey=True, width_ratios=[4, 1, 1, 1, 1])
for i in range(40):
    wide.plot(path[:, i], lw=0.6, color=plots.SERIES[int(is_right[i])])
wide.set(xlabel="step $n$", ylabel="$x_n$, value", title="40 of 20,000 points", ylim=(-4, 4))
grid = np.linspace(-4, 4, 200)
bell = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
for ax, n in zip(narrow, (0, 150, 300, 1000), strict=True):
    ax.hist(path[n], np.linspace(-4, 4, 65), density=True, orientation="horizontal",
            color=plots.DATA, alpha=0.5)  # fmt: skip
    ax.plot(bell, grid, color=plots.TRUTH, lw=1)
    ax.set(title=f"$n$ = {n}", xlim=(0, 2.1), xticks=[])
narrow[0].set_xlabel("density; the line is\nthe standard normal", loc="left")
plt.show()

# %% [markdown]
# Two groups of points walk at random, drift towards zero, and meet. At the end nobody can tell
# which point came from which group, and the histogram lies on the bell curve. It is hopeless to undo
# all of this at once. It is possible to undo one step of the thousand (section 3 shows why). This is
# the main idea of diffusion models: they replace one impossible step by many easy ones.
#
# ## 2 · All steps in one jump
#
# If we only want $x_{500}$, we do not want to walk through 500 steps. Look at the first two steps.
# Step 2 shrinks the noise of step 1 and then adds new noise. Given $x_0$, the variance is
#
# $$(1-\beta_2)\,\beta_1 + \beta_2 \;=\; 1 - (1-\beta_1)(1-\beta_2).$$
#
# For $\beta_1 = \beta_2 = 0.01$ it is 0.0199. A sum of independent Gaussians is Gaussian, so two steps
# are again one step of the same form, only larger. By induction, with
# $\bar\alpha_n = \prod_{i=1}^{n} (1-\beta_i)$,
#
# $$x_n = \sqrt{\bar\alpha_n}\;x_0 + \sqrt{1-\bar\alpha_n}\;\varepsilon \tag{2}$$
#
# which is equation 4 of DDPM. The product over no step at all is 1: $\bar\alpha_0 = 1$.


# %%
def alpha_bar_of(betas):
    """ᾱ_0 … ᾱ_T, float64 [T + 1]; the first entry is 1, the product over no step."""
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def jump(x0, betas, n, key):
    """DDPM, eq. 4: x_n at once."""
    alpha_bar = alpha_bar_of(betas)[n]
    eps = jax.random.normal(key, x0.shape)
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1 - alpha_bar) * eps


# %% [markdown]
# **Predict, then run.** Equation (2) also gives the moments. The mean must be
# $\sqrt{\bar\alpha_n}\,m$ and the variance $\bar\alpha_n v + 1 - \bar\alpha_n$, where $m$ and $v$ are
# the mean and variance of the data. Will the chain and the jump have the same mean and standard
# deviation at every step, or only at the end? And will their lopsided histograms agree?

# %%
steps = (1, 10, 150, 300, 1000)
alpha_bar = alpha_bar_of(betas)
key = jax.random.key(3)
jumps = {n: np.asarray(jump(numbers, betas, n, jax.random.fold_in(key, n))) for n in steps}
print("   n     mean: chain   jump   formula      std: chain   jump   formula")
for n in steps:
    mean = np.sqrt(alpha_bar[n]) * numbers.mean()
    std = np.sqrt(alpha_bar[n] * numbers.var() + 1 - alpha_bar[n])
    print(f"{n:4d}     {path[n].mean():11.3f} {jumps[n].mean():6.3f} {mean:9.3f}"
          f"      {path[n].std():10.3f} {jumps[n].std():6.3f} {std:9.3f}")  # fmt: skip

# %% alt="Histograms after 10, 150, 300 and 1,000 steps, filled for the chain and as a line for the jump. The two agree in each panel, while two peaks become one bell."
fig, axes = plt.subplots(1, 4, figsize=(9, 2.1), sharey=True)
for ax, n in zip(axes, (10, 150, 300, 1000), strict=True):
    edges = np.linspace(-4, 4, 65)
    ax.hist(path[n], edges, density=True, color=plots.SERIES[0], alpha=0.35)
    ax.hist(jumps[n], edges, density=True, histtype="step", color=plots.SERIES[1])
    ax.set(title=f"$n$ = {n}", xlabel="$x_n$, value")
axes[0].set_ylabel("density")
axes[1].text(0.6, 0.8, "filled: chain\nline: jump", size="small")
plt.show()

# %% [markdown]
# The chain and the jump agree at every step, in shape as well as in moments. We should define what
# "agree" means. Solve equation (2) for the noise:
# $z = (x_n - \sqrt{\bar\alpha_n}\,x_0)/\sqrt{1-\bar\alpha_n}$. It must be standard normal, whether the
# chain or the jump made $x_n$. With $N$ values, the mean of $z$ is off by about $1/\sqrt N$ and its
# variance by about $\sqrt{2/N}$. These are the standard errors. Our limit is four of them. We
# run the same test on 250 real digits, pixel by pixel.


# %%
def check_noise(x_n, x0, alpha_bar_n):
    """How many standard errors the added noise is off N(0, 1), in mean and in variance."""
    z = (np.asarray(x_n, np.float64) - np.sqrt(alpha_bar_n) * x0) / np.sqrt(1 - alpha_bar_n)
    return abs(z.mean()) * np.sqrt(z.size), abs(z.var() - 1) * np.sqrt(z.size / 2)


few_digits = digits.x[:250]
walk = chain(jnp.asarray(few_digits), betas, jax.random.key(4))
digits_at = {n: np.asarray(x) for n, x in enumerate(walk) if n in steps}
errors = {}
for n in steps:
    errors[n] = {
        "chain, numbers": check_noise(path[n], numbers, alpha_bar[n]),
        "jump, numbers": check_noise(jumps[n], numbers, alpha_bar[n]),
        "chain, digits": check_noise(digits_at[n], few_digits, alpha_bar[n]),
    }
    report = [f"{name} {m:.1f}, {v:.1f}" for name, (m, v) in errors[n].items()]
    print(f"n = {n:4d}, standard errors of mean, variance:   " + ";   ".join(report))

# %% [markdown]
# Equation (2) makes training cheap: a training step picks any $n$ and jumps to it.
#
# The jump does not give you a *path*. If we jump to the steps 300 and 301 with fresh noise each, the
# two results share the data, but their noises are independent. In the chain the two noises are nearly
# the same. The jump and the chain agree on each single step, but not on how the steps are connected.

# %%
fresh = [jump(numbers, betas, n, jax.random.key(n)) for n in (300, 301)]
shrunk = np.sqrt(alpha_bar[300:302, None]) * numbers
in_chain = np.corrcoef(path[300:302] - shrunk)[0, 1]
in_jumps = np.corrcoef(np.stack(fresh) - shrunk)[0, 1]
print(f"correlation of the noise: {in_chain:.3f} in the chain, {in_jumps:.3f} in two jumps")

# %% tags=["claims"]
# @title Checked: chain and jump agree on each step, and only the chain is a path
for n in steps:
    # 30 comparisons; by chance alone one in 16,000 is beyond 4 standard errors.
    assert max(map(max, errors[n].values())) < 4, (n, errors[n])
    # The shape: two samples of one distribution have shares below any value that differ by at most
    # 2.23·sqrt(2/N), with a chance of 1 in 10,000 for more (Kolmogorov–Smirnov).
    below = [np.searchsorted(np.sort(x), grid) / N for x in (path[n], jumps[n])]
    assert np.abs(below[0] - below[1]).max() < 2.23 * np.sqrt(2 / N)
assert abs(numbers.mean()) > 0.2 and numbers.var() < 0.7  # lopsided: not 0, and not 1
# At the end the bell curve (one sample against a formula: 2.23·sqrt(1/N)), and nothing of the group.
end_below = np.searchsorted(np.sort(path[1000]), grid) / N
assert np.abs(end_below - np.asarray(jax.scipy.stats.norm.cdf(grid))).max() < 2.23 / np.sqrt(N)
assert abs(np.corrcoef(is_right, path[1000])[0, 1]) < 4 / np.sqrt(N)
assert in_chain > 0.99
assert abs(in_jumps) < 4 / np.sqrt(N)  # the standard error where the true correlation is 0

# %% [markdown]
# ## 3 · The library's version
#
# From here on we use `process.from_betas`. It holds the same table, but with a time that all
# chapters share: $t = n/T$ runs from **0 (data) to 1 (noise)**, whatever $T$ is. With this time,
# chains of 100 and of 1000 steps can be compared. A process consists of two functions of the time, a
# signal level and a noise level:
#
# $$x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon \tag{3}$$
#
# Kingma et al. 2021 write it in this form (eq. 1). For DDPM, $\alpha(n/T) = \sqrt{\bar\alpha_n}$ and
# $\sigma(n/T) = \sqrt{1-\bar\alpha_n}$. Do not confuse $\alpha(t)$ with DDPM's
# $\alpha_n = 1-\beta_n$, which belongs to a single step. You will meet $\alpha_n$ in chapter 03,
# where the sampler undoes single steps.

# %% tags=["comparison"]
p = process.from_betas(betas)
clock = np.arange(1001) / 1000
# float32 carries 7 digits, and the chain's table is float64: 1e-6 is a few units in the last place.
np.testing.assert_allclose(p.alpha(clock), np.sqrt(alpha_bar), atol=1e-6)
np.testing.assert_allclose(p.sigma(clock), np.sqrt(1 - alpha_bar), atol=1e-6)

noise_of_key = jax.random.normal(key, digits.x.shape)
ours = jump(digits.x, betas, 300, key)  # the same key, so the same noise
np.testing.assert_allclose(process.add_noise(p, digits.x, noise_of_key, 0.3), ours, atol=1e-5)

scale, variance = process.transition(p, 300 / 1000, 299 / 1000)  # one step of eq. (1), from (3)
np.testing.assert_allclose(scale, np.sqrt(1 - betas[299]), rtol=1e-5)
np.testing.assert_allclose(variance, betas[299], rtol=1e-3)  # a difference of close numbers
print("eq. (1), eq. (2) and the library agree")

# %% [markdown]
# ### Why a short step can be undone
#
# To undo a step is to draw $x_s$ at an earlier time $s < t$, given $x_t$. If somebody told us $x_0$,
# this would be easy. Then $x_s$ is Gaussian, with a mean $c\,x_0 + d\,x_t$ and a variance
# $\tilde\beta$ that we know (`process.posterior`; chapter 03 gives the formulas).
#
# Nobody tells us $x_0$. All that we can have is the average of all $x_0$ that are possible, given
# $x_t$. Call it $\hat x_0$. Put it in the place of $x_0$, and keep the Gaussian. What goes wrong?
#
# - The mean stays **exact**. It is linear in $x_0$, so the average of $c\,x_0 + d\,x_t$ is
#   $c\,\hat x_0 + d\,x_t$.
# - A variance of $c^2\operatorname{Var}(x_0 \mid x_t)$ is lost: the doubt about $x_0$.
# - The shape is lost: the truth need not be Gaussian.
#
# Where $c$ is small, both losses are small. That is so in a short step, except next to the data.

# %% [markdown]
# **Predict, then run.** We go back from step 300 with *one* Gaussian, by 1, 100 and 200 steps. We know
# the density of our lopsided numbers at each step, so Bayes' rule gives the truth. Where will the
# Gaussian fail?


# %%
def normal(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


places = np.linspace(-5, 5, 10_001)  # where x_m may lie


def undo(x_n, n, m):
    """The density of x_m, m < n, given x_n: prior times likelihood, added up on `places`."""
    a, b = alpha_bar[m], alpha_bar[n] / alpha_bar[m]  # what the steps 1 … m, and m + 1 … n keep
    prior = sum(w * normal(places, np.sqrt(a) * c, a * 0.15**2 + 1 - a)
                for w, c in ((0.75, -0.2), (0.25, 1.6)))  # fmt: skip
    joint = prior * normal(x_n, np.sqrt(b) * places, 1 - b)
    return joint / np.trapezoid(joint, places)


def moments_of(density):
    mean = np.trapezoid(places * density, places)
    return mean, np.trapezoid((places - mean) ** 2 * density, places)


def one_gaussian(x0, x_n, n, m):
    """Mean and variance of x_m, as if x0 were the truth; and c, the factor of x0 in the mean."""
    pair = jnp.array([x0, 0.0]), jnp.full(2, x_n)
    mean, variance = process.posterior(p, *pair, n / 1000, m / 1000)
    return float(mean[0]), float(variance), float(mean[0] - mean[1]) / x0


# %% alt="The density of an earlier value, given the value at step 300, and one Gaussian. One step back the two coincide. 100 steps back the truth is wider and leans. 200 steps back the truth has two humps, and the Gaussian stands over the dip between them."
start, back = 300, (299, 200, 100)
seen = 0.6  # a value of x_300 between the two groups
x0_hat, doubt = moments_of(undo(seen, start, 0))
truths = {m: undo(seen, start, m) for m in back}
guesses = {m: one_gaussian(x0_hat, seen, start, m) for m in back}
fig, axes = plt.subplots(1, 3, figsize=(9, 2.6))
for ax, m in zip(axes, back, strict=True):
    ax.plot(places, truths[m], color=plots.TRUTH)
    ax.plot(places, normal(places, *guesses[m][:2]), "--", color=plots.PREDICTION)
    reach = 4 * np.sqrt(moments_of(truths[m])[1])
    ax.set(xlim=(guesses[m][0] - reach, guesses[m][0] + reach), yticks=[], ylim=(0, None))
    ax.set(title=f"steps back: {start - m}", xlabel=f"$x_{{{m}}}$, given $x_{{300}}$ = {seen}")
axes[0].set_ylabel("density")
axes[2].text(0.02, 0.9, "truth", color=plots.TRUTH, transform=axes[2].transAxes)
axes[2].text(0.02, 0.78, "one Gaussian", color=plots.PREDICTION, transform=axes[2].transAxes)
plt.show()

# %% [markdown]
# One step back the two curves are the same. After 100 steps the truth is wider and leans. After 200 steps
# it has two humps. The Gaussian stands over the dip between them, and there it is more than four times
# too high. Nevertheless all three Gaussians have the right mean.
#
# Next we average over all $x_{300}$ and compare the lost variance with $\tilde\beta$, the variance that
# we keep.

# %% alt="The lost variance, divided by the variance that is kept, against the length of a step; both axes are logarithmic. It rises from 0.003 at a length of 0.001, and passes 1 between 0.1 and 0.2."
visible = np.linspace(-4, 4, 161)  # values of x_300, and how often each one occurs
a_300 = alpha_bar[300]
often = sum(w * normal(visible, np.sqrt(a_300) * c, a_300 * 0.15**2 + 1 - a_300)
            for w, c in ((0.75, -0.2), (0.25, 1.6)))  # fmt: skip
doubts = np.array([moments_of(undo(x, 300, 0))[1] for x in visible])
mean_doubt = np.average(doubts, weights=often)
lost_share = {}
for length in (1, 2, 5, 10, 20, 50, 100, 150, 200):
    _, kept, c = one_gaussian(1.0, 0.5, 300, 300 - length)
    lost_share[length / 1000] = c**2 * mean_doubt / kept
fig, ax = plt.subplots(figsize=(5.5, 3))
ax.loglog(list(lost_share), list(lost_share.values()), "o-", color=plots.DATA)
ax.axhline(1, color=plots.NOISE, lw=0.8)
ax.text(0.001, 1.15, "as much is lost as is kept", color=plots.NOISE, size="small")
ax.set(xlabel="length of the step, $t - s$", ylabel=r"lost variance / $\tilde\beta$")
plt.show()
print({length: f"{share:.1%}" for length, share in lost_share.items()})

# %% tags=["claims"]
# @title Checked: the mean is exact; what is lost is c²·Var(x0|x_t): little in a short step
for m in back:
    mean, variance = moments_of(truths[m])
    guess, kept, c = guesses[m]
    assert abs(mean - guess) < 1e-4  # levels in float32, the sums on the grid in float64
    # In one step β̃ is a difference of close float32 numbers: 1e-3 of it.
    assert np.isclose(variance, kept + c**2 * doubt, rtol=2e-3)
peaks = {}
for m, truth in truths.items():
    humps = np.diff(np.sign(np.diff(truth[truth > 1e-3]))) < 0
    peaks[m] = humps.sum()
assert peaks == {299: 1, 200: 1, 100: 2}
bump = truths[299] > 1  # one step back: the same curve to 2 %, wherever it is high
assert np.allclose(truths[299][bump], normal(places[bump], *guesses[299][:2]), rtol=0.02)
assert moments_of(truths[200])[1] > 1.5 * guesses[200][1]
centred = (places - guesses[200][0]) / np.sqrt(moments_of(truths[200])[1])
assert abs(np.trapezoid(centred**3 * truths[200], places)) > 0.2  # it leans; a Gaussian has 0
in_the_dip = np.interp(guesses[100][0], places, truths[100])
assert in_the_dip < 0.25 / np.sqrt(2 * np.pi * guesses[100][1])  # a quarter of the Gaussian there
lengths, parts = (np.array(list(each)) for each in (lost_share, lost_share.values()))
assert np.allclose(parts[[0, 6, 8]], (0.0028, 0.54, 3.4), rtol=0.02)
# Proportional to the length while the step is short: half the length, half the share.
assert np.allclose(parts[:4] / lengths[:4], parts[0] / lengths[0], rtol=0.06)

# %% tags=["claims"]
# @title Checked: in the step from 2 to 1 more is lost than kept, and both are tiny
# Next to the data the doubt is that of one of the two groups, a Gaussian.
_, kept_2, c_2 = one_gaussian(1.0, 0.5, 2, 1)
lost_2 = c_2**2 / (1 / 0.15**2 + alpha_bar[2] / (1 - alpha_bar[2]))
assert kept_2 < lost_2 < 1e-4

# %% [markdown]
# From step 300, a step of 1 of the 1000 loses 0.3 % of the variance that it keeps, a step of 100 loses 54 % of
# it, and a step of 200 more than three times as much as it keeps. While steps are short, half the length means
# half the share, and the variance that is kept halves too. So one step loses a quarter. There are twice as
# many steps, and the sum of all losses halves. This is why the chain has so many steps, and why a model needs
# to learn only one thing for each of them: the average $\hat x_0$.
#
# (Next to the data the share is large, more than 100 % in the step from 2 to 1. But there both variances are
# below 0.0001.)

# %% [markdown]
# ## 4 · One number says how noisy
#
# We want one number that says how noisy a picture is. Divide (3) by $\alpha$: the picture becomes
# $x_0 + (\sigma/\alpha)\,\varepsilon$. Apart from the scale, only the ratio of the two levels
# counts. Its usual form is the logarithm of the **signal-to-noise ratio** (SNR), a ratio of variances
# (Kingma et al. 2021, eq. 2):
#
# $$\lambda(t) = \log\frac{\alpha(t)^2}{\sigma(t)^2} \tag{4}$$
#
# At $\lambda = 0$ the two levels are equal. The log-SNR falls from $+\infty$ at the data to $-\infty$
# at pure noise. When it falls by 2.3, the SNR becomes ten times smaller. (It compares levels only. It
# does not use that our digits have a standard deviation of 0.75 and not 1.)

# %% alt="Eight digits in nine rows, with a log-SNR from 8 down to −8. Down to 3 they are clear, around 0 they can be seen if one knows where to look, and at −5 they are almost gone."
ladder = (8.0, 5.0, 3.0, 1.0, 0.0, -1.0, -3.0, -5.0, -8.0)
eight = digits.x[:8]
eight_noises = jax.random.normal(jax.random.key(5), eight.shape)
# Variance-preserving: alpha² = sigmoid(λ) and sigma² = sigmoid(−λ) add up to 1.
levels = {rung: np.sqrt(jax.nn.sigmoid(np.array([rung, -rung]))) for rung in ladder}
rungs = [alpha * eight + sigma * eight_noises for alpha, sigma in levels.values()]
names = [f"$\\lambda = {rung:.0f}$" for rung in ladder]
plots.image_grid(rungs, names, "The ladder of noise", scale=0.7)
plt.show()

# %% tags=["claims"]
# @title Checked: the rungs are variance-preserving, and their log-SNR is (4)
for rung, (alpha, sigma) in levels.items():
    assert abs(alpha**2 + sigma**2 - 1) < 1e-6  # up to float32
    assert abs(np.log(alpha**2 / sigma**2) - rung) < 1e-5
assert round(float(digits.x.std()), 2) == 0.75 and round(np.log(10), 1) == 2.3

# %% [markdown]
# At $\lambda = 5$ the digit is as clear as before. Around 0 you can see the digit if you know where to
# look. At −5 it is almost gone (section 8 measures this). Keep this ladder in mind. Every schedule in
# this course walks down the same ladder, each at its own pace.
#
# ## 5 · Six schedules side by side
#
# | name | idea | source |
# |---|---|---|
# | linear | $\beta$ grows linearly | Ho et al. 2020, section 4 |
# | scaled-linear | $\sqrt\beta$ grows linearly | Rombach et al. 2022, code |
# | quadratic | $\sqrt\beta$ grows linearly, between DDPM's end points | Ho et al. 2020, code |
# | sigmoid | $\beta$ is a logistic curve | Xu et al. 2022, code |
# | cosine | $\bar\alpha$ is a squared cosine | Nichol & Dhariwal 2021, eq. 17 |
# | zero-SNR | scaled-linear, bent to end at $\bar\alpha_T = 0$ | Lin et al. 2024, algorithm 1 |
#
# **Predict, then run.** At $\lambda = 0$ signal and noise have equal levels. Which schedule reaches
# this point first, and which one last?

# %%
T = 1000
schedules = {
    "linear": process.linear_betas(T),
    "scaled-linear": process.scaled_linear_betas(T),
    "quadratic": process.quadratic_betas(T),
    "sigmoid": process.sigmoid_betas(T),
    "cosine": process.cosine_betas(T),
    "zero-SNR": process.zero_terminal_snr(process.scaled_linear_betas(T)),
}
processes = {name: process.from_betas(betas) for name, betas in schedules.items()}

log_snrs = {name: np.asarray(each.log_snr(clock)) for name, each in processes.items()}
halfway = {name: clock[np.argmax(values < 0)] for name, values in log_snrs.items()}
print({name: f"{half:.2f}" for name, half in sorted(halfway.items(), key=lambda item: item[1])})

# %% alt="Six schedules over time in three panels: beta, alpha-bar and log-SNR. The log-SNR of the linear schedule crosses 0 first, that of the cosine last. Cosine and zero-SNR plunge at the end."
alpha_bars = {name: np.asarray(each.alpha(clock)) ** 2 for name, each in processes.items()}
fig, axes = plt.subplots(1, 3, figsize=(11.5, 4))
for name, color, dash in zip(schedules, plots.SERIES, plots.DASHES, strict=True):
    axes[0].semilogy(clock[1:], schedules[name], color=color, ls=dash, label=name)
    axes[1].plot(clock, alpha_bars[name], color=color, ls=dash)
    axes[2].plot(clock, log_snrs[name], color=color, ls=dash)
axes[0].legend(fontsize="small", handlelength=3.5)  # the lines lie too close for names beside them
axes[0].set(xlabel="time $t$", ylabel=r"$\beta$, variance added by a step")
axes[1].set(xlabel="time $t$", ylabel=r"$\bar\alpha$, factor on the signal's variance")
axes[2].set(xlabel="time $t$", ylabel=r"$\lambda$, log signal-to-noise", ylim=(-13, 13))
axes[2].axhline(0, color=plots.NOISE, lw=0.8)
plt.show()

# %% tags=["claims"]
# @title Checked: linear reaches equal levels first, cosine last
assert min(halfway, key=halfway.get) == "linear" and max(halfway, key=halfway.get) == "cosine"
assert processes["linear"].log_snr(0.71) < -5 and processes["cosine"].log_snr(0.71) > -2

# %% [markdown]
# In the left panel you see what the code of most schedules computes first, $\beta$. It is hard to
# compare the schedules there. Compare them in the right panel: where a line is steep, a schedule
# hurries, and where it is flat, the schedule spends many steps. The linear schedule is below −5 by
# $t = 0.71$, and nearly a third of its steps still follow. The cosine has then not reached −2.
# Nichol & Dhariwal skipped up to a fifth of the steps of a model trained with the linear schedule,
# the noisiest ones. They reported that it got little worse, and they designed the cosine to fall
# more evenly.

# %% alt="One digit under one noise at nine times, a row for each of six schedules. The linear schedule hides the digit first and the cosine last. At the end all six look like noise."
show_strips({name: strip(betas) for name, betas in schedules.items()},
            "One digit, one noise, six schedules; above: the time $t$")  # fmt: skip

# %% [markdown]
# ### Noise has no favourite frequency
#
# You may read that a $\beta$ that grows like $t^2$ (our "quadratic") "adds more noise at higher
# frequencies". It does not. In equation (1) each pixel gets its own independent noise, so the noise is
# *white*: every spatial frequency gets the same share, whatever $\beta$ is. The *pictures* are not
# white. Their fine details have little power, so details drown first, on every schedule.
#
# **Predict, then run.** We take the digits along the quadratic chain to $\lambda = 0$ and split the
# added noise into coarse and fine waves. In which of the two is the signal-to-noise ratio higher, and by
# how much?

# %%
turns = np.abs(np.fft.fftfreq(8, 1 / 8))  # waves per picture, 0 to 4, in each direction
wave = np.hypot(turns[:, None], turns)
bands = {"coarse": (wave > 0) & (wave < 2), "fine": wave > 3}


def power(x):
    """Mean square of the waves of each band; 1 for white noise of variance 1."""
    waves = np.abs(np.fft.fft2(np.asarray(x, np.float64)[..., 0], norm="ortho")) ** 2
    return {name: waves[:, band].mean() for name, band in bands.items()}


stop = round(halfway["quadratic"] * T)
quadratic = schedules["quadratic"][:stop]
*_, at_stop = chain(jnp.asarray(few_digits), jnp.asarray(quadratic), jax.random.key(16))
kept_share = alpha_bar_of(quadratic)[-1]
in_noise = power((at_stop - np.sqrt(kept_share) * few_digits) / np.sqrt(1 - kept_share))
in_picture = power(digits.x)
print("power of     coarse waves   fine waves")
for name, both in (("the noise", in_noise), ("the digits", in_picture)):
    print(f"{name:12s} {both['coarse']:12.3f} {both['fine']:12.3f}")
# At λ = 0 the picture and the noise have the same factor: the ratio of powers is that of the signals.
ratio_of = {band: in_picture[band] / in_noise[band] for band in bands}
print(f"signal to noise {ratio_of['coarse']:9.3f} {ratio_of['fine']:12.3f}")

# %% tags=["claims"]
# @title Checked: the noise is white; the digits' coarse waves have over ten times the power
for name, band in bands.items():
    # A wave and its mirror image are one: half as many independent values, each of variance 1.
    independent = len(few_digits) * band.sum() / 2
    assert abs(in_noise[name] - 1) < 4 / np.sqrt(independent)
assert in_picture["coarse"] > 10 * in_picture["fine"]
assert 20 < ratio_of["coarse"] / ratio_of["fine"] < 25

# %% [markdown]
# At the same $\lambda$ the signal-to-noise ratio of the coarse waves is more than 20 times that of the fine
# ones. The pictures make this difference, and the noise does not.

# %% [markdown]
# ## 6 · The last step: what is left at $t = 1$
#
# A sampler starts from pure noise. It may do so only if the forward process *ends* in pure noise. At
# the end, $\alpha(1) = \sqrt{\bar\alpha_T}$ times the data is left. So we look at this number.

# %%
left_over = {name: float(each.alpha(1.0)) for name, each in processes.items()}
for name, value in left_over.items():
    print(f"{name:14s} alpha(1) = {value:.5f}   log-SNR(1) = {log_snrs[name][-1]:6.1f}")

# %% [markdown]
# Scaled-linear is the schedule of Stable Diffusion. It keeps 7 % of the signal. A single pixel has
# noise of standard deviation 1, so that it tells us almost nothing about the signal. But the *mean*
# of many pixels averages the noise and keeps the signal.
#
# **Predict, then run.** We take all-black and all-white pictures of 64 × 64 pixels to $t = 1$. Can
# you tell from the noise which picture was black? Guess the share that you would get right.

# %%
size, count = 64, 400
colours = np.repeat([-1.0, 1.0], count)
flat = np.ones((2 * count, size, size, 1), np.float32) * colours[:, None, None, None]
flat_noise = jax.random.normal(jax.random.key(7), flat.shape)
means, right, by_pixel = {}, {}, {}
for name in ("scaled-linear", "linear", "zero-SNR"):
    end = process.add_noise(processes[name], flat, flat_noise, 1.0)
    means[name] = np.asarray(end.mean((1, 2, 3)))
    right[name] = np.mean((means[name] > 0) == (colours > 0))
    by_pixel[name] = np.mean(np.asarray(end > 0) == (colours > 0)[:, None, None, None])
    print(f"{name:14s} right by one pixel {by_pixel[name]:.1%}, "
          f"by the mean of all {right[name]:.1%}")  # fmt: skip

# %% alt="Histograms of the mean pixel at the end of the process, for pictures that were black and pictures that were white. Scaled-linear: two separate heaps. Linear: two heaps that overlap. Zero-SNR: one heap lies on the other."
fig, axes = plt.subplots(1, 3, figsize=(9, 2.2), sharex=True, sharey=True)
bins = np.linspace(-0.13, 0.13, 40)
for ax, (name, mean) in zip(axes, means.items(), strict=True):
    ax.hist(mean[colours < 0], bins, color=plots.SERIES[0], alpha=0.8)
    ax.hist(mean[colours > 0], bins, color=plots.SERIES[1], alpha=0.6)
    ax.set(title=name, xlabel="mean of all pixels at $t$ = 1", ylim=(0, 100))
axes[0].set_ylabel("pictures")
axes[0].text(-0.1, 85, "was black", color=plots.SERIES[0], size="small")
axes[0].text(0.04, 85, "was white", color=plots.SERIES[1], size="small")
plt.show()

# %% tags=["claims"]
# @title Checked: scaled-linear keeps 7 % and gives the brightness away; zero-SNR keeps nothing
assert left_over["zero-SNR"] == 0.0
assert round(left_over["scaled-linear"], 2) == 0.07
assert left_over["scaled-linear"] > 10 * left_over["linear"]
assert by_pixel["scaled-linear"] < 0.55
# The two means are ±0.068, the noise of the mean 1/64: 4.4 standard deviations from confusion, so
# that an error among all the pictures has a chance of less than 1 in 200.
assert right["scaled-linear"] == 1
# Guessing gives one half, with a standard error of 0.5/sqrt(800).
assert abs(right["zero-SNR"] - 0.5) < 4 * 0.5 / np.sqrt(2 * count)
x_1 = process.add_noise(processes["zero-SNR"], flat, flat_noise, 1.0)
assert np.array_equal(x_1, flat_noise)  # exactly the noise, to the last bit

# %% [markdown]
# Under scaled-linear, the mean of the "noise" still tells us how bright the picture was, without
# error. A network that is trained on such noise learns to read the brightness there. When we draw a
# sample, we give it true noise, whose mean is close to 0. The network then reads "medium grey". Lin et
# al. 2024 found that for this reason Stable Diffusion hardly ever draws very dark or very bright
# pictures.
#
# Their remedy shifts and stretches $\sqrt{\bar\alpha}$ so that it ends at exactly 0
# (`process.zero_terminal_snr`). The remedy has a price. At $t = 1$ the input is exactly
# $\varepsilon$, bit for bit, so a network that predicts $\varepsilon$ has nothing to learn there.
# Chapter 02 shows what it should predict instead.

# %% [markdown]
# ### The clip of the cosine
#
# The formula of the cosine reaches $\bar\alpha = 0$ at $t = 1$, and so $\beta_T = 1$. DDPM's formulas
# divide by $\sqrt{\bar\alpha_T}$, so Nichol & Dhariwal clip $\beta$ at 0.999. This clip is harmless. A
# lower clip is not: with 0.02, DDPM's largest value, a part of the data is left at the end again.
#
# Some code also clips $\beta$ from *below*, at $10^{-4}$, DDPM's smallest value. The cosine's first
# betas are smaller than that. With the floor, the first pictures of the chain get more noise than the
# formula says, and a network that was trained without the floor expects less.

# %%
unclipped = np.cos((1 + 0.008) / (1 + 0.008) * np.pi / 2) ** 2  # the formula at t = 1
clips = {clip: np.sqrt(alpha_bar_of(process.cosine_betas(T, max_beta=clip))[-1])
         for clip in (0.999, 0.5, 0.1, 0.02)}  # fmt: skip
for clip, value in clips.items():
    print(f"beta clipped at {clip:<6} alpha(1) = {value:.5f}")

lifted = np.maximum(schedules["cosine"], 1e-4)  # clipped from below as well
too_small = int(np.sum(schedules["cosine"] < 1e-4))
variances = [1 - alpha_bar_of(each)[1] for each in (schedules["cosine"], lifted)]
print(f"{too_small} of the cosine's betas are below 1e-4; with a floor there, the first step adds "
      f"{variances[1] / variances[0]:.1f} times the variance")  # fmt: skip

# %% [markdown]
# ### The first step: $\bar\alpha_0$ is 1
#
# The other end of the table has a trap too. Code often keeps a table of $T$ entries, counted from 0,
# whose "entry 0" is $\bar\alpha_1 = 1-\beta_1$. A sampler that ends at entry 0 stops one step before
# the data. It leaves noise of standard deviation $\sqrt{\beta_1}$ in every picture. For comparison,
# neighbouring grey levels of an 8-bit picture on [−1, 1] are $2/255 \approx 0.008$ apart.
#
# In this course the table has $T + 1$ entries, and step 0 is exactly the data.

# %%
grey_level = 2 / 255
left_behind = {name: np.sqrt(schedules[name][0]) for name in ("linear", "scaled-linear")}
for name, std in left_behind.items():  # what a sampler that stops at ᾱ_1 leaves behind
    print(f"{name:14s} leaves std {std:.4f} = {std / grey_level:.1f} grey levels")

# %% tags=["claims"]
# @title Checked: a clip of 0.02 leaves data, a floor changes 13 betas; step 0 is exactly the data
assert too_small == 13 and (lifted != schedules["cosine"]).sum() == 13
assert 2.3 < variances[1] / variances[0] < 2.6
assert unclipped < 1e-30
assert clips[0.999] < 1e-4
assert clips[0.02] > 8 * left_over["linear"]
assert min(left_behind.values()) > grey_level
for each in processes.values():
    assert each.alpha(0.0) == 1 and each.sigma(0.0) == 0
    assert np.array_equal(process.add_noise(each, digits.x, noise_of_key, 0.0), digits.x)

# %% [markdown]
# ## 7 · Explore: one slider over all of it
#
# Choose a schedule and drag the time. At the left you see digits as a network would see them
# (values beyond [−1, 1] are drawn black or white). In the middle you see the histogram of all pixels.
# It starts as two spikes, one for paper and one for ink, and it ends on the bell curve. At the
# right you see where you are on the ladder of section 4.
#
# Try this: in every schedule, find the time at which *you* can no longer read the digits. Then
# compare the log-SNR at these times.


# %%
pixel_edges = np.linspace(-4, 4, 81)


def shares_of(x):
    """The density of all pixels between the edges."""
    return np.histogram(x, pixel_edges, density=True)[0]


def draw_histogram(ax, x):
    """All pixels against the standard normal; returns the bars, to be changed."""
    bars = ax.stairs(shares_of(x), pixel_edges, fill=True, color=plots.DATA, alpha=0.5)
    ax.plot(grid, bell, color=plots.TRUTH, lw=1)
    ax.set(ylim=(0, 1), xlabel="pixel value", ylabel="density", title="pixels and the bell curve")
    ax.set(xticks=[-2, 0, 2], yticks=[0, 0.5, 1])
    return bars


def draw_log_snr(ax, name):
    """The schedule's log-SNR among the others; returns a dot at t = 0, to be moved."""
    for other in log_snrs.values():
        ax.plot(clock, other, color=plots.NOISE, lw=0.8, alpha=0.6)
    ax.plot(clock, log_snrs[name], color=plots.DATA, lw=2)
    ax.set(ylim=(-13, 13), xlabel="time $t$", ylabel=r"$\lambda$, log-SNR", title=name)
    ax.set(xticks=[0, 0.5, 1], yticks=[-10, 0, 10])
    return ax.plot(0, 13, "o", ms=9, color=plots.SERIES[1], clip_on=False)[0]


# %%
crowd = digits.x[:400]
crowd_noise = np.asarray(jax.random.normal(jax.random.key(9), crowd.shape))
moments = np.linspace(0, 1, 13)


def pictures(name):
    """One schedule at all moments: digits, histogram and log-SNR."""
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="none")
    fig.subplots_adjust(0.02, 0.18, 0.98, 0.9, wspace=0.25)
    image = left.imshow(plots.tile(crowd[[0, 1, 2, 3, 4, 7]], 3))
    left.set(xticks=[], yticks=[])
    bars, dot = draw_histogram(middle, crowd), draw_log_snr(right, name)
    title = left.set_title("")

    def move(t):
        x = np.asarray(process.add_noise(processes[name], crowd, crowd_noise, t))
        image.set_data(plots.tile(x[[0, 1, 2, 3, 4, 7]], 3))
        title.set_text(rf"$x_t$ at $t$ = {t:.2f}")
        bars.set_data(shares_of(x))
        # At an end the log-SNR is infinite: the dot stands at the edge.
        dot.set_data([t], [np.clip(float(processes[name].log_snr(t)), -13, 13)])

    return widgets.render_changes(fig, [image, title, bars, dot], move, moments)


# %%
frames = {name: pictures(name) for name in processes}
labels = [f"t = {t:.2f}" for t in moments]
widgets.explorer(frames, labels, slider="time", choice="schedule", start=3)

# %% [markdown]
# The next figure shows three moments without a slider, for the linear schedule (above) and the cosine
# (below).

# %% alt="Four noisy digits and the histogram of the pixels at t = 0.25, 0.5 and 0.75; linear above, cosine below. The linear schedule's histogram lies on the bell curve from 0.5 on, the cosine's only at 0.75."
fig, axes = plt.subplots(2, 6, figsize=(11, 3.6), width_ratios=[1, 1] * 3)
for row, name in zip(axes, ("linear", "cosine"), strict=True):
    for (image, histogram), t in zip(row.reshape(3, 2), (0.25, 0.5, 0.75), strict=True):
        x = np.asarray(process.add_noise(processes[name], crowd, crowd_noise, t))
        image.imshow(plots.tile(x[[0, 1, 2, 3]], 2))
        image.set(xticks=[], yticks=[])
        image.set_title(rf"{name}, $t$ = {t}: $\lambda = {float(processes[name].log_snr(t)):z.1f}$")
        draw_histogram(histogram, x)
        histogram.set(title="", ylabel="", yticks=[], xlabel="pixel value" * (name == "cosine"))
plt.show()

# %% tags=["claims"]
# @title Checked: two spikes at the start, paper and ink; the bell curve at the end
tallest = np.argsort(shares_of(crowd))[-2:]
assert sorted(np.rint(pixel_edges[tallest] + 0.05)) == [-1, 1]
for each in processes.values():
    ended = shares_of(process.add_noise(each, crowd, crowd_noise, 1.0))
    at_middles = np.exp(-((pixel_edges[:-1] + 0.05) ** 2) / 2) / np.sqrt(2 * np.pi)
    # 25,600 pixels: a bar of 0.4 has a standard error of 0.4/sqrt(0.04·25600) = 0.0125.
    assert np.abs(ended - at_middles).max() < 4 * 0.0125

# %% [markdown]
# ## 8 · What a bad schedule looks like
#
# Now we can explain the picture from the start. Its three strips were three calls of `linear_betas`:
#
# | $T$ | $\beta_1 \dots \beta_T$ | |
# |---|---|---|
# | 1000 | 0.0001 … 0.02 | as intended |
# | 100 | 0.0001 … 0.02 | ten times fewer steps of the same size: $\sum\beta_n$ is a tenth |
# | 1000 | 0.0001 … 0.2 | end points that suit about 100 steps: $\sum\beta_n$ is tenfold |
#
# The end points belong to $T$. The signal level at the end follows from
# $\log\bar\alpha_T = \sum_n \log(1-\beta_n) \approx -\sum_n \beta_n$. This sum must stay the same. So
# if you take ten times fewer steps, make each $\beta$ ten times larger.
#
# How many steps of a schedule are useful? We call a step useful if its log-SNR lies within [−5, 5].
# On the ladder, a digit changes from clear to lost in this window.


# %%
def useful(some_process, T):
    """The share of steps 1 … T with a log-SNR within [−5, 5]."""
    return float(np.mean(np.abs(some_process.log_snr(np.arange(1, T + 1) / T)) <= 5))


trials = {
    "as intended": process.linear_betas(1000),
    "never noise": process.linear_betas(100),
    "over at once": process.linear_betas(1000, 1e-4, 0.2),
    "T = 100, repaired": process.linear_betas(100, 1e-3, 0.2),
}
trial_processes = {name: process.from_betas(betas) for name, betas in trials.items()}
totals = {name: betas.sum() for name, betas in trials.items()}
for name, each in trial_processes.items():
    share = useful(each, len(trials[name]))
    print(f"{name:18s} sum of betas {totals[name]:6.2f}   alpha(1) = {float(each.alpha(1.0)):.4f}"
          f"   useful steps {share:.0%}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the sum of the betas decides; one schedule never ends, one is over at once
# A tenth, and ten times, to 1 %.
assert np.isclose(totals["never noise"] / totals["as intended"], 0.1, rtol=0.01)
assert np.isclose(totals["over at once"] / totals["as intended"], 10, rtol=0.01)

never, hasty = trial_processes["never noise"], trial_processes["over at once"]
assert never.alpha(1.0) > 0.6  # 60 % of the signal is left at the end
assert hasty.log_snr(0.25) < -5 and useful(hasty, 1000) < 0.25
assert useful(trial_processes["as intended"], 1000) > 2.5 * useful(hasty, 1000)
assert useful(never, 100) > 0.9 and useful(processes["cosine"], 1000) > 0.9
repaired, intended = trial_processes["T = 100, repaired"], trial_processes["as intended"]
# A chain of 100 steps is a coarser walk along the same curve: within 0.01 everywhere.
assert np.abs(repaired.alpha(clock[::10]) - intended.alpha(clock[::10])).max() < 0.01

# %% [markdown]
# In "never noise" nearly every step is useful, and still the schedule is useless. A sampler would
# start from pure noise, which the training has never shown. So look at two numbers: first at
# $\alpha(1)$, and then at the share of useful steps.
#
# Is [−5, 5] the right window? We ask a simple classifier. It knows the mean picture of every class,
# scales it by $\alpha(t)$, and picks the nearest. It needs no training. For classes that
# are round Gaussian clouds of equal size it would be optimal.

# %%
test = data.load("digits", split="test")
class_means = np.stack([digits.x[digits.labels == k].mean(0).ravel() for k in range(10)])
images, answers = np.tile(test.x, (10, 1, 1, 1)), np.tile(test.labels, 10)  # 10 noises per digit
image_noise = np.asarray(jax.random.normal(jax.random.key(10), images.shape))
# Scalar products with the means: those of x_t = α·image + σ·noise follow from these two.
of_images, of_noise = (x.reshape(len(x), -1) @ class_means.T for x in (images, image_noise))


def accuracy(some_process, times):
    """For each time the share of noisy test digits whose nearest α·mean is that of their class."""
    alpha, sigma = (np.asarray(level(times)) for level in (some_process.alpha, some_process.sigma))
    alpha, sigma = alpha[:, None, None], sigma[:, None, None]
    products = alpha * of_images + sigma * of_noise
    # |x − α·mean|² up to |x|², which is the same for all classes
    distance = alpha**2 * (class_means**2).sum(1) - 2 * alpha * products
    return np.mean(distance.argmin(-1) == answers, axis=1)


looks = np.linspace(0, 1, 41)
compared = {name: trial_processes[name] for name in list(trials)[:3]}
compared["cosine"] = processes["cosine"]
recognised = {name: accuracy(each, looks) for name, each in compared.items()}

# %% [markdown]
# **Predict, then run.** If we plot the share over *time*, the four schedules give four different
# curves. What will they give over *log-SNR*?

# %% alt="The share of digits that are recognised. Over time the four schedules give four different curves. Over log-SNR their points lie on one curve, which falls from 0.9 to guessing within the shaded part, from 5 to −5."
fig, (ax, bx) = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
plots.curves(looks, recognised, ax=ax, xlabel="time $t$", ylabel="share recognised", label_at=0.3)
for (name, shares), color in zip(recognised.items(), plots.SERIES, strict=False):
    bx.plot(compared[name].log_snr(looks), shares, "o", ms=4, alpha=0.6, color=color)
bx.set(xlabel=r"$\lambda$, log signal-to-noise", xlim=(10, -10), title="the same points against λ")
for panel in (ax, bx):
    panel.axhline(0.1, color=plots.NOISE, lw=0.8)
bx.text(9.5, 0.12, "guessing", color=plots.NOISE, size="small")
ax.set_ylim(0, 1)
bx.axvspan(5, -5, color=plots.NOISE, alpha=0.15, lw=0)
plt.show()

# %% [markdown]
# Over log-SNR, the four schedules give one curve. It must be so: from $\alpha^2 + \sigma^2 = 1$
# follows $\alpha^2 = \operatorname{sigmoid}(\lambda)$, so that at equal $\lambda$ the pictures are
# made with equal levels. All variance-preserving schedules walk down the same ladder. A schedule only
# decides **how long to stay on each rung**. And the window fits: at $\lambda = 5$ the classifier
# loses nothing, at −5 it reads little more than it would guess.

# %%
window = np.linspace(-6, 6, 25)
at_log_snr = {name: np.interp(window, compared[name].log_snr(looks)[:0:-1], shares[:0:-1], np.nan)
              for name, shares in recognised.items()}  # fmt: skip
columns = np.array(list(at_log_snr.values()))  # "never noise" stops at −0.5: the rest of it is NaN
spread = (np.nanmax(columns, axis=0) - np.nanmin(columns, axis=0)).max()
print(f"largest difference at equal log-SNR: {spread:.3f}")
clean, fine, lost = recognised["cosine"][0], at_log_snr["cosine"][-3], at_log_snr["cosine"][2]
print(f"recognised: clean {clean:.0%}, at λ = 5 {fine:.0%}, at λ = −5 {lost:.0%}; guessing 10 %")

# %% tags=["claims"]
# @title Checked: one curve over log-SNR; nothing is lost at 5, nearly all at −5
# Equal levels and equal noises give equal pictures. Only the values between two of the 41 times
# differ, since they lie on a straight line instead of the curve (measured 0.009).
assert spread < 0.015
assert window[-3] == 5 and window[2] == -5
assert abs(fine - clean) < 0.01 and 0.1 < lost < 0.16
assert window[12] == 0 and lost + 0.2 < at_log_snr["cosine"][12] < clean - 0.1  # in between at 0

# %% [markdown]
# ### A bigger picture needs more noise
#
# The ladder holds for pictures of 8 × 8 pixels. Enlarge a digit to four times its width, and add the
# same noise. Then average each block of 4 × 4 pixels. The average divides the noise by 4, and the
# digit is visible again, because sixteen neighbouring pixels carry the same information.
#
# So for larger pictures the schedule must go further down the ladder. Hoogeboom et al. 2023 shift
# $\lambda$ by $-2\log 4$ for a picture of four times the width. Chen 2023 found the same need by
# experiment.

# %%
cosine, time_shown = processes["cosine"], 0.75
large = np.repeat(np.repeat(eight, 4, axis=1), 4, axis=2)
keys = jax.random.split(jax.random.key(11))
small_noisy = process.add_noise(cosine, eight, jax.random.normal(keys[0], eight.shape), time_shown)
large_noisy = process.add_noise(cosine, large, jax.random.normal(keys[1], large.shape), time_shown)
pooled = np.asarray(large_noisy).reshape(8, 8, 4, 8, 4, 1).mean((2, 4))
residual = pooled - float(cosine.alpha(time_shown)) * eight
expected = float(cosine.sigma(time_shown)) / 4
print(f"noise after averaging 4 × 4 pixels: {residual.std():.3f}, a quarter is {expected:.3f}")

# %% alt="Eight noisy digits in three rows. At 8 × 8 pixels they are hidden; at 32 × 32 one sees only fine noise; averaged over blocks of 4 × 4 pixels, and divided by alpha, the digits are visible again."
views = {
    "8 × 8": small_noisy,
    "32 × 32": large_noisy,
    "32 × 32,\naveraged, ÷ α": pooled / cosine.alpha(time_shown),
}
fig, axes = plt.subplots(3, 1, figsize=(6, 2.7))
for ax, (name, x) in zip(axes, views.items(), strict=True):
    ax.imshow(plots.tile(x, 8, gap=x.shape[1] // 8))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% tags=["claims"]
# @title Checked: the average of 4 × 4 pixels has a quarter of the noise
# 512 pixels: the standard error of a standard deviation is σ/sqrt(2·512), and 4 of them 12.5 %.
assert abs(residual.std() / expected - 1) < 4 / np.sqrt(2 * residual.size)

# %% [markdown]
# ## 9 · Break it on purpose: a variance in place of a standard deviation
#
# $\beta$ is a variance and $\sqrt\beta$ is a standard deviation, but the two look alike in code. Here
# are two bugs:
#
# - **Bug A** is in the chain: `x = sqrt(1 - beta) * x + beta * eps`. The root is missing.
# - **Bug B** is in the jump: `alpha * x0 + sigma**2 * eps`. The square is too much.
#
# The program does not crash, and both bugs begin at the data. **Predict, then run:** what will the
# digits look like at the end with bug A, and what with bug B?


# %% alt="One digit at nine times. Right: it ends as noise. Bug A: it fades to grey with hardly any noise. Bug B: it ends as noise too, and its middle looks plausible."
@jax.jit
def step_with_bug_a(x, beta, key):
    eps = jax.random.normal(key, x.shape)
    return jnp.sqrt(1 - beta) * x + beta * eps  # beta is a variance: sqrt(beta) belongs here


linear, marks = processes["linear"], np.arange(0, 1001, 125)
some = jnp.asarray(digits.x[:200])
some_noise = jax.random.normal(jax.random.key(13), some.shape)
walk_a = chain(some, schedules["linear"], jax.random.key(14), step_with_bug_a)
walk_a = np.stack(list(walk_a))[marks]
right_x = np.stack([process.add_noise(linear, some, some_noise, n / T) for n in marks])
bug_b = np.stack([linear.alpha(n / T) * some + linear.sigma(n / T) ** 2 * some_noise
                  for n in marks])  # fmt: skip
show_strips({"right": right_x[:, 3], "bug A": walk_a[:, 3], "bug B": bug_b[:, 3]},
            "One digit; above: the time $t$")  # fmt: skip

# %% [markdown]
# With bug A the picture fades to grey: the signal disappears, and hardly any noise takes its place.
# You find this bug when you look at the pictures at $t = 1$. Bug B is harder to find. It is right at both ends, since
# $0^2 = 0$ and $1^2 = 1$, and to the eye the middle looks plausible. The moments show both bugs:
# measure the standard deviation of the added noise, $x_t - \alpha(t)\,x_0$, and compare it with
# $\sigma(t)$.
#
# We can also compute what the bugs do. With bug A the variance obeys
# $v_n = (1-\beta_n)\,v_{n-1} + \beta_n^2$. With bug B the standard deviation is $\sigma^2$.

# %% alt="The standard deviation of the noise over time; lines are the theory and dots are measured. The right curve and bug B both rise to 1, and bug B lies below in between. Bug A ends below 0.2."
v = [0.0]
for beta in schedules["linear"]:
    v.append((1 - beta) * v[-1] + beta**2)
level = np.asarray(linear.sigma(clock))
theory = {"right: σ": level, "bug A: √v": np.sqrt(v), "bug B: σ²": level**2}
signal = np.asarray(linear.alpha(marks / T))[:, None, None, None, None] * np.asarray(some)
measured = [np.std(x - signal, axis=(1, 2, 3, 4)) for x in (right_x, walk_a, bug_b)]
ax = plots.curves(clock, theory, xlabel="time $t$", ylabel="std of the noise", label_at=0.35)
for values, color in zip(measured, plots.SERIES, strict=False):
    ax.plot(marks / T, values, "o", ms=5, color=color)
plt.show()
off_a, off_b, end_b = (values[k] / level[marks[k]]
                       for values, k in ((measured[1], -1), (measured[2], 1), (measured[2], -1)))  # fmt: skip
print(f"bug A at t = 1: {off_a:.0%} of the noise. "
      f"Bug B at t = 1/8: {off_b:.0%}; at t = 1: {end_b:.0%}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the moments show both bugs, and theory predicts them
# 12,800 values: the standard error of a standard deviation s is s/sqrt(2·12800).
limit = 4 / np.sqrt(2 * some.size)
for (name, line), values in zip(theory.items(), measured, strict=True):
    assert np.all(np.abs(values[1:] / line[marks][1:] - 1) < limit), name
assert np.allclose(process.sub_vp().sigma(clock), process.vp_linear().sigma(clock) ** 2, atol=1e-6)
assert off_a < 0.15 and off_b < 0.5 and abs(end_b - 1) < limit

# %% [markdown]
# Why is bug B so hard to notice? Training runs, the loss falls, and every sample starts from the right
# noise. But the sampler uses $\sigma$, a noise level that the training has never shown. Used on
# purpose, in training *and* sampling, the formula of bug B is correct: it is the sub-VP process of
# Song et al. 2021 (`process.sub_vp`). A bug is often a correct formula in the wrong place.
#
# **The lesson:** test the moments in the middle and not only at the ends. Use data whose mean isn't 0
# and whose variance isn't 1.
#
# ## 10 · What to inspect
#
# Before training anything on a new schedule, a practitioner looks at
#
# 1. pictures at $t = 0, ½, 1$: they show the data, a mixture, and pure noise;
# 2. $\alpha(1)$: is the end really noise, for pictures of *this* size?
# 3. log-SNR: does it fall at every step, and how many steps are useful?
# 4. the moments of $x_t$ in the middle.

# %%
half_noise = jax.random.normal(jax.random.key(15), digits.x.shape)
stds = {}
print("schedule        alpha(1)   λ = 0 at t   useful steps   std at t = ½ (theory)")
for name, each in processes.items():
    x_half = np.asarray(process.add_noise(each, digits.x, half_noise, 0.5))
    by_theory = np.sqrt(float(each.alpha(0.5)) ** 2 * digits.x.var() + float(each.sigma(0.5)) ** 2)
    stds[name] = x_half.std(), by_theory
    print(f"{name:15s} {left_over[name]:8.5f}   {halfway[name]:10.2f}   {useful(each, T):12.0%}"
          f"   {x_half.std():12.3f} ({by_theory:.3f})")  # fmt: skip

# %% tags=["claims"]
# @title Checked: every log-SNR falls, and every standard deviation is the one of theory
for name, (found, by_theory) in stds.items():
    assert np.all(np.diff(log_snrs[name].astype(np.float64)[1:-1]) < 0), name  # always falls
    # 92,000 pixels: 4 standard errors of a standard deviation are below 1 %.
    assert abs(found / by_theory - 1) < 0.01

# %% [markdown]
# ## 11 · Outlook: the same two functions of time
#
# After section 3 we have not needed the chain any more. Equation (3) needs only two functions, and
# any pair that leads from $(1, 0)$ to noise is a process. The processes of later chapters differ
# in these two functions only:
#
# | name | $\alpha(t)$ | $\sigma(t)$ | chapter |
# |---|---|---|---|
# | `vp_linear` | DDPM's limit of many steps | $\sqrt{1-\alpha^2}$ | 09 |
# | `vp_cosine` | a cosine, no clip | $\sqrt{1-\alpha^2}$ | 02 |
# | `variance_exploding` | 1 | up to 50, geometric | 09 |
# | `edm` | 1 | up to 80, $80\,t^7$ | 12 |
# | `rectified_flow` | $1-t$ | $t$ | 17 |

# %%
continuous = {
    "VP linear": process.vp_linear(),
    "VP cosine": process.vp_cosine(),
    "VE": process.variance_exploding(),
    "EDM": process.edm(),
    "rectified flow": process.rectified_flow(),
}

# %% alt="Five processes: signal level over time, noise level over time, and noise level against signal level. In the last panel the variance-preserving ones follow a quarter circle, rectified flow a straight line, and VE and EDM a vertical line. Grey rays join points of one log-SNR."
alphas = {name: np.asarray(each.alpha(clock)) for name, each in continuous.items()}
sigmas = {name: np.asarray(each.sigma(clock)) for name, each in continuous.items()}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.3))
by_name = {name.replace("rectified flow", ""): a for name, a in alphas.items()}
plots.curves(clock, by_name, ax=axes[0],
             xlabel="time $t$", ylabel=r"$\alpha$, signal level", label_at=0.45)  # fmt: skip
axes[0].text(0.58, 0.52, "rectified flow", size="small", rotation=-42, ha="center", va="center",
             color=plots.SERIES[4])  # fmt: skip
axes[1].set_ylim(1e-3, 120)
plots.curves(clock[1:], {name: s[1:] for name, s in sigmas.items()}, ax=axes[1], log="y",
             xlabel="time $t$", ylabel=r"$\sigma$, noise level", label_at=0.25)  # fmt: skip
for name, color, dash in zip(continuous, plots.SERIES, plots.DASHES, strict=False):
    axes[2].plot(alphas[name], sigmas[name], color=color, ls=dash)
for rung in (3, 0, -3):
    axes[2].plot([0, 2], [0, 2 * np.exp(-rung / 2)], color=plots.NOISE, lw=0.8)
for x, y, text in ((0.22, 1.04, "variance-preserving"), (0.72, 1.2, "VE, EDM"),
                   (0.45, 0.03, r"$\lambda = 3$"), (0.8, 0.74, r"$\lambda = 0$"),
                   (0.02, 1.22, r"$\lambda = -3$")):  # fmt: skip
    axes[2].text(x, y, text, size="small")
axes[2].text(0.45, 0.45, "rectified flow", size="small", rotation=-45, ha="center", va="center")
axes[2].set(xlim=(0, 1.15), ylim=(0, 1.35), aspect="equal")
axes[2].set(xlabel=r"$\alpha$, signal level", ylabel=r"$\sigma$, noise level")
plt.show()

# %% [markdown]
# The right panel shows each process as a path that starts at the data, $(1, 0)$. Variance-preserving
# processes follow the quarter circle. Rectified flow goes along a straight line. VE and EDM climb the
# vertical line and leave the picture. On each grey ray from the origin the log-SNR is constant. All
# paths cross all rays in the same order. So each process is a rescaled version of the others, with
# another time.

# %%
gap = np.abs(alphas["VP linear"] - np.sqrt(alpha_bars["linear"])).max()
print(f"DDPM's 1000 steps and the continuous process differ by at most {gap:.4f} in alpha")

# %% tags=["claims"]
# @title Checked: VP linear is DDPM's limit; a circle, a straight line; every log-SNR falls
assert gap < 2e-3  # of the order of 1/T
# The table, and the lines that start at (1, 0). float32 keeps seven digits of a level.
assert all(values[0] == 1 for values in alphas.values())
assert all(values[0] == 0 for values in sigmas.values())
assert np.all(alphas["VE"] == 1) and np.all(alphas["EDM"] == 1)
assert np.allclose(sigmas["EDM"], 80 * clock**7, rtol=1e-5)
assert np.isclose(sigmas["VE"][-1], 50, rtol=1e-5)
assert np.isclose(sigmas["VE"][600] / sigmas["VE"][500], 5000**0.1, rtol=1e-3)  # geometric
circle = alphas["VP cosine"] ** 2 + sigmas["VP cosine"] ** 2
assert np.abs(circle - 1).max() < 1e-5
assert np.abs(alphas["rectified flow"] + sigmas["rectified flow"] - 1).max() < 1e-6
for each in continuous.values():
    assert np.all(np.diff(np.asarray(each.log_snr(clock[1:-1]), np.float64)) < 0)

# %% [markdown]
# ## Recap
#
# 1. A step shrinks by $\sqrt{1-\beta}$ and adds noise of variance $\beta$; variances add up. A short
#    step can be undone by one Gaussian whose mean needs only the average of the possible $x_0$.
# 2. All steps together are one jump: $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$. At $t = 0$ it
#    gives exactly the data.
# 3. The log-SNR says how noisy a picture is. A schedule only says how long to stay at each log-SNR.
# 4. Look at both ends. $\alpha(1)$ should be practically 0 for pictures of your size, and the table
#    starts at $\bar\alpha_0 = 1$.
# 5. A bug can be right at both ends. Test the moments in the middle, on lopsided data.

# %% [markdown]
# ## Try it yourself
#
# 1. Design a schedule whose log-SNR is a straight line from 10 to −10. How many of its steps are
#    useful? How far apart are $\beta_1$ and $\beta_T$?
# 2. With `linear_betas(250, …)`, which end points give the curve of $T = 1000$?
# 3. Replace the Gaussian noise in `chain` by coin flips of ±1. At which steps do the moments still
#    agree? At which steps do the histograms agree?

# %% [markdown]
# ## Further reading
#
# - J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli. *Deep Unsupervised Learning using
#   Nonequilibrium Thermodynamics.* ICML 2015. [arXiv:1503.03585](https://arxiv.org/abs/1503.03585).
# - J. Ho, A. Jain, P. Abbeel. *Denoising Diffusion Probabilistic Models.* NeurIPS 2020.
#   [arXiv:2006.11239](https://arxiv.org/abs/2006.11239). Sections 2 and 4.
# - A. Nichol, P. Dhariwal. *Improved Denoising Diffusion Probabilistic Models.* ICML 2021.
#   [arXiv:2102.09672](https://arxiv.org/abs/2102.09672). Section 3.2: the cosine.
# - D. P. Kingma, T. Salimans, B. Poole, J. Ho. *Variational Diffusion Models.* NeurIPS 2021.
#   [arXiv:2107.00630](https://arxiv.org/abs/2107.00630). Log-SNR as the true clock.
# - Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon, B. Poole. *Score-Based Generative
#   Modeling through Stochastic Differential Equations.* ICLR 2021.
#   [arXiv:2011.13456](https://arxiv.org/abs/2011.13456).
# - S. Lin, B. Liu, J. Li, X. Yang. *Common Diffusion Noise Schedules and Sample Steps Are Flawed.*
#   WACV 2024. [arXiv:2305.08891](https://arxiv.org/abs/2305.08891).

# %% [markdown]
# - E. Hoogeboom, J. Heek, T. Salimans. *simple diffusion: End-to-end diffusion for high resolution
#   images.* ICML 2023. [arXiv:2301.11093](https://arxiv.org/abs/2301.11093).
# - T. Chen. *On the Importance of Noise Scheduling for Diffusion Models.* 2023.
#   [arXiv:2301.10972](https://arxiv.org/abs/2301.10972).
# - R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with
#   Latent Diffusion Models.* CVPR 2022. [arXiv:2112.10752](https://arxiv.org/abs/2112.10752).
# - M. Xu, L. Yu, Y. Song, C. Shi, S. Ermon, J. Tang. *GeoDiff: A Geometric Diffusion Model for
#   Molecular Conformation Generation.* ICLR 2022.
#   [arXiv:2203.02923](https://arxiv.org/abs/2203.02923).
#
# **New words:** forward process, schedule ($\beta$), $\bar\alpha$, closed form, signal and noise
# level ($\alpha$, $\sigma$), log-SNR, variance-preserving, terminal SNR, standard error.
