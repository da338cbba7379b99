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
# # 19 · Steering without retraining
#
# **The question.** A model draws what is likely. We have a measurement, or a wish, that it has never heard of.
# How do we make it draw what is likely *and* agrees with this, and how far can we trust the result?
#
# At the end of this chapter you will be able to
#
# - solve a linear inverse problem with any denoiser in four ways, and say what each of them leaves out;
# - measure a method against the exact posterior, its modes and its spread, and not only its pictures;
# - repair a wrong guess with particles and weights, and recognise the bug that forgets the weights;
# - say what best of n costs, and what a fine-tuned model should become;
# - see reward hacking come, from one curve.
#
# **You need** chapters 07 (guidance), 08 (editing) and 09 (the reverse SDE). **Time**: about 90 minutes of
# reading. The cells run for about a minute and a half on two CPU cores.

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
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from scipy.special import ndtr

from diffusion_course import data, denoiser, inverse, linear_gaussian, operators, particles
from diffusion_course import process, rewards, samplers, sampling, weights
from diffusion_course.data import toy2d
from diffusion_course.models.classifier import judge
from diffusion_course.models.mlp import MLP
from diffusion_course.notebook import plots, widgets

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# A point lies somewhere in the plane. We know the distribution that it comes from: three Gaussians, the
# **prior**. Somebody measures how far to the right the point is, with a ruler that errs by $\sigma_y = 0.1$, and
# reads $y = 0.4$. Where is the point?
#
# Bayes' rule gives the exact answer, the **posterior**: two of the three clouds are possible. The upper one has
# a probability of about three quarters. All panels use the same exact denoiser of the prior. Nothing is
# trained. They differ only in how they tell it about $y$.
#
# **Predict, then run.** All five methods are published and in use. How many of them will find the three
# quarters?

# %%
p = process.vp_cosine()
MEANS, STDS, SHARES = toy2d.MIXTURE
COVARIANCES = STDS[:, None, None] ** 2 * np.eye(2)
prior = denoiser.gaussian_mixture(p, MEANS, STDS, SHARES)
A = operators.mask([True, False])  # what is measured: the first coordinate
SIGMA_Y, Y_SEEN = 0.1, 0.4


def solve_exactly(y, sigma_y=SIGMA_Y):
    """The exact posterior of x0, when the ruler shows y."""
    return linear_gaussian.posterior(p, MEANS, COVARIANCES, SHARES, A, np.array([y, 0.0]), sigma_y)


exact = solve_exactly(Y_SEEN)
truth = exact.posterior
print("probabilities of the three clouds:", np.asarray(truth.weights).round(3))


# %%
def walk(sampler, D, x, steps, key):
    """Runs a sampler over `steps` equal steps of time; the number may be traced."""

    def body(i, carry):
        t, s = 1 - i / steps, jnp.maximum(1 - (i + 1) / steps, 0)  # rounding may pass 0
        x, state = carry
        return sampler.step(D, x, t, s, jax.random.fold_in(key, i), state)

    return jax.lax.fori_loop(0, steps, body, (x, sampler.init(x)))[0]


def pasted(sampler, y):
    """Replacement: after each step, what was measured is pasted in, with the noise of time s."""

    def step(D, x, t, s, key, state):
        key_step, key_paste = jax.random.split(key)
        x_s, state = sampler.step(D, x, t, s, key_step, state)
        known = p.alpha(s) * y + p.sigma(s) * jax.random.normal(key_paste, x.shape)
        return jnp.where(jnp.array([True, False]), known, x_s), state

    return samplers.Sampler(sampler.init, step)


# %%
DATA_STD = 0.51  # of the prior, for one coordinate: section 5 needs it
D, ddim = prior.denoise, samplers.ddim(p)
METHODS = {  # name: y and sigma_y -> the sampler, and the denoiser that it calls
    "replacement": lambda y, sd: (pasted(ddim, y), D),
    "DDNM": lambda y, sd: (ddim, inverse.ddnm(D, A, y)),
    "DPS": lambda y, sd: (ddim, inverse.dps(D, p, A, y, sd)),
    "DPS, norm": lambda y, sd: (inverse.dps_steps(ddim, A, y, 0.1), D),
    "ΠGDM": lambda y, sd: (ddim, inverse.pigdm(D, p, A, y, sd, DATA_STD)),
}


@partial(jax.jit, static_argnames="method")
def ask(method, x, y, steps, key, sigma_y=SIGMA_Y):
    """What a method makes of the noise x [B, 2], when the ruler shows y."""
    shown = jnp.array([[1.0, 0.0]]) * y
    sampler, told = METHODS[method](shown, sigma_y)
    return walk(sampler, told, x, steps, key)


noise = jax.random.normal(jax.random.key(0), (6000, 2))
first_look = {name: ask(name, noise, Y_SEEN, 100, jax.random.key(1)) for name in METHODS}

# %%
above_0 = ndtr((np.asarray(truth.means)[:, 1] - 0.1) / STDS)  # of each cloud, above the dotted line
right_share = float(np.sum(truth.weights * above_0))
from_truth = np.asarray(truth.sample(jax.random.key(2), 6000))
upper = lambda x: float(np.mean(np.asarray(x)[:, 1] > 0.1))  # the share in the upper cloud
clouds = {f"exact: {upper(from_truth):.0%} above": from_truth[:800]}
clouds |= {f"{name}: {upper(x):.0%}": x[:800] for name, x in first_look.items()}
behind = np.asarray(prior.sample(jax.random.key(3), 500))
fig = plots.panels(clouds, behind=behind, limits=(-1.2, 1.4), scale=1.75)
for ax in fig.axes:
    ax.axvline(Y_SEEN, color=plots.TRUTH, lw=0.6)
    ax.axhline(0.1, color=plots.NOISE, lw=0.6, ls=":")
plt.show()

# %% tags=["claims"]
# @title Checked: the truth is three quarters, and every method is far from it
assert 0.72 < right_share < 0.78
noise_of_share = np.sqrt(right_share * (1 - right_share) / 6000)  # .0055
assert abs(upper(from_truth) - right_share) < 4 * noise_of_share
assert all(abs(upper(x) - right_share) > 8 * noise_of_share for x in first_look.values())
for x in (from_truth, *first_look.values()):
    assert np.sqrt(np.mean((np.asarray(x)[:, 0] - Y_SEEN) ** 2)) < 2.3 * SIGMA_Y
assert upper(first_look["replacement"]) < 0.5 < 0.8 < upper(first_look["DPS"])

# %% [markdown]
# None. In each panel the vertical line is the measurement, and the points agree with it to about two $\sigma_y$
# or better. If these were pictures, nearly all would pass. But the shares are wrong by 8 standard errors or
# more. Replacement puts less than half of its points above, DPS more than four fifths.
#
# This is the theme of the chapter: **a plausible answer that agrees with the data is not yet a draw from the
# posterior.** On photographs nobody can see the difference. Here we can.

# %% [markdown]
# ## 2 · Bayes' rule for a denoiser
#
# Let $y = A x_0 + \sigma_y\,\varepsilon$ with a known matrix $A$. For data from a mixture the posterior is a
# mixture again (for one Gaussian: Bishop 2006, section 2.3.3). Component $k$ has the gain $G_k = C_k A^\top (A
# C_k A^\top + \sigma_y^2 I)^{-1}$, and becomes
#
# $$\mathcal N\big(m_k + G_k (y - A m_k),\; C_k - G_k A C_k\big), \qquad
# w_k' \propto w_k\, \mathcal N(y;\, A m_k,\, A C_k A^\top + \sigma_y^2 I). \tag{1}$$
#
# For a general prior we use Tweedie's formula of chapter 02 twice, for $p(x_t)$ and for $p(x_t \mid y)$. The
# difference of the two scores is $\nabla \log p(y \mid x_t)$, so
#
# $$D(x_t, t \mid y) = D(x_t, t) + \frac{\sigma_t^2}{\alpha_t}\, \nabla_{x_t} \log p(y \mid x_t). \tag{2}$$
#
# This is classifier guidance of chapter 07 with $w = 1$. The second term is the **push**. It is the only thing
# that we lack, and it is hard, because $y$ was measured from $x_0$ and not from $x_t$:
# $p(y \mid x_t) = \int p(y \mid x_0)\, p(x_0 \mid x_t)\, dx_0$.


# %%
def mixture_posterior(means, covariances, shares, a, y, sigma_y):
    """Equation (1) for one measured number y = a·x0 + noise: means, covariances, weights."""
    spread = np.einsum("d,kde,e->k", a, covariances, a) + sigma_y**2  # of y, by component
    gain = np.einsum("kde,e->kd", covariances, a) / spread[:, None]
    apart = y - means @ a
    new_means = means + gain * apart[:, None]
    new_covariances = covariances - np.einsum("kd,e,kef->kdf", gain, a, covariances)
    joint = shares * np.exp(-0.5 * apart**2 / spread) / np.sqrt(2 * np.pi * spread)
    return new_means, new_covariances, joint / joint.sum(), joint.sum()


by_hand = mixture_posterior(MEANS, COVARIANCES, SHARES, np.array([1.0, 0.0]), Y_SEEN, SIGMA_Y)
print("means\n", by_hand[0].round(3), "\nweights", by_hand[2].round(3), f"p(y) = {by_hand[3]:.4f}")

# %% tags=["comparison"]
# float32 in the library's mixture, float64 here.
np.testing.assert_allclose(by_hand[0], truth.means, atol=1e-5)
np.testing.assert_allclose(by_hand[2], truth.weights, atol=1e-5)
total = np.trace(by_hand[1], axis1=1, axis2=2)
np.testing.assert_allclose(total, truth.variances.sum(1), atol=1e-5)
np.testing.assert_allclose(np.log(by_hand[3]), exact.log_evidence, atol=1e-6)


# %%
def push(x, t):
    """(σ²/α)·∇ log p(y | x_t), from Bayes' rule: log p(x_t | y) − log p(x_t) + log p(y)."""
    log_ratio = lambda x: jnp.sum(truth.log_prob(x, t) - prior.log_prob(x, t))
    return p.sigma(t) ** 2 / p.alpha(t) * jax.grad(log_ratio)(x)


probe = jax.random.normal(jax.random.key(4), (200, 2))
for t in (0.2, 0.5, 0.8):
    error = np.abs(D(probe, t) + push(probe, t) - truth.denoise(probe, t)).max()
    print(f"t = {t}: equation (2) and the posterior's own denoiser differ by {error:.0e}")
ask_truth = jax.jit(lambda x, steps, key: walk(ddim, truth.denoise, x, steps, key))
with_truth = ask_truth(noise, 100, jax.random.key(1))
print(f"DDIM with the exact push: {upper(with_truth):.3f} above, exact {right_share:.3f}")

# %% tags=["claims"]
# @title Checked: equation (2), and that a sampler with the exact push finds the right share
worst = max(
    float(np.abs(D(probe, t) + push(probe, t) - truth.denoise(probe, t)).max())
    for t in (0.2, 0.5, 0.8)
)
assert worst < 1e-3  # float32; far from all clouds logarithms of size 100 are subtracted
# Three standard errors for 6,000 points, and .01 for the error of 100 steps.
assert abs(upper(with_truth) - right_share) < 3 * noise_of_share + 0.01

# %% [markdown]
# So the sampler is not the problem, and neither is the denoiser. Given the exact push, the same 100 steps of
# DDIM find the right share. So the errors of section 1, far larger than the sampler's, come from how the five methods
# bring $y$ in.
#
# ## 3 · Put in what is known: replacement and DDNM
#
# The oldest idea needs no gradient. Let the model draw, and put in what was measured.
#
# - **Replacement** puts it into the *state*: after each step, the known pixels of $x_s$ become $\alpha_s\, y +
#   \sigma_s\, \varepsilon$ (Song et al. 2021, appendix I).
# - **DDNM** puts it into the *guess* (Wang, Yu & Zhang 2023, algorithm 1):
#
# $$\hat x_0' = \hat x_0 + A^+ (y - A \hat x_0). \tag{3}$$
#
# $A^+$ is the pseudo-inverse. Equation (3) replaces the part of $\hat x_0$ that $A$ sees, and keeps the part
# that $A$ does not see (its null space, hence the name). If $A$ is a mask, this is chapter 08's equation (2).
# If $A$ takes the means of blocks, it is chapter 08's enlarging. So we know these two already.


