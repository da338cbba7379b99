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
# # 19 · Steering without retraining: exercises
#
# They belong to [chapter 19](../notebooks/19_steering.ipynb). Write each function where it says
# `raise NotImplementedError`, then run the `check` below it: it tells you at once whether the
# function is right, and if not, what is wrong. Check as often as you like.
#
# A state is $x_t = \alpha\,x_0 + \sigma\,\varepsilon$. A measurement is $y = A\,x_0$ plus noise. Tables of
# $\alpha$ and $\sigma$ run from noise to data. Logarithms are natural ones.
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
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logsumexp, softmax

from diffusion_course.grading import check

# %% [markdown]
# ## 19.1
# *warm-up · 15 minutes*
#
# A detector adds up pixels. Pixel $i$ counts with the weight $w_i$ in the sum of its group, and in no other sum:
#
# $$y_m = \sum_{i\,:\,\text{group}_i = m} w_i\,x_{0,i} + \text{noise}_m\cdot\varepsilon_m.$$
#
# The group $-1$ means that nobody measures this pixel. A denoiser guesses `x0`. Suppose, as ΠGDM does, that the
# guess has an error: the true picture is $N(\text{x0}, \text{spread}^2 I)$. Return the mean of the picture, given `y`.
# Each measurement has noise of its own. `noise` holds the standard deviations, and some are 0.
#
# **Expected.** An array of `x0`'s shape. If all noise is 0, this is DDNM's correction: the result agrees with `y`
# exactly, whatever the positive spread is.
#
# <details><summary>Hint</summary>
# No pixel is in two groups, so A·Aᵀ is diagonal, and each measurement can be used alone. Write A as a table
# [M, D], with zeros.
# </details>


# %% exercise="19.1" role="answer"
def agree(x0, weights, groups, y, noise, spread):
    """x0 [B, D], weights and groups [D], y [B, M], noise [M], the number spread -> pictures, [B, D]."""
    ### BEGIN SOLUTION return the pictures, an array [B, D]
    A = np.where(groups == np.arange(len(noise))[:, None], weights, 0)
    gain = spread**2 / (spread**2 * np.sum(A**2, axis=1) + noise**2)
    return x0 + gain * (y - x0 @ A.T) @ A
    ### END SOLUTION


# %% [markdown]
# ## 19.2
# *derive and check · 30 minutes*
#
# DPS and ΠGDM guess what the denoiser of the posterior would say. For a mixture of Gaussians you can write it
# down, with one idea: a state is a measurement of $x_0$, too. Its matrix is $\alpha I$, and its noise is $\sigma$.
#
# The data are $\sum_k w_k\,N(m_k, C_k)$. The measurement $y = A\,x_0$ has noise with a standard deviation for each
# row, and some are 0. All states share one $y$. For each state $x$, at the level $(\alpha, \sigma)$, find
#
# 1. the guess of the posterior, $\mathbb E[x_0 \mid x_t = x, y]$;
# 2. $\log p(y \mid x_t = x)$, which is the logarithm of the exact twist.
#
# $\alpha$ may be 0. Some states lie far from all components.
#
# **Expected.** A tuple of two arrays, `[B, D]` and `[B]`.
#
# <details><summary>Hint</summary>
# For one component and any measurement z = R·x0 + noise: with S = R·C·Rᵀ + diag(stds²), the mean moves by
# C·Rᵀ·S⁻¹·(z − R·m), and z has the density N(z; R·m, S). Bayes' rule weighs the components. Do this for x and y
# stacked, and for x alone: log p(y | x) = log p(x, y) − log p(x).
# </details>


