"""Wrong answers to the exercises of chapter 08."""

from mutants import Mutant

START = "np.sqrt(level) * guide + np.sqrt(1 - level) * noise"
GUESS = "jnp.where(mask, known, x0_hat)"
STEPPED = "abar_t**0.5 * guess) / (1 - abar_t) ** 0.5"
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
PASTED = f"jnp.where(mask, {COPY}, free)"
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
    Mutant("08.1", "round(", "int(", "not always the one below"),
    Mutant(
        "08.1",
        "round(strength * (len(abar) - 1))",
        "int(np.ceil(strength * (len(abar) - 1)))",
        "not always the one above",
    ),
    Mutant(
        "08.1",
        "abar[round(strength * (len(abar) - 1))]",
        "np.interp(strength, np.linspace(0, 1, len(abar)), abar)",
        "taken between two steps",
    ),
    Mutant("08.1", f"return {START}", f"_ = {START}", "returned None"),
    Mutant("08.2", GUESS, "jnp.where(mask, x0_hat, known)", "the wrong way round"),
    Mutant("08.2", "abar_t**0.5 * guess", "abar_t**0.5 * x0_hat", "come from the corrected guess"),
    Mutant(
        "08.2",
        f"guess = {GUESS}\n",
        "guess = x0_hat\n",
        "are not in the guess that is kept",
    ),
    Mutant("08.2", STEP, STEP.replace("guess", "x0_hat"), "count in the noise only"),
    Mutant("08.2", STEPPED, "abar_t**0.5 * guess)", "not divided by its level"),
    Mutant(
        "08.2",
        f"guess = {GUESS}\n    eps = (x_t - {STEPPED}\n    return {STEP}",
        f"guess = x0_hat\n    eps = (x_t - {STEPPED}\n"
        f"    return jnp.where(mask, abar_s**0.5 * known, {STEP})",
        "shrunk pixels were pasted",
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
    Mutant(
        "08.3",
        KEPT,
        "((1 - abar_t) ** 0.5 - (1 - abar_s) ** 0.5) * noise",
        "standard deviations were subtracted",
    ),
    Mutant(
        "08.3",
        KEPT,
        "((1 - abar_t) ** 0.5 - (kept * (1 - abar_s)) ** 0.5) * noise",
        "the shrunk old noise was subtracted",
    ),
    Mutant(
        "08.3", KEPT, "(1 - abar_t - kept**0.5 * (1 - abar_s)) ** 0.5 * noise", "it counts squared"
    ),
    Mutant("08.3", JUMP, "kept * x_s + (1 - kept) * noise", "is a square root"),
    Mutant("08.3", "kept**0.5 * x_s", "kept * x_s", "the noise is right, but"),
    Mutant(
        "08.3",
        f"kept = abar_t / abar_s  # of the signal's variance\n    return {JUMP}",
        "kept = abar_s / abar_t\n    return kept**0.5 * x_s + jnp.sqrt(1 - kept) * noise",
        "s and t exchanged",
    ),
    Mutant("08.3", KEPT, "(1 - kept) * noise", "not by a variance"),
    Mutant("08.3", KEPT, "(1 - abar_t) ** 0.5 * noise", "not all fresh"),
    Mutant("08.4", "/ jnp.sum(region)", "/ region.size", "divide by its number of pixels"),
    Mutant(
        "08.4", MEAN, "jnp.mean(x0_hat, axis=(1, 2), keepdims=True)", "not of the whole picture"
    ),
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
    Mutant(
        "08.4",
        "x0_hat + colour[:, None, None, :] - mean",
        "x0_hat - colour[:, None, None, :] + mean",
        "the sign of the shift",
    ),
    Mutant(
        "08.4",
        "region[None, :, :, None]\n",
        "~region[None, :, :, None]\n    region = ~region\n",
        "True where pixels are to change",
    ),
    Mutant(
        "08.4",
        f"{MEAN}\n    return {INSIDE}",
        f"{MEAN}\n".replace("inside", "~inside").replace("(region)", "(~region)")
        + "    return x0_hat + ~inside * (colour[:, None, None, :] - mean)",
        "no pixel is left",
    ),
    Mutant("08.5", BEGIN, "noises[0]", "the guide never reaches the start"),
    Mutant("08.5", COPY, LATE, "the level where the step began"),
    Mutant("08.5", BOTH, BOTH.replace(BEGIN, "noises[0]").replace(COPY, LATE), "both bugs"),
    Mutant("08.5", f"{COPY}, free)", f"{COPY}, x)", "differ"),
    Mutant("08.5", "jnp.where(mask, ", "jnp.where(~mask, ", "the wrong way round"),
    Mutant("08.5", BEGIN, BEGIN.replace("[0]) *", "[1]) *"), "the start has too little noise"),
    Mutant("08.5", f"{BEGIN}, []", "guide, []", "the start has no noise"),
    Mutant("08.5", "np.sqrt(abar[0]) * guide +", "guide +", "the guide must be shrunk"),
    Mutant("08.5", PASTED, "free", "nothing is pasted"),
    Mutant("08.5", COPY, "guide", "clean pixels were pasted"),
    Mutant(
        "08.5",
        BOTH,
        BOTH.replace(LOOK, f"jnp.where(mask, guide, {LOOK})").replace(PASTED, "free"),
        "keeps the noise of the start",
    ),
    Mutant("08.5", COPY, COPY.replace("[i]", "[i - 1]"), "the noise of another step"),
    Mutant("08.6", f" / {LENGTH}", "", "too weak in the seam"),
    Mutant(
        "08.6",
        "noise = m * eps_known + (1 - m) * eps_free\n"
        f"    return alpha * clean + sigma * noise / {LENGTH}",
        "noise = jnp.sqrt(m) * eps_known + jnp.sqrt(1 - m) * eps_free\n"
        "    return alpha * clean + sigma * noise",
        "must be those of the pictures",
    ),
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
