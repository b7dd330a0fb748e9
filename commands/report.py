"""What a report page shows of the folders and files that it is given."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dnnlib.cli import blame
from dnnlib.files import resolve_path
from dnnlib.run_folder import read_options
from figures.report import Run, Training
from figures.results import read_summaries, short_names
from metrics.detectors import load_detector
from metrics.nearest import nearest_images
from metrics.sources import ImageSource, open_source
from torch_utils.device import select_device
from torch_utils.image_source import open_images
from torch_utils.images import image_grid
from torch_utils.stats import JsonLines

COLUMNS = 8  # of a grid
CLASSES, OF_CLASS = 10, 10  # rows and columns of a grid by class,
SEARCHED = 1000  # from this many samples
SAMPLES, NEIGHBOURS = 8, 6  # rows of a picture of neighbours, and images beside each sample


def read_inputs(inputs: Sequence[str], num: int) -> tuple[list[dict], list[Run], list[Training]]:
    """(Summaries of metrics, runs with a grid of `num` samples, training runs) from folders and JSON.

    Results without a folder, as those of calc_metrics.py gen, are runs without pictures.
    Raises ValueError and OSError for an input that is none of these.
    """
    summaries, runs, training = [], [], []
    paths = [resolve_path(path) for path in inputs]
    for name, path in zip(short_names(paths), paths, strict=True):
        if path.suffix == '.json':
            summaries += read_summaries(path)
        elif (path / 'stats.jsonl').is_file():
            training.append(Training(name, JsonLines(path / 'stats.jsonl').read(), read_options(path / 'options.json')))
        else:
            source = open_source(path)
            grid = image_grid(nhwc(first_images(source, num)), min(COLUMNS, num, len(source)))
            runs.append(Run(name, read_options(path / 'options.json'), grid, class_grid(path, source)))
    names = {run.name for run in runs}
    for result in (result for summary in summaries for result in summary['results']):
        if result['name'] not in names and result.get('options'):
            runs.append(Run(result['name'], result['options']))
            names.add(result['name'])
    return summaries, runs, training


def add_neighbours(runs: list[Run], inputs: Sequence[str], data: str) -> None:
    """Give each run with samples a picture of them beside the images of `data` nearest to them, a row each."""
    paths = [resolve_path(path) for path in inputs]
    folders = {name: path for name, path in zip(short_names(paths), paths, strict=True)}
    shown = [run for run in runs if run.grid is not None]
    if not shown:
        return
    with blame('--neighbours'):
        samples = [first_images(open_source(folders[run.name]), SAMPLES) for run in shown]
        for run, own in zip(shown, samples, strict=True):
            if own.shape[1:] != samples[0].shape[1:]:
                raise ValueError(f'{shown[0].name} has images of shape {[*samples[0].shape[1:]]}, {run.name} of '
                                 f'{[*own.shape[1:]]}; make a page for each')
        detector = load_detector('cifar10', select_device())
        found = nearest_images(torch.cat(samples), open_source(data), detector, NEIGHBOURS)
    images = iter(found.images)
    for run, own in zip(shown, samples, strict=True):
        rows = [torch.cat([sample[None], torch.zeros_like(sample)[None], next(images)]) for sample in own]
        run.neighbours = image_grid(nhwc(torch.cat(rows)), columns=2 + NEIGHBOURS)


def first_images(source: ImageSource, count: int) -> torch.Tensor:
    """At most `count` images, uint8 [n, 3, H, W]."""
    count = min(count, len(source))
    return next(source.batches(0, count, count))


def class_grid(path: Path, source: ImageSource) -> np.ndarray | None:
    """A grid of samples with a row for each of the first classes; None for samples of one class or of none."""
    labels = open_images(path).labels.indices
    if labels is None or len(np.unique(labels)) < 2:
        return None
    images = first_images(source, SEARCHED)
    classes, counts = np.unique(labels[:len(images)], return_counts=True)
    columns = min(OF_CLASS, counts[:CLASSES].max())
    rows = np.zeros([len(classes[:CLASSES]), columns, *images.shape[1:]], np.uint8)  # [K, n, C, H, W]
    for row, index in zip(rows, classes):
        own = images[torch.from_numpy(labels[:len(images)] == index)][:columns]
        row[:len(own)] = own
    return image_grid(nhwc(torch.from_numpy(rows).flatten(0, 1)), columns)


def nhwc(images: torch.Tensor) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W, C]."""
    return images.permute(0, 2, 3, 1).numpy()
