"""The end of a training script: exit codes, the last line, mistakes in one line with their option."""

from types import SimpleNamespace

import click
import pytest

from commands import fit
from training.run import NonFiniteLoss, TrainResult

RUN = SimpleNamespace(outdir='runs/x', batch_size=4, config={})


def ended(monkeypatch, outcome, **kwargs):
    """The exit code of `fit` if `train` returns or raises `outcome`."""
    def train(run):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(fit, 'train', train)
    monkeypatch.setattr(fit, 'command_line', lambda: 'python train.py')
    with pytest.raises(SystemExit) as end:
        fit.fit(RUN, **kwargs)
    return end.value.code


@pytest.mark.parametrize('reason, code, more', [
    ('finished', 0, ''), ('stopped', 0, ''), ('time', 0, '; the same command resumes'),
    ('signal', 143, '; the same command resumes')])
def test_how_a_run_ends(monkeypatch, capsys, reason, code, more):
    assert ended(monkeypatch, TrainResult(2500, reason, dict(best=3))) == code
    assert capsys.readouterr().out == f'runs/x: 2.5 kimg, {reason}{more}\n'
    assert ended(monkeypatch, TrainResult(2500, reason, dict(best=3)),
                 summary=lambda result: f'best {result.memory["best"]}') == code
    assert capsys.readouterr().out == f'runs/x: best 3{more}\n'


@pytest.mark.parametrize('error, message', [
    (NonFiniteLoss('the loss is not finite'), '--lr: the loss is not finite'),
    (ValueError('another run is writing'), '--savedir: another run is writing'),
    (OSError(28, 'No space left', 'x'), "--savedir: [Errno 28] No space left: 'x'")])
def test_mistakes_name_their_option(monkeypatch, error, message):
    with pytest.raises(click.ClickException) as refused:
        ended(monkeypatch, error, folder='--savedir')
    assert refused.value.message == message


def test_a_batch_that_cannot_be_divided(monkeypatch):
    monkeypatch.setattr(fit.dist, 'get_world_size', lambda: 3)
    with pytest.raises(click.ClickException) as refused:
        ended(monkeypatch, TrainResult(0, 'finished', {}))
    assert refused.value.message == '--batch: 4 images cannot be divided among 3 processes; use a multiple of 3'


def test_the_configuration_is_printed(capsys):
    fit.show_config(dict(lr=1.0), dry_run=False)
    with pytest.raises(SystemExit) as end:
        fit.show_config(dict(lr=1.0), dry_run=True)
    assert end.value.code == 0 and capsys.readouterr().out == 2 * '{\n  "lr": 1.0\n}\n'
