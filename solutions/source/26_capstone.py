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
# # 26 · Capstone: exercises
#
# They belong to [chapter 26](../notebooks/26_capstone.ipynb). Write each function where it says
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
import numpy as np

from diffusion_course.grading import check

# %% [markdown]
# ## 26.1
# *warm-up · 15 minutes*
#
# What does the harness charge for a run? The times fall from `times[0]` to 0. A step from $t$ to $s$ asks
# at $t$. With
# `stages` 2 it asks once more, at $s$, and corrects itself, as Heun's method does. Two kinds of steps are not
# corrected: a step from $t = 1$, where there is only noise, and the step to 0. A question at a time in the closed
# interval [`low`, `high`] is guided. It costs two rows, one with the label and one without. Any other
# question costs
# one. If `low` is above `high`, nothing is guided.
#
# **Expected.** Whole numbers, [n]: the rows that each step costs per image.
#
# <details><summary>Hint</summary>
# List the times at which a step asks. Then charge each time in the list.
# </details>


# %% exercise="26.1" role="answer"
def bill(times, stages, low, high):
    """times [n + 1], stages 1 or 2, the numbers low and high -> rows of each step, [n]."""
    ### BEGIN SOLUTION return whole numbers [n], the rows that each step costs
    t, s = times[:-1], times[1:]
    price = lambda at: np.where((low <= at) & (at <= high), 2, 1)
    corrected = (stages == 2) & (t < 1) & (s > 0)
    return price(t) + np.where(corrected, price(s), 0)
    ### END SOLUTION


# %% [markdown]
# ## 26.2
# *derive and check · 25 minutes*
#
# How good can a grid be? For Gaussian data nothing has to be drawn. Each coordinate is from $N(m, s^2)$,
# with its own
# $m$ and $s$, and the denoiser is exact. The run begins with `sigma[0]` times standard normal noise, also
# where `alpha[0]` is not 0, and takes DDIM's steps along the tables. The last entries are $\alpha = 1$ and
# $\sigma = 0$.
# What comes out is Gaussian again. Find its mean and its standard deviation in each coordinate. Find also
# the squared
# Wasserstein distance to the data, $\sum (\text{mean} - m)^2 + (\text{std} - s)^2$ over the coordinates.
#
# **Expected.** A tuple: two arrays [D], and a number.
#
# <details><summary>Hint</summary>
# A state is an affine function of the first noise, x = a + b·z. The guess and its noise are too. What does
# a step do with a, and what with b?
# </details>


# %% exercise="26.2" role="answer"
def drawn(alpha, sigma, means, stds):
    """Tables alpha and sigma [n + 1], means and stds [D] -> means [D], stds [D], the distance."""

    ### BEGIN SOLUTION return a tuple: means [D], standard deviations [D] and a number
    def run(x):
        for i in range(len(alpha) - 1):
            gain = alpha[i] * stds**2 / (alpha[i] ** 2 * stds**2 + sigma[i] ** 2)
            x0 = means + gain * (x - alpha[i] * means)
            x = alpha[i + 1] * x0 + sigma[i + 1] * (x - alpha[i] * x0) / sigma[i]
        return x

    mean = run(np.zeros_like(means))
    std = run(sigma[0]) - mean  # an affine map that rises: two points say all
    return mean, std, np.sum((mean - means) ** 2 + (std - stds) ** 2)
    ### END SOLUTION


# %% [markdown]
# ## 26.3
# *debug this · 15 minutes*
#
# A harness keeps a log: each line holds the images that one call asked about, and −1 where a row is empty. An image
# may come several times in a call, and pays for each. A call after which any image would have more than `allowed`
# evaluations is refused as a whole. It is not charged, and from then on nothing is served. Return the counts,
# and how many calls were served. The code below was in use until somebody asked for the same image eight
# times in one call.


# %%
def broken_charge(calls, N, allowed):
    counts, served = np.zeros(N, int), 0
    for images in calls:
        counts[images] += 1
        if counts.max() > allowed:
            break
        served += 1
    return counts, served


print(broken_charge(np.array([[0, 0, 0, 0, 0, 0, 0, 0], [1, 2, -1, -1, -1, -1, -1, -1]]), 4, 1))

# %% [markdown]
# **Expected.** A tuple: whole numbers [N], and a whole number. There are three mistakes. What should the
# print above
# say?
#
# <details><summary>Hint</summary>
# What does NumPy do with an index that comes twice, and with the index −1? And when is a call charged?
# </details>


# %% exercise="26.3" role="answer"
def charge(calls, N, allowed):
    """calls: whole numbers [C, B], -1 … N - 1; N images -> counts [N], calls that were served."""
    ### BEGIN SOLUTION return a tuple: counts [N] and the number of calls that were served
    used = np.zeros(N, int)
    for before, images in enumerate(np.asarray(calls)):
        after = used + np.bincount(images[images >= 0], minlength=N)
        if (after > allowed).any():
            return used, before
        used = after
    return used, len(calls)
    ### END SOLUTION


