"""The discriminator as DG's users know it: load it, ask for its log-ratio, guide with it (Kim et al., ICML 2023).

A discriminator reads the features of a frozen ADM classifier of noisy images. Both live in the VP world: a state x
at noise level sigma is fed to them as mean(tau) x at time tau(sigma) (diffusion/vpsde.py).
"""

import functools
from pathlib import Path

import torch

from diffusion.vpsde import VPSDE
from dnnlib.files import resolve_path
from guided_diffusion import Architecture, create_classifier, read_architecture, set_precision
from torch_utils.checkpoint import limited, load_state, read_network

CLIP = 1e-5  # DG clips probabilities to [1e-5, 1 - 1e-5] before the logit
OUTSIDE = 1e7  # DG's log-ratio where the discriminator is not asked
TIMES = ('linear', 'cosine')
FEATURE_SIZE = 8  # height and width of the middle block's output, for every image size


class vpsde(VPSDE):  # noqa: N801 (DG's name)
    """The VP SDE under DG's names."""

    def compute_tau(self, std_wve_t):
        return self.tau(std_wve_t)

    def marginal_prob(self, t):
        return self.marginal(t)

    def compute_t_cos_from_t_lin(self, t_lin):
        return self.t_cos(t_lin)

    def transform_unnormalized_wve_to_normalized_vp(self, t, std_out=False):
        """Noise level -> (mean, [std,] tau) of the VP state with the same signal-to-noise ratio."""
        tau = self.tau(t)
        mean, std = self.marginal(tau)
        return (mean, std, tau) if std_out else (mean, tau)

    def get_diffusion_time(self, batch_size, batch_device, t_min=1e-5, importance_sampling=True):
        """Random times [N] for training (float32), and the constant by which importance sampling weighs them."""
        u = torch.rand(batch_size, device=batch_device)
        if not importance_sampling:
            return u * (1 - t_min) + t_min, 1
        low, high = self.importance_range(t_min).tolist()
        return self.sample_time(u, t_min).float(), high - low


def time_convention(resolution: int) -> str:
    """The time that published classifiers of this resolution were trained with: 'cosine' or 'linear'."""
    return 'cosine' if resolution == 64 else 'linear'


class LogRatio:
    """log p_data(x; sigma) - log p_model(x; sigma), from a discriminator on a classifier's features.

    Called with x [N, C, H, W] in the score network's (variance-exploding) space, sigma [] or [N] and, for a
    conditional discriminator, class_labels (one-hot [N, K] or index [N]); returns [N], differentiable in x.

    Args:
        classifier, discriminator: `classifier(x, timesteps, feature=True)`, `discriminator(features, timesteps)`.
        time: 'linear' or 'cosine', the VP time that both were trained with.
        clip: DG's variant, the logit of a probability clipped to [1e-5, 1 - 1e-5] (its gradient is 0 where it
            clips); the default is the raw logit, as DiffRS has it. See docs/equations.md.
        conditional: whether the discriminator is given class_labels; else they are ignored.
    """

    def __init__(self, classifier, discriminator, time: str = 'linear', clip: bool = False, conditional: bool = False):
        if time not in TIMES:
            raise ValueError(f'time {time!r} is not one of {", ".join(TIMES)}')
        self.classifier, self.discriminator = classifier, discriminator
        self.time, self.clip, self.conditional = time, clip, conditional
        self.sde = VPSDE()
        self._logit_and_grad = functools.partial(_value_and_grad, self._logit)

    def compile(self, choose=lambda compiled, plain: compiled) -> None:
        """Call what torch.compile makes of both networks together, from here on.

        `choose(compiled, plain)` gives the function to call, out of two with the same arguments: compilers are at work,
        and may fail, in the first call.
        """
        compiled = torch.compile(self._logit, dynamic=False)
        self._logit_and_grad = choose(functools.partial(_value_and_grad, compiled), self._logit_and_grad)
        self._logit = choose(compiled, self._logit)

    def __call__(self, x, sigma, class_labels=None):
        mean, t = self._vp(sigma, x)
        return self._logit(mean * x, t, class_labels)

    @torch.no_grad()
    def value(self, x, sigma, class_labels=None):
        """The log-ratio [N], without a graph."""
        return self(x, sigma, class_labels)

    def value_and_grad(self, x, sigma, class_labels=None):
        """The log-ratio [N] and its gradient with respect to x [N, C, H, W] (float32), from one evaluation."""
        mean, t = self._vp(sigma, x)
        value, gradient = self._logit_and_grad((mean * x).to(torch.float32), t, class_labels)
        return value, mean.to(torch.float32) * gradient

    def _vp(self, sigma, x):
        """VP mean [N, 1, 1, 1] and network time [N] for noise levels [] or [N], computed in float64."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(x.shape[0])
        tau = self.sde.tau(sigma)
        mean, _ = self.sde.marginal(tau)
        t = self.sde.t_cos(tau) if self.time == 'cosine' else tau
        return mean[:, None, None, None], t.to(torch.float32)

    def _logit(self, vp, t, class_labels):
        vp = vp.to(torch.float32)
        condition = class_labels if self.conditional else None
        features = self.classifier(vp, timesteps=t, feature=True)
        logit = self.discriminator(features, t, condition=condition).view(-1)
        return clipped_logit(logit.sigmoid()) if self.clip else logit


def _value_and_grad(function, x, *args):
    """function(x, *args) [N] and its gradient with respect to x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x, *args)
        gradient, = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


