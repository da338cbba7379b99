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
# # 10 · Probability flow and likelihood: exercises
#
# They belong to [chapter 10](../notebooks/10_likelihood.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Logarithms are natural ones, so densities are in nats; a nat is $1/\log 2$ bits. `[B, D]` are $B$ examples
# of $D$ numbers. Levels of noise run from the data to the noise, because that is how a likelihood is computed.
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
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

from diffusion_course.grading import check

# %% [markdown]
# ## 10.1
# *warm-up · 10 minutes*
#
# Pixels with $K$ levels lie in $[-1, 1]$, equally spaced, and were dequantised. Then each number was
# **standardised**: the model sees $y = (x - \text{mean})/\text{std}$, with a mean and a std of its own for
# each place and channel. You get the log-densities of some images $y$. How many bits per dimension do the
# pixels cost? An image may have hundreds of numbers.
#
# **Expected.** An array `[N]`. It does not depend on the means.
#
# <details><summary>Hint</summary>
# The probability of a bin is about the density times its width. How wide is a bin of x? And of y?
# </details>


# %% exercise="10.1" role="answer"
def pixel_bits(log_p, std, levels):
    """log_p [N] in nats, std [...] of one image, the whole number levels -> bits per dim, [N]."""
    ### BEGIN SOLUTION return the bits per dimension, an array of log_p's shape
    nats = -log_p / std.size + np.log((levels - 1) / 2) + jnp.mean(jnp.log(std))
    return nats / np.log(2)
    ### END SOLUTION


# %% [markdown]
# ## 10.2
# *derive and check · 15 minutes*
#
# Equation (4) needs the divergence of the flow. For any process the flow is
# $\dot x = \dot\alpha\,\hat x_0 + \dot\sigma\,\hat\varepsilon$, where a dot is a derivative by time. A network may
# say $\hat x_0$, or $\hat\varepsilon$, or the score $-\hat\varepsilon/\sigma$. You get the Jacobian, by $x_t$, of
# what it says. Find the **divergence of the flow**.
#
# **Expected.** An array `[B]`, for each `kind` of `"x0"`, `"eps"` and `"score"`.
#
# <details><summary>Hint</summary>
# Write the flow with x_t and the network's output alone: x_t = α·x0 + σ·ε holds for the two estimates. The
# divergence of x_t itself is D.
# </details>


# %% exercise="10.2" role="answer"
def flow_divergence(jacobian, kind, alpha, sigma, d_alpha, d_sigma):
    """jacobian [B, D, D], a kind, levels and their derivatives [B] -> divergence, [B]."""
    ### BEGIN SOLUTION return the divergences, an array [B]
    trace = jnp.trace(jacobian, axis1=1, axis2=2)
    D = jacobian.shape[1]
    if kind == "x0":
        return d_alpha * trace + d_sigma / sigma * (D - alpha * trace)
    if kind == "score":
        trace = -sigma * trace  # of ε's Jacobian
    return d_alpha / alpha * (D - sigma * trace) + d_sigma * trace
    ### END SOLUTION


# %% [markdown]
# ## 10.3
# *derive and check · 20 minutes*
#
# Equation (7) has the variance of Hutchinson's estimate for two kinds of random vectors. Find it for all
# others. The estimate is the mean of $z^\top A z$ over `probes` random vectors. The coordinates of $z$ are
# independent, with $E[z_i] = 0$ and $E[z_i^2] = 1$. Their fourth moment is $m_4 = E[z_i^4]$. It is 1 for
# random signs, 3 for Gaussian numbers, and 9/5 for uniform ones. $A$ need not be symmetric.
#
# **Expected.** An array `[B]`. For a diagonal matrix and random signs it is 0.
#
# <details><summary>Hint</summary>
# Replace A by its symmetric part: zᵀAz is the same. Then zᵀAz is a sum over the diagonal, with z_i², and over
# pairs i &lt; j, with 2·z_i·z_j. None of these terms is correlated with any other.
# </details>


