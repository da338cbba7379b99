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
# # 25 · From notebook to product: exercises
#
# They belong to [chapter 25](../notebooks/25_product.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# They need only arrays: each is a small piece of what stands between a notebook and its users. A *layer* is a group
# of weights; a *key* is a secret pattern of signs; a *filter* refuses the pictures with a high score.
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
from scipy import stats

from diffusion_course.grading import check

# %% [markdown]
# ## 25.1
# *warm-up · 20 minutes*
#
# To multiply faster, a device rounds the inputs as well as the weights. The largest magnitude, divided by 127, is a
# *step*. Each row of `x` has a step $s$ of its own, and each column of `W` a step $r$. A code is the number divided
# by its step, rounded to the nearest whole number; halves go to the nearest even one. In a row or a column of zeros,
# all codes are 0, and so is the step. Find
#
# 1. the output: what the product of the codes says about $xW$. This product is exact, in whole numbers;
# 2. a bound of the output's error. A number $x_i$ is wrong by $s/2$ at most, and a weight $W_{ij}$ by $r/2$. Use the
#    triangle inequality on each product of the sum, with *all* its errors.
#
# **Expected.** A tuple of two arrays `[B, C]`. The codes lie between −127 and 127.
#
# <details><summary>Hint</summary>
# (x + u)(W + v) − xW has three terms. And what is the largest number that an array of type int8 can hold?
# </details>


# %% exercise="25.1" role="answer"
def int8_layer(x, W):
    """x [B, D], W [D, C] -> the output and the bound of its error, both [B, C]."""
    ### BEGIN SOLUTION return a tuple: the output and the bound, both [B, C]
    tall, wide = np.max(np.abs(x), axis=1), np.max(np.abs(W), axis=0)
    s, r = tall[:, None] / 127, wide / 127
    x_int = np.rint(x / np.where(s > 0, s, 1))
    W_int = np.rint(W / np.where(r > 0, r, 1))
    dot = x_int @ W_int
    D = len(W)
    u, v = np.tile(s / 2, (1, D)), np.tile(r / 2, (D, 1))  # the errors
    return dot * s * r, u @ np.abs(W) + np.abs(x) @ v + u @ v
    ### END SOLUTION


# %% [markdown]
# ## 25.2
# *implement · 25 minutes*
#
# Magnitude pruning: small weights become 0. All $N$ weights of a network stand in one list; `layer` says to which
# layer each belongs.
#
# - `kind="layer"`: of each layer with $n$ weights, $\lfloor \text{share}\cdot n\rfloor$ go.
# - `kind="global"`: of all weights together, $\lfloor \text{share}\cdot N\rfloor$ go.
# - `kind="relative"`: as `"global"`, but a weight is compared after division by its layer's root mean square.
#
# The smallest magnitudes go first, and of equal ones the first in the list. Each layer keeps at least one weight: if
# its last one is due, it stays, and the next weight of the other layers goes in its place. If only one weight is
# left in each layer, no more go.
#
# **Expected.** An array `[N]`: the weights, and 0 for those that went. A weight that was 0 before goes as any other
# does. No layer consists of zeros alone.
#
# <details><summary>Hint</summary>
# Put the weights in the order in which they are due. Does your sorting function keep the order of equal numbers?
# Then count twice: how many have gone, and how many are left in each layer.
# </details>


# %% exercise="25.2" role="answer"
def prune(w, layer, share, kind):
    """w [N], layer [N] with whole numbers from 0, share in [0, 1), a string -> the weights [N]."""
    ### BEGIN SOLUTION return the weights that are left, and zeros, an array [N]
    layer = np.asarray(layer)
    left = np.bincount(layer)
    size = np.abs(w)
    if kind == "relative":
        size = size / np.sqrt(np.bincount(layer, w**2) / left)[layer]
    due = np.floor(share * left) if kind == "layer" else np.array(left)
    total = np.floor(share * len(w))
    out = np.array(w)
    for i in np.argsort(size, kind="stable"):
        own = layer[i]
        if total > 0 and due[own] > 0 and left[own] > 1:
            out[i] = 0
            left[own] -= 1
            due[own] -= 1
            total -= 1
    return out
    ### END SOLUTION


# %% [markdown]
# ## 25.3
# *derive and check · 25 minutes*
#
# Several owners put watermarks into initial noise, each with a key of $d$ signs. Inversion finds the noise `z` of
# each picture, but its size is wrong by an unknown factor. So look at the direction only,
#
# $$r = \frac{\langle z, k\rangle}{|z|\,|k|}.$$
#
# Without a watermark, a picture's noise comes from $N(0, c^2 I)$ with any $c$: all directions are equally probable.
# The *score* of a key is $r$ if `sides` is 1. If `sides` is 2, somebody may have turned the sign of all of `z`, and
# the score is $|r|$. Return for each picture which key has the best score, and the natural logarithm of a p-value:
# the probability that noise gives a key at least this score, **exactly**, times the number of keys that were tried.
# A p-value is 1 at most.
#
# **Expected.** A tuple: the best keys `[B]`, and the logarithms `[B]`. They are above −650, so the p-value itself
# does not underflow; $1 - p$ would be 1.
#
# <details><summary>Hint</summary>
# For noise, r·√((d − 1)/(1 − r²)) has Student's t distribution with d − 1 degrees of freedom. Which methods of
# scipy.stats.t are about the upper tail?
# </details>


