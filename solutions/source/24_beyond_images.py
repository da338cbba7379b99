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
# # 24 · 3-D, sound, molecules: exercises
#
# They belong to [chapter 24](../notebooks/24_beyond_images.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# A state is $x_t = \alpha\,x_0 + \sigma\,\varepsilon$, and a signal-to-noise ratio (SNR) is a ratio of variances.
# Logarithms are natural ones.
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
from scipy.special import i0e, i1e, logsumexp, softmax

from diffusion_course.grading import check

# %% [markdown]
# ## 24.1
# *warm-up · 15 minutes*
#
# In a scene, $K$ objects share the same space, such as smoke and fog, and behind them is the sky. The eye looks along
# $R$ rays. A ray has $S$ pieces, the first one at the eye. In piece $s$ of ray $r$ the object $k$ has the density
# `density[k, r, s]`, and the piece has the length `lengths[s]`. On a short way $d\ell$ through the densities
# $\tau_1, \dots, \tau_K$, a ray is stopped with the probability $(\tau_1 + \dots + \tau_K)\,d\ell$.
#
# Each object has one colour. So the colour of a ray is a weighted mean of $K$ colours and that of the sky. Find
# the weights.
#
# **Expected.** An array `[R, K + 1]`, whose rows add up to 1. The sky comes last. Some pieces hold nothing, and some
# let no light through.
#
# <details><summary>Hint</summary>
# First take all objects together: with which probability is the ray stopped in a piece? Then divide it: which object
# has stopped the ray? The chance is proportional to the density. And 0/0 is no number.
# </details>


# %% exercise="24.1" role="answer"
def shares(density, lengths):
    """density [K, R, S] of K objects, lengths [S] -> each one's share of the light, [R, K + 1]."""
    ### BEGIN SOLUTION return the shares, an array [R, K + 1]
    total = density.sum(0)
    passed = np.cumprod(np.exp(-total * lengths), axis=1)  # behind each piece
    stopped = -np.diff(passed, axis=1, prepend=1)
    of_each = np.sum(density / np.where(total > 0, total, 1) * stopped, axis=2)
    return np.vstack([of_each, passed[:, -1]]).T
    ### END SOLUTION


# %% [markdown]
# ## 24.2
# *implement · 25 minutes*
#
# A scene has $M$ cells with the densities `theta`. It is seen from $V$ sides. In the picture of side $v$, the pixel $d$
# sees the cell $m$ along a length of `views[v, d, m]`, and shows how much light is stopped:
# $x_v = 1 - \exp(-\text{views}_v\,\theta)$. Each picture gets its own noise, at its own level:
# $x_t = \alpha_v x_v + \sigma_v\varepsilon_v$. The function `denoise(x_t, alpha, sigma)` guesses the picture, pixel by
# pixel (levels of shape `[V, 1]` go with pictures `[V, D]`), and so it tells the noise, $\hat\varepsilon$. The loss is
#
# $$\mathcal L(\theta) = \frac1V\sum_v \frac{w_v}2\,\|\hat\varepsilon_v - \varepsilon_v\|^2.$$
#
# - `kind="whole"`: its gradient by $\theta$.
# - `kind="distilled"`: the same, but the network's Jacobian $\partial\hat\varepsilon/\partial x_t$ is replaced by the
#   identity. All other factors of the chain rule stay.
#
# **Expected.** An array `[M]`. The distilled gradient needs no derivative of `denoise`. Do not expect
# $\alpha_v^2 + \sigma_v^2 = 1$.
#
# <details><summary>Hint</summary>
# jax.grad of the loss is the whole gradient. For the distilled one, jax.grad works, too: of an inner product
# with something that jax.lax.stop_gradient holds constant. What exactly must be constant? The noise that is told
# depends on x_t in two ways.
# </details>


