"""The library's networks once more in PyTorch, as a PyTorch user would write them.

Every layer is the one that `torch.nn` brings; names, shapes and initial zeros are those of
`diffusion_course.models`, so that `load` can copy the weights over and the two networks compute
the same function. That makes the benchmarks fair: both sides do the same arithmetic. Images are
NCHW here, PyTorch's own order.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# --------------------------------------------------------------------------------------------
# Parts of both networks
# --------------------------------------------------------------------------------------------


def sinusoids(positions, dim):
    frequencies = torch.exp(-np.log(10_000.0) * torch.arange(dim // 2) / (dim // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, t):
        return self.second(F.silu(self.first(sinusoids(1000.0 * t, self.dim))))


class Embedded(nn.Module):
    """A network that is told the time and, with label classes, a label or none."""

    def __init__(self, dim, num_classes):
        super().__init__()
        self.null_label = num_classes
        self.time = TimeEmbedding(dim)
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, dim)

    def embed(self, t, cond):
        if self.label is None:
            return self.time(t)
        cond = torch.full_like(t, self.null_label, dtype=torch.long) if cond is None else cond
        return self.time(t) + self.label(cond)


def attend(qkv, heads):
    """Self-attention of [B, N, 3·C] -> [B, N, C]."""
    batch, tokens, width = qkv.shape
    q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).reshape(batch, tokens, width // 3)


def zero(layer):
    """The layer with all its parameters at zero, as output layers start."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


# --------------------------------------------------------------------------------------------
# The U-Net
# --------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    def __init__(self, c_in, c_out, dim):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(dim, 2 * c_out)
        self.norm2 = nn.GroupNorm(8, c_out)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return h + self.skip(x)


class Attention(nn.Module):
    def __init__(self, channels, head_size=32):
        super().__init__()
        self.heads = channels // head_size
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x):
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.out(attend(self.qkv(tokens), self.heads)).transpose(1, 2).reshape(x.shape)


class UNet(Embedded):
    def __init__(self, image_channels=1, channels=(32, 64), *, stem=1, num_classes=None):
        dim = 4 * channels[0]
        super().__init__(dim, num_classes)
        self.stem = stem
        self.conv_in = nn.Conv2d(stem**2 * image_channels, channels[0], 3, padding=1)
        down, halve, skips, width = [], [], [channels[0]], channels[0]
        for level, c in enumerate(channels):
            down.append(ResidualBlock(width, c, dim))
            width = c
            skips.append(width)
            if level < len(channels) - 1:
                halve.append(nn.Conv2d(width, width, 3, stride=2))
        self.middle, self.attention = ResidualBlock(width, width, dim), Attention(width)
        up, double = [], []
        for level, c in reversed(list(enumerate(channels))):
            up.append(ResidualBlock(width + skips.pop(), c, dim))
            width = c
            if level > 0:
                double.append(nn.Conv2d(width, width, 3, padding=1))
        self.down, self.halve = nn.ModuleList(down), nn.ModuleList(halve)
        # "double" itself is a method of torch's modules.
        self.up, self.double_ = nn.ModuleList(up), nn.ModuleList(double)
        self.norm_out = nn.GroupNorm(8, width + skips[0])
        self.conv_out = zero(nn.Conv2d(width + skips[0], stem**2 * image_channels, 3, padding=1))

    def forward(self, x, t, cond=None):
        emb = self.embed(t, cond)
        h = self.conv_in(F.pixel_unshuffle(x, self.stem) if self.stem > 1 else x)
        skips = [h]
        for level, block in enumerate(self.down):
            h = block(h, emb)
            skips.append(h)
            if level < len(self.halve):
                h = self.halve[level](F.pad(h, (0, 1, 0, 1)))  # as "SAME" pads for stride 2
        h = self.attention(self.middle(h, emb))
        for level, block in enumerate(self.up):
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
            if level < len(self.double_):
                h = self.double_[level](F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.conv_out(F.silu(self.norm_out(torch.cat([h, skips.pop()], dim=1))))
        return F.pixel_shuffle(h, self.stem) if self.stem > 1 else h


# --------------------------------------------------------------------------------------------
# The diffusion transformer
# --------------------------------------------------------------------------------------------


def modulated(x, shift, scale):
    """Layer norm without parameters, then the embedding's scale and shift; x [B, N, width]."""
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, width, head_size):
        super().__init__()
        self.heads = width // head_size
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, emb):
        modulation = self.modulation(F.silu(emb)).chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        mixed = self.out(attend(self.qkv(modulated(x, shift1, scale1)), self.heads))
        x = x + gate1[:, None] * mixed
        hidden = F.gelu(self.mlp_in(modulated(x, shift2, scale2)), approximate="tanh")
        return x + gate2[:, None] * self.mlp_out(hidden)


