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
# - write data parallelism, FSDP and tensor parallelism of a DiT block by hand, and show that the gradient is the
#   same;
# - count a device's bytes, and the bytes it sends, and find both in the compiled program;
# - trade memory for time, and choose between float32, bfloat16 and float16;
# - resume a run on another number of devices;
# - find the silent bugs: equal noise on all devices, equal data on all hosts, a mean of unequal means.
#
# **You need** chapters 04 and 16. **Time**: about 75 minutes of reading. The cells run for about a minute on two CPU
# cores.
#
# %% [markdown]
# The next cell **simulates eight devices** on this machine's CPU. (On Colab, choose a runtime without an
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
import queue
import re
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
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
from diffusion_course.training import checkpoints, distributed, loop, update
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


# %%
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
# The next sections ask what must then be sent.
#
# ## 2 · A mesh and a PartitionSpec
#
# Two things say where an array lies. A **mesh** arranges the devices in a grid and names its axes, such as "data" and
# "model". A **PartitionSpec** has an entry for each axis of the array: the mesh axis along which it is cut, or
# `None`. Entries left out at the end count as `None`, so `P()` cuts nothing. `P(None, "model")` cuts columns among
# the devices of "model". What is not cut is copied.
#
# An array on a mesh keeps its shape. The same code runs on it, and the compiler inserts what must be sent. Why may
# the batch be cut at all? The loss is a mean over examples, so for $n$ **equal** parts
#
# $$\nabla_W \frac1B\sum_{i=1}^{B}\ell_i =
# \frac1n\sum_{k=1}^{n}\Big(\nabla_W\frac{n}{B}\sum_{i\in\text{part }k}\ell_i\Big)
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
assert talk["FSDP"] == {"all-gather": 1, "all-reduce": 1}  # of the CPU's compiler
assert talk["both: 2 × 4"] == {"all-reduce": 1}

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
# (FSDP's gradient could be a reduce-scatter. The CPU's compiler makes an all-reduce of it, and each device throws
# seven eighths away. What a compiler chooses must be read, not assumed.)

# %% [markdown]
# ## 3 · A block, shared by hand
#
# `shard_map` shows what the compiler hides: its function is what *one* device does, with its own pieces. Here is a
# DiT block of chapter 16, with two places for communication:
#
# - `gather` makes whole weights of all devices' pieces (FSDP);
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
    """A DiT block: x [B, N, C], modulation six [B, 6, C]; `total` adds the devices' parts."""
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
# %%
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
        value = loss(W, *batch, **options)
        return value if axis == "model" else jax.lax.pmean(value, axis)  # equal parts: (1)

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
# (Patarasu & Yuan 2009. Their lower bound says that the busiest device cannot send less in an all-reduce, as long as
# only the devices add. With a switch that adds it can.) With weights of $S_W$ bytes, tokens of $S_x$ bytes and $L$
# blocks, one gradient costs each device
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
# %% [markdown]
# The formulas hold byte for byte. FSDP sends half as much again as data parallelism, and keeps an eighth of the
# weights (and of the optimiser's numbers, section 9). Tensor parallelism sends most here, because the tokens are many
# and the weights few. It also sends *inside* each block, where everybody waits. So it stays among devices with fast
# links, and the axis "data" spans the slow ones.
#
# A device sends at most $(n-1)/n$ of these numbers, so beyond a few devices the traffic of a device hardly grows.
#
# ## 5 · The library
#
# `training.loop.fit` takes a mesh. `device_mesh(data=4, model=2)` arranges eight devices in four rows of two;
# `fsdp=True` cuts the whole state among all of them; with more than one column, a DiT's blocks are divided as in
# equation (2). The library gathers all weights at once, where our program gathered block by block.
#
# %% [markdown]
# We train a DiT on the digits for four steps of gradient descent with momentum, each time from the same
# weights, with the same batches and keys.
#
# **Predict, then run.** After four steps, in which digit do the four runs differ?

# %%
p = process.vp_cosine()
digits = data.load("digits")
net = dit.DiT(8, width=32, depth=2, head_size=8, num_classes=10, rngs=nnx.Rngs(0))
# Trained networks have open gates; with gates at 0 most gradients would be exactly 0.
vector = update.create_state(net, optax.sgd(0.1)).params
noise = 0.05 * jax.random.normal(jax.random.key(1), vector.shape)
net = update.merge(net, vector + noise)
sgd = optax.flatten(optax.sgd(0.05, momentum=0.9))
MESHES = {
    "1": (meshes.device_mesh(devices=DEVICES[:1]), False),
    "8": (meshes.device_mesh(), False),
    "8, FSDP": (meshes.device_mesh(), True),
    "2 × 4, FSDP": (meshes.device_mesh(data=2, model=4), True),
}


def v_loss(model, x, labels, key):
    return losses.diffusion_loss(model, p, "v", x, labels, key)


def descend(where, stop, state=None):
    mesh, fsdp = MESHES[where]
    start = 0 if state is None else int(state.step)
    return loop.fit(net, v_loss, data.batches(digits, 64, seed=0, start=start), steps=4, stop=stop,
                    key=jax.random.key(2), optimizer=sgd, state=state, mesh=mesh, fsdp=fsdp,
                    progress=False).state  # fmt: skip


# %%
ends = {where: descend(where, 4) for where in MESHES}
moved = np.abs(np.asarray(ends["1"].params - vector - noise)).max()
apart = {k: np.abs(np.asarray(s.params) - np.asarray(ends["1"].params)).max() / moved
         for k, s in ends.items()}  # fmt: skip
print("largest difference from one device, in units of the largest move:")
print({where: f"{value:.0e}" for where, value in apart.items()})

# %% tags=["comparison"]
assert max(apart.values()) < 1e-5  # four steps, each off by float32's rounding
# What a device keeps between the steps: parameters, their average, momentum.
kept = {}
for where, (mesh, fsdp) in MESHES.items():
    kept[where] = meshes.bytes_per_device(meshes.Layout(mesh, fsdp).place(ends["1"]))
    print(f"{where:12} {kept[where]:9,} bytes on each device")
