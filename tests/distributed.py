"""Run the body of a rank in several processes: how the tests try what needs a process group.

A fork server imports torch, transformers and DeepSpeed once per test session, single-threaded, and forks a fresh
process for every rank of every call. A fork costs about 15 ms where the imports cost 8 s, and nothing has to be torn
down or reset between calls: process groups, DeepSpeed's module globals and the memory go with the process. The price
is that a rank cannot keep anything for the next call.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


class RankFailure(AssertionError):
    """A rank raised, died, or did not finish in time; the text carries its traceback."""


def run_ranks(
    world_size: int, body: Callable[..., Any], *args: Any, timeout_seconds: float = 240.0, **kwargs: Any
) -> list[Any]:
    """Call `body(rank, *args, **kwargs)` on `world_size` gloo ranks and return what they return, in rank order.

    `body` must be a module-level function, its arguments and results picklable (they travel as copies, tensors too).
    Each rank finds the environment that a launcher sets and an initialised process group, torch's and DeepSpeed's.

    Raises:
        RankFailure: with the traceback of the rank that failed first, as soon as it does; the others are killed. When
            time runs out: with the stack of every rank that has not finished.
    """
    __tracebackhide__ = True
    payload = pickle.dumps((body, args, kwargs))
    environment = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    with tempfile.TemporaryDirectory(prefix="megacpt-ranks-") as name:
        folder = Path(name)
        processes: list[BaseProcess] = []
        pipes: list[Connection] = []
        try:
            for rank in range(world_size):
                ours, theirs = _context.Pipe(duplex=False)
                arguments = (rank, environment, folder, payload, theirs)
                processes.append(_context.Process(target=_run_rank, args=arguments, daemon=True))
                processes[-1].start()
                theirs.close()
                pipes.append(ours)
            return _collect(processes, pipes, folder, timeout_seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for pipe in pipes:
                pipe.close()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _collect(processes: list[BaseProcess], pipes: list[Connection], folder: Path, timeout_seconds: float) -> list[Any]:
    """The results of all ranks; raises at the first failure."""
    __tracebackhide__ = True
    world_size = len(processes)
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(results) < world_size:
        running = {pipes[rank]: rank for rank in range(world_size) if rank not in results}
        ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            stacks = _stacks({rank: processes[rank] for rank in running.values()}, folder)
            raise RankFailure(f"not finished in {timeout_seconds:g} s:\n\n{stacks}")
        failures: list[tuple[float, str]] = []
        for pipe, rank in running.items():
            if pipe not in ready:
                continue
            try:
                failed_at, value = pickle.loads(pipe.recv_bytes())
            except EOFError:
                processes[rank].join()
                failures.append((0.0, f"rank {rank} of {world_size} died with exit code {processes[rank].exitcode}"))
                continue
            if failed_at is None:
                results[rank] = value
            else:
                failures.append((failed_at, f"rank {rank} of {world_size} failed:\n\n{value}"))
        if failures:  # the other ranks fail because the first one is gone: its text is the one that helps
            raise RankFailure(min(failures)[1])
    return [results[rank] for rank in range(world_size)]


def _stacks(running: dict[int, BaseProcess], folder: Path) -> str:
    """Where each of these ranks stands now."""
    for process in running.values():
        os.kill(process.pid or 0, signal.SIGUSR1)
    time.sleep(0.5)
    return "\n".join(f"rank {rank}:\n{(folder / f'stack_{rank}').read_text()}" for rank in running)


def _run_rank(rank: int, environment: dict[str, str], folder: Path, payload: bytes, pipe: Connection) -> None:
    """The life of one rank's process.

    The result is sent as bytes: multiprocessing's own pickling would share tensors with a process that is gone.
    """
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    faulthandler.register(signal.SIGUSR1, (folder / f"stack_{rank}").open("w"), all_threads=False)
    try:
        import deepspeed
        import torch

        torch.set_num_threads(1)
        deepspeed.init_distributed(
            "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=int(environment["WORLD_SIZE"]),
        )
        body, args, kwargs = pickle.loads(payload)
        message = pickle.dumps((None, body(rank, *args, **kwargs)))
        torch.distributed.barrier()  # leaving early would break the connections of ranks still at work
    except BaseException:
        message = pickle.dumps((time.monotonic(), traceback.format_exc()))
    pipe.send_bytes(message)
    pipe.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the threads of the process groups have nothing left to do
