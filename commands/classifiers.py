"""The kinds of classifier that train_classifier.py knows: each one's network, loss and files."""

import functools

import torch

from diffusion.vpsde import VPSDE
from figures.calibration import calibration_curve
from figures.canvas import save
from metrics.feature_net import FeatureNet, save_feature_net
from networks.classifiers import new_classifier, time_convention
from networks.noise_level import NoiseLevelNet, save_noise_level
from torch_utils import checkpoint
from training.classifier import CleanClassifierLoss, NoisyClassifierLoss
from training.noise_level import NoiseLevelLoss, calibration

FILES = dict(adm=('classifier.safetensors', 'classifier.pt'), features=('features.safetensors',),
             noise_level=('noise_level.safetensors', 'calibration.png'))  # by model


def build(config: dict, data, classes: int, machine, held_out):
    """(fields of TrainRun that a kind of network decides, a function that writes its files). Raises ValueError."""
    builders = dict(adm=_build_adm, features=_build_features, noise_level=_build_noise_level)
    return builders[config['model']](config, data, classes, machine, held_out)


def _build_adm(config, data, classes, machine, held_out):
    """ADM's classifier at VP noise."""
    convention, sde = config['time_convention'], VPSDE()
    if convention == 'auto':
        convention = time_convention(data.resolution)
    kwargs = dict(image_size=data.resolution, in_channels=data.channels, out_channels=classes,
                  classifier_width=config['width'], classifier_depth=config['depth'],
                  classifier_attention_resolutions=config['attention'])
    net = new_classifier(kwargs, machine.dtype, machine.device)
    loss = NoisyClassifierLoss(net, sde, sde.t_cos if convention == 'cosine' else None, config['xflip'],
                               config['shift'])
    optimizer = functools.partial(torch.optim.AdamW, lr=0.0, weight_decay=config['weight_decay'], fused=True)
    described = dict(kind='classifier', width=config['width'], depth=config['depth'], channels=data.channels,
                     resolution=data.resolution, classes=classes, time=convention)

    def save(outdir, net, metadata):
        described_file, plain_file = FILES['adm']
        checkpoint.save_network(outdir / described_file, net, 'create_classifier', kwargs, metadata | described)
        checkpoint.save_state_dict(outdir / plain_file, net)

    return dict(module=net, step_loss=loss, optimizer=optimizer, max_grad_norm=1.0), save


def _build_features(config, data, classes, machine, held_out):
    """The network behind FD-CIFAR10."""
    net = FeatureNet(num_classes=classes, img_channels=data.channels, img_resolution=data.resolution)
    net.to(machine.device)

    def forward(x):
        with torch.autocast(machine.device.type, dtype=machine.dtype, enabled=machine.dtype != torch.float32):
            return net(x)

    loss = CleanClassifierLoss(forward, config['xflip'], config['shift'])
    optimizer = functools.partial(torch.optim.SGD, lr=0.0, momentum=0.9, nesterov=True,
                                  weight_decay=config['weight_decay'])
    return dict(module=net, step_loss=loss, optimizer=optimizer), lambda outdir, net, metadata: save_feature_net(
        outdir / FILES['features'][0], net, metadata)


def _build_noise_level(config, data, levels, machine, held_out):
    net = NoiseLevelNet(data.resolution, data.channels, config['sigma_min'], config['sigma_max'], levels)
    net.to(machine.device)

    def forward(x):
        with torch.autocast(machine.device.type, dtype=machine.dtype, enabled=machine.dtype != torch.float32):
            return net(x)

    def write(outdir, net, metadata):
        network_file, picture = FILES['noise_level']
        save_noise_level(outdir / network_file, net, metadata)
        if held_out is not None:
            save(calibration_curve(calibration(net, net.sigmas, held_out[0])), outdir / picture)

    optimizer = functools.partial(torch.optim.Adam, lr=0.0, weight_decay=config['weight_decay'], fused=True)
    loss = NoiseLevelLoss(forward, net.sigmas, config['xflip'], config['shift'])
    return dict(module=net, step_loss=loss, optimizer=optimizer), write
