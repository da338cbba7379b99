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
# # 04 · Networks that denoise
#
# **The question.** What does a network need in order to denoise at every noise level? And how much
# does each of its parts help?
#
# At the end of this chapter you will be able to
#
# - write a U-Net's forward pass from memory: skips, FiLM, attention;
# - measure how much a part helps: take it out, train again, and read the error by noise level;
# - check that a network hears the time, and choose the average of its weights;
# - compare losses across targets, and draw training times where they matter;
# - train with less memory than a batch seems to need.
#
# **You need** chapter 03. **Time**: reading takes about 85 minutes. The notebook itself runs for two
# to three minutes on two CPU cores, and a little longer the first time.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from diffusion_course import data, denoiser, losses, parameterization, process, samplers, sampling
from diffusion_course import weights
from diffusion_course.data import toy2d
from diffusion_course.evaluation import metrics
from diffusion_course.models.classifier import judge
from diffusion_course.models.layers import depth_to_space, sinusoidal_embedding, space_to_depth
from diffusion_course.models.layers import upsample, ResidualBlock
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import loop, recipes, update

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# The next figure shows one training run of 600 steps and eight networks. Each row draws the same ten
# digits with a different *average* of the weights of this run. The first row takes the last weights
# without any average. By the end you will know why the first row is not the best. You will know what
# went wrong in the two rows of noise, and why you need not choose anything for the last row.
#
# (The cell trains the network now, in a few seconds. Section 3 explains the network, and section 5
# explains the averages.)


# %%
digits, unseen = data.load("digits"), data.load("digits", split="test")
p = process.vp_cosine()
steps = 600
decays = (0.0, 0.9, 0.97, 0.99, 0.995, 0.999, 0.9999)
kept, gradient_norms = {}, []


def watch():
    """The first part of an optimiser: leaves the gradient as it is, and notes its length."""
    note = lambda gradient, state, params=None: (gradient, optax.global_norm(gradient))
    return optax.GradientTransformation(lambda params: jnp.zeros(()), note)


def collector(kept, norms):
    """What to do after every step: move each average towards the weights, and keep some."""
    averages = {}

    def collect(state):
        n, now = int(state.step), np.array(state.params)
        norms.append(float(state.opt_state[0]))
        for d in decays:
            averages[d] = update.ema_update(averages.get(d, now), now, d)
        d = float(update.ema_decay(n, 0.9999))
        averages["warm-up"] = update.ema_update(averages.get("warm-up", now), now, d)
        if n in (150, 300, steps):
            kept[n] = dict(averages)

    return collect


# %%
def objective(forward):
    """The loss of a network `forward(net, x, t, labels)`; a tenth of the labels are dropped."""

    def loss(net, x, labels, key):
        key_drop, key_loss = jax.random.split(key)
        labels = losses.drop_labels(key_drop, labels, 10, 0.1)
        return losses.diffusion_loss(partial(forward, net), p, "v", x, labels, key_loss)

    return loss


def new_unet():
    return UNet(1, (16, 32), num_classes=10, rngs=nnx.Rngs(0))


def fit_and_collect(seed, kept, norms):
    """A run at a constant learning rate, with `collect` after every step."""
    batches, key = data.batches(digits, size=64, seed=seed), jax.random.key(seed)
    adam, save = optax.chain(watch(), optax.adam(1e-2)), loop.Save(1, collector(kept, norms))
    loss = objective(UNet.__call__)
    return loop.fit(new_unet(), loss, batches, steps=steps, optimizer=adam, save=save, key=key)


run = fit_and_collect(0, kept, gradient_norms)


# %% alt="Ten digits in eight rows, drawn with different averages of the weights. From d = 0 to 0.995, and with the warm-up, there are digits. At 0.999 they are hidden in noise, and at 0.9999 there is only noise."
@jax.jit
def draw(net, x_start, labels):
    D = denoiser.denoiser(net, p, "v", labels)
    times, key = sampling.uniform(20), jax.random.key(0)
    return sampling.sample(samplers.ddim(p), D, x_start, times, key)[0]


x_start = jax.random.normal(jax.random.key(1), (100, 8, 8, 1))
labels = jnp.arange(100) % 10
drawn = {
    (n, d): np.asarray(draw(update.merge(new_unet(), vector), x_start, labels))
    for n, vectors in kept.items()
    for d, vector in vectors.items()
}
names = {d: "d = 0 (last)" if d == 0 else f"d = {d}" for d in decays} | {"warm-up": "warm-up"}
plots.image_grid([drawn[steps, d][:10] for d in names], list(names.values()))
plt.show()

# %% [markdown]
# ## 2 · What the job demands
#
# The best answer $D(x, t)$ is an average over all images that could lie under $x$ (chapter 02). From how
# many pixels around must a network collect its answer? This area is called its **receptive field**.
# We measure it in a trained network. How much does the *middle* pixel of $D(x, t)$ change when another
# pixel of $x$ changes? The figure shows the size of $\partial D_\text{middle}/\partial x_j$ for every
# pixel $j$ (root mean square over 32 digits; black is the largest value of each panel). The title gives
# the share of the squares that lies within two pixels.
#
# (For the exact denoiser this derivative is $\alpha/\sigma^2$ times the covariance of the two pixels of
# $x_0$, given $x$. You get this if you differentiate chapter 02's formula once more. Exercise 04.7 uses
# it.)
#
# **Predict, then run.** At $t = 0.05$ the image is nearly clean, and at $t = 0.9$ it is nearly noise. At
# which time will the network look further?

# %%
mnist = weights.load("mnist")
digit = jnp.arange(32) % 10
big = jax.jit(
    lambda net, x, labels: sampling.sample(
        samplers.ddim(mnist.process), denoiser.denoiser(net, mnist.process, "v", labels), x,
        sampling.uniform(20), jax.random.key(0),
    )[0]
)(mnist.model, jax.random.normal(jax.random.key(2), (32, 28, 28, 1)), digit)  # fmt: skip


@jax.jit
def reach(net, t):
    """Root mean square of the middle pixel's derivative by every pixel, [28, 28]."""
    eps = jax.random.normal(jax.random.key(3), big.shape)
    x_t = process.add_noise(mnist.process, big, eps, t)
    D = denoiser.denoiser(net, mnist.process, "v", digit)
    slope = jax.grad(lambda x: D(x, t)[:, 14, 14].sum())(x_t)
    return jnp.sqrt((slope**2).mean((0, 3)))


# %% alt="How strongly the middle pixel of the answer depends on each pixel of the input, at five times. At t = 0.05 it depends on one pixel; the spot grows with the time, and at 0.9 it is a wide cloud. The share within two pixels falls from 99 % to 59 %."
looked = {t: np.asarray(reach(mnist.model, t)) for t in (0.05, 0.2, 0.4, 0.6, 0.9)}
down, right = np.mgrid[:28, :28] - 14
near = np.maximum(np.abs(down), np.abs(right)) <= 2
share = {t: float((seen[near] ** 2).sum() / (seen**2).sum()) for t, seen in looked.items()}
fig, axes = plt.subplots(1, 5, figsize=(10, 2.3))
for ax, (t, seen) in zip(axes, looked.items(), strict=True):
    ax.imshow(seen / seen.max(), cmap="gray_r", vmin=0, vmax=1)
    ax.set(title=f"t = {t}: {share[t]:.0%}", xticks=[], yticks=[])
plt.show()

# %% tags=["claims"]
# @title Checked: the network looks further and further as the noise grows
assert share[0.05] > 0.95 and share[0.9] < 0.8  # of the sum of squares, within 2 pixels
assert (np.diff(list(share.values())) < 0).all()

# %% [markdown]
# When the image is nearly clean, the neighbours are enough. When it is nearly noise, every pixel counts
# a little. (Our network is told which digit it is. It still has to find out where the strokes lie.) One network
# has to do both. So a denoiser needs
#
# 1. **details at full resolution** for small $t$: the *skip connections* provide them;
# 2. **the whole image at once** for large $t$: *coarse levels* and *attention* provide it;
# 3. **the time $t$**, because the two jobs differ: the *time embedding* and *FiLM* provide it.

