"""A sampling run from the options of generate.py: guidance, noise levels and sampler, ready to take seeds."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dnnlib.cli import blame
from sampling import nested, stream

from . import options, samplers
from .loading import Loaded, load_guidance, load_guides
from .machine import Machine, compile_for_sampling


class Prepared(NamedTuple):
    """What draws (see `sampling.stream`), and the entries of options.json that say what it draws."""

    stream: Callable
    record: dict


def prepare(opts: dict, seeds: Sequence[int], machine: Machine, network: Loaded) -> Prepared:
    """The run that the settled options of generate.py ask for, of `seeds` in all, with a loaded score network."""
    net = network.value
    log_ratio, guidance, guided = load_guidance(
        opts, net, machine, '--num_particles' if opts['num_particles'] > 1 else None)
    guides, guided_by = load_guides(opts, net, machine)
    levels = options.levels_of(opts, net)
    sampler, own, record, evaluations = samplers.choose_sampler(opts, net, levels, guidance, log_ratio)
    compiled = compile_for_sampling(machine, net, log_ratio, len(seeds) * evaluations)
    record |= guided | guided_by | network.record | machine.record() | dict(compile=compiled)
    return Prepared(stream(blame('--network')(sampler), net, batch=min(opts['batch'], len(seeds)),
                           device=machine.device, class_idx=opts['class_idx'], guidance=nested(*guides, guidance),
                           pad=compiled, levels=levels, **own), record)
