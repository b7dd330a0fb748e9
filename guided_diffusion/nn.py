"""Layers of the ADM networks, with the parameter names of openai/guided-diffusion."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

CACHED_WEIGHTS = 2**21  # attention weights that a cache holds, 4 MiB


def timestep_embedding(timesteps: torch.Tensor, dim: int, max_period: float = 10000.0) -> torch.Tensor:
    """Sinusoidal embedding of (fractional) timesteps [N] into [N, dim], cosines first, float32."""
    half = dim // 2
    freqs = torch.exp(torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(max_period) / half))
    angles = timesteps[:, None].float() * freqs
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, so that a residual branch starts without effect."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm32(nn.GroupNorm):
    """32 groups, statistics in float32, result in the dtype of the input."""

    def __init__(self, channels: int):
        super().__init__(32, channels)

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Conv2d(nn.Conv2d):
    """Convolution in `compute_dtype` (None: the dtype of its input), whatever the dtype of its weights."""

    compute_dtype: torch.dtype | None = None

    def forward(self, x):
        x = x.to(self.compute_dtype or x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class PointwiseConv1d(nn.Conv1d):
    """Kernel-1 convolution in `compute_dtype` (None: the dtype of its input)."""

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1)

    def tokens(self, x):
        """[N, L, in] -> [N, L, out]; this order saves transposing channels-last features."""
        x = x.to(self.compute_dtype or x.dtype)
        return F.linear(x, self.weight[:, :, 0].to(x.dtype), self.bias.to(x.dtype))


class ConditionalSequential(nn.Sequential):
    """Layers applied in turn; residual blocks also get the embedding."""

    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """Residual block with scale and shift from the embedding; x [N, in, H, W], emb [N, E] -> [N, out, H', W'].

    Sums and norms are in the dtype of x, convolutions in their own (`Conv2d.compute_dtype`).
    """

    def __init__(self, channels: int, emb_channels: int, dropout: float, out_channels: int | None = None,
                 use_scale_shift_norm: bool = False, down: bool = False):
        super().__init__()
        out_channels = out_channels or channels
        self.use_scale_shift_norm, self.down = use_scale_shift_norm, down
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), Conv2d(channels, out_channels, 3, padding=1))
        width = out_channels * (2 if use_scale_shift_norm else 1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        self.out_layers = nn.Sequential(GroupNorm32(out_channels), nn.SiLU(), nn.Dropout(dropout),
                                        zero_module(Conv2d(out_channels, out_channels, 3, padding=1)))
        self.skip_connection = nn.Identity() if out_channels == channels else Conv2d(channels, out_channels, 1)

    def _resample(self, x):
        return F.avg_pool2d(x, 2) if self.down else x

    def forward(self, x, emb):
        norm, act, conv = self.in_layers
        h = conv(self._resample(act(norm(x)))).to(x.dtype)
        x = self._resample(x)
        emb = self.emb_layers(emb).to(x.dtype)[:, :, None, None]
        norm, act, dropout, conv = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + emb)
        return self.skip_connection(x).to(x.dtype) + conv(dropout(act(h)))


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution (key `op`) or by averaging."""

    def __init__(self, channels: int, use_conv: bool):
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x):
        return self.op(x)


@functools.cache
def fused_bf16_is_slow() -> bool:
    """Whether this CPU lacks AMX, so that torch's fused attention takes as long in bfloat16 as in float32."""
    return not getattr(torch.cpu, '_is_amx_tile_supported', lambda: True)()


def attention(q, k, v):
    """softmax(q k^T / sqrt(C)) v for q, k, v [N, heads, L, C].

    By torch's fused kernel, or if that is slow, by matrix products over as many images as have weights that fit the
    cache.
    """
    if q.device.type != 'cpu' or q.dtype != torch.bfloat16 or torch.compiler.is_compiling() or not fused_bf16_is_slow():
        return F.scaled_dot_product_attention(q, k, v)
    images = max(1, CACHED_WEIGHTS // (q.shape[1] * q.shape[2] ** 2))
    parts = zip(*(x.split(images) for x in (q * q.shape[3] ** -0.5, k, v)))
    return torch.cat([(q @ k.mT).softmax(-1) @ v for q, k, v in parts])


class AttentionBlock(nn.Module):
    """Self-attention over the positions of [N, C, H, W], residual; channels split into heads first, then q, k, v."""

    def __init__(self, channels: int, num_heads: int = 1, num_head_channels: int = -1):
        super().__init__()
        if num_head_channels != -1 and channels % num_head_channels:
            raise ValueError(f'{channels} channels cannot be split into heads of {num_head_channels}')
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        self.norm = GroupNorm32(channels)
        self.qkv = PointwiseConv1d(channels, channels * 3)
        self.proj_out = zero_module(PointwiseConv1d(channels, channels))

    def forward(self, x):
        n, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [N, L, C]
        qkv = self.qkv.tokens(tokens).reshape(n, height * width, self.num_heads, 3, -1)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # each [N, heads, L, C / heads]
        h = attention(q, k, v).transpose(1, 2).reshape(n, height * width, channels)
        h = self.proj_out.tokens(h).transpose(1, 2).reshape(n, channels, height, width)
        return x + h


class AttentionPool2d(nn.Module):
    """One query, the mean, attends to all positions: [N, C, H, W] -> [N, out] (as in CLIP, Radford et al. 2021)."""

    def __init__(self, resolution: int, channels: int, num_head_channels: int, out_channels: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(channels, resolution**2 + 1) / channels**0.5)
        self.qkv_proj = PointwiseConv1d(channels, 3 * channels)
        self.c_proj = PointwiseConv1d(channels, out_channels)
        self.num_heads = channels // num_head_channels

    def forward(self, x):
        n, channels = x.shape[:2]
        tokens = x.flatten(2).transpose(1, 2)  # [N, L, C]
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.t().to(x.dtype)
        qkv = self.qkv_proj.tokens(tokens).reshape(n, tokens.shape[1], 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, 1 + L, C / heads]
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the mean's output is used
        return self.c_proj.tokens(pooled.transpose(1, 2).reshape(n, channels).to(x.dtype))