def clipped_logit(probability):
    """DG's log-ratio of a probability: the logit after clipping to [1e-5, 1 - 1e-5]."""
    probability = probability.clip(CLIP, 1.0 - CLIP)
    return torch.log(probability / (1.0 - probability))


def _read(path, what: str):
    """(state dict, metadata, image size) of a file; a plain state dict (.pt) records neither: {} and None."""
    path = resolve_path(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f'{what} {path} does not exist')
    if Path(path).suffix == '.safetensors':
        file = read_network(path)
        if file.constructor != 'create_classifier':
            raise ValueError(f'{path} is a {file.constructor}, not a {what}')
        return file.state, file.metadata, file.kwargs.get('image_size')
    state = load_state(path)
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f'{path} is not a state dict of a {what}')
    return state, {}, None


def _load(path, what: str, image_size: int, dtype, device, eval):
    """(network, its architecture, its metadata) from a file.

    Where the shapes leave a choice of image size, the size that the file records decides, else `image_size`.
    """
    state, metadata, recorded = _read(path, what)
    try:
        architecture = read_architecture(state, recorded or image_size)
        with limited(state):
            net = architecture.build()
        net.load_state_dict(state)
    except Exception as error:  # shapes and names of any kind can fail anywhere
        raise ValueError(f'{what} {path}: {" ".join(str(error).split())[:300]}') from None
    net.metadata = metadata
    return _ready(net, dtype, device, eval), architecture, metadata


def _ready(net, dtype, device, eval):
    """`net` on its device in its precision, to be used and frozen where `eval`, else to be trained."""
    net = set_precision(net, dtype, training=not eval).to(device)
    return net.eval().requires_grad_(False) if eval else net.train()


def load_classifier(ckpt_path, img_resolution, device, eval=True, *, dtype=torch.float32):
    """The ADM classifier whose middle block feeds discriminators.

    Its width, depth and channels come from the file; without a file (None) it is DG's, with fresh weights.
    Frozen where `eval`. Raises ValueError for another resolution or a file that is something else.
    """
    if ckpt_path is None:
        depth = 4 if img_resolution in (32, 64) else 2
        net = create_classifier(img_resolution, classifier_width=128, classifier_depth=depth)
        return _ready(net, dtype, device, eval)
    net, architecture, _ = _load(ckpt_path, 'classifier', img_resolution, dtype, device, eval)
    if architecture.image_size != img_resolution:
        raise ValueError(f'classifier {ckpt_path} is for {architecture.image_size}x{architecture.image_size} images, '
                         f'these are {img_resolution}x{img_resolution}')
    return net


def load_discriminator(ckpt_path, device, condition, eval=False, channel=512, *, depth=2, width=128, num_classes=1000,
                       dtype=torch.float32):
    """A discriminator on features of `channel` channels at 8x8.

    Its size comes from the file; without a file (None) it is new, with `width`, `depth` (2, for FFHQ 4) and, where
    `condition`, `num_classes`. Frozen where `eval`. Raises ValueError where the file contradicts `condition` or
    `channel`.
    """
    if ckpt_path is None:
        net = Architecture(8, width, depth, '8', channel, 1, num_classes if condition else 0).build()
        return _ready(net, dtype, device, eval)
    net, architecture, _ = _load(ckpt_path, 'discriminator', FEATURE_SIZE, dtype, device, eval)
    check_discriminator(ckpt_path, architecture, condition, channel)
    return net


def check_discriminator(path, architecture, condition, channel) -> None:
    """Raises ValueError where a discriminator does not fit the request or the classifier's features."""
    if architecture.image_size != FEATURE_SIZE:
        raise ValueError(f'{path} is for {architecture.image_size}x{architecture.image_size} images: '
                         f'a classifier, not a discriminator of {FEATURE_SIZE}x{FEATURE_SIZE} features')
    if architecture.out_channels != 1:
        raise ValueError(f'{path} has {architecture.out_channels} outputs: a classifier, not a discriminator')
    if bool(architecture.num_classes) != bool(condition):
        kind, option = ('conditional', 1) if architecture.num_classes else ('unconditional', 0)
        raise ValueError(f'discriminator {path} is {kind}; use --cond={option}')
    if architecture.in_channels != channel:
        raise ValueError(f'discriminator {path} reads {architecture.in_channels} feature channels, '
                         f'the classifier has {channel}; use the classifier it was trained with')


def check_resolution(path, what, metadata, img_resolution) -> None:
    """Raises ValueError where a file says that it was trained for images of another size; features don't show it."""
    trained = metadata.get('resolution', img_resolution)
    if trained != img_resolution:
        raise ValueError(f'{what} {path} was trained for {trained}x{trained} images, '
                         f'these are {img_resolution}x{img_resolution}')


