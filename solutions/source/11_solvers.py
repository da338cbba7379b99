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
# # 11 · Solvers: third order, stochastic, adaptive: exercises
#
# They belong to [chapter 11](../notebooks/11_solvers.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Tables of $\alpha$ and $\sigma$ run from noise to data, and $\lambda = \log(\alpha/\sigma)$. Each level has signal
# ($\alpha > 0$), and only the last $\sigma$ may be 0. A step from $t$ to $s$ has the length
# $h = \lambda_s - \lambda_t$. Always $c = 1 + \eta^2$.
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
# ## 11.1
# *warm-up · 10 minutes*
#
# Equation (2) is for $\eta = 0$. With noise, equation (4) needs
#
# $$m_j = \int_0^h c\,e^{-c(h-u)}\,u^j\,du, \qquad j = 0, \dots, K-1.$$
#
# Integrate by parts once, and compute each from the one before.
#
# **Expected.** An array `[K]`. Its first entry is $1 - e^{-ch}$.
#
# <details><summary>Hint</summary>
# The derivative of e^(−c(h−u)) with respect to u is c times itself. So the boundary term has no c, and the
# remaining integral is 1/c times the one for j − 1.
# </details>


# %% exercise="11.1" role="answer"
def moments(h, eta, K):
    """Numbers h and eta, a whole number K -> the integrals m_0 … m_{K−1}, [K]."""
    ### BEGIN SOLUTION return the integrals, an array [K]
    c = 1 + eta**2
    m = [-np.expm1(-c * h)]
    for j in range(1, K):
        m.append(h**j - j * m[-1] / c)
    return jnp.array(m)
    ### END SOLUTION


# %% [markdown]
# ## 11.2
# *derive and check · 20 minutes*
#
# Section 2 can be done for $\hat\varepsilon$ in the place of $\hat x_0$. Then the step is
#
# $$x_s = \frac{\alpha_s}{\alpha_t}\,x_t - \sigma_s\int_0^h e^{h-u}\,\hat\varepsilon(\lambda_t + u)\,du.$$
#
# Put the polynomial through $K$ estimates $\hat\varepsilon_k$ in the place of $\hat\varepsilon$. They were made at
# the places $u =$ `nodes` (differences of $\lambda$ from $\lambda_t$, in any order; none need be 0). Then the
# integral is $\sum_k w_k\,\hat\varepsilon_k$. Find the weights $w_k$.
#
# **Expected.** An array `[K]`, whose sum is $e^h - 1$.
#
# <details><summary>Hint</summary>
# First the integrals of e^(h−u)·u^j, by parts. Then one equation for each power: the weighted sum of
# nodes^j must be the integral. np.vander(nodes, increasing=True) has the powers of one node in a row.
# </details>


# %% exercise="11.2" role="answer"
def noise_weights(nodes, h):
    """nodes [K], all different, the number h -> the weights of the estimates, [K]."""
    ### BEGIN SOLUTION return the weights, an array [K]
    integrals = [np.expm1(h)]
    for j in range(1, len(nodes)):
        integrals.append(j * integrals[-1] - h**j)
    powers = np.stack([nodes**j for j in range(len(nodes))])
    return np.linalg.solve(powers, np.array(integrals))
    ### END SOLUTION


# %% [markdown]
# ## 11.3
# *implement · 15 minutes*
#
# The decision of an adaptive solver, for a batch. `low` and `high` are the two answers of an embedded pair
# of orders 2 and 3, and `x` is the state where the step began.
#
# - Scale each difference by `tolerance · max(1, |x|, |low|)`, number by number.
# - The error of an example is the rms of its scaled differences. The worst example decides.
# - Accept if this error is at most 1. The next length is $0.9\,h\cdot\text{error}^{-1/3}$, but at least
#   $0.2\,h$ and at most $5\,h$, both after an accepted and after a rejected step.
#
# **Expected.** An array of two numbers: 1 or 0 for accept or reject, and the next length.
#
# <details><summary>Hint</summary>
# Reshape to [B, −1] before the mean over axis 1; examples may be vectors or images.
# </details>


# %% exercise="11.3" role="answer"
def control(low, high, x, h, tolerance):
    """low, high and x [B, ...], numbers h and tolerance -> [accepted, next length]."""
    ### BEGIN SOLUTION return two numbers in an array
    size = tolerance * jnp.maximum(1, jnp.maximum(jnp.abs(x), jnp.abs(low)))
    scaled = ((high - low) / size).reshape(x.shape[0], -1)
    error = jnp.sqrt(jnp.mean(scaled**2, axis=1)).max()
    return jnp.array([error <= 1, h * jnp.clip(0.9 * error ** (-1 / 3), 0.2, 5.0)])
    ### END SOLUTION


