"""The recipes of the released weights. They are data: nothing runs here."""

from dataclasses import replace

from diffusion_course.training.recipe import (
    AutoencoderRecipe,
    CascadeRecipe,
    ClassifierRecipe,
    ClipRecipe,
    ConsistencyRecipe,
    DiffusionRecipe,
    LatentConsistencyRecipe,
    LatentRecipe,
    MeanFlowRecipe,
)
from diffusion_course.training.recipe_text import (
    AdapterRecipe,
    AttributesRecipe,
    CaptionRecipe,
    ContrastiveRecipe,
    ControlRecipe,
    TextRecipe,
)

Recipe = (
    DiffusionRecipe
    | ClassifierRecipe
    | ConsistencyRecipe
    | MeanFlowRecipe
    | AutoencoderRecipe
    | CaptionRecipe
    | ClipRecipe
)

# The network of "shapes", which is told words in place of a class.
_TEXT = {
    "class": "UNet",
    "image_channels": 3,
    "channels": [32, 64],
    "stem": 2,
    "num_classes": 27,
    "conditioning": "cross-attention",
}

# Minutes and accuracies are those on the cards of the released weights, trained on a CPU.
_CONTROL = ControlRecipe(
    dataset="shapes",
    model={"class": "ControlNet", "base": _TEXT, "control_channels": 1},
    process={"name": "vp_cosine"},
    kind="v",
    base="shapes_text",
    judge="shapes_judge",
    options={"n": 12_000, "size": 32},
    # For two cores: one epoch. The released ones were stopped after 400 steps, when the map alone
    # placed every shape.
    steps=700,
    batch_size=16,
    learning_rate=1e-3,
)