# %% exercise="24.2" role="answer"
def distil(theta, views, denoise, eps, alpha, sigma, weight, kind):
    """theta [M], views [V, D, M], denoise, eps [V, D], alpha, sigma and weight [V], kind -> [M]."""
    ### BEGIN SOLUTION return the gradient, an array [M]
    a, s = alpha[:, None], sigma[:, None]

    def loss(theta):
        x_t = a * (1 - jnp.exp(-views @ theta)) + s * eps
        error = (x_t - a * denoise(x_t, a, s)) / s - eps
        pushed = jax.lax.stop_gradient(error) * x_t
        each = pushed if kind == "distilled" else error**2 / 2
        return jnp.mean(weight * each.sum(-1))

    return jax.grad(loss)(jnp.asarray(theta))
    ### END SOLUTION


# %% [markdown]
# The distilled gradient is not the gradient of $\mathcal L$. For an exact denoiser, its mean over $\varepsilon$ is the
# gradient of $\sigma_v w_v\,KL(q(x_t \mid x_v)\,\|\,p_t)$, averaged over the views: the noised picture against the
# noised data (Poole et al. 2022, arXiv:2209.14988).

# %% [markdown]
# ## 24.3
# *implement · 25 minutes*
#
# A sound is a row of $T$ real numbers, and $X_f$ are its coefficients, `np.fft.rfft(x0)`. The data are Gaussian, with
# independent coefficients of mean 0 and $\mathbb E|X_f|^2 = T\cdot\text{power}_f$. The noise `eps` is white: its
# power is 1 at every frequency. Each frequency is noised by itself, with $\alpha_f^2 + \sigma_f^2 = 1$:
#
# - `kind="one"`: all have the same level, with $\log(\alpha^2/\sigma^2)$ = `log_snr`.
# - `kind="own"`: each has its own, so that the SNR *of the sound*, $\alpha_f^2\,\text{power}_f/\sigma_f^2$, has the
#   logarithm `log_snr` at each frequency.
#
# Some frequencies may be silent: their power is 0, in `x0`, too. With `"own"`, they get no noise.
#
# **Expected.** A tuple: the noised sounds `[B, T]`; the best guess of `x0`, $\mathbb E[x_0 \mid x_t]$, `[B, T]`; and
# the nats that a noised sound tells about its `x0` (their mutual information), one number.
#
# <details><summary>Hint</summary>
# One real Gaussian number with noise tells ½·log(1 + SNR) nats. How many real numbers is a coefficient? A real sound
# has T numbers in all, whether T is even or odd. irfft has to be told T.
# </details>


# %% exercise="24.3" role="answer"
def paced(x0, eps, power, log_snr, kind):
    """x0 and eps [B, T], power [T // 2 + 1], a number, kind "one" or "own" -> x_t, guess, nats."""
    ### BEGIN SOLUTION return a tuple: x_t [B, T], the guess [B, T] and a number
    T, odds = x0.shape[1], np.exp(log_snr)
    part = power if kind == "own" else np.ones(len(power))
    noise = part / (odds + part)  # its variance; the signal's is 1 - noise times the power
    signal = (1 - noise) * power
    x_t = np.sqrt(1 - noise) * np.fft.rfft(x0) + np.sqrt(noise) * np.fft.rfft(eps)
    silent = power == 0
    gain = np.sqrt(1 - noise) * power / (signal + noise + silent)
    numbers = np.where(np.arange(len(power)) * 2 % T == 0, 1, 2)
    nats = numbers / 2 @ np.log1p(signal / (noise + silent))
    return np.fft.irfft(x_t, T), np.fft.irfft(gain * x_t, T), nats
    ### END SOLUTION


# %% [markdown]
# In most sounds the power falls with the frequency. With one level, the SNR falls with it, and low frequencies are
# known long before high ones. With levels of their own, all frequencies become known at the same time.

