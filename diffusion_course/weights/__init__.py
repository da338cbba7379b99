"""Weights that are released with the course, each beside its card."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from diffusion_course import process
from diffusion_course.models.classifier import Classifier
from diffusion_course.models.dit import DiT
from diffusion_course.models.mlp import MLP
from diffusion_course.models.unet import UNet
from diffusion_course.weights.card import Card, load_card, load_weights

FOLDER = Path(__file__).parent
_MODELS = {"UNet": UNet, "DiT": DiT, "MLP": MLP, "Classifier": Classifier}


class Released(NamedTuple):
    """A model with trained weights.

    Attributes:
      model: ready to use.
      card: its recipe, data, metrics and hash.
      process: the process that it was trained with; None for a classifier.
    """

    model: nnx.Module
    card: Card
    process: process.Process | None


def names(folder: Path = FOLDER) -> tuple[str, ...]:
    """The weights in a folder, by default those in the package."""
    stems = (path.stem for path in Path(folder).glob("*.safetensors"))
    # A second dot names another kind of file, such as mnist.features.safetensors.
    return tuple(sorted(stem for stem in stems if "." not in stem))


def load(name: str, folder: str | Path = FOLDER) -> Released:
    """Builds the model that a card describes and fills it with its weights.

    Args:
      name: see `names`.
      folder: where NAME.safetensors and NAME.json lie; the package by default.

    Raises: ValueError for an unknown name, a damaged file, or a card that names an unknown model.
    """
    available = names(Path(folder))
    if name not in available:
        raise ValueError(f"name must be one of {', '.join(available) or 'none'}, got {name!r}")
    path = Path(folder) / f"{name}.safetensors"
    card = load_card(path)
    model = build(card.model)
    load_weights(path, model)
    return Released(model, card, build_process(card.process) if card.process else None)


def build(description: dict, seed: int = 0, dtype: str = "float32") -> nnx.Module:
    """A new model from ``{"class": name, **constructor arguments}``, as cards hold it.

    Args:
      description: see above.
      seed: of its initialisation.
      dtype: "float32", or "bfloat16" for a network that can compute in it.

    Raises: ValueError for an unknown class or dtype.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {dtype!r}")
    arguments = dict(description)
    name = arguments.pop("class", None)
    if name not in _MODELS:
        raise ValueError(f"class must be one of {', '.join(_MODELS)}, got {name!r}")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if dtype != "float32":
        arguments["dtype"] = jnp.dtype(dtype)
    return _MODELS[name](**arguments, rngs=nnx.Rngs(seed))


def build_process(description: dict) -> process.Process:
    """A process from ``{"name": function of the module process, **its arguments}``.

    Raises: ValueError for an unknown name.
    """
    arguments = dict(description)
    name = arguments.pop("name", None)
    makers = ("vp_cosine", "vp_linear", "sub_vp", "variance_exploding", "edm", "rectified_flow")
    if name not in makers:
        raise ValueError(f"name must be one of {', '.join(makers)}, got {name!r}")
    return getattr(process, name)(**arguments)
