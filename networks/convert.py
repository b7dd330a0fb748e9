"""Turn any readable score network into safetensors, or two of them into one: python -m networks.convert."""

import argparse
import contextlib
import sys

from dnnlib.download import fetch
from dnnlib.files import resolve_output

from .io import build_network, load_network, read_network_file, save_network
from .merge import merge_

CONVERT = """Convert the score network SRC (path or URL) to safetensors; nothing in it is run.

SRC is an EDM pickle, a checkpoint of score_sde or Soft-Truncation (its averaged weights are kept), or safetensors.

Examples:
  python -m networks.convert edm-cifar10-32x32-uncond-vp.pkl edm-cifar10-32x32-uncond-vp.safetensors
  python -m networks.convert checkpoint_8.pth ddpmpp.safetensors --preset=vp/cifar10_ddpmpp_continuous

`python -m networks.convert merge --help`: weights between and beyond two networks."""

MERGE = """Write the network with the weights (1 + w) A - w B.

A and B are score networks (paths or URLs) of one architecture. With B fine-tuned from A on its own samples this is
Neon (Alemohammad et al. 2025), which makes A better for a small w > 0.

Example:
  python -m networks.convert merge network.safetensors finetuned.safetensors neon.safetensors --w=0.5"""


def main(arguments: list[str] | None = None) -> None:
    """The command; `arguments` replace those of the process. A user's mistake exits with one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ['merge']:
        merge(arguments[1:])
    else:
        convert(arguments)


def convert(arguments: list[str]) -> None:
    parser = _parser('python -m networks.convert', CONVERT)
    parser.add_argument('source', metavar='SRC')
    parser.add_argument('dest', metavar='DST.safetensors')
    parser.add_argument('--preset', metavar='NAME|YAML', help='configuration of a score_sde or Soft-Truncation '
                        'checkpoint: the name of a published one or its YAML; default: the name of its folder')
    parser.add_argument('--half', action='store_true', help='store parameters as float16, half the size')
    args = parser.parse_args(arguments)
    _check_name(args.dest)
    with _blame('SRC'):
        path = fetch(args.source)
        net = build_network(read_network_file(path, args.preset), path)
    _save(args.dest, net, net.metadata, half=args.half)


def merge(arguments: list[str]) -> None:
    parser = _parser('python -m networks.convert merge', MERGE)
    parser.add_argument('a', metavar='A')
    parser.add_argument('b', metavar='B')
    parser.add_argument('dest', metavar='DST.safetensors')
    parser.add_argument('--w', metavar='FLOAT', type=float, required=True,
                        help='how far to go beyond A, away from B; -1 is B, -0.5 the mean')
    args = parser.parse_args(arguments)
    _check_name(args.dest)
    with _blame('A'):
        net = load_network(args.a)
    with _blame('B'):
        merge_(net, load_network(args.b), args.w)
    _save(args.dest, net, net.metadata | dict(merged=f'(1 + {args.w:g}) {args.a} - {args.w:g} {args.b}'))


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextlib.contextmanager
def _blame(argument: str):
    """dnnlib.cli.blame without click: a ValueError or OSError raised inside becomes one line that names `argument`."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f'Error: {argument}: {" ".join(str(error).split())}', file=sys.stderr)
        sys.exit(1)


def _check_name(dest: str) -> None:
    with _blame('DST'):
        if not dest.endswith('.safetensors'):
            raise ValueError(f'{dest} must end in .safetensors')


def _save(dest: str, net, metadata: dict, half: bool = False) -> None:
    """Write the network and say what it is."""
    with _blame('DST'):
        save_network(resolve_output(dest), net, metadata, half=half)
    count = sum(p.numel() for p in net.parameters())
    print(f'{dest}: {net.constructor} of {type(net.model).__name__}, '
          f'{net.img_resolution}x{net.img_resolution}x{net.img_channels}, '
          f'{net.label_dim or "no"} classes, {count / 1e6:.1f} M parameters')


if __name__ == '__main__':
    main()