# %%
def ddnm_by_hand(x, t, matrix, y):
    """Equation (3) with a matrix [M, D]."""
    x0 = D(x, t)
    return x0 + (y - x0 @ matrix.T) @ np.linalg.pinv(matrix).T


oblique = np.array([[0.6, 0.8]], np.float32)  # another ruler, in another direction
mine = ddnm_by_hand(probe, 0.5, oblique, 0.3)
library = inverse.ddnm(D, operators.matrix(oblique), jnp.array([[0.3]]))(probe, 0.5)
for sigma in (0.1, 0.02):
    shares = {m: upper(ask(m, noise, Y_SEEN, 100, jax.random.key(1), sigma)) for m in METHODS}
    of_truth = solve_exactly(Y_SEEN, sigma).posterior.weights[1]
    print(f"σ_y = {sigma}: exact {of_truth:.2f},", {m: f"{s:.2f}" for m, s in shares.items()})

# %% tags=["comparison"]
np.testing.assert_allclose(mine, library, atol=1e-5)

# %% tags=["claims"]
# @title Checked: both agree with y exactly, and their shares are wrong also when the ruler is
for name in ("replacement", "DDNM"):
    assert np.abs(np.asarray(first_look[name])[:, 0] - Y_SEEN).max() < 1e-4
    assert shares[name] < 0.5 < 0.9 < of_truth  # sigma_y = .02: the last turn of the loop above
assert abs(shares["replacement"] - shares["DDNM"]) < 0.03

# %% [markdown]
# Both take $y$ as free of error. Their points lie exactly on the line, where the true posterior has a width.
# This is no fault of theirs: they were made for exact measurements. (The same paper's DDNM⁺ puts in only as much of
# $y$ as its noise allows.)
#
# But their shares are wrong for another reason. With a much better ruler, $\sigma_y = 0.02$, the upper cloud
# has a probability of more than 0.9, and both still give it less than a half. Chapter 08 found the cause on two
# pixels. At high noise the measured coordinate is noisy too, so the other one takes its first steps with hardly
# any information. It has chosen a cloud before the measurement becomes clear.

# %% [markdown]
# ## 4 · DPS: as if the guess were the truth
#
# **Diffusion posterior sampling** computes a push. It replaces the integral of section 2 by one point: it takes
# $\hat x_0 = D(x_t, t)$ for $x_0$ itself (Chung et al. 2023, theorem 1). With Gaussian noise,
#
# $$\nabla \log p(y \mid x_t) \approx -\frac{1}{2\sigma_y^2}\,
# \nabla_{x_t} \lVert y - A D(x_t, t) \rVert^2. \tag{4}$$
#
# The gradient goes through the denoiser, so each evaluation of a network needs its backward pass as well.
#
# How wrong is (4)? Early, $\hat x_0$ is a vague mean. The true likelihood has to add its uncertainty $r_t^2$ to
# the ruler's $\sigma_y^2$. DPS leaves $r_t^2$ out. With $r_t = 0.5$ and $\sigma_y = 0.1$, it takes the variance
# for 26 times smaller than it is, and pushes 26 times too hard.
#
# **Predict, then run.** We take states $x_t$ as they occur on the way to the posterior, and compare the pushes.
# At which times will DPS be right?

# %%
levels_seen = np.linspace(0.01, 0.95, 20)
on_the_way = np.asarray(truth.sample(jax.random.key(5), 2000))


@partial(jax.jit, static_argnames="method")
def size_of_push(method, t):
    """Root mean square of what a method adds to D, over 2,000 states x_t of the posterior's path."""
    x = process.add_noise(p, on_the_way, jax.random.normal(jax.random.key(6), (2000, 2)), t)
    told = truth.denoise if method == "exact" else METHODS[method](
        jnp.array([[Y_SEEN, 0.0]]), SIGMA_Y)[1]  # fmt: skip
    return jnp.sqrt(jnp.mean((told(x, t) - D(x, t)) ** 2))


pushes = {name: np.array([size_of_push(name, t) for t in levels_seen])
          for name in ("exact", "DPS", "ΠGDM")}  # fmt: skip
fig, ax = plt.subplots(figsize=(5.5, 3))
plots.curves(levels_seen, pushes, xlabel="time $t$", ylabel="size of the push", log="y", ax=ax)
plt.show()
too_hard = pushes["DPS"] / pushes["exact"]
for t, factor in zip(levels_seen[::5], too_hard[::5], strict=True):
    print(f"t = {t:.2f}: DPS pushes {factor:.1f} times too hard")

# %% tags=["claims"]
# @title Checked: DPS is right at low noise, and far too strong at high noise; ΠGDM's error is smaller there
assert abs(too_hard[0] - 1) < 0.2 and too_hard[levels_seen > 0.3].min() > 10
assert np.abs(np.log(pushes["ΠGDM"] / pushes["exact"]))[-1] < np.abs(np.log(too_hard))[-1] / 2
np.testing.assert_allclose((0.5**2 + SIGMA_Y**2) / SIGMA_Y**2, 26)

# %% [markdown]
# DPS is about right where almost no noise is left, since there the guess is good. Above $t = 0.3$ it pushes at
# least ten times too hard. So it decides early, when nothing is clear yet. ΠGDM, the third line, comes in section 5.
#
# ### The norm, and not its square
#
# The authors' experiments do not use (4) as it stands. They take a plain step after each step of the sampler,
#
# $$x_s \leftarrow x_s - \zeta\, \nabla_{x_t} \lVert y - A D(x_t, t) \rVert \tag{5}$$
#
# (their algorithm 1. They write the slope of the squared norm, and divide a constant by the norm to get the step
# size; with the same constant that is twice (5)). The slope of a norm does not shrink when the residual does. So
# its pushes simply add up. What does that mean for the number of steps?
#
# **Predict, then run.** Twenty, 100 and 500 steps with (4), and with (5) at $\zeta = 0.1$. More steps mean less
# error of the solver. Which of the two will settle?

# %%
by_steps = {
    name: [upper(ask(name, noise, Y_SEEN, n, jax.random.key(1))) for n in (20, 100, 500)]
    for name in ("DPS", "DPS, norm")
}
for name, values in by_steps.items():
    print(f"{name:10} share above at 20, 100, 500 steps:", *(f"{v:.3f}" for v in values))
print(f"{'exact':10} {right_share:.3f}")
residual_of = lambda x: jnp.linalg.norm(0.4 - D(x, 0.5)[:, 0])
alone = jax.vmap(lambda x: jax.grad(residual_of)(x[None])[0])(probe)  # each with its own norm
together = jax.grad(residual_of)(probe)  # one norm for the whole batch
times_weaker = float(jnp.linalg.norm(alone) / jnp.linalg.norm(together))
print(f"one norm for a batch of 200: steps {times_weaker:.0f} times shorter")

# %% tags=["claims"]
# @title Checked: (4)'s share settles on a wrong value, (5) does not settle; a norm over the batch is another method
assert abs(by_steps["DPS"][1] - by_steps["DPS"][2]) < 3 * np.sqrt(2) * noise_of_share
assert by_steps["DPS"][2] > right_share + 10 * noise_of_share
assert by_steps["DPS, norm"][0] < by_steps["DPS, norm"][1] - 20 * noise_of_share
assert by_steps["DPS, norm"][1] < by_steps["DPS, norm"][2] - 20 * noise_of_share
one_by_one = jax.vmap(lambda x: jax.grad(lambda x: residual_of(x) ** 2)(x[None])[0])(probe)
np.testing.assert_allclose(jax.grad(lambda x: residual_of(x) ** 2)(probe), one_by_one, atol=1e-4)
assert times_weaker > 5  # of the order of the square root of 200
squared = jax.grad(lambda x: residual_of(x) ** 2)(probe[:1]) / residual_of(probe[:1])
np.testing.assert_allclose(squared, 2 * jax.grad(residual_of)(probe[:1]), rtol=1e-4)

# %% [markdown]
# The share of (4) settles, on a wrong value. That of (5) does not settle. With 20 steps it is too
# low, with 500 too high, and between them lies a number of steps at which it happens to be right. The number
# $\zeta$ belongs to *one* number of steps. It is not a property of the ruler, and no $\sigma_y$ stands in (5).
#
# The last line is a bug that you will meet. `norm(y − A D(x))` of a whole batch is *one* number. Then each
# picture's push depends on the other pictures, and gets weaker with the size of the batch. With the squared norm
# it would have been harmless. The result of a picture must not change when its neighbours do: test that.

# %% [markdown]
# ## 5 · ΠGDM: the guess has an error
#
# The cure is to give the guess the uncertainty that it has. **ΠGDM** (say "pseudo-inverse guided") takes
# $x_0 \mid x_t \sim \mathcal N(\hat x_0, r_t^2 I)$. Then $y \mid x_t$ is a Gaussian as well, and
#
# $$\nabla \log p(y \mid x_t) \approx \Big(\frac{\partial \hat x_0}{\partial x_t}\Big)^{\!\top} A^\top
# (r_t^2 A A^\top + \sigma_y^2 I)^{-1} (y - A \hat x_0), \qquad
# r_t^2 = \frac{\sigma_d^2\, \sigma_t^2}{\alpha_t^2 \sigma_d^2 + \sigma_t^2} \tag{6}$$
#
# (Song, Vahdat, Mardani & Kautz 2023). $\sigma_d$ is the standard deviation of the data. With $r_t = 0$, (6) is
# DPS. It also needs no $\zeta$, and it stays calm when $\sigma_y = 0$.


# %%
def pigdm_by_hand(D, x, t, matrix, y, sigma_y, data_std):
    """Equation (6) inside equation (2), with a matrix [M, D]."""
    alpha, sigma = p.alpha(t), p.sigma(t)
    r2 = (data_std * sigma) ** 2 / ((alpha * data_std) ** 2 + sigma**2)
    x0, pull_back = jax.vjp(lambda x: D(x, t), x)
    spread = r2 * matrix @ matrix.T + sigma_y**2 * np.eye(len(matrix))
    (slope,) = pull_back((y - x0 @ matrix.T) @ jnp.linalg.inv(spread) @ matrix)
    return x0 + sigma**2 / alpha * slope


round_cloud = denoiser.gaussian_mixture(p, [[0.3, -0.2]], [0.4], [1.0])
round_truth = linear_gaussian.posterior(
    p, [[0.3, -0.2]], [0.16 * np.eye(2)], [1.0], operators.matrix(oblique), [0.5], SIGMA_Y
).posterior
ours = pigdm_by_hand(D, probe, 0.5, oblique, 0.5, SIGMA_Y, DATA_STD)
theirs = inverse.pigdm(
    D, p, operators.matrix(oblique), jnp.array([[0.5]]), SIGMA_Y, DATA_STD
)(probe, 0.5)  # fmt: skip
on_round = pigdm_by_hand(round_cloud.denoise, probe, 0.5, oblique, 0.5, SIGMA_Y, 0.4)
gap = float(np.abs(on_round - round_truth.denoise(probe, 0.5)).max())
print(f"one round Gaussian: ΠGDM and the posterior's denoiser differ by {gap:.0e}")

# %% tags=["comparison"]
np.testing.assert_allclose(ours, theirs, atol=1e-5)

