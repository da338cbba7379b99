"""Two more ways to learn from a teacher: jumps that may end anywhere, and a dial for guidance.

`flow_map` has the losses of one equation each. Here a consistency trajectory model compares two
ways by where they lead at s = 0, and one network learns its guided teacher for every scale at once,
which halves the evaluations of guidance.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from diffusion_course import checks
from diffusion_course.denoiser import Denoiser, denoiser
from diffusion_course.flow_map import Distance, Jump, consistency_loss, land, of_denoiser, squared
from diffusion_course.guidance import classifier_free_batched
from diffusion_course.losses import stratified_times
from diffusion_course.parameterization import determinant
from diffusion_course.process import Process, add_noise, expand

# (key, n) -> t, u, s: where a jump begins, where the teacher stops, where the jump ends; each [n].
ThreeTimes = Callable[[Array, int], tuple[Array, Array, Array]]


def ordered_times(key: Array, n: int) -> tuple[Array, Array, Array]:
    """Times t in (0, 1], s uniform in [0, t], and u uniform between them.

    >>> t, u, s = ordered_times(jax.random.key(0), 1000)
    >>> bool(jnp.all((0 <= s) & (s <= u) & (u <= t) & (t > 0) & (t <= 1)))
    True
    """
    t, place, share = jax.random.uniform(key, (3, n), jnp.float32)
    t = 1 - t  # uniform draws from [0, 1)
    s = place * t
    return t, s + share * (t - s), s


def trajectory_loss(
    G: Jump,
    target: Jump,
    p: Process,
    x0: Array,
    key: Array,
    *,
    teacher: Denoiser,
    teacher_steps: int = 1,
    times: ThreeTimes = ordered_times,
    distance: Distance = squared,
) -> Array:
    """Consistency trajectories: a jump from t to s is the teacher's way to u and a jump from there.

    Both ends are states at s. They are compared after the target has moved them to the data, so
    that one distance counts alike for every s. The gradient flows through that last jump into the
    first, and never into the end that the teacher's way leads to.

    Args:
      G: the jump that is learnt.
      target: the same with averaged weights, which must carry no gradient.
      p: the process.
      x0: data [B, …].
      key: a random key.
      teacher: the denoiser that leads from t to u; it may be guided.
      teacher_steps: of DDIM, equally long, on its way, at least 1.
      times: draws t, u and s.
      distance: of an error of x0.

    Raises: ValueError for fewer than one step.
    Source: Kim et al. 2024, section 3.2 (arXiv:2310.02279), without its adversarial and denoising
    parts; the latter is `losses.diffusion_loss` of G(x, t, t).
    """
    teacher_steps = checks.integer("teacher_steps", teacher_steps, 1)
    key_times, key_noise = jax.random.split(key)
    t, u, s = times(key_times, x0.shape[0])
    x = add_noise(p, x0, jax.random.normal(key_noise, x0.shape), t)

    led = x
    for i in range(teacher_steps):
        begin, end = (t + (u - t) * k / teacher_steps for k in (i, i + 1))
        led = land(p, of_denoiser(teacher), led, begin, end)
    wanted = land(p, target, led, u, s)
    reached = land(p, G, x, t, s)

    at_data = jnp.zeros_like(s)
    wanted = jax.lax.stop_gradient(land(p, target, wanted, s, at_data))
    return jnp.mean(distance(land(p, target, reached, s, at_data) - wanted))


def with_scale(model, w: Array, most: float) -> Callable:
    """A network that is told its guidance scale, as an ordinary ``model(x, t, cond)``.

    Args:
      model: ``model(x, t, cond, extras)``, built with ``extras=1``: its extra number is w/most.
      w: guidance scales in [0, most], a scalar or [B].
      most: the largest scale that it was trained for, positive.

    Raises: ValueError for another most, or for a concrete w outside the range.
    """
    checks.above("most", most, 0)
    checks.within("w", w, 0, most)

    def told(x, t, cond):
        share = jnp.broadcast_to(jnp.asarray(w, jnp.float32) / most, x.shape[:1])
        return model(x, t, cond, share[:, None])

    return told


def scale_loss(
    model, teacher, p: Process, kind: str, x0: Array, labels: Array, null: int, key: Array,
    *, most: float,
) -> Array:  # fmt: skip
    """Guidance distilled: told w, the network answers at once what its teacher needs two calls for.

    w is drawn uniformly from [0, most] for each example. The error is that of a prediction of the
    given kind.

    Args:
      model: ``model(x, t, cond, extras)``, built with ``extras=1``; see `with_scale`.
      teacher: ``model(x, t, cond)``, trained with label dropout.
      p: the process.
      kind: what both predict.
      x0: data [B, …].
      labels: whole numbers [B].
      null: the teacher's label for "no label".
      key: a random key.
      most: the largest scale, positive.

    Returns: a scalar. Raises: as `with_scale` and `guidance.classifier_free_batched`.
    Source: Meng et al. 2023, section 3.1 (arXiv:2210.03142).
    """
    checks.above("most", most, 0)
    key_scale, key_time, key_noise = jax.random.split(key, 3)
    w = jax.random.uniform(key_scale, x0.shape[:1], jnp.float32, maxval=most)
    t = stratified_times(key_time, x0.shape[0])
    x = add_noise(p, x0, jax.random.normal(key_noise, x0.shape), t)

    without = jnp.full_like(jnp.asarray(labels, jnp.int32), null)
    guided = classifier_free_batched(teacher, p, kind, labels, without, w)
    wanted = jax.lax.stop_gradient(guided(x, t))
    told = denoiser(with_scale(model, w, most), p, kind, labels)
    in_units = expand(determinant(kind, p, t) / p.sigma(t), x)
    return jnp.mean(squared(in_units * (told(x, t) - wanted)))


def begin_as(student: nnx.Module, teacher: nnx.Module) -> None:
    """Gives a student its teacher's weights; what it is told besides says nothing yet.

    The embedding of each further number ends in zeros. So the student begins as the teacher,
    whatever it is told, and the first gradient already reaches that embedding.

    Args:
      student: as the teacher, and built with extras; it is changed.
      teacher: without extras.

    Raises: ValueError if the student is told nothing that the teacher is not told, or they differ
      in anything else.
    """
    told, known = (nnx.state(m, nnx.Param) for m in (student, teacher))
    paths = [{path: leaf.shape for path, leaf in nnx.to_flat_state(s)} for s in (told, known)]
    new = paths[0].keys() - paths[1].keys()
    same = all(paths[0].get(path) == shape for path, shape in paths[1].items())
    if not same or not new or any(path[:2] != ("embed", "extras") for path in new):
        raise ValueError(
            "student must be the teacher with extras, and both otherwise alike, got "
            f"{len(new)} new arrays and {'the same' if same else 'other'} old ones"
        )
    nnx.update(student, known)
    for embedding in student.embed.extras:
        for parameter in (embedding.second.kernel, embedding.second.bias):
            parameter[...] = jnp.zeros_like(parameter[...])


def scaled_consistency_loss(
    model, averaged, teacher, p: Process, kind: str, x0: Array, labels: Array, null: int,
    key: Array, *, steps: int, skip: int, least: float, most: float, distance: Distance = squared,
) -> Array:  # fmt: skip
    """Consistency distillation for every guidance scale at once: that of latent consistency models.

    w is drawn uniformly from [least, most] for each example. The teacher's step is guided by w,
    and both ends of it are mapped to the data by a network that is told the same w and the label:
    ``f(x_t, t, w) = f(x_s, s, w)``. Guidance is in the teacher's step alone.

    Args:
      model: ``model(x, t, cond, extras)``, built with ``extras=1``; see `with_scale`.
      averaged: the same with averaged weights, which carries no gradient.
      teacher: ``model(x, t, cond)``, trained with label dropout.
      p: the process.
      kind: what all of them predict.
      x0: data [B, …], such as latents.
      labels: whole numbers [B].
      null: the teacher's label for "no label".
      key: a random key.
      steps: of the grid of times.
      skip: length of the teacher's step, in steps of the grid; both as in
        `flow_map.consistency_loss`.
      least: the smallest scale, at least 0.
      most: the largest scale, above least.
      distance: of an error.

    Returns: a scalar.
    Raises: ValueError for other scales, and as `with_scale`, `guidance.classifier_free_batched` and
      `flow_map.consistency_loss`.
    Source: Luo et al. 2023, sections 4.2 and 4.3 (arXiv:2310.04378). Their w is ours less 1.
    """
    checks.above("most", most, 0)
    checks.within("least", least, 0, most, ends="[)")
    key_scale, key_loss = jax.random.split(key)
    w = jax.random.uniform(key_scale, x0.shape[:1], jnp.float32, least, most)
    without = jnp.full_like(jnp.asarray(labels, jnp.int32), null)

    def jump(network):
        return of_denoiser(denoiser(with_scale(network, w, most), p, kind, labels))

    return consistency_loss(
        jump(model), jump(averaged), p, kind, x0, key_loss, steps=steps, skip=skip,
        teacher=classifier_free_batched(teacher, p, kind, labels, without, w), distance=distance,
    )  # fmt: skip
