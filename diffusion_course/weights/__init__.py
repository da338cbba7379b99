"""Weights that are released with the course, each beside its card."""

import inspect
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from diffusion_course import checks, latent, process
from diffusion_course.models.classifier import AttributeClassifier, Classifier
from diffusion_course.models.contrastive import Contrastive
from diffusion_course.models.control import ControlNet
from diffusion_course.models.dit import DiT
from diffusion_course.models.lora import Adapter
from diffusion_course.models.mlp import MLP
from diffusion_course.models.mmdit import MMDiT
from diffusion_course.models.quantize import VQVAE
from diffusion_course.models.unet import UNet
from diffusion_course.models.upsampler import Upsampler
from diffusion_course.models.vae import VAE, Autoencoder
from diffusion_course.models.video import VideoDiT
from diffusion_course.weights.card import Card, load_card, load_weights

FOLDER = Path(__file__).parent
_CLASSES = (UNet, DiT, MMDiT, MLP, Classifier, Autoencoder, VAE, VQVAE)
_CLASSES += (AttributeClassifier, Contrastive, ControlNet, Adapter, Upsampler, VideoDiT)
_MODELS = {model.__name__: model for model in _CLASSES}


class Released(NamedTuple):
    """A model with trained weights.

    Attributes:
      model: ready to use.
      card: its recipe, data, metrics and hash.
      process: the process that it was trained with; None for a classifier or an autoencoder.
    """

    model: nnx.Module
    card: Card
    process: process.Process | None


def names(folder: str | Path = FOLDER) -> tuple[str, ...]:
    """The weights in a folder, by default those in the package.

    >>> "digits" in names()
    True

    Args:
      folder: where .safetensors files lie.

    Returns: their names without the ending, sorted.
    """
    stems = (path.stem for path in Path(folder).glob("*.safetensors"))
    # A second dot names another kind of file, such as mnist.features.safetensors.
    return tuple(sorted(stem for stem in stems if "." not in stem))


def load(name: str, folder: str | Path = FOLDER) -> Released:
    """Builds the model that a card describes and fills it with its weights.

    >>> released = load("toy2d")
    >>> released.card.kind, released.model(jnp.ones((4, 2)), jnp.full(4, 0.5)).shape
    ('v', (4, 2))

    Args:
      name: see `names`.
      folder: where NAME.safetensors and NAME.json lie; the package by default.

    Raises: FileNotFoundError if there is no card; ValueError for an unknown name, a damaged file,
      or a card that names an unknown model.
    """
    available = names(folder)
    if name not in available:
        raise ValueError(f"name must be one of {', '.join(available) or 'none'}, got {name!r}")
    path = Path(folder) / f"{name}.safetensors"
    card = load_card(path)
    model = build(card.model)
    load_weights(path, model)
    return Released(model, card, build_process(card.process) if card.process else None)


def latent_space(name: str, folder: str | Path = FOLDER) -> latent.LatentSpace:
    """The latents of a released autoencoder, with the shift and the scale of its card.

    Args:
      name: of an autoencoder's weights; a latent model's card names its own,
        ``card.recipe["autoencoder"]``.
      folder: as in `load`.

    Raises: as `load`; ValueError for the weights of any other model.
    """
    released = load(name, folder)
    measured = released.card.metrics.get("latents")
    if measured is None:
        raise ValueError(f"name must be that of an autoencoder's weights, got {name!r}")
    shift, scale = (jnp.asarray(measured[key], jnp.float32) for key in ("shift", "scale"))
    return latent.LatentSpace(released.model, shift, scale)


def build(description: dict, seed: int = 0, dtype: str = "float32") -> nnx.Module:
    """A new model from ``{"class": name, **constructor arguments}``, as cards hold it.

    >>> build({"class": "MLP", "width": 8})(jnp.ones((3, 2)), jnp.ones(3)).shape
    (3, 2)

    Args:
      description: see above; lists become tuples, and a description inside it the model that it
        describes: a ControlNet's base, or the model of an adapter.
      seed: of its initialisation, a whole number of at least 0.
      dtype: "float32", or "bfloat16" for a network that can compute in it.

    Raises: ValueError for an unknown class or dtype, and for arguments that the class refuses.
    """
    name, arguments = _split(description, "class", _MODELS)
    checks.integer("seed", seed, minimum=0)
    checks.one_of("dtype", dtype, ("float32", "bfloat16"))
    inner = {k: build(v, seed, dtype) for k, v in arguments.items() if isinstance(v, dict)}
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()} | inner
    if dtype != "float32" and not inner:
        arguments["dtype"] = jnp.dtype(dtype)
    return _call(_MODELS[name], arguments | {"rngs": nnx.Rngs(seed)}, name)


def build_process(description: dict) -> process.Process:
    """A process from ``{"name": function of the module process, **its arguments}``.

    Args:
      description: see above, such as ``{"name": "vp_cosine"}``.

    Raises: ValueError for an unknown name, and for arguments that the function refuses.
    """
    makers = ("vp_cosine", "vp_linear", "sub_vp", "variance_exploding", "edm", "rectified_flow")
    name, arguments = _split(description, "name", makers)
    return _call(getattr(process, name), arguments, name)


def _split(description: dict, key: str, known) -> tuple[str, dict]:
    """The name in a description, and its other entries."""
    if not isinstance(description, dict):
        raise ValueError(f"description must be a dict with the key {key!r}, got {description!r}")
    arguments = dict(description)
    return checks.one_of(key, arguments.pop(key, None), known), arguments


def _call(function, arguments: dict, name: str):
    """Calls a function with arguments from a file, whose mistakes are not the program's."""
    known = inspect.signature(function.__init__ if isinstance(function, type) else function)
    try:
        known.bind(*([None] if isinstance(function, type) else []), **arguments)
    except TypeError as error:
        raise ValueError(f"{name} does not take these arguments: {error}") from None
    return function(**arguments)
