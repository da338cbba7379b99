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
# # 22 · Scaling out: exercises
#
# They belong to [chapter 22](../notebooks/22_scaling.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# No exercise needs more than one device. The devices are entries of an array's first axis, or turns of a loop. A
# *micro-batch* is one of the parts of a batch whose gradients are added up before the update.
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
from scipy.special import softmax

from diffusion_course.grading import check

# %% [markdown]
# ## 22.1
# *warm-up · 15 minutes*
#
# The gradient of a large batch comes from micro-batches. Micro-batch $i$ has $n_i$ examples, and $g_i$ is its gradient:
# the *mean* over these examples. The sizes differ. Some micro-batches are empty (a host ran out of data), and
# then all of $g_i$ is NaN. Find
#
# 1. the mean gradient $g$ over all examples of the batch;
# 2. how noisy gradients are. The gradient of one example has a covariance $\Sigma$, and examples are drawn
#    independently. The scatter $Q = \sum_i n_i\,|g_i - g|^2$ has a multiple of $\operatorname{tr}\Sigma$ as its
#    expectation. Return the multiple of $Q$ that is an unbiased estimate of $\operatorname{tr}\Sigma$.
#
# **Expected.** A tuple: the gradient `[P]`, and a number. At least two micro-batches have examples.
#
# <details><summary>Hint</summary>
# The mean of n examples has the covariance Σ/n. What is the expectation of n·|g_i − G|², if G is the true gradient?
# And how much of it does the freedom of g take away, when you put g in the place of G?
# </details>


# %% exercise="22.1" role="answer"
def accumulate(means, sizes):
    """means [M, P] and sizes [M] of micro-batches -> the batch's mean gradient [P], tr Σ."""
    ### BEGIN SOLUTION return a tuple: the gradient [P] and the estimate of the trace
    g_i, n = np.asarray(means)[sizes > 0], np.asarray(sizes)[sizes > 0]
    g = n @ g_i / n.sum()
    return g, n @ np.sum((g_i - g) ** 2, axis=1) / (len(n) - 1)
    ### END SOLUTION


# %% [markdown]
# So accumulation tells, for free, whether more devices would help. The ratio $\operatorname{tr}\Sigma/|G|^2$ is the
# *noise scale* of McCandlish et al. 2018 (arXiv:1812.06162). In a batch much larger than this, further examples hardly
# make the step better.

# %% [markdown]
# ## 22.2
# *implement · 25 minutes*
#
# $N$ devices stand in a ring. Each holds a row of `x`, and wants the sum of all rows. It cuts its row into $N$ chunks of
# equal size, chunk 0 first. If $N$ does not divide $P$, zeros are appended: as few as will do. Then come rounds:
#
# - In round 0, device $d$ sends its chunk $d$ to device $d + 1$. The last device sends to device 0.
# - In every later round, a device sends on the chunk that it received in the round before, as it now holds it.
# - In the first $N - 1$ rounds (*reduce-scatter*), who receives a chunk adds it to its own. In the next $N - 1$ rounds
#   (*all-gather*), it replaces its own.
#
# Return what the devices hold after `rounds` rounds, without the padding, and how many numbers each has sent, divided by
# $P$.
#
# **Expected.** An array `[N, P]`, and a number. `rounds` is between 0 and $2(N - 1)$, where all rows are the sum.
# $P$ may be less than $N$.
#
# <details><summary>Hint</summary>
# Which chunk does device d send in round r? All send at the same time. The padding travels, too.
# </details>