# %% [markdown]
# ## 3 · A U-Net, taken apart
#
# **FiLM** (Perez et al. 2018, eq. 1 and 2) tells every block the time and the label. A block can then
# make a feature twice as strong at high noise and turn it off at low noise. From the embedding $e$ a
# dense layer computes a scale $s$ and a shift $b$ for each channel. They act on the normalised
# features. The norm is a **group norm**: it cuts the channels into groups and brings each group of each
# image to mean 0 and variance 1, over its pixels and channels (Wu & He 2018).
#
# $$\operatorname{FiLM}(h) = (1 + s(e)) \odot \operatorname{norm}(h) + b(e) \tag{1}$$
#
# A **residual block** consists of two convolutions with (1) between them. Its input is added to the
# result:


# %%
def residual_block(block, x, emb, scaled=1):
    """One block, written out with its own layers; with scaled = 0 the embedding is only added."""
    h = block.conv1(jax.nn.silu(block.norm1(x)))
    scale, shift = jnp.split(block.film(jax.nn.silu(emb)), 2, axis=-1)  # [B, C] each
    h = block.norm2(h) * (1 + scaled * scale[:, None, None]) + shift[:, None, None]
    h = block.conv2(jax.nn.silu(h))
    return h + (x if block.skip is None else block.skip(x))


def attention(layer, x):
    """Every pixel looks at every pixel (Vaswani et al. 2017, eq. 1), for one head."""
    tokens = layer.norm(x).reshape(len(x), -1, x.shape[-1])
    q, k, v = jnp.split(layer.qkv(tokens), 3, axis=-1)
    logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    return x + layer.out(jax.nn.softmax(logits) @ v).reshape(x.shape)


# %% [markdown]
# The **U-Net** (Ronneberger et al. 2015; for diffusion Ho et al. 2020, appendix B) has three parts. On
# the way down, blocks work at falling resolution, and each puts its result on a stack. Then comes the
# middle. On the way up, blocks work at rising resolution, and each takes one result off the stack. The
# argument `keep` takes parts out. For each example it holds one number for the skips, one for the time,
# one for the attention and one for the scale of FiLM: 1 keeps the part and 0 leaves it out. (We use numbers
# and not `if`s, so that they may change without a new compilation. The ablation below needs this.)


# %%
def unet(net, x, t, labels, keep):
    """The forward pass of `UNet`, with its own layers; keep [B, 4], see above."""
    skips, attends, scaled = (keep[:, part, None, None, None] for part in (0, 2, 3))
    emb = net.embed(jnp.where(keep[:, 1] == 1, t, 0.5), labels)
    h = net.conv_in(space_to_depth(x, net.stem))
    stack = [h]
    for level, block in enumerate(net.down):
        h = residual_block(block, h, emb, scaled)
        stack.append(h)
        h = h if block is net.down[-1] else net.halve[level](h)
    h = residual_block(net.middle, h, emb, scaled)
    h = jnp.where(attends == 1, attention(net.attention, h), h)
    for level, block in enumerate(net.up):
        h = jnp.concatenate([h, skips * stack.pop()], axis=-1)
        h = residual_block(block, h, emb, scaled)
        h = h if block is net.up[-1] else net.double[level](upsample(h))
    h = jnp.concatenate([h, skips * stack.pop()], axis=-1)
    return depth_to_space(net.conv_out(jax.nn.silu(net.norm_out(h))), net.stem)


# %% tags=["comparison"]
net, call = run.ema, jax.jit(UNet.__call__)
inputs = drawn[steps, 0.0][:64], jnp.linspace(0.05, 0.95, 64), labels[:64]
written_out, library = jax.jit(unet)(net, *inputs, jnp.ones((64, 4))), call(net, *inputs)
print(f"largest difference {jnp.abs(written_out - library).max():.1e}")
# The same float32 operations in another order, through some twenty layers.
np.testing.assert_allclose(written_out, library, atol=1e-4)

# %%
count = {name: sum(a.size for a in jax.tree.leaves(nnx.state(part))) for name, part in (
    ("way down", net.down), ("middle", net.middle), ("attention", net.attention),
    ("way up", net.up), ("time and label", net.embed), ("all", net),
)}  # fmt: skip
print(", ".join(f"{name} {n:,}" for name, n in count.items()))

# %% [markdown]
# The way up has the most parameters, because its blocks read more channels: the wide features from below,
# and what comes off the stack. Together these are 64 and 48 channels; the blocks on the way down read 16.
# Before we take parts out, look
# at one detail that decides whether training starts well. The last convolution of every block, the
# output of the attention and the output of the network start at **zero**. So an untrained block is
# the identity (or one dense layer, where the width changes), and the untrained network answers 0.

# %%
fresh = new_unet()
v_at_start = np.mean([
    losses.diffusion_loss(partial(call, fresh), p, "v", digits.x[i : i + 64],
                          digits.labels[i : i + 64], jax.random.key(i))
    for i in range(0, 1024, 64)
])  # fmt: skip
power = np.mean(digits.x**2)
print(f"loss of the untrained network: {v_at_start:.3f}")

# %% tags=["claims"]
# @title Checked: the stack makes the way up large; an untrained block is the identity and answers 0
assert max(count, key=lambda name: count[name] * (name != "all")) == "way up"
assert round(count["all"], -4) == 120_000
assert [[b.conv1.kernel.shape[2] for b in way] for way in (net.up, net.down)] == [
    [64, 48],
    [16, 16],
]
h = jax.random.normal(jax.random.key(5), (2, 4, 4, 32))
emb = jax.random.normal(jax.random.key(6), (2, 64))
assert (fresh.middle(h, emb) == h).all() and (fresh.attention(h) == h).all()
assert (call(fresh, *inputs) == 0).all()
# For v the answer 0 costs the mean of alpha² + sigma²·x0², half of each over the cosine.
assert abs(v_at_start - (0.5 + 0.5 * power)) < 0.03

# %% [markdown]
# **Why no batch norm?** A batch norm divides each channel by its spread over the *batch*. In training, a batch
# holds all noise levels. When we sample, all images of a batch have the *same* level. How different is the
# spread of the first layer's channels then?

# %%
pictures, white = jnp.asarray(unseen.x), jax.random.normal(jax.random.key(15), unseen.x.shape)


def channel_spread(t):
    """Standard deviation of each channel of the first layer over a batch, [16]."""
    noisy = process.add_noise(p, pictures, white, t)
    return np.asarray(net.conv_in(space_to_depth(noisy, net.stem)).std((0, 1, 2)))


mixed = channel_spread(jnp.linspace(0.01, 0.99, len(pictures)))
relative_spread = {t: channel_spread(t) / mixed for t in (0.05, 0.5, 0.95)}
for t, ratio_of_t in relative_spread.items():
    print(f"all images at t = {t}: spread of the channels {ratio_of_t.min():.2f} to "
          f"{ratio_of_t.max():.2f} times that of a mixed batch")  # fmt: skip

# %% tags=["claims"]
# @title Checked: a batch at one level has another spread than a mixed one
assert abs(relative_spread[0.95].max() - 1.28) < 0.02
assert abs(relative_spread[0.05].min() - 0.59) < 0.02
# With group norms an image does not feel the others of its batch: three times as bright, the same answer.
brighter_others = jnp.asarray(inputs[0]).at[1:].multiply(3.0)
np.testing.assert_allclose(call(net, brighter_others, *inputs[1:])[0], library[0], atol=1e-5)

# %% [markdown]
# A batch norm that uses the statistics of its own batch would meet others in sampling than in training, and they
# would change with every step. Usually a batch norm takes running averages of the training instead. These fit no
# single level: at $t = 0.95$ some channels would come out 1.28 times as wide, and at $t = 0.05$ some only 0.59
# times. And in training an image depends on the others of its batch. A group norm looks at one image alone. (DDPM
# has it in this place too, to keep the code simple: Ho et al. 2020, appendix B.)

