"""Random operations for checker.Checker: from a seed and the state of the model, so that most of them
hit something. Each is a tuple of plain values that can be played again without the generator."""

import os
import random

from checker import SLOTS
from posix_model import EXCHANGE, KEEP_SIZE, NOREPLACE, PUNCH_HOLE, ZERO_RANGE

NAMES = ["a", "b", "c", "d", "e", "f", "name with spaces", "\u00fcber", "n" * 255]
XATTRS = ["user.a", "user.b", "user.long", "trusted.t"]
MODES = [0o644, 0o600, 0o666, 0o444, 0o755, 0o777, 0o700, 0o070, 0o000, 0o4755, 0o2755, 0o2711, 0o6777]
DIR_MODES = [0o755, 0o777, 0o775, 0o700, 0o1775, 0o2775, 0o2777, 0o555, 0o711, 0o733]
IDS = [0, 1001, 1002, 2000, 12345]
MAX_SIZE = 6 << 20

WEIGHTS = {
    "open": 22, "close": 12, "write": 18, "read": 10, "ftruncate": 4, "truncate": 3, "fsync": 5,
    "fallocate": 5, "copy": 5, "map": 4, "fstat": 4, "stat": 8, "chmod": 4, "chown": 3, "utimens": 4,
    "rename": 12, "link": 5, "symlink": 4, "readlink": 2, "unlink": 8, "mkdir": 8, "rmdir": 4,
    "listdir": 5, "setxattr": 5, "getxattr": 3, "removexattr": 2, "listxattr": 2,
}
CROWDED = {"unlink": 30, "rmdir": 12}   # with more than 50 files


class Generator:
    def __init__(self, seed, mounts):
        self.rng = random.Random(seed)
        self.mounts = mounts
        self.fs = None

    def ops(self, checker, count):
        """Yields `count` operations; each depends on what those before did."""
        self.fs = checker.fs
        for i in range(count):
            if i % 150 == 149:
                for m in range(self.mounts):
                    yield ("compare", m, 0)
            self.known = list(self.fs.all())
            weights = {**WEIGHTS, **(CROWDED if len(self.known) > 50 else {})}
            name = self.rng.choices(list(weights), weights.values())[0]
            who = 0 if name == "link" else self.rng.choices([0, 1, 2], [6, 2, 1])[0]
            yield (name, self.rng.randrange(self.mounts), who, *getattr(self, name)())

    # --- arguments -----------------------------------------------------------------------------------
    def some(self, kinds):
        """The path of something of these kinds, the root last of all."""
        paths = [p for p, i in self.known if i.kind in kinds and p]
        return self.rng.choice(paths) if paths else self.new()

    def new(self):
        """A path that need not be there, in a directory (or something that is taken for one)."""
        rng = self.rng
        tops = [p for p, i in self.known if i.kind == "d" and p.count("/") < 3]
        if rng.random() < 0.06:
            tops = [p for p, i in self.known if i.kind in "fl"] or tops
        top = rng.choice(tops)
        name = "x" * 256 if rng.random() < 0.01 else rng.choice(NAMES)
        return f"{top}/{name}" if top else name

    def any(self, kinds="fdl", known=0.85):
        return self.some(kinds) if self.rng.random() < known else self.new()

    def slot(self):
        return self.rng.randrange(SLOTS)

    def size(self):
        r = self.rng.random()
        return self.rng.randrange(1, 100 if r < 0.3 else 9000 if r < 0.8 else 200_000
                                  if r < 0.97 else 3 << 20)

    def offset(self):
        r = self.rng.random()
        return 0 if r < 0.2 else self.rng.randrange(6000 if r < 0.6 else 150_000 if r < 0.95 else 2 << 20)

    # --- one a kind ----------------------------------------------------------------------------------
    def open(self):
        rng = self.rng
        flags = rng.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
        r = rng.random()
        if r < 0.45:
            flags |= os.O_CREAT
        elif r < 0.6:
            flags |= os.O_CREAT | os.O_EXCL
        elif r < 0.65:
            flags |= os.O_NOFOLLOW
        if flags & os.O_ACCMODE != os.O_RDONLY:
            flags |= os.O_TRUNC if rng.random() < 0.15 else 0
            flags |= os.O_APPEND if rng.random() < 0.2 else 0
        path = self.any("ffffdl", 0.2 if flags & os.O_EXCL else 0.6 if flags & os.O_CREAT else 0.95)
        return self.slot(), path, flags, rng.choice([0o644, 0o666, 0o600, 0o777])

    def close(self):
        return (self.slot(),)

    fsync = fstat = close

    def write(self):
        return self.slot(), self.offset(), self.size(), self.rng.randrange(1 << 30)

    def read(self):
        return self.slot(), self.offset(), self.size()

    map = write

    def ftruncate(self):
        return self.slot(), self.offset()

    def truncate(self):
        return self.any("fffdl"), self.offset()

    def fallocate(self):
        mode = self.rng.choice([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE,
                                ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
        return self.slot(), mode, self.offset(), self.size()

    def copy(self):
        return self.slot(), self.offset(), self.slot(), self.offset(), self.size()

    def stat(self):
        return self.any(), self.rng.random() < 0.4

    def chmod(self):
        path = self.any()
        inode = self.fs.lookup(path, True)
        return path, self.rng.choice(DIR_MODES if inode and inode.kind == "d" else MODES)

    def chown(self):
        uid, gid = self.rng.choice(IDS), self.rng.choice([-1, *IDS])
        if gid != -1 and self.rng.random() < 0.4:
            uid = -1
        return self.any(), uid, gid, self.rng.random() < 0.5

    def utimens(self):
        rng = self.rng
        times = None if rng.random() < 0.2 else (rng.randrange(1 << 60), rng.randrange(1 << 60))
        return self.any(), times, rng.random() < 0.5

    def rename(self):
        flags = self.rng.choices([0, NOREPLACE, EXCHANGE], [6, 2, 2])[0]
        known = {0: 0.45, NOREPLACE: 0.3, EXCHANGE: 0.95}[flags]
        return self.any("fffddl", 0.95), self.any("fffddl", known), flags

    def link(self):
        return self.any("fffffdl", 0.95), self.any("fdl", 0.15)

    def symlink(self):
        path = self.any("fdl", 0.1)
        near = self.rng.random() < 0.7
        top = os.path.dirname(path)
        inside = [p[len(top) + 1 if top else 0:] for p, i in self.known
                  if p and (not top or p.startswith(top + "/"))]
        target = self.rng.choice(inside) if near and inside else self.rng.choice(NAMES)
        return target, path

    def readlink(self):
        return (self.any("lllf"),)

    def unlink(self):
        return (self.any("ffffld"),)

    def mkdir(self):
        return self.any("fdl", 0.1), self.rng.choice(DIR_MODES)

    def rmdir(self):
        return (self.any("ddddf"),)

    def listdir(self):
        return (self.any("dddl", 0.95),)

    def setxattr(self):
        rng = self.rng
        name = rng.choice(XATTRS)
        value = rng.randbytes(3000 if name == "user.long" else rng.randrange(60))
        flags = rng.choice([0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
        return self.any(), name, value, flags, rng.random() < 0.5

    def getxattr(self):
        return self.any(), self.rng.choice(XATTRS), self.rng.random() < 0.5

    removexattr = getxattr

    def listxattr(self):
        return self.any(), self.rng.random() < 0.5