# %% exercise="25.3" role="answer"
def identify(z, keys, sides):
    """z [B, d], keys [K, d] of ±1, sides 1 or 2 -> best key [B], log of its p-value [B]."""
    ### BEGIN SOLUTION return a tuple: the best keys [B] and the logarithms [B]
    K, d = keys.shape
    r = z @ keys.T / np.linalg.norm(z, axis=1)[:, None] / np.sqrt(d)
    score = np.abs(r) if sides == 2 else r
    best = score.argmax(axis=1)
    r = score.max(axis=1)
    tail = stats.t.sf(r * np.sqrt((d - 1) / (1 - r**2)), d - 1)
    return best, np.log(np.minimum(1, sides * K * tail))
    ### END SOLUTION


# %% [markdown]
# With one key and one side, how large must a score be, so that noise reaches it in one picture of a hundred? And how
# large must the mean score of a watermark be, so that it is missed as rarely?

# %% [markdown]
# ## 25.4
# *debug this · 25 minutes*
#
# A drift alarm. `x` holds the classes of $N$ samples from the day of the release, and `y` those of $M$ samples from
# today. Their distance is $\sum_c (p_c - q_c)^2/m_c$, where $p_c$ and $q_c$ are the shares of class $c$ in the two,
# and $m_c$ is its share in all $N + M$ together. If nothing has changed, the samples might have come in any order.
# So they are put in $n$ random orders, the rows of `orders`. Each time, the first part is taken for `x`, and the
# rest for `y`.
#
# The p-value should be at most 0.05 in at most 5 % of the days on which nothing has changed. Run the cells.


# %%
def broken_alarm(x, y, orders):
    both, M = np.concatenate([x, y]), len(y)

    def distance(a, b):
        p, q, m = (np.array([np.mean(s == c) for c in np.unique(both)]) for s in (a, b, both))
        return np.sum((p - q) ** 2 / m)

    seen = distance(x, y)
    larger = [distance(both[order[:M]], both[order[M:]]) > seen + 1e-6 for order in orders]
    return np.mean(larger)


# %%
rng = np.random.default_rng(0)
alarms = {}
for N, M in ((12, 12), (24, 6)):
    days = []
    for _ in range(600):
        drawn = rng.choice(3, N + M, p=[0.5, 0.3, 0.2])  # nothing has changed
        orders = np.array([rng.permutation(N + M) for _ in range(20)])
        days.append(broken_alarm(drawn[:N], drawn[N:], orders) <= 0.05)
    alarms[N, M] = np.mean(days)
    print(f"N = {N}, M = {M}: an alarm on {100 * alarms[N, M]:.0f} % of the days")
# On 600 days, a rate of 5 % has a standard error of less than 1 %.
assert min(alarms.values()) > 0.08

# %% [markdown]
# There are **three** bugs. One of them has no effect if the two samples have the same size. Write the function as it
# should be.
#
# **Expected.** A number in $(0, 1]$: the p-value. Two distances that differ by less than $10^{-6}$ are equal.
#
# <details><summary>Hint</summary>
# If nothing has changed, the order in which the data came is one more random order. How often is its distance among
# the largest two of 21? How large is x in each order? And are equal distances evidence of a change?
# </details>


# %% exercise="25.4" role="answer"
def alarm(x, y, orders):
    """x [N], y [M] with whole numbers, orders [n, N + M] -> the p-value, a number."""
    ### BEGIN SOLUTION return the p-value, a number
    pool = np.concatenate([x, y])
    members = (pool[:, None] == np.unique(pool)).astype(float)  # [N + M, classes]
    rows = np.concatenate([np.arange(len(pool))[None], orders])  # the first is the real one
    p = members[rows[:, : len(x)]].mean(axis=1)
    q = members[rows[:, len(x) :]].mean(axis=1)
    far = np.sum((p - q) ** 2 / members.mean(axis=0), axis=1)
    return np.mean(far > far[0] - 1e-6)
    ### END SOLUTION


# %% [markdown]
# ## 25.5
# *derive and check · 25 minutes*
#
# A filter refuses the pictures whose score is at least a threshold. `good` and `bad` are the scores of pictures that
# should pass and of those that should not. Take the **lowest** threshold that refuses at most a share `rate` of the
# good ones. Find
#
# 1. the share of the good pictures that are refused;
# 2. the share of the bad pictures that are refused;
# 3. the second share, on average, if chance uses up the rest of the rate: each picture with the next lower score of a
#    good one is refused, too, with a probability that makes the first share equal to `rate`;
# 4. the share of good pictures among those that 1 and 2 refuse, if a share `base` of all is bad. It is 0 where
#    nothing is refused.
#
# **Expected.** An array of four numbers. At `rate = 1` the first three are 1, and the fourth is 1 − `base`.
#
# <details><summary>Hint</summary>
# Go down through all scores, those of bad pictures included. For 4, Bayes' rule.
# </details>


