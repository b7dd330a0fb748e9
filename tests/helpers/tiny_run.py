"""A training run of milliseconds for the tests of the loop; also a program, for tests with several processes."""

import sys
from pathlib import Path

import torch

from torch_utils import distributed as dist
from training.data import BatchLoader
from training.ema import Ema
from training.loop import train
from training.run import TrainRun


class TinyNet(torch.nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Dropout(dropout), torch.nn.Conv2d(4, 3, 1))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer('calls', torch.zeros([]))

    def forward(self, x):
        return self.layers(x)


def tiny_run(outdir, dropout=0.0, total=400, **kwargs) -> TrainRun:
    """20 steps of 20 images on 70 images; `kwargs` replaces fields."""
    net = TinyNet(dropout)
    images = torch.randint(0, 256, [70, 3, 8, 8], dtype=torch.uint8, generator=torch.Generator().manual_seed(2))

    def step_loss(x, labels, rng):
        sigma = rng.rand([len(x), 1, 1, 1])
        loss = (net(x + sigma * rng.randn_like(x)) - x).square().mean([1, 2, 3])
        bright = x.mean([1, 2, 3]) > 0
        return loss, dict(label=labels, bright_loss=((loss * bright).sum(), bright.sum()))

    settings = dict(outdir=outdir, config=dict(total=total, lr=1e-2), module=net, step_loss=step_loss,
                    batches=BatchLoader(images, torch.arange(70), 20, 0, 'cpu'), batch_size=20, total_nimg=total,
                    lr=lambda nimg: 1e-2, ema=Ema(net, 100), tick_nimg=100, snap_nimg=200, seed=5)
    return TrainRun(**(settings | kwargs))


if __name__ == '__main__':
    dist.init()
    train(tiny_run(Path(sys.argv[1])))
    dist.shutdown()
