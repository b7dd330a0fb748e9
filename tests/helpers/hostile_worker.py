"""Runs commands in children of a process that has imported everything, each with little memory and ten seconds of work.

A line of JSON on standard input, {"command": [...], "folder": ...}, gives one on standard output, {"code": ...,
"output": ..., "seconds": ...}; a code above 128 means that a child was ended, by its limit of work or by waiting long.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback

import click

import classifier_lib
import dataset_tool
import fid_npzs
import train_score
from dnnlib.cli import blame
from metrics.detectors import load_inception
from networks import convert
from torch_utils.checkpoint import load_state

MEMORY = 1 << 30  # beyond what the idle process has
WORK, WAITING = 10, 40  # seconds; tests that run side by side share the cores


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


def child(name, arguments, folder, output):
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(output, 1)
        os.dup2(output, 2)
        with open('/proc/self/statm') as file:
            limit = int(file.read().split()[0]) * os.sysconf('SC_PAGE_SIZE') + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (WORK, WORK))
        COMMANDS[name].main(arguments, prog_name=name)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def run(name, *arguments, folder):
    output = os.memfd_create('output')
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        child(name, arguments, folder, output)
    status = None
    while status is None and time.monotonic() < started + WAITING:
        done, found, usage = os.wait4(pid, os.WNOHANG)
        status = found if done else None
        if status is None:
            time.sleep(0.002)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    text = os.pread(output, 1 << 20, 0).decode(errors='replace')
    os.close(output)
    code = os.waitstatus_to_exitcode(status)
    return dict(code=code if code >= 0 else 128 - code, output=text, seconds=usage.ru_utime + usage.ru_stime)


if __name__ == '__main__':
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a thread for each core would take addresses
    answers = os.fdopen(os.dup(1), 'w')
    print('{}', file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        print(json.dumps(run(*task['command'], folder=task['folder'])), file=answers, flush=True)
