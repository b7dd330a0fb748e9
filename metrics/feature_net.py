"""The small CIFAR-10 network whose features give FD-CIFAR10, the distance of the shipped demo."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from torch_utils import checkpoint

CONSTRUCTOR = 'FeatureNet'


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv x)))) + shortcut x), the basic block of He et al. 2016 (arXiv:1512.03385)."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        # Average pooling before the 1x1 keeps every pixel in the shortcut; a strided 1x1 drops three of four.
        self.shortcut = None
        if stride > 1 or in_channels != out_channels:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(pool, conv, nn.BatchNorm2d(out_channels))

    def forward(self, x):
        """[N, in, H, W] -> [N, out, H / stride, W / stride], floating point."""
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return F.relu(h + (x if self.shortcut is None else self.shortcut(x)))


class FeatureNet(nn.Module):
    """A residual classifier of small images; `widths[-1]` averaged activations are its features.

    widths: channels of the stages, the first at full resolution, every later one at half the previous.
    blocks: residual blocks per stage.
    The defaults have about one million parameters and 128 features.
    """

    def __init__(self, widths=(48, 96, 128), blocks=(1, 2, 2), num_classes=10, img_channels=3, img_resolution=32):
        super().__init__()
        widths, blocks = list(widths), list(blocks)
        if len(widths) != len(blocks):
            raise ValueError(f'FeatureNet: {len(widths)} widths but {len(blocks)} block counts')
        if img_resolution % 2 ** (len(widths) - 1):
            raise ValueError(f'FeatureNet: {img_resolution}x{img_resolution} images cannot be halved '
                             f'{len(widths) - 1} times')
        self.init_kwargs = dict(widths=widths, blocks=blocks, num_classes=num_classes,
                                img_channels=img_channels, img_resolution=img_resolution)
        self.img_channels, self.img_resolution = img_channels, img_resolution
        self.num_classes, self.feature_dim = num_classes, widths[-1]
        self.stem = nn.Conv2d(img_channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        layers, in_channels = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for index in range(count):
                layers.append(ResidualBlock(in_channels, width, stride=2 if stage and not index else 1))
                in_channels = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(self.feature_dim, num_classes)

    def forward(self, x, features=False):
        """Class logits [N, num_classes], or with `features` the pooled activations [N, feature_dim], all >= 0.

        x: [N, C, R, R], either uint8 in [0, 255] or floating point in [-1, 1]; uint8 u is taken as u / 127.5 - 1.
        Raises ValueError for another shape.
        """
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        if x.ndim != 4 or tuple(x.shape[1:]) != expected:
            raise ValueError(f'the feature network takes images [N, {", ".join(map(str, expected))}], '
                             f'not {list(x.shape)}')
        if x.dtype == torch.uint8:
            x = x.to(torch.float32) / 127.5 - 1
        h = F.relu(self.stem_norm(self.stem(x.to(self.stem.weight.dtype))))  # [N, widths[0], R, R]
        h = self.body(h).to(torch.float32).mean(dim=[2, 3])  # [N, feature_dim]
        return h if features else self.head(h.to(self.head.weight.dtype))


def save_feature_net(path, net, metadata=None):
    """Writes `net` as safetensors; `metadata` is a flat dict that describes its training."""
    checkpoint.save_network(path, net, CONSTRUCTOR, net.init_kwargs, metadata=metadata or {})


def load_feature_net(path):
    """A FeatureNet on the CPU, in evaluation mode, float32 and frozen, from a file of `save_feature_net`.

    Raises OSError for a missing file and ValueError for a file that holds something else.
    """
    file = checkpoint.read_network(path)
    if file.constructor != CONSTRUCTOR:
        raise ValueError(f'{Path(path).name} holds a {file.constructor}, not a {CONSTRUCTOR}; '
                         'train_classifier.py --preset=cifar10-features makes one')
    try:
        checkpoint.check_size(lambda: FeatureNet(**file.kwargs), file.state)
        net = FeatureNet(**file.kwargs)
        net.load_state_dict(file.state)
    except Exception as error:  # arguments of any kind can fail anywhere
        raise ValueError(f'{Path(path).name} does not fit its own constructor arguments: '
                         f'{str(error).splitlines()[-1].strip()}') from None
    return net.eval().requires_grad_(False)
