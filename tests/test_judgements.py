"""Bradley–Terry strengths and the number of judgements, against closed forms and simulation."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest, norm

from diffusion_course.evaluation import judgements


def draw(rng, theta, nu, numbers):
    """Wins and ties of judgements by the model: numbers [K, K] above the diagonal."""
    K = len(theta)
    wins, ties = np.zeros((2, K, K), int)
    for i in range(K):
        for j in range(i + 1, K):
            weight = [np.exp(theta[i]), np.exp(theta[j]), nu * np.exp((theta[i] + theta[j]) / 2)]
            wins[i, j], wins[j, i], ties[i, j] = rng.multinomial(
                numbers[i][j], np.array(weight) / np.sum(weight)
            )
            ties[j, i] = ties[i, j]
    return wins, ties


@pytest.mark.parametrize(("first", "second", "tied"), [(30, 10, 0), (7, 19, 5), (400, 3, 1000)])
def test_two_methods_have_the_closed_form(first, second, tied):
    # Three outcomes and two parameters: the shares are met exactly. Var log(a/b) = 1/a + 1/b.
    wins, ties = [[0, first], [second, 0]], [[0, tied], [tied, 0]]
    found = judgements.bradley_terry(wins, ties, level=0.9)
    log_odds, error = np.log(first / second), np.sqrt(1 / first + 1 / second)
    np.testing.assert_allclose(found.theta, [log_odds / 2, -log_odds / 2], rtol=1e-6)
    assert found.nu == pytest.approx(tied / np.sqrt(first * second), rel=1e-6)
    # The information is that of one step before: 3e-5 standard errors away.
    half = norm.ppf(0.95) * error / 2
    np.testing.assert_allclose(found.high - found.theta, half, rtol=1e-4)
    np.testing.assert_allclose(found.theta - found.low, half, rtol=1e-4)
    between = judgements.difference(found, 1, 0, level=0.8)
    expected = [-log_odds, -log_odds - norm.ppf(0.9) * error, -log_odds + norm.ppf(0.9) * error]
    np.testing.assert_allclose(between, expected, rtol=1e-4)


def test_the_strengths_are_where_an_optimiser_of_the_written_likelihood_stops():
    wins = np.array([[0, 9, 4, 0], [3, 0, 8, 2], [1, 5, 0, 11], [2, 0, 3, 0]])
    ties = np.array([[0, 2, 0, 1], [2, 0, 4, 0], [0, 4, 0, 3], [1, 0, 3, 0]])

    def loss(z):
        theta, nu, total = z[:4], np.exp(z[4]), 0
        for i in range(4):
            for j in range(4):
                a, b = np.exp(theta[i]), np.exp(theta[j])
                norm_ = a + b + nu * np.sqrt(a * b)
                total -= wins[i, j] * np.log(a / norm_)
                total -= ties[i, j] / 2 * np.log(nu * np.sqrt(a * b) / norm_)
        return total + z[:4].sum() ** 2

    best = minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7}).x
    found = judgements.bradley_terry(wins, ties)
    np.testing.assert_allclose(found.theta, best[:4] - best[:4].mean(), atol=1e-5)  # BFGS's own
    assert found.nu == pytest.approx(np.exp(best[4]), abs=1e-5)
    # The covariance is that of the numerical second derivative, on differences from the mean.
    step, eye = 1e-3, np.eye(5)
    second = [
        [
            sum(
                s * t * loss(best + step * (s * eye[a] + t * eye[b]))
                for s in (1, -1)
                for t in (1, -1)
            )
            / (4 * step**2)
            for b in range(5)
        ]
        for a in range(5)
    ]
    centre = np.eye(5)
    centre[:4, :4] -= 1 / 4
    expected = (centre @ np.linalg.inv(second) @ centre)[:4, :4]
    np.testing.assert_allclose(found.covariance, expected, atol=1e-5)  # step² and cancellation


@pytest.mark.parametrize("nu", [0.0, 0.6])
def test_planted_strengths_are_recovered_and_intervals_cover_at_their_level(nu):
    rng = np.random.default_rng(1)
    theta = np.array([0.9, 0.1, -0.2, -0.8])
    numbers = [[0, 40, 70, 50], [0, 0, 60, 90], [0, 0, 0, 45], [0] * 4]
    inside, between, found = [], [], []
    for _ in range(250):
        wins, ties = draw(rng, theta, nu, numbers)
        one = judgements.bradley_terry(wins, ties, level=0.9)
        inside.append((one.low <= theta) & (theta <= one.high))
        low, high = judgements.difference(one, 0, 2, level=0.9)[1:]
        between.append(low <= 1.1 <= high)
        found.append([*one.theta, one.nu])
    # Bias is of order 1/number: the mean of 250 lies within 0.3 of one's error of the truth.
    error = np.std(found, axis=0)
    assert (np.abs(np.mean(found, axis=0) - [*theta, nu]) <= 0.3 * error).all()
    np.testing.assert_allclose(np.sqrt(np.diag(one.covariance)), error[:4], rtol=0.25)
    for covered in (*np.transpose(inside), between):
        # Four binomial errors of 250, which tells 0.90 from 0.80 and from 0.98.
        assert np.mean(covered) == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 250))


def test_ties_between_two_narrow_nothing_and_shrink_no_odds():
    alone = judgements.bradley_terry([[0, 30], [10, 0]])
    tied = judgements.bradley_terry([[0, 30], [10, 0]], [[0, 80], [80, 0]])
    np.testing.assert_allclose(tied.theta, alone.theta, rtol=1e-6)
    assert alone.nu == 0 and tied.nu > 4


def test_extreme_counts_still_converge():
    n = 10**7
    found = judgements.bradley_terry(
        [[0, n, 0], [1, 0, n], [1, 1, 0]], [[0, 1, 0], [1, 0, 0], [0] * 3]
    )
    assert np.isfinite([*found.theta, *found.low, found.nu]).all() and found.theta[0] > 5
    level = judgements.bradley_terry([[0, 1], [1, 0]], [[0, n], [n, 0]])
    np.testing.assert_allclose([*level.theta, level.nu / n], [0, 0, 1], atol=1e-6)


def test_full_newton_steps_would_not_reach_this_maximum():
    wins = np.array([[0, 1, 642654, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 114328, 717, 0]])
    ties = np.zeros((4, 4), int)
    ties[0, 1] = ties[1, 0] = 58
    found = judgements.bradley_terry(wins, ties)
    # At the maximum every method has as many wins and half ties as the model expects.
    weight = np.exp(found.theta)
    tie = found.nu * np.sqrt(weight[:, None] * weight)
    total = weight[:, None] + weight + tie
    expected = ((wins + wins.T + ties) * (weight[:, None] + tie / 2) / total).sum(1)
    np.testing.assert_allclose(expected, (wins + ties / 2).sum(1), rtol=1e-6)


def test_an_order_of_the_methods_is_an_order_of_the_answer():
    rng = np.random.default_rng(2)
    wins, ties = draw(rng, np.array([0.5, 0, -0.4]), 0.3, [[0, 50, 30], [0, 0, 80], [0] * 3])
    order = [2, 0, 1]
    found = judgements.bradley_terry(wins, ties)
    other = judgements.bradley_terry(wins[np.ix_(order, order)], ties[np.ix_(order, order)])
    np.testing.assert_allclose(other.theta, found.theta[order], atol=1e-7)
    np.testing.assert_allclose(other.low, found.low[order], atol=1e-6)


def test_judgements_are_counted_for_the_method_that_was_preferred():
    pairs = [[2, 0], [0, 2], [1, 2], [2, 0], [0, 1]]
    wins, ties = judgements.tally(pairs, ["first", "first", "tie", "second", "second"], 4)
    expected, tied = np.zeros((2, 4, 4), int)
    expected[2, 0], expected[0, 2], expected[1, 0] = 1, 2, 1
    tied[1, 2] = tied[2, 1] = 1
    np.testing.assert_array_equal(wins, expected)
    np.testing.assert_array_equal(ties, tied)


@pytest.mark.parametrize(
    ("n", "share", "alpha"), [(20, 0.7, 0.05), (33, 0.65, 0.2), (51, 0.4, 0.01)]
)
def test_power_is_what_enumeration_and_simulation_give(n, share, alpha):
    shows = np.array([binomtest(k, n).pvalue <= alpha for k in range(n + 1)])
    chance = np.array([binomtest(k, n, share).pvalue for k in range(n + 1)])
    assert len(chance) == n + 1 and shows.any()
    draws = np.random.default_rng(3).binomial(n, share, size=40000)
    simulated = shows[draws].mean()
    found = judgements.power(n, share, alpha)
    assert found == pytest.approx(simulated, abs=4 * np.sqrt(0.25 / 40000))  # four errors
    from math import comb

    exact = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in np.flatnonzero(shows))
    assert found == pytest.approx(exact, rel=1e-9)


def test_too_few_judgements_show_nothing():
    assert judgements.power(5, 1.0) == 0  # 2·2⁻⁵ is above 0.05
    assert judgements.power(6, 1.0) == 1
    assert judgements.power(1, 0.7, alpha=0.5) == 0
    assert judgements.power(2, 0.7, alpha=0.5) == pytest.approx(0.7**2 + 0.3**2)
    assert judgements.power(100, 0.5, 0.05) <= 0.05


@pytest.mark.parametrize(
    ("share", "target", "alpha"),
    [(0.6, 0.8, 0.05), (0.58, 0.9, 0.1), (1, 0.999, 1e-6), (0.9, 0.3, 0.5), (0.7, 0.1, 0.05)],
)
def test_from_the_number_needed_on_the_power_stays_at_the_target(share, target, alpha):
    n = judgements.judgements_needed(share, target, alpha)
    later = np.array([judgements.power(m, share, alpha) for m in range(max(n - 1, 1), 2 * n + 150)])
    if n > 1:
        assert later[0] < target
        later = later[1:]
    assert (later >= target).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: judgements.bradley_terry([[0, 1, 2], [1, 0, 3], [0, 0, 0]]),
            r"got the separate groups \[\[2\], \[0, 1\]\]|groups \[\[0, 1\], \[2\]\]",
        ),
        (lambda: judgements.bradley_terry([[0, 3], [0, 0]], [[0, 2], [2, 0]]), "wins must lead"),
        (lambda: judgements.bradley_terry([[0]]), r"wins must have shape \[K, K\], K >= 2"),
        (lambda: judgements.bradley_terry([[0, 1, 2]] * 2), r"got shape \[2, 3\]"),
        (lambda: judgements.bradley_terry([[0, -1], [1, 0]]), "wins must be in 0"),
        (lambda: judgements.bradley_terry([[0, 0.5], [1, 0]]), "wins must be whole numbers"),
        (
            lambda: judgements.bradley_terry([[2, 1], [1, 0]]),
            "wins must have zeros on the diagonal",
        ),
        (
            lambda: judgements.bradley_terry([[0, 1], [1, 0]], [[0, 1], [2, 0]]),
            "ties must be symmetric",
        ),
        (
            lambda: judgements.bradley_terry([[0, 1], [1, 0]], np.zeros((3, 3), int)),
            r"ties must have the shape of wins, \[2, 2\]",
        ),
        (
            lambda: judgements.bradley_terry([[0, 1], [1, 0]], level=1),
            r"level must be in \(0, 1\), got 1",
        ),
        (lambda: judgements.tally([[0, 0]], ["tie"], 2), r"got \[0, 0\] in row 0"),
        (lambda: judgements.tally([[0, 1]], ["left"], 2), "outcomes must be one of first, second"),
        (lambda: judgements.tally([[0, 2]], ["tie"], 2), "pairs must be in 0 … 1, got 0 … 2"),
        (lambda: judgements.tally([[0, 1]], ["tie"] * 2, 2), r"whole numbers of shape \[2, 2\]"),
        (lambda: judgements.power(0, 0.6), "n must be a whole number at least 1, got 0"),
        (lambda: judgements.power(9, 1.1), r"share must be in \[0, 1\], got 1.1"),
        (lambda: judgements.judgements_needed(0.5), r"share must be in \[0.51, 1\], got 0.5"),
        (lambda: judgements.judgements_needed(0.6, 1), r"target must be in \(0, 0.999\], got 1"),
        (lambda: judgements.judgements_needed(0.6, alpha=0), "alpha must be in"),
    ],
)
def test_what_cannot_be_judged_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_difference_of_methods_that_are_not_there_is_refused():
    found = judgements.bradley_terry([[0, 3], [2, 0]])
    with pytest.raises(ValueError, match=r"j must be a whole number in \[0, 1\], got 2"):
        judgements.difference(found, 0, 2)


@pytest.mark.parametrize(("counts", "rounds"), [([4, 9, 5], 30), ([3, 3], 7), ([2, 1, 6, 5], 20)])
def test_a_deal_is_even_blind_and_repeats_a_picture_only_after_all_others(counts, rounds):
    pairs, items = judgements.deal(counts, rounds, seed=3)
    assert pairs.shape == items.shape == (rounds, 2) and (pairs[:, 0] != pairs[:, 1]).all()
    meetings = np.zeros((len(counts),) * 2, int)
    np.add.at(meetings, tuple(np.sort(pairs, axis=1).T), 1)
    among = meetings[np.triu_indices(len(counts), 1)]
    assert among.sum() == rounds and np.ptp(among) <= 1
    for method, count in enumerate(counts):
        shown = np.bincount(items[pairs == method], minlength=count)
        assert len(shown) == count and np.ptp(shown) <= 1


def test_sides_and_order_are_drawn_by_lot_and_the_seed_decides():
    pairs = judgements.deal([5, 5], 1000).pairs
    # 500 ± 15.8; four standard errors.
    assert abs((pairs[:, 0] == 0).sum() - 500) < 64
    assert abs((pairs[1:, 0] == pairs[:-1, 0]).sum() - 499.5) < 64
    first, again, other = (judgements.deal([5, 9, 4], 30, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.items, again.items)
    assert (first.pairs != other.pairs).any() and (first.items != other.items).any()


@pytest.mark.parametrize("counts", [[5], [5, 0], [[5, 5]], [2.5, 3]])
def test_a_deal_needs_two_methods_with_pictures(counts):
    with pytest.raises(ValueError, match="counts must be at least two numbers of pictures, got"):
        judgements.deal(counts, 3)
