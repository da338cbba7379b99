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
# # 13 · Evaluation and its blind spots: exercises
#
# They belong to [chapter 13](../notebooks/13_evaluation.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Features of $N$ samples are `x`, of shape $[N, D]$, and those of $M$ real examples are `real`, of shape
# $[M, D]$. A covariance is always the unbiased one: a sum of squares divided by $N - 1$. A standard deviation
# is its root.
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
from scipy.optimize import minimize
from scipy.special import gammaln, log_softmax
from scipy.stats import hypergeom

from diffusion_course.grading import check

# %% [markdown]
# ## 13.1
# *warm-up · 10 minutes*
#
# A Fréchet distance needs the mean and the covariance of all features. A million features do not fit into
# memory, so a program reads them in chunks. Of each chunk it keeps the mean, the covariance and the number of
# rows. Find the mean and the covariance of all rows together.
#
# Chunks may have different numbers of rows. A chunk of one row has the covariance 0.
#
# **Expected.** The mean `[D]` and the covariance `[D, D]`, as if you had all rows.
#
# <details><summary>Hint</summary>
# Add up squares, not covariances. The squares about the common mean are those about a chunk's own mean, and for
# each row of the chunk the square of (its mean − common mean).
# </details>


# %% exercise="13.1" role="answer"
def merged(means, covariances, counts):
    """means [P, D], covariances [P, D, D], counts [P] -> mean [D], covariance [D, D]."""
    ### BEGIN SOLUTION return the mean [D] and the covariance [D, D]
    n = counts.sum()
    mean = counts @ means / n
    squares = 0
    for m, covariance, count in zip(means, covariances, counts, strict=True):
        squares = squares + (count - 1) * covariance + count * np.outer(m - mean, m - mean)
    return mean, squares / (n - 1)
    ### END SOLUTION


# %% [markdown]
# ## 13.2
# *derive and check · 25 minutes*
#
# Equation (3) is the floor for large $N$. Here you find the mean score of two *small* sets, exactly, and not only
# for equal distributions. We look at one feature at a time, so that the score is
#
# $$\sum_{d=1}^{D}\left[(\hat m_d - \hat m'_d)^2 + (\hat s_d - \hat s'_d)^2\right].$$
#
# Here $\hat m_d$ and $\hat s_d$ are mean and standard deviation of feature $d$ in $N$ samples, and
# $\hat m'_d$ and $\hat s'_d$ those in $M$ real examples. All features are independent and Gaussian, with
# the true values `mean`, `std`, `real_mean` and `real_std`. What is the score on average?
#
# You need one fact. $\hat s^2$ has the mean $s^2$, but its root is too small: for $N$ rows,
#
# $$\mathbb E\,\hat s = s\,\sqrt{\tfrac{2}{N-1}}\;\Gamma\!\left(\tfrac N2\right)/\,\Gamma\!\left(\tfrac{N-1}2\right).$$
#
# **Expected.** A number. For equal distributions and many rows it is close to
# $\tfrac32\left(\tfrac1N + \tfrac1M\right)\sum_d s_d^2$, as equation (3) says for one feature.
#
# <details><summary>Hint</summary>
# Multiply the squares out, and take the mean of each term. The two sets are independent, so the mean of a
# product is the product of the means. Γ(N/2) is too large for a computer above N = 343, and its logarithm
# needs float64: use scipy.special.gammaln.
# </details>


# %% exercise="13.2" role="answer"
def expected_score(mean, std, real_mean, real_std, N, M):
    """mean, std, real_mean and real_std [D], whole numbers N and M of at least 2 -> a number."""
    ### BEGIN SOLUTION return the mean score, a number
    factors = []
    for n in (N, M):
        log_ratio = gammaln(n / 2) - gammaln((n - 1) / 2)
        factors.append(np.sqrt(2 / (n - 1)) * np.exp(log_ratio))
    shift = (mean - real_mean) ** 2 + std**2 / N + real_std**2 / M
    spread = std**2 + real_std**2 - 2 * factors[0] * factors[1] * std * real_std
    return np.sum(shift + spread)
    ### END SOLUTION


