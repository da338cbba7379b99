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
# # 16 · Diffusion transformers
#
# **The question.** A transformer reads a list of tokens, like words. How does it denoise an image, how is it told
# the noise level and the label, and what do its many variants buy?
#
# At the end of this chapter you will be able to
#
# - write a diffusion transformer (DiT) from memory, and explain why its blocks start as the identity;
# - say which of its parts knows where a patch lies, and which one hears the time;
# - count parameters and operations of any DiT with pencil and paper, and check a paper's table;
# - say when attention's $N^2$ matters, and what a fused kernel saves;
# - recognise a network whose blocks are dead although its loss falls.
#
# **You need** chapters 04 and 06. **Time**: about 80 minutes of reading. The cells run for about a minute on two
# CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup()

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

# %%
from diffusion_course import data, denoiser, losses, process, samplers, sampling
from diffusion_course import weights
from diffusion_course.evaluation import metrics
from diffusion_course.models import attention, counting, dit, mmdit, patches
from diffusion_course.models.classifier import judge
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import loop, update
from diffusion_course.weights import features

plots.use_style()

# %% [markdown]
# ## 1 · One picture
#
# We train a small DiT on the 8×8 digits: four blocks, 16 tokens, half a minute. Each block ends with a **gate**, a
# vector that multiplies everything that the block adds. All gates start at **zero**. So at first the four blocks
# do nothing at all, whatever their other weights are.
#
# During the training we keep the averaged network every 25 steps, and measure how far its gates are open: the root
# mean square of a gate's numbers, over channels, times and labels.
#
# **Predict, then run.** Will the first block open first, or the last one? Or all of them together?

# %%
digits, unseen = (data.load("digits", split=split) for split in ("train", "test"))
p = process.vp_cosine()
STEPS, BATCH, RATE = 500, 64, 3e-3
SHAPE = {"patch": 2, "width": 48, "depth": 4, "head_size": 16}


def new_dit(seed, **changed):
    return dit.DiT(8, 1, **(SHAPE | changed), num_classes=10, rngs=nnx.Rngs(seed))


def v_loss(model, x, labels, key):
    """The plain squared error of v; a tenth of the labels is dropped."""
    drop, rest = jax.random.split(key)
    labels = losses.drop_labels(drop, labels, 10, 0.1)
    return losses.diffusion_loss(model, p, "v", x, labels, rest)


def train(model, seed=0, stop=STEPS, **options):
    batches = data.batches((digits.x, digits.labels), BATCH, seed)
    return loop.fit(model, v_loss, batches, steps=STEPS, stop=stop, key=jax.random.key(seed),
                    optimizer=update.adam(RATE, STEPS), progress=False, **options)  # fmt: skip


# %%
snapshots = {0: new_dit(0)}
main_run = train(
    new_dit(0), callbacks=[loop.Callback(25, lambda step, ema: snapshots.setdefault(step, ema))]
)
TIMES, SOME_LABELS = jnp.repeat(jnp.linspace(0.05, 0.95, 10), 10), jnp.tile(jnp.arange(10), 10)


@jax.jit
def gates(model):
    """Every block's two gates, for ten times and ten labels: [depth, 100, 2, width]."""
    emb = model.embed(TIMES, SOME_LABELS)
    six = jax.vmap(lambda block: block.modulation(jax.nn.silu(emb)))(model.blocks)
    return six.reshape(*six.shape[:2], 6, -1)[:, :, jnp.array([2, 5])]


@jax.jit
def draw(model, start, labels):
    D, times = denoiser.denoiser(model, p, "v", labels), sampling.uniform(20)
    return sampling.sample(samplers.dpm_solver_pp_2m(p), D, start, times, jax.random.key(0))[0]


TEN = jax.random.normal(jax.random.key(6), (10, 8, 8, 1))
opened = np.array([np.sqrt(np.mean(np.square(gates(m)), axis=(1, 3))) for m in snapshots.values()])
ten_digits = {step: draw(model, TEN, jnp.arange(10)) for step, model in snapshots.items()}

# %%
kept_at = np.array(list(snapshots))
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
for ax, which, name in zip(axes, (0, 1), ("attention", "dense network"), strict=True):
    lines = {f"block {b + 1}": opened[:, b, which] for b in range(4)}
    plots.curves(kept_at, lines, ax=ax, xlabel="training step", ylabel="", label_at=0.6)
    ax.set_title(f"gates of the {name}")
axes[0].set_ylabel("root mean square of the gate")
plt.show()
shown_steps = (0, 50, 100, 200, 500)
plots.image_grid([ten_digits[s] for s in shown_steps], [f"step {s}" for s in shown_steps],
                 "Same noise in each column")  # fmt: skip
plt.show()

# %% tags=["claims"]
# @title Checked: gates start at exactly 0; after 100 steps all are open to a third of their end or more
assert (opened[0] == 0).all() and (opened[-1] > 0.2).all()
assert (opened[list(kept_at).index(100)] > opened[-1] / 3).all()
early_order = opened[list(kept_at).index(50)]
assert early_order.max() < 3 * early_order.min()  # no block waits for another

# %% [markdown]
# In this training they begin to open together, and in the first hundred steps they get more than a third of the way.
# No block waits for another, and digits appear with them. The
# network decides by itself how much each block may say. The rest of the chapter takes this picture apart: what a
# token is, what a block does, why it starts at zero, and what other designs do in its place.

# %% [markdown]
# ## 2 · An image as a list of patches
#
# Attention costs $N^2$ for $N$ tokens, so pixels would be too many. We cut the image into **patches** of $P \times P$
# pixels. An image of $H \times W$ gives
#
# $$N = \frac{HW}{P^2} \tag{1}$$
#
# tokens (Peebles & Xie 2023, section 3.2). Each patch is a vector of $P^2 C$ numbers, and one linear layer makes a
# token of it. After the blocks, another linear layer makes $P^2 C$ numbers of each token, and they are put back
# where they came from. Nothing is lost on the way: cutting and putting back are each other's inverse.


# %% tags=["comparison"]
def patchify(x, P):
    """[B, H, W, C] -> [B, N, P·P·C], patches row by row."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // P, P, W // P, P, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, (H // P) * (W // P), P * P * C)


def unpatchify(tokens, P, H, W):
    B, _, size = tokens.shape
    x = tokens.reshape(B, H // P, W // P, P, P, size // P**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H, W, -1)


pictures = np.random.default_rng(0).normal(size=(2, 8, 12, 3))  # height and width differ
for P in (1, 2, 4):
    np.testing.assert_array_equal(unpatchify(patchify(pictures, P), P, 8, 12), pictures)
kernel = np.random.default_rng(1).normal(size=(4 * 4 * 3, 5))
by_convolution = jax.lax.conv_general_dilated(
    jnp.float32(pictures), jnp.float32(kernel.reshape(4, 4, 3, 5)), (4, 4), "VALID",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)  # fmt: skip
# float32 sums of 48 products, each of size 1
by_hand_too = patchify(pictures, 4) @ kernel
np.testing.assert_allclose(by_hand_too, by_convolution.reshape(2, 6, 5), atol=1e-4)
print("tokens of the 8×8 digits:", {P: patchify(unseen.x[:1], P).shape[1:] for P in (1, 2, 4, 8)})

# %% [markdown]
# The second half of the cell shows that "cut into patches, then a linear layer" is a convolution with stride $P$.
# You will find it written so in many codebases.
#
# Half the patch size means four times the tokens. The number of *parameters* hardly changes: only the first and the
# last layer know $P$. So patch size is a way to buy computation without buying parameters. Section 9 asks what
# that is worth.

# %% [markdown]
# ## 3 · A diffusion transformer, written out
#
# A block has two parts. *Attention* lets every patch read every other one. A *dense network* then works on
# each token alone. Both sit on a residual stream: they add to the tokens.
#
# Time and label reach the block through its norms. An embedding $c$ of both gives six vectors,
#
# $$(\beta_1, \gamma_1, g_1, \beta_2, \gamma_2, g_2) = W\,\mathrm{silu}(c) + b \tag{2}$$
#
# two shifts, two scales and two gates, and the block computes
#
# $$h \leftarrow h + g_1\,\mathrm{Att}\big((1+\gamma_1)\,\mathrm{LN}(h) + \beta_1\big),\qquad
# h \leftarrow h + g_2\,\mathrm{MLP}\big((1+\gamma_2)\,\mathrm{LN}(h) + \beta_2\big) \tag{3}$$
#
# LN brings each token to mean 0 and variance 1. This is **adaLN-Zero** (Peebles & Xie 2023, section 3.2): an
# *adaptive layer norm* whose $W$ and $b$ start at *zero*. At the start, then, shifts, scales and gates are 0, and
# the block is the identity.
#
# Here is the whole network. The next cell compares it with the library's, with the trained weights.


# %%
def layer_norm(h):
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)


def softmax_attention(qkv, heads):
    """[B, N, 3·C] -> mixed values [B, N, C], and who looked where [B, heads, N, N]."""
    B, N, _ = qkv.shape
    q, k, v = (part.reshape(B, N, heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    looks = jax.nn.softmax(logits)
    return jnp.einsum("bhqk,bkhd->bqhd", looks, v).reshape(B, N, -1), looks


def block_by_hand(w, h, c):
    """Equations (2) and (3), with the weights w of one block: h [B, N, C], c [B, C]."""
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(
        w.modulation(jax.nn.silu(c))[:, None], 6, axis=-1
    )
    mixed, looks = softmax_attention(w.qkv(layer_norm(h) * (1 + scale_1) + shift_1), w.heads)
    h = h + gate_1 * w.out(mixed)
    inside = jax.nn.gelu(w.mlp_in(layer_norm(h) * (1 + scale_2) + shift_2))
    return h + gate_2 * w.mlp_out(inside), looks


# %%
def sin_cos(rows, cols, width):
    """Where each patch lies: half of the channels for its row, half for its column."""
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    angles = lambda n: np.arange(n)[:, None] * frequencies
    waves = lambda n: np.concatenate([np.cos(angles(n)), np.sin(angles(n))], axis=1)
    return np.concatenate([np.repeat(waves(rows), cols, 0), np.tile(waves(cols), (rows, 1))], 1)


def blocks_of(model):
    """The library stacks its blocks' weights along a first axis; here they are one by one."""
    graph, stacked = nnx.split(model.blocks)
    return [nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], stacked)) for i in range(4)]


