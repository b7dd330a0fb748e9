"""Inception-v3 as the FID community uses it: the TensorFlow network of 2015 in its published PyTorch port."""

import torch
from torch import nn
from torch.nn import functional as F

from dnnlib.download import fetch
from torch_utils.checkpoint import load_state

URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
       'pt_inception-2015-12-05-6726825d.pth')
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'


class ConvNormRelu(nn.Module):
    """relu(batch_norm(conv x)), named as in the published state dict (conv, bn)."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x):
        """[N, in, H, W] -> [N, out, H', W']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def average_3x3(x):
    """Mean over the 3x3 neighbours inside the picture, as TensorFlow pads: the zeros outside don't count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def max_3x3(x):
    """The last block of the 2015 network pools by maximum, unlike the paper; the published weights expect it."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


class Mixed35(nn.Module):
    """Blocks at 35x35: 1x1, 5x5, double 3x3 and pooled branches (Szegedy et al. 2015, figure 5)."""

    def __init__(self, in_channels, pool_features):
        super().__init__()
        self.branch1x1 = ConvNormRelu(in_channels, 64, 1)
        self.branch5x5_1 = ConvNormRelu(in_channels, 48, 1)
        self.branch5x5_2 = ConvNormRelu(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, 3, padding=1)
        self.branch_pool = ConvNormRelu(in_channels, pool_features, 1)

    def forward(self, x):
        """[N, in, 35, 35] -> [N, 224 + pool_features, 35, 35]."""
        return torch.cat([
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(average_3x3(x)),
        ], dim=1)


class Reduce35(nn.Module):
    """35x35 -> 17x17."""

    def __init__(self, in_channels):
        super().__init__()
        self.branch3x3 = ConvNormRelu(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNormRelu(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormRelu(96, 96, 3, stride=2)

    def forward(self, x):
        """[N, in, 35, 35] -> [N, 480 + in, 17, 17]."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed17(nn.Module):
    """Blocks at 17x17 with 7x7 convolutions split in 1x7 and 7x1 (figure 6, n = 7); `c` inner channels."""

    def __init__(self, in_channels, c):
        super().__init__()
        row, column = dict(kernel_size=(1, 7), padding=(0, 3)), dict(kernel_size=(7, 1), padding=(3, 0))
        self.branch1x1 = ConvNormRelu(in_channels, 192, 1)
        self.branch7x7_1 = ConvNormRelu(in_channels, c, 1)
        self.branch7x7_2 = ConvNormRelu(c, c, **row)
        self.branch7x7_3 = ConvNormRelu(c, 192, **column)
        self.branch7x7dbl_1 = ConvNormRelu(in_channels, c, 1)
        self.branch7x7dbl_2 = ConvNormRelu(c, c, **column)
        self.branch7x7dbl_3 = ConvNormRelu(c, c, **row)
        self.branch7x7dbl_4 = ConvNormRelu(c, c, **column)
        self.branch7x7dbl_5 = ConvNormRelu(c, 192, **row)
        self.branch_pool = ConvNormRelu(in_channels, 192, 1)

    def forward(self, x):
        """[N, in, 17, 17] -> [N, 768, 17, 17]."""
        double = self.branch7x7dbl_1(x)
        for layer in (self.branch7x7dbl_2, self.branch7x7dbl_3, self.branch7x7dbl_4, self.branch7x7dbl_5):
            double = layer(double)
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average_3x3(x))], dim=1)


class Reduce17(nn.Module):
    """17x17 -> 8x8."""

    def __init__(self, in_channels):
        super().__init__()
        self.branch3x3_1 = ConvNormRelu(in_channels, 192, 1)
        self.branch3x3_2 = ConvNormRelu(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormRelu(in_channels, 192, 1)
        self.branch7x7x3_2 = ConvNormRelu(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNormRelu(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNormRelu(192, 192, 3, stride=2)

    def forward(self, x):
        """[N, in, 17, 17] -> [N, 512 + in, 8, 8]."""
        wide = self.branch7x7x3_2(self.branch7x7x3_1(x))
        wide = self.branch7x7x3_4(self.branch7x7x3_3(wide))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, stride=2)], dim=1)


class Mixed8(nn.Module):
    """Blocks at 8x8 with fanned-out 1x3 and 3x1 convolutions (figure 7); `pool` is average_3x3 or max_3x3."""

    def __init__(self, in_channels, pool):
        super().__init__()
        row, column = dict(kernel_size=(1, 3), padding=(0, 1)), dict(kernel_size=(3, 1), padding=(1, 0))
        self.pool = pool
        self.branch1x1 = ConvNormRelu(in_channels, 320, 1)
        self.branch3x3_1 = ConvNormRelu(in_channels, 384, 1)
        self.branch3x3_2a = ConvNormRelu(384, 384, **row)
        self.branch3x3_2b = ConvNormRelu(384, 384, **column)
        self.branch3x3dbl_1 = ConvNormRelu(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNormRelu(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNormRelu(384, 384, **row)
        self.branch3x3dbl_3b = ConvNormRelu(384, 384, **column)
        self.branch_pool = ConvNormRelu(in_channels, 192, 1)

    def forward(self, x):
        """[N, in, 8, 8] -> [N, 2048, 8, 8]."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat([
            self.branch1x1(x),
            self.branch3x3_2a(single), self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        ], dim=1)


