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
# # 14 · Latent diffusion: exercises
#
# They belong to [chapter 14](../notebooks/14_latent_diffusion.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# Images are `[B, H, W, C]`, and grids of latents `[B, h, w, c]`. $\alpha$ and $\sigma$ multiply signal and noise, and the
# log-SNR is $2\log(\alpha/\sigma)$. A bit is $\log 2$ nats.
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
import jax.numpy as jnp
import numpy as np
from scipy.special import rel_entr

from diffusion_course.grading import check

# %% [markdown]
# ## 14.1
# *warm-up · 15 minutes*
#
# A large noisy picture is $x_t = \alpha\,x_0 + \sigma\,\varepsilon$. A filter makes a small picture of it: each block of
# $f \times g$ pixels becomes one pixel, the sum of `weights` times the block's pixels. The weights have any sum
# $S > 0$, and some may be negative. Divide the small picture by $S$, so that a flat block keeps its value.
#
# The small picture is noisy, too, but it has another share of noise. At which time $t'$ does a small picture with
# independent noise have the same $\alpha/\sigma$? Two clocks are in use: `"flow"` has $\alpha = 1 - t$ and $\sigma = t$,
# and `"cosine"` has $\alpha = \cos(\pi t/2)$ and $\sigma = \sin(\pi t/2)$.
#
# **Expected.** An array `[N]` of times. The times 0 and 1 stay what they are.
#
# <details><summary>Hint</summary>
# What is the standard deviation of a weighted sum of independent normal numbers? Then α/σ is multiplied by a number a.
# On the cosine clock σ/α is a tangent, which is infinite at t = 1: np.arctan2(σ, α) needs no division.
# </details>


# %% exercise="14.1" role="answer"
def smaller(t, weights, clock):
    """t [N], weights [f, g], clock "flow" or "cosine" -> times of the small pictures, [N]."""
    ### BEGIN SOLUTION return the times, an array [N]
    gain = weights.sum() / np.sqrt((weights**2).sum())  # of alpha over sigma
    if clock == "flow":
        return t / (t + gain * (1 - t))
    angle = np.arctan2(np.sin(np.pi / 2 * t), gain * np.cos(np.pi / 2 * t))
    return angle / (np.pi / 2)
    ### END SOLUTION


# %% [markdown]
# Where neighbours have nearly the same value, a large picture is a small one whose pixels are repeated. There, a
# schedule that is right on a grid of $8 \times 8$ destroys too little on a grid of $64 \times 64$, and its times must
# be moved the other way: that is section 12.

# %% [markdown]
# ## 14.2
# *implement · 20 minutes*
#
# The chapter measures shift and scale on latents that fit into memory. Now the data set does not fit: there are $N$
# batches, and only a few numbers of each are left. The batch $i$ had `counts[i]` images. For each of the $c$ channels,
# and over all images and places of the batch, it is known of the encoder's distributions
#
# - the mean of their means, `means`, and the standard deviation of their means, `stds`;
# - the mean of their variances, `variances`.
#
# The diffusion model is trained on latents that are *drawn* from these distributions. Find the shift and the scale that
# give all drawn latents the mean 0 and the standard deviation 1 in each channel.
#
# **Expected.** Two arrays `[c]`: shift and scale, to be used as $(z - \text{shift})\cdot\text{scale}$. Divide by the
# number of latents, not by one less.
#
# <details><summary>Hint</summary>
# The law of total variance, twice: a latent varies within its distribution, the means vary within a batch, and
# the batches vary. In float32, E[z²] − E[z]² loses its digits when a channel is far from 0.
# </details>


# %% exercise="14.2" role="answer"
def latent_scale(counts, means, stds, variances):
    """counts [N], means, stds and variances [N, c] -> shift [c] and scale [c]."""
    ### BEGIN SOLUTION return shift and scale, two arrays [c]
    share = counts / counts.sum()
    shift = share @ means
    variance = share @ (variances + stds**2 + (means - shift) ** 2)
    return shift, variance**-0.5
    ### END SOLUTION


