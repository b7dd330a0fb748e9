"""The U-Net without downsampling of variational diffusion models (Kingma et al., NeurIPS 2021)."""

import math

import torch
import torch.nn.functional as F

from .layers import Conv2d, GroupNorm, Linear, PositionalEmbedding


class ResBlock(torch.nn.Module):
    """x [N, in, H, W], emb [N, emb] -> [N, out, H, W] in the dtype of x."""

    def __init__(self, in_channels, out_channels, emb_channels, dropout):
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(in_channels, eps=1e-6), GroupNorm(out_channels, eps=1e-6)
        self.conv1 = Conv2d(in_channels, out_channels, kernel=3)
        self.conv2 = Conv2d(out_channels, out_channels, kernel=3, init_weight=0.0)
        self.skip = Conv2d(in_channels, out_channels, kernel=1) if in_channels != out_channels else None
        self.cond_map = Linear(emb_channels, out_channels, bias=False, init_weight=0.0)
        self.dropout = dropout

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x))).to(x.dtype) + self.cond_map(emb)[:, :, None, None].to(x.dtype)
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), p=self.dropout, training=self.training))
        return h + (x if self.skip is None else self.skip(x)).to(x.dtype)


class Attention(torch.nn.Module):
    """Self-attention over pixels with one head; x [N, C, H, W] -> the same shape and dtype."""

    def __init__(self, channels):
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.qkv = Conv2d(channels, 3 * channels, kernel=1)
        self.proj_out = Conv2d(channels, channels, kernel=1, init_weight=0.0)

    def forward(self, x, emb):
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, c, 3, height * width).permute(2, 0, 3, 1)  # interleaved as in EDM
        a = F.scaled_dot_product_attention(*qkv.contiguous()[:, :, None].unbind(0))[:, 0]  # [N, H * W, C]
        return self.proj_out(a.transpose(1, 2).reshape(n, c, height, width)) + x


class VDM(torch.nn.Module):
    """Residual blocks at full resolution; the decoder's inputs are concatenated with the encoder's outputs.

    Args:
        img_resolution, label_dim: not used, for a common interface; there are no classes.
        in_channels, out_channels: of the images; model_channels: width; num_blocks: those of the encoder; the decoder
            has one more.
        attention: whether it follows every block; there is always one in the middle.
    """

    def __init__(self, img_resolution, in_channels, out_channels, label_dim=0, model_channels=128, num_blocks=32,
                 dropout=0.1, attention=False):
        super().__init__()
        if label_dim:
            raise ValueError('VDM has no class-conditional form')
        width, emb = model_channels, 4 * model_channels
        self.map_noise = PositionalEmbedding(width, endpoint=True)
        self.cond_map = torch.nn.Sequential(Linear(width, emb), torch.nn.SiLU(), Linear(emb, emb))
        self.conv_in = Conv2d(in_channels, width, kernel=3)

        def blocks(count, channels):
            every = [[ResBlock(channels, width, emb, dropout)] + ([Attention(width)] if attention else [])
                     for _ in range(count)]
            return torch.nn.ModuleList(sum(every, []))

        self.enc, self.dec = blocks(num_blocks, width), blocks(num_blocks + 1, 2 * width)
        self.mid1, self.midattn = ResBlock(width, width, emb, dropout), Attention(width)
        self.mid2 = ResBlock(width, width, emb, dropout)
        self.out = torch.nn.Sequential(GroupNorm(width, eps=1e-6), torch.nn.SiLU(),
                                       Conv2d(width, out_channels, kernel=3, init_weight=0.0))

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        """x [N, C, H, W], noise_labels [N] (times 0 to 1000) -> [N, C', H, W] in the dtype of x."""
        emb = self.map_noise(noise_labels)
        emb = self.cond_map(torch.cat(emb.chunk(2, dim=1)[::-1], dim=1))  # the published weights expect sines first
        x = self.conv_in(x).to(x.dtype)
        skips = [x]
        for block in self.enc:
            x = block(x, emb)
            if isinstance(block, ResBlock):
                skips.append(x)
            else:
                skips[-1] = x
        x = self.mid2(self.midattn(self.mid1(x, emb), emb), emb)
        for block in self.dec:
            x = block(torch.cat([x, skips.pop()], dim=1) if isinstance(block, ResBlock) else x, emb)
        return self.out(x)


class ImageFourier(torch.nn.Module):
    """Appends sin and cos of 2 pi 2^k x for k in [start, end) to images [N, C, H, W]: the finest bits of a pixel."""

    def __init__(self, start: int, end: int):
        super().__init__()
        self.freqs = [2.0**k * 2 * math.pi for k in range(start, end)]

    def forward(self, x):
        waves = torch.stack([x * freq for freq in self.freqs], dim=2).flatten(1, 2)  # channel by channel
        return torch.cat([x, waves.sin(), waves.cos()], dim=1)
