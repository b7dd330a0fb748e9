"""The discriminator under the names that DG's users import (Kim et al., ICML 2023); the code is in networks/."""

import torch

from diffusion.gradients import value_and_grad
from diffusion.vpsde import VPSDE
from networks import log_ratio as _log_ratio
from networks.classifiers import check_resolution, load_classifier, load_discriminator, time_convention
from networks.log_ratio import LogRatio, clipped_logit

__all__ = ['LogRatio', 'clipped_logit', 'get_discriminator', 'get_grad_log_ratio', 'load_classifier',
           'load_discriminator', 'load_log_ratio', 'time_convention', 'vpsde']

OUTSIDE = 1e7  # DG's log-ratio outside the time range


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
        """Random times [N] for training (float32), and the constant that weights them under importance sampling."""
        u = torch.rand(batch_size, device=batch_device)
        if not importance_sampling:
            return u * (1 - t_min) + t_min, 1
        low, high = self.importance_range(t_min).tolist()
        return self.sample_time(u, t_min).float(), high - low


def load_log_ratio(classifier_ckpt, discriminator_ckpt, net, condition: bool, device, dtype=torch.float32,
                   clip: bool = False) -> LogRatio:
    """`networks.load_log_ratio` with the files first."""
    return _log_ratio.load_log_ratio(net, classifier_ckpt, discriminator_ckpt, condition, dtype, clip, device)


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
        metadata = getattr(net, 'metadata', {})  # fresh networks have none
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

    `discriminator` is the result of `get_discriminator`, or None. Rows whose time lies outside [time_min, time_max] get
    correction 0 and log-ratio 1e7, separately for each row (in the published code the smallest time decides for all).
    """
    sigma = torch.as_tensor(std_wve_t, device=unnormalized_input.device).expand(unnormalized_input.shape[0])
    mean, tau = vpsde.transform_unnormalized_wve_to_normalized_vp(sigma)
    inside = (tau >= time_min) & (tau <= time_max)
    if discriminator is None or not inside.any():
        score = torch.zeros_like(unnormalized_input)
        return (score, torch.full_like(score[:, 0, 0, 0], OUTSIDE)) if log else score
    t = vpsde.compute_t_cos_from_t_lin(tau) if time_convention(img_resolution) == 'cosine' else tau
    mean = mean[:, None, None, None]

    def log_ratio(vp):
        return clipped_logit(discriminator(vp, timesteps=t, condition=class_labels))
    value, gradient = value_and_grad(log_ratio, (mean * unnormalized_input).float())
    score = torch.where(inside[:, None, None, None], -(sigma[:, None, None, None] ** 2 * mean) * gradient, 0.0)
    return (score, torch.where(inside, value, OUTSIDE)) if log else score
