#!/usr/bin/env python3
"""Random operations on several files beside a model of them in memory, with remounts between. Every
run prints its seed; `--seed N` runs it again, and with `--shrink` looks for the fewest operations that
still go wrong."""
# timeout: 600
# asan: yes

import os
import random
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import Failure, equal  # noqa: E402

suite = silt.Suite()
suite.parser.add_argument("--seed", type=int, help="replay this seed")
suite.parser.add_argument("--steps", type=int, default=600 if silt.QUICK or silt.SANITIZED else 2500)
suite.parser.add_argument("--shrink", action="store_true",
                          help="after a failure, find a shortest list of operations that fails")

MAX_SIZE = 12 << 20
SLOTS = 12      # descriptors open at a time
NAMES = 8
PATIENCE = 60   # seconds after which an operation counts as hung


def generate(seed, steps):
    """A list of operations, all concrete, so that any part of it can be played too. Offsets and sizes
    follow a rough idea of how long the file is."""
    rng = random.Random(seed)
    guess = [0] * SLOTS
    ops = []

    def size():
        r = rng.random()
        return rng.randrange(1, 5000 if r < 0.5 else 300_000 if r < 0.85 else 4 << 20)

    def offset(now):
        r = rng.random()
        if r < 0.3 or not now:
            return 0
        if r < 0.5:
            return now
        return rng.randrange(now + 1 if r < 0.9 else min(MAX_SIZE - 1, now + (2 << 20)))
    kinds = ["open"] * 4 + ["close"] * 4 + ["write"] * 12 + ["read"] * 12 + ["truncate"] * 3 + \
        ["fsync"] * 2 + ["stat", "unlink", "rename"]
    for step in range(steps):
        if step and step % max(1, steps // 5) == 0:
            ops.append(("remount", rng.random() < 0.5))
        kind, slot = rng.choice(kinds), rng.randrange(SLOTS)
        if kind == "open":
            ops.append(("open", slot, rng.randrange(NAMES), rng.random() < 0.15))
        elif kind == "write":
            off = offset(guess[slot])
            n = min(size(), MAX_SIZE - off)
            ops.append(("write", slot, off, n, step, rng.random() < 0.6))
            guess[slot] = max(guess[slot], off + n)
        elif kind == "read":
            ops.append(("read", slot, offset(guess[slot]), size()))
        elif kind == "truncate":
            guess[slot] = rng.randrange(min(MAX_SIZE, guess[slot] + 500_000) + 1)
            ops.append(("truncate", slot, guess[slot]))
        elif kind == "rename":
            ops.append(("rename", rng.randrange(NAMES), rng.randrange(NAMES)))
        elif kind == "unlink":
            ops.append(("unlink", rng.randrange(NAMES)))
        else:
            ops.append((kind, slot))
    return ops + [("remount", False)]


class Player:
    """Plays operations on a mount and on the model. One whose descriptor or name isn't there opens a
    file, or is passed over, so every part of a list can be played."""

    def __init__(self, t, volume, options):
        self.t, self.volume, self.options = t, volume, options
        self.mount = t.mount(volume, options=options)
        self.files, self.open = {}, {}  # name -> content; slot -> (descriptor, content)

    def play(self, ops):
        def hung(*_):
            raise Failure(f"hangs for more than {PATIENCE} s")
        outer = signal.signal(signal.SIGALRM, hung)
        left = signal.alarm(0)
        at = 0
        try:
            for at, op in enumerate(ops):
                signal.alarm(PATIENCE)
                getattr(self, "do_" + op[0])(*op[1:])
            signal.alarm(PATIENCE)
            self.close_all()
            self.mount.umount()
        except (Failure, OSError) as e:
            raise Failure(f"operation {at}, {ops[at]}: {e}")
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, outer)
            signal.alarm(left)
            self.close_all()

    def close_all(self):
        for slot in list(self.open):
            self.do_close(slot)

    def path(self, name):
        return self.mount / f"f{name}"

    def do_open(self, slot, name, truncate):
        self.do_close(slot)
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if truncate else 0)
        fd = os.open(self.path(name), flags)
        content = self.files.setdefault(name, bytearray())
        if truncate:
            del content[:]
        self.open[slot] = (fd, content)

    def handle(self, slot):
        if slot not in self.open:
            self.do_open(slot, slot % NAMES, False)
        return self.open[slot]

    def do_close(self, slot):
        if slot in self.open:
            os.close(self.open.pop(slot)[0])

    def do_write(self, slot, off, n, seed, noisy):
        fd, content = self.handle(slot)
        rng = random.Random(seed)
        data = rng.randbytes(n) if noisy else ((b"%d " % rng.randrange(10**9)) * (n // 4 + 1))[:n]
        done = 0
        while done < n:
            done += os.pwrite(fd, data[done:], off + done)
        if off > len(content) and n:  # a write of nothing extends nothing
            content.extend(bytes(off - len(content)))
        content[off:off + n] = data

    def do_read(self, slot, off, n):
        fd, content = self.handle(slot)
        self.same(os.pread(fd, n, off), bytes(content[off:off + n]), off, f"slot {slot}")

    def do_truncate(self, slot, n):
        fd, content = self.handle(slot)
        os.ftruncate(fd, n)
        if n < len(content):
            del content[n:]
        else:
            content.extend(bytes(n - len(content)))

    def do_fsync(self, slot):
        if slot in self.open:
            os.fsync(self.open[slot][0])

    def do_stat(self, _slot):
        for name, content in self.files.items():
            equal(os.stat(self.path(name)).st_size, len(content), f"size of f{name}")

    def do_unlink(self, name):
        if name in self.files:
            os.unlink(self.path(name))
            del self.files[name]

    def do_rename(self, a, b):
        if a in self.files:
            os.rename(self.path(a), self.path(b))
            if a != b:
                self.files[b] = self.files.pop(a)

    def do_remount(self, keep_cache):
        self.close_all()
        self.mount.umount()
        self.mount = self.t.mount(self.volume, options=self.options,
                                  cache_dir=self.mount.cache_dir if keep_cache else None)
        equal(sorted(os.listdir(self.mount.path)), sorted(f"f{n}" for n in self.files), "names")
        for name, content in self.files.items():
            with open(self.path(name), "rb") as f:
                self.same(f.read(), bytes(content), 0, f"f{name}")

    def same(self, got, want, off, what):
        if got == want:
            return
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b),
                  min(len(got), len(want)))
        raise Failure(f"{what}: {len(got)} bytes read, {len(want)} wanted, first difference at file "
                      f"offset {off + at}: {got[at:at + 16]!r} for {want[at:at + 16]!r}")


