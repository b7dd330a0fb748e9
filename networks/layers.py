"""Layers of the score networks, initialised and named like EDM's, so that published weights load with strict keys."""

import math

import torch
import torch.nn.functional as F

from . import winograd


def init_tensor(shape, mode: str, fan_in: int, fan_out: int) -> torch.Tensor:
    """Random weights; `mode` is (xavier|kaiming)_(uniform|normal) (Glorot and Bengio 2010; He et al. 2015)."""
    variance = {'xavier': 2 / (fan_in + fan_out), 'kaiming': 1 / fan_in}[mode.split('_')[0]]
    if mode.endswith('_uniform'):
        return math.sqrt(3 * variance) * (2 * torch.rand(shape) - 1)
    return math.sqrt(variance) * torch.randn(shape)


class Linear(torch.nn.Module):
    """x [N, in] -> [N, out], computed in the dtype of x."""

    def __init__(self, in_features, out_features, bias=True, init_mode='kaiming_normal', init_weight=1.0,
                 init_bias=0.0):
        super().__init__()
        self.in_features = in_features
        fans = dict(mode=init_mode, fan_in=in_features, fan_out=out_features)
        self.weight = torch.nn.Parameter(init_tensor([out_features, in_features], **fans) * init_weight)
        self.bias = torch.nn.Parameter(init_tensor([out_features], **fans) * init_bias) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Conv2d(torch.nn.Module):
    """Convolution with optional resampling by two; kernel 0 means only resampling.

    x [N, in, H, W] -> [N, out, H', W'], computed in `compute_dtype` (None: the dtype of x). `fused_resample` moves
    the filter behind the convolution when down-sampling, without padding between the two (NCSN++'s residual encoder).
    """

    compute_dtype: torch.dtype | None = None

    def __init__(self, in_channels, out_channels, kernel, bias=True, up=False, down=False, resample_filter=(1, 1),
                 fused_resample=False, init_mode='kaiming_normal', init_weight=1.0, init_bias=0.0):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        self.weight = self.bias = None
        if kernel:
            fans = dict(mode=init_mode, fan_in=in_channels * kernel**2, fan_out=out_channels * kernel**2)
            weight = init_tensor([out_channels, in_channels, kernel, kernel], **fans) * init_weight
            self.weight = torch.nn.Parameter(weight)
            if bias:
                self.bias = torch.nn.Parameter(init_tensor([out_channels], **fans) * init_bias)
        taps = torch.as_tensor(list(resample_filter), dtype=torch.float32)
        kernel_2d = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
        self.register_buffer('resample_filter', kernel_2d if up or down else None)
        self.box = list(resample_filter) == [1, 1]  # then resampling is plain repetition or averaging
        self.filter_pad = (len(taps) - 1) // 2
        self.register_buffer('repeating_weight', None, persistent=False)
        self.register_buffer('winograd_filters', None, persistent=False)

    def set_compute_dtype(self, dtype: torch.dtype | None) -> None:
        """From here on, convolve in `dtype`, with weights stored in it; None: in the dtype of x, whatever the weights'.

        On a CPU all dtypes except float32, which keeps the published order, use forms with fewer operations.
        """
        self.compute_dtype = self.repeating_weight = self.winograd_filters = None
        if self.weight is None or dtype is None:
            return
        self.compute_dtype = dtype
        if dtype != torch.float32 and self.weight.device.type == 'cpu':
            self.merge_repetition()
            self.transform_filters(dtype)
        self.to(dtype)

    def merge_repetition(self) -> None:
        """From here on, a repetition by two and its 3x3 convolution are one transposed convolution on CPUs.

        That takes four ninths of the operations: with the 2x2 box the 3x3 taps become 4x4, of which four apply to each
        pixel of the larger image. Later changes of the weights have no effect, so this is for sampling.
        """
        if self.up and self.box and self.weight.shape[-1] == 3:
            taps = self.weight.detach().float().flip(2, 3).transpose(0, 1)  # [in, out, 3, 3]
            merged = F.conv_transpose2d(taps.flatten(0, 1)[:, None], torch.ones_like(taps[:1, :1, :2, :2]))
            self.repeating_weight = merged.unflatten(0, taps.shape[:2])[:, :, 0].to(self.weight.dtype)

    def transform_filters(self, dtype: torch.dtype) -> None:
        """From here on, a plain 3x3 convolution is Winograd's on CPUs, in `dtype`, if it is compiled and that pays.

        That takes four ninths of the products (networks/winograd.py); the result is in the dtype of x. Later changes of
        the weights have no effect, so this is for sampling.
        """
        plain = self.weight.shape[-1] == 3 and not (self.up or self.down)
        if plain and winograd.pays(self.in_channels, self.out_channels):
            self.winograd_filters = winograd.transform_filters(self.weight.detach().float()).to(dtype)

    def _upsample(self, x, padding):
        if self.box and padding == 0:
            return F.interpolate(x, scale_factor=2, mode='nearest')
        taps = (4 * self.resample_filter).to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv_transpose2d(x, taps, groups=x.shape[1], stride=2, padding=padding)

    def _downsample(self, x, padding):
        if self.box and padding == 0:
            return F.avg_pool2d(x, 2)
        taps = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, taps, groups=x.shape[1], stride=2, padding=padding)

    def _bias(self, dtype):
        return None if self.bias is None else self.bias.to(dtype)

    def _convolve(self, x, padding):
        return F.conv2d(x, self.weight.to(x.dtype), self._bias(x.dtype), padding=padding)

    def forward(self, x):
        on_cpu, even = x.device.type == 'cpu', not (x.shape[2] % 2 or x.shape[3] % 2)
        if self.winograd_filters is not None and on_cpu and even and torch.compiler.is_compiling():
            return winograd.conv2d(x, self.winograd_filters, self.bias)
        x = x.to(self.compute_dtype or x.dtype)
        if self.repeating_weight is not None and on_cpu:
            return F.conv_transpose2d(x, self.repeating_weight.to(x.dtype), self._bias(x.dtype), stride=2, padding=1)
        if self.weight is None:
            return self._resample(x)
        pad = self.weight.shape[-1] // 2
        if self.fused_resample and self.up:
            return self._convolve(self._upsample(x, max(self.filter_pad - pad, 0)), max(pad - self.filter_pad, 0))
        if self.fused_resample and self.down:
            return self._downsample(self._convolve(x, pad + self.filter_pad), 0)
        if self.up and self.box and pad == 0:  # they commute, and this order is a quarter of the work
            return self._upsample(self._convolve(x, 0), 0)
        return self._convolve(self._resample(x), pad)

    def _resample(self, x):
        if self.up:
            x = self._upsample(x, self.filter_pad)
        return self._downsample(x, self.filter_pad) if self.down else x


