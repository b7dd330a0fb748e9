"""What the sampler tests share: the small golden networks and the recorded noise."""

import functools
import json

import torch
from goldens import load, recipe_

import networks

SMALL = dict(img_resolution=32, img_channels=3, embedding_type='positional', encoder_type='standard',
             decoder_type='standard', channel_mult_noise=1, resample_filter=[1, 1], augment_dim=9, model_channels=16,
             channel_mult=[1, 2], num_blocks=1, attn_resolutions=[16], dropout=0.13, model_type='SongUNet')


@functools.cache
def network(name='ddpmpp_uncond'):
    """The golden network 'ddpmpp_uncond' or 'ddpmpp_cond', in fp32."""
    kwargs = SMALL | (dict(label_dim=10, label_dropout=0.1) if name == 'ddpmpp_cond' else dict(label_dim=0))
    return recipe_(networks.construct('EDMPrecond', kwargs)).eval().requires_grad_(False)


@functools.cache
def goldens(name):
    """(arrays, cases) of tests/goldens/sampler/<name>.npz."""
    arrays = load(f'sampler/{name}.npz')
    return arrays, json.loads(str(arrays['cases']))


class RecordedNoise:
    """noise[i] in step i: the references draw in every step, we only where noise is used."""

    def __init__(self, noise):
        self.noise, self.step, self.draws = torch.as_tensor(noise), 0, []

    def callback(self, step):
        self.step = step.index + 1

    def randn_like(self, x):
        self.draws.append(self.step)
        return self.noise[self.step].to(x.dtype)


class CountedNet:
    """A network that records its inputs."""

    def __init__(self, net):
        self.net, self.x, self.sigma = net, [], []

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, x, sigma, class_labels=None):
        self.x.append(x.clone())
        self.sigma.append(sigma.clone())
        return self.net(x, sigma, class_labels)
