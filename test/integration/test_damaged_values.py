#!/usr/bin/env python3
"""Every server-side function meets values of every kind that are damaged at random: it answers with an
errno or says what is damaged; a script error is never the outcome, and none keeps Redis busy.

The calls are real ones: what a mount sends for a mixed load is recorded (MONITOR) and sent again, each
time to a copy of the volume in which some values were damaged first."""
# timeout: 400

import codecs
import fcntl
import mmap
import os
import random
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload  # noqa: E402
from servers import RedisError  # noqa: E402

suite = silt.Suite()
ROUNDS = 15 if silt.QUICK else 60
ACL = b"\2\0\0\0" + b"".join(tag.to_bytes(2, "little") + b"\7\0" + who.to_bytes(4, "little")
                             for tag, who in ((1, 0xffffffff), (2, 1000), (4, 0xffffffff), (16, 0xffffffff),
                                              (32, 0xffffffff)))


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def before(m):
    """What is there when the recording begins, of every kind of value."""
    for d in ("d", "d/sub", "e", "gone", "acl"):
        os.mkdir(m / d)
    os.setxattr(m / "acl", "system.posix_acl_default", ACL)
    for i in range(300):
        write(m / f"d/f{i}", payload(i, 100))
    for d in ("d", "e", "acl"):
        os.symlink("short", m / f"{d}/short")
        os.symlink("x" * 900, m / f"{d}/long")
        write(m / f"{d}/x", b"with attributes")
        os.setxattr(m / f"{d}/x", "user.one", b"1")
        os.setxattr(m / f"{d}/x", "system.posix_acl_access", ACL)
        with open(m / f"{d}/big", "wb") as f:
            for at in (0, 5000, 70 << 20, 200 << 20):
                f.seek(at)
                f.write(payload(at, 3000))
                f.flush()
                os.fsync(f.fileno())


def locks(m, other, snapshot):
    """Locks of both kinds, of two mounts; with some held and some waiting, calls `snapshot`."""
    def take(mount, call):
        pid = os.fork()
        if pid == 0:
            try:
                os.closerange(3, 256)  # a flock lives as long as anybody has the descriptor
                with open(mount / "d/f1", "r+b") as mine:
                    call(mine)
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    with open(m / "d/f1", "r+b") as f, open(m / "d/f2", "r+b") as g:
        for start in range(0, 100, 10):
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, start)
        fcntl.lockf(f, fcntl.LOCK_UN, 3, 20)
        fcntl.flock(g, fcntl.LOCK_SH)
        fcntl.flock(g, fcntl.LOCK_EX)
        fcntl.flock(f, fcntl.LOCK_EX)
        children = [take(mount, lambda f, call=call: call(f, fcntl.LOCK_EX))
                    for mount in (m, other) for call in (fcntl.lockf, fcntl.flock)]
        c = snapshot.connect()
        silt.wait_until(lambda: sum(c.cmd("ZCARD", k) for k in c.cmd("KEYS", "*}w[PF]*")) == 4, "four waiters")
        state = Volume(c)
    for pid in children:
        equal(os.waitpid(pid, 0)[1], 0, "a process that waited for a lock")
    return state