# %% [markdown]
# ## 24.4
# *debug this · 25 minutes*
#
# A step of an equivariant network (Satorras et al. 2021, arXiv:2102.09844, eq. 3–6). An atom $i$ has a position $x_i$
# and features $h_i$, and the cloud has $n$ atoms. They send messages, move, and change their features:
#
# $$m_{ij} = \tanh\big([h_i, h_j, \|x_i - x_j\|^2]\,W_\text{into}\big),\qquad
# \Delta x_i = \frac1{n-1}\sum_{j\ne i}(x_i - x_j)\,(m_{ij}\cdot w_\text{out}),\qquad
# h_i' = h_i + \sum_{j\ne i}m_{ij}\,W_\text{mix}.$$
#
# A batch holds clouds of different sizes. The places where `mask` is False are empty, and what stands there means
# nothing. The function returns $\Delta x$ and $h'$. Run the cells.


# %%
def broken_step(x, h, mask, into, out, mix):
    apart = x[:, :, None] - x[:, None]  # [B, N, N, d]
    near = np.abs(apart).sum(-1, keepdims=True)
    wide = (*apart.shape[:3], h.shape[-1])
    pairs = [np.broadcast_to(a, wide) for a in (h[:, :, None], h[:, None])]
    m = np.tanh(np.concatenate([*pairs, near], axis=-1) @ into)
    m = m * ~np.eye(x.shape[1], dtype=bool)[..., None]
    moved = np.sum(x[:, None] * (m @ out)[..., None], axis=2) / (x.shape[1] - 1)
    real = mask[..., None]
    return moved * real, (h + m.sum(2) @ mix) * real


# %%
rng = np.random.default_rng(0)
mask = np.arange(5) < np.array([[5], [3]])
x, h = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 2))
weights = rng.normal(size=(5, 4)), rng.normal(size=4), rng.normal(size=(4, 2))
turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]  # a rotation, perhaps with a reflection


def errors(step):
    """How much the moves differ from what the symmetry wants: shifted, turned, other fillings."""
    moved, _ = step(x, h, mask, *weights)
    filled = np.where(mask[..., None], x, 7.0)
    pairs = {
        "shift": (step(x + 1.5, h, mask, *weights)[0], moved),
        "turn": (step(x @ turn, h, mask, *weights)[0], moved @ turn),
        "empty places": (step(filled, h, mask, *weights)[0], moved),
    }
    return {name: np.abs(a - b).max() / np.abs(moved).max() for name, (a, b) in pairs.items()}


found = errors(broken_step)
print(", ".join(f"{name}: {error:.2f}" for name, error in found.items()))
# An equivariant step has rounding errors here, below 1e-12 in float64.
assert min(found.values()) > 0.05

# %% [markdown]
# There are **three** bugs; each of them breaks one of the three symmetries. Write the step as it should be. Try
# `errors(step)` on your own function: does it tell you everything?
#
# **Expected.** A tuple: the moves `[B, N, d]` and the new features `[B, N, F]`. In empty places both are 0. A cloud may
# have one atom only: it doesn't move.
#
# <details><summary>Hint</summary>
# Which length does a rotation keep? Which differences does a shift keep? What must an empty place not do, and where
# else does the number of atoms stand in the formulas?
# </details>


# %% exercise="24.4" role="answer"
def step(x, h, mask, into, out, mix):
    """x [B, N, d], h [B, N, F], mask [B, N], into [2F + 1, H], out [H], mix [H, F] -> Δx and h'."""
    ### BEGIN SOLUTION return a tuple: the moves [B, N, d] and the features [B, N, F]
    mask, (N, F) = np.asarray(mask), h.shape[1:]
    between = x[:, :, None] - x[:, None]
    square = np.sum(between**2, axis=-1)[..., None]
    to, back = (h @ part for part in (into[:F], into[F:-1]))
    sent = np.tanh(to[:, :, None] + back[:, None] + square * into[-1])
    both = mask[:, :, None] & mask[:, None] & ~np.eye(N, dtype=bool)
    sent = sent * both[..., None]
    push = sent @ out / np.maximum(both.sum(2, keepdims=True), 1)
    new = np.where(mask[..., None], h + sent.sum(2) @ mix, 0)
    return np.einsum("bij,bijd->bid", push, between), new
    ### END SOLUTION


