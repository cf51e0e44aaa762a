"""Several processes on one training: what ``torchrun`` starts, and the few collective operations that the stages use.

Gradients are averaged here rather than by ``DistributedDataParallel``: the two phases of a search train disjoint sets
of parameters, of which DDP would exchange both each time (docs/design.md).

Torch is imported by what needs it: a process that was started alone asks here, too, whether it is the main one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hitdet_nni.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_alone = False
"""Whether :func:`alone` holds, in all threads: backward passes run in some of their own."""

BUCKET_BYTES = 32 * 2**20
"""Gradients are exchanged in pieces of about this size."""

PATIENCE = timedelta(days=1)
"""How long a process waits for the others: for hours where the main one times steps, or waits for another trial's
screening. The launcher ends them where one has failed."""

_joined = False
"""Whether this process has joined a group."""

_rehearsing = False
"""Whether :func:`rehearsed` holds, in all threads."""


def _collectives() -> Any:
    """Return the module of torch that a group of processes speaks through."""
    import torch.distributed

    return torch.distributed


def launched() -> bool:
    """Check whether ``torchrun`` (or a like launcher) started this process as one of several."""
    return _launched_processes() > 1


def _launched_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def program() -> list[str]:
    """Return the words that start ``hitdet-nni`` in as many processes as this one is among."""
    if not launched():
        return ["hitdet-nni"]
    machines = _launched_processes() // local_world_size()
    several = ["--nnodes", str(machines), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:PORT"]
    start = ["torchrun", *(several if machines > 1 else []), "--nproc-per-node", str(local_world_size())]
    return [*start, "-m", "hitdet_nni"]


def launched_as_main() -> bool:
    """Check whether this process will be the main one: known before it has joined the others."""
    return not launched() or os.environ.get("RANK", "0") == "0"


def speaks_for_machine() -> bool:
    """Check whether this process tells what ends all of them, such as a bad setting: one on each machine does."""
    return not launched() or os.environ.get("LOCAL_RANK", "0") == "0"


def init() -> None:
    """Join the group of processes that the launcher's environment variables describe: nccl on GPUs, gloo elsewhere.

    Does nothing in a process that was started alone, or has joined already.

    Raises:
        InputError: In a process for which there is no GPU.
    """
    global _joined
    if not launched() or _joined:
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise InputError(
                f"gives this process GPU {number}, counted from 0, and it sees {gpus}",
                key="LOCAL_RANK",
                allowed="as many processes as GPUs (torchrun --nproc-per-node), or LOCAL_RANK=0 where each process "
                "sees one GPU of its own",
            )
        torch.cuda.set_device(number)
        dist.init_process_group("nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    _joined = True


def destroy() -> None:
    """Leave the group, if there is one."""
    global _joined
    if _joined:
        _collectives().destroy_process_group()
        _joined = False


def rank() -> int:
    """Return the number of this process in its group, from 0."""
    number: int = _collectives().get_rank() if _joined else 0
    return number


def world_size() -> int:
    """Return the number of processes in the group; 1 without one, and within :func:`alone`."""
    number: int = _collectives().get_world_size() if _joined and not _alone else 1
    return number


@contextmanager
def alone() -> Iterator[None]:
    """Let this process compute by itself within the context: nothing is exchanged with the others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def rehearsed() -> Iterator[None]:
    """Let this process's tensors count for those of every other, within the context.

    That holds of :func:`sum_in_place` and :func:`gather_tensor`: a computation that exchanges nothing else goes as in
    the group, and where it fails no other process waits for this one.
    """
    global _rehearsing
    before, _rehearsing = _rehearsing, True
    try:
        yield
    finally:
        _rehearsing = before


