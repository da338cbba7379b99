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
# # 12 · The EDM design space: exercises
#
# They belong to [chapter 12](../notebooks/12_edm.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
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
# ## 12.1
# *warm-up · 10 minutes*
#
# EDM's coefficients are for $x_t = x_0 + \sigma\varepsilon$ and for data that are centred. Derive them for
# $x_t = \alpha x_0 + \sigma\varepsilon$ and for the data in a batch, whatever their mean. The denoiser is
#
# $$D(x_t) = c_\text{skip}\,x_t + c_\text{out}\,F(c_\text{in}\,x_t).$$
#
# Over all numbers of the batch, the network's input $c_\text{in}x_t$ and its target
# $(x_0 - c_\text{skip}x_t)/c_\text{out}$ must have the mean square 1. And $c_\text{out}$, which multiplies the
# network's error, must be as small as possible. The noise is $N(0, 1)$ and does not depend on the data.
#
# **Expected.** An array of three numbers. Without signal, at $\alpha = 0$, the first is 0.
#
# <details><summary>Hint</summary>
# The mean square of x0 − c·x_t is a parabola in c. Where is it least, and how large is it there? For
# data that are not centred, mean square and variance are two numbers. Which of them does the text ask for?
# </details>


# %% exercise="12.1" role="answer"
def coefficients(x0, alpha, sigma):
    """Data x0 [N, ...], the numbers alpha and sigma -> [c_skip, c_out, c_in]."""
    ### BEGIN SOLUTION return the three coefficients in an array
    square = jnp.mean(x0**2)
    total = alpha**2 * square + sigma**2  # the mean square of x_t
    return jnp.array([alpha * square / total, sigma * jnp.sqrt(square / total), total**-0.5])
    ### END SOLUTION


# %% [markdown]
# ## 12.2
# *derive and check · 20 minutes*
#
# EDM and flow matching look like two methods. Show that they are one. EDM draws
# $\log\sigma \sim N(m, s^2)$ and minimises, with $\lambda = (\sigma^2 + d^2)/(\sigma d)^2$,
#
# $$\mathbb E\,\lambda(\sigma)\,\|D(x_0 + \sigma\varepsilon;\sigma) - x_0\|^2.$$
#
# A rectified flow has $x_t = (1 - t)\,x_0 + t\,\varepsilon$, and minimises
# $\mathbb E\,w(t)\,\|v(x_t, t) - (\varepsilon - x_0)\|^2$ for its velocity $v$. Find the $w(t)$ with which
# both have the same expected loss for every denoiser, where $v$ is the velocity that belongs to $D$:
#
# - `times = "as EDM"`: $t$ is drawn such that its noise level (noise over signal) has EDM's distribution;
# - `times = "uniform"`: $t$ is uniform between 0 and 1.
#
# **Expected.** An array of `t`'s shape. For $d = 1$ and `"as EDM"` it is $t^2 + (1 - t)^2$.
#
# <details><summary>Hint</summary>
# Dividing x_t by 1 − t gives EDM's input at the noise level t/(1 − t). The velocity is (x_t − x0)/t, so an
# error of x0 becomes an error of v. For uniform times, w also holds the density of t that EDM's times have:
# the density of log σ, times the derivative of log σ with respect to t.
# </details>


# %% exercise="12.2" role="answer"
def flow_weight(t, times, mean, std, sigma_data):
    """Times t [K], "as EDM" or "uniform", the numbers m, s and d -> w(t), [K]."""
    ### BEGIN SOLUTION return the weights, an array [K]
    weight = (1 - t) ** 2 + (t / sigma_data) ** 2
    if times == "uniform":
        z = (jnp.log(t / (1 - t)) - mean) / std
        weight = weight * jnp.exp(-0.5 * z**2) / (std * np.sqrt(2 * np.pi) * t * (1 - t))
    return weight
    ### END SOLUTION


