"""Hubs and commands in processes of their own, which can be killed."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from pathlib import Path

from gated_hub_process import Command, _main
from pytest import MonkeyPatch
from surroundings import TOKENS, Surroundings, trust

from gated_plugin.hub.local import LocalHub


class Server:
    """A local hub that comes back on the same folder and port after a kill."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_serve, args=(self._root, self._port), daemon=True)
        self._process.start()
        while True:
            assert self._process.is_alive(), "the hub did not start"
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def restart(self) -> None:
        self.kill()
        self.start()


class Client(Command):
    """A running `gated-hub ARGUMENT…` in `surroundings`."""

    def __init__(self, surroundings: Surroundings, *arguments: object) -> None:
        surroundings.folder.mkdir(exist_ok=True)
        self.printed = [surroundings.folder / "stdout", surroundings.folder / "stderr"]
        for path in self.printed:
            path.touch()
        context = multiprocessing.get_context("forkserver")
        words = [str(word) for word in arguments]
        self.process = context.Process(target=_run, args=(surroundings, words, self.printed))
        self.process.start()


def _serve(root: Path, port: int) -> None:
    LocalHub(root, port, TOKENS).start()
    threading.Event().wait()


def _run(surroundings: Surroundings, words: list[str], printed: list[Path]) -> None:
    patch = MonkeyPatch()
    surroundings.enter(patch)
    trust(patch)
    _main(words, printed)