# %% [markdown]
# ## 13.3
# *derive and check · 25 minutes*
#
# How much must samples change until their Fréchet distance is 0? Move each row of `x` by the same affine rule,
#
# $$x \mapsto m' + A\,(x - m),$$
#
# so that the set has exactly the mean $m'$ and the covariance $C'$ of `real`. Many matrices $A$ do this. Take
# the one that moves the rows least, in the mean square. This $A$ is symmetric and has no negative eigenvalue.
#
# The samples' covariance $C$ can be inverted. That of `real` may be singular.
#
# **Expected.** The moved rows, an array `[N, D]`. With many rows, the mean square of $\|\text{moved} - x\|$ is the
# Fréchet distance that the samples had. *That* is what the score measures: the least effort, and not whether
# anybody would like the result.
#
# <details><summary>Hint</summary>
# A must satisfy A·C·A = C′. Multiply by the symmetric root of C from both sides: then the left side is the
# square of one symmetric matrix. A root of a symmetric matrix comes from np.linalg.eigh; rounding can
# make an eigenvalue of 0 negative. Stay in NumPy's float64: the root of float32's rounding is 3·10⁻⁴.
# </details>


# %% exercise="13.3" role="answer"
def cheapest(x, real):
    """x [N, D], real [M, D] -> the moved x, [N, D]."""
    ### BEGIN SOLUTION return the moved rows, an array [N, D]
    centre = x.mean(axis=0)
    C = np.atleast_2d(np.cov(x, rowvar=False))
    C_real = np.atleast_2d(np.cov(real, rowvar=False))
    size, U = np.linalg.eigh(C)
    half = U @ np.diag(np.sqrt(size)) @ U.T
    size, V = np.linalg.eigh(half @ C_real @ half)
    middle = V @ np.diag(np.sqrt(np.maximum(size, 0))) @ V.T
    A = np.linalg.solve(half, np.linalg.solve(half, middle).T)
    return real.mean(axis=0) + (x - centre) @ A
    ### END SOLUTION


# %% [markdown]
# ## 13.4
# *debug this · 20 minutes*
#
# Precision is the share of samples that lie in a ball of a real example. Recall is the share of real examples
# that lie in a ball of a sample. A ball reaches to its centre's `k`-th nearest *other* row of the same
# set; a point on the rim is inside. Run the cells: both numbers are wrong.


# %%
def broken_measures(x, real, k):
    def pairwise(a, b):
        return np.sqrt(((a[:, None] - b) ** 2).sum(-1))

    radii = np.sort(pairwise(real, real), axis=1)[:, k - 1]
    inside = pairwise(x, real) <= radii
    return inside.any(axis=1).mean(), inside.any(axis=0).mean()


# %%
drawn = np.random.default_rng(0).normal(size=(2, 400, 2))
same = broken_measures(drawn[0], drawn[1], k=1)
print(f"samples from the data's distribution, k = 1: precision {same[0]:.2f}")
assert same[0] == 0

wide = broken_measures(6 * drawn[0], drawn[1], k=3)
print(f"samples that spread six times as far, k = 3: recall {wide[1]:.2f}")
assert wide[1] < 0.25  # the samples surround the data, and their balls are large

# %% [markdown]
# There are **two** bugs. Rows may occur more than once in a set. Write the function as it should be.
#
# **Expected.** Two numbers: precision and recall.
#
# <details><summary>Hint</summary>
# Which point is the nearest one to a point of the set? And whose balls does each share need?
# </details>


# %% exercise="13.4" role="answer"
def precision_recall(x, real, k):
    """x [N, D], real [M, D], a whole number k -> precision, recall."""

    ### BEGIN SOLUTION return precision and recall, two numbers
    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    def share(points, centres):
        # Place 0 of each sorted row is the point itself.
        reach = np.sort(distances(centres, centres), axis=1)[:, k]
        return (distances(points, centres) <= reach).any(axis=1).mean()

    return share(x, real), share(real, x)
    ### END SOLUTION