# %% exercise="25.5" role="answer"
def screen(good, bad, rate, base):
    """good [N], bad [M], numbers rate in [0, 1] and base in (0, 1) -> four shares, [4]."""
    ### BEGIN SOLUTION return four shares in an array
    too_low = [g for g in good if np.mean(good >= g) > rate]  # as thresholds
    edge = max(too_low, default=-np.inf)  # all that is above may be refused
    f, c = np.mean(good > edge), np.mean(bad > edge)
    lucky = 1.0
    if np.isfinite(edge):
        lucky = c + (rate - f) / np.mean(good == edge) * np.mean(bad == edge)
    flagged = (1 - base) * f + base * c
    return np.array([f, c, lucky, (1 - base) * f / flagged if flagged else 0.0])
    ### END SOLUTION


# %% [markdown]
# A filter that catches nine bad pictures of ten, and refuses one good picture of a hundred, sounds good. What does
# your fourth number say if one picture of a thousand is bad?

# %% [markdown]
# ## 25.6
# *stretch · 35 minutes*
#
# Requests come to a server at the times `arrivals`, which never fall. It answers them in order, one batch at a time.
# A batch of $b$ requests takes `service[b - 1]` seconds, and all answers come at its end. `service` has $B$ entries:
# no batch is larger. A batch starts as soon as the server is free **and** one of these is true:
#
# - $B$ requests are waiting;
# - the request that has waited longest has waited for `window` seconds since it came.
#
# It takes all that are waiting, but at most $B$. Who comes just when it starts is in it. The server does not know
# whether more requests will come. Find the latency of each request, from its arrival to its answer, and the
# percentile for the share $q$: the smallest latency that at least $q\cdot N$ of the requests do not exceed.
#
# **Expected.** A tuple: the latencies `[N]`, and one of them. $0 < q \le 1$.
#
# <details><summary>Hint</summary>
# For the first request not answered yet, three times matter: when the server is free, when the window ends, and when
# the request comes that fills the batch.
# </details>


# %% exercise="25.6" role="answer"
def serve(arrivals, service, window, q):
    """arrivals [N], service [B], numbers window ≥ 0 and q -> latencies [N], the percentile."""
    ### BEGIN SOLUTION return a tuple: the latencies [N] and the percentile
    N, B = len(arrivals), len(service)
    latency, free, first = [], -np.inf, 0
    while first < N:
        start = arrivals[first] + window
        if first + B <= N:
            start = min(start, arrivals[first + B - 1])
        start = max(start, free)
        last = min(first + B, np.searchsorted(arrivals, start, side="right"))
        free = start + service[last - first - 1]
        latency += [free - a for a in arrivals[first:last]]
        first = last
    enough = [t for t in latency if np.sum(latency <= t) >= q * N]
    return np.array(latency), min(enough)
    ### END SOLUTION


# %% [markdown]
# ## 25.7
# *written · 20 minutes*
#
# Three sentences from a release note:
#
# - "We rounded the weights to 8 bits. The Fréchet distance of 500 samples is 0.31, and it was 0.34 before. So
#   rounding costs no quality, and the model is four times as fast, since the file is a quarter of its size."
# - "Our detector of synthetic images is right in 99 % of the cases, on 10000 pictures that our own sampler has drawn
#   and 10000 photographs. So a picture that it calls synthetic is synthetic with 99 % certainty."
# - "Each hour we test for drift at the 1 % level. The alarm rang on Sunday, so the model has drifted. We have
#   retrained it, and the alarm has been silent since: the retraining worked."
#
# Each verdict does not follow. For each, say in about 50 words what is wrong, and which measurement would show it.
# *(1 point each)*
#
# <details><summary>Hint</summary>
# What does the distance say between two runs of the *same* model? What did exercise 25.5 call `base`? How many tests
# are there in a week?
# </details>

# %% [markdown] exercise="25.7" role="written"
# ### BEGIN SOLUTION
# 1. A distance of 500 samples scatters from seed to seed. Repeat both with several seeds, and state the scatter, or
#    compare the pictures of equal noises. A smaller file is no speed: to turn weights back into floats costs time.
#    Measure milliseconds, warm.
# 2. The rate belongs to its two samples. The share of true alarms needs the base rate: where few pictures are
#    synthetic, most alarms are false. No other sampler and no recompressed file was tried. Measure both error rates
#    on them.
# 3. A week has 168 tests: at 1 % one expects 1.7 alarms without any drift. After an alarm by chance, one expects
#    silence, with or without retraining. Divide the level by the number of tests, repeat the test on fresh data, and
#    run the old model beside the new one.
#
# *One point each. The first needs the scatter or a paired comparison, and a measured time; the second the base rate
# or other generators, with a measurement; the third the number of tests, and the old model or fresh data.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 25. You have multiplied in whole numbers, pruned without losing a layer, found whose
# watermark a picture carries, mended an alarm, set a filter's threshold, and measured how long the slowest users
# wait. Chapter 26 is yours: a frozen network, a few evaluations, and every method of this course.
