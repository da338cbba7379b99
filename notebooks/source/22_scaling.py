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
# # 22 · Scaling out
#
# **The question.** One device is too small, or too slow. How do several devices train one model, what does each of
# them hold and send, and how do we know that it is still the same training?
#
# At the end of this chapter you will be able to
#
# - describe devices as a mesh, and say what a `PartitionSpec` puts where;
# - write data parallelism, FSDP and tensor parallelism of a DiT block by hand, and show that the gradient is the same;
# - count a device's bytes, and the bytes it sends, and find both in the compiled program;
# - trade memory for time, and choose between float32, bfloat16 and float16;
# - resume a run on another number of devices;
# - find the silent bugs: equal noise on all devices, equal data on all hosts, a mean of unequal means.
#
# **You need** chapters 04 and 16. **Time**: about 75 minutes of reading. The cells run for about a minute on two CPU
# cores.
#
# The first cell **simulates eight devices** on this machine's CPU. (On Colab, choose a runtime without an
# accelerator.) They share its cores, so eight of them are not faster than one. We measure with them whether the
# numbers are right, and how many bytes move. We do not measure speed.

# %%
import importlib.util

if importlib.util.find_spec("diffusion_course") is None:  # on Colab; keeps Colab's own jax
    print("installing diffusion-course")
    # %pip install --quiet --no-deps diffusion-course
from diffusion_course import setup

course = setup("cpu", devices=8)

# %%
import math
import re
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

# %%
from diffusion_course import data, losses, process
from diffusion_course.models import counting, dit
from diffusion_course.notebook import plots, widgets
from diffusion_course.training import checkpoints, loop, tensor_parallel, update
from diffusion_course.training import mesh as meshes

plots.use_style()
DEVICES = jax.devices("cpu")[:8]

# %% [markdown]
# ## 1 · One picture
#
# A layer computes $h = xW$: a batch $x$ of 64 rows, and a matrix $W$. There are eight devices. The picture shows four
# ways to share the work. In each panel the lines are the cuts, and the orange part is what **device 3** holds.
#
# **Predict, then run.** In which of the four ways does no device hold all of $W$? In which does each device see the
# whole batch?


# %%
def grid_of(**axes):
    """A mesh of devices with named axes: grid_of(data=2, model=4)."""
    auto = (AxisType.Auto,) * len(axes)
    devices = DEVICES[: math.prod(axes.values())]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=auto, devices=devices)


WAYS = {  # name: the mesh, how x lies on it, how W lies on it
    "data parallel": (grid_of(data=8), P("data"), P()),
    "FSDP": (grid_of(data=8), P("data"), P("data")),
    "tensor parallel": (grid_of(model=8), P(), P(None, "model")),
    "both: 2 × 4": (grid_of(data=2, model=4), P("data"), P(None, "model")),
}
SIZES = {"x": (64, 32), "W": (32, 64)}
fig, axes = plt.subplots(2, 4, figsize=(9, 4.6), height_ratios=(2, 1))
for column, (name, (mesh, *specs)) in zip(axes.T, WAYS.items(), strict=True):
    for ax, (what, (height, width)), spec in zip(column, SIZES.items(), specs, strict=True):
        pieces = NamedSharding(mesh, spec).devices_indices_map((height, width))
        for device, (rows, columns) in pieces.items():
            top, left = rows.start or 0, columns.start or 0
            size = ((columns.stop or width) - left, (rows.stop or height) - top)
            color = plots.PREDICTION if device == DEVICES[3] else "none"
            ax.add_patch(plt.Rectangle((left, top), *size, fc=color, ec=plots.TRUTH, lw=0.8))
        ax.set(xlim=(-1, width + 1), ylim=(height + 1, -1), aspect="equal", xticks=[], yticks=[])
        ax.set_ylabel(what, rotation=0)
        ax.spines[:].set_visible(False)
    column[0].set_title(name)
plt.show()

# %% tags=["claims"]
# @title Checked: what share of x and of W device 3 holds
own_share = {
    name: [math.prod(NamedSharding(mesh, spec).shard_shape(SIZES[k])) / 2048
           for k, spec in zip("xW", specs, strict=True)]
    for name, (mesh, *specs) in WAYS.items()
}  # fmt: skip
assert own_share == {"data parallel": [1 / 8, 1], "FSDP": [1 / 8, 1 / 8],
                     "tensor parallel": [1, 1 / 8], "both: 2 × 4": [1 / 2, 1 / 4]}  # fmt: skip