assert kept["8"] == kept["1"] and 7.9 < kept["1"] / kept["8, FSDP"] <= 8

# %% [markdown]
# The runs agree to $10^{-5}$ of the largest move, or better: it is the same training, and only the order of the sums
# differs. With FSDP an eighth of the state lies on each device.
#
# ## 6 · Memory against time
#
# **Gradient accumulation.** The large batch of equation (1) can also be cut in *time*: one part after the other, with
# the gradients added up. Memory is that of a part; the number of operations stays. **Rematerialisation**
# (`jax.checkpoint`) keeps only each block's input, and computes the rest again on the way back (chapter 04).
#
# **Predict, then run.** Four parts, or computing again: which saves more memory, and what does it cost in operations?

# %%
large = tuple(np.float32(rng.normal(size=(64, *shape[1:]))) for shape in shapes_of_batch)


def in_parts(W, batch, parts, again):
    """The gradient of the mean loss over parts of equal size, one after the other."""
    cut = [a.reshape(parts, -1, *a.shape[1:]) for a in batch]

    def add(total, part):
        return jax.tree.map(jnp.add, total, jax.grad(loss)(W, *part, again=again)), None

    total = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, W), cut)[0]
    return jax.tree.map(lambda g: g / parts, total)


costs, slopes = {}, {}
for parts, again in ((1, False), (1, True), (4, False), (4, True)):
    one = partial(in_parts, parts=parts, again=again)
    compiled = jax.jit(one).lower(W, large).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    costs[parts, again] = temporary / 1e6, counting.matmul_flops(one, W, large) / 1e6
    slopes[parts, again] = compiled(W, large)
    print(f"{parts} parts, {'again' if again else 'kept ':5}: {costs[parts, again][0]:5.1f} MB of "
          f"temporary arrays, {costs[parts, again][1]:.0f} MFLOP")  # fmt: skip

# %% tags=["claims"]
# @title Checked: the same gradient; parts save most memory and cost no operations; computing again costs 23 %
for found in slopes.values():
    for k, g in found.items():
        np.testing.assert_allclose(g, slopes[1, False][k], atol=1e-5 * np.abs(g).max())
memory, flops = ({k: v[i] for k, v in costs.items()} for i in (0, 1))
assert flops[4, False] == flops[1, False] and flops[4, True] == flops[1, True]
assert abs(flops[1, True] / flops[1, False] - 1.23) < 0.005
saving = {k: memory[1, False] / m for k, m in memory.items()}
assert 3 < saving[4, False] < 4.5 and 2 < saving[1, True] < 2.6 and 7 < saving[4, True] < 9

# %% [markdown]
# Four parts need about a fourth of the memory, cost no operations, and give the same gradient. (On an accelerator
# they can cost time, where small parts do not fill the device.) Computing again needs less than half of the memory,
# and costs 23 % more operations: a forward pass is a third of a step, and each block's last product is not needed
# again. Both together need an eighth.
#
# **The trap: parts that are not equal.** Often the last part is smaller, or some examples do not count (padding, a
# masked loss). Then the mean of the parts' means is *not* the mean. Each part must be weighted with its number of
# examples, or summed and divided once at the end.

# %%
bounds = (0, 40, 56, 64)  # parts of 40, 16 and 8 rows
parts = [slice(a, b) for a, b in pairwise(bounds)]
means = [np.asarray(slope(matrix, x_rows[s])) for s in parts]
weighted = sum(m * (s.stop - s.start) for m, s in zip(means, parts, strict=True)) / 64
off_by = {
    name: np.linalg.norm(g - alone) / np.linalg.norm(alone)
    for name, g in (("mean of means", sum(means) / 3), ("weighted", weighted))
}
print({name: f"{value:.1e}" for name, value in off_by.items()})

# %% tags=["claims"]
# @title Checked: the weighted mean is the gradient of the large batch; the mean of means is not
assert off_by["weighted"] < 1e-6 and off_by["mean of means"] > 0.05

# %% [markdown]
# The same holds for devices. `pmean` of local means is right for equal parts only; for others, `psum` of the sums
# over `psum` of the counts.
#
# ## 7 · Half the bytes: which half?
#
# Two formats have 16 bits. bfloat16 spends them on range, float16 on digits. The gradient decides which matters. Of a
# mean loss over $M$ numbers, the backward pass begins with
#
# $$\frac{\partial}{\partial \hat y_i}\;\frac1M\sum_j (\hat y_j - y_j)^2 = \frac{2}{M}\,(\hat y_i - y_i) \tag{4}$$
#
# A batch of 2,048 latents of 64×64×4 (Stable Diffusion's, section 10) has $M = 2^{25}$. So the gradient is $2^{-24}$
# times the error, and $2^{-24} \approx 6\cdot 10^{-8}$ is the smallest positive number of float16. The remedy is a
# **loss scale** $s$: multiply the loss by $s$, and divide the gradient by $s$ in float32 (Micikevicius et al. 2018,
# section 3.2).
#
# **Predict, then run.** Of a million such gradients, which share becomes exactly 0?

# %%
FORMATS = {"float16": np.float16, "bfloat16": jnp.bfloat16, "float32": np.float32}
for name, kind in FORMATS.items():
    info = jnp.finfo(kind)
    print(f"{name:9} digits to {float(info.eps):.0e}, from {float(info.smallest_subnormal):.0e} "
          f"to {float(info.max):.0e}")  # fmt: skip
errors = rng.normal(size=2**20)
vanish = {}
for size in (1.0, 0.3, 0.1):
    d = np.float32(2 / 2**25 * size * errors)  # equation (4)
    for name, scale in (("float16", 1), ("float16", 2**15), ("bfloat16", 1)):
        vanish[size, name, scale] = np.mean(np.float32((scale * d).astype(FORMATS[name])) == 0)
    print(f"error {size:4}: exactly 0 are", {k[1:]: f"{v:.1%}" for k, v in vanish.items()
                                              if k[0] == size})  # fmt: skip

