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
# # 23 · Cascades and video: exercises
#
# They belong to [chapter 23](../notebooks/23_cascades_video.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Pixels lie in [..., height, width, C]. A state is $x_t = \alpha\,x_0 + \sigma\,\varepsilon$, and a signal-to-noise
# ratio (SNR) is a ratio of variances. Times run from 1, which is noise, to 0, which is data. Logarithms are natural
# ones.
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
from scipy.special import softmax

from diffusion_course.grading import check

# %% [markdown]
# ## 23.1
# *warm-up · 20 minutes*
#
# The second stage of a cascade sees a small image. It has been trained on true images with added noise
# (*conditioning augmentation*), and is told the log-SNR, $\log(\alpha^2/\sigma^2)$ with $\alpha^2 + \sigma^2 = 1$.
# Now it gets the images of the first stage. They have errors, which we take for white noise: `low[b]` is a true
# image plus noise of variance `error[b]`.
#
# Scale each image, and add `eps`, so that the whole noise is as much as `log_snr[b]` says. The errors are a part of
# it: do not count them twice. If an image has more noise than that already, then add nothing, and tell the log-SNR
# that it has. In the end, each pixel becomes a block of $k\times k$ pixels.
#
# **Expected.** A tuple: the condition `[B, k·h, k·w, C]`, where the true image has the factor $\alpha$ and all noise
# together has the variance $\sigma^2$; and the log-SNR that is told, `[B]`. `error` may be 0.
#
# <details><summary>Hint</summary>
# Think of the noise beside an image that has the factor 1: how much does it need, how much does it have? Then scale
# both.
# </details>


# %% exercise="23.1" role="answer"
def condition(low, eps, log_snr, error, k):
    """low, eps [B, h, w, C], log_snr, error [B], a whole number k -> the condition, and what is told."""
    ### BEGIN SOLUTION return a tuple: the condition [B, k·h, k·w, C] and the log-SNR, [B]
    noise = np.maximum(np.exp(-log_snr), error)  # beside a signal of factor 1
    extra = np.sqrt(noise - error)
    noised = (low.T + extra * eps.T) / np.sqrt(1 + noise)
    return noised.T.repeat(k, axis=1).repeat(k, axis=2), -np.log(noise)
    ### END SOLUTION


# %% [markdown]
# This treats errors as white noise. The errors of a real first stage are not white: they are blurred edges and wrong
# shapes. So the level that is best in practice is found by a measurement.

# %% [markdown]
# ## 23.2
# *derive and check · 25 minutes*
#
# We have an image, and the same picture with `more` times as many pixels. (`more` may be less than 1.)
# Average the larger of the two in blocks, down to the size of the smaller. Its signal is the same, its white
# noise has become less: at the same time $t$, the larger image shows more of the picture. Find
#
# 1. the time $t'$ of the second image at which, at the smaller size, it has the SNR that the first one has at $t$;
# 2. the factor $dt/dt'$. If $t$ is drawn with the density $p(t)$, then $t'$ has the density $p(t)\,dt/dt'$.
#
# | `kind` | $\alpha$ | $\sigma$ | times |
# |---|---|---|---|
# | `"flow"` | $1 - t$ | $t$ | 0 to 1 |
# | `"cosine"` | $\cos(\pi t/2)$ | $\sin(\pi t/2)$ | 0 to 1 |
# | `"edm"` | 1 | $t$ | 0 and more |
#
# **Expected.** A tuple of two arrays `[N]`. Time 0 stays 0, and time 1 of the first two kinds stays 1. The
# factor is finite there, too. Times of `"edm"` have no upper end.
#
# <details><summary>Hint</summary>
# What happens to the variance of noise in a mean over `more` pixels? So which number multiplies σ/α? At t = 1 this
# ratio is infinite. np.arctan2(σ, α) is an angle even there.
# </details>