# %% exercise="10.3" role="answer"
def probe_variance(A, fourth, probes):
    """A [B, D, D], the number fourth, the whole number probes -> variances, [B]."""
    ### BEGIN SOLUTION return the variances, an array [B]
    S = (A + jnp.swapaxes(A, 1, 2)) / 2
    diagonal = jnp.diagonal(S, axis1=1, axis2=2)
    on = jnp.sum(diagonal**2, axis=1)
    off = jnp.sum(S**2, axis=(1, 2)) - on  # each pair i < j twice
    return ((fourth - 1) * on + 2 * off) / probes
    ### END SOLUTION


# %% [markdown]
# ## 10.4
# *implement · 25 minutes*
#
# With $\alpha = 1$ the flow is $dx/d\sigma = (x - D(x, 1, \sigma))/\sigma$. Take **Euler** steps along the rising
# levels `sigma`, each with the slope at its beginning. The last state has the density
# $\mathcal N(0, \sigma_N^2)$. Find the log-density of `x` in two ways:
#
# - *the integral* of equation (4): add length times divergence of each step;
# - *the map*: a step maps states to states. Add the logarithm of the determinant of its Jacobian. This is
#   exactly the density of samples that are drawn by undoing the steps.
#
# `denoise(x, alpha, sigma)` works on each number alone, so all Jacobians are diagonal. All
# determinants here are positive.
#
# **Expected.** A tuple of two arrays `[B]`: the integral's, the map's. The first is never smaller
# (why?), so it is no density: over all $x$ it adds up to more than 1.
#
# <details><summary>Hint</summary>
# The Jacobian times a vector of ones is the diagonal: jax.jvp(slope, (x,), (ones,)). If the
# slope's derivative is r, the step's is 1 + h·r.
# </details>


# %% exercise="10.4" role="answer"
def two_accounts(denoise, x, sigma):
    """x [B, D] at the first level, rising levels sigma [N + 1] -> (integral, map), each [B]."""
    ### BEGIN SOLUTION return a tuple of two arrays [B]
    integral = volume = 0.0
    for n in range(len(sigma) - 1):
        h, level = sigma[n + 1] - sigma[n], sigma[n]

        def slope(x, level=level):
            return (x - denoise(x, 1.0, level)) / level

        move, growth = jax.jvp(slope, (x,), (jnp.ones_like(x),))
        integral = integral + jnp.sum(h * growth, axis=1)
        volume = volume + jnp.sum(jnp.log(1 + h * growth), axis=1)
        x = x + h * move
    prior = jnp.sum(norm.logpdf(x, 0.0, sigma[-1]), axis=1)
    return prior + integral, prior + volume
    ### END SOLUTION


# %% [markdown]
# ## 10.5
# *debug this · 20 minutes*
#
# The log-density by the integral of exercise 10.4 ($\alpha = 1$, Euler steps, rising levels), with Hutchinson's
# estimate in the place of the exact trace. For each step there are `P` probes for each example.
# `denoise(x, alpha, sigma)` is the exact denoiser of Gaussian data. Run the cell: the mean
# log-density is far from the right one.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_log_prob(denoise, x, probes, sigma):
    gained = 0.0
    for now, then, drawn in zip(sigma[:-1], sigma[1:], probes, strict=True):

        def slope(x, now=now):
            return (x - denoise(x, 1.0, now)) / now

        move, times_jacobian = jax.linearize(slope, x)
        trace = sum((z * times_jacobian(z)).sum(1) for z in drawn)
        gained = gained + (then - now) * trace
        x = x + (then - now) * move
    prior = norm.logpdf(x).sum(1)
    return prior - gained


# %%
exact = GaussianDenoiser(mean=0.8, std=0.5)
sigma = np.geomspace(0.05, 30, 121)
drawn = jax.random.normal(jax.random.key(0), (500, 3))
x = exact.mean + np.hypot(exact.std, sigma[0]) * drawn
probes = jax.random.rademacher(jax.random.key(1), (120, 2, 500, 3), jnp.float32)
found = broken_log_prob(exact, x, probes, sigma).mean()
right = norm.logpdf(x, exact.mean, np.hypot(exact.std, sigma[0])).sum(1).mean()
print(f"mean log-density: found {found:.2f}, right {right:.2f}")
assert abs(found - right) > 5  # nats; 120 Euler steps err by less than 1

