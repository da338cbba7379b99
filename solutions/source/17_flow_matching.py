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
# # 17 · Flow matching and rectified flow: exercises
#
# They belong to [chapter 17](../notebooks/17_flow_matching.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# A path is $x_t = \alpha\,x_0 + \sigma\,x_1$. Data $x_0$ are at $t = 0$. At $t = 1$ is $x_1$, which is noise
# $\varepsilon$ or a point of any other source. A dot is a derivative by time. A rectified flow has
# $\alpha = 1 - t$ and $\sigma = t$. All arrays here are NumPy's, in float64, but for the
# labels of 17.4: they are whole numbers in a JAX array.
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
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from diffusion_course.grading import check

# %% [markdown]
# ## 17.1
# *warm-up · 15 minutes*
#
# A diffusion model is a flow already, but of another process. You have a network that says chapter 02's
# $v = a\,\varepsilon - s\,x_0$. Its process has the levels $a$ and $s$ with $a^2 + s^2 = 1$. You want to use it in
# *your* process, whose levels $\alpha$ and $\sigma$ are different: those of a rectified flow, for example. Your
# state is `x`. Find
#
# 1. the level $s$ that you must tell the network;
# 2. the state $z$ that you must show to it;
# 3. from its answer `v`, the velocity $\dot\alpha\,\hat x_0 + \dot\sigma\,\hat\varepsilon$ of your process.
#
# The levels and their slopes are different for each example of the batch. In some examples $\alpha$ is 0, in others
# $\sigma$ is 0, and the velocity is finite in both.
#
# **Expected.** A tuple of three arrays: $s$ `[B]`, and $z$ and the velocity, both of `x`'s shape. Where
# $\alpha^2 + \sigma^2 = 1$, $z$ is `x` itself.
#
# <details><summary>Hint</summary>
# Two states with the same ratio of noise to signal differ by one factor only. Then solve z = a·x0 + s·ε and
# v = a·ε − s·x0 for x0 and ε: it is a rotation.
# </details>


# %% exercise="17.1" role="answer"
def ask_vp(x, v, alpha, sigma, d_alpha, d_sigma):
    """x and v [B, ...], levels and their slopes [B] -> s [B], z [B, ...], velocity [B, ...]."""
    ### BEGIN SOLUTION return a tuple: s [B], z and the velocity, of x's shape
    column = (-1, *[1] * (x.ndim - 1))
    size = np.hypot(alpha, sigma)
    a, s = alpha / size, sigma / size
    z = x / size.reshape(column)
    along = (d_alpha * a + d_sigma * s).reshape(column)
    across = (d_sigma * a - d_alpha * s).reshape(column)
    return s, z, along * z + across * v
    ### END SOLUTION


# %% [markdown]
# ## 17.2
# *derive and check · 25 minutes*
#
# In the chapter a network carries any source to any target, and the exact velocity needs Gaussian noise at one
# end. For two mixtures it can be written down as well. In one dimension, component $k$ of the data is
# $N(m_k, s_k^2)$, and component $j$ of the source is $N(n_j, q_j^2)$. A coupling chooses who is paired with whom:
# with probability $P_{kj}$ the pair $(x_0, x_1)$ comes from the components $k$ and $j$. Within these two, $x_0$ and
# $x_1$ are independent. Find the marginal velocity
#
# $$v(x) = \mathbb E\,[\,\dot\alpha\,x_0 + \dot\sigma\,x_1 \mid \alpha\,x_0 + \sigma\,x_1 = x\,].$$
#
# It must be finite where $\alpha = 0$ or $\sigma = 0$, and far from all components. Some $P_{kj}$ are 0: these
# components are never paired.
#
# **Expected.** An array `[N]`. For a single component on each side with $s = q = 0$ it would be
# $\dot\alpha\,m + \dot\sigma\,n$.
#
# <details><summary>Hint</summary>
# First one pair of components: α·x0 + σ·x1 and α̇·x0 + σ̇·x1 are jointly Gaussian, and the mean of one, given
# the other, needs their covariance and one variance. Then weigh the pairs by their share at x, Bayes' rule.
# softmax works over several axes, and takes logarithms.
# </details>


# %% exercise="17.2" role="answer"
def pair_velocity(x, pairs, data, source, level, slope):
    """x [N], P [K, J], means and stds data [2, K] and source [2, J], (α, σ), (α̇, σ̇) -> v, [N]."""
    ### BEGIN SOLUTION return the velocities, an array [N]
    (m, s), (n, q) = data[:, :, None], source  # [K, 1] and [J]
    (alpha, sigma), (d_alpha, d_sigma) = level, slope
    variance = (alpha * s) ** 2 + (sigma * q) ** 2
    away = x[:, None, None] - alpha * m - sigma * n
    with np.errstate(divide="ignore"):  # log 0, where a pair never occurs
        log_share = np.log(pairs) - (away**2 / variance + np.log(variance)) / 2
    share = softmax(log_share, axis=(1, 2))
    x0 = m + alpha * s**2 / variance * away
    x1 = n + sigma * q**2 / variance * away
    return np.sum(share * (d_alpha * x0 + d_sigma * x1), axis=(1, 2))
    ### END SOLUTION


