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
# # 18 · Few steps: the flow map: exercises
#
# They belong to [chapter 18](../notebooks/18_flow_map.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# States are $x_t = \alpha_t\,x_0 + \sigma_t\,\varepsilon$, and a jump goes from $t$ to $s \le t$, from more noise to
# less. Tables of $\alpha$ and $\sigma$ run from noise to data. Where nothing else is said, $\alpha^2 + \sigma^2$ need
# not be 1.
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
# ## 18.1
# *warm-up · 15 minutes*
#
# For data that are one Gaussian number, the flow map keeps the number of standard deviations between the state
# and the mean of its level. Now the data are $N(\mu, \Sigma)$ in $D$ dimensions, and $\Sigma$ is not diagonal.
# Find the flow map: from states `x` at $(\alpha_t, \sigma_t)$ to the states of the same paths at
# $(\alpha_s, \sigma_s)$.
#
# **Expected.** An array `[B, D]`. With equal levels it is `x`, and two jumps in a row are one. These two
# properties do not suffice: one wrong matrix has them too, and it even maps noise to the right distribution.
#
# <details><summary>Hint</summary>
# Along the eigenvectors of Σ, the coordinates are independent at every level, and the flow moves each of
# them alone. np.linalg.eigh(cov) returns the eigenvalues, and the eigenvectors as columns.
# </details>


# %% exercise="18.1" role="answer"
def flow_map(x, mean, cov, at_t, at_s):
    """x [B, D], mean [D], cov [D, D], (alpha, sigma) at t and at s -> states at s, [B, D]."""
    ### BEGIN SOLUTION return the states at s, an array [B, D]
    alpha_t, sigma_t = at_t
    alpha_s, sigma_s = at_s
    values, vectors = np.linalg.eigh(cov)
    along = (x - alpha_t * mean) @ vectors
    along = along * np.sqrt((alpha_s**2 * values + sigma_s**2) / (alpha_t**2 * values + sigma_t**2))
    return alpha_s * mean + along @ vectors.T
    ### END SOLUTION


# %% [markdown]
# ## 18.2
# *derive and check · 20 minutes*
#
# A network $F$ learns the jump from $t$ to $s$ from pairs: $x_t$ and $x_s$ with the same $x_0$ and the same
# $\varepsilon$, where $E[x_0^2] = d^2$ (`rms` is $d$). As in EDM, the estimate is
# $c_\text{skip}\,x_t + c_\text{out}\,F$. Choose $c_\text{skip}$ so that what is left,
# $x_s - c_\text{skip}\,x_t$, has the least mean square. Choose $c_\text{out} \ge 0$ so that what $F$ must learn
# has the mean square 1.
#
# TrigFlow measures time as an angle, whose tangent is $\sigma/(d\,\alpha)$: noise over signal, for data of the
# size $d$. Find by how much this angle falls in the jump, too.
#
# **Expected.** An array of three numbers: $c_\text{skip}$, $c_\text{out}$, the angle. At $s = t$ they are 1, 0
# and 0, and not only nearly: the boundary condition must hold whatever the network says.
#
# <details><summary>Hint</summary>
# Least squares: E[x_t·(x_s − c_skip·x_t)] = 0. Simplify what is left until it is one square, with nothing
# subtracted that could become negative by rounding. Then divide x_t and x_s by their root mean squares, and
# look at the three numbers again: this is why TrigFlow has sines and cosines.
# </details>


# %% exercise="18.2" role="answer"
def jump_coefficients(rms, at_t, at_s):
    """The number rms, (alpha, sigma) at t and at s -> c_skip, c_out and the angle, [3]."""
    ### BEGIN SOLUTION return three numbers in an array
    alpha_t, sigma_t = at_t
    alpha_s, sigma_s = at_s
    square = alpha_t**2 * rms**2 + sigma_t**2
    skip = (alpha_t * alpha_s * rms**2 + sigma_t * sigma_s) / square
    # x_s − skip·x_t = det/square·(sigma_t·x0 − alpha_t·rms²·eps): its mean square is below.
    det = alpha_s * sigma_t - alpha_t * sigma_s
    out = det * rms / np.sqrt(square)
    return np.array([skip, out, np.arctan2(rms * det, skip * square)])
    ### END SOLUTION


