"""The seccomp filter: interpreted here for every machine, and applied to programs on this one."""

from __future__ import annotations

import errno
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.execution import run_program
from nanochat.sandbox.system_calls import ALLOWED, CONDITIONAL, MACHINES, build_filter, build_notifier
from tests.support.harmless_programs import HARMLESS
from tests.support.sandbox import CONFIGURATIONS, Targets, open_targets

PID = 4321
ALLOW, NOTIFY, KILL = 0x7FFF0000, 0x7FC00000, 0x80000000
EPERM, ENOSYS, EAGAIN = (0x50000 + number for number in (errno.EPERM, errno.ENOSYS, errno.EAGAIN))
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is a part of Linux")


def interpret(program: bytes, machine: str, number: int, arguments: tuple[int, ...] = (), architecture: int = 0) -> int:
    """Return what a filter answers to a call, as the kernel would: an interpreter of the BPF instructions it uses."""
    padded = [argument % 2**64 for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number, architecture or MACHINES[machine][0], 0, *padded)
    steps = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, true, false, operand = steps[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            position += true if accumulator == operand else false
        elif code == 0x35:
            position += true if accumulator >= operand else false
        else:
            assert code == 6, code
            return int(operand)


def answer(machine: str, name: str, *arguments: int) -> int | None:
    number = CONDITIONAL[name][MACHINES[machine][1]]
    return None if number is None else interpret(build_filter(machine, PID, True), machine, number, arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_not_listed_is_refused(machine: str) -> None:
    """With any arguments; new calls as missing, so that the C library uses older ones."""
    column = MACHINES[machine][1]
    listed = {numbers[column] for numbers in ALLOWED.values()} | {numbers[column] for numbers in CONDITIONAL.values()}
    program = build_filter(machine, PID, True)
    assert len(program) // 8 <= 4096  # the kernel's limit
    for number in set(range(1024)) - listed:
        for arguments in ((), (PID,) * 6, (2**64 - 1,) * 6):
            assert interpret(program, machine, number, arguments) == (ENOSYS if number >= 424 else EPERM)
    for numbers in ALLOWED.values():
        number = numbers[column]
        assert number is None or interpret(program, machine, number, (2**64 - 1,) * 6) == ALLOW


# Number on x86-64 and elsewhere of calls that reach beyond the process or around a limit, whatever the list above says.
HARMFUL = {
    "fork": (57, -1),
    "vfork": (58, -1),
    "clone3": (435, 435),
    "rt_sigqueueinfo": (129, 138),
    "pidfd_send_signal": (424, 424),
    "timer_create": (222, 107),
    "ptrace": (101, 117),
    "process_vm_writev": (311, 271),
    "setpriority": (141, 140),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "sendmsg": (46, 211),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "chmod": (90, -1),
    "fchmodat": (268, 53),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "file_setattr": (469, 469),
    "flock": (73, 32),
    "mount": (165, 40),
    "unshare": (272, 97),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "inotify_init1": (294, 26),
    "mknodat": (259, 33),
    "setuid": (105, 146),
    "execveat": (322, 281),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_harmful_calls_are_refused(machine: str) -> None:
    program = build_filter(machine, PID, True)
    for name, numbers in HARMFUL.items():
        number = numbers[min(1, MACHINES[machine][1])]
        assert number < 0 or interpret(program, machine, number) in (EPERM, ENOSYS), name


THREAD = 0x3D0F00
CASES = [  # call, arguments, True if it is allowed
    ("clone", (THREAD,), True),
    ("clone", (THREAD | 0x400000,), True),  # musl
    *(
        ("clone", (flags,), False)
        for flags in (17, 0, 0x10F00, THREAD | 0x8000, THREAD | 0x10000000, THREAD | 0x800000)
    ),
    *((call, (PID, 9), True) for call in ("kill", "tkill", "tgkill")),
    *((call, (pid, 9), False) for call in ("kill", "tkill", "tgkill") for pid in (0, 1, -1, -PID, PID + 1)),
    *(("fcntl", (3, command, 0), True) for command in (0, 1, 2, 3, 4, 5, 6, 7, 1030)),
    *(("fcntl", (3, command, 0), False) for command in (8, 9, 10, 11, 15, 16, 36, 37, 38, 1024, 1026, 1031, 1033)),
    ("fcntl", (3, 4, 0x800), True),
    *(("fcntl", (3, 4, flags), False) for flags in (0x2000, 0x2800, 0x2000 | 1 << 40)),
    *(("ioctl", (3, command), True) for command in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    *(
        ("ioctl", (3, command), False)
        for command in (0x8901, 0x8902, 0x5452, 0x5412, 0x40086602, 0x401C5820, 0x8912, 0)
    ),
    ("socketpair", (1, 1, 0), True),
    ("socketpair", (1, 0x80801, 0), True),
    *(("socketpair", arguments, False) for arguments in ((1, 2, 0), (1, 5, 0), (2, 1, 0), (30, 1, 0), (1, 1, 1))),
    ("sendto", (3, 1 << 40, 5, 0, 0, 0), True),
    ("sendto", (3, 0, 0, 0, 1 << 40, 110), False),
    ("sendto", (3, 0, 0, 0, 4096, 110), False),
    ("fallocate", (3, 0, 0, 9), True),
    ("fallocate", (3, 1, 0, 9), False),
    ("mmap", (0, 4096, 3, 0x22), True),
    ("mmap", (0, 4096, 3, 0x40022), False),
    *(("prctl", (option,), True) for option in (15, 16, 0x53564D41)),
    *(("prctl", (option,), False) for option in (1, 4, 22, 24, 28, 35, 36, 38, 59)),
    ("arch_prctl", (0x1002,), True),
    ("arch_prctl", (0x1012,), False),
    ("prlimit64", (0, 7), True),
    ("prlimit64", (PID + 1, 7), False),
    ("membarrier", (8,), True),
    ("membarrier", (1,), False),
]


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments(machine: str) -> None:
    assert {name for name, _, _ in CASES} == set(CONDITIONAL)
    for name, arguments, is_allowed in CASES:
        assert answer(machine, name, *arguments) in (None, ALLOW if is_allowed else EPERM), (name, arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_other_interfaces(machine: str) -> None:
    """Calls of 32-bit programs end the process, those of the x32 ABI fail: also in the filter of the task limit."""
    programs = [build_filter(machine, PID, True), build_notifier(machine, {"clone": CONDITIONAL["clone"]})]
    for program in programs:
        assert interpret(program, machine, 1, architecture=0x40000003) == KILL
        assert all(interpret(program, machine, 0x40000000 + number) == EPERM for number in range(600))


@pytest.mark.parametrize("machine", MACHINES)
def test_threads(machine: str) -> None:
    """No thread is allowed, as if their limit was reached, if the tasks cannot be counted."""
    number = CONDITIONAL["clone"][MACHINES[machine][1]]
    assert number is not None
    assert interpret(build_filter(machine, PID, False), machine, number, (THREAD,)) == EAGAIN
    notifier = build_notifier(machine, {"clone": CONDITIONAL["clone"], "fork": (57, None)})
    assert interpret(notifier, machine, number) == NOTIFY
    assert interpret(notifier, machine, 57) == (NOTIFY if machine == "x86_64" else ALLOW)
    assert interpret(notifier, machine, 0) == ALLOW


@pytest.mark.parametrize(
    ("header", "column"),
    [("x86_64-linux-gnu/asm/unistd_64.h", 0), ("asm-generic/unistd.h", 1)],
    ids=["x86-64", "others"],
)
def test_numbers(header: str, column: int) -> None:
    """They are those of the kernel's headers."""
    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    numbers = {name: int(number) for name, number in found} | ({"newfstatat": 79} if column else {})
    for name, own_numbers in (ALLOWED | CONDITIONAL).items():
        if name in numbers or name.startswith("riscv_"):
            assert own_numbers[column] == numbers.get(name, own_numbers[column]), name
    harmful = {name: own_numbers[column] for name, own_numbers in HARMFUL.items()}
    assert all(harmful[name] == numbers[name] for name in harmful if name in numbers)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    with open_targets(tmp_path_factory.mktemp("targets")) as targets:
        yield targets


@needs_linux
def test_every_other_call_of_this_machine(targets: Targets) -> None:
    """The kernel agrees with the interpreter above: each call that is not listed is refused."""
    without = targets.layers_to_leave_out("no namespaces")
    tables = [*ALLOWED.values(), *CONDITIONAL.values()]
    source = f"""
import ctypes, os
listed = {[list(numbers) for numbers in tables]}
libc = ctypes.CDLL(None, use_errno=True)
kernels_own = {{335, 336}}  # uretprobe, uprobe: never filtered, and only for code that the kernel has written
for number in set(range(700)) - kernels_own - {{pair[os.uname().machine != "x86_64"] for pair in listed}}:
    if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() not in (1, 38):
        print(number)
"""
    result = run_program(source, 30.0, without=without)
    assert (result.ok, result.stdout) == (True, ""), result


@needs_linux
@pytest.mark.parametrize(
    "configuration",
    [
        "no namespaces",
        pytest.param("all layers", marks=pytest.mark.slow),
        pytest.param("no landlock", marks=pytest.mark.slow),
    ],
)
def test_harmless_programs_run(configuration: str, targets: Targets) -> None:
    targets.layers_to_leave_out(configuration)
    without = CONFIGURATIONS[configuration][0]
    results = {
        name: targets.pool.submit(run_program, source, 60.0, 256 << 20, without) for name, source in HARMLESS.items()
    }
    failed = {name: result.result() for name, result in results.items() if not result.result().ok}
    assert not failed
