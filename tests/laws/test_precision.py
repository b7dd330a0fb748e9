"""Gates for 16-bit networks on the shipped files: how far denoised images, log-ratios and samples are from float32."""

import pytest
import torch
from sampler_runs import run_edm

import networks
from dnnlib import demo
from metrics.detectors import load_detector
from metrics.frechet import frechet_distance
from metrics.moments import Moments
from metrics.reference import load_reference
from networks import winograd
from sampling.diffrs import WARMUP_SEED, calibrate, diffrs_sampler
from sampling.edm import edm_sampler
from sampling.guidance import DiscriminatorGuidance
from sampling.levels import edm_levels
from sampling.samples import draw_inputs, stream
from torch_utils.device import cpu_flags
from torch_utils.images import to_uint8

SIGMAS = (0.002, 0.02, 0.1, 0.5, 2.0, 10.0, 80.0)
COUNT, STEPS = (6, 9) if 'avx512_bf16' in cpu_flags() else (2, 5)
PRODUCTS = [(torch.nn.functional, 'conv2d'), (torch.nn.functional, 'conv_transpose2d'),
            (torch.nn.functional, 'linear'), (torch.nn.functional, 'scaled_dot_product_attention'), (torch, 'bmm')]


@pytest.fixture(scope='module', autouse=True)
def matrix_units():
    """Products of 16-bit numbers, summed in float32 and rounded once, where the CPU has no units for them.

    So it has float32 products of the same numbers; PyTorch's own emulation takes 30 times as long.
    """
    def through_float32(product):
        def rounded(x, *args, **kwargs):
            if x.is_cuda or x.dtype not in (torch.bfloat16, torch.float16):
                return product(x, *args, **kwargs)
            return product(x.float(), *(each.float() if torch.is_tensor(each) else each for each in args),
                           **kwargs).to(x.dtype)

        return rounded

    with pytest.MonkeyPatch.context() as patch:
        if 'avx512_bf16' not in cpu_flags():
            for module, name in PRODUCTS:
                patch.setattr(module, name, through_float32(getattr(module, name)))
        yield


def load(dtype, device='cpu'):
    net = networks.load_network(demo.DEMO_SCORE, device, dtype)
    return net, networks.load_log_ratio(net, dtype=dtype)


def guided_samples(net, log_ratio):
    """[COUNT, 3, 32, 32] with DG's weight."""
    _, latents, _ = draw_inputs(net, range(COUNT), 'cpu')
    return run_edm(net, latents, num_steps=STEPS, guidance=DiscriminatorGuidance(log_ratio, 2.0))


@pytest.fixture(scope='module')
def pair():
    """((network, log-ratio, samples) in float32, the same in bfloat16)."""
    with torch.no_grad():
        return [(*loaded, guided_samples(*loaded)) for loaded in map(load, (torch.float32, torch.bfloat16))]