def load(m, tops):
    """Operations of every kind, some of which find errors."""
    def attempt(call, *args, **kw):
        try:
            return call(*args, **kw)
        except OSError:
            return None
    for top in tops:
        p = lambda name: m / f"{top}/{name}"  # noqa: E731
        write(p("new"), b"new")
        os.mkdir(p("newdir"))
        os.symlink("t" * 500, p("newlink"))
        os.mkfifo(p("fifo"))
        for name in ("x", "long", "short", "nothing", "big", "."):
            attempt(os.stat, p(name))
            attempt(os.readlink, p(name))
            attempt(os.listxattr, p(name))
            attempt(os.getxattr, p(name), "user.one")
            attempt(os.getxattr, p(name), "system.posix_acl_access")
        os.listdir(m / top)
        list(os.scandir(m / top))
        os.link(p("x"), p("y"))
        attempt(os.link, p("x"), p("y"))
        os.chmod(p("x"), 0o750)
        os.chown(p("x"), 5, 6)
        os.setxattr(p("x"), "user.two", b"2")
        os.removexattr(p("x"), "user.one")
        os.setxattr(p("newdir"), "system.posix_acl_default", ACL)
        os.mkdir(p("newdir/in"))
        os.rename(p("new"), p("x2"))
        os.rename(p("x2"), p("y"))
        os.rename(p("newdir"), p("moved"))
        attempt(os.rmdir, p("moved"))
        os.rmdir(p("moved/in"))
        os.rmdir(p("moved"))
        with open(p("big"), "r+b") as f:
            f.write(b"in place")
            os.fsync(f.fileno())
            os.posix_fallocate(f.fileno(), 0, 300 << 20)
            attempt(os.lseek, f.fileno(), 100 << 20, os.SEEK_DATA)
            attempt(os.lseek, f.fileno(), 0, os.SEEK_HOLE)
            with open(p("copy"), "wb") as g:
                attempt(os.copy_file_range, f.fileno(), g.fileno(), 100000)
            f.truncate(60 << 20)
            f.truncate(100)
        with open(p("big"), "ab") as f:
            f.write(b"appended")
        with open(p("big"), "rb") as f:
            f.read(1000)
        os.truncate(p("big"), 0)
        held = os.open(p("y"), os.O_RDWR)
        for name in ("y", "x", "newlink", "long", "fifo", "copy"):
            attempt(os.unlink, p(name))
        os.close(held)
        fd = os.open(m / top, os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"unnamed")
        os.close(fd)
    for i in range(0, 300, 3):
        os.unlink(m / f"d/f{i}")
    for a, b in zip(tops, tops[1:]):
        os.rename(m / f"{a}/short", m / f"{b}/from-{a}")
        attempt(os.link, m / f"{a}/big", m / f"{b}/linked")
        os.mkdir(m / f"{a}/dir-{a}")
        os.rename(m / f"{a}/dir-{a}", m / f"{b}/dir-{a}")
    os.rmdir(m / "gone")
    os.statvfs(m.path)
    with open(m / "d/big", "w+b") as f:
        f.truncate(4096)
        with mmap.mmap(f.fileno(), 4096) as mm:
            mm[:3] = b"abc"


class Recorder:
    """The function calls that a server gets, by MONITOR."""

    def __init__(self, server):
        self.client = server.connect()
        self.client.cmd("MONITOR")
        self.server = server

    def calls(self):
        self.server.cmd("ECHO", "the end")
        out = []
        while True:
            line = self.client.file.readline()
            args = [codecs.escape_decode(a)[0] for a in re.findall(rb'"((?:[^"\\]|\\.)*)"', line)]
            if args[:1] and args[0].upper() == b"ECHO":
                self.client.close()
                return out
            if args and args[0].upper() in (b"FCALL", b"FCALL_RO"):
                out.append(args)


def of_locks(calls):
    """What may be asked about each lock that is set in `calls`."""
    out = []
    for _, name, one, key, q, waiter, owner, what, span, *_ in (a for a in calls if a[1] == b"silt1_lock_set"):
        out += [[b"FCALL_RO", b"silt1_lock_get", one, key, q, owner[:1] + b"9.9", what, span],
                [b"FCALL_RO", b"silt1_lock_blockers", one, key, q, waiter],
                [b"FCALL", b"silt1_lock_wake", one, key, q, owner[:1], b"0"],
                [b"FCALL", b"silt1_lock_cancel", one, key, q, waiter, owner, what, span, b"0"],
                [b"FCALL", b"silt1_lock_place", one, b"{0}", owner, b"0 2 " + waiter, owner, b"0"],
                [b"FCALL", b"silt1_lock_unplace", one, b"{0}", owner, b"0 2 " + waiter, b"0"]]
    return out