# %% exercise="23.2" role="answer"
def shifted(t, more, kind):
    """t [N], the number more > 0, kind "flow", "cosine" or "edm" -> t' and dt/dt', both [N]."""
    ### BEGIN SOLUTION return a tuple: the times t' and the factors dt/dt', two arrays [N]
    k = np.sqrt(more)
    if kind == "edm":
        return k * t, np.full(len(t), 1 / k)
    if kind == "flow":
        alpha, sigma = 1 - t, k * t
        return sigma / (alpha + sigma), (alpha + sigma) ** 2 / k
    alpha, sigma = np.cos(np.pi / 2 * t), k * np.sin(np.pi / 2 * t)
    return np.arctan2(sigma, alpha) / (np.pi / 2), (alpha**2 + sigma**2) / k
    ### END SOLUTION


# %% [markdown]
# In log-SNR all kinds do the same: they subtract `log(more)`. The formula for `"flow"` is the shift of Esser et al.
# 2024 (arXiv:2403.03206, section 5.3.2). And `more` may count frames as well, in a clip where nothing moves.

# %% [markdown]
# ## 23.3
# *implement · 25 minutes*
#
# For training, each image goes into a *bucket*, a size that many share. A bucket has $r$ rows and $c$ columns of
# tokens, and a token covers `patch` × `patch` pixels. These are the buckets:
#
# - at most `tokens` tokens, but no room for one more row, and none for one more column;
# - neither side is longer than `widest` times the other. It may be exactly as long.
#
# Each image goes to the bucket whose ratio of height to width is the nearest. Twice as wide is as far away as twice
# as high. Then the image is scaled, without distortion, until it just covers the bucket, and cut.
#
# **Expected.** A tuple: for each image the height and the width of its bucket in pixels, whole numbers `[N, 2]`;
# and the share of the image's area that is kept, `[N]`. No image lies in the middle between two buckets.
#
# <details><summary>Hint</summary>
# In which quantity are 1:2 and 2:1 equally far from 1:1? For 12 tokens and widest = 3 there are four buckets: (6, 2),
# (4, 3), (3, 4) and (2, 6). And with 13?
# </details>


