"""Batches that depend on (seed, step) alone, so that a resumed run sees what it would have seen."""

from collections.abc import Iterator

import numpy as np

from diffusion_course.checks import integer
from diffusion_course.data.types import Dataset, check_pairs

Batch = tuple[np.ndarray, np.ndarray]


def batches(
    data: Dataset | Batch, size: int, seed: int, start: int = 0, rows: slice = slice(None)
) -> Iterator[Batch]:
    """Shuffled batches without end.

    Each epoch visits the examples in a new order that depends only on `seed` and the number of
    the epoch; the N mod `size` examples left at its end are dropped. There is no other state:
    ``batches(data, size, seed, start=k)`` yields first what ``batches(data, size, seed)`` yields
    as its k-th batch (counted from 0), so a training run goes on exactly where it stopped.

    Args:
      data: a Dataset, or a pair of arrays (x [N, ...], labels [N]); images are floating-point
        numbers.
      size: examples in a batch, in [1, N].
      seed: whole number, at least 0.
      start: number of the first batch, at least 0.
      rows: which rows of each batch to yield, by default all. The others are not read: a process
        takes its own part of the batches that several processes share.

    Returns:
      An iterator over (x [size, ...], labels [size]), or these rows of it.

    Raises:
      ValueError: an argument breaks these rules. Raised at the call, not at the first batch.

    >>> x, labels = np.arange(5.0), np.arange(5) % 2
    >>> first, second = (next(batches((x, labels), size=3, seed=0, start=k)) for k in (0, 1))
    >>> first[0].shape, first[1].shape
    ((3,), (3,))
    """
    x, labels = _arrays(data)
    size = integer("size", size, minimum=1, maximum=len(x))
    seed = integer("seed", seed, minimum=0)
    start = integer("start", start, minimum=0)
    return _batches(x, labels, size, seed, start, rows)


def _batches(x, labels, size: int, seed: int, start: int, rows: slice) -> Iterator[Batch]:
    per_epoch = len(x) // size
    epoch, position = divmod(start, per_epoch)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(x))
        for i in range(position, per_epoch):
            chosen = order[i * size : (i + 1) * size][rows]
            yield x[chosen], labels[chosen]
        epoch, position = epoch + 1, 0


def _arrays(data) -> Batch:
    if isinstance(data, Dataset):
        return data.x, data.labels
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(
            f"data must be a Dataset or a pair of arrays (x, labels), got {type(data).__name__}"
        )
    x, labels = np.asarray(data[0]), np.asarray(data[1])
    check_pairs(x, labels)
    return x, labels
