"""EDM's pickles: read without running anything; foreign, damaged and malicious files end in one line."""

import collections
import functools
import io
import json
import pickle
import pickletools
import shutil
import struct
import warnings

import numpy as np
import pytest
import torch
from goldens import GOLDENS, load, recipe_

import networks
from networks.formats import edm_pickle

PICKLES = ('ddpmpp_cond', 'ncsnpp_skip', 'iddpm_adm')


@functools.cache
def content(name):
    return (GOLDENS / 'edm' / f'{name}.pkl').read_bytes()


def refused(path, message):
    """Loading ends in one line that names the file."""
    with pytest.raises((ValueError, OSError), match=message) as caught:
        networks.load_network(path)
    assert '\n' not in str(caught.value) and path.name in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize('name', PICKLES)
def test_golden(name):
    d = {key: torch.as_tensor(value) for key, value in load(f'edm/{name}.npz').items() if key != 'constructor'}
    made = json.loads(str(load(f'edm/{name}.npz')['constructor']))
    net = networks.load_network(GOLDENS / 'edm' / f'{name}.pkl')
    assert type(net).__name__ == made['class_name']
    assert {key: net.init_kwargs[key] for key in made['kwargs']} == made['kwargs']
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    expected = recipe_(networks.construct(made['class_name'], made['kwargs']))
    for key, value in expected.named_parameters():
        assert torch.equal(net.state_dict()[key], value), key
    out = net(d['x'], d['sigma'], d['class_labels'])
    bound = 1e-4 * d['sigma'].clamp(min=1).reshape(-1, 1, 1, 1) + 1e-4 * d['denoised'].abs()
    assert ((out - d['denoised']).abs() <= bound).all()
    if 'u' in d:
        assert torch.equal(net.u, d['u'])


def test_the_other_objects_of_a_snapshot_are_inert():
    data = edm_pickle.read_pickle(GOLDENS / 'edm' / 'ddpmpp_cond.pkl')
    assert {key: type(value) for key, value in data.items()} == dict(
        ema=edm_pickle.Record, loss_fn=edm_pickle.Record, augment_pipe=edm_pickle.Record, dataset_kwargs=dict)
    assert data['loss_fn'].class_name == 'EDMLoss' and data['augment_pipe'].class_name == 'AugmentPipe'


@pytest.mark.parametrize('name, message', [
    ('malicious', r'is refused: it asks for posix\.system'),
    ('malicious_nested', r'is refused: it asks for posix\.system'),
    ('malicious_storage', 'is refused: a tensor in it is not plain data')])
def test_malicious(tmp_path, monkeypatch, name, message):
    shutil.copy(GOLDENS / 'edm' / f'{name}.pkl', tmp_path)
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / f'{name}.pkl', message)
    assert [path.name for path in tmp_path.iterdir()] == [f'{name}.pkl']


def test_the_embedded_source_is_never_run(tmp_path, monkeypatch):
    """Every object of the goldens carries source that raises; here it would also leave a file."""
    source = b"raise RuntimeError"
    stub = next(arg for op, arg, _ in pickletools.genops(content('ddpmpp_cond'))
                if isinstance(arg, str) and 'raise' in arg).encode()
    assert source in stub and content('ddpmpp_cond').count(stub) >= 1
    evil = b"open('PWNED', 'w')#".ljust(len(stub))[:len(stub)]
    (tmp_path / 'net.pkl').write_bytes(content('ddpmpp_cond').replace(stub, evil))
    monkeypatch.chdir(tmp_path)
    networks.load_network('net.pkl')
    assert [path.name for path in tmp_path.iterdir()] == ['net.pkl']


@pytest.mark.parametrize('share', [0.00005, 0.3, 0.667, 0.9999])
def test_cut_short(tmp_path, share):
    data = content('ddpmpp_cond')
    path = tmp_path / 'net.pkl'
    path.write_bytes(data[:int(share * len(data))])
    refused(path, 'is cut short|is damaged')


def test_cut_short_is_called_so(tmp_path):
    path = tmp_path / 'net.pkl'
    path.write_bytes(content('ddpmpp_cond')[:550000])
    refused(path, 'is cut short; download it again')


