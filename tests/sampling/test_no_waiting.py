"""EDM's sampler, its ablations and training steps never wait for the device: they run on 'meta' tensors without values.

Rejection sampling is not among them: it waits for one mask per test.
"""

import copy
import functools
from collections import Counter

import pytest
import torch
from sampler_goldens import SMALL, network
from sampler_runs import run_ablation, run_edm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import networks
from diffusion.losses import EDMLoss
from diffusion.mixtures import GaussianMixture, MixtureNet
from diffusion.vpsde import VPSDE
from dnnlib import demo
from guided_diffusion import create_classifier, set_precision
from networks import LogRatio
from networks.classifiers import load_classifier, load_discriminator
from sampling import integrators, reflected
from sampling.autoguidance import Autoguidance
from sampling.guidance import DiscriminatorGuidance
from sampling.interval import GuidanceInterval
from sampling.levels import edm_levels
from sampling.multistep import multistep_sampler
from sampling.restart import parse_restarts, restart_sampler
from sampling.rk45 import rk45
from training import randomness
from training.augment import AugmentPipe
from training.discriminator import DiscriminatorLoss
from training.ema import Ema
from training.loop import Trainer
from training.run import TrainRun
from training.score import score_step

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
VP = dict(solver='heun', discretization='vp', schedule='vp', scaling='vp')
SAMPLERS = [(run_edm, False, {}), (run_edm, False, dict(S_churn=10)), (run_edm, True, dict(S_churn=10)),
            (run_ablation, False, VP)]
COMPOSED = [(restart_sampler, dict(restarts=parse_restarts('2; [2,1,0.002,2]')), 2),  # stretches: down, up, down
            (multistep_sampler, dict(solver='unipc'), 0)]
SAMPLER_NAMES = ['plain', 'churn', 'guided', 'ablation']