@pytest.fixture(scope='module')
def compiled():
    """(network, log-ratio, samples) in bfloat16, with the operations of a compiled network, but not compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, 'cpu_flags', lambda: {'avx512_bf16'})
        net, log_ratio = load(torch.bfloat16)
    plain, seen, convolve = net.forward, [], winograd.conv2d

    def forward(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.compiler, 'is_compiling', lambda: True)
            patch.setattr(winograd, 'conv2d', lambda *args: seen.append(True) or convolve(*args))
            return plain(*args, **kwargs)

    net.forward = forward
    with torch.no_grad():
        samples = guided_samples(net, log_ratio)
    assert seen
    return net, log_ratio, samples


@pytest.fixture(scope='module')
def noisy(pair):
    """Noise level -> (x [COUNT, 3, 32, 32], sigma [COUNT])."""
    noise = torch.randn(pair[0][2].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {sigma: (pair[0][2] + sigma * noise, torch.full([COUNT], sigma, dtype=torch.float64)) for sigma in SIGMAS}


@torch.no_grad()
def test_denoised_images_in_float16(pair, noisy):
    """Relative L2 1e-3 at every noise level (on a CPU too, where float16 is slow but rounds the same)."""
    net = networks.load_network(demo.DEMO_SCORE, dtype=torch.float16)
    for sigma, (x, level) in noisy.items():
        exact = pair[0][0](x, level)
        assert (net(x, level) - exact).norm() < 1e-3 * exact.norm(), sigma


@torch.no_grad()
def test_log_ratios_are_not_rounded(pair, noisy):
    """The last layer stays float32: a log-ratio has more digits than bfloat16, whose steps at 4 are 1/32."""
    for x, level in noisy.values():
        value = pair[1][1](x, level)
        assert (value != value.to(torch.bfloat16)).any()


@torch.no_grad()
def test_denoised_images(pair, compiled, noisy):
    """Relative L2: 1e-3 up to sigma 0.5, where details arise; 4e-3 above, where the denoised image is a blur."""
    for sigma, (x, level) in noisy.items():
        exact, *halves = (net(x, level) for net, _, _ in (*pair, compiled))
        for half in halves:
            assert (half - exact).norm() < (1e-3 if sigma < 0.5 else 4e-3) * exact.norm(), sigma


def test_log_ratios(pair, noisy):
    """Within 0.01, while their spread between images is 0.6 at low noise; gradients within 1.5 % (relative L2)."""
    for sigma, (x, level) in noisy.items():
        (exact, exact_gradient), (half, gradient) = (log_ratio.value_and_grad(x, level) for _, log_ratio, _ in pair)
        assert (half - exact).abs().max() < 0.01, sigma
        assert (gradient - exact_gradient).norm() < 0.015 * exact_gradient.norm(), sigma


def test_guided_samples(pair, compiled):
    """Half a uint8 level on average, in every image."""
    exact, *halves = (torch.as_tensor(to_uint8(samples)).float() for _, _, samples in (*pair, compiled))
    for half in halves:
        assert ((half - exact).abs().mean((1, 2, 3)) < 0.5).all()


def draw(sampler, loaded, seeds, batch, steps, calibration, device):
    """Samples in batches."""
    net, log_ratio = loaded
    options = dict(batch=batch, device=device, levels=edm_levels(net, steps))
    if sampler == 'rejection':
        draws = stream(diffrs_sampler, net, log_ratio=log_ratio, thresholds=calibration, rej_percentile=0.9, **options)
    else:
        draws = stream(edm_sampler, net, **options,
                       guidance=DiscriminatorGuidance(log_ratio, 2.0) if sampler == 'guidance' else None)
    return draws(iter(seeds), lambda images: None)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize('sampler', ['edm', 'guidance', 'rejection'])
def test_distances(sampler):
    """FD-CIFAR10 in bfloat16 within a deviation (over blocks of seeds) of float32's; of 10,000 samples on a GPU."""
    device, count, batch, steps = ('cuda', 10_000, 500, 18) if torch.cuda.is_available() else ('cpu', 150, 50, 9)
    detector, reference = load_detector('cifar10', device), load_reference(demo.DEMO_STATS)
    pair = [load(dtype, device) for dtype in (torch.float32, torch.bfloat16)]
    warmup = range(WARMUP_SEED, WARMUP_SEED + 2 * batch)
    calibration = None if sampler != 'rejection' else calibrate(
        *pair[1], warmup, batch=batch, device=device, levels=edm_levels(pair[1][0], steps))
    distances = torch.zeros(2, 3)  # in float32 and bfloat16, by block
    for row, loaded in enumerate(pair):
        for block in range(3):
            moments = Moments(detector.feature_dim, device)
            seeds = range(block * count, (block + 1) * count)
            for samples in draw(sampler, loaded, seeds, batch, steps, calibration, device):
                moments.add(detector(torch.from_numpy(to_uint8(samples.images)).permute(0, 3, 1, 2).to(device)))
            distances[row, block] = frechet_distance(*moments.finish(), reference.mu, reference.sigma)
    exact, half = distances
    assert (half - exact).mean().abs() < exact.std(), distances