# %% [markdown]
# There are **three** bugs. Two of them would be noticed with a single probe. Write the log-density as it
# should be, with the same steps and the given probes.
#
# **Expected.** The log-densities, an array `[B]`.
#
# <details><summary>Hint</summary>
# Take one number, and data that are a single wide Gaussian. Does the flow spread points on the way to noise?
# So is the density of the data above or below that of the noise? And with twice as many probes, what should
# the result be on average?
# </details>


# %% exercise="10.5" role="answer"
def log_prob(denoise, x, probes, sigma):
    """x [B, D], probes [N, P, B, D], rising levels sigma [N + 1] -> log-density of each x, [B]."""
    ### BEGIN SOLUTION return the log-densities, an array [B]
    account = 0.0
    for n, drawn in enumerate(probes):
        level, h = sigma[n], sigma[n + 1] - sigma[n]

        def slope(x, level=level):
            return (x - denoise(x, 1.0, level)) / level

        velocity, product = jax.linearize(slope, x)
        estimates = [jnp.sum(z * product(z), axis=1) for z in drawn]
        account = account + h * sum(estimates) / len(estimates)
        x = x + h * velocity
    return jnp.sum(norm.logpdf(x, 0.0, sigma[-1]), axis=1) + account
    ### END SOLUTION


# %% [markdown]
# ## 10.6
# *derive and check · 20 minutes*
#
# Equation (12), divided by the number of dimensions, is
#
# $$-\log p(x) = \tfrac12\log 2\pi e - \tfrac12\int_0^\infty\Big[\frac{1}{1+\gamma} -
# \operatorname{mmse}(x, \gamma)\Big]d\gamma, \qquad \gamma = \frac{\alpha^2}{\sigma^2}.$$
#
# Here mmse is the mean squared error of $\hat x_0$. A network was asked on a grid of a few
# $\lambda = \log\gamma$, but for $\varepsilon$: `errors` are the mean squared errors of $\hat\varepsilon$. Integrate
# over $\lambda$, as in (13), with the trapezoidal rule. The steps of the grid differ.
#
# Then add both tails. Below the grid the bracket is constant, as at its first point. Beyond the grid it falls
# like $1/\gamma^2$, from its value at the last point.
#
# **Expected.** An array `[B]` of nats per dimension.
#
# <details><summary>Hint</summary>
# dγ = γ·dλ, and γ·mmse is the error of ε. Compute the two tails as integrals over γ: both are γ times
# the bracket, at the first and at the last point.
# </details>


# %% exercise="10.6" role="answer"
def nats_from_errors(log_snr, errors):
    """log_snr [N] rising, errors [B, N] of ε, mean squares -> −log p per dimension, [B]."""
    ### BEGIN SOLUTION return nats per dimension, an array [B]
    gap = jax.nn.sigmoid(log_snr) - errors  # γ times the bracket
    inside = jnp.trapezoid(gap, log_snr, axis=1)
    tails = gap[:, 0] + gap[:, -1]
    return 0.5 * (np.log(2 * np.pi) + 1 - inside - tails)
    ### END SOLUTION


# %% [markdown]
# ## 10.7
# *stretch · 30 minutes*
#
# Pixels `x` have the values of `levels` equally spaced levels from −1 to 1. The bin of a value is the interval
# of width $w$ around it, where $w$ is the distance of two levels (also at −1 and 1). The model is a density:
# independent numbers $\mathcal N(\text{mean}, \text{std}^2)$. With $u$ uniform on
# $[-\tfrac12, \tfrac12]^D$, and $\log$s of whole images, there are three prices:
#
# $$-E_u\big[\log w^D p(x + wu)\big] \;\ge\; -E\log\frac1R\sum_{r=1}^R w^D p(x + wu_r) \;\ge\; -\log P(x).$$
#
# The second is called an **importance-weighted** bound and gets tighter as $R$ grows. Return the first one
# exactly (not as a mean over draws), the second one for the given draws `u` (without its $E$), and the third
# one exactly, with $P(x)$ the probability of the bins. Images may have so many
# numbers that a density is no float32 any more.
#
# **Expected.** A tuple of three arrays `[B]`, in bits per dimension.
#
# <details><summary>Hint</summary>
# The first: what is the mean of (x + wu − mean)² if u is uniform? The second: logsumexp over the draws of the
# log-density of the whole image. The third: differences of norm.cdf.
# </details>


