"""Real faults, made on purpose: full disks, errors of a file system, cut links, killed processes.

Everything here cleans up after itself whatever happens, and skips a test, with the reason, where
the machine lacks what it takes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ctlab_dask_zarr import Dataset, dataset_from_zarr
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels

ROOT = Path(__file__).parents[2]
FAULTFS = ROOT.parent / "shared" / "realparts" / "faultfs.py"
#: Longer than anything here takes, and short enough to tell a hang from a slow machine.
TIMEOUT_S = 240
LAYOUT: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (32, 32, 32), "levels": 2}
LAYOUT_OPTIONS = ("--chunks", "16,16,16", "--shards", "32,32,32", "--levels", "2")
#: Of both levels: z, with the longest voxels, is not halved.
N_SHARDS = 8 + 2
#: Of the whole range, so that nothing is compressed and the disk is as full as it looks.
NEW_VOXELS = random_voxels((64, 64, 64)) * 571
OLD_VOXELS = random_voxels((32, 32, 32)) + 7


def old_dataset() -> Dataset:
    return make_dataset(OLD_VOXELS, dataset_id="20200101_000000_tomo")


def new_dataset() -> Dataset:
    return make_dataset(NEW_VOXELS, 32, dataset_id="20200202_000000_tomo")


def need_root() -> None:
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount, make namespaces and limit memory")


def need_command(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"the command {name} is not installed")


def environment(**more: str) -> dict[str, str]:
    """The environment of a child that imports this checkout, wherever it is started."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def run_cli(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ctlab_dask_zarr.cli", *map(str, arguments)]
    options.setdefault("env", environment())
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, **options)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Return the condition's result once it is true; fail when it does not become so."""
    stop_s = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < stop_s, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether somebody accepts connections to a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_group(process: Any) -> None:
    """Kill a process of `multiprocessing`, and those that it has started."""
    # It may have ended by itself a moment ago: its exit code tells.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(240)


@contextmanager
def dying_at_rename(when: Callable[[str, str], bool]) -> Iterator[None]:
    """Die, as a process that is killed, before the rename for which `when(source, target)` is true.

    Whoever reads meanwhile, or writes later, sees what is on the disk.
    """
    rename = LocalFiles.rename

    def dying(files: LocalFiles, source: str, target: str) -> None:
        if when(source, target):
            raise KeyboardInterrupt
        rename(files, source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalFiles, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            yield


def everything(folder: Path) -> dict[str, tuple[str, int, bytes | str]]:
    """Tell all there is to know about a folder: names, kinds, times of modification, contents."""
    found: dict[str, tuple[str, int, bytes | str]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        mtime = path.lstat().st_mtime_ns
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", mtime, os.readlink(path))
        elif path.is_dir():
            found[name] = ("folder", mtime, "")
        else:
            found[name] = ("file", mtime, path.read_bytes())
    return found


def contents(store: Path) -> dict[str, bytes]:
    """The files of a store but its root document, which names the run that wrote it."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path != store / "zarr.json"
    }


def staging_of(destination: Path) -> Path:
    return destination.parent / f".{destination.name}.staging"


def replaced_of(destination: Path) -> Path:
    """Return where the commit that died has put the old dataset."""
    (aside,) = destination.parent.glob(f".{destination.name}.replaced.*")
    return aside


def staged_objects(destination: Path) -> dict[str, Path]:
    """What stands in staging under final keys: no documents, nothing that is still written."""
    staging = staging_of(destination)
    found = {}
    # os.walk takes folders in its stride that are renamed or removed while it looks.
    for folder, _, names in os.walk(staging):
        for path in (Path(folder, name) for name in names):
            top, *parts = path.relative_to(staging).parts
            # Documents and receipts are JSON; no key of a shard is.
            is_object = parts and path.suffix not in (".partial", ".json")
            if is_object and top.startswith("store-"):
                found[str(Path(*parts))] = path
    return found


def assert_only_whole_shards(destination: Path, reference: Path) -> None:
    """Every object under a final key is, to the byte, what an undisturbed write puts there."""
    for key, path in staged_objects(destination).items():
        assert path.read_bytes() == (reference / key).read_bytes(), f"{key} is not whole"


def assert_same_store(destination: Path, reference: Path) -> None:
    assert contents(destination) == contents(reference)
    dataset_from_zarr(destination).data.compute()


@contextmanager
def tmpfs(folder: Path, **options: object) -> Iterator[Callable[..., None]]:
    """Mount a file system in memory; yield a function that mounts it again, with other options."""
    need_root()
    need_command("mount")

    def mount(*flags: str, **settings: object) -> None:
        text = ",".join([*flags, *(f"{name}={value}" for name, value in settings.items())])
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", text, "tmpfs", folder],
            *(), check=True, capture_output=True, timeout=240,
        )  # fmt: skip

    folder.mkdir(parents=True)
    try:
        mount("rw", **options)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine lets nobody mount: {error.stderr!r}")
    try:
        yield lambda *flags, **settings: mount("remount", *flags, **settings)
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=240)


@dataclass(frozen=True)
class FaultyFolder:
    """A folder whose operations fail on request; `backing` is the same without the faults."""

    path: Path
    backing: Path
    control: Path

    def fail(self, **operations: Mapping[str, object]) -> None:
        """Set what fails from now on, as ``write={"errno": "EIO", "after": 10}``."""
        # Written aside: it is read at every single operation.
        text = json.dumps(operations)
        aside = self.control.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.control)


@contextmanager
def faulty_folder(parent: Path, name: str = "faulty") -> Iterator[FaultyFolder]:
    """Mount the faulty file system; operations are counted from here on."""
    need_root()
    need_command("fusermount")
    if not FAULTFS.exists():
        pytest.skip("../shared/realparts/faultfs.py is not there")
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no FUSE")
    # Loads libfuse when it is imported, so that it may fail in more than one way.
    check = [sys.executable, "-c", "import mfusepy; mfusepy.FUSE"]
    if subprocess.run(check, capture_output=True, timeout=240).returncode:
        pytest.skip("mfusepy, or the libfuse that it loads, is not installed")
    # Syncing a folder fails on request, too.
    server_code = (
        FAULTFS.read_text()
        .replace("    def fsync(", "    def fsyncdir(self, p, ds, fh): return 0\n    def fsync(")
        .replace('"getattr readdir', '"fsyncdir getattr readdir')
    )
    folder = FaultyFolder(parent / name, parent / f"{name}-backing", parent / f"{name}.json")
    folder.path.mkdir()
    folder.backing.mkdir()
    folder.fail()
    with ExitStack() as stack:
        log = stack.enter_context((parent / f"{name}.log").open("wb"))
        server = subprocess.Popen(
            [sys.executable, "-c", server_code, folder.backing, folder.path, folder.control],
            stdout=log,
            stderr=log,
        )
        try:
            wait_until(
                lambda: server.poll() is not None or os.path.ismount(folder.path), "the mount"
            )
            assert server.poll() is None, Path(log.name).read_text()
            yield folder
        finally:
            subprocess.run(["fusermount", "-u", "-z", folder.path], check=False, timeout=240)
            server.terminate()
            server.wait(240)
