"""What a process that decodes files of unknown origin may do, should a file take it over: as little as it needs.

In: the folders that it has to read. Out: limits that it cannot lift, and which of them this machine has.

    the parent     gives it an environment of its own (`environment`): no tokens, passwords or addresses
    `main`         before anything is imported, so that it holds for every thread: no new privileges; a network
                   namespace in which nobody is; of root's rights only reading; Landlock: Python, its packages and
                   the given folders can be read, and nothing be written or run
    `confine`      after the imports: memory, no core dump, no file grows; seccomp: no sockets, no programs, no
                   signals to others, no change of a file, none of the system calls that kernels were broken with

It still reads the files that it has to read, and its answers may be wrong. It is no virtual machine: a hole in the
kernel's remaining system calls is open to it. On macOS the limits on memory and files are all there is.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import runpy
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_DIE_WITH_PARENT, _NO_NEW_PRIVS = 1, 38  # prctl's PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # unshare's CLONE_NEWUSER, CLONE_NEWNET
_CAN_READ = 1 << 2  # CAP_DAC_READ_SEARCH: root's Python may belong to another user
KEPT = (
    "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH",
    "DYLD_FALLBACK_LIBRARY_PATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
)  # fmt: skip
"""Variables that a decoding process gets from its parent: without them Python or a library may not start."""
_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/sys/devices/system", "/sys/fs/cgroup", "/proc/self",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems", "/proc/sys/kernel",
    "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
)  # fmt: skip
NAMES = {
    "no_new_privs": "no new privileges", "network": "no network", "rights": "none of root's rights but reading",
    "files": "reads its own files only (Landlock)", "system_calls": "few system calls (seccomp)",
}  # fmt: skip
"""What may be possible, in words."""
_done: dict[str, bool] = dict.fromkeys(NAMES, False)


def environment(**more: str) -> dict[str, str]:
    """The environment of a decoding process. more: variables of its own."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | more


def places_of_code() -> list[str]:
    """Folders that the modules of this process came from: a child has to read them."""
    prefixes = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix})
    files = {getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if "." not in name}
    others = {str(Path(file).parent) for file in files if file and not file.startswith(prefixes)}
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return sorted({*prefixes, *others, *filter(None, sys.path), *filter(None, libraries)})


def main() -> None:
    """`python -c ... MODULE DESCRIPTOR READABLE`: restrict this process, then be MODULE as a program.

    READABLE: folders as JSON; empty: files are not restricted.
    """
    module, descriptor, readable = sys.argv[1:4]
    sys.argv = [module, descriptor]
    if sys.platform == "linux":
        _restrict(json.loads(readable))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _restrict(readable: Iterable[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _done["no_new_privs"] = not libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    _done["network"] = not libc.unshare(_NEW_NETWORK) or not libc.unshare(_NEW_USER | _NEW_NETWORK)
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    can_read = _CAN_READ if os.geteuid() == 0 else 0
    _done["rights"] = not libc.capset(header, struct.pack("<6I", can_read, can_read, 0, 0, 0, 0))
    if readable := list(readable):
        _done["files"] = _landlock(libc, [*_SYSTEM, *readable])


def _landlock(libc: ctypes.CDLL, readable: Iterable[str]) -> bool:
    """Reading below these paths, and of the file system nothing else; no TCP, no signals to others."""
    create, add, restrict = 444, 445, 446
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    read_file, read_folder, write_file = 1 << 2, 1 << 3, 1 << 1
    attributes = struct.pack("<QQQ", every, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(create, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    for path in readable:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = read_file | (read_folder if Path(path).is_dir() else write_file if path == "/dev/null" else 0)
            libc.syscall(add, ruleset, 1, struct.pack("<Qi", rights, descriptor), 0)
            os.close(descriptor)
    failed = libc.syscall(restrict, ruleset, 0)
    os.close(ruleset)
    return not failed


def confine(memory: int | None) -> dict[str, bool]:
    """No core dumps, no files, so much memory more than now, few system calls. Returns what holds (`NAMES`)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    _done["system_calls"] = sys.platform == "linux" and _done["no_new_privs"] and _seccomp()
    return dict(_done)


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


_ANY = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 438, 442, 452)
"""pidfd_send_signal, io_uring_*, open_tree, move_mount, fs*, pidfd_open, pidfd_getfd, mount_setattr, fchmodat2."""
_FORBIDDEN = {
    "x86_64": (0xC000003E, 317, (
        41, 42, 43, 49, 50, 288,  # socket connect accept bind listen accept4
        59, 322, 101, 310, 311, 62, 200, 129, 297,  # execve execveat ptrace process_vm_* kill tkill *sigqueueinfo
        165, 166, 155, 161, 308, 272, 321, 298, 248, 249, 250, 175, 313, 176, 246, 320, 169, 167, 168, 303, 304,
        323, 135, 163,  # mount ... userfaultfd personality acct
        76, 82, 83, 84, 86, 87, 88, 90, 91, 92, 93, 94, 133, 258, 259, 260, 263, 264, 265, 266, 268,  # of files
        316,
    )),
    "aarch64": (0xC00000B7, 277, (
        198, 203, 202, 200, 201, 242,
        221, 281, 117, 270, 271, 129, 130, 138, 240,
        40, 39, 41, 51, 268, 97, 280, 241, 217, 218, 219, 105, 273, 106, 104, 294, 142, 224, 225, 264, 265, 282,
        92, 89,
        45, 38, 34, 35, 36, 37, 52, 53, 54, 55, 33, 276,
    )),
}  # fmt: skip
"""By machine: AUDIT_ARCH, number of seccomp itself, numbers of calls that fail with EPERM. Sources: the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h."""


def _seccomp() -> bool:
    """A filter for all threads of this process; False where the kernel has none, or the machine is another one."""
    if platform.machine() not in _FORBIDDEN:
        return False
    architecture, number, listed = _FORBIDDEN[platform.machine()]
    forbidden = [*listed, *_ANY]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    refuse, allow = 0x00050000 | 1, 0x7FFF0000  # SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW
    end = len(forbidden)
    steps = [
        (load, 0, 0, 4), (equal, 0, end + 3, architecture),
        (load, 0, 0, 0), (at_least, end + 1, 0, 0x40000000),  # x32, by other numbers
        *((equal, end - i, 0, call) for i, call in enumerate(forbidden)),
        (give, 0, 0, allow), (give, 0, 0, refuse),
    ]  # fmt: skip
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    filters = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program))
    set_filter, all_threads = 1, 1
    return not ctypes.CDLL(None, use_errno=True).syscall(number, set_filter, all_threads, filters)