class DiT(Embedded):
    def __init__(
        self, image_size, image_channels=1, *, patch=2, width=128, depth=4, head_size=32,
        num_classes=None,
    ):  # fmt: skip
        super().__init__(width, num_classes)
        self.patch, self.side = patch, image_size // patch
        self.patchify = nn.Linear(patch**2 * image_channels, width)
        self.blocks = nn.ModuleList([Block(width, head_size) for _ in range(depth)])
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.final = zero(nn.Linear(width, patch**2 * image_channels))
        place = sinusoids(torch.arange(self.side), width // 2)
        rows, columns = place.repeat_interleave(self.side, dim=0), place.repeat(self.side, 1)
        self.register_buffer("positions", torch.cat([rows, columns], dim=-1), persistent=False)

    def forward(self, x, t, cond=None):
        batch, channels, size, _ = x.shape
        emb = self.embed(t, cond)
        grid = (batch, channels, self.side, self.patch, self.side, self.patch)
        patches = x.reshape(grid).permute(0, 2, 4, 3, 5, 1).reshape(batch, self.side**2, -1)
        h = self.patchify(patches) + self.positions
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.modulation(F.silu(emb)).chunk(2, dim=-1)
        h = self.final(modulated(h, shift, scale))
        h = h.reshape(batch, self.side, self.side, self.patch, self.patch, channels)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, size, size)


# --------------------------------------------------------------------------------------------
# Making one
# --------------------------------------------------------------------------------------------


def build(description):
    """A twin from the description that `diffusion_course.weights.build` takes."""
    arguments = dict(description)
    return {"UNet": UNet, "DiT": DiT}[arguments.pop("class")](**arguments)


def load(twin, arrays):
    """Copies weights over: arrays by path ("down.0.conv1.kernel"), as `flat_params` gives them.

    Raises: ValueError where the two networks do not have the same parameters.
    """
    rest = dict(_unstacked(arrays))
    for path, parameter in twin.named_parameters():
        layer, _, leaf = path.replace("double_.", "double.").rpartition(".")
        names = ["bias"] if leaf == "bias" else ["kernel", "scale", "embedding"]
        found = [f"{layer}.{name}" for name in names if f"{layer}.{name}" in rest]
        if not found:
            raise ValueError(f"no array for {path}; left are {', '.join(rest) or 'none'}")
        array, is_embedding = rest.pop(found[0]), found[0].endswith("embedding")
        array = torch.from_numpy(array if is_embedding else _output_first(array, parameter.ndim))
        if array.shape != parameter.shape:
            raise ValueError(f"{path} has shape {parameter.shape}, its array {array.shape}")
        with torch.no_grad():
            parameter.copy_(array)
    if rest:
        raise ValueError(f"the twin has no {', '.join(rest)}")


def _unstacked(arrays):
    """Names as the twins have them: "blocks.kernel" [depth, …] is "blocks.0.kernel" and so on."""
    for name, array in arrays.items():
        name = name.removeprefix("embed.")
        first, _, rest = name.partition(".")
        if first == "blocks" and not rest[0].isdigit():
            yield from ((f"{first}.{i}.{rest}", layer) for i, layer in enumerate(array))
        else:
            yield name, array


def _output_first(array, ndim):
    """[O] as it is, [C, O] -> [O, C] or (for a 1×1 convolution) [O, C, 1, 1], HWIO -> OIHW."""
    if array.ndim == 2 and ndim == 4:
        array = array[None, None]
    return array if array.ndim == 1 else np.moveaxis(array, (-1, -2), (0, 1)).copy()