# %% [markdown]
# The test of a symmetry sees what it tries. None of the three tests notices a sum in the place of the mean, or a
# message that an atom sends to itself.

# %% [markdown]
# ## 24.5
# *derive and check · 35 minutes*
#
# All data are one flat molecule. Its $N$ atoms stand at `template`, whose centre is not at 0. A sample is the template,
# moved so that its centre is at 0, and then turned by an angle between 0 and $2\pi$, each equally probable. With the
# probability `left` it is also the mirror image. The noise has its centre at 0, too:
# $x_t = \alpha\,x_0 + \sigma\,P\varepsilon$, where $P$ subtracts the mean over the atoms. For each state, find
#
# 1. the best guess, $\mathbb E[x_0 \mid x_t = x]$;
# 2. $\log p(x_t = x)$, the density in the space of $2(N-1)$ dimensions where all states lie.
#
# **Expected.** A tuple of two arrays, `[B, N, 2]` and `[B]`. `left` may be 0 or 1. A state may be 0. And $\sigma$ may
# be as small as 0.03: then the $\exp(\kappa)$ of the hint overflows.
#
# <details><summary>Hint</summary>
# The sum of x_i·(R y_i) over the atoms is a·cos θ + b·sin θ, which is √(a² + b²)·cos(θ − φ). The mean of exp(κ·cos θ)
# over θ is the Bessel function I₀(κ), and that of cos θ·exp(κ·cos θ) is I₁(κ). i0e(κ) is exp(−κ)·I₀(κ), and i1e alike.
# </details>


# %% exercise="24.5" role="answer"
def turned(x, template, alpha, sigma, left):
    """x [B, N, 2], template [N, 2], three numbers -> the guesses [B, N, 2] and log p(x), [B]."""
    ### BEGIN SOLUTION return a tuple: the guesses [B, N, 2] and log p(x), [B]
    z = x[..., 0] + 1j * x[..., 1]  # a rotation multiplies by e^(iθ), a mirror image conjugates
    y = template[:, 0] + 1j * template[:, 1]
    y = y - y.mean()
    hands = np.stack([y, y.conj()])
    match = z @ hands.conj().T  # [B, 2]
    kappa = alpha * np.abs(match) / sigma**2
    chance = np.array([1 - left, left])
    log_sum = logsumexp(kappa, b=chance * i0e(kappa), axis=1)  # the mean over turns and hands
    mean_turn = chance * i1e(kappa) * np.exp(kappa - log_sum[:, None] + 1j * np.angle(match))
    guess = mean_turn @ hands
    square = np.sum(np.abs(z) ** 2, axis=1) + alpha**2 * np.sum(np.abs(y) ** 2)
    log_p = log_sum - square / (2 * sigma**2) - (len(y) - 1) * np.log(2 * np.pi * sigma**2)
    return np.stack([guess.real, guess.imag], axis=-1), log_p
    ### END SOLUTION


# %% [markdown]
# Turn the state, and the guess turns with it. But a reflected state has a reflected guess only for `left = 0.5` (or if
# the template is its own mirror image). A network that is equivariant to reflections takes the two hands for equally
# probable, so for any other `left` it cannot be this denoiser.

# %% [markdown]
# ## 24.6
# *stretch · 35 minutes*
#
# Positions in a crystal repeat after a `period`, as angles do after $2\pi$. So $x$ and $x + \text{period}$ are the
# same place, in each of $d$ coordinates. The data are $K$ points with the probabilities `weights`. Noise of standard
# deviation $\sigma$ is added to each coordinate. Find
#
# 1. the score of the noised data at `x`, which is the gradient of $\log p(x)$;
# 2. $\log p(x)$, the density on $[0, \text{period})^d$.
#
# `x` may lie many periods away from the points. $\sigma/\text{period}$ lies between 0.004 and 1.6. At 1.6 the score is
# as small as $10^{-21}$, and it has to be right to three digits even there.
#
# **Expected.** A tuple of two arrays, `[B, d]` and `[B]`.
#
# <details><summary>Hint</summary>
# In one coordinate: the sum of Gaussians over all images n·period, or 1/period·(1 + 2·Σ exp(−(ωkσ)²/2)·cos(ωk·r)) with
# ω = 2π/period, summed from k = 1. Both are exact. Which one needs few terms for small σ, and which one for large σ?
# With little noise, stay with logarithms.
# </details>


