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
# **The question.** What does a network need in order to denoise at every noise level, and what does
# each part of it buy?
#
# At the end of this chapter you will be able to
#
# - write a U-Net's forward pass from memory: skips, FiLM, attention;
# - say what a part buys by taking it out, training again, and reading the error by noise level;
# - check that a network hears the time, and choose the average of its weights;
# - compare losses across targets, and draw training times where they matter;
# - train with less memory than a batch seems to need.
#
# **You need** chapter 03. **Time**: about 75 minutes of reading; the notebook itself runs for about
# two minutes on two CPU cores, nearly three the first time.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup
from diffusion_course.training import loop, update

course = setup()

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from diffusion_course import data, denoiser, losses, parameterization, process
from diffusion_course.evaluation import metrics
from diffusion_course.notebook import plots
from diffusion_course import samplers, sampling, weights
from diffusion_course.notebook import widgets
from diffusion_course.training import recipes
from diffusion_course.data import toy2d
from diffusion_course.models.classifier import judge
from diffusion_course.models.layers import ResidualBlock
from diffusion_course.models.layers import depth_to_space, sinusoidal_embedding
from diffusion_course.models.layers import space_to_depth, upsample
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# One training run of 600 steps, and eight networks. Each row draws the same ten digits with another
# *average* of the weights that the run passed through; the first row takes the last weights as they
# are. By the end you will know why the first is not the best, what went wrong in the two rows of
# noise, and why the last row needs no choice.
#
# (The network is trained now, in a few seconds. What is inside it is section 3; how the averages are
# made, section 5.)


# %%
digits, unseen = data.load("digits"), data.load("digits", split="test")
p = process.vp_cosine()
steps = 600
decays = (0.0, 0.9, 0.97, 0.99, 0.995, 0.999, 0.9999)
averages, kept = {}, {}


def collect(state):
    """After every step: moves each average towards the weights, and keeps some of them."""
    n, now = int(state.step), np.array(state.params)
    for d in decays:
        averages[d] = update.ema_update(averages.get(d, now), now, d)
    d = float(update.ema_decay(n, 0.9999))
    averages["warm-up"] = update.ema_update(averages.get("warm-up", now), now, d)
    if n in (150, 300, steps):
        kept[n] = dict(averages)


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


def fit(forward, **options):
    batches, key = data.batches(digits, size=64, seed=0), jax.random.key(0)
    return loop.fit(new_unet(), objective(forward), batches, key=key, **options)


run = fit(UNet.__call__, steps=steps, optimizer=optax.adam(1e-2), save=loop.Save(1, collect))


# %%
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
# The best answer $D(x, t)$ is an average over all images that could lie under $x$ (chapter 02). How far
# must a network look for it, how large is its **receptive field**? We ask a trained one: how much does
# the *middle* pixel of $D(x, t)$ change when another pixel of $x$ does? The picture shows the size of
# $\partial D_\text{middle}/\partial x_j$ for every pixel $j$ (root mean square over 32 digits, black is each
# panel's largest), and how much of it, of the squares, lies within two pixels.
#
# (For the exact denoiser this derivative is more than a picture: it is $\alpha/\sigma^2$ times the
# covariance of the two pixels of $x_0$, given $x$. That is chapter 02's formula, differentiated once
# more; exercise 04.7 uses it.)
#
# **Predict, then run.** At $t = 0.05$ the image is nearly clean, at $t = 0.9$ nearly noise. Where will
# the network look further?

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


# %%
looked = {t: np.asarray(reach(mnist.model, t)) for t in (0.05, 0.2, 0.4, 0.6, 0.9)}
rows, columns = np.mgrid[:28, :28] - 14
near = np.maximum(np.abs(rows), np.abs(columns)) <= 2
share = {t: float((seen[near] ** 2).sum() / (seen**2).sum()) for t, seen in looked.items()}
fig, axes = plt.subplots(1, 5, figsize=(10, 2.3))
for ax, (t, seen) in zip(axes, looked.items(), strict=True):
    ax.imshow(seen / seen.max(), cmap="gray_r", vmin=0, vmax=1)
    ax.set(title=f"t = {t}: {share[t]:.0%}", xticks=[], yticks=[])
