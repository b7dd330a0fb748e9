"""DDPM++ and NCSN++ (Song et al., ICLR 2021) in EDM's formulation (Karras et al., NeurIPS 2022)."""

import math

import torch
import torch.nn.functional as F

from .layers import Conv2d, FourierEmbedding, GroupNorm, Linear, PositionalEmbedding, UNetBlock, level_resolutions


class SongUNet(torch.nn.Module):
    """U-Net of DDPM++ (positional, standard encoder) and NCSN++ (fourier, residual or skip encoder).

    Args:
        img_resolution, in_channels, out_channels: of the images.
        label_dim: number of classes, 0 for none.
        augment_dim: length of the augmentation label, 0 for none.
        model_channels, channel_mult, num_blocks: width, its multiples per resolution, residual blocks per resolution.
        channel_mult_emb, channel_mult_noise: multiples (fractions too) for the embedding and the noise-level embedding.
        attn_resolutions: resolutions with self-attention.
        dropout: of intermediate activations; label_dropout: of class labels, for classifier-free guidance.
        embedding_type: 'positional' | 'fourier'; encoder_type: 'standard' | 'skip' | 'residual';
        decoder_type: 'standard' | 'skip'; resample_filter: [1, 1] (DDPM++) | [1, 3, 3, 1] (NCSN++).
        residual_filter: that of the residual encoder's shortcuts, None: resample_filter; [0, 1] makes each a
        convolution of stride 2, padded on the right and at the bottom, as in reflected diffusion.
    """

    def __init__(self, img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, model_channels=128,
                 channel_mult=(1, 2, 2, 2), channel_mult_emb=4, num_blocks=4, attn_resolutions=(16,), dropout=0.10,
                 label_dropout=0, embedding_type='positional', channel_mult_noise=1, encoder_type='standard',
                 decoder_type='standard', resample_filter=(1, 1), residual_filter=None):
        super().__init__()
        for name, value, known in [('embedding_type', embedding_type, ('fourier', 'positional')),
                                   ('encoder_type', encoder_type, ('standard', 'skip', 'residual')),
                                   ('decoder_type', decoder_type, ('standard', 'skip'))]:
            if value not in known:
                raise ValueError(f'SongUNet: {name} {value!r} is not one of {", ".join(known)}')
        self.label_dropout = label_dropout
        emb_channels = round(model_channels * channel_mult_emb)
        noise_channels = round(model_channels * channel_mult_noise)
        init = dict(init_mode='xavier_uniform')
        init_zero = dict(init_mode='xavier_uniform', init_weight=1e-5)
        init_attn = dict(init_mode='xavier_uniform', init_weight=math.sqrt(0.2))
        self._block_kwargs = dict(
            emb_channels=emb_channels, num_heads=1, dropout=dropout, skip_scale=math.sqrt(0.5), eps=1e-6,
            resample_filter=resample_filter, resample_proj=True, adaptive_scale=False,
            init=init, init_zero=init_zero, init_attn=init_attn)

        self.map_noise = PositionalEmbedding(noise_channels, endpoint=True) if embedding_type == 'positional' \
            else FourierEmbedding(noise_channels)
        self.map_label = Linear(label_dim, noise_channels, **init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, **init) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, **init)
        self.map_layer1 = Linear(emb_channels, emb_channels, **init)

        widths = [model_channels * mult for mult in channel_mult]
        resolutions = level_resolutions(img_resolution, len(widths))
        skips = self._build_encoder(resolutions, widths, model_channels, in_channels, num_blocks, attn_resolutions,
                                    encoder_type, resample_filter, residual_filter or resample_filter, init)
        self._build_decoder(resolutions, widths, skips, out_channels, num_blocks, attn_resolutions,
                            decoder_type, resample_filter, init_zero)

    def _build_encoder(self, resolutions, widths, model_channels, in_channels, num_blocks, attn_resolutions,
                       encoder_type, resample_filter, residual_filter, init) -> list[int]:
        self.enc = torch.nn.ModuleDict()
        skips, width, aux_width = [], model_channels, in_channels
        for level, res in enumerate(resolutions):
            name = f'{res}x{res}'
            if level == 0:
                self.enc[f'{name}_conv'] = Conv2d(in_channels, width, kernel=3, **init)
            else:
                self.enc[f'{name}_down'] = UNetBlock(width, width, down=True, **self._block_kwargs)
                if encoder_type == 'skip':
                    down = dict(down=True, resample_filter=resample_filter)
                    self.enc[f'{name}_aux_down'] = Conv2d(aux_width, aux_width, kernel=0, **down)
                    self.enc[f'{name}_aux_skip'] = Conv2d(aux_width, width, kernel=1, **init)
                if encoder_type == 'residual':
                    self.enc[f'{name}_aux_residual'] = Conv2d(aux_width, width, kernel=3, fused_resample=True,
                                                              down=True, resample_filter=residual_filter, **init)
                    aux_width = width
            skips.append(width)
            for index in range(num_blocks):
                block = UNetBlock(width, widths[level], attention=res in attn_resolutions, **self._block_kwargs)
                self.enc[f'{name}_block{index}'] = block
                width = widths[level]
                skips.append(width)
        return skips

    def _build_decoder(self, resolutions, widths, skips, out_channels, num_blocks, attn_resolutions,
                       decoder_type, resample_filter, init_zero) -> None:
        self.dec = torch.nn.ModuleDict()
        width, last = widths[-1], len(widths) - 1
        for level in range(last, -1, -1):
            res = resolutions[level]
            name = f'{res}x{res}'
            if level == last:
                self.dec[f'{name}_in0'] = UNetBlock(width, width, attention=True, **self._block_kwargs)
                self.dec[f'{name}_in1'] = UNetBlock(width, width, **self._block_kwargs)
            else:
                self.dec[f'{name}_up'] = UNetBlock(width, width, up=True, **self._block_kwargs)
            for index in range(num_blocks + 1):
                attention = index == num_blocks and res in attn_resolutions
                block = UNetBlock(width + skips.pop(), widths[level], attention=attention, **self._block_kwargs)
                self.dec[f'{name}_block{index}'] = block
                width = widths[level]
            if decoder_type == 'skip' or level == 0:
                if decoder_type == 'skip' and level < last:
                    self.dec[f'{name}_aux_up'] = Conv2d(out_channels, out_channels, kernel=0, up=True,
                                                        resample_filter=resample_filter)
                self.dec[f'{name}_aux_norm'] = GroupNorm(width, eps=1e-6)
                self.dec[f'{name}_aux_conv'] = Conv2d(width, out_channels, kernel=3, **init_zero)

    def _embedding(self, noise_labels, class_labels, augment_labels):
        emb = self.map_noise(noise_labels)
        emb = torch.cat(emb.chunk(2, dim=1)[::-1], dim=1)  # the published weights expect sines first
        if self.map_label is not None:
            labels = class_labels * math.sqrt(self.map_label.in_features)
            if self.training and self.label_dropout:
                keep = torch.rand([len(labels), 1], device=labels.device) >= self.label_dropout
                labels = labels * keep.to(labels.dtype)
            emb = emb + self.map_label(labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x, noise_labels, class_labels, augment_labels=None):
        """x [N, C, H, W], noise_labels [N], class_labels [N or 1, label_dim] -> [N, C, H, W] in the dtype of x."""
        emb = self._embedding(noise_labels, class_labels, augment_labels)
        skips, aux = [], x
        for name, block in self.enc.items():
            if 'aux_down' in name:
                aux = block(aux)
            elif 'aux_skip' in name:
                x = skips[-1] = x + block(aux)
            elif 'aux_residual' in name:
                x = skips[-1] = aux = (x + block(aux)) * math.sqrt(0.5)
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)

        image = features = None
        for name, block in self.dec.items():
            if 'aux_up' in name:
                image = block(image)
            elif 'aux_norm' in name:
                features = F.silu(block(x))
            elif 'aux_conv' in name:
                image = block(features) if image is None else image + block(features)
            else:
                if x.shape[1] != block.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, emb)
        return image
