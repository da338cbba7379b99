"""Averages of a run's weights whose length is chosen after the run.

A run keeps averages of a few lengths at some of its steps. Any other average along the run is
then, nearly, a weighted sum of those.

Source: Karras et al. 2024, EDM2, section 3 and appendix C (arXiv:2312.02696).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_course import checks
from diffusion_course.training.update import TrainState


def relative_width(gamma: float) -> float:
    """sigma_rel of a power average: its standard deviation in time as a share of the run.

    ``sigma_rel² = (gamma + 1)/((gamma + 2)²·(gamma + 3))``.

    Raises: ValueError unless gamma > −1.
    Source: Karras et al. 2024, section 3.1 (arXiv:2312.02696).

    >>> round(relative_width(6.94), 3)
    0.1
    """
    checks.above("gamma", gamma, -1)
    return float(np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))))


def exponent(width: float) -> float:
    """gamma of the power average with this sigma_rel; the inverse of `relative_width`.

    Args:
      width: sigma_rel, positive and at most sqrt(1/12) = .288: that of the plain mean, gamma = 0.

    Raises: ValueError for another width.
    Source: Karras et al. 2024, appendix C.1 (arXiv:2312.02696).

    >>> round(exponent(0.1), 2), round(exponent(0.05), 2)
    (6.94, 16.97)
    """
    checks.within("width", width, 0, np.sqrt(1 / 12), ends="(]")
    # (g + 2)²·(g + 3) = (g + 1)/width²; the one root that is not negative.
    square = float(width) ** -2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return float(max(roots.real.max(), 0.0))


def power_decay(step: int, gamma: float) -> float:
    """Share of the average that stays at this step: ``(1 − 1/step)^(gamma + 1)``; 0 at step 1.

    Args:
      step: number of the step, from 1.
      gamma: exponent of the average, at least 0.

    Raises: ValueError for another step or exponent.
    Source: Karras et al. 2024, eq. 127 (arXiv:2312.02696).
    """
    step = checks.integer("step", step, 1)
    checks.within("gamma", gamma, 0, np.inf, ends="[)")
    return (1 - 1 / step) ** (gamma + 1)


def profile(step: int, gamma: float, length: int | None = None) -> np.ndarray:
    """How much each step's weights count in the power average after `step` steps.

    Steps 1 … step count ``(i/step)^(gamma + 1) − ((i − 1)/step)^(gamma + 1)``: what a density
    proportional to tau^gamma has in each of them. Later ones count 0.

    Args:
      step: steps taken, at least 1.
      gamma: exponent, at least 0.
      length: number of entries, at least `step`; by default `step`.

    Returns: float64 [length], of sum 1.
    Raises: ValueError for other arguments.

    >>> profile(2, 1.0, 3).tolist()
    [0.25, 0.75, 0.0]
    """
    step = checks.integer("step", step, 1)
    checks.within("gamma", gamma, 0, np.inf, ends="[)")
    length = checks.integer("length", step if length is None else length, step)
    edges = np.minimum(np.arange(length + 1) / step, 1.0)
    return np.diff(edges ** (gamma + 1))


class Snapshot(NamedTuple):
    """A power average of the weights at a step of the run.

    Attributes:
      step: steps taken.
      gamma: exponent of the average.
      weights: float64 [P], in the order of `TrainState.params`.
    """

    step: int
    gamma: float
    weights: np.ndarray


class PowerAverages:
    """Keeps power averages of a run's weights, and snapshots of them.

    ``loop.fit(…, save=loop.Save(1, averages.update))`` feeds it after every step; what it holds is
    float64 on the host. `at` then gives an average of any width.

    Args:
      widths: sigma_rel of the averages that are kept; two are enough.
      every: steps between snapshots.

    Raises: ValueError for no width, a width outside (0, .288], or a number of steps below 1.
    Source: Karras et al. 2024, algorithms 2 and 3 (arXiv:2312.02696).
    """

    def __init__(self, widths: Sequence[float] = (0.05, 0.10), *, every: int):
        self.gammas = tuple(exponent(width) for width in widths)
        if not self.gammas:
            raise ValueError("widths must hold at least one width, got none")
        self.every = checks.integer("every", every, 1)
        self.step = 0
        self.snapshots: list[Snapshot] = []
        self._averages = [np.zeros(())] * len(self.gammas)

    def update(self, state: TrainState) -> None:
        """Adds the weights of the next step. Raises: ValueError if a step was left out."""
        if int(state.step) != self.step + 1:
            raise ValueError(
                f"state must be that of step {self.step + 1}, got one of step {int(state.step)}"
            )
        self.step += 1
        weights = np.asarray(state.params, np.float64)
        for k, gamma in enumerate(self.gammas):
            kept = power_decay(self.step, gamma)
            self._averages[k] = kept * self._averages[k] + (1 - kept) * weights
            if self.step % self.every == 0:
                self.snapshots.append(Snapshot(self.step, gamma, self._averages[k]))

    def at(self, width: float, step: int | None = None) -> np.ndarray:
        """The weights' average of this width: the nearest that the snapshots can make.

        Args:
          width: its sigma_rel.
          step: steps of the run that it ends at; by default the last snapshot's.

        Returns: float64 [P], for `update.merge`.
        Raises: ValueError before the first snapshot, for a width outside (0, .288], or for a step
          beyond the last snapshot.
        """
        if not self.snapshots:
            raise ValueError(f"at needs a snapshot: one is made every {self.every} steps")
        last = self.snapshots[-1].step
        step = checks.integer("step", last if step is None else step, 1, last)
        shares = combination([(s.step, s.gamma) for s in self.snapshots], step, exponent(width))
        return sum(share * s.weights for share, s in zip(shares, self.snapshots, strict=True))


def combination(stored: Sequence[tuple[int, float]], step: int, gamma: float) -> np.ndarray:
    """The weights of the sum of stored averages whose profile is nearest to that of another.

    Least squares over the profiles, in float64, among the weights of sum 1: the average of weights
    that never change is then those weights.

    Args:
      stored: (step, gamma) of each stored average.
      step: of the wanted average.
      gamma: its exponent, at least 0.

    Returns: float64 [len(stored)].
    Raises: ValueError for nothing stored.
    Source: Karras et al. 2024, algorithm 3 (arXiv:2312.02696), with sums over steps in the place
    of integrals, so that a stored profile is met exactly, and the sum as a condition.
    """
    if not stored:
        raise ValueError("stored must hold at least one average, got none")
    length = max(step, *(s for s, _ in stored))
    # Relative to the last one, so that the weights add up to 1 whatever the others are.
    last = profile(*stored[-1], length)
    others = [profile(s, g, length) - last for s, g in stored[:-1]]
    wanted = profile(step, gamma, length) - last
    matrix = np.stack(others, axis=1) if others else np.zeros((length, 0))
    shares = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    return np.append(shares, 1 - shares.sum())
