"""Programs that compute, use the standard library, write into their folder and print: the sandbox must not disturb them."""

# ruff: noqa: E501 (one paragraph for each program)

from __future__ import annotations

HARMLESS: dict[str, str] = {
    "nothing": "",
    "threads": """
import queue, threading
q = queue.Queue(); c = threading.Condition(); b = threading.Barrier(2)
ts = [threading.Thread(target=q.put, args=(i,)) for i in range(20)]
[t.start() for t in ts]; [t.join() for t in ts]
assert sorted(q.get(timeout=5) for _ in range(20)) == list(range(20))
threading.Event().wait(0.01); threading.Timer(0.01, print).start(); threading.stack_size(1 << 20)
threading.Thread(target=b.wait).start(); b.wait()
""",
    "many short threads": "import threading\nfor i in range(300): t = threading.Thread(target=abs, args=(i,)); t.start(); t.join()",
    "a pool of threads": "from concurrent.futures import ThreadPoolExecutor as T\nwith T(3) as p: assert sum(p.map(abs, range(-99, 0))) == 4950",
    "a pool of multiprocessing.dummy": "import multiprocessing.pool as p\ntry: p.ThreadPool(2).map(abs, [-1])\nexcept OSError: pass",
    "temporary files": """
import tempfile, os
with tempfile.TemporaryDirectory() as d: open(d + '/x', 'w').write('1')
f = tempfile.NamedTemporaryFile(); f.write(b'x'); f.close(); tempfile.TemporaryFile().write(b'x'); tempfile.mkstemp()
tempfile.SpooledTemporaryFile(max_size=2).write(b'123456')
""",
    "asyncio": """
import asyncio
async def f(n): await asyncio.sleep(0.01); return n
async def main():
    assert await asyncio.gather(*map(f, range(9))) == list(range(9))
    assert await asyncio.to_thread(sum, [1, 2]) == 3
    q = asyncio.Queue(); await q.put(1); await q.get(); await asyncio.wait_for(f(1), 5)
asyncio.run(main())
""",
    "sqlite3": """
import sqlite3
for name in (':memory:', 'x.db'):
    c = sqlite3.connect(name); c.execute('create table t(a)'); c.executemany('insert into t values(?)', [(i,) for i in range(100)]); c.commit()
    assert c.execute('select sum(a) from t').fetchone() == (4950,); c.execute('vacuum'); c.close()
c = sqlite3.connect('x.db'); c.execute('insert into t values(1)'); c.commit()
""",
    "mmap": """
import mmap
m = mmap.mmap(-1, 1 << 20); m[0] = 1; m.resize(1 << 21); m.madvise(mmap.MADV_DONTNEED); m.close()
open('x', 'wb').write(bytes(9999)); f = open('x', 'r+b'); m = mmap.mmap(f.fileno(), 0); m[5] = 7; m.flush(); m.close()
assert open('x', 'rb').read()[5] == 7
""",
    "random and hashes": """
import random, secrets, uuid, os, hashlib, zlib, bz2, lzma, gzip
random.seed(); random.random(); secrets.token_hex(); uuid.uuid4(); os.urandom(4); os.getrandom(3)
hashlib.sha256(b'x').hexdigest(); hashlib.scrypt(b'a', salt=b'b', n=2, r=8, p=1)
for m in (zlib, bz2, lzma, gzip): assert m.decompress(m.compress(b'x' * 99999)) == b'x' * 99999
""",
    "time": """
import time, datetime, calendar, timeit, sched
time.sleep(0.01); time.time(), time.monotonic(), time.perf_counter(), time.process_time(), time.thread_time(), time.localtime()
time.get_clock_info('monotonic'); time.strftime('%c'); datetime.datetime.now().astimezone(); timeit.timeit('1+1', number=10)
s = sched.scheduler(); s.enter(0.01, 1, print); s.run()
""",
    "files": """
import os, shutil, glob, pathlib, json, pickle, filecmp
os.makedirs('d'); os.makedirs('e/f/g'); open('d/x', 'w').write('hello' * 10000); shutil.copyfile('d/x', 'e/x')
os.rename('e/x', 'e/y'); os.replace('e/y', 'e/z'); os.link('d/x', 'l'); os.symlink('d/x', 's')
os.readlink('s'), os.path.realpath('s'), os.stat('s'), os.lstat('s'), os.access('s', 4), os.getcwd(), os.listdir('.')
[e.stat() for e in os.scandir('.')], list(os.walk('.')), glob.glob('**', recursive=True)
os.truncate('l', 5); f = open('l', 'r+b'); f.truncate(3); f.seek(0, 2); os.fsync(f.fileno()); os.fdatasync(f.fileno())
os.pwrite(f.fileno(), b'x', 1); os.pread(f.fileno(), 3, 0); os.readv(f.fileno(), [bytearray(3)]); os.writev(f.fileno(), [b'a', b'b'])
os.posix_fallocate(f.fileno(), 0, 100); os.posix_fadvise(f.fileno(), 0, 0, 0); f.close()
os.chdir('d'); os.chdir('..'); os.unlink('s'); shutil.rmtree('e'); os.umask(0o22); shutil.move('d/x', 'd/y')
pathlib.Path('p').write_text('x'); pathlib.Path('p').unlink(); pathlib.Path('t').mkdir(); os.rmdir('t')
shutil.make_archive('a', 'zip', 'd'); shutil.unpack_archive('a.zip', 'u'); assert filecmp.cmp('d/y', 'u/y')
d = os.open('d', os.O_RDONLY); os.listdir(d); os.stat('y', dir_fd=d); os.open('y', os.O_RDONLY, dir_fd=d)
os.copy_file_range(os.open('d/y', os.O_RDONLY), os.open('z', os.O_WRONLY | os.O_CREAT), 10)
json.dump({}, open('j', 'w')); pickle.dump([1], open('k', 'wb')); os.closerange(40, 60)
""",
    "archives": """
import tarfile, zipfile
open('x', 'w').write('1')
with tarfile.open('t.tar.gz', 'w:gz') as t: t.add('x')
assert tarfile.open('t.tar.gz').getnames() == ['x']
z = zipfile.ZipFile('z.zip', 'w'); z.write('x'); z.close(); zipfile.ZipFile('z.zip').extractall('o')
""",
    "signals": """
import signal, os, time, threading
seen = []; signal.signal(signal.SIGALRM, lambda *a: seen.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()
signal.alarm(0); signal.getitimer(0); signal.signal(signal.SIGUSR1, lambda *a: seen.append(2)); os.kill(os.getpid(), signal.SIGUSR1)
signal.raise_signal(signal.SIGUSR1); signal.pthread_kill(threading.get_ident(), signal.SIGUSR1); assert seen == [1, 2, 2, 2], seen
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); os.kill(os.getpid(), signal.SIGUSR2); signal.sigpending()
assert signal.sigwait([signal.SIGUSR2]) == signal.SIGUSR2; signal.siginterrupt(signal.SIGUSR1, False)
""",
    "information": """
import os, sys, platform, locale, resource, shutil
os.getpid(), os.getppid(), os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getgroups(), os.getpgrp(), os.getpgid(0), os.getsid(0)
os.uname(), os.cpu_count(), os.times(), os.isatty(1), os.sysconf('SC_PAGE_SIZE'), os.sysconf('SC_PHYS_PAGES'), platform.platform()
resource.getrusage(0), resource.getrlimit(resource.RLIMIT_AS), shutil.get_terminal_size(), locale.setlocale(locale.LC_ALL, '')
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
""",
    "pipes": """
import os, select, selectors, socket, fcntl
r, w = os.pipe(); os.write(w, b'x'); assert select.select([r], [w], [], 1) == ([r], [w], [])
p = select.poll(); p.register(r); p.poll(1); e = select.epoll(); e.register(r, 1); e.poll(1); os.set_blocking(r, False)
os.set_inheritable(r, True); os.dup(r); os.dup2(r, 50); os.close(r); fcntl.fcntl(w, fcntl.F_GETFL)
a, b = socket.socketpair(); a.send(b'hi'); assert b.recv(2) == b'hi'; b.settimeout(1); a.shutdown(2); a.close()
s = selectors.DefaultSelector(); s.register(b, 1); s.select(1); os.pipe2(os.O_CLOEXEC)
""",
    "the standard library": """
import sys, importlib
for name in sorted(sys.stdlib_module_names):
    if name not in ('this', 'antigravity', 'idlelib', 'turtledemo', 'test', 'tkinter', 'lib2to3') and not name.startswith('_'):
        try: importlib.import_module(name)
        except ImportError: pass  # of another operating system
""",
    "ctypes": "import ctypes\nl = ctypes.CDLL(None); l.getpid(); assert ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)() == 7",
    "tests and logs": """
import unittest, doctest, logging, logging.handlers, traceback, gc, warnings, tracemalloc, cProfile, faulthandler
class T(unittest.TestCase):
    def test(self): self.assertEqual(1, 1)
assert unittest.main(argv=['x'], exit=False).result.wasSuccessful()
def f():
    '''
    >>> f()
    1
    '''
    return 1
assert doctest.testmod().failed == 0; h = logging.handlers.RotatingFileHandler('log', maxBytes=100, backupCount=2)
logging.getLogger().addHandler(h); [logging.warning('x' * 20) for _ in range(9)]; gc.collect(); traceback.print_stack(); warnings.warn('x')
faulthandler.enable(); faulthandler.dump_traceback(); tracemalloc.start(); tracemalloc.take_snapshot(); cProfile.run('1 + 1')
""",
    "much memory": "x = [bytes(1000) for _ in range(100000)]; del x; y = [0] * 1000000; import math; math.factorial(2000)",
    "errors that are caught": """
def f(n): return f(n + 1)
try: f(0)
except RecursionError: pass
for name in ('/etc/shadow', 'none', '.'):
    try: open(name)
    except OSError: pass
""",
    "its own module": "open('mod.py', 'w').write('x = 1'); import sys; sys.path.insert(0, '.'); import mod; assert mod.x == 1",
    "Python again": "import os, sys; os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', 'print(1)'])",
    "locks": "import fcntl\nf = open('x', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_UN)",
}
