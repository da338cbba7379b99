"""Checks of a training: does it move every parameter, does its loss fall, does it fit in memory?"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_course.diagnosis.case import Case, Outcome, Unchecked, call
from diffusion_course.diagnosis.report import Finding

# Layers that start at zero hide the gradient of those before them. Moved by this, they don't.
_MOVED = 0.02
_STEPS = 3  # for the same reason: the layers before a zero layer move from the second step on
_BLOCKS = 20  # that a history of losses is cut into
# Above the lowest block's median. A loss that has converged stays within 1.5 of it, its batches'
# noise included: a block's median has a twentieth of the run behind it.
_RISEN = 2.0
# A batch of released recipes is at most 4 times the median of its block.
_SPIKE = 10.0
_SPIKES = 2  # that may be chance
_FLAT = 0.05  # change of the loss over the second half of a run that nobody sees


def gradient(case: Case) -> Outcome:
    """Has every parameter a gradient?"""
    if case.loss is None:
        raise Unchecked("no loss: pass loss=f with f(model, x, labels, key) -> scalar")
    case.state()
    graph, params, rest = nnx.split(case.model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(case.seed)
    noise = [rng.normal(0, _MOVED, leaf.shape).astype(leaf.dtype) for leaf in leaves]
    moved = [leaf + n for leaf, n in zip(leaves, noise, strict=True)]
    params = jax.tree.unflatten(tree, moved)

    def objective(params):
        model = nnx.merge(graph, params, rest)
        return _scalar("loss", case.loss(model, case.x0, case.cond, case.key("loss")))

    value, found = jax.jit(jax.value_and_grad(objective))(params)
    paths = [_name(path) for path, _ in jax.tree.flatten_with_path(found)[0]]
    sizes = [int(a.size) for a in jax.tree.leaves(found)]
    still = [bool((a == 0).all()) for a in jax.tree.leaves(found)]
    return _still(paths, sizes, still, f"a loss of {float(value):.3g}", "a gradient of exactly 0")


def step(case: Case) -> Outcome:
    """Does a step of the reader's own training change every parameter?"""
    if case.step is None:
        raise Unchecked("no step: pass step=f with f(model, x, labels, key) -> loss")
    case.state()
    before = jax.tree.map(jnp.copy, nnx.state(case.model))
    losses = []
    try:
        for i in range(_STEPS):
            key = jax.random.fold_in(case.key("step"), i)
            loss = case.step(case.model, case.x0, case.cond, key)
            losses.append(float(_scalar("step", loss)))
        after = jax.tree.map(jnp.copy, nnx.state(case.model, nnx.Param))
    finally:
        nnx.update(case.model, before)
    old = jax.tree.flatten_with_path(nnx.state(case.model, nnx.Param))[0]
    paths = [_name(path) for path, _ in old]
    sizes = [int(a.size) for _, a in old]
    still = [bool((a == b).all()) for (_, a), b in zip(old, jax.tree.leaves(after), strict=True)]
    shown = f"losses of {', '.join(f'{loss:.3g}' for loss in losses)}"
    return _still(paths, sizes, still, shown, f"not moved after {_STEPS} steps")


def _scalar(name: str, value):
    shape = getattr(value, "shape", None if value is None else np.shape(value))
    if shape != ():
        given = type(value).__name__ if shape is None else f"shape {list(shape)}"
        raise ValueError(f"{name} must return the loss, one number, got {given}")
    return value


def _name(path) -> str:
    """A parameter's place in the model, as one would write it: "hidden.0.kernel"."""
    parts = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
    return ".".join(part for part in parts if part != "value")


def _still(paths, sizes, still, shown: str, how: str) -> Outcome:
    count = sum(n for n, s in zip(sizes, still, strict=True) if s)
    names = [path for path, s in zip(paths, still, strict=True) if s]
    measured = f"{count:,} of {sum(sizes):,} parameters have {how}"
    if not names:
        return Outcome(measured)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if len(names) == len(paths):
        finding = Finding(
            "gradient of a constant",
            f"{measured}, beside {shown}",
            "the loss that is differentiated doesn't depend on the parameters: it was computed "
            "before jax.grad and closed over, it uses another copy of the model, or the optimiser "
            "updates a copy",
            "compute the loss inside the function that is differentiated, from its own argument: "
            "nnx.value_and_grad(lambda m: loss(m, x))(model); then optimizer.update(model, grads)",
            "04",
        )
    else:
        finding = Finding(
            "parameters that don't train",
            f"{measured} ({listed}), beside {shown}",
            "these parameters are not used in the loss, a stop_gradient or a frozen mask lies "
            "before them, or the layer after them was made and never called",
            "follow the first of them through __call__; freeze on purpose only",
            "04",
        )
    return Outcome(measured, (finding,))


