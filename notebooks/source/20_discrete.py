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
# # 20 · Discrete diffusion
#
# **The question.** Letters have no noise that one could add. How can diffusion write a sentence, and what does it
# do better than writing from left to right?
#
# At the end of this chapter you will be able to
#
# - noise letters with two chains, and derive the way back by Bayes;
# - say when the bound *is* $-\log p$, and when it is no bound at all;
# - show that masked diffusion is autoregression in every order at once;
# - choose between masks, remasking and random letters by what they can repair;
# - count when diffusion needs fewer evaluations than autoregression, and when it needs more work;
# - find the silent bugs: a wrong weight, a careless remasking, a random number that is not what it says.
#
# **You need** chapters 03 and 05; section 8 uses the idea of chapter 07. **Time**: about 75 minutes of reading.
# The cells run for about a minute on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
from functools import partial
from itertools import permutations, product

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from diffusion_course import data, discrete, discrete_bound, discrete_exact, sampling, weights
from diffusion_course import discrete_samplers as samplers
from diffusion_course.data import shapes
from diffusion_course.models.classifier import judge
from diffusion_course.models.strings import StringTransformer
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import loop, update

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# The pictures of `shapes` have captions such as "a large red star at the top". There are 864 of them: 6 shapes, 8
# colours, 2 sizes and 9 places. We write each as a string of 43 letters, with points behind its end.
#
# The next cell starts from 43 empty fields. It chooses a field by chance, asks for the probability of each letter
# there, and draws a letter. Then it chooses the next field. This is the game of hangman, played by somebody who
# knows all 864 sentences. No network is involved: we count the sentences that fit.
#
# **Predict, then run.** After how many of the 43 letters is the sentence known, if the fields are filled by
# chance? And if they are filled from left to right?

# %%
FACTS = list(product(shapes.SHAPES, shapes.COLOURS, shapes.SIZES, shapes.POSITIONS))
CAPTIONS = [shapes.caption(*facts) for facts in FACTS]  # each as probable as any other
LENGTH = max(map(len, CAPTIONS))
SIGNS = [*sorted(set("".join(CAPTIONS))), "."]  # the point fills a string up to the end
LEGAL = np.array([[SIGNS.index(c) for c in caption.ljust(LENGTH, ".")] for caption in CAPTIONS])
EQUAL = np.full(len(LEGAL), 1 / len(LEGAL))
written = discrete.absorbing(len(SIGNS))  # a forgotten letter becomes the mask
oracle = discrete.denoiser(discrete_exact.listed_model(written, LEGAL, EQUAL), written)


def spell(tokens):
    """A row of tokens as text; a mask is a dot in the middle of the line."""
    return "".join(SIGNS[i] if i < len(SIGNS) else "·" for i in tokens)


WRITERS = {"random order": (written, samplers.random_order(written), oracle)}


@partial(jax.jit, static_argnames=("writer", "steps"))
def write(key, writer, steps):
    """The states [steps + 1, 200, LENGTH] of strings, from noise to text."""
    chain, sampler, D = WRITERS[writer]
    start = discrete.start_tokens(chain, key, (200, LENGTH))
    _, path = samplers.sample(sampler, D, start, sampling.uniform(steps), key)
    return jnp.concatenate([start[None], path])


# %%
path = np.asarray(write(jax.random.key(3), "random order", LENGTH))
print("letters")
for n in (0, 3, 6, 9, 12, 16, 24, LENGTH):
    print(f"{n:7}  {spell(path[n][0])}")


@jax.jit
def bits_left(states):
    """What is not yet known of each sentence, in bits: [n, B]."""
    fits = lambda x: ((x[:, None] == LEGAL) | (x[:, None] == written.mask)).all(-1).sum(-1)
    return jnp.log2(jax.lax.map(fits, states))


given = np.arange(LENGTH + 1)
from_left = np.where(np.arange(LENGTH) < given[:, None, None], path[-1], written.mask)
left = {"by chance": bits_left(path).mean(-1), "left to right": bits_left(from_left).mean(-1)}
plots.curves(given, left, xlabel="letters that are there", ylabel="bits that are not known")
plt.show()

# %% tags=["claims"]
# @title Checked: one letter at a time gives sentences; chance asks better questions than the left margin
assert all(spell(x).rstrip(".") in CAPTIONS for x in path[-1])
assert abs(left["by chance"][0] - np.log2(864)) < 1e-4
# Means of 200 sentences with a spread of about a bit each: 0.1 is more than one standard error.
assert left["by chance"][12] < 1.2 and left["left to right"][12] > 5
assert left["by chance"][8] < left["left to right"][8] - 5 and left["by chance"][20] < 0.4

# %% [markdown]
# Twelve letters by chance leave about one of the $\log_2 864 = 9.75$ bits; the first twelve letters from the left
# leave almost six. The left margin asks poor questions: "a large" costs eight letters and says one bit.
#
# All 200 strings are correct sentences. So a sentence can fill in **in any order**, if somebody knows the
# probability of a letter given any other letters. The rest of the chapter says what this has to do with
# diffusion, what happens if we fill in several letters at once, and what a network makes of it.

# %% [markdown]
# ## 2 · Noise for letters
#
# A letter is a state: one of $K$. Noise cannot be added to it, but it can be **forgotten**. At time $t$ a letter
# is still kept with probability $\alpha(t)$, which falls from 1 to 0. If it is forgotten, a new state is drawn
# from a fixed distribution $\pi$:
#
# $$q(x_t \mid x_0) = \alpha(t)\,[x_t = x_0] + (1 - \alpha(t))\,\pi(x_t) \tag{1}$$
#
# (Austin et al. 2021; here $\alpha$ is a probability, where in Gaussian diffusion it was an amplitude.) Two
# choices of $\pi$ are in use:
#
# - the **absorbing chain**: $\pi$ is all on one more state, the **mask**. What is forgotten can be seen.
# - the **uniform chain**: $\pi$ gives all letters the same probability. What is forgotten cannot be seen.
#
# From $s$ to a later $t$ the same rule holds, with $\alpha(t)/\alpha(s)$ in the place of $\alpha$. As in chapter
# 03, Bayes gives the way back if $x_0$ is known:
#
# $$q(x_s \mid x_t, x_0) = \frac{q(x_s \mid x_0)\,q(x_t \mid x_s)}{q(x_t \mid x_0)} \tag{2}$$
#
# **Predict, then run.** Three letters a, b, c. At $t = 0.7$ we see a mask, and at $t = 0.7$ in the other chain we
# see a "c". In both cases $x_0$ is "a". What was it at $s = 0.3$?

# %%
kinds = {"absorbing": discrete.absorbing(3), "uniform": discrete.uniform(3)}


def by_bayes(chain, x_t, x_0, t, s):
    """Equation (2) for one letter, from the definition: two matrices and a division."""
    to_s, on_to_t = discrete.transition(chain, s, 0.0), discrete.transition(chain, t, s)
    both = np.float64(to_s[x_0]) * np.float64(on_to_t[:, x_t])  # q(x_s | x_0)·q(x_t | x_s)
    return both / both.sum()


before = {name: by_bayes(chain, chain.states - 1, 0, 0.7, 0.3) for name, chain in kinds.items()}
for name, chances in before.items():
    print(f"{name:9}", dict(zip("abc·", np.round(chances, 3).tolist(), strict=False)))

# %% tags=["comparison"]
for name, chain in kinds.items():
    seen = [(x, a) for x in range(chain.states) for a in range(3)]
    for x, a in seen:
        if name == "uniform" or x in (a, chain.mask):  # what x_0 can have become
            ours = by_bayes(chain, x, a, 0.7, 0.3)
            theirs = discrete.posterior(chain, np.array([[x]]), np.array([[a]]), 0.7, 0.3)
            np.testing.assert_allclose(theirs[0, 0], ours, atol=1e-6)  # float32 near 1

