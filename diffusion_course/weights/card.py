"""Released weights: a safetensors file, and beside it a card that says what they are."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx


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
    """The parameters by their path, such as "down.0.conv1.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {".".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in leaves}


def save_weights(folder: str | Path, model: nnx.Module, card: Card) -> Path:
    """Writes NAME.safetensors and NAME.json; returns the first one's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{card.name}.safetensors"
    path.write_bytes(safetensors.numpy.save(flat_params(model)))
    document = asdict(card) | {"sha256": sha256(path.read_bytes())}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path


def load_card(path: str | Path) -> Card:
    """The card beside a weights file. Raises: FileNotFoundError, ValueError if it isn't one."""
    path = Path(path).with_suffix(".json")
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path.name} is not a card of released weights: {error}") from error


def sha256(content: bytes) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_verified(path: Path, expected: str) -> bytes:
    """A file's content. Raises: ValueError if it does not have the SHA-256 of its card."""
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

    Raises: FileNotFoundError; ValueError if the file doesn't match its card's hash, or if its
      names or shapes are not the model's (the first that differs is named).
    """
    path, card = Path(path), load_card(path)
    content = read_verified(path, card.sha256)
    arrays, expected = safetensors.numpy.load(content), flat_params(model)
    for name in sorted(expected.keys() | arrays.keys()):
        shapes = [tree[name].shape if name in tree else None for tree in (expected, arrays)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path.name} must hold the model's parameters; {name} has shape {shapes[0]} "
                f"in the model and {shapes[1]} in the file (None: missing)"
            )
    _fill(model, arrays)
    return card


def _fill(model: nnx.Module, arrays: dict[str, np.ndarray]) -> None:
    state = nnx.state(model, nnx.Param)
    pure = nnx.to_pure_dict(state)
    filled = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.numpy.asarray(arrays[".".join(str(k.key) for k in path)]), pure
    )
    nnx.replace_by_pure_dict(state, filled)
    nnx.update(model, state)