def by_hand():
    """Of functions that the load does not call: what their comments say they take."""
    T, time9 = b"{0}", b"\0" * 9
    given = {
        "session_claim": [b"1", b"1000"], "session_sweep": [b"1", b"", b"0"], "session_list": [],
        "session_back": [b"1", b"0"], "session_close": [b"7", b""], "garbage_peek": [],
        "take": [b"1", b"", b""], "window": [b"2", b"0"],
        "next_window": [b"2", b"0", b"9"], "format_note": [b"ab"], "statfs": [], "windows": [b"2", b"0"],
        "format": [b"0", b"0", b"16877", time9, b"{}"], "heartbeat": [b"1", b"1000"],
        "garbage_done": [b"Xff", b"0", b"0"], "x_forget": [b"1.1"], "x_clear": [b"1.1", b"1"],
        "touch": [b"2", time9, b"1"], "release": [b"2", b"1"], "x_lock": [b"1.91"], "x_unlock": [b"1.91"],
        "set_flags": [b"2", b"0", time9], "readlink": [b"2"],
        "x_make_dir": [b"1.99", b"i", b"900", b"16877", b"0", b"0", b"0", b"1", time9, b""],
        "x_link": [b"1.98", b"i", b"2", time9, b"1"], "x_end": [b"1.98", b"2", b"0", time9],
        "x_add_entry": [b"1.97", b"1", b"added", b"8", b"0", b"5", time9, b"100", b"1"],
        "x_drop": [b"1.96", b"2", b"", time9], "x_mark": [b"1.95", b"i", b"1", b"d"],
        "x_rmdir": [b"1.94", b"2"], "x_unmark": [b"1.95", b"1", b"d", b"0", time9, b"100", b"4", b"0", b"2"],
        "x_insert": [b"1.93", b"1", b"e", b"4", b"0", b"2", b"0", b"", b"", time9, b"100", b"1.92", b"1", b""],
        "deleted": [b"0", b"9"], "seen": [b"1", b"9"], "hold": [b"2", b"1"],
        "x_aim": [b"1.90", b"1", b"d", b"4", b"0", b"2"],
        "x_exchange": [b"1.89", b"1", b"d", b"8", b"0", b"2", time9, b"100", b""],
        "x_refuse": [b"1.90", b"-5", b"1", b"d", b"1"], "x_moved": [b"1.88", b"2", b"0", b"1", time9],
        "fold": [b"2:0", b"5", b"0" * 40, b"", b"7", b"1"], "worker": [b"1", b"1000"], "resign": [b"1"],
        "dead_packs": [b"0", b"10"], "count_packs": [b"1", b"7"], "bury": [b"1", b"7"], "exhume": [b"1", b"7"],
        "forget_packs": [b"7"], "limits": [], "inodes": [b"0", b"9"], "live": [b"0", b"9"],
        "noted_packs": [b"0", b"10"], "extents": [b"2", b"0"], "forget_noted": [b"7"],
        "dictionary": [], "dictionary_new": [], "dictionary_use": [b"3"],
        "move": [b"9", b"2", b"", b"", b"7", b"1"], "move_log": [b"9", b"2:0", b"5", b"0" * 40, b"", b"7", b"1"],
        "garbage": [b"0", b"10"], "fix_inode": [b"2", b"", b"1", b""], "drop_inode": [b"2", b""],
        "fix_usage": [b"1", b"2", b"3", b"4"], "fix_live": [b"7", b"1", b"2"], "exclude": [b"x", b"0"],
    }
    reading = {"session_list", "garbage_peek", "deleted", "window", "next_window", "statfs", "windows",
               "readlink", "dead_packs", "count_packs", "noted_packs", "extents", "dictionary", "limits", "inodes", "live", "garbage"}
    return {n: [b"FCALL", b"silt1_" + n.encode(), b"1", T, *a, *([] if n in reading else [b"0"])]
            for n, a in given.items()}


class Volume:
    """A copy of all keys, put back before each round."""

    def __init__(self, c):
        self.c = c
        self.dump = {k: (c.cmd("DUMP", k), c.cmd("TYPE", k)) for k in c.cmd("KEYS", "*")}

    def restore(self):
        self.c.cmd("FLUSHDB")
        for k, (value, _) in self.dump.items():
            self.c.cmd("RESTORE", k, 0, value)


