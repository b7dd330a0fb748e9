"""A headless Chromium that is spoken to by its DevTools protocol over two pipes."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


class Page:
    """One page: what it has loaded (`addresses`), and its errors in the console (`errors`)."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to, self._from, self._parts = to_browser, from_browser, [b'']
        self._number, self._session = 0, None
        self.addresses, self.errors, self._loaded = [], [], False
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **params) -> dict:
        """The result of a command. Raises RuntimeError."""
        self._number += 1
        message = dict(id=self._number, method=method, params=params)
        message |= {} if self._session is None else dict(sessionId=self._session)
        os.write(self._to, json.dumps(message).encode() + b'\0')
        while (answer := self._read()).get('id') != self._number:
            pass
        if 'error' in answer:
            raise RuntimeError(answer['error'])
        return answer['result']

    def _read(self) -> dict:
        while b'\0' not in self._parts[-1]:
            self._parts.append(os.read(self._from, 1 << 20))
            if not self._parts[-1]:
                raise RuntimeError('the browser is gone')
        text, _, rest = b''.join(self._parts).partition(b'\0')
        self._parts, message = [rest], json.loads(text)
        method, params = message.get('method'), message.get('params', {})
        self._loaded |= method == 'Page.loadEventFired'
        if method == 'Network.requestWillBeSent':
            self.addresses.append(params['request']['url'])
        if (method == 'Log.entryAdded' and params['entry']['level'] in ('error', 'warning')
                or method == 'Runtime.exceptionThrown'
                or method == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'warning', 'assert')):
            self.errors.append(params)
        return message

    def open(self, path, width: int, scheme: str = 'light') -> None:
        """Load a file at this width, as a telephone shows it below 600."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])
        self._loaded = False
        self.call('Page.navigate', url=f'file://{os.path.abspath(path)}')
        while not self._loaded:
            self._read()

    def evaluate(self, script: str):
        """The JSON-able value of an expression."""
        return self.call('Runtime.evaluate', expression=script, returnByValue=True)['result'].get('value')

    def screenshot(self, path) -> None:
        """A PNG of the whole page."""
        picture = self.call('Page.captureScreenshot', captureBeyondViewport=True)['data']
        with open(path, 'wb') as file:
            file.write(base64.b64decode(picture))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call('Page.printToPDF', printBackground=True)['data'])


@contextlib.contextmanager
def browser_page():
    """A page in a browser of its own, which ends with the block."""
    to_child, to_browser = os.pipe()
    from_browser, from_child = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        command = (f'exec {CHROMIUM} --headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars '
                   f'--user-data-dir={profile} --remote-debugging-pipe 3</proc/self/fd/{to_child} '
                   f'4>/proc/self/fd/{from_child}')
        process = subprocess.Popen(['sh', '-c', command], pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        os.close(to_child), os.close(from_child)
        try:
            yield Page(to_browser, from_browser)
        finally:
            process.kill()
            process.wait()
            os.close(to_browser), os.close(from_browser)
