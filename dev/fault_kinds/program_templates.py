"""Hostile programs for the sandbox, with parameters that a seed chooses.

All of their targets belong to the harness, so that a program that escapes, or that runs where a layer is left out, does no
harm to the machine: a process that the harness has started, its folder, its sockets. What could reach further is only
asked for with arguments without an effect: signal 0, a clock that is read, devices that are opened.

A template is a name, how the program ends, and a source. `try_all` calls functions one after the other and ignores their
errors; `must_fail` prints ESCAPED for those that succeed, and is only used for what a working sandbox cannot permit. Beside
that, effects outside are watched by `programs.py`. Values that begin with $ are substituted.
"""

# ruff: noqa: E501 (a few lines for each program)

from __future__ import annotations

from typing import NamedTuple

PREAMBLE = """
import array, ctypes, errno, fcntl, mmap, os, random, resource, signal, socket, struct, subprocess, sys, threading, time
x86, libc = os.uname().machine == "x86_64", ctypes.CDLL(None, use_errno=True)
rng = random.Random($seed)
def number(x86_number, other): return x86_number if x86 else other
def raw(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *(a if isinstance(a, (bytes, ctypes.Array)) else ctypes.c_long(a) for a in arguments))
    if result == -1: raise OSError(ctypes.get_errno(), str(number))
    return result
def try_all(*functions):
    for function in functions:
        try: function()
        except Exception as error: print(type(error).__name__, str(error)[:200], flush=True)
def must_fail(*functions):
    for index, function in enumerate(functions):
        try: function()
        except Exception as error: print(type(error).__name__, str(error)[:200], flush=True)
        else: print("ESCAPED", index, flush=True)
def tasks(count, flags=0x3d0f00):
    code = mmap.mmap(-1, 4096, prot=7); code.write(bytes.fromhex("b8220000000f05ebf7"))  # pause() for ever
    address = ctypes.addressof(ctypes.c_char.from_buffer(code)); kept.append(code)
    for index in range(count):
        if libc.clone(*map(ctypes.c_void_p, [address, address + 4032, flags, 0, address + 512, address + 1024, address + 512])) == -1:
            print("TASKS", index); raise OSError(ctypes.get_errno(), "clone")
    print("TASKS", count)
kept = []
"""


class Template(NamedTuple):
    """`ends`: "time" if only the time limit ends it. `needs`: layers that the sandbox promises this protection with."""

    source: str
    ends: str = ""
    needs: str = ""  # "files": of mounts or landlock; "calls": of seccomp; "network": of seccomp or namespaces