# %% [markdown]
# ## 11.4
# *derive and check · 25 minutes*
#
# Combine the corrector of section 2 with the noise of equation (4). A step from $t$ to $s$ has been made, with
# `noise`. The denoiser said `x0_t` at its beginning, and now it has said `x0_s` at its end. Take the step
# again, with the straight line (in $\lambda$) through both estimates, and with the same noise.
#
# **Expected.** An array of `x_t`'s shape.
#
# <details><summary>Hint</summary>
# The line is x0_t + (u/h)·(x0_s − x0_t). Its integral in (4) needs m_0 and m_1 of exercise 11.1.
# </details>


# %% exercise="11.4" role="answer"
def corrected(x_t, x0_t, x0_s, noise, at_t, at_s, eta):
    """x_t, x0_t, x0_s and noise [...], (alpha, sigma) at t and at s, the number eta -> x_s, [...]."""
    ### BEGIN SOLUTION return the corrected state, an array of x_t's shape
    alpha_t, sigma_t = at_t
    alpha_s, sigma_s = at_s
    h = np.log(alpha_s * sigma_t / (sigma_s * alpha_t))
    c = 1 + eta**2
    m0 = -np.expm1(-c * h)
    m1 = h - m0 / c
    mean = m0 * x0_t + m1 / h * (x0_s - x0_t)
    kept = sigma_s / sigma_t * np.exp(-(eta**2) * h)
    fresh = sigma_s * np.sqrt(-np.expm1(-2 * eta**2 * h))
    return kept * x_t + alpha_s * mean + fresh * noise
    ### END SOLUTION


# %% [markdown]
# ## 11.5
# *debug this · 20 minutes*
#
# SDE-DPM-Solver++(2M): equation (4) at $\eta = 1$, where $c = 2$. The estimate is extrapolated to the middle
# of the step, as in chapter 06's 2M. `denoise(x, alpha, sigma)` is the exact denoiser of Gaussian data. Run
# the cell: the spread is wrong.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_sample(denoise, x, noises, alpha, sigma):
    before = h_before = None
    for n, noise in enumerate(noises):
        x0 = ahead = denoise(x, alpha[n], sigma[n])
        if sigma[n + 1] == 0:
            return x0
        h = np.log(alpha[n + 1] / sigma[n + 1]) - np.log(alpha[n] / sigma[n])
        if n > 0:
            ahead = x0 + h / (2 * h_before) * (x0 - before)
        before, h_before = ahead, h
        x = sigma[n + 1] / sigma[n] * np.exp(-h) * x + alpha[n + 1] * (1 - np.exp(-2 * h)) * ahead
        x = x + sigma[n + 1] * np.sqrt(1 - np.exp(-h)) * noise
    return x


# %%
exact = GaussianDenoiser(mean=3.0, std=0.5)
angle = np.linspace(1.55, 0.1, 31)
drawn = jax.random.normal(jax.random.key(0), (31, 2000))
got = broken_sample(exact, drawn[30], drawn[:30], np.cos(angle), np.sin(angle))
wide = np.hypot(np.cos(0.1) * 0.5, np.sin(0.1))
print(f"std of the samples {got.std():.3f}, of the data with their noise {wide:.3f}")
assert got.std() < 0.9 * wide  # 2000 samples: the standard error is 1.6 %

# %% [markdown]
# There are **two** bugs. One can be seen in a single step, and one cannot. Write the sampler as it should be.
#
# **Expected.** The samples, an array of `x`'s shape.
#
# <details><summary>Hint</summary>
# For data that are a single point, what is the variance after one step? And what should a memory remember:
# what was said, or what was made of it?
# </details>