# %% tags=["claims"]
# @title Checked: ΠGDM is exact for one round Gaussian; DATA_STD is the prior's; with r = 0 it is DPS
assert gap < 1e-5
inside = np.sum(SHARES * STDS**2)
between = SHARES @ (MEANS - SHARES @ MEANS) ** 2
assert abs(np.sqrt(inside + between.mean()) - DATA_STD) < 0.01
as_dps = inverse.dps(D, p, operators.matrix(oblique), jnp.array([[0.5]]), SIGMA_Y)(probe, 0.5)
nothing = pigdm_by_hand(D, probe, 0.5, oblique, 0.5, SIGMA_Y, 0.0)
np.testing.assert_allclose(nothing, as_dps, rtol=1e-4, atol=1e-4)

# %% [markdown]
# For one round Gaussian, ΠGDM is the exact posterior. So what is left of its error in section 1 has one cause:
# our prior is not one round Gaussian. When the guess hesitates between two clouds, $x_0 \mid x_t$ has two
# humps, and (6) sees one wide hill.
#
# ## 6 · One table
#
# Now we compare the mean and the covariance of each method with the exact ones. The prior's denoiser is exact,
# so every error belongs to the method. Each row has 6,000 points: three starts of 2,000, whose scatter is the
# last column. "DDIM, exact push" is the floor: what the sampler alone does wrong. ("nan": without a width
# there is no correlation.)

# %%
TRUE_MEAN = np.asarray(truth.mean(), np.float64)
TRUE_COV = np.asarray(truth.covariance(), np.float64)


def summary(x):
    """Mean 1, mean 2, std 1, std 2, correlation, and the share above."""
    x = np.asarray(x, np.float64)
    c = np.cov(x.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) if c[0, 0] > 1e-8 else np.nan
    return np.array([*x.mean(0), *np.sqrt(np.diag(c)), correlation, upper(x)])


table = {}
for steps in (20, 100):
    table["DDIM, exact push", steps] = ask_truth(noise, steps, jax.random.key(1))
    for name in METHODS:
        table[name, steps] = ask(name, noise, Y_SEEN, steps, jax.random.key(1))
right = np.array([*TRUE_MEAN, *np.sqrt(np.diag(TRUE_COV)), 0.0, right_share])
right[4] = TRUE_COV[0, 1] / right[2] / right[3]
print(f"{'':17} steps mean 1 mean 2  std 1  std 2  corr.  above")
print(f"{'exact':17}      " + " ".join(f"{v:6.3f}" for v in right))
for (name, steps), x in table.items():
    scatter = np.std([upper(part) for part in np.split(np.asarray(x), 3)], ddof=1)
    print(f"{name:17} {steps:4} ", *(f"{v:6.3f}" for v in summary(x)), f"± {scatter:.3f}")

# %% tags=["claims"]
# @title Checked: the floor, and what each method does to the mean, the width and the shares
se_mean, se_std = right[2:4] / np.sqrt(6000), right[2:4] / np.sqrt(2 * 6000)
at100 = {name: summary(x) for (name, n), x in table.items() if n == 100}
floor100 = at100["DDIM, exact push"]
# Three standard errors, and .01 for what 100 steps do.
assert (np.abs(floor100[:2] - right[:2]) < 3 * se_mean + 0.01).all()
assert abs(floor100[2] / right[2] - 0.96) < 0.03  # a standard error of .01
assert abs(summary(table["DDIM, exact push", 20])[2] / right[2] - 0.83) < 0.03
assert abs(floor100[3] - right[3]) < 6 * se_std[1]
for name in METHODS:  # every other row misses the second mean by more than ten such errors
    assert abs(at100[name][1] - right[1]) > 10 * se_mean[1]
assert at100["DDNM"][2] < 1e-3 and at100["replacement"][2] < 1e-3
assert at100["DPS"][2] < 0.6 * right[2] and at100["ΠGDM"][2] > 1.5 * right[2]
assert at100["ΠGDM"][5] < right_share - 0.2 and at100["DPS"][5] > right_share + 0.05
best_by_column = {min(METHODS, key=lambda m: abs(at100[m][k] - right[k])) for k in (0, 1, 2, 3, 5)}
assert len(best_by_column) > 1  # nobody is best in all columns
nearest_share = min(METHODS, key=lambda name: abs(at100[name][5] - right_share))
assert nearest_share == "DPS, norm" and table["DPS, norm", 20] is not None
assert abs(upper(table["DPS, norm", 20]) - right_share) > 0.2

# %% [markdown]
# With the exact push, 100 steps find the means and the share within the noise of 6,000 points. The width along the
# ruler is still 4 % too small (17 % with 20 steps): this is the error of the steps. Every other row is wrong by much
# more, and each in its own way:
#
# - **Replacement, DDNM**: no width along the ruler, and the shares of a draw that was told too late.
# - **DPS**: less than 0.6 of the right width, and too much above. It takes its guesses for certain.
# - **ΠGDM**: more than 1.5 times the right width, and too little above. It takes $x_0$ for vaguer than it is.
# - **DPS, norm** comes nearest to the right share with 100 steps. With 20 it is off by more than 0.2, so this
#   says something about $\zeta$ and not about the method.
#
# So no row is a draw from the posterior, and no method is the best in all columns. Section 9 repairs this.

# %% [markdown]
# **Explorer: one posterior, five ways to it.** Move the ruler from left to right. The curves are the exact
# posterior, the points are a method's. At $y = 0.4$ two clouds are possible, and there the methods differ
# most. At $y = 0$ and $0.2$ only the upper cloud is possible, with more than 0.98, and there they err most: the prior
# gives it less than a half, and they have not moved far enough. At $y = -0.6$ only the left cloud is possible, and
# they err least.

# %%
readings = np.round(np.linspace(-0.6, 0.8, 8), 1)
side = plots.plane(-1.2, 1.4, 60)
truths = {y: solve_exactly(y).posterior for y in readings}
heights = {y: np.exp(np.asarray(g.log_prob(side, 0.0))).reshape(60, 60) for y, g in truths.items()}
answers = {"exact": {y: truths[y].sample(jax.random.key(7), 600) for y in readings}}
for name in METHODS:
    answers[name] = {y: ask(name, noise[:600], y, 100, jax.random.key(8)) for y in readings}


def one_answer(ax, name, y):
    axis = np.linspace(-1.2, 1.4, 60)
    ax.contour(axis, axis, heights[y], levels=heights[y].max() * np.array([0.01, 0.1, 0.5]),
               colors=plots.DATA, linewidths=0.7)  # fmt: skip
    plots.points(ax, answers[name][y], plots.PREDICTION)
    ax.axvline(y, color=plots.TRUTH, lw=0.5)
    ax.set(xlim=(-1.2, 1.4), ylim=(-1.2, 1.4), xticks=[], yticks=[])
    ax.set_title(f"{name}: {upper(answers[name][y]):.0%} above", size="small")


# %%
def frame(setting):
    fig, ax = plt.subplots(figsize=(3, 3.2))
    one_answer(ax, *setting)
    return fig


widgets.explorer(
    {name: widgets.render(frame, [(name, y) for y in readings]) for name in answers},
    [f"the ruler shows y = {y}" for y in readings], slider="ruler", choice="method", start=5,
)  # fmt: skip

# %%
fig, axes = plt.subplots(2, 6, figsize=(10, 3.8))
for row, y in zip(axes, (-0.6, 0.2), strict=True):
    for ax, name in zip(row, answers, strict=True):
        one_answer(ax, name, y)
    row[0].set_ylabel(f"y = {y}")
plt.show()
off = {y: np.mean([abs(upper(answers[m][y]) - upper(answers["exact"][y])) for m in METHODS])
       for y in readings}  # fmt: skip
print("mean error of the share above:", {float(y): round(float(v), 3) for y, v in off.items()})

# %% tags=["claims"]
# @title Checked: the shares err least at y = −0.6, and most where y contradicts the prior's share
assert min(off, key=off.get) == -0.6 and max(off, key=off.get) in (0.0, 0.2)
assert all(upper(answers["exact"][y]) > 0.98 for y in readings[3:5]) and SHARES[1] < 0.5
span = {y: np.ptp([upper(answers[m][y]) for m in METHODS]) for y in readings}
assert max(span, key=span.get) == 0.4
assert off[-0.6] < 0.12 and max(off.values()) > 0.25  # 600 points know a share to .02

# %% [markdown]
# ## 7 · Break it on purpose: σ_y halved
#
# Pictures are scaled from $[0, 1]$ to $[-1, 1]$. The measurement is scaled too, and so its noise doubles. Code
# that goes on with the old $\sigma_y$ has half of the right value. Nothing crashes.
#
# **Predict, then run.** We have no exact posterior for pictures. Which test could find this bug there?
#
# One that needs only the model: **calibration by simulation** (Talts et al. 2018). Draw $x_0$ from the prior,
# measure it, draw 15 times from "the posterior", and count how many of the 15 are below the true $x_0$ along
# the ruler. If the method is right, the truth is one more draw among 15, so each rank from 0 to 15 comes equally
# often. We test ΠGDM on one round Gaussian, where it is exact.

# %%
RULERS, DRAWS = 800, 15
keys = jax.random.split(jax.random.key(9), 4)
hidden = round_cloud.sample(keys[0], RULERS)
shown = operators.measure(A, hidden, SIGMA_Y, keys[1])
repeated = jnp.repeat(shown, DRAWS, axis=0)
begin = jax.random.normal(keys[2], repeated.shape)


@jax.jit
def ranks_with(sigma_y):
    """For each ruler, how many of the 15 draws lie below the true x0: [800]."""
    told = inverse.pigdm(round_cloud.denoise, p, A, repeated, sigma_y, 0.4)
    x = walk(ddim, told, begin, 100, keys[3]).reshape(RULERS, DRAWS, 2)
    return jnp.sum(x[:, :, 0] < hidden[:, None, 0], axis=1)


halved_ranks = {"σ_y right": ranks_with(SIGMA_Y), "σ_y halved": ranks_with(SIGMA_Y / 2)}
counts = {name: np.bincount(r, minlength=DRAWS + 1) for name, r in halved_ranks.items()}
fig, axes = plt.subplots(1, 2, figsize=(7, 2.4), sharey=True)
for ax, (name, count) in zip(axes, counts.items(), strict=True):
    ax.bar(np.arange(DRAWS + 1), count, color=plots.PREDICTION)
    ax.axhline(RULERS / (DRAWS + 1), color=plots.TRUTH, lw=0.8)
    ax.set(title=name, xlabel="rank of the truth among 15 draws", xticks=(0, 5, 10, 15))
axes[0].set_ylabel("times, of 800")
plt.show()

# %%
chi = {name: float(np.sum((c - 50.0) ** 2 / 50)) for name, c in counts.items()}
ends = {name: int(c[0] + c[-1]) for name, c in counts.items()}
print("χ² with 15 degrees of freedom (expected 15 ± 5.5):", {n: f"{v:.1f}" for n, v in chi.items()})
print("the truth outside all 15 draws, 100 expected:", ends)

# %% tags=["claims"]
# @title Checked: the ranks are even with the right σ_y, and pile up at both ends with half of it
assert chi["σ_y right"] < 37.7  # the 99.9 % point of χ² with 15 degrees of freedom
assert chi["σ_y halved"] > 100 and ends["σ_y halved"] > 150

# %% [markdown]
# With the right $\sigma_y$ the ranks are even. With half of it the truth lies outside all 15 draws far too often:
# the method is too sure of itself. The test needs no exact posterior and no look at a picture. Only the prior
# must be the model's own: draw the $x_0$ from the model, not from the test set.

