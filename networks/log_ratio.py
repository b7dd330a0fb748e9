"""The log-ratio of data and model densities, from a discriminator (DG, Kim et al., ICML 2023).

A discriminator reads the features of a frozen ADM classifier of noisy images. Both live in the VP world: a state x
at noise level sigma is fed to them as mean(tau) x at time tau(sigma) (diffusion/vpsde.py). States of reflected
diffusion, which is bounded, are fed as they are.
"""

import functools
import os
from collections.abc import Sequence

import torch

from diffusion.gradients import value_and_grad
from dnnlib import demo

from .classifiers import check_discriminator, check_resolution, read_classifier, time_convention, vp_mean_and_time
from .lora import read_adapters
from .reflected import ReflectedPrecond

CLIP = 1e-5  # DG clips probabilities to [1e-5, 1 - 1e-5] before the logit
TIMES = ('linear', 'cosine')


class LogRatio:
    """log p_data(x; sigma) - log p_model(x; sigma), from one or more discriminators on a classifier's features.

    Called with x [N, C, H, W] in the score network's (variance-exploding) space, sigma [] or [N] and, for a
    conditional discriminator, class_labels (one-hot [N, K] or index [N]); returns [N], differentiable in x.

    Args:
        classifier: `classifier(x, timesteps, feature=True)`.
        discriminator: `discriminator(features, timesteps)`, or a sequence of them, whose log-ratios are averaged.
        time: 'linear' or 'cosine', the VP time that both were trained with.
        clip: DG's variant, the logit of a probability clipped to [1e-5, 1 - 1e-5] (its gradient is 0 where it
            clips); the default is the raw logit, as DiffRS has it. See docs/equations.md.
        conditional: whether the discriminator is given class_labels; otherwise they are ignored.
        only_gradient: that the value means nothing, since training fitted the gradient; for who needs the value.
        reflected: that x is a state of reflected diffusion, in [0, 1]; the networks see 2 x - 1 at time tau(2 sigma).
    Raises ValueError for another time.
    """

    def __init__(self, classifier, discriminator, time: str = 'linear', clip: bool = False, conditional: bool = False,
                 only_gradient: bool = False, reflected: bool = False):
        if time not in TIMES:
            raise ValueError(f'time {time!r} is not one of {", ".join(TIMES)}')
        self.classifier = classifier
        self.discriminators = tuple(discriminator) if isinstance(discriminator, Sequence) else (discriminator,)
        self.time, self.clip, self.conditional, self.only_gradient = time, clip, conditional, only_gradient
        self.sigma_unit = 2 if reflected else 1  # noise level 1 of x, for images in [-1, 1]
        self._logit_and_grad = functools.partial(value_and_grad, self._logit)

    def compile(self, choose=lambda compiled, plain: compiled) -> None:
        """From here on, call what torch.compile makes of both networks together.

        `choose(compiled, plain)` gives the function to call, out of two with the same arguments: compilers are at work,
        and may fail, in the first call.
        """
        compiled = torch.compile(self._logit, dynamic=False)
        self._logit_and_grad = choose(functools.partial(value_and_grad, compiled), self._logit_and_grad)
        self._logit = choose(compiled, self._logit)

    @property
    def discriminator_calls(self) -> int:
        """Evaluations of a discriminator per image and call."""
        return len(self.discriminators)

    def __call__(self, x, sigma, class_labels=None):
        x, _, t = self._inputs(x, sigma)
        return self._logit(x, t, class_labels)

    @torch.no_grad()
    def value(self, x, sigma, class_labels=None):
        """The log-ratio [N], without a graph."""
        return self(x, sigma, class_labels)

    def value_and_grad(self, x, sigma, class_labels=None):
        """The log-ratio [N] and its gradient with respect to x [N, C, H, W] (float32), from one evaluation."""
        x, factor, t = self._inputs(x, sigma)
        value, gradient = self._logit_and_grad(x.to(torch.float32), t, class_labels)
        return value, factor.to(torch.float32) * gradient

    def _inputs(self, x, sigma):
        """(what the networks see of x, its derivative, the time)."""
        mean, t = vp_mean_and_time(self.sigma_unit * sigma, x, self.time)
        if self.sigma_unit == 1:
            return mean * x, mean, t
        return 2 * x - 1, torch.full_like(mean, 2), t

    def _logit(self, vp, t, class_labels):
        vp = vp.to(torch.float32)
        condition = class_labels if self.conditional else None
        features = self.classifier(vp, timesteps=t, feature=True)
        logits = [discriminator(features, t, condition=condition).view(-1) for discriminator in self.discriminators]
        if self.clip:
            logits = [clipped_logit(logit.sigmoid()) for logit in logits]
        return sum(logits) / len(logits)


