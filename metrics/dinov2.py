"""DINOv2 ViT-L/14, whose features give FD-DINOv2: torchvision's vision transformer with the published weights."""

import numpy as np
import PIL.Image
import torch
from torch import nn
from torch.nn import functional as F

from dnnlib.download import fetch
from torch_utils.checkpoint import load_state

URL = 'https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth'
PATCH, SIZE = 14, 224  # pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
HEAD_WIDTH = 64  # of an attention head, in all published sizes


class DINOv2(nn.Module):
    """Oquab et al. 2023 (arXiv:2304.07193): the normalised class token of a vision transformer.

    state: the published state dict, of any of its sizes without registers. resize: 'torch' (bicubic with anti-aliasing,
    as EDM2 measures) or 'pil' (Pillow's bicubic to uint8 on the CPU, as dgm-eval measures). Features differ a little.
    Raises ValueError for another state dict.
    """

    def __init__(self, state: dict[str, torch.Tensor], resize: str = 'torch'):
        from torchvision.models import VisionTransformer  # slow to import, and every script imports metrics

        super().__init__()
        self.resize = resize
        try:
            width, layers = state['cls_token'].shape[2], sum(key.endswith('.ls1.gamma') for key in state)
            hidden = state['blocks.0.mlp.fc1.weight'].shape[0]
            with torch.device('meta'):  # the file brings all values
                self.net = VisionTransformer(SIZE, PATCH, layers, width // HEAD_WIDTH, width, hidden)
            self.net.heads = nn.Identity()
            self.net.load_state_dict(translate(state, layers), assign=True)
        except (KeyError, RuntimeError, IndexError, AttributeError) as error:
            raise ValueError('the file does not hold a vision transformer of DINOv2 such as '
                             f'{URL.rsplit("/", 1)[1]} ({str(error).splitlines()[-1].strip()})') from None
        self.feature_dim = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 images [N, 3, H, W] -> features [N, feature_dim] float32."""
        device = x.device
        if self.resize == 'pil':
            pictures = [PIL.Image.fromarray(image).resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC)
                        for image in x.permute(0, 2, 3, 1).cpu().numpy()]
            x = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).to(device)
            x = x.to(torch.float32)
        else:
            x = F.interpolate(x.to(torch.float32), size=(SIZE, SIZE), mode='bicubic', antialias=True)
        mean, std = (torch.tensor(values, device=device).reshape(-1, 1, 1) for values in (MEAN, STD))
        x = (x / 255 - mean) / std
        return self.net(x.to(self.net.class_token.dtype)).to(torch.float32)


def translate(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The published state dict under torchvision's names. LayerScale's factors go into the layers before them."""
    found = {'class_token': state['cls_token'], 'conv_proj.weight': state['patch_embed.proj.weight'],
             'conv_proj.bias': state['patch_embed.proj.bias'], 'encoder.ln.weight': state['norm.weight'],
             'encoder.ln.bias': state['norm.bias'], 'encoder.pos_embedding': resample_positions(state['pos_embed'])}
    for layer in range(layers):
        old, new = f'blocks.{layer}.', f'encoder.layers.encoder_layer_{layer}.'
        scale1, scale2 = state[f'{old}ls1.gamma'], state[f'{old}ls2.gamma']  # [width]
        for part in ('weight', 'bias'):
            def scaled(value, scale):
                return value * (scale[:, None] if value.ndim == 2 else scale)

            found[f'{new}ln_1.{part}'] = state[f'{old}norm1.{part}']
            found[f'{new}self_attention.in_proj_{part}'] = state[f'{old}attn.qkv.{part}']
            found[f'{new}self_attention.out_proj.{part}'] = scaled(state[f'{old}attn.proj.{part}'], scale1)
            found[f'{new}ln_2.{part}'] = state[f'{old}norm2.{part}']
            found[f'{new}mlp.0.{part}'] = state[f'{old}mlp.fc1.{part}']
            found[f'{new}mlp.3.{part}'] = scaled(state[f'{old}mlp.fc2.{part}'], scale2)
    return found


def resample_positions(positions: torch.Tensor) -> torch.Tensor:
    """Position embeddings [1, 1 + M M, width] of training's M x M patches -> those of 16 x 16, [1, 257, width].

    Bicubic, with the scale (16 + 0.1) / M that the published code uses: it moves every patch a little.
    """
    patches, width = SIZE // PATCH, positions.shape[2]
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == patches:
        return positions
    grid = positions[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    scale = (patches + 0.1) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode='bicubic')
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, width)], dim=1)


def load_dinov2(path=None, resize: str = 'torch') -> DINOv2:
    """DINOv2 from its published file, `path` or fetched (1.2 GB); a state dict, read weights-only.

    Raises ValueError for another file, OSError if it cannot be had.
    """
    state = load_state(fetch(path or URL))
    if not isinstance(state, dict):
        raise ValueError(f'{path or URL} does not hold a state dict')
    return DINOv2(state, resize).eval().requires_grad_(False)
