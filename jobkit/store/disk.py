"""What is known of the disk that a database is on: its kind, its room, and whether it can be written."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs"}
    | {f"fuse.{name}" for name in ("sshfs", "glusterfs", "ceph", "s3fs", "rclone")}
)

SCARCE_BYTES: Final = 64 * 1024
"""Less room than this counts as none: SQLite needs some of its pieces whole."""


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on, as Linux says it; empty elsewhere."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = ("", "")
    target = str(folder.resolve())
    for line in mounts:
        point, kind = line.split(" ")[1:3]
        point = point.replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]


def room(folder: Path) -> int:
    """How many bytes a folder's disk still has for this user."""
    return shutil.disk_usage(folder).free


def is_full(folder: Path) -> bool:
    """Whether a folder's disk has no room left, for bytes or for files; False if that can't be told."""
    try:
        if room(folder) < SCARCE_BYTES:
            return True
        if sys.platform != "win32":
            told = os.statvfs(folder)
            return told.f_files > 0 and told.f_favail == 0  # some count no files
    except OSError:
        pass
    return False


def is_read_only(folder: Path) -> bool:
    """Whether a folder's disk is mounted for reading alone; False if that can't be told."""
    if sys.platform != "win32":
        try:
            return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        except OSError:
            pass
    return False