# %% [markdown]
# ## 18.3
# *implement · 20 minutes*
#
# Progressive distillation replaces two steps of the teacher by one of the student. Do it for any number of
# steps. The teacher, `denoise(x, alpha, sigma)`, takes all the DDIM steps of the tables from the state `x` at
# the first level to the last one. The student takes one DDIM step from the first level to the last, and it
# predicts $v = \alpha\,\varepsilon - \sigma\,x_0$. What must it predict to land at the same state?
#
# **Expected.** An array of `x`'s shape. For one step it is the teacher's own $v$.
#
# <details><summary>Hint</summary>
# The student's x0 is neither of the teacher's estimates. A DDIM step is linear in x0: solve it for the x0
# with which it lands where the teacher has landed. Then find the ε that goes with this x0, at the first level.
# </details>


# %% exercise="18.3" role="answer"
def student_target(denoise, x, alpha, sigma):
    """x [...] at the first level, alpha and sigma [K + 1] -> the v that the student learns, [...]."""
    ### BEGIN SOLUTION return the student's v, an array of x's shape
    state = x
    for i in range(len(alpha) - 1):
        x0 = denoise(state, alpha[i], sigma[i])
        keep = sigma[i + 1] / sigma[i]
        state = keep * state + (alpha[i + 1] - alpha[i] * keep) * x0
    keep = sigma[-1] / sigma[0]
    x0 = (state - keep * x) / (alpha[-1] - alpha[0] * keep)
    return alpha[0] * (x - alpha[0] * x0) / sigma[0] - sigma[0] * x0
    ### END SOLUTION


# %% [markdown]
# ## 18.4
# *derive and check · 25 minutes*
#
# Data are numbers $N(\mu, d^2)$, and `std` is $d$. A consistency model was trained without a teacher, on the
# levels $0, \dots, N$ of the tables, and its mean square loss is at its minimum at every level. So the jump
# $f_n(x)$ to the data is the mean of $f_{n+1}(x_{n+1})$ over all pairs with $x_n = x$; both states of a pair have
# the same $x_0$ and $\varepsilon$. At the data's own level ($\alpha_N = 1$, $\sigma_N = 0$), $f_N(x) = x$.
#
# Draw states from their true distribution at level 0 and jump. Take the results, noise them anew to the level
# `again`, and jump once more. What is the standard deviation of the final results? (`again` = $N$ adds no
# noise and jumps nowhere: that is one evaluation.)
#
# **Expected.** A number. It is below $d$, and tends to $d$ as the grid gets finer.
#
# <details><summary>Hint</summary>
# Each f_n is a straight line. The slope of E[x' | x] is the covariance of x' and x over the variance of x;
# slopes of lines inside lines multiply. The spread after a jump is the slope times the spread before it.
# </details>


# %% exercise="18.4" role="answer"
def spread(std, alpha, sigma, again):
    """The number std, alpha and sigma [N + 1], again in 0 … N -> the standard deviation, a number."""
    ### BEGIN SOLUTION return the standard deviation, a number
    N = len(alpha) - 1
    slope = np.ones(N + 1)  # of the jump from each level to the data
    for n in reversed(range(N)):
        shared = alpha[n] * alpha[n + 1] * std**2 + sigma[n] * sigma[n + 1]
        slope[n] = slope[n + 1] * shared / (alpha[n] ** 2 * std**2 + sigma[n] ** 2)
    first = slope[0] * np.hypot(alpha[0] * std, sigma[0])
    return slope[again] * np.hypot(alpha[again] * first, sigma[again])
    ### END SOLUTION


# %% [markdown]
# Consistency *distillation* with the exact denoiser would have given the same number here. Its neighbour, one DDIM
# step from $x$, is the mean of the neighbours in all pairs, and a straight line maps a mean to the mean of the
# results. Where $f$ is no straight line the two differ, and more so on a coarse grid.
#
# ## 18.5
# *debug this · 20 minutes*
#
# Consistency sampling with a MeanFlow model, on a rectified flow ($\alpha = 1 - t$, $\sigma = t$). Models are
# often trained down to a small last time only. Here it is `times[-1]`, and it may be 0: every jump goes there,
# and the samples are states of that time. `u(x, t, s)` is the exact mean velocity from $t$ to $s$ for Gaussian
# data. Run the cells: all is well if the last time is 0, and the spread is wrong if it is not.

# %%
from diffusion_course.grading.inputs import GaussianMeanVelocity


