"""Programs that a model could generate, harmful ones among them, for the tests of the sandbox.

Each has a name, an expected outcome and a source. `attempt` calls functions and prints "refused" or "done" for each. The
test substitutes the variables that begin with $.
"""

# ruff: noqa: E501 (one line for each program)

from __future__ import annotations

PREAMBLE = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading, time
x86, libc = os.uname().machine == "x86_64", ctypes.CDLL(None, use_errno=True)
def attempt(*functions):
    for function in functions:
        try:
            result = function()
        except BaseException as error:
            print("refused", type(error).__name__, error, flush=True)
        else:
            print("done", result, flush=True)
def raw(name, *arguments):
    if (libc.syscall if isinstance(name, int) else getattr(libc, name))(*([name] if isinstance(name, int) else []), *arguments) == -1:
        raise OSError(ctypes.get_errno(), str(name))
def number(x86_number, other): return x86_number if x86 else other
def start_tasks(count, flags=0x3d0f00):
    # Tasks of clone need no Python thread and no memory of their own: each waits for ever in machine code.
    import mmap
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("b8220000000f05ebf7"))  # again: pause(); goto again
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    keep.append(code)
    for _ in range(count):
        arguments = [address, address + 4032, flags, 0, address + 512, address + 1024, address + 512]
        if libc.clone(*map(ctypes.c_void_p, arguments)) == -1:
            raise OSError(ctypes.get_errno(), "clone")