# %% [markdown]
# ## 12.3
# *implement · 20 minutes*
#
# Churn for a rectified flow, $x_t = (1 - t)\,x_0 + t\,\varepsilon$. The noise level that counts is the ratio
# $r = t/(1 - t)$. Where `low` $\le r \le$ `high`, churn raises it to $(1 + \gamma)\,r$, with
# $\gamma = \min(\texttt{churn}/n, \sqrt 2 - 1)$; elsewhere $\gamma = 0$. Find the higher time $t'$, and the two
# numbers of $x_{t'} = \text{scale}\cdot x_t + \text{std}\cdot z$ with $z \sim N(0, 1)$.
#
# - For `noise = 1` the state $x_{t'}$ must be distributed exactly as the process says at $t'$. Otherwise
#   `noise`, which is $S_\text{noise}$, multiplies std, and nothing else.
# - At $t = 1$ there is no higher level: nothing changes.
#
# **Expected.** An array `[t', scale, std]`; `[t, 1, 0]` where nothing is added.
#
# <details><summary>Hint</summary>
# First t' from its ratio. The signal shrinks from 1 − t to 1 − t', and the old noise shrinks with it. What
# is missing from the variance t'² is added. Python divides no number by 0: treat t = 1 first. Where γ = 0,
# return [t, 1, 0] at once: there the difference of two equal squares may round below 0, and its root is nan.
# </details>


# %% exercise="12.3" role="answer"
def churn_flow(t, n, churn, low, high, noise):
    """The time t in (0, 1], n steps, the numbers S_churn, S_tmin, S_tmax, S_noise -> [t', scale, std]."""
    ### BEGIN SOLUTION return three numbers in an array
    if t == 1:
        return jnp.array([1.0, 1.0, 0.0])
    ratio = t / (1 - t)
    gamma = min(churn / n, np.sqrt(2) - 1) if low <= ratio <= high else 0.0
    higher = (1 + gamma) * ratio / (1 + (1 + gamma) * ratio)
    added = (1 - higher) * ratio * np.sqrt(gamma * (2 + gamma))  # no difference of near squares
    return jnp.array([higher, (1 - higher) / (1 - t), noise * added])
    ### END SOLUTION


# %% [markdown]
# ## 12.4
# *implement · 15 minutes*
#
# A U-Net joins two branches along the last axis: `a` with $A$ channels and `b` with $B$. During training
# their root mean squares were `size_a` and `size_b`; take these numbers, and do not measure them anew. Multiply
# each branch by one number, then join them, such that
#
# - the whole has the mean square 1 if the branches have their usual sizes;
# - the sum of squares of the part of `b` is to that of `a` as $\text{share}^2$ to $(1 - \text{share})^2$. The
#   next layer adds up all channels, so this is what it receives from each, however many channels they have.
#
# **Expected.** An array `[..., A + B]`, first `a`, then `b`.
#
# <details><summary>Hint</summary>
# Let the parts have the sums of squares c·(1 − share)² and c·share². Their total must be A + B. Why is no
# correlation between a and b in the answer, when the sum of two branches has one?
# </details>


# %% exercise="12.4" role="answer"
def joined(a, b, size_a, size_b, share):
    """a [..., A] and b [..., B], the numbers size_a, size_b and share in [0, 1] -> [..., A + B]."""
    ### BEGIN SOLUTION return the joined branches, an array [..., A + B]
    A, B = a.shape[-1], b.shape[-1]
    common = np.sqrt((A + B) / ((1 - share) ** 2 + share**2))
    from_a = common * (1 - share) / (size_a * np.sqrt(A)) * a
    from_b = common * share / (size_b * np.sqrt(B)) * b
    return jnp.concatenate([from_a, from_b], axis=-1)
    ### END SOLUTION


# %% [markdown]
# ## 12.5
# *debug this · 20 minutes*
#
# EDM's stochastic sampler in a process with signal: `alpha` and `sigma` are tables of $\alpha$ and $\sigma$, one
# entry for each time. Churn raises the noise level from `now` to `up` and leaves the signal as it is. From there
# Heun's method goes to the next entries, on the path of $x/\alpha$ over $\sigma/\alpha$. Where the next `sigma` is 0,
# it takes the Euler step alone. `denoise(x, alpha, sigma)` is the exact denoiser of Gaussian data. Run the cells.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_sample(denoise, x, noises, alpha, sigma, gamma):
    for i, noise in enumerate(noises):
        here, there = alpha[i], alpha[i + 1]
        now, up, after = sigma[i], (1 + gamma) * sigma[i], sigma[i + 1]
        x = x + (up - now) * noise
        step = after / there - up / here
        slope = (x - here * denoise(x, here, now)) / up
        ahead = there * (x / here + step * slope)
        if after > 0:
            second = (ahead - there * denoise(x, there, after)) / after
            ahead = there * (x / here + step * (slope + second) / 2)
        x = ahead
    return x


