"""Malicious networks, made in code: the bytes of pickles, safetensors and files of torch.save."""

import io
import json
import os
import pickle
import pickletools
import struct
import warnings
import zipfile

import safetensors.torch
import torch

from torch_utils.checkpoint import MAX_TENSORS

EVIL = b"cos\nsystem\n(S'touch PWNED'\ntR."

#----------------------------------------------------------------------------
# Networks as pickles.

def text(word):
    return pickle.dumps(word, 2)[2:-3]  # without protocol, memo and stop


RECORD = b'ctorch_utils.persistence\n_reconstruct_persistent_obj\n'


def record(state):
    """The instructions for an EDM object of a state, itself given as instructions."""
    return (RECORD + b'(' + text('type') + text('class') + text('class_name') + text('EDMPrecond') + text('state')
            + state + b'd' + pickle.TUPLE1 + b'R')


def shared_modules(depth):
    """Each level holds the one below twice."""
    inner = b'}' + text('_parameters') + b'}s'
    body = record(inner) + b'q\x00'
    for level in range(depth):
        child = pickle.BINGET + bytes([level])
        modules = b'}(' + text('a') + child + text('b') + child + b'u'
        body += b'0' + record(b'}(' + text('_parameters') + b'}' + text('_modules') + modules + b'u') + b'q' + bytes(
            [level + 1])
    return b'\x80\x02' + body + b'.'


def shared_tuples(end):
    """A tuple of a tuple of a tuple ..., each twice, then `end`."""
    body = b'K\x00' + b'q\x00'
    for level in range(60):
        body += b'h' + bytes([level]) + b'\x86' + b'q' + bytes([level + 1])
    return b'\x80\x02' + body + end + b'.'


def storage(count=10):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # typed storages are deprecated, but EDM's files hold them
        torch.save(torch.zeros(count).storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tensors(count, size, length):
    """`count` parameters of a network, all of one storage of `length` numbers."""
    blob = storage(length)
    body = b'ctorch.storage\n_load_from_bytes\nB' + struct.pack('<I', len(blob)) + blob + b'\x85Rq\x00' + b'0'
    one = (b'ctorch._utils\n_rebuild_tensor_v2\n(h\x00K\x00J' + struct.pack('<i', size) + b'\x85K\x01\x85\x89'
           + b'ccollections\nOrderedDict\n)RtR')
    items = b''.join(text(f'p{i}') + one for i in range(count))
    return b'\x80\x02' + body + record(b'}(' + text('_parameters') + b'}(' + items + b'u' + text('_modules') + b'}'
                                       + text('_init_kwargs') + kwargs(img_resolution=32, img_channels=3) + b'u') + b'.'


def kwargs(**values):
    return b'}(' + b''.join(text(name) + b'J' + struct.pack('<i', value) for name, value in values.items()) + b'u'


class Evil:
    def __reduce__(self):
        return os.system, ('touch PWNED',)


PICKLES = {
    'memo': b'\x80\x04K\x01r\xff\xff\xff\x1f.',
    'memo text': b'\x80\x02K\x01p536870911\n.', 'memo network': b'\x80\x02' + record(b'}' + text('_parameters') + b'}s')
    + b'r\xff\xff\xff\x3f.', 'modules': shared_modules(40),
    'tuple key': shared_tuples(b'}h\x3cK\x00s'), 'tuple set': shared_tuples(b'\x8f(h\x3c\x90'),
    'tuple in a set': shared_tuples(b'cbuiltins\nset\n(lh\x3ca\x85R'), 'frozenset': shared_tuples(b'(h\x3c\x91'),
    'system': EVIL, 'stack': b'\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0btouch PWNED\x85R.',
    'dotted': b'\x80\x04\x8c\x0btorch.nn.modules\x93.', 'dotted name': b'\x80\x04' + pickle.dumps(
        'collections', 4)[11:-2] + b'\x8c\x14OrderedDict.__init__\x93.', 'evil': pickle.dumps(dict(ema=Evil()), 4),
    'chain': b'\x80\x02' + b'ccollections\nOrderedDict\n)' + b'R)' * 1000 + b'.',
    'getattr': b'cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S\'os\'\ntRS\'system\'\ntR(S\'touch PWNED\'\ntR.',
    'inst': b"(S'touch PWNED'\nios\nsystem\n.", 'obj': b"(cos\nsystem\nS'touch PWNED'\no.",
    'bytes': b'\x80\x04\x8e' + struct.pack('<Q', 2**40) + b'x.',
    'frame': b'\x80\x04\x95' + struct.pack('<Q', 2**40) + b'N.',
    'array': b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'.', 'long': b'\x80\x02\x8b' + struct.pack('<i', 10**6)
    + b'\xff' * 10**6 + b'.', 'digits': b'I' + b'9' * 10**6 + b'\n.', 'extension': b'\x80\x02\x82\x01.',
    'persistent': b'Pos.system\n.', 'deep': b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.',
    'marks': b'\x80\x02' + b'(' * 10**6 + b'.', 'storage': tensors(1, 11, 10), 'views': tensors(3000, 10**6, 10**6),
    'width': b'\x80\x02' + record(b'}(' + text('_parameters') + b'}' + text('_modules') + b'}' + text('_init_kwargs')
                                  + kwargs(img_resolution=32, img_channels=3, model_channels=10**8) + b'u') + b'.',
    'blocks': b'\x80\x02' + record(b'}(' + text('_parameters') + b'}' + text('_modules') + b'}' + text('_init_kwargs')
                                   + kwargs(img_resolution=32, img_channels=3, num_blocks=2**31 - 1) + b'u') + b'.',
    'empty': b'', 'page': b'<html>Quota exceeded</html>',
}

def cut_at_every_opcode():
    """All beginnings of a small network pickle that end between two instructions."""
    whole = tensors(1, 10, 10)
    return [whole[:position] for _, _, position in pickletools.genops(whole) if position]

#----------------------------------------------------------------------------
# Networks as safetensors, and state dicts.

def safetensors_of(header, data=b'', length=None):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(head) if length is None else length) + head + data


