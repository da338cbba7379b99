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
# # 07 · Guidance: exercises
#
# They belong to [chapter 07](../notebooks/07_guidance.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# The course's scale $w$ is that of equation (3): 0 is unconditional, 1 is plainly conditional.
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
# ## 07.1
# *warm-up · 5 minutes*
#
# The same guidance, as three papers would call it. `scale` is the number in the paper's own
# convention:
#
# - `"course"`: $D_u + w\,(D_c - D_u)$;
# - `"ho-salimans"`: the scale $w'$ of equation (4), counted from the conditional network;
# - `"imagen"`: $w$ times the conditional plus $1 - w$ times the unconditional.
#
# **Expected.** An array of `conditional`'s shape, for each `convention`.
#
# <details><summary>Hint</summary>
# In all three the two factors add up to 1. For which scale does each give the conditional estimate
# itself?
# </details>


# %% exercise="07.1" role="answer"
def guided(conditional, unconditional, scale, convention):
    """conditional and unconditional [...], the number scale, convention -> guided, [...]."""
    ### BEGIN SOLUTION return the guided estimate, an array of conditional's shape
    w = {"course": scale, "ho-salimans": 1 + scale, "imagen": scale}[convention]
    return unconditional + w * (conditional - unconditional)
    ### END SOLUTION


# %% [markdown]
# ## 07.2
# *implement · 5 minutes*
#
# The line in training that makes guidance possible. `u` holds one random number in $[0, 1)$ per
# example. An example whose number is below `rate` gets the label `null`; the others keep theirs. So at
# rate 0 no label is dropped.
#
# **Expected.** An array of whole numbers `[B]`.
#
# <details><summary>Hint</summary>
# One `jnp.where`. Each example decides for itself.
# </details>


# %% exercise="07.2" role="answer"
def drop_labels(labels, u, rate, null):
    """labels [B], u [B], the number rate, the whole number null -> labels [B]."""
    ### BEGIN SOLUTION return the labels, whole numbers [B]
    return jnp.where(u < rate, null, labels)
    ### END SOLUTION


# %% [markdown]
# ## 07.3
# *implement · 10 minutes*
#
# Apply classifier guidance of strength `scale` to a batch of images whose estimates `x0` are given, together
# with `gradient`, that of $\log p(y \mid x_t)$. Each image has a noise level of its own. A sampler wants
# both: the guided $\hat x_0$ and the guided $\hat\varepsilon$. The two must say the same about $x_t$. (A
# negative strength pushes away from the class.)
#
# **Expected.** A tuple of two arrays of `x0`'s shape: $\hat x_0$, then $\hat\varepsilon$.
#
# <details><summary>Hint</summary>
# Equation (2) for x0. Then ε is what is left of x_t, divided by σ. Levels [B] need three more axes.
# </details>


# %% exercise="07.3" role="answer"
def guide(x0, x_t, gradient, alpha, sigma, scale):
    """x0, x_t, gradient [B, H, W, C], alpha and sigma [B], a number -> guided x0 and eps."""
    ### BEGIN SOLUTION return the guided x0 and the guided eps, two arrays of x0's shape
    alpha, sigma = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
    pushed = x0 + scale * sigma**2 / alpha * gradient
    return pushed, (x_t - alpha * pushed) / sigma
    ### END SOLUTION


# %% [markdown]
# ## 07.4
# *implement · 10 minutes*
#
# Prepare the single call of the network that gives both estimates. Its first half is the
# conditional one, its second half the unconditional one, and example $i$ of one belongs to example $i$
# of the other. The time is one number for all, or one per example.
#
# **Expected.** A tuple of three: states $[2B, \dots]$, times $[2B]$ and labels $[2B]$.
#
# <details><summary>Hint</summary>
# Concatenate along the first axis. `jnp.broadcast_to` turns a number into [B] and leaves [B] as it is.
# </details>


# %% exercise="07.4" role="answer"
def pack(x, t, labels, null):
    """x [B, ...], t a number or [B], labels [B], the whole number null -> three of length 2B."""
    ### BEGIN SOLUTION return states, times and labels, each twice as long as the batch
    t = jnp.broadcast_to(t, len(x))
    nobody = jnp.full_like(labels, null)
    return jnp.concatenate([x, x]), jnp.concatenate([t, t]), jnp.concatenate([labels, nobody])
    ### END SOLUTION