# %% exercise="19.2" role="answer"
def exact_guess(x, level, A, y, noise, weights, means, covs):
    """x [B, D], (α, σ), A [M, D], y and noise [M], mixture [K], [K, D], [K, D, D] -> [B, D] and [B]."""
    ### BEGIN SOLUTION return a tuple: the guesses [B, D] and log p(y | x), [B]
    alpha, sigma = level
    B, D = x.shape

    def seen(R, stds, z):  # log p(z), [B], and E[x0 | z], [B, D]
        log_joint, guess = [], []
        for k, m in enumerate(means):
            C = covs[k]
            S = R @ C @ R.T + np.diag(stds**2)
            apart = z - R @ m
            back = apart @ np.linalg.inv(S)
            log_norm = np.linalg.slogdet(2 * np.pi * S)[1]
            log_joint.append(np.log(weights[k]) - (log_norm + np.sum(back * apart, axis=1)) / 2)
            guess.append(m + back @ R @ C)
        share = softmax(log_joint, axis=0)
        return logsumexp(log_joint, axis=0), np.einsum("kb,kbd->bd", share, guess)

    rows, stds = alpha * np.eye(D), np.full(D, sigma)
    before, _ = seen(rows, stds, x)
    both = np.hstack([x, np.tile(y, (B, 1))])
    after, guess = seen(np.vstack([rows, A]), np.append(stds, noise), both)
    return guess, after - before
    ### END SOLUTION


# %% [markdown]
# ## 19.3
# *implement · 20 minutes*
#
# If a reward is turned on at once, few particles count. So it is often turned on in rounds. In a round
# the particles have the density $p\,e^{\lambda r}$, for the power $\lambda$ reached so far, and their weights are
# equal. Then $\lambda$ rises to the **largest** new power that is at most 1, and at which the effective sample size is
# at least `share` $\cdot\,N$. Find it. Find also the logarithm of the mean weight of this round, whose
# sum over all rounds is $\log\hat Z$.
#
# Rewards may be in the thousands. Some are $-\infty$: such a particle is forbidden, and its weight is 0 at every new
# power. More than `share` $\cdot\,N$ particles are allowed.
#
# **Expected.** Two numbers: the new power, and the logarithm of the mean weight.
#
# <details><summary>Hint</summary>
# From equal weights, the effective sample size never rises with the power, so halve an interval again and again.
# Compute it with logsumexp. And 0·(−∞) is no number.
# </details>


# %% exercise="19.3" role="answer"
def next_power(rewards, power, share):
    """rewards [N], the power so far, the share -> the new power, log of the mean weight."""
    ### BEGIN SOLUTION return two numbers: the new power and the logarithm
    N = len(rewards)

    def size(step):
        return np.exp(2 * logsumexp(step * rewards) - logsumexp(2 * step * rewards))

    step, most = 0.0, 1 - power  # how far the power rises
    for _ in range(40):
        middle = (step + most) / 2
        if size(middle) >= share * N:
            step = middle
        else:
            most = middle
    return power + step, logsumexp(step * rewards) - np.log(N)
    ### END SOLUTION


# %% [markdown]
# ## 19.4
# *debug this · 25 minutes*
#
# Sequential Monte Carlo for the reward $r(x_0) = \text{slope}\cdot x_0$. The twist is the reward of the guess, and
# particles are resampled only where few of them count. `denoise(x, alpha, sigma)` is the exact denoiser of data from
# $N(m, s^2)$, so the answer is known: the mean is $m + \text{slope}\cdot s^2$, and
# $\log Z = \text{slope}\cdot m + \text{slope}^2 s^2/2$. Run the cells. The three thresholds ask for resampling never,
# at times, and always. The first two results are the same, as if there were no reward. The third one runs away.

# %%
from diffusion_course.grading.inputs import GaussianDenoiser


def broken_run(denoise, x, noises, uniforms, alpha, sigma, slope, threshold):
    N = len(x)
    told = slope * denoise(x, alpha[0], sigma[0])
    heavy, evidence = told, 0.0
    for i, noise in enumerate(noises):
        w = softmax(heavy)
        if 1 / np.sum(w**2) <= threshold * N:
            evidence = logsumexp(heavy) - np.log(N)
            teeth = (np.arange(N) + uniforms[i]) / N  # systematic resampling
            picks = np.searchsorted(np.cumsum(w), teeth)
            x, heavy = x[picks], np.zeros(N)
        x0 = denoise(x, alpha[i], sigma[i])
        eps = (x - alpha[i] * x0) / sigma[i]
        fresh = sigma[i + 1] ** 2 * (1 - (alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])) ** 2)
        x = alpha[i + 1] * x0 + np.sqrt(sigma[i + 1] ** 2 - fresh) * eps + np.sqrt(fresh) * noise
        guess = slope * denoise(x, alpha[i + 1], sigma[i + 1])
        heavy = guess - told
        told = guess
    return np.array([softmax(heavy) @ x, evidence + logsumexp(heavy) - np.log(N)])