def test_every_single_damaged_byte_ends_in_one_line(tmp_path):
    """Or changes nothing important; an exception of another kind fails this test."""
    data = bytearray(content('iddpm_adm'))
    rng = np.random.RandomState(0)
    path = tmp_path / 'net.pkl'
    for _ in range(30):
        damaged = data.copy()
        # most of the file is tensors: aim at the structure, at its start and around its end
        position = int(rng.choice([rng.randint(2, 3000), rng.randint(len(data) - 3000, len(data))]))
        damaged[position] = rng.randint(256)
        path.write_bytes(damaged)
        try:
            networks.load_network(path)
        except (ValueError, OSError) as error:
            assert '\n' not in str(error)


FOREIGN = {
    'image.pkl': (b'\x89PNG\r\n\x1a\n' + bytes(50), 'a PNG image'),
    'page.pkl': (b'\n <!DOCTYPE html><html>Quota exceeded</html>', 'a web page'),
    'pointer.pkl': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'a Git LFS pointer'),
    'empty.pkl': (b'', 'not a score network'),
    'text.safetensors': (b'hello', 'not a score network'),
    'garbage.safetensors': (b'\x10\0\0\0\0\0\0\0{garbage', 'not a readable safetensors file'),
    'number.pkl': (pickle.dumps(3), 'holds no network under "ema"'),
    'other.pkl': (pickle.dumps(dict(weights=[1.0])), 'holds no network under "ema"'),
    'protocol.pkl': (b'\x80\xff.', 'damaged'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_foreign(tmp_path, name):
    data, message = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, message)


def test_foreign_containers(tmp_path):
    np.savez(tmp_path / 'stats.npz', mu=np.zeros(3))
    refused(tmp_path / 'stats.npz', 'a zip archive')
    torch.save(dict(a=torch.zeros(3)), tmp_path / 'net.pt')
    refused(tmp_path / 'net.pt', 'not a checkpoint of score_sde')
    np.save(tmp_path / 'x.npy', np.zeros(3))
    refused(tmp_path / 'x.npy', 'a numpy array')
    (tmp_path / 'folder').mkdir()
    refused(tmp_path / 'folder', 'is not a file')
    refused(tmp_path / 'nothing.pkl', 'does not exist')


# Pickles written by hand: what a file may and may not say.

class Global:
    """Pickled as the callable `module.name` applied to `args`."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args


class Pickler(pickle._Pickler):
    """Writes names of modules that do not exist here, as in the published files."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f'{obj.module}\n{obj.name}\n'.encode())
            super().save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def dumps(obj, protocol=3):
    file = io.BytesIO()
    Pickler(file, protocol).dump(obj)
    return file.getvalue()