# %% tags=["claims"]
# @title Checked: without a scale most small gradients vanish in float16, none in bfloat16
assert float(jnp.finfo(np.float16).smallest_subnormal) == 2.0**-24
# Below half of 2⁻²⁴ all is rounded to 0: |error| < 1/2, so P(|z| < 1/(2·size)).
for size in (1.0, 0.3, 0.1):
    share_below = math.erf(0.5 / size / math.sqrt(2))
    assert abs(vanish[size, "float16", 1] - share_below) < 0.003  # 2²⁰ draws: six standard errors
    assert vanish[size, "bfloat16", 1] == 0 and vanish[size, "float16", 2**15] < 0.001
assert 0.37 < vanish[1.0, "float16", 1] < 0.39 and vanish[0.1, "float16", 1] > 0.999
assert 0.89 < vanish[0.3, "float16", 1] < 0.92

# %% [markdown]
# With errors of size 1, 38 % of the gradients vanish. With errors of size 0.3 it is 90 %, and of size 0.1 all. So
# the better the network, the less it learns. A scale of $2^{15}$ cures it, and bfloat16 needs no cure: it has the
# range of float32.
#
# Is $2^{15}$ then the right scale? Kept forever, it is a *fixed* scale. A scale is **dynamic** if it changes: when a
# gradient is not finite, the step is skipped and the scale is halved; after some good steps in a row, it is doubled.
#
# We fit 64 numbers by gradient descent. The factors of each product and the gradients are rounded to 16 bits. Sums
# inside a product are float32 (as in a matrix unit), and so are the predictions, their errors and the weights. The
# loss is a mean over $M$ numbers, with $M = 2^{25}$ as above, or with $M = 2^8$: a sum over pixels,
# and a mean over a batch of 256.
#
# **Predict, then run.** Which of the eight runs fail, and how?


# %%
inputs = np.float32(rng.normal(size=(256, 64)))
solution = np.float32(rng.normal(size=64))
wanted = inputs @ solution


def fit_in(kind, M, scale=1.0, dynamic=False):
    """Gradient descent with products in a format; returns w and how the scale went."""
    to = lambda a: np.float32(a.astype(kind))  # rounded to the format
    w, good, scales = np.zeros(64, np.float32), 0, []
    for _ in range(400):
        error = to(inputs) @ to(w) - wanted
        d = to(np.float32(2 * scale / M) * error)  # equation (4), scaled: the backward pass begins
        g = to(to(inputs).T @ d)
        scales.append(scale)
        if not np.isfinite(g).all():
            scale, good = scale / 2 if dynamic else scale, 0
            continue  # skip this step
        w -= np.float32(0.6 * M / 512 / scale) * g  # as Adam does, for any size of the gradient
        good += 1
        scale = 2 * scale if dynamic and good % 20 == 0 else scale
    return w, scales


# %%
RUNS = {
    "float16, no scale": (np.float16,),
    "float16, always 2¹⁵": (np.float16, 2.0**15),
    "float16, dynamic": (np.float16, 2.0**15, True),
    "bfloat16, no scale": (jnp.bfloat16,),
}
ended, scale_of = {}, {}
with np.errstate(over="ignore", invalid="ignore"):
    for name, (kind, *options) in RUNS.items():
        for M in (2**25, 2**8):
            w, scale_of[name, M] = fit_in(kind, M, *options)
            ended[name, M] = np.linalg.norm(w - solution) / np.linalg.norm(solution)
            print(f"{name:20} M = 2^{M.bit_length() - 1:<2}  relative error {ended[name, M]:.1e}")

# %% tags=["claims"]
# @title Checked: no scale stalls, a fixed one never starts, a dynamic one and bfloat16 arrive
right_scale = [ended[name, M] for name in ("float16, dynamic", "bfloat16, no scale")
               for M in (2**25, 2**8)]  # fmt: skip
assert max(right_scale) < 3e-3 and max(right_scale[:2]) < 5e-4  # 8 and 11 binary digits
assert ended["float16, no scale", 2**25] > 0.02 and ended["float16, no scale", 2**8] < 5e-4
assert ended["float16, always 2¹⁵", 2**8] == 1 and ended["float16, always 2¹⁵", 2**25] < 5e-4
halved = scale_of["float16, dynamic", 2**8]
assert halved[0] == 2**15 and min(halved) < 2**15 < max(scale_of["float16, dynamic", 2**25])

# %% [markdown]
# - **No scale** is right for the small $M$ only. For the large one it stops early: what is left of the error is too
#   small to be seen.
# - **Always $2^{15}$** is right for the large $M$ only. For the small one every gradient overflows, every step is
#   skipped, and after 400 steps nothing has been learnt. (Without the skip, the weights would be NaN.)
# - A **dynamic** scale finds its way in both, and so does **bfloat16** without any.
#
# bfloat16 has fewer digits: it arrives with an error below 0.3 %, float16 with one below 0.05 %. Kalamkar et al. 2019
# report trainings of large networks in bfloat16 that end as those in float32 do. What must be precise stays float32:
# the weights, their sums, the loss, and the time (chapter 04).

# %% [markdown]
# ## 8 · The loop around it
#
# **Donation.** A step reads the old state and writes the new one, so both need room. An argument that is *donated*
# gives its memory to the result. Afterwards the old array is gone, and JAX says so.


# %%
def momentum_step(state, slope):
    return {k: {"w": s["w"] - 0.1 * s["m"], "m": 0.9 * s["m"] + slope[k]} for k, s in state.items()}


peaks, gone = {}, {}
for name, donated in (("kept", ()), ("donated", (0,))):
    state = {k: {"w": jnp.asarray(w), "m": jnp.zeros_like(w)} for k, w in W.items()}
    one_step = jax.jit(momentum_step, donate_argnums=donated)
    stats = one_step.lower(state, one_device).compile().memory_analysis()
    peaks[name] = (stats.argument_size_in_bytes + stats.output_size_in_bytes
                   - stats.alias_size_in_bytes)  # fmt: skip
    one_step(state, one_device)
    gone[name] = state["up"]["w"].is_deleted()
    print(f"{name:8} arguments and results {peaks[name]:9,} bytes, old state gone: {gone[name]}")