# %% [markdown]
# ## 8 · On pictures
#
# Now the released network of the 8×8 digits, without a label: nobody tells it which digit to draw. We measure
# 36 digits of the test set in three ways: about 40 % of the pixels, the means of 2×2 blocks, and a blur. Each time,
# $\sigma_y = 0.1$ on the scale of $[-1, 1]$. All methods take the same 40 steps of DDPM.
#
# As a baseline there is a **linear** estimate, the posterior mean if each pixel were a Gaussian of its own around the
# mean digit. And for the blur, there is the blurred $y$ itself.
#
# We report two numbers that need no exact posterior. **Consistency** is the root mean square of $y - A\hat x$, in
# units of $\sigma_y$. The true picture has 1, because the ruler errs. The **recognised share** is the share in
# which the judge (chapter 07's classifier) sees the true digit. 36 pictures know it to about $\pm 0.07$.
#
# **Predict, then run.** DDNM agrees with $y$ exactly. What will it make of a *blurred* $y$?

# %%
digits = weights.load("digits").model
expert = weights.load("digits_classifier").model
unseen = data.load("digits", split="test").subset(np.arange(36))
shown_pixels = np.random.default_rng(0).random((8, 8, 1)) < 0.4
CAMERAS = {
    "missing": operators.mask(shown_pixels),
    "blocks": operators.average((8, 8, 1), 2),
    "blur": operators.blur((8, 8, 1), operators.gaussian_kernel(5, 1.0)),
}
PIXEL_STD = float(data.load("digits").x.std(axis=0).mean())  # for ΠGDM
MEAN_DIGIT = jnp.asarray(data.load("digits").x.mean(axis=0))[None]
WAYS = {
    "DDNM": lambda D, A, y: inverse.ddnm(D, A, y),
    "DPS": lambda D, A, y: inverse.dps(D, p, A, y, SIGMA_Y),
    "ΠGDM": lambda D, A, y: inverse.pigdm(D, p, A, y, SIGMA_Y, PIXEL_STD),
}


@partial(jax.jit, static_argnames=("camera", "way"))
def restore(model, y, key, camera, way):
    """36 pictures from 36 measurements, 40 steps of DDPM from noise."""
    D = denoiser.denoiser(model, p, "v", np.full(36, 10))  # class 10 is "no label"
    x = jax.random.normal(key, (36, 8, 8, 1))
    return walk(samplers.ddpm(p), WAYS[way](D, CAMERAS[camera], y), x, 40, key)


# %%
recognised = lambda x: float(np.mean(np.asarray(judge(expert, jnp.asarray(x))[0]) == unseen.labels))
measured, restored, grades = {}, {}, {}
for camera, lens in CAMERAS.items():
    measured[camera] = operators.measure(lens, unseen.x, SIGMA_Y, jax.random.key(10))
    candidates = {"truth": unseen.x, "A⁺y": lens.pseudo_inverse(measured[camera])}
    apart = measured[camera] - lens.apply(MEAN_DIGIT)
    # As if every pixel had the variance .3 around the mean digit, on its own.
    candidates["linear"] = MEAN_DIGIT + 0.3 * lens.adjoint(lens.solve(apart, 0.3, SIGMA_Y**2))
    for way in WAYS:
        candidates[way] = restore(digits, measured[camera], jax.random.key(11), camera, way)
    for name, x in candidates.items():
        apart = lens.project(measured[camera] - lens.apply(x))
        grades[camera, name] = (
            float(np.sqrt(np.sum(np.square(apart)) / 36 / lens.rank)) / SIGMA_Y, recognised(x)
        )  # fmt: skip
        restored[camera, name] = np.asarray(x)
    print(f"{camera:8}", *(f"{n}: {grades[camera, n][0]:.2f}, {grades[camera, n][1]:.0%};  "
                           for n in candidates))  # fmt: skip

# %%
rows, names = [unseen.x[:12]], ["truth"]
for camera in CAMERAS:
    rows += [restored[camera, name][:12] for name in ("A⁺y", *WAYS)]
    names += [f"{camera}: {name}" for name in ("A⁺y", *WAYS)]
plots.image_grid(rows, names, "A⁺y: the measurement, put back with the pseudo-inverse", scale=0.55)
plt.show()

# %% tags=["claims"]
# @title Checked: who agrees with y, and who is recognised
for camera in CAMERAS:
    # Each rank is at least 16, times 36 pictures: the root mean square is known to 3 %.
    assert abs(grades[camera, "truth"][0] - 1) < 0.1 and CAMERAS[camera].rank >= 16
    assert grades[camera, "DDNM"][0] < 0.05
    for way in ("DPS", "ΠGDM"):
        assert 0.5 < grades[camera, way][0] < 1.4
        assert grades[camera, way][1] > 0.65
# Right pixels lie in [−1, 1].
assert grades["blur", "DDNM"][1] < 0.3 and np.abs(restored["blur", "DDNM"]).max() > 20
blurred_seen = recognised(measured["blur"])
print(f"the blurred y itself: {blurred_seen:.0%} recognised")
for way in ("DPS", "ΠGDM"):
    assert grades["blur", way][1] > blurred_seen + 0.1
    assert abs(grades["blur", way][1] - grades["blur", "linear"][1]) < 0.14
    assert grades["missing", way][1] > grades["missing", "linear"][1] + 0.14
assert (
    abs(grades["missing", "DPS"][0] - 0.7) < 0.1 and abs(grades["blocks", "ΠGDM"][0] - 1.15) < 0.1
)

# %% [markdown]
# DDNM reproduces the blurred $y$, noise and all. A blur shrinks fine patterns by large factors, and $A^+$ divides
# by the same factors, so the noise grows by them. The result is consistent and worthless. **A residual of 0 is a
# bad sign: the truth has 1.**
#
# DPS and ΠGDM know that the ruler errs. The judge recognises more of their deblurred digits than of the blurred
# $y$ itself. But the linear estimate, which knows the blur, the mean digit, one variance for all pixels and $\sigma_y$,
# is recognised as often. With $\sigma_y = 0$ it would be $A^+ y$, which is hardly ever recognised: for a blur the gain
# comes from using $\sigma_y$. For the missing pixels it is not enough, and there DPS and ΠGDM are far ahead.

# %% [markdown]
# A draw from the posterior has a consistency of 1, as the truth does. DPS has 0.7 for the missing pixels: it has
# copied a part of the noise. ΠGDM has 1.15 for the blocks. With 3 % of error, this already says that neither
# draws from the posterior.
#
# And one draw hides what is unknown. Here are twelve draws from ΠGDM for each of three thumbnails.

# %%
thumbnails = jnp.repeat(measured["blocks"][jnp.array([2, 8, 11])], 12, axis=0)
many_answers = restore(digits, thumbnails, jax.random.key(12), "blocks", "ΠGDM")
several = np.asarray(many_answers).reshape(3, 12, 8, 8, 1)
seen_as = np.asarray(judge(expert, many_answers)[0]).reshape(3, 12)
plots.image_grid(list(several), [f"digit {unseen.labels[i]}" for i in (2, 8, 11)], scale=0.42)
plt.show()
print("what the judge sees:", *("".join(map(str, row)) for row in seen_as))

# %% tags=["claims"]
# @title Checked: two thumbnails are clear to the judge, one is not
assert [len(set(row)) for row in seen_as.tolist()] == [1, 2, 1]
assert grades["blur", "A⁺y"][1] < 0.3 and CAMERAS["blur"].rank == 64

# %% [markdown]
# For two of the three thumbnails the judge sees one digit in all twelve draws. The one in the middle is seen as
# two different digits. A single restored picture would have hidden that. Show several draws, or do not call it a
# measurement.

# %% [markdown]
# ## 9 · Particles: wrong guesses, right weights
#
# We have samplers that draw from a wrong distribution. A better push would be one cure. The other one is older than
# diffusion: draw many **particles**, and give each a **weight**. If the target is $p(x_0)\,e^{r(x_0)}$ and
# the particles come from $p$, the weight is $e^{r(x_0)}$. With $r = \log p(y \mid x_0)$ this is the posterior.
#
# - The mean of the weights, $\hat Z$, is an unbiased estimate of $E[e^{r}]$. For our $r$ this is $p(y)$, the
#   **evidence**.
# - The **effective sample size**, $1/\sum_i w_i^2$ for weights that sum to 1, says how many particles count.

# %% [markdown]
# With weights at the end alone, many particles run for nothing. **Sequential Monte Carlo** weights them on the
# way: a **twist** $\psi_t(x_t)$ guesses $E[e^{r} \mid x_t]$. The weight starts at $\psi_1(x_1)$, and each step
# multiplies it by
#
# $$\frac{\psi_s(x_s)}{\psi_t(x_t)} \cdot \frac{p(x_s \mid x_t)}{q(x_s \mid x_t)}, \tag{7}$$
#
# where $q$ is the law that the step was drawn from. The twists of a life cancel, but for the last one, and this
# is $e^{r}$. So $\hat Z$ is unbiased for *any* positive twist, and the weighted means converge as the number of
# particles grows. When few particles count, we **resample**: copy the
# heavy ones, drop the light ones, and make all weights equal (Del Moral, Doucet & Jasra 2006).


# %%
def smc(step, log_twist, x, times, key, threshold, keep=1.0):
    """Sequential Monte Carlo; `keep` is 1, and section 10 shows what happens with 0."""
    n, log_z = len(x), 0.0
    twist = log_w = log_twist(x, times[0])
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        key_move, key_choose = jax.random.split(jax.random.fold_in(key, i))
        total = jax.nn.logsumexp(log_w)
        if particles.effective_sample_size(log_w) <= threshold * n:  # few count: choose again
            chosen = particles.systematic(key_choose, log_w)
            x, twist, log_w = x[chosen], twist[chosen], jnp.zeros(n)
            log_z += total - np.log(n)
        x, log_ratio = step(x, t, s, key_move)
        ahead = log_twist(x, s)
        log_w = keep * log_w + log_ratio + ahead - twist  # equation (7): the weights add up
        twist = ahead
    total = jax.nn.logsumexp(log_w)
    return x, log_w - total, log_z + total - np.log(n)


# %%
fine = sampling.log_snr_uniform(p, 50, 1e-3, 0.999)
shown_y = jnp.array([[Y_SEEN, 0.0]])
log_p_y = inverse.log_likelihood(A, shown_y, SIGMA_Y)
GUIDES = {"DPS": inverse.dps(D, p, A, shown_y, SIGMA_Y),
          "ΠGDM": inverse.pigdm(D, p, A, shown_y, SIGMA_Y, DATA_STD)}  # fmt: skip
sharp = particles.lookahead(D, log_p_y)  # log p(y | x0 = D): DPS's likelihood


def soft(x, t):
    """ΠGDM's likelihood: that of y under N(D, r²·I), with the ruler's error."""
    alpha, sigma = p.alpha(t), p.sigma(t)
    r2 = (DATA_STD * sigma) ** 2 / ((alpha * DATA_STD) ** 2 + sigma**2)
    spread = jnp.where(t > 0, r2, 0.0) + SIGMA_Y**2
    guess = jnp.where(t > 0, D(x, jnp.maximum(t, 1e-4)), x)[:, 0]
    return -0.5 * ((Y_SEEN - guess) ** 2 / spread + jnp.log(2 * jnp.pi * spread))


free = particles.bootstrap(samplers.ddpm(p), D)  # steps that have not heard of y
small_start = sampling.start_noise(p, jax.random.key(13), (64, 2))
by_us = smc(jax.jit(free.step), jax.jit(soft), small_start, fine, jax.random.key(14), 0.5)
by_library = particles.smc(free, soft, small_start, fine, jax.random.key(14), 0.5)
print(f"log Ẑ: {by_us[2]:.4f} by hand, {by_library.log_z:.4f} by the library")

# %% tags=["comparison"]
np.testing.assert_allclose(by_us[0], by_library.x, atol=1e-3)
np.testing.assert_allclose(by_us[2], by_library.log_z, atol=1e-3)