plt.show()
assert share[0.05] > 0.95 and share[0.9] < 0.8  # of the sum of squares, within 2 pixels
assert (np.diff(list(share.values())) < 0).all()

# %% [markdown]
# Nearly clean: the neighbours suffice. Nearly noise: every pixel counts a little, for the question is no
# longer "what value" but "which digit". One network has to do both. So a denoiser needs
#
# 1. **details at full resolution**, for small $t$: the *skip connections*;
# 2. **the whole image at once**, for large $t$: *coarse levels*, and *attention*;
# 3. **to know $t$**, since the two jobs differ: *time embedding* and *FiLM*.
#
# ## 3 · A U-Net, taken apart
#
# **FiLM** (Perez et al. 2018, eq. 1 and 2) tells every block the time and the label. From the
# embedding $e$ a dense layer makes a scale and a shift for each channel, which act on the normalised
# features. The norm is a **group norm**: the channels are cut into groups, and each group of each image
# is brought to mean 0 and variance 1, over its pixels and channels (Wu & He 2018).
#
# $$\operatorname{FiLM}(h) = (1 + s(e)) \odot \operatorname{norm}(h) + b(e) \tag{1}$$
#
# A **residual block** is two convolutions with (1) between them, and a way around:


# %%
def residual_block(block, x, emb):
    """One block, written out with its own layers."""
    h = block.conv1(jax.nn.silu(block.norm1(x)))
    scale, shift = jnp.split(block.film(jax.nn.silu(emb)), 2, axis=-1)  # [B, C] each
    h = block.norm2(h) * (1 + scale[:, None, None]) + shift[:, None, None]
    h = block.conv2(jax.nn.silu(h))
    return h + (x if block.skip is None else block.skip(x))


def attention(layer, x):
    """Every pixel looks at every pixel (Vaswani et al. 2017, eq. 1), for one head."""
    tokens = layer.norm(x).reshape(len(x), -1, x.shape[-1])
    q, k, v = jnp.split(layer.qkv(tokens), 3, axis=-1)
    logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    return x + layer.out(jax.nn.softmax(logits) @ v).reshape(x.shape)


# %% [markdown]
# The **U-Net** (Ronneberger et al. 2015; for diffusion Ho et al. 2020, appendix B): blocks at falling
# resolution, each result put on a stack; a middle; blocks at rising resolution, each taking one result
# off the stack. The argument `keep` takes parts out: per example one number for the skips, one for the
# time, one for the attention, 1 to keep it and 0 to leave it out. (Numbers, not `if`s: they may change
# without a new compilation. We shall need that in a minute.)


# %%
def unet(net, x, t, labels, keep):
    """The forward pass of `UNet`, with its own layers; keep [B, 3], see above."""
    skips, attends = (keep[:, part, None, None, None] for part in (0, 2))
    emb = net.embed(jnp.where(keep[:, 1] == 1, t, 0.5), labels)
    h = net.conv_in(space_to_depth(x, net.stem))
    stack = [h]
    for level, block in enumerate(net.down):
        h = residual_block(block, h, emb)
        stack.append(h)
        h = h if block is net.down[-1] else net.halve[level](h)
    h = residual_block(net.middle, h, emb)
    h = jnp.where(attends == 1, attention(net.attention, h), h)
    for level, block in enumerate(net.up):
        h = residual_block(block, jnp.concatenate([h, skips * stack.pop()], axis=-1), emb)
        h = h if block is net.up[-1] else net.double[level](upsample(h))
    h = jnp.concatenate([h, skips * stack.pop()], axis=-1)
    return depth_to_space(net.conv_out(jax.nn.silu(net.norm_out(h))), net.stem)


# %%
net, call = run.ema, jax.jit(UNet.__call__)
x, t, label = drawn[steps, 0.0][:64], jnp.linspace(0.05, 0.95, 64), labels[:64]
written_out, library = jax.jit(unet)(net, x, t, label, jnp.ones((64, 3))), call(net, x, t, label)
print(f"largest difference {jnp.abs(written_out - library).max():.1e}")
# The same float32 operations in another order, through some twenty layers.
np.testing.assert_allclose(written_out, library, atol=1e-4)

