"""sampling/restart.py against the published sampler and in closed form.

Goldens: tests/goldens/restart/restart.npz, chains of network calls whose levels within restarts are float32, atol 2e-4.
"""

import json

import pytest
import torch
from goldens import load
from sampler_goldens import CountedNet, network

from diffusion.mixtures import GaussianMixture, MixtureNet
from sampling.denoiser import Denoiser
from sampling.edm import edm_sampler
from sampling.levels import edm_levels
from sampling.restart import PRESETS, Interval, Restarts, parse_restarts, restart_path, restart_sampler, walk
from torch_utils.rng import StackedRandomGenerator

CHURN = ('S_min', 'S_max', 'S_noise')
SPREAD = 0.5
NORMAL = MixtureNet(GaussianMixture([[0.3, -0.2]], stds=SPREAD))


def from_list(noise):
    """randn_like that gives the rows of `noise` one after the other."""
    rows = iter(torch.as_tensor(noise))
    return lambda x: next(rows).to(x.dtype)


@pytest.mark.parametrize('name', ['cifar_default', 'two_intervals_cond', 'no_gamma'])
def test_golden(name):
    arrays = load('restart/restart.npz')
    case = json.loads(str(arrays['cases']))[name]
    net = CountedNet(network(case['network']))
    labels = torch.as_tensor(load('restart/guidance.npz')['class_labels']) if net.label_dim else None
    levels = edm_levels(net, case['num_steps'], **{key: case[key] for key in CHURN})
    restarts = parse_restarts(f'{case["num_steps"]}; {case["restart_info"]}', gamma=case['restart_gamma'])
    images = restart_sampler(net, torch.as_tensor(arrays['latents']), labels, levels=levels, restarts=restarts,
                             randn_like=from_list(arrays[f'{name}_noise']))
    torch.testing.assert_close(torch.stack([sigma.max() for sigma in net.sigma]),
                               torch.as_tensor(arrays[f'{name}_net_sigma']), rtol=1e-6, atol=0)
    assert len(net.x) == case['nfe'] == restarts.nfe()
    torch.testing.assert_close(images, torch.as_tensor(arrays[name]), rtol=0, atol=2e-4)


@pytest.mark.parametrize('text', [
    '18; [3,2,0.06,0.30],[4,1,5,20]', '18 [3,2,0.06,0.30], [4,1,5,20]',
    '18; {"0": [3, 2, 0.06, 0.30], "1": [4, 1, 5, 20]}', '18 {"0": [3, 2, 0.06, 0.30], "1": [4, 1, 5.0, 20.0]}'])
def test_published_strings(text):
    assert parse_restarts(text) == Restarts((Interval(3, 2, 0.06, 0.3), Interval(4, 1, 5.0, 20.0)), 18)


def test_a_string_without_steps_leaves_them_open():
    assert parse_restarts('{"0": [3, 2, 0.06, 0.30]}').num_steps is None


@pytest.mark.parametrize('text', [
    '', '18', '18; 3,2,0.06,0.3', '18; [3,2,0.06]', '18; [3,2,0.06,0.3,1]', '18; [3.5,2,0.06,0.3]',
    '18; [1,2,0.06,0.3]', '18; [3,0,0.06,0.3]', '18; [3,2,0.3,0.06]', '18; [3,2,-1,0.06]', '18; [3,2,0.06,"x"]',
    '-3; [3,2,0.06,0.3]', '18; [3,2,0.06,Infinity]', '18; [3,2,NaN,1]'])
def test_other_strings_are_refused(text):
    with pytest.raises(ValueError):
        parse_restarts(text)


@pytest.mark.parametrize('name', PRESETS)
def test_presets_cost_what_they_are_called(name):
    """The names carry the published NFE; every preset is a path of the levels it was published for."""
    preset = PRESETS[name]
    restarts = parse_restarts(preset.text)
    assert restarts.nfe() == int(name.rpartition('-')[2])
    path = restart_path(NORMAL, edm_levels(NORMAL, restarts.num_steps, **vars(preset.churn)), restarts)
    steps = sum(stretch.levels.num_steps for stretch in path)
    assert 2 * steps - 1 == restarts.nfe()


