"""The --source of images that a script reads: its options, and how it is opened."""

import click

from dnnlib.cli import blame
from torch_utils import distributed as dist
from torch_utils.image_source import Source, open_images
from torch_utils.published_sets import download_cifar10

source_option = click.option(
    '--source', help='A zip, a folder or an npz of images; cifar10 or cifar10-test: downloaded by torchvision; '
    'cifar-10-python.tar.gz, train-images-idx3-ubyte.gz (MNIST)', metavar='ZIP|DIR|NPZ|cifar10', type=str,
    required=True)
max_images_option = click.option(
    '--max_images', '--max-images', help='Use this many images, a fixed subset', metavar='INT',
    type=click.IntRange(min=1))
labels_option = click.option(
    '--labels', help='Where labels come from. data: dataset.json, else folders, or the arrays of an npz; names: file '
    'names <class>_<anything>.png, as ADM\'s', type=click.Choice(['data', 'names', 'none']), default='data',
    show_default=True)


def open_source(source: str, max_images: int | None, labels: str) -> Source:
    """The images of --source, still on disk, and their labels; prints what was found."""
    with blame('--source'):
        if source in ('cifar10', 'cifar10-test'):
            with dist.rank0_first():
                source = download_cifar10(train=source == 'cifar10')
        found = open_images(source, labels).subset(max_images)
    for note in found.describe():
        dist.print0(note)
    return found