count = {name: sum(a.size for a in jax.tree.leaves(nnx.state(part))) for name, part in (
    ("way down", net.down), ("middle", net.middle), ("attention", net.attention),
    ("way up", net.up), ("time and label", net.embed), ("all", net),
)}  # fmt: skip
print(", ".join(f"{name} {n:,}" for name, n in count.items()))

# %% [markdown]
# The way up is the heaviest part, because it reads the stack as well. Before we take the
# parts out, one detail that decides whether training starts well: the last convolution of every block,
# the output of the attention and the output of the network start at **zero**. An untrained block is
# the identity (or, where the width changes, one dense layer), and the untrained network answers 0.

# %%
fresh = new_unet()
h = jax.random.normal(jax.random.key(5), (2, 4, 4, 32))
e = jax.random.normal(jax.random.key(6), (2, 64))
assert (fresh.middle(h, e) == h).all() and (fresh.attention(h) == h).all()
assert (call(fresh, x, t, label) == 0).all()
v_at_start = np.mean([
    losses.diffusion_loss(partial(call, fresh), p, "v", digits.x[i : i + 64],
                          digits.labels[i : i + 64], jax.random.key(i))
    for i in range(0, 1024, 64)
])  # fmt: skip
power = np.mean(digits.x**2)
print(f"loss of the untrained network: {v_at_start:.3f}")
# For v the answer 0 costs the mean of alpha² + sigma²·x0², half of each over the cosine.
assert abs(v_at_start - (0.5 + 0.5 * power)) < 0.03

# %% [markdown]
# ### What each part buys
#
# Looking at a part does not say what it is worth. Taking it out and training again does: the
# same data, the same batches, the same noise, 250 steps, without one part each time.
#
# **Predict, then run.** Which of the three, skips, attention or time, matters most at low noise? Which at
# high noise? Which hardly at all on images of 8×8?

# %%
variants = {  # skips, time, attention
    "complete": (1, 1, 1),
    "no skips": (0, 1, 1),
    "no time": (1, 0, 1),
    "no attention": (1, 1, 0),
}


def in_parts(net, x, t, cond):
    """The network of these labels [B] and parts [B, 3]."""
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
for name, keep in variants.items():
    tiled = lambda n, keep=keep: np.tile(np.float32(keep), (n, 1))
    batches = ((x, (y, tiled(64))) for x, y in data.batches(digits, size=64, seed=0))
    trained = loop.fit(new_unet(), loss_in_parts, batches, steps=250, key=jax.random.key(0)).ema
    error[name] = metrics.loss_by_time(
        error_of_v, trained, unseen.x, (unseen.labels, tiled(360)), grid_t, jax.random.key(9), 4
    )

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
plots.curves(grid_t, error, xlabel="time $t$", ylabel="squared error of $v$", ax=axes[0])
ratio = {name: error[name] / error["complete"] for name in variants}
plots.curves(grid_t, ratio, xlabel="time $t$", ylabel="error / complete network's", ax=axes[1])
plt.show()
for name in variants:
    print(
        f"{name:13} error {error[name].mean():.4f}, {ratio[name].mean():.2f} times the complete one's"
    )

# %%
# Each error is a mean of 1,440 (360 unseen images, 4 draws of noise, the same for all networks).
assert (ratio["no skips"][:4] > 1.08).all() and ratio["no skips"][-1] < 1.05
assert (ratio["no time"] > 1.04).all() and ratio["no time"][[0, -1]].min() > 1.12
assert (np.abs(ratio["no attention"] - 1) < 0.03).all()

# %% [markdown]
# - **Skips** pay at low and middling noise, where details are wanted, and nothing at high noise, where
#   there are none. As section 2 said.
# - **Time** pays at every noise level, and most at both ends. Without it the network must guess from the
#   image how noisy it is. (The label is still heard.)
# - **Attention** buys nothing *here*. At 4×4 the four convolutions around it reach across the whole image
#   anyway. Part of a recipe is not always part of the reason why it works; on larger images with structure
#   far apart it is another matter (Dhariwal & Nichol 2021, table 1).
#
# That is the use of an ablation. It also shows its limit: it is true for these data, this size and this
# training.

