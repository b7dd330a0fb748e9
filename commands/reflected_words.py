"""KEY=VALUE words of the published reflected diffusion commands: one configuration, of the published shape."""

import copy
import difflib
import math
import re
from pathlib import Path

import yaml

from dnnlib.cli import SectionedCommand, blame
from networks.reflected_runs import FIXED

NETWORKS = {  # model=NAME
    'ddpmpp': dict(name='ncsnpp', scale_by_sigma=True, ema_rate=0.9999, dropout=0.1, nf=128, ch_mult=[1, 2, 2, 2],
                   num_res_blocks=8, attn_resolutions=[16]) | FIXED,
    'vdm': dict(name='vdm', channels=128, num_blocks=32, dropout=0.1, ema_rate=0.9999, scale_by_sigma=True,
                image_fourier=True, image_fourier_start=6, image_fourier_end=8, attention=False),
    'adm': dict(name='adm', model_channels=192, channel_mult=[1, 2, 3, 4], channel_mult_emb=4, num_blocks=3,
                attn_resolutions=[32, 16, 8], dropout=0.1, ema_rate=0.9999, scale_by_sigma=True),
    # Not published: begins with the weights of an EDM network; '' is the bundled one.
    'edm': dict(name='edm', transfer='', dropout=0.0, ema_rate=0.9999),
}
DATA = {  # data=NAME
    'cifar10': dict(dataset='CIFAR10', image_size=32, random_flip=True, num_channels=3, classes=False),
    'imagenet32': dict(dataset='ImageNet32', image_size=32, random_flip=False, num_channels=3, classes=False),
    'imagenet64c': dict(dataset='ImageNet64C', image_size=64, random_flip=False, num_channels=3, classes=True,
                        num_classes=1000),
}
TRAINING = dict(
    training=dict(batch_size=128, n_iters=1_300_001, snapshot_freq=50_000, log_freq=50, likelihood_weighting=False,
                  reduce_mean=False, drop_label=0.2),
    sde=dict(sigma_min=0.01, sigma_max=5.0),
    optim=dict(lr=2e-4, beta1=0.9, beta2=0.999, weight_decay=0.0, warmup=5000, grad_clip=1.0, decay=0.0))
ELSEWHERE = {  # published keys that mean nothing here, and what does their work
    'dataroot': '--data names the images', 'training.eval_freq': 'the loss of every step is in stats.jsonl',
    'training.snapshot_freq_for_preemption': '--save_minutes', 'training.snapshot_sampling': 'grids are always drawn',
    'eval.batch_size': 'nothing is evaluated in training', 'sde.num_scales': 'generate_reflected.py --steps'}
# The published commands' settings, and the bundled score network made reflected on two CPU cores.
PRESETS = {
    'cifar10': 'data=cifar10 model=ddpmpp',
    'cifar10-likelihood': 'data=cifar10 data.random_flip=False model=vdm training.n_iters=10000001 '
                          'sde.sigma_min=0.0001',
    'imagenet32-likelihood': 'data=imagenet32 model=vdm training.n_iters=2000001 training.batch_size=512 '
                             'sde.sigma_min=0.0001',
    'imagenet64-cfg': 'data=imagenet64c model=adm training.n_iters=400001 training.batch_size=2048 optim.lr=1e-4',
    'cifar10-demo': 'data=cifar10 model=edm model.ema_rate=0.99 sde.sigma_max=1.5 training.batch_size=64 '
                    'training.n_iters=300 training.snapshot_freq=150 training.log_freq=10 optim.lr=3e-4 '
                    'optim.warmup=50 optim.beta2=0.99 optim.decay=0.5',
}


WORD = re.compile(r'[A-Za-z_][\w.]*=.*')


class WordsCommand(SectionedCommand):
    """A command that takes words KEY=VALUE beside its options.

    `understand(words, arguments)` gives the arguments that mean the same: words and the rest of the command line.
    """

    def __init__(self, *args, understand, **kwargs):
        super().__init__(*args, **kwargs)
        self.understand = understand

    def parse_args(self, ctx, args):
        words = [text for text in args if WORD.fullmatch(text)]
        if words:
            with blame('KEY=VALUE'):
                args = self.understand(words, [text for text in args if text not in words])
        return super().parse_args(ctx, args)