# %% exercise="10.7" role="answer"
def pixel_costs(x, u, mean, std, levels):
    """x [B, D], draws u [R, B, D], mean and std [D], whole number levels -> three prices, [B]."""
    ### BEGIN SOLUTION return a tuple of three arrays [B]
    D, w = x.shape[1], 2 / (levels - 1)

    def log_density(x):
        return jnp.sum(norm.logpdf(x, mean, std), axis=-1)

    uniform = log_density(x) - jnp.sum(w**2 / (24 * std**2)) + D * np.log(w)
    weighted = logsumexp(log_density(x + w * u), axis=0) - np.log(len(u)) + D * np.log(w)
    upper = norm.cdf((x + w / 2 - mean) / std)
    lower = norm.cdf((x - w / 2 - mean) / std)
    discrete = jnp.sum(jnp.log(upper - lower), axis=1)
    return tuple(-nats / (D * np.log(2)) for nats in (uniform, weighted, discrete))
    ### END SOLUTION


# %% [markdown]
# ## 10.8
# *written · 20 minutes*
#
# A team trains a model on photographs of $32\times32\times3 = 3072$ numbers. It is to raise an alarm for
# pictures of another kind: "We raise it if $\log p$ is low."
#
# In about 200 words:
#
# 1. For a moment, let the model be $\mathcal N(0, I)$. By how many nats does $\log p$ of the image of zeros lie
#    above the mean $\log p$ of the model's own samples, and how many standard deviations of $\log p$ are
#    this? Which pictures will the alarm miss, and what would you do instead? *(2 points)*
# 2. They also write: "Hutchinson's estimate is unbiased, so the mean of our estimates of $p(x)$ over many
#    repeats is the true $p(x)$. And our 3.1 bits/dim, an importance-weighted bound with 100 draws, beat the
#    3.2 of the paper with one draw." Is that mean too large or too small? What else is wrong? *(1 point)*
#
# <details><summary>Hint</summary>
# log p is a constant minus half the sum of 3072 squares, each with the mean 1 and the variance 2. For the
# second part: the exponential is convex, and a bound may be loose.
# </details>

# %% [markdown] exercise="10.8" role="written"
# ### BEGIN SOLUTION
# 1. The sum of squares is 3072 on average, and 0 for the zeros: they lie 3072/2 = 1536 nats higher. Half the
#    sum has the variance 3072·2/4 = 1536, and its root is 39.2: the zeros lie 39 standard deviations above. No
#    sample ever looks like that, and the alarm stays silent. It misses whatever is *likelier* than
#    photographs: smooth, pale or constant pictures. Better: raise the alarm if log p is far from
#    held-out photographs' on **either** side, or use the ratio to a second model, of pictures in general.
# 2. The estimate of log p is unbiased, up to the errors of the steps. The mean of its exponential is too
#    large, by Jensen's inequality. And a bound with 100 draws is tighter than one with a single draw,
#    for the *same* model. Compare with as many draws, on the same images.
#
# *Part 1: one point for 1536 nats and 39 standard deviations, one for what is missed and a two-sided test or a
# ratio. Part 2 needs the convex exponential and the unequal bounds.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 10. You have counted the bits of standardised pixels, found the divergence of any
# flow and the noise of its estimate, told an integral from a map, mended a likelihood with three
# bugs, computed a likelihood from errors alone, put three prices on a pixel, and met a picture that is likelier
# than the data. Chapter 11 makes the solvers faster.