# %% [markdown]
# The particles may also be led. **Twisted** steps (Wu et al. 2023) are drawn with a guided denoiser, and the
# second factor of (7) repairs what the guide did. So a wrong push costs particles, and it no longer costs
# correctness. Without a guide, and with any reward in the place of $\log p(y \mid x_0)$, the method is known as
# **Feynman–Kac steering** (Singhal et al. 2025).
#
# **Predict, then run.** We estimate $p(y)$ 200 times, with 64 particles each. Four ways: weights at the
# end only; resampling with the soft twist; led by ΠGDM; led by DPS. All four are unbiased *by proof*. Which of them
# will you trust after 200 runs?

# %%
TEAMS = {  # name: move, twist, threshold
    "weights at the end": (free, sharp, 0.0),
    "resampling": (free, soft, 0.5),
    "led by ΠGDM": (particles.twisted(p, D, GUIDES["ΠGDM"]), soft, 0.5),
    "led by DPS": (particles.twisted(p, D, GUIDES["DPS"]), soft, 0.5),
}


@partial(jax.jit, static_argnames="team")
def two_hundred(team):
    """Ẑ, the share above and the ESS of every step, for 200 runs of 64 particles."""
    move, twist, threshold = TEAMS[team]

    def one(key):
        key_start, key_run = jax.random.split(key)
        start = sampling.start_noise(p, key_start, (64, 2))
        found = particles.smc(move, twist, start, fine, key_run, threshold)
        return jnp.exp(found.log_z), found.expect(found.x[:, 1] > 0.1), found.ess

    return jax.vmap(one)(jax.random.split(jax.random.key(15), 200))


runs = {team: [np.float64(part) for part in two_hundred(team)] for team in TEAMS}
straight = jax.jit(lambda x: sampling.sample(samplers.ddpm(p), D, x, fine, jax.random.key(17))[0])
crowd = np.asarray(straight(sampling.start_noise(p, jax.random.key(16), (100_000, 2))))
e_r = np.exp(np.float64(log_p_y(crowd)))
z_chain, z_error = e_r.mean(), e_r.std() / np.sqrt(len(e_r))
share_chain = float(np.sum(e_r * (crowd[:, 1] > 0.1)) / e_r.sum())

# %%
print(f"100,000 draws of the chain: Z = {z_chain:.4f} ± {z_error:.4f}, above {share_chain:.3f}")
print(f"exact: Z = {np.exp(exact.log_evidence):.4f}, above {right_share:.3f}")
estimates = {}
for team, (z, above, ess) in runs.items():
    pooled = np.sum(z * above) / z.sum()  # each run counts by its Ẑ
    estimates[team] = (z.mean(), z.std() / np.sqrt(200), pooled, above.std())
    print(f"{team:19} Ẑ {z.mean():.4f} ± {z.std() / np.sqrt(200):.4f}, one run's relative scatter "
          f"{z.std() / z.mean():.2f}, above {pooled:.3f}, ESS {ess[:, -1].mean():.0f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: Ẑ is unbiased in three teams; DPS's team is too heavy-tailed for 200 runs to see it
for team in ("weights at the end", "resampling", "led by ΠGDM"):
    z_mean, z_se, pooled, _ = estimates[team]
    assert abs(z_mean - z_chain) < 3 * np.hypot(z_se, z_error), team
    assert abs(pooled - share_chain) < 0.04  # 200 runs of scatter .1: .007, and ratios of sums
assert runs["led by DPS"][2][:, -1].mean() > 0.8 * runs["led by ΠGDM"][2][:, -1].mean()
assert estimates["led by DPS"][0] < z_chain / 2 and abs(share_chain - right_share) < 0.04
scatter_of = {team: runs[team][0].std() / runs[team][0].mean() for team in TEAMS}
assert scatter_of["led by DPS"] > 2 > 0.5 > scatter_of["led by ΠGDM"]
silent = lambda x, t: jnp.zeros(len(x))  # no reward: how rare the model's own paths are
path_scatter = {
    team: float(np.std(particles.smc(
        TEAMS[team][0], silent, small_start, fine, jax.random.key(27), 0.0
    ).log_weights)) for team in ("led by ΠGDM", "led by DPS")
}  # fmt: skip
assert path_scatter["led by DPS"] > 30 > 10 > path_scatter["led by ΠGDM"]
assert abs(z_chain - np.exp(exact.log_evidence)) > 3 * z_error  # 50 steps of DDPM are not exact

# %% [markdown]
# Three of them agree with 100,000 plain draws within three standard errors. And look at the share above: section 6
# gave ΠGDM about a half where three quarters are right. With weights, the same guide is right, to a few hundredths.
#
# (The chain has a small error of its own: 50 steps of DDPM do not draw exactly from the prior. Particles correct
# the push. They do not correct the sampler.)

# %% [markdown]
# The team led by DPS is unbiased too, and its mean is far too low. Its $\hat Z$ is nearly always small, and very
# seldom huge; 200 runs did not meet enough of the seldom ones. So its printed standard error is worthless as
# well. Section 4 shows why: on the way, this guide pushes more than ten times too hard. The weights compare whole
# *paths* (7), and a path as the model would draw it is then very rare, and must carry an enormous weight. Its
# effective sample size does not warn: it is that of the other two teams that resample.
#
# **Unbiased is a promise about the mean, and not about your run.** The cheap test: run two different guides. If
# their $\hat Z$ disagree, do not believe the small one. Here the guide with an honest error was safe, and the one
# that pushes too hard was not.

# %% [markdown]
# ## 10 · Break it on purpose: forgotten weights
#
# **Adaptive** resampling waits until few particles count. Between two resamplings the weights have to add up over
# the steps. It is an easy slip to compute the weight of the *last step* only, and to resample by that: with
# resampling after each step both are the same.
#
# The data are $\mathcal N(0, 1)$, and the reward is $r(x_0) = 1.5\,x_0$. The target is $\mathcal N(1.5, 1)$.
#
# **Predict, then run.** What will the mean be without memory, and what will the effective sample size say?

# %%
unit = denoiser.gaussian_mixture(p, [[0.0]], [1.0], [1.0])
ancestral = particles.bootstrap(samplers.ddpm(p, "transition"), unit.denoise)  # exact for N(0, 1)
line = lambda x0: 1.5 * x0[:, 0]
look = particles.lookahead(unit.denoise, line)
on_line = sampling.start_noise(p, jax.random.key(18), (4000, 1))
coarse = sampling.uniform(30)
moves = jax.jit(ancestral.step), jax.jit(look)
tilted_means = {}
for keep, threshold in ((1.0, 0.5), (0.0, 0.5), (0.0, 1.0)):
    x, log_w, log_z = smc(*moves, on_line, coarse, jax.random.key(19), threshold, keep)
    tilted_means[keep, threshold] = float(jnp.sum(jnp.exp(log_w) * x[:, 0]))
    count = float(particles.effective_sample_size(log_w))
    print(f"{'whole' if keep else 'last '} weights, resampling below {threshold:.0%}: mean "
          f"{tilted_means[keep, threshold]:5.2f}, log Ẑ {log_z:5.2f}, ESS {count:.0f} of 4000")  # fmt: skip


# %%
def ideal_twist(x, t):
    """log E[exp(1.5·x0) | x_t] for this chain, whose last step adds no noise."""
    last = p.sigma(coarse[-2]) ** 2
    x0 = jnp.where(t > 0, unit.denoise(x, jnp.maximum(t, 1e-4)), x)
    return 1.5 * x0[:, 0] + 1.5**2 / 2 * jnp.where(t > 0, p.sigma(t) ** 2 - last, 0.0)


ideal_guide = lambda x, t: unit.denoise(x, t) + 1.5 * p.sigma(t) ** 2
ideal_move = particles.twisted(p, unit.denoise, ideal_guide, "transition")
ideal_runs = [
    particles.smc(ideal_move, ideal_twist, on_line[:50], coarse, jax.random.key(k), 0.0)
    for k in (20, 21, 22)
]
print("the exact twist, three runs: log Ẑ", *(f"{r.log_z:.5f}" for r in ideal_runs),
      "ESS", *(f"{r.ess[-1]:.2f}" for r in ideal_runs))  # fmt: skip

# %% tags=["claims"]
# @title Checked: whole weights find 1.5, the last ones find 0.00; the exact twist has no variance
# 4,000 particles, of which a few hundred are independent after resampling: .05 is a standard error.
assert abs(tilted_means[1.0, 0.5] - 1.5) < 0.15
assert abs(tilted_means[0.0, 0.5]) < 0.06 and abs(tilted_means[0.0, 1.0] - 1.5) < 0.15
zs = np.array([float(r.log_z) for r in ideal_runs])
np.testing.assert_allclose(zs, 1.5**2 / 2 * float(p.alpha(coarse[-2])) ** 2, atol=1e-4)
np.testing.assert_allclose([float(r.ess[-1]) for r in ideal_runs], 50, rtol=1e-4)

# %% [markdown]
# The mean is 0.00 and not 1.5: the steering does *nothing*. A single step's weights are nearly equal, so the
# effective sample size stays near 4,000, nothing is ever resampled, and the weights of the other steps are lost. With
# resampling after each step (the last line of the three) the bug is invisible. **A perfect effective sample size is a
# reason to look twice.**
#
# Without resampling there is one honest way to a perfect one: the exact twist with the exact guide. Then every particle
# has the same weight, and $\hat Z$ has no variance at all. For a linear reward on $\mathcal N(0, 1)$ we know both. A
# twist is always a guess at this one, and the better the guess, the fewer particles are needed.

# %% [markdown]
# ## 11 · Best of n: draw many, keep one
#
# A measurement says what is true. A **reward** $r(x)$ says what we like. The simplest way to please it needs no
# gradient and no weights: draw $n$ samples, keep the best. How far does this lead away from the model?
#
# Let $F$ be the distribution function of the rewards, and $u = F(r(x))$ the rank of a draw, uniform in $[0, 1]$ for a
# continuous reward. The best of $n$ has the
# density $n u^{n-1}$, so the distance from the model is, for *any* continuous reward and any model,
#
# $$\mathrm{KL}(\text{best of } n \,\Vert\, p) = \int_0^1 n u^{n-1} \log(n u^{n-1})\, du
# = \log n - \frac{n-1}{n}. \tag{8}$$
#
# If rewards can be equal, the best is chosen at random among equals, and (8) is an upper bound (Beirami et al.
# 2024).
#
# **Predict, then run.** A judge says only yes or no, and says yes to every second sample. What is the KL of the
# best of 64?


# %%
def kl_of_best(n):
    """Equation (8)."""
    return np.log(n) - (n - 1) / n


def kl_of_best_yes_no(n, q):
    """The exact KL, when a share q of the samples has reward 1, and the others 0."""
    yes = 1 - (1 - q) ** n
    no = (1 - q) ** n
    return yes * np.log(yes / q) + no * np.log(no / (1 - q))


TRIES = np.array([2, 4, 8, 16, 64])
rng = np.random.default_rng(23)
for n in TRIES:
    u = rng.random((20_000, n)).max(axis=1)
    logs = np.log(n * u ** (n - 1.0))
    print(f"n = {n:2}: (8) {kl_of_best(n):.3f}, simulated {logs.mean():.3f} ± "
          f"{logs.std() / np.sqrt(20_000):.3f}; yes or no: {kl_of_best_yes_no(n, 0.5):.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: equation (8) by quadrature, and that it bounds the yes-or-no judge, whose KL ends at log 2
grid = (np.arange(200_000) + 0.5) / 200_000
for n in TRIES:
    log_density_of_best = np.log(n) + (n - 1) * np.log(grid)
    found = np.mean(np.exp(log_density_of_best) * log_density_of_best)
    np.testing.assert_allclose(found, kl_of_best(n), atol=1e-4)
    assert abs(rewards.best_of_n_kl(int(n)) - kl_of_best(n)) < 1e-12
    assert all(kl_of_best_yes_no(n, q) < kl_of_best(n) for q in (0.05, 0.5, 0.9))
np.testing.assert_allclose(kl_of_best_yes_no(64, 0.5), np.log(2), atol=1e-6)

# %% [markdown]
# It is $\log 2$, and not the 3.17 of (8): more than a yes cannot be had. Quoting $\log n - (n-1)/n$ for a judge with
# few grades overstates the distance. For a continuous reward it is exact. And it grows like $\log n$: to double a
# large distance, $n$ must grow to about $n^2/e$.

# %% [markdown]
# ## 12 · What a model that is paid should become
#
# Now we may change the model itself. Let it earn $r$, and pay $\beta$ for each nat of distance from $p$. The best
# model for $E_q[r] - \beta\, \mathrm{KL}(q \Vert p)$ is the **tilted** distribution
#
# $$q_\beta(x) = \frac{1}{Z_\beta}\, p(x)\, e^{r(x)/\beta}, \qquad
# \mathrm{KL}(q_\beta \Vert p) = \frac{E_{q_\beta}[r]}{\beta} - \log Z_\beta. \tag{9}$$
#
# It is a posterior again, with $r/\beta$ in the place of the log-likelihood. So the push of (2), a guide like
# DPS and the particles of sections 9 and 10 can be used here, without any training. (Replacement, DDNM and ΠGDM need
# a linear measurement.) For a mixture and a *quadratic* reward it is a mixture, in closed form. Each component's
# precision is reduced by the curvature of $r/\beta$, and must stay positive: a reward that grows faster than the
# density falls has no optimum.
#
# Our reward is linear, $r(x) = 0.6\,x_1 + x_2$. It wants to go up and to the right.

# %%
WISH = np.array([0.6, 1.0])


def tilt_by_hand(beta):
    """Means, weights and log Z of p·exp(WISH·x/beta), for the round components of the prior."""
    pull = WISH / beta
    log_w = np.log(SHARES) + MEANS @ pull + STDS**2 * (pull @ pull) / 2
    log_z = np.logaddexp.reduce(log_w)
    return MEANS + STDS[:, None] ** 2 * pull, np.exp(log_w - log_z), log_z


def optimum(beta, slope=WISH, curvature=0.0):
    """The exact tilted mixture of the library, and log Z."""
    return rewards.tilted(p, MEANS, COVARIANCES, SHARES, slope / beta, curvature * np.eye(2) / beta)


def frontier(beta):
    """KL and reward of the optimum: no model with this KL earns more."""
    means, shares_of_tilt, log_z = tilt_by_hand(beta)
    earned = shares_of_tilt @ means @ WISH
    return earned / beta - log_z, earned


try:
    optimum(1.0, curvature=1 / STDS.max() ** 2)
except ValueError as refusal:
    print("a reward as curved as the widest component:", refusal)

# %% tags=["comparison"]
for beta in (0.2, 1.0):
    best, log_z_best = optimum(beta)
    np.testing.assert_allclose(tilt_by_hand(beta)[0], best.means, atol=1e-5)
    np.testing.assert_allclose(tilt_by_hand(beta)[2], log_z_best, atol=1e-6)

# %%
prices = np.geomspace(0.1, 30, 60)
curve = np.array([frontier(beta) for beta in prices])
pool = np.float64(prior.sample(jax.random.key(24), 128_000)) @ WISH
of_best = {n: pool.reshape(-1, n).max(axis=1) for n in TRIES}
best_reward = {n: (r.mean(), r.std() / np.sqrt(len(r))) for n, r in of_best.items()}
below = {n: np.interp(kl_of_best(n), curve[::-1, 0], curve[::-1, 1]) - best_reward[n][0]
         for n in TRIES}  # fmt: skip
for n in TRIES:
    print(f"best of {n:2}: KL {kl_of_best(n):.2f}, reward {best_reward[n][0]:.3f} ± "
          f"{best_reward[n][1]:.3f}, below the frontier by {below[n]:.3f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: no best of n is above the frontier, and all are close to it
assert all(below[n] > -3 * best_reward[n][1] for n in TRIES)
spread_of_wish = pool.std()
assert max(below.values()) < 0.1 * spread_of_wish

# %% [markdown]
# Best of n runs along the **frontier**: it loses less than a tenth of the reward's standard deviation. But each
# sample costs $n$ samples, every time. Training costs once, and then one sample costs one.

# %% [markdown]
# ## 13 · Fine-tuning: two losses
#
# **From pairs: Diffusion-DPO** (Wallace et al. 2023). People say which of two samples they prefer. The model should
# beat its own former self, the **reference**, by more on the preferred sample $x^w$ than on the other, $x^l$:
#
# $$L = -E\,\log\operatorname{sigmoid}\Big(\!-\beta\big[(e(x^w) - e_\mathrm{ref}(x^w)) - (e(x^l) - e_\mathrm{ref}(x^l))\big]\Big), \tag{10}$$
#
# where $e$ is the usual error of the prediction. At the start both are one model, and $L = \log 2$. If your first
# loss is another number, something is wrong.

# %% [markdown]
# **From a reward: DDPO and Flow-GRPO.** DDPO (Black et al. 2023) sees the steps of an ancestral sampler as the
# moves of a game. Each move is a Gaussian with a known density, and the reward comes at the end. We raise the
# density of the moves that led to more than average. How much more, divided by the spread of the rewards, is the
# **advantage** of a move. A flow's ODE has no such density, so Flow-GRPO (Liu et al.
# 2025) draws with an SDE of the *same marginals*, chapter 09's reverse SDE. Ours is the ancestral chain of the
# rectified flow. We also count the KL of the later steps as a part of the reward. The paper uses the reward alone
# there, and the KL as a second term of the loss.

# %% [markdown]
# Our model is the exact denoiser plus a tiny MLP, which starts at zero. So the reference is known exactly. The last
# step adds no noise, so no ratio of densities could repair a change there, and it stays the reference's.
#
# The KL of a whole path is a sum of KLs of Gaussian steps, $\lVert \mu - \mu_\mathrm{ref} \rVert^2 / (2 v)$. For
# the optimum it is the KL of the end points; for all other models it is an upper bound.

# %%
flow = process.rectified_flow()
reference = denoiser.gaussian_mixture(flow, MEANS, STDS, SHARES).denoise
clock = sampling.log_snr_uniform(flow, 20, 2e-2, 0.99)
graph, ZERO = nnx.split(MLP(2, 32, 2, rngs=nnx.Rngs(0)))
PRICE = 0.4  # β of the reward in nats


def tuned(theta):
    """The denoiser: the reference plus a small network, except for the last step."""
    net = nnx.merge(graph, theta)

    def D(x, t):
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1])
        return reference(x, t) + jnp.where(t[:, None] > clock[-2], net(x, t), 0.0)

    return D


@partial(jax.jit, static_argnames="n")
def roll_out(theta, key, n):
    """n paths of the chain, from noise to the data: [21, n, 2]."""
    key_start, key_steps = jax.random.split(key)
    x = jax.random.normal(key_start, (n, 2))
    chain = samplers.ddpm(flow)
    return jnp.concatenate([x[None], sampling.sample(chain, tuned(theta), x, clock, key_steps)[1]])


# %%
def along(f, path):
    """f(x_t, x_s, t, s) of all steps but the last, which adds no noise: [19, n]."""
    return jax.vmap(f)(path[:-2], path[1:-1], jnp.asarray(clock[:-2]), jnp.asarray(clock[1:-1]))


def log_density(theta, path):
    step = partial(rewards.transition_log_prob, flow, tuned(theta))
    return along(step, path)


def step_kl(theta, path):
    """KL of each Gaussian step from the reference's."""
    step = partial(rewards.transition_kl, flow, tuned(theta), reference)
    return along(lambda x, _, t, s: step(x, t, s), path)


# %%
@partial(jax.jit, static_argnames="rounds")
def flow_grpo(key, price, rounds=100):
    """Policy gradients with groups of 256, and the KL of later steps as a part of the reward."""
    adam = optax.adam(optax.cosine_decay_schedule(0.01, 2 * rounds))

    def improve(carry, key):
        theta, _ = carry
        path = roll_out(theta, key, 256)
        reward, kl = path[-1] @ jnp.float32(WISH), step_kl(theta, path)
        to_go = reward - price * (jnp.cumsum(kl[::-1], axis=0)[::-1] - kl)
        advantage = (to_go - to_go.mean(axis=1, keepdims=True)) / reward.std()
        old = log_density(theta, path)

        def loss(theta):
            gain = rewards.policy_loss(log_density(theta, path), old, advantage, 0.2)
            return 19 * gain + price / reward.std() * step_kl(theta, path).sum(axis=0).mean()

        def twice(carry, _):
            step, memory = adam.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], step), memory), None

        return jax.lax.scan(twice, carry, None, length=2)[0], theta

    return jax.lax.scan(improve, (ZERO, adam.init(ZERO)), jax.random.split(key, rounds))


