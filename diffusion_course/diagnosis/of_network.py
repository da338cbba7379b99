"""Checks of the network alone: are its numbers finite, and does it listen to what it is told?"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffusion_course import checks
from diffusion_course.diagnosis.case import Case, Outcome, Unchecked, call, compiled, relative
from diffusion_course.diagnosis.report import Finding
from diffusion_course.parameterization import determinant

# A change of the output that is taken for none. Rounding in float32 gives about 1e-6; the weakest
# answer of a released network is 9e-3, to a control (benchmarks/results/diagnosis.json).
DEAF = 1e-3
# Error with a label against that without: for a label that says nothing it is 1, on average.
_NO_HELP = 1.05
# Hidden numbers against parameters: a position's table may be as large as that, and few layers are
# as small.
_HIDDEN = 0.1


def pixels(case: Case) -> Outcome:
    """Are images between −1 and 1, rather than 0 and 1 or 0 and 255?"""
    low, high = float(case.x.min()), float(case.x.max())
    measured = f"the data lie in [{low:.3g}, {high:.3g}]"
    if case.x.ndim != 4:
        raise Unchecked("the data are no images")
    if low >= 0 or max(-low, high) > 20:
        return Outcome(
            measured,
            (
                Finding(
                    "data range",
                    f"{measured}, with mean {case.x.mean():.3g} and standard deviation "
                    f"{case.x.std():.3g}; images in [−1, 1] lie on both sides of 0",
                    "pixels 0 … 1 or 0 … 255 were not scaled: the noise then has another strength "
                    "than the schedule says, and the start at t = 1 another mean than the data",
                    "x = pixels / 127.5 − 1, or 2·x − 1, before training and before comparing",
                    "01",
                ),
            ),
        )
    return Outcome(measured)


def finite(case: Case) -> Outcome:
    """Are the parameters and the output finite, and can x0 be had at every time of the grid?"""
    if case.module:
        leaves = jax.tree.leaves(nnx.state(case.model, nnx.Param))
        bad = sum(int(jnp.size(a) - jnp.isfinite(a).sum()) for a in leaves)
        count = sum(int(jnp.size(a)) for a in leaves)
        if bad:
            finding = Finding(
                "NaN in the parameters",
                f"{bad:,} of {count:,} parameters are not finite",
                "a step of training was not finite: too high a learning rate, a loss that divides "
                "by sigma(t) or alpha(t) near 0, or half precision that overflowed",
                "stop at the first loss that is not finite and look at the batch before it; clip "
                "the gradient's norm, warm the learning rate up. An average of the weights is no "
                "cure: it keeps a NaN for ever",
                "04",
            )
            return Outcome(f"{bad:,} parameters of {count:,} are not finite", (finding,))
    x = jax.random.normal(case.key("finite"), case.x0.shape)
    start, silent = float(case.times[0]), True
    for t in (start, 0.5, 1e-3):
        x_t = x * case.process.sigma(t)
        y = case.predict(case.scaled(x_t, t), t, case.cond)
        checks.same_shape("the model's output", y, "x", x)
        silent &= not y.any()
        bad = float(jnp.mean(~jnp.isfinite(y)))
        if bad:
            finding = Finding(
                "NaN in the output",
                f"{bad:.0%} of the output is not finite at t = {t:g}, for finite parameters",
                "a division by sigma(t), alpha(t) or a norm that is 0, a logarithm of 0, or half "
                "precision that overflows inside the network",
                "evaluate the network layer by layer at this t (jax.config.update('jax_debug_nans',"
                " True) names the operation), and add the missing epsilon",
                "04",
            )
            return Outcome(f"the output at t = {t:g} is not finite", (finding,))
    if silent:
        finding = Finding(
            "nothing learnt",
            "the output is exactly 0 for every example",
            "the last layer still has the zeros that it starts from: the network was not trained, "
            "its weights were not loaded, or another copy of it was trained",
            "compare the model's parameters before and after one step, and after loading",
            "04",
        )
        return Outcome("the output is 0", (finding,))
    if float(determinant(case.kind, case.process, start)) == 0:
        finding = Finding(
            "NaN at the start",
            f'kind "{case.kind}" has determinant 0 at t = {start:g}, where alpha is '
            f"{float(case.process.alpha(start)):.2g}: x0 = (x_t − sigma·eps)/alpha is 0/0",
            "a prediction of the noise says nothing about x0 where no signal is left",
            'predict "v", "x0" or "flow", or use a process that keeps some signal at t = 1',
            "02",
        )
        return Outcome("x0 cannot be recovered at the start", (finding,))
    return Outcome(f"parameters and output are finite at t = {start:g}, 0.5 and 0.001")


def modes(case: Case) -> Outcome:
    """Is dropout off? (A normalisation by the batch shows in `batch`.)"""
    if not case.module:
        raise Unchecked("the model is a function, and its layers are out of sight")
    found = []
    for _, node in nnx.iter_graph(case.model):
        if isinstance(node, nnx.Dropout) and node.rate > 0 and not node.deterministic:
            found.append(f"Dropout({node.rate:g})")
    if not found:
        return Outcome("no dropout is on")
    listed = ", ".join(sorted(set(found)))
    finding = Finding(
        "training mode",
        f"dropout is on in {len(found)} layer{'s' if len(found) > 1 else ''}: {listed}",
        "model.eval() was not called, so every evaluation of a sampler drops other units",
        "model.eval() before sampling and before measuring, model.train() after it",
        "04",
    )
    return Outcome(finding.evidence, (finding,))


def hidden(case: Case) -> Outcome:
    """Does NNX see all the numbers that the network computes with?"""
    if not case.module:
        raise Unchecked("the model is a function, and its parameters are out of sight")
    graph, state = nnx.split(case.model)

    def run(state, x, t, cond):
        return call(nnx.merge(graph, state), x, t, cond)

    t = jnp.full(len(case.x0), 0.5)
    traced = jax.make_jaxpr(run)(state, case.x0, t, case.cond)
    # Fixed tables, such as those of fast convolutions, are NumPy's arrays; weights are JAX's.
    constants = sum(
        a.size
        for a in traced.consts
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jnp.inexact)
    )
    draws = "random_bits" in str(traced.jaxpr) or "threefry2x32" in str(traced.jaxpr)
    count = sum(int(jnp.size(a)) for a in jax.tree.leaves(nnx.state(case.model, nnx.Param)))
    measured = f"{count:,} parameters, and {constants:,} numbers that are none"
    stochastic = any(isinstance(node, nnx.Dropout) for _, node in nnx.iter_graph(case.model))
    if constants <= _HIDDEN * count and not (draws and not stochastic):
        return Outcome(measured)
    how = "" if constants > _HIDDEN * count else "; random numbers are drawn during a call"
    finding = Finding(
        "hidden layers",
        f"{measured}{how}; more than {_HIDDEN:.0%} is too many for fixed tables",
        "layers are made in a closure, in a plain list outside the module, or anew inside "
        "__call__: NNX doesn't see their weights, and no optimiser trains them",
        "make every layer in __init__ and keep it as an attribute; a list of layers as nnx.data(…)",
        "04",
    )
    return Outcome(measured + how, (finding,))


def time(case: Case) -> Outcome:
    """Does the output change with t, at the same x?"""
    middle = case.levels[len(case.levels) // 2]
    others = [level for level in case.levels if level is not middle]
    if not others:
        raise Unchecked("the process has one of the noise levels only")
    x = case.scaled(middle.x_t, middle.t)
    changes = [
        relative(case.predict(x, level.t, case.cond), middle.y) for level in (others[0], others[-1])
    ]
    span = f"t from {others[0].t:.2g} to {others[-1].t:.2g}"
    measured = f"the output changes by {max(changes):.2g} of its size for {span} at the same x"
    if max(changes) >= DEAF:
        return Outcome(measured)
    finding = Finding(
        "dead time embedding",
        f"{measured}; below {DEAF:g} is as good as nothing",
        "the embedding of the time is not added to the features, comes from an integer t/T that is "
        "always 0, or its sinusoids are made for steps 0 … 1000 and get t in [0, 1]",
        "follow the embedding to the first layer that uses it; stretch t by 1,000 before sinusoids "
        "that are made for step numbers",
        "04",
    )
    return Outcome(measured, (finding,))


def condition(case: Case) -> Outcome:
    """Does the output change with the label?"""
    wrong = _other_labels(case)
    changes = [
        relative(case.predict(case.scaled(v.x_t, v.t), v.t, wrong), v.y) for v in case.levels
    ]
    measured = f"another label changes the output by up to {max(changes):.2g} of its size"
    if max(changes) >= DEAF:
        return Outcome(measured)
    finding = Finding(
        "condition ignored",
        f"{measured}; below {DEAF:g} is as good as nothing",
        "the label's vector is made and not used, the label is dropped in every training "
        "step, or the sampler passes the null label for both halves of the guidance",
        "follow the label from the batch to the first layer that uses it; drop it with a rate "
        "of .1 to .2, not 1",
        "07",
    )
    return Outcome(measured, (finding,))


def labels(case: Case) -> Outcome:
    """Do the labels that come with the data make the prediction better?"""
    wrong = _other_labels(case)
    if case.few_steps:
        raise Unchecked("a few-step model gives samples, not the mean that this compares with")
    cond, what = (wrong, "a wrong one") if case.null is None else (case.null, "no label")
    cond = jnp.broadcast_to(jnp.asarray(cond, wrong.dtype), wrong.shape)
    outputs = [case.predict(case.scaled(v.x_t, v.t), v.t, cond) for v in case.levels]
    others = case.errors_of(outputs) / case.linear
    gain = float(case.errors.mean() / max(others.mean(), 1e-30))
    measured = f"with its own label an example's error is {gain:.3g} times that with {what}"
    if gain <= _NO_HELP:
        return Outcome(measured)
    finding = Finding(
        "labels of other images",
        f"{measured}: the labels that come with the data make the prediction no better",
        "images and labels were shuffled apart, classes are counted from 1 here and from 0 there, "
        "or the null label was never trained",
        "look at twenty training images with their labels; shuffle both with one permutation",
        "07",
    )
    return Outcome(measured, (finding,))


def _other_labels(case: Case):
    """For every example the label of another one; Unchecked without any."""
    if case.cond is None:
        raise Unchecked("data holds no labels: pass data=(x, labels)")
    order = _others(np.asarray(case.cond))
    if order is None:
        raise Unchecked("the data have one label only")
    return case.cond[order]


def _others(cond: np.ndarray) -> np.ndarray | None:
    """For every row another one, of another label as far as there is one."""
    rows = len(cond)
    flat = cond.reshape(rows, -1)
    shifted = [np.roll(flat, -k, axis=0) for k in range(rows)]
    different = np.array([(flat != other).any(axis=1).mean() for other in shifted])
    shift = int(different.argmax())
    return (np.arange(rows) + shift) % rows if different[shift] > 0 else None


def batch(case: Case) -> Outcome:
    """Is an example's output its own, whatever else is in the batch?"""
    middle = case.levels[len(case.levels) // 2]
    x = case.scaled(middle.x_t, middle.t)
    kept = len(x) // 2
    others = jnp.concatenate([x[:kept], 3 - x[kept:][::-1]])
    change = relative(case.predict(others, middle.t, case.cond)[:kept], middle.y[:kept])
    measured = f"an example's output changes by {change:.2g} when the rest of the batch does"
    if change < DEAF:
        return Outcome(measured)
    finding = Finding(
        "batch in one example",
        f"{measured}; rounding alone gives about 1e-6",
        "batch normalisation (in training mode, where model.eval() is missing), or a mean over the "
        "axis of the batch: noise levels of one batch are mixed, and a sample depends on which "
        "others are drawn with it",
        "group or layer normalisation, over the axes of one example",
        "04",
    )
    return Outcome(measured, (finding,))


def control(case: Case) -> Outcome:
    """Does another controlling image change the output?"""
    if case.control is None:
        raise Unchecked("no control: pass control=(steer, images), steer(images) -> model")
    steer, images = case.control
    middle = case.levels[len(case.levels) // 2]
    t = jnp.full(len(images), middle.t)

    def steered(images):
        model = steer(images)
        if not callable(model):
            raise ValueError(
                f"control must hold steer(images) -> model(x, t, cond), got {type(model).__name__}"
            )
        return call(model, case.scaled(middle.x_t, middle.t), t, case.cond)

    answer = compiled(steered, images)
    # In reverse order: an image's neighbours in the data may be like it.
    change = relative(answer(images[::-1]), answer(images))
    measured = f"another controlling image changes the output by {change:.2g} of its size"
    if change >= DEAF:
        return Outcome(measured)
    finding = Finding(
        "control ignored",
        f"{measured}; below {DEAF:g} is as good as nothing",
        "the control's last layers are still the zeros that they start from, its gradient never "
        "reaches them, or its strength is 0",
        "train the control alone, with the base frozen, and watch the norm of its joining layers "
        "leave 0",
        "15",
    )
    return Outcome(measured, (finding,))