def described(description, tensors=None):
    """A file of this project with any description, text or table."""
    description = description if isinstance(description, str) else json.dumps(description)
    return safetensors.torch.save(tensors or dict(a=torch.zeros(1)), metadata=dict(network=description))


def network(constructor='EDMPrecond', **kwargs):
    return dict(format='network-v1', constructor=constructor, metadata={},
                kwargs=dict(img_resolution=32, img_channels=3, model_type='SongUNet') | kwargs)


def many_tensors(header):
    """A file of twice as many tensors as networks may have, all empty, after the first words of its header."""
    entry = json.dumps(dict(dtype='F32', shape=[0], data_offsets=[0, 0]))
    return safetensors_of((header + ','.join(f'"t{i}":{entry}' for i in range(2 * MAX_TENSORS)) + '}').encode())


ENTRY = dict(dtype='F32', shape=[1], data_offsets=[0, 4])
SAFETENSORS = {  # bytes, or what makes them if that takes long
    'length': safetensors_of(b'{}', length=2**63), 'long': safetensors_of(b'{}', length=2**31),
    'overlap': safetensors_of(dict(a=ENTRY, b=ENTRY), bytes(4)),
    'beyond': safetensors_of(dict(a=dict(dtype='F32', shape=[10**12], data_offsets=[0, 4 * 10**12])), bytes(4)),
    'overflow': safetensors_of(dict(a=dict(dtype='F32', shape=[2**40, 2**40], data_offsets=[0, 4])), bytes(4)),
    'entries': lambda: many_tensors('{'),
    'deep header': safetensors_of(b'{"a":' * 10**5), 'deep': described('[' * 10**5),
    'many entries': lambda: many_tensors(json.dumps(dict(__metadata__=dict(network=json.dumps(network()))))[:-1] + ','),
    'NaN': described(json.dumps(network(sigma_data=float('nan')))), 'kwargs': described(network() | dict(kwargs=3)),
    'width': described(network(model_channels=10**6)), 'blocks': described(network(num_blocks=10**12)),
    'levels': lambda: described(network(channel_mult=[1] * 10**6)), 'classes': described(network(label_dim=10**12)),
    'noise': described(network('iDDPMPrecond', M=10**12)), 'resolution': described(network(img_resolution=10**30)),
    'name': described(network('os.system')), 'list': described('[1]'), 'none': safetensors_of({}),
    'feature net': described(dict(format='network-v1', constructor='FeatureNet', metadata={}, kwargs=dict(
        widths=[10**6] * 3, blocks=[10**9] * 3))),
    'classifier': described(dict(format='network-v1', constructor='create_classifier', metadata={}, kwargs={}), {
        'time_embed.0.weight': torch.zeros(1, 10**6), 'input_blocks.0.0.weight': torch.zeros(1, 3, 1, 1),
        'input_blocks.999999999999.0.weight': torch.zeros(1), 'out.2.positional_embedding': torch.zeros(1, 17),
        'out.2.c_proj.weight': torch.zeros(1, 1)}),
}


def saved(value, **kwargs):
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


def rezipped(value, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
    """A file of torch.save whose members are changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(value))) as old, zipfile.ZipFile(buffer, 'w', compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def replace_pickle(blob):
    return lambda name, data: blob if name.endswith('data.pkl') else data


STATES = {
    'evil': saved(Evil()), 'old evil': saved(Evil(), _use_new_zipfile_serialization=False), 'system': EVIL,
    'compressed': lambda: rezipped(dict(a=torch.zeros(10**7)), zipfile.ZIP_DEFLATED),
    'storage': rezipped(dict(a=torch.zeros(4)), change=lambda name, data: data.replace(b'K\x04', b'J\xff\xff\xff\x7f')),
    'missing': rezipped(dict(a=torch.zeros(4)), change=lambda name, data: b'' if name.endswith('data/0') else data),
    'key': rezipped({}, change=replace_pickle(shared_tuples(b'}h\x3cK\x00s'))),
    'memo': rezipped({}, change=replace_pickle(b'\x80\x04K\x01r\xff\xff\xff\x1f.')),
    'bytes': rezipped({}, change=replace_pickle(PICKLES['bytes'])),
    'old bytes': PICKLES['bytes'], 'old key': shared_tuples(b'}h\x3cK\x00s'),
    'cut': saved(dict(a=torch.zeros(100)))[:-200], 'page': b'<html>Quota exceeded</html>', 'empty': b'',
    'numbers': saved([1, 2]),
}