class InceptionV3(nn.Module):
    """Szegedy et al. 2015 (arXiv:1512.00567) with the pooling of TensorFlow's inception-2015-12-05.

    State dict as in pt_inception-2015-12-05-6726825d.pth of mseitzer/pytorch-fid, including the
    classifier `fc` of 1008 classes, which features do not use.
    """

    feature_dim = 2048

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormRelu(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormRelu(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormRelu(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormRelu(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormRelu(80, 192, 3)
        self.Mixed_5b = Mixed35(192, pool_features=32)
        self.Mixed_5c = Mixed35(256, pool_features=64)
        self.Mixed_5d = Mixed35(288, pool_features=64)
        self.Mixed_6a = Reduce35(288)
        self.Mixed_6b = Mixed17(768, 128)
        self.Mixed_6c = Mixed17(768, 160)
        self.Mixed_6d = Mixed17(768, 160)
        self.Mixed_6e = Mixed17(768, 192)
        self.Mixed_7a = Reduce17(768)
        self.Mixed_7b = Mixed8(1280, average_3x3)
        self.Mixed_7c = Mixed8(2048, max_3x3)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        """uint8 or floating-point images [N, 3, H, W] in [0, 255] -> pooled features [N, 2048].

        Images are resized to 299x299 bilinearly without anti-aliasing, as pytorch-fid does, then
        scaled to [-1, 1]; both in float32 whatever the dtype of the weights.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f'Inception takes images [N, 3, H, W], not {list(x.shape)}')
        x = F.interpolate(x.to(torch.float32) / 255, size=(299, 299), mode='bilinear', align_corners=False)
        weight = self.Conv2d_1a_3x3.conv.weight
        channels_last = weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x = (2 * x - 1).to(weight.dtype, memory_format=layout)
        for layer in (self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3):
            x = layer(x)  # [N, 64, 147, 147] at the end
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # [N, 192, 71, 71]
        x = F.max_pool2d(x, 3, stride=2)
        for name in ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e', '7a', '7b', '7c'):
            x = getattr(self, f'Mixed_{name}')(x)
        return x.to(torch.float32).mean(dim=[2, 3])  # [N, 2048, 8, 8] -> [N, 2048]


def load_inception(path=None) -> InceptionV3:
    """Inception-v3 with the published weights, from `path` or fetched once and checked. Raises ValueError, OSError."""
    path = fetch(URL, sha256=SHA256) if path is None else fetch(path)
    if path.suffix == '.pkl':
        raise ValueError(f'{path.name} is a pickle, which would run code; give pt_inception-2015-12-05-6726825d.pth')
    state = load_state(path)
    with torch.device('meta'):  # the file brings all values
        net = InceptionV3()
    expected = net.state_dict()
    if not isinstance(state, dict) or not (expected.keys() - _counters(expected)) <= state.keys():
        raise ValueError(f'{path.name} does not hold the Inception-v3 of pytorch-fid '
                         '(pt_inception-2015-12-05-6726825d.pth)')
    # Published before torch counted batches in each normalisation; the counters play no part in inference.
    state = state | {key: torch.zeros([], dtype=torch.int64) for key in _counters(expected)}
    try:
        net.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f'{path.name} does not fit Inception-v3: {str(error).splitlines()[-1].strip()}') from None
    return net.eval().requires_grad_(False)


def _counters(state):
    return {key for key in state if key.endswith('num_batches_tracked')}