# %% tags=["claims"]
# @title Checked: of the masks a share (t − s)/t is lifted; the uniform chain needs all letters
np.testing.assert_allclose(before["absorbing"], [4 / 7, 0, 0, 3 / 7], atol=1e-6)
assert before["uniform"].argmax() == 0 and before["uniform"].min() > 0.05
assert before["uniform"][2] > before["uniform"][1] > 0

# %% [markdown]
# A mask was "a" with probability $(t - s)/t = 4/7$ and a mask with $3/7$, since $\alpha = 1 - t$ here. In the
# uniform chain all three letters are possible: "a", if it was forgotten later, "c", if it was forgotten before,
# and "b", if it was forgotten twice.
#
# To sample, nobody tells us $x_0$. A **denoiser** gives the probability of each letter, $p(x_0 \mid x_t)$, at
# each place, and we average equation (2) over it. Like the pixels in chapter 03's step, the letters of a step
# are then drawn **independently of each other**. The next section measures what this costs.

# %% [markdown]
# ## 3 · All 27 strings
#
# With three letters at three places there are 27 strings. We draw a distribution over them by chance. Then all is
# exact: the denoiser by Bayes over 27 strings, and every expectation as a sum over all states.
#
# Chapter 05's bound on $-\log p(x_0)$ is a sum over steps of Kullback–Leibler distances. With more and shorter
# steps it becomes an integral over time. For masks it is a weighted cross-entropy:
#
# $$-\log p(x_0) \le \int_0^1 \frac{-\alpha'(t)}{1 - \alpha(t)}\;\mathbb{E}_{x_t}\!\Big[\sum_{i\ \text{masked}} -\log
# p_\theta(x_0^i \mid x_t)\Big]\,dt \tag{3}$$
#
# (Sahoo et al. 2024; Shi et al. 2024; for any chain Campbell et al. 2022).
#
# **Predict, then run.** With the *exact* denoiser, how far is (3) from $-\log p$, string by string? And the bound
# of 16 steps?

# %%
rng = np.random.default_rng(20)
p_abc = 0.9 * rng.dirichlet(np.full(27, 0.5)) + 0.1 / 27  # of all strings of three letters
cube, every = p_abc.reshape(3, 3, 3), discrete_exact.strings(3, 3)
nll = -np.log(p_abc)
exact_nets = {name: discrete_exact.exact_model(chain, cube) for name, chain in kinds.items()}
exact = {name: discrete.denoiser(exact_nets[name], chain) for name, chain in kinds.items()}
off, made = {}, {}
for name, chain in kinds.items():
    integral = discrete_exact.continuous_bound(chain, exact[name], every, nodes=16)
    off[name, "∞"] = integral - nll
    for n in (1, 4, 16, 64):
        grid = sampling.uniform(n)
        off[name, n] = discrete_exact.exact_bound(chain, exact[name], every, grid) - nll
        out = discrete_exact.distribution(chain, exact[name], 3, grid)
        made[name, n] = np.asarray(out, np.float64)[:3, :3, :3].ravel()

# %%
distance = lambda p: np.abs(p - p_abc).sum() / 2  # total variation
print("bound − (−log p) in nats: lowest, highest, mean; distance of what the chain makes")
for (name, n), gap in off.items():
    far = f"{distance(made[name, n]):.3f}" if (name, n) in made else ""
    print(f"{name:9} {n:>2} steps  {gap.min():+.1e}  {gap.max():+.1e}  {p_abc @ gap:+.1e}  {far}")
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
for ax, name in zip(axes, kinds, strict=True):
    for n, color in zip((4, 16, 64), plots.SERIES, strict=False):
        ax.plot(np.sort(off[name, n]), "o-", ms=3, color=color, label=f"{n} steps")
    ax.axhline(0, color=plots.TRUTH, lw=0.8)
    ax.set(title=f"{name} chain", xlabel="the 27 strings, sorted")
axes[0].set_ylabel("bound − (−log $p$), nats")
axes[0].legend()
plt.show()

# %% tags=["claims"]
# @title Checked: −log p in continuous time; with T steps no bound on it, but on the chain's own −log p
for name in kinds:
    assert np.abs(off[name, "∞"]).max() < 1e-6
    for n in (1, 4, 16, 64):
        assert off[name, n].min() < -0.04 and p_abc @ off[name, n] > 0
        own = -np.log(made[name, n])
        assert (off[name, n] + nll - own).min() > -1e-5  # rounding; at one step they are equal
    # Order 1: four times the steps, a fourth of the distance.
    assert 3 < distance(made[name, 16]) / distance(made[name, 64]) < 5
assert -0.3 < off["absorbing", 16].min() < -0.1 and -0.8 < off["uniform", 16].min() < -0.5
assert distance(made["absorbing", 16]) < distance(made["uniform", 16])

# %% [markdown]
# In continuous time the bound **is** $-\log p(x)$, for each of the 27 strings, to $10^{-6}$. There is no gap at
# all.
#
# With 16 steps it is not even a bound: for some strings it lies below $-\log p$, by 0.2 nats with masks and by
# 0.65 in the uniform chain. There is no contradiction. A chain of 16 steps draws letters in parallel,
# independently. So it makes *another distribution*, and it is this distribution's $-\log p$ that is bounded. On
# average over the data the bound is still too high, as it must be. The distance of what is made to the data falls
# like $1/T$.
#
# In this example masks are nearer to the data than random letters are, at the same number of steps.

# %% [markdown]
# ## 4 · Every order at once
#
# Why is (3) exact? Look at one string and at the order in which its letters return. Each order is equally
# probable, and in continuous time no two letters return at once. So the integral can be done:
#
# $$\text{(3)} = \frac{1}{L!}\sum_{\text{orders }\rho}\ \sum_{i=1}^{L} -\log p_\theta\big(x^{\rho_i} \mid x^{\rho_1},
# \dots, x^{\rho_{i-1}}\big) \tag{4}$$
#
# (Hoogeboom et al. 2022.) Inside is the autoregressive $-\log p$ in the order $\rho$. The schedule $\alpha$ has
# disappeared. Masked diffusion **is** autoregression, in all orders at once, and the "time" only says how many
# letters are there.
#
# **Predict, then run.** We compute the six orders of our strings, with the exact denoiser and with one that is
# disturbed. In which of the two cases do the six agree?


# %%
def in_each_order(model, cond=None):
    """−log p of the 27 strings, one letter at a time, for each of the six orders: [6, 27]."""
    found = []
    for order in permutations(range(3)):
        x, total = np.full((27, 3), kinds["absorbing"].mask), np.zeros(27)
        for place in order:
            log_p = jax.nn.log_softmax(model(jnp.asarray(x), 0.5, cond))[:, place]
            total -= np.float64(log_p)[np.arange(27), every[:, place]]
            x[:, place] = every[:, place]
        found.append(total)
    return np.array(found)


votes = jnp.asarray(rng.normal(0, 0.6, (3, 4, 3, 3)), jnp.float32)
disturbed = lambda x, t, cond: (
    exact_nets["absorbing"](x, t, cond) + sum(votes[i][x[:, i]] for i in range(3))
)
orders = {"exact": in_each_order(exact_nets["absorbing"]), "disturbed": in_each_order(disturbed)}
for name, found in orders.items():
    print(f"{name:9} mean of −log p in each order:", (found @ p_abc).round(4))

