"""Stands for `python` in a test's command: see warm.py. Imports little, because it is started often."""

import array
import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path

LISTENS = "WARM_SOCKET"
PR_SET_PDEATHSIG = 1


def main() -> int:
    # torchrun that is killed takes its processes with it: their forks are no children of it, and would not know
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    fork = socket.socket(socket.AF_UNIX)
    fork.connect(os.environ[LISTENS])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: fork.sendall(bytes([number])))

    request = json.dumps([sys.argv[1:], str(Path.cwd()), dict(os.environ)]).encode() + b"\n"
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    sent = fork.sendmsg([request], rights)
    fork.sendall(request[sent:])

    code = int(fork.recv(16) or b"70")
    if code < 0:  # ended by a signal: end likewise
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
