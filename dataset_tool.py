"""Turns raw images into what the other scripts read: data/*.npz, EDM-style zips and stats/*.npz."""

import contextlib
from pathlib import Path

import click

from commands.images import labels_option, max_images_option, open_source, source_option
from commands.machine import blame_machine, start
from dnnlib.cli import Resolution, blame
from dnnlib.files import resolve_output
from metrics.detectors import DETECTORS, load_detector
from metrics.measure import measure
from metrics.reference import make_reference
from metrics.sources import StoreSource
from torch_utils import distributed as dist
from torch_utils.device import PRECISIONS
from torch_utils.image_output import alike, write_dataset, write_npz
from torch_utils.image_transforms import TRANSFORMS, make_transform, over, parse_color
from torch_utils.images import png_bytes
from torch_utils.progress import progress


class EdmGroup(click.Group):
    """Subcommands; EDM's command without a subcommand, and EDM2's `convert`, mean `zip`."""

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, ['zip', *args] if args and args[0].startswith('--') and args[0] != '--help'
                                  else args)

    def get_command(self, ctx, cmd_name):
        return super().get_command(ctx, 'zip' if cmd_name == 'convert' else cmd_name)


@click.group(cls=EdmGroup)
def main():
    """Make data/*.npz, EDM-style zips and reference statistics.

    Folders of images are read with all subfolders except hidden ones. Without a dataset.json, the first folder below
    the common ones is the class; classes are ordered numerically if all names are integers, else alphabetically.
    Photos are rotated as their EXIF orientation says, in data sets, statistics and samples alike.

    Examples:

    \b
    # data/true_data.npz and data/true_data_label.npz, as DG's train.py reads them
    python dataset_tool.py npz --source=cifar10

    \b
    # EDM-style zips of CIFAR-10, and of a folder whose subfolders are classes
    python dataset_tool.py zip --source=cifar10 --dest=data/cifar10-train.zip
    python dataset_tool.py zip --source=photos/ --dest=data/photos.zip --resolution=64x64 --transform=center-crop

    \b
    # EDM's published command
    python dataset_tool.py --source=downloads/ffhq/images1024x1024 --dest=data/ffhq-64x64.zip --resolution=64x64

    \b
    # the statistics behind fid_npzs.py, for FD-CIFAR10 and for FID
    python dataset_tool.py stats --source=data/cifar10-train.zip --dest=stats/cifar10-demo.npz
    python dataset_tool.py stats --source=data/cifar10-train.zip --dest=stats/cifar10-inception.npz --detector=inception
    """


@main.command()
@source_option
@max_images_option
@labels_option
@click.option('--outdir', help='Where to write true_data.npz and true_data_label.npz', metavar='DIR', type=str,
              default='data', show_default=True)
@click.option('--name', help='First part of the file names', metavar='STR', type=str, default='true_data',
              show_default=True)
def npz(source, max_images, labels, outdir, name):
    """Write <name>.npz (arr_0, uint8 [N, H, W, C]) and, with labels, <name>_label.npz (samples, label [N]).

    <name>_label.json names the classes.
    """
    data = open_source(source, max_images, labels)
    outdir = resolve_output(outdir)
    plain, labelled = outdir / f'{name}.npz', outdir / f'{name}_label.npz'
    names = {plain: 'arr_0'} | ({} if data.labels.indices is None else {labelled: 'samples'})

    def read():
        with blame('--source'), progress(total=len(data.images), desc='writing') as bar:
            for block in data.images.blocks():
                yield block
                bar.update(len(block))

    with blame('--outdir'), contextlib.closing(read()) as blocks:  # so that the bar ends its line before an error
        write_npz(names, blocks, len(data.images), data.labels, labelled)
    for path, array in names.items():
        click.echo(f'{path}: {len(data.images)} images as `{array}`')
    if data.labels.indices is None:
        click.echo(f'{source} has no labels, so there is no {labelled.name}')