# %% [markdown]
# ## 14.3
# *derive and check · 25 minutes*
#
# An encoder gives each of $N$ images a distribution of grids of $L$ numbers: at place $l$, image $n$ has the number
# $k$ with probability `q[n, l, k]`, independently of its other places. Images are equally probable. The rate is the
# mean of $KL(q(z \mid x_n)\,\|\,\prod_l p(z_l))$ over the images, where each place has the same `prior`. It is the sum
# of three parts:
#
# 1. the mutual information of image and grid;
# 2. $KL(q(z)\,\|\,\prod_l q(z_l))$, with the distribution $q(z)$ of the grids of all images: what the places know of
#    each other;
# 3. $\sum_l KL(q(z_l)\,\|\,p)$: how far the places are from the prior.
#
# A model that learns the distribution of the latents can remove the second and third part, and never the first
# (Hoffman & Johnson 2016; Chen et al. 2018, arXiv:1802.04942).
#
# **Expected.** An array of the three parts in bits. For $L = 1$ the second part is 0. Some `q` may be 0.
#
# <details><summary>Hint</summary>
# List all K^L grids, with the probability of each for each image: outer products, place after place. Is
# the mean of a product the product of the means? SciPy's rel_entr knows 0·log 0.
# </details>


# %% exercise="14.3" role="answer"
def parts_of_the_rate(q, prior):
    """q [N, L, K], positive prior [K] -> information, dependence and misfit in bits, [3]."""
    ### BEGIN SOLUTION return the three parts, an array [3]
    grids, alone = np.ones((len(q), 1)), np.ones(1)
    for place in range(q.shape[1]):
        grids = (grids[:, :, None] * q[:, place, None]).reshape(len(q), -1)
        alone = np.outer(alone, q[:, place].mean(0)).ravel()
    together = grids.mean(0)
    known = rel_entr(grids, together).sum(1).mean()
    parts = [known, rel_entr(together, alone).sum(), rel_entr(q.mean(0), prior).sum()]
    return np.array(parts) / np.log(2)
    ### END SOLUTION


# %% [markdown]
# ## 14.4
# *derive and check · 30 minutes*
#
# In some VQ-VAEs only directions count (Yu et al. 2022, arXiv:2110.04627). Each vector of the encoder is divided by its
# length, $\hat z = z/\|z\|$, and each code, too: $\hat e_k = e_k/\|e_k\|$. The vector takes the nearest
# $\hat e_k$. The decoder gets it straight through: its value is $\hat e_k$, and its gradient goes to $\hat z$ as if
# nothing had been rounded. The whole loss is
#
# $$\mathcal L = \mathcal L_\text{decoder} + \operatorname{mean}\bigl[(\operatorname{sg}[\hat z] - \hat e_k)^2\bigr]
# + \gamma\,\operatorname{mean}\bigl[(\hat z - \operatorname{sg}[\hat e_k])^2\bigr],$$
#
# where sg stops the gradient, $\gamma$ is `commitment`, and a mean is over all numbers of the batch. `g` is the
# derivative of $\mathcal L_\text{decoder}$ by what the decoder gets. Find the derivatives of $\mathcal L$ by $z$ and by the
# codebook.
#
# **Expected.** Two arrays, of the shapes of `z` and of `codebook`. A code that no vector takes has the derivative 0.
#
# <details><summary>Hint</summary>
# First the derivatives by the unit vectors. Then the way through a division by the length: only what is perpendicular
# to z has an effect, and the longer z is, the less it turns. In JAX you may also let jax.grad do this, if you write
# the loss with the right jax.lax.stop_gradient.
# </details>