def local_world_size() -> int:
    """Return the number of processes of the group on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Check whether this process decides, writes and speaks for the group."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        _collectives().barrier()


def device() -> torch.device:
    """Return where this process computes: its own GPU, or the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def broadcast_object(value: Any) -> Any:
    """Return the main process's ``value`` in every process. Plain values only: trusted processes pickle it."""
    if world_size() == 1:
        return value
    box = [value]
    _collectives().broadcast_object_list(box, src=0, device=device())
    return box[0]


def gather(value: Any) -> list[Any]:
    """Return the ``value`` of every process, by rank, in every process."""
    values = [value] * world_size()
    if world_size() > 1:
        _collectives().all_gather_object(values, value)
    return values


def mean(value: float) -> float:
    """Return the mean of a number over the processes."""
    values: list[float] = gather(value)
    return sum(values) / world_size()


def sum_in_place(tensor: Tensor) -> None:
    """Replace a tensor, of any shape, by its sum over the processes."""
    if world_size() == 1:
        return
    if _rehearsing:
        tensor.mul_(world_size())
    else:
        _collectives().all_reduce(tensor)


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return every process's ``tensor``, of one shape and type, by rank: ``[processes, *shape]``, only to be read."""
    processes = world_size()
    if processes == 1 or _rehearsing:
        return tensor.expand(processes, *tensor.shape)
    tensors = tensor.new_empty(processes, *tensor.shape)
    # Into one tensor: nccl gathers a list of them elsewhere, and copies it piece by piece.
    getattr(_collectives(), gathering())(tensors.view(-1), tensor.reshape(-1))
    return tensors


def gathering() -> str:
    """Return the name that this torch has for gathering into one tensor."""
    return "all_gather_single" if hasattr(_collectives(), "all_gather_single") else "all_gather_into_tensor"


def broadcast_state(module: nn.Module) -> None:
    """Give every process the main one's parameters and buffers."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            _collectives().broadcast(tensor.data, src=0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes.

    A parameter that has a gradient in some process only counts as zero in the others; one that has none anywhere keeps
    none, so that its optimiser leaves it alone.

    Args:
        parameters: The same parameters in the same order in every process.
    """
    if world_size() == 1:
        return
    listed = list(parameters)
    if not listed:
        return
    import torch

    has_gradient = torch.tensor([p.grad is not None for p in listed], dtype=torch.int32, device=listed[0].device)
    _collectives().all_reduce(has_gradient, op=_collectives().ReduceOp.MAX)
    for parameter, present in zip(listed, has_gradient.tolist(), strict=True):
        if present and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average([parameter.grad for parameter in listed if parameter.grad is not None])


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, of any shapes, by their means over the processes, in place; those of integers are left alone."""
    if world_size() == 1:
        return
    import torch

    for bucket in _buckets(tensor for tensor in tensors if tensor.is_floating_point()):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        sum_in_place(flat)
        flat /= world_size()
        for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sort tensors into groups of one type, each of about ``BUCKET_BYTES``."""
    buckets: list[list[Tensor]] = []
    size: dict[tuple[torch.dtype, torch.device], int] = {}
    current: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kind = (tensor.dtype, tensor.device)
        if kind not in current or size[kind] > BUCKET_BYTES:
            current[kind], size[kind] = [], 0
            buckets.append(current[kind])
        current[kind].append(tensor)
        size[kind] += tensor.numel() * tensor.element_size()
    return buckets


def require_equal(values: Iterable[Tensor], what: str) -> None:
    """Stop loudly where processes that must hold equal values do not.

    Args:
        values: Tensors of any shapes, as many and of the same in each process.
        what: What they are called in the message.

    Raises:
        RuntimeError: Naming the processes whose values differ from the main one's, bit by bit.
    """
    if world_size() == 1:
        return
    import torch

    flat = torch.cat([value.detach().reshape(-1).double() for value in values]).cpu()
    others = gather(flat.numpy().tobytes())
    different = [number for number, other in enumerate(others) if other != others[0]]
    if different:
        raise RuntimeError(
            f"{what} of process {different[0]} differ from those of process 0: the run cannot be trusted"
        )
