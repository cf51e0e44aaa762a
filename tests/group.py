"""Several processes on this machine, connected as `torchrun` connects them (gloo)."""

import multiprocessing
import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing

from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import plain_state


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
    distributed.init()
    torch.save(plain_state(function(*arguments)), Path(folder) / f"{rank}.pt")
    distributed.destroy()


def run_group(function, folder, *arguments, processes=2):
    """What `function(*arguments)` returns in each of several processes; its result must be plain."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = (processes, port, function, str(folder), arguments)
    # Forked from a process that has imported everything and done nothing: autograd's threads do not survive a fork.
    multiprocessing.set_forkserver_preload(["hitdet_nni.training.retrain", "hitdet_nni.nas.supernet"])
    torch.multiprocessing.start_processes(_member, arguments, nprocs=processes, start_method="forkserver")
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(processes)]
