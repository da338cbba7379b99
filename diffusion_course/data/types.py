"""The one type that every data set of the course comes in."""

from dataclasses import dataclass, field, replace

import numpy as np


class DataUnavailableError(RuntimeError):
    """A data set is neither on this computer nor reachable; the message says what to do."""


@dataclass(frozen=True)
class Card:
    """Where a data set comes from and on what terms.

    Attributes:
      name: the name that `load` takes.
      source: who made it, and where it is found.
      licence: the terms it is shared under.
      description: what it holds, in a sentence or two.
    """

    name: str
    source: str
    licence: str
    description: str


@dataclass(frozen=True, eq=False)  # eq: the truth value of two compared arrays is ambiguous
class Dataset:
    """Examples, their classes and their origin.

    Attributes:
      x: float32. Images [N, H, W, C] in [-1, 1], or points [N, 2] of about that range.
      labels: int32 [N], each an index into `label_names`.
      label_names: the name of each class.
      card: origin and terms.
      attributes: further columns, each an array of N rows (for ``shapes``: colour, size,
        position and caption); empty for most data sets.

    Raises:
      ValueError: an argument breaks one of these rules.
    """

    x: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    card: Card
    attributes: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        _check_examples(self.x)
        _check_labels(self.labels, len(self.x), self.label_names)
        for name, column in self.attributes.items():
            if not isinstance(column, np.ndarray) or column.shape[:1] != (len(self.x),):
                raise ValueError(
                    f"attributes[{name!r}] must be an array of {len(self.x)} rows, "
                    f"as many as x, got {_kind(column)}"
                )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"Dataset({self.card.name!r}, x={_kind(self.x)}, {self.num_classes} classes)"

    @property
    def num_classes(self) -> int:
        return len(self.label_names)

    def subset(self, indices) -> "Dataset":
        """The examples at `indices`, in that order; classes keep their numbers and names.

        Args:
          indices: whole numbers in [0, N) (repeats are fine), or a boolean mask [N].

        Raises:
          ValueError: `indices` is empty, of another type or shape, or out of range.
        """
        chosen = _as_indices(indices, len(self))
        return replace(
            self,
            x=self.x[chosen],
            labels=self.labels[chosen],
            attributes={name: column[chosen] for name, column in self.attributes.items()},
        )


def _check_examples(x) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise ValueError(f"x must be a float32 array, got {_kind(x)}")
    if x.size == 0 or not (x.ndim == 4 or (x.ndim == 2 and x.shape[1] == 2)):
        raise ValueError(f"x must be images [N, H, W, C] or points [N, 2], got {_kind(x)}")
    low, high = x.min(), x.max()  # NaN if any value is
    if x.ndim == 4 and not (low >= -1 and high <= 1):
        raise ValueError(f"x must lie in [-1, 1] where it holds images, got [{low}, {high}]")
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"x must be finite, got values in [{low}, {high}]")


def _check_labels(labels, count: int, names) -> None:
    if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError(f"label_names must be a tuple of at least one string, got {names!r}")
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int32 or labels.shape != (count,):
        raise ValueError(f"labels must be int32 [{count}], one per example, got {_kind(labels)}")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"labels must be in [0, {len(names)}), as there are {len(names)} label_names, "
            f"got {labels.min()} to {labels.max()}"
        )


def _as_indices(indices, count: int) -> np.ndarray:
    chosen = np.asarray(indices)
    if chosen.dtype == bool and chosen.shape == (count,):
        chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"indices must be a non-empty list of whole numbers or a boolean mask of {count}, "
            f"got {_kind(chosen)}"
        )
    if chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(f"indices must be in [0, {count}), got {chosen.min()} to {chosen.max()}")
    return chosen


def _kind(value) -> str:
    """What a value is, in a few words: an array's type and shape, or the type's name."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
