"""Two processes as torchrun starts them, but forked: `forked.py SCRIPT …`, `forked.py -m MODULE …`.

For what needs the two and not torchrun itself: it loads PyTorch for itself and for each of them.
Run through `fresh_python`, which has loaded it already.
"""

import os
import runpy
import signal
import socket
import sys
from pathlib import Path

N_PROCESSES = 2


def become(rank, port):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(N_PROCESSES),
        LOCAL_WORLD_SIZE=str(N_PROCESSES),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def run(program, *arguments):
    sys.argv = [program, *arguments]
    if program == "-m":
        sys.argv = list(arguments)
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program).parent)
        runpy.run_path(program, run_name="__main__")


def wait(children):
    """As soon as one has failed the others are ended; 1 where one has failed."""
    failed = 0
    while children:
        child, status = os.wait()
        children.remove(child)
        if status and not failed:
            failed = 1
            for other in children:
                os.kill(other, signal.SIGTERM)
    return failed


def main():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in range(N_PROCESSES):
        child = os.fork()
        if child == 0:
            become(rank, port)
            return run(*sys.argv[1:])
        children.append(child)
    return sys.exit(wait(children))


if __name__ == "__main__":
    main()
