"""Recipes of models that read captions, and of the judge of what they draw."""

from dataclasses import dataclass
from typing import ClassVar

from diffusion_course import checks
from diffusion_course.data import shapes
from diffusion_course.training.recipe import DiffusionRecipe, Training


@dataclass(frozen=True, kw_only=True)
class AttributesRecipe(Training):
    """Every setting of the training of a classifier of all attributes of the shapes.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with its answers.
      noise: standard deviation of the noise that is added to the pixels.
      samples: unseen images that it is measured on.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("answers",)
    # Samples are never quite clean: the judge must not depend on single pixels.
    noise: float = 0.1
    samples: int = 6000

    def __post_init__(self):
        super().__post_init__()
        checks.within("noise", self.noise, 0, 1)
        checks.integer("samples", self.samples, minimum=1)


@dataclass(frozen=True, kw_only=True)
class TextRecipe(DiffusionRecipe):
    """Every setting of the training of a diffusion model with captions of the shapes.

    Attributes:
      dataset, process, kind, steps, batch_size, learning_rate, ema, seed, options, scales, samples,
        sampling_steps: as in `DiffusionRecipe`.
      model: description for `weights.build`; its num_classes is the number of words.
      label_dropout: share of captions replaced by the null caption.
      judge: name of the released classifier that says whether a caption is obeyed.
      held_out: one of so many combinations of attributes is left out of the training; see
        `shapes.held_out`.

    Raises: ValueError for a value outside its range.
    """

    judge: str
    held_out: int = shapes.HELD_OUT

    def __post_init__(self):
        super().__post_init__()
        checks.integer("held_out", self.held_out, minimum=2)


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(Training):
    """Every setting of the training of a contrastive pair.

    Attributes:
      dataset, steps, batch_size, learning_rate, ema, seed, options: as in `DiffusionRecipe`.
      model: description for `weights.build`, with its num_words.
      painter: name of the released model whose samples it scores when it is measured.
      noise: as in `AttributesRecipe`.
      held_out: as in `TextRecipe`.

    Raises: ValueError for a value outside its range.
    """

    needs: ClassVar[tuple[str, ...]] = ("num_words",)
    painter: str
    noise: float = 0.1
    held_out: int = shapes.HELD_OUT

    def __post_init__(self):
        super().__post_init__()
        checks.within("noise", self.noise, 0, 1)
        checks.integer("held_out", self.held_out, minimum=2)