# %% [markdown]
# ### How much each part helps
#
# You cannot see from a part how much it helps. You must take it out and train again, for 300 steps, with the
# same data, the same batches and the same noise. "Plain addition" is a network without the scale $s$ of (1): it
# only adds the embedding, here after the norm. (DDPM's own network adds it before the norm.)
#
# One run of each would not tell help from luck. So five networks were trained with three seeds, and their errors
# are recorded (`benchmarks/network_parts.py`). The next cell trains two of the fifteen again.
#
# **Predict, then run.** Which of the three, skips, attention or time, matters most at low noise? Which
# one matters most at high noise? And which one hardly matters on images of 8×8?

# %%
variants = {  # skips, time, attention, scale of FiLM
    "complete": (1, 1, 1, 1),
    "no skips": (0, 1, 1, 1),
    "no time": (1, 0, 1, 1),
    "no attention": (1, 1, 0, 1),
    "plain addition": (1, 1, 1, 0),
}


def in_parts(net, x, t, cond):
    """The network of these labels [B] and parts [B, 4]."""
    return unet(net, x, t, *cond)


def loss_in_parts(net, x, cond, key):
    labels, keep = cond
    forward = lambda net, x, t, labels: unet(net, x, t, labels, keep)
    return objective(forward)(net, x, labels, key)


def error_of_v(net, x0, eps, t, cond):
    return losses.squared_error(partial(in_parts, net), p, "v", x0, eps, t, cond)


# %%
grid_t = np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
error = {}
for name in ("complete", "no skips"):
    tiled = lambda n, keep=variants[name]: np.tile(np.float32(keep), (n, 1))
    batches = ((x, (y, tiled(64))) for x, y in data.batches(digits, size=64, seed=0))
    trained = loop.fit(new_unet(), loss_in_parts, batches, steps=300, key=jax.random.key(0),
                       optimizer=update.adam(3e-3, 300)).ema  # fmt: skip
    error[name] = metrics.loss_by_time(
        error_of_v, trained, unseen.x, (unseen.labels, tiled(360)), grid_t, jax.random.key(9), 4
    )
    print(f"{name:14}:", " ".join(f"{e:.4f}" for e in error[name]))

# %%
# Error of v at each time of grid_t, for three seeds. Each is a mean of 1,440: 360 unseen images, 4 draws
# of noise, the same for all networks.
RECORDED = {
    "complete": [[0.5448, 0.3329, 0.2525, 0.2101, 0.1863, 0.1762, 0.1771],
        [0.5520, 0.3425, 0.2554, 0.2111, 0.1877, 0.1772, 0.1793],
        [0.5486, 0.3326, 0.2516, 0.2091, 0.1863, 0.1752, 0.1780]],
    "no skips": [[0.6730, 0.4331, 0.3296, 0.2620, 0.2156, 0.1884, 0.1796],
        [0.6313, 0.4232, 0.3233, 0.2571, 0.2122, 0.1858, 0.1812],
        [0.6130, 0.4026, 0.3095, 0.2489, 0.2084, 0.1842, 0.1792]],
    "no time": [[0.6361, 0.3555, 0.2754, 0.2361, 0.2109, 0.1937, 0.2112],
        [0.6242, 0.3711, 0.2857, 0.2388, 0.2092, 0.1947, 0.2146],
        [0.6187, 0.3622, 0.2820, 0.2410, 0.2093, 0.1920, 0.2170]],
    "no attention": [[0.5467, 0.3331, 0.2527, 0.2103, 0.1865, 0.1763, 0.1770],
        [0.5513, 0.3423, 0.2556, 0.2108, 0.1874, 0.1771, 0.1789],
        [0.5490, 0.3333, 0.2522, 0.2097, 0.1865, 0.1751, 0.1779]],
    "plain addition": [[0.5957, 0.3421, 0.2602, 0.2182, 0.1943, 0.1831, 0.1893],
        [0.5589, 0.3395, 0.2572, 0.2152, 0.1928, 0.1825, 0.1904],
        [0.5556, 0.3383, 0.2570, 0.2130, 0.1895, 0.1790, 0.1849]],
}  # fmt: skip
recorded = {name: np.array(runs) for name, runs in RECORDED.items()}  # [3 seeds, 7 times]

# %% alt="The error of five networks over time, as it is and divided by the complete network's. Without skips it is about a quarter larger at middle times, and hardly larger at the highest noise. Without time it is larger everywhere, and most at the end. Without attention nothing changes."
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
plots.curves(grid_t, {name: runs.mean(0) for name, runs in recorded.items()}, xlabel="time $t$",
             ylabel="squared error of $v$", ax=axes[0], label_at=0.15)  # fmt: skip
axes[1].set(ylim=(0.97, 1.35))
ratio = {name: runs / recorded["complete"] for name, runs in recorded.items()}
plots.curves(grid_t, {name: r.mean(0) for name, r in ratio.items()}, xlabel="time $t$", ax=axes[1],
             ylabel="error / complete network's", label_at=0.45)  # fmt: skip
for color, by_seed_and_time in zip(plots.SERIES, ratio.values(), strict=False):
    for one_seed in by_seed_and_time:
        axes[1].plot(grid_t, one_seed, ".", color=color, ms=4)
axes[1].set_title("lines: mean of three seeds (dots)")
plt.show()
for name, r in ratio.items():
    print(f"{name:14}: {r.mean():.3f} times the complete network's error; by time "
          + " ".join(f"{low:.2f}-{high:.2f}" for low, high in zip(r.min(0), r.max(0), strict=True)))  # fmt: skip

# %% tags=["claims"]
# @title Checked: skips matter at low and middle noise, time at every level, scale little, attention not
assert all(np.abs(error[n] / recorded[n][0] - 1).max() < 0.03 for n in error)  # rounding grows
assert (ratio["no skips"][:, :4] > 1.1).all() and (ratio["no skips"][:, -1] < 1.02).all()
assert (ratio["no skips"][:, 2] > ratio["no skips"][:, 0] + 0.06).all()
assert 1.04 < ratio["no skips"][:, 5].min() < ratio["no skips"][:, 5].max() < 1.08
timeless = ratio["no time"]
assert (timeless > 1.06).all() and (timeless.argmax(1) == 6).all() and timeless[:, 6].min() > 1.18
assert (np.abs(ratio["no attention"] - 1) < 0.005).all()
added_only = ratio["plain addition"]
assert 1.02 < added_only.mean(1).min() < added_only.mean(1).max() < 1.06
assert (added_only[:, 4:] > 1.01).all() and added_only[1:, :2].max() < 1.02 < 1.09 < added_only[
    0, 0
]
assert (added_only < timeless - 0.03).all()

# %% [markdown]
# - Without **skips** the error at low and middle noise is 12 to 31 % larger: there the result must have details.
#   At $t = 0.8$ it is 5 to 7 % larger. At the highest noise skips hardly help, because no details are visible
#   there. Section 2 led us to expect this.
# - **Time** helps at every noise level, and most at the highest. Without it the network must guess from the
#   image how noisy it is. (The network still receives the label.)
# - **Attention** does not help *here*. At 4×4 the four convolutions around it reach across the whole
#   image anyway. A part of a recipe is not always a reason why the recipe works. On larger images,
#   where distant parts belong together, attention helps (Dhariwal & Nichol 2021, table 1).
# - Without the **scale** of FiLM the error is 2 to 5 % larger. With plain addition the network hears the time, but
#   it cannot multiply a feature by it. Dhariwal & Nichol (2021, table 3) measured a gain on ImageNet too,
#   against addition before the norm. They call FiLM "adaptive group normalization".

# %% [markdown]
# Look at the dots of plain addition at the lowest noise: 9 % with one seed, 1 % with each of the others. Whoever
# had trained with the first seed alone would have told a story about low noise.
#
# Such an experiment is called an ablation. It has a limit: its result holds for these data, this size and
# this training.

