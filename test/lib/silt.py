"""What the integration tests stand on: real servers, real volumes, real mounts, and a suite of cases
that leaves nothing behind.

    suite = silt.Suite()

    @suite.case
    def a_name_for_what_is_promised(t):     # t is the Suite: t.redis(), t.volume(), t.mount(...)
        ...
    suite.main()

Everything a case starts through `t` ends with it: mounts first, then servers. Each daemon's log is
then read for words that should not be there. Where a test must wait, it waits for an event or polls
for the state; it never sleeps and hopes.

Environment (test/run sets it): SILT_BUILD the build folder, SILT_TEST_OUT where logs go, TMPDIR for
data, SILT_TIMEOUT seconds for the whole file, SILT_QUICK=1 for short forms."""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback

import spawn
from servers import DirBucket, Proxy, Redis, Rgw, free_port, wait_until  # noqa: F401 (re-exported)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("SILT_BUILD", os.path.join(ROOT, "build")))
SILTFS = os.path.join(BUILD, "tools", "siltfs")
QUICK = os.environ.get("SILT_QUICK") == "1"
SANITIZED = os.path.basename(BUILD) in ("build-asan", "build-tsan")

SUSPICIOUS = re.compile(r"AddressSanitizer|LeakSanitizer|ThreadSanitizer|runtime error:|"
                        r"[Aa]ssert(ion)?\b.*fail|stack smashing|double free|Segmentation fault|"
                        r"\bBUG\b|damaged| error: ")


class Failure(AssertionError):
    pass


def check(condition, what):
    if not condition:
        raise Failure(what)


def equal(got, want, what):
    if got != want:
        raise Failure(f"{what}: got {shorten(got)}, want {shorten(want)}")


def shorten(value, n=300):
    text = repr(value)
    return text if len(text) <= n else text[:n] + f"... ({len(text)} characters)"


@contextlib.contextmanager
def raises(number, what):
    """The block must end with OSError `number` (an errno or a tuple of them)."""
    wanted = number if isinstance(number, tuple) else (number,)
    try:
        yield
    except OSError as e:
        names = "/".join(os.strerror(n) for n in wanted)
        check(e.errno in wanted, f"{what}: {os.strerror(e.errno or 0)}, want {names}")
    else:
        raise Failure(f"{what}: went through, want {os.strerror(wanted[0])}")


def run(*args, check_status=True, timeout=120, env=None, input=None):
    """Runs a command; its standard output and error are in the result."""
    p = spawn.run(args, timeout=timeout, env={**os.environ, **(env or {})}, input=input)
    p.out = p.stdout.decode("utf-8", "replace")
    p.err = p.stderr.decode("utf-8", "replace")
    if check_status and p.returncode != 0:
        raise Failure(f"{' '.join(map(str, args))}: exit status {p.returncode}\n{p.out}{p.err}")
    return p


def mounted(path):
    with open("/proc/self/mountinfo") as f:
        real = os.path.realpath(path)
        return any(line.split()[4].replace("\\040", " ") == real for line in f)


def wait_mounted(path, wanted, seconds, still=lambda: None):
    """Waits for the kernel's own event of a change in the mount table. `still` may raise."""
    end = time.monotonic() + seconds
    with open("/proc/self/mountinfo") as f:
        poll = select.poll()
        poll.register(f, select.POLLERR | select.POLLPRI)
        while mounted(path) != wanted:
            still()
            if time.monotonic() > end:
                raise TimeoutError(f"{path} was not {'' if wanted else 'un'}mounted in {seconds} s")
            poll.poll(50)


NOREPLACE, EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(a, b, flags):
    if _libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags) != 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e), a)


