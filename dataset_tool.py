"""Turns raw images into what the other scripts read: data/*.npz, EDM-style zips and stats/*.npz."""

import json
import zipfile
from pathlib import Path

import click
import numpy as np

from commands.machine import blame_machine
from dnnlib.cli import blame
from dnnlib.files import atomic_write, resolve_output
from metrics.detectors import DETECTORS, load_detector
from metrics.measure import measure
from metrics.reference import make_reference
from metrics.sources import ImageSource
from torch_utils import distributed as dist
from torch_utils.device import PRECISIONS, select_device, select_precision
from torch_utils.images import png_bytes
from torch_utils.progress import progress
from training.data import ImageData

ZIP_FOLDER = 1000  # images per folder in a zip, as EDM lays them out

source_option = click.option(
    '--source', help='A zip, a folder or an npz of images; cifar10 or cifar10-test: downloaded by torchvision',
    metavar='ZIP|DIR|NPZ|cifar10', type=str, required=True)
limit_option = click.option('--max_images', help='Use so many images, a fixed subset', metavar='INT',
                            type=click.IntRange(min=1))


@click.group()
def main():
    """Make data/*.npz, EDM-style zips and reference statistics.

    Examples:

    \b
    # data/true_data.npz and data/true_data_label.npz, as DG's train.py wants them
    python dataset_tool.py npz --source=cifar10

    \b
    # EDM-style zips: of CIFAR-10, and of a folder whose subfolders are classes (images of one size; nothing is resized)
    python dataset_tool.py zip --source=cifar10 --dest=data/cifar10-train.zip
    python dataset_tool.py zip --source=photos/ --dest=data/photos.zip

    \b
    # the statistics behind fid_npzs.py, for FD-CIFAR10 and for FID
    python dataset_tool.py stats --source=data/cifar10-train.zip --dest=stats/cifar10-demo.npz
    python dataset_tool.py stats --source=data/cifar10-train.zip --dest=stats/cifar10-inception.npz --detector=inception
    """


@main.command()
@source_option
@limit_option
@click.option('--outdir', help='Where to write true_data.npz and true_data_label.npz', metavar='DIR', type=str,
              default='data', show_default=True)
@click.option('--name', help='First part of the file names', metavar='STR', type=str, default='true_data',
              show_default=True)
def npz(source, max_images, outdir, name):
    """Write <name>.npz (arr_0, uint8 [N, H, W, C]) and, with labels, <name>_label.npz (samples, label [N])."""
    data = load(source, max_images)
    outdir = resolve_output(outdir)
    images = data.images.permute(0, 2, 3, 1).contiguous().numpy()  # [N, H, W, C]
    with blame('--outdir'):
        _save_npz(outdir / f'{name}.npz', arr_0=images)
        if data.labels is not None:
            _save_npz(outdir / f'{name}_label.npz', samples=images, label=data.labels.numpy())
        else:
            click.echo(f'{source} has no labels, so there is no {name}_label.npz')


@main.command('zip')
@source_option
@limit_option
@click.option('--dest', help='The zip to write', metavar='ZIP', type=str, required=True)
def make_zip(source, max_images, dest):
    """Write an EDM-style zip: 00000/img00000000.png and so on, and dataset.json with the labels."""
    data = load(source, max_images)
    dest = resolve_output(dest)
    labels = []
    with blame('--dest'), atomic_write(dest) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        for index, image in enumerate(progress(data.images, desc='writing')):
            name = f'{index // ZIP_FOLDER:05d}/img{index:08d}.png'
            _add(archive, name, png_bytes(image.permute(1, 2, 0).numpy()))
            if data.labels is not None:
                labels.append([name, int(data.labels[index])])
        _add(archive, 'dataset.json', json.dumps(dict(labels=labels or None)).encode())
    _report(dest, f'{len(data)} images' + (f', {data.num_classes} classes' if labels else ', no labels'))