# %% [markdown]
# ### Learning rate, batch size, number of steps
#
# Papers state such numbers for larger images and much larger networks, which train for hours to weeks on
# accelerators:
#
# | network and data | learning rate | batch | $T$ | source |
# |---|--:|--:|--:|---|
# | DDPM, CIFAR-10 (32×32) | 2e-4 | 128 | 1000 | Ho et al. 2020, appendix B |
# | DDPM, 256×256 | 2e-5 | 64 | 1000 | the same |
# | improved DDPM, ImageNet 64×64 | 1e-4 | 128 | 4000 | Nichol & Dhariwal 2021, appendix A |
# | DiT, latents 32×32 | 1e-4 | 256 | 1000 | Peebles & Xie 2023, section 4 |
#
# Do they hold for a network of 120,000 weights and less than a minute? The next table is recorded
# (`benchmarks/settings.py`).
#
# **Predict, then read on.** Which learning rate is best here: 1e-4, 1e-3 or 1e-2?

# %% [markdown]
# Recorded on 2026-11-26 with two CPU cores: 19,200 images in 300 steps of 64, two seeds. The error of $v$ is that
# on unseen digits. The Fréchet distance is that of 360 samples; unseen real digits have 0.59. The rate is the
# highest one of a run: it rises at first and then falls to 0.
#
# | learning rate | error of $v$ | Fréchet distance |
# |---|---|---|
# | 1e-4 | 0.6405, 0.6357 | 32.943, 32.957 |
# | 1e-3 | 0.3671, 0.3852 | 5.556, 5.515 |
# | 3e-3 | 0.3153, 0.3203 | 2.696, 2.750 |
# | 1e-2 | 0.3071, 0.3050 | 2.178, 2.447 |
# | 3e-2 | 0.3226, 0.3102 | 4.191, 2.911 |
#
# The best rate here is 1e-2, a hundred times as large as that of most papers. With 1e-4 the network has hardly
# begun after 300 steps. So a learning rate from a table belongs to its network, its batch and its length of
# training. Try a rate three times as large and one three times as small, and compare on unseen images.
#
# (Our networks have no $T$: they are trained with times from all of $(0, 1)$. The number of steps is chosen when
# we sample.)

# %% tags=["claims"]
# @title Checked: our complete network is the row of the rate 3e-3
# The first of its seeds. The table took 2 draws of noise at four of our times; rounding grows in training.
error_again = error["complete"][[0, 1, 3, 5]].mean()
assert abs(error_again / 0.3153 - 1) < 0.03

# %% [markdown]
# ## 4 · Does the network hear the time?
#
# The network receives the time as cosines and sines of $1000\,t$, at 32 frequencies from 1 to $1.3\cdot10^{-4}$
# (Vaswani et al. 2017, section 3.5). The factor 1000 comes from DDPM, which counted its steps from 1 to
# 1000. It is often said that code with $t \in [0, 1]$ must keep this factor. It is easily forgotten, and
# then no error is raised. We compare how similar the embeddings of two times are, with and without the
# factor.

# %% alt="The cosine between the embeddings of two times, as two square maps. For waves of 1000 t there is a bright diagonal on grey stripes. For waves of t the whole square is white: all times look the same."
grid = jnp.linspace(0.005, 1, 200)
embedded = {
    "1000 t": sinusoidal_embedding(grid, 64),
    "t": sinusoidal_embedding(grid / 1000, 64),  # what comes out without the factor
}
fig, axes = plt.subplots(1, 2, figsize=(8, 3))
alike = {}
for ax, (name, waves) in zip(axes, embedded.items(), strict=True):
    waves = waves / jnp.linalg.norm(waves, axis=1, keepdims=True)
    alike[name] = waves @ waves.T
    picture = ax.imshow(alike[name], extent=(0, 1, 1, 0), vmin=-1, vmax=1)
    ax.set(title=f"waves of {name}", xlabel="time $t$", ylabel="time $t'$")
fig.colorbar(picture, ax=axes, label="cosine of the two embeddings")
plt.show()
apart = {name: float(a[39, 159]) for name, a in alike.items()}
print(
    "cosine of the embeddings of t = 0.2 and t = 0.8:", {n: round(a, 3) for n, a in apart.items()}
)

# %% [markdown]
# Without the factor the embeddings of all times are almost the same (white is a cosine of 1).
#
# **Predict, then run.** We train in the plane, where we know the exact denoiser, with three seeds for each of
# the two embeddings. One kind of network cannot tell its times apart at first. How much worse will it be?


# %%
cloud = data.load("toy2d", kind="mixture", n=20_000)
oracle = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
point_eps = jax.random.normal(jax.random.key(8), (4000, 2))


def fit_points(net, forward, seed=0):
    def loss(net, x, labels, key):
        return losses.diffusion_loss(partial(forward, net), p, "v", x, None, key)

    batches, key = data.batches(cloud, size=256, seed=seed), jax.random.key(seed)
    return loop.fit(net, loss, batches, steps=1000, key=key).ema


def to_oracle(net, forward):
    """Mean squared distance to the exact denoiser, at each time of `grid_t`."""
    D = jax.jit(lambda x, t: denoiser.denoiser(partial(forward, net), p, "v")(x, t))
    x = {t: process.add_noise(p, cloud.x[:4000], point_eps, t) for t in grid_t}
    return np.array([jnp.mean((D(x[t], t) - oracle.denoise(x[t], t)) ** 2) for t in grid_t])


# %%
def with_factor(net, x, t, c=None):
    return net(x, t, c)


def without_factor(net, x, t, c=None):
    return net(x, t / 1000, c)  # the layer multiplies by 1000


# %%
distance, speed = {}, {}  # [3 seeds, 7 times], [3, 199]
for name, forward in (("1000 t", with_factor), ("t", without_factor)):
    fitted = [fit_points(MLP(rngs=nnx.Rngs(seed)), forward, seed) for seed in range(3)]
    distance[name] = np.stack([to_oracle(one, forward) for one in fitted])
    outputs = np.stack([forward(one, jnp.full((200, 2), 0.3), grid) for one in fitted])
    speed[name] = np.linalg.norm(np.diff(outputs, axis=1), axis=-1) / float(grid[1] - grid[0])
factor = distance["t"] / distance["1000 t"]
by_seed = np.exp(np.log(factor).mean(1))  # geometric means over the times

# %% alt="Left: the squared distance to the exact denoiser without the factor, divided by that with it, for three seeds; the lines cross 1 at different times, and all are above 1 at the end. Right: how fast the output changes with time; with 1000 t it jumps, with t it is smooth."
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
plots.curves(grid_t, {f"seed {k}": factor[k] for k in range(3)}, xlabel="time $t$", ax=axes[0],
             ylabel="squared distance without / with it", log="y", label_at=0.1)  # fmt: skip
axes[0].axhline(1, color=plots.NOISE, lw=0.8, zorder=0)
axes[0].set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
axes[0].minorticks_off()
plots.curves(grid[1:], {name: s[0] for name, s in speed.items()}, xlabel="time $t$", ax=axes[1],
             ylabel=r"change of $v_\theta$ per unit of $t$")  # fmt: skip
axes[1].set_title("seed 0")
plt.show()
print("squared distance to the exact denoiser without the factor / with it, mean of each seed:",
      np.round(by_seed, 2))  # fmt: skip
print("at t = 0.95:", np.round(factor[:, -1], 1))

# %% tags=["claims"]
# @title Checked: without the factor times look alike, the output moves less; the seeds disagree
assert apart["t"] > 0.95 and apart["1000 t"] < 0.7
waves_of = np.float64(embedded["1000 t"])  # 32 cosines, then 32 sines; float32 in 1000 t
assert np.allclose(waves_of[:, 0], np.cos(1000 * np.float64(grid)), atol=1e-3)
assert abs(np.arctan2(waves_of[-1, 63], waves_of[-1, 31]) / 1000 - 1.3e-4) < 5e-6  # at t = 1
better, *worse = np.sort(by_seed)  # no verdict on the whole
assert better < 0.8 and 1.1 < min(worse) <= max(worse) < 1.3
assert (factor[:, -1] > 1.2).all()  # but at the highest noise all three are worse
assert (factor[:, :-1] < 2.5).all()
assert all(fast.mean() > 1.5 * slow.mean() for fast, slow in zip(*speed.values(), strict=True))

