"""Images, network and initial weights of train_reflected.py."""

from pathlib import Path

from dnnlib import demo
from dnnlib.download import fetch
from dnnlib.files import file_digest
from networks.reflected import construct_reflected, reflected_from
from networks.reflected_runs import network_arguments
from torch_utils import distributed as dist
from training.data import ImageData

from .reflected_words import DATA

FILES = {'cifar10': 'data/cifar10-train.zip', 'imagenet32': 'data/imagenet32-train.zip',
         'imagenet64c': 'data/imagenet64-train.zip'}


def load_images(opts: dict, config: dict) -> ImageData:
    """The images, of the size and with the labels that the configuration says."""
    section = config['data']
    name = next(name for name, known in DATA.items() if known['dataset'] == section['dataset'])
    data = ImageData(opts['path'] or FILES[name], max_images=opts['max_images'], resolution=section['image_size'],
                     channels=section['num_channels'], quiet=dist.get_rank() != 0)
    if not section['classes']:
        data.labels = None
    elif data.num_classes > section['num_classes'] or not data.num_classes:
        raise ValueError(f'the images have {data.num_classes or "no"} classes, data.num_classes is '
                         f'{section["num_classes"]}')
    return data


def settle_transfer(config: dict) -> Path | None:
    """The file of model.transfer, if any; the configuration keeps its digest, as it may move."""
    named = config['model'].pop('transfer', None)
    if named is None:
        return None
    with dist.rank0_first():  # it downloads
        path = fetch(named or demo.DEMO_SCORE)
    config['transfer_sha256'] = file_digest(path)
    return path


def initial_network(config: dict, source: Path | None):
    """The network of the configuration as it begins: weights drawn at random, or those of the file `source`."""
    model, sde, section = config['model'], config['sde'], config['data']
    if source is None:
        return construct_reflected(network_arguments(config))
    net = reflected_from(source, sde['sigma_min'], sde['sigma_max'], model['dropout'])
    wanted = [section['num_channels'], section['image_size'], section['num_classes'] if section['classes'] else 0]
    if [net.img_channels, net.img_resolution, net.label_dim] != wanted:
        raise ValueError(f'model.transfer: channels, resolution and classes of the network are {net.img_channels}, '
                         f'{net.img_resolution} and {net.label_dim}, those of the images {wanted}')
    return net
