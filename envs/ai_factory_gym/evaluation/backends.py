"""Where work is done: in processes of this machine, or on Ray, with the same results in the same order either way.

Work is a list of items and a function that opens a worker: called once per worker, it returns what turns an item into
its result. So what is dear to set up is set up once per worker and used for all of its items.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeAlias

from ai_factory_gym.errors import ConfigError, unknown

BACKENDS = ("local", "ray")

OpenWorker: TypeAlias = Callable[[], Callable[[Any], Any]]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def check_backend(backend: str) -> str:
    """Return the name of a backend that can be used here.

    Raises:
        ConfigError: When there is none of that name, or what it needs is not installed.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if backend == "ray":
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigError("backend: 'ray' needs Ray; install ai-factory-gym[ray], or use 'local'.") from error
    return backend


@contextlib.contextmanager
def connected(backend: str, workers: int) -> Iterator[None]:
    """Be connected to the workers of a backend; around several distributions it saves connecting for each.

    On Ray that is as this process is already, or to the cluster of RAY_ADDRESS, or to one that is started on this
    machine, with a core per worker, and ends here.
    """
    if backend == "local":
        yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level="warning")
    else:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level="warning")
    try:
        yield
    finally:
        # Of a cluster that was there before, this ends the connection only.
        ray.shutdown()


def pack(backend: str, open_worker: OpenWorker) -> bytes:
    """Return what opens a worker in the form in which it is sent to workers.

    Local processes import the script that started them and take whatever its modules define. Ray's workers do not, so
    they are sent the functions and classes of the script themselves.

    Raises:
        Exception: Of any kind, when it cannot be pickled.
    """
    if backend == "local":
        return pickle.dumps(open_worker)
    from ray import cloudpickle

    packed: bytes = cloudpickle.dumps(open_worker)
    return packed


def distribute(backend: str, packed: bytes, items: Sequence[Any], workers: int) -> Generator[Any]:
    """Yield the result of every item, in the order of the items; a worker takes the next one when it is free.

    An exception of the work is raised here as it is. Close the generator to stop early.

    Args:
        backend: One of ``BACKENDS``, as ``check_backend`` returned it.
        packed: What `pack` returned for that backend.
        items: What to work on; picklable.
        workers: Number of workers, each for one core.

    Raises:
        RuntimeError: When a worker dies.
    """
    return {"local": _on_processes, "ray": _on_ray}[backend](packed, items, workers)


# ------------------------------------------------------------------------------------------------- local processes


def _on_processes(packed: bytes, items: Sequence[Any], workers: int) -> Generator[Any]:
    with _single_threaded_children():
        executor = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_process, initargs=(packed,)
        )
        try:
            yield from executor.map(_work_in_process, items)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A worker process died: its own error is printed above. If it asks for the 'main' idiom, do this "
                "under `if __name__ == '__main__':`; if there is none, it may have run out of memory."
            ) from error
        finally:
            executor.shutdown(cancel_futures=True)


_PROCESS: dict[str, Any] = {}


def _start_process(packed: bytes) -> None:
    _PROCESS["packed"] = packed


def _work_in_process(item: Any) -> Any:
    # Opened by the first item rather than by the initializer, whose exceptions reach the caller as a dead pool only.
    if "work" not in _PROCESS:
        _PROCESS["work"] = pickle.loads(_PROCESS["packed"])()
    return _PROCESS["work"](item)


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Have processes started meanwhile use one thread each: together they already fill the cores they are meant to."""
    added = [name for name in _THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


# ------------------------------------------------------------------------------------------------------------- Ray


class _Actor:
    """A worker on Ray. It is opened by a call: an exception of its constructor would arrive as a dead actor only."""

    def open(self, packed: bytes) -> None:
        self.work = pickle.loads(packed)()

    def run(self, item: Any) -> Any:
        return self.work(item)


def _on_ray(packed: bytes, items: Sequence[Any], workers: int) -> Generator[Any]:
    import ray

    with connected("ray", workers):
        # One core each, for which Ray also sets OMP_NUM_THREADS to 1.
        actors = [ray.remote(num_cpus=1)(_Actor).remote() for _ in range(workers)]
        # What each actor is doing: opening (None), or the item of an index. One that waits for a free core of the
        # cluster is still opening and gets no item, so the others do all the work if it waits for ever.
        busy: dict[Any, tuple[Any, int | None]] = {actor.open.remote(packed): (actor, None) for actor in actors}
        waiting = iter(enumerate(items))
        results: dict[int, Any] = {}
        try:
            for index in range(len(items)):
                while index not in results:
                    ready = ray.wait(list(busy))[0][0]
                    actor, finished = busy.pop(ready)
                    result = _get(ready)
                    if finished is not None:
                        results[finished] = result
                    upcoming = next(waiting, None)
                    if upcoming is not None:
                        busy[actor.run.remote(upcoming[1])] = (actor, upcoming[0])
                yield results.pop(index)
        finally:
            for actor in actors:
                ray.kill(actor)


def _get(reference: Any) -> Any:
    """Return the result of a call, or raise what it raised."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray raises a mixture of its own error and that of the work; the caller waits for the latter.
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"A worker on Ray died; it may have run out of memory. Ray says: {error}") from error