# %% [markdown]
# There is no disaster. On the whole, one seed does better without the factor, and two have a squared distance that
# is a fifth larger: from this we cannot give a verdict. At the highest noise the network without the factor is
# worse with every seed. The layers behind the embedding learn to amplify small differences. The fast waves have
# a disadvantage of their own: the output changes quickly as $t$ changes. So test a warning before you believe
# it, and with more than one seed. (Deeper networks and shorter training may give another result. Measure it
# there.)
#
# The right panel shows a **health check** that you should keep: change $t$ at a fixed $x$, and look at
# how fast the output changes. With a dead time input (chapter 03) the line is 0 everywhere.

# %% [markdown]
# ### Break it on purpose: layers that are never trained
#
# A network can also lose whole layers, and no error is raised. In the next cell three layers stand
# inside a function. The forward pass is the same, line by line. But NNX looks for parameters in the
# *attributes* of a module, and not in the closure of a function.
#
# **Predict, then run.** Will the loss fall?


# %%
class Hidden(nnx.Module):
    """The MLP with its middle in a closure."""

    def __init__(self, rngs):
        whole = MLP(rngs=rngs)
        self.embed, self.first, self.last = whole.embed, whole.first, whole.last

        def middle(h, emb):
            for layer in whole.hidden:
                h = h + layer(jax.nn.silu(h + emb))
            return h

        self.middle = middle

    def __call__(self, x, t, cond=None):
        return self.last(jax.nn.silu(self.middle(self.first(x), self.embed(t, cond))))


def size_of(net):
    return sum(a.size for a in jax.tree.leaves(nnx.state(net, nnx.Param)))


# %%
hidden, whole = Hidden(nnx.Rngs(0)), MLP(rngs=nnx.Rngs(0))
five = jnp.asarray(cloud.x[:5]), jnp.full(5, 0.4)
at_first = hidden(*five), whole(*five)
lost = to_oracle(fit_points(hidden, with_factor), with_factor) / distance["1000 t"][0]
at_start = to_oracle(Hidden(nnx.Rngs(0)), with_factor) / distance["1000 t"][0]
print(f"parameters that are trained: {size_of(hidden):,} of {size_of(whole):,}")
print(f"distance to the exact denoiser: {lost.mean():.1f} times the whole network's", end="")
print(f" (untrained: {at_start.mean():.0f} times)")

# %% tags=["claims"]
# @title Checked: the hidden layers are not trained, and the network learns all the same
assert (at_first[0] == at_first[1]).all()  # the same function, at first
assert size_of(hidden) < 0.6 * size_of(whole)
assert 1.3 < lost.mean() < 0.2 * at_start.mean()
# A loop over the list of parameters meets all layers but the three hidden ones, kernel and bias of each.
listed = [len(jax.tree.leaves(nnx.state(net, nnx.Param))) for net in (hidden, whole)]
assert listed[0] == listed[1] - 6

# %% [markdown]
# The loss falls far, because the other layers learn to work with three random ones. There is no error, no
# warning, and the loss curve looks normal. But the network stays worse than necessary. One check finds
# the bug in a second: **count the parameters**, and compare the number with what you expect. To look whether
# every parameter has changed (section 8) does not find it, because the hidden layers are not in the list of
# parameters.
#
# Chapter 00 has a cousin of this bug, the gradient of a constant: there *nothing* trains. The length of the
# gradient shows it at once (section 8).

# %% [markdown]
# ## 5 · The average of the weights
#
# Adam does not come to rest. At a constant learning rate the weights jump around a good place, and the
# average of their past positions is better than the last position:
# $\bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta$. This average remembers about $1/(1-d)$ steps,
# for instance 100 steps for $d = 0.99$. A memory that is too short keeps the jumps. A memory that is too
# long keeps the beginning, when the network knew nothing.
#
# **Predict, then run.** Will the same $d$ be best after 150 steps and after 600 steps?


# %%
def error_of_library(net, x0, eps, t, labels):
    return losses.squared_error(net, p, "v", x0, eps, t, labels)


def quality_of(kept):
    """The error of every average of a run: {number of steps: {d: error}}."""
    return {
        n: {
            d: metrics.loss_by_time(
                error_of_library, update.merge(new_unet(), vector), unseen.x, unseen.labels,
                np.array([0.2, 0.5, 0.8]), jax.random.key(9), repeats=1,
            ).mean()
            for d, vector in vectors.items()
        }
        for n, vectors in kept.items()
    }  # fmt: skip


quality = quality_of(kept)

# %% alt="The error against the memory of the average, after 150, 300 and 600 steps. Each line is lowest at a memory of 10 or 33 steps, and rises steeply for long memories. The thin lines of the warm-up are as low as the best."
memory = [1 / (1 - d) for d in decays]
fig, ax = plt.subplots(figsize=(6.5, 3.6))
for i, n in enumerate(kept):
    errors = np.array([quality[n][d] for d in decays])
    ax.loglog(memory, errors, ls=plots.DASHES[i], color=plots.SERIES[i])
    ax.plot(memory[errors.argmin()], errors.min(), "o", color=plots.SERIES[i])
    ax.axhline(quality[n]["warm-up"], color=plots.SERIES[i], lw=0.6)
    ax.text(1.2e4, errors[-1] * (1.1, 1, 0.92)[i], f"after {n}", color=plots.SERIES[i],
            size="small", va="center")  # fmt: skip
ax.set(xlabel="memory of the average $1/(1-d)$, steps", ylabel="squared error of $v$, unseen images",
       xlim=(0.9, 4e4), title="dots: the best of each line; thin lines: warm-up")  # fmt: skip
ax.set_xticks([1, 10, 33, 100, 200, 1000, 10_000], ["1", "10", "33", "100", "200", "1000", "10000"])
ax.set_yticks([0.2, 0.25, 0.3, 0.4, 0.6], ["0.2", "0.25", "0.3", "0.4", "0.6"])
ax.minorticks_off()
plt.show()

# %%
best = {n: min(decays, key=lambda d: quality[n][d]) for n in kept}
last = quality[steps]
print("best d:", {n: d for n, d in best.items()})
print(f"last weights {last[0.0]:.4f}, best average {last[best[steps]]:.4f}, ", end="")
print(f"warm-up {last['warm-up']:.4f}, d = 0.9999 {last[0.9999]:.4f}")
left = {n: 0.9999**n for n in (600, 10_000, 30_000)}
print(
    "of its start d = 0.9999 still holds",
    ", ".join(f"{v:.0%} after {n:,}" for n, v in left.items()),
)

# %%
# Three more runs with other batches (benchmarks/network_parts.py): the error with
# d = 0, d = 0.9, d = 0.99, the best d of the grid, warm-up, d = 0.9999.
OTHER_RUNS = {
    150: [(0.3113, 0.3090, 0.4342, 0.3090, 0.3159, 0.7796),
          (0.3017, 0.2927, 0.4078, 0.2927, 0.2947, 0.7556),
          (0.3386, 0.3224, 0.4247, 0.3224, 0.3275, 0.7480)],
    300: [(0.2506, 0.2421, 0.2707, 0.2421, 0.2416, 0.7507),
          (0.2621, 0.2487, 0.2660, 0.2487, 0.2486, 0.7289),
          (0.2692, 0.2575, 0.2831, 0.2575, 0.2572, 0.7243)],
    600: [(0.2290, 0.2206, 0.2188, 0.2174, 0.2174, 0.7114),
          (0.2374, 0.2237, 0.2222, 0.2203, 0.2204, 0.6835),
          (0.2390, 0.2286, 0.2292, 0.2265, 0.2269, 0.6864)],
}  # fmt: skip
this_run = {
    n: [q[0.0], q[0.9], q[0.99], q[best[n]], q["warm-up"], q[0.9999]] for n, q in quality.items()
}
runs = {n: np.array([this_run[n], *OTHER_RUNS[n]]) for n in kept}  # [4 runs, 6]
too_long = {n: r[:, 2] / r[:, 1] - 1 for n, r in runs.items()}
for n, more in too_long.items():
    print(f"after {n} steps, d = 0.99 instead of 0.9: error",
          ", ".join(f"{m:+.1%}" for m in more), "(this run and three others)")  # fmt: skip

