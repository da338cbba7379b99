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
# # 16 · Diffusion transformers: exercises
#
# They belong to [chapter 16](../notebooks/16_transformers.ipynb). Write each function where it says
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
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_course.grading import check

# %% [markdown]
# ## 16.1
# *warm-up · 10 minutes*
#
# The chapter cuts images into squares. Here a patch has the height $p$ and the width $q$. Each token holds the
# pixels of one patch, row by row, and the channels of a pixel stand together. The tokens run along the rows
# of patches. Put the image together again.
#
# **Expected.** Images `[B, H, W, C]`.
#
# <details><summary>Hint</summary>
# Give each of the five numbers (row of patches, column of patches, row and column inside a patch, channel) an
# axis of its own. Then bring the two rows side by side, and the two columns.
# </details>


# %% exercise="16.1" role="answer"
def image_of(tokens, H, W, p, q):
    """tokens [B, N, p·q·C], whole numbers H, W, p and q -> images [B, H, W, C]."""
    ### BEGIN SOLUTION return images [B, H, W, C]
    B, _, size = tokens.shape
    pixels = jnp.reshape(tokens, (B, H // p, W // q, p, q, size // (p * q)))
    return jnp.swapaxes(pixels, 2, 3).reshape(B, H, W, -1)
    ### END SOLUTION


# %% [markdown]
# ## 16.2
# *derive and check · 20 minutes*
#
# Rotary positions turn a query and a key, each by the angles of its own place. Their product depends on the
# difference of the two places alone. So nothing needs to be turned: write the product as a function of the
# difference.
#
# `q` and `k` have $d$ channels. Channel $i$ and channel $d/2 + i$ form pair $i$, with $i = 0, \dots, d/2 - 1$.
# The angle of pair $i$ at the place (row, column) is
#
# - $\text{row} \cdot \text{base}^{-i/(d/4)}$ for the first $d/4$ pairs,
# - $\text{column} \cdot \text{base}^{-(i - d/4)/(d/4)}$ for the others.
#
# The pair $(a, b)$ is turned into $(a\cos\theta - b\sin\theta,\; a\sin\theta + b\cos\theta)$. A move is the place
# of the key minus the place of the query: rows down, columns to the right.
#
# **Expected.** For each move the product of the turned query and the turned key, divided by $\sqrt d$: `[M]`.
#
# <details><summary>Hint</summary>
# Leave the query as it is, and turn the key by the angles of the move. For one pair, sort the result by its
# cosine and its sine. As complex numbers: the real part of conj(q)·k·e^(iθ).
# </details>


# %% exercise="16.2" role="answer"
def rotary_scores(q, k, moves, base):
    """q and k [d], moves [M, 2] (rows, columns), the number base -> scores [M]."""
    ### BEGIN SOLUTION return the scores, an array [M]
    d = q.shape[0]
    frequencies = base ** (-jnp.arange(d // 4) / (d // 4))
    angles = (moves[:, :, None] * frequencies).reshape(-1, d // 2)
    a, b = jnp.split(q, 2)
    e, f = jnp.split(k, 2)
    pairs = jnp.cos(angles) * (a * e + b * f) + jnp.sin(angles) * (b * e - a * f)
    return pairs.sum(axis=1) / jnp.sqrt(d)
    ### END SOLUTION


# %% [markdown]
# ## 16.3
# *derive and check · 15 minutes*
#
# In a block with adaLN-Zero, the attention's output `branch` is added as $x + g \cdot \text{branch}$. The gate
# $g = \mathrm{SiLU}(\text{emb})\,K + c$ is the same for all tokens of an image, and $\mathrm{SiLU}(u) = u/(1 + e^{-u})$.
# At the start $K = 0$ and $c = 0$, so the block is the identity, and nothing inside the branch has a gradient.
# The gate itself has one. Derive it.
#
# `cotangent` is the derivative of the loss by each number of the block's output. The loss is a sum over the
# batch.
#
# **Expected.** The derivatives of the loss by $K$ and, as one more row at the end, by $c$: `[E + 1, C]`.
#
# <details><summary>Hint</summary>
# First the derivative by g, [B, C]: which tokens does one gate act on? Then the chain rule through a dense
# layer.
# </details>


# %% exercise="16.3" role="answer"
def gate_gradient(emb, branch, cotangent):
    """emb [B, E], branch and cotangent [B, N, C] -> derivatives [E + 1, C], the bias's last."""
    ### BEGIN SOLUTION return the derivatives, an array [E + 1, C]
    by_gate = jnp.einsum("bnc,bnc->bc", branch, cotangent)
    read = jnp.append(jax.nn.silu(emb), jnp.ones((emb.shape[0], 1)), axis=1)
    return read.T @ by_gate
    ### END SOLUTION


# %% [markdown]
# ## 16.4
# *derive and check · 15 minutes*
#
# Patches attend to the image, and then, by a second softmax, to a caption. Two results are known:
# `o_x`, the weighted mean of the image's values, and `o_c`, that of the caption's. For each query there is also
# the logarithm of the softmax's denominator, $s = \log\sum_j e^{\ell_j}$, once over the image's keys (`s_x`) and
# once over the caption's (`s_c`). Make from these four what **joint** attention gives: one softmax over all keys.
#
# Logits may be large, and the two $s$ far apart, in both directions: $e^{s}$ may be infinite in float32, and so may
# $e^{s_c - s_x}$. A caption of nothing but padding has
# $s = -\infty$, and its `o_c` may hold anything finite.
#
# **Expected.** An array of `o_x`'s shape.
#
# <details><summary>Hint</summary>
# What must the weighted means be multiplied with to give the two halves of the joint sum? Only the difference
# of the two s counts.
# </details>


# %% exercise="16.4" role="answer"
def merge(o_x, s_x, o_c, s_c):
    """o_x and o_c [B, N, d], s_x and s_c [B, N] -> the joint result, [B, N, d]."""
    ### BEGIN SOLUTION return the joint result, an array of o_x's shape
    share = 1 / (1 + jnp.exp(s_x - s_c))[..., None]  # of the context: e^s_c / (e^s_x + e^s_c)
    return (1 - share) * o_x + share * o_c
    ### END SOLUTION


# %% [markdown]
# ## 16.5
# *debug this · 20 minutes*
#
# The joint attention of two streams. `image` holds queries, keys and values of the patches, and `context` those
# of the tokens of a caption. `counts` says which of these tokens are real. The others fill up short captions, and
# no result may depend on their keys and values. Run the cell: it does.

# %%


def broken_attention(image, context, counts, heads):
    q, k, v = jnp.concatenate([image, context], axis=2)
    B, N, C = q.shape
    q, k, v = (part.reshape(B, heads, N, C // heads) for part in (q, k, v))
    mask = jnp.concatenate([jnp.ones(image.shape[1:3]), counts], axis=1)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k) / jnp.sqrt(C // heads)
    weights = jax.nn.softmax(logits * mask[:, None, None], axis=-1)
    return jnp.einsum("bhqk,bhkd->bqhd", weights, v).reshape(B, N, C)


# %%
drawn = jax.random.normal(jax.random.key(0), (3, 2, 9, 6))  # 5 patches and 4 tokens
counts = jnp.array([[True, True, False, False], [True, True, True, False]])
other = drawn.at[:, :, -1].add(5.0)  # the last token is padding in both captions
with_one, with_other = (
    broken_attention(part[:, :, :5], part[:, :, 5:], counts, heads=2) for part in (drawn, other)
)
change = jnp.abs(with_one - with_other)[:, :5].max()
print(f"another padding changes what the patches get by up to {change:.2f}")
assert change > 0.1

# %% [markdown]
# There are **two** bugs. The second one hides where there is only one head. Write the function as it should be.
#
# **Expected.** The results of the patches, then those of the context's tokens: `[B, N + L, C]`. A padding token
# keeps its query: its result is like that of the others.
#
# <details><summary>Hint</summary>
# What is the weight of a key with the logit 0? And which numbers of a token belong to head 0: print the result
# of the reshape for jnp.arange.
# </details>


# %% exercise="16.5" role="answer"
def joint_attention(image, context, counts, heads):
    """image [3, B, N, C], context [3, B, L, C], counts [B, L] booleans, heads -> [B, N + L, C]."""
    ### BEGIN SOLUTION return the results, an array [B, N + L, C]
    both = jnp.concatenate([image, context], axis=2)
    _, B, tokens, C = both.shape
    q, k, v = both.reshape(3, B, tokens, heads, C // heads)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(C // heads)
    padding = jnp.pad(~counts, ((0, 0), (image.shape[2], 0)))  # no patch is padding
    logits = jnp.where(padding[:, None, None], -jnp.inf, logits)
    weights = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, tokens, C)
    ### END SOLUTION


# %% [markdown]
# ## 16.6
# *implement · 20 minutes*
#
# What does it cost to tell a transformer the time and the label? Count for the `depth` blocks alone, for one
# image of $N$ patches, with the width $w$. Every dense layer has a bias. A block has layers for queries, keys and values
# ($w \to 3w$), behind the attention ($w \to w$), and the dense network ($w \to 4w \to w$). The norms learn nothing.
# Besides these there is, for `told` =
#
# - `"adaln-zero"`: in each block a layer $w \to 6w$, applied once for an image;
# - `"adaln-single"`: one such layer for all blocks together, applied once, and in each block a table of $6w$
#   numbers, which is added;
# - `"in-context"`: nothing but $L$ more tokens, which are treated like the patches;
# - `"cross-attention"`: in each block a second attention, from the patches to $L$ tokens, with layers for
#   queries ($w \to w$), for keys and values ($w \to 2w$), and behind it ($w \to w$).

# %% [markdown]
# Count the multiply-adds of the matrix products: $n \cdot k \cdot m$ for the product of $[n, k]$ and $[k, m]$. Do not
# forget the two products inside an attention.
#
# A device does `rate` multiply-adds in a second, if nothing else takes time.
#
# **Expected.** An array of three numbers: parameters, multiply-adds for one image, and images in a second.
#
# <details><summary>Hint</summary>
# Start with what all four have: parameters 12w² and some biases, and multiply-adds 12w² for each token and
# 2w for each pair of tokens. The heads share the channels, so their number does not matter. (Section 8; there a
# multiply-add is two operations.)
# </details>


# %% exercise="16.6" role="answer"
def costs(told, N, L, w, depth, rate):
    """told, a string; numbers N, L, w, depth and rate -> [parameters, multiply-adds, images]."""
    ### BEGIN SOLUTION return three numbers in an array
    tokens = N + L if told == "in-context" else N
    numbers = depth * (12 * w**2 + 9 * w)
    work = depth * (12 * tokens * w**2 + 2 * tokens**2 * w)
    modulations = {"adaln-zero": depth, "adaln-single": 1}.get(told, 0)
    numbers += modulations * (6 * w**2 + 6 * w)
    work += modulations * 6 * w**2
    if told == "adaln-single":
        numbers += depth * 6 * w
    if told == "cross-attention":
        numbers += depth * (4 * w**2 + 4 * w)
        work += depth * (2 * (N + L) * w**2 + 2 * N * L * w)
    return np.array([numbers, work, rate / work])
    ### END SOLUTION


# %% [markdown]
# ## 16.7
# *stretch · 35 minutes*
#
# In the chapter, all that is said about a patch passes through a bottleneck, and $\varepsilon$ does not fit. Now
# build a way around it: $\hat y = M x_t + c\,x_t$. The rank of $M$ is at most $r$, and the number $c$ is given.
#
# As before, $x_0 = A z$, where $A$ is $[D, d]$ with $d < D$ and independent columns, and $z \sim \mathcal N(0, I)$.
# The state is $x_t = \alpha x_0 + \sigma\varepsilon$, and the target is $y = a\,x_0 + b\,\varepsilon$. Find the smallest
# error $\mathbb E\,\lVert y - \hat y\rVert^2$ over all such $M$. The norm is a sum over the $D$ numbers.
#
# **Expected.** One number. With $c = 1/\sigma$, $r = d$ units are enough for $\varepsilon$. Why?
#
# <details><summary>Hint</summary>
# The singular vectors of A turn the problem into D problems with one number each. For D − d of them the data
# have no variance, but the noise has. In one direction, which factor of the state is best, and what does it cost
# to use c instead? A unit of the bottleneck buys the right factor in one direction.
# </details>


# %% exercise="16.7" role="answer"
def around(A, alpha, sigma, a, b, c, r):
    """A [D, d], numbers alpha, sigma, a, b and c, a whole number r -> the smallest error."""
    ### BEGIN SOLUTION return the smallest error, a number
    data, noise = A @ A.T, np.eye(A.shape[0])
    of_state = alpha**2 * data + sigma**2 * noise
    rest = (a - c * alpha) ** 2 * data + (b - c * sigma) ** 2 * noise  # of the target, less c x_t
    shared = (a - c * alpha) * alpha * data + (b - c * sigma) * sigma * noise
    # With the state whitened by its Cholesky factor, the best M of rank r is a truncated SVD.
    root = np.linalg.cholesky(of_state)
    explained = np.linalg.svd(np.linalg.solve(root, shared), compute_uv=False) ** 2
    return np.trace(rest) - explained[:r].sum()
    ### END SOLUTION


# %% [markdown]
# ## 16.8
# *written · 15 minutes*
#
# Three sentences from a report: "In a block with adaLN-Zero a third of the parameters belong to the modulation.
# With adaLN-single they are gone, so the network is a third faster. We also replaced the zeros at which the gates
# start by random numbers, since with zeros the attention's weights have no gradient and can never learn."
#
# In about 120 words:
#
# 1. The first sentence is right for large widths. What is wrong with the second? Give the share of the
#    multiply-adds for 256 patches. *(1 point)*
# 2. What is wrong with the third sentence, and which test would find a parameter that really never learns?
#    *(1 point)*
#
# <details><summary>Hint</summary>
# Exercise 16.6 for the first, exercise 16.3 for the second.
# </details>

# %% [markdown] exercise="16.8" role="written"
# ### BEGIN SOLUTION
# 1. A block has $12w^2$ parameters without the modulation and $18w^2$ with it: a third. But the modulation is
#    computed once for an image, and the rest once for each patch. Of the multiply-adds it is
#    $6w^2/(12Nw^2 + 2N^2w + 6w^2)$, at most $1/(2N + 1)$: for $N = 256$ below 0.2 %. What is saved is memory.
# 2. Weights behind a closed gate have no gradient *at the first step*. The gate itself has one (in a network whose
#    last layer is zero too, from the second step on), it opens, and then they have theirs. Random gates only give up
#    the start as the identity. The test: train
#    for a few steps, and then look for parameters, in each block, whose gradient is still exactly 0.
#
# *One point for each part. The first needs "once for an image" and a share of at most 0.3 %. The second needs
# that a closed gate gets a gradient, and a test after a few steps.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 16. You have put patches together, scored places without turning anything, opened a
# gate, merged two attentions into one, mended a third, counted what a transformer costs, and built a way around
# a bottleneck. Chapter 17 draws straight lines from noise to data.