# %% tags=["claims"]
# @title Checked: donation saves one copy of the state, and the old one is deleted
assert gone == {"kept": False, "donated": True}
state_bytes = 2 * S_W
assert abs(peaks["kept"] - peaks["donated"] - state_bytes) < 1000  # pointers of the result's tuple
assert abs(peaks["kept"] - 2 * state_bytes - S_W) < 1000

# %% [markdown]
# **Input.** While the devices compute, the host can make the next batch: read it, decode it, cut it. Else the devices
# wait for it in every step. A thread and a short queue are enough. Two things are easily forgotten: the queue needs an
# end, or a fast thread fills the memory; and an error in the thread must reach the loop, or the loop waits for ever.
#
# **Predict, then run.** The queue holds two batches. The loop has taken its first one and computes for a long time. How
# many batches has the thread made by then?


# %%
def ahead(batches, depth):
    """The same batches in the same order; a thread makes some of them beforehand."""
    ready, end = queue.Queue(depth), object()

    def work():
        try:
            for batch in batches:
                ready.put(batch)  # waits while the queue is full
            ready.put(end)
        except Exception as error:
            ready.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (batch := ready.get()) is not end:
        if isinstance(batch, Exception):
            raise batch
        yield batch


# %%
made = []


def six_batches(fail_at=None):
    for n, batch in zip(range(6), data.batches(digits, 64, seed=0), strict=False):
        if n == fail_at:
            raise OSError("the disk is gone")
        made.append(n)
        yield batch


stream = ahead(six_batches(), depth=2)
taken = [next(stream)]
time.sleep(1)  # the loop computes
at_work = len(made)
taken += stream
made_alone = list(six_batches())
print(f"after the first batch was taken: {at_work} made; in the end {len(taken)}")

# %% tags=["claims"]
# @title Checked: four are made and no more, all arrive in order, and an error arrives too
assert at_work == 4 and len(taken) == len(made_alone) == 6
for one, other in zip(taken, made_alone, strict=True):
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
arrived = []
try:
    arrived.extend(ahead(six_batches(fail_at=3), depth=2))
except OSError as error:
    assert "disk" in str(error) and len(arrived) == 3

# %% [markdown]
# Four: the one that is used, two in the queue, and one in the thread's hand. Where the devices compute without
# the host's cores, a step then costs the longer one of computing and loading, and not their sum.
#
# **Checkpoints on another mesh.** A checkpoint should hold the state itself, not how it lay. `fit` hands out whole
# states, whatever the mesh. So a run can stop on eight devices and go on on one.
#
# **Predict, then run.** The run of section 5 on eight devices with FSDP stops after two of four steps. It goes on on
# the same eight, on one, and on 2 × 4. Which of the ends equals that of the run without interruption, bit for bit?

# %%
half = descend("8, FSDP", 2)
with tempfile.TemporaryDirectory() as folder:
    with checkpoints.Checkpoints(folder) as states:
        states.save(half)
    with checkpoints.Checkpoints(folder) as states:
        restored = states.restore(update.create_state(net, sgd))
resumed = {where: descend(where, 4, restored) for where in ("8, FSDP", "1", "2 × 4, FSDP")}
whole_run = np.asarray(ends["8, FSDP"].params)
off = {k: np.abs(np.asarray(s.params) - whole_run).max() / moved for k, s in resumed.items()}
print({where: f"{value:.0e}" for where, value in off.items()})

# %% tags=["claims"]
# @title Checked: bit for bit on the same devices, to rounding on others
assert off["8, FSDP"] == 0 and max(off.values()) < 1e-5
for a, b in zip(jax.tree.leaves(resumed["8, FSDP"]), jax.tree.leaves(ends["8, FSDP"]), strict=True):
    np.testing.assert_array_equal(a, b)  # the average and the momentum too

# %% [markdown]
# On the same mesh every bit agrees: parameters, average, momentum. On another one the sums have another order. Three
# things are needed for this: a state that is *complete* (momentum and step number too), keys made from the step
# (`fold_in(key, n)`), and batches that can start at step $n$.
#
# **Several hosts.** A large machine has several computers, each with its own devices. Each runs the *same* script.
# After `jax.distributed` has connected them, `jax.devices()` names the devices of all. Each host loads only **its
# own rows** of a batch. We try it with two processes of this machine, one device each.

# %%
SCRIPT = """
import jax, numpy as np, optax
from flax import nnx
from diffusion_course.training import distributed, loop, mesh
distributed.connect()
from diffusion_course import data, losses, process
from diffusion_course.models.mlp import MLP
x, labels = np.random.default_rng(0).normal(size=(16, 2)).astype("float32"), np.zeros(16, int)
rows = distributed.own_rows(16)
def loss(model, x, labels, key):
    return losses.diffusion_loss(model, process.vp_cosine(), "v", x, None, key)
model = MLP(2, 16, 1, rngs=nnx.Rngs(0))
state = loop.fit(model, loss, [(x[rows], labels[rows])], steps=1, key=jax.random.key(0),
                 optimizer=optax.sgd(0.1), progress=False).state
print(jax.process_count(), len(jax.devices()), rows.stop - rows.start,
      float(np.abs(np.asarray(state.params)).sum()))
"""

# %%
with tempfile.TemporaryDirectory() as folder:
    script = Path(folder) / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    said = {n: distributed.launch(script, processes=n) for n in (1, 2)}
numbers = {n: [list(map(float, text.split()[-4:])) for text in texts] for n, texts in said.items()}
for rows in numbers.values():
    for i, (processes, devices, own, total) in enumerate(rows):
        print(f"process {i} of {processes:.0f}: {devices:.0f} devices, {own:.0f} rows,",
              f"sum of |w| {total:.6f}")  # fmt: skip