# %% [markdown]
# ## 4 · Does the network hear the time?
#
# Time enters as cosines and sines of $1000\,t$ at frequencies from 1 down to $10^{-4}$ (Vaswani et al.
# 2017, section 3.5). The factor 1000 is a relic: DDPM counted its steps from 1 to 1000. Whoever writes
# time as $t \in [0, 1]$ and keeps the waves must keep the factor, one reads. It is easily forgotten, and
# nothing complains. We look at how alike the embeddings of two times are, with and without it.

# %%
grid = jnp.linspace(0.005, 1, 200)
embedded = {
    "1000 t": sinusoidal_embedding(grid, 64),
    "t": sinusoidal_embedding(grid / 1000, 64),  # what comes out without the factor
}
fig, axes = plt.subplots(1, 2, figsize=(8, 3))
alike = {}
for ax, (name, e) in zip(axes, embedded.items(), strict=True):
    e = e / jnp.linalg.norm(e, axis=1, keepdims=True)
    alike[name] = e @ e.T
    ax.imshow(alike[name], extent=(0, 1, 1, 0), vmin=0, vmax=1)
    ax.set(title=f"waves of {name}", xlabel="time $t$", ylabel="time $t'$")
plt.show()
apart = {name: float(a[39, 159]) for name, a in alike.items()}
print(
    "cosine of the embeddings of t = 0.2 and t = 0.8:", {n: round(a, 3) for n, a in apart.items()}
)
assert apart["t"] > 0.95 and apart["1000 t"] < 0.7

# %% [markdown]
# Without the factor all times look alike (white: cosine 1).
#
# **Predict, then run.** We train twice in the plane, where the exact denoiser is known. How much worse
# is the network that cannot tell its times apart at first?


# %%
cloud = data.load("toy2d", kind="mixture", n=20_000)
oracle = denoiser.gaussian_mixture(p, *toy2d.MIXTURE)
point_eps = jax.random.normal(jax.random.key(8), (4000, 2))


def fit_points(net, forward):
    def loss(net, x, labels, key):
        return losses.diffusion_loss(partial(forward, net), p, "v", x, None, key)

    batches, key = data.batches(cloud, size=256, seed=0), jax.random.key(0)
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
distance, speed = {}, {}
for name, forward in (("1000 t", with_factor), ("t", without_factor)):
    fitted = fit_points(MLP(rngs=nnx.Rngs(0)), forward)
    distance[name] = to_oracle(fitted, forward)
    outputs = forward(fitted, jnp.full((200, 2), 0.3), grid)  # one point, 200 times
    speed[name] = np.linalg.norm(np.diff(outputs, axis=0), axis=1) / float(grid[1] - grid[0])
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
plots.curves(
    grid_t, distance, xlabel="time $t$", ylabel="squared distance to exact $D$", ax=axes[0], log="y"
)
label = r"$\|\partial v_\theta/\partial t\|$ at a fixed $x$"
plots.curves(grid[1:], speed, xlabel="time $t$", ylabel=label, ax=axes[1])
plt.show()
factor = distance["t"] / distance["1000 t"]
print("distance without the factor / with it, by time:", np.round(factor, 1))
assert (factor < 3).all() and 0.4 < factor.mean() < 2  # no disaster
assert speed["1000 t"].mean() > 1.5 * speed["t"].mean()