# %% exercise="22.2" role="answer"
def ring(x, rounds):
    """x [N, P], a whole number rounds -> what the devices hold [N, P], numbers sent over P."""
    ### BEGIN SOLUTION return a tuple: what the devices hold, [N, P], and what each has sent
    N, P = x.shape
    size = -(-P // N)
    held = np.pad(x, ((0, 0), (0, N * size - P))).reshape(N, N, size)
    to = np.roll(np.arange(N), -1)  # device d sends to to[d]
    chunk = np.arange(N)
    for r in range(rounds):
        sent = held[np.arange(N), chunk]
        if r < N - 1:
            sent = sent + held[to, chunk]
        held[to, chunk] = sent
        chunk = np.roll(chunk, 1)  # what a device has received is what it sends next
    return held.reshape(N, -1)[:, :P], rounds * size / P
    ### END SOLUTION


# %% [markdown]
# If $N$ divides $P$, each device sends $2(N-1)/N$ times its own numbers: less than twice, however many devices
# there are. (Padding adds to this.) FSDP uses the two halves at different times: it gathers weights before a layer,
# and scatters gradients behind it.

# %% [markdown]
# ## 22.3
# *debug this · 30 minutes*
#
# Attention in tensor parallel: each device has some of the heads. The fused matrix `qkv` has the columns of all
# queries first, head by head, then those of all keys, then those of all values. The rows of `out` are in the order
# of the heads. No device sees another one's heads. At the end, one all-reduce adds up what the devices found. Each
# turn of the loop below is a device. Run the cells: with one device the result is right, and with more it is not.


# %%
def broken_attention(x, qkv, out, bias, heads, N):
    B, L = x.shape[:2]
    y = 0.0
    for d in range(N):
        mine = np.split(qkv, N, axis=1)[d]  # this device's columns
        q, k, v = ((x @ w).reshape(B, L, heads // N, -1) for w in np.split(mine, 3, axis=1))
        width = q.shape[2] * q.shape[3] / heads
        score = np.einsum("bihc,bjhc->bhij", q, k) / np.sqrt(width)
        mixed = np.einsum("bhij,bjhc->bihc", softmax(score, axis=-1), v).reshape(B, L, -1)
        y = y + mixed @ np.split(out, N, axis=0)[d] + bias
    return y


# %%
rng = np.random.default_rng(0)
x, heads = rng.normal(size=(2, 5, 24)), 4
qkv, out = rng.normal(size=(24, 72)) / 5, rng.normal(size=(24, 24)) / 5
bias = rng.normal(size=24)
whole = broken_attention(x, qkv, out, bias, heads, 1)
for N in (1, 2, 4):
    apart = np.abs(broken_attention(x, qkv, out, bias, heads, N) - whole).max()
    print(f"N = {N}: the largest error is {apart:.2f}")
    assert (apart > 0.5) == (N > 1)

# %% [markdown]
# There are **three** bugs, and one device hides all of them. Write the function as it should be. Return also what
# each device gives to the all-reduce, its *part*. The bias belongs to no part.
#
# It should also work where $N$ does not divide the number of heads $H$. A device owns neighbouring heads, in the order
# of the devices. The first $H \bmod N$ devices own one head more than the others. If $H < N$, some have none, and their
# parts are 0.
#
# **Expected.** A tuple: the parts `[N, B, L, D]`, and the result `[B, L, D]`, which is that of one device.
#
# <details><summary>Hint</summary>
# Print which columns of qkv device 0 gets, out of two. Which width does the softmax's scale need? And what does
# the all-reduce do to something that every device adds?
# </details>


# %% exercise="22.3" role="answer"
def parallel_attention(x, qkv, out, bias, heads, N):
    """x [B, L, D], qkv [D, 3D], out [D, D], bias [D], heads H, N -> parts [N, B, L, D], [B, L, D]."""
    ### BEGIN SOLUTION return a tuple: the parts [N, B, L, D] and the result [B, L, D]
    B, L, D = x.shape
    columns = np.arange(D).reshape(heads, -1)  # of each head
    parts = np.zeros((N, B, L, D))
    for d, own in enumerate(np.array_split(columns, N)):
        for mine in own:  # what one head needs of the weights
            q, k, v = (x @ w[:, mine] for w in np.split(qkv, 3, axis=1))
            score = q @ k.swapaxes(1, 2) / np.sqrt(len(mine))
            parts[d] += softmax(score, axis=2) @ v @ out[mine]
    return parts, parts.sum(axis=0) + bias
    ### END SOLUTION


# %% [markdown]
# ## 22.4
# *implement · 30 minutes*
#
# Mixed precision in float16. The loss is multiplied by a `scale`, so that small gradients survive: backpropagation
# yields the float16 number nearest to `scale` times the gradient. In each step:
#
# - If an entry is infinite or NaN, the step *fails*. It is left out: parameters, average and the number of updates stay
#   as they are. The scale is halved, but never falls below `low`.
# - Otherwise the gradient $g$ is what float16 holds, divided by the scale in full precision. The step is an update:
#   $m \leftarrow \beta m + (1 - \beta) g$ from $m = 0$, and $\theta \leftarrow \theta - \text{lr}\cdot m/(1 - \beta^n)$
#   if it is the $n$th update.
# - After `every` good steps in a row the scale is doubled, but never rises above `high`. Then the count begins again,
#   as it does after a failed step.
#
# A new scale counts from the next step on. `grads` holds the exact gradients. All scales are powers of two.
#
# **Expected.** A tuple: the parameters after all steps, `[P]`, and $\log_2$ of the scale after each step, `[T]`.
#
# <details><summary>Hint</summary>
# np.float16 and jnp.float16 round, and overflow to infinity. Which of your variables may change in a failed step?
# </details>


# %% exercise="22.4" role="answer"
def scaled_run(params, grads, scale, every, low, high, lr, beta):
    """params [P], grads [T, P], scale, every, bounds low and high, lr, β -> [P], log₂ scales [T]."""
    ### BEGIN SOLUTION return a tuple: the parameters [P] and log2 of the scales [T]
    m, n, good, scales = 0.0, 0, 0, []
    for exact in grads:
        with np.errstate(over="ignore"):
            g = (scale * exact).astype(np.float16).astype(np.float64) / scale
        if np.all(np.isfinite(g)):
            n, good = n + 1, good + 1
            m = beta * m + (1 - beta) * g
            params = params - lr * m / (1 - beta**n)
            if good == every:
                scale, good = min(scale * 2, high), 0
        else:
            scale, good = max(scale / 2, low), 0
        scales.append(scale)
    return params, np.log2(scales)
    ### END SOLUTION


# %% [markdown]
# Bfloat16 has as many bits for the exponent as float32, so it needs no scale. It pays with three bits of the
# mantissa.

# %% [markdown]
# ## 22.5
# *implement · 20 minutes*
#
# A run is to go on with other machines, and yet see the same examples. So all hosts know the order of each epoch:
# `orders[e]` holds the numbers 0 to $n - 1$, shuffled. An epoch has as many steps as it has whole batches, and what is
# left at its end is dropped. Steps are counted from 0, through all epochs.
#
# The devices form a mesh $[R, C]$ with the axes `data` and `model`. `owner[r, c]` is the host of the device there. A
# batch is cut into $R$ blocks of equal size. All devices of row $r$ need block $r$. Which examples must this host load
# for this step?
#
# **Expected.** Whole numbers `[k]` in the order in which they stand in the batch, each once. A host's devices may be
# anywhere in the mesh, and a row may belong to several hosts. $R$ divides the batch. All hosts together load the whole
# batch, the same for every mesh.
#
# <details><summary>Hint</summary>
# First find the batch, without a look at the mesh. Then ask for each row: does this host need it?
# </details>


# %% exercise="22.5" role="answer"
def to_load(orders, owner, host, batch, step):
    """orders [E, n], owner [R, C], whole numbers host, batch, step -> the examples' numbers, [k]."""
    ### BEGIN SOLUTION return whole numbers, an array [k]
    epoch, place = divmod(step, orders.shape[1] // batch)
    chosen = np.asarray(orders)[epoch, place * batch :][:batch]
    needed = (np.asarray(owner) == host).any(axis=1)  # of the rows
    return chosen[np.repeat(needed, batch // len(needed))]
    ### END SOLUTION


# %% [markdown]
# ## 22.6
# *derive and check · 20 minutes*
#
# Training keeps five float32 numbers for each parameter: weight, average, Adam's two moments, and gradient. What
# must each of $N$ devices hold? Three schemes:
#
# 1. data parallel: every device holds everything;
# 2. as 1, but the average and the moments are split over the devices;
# 3. FSDP: all five are split.
#
# A tensor is split along one axis, whose size $N$ must divide. Where $N$ divides none, every device holds it whole.
# In all schemes, a layer computes with a bfloat16 copy of its whole weights. Meanwhile the next layer's copy is made. So
# at most two neighbouring layers have copies at once.
#
# Row $i$ of `shapes` is the shape of tensor $i$, filled up with ones from the left. It belongs to layer `layer[i]`;
# layers are numbered from 0, in order. A single layer is possible. Do not count activations.
#
# **Expected.** Three numbers: the most that a device holds at once, in kilobytes of 1000 bytes. $N \ge 2$.
#
# <details><summary>Hint</summary>
# A tensor (6, 10) has 60 numbers, and 4 divides 60. Can four devices share it?
# </details>


# %% exercise="22.6" role="answer"
def memory(shapes, layer, N):
    """shapes [K, A] and layer [K], whole numbers, and N -> kilobytes in each scheme, [3]."""
    ### BEGIN SOLUTION return three numbers, in an array or a tuple
    shapes, layer = np.asarray(shapes, float), np.asarray(layer)
    P = np.prod(shapes, axis=1)
    share = P / np.where(np.any(shapes % N == 0, axis=1), N, 1)
    copies = np.bincount(layer, weights=2 * P)
    most = np.max(copies + np.append(copies[1:], 0))
    split = np.array([0, 3, 5])  # of the five numbers
    return (4 * (5 - split) * P.sum() + 4 * split * share.sum() + most) / 1000
    ### END SOLUTION


# %% [markdown]
# The copies do not shrink with $N$. With few layers and many devices they become most of what a device holds in
# the third scheme.

# %% [markdown]
# ## 22.7
# *stretch · 40 minutes*
#
# How long does a training step with FSDP take at least? A layer multiplies its states $X$ $[b, D]$ by its weights
# $[D, F]$ and gets $Y$ $[b, F]$. Here $b$ is the number of tokens on *one* device: `tokens / N`.
#
# - A step has three products: forward, and backward for $X$ and for the weights. Each multiplies and adds $b\,D\,F$
#   times, and these are $2\,b\,D\,F$ operations, at `peak` per second.
# - Each product reads two of three matrices of the shapes $[b, D]$, $[D, F]$, $[b, F]$, and writes the third.
#   A number has `size` bytes, and the memory moves `bandwidth` bytes per second.
# - Each device keeps $1/N$ of the weights. It gathers the rest before the forward product, and once more before the
#   backward ones. Then the gradient of the weights is reduce-scattered, which moves as many bytes as one gathering does.
#   A device receives `link` bytes per second.
#
# Within a layer the three go on at the same time, so it takes the longest of them. The layers follow one another.

# %% [markdown]
# **Expected.** A tuple of
#
# 1. the times `[K, 3]` of computing, memory and link for each layer, in microseconds;
# 2. the share of `peak` that the step reaches;
# 3. for each layer, the fewest tokens per device (not rounded) at which neither of the others takes longer than
#    computing: `[K]`. It is infinite where no number is enough.
#
# <details><summary>Hint</summary>
# Only the time of computing and the states' part of the bytes grow with b. Compare how fast. A device receives
# N − 1 of the N shares.
# </details>


# %% exercise="22.7" role="answer"
def roofline(layers, tokens, N, size, peak, bandwidth, link):
    """layers [K, 2] = (D, F), six numbers -> times [K, 3], share of the peak, fewest tokens [K]."""
    ### BEGIN SOLUTION return a tuple: the times [K, 3], a number, and tokens [K]
    D, F = np.asarray(layers).T
    b = tokens / N
    compute = 6e6 * D * F / peak  # microseconds per token
    states = 3e6 * size * (D + F) / bandwidth  # and per token, too
    weights = 3e6 * size * D * F / bandwidth
    traffic = 3e6 * size * D * F * (1 - 1 / N) / link
    times = np.stack([compute * b, states * b + weights, traffic], axis=1)
    slower = np.where(compute > states, compute - states, 1.0)
    fewest = np.maximum(traffic / compute, np.where(compute > states, weights / slower, np.inf))
    return times, times[:, 0].sum() / times.max(axis=1).sum(), fewest
    ### END SOLUTION


# %% [markdown]
# Look at the link: the fewest tokens are $\text{size}\cdot\frac{N-1}{N}\cdot\frac{\text{peak}}{2\,\text{link}}$,
# whatever the widths are. So a fixed batch on more and more devices meets this bound at last.

# %% [markdown]
# ## 22.8
# *written · 20 minutes*
#
# A colleague moves a training run from one device to eight of the same kind, in one machine. The global batch stays
# the same. "It is only four times as fast, and `nvidia-smi` says that all devices are busy." So each step takes twice
# as long as it should.
#
# 1. Before you look for a cause: is 8 times the right expectation? Which measurement comes first, and which mistake in
#    it is the most common one in JAX?
# 2. Name three causes, in the order in which you would look at them. For each, say which measurement
#    tells it from the others.
# 3. Which change would you try for each of the three, and what could the change cost?
#
# About 50 words each. *(1 point each)*
#
# <details><summary>Hint</summary>
# JAX returns before the device has finished. What stays on one device, what must travel, and what gets small when the
# batch is shared by eight?
# </details>

# %% [markdown] exercise="22.8" role="written"
# ### BEGIN SOLUTION
# 1. Time whole steps without compilation, and with `block_until_ready`: JAX returns before the device has finished. A
#    roofline gives the expectation: with 1/8 of the batch each, and gradients to exchange, less than 8 times may be
#    right. "Busy" includes waiting in a collective.
# 2. First the input, which is cheap to test: train on one batch that lies on the devices. If this is fast, the
#    host is slow. Then the compiled program: its shardings, and its collectives' bytes against what the scheme needs.
#    Last the size: if a step hardly gets faster with a smaller batch, traffic, memory or launches bound it. A profile
#    shows which.
# 3. Prefetch, or more workers: host memory. State the shardings, and assert them: perhaps more memory. A
#    larger batch, or accumulation: another learning rate, and little gain beyond the noise scale.
#
# *One point for each. The first needs an honest timing and an expectation from a count; the second three causes and
# measurements that separate them; the third a change for each, with its price.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 22. You have added up micro-batches of any size, sent chunks around a ring, shared heads,
# let a scale find itself, told hosts what to load, counted bytes, and found the bound of a layer. Chapter 23 goes to
# larger pictures, and to pictures that move.
