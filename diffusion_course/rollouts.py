"""A noise level for each frame: training, sampling along a matrix of times, and longer clips.

A denoiser of clips is ``D(x, t)`` with x [B, F, …] and t [B, F]. For whatever works frame by frame
(adding noise, the algebra of predictions, a sampler's step) the frames are simply a larger batch;
only D sees the clip as a whole.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffusion_course import checks, losses
from diffusion_course.parameterization import target, to_x0
from diffusion_course.process import Process, add_noise
from diffusion_course.samplers import ddim

KINDS = ("full", "pyramid", "autoregressive")

# The times of almost clean frames end here; vp_cosine has noise of standard deviation .09 there.
CLEAN = 0.05

FAINTEST = 0.01  # standard deviation; a visible difference between two frames is far larger

# ``D(x [B, F, …], t [B, F]) -> x0_hat [B, F, …]``
ClipDenoiser = Callable[[Array, Array], Array]


def as_batch(x: Array) -> Array:
    """Frames as examples of a batch: [B, F, …] -> [B·F, …]."""
    return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def denoiser(model, p: Process, kind: str, cond=None) -> ClipDenoiser:
    """The denoiser of a network of clips.

    Args:
      model: ``model(x, t, cond)``, x [B, F, …], t [B, F], such as `models.video.VideoDiT`.
      p: the process.
      kind: what the model predicts; not "edm", which scales what the network reads.
      cond: labels [B] or None.

    Returns: D(x, t) for x [B, F, …] and t [B, F], [F] or a scalar.
    Raises: ValueError for kind "edm" or an unknown one.
    """
    checks.one_of("kind", kind, ("x0", "eps", "v", "score", "flow"))

    def D(x, t):
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:2])
        y = jnp.asarray(model(x, t, cond), jnp.float32)
        checks.same_shape("the model's output", y, "x", x)
        return to_x0(kind, p, as_batch(y), as_batch(x), t.reshape(-1)).reshape(x.shape)

    return D


def frame_times(key: Array, batch: int, frames: int) -> tuple[Array, Array]:
    """Times for training, and which frames count in the loss: float32 and booleans, [B, F] each.

    A third of the clips has one time for all frames, a third has independent times, and in the last
    third some first frames are the context: they are almost clean, do not count, and the others
    share one time. The first third is what a schedule of equal times meets, the last what an
    autoregressive one does; independent times contain both, but hardly ever draw them.

    Args:
      key: a random key.
      batch: B, at least 1.
      frames: F, at least 1; with one frame all thirds are the same.

    Source: independent times: Chen et al. 2024, algorithm 1 (arXiv:2407.01392).
    """
    batch, frames = checks.integer("batch", batch, 1), checks.integer("frames", frames, 1)
    keys = jax.random.split(key, 5)
    shared = jax.random.permutation(keys[0], losses.stratified_times(keys[1], batch))[:, None]
    apart = losses.uniform_times(keys[2], batch * frames).reshape(batch, frames)
    part = (jnp.arange(batch) % 3)[:, None]
    # At least one frame is no context.
    length = jax.random.randint(keys[3], (batch, 1), min(1, frames - 1), max(frames, 1))
    context = (part == 2) & (jnp.arange(frames) < length)
    clean = CLEAN * jax.random.uniform(keys[4], (batch, frames))
    t = jnp.where(part == 1, apart, jnp.broadcast_to(shared, (batch, frames)))
    return jnp.where(context, clean, t), ~context


def clip_loss(model, p: Process, kind: str, x0: Array, cond: Array | None, key: Array) -> Array:
    """The denoising loss of clips with `frame_times`, a scalar: the mean over all that count.

    Args:
      model: ``model(x, t, cond)``, x [B, F, …], t [B, F].
      p: the process.
      kind: what the model predicts, as in `denoiser`.
      x0: clips [B, F, …]; clips of one frame are images.
      cond: labels [B] or None.
      key: a random key.

    Raises: ValueError if x0 is not a floating-point array [B, F, …], or the output has another
      shape.
    Source: Chen et al. 2024, algorithm 1 (arXiv:2407.01392).
    """
    x0 = _clips("x0", x0)
    key_time, key_noise = jax.random.split(key)
    t, counts = frame_times(key_time, *x0.shape[:2])
    eps = jax.random.normal(key_noise, x0.shape, jnp.float32)
    flat = as_batch(x0), as_batch(eps), t.reshape(-1)
    y = jnp.asarray(model(add_noise(p, *flat).reshape(x0.shape), t, cond), jnp.float32)
    checks.same_shape("the model's output", y, "x0", x0)
    error = as_batch(y) - target(kind, p, *flat)
    each = jnp.mean(error.reshape(error.shape[0], -1) ** 2, axis=-1)
    return jnp.sum(each * counts.reshape(-1)) / jnp.maximum(counts.sum(), 1)


def _clips(argument: str, x) -> Array:
    x = checks.state(argument, x)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"{argument} must have shape [B, F, …], got shape {list(x.shape)}")
    return x


# --------------------------------------------------------------------------------------------
# Sampling along a matrix of times
# --------------------------------------------------------------------------------------------


def schedule(kind: str, frames: int, steps: int, delay: int = 1) -> np.ndarray:
    """A matrix of times: row m holds the time of every frame after m steps, float32 [n + 1, F].

    Each frame falls from 1 to 0 in `steps` equal steps, and begins a delay after the one before it:
    ``t[m, f] = clip(1 − (m − delay·f)/steps, 0, 1)``. Without delay all frames are equally noisy;
    with a delay of `steps` a frame begins when the one before it is done.

    Args:
      kind: "full" (delay 0), "autoregressive" (delay = steps), or "pyramid" (the given delay).
      frames: F, at least 1.
      steps: of each frame, at least 1.
      delay: of a pyramid, in [0, steps].

    Returns: n = steps + delay·(F − 1) steps.
    Raises: ValueError for arguments that break these rules.
    Source: Chen et al. 2024, algorithm 2 and appendix (arXiv:2407.01392).

    >>> schedule("pyramid", frames=3, steps=2).tolist()[1]
    [0.5, 1.0, 1.0]
    >>> [len(schedule(kind, 3, 10)) - 1 for kind in KINDS]
    [10, 12, 30]
    """
    checks.one_of("kind", kind, KINDS)
    frames, steps = checks.integer("frames", frames, 1), checks.integer("steps", steps, 1)
    delay = {"full": 0, "autoregressive": steps}.get(kind, delay)
    delay = checks.integer("delay", delay, 0, steps)
    done = np.arange(steps + delay * (frames - 1) + 1)[:, None] - delay * np.arange(frames)
    return (1 - np.clip(done, 0, steps) / steps).astype(np.float32)


def sample(
    p: Process, D: ClipDenoiser, x_start: Array, times, key: Array, eta: float = 0.0
) -> tuple[Array, Array]:
    """Runs DDIM along a matrix of times, as one compiled loop.

    At each step the frames whose time falls move; the others stay as they are, and are still seen
    by D, with their own noise level. So a frame whose column is constant is a condition.

    Args:
      p: the process.
      D: ``D(x [B, F, …], t [B, F])``.
      x_start: states at times[0], float32 [B, F, …].
      times: [n + 1, F] in [0, 1]; no column rises.
      key: a random key; step i uses ``fold_in(key, i)``.
      eta: share of fresh noise, as in `samplers.ddim`.

    Returns: the last state [B, F, …], and the state after every step [n, B, F, …].
    Raises: ValueError for times or states of other shapes, a column that rises, or another eta.

    >>> from diffusion_course import process
    >>> p = process.rectified_flow()
    >>> x, times = jnp.ones((1, 2, 1)), np.array([[1.0, 0.2], [0.5, 0.2], [0.0, 0.2]])
    >>> sample(p, lambda x, t: 0 * x, x, times, jax.random.key(0))[0].ravel().tolist()
    [0.0, 1.0]
    """
    x_start = _clips("x_start", x_start)
    checks.random_key("key", key)
    times = _matrix(times, x_start.shape[1])
    step, shape = ddim(p, eta).step, x_start.shape
    batch, frames = shape[:2]

    def of_frames(x, t):
        """D for frames as a batch: x [B·F, …], t [B·F] or a scalar."""
        t = jnp.broadcast_to(t, batch * frames).reshape(batch, frames)
        return as_batch(D(x.reshape(shape), t))

    def body(x, inputs):
        i, t, s = inputs
        t, s = (jnp.tile(row, batch) for row in (t, s))
        moved, _ = step(of_frames, x, t, s, jax.random.fold_in(key, i), ())
        falls = (s < t).reshape(-1, *(1,) * (x.ndim - 1))
        x = jnp.where(falls, moved, x)
        return x, x

    steps = (np.arange(len(times) - 1, dtype=np.int32), times[:-1], times[1:])
    x, path = jax.lax.scan(body, as_batch(x_start), steps)
    return x.reshape(shape), path.reshape(-1, *shape)


def _matrix(times, frames: int) -> np.ndarray:
    """Times as float32 [n + 1, F]; ValueError if they are of another shape, or a column rises."""
    times = np.asarray(times, np.float32)
    if times.ndim != 2 or times.shape[0] < 2 or times.shape[1] != frames:
        raise ValueError(
            f"times must have shape [n + 1, F] with n >= 1 and F = {frames}, "
            f"got shape {list(times.shape)}"
        )
    checks.time("times", times)
    rises = np.argwhere(np.diff(times, axis=0) > 0)
    if len(rises):
        step, frame = rises[0]
        raise ValueError(
            f"times must not rise along any frame, got {times[step, frame]:g} and then "
            f"{times[step + 1, frame]:g} for frame {frame}"
        )
    return times


def extend(
    p: Process,
    D: ClipDenoiser,
    context: Array,
    times,
    turns: int,
    key: Array,
    *,
    context_time: float = 0.0,
    eta: float = 0.0,
) -> Array:
    """Longer clips: turn after turn, the newest frames are the context of the next ones.

    Each turn denoises a window of C frames of context and N new ones. The context is given noise of
    `context_time` and keeps it; the new frames fall along `times`.

    Args:
      p: the process.
      D: ``D(x [B, C + N, …], t [B, C + N])``.
      context: clean frames to go on from, [B, C, …].
      times: of the new frames, [n + 1, N], such as `schedule` gives; each column from 1.
      turns: how many, at least 1.
      key: a random key.
      context_time: noise level of the context, in [0, 1]; at 0 it is what was drawn, as it is.
      eta: as in `sample`.

    Returns: the new frames, [B, turns·N, …].
    Raises: ValueError for arguments that break these rules.
    Source: Chen et al. 2024, section 3.3 (arXiv:2407.01392), for a context with a little noise.
    """
    context = _clips("context", context)
    checks.random_key("key", key)
    checks.within("context_time", context_time, 0, 1)
    turns = checks.integer("turns", turns, 1)
    kept, new = context.shape[1], np.shape(times)[-1] if np.ndim(times) else 0
    times = _matrix(times, new)
    still = np.full((len(times), kept), context_time, np.float32)
    both = np.concatenate([still, times], axis=1)

    def turn(context, key):
        keys = jax.random.split(key, 3)
        eps = jax.random.normal(keys[0], context.shape, jnp.float32)
        noisy = p.alpha(context_time) * context + p.sigma(context_time) * eps
        shape = (context.shape[0], new, *context.shape[2:])
        noise = p.sigma(1.0) * jax.random.normal(keys[1], shape, jnp.float32)
        start = jnp.concatenate([noisy, noise], axis=1)
        made = sample(p, D, start, both, keys[2], eta)[0][:, kept:]
        return jnp.concatenate([context, made], axis=1)[:, -kept:], made

    _, made = jax.lax.scan(turn, context, jax.random.split(key, turns))
    # [turns, B, N, …] -> [B, turns·N, …]
    made = jnp.moveaxis(made, 0, 1)
    return made.reshape(made.shape[0], turns * new, *made.shape[3:])


# --------------------------------------------------------------------------------------------
# Exact denoisers: of a finite set of clips, and of a Gaussian process
# --------------------------------------------------------------------------------------------


def ideal(p: Process, clips) -> ClipDenoiser:
    """The posterior mean when the data are a finite set of N clips, with a time for each frame.

    ``D(x, t)_f = sum_i w_i·clips_i,f`` with ``w = softmax(−sum_f ‖x_f − alpha_f·clips_i,f‖²/(2·
    sigma_f²))``: one weight for a clip and not for a frame, and therefore the frames agree. A frame
    with less noise than `FAINTEST` counts as one with that much.

    Args:
      p: the process.
      clips: [N, F, …].

    Returns: D(x, t), x [B, F, …], t [B, F], [F] or a scalar.
    Raises: ValueError if clips are no floating-point array [N, F, …]; D, if x is of another shape.
    Source: as `denoiser.ideal`, Karras et al. 2022, appendix B.3 (arXiv:2206.00364).
    """
    clips = _clips("clips", clips)
    points = clips.reshape(*clips.shape[:2], -1)
    half_norms = 0.5 * jnp.sum(points**2, axis=-1)

    def D(x, t):
        x = checks.state("x", x)
        if x.shape[1:] != clips.shape[1:]:
            raise ValueError(
                f"x must hold clips of shape {list(clips.shape[1:])}, as the data does, "
                f"got shape {list(x.shape)}"
            )
        checks.time("t", t)
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:2])
        alpha, variance = p.alpha(t), jnp.maximum(p.sigma(t), FAINTEST) ** 2
        seen = (alpha / variance)[..., None] * x.reshape(*x.shape[:2], -1)
        # ‖x‖² is the same for all clips and leaves the softmax; what remains are two products.
        of_x = jnp.einsum("bfm,nfm->bn", seen, points, precision="highest")
        of_clip = jnp.einsum("bf,nf->bn", alpha**2 / variance, half_norms, precision="highest")
        weights = jax.nn.softmax(of_x - of_clip, axis=-1)
        return jnp.einsum("bn,nfm->bfm", weights, points, precision="highest").reshape(x.shape)

    return D


class GaussianClips:
    """Clips whose frames are a Gaussian vector, the same for each coordinate and independent.

    One coordinate of a clip is N(mean, covariance) over the frames. With a noise level for each
    frame, ``x = A·x0 + S·eps`` with diagonal A and S, and

        E[x0 | x] = mean + covariance·A·(A·covariance·A + S²)⁻¹·(x − A·mean).

    Args:
      p: the process.
      covariance: of the frames, [F, F], symmetric and positive definite.
      mean: of the frames, [F], or one number.

    Raises: ValueError for another shape, or a matrix that is no covariance.
    Source: conditional Gaussians, Bishop 2006, eq. 2.81–2.82.
    """

    def __init__(self, p: Process, covariance, mean=0.0):
        covariance = np.asarray(covariance, np.float64)
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
            raise ValueError(
                f"covariance must have shape [F, F], got shape {list(covariance.shape)}"
            )
        symmetric = np.allclose(covariance, covariance.T)
        if not symmetric or np.linalg.eigvalsh(covariance)[0] <= 0:
            raise ValueError("covariance must be symmetric and positive definite")
        checks.broadcasts("mean", mean, "the frames", covariance[0])
        self.process = p
        self.covariance = jnp.asarray(covariance, jnp.float32)
        self.mean = jnp.broadcast_to(jnp.asarray(mean, jnp.float32), covariance.shape[:1])
        self._root = jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)

    def denoise(self, x: Array, t) -> Array:
        """E[x0 | x]: [B, F, …]; t [B, F], [F] or a scalar."""
        x = checks.state("x", x)
        if x.ndim < 2 or x.shape[1] != len(self.mean):
            raise ValueError(
                f"x must have shape [B, {len(self.mean)}, …], got shape {list(x.shape)}"
            )
        checks.time("t", t)
        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:2])
        return jax.vmap(self._denoise)(x.reshape(*x.shape[:2], -1), t).reshape(x.shape)

    def _denoise(self, x: Array, t: Array) -> Array:
        """One clip: x [F, M], t [F]."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        of_x = alpha[:, None] * self.covariance * alpha + jnp.diag(sigma**2)
        # Both matrices are symmetric: (of_x⁻¹·A·covariance)ᵀ is the gain, small however large x is.
        gain = jnp.linalg.solve(of_x, alpha[:, None] * self.covariance).T
        apart = x - (alpha * self.mean)[:, None]
        return self.mean[:, None] + jnp.matmul(gain, apart, precision="highest")

    def sample(self, key: Array, n: int, shape: tuple[int, ...] = ()) -> Array:
        """n clips of frames of this shape: [n, F, *shape]. Raises: ValueError for n < 1."""
        n = checks.integer("n", n, 1)
        eps = jax.random.normal(key, (n, len(self.mean), *shape), jnp.float32)
        mean = self.mean.reshape(-1, *(1,) * len(shape))
        return mean + jnp.einsum("fg,bg...->bf...", self._root, eps, precision="highest")