def mutate(rng, value):
    how = rng.randrange(7)
    at = rng.randrange(len(value)) if value else 0
    if how == 0:
        return b""
    if how == 1:
        return value[:at]
    if how == 2:
        return value[:at] + rng.randbytes(1) + value[at + 1:]
    if how == 3:
        return value + rng.randbytes(rng.randrange(1, 12))
    if how == 4:
        return rng.randbytes(rng.randrange(40))
    if how == 5:
        return value[:at] + b"\xff" * rng.randrange(1, 12) + value[at:]
    return bytes([rng.choice((0x4f, 0x80, 0xff, 0x10, 0x1f, 0))])


def kind_of(key):
    """Keys that hold one kind of value: {3}d5:0 -> d."""
    return key.split(b"}", 1)[1][:1] if b"}" in key else key


def damage(rng, c, types, key):
    """Damages some values of one key; returns what was done, for the report."""
    kind = types[key]
    done = []
    if kind == b"hash":
        fields = c.cmd("HKEYS", key)
        for f in rng.sample(fields, min(len(fields), rng.choice((1, 3, len(fields))))):
            bad = mutate(rng, c.cmd("HGET", key, f))
            c.cmd("HSET", key, f, bad)
            done.append((key, f, bad))
        if rng.random() < 0.1:
            c.cmd("HSET", key, rng.randbytes(3), rng.randbytes(9))
    elif kind == b"string":
        bad = mutate(rng, c.cmd("GET", key))
        c.cmd("SET", key, bad)
        done.append((key, bad))
    elif kind == b"list":
        for i in range(c.cmd("LLEN", key)):
            c.cmd("LSET", key, i, mutate(rng, c.cmd("LINDEX", key, i)))
            done.append((key, i))
    elif kind == b"set":
        c.cmd("SADD", key, rng.randbytes(4))
    return done


@suite.cases_for(shards=[1, 8])
def no_script_error_comes_of_damaged_values(t, shards):
    v = t.volume(shards=shards)
    m = t.mount(v)
    before(m)
    m.umount()
    c = v.redis.connect()
    start = Volume(c)
    recorder = Recorder(v.redis)
    m = t.mount(v, options=["attr-timeout=0", "entry-timeout=0", "dir-entry-timeout=0"])
    other = t.mount(v)
    held = locks(m, other, v.redis)
    other.umount()
    load(m, ["d", "e", "acl"])
    m.umount()
    calls = recorder.calls()
    end = Volume(c)
    check(len(calls) > 150, f"calls recorded: {len(calls)}")
    functions = {f[1].decode()[len("silt1_"):]
                 for lib in (dict(zip(lib[::2], lib[1::2])) for lib in c.cmd("FUNCTION", "LIST"))
                 for f in lib[b"functions"]}
    more = by_hand()
    recorded = {a[1].decode()[len("silt1_"):] for a in calls + of_locks(calls)}
    equal(sorted(functions - recorded - set(more)), [], "functions that are not called")
    calls += [a for n, a in more.items() if n in functions] + of_locks(calls)
    rng = random.Random(20 + shards)
    damaged_said = longest = 0
    for i in range(ROUNDS):
        state = rng.choice((start, held, end))
        state.restore()
        types = {k: kind for k, (_, kind) in state.dump.items()}
        kinds = sorted({kind_of(k) for k in types})
        done = []
        for kind in rng.sample(kinds, rng.choice((1, 1, 2, len(kinds)))):
            keys = [k for k in types if kind_of(k) == kind]
            for key in rng.sample(keys, min(len(keys), rng.choice((1, 4)))):
                done += damage(rng, c, types, key)
        order = calls if rng.random() < 0.5 else rng.sample(calls, len(calls))
        for args in order:
            if args[0] == b"FCALL" and rng.random() < 0.3:
                args = [*args[:-1], b"1"]  # as if it were sent again
            began = time.monotonic()
            try:
                c.cmd(*args)
            except RedisError as e:
                said = str(e)
                check("user_function" not in said.split(" script:")[0] and not said.startswith("ERR user") and
                      "user_script" not in said,
                      f"round {i}: {args[1].decode()} {args[2:]!r} says {said!r} after {done[:6]!r}")
                damaged_said += said.startswith("DAMAGED")
            longest = max(longest, time.monotonic() - began)
    check(damaged_said > 20, f"replies that say what is damaged: {damaged_said}")
    check(longest < 5, f"a call took {longest:.1f} s")


suite.main()
