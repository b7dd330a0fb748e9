"""The samplers as most tests call them: a network, latents, and the options of the levels by name."""

from diffusion.schedules import time_schedule
from sampling.ablation import ablation_sampler
from sampling.denoiser import as_denoiser
from sampling.edm import edm_sampler
from sampling.levels import edm_levels, level_range


def run_edm(net, latents, class_labels=None, *, guidance=None, randn_like=None, callback=None, **schedule):
    """Images of `edm_sampler` at `edm_levels(net, **schedule)`."""
    denoise = as_denoiser(net)
    return edm_sampler(denoise if guidance is None else guidance(denoise), latents, class_labels,
                       levels=edm_levels(net, **schedule), randn_like=randn_like, callback=callback)


def run_ablation(net, latents, class_labels=None, *, guidance=None, randn_like=None, callback=None, solver='heun',
                 schedule='linear', scaling='none', **levels):
    """Images of `ablation_sampler` with options as generate.py names them."""
    low, high = level_range(net, levels.get('sigma_min'), levels.get('sigma_max'), levels.get('discretization', 'edm'))
    denoise = as_denoiser(net)
    return ablation_sampler(denoise if guidance is None else guidance(denoise), latents, class_labels,
                            levels=edm_levels(net, **levels), time=time_schedule(schedule, scaling, low, high),
                            solver=solver, randn_like=randn_like, callback=callback)
