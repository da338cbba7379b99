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
# # 15 · Text, ControlNet, LoRA: exercises
#
# They belong to [chapter 15](../notebooks/15_text.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Captions are rows of whole numbers, one for each word. Short captions are filled up at their end with the
# padding's number. A scale of 1 is always plain conditioning, and 0 is none.
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
# ## 15.1
# *warm-up · 15 minutes*
#
# A model is told $K$ conditions, one after the other: first a picture to edit, then an instruction, and so on.
# $D_k$ is its estimate when it is told the first $k$ of them, so that $D_0$ is the unconditional one. For each
# condition there may be a negative prompt. $N_k$ is the estimate when it is told the first $k-1$ conditions,
# and the negative prompt in the place of condition $k$. We guide with
#
# $$D = D_0 + \sum_{k=1}^{K}\bigl[w_k\,(D_k - D_{k-1}) - v_k\,(N_k - D_{k-1})\bigr].$$
#
# With $K = 2$ and $v = 0$ this is the two-scale rule of InstructPix2Pix. The result is a weighted sum of
# $2K + 1$ evaluations. Give the weights, in the order $D_0, \dots, D_K, N_1, \dots, N_K$.
#
# **Expected.** An array `[2K + 1]`, whose sum is 1 for all scales. An evaluation whose weight is 0 need not be
# made: look for the scales at which one is enough.
#
# <details><summary>Hint</summary>
# In how many of the differences does D_k stand? Write K = 2 out on paper first.
# </details>


# %% exercise="15.1" role="answer"
def chain_weights(w, v):
    """Scales w [K] and v [K] -> the weight of each evaluation, [2K + 1]."""
    ### BEGIN SOLUTION return the weights, an array [2K + 1]
    begun = np.append(w - v, 0.0)  # the differences that begin at D_0 … D_K
    ended = np.append(1.0, w)  # D_0 itself, and the differences that end at D_1 … D_K
    return np.concatenate([ended - begun, -v])
    ### END SOLUTION


# %% [markdown]
# ## 15.2
# *implement · 25 minutes*
#
# In a batch some captions say the same, perhaps in other words. Such twins have equal `ids`. The library leaves
# them out of the contrastive loss. Another way is to count them as right: the target of image $i$ is $1/n_i$ for
# each of the $n_i$ captions of the batch that say the same as its own, itself included, and 0 for the others. The loss
# is the cross-entropy with this target, $-\sum_j \text{target}_{ij}\log p_{ij}$. Here $p_{i\cdot}$ is the softmax of a row
# of logits, and a logit is `scale` times a cosine. Take the mean over the images. Do the same for the columns, where
# captions choose images. The loss is the average of the two. The scale may be 100, as in CLIP: $e^{100}$ is too large
# for 32 bits, and a probability may be as small as $10^{-20}$.

# %% [markdown]
# This loss does not fall to 0, however good the model is. Find the least value that *any* logits can approach
# with these ids. And show on paper: if twins have the same vector, too, the loss is the plain one, in which only the
# diagonal is right. So the plain loss has the same least value.
#
# **Expected.** An array of two numbers: the loss, and the least value. If all captions differ, the least value
# is 0.
#
# <details><summary>Hint</summary>
# A cross-entropy is the target's own entropy and a divergence that is never negative. What is the
# entropy of a fair choice among n?
# </details>


# %% exercise="15.2" role="answer"
def contrastive(images, captions, ids, scale):
    """images and captions [B, D] of any lengths, whole numbers ids [B], a number -> two numbers."""
    ### BEGIN SOLUTION return the loss and its least value, an array of two numbers
    images = images / jnp.linalg.norm(images, axis=1, keepdims=True)
    captions = captions / jnp.linalg.norm(captions, axis=1, keepdims=True)
    logits = scale * images @ captions.T
    same = ids[:, None] == ids
    n = same.sum(axis=1)
    target = same / n  # symmetric, since twins have the same n
    log_p = jax.nn.log_softmax(logits, axis=1) + jax.nn.log_softmax(logits, axis=0)
    loss = -jnp.sum(target * log_p, axis=1).mean() / 2
    return jnp.array([loss, jnp.log(n).mean()])
    ### END SOLUTION