# %%
chain_ends = np.asarray(roll_out(ZERO, jax.random.key(25), 60_000)[-1])
wishes = np.float64(chain_ends) @ WISH


@partial(jax.jit, static_argnames="rounds")
def diffusion_dpo(key, price, rounds=150):
    """Pairs of the reference, of which a noisy judge prefers the one with more reward."""
    adam = optax.adam(optax.cosine_decay_schedule(3e-3, rounds))
    as_flow = lambda D: lambda x, t, _: (x - D(x, t)) / jnp.maximum(t[:, None], clock[-2])

    def improve(carry, key):
        theta, memory = carry
        key_pairs, key_judge, key_loss = jax.random.split(key, 3)
        a, b = jax.random.choice(key_pairs, jnp.asarray(chain_ends), (2, 512))
        better = jax.nn.sigmoid((a - b) @ jnp.float32(WISH) / 0.3)
        first = (jax.random.uniform(key_judge, (512,)) < better)[:, None]
        pair = jnp.where(first, a, b), jnp.where(first, b, a)
        loss = lambda theta: rewards.preference_loss(
            as_flow(tuned(theta)), as_flow(reference), flow, "flow", *pair, key_loss, price)  # fmt: skip
        value, slope = jax.value_and_grad(loss)(theta)
        step, memory = adam.update(slope, memory)
        return (optax.apply_updates(theta, step), memory), (theta, value)

    return jax.lax.scan(improve, (ZERO, adam.init(ZERO)), jax.random.split(key, rounds))


# %% [markdown]
# **Predict, then run.** Where will the two end, in the plane of KL and reward? (The frontier here is that of the
# *chain*: 60,000 of its paths, weighted by $e^{r/\beta}$.)


# %%
@jax.jit
def place(theta):
    """KL of the path and reward, over 4,000 paths; and the standard error of both."""
    path = roll_out(theta, jax.random.key(26), 4000)
    both = jnp.stack([step_kl(theta, path).sum(axis=0), path[-1] @ jnp.float32(WISH)])
    return both.mean(axis=1), both.std(axis=1) / jnp.sqrt(4000)


def frontier_of_chain(beta):
    """KL and reward of the chain's own optimum."""
    w = np.exp((wishes - wishes.max()) / beta)
    earned = np.sum(w * wishes) / w.sum()
    return earned / beta - np.log(w.mean()) - wishes.max() / beta, earned


chain_curve = np.array([frontier_of_chain(beta) for beta in np.geomspace(0.15, 30, 60)])
most_at = lambda kl: np.interp(kl, chain_curve[::-1, 0], chain_curve[::-1, 1])
pick = lambda history, i: jax.tree.map(lambda leaf: leaf[i], history)
journeys = {}
for seed in (0, 1, 2):
    by_grpo = flow_grpo(jax.random.key(30 + seed), PRICE)[1]
    journeys["Flow-GRPO", seed] = [place(pick(by_grpo, i)) for i in (0, 10, 25, 50, 99)]