# %% [markdown]
# Not worse on the whole: at some times a little worse, at others better. The layers behind the embedding learn to amplify small differences; and the fast waves have a price
# of their own: the output jitters as $t$ moves. Not every warning that one reads survives a measurement. (Deeper networks and shorter training may tell another story. Measure there.)
#
# The right panel is the **health check** to keep: move $t$ at a fixed $x$, and look at how fast the output
# moves. A dead input (chapter 03) is a line at 0.
#
# ### Break it on purpose: the layers nobody trains
#
# A network can also lose whole layers without a word. Below, three layers are handed over inside a
# function. The forward pass is the same, line by line; but NNX finds parameters by walking through a
# module's *attributes*, and does not look into a function's closure.
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
seen, whole = Hidden(nnx.Rngs(0)), MLP(rngs=nnx.Rngs(0))
points, times = jnp.asarray(cloud.x[:5]), jnp.full(5, 0.4)
assert (seen(points, times) == whole(points, times)).all()  # the same function, at first
lost = to_oracle(fit_points(seen, with_factor), with_factor) / distance["1000 t"]
at_start = to_oracle(Hidden(nnx.Rngs(0)), with_factor) / distance["1000 t"]
print(f"parameters that are trained: {size_of(seen):,} of {size_of(whole):,}")
print(f"distance to the exact denoiser: {lost.mean():.1f} times the whole network's", end="")
print(f" (untrained: {at_start.mean():.0f} times)")
assert size_of(seen) < 0.6 * size_of(whole)
assert 1.3 < lost.mean() < 0.2 * at_start.mean()

# %% [markdown]
# It falls, and far: the other layers make what they can of three random ones. No error, no warning, a
# loss curve like any other, and a network that stays worse than it need be. Two checks find it, and cost
# a second: **count the parameters** and compare with what you expect; and see that **every parameter has
# moved** after some steps (section 8).
#
# ## 5 · The average of the weights
#
# Adam never stands still. At a constant learning rate the weights keep jumping about a good place, and
# the mean of where they were is better than where they are: $\bar\theta \leftarrow d\,\bar\theta +
# (1-d)\,\theta$. It remembers about $1/(1-d)$ steps. Too short a memory leaves the jumps in; too long a
# memory keeps the beginning, when the network knew nothing.
#
# **Predict, then run.** After 150 steps and after 600: will the same $d$ be best?


# %%
def error_of_library(net, x0, eps, t, labels):
    return losses.squared_error(net, p, "v", x0, eps, t, labels)


quality = {
    n: {
        d: metrics.loss_by_time(
            error_of_library, update.merge(new_unet(), vector), unseen.x, unseen.labels,
            np.array([0.2, 0.5, 0.8]), jax.random.key(9), repeats=1,
        ).mean()
        for d, vector in vectors.items()
    }
    for n, vectors in kept.items()
}  # fmt: skip
memory = [1 / (1 - d) for d in decays]
ax = plots.curves(
    memory, {f"after {n} steps": [quality[n][d] for d in decays] for n in kept},
    xlabel="memory of the average $1/(1-d)$, steps", ylabel="squared error of $v$, unseen images",
    log="xy", label_at=0.5,
)  # fmt: skip
for i, n in enumerate(kept):
    ax.axhline(quality[n]["warm-up"], color=plots.SERIES[i], lw=0.8)
plt.show()

# %%
best = {n: min(decays, key=lambda d: quality[n][d]) for n in kept}
last = quality[steps]
print("best d:", {n: d for n, d in best.items()})
print(f"last weights {last[0.0]:.4f}, best average {last[best[steps]]:.4f}, ", end="")
print(f"warm-up {last['warm-up']:.4f}, d = 0.9999 {last[0.9999]:.4f}")
assert best[150] < best[steps] and last[best[steps]] < 0.96 * last[0.0]
# The warmed-up average needs no choice: nearly the best of the grid at every length.
assert all(quality[n]["warm-up"] < 1.05 * quality[n][best[n]] for n in kept)
assert last[0.9999] > 2 * last[0.0]
left = {n: 0.9999**n for n in (600, 10_000, 30_000)}
print(
    "of its start d = 0.9999 still holds",
    ", ".join(f"{v:.0%} after {n:,}" for n, v in left.items()),
)
assert left[600] > 0.9 and 0.04 < left[30_000] < 0.06

