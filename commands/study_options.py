"""Options of study.py, and the studies of DG's LoRA reproduction as presets of them."""

import click

from dnnlib.cli import FloatList, IntList

from . import options
from .measure import REF, WEIGHT_OPTIONS
from .options import CLASS, NETWORK

EDM = 'https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-cifar10-32x32-'
STATISTICS = ['/stats/cifar10-32x32.npz']
UNCONDITIONAL = dict(network=f'{EDM}uncond-vp.pkl', refs=STATISTICS, log_ratio='clipped')
CONDITIONAL = dict(network=f'{EDM}cond-vp.pkl', refs=STATISTICS, log_ratio='clipped', cond=1, adaptive_weight=1,
                   dg_weight_1st_order=1.0, num_samples=10000)
# The report's studies (Abdellaoui, Persson and Santos Escriche). Its epoch 0 is discriminator_1.pt here.
PRESETS = dict(
    epochs=dict(reproduction=UNCONDITIONAL | dict(num_samples=10000, unguided=True,
                                                  wanted='1,3,5,7,9,11,20,30,40,50,60')),
    repeats=dict(reproduction=UNCONDITIONAL | dict(num_samples=50000, unguided=True)),
    churn={'reproduction': CONDITIONAL | dict(S_churn_manual='0,1,2,3,4,5,6,7,8,9,10', against='0'),
           'reproduction-fine': CONDITIONAL | dict(S_churn_manual='1,1.25,1.5,1.75,2,2.25,2.5,2.75,3')},
    ranks=dict(reproduction=UNCONDITIONAL | dict(num_samples=50000, unguided=True)),
)


def preset(kind: str):
    """The option --preset of a command: a study whose options are defaults, for the command line to change."""
    def take(ctx, param, value):
        if value is not None:
            ctx.default_map = PRESETS[kind][value]
        return value

    return click.option('--preset', type=click.Choice([*PRESETS[kind]]), is_eager=True, expose_value=False,
                        callback=take, help="A study of the report of DG's LoRA reproduction: its network, statistics "
                        'and numbers; options given beside it win')


def _known_file(ctx, param, value):
    if value not in ('best', 'last') and not value.isdecimal():
        raise click.BadParameter(f'{value!r} is neither best, last nor an epoch')
    return value


RUN = click.option('--training', 'run', help='Folder of train.py', metavar='DIR', type=str, required=True)
RUNS = click.option('--training', 'runs', help='Folder of train.py, one for each training. Repeatable', metavar='DIR',
                    type=str, multiple=True, required=True)
FILE = click.option('--file', help='The discriminator of each: best, last, or an epoch', metavar='best|last|INT',
                    type=str, default='best', show_default=True, callback=_known_file)
EPOCHS = click.option('--epochs', 'wanted', help='Epochs, e.g. 1,2,5-10  [default: all that have a file]',
                      metavar='LIST', type=IntList())
IMAGES = click.option('--images', 'place', help='Folder of sets of images whose names end in numbers, such as '
                      'epoch0.npz and epoch2.npz, or w0/ and w0.5/', metavar='DIR', type=str, required=True)
UNGUIDED = click.option('--unguided', help='A first row without guidance by a discriminator', is_flag=True)
EQUAL = click.option('--equal', help='The second-order weight is the first-order one in each row', is_flag=True)

STUDY = [
    click.option('--outdir', help='Folder of the study: study.json, study.png, what resuming needs', metavar='DIR',
                 type=str, required=True),
    REF,
    click.option('--metrics', help='Comma-separated, those of calc_metrics.py; the picture shows the first',
                 metavar='LIST', type=str, default='fd', show_default=True),
    click.option('--num_samples', help='Images of a block', metavar='INT', type=click.IntRange(min=20),
                 default=10000, show_default=True),
    click.option('--blocks', help='Disjoint blocks of --num_samples seeds; several give a deviation', metavar='INT',
                 type=click.IntRange(min=1), default=1, show_default=True),
    click.option('--against', help='The row that the others are compared with  [default: the first]', metavar='ROW',
                 type=str),
    click.option('--overwrite', help='Replace the study in --outdir', is_flag=True),
    *WEIGHT_OPTIONS,
    click.option('--batch', help='Images at a time, drawn and measured', metavar='INT', type=click.IntRange(min=1),
                 default=100, show_default=True),
]
DRAWN = [
    click.option('--seed', help='The first seed, the same in each row; those of the images that a discriminator was '
                 'trained on would flatter it', metavar='INT', type=click.IntRange(min=0), default=100000,
                 show_default=True),
    click.option('--keep', help='Keep the images, in samples/<row> as generate.py writes them', is_flag=True),
]
SAMPLING = [*NETWORK, CLASS, *options.EDM, *options.ABLATION, *options.COMPOSED, *options.guidance(first_weight=2.0),
            *options.BOOSTING, *options.DISCRIMINATORS, *options.GUIDES, *options.MACHINE]
SECTIONS = {'Sampling, as in generate.py': 'network', 'Discriminator guidance': 'dg_weight_1st_order',
            'Other samplers': 'sampler', 'Restart and particles': 'sigmas', 'Other guidance': 'guiding_network',
            'Machine': 'device'}


def take_lists(command: click.Command, *names: str) -> None:
    """Let options of a command take several numbers."""
    for param in command.params:
        if param.name in names:
            param.type, param.metavar = FloatList(), 'LIST'
