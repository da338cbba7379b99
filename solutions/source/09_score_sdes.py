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
# # 09 · Score matching and SDEs: exercises
#
# They belong to [chapter 09](../notebooks/09_score_sdes.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# The process is $dx = f\,x\,dt + g\,dw$, and `g2` is $g^2$. Its levels are $\alpha$ and $\sigma$, and their
# squares need not add up to 1. Data are at $t = 0$.
#
# Each exercise is graded alone. A function may use JAX, NumPy and other packages, and functions and
# constants of your own in other cells. It may not use the function of another exercise; of
# `diffusion_course` it may use only what the exercise's cells import.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %% role="setup"
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course.grading import check

# %% [markdown]
# ## 09.1
# *warm-up · 10 minutes*
#
# Equation (8) finds the rates $f$ and $g^2$ that belong to given levels. Go the other way. The rates are
# constant within each of $N$ intervals, whose lengths are `dt`. Find the levels at the ends of the intervals,
# exactly, however long these are. At the beginning $\alpha = 1$ and $\sigma = 0$. A rate $f$ may be negative,
# zero or positive.
#
# **Expected.** Two arrays `[N + 1]`. With $f = -\beta/2$ and $g^2 = \beta$, $\alpha^2 + \sigma^2 = 1$ at every
# time, whatever the rates $\beta$ are.
#
# <details><summary>Hint</summary>
# The mean obeys α̇ = f·α, and the variance V = σ² obeys V̇ = 2f·V + g². For constant f and g² both have a
# solution with an exponential. For f = 0 it is a straight line.
# </details>


# %% exercise="09.1" role="answer"
def levels(f, g2, dt):
    """f, g2 and dt [N], tables -> alpha and sigma, two arrays [N + 1]."""
    ### BEGIN SOLUTION return alpha and sigma, two arrays [N + 1]
    alpha, variance = [1.0], [0.0]
    for rate, noise, span in zip(f, g2, dt, strict=True):
        x = 2 * rate * span
        integral = span if rate == 0 else span * np.expm1(x) / x
        alpha.append(alpha[-1] * np.exp(x / 2))
        variance.append(variance[-1] * np.exp(x) + noise * integral)
    return np.array(alpha), np.sqrt(np.array(variance))
    ### END SOLUTION


# %% [markdown]
# ## 09.2
# *derive and check · 20 minutes*
#
# Equation (3) is for one number. Now the data are Gaussian vectors with the covariance matrix $C$, and
# Langevin dynamics (2) has the exact score $-C^{-1}x$. There is a step size $h^*$ at which it begins to
# diverge. Take the step $h = \text{share}\cdot h^*$, where `share` is between 0 and 1. Which covariance do the
# states have in the long run?
#
# **Expected.** A matrix `[D, D]`. For a small share it is nearly $C$.
#
# <details><summary>Hint</summary>
# In the directions of the eigenvectors of C, which do not change, the entries are independent numbers.
# Equation (3) holds for each. np.linalg.eigh has the eigenvectors in its columns.
# </details>


# %% exercise="09.2" role="answer"
def settled(covariance, share):
    """covariance [D, D], a number share in (0, 1) -> the states' covariance, [D, D]."""
    ### BEGIN SOLUTION return the covariance, an array [D, D]
    v, directions = np.linalg.eigh(covariance)
    h = share * 2 * v.min()
    wide = v / (1 - h / (2 * v))
    return directions @ np.diag(wide) @ directions.T
    ### END SOLUTION


# %% [markdown]
# ## 09.3
# *derive and check · 25 minutes*
#
# A density whose constant nobody can compute: $\log p(x) = \sum_k a_k\,\varphi_k(x) + \text{const}$, with bumps
# $\varphi_k(x) = e^{-\|x - c_k\|^2/(2w^2)}$ in $D$ dimensions. Its score does not contain the constant. So
# Hyvärinen's loss (5) can fit the weights. Find the weights $a$ that minimise
#
# $$J(s) + \tfrac12\,\text{penalty}\cdot\|a\|^2,$$
#
# where the mean in $J$ is over the data `x`.
#
# **Expected.** The weights, an array `[K]`.
#
# <details><summary>Hint</summary>
# The score is the sum of a_k times the gradient of bump k: the loss is quadratic in a. The trace of its
# Jacobian is the sum of a_k times all second derivatives of bump k, ∂²/∂x₁² + … + ∂²/∂x_D². Set the
# derivative with respect to each a_k to 0, and solve the linear system.
# </details>