# %% tags=["claims"]
# @title Checked: with true conditionals every order gives −log p; in general the bound is their mean
assert np.abs(orders["exact"] - nll).max() < 2e-6  # three float32 logarithms
assert np.ptp(orders["disturbed"], axis=0).max() > 1
D_disturbed = discrete.denoiser(disturbed, kinds["absorbing"])
for bound in (discrete_exact.any_order_bound, partial(discrete_exact.continuous_bound, nodes=16)):
    found = bound(kinds["absorbing"], D_disturbed, every)
    np.testing.assert_allclose(found, orders["disturbed"].mean(0), atol=4e-6)
assert (
    np.ptp(orders["disturbed"] @ p_abc) > 0.1 and (orders["disturbed"] @ p_abc).min() > p_abc @ nll
)

# %% [markdown]
# With the true conditionals all six orders give $-\log p$. The disturbed network contradicts itself: the orders
# differ by more than a nat for some strings. Its bound is the mean of the six. A network has to learn *all*
# conditionals, $L\cdot 2^{L-1}$ of them, where an autoregressive one learns those of one order.
#
# Equation (4) also gives a better way to *train*. `masked_loss` draws a time, then masks each letter with
# probability $1 - \alpha$. Its weight is $1/t$: it is rarely large, and then very large, and sometimes there is
# no mask at all. `any_order_loss` draws the **number** of masks, $m = 1 \dots L$, with weight $L/m$. Both have
# the same mean.

# %%
drawn = np.random.default_rng(0).choice(27, 4096, p=p_abc)
x0 = jnp.asarray(every[drawn])
spread, means = {}, {}
for loss in (discrete_bound.masked_loss, discrete_bound.any_order_loss):
    one = jax.jit(lambda k, f=loss: f(exact_nets["absorbing"], kinds["absorbing"], x0, None, k))
    found = np.float64([one(jax.random.key(seed)) for seed in range(6)])
    spread[loss.__name__] = found.std(1)
    error = found.std() / np.sqrt(found.size)
    print(f"{loss.__name__:14} mean {found.mean():.3f} ± {error:.3f}, standard deviations",
          found.std(1).round(2))  # fmt: skip
    means[loss.__name__] = found.mean(), error
print(f"mean −log p of these strings: {nll[drawn].mean():.3f}")

# %% tags=["claims"]
# @title Checked: drawing the number of masks halves the scatter, in each of six draws
assert spread["masked_loss"].min() > 1.8 * spread["any_order_loss"].max()
for mean, error in means.values():
    assert abs(mean - nll[drawn].mean()) < 4 * error

# %% [markdown]
# The same mean, with about half the scatter or less. (The variance of `masked_loss` is infinite, strictly
# speaking: a small $t$ has a mask with probability about $Lt$ and then the weight $1/t$, and $\int Lt/t^2\,dt$
# diverges, like a logarithm. This is why its standard deviation differs from draw to draw.) We train with
# `any_order_loss` in section 10.

# %% [markdown]
# ## 5 · What the uniform chain can repair
#
# In the absorbing chain a letter that stands there is final. If two letters were drawn at once and do not fit,
# the mistake stays. The uniform chain has no such rule: every letter may be wrong, and every letter may change
# until the end.
#
# As a first test we make typing errors. Each letter of a caption is forgotten with probability $t$ and replaced
# by any letter. Then we ask the exact denoiser of the uniform chain, once, for the most probable letter at each
# place.
#
# **Predict, then run.** With a third of the letters forgotten, how many of 400 sentences will be correct in all
# 43 letters?

# %%
typed = discrete.uniform(len(SIGNS))
reader = discrete.denoiser(discrete_exact.listed_model(typed, LEGAL, EQUAL), typed)
picked = jnp.asarray(LEGAL)[jax.random.randint(jax.random.key(4), (400,), 0, len(LEGAL))]
read = jax.jit(lambda x, t: jnp.argmax(reader(x, t), axis=-1))
repaired = {}
for level in (0.05, 0.15, 1 / 3, 0.6):
    errors = discrete.add_noise(typed, picked, level, jax.random.key(5))
    corrected = read(errors, level)
    repaired[level] = float((corrected == picked).all(-1).mean())
    print(f"{level:.2f} forgotten: {spell(errors[0])}")
    print(f"{repaired[level]:11.0%} right: {spell(corrected[0])}")

# %% [markdown]
# Now we let both chains write, with the exact denoisers of each, in 4, 16 and 43 steps, and count the correct
# sentences among 200. For the masks there are three ways: in random order, the same number of letters in each
# step; the chain's own step by equation (2) (**ancestral**); and with **remasking**, explained in section 6.
#
# When letters that do not fit stand in a masked string, the exact conditional does not exist. We then read the
# string as the sentences that agree with it in most letters. The uniform chain does not need this rule.
#
# **Predict, then run.** In section 3 masks were nearer to the data than random letters. Here?

# %%
WRITERS.update({
    "ancestral": (written, samplers.ancestral(written), oracle),
    "remasking": (written, samplers.remasking(written, 0.5), oracle),
    "uniform chain": (typed, samplers.ancestral(typed), reader),
})  # fmt: skip

# %%
right, texts = {}, {}
for name in WRITERS:
    for n in (4, 16, LENGTH):
        texts[name, n] = [spell(x) for x in np.asarray(write(jax.random.key(n), name, n))[-1]]
        right[name, n] = np.mean([text.rstrip(".") in CAPTIONS for text in texts[name, n]])
    print(f"{name:13}", {n: f"{right[name, n]:.1%}" for n in (4, 16, LENGTH)}, texts[name, 16][0])
# If each letter had its own probability at its place, and all were drawn at once:
alone = np.eye(len(SIGNS))[LEGAL].mean(0)
at_once = alone[np.arange(LENGTH), LEGAL].prod(-1).sum()
print(f"all letters in one step: {at_once:.0e} would be right")
different = len(set(texts["uniform chain", 16]))
print(f"uniform chain, 16 steps: {different} different sentences of 200")

# %% tags=["claims"]
# @title Checked: the uniform chain repairs; here it needs a few steps where masks need one per letter
assert repaired[0.05] == 1 and repaired[1 / 3] > 0.9 > repaired[0.6]
assert at_once < 1e-18 and right["random order", LENGTH] == 1
# A share of 200 has a standard error of at most .035.
assert right["uniform chain", 4] > 0.5 and right["uniform chain", 16] > 0.98
assert right["random order", 4] < 0.1 and right["random order", 16] < 0.6
assert right["remasking", 16] > right["ancestral", 16] + 0.3
# 200 independent draws of 864 have 178 different ones, with a standard deviation of about 4.
assert abs(different - 178.6) < 16

# %% [markdown]
# The exact reader corrects sentences of which a third was forgotten: more than nine of ten are right in all
# letters. And in writing it is far ahead: in four steps more than half of its sentences are correct, in 16 nearly
# all, and they are as different from each other as independent draws would be. Masks in random order need one
# step for each letter to be always right. A likely reason is repair: most strings are no sentence, so a mistake
# can be *seen*, and the uniform chain is allowed to correct it.
#
# In section 3 every string was possible. Nothing looked like a mistake, nothing could be repaired, and masks were
# nearer to the data. So "masks or random letters" has no answer without the data. And this reader is exact. A
# network has to learn *which letters are wrong*. With masks it need not: it can see which places are unknown.

# %% [markdown]
# ## 6 · Remasking
#
# Can masks repair too? Yes, if letters are masked *again* during the sampling. Wang et al. 2025 mask a letter
# again with probability $\sigma$, and lift more masks to make up for it. From $t$ to $s$, with $\alpha = 1 - t$,
# a mask stays one with probability
#
# $$\frac{s - \sigma\,(1 - t)}{t}, \qquad 0 \le \sigma \le \min\Big(1, \frac{s}{1 - t}\Big). \tag{5}$$
#
# Then the share of masks at $s$ is $t\cdot(5) + (1-t)\,\sigma = s$: the marginals stay what they were, and the
# network sees what it was trained on. $\sigma = 0$ is the ancestral step. The library's $\eta$ is a share of the
# largest $\sigma$.
#
# It is easy to write something else: mask letters again, and leave the masks alone. Their share is then too large
# after every step but the first and the last.
#
# **Predict, then run.** On the 27 strings, with the exact denoiser: does remasking bring what is made nearer to
# the data?