# %% [markdown]
# ## 17.3
# *derive and check · 20 minutes*
#
# The library's `straightness` sees the states at the grid's times, and no bend between them. With a single step it
# is 0 for every flow. But a sampler also knows the *velocities* $dx/dt$ at these times. In each step there is one
# cubic path in $t$ that has the given states **and** the given velocities at both ends. Compute exactly, for the
# whole path that is made of these pieces,
#
# $$\mathbb E\int\Big\|\frac{dx}{dt} - \frac{x_\text{end} - x_\text{start}}{t_\text{end} - t_\text{start}}\Big\|^2
# dt,$$
#
# from the last time to the first one. The mean is over the paths. The times fall in steps of different lengths, and
# they need not reach from 1 to 0.
#
# **Expected.** A number. It is never smaller than the straightness of the states alone.
#
# <details><summary>Hint</summary>
# Within a step dx/dt is a parabola. You know it at both ends, and you know its mean. With u from 0 to 1 write
# it as mean + b·(2u − 1) + c·(6u² − 6u + 1). These three functions are orthogonal on [0, 1], and their squares
# have the integrals 1, 1/3 and 1/5.
# </details>


# %% exercise="17.3" role="answer"
def bending(path, velocity, times):
    """path and velocity [n + 1, B, D], falling times [n + 1] -> the straightness, a number."""
    ### BEGIN SOLUTION return the straightness, a number
    h = np.diff(times)[:, None, None]  # negative, like the differences of the states
    mean = np.diff(path, axis=0) / h
    whole = (path[-1] - path[0]) / (times[-1] - times[0])
    b = np.diff(velocity, axis=0) / 2
    c = (velocity[:-1] + velocity[1:]) / 2 - mean
    square = (mean - whole) ** 2 + b**2 / 3 + c**2 / 5
    return -np.sum(h * square) / path.shape[1]
    ### END SOLUTION


# %% [markdown]
# ## 17.4
# *implement · 20 minutes*
#
# Coupling within classes keeps the noise of each class as it is. What does that cost? On a line it can be computed
# without a solver. There are $N$ data points `x0`, each with the share $1/N$, and $M$ points of noise `x1`, each
# with the share $1/M$. A coupling moves shares: a point may be cut into pieces that have different partners. Its
# cost is the mean of $(x_0 - x_1)^2$. Compute three costs:
#
# 1. of the independent coupling;
# 2. of the best coupling that keeps the noise of each class: the points of one class have *all* of `x1` as their
#    partners, each point of `x1` with the same share;
# 3. of the best coupling of all points, without labels.
#
# **Expected.** An array of three numbers, which never rise from one to the next.
#
# <details><summary>Hint</summary>
# Cut all points into so many equal pieces that both sets have the same number of them. np.lcm gives this number,
# and np.repeat makes the pieces. On a line, the best partner of the smallest piece is the smallest one.
# </details>