# %% exercise="09.3" role="answer"
def fit_energy(x, centres, width, penalty):
    """x [B, D], centres [K, D], numbers width and penalty -> the weights a, [K]."""
    ### BEGIN SOLUTION return the weights, an array [K]
    z = (x[:, None, :] - centres) / width  # [B, K, D]
    bump = np.exp(-np.sum(z**2, 2) / 2)
    slope = -z / width * bump[:, :, None]
    trace = (np.sum(z**2, 2) - x.shape[1]) / width**2 * bump
    squares = np.einsum("bkd,bjd->kj", slope, slope) / x.shape[0]
    return np.linalg.solve(squares + penalty * np.eye(len(centres)), -np.mean(trace, 0))
    ### END SOLUTION


# %% [markdown]
# ## 09.4
# *implement · 20 minutes*
#
# One whole step from $t$ to $s$. The predictor is the exact step (12), with the noise `z_p`. Then comes one
# corrector step (13) at $s$, with the noise `z_c`.
#
# The first axis counts the examples, which may be vectors or images. The step must be finite and right where
# $\alpha_t = 0$, for every $\eta \ge 0$. A step to $\sigma_s = 0$ has no corrector.
#
# **Expected.** The state at $s$, an array of `x`'s shape.
#
# <details><summary>Hint</summary>
# The ratio SNR_t/SNR_s without a division by 0: put α_s·σ_t below. The corrector sees the state that the
# predictor has made, and evaluates the denoiser there once more. One h for the whole batch.
# </details>


# %% exercise="09.4" role="answer"
def predict_and_correct(denoise, x, z_p, z_c, at_t, at_s, eta, r):
    """x, z_p and z_c [B, ...], (alpha, sigma) at t and at s, numbers eta and r -> x_s, [B, ...]."""
    ### BEGIN SOLUTION return the state at s, an array of x's shape
    alpha_t, sigma_t = at_t
    alpha_s, sigma_s = at_s
    x0 = denoise(x, alpha_t, sigma_t)
    eps = (x - alpha_t * x0) / sigma_t
    k = (alpha_t * sigma_s / (alpha_s * sigma_t)) ** (2 * eta**2)
    x = alpha_s * x0 + sigma_s * (np.sqrt(k) * eps + np.sqrt(1 - k) * z_p)
    if sigma_s == 0:
        return x
    score = (alpha_s * denoise(x, alpha_s, sigma_s) - x) / sigma_s**2
    norms = [jnp.linalg.norm(a.reshape(x.shape[0], -1), axis=1).mean() for a in (z_c, score)]
    h = 2 * (r * norms[0] / norms[1]) ** 2
    return x + h * score + jnp.sqrt(2 * h) * z_c
    ### END SOLUTION


# %% [markdown]
# ## 09.5
# *debug this · 20 minutes*
#
# Euler–Maruyama for the reverse family (11). It was tested with a VP process at $\eta = 0$ and $\eta = 1$, and
# the spread of the samples was right. Then a student chose $\eta = 0.5$, and another one the sub-VP process.
# Run the cells. `denoise(x, alpha, sigma)` is the exact denoiser of Gaussian data.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_reverse(denoise, x, noises, times, alpha, sigma, f, g2, eta):
    for n, noise in enumerate(noises):
        x0 = denoise(x, alpha[n], sigma[n])
        if sigma[n + 1] == 0:
            return x0
        score = (alpha[n] * x0 - x) / (1 - alpha[n] ** 2)
        dt = times[n + 1] - times[n]
        drift = f[n] * x - (1 + eta) / 2 * g2[n] * score
        x = x + drift * dt + eta**2 * np.sqrt(g2[n] * -dt) * noise
    return x


