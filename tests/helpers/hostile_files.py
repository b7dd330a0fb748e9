"""Malicious images, arrays and places, made in code: each builder writes into a folder and returns a path."""

import functools
import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import PIL.Image

EVIL = b"cos\nsystem\n(S'touch PWNED'\ntR."


def png(size=32, value=0):
    buffer = io.BytesIO()
    PIL.Image.new('RGB', (size, size), (value, 0, 0)).save(buffer, 'PNG')
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png_of(width, height, *extra, data=b''):
    """A PNG that declares a size, with further chunks and any pixels."""
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(extra) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')

#----------------------------------------------------------------------------
# Images; each as the only file of a folder, or in a zip with a good one.

@functools.cache
def zeros():
    """100 MB, compressed."""
    return zlib.compress(bytes(100 << 20), 9)


IMAGES = {  # bytes, or what makes them if that takes long
    'huge.png': png_of(60000, 60000),
    'text.png': lambda: png_of(32, 32, chunk(b'zTXt', b'Comment\0\0' + zeros()), data=bytes(32 * 97)),
    'texts.png': png_of(32, 32, *[chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(1 << 20), 9))] * 100),
    'profile.png': lambda: png_of(32, 32, chunk(b'iCCP', b'a\0\0' + zeros())),
    'cut.png': png()[:-30], 'empty.png': b'', 'flat.png': png_of(0, 32), 'short.png': png_of(32, 32, data=b'1'),
    'fits.png': b'SIMPLE  =                    T'.ljust(2880),
    'eps.png': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
    'pdf.png': b'%PDF-1.4\n', 'page.png': b'<html>not found</html>', 'svg.png': b'<svg xmlns="x"/>',
    'ico.png': b'\0\0\1\0\1\0\x20\x20\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0',
    'bmp.bmp': b'BM' + struct.pack('<IHHIIiiHHIIiiII', 99, 0, 0, 54, 40, 2**30, -2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    'palette.bmp': b'BM' + struct.pack('<IHHIIiiHHIIiiII', 99, 0, 0, 54, 40, 8, 8, 1, 8, 0, 0, 0, 0, 2**31 - 1, 0),
    'ppm.ppm': b'P6 99999 99999 255\n', 'digits.ppm': b'P6 ' + b'9' * 100000 + b' 1 255\n',
    'gif.gif': b'GIF89a' + struct.pack('<HHBBB', 65535, 65535, 0, 0, 0) + b'\x2c'
               + struct.pack('<HHHHB', 0, 0, 65535, 65535, 0) + b'\x02\x01\x00\x00\x3b',
    'tiff.tif': b'II*\0\x08\0\0\0' + struct.pack('<H', 3) + struct.pack('<HHII', 256, 4, 1, 2**31 - 1)
                + struct.pack('<HHII', 257, 4, 1, 2**31 - 1) + struct.pack('<HHII', 273, 4, 2**30, 8) + bytes(4),
    'jpeg.jpg': b'\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9',
    'webp.webp': b'RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f\xff\xff\xff\x0f' + bytes(12),
}


def made(blob):
    return blob() if callable(blob) else blob


def written(path, blob):
    path.write_bytes(made(blob))
    return path


def image_in_folder(place, name):
    (place / 'set').mkdir()
    written(place / 'set' / name, IMAGES[name])
    return place / 'set'


def image_in_zip(place, name):
    with zipfile.ZipFile(place / 'set.zip', 'w') as archive:
        archive.writestr(name, made(IMAGES[name]))
        archive.writestr('good.png', png())
    return place / 'set.zip'

#----------------------------------------------------------------------------
# Zips of images.

def zip_of(place, change=lambda blob, archive: blob, **files):
    """A zip of images, whose bytes `change` then changes."""
    path = place / 'set.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        for index in range(5):
            archive.writestr(f'{index}.png', png(value=index))
        for name, data in files.items():
            archive.writestr(name, data)
    path.write_bytes(change(bytearray(path.read_bytes()), archive))
    return path


def wrong_sum(blob, archive):
    for start in (archive.getinfo('3.png').header_offset + 14, blob.index(b'3.png', archive.start_dir) - 46 + 16):
        blob[start] ^= 1
    return blob


def overlapping(blob, archive):
    entry = blob.index(b'3.png', archive.start_dir) - 46
    blob[entry + 42:entry + 46] = struct.pack('<I', archive.getinfo('2.png').header_offset)
    return blob


