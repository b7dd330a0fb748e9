"""Runs the published code on given weights on request, in its own process, since module names clash.

    python benchmarks/reference_worker.py JOB.json CHECKOUT...

Started by benchmarks.reference_client.Reference. JOB.json names the device, the threads and, for each network, its file
and the arguments that build it. Each line of the input is {"work": name, "arguments": {...}}; once the work is done,
the answer is a line of JSON on the output. TensorFlow and torchvision, which the published scripts need only to write
files, are replaced by empty modules, and nothing is written.
"""

import copy
import functools
import importlib.machinery
import inspect
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

# How the published code builds its classifiers; the job gives widths and depths.
CLASSIFIER = dict(classifier_use_fp16=False, classifier_attention_resolutions='32,16,8',
                  classifier_use_scale_shift_norm=True, classifier_resblock_updown=True, classifier_pool='attention')


def ignore(*args, **kwargs):
    """Does nothing."""


def replace_file_libraries():
    """Put empty modules where the published scripts expect TensorFlow and torchvision."""
    for name in ('tensorflow', 'torchvision', 'torchvision.utils'):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)  # torch looks whether they exist
    sys.modules['torchvision.utils'].make_grid = sys.modules['torchvision.utils'].save_image = ignore
    sys.modules['tensorflow'].io = types.SimpleNamespace(gfile=types.SimpleNamespace(
        GFile=lambda path, mode: open(os.devnull, mode)))


def restore_sqrtm():
    """Restore the `disp` of scipy's sqrtm, which the published code expects."""
    import scipy.linalg

    sqrtm = scipy.linalg.sqrtm
    if 'disp' not in inspect.signature(sqrtm).parameters:
        scipy.linalg.sqrtm = lambda matrix, disp=True: sqrtm(matrix) if disp else (sqrtm(matrix), 0.0)


def restore_indexing(device: str):
    """Restore CUDA tensors as indices of CPU tensors, which the published code expects."""
    if device == 'cpu':
        return

    def with_index_at_hand(access):
        def function(tensor, index, *value):
            if isinstance(index, torch.Tensor) and index.is_cuda and not tensor.is_cuda:
                index = index.cpu()
            return access(tensor, index, *value)
        return function

    for name in ('__getitem__', '__setitem__'):
        setattr(torch.Tensor, name, with_index_at_hand(getattr(torch.Tensor, name)))


class WarmedUp(Exception):
    """The published warm-up has ended."""


class Shelf(dict):
    """Replaces `pickle` in the published script: keeps dumped objects by file name."""

    stop_at: str | None = None  # ends the run once this file is dumped

    def dump(self, value, file):
        self[file.name] = value
        if file.name == self.stop_at:
            raise WarmedUp

    def load(self, file):
        return self[file.name]


class Counted:
    """A network that counts its rows."""

    def __init__(self, net):
        self.net, self.rows = net, 0

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, x, *args, **kwargs):
        self.rows += len(x)
        return self.net(x, *args, **kwargs)