# %% [markdown]
# A longer run wants a longer memory (thin lines: the average with warm-up, $d_n = \min(d,
# (1+n)/(10+n))$ of chapter 03, whose memory grows with the run). And $d = 0.9999$, which many papers
# use, needs some thirty thousand steps before it has forgotten its start ($0.9999^{30000}$ is 5 %): after
# 600 it draws noise in the first picture. A learning rate that falls to 0 does a part of the same
# work, since the jumps grow smaller.
#
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
assert recognised["warm-up"] >= 0.85 and recognised[0.9999] < 0.5

# %% [markdown]
# ## 6 · One error, many losses
#
# Chapter 02: an error of the target $y = a x_0 + b\varepsilon$ is an error of $x_0$, up to the factor
# $\sigma/\det$. So a "plain" squared error is a *choice of weight* on the error of $x_0$, and each target
# makes another: with $\text{SNR} = \alpha^2/\sigma^2$
#
# $$\|\hat y - y\|^2 = \lambda(t)\,\|\hat x_0 - x_0\|^2,\qquad
#   \lambda_{x_0} = 1,\quad \lambda_\varepsilon = \text{SNR},\quad
#   \lambda_v = \text{SNR} + 1 \tag{2}$$
#
# ($\lambda$ is a weight here, no log-SNR; Salimans & Ho 2022, section 4). **Min-SNR-γ** (Hang et al. 2023, section 3.4) sets
# $\lambda = \min(\text{SNR}, \gamma)$ for *every* target, so that nearly clean images, which are easy,
# do not rule the training.

# %%
t = jnp.linspace(0.02, 0.98, 200)
snr = (p.alpha(t) / p.sigma(t)) ** 2


def on_x0(weight, kind):
    """What a weight on the target's error is as a weight on the error of x0."""
    return weight(kind, p, t) * (parameterization.determinant(kind, p, t) / p.sigma(t)) ** 2


shown = {kind: on_x0(losses.simple, kind) for kind in ("x0", "eps", "v")}
np.testing.assert_allclose(shown["eps"], snr, rtol=1e-4)
np.testing.assert_allclose(shown["v"], snr + 1, rtol=1e-4)
clipped = {kind: on_x0(losses.min_snr(5.0), kind) for kind in ("x0", "eps", "v")}
for weight in clipped.values():  # one weight, whatever the network predicts
    np.testing.assert_allclose(weight, np.minimum(snr, 5), rtol=1e-3)
shown["min-SNR-5"] = clipped["v"]
plots.curves(
    np.log(snr), shown, xlabel=r"$\log$ SNR: noise at the left, data at the right",
    ylabel=r"weight $\lambda$ on the error of $x_0$", log="y",
)  # fmt: skip
plt.show()

# %% [markdown]
# A classic slip: the min-SNR factor of the ε-loss, $\min(\text{SNR}, \gamma)/\text{SNR}$, used on a
# network that predicts $v$. The loss falls; but the weight on $x_0$ becomes
# $\min(\text{SNR}, \gamma)\,(\text{SNR}+1)/\text{SNR}$, which never goes below 1, however noisy the image.

# %%
slip = jnp.minimum(snr, 5) / snr * shown["v"]
print(
    f"weight where SNR is {snr[-1]:.4f}: right {clipped['v'][-1]:.4f}, with the slip {slip[-1]:.2f}"
)
assert slip.min() > 0.99 and clipped["v"].min() < 0.01

# %% [markdown]
# ### Which times to draw
#
# A weight says what counts; where to *look* is another choice. If the loss varies much with $t$, a batch
# that draws $t$ uniformly gives a noisy estimate. Draw each time with a density proportional to
# $\sqrt{\mathbb{E}[L_t^2]}$, divide by the density, and the mean stays while the variance falls (Nichol &
# Dhariwal 2021, eq. 18). We take the loss of ε from the released network, most of which lives at small
# $t$, and compare three ways to draw 64 times: independently; one in each of 64 equal intervals; and one
# in each of 64 intervals that are *equally likely* under that density ("loss-aware").
#
# **Predict, then run.** How much steadier does the mean of a batch become: by a tenth, two or three times,
# ten times?

# %%
released = weights.load("digits")
parts = 20
middles = (np.arange(parts) + 0.5) / parts


