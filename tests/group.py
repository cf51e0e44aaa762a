"""Several processes on this machine, connected as `torchrun` connects them (gloo)."""

import os
import socket
import sys
from pathlib import Path

import torch
import torch.multiprocessing

from hitdet_nni import distributed  # before a test's module imports mmdet in the child
from hitdet_nni.checkpoints import plain_state


def _member(rank, processes, port, function, folder, arguments):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    distributed.join()
    torch.save(plain_state(function(*arguments)), Path(folder) / f"{rank}.pt")
    distributed.leave()


def run_group(function, folder, *arguments, processes=2):
    """What `function(*arguments)` returns in each of several processes; it must be importable, its result plain."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_member, (processes, port, function, str(folder), arguments), nprocs=processes)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]