# %%
m, s, slope = 1.0, 1.2, 1.0
angle = np.linspace(1.55, 0, 401)
rng = np.random.default_rng(0)
start, noises, uniforms = rng.normal(size=4000), rng.normal(size=(400, 4000)), rng.uniform(size=400)
found = {}
for threshold in (0.0, 0.5, 1.0):
    run = (start, noises, uniforms, np.cos(angle), np.sin(angle), slope, threshold)
    found[threshold] = broken_run(GaussianDenoiser(m, s), *run)
    print(
        f"threshold {threshold}: mean {found[threshold][0]:5.2f}, log Z {found[threshold][1]:.2f}"
    )
right = np.array([m + slope * s**2, slope * m + slope**2 * s**2 / 2])
print(f"exact:         mean {right[0]:5.2f}, log Z {right[1]:.2f}")
# 4000 particles without weights: four standard errors of their mean are 0.08.
assert abs(found[0.0][0] - m) < 0.08 and abs(found[0.0][1]) < 0.01
assert np.array_equal(found[0.0], found[0.5])  # the size is never small, so nobody is resampled
assert found[1.0][0] > 5 * right[0]

# %% [markdown]
# There are **three** bugs. Write the function as it should be. The last level of a table may still have noise. Then
# the last twist takes the place of the reward there.
#
# **Expected.** Two numbers: the weighted mean of the last states, and $\log\hat Z$.
#
# <details><summary>Hint</summary>
# What does a weight hold after three steps without resampling? What belongs to a particle and must be
# copied with it? And what is left of the first resampling after the second one?
# </details>


# %% exercise="19.4" role="answer"
def run_particles(denoise, x, noises, uniforms, alpha, sigma, slope, threshold):
    """x [N], noises [n, N], uniforms [n], α and σ [n + 1], two numbers -> mean, log Ẑ."""
    ### BEGIN SOLUTION return two numbers: the mean and log Ẑ
    n = len(x)
    told = denoise(x, alpha[0], sigma[0])
    log_w, log_z = slope * told, 0.0
    for i, z in enumerate(noises):
        total = logsumexp(log_w)
        if np.exp(2 * total - logsumexp(2 * log_w)) <= threshold * n:
            ends = np.cumsum(np.exp(log_w - total))
            places = np.searchsorted(ends, (np.arange(n) + uniforms[i]) / n)
            x, told = x[places], told[places]  # the twist is that of the guess: both are copied
            log_w, log_z = np.zeros(n), log_z + total - np.log(n)
        kept = alpha[i] * sigma[i + 1] ** 2 / (alpha[i + 1] * sigma[i])
        old = kept * (x - alpha[i] * told) / sigma[i]
        x = alpha[i + 1] * told + old + np.sqrt(sigma[i + 1] ** 2 - kept**2) * z
        last, told = told, denoise(x, alpha[i + 1], sigma[i + 1])
        log_w = log_w + slope * (told - last)  # the product of all steps since they were equal
    total = logsumexp(log_w)
    return np.exp(log_w - total) @ x, log_z + total - np.log(n)
    ### END SOLUTION


# %% [markdown]
# ## 19.5
# *derive and check · 25 minutes*
#
# Best of $n$: draw $n$ samples and keep the one with the largest reward. If several have the largest reward, chance
# decides between them. A model has $K$ outcomes with the probabilities $p_k$ and the rewards $r_k$. Different outcomes
# may have the same reward, and some never occur. Let $q$ be the distribution of the sample that is kept. Find
#
# 1. the mean reward under $q$;
# 2. the price of this reward, $\mathrm{KL}(q \,\|\, p)$;
# 3. the *least* price of the same mean reward, over all distributions: that of the frontier.
#
# **Expected.** Three numbers, the prices in nats. The second price is never larger than the first.
#
# <details><summary>Hint</summary>
# All n samples have a reward of at most r with the probability F(r)^n. Within a level of equal rewards, q is
# proportional to p. The distributions with the least price have the form p·e^(λr), normalised; λ is where
# the mean fits, and brentq, which is imported above, finds it between two bounds.
# </details>


