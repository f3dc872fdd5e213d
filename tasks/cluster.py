"""Where the work of a stage is spread: Dask behind the core's `Executor`, on this machine or on any scheduler.

Prefect's own Dask runner costs 80–110 ms a task, a future of our own 3.5 ms: so a stage is one Prefect task that feeds thousands of
futures.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import dask
import psutil
from distributed import Client, Future, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from mtv_core.executor import Outcome

if TYPE_CHECKING:
    from mtv_core.compute import ComputeConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

# A second look does not help against these, although they are OSErrors.
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_PERMANENT_ERRNO = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG})

# Seconds between SIGTERM (by Dask) and SIGKILL (by us) for the workers of a local cluster.
_CLOSE_SECONDS = 10.0
_CONNECT_SECONDS = 20.0


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the network or a store had a moment, not the data or the user."""
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    return isinstance(error, OSError) and not isinstance(error, _PERMANENT) and error.errno not in _PERMANENT_ERRNO


@dataclass
class _Piece:
    """One item on its way. `deaths` counts how often a worker died under it beyond what the scheduler forgives."""

    index: int
    attempts: int = 0
    deaths: int = 0


@dataclass
class DaskExecutor:
    """`mtv_core.executor.Executor` over a Dask client.

    At most `window` futures are in flight, so that a million items need no million futures. An item whose worker died more often than
    the scheduler forgives is tried once more, alone: it may only have shared the worker with the guilty one. If it kills again, its
    outcome says `killed`.
    """

    client: Client
    retries: int = 2
    window: int = 0

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        resources: Mapping[str, float] | None = None,
    ) -> Iterator[Outcome[Item, Result]]:
        """Yield one outcome an item as it finishes; closing the iterator cancels what is in flight.

        Raises:
            ValueError: no worker of the cluster offers the resources asked for (Dask would wait forever).
        """
        if not items:
            return
        self._check_resources(resources)
        waiting = deque(_Piece(index) for index in range(len(items)))
        suspects: deque[_Piece] = deque()
        flying: dict[Future[Result], _Piece] = {}
        finished = as_completed([], loop=self.client.loop)

        def launch(piece: _Piece) -> None:
            future = self.client.submit(function, items[piece.index], pure=False, resources=dict(resources or {}) or None)
            flying[future] = piece
            finished.add(future)

        try:
            while waiting or suspects or flying:
                while waiting and len(flying) < self._window():
                    launch(waiting.popleft())
                if not flying:
                    launch(suspects.popleft())
                future = next(finished)
                piece = flying.pop(future)
                item = items[piece.index]
                result, error = _fetch(future)
                if error is None:
                    yield Outcome(item, result=result)
                elif isinstance(error, KilledWorker):
                    piece.deaths += 1
                    if piece.deaths == 1 and len(items) > 1:
                        suspects.append(piece)
                    else:
                        yield Outcome(item, error=error, killed=True)
                elif is_transient(error) and piece.attempts < self.retries:
                    piece.attempts += 1
                    log.warning("trying again (%d of %d): %s: %s", piece.attempts, self.retries, type(error).__name__, error)
                    waiting.append(piece)
                else:
                    yield Outcome(item, error=error)
                del future  # The scheduler forgets a result nobody holds.
        finally:
            if flying:
                with contextlib.suppress(Exception):
                    self.client.cancel(list(flying), force=True)

    def _window(self) -> int:
        """In-flight futures: twice the threads keeps every worker busy while results travel. Asked again as the cluster may grow."""
        return self.window or max(2 * sum(self.client.nthreads().values()), 4)

    def _check_resources(self, resources: Mapping[str, float] | None) -> None:
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        if not resources or not workers:
            return
        for worker in workers:
            offered = worker.get("resources", {})
            if all(offered.get(name, 0) >= amount for name, amount in resources.items()):
                return
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in resources.items())
        raise ValueError(
            f"no worker of the cluster offers {wanted}. Start workers with it (`--resources`), or set compute.gpus_per_worker."
        )


def _fetch(future: Future[Result]) -> tuple[Result | None, Exception | None]:
    """What a finished piece returned, or what stopped it.

    A result that died with its worker before it came here is computed again by Dask, and waited for.
    """
    try:
        error = future.exception()
        if isinstance(error, Exception):
            # The worker's traceback: one of this frame would keep the future, and so the scheduler's memory of it, as long as the error.
            return None, error.with_traceback(future.traceback())
        return future.result(), None
    except CancelledError as lost:
        return None, RuntimeError(f"the connection to the Dask scheduler was lost: {lost}")
    except Exception as late:
        return None, late