# %%
def careless(eta):
    """Letters are masked again, and nothing makes up for it."""

    def kernel(x, p0, t, s):
        sigma = eta * jnp.minimum(1, s / jnp.maximum(1 - t, 1e-30))
        to_mask = jnp.where((x == 3)[..., None], s / t, sigma)
        return jnp.concatenate([(1 - to_mask) * p0, to_mask], axis=-1)

    return kernel


def share_of_masks(kernel, t=0.8, s=0.5):
    """After one step from t to s, if a share t is masked at t; the letters are known."""
    states, known = jnp.array([[3], [0]]), jax.nn.one_hot(jnp.array([[0], [0]]), 3)
    mask, letter = np.float64(kernel(states, known, t, s))[:, 0, 3]
    return t * mask + (1 - t) * letter


# %%
kernels = {"η = 0": None, "η = 0.5": samplers.remasked(kinds["absorbing"], 0.5),
           "careless": careless(0.5)}  # fmt: skip
from_data = {}
for name, kernel in kernels.items():
    for n in (8, 32):
        out = discrete_exact.distribution(
            kinds["absorbing"], exact["absorbing"], 3, sampling.uniform(n), kernel
        )
        from_data[name, n] = distance(np.float64(out)[:3, :3, :3].ravel())
    masks = "" if kernel is None else f"; masks at s = 0.5: {share_of_masks(kernel):.3f}"
    print(f"{name:8} distance in 8 and 32 steps:",
          *(f"{from_data[name, n]:.3f}" for n in (8, 32)), masks)  # fmt: skip

# %% tags=["claims"]
# @title Checked: (5) keeps the share of masks; without mistakes to repair, remasking only costs
assert abs(share_of_masks(kernels["η = 0.5"]) - 0.5) < 1e-6
assert share_of_masks(kernels["careless"]) > 0.55
for n in (8, 32):
    assert from_data["η = 0", n] < from_data["η = 0.5", n] < from_data["careless", n]

# %% [markdown]
# No: with an exact denoiser and strings that are all possible, remasking only draws more letters in parallel, and
# each such draw costs. The careless version is worse still. But on the captions of section 5 remasking at 16
# steps had far more correct sentences than the ancestral step, which it is at $\eta = 0$. It is the same lesson:
# it pays where mistakes happen and can be seen.

# %% [markdown]
# ## 7 · Random numbers that are not what they say
#
# To draw a letter, libraries add **Gumbel noise** $G = -\log(-\log u)$ to the logits and take the largest. This
# is exact, if $u$ is uniform. But a float32 $u$ of JAX has 23 random bits. The largest value below 1 is $1 -
# 2^{-23}$, so $G$ is never above
#
# $$-\log\big(-\log(1 - 2^{-23})\big) = 23\log 2 = 15.94. \tag{6}$$
#
# A short step keeps nearly every mask. All letters together share the small rest, and a rare letter needs a large
# $G$. Zheng et al. 2024 found that samples of masked diffusion look better than they are for this reason: rare
# letters are missing.
#
# We count over the whole grid of $2^{23}$ numbers how often a letter with log-odds $\ell$ wins against one other
# state, and divide by how often it should. And we look at 67 million numbers.
#
# **Predict, then run.** From which log-odds on are letters drawn too rarely?

# %%
u = np.arange(1, 2**23) / 2**23  # u = 0 is replaced by the smallest float32, and has no effect here
grid_of_gumbel = -np.log(-np.log(u))
log_odds = np.array([-8.0, -12, -14, -15, -16, -17, -18, -20])
wins = [np.mean(np.floor(np.exp(-np.exp(-(g + grid_of_gumbel))) * 2**23) / 2**23) for g in log_odds]
too_rare = np.array(wins) * (1 + np.exp(-log_odds))
for g, ratio in zip(log_odds, too_rare, strict=True):
    print(f"log-odds {g:4.0f}: drawn {ratio:.3f} times as often as it should be")


@partial(jax.jit, static_argnames="mode")
def largest(key, mode):
    """Of 2^26 numbers, in 16 parts."""
    part = lambda k: jax.random.gumbel(k, (2**22,), mode=mode).max()
    return jax.lax.map(part, jax.random.split(key, 16)).max()


top = {mode: float(largest(jax.random.key(6), mode)) for mode in ("low", "high")}
print({mode: round(value, 2) for mode, value in top.items()})

# %% tags=["claims"]
# @title Checked: the cap of 15.94, and which letters it costs; mode="high" has no such cap
assert abs(grid_of_gumbel[-1] - 23 * np.log(2)) < 1e-6 and top["low"] < 15.9424
# 2^26 true Gumbel numbers all stay below 15.94 with probability exp(-8) = 0.0003.
assert top["high"] > 15.95
assert abs(too_rare[0] - 1) < 0.01 and 0.4 < too_rare[4] < 0.7
assert too_rare[-2] < 0.02 and too_rare[-1] < 1e-3

# %% [markdown]
# Letters with log-odds of −8 are drawn as often as they should. At −16 nearly half of them are missing, and at
# −18 practically all. With a thousand short steps and a vocabulary of 50,000 words this is no rare case:
# $\log(1/1000) + \log(1/50\,000) = -17.7$.
#
# Two cures, and the library has both: `mode="high"` takes twice the bits, and a step is drawn in two parts:
# *whether* a letter changes, then *into what*. The second draw no longer depends on the length of the step.

# %% [markdown]
# ## 8 · Guidance
#
# Chapter 07's formula, with probabilities for scores: at each place, $p_u\,(p_c/p_u)^w$, normalised. In logits it
# is the same line, $l_u + w\,(l_c - l_u)$ (Schiff et al. 2024). For $w = 1$ it is the conditional distribution.
# For $w > 1$ one would like to draw *strings* from $p_u(x)\,(p_c(x)/p_u(x))^w$.
#
# **Predict, then run.** One letter at a time, with exact denoisers. For which $w$ is this what we get?

# %%
parts = np.stack(
    [rng.dirichlet(np.full(27, 0.7)) * 0.9 + 0.1 / 27 for _ in range(2)]
)  # two classes
tables = [*parts, parts.mean(0)]  # and no class
nets = [discrete_exact.exact_model(kinds["absorbing"], p.reshape(3, 3, 3)) for p in tables]


def classed(x, t, cond):
    every_answer = jnp.stack([net(x, t, None) for net in nets])
    return every_answer[cond, jnp.arange(len(x))]


guided_to, wanted = {}, {}
for w in (0.0, 1.0, 2.0, 4.0):
    guided = discrete.classifier_free(classed, null=2, w=w)
    guided_to[w] = np.exp(-in_each_order(guided, jnp.zeros(27, jnp.int32))).mean(0)
    tilted = tables[2] ** (1 - w) * parts[0] ** w
    wanted[w] = tilted / tilted.sum()
    of_class = guided_to[w] @ (parts[0] / parts.sum(0))
    apart = np.abs(guided_to[w] - wanted[w]).sum() / 2
    print(f"w = {w}: share of the class {of_class:.3f}, distance to what was wanted {apart:.4f}")

