"""Wrong answers that no classic mistake describes, as patches to the masters' solutions.

Each shows something that a function of the right arguments can't: a wrong shape, type or number of
results, an overflow, or a mistake that must be told by how the numbers differ.
"""

from typing import NamedTuple


class Slip(NamedTuple):
    """Replaces `old` by `new` in the exercise's answer cell; `says` is part of the message."""

    exercise: str
    old: str
    new: str
    says: str


TABLE = "np.concatenate([[1.0], np.cumprod(1 - betas)])"
POSTERIOR = "on_x0 * x0 + on_x_t * x_t, added"
LOSS = "jnp.mean((output - v) ** 2)"
DDIM = "alpha_s * x0 + direction * eps + np.sqrt(variance) * noise"
CLASSES = "jax.nn.softmax(logits, axis=-1)"
DROPPED = "jnp.where(u < rate, null, labels)"
CONTRAST = "jax.nn.log_softmax(logits, axis=1)"
SDEDIT = "np.sqrt(level) * guide + np.sqrt(1 - level) * noise"
SKY_LAST = "np.vstack([of_each, passed[:, -1]]).T"
BESSEL = "logsumexp(kappa, b=chance * i0e(kappa), axis=1)"
BILL = "price(t) + np.where(corrected, price(s), 0)"
PASTE = "alpha_s * guide + sigma_s * noises[i], free)"

SLIPS = [
    Slip("01.1", "jnp.sqrt(beta) * eps", "beta**2 * eps", "every value differs"),
    Slip("01.2", TABLE, f"{TABLE}[::-1]", "the order along the first axis is reversed"),
    Slip("01.4", "np.arange(T + 1) / T", "np.linspace(0, 1, T)", "expected shape"),
    Slip("01.6", "jnp.stack(path)", "path[-1]", "expected shape"),
    Slip("02.1", "/ alpha", "/ alpha**3", "one and the same factor"),
    Slip("02.2", "mean + gain", "mean + 2 * gain", "every value"),
    Slip("02.4", "2 * sigma**2", "0 * sigma**2", "expected finite numbers"),
    Slip("02.5", "/ det", "/ det**2", "one and the same factor"),
    Slip("03.1", POSTERIOR, POSTERIOR.removesuffix(", added") + " if True else added", "one array"),
    Slip("03.2", LOSS, LOSS.replace("2)", "2, axis=0)"), "expected shape"),
    Slip("03.3", "on_guess * x0_hat", "x0_hat", "every value differs"),
    Slip("03.4", "return average", "return params.mean(0)", "differ"),
    Slip("04.1", "scale[:, None, None]", "scale[:, :, None, None]", "shape"),
    Slip("04.7", "sigma**2 / alpha", "sigma**2 / alpha**3", "one and the same factor"),
    Slip("05.2", "+ c**2 * doubt", "+ c**3 * doubt", "differ"),
    Slip("05.4", "x0 > 1 - half", "x0 > 99", "differ"),
    Slip("06.2", DDIM, f"({DDIM})[0]", "expected shape"),
    Slip("06.3", "+ step * eps", "+ step * eps**2", "every value"),
    Slip("06.4", " / (lengths[0] * lengths[1])", "", "expected finite numbers"),
    Slip("06.6", "if low > 0:", "if True:", "expected finite numbers"),
    Slip("06.7", "/ (power + 1)", "/ power", "expected finite numbers"),
    Slip("07.7", "gap / variance", "-gap / variance", "the sign"),
    Slip(
        "07.7",
        CLASSES,
        "jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True)",
        "expected finite numbers",
    ),
    Slip("07.2", DROPPED, f"{DROPPED} * 1.0", "whole numbers"),
    Slip("07.4", "jnp.concatenate([t, t])", "t", "expected shape"),
    Slip("08.1", f"return {SDEDIT}", f"_ = {SDEDIT}", "returned None"),
    Slip("08.5", PASTE, PASTE.replace("free", "x"), "differ"),
    Slip(
        "15.2",
        CONTRAST,
        "jnp.log(jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True))",
        "expected finite numbers",
    ),
    Slip("15.2", CONTRAST, "jnp.log(jax.nn.softmax(logits, axis=1) + 1e-8)", "the largest error"),
    Slip("23.2", "np.full(len(t), 1 / k)", "1 / k", "expected shape"),
    Slip("23.3", "return patch * buckets", "return 1.0 * patch * buckets", "whole numbers"),
    Slip("24.1", SKY_LAST, SKY_LAST.removesuffix(".T"), "its axes are in another order"),
    Slip("24.2", "sigma[:, None]", "jnp.sqrt(1 - alpha**2)[:, None]", "differ"),
    Slip("24.2", "error**2 / 2", "error**2", "one and the same factor, about 2"),
    Slip("24.3", "gain * x_t, T), nats", "gain * x_t, T), nats[None]", "expected shape"),
    Slip("24.4", 'np.einsum("bij,bijd->bid", push, between), new', "new", "a tuple of 2"),
    Slip("24.5", BESSEL, "np.log(np.i0(kappa) @ chance)", "every value differs"),
    Slip("24.6", "if sigma < period / 3:", "if sigma < 1 / 3:", "expected finite numbers"),
    Slip("25.1", "return dot * s * r,", "return dot.astype(int),", "floating-point numbers"),
    Slip("25.1", "D = len(W)", "D = len(x)", "your code raised"),
    Slip("25.2", "return out", "return out[out != 0]", "expected shape"),
    Slip("25.3", "return best,", "return keys[best],", "expected shape"),
    Slip("25.3", "sides * K * tail", "np.nan * tail", "expected finite numbers"),
    Slip("25.4", "far[0] - 1e-6)", "far[0] - 1e-6) <= 0.05", "floating-point numbers"),
    Slip("25.5", "np.array([f, c, lucky", "np.array([c, f, lucky", "but in another order"),
    Slip("25.6", "min(enough)", "max(latency)", "the value is"),
    Slip("25.6", "np.array(latency), min(enough)", "np.array(latency)", "tuple of 2"),
    Slip("26.1", f"return {BILL}", f"return ({BILL}) * 1.0", "whole numbers"),
    Slip("26.2", "np.sum((mean - means) ** 2 + (std - stds) ** 2)", "(mean - means) ** 2", "shape"),
    Slip("26.3", "images[images >= 0]", "images", "raised ValueError"),
    Slip("26.4", "np.stack(shares)", "np.stack(shares)[:, None]", "with the right numbers in it"),
    Slip("26.5", "np.std(phi_a", "1.96 * np.std(phi_a", "one and the same factor"),
]
