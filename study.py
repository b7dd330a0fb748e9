"""Studies: draws and measures over one variable, from the same seeds, to a JSON and a picture; keeps no images."""

import click

from commands import study_rows
from commands.machine import blame_machine
from commands.measure import DEVICE
from commands.options import with_options
from commands.study import measure_study
from commands.study_draw import draw_study
from commands.study_options import (
    DRAWN,
    EPOCHS,
    EQUAL,
    FILE,
    IMAGES,
    RUN,
    RUNS,
    SAMPLING,
    SECTIONS,
    STUDY,
    UNGUIDED,
    preset,
    take_lists,
)
from dnnlib.cli import SectionedCommand, blame


@click.group()
def main():
    """Draw, measure and tabulate over one variable, with the same seeds in each row.

    Every row is compared with the first one (--against names another), image by image. A difference below two standard
    errors or below 1.3 % is inconclusive: training again moves a distance by about as much (arXiv:2606.20536). Images
    are measured in memory and not kept. The same command again finishes what is missing; more rows, blocks and metrics
    may be added. Works under torchrun.

    Examples:

    \b
    # the weight of discriminator guidance, on the bundled networks
    python study.py weights --dg_weight_1st_order=0,1,2,3,4 --num_samples=1000 --outdir=studies/weights

    \b
    # does it get better with epochs? and which churn?
    python study.py epochs --training=checkpoints/discriminator/cifar_uncond --unguided --outdir=studies/epochs \\
        --network=checkpoints/pretrained_score/edm-cifar10-32x32-uncond-vp.pkl
    python study.py churn --S_churn=0,1,2,4,8 --num_samples=1000 --outdir=studies/churn

    \b
    # trainings with other seeds, then ranks with two trainings each
    python study.py repeats --training=runs/seed0 --training=runs/seed1 --training=runs/seed2 --unguided \\
        --outdir=studies/repeats
    python study.py ranks --training=runs/r0-a --training=runs/r0-b --training=runs/r8-a --training=runs/r8-b \\
        --outdir=studies/ranks

    \b
    # images that are there: DG's LoRA reproduction's fid.py --images=./samples --ref=... --plot=True
    python study.py images --images=./samples --ref=./stats/cifar10-32x32.npz --num_samples=10000 --outdir=studies/set

    \b
    # on eight GPUs
    torchrun --standalone --nproc_per_node=8 study.py weights --dg_weight_1st_order=0,1,2 --outdir=studies/weights-10k
    """


def drawing(kind: str, *own):
    """A decorator: a command that draws, with options of its `own`."""
    def decorate(function):
        options = with_options(own, STUDY, DRAWN, SAMPLING)
        return main.command(kind, cls=SectionedCommand, sections=SECTIONS)(options(blame_machine('--batch')(function)))
    return decorate


@drawing('epochs', preset('epochs'), RUN, EPOCHS, UNGUIDED)
def epochs(run, wanted, unguided, **opts):
    """The discriminators of one training run, epoch by epoch (discriminator_<epoch>.pt)."""
    with blame('--training'):
        rows = study_rows.of_epochs(run, wanted)
    draw_study('epochs', 'epoch of the discriminator', with_unguided(rows, unguided), opts)


@drawing('churn', preset('churn'), UNGUIDED)
def churn(unguided, **opts):
    """The churn of all steps (--S_churn=0,1,2), or of boosted samples (--S_churn_manual=0,1,2 with --boosting)."""
    listed = [name for name in ('S_churn', 'S_churn_manual') if len(opts[name]) > 1]
    if len(listed) != 1:
        raise click.ClickException('--S_churn: give several values, separated by commas, for either --S_churn or '
                                   '--S_churn_manual')
    if listed == ['S_churn_manual'] and not (opts['boosting'] or opts['adaptive_weight']):
        raise click.ClickException('--S_churn_manual: is the churn of boosted samples; add --boosting=1')
    rows = study_rows.of_values(opts[listed[0]], listed[0])
    single = {name: opts[name][0] for name in ('S_churn', 'S_churn_manual')}
    draw_study('churn', dict(S_churn='S_churn', S_churn_manual='churn of boosted samples')[listed[0]],
               with_unguided(rows, unguided), opts | single)


@drawing('weights', EQUAL)
def weights(equal, **opts):
    """The weight of discriminator guidance in a step's first evaluation; in the second as given, or --equal."""
    first, second = opts['dg_weight_1st_order'], opts['dg_weight_2nd_order']
    if equal and second != [0]:
        raise click.ClickException('--equal: given together with --dg_weight_2nd_order; use one of the two')
    if not equal and len(second) not in (1, len(first)):
        raise click.ClickException(f'--dg_weight_2nd_order: {len(second)} weights beside {len(first)} first ones; give '
                                   'one, or one for each')
    second = first if equal else second * (len(first) if len(second) == 1 else 1)
    draw_study('weights', 'guidance weight', study_rows.of_values(
        first, 'dg_weight_1st_order', dg_weight_2nd_order=second), opts)


@drawing('repeats', preset('repeats'), RUNS, FILE, UNGUIDED)
def repeats(runs, file, unguided, **opts):
    """Several trainings of the same settings with other seeds: each, and their mean and deviation."""
    with blame('--training'):
        rows = study_rows.of_trainings(runs, file, by_rank=False)
    draw_study('repeats', 'training', with_unguided(rows, unguided), opts)


@drawing('ranks', preset('ranks'), RUNS, FILE, UNGUIDED)
def ranks(runs, file, unguided, **opts):
    """LoRA adapters of several ranks (0: none), one or more trainings of each, whose means are compared."""
    with blame('--training'):
        rows = study_rows.of_trainings(runs, file, by_rank=True)
    draw_study('ranks', 'rank of the adapters', with_unguided(rows, unguided), opts)


@main.command()
@with_options([IMAGES], STUDY, [DEVICE])
@blame_machine('--batch')
def images(place, **opts):
    """Sets of images that are there, by the number that their names end in; nothing is drawn."""
    with blame('--images'):
        rows = study_rows.of_folders(place)
    measure_study('images', 'number of the set', rows, opts)


def with_unguided(rows, wanted):
    return [study_rows.unguided(), *rows] if wanted else rows


take_lists(churn, 'S_churn', 'S_churn_manual')
take_lists(weights, 'dg_weight_1st_order', 'dg_weight_2nd_order')

if __name__ == '__main__':
    main()
