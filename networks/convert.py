"""Turn any readable score network into safetensors."""

import click

from dnnlib.cli import blame
from dnnlib.download import fetch
from dnnlib.files import resolve_output

from .io import build_network, read_network_file, save_network


@click.command()
@click.argument('source', metavar='SRC')
@click.argument('dest', metavar='DST.safetensors')
@click.option('--half', help='Store parameters as float16, half the size', is_flag=True)
def main(source, dest, half):
    """Convert the score network SRC (path or URL: an EDM pickle, safetensors) to safetensors; nothing in it is run.

    \b
    Example:
    python -m networks.convert edm-cifar10-32x32-uncond-vp.pkl edm-cifar10-32x32-uncond-vp.safetensors
    """
    with blame('DST'):
        if not dest.endswith('.safetensors'):
            raise ValueError(f'{dest} must end in .safetensors')
    with blame('SRC'):
        path = fetch(source)
        net = build_network(read_network_file(path), path)
    with blame('DST'):
        save_network(resolve_output(dest), net, net.metadata, half=half)
    count = sum(p.numel() for p in net.parameters())
    click.echo(f'{dest}: {net.constructor} of {type(net.model).__name__}, '
               f'{net.img_resolution}x{net.img_resolution}x{net.img_channels}, '
               f'{net.label_dim or "no"} classes, {count / 1e6:.1f} M parameters')


if __name__ == '__main__':
    main()