RECIPES: dict[str, Recipe] = {
    "digits": DiffusionRecipe(
        dataset="digits",
        # The shape that learns fastest on two cores (benchmarks/time_to_quality.py).
        model={"class": "UNet", "channels": [64], "stem": 2, "num_classes": 10},
        process={"name": "vp_cosine"},
        kind="v",
        # 400 steps give 93 % recognised samples (the same benchmark). 6,000 take 2.3 minutes and
        # give 99 %, so that what a chapter sees is its own subject and not a lack of training.
        steps=6000,
        # The highest that costs nothing: after 300 steps 3e-3 and 6e-3 both give 93 to 94 %
        # recognised samples, 1.2e-2 gives 92 %.
        learning_rate=6e-3,
    ),
    "digits_classifier": ClassifierRecipe(
        dataset="digits",
        model={"class": "Classifier", "image_size": 8, "num_classes": 10},
        steps=1500,  # 67 epochs in 20 seconds: right on 99.4 % of unseen digits
    ),
    "mnist": DiffusionRecipe(
        dataset="mnist",
        # The stem trades pixels for channels: a quarter of the positions to convolve.
        model={"class": "UNet", "channels": [32, 64], "stem": 2, "num_classes": 10},
        process={"name": "vp_cosine"},
        kind="v",
        steps=10_000,  # ten epochs in 52 minutes
        scales=(0.0, 1.0, 1.5, 2.0, 3.0, 5.0),
        samples=5000,  # there are 10,000 unseen images to compare with; of the digits 360
        sampling_steps=25,  # half of the default, since there are ten times as many samples
    ),
    "mnist_classifier": ClassifierRecipe(
        dataset="mnist",
        # Half of the default width: 28 × 28 pixels cost twelve times the digits' 8 × 8.
        model={"class": "Classifier", "image_size": 28, "num_classes": 10, "width": 16},
        steps=6000,  # six epochs in 2.5 minutes
    ),
    "mnist_dit": DiffusionRecipe(
        dataset="mnist",
        # 49 patches of 4×4 pixels: patches of 2×2 would be four times as many, at four times the
        # price.
        model={
            "class": "DiT",
            "image_size": 28,
            "patch": 4,
            "width": 128,
            "depth": 4,
            "num_classes": 10,
        },
        process={"name": "vp_cosine"},
        kind="v",
        steps=15_000,
        batch_size=128,
        learning_rate=1e-3,
        scales=(0.0, 1.0, 1.5, 2.0, 3.0),
        samples=5000,
        sampling_steps=25,
    ),
    "mnist_flow": DiffusionRecipe(
        dataset="mnist",
        model={"class": "UNet", "channels": [32, 64], "stem": 2, "num_classes": 10},
        process={"name": "rectified_flow"},
        kind="flow",
        steps=10_000,
        batch_size=128,
        scales=(0.0, 1.0, 1.5, 2.0, 3.0),
        samples=5000,
        sampling_steps=25,
    ),
    "mnist_consistency": ConsistencyRecipe(
        dataset="mnist",
        model={"class": "UNet", "channels": [32, 64], "stem": 2, "num_classes": 10},
        process={"name": "vp_cosine"},
        kind="v",
        teacher="mnist",
        guidance=1.5,
        steps=10_000,
        batch_size=128,
        # Not tuned: a fifteenth of what the teacher was trained with, whose weights it begins with.
        learning_rate=2e-4,
        ema=0.99,
        grid=32,
        huber=0.1,
        samples=5000,
    ),
    "mnist_meanflow": MeanFlowRecipe(
        dataset="mnist",
        model={
            "class": "UNet",
            "channels": [32, 64],
            "stem": 2,
            "num_classes": 10,
            "extras": 1,
            # Sinusoids of 1000·t have slopes that the derivative by t would be made of.
            "time_scale": 20.0,
        },
        guidance=1.5,
        steps=10_000,
        batch_size=128,
        samples=5000,
    ),
    "shapes": DiffusionRecipe(
        dataset="shapes",
        model={
            "class": "UNet",
            "image_channels": 3,
            "channels": [32, 64],
            "stem": 2,
            "num_classes": 6,
        },
        process={"name": "vp_cosine"},
        kind="v",
        steps=4000,  # eight epochs
        # Half as many images as MNIST, and 24 pixels: 28 would be a third more work.
        options={"n": 30_000, "size": 24},
    ),
    "shapes_classifier": ClassifierRecipe(
        dataset="shapes",
        model={
            "class": "Classifier",
            "image_channels": 3,
            "image_size": 24,
            "num_classes": 6,
            "width": 16,
        },
        steps=2000,  # four epochs, after which it is right on all of 30,000 unseen images
        options={"n": 30_000, "size": 24},
    ),
    "shapes_vae": AutoencoderRecipe(
        dataset="shapes",
        model={
            "class": "VAE",
            "image_channels": 3,
            "latent_channels": 4,
            "channels": [32, 64],
            "stem": 2,
        },
        options={"n": 30_000, "size": 32},  # 3,072 pixel values become 8 × 8 × 4 = 256 latents
        # The corners of a small star are a few pixels wide, and are learnt last: after 400 steps
        # all small shapes are smudges.
        steps=8000,
        # Codes as precise as pixels with noise of standard deviation .05: 2.5 % of their range.
        beta=2 * 0.05**2,
        # Of the size of the squared error of a sharp image, so that neither hides the other.
        features=0.02,
        judge="shapes_classifier",
    ),
    "shapes_latent": LatentRecipe(
        dataset="shapes",
        # The network of "shapes" without its stem: a quarter of the positions.
        model={"class": "UNet", "image_channels": 4, "channels": [32, 64], "num_classes": 6},
        process={"name": "vp_cosine"},
        kind="v",
        autoencoder="shapes_vae",
        options={"n": 30_000, "size": 32},
        # Twice the images of "shapes" at a quarter of the operations: half of its training.
        steps=8000,
        samples=2000,
    ),
    "shapes_lcm": LatentConsistencyRecipe(
        dataset="shapes",
        model={
            "class": "UNet",
            "image_channels": 4,
            "channels": [32, 64],
            "num_classes": 6,
            "extras": 1,  # w
        },
        process={"name": "vp_cosine"},
        kind="v",
        teacher="shapes_latent",
        autoencoder="shapes_vae",
        options={"n": 12_000, "size": 32},
        # From the conditional model to where guidance begins to cost quality (the teacher's card).
        least=1.0,
        most=3.0,
        guidance=1.5,
        # 25 steps of the teacher lead from t = 1 to 0; the times lie four times as close.
        grid=100,
        skip=4,
        huber=0.1,
        steps=2000,
        batch_size=32,
        # Not tuned: a third of what the teacher was trained with, whose weights it begins with.
        learning_rate=1e-3,
        # As in the paper (Luo et al. 2023): the target follows the student at a short distance.
        ema=0.95,
        samples=1000,
    ),
    "mnist_vae": AutoencoderRecipe(
        dataset="mnist",
        model={"class": "VAE", "latent_channels": 4, "channels": [32, 64], "stem": 2},
        steps=5000,  # 784 pixel values become 7 × 7 × 4 = 196 latents
        # Noise of .07: handwriting is less regular than the shapes, and its codes are coarser.
        beta=2 * 0.07**2,
        features=0.02,
        judge="mnist_classifier",
    ),
    "mnist_latent": LatentRecipe(
        dataset="mnist",
        # 7 positions cannot be halved. Of one level, this depth and width take a fifth of the
        # operations of "mnist".
        model={
            "class": "UNet",
            "image_channels": 4,
            "channels": [32],
            "blocks": 2,
            "num_classes": 10,
        },
        process={"name": "vp_cosine"},
        kind="v",
        autoencoder="mnist_vae",
        steps=10_000,
        batch_size=128,  # so that it sees twice the images of "mnist", for two fifths of its work
        samples=5000,
        sampling_steps=25,
    ),
    "shapes_8": DiffusionRecipe(
        dataset="shapes",
        # The base of a cascade. Eight pixels cannot be halved twice, and two blocks of one level
        # see all of them.
        model={
            "class": "UNet",
            "image_channels": 3,
            "channels": [32],
            "blocks": 2,
            "num_classes": 6,
        },
        process={"name": "vp_cosine"},
        kind="v",
        # Averages of the next stage's images, which are not the same as shapes drawn with 8 pixels.
        options={"n": 10_000, "size": 8, "averaged": 2},
        # So few that its samples are visibly not perfect: the next stage gets these errors.
        steps=1000,
        batch_size=32,
        ema=0.995,  # of so short a training
        samples=300,
        sampling_steps=15,
        scales=(1.0,),
    ),
    "shapes_8to16": CascadeRecipe(
        dataset="shapes",
        model={
            "class": "Upsampler",
            "factor": 2,
            "image_channels": 3,
            "channels": [32],
            "blocks": 2,
            "stem": 2,
            "num_classes": 6,
        },
        process={"name": "vp_cosine"},
        kind="v",
        base="shapes_8",
        judge="shapes_judge",
        options={"n": 10_000, "size": 16},
        steps=1200,
        batch_size=32,
        ema=0.995,
        highest=0.6,
        samples=300,
        sampling_steps=15,
    ),
    "shapes_16to32": CascadeRecipe(
        dataset="shapes",
        # Four times the places of the stage before it, and half its blocks: edges are local.
        model={
            "class": "Upsampler",
            "factor": 2,
            "image_channels": 3,
            "channels": [32],
            "blocks": 1,
            "stem": 2,
            "num_classes": 6,
        },
        process={"name": "vp_cosine"},
        kind="v",
        base="shapes_8to16",
        judge="shapes_judge",
        options={"n": 10_000, "size": 32},
        steps=4000,
        batch_size=8,  # images with four times the pixels
        ema=0.995,
        highest=0.3,
        levels=(0.0, 0.2),
        samples=300,
        sampling_steps=15,
    ),
    "clips": ClipRecipe(
        dataset="clips",
        # Two thirds of the parameters of adaptive norms in every block, and small enough for two
        # cores.
        model={
            "class": "VideoDiT",
            "image_size": 16,
            "image_channels": 3,
            "patch": 4,
            "width": 64,
            "depth": 3,
            "head_size": 16,
        },
        process={"name": "vp_cosine"},
        # A token of 64 numbers has to carry the 48 of a patch. Of clean patches there are few
        # kinds, but v holds the noise: with it the network drew smudges after 3,000 steps.
        kind="x0",
        options={"n": 20_000, "frames": 8, "size": 16},
        steps=8000,
        batch_size=12,
        images=3,
        ema=0.995,
    ),
    "shapes_judge": AttributesRecipe(
        dataset="shapes",
        model={
            "class": "AttributeClassifier",
            "image_channels": 3,
            "image_size": 32,
            "answers": [6, 8, 2, 9],
            "width": 16,
        },
        options={"n": 60_000, "size": 32},
        steps=2000,  # four epochs, after which it is right on all of 6,000 unseen images
        batch_size=128,
        learning_rate=2e-3,
    ),
    "shapes_text": TextRecipe(
        dataset="shapes",
        model=_TEXT,
        process={"name": "vp_cosine"},
        kind="v",
        options={"n": 60_000, "size": 32},
        steps=8000,
        batch_size=128,
        judge="shapes_judge",
        scales=(0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0),
        samples=1000,
    ),
    "shapes_clip": ContrastiveRecipe(
        dataset="shapes",
        model={
            "class": "Contrastive",
            "image_size": 32,
            "image_channels": 3,
            "num_words": 27,
            "dim": 32,
            "width": 16,
            "text_width": 32,
        },
        options={"n": 60_000, "size": 32},
        steps=2000,
        batch_size=256,  # every other caption of a batch is a wrong answer to tell apart
        learning_rate=2e-3,
        painter="shapes_text",
    ),
    "shapes_control": _CONTROL,
    # In everything but the map as that of edges, and stopped after as many steps: only so does a
    # difference between the two tell something of the maps.
    "shapes_control_mask": replace(_CONTROL, map="silhouette"),
    "shapes_lora": AdapterRecipe(
        dataset="shapes",
        model={
            "class": "Adapter",
            "model": _TEXT,
            "rank": 4,
            # Attention, to read the new word; convolutions, to draw what it says.
            "layers": ["qkv", "q", "kv", "out", "conv1", "conv2"],
        },
        process={"name": "vp_cosine"},
        kind="v",
        base="shapes_text",
        judge="shapes_judge",
        options={"n": 24, "size": 32, "new": True},
        kept=384,
        steps=300,
        batch_size=24,
        learning_rate=5e-3,
        ema=0.99,
    ),
    # Points whose exact denoiser is known: what a chapter measures, it can compare with the truth.
    "toy2d": DiffusionRecipe(
        dataset="toy2d",
        model={"class": "MLP", "num_classes": 3},
        process={"name": "vp_cosine"},
        kind="v",
        # Points are cheap: 6 million of them in 2.3 minutes bring the network within 2e-4 of the
        # exact denoiser (squared distance). The large batch keeps the noise of its gradient, which
        # would hide such distances, small.
        steps=12_000,
        batch_size=512,
        # What the released weights were made with; in a run of 1,000 steps 6e-3 comes nearer to the
        # exact denoiser (6.0e-4 against 8.7e-4).
        learning_rate=2e-3,
        options={"kind": "mixture", "n": 100_000},
        scales=(0.0, 1.0),
        samples=20_000,  # two features only: the distance's floor is then 1e-5
    ),
}


def names() -> tuple[str, ...]:
    """The names of the recipes.

    >>> names()[:2]
    ('digits', 'digits_classifier')
    """
    return tuple(RECIPES)