keep = []
"""

# Expected outcomes:
#   refused   it exits, and every attempt was refused       ok      it exits with code 0
#   fails     it exits with another code, or is stopped for its amount of output
#   time      it is stopped at the time limit
PROGRAMS: dict[str, tuple[str, str]] = {
    # processes
    "fork": ("refused", "attempt(os.fork, os.forkpty, lambda: raw('vfork') or os._exit(0))"),
    "fork by number": ("refused", "attempt(lambda: raw(57 if x86 else 220, 17, 0, 0, 0, 0), lambda: raw(435, 0, 0))"),
    "clone": ("refused", "attempt(lambda: raw(56 if x86 else 220, 17, 0, 0, 0, 0))"),
    "fork, the other numbers": ("refused", "attempt(lambda: raw((57 if x86 else 220) + 0x40000000, 17, 0, 0, 0, 0))"),
    "tasks without end": (
        "refused",
        "if x86: attempt(lambda: start_tasks(6000))\nelse: attempt(os.fork)\n"
        "assert len(keep) <= 1\nos._exit(0)",
    ),
    "other flags of clone": (
        "refused",
        "flags = (17, 0, 0x100, 0xf00, 0x10f00, 0x3d0f00 | 0x8000, 0x3d0f00 | 0x800000, 0x3d0f00 | 0x1000, 0x4111, 0x3d0f00 ^ 0x80000)\n"
        "attempt(*(lambda f=f: start_tasks(1, f) if x86 else raw(220, f, 0, 0, 0, 0) for f in flags))\nos._exit(0)",
    ),
    "subprocess": ("refused", "attempt(lambda: subprocess.run(['/bin/echo']), lambda: subprocess.run('echo', shell=True))"),
    "spawn": ("refused", "attempt(lambda: os.posix_spawn('/bin/echo', ['echo'], {}), lambda: os.popen('echo').read())"),
    "shell": ("ok", "assert os.system('true') != 0"),
    "multiprocessing": ("refused", "import multiprocessing as m\nattempt(lambda: m.Process(target=print).start(), lambda: m.Pool(2))"),
    "become a shell": ("fails", "os.execv('/bin/sh', ['sh', '-c', '/bin/sleep 100 & /bin/sleep 100 & wait'])"),
    "become sleep": ("time", "os.execv('/bin/sleep', ['$mark', '1000'])"),
    "thread bomb": (
        "refused",
        "def start():\n  while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nattempt(start)\nos._exit(0)",
    ),
    "threads": ("ok", "t = threading.Thread(target=print, args=('x',)); t.start(); t.join()"),
    "a thread that never ends": ("time", "threading.Thread(target=time.sleep, args=(1000,)).start()"),
    # signals
    "kill the parent": ("refused", "attempt(lambda: os.kill(os.getppid(), 9), lambda: os.kill(os.getppid(), 15))"),
    "kill the caller": ("refused", "attempt(lambda: os.kill($pid, 10), lambda: raw('tgkill', $pid, $pid, 10), lambda: os.kill(-$pid, 10))"),
    "kill everybody": ("refused", "attempt(lambda: os.kill(-1, 10), lambda: os.kill(0, 10), lambda: os.killpg(0, 10))"),
    "kill by queue": ("refused", "attempt(lambda: raw('sigqueue', $pid, 10, 0), lambda: raw(200 if x86 else 130, $pid, 10))"),
    "kill by pidfd": ("refused", "attempt(lambda: os.pidfd_open($pid), lambda: os.pidfd_open(os.getppid()))"),
    "signal by a file's owner": (
        "refused",
        "import fcntl\nattempt(lambda: fcntl.fcntl(0, fcntl.F_SETOWN, $pid), lambda: fcntl.fcntl(0, 15, bytes(8)))",
    ),
    "signal by a socket's owner": (
        "refused",
        "import fcntl, array\na, b = socket.socketpair()\npid = array.array('i', [$pid])\n"
        "attempt(lambda: fcntl.ioctl(a, 0x8901, pid), lambda: fcntl.ioctl(a, 0x8902, pid), lambda: fcntl.fcntl(a, 10, 10),\n"
        "  lambda: fcntl.fcntl(a, fcntl.F_SETOWN, $pid), lambda: fcntl.fcntl(a, fcntl.F_SETFL, fcntl.FASYNC),\n"
        "  lambda: fcntl.ioctl(a, 0x5452, array.array('i', [1])))\nb.send(b'x')",
    ),
    "signal by a pipe's owner": (
        "refused",
        "import fcntl, array\nr, w = os.pipe()\npid = array.array('i', [$pid])\n"
        "attempt(lambda: fcntl.fcntl(r, fcntl.F_SETOWN, $pid), lambda: fcntl.fcntl(r, 10, 10), lambda: fcntl.ioctl(r, 0x8901, pid),\n"
        "  lambda: fcntl.fcntl(r, fcntl.F_SETFL, fcntl.FASYNC | os.O_NONBLOCK), lambda: fcntl.ioctl(r, 0x5452, array.array('i', [1])))\n"
        "os.write(w, b'x')",
    ),
    "signal by a lease or a folder": (
        "refused",
        "import fcntl\nopen('x', 'w').close(); f = os.open('x', os.O_RDONLY); d = os.open('.', os.O_RDONLY)\n"
        "attempt(lambda: fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_RDLCK), lambda: fcntl.fcntl(d, fcntl.F_NOTIFY, fcntl.DN_CREATE))",
    ),
    "signal by a timer": (
        "refused",
        "attempt(lambda: raw(number(222, 107), 0, ctypes.create_string_buffer(64), ctypes.create_string_buffer(8)))",
    ),
    "outlive the supervisor": ("refused", "attempt(lambda: raw('prctl', 1, 0, 0, 0, 0), lambda: raw('prctl', 36, 1, 0, 0, 0), lambda: os.setsid())"),
    "kill itself": ("fails", "os.kill(os.getpid(), 9)"),
    "stop itself": ("time", "os.kill(os.getpid(), signal.SIGSTOP)"),
    "ignore all signals": (
        "time",
        "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\nwhile True: pass",
    ),
    "set its own alarm": ("fails", "signal.alarm(1); time.sleep(1000)"),
    "abort": ("fails", "os.abort()"),
    "crash": ("fails", "ctypes.string_at(0)"),
    # other processes
    "ptrace": ("refused", "attempt(lambda: raw('ptrace', 16, os.getppid(), 0, 0), lambda: raw('ptrace', 0, 0, 0, 0))"),
    "memory of the caller": (
        "refused",
        "attempt(lambda: raw('process_vm_readv', $pid, 0, 0, 0, 0, 0), lambda: open('/proc/$pid/mem', 'rb').read(1),\n"
        "  lambda: open('/proc/%d/mem' % os.getppid(), 'r+b').read(1))",
    ),
    "environment of the caller": (
        "refused",
        "attempt(*(lambda p=p: open(f'/proc/{p}/environ', 'rb').read() for p in ($pid, os.getppid(), 1, 'self')))",
    ),
    "limits of the caller": ("refused", "attempt(lambda: resource.prlimit($pid, resource.RLIMIT_CPU, (1, 1)))"),
    "processes by descriptor": (
        "refused",
        "attempt(lambda: raw(438, 3, 0, 0), lambda: raw(448, 3, 0), lambda: raw(440, 3, 0, 0, 0, 0), lambda: raw(number(312, 272), $pid, $pid, 0, 0, 0))",
    ),
    "locks of the caller": ("refused", "import fcntl\nattempt(lambda: fcntl.flock(0, fcntl.LOCK_EX), lambda: raw(number(274, 100), $pid, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)))"),
    "slow the caller down": (
        "refused",
        "attempt(lambda: os.setpriority(0, $pid, 19), lambda: os.sched_setaffinity($pid, {0}), lambda: os.sched_setscheduler($pid, 3, os.sched_param(0)))",
    ),
    # files
    "read a secret": ("refused", "attempt(lambda: open('$secret').read(), lambda: os.listdir('$repository'))"),
    "read passwords": ("refused", "attempt(lambda: open('/etc/passwd').read(), lambda: open('/etc/shadow').read())"),
    "read keys": ("refused", "attempt(lambda: os.listdir('$home'), lambda: os.listdir('/root'), lambda: os.listdir('/home/' + os.listdir('/home')[0]))"),
    "read /proc": ("refused", "attempt(lambda: open('/proc/version').read(), lambda: os.listdir('/proc/self/fd'))"),
    "through a link": ("refused", "os.symlink('$secret', 'link'); attempt(lambda: open('link').read(), lambda: open('link', 'w'))"),
    "through a folder's link": ("refused", "os.symlink('/', 'all'); attempt(lambda: open('all$secret').read())"),
    "hard link": ("refused", "attempt(lambda: os.link('$secret', 'link'), lambda: os.link('program.py', '$folder/program.py'))"),
    "up the folders": ("refused", "attempt(lambda: open('../' * 50 + '$secret'[1:]).read(), lambda: open('../x', 'w'))"),
    "write next to the secret": ("refused", "attempt(lambda: open('$folder/new', 'w'), lambda: os.mkdir('$folder/new'))"),
    "write over the secret": ("refused", "attempt(lambda: open('$secret', 'w'), lambda: open('$secret', 'a'), lambda: os.truncate('$secret', 0))"),
    "empty the secret while reading": ("refused", "attempt(lambda: os.open('$secret', os.O_RDONLY | os.O_TRUNC))"),
    "remove the secret": ("refused", "attempt(lambda: os.unlink('$secret'), lambda: os.rename('$secret', 'x'), lambda: os.rename('program.py', '$secret'))"),
    "properties of the secret": (
        "refused",
        "attempt(lambda: os.chmod('$secret', 0), lambda: os.utime('$secret', (0, 0)), lambda: os.chown('$secret', 1, 1),\n"
        "  lambda: os.setxattr('$secret', 'user.x', b'x'))",
    ),
    "flags of the secret": (
        "refused",
        "import fcntl\nattempt(lambda: raw(469, -100, b'$secret', ctypes.create_string_buffer(24), 24, 0), lambda: raw(469, -100, b'.', ctypes.create_string_buffer(24), 24, 0),\n"
        "  lambda: fcntl.ioctl(os.open('.', 0), 0x40086602, bytes([16, 0, 0, 0, 0, 0, 0, 0])), lambda: fcntl.ioctl(os.open('program.py', 0), 0x401c5820, bytes(28)))",
    ),
    "space beyond the limit on files": ("refused", "f = open('x', 'wb')\nattempt(lambda: raw('fallocate', f.fileno(), 1, 0, 1 << 30), lambda: raw('fallocate', f.fileno(), 0, 0, 17 << 20))"),
    "another place for its folder": ("ok", "try: os.rename('../work', '../moved')\nexcept OSError: pass\ntry: os.rmdir('.')\nexcept OSError: pass"),
    "special files": ("refused", "attempt(lambda: os.mkfifo('$folder/x'), lambda: os.mknod('x', 0o20666, os.makedev(1, 1)))"),
    "write to shared places": ("refused", "attempt(*(lambda p=p: open(p + '/x', 'w') for p in ('/dev/shm', '/var/tmp', '/tmp', '/', '/usr', '/etc')))"),
    "write to Python": ("refused", "attempt(lambda: open(os.__file__, 'a'), lambda: open(sys.executable, 'r+b'))"),
    "write to devices": ("refused", "attempt(*(lambda p=p: open('/dev/' + p, 'wb') for p in ('mem', 'vda', 'sda', 'kmsg', 'tty', 'ptmx')))"),
    "a large file": ("refused", "attempt(lambda: open('x', 'wb').write(bytes(17 << 20)))"),
    "its own folder": ("ok", "open('x', 'w').write('1'); os.mkdir('y'); os.rename('x', 'y/x'); assert open('y/x').read() == '1'; open('/dev/null', 'w').write('x')"),
    "deep folders": ("ok", "for _ in range(1500): os.mkdir('d' * 200); os.chdir('d' * 200)"),
    "many files": ("ok", "for n in range(1000): open(f'{n}', 'w').close()"),
    "an odd name": ("ok", "open(b'\\xff\\n', 'w').close(); os.mkdir(b'\\xfe')"),
    "temporary files": ("ok", "import tempfile; tempfile.TemporaryFile().write(b'x'); tempfile.mkdtemp()"),
    # network
    "connect": ("refused", "attempt(lambda: socket.create_connection(('127.0.0.1', $port), 5))"),
    "send": ("refused", "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $port)))"),
    "names": ("refused", "attempt(lambda: socket.getaddrinfo('example.com', 80), lambda: socket.gethostbyname('example.org'))"),
    "other sockets": ("refused", "attempt(*(lambda f=f: socket.socket(*f).connect('\\0nanochat-$pid') for f in ((1, 1), (16, 3), (17, 3), (40, 1), (38, 5))))"),
    "a pair of sockets": (
        "refused",
        "import tempfile\nattempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '$folder/mailbox'),\n"
        "  lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), lambda: socket.socketpair(30, 1))\n"
        "a, b = socket.socketpair()\nattempt(lambda: a.sendto(b'x', '$folder/mailbox'), lambda: a.connect('$folder/mailbox'), lambda: a.bind('x'), lambda: a.listen(),\n"
        "  lambda: a.sendmsg([b'x'], [(1, 1, bytes(4))]), lambda: a.recvmsg(1), lambda: a.setsockopt(1, 2, 1), lambda: a.accept())",
    ),
    "listen": ("refused", "attempt(lambda: socket.create_server(('127.0.0.1', 0)), lambda: socket.create_server(('::', 0), family=socket.AF_INET6))"),
    "web": ("refused", "import urllib.request\nattempt(lambda: urllib.request.urlopen('http://127.0.0.1:$port', timeout=5).read())"),
    "io_uring": ("refused", "attempt(lambda: raw(425, 8, ctypes.create_string_buffer(256)))"),
    # the kernel
    "more rights": ("refused", "attempt(lambda: os.setuid(12345), lambda: os.chroot('.'), lambda: os.nice(-5), lambda: raw('setns', 0, 0))"),
    "namespaces of its own": ("refused", "attempt(lambda: raw('unshare', 0x10000000), lambda: raw('unshare', 0x20000))"),
    "mount": ("refused", "attempt(lambda: raw('mount', b'none', b'/tmp', b'tmpfs', 0, b''), lambda: raw('umount2', b'/usr', 2))"),
    "the machine": ("refused", "attempt(lambda: raw('reboot', 0), lambda: raw('sethostname', b'x', 1), lambda: raw('swapoff', b'x'))"),
    "the clock": ("refused", "attempt(lambda: time.clock_settime(0, 0), lambda: raw(164 if x86 else 170, 0, 0))"),
    "kernel programs": ("refused", "attempt(lambda: raw(321 if x86 else 280, 0, 0, 0), lambda: raw(298 if x86 else 241, 0, 0, 0, 0, 0))"),
    "keys": ("refused", "attempt(lambda: raw(number(250, 219), 0, -3, 1, 0, 0), lambda: raw(number(248, 217), b'user', b'x', b'y', 1, -3), lambda: raw(number(249, 218), b'user', b'x', 0, 0))"),
    "another personality": ("refused", "attempt(lambda: raw('personality', 0x0040000), lambda: raw('personality', -1))"),
    "files that are not files": (
        "refused",
        "attempt(lambda: raw('eventfd', 0, 0), lambda: raw('timerfd_create', 0, 0), lambda: raw('signalfd', -1, bytes(128), 0), lambda: raw('inotify_init1', 0),\n"
        "  lambda: raw('fanotify_init', 0, 0), lambda: raw(number(323, 282), 1), lambda: raw(447, 0), lambda: raw(number(206, 0), 1, ctypes.create_string_buffer(8)))",
    ),
    "pages of the machine": ("refused", "import mmap\nattempt(lambda: mmap.mmap(-1, 2 << 20, flags=0x40022), lambda: raw('mlockall', 3), lambda: raw('mlock', ctypes.create_string_buffer(99), 99), lambda: raw(number(162, 81)))"),
    "other filters": ("refused", "attempt(lambda: raw(number(317, 277), 0, 0, 0), lambda: raw('prctl', 22, 2, 0), lambda: raw(444, 0, 0, 1), lambda: raw('prctl', 38, 0, 0, 0, 0))"),
    "another architecture": ("fails", "import mmap\nif not x86: sys.exit(1)\nm = mmap.mmap(-1, 4096, prot=7); m.write(bytes.fromhex('b802000000cd80c3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))(); print('done', os.getpid())"),
    "numbers of another interface": ("refused", "attempt(*(lambda n=n: raw(0x40000000 + n) for n in range(0, 548)))"),
    "higher limits": ("refused", "attempt(*(lambda l=l: resource.setrlimit(l, (1 << 40, 1 << 40)) for l in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)))"),
    # memory and time
    "one large object": ("refused", "attempt(lambda: bytearray(10**9), lambda: 'a' * 10**10, lambda: [0] * 10**9)"),
    "mapped memory": ("refused", "import mmap\nattempt(lambda: mmap.mmap(-1, 1 << 30))"),
    "memory without end": ("fails", "x = []\nwhile True: x.append(bytes(1 << 20))"),
    "memory outside": ("refused", "attempt(lambda: os.memfd_create('x'), lambda: raw('shmget', 0, 1 << 30, 0o1600))"),
    "shared memory": ("refused", "from multiprocessing import shared_memory\nattempt(lambda: shared_memory.SharedMemory(create=True, size=1 << 20))"),
    "no end": ("time", "while True: pass"),
    "one long instruction": ("time", "9**9**9"),
    "a slow pattern": ("time", "import re; re.match('(a+)+b', 'a' * 60)"),
    "sleep": ("time", "time.sleep(10**6)"),
    "no end after the end": ("time", "import atexit; atexit.register(time.sleep, 1000)"),
    "never give up": ("time", "while True:\n  try:\n    while True: pass\n  except BaseException: pass"),
    "too deep": ("fails", "def f(): f()\nf()"),
    "far too deep": ("fails", "sys.setrecursionlimit(10**9)\ndef f(): list(map(lambda _: f(), [1]))\nf()"),
    # output
    "flood": ("fails", "while True: print('x' * 1000)"),
    "flood of errors": ("fails", "while True: os.write(2, b'x' * 60000)"),
    "two floods": ("fails", "while True: os.write(1, b'x' * 999); os.write(2, b'y' * 999)"),
    "one large text": ("fails", "print('x' * 50_000_000)"),
    "no output left": ("ok", "os.close(1); os.close(2)"),
    "silence without end": ("time", "os.closerange(0, 100)\nwhile True: pass"),
    "not UTF-8": ("ok", "sys.stdout.buffer.write(b'\\xff\\xfe\\0\\x80')"),
    "half a character": ("ok", "print('\\ud800'.encode('utf-8', 'surrogatepass')); sys.stdout.buffer.write(b'\\xf0\\x9f')"),
    # exits
    "exit": ("ok", "sys.exit()"),
    "exit code": ("fails", "sys.exit(3)"),
    "exit with words": ("fails", "sys.exit('no')"),
    "exit at once": ("fails", "os._exit(77)"),
    "an error": ("fails", "raise KeyboardInterrupt"),
    "an odd error": ("fails", "class E(Exception):\n  def __str__(self): raise E\nraise E"),
    "asks": ("fails", "input('? ')"),
    # information about its surroundings
    "secrets": ("ok", "assert 'NANOCHAT_TEST_SECRET' not in os.environ and '$token' not in str(dict(os.environ)), os.environ"),
    "open files": ("refused", "attempt(*(lambda n=n: os.fstat(n) for n in range(3, 64)))"),
    "input": ("ok", "assert sys.stdin.read() == ''"),
    "our code": ("refused", "attempt(lambda: __import__('nanochat'), lambda: __import__('torch'), lambda: __import__('pytest'))"),
    "attribute walk": (
        "refused",
        "walk = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0]\nattempt(lambda: walk(['/bin/true']))",
    ),
    "frames": ("ok", "f = sys._getframe()\nwhile f.f_back: f = f.f_back\nassert f.f_globals['__name__'] == '__main__'"),
    # source
    "not Python": ("fails", "this is not Python"),
    "not finished": ("fails", "print((("),
    "digits of another script": ("fails", "print(١٢)"),
    "half a character in the source": ("fails", "print('\ud800')"),
    "a null": ("fails", "print(1)\0"),
    "much source": ("fails", "x = 1\n" * 200_000),
    "nested source": ("fails", "(" * 100_000),
    "a long line": ("ok", "x = [" + "1," * 100_000 + "]"),
    "Windows' line ends": ("ok", "if 1:\r\n  print(1)\r\n"),
    "odd encoding": ("fails", "# -*- coding: nonsense -*-\nprint(1)"),
}  # fmt: skip

# Programs that start processes, which seccomp refuses: they test the other layers of isolation.
STARTING: dict[str, tuple[str, str]] = {
    "daemon": (
        "ok",
        "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    for n in (0, 1, 2): os.close(n)\n    os.execv('/bin/sleep', ['$mark', '1000'])\n  os._exit(0)\ntime.sleep(0.2)",
    ),
    "a child that keeps the output": ("ok", "if os.fork() == 0: os.execv('/bin/sleep', ['$mark', '1000'])"),
    "children that ignore signals": (
        "ok",
        "for _ in range(20):\n  if os.fork() == 0:\n    signal.signal(15, 1); signal.signal(1, 1); os.setsid(); os.execv('/bin/sleep', ['$mark', '1000'])",
    ),
    "a tree without end": ("time", "while True:\n  if os.fork() == 0: time.sleep(0.2)\n  else: time.sleep(0.3)"),
    "stopped children": ("ok", "p = os.fork()\nif p == 0: os.execv('/bin/sleep', ['$mark', '1000'])\nos.kill(p, 19)"),
    "kill everybody": ("fails", "for n in (1, 15, 9): os.kill(-1, n)\nos.kill(os.getpid(), 9)"),
    "traced and stopped": ("time", "raw(number(101, 117), 0, 0, 0, 0); os.kill(os.getpid(), 10)"),
    "kill the first": ("refused", "attempt(lambda: os.kill($pid, 9))"),
    "processes without end": (
        "ok",
        "count = 0\ntry:\n  while count < 6000:\n    if os.fork() == 0: time.sleep(1000)\n    count += 1\nexcept OSError: pass\nassert count < 130, count",
    ),
}
