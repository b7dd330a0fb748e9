"""The report page in a real browser: whole, quiet, without the network; on a telephone, on a desk, dark, printed."""

import numpy as np
import pytest
from browser import CHROMIUM, browser_page

from figures.report import Run, Training, report_page
from figures.varying import as_numbers, varying_settings

OVERFLOWING = '''[...document.querySelectorAll("body *")].filter(each => !each.closest(".scroll")
    && each.getBoundingClientRect().right > innerWidth + 0.5).map(each => each.outerHTML.slice(0, 60))'''
UNSEEN = '[...document.images].filter(each => !each.complete || !each.naturalWidth).map(each => each.alt)'


def options(weight: float, nfe: float) -> dict:
    row = dict(mean=nfe, median=nfe, q05=nfe, q95=nfe + 9)
    level = dict(level=1, tests=10, acceptance=0.5, rejections=5)
    return dict(dg_weight_1st_order=weight, seeds='0-31', network='/a/' + 'long/' * 40 + 'net.pkl', sigmas=[1.5] * 60,
                command='python generate.py --outdir=' + 'x' * 90 + ' --seeds=0-31',
                report=dict(images=32, nfe=row, discriminator_calls=row, wall_sec=3.0, timed_images=32, levels=[level],
                            samples_at_cap=0))


def whole_page() -> str:
    """All that a page can hold, with long names and many runs."""
    rng = np.random.default_rng(0)
    names = [f'a_rather_long_name_of_a_run_{index}' for index in range(5)]
    made = [options(float(index), 35.0 + index) for index in range(5)]
    metrics = [{f'm{place}': dict(label=f'metric {place} (CIFAR10)', scale=1, value=2.0 + index, error=0.1,
                                  deviation=None) for place in range(9)} for index in range(5)]
    difference = dict(name=names[1], against=names[0], label='FD-CIFAR10', scale=1, difference=1.0, error=0.1,
                      relative=0.5, paired=True, verdict='higher')
    summary = dict(detector='cifar10', fingerprint='abcd', distance='FD-CIFAR10', ref='r' * 80, ref_count=50000,
                   num_samples=32, blocks=1, differences=[difference],
                   results=[dict(name=name, metrics=each, options=option)
                            for name, each, option in zip(names, metrics, made, strict=True)])
    pictures = [rng.integers(256, size=size, dtype=np.uint8) for size in ((138, 274, 3), (342, 342, 3), (274, 274, 3))]
    levels = [dict(sigma_from=10.0**k, sigma_to=10.0**(k + 1), accuracy=0.7, auc=0.8, ece=0.05) for k in range(-2, 2)]
    rows = [dict(sigma=10.0**k, low=10.0**k / 2, median=10.0**k, high=10.0**k * 2) for k in range(-2, 2)]
    lines = [dict(nimg=1000 * epoch, epoch=epoch, loss=1 / epoch, accuracy=0.5, held_out_levels=levels,
                  calibration=rows) for epoch in (1, 2)]
    runs = [Run(name, each, *pictures) for name, each in zip(names, made, strict=True)]
    return report_page('A long title of an experiment, <about> much & more', [summary], runs,
                       [Training('training', lines, dict(command='python train.py', lr=1.0))])


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium')
def test_in_a_browser(tmp_path):
    (tmp_path / 'page.html').write_text(whole_page())
    with browser_page() as page:
        for width, scheme in ((390, 'light'), (1400, 'dark')):
            page.open(tmp_path / 'page.html', width, scheme)
            page.evaluate('document.querySelectorAll("details").forEach(each => each.open = true)')
            assert page.evaluate(OVERFLOWING) == [] and page.evaluate(UNSEEN) == []
            assert page.evaluate('[innerWidth, document.documentElement.scrollWidth]') == [width, width]
            assert page.evaluate('matchMedia("(prefers-color-scheme: dark)").matches') == (scheme == 'dark')
        assert page.evaluate('document.images.length') == 2 + 15 + 4
        assert page.evaluate('document.querySelector("pre").textContent').endswith(' \\\n    --seeds=0-31')
        assert page.errors == []
        assert {address.partition(':')[0] for address in page.addresses} == {'file', 'data'}
        assert page.pdf().startswith(b'%PDF')
        # What is looked for would be found.
        page.evaluate('''console.error("no"), document.body.insertAdjacentHTML("beforeend",
            "<div style='width: 2000px'>wide</div><img alt='gone' src='data:image/png;base64,AA'>")''')
        assert len(page.evaluate(OVERFLOWING)) == 1 and page.evaluate(UNSEEN) == ['gone'] and page.errors


def test_values_as_numbers():
    assert as_numbers([1, 2.5]) == [1.0, 2.5]
    assert as_numbers([['runs/d3/discriminator_2.pt'], ['runs/d3/discriminator_10.pt']]) == [2.0, 10.0]
    assert as_numbers(['a1b1', 'a2b2']) == [] == as_numbers([True, False]) == as_numbers([1.0, None])
    assert as_numbers(['heun', 'euler']) == []


def test_settings_that_vary():
    made = [options(0.0, 35), options(2.0, 40) | dict(rho=7, network_sha256='x', seeds='1')]
    assert varying_settings(made) == dict(dg_weight_1st_order=[0.0, 2.0], rho=[None, 7])
    assert varying_settings([]) == {} == varying_settings(made[:1] * 2)