# %% [markdown]
# Only in data parallelism does a device hold all of $W$. Only in tensor parallelism does each see the whole batch.
# The other parts of the picture follow from these two: what must be sent.
#
# ## 2 · A mesh and a PartitionSpec
#
# Two things say where an array lies. A **mesh** arranges the devices in a grid and names its axes, such as "data" and
# "model". A **PartitionSpec** has one entry for each axis of the array: the mesh axis along which it is cut, or
# `None`. `P(None, "model")` cuts columns among the devices of "model". What is not cut is copied.
#
# An array on a mesh keeps its shape. The same code runs on it, and the compiler inserts what must be sent. Why may the
# batch be cut at all? The loss is a mean over examples, so for $n$ **equal** parts
#
# $$\nabla_W \frac1B\sum_{i=1}^{B}\ell_i = \frac1n\sum_{k=1}^{n}\Big(\nabla_W\frac{n}{B}\sum_{i\in\text{part }k}\ell_i\Big)
# \tag{1}$$
#
# **Predict, then run.** We compute one gradient in the four ways. In which of them must the devices send anything?


# %%
@jax.jit
def slope(W, x):
    """The gradient of a mean square."""
    return jax.grad(lambda W: jnp.mean(jnp.tanh(x @ W) ** 2))(W)


rng = np.random.default_rng(22)
x_rows, matrix = (np.float32(0.3 * rng.normal(size=SIZES[k])) for k in "xW")
alone = np.asarray(slope(matrix, x_rows))
gap, talk = {}, {}
for name, (mesh, *specs) in WAYS.items():
    x_there, W_there = (
        jax.device_put(a, NamedSharding(mesh, spec))
        for a, spec in zip((x_rows, matrix), specs, strict=True)
    )
    compiled = slope.lower(W_there, x_there).compile()
    gap[name] = np.abs(np.asarray(compiled(W_there, x_there)) - alone).max() / np.abs(alone).max()
    talk[name] = meshes.collectives(compiled)
    print(f"{name:16} difference {gap[name]:.0e}  {talk[name]}")

# %% tags=["claims"]
# @title Checked: the same gradient in every way; a copied batch needs no talk, cut weights are gathered
assert max(gap.values()) < 1e-5  # sums in another order
assert talk["tensor parallel"] == {} and talk["data parallel"] == {"all-reduce": 1}
assert "all-gather" in talk["FSDP"] and "all-reduce" in talk["both: 2 × 4"]

# %% [markdown]
# Nobody wrote a line of communication. Three names are worth knowing:
#
# - **all-reduce**: each device has a summand, and afterwards all have the sum;
# - **all-gather**: each has a piece, and afterwards all have the whole;
# - **reduce-scatter**: each has a summand of everything, and afterwards each has one piece of the sum.
#
# Tensor parallelism of *one* layer needs none of them: each device has the whole batch, and computes the columns of
# the gradient that it holds. With two layers this changes, as we will see.
#
# (This compiler, for CPUs, sums FSDP's gradient by an all-reduce and then throws seven eighths of it away, if it finds
# no better way. What a compiler chooses must be read, not assumed.)

# %% [markdown]
# ## 3 · A block, shared by hand
#
# `shard_map` shows what the compiler hides: its function is what *one* device does, with its own pieces. Here is a DiT
# block of chapter 16, with two places for communication:
#
# - `gather` makes whole weights of this device's pieces (FSDP);
# - `total` adds up what the devices hold parts of (tensor parallelism).
#
# Tensor parallelism cuts the block between its layers (Shoeybi et al. 2019, section 3). Each device has some of the
# heads and some of the hidden channels:
#
# $$x + \text{gelu}(xU)\,V = x + \sum_{k=1}^{n} \text{gelu}(xU_k)\,V_k,\qquad U = [U_1 \dots U_n],\quad
# V = \begin{bmatrix}V_1\\ \vdots\\ V_n\end{bmatrix} \tag{2}$$
#
# Columns of $U$ and rows of $V$ belong together, and gelu works on each channel alone. So the two layers need *one*
# sum, at the end. The attention is alike: heads are independent until the layer behind them adds them up.


