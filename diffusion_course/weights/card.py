"""Released weights: a safetensors file, and beside it a card that says what they are."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from diffusion_course import files

# What every version of safetensors can hold and NumPy can read back.
_TYPES = ("float32", "float16", "float64", "int32", "int64", "int16", "int8")
_TYPES += ("uint8", "uint16", "uint32", "uint64", "bool")


@dataclass(frozen=True)
class Card:
    """What must be known about released weights; it is saved as JSON beside them.

    Attributes:
      name: of the weights.
      model: class name and constructor arguments, from which the model is built again.
      process: constructor name and arguments of the process, for a diffusion model.
      kind: what the model predicts, for a diffusion model.
      data: name, split, size, source and licence of the training data.
      recipe: the command and every setting of the training.
      metrics: measured quality, each with its sample count.
      sha256: of the weights file.
    """

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    recipe: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    sha256: str = ""


def flat_params(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters by their path in the model, such as "down.0.conv1.kernel".

    Args:
      model: any NNX module.

    Returns: path -> array.
    """
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {".".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in leaves}


def save_weights(folder: str | Path, model: nnx.Module, card: Card) -> Path:
    """Writes NAME.safetensors and NAME.json, both or neither; returns the first one's path.

    Args:
      folder: where to; it is made if it does not exist.
      model: whose parameters are saved.
      card: what they are; its hash is filled in.

    Raises: ValueError for a parameter of a type that safetensors does not hold, such as bfloat16,
      or a name that is no file name.
    """
    if not card.name or Path(card.name).name != card.name or "." in card.name:
        raise ValueError(f"name must be a file name without a dot, got {card.name!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card.name}.safetensors"
    content = as_safetensors(flat_params(model))
    document = asdict(card) | {"sha256": sha256(content)}
    files.write_together({path: content, path.with_suffix(".json"): files.as_json(document)})
    return path


def as_safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a .safetensors file with these arrays.

    Args:
      arrays: name -> array, in any order of memory.

    Returns: the bytes of the file.
    Raises: ValueError for an array of a type that safetensors does not hold.
    """
    for name, array in arrays.items():
        if array.dtype.name not in _TYPES:
            known = ", ".join(_TYPES)
            raise ValueError(f"{name} must be of a type among {known}, got {array.dtype.name}")
    # safetensors takes an array's memory as it lies there: a transposed view would be scrambled.
    plain = {
        name: np.asarray(array, array.dtype.newbyteorder("="), order="C")
        for name, array in arrays.items()
    }
    return safetensors.numpy.save(plain)


def load_card(path: str | Path) -> Card:
    """The card beside a weights file.

    Args:
      path: of the .safetensors file or of the card.

    Raises: FileNotFoundError; ValueError if the file is no card.
    """
    path = Path(path).with_suffix(".json")
    try:
        card = Card(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{path.name} is not a card of released weights: {error}") from error
    for entry in fields(Card):
        value, kind = getattr(card, entry.name), get_origin(entry.type) or entry.type
        if not isinstance(value, kind):
            raise ValueError(
                f"{path.name} is not a card of released weights: {entry.name} must be a "
                f"{kind.__name__}, got {type(value).__name__}"
            )
    return card


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
      path: of the file.

    Raises: FileNotFoundError; ValueError if it holds none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path.name} is not a card: its text is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is not a card: it must hold a JSON object")
    return document


def sha256(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_verified(path: Path, expected: str) -> bytes:
    """A file's content.

    Args:
      path: of the file.
      expected: its SHA-256 by the card.

    Raises: FileNotFoundError; ValueError if the content has another SHA-256.
    """
    content = path.read_bytes()
    found = sha256(content)
    if found != expected:
        raise ValueError(
            f"{path.name} must have the SHA-256 of its card, {expected[:12]}…, "
            f"got {found[:12]}…: it is damaged or belongs to another card"
        )
    return content


def load_weights(path: str | Path, model: nnx.Module) -> Card:
    """Fills a model with saved weights, in place, and returns their card.

    Args:
      path: of the .safetensors file.
      model: of the shape that the card describes.

    Raises: FileNotFoundError; ValueError if the file does not match its card's hash, or if its
      names, types or shapes are not the model's (the first that differs is named). The model is
      then as it was.
    """
    path, card = Path(path), load_card(path)
    content = read_verified(path, card.sha256)
    arrays, expected = safetensors.numpy.load(content), flat_params(model)
    for name in sorted(expected.keys() | arrays.keys()):
        ours, theirs = _kind(expected.get(name)), _kind(arrays.get(name))
        if ours != theirs:
            raise ValueError(
                f"{path.name} must hold the model's parameters; {name} is {ours} in the model "
                f"and {theirs} in the file"
            )
    _fill(model, arrays)
    return card


def _kind(array: np.ndarray | None) -> str:
    return "missing" if array is None else f"{array.dtype.name} {list(array.shape)}"


def filled(model: nnx.Module, arrays: dict[str, np.ndarray]) -> nnx.Module:
    """A new model of the same shape with other weights; the given one stays as it is.

    Args:
      model: any NNX module.
      arrays: path -> array, as `flat_params` gives them.

    Raises: ValueError if names or shapes are not the model's (the first that differs is named).
    """
    expected = flat_params(model)
    for name in sorted(expected.keys() | arrays.keys()):
        shapes = [list(np.shape(a[name])) if name in a else "missing" for a in (expected, arrays)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"arrays must hold the model's parameters; {name} is {shapes[0]} in the model "
                f"and {shapes[1]} in arrays"
            )
    graph, state = nnx.split(model)
    new = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, state))  # boxes of its own
    _fill(new, arrays)
    return new


def _fill(model: nnx.Module, arrays: dict[str, np.ndarray]) -> None:
    def new(path, old):
        array = arrays[".".join(str(k.key) for k in path)]
        # What is NumPy's stays NumPy's: JAX would make float32 of float64.
        return jax.numpy.asarray(array) if isinstance(old, jax.Array) else array

    state = nnx.state(model, nnx.Param)
    filled = jax.tree_util.tree_map_with_path(new, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, filled)
    nnx.update(model, state)
