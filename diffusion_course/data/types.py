"""The one type that every data set of the course comes in."""

from dataclasses import dataclass, field, replace

import numpy as np

from diffusion_course import checks

_PICTURES = (4, 5)  # axes of images [N, H, W, C] and of clips [N, F, H, W, C]


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
      x: float32. Images [N, H, W, C] or clips [N, F, H, W, C] in [-1, 1], or points [N, 2] of about
        that range.
      labels: int32 [N], each an index into `label_names`.
      label_names: the name of each class.
      card: origin and terms.
      attributes: further columns, each an array of N rows (for ``shapes``: colour, size,
        position and caption); empty for most data sets.

    Raises:
      ValueError: an argument breaks one of these rules.

    >>> x, card = np.zeros((3, 8, 8, 1), np.float32), Card("mine", "drawn by me", "free", "Grey.")
    >>> dataset = Dataset(x, np.array([0, 1, 0], np.int32), ("cat", "dog"), card)
    >>> dataset, len(dataset.subset(dataset.labels == 0))
    (Dataset('mine', x=float32 [3, 8, 8, 1], 2 classes), 2)
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
        """Number of classes; a model for this data is built with ``num_classes`` of this."""
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


def check_batch(x, labels, num_classes: int | None = None) -> None:
    """Whether a batch can be trained on, before a step is compiled for it.

    A label that is one too large would train the class that stands for "no label", and a larger
    one gives NaN; whole numbers as images give a loss of thousands. Compiled code sees none of
    this. Under ``jit`` values are unknown, and only shapes and dtypes are checked.

    Args:
      x: examples [B, ...]; images [B, H, W, C] and clips [B, F, H, W, C] of a floating-point type.
      labels: [B], or captions [B, L] with L >= 2.
      num_classes: of the model; its labels are whole numbers in [0, num_classes), and those of its
        captions may also be num_classes, which fills them up. None for a model without labels,
        where anything with B rows will do.

    Raises:
      ValueError: the batch breaks one of these rules.

    >>> check_batch(np.zeros((2, 8, 8, 1), np.float32), np.array([0, 9]), num_classes=10)
    >>> check_batch(np.zeros((2, 8, 8, 1), np.float32), np.array([1, 10]), num_classes=10)
    Traceback (most recent call last):
    ...
    ValueError: labels must be in 0 … 9, got 1 … 10
    """
    check_pairs(x, labels)
    if num_classes is not None:
        most = checks.integer("num_classes", num_classes, 1)
        shape = (len(x), *checks.rows_shape(labels)[1:])
        checks.labels("labels", labels, shape, most if len(shape) == 2 else most - 1)


def check_pairs(x, labels) -> None:
    """ValueError unless there is a label for each example, and images are floating-point numbers.

    Args:
      x: examples [N, ...], N >= 1.
      labels: [N], or rows of other things that belong to the examples, [N, ...].
    """
    counts = [np.shape(array)[:1] for array in (x, labels)]
    if counts[0] != counts[1] or counts[0] in ((), (0,)):
        raise ValueError(
            "data must hold as many labels as examples, and at least one, "
            f"got x {list(np.shape(x))} and labels {list(np.shape(labels))}"
        )
    # Whole numbers in other shapes may be tokens, which are what they should be.
    if np.ndim(x) in _PICTURES:
        checks.floating("x", x)


def _check_examples(x) -> None:
    if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer):
        raise ValueError(
            f"x must be a float32 array, got {_kind(x)}; "
            "pixels 0 … 255 become x = np.float32(pixels / 127.5 - 1)"
        )
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise ValueError(f"x must be a float32 array, got {_kind(x)}")
    if x.size == 0 or not (x.ndim in _PICTURES or (x.ndim == 2 and x.shape[1] == 2)):
        raise ValueError(
            f"x must be images [N, H, W, C], clips [N, F, H, W, C] or points [N, 2], got {_kind(x)}"
        )
    low, high = x.min(), x.max()  # NaN if any value is
    if x.ndim in _PICTURES and not (low >= -1 and high <= 1):
        pixels = "; pixels 0 … 255 become x = pixels / 127.5 - 1" if low >= 0 and high > 1 else ""
        raise ValueError(
            f"x must lie in [-1, 1] where it holds images, got [{low}, {high}]{pixels}"
        )
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