# %% exercise="19.5" role="answer"
def best_of(p, rewards, n):
    """p and rewards [K], a whole number n -> mean reward, KL, least KL with this mean."""
    ### BEGIN SOLUTION return three numbers: the mean reward and both prices
    rewards, p = rewards[p > 0], p[p > 0]
    upto = np.sum(p * (rewards <= rewards[:, None]), axis=1)
    below = np.sum(p * (rewards < rewards[:, None]), axis=1)
    gain = (upto**n - below**n) / (upto - below)  # q/p, the same for all outcomes of a level
    mean = np.sum(p * gain * rewards)
    power = brentq(lambda a: softmax(a * rewards + np.log(p)) @ rewards - mean, -1, 1e3)
    least = power * mean - logsumexp(power * rewards, b=p)
    return mean, np.sum(p * gain * np.log(gain)), least
    ### END SOLUTION


# %% [markdown]
# ## 19.6
# *derive and check · 25 minutes*
#
# Diffusion-DPO's loss, and its gradient without automatic differentiation. In each pair of pictures the first is
# preferred. Both got the same noise `eps` at the same time. The model said `preferred` and `rejected`, and the
# reference said `ref_preferred` and `ref_rejected`. An error $e$ is the mean square of what was said less `eps`, over
# the numbers of an example. Each pair has a `scale` (the price $\beta$ times a weight that depends on its
# time). With the margin
#
# $$\mu = \text{scale}\cdot\big[(e^\text{ref}_\text{preferred} - e_\text{preferred}) -
# (e^\text{ref}_\text{rejected} - e_\text{rejected})\big],$$
#
# the loss is the mean of $-\log\operatorname{sigmoid}(\mu)$ over the pairs. Margins may be in the thousands, of both
# signs.
#
# **Expected.** A tuple: the loss, and its gradients by `preferred` and by `rejected`, of their shapes. Where model and
# reference agree, a pair's loss is $\log 2$.
#
# <details><summary>Hint</summary>
# The slope of −log sigmoid(m) is −sigmoid(−m). Then the chain rule: three factors and two means. expit is the
# sigmoid, and log_expit its logarithm.
# </details>


# %% exercise="19.6" role="answer"
def preference(eps, preferred, rejected, ref_preferred, ref_rejected, scale):
    """eps and what was said about it, five arrays [B, ...], scale [B] -> loss, two gradients [B, ...]."""
    ### BEGIN SOLUTION return a tuple: the loss, and two gradients of eps's shape

    def error(said):
        return np.mean((said - eps).reshape(len(eps), -1) ** 2, axis=1)

    lead = error(ref_preferred) - error(preferred) - error(ref_rejected) + error(rejected)
    loss = -np.mean(log_expit(scale * lead))
    pull = 2 * scale * expit(-scale * lead) / eps.size  # B pairs of D numbers
    pull = pull.reshape(-1, *[1] * (eps.ndim - 1))
    return loss, pull * (preferred - eps), pull * (eps - rejected)
    ### END SOLUTION


# %% [markdown]
# Look at the factor $\operatorname{sigmoid}(-\mu)$: a pair that the model orders wrongly pulls with its whole scale,
# and a pair with a large margin does not pull any more. A step downhill moves `preferred` towards `eps`, and
# `rejected` away from it. The loss falls even if *both* errors grow, as long as the rejected one grows faster.

# %% [markdown]
# ## 19.7
# *stretch · 40 minutes*
#
# The loss of Flow-GRPO, without KL, for a rectified flow, $\alpha = 1 - t$ and $\sigma = t$. An old model drew $G$ paths for
# each of $P$ prompts. At state $x$ and time $t$ it said `v_old`, an estimate of $\varepsilon - x_0$. Its step
# to $s < t$ was one Euler step of the SDE that has the flow's marginals: a Gaussian with the variance $g^2\,(t - s)$ in
# each coordinate, where $g \geq 0$ is the step's `noise`. Now the new model says `v` at the same states.
#
# - The ratio $\rho$ of a step is its density under the new model over that under the old one.
# - The advantage $a$ of a path is its reward less the mean of its prompt, divided by the prompt's standard
#   deviation (of $G$, not $G - 1$). It is 0 where all these rewards are equal.
# - The loss is minus the mean of $\min(\rho a,\ \operatorname{clip}(\rho, 1 - c, 1 + c)\,a)$ over all paths and all
#   steps with $g > 0$, where $c$ is `clip`.
#
# **Expected.** A tuple: $\log\rho$ `[n, P, G]`, which is 0 where $g = 0$, and the loss.
#
# <details><summary>Hint</summary>
# Where time falls, noise g needs a drift of g²/2 times the score, towards the data. The score is −ε/σ, and x and v
# together tell ε.
# </details>


