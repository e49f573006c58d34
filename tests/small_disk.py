"""A disk of a few pages that only this process and its children see, filled up or read-only at will. Linux.

    with SmallDisk(place, 1 << 20) as disk: disk.leave(8192) ... disk.leave(None) ... disk.read_only(True)

A tmpfs in a mount namespace of its own (in a user namespace where this is not root), so that nothing is left mounted.
To be used in a forked child: a process that has entered the namespace stays in it.
"""

import ctypes
import os
from pathlib import Path

NEW_NAMESPACE, NEW_USER = 0x00020000, 0x10000000  # unshare(2)
READ_ONLY, REMOUNT, RECURSIVE, PRIVATE = 1, 32, 1 << 14, 1 << 18  # mount(2)


def _call(function: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    plain = [a.encode() if isinstance(a, str) else a for a in arguments]
    if getattr(libc, function)(*plain) != 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


class SmallDisk:
    """Mounted over the directory `place`; OSError where this system lets no one do that."""

    def __init__(self, place: Path, size: int):
        self.place, self.size = place, size
        user, group = os.getuid(), os.getgid()
        _call("unshare", NEW_NAMESPACE | (NEW_USER if user else 0))
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _call("mount", "none", "/", None, RECURSIVE | PRIVATE, None)
        place.mkdir(parents=True, exist_ok=True)
        _call("mount", "tmpfs", str(place), "tmpfs", 0, f"size={size}")

    def leave(self, free: int | None) -> None:
        """Fill the disk but for so many bytes; None: empty it of what filled it."""
        filler = self.place / ".filler"
        filler.unlink(missing_ok=True)
        if free is not None:
            stat = os.statvfs(self.place)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(4096, stat.f_bavail * stat.f_frsize - free))

    def read_only(self, state: bool) -> None:
        _call("mount", None, str(self.place), None, REMOUNT | (READ_ONLY if state else 0), None)