# %% [markdown]
# ## 15.3
# *derive and check · 25 minutes*
#
# "A layer whose weights are 0 cannot learn." Here is a ControlNet that is small enough for paper. The base gives
# `base`, and it is frozen. The copy reads `x` and the control `c`, and is joined to the base by two layers:
#
# $$u = x + c\,Z_\text{in}, \qquad h = \tanh(u\,E), \qquad y = \text{base} + h\,Z_\text{out}.$$
#
# The loss is $\tfrac12\lVert y - \text{target}\rVert^2$, averaged over the examples (the rows). Make `steps` steps of
# gradient descent with the learning rate `rate`. All three matrices are trained, and each step's gradients all
# belong to the old matrices. Derive the gradients on paper; then you may check them with `jax.grad`.
#
# Before you run it, predict three things for $Z_\text{in} = Z_\text{out} = 0$. Which matrices move in the first step? Which
# in the second? And what happens if the copy reads the control alone, with `x = 0`?
#
# **Expected.** A tuple: `Z_in`, `E` and `Z_out` after the steps, each of the shape that it had.
#
# <details><summary>Hint</summary>
# Write the gradient of Z_out first: it needs only h and the error. Then go backwards through Z_out, tanh, E
# and the sum. A gradient is 0 if one factor of it is.
# </details>


# %% exercise="15.3" role="answer"
def first_steps(x, c, base, target, Z_in, E, Z_out, rate, steps):
    """x [B, n], c [B, k], base and target [B, p], Z_in [k, n], E [n, m], Z_out [m, p] -> the three."""
    ### BEGIN SOLUTION return Z_in, E and Z_out, a tuple of three arrays
    for _ in range(steps):
        u = x + c @ Z_in
        h = jnp.tanh(u @ E)
        to_y = (base + h @ Z_out - target) / x.shape[0]
        to_a = (to_y @ Z_out.T) * (1 - h**2)  # before the tanh
        Z_in = Z_in - rate * c.T @ (to_a @ E.T)
        E = E - rate * u.T @ to_a
        Z_out = Z_out - rate * h.T @ to_y
    return Z_in, E, Z_out
    ### END SOLUTION


# %% [markdown]
# ## 15.4
# *derive and check · 20 minutes*
#
# Two adapters of one kernel are in use at once, one for a shape and one for a style. Their ranks differ, and
# each has a scale: the kernel changes by
#
# $$\Delta = s_1\,\frac{\alpha}{r_1}\,A\,B + s_2\,\frac{\alpha}{r_2}\,C\,D.$$
#
# Somebody wants *one* adapter of rank `rank` in their place, whose change is as near to $\Delta$ as possible: the
# sum of squared differences is the least. Give its change, and the share of $\Delta$'s squared length that it
# keeps.
#
# Before you check: from which `rank` on is nothing lost? And why is $(A + C)(B + D)$, where the ranks allow it,
# another change than $AB + CD$?
#
# **Expected.** A tuple: the change, `[n, m]`, and the share, a number in $(0, 1]$.
#
# <details><summary>Hint</summary>
# Eckart and Young: of all matrices of rank r, the nearest one has the r largest singular values, with their
# vectors. The squared length of a matrix is the sum of its squared singular values.
# </details>


# %% exercise="15.4" role="answer"
def one_adapter(A, B, C, D, scales, alpha, rank):
    """A [n, r1], B [r1, m], C [n, r2], D [r2, m], scales [2], numbers -> [n, m] and a number."""
    ### BEGIN SOLUTION return the change and the share that is kept, a tuple
    change = scales[0] / A.shape[1] * (A @ B) + scales[1] / C.shape[1] * (C @ D)
    left, lengths, right = np.linalg.svd(alpha * change, full_matrices=False)
    best = left[:, :rank] @ (lengths[:rank, None] * right[:rank])
    return best, (lengths[:rank] ** 2).sum() / (lengths**2).sum()
    ### END SOLUTION


# %% [markdown]
# ## 15.5
# *debug this · 25 minutes*
#
# The pixels `x` read captions by cross-attention with one head, and guidance follows. Row $n$ of `table` is the
# vector of word $n$, and serves as its key and as its value. After the $V$ words come two more rows. Row $V$ is that of
# a *first token*, which stands before every caption and always counts. Row $V + 1$ is that of the padding, which
# stands at the end of short captions and never counts. The model was trained with null captions, too: rows of
# nothing but padding. Run the cells.