# %% [markdown]
# ## 13.5
# *implement · 25 minutes*
#
# KID sees three moments. The *energy distance* (Székely & Rizzo 2013) sees every difference:
#
# $$2\,\mathbb E\,\|X - Y\| - \mathbb E\,\|X - X'\| - \mathbb E\,\|Y - Y'\|.$$
#
# Estimate it without bias, as KID does: each mean is over pairs of *different* rows.
#
# Is the value more than chance? Put both sets together, first the rows of `x` and then those of `real`. If the
# distributions are equal, then any order of these $N + M$ rows is as likely as this one. Each row of `orders` says
# which row stands at each place. The first $N$ places now act as `x`, the others as `real`.
#
# **Expected.** Two numbers: the observed distance, and the share of orders that reach it. The observed
# order counts as one of the orders. An order reaches it with at least the observed distance minus $10^{-5}$.
#
# <details><summary>Hint</summary>
# Compute all distances once. An order changes rows and columns alike. The diagonal is 0: it adds nothing to a
# sum, but it must not be counted in the mean.
# </details>


# %% exercise="13.5" role="answer"
def energy_test(x, real, orders):
    """x [N, D], real [M, D], orders [P, N + M] of whole numbers -> distance, share of orders."""
    ### BEGIN SOLUTION return the distance and the share of orders, two numbers
    N, M = len(x), len(real)
    rows = np.concatenate([x, real])
    d = np.linalg.norm(rows[:, None] - rows, axis=-1)
    values = []
    for order in [np.arange(N + M), *np.asarray(orders)]:
        a, b = order[:N], order[N:]
        between = d[a][:, b].sum() / (N * M)
        within = d[a][:, a].sum() / (N * (N - 1)) + d[b][:, b].sum() / (M * (M - 1))
        values.append(2 * between - within)
    return values[0], np.mean(np.array(values) >= values[0] - 1e-5)
    ### END SOLUTION


# %% [markdown]
# ## 13.6
# *derive and check · 25 minutes*
#
# The chapter's test of copies flags a sample if its ratio lies below the $m$-th smallest ratio of $n$ unseen images.
# It chose $m$ by the rate of false alarms of *one* image. Now there are $N$ samples, and a lawyer reads the result.
# You promise: "If the model copies nothing, then more than `allowed` flags have at most the probability `alpha`."
#
# Let samples of such a model be like unseen images. Then all $n + N$ ratios come from one distribution. No two
# are equal, and each order of them is equally likely. Find the largest $m$ that keeps the promise.
#
# **Expected.** An array of two numbers: $m$, and the probability of more than `allowed` flags with it. If no $m$
# in $1 \dots n$ keeps the promise, return `np.zeros(2)`.
#
# <details><summary>Hint</summary>
# Sort all n + N. More than `allowed` samples come before the m-th unseen image exactly if samples take more
# than `allowed` of the first m + allowed places. That is drawing without replacement: scipy.stats.hypergeom, with
# the numbers of all, of samples, and of places.
# </details>


# %% exercise="13.6" role="answer"
def copies_rank(n, N, allowed, alpha):
    """Whole numbers n, N and allowed, the number alpha -> [m, probability]."""
    ### BEGIN SOLUTION return m and the probability, an array of two numbers
    m = np.arange(1, n + 1)
    chance = hypergeom.sf(allowed, n + N, N, m + allowed)
    good = np.flatnonzero(chance <= alpha)
    return np.array([m[good[-1]], chance[good[-1]]]) if len(good) else np.zeros(2)
    ### END SOLUTION


