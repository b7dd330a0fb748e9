"""Small random networks on disk, for tests that run the sampling scripts as a user does."""

import torch
from goldens import recipe_
from sampler_goldens import SMALL

import networks
from guided_diffusion import create_classifier

TINY = SMALL | dict(img_resolution=16, attn_resolutions=[8], augment_dim=0, channel_mult=[1, 1], num_blocks=0)


def write_networks(folder):
    """A conditional and an unconditional 16x16 network, one of 32x32, a classifier, two discriminators."""
    for name, kwargs in dict(uncond=TINY, cond=TINY | dict(label_dim=10), large=TINY | dict(img_resolution=32)).items():
        net = recipe_(networks.construct('EDMPrecond', dict(label_dim=0) | kwargs))
        networks.save_network(folder / f'{name}.safetensors', net)
    write_discriminators(folder)
    net = recipe_(networks.construct('EDMPrecond', dict(label_dim=0) | TINY))
    with torch.no_grad():
        next(net.parameters()).fill_(float('nan'))
    networks.save_network(folder / 'nan.safetensors', net)
    (folder / 'foreign.pt').write_bytes(b'this is not a network')


def write_discriminators(folder, size=16):
    """A classifier of size x size images, and two discriminators behind it.

    The narrowest: group norms need 32 channels, and attention, here at resolution 8 only, 64.
    """
    classifier = recipe_(create_classifier(image_size=size, classifier_width=32, classifier_depth=1,
                                           classifier_attention_resolutions='8'))
    torch.save(classifier.state_dict(), folder / 'classifier.pt')
    with torch.no_grad():
        features = classifier(torch.zeros(1, 3, size, size), torch.zeros(1), feature=True)
    for name, condition in dict(disc_uncond=False, disc_cond=True).items():
        discriminator = create_classifier(image_size=features.shape[2], in_channels=features.shape[1], out_channels=1,
                                          classifier_width=64, classifier_depth=1, num_classes=1000 if condition else 0)
        torch.save(recipe_(discriminator, 17).state_dict(), folder / f'{name}.pt')