# %% [markdown]
# ## 07.5
# *derive and check · 20 minutes*
#
# Strong guidance makes the values of an estimate too wide. Section 8 rescales $\hat x_0$. Lin et al. do it
# to the *network's output*. Write their version, for a network that predicts $v$. Given are the two estimates of
# $x_0$, the state $x_t$ and $\alpha$; $\sigma = \sqrt{1 - \alpha^2}$, and $\hat x_0 = \alpha x_t - \sigma v$.
#
# Guide $v$ with the course's $w$. Then multiply the guided $v$ of each example, its mean included, by a factor.
# At `share` 0 the factor is 1. At `share` 1 it gives the guided $v$ the standard deviation of the conditional
# $v$. Between the two, the factor changes linearly with `share`. Standard deviations are taken over all values
# of one example.
#
# **Expected.** The estimate of $x_0$ that belongs to the rescaled $v$, an array of `x_t`'s shape.
#
# <details><summary>Hint</summary>
# Which v belongs to each of the two estimates? Go to v, do everything there, and come back at the end.
# `axis=tuple(range(1, x.ndim))` means all axes but the first, and `keepdims=True` keeps shapes that multiply.
# </details>


# %% exercise="07.5" role="answer"
def rescaled(conditional, unconditional, x_t, alpha, w, share):
    """conditional, unconditional and x_t [B, ...], numbers alpha, w and share -> x0, [B, ...]."""
    ### BEGIN SOLUTION return the estimate of x0 from the rescaled v, an array of x_t's shape
    # αx_t − x0 is σv: its scale σ leaves the ratio as it is, and the way back needs σv as well.
    of_class, of_all = alpha * x_t - conditional, alpha * x_t - unconditional
    guided = of_all + w * (of_class - of_all)
    axes = tuple(range(1, x_t.ndim))
    wanted = jnp.std(of_class, axis=axes, keepdims=True)
    found = jnp.std(guided, axis=axes, keepdims=True)
    return alpha * x_t - (share * wanted / found + 1 - share) * guided
    ### END SOLUTION


# %% [markdown]
# ## 07.6
# *debug this · 20 minutes*
#
# DDIM with guidance, between two exact denoisers: that of a class, and that of everybody. `alphas` goes
# from noise to data, so it rises to 1, and $\sigma = \sqrt{1 - \alpha^2}$. At $w = 1$ the samples should be the
# class. And a guided estimate and its noise should add up to the state they were made from. Run the
# cell: they aren't, and they don't.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_sample(conditional, unconditional, x, alphas, w):
    gaps = []
    for n, a in enumerate(alphas[:-1]):
        b = alphas[n + 1]
        s, r = np.sqrt(1 - a**2), np.sqrt(1 - b**2)
        c, u = conditional(x, a, s), unconditional(x, a, s)
        x0 = (1 + w) * c - w * u
        eps = (x - a * c) / s
        gaps.append(float(jnp.abs(a * x0 + s * eps - x).max()))
        x = b * x0 + r * eps
    return x, max(gaps)


someone, everybody = GaussianDenoiser(mean=2.0, std=0.5), GaussianDenoiser(mean=0.0, std=1.5)
alphas = np.sin(np.linspace(0.05, np.pi / 2, 30))
noise = jax.random.normal(jax.random.key(0), (2000,))
drawn, gap = broken_sample(someone, everybody, noise, alphas, 1.0)
print(f"mean of the class {someone.mean:.2f}, of the samples at w = 1 {drawn.mean():.2f}")
print(f"estimate and noise miss the state by up to {gap:.2f}")
assert abs(drawn.mean() - someone.mean) > 0.2 and gap > 0.2  # 2,000 samples: the error is 0.01

# %% [markdown]
# There are **two** bugs, and neither raises an error. Write the sampler as it should be.
#
# **Expected.** The samples, an array of `x`'s shape. At `w = 0` they are those of `unconditional` alone,
# at `w = 1` those of `conditional` alone.
#
# <details><summary>Hint</summary>
# Put w = 0 into the line that mixes. Then ask of the line below it: the noise of *which* estimate?
# </details>


