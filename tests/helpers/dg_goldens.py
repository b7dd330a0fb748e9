"""What the tests of discriminators share: the small golden classifier and discriminators, and files of them."""

import functools

import torch
from goldens import load, recipe_

from guided_diffusion import create_classifier

SEEDS = dict(uncond=17, cond=18)
CLASSES = dict(uncond=0, cond=1000)


@functools.cache
def classifier():
    """The golden 32x32 classifier of width 64 and depth 1, frozen."""
    return recipe_(create_classifier(32, 64, 1), half=True).eval().requires_grad_(False)


@functools.cache
def discriminator(kind):
    """The golden discriminator 'uncond' or 'cond' on its features, frozen; recipe weights, the head from a file."""
    net = create_classifier(8, 64, 2, in_channels=256, out_channels=1, num_classes=CLASSES[kind])
    recipe_(net, SEEDS[kind], half=True)
    heads = load('sampler/discriminator_heads.npz')
    state = {f'out.2.c_proj.{name}': torch.as_tensor(heads[f'{kind}/{name}']) for name in ('weight', 'bias')}
    assert not net.load_state_dict(state, strict=False).unexpected_keys
    return net.eval().requires_grad_(False)


def write_files(folder):
    """(classifier.pt, {'uncond': ..., 'cond': ...}) in `folder`: plain state dicts, as DG publishes them."""
    torch.save(classifier().state_dict(), folder / 'classifier.pt')
    for kind in SEEDS:
        torch.save(discriminator(kind).state_dict(), folder / f'discriminator_{kind}.pt')
    return folder / 'classifier.pt', {kind: folder / f'discriminator_{kind}.pt' for kind in SEEDS}
