"""Starts of Python that do not import again: most of what a small run costs is the import of torch and transformers.

One process, `serve`, has imported what a run needs, and forks for each start. What a test starts in place of `python` is
`warm_start.py`: it hands its words, folder, environment and output on, passes signals, and ends as its fork ends. A fork runs
the same program from its first line; only modules that are imported already are not imported again.

A fork is no child of whoever started it, and has no launcher above it: tests that look at processes start Python itself.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

SOCKET = "WARM_SOCKET"
"""The environment's name for where the forking process listens."""
START = Path(__file__).with_name("warm_start.py")
MODULES = (
    "torch._dynamo",
    "torch._inductor.config",
    "torch.distributed.launcher.api",
    "torch.distributed.fsdp",
    "torch.distributed.checkpoint.hf_storage",
    "gpg_vl.model",
    "gpg_vl.eval.generate",
    "gpg_vl.eval.runner",
    "gpg_vl.models.adapters",
    "gpg_vl.training.rank_consistency",
    "gpg_vl.training.memory_fit",
    "gpg_vl.training.watchdog",
    "gpg_vl.training.run",
    "gpg_vl.training.sharding.fsdp2",
    "transformers.models.auto.modeling_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "transformers.models.qwen2_vl.video_processing_qwen2_vl",
)
"""What is imported before a fork."""


class Request(NamedTuple):
    """A start, as it was asked for."""

    words: list[str]
    folder: str
    environment: dict[str, str]
    outputs: list[int]
    """File descriptors of stdin, stdout and stderr."""


# ---- for tests


def start(environment: dict[str, str]) -> list[str]:
    """What stands for `python` in a command. The process that forks lives as long as the one that has called this."""
    # elsewhere a process with torch is not safe to fork, and one with vLLM nowhere
    if sys.platform != "linux" or find_spec("vllm") is not None:
        return [sys.executable]
    folder = tempfile.mkdtemp(prefix="warm-")
    path = f"{folder}/socket"
    os.environ[SOCKET] = path

    # who starts early waits in the queue; the process ends when its stdin does
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        number = listener.fileno()
        server = subprocess.Popen(
            [sys.executable, __file__, str(number)],
            stdin=subprocess.PIPE,
            env=environment,
            pass_fds=[number],
        )
    assert server.stdin is not None
    atexit.register(shutil.rmtree, folder)
    atexit.register(_stop, server)
    return [sys.executable, "-S", "-E", str(START)]


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    server.wait()


# ---- the process that forks


def serve(listener: socket.socket) -> Request:
    """Fork for each start until stdin ends. Comes back in forks alone."""
    importlib.import_module("gpg_vl.models.torchvision_shim").ensure_torchvision()
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()

    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)

    waiting = selectors.DefaultSelector()
    for end in (listener, wake, sys.stdin):
        waiting.register(end, selectors.EVENT_READ)
    forks: dict[socket.socket, int] = {}
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                sys.exit(0)
            if key.fileobj is wake:
                wake.recv(4096)
                _bury(forks, waiting)
            elif key.fileobj is listener:
                start, _ = listener.accept()
                request = _receive(start)
                if (fork := os.fork()) == 0:
                    _forget(listener, wake, woken, start, *forks)
                    return request
                for output in request.outputs:
                    os.close(output)
                forks[start] = fork
                waiting.register(start, selectors.EVENT_READ)
            elif key.fileobj in forks:
                _pass_on(key.fileobj, forks[key.fileobj])


def _bury(forks: dict[socket.socket, int], waiting: selectors.BaseSelector) -> None:
    """Tell each start how its fork has ended."""
    for start, fork in list(forks.items()):
        done, status = os.waitpid(fork, os.WNOHANG)
        if done:
            with contextlib.suppress(BrokenPipeError):
                start.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            waiting.unregister(start)
            start.close()
            del forks[start]


def _pass_on(start: socket.socket, fork: int) -> None:
    """Signals, a byte each; a start that was killed takes its fork with it."""
    received = start.recv(64)
    for number in received or [signal.SIGKILL]:
        os.kill(fork, number)


def _receive(start: socket.socket) -> Request:
    outputs = array.array("i")
    message, (rights, *_), *_ = start.recvmsg(2**20, socket.CMSG_LEN(3 * outputs.itemsize))
    outputs.frombytes(rights[2])
    while not message.endswith(b"\n"):
        message += start.recv(2**20)
    return Request(*json.loads(message), outputs=list(outputs))


# ---- a fork


def _forget(*ends: socket.socket) -> None:
    """What belongs to the process that forks."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for end in ends:
        end.close()


def run(request: Request) -> None:
    """What `python WORDS...` does: a module, or a file beside its own modules. Of options, it knows -W and -P."""
    for number, output in enumerate(request.outputs):
        os.dup2(output, number)
        os.close(output)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)

    words = request.words
    while words[0] in ("-W", "-P"):
        if words[0] == "-W":
            warnings.simplefilter(words[1], append=True)
        words = words[2 if words[0] == "-W" else 1 :]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], request.folder
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


def end(code: int) -> NoReturn:
    """What Python does at its end, but for taking every module apart, which takes longer than a small run."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            output.flush()
    os._exit(code)


def main() -> NoReturn:
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        run(request)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        end(error.code if isinstance(error.code, int) else int(error.code is not None))
    except BaseException:  # noqa: BLE001 (whatever it is, it is printed as Python prints it)
        sys.excepthook(*sys.exc_info())
        end(1)
    end(0)


if __name__ == "__main__":
    main()
