"""Many writers race put_if_absent for the same keys: threads for a memory store, processes otherwise."""

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from fmscale.store.backends.protocol import Backend
from fmscale.store.open import open_store


def content(writer: int, key: str) -> bytes:
    """Bytes of `writer` for `key`: long enough that a torn write would show."""
    return f"{key} by {writer};".encode() * 400


def race_threads(url: str, writers: int, keys: list[str]) -> dict[str, list[int]]:
    """Writers that got a success for each key; every writer is a thread with its own backend."""
    start = threading.Barrier(writers)

    def write(writer: int) -> list[str]:
        backend = open_store(url)
        start.wait()
        return [key for key in keys if backend.put_if_absent(key, content(writer, key))]

    with ThreadPoolExecutor(writers) as pool:
        return _by_key(keys, list(pool.map(write, range(writers))))


def race_processes(url: str, writers: int, keys: list[str]) -> dict[str, list[int]]:
    """The same from processes. Each writes all keys at once in threads: SeaweedFS answers the losers of a key in steps
    of a second, so successive keys would need minutes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fmscale.store.open"])
    # The fork server may be older than the S3 server's keys, so they are passed on.
    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    pipes, processes = [], []
    for writer in range(writers):
        here, there = context.Pipe()
        process = context.Process(target=_write, args=(there, url, writer, keys, credentials), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    for pipe in pipes:
        pipe.send("go")
    won = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return _by_key(keys, won)


def check_winners(backend: Backend, winners: dict[str, list[int]]) -> None:
    """Assert exactly one winner for each key, with its bytes."""
    assert {key: len(who) for key, who in winners.items()} == dict.fromkeys(winners, 1)
    for key, who in winners.items():
        assert backend.get(key) == content(who[0], key)


def _write(pipe: Connection, url: str, writer: int, keys: list[str], credentials: dict[str, str]) -> None:
    os.environ.update(credentials)
    backend = open_store(url)
    pipe.send("ready")
    pipe.recv()
    with ThreadPoolExecutor(len(keys)) as pool:
        won = list(pool.map(lambda key: backend.put_if_absent(key, content(writer, key)), keys))
    pipe.send([key for key, mine in zip(keys, won, strict=True) if mine])


def _by_key(keys: list[str], won: list[list[str]]) -> dict[str, list[int]]:
    return {key: [writer for writer, mine in enumerate(won) if key in mine] for key in keys}
