"""Requests in a queue: who waits for how long when a server takes several at once.

The clock is simulated and the service times are given, so that a run is exact and repeatable. In
practice the times come from a stopwatch, one for each size of batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_course import checks


class Served(NamedTuple):
    """What became of N requests.

    Attributes:
      latency: seconds from each request's arrival to its answer [N].
      batches: how many requests were served together, for each time that the server started.
      busy: share of the time from the first arrival to the last answer in which it worked.
    """

    latency: np.ndarray
    batches: np.ndarray
    busy: float


def poisson(rate: float, count: int, seed: int = 0) -> np.ndarray:
    """Arrival times [count] of independent users, in seconds.

    Args:
      rate: requests per second, on average.
      count: how many, at least 1.
      seed: of the random numbers.

    Raises: ValueError for a rate that is not positive, or a count below 1.
    """
    checks.above("rate", rate, 0)
    rng = np.random.default_rng(checks.integer("seed", seed, 0))
    return np.cumsum(rng.exponential(1 / rate, checks.integer("count", count, 1)))


def serve(arrivals, seconds: Sequence[float], wait: float = 0.0) -> Served:
    """Simulates one server that takes up to len(seconds) requests at once, first come first served.

    When it is free it starts as soon as the batch is full, or the oldest request has waited for
    `wait` seconds. It takes everybody who is there by then, up to the largest batch.

    Args:
      arrivals: times of arrival in seconds, not falling [N].
      seconds: how long it works on a batch of 1, 2, …: its length is the largest batch.
      wait: for how long an incomplete batch waits for more requests, at least 0.

    Raises: ValueError for no arrivals, falling or infinite ones, service times that are not
      positive, or a negative wait.

    >>> serve([0.0, 1.0, 1.5], [2.0]).latency.tolist()  # one at a time, 2 s each
    [2.0, 3.0, 4.5]
    >>> serve([0.0, 1.0, 1.5], [2.0, 2.5]).latency.tolist()  # the last two together
    [2.0, 3.5, 3.0]
    """
    arrivals, seconds = np.asarray(arrivals, float), np.asarray(seconds, float)
    finite = np.isfinite(arrivals).all()
    if arrivals.ndim != 1 or not arrivals.size or not finite or (np.diff(arrivals) < 0).any():
        raise ValueError("arrivals must be finite times [N] that do not fall, with N at least 1")
    if seconds.ndim != 1 or not seconds.size:
        raise ValueError(f"seconds must hold one time per batch size, got shape {seconds.shape}")
    checks.above("seconds", seconds, 0)
    checks.non_negative("wait", wait)
    latency, batches, free, work, i = np.empty(len(arrivals)), [], -np.inf, 0.0, 0
    while i < len(arrivals):
        patience = arrivals[i] + wait
        full = arrivals[i + len(seconds) - 1] if i + len(seconds) <= len(arrivals) else np.inf
        start = max(free, min(full, patience))
        size = min(int(np.searchsorted(arrivals, start, side="right")) - i, len(seconds))
        free = start + seconds[size - 1]
        latency[i : i + size] = free - arrivals[i : i + size]
        batches.append(size)
        work += seconds[size - 1]
        i += size
    return Served(latency, np.array(batches), float(work / (free - arrivals[0])))


def mean_latency(rate: float, seconds: float) -> float:
    """Mean latency of one server without batches, under Poisson arrivals: the exact answer.

    ``s + ρ·s / (2(1 − ρ))`` with the load ρ = rate·s, and a service time s that never varies.

    Args:
      rate: requests per second.
      seconds: service time s.

    Raises: ValueError unless both are positive and the load is below 1.
    Source: Pollaczek 1930, Khinchine 1932 (M/D/1).

    >>> mean_latency(0.5, 1.0)
    1.5
    """
    checks.above("rate", rate, 0)
    checks.above("seconds", seconds, 0)
    load = rate * seconds
    if load >= 1:
        raise ValueError(f"rate·seconds, the load, must be below 1, got {load:g}")
    return seconds + load * seconds / (2 * (1 - load))