# %% tags=["claims"]
# @title Checked: w = 0 and w = 1 are exact; above, the strings are not the tilted distribution
apart_at = {w: np.abs(guided_to[w] - wanted[w]).sum() / 2 for w in wanted}
assert apart_at[0.0] < 1e-5 and apart_at[1.0] < 1e-5
assert apart_at[2.0] > 0.01 and apart_at[4.0] > 0.01
shares = [guided_to[w] @ (parts[0] / parts.sum(0)) for w in (0.0, 1.0, 2.0, 4.0)]
assert (np.diff(shares) > 0).all()

# %% [markdown]
# For $w = 0$ and $w = 1$. With more guidance the strings are more typical of their class, but their distribution
# is another one than the formula promises for strings: the first letter is drawn before the others are known,
# with a guidance that looks at its own marginal only. It is the discrete form of what chapter 07 found for
# Gaussian noise.

# %% [markdown]
# ## 9 · The explorer: a sentence that fills in any order
#
# Move the slider: five sentences, letter by letter. Choose in the menu who writes: random order (hangman), the
# surest first (the most probable letters first), or the uniform chain. Look for the moment at which a sentence is
# decided, and in the uniform chain for letters that change after they were right.

# %%
WRITERS["the surest first"] = (written, samplers.by_confidence(written, 0.0), oracle)
stories = {name: np.asarray(write(jax.random.key(8), name, LENGTH))
           for name in ("random order", "the surest first", "uniform chain")}  # fmt: skip
MOMENTS = (0, 2, 4, 6, 8, 10, 12, 15, 18, 22, 26, 30, 34, 38, 41, LENGTH)


def page(name, n):
    fig, ax = plt.subplots(figsize=(5.6, 1.6))
    for row, text in enumerate(spell(x) for x in stories[name][n][:5]):
        ax.text(0, -row, text, family="monospace", size=10, color=plots.DATA)
    ax.set(xlim=(0, 1), ylim=(-4.5, 1))
    ax.axis("off")
    return fig


for name in stories:
    page(name, 10).suptitle(f"{name}: after 10 of {LENGTH} steps", size="medium", y=1.05)
    plt.show()

# %%
pages = {name: widgets.render(partial(page, name), MOMENTS) for name in stories}
widgets.explorer(pages, [f"step {n} of {LENGTH}" for n in MOMENTS], slider="step", choice="writer")

# %% tags=["claims"]
# @title Checked: masks never change once they are letters; the surest writer writes short sentences
ends = {}
for name, path_of in stories.items():
    was, now = path_of[:-1], path_of[1:]
    changed = ((was != now) & (was != written.mask)).any()
    assert changed == (name == "uniform chain")
    ends[name] = [spell(x).rstrip(".") for x in path_of[-1]]
    assert all(text in CAPTIONS for text in ends[name])
means_of_length = {name: np.mean([len(text) for text in those]) for name, those in ends.items()}
all_lengths = np.array([len(caption) for caption in CAPTIONS])
print(means_of_length, {name: len(set(those)) for name, those in ends.items()})
error_of_length = all_lengths.std() / np.sqrt(200)
assert means_of_length["the surest first"] < all_lengths.mean() - 10 * error_of_length
for name in ("random order", "uniform chain"):
    assert abs(means_of_length[name] - all_lengths.mean()) < 4 * error_of_length
assert len(set(ends["the surest first"])) < 100 < len(set(ends["random order"]))

# %% [markdown]
# All their sentences are correct. But the surest writer's sentences have 29 letters on average, those of the others
# 34 or 35, and fewer than half of its 200 are different. Is it because it always begins with what is sure?
#
# **Predict, then run.** We choose the place whose most probable letter is the surest, and draw the letter only
# then, from its own probability. Everything else stays the same. Will these sentences be too short as well?

# %%
ONE_HOT = np.eye(len(SIGNS), dtype=np.float32)[LEGAL]  # [864, LENGTH, letters]


def surest_place(rng):
    """A sentence by exact counts; the place is chosen before its letter is drawn."""
    fits, still = np.arange(len(LEGAL)), np.ones(LENGTH, bool)
    while len(fits) > 1:  # afterwards all letters are known
        chances = ONE_HOT[fits].mean(0)
        place = np.where(still, chances.max(1), -1).argmax()
        letter = rng.choice(len(SIGNS), p=chances[place] / chances[place].sum())
        fits, still[place] = fits[LEGAL[fits, place] == letter], False
    return CAPTIONS[fits[0]]


places_first = [surest_place(np.random.default_rng(n)) for n in range(100)]
mean_of_places = np.mean([len(text) for text in places_first])
print(f"{mean_of_places:.1f} letters, {len(set(places_first))} of 100 are different")

# %% tags=["claims"]
# @title Checked: the same order is harmless if the place is chosen before the letter is drawn
assert abs(mean_of_places - all_lengths.mean()) < 4 * all_lengths.std() / np.sqrt(100)
assert len(set(places_first)) > 80

# %% [markdown]
# No. So the order itself does no harm: it may depend on all letters that are already there. The surest writer draws
# a letter at *every* mask and keeps the most probable of the drawn ones. The others are thrown away and drawn
# again. So an improbable letter near the end, with which a long sentence would begin to show, is hardly ever kept; a
# point is. An order must not depend on the letters that are being drawn. MaskGIT (Chang et al. 2022) uses such an
# order, with noise on it, and trades diversity for quality.

# %% [markdown]
# ## 10 · A network that describes pictures
#
# Now a network has to learn the sentences, from 6,000 pictures with their captions. A token is now a *word*: 26
# words and the point, 8 places. It is a small transformer (two blocks, width 48). Every place attends to every
# place. It is also told what the picture looks like: the features of the released classifier of shapes, and the
# picture itself at 6×6 pixels. In a tenth of the examples the picture is left out.
#
# Beside it we train an **autoregressive** model: the same network, the same number of parameters, the same
# batches and the same number of updates. Three things differ. A place attends only to places that are not after
# it. The input is shifted by one place, so that place $i$ sees only the words before $i$. The loss is the
# cross-entropy of every next word.
#
# **Predict, then run.** Both are trained with 800 updates. Which of the two will have learnt more after 400?

# %%
WORDS = [*sorted({word for caption in CAPTIONS for word in caption.split()}), "."]
PLACES, spoken = 8, discrete.absorbing(len(WORDS))
in_words = lambda captions: np.array(
    [[WORDS.index(w) for w in (c.split() + ["."] * PLACES)[:PLACES]] for c in captions]
)
say = lambda tokens: " ".join(WORDS[i] if i < len(WORDS) else "_" for i in tokens)
plain = lambda tokens: say(tokens).replace(" .", "")
pictures = {
    split: shapes.load(split, n=n, size=24) for split, n in (("train", 6000), ("test", 500))
}
expert = weights.load("shapes_classifier").model


