"""The encoder half of the ADM U-Net, a classifier (Dhariwal and Nichol, NeurIPS 2021).

State dicts are interchangeable with openai/guided-diffusion and with DG's classifier and discriminators.
"""

import torch
from torch import nn

from .nn import (
    AttentionBlock,
    AttentionPool2d,
    ConditionalSequential,
    Conv2d,
    Downsample,
    GroupNorm32,
    PointwiseConv1d,
    ResBlock,
    timestep_embedding,
    zero_module,
)


class EncoderUNetModel(nn.Module):
    """Half a U-Net: a classifier of noisy images, or, on another classifier's features, a discriminator.

    Args:
        image_size: height and width of the input (features count as an image).
        in_channels, out_channels: channels of the input, number of logits.
        model_channels, num_res_blocks, channel_mult: width, depth per level, multiples per level.
        attention_resolutions: down-sampling factors at which blocks have attention.
        pool: 'attention' or 'adaptive' (mean) before the last layer.
        num_classes: number of classes to condition on, 0 for none.
    """

    def __init__(self, image_size, in_channels, model_channels, out_channels, num_res_blocks, attention_resolutions,
                 dropout=0.0, channel_mult=(1, 2, 4, 8), conv_resample=True, num_heads=1, num_head_channels=-1,
                 use_scale_shift_norm=False, resblock_updown=False, pool='adaptive', num_classes=0):
        super().__init__()
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.model_channels, self.num_classes = model_channels, num_classes
        self.body_dtype = torch.float32
        emb_channels = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb_channels), nn.SiLU(),
                                        nn.Linear(emb_channels, emb_channels))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, emb_channels)

        res = dict(emb_channels=emb_channels, dropout=dropout, use_scale_shift_norm=use_scale_shift_norm)
        heads = dict(num_heads=num_heads, num_head_channels=num_head_channels)
        width = int(channel_mult[0] * model_channels)
        self.input_blocks = nn.ModuleList([ConditionalSequential(Conv2d(in_channels, width, 3, padding=1))])
        self.downsampling = 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = [ResBlock(width, out_channels=int(mult * model_channels), **res)]
                width = int(mult * model_channels)
                if self.downsampling in attention_resolutions:
                    layers.append(AttentionBlock(width, **heads))
                self.input_blocks.append(ConditionalSequential(*layers))
            if level < len(channel_mult) - 1:
                down = ResBlock(width, down=True, **res) if resblock_updown else Downsample(width, conv_resample)
                self.input_blocks.append(ConditionalSequential(down))
                self.downsampling *= 2
        self.middle_block = ConditionalSequential(
            ResBlock(width, **res), AttentionBlock(width, **heads), ResBlock(width, **res))
        self.feature_channels = width
        if pool == 'attention':
            if num_head_channels == -1:
                raise ValueError('attention pooling needs num_head_channels')
            head = [AttentionPool2d(image_size // self.downsampling, width, num_head_channels, out_channels)]
        elif pool == 'adaptive':
            head = [nn.AdaptiveAvgPool2d((1, 1)), zero_module(Conv2d(width, out_channels, 1)), nn.Flatten()]
        else:
            raise ValueError(f'pool {pool!r} is not one of attention, adaptive')
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), *head)

    def embed(self, timesteps, condition=None):
        """timesteps [N] and labels (index [N] or one-hot [N, K]) -> [N, E], float32."""
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        if self.num_classes:
            if condition is None:
                raise ValueError('this network is conditional: it needs class labels')
            emb = emb + self.label_emb(condition if condition.ndim == 1 else condition.argmax(dim=1))
        return emb

    def forward(self, x, timesteps, feature=False, sigmoid=False, condition=None):
        """Logits [N, out_channels], their sigmoid, or with `feature` the middle block's output [N, C, H, W].

        x [N, in_channels, H, W]; timesteps [N] in [0, 1] (DG's convention: multiplied by 999 here);
        condition: class index [N] or one-hot [N, K]. The result is float32.
        """
        emb = self.embed(timesteps * 999.0, condition)
        h = x.to(self.body_dtype, memory_format=torch.channels_last)
        for block in self.input_blocks:
            h = block(h, emb)
        h = self.middle_block(h, emb)
        if feature:
            return h.float()
        logits = self.out(h).float()
        return logits.sigmoid() if sigmoid else logits


def set_precision(model: nn.Module, dtype: torch.dtype, training: bool = False) -> nn.Module:
    """Run the convolutions and attention of an ADM network in `dtype`, channels last.

    For sampling, norms, activations, sums, and the first and last layer stay float32; the other convolutions are stored
    in `dtype`. For `training`, everything except the embeddings runs in `dtype`; the weights stay float32 and are cast
    when used.
    """
    model.body_dtype = dtype if training else torch.float32
    if not training:
        layers = [module for module in model.modules() if isinstance(module, (Conv2d, PointwiseConv1d))]
        for layer in layers[1:-1]:
            layer.compute_dtype = dtype
            layer.to(dtype)
    return model.to(memory_format=torch.channels_last)
