"""Sounds and their spectra: exact there and back, and one log-SNR for each frequency."""

import jax
import numpy as np
import pytest

from diffusion_course import linear_gaussian, process, samplers, sampling, spectra
from diffusion_course.data import sounds

rng = np.random.default_rng(245)
p = process.vp_cosine()


@pytest.mark.parametrize(("window", "hop"), [(64, 16), (100, 50), (32, 9)])
def test_kept_complex_the_transform_can_be_undone(window, hop):
    transform = spectra.Transform(window, hop, 4000)
    for length in (window, 777):
        x = rng.normal(1.0, 2.0, (3, length))
        S = transform.forward(x)
        assert S.shape[:2] == (3, window // 2 + 1) and np.iscomplexobj(S)
        np.testing.assert_allclose(transform.inverse(S, length), x, atol=1e-10)


def test_a_sine_is_loudest_at_its_own_frequency():
    transform = spectra.Transform(128, 32, 4000)
    x = np.sin(2 * np.pi * 625 * np.arange(2048) / 4000)
    loud = np.abs(transform.forward(x)).mean(-1)
    assert transform.frequencies[loud.argmax()] == 625


def test_power_is_measured_against_noise():
    transform = spectra.Transform(64, 16, 4000)
    noise = rng.standard_normal((100, 1000))
    ratio = spectra.power_ratio(transform, 3 * rng.standard_normal((100, 1000)), noise)
    # 6,200 overlapping pieces, about 1,500 independent ones: 4 standard errors are .15.
    np.testing.assert_allclose(ratio, 9, rtol=0.15)


def test_log_snr_and_the_time_of_crossing():
    power = np.array([30.0, 1.0, 0.01])
    t = spectra.crossing_time(p, power)
    assert (np.diff(t) < 0).all()  # what is loud drowns later
    np.testing.assert_allclose(spectra.log_snr(p, power, t), 0, atol=1e-4)
    alpha, sigma = p.alpha(0.3), p.sigma(0.3)
    want = np.log(alpha**2 * power / sigma**2)
    np.testing.assert_allclose(spectra.log_snr(p, power, 0.3), want, atol=1e-5)


@pytest.mark.parametrize("end", [0.0, 0.2])
def test_the_gain_of_ddim_is_that_of_the_library(end):
    power = np.array([4.0, 1.0, 0.09])
    exact = linear_gaussian.full_mixture(p, np.zeros((1, 3)), np.diag(power)[None], [1.0])
    times = np.linspace(1, end, 8)
    start = np.float32(rng.normal(size=(5, 3)))
    x, _ = sampling.sample(samplers.ddim(p), exact.denoise, start, times, jax.random.key(0))
    gain = spectra.ddim_gain(p, power, times)
    np.testing.assert_allclose(x, start * gain * np.sqrt(power), rtol=1e-4, atol=1e-5)


def test_more_steps_bring_the_gain_to_one():
    power = np.array([10.0, 0.1])
    off = [np.abs(spectra.ddim_gain(p, power, sampling.uniform(n)) - 1) for n in (10, 40, 160)]
    assert (off[0] > 2 * off[1]).all() and (off[1] > 2 * off[2]).all()


def test_decibels():
    np.testing.assert_allclose(spectra.log_magnitude([10.0, 0.1j, 0.0], 1e-2), [20, -20, -40])


def test_notes_have_unit_power_and_their_harmonics():
    found = sounds.load(n=400)
    assert found.x.shape == (400, 2048) and found.x.dtype == np.float32
    assert np.mean(np.square(found.x)) == pytest.approx(1, abs=0.05)  # notes differ by about .1
    assert set(found.notes) == set(range(25))
    spectrum = np.abs(np.fft.rfft(found.x[0] * np.hanning(2048)))
    peak = np.fft.rfftfreq(2048, 1 / 4000)[spectrum.argmax()]
    assert peak == pytest.approx(sounds.frequency(found.notes[0]), abs=2.5)


def test_the_first_notes_do_not_depend_on_how_many_there_are():
    few, many = sounds.load(n=3), sounds.load(n=40)
    np.testing.assert_array_equal(few.x, many.x[:3])
    np.testing.assert_array_equal(few.notes, many.notes[:3])
    assert (sounds.load("test", n=3).x != few.x).any()
    np.testing.assert_allclose(sounds.load(n=3, seed=1).notes.shape, (3,))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"hop must be a whole number in \[1, 32\], got 40"):
        spectra.Transform(64, 40, 4000)
    with pytest.raises(ValueError, match=r"x must have shape .* at least the window, 64"):
        spectra.Transform(64, 16, 4000).forward(np.zeros(10))
    with pytest.raises(ValueError, match="power must be positive"):
        spectra.log_snr(p, [1.0, 0.0], 0.5)
    with pytest.raises(ValueError, match="length must be a whole number at least 2"):
        sounds.load(length=1)
    with pytest.raises(ValueError, match="split must be one of train, test"):
        sounds.load("all")
