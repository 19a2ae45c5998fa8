"""A group whose ranks are processes of one node, over a file in /dev/shm that has a name only while the ranks attach.

The file is unlinked as soon as all ranks have attached: from then on it goes with the last process, even a killed one.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
import time
from pathlib import Path

from tinycluster.parallel.communicator import CollectiveError
from tinycluster.parallel.region import RegionCommunicator, RegionShape

FOLDER = Path("/dev/shm")
_POLL_S = 0.002


class SharedMemoryCommunicator(RegionCommunicator):
    """Rank 0 creates the file, the others attach; the constructor returns when all ranks have, or raises.

    `name` is the same random name on all ranks, `epoch` the same number: a rank of another start is refused. All ranks
    give the same sizes. A rank whose process dies is noticed within a tenth of a second by those who wait for it.
    Raises CollectiveError when a rank does not attach within `timeout_s`, or when /dev/shm has no room.
    """

    def __init__(
        self,
        name: str,
        rank: int,
        size: int,
        *,
        timeout_s: float,
        epoch: int = 0,
        slot_bytes: int = 128 * 1024,
        mailbox_bytes: int = 64 * 1024,
        spin_us: float | None = None,
    ) -> None:
        shape = RegionShape(size, slot_bytes, mailbox_bytes)
        path = _path(name)
        memory, fd = _create(path, shape, epoch) if rank == 0 else _attach(path, shape, timeout_s)
        try:
            super().__init__(memory, shape, rank, timeout_s=timeout_s, epoch=epoch, spin_us=spin_us, fd=fd)
            self.attach()
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)


def _path(name: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
        raise ValueError(f"the name of a shared-memory group must be letters, digits, '.', '_' and '-', got {name!r}")
    return FOLDER / f"tinycluster-{name}"


def _create(path: Path, shape: RegionShape, epoch: int) -> tuple[mmap.mmap, int]:
    # A file without a name cannot leak; it gets its name when it is complete.
    fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        # Taken at once: a page that cannot be had later would kill the process with SIGBUS.
        os.posix_fallocate(fd, 0, shape.num_bytes)
        memory = mmap.mmap(fd, shape.num_bytes)
        shape.format(memory, epoch)
        # The descriptor as src_dir_fd makes Python call linkat, which can follow the link in /proc.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except OSError as error:
        os.close(fd)
        raise CollectiveError(
            f"cannot create {shape.num_bytes} bytes of shared memory at {path}: {error.strerror}"
        ) from None
    return memory, fd


def _attach(path: Path, shape: RegionShape, timeout_s: float) -> tuple[mmap.mmap, int]:
    fd = _open(path, time.monotonic() + timeout_s)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size != shape.num_bytes:
        os.close(fd)
        raise CollectiveError(f"{path} is not this group's: its owner, kind or size differs")
    return mmap.mmap(fd, shape.num_bytes), fd


def _open(path: Path, deadline: float) -> int:
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            pass  # rank 0 is not there yet
        except OSError as error:
            raise CollectiveError(f"cannot open {path}: {error.strerror}") from None
        if time.monotonic() >= deadline:
            raise CollectiveError(f"rank 0 did not create {path} in time")
        time.sleep(_POLL_S)