for price, seed in ((5, 0), (5, 1), (5, 2), (20, 0)):
    _, (by_dpo, dpo_loss) = diffusion_dpo(jax.random.key(40 + seed), price)
    stops = [place(pick(by_dpo, i)) for i in (0, 10, 25, 50, 149)]
    journeys[f"DPO, β = {price}", seed] = stops
    print(f"DPO, β = {price}: first loss {dpo_loss[0]:.6f}, log 2 = {np.log(2):.6f}")

# %%
LABEL_AT = {"Flow-GRPO": (1.05, 0.5), "DPO, β = 5": (0.85, 0.29), "DPO, β = 20": (0.18, -0.09)}
fig, ax = plt.subplots(figsize=(6, 3.6))
ax.plot(*chain_curve.T, color=plots.TRUTH, lw=1)
ax.text(0.1, 0.85, "frontier: the tilted optimum")
for (name, seed), stops in journeys.items():
    track = np.array([at for at, _ in stops])
    color = plots.DATA if name == "Flow-GRPO" else plots.PREDICTION
    ax.plot(*track.T, "o-", ms=3, lw=0.8, color=color)
    if seed == 0:
        ax.text(*LABEL_AT[name], name, color=color)
ax.plot(*frontier_of_chain(PRICE), "*", color=plots.TRUTH, ms=10)
ax.set(xlabel="KL from the reference (nats)", ylabel="reward")
ax.set(xlim=(-0.05, 1.8), ylim=(-0.25, 0.95))
plt.show()
nothing_yet = float(journeys["Flow-GRPO", 0][0][0][1])  # the reference's reward
share_of_possible = {}
for key, stops in journeys.items():
    (kl, earned), error = stops[-1]
    share_of_possible[key] = float((earned - nothing_yet) / (most_at(kl) - nothing_yet))
    print(f"{key[0]:11} KL {kl:.2f}, reward {earned:.3f} ± {error[1]:.3f}, at this KL at most "
          f"{most_at(kl):.3f}: {share_of_possible[key]:.0%} of the gain")  # fmt: skip
print("the optimum of β = 0.4: KL {:.3f}, reward {:.3f}".format(*frontier_of_chain(PRICE)))

# %% tags=["claims"]
# @title Checked: log 2 at the start; nobody above the frontier; Flow-GRPO ends near it, DPO at half of its KL
np.testing.assert_allclose(float(dpo_loss[0]), np.log(2), atol=2e-6)
last_stops = [stops[-1] for stops in journeys.values()]
assert all(at[1] < most_at(at[0]) + 3 * error[1] for at, error in last_stops)
best_kl, best_earned = frontier_of_chain(PRICE)
worth = lambda at: float(at[1] - PRICE * at[0])
before, after = nothing_yet, best_earned - PRICE * best_kl
reached = [(worth(journeys["Flow-GRPO", s][-1][0]) - before) / (after - before) for s in (0, 1, 2)]
print("share of what can be gained in reward − β·KL:", np.round(reached, 2))
assert min(reached) > 0.75
compared = ("Flow-GRPO", "DPO, β = 5")
of_grpo, of_dpo = ([share_of_possible[name, s] for s in (0, 1, 2)] for name in compared)
assert min(of_grpo) > 0.8 > max(of_dpo)
assert journeys["DPO, β = 20", 0][-1][0][0] < 0.1
short_of_it = lambda stop: float(most_at(stop[0][0]) - stop[0][1])
grpo = [j for n, j in journeys.items() if n[0] == "Flow-GRPO"]
assert all(short_of_it(j[1]) > 1.5 * short_of_it(j[-1]) for j in grpo)
ends_at = {name: [journeys[name, s][-1][0][0] for s in (0, 1, 2)] for name in compared}
assert max(ends_at["DPO, β = 5"]) < 0.7 * min(ends_at["Flow-GRPO"])
assert all(max(at[0] for at, _ in journeys["DPO, β = 5", s]) > 1.8 for s in (0, 1, 2))
assert np.abs(chain_ends.mean(axis=0) - SHARES @ MEANS).max() < 0.03  # 20 steps, 60,000 paths
margins = np.array([6.0, -2.0])  # one pair is learned well, the other is the wrong way round
of_each, of_the_mean = np.mean(np.log1p(np.exp(-margins))), np.log1p(np.exp(-margins.mean()))
assert of_the_mean < of_each / 5

# %% [markdown]
# Flow-GRPO starts at the reference, which is on the frontier. Its first rounds lead below the frontier, and it ends
# near it. In each of three seeds it reaches more than three quarters of what can be gained in reward
# $- \beta\,\mathrm{KL}$ (the star is the optimum). A known optimum shows how much is missing. A curve of the reward
# alone cannot.

# %% [markdown]
# DPO with β = 5 ends farther below the frontier, at about half of Flow-GRPO's KL. On its way it leaves the picture to
# the right, and comes back. With β = 20 it hardly moves. This is no verdict: both learn for seconds, and the KL here
# is that of the path.
# Flow-GRPO pays for this number, DPO does not know it, and it is only an upper bound on the KL of the ends. DPO
# never sees a reward, only pairs. Its $\beta$ is a price as well, but in units of squared error, so the same
# number means another distance. **Do not compare methods by their $\beta$. Compare them at equal KL.**
#
# Two slips are easy to make. In (10) the logarithm of each pair comes first and then the mean; the logarithm of
# a mean lets one good pair pay for many bad ones. And the advantage is divided by the rewards' spread, so the
# price of the KL must be divided too, as in `flow_grpo`. Otherwise $\beta$ means something else in each round.

# %% [markdown]
# ## 14 · DDPO: with a price and without
#
# DDPO is plainer than our Flow-GRPO: only the reward at the end counts, the same for all steps of a path. With the
# advantage $a = (r - \bar r)/\mathrm{std}(r)$ over the batch, the gradient of the mean reward is
#
# $$\nabla_\theta\, E\,r(x_0) = \mathrm{std}(r)\; E\Big[a \sum_k \nabla_\theta \log p_\theta(x_{k+1} \mid x_k)\Big]. \tag{11}$$
#
# This is the **score-function form** (Black et al. 2023, section 4.3). It needs paths of the *present* model: one
# update, then new paths, and each path costs a call of the reward. The **importance-weighted form** has the ratio
# $\rho$ of new to old density in the place of $\log p_\theta$, and so can use one batch several times:
# $\min(\rho a, \mathrm{clip}(\rho)\, a)$, where the clip cuts $\rho$ to the range from 0.8 to 1.2. It repairs each
# step, but not the states from which the steps start, so the model must stay near. That is what the clip is for.
#
# DDPO has no price. We add the KL of each step, as DPOK does (Fan et al. 2023).


# %%
@partial(jax.jit, static_argnames="updates")
def ddpo(key, price, updates):
    """20 batches of 128 paths: the score-function form has 1 update per batch, the other has 4."""
    adam = optax.adam(optax.cosine_decay_schedule(0.01, 20 * updates))

    def improve(carry, key):
        path = roll_out(carry[0], key, 128)
        reward = path[-1] @ jnp.float32(WISH)
        advantage, old = rewards.group_advantages(reward), log_density(carry[0], path)

        def loss(theta):
            gain = rewards.policy_loss(log_density(theta, path), old, advantage, 0.2)
            return 19 * gain + price / reward.std() * step_kl(theta, path).sum(axis=0).mean()

        def update(carry, _):
            step, memory = adam.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], step), memory), None

        return jax.lax.scan(update, carry, None, length=updates)[0], None

    start = ZERO, adam.init(ZERO)
    theta = jax.lax.scan(improve, start, jax.random.split(key, 20))[0][0]
    path = roll_out(theta, jax.random.key(26), 2000)
    return step_kl(theta, path).sum(axis=0), path[-1]


# %% [markdown]
# **Predict, then run.** Both forms draw the same number of paths, 2,560. Which one gets farther? And where do
# the samples go when $\beta = 0$?

# %%
RUNS = [(beta, n, seed) for beta, n in ((0.4, 4), (0.4, 1), (0.0, 4)) for seed in (0, 1, 2)]
RUNS += [(0.15, 4, 0), (1.0, 4, 0)]
of_ddpo, ends_of = {}, {}
for beta, updates, seed in RUNS:
    kl, last = map(np.float64, ddpo(jax.random.key(60 + seed), beta, updates))
    earned = last @ WISH
    at = np.array([kl.mean(), earned.mean(), earned.std() / np.sqrt(2000)])
    of_ddpo[beta, updates, seed], ends_of[beta, updates, seed] = at, last
    print(f"β = {beta:4}, {updates} per batch, seed {seed}: KL {at[0]:6.2f}, reward {at[1]:6.3f} ± "
          f"{at[2]:.3f}")  # fmt: skip

# %% alt="Left: KL and reward of the runs below the frontier. Right: samples; without a price they are far outside."
fig, (ax, plane) = plt.subplots(1, 2, figsize=(8, 3.6))
longer = np.array([frontier_of_chain(beta) for beta in np.geomspace(0.1, 30, 60)])
ax.plot(*longer.T, color=plots.TRUTH, lw=1)
for seed in (0, 1, 2):
    ax.plot(*journeys["Flow-GRPO", seed][-1][0], "s", mfc="none", color=plots.DATA)
    ax.plot(*journeys["DPO, β = 5", seed][-1][0], "^", mfc="none", color=plots.PREDICTION)
for (beta, updates, _), (kl, earned, _) in of_ddpo.items():
    if beta:
        ax.plot(kl, earned, "o" if updates == 4 else "x", ms=5, color=plots.NOISE)
NAMES = (1.2, 0.87, "frontier", plots.TRUTH), (0.3, -0.15, "DDPO, one update per batch", plots.NOISE), (
    0.82, 0.42, "DDPO, four", plots.NOISE), (1.05, 0.6, "Flow-GRPO", plots.DATA), (
    0.5, 0.19, "DPO, β = 5", plots.PREDICTION)  # fmt: skip
for x, y, text, color in NAMES:
    ax.text(x, y, text, color=color, size="small")
ax.set(xlabel="KL from the reference (nats)", ylabel="reward", xlim=(-0.05, 2.3), ylim=(-0.3, 1))
groups = {"reference": (chain_ends, plots.DATA), "β = 0.4": (ends_of[0.4, 4, 0], plots.PREDICTION),
          "β = 0": (ends_of[0.0, 4, 0], plots.NOISE)}  # fmt: skip
for (name, (points, color)), y in zip(groups.items(), (-0.4, 0.8, 3.5), strict=True):
    plane.plot(*points[:500].T, ".", ms=2, color=color)
    plane.text(-2.8, y, name, color=color)
plane.set(xlabel="$x$", ylabel="$y$", aspect="equal", xlim=(-3, 3))
plt.show()

# %% tags=["claims"]
# @title Checked: nobody above the frontier; four updates per batch beat one; β = 0 leaves the data
for (beta, *_), (kl, earned, error) in of_ddpo.items():
    assert beta == 0 or earned < most_at(kl) + 3 * error  # 2,000 paths each
net_gain = {key: (at[1] - PRICE * at[0] - before) / (after - before)
            for key, at in of_ddpo.items() if key[0] == PRICE}  # fmt: skip
print({key[1:]: round(float(share), 2) for key, share in net_gain.items()})
assert min(net_gain[PRICE, 4, s] for s in (0, 1, 2)) > 0.6
assert max(abs(net_gain[PRICE, 1, s]) for s in (0, 1, 2)) < 0.15
by_price = np.array([of_ddpo[beta, 4, 0][:2] for beta in (1.0, 0.4, 0.15)])
assert (np.diff(by_price, axis=0) > 0.2).all()
spread = lambda x: np.sqrt(np.var(x, axis=0).sum())
for seed in (0, 1, 2):
    hacked_ends = ends_of[0.0, 4, seed]
    assert of_ddpo[0.0, 4, seed][1] > 4 and of_ddpo[0.0, 4, seed][0] > 300
    assert (hacked_ends @ WISH).min() > wishes.max()
    assert spread(hacked_ends) < 0.9 * spread(chain_ends)
    to_clouds = np.sum((hacked_ends[:, None] - MEANS) ** 2, axis=-1)
    assert (to_clouds.argmin(axis=1) == 1).all()