TEMPLATES: dict[str, Template] = {
    # signals
    "kill": Template("must_fail(lambda: os.kill($victim, $signal), lambda: os.kill($watcher, $signal), lambda: os.kill(-$watcher, 0))"),
    "kill the parents": Template("try_all(lambda: os.kill(os.getppid(), $signal), lambda: os.kill(-os.getppid(), $signal))", needs="calls"),
    "kill a group": Template("signal.signal($catchable, signal.SIG_IGN)\nmust_fail(lambda: os.kill(-1, 0), lambda: os.kill(1, 0))\ntry_all(lambda: os.killpg(0, $catchable), lambda: os.kill(0, $catchable))", needs="calls"),
    "signal by number": Template(
        "info = ctypes.create_string_buffer(struct.pack('iii', $signal, 0, -1), 128)\n"
        "must_fail(lambda: raw(number(234, 131), $victim, $victim, $signal), lambda: raw(number(200, 130), $victim, $signal),\n"
        "  lambda: raw(number(129, 138), $victim, $signal, info), lambda: raw(number(297, 240), $victim, $victim, $signal, info))"
    ),
    "signal by pidfd": Template("must_fail(lambda: raw(424, raw(434, $victim, 0), $signal, 0, 0), lambda: os.pidfd_open($victim), lambda: raw(434, $watcher, 0))"),
    "owner of a socket": Template(
        "a, b = socket.socketpair(); pid = array.array('i', [$victim * $sign])\n"
        "try_all(lambda: fcntl.ioctl(a, 0x8901, pid), lambda: fcntl.ioctl(a, 0x8902, pid), lambda: fcntl.fcntl(a, 10, $signal), lambda: fcntl.fcntl(a, 8, $victim * $sign),\n"
        "  lambda: fcntl.fcntl(a, 15, struct.pack('ii', 1, $victim)), lambda: fcntl.fcntl(a, 4, 0x2000 | $flags), lambda: fcntl.ioctl(a, 0x5452, array.array('i', [1])))\n"
        "for _ in range(9): b.send(b'x'); time.sleep(0.01)\ntry_all(lambda: b.send(b'x', socket.MSG_OOB))"
    ),
    "owner of a pipe": Template(
        "r, w = os.pipe(); pid = array.array('i', [$victim * $sign])\n"
        "try_all(lambda: fcntl.ioctl(r, 0x8901, pid), lambda: fcntl.fcntl(r, 10, $signal), lambda: fcntl.fcntl(r, 8, $victim * $sign),\n"
        "  lambda: fcntl.fcntl(r, 15, struct.pack('ii', 1, $victim)), lambda: fcntl.fcntl(r, 4, 0x2000 | $flags), lambda: fcntl.ioctl(r, 0x5452, array.array('i', [1])))\nos.write(w, b'x')"
    ),
    "lease of a file": Template("open('x', 'w').close(); f = os.open('x', 0)\ntry_all(lambda: fcntl.fcntl(f, 8, $victim), lambda: fcntl.fcntl(f, 10, $signal), lambda: fcntl.fcntl(f, 1024, 0), lambda: fcntl.fcntl(os.open('.', 0), 1026, 4))\nopen('x', 'a').close() if $flags == 0 else None"),
    "timers": Template("event = ctypes.create_string_buffer(struct.pack('qiii', 0, $signal, 4, $victim), 64)\nmust_fail(lambda: raw(number(222, 107), 0, event, ctypes.create_string_buffer(8)))\nsignal.setitimer(signal.ITIMER_REAL, 0.1, 0.1); signal.signal(signal.SIGALRM, lambda *_: None); time.sleep(0.5)", needs="calls"),
    "ignore everything": Template("for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True: pass", "time"),
    "outlive the supervisor": Template("try_all(lambda: raw(number(157, 167), 1, 0, 0, 0, 0), os.setsid, lambda: raw(number(157, 167), 36, 1, 0, 0, 0))\ntime.sleep(1000)", "time"),
    "stop itself": Template("os.kill(os.getpid(), signal.SIGSTOP)", "time"),
    # processes and threads
    "forks": Template("count = 0\ntry:\n  while count < $count:\n    if os.fork() == 0: time.sleep(1000)\n    count += 1\nexcept OSError: pass\nprint('TASKS', count); os._exit(0)"),
    "forks of forks": Template("try:\n  while True: os.fork()\nexcept OSError: pass\nos._exit(0)"),
    "raw clones": Template("try_all(lambda: tasks(max(1000, $count)) if x86 else None)\nos._exit(0)"),
    "other clones": Template("try_all(*(lambda f=f: tasks(1, f) if x86 else None for f in ($flags, 17, 0x10f00, 0x3d0f00 | 1 << rng.randrange(32), 0x3d0f00 ^ 1 << rng.randrange(8, 23))))\nos._exit(0)"),
    "clones by number": Template("arguments = ctypes.create_string_buffer(struct.pack('11Q', 0x4100 if $flags else 0, *[0] * 3, 17, *[0] * 6))\ntry_all(lambda: raw(435, arguments, 88) or os._exit(0), lambda: raw(number(56, 220), 17, 0, 0, 0, 0) or os._exit(0), lambda: x86 and (raw(57) or os._exit(0)))"),
    "threads": Template("try:\n  for index in range($count): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nexcept RuntimeError: pass\nprint('TASKS', threading.active_count()); os._exit(0)"),
    "commands": Template("try_all(lambda: subprocess.Popen(['$mark', '1000'], executable='/bin/sleep'), lambda: os.system('$mark; /bin/sleep 1000 &'), lambda: os.posix_spawn('/bin/sleep', ['$mark', '1000'], {}), lambda: os.popen('/bin/sleep 1000 # $mark'))\nos._exit(0)"),
    "multiprocessing": Template("import multiprocessing as m\ntry_all(lambda: m.Process(target=time.sleep, args=(1000,)).start(), lambda: m.Pool($number), lambda: m.Queue().put(1))\nos._exit(0)"),
    "a shell": Template("os.execv('/bin/sh', ['sh', '-c', '/bin/sleep 100 & /bin/sleep 100 & wait; exit 1 # $mark'])", "any"),
    "a daemon": Template("try:\n  if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: os.closerange(0, 99); os.execv('/bin/sleep', ['$mark', '1000'])\nexcept OSError: pass\nos._exit(0)"),
    # files outside
    "write the secret": Template("must_fail(lambda: open('$secret', rng.choice(['w', 'a', 'r+', 'wb'])).write('x'), lambda: os.open('$secret', os.O_RDONLY | os.O_TRUNC), lambda: os.truncate('$secret', $number))", needs="files"),
    "move the secret": Template("must_fail(lambda: os.unlink('$secret'), lambda: os.rename('$secret', 'x'), lambda: os.rename('program.py', '$secret'), lambda: os.link('$secret', 'x'), lambda: os.rename('$folder', '$folder-x'))", needs="files"),
    "new files outside": Template("must_fail(*(lambda p=p: open(p + '/$mark', 'w') for p in ('$folder', '$folder/..', '/dev/shm')), lambda: os.mkdir('$folder/d'), lambda: os.symlink('/', '$folder/l'), lambda: os.mkfifo('$folder/f'), lambda: libc.shm_open(b'/$mark', 66, 0o600) == -1 and 1 / 0)", needs="files"),
    "read secrets": Template("for p in ('$secret', '../' * 40 + '$secret'[1:], '/proc/$victim/environ', '/proc/$watcher/cmdline', '/proc/self/environ', '/etc/shadow', '$home/.ssh/id_rsa'):\n  try_all(lambda: print(open(p, errors='replace').read()))", needs="files"),
    "links": Template("os.symlink('$secret', 'l'); os.symlink('/', 'all'); os.symlink('$folder', 'd')\nmust_fail(lambda: open('l').read(), lambda: open('l', 'w'), lambda: open('all$secret').read(), lambda: open('d/new', 'w'), lambda: os.truncate('l', 0))", needs="files"),
    "races of links": Template(
        "open('own', 'w').close(); stop = False\n"
        "def swap():\n  while not stop:\n    for target in ('own', '$secret'):\n      os.symlink(target, 'new'); os.rename('new', 'race')\n"
        "os.symlink('own', 'race'); t = threading.Thread(target=swap); t.start(); end = time.monotonic() + $seconds\n"
        "while time.monotonic() < end:\n  try: open('race', 'a').write('x')\n  except OSError: pass\nstop = True; t.join()", needs="files"
    ),
    "races of folders": Template(
        "os.mkdir('real'); os.symlink('$folder', 'link'); stop = False\n"
        "def swap():\n  while not stop:\n    try: os.rename('real', 'here'); os.rename('here', 'real'); os.rename('link', 'here'); os.rename('here', 'link')\n    except OSError: pass\n"
        "t = threading.Thread(target=swap); t.start(); end = time.monotonic() + $seconds\n"
        "while time.monotonic() < end:\n  try: open('here/new', 'w').close()\n  except OSError: pass\nstop = True; t.join()", needs="files"
    ),
    "properties": Template("must_fail(lambda: os.chmod('$secret', $number), lambda: os.utime('$secret', (0, $number)), lambda: os.chown('$secret', 1, 1), lambda: os.setxattr('$secret', 'user.x', b'x'), lambda: os.chmod('$folder', 0o777), lambda: raw(452, -100, b'$secret', 0o777, 0))"),
    "flags of files": Template("attributes = ctypes.create_string_buffer(struct.pack('QIIII', rng.choice([0x40, 0x80, 0xc0]), 0, 0, 0, 0))\ntry_all(lambda: raw(469, -100, b'$secret', attributes, 24, 0), lambda: fcntl.ioctl(os.open('$secret', 0), 0x40086602, struct.pack('Q', rng.choice([0x40, 0x80]))), lambda: raw(469, -100, b'$folder', attributes, 24, 0))"),
    "files without names": Template("must_fail(lambda: os.open('$folder', os.O_TMPFILE | os.O_RDWR), lambda: raw(number(304, 265), -100, bytes(24), 0))\nhandle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0), 136)\ntry_all(lambda: raw(number(303, 264), -100, b'$secret', handle, ctypes.create_string_buffer(4), 0))\nmust_fail(lambda: raw(number(304, 265), os.open('.', 0), handle, 2))", needs="files"),
    "its own folder": Template("try_all(lambda: os.unlink('program.py'), lambda: os.rename('../work', '../moved-$number'), lambda: os.rmdir(os.getcwd()), lambda: os.symlink('$folder', '../work'), lambda: os.mkdir('x' * 255), lambda: os.chmod('.', 0))\nimport shutil; shutil.rmtree('..', ignore_errors=True)", needs="files"),
    "large files": Template("f = open('x', 'wb')\nmust_fail(lambda: libc.fallocate(f.fileno(), 0, 0, ctypes.c_long($size)) == -1 and 1 / 0, lambda: raw(number(285, 47), f.fileno(), 1, 0, $size), lambda: f.truncate($size), lambda: (f.seek($size), f.write(b'x'), f.flush()))", needs="calls"),
    "many files": Template("try:\n  for index in range(3000): open(f'{index}', 'wb').write(bytes($number))\nexcept OSError as error: print(error)"),
    "deep folders": Template("try:\n  for _ in range($count // 4): os.mkdir('d' * 200); os.chdir('d' * 200)\nexcept OSError as error: print(error)"),
    "devices": Template("must_fail(*(lambda p=p: open('/dev/' + p, 'r+b') for p in ('mem', 'kmsg', 'tty', 'ptmx', 'fuse', 'loop-control')), lambda: os.mknod('x', 0o20666, os.makedev(1, $number % 9)))", needs="files"),
    "proc": Template("for p in ('/proc/$victim/mem', '/proc/$victim/oom_score_adj', '/proc/$watcher/mem', '/proc/$watcher/oom_score_adj', '/proc/self/uid_map'):\n  must_fail(lambda: open(p, 'r+b').write(b'1'))", needs="files"),
    "locks": Template("try_all(lambda: fcntl.flock(os.open('$secret', 0), fcntl.LOCK_EX | fcntl.LOCK_NB), lambda: fcntl.flock(os.open(os.__file__, 0), fcntl.LOCK_EX | fcntl.LOCK_NB), lambda: fcntl.lockf(os.open(os.__file__, 0), fcntl.LOCK_SH | fcntl.LOCK_NB))\ntime.sleep($seconds)"),
    # descriptors
    "descriptors": Template("for n in range(3, 200):\n  try_all(lambda: os.write(n, b'{\"code\": 0, \"layers\": [\"all\"]}\\n'), lambda: print(os.read(n, 99)), lambda: os.fchdir(n))"),
    "close everything": Template("os.closerange(0, $count)\n" + "while True: pass", "time"),
    "descriptors sent": Template("a, b = socket.socketpair()\nmust_fail(lambda: a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * $number))]), lambda: (b.settimeout(1), b.recvmsg(1, 999)), lambda: raw(438, 3, $number, 0))", needs="calls"),
    # network
    "connect": Template("must_fail(lambda: socket.create_connection(('127.0.0.1', $port), 2), lambda: socket.create_connection(('::1', $port), 2), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $port)))", needs="network"),
    "local sockets": Template("try_all(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '$mailbox'), lambda: socket.socketpair()[0].sendto(b'x', '$mailbox'), lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\\0$mark'), lambda: socket.socketpair()[0].bind('x'))", needs="network"),
    "other sockets": Template("must_fail(*(lambda f=f: socket.socket(f, rng.choice([1, 2, 3, 5]), rng.choice([0, 0, 1, 15])) for f in (16, 17, 38, 40, 44, rng.randrange(1, 46))))", needs="calls"),
    "io_uring": Template("must_fail(lambda: raw(425, $number, ctypes.create_string_buffer(256)), lambda: raw(426, 3, 1, 0, 0, 0), lambda: raw(number(206, 0), $number, ctypes.create_string_buffer(8)))", needs="calls"),
    # memory and time
    "memory": Template("must_fail(lambda: bytearray($size), lambda: mmap.mmap(-1, $size), lambda: [0] * ($size // 8), lambda: 'x' * $size)"),
    "memory piece by piece": Template("x = []\nwhile True: x.append(bytes($number * 100))"),
    "memory outside": Template("must_fail(lambda: os.memfd_create('x'), lambda: raw(number(29, 194), 0, 1 << 20, 0o1600), lambda: raw(number(68, 186), 0, 0o1600), lambda: raw(number(64, 190), 0, 1, 0o1600), lambda: raw(number(240, 180), b'$mark', 66, 0o600, 0))", needs="calls"),
    "pages of the machine": Template("must_fail(lambda: mmap.mmap(-1, 2 << 20, flags=0x40022), lambda: raw(number(151, 230), 3), lambda: raw(number(162, 81)))", needs="calls"),
    "sleep": Template("time.sleep($count)", "time"),
    "never give up": Template("while True:\n  try:\n    while True: pass\n  except BaseException: pass", "time"),
    "no end after the end": Template("import atexit; atexit.register(time.sleep, $count)", "time"),
    "a slow pattern": Template("import re; re.match('(a+)+b', 'a' * (40 + $number % 40))", "time"),
    "too deep": Template("sys.setrecursionlimit($count * 100)\ndef f(): list(map(lambda _: f(), [1]))\nf()"),
    "crash": Template("[lambda: ctypes.string_at($number), os.abort, lambda: libc.raise_($signal) if 0 else os.kill(os.getpid(), $signal), lambda: os._exit($number % 256)][$flags % 4]()"),
    "output": Template("while True: os.write(rng.choice([1, 2]), bytes(rng.randrange(256) for _ in range(64)) * $number)"),
    "a large text": Template("print('\\x1b[2J' * ($count * 1000)); sys.stderr.write('x\\n' * ($count * 1000))"),
    # other processes and the kernel
    "trace": Template("must_fail(lambda: raw(number(101, 117), 16, $victim, 0, 0), lambda: raw(number(101, 117), 0x4206, $victim, 0, 0), lambda: raw(number(312, 272), $victim, $watcher, 0, 0, 0), lambda: raw(number(298, 241), bytes(128), $victim, -1, -1, 0))"),
    "memory of others": Template("part = ctypes.create_string_buffer(b'x' * 16); vector = ctypes.create_string_buffer(struct.pack('QQ', ctypes.addressof(part), 16)); there = ctypes.create_string_buffer(struct.pack('QQ', $address, 16))\nmust_fail(lambda: raw(number(311, 271), $victim, vector, 1, there, 1, 0), lambda: raw(number(310, 270), $victim, vector, 1, there, 1, 0))"),
    "limits of others": Template("must_fail(lambda: resource.prlimit($victim, resource.RLIMIT_CPU, ($number, $number)), lambda: os.setpriority(0, $victim, 19), lambda: os.sched_setaffinity($victim, {0}), lambda: raw(number(251, 30), 1, $victim, 7), lambda: os.sched_setscheduler($victim, 3, os.sched_param(0)))"),
    "higher limits": Template("must_fail(*(lambda l=l: resource.setrlimit(l, (1 << 40, 1 << 40)) for l in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)))"),
    "keys": Template("must_fail(lambda: raw(number(248, 217), b'user', b'$mark', b'y', 1, -$flags % 5 - 5), lambda: raw(number(250, 219), 0, -3, 1, 0, 0), lambda: raw(number(249, 218), b'user', b'$mark', 0, 0))", needs="calls"),
    "personality": Template("must_fail(lambda: raw(number(135, 92), $number), lambda: raw(number(135, 92), 0x0040000))", needs="calls"),
    "mounts": Template("must_fail(lambda: raw(number(165, 40), b'none', b'$folder', b'tmpfs', 0, b''), lambda: raw(number(166, 39), b'$folder', 2), lambda: raw(number(161, 51), b'.'), lambda: raw(number(155, 41), b'.', b'.'), lambda: raw(428, -100, b'/', 1), lambda: raw(430, b'tmpfs', 0))"),
    "namespaces": Template("must_fail(lambda: raw(number(272, 97), 0x10000000 | $flags), lambda: raw(number(272, 97), 0x20000), lambda: raw(number(308, 268), 0, 0))", needs="calls"),
    "other rights": Template("must_fail(lambda: os.setuid(12345), lambda: os.setgid(12345), lambda: os.setgroups([0]), lambda: os.nice(-5), lambda: raw(number(126, 91), bytes(24), b'\\xff' * 24))", needs="calls"),
    "kernel": Template("must_fail(lambda: raw(number(321, 280), $flags % 9, bytes(128), 128), lambda: raw(number(323, 282), 1), lambda: raw(number(300, 262), 0, 0), lambda: raw(number(103, 116), 3, bytes(99), 99), lambda: raw(number(169, 142), 0, 0, 0, 0), lambda: raw(number(167, 224), b'$secret', 0), lambda: raw(number(159, 171), ctypes.create_string_buffer(256)))", needs="calls"),
    "another architecture": Template("code = mmap.mmap(-1, 4096, prot=7); code.write(bytes.fromhex('b8%02x000000cd80c3' % rng.choice([2, 20, 37, 120])) if x86 else b'')\nif x86: ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()"),
    "numbers of x32": Template("must_fail(*(lambda n=n: raw(0x40000000 + n) for n in rng.sample(range(548), 99)))", needs="calls"),
    "any calls": Template(
        "values = [0, 3, $victim, -$victim, $signal, 0x10000000, 4096, $address, $size]\nbuffer = ctypes.create_string_buffer(b'$secret', 4096)\n"
        "kept_calls = {number(0, 63), number(60, 93), number(231, 94), number(59, 221), number(11, 215), number(12, 214), number(10, 226), number(13, 134), number(14, 135), number(34, 1), number(130, 133), number(15, 139)}\n"
        "for _ in range($count):\n  n = rng.randrange(480)\n  if n not in kept_calls: libc.syscall(ctypes.c_long(n), *(rng.choice([buffer, *map(ctypes.c_long, values)]) for _ in range(6)))",
        "any", needs="files",
    ),
}  # fmt: skip