# %%
exact = GaussianDenoiser(mean=3.0, std=0.5)
ratios = np.append(np.linspace(20 ** (1 / 7), 0.02 ** (1 / 7), 17) ** 7, 0.0)  # σ/α
tables = 1 / np.sqrt(1 + ratios**2), ratios / np.sqrt(1 + ratios**2)
drawn = jax.random.normal(jax.random.key(0), (18, 2000))
spread = [float(broken_sample(exact, drawn[17], drawn[:17], *tables, g).std()) for g in (0, 0.2)]
print("std of the data 0.500, of the samples {:.3f} without churn, {:.3f} with it".format(*spread))
assert spread[0] > 1.1 * 0.5 and spread[1] < 0.6 * 0.5  # 2000 samples: the standard error is 1.6 %

# %% [markdown]
# There are **three** bugs. One shows without churn, and two need it. Two of the three make the samples too
# wide, and the other makes them too narrow: mend only one, and the result may look worse. Write the sampler as
# it should be. Mended, it prints 0.517 and 0.541: seventeen steps and 2000 samples have
# errors of their own.
#
# **Expected.** The samples, an array of `x`'s shape.
#
# <details><summary>Hint</summary>
# What is the variance after the churn? And for each of the two calls of the denoiser: which state goes in,
# and which signal and which noise does this state have?
# </details>


# %% exercise="12.5" role="answer"
def sample_edm(denoise, x, noises, alpha, sigma, gamma):
    """x [...] at the first time, noises [N, ...], tables alpha and sigma [N + 1], gamma -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    ratio = sigma / alpha
    for i, z in enumerate(noises):
        top, bottom = (1 + gamma) * ratio[i], ratio[i + 1]
        x = x + sigma[i] * np.sqrt(gamma * (2 + gamma)) * z
        y = x / alpha[i]
        d = (y - denoise(x, alpha[i], top * alpha[i])) / top
        if bottom:
            euler = y + (bottom - top) * d
            clean = denoise(alpha[i + 1] * euler, alpha[i + 1], sigma[i + 1])
            d = (d + (euler - clean) / bottom) / 2
        x = alpha[i + 1] * (y + (bottom - top) * d)
    return x
    ### END SOLUTION


# %% [markdown]
# ## 12.6
# *derive and check · 25 minutes*
#
# A good model has learned $p_1 = N(\mu, \texttt{good}^2)$ and a bad one $p_0 = N(\mu, \texttt{bad}^2)$.
# Autoguidance samples with $D = D_0 + w\,(D_1 - D_0)$. One often reads that it draws from
# $p_1^{\,w}\,p_0^{\,1-w}$, scaled to a density. Compute two standard deviations:
#
# 1. of that density; `inf` where the function cannot be scaled to one, because it does not fall to 0;
# 2. of what is really drawn: begin at the noise level `sigma` ($\alpha = 1$) with states around $\mu$ of
#    standard deviation `start`, and follow $\frac{dx}{d\sigma} = \frac{x - D(x;\sigma)}{\sigma}$ exactly,
#    down to $\sigma = 0$.
#
# **Expected.** An array of two numbers. At $w = 1$ and $\texttt{start}^2 = \texttt{good}^2 + \texttt{sigma}^2$
# both are `good`.
#
# <details><summary>Hint</summary>
# The exact denoiser of N(μ, s²) is μ + s²/(s² + σ²)·(x − μ). So the equation says how fast log|x − μ|
# changes: the integral of a sum of σ/(s² + σ²), each with its weight. You can compare with ten thousand
# Euler steps.
# </details>


# %% exercise="12.6" role="answer"
def autoguided(good, bad, w, start, sigma):
    """Standard deviations good and bad, w, and the start's std at level sigma -> two stds, [2]."""
    ### BEGIN SOLUTION return the two standard deviations in an array
    precision = w / good**2 + (1 - w) / bad**2
    named = precision**-0.5 if precision > 0 else np.inf
    kept = (good / np.hypot(good, sigma)) ** w * (bad / np.hypot(bad, sigma)) ** (1 - w)
    return jnp.array([named, start * kept])
    ### END SOLUTION