def broken_sample(u, x, noises, times):
    end = times[-1]
    for i, t in enumerate(times[:-1]):
        if i > 0:
            x = (1 - t) * x + t * noises[i - 1]
        x = x - t * u(x, t, end)
    return x


# %%
exact, share = GaussianMeanVelocity(mean=3.0, std=0.5), {}
drawn = jax.random.normal(jax.random.key(0), (3, 4000))
for end in (0.0, 0.3):
    got = broken_sample(exact, drawn[0], drawn[1:], np.array([1.0, 0.8, 0.5, end]))
    share[end] = float(got.std()) / np.hypot((1 - end) * 0.5, end)
    print(f"last time {end}: the std is {share[end]:.2f} of what it should be")
# 4000 samples: the standard error is 1.1 %.
assert abs(share[0.0] - 1) < 0.04 and abs(share[0.3] - 1) > 0.1

# %% [markdown]
# There are **two** bugs. One can be seen with one evaluation, and the other needs several. Write the sampler as
# it should be.
#
# **Expected.** The samples at the last time, an array of `x`'s shape.
#
# <details><summary>Hint</summary>
# Where does a jump of this length lead? And when the result is noised anew: how much signal and how much
# noise does it have already?
# </details>


# %% exercise="18.5" role="answer"
def sample_consistency(u, x, noises, times):
    """x [...] at the first time, noises [N - 1, ...], times [N + 1] -> samples, [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    last = times[-1]
    x = x - (times[0] - last) * u(x, times[0], last)
    for t, z in zip(times[1:-1], noises, strict=True):
        keep = (1 - t) / (1 - last)
        x = keep * x + np.sqrt(t**2 - (keep * last) ** 2) * z
        x = x - (t - last) * u(x, t, last)
    return x
    ### END SOLUTION


# %% [markdown]
# ## 18.6
# *implement · 25 minutes*
#
# Distribution matching for a tiny generator: $x = m + c\,z$, coordinate by coordinate, with standard normal $z$.
# It makes $N(m, c^2)$, so you can write down the denoiser `fake` of its distribution. `denoise(x, alpha, sigma)`
# is that of the data, `real`. In a batch, each example has its own level:
#
# - both estimates are made at $x_t = \alpha\,x + \sigma\,\varepsilon$;
# - the pull on an example is $\text{fake} - \text{real}$, divided by its size if `weight` is `"size"`: the mean
#   of $|x - \text{real}|$ over its coordinates;
# - the loss is the mean over the examples of $\sum_i \text{pull}_i\,x_i$. Its gradient flows through this $x$
#   alone, and the pull is held.
#
# If `weight` is `"KL"`, multiply $\text{fake} - \text{real}$ by a factor of $\alpha$ and $\sigma$ instead, so
# that the result is, on average over $z$ and $\varepsilon$, the gradient of $KL(q_\text{fake}\,\|\,q_\text{real})$
# between the noised distributions.
#
# **Expected.** A tuple of two arrays `[D]`: the gradients by `m` and by `c`. They are 0 in every batch if the
# generator makes the data's own distribution.
#
# <details><summary>Hint</summary>
# dx/dm = 1 and dx/dc = z. KL's gradient is the mean of the difference of the two scores at x_t, times how x_t
# moves with m or c. A score is (alpha·D − x_t)/sigma².
# </details>


# %% exercise="18.6" role="answer"
def generator_gradient(denoise, m, c, z, eps, alpha, sigma, weight):
    """m, c [D], z, eps [B, D], alpha, sigma [B], weight "size" or "KL" -> (by m, by c), each [D]."""
    ### BEGIN SOLUTION return a tuple of two arrays [D]
    alpha, sigma = alpha[:, None], sigma[:, None]
    x = m + c * z
    x_t = alpha * x + sigma * eps
    real = denoise(x_t, alpha, sigma)
    fake = (sigma**2 * m + alpha * c**2 * x_t) / (sigma**2 + alpha**2 * c**2)
    if weight == "size":
        factor = 1 / jnp.mean(jnp.abs(x - real), axis=1, keepdims=True)
    else:
        factor = alpha**2 / sigma**2
    pull = factor * (fake - real)
    return jnp.mean(pull, axis=0), jnp.mean(pull * z, axis=0)
    ### END SOLUTION


# %% [markdown]
# ## 18.7
# *stretch · 35 minutes*
#
# The mean velocity of a rectified flow, $u(x_t, t, s) = \frac{1}{t - s}\int_s^t v(x_\tau, \tau)\,d\tau$ along the
# path through $x_t$, can be learnt from either end. MeanFlow multiplies by $t - s$ and differentiates with
# respect to $t$, along the path. Do this. Then differentiate with respect to $s$ instead, with $t$ and $x_t$
# held: again $u$ can stand alone on the left side.
#
# `u(x, t, s)` is the model that learns. `teacher(x, t, s)` is another mean velocity, and the velocity $v$ of the
# flow is the teacher's. Where an equation needs the state at $s$, take the one where the *model's* jump lands.
# Return the right side, from the end `"t"` or `"s"`. Use `jax.jvp`: in float32, a difference quotient is not
# exact enough.
#
# **Expected.** An array `[B, D]`. If model and teacher agree, it is $u$ itself, from both ends. At $s = t$ it is
# $v$.
#
# <details><summary>Hint</summary>
# A mean velocity over no time is a velocity. jax.jvp(u, (x, t, s), tangents) returns u and its derivative; the
# tangents say how x, t and s move, and have their shapes. The derivative of an integral with respect to its
# lower end is minus the integrand there.
# </details>


# %% exercise="18.7" role="answer"
def mean_target(u, teacher, x, t, s, end):
    """x [B, D], t and s [B], end "t" or "s" -> what u(x, t, s) should be, [B, D]."""
    ### BEGIN SOLUTION return the target, an array [B, D]
    length, one, held = (t - s)[:, None], jnp.ones_like(t), jnp.zeros_like(t)
    if end == "t":
        v = teacher(x, t, t)
        _, change = jax.jvp(u, (x, t, s), (v, one, held))
        return v - length * change
    now, change = jax.jvp(u, (x, t, s), (jnp.zeros_like(x), held, one))
    return teacher(x - length * now, s, s) + length * change
    ### END SOLUTION


# %% [markdown]
# From the end $t$, the velocity at the data's own pairs is enough ($x_1 - x_0$, as in MeanFlow), because it is
# right on average at $x_t$. From the end $s$ it is not: the state where the model lands belongs to no known
# pair, and a teacher must tell the velocity there.

# %% [markdown]
# ## 18.8
# *written · 20 minutes*
#
# Three sentences from a report on few-step models of digits:
#
# - "With one evaluation our teacher has a class accuracy of 100 %, with 50 evaluations 95 %. It needs no
#   distillation."
# - "We distilled a consistency model, from the teacher's weights and with the teacher's learning rate. With its
#   own sampler, the Fréchet distance is 10 with one evaluation, 14 with two and 17 with four. Consistency models
#   are known for one-step quality, so we use one."
# - "MeanFlow's loss came down to about 1 and stays there. It learns nothing, so we stopped it."
#
# Each verdict does not follow. For each, say in about 50 words what probably happened, and which measurement
# would show it. *(1 point each)*
#
# <details><summary>Hint</summary>
# What is the estimate of the exact denoiser at t = 1? Which of the three equations does a *right* model obey,
# so that more evaluations cannot hurt? What does the loss of exercise 18.7 become, if each example's loss is
# divided by its own size?
# </details>

# %% [markdown] exercise="18.8" role="written"
# ### BEGIN SOLUTION
# 1. From pure noise, one step of DDIM returns the mean of the class: a blur, which a classifier
#    recognises easily. Accuracy sees neither blur nor that all samples look alike. Measure the Fréchet distance
#    to data and to the teacher's samples.
# 2. With an exact model more evaluations draw other pictures, not worse ones; with a good one a second jump repairs
#    errors of the
#    first. If they harm, the jumps from middle times are wrong. Probably the learning rate was too large for
#    weights that start at the teacher's: train once more with a much smaller one, and change nothing else.
# 3. Each example's loss is divided by its own size, which is held: its value is near 1 whatever is learnt. Plot
#    the loss before the division, or the quality of samples on the way.
#
# *One point for each. The first needs the blurred mean and a measure that sees it; the second the training's
# fault and a test that changes one thing; the third the division and another curve.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 18. You have found the flow map of a tilted Gaussian, derived the coefficients of a jump
# and seen TrigFlow in them, put many steps into one, counted what a coarse grid costs, mended a sampler,
# computed how two scores teach a generator, and learnt the mean velocity from both of its ends.