# %% exercise="07.6" role="answer"
def sample(conditional, unconditional, x, alphas, w):
    """Denoisers D(x, alpha, sigma), x [...], alphas [N + 1] up to 1, the number w -> [...]."""
    ### BEGIN SOLUTION return the samples, an array of x's shape
    for n in range(len(alphas) - 1):
        alpha_t, alpha_s = alphas[n], alphas[n + 1]
        sigma_t, sigma_s = np.sqrt(1 - alpha_t**2), np.sqrt(1 - alpha_s**2)
        of_class = conditional(x, alpha_t, sigma_t)
        of_all = unconditional(x, alpha_t, sigma_t)
        x0 = of_all + w * (of_class - of_all)
        eps = (x - alpha_t * x0) / sigma_t
        x = alpha_s * x0 + sigma_s * eps
    return x
    ### END SOLUTION


# %% [markdown]
# ## 07.7
# *stretch · 40 minutes*
#
# Data come from classes, each a Gaussian cloud: class $k$ has the mean `means[k]`, the standard deviation
# `stds[k]` in every direction, and the share `weights[k]`. At the levels $\alpha$ and $\sigma$, what is the gradient of
# $\log p(y \mid x_t)$ with respect to $x_t$? Each point has a class `y` of its own. Write it down, or let
# JAX differentiate; but keep to logarithms, because far from a cloud its density is 0 in
# float32.
#
# **Expected.** An array of `x`'s shape: the gradient of each point, whatever else is in the batch. The number
# of classes $K$ and that of dimensions $D$ may be any.
#
# <details><summary>Hint</summary>
# Bayes' rule: log p(y|x) is log p(y) + log p(x|y), minus the logsumexp of the same over all classes. Noise
# makes class k a cloud around α·means[k], with a variance that has two parts. Stay with logarithms to the
# end (`jax.nn.logsumexp`): a quotient of densities is 0/0 far out, which is nan. To differentiate a
# whole batch at once, sum over it.
# </details>


# %% exercise="07.7" role="answer"
def class_gradient(x, y, alpha, sigma, means, stds, weights):
    """x [B, D], y [B], numbers alpha, sigma, means [K, D], stds, weights [K] -> [B, D]."""
    ### BEGIN SOLUTION return the gradients, an array of x's shape
    variance = (alpha * stds) ** 2 + sigma**2  # of class k in x_t
    gap = alpha * means - x[:, None]  # [B, K, D]
    squared = jnp.sum(gap**2, axis=-1)
    logits = jnp.log(weights) - x.shape[1] / 2 * jnp.log(variance) - squared / (2 * variance)
    share = jax.nn.softmax(logits, axis=-1)  # p(class | x_t), which never divides 0 by 0
    scores = gap / variance[:, None]
    return scores[jnp.arange(len(x)), y] - jnp.sum(share[:, :, None] * scores, axis=1)
    ### END SOLUTION


# %% [markdown]
# ## 07.8
# *written · 15 minutes*
#
# A colleague reports: "Our new model reaches 99.9 % class accuracy, the old one only 96 %. Samples look crisp." You
# find that the new one was sampled at $w = 6$ and the old one at $w = 1$. The training code of the new
# one has no label dropout.
#
# In about 150 words:
#
# 1. Why do these numbers not show that the new model is better? What would you measure instead?
#    *(1 point)*
# 2. What do you suspect of the new model, and which samples would you look at to find out?
#    *(1 point)*
#
# <details><summary>Hint</summary>
# Sections 5 and 7. What does accuracy do as w grows, for any model?
# </details>

# %% [markdown] exercise="07.8" role="written"
# ### BEGIN SOLUTION
# 1. Accuracy rises with w for nearly every model, while variety is lost; one point at two different
#    scales compares scales, not models. Measure both along the same values of w (same convention, seeds,
#    sampler, steps, sample count): accuracy together with a measure that sees lost variety, such as the
#    Fréchet distance or the spread within a class. Compare the curves, or their elbows.
# 2. Without dropout the null class was never trained: the "unconditional" half of guidance is a random
#    embedding. At w = 1 this does not show; at every other scale guidance pushes in a meaningless direction,
#    whatever a classifier says of the samples. Look at w = 0: samples should look like the whole data set and will not.
#    Also good: the null row of the embedding has not moved.
#
# *One point for each part. The first needs "accuracy alone grows with w" and "the same w, or a curve, with
# a measure of diversity". The second needs the untrained null class and samples at w = 0 (or the embedding).*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 07. You can translate guidance between papers, guide with a classifier and without
# one, train for it, and find what is wrong when it looks right. Chapter 08 uses the same functions from
# denoiser to denoiser to edit pictures.
