"""Turn any readable score network into safetensors, or two of them into one."""

import sys

import click

from dnnlib.cli import blame
from dnnlib.download import fetch
from dnnlib.files import resolve_output

from .io import build_network, load_network, read_network_file, save_network
from .merge import merge_


@click.command()
@click.argument('source', metavar='SRC')
@click.argument('dest', metavar='DST.safetensors')
@click.option('--preset', help='Configuration of a score_sde or Soft-Truncation checkpoint: the name of a published '
              'one or its YAML; default: the name of its folder', metavar='NAME|YAML')
@click.option('--half', help='Store parameters as float16, half the size', is_flag=True)
def main(source, dest, preset, half):
    """Convert the score network SRC (path or URL) to safetensors; nothing in it is run.

    SRC is an EDM pickle, a checkpoint of score_sde or Soft-Truncation (its averaged weights are kept), or safetensors.

    \b
    Examples:
    python -m networks.convert edm-cifar10-32x32-uncond-vp.pkl edm-cifar10-32x32-uncond-vp.safetensors
    python -m networks.convert checkpoint_8.pth ddpmpp.safetensors --preset=vp/cifar10_ddpmpp_continuous

    `python -m networks.convert merge --help`: weights between and beyond two networks.
    """
    _check_name(dest)
    with blame('SRC'):
        path = fetch(source)
        net = build_network(read_network_file(path, preset), path)
    with blame('DST'):
        save_network(resolve_output(dest), net, net.metadata, half=half)
    _describe(dest, net)


@click.command()
@click.argument('a', metavar='A')
@click.argument('b', metavar='B')
@click.argument('dest', metavar='DST.safetensors')
@click.option('--w', help='How far to go beyond A, away from B; -1 is B, -0.5 the mean', type=float, required=True)
def merge(a, b, dest, w):
    """Write the network with the weights (1 + w) A - w B.

    A and B are score networks (paths or URLs) of one architecture. With B fine-tuned from A on its own samples this is
    Neon (Alemohammad et al. 2025), which makes A better for a small w > 0.

    \b
    Example:
    python -m networks.convert merge network.safetensors finetuned.safetensors neon.safetensors --w=0.5
    """
    _check_name(dest)
    with blame('A'):
        net = load_network(a)
    with blame('B'):
        merge_(net, load_network(b), w)
    with blame('DST'):
        save_network(resolve_output(dest), net, net.metadata | dict(merged=f'(1 + {w:g}) {a} - {w:g} {b}'))
    _describe(dest, net)


def _check_name(dest: str) -> None:
    with blame('DST'):
        if not dest.endswith('.safetensors'):
            raise ValueError(f'{dest} must end in .safetensors')


def _describe(dest: str, net) -> None:
    count = sum(p.numel() for p in net.parameters())
    click.echo(f'{dest}: {net.constructor} of {type(net.model).__name__}, '
               f'{net.img_resolution}x{net.img_resolution}x{net.img_channels}, '
               f'{net.label_dim or "no"} classes, {count / 1e6:.1f} M parameters')


if __name__ == '__main__':
    if sys.argv[1:2] == ['merge']:
        merge(sys.argv[2:], prog_name='python -m networks.convert merge')
    main(prog_name='python -m networks.convert')
