"""Loads the files that a sampling script names, blames the option at fault, and records the digests."""

from dataclasses import asdict, replace
from typing import NamedTuple

import click

import networks
from dnnlib import demo
from dnnlib.cli import blame
from dnnlib.download import fetch
from dnnlib.files import file_digest, resolve_path
from networks.class_likelihood import load_class_likelihood
from networks.log_ratio import load_log_ratio
from sampling import Autoguidance, Boosting, ClassifierFree, ClassifierGuidance, DiscriminatorGuidance
from sampling.autoguidance import check_guide
from sampling.guidance import BOOSTINGS
from sampling.interval import parse_interval
from sampling.samples import check_class
from torch_utils import distributed as dist

from .machine import Machine

CLASSIFIER = '/checkpoints/ADM_classifier/32x32_classifier.pt'
CLASSIFIER_OF_REPRODUCTION = 'guided_diffusion/model/32x32_classifier.pt'  # where DG's LoRA reproduction has the same
DISCRIMINATOR = '/checkpoints/discriminator/cifar_uncond/discriminator_60.pt'
WEIGHTS = ('dg_weight_1st_order', 'dg_weight_2nd_order')


class Loaded(NamedTuple):
    """An object from files, and the entries of options.json that name them."""

    value: object
    record: dict


def load_network(opts: dict, machine: Machine) -> Loaded:
    """The score network of --network (None: the one that ships), checked against --class if there is one."""
    source, preset, class_idx = opts['network'] or demo.DEMO_SCORE, opts['network_preset'], opts.get('class_idx')
    dist.print0(f'Loading network from {source}')
    with blame('--network, --network_preset' if preset or str(source).endswith('.pth') else '--network'):
        with dist.rank0_first():  # it downloads
            net = networks.load_network(source, device=machine.device, dtype=machine.dtype, preset=preset)
    with blame('--class'):
        check_class(net, class_idx)
    record = dict(network=opts['network'], network_sha256=file_digest(fetch(source)), class_idx=class_idx)
    if preset:
        record |= dict(network_preset=preset, network_preset_sha256=file_digest(resolve_path(preset)))
    return Loaded(net, record)


def preset_of(record: dict) -> dict:
    """The entries of options.json that decide whether two presets are alike: a YAML may have moved, a name is one."""
    digest = record.get('network_preset_sha256')
    return dict(network_preset_sha256=digest) | ({} if digest else dict(network_preset=record.get('network_preset')))


def check_conditional(opts: dict, net) -> None:
    """Refuse a conditional discriminator for an unconditional network."""
    if opts['cond'] and not net.label_dim:
        raise click.ClickException('--cond: a conditional discriminator needs a network with labels, and this one is '
                                   'unconditional; use --cond=0')


def find_classifier(path: str) -> str:
    """The place of a classifier: as given, but that of DG's reproduction if the file is there and not in DG's place."""
    if path == CLASSIFIER and not resolve_path(path).exists() and resolve_path(CLASSIFIER_OF_REPRODUCTION).is_file():
        return CLASSIFIER_OF_REPRODUCTION
    return path


def load_discriminator(opts: dict, net, machine: Machine) -> Loaded:
    """The log-ratio of classifier and discriminator: as given, the demo's for the demo network, else DG's places."""
    check_conditional(opts, net)
    places = (demo.DEMO_CLASSIFIER, demo.DEMO_DISCRIMINATOR) if opts['network'] is None else (CLASSIFIER, DISCRIMINATOR)
    classifier = find_classifier(opts['pretrained_classifier_ckpt'] or places[0])
    named = [path for path in opts['discriminator_ckpt'] if path]
    discriminators = named or [places[1]]
    rank = opts['lora_rank'] if (opts['lora_rank'] or 0) > 0 else None
    if rank and not opts['lora_checkpoint']:
        raise click.ClickException('--lora_rank: goes with --lora_checkpoint; give the file of the adapters too')
    dist.print0(f'Loading discriminator from {", ".join(map(str, discriminators))}')
    with blame('--pretrained_classifier_ckpt, --discriminator_ckpt'
               + (', --lora_checkpoint' if opts['lora_checkpoint'] else '')):
        log_ratio = load_log_ratio(net, classifier, discriminators, conditional=bool(opts['cond']),
                                   device=machine.device, dtype=machine.dtype, clip=opts['log_ratio'] == 'clipped',
                                   lora=opts['lora_checkpoint'], lora_rank=rank)
    digests = [file_digest(resolve_path(path)) for path in discriminators]
    record = {name: opts[name] for name in ('pretrained_classifier_ckpt', 'cond', 'log_ratio')} | dict(
        discriminator_ckpt=_one_or_all(named), classifier_sha256=file_digest(resolve_path(classifier)),
        discriminator_sha256=_one_or_all(digests))
    if opts['lora_checkpoint']:
        record |= dict(lora_checkpoint=opts['lora_checkpoint'],
                       lora_sha256=file_digest(resolve_path(opts['lora_checkpoint'])))
    return Loaded(log_ratio, record)


