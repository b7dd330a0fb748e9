"""Files from the web, cached complete or not at all, and used offline the next time."""

import hashlib
import os
import re
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests
import tqdm
import urllib3

from .files import atomic_write, file_sha256, resolve_path

TIMEOUT_SEC = 30
TRIES = 3
CHUNK = 1 << 16
MAX_BYTES = 1 << 36  # of a file; published networks have less than a tenth of that
MAX_UNKNOWN = 1 << 33  # of a file whose server does not state its length
PATIENCE_SEC, LEAST_RATE = 60, 10_000  # after this time, the least rate in bytes per second


def cache_folder() -> Path:
    """$DIFFUSION_CACHE, or a folder in the user's own cache."""
    given = os.environ.get('DIFFUSION_CACHE')
    return Path(given) if given else Path.home() / '.cache' / 'diffusion-sharpening'


def is_url(path) -> bool:
    return re.match(r'https?://', str(path)) is not None


def fetch(url, sha256: str | None = None, quiet: bool = False) -> Path:
    """The local file behind `url`, downloaded once into the cache; a path is only resolved.

    A file that is cut short, or whose SHA-256 is not `sha256` (hexadecimal), is not kept in the cache.
    Raises ValueError for a wrong checksum and for an endless file, OSError if the file cannot be downloaded.
    """
    if not is_url(url):
        return resolve_path(url)
    name = re.sub(r'[^A-Za-z0-9._-]', '_', Path(urlsplit(url).path).name) or 'file'
    path = cache_folder() / f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}'
    if path.is_file() and (sha256 is None or sha256 == file_sha256(path)):
        return path
    broken = None
    for _ in range(TRIES):
        try:
            _download(url, path, sha256, quiet)
            return path
        except requests.HTTPError as error:  # the server answered; trying again would not help
            answer = f'{error.response.status_code} {error.response.reason}'
            raise OSError(f'{url} could not be downloaded (the server says {answer})') from error
        except requests.RequestException as error:  # no connection, or it broke
            broken = error
    raise OSError(f'{url} could not be downloaded ({_reason(broken)}); without a network, download it elsewhere '
                  f'and give the local path') from broken


def _download(url: str, path: Path, sha256: str | None, quiet: bool) -> None:
    digest, count, started = hashlib.sha256(), 0, time.monotonic()
    with requests.get(url, stream=True, timeout=TIMEOUT_SEC) as response:
        response.raise_for_status()
        expected = int(response.headers.get('Content-Length', 0))
        if 'Content-Encoding' in response.headers:  # the stated length is then not that of the file
            expected = 0
        with atomic_write(path) as file, tqdm.tqdm(total=expected or None, desc=path.name[17:], unit='B',
                                                   unit_scale=True, disable=quiet, file=sys.stderr) as bar:
            most = expected or MAX_UNKNOWN
            if expected > MAX_BYTES:
                raise ValueError(f'{url} has {expected:,} bytes, more than any network; give a local path')
            while chunk := _read(response):
                if count + len(chunk) > most:
                    raise ValueError(f'{url} does not end after {most:,} bytes')
                seconds = time.monotonic() - started
                if seconds > PATIENCE_SEC and count < LEAST_RATE * seconds:
                    raise requests.ConnectionError(f'{count} bytes in {seconds:.0f} s')
                file.write(chunk)
                digest.update(chunk)
                count += len(chunk)
                bar.update(len(chunk))
            if expected and count != expected:
                raise requests.ConnectionError(f'only {count} of {expected} bytes arrived')
            if sha256 is not None and digest.hexdigest() != sha256:
                raise ValueError(f'{url} has SHA-256 {digest.hexdigest()}, expected {sha256}')


def _read(response) -> bytes:
    """Whatever has arrived, at most CHUNK; requests itself would wait for all of it."""
    try:
        return response.raw.read1(CHUNK, decode_content=True)
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.ReadTimeout(str(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(f'{error} (bytes)') from error


def _reason(error: requests.RequestException) -> str:
    """The cause in a few words, instead of the chain of exceptions that requests prints."""
    if isinstance(error, requests.Timeout):
        return f'no answer within {TIMEOUT_SEC} s'
    return 'the connection broke' if 'bytes' in str(error) else 'no connection'