def dit_by_hand(model, x, t, labels):
    """The network's output, and each block's attention: [depth, B, heads, N, N]."""
    c = model.embed(t, labels)  # sinusoids of the time through a small MLP, plus a row per label
    h = model.patchify(patchify(x, 2)) + sin_cos(4, 4, 48)
    looks = []
    for w in blocks_of(model):
        h, seen = block_by_hand(w, h, c)
        looks.append(seen)
    shift, scale = jnp.split(model.modulation(jax.nn.silu(c))[:, None], 2, axis=-1)
    return unpatchify(model.final(layer_norm(h) * (1 + scale) + shift), 2, 8, 8), jnp.stack(looks)


# %% tags=["comparison"]
some_times = jnp.linspace(0.05, 0.95, 12)
noise_of_some = jax.random.normal(jax.random.key(1), (12, 8, 8, 1))
noisy_digits = process.add_noise(p, unseen.x[:12], noise_of_some, some_times)
ask = (noisy_digits, some_times, jnp.asarray(unseen.labels[:12]))
by_hand, looks_of_some = jax.jit(dit_by_hand)(main_run.ema, *ask)
by_library = main_run.ema(*ask)
np.testing.assert_allclose(by_hand, by_library, atol=1e-4)  # four blocks of float32
print(f"largest difference {jnp.abs(by_hand - by_library).max():.0e} of values up to "
      f"{jnp.abs(by_library).max():.1f}")  # fmt: skip

# %% [markdown]
# ## 4 · Why the gates start at zero
#
# Take one block alone, just built. It is the identity, so does it learn at all? The derivative of $h + g\,f(h)$ by
# the gate $g$ is $f(h)$, which is not zero. The derivative by the weights of $f$ has the factor $g = 0$. So in the
# first step **only the gates** move. In the second step $g \ne 0$, and everything else follows.
#
# In the whole network, the last linear layer starts at zero as well, so the untrained network predicts $v = 0$.
# Everything before this layer has no gradient at all until the layer has moved.
#
# **Predict, then run.** We take three steps, and look for the first one in which a part of the network has a
# gradient. In which step do the last layer, the gates, and the queries and keys wake up?

# %%
every_label = jnp.arange(44) % 11  # all ten digits, and "no label"
a_batch = (jnp.asarray(digits.x[:44]), every_label, jax.random.key(2))
graph_of_dit, first_params = nnx.split(new_dit(0))


@jax.jit
def slope(params):
    loss = lambda q: losses.diffusion_loss(nnx.merge(graph_of_dit, q), p, "v", *a_batch)
    return jax.grad(loss)(params)


def alive(gradient):
    """Which share of each part's numbers has a gradient."""
    g = nnx.merge(graph_of_dit, gradient)
    six = np.reshape(g.blocks.modulation.bias[...], (4, 6, -1))
    others = [g.blocks.qkv, g.blocks.out, g.blocks.mlp_in, g.blocks.mlp_out]
    parts = {"last layer": [g.final.kernel[...]], "gates": [six[:, [2, 5]]],
             "patch layer": [g.patchify.kernel[...]], "shifts and scales": [six[:, [0, 1, 3, 4]]],
             "attention, dense": [layer.kernel[...] for layer in others],
             "time and label": jax.tree.leaves(nnx.state(g.embed))}  # fmt: skip
    return {k: np.mean([np.mean(np.asarray(a) != 0) for a in v]) for k, v in parts.items()}


# %%
moving, waking = first_params, []
for _ in range(3):
    grads = slope(moving)
    waking.append(alive(grads))
    longest = optax.global_norm(grads)
    moving = jax.tree.map(lambda a, g, n=longest: a - 0.5 * g / n, moving, grads)
for part in waking[0]:
    print(f"{part:18}", *(f"step {i}: {step[part]:4.0%}  " for i, step in enumerate(waking)))

one_block = dit.Block(48, 3, rngs=nnx.Rngs(3))
tokens_in = jax.random.normal(jax.random.key(3), (2, 16, 48))
told = jax.random.normal(jax.random.key(4), (2, 48))
aim = jax.random.normal(jax.random.key(5), (2, 16, 48))
block_graph, block_params = nnx.split(one_block)
by_weights = nnx.merge(block_graph, jax.jit(jax.grad(
    lambda w: jnp.sum(nnx.merge(block_graph, w)(tokens_in, told) * aim)))(block_params))  # fmt: skip

# %% tags=["claims"]
# @title Checked: a new block is the identity; alone only its gates have a gradient; the network wakes in three steps
np.testing.assert_array_equal(one_block(tokens_in, told), tokens_in)
six_of_block = np.reshape(by_weights.modulation.kernel[...], (48, 6, 48))
assert (six_of_block[:, [2, 5]] != 0).all() and (six_of_block[:, [0, 1, 3, 4]] == 0).all()
silent = (by_weights.qkv, by_weights.out, by_weights.mlp_in, by_weights.mlp_out)
assert all((leaf == 0).all() for layer in silent for leaf in jax.tree.leaves(nnx.state(layer)))
wakes = {part: next(i for i in range(3) if waking[i][part] > 0) for part in waking[0]}
assert wakes == {"last layer": 0, "gates": 1, "patch layer": 1, "shifts and scales": 2,
                 "attention, dense": 2, "time and label": 2}  # fmt: skip
assert all(share > 0.98 for share in waking[2].values())

# %% [markdown]
# The network wakes from its end: first the last layer, then the gates and the layer of patches, and in the third
# step all the rest. So if you test that every parameter has changed (chapter 04), test it after a few steps and not
# after the first.
#
# What does the zero buy? Section 7 compares it with gates that start at 1.

# %% [markdown]
# ## 5 · Where does a patch lie?
#
# Attention treats its tokens as a *set*. Shuffle the tokens, and the outputs are shuffled in the same way. All that
# tells our DiT that one patch is left of another is the table of sinusoids, added once before the first block.
#
# **Predict, then run.** We move the patches of noisy digits to other places, run the network, and move its output
# back. How much does the output differ from that of the digits in order? And with the table left out?


# %%
class Nowhere(dit.DiT):
    """A DiT whose tokens do not know where they are: rotary positions, with no angles."""

    def _angles(self, others=0):
        return None


rms = lambda a: float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64)))))
without_table = Nowhere(8, 1, **SHAPE, positions="rotary", num_classes=10, rngs=nnx.Rngs(0))
without_table = nnx.merge(nnx.split(without_table)[0], nnx.split(main_run.ema)[1])  # same weights
shuffle = np.random.default_rng(4).permutation(16)
moved = unpatchify(patchify(ask[0], 2)[:, shuffle], 2, 8, 8)
in_tokens = jax.jit(lambda model, x: patchify(model(x, *ask[1:]), 2))
differs = {
    name: rms(in_tokens(model, moved)[:, np.argsort(shuffle)] - in_tokens(model, ask[0]))
    for name, model in {"with the table": main_run.ema, "without it": without_table}.items()
}
for name, value in differs.items():
    print(f"{name}: differs by {value:.1e}, of outputs of size {rms(by_library):.1f}")

# %% [markdown]
# Without the table a DiT cannot tell a digit from a heap of its pieces. Two ways to tell it are in use.
#
# **Sin-cos positions** are added to the tokens. For the angles $m\,\omega_i$ of row $m$, the product of two rows of
# the table is $\sum_i \cos((m-m')\,\omega_i)$ (and the same for columns). It depends on the *offset* of two patches
# alone. But a linear layer $W$ comes in between, and $e_m^\top W e_{m'}$ can be anything: absolute places can be
# learned too.
#
# **Rotary positions** (Su et al. 2021) leave the tokens alone and *turn* queries and keys instead. Take two channels
# as a complex number $z$, and multiply it by $e^{im\omega}$. In the product of a query at $m$ with a key at $m'$,
# only $e^{i(m-m')\omega}$ is left. So places enter the logit through their offset alone, whatever the weights. In two
# dimensions half of the pairs turn with the row and half with the column.