def level_resolutions(img_resolution: int, levels: int) -> list[int]:
    """The side of the image at each level of a U-Net. Raises ValueError if it cannot be halved that often."""
    if img_resolution % 2 ** (levels - 1):
        raise ValueError(f'{img_resolution}x{img_resolution} images cannot be halved {levels - 1} times; '
                         f'use a multiple of {2 ** (levels - 1)} pixels')
    return [img_resolution >> level for level in range(levels)]


class GroupNorm(torch.nn.Module):
    """Group normalisation (Wu and He, 2018) in `num_groups`, or fewer of `min_channels_per_group` channels."""

    def __init__(self, num_channels, num_groups=32, min_channels_per_group=4, eps=1e-5):
        super().__init__()
        self.num_groups = min(num_groups, num_channels // min_channels_per_group)
        if not self.num_groups or num_channels % self.num_groups:
            raise ValueError(f'{num_channels} channels cannot be normalised in {self.num_groups} groups; '
                             f'use a multiple of {num_groups}')
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(num_channels))
        self.bias = torch.nn.Parameter(torch.zeros(num_channels))

    def forward(self, x):
        plain = x.device.type == 'cpu' and x.dtype == torch.float32 and not self.training
        if plain and torch.compiler.is_compiling():
            return self._from_channels(x)
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    def _from_channels(self, x):
        """The same by sums over each channel, since torch.compile makes slow loops for small groups on CPUs."""
        group = torch.arange(x.shape[1], device=x.device) // (x.shape[1] // self.num_groups)
        average = (group[:, None] == group).to(x.dtype) * (self.num_groups / x.shape[1])
        moments = torch.cat([x.mean(3).mean(2), x.square().mean(3).mean(2)])
        mean, square = (moments @ average).chunk(2)  # a product, since a view of groups would slow down the next loop
        scale = self.weight * ((square - mean.square()).clamp(min=0) + self.eps).rsqrt()
        return x * scale[:, :, None, None] + (self.bias - mean * scale)[:, :, None, None]


