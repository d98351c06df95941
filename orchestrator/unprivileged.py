"""Become another user, then the command: `python -I -S unprivileged.py UID GID FOLDER COMMAND...`.

PostgreSQL refuses to run as root. Of root's powers one is kept, if the system lets us: to pass the access
checks of the file system, so that a data folder or a virtual environment below a private folder such as
/root can be reached although nobody changed the modes of folders that are not ours. It runs as a program of
its own, rather than between fork and exec, because that is safe however many threads the parent has.

Source of the calls and numbers: capabilities(7), prctl(2), linux/capability.h, linux/prctl.h.
"""

import ctypes
import os
import sys

_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Set(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def become(uid: int, gid: int) -> bool:
    """Drop to this user; whether the right to reach every file was kept. PermissionError if we may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    linux = sys.platform == "linux"
    if linux:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    if not linux:
        return False
    bit = 1 << _CAP_DAC_OVERRIDE
    sets = (_Set * 2)(_Set(bit, bit, bit), _Set(0, 0, 0))
    if libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), sets) != 0:
        # A container may have dropped the capability from its bounding set: go on with none at all.
        libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), (_Set * 2)())
        return False
    kept: int = libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)
    return kept == 0


def main(arguments: list[str]) -> None:
    uid, gid, folder, *command = arguments
    try:
        become(int(uid), int(gid))
    except OSError as error:
        sys.exit(f"cannot change from root to user {uid}, which PostgreSQL needs: {error.strerror}")
    try:
        os.chdir(folder)
        os.execv(command[0], command)  # noqa: S606  # nosec B606 # the point of this program
    except OSError as error:
        blocked = error.filename or command[0]
        sys.exit(
            f"user {uid} cannot reach {blocked}: {error.strerror}. PostgreSQL cannot run as root: use a data "
            "folder (and a virtual environment) that other users can reach, or run as an ordinary user."
        )


if __name__ == "__main__":
    main(sys.argv[1:])
