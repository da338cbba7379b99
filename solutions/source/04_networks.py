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
# # 04 · Networks that denoise: exercises
#
# They belong to [chapter 04](../notebooks/04_networks.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Images are [B, H, W, C], tokens [B, N, d].
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
# ## 04.1
# *implement · 15 minutes*
#
# Equation (1), with its norm. Cut the channels into `groups` of neighbours. In each image, bring all
# numbers of a group (its channels, at all pixels) to mean 0 and variance 1; add $10^{-5}$ to the
# variance before you take its root. Then multiply every channel by 1 + `scale` and add `shift`.
#
# **Expected.** An array of `h`'s shape. With `scale` and `shift` 0, each group of each image has mean 0
# and variance 1.
#
# <details><summary>Hint</summary>
# Reshape to [B, H, W, groups, C/groups]; the mean is over axes 1, 2 and 4. Scale and shift are [B, C]
# and need two axes of length 1 in the middle.
# </details>


# %% exercise="04.1" role="answer"
def film(h, scale, shift, groups):
    """h [B, H, W, C], scale and shift [B, C], a number of groups -> [B, H, W, C]."""
    ### BEGIN SOLUTION return the modulated features, an array of h's shape
    batch, height, width, channels = h.shape
    grouped = h.reshape(batch, height, width, groups, channels // groups)
    inside = (1, 2, 4)  # a group of an image: all pixels, its channels
    mean, variance = grouped.mean(inside, keepdims=True), grouped.var(inside, keepdims=True)
    normal = ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(h.shape)
    return normal * (1 + scale[:, None, None]) + shift[:, None, None]
    ### END SOLUTION


# %% [markdown]
# ## 04.2
# *implement · 10 minutes*
#
# The embedding of section 4. With $m = \text{dim}/2$ frequencies $\omega_i = 10000^{-i/m}$, $i = 0 \dots m-1$,
# the time $t \in [0, 1]$ becomes $\cos(1000\,t\,\omega_i)$ for all $i$, followed by
# $\sin(1000\,t\,\omega_i)$ for all $i$.
#
# **Expected.** An array [B, dim].
#
# <details><summary>Hint</summary>
# The angles are a table: times along the rows, frequencies along the columns.
# </details>


# %% exercise="04.2" role="answer"
def time_embedding(t, dim):
    """t [B] in [0, 1], an even number dim -> [B, dim]."""
    ### BEGIN SOLUTION return the embeddings, an array [B, dim]
    half = dim // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = 1000 * t[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
    ### END SOLUTION


# %% [markdown]
# ## 04.3
# *implement · 15 minutes*
#
# The chapter's attention has one head. With $H$ **heads** the $C$ features of every token are cut into $H$ groups of
# $d = C/H$ neighbouring features, and each group attends for itself: it compares its part of a token's query with its
# part of the keys of all $N$ tokens, and averages its part of their values with the weights
# $\operatorname{softmax}(q \cdot k/\sqrt d)$. The results stand side by side, in the order of the groups.
#
# **Expected.** An array of `v`'s shape. If all keys are equal, every token gets the plain mean of the
# values. Large products must do no harm. (No loop is needed.)
#
# <details><summary>Hint</summary>
# An axis of C features is one of H groups of d features: reshape this axis alone, to [B, N, H, d]. The table of
# products has the shape [B, H, N, N],
# queries along the rows. Each row's weights add up to 1.
# </details>


# %% exercise="04.3" role="answer"
def attention(q, k, v, heads):
    """Queries, keys and values, each [B, N, C], and the number of heads -> [B, N, C]."""
    ### BEGIN SOLUTION return the averaged values, an array of v's shape
    q, k, v = (jnp.stack(jnp.split(a, heads, axis=-1), axis=1) for a in (q, k, v))
    products = q @ k.transpose(0, 1, 3, 2) / jnp.sqrt(q.shape[-1])
    averaged = jax.nn.softmax(products, axis=-1) @ v
    return jnp.concatenate(jnp.moveaxis(averaged, 1, 0), axis=-1)
    ### END SOLUTION


# %% [markdown]
# ## 04.4
# *derive and check · 15 minutes*
#
# A batch does not fit into memory, so you take it in parts. The loss of a part is the mean over its
# images, and `gradients[k]` is the gradient of that. The parts need not be of one size: part $k$ holds
# `sizes[k]` images. What would the whole batch's gradient be? The optimiser clips it: if its length
# exceeds `limit`, it is shortened to `limit` (section 8).
#
# **Expected.** An array [P]: the clipped gradient of the mean over all images.
#
# <details><summary>Hint</summary>
# Write the mean over all images as a sum of the parts' sums. The optimiser never sees a part: what it
# clips is the gradient of the whole batch.
# </details>


# %% exercise="04.4" role="answer"
def accumulate(gradients, sizes, limit):
    """gradients [K, P] of the parts' mean losses, sizes [K], a number limit -> [P]."""
    ### BEGIN SOLUTION return the clipped gradient of the whole batch, an array [P]
    gradient = (sizes[:, None] * gradients).sum(0) / sizes.sum()
    return gradient * jnp.minimum(1, limit / jnp.linalg.norm(gradient))
    ### END SOLUTION


# %% [markdown]
# ## 04.5
# *derive and check · 15 minutes*
#
# Time is cut into $K$ equal parts, and the loss in part $k$ has the mean square `mean_square[k]`. You
# draw parts with a probability proportional to the *root* of that. Each of the drawn `losses` must be
# divided by the density it was drawn with, so that their mean estimates what uniform times would give.
# A density is measured against the uniform one: over all $K$ parts it has the mean 1.
#
# **Expected.** An array [N]: the losses, weighted. If all mean squares are equal they stay as they are.
#
# <details><summary>Hint</summary>
# The probability of part k is root_k over the sum of the roots. Uniform times would give 1/K. The density
# is the quotient of the two.
# </details>


# %% exercise="04.5" role="answer"
def reweight(losses, part, mean_square):
    """losses [N], the part that each was drawn in [N], mean_square [K] -> weighted losses [N]."""
    ### BEGIN SOLUTION return the weighted losses, an array of losses' shape
    root = jnp.sqrt(mean_square)
    density = root / root.mean()
    return losses / density[part]
    ### END SOLUTION


# %% [markdown]
# ## 04.6
# *debug this · 15 minutes*
#
# One step of gradient descent with an average of the weights, in bfloat16 to save memory. Below it
# runs for a thousand steps on $\tfrac12(\theta - 3)^2$, from $\theta = 2$. A thousand steps at a rate
# of 0.001 should cover $1 - e^{-1} = 63\,\%$ of the way. Run the cell: nothing moves.


# %%
def broken_update(params, ema, gradient, rate, decay):
    ema = decay * ema + (1 - decay) * params
    params = params.astype(jnp.bfloat16) - (rate * gradient).astype(jnp.bfloat16)
    return params.astype(jnp.float32), ema


theta, average = jnp.array([2.0]), jnp.array([2.0])
for _ in range(1000):
    theta, average = broken_update(theta, average, theta - 3, 0.001, 0.99)
print(f"after 1,000 steps: {theta[0]:.3f}; expected {3 - np.exp(-1):.3f}")
assert theta[0] == 2.0

one, its_average = broken_update(jnp.array([2.0]), jnp.array([2.0]), jnp.array([-1.0]), 0.5, 0.0)
print(f"an average without memory: {its_average[0]:.1f}; it should be the new weight, {one[0]:.1f}")
assert its_average[0] != one[0]

# %% [markdown]
# There are **two** bugs, one for each line. Write the step as it should be. All inputs are float32.
#
# **Expected.** A tuple of two arrays of `params`' shape: the new weights and the new average, in
# float32.
#
# <details><summary>Hint</summary>
# bfloat16 has 8 significant bits. What is the next number after 2 that it can hold? And of which weights
# should the average know?
# </details>


# %% exercise="04.6" role="answer"
def update(params, ema, gradient, rate, decay):
    """params, ema and gradient [P], numbers rate and decay -> new params and new ema, [P] each."""
    ### BEGIN SOLUTION return the new weights and the new average, two arrays of params' shape
    params = params - rate * gradient  # float32: bfloat16 would round small steps away
    return params, decay * ema + (1 - decay) * params
    ### END SOLUTION


# %% [markdown]
# ## 04.7
# *stretch · 15 minutes*
#
# Section 2 looked at the derivative of $D$ to see how far a network looks. It also says how *sure* the
# network is: for the exact denoiser, in one dimension,
#
# $$\operatorname{Var}[x_0 \mid x_t = x] = \frac{\sigma^2}{\alpha}\,\frac{\partial D}{\partial x}.$$
#
# Compute it by automatic differentiation for points `x`, each taken by itself: `denoise(x, alpha, sigma)`
# is the exact denoiser of one-dimensional data and works on arrays. The data are Gaussian, or lie in two
# groups.
#
# **Expected.** An array of `x`'s shape. Where there is hardly any noise there is hardly any doubt. Between
# two groups there is much.
#
# <details><summary>Hint</summary>
# The derivative of one number by one number is jax.grad; jax.vmap does it for all points. Or add the
# results up and take one gradient: why does that give the same?
# </details>


# %% exercise="04.7" role="answer"
def posterior_variance(denoise, x, alpha, sigma):
    """denoise(x, alpha, sigma), points x [N], numbers alpha and sigma -> variances [N]."""
    ### BEGIN SOLUTION return the variances, an array of x's shape
    slope = jax.grad(lambda x: denoise(x, alpha, sigma).sum())(x)
    return sigma**2 / alpha * slope
    ### END SOLUTION


# %% [markdown]
# ## 04.8
# *written · 15 minutes*
#
# A paper removes the attention from its U-Net, trains for a tenth of the usual time on 16×16 images, and
# finds the same loss. It concludes that diffusion models do not need attention.
#
# In about 150 words:
#
# 1. Name two reasons why the conclusion does not follow. *(1 point)*
# 2. Describe an experiment that could show what attention buys, and what you would plot. *(1 point)*
#
# <details><summary>Hint</summary>
# Section 3 finds the same on 8×8 images. What does a convolution at the lowest resolution see there?
# And is the mean loss the number in which a difference would show?
# </details>

# %% [markdown] exercise="04.8" role="written"
# ### BEGIN SOLUTION
# 1. On small images the convolutions at the lowest level already see everything, so attention has
#    nothing to add; on large ones it may. Early in training, the loss is dominated by what every network
#    learns first. The mean loss hides the noise levels: attention can matter at high noise, where the
#    picture as a whole is decided, and the mean is ruled by the others. Samples may differ where
#    losses hardly do.
# 2. The same network with and without attention, same data, same number of parameters or of
#    operations, trained until both are flat, on images large enough that distant parts must agree
#    (symmetric objects, two eyes of one colour), with several seeds. Plot the error by noise level on
#    unseen images, and a measure of the samples (Fréchet distance, share with matching parts) against
#    the size of the images.
#
# *One point for each part. The first needs two different reasons. The second needs a comparison that
# changes one thing, and a plot that is not the mean loss alone.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 04. You have written what tells a network the time, let tokens look at each
# other, and mended a step that stood still. Chapter 05 asks what the loss has to do with likelihood.