# %% tags=["claims"]
# @title Checked: a longer run wants a longer memory; warm-up is within 5 % of the best choice
at_last, at_best, warmed, longest = runs[steps][:, [0, 3, 4, 5]].T
assert (at_best < 0.96 * at_last).all() and (longest > 2 * at_last).all()
# The warmed-up average needs no choice: nearly the best of the grid at every length.
assert all((r[:, 4] < 1.05 * r[:, 3]).all() for r in runs.values())
assert too_long[150].min() > 0.15 and np.abs(too_long[steps]).max() < 0.02
assert (too_long[steps] < too_long[300]).all() and (too_long[300] < too_long[150]).all()
assert left[600] > 0.9 and 0.04 < left[30_000] < 0.06

# %% [markdown]
# A longer run needs a longer memory. After 150 steps a memory of 100 steps still holds the beginning, and is
# worse than one of 10 steps. After 600 steps both are equally good, within 2 %. Three more runs say the same.
# (The thin lines show the average with warm-up, $d_n = \min(d, (1+n)/(10+n))$ of chapter 03, whose memory
# grows with the run.) Many papers use $d = 0.9999$. This average needs about thirty thousand steps to forget
# its start ($0.9999^{30000}$ is 5 %). After 600 steps it still draws noise, as the first picture shows. A
# learning rate that falls to 0 has a similar effect, because it makes the jumps smaller.
#
# Some guides recommend an average *against NaN*. It is no cure: an average that has once met NaN is NaN for
# ever. (`loop.fit` stops, and gives you the state before.)

# %%
good, poisoned = jnp.array([0.5, -0.2]), jnp.array([0.5, jnp.nan])
after_nan = update.ema_update(good, poisoned, 0.9999)
later = after_nan
for _ in range(10_000):
    later = np.asarray(later) + (1 - 0.9999) * (np.asarray(good) - np.asarray(later))
print(f"one step with NaN: {after_nan}; after 10,000 good steps more: {later}")

# %% tags=["claims"]
# @title Checked: the average never recovers from NaN
assert bool(jnp.isnan(after_nan[1])) and np.isnan(later[1]) and np.isfinite(later[0])

# %% [markdown]
# **Explore.** Choose how long the run was, and move the slider over the memory.


# %%
def board(n, d):
    fig, ax = plt.subplots(figsize=(6.4, 2.2))
    ax.imshow(plots.tile(drawn[n, d][:40], 20))
    ax.set_axis_off()
    return fig


order = [*decays, "warm-up"]
readout = [f"{names[d]}" for d in order]
frames = {f"after {n} steps": widgets.render(partial(board, n), order) for n in kept}
widgets.explorer(frames, readout, slider="average", choice="run", start=3)

# %%
expert = recipes.judge_for("digits")
recognised = {d: metrics.class_accuracy(judge(expert, drawn[steps, d])[0], labels) for d in order}
print("of 100 recognised:", {d: f"{a:.0%}" for d, a in recognised.items()})

# %% tags=["claims"]
# @title Checked: with warm-up most digits are legible, with d = 0.9999 few
# If 95 % is right, the standard error of a share of 100 is 2.2 %.
assert recognised["warm-up"] >= 0.85 and max(recognised[0.999], recognised[0.9999]) < 0.5

# %% [markdown]
# ## 6 · One error, many losses
#
# Chapter 02 showed that an error of the target $y = a x_0 + b\varepsilon$ becomes an error of $x_0$ with the
# factor $\sigma/\det$. So a "plain" squared error puts a *weight* on the error of $x_0$, and each target
# puts another one. For $\varepsilon$ at $\text{SNR} = \alpha^2/\sigma^2 = 100$, for instance, the weight is
# 100. In general,
#
# $$\|\hat y - y\|^2 = \lambda(t)\,\|\hat x_0 - x_0\|^2,\qquad
#   \lambda_{x_0} = 1,\quad \lambda_\varepsilon = \text{SNR},\quad
#   \lambda_v = \text{SNR} + 1 \tag{2}$$
#
# (In this section $\lambda$ is a weight and not the log-SNR; Salimans & Ho 2022, section 4.) **Min-SNR-γ**
# (Hang et al. 2023, section 3.4) sets $\lambda = \min(\text{SNR}, \gamma)$ for *every* target. Nearly clean
# images are easy, and with this weight they do not dominate the training.

# %% alt="The weight on the error of x0 against log-SNR. For x0 it is 1; for eps it is a rising line; for v it follows x0 where there is noise, and eps near the data; min-SNR-5 follows eps up to 5, and stays there."
clock = jnp.linspace(0.02, 0.98, 200)
snr = (p.alpha(clock) / p.sigma(clock)) ** 2


def on_x0(weight, kind):
    """What a weight on the target's error is as a weight on the error of x0."""
    factor_of_kind = parameterization.determinant(kind, p, clock) / p.sigma(clock)
    return weight(kind, p, clock) * factor_of_kind**2


plain = {kind: on_x0(losses.simple, kind) for kind in ("x0", "eps", "v")}
clipped = {kind: on_x0(losses.min_snr(5.0), kind) for kind in ("x0", "eps", "v")}
fig, ax = plt.subplots(figsize=(6, 3.4))
lines = plain | {"min-SNR-5": clipped["v"]}
spots = {"x0": (4.6, 0.45), "eps": (-6.6, 0.004), "v": (-6.6, 1.5), "min-SNR-5": (4, 7)}
for i, (name, values) in enumerate(lines.items()):
    ax.semilogy(np.log(snr), values, ls=plots.DASHES[i], color=plots.SERIES[i], lw=2 - 0.3 * i)
    ax.text(*spots[name], name, color=plots.SERIES[i], size="small")
ax.set(xlabel=r"$\log$ SNR: noise at the left, data at the right",
       ylabel=r"weight $\lambda$ on the error of $x_0$")  # fmt: skip
plt.show()

# %% [markdown]
# A common mistake is to use the min-SNR factor of the ε-loss, $\min(\text{SNR}, \gamma)/\text{SNR}$, with a
# network that predicts $v$. The loss falls. But the weight on $x_0$ becomes
# $\min(\text{SNR}, \gamma)\,(\text{SNR}+1)/\text{SNR}$, which is never below 1, however noisy the image is.

