"""Runs the published DiffRS loop on given weights, for benchmarks.bench_diffrs; a process of its own, as names clash.

    python benchmarks/reference_diffrs.py EDM_CHECKOUT DIFFRS_CHECKOUT FOLDER

FOLDER holds job.json and states.pt (written by bench_diffrs), and gets result.json. TensorFlow, which the published
script needs only to write files, is replaced by an empty module; nothing is written while the clock runs.
"""

import json
import os
import sys
import time
import types
from pathlib import Path

import torch


class Shelf(dict):
    """Stands in for `pickle` in the published script: keeps what is dumped, by file name."""

    def dump(self, value, file):
        self[file.name] = value

    def load(self, file):
        return self[file.name]


def ignore(*args, **kwargs):
    """Does nothing."""


def build(job, states):
    """(score network, log-ratio's discriminator, published module) from the two checkouts on sys.path."""
    for name in ('tensorflow', 'torchvision', 'torchvision.utils'):
        sys.modules[name] = types.ModuleType(name)
    sys.modules['torchvision.utils'].make_grid = sys.modules['torchvision.utils'].save_image = ignore
    sys.modules['tensorflow'].io = types.SimpleNamespace(gfile=types.SimpleNamespace(
        GFile=lambda path, mode: open(os.devnull, mode)))
    import generate_diffrs
    from guided_diffusion.script_util import create_classifier
    from training import networks

    net = getattr(networks, job['network']['constructor'])(**job['network']['kwargs'])
    net.load_state_dict(states['network'])
    common = dict(classifier_use_fp16=False, classifier_use_scale_shift_norm=True, classifier_resblock_updown=True,
                  classifier_pool='attention')
    parts = []
    for name in ('classifier', 'discriminator'):
        part = create_classifier(**common, **job[name])
        part.load_state_dict(states[name])
        parts.append(part.to(job['device']).eval())
    classifier, discriminator = parts

    def evaluate(x, timesteps=None, condition=None):
        with torch.no_grad():
            features = classifier(x, timesteps=timesteps, feature=True)
            return discriminator(features, timesteps, sigmoid=False, condition=condition).view(-1)

    return net.to(job['device']).eval().requires_grad_(False), evaluate, generate_diffrs


@torch.no_grad()
def main():
    """Draw job['images'] images and write how long the main loop took, and what it spent."""
    edm, published, folder = sys.argv[1:]
    sys.path[0:0] = [published, edm]
    job = json.loads((Path(folder) / 'job.json').read_text())
    torch.set_num_threads(job['threads'])
    states = torch.load(Path(folder) / 'states.pt', weights_only=True)
    net, evaluate, module = build(job, states)

    names = {name: str(Path(folder) / f'{name}.pickle') for name in ('adaptive', 'adaptive2', 'nfe_analysis')}
    module.pickle = Shelf({names['adaptive']: list(states['log_ratio']), names['adaptive2']: list(states['increments']),
                           names['nfe_analysis']: dict(dict_nfe={}, total_nfe=0, total_samples=0)})
    for name in names.values():
        Path(name).touch()
    module.tqdm = types.SimpleNamespace
    module.np.savez_compressed = ignore
    latents = torch.randn([job['batch'], net.img_channels, net.img_resolution, net.img_resolution],
                          device=job['device'])
    started = time.perf_counter()
    module.diffrs_sampler(0, 0.01, 1.0, module.classifier_lib.vpsde(), job['rej_percentile'], evaluate, net, latents,
                          outdir=folder, backsteps=1, max_backsteps=18, mode='debug', batch_size=job['batch'],
                          num_samples=job['images'], adaptive_pickle=names['adaptive'],
                          adaptive_pickle2=names['adaptive2'])
    seconds = time.perf_counter() - started
    done = module.pickle[names['nfe_analysis']]['tot_per_sample_nfe']
    (Path(folder) / 'result.json').write_text(json.dumps(dict(
        seconds=seconds, images=len(done), nfe=sum(done) / len(done))))


if __name__ == '__main__':
    main()
