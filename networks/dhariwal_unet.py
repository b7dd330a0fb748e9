"""The ADM U-Net (Dhariwal and Nichol, NeurIPS 2021) in EDM's formulation (Karras et al., NeurIPS 2022)."""

import math

import torch
import torch.nn.functional as F

from .layers import Conv2d, GroupNorm, Linear, PositionalEmbedding, UNetBlock, level_resolutions


class DhariwalUNet(torch.nn.Module):
    """ADM's U-Net: adaptive scale and shift, attention heads of 64 channels; arguments as SongUNet's."""

    def __init__(self, img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, model_channels=192,
                 channel_mult=(1, 2, 3, 4), channel_mult_emb=4, num_blocks=3, attn_resolutions=(32, 16, 8),
                 dropout=0.10, label_dropout=0):
        super().__init__()
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        init = dict(init_mode='kaiming_uniform', init_weight=math.sqrt(1 / 3), init_bias=math.sqrt(1 / 3))
        init_zero = dict(init_mode='kaiming_uniform', init_weight=0.0, init_bias=0.0)
        block = dict(emb_channels=emb_channels, channels_per_head=64, dropout=dropout, init=init, init_zero=init_zero)

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, **init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, **init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **init)
        self.map_label = Linear(label_dim, emb_channels, bias=False, init_mode='kaiming_normal',
                                init_weight=math.sqrt(label_dim)) if label_dim else None

        resolutions = level_resolutions(img_resolution, len(channel_mult))
        self.enc = torch.nn.ModuleDict()
        skips, width = [], model_channels * channel_mult[0]
        for level, mult in enumerate(channel_mult):
            res = resolutions[level]
            if level == 0:
                self.enc[f'{res}x{res}_conv'] = Conv2d(in_channels, width, kernel=3, **init)
            else:
                self.enc[f'{res}x{res}_down'] = UNetBlock(width, width, down=True, **block)
            skips.append(width)
            for index in range(num_blocks):
                attention = res in attn_resolutions
                self.enc[f'{res}x{res}_block{index}'] = UNetBlock(width, model_channels * mult, attention=attention,
                                                                  **block)
                width = model_channels * mult
                skips.append(width)

        self.dec = torch.nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = resolutions[level]
            if level == len(channel_mult) - 1:
                self.dec[f'{res}x{res}_in0'] = UNetBlock(width, width, attention=True, **block)
                self.dec[f'{res}x{res}_in1'] = UNetBlock(width, width, **block)
            else:
                self.dec[f'{res}x{res}_up'] = UNetBlock(width, width, up=True, **block)
            for index in range(num_blocks + 1):
                attention = res in attn_resolutions
                self.dec[f'{res}x{res}_block{index}'] = UNetBlock(width + skips.pop(), model_channels * mult,
                                                                  attention=attention, **block)
                width = model_channels * mult
        self.out_norm = GroupNorm(width)
        self.out_conv = Conv2d(width, out_channels, kernel=3, **init_zero)

    def forward(self, x, noise_labels, class_labels, augment_labels=None):
        """x [N, C, H, W], noise_labels [N], class_labels [N or 1, label_dim] -> [N, C', H, W] in the dtype of x."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            labels = class_labels
            if self.training and self.label_dropout:
                keep = torch.rand([len(labels), 1], device=labels.device) >= self.label_dropout
                labels = labels * keep.to(labels.dtype)
            emb = emb + self.map_label(labels)
        emb = F.silu(emb)

        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for block in self.dec.values():
            if x.shape[1] != block.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))