def history(case: Case) -> Outcome:
    """Is the loss finite, does it stay down, and if it is flat, is that a fault?"""
    if case.history is None:
        raise Unchecked("no history: pass history=[the loss of every step]")
    losses = case.history
    bad = ~np.isfinite(losses)
    if bad.any():
        first = int(bad.argmax())
        finding = Finding(
            "NaN in training",
            f"{bad.sum():,} of {len(losses):,} losses are not finite, the first at step {first:,}"
            + (f", after {losses[first - 1]:.3g}" if first else ""),
            "too high a learning rate, or a weight that divides by sigma(t) or alpha(t) near 0",
            "clip the gradient's norm, warm the learning rate up, keep times within (0, 1), and "
            "stop at the first loss that is not finite",
            "04",
        )
        return Outcome("the loss is not finite", (finding,))
    parts = np.array_split(losses, _BLOCKS)
    medians = np.array([np.median(part) for part in parts])
    spikes = sum(int((p > _SPIKE * m).sum()) for p, m in zip(parts, medians, strict=True))
    # Spikes of the last block are in its median already, if they are many.
    risen = float(medians[-1] / max(medians.min(), 1e-30))
    # A loss that falls is never far above its first values.
    burst = float(medians.max() / max(abs(losses[:3].mean()), 1e-30))
    measured = (
        f"the loss is at most {burst:.3g} times its first values, and ends at {risen:.3g} times "
        f"the lowest of its {_BLOCKS} parts; {spikes} of {len(losses):,} batches are above "
        f"{_SPIKE:g} times the median around them"
    )
    if risen > _RISEN or burst > _SPIKE or spikes > _SPIKES:
        finding = Finding(
            "unstable training",
            f"{measured}; limits are {_SPIKE:g}, {_RISEN:g} and {_SPIKES}",
            "too high a learning rate without warm-up or clipping; or a weight of the loss that is "
            "huge at a few times",
            "a third of the learning rate, warm-up over the first tenth, the gradient's norm "
            "clipped at 1; a weight that is bounded, such as min-SNR",
            "04",
        )
        return Outcome(measured, (finding,))
    half = _BLOCKS // 2
    early, late = np.median(losses[len(losses) // 2 :][: len(losses) // 4]), np.median(medians[-5:])
    if medians[half] <= 0 or abs(early / late - 1) > _FLAT:
        return Outcome(measured)
    return _plateau(case, measured, float(late / early - 1))


def _plateau(case: Case, measured: str, change: float) -> Outcome:
    """A flat loss: the variance that nothing can remove, or a network that has learnt nothing?"""
    measured += f"; it changes by {change:+.1%} over the last half"
    if case.few_steps:
        return Outcome(measured)
    ratios = case.errors
    error = f"the error is {ratios.mean():.2g} times that of a linear denoiser"
    if ratios.mean() >= 1:  # `linear` says so, with its evidence
        return Outcome(f"{measured}, and {error}")
    note = Finding(
        "plateau that is none",
        f"{measured}, but {error}",
        "most of the loss is the variance of x0 given x_t, which no network can remove; what is "
        "still learnt is small beside it and beside the noise of a batch",
        "judge by samples, or by the loss at a few fixed noise levels, on the same examples with "
        "the same noise each time",
        "13",
    )
    return Outcome(measured, notes=(note,))


def memory(case: Case) -> Outcome:
    """Does a batch of the wanted size fit?"""
    if case.batch_size is None:
        raise Unchecked("no batch size: pass batch_size=n (with loss=… for a step of training)")
    case.state()
    have = _available() if case.memory is None else float(case.memory)
    if not have:
        raise Unchecked("this device doesn't say how much memory it has: pass memory=bytes")
    sizes = [max(1, case.batch_size // 8), case.batch_size]
    small, large = (bytes_of(case, n) for n in sizes)
    each = (large - small) / max(sizes[1] - sizes[0], 1)
    what = "a gradient" if case.loss is not None else "an evaluation"
    measured = (
        f"{what} of {case.batch_size:,} examples takes {large / 1e9:.3g} GB of "
        f"{have / 1e9:.3g} GB, {each / 1e6:.3g} MB for each example"
    )
    if large <= have:
        return Outcome(measured)
    fits = int(max(0, (have - (small - each * sizes[0])) / max(each, 1)))
    finding = Finding(
        "out of memory",
        f"{measured}, as the compiled program says without running",
        "the activations of all examples are kept for the gradient; they grow with the batch",
        f"a batch of {fits:,}; more through steps that add gradients up; or jax.checkpoint around "
        "each block, and bfloat16 activations",
        "22",
    )
    return Outcome(measured, (finding,))


def bytes_of(case: Case, n: int) -> int:
    """What the program for n examples allocates; it is compiled and not run."""
    graph, params, rest = nnx.split(case.model, nnx.Param, ...)
    x = jax.ShapeDtypeStruct((n, *case.x0.shape[1:]), jnp.float32)
    cond = case.cond
    if cond is not None:
        cond = jax.ShapeDtypeStruct((n, *cond.shape[1:]), cond.dtype)

    def forward(params, x, cond):
        return call(nnx.merge(graph, params, rest), x, jnp.full(len(x), 0.5), cond)

    # The key is an argument: numbers of a known key would be drawn while the program is compiled.
    def backward(params, x, cond, key):
        return jax.grad(lambda params: case.loss(nnx.merge(graph, params, rest), x, cond, key))(
            params
        )

    if case.loss is None:
        lowered = jax.jit(forward).lower(params, x, cond)
    else:
        lowered = jax.jit(backward).lower(params, x, cond, case.key("loss"))
    program = lowered.compile()
    found = program.memory_analysis()
    if found is None:
        raise Unchecked("this backend doesn't say what a program allocates")
    return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes


def _available() -> float:
    """Bytes of the default device; of a CPU what the machine has free; 0 if nobody says."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    table = Path("/proc/meminfo")
    if table.exists():
        rows = dict(row.split(":") for row in table.read_text().splitlines())
        return 1024 * float(rows["MemAvailable"].split()[0])
    return (
        float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        if hasattr(os, "sysconf")
        else 0.0
    )