def clipped_logit(probability):
    """DG's log-ratio of a probability: the logit after clipping to [1e-5, 1 - 1e-5]."""
    probability = probability.clip(CLIP, 1.0 - CLIP)
    return torch.log(probability / (1.0 - probability))


def load_log_ratio(net, classifier: str | os.PathLike | None = None,
                   discriminator: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
                   conditional: bool = False, dtype: torch.dtype = torch.float32, clip: bool = False,
                   device: torch.device | str | None = None, lora: str | os.PathLike | None = None,
                   lora_rank: int | None = None) -> LogRatio:
    """The log-ratio for samples of the score network `net`, from the files of a classifier and a discriminator.

    Without a path, the bundled one (CIFAR-10, unconditional); of several discriminators, the mean of their log-ratios.
    `conditional` says that the discriminator takes class labels; `dtype` is that of both networks' bodies, `clip` as in
    LogRatio, `device` that of `net` unless given. `lora`: a file of adapters, which are added to the classifier's
    weights; its rank is checked against `lora_rank` if that is given. Networks of reflected diffusion need
    discriminators that were trained at their noise levels, all others those of Gaussian noise.
    Raises ValueError, which names both sides of a mismatch, and OSError.
    """
    classifier, discriminator = classifier or demo.DEMO_CLASSIFIER, discriminator or demo.DEMO_DISCRIMINATOR
    paths = [discriminator] if isinstance(discriminator, (str, os.PathLike)) else list(discriminator)
    if conditional and not net.label_dim:
        raise ValueError('a conditional discriminator needs a class-conditional network; use --cond=0')
    if device is None:
        device = next(net.parameters()).device
    adapters = None if lora is None else read_adapters(lora, lora_rank)
    image_net, images = read_classifier(classifier, 'classifier', net.img_resolution, dtype, device, adapters=adapters)
    theirs, ours = (images.image_size, images.in_channels), (net.img_resolution, net.img_channels)
    if theirs != ours:
        raise ValueError(f'classifier {classifier} is for {theirs[0]}x{theirs[0]}x{theirs[1]} images, '
                         f'the network draws {ours[0]}x{ours[0]}x{ours[1]}')
    found = [_read_discriminator(path, images, net, conditional, adapters, dtype, device) for path in paths]
    time = _time_of([(f'classifier {classifier}', image_net), *((f'discriminator {path}', feature_net)
                    for path, feature_net in zip(paths, found, strict=True))], net.img_resolution)
    return LogRatio(image_net, found, time=time, clip=clip, conditional=bool(conditional),
                    only_gradient=any(feature_net.metadata.get('loss') == 'score' for feature_net in found),
                    reflected=process_of(net) == 'reflected')


def process_of(net) -> str:
    """The kind of noise that a score network knows: 'gaussian' or 'reflected'."""
    return 'reflected' if isinstance(net, ReflectedPrecond) else 'gaussian'


def _read_discriminator(path, images, net, conditional, adapters, dtype, device):
    """The discriminator of a file, checked against the classifier's architecture, its adapters and the network."""
    feature_net, features = read_classifier(path, 'discriminator', images.feature_size, dtype, device)
    metadata = feature_net.metadata
    check_discriminator(path, features, conditional, images.feature_channels, images.feature_size)
    check_resolution(path, 'discriminator', metadata, net.img_resolution)
    noise, needed = metadata.get('process', 'gaussian'), process_of(net)
    if noise != needed:
        raise ValueError(f'discriminator {path} was trained at {noise} noise, the network has {needed} noise; train '
                         f'one on samples of this network (train.py)')
    # DG's files embed 1000 classes whatever the data; ours say how many they were trained on
    classes = metadata.get('classes', features.num_classes)
    if conditional and (classes < net.label_dim or 'classes' in metadata and classes != net.label_dim):
        raise ValueError(f'discriminator {path} knows {classes} classes, the network has {net.label_dim}')
    rank, trained = adapters.rank if adapters else 0, metadata.get('lora_rank', 0)
    if metadata and rank != trained:
        theirs, ours = (f'LoRA adapters of rank {r}' if r else 'no LoRA adapters' for r in (trained, rank))
        raise ValueError(f'discriminator {path} was trained with {theirs}, and {ours} are given')
    return feature_net


def _time_of(sources, img_resolution) -> str:
    """The time that networks [(name, network)] were trained with, by default that of published ones."""
    known = [(name, source.metadata['time']) for name, source in sources if 'time' in source.metadata]
    for name, time in known[1:]:
        if time != known[0][1]:
            raise ValueError(f'{known[0][0]} was trained with {known[0][1]} time, {name} with {time}')
    return known[0][1] if known else time_convention(img_resolution)