# %%
def broken_reading(x, captions, table, w):
    first, padding = len(table) - 2, len(table) - 1
    tokens = np.concatenate([np.full((len(captions), 1), first), captions], axis=1)
    context = table[tokens]
    logits = x @ context.swapaxes(1, 2) / np.sqrt(x.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    words = (captions != padding).sum(-1)
    counts = np.arange(tokens.shape[1]) < words[:, None]
    told = (weights * counts[:, None]) @ context
    untold = np.zeros_like(told)
    return untold + w * (told - untold)


# %%
rng = np.random.default_rng(3)
pixels, vectors = rng.normal(size=(1, 50, 6)), rng.normal(size=(10, 6))  # 8 words; padding is 9


def change(other):
    a, b = (broken_reading(pixels, np.array([c]), vectors, 1.0) for c in ([0, 4, 2, 9], other))
    return np.sqrt(np.mean((a - b) ** 2))


print(f"another first word changes the result by {change([7, 4, 2, 9]):.2f}")
print(f"another last word changes the result by  {change([0, 4, 7, 9]):.2f}")
print(f"more padding changes the result by       {change([0, 4, 2, 9, 9, 9]):.2f}")
assert change([0, 4, 7, 9]) < 0.5 * change([7, 4, 2, 9])
assert change([0, 4, 2, 9, 9, 9]) > 0.05  # it should be 0, but for rounding

# %% [markdown]
# A model that hardly hears the last word cannot tell "at the top left" from "at the top right", and the
# amount of padding should not matter at all. There are **three** bugs. These two symptoms lead to two of them.
# The third can be seen only with guidance. Write the function as it should be.
#
# **Expected.** An array `[B, N, D]`, finite also for a caption without words: there, guidance changes nothing.
#
# <details><summary>Hint</summary>
# What do the weights of a row add up to? How many tokens count in a caption of three words? What does the
# trained model read where it is told nothing?
# </details>


# %% exercise="15.5" role="answer"
def guided_reading(x, captions, table, w):
    """x [B, N, D], whole numbers captions [B, L], table [V + 2, D], the number w -> [B, N, D]."""
    ### BEGIN SOLUTION return what the pixels read, guided: an array [B, N, D]
    V = len(table) - 2  # the number of the first token; V + 1 is the padding's

    def read(words):
        tokens = np.pad(words, ((0, 0), (1, 0)), constant_values=V)
        rows = table[tokens]
        logits = x @ rows.swapaxes(1, 2) / np.sqrt(x.shape[2])
        logits = jnp.where((tokens <= V)[:, None], logits, -jnp.inf)
        return jax.nn.softmax(logits, axis=2) @ rows

    untold = read(np.full_like(captions, V + 1))
    return untold + w * (read(captions) - untold)
    ### END SOLUTION


# %% [markdown]
# ## 15.6
# *derive and check · 25 minutes*
#
# Two conditions are independent given the *picture* $x_0$. Are they independent given the *noisy* picture? Let us
# measure it where everything is known. The data are $N$ points, all equally likely before anything is said.
# `log_likelihoods` holds $\log p(c_k \mid \text{point } n)$. The noisy state is $x_t = \alpha x_0 + \sigma\varepsilon$, and an exact
# denoiser is a mean of the points, weighted by their probabilities given $x_t$ and what is said.
#
# 1. *Composed.* Denoise without a condition, and with each condition alone. Then take
#    $D_0 + \sum_k w_k\,(D_k - D_0)$.
# 2. *Exact.* Denoise the data whose points count in proportion to $\prod_k p(c_k \mid \text{point})^{w_k}$.
#
# **Expected.** A tuple of two arrays `[B, D]`: composed and exact. They agree for one condition with the scale
# 1, and nearly so where there is little noise. Look at the gap for two scales of 1 as $\sigma$ grows.
#
# <details><summary>Hint</summary>
# Write one inner function from log-weights of the points to the estimate. Each of the estimates calls it
# once. Subtract the largest logit before you take exp.
# </details>


# %% exercise="15.6" role="answer"
def both_ways(x, points, log_likelihoods, scales, alpha, sigma):
    """x [B, D], points [N, D], log_likelihoods [K, N], scales [K], two numbers -> two of [B, D]."""
    ### BEGIN SOLUTION return the composed and the exact estimate, a tuple of two arrays [B, D]
    square = jnp.sum((x[:, None] - alpha * points) ** 2, axis=-1)  # [B, N]

    def denoise(log_weights):
        return jax.nn.softmax(log_weights - square / (2 * sigma**2), axis=1) @ points

    D_0 = denoise(0.0)
    composed = D_0
    for k in range(len(scales)):
        composed = composed + scales[k] * (denoise(log_likelihoods[k]) - D_0)
    return composed, denoise(scales @ log_likelihoods)
    ### END SOLUTION


# %% [markdown]
# ## 15.7
# *stretch · 40 minutes*
#
# Prompt-to-prompt (Hertz et al. 2022, arXiv:2208.01626) edits a picture by its caption. The maps of attention
# decide *where* things are, so the edited picture takes them from the original. Here is all of it, with one layer as
# the denoiser: pixels `x` `[N, d]` read words, whose rows of `keys` and `values` `[V, d]` are given. The maps are the softmax
# over the words of $x \cdot \text{key}/\sqrt d$, and $\hat x_0$ is the maps times the values.
#
# Both runs start from `x`, one told the `source` words and the other the `target` words, and take DDIM steps,
# $x_{i+1} = \frac{\sigma_{i+1}}{\sigma_i}x_i + (\alpha_{i+1} - \alpha_i\frac{\sigma_{i+1}}{\sigma_i})\,\hat x_0$.

# %% [markdown]
# In a step, the target's maps are made so:
#
# 1. take its own maps, of its own state;
# 2. in the first `kept` steps, put the source's map (of *its* state in this step) in the place of the map of word $j$, if
#    `places[j]` is not $-1$: it says at which place of the source the map stands;
# 3. in every step, multiply the map of word $j$ by `factors[j]`. As in the paper, nothing is divided by the sum
#    again.
#
# **Expected.** A tuple: the source's last state and the target's, each `[N, d]`. For equal captions, and
# factors of 1, they are the same picture.
#
# <details><summary>Hint</summary>
# Both states move in one loop. Compute both maps first, then the new columns, then both steps. Which
# words' values does an exchanged map multiply?
# </details>


# %% exercise="15.7" role="answer"
def edited(x, keys, values, source, target, places, factors, kept, alpha, sigma):
    """x [N, d], keys and values [V, d], source [L], target, places and factors [M] -> two of [N, d].

    Whole numbers: source, target, places (−1 for a new word) and kept; alpha and sigma [S + 1].
    """

    ### BEGIN SOLUTION return the two last states, a tuple of two arrays [N, d]
    def maps(state, words):
        return jax.nn.softmax(state @ keys[words].T / np.sqrt(x.shape[1]), axis=1)

    one, other = x, x
    for i in range(len(alpha) - 1):
        first, second = maps(one, source), maps(other, target)
        if i < kept:
            second = jnp.where(places >= 0, first[:, places], second)
        ratio = sigma[i + 1] / sigma[i]
        step = alpha[i + 1] - alpha[i] * ratio
        one = ratio * one + step * first @ values[source]
        other = ratio * other + step * (second * factors) @ values[target]
    return one, other
    ### END SOLUTION


# %% [markdown]
# ## 15.8
# *written · 15 minutes*
#
# A report says: "All 1,000 test captions were drawn anew, and our judge finds all four attributes right in
# 92 % of the pictures. The model has understood how words combine. With $w = 8$ the contrastive score is higher than
# with $w = 2$, so we ship $w = 8$."
#
# In about 150 words:
#
# 1. Name two measurements without which the first two sentences cannot be believed, and say what each would
#    show. *(1 point)*
# 2. How can the score rise while pictures get worse? What would you measure beside it? *(1 point)*
#
# <details><summary>Hint</summary>
# There are fewer different captions than pictures. And a score is a network, too.
# </details>

# %% [markdown] exercise="15.8" role="written"
# ### BEGIN SOLUTION
# 1. First, the same number for combinations that training left out (a large red star, where stars and large red
#    things were seen, but never together). There are only $6\cdot 8\cdot 2\cdot 9 = 864$ captions, so that almost every caption
#    that is drawn "anew" was seen in training: 92 % may be memory. Second, the judge's own accuracy, on real unseen
#    pictures *of those combinations too*: a judge that errs, or that never saw a combination, limits what the number says.
#    (Also good: how surely: $\sqrt{.92\cdot .08/1000} = .9$ %.)
# 2. The score is a network's opinion. Guidance pushes towards what the caption makes typical, and the score
#    likes exaggeration. It does not ask whether the picture is one that the data could hold, nor whether all
#    pictures of a caption look alike. Beside it: the judge's exact answer at each $w$, and the Fréchet distance or the
#    spread within a caption.
#
# *One point for each part. The first needs two of: held-out combinations, the judge's own accuracy, the standard
# error. The second needs a reason, and a measure that does not ask the same network.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 15. You have counted what guidance asks for, taught two towers with repeated captions,
# set zero layers in motion, folded two adapters into one, and made a model read its last word. You have also seen
# where composed conditions are not exact, and changed a word without changing the rest of the picture.
#
# Did your predictions in 15.3 hold? In the first step only $Z_\text{out}$ moves, and in the second all three do. With
# $x = 0$ nothing ever moves: $h$ is 0 as long as $Z_\text{in}$ is, and $Z_\text{in}$ has no gradient as long as $Z_\text{out}$ is 0.
# So it matters that the copy reads the noisy picture as well.
