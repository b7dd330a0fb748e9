"""Configurations of score_sde (Song et al., ICLR 2021) and Soft-Truncation (Kim et al., ICML 2022) networks.

Their checkpoints hold weights, but neither the SDE nor the data range nor the resampling filter. These come from a
preset, named like the published configuration, or from that configuration itself (YAML).
"""

from pathlib import Path

import yaml

from dnnlib.files import resolve_path

NCSNPP = dict(sde='vesde', continuous=True, image_size=32, num_channels=3, name='ncsnpp', nf=128, ch_mult=(1, 2, 2, 2),
              num_res_blocks=4, attn_resolutions=(16,), dropout=0.1, embedding_type='fourier', fir=True,
              progressive='none', progressive_input='residual', sigma_min=0.01, sigma_max=50, beta_min=0.1,
              beta_max=20, num_scales=1000)
DDPMPP = NCSNPP | dict(sde='vpsde', embedding_type='positional', fir=False, progressive_input='none')
DDPM = DDPMPP | dict(name='ddpm', num_res_blocks=2)
LARGE = NCSNPP | dict(image_size=256, ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, dropout=0,
                      progressive='output_skip', progressive_input='input_skip', num_scales=2000)
CELEBA = DDPMPP | dict(image_size=64)
UNBOUNDED = CELEBA | dict(unbounded_parametrization=True)
RVE = NCSNPP | dict(sde='reciprocal_vesde', sigma_min=0.001)

PRESETS = {
    # score_sde, by the folders of its checkpoints
    've/cifar10_ncsnpp': NCSNPP | dict(continuous=False, embedding_type='positional'),
    've/cifar10_ncsnpp_continuous': NCSNPP,
    've/cifar10_ncsnpp_deep_continuous': NCSNPP | dict(num_res_blocks=8),
    've/bedroom_ncsnpp_continuous': LARGE | dict(sigma_max=378),
    've/church_ncsnpp_continuous': LARGE | dict(sigma_max=380),
    've/celebahq_256_ncsnpp_continuous': LARGE | dict(sigma_max=348),
    've/ffhq_256_ncsnpp_continuous': LARGE | dict(sigma_max=348),
    've/ffhq_1024_ncsnpp_continuous': LARGE | dict(
        image_size=1024, nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, sigma_max=1348),
    'vp/cifar10_ddpm': DDPM | dict(continuous=False),
    'vp/cifar10_ddpm_continuous': DDPM,
    'vp/cifar10_ddpmpp': DDPMPP | dict(continuous=False),
    'vp/cifar10_ddpmpp_continuous': DDPMPP,
    'vp/cifar10_ddpmpp_deep_continuous': DDPMPP | dict(num_res_blocks=8),
    'subvp/cifar10_ddpm_continuous': DDPM | dict(sde='subvpsde'),
    'subvp/cifar10_ddpmpp_continuous': DDPMPP | dict(sde='subvpsde'),
    'subvp/cifar10_ddpmpp_deep_continuous': DDPMPP | dict(sde='subvpsde', num_res_blocks=8),
    # Soft-Truncation, by its configurations
    've/CELEBA/ncsnpp_st': NCSNPP | dict(image_size=64, sigma_max=90),
    've/CELEBA/uncsnpp_st': RVE | dict(image_size=64, sigma_max=90),
    've/CIFAR10/uncsnpp_st': RVE,
    've/celebahq/uncsnpp_st': LARGE | dict(sigma_max=348),
    'vp/CELEBA/ddpmpp_fid': CELEBA,
    'vp/CELEBA/ddpmpp_fid_st': CELEBA,
    'vp/CELEBA/ddpmpp_nll': CELEBA,
    'vp/CELEBA/ddpmpp_nll_st': CELEBA,
    'vp/CELEBA/uddpmpp_fid': UNBOUNDED,
    'vp/CELEBA/uddpmpp_fid_st': UNBOUNDED,
    'vp/CELEBA/uddpmpp_nll': UNBOUNDED,
    'vp/CELEBA/uddpmpp_nll_st': UNBOUNDED,
    'vp/CIFAR10/ddpmpp_fid_st_deepest': DDPMPP | dict(nf=512, ch_mult=(1, 1, 1), num_res_blocks=8, dropout=0.2,
                                                      fir=True, lsgm=True, embedding_dim=128),
}
# Options that only a few unpublished configurations set to other values; such a YAML is refused.
FIXED = dict(conditional=True, nonlinearity='swish', normalization='GroupNorm', resblock_type='biggan', conv_size=3,
             attention_type='ddpm', skip_rescale=True, resamp_with_conv=True, progressive_combine='sum',
             fir_kernel=[1, 3, 3, 1], attention=True, auxiliary_resblock=True, fourier_feature=False,
             stabilizing_constant=0.001)
NOT_OF_DDPM = ('embedding_type', 'fir', 'progressive', 'progressive_input')
ENCODERS = dict(none='standard', residual='residual', input_skip='skip')
DECODERS = dict(none='standard', output_skip='skip')