def storage_bytes(tensor):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.save(tensor.storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def tensor_global(tensor, size=None, stride=None, offset=0, data=None):
    storage = Global('torch.storage', '_load_from_bytes', storage_bytes(tensor) if data is None else data)
    return Global('torch._utils', '_rebuild_tensor_v2', storage, offset, tuple(tensor.shape if size is None else size),
                  tuple(tensor.stride() if stride is None else stride), False, collections.OrderedDict())


def module_global(class_name, **state):
    return Global('torch_utils.persistence', '_reconstruct_persistent_obj',
                  dict(type='class', version=6, module_src='raise', class_name=class_name, state=state))


def read(data, tmp_path):
    path = tmp_path / 'net.pkl'
    path.write_bytes(data)
    return edm_pickle.read_pickle(path)


def tree(module, class_name, **more):
    """A module as an old torch writes it: few entries, no hooks."""
    parameters = {name: Global('torch._utils', '_rebuild_parameter', tensor_global(p.detach()), True,
                               collections.OrderedDict()) for name, p in module._parameters.items() if p is not None}
    buffers = {name: None if b is None else tensor_global(b) for name, b in module._buffers.items()
               if name not in module._non_persistent_buffers_set}
    children = collections.OrderedDict(
        (name, None if child is None else tree(child, type(child).__name__))
        for name, child in module._modules.items())
    return module_global(f'training.networks.{class_name}', _parameters=parameters, _buffers=buffers,
                         _modules=children, training=False, **more)


def test_records_of_an_old_torch_and_positional_arguments(tmp_path):
    kwargs = dict(model_type='SongUNet', model_channels=8, channel_mult=[1], num_blocks=1)
    net = recipe_(networks.construct('VPPrecond', dict(img_resolution=8, img_channels=3, **kwargs))).eval()
    path = tmp_path / 'net.pkl'
    record = tree(net, 'VPPrecond', _init_args=(8,), _init_kwargs=dict(img_channels=3) | kwargs)
    path.write_bytes(dumps(dict(ema=record)))
    back = networks.load_network(path)
    assert back.init_kwargs == net.init_kwargs
    assert all(torch.equal(back.state_dict()[key], value) for key, value in net.state_dict().items())
    # the bare network, not in a dict
    path.write_bytes(dumps(tree(net, 'VPPrecond', _init_args=(8, 3), _init_kwargs=kwargs)))
    assert networks.load_network(path).init_kwargs == net.init_kwargs


@pytest.mark.parametrize('device', ['cuda:0', 'cuda:7', 'mps'])
def test_storages_from_another_device_come_to_the_cpu(tmp_path, device):
    tensor = torch.arange(6.0).reshape(2, 3)
    data = storage_bytes(tensor)
    here, there = (b'X' + struct.pack('<I', len(name)) + name.encode() for name in ('cpu', device))
    assert data.count(here) == 1
    out = read(dumps(tensor_global(tensor, data=data.replace(here, there))), tmp_path)
    assert out.tensor.device.type == 'cpu' and torch.equal(out.tensor, tensor)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_dtypes_views_and_empty_tensors(tmp_path, dtype):
    whole = torch.arange(24).to(dtype)
    view = whole.reshape(4, 6)[1:3, ::2]
    out = read(dumps(tensor_global(whole, view.shape, view.stride(), view.storage_offset())), tmp_path)
    assert out.tensor.dtype == dtype and torch.equal(out.tensor, view)
    assert read(dumps(tensor_global(whole, (0, 3), (3, 1))), tmp_path).tensor.shape == (0, 3)
    assert read(dumps(tensor_global(whole, (), ())), tmp_path).tensor.shape == ()


@pytest.mark.parametrize('size, stride, offset, message', [
    ((7,), (1,), 0, 'reaches beyond its storage'),
    ((2,), (1,), 5, 'reaches beyond its storage'),
    ((2,), (10**15,), 0, 'reaches beyond its storage'),
    ((2,), (-1,), 3, 'reaches beyond its storage'),
    ((2,), (1,), -1, 'reaches beyond its storage'),
    ((-2,), (1,), 0, 'reaches beyond its storage'),
    ((10**12,), (0,), 0, 'more elements than its storage'),
    ((4, 4), (1, 0), 0, 'more elements than its storage'),
    ((2, 3), (1,), 0, 'no list of integers'),
    (('a',), (1,), 0, 'no list of integers')])
def test_shapes_beyond_the_storage(tmp_path, size, stride, offset, message):
    with pytest.raises(ValueError, match=message):
        read(dumps(tensor_global(torch.arange(6.0), size, stride, offset)), tmp_path)


@pytest.mark.parametrize('obj', [
    Global('builtins', 'eval', '1'), Global('os', 'system', 'touch PWNED'), Global('torch', 'load', 'x'),
    Global('torch.storage', '_load_from_bytes.__globals__', b''), Global('collections', 'OrderedDict.__init__'),
    Global('functools', 'partial', print), Global('torch_utils.persistence', 'import_hook', 1)])
def test_names_outside_the_list(tmp_path, obj):
    obj.args = tuple(arg for arg in obj.args if arg is not print)
    with pytest.raises(ValueError, match=rf'is refused: it asks for {obj.module}\.{obj.name}'):
        read(dumps(obj), tmp_path)


def test_names_are_shown_in_one_line(tmp_path):
    with pytest.raises(ValueError) as caught:
        read(pickle.dumps('os\n\x1b[2J')[:-1] + pickle.dumps('x' * 1000)[2:-1] + pickle.STACK_GLOBAL + b'.', tmp_path)
    assert str(caught.value).isprintable() and r'it asks for os \x1b[2J.xxx' in str(caught.value)
    assert len(str(caught.value)) < 400


def test_objects_outside_the_file(tmp_path):
    for data in (b'Pa\n.', b'\x80\x02X\x01\x00\x00\x00aQ.'):
        with pytest.raises(ValueError, match='is refused: it asks for an object outside the file'):
            read(data, tmp_path)


@pytest.mark.parametrize('module, name', sorted(edm_pickle.ALLOWED))
def test_a_file_cannot_change_the_reader(tmp_path, module, name):
    """BUILD on an allowed name would write attributes of a function that later files run through."""
    before = {key: getattr(value, '__defaults__', None) for key, value in edm_pickle.ALLOWED.items()}
    for state in ({'__defaults__': ()}, (None, {'__defaults__': ()}), (None, {'__setstate__': 1})):
        body = pickle.GLOBAL + f'{module}\n{name}\n'.encode() + pickle.dumps(state, 2)[2:-1] + pickle.BUILD + b'.'
        with pytest.raises(ValueError, match='net.pkl is'):
            read(b'\x80\x02' + body, tmp_path)
    assert before == {key: getattr(value, '__defaults__', None) for key, value in edm_pickle.ALLOWED.items()}


def test_a_file_cannot_change_a_tensor(tmp_path):
    tensor = dumps(tensor_global(torch.arange(6.0)))
    body = tensor[:-1] + pickle.dumps((True, None, collections.OrderedDict()), 2)[2:-1] + pickle.BUILD + b'.'
    with pytest.raises(ValueError, match='net.pkl is'):
        read(body, tmp_path)


@pytest.mark.parametrize('obj, message', [
    (Global('numpy.core.multiarray', 'scalar', Global('numpy', 'dtype', 'O8', 0, 1), b'12345678'), 'not a number'),
    (Global('numpy.core.multiarray', 'scalar', 'f8', b'12345678'), 'not a number'),
    (Global('numpy.core.multiarray', 'scalar', Global('numpy', 'dtype', 'f8', 0, 1), b'1'), 'damaged or refused'),
    (Global('torch_utils.persistence', '_reconstruct_persistent_obj', dict(type='function')), 'not a class'),
    (Global('torch.storage', '_load_from_bytes', b''), 'not plain data'),
    (Global('torch._utils', '_rebuild_tensor_v2', 1, 0, (1,), (1,)), 'damaged or refused')])
def test_arguments_of_the_wrong_kind(tmp_path, obj, message):
    with pytest.raises(ValueError, match=message):
        read(dumps(obj), tmp_path)


def test_numpy_numbers(tmp_path):
    """Gains and scales; numpy 1 and 2 name the function differently."""
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        for name, value in (('f8', 0.5**0.5), ('f4', 0.25), ('i8', -3), ('b1', True)):
            data = np.dtype(name).type(value).tobytes()
            out = read(dumps(Global(module, 'scalar', Global('numpy', 'dtype', name, False, True), data)), tmp_path)
            assert out == value and type(out) is type(value)
    assert read(pickle.dumps(np.array([1.5], '>f8')[0], 4), tmp_path) == 1.5


@pytest.mark.parametrize('state, message', [
    (dict(_parameters=3), 'does not describe its EDMPrecond'),
    (dict(_parameters={}, _modules=[1]), 'does not describe'),
    (dict(_parameters={}, _init_kwargs=5), 'does not describe'),
    (dict(_parameters={}, _init_kwargs=dict(img_resolution=8)), 'does not fit its own description'),
    (dict(_parameters={}, _init_kwargs=dict(img_resolution=8, img_channels=3, model_channels=32, channel_mult=[1],
                                            num_blocks=1)), 'does not fit its own description')])
def test_networks_that_are_none(tmp_path, state, message):
    path = tmp_path / 'net.pkl'
    path.write_bytes(dumps(dict(ema=module_global('EDMPrecond', **state))))
    refused(path, message)


def test_another_class(tmp_path):
    path = tmp_path / 'net.pkl'
    path.write_bytes(dumps(dict(ema=module_global('training.networks_stylegan2.Generator', _parameters={}))))
    refused(path, 'holds a Generator; known are EDMPrecond')


def test_a_module_that_contains_itself(tmp_path):
    def text(word):
        return pickle.dumps(word, 2)[2:-3]  # without protocol, memo and stop

    modules = pickle.EMPTY_DICT + pickle.BINPUT + b'\x06'
    state = b''.join([pickle.MARK, text('_parameters'), pickle.EMPTY_DICT, text('_modules'), modules,
                      text('_init_kwargs'), pickle.EMPTY_DICT, pickle.DICT])
    meta = b''.join([pickle.MARK, text('type'), text('class'), text('class_name'), text('EDMPrecond'), text('state'),
                     state, pickle.DICT])
    record = b''.join([b'ctorch_utils.persistence\n_reconstruct_persistent_obj\n', meta, pickle.TUPLE1, pickle.REDUCE,
                       pickle.BINPUT, b'\x05'])
    loop = b''.join([pickle.BINGET, b'\x06', text('a'), pickle.BINGET, b'\x05', pickle.SETITEM, pickle.POP])
    path = tmp_path / 'net.pkl'
    path.write_bytes(b'\x80\x02' + record + loop + b'.')
    refused(path, 'does not describe its EDMPrecond .a occurs in two places')