# %% tags=["comparison"]
def turned(x, places, size):
    """Rotary positions, with complex numbers: x [N, size], places [N, 2] -> [N, size]."""
    frequencies = 100.0 ** (-np.arange(size // 4) / (size // 4))
    angles = np.concatenate([places[:, :1] * frequencies, places[:, 1:] * frequencies], axis=1)
    z = (x[:, : size // 2] + 1j * x[:, size // 2 :]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=1)


places = np.stack(np.divmod(np.arange(20), 5), axis=1)  # a grid of 4 rows and 5 columns
offsets = (places[:, None] - places[None]).reshape(-1, 2)
query, one_key = np.random.default_rng(5).normal(size=(2, 16))
queries, keys = (turned(np.tile(v, (20, 1)), places, 16) for v in (query, one_key))
angles_of_library = attention.rotary_angles(4, 5, 16)
from_library = attention.rotate(np.tile(np.float32(query), (20, 1)), angles_of_library)
np.testing.assert_allclose(queries, from_library, atol=1e-5)  # float32
table = sin_cos(4, 5, 48)
np.testing.assert_allclose(table, patches.position_embedding(4, 5, 48), atol=1e-6)
spread = {}
for name, products in {"sin-cos": table @ table.T, "rotary": queries @ keys.T}.items():
    by_offset = {}
    for offset, value in zip(map(tuple, offsets), products.ravel(), strict=True):
        by_offset.setdefault(offset, []).append(value)
    within = max(np.ptp(values) for values in by_offset.values())
    spread[name] = within, np.std([values[0] for values in by_offset.values()])
    print(f"{name}: at one offset {within:.0e}, between offsets {spread[name][1]:.1f}")

# %% tags=["claims"]
# @title Checked: without a table a DiT is blind to places; both tables' products depend on the offset alone
# Sums of 16 tokens in another order differ by some units of float32's seventh digit.
relative = {name: value / rms(by_library) for name, value in differs.items()}
assert relative["without it"] < 1e-5 and relative["with the table"] > 0.3
assert all(within < 1e-12 and between > 0.5 for within, between in spread.values())

# %% [markdown]
# ## 6 · What does a patch look at?
#
# Attention can be read. Each row of its matrix says how much a patch takes from every other one; the numbers add up
# to 1. The exponential of their entropy says from *how many* patches it takes: 16 if it takes from all alike, 1 if
# from one alone.
#
# **Predict, then run.** We have 100 unseen digits and our trained network. When does a patch look at many others:
# when the digit is nearly clean, or when it is nearly noise?

# %%
hundred, their_noise = unseen.x[:100], jax.random.normal(jax.random.key(8), (100, 8, 8, 1))
look_at = jax.jit(lambda model, *a: dit_by_hand(model, *a)[1])
levels, looks = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95), {}
for t in levels:
    t_of_all = jnp.full(100, t)
    noisy = process.add_noise(p, hundred, their_noise, t_of_all)
    looks[t] = np.asarray(look_at(main_run.ema, noisy, t_of_all, jnp.asarray(unseen.labels[:100])))
how_many = {t: np.exp(-(a * np.log(a)).sum(-1)).mean((1, 2, 3)) for t, a in looks.items()}
fig, axes = plt.subplots(2, 4, figsize=(8, 4))
for row, t in zip(axes, (0.05, 0.95), strict=True):
    for block, ax in enumerate(row):
        ax.imshow(looks[t][block].mean((0, 1))[6].reshape(4, 4), vmin=0, vmax=0.2, cmap="Greys")
        ax.plot(2, 1, "s", ms=28, mfc="none", mec=plots.PREDICTION, mew=2)  # the patch that looks
        ax.set(xticks=[], yticks=[], title=f"block {block + 1}: {how_many[t][block]:.0f} of 16")
    row[0].set_ylabel(f"$t$ = {t}")
fig.suptitle("Whom the marked patch looks at; average of 100 digits", size="medium")
plt.show()

# %% tags=["claims"]
# @title Checked: in every block the number of patches looked at falls with the noise, from over 11 to under 10
counts = np.array([how_many[t] for t in levels])
assert (np.diff(counts, axis=0) < 0).all()
assert counts[0].min() > 11.5 and counts[0].max() < 14.5
assert counts[-1].min() > 7.5 and counts[-1].max() < 10
np.testing.assert_allclose(looks[0.05].sum(-1), 1, atol=1e-5)

# %% [markdown]
# In this network a patch takes from 12 to 14 of the 16 patches when the digit is nearly clean, and from 8 to 10 when
# there is much noise: then it chooses more. If a noisy patch needs the others more, then the gates should be wider
# open at high noise. We ask our network, and also the course's **released** DiT: MNIST, 49 tokens of 128 channels,
# 15,000 steps.
#
# **Predict, then run.** How much wider are the gates at $t = 0.95$ than at $t = 0.05$?

# %%
released = weights.load("mnist_dit")
two_networks = {"this chapter's": main_run.ema, "released": released.model}
by_time = {}
for name, model in two_networks.items():
    squares = np.mean(np.square(gates(model)), axis=(0, 3)).reshape(10, 10, 2)
    by_time[name] = np.sqrt(squares).mean(1)  # [10 times, attention and dense network]
    for which, (first, *_, last) in zip(("attention", "dense"), by_time[name].T, strict=True):
        print(f"{name:15} gates of the {which:9} at t = 0.05: {first:.2f}, at t = 0.95: {last:.2f}")


@jax.jit
def draw_mnist(model, key, labels):
    D, start = denoiser.denoiser(model, p, "v", labels), jax.random.normal(key, (200, 28, 28, 1))
    return sampling.sample(samplers.ddim(p), D, start, sampling.uniform(25), key)[0]


of_released = draw_mnist(released.model, jax.random.key(0), jnp.arange(200) % 10)
read_as = judge(weights.load("mnist_classifier").model, of_released)[0]
recognised = metrics.class_accuracy(read_as, np.arange(200) % 10)
on_card = released.card.metrics["w=1"]["accuracy"]
print(f"recognised at w = 1: {recognised:.1%} of 200, {on_card:.1%} of 5,000 by its card")
plots.image_grid([of_released[:10], of_released[10:20]], title="The released DiT, w = 1")
plt.show()

# %% tags=["claims"]
# @title Checked: in both networks the gates open with the noise, more than twofold; the card's number holds
for values in by_time.values():
    assert (np.diff(values, axis=0) > 0).all() and (values[-1] > 2 * values[0]).all()
wider = by_time["released"][-1] / by_time["released"][0]
assert wider[0] > 4 and 2.5 < wider[1] < 3.2
assert abs(recognised - on_card) < 4 * np.sqrt(on_card * (1 - on_card) / 200)  # 4 standard errors

# %% [markdown]
# Both networks open their gates with the noise. One reading: a nearly clean patch can be denoised from itself, and a
# noisy one needs other patches. But the dense network's gates open too, and it reads no other patch. So this is at
# most a part of the reason. In the released DiT the attention's gates open more: over fourfold, the others not
# threefold.

# %% [markdown]
# ## 7 · Four ways to tell a network the time
#
# The blocks must hear the time, the label, or a text. Four designs, by what they add to the plain block:
#
# - **adaLN-Zero**: scales, shifts and gates from an embedding (section 3). Each block has its own $W$ of $6C^2$
#   numbers.
# - **adaLN-single** (PixArt-α, Chen et al. 2024, section 2.3): *one* $W$ for all blocks; each block adds a learned
#   table of $6C$ numbers.
# - **In-context**: time and label become two more *tokens* beside the patches. The block stays plain.
# - **Cross-attention**: the patches attend to these tokens in a second attention, with $4C^2$ more numbers.
#
# The last two suit a *sequence* of words; the first two need one vector. Count the share of the parameters that
# do nothing but modulate. A block of width $C$ has $4C^2$ for the attention, $8C^2$ for the dense network, $6C^2$ for
# the modulation. So a **third** of a DiT only turns an embedding into scales, shifts and gates.
#
# **Predict, then run.** PixArt-α's paper says 27 %, not 33 %. Who is wrong?

# %%
XL = {"patch": 2, "width": 1152, "depth": 28, "head_size": 72, "num_classes": 1000}
of_xl = {
    way: counting.dit_parameters(32, 4, **XL, conditioning=way, learned_variance=True)
    for way in dit.CONDITIONING
}
for way, parts in of_xl.items():
    total = sum(parts.values())
    print(f"{way:16} {total / 1e6:5.0f} million, modulation {parts['modulation'] / total:4.0%}")
with_both = 6 / (4 + 8 + 6 + 4)  # modulation, in a block that also has cross-attention
print(f"share in a block with cross-attention: {with_both:.1%}")
of_ours = {way: new_dit(0, conditioning=way) for way in dit.CONDITIONING}
counted = {way: counting.parameter_count(model) for way, model in of_ours.items()}
operations = {
    way: sum(counting.dit_flops(8, 1, **SHAPE, num_classes=10, conditioning=way).values())
    for way in dit.CONDITIONING
}
print("millions of operations of ours:", {w: round(n / 1e6, 2) for w, n in operations.items()})

# %% tags=["claims"]
# @title Checked: adaLN-Zero's modulation is a third, 27 % beside cross-attention; adaLN-single saves nearly all of it
share = {way: parts["modulation"] / sum(parts.values()) for way, parts in of_xl.items()}
assert abs(share["adaln-zero"] - 1 / 3) < 0.002 and share["adaln-single"] < 0.03
assert abs(with_both - 0.27) < 0.005
assert 0.22 < 1 - counted["adaln-single"] / counted["adaln-zero"] < 0.25
fewer = {way: 1 - n / counted["adaln-zero"] for way, n in counted.items()}
assert abs(fewer["cross-attention"] - 0.13) < 0.005 and abs(fewer["in-context"] - 0.34) < 0.005
assert max(operations, key=operations.get) == "cross-attention"
assert operations["adaln-zero"] < min(operations["in-context"], operations["cross-attention"])
assert abs(sum(of_xl["adaln-zero"].values()) / 675e6 - 1) < 0.002
for way in dit.CONDITIONING:  # the formulas count what the networks have
    assert counted[way] == sum(
        counting.dit_parameters(8, 1, **SHAPE, num_classes=10, conditioning=way).values()
    )

# %% [markdown]
# Nobody is wrong. PixArt-α's blocks have cross-attention to the text as well, and $6/22$ is 27 %. The library's
# formulas give DiT-XL/2 676 million parameters, and its paper says 675. (`learned_variance` doubles the output channels:
# published DiTs say a variance as well, as in chapter 05.)
#
# What does each way buy? Here is a *recorded* benchmark (`benchmarks/transformer_parts.py`). Every row is section
# 1's network and training with **one** thing changed: the same images, noise and times, three seeds. The error is
# the loss on the 360 unseen digits, each at eight times with the same noise for all. It is the sharper of the two
# measures; the Fréchet distance is of 360 samples.
#
# **Predict, then run.** Rank the ways of conditioning. And what costs more: no zero in the gates, or no positions?

# %%
RECORDED_PARTS = {  # three seeds each: error, Fréchet distance
    "adaLN-Zero": [(0.28316, 0.28093, 0.28404), (8.075, 7.291, 7.779)],
    "gates start at 1": [(0.29191, 0.28676, 0.29381), (10.481, 8.299, 10.781)],
    "adaLN-single": [(0.29548, 0.28781, 0.28890), (11.182, 8.812, 9.070)],
    "in-context": [(0.35402, 0.36104, 0.35315), (21.938, 23.313, 21.120)],
    "cross-attention": [(0.32816, 0.31866, 0.32256), (16.896, 13.260, 15.058)],
    "rotary": [(0.29812, 0.29134, 0.30613), (10.362, 8.250, 11.205)],
    "no positions": [(0.53011, 0.53104, 0.53084), (31.530, 31.381, 30.462)],
    "long skips": [(0.29117, 0.28464, 0.28545), (9.948, 7.676, 8.135)],
    "normalised q and k": [(0.28395, 0.27950, 0.28271), (8.333, 6.953, 7.323)],
}
base = np.array(RECORDED_PARTS["adaLN-Zero"][0])
for name, (errors, distances) in RECORDED_PARTS.items():
    more = np.array(errors) / base - 1  # seed by seed: same images, noise and times
    print(f"{name:19} error {np.mean(errors):.4f} ({np.mean(more):+6.1%} ± {np.std(more, ddof=1):.1%})"
          f"   Fréchet {np.mean(distances):5.1f} ± {np.std(distances, ddof=1):.1f}")  # fmt: skip

# %% [markdown]
# One row we compute again. It costs nothing: the training of section 1 is the first row's first seed.


# %%
@jax.jit
def unseen_error(model):
    x, labels = jnp.asarray(unseen.x), jnp.asarray(unseen.labels)
    once = lambda k: losses.diffusion_loss(model, p, "v", x, labels, k)
    return jnp.mean(jax.lax.map(once, jax.random.split(jax.random.key(99), 8)))


expert = weights.load("digits_classifier")
real = features.load("digits", expert.card)
many_starts = jax.random.normal(jax.random.key(0), (360, 8, 8, 1))
many = draw(main_run.ema, many_starts, jnp.arange(360) % 10)
again = unseen_error(main_run.ema), metrics.frechet(judge(expert.model, many)[1], real)
print(f"error {again[0]:.5f}, Fréchet {again[1]:.3f}")

# %% tags=["claims"]
# @title Checked: the table's order; what three seeds can tell and what they cannot; the row computed again
cost_of = {name: np.array(errors) / base - 1 for name, (errors, _) in RECORDED_PARTS.items()}
assert (cost_of["no positions"] > 0.8).all()
assert np.abs(cost_of["in-context"] - 0.26).max() < 0.03
assert np.abs(cost_of["cross-attention"] - 0.14).max() < 0.03
for name in ("gates start at 1", "adaLN-single", "rotary"):  # worse in each of three seeds
    assert cost_of[name].min() > 0 and cost_of[name].max() < cost_of["cross-attention"].min()
assert abs(np.mean(cost_of["gates start at 1"]) - 0.03) < 0.005
assert abs(np.mean(cost_of["adaLN-single"]) - 0.03) < 0.005
apart = cost_of["gates start at 1"] - cost_of["adaLN-single"]
assert apart.min() < 0 < apart.max()  # not to be told apart
assert cost_of["long skips"].min() > 0 and np.abs(cost_of["normalised q and k"]).max() < 0.006
assert cost_of["long skips"].min() > 0.004 and cost_of["long skips"].max() < 0.03
# Another processor rounds otherwise, and 500 steps carry it on: at most as another seed would,
# so 4 standard deviations of the seeds.
for found, recorded in zip(again, RECORDED_PARTS["adaLN-Zero"], strict=True):
    assert abs(found - recorded[0]) < 4 * np.std(recorded, ddof=1)

# %% [markdown]
# - **Positions** matter most in this table. Without them the error nearly doubles.
# - **adaLN-Zero** leads. Cross-attention has 14 % more error and in-context tokens 26 % more. They need more
#   operations and have fewer parameters (13 % and 34 % fewer). DiT's paper has adaLN-Zero ahead of both as well.
#   These rows change the *whole* design: their blocks have no gates either.
# - **adaLN-single** saves nearly a quarter of our parameters and has 2 to 4 % more error. Gates that start **at 1**
#   cost 3 %: that is what the zero buys here. Three seeds do not tell these two apart.
# - **Rotary** positions are worse here, in each seed. Our digits are centred, so the absolute place says much, and
#   rotary positions say offsets only. That reading we did not test.
# - **Long skips** (section 10) did not help: each seed has more error, by .5 to 3 %. **Normalised queries and
#   keys** (section 11) change the error by less than 1 %, in these 500 steps.

# %% [markdown]
# ## 8 · What attention costs
#
# A product of an $n \times k$ with a $k \times m$ matrix takes $nkm$ multiplications and as many additions: $2nkm$
# operations. For $N$ tokens of width $C$, a block therefore needs
#
# $$\underbrace{24\,N C^2}_{\text{layers}} + \underbrace{4\,N^2 C}_{\text{products of attention}} \tag{4}$$
#
# The famous $N^2$ overtakes the rest at $N = 6C$ tokens, and not before.
#
# **Predict, then run.** DiT-XL/2 has $N = 256$ and $C = 1152$. Which share of its operations is $N^2$? And its paper
# says "118.64 Gflops": do we agree?

# %%
of_paper = {}
for width, depth, head_size, in_paper in ((384, 12, 64, 6.06), (768, 12, 64, 23.01),
                                          (1024, 24, 64, 80.71), (1152, 28, 72, 118.64)):  # fmt: skip
    flops = counting.dit_flops(32, 4, patch=2, width=width, depth=depth, head_size=head_size,
                               num_classes=1000, learned_variance=True)  # fmt: skip
    total = sum(flops.values())
    of_paper[in_paper] = total / 2e9  # in the paper's convention
    print(f"width {width:4}: {total / 1e9:6.2f} billion operations, half of it {total / 2e9:6.2f}, "
          f"paper {in_paper:6.2f};  N² has {flops['scores'] / total:.1%}")  # fmt: skip
by_formula = sum(counting.dit_flops(8, 1, **SHAPE, num_classes=10).values())
one_image = (noisy_digits[:1], some_times[:1], ask[2][:1])
by_tracing = counting.matmul_flops(lambda m, *a: m(*a), main_run.ema, *one_image)
print(f"our small DiT: {by_formula} by the formula, {by_tracing} in the program")

# %% [markdown]
# The paper's "Gflops" are half of ours: it counts a multiplication with its addition as *one*. Many papers do. Ask
# which convention a table uses before you compare two tables.
#
# So $N^2$ adds few *operations* at this size. What hurts is **memory**: each head writes an $N \times N$ matrix of
# weights. A *fused* attention (Dao et al. 2022, FlashAttention) never writes it. It reads the keys in pieces and
# keeps three running sums per query: the largest logit $m$, the sum of $e^{\text{logit}-m}$, and the sum of values
# with these weights. When a piece brings a larger $m$, the old sums shrink by $e^{m_\text{old}-m_\text{new}}$. The
# result is *exact*.


# %%
def fused(q, k, v, piece=64):
    """Softmax attention that reads keys and values in pieces: [B, H, N, d] each."""
    B, H, N, d = q.shape
    cut = lambda a: jnp.moveaxis(a.reshape(B, H, N // piece, piece, d), 2, 0)

    def step(sums, keys_and_values):
        (m, total, mixed), (k, v) = sums, keys_and_values
        logits = jnp.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(d)
        m_new = jnp.maximum(m, logits.max(-1))
        shrink, weight = jnp.exp(m - m_new), jnp.exp(logits - m_new[..., None])
        total = shrink * total + weight.sum(-1)
        mixed = shrink[..., None] * mixed + jnp.einsum("bhqk,bhkd->bhqd", weight, v)
        return (m_new, total, mixed), None

    nothing = jnp.full((B, H, N), -jnp.inf), jnp.zeros((B, H, N)), jnp.zeros_like(q)
    (_, total, mixed), _ = jax.lax.scan(step, nothing, (cut(k), cut(v)))
    return jnp.moveaxis(mixed / total[..., None], 1, 2).reshape(B, N, -1)


def largest_array(function, *shapes):
    """Numbers in the largest array that a program makes, as the compiler is given it."""

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (out.aval.size for out in equation.outvars)
            for inner in equation.params.values():  # the bodies of loops
                inner = getattr(inner, "jaxpr", inner)
                yield from sizes(inner) if hasattr(inner, "eqns") else ()

    return max(sizes(jax.make_jaxpr(function)(*shapes).jaxpr))


# %% tags=["comparison"]
q, k, v = jax.random.normal(jax.random.key(9), (3, 2, 3, 128, 16))
q = 4 * q  # so that the weights differ a lot
np.testing.assert_allclose(fused(q, k, v, piece=32), attention.attention(q, k, v), atol=1e-5)
cost = {}
for N in (256, 512, 1024, 2048):
    shapes = [jax.ShapeDtypeStruct((1, 4, N, 64), jnp.float32)] * 3
    cost[N] = [(counting.matmul_flops(f, *shapes), largest_array(f, *shapes))
               for f in (attention.attention, fused)]  # fmt: skip
    (plain_ops, plain_array), (fused_ops, fused_array) = cost[N]
    print(f"N = {N:4}: operations {plain_ops / 1e9:.2f} and {fused_ops / 1e9:.2f} billion, "
          f"largest array {4 * plain_array / 2**20:5.1f} and {4 * fused_array / 2**20:4.1f} MiB")  # fmt: skip
assert all(plain[0] == fast[0] == 4 * N**2 * 4 * 64 for N, (plain, fast) in cost.items())
assert all(plain[1] == 4 * N**2 and fast[1] == 4 * N * 64 for N, (plain, fast) in cost.items())

# %% tags=["claims"]
# @title Checked: formula and program agree; the paper's numbers are half of ours, within .1 %; N² is 3.6 % of DiT-XL/2
assert by_formula == by_tracing
assert all(abs(ours / theirs - 1) < 1e-3 for theirs, ours in of_paper.items())
assert abs(flops["scores"] / total - 0.036) < 5e-4
small = counting.dit_flops(32, 4, patch=2, width=384, depth=12, head_size=64, num_classes=1000)
assert abs(sum(small.values()) / 2e9 / 6.06 - 1) < 3e-3  # without the variances' outputs
at_6C = counting.dit_flops((96, 96), 1, patch=1, width=1536, depth=1)  # 9216 tokens are 6·1536
assert at_6C["scores"] == at_6C["projections"] + at_6C["dense"]

# %% [markdown]
# The operations are the same to the last one. The largest array grows with $N^2$ in the plain version, and with $N$
# in the fused one. On a GPU fused attention is faster as well, but for this reason: less is written to memory and
# read again, not less computed. (Some compilers recognise the plain formula and fuse it themselves.)

# %% [markdown]
# ## 9 · Does compute decide?
#
# Peebles & Xie (2023, section 5) trained twelve DiTs and found that quality follows the *operations per image*,
# whether they are spent on depth, on width or on smaller patches. The number of parameters said less. Is it so with
# us?
#
# First our digits. Four shapes need nearly the same operations (3.8 to 4.3 million per image) and spend them
# differently. The training is section 1's, and so are the images; three seeds each.
#
# **Predict, then run.** Will the four be equal? If not, which one is best: section 1's, the flat wide one, the one
# with large patches, or the one with a token per pixel?

# %%
RECORDED_SHAPES = {  # patch, width, depth: error, Fréchet distance, three seeds each
    (2, 48, 4): [(0.28316, 0.28093, 0.28404), (8.075, 7.291, 7.779)],
    (4, 96, 4): [(0.27407, 0.27289, 0.27416), (3.149, 2.694, 2.517)],
    (2, 96, 1): [(0.28915, 0.29012, 0.28918), (9.789, 9.649, 9.363)],
    (1, 32, 2): [(0.29909, 0.29719, 0.29952), (10.461, 9.925, 10.418)],
}
sized = {}
for (patch, width, depth), (errors, distances) in RECORDED_SHAPES.items():
    shape = {"patch": patch, "width": width, "depth": depth, "head_size": 16, "num_classes": 10}
    sized[patch, width, depth] = (
        sum(counting.dit_flops(8, 1, **shape).values()) / 1e6,
        sum(counting.dit_parameters(8, 1, **shape).values()),
    )
    million, learned = sized[patch, width, depth]
    print(f"patch {patch}, width {width}, depth {depth}: {million:.2f} million operations, {learned:6} "
          f"parameters; error {np.mean(errors):.4f} ± {np.std(errors, ddof=1):.4f}, Fréchet "
          f"{np.mean(distances):4.1f} ± {np.std(distances, ddof=1):.1f}")  # fmt: skip

# %% [markdown]
# Then MNIST, at 28×28. Ten DiTs saw the same 768,000 images each (`benchmarks/transformers.py`, on a GPU; one
# seed, and one learning rate for all. The script lists two more, of width 128 and patch 2, which were not run.)
# Each then drew 5,000 digits at $w = 1$. We fit $\log(\text{quality})$ by a straight line: in the logarithm of
# the operations, of the parameters, and of both.
#
# **Predict, then run.** Which of the two explains more of the differences?

# %%
# patch, width, depth: billions of operations per image, loss on unseen images, Fréchet distance
RECORDED_MNIST = {
    (7, 64, 2): (0.00361, 0.179899, 58.3354),
    (4, 64, 2): (0.01119, 0.154164, 51.4042),
    (7, 128, 4): (0.02701, 0.125552, 7.4071),
    (4, 128, 2): (0.04192, 0.122432, 14.9935),
    (4, 64, 8): (0.04408, 0.115106, 6.9104),
    (2, 64, 2): (0.05854, 0.138953, 23.5473),
    (4, 128, 4): (0.08331, 0.108773, 4.227),
    (7, 256, 4): (0.10618, 0.108905, 2.5958),
    (2, 64, 4): (0.11684, 0.11488, 6.4918),
    (4, 256, 4): (0.32259, 0.100515, 1.3839),
}

# %%
describe = lambda patch, width, depth: {"patch": patch, "width": width, "depth": depth}
parameters_of = [
    sum(counting.dit_parameters(28, 1, **describe(*key), num_classes=10).values())
    for key in RECORDED_MNIST
]
billions, loss_of, frechet_of = np.array(list(RECORDED_MNIST.values())).T
columns = {"operations": [billions], "parameters": [parameters_of]}
columns["both"] = [billions, parameters_of]


def explained(quality, used):
    """The share of the variance of log quality that a straight line in the logarithms explains."""
    design = np.stack([*map(np.log, used), np.ones(len(quality))], axis=1)
    fit = np.linalg.lstsq(design, np.log(quality), rcond=None)[0]
    return 1 - np.var(np.log(quality) - design @ fit) / np.var(np.log(quality)), fit


shares = {(name, by): explained(quality, used)[0] for by, used in columns.items()
          for name, quality in (("loss", loss_of), ("Fréchet", frechet_of))}  # fmt: skip
for name in ("loss", "Fréchet"):
    print(f"{name:7} explained by", *(f"{by} {shares[name, by]:.0%} " for by in columns))

# %%
fig, axes = plt.subplots(1, 2, figsize=(10.5, 3.8))
across = np.geomspace(billions.min(), billions.max(), 20)
pairs = (loss_of, "loss on unseen images"), (frechet_of, "Fréchet distance")
for ax, (quality, label) in zip(axes, pairs, strict=True):
    slope_of, height = explained(quality, [billions])[1]
    ax.plot(across, np.exp(height) * across**slope_of, color=plots.TRUTH, lw=0.7)
    ax.scatter(billions, quality, s=12 * np.sqrt(np.array(parameters_of) / 1e5), color=plots.DATA)
    for key, x, y in zip(RECORDED_MNIST, billions, quality, strict=True):
        left = key in [(4, 128, 4), (4, 64, 8)]  # where two names would meet
        ax.annotate("{1}×{2}/{0}".format(*key), (x, y), (-6, -9) if left else (6, 4),
                    textcoords="offset points", size=8, ha="right" if left else "left")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="billion operations per image", ylabel=label)
for ax, ticks in zip(axes, ([0.1, 0.12, 0.15, 0.18], [2, 5, 10, 20, 50]), strict=True):
    ax.set_yticks(ticks, ticks)
    ax.minorticks_off()
fig.suptitle(
    "width×depth/patch; a larger dot has more parameters", x=0.02, ha="left", size="medium"
)
plt.show()

# %% tags=["claims"]
# @title Checked: on the digits, at equal operations, large patches with a wide token lead in each seed
millions = np.array([m for m, _ in sized.values()])
assert millions.max() / millions.min() < 1.12
learned_by = {key: learned for key, (_, learned) in sized.items()}
assert 16 < learned_by[4, 96, 4] / learned_by[1, 32, 2] < 18
of_shape = {key: np.array(errors) for key, (errors, _) in RECORDED_SHAPES.items()}
for key in (
    (2, 96, 1),
    (1, 32, 2),
):  # large patches lead, seed by seed, and so does section 1's shape
    assert (of_shape[4, 96, 4] < of_shape[2, 48, 4]).all() and (
        of_shape[2, 48, 4] < of_shape[key]
    ).all()
assert max(RECORDED_SHAPES[4, 96, 4][1]) < min(RECORDED_SHAPES[2, 48, 4][1]) / 2

# %% tags=["claims"]
# @title Checked: on MNIST operations explain the loss better, and neither is enough alone
for key, (found, _, _) in RECORDED_MNIST.items():
    assert (
        abs(sum(counting.dit_flops(28, 1, **describe(*key), num_classes=10).values()) / 1e9 - found)
        < 6e-6
    )
assert shares["loss", "operations"] > 0.8 > 0.7 > shares["loss", "parameters"]
assert min(learned_by.values()) > 4e4 and max(parameters_of) < 5.1e6
same_size = [n for key, n in zip(RECORDED_MNIST, parameters_of, strict=True) if key[1:] == (64, 2)]
assert len(same_size) == 3 and max(same_size) < 1.04 * min(same_size)  # patch size alone
assert all(0.75 < shares["Fréchet", by] < 0.85 for by in ("operations", "parameters"))
assert shares["Fréchet", "both"] > 0.94 and shares["loss", "both"] > 0.9
of_net = RECORDED_MNIST
assert (
    of_net[7, 64, 2][1] > of_net[4, 64, 2][1] > of_net[2, 64, 2][1]
)  # smaller patches, equal parameters
assert of_net[2, 64, 2][0] > 2 * of_net[7, 128, 4][0] and of_net[2, 64, 2][1] > of_net[7, 128, 4][1]
assert abs(of_net[7, 256, 4][0] / of_net[2, 64, 4][0] - 1) < 0.1
assert of_net[7, 256, 4][2] < of_net[2, 64, 4][2] / 2

# %% [markdown]
# Compute matters: with parameters nearly equal, each smaller patch lowers the loss (64×2 at patch 7, 4 and 2). And on
# MNIST the operations explain the loss better than the parameters do.
#
# But it does not decide *alone*. Of two networks with equal operations, the wide one with large patches has less than
# half the Fréchet distance of the narrow one with small patches: 256×4/7 against 64×4/2 on MNIST, 96×4/4 against
# 48×4/2 on the digits. For the Fréchet distance operations and parameters explain about equally much, and both
# together 95 %.
#
# So is the paper wrong? Its networks have 33 to 675 million parameters, and ours .04 to 5 million. Ten networks with
# one seed each are few, and every training stopped early, at equal images. Take the sentence as it was measured:
# among large networks. For small ones, try shapes.

# %% [markdown]
# ## 10 · Long skips
#
# A U-Net hands details from its first half straight to its second. U-ViT (Bao et al. 2023) does the same with
# tokens: block $\ell$ of the second half reads its own input *and* the output of its counterpart in the first half,
#
# $$h \leftarrow W\,[\,h;\ h_{\text{counterpart}}\,] + b \tag{5}$$
#
# and the last block's counterpart is the first block. Its paper found long skips crucial, in a network whose time
# and label are in-context tokens. DiT has none. In section 7's table the row "long skips" adds (5) to adaLN-Zero,
# and nothing else.


# %%
def jolted(model, seed):
    """The model with every weight moved at random, so that no gate and no layer is zero."""
    rng, (graph, params) = np.random.default_rng(seed), nnx.split(model)
    move = lambda a: jnp.asarray(a + 0.1 * rng.normal(size=a.shape), jnp.float32)
    return nnx.merge(graph, jax.tree.map(move, params))


def unstacked(blocks, i):
    graph, stacked = nnx.split(blocks)
    return nnx.merge(graph, jax.tree.map(lambda a: a[i], stacked))


def with_long_skips(model, x, t, labels):
    c = model.embed(t, labels)
    h_0 = model.patchify(patchify(x, 2)) + sin_cos(4, 4, 48)
    h_1, _ = block_by_hand(unstacked(model.blocks, 0), h_0, c)
    h_2, _ = block_by_hand(unstacked(model.blocks, 1), h_1, c)
    third, fourth = (unstacked(model.second_half, i) for i in (0, 1))
    h_3, _ = block_by_hand(third, third.skip(jnp.concatenate([h_2, h_2], axis=-1)), c)
    h_4, _ = block_by_hand(fourth, fourth.skip(jnp.concatenate([h_3, h_1], axis=-1)), c)
    shift, scale = jnp.split(model.modulation(jax.nn.silu(c))[:, None], 2, axis=-1)
    return unpatchify(model.final(layer_norm(h_4) * (1 + scale) + shift), 2, 8, 8)


# %% tags=["comparison"]
skipping = jolted(new_dit(2, long_skips=True), 6)
# Four blocks of float32, with outputs of size 1.
np.testing.assert_allclose(jax.jit(with_long_skips)(skipping, *ask), skipping(*ask), atol=1e-4)

# %% [markdown]
# With four blocks, the third one's counterpart is its neighbour, so only the fourth gets anything that it could not
# get before. In our table they brought nothing: no seed is better with them. That does
# not contradict the paper. Its networks are 13 to 29 blocks deep, and have neither gates nor adaptive norms. What is
# crucial in one design can be useless in another, so an ablation tells about *its* network.

# %% [markdown]
# ## 11 · Two streams: MMDiT
#
# Words and patches are different things. Why should the same matrices work on both? In Stable Diffusion 3's **MMDiT**
# (Esser et al. 2024) image and text are two *streams*. Each has weights of its own for norms, projections and dense
# network. They meet in one place: queries, keys and values of both are put in one list, and the attention is over
# all of them. This is **joint attention**. A patch can read words, and a word can read patches.
#
# Two exact statements follow, and the cell below checks them:
#
# 1. If both streams had *equal* weights, a joint block would be a plain DiT block on the concatenated tokens.
# 2. Words that only fill up a short caption must not count: their logits are set to $-\infty$. Then the length to
#    which captions are filled up changes nothing.

# %% tags=["comparison"]
plain_block = jolted(dit.Block(48, 3, qk_norm=True, rngs=nnx.Rngs(7)), 7)
joint = mmdit.JointBlock(48, 3, qk_norm=True, dtype=jnp.float32, rngs=nnx.Rngs(8))
joint.image = joint.context = plain_block
of_patches, of_words = jnp.split(jax.random.normal(jax.random.key(10), (2, 21, 48)), [16], axis=1)
both_streams = joint((of_patches, of_words), told, jnp.ones((2, 21), bool))
one_stream = plain_block(jnp.concatenate([of_patches, of_words], axis=1), told)
np.testing.assert_allclose(jnp.concatenate(both_streams, axis=1), one_stream, atol=1e-5)

two_streams = mmdit.MMDiT(8, 1, width=48, depth=2, head_size=16, num_classes=9, rngs=nnx.Rngs(0))
captioned = jolted(two_streams, 9)
short = jnp.array([[4, 0, 9], [7, 9, 9]])  # captions of two words and of one; 9 fills up
longer = jnp.pad(short, ((0, 0), (0, 4)), constant_values=9)
otherwise = short.at[0, 1].set(3)
answer = [captioned(ask[0][:2], ask[1][:2], words) for words in (short, longer, otherwise)]
np.testing.assert_allclose(answer[0], answer[1], atol=1e-5)
print(f"another word changes the output by {rms(answer[2][0] - answer[0][0]):.2f}; "
      f"a longer filling by {rms(answer[1] - answer[0]):.0e}")  # fmt: skip

# %% [markdown]
# **QK normalisation.** Nothing bounds $q^\top k$. In long trainings of large transformers the logits can grow until
# each token looks at one other token alone, and the gradients vanish (Dehghani et al. 2023). The cure: bring each
# query and key to root mean square 1 before the product. With head size $d$, both then have length $\sqrt d$, so
# (before learned scales) a logit is at most
#
# $$\frac{|q^\top k|}{\sqrt d} \le \sqrt d \tag{6}$$
#
# **Predict, then run.** We multiply the weights of queries and keys by a factor, as a long training might. From how
# many of 16 patches does a patch take?

# %%
factors, taken = (1, 4, 16, 64), {}
for qk_norm in (False, True):
    w = dit.Block(48, 3, qk_norm=qk_norm, rngs=nnx.Rngs(7))
    six_zeros = w.six(told)
    first_kernel, taken[qk_norm] = np.asarray(w.qkv.kernel[...]), []
    for factor in factors:
        scaled = first_kernel.copy()
        scaled[:, :96] *= factor  # queries and keys; values stay
        w.qkv.kernel[...] = jnp.asarray(scaled)
        q_of, k_of, _ = w.qkv_of(tokens_in, six_zeros, None)
        logits = np.einsum("bhqd,bhkd->bhqk", q_of, k_of) / np.sqrt(16)
        seen_by = np.exp(logits - logits.max(-1, keepdims=True))
        seen_by /= seen_by.sum(-1, keepdims=True)
        number = np.exp(-(seen_by * np.log(seen_by + 1e-30)).sum(-1)).mean()
        taken[qk_norm].append((number, np.abs(logits).max()))
for qk_norm, rows in taken.items():
    said = [f"×{f}: {n:4.1f} (logit {top:.0f})" for f, (n, top) in zip(factors, rows, strict=True)]
    print("normalised" if qk_norm else "plain     ", "  ".join(said))

# %% tags=["claims"]
# @title Checked: plain, the attention collapses to one patch; normalised, nothing changes, and (6) holds
assert taken[False][0][0] > 10 and taken[False][-1][0] < 1.2
np.testing.assert_allclose(taken[True], taken[True][:1] * 4, rtol=1e-3)  # epsilon 1e-6 beside 1
assert max(top for _, top in taken[True]) <= 4 + 1e-4  # the square root of 16
assert rms(answer[2][0] - answer[0][0]) > 0.01 > rms(answer[1] - answer[0])

# %% [markdown]
# Plain, the attention collapses: each patch takes from one other patch alone. Normalised, the factor drops out
# exactly, and no logit exceeds $\sqrt{16} = 4$.
#
# ## 12 · What leaves the last layer: noise or image?
#
# A token of width $C$ is the only way from a patch to its prediction. Say a patch has $D$ numbers, but the *data*
# lie in a plane of $d < D$ dimensions. Pixels are like that: neighbours agree. Noise is not; it fills all $D$. Li &
# He (2025) draw the consequence: if $C < D$, a network can still say $\hat x_0$, but not $\hat\varepsilon$.
#
# For Gaussian data all of this is exact. With covariance $\Sigma$ of $x_0$, the best guesses are linear,
#
# $$\hat x_0 = \alpha\Sigma\,(\alpha^2\Sigma + \sigma^2 I)^{-1} x_t, \qquad
# \hat\varepsilon = \sigma\,(\alpha^2\Sigma + \sigma^2 I)^{-1} x_t \tag{7}$$
#
# The first matrix has the rank of $\Sigma$, which is $d$. The second one is invertible: rank $D$. A layer of width
# $h$ allows rank $h$ only. The best matrix of rank $h$ is known too (reduced-rank regression), so we can compute the
# least error that *any* network with such a linear bottleneck can reach.
#
# **Predict, then run.** $d = 4$, $D = 24$. At which $h$ does each kind reach the best possible error of $x_0$?


# %%
def least_errors(cov, kind, alpha, sigma):
    """For ranks 1 … D: the least mean square error of x0, of guesses of this rank; ranks of M."""
    D = len(cov)
    total = alpha**2 * cov + sigma**2 * np.eye(D)
    a, b = {"x0": (1, 0), "eps": (0, 1), "v": (-sigma, alpha)}[kind]
    cross = a * alpha * cov + b * sigma * np.eye(D)  # E[y x_t'] of the target y = a·x0 + b·eps
    values, vectors = np.linalg.eigh(total)
    root = vectors * np.sqrt(values) @ vectors.T
    best = np.linalg.solve(total, cross).T  # the best guess is best @ x_t
    s = np.linalg.svd(best @ root, compute_uv=False)
    of_target = np.trace(a**2 * cov + b**2 * np.eye(D))
    det = a * sigma - b * alpha  # an error of y is an error of x0, times det/sigma
    left = of_target - np.cumsum(s**2)
    return left * (sigma / det) ** 2, int((s > 1e-9 * s[0]).sum())


plane_rng = np.random.default_rng(10)
directions = np.linalg.qr(plane_rng.normal(size=(24, 4)))[0] * np.array([1.5, 1.2, 0.9, 0.7])
SPREADS = {"a 4-plane of 24 dimensions": directions @ directions.T,
           "digits, 64 numbers": np.cov(digits.x.reshape(-1, 64).T)}  # fmt: skip
level = float(np.sqrt(0.5))
fits = {name: {kind: least_errors(cov, kind, level, level) for kind in ("x0", "v", "eps")}
        for name, cov in SPREADS.items()}  # fmt: skip

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4))
for ax, (name, by_kind) in zip(axes, fits.items(), strict=True):
    best_possible = by_kind["x0"][0][-1]
    series = {rf"${latex}$": error / best_possible for latex, (error, _) in
              zip((r"\hat x_0", r"\hat v", r"\hat\varepsilon"), by_kind.values(), strict=True)}  # fmt: skip
    plots.curves(np.arange(1, len(error := by_kind["x0"][0]) + 1), series, ax=ax, log="y",
                 xlabel="width $h$ of the bottleneck", ylabel="", label_at=0.4)  # fmt: skip
    ax.set_title(name)
    ax.set_yticks([1, 2, 4, 8], [1, 2, 4, 8])
    ax.minorticks_off()
axes[0].set_ylabel("error of $x_0$ / best possible")
plt.show()
for name, by_kind in fits.items():
    print(name, {kind: f"rank {rank}" for kind, (_, rank) in by_kind.items()})

# %% tags=["claims"]
# @title Checked: the best x̂ has rank d, the best ε̂ and v̂ rank D; x̂ is as good as possible from h = d on
flat = fits["a 4-plane of 24 dimensions"]
assert [flat[kind][1] for kind in ("x0", "v", "eps")] == [4, 24, 24]
optimum = flat["x0"][0][-1]
np.testing.assert_allclose([flat[kind][0][-1] for kind in ("v", "eps")], optimum, rtol=1e-9)
np.testing.assert_allclose(flat["x0"][0][3:], optimum, rtol=1e-9)
for kind in ("v", "eps"):  # above the optimum at every h < D, and far above it at h = d
    assert (flat[kind][0][:-1] > (1 + 1e-6) * optimum).all() and flat[kind][0][3] > 2 * optimum
posterior = np.linalg.eigvalsh(SPREADS["a 4-plane of 24 dimensions"])[-4:]
np.testing.assert_allclose(optimum, np.sum(posterior * 0.5 / (0.5 * posterior + 0.5)), rtol=1e-9)
of_digits = fits["digits, 64 numbers"]
at_16 = {kind: error[15] / error[-1] for kind, (error, _) in of_digits.items()}
assert at_16["x0"] < 1.1 and at_16["v"] > 1.5 and at_16["eps"] > 4

# %% [markdown]
# The right panel is for Gaussian data with the *covariance* of the digits. They have no sharp $d$, but the
# picture is the same: with $h = 16$ of 64, $\hat x_0$ is within 10 % of the best possible error, and
# $\hat\varepsilon$ has more than four times as much. (Real digits are not Gaussian, and this is one noise level,
# $\alpha = \sigma$. A skip around the network, as in chapter 12's preconditioning, would help $\hat\varepsilon$:
# it hands the noise on.)
#
# Is it so for trained networks? The benchmark trained DiTs that see the whole digit as *one* patch of 64 numbers, 16
# or 64 channels wide. They differ only in what the last layer predicts: all have the *same* loss, the error of $x_0$
# weighted by $\min(\text{SNR}, 5)$, and the same images and noise.

# %%
RECORDED_TARGETS = {  # predicted, width: error, Fréchet distance, three seeds each
    ("x0", 16): [(0.16862, 0.16989, 0.16631), (4.044, 4.333, 4.516)],
    ("v", 16): [(0.20277, 0.20379, 0.20406), (31.775, 31.940, 31.309)],
    ("eps", 16): [(0.64439, 0.64840, 0.64939), (42.504, 42.661, 41.949)],
    ("x0", 64): [(0.09280, 0.09166, 0.09242), (1.845, 1.405, 1.589)],
    ("v", 64): [(0.10260, 0.10142, 0.10185), (8.205, 6.976, 7.782)],
    ("eps", 64): [(0.11219, 0.11208, 0.11291), (51.351, 60.724, 47.017)],
}
for (kind, width), (errors, distances) in RECORDED_TARGETS.items():
    print(f"width {width}, predicts {kind:3}: error {np.mean(errors):.3f} ± {np.std(errors, ddof=1):.3f}"
          f"   Fréchet {np.mean(distances):4.1f} ± {np.std(distances, ddof=1):.1f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: at equal loss and images x̂ has the least error; the narrow token costs v̂ and ε̂ more, seed by seed
of_kind = {key: np.array(errors) for key, (errors, _) in RECORDED_TARGETS.items()}
relative_to_x0 = {key: value / of_kind["x0", key[1]] for key, value in of_kind.items()}
for kind, narrow_least in (("v", 1.15), ("eps", 3)):
    assert relative_to_x0[kind, 64].min() > 1.05  # behind even where the width is D
    assert relative_to_x0[kind, 16].min() > max(narrow_least, relative_to_x0[kind, 64].max())
narrow = {kind: np.array(RECORDED_TARGETS[kind, 16][1]) for kind in ("x0", "v", "eps")}
assert narrow["x0"].max() < 5 and min(narrow["v"].min(), narrow["eps"].min()) > 30
assert max(RECORDED_TARGETS["x0", 64][1]) < min(min(d) for _, d in RECORDED_PARTS.values()) / 2
assert abs(p.sigma(0.99) / p.alpha(0.99) - 64) < 1
flops_of_token = counting.dit_flops(8, 1, patch=8, width=64, depth=2, head_size=16, num_classes=10)
assert 10 * sum(flops_of_token.values()) < by_formula
assert abs(np.mean(relative_to_x0["v", 64]) - 1.10) < 0.01 and relative_to_x0["eps", 16].min() > 3.8
assert np.mean(RECORDED_TARGETS["v", 64][1]) > 4 * np.mean(RECORDED_TARGETS["x0", 64][1])

# %% [markdown]
# With 16 channels, $\hat v$ has a fifth more error than $\hat x_0$, and the samples are lost: a part of the noise
# cannot leave the network, and every step leaves it in. $\hat\varepsilon$ is worse still. With 64 channels the
# gaps are smaller, but they do not close: width $D$ makes the answer possible, not easy. (The samples of
# $\hat\varepsilon$ fail at both widths. They begin at $t = 0.99$, where its error becomes 64 times as large in
# $x_0$: chapter 02's determinant.)
#
# And see the wide $\hat x_0$: its distance is less than half of the best in section 7's table, with a tenth of the
# operations. Those networks predict $v$, have another loss, and draw from $t = 1$, so more than one thing differs.
# By the Fréchet distance the target matters as much as positions do: at width 64 $\hat v$ has over four times the
# distance of $\hat x_0$, and a DiT without positions four times that of section 7's. By the error, $\hat v$ costs
# 10 % there, $\hat\varepsilon$ at width 16 almost 300 %, and no positions 88 % (of another loss). Ask your own data
# before you believe either table.

# %% [markdown]
# ## 13 · The field, counted
#
# You can now read the tables of papers. For a transformer, nearly all parameters are in its blocks, and a block has
# a small whole number times $C^2$ of them: 4 for an attention, 8 for a dense network, 6 for adaLN-Zero. Let us count
# six published networks with pencil and paper.
#
# **Predict, then run.** How near will "depth × number × $C^2$" come?

# %%
PUBLISHED = {  # depth and C² per block; width; stated millions; size; steps (paper or card)
    "DiT-XL/2": ([(28, 4 + 8 + 6)], 1152, 675, "256², latents", "250, DDPM"),
    "U-ViT-H/2": ([(29, 4 + 8), (14, 2)], 1152, 501, "256², latents", "50, DPM-Solver"),
    "PixArt-α": ([(28, 4 + 4 + 8)], 1152, 600, "1024², latents", "20, DPM-Solver"),
    "Stable Diffusion 3": ([(38, 2 * (4 + 8 + 6))], 64 * 38, 8000, "1024², latents", "50, Euler"),
    "FLUX.1 [dev]": ([(19, 36), (38, 4 + 8 + 3)], 3072, 12000, "1024², latents", "50, Euler"),
    "JiT-B/16": ([(12, 4 + 8 + 6)], 768, 131, "256², pixels", "50, Heun"),
}
by_pencil = {}
for name, (groups, width, stated, size, steps) in PUBLISHED.items():
    by_pencil[name] = sum(depth * number for depth, number in groups) * width**2 / 1e6
    print(
        f"{name:19} counted {by_pencil[name]:6.0f}, stated {stated:6} million   {size:15} {steps}"
    )

# %% tags=["claims"]
# @title Checked: six published sizes, counted from width and depth alone, within 3 %
for name, (_, _, stated, _, _) in PUBLISHED.items():
    assert abs(by_pencil[name] / stated - 1) < 0.03

# %% [markdown]
# Within three per cent, without looking at a single weight. (Text encoders and the autoencoders of latents are not
# counted.) The sources:
#
# - DiT-XL/2: Peebles & Xie 2023, table 1 and section 4.
# - U-ViT-H/2: Bao et al. 2023. Its 14 long skips have $2C^2$ each, equation (5).
# - PixArt-α: Chen et al. 2024, with cross-attention and adaLN-single.
# - Stable Diffusion 3, the largest: Esser et al. 2024. Its width is 64 times its depth.
# - FLUX.1 [dev]: its published code and model card (Black Forest Labs 2024). After 19 joint blocks come 38 blocks
#   with *one* set of weights for both streams, and a single gate. It has learned its guidance (chapter 18), so a
#   step costs one evaluation.
# - JiT-B/16: Li & He 2025. It predicts $x_0$ from patches of $16 \cdot 16 \cdot 3 = 768$ numbers.
#
# PixArt-α's recipe is also famous for its *stages*: first images and labels, then images and captions, then
# beautiful images at high resolution.

# %% [markdown]
# ## 14 · Explore: gates that open
#
# Move the slider over the training steps. The bars are the gates of section 1, and the digits come from the network
# as it was at that step, always from the same noise.
#
# **Predict, then run.** At which step do you recognise the first digit, and how far are the gates open then?


# %%
def gate_figure(step):
    fig, (bars, picture) = plt.subplots(1, 2, figsize=(9, 2.6), width_ratios=(1, 1.6))
    values = opened[list(kept_at).index(step)]
    for which, (name, color) in enumerate((("attention", plots.DATA), ("dense", plots.PREDICTION))):
        bars.bar(np.arange(4) + 0.38 * which, values[:, which], 0.36, color=color)
        bars.text(0.1 + 1.6 * which, 0.74, name, color=color)
    bars.set(ylim=(0, 0.8), xticks=np.arange(4) + 0.19, xlabel="block", ylabel="gate",
             xticklabels=range(1, 5))  # fmt: skip
    picture.imshow(plots.tile(ten_digits[step], 5))
    picture.set(xticks=[], yticks=[], title=f"step {step}")
    return fig


frames = widgets.render(gate_figure, list(kept_at))
widgets.explorer(frames, [f"step {step}" for step in kept_at], slider="step", start=2)

# %% [markdown]
# Without a kernel: the picture at step 50.

# %%
gate_figure(50)
plt.show()

# %% [markdown]
# ## 15 · Break it on purpose: two zeros
#
# In a U-Net it is good style to start the *last convolution* of a residual block at zero (chapter 04). In a DiT it is
# good style to start the *gates* at zero. Somebody is careful, and does both.
#
# Now the block computes $g\,W f(h)$ with $g = 0$ and $W = 0$. The derivative by $g$ has the factor $W$, and the
# derivative by $W$ has the factor $g$. Both are zero, in every step, forever. Nothing complains.
#
# **Predict, then run.** What will the loss do?

# %%
twice_zero = new_dit(0)
for layer in (twice_zero.blocks.out, twice_zero.blocks.mlp_out):
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
dead_run = train(twice_zero, stop=200)
window = slice(150, 200)
for name, run in {"right": main_run, "two zeros": dead_run}.items():
    print(f"{name:9} loss at the start {run.history.loss[0]:.2f}, in steps 151 to 200: "
          f"{np.mean(run.history.loss[window]):.3f}")  # fmt: skip


@jax.jit
def heard(model):
    """How much each patch's output changes with each patch's input: [16, 16]."""
    one = lambda x: patchify(model(x[None], jnp.full(1, 0.5), jnp.array([3])), 2)[0]
    slopes = patchify(jax.jacobian(one)(ask[0][0]).reshape(16 * 4, 8, 8, 1), 2)
    return jnp.sqrt((slopes.reshape(16, 4, 16, 4) ** 2).mean((1, 3)))


after_200 = {"right": snapshots[200], "two zeros": dead_run.ema}
sensitivity = {name: np.asarray(heard(model)) for name, model in after_200.items()}
dead_digits = draw(dead_run.ema, TEN, jnp.arange(10))

# %%
fig, axes = plt.subplots(1, 2, figsize=(6, 3))
for ax, (name, heard_by) in zip(axes, sensitivity.items(), strict=True):
    ax.imshow(heard_by, cmap="Greys", vmax=0.1)
    ax.set(title=name, xlabel="patch of the input", ylabel="patch of the output")
plt.show()
plots.image_grid([ten_digits[200], dead_digits], ["right", "two zeros"], "After 200 steps")
plt.show()

# %% tags=["claims"]
# @title Checked: with two zeros the gates stay shut and no patch hears another, yet the loss falls by over a third
assert (np.asarray(gates(dead_run.ema)) == 0).all()
off_diagonal = ~np.eye(16, dtype=bool)
assert (sensitivity["two zeros"][off_diagonal] == 0).all() and (sensitivity["right"] > 0).all()
late = {name: np.mean(run.history.loss[window]) for name, run in
        {"right": main_run, "two zeros": dead_run}.items()}  # fmt: skip
assert late["two zeros"] < 2 / 3 * dead_run.history.loss[0]
assert late["two zeros"] > 1.2 * late["right"]  # means of 50 batches; the same images and noise

# %% [markdown]
# The loss falls by over a third. The patches alone, through two linear layers and a norm that hears time and label,
# can do so much. The samples look like digits torn to pieces: every patch is drawn alone.
#
# **The lesson.** One zero in every branch, never two. (LoRA's two matrices follow the same rule. The zero in the
# network's last layer does no harm: the tokens reach it past the gates, so it wakes at once.) And a simple test finds
# the mistake: after three steps *every* parameter must have a gradient (in a batch that holds every label).

# %% [markdown]
# ## 16 · What to inspect
#
# 1. **The gates**, block by block, over training. A block whose gate stays shut does nothing.
# 2. **Which parameters have a gradient after three steps.** All of them should.
# 3. **Shuffled patches**: the output must differ from the shuffled output.
# 4. **From how many tokens a token takes**, and the largest logit. If the number falls to 1 and the logit grows
#    without end, normalise queries and keys.
# 5. **The count of parameters** against your own count, before you train.
# 6. **Operations per image** against quality, at equal images, when you compare two networks. Say whether a
#    multiplication with its addition is one or two.
# 7. **The rank of the target** against the width, when patches are large.

# %% [markdown]
# ## Recap
#
# 1. A DiT cuts an image into patches, mixes them with attention, and is told time and label through its norms.
#    Places must be told as well.
# 2. Gates at zero make every block the identity at the start. The network wakes in three steps, and its gates open
#    together. A branch with two zeros is dead.
# 3. A block has $4 + 8 + 6$ times $C^2$ parameters, and $24NC^2 + 4N^2C$ operations. $N^2$ hurts in memory first, and a
#    fused attention cures that exactly.
# 4. Of section 7's changes, positions and the way of conditioning matter most; adaLN-Zero leads. Long skips and
#    normalised queries bought nothing there. On MNIST more operations help, but at equal operations the shape matters.
# 5. If a patch has more numbers than its token, let the network say $\hat x_0$.
#
# **Exercises:** [16 · exercises](../exercises/16_transformers.ipynb).
#
# **New words:** patch, token, adaptive layer norm, adaLN-Zero, gate, adaLN-single, in-context conditioning,
# sin-cos and rotary positions, long skip, joint attention, QK normalisation, fused attention.

# %% [markdown]
# ## Further reading
#
# - W. Peebles, S. Xie. *Scalable Diffusion Models with Transformers.* ICCV 2023.
#   [arXiv:2212.09748](https://arxiv.org/abs/2212.09748). DiT; read section 3.2 and figure 8.
# - F. Bao et al. *All are Worth Words: A ViT Backbone for Diffusion Models.* CVPR 2023.
#   [arXiv:2209.12152](https://arxiv.org/abs/2209.12152). U-ViT.
# - J. Chen et al. *PixArt-α: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis.* ICLR
#   2024. [arXiv:2310.00426](https://arxiv.org/abs/2310.00426).
# - P. Esser et al. *Scaling Rectified Flow Transformers for High-Resolution Image Synthesis.* ICML 2024.
#   [arXiv:2403.03206](https://arxiv.org/abs/2403.03206). MMDiT.
# - T. Li, K. He. *Back to Basics: Let Denoising Generative Models Denoise.* 2025.
#   [arXiv:2511.13720](https://arxiv.org/abs/2511.13720).
# - J. Su et al. *RoFormer: Enhanced Transformer with Rotary Position Embedding.* 2021.
#   [arXiv:2104.09864](https://arxiv.org/abs/2104.09864).
# - T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré. *FlashAttention: Fast and Memory-Efficient Exact Attention with
#   IO-Awareness.* NeurIPS 2022. [arXiv:2205.14135](https://arxiv.org/abs/2205.14135).
# - M. Dehghani et al. *Scaling Vision Transformers to 22 Billion Parameters.* ICML 2023.
#   [arXiv:2302.05442](https://arxiv.org/abs/2302.05442). Normalised queries and keys.
