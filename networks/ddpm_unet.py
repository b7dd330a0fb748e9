"""The U-Net of DDPM (Ho et al., NeurIPS 2020), as score_sde trained it (Song et al., ICLR 2021)."""

import torch
import torch.nn.functional as F

from .layers import Conv2d, GroupNorm, Linear, PositionalEmbedding, UNetBlock, level_resolutions


class HalvingConv2d(Conv2d):
    """3x3 convolution of stride 2, padded with one row of zeros below and one column to the right."""

    def forward(self, x):
        x = F.pad(x.to(self.compute_dtype or x.dtype), (0, 1, 0, 1))
        return F.conv2d(x, self.weight.to(x.dtype), self._bias(x.dtype), stride=2)


class DDPMUNet(torch.nn.Module):
    """U-Net with residual blocks, convolutions that resample, and modules named as SongUNet's.

    Arguments as SongUNet's, but without classes and augmentation.
    """

    def __init__(self, img_resolution, in_channels, out_channels, label_dim=0, model_channels=128,
                 channel_mult=(1, 2, 2, 2), num_blocks=2, attn_resolutions=(16,), dropout=0.1):
        super().__init__()
        if label_dim:
            raise ValueError('DDPMUNet takes no class labels')
        emb_channels = 4 * model_channels
        init = dict(init_mode='xavier_uniform')
        init_zero = dict(init_mode='xavier_uniform', init_weight=1e-5)
        block = dict(emb_channels=emb_channels, num_heads=1, dropout=dropout, eps=1e-6, adaptive_scale=False,
                     min_channels_per_group=1, init=init, init_zero=init_zero)
        self.map_noise = PositionalEmbedding(model_channels, endpoint=True)
        self.map_layer0 = Linear(model_channels, emb_channels, **init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **init)

        widths = [model_channels * mult for mult in channel_mult]
        resolutions = level_resolutions(img_resolution, len(widths))
        width = model_channels
        self.enc = torch.nn.ModuleDict({f'{img_resolution}x{img_resolution}_conv':
                                        Conv2d(in_channels, width, kernel=3, **init)})
        skips = [width]
        for level, res in enumerate(resolutions):
            if level:
                self.enc[f'{res}x{res}_down'] = HalvingConv2d(width, width, kernel=3, **init)
                skips.append(width)
            for index in range(num_blocks):
                self.enc[f'{res}x{res}_block{index}'] = UNetBlock(width, widths[level], attention=res in
                                                                  attn_resolutions, **block)
                width = widths[level]
                skips.append(width)

        res = resolutions[-1]
        self.dec = torch.nn.ModuleDict({f'{res}x{res}_in0': UNetBlock(width, width, attention=True, **block),
                                        f'{res}x{res}_in1': UNetBlock(width, width, **block)})
        for level, res in reversed(list(enumerate(resolutions))):
            if level < len(widths) - 1:
                self.dec[f'{res}x{res}_up'] = Conv2d(width, width, kernel=3, up=True, **init)
            for index in range(num_blocks + 1):
                attention = index == num_blocks and res in attn_resolutions
                self.dec[f'{res}x{res}_block{index}'] = UNetBlock(width + skips.pop(), widths[level],
                                                                  attention=attention, **block)
                width = widths[level]
        self.dec[f'{res}x{res}_aux_norm'] = GroupNorm(width, eps=1e-6, min_channels_per_group=1)
        self.dec[f'{res}x{res}_aux_conv'] = Conv2d(width, out_channels, kernel=3, **init_zero)

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        """x [N, C, H, W], noise_labels [N] -> [N, C', H, W] in the dtype of x."""
        emb = self.map_noise(noise_labels)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # the published weights expect sines first
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x).to(x.dtype)
            skips.append(x)
        for block in self.dec.values():
            if isinstance(block, UNetBlock):
                x = block(torch.cat([x, skips.pop()], dim=1) if x.shape[1] != block.in_channels else x, emb)
            else:
                x = F.silu(block(x)) if isinstance(block, GroupNorm) else block(x).to(x.dtype)
        return x
