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
# # 08 · Editing: exercises
#
# They belong to [chapter 08](../notebooks/08_editing.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Levels are given as $\bar\alpha$, with $\alpha = \sqrt{\bar\alpha}$ and
# $\sigma = \sqrt{1 - \bar\alpha}$: `abar_t` belongs to the noisier level and `abar_s` to the one
# nearer to the data, so `abar_s > abar_t`. The data themselves have $\bar\alpha = 1$. A `mask`
# is `True` where a pixel is known.
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
# ## 08.1
# *warm-up · 5 minutes*
#
# Equation (1), for a chain of $T$ steps. `abar` is its table of $T + 1$ levels; entry 0 belongs to the
# data and is 1. A `strength` in $[0, 1]$ means the step $n$ nearest to `strength` times $T$. Noise the
# guide to the level of step $n$, with the given standard normal `noise`.
#
# **Expected.** An array of `guide`'s shape. At strength 0 it is the guide itself.
#
# <details><summary>Hint</summary>
# The table has T + 1 entries, so T is its length less 1. Python's round gives the nearest whole number.
# </details>


# %% exercise="08.1" role="answer"
def sdedit_start(guide, noise, strength, abar):
    """guide and noise [...], a number strength, abar [T + 1] -> the noised guide, [...]."""
    ### BEGIN SOLUTION return the state that sampling starts from, an array of guide's shape
    level = abar[round(strength * (len(abar) - 1))]
    return np.sqrt(level) * guide + np.sqrt(1 - level) * noise
    ### END SOLUTION


# %% [markdown]
# ## 08.2
# *implement · 10 minutes*
#
# A step of deterministic DDIM ($\eta = 0$) from $x_t$ to $x_s$ with the denoiser of equation (2). The
# network's guess `x0_hat` is given, and so are the `known` pixels. Both halves of the step, the guess and
# the noise that it leaves, must come from the *same* corrected guess.
#
# **Expected.** An array of `x_t`'s shape. At `abar_s = 1` the known pixels are `known`, exactly.
#
# <details><summary>Hint</summary>
# Correct the guess first. Then everything is a plain DDIM step: which noise leads from the guess to x_t?
# Keep the guess and that noise, with the levels of s.
# </details>


# %% exercise="08.2" role="answer"
def inpainting_step(x0_hat, x_t, known, mask, abar_t, abar_s):
    """x0_hat, x_t, known, mask [...], numbers abar_t < abar_s -> x_s, [...]."""
    ### BEGIN SOLUTION return x at the level s, an array of x_t's shape
    guess = jnp.where(mask, known, x0_hat)
    eps = (x_t - abar_t**0.5 * guess) / (1 - abar_t) ** 0.5
    return abar_s**0.5 * guess + (1 - abar_s) ** 0.5 * eps
    ### END SOLUTION


# %% [markdown]
# ## 08.3
# *derive and check · 15 minutes*
#
# RePaint goes back from $x_s$ to $x_t$, with *more* noise: it draws from $q(x_t \mid x_s)$, equation (3), with the
# fresh standard normal `noise`. Here the noise in the old state is known:
# $x_s = \sqrt{\bar\alpha_s}\,x_0 + \sqrt{1-\bar\alpha_s}\,\varepsilon_s$. Write the new state in the same way,
# $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon_t$. Its noise $\varepsilon_t$ is partly old and
# partly fresh. Derive it. ($x_0$ is not given.)
#
# **Expected.** A tuple of two arrays of `x_s`'s shape, $x_t$ and $\varepsilon_t$. From the data, `abar_s = 1`, the jump
# is the forward process itself, and $\varepsilon_t$ is `noise`.
#
# <details><summary>Hint</summary>
# The signal fixes the factor of x_s. This factor shrinks the old noise as well, and what is then missing
# to the new variance is the variance of the fresh noise. What is x_t without its signal?
# </details>


# %% exercise="08.3" role="answer"
def jump_back(x_s, eps_s, noise, abar_t, abar_s):
    """x_s, eps_s and noise [...], numbers abar_t < abar_s -> a draw of x_t and its noise, both [...]."""
    ### BEGIN SOLUTION return x at the level t and its noise, two arrays of x_s's shape
    kept = abar_t / abar_s  # of the signal's variance
    added = (1 - kept) ** 0.5 * noise  # 1 − ᾱ_t − kept·(1 − ᾱ_s) = 1 − kept
    noise_t = (kept * (1 - abar_s)) ** 0.5 * eps_s + added
    return kept**0.5 * x_s + added, noise_t / (1 - abar_t) ** 0.5
    ### END SOLUTION