# %% exercise="14.4" role="answer"
def gradients(z, codebook, g, commitment):
    """z [B, n, D], codebook [K, D], g [B, n, D], a number -> dL/dz and dL/dcodebook."""
    ### BEGIN SOLUTION return two arrays, of the shapes of z and of codebook
    z, codebook, g = np.asarray(z), np.asarray(codebook), np.asarray(g)

    def through(vector, at_unit):  # from the derivative by vector/length to that by vector
        length = np.sqrt((vector**2).sum(-1, keepdims=True))
        unit = vector / length
        return (at_unit - unit * (unit * at_unit).sum(-1, keepdims=True)) / length

    unit = z / np.sqrt((z**2).sum(-1, keepdims=True))
    codes = codebook / np.sqrt((codebook**2).sum(-1, keepdims=True))
    taken = np.eye(len(codes))[(unit @ codes.T).argmax(-1)]  # one-hot, [B, n, K]
    pull = 2 / z.size * (unit - taken @ codes)
    dz = through(z, g + commitment * pull)
    return dz, through(codebook, -np.einsum("bnk,bnd->kd", taken, pull))
    ### END SOLUTION


# %% [markdown]
# ## 14.5
# *implement · 25 minutes*
#
# A codebook can also be trained without a gradient (van den Oord et al. 2017, appendix A.1): each code follows the mean
# of its vectors. For each code two running averages are kept: $n$, of the number of vectors that take it in a batch, and
# $m$, of their sum. The code itself is $m/n$. After each batch,
#
# 1. each vector takes its nearest code;
# 2. $n \leftarrow d\,n + (1 - d)\cdot\text{count}$ and $m \leftarrow d\,m + (1 - d)\cdot\text{sum}$, with $d$ = `decay`;
# 3. codes with the new $n <$ `least` are dead. The vectors of the batch that were furthest from the code that they took
#    in 1 take their place: the first dead code (in the order of the codebook) gets the furthest vector, the second
#    one the second furthest, and so on. They start with $n = 1$, and with $m$ equal to the vector.
#
# **Expected.** Three arrays: the new codebook `[K, D]`, the new `n` and the new `m`.
#
# <details><summary>Hint</summary>
# A one-hot matrix [N, K] gives counts by a sum, and sums of vectors by a matrix product. np.argsort of the negative
# distances puts the furthest first.
# </details>


# %% exercise="14.5" role="answer"
def follow(z, n, m, decay, least):
    """z [N, D], n [K], m [K, D], numbers decay and least -> codebook [K, D], n [K] and m [K, D]."""
    ### BEGIN SOLUTION return the codebook, n and m, three arrays
    z, n, m = np.asarray(z), np.asarray(n), np.asarray(m)
    distance = ((z[:, None] - m / n[:, None]) ** 2).sum(-1)
    taken = np.eye(len(n))[distance.argmin(1)]
    n = decay * n + (1 - decay) * taken.sum(0)
    m = decay * m + (1 - decay) * taken.T @ z
    dead = n < least
    m[dead] = z[np.argsort(-distance.min(1))[: dead.sum()]]
    n[dead] = 1
    return m / n[:, None], n, m
    ### END SOLUTION


