"""Two folders change names with each other in one step, where the system can do that.

Linux has `renameat2` with `RENAME_EXCHANGE`, which Python does not offer. At no moment is either name without a
folder, whoever looks and whenever the process is killed.
"""

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

# From <fcntl.h> and <linux/fs.h>.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

# What the system answers if this kernel, this file system or this folder (a mount point) cannot be exchanged.
_UNABLE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBUSY, errno.EXDEV}


@functools.cache
def _renameat2() -> "Callable[..., int] | None":
    """Return the C library's function; `None` where it has none."""
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    return function


def exchange(first: Path, second: Path) -> bool:
    """Let two folders of one file system change names in one step.

    Args:
        first, second (`Path`): The two folders.

    Returns:
        `bool`: Whether they did; `False` if the system cannot do it.

    Raises:
        `OSError`: If it could, and failed: no permission, for instance.
    """
    rename = _renameat2()
    if rename is None:
        return False
    # As for every rename of Python's own, so that whoever watches these sees this one.
    sys.audit("os.rename", str(first), str(second), -1, -1)
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))
