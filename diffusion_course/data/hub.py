"""Data sets of the Hugging Face hub: from a local copy, the cache, or the hub itself.

If ``DIFFUSION_COURSE_DATA`` is set, the local copy in that folder is the only source: a wish that
cannot be fulfilled is an error, never a reason to take other data. If it is not set, what was once
decoded from the hub is used without asking the hub again.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_course.checks import one_of
from diffusion_course.data import cache, local
from diffusion_course.data.decode import Decoded, decode
from diffusion_course.data.network import endpoint, hub_reachable
from diffusion_course.data.types import Card, Dataset, DataUnavailableError

SPLITS = ("train", "test")


class Spec(NamedTuple):
    """A data set on the hub: its address there and what its table looks like."""

    repository: str
    column: str
    mode: str
    shape: tuple[int, int, int]  # of a picture
    label_names: tuple[str, ...]  # for a copy whose files have lost them
    authors: str
    licence: str
    description: str


_CLOTHES = "T - shirt / top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_THINGS = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"

SPECS = {
    "mnist": Spec(
        "ylecun/mnist",
        "image",
        "L",
        (28, 28, 1),
        tuple("0123456789"),
        "Y. LeCun, C. Cortes and C. Burges 1998",
        "MIT (as stated on the hub)",
        "Handwritten digits, 28 x 28 grey: 60,000 to train and 10,000 to test.",
    ),
    "fashion_mnist": Spec(
        "zalando-datasets/fashion_mnist",
        "image",
        "L",
        (28, 28, 1),
        tuple(_CLOTHES.split(",")),
        "H. Xiao, K. Rasul and R. Vollgraf 2017, arXiv:1708.07747",
        "MIT",
        "Articles of clothing, 28 x 28 grey: 60,000 to train and 10,000 to test.",
    ),
    "cifar10": Spec(
        "uoft-cs/cifar10",
        "img",
        "RGB",
        (32, 32, 3),
        tuple(_THINGS.split(",")),
        "A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        "none stated by the authors",
        "Animals and vehicles, 32 x 32 in colour: 50,000 to train and 10,000 to test.",
    ),
}


def load(name: str, split: str = "train", *, progress: bool = True) -> Dataset:
    """A data set of the hub as float32 images [N, H, W, C] in [-1, 1].

    Args:
      name: a key of `SPECS`.
      split: "train" or "test".
      progress: show a bar while images are decoded, which happens the first time only.

    Raises:
      ValueError: an argument breaks these rules.
      DataUnavailableError: there is neither a local copy nor a cache nor a hub that answers,
        or what is there is damaged, incomplete or other data.
    """
    one_of("name", name, SPECS)
    one_of("split", split, SPLITS)
    spec = SPECS[name]
    images, labels, label_names = _decoded(name, spec, split, progress)
    x = images.astype(np.float32)
    x /= 127.5
    x -= 1
    source = f"{spec.authors}; {spec.repository} on the Hugging Face hub"
    card = Card(name, source, spec.licence, spec.description)
    return Dataset(x, labels, label_names, card)


def source_of(name: str, split: str = "train") -> str:
    """Where `load` would take the data from; may ask the hub, but loads nothing."""
    folder = local.local_folder()
    if folder is not None:
        try:
            local.find(folder, name, split)
        except DataUnavailableError:
            return "unavailable"
        return "local copy"
    if cache.location(name, split, SPECS[name].repository).exists():
        return "cache"
    return "hub" if hub_reachable() else "unavailable"


def _decoded(name: str, spec: Spec, split: str, progress: bool) -> Decoded:
    folder = local.local_folder()
    files = local.find(folder, name, split) if folder is not None else None
    path = cache.location(name, split, files or spec.repository)
    decoded = cache.read(path)
    if decoded is None:
        # Not only while opening: a damaged file may show when its rows are read.
        with _named_failure(name, split, files):
            source = _local_table(files, split) if files else _hub_table(name, spec, split)
            with source as table:
                decoded = decode(table, spec.column, spec.mode, spec.label_names, progress)
            _check_size(decoded, spec)
        cache.write(path, decoded)
    return decoded


def _check_size(decoded: Decoded, spec: Spec) -> None:
    found = decoded.images.shape[1:]
    if found != spec.shape:
        wanted, found = (" × ".join(map(str, shape)) for shape in (spec.shape, found))
        raise ValueError(f"its pictures must be {wanted}, got {found}")


@contextmanager
def _local_table(files: list[Path], split: str) -> Iterator:
    import datasets

    # `datasets` converts parquet to a file of its own; with ours beside it, that is not kept.
    # Windows cannot delete a file that is still mapped into memory: then the system tidies up.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, _quiet():
        names = {split: [str(file) for file in files]}
        yield datasets.load_dataset("parquet", data_files=names, split=split, cache_dir=scratch)


@contextmanager
def _hub_table(name: str, spec: Spec, split: str) -> Iterator:
    if not hub_reachable():
        raise DataUnavailableError(
            f"{name} is not on this computer, and {endpoint()} does not answer. {_remedies(name)}"
        )
    import datasets

    with _quiet():
        yield datasets.load_dataset(spec.repository, split=split)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of `datasets`: one for each of its inner steps."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _named_failure(name: str, split: str, files: list[Path] | None) -> Iterator[None]:
    """Say which data set failed and what helps; the original error stays attached as the cause."""
    try:
        yield
    except DataUnavailableError:
        raise
    # Network, disk, parquet, Pillow and `datasets` each have errors of their own.
    except Exception as error:
        where = f"the local copy of {name} in {files[0].parent}" if files else f"{name} on the hub"
        remedy = "Replace that copy" if files else _remedies(name)
        reason = f"{type(error).__name__}: {error}"
        raise DataUnavailableError(
            f"{where} ({split}) could not be loaded: {reason}. {remedy}"
        ) from error


def _remedies(name: str) -> str:
    return (
        "Either connect to the network so that the Hugging Face hub can be reached (and unset "
        f"HF_HUB_OFFLINE), or set {local.VARIABLE} to a folder that holds {name}/train-*.parquet"
    )