# %%
times = np.linspace(1, 0, 401)
beta, area = 0.1 + 19.9 * times, 0.1 * times + 9.95 * times**2  # and its integral from 0
alpha, shrunk = np.exp(-area / 2), -np.expm1(-area)
vp = alpha, np.sqrt(shrunk), -beta / 2, beta
sub_vp = alpha, shrunk, -beta / 2, beta * -np.expm1(-2 * area)
drawn = np.random.default_rng(0).normal(size=(401, 2000))
exact, got = GaussianDenoiser(mean=1.0, std=0.5), {}
for name, tables, eta in (
    ("VP", vp, 0.0),
    ("VP", vp, 1.0),
    ("VP", vp, 0.5),
    ("sub-VP", sub_vp, 1.0),
):
    samples = broken_reverse(exact, drawn[400], drawn[:400], times, *tables, eta)
    got[name, eta] = samples.std()
    print(f"{name:6} η = {eta}: std of the samples {samples.std():.3f}, of the data 0.500")
right, wrong = list(got.values())[:2], list(got.values())[2:]
# 2000 samples: 4 standard errors are 6 %, and 400 steps add less than 1 %.
assert all(abs(std / 0.5 - 1) < 0.07 for std in right)
assert all(abs(std / 0.5 - 1) > 0.14 for std in wrong)

# %% [markdown]
# There are **three** bugs, and none can be seen where it was tested. Write the sampler as it should be, for
# every $\eta$ and for every process.
#
# **Expected.** The samples, an array of `x`'s shape.
#
# <details><summary>Hint</summary>
# Which different expressions are equal at η = 0 and at η = 1? And which one is equal to another for a VP
# process only? Compare with (1) and (11), symbol by symbol.
# </details>