class Transfers(TorchDispatchMode):
    """Counts the operations whose result is on another device than their input, by (from, to)."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {x.device.type for x in tensors([args, kwargs]) if x.ndim or func in COPIES}  # numbers are passed along
        if func is torch.ops.aten.lift_fresh.default:  # a tensor made of Python numbers
            given = {'cpu'}
        for device in {x.device.type for x in tensors(result)}:
            self.count.update((source, device) for source in given - {device})
        return result


def tensors(tree):
    """The tensors in nested arguments."""
    return [x for x in tree_leaves(tree) if torch.is_tensor(x)]


@pytest.fixture(scope='module')
def loaded():
    """(a small network, guidance by small discriminators) on a device without values."""
    net = networks.set_precision(copy.deepcopy(network()), torch.bfloat16).to('meta')
    parts = create_classifier(32, 64, 0, channel_mult=[1, 1, 1]), create_classifier(8, 64, 0, in_channels=64,
                                                                                   out_channels=1)
    log_ratio = LogRatio(*(set_precision(part.eval().requires_grad_(False), torch.bfloat16).to('meta')
                           for part in parts))
    return net, DiscriminatorGuidance(log_ratio, 2.0, 1.0, boosting=True)


@pytest.mark.parametrize(('sampler', 'guided', 'options'), SAMPLERS, ids=SAMPLER_NAMES)
def test_samplers(loaded, sampler, guided, options):
    """One transfer to the device, of the schedule, before the first step; none back."""
    net, guidance = loaded
    with Transfers() as transfers:
        images = sampler(net, torch.empty(2, 3, 32, 32, device='meta'), num_steps=2,
                         guidance=guidance if guided else None, randn_like=torch.zeros_like, **options)
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float64
    assert transfers.count == {('cpu', 'meta'): 1}


@pytest.mark.parametrize('sampler, options, more', COMPOSED)
def test_composed_samplers(loaded, sampler, options, more):
    """One transfer per stretch of a path; an interval of guidance is decided on the host."""
    net, _ = loaded
    denoise = Autoguidance(net, 2, GuidanceInterval(0.3, 10))(net)
    with Transfers() as transfers:
        images = sampler(denoise, torch.empty(2, 3, 32, 32, device='meta'), levels=edm_levels(net, 2),
                         randn_like=torch.zeros_like, **options)
    assert images.shape == (2, 3, 32, 32) and transfers.count == {('cpu', 'meta'): 1 + more}


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.filterwarnings('ignore:Synchronization debug mode')
@pytest.mark.parametrize(('sampler', 'guided', 'options'), SAMPLERS, ids=SAMPLER_NAMES)
def test_samplers_on_cuda(sampler, guided, options):
    """Checked by torch itself, including what depends on the device."""
    net = networks.load_network(demo.DEMO_SCORE, 'cuda', torch.bfloat16)
    log_ratio = networks.load_log_ratio(net, dtype=torch.bfloat16, device='cuda')
    guidance = DiscriminatorGuidance(log_ratio, 2.0, 1.0, boosting=True) if guided else None
    latents = torch.randn(2, 3, 32, 32, device='cuda')
    sampler(net, latents, num_steps=2, guidance=guidance, randn_like=torch.randn_like, **options)  # libraries start
    try:
        torch.cuda.set_sync_debug_mode('error')
        sampler(net, latents, num_steps=6, guidance=guidance, randn_like=torch.randn_like, **options)
    finally:
        torch.cuda.set_sync_debug_mode('default')


def score_training():
    """(a score network, its loss, labels)."""
    net = networks.construct('EDMPrecond', SMALL | dict(label_dim=10)).to('meta')
    return net, score_step(net, EDMLoss(), xflip=True, augment=AugmentPipe(0.12)), torch.empty(4, dtype=torch.int64)


def discriminator_training():
    """(a discriminator, its loss, labels)."""
    extractor = load_classifier(str(demo.DEMO_CLASSIFIER), 32, 'cpu').to('meta')
    net = load_discriminator(None, 'cpu', True, channel=extractor.feature_channels).to('meta')
    loss = DiscriminatorLoss(net, functools.partial(extractor, feature=True), VPSDE(), xflip=True)
    return net, loss, torch.empty(4, 2, dtype=torch.int64)


@pytest.mark.parametrize('kind', [score_training, discriminator_training])
def test_training_steps(monkeypatch, kind):
    """Only the batch goes to the device, and nothing comes back."""
    monkeypatch.setattr(randomness, 'step_generator', lambda *args, device: None)
    net, loss, labels = kind()
    trainer = Trainer(TrainRun(
        outdir='unused', config={}, module=net, step_loss=loss, batch_size=4, total_nimg=8, lr=lambda nimg: 1e-3,
        batches=lambda step, rows: (torch.empty(4, 3, 32, 32, device='meta'), labels.to('meta')), ema=Ema(net, 1000),
        optimizer=lambda parameters: torch.optim.Adam(parameters, foreach=True), max_grad_norm=1.0), 4)
    trainer.train_step()  # makes constants
    with Transfers() as transfers:
        trainer.train_step()
    assert transfers.count == {('cpu', 'meta'): 1}  # the labels


class Questions(TorchDispatchMode):
    """Counts what makes the host wait for values of a tensor: copies back (`cpu` is one here too), masks, numbers."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten, name = torch.ops.aten, func.overloadpacket
        masked = name in (aten.index, aten.index_put, aten.index_put_) and any(
            x.dtype == torch.bool for x in tensors(args[1]))
        self.count += masked or name in (aten.nonzero, aten._local_scalar_dense, aten.equal)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('name', ['dmcmc', 'reflected'])
def test_adaptive_steps_ask_once(monkeypatch, name):
    """For the errors of a step, and three times for the first step's size; guidance asks for nothing more."""
    steps, questions, cpu = [], Questions(), torch.Tensor.cpu

    def counted(x):
        questions.count += 1
        return cpu(x)

    net = MixtureNet(GaussianMixture([[0.2, 0.3], [0.7, 0.6]], stds=0.2))
    net.sigma_min, net.sigma_max = 0.01, 5.0
    guided = DiscriminatorGuidance(lambda x, sigma, labels=None: x.flatten(1).sum(1), 1.0, 1.0, time_min=0)(net)
    monkeypatch.setattr(integrators if name == 'dmcmc' else reflected, 'rk45', lambda *args, **own: rk45(
        *args, **own | dict(on_step=lambda done, y: steps.append(done))))
    monkeypatch.setattr(torch.Tensor, 'cpu', counted)
    x = torch.randn([3, 2, 1, 1], dtype=torch.float64)
    with questions:
        if name == 'dmcmc':
            integrators.rk45_flow(guided, x, torch.tensor([0.5, 1.0, 4.0]), sigma_min=0.01, rtol=1e-3, atol=1e-3)
        else:
            reflected.reflected_ode(guided, x, rtol=0.1, atol=0.1)
    assert len(steps) > 4 and questions.count == len(steps) + 3


def test_values_cannot_be_asked_for():
    """The tests above rely on this."""
    x = torch.ones(3, device='meta')
    for ask in (lambda: x[0].item(), lambda: bool((x > 0).any()), lambda: x.cpu(), lambda: x[x > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask()
