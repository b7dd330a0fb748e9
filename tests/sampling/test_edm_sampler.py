"""sampling/edm.py against EDM's own sampler, and its invariants.

Goldens: tests/goldens/sampler/edm_dg.npz, many network calls in fp32, so atol 2e-4 (6 steps) and 1e-4 (18 steps).
"""

import pytest
import torch
from sampler_goldens import CountedNet, RecordedNoise, goldens, network
from sampler_runs import run_edm

from diffusion.mixtures import GaussianMixture, MixtureNet
from diffusion.schedules import edm_steps
from sampling.denoiser import Denoiser

EDM_CASES = ['edm_uncond_steps6_churn0', 'edm_uncond_steps6_churn40', 'edm_uncond_limits_steps6_churn40',
             'edm_cond_steps6_churn0', 'edm_uncond_limits_steps18_churn40',
             *[pytest.param(f'edm_uncond_steps18_churn{churn}', marks=pytest.mark.slow) for churn in (0, 40)]]
MIXTURE = GaussianMixture([[-0.5, 0.5], [0.5, 0.0]], [0.3, 0.7], 0.2)


def draw(net, latents, case, noise, **kwargs):
    options = {name: case[name] for name in ('num_steps', 'S_churn', 'S_noise', 'S_min', 'S_max') if name in case}
    return run_edm(net, latents, randn_like=noise.randn_like, callback=noise.callback, **options, **kwargs)


@pytest.mark.parametrize('name', EDM_CASES)
def test_golden(name):
    arrays, cases = goldens('edm_dg')
    case = cases[name]
    net = CountedNet(network(case['network']))
    labels = torch.as_tensor(arrays['class_labels']) if net.label_dim else None
    images = draw(net, torch.as_tensor(arrays['latents']), case, RecordedNoise(arrays['noise']), class_labels=labels)
    assert images.dtype == torch.float64
    assert len(net.x) == case['nfe']
    torch.testing.assert_close(images, torch.as_tensor(arrays[name]), rtol=0,
                               atol=2e-4 if case['num_steps'] == 6 else 1e-4)


def latents(n, seed=0):
    return torch.randn([n, 2, 1, 1], generator=torch.Generator().manual_seed(seed))


def test_noise_is_drawn_only_where_it_is_used():
    """S_min and S_max are inclusive limits; draws happen only in those steps."""
    noise = RecordedNoise(torch.zeros(18, 3, 2, 1, 1))
    run_edm(MixtureNet(MIXTURE), latents(3), randn_like=noise.randn_like, callback=noise.callback)
    assert noise.draws == []
    levels = edm_steps(18)
    run_edm(MixtureNet(MIXTURE), latents(3), randn_like=noise.randn_like, callback=noise.callback,
                S_churn=40, S_min=levels[12].item(), S_max=levels[3].item())
    assert noise.draws == list(range(3, 13))


def test_churn_adds_the_variance_it_should():
    """If the network returns 0, the state is pure noise, so its spread after one step is known."""
    class Zero(MixtureNet):
        def __call__(self, x, sigma, class_labels=None):
            return torch.zeros_like(x)

    steps = []
    generator = torch.Generator().manual_seed(0)
    run_edm(Zero(MIXTURE), latents(20000), num_steps=3, S_churn=1, S_noise=1.0, callback=steps.append,
                randn_like=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator))
    for step in steps[:-1]:
        assert step.x.std().item() == pytest.approx(step.sigma_next, rel=0.02)


def test_rows_are_independent():
    """Row k does not depend on the other rows: exact with a closed-form denoiser."""
    x = latents(5)
    whole = run_edm(MixtureNet(MIXTURE), x)
    for k in range(5):
        assert torch.equal(run_edm(MixtureNet(MIXTURE), x[k:k + 1]), whole[k:k + 1])


def test_callback_reports_every_step():
    steps = []
    images = run_edm(MixtureNet(MIXTURE), latents(2), num_steps=5, callback=steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert steps[0].sigma == pytest.approx(80) and steps[-1].sigma_next == 0
    assert torch.equal(steps[-1].x, images)


def test_evaluations_are_counted_for_each_sample():
    denoise = Denoiser(MixtureNet(MIXTURE))
    run_edm(denoise, latents(2), num_steps=5)
    assert denoise.costs['nfe'].tolist() == [9, 9] and denoise.costs['discriminator_calls'].tolist() == [0, 0]


def test_noise_without_generators_is_refused():
    """A default would lose the seeds of the samples."""
    with pytest.raises(ValueError, match='randn_like'):
        run_edm(MixtureNet(MIXTURE), latents(1), S_churn=10)


def test_one_step_is_one_denoising():
    x = latents(4)
    images = run_edm(MixtureNet(MIXTURE), x, num_steps=1, sigma_max=10)
    torch.testing.assert_close(images, MIXTURE.denoiser(x.double() * 10, 10.0), rtol=0, atol=1e-12)


def test_range_is_cut_to_the_network():
    net = MixtureNet(MIXTURE)
    net.sigma_min, net.sigma_max = 0.1, 20.0
    steps = []
    run_edm(net, latents(1), num_steps=4, callback=steps.append)
    assert steps[0].sigma == pytest.approx(20) and steps[-1].sigma == pytest.approx(0.1)


@pytest.mark.parametrize('kwargs', [dict(num_steps=0), dict(sigma_min=5, sigma_max=2), dict(sigma_max=0)])
def test_impossible_options_are_refused(kwargs):
    with pytest.raises(ValueError):
        run_edm(MixtureNet(MIXTURE), latents(1), **kwargs)


def test_nothing_requires_grad():
    assert not run_edm(MixtureNet(MIXTURE), latents(1).requires_grad_(), num_steps=2).requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('name', EDM_CASES)
def test_golden_on_cuda(name):
    arrays, cases = goldens('edm_dg')
    case = cases[name]
    net = network(case['network'])
    try:
        noise = RecordedNoise(torch.as_tensor(arrays['noise']).cuda())
        labels = torch.as_tensor(arrays['class_labels']).cuda() if net.label_dim else None
        images = draw(net.cuda(), torch.as_tensor(arrays['latents']).cuda(), case, noise, class_labels=labels)
    finally:
        net.cpu()
    torch.testing.assert_close(images.cpu(), torch.as_tensor(arrays[name]), rtol=0, atol=5e-4)