def get_discriminator(latent_extractor_ckpt, discriminator_ckpt, condition, img_resolution=32, device='cuda',
                      enable_grad=True, depth=2):
    """DG's function (inputs, timesteps, condition) -> probability [N]; `depth` is read from the file.

    Raises ValueError for a file that records another resolution, or another time than `get_grad_log_ratio` takes.
    """
    classifier = load_classifier(latent_extractor_ckpt, img_resolution, device, eval=True)
    discriminator = load_discriminator(discriminator_ckpt, device, condition, eval=True, depth=depth,
                                       channel=classifier.feature_channels)
    expected = time_convention(img_resolution)
    for what, path, net in (('classifier', latent_extractor_ckpt, classifier),
                            ('discriminator', discriminator_ckpt, discriminator)):
        metadata = getattr(net, 'metadata', {})  # new networks have none
        check_resolution(path, what, metadata, img_resolution)
        if metadata.get('time', expected) != expected:
            raise ValueError(f'{what} {path} was trained with {metadata["time"]} time, get_grad_log_ratio takes '
                             f'{expected} time at {img_resolution}x{img_resolution}; use load_log_ratio')

    def evaluate(perturbed_inputs, timesteps=None, condition=None):
        with torch.set_grad_enabled(enable_grad):
            features = classifier(perturbed_inputs, timesteps=timesteps, feature=True)
            return discriminator(features, timesteps, sigmoid=True, condition=condition).view(-1)
    return evaluate


def get_grad_log_ratio(discriminator, vpsde, unnormalized_input, std_wve_t, img_resolution, time_min, time_max,
                       class_labels, log=False):
    """DG's correction -sigma^2 grad log-ratio of x [N, C, H, W] at noise levels [N], and with `log` the log-ratio [N].

    `discriminator` is what `get_discriminator` gives, or None. Rows whose time lies outside [time_min, time_max] get
    correction 0 and log-ratio 1e7, each row on its own (the published code lets the smallest time decide for all).
    """
    sigma = torch.as_tensor(std_wve_t, device=unnormalized_input.device).expand(unnormalized_input.shape[0])
    mean, tau = vpsde.transform_unnormalized_wve_to_normalized_vp(sigma)
    inside = (tau >= time_min) & (tau <= time_max)
    if discriminator is None or not inside.any():
        score = torch.zeros_like(unnormalized_input)
        return (score, torch.full_like(score[:, 0, 0, 0], OUTSIDE)) if log else score
    t = vpsde.compute_t_cos_from_t_lin(tau) if time_convention(img_resolution) == 'cosine' else tau
    mean = mean[:, None, None, None]
    with torch.enable_grad():
        vp = (mean * unnormalized_input).float().detach().requires_grad_()
        log_ratio = clipped_logit(discriminator(vp, timesteps=t, condition=class_labels))
        gradient, = torch.autograd.grad(log_ratio.sum(), vp)
    score = -(sigma[:, None, None, None] ** 2 * mean) * gradient
    score = torch.where(inside[:, None, None, None], score, 0.0)
    return (score, torch.where(inside, log_ratio.detach(), OUTSIDE)) if log else score


def load_log_ratio(classifier_ckpt, discriminator_ckpt, net, condition: bool, device, dtype=torch.float32,
                   clip: bool = False) -> LogRatio:
    """The log-ratio for samples of the score network `net`, from two files; errors name both sides of a mismatch."""
    if condition and not net.label_dim:
        raise ValueError('a conditional discriminator needs a class-conditional network; use --cond=0')
    classifier, images, described = _load(classifier_ckpt, 'classifier', net.img_resolution, dtype, device, eval=True)
    theirs, ours = (images.image_size, images.in_channels), (net.img_resolution, net.img_channels)
    if theirs != ours:
        raise ValueError(f'classifier {classifier_ckpt} is for {theirs[0]}x{theirs[0]}x{theirs[1]} images, '
                         f'the network draws {ours[0]}x{ours[0]}x{ours[1]}')
    discriminator, features, metadata = _load(discriminator_ckpt, 'discriminator', FEATURE_SIZE, dtype, device,
                                              eval=True)
    check_discriminator(discriminator_ckpt, features, condition, images.feature_channels)
    check_resolution(discriminator_ckpt, 'discriminator', metadata, net.img_resolution)
    # DG's files embed 1000 classes whatever the data; ours say how many they were trained on
    classes = metadata.get('classes', features.num_classes)
    if condition and (classes < net.label_dim or 'classes' in metadata and classes != net.label_dim):
        raise ValueError(f'discriminator {discriminator_ckpt} knows {classes} classes, the network has {net.label_dim}')
    times = [d['time'] for d in (described, metadata) if 'time' in d] or [time_convention(net.img_resolution)]
    if len(set(times)) > 1:
        raise ValueError(f'classifier {classifier_ckpt} was trained with {times[0]} time, '
                         f'discriminator {discriminator_ckpt} with {times[1]}')
    return LogRatio(classifier, discriminator, time=times[0], clip=clip, conditional=bool(condition))