# %% exercise="24.6" role="answer"
def torus(x, points, weights, sigma, period):
    """x [B, d], points [K, d], weights [K], two numbers -> the scores [B, d] and log p(x), [B]."""
    ### BEGIN SOLUTION return a tuple: the scores [B, d] and log p(x), [B]
    r = x[:, None] - points
    r = r - period * np.round(r / period)
    if sigma < period / 3:
        ways = r + period * np.arange(-3, 4)[:, None, None, None]  # [7, B, K, d]
        logs = -(ways**2) / (2 * sigma**2) - np.log(2 * np.pi * sigma**2) / 2
        log_p = logsumexp(logs, axis=0)
        slope = -np.sum(softmax(logs, axis=0) * ways, axis=0) / sigma**2
    else:
        k = 2 * np.pi / period * np.arange(1, 7)[:, None, None, None]
        wave = 2 * np.exp(-((k * sigma) ** 2) / 2)
        p = 1 + np.sum(wave * np.cos(k * r), axis=0)
        log_p, slope = np.log(p / period), -np.sum(k * wave * np.sin(k * r), axis=0) / p
    joint = log_p.sum(2) + np.log(weights)
    share = softmax(joint, axis=1)
    return np.sum(share[..., None] * slope, axis=1), logsumexp(joint, axis=1)
    ### END SOLUTION


# %% [markdown]
# At $\sigma = 1.6$ periods the density differs from a constant by less than one part in $10^{21}$ in each coordinate.
# So a sampler on a torus starts from uniform places, and not from a Gaussian.

# %% [markdown]
# ## 24.7
# *written · 20 minutes*
#
# Three sentences from a report:
#
# - "We distilled a text-to-image model into 3-D with guidance $w = 100$. From 20 different starts we got nearly the
#   same chair. So the model knows only this chair."
# - "Our $E(3)$-equivariant network makes drug molecules. All bond lengths and angles are right. So these are the
#   molecules of the data." (In the data, each molecule has one hand, and the other hand never occurs.)
# - "Our torsion network predicts scores on a torus. Its mean squared error is $10^{-9}$ at the largest noise and 0.5
#   at the smallest one. So it is best at much noise."
#
# No verdict follows. For each, say in about 50 words what probably happened, and which measurement would show it.
# *(1 point each)*
#
# <details><summary>Hint</summary>
# What does a minimiser look for, and what does a sampler? Which quantity do bond lengths not see? How large is the
# score itself at the largest noise?
# </details>

# %% [markdown] exercise="24.7" role="written"
# ### BEGIN SOLUTION
# 1. Score distillation looks for a mode, and large guidance makes modes sharper and fewer. The same chair
#    tells of the method. Draw pictures by sampling, with small $w$, and compare their diversity with that of rendered
#    chairs; or distil with a smaller $w$.
# 2. Lengths and angles are the same in a mirror image. A network that is equivariant to reflections, with noise that is
#    symmetric, makes both hands equally often. Measure the share of each hand, by the sign of a triple product
#    $(a \times b)\cdot c$ at each centre, against the data's.
# 3. With much noise, the density on a torus is flat and the score nearly 0, so an answer of 0 has a tiny error, too.
#    Divide the error at each noise level by the mean square of the true score: 1 is no better than nothing.
#
# *One point for each. The first needs mode seeking or guidance, and a comparison with samples; the second the mirror
# image and a signed quantity; the third the size of the true score and a relative error.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 24. You have divided the light of a ray among objects, distilled a denoiser into a scene, given
# each frequency its pace, mended an equivariant step, denoised a molecule that may be turned and mirrored, and put a
# Gaussian on a torus. Chapter 25 takes a model from the notebook into a product.