def encrypted(blob, archive):
    blob[blob.index(b'3.png', archive.start_dir) - 46 + 8] |= 1
    return blob


def zip64(blob, archive):
    """Sizes of exabytes in an extra field of the directory."""
    entry = blob.index(b'3.png', archive.start_dir) - 46
    extra = struct.pack('<HHQQ', 1, 16, 2**60, 2**60)
    blob[entry + 20:entry + 28] = b'\xff' * 8
    blob[entry + 30:entry + 32] = struct.pack('<H', len(extra))
    blob[entry + 51:entry + 51] = extra
    end = blob.rindex(b'PK\x05\x06')
    blob[end + 12:end + 16] = struct.pack('<I', end - archive.start_dir)
    return blob


def twice(place):
    with zipfile.ZipFile(place / 'set.zip', 'w') as archive:
        archive.writestr('a.png', png())
        archive.writestr('b.png', png(value=1))
    blob = (place / 'set.zip').read_bytes().replace(b'b.png', b'a.png')
    (place / 'set.zip').write_bytes(blob)
    return place / 'set.zip'


def link_in_zip(place):
    info = zipfile.ZipInfo('link.png')
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(place / 'set.zip', 'w') as archive:
        archive.writestr(info, '/etc/passwd')
    return place / 'set.zip'