# %% exercise="17.4" role="answer"
def coupling_costs(x0, labels, x1):
    """x0 [N], their labels [N], x1 [M] -> costs: independent, within the classes, optimal, [3]."""
    ### BEGIN SOLUTION return the three costs in an array

    def best(a, b):
        n = np.lcm(len(a), len(b))
        pieces = [np.repeat(np.sort(side), n // len(side)) for side in (a, b)]
        return np.mean((pieces[0] - pieces[1]) ** 2)

    labels = np.asarray(labels)
    within = 0.0
    for label in np.unique(labels):
        members = labels == label
        within = within + np.mean(members) * best(x0[members], x1)
    return np.array([np.mean((x0[:, None] - x1) ** 2), within, best(x0, x1)])
    ### END SOLUTION


# %% [markdown]
# ## 17.5
# *debug this · 20 minutes*
#
# A sampler for rectified flow, taken from a paper whose time runs the other way: $\tau = 1 - t$, with noise at
# $\tau = 0$ and data at $\tau = 1$. So $\alpha = \tau$, $\sigma = 1 - \tau$, and the velocity by $\tau$ is
# $x_0 - \varepsilon$. The grid is shifted for large images: `factor` multiplies $\sigma/\alpha$. Each step is a
# midpoint step: go half the way, evaluate there, and take the whole step with that slope.
#
# It was tested with many steps and without a shift, and all was well. Run the cells. `denoise(x, alpha, sigma)` is
# the exact denoiser of Gaussian data.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_sample(denoise, x, steps, factor):
    grid = np.linspace(0, 1, steps + 1)
    tau = factor * grid / (1 + (factor - 1) * grid)
    for n in range(steps):
        now, then = tau[n], tau[n + 1]
        middle = (now + then) / 2
        slope = (denoise(x, grid[n], 1 - grid[n]) - x) / (1 - now)
        half = x + (middle - now) * slope
        slope = (denoise(half, middle, 1 - middle) - half) / (1 - now)
        x = x + (then - now) * slope
    return x


# %%
exact = GaussianDenoiser(mean=3.0, std=0.5)
drawn = np.random.default_rng(0).normal(size=2000)
found = {}
for steps, factor in ((400, 1.0), (5, 1.0), (5, 3.0)):
    got = broken_sample(exact, drawn, steps, factor)
    found[steps, factor] = got.mean()
    print(f"{steps:3} steps, factor {factor:.0f}: mean {got.mean():.2f}, std {got.std():.2f}")
print("of the data:              mean 3.00, std 0.50")
# 2000 samples: 4 standard errors are 0.045, and 400 steps add less than 0.03. A right sampler has the
# mean of Gaussian data with any number of steps, since the path from 0 to the mean is straight.
assert abs(found[400, 1.0] - 3) < 0.075
assert max(found[5, 1.0], found[5, 3.0]) < 2.5

# %% [markdown]
# There are **three** bugs. Two of them have no effect without a shift, and the effect of the third vanishes with many
# steps. Write the sampler as it should be: a uniform grid that is shifted, and midpoint steps.
#
# **Expected.** The samples, an array of `x`'s shape.
#
# <details><summary>Hint</summary>
# A factor above 1 must raise σ/α at every time between the ends: does it? And each time a slope is computed, ask
# which time its state has. All three numbers in its line belong to that time.
# </details>


# %% exercise="17.5" role="answer"
def sample_flow(denoise, x, steps, factor):
    """x [...] at τ = 0, a whole number of steps, the shift's factor -> the samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    t = np.linspace(1, 0, steps + 1)
    t = factor * t / (1 + (factor - 1) * t)

    def slope(x, t):  # by t: from the data to the noise
        return (x - denoise(x, 1 - t, t)) / t

    for i in range(steps):
        h = t[i + 1] - t[i]
        x = x + h * slope(x + h / 2 * slope(x, t[i]), t[i] + h / 2)
    return x
    ### END SOLUTION


# %% [markdown]
# ## 17.6
# *derive and check · 30 minutes*
#
# Does a rectified flow find the optimal pairs? The data are $N(\mu_0, C)$ and the source is $N(\mu_1, S)$, in $D$
# dimensions. Compute the mean of $\|x_0 - x_1\|^2$ for three couplings:
#
# 1. independent pairs, on which the flow is trained;
# 2. the pairs that the exact flow connects: $x_1$, and the point $x_0$ to which it leads;
# 3. the optimal pairs.
#
# **Expected.** An array of three numbers, which never rise from one to the next. In one dimension the second and
# the third are equal.
#
# <details><summary>Hint</summary>
# Each map is x0 = μ0 + M·(x1 − μ1) with M·S·Mᵀ = C, and only the trace of M·S is wanted. For the flow, change the
# coordinates such that the source is round: the straight paths stay straight, and the velocity's matrix is symmetric,
# with the eigenvectors of the data's covariance at every time. Distances do change, so for the optimal map this
# is not allowed. There M itself is symmetric and positive: multiply M·S·M = C by S^½ from both sides.
# </details>


# %% exercise="17.6" role="answer"
def gaussian_costs(mean0, cov0, mean1, cov1):
    """Means [D] and covariances [D, D] of data and source -> costs: independent, flow, optimal, [3]."""
    ### BEGIN SOLUTION return the three costs in an array
    apart = np.sum((mean0 - mean1) ** 2) + np.trace(cov0) + np.trace(cov1)
    squares, vectors = np.linalg.eig(cov0 @ np.linalg.inv(cov1))  # those of the flow's M, squared
    flow = np.trace(vectors * np.sqrt(squares) @ np.linalg.inv(vectors) @ cov1)
    optimal = np.sum(np.sqrt(np.linalg.eigvals(cov0 @ cov1)))
    return apart - 2 * np.array([0, flow, optimal])
    ### END SOLUTION


# %% [markdown]
# The lines between the flow's pairs never meet at the same time, since the eigenvalues of $M$ are positive. So a
# flow that is trained on these pairs connects the same pairs, on straight lines. It is straight, and no further
# reflow changes it. Yet its pairs are not the optimal ones, unless both clouds have the same axes.

# %% [markdown]
# ## 17.7
# *stretch · 35 minutes*
#
# The exact denoiser of a Schrödinger bridge between two sets of points. Its coupling is the one table of shares
# $\pi_{ij}$ whose rows add up to $1/N$, whose columns add up to $1/M$, and that has the form
#
# $$\pi_{ij} = f_i\,g_j\,e^{-\|x_{0,i} - x_{1,j}\|^2/(2\,\text{scale}^2)}.$$
#
# Between each pair, states are those of the Brownian bridge:
# $x_t \sim N\big((1-t)\,x_{0,i} + t\,x_{1,j},\ \text{scale}^2\,t(1-t)\,I\big)$. Find $\mathbb E[x_0 \mid x_t = x]$.
# Some sets lie so far apart that all the exponentials are 0 in the computer's numbers. Sinkhorn's iteration has
# converged after 200 rounds.
#
# **Expected.** An array `[B, D]`.
#
# <details><summary>Hint</summary>
# Sinkhorn: choose f such that the rows are right, then g such that the columns are, and repeat. Keep
# log f and log g alone: np.logaddexp.reduce adds up along an axis, in logarithms. Then Bayes' rule: the share of
# a pair at x is π times a density, again in logarithms.
# </details>


# %% exercise="17.7" role="answer"
def bridge_guess(x, t, x0, x1, scale):
    """States x [B, D], the time t, points x0 [N, D] and x1 [M, D], scale -> the guesses of x0, [B, D]."""
    ### BEGIN SOLUTION return the guesses, an array [B, D]
    log_kernel = -np.sum((x0[:, None] - x1) ** 2, axis=2) / (2 * scale**2)
    log_g = np.zeros(len(x1))
    for _ in range(200):  # sums of rows and columns up to one factor, which shares don't see
        log_f = -np.logaddexp.reduce(log_kernel + log_g, axis=1)
        log_g = -np.logaddexp.reduce(log_kernel + log_f[:, None], axis=0)
    # π times the bridge's density is f·N(x; x0, scale²·t) times g·N(x1; x, scale²·(1 − t)).
    squares = np.sum((x[:, None] - x0) ** 2, axis=2)
    return softmax(log_f - squares / (2 * scale**2 * t), axis=1) @ x0
    ### END SOLUTION


# %% [markdown]
# Complete the squares in the shares: at a given $x$, each is a function of $i$ times a function of $j$. So $x_0$ and
# $x_1$ are independent, given $x_t$, and the guess needs $f$ alone. A process with this property is a Markov process.
# With any other coupling the same bridges have no such property.

# %% [markdown]
# ## 17.8
# *written · 15 minutes*
#
# A report about a flow model of labelled images: "We replaced the independent noise by minibatch optimal transport
# over each batch of 256, and trained a conditional model. Its paths are straight: in a run with one step, the
# straightness of our samples is 0. So one step is enough, and more are a waste. After one round of reflow the
# straightness at 20 steps is nearly 0 too. This shows that the flow is now the optimal transport map. For
# larger images we trained with a shift of 3, and sampled with the uniform grid as before."
#
# In about 150 words:
#
# 1. Two sentences about straightness do not follow. Which, and what should have been measured? *(1 point)*
# 2. What is wrong with this coupling for a *conditional* model, and how can one see it? And what does the last
#    sentence cost? *(1 point)*
#
# <details><summary>Hint</summary>
# Exercises 17.3, 17.4, 17.5 and 17.6, one sentence each.
# </details>

# %% [markdown] exercise="17.8" role="written"
# ### BEGIN SOLUTION
# 1. With one step, straightness is 0 for every flow: nobody looked between the two states. Measure it on a fine
#    grid, or from velocities, and compare one step with many steps from the same noise. "Straight, so optimal" is
#    false too: where no lines meet, reflow changes nothing, although the pairs may cost more than the optimal
#    ones. Compare the costs.
# 2. Each class gets the noise that lies near it. Given the class, the noise is no longer $N(0, 1)$, but sampling
#    starts there. The mean and the variance of each class's noise show it. Couple within classes instead.
#    Without the shift, the grid spends its steps at low noise, where the model was trained least. If the training
#    told the network the time before the shift, its clock is wrong as well.
#
# *One point for each part. The first needs both sentences and one measurement. The second needs the skewed noise
# of a class, a way to see it, and the mismatch of training and sampling.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 17. You have asked a diffusion network for the velocity of another process, derived the flow
# between any two mixtures, seen bends between the states, priced a coupling that keeps the noise of each class,
# mended a sampler, found a straight flow that is not optimal, and built a Schrödinger bridge. Chapter 18 learns the
# whole map from noise to data, so that a few steps are enough.
