"""Wrong answers to the exercises of chapter 04."""

from mutants import Mutant

SCALED = "normal * (1 + scale[:, None, None]) + shift[:, None, None]"
PRODUCTS = "q @ k.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])"
GRADIENT = "(sizes[:, None] * gradients).sum(0) / sizes.sum()"
CLIPPED = "gradient * jnp.minimum(1, limit / jnp.linalg.norm(gradient))"
STEP = "params = params - rate * gradient "
NORM = "((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(h.shape)"
GROUPED = "h.reshape(batch, height, width, groups, channels // groups)\n    inside = (1, 2, 4)"

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
    Mutant(
        "04.1",
        "batch, height, width, channels = h.shape",
        "(batch, height, width, channels), groups = h.shape, 1",
        "one for all channels",
    ),
    Mutant(
        "04.1",
        GROUPED,
        "h.reshape(batch, height, width, channels // groups, groups)\n    inside = (1, 2, 3)",
        "are taken in turn",
    ),
    Mutant("04.1", "jnp.sqrt(variance + 1e-5)", "(variance + 1e-5)", "a root is missing"),
    Mutant("04.1", "grouped.var(inside,", "grouped.var(inside, ddof=1,", "not by one less"),
    Mutant("04.1", NORM, NORM.replace(" + 1e-5", ""), "is blown up"),
    Mutant(
        "04.1",
        "jnp.sqrt(variance + 1e-5)",
        "(jnp.sqrt(variance) + 1e-5)",
        "is added to the root",
    ),
    Mutant("04.1", NORM, NORM.replace("1e-5", "1e-6"), "yours is 1e-6"),
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
    Mutant("04.3", "q.shape[-1]", "q.shape[1]", "the number of tokens"),
    Mutant("04.3", "axis=-1", "axis=-2", "yours of each key"),
    Mutant("04.3", PRODUCTS, "k @ q.transpose(0, 2, 1) / jnp.sqrt(q.shape[-1])", "are exchanged"),
    Mutant("04.3", "@ v", "@ k", "yours the keys"),
    Mutant("04.3", "jax.nn.softmax(products, axis=-1)", "products", "without a softmax"),
    Mutant("04.4", GRADIENT, "gradients.mean(0)", "counts twice"),
    Mutant("04.4", GRADIENT, "gradients.sum(0)", "not their sum"),
    Mutant("04.4", " / sizes.sum()", "", "by the number of all images"),
    Mutant("04.4", CLIPPED, "gradient", "clipping is missing"),
    Mutant("04.4", "jnp.minimum", "jnp.maximum", "only ever shortens"),
    Mutant("04.4", CLIPPED, "jnp.clip(gradient, -limit, limit)", "not each of its entries"),
    Mutant(
        "04.4",
        "jnp.minimum(1, limit / jnp.linalg.norm(gradient))",
        "limit / jnp.linalg.norm(gradient)",
        "stretches a short gradient",
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
    Mutant("04.5", "root / root.mean()", "root / root[part].mean()", "those that were drawn"),
    Mutant("04.5", "root / root.mean()", "root / root.sum()", "times the number of parts"),
    Mutant(
        "04.6",
        STEP,
        "params = params - (rate * gradient).astype(jnp.bfloat16) ",
        "the step itself is still rounded",
    ),
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
    Mutant("04.7", "sigma**2 / alpha", "alpha**2 / sigma", "σ and α have changed places"),
    Mutant("04.7", "sigma**2 / alpha", "sigma**2 / alpha**2", "one and the same factor"),
    Mutant("04.7", "(x, alpha, sigma).sum", "(x, sigma, alpha).sum", "takes α first"),
    Mutant("04.7", ".sum()", ".mean()", "the gradient of a mean"),
    Mutant(
        "04.7",
        "sigma**2 / alpha * slope",
        "jnp.sqrt(sigma**2 / alpha * slope)",
        "that is the standard deviation",
    ),
]
