"""The PyTorch worker of `time_to_quality.py`: the recipe of the digits in plain PyTorch.

The same data, objective, schedules and network (`twins.py`) as `recipes.RECIPES["digits"]`, and
nothing of this library or of JAX.
"""

import math
import time
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
import twins
from worker import serve

BATCH, NULL, LABEL_DROPOUT, EMA, CLIP = 64, 10, 0.1, 0.999, 1.0
MODEL = {"class": "UNet", "channels": (32, 64), "num_classes": NULL}


def digits():
    """The training images [N, 1, 8, 8] in −1 … 1 and labels: all but each class's fifth ones."""
    from sklearn.datasets import load_digits

    source = load_digits()
    train = np.ones(len(source.target), bool)
    train[np.argsort(source.target, kind="stable")[::5]] = False
    x = torch.from_numpy(source.images[train]).float()[:, None] / 8 - 1
    return x, torch.from_numpy(source.target[train]).long()


def levels(t):
    """alpha, sigma of the cosine process, shaped for images [B, 1, 8, 8]."""
    s = 0.008
    angle = (t + s) / (1 + s) * math.pi / 2
    alpha = torch.cos(angle) / math.cos(s / (1 + s) * math.pi / 2)
    return alpha.view(-1, 1, 1, 1), (1 - alpha**2).clamp(min=0).sqrt().view(-1, 1, 1, 1)


def rate(n, peak, steps):
    """Adam's rate at step n, from 0: linear warm-up over a tenth of the run, cosine decay to 0."""
    warmup = min(200, steps // 10)
    if n < warmup:
        first = peak / warmup
        return first + (peak - first) * n / warmup
    return peak * (1 + math.cos(math.pi * (n - warmup) / (steps - warmup))) / 2


def batches(x, labels, generator):
    while True:
        order = torch.randperm(len(x), generator=generator)
        for chosen in order[: len(x) // BATCH * BATCH].split(BATCH):
            yield x[chosen], labels[chosen]


def loss_of(model, x0, labels):
    """Squared error of v at stratified times; a tenth of the labels becomes the null class."""
    labels = torch.where(torch.rand(BATCH) < LABEL_DROPOUT, NULL, labels)
    t = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH
    alpha, sigma = levels(t)
    eps = torch.randn_like(x0)
    return F.mse_loss(model(alpha * x0 + sigma * eps, t, labels), alpha * eps - sigma * x0)


class Peer:
    def train(self, steps: int, seed: int, learning_rate: float, model: dict | None) -> dict:
        torch.manual_seed(seed)
        self.seed = seed
        network, averaged = twins.build(model or MODEL), twins.build(model or MODEL)
        averaged.load_state_dict(network.state_dict())
        params, ema = list(network.parameters()), list(averaged.parameters())
        optimizer = torch.optim.Adam(params, lr=learning_rate, fused=True)
        source = batches(*digits(), torch.Generator().manual_seed(seed))
        for n in range(steps):
            optimizer.param_groups[0]["lr"] = rate(n, learning_rate, steps)
            optimizer.zero_grad()
            loss = loss_of(network, *next(source))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, CLIP)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(ema, params, 1 - min(EMA, (1 + n) / (10 + n)))
            if n == 0:
                first = time.perf_counter()
        self.model = averaged.eval()
        after_first = time.perf_counter() - first
        return {"seconds_after_first_step": after_first, "last_loss": loss.item()}

    @torch.inference_mode()
    def sample(self, path: str, count: int, steps: int) -> None:
        """DDIM on a uniform grid from t = 1 to 0."""
        labels = torch.arange(count) % 10
        x = torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(self.seed + 1))
        times = torch.linspace(1, 0, steps + 1)
        for t, s in pairwise(times):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(t), levels(s)
            v = self.model(x, t.expand(count), labels)
            x0, eps = alpha_t * x - sigma_t * v, sigma_t * x + alpha_t * v
            x = alpha_s * x0 + sigma_s * eps
        np.savez(path, x=x.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())


def main() -> None:
    peer = Peer()
    serve({"train": peer.train, "sample": peer.sample})


if __name__ == "__main__":
    main()
