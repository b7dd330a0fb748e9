"""Preconditioning: one denoiser interface D(x, sigma) for EDM, iDDPM and score_sde networks (EDM, Table 1)."""

import math

import torch

from .ddpm_unet import DDPMUNet
from .dhariwal_unet import DhariwalUNet
from .layers import Conv2d
from .song_unet import SongUNet

MODELS = {'SongUNet': SongUNet, 'DhariwalUNet': DhariwalUNet, 'DDPMUNet': DDPMUNet}


def _known(name: str, value: str, known) -> str:
    if value not in known:
        raise ValueError(f'{name} {value!r} is not one of {", ".join(known)}')
    return value


def label_rows(class_labels, label_dim: int, device) -> torch.Tensor | None:
    """Labels for a U-Net, float32 [N or 1, label_dim]; None becomes the all-zero label; None without classes."""
    if label_dim == 0:
        return None
    if class_labels is None:
        return torch.zeros([1, label_dim], device=device)
    return class_labels.to(torch.float32).reshape(-1, label_dim)


class Precond(torch.nn.Module):
    """A U-Net F behind D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

    Called as `net(x, sigma, class_labels=None)`: x [N, C, H, W] = y + sigma n with y in [-1, 1]; sigma [] or [N];
    class_labels one-hot [N, label_dim] (None is the all-zero label); returns the denoised image, float32.

    `body_dtype` is the dtype in which activations flow through the U-Net; embeddings and preconditioning are float32.
    `use_fp16`, an attribute of published networks, is kept but has no effect: the caller chooses the precision.
    `process` is the forward process that the network was trained with, for samplers that need it.
    """

    process = 've'  # or 'vp', 'subvp'

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, model_type='SongUNet',
                 out_multiple=1, **model_kwargs):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16 = use_fp16
        self.body_dtype = torch.float32
        model = MODELS[_known('model_type', model_type, MODELS)]
        self.model = model(img_resolution=img_resolution, in_channels=img_channels,
                           out_channels=img_channels * out_multiple, label_dim=label_dim, **model_kwargs)

    def coefficients(self, sigma):
        """sigma [N, 1, 1, 1] -> c_skip, c_out, c_in, c_noise (each broadcastable to [N, 1, 1, 1])."""
        raise NotImplementedError

    def forward(self, x, sigma, class_labels=None, augment_labels=None):
        x = x.to(torch.float32)
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        class_labels = label_rows(class_labels, self.label_dim, x.device)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        body_in = (c_in * x).to(self.body_dtype, memory_format=torch.channels_last)
        F_x = self.model(body_in, c_noise.flatten(), class_labels=class_labels, augment_labels=augment_labels)
        return c_skip * x + c_out * F_x[:, :self.img_channels].to(torch.float32)

    def round_sigma(self, sigma):
        """The nearest noise level of the network: sigma itself, unless it only has a table of levels."""
        return torch.as_tensor(sigma)

    def decode(self, x):
        """Images [N, C, H, W] of samples x: x itself, since these networks denoise pixels."""
        return x


class EDMPrecond(Precond):
    """EDM's own preconditioning (Karras et al., NeurIPS 2022, Eq. 7)."""

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, sigma_min=0,
                 sigma_max=float('inf'), sigma_data=0.5, model_type='DhariwalUNet', **model_kwargs):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model_kwargs)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data

    def coefficients(self, sigma):
        total = sigma**2 + self.sigma_data**2
        return (self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(),
                1 / total.sqrt(), sigma.log() / 4)


