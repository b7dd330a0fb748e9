"""Winograd's minimal filtering F(2x2, 3x3): four pixels of a 3x3 convolution by 16 products instead of 36.

Tiles of 4x4 pixels and the filters each become 16 numbers per channel. 16 matrix products multiply them and sum over
the channels, and their results become 2x2 pixels (Lavin and Gray, CVPR 2016, section 4.1). Before and after there are
only additions, which torch.compile fuses into few loops; one by one they would take longer than the products save.
"""

import torch
import torch.nn.functional as F

from torch_utils.device import cpu_flags

LEAST_CHANNELS = 40  # half the harmonic mean of input and output: 64 and 128 gain, 64 and 64 lose


def pays(in_channels: int, out_channels: int) -> bool:
    """Whether this is known to be faster than the direct convolution: it takes enough products per addition.

    Measured on a CPU with avx512_bf16. AMX makes products cheaper relative to additions; that is not measured.
    """
    enough = in_channels * out_channels >= LEAST_CHANNELS * (in_channels + out_channels)
    return enough and 'avx512_bf16' in cpu_flags() and 'amx_bf16' not in cpu_flags()


def transform_filters(weight: torch.Tensor) -> torch.Tensor:
    """Filters [out, in, 3, 3] for `conv2d`: G w G^T of each as [16, in, out], in the dtype of `weight`."""
    G = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=weight.dtype,
                     device=weight.device)
    return torch.einsum('pa,qb,oiab->pqio', G, G, weight).flatten(0, 1).contiguous()


def conv2d(x: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A 3x3 convolution with a border of zeros: x [N, in, H, W], H and W even -> [N, out, H, W], channels last.

    `filters` [16, in, out] come from `transform_filters`. The products and their sums over channels are rounded to the
    dtype of the filters; the additions before and after, and the result, are in the dtype of x. Rounding to 16 bits has
    up to 1.7 times the error of the direct convolution.
    """
    n, channels, height, width = x.shape
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
    image, row, column, channel = padded.stride()
    # tiles[i, j] is pixel (i, j) of each tile. With slices the compiler would pad for each of the 16 again.
    tiles = padded.as_strided([4, 4, n, height // 2, width // 2, channels],
                              [row, column, image, 2 * row, 2 * column, channel])
    numbers = [number.to(filters.dtype) for line in _before(*tiles) for number in _before(*line)]
    sums = torch.bmm(torch.stack(numbers).flatten(1, 3), filters).to(x.dtype)
    sums = sums.view(4, 4, n, height // 2, width // 2, -1)
    pixels = torch.stack([pixel for line in _after(*sums) for pixel in _after(*line)])
    pixels = pixels.view(2, 2, *sums.shape[2:]).permute(2, 3, 0, 4, 1, 5).reshape(n, height, width, -1)
    return (pixels if bias is None else pixels + bias.to(x.dtype)).permute(0, 3, 1, 2)


def _before(d0, d1, d2, d3):
    """B^T d, of the pixels of a tile along one direction."""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _after(m0, m1, m2, m3):
    """A^T m: two pixels along one direction."""
    return m0 + m1 + m2, m1 - m2 - m3