@main.command()
@source_option
@limit_option
@click.option('--dest', help='The statistics to write', metavar='NPZ', type=str, required=True)
@click.option('--detector', help='Feature network', type=click.Choice(DETECTORS), default='cifar10', show_default=True)
@click.option('--detector_ckpt', help="The detector's weights; default: shipped or published ones", metavar='FILE',
              type=str)
@click.option('--allow_code', help="Run NVIDIA's detector, whose file is a program", is_flag=True)
@click.option('--features', help='Keep the features of so many images for KID; 0: none', metavar='INT',
              type=click.IntRange(min=0), default=5000, show_default=True)
@click.option('--batch', help='Images per forward pass', metavar='INT', type=click.IntRange(min=1), default=64,
              show_default=True)
@click.option('--precision', help='Arithmetic of the detector', type=click.Choice(PRECISIONS), default='fp32',
              show_default=True)
@click.option('--device', help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto', show_default=True)
@blame_machine('--batch')
def stats(source, max_images, dest, detector, detector_ckpt, allow_code, features, batch, precision, device):
    """Write reference statistics: mu, sigma, detector, fingerprint, count, source, and features for KID.

    Works under torchrun, which deals the images out.
    """
    dist.init()
    with blame('--device'):
        device = select_device(device)
    with blame('--precision'):
        dtype = select_precision(precision, device)
    with blame('--detector'), dist.rank0_first():  # it downloads
        detector = load_detector(detector, device, dtype, detector_ckpt, allow_code)
    data = load(source, max_images)
    with blame('--source'):
        measured = measure(DataSource(data, source), detector, 0, len(data), batch=batch, max_features=features)
        reference = make_reference(measured, detector, source=data.name)
    if dist.get_rank() == 0:
        dest = resolve_output(dest)
        with blame('--dest'):
            reference.save(dest)
        _report(dest, f'{reference.dim} features of {reference.count} images, detector {detector.name}')
    dist.shutdown()


class DataSource(ImageSource):
    """A data set in memory, measured like a folder of samples."""

    def __init__(self, data: ImageData, source: str):
        super().__init__(Path(source), len(data))
        if data.channels not in (1, 3):
            raise ValueError(f'{source} has images of {data.channels} channels; detectors take 1 or 3')
        self.images = data.images  # [N, C, H, W]

    def blocks(self, start, stop):
        for low in range(start, stop, 1024):
            block = self.images[low:min(low + 1024, stop)]
            yield block.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # [n, H, W, 3]


def load(source: str, max_images: int | None) -> ImageData:
    """The images of --source, all in memory."""
    with blame('--source'):
        if source in ('cifar10', 'cifar10-test'):
            with dist.rank0_first():
                source = download_cifar10(train=source == 'cifar10')
        return ImageData(source, max_images=max_images)


def download_cifar10(train: bool) -> Path:
    """data/cifar10-{train,test}.npz with `samples` and `label`, made by torchvision's download on first use."""
    path = Path('data') / f'cifar10-{"train" if train else "test"}.npz'
    if not path.exists():
        import torchvision  # slow to import, and only needed here

        try:
            raw = torchvision.datasets.CIFAR10(str(path.parent / 'cifar10-raw'), train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f'CIFAR-10 could not be downloaded ({error}); give a local zip or folder') from None
        _save_npz(path, samples=raw.data, label=np.asarray(raw.targets, dtype=np.int64))
    return path


def _save_npz(path: Path, **arrays) -> None:
    with atomic_write(path) as file:
        np.savez(file, **arrays)
    _report(path, ', '.join(f'{name} {array.dtype} {list(array.shape)}' for name, array in arrays.items()))


def _add(archive, name, blob):
    """A member with a fixed date, so that the same images give the same zip."""
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), blob)


def _report(path, what):
    click.echo(f'{path}: {what}')


if __name__ == '__main__':
    main()