class VPPrecond(Precond):
    """Variance preserving (Song et al., ICLR 2021): sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1.

    `time_input`: the input of the network, times M - 1: 'edm': t, in float32 as in EDM, 5 % off at sigma 0.001;
    'linear': t, in float64; 'unbounded': log(1 - exp(-B) + 0.001) + B, scaled to 0 at t = epsilon_t and 1 at t = 1,
    where B = log(1 + sigma^2) (Soft-Truncation, Kim et al., ICML 2022), in float64.
    """

    process = 'vp'

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, beta_d=19.9, beta_min=0.1, M=1000,
                 epsilon_t=1e-5, model_type='SongUNet', time_input='edm', **model_kwargs):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model_kwargs)
        self.time_input = _known('time_input', time_input, ('edm', 'linear', 'unbounded'))
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        # In float32, as published: the cancellation in exp(.) - 1 gives 0.0009766 instead of 0.0010005, and the
        # published time steps start from there.
        self.sigma_min = float(self.sigma(epsilon_t))
        self.sigma_max = float(self.sigma(1))

    def sigma(self, t):
        """Noise level at time t."""
        t = torch.as_tensor(t, dtype=torch.float32)
        return ((0.5 * self.beta_d * t**2 + self.beta_min * t).exp() - 1).sqrt()

    def sigma_inv(self, sigma):
        """Time at a noise level."""
        return ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d

    def _exact_time(self, sigma):
        """'linear' or 'unbounded' time in [0, 1], computed in float64."""
        B = torch.log1p(sigma.double()**2)
        if self.time_input == 'linear':
            return (2 * B / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * B).sqrt())).float()
        ends = [self.beta_min * t + 0.5 * self.beta_d * t**2 for t in (self.epsilon_t, 1)]
        first, last = (math.log(0.001 - math.expm1(-end)) + end for end in ends)
        return (((0.001 - torch.expm1(-B)).log() + B - first) / (last - first)).float()

    def coefficients(self, sigma):
        time = self.sigma_inv(sigma) if self.time_input == 'edm' else self._exact_time(sigma)
        return 1, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * time


class SubVPPrecond(Precond):
    """Sub-VP (Song et al., ICLR 2021): mean m(t) and standard deviation 1 - m^2, so sigma = 2 sinh(-log m).

    Times and means are computed in float64: at small noise levels float32 would cancel.
    """

    process = 'subvp'

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, beta_d=19.9, beta_min=0.1, M=1000,
                 epsilon_t=1e-5, model_type='SongUNet', **model_kwargs):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model_kwargs)
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M
        self.sigma_min, self.sigma_max = (2 * math.sinh(t * (beta_min + beta_d * t / 2) / 2) for t in (epsilon_t, 1))

    def coefficients(self, sigma):
        half = torch.asinh(sigma.double() / 2)  # -log m, half the integral of beta
        t = 4 * half / (self.beta_min + (self.beta_min**2 + 4 * self.beta_d * half).sqrt())
        return 1, -sigma, (-half).exp().float(), ((self.M - 1) * t).float()


class VEPrecond(Precond):
    """Variance exploding (Song et al., ICLR 2021).

    `time_input`: 'log': the input is log(sigma / 2); 'reciprocal': only above sigma / 2 = 0.01, and below that
    log(0.01) + 1 - 0.01 / (sigma / 2 + 0.0001) (Soft-Truncation's paper; its released code uses 'log').
    """

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, sigma_min=0.02, sigma_max=100,
                 model_type='SongUNet', time_input='log', **model_kwargs):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model_kwargs)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.time_input = _known('time_input', time_input, ('log', 'reciprocal'))

    def coefficients(self, sigma):
        time = (0.5 * sigma).log()
        if self.time_input == 'reciprocal':
            low = math.log(0.01) + 1 - 0.01 / (0.5 * sigma + 0.0001)
            time = torch.where(sigma < 0.02, low, time)
        return 1, sigma, 1, time


def _level_count(M: int) -> int:
    if not 0 < M <= 100_000:
        raise ValueError(f'M = {M} noise levels')
    return M


class TablePrecond(Precond):
    """A network with a table of noise levels, `u` [levels], from the largest down; sigma is rounded to the nearest."""

    u: torch.Tensor

    def _index(self, sigma):
        return (sigma.to(self.u.device, torch.float32).reshape(-1, 1) - self.u).abs().argmin(1)

    def round_sigma(self, sigma):
        """The nearest noise level of the table, in the shape and dtype of `sigma`."""
        sigma = torch.as_tensor(sigma)
        return self.u[self._index(sigma)].to(sigma.device, sigma.dtype).reshape(sigma.shape)

    def _use_table(self, u):
        """Set the table [levels], which follows from the arguments, so that files need not hold it."""
        self.register_buffer('u', u, persistent=False)
        self.sigma_min, self.sigma_max = float(u.min()), float(u.max())


