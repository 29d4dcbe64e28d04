#!/usr/bin/env python3
"""Random operations on several files beside a model of them in memory, with remounts between. Every
run prints its seed; `--seed N` runs it again."""
# timeout: 600
# asan: yes

import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import Failure, equal  # noqa: E402

suite = silt.Suite()
suite.parser.add_argument("--seed", type=int, help="replay this seed")
suite.parser.add_argument("--steps", type=int, default=600 if silt.QUICK or silt.SANITIZED else 2500)

MAX_SIZE = 12 << 20


class Model:
    """What the files must hold: name -> bytearray; descriptors -> the name's bytearray."""

    def __init__(self):
        self.files, self.open = {}, {}


class Player:
    def __init__(self, t, volume, rng, options):
        self.t, self.volume, self.rng, self.options = t, volume, rng, options
        self.mount = t.mount(volume, options=options)
        self.model = Model()
        self.log = []

    def path(self, name):
        return self.mount / name

    def say(self, text):
        self.log.append(text)

    def pick_size(self):
        r = self.rng.random()
        if r < 0.5:
            return self.rng.randrange(1, 5000)
        if r < 0.85:
            return self.rng.randrange(1, 300_000)
        return self.rng.randrange(1, 4 << 20)

    def pick_offset(self, content):
        r = self.rng.random()
        if r < 0.3 or not content:
            return 0
        if r < 0.5:
            return len(content)
        if r < 0.9:
            return self.rng.randrange(len(content) + 1)
        return self.rng.randrange(min(MAX_SIZE - 1, len(content) + (2 << 20)))

    def data(self, n):
        # Some compress, some don't.
        return self.rng.randbytes(n) if self.rng.random() < 0.6 else \
            (b"%d " % self.rng.randrange(10**9)) * (n // 8 + 1)

    def descriptor(self):
        return self.rng.choice(list(self.model.open)) if self.model.open else None

    # Each operation does the same to the mount and to the model.
    def op_open(self):
        if len(self.model.open) > 12:
            return self.op_close()
        name = f"f{self.rng.randrange(8)}"
        flags = os.O_RDWR | os.O_CREAT
        if self.rng.random() < 0.15:
            flags |= os.O_TRUNC
        fd = os.open(self.path(name), flags)
        content = self.model.files.setdefault(name, bytearray())
        if flags & os.O_TRUNC:
            del content[:]
        self.model.open[fd] = content
        self.say(f"open {name} {'trunc ' if flags & os.O_TRUNC else ''}-> {fd}")

    def op_close(self):
        fd = self.descriptor()
        if fd is not None:
            self.say(f"close {fd}")
            os.close(fd)
            del self.model.open[fd]

    def op_write(self):
        fd = self.descriptor()
        if fd is None:
            return self.op_open()
        content = self.model.open[fd]
        off = self.pick_offset(content)
        n = min(self.pick_size(), MAX_SIZE - off)
        data = self.data(n)[:n]
        self.say(f"write {fd} [{off}, {off + n})")
        done = 0
        while done < n:
            done += os.pwrite(fd, data[done:], off + done)
        if off > len(content):
            content.extend(bytes(off - len(content)))
        content[off:off + n] = data

    def op_read(self):
        fd = self.descriptor()
        if fd is None:
            return self.op_open()
        content = self.model.open[fd]
        off = self.pick_offset(content)
        n = self.pick_size()
        self.say(f"read {fd} [{off}, {off + n})")
        self.same(os.pread(fd, n, off), bytes(content[off:off + n]), off, f"descriptor {fd}")

    def op_truncate(self):
        fd = self.descriptor()
        if fd is None:
            return self.op_open()
        content = self.model.open[fd]
        n = self.rng.randrange(min(MAX_SIZE, len(content) + 500_000) + 1)
        self.say(f"truncate {fd} {n}")
        os.ftruncate(fd, n)
        if n < len(content):
            del content[n:]
        else:
            content.extend(bytes(n - len(content)))

    def op_fsync(self):
        fd = self.descriptor()
        if fd is not None:
            self.say(f"fsync {fd}")
            os.fsync(fd)

    def op_stat(self):
        for name, content in self.model.files.items():
            equal(os.stat(self.path(name)).st_size, len(content), f"size of {name}")

    def op_unlink(self):
        if self.model.files:
            name = self.rng.choice(sorted(self.model.files))
            self.say(f"unlink {name}")
            os.unlink(self.path(name))
            del self.model.files[name]

    def op_rename(self):
        if self.model.files:
            a, b = self.rng.choice(sorted(self.model.files)), f"f{self.rng.randrange(8)}"
            self.say(f"rename {a} {b}")
            os.rename(self.path(a), self.path(b))
            if a != b:
                self.model.files[b] = self.model.files.pop(a)

    def op_check_all(self):
        self.say("check all")
        equal(sorted(os.listdir(self.mount.path)), sorted(self.model.files), "names")
        for name, content in self.model.files.items():
            with open(self.path(name), "rb") as f:
                self.same(f.read(), bytes(content), 0, name)

    def op_remount(self):
        for fd in list(self.model.open):
            os.close(fd)
        self.model.open.clear()
        self.say("remount")
        keep = self.rng.random() < 0.5
        old = self.mount
        old.umount()
        self.mount = self.t.mount(self.volume, options=self.options,
                                  cache_dir=old.cache_dir if keep else None)
        self.op_check_all()

    def same(self, got, want, off, what):
        if got == want:
            return
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b),
                  min(len(got), len(want)))
        raise Failure(f"{what}: {len(got)} bytes read, {len(want)} wanted, first difference at file "
                      f"offset {off + at}: {got[at:at + 16]!r} for {want[at:at + 16]!r}")

    def play(self, steps):
        ops = ([self.op_open] * 4 + [self.op_close] * 4 + [self.op_write] * 12 + [self.op_read] * 12
               + [self.op_truncate] * 3 + [self.op_fsync] * 2 + [self.op_stat] + [self.op_unlink]
               + [self.op_rename])
        for step in range(steps):
            if step and step % (steps // 5) == 0:
                self.op_remount()
            self.rng.choice(ops)()
        self.op_remount()
        self.mount.umount()


def play(t, volume, options=()):
    seed = t.args.seed if t.args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"# seed {seed}", flush=True)
    p = Player(t, volume, random.Random(seed), options)
    try:
        p.play(t.args.steps)
    except BaseException:
        print(f"# again: test/integration/test_random_io.py --seed {seed}; the last steps were:")
        print("\n".join("#   " + line for line in p.log[-25:]), flush=True)
        for fd in list(p.model.open):
            os.close(fd)
        raise


@suite.cases_for(storage=["file", "s3"], shards=[1, 8])
def random_operations(t, storage, shards):
    play(t, t.volume(storage, shards))


@suite.case
def random_operations_with_a_small_cache_and_buffer(t):
    """Eviction and write-out happen all the time."""
    play(t, t.volume(), options=["cache-size=64M", "buffer-size=16M"])


suite.main()
