"""Wrong answers to the exercises of chapter 04."""

from mutants import Mutant

SCALED = "normal * (1 + scale[:, None, None]) + shift[:, None, None]"
PRODUCTS = "q @ k.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])"
GRADIENT = "(sizes[:, None] * gradients).sum(0) / sizes.sum()"
CLIPPED = "gradient * jnp.minimum(1, limit / jnp.linalg.norm(gradient))"
STEP = "params = params - rate * gradient "

MUTANTS = [
    Mutant("04.1", "(1 + scale[:, None, None])", "scale[:, None, None]", "is added to 1"),
    Mutant(
        "04.1",
        SCALED,
        "normal * (1 + shift[:, None, None]) + scale[:, None, None]",
        "scale and shift are exchanged",
    ),
    Mutant("04.1", "(1, 2, 4)", "(0, 1, 2, 4)", "mixes the images of the batch"),
    Mutant("04.1", "(1, 2, 4)", "(1, 2)", "over each channel alone"),
    Mutant("04.1", "(1, 2, 4)", "(4,)", "over channels alone"),
    Mutant(
        "04.1",
        "    batch, height",
        "    h = h * (1 + scale[:, None, None]) + shift[:, None, None]\n"
        "    scale = shift = jnp.zeros_like(scale)\n    batch, height",
        "come after the norm",
    ),
    Mutant("04.1", "scale[:, None, None]", "scale[:, :, None, None]", "shape"),
    Mutant("04.2", "1000 * t", "t", "without the factor 1000"),
    Mutant(
        "04.2",
        "[jnp.cos(angles), jnp.sin(angles)]",
        "[jnp.sin(angles), jnp.cos(angles)]",
        "the cosines come first",
    ),
    Mutant("04.2", "jnp.arange(half) / half", "jnp.arange(half) / (half - 1)", "dim/2 − 1"),
    Mutant("04.2", "jnp.arange(half) / half", "jnp.arange(half) / dim", "yours by dim"),
    Mutant(
        "04.2",
        "jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)",
        "jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1).reshape(len(t), dim)",
        "yours alternate",
    ),
    Mutant("04.3", " / jnp.sqrt(q.shape[-1])", "", "divided by √d, or the softmax"),
    Mutant("04.3", "jnp.sqrt(q.shape[-1])", "q.shape[-1]", "yours by d"),
    Mutant("04.3", "axis=-1", "axis=-2", "yours of each key"),
    Mutant("04.3", PRODUCTS, "k @ q.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])", "are exchanged"),
    Mutant("04.3", "@ v", "@ k", "yours the keys"),
    Mutant("04.3", "jax.nn.softmax(products, axis=-1)", "products", "without a softmax"),
    Mutant("04.4", GRADIENT, "gradients.mean(0)", "counts twice"),
    Mutant("04.4", GRADIENT, "gradients.sum(0)", "not their sum"),
    Mutant("04.4", CLIPPED, "gradient", "clipping is missing"),
    Mutant("04.4", CLIPPED, "jnp.clip(gradient, -limit, limit)", "not each of its entries"),
    Mutant(
        "04.4",
        "jnp.minimum(1, limit / jnp.linalg.norm(gradient))",
        "limit / jnp.linalg.norm(gradient)",
        "always stretched",
    ),
    Mutant(
        "04.4",
        "    gradient = (sizes",
        "    length = jnp.linalg.norm(gradients, axis=1, keepdims=True)\n"
        "    gradients = gradients * jnp.minimum(1, limit / length)\n"
        "    limit = jnp.inf\n    gradient = (sizes",
        "yours clips every part",
    ),
    Mutant("04.5", "jnp.sqrt(mean_square)", "mean_square", "to the root of the mean square"),
    Mutant("04.5", "losses / density", "losses * density", "counts half, not twice"),
    Mutant("04.5", "root / root.mean()", "root", "has the mean 1 over all parts"),
    Mutant("04.5", "root / root.mean()", "root / root.sum()", "times the number of parts"),
    Mutant("04.6", STEP, "params = params - (rate * gradient).astype(jnp.bfloat16) ", "differ"),
    Mutant(
        "04.6",
        STEP,
        "params = (params.astype(jnp.bfloat16) - (rate * gradient).astype(jnp.bfloat16))"
        ".astype(jnp.float32) ",
        "eight bits are too few",
    ),
    Mutant(
        "04.6",
        "decay * ema + (1 - decay) * params",
        "(1 - decay) * ema + decay * params",
        "factors of the average are exchanged",
    ),
    Mutant(
        "04.6", "(1 - decay) * params", "(1 - decay) * (params + rate * gradient)", "after the step"
    ),
    Mutant("04.6", STEP, "params = params + rate * gradient ", "go against the gradient"),
    Mutant(
        "04.6",
        STEP,
        "before = params\n"
        "    params = (params.astype(jnp.bfloat16) - (rate * gradient).astype(jnp.bfloat16))"
        ".astype(jnp.float32)\n    return params, decay * ema + (1 - decay) * before ",
        "both bugs are still there",
    ),
    Mutant("04.7", "sigma**2 / alpha * slope", "slope", "that is the derivative alone"),
    Mutant("04.7", "sigma**2 / alpha", "sigma**2", "α is missing"),
    Mutant("04.7", "sigma**2 / alpha", "sigma / alpha", "yours has σ"),
    Mutant(
        "04.7",
        "sigma**2 / alpha * slope",
        "jnp.sqrt(sigma**2 / alpha * slope)",
        "that is the standard deviation",
    ),
]
