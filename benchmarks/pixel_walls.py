"""Statistics of pixel values near the walls 0 and 255, of samples and real images, for docs/reflected-fid.md.

    python -m benchmarks.pixel_walls SAMPLES [SAMPLES ...] --real=data/cifar10-train.zip [--max_images=5000]
"""

import json

import click
import torch

from dnnlib.cli import blame
from training.data import ImageData

BANDS = {'0': (0, 0), '1-2': (1, 2), '3-12': (3, 12), '243-252': (243, 252), '253-254': (253, 254), '255': (255, 255)}


def moments(images: torch.Tensor) -> dict:
    """Mean and deviation of each channel of uint8 [N, C, H, W], and the share of values in each band at the walls."""
    values = images.transpose(0, 1).flatten(1).to(torch.float32)  # [C, N H W]
    counts = torch.bincount(images.flatten().to(torch.int64), minlength=256).to(torch.float64)
    shares = {name: counts[low:high + 1].sum().item() / images.numel() for name, (low, high) in BANDS.items()}
    return dict(images=len(images), mean=values.mean(1).tolist(), std=values.std(1).tolist(), shares=shares)


@click.command()
@click.argument('samples', nargs=-1, required=True)
@click.option('--real', help='Images to compare with', metavar='ZIP|DIR|NPZ', type=str, required=True)
@click.option('--max_images', help='Use at most this many images of each', metavar='INT', type=click.IntRange(min=1))
@click.option('--json', 'path', help='Also write the numbers there', metavar='FILE', type=click.Path(dir_okay=False))
def main(samples, real, max_images, path):
    found = {}
    for source in (*samples, real):
        with blame('--real' if source == real else 'SAMPLES'):
            found[source] = moments(ImageData(source, max_images=max_images, quiet=True).images)
    print('| images | mean | std | ' + ' | '.join(f'{name}, %' for name in BANDS) + ' |')
    print('|' + '---|' * (3 + len(BANDS)))
    for source, row in found.items():
        shares = ' | '.join(f'{100 * share:.3f}' for share in row['shares'].values())
        mean, std = (' '.join(f'{value:.2f}' for value in row[name]) for name in ('mean', 'std'))
        print(f'| {source} | {mean} | {std} | {shares} |')
    if path:
        with open(path, 'w') as file:
            json.dump(found, file, indent=1)


if __name__ == '__main__':
    main()
