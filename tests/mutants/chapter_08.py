"""Wrong answers to the exercises of chapter 08."""

from mutants import Mutant

START = "np.sqrt(level) * guide + np.sqrt(1 - level) * noise"
GUESS = "jnp.where(mask, known, x0_hat)"
STEP = "abar_s**0.5 * guess + (1 - abar_s) ** 0.5 * eps"
KEPT = "(1 - kept) ** 0.5 * noise"
JUMP = f"kept**0.5 * x_s + {KEPT}"
INSIDE = "jnp.where(inside, x0_hat + colour[:, None, None, :] - mean, x0_hat)"
MEAN = "jnp.sum(jnp.where(inside, x0_hat, 0), axis=(1, 2), keepdims=True) / jnp.sum(region)"
BEGIN = "np.sqrt(abar[0]) * guide + np.sqrt(1 - abar[0]) * noises[0]"
COPY = "alpha_s * guide + sigma_s * noises[i]"
LATE = "alpha_t * guide + sigma_t * noises[i]"
LOOK = "denoise(x, alpha_t, sigma_t)"
BOTH = f"""x, path = {BEGIN}, []
    for i in range(1, len(abar)):
        alpha_t, sigma_t = np.sqrt(abar[i - 1]), np.sqrt(1 - abar[i - 1])
        alpha_s, sigma_s = np.sqrt(abar[i]), np.sqrt(1 - abar[i])
        guess = {LOOK}
        free = alpha_s * guess + sigma_s * (x - alpha_t * guess) / sigma_t
        x = jnp.where(mask, {COPY}, free)"""
LENGTH = "jnp.sqrt(m**2 + (1 - m) ** 2)"

MUTANTS = [
    Mutant("08.1", START, "level * guide + (1 - level) * noise", "is a square root"),
    Mutant("08.1", "round(strength *", "round((1 - strength) *", "from the other end"),
    Mutant(
        "08.1",
        "round(strength * (len(abar) - 1))",
        "min(round(strength * len(abar)), len(abar) - 1)",
        "one less than the table has entries",
    ),
    Mutant("08.1", "np.sqrt(level) * guide", "guide", "the guide must be shrunk"),
    Mutant("08.1", f"return {START}", f"_ = {START}", "returned None"),
    Mutant("08.2", GUESS, "jnp.where(mask, x0_hat, known)", "the wrong way round"),
    Mutant("08.2", "abar_t**0.5 * guess", "abar_t**0.5 * x0_hat", "come from the corrected guess"),
    Mutant(
        "08.2",
        f"guess = {GUESS}\n",
        "guess = x0_hat\n",
        "the known pixels are never used",
    ),
    Mutant(
        "08.2",
        f"guess = {GUESS}\n    eps = (x_t - abar_t**0.5 * guess) / (1 - abar_t) ** 0.5\n"
        f"    return {STEP}",
        "guess = x0_hat\n    eps = (x_t - abar_t**0.5 * guess) / (1 - abar_t) ** 0.5\n"
        f"    return jnp.where(mask, known, {STEP})",
        "clean pixels were pasted",
    ),
    Mutant(
        "08.2",
        f"eps = (x_t - abar_t**0.5 * guess) / (1 - abar_t) ** 0.5\n    return {STEP}",
        "eps = (x_t - abar_t * guess) / (1 - abar_t)\n"
        "    return abar_s * guess + (1 - abar_s) * eps",
        "is a square root",
    ),
    Mutant("08.3", "abar_t / abar_s", "abar_t", "needs only what is missing"),
    Mutant("08.3", KEPT, "(abar_s - abar_t) ** 0.5 * noise", "the old noise shrinks too"),
    Mutant("08.3", JUMP, "kept * x_s + (1 - kept) * noise", "is a square root"),
    Mutant("08.3", KEPT, "(1 - kept) * noise", "not by a variance"),
    Mutant("08.3", KEPT, "(1 - abar_t) ** 0.5 * noise", "not all fresh"),
    Mutant("08.4", "/ jnp.sum(region)", "/ region.size", "divide by its number of pixels"),
    Mutant("08.4", INSIDE, "x0_hat + colour[:, None, None, :] - mean", "outside of the region"),
    Mutant(
        "08.4",
        MEAN,
        "jnp.mean(x0_hat[:, region], axis=(0, 1))[None, None, None]",
        "don't average over the batch",
    ),
    Mutant("08.4", "x0_hat + colour[:, None, None, :] - mean", "colour[:, None, None, :]", "paint"),
    Mutant("08.4", " - mean, x0_hat", ", x0_hat", "the mean that is there must go first"),
    Mutant(
        "08.4",
        MEAN,
        "jnp.mean(x0_hat[:, region], axis=(1, 2))[:, None, None, None]",
        "each colour channel",
    ),
    Mutant("08.5", BEGIN, "noises[0]", "the guide never reaches the start"),
    Mutant("08.5", COPY, LATE, "the level where the step began"),
    Mutant("08.5", BOTH, BOTH.replace(BEGIN, "noises[0]").replace(COPY, LATE), "both bugs"),
    Mutant("08.5", f"{COPY}, free)", f"{COPY}, x)", "differ"),
    Mutant("08.5", "jnp.where(mask, ", "jnp.where(~mask, ", "the wrong way round"),
    Mutant("08.5", LOOK, "denoise(x, abar[i - 1], 1 - abar[i - 1])", "which are square roots"),
    Mutant("08.5", COPY, "guide", "clean pixels were pasted"),
    Mutant("08.6", f" / {LENGTH}", "", "too weak in the seam"),
    Mutant("08.6", LENGTH, "(m**2 + (1 - m) ** 2)", "the standard deviation is needed"),
    Mutant(
        "08.6",
        f"alpha * clean + sigma * noise / {LENGTH}",
        f"(alpha * clean + sigma * noise) / {LENGTH}",
        "the blended picture must not be divided",
    ),
    Mutant(
        "08.6",
        "clean = m * known",
        "m = 1 - m\n    clean = m * known",
        "the two shares are exchanged",
    ),
]