@main.command('zip')
@source_option
@click.option('--max_images', '--max-images', help='Use only this many images, the first ones, as in EDM',
              metavar='INT', type=click.IntRange(min=1))
@labels_option
@click.option('--dest', help='The zip to write, or an empty or new folder', metavar='ZIP|DIR', type=str, required=True)
@click.option('--resolution', help='Width and height to make, by the Lanczos filter; without --transform images are '
              'stretched', metavar='WxH', type=Resolution())
@click.option('--transform', help='How to crop: the largest square; a wide part with black bars; as ADM for ImageNet '
              '(halved by boxes, then bicubic)', type=click.Choice(TRANSFORMS))
@click.option('--rgb', help='Make grey and RGBA images RGB; this colour (white, #80ff00) shows behind transparency',
              metavar='COLOR', type=str)
def make_zip(source, max_images, labels, dest, resolution, transform, rgb):
    """Write an EDM-style zip: 00000/img00000000.png and so on, and dataset.json with the labels.

    All images must come out as squares of one size. Works on all cores.
    """
    with blame('--rgb'):
        color = None if rgb is None else parse_color(rgb)
    with blame('--transform'):
        crop = make_transform(transform, resolution)
    data = open_source(source, None, labels)
    images, dest = data.images.select(slice(max_images)), resolve_output(dest)

    def work(image):
        image = crop(image if color is None else over(image, color))
        return None if image is None else (image.shape, png_bytes(image))

    def convert():
        with blame('--source'):
            with progress(images.map(work), total=len(images), desc='converting') as bar:
                yield from alike(bar)

    with blame('--dest'), contextlib.closing(convert()) as converted:
        left = write_dataset(dest, converted, data.labels)
    click.echo(f'{dest}: {len(left)} images' + (f', {left.labels.num_classes} classes' if left.labels.indices is not
               None else ', no labels') + (f'; {len(images) - len(left)} are smaller than --resolution and left out'
                                           if len(left) < len(images) else ''))


@main.command()
@source_option
@max_images_option
@click.option('--dest', help='The statistics to write', metavar='NPZ', type=str, required=True)
@click.option('--detector', help='Feature network', type=click.Choice(DETECTORS), default='cifar10', show_default=True)
@click.option('--detector_ckpt', help="The detector's weights; default: shipped or published ones", metavar='FILE',
              type=str)
@click.option('--allow_code', help="Run NVIDIA's detector, whose file is a program", is_flag=True)
@click.option('--features', help='Keep the features of this many images for KID; 0: none', metavar='INT',
              type=click.IntRange(min=0), default=5000, show_default=True)
@click.option('--batch', help='Images per forward pass', metavar='INT', type=click.IntRange(min=1), default=64,
              show_default=True)
@click.option('--precision', help='Arithmetic of the detector', type=click.Choice(PRECISIONS), default='fp32',
              show_default=True)
@click.option('--device', help='auto, cpu, cuda or cuda:N', metavar='STR', type=str, default='auto', show_default=True)
@blame_machine('--batch')
def stats(source, max_images, dest, detector, detector_ckpt, allow_code, features, batch, precision, device):
    """Write reference statistics: mu, sigma, detector, fingerprint, count, source, and features for KID.

    Works under torchrun, whose processes share the images.
    """
    machine = start(device, precision)
    with blame('--detector'), dist.rank0_first():  # it downloads
        detector = load_detector(detector, machine.device, machine.dtype, detector_ckpt, allow_code)
    data = open_source(source, max_images, 'none')
    with blame('--source'):
        images = StoreSource(Path(source), data.images)
        measured = measure(images, detector, 0, len(images), batch=batch, max_features=features)
        reference = make_reference(measured, detector, source=data.path.resolve().stem)
    if dist.get_rank() == 0:
        dest = resolve_output(dest)
        with blame('--dest'):
            reference.save(dest)
        click.echo(f'{dest}: {reference.dim} features of {reference.count} images, detector {detector.name}')
    dist.shutdown()


if __name__ == '__main__':
    main()