# %% exercise="11.5" role="answer"
def sample_sde(denoise, x, noises, alpha, sigma):
    """x [...] at the first level, noises [N, ...], alpha and sigma [N + 1] -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    lam = np.log(alpha[:-1] / sigma[:-1])
    said = []
    for i, z in enumerate(noises):
        said.append(denoise(x, alpha[i], sigma[i]))
        if not sigma[i + 1]:
            return said[-1]
        h = np.log(alpha[i + 1] / sigma[i + 1]) - lam[i]
        mean = said[i]
        if i:
            mean = mean + h / (2 * (lam[i] - lam[i - 1])) * (said[i] - said[i - 1])
        new = -np.expm1(-2 * h)  # the share of the variance that is fresh
        x = sigma[i + 1] / sigma[i] * np.exp(-h) * x + alpha[i + 1] * new * mean
        x = x + sigma[i + 1] * np.sqrt(new) * z
    return x
    ### END SOLUTION


# %% [markdown]
# ## 11.6
# *implement · 20 minutes*
#
# Picard iteration for DDIM without noise, with a given number of `sweeps`. The first guess is the start `x`
# at every time. A sweep evaluates the denoiser at all *old* states. Then it takes all the steps,
# $x_{i+1} = \frac{\sigma_{i+1}}{\sigma_i}x_i + (\alpha_{i+1} - \alpha_i\frac{\sigma_{i+1}}{\sigma_i})\hat x_0$,
# one after the other, each from the new state before it.
#
# **Expected.** The last state after the last sweep, an array of `x`'s shape. With as many sweeps as steps it
# is DDIM's result.
#
# <details><summary>Hint</summary>
# Keep two lists, the old path and the new one. Only the estimate comes from the old path.
# </details>


# %% exercise="11.6" role="answer"
def picard(denoise, x, alpha, sigma, sweeps):
    """x [...] at the first level, alpha and sigma [N + 1], a whole number -> the last state, [...]."""
    ### BEGIN SOLUTION return the last state, an array of x's shape
    n = len(alpha) - 1
    path = [x] * (n + 1)
    for _ in range(sweeps):
        said = [denoise(path[i], alpha[i], sigma[i]) for i in range(n)]
        path = [x]
        for i in range(n):
            keep = sigma[i + 1] / sigma[i]
            path.append(keep * path[i] + (alpha[i + 1] - alpha[i] * keep) * said[i])
    return path[-1]
    ### END SOLUTION


# %% [markdown]
# ## 11.7
# *stretch · 35 minutes*
#
# A whole solver with predictor and corrector, for any $\eta$, and **one** evaluation per step. In each step:
#
# 1. evaluate at the current (predicted) state;
# 2. correct this state: take the step before once more, from the state where *it* began, with the straight
#    line through the last two estimates and with the noise of that step;
# 3. predict the next state from the corrected one, with the same line continued into the new step, and
#    with this step's noise.
#
# The first step has one estimate, and no line: hold it. A step to $\sigma = 0$ returns what the denoiser said
# at the predicted state.
#
# **Expected.** The samples, an array of `x`'s shape.
#
# <details><summary>Hint</summary>
# Write one inner function that moves along equation (4) with x0 + slope·u, where u is measured from the
# step's beginning: corrector and predictor both call it. The slope is per unit of λ.
# </details>


# %% exercise="11.7" role="answer"
def predict_correct(denoise, x, noises, alpha, sigma, eta):
    """x [...] at the first level, noises [N, ...], alpha and sigma [N + 1], eta -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    c, lam = 1 + eta**2, np.log(alpha / np.maximum(sigma, 1e-30))

    def move(x, i, x0, slope, noise):
        h = lam[i + 1] - lam[i]
        m0 = -np.expm1(-c * h)
        kept = sigma[i + 1] / sigma[i] * np.exp(-(eta**2) * h)
        fresh = sigma[i + 1] * np.sqrt(-np.expm1(-2 * eta**2 * h))
        return kept * x + alpha[i + 1] * (m0 * x0 + (h - m0 / c) * slope) + fresh * noise

    start, old, slope = x, None, 0.0
    for i, noise in enumerate(noises):
        new = denoise(x, alpha[i], sigma[i])
        if sigma[i + 1] == 0:
            return new
        if i > 0:
            slope = (new - old) / (lam[i] - lam[i - 1])
            x = move(start, i - 1, old, slope, noises[i - 1])
        start, old = x, new
        x = move(x, i, new, slope, noise)
    return x
    ### END SOLUTION


# %% [markdown]
# ## 11.8
# *written · 15 minutes*
#
# A colleague replaces 2M by a "third-order solver" in an image generator that runs at $w = 7.5$ with 8
# evaluations. Pictures get worse. "So the library's third-order solver is broken," the report says. It also
# says: "With our new Picard sampler the same pictures need only 5 sweeps instead of 50 steps: ten times
# cheaper."
#
# In about 150 words:
#
# 1. Give two reasons why a *right* third-order solver may be worse here. Which measurement would tell a
#    wrong solver from a right one? *(1 point)*
# 2. What is wrong with "ten times cheaper", and when is it ten times *faster*? *(1 point)*
#
# <details><summary>Hint</summary>
# Sections 1, 3, 7 and 12 for the first, section 9 for the second.
# </details>

# %% [markdown] exercise="11.8" role="written"
# ### BEGIN SOLUTION
# 1. Order is a promise about small steps: over a long one, a parabola may be worse than a line. The warm-up
#    takes two of the 8 steps, three if the start has no signal. And strong guidance multiplies the changes of
#    the estimate, which the parabola extrapolates. The test: the error of one short step on an oracle, after
#    exact states, above float32's floor. It falls like $h^4$ if the code is right, and like $h^3$ with the
#    published half coefficient.
# 2. A sweep evaluates all 50 states: 5 sweeps are 250 evaluations, five times the work of 50 steps. It is
#    ten times *faster* only if the device evaluates 50 states in the time of one, and if 5 sweeps are enough
#    for the same picture.
#
# *One point for each part. The first needs two of: long steps, warm-up or start, guidance; and an order
# measured on an oracle. The second needs evaluations against sweeps, and the condition on the device.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 11. You have derived the integrals of a noisy step and of $\varepsilon$, decided over
# steps, corrected a state with the noise that it had, mended a sampler, sampled all times at once, and put a
# whole solver together. Chapter 12 asks what the network should see and say.
