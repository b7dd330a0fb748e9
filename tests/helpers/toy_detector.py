"""A detector without weights for images of any size: what tests of the measuring scripts need, at no cost."""

import torch

from metrics.detectors import DETECTORS, DetectorKind, Made, load_detector
from metrics.measure import measure
from metrics.reference import make_reference
from metrics.stream import as_source


def make_colours(path, device, dtype):
    """Mean and contrast of each channel."""
    def features(images):  # uint8 [N, 3, H, W] -> [N, 6]
        pixels = images.to(torch.float32) / 255
        return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1)

    return Made(features, 6, fingerprint='1')


KIND = DetectorKind(make_colours, 'FD-colours')


def register() -> None:
    """Add it to the table of detectors."""
    DETECTORS['colours'] = KIND


def write_statistics(path) -> None:
    """Statistics of 80 images of noise, with their features; the detector is in the table."""
    noise = torch.randint(0, 256, [80, 3, 8, 8], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    detector = load_detector('colours')
    make_reference(measure(as_source(noise), detector), detector, 'noise').save(path)