def inflating(place):
    """A PNG of 300 MiB, of zeros."""
    with zipfile.ZipFile(place / 'set.zip', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr('a.png', bytes(300 << 20))
    return place / 'set.zip'


ZIPS = {
    'sum': lambda place: zip_of(place, wrong_sum), 'twice': twice, 'link': link_in_zip, 'inflating': inflating,
    'outside': lambda place: zip_of(place, **{'../../evil.png': png()}),
    'absolute': lambda place: zip_of(place, **{'/tmp/evil.png': png()}),
    'overlap': lambda place: zip_of(place, overlapping), 'encrypted': lambda place: zip_of(place, encrypted),
    'zip64': lambda place: zip_of(place, zip64), 'cut': lambda place: zip_of(place, lambda blob, _: blob[:-40]),
    'head': lambda place: zip_of(place, lambda blob, archive: bytes(archive.start_dir) + blob[archive.start_dir:]),
    'nested': lambda place: zip_of(place, **{'dataset.json': b'[' * 100_000}),
    'label': lambda place: zip_of(place, **{'dataset.json': json.dumps(dict(labels=[[f'{i}.png', 10**9 * i]
                                                                                    for i in range(5)]))}),
    'two labels': lambda place: zip_of(place, **{'dataset.json': '{"labels": {"0.png": 1, "0.png": 2}}'}),
    'json': lambda place: zip_of(place, **{'dataset.json': '{"labels": NaN}'}),
    'digits': lambda place: zip_of(place, **{'dataset.json': '{"labels": [["0.png", ' + '9' * 10**6 + ']]}'}),
}

#----------------------------------------------------------------------------
# Arrays.

def npy(header, data=b'', version=1, length=None):
    head = str(header).encode() + b'\n'
    size = len(head) if length is None else length
    return b'\x93NUMPY' + bytes([version, 0]) + struct.pack('<H' if version == 1 else '<I', size) + head + data


def npz_of(place, compressed=False, **arrays):
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(place / 'set.npz', 'w', kind) as archive:
        for name, data in arrays.items():
            archive.writestr(f'{name}.npy', data)
    return place / 'set.npz'


def header(shape, descr='|u1', fortran=False):
    return dict(descr=descr, fortran_order=fortran, shape=shape)


GOOD = npy(header((5, 32, 32, 3)), bytes(5 * 3072))
OBJECTS = npy(header((1,), '|O'), EVIL)
ARRAYS = {
    'objects': lambda place: npz_of(place, samples=OBJECTS),
    'object labels': lambda place: npz_of(place, samples=GOOD, label=npy(header((5,), '|O'), EVIL)),
    'huge': lambda place: npz_of(place, samples=npy(header((10**13, 32, 32, 3)))),
    'row': lambda place: npz_of(place, samples=npy(header((1, 10**6, 10**6, 3)), bytes(100))),
    'overflow': lambda place: npz_of(place, samples=npy(header((2**40, 2**40, 2**40, 3)))),
    'negative': lambda place: npz_of(place, samples=npy(header((-1, 32, 32, 3)), bytes(3072))),
    'floats': lambda place: npz_of(place, samples=npy(header((5.0, 32, 32, 3)), bytes(5 * 3072))),
    'dtype': lambda place: npz_of(place, samples=npy(header((1,), '|S9999999999'))),
    'fields': lambda place: npz_of(place, samples=npy(header((1,), [('a', '|u1', (10**9,))]))),
    'version': lambda place: npz_of(place, samples=GOOD[:6] + b'\x09' + GOOD[7:]),
    'version 3': lambda place: npz_of(place, samples=npy(header((10**12, 32, 32, 3)), version=3)),
    'long header': lambda place: npz_of(place, samples=npy(header((5, 32, 32, 3)), version=2, length=4_000_000_000)),
    'megabyte': lambda place: npz_of(place, compressed=True, samples=npy(
        {**header((5, 32, 32, 3)), 'x': 'x' * 2**20}, bytes(5 * 3072), version=2)),
    'code': lambda place: npz_of(place, samples=npy("{'descr': '|u1', 'fortran_order': False, 'shape': "
                                                    "__import__('os').system('touch PWNED')}")),
    'brackets': lambda place: npz_of(place, samples=npy('(' * 9000)),
    'labels': lambda place: npz_of(place, samples=GOOD, label=npy(header((5,), '<i8'), np.full(5, 10**9).tobytes())),
    'many labels': lambda place: npz_of(place, samples=GOOD, label=npy(header((5, 10**12), '<f4'))),
    'short': lambda place: npz_of(place, samples=npy(header((10, 32, 32, 3)), bytes(9 * 3072))),
}


def inflating_array(place):
    """More than half a gigabyte of black images in a few megabytes; only readers that hold all of them refuse."""
    with zipfile.ZipFile(place / 'set.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open('samples.npy', 'w', force_zip64=True) as file:
            file.write(npy(header((3, 8192, 8192, 3))))
            for _ in range(3 * 24):
                file.write(bytes(8 << 20))
    return place / 'set.npz'


def reference(mu=(4,), sigma=(4, 4), descr='<f8', data=None, **more):
    """Statistics of these shapes."""
    size = int(descr[2]) if descr[2:].isdigit() else 8
    arrays = {name: npy(header(shape, descr), bytes(size * int(np.prod(shape))) if data is None else data)
              for name, shape in dict(mu=mu, sigma=sigma).items()}
    return lambda place: npz_of(place, **arrays, **more)


REFERENCES = {
    'ref objects': reference(descr='|O', data=EVIL), 'ref huge': reference((10**7,), (10**7, 10**7), data=b''),
    'ref shapes': reference((4,), (5, 5)), 'ref NaN': lambda place: npz_of(
        place, mu=npy(header((4,), '<f8'), np.full(4, np.nan).tobytes()), sigma=npy(header((4, 4), '<f8'), bytes(128))),
    'ref text': reference(detector=npy(header((), '<U100000000'), b'')),
    'ref features': reference(features=npy(header((10**12, 4), '<f2'))),
    'ref pickle': lambda place: written(place / 'ref.pkl', EVIL), 'ref folder': lambda place: place,
    'ref page': lambda place: written(place / 'ref.npz', b'<html>'),
    'ref npy': lambda place: written(place / 'ref.npy', OBJECTS),
}

#----------------------------------------------------------------------------
# Places that are not files.

def fifo(place, name):
    os.mkfifo(place / name)
    return place / name


def link(place, name, target):
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).symlink_to(target)
    return place / name


def fifo_as_image(place):
    (place / 'set').mkdir()
    return fifo(place / 'set', 'a.png').parent


def folder_named(place, name):
    (place / name).mkdir()
    return place / name


PLACES = {
    'fifo.zip': lambda place: fifo(place, 'fifo.zip'), 'fifo.npz': lambda place: fifo(place, 'fifo.npz'),
    'zero.npz': lambda place: link(place, 'zero.npz', '/dev/zero'),
    'zero.zip': lambda place: link(place, 'zero.zip', '/dev/zero'),
    'loop.npz': lambda place: link(place, 'loop.npz', 'loop.npz'),
    'gone.zip': lambda place: link(place, 'gone.zip', 'nowhere'),
    'folder.npz': lambda place: folder_named(place, 'folder.npz'), 'fifo image': fifo_as_image,
    'zero image': lambda place: link(place, 'set/a.png', '/dev/zero').parent,
    'loop image': lambda place: link(place, 'set/a.png', 'a.png').parent,
    'folder image': lambda place: folder_named(folder_named(place, 'set'), 'a.png').parent,
}
