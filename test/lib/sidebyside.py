"""The same operations on siltfs and on an ordinary file system, as several users: what Linux and ext4
answer is what siltfs has to answer.

    def script(s):                      # s: Steps, in an empty folder s.root
        path = s.make("f", 0o644)
        s.step("owner reads", lambda: open(path).read(), user=OWNER)

    sidebyside.compare(t, m, script)    # in the mount `m` and in the test's own folder

An outcome is a value, or the name of the errno."""

import errno
import os
import pickle
import struct
import traceback

from silt import Failure

# (user, group, further groups); None is root as it is
OWNER = (1001, 1001, [])
NAMED = (1002, 1002, [])
MEMBER = (1003, 1003, [2000])
OTHER = (1005, 1005, [])


def outcome(function):
    try:
        return function()
    except OSError as e:
        return errno.errorcode[e.errno]


def as_user(user, function):
    """Runs `function` in a child process as `user`; returns its outcome."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reads)
            if user:
                os.setgroups(user[2])
                os.setresgid(user[1], user[1], user[1])
                os.setresuid(user[0], user[0], user[0])
            got = outcome(function)
        except BaseException:
            got = "crashed: " + traceback.format_exc()
        with os.fdopen(writes, "wb") as f:
            f.write(pickle.dumps(got))
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as f:
        data = f.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


class Steps:
    def __init__(self, root, real):
        self.root = root
        self.real = real  # the mount of siltfs, or the file system that it is compared with
        self.done = []

    def path(self, name):
        return os.path.join(self.root, name)

    def make(self, name, mode=0o644, owner=(0, 0), data=b""):
        """A file; mode with 0o40000 a directory."""
        path = self.path(name)
        if mode & 0o40000:
            os.mkdir(path)
        else:
            with open(path, "wb") as f:
                f.write(data)
        os.chown(path, *owner)
        os.chmod(path, mode & 0o7777)
        return path

    def step(self, what, function, user=None):
        got = as_user(user, function) if user else outcome(function)
        if isinstance(got, str) and got.startswith("crashed"):
            raise Failure(f"{what}: {got}")
        self.done.append((what, got))
        return got


def compare(t, m, script, name="side"):
    """Runs the script in the mount and beside it; returns how many steps there were."""
    sides = []
    for top, real in ((t.folder("ordinary"), True), (m.path, False)):
        root = os.path.join(top, name)
        os.mkdir(root)
        os.chmod(root, 0o755)
        s = Steps(root, real)
        script(s)
        sides.append(s.done)
    want, got = sides
    differ = [f"{w[0]}: siltfs {g[1]!r}, {'ordinary'} {w[1]!r}"
              for w, g in zip(want, got) if w != g]
    if len(want) != len(got):
        differ.append(f"{len(got)} steps instead of {len(want)}")
    if differ:
        raise Failure(f"{len(differ)} of {len(want)} steps differ:\n    " + "\n    ".join(differ[:40]))
    return len(want)


# --- ACLs and flags in bytes ---------------------------------------------------------------------------

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TAGS = {"u": 1, "g": 4, "m": 16, "o": 32}


def acl(text):
    """"u::rwx u:1001:r-- g::r-x m::rwx o::---" as the kernel writes it."""
    out = struct.pack("<I", 2)
    for entry in text.split():
        kind, who, perms = entry.split(":")
        tag = TAGS[kind] * (2 if who else 1)
        bits = sum(b for b, c in zip((4, 2, 1), perms) if c != "-")
        out += struct.pack("<HHI", tag, bits, int(who) if who else 0xffffffff)
    return out


def acl_text(blob):
    if not isinstance(blob, bytes):
        return blob
    names = {1: "u:", 2: "u", 4: "g:", 8: "g", 16: "m:", 32: "o:"}
    words = []
    for at in range(4, len(blob), 8):
        tag, bits, who = struct.unpack_from("<HHI", blob, at)
        perms = "".join(c if bits & b else "-" for b, c in ((4, "r"), (2, "w"), (1, "x")))
        words.append(f"{names[tag]}{'' if names[tag].endswith(':') else ':' + str(who)}:{perms}")
    return " ".join(words)


def acl_of(path, kind=ACCESS):
    return acl_text(outcome(lambda: os.getxattr(path, kind)))


IMMUTABLE, APPEND = 0x10, 0x20
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602


def get_flags(path):
    import fcntl
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return struct.unpack("I", fcntl.ioctl(fd, GETFLAGS, b"\0" * 4))[0]
    finally:
        os.close(fd)


def set_flags(path, wanted, keep=~(IMMUTABLE | APPEND)):
    import fcntl
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        old = struct.unpack("I", fcntl.ioctl(fd, GETFLAGS, b"\0" * 4))[0]
        fcntl.ioctl(fd, SETFLAGS, struct.pack("I", old & keep & 0xffffffff | wanted))
    finally:
        os.close(fd)
