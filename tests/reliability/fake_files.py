"""A file system in memory that can die after any effect, and forget what was not made durable.

What a crash may lose, as on journaling file systems: of each folder the changes of names since its
last sync, from any point on (in their order); of each file the content since its last sync. A
rename from one folder to another is one change, of the folder that it leads to.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ctlab_dask_zarr import CTLabError


class Died(BaseException):
    """The process is dead: nothing that it would still do has an effect."""


@dataclass(eq=False)
class Node:
    """A file or a folder; of a file what is in memory, and what is on the disk."""

    is_folder: bool
    names: dict[str, Node] = field(default_factory=dict)
    data: bytes = b""
    synced: bytes = b""


@dataclass(frozen=True)
class Change:
    """A change of names: `node` (None: nothing) is under `name`, and nowhere else before."""

    folder: Node
    name: str
    node: Node | None
    source: Node | None = None
    source_name: str = ""


class OneObject:
    """Implements the protocol `OpenedObject`, of bytes."""

    version = None
    is_settled = False

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.nbytes = len(data)

    def read(self, start: int, nbytes: int, memory: Any) -> memoryview:
        return memoryview(self.data)[start : start + nbytes]

    def expect(self, spans: Any) -> None:
        pass

    def read_end(self, nbytes: int) -> bytes:
        return self.data[max(self.nbytes - nbytes, 0) :]

    def read_whole(self, limit: int) -> bytes:
        return self.data


class FakeFiles:
    """Implements the protocol `Files`.

    Attributes
    ----------
    n_effects
        How many there were.
    before_effect
        Called with the number of the effect that is about to happen.
    """

    def __init__(self) -> None:
        self.root = Node(True)
        self.changes: list[Change] = []
        self.n_durable: dict[Node, int] = {}
        self.n_effects = 0
        self.before_effect: Callable[[int], None] = lambda number: None
        self.dead = False

    def _effect(self) -> None:
        if self.dead:
            raise Died
        self.before_effect(self.n_effects)
        if self.dead:
            raise Died
        self.n_effects += 1

    def die_at(self, number: int) -> None:
        """Die instead of the effect with this number."""

        def check(n: int) -> None:
            self.dead = n == number

        self.before_effect = check

    # Questions

    def _find(self, path: str) -> Node | None:
        if self.dead:
            raise Died
        node: Node | None = self.root
        for part in path.strip("/").split("/"):
            if node is None or not node.is_folder:
                return None
            node = node.names.get(part) if part else node
        return node

    def _get(self, path: str) -> Node:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return node

    def kind(self, path: str) -> Any:
        node = self._find(path)
        return None if node is None else "folder" if node.is_folder else "file"

    def entries(self, folder: str) -> list[tuple[str, Any]]:
        node = self._get(folder)
        if not node.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, "no folder", folder)
        return [(name, "folder" if n.is_folder else "file") for name, n in node.names.items()]

    def read(self, path: str, limit: int = 0) -> bytes:
        return self._get(path).data

    def open_object(self, path: str, *_: Any) -> OneObject:
        return OneObject(self._get(path).data)

    def stat(self, path: str) -> tuple[int, float]:
        return len(self._get(path).data), 0.0

    # Effects

    def _split(self, path: str) -> tuple[Node, str]:
        folder, name = os.path.split(path)
        return self._get(folder), name

    def _change(self, change: Change) -> None:
        self._apply(change)
        self.changes.append(change)

    @staticmethod
    def _apply(change: Change) -> None:
        if change.source is not None:
            change.source.names.pop(change.source_name, None)
        if change.node is None:
            change.folder.names.pop(change.name, None)
        else:
            change.folder.names[change.name] = change.node

    def make_folder(self, path: str) -> None:
        self._effect()
        folder, name = self._split(path)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, "there is one", path)
        self._change(Change(folder, name, Node(True)))

    def permissions(self, path: str) -> int | None:
        return None

    def set_permissions(self, path: str, permissions: int) -> None:
        pass

    def open_new(self, path: str, permissions: int | None = None, folder: Any = None) -> FakeFile:
        self._effect()
        folder, name = self._split(path)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, "there is one", path)
        node = Node(False)
        self._change(Change(folder, name, node))
        return FakeFile(self, folder, name, node)

    def rename(self, source: str, target: str) -> None:
        self._effect()
        old_folder, old_name = self._split(source)
        folder, name = self._split(target)
        if old_name not in old_folder.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        there = folder.names.get(name)
        node = old_folder.names[old_name]
        if there is not None and there.is_folder and (there.names or not node.is_folder):
            raise OSError(errno.ENOTEMPTY, "not empty", target)
        if there is not None and node.is_folder and not there.is_folder:
            raise NotADirectoryError(errno.ENOTDIR, "no folder", target)
        self._change(Change(folder, name, node, old_folder, old_name))

    def remove_file(self, path: str) -> None:
        self._effect()
        folder, name = self._split(path)
        if name not in folder.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._change(Change(folder, name, None))

    def remove_folder(self, path: str) -> None:
        self._effect()
        folder, name = self._split(path)
        if self._get(path).names:
            raise OSError(errno.ENOTEMPTY, "not empty", path)
        self._change(Change(folder, name, None))

    def sync_folder(self, path: str) -> None:
        self._effect()
        node = self._get(path)
        if node.is_folder:
            self.n_durable[node] = len(self.changes)
        else:
            node.synced = node.data

    # Crashes

    def crashes(self, n_sampled: int = 0) -> Iterator[tuple[str, FakeFiles]]:
        """Yield (what was lost, the file system after it) of every kind of crash.

        Nothing is lost when a process is killed. When power fails: everything that was not
        durable; the content of files alone; the names of one folder alone, or of all but one. Then
        `n_sampled` of all other losses: of each folder the changes from any point on, of each file
        the content or not; the same ones every time.
        """
        everything = len(self.changes)
        pending: dict[Node, list[int]] = {}
        for n, change in enumerate(self.changes):
            if n >= self.n_durable.get(change.folder, 0):
                pending.setdefault(change.folder, []).append(n)
        yield "nothing", self._after({}, everything)
        yield "all", self._after({}, None, has_lost=lambda node: True)
        yield "content", self._after({}, everything, has_lost=lambda node: True)
        for number, folder in enumerate(pending):
            only = {folder: self.n_durable.get(folder, 0)}
            yield f"names of {number}", self._after(only, everything)
            others = {folder: everything}
            yield f"all but names of {number}", self._after(others, None)
        rng = random.Random(self.n_effects)
        for sample in range(n_sampled):
            limits = {folder: rng.choice([*ns, everything]) for folder, ns in pending.items()}
            lost = {c.node for c in self.changes if c.node is not None and rng.random() < 0.5}
            yield f"sample {sample}", self._after(limits, everything, has_lost=lost.__contains__)

    def _after(
        self,
        limits: dict[Node, int],
        default: int | None,
        *,
        has_lost: Callable[[Node], bool] = lambda node: False,
    ) -> FakeFiles:
        """Replay what was kept: of a folder the changes up to its limit."""
        after = FakeFiles()
        copies: dict[Node, Node] = {self.root: after.root}

        def copy(node: Node | None) -> Node | None:
            if node is not None and node not in copies:
                data = node.synced if has_lost(node) else node.data
                copies[node] = Node(node.is_folder, {}, data, data)
            return None if node is None else copies[node]

        for n, change in enumerate(self.changes):
            limit = limits.get(change.folder, default)
            if limit is None:
                limit = self.n_durable.get(change.folder, 0)
            if n < max(limit, self.n_durable.get(change.folder, 0)):
                kept = Change(
                    copy(change.folder),  # type: ignore[arg-type]
                    change.name,
                    copy(change.node),
                    copy(change.source),
                    change.source_name,
                )
                after._apply(kept)
        after._settle()
        return after

    def _settle(self) -> None:
        """Begin anew with what is there, all of it durable."""
        self.changes = []
        todo = [self.root]
        while todo:
            folder = todo.pop()
            for name, node in folder.names.items():
                self.changes.append(Change(folder, name, node))
                if node.is_folder:
                    todo.append(node)
        self.n_durable = {c.folder: len(self.changes) for c in self.changes}


class FakeFile:
    """A file under construction."""

    def __init__(self, files: FakeFiles, folder: Node, name: str, node: Node) -> None:
        self._files, self._folder, self._name, self._node = files, folder, name, node

    def write(self, data: Any) -> None:
        self._files._effect()
        self._node.data += bytes(data)

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        self._files._effect()
        self._node.synced = self._node.data

    def close(self) -> None:
        pass

    def discard(self) -> None:
        self._files._effect()
        if self._folder.names.get(self._name) is self._node:
            self._files._change(Change(self._folder, self._name, None))


class Interleaved:
    """Two writers in threads of which one runs at a time, switching at given effects."""

    def __init__(self, files: FakeFiles, switches: tuple[int, ...]) -> None:
        self.files = files
        self.switches = set(switches)
        self.turn = 0
        self.alive = [True, True]
        self.changed = threading.Condition()
        self.n = 0
        self.errors: list[BaseException | None] = [None, None]
        files.before_effect = self._before

    def _before(self, _: int) -> None:
        me = int(threading.current_thread().name)
        with self.changed:
            self.n += 1
            if self.n in self.switches and self.alive[1 - me]:
                self.turn = 1 - me
                self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.turn == me, timeout=240)

    def run(self, actions: tuple[Any, Any]) -> list[BaseException | None]:
        threads = [
            threading.Thread(target=self._act, args=(n, action), name=str(n))
            for n, action in enumerate(actions)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=240)
            assert not thread.is_alive()
        self.files.before_effect = lambda number: None
        return self.errors

    def _act(self, me: int, action: Any) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.turn == me, timeout=240)
        try:
            action(self.files)
        except (CTLabError, OSError) as error:
            self.errors[me] = error
        except BaseException as error:
            self.errors[me] = AssertionError(f"{type(error).__name__}: {error}")
        finally:
            with self.changed:
                self.alive[me] = False
                self.turn = 1 - me
                self.changed.notify_all()