def split(words) -> dict[str, str]:
    """{key: text} of words KEY=VALUE, in their order. Raises ValueError for another word."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals or not key or not value:
            raise ValueError(f'{word!r} is neither an option nor a word KEY=VALUE')
        pairs[key] = value
    return pairs


def training_config(preset: str, words) -> tuple[dict, list[str]]:
    """(the configuration of a training run, notes on words that have no effect): the preset's words, then `words`.

    model=NAME and data=NAME choose a group of settings, wherever they stand; a.b=VALUE changes one. Raises ValueError,
    in one line, for an unknown key or a value of another type.
    """
    pairs = split(PRESETS[preset].split()) | split(words)
    config = copy.deepcopy(TRAINING)
    config['model'] = copy.deepcopy(NETWORKS[_choice('model', pairs.pop('model'), NETWORKS)])
    config['data'] = copy.deepcopy(DATA[_choice('data', pairs.pop('data'), DATA)])
    notes = []
    if 'model' in split(words):  # settings of the preset's own network do not belong to another
        pairs = {key: value for key, value in pairs.items() if not key.startswith('model.') or key in split(words)}
    known = [f'{section}.{name}' for section, values in config.items() for name in values]
    for key, text in pairs.items():
        section, _, name = key.partition('.')
        if key in known:
            config[section][name] = _value(key, text, config[section][name])
        elif key == 'ngpus':
            notes.append(f'ngpus={text}: torchrun starts the processes: torchrun --standalone '
                         f'--nproc_per_node={text} train_reflected.py ...')
        elif key in ELSEWHERE or section == 'sampling':
            why = ELSEWHERE.get(key, 'generate_reflected.py has its own options')
            notes.append(f'{key}: has no effect here ({why})')
        else:
            raise unknown(key, [*known, *ELSEWHERE, 'ngpus', 'model', 'data'])
    _check(config)
    return config, notes


def _check(config: dict) -> None:
    """Raise ValueError for numbers that no run can have."""
    training, ema_rate = config['training'], config['model']['ema_rate']
    for name in ('batch_size', 'n_iters', 'snapshot_freq', 'log_freq'):
        if training[name] < 1:
            raise ValueError(f'training.{name}={training[name]} is not at least 1')
    for name, value in (('training.drop_label', training['drop_label']), ('optim.decay', config['optim']['decay']),
                        ('model.dropout', config['model']['dropout'])):
        if not 0 <= value <= 1:
            raise ValueError(f'{name}={value} is not between 0 and 1')
    if not 0 < ema_rate < 1:
        raise ValueError(f'model.ema_rate={ema_rate} is not between 0 and 1')


def unknown(key: str, known) -> ValueError:
    """The error for a key that is not known: it names the nearest."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    return ValueError(f'{key} is not a key' + (f'; the nearest is {near[0]}' if near else f'; known are {known}'))


def _choice(key: str, value: str, known) -> str:
    if value not in known:
        raise ValueError(f'{key}={value} is not one of {", ".join(known)}')
    return value


def _value(key: str, text: str, default):
    """`text` as a value of the default's type; YAML, as in the published commands, and 1e-4 is a number."""
    try:
        value = float(text) if isinstance(default, float) else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if type(value) is not type(default):
        raise ValueError(f'{key}={text} should be of the kind of {default}')
    return value


#----------------------------------------------------------------------------
# Words of run_vis.py, as options of generate_reflected.py.

OPTIONS = {'load_dir': 'network', 'label': 'label', 'w': 'w', 'sampling.method': 'sampler', 'sampling.snr': 'snr',
           'sampling.moll': 'moll', 'sampling.side_eps': 'side', 'eval.batch_size': 'batch', 'eval.ckpt': 'checkpoint'}
PUBLISHED = {  # their defaults
    'sampling.method': 'pc', 'sampling.corrector': 'none', 'sampling.n_steps_each': '1', 'sampling.denoiser': 'none',
    'denoiser_path': '', 'sampling.predictor': 'euler_maruyama', 'sampling.noise_removal': 'True',
    'eval.batch_size': '100', 'eval.rounds': '1'}


def sampling_arguments(words, given) -> list[str]:
    """Options of generate_reflected.py that mean the same as `words`; `given` are the arguments that stand beside them.

    A command with load_dir=DIR is a published one: what it leaves out has the published default. Raises ValueError for
    an unknown key.
    """
    pairs = split(words)
    for key in pairs:
        if key not in OPTIONS and key not in PUBLISHED:
            raise unknown(key, [*OPTIONS, *PUBLISHED])
    if 'load_dir' in pairs:
        pairs = PUBLISHED | pairs
    arguments = [f'--{OPTIONS[key]}={text}' for key, text in pairs.items() if key in OPTIONS]
    if pairs.get('sampling.predictor', 'euler_maruyama') != 'euler_maruyama':
        raise ValueError(f'sampling.predictor={pairs["sampling.predictor"]} is not euler_maruyama, the only one')
    if 'sampling.corrector' in pairs:
        corrector = _choice('sampling.corrector', pairs['sampling.corrector'], ('none', 'langevin'))
        steps = pairs.get('sampling.n_steps_each', '1') if corrector == 'langevin' else 0
        arguments.append(f'--corrector_steps={steps}')
    if 'sampling.denoiser' in pairs:
        denoiser = _choice('sampling.denoiser', pairs['sampling.denoiser'], ('none', 'mean', 'network'))
        arguments.append(f'--denoiser={pairs["denoiser_path"] if denoiser == "network" else denoiser}')
    if 'eval.rounds' in pairs and not any(text.startswith(('--seeds', '--num_samples')) for text in given):
        counts = [_value(key, pairs[key], 1) for key in ('eval.rounds', 'eval.batch_size') if key in pairs]
        arguments.append(f'--num_samples={math.prod(counts)}')
    if 'load_dir' in pairs and not any(text.startswith('--outdir') for text in given):
        arguments.append(f'--outdir=samples/{Path(pairs["load_dir"]).name}')
    return arguments