class VEDiscretePrecond(TablePrecond):
    """Variance exploding with M levels at equal ratios; the input is the index, 0 for the largest level."""

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, sigma_min=0.02, sigma_max=100,
                 M=1000, model_type='SongUNet', **model_kwargs):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model_kwargs)
        ends = math.log(sigma_max), math.log(sigma_min)
        self._use_table(torch.linspace(*ends, _level_count(M), dtype=torch.float64).exp())

    def coefficients(self, sigma):
        return 1, sigma, 1, self._index(sigma).to(torch.float32)


class VPDiscretePrecond(TablePrecond):
    """DDPM's M levels (Ho et al., NeurIPS 2020): alpha_bar_k is the product of 1 - beta_j up to j = k.

    beta grows linearly from beta_min / M to beta_max / M; the input is k, M - 1 for the largest level.
    """

    process = 'vp'

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, beta_min=0.1, beta_max=20, M=1000,
                 model_type='SongUNet', **model_kwargs):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, **model_kwargs)
        self.beta_min, self.beta_max = beta_min, beta_max
        betas = torch.linspace(beta_min / M, beta_max / M, _level_count(M), dtype=torch.float64)
        self._use_table(torch.expm1(-torch.log1p(-betas).cumsum(0)).sqrt().flip(0))  # sqrt(1 / alpha_bar - 1)

    def coefficients(self, sigma):
        level = (len(self.u) - 1 - self._index(sigma)).to(torch.float32)
        return 1, -sigma, 1 / (sigma**2 + 1).sqrt(), level


class iDDPMPrecond(TablePrecond):
    """Improved DDPM (Nichol and Dhariwal, ICML 2021): M discrete noise levels, kept in the buffer `u` [M + 1]."""

    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, C_1=0.001, C_2=0.008, M=1000,
                 model_type='DhariwalUNet', **model_kwargs):
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, out_multiple=2,
                         **model_kwargs)
        self.M = _level_count(M)

        alpha_bar = (0.5 * math.pi * torch.arange(M + 1) / M / (C_2 + 1)).sin() ** 2
        ratios = (alpha_bar[:-1] / alpha_bar[1:]).clip(min=C_1).unbind()
        levels = [torch.zeros([])]  # from the smallest up
        for ratio in reversed(ratios):
            levels.append(((levels[-1] ** 2 + 1) / ratio - 1).sqrt())
        self.register_buffer('u', torch.stack(levels[::-1]))
        self._read_range()
        self.register_load_state_dict_post_hook(lambda module, _: module._read_range())

    def _read_range(self):
        self.sigma_min, self.sigma_max = float(self.u[self.M - 1]), float(self.u[0])

    def coefficients(self, sigma):
        level = self._index(sigma).to(torch.float32)
        return 1, -sigma, 1 / (sigma**2 + 1).sqrt(), self.M - 1 - level


PRECONDITIONERS = {cls.__name__: cls for cls in (EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond, SubVPPrecond,
                                                 VEDiscretePrecond, VPDiscretePrecond)}


def construct(constructor: str, kwargs: dict) -> Precond:
    """Build a network by class name; it remembers both, so that it can be saved. Raises ValueError."""
    if constructor not in PRECONDITIONERS:
        raise ValueError(f'{constructor!r} is not a score network; known are {", ".join(PRECONDITIONERS)}')
    try:
        net = PRECONDITIONERS[constructor](**kwargs)
    except TypeError as error:
        raise ValueError(f'{constructor} does not take these arguments ({error})') from None
    net.constructor, net.init_kwargs = constructor, dict(kwargs)
    return net


def set_precision(net: Precond, dtype: torch.dtype, training: bool = False) -> Precond:
    """Run the U-Net's convolutions and attention in `dtype`, channels last.

    For sampling, norms, activations and sums stay float32, and so do the two convolutions at the image: with bfloat16
    that makes the error of the samples five times smaller. The other convolutions are stored in `dtype` and, on a
    CPU, in the form that is fastest there; later changes of the weights or the device have no effect on them. For
    `training` everything in the body runs in `dtype`; the weights stay float32 and are cast when used.
    """
    net.body_dtype = dtype if training else torch.float32
    for module in net.model.modules():
        if isinstance(module, Conv2d):
            module.set_compute_dtype(None if training or _touches_image(net, module) else dtype)
    return net.to(memory_format=torch.channels_last)


def _touches_image(net: Precond, conv: Conv2d) -> bool:
    """Whether a convolution reads or writes the image rather than features."""
    return min(conv.in_channels, conv.out_channels) <= 2 * net.img_channels
