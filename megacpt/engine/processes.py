"""Joining the world of processes that a launcher started, and leaving it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public, but not marked so
from torch.utils.cpp_extension import get_default_build_root

from megacpt.errors import LaunchError
from megacpt.observe.log import logger
from megacpt.parallel.grid import Grid
from megacpt.parallel.group import TensorGroup

MEETING_SECONDS = 300.0
"""How long ranks wait for each other at the start. Imports from a busy network disk take minutes."""

COLLECTIVE_SECONDS = 600.0
"""How long a collective may take, as DeepSpeed has it; a watchdog should speak before."""

COMPILE_SECONDS = 1200.0
"""How long DeepSpeed's collectives for CPUs may compile; a minute is usual, a busy machine has taken seven."""
TOLD_AFTER_SECONDS = 60.0
"""After how long a wait for them is explained."""


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        owns_processes: the process group was made here, and is taken down by `leave_world`.
    """

    rank: int
    world_size: int
    device: torch.device
    owns_processes: bool = True


def join_world() -> World:
    """Join the processes that `deepspeed`, `torchrun` or `srun` started; without a launcher, a world of one.

    The launcher says who is who through RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. CUDA devices talk
    through NCCL, everything else through gloo.

    Raises:
        LaunchError: the launcher's variables are incomplete, or the processes do not find each other.
    """
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.setdefault("MASTER_PORT", "0")
    missing = [
        name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise LaunchError(
            "the launcher did not say who this process is",
            found=f"no {', '.join(missing)} in the environment",
            hint="Start with `deepspeed megacpt/train.py`, `torchrun megacpt/train.py`, or slurm/train.sbatch.",
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator = get_accelerator()
    on_cuda = accelerator.device_name() == "cuda"
    if on_cuda:
        if local_rank >= (num_devices := accelerator.device_count()):
            raise LaunchError(
                f"process {local_rank} of {socket.gethostname()} has no GPU",
                found=f"{num_devices} GPUs that a process sees",
                expected=f"at least {local_rank + 1}: each takes the one of its number among all of the node",
                hint="Start no more processes on a node than it has GPUs; under Slurm, bind none to single GPUs "
                "(--gpu-bind=none, --gpus-per-node).",
            )
        accelerator.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_per_process())
    if not on_cuda:
        wait_for_compiler(Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()))
    owns_processes = not dist.is_initialized()
    backend = "nccl" if on_cuda else "gloo"
    try:
        # torchrun has its ranks meet by itself.
        is_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if owns_processes and not is_torchrun and int(os.environ["WORLD_SIZE"]) > 1:
            _meet(backend)
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    except dist.DistNetworkError as error:
        raise LaunchError(
            "the processes could not meet",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            found=str(error).strip().partition("\n")[0],
            hint="If another run holds the port, give this one its own: deepspeed --master_port 29501 ...",
        ) from error
    device = torch.device(accelerator.device_name(local_rank if on_cuda else None))
    return World(dist.get_rank(), dist.get_world_size(), device, owns_processes)


def wait_for_compiler(extensions: Path, patience_seconds: float = COMPILE_SECONDS) -> None:
    """Wait while another process compiles DeepSpeed's collectives, and remove the lock of one that died of it.

    torch waits for that lock for ever, before anything could say so: after a kill at that moment no run would start.

    Args:
        extensions: where torch keeps what it compiles.
        patience_seconds: a lock that is older was left behind.
    """
    for lock in extensions.rglob("deepspeed_shm_comm/lock"):
        told_at = time.monotonic() + TOLD_AFTER_SECONDS
        while (age_seconds := _age_seconds(lock)) is not None:
            if time.monotonic() > told_at:
                logger().warning("waiting for a process that compiles there; if none does, remove %s", lock)
                told_at = float("inf")
            if age_seconds > patience_seconds:
                logger().warning("removed %s: whoever compiled there was killed, %.0f s ago", lock, age_seconds)
                lock.unlink(missing_ok=True)
            time.sleep(0.1)


def _age_seconds(path: Path) -> float | None:
    """How long ago a file was written; None if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _meet(backend: str, timeout_seconds: float = MEETING_SECONDS) -> None:
    """Wait for all ranks and make the process group. torch's own meeting does not say who is missing.

    Raises:
        LaunchError: on rank 0, naming the ranks that did not come; on another, saying that rank 0 is not there.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + timeout_seconds
    try:
        store = TCPStore(
            address,
            port,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout_seconds),
            wait_for_workers=False,
        )
    except dist.DistStoreError as error:
        raise LaunchError(
            f"rank {rank} on {socket.gethostname()} waited {timeout_seconds:g} s for rank 0",
            where=f"{address}:{port}",
            hint="Is that node up, and can this one reach it? See NCCL_SOCKET_IFNAME in slurm/README.md.",
        ) from error
    store.set(f"rank {rank}", socket.gethostname())
    if rank == 0:
        missing = [other for other in range(world_size) if not _comes(store, other, deadline)]
        if missing:
            raise LaunchError(
                f"{len(missing)} of {world_size} ranks did not come within {timeout_seconds:g} s",
                found=f"no rank {', '.join(map(str, missing[:16]))}",
                hint="Look at the logs of their nodes: they crashed, never started, or cannot reach this node.",
            )
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )


def _comes(store: TCPStore, rank: int, deadline: float) -> bool:
    try:
        store.wait([f"rank {rank}"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
    except dist.DistStoreError:
        return False
    return True


def from_main(world: World, numbers: Sequence[float]) -> list[float]:
    """Rank 0's numbers, on every rank. Collective: every rank hands in as many, its own are not looked at."""
    values = torch.tensor(numbers, dtype=torch.float64, device=world.device)
    dist.broadcast(values, src=0)
    return [float(value) for value in values.tolist()]


def threads_per_process() -> int:
    """This machine's cores over the processes that share it, at least 1. The launchers say how many those are."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    return max(1, len(os.sched_getaffinity(0)) // num_processes)


def leave_world(world: World) -> None:
    """Take down the process groups that `join_world` made, so that no rank waits for another at exit."""
    if world.owns_processes:
        dist.destroy_process_group()


def make_tensor_group(grid: Grid, rank: int) -> TensorGroup:
    """My tensor-parallel group. Collective: every rank calls it, at the same place."""
    if grid.tensor == 1:
        return TensorGroup()
    mine = None
    for ranks in grid.tensor_groups():
        group = dist.new_group(ranks)
        if rank in ranks:
            mine = TensorGroup(rank=ranks.index(rank), size=len(ranks), process_group=group)
    assert mine is not None
    return mine