# %% tags=["claims"]
# @title Checked: two processes with half of the rows each make the step of one process
(alone_row,), (first, second) = numbers[1], numbers[2]
assert alone_row[:3] == [1, 1, 16] and first[:3] == second[:3] == [2, 2, 8]
assert first[3] == second[3] and abs(first[3] / alone_row[3] - 1) < 1e-6
# %% [markdown]
# ## 9 · Compile for a machine that you do not have
#
# The compiler of a TPU (the package `libtpu`) also runs on a Linux computer without a TPU. It needs the shapes and
# the shardings, and a description of the chips, but no data:
#
# ```python
# from jax.experimental import topologies
# there = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
# # … shapes with shardings on there.devices, jax.ShapeDtypeStruct(shape, dtype, sharding=…)
# compiled = step.lower(*shapes).compile()
# compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
# ```
#
# It can take minutes, so the course keeps a record (`benchmarks/tpu_compile.py`). From such numbers follows a
# lower bound of the time of a step, with $F$ operations, $b$ bytes to and from memory, and $b_{net}$ bytes sent:
#
# $$t \ge \max\Big(\frac{F}{\text{peak}},\; \frac{b}{\text{memory bandwidth}},\; \frac{b_{net}}{\text{network
# bandwidth}}\Big) \tag{5}$$
#
# (Williams et al. 2009, who draw it: the **roofline**.) The **intensity** $F/b$ decides between the first two. Beyond
# the *ridge*, peak ÷ bandwidth, a program is bound by its operations.
#
# **Predict, then run.** A dense layer multiplies $T$ tokens of width 1152 into 4608. How many tokens must a chip
# have, so that it computes and does not wait for memory?

# %%
CHIPS = {"v5e": (197e12, 819e9, 200e9), "v6e": (918e12, 1640e9, 448e9)}  # FLOP/s, memory, network
# From benchmarks/results/tpu_compile.json: operations, bytes of HBM, bound in seconds.
RECORDED_TPU = {
    "mnist, training step, bfloat16, 64, v5e-1": (11789557760, 16589616, 5.985e-05),
    "toy2d, training step, float32, 512, v5e-1": (248414688, 2733920, 3.338e-06),
    "toy2d, training step, float32, 512, v5e-8": (33814384, 2731852, 3.336e-06),
}
ALL_REDUCE = (1, 334860, 2.93e-06)  # of the last one: how many, bytes, least seconds
tokens = 2 ** np.arange(4, 17)


def dense_layer(T, c=1152, bytes_each=2):
    """(operations, bytes) of [T, c] times [c, 4c] in bfloat16, each array moved once."""
    return 2 * T * c * 4 * c, bytes_each * (T * c + 4 * c * c + 4 * T * c)


# %%
fig, ax = plt.subplots(figsize=(6, 3.4))
intensity = np.logspace(0, 4, 100)
for (chip, (peak, hbm, _)), color in zip(CHIPS.items(), plots.SERIES, strict=False):
    ax.loglog(intensity, np.minimum(peak, intensity * hbm) / 1e12, color=color)
    ax.annotate(chip, (4000, peak / 1e12), (0, 4), textcoords="offset points", color=color)
peak, hbm, _ = CHIPS["v5e"]
for T, offset in ((16, (6, -12)), (256, (8, -22)), (4096, (4, -12))):
    F, moved_bytes = dense_layer(T)
    place = F / moved_bytes, min(peak, hbm * F / moved_bytes) / 1e12
    ax.plot(*place, "o", color=plots.PREDICTION)
    ax.annotate(f"{T} tokens", place, offset, textcoords="offset points")
for name, (F, moved_bytes, seconds) in RECORDED_TPU.items():
    place = F / moved_bytes, F / seconds / 1e12
    ax.plot(*place, "s", color=plots.TRUTH)
    label = name.partition(",")[0] + (", a step on 8" if name.endswith("8") else ", a step")
    shift = {"m": (-20, 7), "t": (8, -14)}[name[0]] if name[-1] == "1" else (8, -22)
    ax.annotate(label, place, shift, textcoords="offset points")
ax.set(xlabel="intensity, FLOP per byte", ylabel="TFLOP/s at most")
plt.show()
enough = {chip: next(int(T) for T in tokens if np.divide(*dense_layer(T)) > peak / hbm)
          for chip, (peak, hbm, _) in CHIPS.items()}  # fmt: skip
print("ridge:", {chip: round(peak / hbm) for chip, (peak, hbm, _) in CHIPS.items()},
      "tokens needed (powers of 2):", enough)  # fmt: skip

# %% tags=["claims"]
# @title Checked: ridges, the tokens that a dense layer needs, and the recorded programs
assert round(197e12 / 819e9) == 241 and round(918e12 / 1640e9) == 560
assert enough == {"v5e": 512, "v6e": 2048}
images, points, on_eight = (np.array(row) for row in RECORDED_TPU.values())
of_program = [round(float(F / b)) for F, b, _ in (images, points, on_eight)]
assert of_program == [711, 91, 12] and round(images[1] / 1e6, 1) == 16.6
assert abs(images[0] / 197e12 / images[2] - 1) < 0.01  # bound by operations
for row in (points, on_eight):  # bound by memory
    assert abs(row[1] / 819e9 / row[2] - 1) < 0.01 and 197e12 * row[2] > 2 * row[0]
assert abs(64 / images[2] / 1.07e6 - 1) < 0.01
assert 8 * 4 * 476_964 / images[1] > 0.9  # weights of MNIST's network; read and written: eight
state_of_points = 4 * 83_714  # bytes of one copy of the weights
assert 7.8 < points[1] / state_of_points < 8.3 and abs(on_eight[1] / points[1] - 1) < 0.001
assert ALL_REDUCE[1] == state_of_points + 4 and 0.85 < ALL_REDUCE[2] / on_eight[2] < 0.9
assert abs(1.5 * ALL_REDUCE[2] - 4.4e-6) < 1e-8 and 1.5 * ALL_REDUCE[2] > on_eight[2]  # 3 S for 2 S

