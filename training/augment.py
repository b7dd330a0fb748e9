"""Augmentations of training images: mirroring, shifts, and EDM's pipe, which tells the network what it did."""

import functools
import math

import torch
import torch.nn.functional as F

# Low-pass filter of the orthonormal wavelet symlet 6 (Daubechies, Ten Lectures on Wavelets, 1992). Orthonormal means
# that upsampling with it and downsampling again changes nothing.
SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148)
_CENTRE = sum(k * h for k, h in enumerate(SYM6)) / sum(SYM6)  # where the filter moves a point
_PAD = 6  # pixels of reflection before upsampling: half the filter
_SLACK = 3  # pixels outside the image that upsampling still computes correctly


def mirror(images: torch.Tensor, rng) -> torch.Tensor:
    """Mirror each image of [N, C, H, W] left to right with probability one half."""
    return torch.where(rng.rand([len(images), 1, 1, 1]) < 0.5, images.flip(3), images)


def mirror_and_shift(images: torch.Tensor, rng, xflip: bool = True, shift: int = 0) -> torch.Tensor:
    """Mirror each image with probability 1/2 and move it by up to `shift` pixels, edges reflected.

    images: [N, C, H, W] of any dtype; rng: `training.randomness.BatchRandom`.
    """
    count, _, height, width = images.shape
    device = images.device

    def moved(size):
        place = (torch.arange(size, device=device) + rng.randint(2 * shift + 1, size=[count, 1]) - shift).abs()
        return (size - 1) - ((size - 1) - place).abs()  # [N, size]

    if not xflip and not shift:
        return images
    rows, columns = moved(height), moved(width)
    if xflip:
        columns = torch.where(rng.rand([count, 1]) < 0.5, width - 1 - columns, columns)
    every = torch.arange(count, device=device)[:, None, None]
    return images[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [N, H, W, C] -> [N, C, H, W]


class AugmentPipe:
    """EDM's non-leaking augmentation (Karras et al. 2022, appendix F.2; Karras et al. 2020, ADA, appendix B).

    `pipe(images, rng)` -> images [N, C, H, W] of the same range and labels float32 [N, 9], to be given to the network
    as `augment_labels`. The columns are those of the published networks: x-flip, y-flip, scale, cos(a) - 1, sin(a),
    two of anisotropy, two of translation; a row of zeros means an unchanged image.

    Args:
        p: probability of each transformation, 0.12 as published for CIFAR-10; that of x-flips is always one half.
    """

    label_dim = 9
    scale_std = 0.2  # of log2 of the isotropic scale
    aniso_std = 0.2  # of log2 of the anisotropic scale
    translate_std = 0.125  # of the shift, in image widths

    def __init__(self, p: float = 0.12):
        self.p = p

    def __call__(self, images: torch.Tensor, rng) -> tuple[torch.Tensor, torch.Tensor]:
        n, _, height, width = images.shape
        if min(height, width) <= _PAD:
            raise ValueError(f'augmentation needs images larger than {_PAD} pixels, got {height}x{width}')
        u = rng.rand([n, 11])
        active = u[:, :5] < self.p  # y-flip, scale, rotation, anisotropy, translation
        flip = u[:, 5:7] < 0.5
        flip[:, 1] &= active[:, 0]
        images = torch.where(flip[:, 0].reshape(-1, 1, 1, 1), images.flip(3), images)
        images = torch.where(flip[:, 1].reshape(-1, 1, 1, 1), images.flip(2), images)

        normal = rng.randn([n, 4])
        scale = normal[:, 0] * active[:, 1]  # log2 of the factor, in units of scale_std
        angle = (u[:, 7] * 2 - 1) * math.pi * active[:, 2]
        aniso = normal[:, 1] * active[:, 3]
        axis = (u[:, 8] * 2 - 1) * math.pi * (u[:, 9] < 0.5)  # in half of the cases along the rows and columns
        shift = normal[:, 2:] * active[:, 4:]  # [n, 2], in units of translate_std
        labels = torch.stack([scale, angle.cos() - 1, angle.sin(), aniso * axis.cos(), aniso * axis.sin()], dim=1)
        labels = torch.cat([labels, shift], dim=1)  # [n, 7]

        pixels = shift * constant((width, height), images.dtype, images.device)
        linear, offset = self._inverse(scale, angle, aniso, axis, pixels)
        changed = (labels != 0).any(1).reshape(-1, 1, 1, 1)
        images = torch.where(changed, warp(images, linear, offset), images)
        return images, torch.cat([flip.to(labels.dtype), labels], dim=1)

    def _inverse(self, scale, angle, aniso, axis, shift):
        """The map from a pixel of the result to a point of the source, both relative to the centre: [n, 2, 2], [n, 2].

        Seen from the source, the image is scaled, then rotated, then stretched along `axis`, then shifted.
        """
        stretch = torch.diag_embed(torch.stack([-aniso, aniso], dim=1).mul(self.aniso_std).exp2())
        linear = rotation(angle) @ rotation(-axis) @ stretch @ rotation(axis)
        linear = linear * scale.mul(-self.scale_std).exp2().reshape(-1, 1, 1)
        offset = -(linear @ (shift * self.translate_std).unsqueeze(2)).squeeze(2)
        return linear, offset


@functools.cache
def constant(values: tuple, dtype, device) -> torch.Tensor:
    """A tensor of numbers, cached: creating one on a GPU waits for all earlier work."""
    return torch.tensor(values, dtype=dtype, device=device)


def rotation(angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrices [n, 2, 2] of angles [n] in radians."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c, -s, s, c], dim=1).reshape(-1, 2, 2)


def warp(images: torch.Tensor, linear: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Resample [n, C, H, W] at `linear @ p + offset` for each pixel p = (x, y) relative to the centre.

    Band-limited: the image is upsampled twice with a wavelet filter, read bilinearly at points twice as dense as the
    pixels of the result, and filtered down. Outside, the image continues mirrored. The identity returns the images.
    """
    n, channels, height, width = images.shape
    size = constant((width, height), torch.float32, images.device)
    # Positions of the dense points in the result, and from there in the source, in pixels from the corner.
    x = (torch.arange(2 * width + 10, device=images.device) - _CENTRE) / 2
    y = (torch.arange(2 * height + 10, device=images.device) - _CENTRE) / 2
    points = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=2) - (size - 1) / 2  # [H', W', 2]
    points = points.reshape(-1, 2) @ linear.transpose(1, 2) + offset[:, None, :] + (size - 1) / 2
    points = _reflect(points, size - 1).reshape(n, len(y), len(x), 2)

    source = F.pad(images, [_PAD] * 4, mode='reflect')
    source = _filter(source, F.conv_transpose2d)  # [n, C, 2 H + 34, 2 W + 34]
    last = constant((source.shape[3] - 1, source.shape[2] - 1), torch.float32, images.device)
    points = (2 * (points + _PAD) + _CENTRE) * (2 / last) - 1  # in the units of grid_sample
    dense = F.grid_sample(source, points, mode='bilinear', padding_mode='border', align_corners=True)
    return _filter(dense, F.conv2d)


def _reflect(points, last):
    """Fold coordinates into [-slack, last + slack] by mirroring at the centres of the border pixels 0 and `last`."""
    folded = last - (last - points.remainder(2 * last)).abs()
    inside = (points >= -_SLACK) & (points <= last + _SLACK)
    return torch.where(inside, points, folded)


def _filter(images, convolution):
    """Up- or downsample both axes of every channel by two with the wavelet."""
    n, channels, height, width = images.shape
    taps = constant(SYM6, images.dtype, images.device)
    images = images.reshape(n * channels, 1, height, width)
    images = convolution(images, taps.reshape(1, 1, 1, -1), stride=(1, 2))
    images = convolution(images, taps.reshape(1, 1, -1, 1), stride=(2, 1))
    return images.reshape(n, channels, *images.shape[2:])
