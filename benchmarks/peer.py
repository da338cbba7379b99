"""The PyTorch workers of `compare.py`: ``python benchmarks/peer.py SHAPE twin|diffusers``.

`twin` is the network of `twins.py`, layer for layer this library's; `diffusers` is the model
that diffusers itself offers for such images, which has other parameters. Both are trained and
sampled as diffusers' own pipelines do it.
"""

import sys
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
import twins
from shapes import BATCH, CLASSES, DDIM_STEPS, LEARNING_RATE, PRODUCTS, SHAPES, Shape, batch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from worker import peak_mib, seconds_per_call, serve

TRAIN_TIMES = 1000  # steps of diffusers' chain


class Peer:
    """One network and what is measured with it."""

    def __init__(self, name: str, kind: str):
        self.shape, self.is_twin = SHAPES[name], kind == "twin"
        torch.manual_seed(0)
        self.model = twins.build(self.shape.model) if self.is_twin else nearest(self.shape)
        arrays = {k: torch.from_numpy(v) for k, v in batch(self.shape.size).items()}
        images = {k: arrays[k].permute(0, 3, 1, 2).contiguous() for k in ("x", "target")}
        self.batch = arrays | images | {"labels": arrays["labels"].long()}

    def call(self, x, steps, labels):
        """The network at steps [B] of the chain, which diffusers counts from 0 to 999."""
        if self.is_twin:
            return self.model(x, steps / TRAIN_TIMES, labels)
        return self.model(x, timestep=steps, class_labels=labels, return_dict=False)[0]

    def loss(self) -> torch.Tensor:
        b = self.batch
        return F.mse_loss(self.call(b["x"], TRAIN_TIMES * b["t"], b["labels"]), b["target"])

    def agreement(self, path: str) -> float:
        """Takes over weights; the largest difference of outputs, relative to the largest output."""
        with np.load(path) as arrays:
            arrays = dict(arrays)
        expected = arrays.pop("output")
        twins.load(self.model, arrays)
        found = self.predict().permute(0, 2, 3, 1).numpy()
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    @torch.inference_mode()
    def predict(self) -> torch.Tensor:
        b = self.batch
        return self.call(b["x"], TRAIN_TIMES * b["t"], b["labels"])

    def forward(self, repeat: int) -> float:
        return seconds_per_call(self.predict, repeat)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        # The fused one is PyTorch's fastest on a CPU.
        return torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def train_once(self) -> float:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def first_steps(self, repeat: int) -> dict:
        """Losses of the first steps."""
        return {"losses": [self.train_once() for _ in range(repeat)]}

    def train(self, repeat: int) -> float:
        return seconds_per_call(self.train_once, repeat)

    @cached_property
    def scheduler(self):
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(
            num_train_timesteps=TRAIN_TIMES,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            clip_sample=False,
        )
        scheduler.set_timesteps(DDIM_STEPS)
        return scheduler

    @torch.inference_mode()
    def draw(self) -> np.ndarray:
        labels = torch.arange(BATCH) % CLASSES
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((BATCH, 1, self.shape.size, self.shape.size), generator=generator)
        self.model.eval()
        for step in self.scheduler.timesteps:
            y = self.call(x, step.expand(BATCH), labels)
            x = self.scheduler.step(y, step, x).prev_sample
        self.model.train()
        return x.numpy()

    def ddim(self, repeat: int) -> float:
        return seconds_per_call(self.draw, repeat)

    def size(self) -> dict:
        """Parameters, and GFLOP of one forward pass and of one with gradients, for one batch."""
        with sdpa_kernel(SDPBackend.MATH):  # the others hide attention's products from the count
            with FlopCounterMode(display=False) as forward, torch.no_grad():
                self.loss()
            with FlopCounterMode(display=False) as both:
                self.loss().backward()
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "gflop": {
                "forward": forward.get_total_flops() / 1e9,
                "train": both.get_total_flops() / 1e9,
                "ddim": DDIM_STEPS * forward.get_total_flops() / 1e9,
            },
        }

    def products(self, repeat: int) -> list[float]:
        """GFLOP/s of each matrix product of PRODUCTS."""
        return [self._product(*product, repeat) for product in PRODUCTS]

    def _product(self, m: int, k: int, n: int, repeat: int) -> float:
        a, b = torch.ones(m, k), torch.ones(k, n)
        a @ b
        return 2e-9 * m * k * n / seconds_per_call(lambda: a @ b, repeat)

    def threads(self) -> int:
        return torch.get_num_threads()


def nearest(shape: Shape) -> torch.nn.Module:
    """The network of diffusers that is nearest to a shape."""
    model = shape.model
    if model["class"] == "UNet":
        from diffusers import UNet2DModel

        plain = len(model["channels"]) - 1
        return UNet2DModel(
            sample_size=shape.size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=model["channels"],
            norm_num_groups=8,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
            num_class_embeds=CLASSES + 1,
            attention_head_dim=32,
        )
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=model["width"] // 32,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=model["depth"],
        sample_size=shape.size,
        patch_size=model["patch"],
        num_embeds_ada_norm=CLASSES,
    )


def main() -> None:
    side = Peer(*sys.argv[1:])
    names = (
        "agreement", "forward", "first_steps", "train", "ddim", "size", "products", "threads",
    )  # fmt: skip
    serve({name: getattr(side, name) for name in names} | {"peak_mib": peak_mib})


if __name__ == "__main__":
    main()
