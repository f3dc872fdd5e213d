"""Heads that only training needs: prototypes for self-distillation, a prompter for regions, a light DPT for depth.

Shapes: B pictures, N = g × g patches, K boxes, D width of the backbone, C channels of a head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrototypeHead(nn.Module):
    """MLP → bottleneck → unit vector → cosine with each unit prototype (DINOv2 `layers/dino_head.py`). [..., D] → [..., prototypes]."""

    def __init__(self, width: int, hidden: int, layers: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        sizes = [width, *([hidden] * (layers - 1)), bottleneck]
        modules: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            modules += [nn.Linear(inputs, outputs), nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines, −1 … 1. Norms of the prototypes are fixed at 1: free ones let the head sharpen itself."""
        # eps as in DINOv2: in half precision a smaller one is 0.
        unit = F.normalize(self.mlp(x), dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        return F.linear(unit, F.normalize(self.prototypes, dim=-1))


def sinusoid(values: Tensor, frequencies: int) -> Tensor:
    """[..., M] of values 0 … 1 → [..., M × 2 × frequencies]: sines and cosines of π·2^k·value, k = 0 … frequencies − 1."""
    angles = values.unsqueeze(-1) * (math.pi * 2.0 ** torch.arange(frequencies, device=values.device, dtype=values.dtype))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def overlap(boxes_BK4: Tensor, side: int) -> Tensor:
    """[B, K, side²]: share of each patch that lies in each box, row by row; boxes are xyxy, 0 … 1."""
    low = torch.arange(side, device=boxes_BK4.device, dtype=boxes_BK4.dtype) / side
    x1, y1, x2, y2 = boxes_BK4.unsqueeze(-1).unbind(-2)
    columns = (torch.minimum(low + 1 / side, x2) - torch.maximum(low, x1)).clamp(min=0) * side
    rows = (torch.minimum(low + 1 / side, y2) - torch.maximum(low, y1)).clamp(min=0) * side
    return (rows.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(-2)


class Prompter(nn.Module):
    """One cross-attention: a query a box, made of the box alone, looks at the patches (CLOC, who found pooling worse).

    It starts out looking inside the box, by a learnt preference; from scratch it would have to find out first what the numbers mean.
    """

    def __init__(self, width: int, heads: int, frequencies: int = 6) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"grounding.heads ({heads}) must divide the backbone's width ({width})")
        self.heads, self.frequencies = heads, frequencies
        self.query = nn.Sequential(nn.Linear(8 * frequencies, width), nn.GELU(), nn.Linear(width, width))
        self.place = nn.Linear(4 * frequencies, width)
        self.inside = nn.Parameter(torch.full((heads,), 4.0))  # e⁴: a patch inside weighs as much as 55 outside
        self.norm = nn.LayerNorm(width)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, patches_BND: Tensor, boxes_BK4: Tensor) -> Tensor:
        """[B, K, D], not normalised; boxes are xyxy, 0 … 1."""
        B, N, D = patches_BND.shape
        side = math.isqrt(N)
        centres = (torch.arange(side, device=patches_BND.device, dtype=boxes_BK4.dtype) + 0.5) / side
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        places_N4F = sinusoid(torch.stack([columns.flatten(), rows.flatten()], dim=-1), self.frequencies)
        patches_BND = self.norm(patches_BND)
        # Keys know where they are, so that a box can find its patches before the features can tell it.
        keys_BND = self.key(patches_BND) + self.place(places_N4F)
        queries_BKD = self.query(sinusoid(boxes_BK4, self.frequencies))

        def split(x: Tensor) -> Tensor:
            return x.view(B, -1, self.heads, D // self.heads).transpose(1, 2)

        inside_BhKN = self.inside.view(-1, 1, 1) * overlap(boxes_BK4, side).unsqueeze(1)
        attended = F.scaled_dot_product_attention(
            split(queries_BKD), split(keys_BND), split(self.value(patches_BND)), attn_mask=inside_BhKN
        )
        out: Tensor = self.out(attended.transpose(1, 2).reshape(B, -1, D))
        return out


class _Fuse(nn.Module):
    """A residual pair of 3 × 3 convolutions (DPT's residual unit), after adding a layer to what deeper layers gave."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.gelu(self.first(F.gelu(x))))
        return out


class DepthHead(nn.Module):
    """A light DPT: layers are fused on the patch grid, deepest first; then one doubling and the map. No ReLU at the end that could die."""

    def __init__(self, width: int, num_layers: int, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers))
        self.reduce = nn.ModuleList(nn.Linear(width, channels) for _ in range(num_layers))
        self.fuse = nn.ModuleList(_Fuse(channels) for _ in range(num_layers))
        self.up = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        self.out = nn.Conv2d(channels // 2, 4, 3, padding=1)

    def forward(self, layers_BND: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """[B, h, w] of inverse depth in units of its own; `size` is (h, w)."""
        B, N, _ = layers_BND[0].shape
        side = math.isqrt(N)
        fused: Tensor | None = None
        for index in reversed(range(len(layers_BND))):
            map_BCgg = self.reduce[index](self.norms[index](layers_BND[index])).transpose(1, 2).reshape(B, -1, side, side)
            fused = self.fuse[index](map_BCgg if fused is None else map_BCgg + fused)
        assert fused is not None, "a depth head reads at least one layer"
        # Four values a half-patch, moved into space: a quarter of a patch without a convolution at that size.
        fine = F.pixel_shuffle(self.out(F.gelu(self.up(fused))), 2)
        return F.interpolate(fine, size=size, mode="bilinear", align_corners=False).squeeze(1)