# %% [markdown]
# ## 26.4
# *implement · 25 minutes*
#
# You are the cheat of section 4. For each image you know K vectors in pixels, `known`, and what they became in the
# image's secret coordinates, `told`: $\text{told}_k = Q\,\text{known}_k$ with an orthogonal $Q$ that you do
# not know. They
# are neither orthogonal nor of unit length, and some may be combinations of others. You want the image
# `wanted`, given in
# pixels. Return the part of it that lies in the span of `known`, in the secret coordinates. Return also which
# share of its squared length that part has.
#
# **Expected.** A tuple of two arrays, [N, D] and [N].
#
# <details><summary>Hint</summary>
# Q is linear: if the part is a sum of known vectors, the same sum of the told ones is the answer. The weights are
# those of a least-squares problem; np.linalg.lstsq or pinv solves it also where vectors depend on each other.
# </details>


# %% exercise="26.4" role="answer"
def place(known, told, wanted):
    """known, told [N, K, D], wanted [N, D] -> the part in secret coordinates [N, D], shares [N]."""
    ### BEGIN SOLUTION return a tuple: the part [N, D] and the shares [N]
    found, shares = [], []
    for vectors, turned, image in zip(known, told, wanted, strict=True):
        weights = np.linalg.lstsq(vectors.T, image, rcond=1e-8)[0]
        found.append(turned.T @ weights)
        shares.append(np.sum((vectors.T @ weights) ** 2) / np.sum(image**2))
    return np.stack(found), np.stack(shares)
    ### END SOLUTION


# %% [markdown]
# ## 26.5
# *stretch · 30 minutes*
#
# Two samplers drew N images, row by row from the same noise. Their features are `a` and `b`. The data's
# features have
# this `mean` and `covariance`. Return the difference of the two Fréchet distances, a's less b's, and the
# standard error
# of the difference, by the influences of equation (5). Covariances have the denominator N − 1, and so has the
# variance of the influences. `mean` and `covariance` count as exact.
#
# **Expected.** Two numbers.
#
# <details><summary>Hint</summary>
# One image changes both distances at once. By how much does it change the difference? The root of a
# symmetric matrix comes from np.linalg.eigh.
# </details>


# %% exercise="26.5" role="answer"
def apart(a, b, mean, covariance):
    """a and b [N, D], mean [D], covariance [D, D] -> the difference, and its standard error."""

    ### BEGIN SOLUTION return two numbers: the difference of the distances and its standard error
    def root(matrix, power=0.5):
        values, axes = np.linalg.eigh(matrix)
        return (axes * values**power) @ axes.T

    def distance_and_influence(x):
        m, C = x.mean(0), np.cov(x.T)
        half, minus = root(C), root(C, -0.5)
        cross = root(half @ covariance @ half)
        distance = np.sum((m - mean) ** 2) + np.trace(C + covariance - 2 * cross)
        u = x - m
        bend = np.eye(len(m)) - minus @ cross @ minus
        return distance, 2 * u @ (m - mean) + np.sum((u @ bend) * u, axis=1)

    (of_a, phi_a), (of_b, phi_b) = map(distance_and_influence, (a, b))
    return of_a - of_b, np.std(phi_a - phi_b, ddof=1) / np.sqrt(len(a))
    ### END SOLUTION


# %% [markdown]
# ## 26.6
# *written · 120 minutes*
#
# Write the report of your own sampler, about a page. Answer five questions, two points each:
#
# 1. **Idea.** Why should it work, in one sentence, and what did you predict before the first run?
# 2. **Baseline.** What do you compare with, on the same noise, by how much does it differ, and with what error?
# 3. **One thing at a time.** What happens without each part of the idea?
# 4. **What the score does not see.** Show images at every budget, a second measure, and a case in which it fails.
# 5. **Honesty.** How many things did you try, and on which secrets? What did the last one say, used once?
#
# <details><summary>Hint</summary>
# A prediction that failed, told with its measurement, has full points. A place on the board has none.
# </details>

# %% [markdown] exercise="26.6" role="written"
# ### BEGIN SOLUTION
# *An example, on the baseline "DDIM, with noise on top".*
#
# 1. Images of few evaluations vary too little in their pixels. I predicted that noise lowers the Fréchet distance at 1
#    and 2 evaluations, and not at 8.
# 2. DDIM on the same noise, 1,000 images, 95 % intervals, by exercise 26.5: at two evaluations 1.58 against 4.49,
#    the difference is 2.92 ± .31. At eight .71 against .83. Each is ± .17, but the difference, .12, ± .03.
#    The prediction failed.
# 3. One part, the size of the noise. At 0 it is DDIM; .2 and .3 are about equal; .4 is back at DDIM's value.
# 4. The images look worse. Eleven pixels that never change in the data flicker, .12 against .01.
# 5. Four sizes for each budget, on a secret of my own; handed in once.
#
# *Two points for each: one for an answer, one if it could have come out otherwise (a prediction before the run, an
# error, a part left out, a measure that speaks against the sampler, a count of the tries).*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 26, and of the course. You have read a sampler's bill, computed what few steps
# draw, mended a
# counter, found the limit of a cheat, and measured how sure a difference is. Now hand in a sampler of your own.