# %% exercise="09.5" role="answer"
def sample_reverse(denoise, x, noises, times, alpha, sigma, f, g2, eta):
    """x [...], noises [N, ...], falling times and tables [N + 1], eta -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    for i, z in enumerate(noises):
        guess = denoise(x, alpha[i], sigma[i])
        if not sigma[i + 1]:
            return guess
        score = (alpha[i] * guess - x) / sigma[i] ** 2
        span = times[i] - times[i + 1]
        slope = f[i] * x - (1 + eta**2) / 2 * g2[i] * score
        x = x - slope * span + eta * np.sqrt(g2[i] * span) * z
    return x
    ### END SOLUTION


# %% [markdown]
# ## 09.6
# *derive and check · 20 minutes*
#
# A flow model gives the velocity $v = \dot\alpha\,\hat x_0 + \dot\sigma\,\hat\varepsilon$ at $x$, which is the
# probability flow: $dx = v\,dt$. A stochastic interpolant adds noise, and its amount, `free`, may be any
# number from 0 on. Its Euler–Maruyama step
# over the time $dt$ has fresh noise with the variance $2\,\text{free}\,|dt|$, and as much of the score as keeps
# the marginals. Write this step, for $dt < 0$ (to the data) **and** for $dt > 0$ (to the noise).
#
# **Expected.** The new state, an array of `x`'s shape. It must be finite where $\alpha = 0$, and where
# $\dot\alpha = 0$.
#
# <details><summary>Hint</summary>
# Two equations with two unknowns: x = α·x̂0 + σ·ε̂, and v. Find ε̂, and from it the score. Then add a piece
# of Langevin dynamics (2) to the flow. Does it depend on the direction of time?
# </details>


# %% exercise="09.6" role="answer"
def travel(x, v, z, level, slope, free, dt):
    """x, v and z [...], (alpha, sigma), their slopes, numbers free and dt -> the new state, [...]."""
    ### BEGIN SOLUTION return the new state, an array of x's shape
    alpha, sigma = level
    dalpha, dsigma = slope
    eps = (alpha * v - dalpha * x) / (alpha * dsigma - dalpha * sigma)
    h = free * abs(dt)
    return x + v * dt - h * eps / sigma + np.sqrt(2 * h) * z
    ### END SOLUTION


# %% [markdown]
# ## 09.7
# *stretch · 35 minutes*
#
# For Gaussian data one can say how wrong a finite number of steps is, without a single sample. The data are
# vectors with this `mean` and `covariance`. A run of the sampler of 09.5 begins at noise with mean 0 and
# covariance $\sigma^2 I$, where $\sigma$ is the first of the table. Its denoiser is exact. Find the mean
# and the covariance of what it returns.
#
# **Expected.** Two arrays: the mean `[D]` and the covariance `[D, D]`.
#
# <details><summary>Hint</summary>
# The noisy data at level (α, σ) are Gaussian: write their mean, their covariance and their score. Then each
# step is x ← A·x + b + noise with a matrix A, and so is the last one, which returns the denoiser's guess
# (α·x̂0 = x + σ²·score). What does such a step do to a mean, and what to a covariance?
# </details>


# %% exercise="09.7" role="answer"
def predicted(mean, covariance, times, alpha, sigma, f, g2, eta):
    """mean [D], covariance [D, D], falling times and tables [N + 1], eta -> mean and covariance."""
    ### BEGIN SOLUTION return the mean [D] and the covariance [D, D] of the samples
    one = np.eye(len(mean))
    m, S = np.zeros(len(mean)), sigma[0] ** 2 * one
    for i in range(len(times) - 1):
        middle = alpha[i] * mean
        P = np.linalg.inv(alpha[i] ** 2 * covariance + sigma[i] ** 2 * one)  # score: −P(x − middle)
        if sigma[i + 1] == 0:
            A = alpha[i] * covariance @ P
            return mean + A @ (m - middle), A @ S @ A.T
        span = times[i] - times[i + 1]
        weight = (1 + eta**2) / 2 * g2[i] * span
        A = (1 - f[i] * span) * one - weight * P
        m = A @ m + weight * P @ middle
        S = A @ S @ A.T + eta**2 * g2[i] * span * one
    return m, S
    ### END SOLUTION


# %% [markdown]
# ## 09.8
# *written · 15 minutes*
#
# A report about a trained network: "With 50 Euler–Maruyama steps the samples are good at $\eta = 0$ and too
# noisy at $\eta = 1$. The theory says that all $\eta$ have the same marginals, so our network's score must be
# wrong. We have repaired it: with one corrector step after each step, and its ratio $r$ tuned, the spread of
# the samples is right."
#
# In about 150 words:
#
# 1. The theory makes three assumptions besides an exact score. Name two of them. Which experiment shows
#    whether the network or the steps are to blame? *(1 point)*
# 2. Why does a right spread not show that the sampler is repaired? And why may $\eta > 0$ or a corrector still
#    give *better* samples than $\eta = 0$ when the score is a little wrong? *(1 point)*
#
# <details><summary>Hint</summary>
# Sections 3, 8 and 10 to 12. Which bias has Langevin dynamics itself?
# </details>

# %% [markdown] exercise="09.8" role="written"
# ### BEGIN SOLUTION
# 1. The marginals are the same in *continuous* time, for a run that starts at the right distribution, and if
#    noise and score keep the balance of (11). Fifty steps are not continuous, and at $\eta = 1$ the score's
#    term is twice as large as at $\eta = 0$. Take 100, 200 and 400 steps: an error of the steps shrinks,
#    an error of the network stays. Or take 50 steps with an exact denoiser. (Step (12) is no test: its own spread is
#    too small at $\eta = 1$, section 10.)
# 2. One number was tuned until one number was right: two errors may cancel. The corrector has a bias of its
#    own, $v/(1 - h/(2v))$, which differs between directions.
#    Still, Langevin pieces pull a state towards the marginal of the score at hand, so earlier errors are
#    forgotten. The probability flow carries them to the end.
#
# *One point for each part. The first needs two assumptions and an experiment that changes one thing. The second
# needs that errors can cancel, and that noise with score forgets earlier errors.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 09. You have found levels from rates, the limit of Langevin dynamics, a density without
# its constant, a step with a corrector, three bugs where nobody had looked, noise for a flow, and the bias of a
# sampler without a sample. Chapter 10 follows the density along the path.