def look(images):
    """What the network is told of a picture: 64 features and 6×6×3 means."""
    seen = np.concatenate([judge(expert, part)[1] for part in np.split(images, len(images) // 500)])
    coarse = images.reshape(len(images), 6, 4, 6, 4, 3).mean((2, 4)).reshape(len(images), -1)
    return np.concatenate([seen, coarse], axis=1)


raw = {split: look(pictures[split].x) for split in pictures}
centre, width = raw["train"].mean(0), raw["train"].std(0) + 1e-3
looks = {split: np.float32((raw[split] - centre) / width) for split in raw}
truths = {split: in_words(pictures[split].attributes["caption"]) for split in pictures}


# %%
def new_model(causal, seed=0):
    return StringTransformer(len(WORDS), PLACES, width=48, depth=2, features=looks["train"].shape[1],
                             causal=causal, rngs=nnx.Rngs(seed))  # fmt: skip


def left_out(x, key):
    return x * (jax.random.uniform(key, (len(x), 1)) > 0.1)


def masked_words(model, x, targets, key):
    drop, rest = jax.random.split(key)
    return discrete_bound.any_order_loss(
        model, spoken, targets["x0"], left_out(x, drop), rest
    ).mean()


def next_words(model, x, targets, key):
    log_p = jax.nn.log_softmax(model(targets["x0"], jnp.zeros(len(x)), left_out(x, key)))
    return -jnp.take_along_axis(log_p, targets["x0"][..., None], axis=-1).sum((1, 2)).mean()


def lessons(seed=0):
    """Batches of 64: what pictures look like, and their captions."""
    for epoch in range(1000):
        order = np.random.default_rng([seed, epoch]).permutation(6000)
        for chosen in order[:5952].reshape(-1, 64):
            yield looks["train"][chosen], {"x0": truths["train"][chosen]}


# %%
early, speakers = {}, {}
for name, loss in (("masked", masked_words), ("autoregressive", next_words)):
    halfway = loop.Callback(400, lambda step, ema, name=name: early.setdefault(name, ema))
    speakers[name] = loop.fit(
        new_model(name == "autoregressive"), loss, lessons(), steps=800, key=jax.random.key(0),
        optimizer=update.adam(5e-3, 800), ema=0.99, callbacks=[halfway], progress=False,
    ).ema  # fmt: skip


# %%
@partial(jax.jit, static_argnames="steps")
def in_any_order(model, seen, start, key, steps):
    D = discrete.denoiser(model, spoken, seen)
    return samplers.sample(samplers.random_order(spoken), D, start, sampling.uniform(steps), key)[0]


@jax.jit
def from_left_to_right(model, seen, start, key):
    """Word by word; a word that is no mask in `start` is written as it stands there."""

    def write_one(i, x):
        logits = model(x, jnp.zeros(len(x)), seen)[:, i]
        word = jax.random.categorical(jax.random.fold_in(key, i), logits)
        return x.at[:, i].set(jnp.where(start[:, i] == spoken.mask, word, start[:, i]))

    return jax.lax.fori_loop(0, PLACES, write_one, start)


# %%
def count(tokens):
    """Shares of 500 captions that are sentences, and that are true of their picture."""
    captions = [plain(x) for x in tokens]
    correct = [
        a == b for a, b in zip(captions, pictures["test"].attributes["caption"], strict=True)
    ]
    return np.mean([c in CAPTIONS for c in captions]), np.mean(correct)


empty, nothing = jnp.full((500, PLACES), spoken.mask), jnp.zeros_like(looks["test"])
said, one_key = {}, jax.random.key(2)
for seen, told in (("picture", looks["test"]), ("no picture", nothing)):
    for n in (1, 2, 4, 8):
        said[seen, n] = count(in_any_order(speakers["masked"], told, empty, one_key, n))
    said[seen, "AR"] = count(from_left_to_right(speakers["autoregressive"], told, empty, one_key))
halves = {
    "masked": count(in_any_order(early["masked"], looks["test"], empty, one_key, 8)),
    "autoregressive": count(
        from_left_to_right(early["autoregressive"], looks["test"], empty, one_key)
    ),
}

# %%
print(f"{'':12}{'evaluations':12} sentences   true")
for (seen, n), (grammatical, true) in said.items():
    how = "8, AR" if n == "AR" else f"{n}"
    print(f"{seen:12}{how:12} {grammatical:8.1%} {true:8.1%}")
print("true after 400 updates:", {name: f"{true:.1%}" for name, (_, true) in halves.items()})
shares_of = np.eye(len(WORDS))[in_words(CAPTIONS)].mean(0)
one_step = shares_of[np.arange(PLACES), in_words(CAPTIONS)].prod(-1).sum()
print(f"without a picture, exact, all words at once: {one_step:.1%} sentences")
plots.image_grid([pictures["test"].x[:6]], None, scale=1.0)
plt.show()
for text in in_any_order(speakers["masked"], looks["test"], empty, one_key, 8)[:6]:
    print(plain(text))

# %% tags=["claims"]
# @title Checked: with a picture one step is enough; without one, words drawn at once do not fit
# A share of 500 has a standard error of at most .022, near 1 below .01.
parameters = {
    sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) for model in speakers.values()
}
assert len(parameters) == 1  # both have the same number
assert (
    said["picture", 1][1] > 0.9 and said["picture", 8][1] > 0.9 and said["picture", "AR"][1] > 0.9
)
assert abs(said["picture", 1][1] - said["picture", 8][1]) < 0.04
# What is missing at eight steps, where nothing is drawn at once, is the network's own error.
assert 0.75 < said["no picture", 8][0] < said["no picture", "AR"][0]
assert abs(said["no picture", 1][0] - one_step) < 0.12  # four standard errors, and that error
assert said["no picture", 1][0] < said["no picture", 2][0] < said["no picture", 8][0]
assert halves["autoregressive"][1] > halves["masked"][1] + 0.1

# %% [markdown]
# After 400 updates the autoregressive model is ahead by far; after 800 both describe nearly every unseen picture
# correctly. (One seed, and the same for both. The autoregressive model is asked for eight words in each example,
# in the one order that it will use. The masked one is asked for 4.5 of them on average, in every order.)

# %% [markdown]
# The number of steps is the interesting part. **With** a picture, a single evaluation is as good as eight: the
# picture decides every word, so given the picture the words are independent. **Without** one, "at the top left"
# and "in the centre" compete, and words drawn at once do not fit together: about half of the strings are
# sentences. The exact denoiser would have 48 % there, and 100 % with one word at a time. The network has 86 %
# with one word at a time, so its own error is the smaller part. Parallel drawing costs what the letters *still
# have to agree on*, given the condition.
#
# The autoregressive model is better here as well: 97 % (one seed). A picture was left out in a tenth of the
# examples only. Whether more such examples would close the gap, we did not test.

# %% [markdown]
# ### What an order costs: infilling
#
# We ask for a sentence about a star whose eighth word is "left", without a picture. The masked model gets the known
# words as a start and fills in the rest. The autoregressive model has two ways. It can write whole sentences, of
# which we keep those that fit. Or we **force** the known words when their turn comes. But what was written before
# them did not know that they would come.
#
# **Predict, then run.** How many of its 500 free sentences fit? How many of its 500 forced strings are sentences?

# %%
request = np.full((500, PLACES), spoken.mask)
for place, word in ((3, "star"), (7, "left")):
    request[:, place] = WORDS.index(word)
fillers = {
    "infilled": in_any_order(speakers["masked"], nothing, jnp.asarray(request), one_key, PLACES),
    "forced": from_left_to_right(
        speakers["autoregressive"], nothing, jnp.asarray(request), one_key
    ),
}
share_filled = {
    name: np.mean([plain(x) in CAPTIONS for x in np.asarray(tokens)])
    for name, tokens in fillers.items()
}
for name, tokens in fillers.items():
    print(f"{name}: {share_filled[name]:.1%} sentences")
    for x in np.asarray(tokens)[:4]:
        print(f"    {say(request[0])}   →   {plain(x)}")
wrote = np.asarray(from_left_to_right(speakers["autoregressive"], nothing, empty, one_key))
fits = np.mean((wrote[:, 3] == request[0, 3]) & (wrote[:, 7] == request[0, 7]))
all_in_words = in_words(CAPTIONS)
as_asked = (all_in_words[:, [3, 7]] == request[0, [3, 7]]).all(1)
print(f"free: {fits:.1%} fit, exactly {as_asked.mean():.1%} would")

# %% tags=["claims"]
# @title Checked: infilling keeps the request, which one in 27 sentences fits by chance; forcing comes too late
for tokens in fillers.values():
    assert (np.asarray(tokens)[:, [3, 7]] == request[:, [3, 7]]).all()
assert share_filled["infilled"] > share_filled["forced"] + 0.1  # four standard errors are .08
# Six of the nine places begin with "at the top" or "at the bottom"; and the network's own error.
assert abs(share_filled["forced"] - 6 / 9) < 4 * np.sqrt(2 / 9 / 500) + 0.03
assert as_asked.mean() == 32 / 864
assert abs(fits - as_asked.mean()) < 4 * np.sqrt(as_asked.mean() / 500) + 0.01

# %% [markdown]
# All 500 strings of both ways keep the two words. Of the infilled ones 88 % are sentences, as many as without a
# request. Of the forced ones two thirds are. This is no fault of the network: six of the nine places begin with "at
# the top" or "at the bottom", and after "on the right" the forced word comes too late. Of the free sentences about
# one in 27 fits, as counting says, so it would have to write 27 times. Forcing is enough where a known word decides
# nothing that is written before it. (A network can also be trained to fill in from left to right, with the known
# words in front. It then needs examples of that kind.)

# %% [markdown]
# ### Where autoregression is faster, and where it is not
#
# Two things cost time. **Evaluations in a row**: each waits for the one before; it counts when one sentence is
# written on a large machine. **Letters computed**: the work; it counts when the machine is full. An
# autoregressive model keeps keys and values of what it has written (chapter 16's attention), so each evaluation
# computes one letter, and it stops at the end of the sentence. A model with masks computes the whole canvas in
# every step, with room for the longest sentence, and cannot keep anything, since every letter sees every other.

# %%
lengths = np.array([len(caption) + 1 for caption in CAPTIONS])  # with the point that ends it
print("captions in letters, exact denoiser: evaluations in a row, letters computed, correct")
budget = {"autoregressive": (lengths.mean(), lengths.mean(), 1.0)}
for name in ("random order", "remasking", "uniform chain"):
    for n in (4, 16, LENGTH):
        budget[f"{name}, {n}"] = (n, n * LENGTH, right[name, n])
for name, (in_a_row, computed, share) in budget.items():
    print(f"{name:18} {in_a_row:6.1f} {computed:8.0f} {share:8.1%}")

# %% tags=["claims"]
# @title Checked: diffusion can need fewer evaluations in a row, and for these captions needs more work
assert lengths.max() - lengths.min() == 16 and lengths.mean() < LENGTH - 7
assert budget["uniform chain, 16"][0] < lengths.mean() / 2 and budget["uniform chain, 16"][2] > 0.98
assert all(computed > 4 * lengths.mean() for name, (_, computed, _) in budget.items()
           if name != "autoregressive")  # fmt: skip
assert budget[f"random order, {LENGTH}"][0] > lengths.mean()

# %% [markdown]
# Autoregression needs 35.5 evaluations on average, and as many letters of work. With masks, one by one, there are
# 43: more, because the canvas has a fixed length. So for *exact* samples autoregression is faster in both, and
# variable lengths make the difference larger. The uniform chain needs 16 evaluations in a row for sentences that
# are nearly always correct, and 19 times the work.
#
# So here, for one user on a large machine, few parallel steps can be faster; where the machine is full,
# autoregression is. With words and a picture, above, one evaluation was enough. It computes 8 words, as many as the
# autoregressive model, in one evaluation instead of eight. And what no count shows: the masked model can fill in.

# %% [markdown]
# ## 11 · Digits of ones and zeros
#
# The digits of chapter 03, 8×8, every pixel above the middle grey a one. They have 64 letters of an alphabet of
# two. Again one network twice: two blocks, width 48, told the class; the same 200 updates (one seed).
#
# Both give $-\log_2 p$ of unseen digits, in bits: the autoregressive one exactly, in its one order, the masked
# one as the bound (4), which we estimate with 30 draws for each digit. As a baseline, each pixel gets its own
# probability in its class. One bit per pixel would be 64.
#
# **Predict, then run.** Which of the two needs fewer bits?

# %%
digits = {split: data.load("digits", split=split) for split in ("train", "test")}
bits_of = {s: np.float32(d.x.reshape(len(d.x), 64) > 0) for s, d in digits.items()}
inked = discrete.absorbing(2)


def masked_pixels(model, x, labels, key):
    return discrete_bound.any_order_loss(model, inked, x.astype(jnp.int32), labels, key).mean()


def next_pixels(model, x, labels, key):
    x = x.astype(jnp.int32)
    log_p = jax.nn.log_softmax(model(x, jnp.zeros(len(x)), labels))
    return -jnp.take_along_axis(log_p, x[..., None], axis=-1).sum((1, 2)).mean()


painters, digit_bits = {}, {}
for name, loss in (("masked", masked_pixels), ("autoregressive", next_pixels)):
    painter = StringTransformer(2, 64, width=48, depth=2, num_classes=10,
                                causal=name == "autoregressive", rngs=nnx.Rngs(0))  # fmt: skip
    batches = data.batches((bits_of["train"], digits["train"].labels), 64, 0)
    painters[name] = loop.fit(painter, loss, batches, steps=200, key=jax.random.key(0), ema=0.99,
                              optimizer=update.adam(3e-3, 200), progress=False).ema  # fmt: skip
    cost = jax.jit(lambda model, key, f=loss: f(model, bits_of["test"], digits["test"].labels, key))
    keys = jax.random.split(jax.random.key(1), 30 if name == "masked" else 1)
    digit_bits[name] = np.array([cost(painters[name], k) for k in keys]) / np.log(2)

# %%
ink = np.stack([bits_of["train"][digits["train"].labels == k].mean(0) for k in range(10)])
ink = np.clip(ink, 0.005, 0.995)[digits["test"].labels]
alone_bits = -np.log2(np.where(bits_of["test"] > 0, ink, 1 - ink)).sum(1).mean()
spread_of = digit_bits["masked"].std() / np.sqrt(30)
print(f"bits for each unseen digit: pixels alone {alone_bits:.1f};",
      f"masked {digit_bits['masked'].mean():.2f} ± {spread_of:.2f};",
      f"autoregressive {digit_bits['autoregressive'][0]:.2f}")  # fmt: skip


@partial(jax.jit, static_argnames="steps")
def paint(model, labels, key, steps):
    D, start = discrete.denoiser(model, inked, labels), jnp.full((len(labels), 64), inked.mask)
    return samplers.sample(samplers.random_order(inked), D, start, sampling.uniform(steps), key)[0]


@jax.jit
def paint_in_rows(model, labels, key):
    def one(i, x):
        logits = model(x, jnp.zeros(len(x)), labels)[:, i]
        return x.at[:, i].set(jax.random.categorical(jax.random.fold_in(key, i), logits))

    return jax.lax.fori_loop(0, 64, one, jnp.zeros((len(labels), 64), jnp.int32))


ten = jnp.arange(10)
rows_of = {f"masked, {n}": paint(painters["masked"], ten, one_key, n) for n in (64, 8, 1)}
rows_of["autoregressive, 64"] = paint_in_rows(painters["autoregressive"], ten, one_key)
rows_of["real"] = np.stack([bits_of["test"][digits["test"].labels == k][0] for k in range(10)])
as_images = [np.float32(x).reshape(10, 8, 8, 1) * 2 - 1 for x in rows_of.values()]
plots.image_grid(as_images, list(rows_of), "Digits of ones and zeros, and their evaluations")
plt.show()

# %% tags=["claims"]
# @title Checked: after 200 updates the autoregressive model needs fewer bits; the masked one is far behind
assert 2 < digit_bits["masked"].mean() - digit_bits["autoregressive"][0] < 5
assert digit_bits["autoregressive"][0] < alone_bits - 1.5
assert 0 < digit_bits["masked"].mean() - alone_bits < 2 and spread_of < 0.5

# %% [markdown]
# The autoregressive model needs fewer bits than the masked one, by about three, and than the pixels alone. The
# masked model, after as many updates, needs even a little more than the pixels alone. It is the same picture as with
# the captions after 400 updates: to learn every order takes longer than to learn one. Hoogeboom et al. 2022 report
# a gap that remains on text, for large networks that were trained for long.
#
# Compare the first row of the picture, 64 evaluations, with the third, one evaluation. More steps remove the error
# of drawing pixels in parallel. They cannot remove the error of the network.
#
# (One seed, 200 updates, 1,437 digits: this says who learns faster, not where both end.)

# %% [markdown]
# ## 12 · Break it on purpose: three weights
#
# The weight of (3) is $-\alpha'/(1 - \alpha)$. Published code writes it with $\varsigma = -\log\alpha$ as
# $\varsigma'/(e^{\varsigma} - 1)$, `dsigma / expm1(sigma)`. Three ways to get it wrong, none of which crashes:
#
# - the sign inside: `-dsigma / expm1(-sigma)`, which is $\varsigma'/(1 - \alpha)$;
# - another rate: $1/t$, which belongs to $\alpha = 1 - t$, with the cosine schedule;
# - a shape: weights `[B, 1]` times losses `[B]` are `[B, B]`, and the mean of it is the mean weight times the
#   mean loss.
#
# **Predict, then run.** We give each of them the *exact* denoiser of the 27 strings. Its loss must be the
# entropy, the mean of $-\log p$. What will the three say?

# %%
cosine = discrete.absorbing(3, discrete.COSINE)
many = jnp.asarray(every[np.random.default_rng(1).choice(27, 2**15, p=p_abc)])


@jax.jit
def with_each_weight(key):
    """The mean loss, with the right weight and with three wrong ones."""
    key_t, key_x = jax.random.split(key)
    t = 1e-3 + (1 - 2e-3) * jax.random.uniform(key_t, (len(many),))
    x = discrete.add_noise(cosine, many, t, key_x)
    log_p = discrete.denoiser(exact_nets["absorbing"], cosine)(x, t)
    lost = -jnp.take_along_axis(log_p, many[..., None], axis=-1).sum((1, 2))
    alpha, rate = cosine.schedule.alpha(t), discrete_bound.noise_rate(cosine, t)
    sigma, dsigma = -jnp.log(alpha), rate / alpha
    weight = dsigma / jnp.expm1(sigma)
    return {
        "right": (weight * lost).mean(),
        "sign": (-dsigma / jnp.expm1(-sigma) * lost).mean(),
        "rate 1/t": (lost / t).mean(),
        "shape": (weight[:2048, None] * lost[:2048]).mean(),
    }


entropy = p_abc @ nll
tries = [with_each_weight(jax.random.key(seed)) for seed in range(4)]
weighed = {name: np.array([one[name] for one in tries]) for name in tries[0]}
print(f"entropy {entropy:.2f};", {name: f"{v.mean():.2f}" for name, v in weighed.items()})

# %% tags=["claims"]
# @title Checked: the right weight gives the entropy, the wrong ones do not
# Four times 32,768 draws with a standard deviation of about 5: .014, and .01 for what lies at the ends.
assert abs(weighed["right"].mean() - entropy) < 0.07
for name in ("sign", "rate 1/t", "shape"):
    assert weighed[name].min() > entropy + 0.5

# %% [markdown]
# All three are positive numbers, as a loss should be, and nothing complains. But they are no likelihood, and none
# of them weighs the times against each other as (3) does: a network that is trained with them minimises something
# else. **The lesson.** Test a loss with the exact denoiser of a small alphabet: its mean *must* be the entropy.

# %% [markdown]
# ## 13 · What to inspect
#
# 1. **The loss of an exact denoiser** on a small alphabet: the entropy, whatever the schedule.
# 2. **The share of masks** at each time in training and in sampling. Remasking must not change it.
# 3. **Quality against the number of steps**, with one token at a time as the reference. If few steps are bad, the
#    tokens still have something to agree on.
# 4. **Diversity** beside correctness: how many different strings there are, against what independent draws would
#    give.
# 5. **Evaluations in a row and tokens computed**, both. A figure of speed that names one of them is half a
#    figure.
# 6. **How letters are drawn**: bits of the Gumbel noise, and whether a rare change is drawn in two parts.

# %% [markdown]
# ## Recap
#
# 1. A letter is kept with probability $\alpha(t)$; what is forgotten becomes a mask or any letter.
# 2. With masks, the bound in continuous time is the mean over all orders of the autoregressive $-\log p$; it is
#    exact if the denoiser is. With $T$ parallel steps the chain makes another distribution.
# 3. With masks, a letter that is written is final. Random letters and remasking can repair, where mistakes can be
#    seen.
# 4. Drawing in parallel costs what the tokens still have to agree on, given the condition.
# 5. Autoregression computes each token once and stops at the end; diffusion has fewer evaluations in a row, and any
#    order. It has more work, unless one step is enough.
#
# **Exercises:** [20 · exercises](../exercises/20_discrete.ipynb).
#
# ## Try it yourself
#
# 1. Section 10 with the request "_ _ red _ _ _ top _": two words are given. What is the exact share that fits?
# 2. Section 5 with `remasking(written, 1.0)`, and with 100 steps. Is more remasking better?
# 3. Section 3 with a distribution in which the letters are independent. What is the gap of one step?

# %% [markdown]
# ## Further reading
#
# - J. Austin, D. Johnson, J. Ho, D. Tarlow, R. van den Berg. *Structured Denoising Diffusion Models in Discrete
#   State-Spaces.* NeurIPS 2021. [arXiv:2107.03006](https://arxiv.org/abs/2107.03006). D3PM: the chains of section
#   2.
# - E. Hoogeboom et al. *Autoregressive Diffusion Models.* ICLR 2022.
#   [arXiv:2110.02037](https://arxiv.org/abs/2110.02037). Equation (4), and the loss of section 4.
# - A. Campbell et al. *A Continuous Time Framework for Discrete Denoising Models.* NeurIPS 2022.
#   [arXiv:2205.14987](https://arxiv.org/abs/2205.14987).
# - S. Sahoo et al. *Simple and Effective Masked Diffusion Language Models.* NeurIPS 2024.
#   [arXiv:2406.07524](https://arxiv.org/abs/2406.07524). Equation (3).
# - J. Shi, K. Han, Z. Wang, A. Doucet, M. Titsias. *Simplified and Generalized Masked Diffusion for Discrete
#   Data.* NeurIPS 2024. [arXiv:2406.04329](https://arxiv.org/abs/2406.04329).

# %% [markdown]
# - K. Zheng et al. *Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate
#   Categorical Sampling.* ICLR 2025. [arXiv:2409.02908](https://arxiv.org/abs/2409.02908). Section 7.
# - Y. Schiff et al. *Simple Guidance Mechanisms for Discrete Diffusion Models.* ICLR 2025.
#   [arXiv:2412.10193](https://arxiv.org/abs/2412.10193). Section 8, and the uniform chain.
# - G. Wang, Y. Schiff, S. Sahoo, V. Kuleshov. *Remasking Discrete Diffusion Models with Inference-Time Scaling.*
#   2025. [arXiv:2503.00307](https://arxiv.org/abs/2503.00307). Section 6.
# - H. Chang, H. Zhang, L. Jiang, C. Liu, W. Freeman. *MaskGIT: Masked Generative Image Transformer.* CVPR 2022.
#   [arXiv:2202.04200](https://arxiv.org/abs/2202.04200). The surest letters first.
#
# **New words:** absorbing chain, mask, uniform chain, any-order autoregression, ancestral step, remasking,
# infilling, evaluations in a row, canvas.