@pytest.mark.parametrize('levels, text, words', [
    (dict(S_noise=0), '[3,2,0.06,0.30]', 'S_noise'), (dict(num_steps=4), '[3,2,0.5,1],[3,1,0.6,2]', 'both restart'),
    (dict(num_steps=4), '[3,2,0.1,0.2],[3,1,0.0001,0.3]', 'use more steps'), ({}, '[3,2,70,75]', 'use more steps')])
def test_impossible_restarts_are_refused(levels, text, words):
    with pytest.raises(ValueError, match=words):
        restart_path(NORMAL, edm_levels(NORMAL, **levels), parse_restarts(text))


def test_noise_without_generators_is_refused():
    with pytest.raises(ValueError, match='randn_like'):
        restart_sampler(NORMAL, torch.zeros([1, 2, 1, 1]))


def test_without_intervals_it_is_edm():
    x = torch.randn([3, 2, 1, 1])
    assert torch.equal(restart_sampler(NORMAL, x, restarts=Restarts(())), edm_sampler(NORMAL, x))


def test_a_sample_depends_on_its_own_seed_only():
    """And the callback is called after every step."""
    def draw(seeds, **kwargs):
        rnd = StackedRandomGenerator('cpu', seeds)
        return restart_sampler(NORMAL, rnd.randn([len(seeds), 2, 1, 1]), randn_like=rnd.randn_like, **kwargs)

    steps = []
    whole = draw([1, 2, 3], callback=steps.append)
    assert torch.equal(draw([2]), whole[1:2])
    assert [step.index for step in steps] == list(range(22)) and {step.num_steps for step in steps} == {22}
    assert torch.equal(steps[-1].x, whole)


def one_restart(x, gamma=0.0, num_levels=40, seed=0):
    """(x after one walk from the level nearest to 0.5 up to 3 and back, that level)."""
    levels = edm_levels(NORMAL, 18)
    path = restart_path(NORMAL, levels, Restarts((Interval(num_levels, 1, 0.5, 3.0),), gamma=gamma))
    generator = torch.Generator().manual_seed(seed)
    low = path[1].levels.sigmas[-1].item()
    return walk(Denoiser(NORMAL), x(low, generator), None, path[1:2], randn_like=lambda x: torch.randn(
        x.shape, dtype=x.dtype, generator=generator)), low


@pytest.mark.parametrize('gamma', [0.0, 0.05])
def test_a_restart_keeps_the_marginal(gamma):
    """Data N(m, s^2) plus noise t has mean m and variance s^2 + t^2, before a restart and after it (20,000 draws)."""
    def exact(low, generator):
        draws = torch.randn([20_000, 2, 1, 1], dtype=torch.float64, generator=generator)
        return torch.tensor([0.3, -0.2])[:, None, None] + (SPREAD ** 2 + low ** 2) ** 0.5 * draws

    x, low = one_restart(exact, gamma)
    assert x.std(0).flatten().tolist() == pytest.approx([(SPREAD ** 2 + low ** 2) ** 0.5] * 2, rel=0.015)
    assert x.mean(0).flatten().tolist() == pytest.approx([0.3, -0.2], abs=0.02)


def test_a_restart_contracts_what_is_wrong():
    """Two starts that differ by d differ afterwards by d sqrt((s^2 + t^2) / (s^2 + T^2)), with the same noise."""
    def start(shift):
        return lambda low, generator: torch.full([2, 2, 1, 1], shift, dtype=torch.float64)

    (x, low), (y, _) = one_restart(start(0.0)), one_restart(start(1.0))
    expected = ((SPREAD ** 2 + low ** 2) / (SPREAD ** 2 + 9)) ** 0.5
    torch.testing.assert_close(y - x, torch.full_like(x, expected), rtol=2e-3, atol=0)