class Published:
    """The published networks with the job's weights, and the work with them; each method answers with a dict."""

    def __init__(self, job: dict, path: Path):
        self.job, self.folder, self.device = job, path.parent, job['device']
        self.noises: dict[int, torch.Tensor] = {}

    @functools.cached_property
    def net(self):
        """EDM's score network as in its pickles: in evaluation mode, frozen."""
        from training import networks

        file = self.job['networks']['score']
        net = getattr(networks, file['constructor'])(**file['kwargs'])
        net.load_state_dict(safetensors.torch.load_file(file['path']))
        return net.to(self.device).eval().requires_grad_(False)

    def evaluate(self, sigmoid: bool, grad: bool):
        """DG's and DiffRS's function of (inputs, timesteps, condition); its parameters are not frozen, as published."""
        classifier, discriminator = self.classifiers

        def evaluate(x, timesteps=None, condition=None):
            with torch.set_grad_enabled(grad):
                features = classifier(x, timesteps=timesteps, feature=True)
                return discriminator(features, timesteps, sigmoid=sigmoid, condition=condition).view(-1)
        return evaluate

    @functools.cached_property
    def classifiers(self):
        from guided_diffusion.script_util import create_classifier

        parts = []
        for name in ('classifier', 'discriminator'):
            file = self.job['networks'][name]
            part = create_classifier(**CLASSIFIER | {k: v for k, v in file['kwargs'].items() if k != 'num_classes'})
            part.load_state_dict(safetensors.torch.load_file(file['path']))
            parts.append(part.to(self.device).eval())
        return parts

    def noise(self, batch: int):
        if batch not in self.noises:  # drawing and uploading them takes as long as some calls on a GPU
            shape = [batch, self.net.img_channels, self.net.img_resolution, self.net.img_resolution]
            self.noises[batch] = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        return self.noises[batch]

    @torch.no_grad()
    def score(self, batch: int, calls: int) -> dict:
        """Denoise a batch of standard normal images at noise level 1."""
        x, sigma = self.noise(batch), torch.ones([batch], device=self.device)
        for _ in range(calls):
            denoised = self.net(x, sigma)
        return dict(images=batch * calls, mean=denoised.abs().mean().item())

    def log_ratio(self, batch: int, calls: int) -> dict:
        """The log-ratio of such a batch as in DiffRS: without a graph."""
        import classifier_lib

        evaluate, sde = self.evaluate(sigmoid=True, grad=False), classifier_lib.vpsde()
        mean, tau = sde.transform_unnormalized_wve_to_normalized_vp(torch.ones([batch], device=self.device))
        x = mean[:, None, None, None] * self.noise(batch)
        for _ in range(calls):
            values = classifier_lib.get_log_ratio(evaluate, x, tau, None)
        return dict(images=batch * calls, mean=values.abs().mean().item())

    def gradient(self, batch: int, calls: int) -> dict:
        """DG's correction (-1 times the gradient, at noise level 1) with the log-ratio."""
        import classifier_lib

        evaluate, sde = self.evaluate(sigmoid=True, grad=True), classifier_lib.vpsde()
        x, sigma = self.noise(batch), torch.ones([batch], device=self.device)
        for _ in range(calls):
            gradient, _ = classifier_lib.get_grad_log_ratio(
                evaluate, sde, x, sigma, self.net.img_resolution, 0.01, 1.0, None, log=True)
        return dict(images=batch * calls, mean=gradient.abs().mean().item())

    @torch.no_grad()
    def dg(self, batch: int, steps: int) -> dict:
        """One batch of DG's sampler at its default weights."""
        import generate

        images = generate.edm_sampler(
            0, 0.01, 1.0, generate.classifier_lib.vpsde(), 2.0, 0.0, self.evaluate(sigmoid=True, grad=True), self.net,
            self.noise(batch), num_steps=steps)
        return dict(images=batch, mean=images.abs().mean().item())

    @functools.cached_property
    def discriminator_training(self):
        """DG's discriminator and optimizer as in its train.py."""
        _, discriminator = self.classifiers
        return discriminator.train(), torch.optim.Adam(discriminator.parameters(), lr=3e-4, weight_decay=1e-7)

    def train_discriminator(self, batch: int) -> dict:
        """One of DG's training steps, on noise: the features in float32, binary cross-entropy, Adam."""
        import classifier_lib

        (classifier, _), (discriminator, optimizer) = self.classifiers, self.discriminator_training
        optimizer.zero_grad()
        sde, images = classifier_lib.vpsde(), self.noise(batch)
        t, _ = sde.get_diffusion_time(batch, images.device)
        mean, std = (value[:, None, None, None] for value in sde.marginal_prob(t))
        with torch.no_grad():
            features = classifier(mean * images + std * torch.randn_like(images), timesteps=t, feature=True)
        labels = (torch.arange(batch, device=images.device) % 2).float()
        loss = torch.nn.functional.binary_cross_entropy(discriminator(features, t, sigmoid=True).view(-1), labels)
        loss.backward()
        optimizer.step()
        return dict(images=batch, mean=loss.item())

    @functools.cached_property
    def score_training(self):
        """EDM's network in training, its loss and optimizer as in its train.py."""
        from training import loss

        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        average = copy.deepcopy(self.net)
        net = self.net.train().requires_grad_(True)
        return net, average, loss.EDMLoss(), torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)

    def train_score(self, batch: int) -> dict:
        """One of EDM's training steps in float32, on noise, without augmentation, with the average of the weights."""
        net, average, loss_of, optimizer = self.score_training
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(net=net, images=self.noise(batch), labels=torch.zeros([batch, 0], device=self.device))
        loss.sum().mul(1 / batch).backward()
        for parameter in net.parameters():
            torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        optimizer.step()
        for mean, parameter in zip(average.parameters(), net.parameters()):
            mean.lerp_(parameter.detach(), 0.001)
        return dict(images=batch, mean=loss.mean().item())

    def read_moments(self, path: str) -> dict:
        """Read the moments in an npz file for `frechet`, which is timed."""
        restore_sqrtm()
        with np.load(path, allow_pickle=False) as file:
            self.moments = [file[name] for name in ('mu', 'sigma', 'mu_ref', 'sigma_ref')]
        return {}

    def frechet(self) -> dict:
        """The distance between the moments, by DG's script."""
        import fid_npzs

        return dict(distance=fid_npzs.calculate_fid_from_inception_stats(*self.moments))

    def diffrs_loop(self, batch: int, steps: int, shelf: Shelf, **options) -> int:
        """Run the published function, warm-up or main loop; returns the rows that the score network saw."""
        import generate_diffrs

        generate_diffrs.pickle, generate_diffrs.tqdm = shelf, types.SimpleNamespace
        generate_diffrs.np.savez_compressed = ignore
        net = Counted(self.net)
        with torch.no_grad():
            try:
                generate_diffrs.diffrs_sampler(
                    0, 0.01, 1.0, generate_diffrs.classifier_lib.vpsde(), discriminator=self.evaluate(False, False),
                    net=net, latents=self.noise(batch), num_steps=steps, outdir=str(self.folder), backsteps=1,
                    max_backsteps=18, batch_size=batch, **options)
            except WarmedUp:
                pass
        return net.rows

    def warmup(self, batch: int, steps: int) -> dict:
        """One round of DiffRS's warm-up."""
        shelf = Shelf()
        shelf.stop_at = str(self.folder / 'adaptive2.pickle')
        self.diffrs_loop(batch, steps, shelf, rej_percentile=0.75, adaptive_pickle='None', num_samples=0, iter_warmup=1)
        return dict(images=batch)

    def diffrs(self, batch: int, steps: int, images: int, rej_percentile: float, log_ratio: list) -> dict:
        """DiffRS's main loop until `images` images are finished, with thresholds from log_ratio [steps + 1, n]."""
        log_ratio = torch.tensor(log_ratio)
        names = {name: str(self.folder / f'{name}.pickle') for name in ('adaptive', 'increments', 'nfe_analysis')}
        for name in names.values():
            Path(name).touch()
        shelf = Shelf({names['adaptive']: list(log_ratio), names['nfe_analysis']: dict(dict_nfe={}, total_nfe=0),
                       names['increments']: list(torch.diff(log_ratio, dim=0, prepend=log_ratio[:1]))})
        rows = self.diffrs_loop(batch, steps, shelf, rej_percentile=rej_percentile, mode='debug',
                                num_samples=images - 1, adaptive_pickle=names['adaptive'],
                                adaptive_pickle2=names['increments'])
        nfe = shelf[names['nfe_analysis']]['tot_per_sample_nfe']
        return dict(rows=rows, images=len(nfe), nfe=sum(nfe) / len(nfe))


def main():
    """Answer requests until the input ends."""
    path, *checkouts = sys.argv[1:]
    sys.path[0:0] = checkouts
    replace_file_libraries()
    answers, sys.stdout = sys.stdout, sys.stderr  # the published code prints
    job = json.loads(Path(path).read_text())
    restore_indexing(job['device'])
    torch.set_num_threads(job['threads'])
    published = Published(job, Path(path))
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(published, request['work'])(**request['arguments'])
        if job['device'] != 'cpu':
            torch.cuda.synchronize()
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


if __name__ == '__main__':
    main()
