"""A program: the ranks of a job as torchrun starts them, without the three seconds that torchrun takes itself.

python ranks.py N SCRIPT ARGUMENTS... ends with 0 if all ranks do; a rank that fails ends the others, as with torchrun.
"""

import os
import socket
import subprocess
import sys
import time


def main(processes: int, command: list[str]) -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = os.environ | dict(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes),
                                    MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    ranks = [subprocess.Popen([sys.executable, *command], env=environment | dict(RANK=str(rank), LOCAL_RANK=str(rank)))
             for rank in range(processes)]
    while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
        time.sleep(0.02)
    for rank in ranks:
        rank.terminate()
    codes = [rank.wait() for rank in ranks]
    return int(any(codes))


if __name__ == '__main__':
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