def goes_wrong(t, storage, shards, options, ops):
    """What goes wrong when `ops` are played on a new volume, or None."""
    try:
        Player(t, t.volume(storage, shards), options).play(ops)
    except Failure as e:
        return str(e)
    finally:
        t.clean_up()
        t.remove_data()
    return None


def shrink(t, storage, shards, options, ops):
    """Leaves out parts, large ones first, as long as what is left still goes wrong."""
    global PATIENCE
    PATIENCE = 10
    piece = len(ops) // 2
    while piece:
        at = 0
        while at < len(ops):
            fewer = ops[:at] + ops[at + piece:]
            if fewer and goes_wrong(t, storage, shards, options, fewer):
                ops = fewer
            else:
                at += piece
        piece //= 2
    print(f"# {len(ops)} operations are enough:")
    for op in ops:
        print(f"#   {op}")
    print(f"# {goes_wrong(t, storage, shards, options, ops)}", flush=True)


def play(t, storage="file", shards=1, options=()):
    seed = t.args.seed if t.args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"# seed {seed}", flush=True)
    ops = generate(seed, t.args.steps)
    try:
        Player(t, t.volume(storage, shards), options).play(ops)
    except Failure:
        print(f"# again: test/integration/test_random_io.py --steps {t.args.steps} --seed {seed} "
              "[--shrink]", flush=True)
        if t.args.shrink:
            t.clean_up()
            shrink(t, storage, shards, options, ops)
        raise


@suite.cases_for(storage=["file", "s3"], shards=[1, 8])
def random_operations(t, storage, shards):
    play(t, storage, shards)


@suite.case
def random_operations_with_a_small_cache_and_buffer(t):
    """Eviction and write-out happen all the time."""
    play(t, options=["cache-size=64M", "buffer-size=16M"])


suite.main()
