"""Gives files to commands, in children of a process that has imported everything, with little memory and time.

A line of JSON on standard input, {"commands": [[...], ...], "folder": ...}, gives one on standard output, a list of
{"code": ..., "output": ..., "seconds": ...}: one child runs the commands one after the other. A code above 128 means
that the child was ended, by its limit of work or by waiting long; later commands then have it too.
"""

import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback

import click
import PIL.Image

import classifier_lib
import dataset_tool
import fid_npzs
import train_score
from dnnlib.cli import blame
from metrics.detectors import load_inception
from networks import convert
from torch_utils.checkpoint import load_state

MEMORY = 1 << 29  # beyond what the idle process has
WORK, WAITING = 10, 120  # seconds; tests that run side by side share the cores


def library(function):
    """A command that gives a file to a function of the library."""
    @click.command()
    @click.argument('path')
    def main(path):
        with blame('PATH'):
            function(path)

    return main


COMMANDS = dict(
    dataset_tool=dataset_tool.main, fid_npzs=fid_npzs.main, train_score=train_score.main, convert=convert.main,
    classifier=library(lambda path: classifier_lib.load_classifier(path, 32, 'cpu')),
    inception=library(load_inception), state=library(load_state))


def child(commands, folder, outputs, answers):
    """Never returns."""
    os.setsid()
    os.chdir(folder)
    with open('/proc/self/statm') as file:
        limit = int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE') + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for (name, *arguments), output in zip(commands, outputs):
        started = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(started) + WORK, resource.RLIM_INFINITY))
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            COMMANDS[name](arguments)
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(answers, json.dumps([code, time.process_time() - started]).encode() + b'\n')
    os._exit(0)


def run(commands, folder):
    outputs = [os.memfd_create('output') for _ in commands]
    answers = os.memfd_create('answers')
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        child(commands, folder, outputs, answers)
    ended = os.pidfd_open(pid)
    if not select.select([ended], [], [], WAITING)[0]:
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found = [json.loads(line) for line in os.pread(answers, 1 << 16, 0).splitlines()]
    found += [[137, time.monotonic() - started]] * (len(commands) - len(found))
    texts = [os.pread(output, 1 << 20, 0).decode(errors='replace') for output in outputs]
    for handle in (*outputs, answers, ended):
        os.close(handle)
    return [dict(code=code, output=text, seconds=seconds) for (code, seconds), text in zip(found, texts)]


if __name__ == '__main__':
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a thread for each core would take addresses
    PIL.Image.init()  # the modules of all formats, which each child would import
    gc.freeze()  # memory that children do not touch is not copied
    with os.fdopen(os.dup(1), 'w') as answers:
        print('[]', file=answers, flush=True)
        for line in sys.stdin:
            task = json.loads(line)
            print(json.dumps(run(**task)), file=answers, flush=True)