def loss_of_eps(net, x0, eps, t, labels):
    """The error of eps, [B]: that of v, weighted (section 6)."""
    weight = 1 / (1 + (p.sigma(t) / p.alpha(t)) ** 2)
    return weight * losses.squared_error(net, p, "v", x0, eps, t, labels)


def squared(*inputs):
    return loss_of_eps(*inputs) ** 2


mean_square = metrics.loss_by_time(
    squared, released.model, digits.x[:500], digits.labels[:500], middles, jax.random.key(10), 2
)
drawers = {"uniform": (losses.uniform_times, losses.simple)}
drawers["one per interval"] = (losses.stratified_times, losses.simple)
drawers["loss-aware"] = losses.importance_times(mean_square)


# %%
@jax.jit
def measure(net, t, key):
    rows = jax.random.randint(key, t.shape, 0, len(digits))
    x0, eps = jnp.asarray(digits.x)[rows], jax.random.normal(key, (*t.shape, 8, 8, 1))
    return loss_of_eps(net, x0, eps, t, jnp.asarray(digits.labels)[rows])


batch_means = {}
for name, (times, weight) in drawers.items():
    keys = jax.random.split(jax.random.key(11), 200)
    t = jax.vmap(lambda key, times=times: times(key, 64))(keys).reshape(-1)  # fmt: skip
    values = weight("v", p, t) * measure(released.model, t, jax.random.key(12))
    batch_means[name] = np.asarray(values).reshape(200, 64).mean(1)
    m = batch_means[name]
    print(f"{name:17} mean {m.mean():.4f} ± {m.std() / np.sqrt(200):.4f}, scatter {m.std():.4f}")
scatter = {name: m.std() for name, m in batch_means.items()}
uniform, aware = batch_means["uniform"], batch_means["loss-aware"]
tolerance = 4 * np.hypot(uniform.std(), aware.std()) / np.sqrt(200)
assert abs(uniform.mean() - aware.mean()) < tolerance  # the mean stays
assert scatter["loss-aware"] < 0.5 * scatter["uniform"]
assert scatter["one per interval"] < 0.6 * scatter["uniform"]

# %% [markdown]
# More than twice as steady, for nothing but other times. Most of the gain comes with one time in each of 64
# equal intervals, which is what `losses.diffusion_loss` has done since chapter 03; the density adds a
# little. It adds more where the loss differs more between times, as it does in chapter 05.
#
# ## 7 · Memory and numbers
#
# **Gradient accumulation.** The gradient of a mean is the mean of the gradients. If a batch does not
# fit, take it in parts, average the parts' gradients, and step once. With equal parts it is the same
# step; `optax.MultiSteps` keeps the count.


# %%
def batch_loss(net, x, t, eps, labels):
    return losses.squared_error(net, p, "v", x, eps, t, labels).mean()