# %% [markdown]
# (Peaks and bandwidths are Google's, from Cloud TPU's pages of v5e and v6e. The network's is that of all four links
# of a chip together.) The ridge of a v5e lies at 241 operations for each byte, that of a v6e at 560. A dense layer of
# this width needs 512 tokens (of the powers of two) on the one and 2,048 on the other. So a chip with fast arithmetic
# wants *more* tokens: if a batch is cut among many devices, each may fall below.

# %% [markdown]
# The squares are three recorded programs, all of them training steps:
#
# - **MNIST's U-Net**, 64 images: 711 operations for each byte, right of the ridge. Its bound is 60 microseconds, 1.07
#   million images a second. Of the 16.6 MB that go through the large memory more than nine tenths are the state. So
#   hardly any activations do: they stay in the small memory on the chip.
# - The **network for points in the plane**, 512 points: 91 operations for each byte, left of the ridge. It is bound
#   by memory, and cannot use half of the chip's arithmetic. What it moves are eight copies of its weights: weights,
#   average and Adam's two moments, each read once and written once.
# - The same on **eight chips**, data parallel: the same bound. Each chip has an eighth of the points, but updates the
#   whole state. One all-reduce, of the gradients and the loss, takes almost as long. With FSDP, section 4's messages
#   alone take 4.4 microseconds: more than this bound.
#
# These are no measurements: nothing was run, and a program is slower than its bound.

# %% [markdown]
# ## 10 · Stable Diffusion on paper
#
# How large is a real training? We count the U-Net of Stable Diffusion 1 (Rombach et al. 2022; its published
# configuration): widths 320, 640, 1280, 1280, two residual blocks on each level on the way down and three on the way
# up, and on three levels a transformer block that reads 77 words of width 768. All we need is the number of weights
# of each layer, and at how many places it is applied.
#
# **Predict, then run.** How many bytes must a device keep for each parameter, with Adam and an average of the
# weights?


# %%
class Counter:
    """Adds up (parameters, operations), one kind of layer after the other."""

    def __init__(self):
        self.parameters = self.operations = 0

    def dense(self, a, b, places, bias=True):
        self.parameters += a * b + bias * b
        self.operations += 2 * a * b * places

    def norms(self, channels):
        self.parameters += 2 * channels  # scale and shift

    def residual(self, a, b, s):
        self.norms(a + b), self.dense(9 * a, b, s * s), self.dense(9 * b, b, s * s)
        self.dense(1280, b, 1)  # the time
        if a != b:
            self.dense(a, b, s * s)

    def attend(self, c, s, words=77):
        n = s * s
        self.norms(4 * c), self.dense(c, c, n), self.dense(c, c, n)  # into tokens and back
        self.dense(c, 3 * c, n, bias=False), self.dense(c, c, n)  # to itself
        self.dense(c, c, n, bias=False), self.dense(c, c, n)  # to the words
        self.dense(768, 2 * c, words, bias=False)
        self.operations += 4 * n * (n + words) * c  # products of queries, keys and values
        self.dense(c, 8 * c, n), self.dense(4 * c, c, n)  # a gated dense network


# %%
def up(net, widths, c, s, skips):
    for i, width in reversed(list(enumerate(widths))):
        for _ in range(3):
            net.residual(c + skips.pop(), width, s)
            c = width
            if i < 3:
                net.attend(c, s)
        if i:
            s *= 2
            net.dense(9 * c, c, s * s)
    net.norms(c), net.dense(9 * c, 4, s * s)
    return net.parameters, net.operations


# %%
def stable_unet(s):
    """(parameters, operations) of one forward pass on latents [s, s, 4]: down, middle, up."""
    net, widths, c, skips = Counter(), (320, 640, 1280, 1280), 320, [320]
    net.dense(9 * 4, 320, s * s), net.dense(320, 1280, 1), net.dense(1280, 1280, 1)
    for i, width in enumerate(widths):
        for _ in range(2):
            net.residual(c, width, s)
            c = width
            if i < 3:
                net.attend(c, s)
            skips.append(c)
        if i < 3:
            s //= 2
            net.dense(9 * c, c, s * s), skips.append(c)
    net.residual(c, c, s), net.attend(c, s), net.residual(c, c, s)
    return up(net, widths, c, s, skips)


# %%
parameters, flops_512 = stable_unet(64)
flops_256 = stable_unet(32)[1]
per_parameter = {"weights": 4, "gradient": 4, "Adam": 8, "average": 4}  # bytes, float32
gigabytes = {k: v * parameters / 1e9 for k, v in per_parameter.items()}
training = 3 * 2048 * (237_000 * flops_256 + (194_000 + 515_000) * flops_512)
hours = training / 312e12 / 3600
print(
    f"{parameters:,} parameters; forward {flops_256 / 1e9:.0f} GFLOP, {flops_512 / 1e9:.0f} at 512²"
)
print({k: f"{v:.1f}" for k, v in gigabytes.items()}, f"together {sum(gigabytes.values()):.1f} GB")
print(f"training: {training:.1e} FLOP, {hours:,.0f} hours of an A100 at its peak")

# %% tags=["claims"]
# @title Checked: the sizes of Stable Diffusion 1
assert parameters == 859_520_964  # as in the published weights
assert abs(flops_512 / 0.80e12 - 1) < 0.01 and 4 < flops_512 / flops_256 < 5
assert sum(per_parameter.values()) == 20 and abs(sum(gigabytes.values()) - 17.2) < 0.05
assert abs(training / 3.8e21 - 1) < 0.02 and abs(hours - 3350) < 60 and 44 < 150_000 / hours < 46
assert 32 * 8 * 2 * 4 == 2048
ring_256 = 2 * 255 / 256 * gigabytes["gradient"]
assert abs(ring_256 - 6.85) < 0.05

# %% [markdown]
# The count gives 859,520,964 parameters, the number in the published weights. Some facts from the model card of
# versions 1.1 and 1.2: 237,000 steps at 256², then 194,000 and 515,000 steps at 512²; 256 A100s with 40 GB; a batch
# of $2048 = 256$ devices × 2 accumulated parts × 4 images; 150,000 device hours for version 1.