# %% [markdown]
# Begin at a high level with $\texttt{start} = \sigma$. Then the second number is nearly
# $\texttt{good}^w\,\texttt{bad}^{1-w}$. It is positive for every $w$, also where the density does not exist.
#
# ## 12.7
# *stretch · 35 minutes*
#
# Post-hoc EMA without a sum over the steps of the run. A power average that ends at step $T$ has the profile
#
# $$p_{T,\gamma}(\tau) = \frac{\gamma + 1}{T^{\gamma+1}}\,\tau^{\gamma} \quad (0 \le \tau \le T),
# \qquad \sigma_\text{rel}^2 = \frac{\gamma + 1}{(\gamma + 2)^2\,(\gamma + 3)},$$
#
# and is 0 later. Averages of the widths $\sigma_\text{rel}$ = `widths`, which end at `steps`, are stored. The
# average of another `width`, which ends at `step`, is wanted. Find the weights $c_k$ with $\sum_k c_k = 1$ for
# which $\int \big(\sum_k c_k\,p_k - p\big)^2 d\tau$ is least. Compute the integrals exactly.
#
# **Expected.** An array `[K]` of sum 1. For an average that is stored, it is 1 there and 0 elsewhere.
#
# <details><summary>Hint</summary>
# Three steps. First γ: a cubic equation, of which np.roots gives the roots; the largest counts. Then
# the integral of a product of two profiles, which ends with the earlier one. Then least squares with a
# condition: a Lagrange multiplier adds a row and a column of ones. Use NumPy, since JAX computes in float32.
# </details>


# %% exercise="12.7" role="answer"
def post_hoc(widths, steps, width, step):
    """Stored widths and steps [K], and the wanted width and step -> the weights, [K]."""
    ### BEGIN SOLUTION return the weights, an array [K]
    gammas = []
    for each in [*widths, width]:
        # (γ + 2)²(γ + 3) − (γ + 1)/σ_rel² = 0
        gammas.append(np.roots([1, 7, 16 - each**-2, 12 - each**-2]).real.max())
    g, T = np.array(gammas), np.append(steps, step)
    end = np.minimum(T[:, None], T)
    inner = (g + 1) * (g[:, None] + 1) / (g + g[:, None] + 1)
    inner = inner * (end / T) ** g * (end / T[:, None]) ** g[:, None] / np.maximum(T[:, None], T)
    K = len(widths)
    system = np.ones((K + 1, K + 1))
    system[:K, :K], system[K, K] = inner[:K, :K], 0
    return np.linalg.solve(system, np.append(inner[:K, K], 1))[:K]
    ### END SOLUTION


# %% [markdown]
# ## 12.8
# *written · 15 minutes*
#
# A report compares two image generators. *A* predicts $\varepsilon$, is trained with uniform times, and samples
# with 50 steps of DDIM: Fréchet distance 3.9. *B* has EDM's preconditioning and log-normal times, and samples
# with 50 steps of Heun: 3.1. "Preconditioning makes the samples 20 % better at the same cost," it says. Then:
# "From *B*'s run we made post-hoc averages of 40 widths and kept the one with the lowest distance, 2.9. With
# autoguidance it is 2.2, also in 50 steps."
#
# In about 150 words:
#
# 1. Why does the first sentence not follow? Give two reasons. Which runs would show what preconditioning
#    alone is worth? *(1 point)*
# 2. What is wrong with the 2.9, and what does the 2.2 hide? What should be reported in each case? *(1 point)*
#
# <details><summary>Hint</summary>
# Count what changed from A to B, and count evaluations of the network. Who chose the width, and by what?
# </details>

# %% [markdown] exercise="12.8" role="written"
# ### BEGIN SOLUTION
# 1. Three things changed at once: the preconditioning, the times and weights of the training, and the solver.
#    And 50 steps of Heun are 99 evaluations, 50 of DDIM only 50. Train all four combinations of ε or
#    preconditioning with uniform or log-normal times, with the same weight on $D$'s error, equally long, each at
#    its best learning rate. Sample all with one solver, one grid and several seeds. Compare at equal times.
# 2. The least of 40 noisy distances is too low: the samples that chose the width must not judge it. Choose
#    on one set of samples, and report the distance of another, with its scatter. Autoguidance
#    evaluates two networks in each step, and the bad one must be trained. Report both costs, and give *B* alone
#    as many evaluations.
#
# *One point for each part. The first needs two reasons and runs that change one thing. The second needs
# different samples for choice and report, and the second network's cost.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 12. You have derived EDM's coefficients for any process and any data, shown that flow
# matching is EDM with another weight, put churn on another clock, joined branches at unit size, mended a
# sampler, seen what autoguidance really draws, and made an average after the run. Chapter 13 asks how samples
# are judged, and where the judges are blind.