# %% exercise="23.3" role="answer"
def bucketed(sizes, tokens, patch, widest):
    """sizes [N, 2] (height, width), whole numbers tokens and patch, widest -> buckets and shares."""
    ### BEGIN SOLUTION return a tuple: heights and widths, whole numbers [N, 2], and shares, [N]
    r = np.arange(1, tokens + 1)
    c = tokens // r  # no room for one more column
    fine = (tokens // c == r) & (r <= widest * c) & (c <= widest * r)
    buckets = np.stack([r[fine], c[fine]], axis=1)
    rise = np.log(sizes[:, 0] / sizes[:, 1])
    far = np.abs(rise[:, None] - np.log(r / c)[fine])
    return patch * buckets[far.argmin(1)], np.exp(-far.min(1))
    ### END SOLUTION


# %% [markdown]
# ## 23.4
# *debug this · 25 minutes*
#
# Attention over time: each place of a clip looks at the same place in the other frames. A network is trained on
# clips and images together, and an image adds variety that clips lack. So an example has $F$ frames: the first
# `lengths[b]` are a clip, and each of the others is an image of its own, as in Ho et al. 2022 (arXiv:2204.03458,
# section 3). Frames of the clip look at all frames of the clip. An image looks only at itself.
#
# For each place and each of $H$ heads, with $q = xW_q$ and so on,
#
# $$y_f = \sum_g \text{softmax}_g\big(q_f\cdot k_g/\sqrt d\big)\,v_g,$$
#
# where $g$ runs over what $f$ looks at. The outputs of the heads are added. Run the cells.


# %%
def broken_time(x, lengths, query, key, value):
    B, F, h, w, C = x.shape
    rows = x.reshape(B, h * w, F, C)  # attention runs over the last axis but one
    q, k, v = (np.einsum("bnfc,chd->bhnfd", rows, m) for m in (query, key, value))
    clip = np.arange(F) < lengths[:, None]
    seen = clip[:, None] | np.eye(F, dtype=bool)
    logits = q @ k.swapaxes(3, 4) / np.sqrt(q.shape[-1])
    y = softmax(logits * seen[:, None, None], axis=-1) @ v
    return y.sum(1).reshape(x.shape)


# %%
rng = np.random.default_rng(0)
x, lengths = rng.normal(size=(2, 5, 3, 3, 4)), np.array([3, 2])
weights = [rng.normal(size=(4, 2, last)) for last in (3, 3, 4)]
image = (np.arange(5) >= lengths[:, None])[..., None, None, None]  # and not a frame of the clip
corner = np.zeros((3, 3, 1), bool)
corner[0, 0] = True


def leaks(attend):
    """What must have no effect, and how much it has: the output's largest change."""
    y = attend(x, lengths, *weights)

    def change(where, elsewhere):
        return np.abs((attend(np.where(where, -x, x), lengths, *weights) - y) * elsewhere).max()

    return {
        "one place on others": change(corner, ~corner),
        "images on the clip": change(image, ~image),
        "the clip on images": change(~image, image),
    }


found = leaks(broken_time)
print(", ".join(f"{name}: {amount:.2f}" for name, amount in found.items()))
# Without the bugs all three are 0, up to rounding.
assert min(found.values()) > 0.5

# %% [markdown]
# There are **three** bugs. Write the function as it should be. Try `leaks(over_time)` on your own: does it tell you
# everything?
#
# **Expected.** An array `[B, F, h, w, C]`. An example may hold a clip only (`lengths[b]` is $F$), or images only (0).
# Logits may lie far above 1000, and far below −1000.
#
# <details><summary>Hint</summary>
# What does reshape do with the order of the numbers? What is the weight of a logit of 0? And who looks at whom: which
# axis of `seen` belongs to the frame that looks?
# </details>


# %% exercise="23.4" role="answer"
def over_time(x, lengths, query, key, value):
    """x [B, F, h, w, C], lengths [B], query and key [C, H, d], value [C, H, C] -> [B, F, h, w, C]."""
    ### BEGIN SOLUTION return an array [B, F, h, w, C]
    q, k, v = (np.einsum("bfijc,chd->bijhfd", x, m) for m in (query, key, value))
    clip = np.arange(x.shape[1]) < np.asarray(lengths)[:, None]
    seen = (clip[:, :, None] & clip[:, None]) | np.eye(clip.shape[1], dtype=bool)
    logits = q @ k.swapaxes(4, 5) / np.sqrt(query.shape[2])
    masked = np.where(seen[:, None, None, None], logits, -np.inf)
    return np.einsum("bijhfc->bfijc", softmax(masked, axis=-1) @ v)
    ### END SOLUTION


# %% [markdown]
# The test sees what reaches where it should not. It does not notice a frame that should be heard and is not, a wrong
# scale, or a softmax over the wrong axis. A function that returns zeros has no leaks at all.

# %% [markdown]
# ## 23.5
# *implement · 25 minutes*
#
# In Diffusion Forcing (Chen et al. 2024, arXiv:2407.01392) a frame has its own time. It goes down the
# times `grid`, $1 = t_0 > \dots > t_S = 0$, one in each step, without a pause. The first `known` frames are given.
# Of the other `frames`, the first begins at once, and each begins `lag` steps later than the one before it.
#
# The network can change at most `window` frames in one step. Take the smallest lag for which this holds in every
# step. If all fit into it, this is 0.
#
# Make two tables: the times, one row before the first step and one after each; and what the network is told in each
# step. It is told the times before the step, but `steady`, a small level, for frames that are finished or known.
#
# **Expected.** A tuple: the times `[R + 1, known + frames]` and what is told `[R, known + frames]`, with
# $R$ steps until all are finished. The last row of the times is 0.
#
# <details><summary>Hint</summary>
# A frame is changed in S steps. If each one begins lag steps later, how many are being changed at a time?
# </details>


# %% exercise="23.5" role="answer"
def timetable(grid, known, frames, window, steady):
    """grid [S + 1], whole numbers known, frames and window, the number steady -> times and told."""
    ### BEGIN SOLUTION return a tuple: times [R + 1, known + frames] and told [R, known + frames]
    S = len(grid) - 1
    lag = int(np.ceil(S / window)) if window < frames else 0
    begins = lag * np.arange(frames)
    passed = np.arange(S + begins[-1] + 1)[:, None] - begins
    times = np.pad(grid[np.clip(passed, 0, S)], ((0, 0), (known, 0)))
    return times, np.where(times > 0, times, steady)[:-1]
    ### END SOLUTION


# %% [markdown]
# ## 23.6
# *stretch · 40 minutes*
#
# Let a frame be one number, such as the brightness. Frames have mean 0, and $\mathbb E[x_i x_j] = r_{|i-j|}$: a
# Gaussian process. A model sees the last $c$ frames and draws the next one. It was trained on frames with noise of
# the standard deviation `told`, and for those it is exact: from $y_i = x_i + \text{told}\cdot\varepsilon_i$ with
# the $c$ frames $i$ before $n$, it draws a sample of $p(x_n \mid y)$.
#
# Now it rolls out. The first $c$ frames are drawn from the process. For each further frame, the model
# is shown the last $c$ frames. Fresh noise of the standard deviation `added` is added to what it is shown;
# the frames themselves stay as they are. And each frame that the model draws is too large by `bias`. Find the
# frames' means and covariance.
#
# **Expected.** A tuple of two arrays, `[N]` and `[N, N]`. With no noise, the covariance of frames that are at
# most $c$ apart is that of the process.
#
# <details><summary>Hint</summary>
# The mean of p(x_n | y) is a sum of gains times y, and its variance is the same for all y. How does the new frame
# covary with earlier ones?
# </details>


# %% exercise="23.6" role="answer"
def rollout(r, c, told, added, bias):
    """r [N], the whole number c < N, three numbers -> the means [N] and the covariance [N, N]."""
    ### BEGIN SOLUTION return a tuple: the means [N] and the covariance [N, N]
    N = len(r)
    mean, cov = np.zeros(N), r[np.abs(np.subtract.outer(np.arange(N), np.arange(N)))]
    ahead = r[1 : c + 1][::-1]  # of the c frames with the next one, in their order
    gains = np.linalg.solve(cov[:c, :c] + told**2 * np.eye(c), ahead)
    left = r[0] - gains @ ahead
    for n in range(c, N):
        last = slice(n - c, n)
        mean[n] = gains @ mean[last] + bias
        cov[n, :n] = cov[:n, n] = gains @ cov[last, :n]
        cov[n, n] = gains @ cov[last, n] + added**2 * gains @ gains + left
    return mean, cov
    ### END SOLUTION


# %% [markdown]
# What does the noise do? Take $c = 1$. If it is both told and added, each frame keeps its variance. The gain is
# smaller, so a bias is forgotten sooner, but the frames agree less with each other. If it is only told, the
# variance becomes too small, and if it is only added, too large.

# %% [markdown]
# ## 23.7
# *written · 20 minutes*
#
# A cascade draws 16×16 images first. Its second stage makes 64×64 images of them, and was trained on true images
# that were averaged to 16×16. The samples are sharp. But many show things that no data have, such as a third eye or
# an edge that stops in the middle. Each stage alone has a low validation loss.
#
# 1. Which stage is at fault, or is it that they do not fit? Say how two measurements would tell.
# 2. Suppose that they do not fit. Name a cure, and what changes in training *and* in sampling.
# 3. The cure has a parameter. What gets worse if it is too large, how would you measure it, and how do you choose it?
#
# About 50 words for each. *(1 point each)*
#
# <details><summary>Hint</summary>
# Whose images can you give to the second stage? At which size can you judge the first? And what is left of the first
# stage's image if the second one does not trust it?
# </details>

# %% [markdown] exercise="23.7" role="written"
# ### BEGIN SOLUTION
# 1. Give the second stage true held-out images, averaged: if its samples are right, it is not at fault by itself.
#    Compare the first stage's samples with data at 16×16. If both are good, the stages do not fit: errors that
#    training never showed are taken for details.
# 2. Conditioning augmentation: in training, add noise of a random level to the small image, and tell the level. In
#    sampling, add noise to the first stage's image, and tell the same level. (Or train on samples.)
# 3. With too much noise the condition is ignored. Average the samples to 16×16 and measure their distance from the
#    condition. Try several levels in sampling, and take the one with the least distance to held-out data.
#
# *One point for each. The first needs both: true images into the second stage, and the first stage judged at its own
# size. The second needs noise that is added and told in both phases, or training on samples. The third needs the
# ignored condition, a measurement of agreement, and a choice on data.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 23. You have told a second stage how noisy its condition is, shifted times for larger
# images, put images into buckets, mended attention over time, made a timetable for frames, and computed how a
# rollout drifts. Chapter 24 leaves images for 3-D, sound and molecules.