# %% [markdown]
# What follows from them:
#
# - **State.** 20 bytes a parameter: 17.2 GB. It fits on a 40 GB device, but leaves room for four images at a time. So
#   data parallelism with accumulation, section 6, was enough. With FSDP over 256 devices the state would be 67 MB.
# - **Traffic.** An all-reduce of 3.44 GB sends 6.85 GB from each device in each step.
# - **Operations.** A step is three forward passes: $3.8\cdot10^{21}$ FLOP in all, 3,350 hours at an A100's peak of
#   312 TFLOP/s (bfloat16, the data sheet). The card states 45 times as many hours. The count leaves out the frozen
#   encoders of image and text, the later versions, and everything but matrix products; and no program runs at the
#   peak.
#
# **Predict, then run.** Would it also have worked with 256 chips of type v5e, which have 16 GB each?

# %%
compute = 3 * 8 * flops_512 / CHIPS["v5e"][0]  # eight images a device, at the peak
for name, sends in (("data parallel", 2), ("FSDP", 3)):
    wire = sends * 255 / 256 * gigabytes["weights"] * 1e9 / CHIPS["v5e"][2]
    keeps = sum(gigabytes.values()) / (1 if name == "data parallel" else 256)
    print(f"{name:14} state {keeps:5.2f} GB, computes {1e3 * compute:.0f} ms,",
          f"sends {1e3 * wire:.0f} ms")  # fmt: skip

# %% tags=["claims"]
# @title Checked: no room with data parallelism; FSDP computes longer than it sends, but not in two parts
assert sum(gigabytes.values()) > 16
assert abs(compute - 0.098) < 0.001 and abs(wire - 0.051) < 0.001  # wire: of FSDP, the last one
assert 2 * wire > compute  # two parts: gathers and scatters twice
assert abs(1000 * sum(gigabytes.values()) / 256 - 67) < 0.5  # MB

# %% [markdown]
# The state of 17 GB does not fit in 16 GB, whatever the batch. With FSDP the state takes 67 MB. A step at 512²
# computes for 98 ms at least, with products in bfloat16, and sends for 51 ms at least, in float32 and over all four
# links. At these rates the messages could hide behind the arithmetic, if they are sent early enough. This counts all
# eight images of a device at once. If memory allows only four at a time, each part gathers the weights and scatters
# the gradients again, and the messages take longer than the arithmetic. (All are bounds: a real chip stays below its
# peaks, and not by the same factor for both.)
# %% [markdown]
# ## 11 · An explorer
#
# A DiT with Stable Diffusion's number of parameters, trained on latents, on 1 to 256 devices. The formulas are those
# of section 4, which were exact there. Choose a way to share, and move the number of devices. The left bars are what
# a device keeps of the state, the right ones what it sends in one step. The batch is four images for each device in
# data parallelism and FSDP. In tensor parallelism all devices share the same four.

# %%
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WEIGHTS, TOKENS, BLOCKS = 4 * parameters, 4 * 4 * 1024 * 1280, 28  # bytes; 1,024 tokens an image
NAMES = ("data parallel", "FSDP", "tensor parallel")


def bars(name, n):
    sent = on_paper(name, n, WEIGHTS, TOKENS, 0, BLOCKS)[0]
    state = 5 * WEIGHTS / (1 if name == "data parallel" else n)  # 20 bytes a parameter
    fig, axes = plt.subplots(1, 2, figsize=(6.5, 2.2))
    for ax, value, what, top, color in (
        (axes[0], state / 1e9, "GB of state that a device keeps", 20, plots.DATA),
        (axes[1], sent / 1e9, "GB that a device sends in a step", 12, plots.PREDICTION),
    ):
        ax.barh([0], [value], color=color)
        ax.set(xlim=(0, top), ylim=(-0.8, 0.8), yticks=[], title=what)
        ax.annotate(f"{value:.2f}", (value, 0), (4, 0), textcoords="offset points", va="center")
    fig.suptitle(f"{name}, {n} devices", x=0.02, ha="left", size="medium")
    return fig


bars("FSDP", 8)
plt.show()

# %%
widgets.explorer(
    {name: widgets.render(partial(bars, name), COUNTS) for name in NAMES},
    [f"{n} devices" for n in COUNTS],
    slider="devices", choice="share by", start=3,
)  # fmt: skip

# %% tags=["claims"]
# @title Checked: what the explorer shows at its ends
paper = {(name, n): on_paper(name, n, WEIGHTS, TOKENS, 0, BLOCKS)[0] / 1e9
         for name in NAMES for n in COUNTS}  # fmt: skip
assert all(paper[name, 1] == 0 for name in NAMES)
for name in NAMES:
    assert 1 < paper[name, 256] / paper[name, 8] < 1.15
assert math.isclose(paper["FSDP", 8], 1.5 * paper["data parallel", 8])
assert paper["tensor parallel", 8] < paper["data parallel", 8]

# %% [markdown]
# From 8 devices to 256, what a device sends grows by less than 15 %, while FSDP's state falls to a 32nd. Here, unlike
# in section 4, the weights are large and the tokens few: with four images tensor parallelism sends less than data
# parallelism. Which way is cheapest depends on this ratio, so no rule without numbers is right. (And it counts when a
# message can be sent: gradients can travel while the backward pass goes on; the sums inside a block cannot.)

# %% [markdown]
# ## 12 · Break it on purpose: everybody the same
#
# **The same noise on all devices.** In `shard_map` a key is copied like everything else that is not cut. A function
# that draws noise for its own rows then draws the *same* noise on each device. The loss falls, samples look fine.
# But a batch of 64 holds 8 different noises. The cure is to fold the device's number into the key (or to draw for
# the whole batch, outside).
#
# **Predict, then run.** By what factor does the scatter of the batch's mean grow?


# %%
def noise_on(fold):
    """Noise [512 draws, 64 rows], each device drawing for its 8 rows."""

    def local(keys):
        if fold:
            place = jax.lax.axis_index("data")
            keys = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        return jax.vmap(lambda key: jax.random.normal(key, (8,)))(keys)

    mesh = grid_of(data=8)
    draw = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(None, "data"), check_vma=False)
    return np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(5), 512)))


