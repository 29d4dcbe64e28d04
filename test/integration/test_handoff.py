#!/usr/bin/env python3
"""Two mounts hand one file to each other: what one has written, cut, punched or changed through a map when
its close() returns, an open() on the other sees, every byte and the size, whatever its caches hold.

    test_handoff.py --handoffs 100000 [--seed N] [--shards S]       a long run by hand"""
# timeout: 600
# asan: yes

import mmap
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from checker import content, fallocate  # noqa: E402
from posix_model import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE  # noqa: E402
from silt import Failure  # noqa: E402

suite = silt.Suite()
suite.parser.add_argument("--handoffs", type=int,
                          default=400 if silt.QUICK or silt.SANITIZED else 1500)
suite.parser.add_argument("--seed", type=int)
suite.parser.add_argument("--shards", type=int, help="only the case with so many")

MAX_SIZE = 300_000


class File:
    """One file as two mounts show it, and its bytes as they have to be."""

    def __init__(self, paths, rng):
        self.paths, self.rng, self.data = paths, rng, bytearray()

    def offset(self, end):
        """Often at a page boundary, where caches are cut."""
        at = self.rng.randrange(end + 1)
        return at // 4096 * 4096 if self.rng.random() < 0.3 else at

    def size(self):
        return self.rng.choice([1, 7, 100, 4096, 5000, self.rng.randrange(1, 60_000)])

    def write(self, fd):
        off = self.offset(min(MAX_SIZE, len(self.data) + 9000))
        self.put(fd, off, content(self.rng.randrange(1 << 30), self.size()))

    def append(self, fd):
        data = content(self.rng.randrange(1 << 30), self.size())
        if len(self.data) + len(data) > MAX_SIZE:
            return self.truncate(fd)
        return self.put(fd, len(self.data), data)

    def put(self, fd, off, data):
        if os.pwrite(fd, data, off) != len(data):
            raise Failure("a short write")
        self.data.extend(bytes(max(0, off - len(self.data))))
        self.data[off:off + len(data)] = data

    def truncate(self, fd):
        size = self.offset(min(MAX_SIZE, len(self.data) + 9000))
        os.ftruncate(fd, size)
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def punch(self, fd):
        off, n = self.offset(len(self.data)), self.size()
        mode = self.rng.choice([PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
        fallocate(fd, mode, off, n)
        if not mode & KEEP_SIZE:
            self.data.extend(bytes(max(0, off + n - len(self.data))))
        end = min(off + n, len(self.data))
        self.data[off:end] = bytes(max(0, end - off))

    def map(self, fd):
        if not self.data:
            return
        off = self.rng.randrange(len(self.data))
        data = content(self.rng.randrange(1 << 30), min(self.size(), len(self.data) - off))
        with mmap.mmap(fd, len(self.data), mmap.MAP_SHARED) as view:
            if view[:] != self.data:
                raise Failure("the map shows something else")
            view[off:off + len(data)] = data
        self.data[off:off + len(data)] = data

    def change(self, path):
        """Some changes through one descriptor; stored when it is closed."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        done = []
        try:
            for _ in range(self.rng.choice([1, 1, 2, 5])):
                kind = self.rng.choice(["write", "write", "append", "truncate", "punch", "map"])
                done.append(kind)
                getattr(self, kind)(fd)
        finally:
            os.close(fd)
        return done

    def differs(self, path):
        """What is wrong with the file as `path` shows it; read or mapped."""
        fd = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            if size and self.rng.random() < 0.2:
                with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as view:
                    got = view[:]
            else:
                got = os.pread(fd, MAX_SIZE * 2, 0)
        finally:
            os.close(fd)
        if size != len(self.data):
            return f"size {size} for {len(self.data)}"
        if got != self.data:
            at = next((i for i, (a, b) in enumerate(zip(got, self.data)) if a != b), len(got))
            return f"{len(got)} of {size} bytes, the first that differs at {at}"
        return None


@suite.cases_for(shards=[1, 8])
def files_handed_over(t, shards):
    """A few files in turn, so that caches hold old states of each."""
    if t.args.shards not in (None, shards):
        return
    seed = t.args.seed if t.args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"# seed {seed}", flush=True)
    rng = random.Random(seed)
    v = t.volume(shards=shards)
    a, b = t.mount(v), t.mount(v)
    os.mkdir(a / "d")
    files = [File((a / f"d/f{i}", b / f"d/f{i}"), rng) for i in range(4)]
    silt.wait_until(lambda: os.path.isdir(b / "d"), "the folder to be seen")
    stale = []
    for i in range(t.args.handoffs):
        f, writer = rng.choice(files), rng.randrange(2)
        if rng.random() < 0.3:      # what the reader's kernel has seen must not come back
            for path in f.paths:
                os.path.exists(path) and os.stat(path)
        done = f.change(f.paths[writer])
        wrong = f.differs(f.paths[1 - writer])
        if wrong:
            stale.append(f"hand-off {i} of {os.path.basename(f.paths[0])} after {done}: {wrong}")
            print(f"# {stale[-1]}", flush=True)
            if len(stale) == 10:
                break
        if i % 10_000 == 9_999:
            print(f"# {i + 1} hand-offs, {len(stale)} stale", flush=True)
    print(f"# {i + 1} hand-offs, {len(stale)} stale reads", flush=True)
    if stale:
        raise Failure(f"{len(stale)} stale reads (--seed {seed} --shards {shards} --handoffs {i + 1}), "
                      f"the first: {stale[0]}")


suite.main()