def load_guidance(opts: dict, net, machine: Machine, needs_ratio: str | None = None):
    """(the log-ratio or None, discriminator guidance or None if both weights are 0, what options.json says of them).

    needs_ratio: an option that needs the value of the log-ratio, with guidance or without.
    """
    weights = {name: opts[name] for name in WEIGHTS}
    if not is_guided(opts) and not needs_ratio:
        check_conditional(opts, net)
        return None, None, weights
    log_ratio, files = load_discriminator(opts, net, machine)
    if needs_ratio:
        check_value(log_ratio, needs_ratio)
    record = weights | files
    if is_guided(opts):
        record |= record_of_boosting(opts) | {name: opts[name] for name in ('time_min', 'time_max')}
    return log_ratio, guidance_of(opts, log_ratio), record


def refuse_boosting(opts: dict) -> None:
    """Refuse --boosting for a sampler whose rows are at different steps."""
    if opts['boosting'] and is_guided(opts):
        raise click.ClickException('--boosting: belongs to a batch whose rows are at the same step; use generate.py')


def check_value(log_ratio, option: str) -> None:
    """Refuse, for the sake of `option`, a log-ratio of which only the gradient has a meaning."""
    if log_ratio.only_gradient:
        raise click.ClickException(f'{option}: the discriminator was trained with --loss=score and knows the gradient '
                                   f'of the log-ratio, but not its value, which is needed here')


def _one_or_all(values: list):
    """What options.json says of a repeatable option: as if it were not repeatable, if that is possible."""
    return values if len(values) > 1 else values[0] if values else None


def is_guided(opts: dict) -> bool:
    """Whether there is discriminator guidance."""
    return any(opts[name] for name in WEIGHTS)


def guidance_of(opts: dict, log_ratio) -> DiscriminatorGuidance | None:
    """Discriminator guidance as the options ask for it; None if both weights are 0."""
    if not is_guided(opts):
        return None
    boosting = boosting_of(opts)
    if boosting:
        check_value(log_ratio, '--boosting')
    with blame('--time_min'):
        return DiscriminatorGuidance(log_ratio, opts['dg_weight_1st_order'], opts['dg_weight_2nd_order'], boosting,
                                     opts['time_min'], opts['time_max'])


def boosting_of(opts: dict) -> Boosting | None:
    """Boosting as the options ask for it; --adaptive_weight is the reproduction's, unless a schedule is named."""
    if not opts['boosting'] and not opts.get('adaptive_weight'):
        return None
    default = 'reproduction' if opts.get('adaptive_weight') else 'dg'
    schedule = BOOSTINGS[opts.get('boosting_schedule') or default]
    return replace(schedule, S_churn=opts.get('S_churn_manual', schedule.S_churn))


def record_of_boosting(opts: dict) -> dict:
    """Entries of options.json for boosting; of DG's only that it is on, so that older folders can be finished."""
    boosting = boosting_of(opts)
    record = dict(boosting=opts['boosting'] or int(boosting is not None))
    return record if boosting in (None, Boosting()) else record | dict(boosting_schedule=asdict(boosting))


def load_guides(opts: dict, net, machine: Machine) -> Loaded:
    """A list of the guidances other than the discriminator's: autoguidance, classifier-free, a classifier's."""
    found, record, interval = [], {}, None
    if opts['guidance_interval']:
        with blame('--guidance_interval'):
            interval = parse_interval(opts['guidance_interval'])
            if interval.steps and opts.get('sampler') != 'edm':
                raise ValueError('steps are those of a straight path, which restarts, rejection and chains do not '
                                 'take; give noise levels LOW,HIGH')
    if opts['guiding_network']:
        with blame('--guiding_network'):
            with dist.rank0_first():
                guide = networks.load_network(opts['guiding_network'], device=machine.device, dtype=machine.dtype)
            check_guide(guide, net)
            record |= dict(guiding_network=opts['guiding_network'], guiding_weight=opts['guiding_weight'],
                           guiding_network_sha256=file_digest(fetch(opts['guiding_network'])))
        found.append(Autoguidance(guide, opts['guiding_weight'], interval))
    if opts['w']:
        with blame('--w'):
            check_knows_no_label(net)
        record |= dict(w=opts['w'])
        found.append(ClassifierFree(opts['w'], interval=interval))
    if opts['guiding_classifier']:
        with blame('--guiding_classifier'):
            likelihood = load_class_likelihood(net, opts['guiding_classifier'], machine.dtype, machine.device)
        record |= dict(guiding_classifier=opts['guiding_classifier'], classifier_weight=opts['classifier_weight'],
                       guiding_classifier_sha256=file_digest(resolve_path(opts['guiding_classifier'])))
        found.append(ClassifierGuidance(likelihood, opts['classifier_weight'], interval))
    if interval is not None and not found:
        raise click.ClickException('--guidance_interval: there is no guidance to limit; give --guiding_network, --w or '
                                   '--guiding_classifier')
    return Loaded(found, record | ({} if interval is None else dict(guidance_interval=opts['guidance_interval'])))


def check_knows_no_label(net) -> None:
    """Raise ValueError for a network that has no labels, or was not trained without them too."""
    if not net.label_dim:
        raise ValueError('guidance needs a network with classes, and this one is unconditional')
    if getattr(net.model, 'label_dropout', None) == 0:
        raise ValueError('the network was trained without dropping labels (label_dropout is 0), so that it knows '
                         'nothing of images without one')