# %% [markdown]
# ## 08.4
# *implement · 15 minutes*
#
# Equation (4) holds the mean of every block. Here is one for recolouring: correct a guess `x0_hat` so
# that the mean colour *of a region* is the one that was asked for, each image its own. Add one and the
# same colour to all pixels of the region, and leave the others alone. That is the smallest change that
# does it.
#
# **Expected.** An array of `x0_hat`'s shape. Applied twice, it changes nothing more.
#
# <details><summary>Hint</summary>
# The mean over a region is a sum over it, divided by its number of pixels. Keep the axes of length 1
# (keepdims=True), or the colours will not line up with the images.
# </details>


# %% exercise="08.4" role="answer"
def hold_colour(x0_hat, region, colour):
    """x0_hat [B, H, W, C], region [H, W] bool, colour [B, C] -> the corrected guess [B, H, W, C]."""
    ### BEGIN SOLUTION return the corrected guess, an array of x0_hat's shape
    inside = region[None, :, :, None]
    mean = jnp.sum(jnp.where(inside, x0_hat, 0), axis=(1, 2), keepdims=True) / jnp.sum(region)
    return jnp.where(inside, x0_hat + colour[:, None, None, :] - mean, x0_hat)
    ### END SOLUTION


# %% [markdown]
# ## 08.5
# *debug this · 20 minutes*
#
# SDEdit with a mask, in the style of Meng et al. 2022: the guide is noised and drawn anew
# with DDIM, and after every step the known part is pasted in, noised to the level of the state.
# `denoise(x, alpha, sigma)` is the exact denoiser of Gaussian data. Known pixels should come out as they
# went in, and another guide should give another result, in the free part as well. Run the cell.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_edit(denoise, guide, mask, noises, abar):
    x, states = noises[0], []
    for noise, abar_t, abar_s in zip(noises[1:], abar[:-1], abar[1:], strict=True):
        x0 = denoise(x, np.sqrt(abar_t), np.sqrt(1 - abar_t))
        eps = (x - np.sqrt(abar_t) * x0) / np.sqrt(1 - abar_t)
        x = np.sqrt(abar_s) * x0 + np.sqrt(1 - abar_s) * eps
        copy = np.sqrt(abar_t) * guide + np.sqrt(1 - abar_t) * noise
        x = jnp.where(mask, copy, x)
        states.append(x)
    return jnp.stack(states)


exact = GaussianDenoiser(mean=0.4, std=0.6)
abar = np.append(np.cos(np.linspace(0.9, 0.2, 8)) ** 2, 1.0)  # from the strength to the data
noises = jax.random.normal(jax.random.key(0), (9, 4000))
guide, mask = jnp.linspace(-1.0, 1.0, 4000), jnp.arange(4000) % 2 == 0
result = broken_edit(exact, guide, mask, noises, abar)[-1]
off = jnp.abs(result - guide)[mask].mean()
other = broken_edit(exact, guide + 0.5, mask, noises, abar)[-1]
moved = jnp.abs(other - result)[~mask].mean()
print(f"known pixels are off by {off:.2f}; a brighter guide changes the free ones by {moved:.2f}")
assert off > 0.1 and moved == 0

# %% [markdown]
# There are **two** bugs, and neither raises an error. Write the editor as it should be. `abar` has as
# many entries as there are `noises`; its first is the level of the start and its last is 1.
# `noises[0]` belongs to the start, `noises[1]` to the paste after the first step, and so on: a step from
# `abar[i - 1]` to `abar[i]` is followed by a paste with `noises[i]`. The pictures of the check are `[h, w, C]`
# or `[B, h, w, C]`, and its exact denoiser looks at all pixels of a picture, the pasted ones, too.
#
# **Expected.** All states, an array `[N - 1, ...]`: the one after every step. The last is the edited
# picture, and its known pixels are the guide's, exactly.
#
# <details><summary>Hint</summary>
# Which arguments does the first line use, and which should it? Then write beside each level in the loop
# whether the state has it before the step or after it.
# </details>


