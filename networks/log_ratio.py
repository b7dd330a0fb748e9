"""The log-ratio of data and model densities, from a discriminator (DG, Kim et al., ICML 2023).

A discriminator reads the features of a frozen ADM classifier of noisy images. Both live in the VP world: a state x
at noise level sigma is fed to them as mean(tau) x at time tau(sigma) (diffusion/vpsde.py).
"""

import functools
import os

import torch

from diffusion.gradients import value_and_grad
from dnnlib import demo

from .classifiers import check_discriminator, check_resolution, read_classifier, time_convention, vp_mean_and_time

CLIP = 1e-5  # DG clips probabilities to [1e-5, 1 - 1e-5] before the logit
TIMES = ('linear', 'cosine')


class LogRatio:
    """log p_data(x; sigma) - log p_model(x; sigma), from a discriminator on a classifier's features.

    Called with x [N, C, H, W] in the score network's (variance-exploding) space, sigma [] or [N] and, for a
    conditional discriminator, class_labels (one-hot [N, K] or index [N]); returns [N], differentiable in x.

    Args:
        classifier, discriminator: `classifier(x, timesteps, feature=True)`, `discriminator(features, timesteps)`.
        time: 'linear' or 'cosine', the VP time that both were trained with.
        clip: DG's variant, the logit of a probability clipped to [1e-5, 1 - 1e-5] (its gradient is 0 where it
            clips); the default is the raw logit, as DiffRS has it. See docs/equations.md.
        conditional: whether the discriminator is given class_labels; otherwise they are ignored.
    Raises ValueError for another time.
    """

    def __init__(self, classifier, discriminator, time: str = 'linear', clip: bool = False, conditional: bool = False):
        if time not in TIMES:
            raise ValueError(f'time {time!r} is not one of {", ".join(TIMES)}')
        self.classifier, self.discriminator = classifier, discriminator
        self.time, self.clip, self.conditional = time, clip, conditional
        self._logit_and_grad = functools.partial(value_and_grad, self._logit)

    def compile(self, choose=lambda compiled, plain: compiled) -> None:
        """From here on, call what torch.compile makes of both networks together.

        `choose(compiled, plain)` gives the function to call, out of two with the same arguments: compilers are at work,
        and may fail, in the first call.
        """
        compiled = torch.compile(self._logit, dynamic=False)
        self._logit_and_grad = choose(functools.partial(value_and_grad, compiled), self._logit_and_grad)
        self._logit = choose(compiled, self._logit)

    def __call__(self, x, sigma, class_labels=None):
        mean, t = vp_mean_and_time(sigma, x, self.time)
        return self._logit(mean * x, t, class_labels)

    @torch.no_grad()
    def value(self, x, sigma, class_labels=None):
        """The log-ratio [N], without a graph."""
        return self(x, sigma, class_labels)

    def value_and_grad(self, x, sigma, class_labels=None):
        """The log-ratio [N] and its gradient with respect to x [N, C, H, W] (float32), from one evaluation."""
        mean, t = vp_mean_and_time(sigma, x, self.time)
        value, gradient = self._logit_and_grad((mean * x).to(torch.float32), t, class_labels)
        return value, mean.to(torch.float32) * gradient

    def _logit(self, vp, t, class_labels):
        vp = vp.to(torch.float32)
        condition = class_labels if self.conditional else None
        features = self.classifier(vp, timesteps=t, feature=True)
        logit = self.discriminator(features, t, condition=condition).view(-1)
        return clipped_logit(logit.sigmoid()) if self.clip else logit


def clipped_logit(probability):
    """DG's log-ratio of a probability: the logit after clipping to [1e-5, 1 - 1e-5]."""
    probability = probability.clip(CLIP, 1.0 - CLIP)
    return torch.log(probability / (1.0 - probability))


def load_log_ratio(net, classifier: str | os.PathLike | None = None, discriminator: str | os.PathLike | None = None,
                   conditional: bool = False, dtype: torch.dtype = torch.float32, clip: bool = False,
                   device: torch.device | str | None = None) -> LogRatio:
    """The log-ratio for samples of the score network `net`, from the files of a classifier and a discriminator.

    Without a path, the bundled one (CIFAR-10, unconditional). `conditional` says that the discriminator takes class
    labels; `dtype` is that of both networks' bodies, `clip` as in LogRatio, `device` that of `net` unless given.
    Raises ValueError, which names both sides of a mismatch, and OSError.
    """
    classifier, discriminator = classifier or demo.DEMO_CLASSIFIER, discriminator or demo.DEMO_DISCRIMINATOR
    if conditional and not net.label_dim:
        raise ValueError('a conditional discriminator needs a class-conditional network; use --cond=0')
    if device is None:
        device = next(net.parameters()).device
    image_net, images = read_classifier(classifier, 'classifier', net.img_resolution, dtype, device)
    theirs, ours = (images.image_size, images.in_channels), (net.img_resolution, net.img_channels)
    if theirs != ours:
        raise ValueError(f'classifier {classifier} is for {theirs[0]}x{theirs[0]}x{theirs[1]} images, '
                         f'the network draws {ours[0]}x{ours[0]}x{ours[1]}')
    feature_net, features = read_classifier(discriminator, 'discriminator', images.feature_size, dtype, device)
    check_discriminator(discriminator, features, conditional, images.feature_channels, images.feature_size)
    check_resolution(discriminator, 'discriminator', feature_net.metadata, net.img_resolution)
    # DG's files embed 1000 classes whatever the data; ours say how many they were trained on
    classes = feature_net.metadata.get('classes', features.num_classes)
    known = 'classes' in feature_net.metadata
    if conditional and (classes < net.label_dim or known and classes != net.label_dim):
        raise ValueError(f'discriminator {discriminator} knows {classes} classes, the network has {net.label_dim}')
    times = [n.metadata['time'] for n in (image_net, feature_net) if 'time' in n.metadata]
    if len(set(times)) > 1:
        raise ValueError(f'classifier {classifier} was trained with {times[0]} time, '
                         f'discriminator {discriminator} with {times[1]}')
    time = times[0] if times else time_convention(net.img_resolution)
    return LogRatio(image_net, feature_net, time=time, clip=clip, conditional=bool(conditional))