# %% [markdown]
# ## 14.6
# *debug this · 25 minutes*
#
# Inpainting (chapter 08) in a latent space. The pixels with `known` = 1 are given, and the others are to be filled in.
# To keep it simple, the encoder is a mean over each block of pixels, and the decoder repeats a latent over its block.
# Shift and scale are those of the chapter, one number for each channel. In each step of DDIM, the latents of
# blocks that are known as a whole are replaced by those of the picture, with as much noise as the new state has.
# In the end the known pixels are put back.
#
# A program was written and looked fine in a first test. Run the cells. Here every latent of the data is standard normal
# after shift and scale, so the filled-in pixels should have the mean 3 and the standard deviation 0.5. The pixels
# of the hole are 0 in `x`.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_inpaint(denoise, x, known, start, noises, alpha, sigma, shift, scale):
    (B, h, w, _), (H, W) = start.shape, x.shape[1:3]
    blocks = (B, h, H // h, w, W // w, -1)
    latent = (x.reshape(blocks).mean(axis=(2, 4)) - shift) * scale
    inside = known.reshape(blocks).max(axis=(2, 4))
    z, path = start, []
    for n, noise in enumerate(noises):
        x0 = denoise(z, alpha[n], sigma[n])
        eps = (z - alpha[n] * x0) / sigma[n]
        z = alpha[n + 1] * x0 + sigma[n + 1] * eps
        z = jnp.where(inside, alpha[n] * latent + sigma[n] * noise, z)
        path.append(z)
    y = (z + shift) / scale
    y = y.repeat(H // h, axis=1).repeat(W // w, axis=2)
    return jnp.stack(path), jnp.where(known[..., None], x, y)


# %%
rng, angle = np.random.default_rng(0), np.linspace(np.pi / 2 - 0.01, 0, 61)
pictures = rng.normal(3.0, 0.5, (200, 4, 4, 1)).repeat(2, axis=1).repeat(2, axis=2)
known = np.arange(8) < 4  # the left half: two blocks of 2 x 2 pixels side by side
known = np.broadcast_to(known, (200, 8, 8)).astype(int)
start, noises = rng.normal(size=(200, 4, 4, 1)), rng.normal(size=(60, 200, 4, 4, 1))
_, filled = broken_inpaint(
    GaussianDenoiser(0.0, 1.0), pictures * known[..., None], known,
    start, noises, np.cos(angle), np.append(np.sin(angle[:-1]), 0.0), 3.0, 2.0,
)  # fmt: skip
hole = np.asarray(filled)[known == 0]
print(f"mean {hole.mean():.2f} for 3, standard deviation {hole.std():.2f} for 0.50")
assert abs(hole.mean() - 3) > 0.5  # 1600 latents of std 0.5: the standard error is 0.0125

# %% [markdown]
# There are **three** bugs. One of them has no effect when the shift is 0. The second one has none when the hole is made of
# whole blocks, as here. The third one changes the known latents, which the denoiser of a real model sees beside those of
# the hole. It does not show in the pictures here, because this denoiser looks at one latent at a time. The denoisers of
# the check need whole grids: they look at all latents of a picture. Write the function as it should be.
#
# **Expected.** Two arrays: the latents after each step, `[N, B, h, w, C]`, and the pictures, `[B, H, W, C]`.
#
# <details><summary>Hint</summary>
# Decode a latent that you have just encoded. Then take a block with one unknown pixel: what does its mean hold? And what
# are the levels of signal and noise of the state that a step leads to?
# </details>


# %% exercise="14.6" role="answer"
def inpaint(denoise, x, known, start, noises, alpha, sigma, shift, scale):
    """x [B, H, W, C], known [B, H, W] of 0 and 1, start [B, h, w, C] at the first level,
    noises [N, B, h, w, C], alpha and sigma [N + 1], shift and scale [C] -> states, pictures."""
    ### BEGIN SOLUTION return the states of the latents and the pictures
    x, known, z = map(np.asarray, (x, known, start))
    (B, h, w, C), states = z.shape, []
    f, g = x.shape[1] // h, x.shape[2] // w
    latent = scale * (x.reshape(B, h, f, w, g, C).mean((2, 4)) - shift)
    whole = known.reshape(B, h, f, w, g, 1).min((2, 4))
    for i, fresh in enumerate(noises):
        ratio = sigma[i + 1] / sigma[i]
        guess = denoise(z, alpha[i], sigma[i])
        moved = ratio * z + (alpha[i + 1] - ratio * alpha[i]) * guess
        z = np.where(whole, alpha[i + 1] * latent + sigma[i + 1] * fresh, moved)
        states.append(z)
    decoded = (z / scale + shift).repeat(f, axis=1).repeat(g, axis=2)
    return np.array(states), np.where(known[..., None], x, decoded)
    ### END SOLUTION


# %% [markdown]
# ## 14.7
# *stretch · 40 minutes*
#
# How good can a VAE be? The data are normal, $x \sim N(0, C)$ with $D$ values. Encoder means and decoder are linear,
# and the latents' noise is independent. Training minimises the chapter's loss, distortion $+\,\beta \cdot KL/D$: the
# distortion is the mean squared error of a value, and KL is in nats. Training finds the minimum, and its KL is
# `rate` bits. Find
#
# 1. the distortion, with drawn latents;
# 2. the $\beta$ that was used;
# 3. the matrix $A$ of the reconstructions from the *mean* latents, $\hat x = A\,x$.
#
# **Expected.** Two numbers and a symmetric array `[D, D]`. `C` may have axes without any variance.
#
# <details><summary>Hint</summary>
# Turn to the axes of C: each has a variance λ, and a latent of its own or none. The best latent that leaves the error
# d ≤ λ costs ½·log(λ/d) nats: its posterior has the variance d/λ, its mean the variance 1 − d/λ, and the decoder
# multiplies it by √(λ − d). Minimise d + β·½·log(λ/d) over d in (0, λ]: which d do
# all axes have that are used, and which axes are not used?
# </details>


# %% exercise="14.7" role="answer"
def best_code(C, rate):
    """C [D, D], the number rate > 0 in bits -> distortion, beta and the matrix A [D, D]."""
    ### BEGIN SOLUTION return two numbers and an array [D, D]
    lam, axes = np.linalg.eigh(C)
    lam, axes = lam[::-1], axes[:, ::-1]  # the largest variance first
    for used in range(1, len(lam) + 1):
        level = np.exp(np.log(lam[:used]).mean()) * 4 ** (-rate / used)
        if used == len(lam) or lam[used] <= level:
            break
    error = np.minimum(lam, level)
    keep = 1 - level / np.maximum(lam, level)
    return error.mean(), 2 * level, (axes * keep) @ axes.T
    ### END SOLUTION


# %% [markdown]
# This is *reverse water-filling* (Cover & Thomas 2006, *Elements of Information Theory*, section 10.3): the distortion that you
# found is the least that *any* code with this rate can have for such data. An axis below the water, $\lambda \le \beta/2$, gets
# no latent at all. That is posterior collapse, and here it is the optimum.

# %% [markdown]
# ## 14.8
# *written · 15 minutes*
#
# From a report: "We trained our own VAE, and a diffusion model in its latents. As everybody does, we multiplied the
# latents by 0.18215. Samples from the usual schedule are washed out, so diffusion does not suit our data. It is cheap,
# though: a latent has 48 times fewer numbers than an image, so training is 48 times cheaper than in pixels."
#
# In about 150 words:
#
# 1. The latents of this VAE have the standard deviation 1 before they are multiplied. What does the constant do to the
#    log-SNR at each time, and to a loss that predicts the latents? Which two measurements should the authors have
#    made before they blamed diffusion? *(1 point)*
# 2. Name two things that "48 times cheaper" leaves out. How would you compare fairly? *(1 point)*
#
# <details><summary>Hint</summary>
# What is the variance of the signal that the schedule sees? And what do images look like that were encoded and decoded,
# with no diffusion between?
# </details>

# %% [markdown] exercise="14.8" role="written"
# ### BEGIN SOLUTION
# 1. The signal's variance is $0.18215^2 = 0.033$ in place of 1, so the log-SNR is lower by $-2\log 0.18215 = 3.4$ nats at
#    every time. The noise hides the latents much earlier,
#    and a loss of predicted latents is at most 0.033, so it looks excellent. To measure: mean and standard
#    deviation of the latents on data, and the reconstructions of real images: what the autoencoder has lost, no
#    sampler can bring back.
# 2. The cost is that of the network, which is chosen for the grid: it is not proportional to the numbers of an image. The
#    autoencoder was trained, too, all images were encoded, and each sample is decoded. Fair: total operations (or
#    seconds on one machine), with and without the autoencoder's training, at the same measured quality, with $w$,
#    steps and the number of samples stated.
#
# *One point for each part. The first needs the direction of the shift with its size (or $2\log$ of the constant), and both
# the latents' standard deviation and the reconstructions. The second needs two costs and a comparison at equal
# quality.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 14. You have moved a schedule to another resolution, measured a latent space that does not fit into
# memory, split a rate into what a prior can and cannot save, passed gradients by a rounding, kept a codebook alive,
# mended a pipeline, and found the best code of normal data. Chapter 15 tells the model what to draw, in words.