def payload(seed, size):
    """Bytes that depend on every part of the seed, that half-compress like real data do."""
    if size == 0:
        return b""
    block = hashlib.shake_128(str(seed).encode()).digest(min(size, 65536) // 2 + 1)
    text = block + block.hex().encode()[:len(block)]
    out = bytearray()
    while len(out) < size:
        out += len(out).to_bytes(8, "little") + text
    return bytes(out[:size])


def describe_tree(top, times=True):
    """{path: everything that must survive}, for comparing two trees. Directories' sizes and link
    counts are left out: file systems differ in them."""
    out = {}
    for d, dirs, files in os.walk(os.fsencode(top)):
        for n in [b""] + [x for x in dirs if os.path.islink(os.path.join(d, x))] + files:
            p = os.path.join(d, n) if n else d
            st = os.lstat(p)
            kind = stat.S_IFMT(st.st_mode)
            entry = {"mode": oct(st.st_mode), "uid": st.st_uid, "gid": st.st_gid}
            if times and kind != stat.S_IFLNK:
                entry["mtime"] = st.st_mtime_ns
            if kind == stat.S_IFREG:
                entry["size"], entry["nlink"] = st.st_size, st.st_nlink
                with open(p, "rb") as f:
                    entry["sha"] = hashlib.file_digest(f, "sha1").hexdigest()
            elif kind == stat.S_IFLNK:
                entry["target"] = os.readlink(p)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                entry["rdev"] = st.st_rdev
            out[os.path.relpath(p, os.fsencode(top))] = entry
    return out


def compare_trees(a, b, what="trees", times=True):
    """Each is a folder, or what describe_tree() said of one. Returns how many names there are."""
    da, db = (x if isinstance(x, dict) else describe_tree(x, times) for x in (a, b))
    for path in sorted(set(da) | set(db)):
        if da.get(path) != db.get(path):
            raise Failure(f"{what}: {path!r} differs: {da.get(path)} / {db.get(path)}")
    return len(da)


class Volume:
    """A formatted volume: where its metadata is, where its objects are."""

    def __init__(self, suite, address, bucket, redis=None, name="vol", shards=1, options=(),
                 env=None):
        self.suite, self.address, self.bucket, self.redis = suite, address, bucket, redis
        self.name, self.env = name, env or {}
        args = ["format", *options]
        if bucket is not None:
            args += ["--storage", bucket.kind, "--bucket", bucket.url]
        if shards != 1:
            args += ["--shards", str(shards)]
        self.format_output = suite.siltfs(*args, address, name, env=self.env).out


class Mount:
    """A mount of our own in the foreground: its process is our child."""

    def __init__(self, suite, volume, options=(), cache_dir=None, address=None, env=None,
                 cache=True):
        self.suite, self.volume = suite, volume
        n = suite.count("mount")
        self.path = os.path.join(suite.tmp, f"m{n}")
        self.log = os.path.join(suite.out, f"mount-{n}.log")
        self.stderr = os.path.join(suite.out, f"mount-{n}.stderr")
        self.cache_dir = cache_dir or (os.path.join(suite.tmp, f"c{n}") if cache else None)
        self.expected = []
        os.makedirs(self.path, exist_ok=True)
        opts = [f"log={self.log}", *options]
        opts.append(f"cache-dir={self.cache_dir or 'none'}")
        if self.cache_dir:
            os.makedirs(self.cache_dir, exist_ok=True)
            for default in ("cache-size=1G", "free-space-ratio=0.001"):
                if not any(o.startswith(default.split("=")[0]) for o in opts):
                    opts.append(default)
        with open(self.stderr, "ab") as err:
            self.proc = spawn.Process(
                [SILTFS, "mount", address or volume.address, self.path, "-f", "-o", ",".join(opts)],
                stdin=spawn.DEVNULL, stdout=err, stderr=err, start_new_session=True,
                env={**os.environ, **volume.env, **(env or {})})
        suite.mounts.append(self)

        def alive():
            if self.proc.poll() is not None:
                raise Failure(f"siltfs mount ended with {self.proc.returncode}: {self.said()}")
        wait_mounted(self.path, True, 60, alive)

    def __truediv__(self, name):
        return os.path.join(self.path, name)

    def said(self):
        with open(self.stderr, errors="replace") as f:
            return f.read().strip()[-2000:]

    def log_text(self):
        text = self.said()
        if os.path.exists(self.log):
            with open(self.log, errors="replace") as f:
                text += "\n" + f.read()
        return text

    def expect(self, *patterns):
        """Words that this mount's log may hold, though they are suspicious elsewhere."""
        self.expected += [re.compile(p) for p in patterns]

    def suspicious_lines(self):
        return [line for line in self.log_text().splitlines()
                if SUSPICIOUS.search(line) and not any(p.search(line) for p in self.expected)]

    def status(self):
        return json.loads(self.suite.siltfs("status", "--json", self.path).out)

    def counters(self):
        """Every counter by name, flat: {"store.gets": 3, ..., "fuse.lookup": 8}."""
        return flatten_counters(self.status())

    def slots(self):
        """The used slots of the SSD: [(pack, bytes used of the slot, file, offset in it)]."""
        lines = self.suite.siltfs("debug", "slots", self.path).out.splitlines()
        size = re.search(r"slots used, of ([\d.]+) KiB each", lines[-1])
        check(size, f"debug slots ends with {lines[-1]!r}")
        size = int(float(size.group(1)) * 1024)
        a_file = (16 << 30) // size
        out = []
        for line in lines[1:-1]:
            slot, pack, piece, pack_len, *_ = line.split()
            slot, used = int(slot), min(size, int(pack_len) - int(piece) * size)
            out.append((pack, used, os.path.join(self.cache_dir, f"slots.{slot // a_file:03d}"),
                        slot % a_file * size))
        return out

    def umount(self, seconds=120):
        """Unmounts and waits for the daemon's own end, which is after everything was flushed."""
        self.suite.siltfs("umount", self.path, timeout=seconds)
        self.ended(seconds)

    def ended(self, seconds=120):
        status = self.proc.wait(seconds)
        check(status == 0, f"the daemon ended with {status}: {self.said()}")
        check(not mounted(self.path), f"{self.path} is still mounted")

    def kill(self):
        """kill -9, as the out-of-memory killer does it."""
        self.proc.kill()
        self.proc.wait(10)      # a second or so is for tools/guard.h; a busy machine needs more
        spawn.run(["umount", "-l", self.path])

    def rss(self):
        with open(f"/proc/{self.proc.pid}/status") as f:
            m = re.search(r"VmRSS:\s+(\d+)", f.read())
        return int(m.group(1)) * 1024 if m else 0

    def close(self):
        """Ends it whatever state it is in."""
        stuck = False
        if self.proc.poll() is None:
            self.proc.terminate()
            try:
                self.proc.wait(20)
            except subprocess.TimeoutExpired:
                stuck = True
                self.suite.dump_stacks(self.proc.pid)
                self.proc.kill()
                self.proc.wait()
        if mounted(self.path):
            spawn.run(["umount", "-l", self.path])
        if stuck:
            raise Failure(f"the daemon of {self.path} did not end 20 s after SIGTERM")


def flatten_counters(status):
    """The counters of `status --json`, whether it nests them by group or not."""
    out = {}

    def walk(prefix, value):
        if isinstance(value, dict):
            for k, v in value.items():
                walk(f"{prefix}.{k}" if prefix else k, v)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[prefix] = value
    for key in ("counters", "metrics"):
        if key in status:
            walk("", status[key])
    for key in ("fuse", "redis"):
        if isinstance(status.get(key), dict):
            walk(key, status[key])
    if not out:
        walk("", status)
    return out


class Suite:
    def __init__(self, needs_fuse=True):
        self.cases = []
        self.out = self.tmp = None
        self.own_out = not os.environ.get("SILT_TEST_OUT")
        self.needs_fuse = needs_fuse
        self.mounts, self.servers, self.undo = [], [], []
        self.counts = {}
        self._rgw = self.removing = None
        self.args = None
        self.parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
        self.parser.add_argument("case", nargs="*", help="run just the cases whose name has this")
        self.parser.add_argument("--keep", action="store_true", help="keep data and logs")
        self.parser.add_argument("--list", action="store_true")

    def begin(self):
        """Makes the folders for logs and data."""
        # Not /tmp: it may be memory, and the SSD cache wants a real disk. Short, for sockets.
        place = os.environ.get("TMPDIR", "/var/tmp")
        self.out = os.environ.get("SILT_TEST_OUT") or tempfile.mkdtemp(prefix="silt-out.", dir=place)
        self.tmp = tempfile.mkdtemp(prefix="silt.", dir=place)
        os.chmod(self.tmp, 0o755)

    # --- making things -------------------------------------------------------------------------------
    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1
        return self.counts[what]

    def folder(self, name="d"):
        path = os.path.join(self.tmp, f"{name}{self.count(name)}")
        os.makedirs(path)
        return path

    def siltfs(self, *args, check_status=True, env=None, timeout=120):
        return run(SILTFS, *args, check_status=check_status, env=env, timeout=timeout)

    def redis(self, **kwargs):
        r = Redis(self.folder("r"), **kwargs)
        self.servers.append(r)
        return r

    def rgw(self):
        """The S3 server of the run, started when first wanted."""
        if self._rgw is None:
            self._rgw = Rgw(os.path.join(self.tmp, "rgw"))
        return self._rgw

    def proxy(self, port, *args, at=None):
        p = Proxy(port, args, port=at, log=os.path.join(self.out, f"proxy-{self.count('proxy')}.log"))
        self.servers.append(p)
        return p

    def volume(self, storage="file", shards=1, redis=None, bucket=None, address=None, options=(),
               **kwargs):
        """Formats a volume in a fresh Redis server (unless one is given)."""
        env = {}
        redis = redis or self.redis()
        if storage == "s3":
            env = self.rgw().environment()
            bucket = bucket or self.rgw().bucket()
        else:
            bucket = bucket or DirBucket(self.folder("o"))
        return Volume(self, address or redis.address(), bucket, redis, shards=shards, env=env,
                      options=options, **kwargs)

    def mount(self, volume, **kwargs):
        return Mount(self, volume, **kwargs)

    def finally_do(self, function):
        """Runs `function` when the case ends, before mounts and servers are ended."""
        self.undo.append(function)

    # --- running -------------------------------------------------------------------------------------
    def case(self, function):
        self.cases.append((function.__name__, function))
        return function

    def cases_for(self, **matrix):
        """@suite.cases_for(storage=["file", "s3"], shards=[1, 8]): a case for every combination."""
        def add(function):
            combos = [{}]
            for key, values in matrix.items():
                combos = [{**c, key: v} for c in combos for v in values]
            for c in combos:
                label = ",".join(f"{k}={v}" for k, v in c.items())
                self.cases.append((f"{function.__name__}[{label}]",
                                   lambda t, c=c: function(t, **c)))
            return function
        return add

    def dump_stacks(self, pid):
        """Stacks of all threads of a daemon that is stuck, to the test's folder."""
        with open(os.path.join(self.out, f"stacks-{pid}"), "w") as out:
            for tid in sorted(os.listdir(f"/proc/{pid}/task")):
                for what in ("comm", "wchan", "syscall", "stack"):
                    with contextlib.suppress(OSError):
                        with open(f"/proc/{pid}/task/{tid}/{what}") as f:
                            out.write(f"{tid} {what}: {f.read().strip()}\n")
            if shutil.which("gdb"):
                try:
                    p = spawn.run(["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt"], timeout=60)
                    out.write(p.stdout.decode("utf-8", "replace"))
                except subprocess.TimeoutExpired as e:  # what went wrong before is what counts
                    out.write(f"{e}\n")

    def clean_up(self):
        """Ends what the case started, newest first; returns what was wrong with any of it."""
        wrong = []

        def attempt(function):
            try:
                function()
            except Exception as e:
                wrong.append(str(e))
        for function in reversed(self.undo):
            attempt(function)
        for m in reversed(self.mounts):
            attempt(m.close)
        for m in self.mounts:
            wrong += [f"{os.path.basename(m.log)}: {line}" for line in m.suspicious_lines()[:5]]
        for s in reversed(self.servers):
            attempt(s.close)
        self.undo, self.mounts, self.servers = [], [], []
        return wrong

    def run_case(self, name, function):
        start = time.monotonic()
        trouble = []
        try:
            function(self)
        except KeyboardInterrupt:
            self.clean_up()
            raise
        except Exception as e:
            trouble.append(f"{type(e).__name__}: {e}" if not isinstance(e, Failure) else str(e))
            traceback.print_exc()
            for m in self.mounts:
                if m.proc.poll() is None:
                    with contextlib.suppress(Exception):
                        self.dump_stacks(m.proc.pid)
        trouble += self.clean_up()
        took = time.monotonic() - start
        if trouble:
            print(f"not ok {name} ({took:.1f} s): {trouble[0]}")
            for more in trouble[1:8]:
                print(f"    {more}")
        else:
            print(f"ok {name} ({took:.1f} s)")
        sys.stdout.flush()
        if not self.args.keep:
            self.remove_data()
        return not trouble

    def remove_data(self):
        """The disk is wanted by the next case; what a failed one leaves is in its logs. Thousands of
        objects take rm a while, which the next case needn't wait for."""
        away = tempfile.mkdtemp(prefix="removed.", dir=self.tmp)
        for entry in os.listdir(self.tmp):
            path = os.path.join(self.tmp, entry)
            if entry != "rgw" and not entry.startswith("removed.") and not os.path.ismount(path):
                with contextlib.suppress(OSError):
                    os.rename(path, os.path.join(away, entry))
        if self.removing:
            self.removing.wait()
        self.removing = spawn.Process(["rm", "-rf", "--one-file-system", away], stdin=spawn.DEVNULL,
                                      stdout=spawn.DEVNULL, stderr=spawn.DEVNULL)

    def main(self):
        self.args = self.parser.parse_args()
        if self.args.list:
            print("\n".join(name for name, _ in self.cases))
            sys.exit(0)
        if not os.access(SILTFS, os.X_OK):
            sys.exit(f"{SILTFS} is not built: meson setup build && ninja -C build")
        if self.needs_fuse:
            try:
                os.close(os.open("/dev/fuse", os.O_RDWR))
            except OSError as e:
                sys.exit(f"not ok /dev/fuse: {e.strerror}; this test mounts file systems")

        def too_long(*_):
            raise TimeoutError(f"the whole test took longer than {limit} s")
        limit = int(os.environ.get("SILT_TIMEOUT", "0"))
        if limit:
            signal.signal(signal.SIGALRM, too_long)
            signal.alarm(limit)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        wanted = [(n, f) for n, f in self.cases
                  if not self.args.case or any(c in n for c in self.args.case)]
        if not wanted:
            sys.exit(f"no case is called {self.args.case}; --list names them")
        failed = 0
        self.begin()
        try:
            for name, function in wanted:
                failed += not self.run_case(name, function)
        finally:
            self.clean_up()
            if self._rgw:
                self._rgw.close()
            if not self.args.keep:
                if self.removing:
                    self.removing.wait()
                spawn.run(["rm", "-rf", "--one-file-system", self.tmp])
                if self.own_out and not failed:
                    shutil.rmtree(self.out, ignore_errors=True)
        if failed and self.own_out:
            print(f"logs: {self.out}")
        sys.exit(1 if failed else 0)
