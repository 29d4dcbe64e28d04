#!/usr/bin/env python3
"""What close(), fsync(), rename(), unlink() and the like have acknowledged survives kill -9 of the daemon, at any
moment: threads change files and note what they were answered, the daemon is killed, mounted again on the same
cache directory, and every file looked at, over and over on one volume, while objects are compacted and deleted.

    test_crash.py --points N --seed S     so many kills (default about 60, a long run 2000)"""
# timeout: 500
# asan: yes

import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import Failure, check, equal, shorten  # noqa: E402

suite = silt.Suite()
suite.parser.add_argument("--points", type=int, default=0, help="kills, in all cases together")
suite.parser.add_argument("--seed", type=int, help="of what is done; when the kills come is by chance")
OPTIONS = ["delete-grace=1", "compact-wait=1", "compact-rate=1G", "group-window=2000"]
NAMES = [f"f{i}" for i in range(14)]
SIZES = [0, 1, 100, 4000, 4096, 70_000, 300_000]


class Writer:
    """Changes files of a folder, one call after the other, and knows what was acknowledged: `files` by name.
    What was under way when the daemon died is `pending`: the names that may or may not have been changed."""

    def __init__(self, name, seed):
        self.name, self.rng = name, random.Random(seed)
        self.files, self.pending, self.error, self.acknowledged = {}, [], None, 0

    def run(self, top):
        self.folder, self.error = os.path.join(top, self.name), None
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def loop(self):
        try:
            while True:
                self.step()
        except OSError:
            pass                # the daemon is gone
        except Exception as e:
            self.error = e

    def path(self, name):
        return os.path.join(self.folder, name)

    def step(self):
        rng = self.rng
        name, what = rng.choice(NAMES), rng.random()
        if what < 0.35:
            self.do([name], self.rewrite, name, rng.randbytes(rng.choice(SIZES)))
        elif what < 0.5 and name in self.files:
            self.do([name], self.overwrite, name, rng.randrange(len(self.files[name]) + 5000),
                    rng.randbytes(rng.choice([10, 4096, 9000])))
        elif what < 0.6 and name in self.files:
            self.do([name], self.append, name, rng.randbytes(rng.choice([10, 3000])))
        elif what < 0.68 and name in self.files:
            self.do([name], self.truncate, name, rng.randrange(len(self.files[name]) + 2000))
        elif what < 0.8 and name in self.files:
            to = rng.choice(NAMES)
            self.do([name, to], self.rename, name, to)
        elif what < 0.87 and name in self.files:
            to = rng.choice(NAMES)
            if to != name:
                self.do([to], self.copy, name, to)
        elif name in self.files:
            self.do([name], self.unlink, name)

    def do(self, names, function, *args):
        self.pending = names
        function(*args)
        self.pending = []
        self.acknowledged += 1

    def rewrite(self, name, data):
        """As editors do it: a new file takes the name of the old one; or in place."""
        if self.rng.random() < 0.5:
            fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            self.end(fd, data, 0)
        else:
            self.pending = [name, "new"]
            fd = os.open(self.path("new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            self.end(fd, data, 0)
            os.rename(self.path("new"), self.path(name))
        self.files[name] = data

    def end(self, fd, data, off):
        """Closes it, or makes it durable first and never hears of the close."""
        try:
            at = 0
            while at < len(data):
                at += os.pwrite(fd, data[at:at + 50_000], off + at)
            if self.rng.random() < 0.3:
                os.fsync(fd)
        except OSError:
            try:
                os.close(fd)
            except OSError:
                pass
            raise
        os.close(fd)

    def overwrite(self, name, off, data):
        self.end(os.open(self.path(name), os.O_WRONLY), data, off)
        old = self.files[name].ljust(off, b"\0")
        self.files[name] = old[:off] + data + old[off + len(data):]

    def append(self, name, data):
        fd = os.open(self.path(name), os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            try:
                os.close(fd)
            except OSError:
                pass
        self.files[name] += data

    def truncate(self, name, size):
        os.truncate(self.path(name), size)
        self.files[name] = self.files[name][:size].ljust(size, b"\0")

    def rename(self, name, to):
        os.rename(self.path(name), self.path(to))
        if to != name:
            self.files[to] = self.files.pop(name)

    def copy(self, name, to):
        with open(self.path(name), "rb") as a, open(self.path(to), "wb") as b:
            left = len(self.files[name])
            while left:
                left -= os.copy_file_range(a.fileno(), b.fileno(), left)
        self.files[to] = self.files[name]

    def unlink(self, name):
        os.unlink(self.path(name))
        del self.files[name]

    def verify(self, top):
        """After the next mount; takes over what became of what was under way."""
        folder = os.path.join(top, self.name)
        there = set(os.listdir(folder))
        for name in set(self.pending):
            self.files.pop(name, None)
            if name in there:
                with open(os.path.join(folder, name), "rb") as f:
                    data = f.read()     # never an error
                if name == "new":
                    os.unlink(os.path.join(folder, name))
                else:
                    self.files[name] = data
            there.discard(name)
        equal(sorted(there), sorted(n for n in self.files if n not in self.pending), f"{self.name}: names")
        for name, data in self.files.items():
            with open(os.path.join(folder, name), "rb") as f:
                got = f.read()
            if got != data:
                at = next((i for i, (a, b) in enumerate(zip(got, data)) if a != b), min(len(got), len(data)))
                raise Failure(f"{self.name}/{name}: {len(got)} bytes, acknowledged were {len(data)}; the first that "
                              f"differs is at {at}: {shorten(got[at:at + 16])} for {shorten(data[at:at + 16])}")
        self.pending = []


@suite.cases_for(shards=[1, 4])
def acknowledged_survives_kill_9(t, shards):
    points = t.args.points // 2 or (10 if silt.QUICK else 12 if silt.SANITIZED else 30)
    seed = t.args.seed if t.args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"# seed {seed}, {points} kills", flush=True)
    rng = random.Random()
    v = t.volume(shards=shards)
    writers = [Writer(f"w{i}", seed + i) for i in range(4)]
    cache = t.folder()
    m = t.mount(v, options=OPTIONS, cache_dir=cache)
    for w in writers:
        os.mkdir(m / w.name)
    for point in range(points):
        for w in writers:
            w.run(m.path)
        time.sleep(rng.choice([0.05, 0.3, 1, 2]) * rng.random())
        m.kill()
        for w in writers:
            w.thread.join(30)
            check(not w.thread.is_alive(), f"{w.name} hangs after the daemon died")
            check(w.error is None, f"{w.error!r}")
        m = t.mount(v, options=OPTIONS, cache_dir=cache)
        for w in writers:
            try:
                w.verify(m.path)
            except (Failure, OSError) as e:
                raise Failure(f"seed {seed}, after kill {point + 1}: {e}")
        if point % 10 == 9 or point + 1 == points:
            r = t.siltfs("fsck", "--data", v.address, env=v.env, check_status=False)
            equal(r.returncode, 0, f"fsck after kill {point + 1}: {r.out} {r.err}")
    print(f"# {sum(w.acknowledged for w in writers)} calls were acknowledged")


suite.main()