@contextlib.contextmanager
def connect(compute: ComputeConfig) -> Iterator[DaskExecutor]:
    """Give an executor on the configured scheduler, or on a cluster of this machine's processes that ends with the block.

    Worker processes are spawned, never forked (Lance does not survive a fork). They end on leaving the block however it is left; should
    this process be killed outright, they notice the closed pipe and exit.

    Raises:
        ConnectionError: nothing answers at `compute.scheduler`.
    """
    options = {
        "distributed.scheduler.allowed-failures": 1,  # Two deaths, then once more alone: see DaskExecutor.
        "distributed.scheduler.worker-saturation": 1.0,  # Nothing waits on a worker that another task may kill.
        "distributed.worker.multiprocessing-method": "spawn",
        # A nanny starts a worker that died again. Were it given up when that takes longer than 15 s, the last one would leave a cluster
        # without workers, and whoever waits for it waits for ever.
        "distributed.deploy.lost-worker-timeout": "1h",
        "distributed.worker.profile.enabled": False,  # Nobody looks at it: there is no dashboard.
        # Dask lets glibc return freed memory at 64 KiB, so that a model's activations are new pages at every step: a third of the time.
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 30,
        # Setting the one stops glibc from adapting the other, whose 128 KiB make every decoded picture new pages: a quarter of the time of
        # ingest. Larger blocks than this (its own limit) still go back at once.
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 << 20,
    }
    with dask.config.set(options), _own_environment():
        if compute.scheduler is not None:
            try:
                client = Client(compute.scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
            except OSError as error:
                raise ConnectionError(
                    f"no Dask scheduler answers at {compute.scheduler}: start one, or leave compute.scheduler out"
                ) from error
            with client:
                yield DaskExecutor(client, retries=compute.retries)
            return
        # A result lost with its worker is asked for until the time-out: on one machine there is no need to wait long.
        with dask.config.set({"distributed.comm.timeouts.connect": "5s"}), _local(compute) as client:
            yield DaskExecutor(client, retries=compute.retries)


class _OnDemand:
    """An executor that connects when it is given the first piece of work."""

    def __init__(self, compute: ComputeConfig, stack: contextlib.ExitStack) -> None:
        self.compute, self.stack = compute, stack
        self.executor: DaskExecutor | None = None

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        resources: Mapping[str, float] | None = None,
    ) -> Iterator[Outcome[Item, Result]]:
        """As `DaskExecutor.map`; raises as `connect` too."""
        if not items:
            return
        if self.executor is None:
            self.executor = self.stack.enter_context(connect(self.compute))
        yield from self.executor.map(function, items, resources=resources)


@contextlib.contextmanager
def on_demand(compute: ComputeConfig) -> Iterator[_OnDemand]:
    """`connect` for a stage that may have nothing to do: without work no cluster is started, which takes seconds."""
    with contextlib.ExitStack() as stack:
        yield _OnDemand(compute, stack)


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Take back what Dask puts into this process's environment for its workers, or every later child inherits it too (torchrun, say)."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def _local(compute: ComputeConfig) -> Iterator[Client]:
    cluster = LocalCluster(
        n_workers=compute.workers,
        threads_per_worker=compute.threads_per_worker,
        memory_limit=compute.memory_limit,
        processes=True,
        dashboard_address=None,
        scheduler_kwargs={
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
        },  # Else the scheduler looks for port 8787, and warns if it is taken.
        host="127.0.0.1",
        resources={"GPU": compute.gpus_per_worker} if compute.gpus_per_worker else None,
        silence_logs=logging.CRITICAL,
    )
    client = None
    try:
        client = Client(cluster, timeout="60s", set_as_default=False)
        yield client
    finally:
        workers = _worker_processes(cluster)
        with contextlib.suppress(Exception):
            if client is not None:
                client.close(timeout=_CLOSE_SECONDS)
        with contextlib.suppress(Exception):
            cluster.close(timeout=_CLOSE_SECONDS)
        _end(workers)


def _worker_processes(cluster: LocalCluster) -> list[psutil.Process]:
    """The worker processes and everything they started, seen before closing (psutil tells a reused pid apart)."""
    processes = []
    for nanny in cluster.workers.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if nanny.pid is not None:
                process = psutil.Process(nanny.pid)
                processes += [process, *process.children(recursive=True)]
    return processes


def _end(processes: list[psutil.Process]) -> None:
    alive = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + _CLOSE_SECONDS
    psutil.wait_procs(alive, timeout=max(deadline - time.monotonic(), 0))