# %%
slip = jnp.minimum(snr, 5) / snr * plain["v"]
print(f"weight where SNR is {snr[-1]:.4f}: right {clipped['v'][-1]:.4f}, "
      f"with the mistake {slip[-1]:.2f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the weights of equation (2), of min-SNR, and of the mistake
np.testing.assert_allclose(plain["eps"], snr, rtol=1e-4)
np.testing.assert_allclose(plain["v"], snr + 1, rtol=1e-4)
for clip in clipped.values():  # one weight, whatever the network predicts
    np.testing.assert_allclose(clip, np.minimum(snr, 5), rtol=1e-3)
assert slip.min() > 0.99 and clipped["v"].min() < 0.01

# %% [markdown]
# ### Which times to draw
#
# The weight of the loss is one choice. The times at which we compute the loss are another. If the loss
# varies much with $t$, a batch with uniform times gives a noisy estimate. We can draw each time with a
# density proportional to $\sqrt{\mathbb{E}[L_t^2]}$ and divide by the density. Then the mean stays the
# same and the variance falls (Nichol & Dhariwal 2021, eq. 18). We use the loss of ε of the released
# network, which is largest at small $t$. We compare three ways to draw 64 times: independently; one in
# each of 64 equal intervals; and one in each of 64 intervals that are *equally likely* under this density
# ("loss-aware").
#
# **Predict, then run.** How much smaller will the scatter of a batch's mean become: by a tenth, three or
# four times, or ten times?

# %%
released = weights.load("digits")
parts = 20
middles = (np.arange(parts) + 0.5) / parts


def loss_of_eps(net, x0, eps, t, labels):
    """The error of eps, [B]: that of v, weighted by equation (2)."""
    weight = 1 / (1 + (p.sigma(t) / p.alpha(t)) ** 2)
    return weight * losses.squared_error(net, p, "v", x0, eps, t, labels)


def squared(*inputs):
    return loss_of_eps(*inputs) ** 2


mean_square = metrics.loss_by_time(
    squared, released.model, digits.x[:500], digits.labels[:500], middles, jax.random.key(10), 1
)
drawers = {"uniform": (losses.uniform_times, losses.simple)}
drawers["one per interval"] = (losses.stratified_times, losses.simple)
drawers["loss-aware"] = losses.importance_times(mean_square)


# %%
@jax.jit
def measure(net, t, key):
    key_rows, key_eps = jax.random.split(key)
    rows = jax.random.randint(key_rows, t.shape, 0, len(digits))
    x0, eps = jnp.asarray(digits.x)[rows], jax.random.normal(key_eps, (*t.shape, 8, 8, 1))
    return loss_of_eps(net, x0, eps, t, jnp.asarray(digits.labels)[rows])


batch_means, scatter = {}, {}
for name, (times, weight) in drawers.items():
    keys = jax.random.split(jax.random.key(11), 80)
    picked = jax.vmap(lambda key, times=times: times(key, 64))(keys).reshape(-1)
    values = weight("v", p, picked) * measure(released.model, picked, jax.random.key(12))
    values = np.asarray(values).reshape(80, 64)
    batch_means[name] = m = values.mean(1)
    # The 64 losses of a batch are independent, so their variances add up.
    scatter[name] = np.sqrt(values.var(0, ddof=1).mean() / 64)
    print(f"{name:17} mean {m.mean():.4f} ± {scatter[name] / np.sqrt(80):.4f}, scatter "
          f"{scatter[name]:.4f} (standard deviation of 80 means {m.std():.4f})")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the mean stays, the scatter is less than half; most of this by one time per interval
uniform, aware = batch_means["uniform"], batch_means["loss-aware"]
tolerance = 4 * np.hypot(scatter["uniform"], scatter["loss-aware"]) / np.sqrt(80)
assert abs(uniform.mean() - aware.mean()) < tolerance  # the mean stays
assert mean_square.argmax() == 0
# 5,120 losses: a scatter is known to about 3 %, from the means alone to 8 %.
assert all(abs(batch_means[n].std() / s - 1) < 0.32 for n, s in scatter.items())
assert scatter["loss-aware"] < 0.5 * scatter["uniform"]
assert scatter["loss-aware"] < scatter["one per interval"] < 0.5 * scatter["uniform"]
gain = {name: scatter["uniform"] - s for name, s in scatter.items()}
assert gain["one per interval"] > 0.75 * gain["loss-aware"]  # measured 88 %

# %% [markdown]
# The scatter is less than half as large, and we only changed the times. Most of the gain comes from one
# time in each of 64 equal intervals. `losses.diffusion_loss` has done this since chapter 03. The density
# adds a little. It adds more where the loss differs more between times, as in chapter 05.
#
# ## 7 · Memory and numbers
#
# **Gradient accumulation.** The gradient of a mean is the mean of the gradients. If a batch does not
# fit into memory, take it in parts, average the gradients of the parts, and make one step. With equal
# parts it is the same step. `optax.MultiSteps` counts the parts for you.


# %% tags=["comparison"]
def batch_loss(net, x, t, eps, labels):
    return losses.squared_error(net, p, "v", x, eps, t, labels).mean()


def largest_gap(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


gradient, toy = jax.jit(nnx.grad(batch_loss)), weights.load("toy2d").model
batch = cloud.x[:64], jnp.linspace(0.02, 0.98, 64), point_eps[:64], cloud.labels[:64]
together = gradient(toy, *batch)
quarters = [gradient(toy, *(a[i::4] for a in batch)) for i in range(4)]
mean = jax.tree.map(lambda *g: sum(g) / 4, *quarters)
size, gap = largest_gap(together, jax.tree.map(jnp.zeros_like, mean)), largest_gap(together, mean)
print(f"largest entry of the gradient {size:.3f}, largest difference {gap:.1e}")
assert gap < 1e-4 * size  # float32 sums in another order

# %% [markdown]
# **Rematerialisation.** The backward pass needs the activations of the forward pass, and they take most
# of the memory. `jax.checkpoint` around a block throws its inner activations away and computes them
# again when they are needed. This costs a third more arithmetic and saves memory. The compiler reports
# how much memory before anything runs. (The layers stand in a loop, `lax.scan`. In a plain row of
# layers, XLA would notice on a CPU that it computes the same values twice, and it would keep them.)

# %% tags=["comparison"]
block = ResidualBlock(32, 32, 64, rngs=nnx.Rngs(1))
graph, params = nnx.split(block)
features, e = jax.random.normal(jax.random.key(14), (16, 16, 16, 32)), jnp.ones((16, 64))


def deep(params, keep):
    """The mean square of features that went through the block eight times."""

    def once(h, _):
        return residual_block(nnx.merge(graph, params), h, e), None

    once = once if keep else jax.checkpoint(once)
    return (jax.lax.scan(once, features, length=8)[0] ** 2).mean()


temporary, slopes = {}, {}
for name, keep in (("kept", True), ("computed again", False)):
    compiled = jax.jit(jax.grad(partial(deep, keep=keep))).lower(params).compile()
    temporary[name] = compiled.memory_analysis().temp_size_in_bytes / 1e6
    slopes[name] = compiled(params)
print({name: f"{megabytes:.0f} MB" for name, megabytes in temporary.items()})
assert temporary["computed again"] < 0.7 * temporary["kept"]
for one, other in zip(*map(jax.tree.leaves, slopes.values()), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)

# %% [markdown]
# **bfloat16** keeps the range of float32 and 8 of its 24 bits of precision. Accelerators multiply such
# numbers several times as fast. The layers of a network tolerate this, because the rounding errors are
# small beside the noise in the input. But wherever a small number is added to a large one, float32 is
# needed: for parameters, their average, statistics and losses. It is also needed for the **time**.

# %%
coarse = UNet(1, (16, 32), num_classes=10, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
nnx.update(coarse, nnx.state(run.ema))
same = drawn[steps, 0.0][:64], batch[1], labels[:64]
fine_v, coarse_v = call(run.ema, *same), call(coarse, *same)
relative = float(jnp.linalg.norm(fine_v - coarse_v) / jnp.linalg.norm(fine_v))
kinds = {a.dtype.name for a in jax.tree.leaves(nnx.state(coarse))}
in_bfloat16 = len(np.unique((jnp.arange(1, 1001) / 1000).astype(jnp.bfloat16)))
print(f"output of the network: {relative:.2%} off in bfloat16; its parameters stay {kinds}")
print(f"of 1,000 times n/1000, bfloat16 tells {in_bfloat16} apart")

# %% tags=["claims"]
# @title Checked: bfloat16 costs less than 3 % of the output and half of the times
assert relative < 0.03 and kinds == {"float32"} and coarse_v.dtype == jnp.float32
assert in_bfloat16 < 520

# %% [markdown]
# So the time stays float32 until it has been embedded. `UNet(dtype=jnp.bfloat16)` takes care of this, and it
# computes the statistics of its norms in float32 too. The course chooses bfloat16 on an accelerator.
# (Most CPUs only emulate bfloat16, and are slower with it.)
#
# **float16** has more precision and a much smaller range: from about $6\cdot 10^{-8}$ to 65,504. Small gradients
# become 0 in it. So the loss is multiplied by a *scale*, and the gradient is divided by it in float32. A fixed
# scale of $2^{15}$ is often called "dynamic". It is not: a dynamic scale is halved when a gradient overflows, and
# doubled after many good steps.


# %%
def through_float16(gradient, scale):
    """What is left of a gradient that was scaled, kept in float16, and scaled back."""
    return np.float32(np.float16(np.float32(gradient) * np.float32(scale))) / np.float32(scale)


with np.errstate(over="ignore"):
    kept_by = {s: through_float16([1e-8, 3e-3, 5.0], 2.0**s) for s in (0, 15, 13)}
for exponent, left_over in kept_by.items():
    print(f"scale 2^{exponent:<2}: 1e-8, 3e-3 and 5 become {left_over}")

# %% tags=["claims"]
# @title Checked: 1e-8 needs the scale, 5 overflows with 2^15 and not with two halvings
assert np.finfo(np.float16).max == 65_504 and round(2.0**-24, 9) == 6e-8 == round(
    float(np.finfo(np.float16).smallest_subnormal), 9)  # fmt: skip
assert kept_by[0][0] == 0 and abs(kept_by[15][0] / 1e-8 - 1) < 0.05
assert np.isinf(kept_by[15][2]) and np.isfinite(kept_by[13]).all() and kept_by[13][0] > 0

# %% [markdown]
# ## 8 · What to inspect
#
# When you train a network for the first time, check in this order
#
# 1. the loss of the untrained network: it must be the number that the answer 0 gives (section 3);
# 2. the parameters: their number must be what you expect (section 4), and each must have changed, because a
#    layer that stands in the list may still be left out of the forward pass or by the optimiser;
# 3. the output: it must change with $t$ (section 4), and with the label;
# 4. the length of the gradient: it must not be 0, and a peak means that a step went wrong;
# 5. the error by noise level on unseen images, beside that of a network that you trust (section 3);
# 6. samples from the last weights *and* from the average (section 5).

# %%
before, after = (jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(net)))
                 for net in (new_unet(), run.model))  # fmt: skip
still = [
    jax.tree_util.keystr(path)
    for (path, old), (_, new) in zip(before, after, strict=True)
    if np.array_equal(old, new)
]
print(f"{len(after)} arrays of parameters; not moved by training: {still or 'none'}")
as_three, as_eight = (call(run.ema, inputs[0], jnp.full(64, 0.7), jnp.full(64, y)) for y in (3, 8))
by_label = float(jnp.abs(as_three - as_eight).max())
print(f"asked for an 8 instead of a 3, some pixel of v changes by {by_label:.2f}")

# %% tags=["claims"]
# @title Checked: every parameter has moved, and the label is heard
assert not still
assert by_label > 0.05

# %% [markdown]
# The length of the gradient costs nothing to watch: the function `watch` of section 1 stands before the
# optimiser and notes it at every step. Many recipes *clip* the gradient at length 1, as `update.adam` of the
# course does: a longer one is shortened to 1. This is a safety belt against single bad batches.
#
# **Predict, then run.** At which steps of our run would clipping at 1 have acted?

# %% alt="The length of the gradient over 600 steps, on a logarithmic axis. It exceeds 1 in the first steps only, and is shorter afterwards."
norms = np.array(gradient_norms)
fig, ax = plt.subplots(figsize=(6, 2.8))
ax.semilogy(1 + np.arange(len(norms)), norms, color=plots.SERIES[0], lw=0.8)
ax.axhline(1, color=plots.TRUTH, lw=0.6, ls=":")
ax.set(xlabel="training step", ylabel="length of the gradient")
plt.show()
print(f"longest gradient {norms.max():.2f} at step {norms.argmax() + 1}; median of the last 100 "
      f"steps {np.median(norms[-100:]):.2f}; above 1 in {np.sum(norms > 1)} of {len(norms)} steps")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the gradient is longest at the beginning, and clipping would act in few steps
assert norms.argmax() < 60 and norms.max() > 4 * np.median(norms[-100:]) > 0
assert 0 < np.sum(norms > 1) < 30

# %% [markdown]
# In a few steps only: the longest gradient comes at the beginning, and later ones are much shorter. So in a
# healthy run clipping changes almost nothing. And if it acts at every step? With plain gradient descent the
# learning rate is then in truth another one. Adam divides by the size of past gradients: it takes steps as long
# as without clipping, and only gives each batch the same weight. The next cell shows both.


# %%
def way_of(optimizer, clip):
    """How far six gradients move 50 parameters, if each is shortened to the length `clip`."""
    chain = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    w, state = jnp.zeros(50), chain.init(jnp.zeros(50))
    for size, gradient in zip(
        (1, 0.3, 2, 0.5, 1, 1), jax.random.normal(jax.random.key(16), (6, 50)), strict=True
    ):
        change, state = chain.update(size * gradient, state)
        w = optax.apply_updates(w, change)
    return float(jnp.linalg.norm(w))


always = {name: way_of(make, 0.01) / way_of(make, 1e6) for name, make in (
    ("gradient descent", optax.sgd(0.01)), ("Adam", optax.adam(0.01)))}  # fmt: skip
print("clipped at every step / never clipped:", {n: round(r, 3) for n, r in always.items()})

# %% tags=["claims"]
# @title Checked: a clip that always acts makes gradient descent slower, and Adam not
assert always["gradient descent"] < 0.01 and 0.8 < always["Adam"] < 1.25

# %% [markdown]
# ## 9 · Recap
#
# 1. Low noise needs details, and high noise needs the whole image. One network does both, with skips,
#    coarse levels and FiLM.
# 2. Only an ablation shows how much a part helps. Read it by noise level. It holds only for its data.
# 3. Count the parameters, and check that the output changes with $t$. A layer in a closure never trains.
# 4. The best memory of the average grows with the run. Warm-up chooses it for you.
# 5. A loss consists of a weight on the error of $x_0$ and a density of times. You can split batches,
#    compute activations again and round products. You cannot round time and parameters.
#
# The exercises are in `exercises/04_networks.ipynb`.

# %% [markdown]
# **Try it yourself.** (a) Take out the *label* instead of the time. At which noise levels does the error
# rise? (b) Train with `optax.adam(1e-3)` instead of 1e-2. How much does the average still help? (c) Give
# the released MNIST network the wrong time, $t + 0.1$, and look at $D$.
#
# **Words introduced.** Skip connection, FiLM, group norm, residual block, attention, ablation, receptive field,
# sinusoidal embedding, importance sampling of times, gradient accumulation, rematerialisation, bfloat16.

# %% [markdown]
# **Read on.** Ronneberger, Fischer & Brox 2015, *U-Net*, MICCAI (arXiv:1505.04597). Perez et al. 2018, *FiLM:
# Visual Reasoning with a General Conditioning Layer*, AAAI (arXiv:1709.07871). Vaswani et al. 2017, *Attention
# Is All You Need*, NeurIPS (arXiv:1706.03762). Wu & He 2018, *Group Normalization*, ECCV
# (arXiv:1803.08494). Ho, Jain & Abbeel 2020 (arXiv:2006.11239), appendix B. Nichol &
# Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*, ICML (arXiv:2102.09672). Dhariwal & Nichol
# 2021, *Diffusion Models Beat GANs on Image Synthesis*, NeurIPS (arXiv:2105.05233). Salimans & Ho 2022
# (arXiv:2202.00512). Hang et al. 2023, *Efficient Diffusion Training via Min-SNR Weighting Strategy*, ICCV
# (arXiv:2303.09556). Karras et al. 2024, *Analyzing and Improving the Training Dynamics of Diffusion Models*,
# CVPR (arXiv:2312.02696), on choosing the average after the run. Peebles & Xie 2023, *Scalable Diffusion Models
# with Transformers*, ICCV (arXiv:2212.09748). Chen et al. 2016, *Training Deep Nets with
# Sublinear Memory Cost* (arXiv:1604.06174).