# %% exercise="08.5" role="answer"
def edit(denoise, guide, mask, noises, abar):
    """guide, mask [...], noises [N, ...], abar [N] up to 1 -> states after each step, [N - 1, ...]."""
    ### BEGIN SOLUTION return the states after each step, an array of shape [N - 1, ...]
    x, path = np.sqrt(abar[0]) * guide + np.sqrt(1 - abar[0]) * noises[0], []
    for i in range(1, len(abar)):
        alpha_t, sigma_t = np.sqrt(abar[i - 1]), np.sqrt(1 - abar[i - 1])
        alpha_s, sigma_s = np.sqrt(abar[i]), np.sqrt(1 - abar[i])
        guess = denoise(x, alpha_t, sigma_t)
        free = alpha_s * guess + sigma_s * (x - alpha_t * guess) / sigma_t
        x = jnp.where(mask, alpha_s * guide + sigma_s * noises[i], free)
        path.append(x)
    return jnp.stack(path)
    ### END SOLUTION


# %% [markdown]
# ## 08.6
# *stretch · 20 minutes*
#
# A hard mask can leave a seam. So let the mask `m` go from 1 to 0 over a few pixels, and blend: the clean
# pictures as $m\,x_\text{known} + (1 - m)\,\hat x_0$, and the two noises with the same shares. But blended
# noise is too weak: two independent noises of variance 1 in the shares $m$ and $1 - m$ have a variance
# below 1 between the ends. That is the bug of section 4 again, in the seam only. Give the blend the
# variance that the level $\sigma$ demands, at every pixel.
#
# **Expected.** The state at the level $(\alpha, \sigma)$, an array of `known`'s shape. Where `m` is 1 or
# 0 it is the noised known picture or the noised guess.
#
# <details><summary>Hint</summary>
# Variances of independent noises add up, with squared shares. Divide the blended noise, and only the
# noise, by its standard deviation.
# </details>


# %% exercise="08.6" role="answer"
def feathered(known, x0_hat, eps_known, eps_free, m, alpha, sigma):
    """Four arrays [...], m [...] in [0, 1], numbers alpha and sigma -> the blended state, [...]."""
    ### BEGIN SOLUTION return the blended state, an array of known's shape
    clean = m * known + (1 - m) * x0_hat
    noise = m * eps_known + (1 - m) * eps_free
    return alpha * clean + sigma * noise / jnp.sqrt(m**2 + (1 - m) ** 2)
    ### END SOLUTION


# %% [markdown]
# ## 08.7
# *written · 15 minutes*
#
# A camera saw a car from far away; its licence plate is a smear of 7×7 pixels. A colleague enlarges it
# with a diffusion model and equation (4). The result is sharp, and shrinks to the smear *exactly*. "So
# this is the plate," says the colleague, and the judge in court seems to like it.
#
# In about 150 words:
#
# 1. What does the exactness prove about the sharp plate, and what does it not prove? *(1 point)*
# 2. Which one experiment with the same model would you show to the court, and what would it look like if
#    the colleague were right? *(1 point)*
#
# <details><summary>Hint</summary>
# How many numbers are given, and how many are drawn? What differed between the three enlargements of one
# thumbnail in section 7?
# </details>

# %% [markdown] exercise="08.7" role="written"
# ### BEGIN SOLUTION
# 1. It proves that the plate is *consistent* with the smear: 49 numbers agree. Every other plate that
#    shrinks to the same 49 numbers is as consistent, and there are very many, since most of the sharp
#    picture's numbers are free. Which of them was drawn was decided by the model's training data and by
#    the noise, not by the camera. Also, if the smear itself has noise, matching it exactly matches the
#    noise too.
# 2. Draw it again with other seeds: the same smear, the same model, say a hundred times. If the colleague
#    were right, all hundred would show the same letters. If they show many, the share of each is at best
#    what the model believes, and only as good as its training data. Also good: shrink a known plate,
#    enlarge it, and count how often its letters come back.
#
# *One point for each part. The first needs "consistent, but not unique". The second needs an experiment
# and both of its outcomes.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 08. You have built the start, the step and the jump of an editor, held a colour,
# mended a paste and softened an edge. Chapter 09 looks at the same processes in continuous time.
