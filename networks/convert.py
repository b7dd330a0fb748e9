"""Turn any readable score network into safetensors."""

import click

from dnnlib.cli import blame
from dnnlib.download import fetch
from dnnlib.files import resolve_output

from .io import build_network, read_network_file, save_network


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
    """
    with blame('DST'):
        if not dest.endswith('.safetensors'):
            raise ValueError(f'{dest} must end in .safetensors')
    with blame('SRC'):
        path = fetch(source)
        net = build_network(read_network_file(path, preset), path)
    with blame('DST'):
        save_network(resolve_output(dest), net, net.metadata, half=half)
    count = sum(p.numel() for p in net.parameters())
    click.echo(f'{dest}: {net.constructor} of {type(net.model).__name__}, '
               f'{net.img_resolution}x{net.img_resolution}x{net.img_channels}, '
               f'{net.label_dim or "no"} classes, {count / 1e6:.1f} M parameters')


if __name__ == '__main__':
    main()