# %%
def normal(x):
    """Tokens with mean 0 and variance 1 over their channels."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def block(w, x, six, total=lambda part: part):
    """A DiT block: tokens x [B, N, C], modulation six [B, 6, C]; `total` adds the devices' parts."""
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.moveaxis(six[:, :, None], 1, 0)
    told = normal(x) * (1 + scale_a) + shift_a
    q, k, v = jnp.einsum("bnc,cphd->pbhnd", told, w["qkv"])  # this device's heads h
    mixed = jax.nn.softmax(q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5) @ v
    x = x + gate_a * total(jnp.einsum("bhnd,hdc->bnc", mixed, w["out"]))
    h = jax.nn.gelu((normal(x) * (1 + scale_m) + shift_m) @ w["up"])  # its hidden channels
    return x + gate_m * total(h @ w["down"])  # equation (2)


def loss(W, x, six, y, total=lambda part: part, gather=lambda w: w, again=False):
    """The mean square behind a loop over the blocks, whose weights W are stacked."""

    def one(x, w):
        return block(gather(w), x, six, total), None

    body = jax.checkpoint(one) if again else one
    return jnp.mean((jax.lax.scan(body, x, W)[0] - y) ** 2)


# %%
LAYERS, B, N, C, HEADS = 2, 32, 16, 64, 8
SHAPES = {"qkv": (C, 3, HEADS, C // HEADS), "out": (HEADS, C // HEADS, C),
          "up": (C, 4 * C), "down": (4 * C, C)}  # fmt: skip
W = {k: np.float32(rng.normal(size=(LAYERS, *shape)) / 8) for k, shape in SHAPES.items()}
shapes_of_batch = ((B, N, C), (B, 6, C), (B, N, C))  # tokens, modulation, what they should become
batch = tuple(np.float32(rng.normal(size=shape)) for shape in shapes_of_batch)
by_head = {"qkv": P(None, None, None, "model"), "out": P(None, "model"),
           "up": P(None, None, "model"), "down": P(None, "model")}  # fmt: skip


def shared(name, n):
    """The gradient of the loss on n devices, compiled, and its arguments in their places."""
    axis = "model" if name == "tensor parallel" else "data"
    cut, rows, options = P(), P("data"), {}
    if name == "FSDP":  # each weight's rows; gathered in each block, and again on the way back
        collect = partial(jax.lax.all_gather, axis_name="data", tiled=True)
        cut, options = P(None, "data"), {"gather": partial(jax.tree.map, collect), "again": True}
    if name == "tensor parallel":
        cut, rows, options = by_head, P(), {"total": partial(jax.lax.psum, axis_name="model")}

    def local(W, *batch):
        return jax.lax.pmean(loss(W, *batch, **options), axis)  # of equal parts: equation (1)

    mesh, specs = grid_of(**{axis: n}), (cut, rows, rows, rows)
    mean = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    lie = partial(jax.tree.map, partial(NamedSharding, mesh), is_leaf=lambda s: isinstance(s, P))
    there = [jax.device_put(a, lie(s)) for a, s in zip((W, *batch), specs, strict=True)]
    return jax.jit(jax.grad(mean)).lower(*there).compile(), there

# %% [markdown]
# Only the forward pass is written. The backward pass sends something too, and differentiation finds out what:
#
# | forward | its transpose, backward |
# |---|---|
# | the same weights on all devices | sum of the devices' gradients: all-reduce |
# | all-gather of pieces | sum, and each keeps its piece: reduce-scatter |
# | sum of parts | the same gradient to all parts |
#
# A matrix is transposed in the same way: what was copied is summed, what was summed is copied.
#
# **Predict, then run.** Which of the three sends most for these two blocks: all-reduce of all gradients, weights that
# are gathered twice, or sums of tokens?

# %%
gradient = jax.jit(jax.grad(loss))
one_device = gradient(W, *batch)
ONE_KIND = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter)(?:-start)?\(")


def kinds_of_traffic(compiled, loops):
    """{kind: bytes of the whole array}; what stands in a loop of the program runs `loops` times."""
    in_loops, _, outside = compiled.as_text().partition("\nENTRY ")
    found = {}
    for text, times in ((in_loops, loops), (outside, 1)):
        for shapes, kind in ONE_KIND.findall(text):
            parts = re.findall(r"f32\[([\d,]*)\]", shapes)
            numbers = sum(math.prod(map(int, filter(None, p.split(",")))) for p in parts)
            found[kind] = found.get(kind, 0) + 4 * numbers * times
    return found


programs, largest_gap = {}, {}
for name, n in [(m, n) for m in ("data parallel", "FSDP", "tensor parallel") for n in (2, 8)]:
    compiled, there = shared(name, n)
    programs[name, n] = compiled
    largest_gap[name, n] = max(
        float(np.abs(np.asarray(g) - one_device[k]).max() / np.abs(one_device[k]).max())
        for k, g in compiled(*there).items()
    )
    print(f"{name:15} on {n}: difference {largest_gap[name, n]:.0e},",
          kinds_of_traffic(compiled, LAYERS))  # fmt: skip

# %% tags=["claims"]
# @title Checked: the gradient of every sharing is that of one device
assert max(largest_gap.values()) < 1e-5  # float32 sums in another order

# %% [markdown]
# ## 4 · Bytes on a device, bytes on the wire
#
# How many bytes does a device send? In a **ring**, each device passes pieces to its neighbour. To gather an array of
# $S$ bytes, a device forwards all pieces but one. A reduce-scatter is the same backwards, and an all-reduce is both:
#
# $$\text{gather}: \tfrac{n-1}{n}S,\qquad \text{reduce-scatter}: \tfrac{n-1}{n}S,\qquad \text{all-reduce}:
# 2\,\tfrac{n-1}{n}S \tag{3}$$
#
# (Patarasu & Yuan 2009; no algorithm can send less.) With weights of $S_W$ bytes, tokens of $S_x$ bytes and $L$ blocks,
# one gradient costs each device
#
# | | sends, in $\frac{n-1}{n}$ | keeps of the weights | of the batch |
# |---|---|---|---|
# | data parallel | $2\,S_W$ | all | $1/n$ |
# | FSDP | $3\,S_W$: gather, gather again, scatter | $1/n$ | $1/n$ |
# | tensor parallel | $4L\cdot 2\,S_x$: two sums a block, and two backward | $1/n$ | all |
#
# The first two depend on the weights, the third on the tokens. (FSDP: Rajbhandari et al. 2020, section 7; Zhao et al.
# 2023.) The next cell finds these numbers in the compiled programs.

# %%
S_W, S_x = (sum(a.nbytes for a in arrays) for arrays in (W.values(), batch[:1]))
S_batch = sum(a.nbytes for a in batch)


def on_paper(name, n, weights, tokens, batch, blocks):
    """(bytes that a device sends for one gradient, bytes of weights and batch that it keeps)."""
    ring = (n - 1) / n
    return {
        "data parallel": (2 * ring * weights, weights + batch / n),
        "FSDP": (3 * ring * weights, weights / n + batch / n),
        "tensor parallel": (8 * blocks * ring * tokens, weights / n + batch),
    }[name]


RING = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}  # times (n − 1)/n, of the whole


def as_compiled(compiled, n):
    """The same two numbers, from the program's text and its list of arguments."""
    seen = kinds_of_traffic(compiled, LAYERS)
    if "reduce-scatter" in seen:  # whose result is a piece
        seen["reduce-scatter"] *= n
    sent = sum(RING[kind] * size for kind, size in seen.items()) * (n - 1) / n
    return sent, compiled.memory_analysis().argument_size_in_bytes


for (name, n), compiled in programs.items():
    theory = on_paper(name, n, S_W, S_x, S_batch, LAYERS)
    rows = zip(("sent", "kept"), theory, as_compiled(compiled, n), strict=True)
    print(f"{name:15} on {n}:", *(f"{k} {a:9,.0f} = {b:9,.0f}" for k, a, b in rows))

# %% tags=["claims"]
# @title Checked: the formulas are exact, byte for byte; here the sums of tokens cost most
for (name, n), compiled in programs.items():
    assert on_paper(name, n, S_W, S_x, S_batch, LAYERS) == as_compiled(compiled, n), (name, n)
sent_by = {name: on_paper(name, 8, S_W, S_x, S_batch, LAYERS)[0] for name, _ in programs}
assert sent_by["tensor parallel"] > sent_by["FSDP"] > sent_by["data parallel"]
