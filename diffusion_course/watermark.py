"""A mark in the initial noise, that is found again by running the sampler backwards.

The signs of the noise are those of a secret key and its magnitudes are random. For somebody without
the key the noise is exactly N(0, I), and so is each picture exactly as likely as without the mark.
"""

import hashlib
import hmac

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import norm

from diffusion_course import checks


def signs(secret: bytes, nonce: str, shape: tuple[int, ...]) -> np.ndarray:
    """The key of one picture: +1 and −1, as good as random for anybody without the secret.

    HMAC-SHA256 of the nonce and a counter. One secret serves any number of pictures if each has a
    nonce of its own. With one nonce for all, every picture starts in the same orthant.

    Args:
      secret: at least 16 bytes.
      nonce: names the picture, the user or the day.
      shape: of the noise, without the batch.

    Returns: float32 of this shape. Raises: ValueError for a short secret or an empty shape.

    >>> signs(bytes(16), "picture 7", (2, 4)).tolist()
    [[-1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, 1.0]]
    """
    if not isinstance(secret, bytes) or len(secret) < 16:
        raise ValueError("secret must be at least 16 bytes")
    count = int(np.prod(shape))
    if count < 1:
        raise ValueError(f"shape must hold at least one number, got {shape}")
    blocks = [
        hmac.new(secret, f"{i}|{nonce}".encode(), hashlib.sha256).digest()
        for i in range(-(-count // 256))
    ]
    bits = np.unpackbits(np.frombuffer(b"".join(blocks), np.uint8))[:count]
    return (2 * bits.astype(np.float32) - 1).reshape(shape)


def mark(noise: Array, key: Array, share: float = 1.0) -> Array:
    """Gives noise the signs of a key, and leaves its magnitudes.

    Over random keys the result is N(0, I) if the noise is: a normal number's sign and magnitude are
    independent. The correlation with the key is √(2/π)·share = .80·share on average.

    Args:
      noise: [B, …].
      key: from `signs`: one for all pictures […], or one for each [B, …].
      share: of the places that are marked, in [0, 1]; they are spread evenly.

    Returns: [B, …]. Raises: ValueError for a key of another shape, or a share outside [0, 1].
    Source: Yang et al. 2024, section 4 (Gaussian Shading, arXiv:2404.04956), one bit per place.
    """
    noise = checks.state("noise", noise)
    checks.broadcasts("key", key, "noise", noise)
    share = float(checks.number("share", share))
    checks.within("share", share, 0, 1)
    places = int(np.prod(noise.shape[1:]))
    # Multiples of the golden ratio, modulo 1, fill the interval evenly: so do the places here.
    order = np.argsort(np.arange(places) * (np.sqrt(5) - 1) / 2 % 1)
    marked = (np.argsort(order) < round(share * places)).reshape(noise.shape[1:])
    return jnp.where(marked, jnp.abs(noise) * key, noise)


def score(noise: Array, key: Array) -> Array:
    """How much noise agrees with a key: ``Σ s·z / ‖z‖`` for each picture [B].

    For a key that was drawn without looking at the picture its mean is 0 and its variance exactly
    1, whatever the noise is, and it is nearly normal. Of a marked picture it is √d times the
    correlation of its noise with its key.

    Args:
      noise: what `editing.invert` found [B, …].
      key: from `signs`, as in `mark`.

    Raises: ValueError for a key of another shape.
    """
    noise = checks.state("noise", noise)
    checks.broadcasts("key", key, "noise", noise)
    axes = tuple(range(1, noise.ndim))
    length = jnp.sqrt(jnp.sum(noise**2, axis=axes))
    return jnp.sum(noise * key, axis=axes) / jnp.where(length > 0, length, 1.0)


def p_value(scores, tried: int = 1):
    """Probability that an unmarked picture has such a score or a higher one, by the normal law.

    Args:
      scores: from `score`, the highest one of each picture if several keys were tried.
      tried: with how many keys: the highest of n independent scores is higher by chance.

    Returns: float64 of the shape of scores. Raises: ValueError for fewer than one key.

    >>> print(p_value(2.3263).round(4), p_value(2.3263, tried=100).round(2))
    0.01 0.63
    """
    tried = checks.integer("tried", tried, 1)
    # 1 − (1 − p)^n, of which nothing is lost where p is tiny.
    return -np.expm1(tried * norm.logcdf(np.asarray(scores, np.float64)))


def surely_below(scores):
    """A bound on the p-value that needs no normal law: ``exp(−score²/2)``, 1 for negative scores.

    It holds for every picture and every d, if the key's signs are random.

    Source: Hoeffding 1963, theorem 2, for a sum of signs with weights z/‖z‖.
    """
    return np.exp(-(np.maximum(np.asarray(scores, np.float64), 0) ** 2) / 2)


def threshold(false_alarms: float = 0.01) -> float:
    """The score that an unmarked picture exceeds with this probability.

    >>> round(threshold(0.01), 3)
    2.326
    """
    checks.within("false_alarms", false_alarms, 0, 1, ends="()")
    return float(norm.isf(false_alarms))


def needed_correlation(places: int, false_alarms: float = 0.01, misses: float = 0.01) -> float:
    """The correlation of noise and key at which a picture of so many pixels is found.

    The score must have the mean z(false alarms) + z(misses), and it is √d times the correlation.
    Its own spread is taken as 1. Where the correlation differs from picture to picture, more are
    missed.

    Args:
      places: d, pixels times channels.
      false_alarms: allowed share among unmarked pictures, in (0, 1).
      misses: allowed share among marked pictures, in (0, 1).

    Raises: ValueError for a value outside its range.

    >>> [round(needed_correlation(d), 3) for d in (64, 784)]
    [0.582, 0.166]
    """
    places = checks.integer("places", places, 1)
    return (threshold(false_alarms) + threshold(misses)) / float(np.sqrt(places))