# %% [markdown]
# With $\beta = 0.4$, four updates per batch reach more than six tenths of what can be gained in reward
# $- \beta\,\mathrm{KL}$, in each of three seeds. One update per batch gains next to nothing (less than 15 %). The
# number of paths, the network and the rate of learning are the same; the number of updates is 80 against 20. Where each
# reward is expensive, use a batch more than once. A lower price buys more reward for more KL (one seed each).
#
# Without a price, the reward is above 4 and the KL above 300 nats. **Every one** of 2,000 samples has more reward than
# the best of 60,000 of the reference. They have left the data, all in one heap. A plot of the reward
# shows a great success, and the clip does not prevent it: it holds the model near its last batch, not near
# the reference.

# %% [markdown]
# Two differences to know. Here no step pays for the KL that it causes later, unlike in `flow_grpo`. And the paper's
# code takes the *mean* of the log-density over the pixels: its $\rho$, and so its clip, has another unit than ours.

# %% [markdown]
# ## 15 · Reward hacking, with exact curves
#
# We seldom have the reward that we mean. We have a **proxy**, fitted to judgements of what the model draws *now*.
# Let the true wish be a place, $g(x) = -\lVert x - c \rVert^2$. We fit a straight line to $g$ on 300 draws of the
# prior, and pay for the line. Where the prior is, the line is good. The optimum will not stay there.
#
# **Predict, then run.** Both curves are exact: for each $\beta$ the tilted mixture gives the mean of the line, of $g$,
# and the KL. Where will $g$ be when the proxy is at its highest?

# %%
PLACE = np.array([0.2, 0.6])
true_wish = lambda x: -np.sum((x - PLACE) ** 2, axis=-1)
seen_now = np.float64(prior.sample(jax.random.key(50), 300))
design = np.column_stack([np.ones(len(seen_now)), seen_now])
offset, *line_slope = np.linalg.lstsq(design, true_wish(seen_now), rcond=None)[0]
line_slope = np.array(line_slope)
r_squared = 1 - np.var(true_wish(seen_now) - seen_now @ line_slope) / np.var(true_wish(seen_now))
print(f"the line explains {r_squared:.0%} of the true wish on the prior")


def paid_by_the_line(beta):
    """KL, proxy and true wish of the exact optimum for the proxy."""
    q, log_z = optimum(beta, line_slope)
    mean, spread = np.float64(q.mean()), np.float64(q.covariance())
    proxy = line_slope @ mean
    return proxy / beta - log_z, offset + proxy, true_wish(mean) - np.trace(spread)


def paid_by_the_wish(beta):
    """KL and true wish of the exact optimum for g itself, whose curvature is −2."""
    q, log_z = optimum(beta, 2 * PLACE, -2.0)
    wish = true_wish(np.float64(q.mean())) - np.trace(np.float64(q.covariance()))
    return (wish + PLACE @ PLACE) / beta - log_z, wish


hacked = np.array([paid_by_the_line(beta) for beta in np.geomspace(0.03, 30, 50)])
honest = np.array([paid_by_the_wish(beta) for beta in np.geomspace(0.03, 30, 50)])
peak = int(hacked[:, 2].argmax())
print(f"g is {hacked[-1, 2]:.2f} at the start, {hacked[peak, 2]:.2f} at its best (KL "
      f"{hacked[peak, 0]:.2f}), {hacked[0, 2]:.2f} at KL {hacked[0, 0]:.1f}")  # fmt: skip

# %%
draws = np.float64(prior.sample(jax.random.key(51), 65_536))
order = draws @ line_slope
by_n = {}
for n in (2, 4, 16, 64, 256, 1024):
    chosen = order.reshape(-1, n).argmax(axis=1) + n * np.arange(65_536 // n)
    wish = true_wish(draws[chosen])
    by_n[n] = kl_of_best(n), wish.mean(), wish.std() / np.sqrt(len(wish))
fig, ax = plt.subplots(figsize=(6, 3.4))
for k, name, color in ((1, "proxy", plots.NOISE), (2, "true wish", plots.PREDICTION)):
    ax.plot(hacked[:, 0], hacked[:, k], color=color)
    at = np.interp(6.1, hacked[::-1, 0], hacked[::-1, k])
    ax.text(6.1, at + 0.08, name, color=color)
ax.plot(*honest.T, color=plots.TRUTH, lw=0.8, ls="--")
ax.text(2.0, 0.03, "paid for the true wish", size="small")
ax.plot(*np.array(list(by_n.values()))[:, :2].T, "o", ms=4, color=plots.DATA)
ax.text(3.4, -0.55, "best of n, by the proxy", color=plots.DATA, size="small")
ax.set(xlabel="KL from the model (nats)", ylabel="mean", xlim=(0, 8), ylim=(-1.2, 0.9))
plt.show()

# %% tags=["claims"]
# @title Checked: the proxy always rises, the true wish rises and falls, and best of n falls as well
by_kl = hacked[::-1]  # from a high price to a low one: the KL rises
assert (np.diff(by_kl[:, 0]) > 0).all() and (np.diff(by_kl[:, 1]) > 0).all()
assert 0 < peak < len(hacked) - 1 and 0.5 < hacked[peak, 0] < 4
assert hacked[0, 2] < hacked[peak, 2] - 0.5
assert r_squared > 0.9
ns = sorted(by_n)
top = max(ns, key=lambda n: by_n[n][1])
assert top not in (ns[0], ns[-1])
assert by_n[1024][1] < by_n[top][1] - 3 * np.hypot(by_n[1024][2], by_n[top][2])
assert (np.diff(honest[::-1][:, 1]) > -1e-6).all()

# %% [markdown]
# The proxy rises all the way. The true wish rises, reaches a peak, and falls. No error of training is involved:
# these are exact optima. On the prior, the line explains more than nine tenths of the wish. It is wrong out
# there, and there the optimum goes. Best of $n$ does the same without any training. Gao, Schulman & Hilton (2022)
# measured such curves for language models.
#
# So the KL is not a technical detail. It tells how far the model may move before the proxy stops being a guide. Treat
# it as a **budget**. Report reward *and* KL, keep a second judge that the training never sees, and stop where that one
# turns.

# %% [markdown]
# ## 16 · What to inspect
#
# 1. **The residual in units of $\sigma_y$.** The truth has 1. With 0 the noise was copied, with 5 the measurement
#    was hardly used.
# 2. **$\sigma_y$ on the scale of the pictures.** Ranks by simulation (section 7) find a factor of two.
# 3. **Several draws for one $y$.** If they are all alike, ask whether $y$ really says so much.
# 4. **The same picture alone and in a batch.** They must agree.
# 5. **Twice the steps.** If the answer moves, it belongs to the step size.
# 6. **ESS over the steps**, and $\hat Z$ of two different guides.
# 7. **Reward against KL**, with the frontier where it is known, and a judge that is not paid.

# %% [markdown]
# ## Recap
#
# 1. Steering adds a push, $\frac{\sigma^2}{\alpha}\nabla \log p(y \mid x_t)$. Every method guesses it, since $y$ was
#    measured from $x_0$ and not from $x_t$.
# 2. Replacement and DDNM take $y$ for exact, DPS takes the guess for exact, ΠGDM takes one round Gaussian. Each has
#    its own wrong posterior, and all look good.
# 3. Particles with weights repair any guide, if it does not push too hard and the weights add up.
# 4. A reward tilts the model: $p\,e^{r/\beta}$. Best of $n$ costs $\log n - (n-1)/n$ nats at most.
# 5. A proxy is good where it was fitted. The KL is the budget.

# %% [markdown]
# **Exercises:** [19 · exercises](../exercises/19_steering.ipynb).
#
# ## Try it yourself
#
# 1. Section 6 with DDPM in the place of DDIM (`ddim = samplers.ddpm(p)`). Which method gains most?
# 2. Section 5's ΠGDM with `DATA_STD = 0.18`, the width of the widest cloud. What gets better, and what worse?
# 3. Section 15 with 30,000 draws for the fit. Does the peak move, and does the fall go away?

# %% [markdown]
# ## Further reading
#
# - C. Bishop. *Pattern Recognition and Machine Learning.* 2006. Gaussians and linear measurements.
# - Y. Song, J. Sohl-Dickstein, D. Kingma, A. Kumar, S. Ermon, B. Poole. *Score-Based Generative Modeling through
#   Stochastic Differential Equations.* ICLR 2021. [arXiv:2011.13456](https://arxiv.org/abs/2011.13456). Replacement.
# - H. Chung, J. Kim, M. McCann, M. Klasky, J. C. Ye. *Diffusion Posterior Sampling for General Noisy Inverse
#   Problems.* ICLR 2023. [arXiv:2209.14687](https://arxiv.org/abs/2209.14687).
# - J. Song, A. Vahdat, M. Mardani, J. Kautz. *Pseudoinverse-Guided Diffusion Models for Inverse Problems.* ICLR 2023.
# - Y. Wang, J. Yu, J. Zhang. *Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model.* ICLR 2023.
#   [arXiv:2212.00490](https://arxiv.org/abs/2212.00490).
# - L. Wu, B. Trippe, C. Naesseth, D. Blei, J. Cunningham. *Practical and Asymptotically Exact Conditional Sampling in
#   Diffusion Models.* NeurIPS 2023. [arXiv:2306.17775](https://arxiv.org/abs/2306.17775).
# - R. Singhal et al. *A General Framework for Inference-time Scaling and Steering of Diffusion Models.* 2025.
#   [arXiv:2501.06848](https://arxiv.org/abs/2501.06848). Feynman–Kac steering.
# - S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman. *Validating Bayesian Inference Algorithms with
#   Simulation-Based Calibration.* 2018. [arXiv:1804.06788](https://arxiv.org/abs/1804.06788).

# %% [markdown]
# - P. Del Moral, A. Doucet, A. Jasra. *Sequential Monte Carlo Samplers.* JRSS B, 2006.
# - A. Beirami et al. *Theoretical Guarantees on the Best-of-n Alignment Policy.* 2024.
#   [arXiv:2401.01879](https://arxiv.org/abs/2401.01879).
# - B. Wallace et al. *Diffusion Model Alignment Using Direct Preference Optimization.* 2023.
#   [arXiv:2311.12908](https://arxiv.org/abs/2311.12908).
# - K. Black, M. Janner, Y. Du, I. Kostrikov, S. Levine. *Training Diffusion Models with Reinforcement Learning.* 2023.
#   [arXiv:2305.13301](https://arxiv.org/abs/2305.13301). DDPO.
# - Y. Fan et al. *DPOK: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models.* NeurIPS 2023.
#   [arXiv:2305.16381](https://arxiv.org/abs/2305.16381).
# - J. Liu et al. *Flow-GRPO: Training Flow Matching Models via Online RL.* 2025.
#   [arXiv:2505.05470](https://arxiv.org/abs/2505.05470).
# - L. Gao, J. Schulman, J. Hilton. *Scaling Laws for Reward Model Overoptimization.* 2022.
#   [arXiv:2210.10760](https://arxiv.org/abs/2210.10760).
#
# **New words:** inverse problem, prior, posterior, push, pseudo-inverse, replacement, DDNM, DPS, ΠGDM, calibration by
# simulation, consistency, particle, weight, evidence, effective sample size, twist, resampling, best of n, tilted
# distribution, frontier, reference, advantage, score-function form, proxy, reward hacking.