def largest_gap(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


gradient = jax.jit(nnx.grad(batch_loss))
toy, t = weights.load("toy2d").model, jnp.linspace(0.02, 0.98, 64)
x, y, eps = cloud.x[:64], cloud.labels[:64], point_eps[:64]
together = gradient(toy, x, t, eps, y)
quarters = [gradient(toy, *(a[i::4] for a in (x, t, eps, y))) for i in range(4)]
mean = jax.tree.map(lambda *g: sum(g) / 4, *quarters)
size, gap = largest_gap(together, jax.tree.map(jnp.zeros_like, mean)), largest_gap(together, mean)
print(f"largest entry of the gradient {size:.3f}, largest difference {gap:.1e}")
assert gap < 1e-4 * size  # float32 sums in another order

# %% [markdown]
# **Rematerialisation.** The backward pass needs the activations of the forward pass, and they are
# most of the memory. `jax.checkpoint` around a block throws its inner activations away and computes them
# again when they are needed: a third more arithmetic, less memory. The compiler tells how much before
# anything runs. (The layers stand in a loop, `lax.scan`: on a CPU, XLA would find the same computation
# twice in a row of layers, and keep it after all.)

# %%
block = ResidualBlock(32, 32, 64, rngs=nnx.Rngs(1))
graph, params = nnx.split(block)
h, e = jax.random.normal(jax.random.key(14), (16, 16, 16, 32)), jnp.ones((16, 64))


def deep(params, keep):
    """The mean square of features that went through the block eight times."""

    def once(h, _):
        return residual_block(nnx.merge(graph, params), h, e), None

    once = once if keep else jax.checkpoint(once)
    return (jax.lax.scan(once, h, length=8)[0] ** 2).mean()


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
# **bfloat16** keeps float32's range and 8 of its 24 bits. Accelerators multiply such numbers
# several times as fast. A network bears it well: its layers' rounding errors are small beside the noise
# in its input. What does not bear it is anything that adds small to large: parameters, their average,
# statistics, losses, and **time**.

# %%
coarse = UNet(1, (16, 32), num_classes=10, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
nnx.update(coarse, nnx.state(run.ema))
x, y = drawn[steps, 0.0][:64], labels[:64]
fine_v, coarse_v = call(run.ema, x, t, y), call(coarse, x, t, y)
relative = float(jnp.linalg.norm(fine_v - coarse_v) / jnp.linalg.norm(fine_v))
kinds = {a.dtype.name for a in jax.tree.leaves(nnx.state(coarse))}
in_bfloat16 = len(np.unique((jnp.arange(1, 1001) / 1000).astype(jnp.bfloat16)))
print(f"output of the network: {relative:.2%} off in bfloat16; its parameters stay {kinds}")
print(f"of 1,000 times n/1000, bfloat16 tells {in_bfloat16} apart")
assert relative < 0.03 and kinds == {"float32"} and coarse_v.dtype == jnp.float32
assert in_bfloat16 < 520

# %% [markdown]
# So time stays float32 until it has been embedded. `UNet(dtype=jnp.bfloat16)` does that, and so do its
# norms' statistics; the course chooses it on an accelerator. (On a CPU bfloat16 is emulated, and slower.)

# %% [markdown]
# ## 8 · What to inspect
#
# For a network you have not trained before, in this order:
#
# 1. the loss of the untrained network, against the number that the answer 0 gives (section 3);
# 2. that every parameter has moved: a layer the optimiser never sees is the quietest bug of all;
# 3. the movement of the output with $t$ (section 4), and with the label;
# 4. the error by noise level, on unseen images, beside that of a network you trust (section 3);
# 5. samples from the last weights *and* from the average (section 5).

# %%
before, after = (jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(net)))
                 for net in (new_unet(), run.model))  # fmt: skip
still = [
    jax.tree_util.keystr(path)
    for (path, old), (_, new) in zip(before, after, strict=True)
    if np.array_equal(old, new)
]
print(f"{len(after)} arrays of parameters; not moved by training: {still or 'none'}")
assert not still
late, three, eight = jnp.full(64, 0.7), jnp.full(64, 3), jnp.full(64, 8)
by_label = jnp.abs(call(run.ema, x, late, three) - call(run.ema, x, late, eight))
assert by_label.max() > 0.05

# %% [markdown]
# ## 9 · Recap
#
# 1. Low noise needs details, high noise needs the whole image, and one network does both: skips, coarse
#    levels, FiLM.
# 2. What a part buys, only an ablation tells, by noise level; and only for these data.
# 3. Count the parameters, and check that the output moves with $t$. A layer in a closure never trains.
# 4. The best memory of the average grows with the run; warm-up chooses it for you.
# 5. A loss is a weight on the error of $x_0$ and a density of times. Batches can be split, activations
#    computed again, products rounded; time and parameters cannot.
#
# The exercises are in `exercises/04_networks.ipynb`.

# %% [markdown]
# **Try it yourself.** (a) Take out the *label* instead of the time: at which noise levels does the error
# rise? (b) Train with `optax.adam(1e-3)` instead of 1e-2: how much does the average still buy? (c) Give the
# released MNIST network the wrong time, $t + 0.1$, and look at $D$.
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
# CVPR (arXiv:2312.02696), on choosing the average after the run. Chen et al. 2016, *Training Deep Nets with
# Sublinear Memory Cost* (arXiv:1604.06174).