class UNetBlock(torch.nn.Module):
    """Residual block with optional resampling and self-attention: the union of DDPM++, NCSN++ and ADM blocks.

    x [N, in, H, W], emb [N, emb] -> [N, out, H', W'] in the dtype of x, as are sums and norms; convolutions and
    attention have their own (`Conv2d.compute_dtype`).
    """

    def __init__(self, in_channels, out_channels, emb_channels, up=False, down=False, attention=False, num_heads=None,
                 channels_per_head=64, dropout=0.0, skip_scale=1.0, eps=1e-5, resample_filter=(1, 1),
                 resample_proj=False, adaptive_scale=True, min_channels_per_group=4, init=None, init_zero=None,
                 init_attn=None):
        super().__init__()
        init, init_zero = init or {}, init_zero or dict(init_weight=0.0)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_heads = (num_heads or out_channels // channels_per_head) if attention else 0
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, float(skip_scale), adaptive_scale
        resample = dict(up=up, down=down, resample_filter=resample_filter)

        norm = dict(eps=eps, min_channels_per_group=min_channels_per_group)
        self.norm0 = GroupNorm(in_channels, **norm)
        self.conv0 = Conv2d(in_channels, out_channels, kernel=3, **resample, **init)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), **init)
        self.norm1 = GroupNorm(out_channels, **norm)
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, **init_zero)
        self.skip = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel=kernel, **resample, **init)
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, **norm)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1, **(init if init_attn is None else init_attn))
            self.proj = Conv2d(out_channels, out_channels, kernel=1, **init_zero)

    def forward(self, x, emb):
        dtype = x.dtype
        residual = x if self.skip is None else self.skip(x).to(dtype)
        x = self.conv0(F.silu(self.norm0(x))).to(dtype)
        params = self.affine(emb)[:, :, None, None].to(dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = F.silu(self.norm1(x + params))
        x = self.conv1(F.dropout(x, p=self.dropout, training=self.training))
        x = (x + residual) * self.skip_scale
        if self.num_heads:
            x = (self.proj(self._attention(self.qkv(self.norm2(x)))) + x) * self.skip_scale
        return x

    def _attention(self, qkv):
        """qkv [N, heads * channels * 3, H, W], interleaved in that order -> [N, heads * channels, H, W]."""
        n, _, height, width = qkv.shape
        qkv = qkv.reshape(n, self.num_heads, -1, 3, height * width).permute(3, 0, 1, 4, 2)
        q, k, v = qkv.contiguous().unbind(0)  # the fused kernels need adjacent channels, not interleaved ones
        a = F.scaled_dot_product_attention(q, k, v)  # [N, heads, H * W, channels]
        return a.transpose(2, 3).reshape(n, -1, height, width).contiguous(memory_format=torch.channels_last)


class PositionalEmbedding(torch.nn.Module):
    """Sinusoidal embedding of [N] into [N, C], cosines first (DDPM++ and ADM)."""

    def __init__(self, num_channels, max_positions=10000, endpoint=False):
        super().__init__()
        half = num_channels // 2
        exponent = torch.arange(half, dtype=torch.float32) / (half - (1 if endpoint else 0))
        self.register_buffer('freqs_table', (1 / max_positions) ** exponent, persistent=False)

    def forward(self, x):
        x = x[:, None] * self.freqs_table.to(x.dtype)
        return torch.cat([x.cos(), x.sin()], dim=1)


class FourierEmbedding(torch.nn.Module):
    """Random Fourier features of [N] into [N, C], cosines first (NCSN++)."""

    def __init__(self, num_channels, scale=16):
        super().__init__()
        self.register_buffer('freqs', torch.randn(num_channels // 2) * scale)

    def forward(self, x):
        x = x[:, None] * (2 * math.pi * self.freqs).to(x.dtype)
        return torch.cat([x.cos(), x.sin()], dim=1)