def find_config(preset, path) -> dict:
    """The configuration of the checkpoint `path`: a preset by name, a YAML by path, or None for its folder's name.

    The first part of a name may be left out if that is unambiguous. Raises ValueError and OSError.
    """
    if preset is None:
        preset = '/'.join(Path(path).absolute().parts[-3:-1])
        if preset not in PRESETS:
            raise ValueError(f'{path} does not say which SDE it is for; name its configuration by a preset '
                             f'({", ".join(PRESETS)}) or its YAML')
    if str(preset).endswith(('.yaml', '.yml')):
        return read_yaml(preset)
    found = [name for name in PRESETS if name == preset] or [name for name in PRESETS if name.endswith(f'/{preset}')]
    if len(found) != 1:
        raise ValueError(f'{str(preset)!r} is not a preset; use one of {", ".join(found or PRESETS)}, or a .yaml')
    return dict(PRESETS[found[0]])


def read_yaml(path) -> dict:
    """A published configuration, its sections data, model and training joined. Raises ValueError and OSError."""
    try:
        sections = yaml.safe_load(resolve_path(path).read_text())
        return {key: value for name in ('training', 'data', 'model') for key, value in sections[name].items()}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{path} is not a configuration with the sections training, data and model') from None


def describe(config: dict) -> tuple[str, dict]:
    """(constructor, its arguments) of a configured network. Raises ValueError, which names the key."""
    _check_types(config)
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise ValueError(f'{key} is {config[key]!r}; only {value!r} is supported')
    sde, continuous = config['sde'], config['continuous']
    centered = dict(vesde=False, reciprocal_vesde=False, vpsde=True, subvpsde=True)
    if sde not in centered:
        raise ValueError(f'sde is {sde!r}; known are {", ".join(centered)}')
    expected = dict(centered=centered[sde], scale_by_sigma=not centered[sde])
    if config['name'] == 'ncsnpp':
        expected['embedding_type'] = 'fourier' if continuous and not centered[sde] else 'positional'
    if not continuous and sde not in ('vesde', 'vpsde'):
        expected['continuous'] = True
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f'{key} is {config[key]!r}; with sde {sde} and continuous {continuous} only {value!r} is '
                             f'supported')
    constructor, arguments = _precond(sde, continuous, config)
    return constructor, arguments | _network(config)


def _check_types(config: dict) -> None:
    """Raise ValueError unless each needed key exists, with a value like those of presets."""
    for key, example in NCSNPP.items():
        if config.get('name') == 'ddpm' and key in NOT_OF_DDPM:
            continue
        if key not in config:
            raise ValueError(f'the configuration lacks {key}')
        value = config[key]
        if isinstance(example, tuple):
            right = isinstance(value, (list, tuple)) and all(type(n) is int for n in value)
        elif key in ('sigma_min', 'sigma_max', 'beta_min', 'beta_max', 'dropout'):
            right = type(value) in (int, float)
        else:
            right = type(value) is type(example)
        if not right:
            raise ValueError(f'{key} is {value!r}; expected a value such as {example!r}')


def _precond(sde, continuous, config) -> tuple[str, dict]:
    betas = dict(beta_d=config['beta_max'] - config['beta_min'], beta_min=config['beta_min'])
    sigmas = dict(sigma_min=2 * config['sigma_min'], sigma_max=2 * config['sigma_max'])  # data from [0,1] to [-1,1]
    if sde == 'subvpsde':
        return 'SubVPPrecond', betas
    if sde == 'vpsde' and continuous:
        unbounded = config.get('unbounded_parametrization', False)
        return 'VPPrecond', betas | dict(time_input='unbounded' if unbounded else 'linear')
    if sde == 'vpsde':
        return 'VPDiscretePrecond', dict(beta_min=config['beta_min'], beta_max=config['beta_max'],
                                         M=config['num_scales'])
    if not continuous:
        return 'VEDiscretePrecond', sigmas | dict(M=config['num_scales'])
    return 'VEPrecond', sigmas | dict(time_input=config.get('time_input', 'log'))


def _network(config) -> dict:
    nf = config['nf']
    common = dict(img_resolution=config['image_size'], img_channels=config['num_channels'], model_channels=nf,
                  channel_mult=list(config['ch_mult']), num_blocks=config['num_res_blocks'],
                  attn_resolutions=list(config['attn_resolutions']), dropout=config['dropout'])
    if config['name'] == 'ddpm':
        return common | dict(model_type='DDPMUNet')
    for key, known in (('name', ('ncsnpp', 'ddpm')), ('progressive_input', ENCODERS), ('progressive', DECODERS)):
        if config[key] not in known:
            raise ValueError(f'{key} is {config[key]!r}; known are {", ".join(known)}')
    embedding = dict(channel_mult_noise=2 if config['embedding_type'] == 'fourier' else 1, channel_mult_emb=4)
    if config.get('lsgm'):
        embedding = dict(channel_mult_noise=config['embedding_dim'] / nf,
                         channel_mult_emb=4 * config['embedding_dim'] / nf)
    return common | embedding | dict(
        model_type='SongUNet', embedding_type=config['embedding_type'],
        encoder_type=ENCODERS[config['progressive_input']], decoder_type=DECODERS[config['progressive']],
        resample_filter=[1, 3, 3, 1] if config['fir'] else [1, 1])