drawn = {"folded": noise_on(True), "same key": noise_on(False)}
spread = {name: np.std(np.mean(x**2, axis=1)) for name, x in drawn.items()}
different = {name: len(np.unique(x[0])) for name, x in drawn.items()}
print("standard deviation of the batch's mean square:", {k: f"{v:.3f}" for k, v in spread.items()})
print("different numbers in the first batch:", different)

# %% tags=["claims"]
# @title Checked: eight times fewer different numbers, √8 times the scatter
assert different == {"folded": 64, "same key": 8}
# The mean of n squares has the variance 2/n. 512 draws know a standard deviation to 3 %.
assert abs(spread["folded"] / np.sqrt(2 / 64) - 1) < 0.15
assert abs(spread["same key"] / np.sqrt(2 / 8) - 1) < 0.15

# %% [markdown]
# The scatter is $\sqrt8 \approx 2.8$ times as large, as if the batch were eight times smaller. The mean is right, so
# no test of an average sees it. Count *different* numbers.
#
# **The same data on all hosts.** Each host runs the same script. If each also loads the same rows, then every example
# of the batch stands in it twice (with two hosts). Nothing complains here either.

# %%
loaded = x_rows[:32]  # what each of two hosts loaded: it should have been a half each
twice = slope(matrix, np.concatenate([loaded, loaded]))
of_half = slope(matrix, loaded)
same_as_half = np.abs(np.asarray(twice - of_half)).max() / np.abs(np.asarray(of_half)).max()
far_from_whole = np.linalg.norm(twice - alone) / np.linalg.norm(alone)
rows_seen = len({row.tobytes() for row in np.concatenate([loaded, loaded])})
print(f"the half batch's gradient, to {same_as_half:.0e};",
      f"{far_from_whole:.0%} from the whole one's; {rows_seen} different rows of 64")  # fmt: skip

# %% tags=["claims"]
# @title Checked: a batch of 64 with 32 rows twice is a batch of 32
assert same_as_half < 1e-5 and far_from_whole > 0.05 and rows_seen == 32

# %% [markdown]
# The "batch of 64" is the batch of 32, at twice the price. The symptom shows only in a comparison: one host gives the
# same curve as two. So print a hash of each host's first rows, and compare.

# %% [markdown]
# ## 13 · What to inspect
#
# 1. **One step on one device and on all**, from the same state, with gradient descent, with momentum or without:
#    parameters to $10^{-5}$ of the largest move. (Adam divides by the gradient's size: where a gradient is only
#    rounding, so is its step.)
# 2. **Different rows, different noise**: count them over all devices.
# 3. **The collectives** of the compiled program, and their bytes against the formula. An all-gather that nobody
#    expects is a layout that does not fit.
# 4. **Bytes on each device**, from the arrays (`addressable_shards`) and from `memory_analysis()`.
# 5. **Save, resume, compare** bit for bit, before the long run.
# 6. **With float16**: the scale over time, and the number of skipped steps. With accumulation: the weights of the
#    parts.

# %% [markdown]
# ## Recap
#
# 1. A mesh names axes of devices; a `PartitionSpec` says along which of them an array is cut. The rest is copied.
# 2. Cut the batch: all-reduce of the gradients. Cut the state too: FSDP, half as much again. Cut the block: two sums
#    forward and two backward, of tokens.
# 3. The backward pass sends the transpose of what the forward pass sent.
# 4. Accumulation costs no operations, rematerialisation less than a third more (here 23 %); bfloat16 needs no loss
#    scale, float16 a dynamic one.
# 5. It is the same training if the gradient says so, to rounding; on the same mesh, bit for bit.
#
# **Exercises:** [22 · exercises](../exercises/22_scaling.ipynb).

# %% [markdown]
# ## Further reading
#
# - P. Patarasu, X. Yuan. *Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations.* Journal of Parallel
#   and Distributed Computing 2009. Equation (3).
# - P. Micikevicius et al. *Mixed Precision Training.* ICLR 2018.
#   [arXiv:1710.03740](https://arxiv.org/abs/1710.03740). Loss scaling.
# - D. Kalamkar et al. *A Study of BFLOAT16 for Deep Learning Training.* 2019.
#   [arXiv:1905.12322](https://arxiv.org/abs/1905.12322).
# - T. Chen, B. Xu, C. Zhang, C. Guestrin. *Training Deep Nets with Sublinear Memory Cost.* 2016.
#   [arXiv:1604.06174](https://arxiv.org/abs/1604.06174). Rematerialisation.
# - M. Shoeybi et al. *Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism.* 2019.
#   [arXiv:1909.08053](https://arxiv.org/abs/1909.08053). Equation (2).
# - S. Rajbhandari, J. Rasley, O. Ruwase, Y. He. *ZeRO: Memory Optimizations Toward Training Trillion Parameter
#   Models.* SC 2020. [arXiv:1910.02054](https://arxiv.org/abs/1910.02054). What a device must keep.
# - Y. Zhao et al. *PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel.* VLDB 2023.
#   [arXiv:2304.11277](https://arxiv.org/abs/2304.11277).

# %% [markdown]
# - R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer. *High-Resolution Image Synthesis with Latent Diffusion
#   Models.* CVPR 2022. [arXiv:2112.10752](https://arxiv.org/abs/2112.10752). Section 10, with the model card.
# - S. Williams, A. Waterman, D. Patterson. *Roofline: An Insightful Visual Performance Model for Multicore
#   Architectures.* Communications of the ACM 2009. Section 9.
# - Y. Xu et al. *GSPMD: General and Scalable Parallelization for ML Computation Graphs.* 2021.
#   [arXiv:2105.04663](https://arxiv.org/abs/2105.04663). How a compiler finds what must be sent.
#
# **New words:** mesh, PartitionSpec, collective, all-reduce, all-gather, reduce-scatter, data parallelism, FSDP,
# tensor parallelism, loss scale, donation, roofline, host.