# %% [markdown]
# ## 13.7
# *stretch · 40 minutes*
#
# Two images stand side by side, and many judges prefer the left one whatever it is. The side is drawn by lot, but
# in a small study the lot is not even. So put the side into equation (7), and ties as well (after Davidson &
# Beaver 1977). If method $i$ stands on the left and $j$ on the right,
#
# $$P(\text{left}) \propto e^{\theta_i + \beta/2},\qquad P(\text{right}) \propto e^{\theta_j - \beta/2},\qquad
# P(\text{tie}) \propto \nu\,e^{(\theta_i + \theta_j)/2}.$$
#
# `counts[i, j]` has three numbers for this arrangement: how often the left one was preferred, the right one, and
# neither. Some arrangements were never shown. Find $\theta$, $\beta$ and $\nu$ of maximum likelihood, with
# $\sum_i \theta_i = 0$.
#
# **Expected.** An array `[K + 2]`: $\theta_1, \dots, \theta_K$, then $\beta$, then $\nu$, each right to three digits.
#
# <details><summary>Hint</summary>
# In log ν the log-likelihood is concave, so any good method finds the same maximum. It is the sum of counts ·
# log-softmax of the three exponents; scipy.optimize.minimize needs no more. Use the sum, not a mean, and float64:
# a minimiser stops where the gradient is small. Subtract the mean of θ at the end.
# </details>


# %% exercise="13.7" role="answer"
def judged(counts):
    """counts [K, K, 3]: left preferred, right preferred, tie -> theta, beta and nu, [K + 2]."""
    ### BEGIN SOLUTION return strengths, beta and nu, an array [K + 2]
    K = len(counts)
    i, j = np.indices((K, K))

    def loss(w):
        theta, beta, log_nu = w[:K], w[K], w[K + 1]
        left, right = theta[i] + beta / 2, theta[j] - beta / 2
        tie = log_nu + (theta[i] + theta[j]) / 2
        exponents = np.stack([left, right, tie], axis=-1)
        return -np.sum(counts * log_softmax(exponents, axis=-1))

    best = minimize(loss, np.zeros(K + 2)).x
    theta = best[:K] - best[:K].mean()
    return np.concatenate([theta, [best[K], np.exp(best[K + 1])]])
    ### END SOLUTION


# %% [markdown]
# ## 13.8
# *written · 15 minutes*
#
# A report says:
#
# - "We kept the best of 40 checkpoints: Fréchet distance 11.2 on 1,000 samples. The published model has 12.0 on
#   50,000. Ours is better."
# - "Precision rose from 0.71 to 0.90 when we set the guidance scale to $w = 5$. The model has learnt the data
#   better."
# - "In 50 decided judgements, people preferred ours 29 times. So people agree."
#
# In about 150 words:
#
# 1. Two things are wrong with 11.2 against 12.0. In which direction does each push the number? What would you
#    measure instead? *(1 point)*
# 2. What else may have happened in the second point, and which measurement would show it? *(1 point)*
# 3. What does the third point show? If people really prefer ours in 58 % of decided judgements, were 50 enough?
#    *(1 point)*
#
# <details><summary>Hint</summary>
# Sections 3 and 9 for the first, sections 6 and 9 for the second. For the third, compute
# scipy.stats.binomtest(29, 50), and how often such a test finds a preference of 58 %.
# </details>

# %% [markdown] exercise="13.8" role="written"
# ### BEGIN SOLUTION
# 1. With 1,000 samples the distance is too large by its floor: this works against "ours". The smallest of 40 noisy
#    numbers is too small on average, because the winner had luck, too: this works for "ours". Instead: 50,000 *new*
#    samples of the chosen checkpoint, with the judge, preprocessing and real examples of the published number, and
#    the scatter over seeds.
# 2. Guidance moves samples to the densest parts of the data. There nearly every sample lies in a ball, while other
#    parts are no longer drawn. Recall or coverage at both $w$ would show it. The weights did not change, so nothing
#    was learnt.
# 3. Nothing yet: among equals, 29 or a more uneven result has the probability 0.32. At 58 %, a two-sided test at 5 %
#    succeeds in 16 of 100 studies with 50 judgements, and in 82 with 325.
#
# *One point for each part. The first needs both directions and new samples at an equal number. The second needs a
# measure of variety. The third needs a test, and that 50 are too few.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 13. You have merged moments, computed the bias of a score, brought a score to 0 at the least
# cost, mended two measures, asked whether a distance is more than chance, limited false alarms, and taken the
# judges' habits out of their judgements. Look at samples, too: no number of this chapter does it for you.