# %% exercise="19.7" role="answer"
def grpo(path, v, v_old, times, noise, rewards, clip):
    """path [n+1, P, G, D], v, v_old [n, P, G, D], times [n+1], noise [n], rewards [P, G] -> logs, loss."""
    ### BEGIN SOLUTION return a tuple: the log-ratios [n, P, G] and the loss
    log_ratio = np.zeros(v.shape[:3])
    for i, g in enumerate(noise):
        if g > 0:
            x, t, h = path[i], times[i], times[i] - times[i + 1]
            for sign, w in ((1, v[i]), (-1, v_old[i])):
                score = -(x + (1 - t) * w) / t
                mean = x - h * (w - g**2 / 2 * score)
                log_density = -np.sum((path[i + 1] - mean) ** 2, axis=2) / (2 * g**2 * h)
                log_ratio[i] += sign * log_density
    apart = rewards - np.mean(rewards, axis=1, keepdims=True)
    spread = np.std(rewards, axis=1, keepdims=True)
    gain = apart / np.where(spread > 0, spread, 1)
    ratio = np.exp(log_ratio)
    kept = np.minimum(ratio * gain, np.clip(ratio, 1 - clip, 1 + clip) * gain)
    return log_ratio, -np.mean(kept[noise > 0])
    ### END SOLUTION


# %% [markdown]
# ## 19.8
# *written · 20 minutes*
#
# Three sentences from a report on steering:
#
# - "We deblurred with DDNM, a method without gradients. Blurred again, every picture agrees with the measurement to
#   six digits. No method can do better, so these are samples of the posterior."
# - "We steered with 16 particles, resampled in every step. After the last resampling all weights are equal, so the
#   effective sample size is 16, and we count the 16 pictures as 16 independent samples."
# - "With best of 64 the reward rose to that of our fine-tuned model. Best of $n$ does not change the model, so it cannot
#   hack the reward."
#
# Each verdict does not follow. For each, say in about 50 words what is wrong, and which measurement would
# show it. *(1 point each)*
#
# <details><summary>Hint</summary>
# What does y say about the null space, and what about its own noise? Where do 16 particles come from? What did
# exercise 19.5 call a price?
# </details>

# %% [markdown] exercise="19.8" role="written"
# ### BEGIN SOLUTION
# 1. Agreement is about the range of $A$ only. What a measurement destroys comes from the denoiser, and samples of
#    the posterior must differ there. A blur may destroy nothing: then DDNM returns $A^+ y$, whatever the denoiser
#    says. And agreement to six digits copies the noise of $y$, which $A^+$ enlarges. Compare with an exact
#    posterior, or the residual with $\sigma_y$.
# 2. After resampling all weights are equal, whatever they were. Particles that share an ancestor are nearly the same
#    picture. Count the different ancestors, look at the size *before* resampling, and repeat the run with other
#    seeds: how much does $\log\hat Z$ scatter?
# 3. Best of $n$ draws from another distribution than the model does, at up to $\log 64 - 63/64 = 3.2$ nats of KL. It
#    selects what the reward overrates, as fine-tuning does. Plot a second judge, which nobody optimised,
#    against the KL, for both.
#
# *One point for each. The first needs the null space or the copied noise, and a measurement that sees it; the second
# ancestors or the size before resampling; the third the KL of best of n, and another judge.*
# ### END SOLUTION

# %% [markdown]
# That is all of chapter 19. You have corrected pictures so that they agree with uncertain sums, written down the exact
# guess and the exact twist, turned on a reward in rounds, mended a particle sampler, priced the best of $n$, found
# what a pair of pictures teaches, and put together the loss of a policy. Chapter 20 makes noise of another kind: it
# replaces words and pixels by others.
