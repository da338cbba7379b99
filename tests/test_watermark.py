"""A key in the signs of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm

from diffusion_course import denoiser, editing, process, samplers, sampling, watermark

SECRET = bytes(range(16))


def keys(count, *shape):
    return np.stack([watermark.signs(SECRET, str(i), shape) for i in range(count)])


def test_keys_are_balanced_and_independent_of_each_other():
    many = keys(100, 20, 30, 1).reshape(100, -1)
    assert set(np.unique(many)) == {-1.0, 1.0}
    assert abs(many.mean()) < 4 / np.sqrt(many.size)
    overlap = (many @ many.T)[np.triu_indices(100, 1)] / np.sqrt(600)
    assert abs(overlap.std() - 1) < 0.05 and abs(overlap.mean()) < 0.06  # 4,950 pairs, 4 errors
    # Blocks of 256 differ from each other within one key.
    assert abs(many[:, :256] * many[:, 256:512]).mean() == 1
    assert abs((many[:, :256] * many[:, 256:512]).mean()) < 4 / 160
    np.testing.assert_array_equal(watermark.signs(SECRET, "3", (20, 30, 1)).ravel(), many[3])
    assert (watermark.signs(SECRET[::-1], "3", (20, 30, 1)).ravel() != many[3]).mean() > 0.4


def test_marked_noise_is_standard_normal_over_keys_and_carries_its_signs():
    noise = jax.random.normal(jax.random.key(0), (400, 4, 8, 1))
    key = keys(400, 4, 8, 1)
    marked = np.asarray(watermark.mark(noise, key))
    np.testing.assert_array_equal(np.sign(marked), key)
    np.testing.assert_array_equal(np.abs(marked), np.abs(noise))
    assert kstest(marked.ravel(), norm.cdf).pvalue > 0.01
    rows = marked.reshape(400, -1)
    off = (np.corrcoef(rows.T) - np.eye(32))[np.triu_indices(32, 1)]
    assert abs(off.std() * 20 - 1) < 0.2  # independent places: 1/√400
    # One key for all pictures: no place is normal any more.
    one = np.asarray(watermark.mark(noise, key[0])).reshape(400, -1)
    assert np.abs(one.mean(0)).min() > 0.6  # √(2/π) = .80


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_correlation_is_that_of_the_share(share):
    noise = jax.random.normal(jax.random.key(1), (500, 28, 28, 1))
    key = keys(1, 28, 28, 1)[0]
    marked = watermark.mark(noise, key, share)
    changed = np.asarray((marked != noise).any(0)).ravel()
    assert changed.sum() == round(784 * share)
    halves = changed[:392].sum(), changed[392:].sum()
    assert abs(halves[0] - halves[1]) <= 4  # spread evenly
    found = np.asarray(watermark.score(marked, key)) / 28
    assert abs(found.mean() - share * np.sqrt(2 / np.pi)) < 4 / 28 / np.sqrt(500)


def test_the_score_of_any_picture_has_variance_1_over_keys():
    rng = np.random.default_rng(0)
    strange = np.float32(rng.exponential(1, (1, 28, 28, 1)) ** 3 + 2)  # neither centred nor normal
    scores = np.asarray(watermark.score(np.repeat(strange, 2000, 0), keys(2000, 28, 28, 1)))
    assert abs(scores.mean()) < 4 / np.sqrt(2000) and abs(scores.var() - 1) < 4 * np.sqrt(2 / 2000)
    ordinary = jax.random.normal(jax.random.key(2), (1, 28, 28, 1))
    scores = np.asarray(watermark.score(np.repeat(ordinary, 2000, 0), keys(2000, 28, 28, 1)))
    p = watermark.p_value(scores)
    assert kstest(p, "uniform").pvalue > 0.01
    assert (watermark.surely_below(scores) >= p - 1e-12).all()


def test_p_values_of_many_keys():
    scores = np.random.default_rng(0).normal(size=(4000, 30)).max(1)
    assert kstest(watermark.p_value(scores, tried=30), "uniform").pvalue > 0.01
    assert watermark.p_value(30.0, tried=1000) == pytest.approx(1000 * norm.sf(30.0), rel=1e-6)
    assert watermark.surely_below(-3.0) == 1


def test_the_needed_correlation_finds_99_of_100_at_one_false_alarm():
    d = 784
    c = watermark.needed_correlation(d)
    assert c == pytest.approx(4.6527 / np.sqrt(d), abs=1e-4)
    rng = np.random.default_rng(0)
    key = watermark.signs(SECRET, "one", (d,))
    for correlation, low, high in ((0.0, 0.005, 0.016), (c, 0.985, 0.9955)):
        z = correlation * key + np.sqrt(1 - correlation**2) * rng.normal(size=(4000, d))
        found = (np.asarray(watermark.score(np.float32(z), key)) > watermark.threshold()).mean()
        # 4,000 draws at 1 %: ± .0063 at four errors.
        assert low < found < high
    assert watermark.needed_correlation(64, 0.001, 0.05) == pytest.approx(
        (norm.isf(0.001) + norm.isf(0.05)) / 8
    )


def test_ddim_and_its_inverse_bring_the_key_back():
    p = process.vp_cosine()
    rng = np.random.default_rng(5)
    mixture = denoiser.gaussian_mixture(
        p, rng.normal(0, 1, (4, 64)), np.full(4, 0.4), np.full(4, 0.25)
    )
    noise = jax.random.normal(jax.random.key(3), (40, 64))
    key = keys(40, 64)
    times = sampling.uniform(60)

    @jax.jit
    def there_and_back(x):
        x0 = sampling.sample(samplers.ddim(p), mixture.denoise, x, times, jax.random.key(0))[0]
        return editing.invert(p, mixture.denoise, x0, times)[0]

    plain, marked = there_and_back(noise), there_and_back(watermark.mark(noise, key))
    p_marked = watermark.p_value(watermark.score(marked, key))
    p_plain = watermark.p_value(watermark.score(plain, key))
    assert (p_marked < 0.01).mean() > 0.9 and (p_plain < 0.01).mean() < 0.12


def test_the_watermark_names_the_argument_that_is_wrong():
    noise = jnp.zeros((3, 4, 4, 1))
    with pytest.raises(ValueError, match="secret must be at least 16 bytes"):
        watermark.signs(b"abc", "x", (3,))
    with pytest.raises(ValueError, match="shape must hold"):
        watermark.signs(SECRET, "x", (0, 3))
    with pytest.raises(ValueError, match="key"):
        watermark.mark(noise, jnp.ones((4, 5, 1)))
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 2"):
        watermark.mark(noise, jnp.ones((4, 4, 1)), 2.0)
    with pytest.raises(ValueError, match="tried"):
        watermark.p_value(1.0, 0)
    assert np.asarray(watermark.score(noise, jnp.ones((4, 4, 1)))).tolist() == [0.0] * 3
