"""Plays operations on several mounts of one volume and on posix_model beside them, one at a time, and
compares every result and the whole tree.

Who may see what when is the subject. A Checker keeps, for every inode, name and content, the mounts
that may not have been told yet of another mount's change (`unseen`):
- what a mount changed itself it sees at once, whatever it has cached;
- a mount without kernel caches ("strict") sees everything at once, but for bytes of a file that it has
  open all the while, which are pushed;
- a mount as by default may take a moment for names and attributes (they are pushed), but an open()
  that comes after close() or fsync() on another mount sees the bytes, without a moment;
- a relaxed mount may take a moment for bytes too.
"A moment" is a wait until the mount agrees, at most PATIENCE seconds; the longest is in `waited`. It
comes before an operation that depends on what may be unseen, so that the operation itself has one
right answer.

What is not checked because nothing is promised about it is passed over (Skip): contents that another
mount has written and not stored yet, and removal of the last name of a file that another mount has
open."""

import ctypes
import errno
import mmap
import os
import random
import stat
import time

import posix_model
from posix_model import EXCHANGE, PEOPLE, ROOT, Model
from silt import Failure, shorten

PATIENCE = 20           # a busy machine; how fast pushes are is test_coherence's
SLACK = 100_000_000     # ns by which a time may lie before the operation: clocks tick, parents coalesce
KINDS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}
SLOTS = 10
FOLLOWED = {"open", "truncate", "chmod", "listdir"}     # of path operations without a choice

libc = ctypes.CDLL(None, use_errno=True)


def libc_call(function, *args):
    if function(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renameat2(old, new, flags):
    libc_call(libc.renameat2, -100, os.fsencode(old), -100, os.fsencode(new), flags)


def fallocate(fd, mode, off, n):
    libc_call(libc.fallocate, fd, mode, ctypes.c_long(off), ctypes.c_long(n))


def content(seed, n):
    """Noise, or text that compresses."""
    rng = random.Random(seed)
    return rng.randbytes(n) if seed % 3 else ((b"%d " % rng.randrange(10**9)) * (n // 4 + 1))[:n]


class Skip(Exception):
    pass


class Handle:
    def __init__(self, fd, inode, mount, flags):
        self.fd, self.inode, self.mount = fd, inode, mount
        mode = flags & os.O_ACCMODE
        self.reads, self.writes = mode != os.O_WRONLY, mode != os.O_RDONLY
        self.append = bool(flags & os.O_APPEND)


class Checker:
    """roots: an empty folder as seen by each mount; kinds: "default", "strict", "relaxed" or "local"
    (one ordinary folder) for each; shards: more than one may refuse to exchange."""

    def __init__(self, roots, kinds, shards=1):
        self.roots, self.kinds, self.shards = roots, kinds, shards
        self.fs = Model()
        self.fs.changed, self.fs.renamed = self.note_inode, self.note_name
        self.actor = 0
        self.told = {}          # inode or (directory, name) -> mounts that may not know yet
        self.told_data = {}     # inode -> the same for its bytes
        self.handles = {}       # slot -> Handle
        self.named = []         # (directory, name) that the operation changed
        self.dirty = {}         # inode -> handles through which it was written and not stored since
        self.waited = 0.0
        self.played = 0

    # --- what may be unseen ------------------------------------------------------------------------
    def others(self, strict_too=False):
        return {m for m in range(len(self.roots)) if m != self.actor and
                self.kinds[m] != "local" and (strict_too or self.kinds[m] != "strict")}

    def note_inode(self, inode):
        """The actor changed it. What others had done before, it has waited for (settle)."""
        self.told[inode] = self.told.get(inode, set()) - {self.actor} | self.others()

    def note_name(self, directory, name):
        self.told[directory, name] = self.others()
        self.named.append((directory, name))

    def learn_numbers(self, m):
        """Of inodes that were made just now, from the mount that made them: another may still have the name of
        one that was replaced, which may look the same but for its number."""
        for directory, name in self.named:
            inode = directory.entries.get(name)
            if inode is not None and inode.ino is None:
                inode.ino = os.lstat(self.real(m, Model.path_of(directory, name))).st_ino
        self.named.clear()

    def stored(self, inode):
        """Its bytes are where others find them. A close did not wait for anything: what others have done to
        the inode meanwhile, the actor may still not know."""
        self.dirty.pop(inode, None)
        self.told_data[inode] = self.others(True)
        self.told[inode] = self.told.get(inode, set()) | self.others()

    def dirty_elsewhere(self, inode, m):
        return any(h.mount != m for h in self.dirty.get(inode, ()))

    def held_elsewhere(self, inode, m):
        return any(h.inode is inode and h.mount != m for h in self.handles.values())

    def agree(self, m, unseen, key, mismatch):
        """mismatch() says what is wrong, or None: at once, or within PATIENCE where m is one of those
        that may not know yet."""
        may_wait = m in unseen.get(key, ())
        start = time.monotonic()
        while True:
            wrong = mismatch()
            took = time.monotonic() - start
            if not wrong:
                break
            if not may_wait or took > PATIENCE:
                after = f" after {took:.1f} s" if may_wait else ""
                raise Failure(f"mount {m} ({self.kinds[m]}){after}: {wrong}")
            time.sleep(0.002)
        if may_wait:
            self.waited = max(self.waited, took)
            unseen[key].discard(m)

    def real(self, m, path):
        return os.path.join(self.roots[m], path) if path else self.roots[m]

    def settle(self, m, path, follow):
        """Waits until mount m knows everything that an operation on `path` looks at."""
        seen = []
        try:
            self.fs.walk(ROOT, path, follow, seen)
        except OSError:
            pass
        for directory, name in seen:
            self.settle_entry(m, directory, name)

    def settle_entry(self, m, directory, name):
        if directory.parent is not None:
            self.settle_entry(m, directory.parent, directory.name)
        else:
            self.settle_root(m)
        path, child = Model.path_of(directory, name), directory.entries.get(name)
        if m in self.told.get((directory, name), ()):
            self.agree(m, self.told, (directory, name), lambda: self.entry_differs(m, path, child))
        if child is not None and m in self.told.get(child, ()):
            self.agree(m, self.told, child, lambda: self.known_differs(m, path, child))

    def settle_root(self, m):
        if m in self.told.get(self.fs.root, ()):
            self.agree(m, self.told, self.fs.root, lambda: self.known_differs(m, "", self.fs.root))

    def entry_differs(self, m, path, inode):
        try:
            st = os.lstat(self.real(m, path))
        except OSError as e:
            st, number = None, e.errno
        if inode is None:
            return None if st is None and number == errno.ENOENT else f"{path}: should not be there"
        if st is None:
            return f"{path}: {os.strerror(number)}"
        if inode.ino is not None and st.st_ino != inode.ino:
            return f"{path}: inode {st.st_ino}, want {inode.ino}"
        return None

    def attributes_differ(self, m, path, inode):
        try:
            return self.stat_differs(m, path, inode, os.lstat(self.real(m, path)))
        except OSError as e:
            return f"{path}: {os.strerror(e.errno)}"

    def known_differs(self, m, path, inode):
        wrong = self.attributes_differ(m, path, inode)
        if wrong or inode.kind not in "fdl":
            return wrong
        p = self.real(m, path)
        got = self.outcome(lambda: {n: os.getxattr(p, n, follow_symlinks=False)
                                    for n in self.xattr_names(p, False)})
        return None if got == inode.xattrs else f"{path}: {got}, want {inode.xattrs}"

    @staticmethod
    def xattr_names(path, follow):
        return sorted(n for n in os.listxattr(path, follow_symlinks=follow)
                      if n.startswith(("user.", "trusted.")))

    def stat_differs(self, m, path, inode, st):
        got = {"kind": KINDS.get(stat.S_IFMT(st.st_mode)), "mode": oct(stat.S_IMODE(st.st_mode)),
               "uid": st.st_uid, "gid": st.st_gid, "nlink": st.st_nlink}
        want = {"kind": inode.kind, "mode": oct(inode.mode if inode.kind != "l" else 0o777),
                "uid": inode.uid, "gid": inode.gid, "nlink": inode.links()}
        if inode.kind != "d" and not self.dirty_elsewhere(inode, m):
            got["size"], want["size"] = st.st_size, inode.size()
        if inode.ino is not None:
            got["ino"], want["ino"] = st.st_ino, inode.ino
        if self.dirty_elsewhere(inode, m):
            got.pop("mode"), want.pop("mode")   # the set-id bits go when the bytes are stored
        if got != want:
            return f"{path}: {got}, want {want}"
        return None if self.dirty_elsewhere(inode, m) else self.times_differ(m, path, inode, st)

    def times_differ(self, m, path, inode, st):
        if inode.mtime is not None and st.st_mtime_ns != inode.mtime:
            return f"{path}: mtime {st.st_mtime_ns}, was set to {inode.mtime}"
        if inode.mtime is None and st.st_mtime_ns < inode.mtime_from - SLACK:
            return f"{path}: mtime {st.st_mtime_ns}, but it was changed at {inode.mtime_from}"
        if st.st_ctime_ns < inode.ctime_from - SLACK:
            return f"{path}: ctime {st.st_ctime_ns}, but it was changed at {inode.ctime_from}"
        if inode.atime is not None and self.kinds[m] != "local" and st.st_atime_ns != inode.atime:
            return f"{path}: atime {st.st_atime_ns}, was set to {inode.atime}"
        return None

    def bytes_differ(self, what, got, want):
        if got == want:
            return None
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        return (f"{what}: {len(got)} bytes for {len(want)}, the first that differs at {at}: "
                f"{got[at:at + 16]!r} for {want[at:at + 16]!r}")

    def file_differs(self, m, path, inode):
        with open(self.real(m, path), "rb") as f:
            return self.bytes_differ(path, f.read(), bytes(inode.data))

    def check_bytes(self, m, path, inode):
        """What open() and read() on mount m give: right at once, but for relaxed mounts."""
        def mismatch():
            return self.file_differs(m, path, inode)
        if self.kinds[m] == "relaxed":
            self.agree(m, self.told_data, inode, mismatch)
        else:
            self.agree(m, {}, inode, mismatch)
            self.told_data.get(inode, set()).discard(m)

    def settle_handle(self, h):
        """Waits until an open file shows what other mounts stored."""
        if self.dirty_elsewhere(h.inode, h.mount):
            raise Skip
        inode = h.inode

        def mismatch():
            wrong = self.stat_differs(h.mount, "open file", inode, os.fstat(h.fd))
            if not wrong and h.reads:
                wrong = self.bytes_differ("open file", os.pread(h.fd, len(inode.data) + 1, 0),
                                          bytes(inode.data))
            return wrong

        def known():
            wrong = mismatch()
            if wrong or inode.kind not in "fdl":
                return wrong
            got = self.outcome(lambda: {n: os.getxattr(h.fd, n) for n in self.xattr_names(h.fd, True)})
            return None if got == inode.xattrs else f"open file: {got}, want {inode.xattrs}"
        if h.mount in self.told_data.get(inode, ()):
            self.agree(h.mount, self.told_data, inode, mismatch)
        if h.mount in self.told.get(inode, ()):
            self.agree(h.mount, self.told, inode, known)

    # --- playing -------------------------------------------------------------------------------------
    def play(self, op):
        """One operation: (name, mount, who, ...). False if it was passed over."""
        name, m, who = op[:3]
        self.actor, self.fs.now = m, time.time_ns()
        try:
            getattr(self, "do_" + name)(m, PEOPLE[who], *op[3:])
        except Skip:
            return False
        self.learn_numbers(m)
        self.played += 1
        return True

    def both(self, m, who, real, model):
        """The results of the mount and of the model must be the same; returns it."""
        got = self.outcome(lambda: self.as_who(who, real))
        want = self.outcome(model)
        if got != want:
            raise Failure(f"mount {m} ({self.kinds[m]}): {shorten(got)}, want {shorten(want)}")
        return got

    @staticmethod
    def outcome(function):
        try:
            return function()
        except OSError as e:
            return errno.errorcode.get(e.errno, e.errno)

    @staticmethod
    def as_who(who, function):
        if who is ROOT:
            return function()
        os.setgroups(sorted(who.groups))
        os.setegid(who.gid)
        os.seteuid(who.uid)
        try:
            return function()
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])

    def prepare(self, m, path, follow, touches=False, removes=False):
        """Before an operation that looks at `path`, changes what it has there, or takes the name."""
        inode = self.fs.lookup(path, follow)
        if inode and touches and self.dirty_elsewhere(inode, m):
            raise Skip
        if inode and removes and inode.nlink == 1 and self.held_elsewhere(inode, m):
            raise Skip
        self.settle(m, path, follow)
        return self.real(m, path)

    def on_path(self, name, real, follow=None, touches=False):
        """An operation on one path whose model has the same name and arguments."""
        def do(m, who, path, *args):
            wanted = follow if follow is not None else name in FOLLOWED or bool(args and args[-1])
            p = self.prepare(m, path, wanted, touches)
            return self.both(m, who, lambda: real(p, *args),
                             lambda: getattr(self.fs, name)(who, path, *args))
        return do

    def do_mkdir(self, *a):
        self.on_path("mkdir", os.mkdir, False)(*a)

    def do_rmdir(self, *a):
        self.on_path("rmdir", os.rmdir, False)(*a)

    def do_readlink(self, *a):
        self.on_path("readlink", os.readlink, False)(*a)

    def do_listdir(self, m, who, path):
        p = self.prepare(m, path, True)
        self.settle_names(m, self.fs.lookup(path, True))
        self.both(m, who, lambda: sorted(os.listdir(p)), lambda: self.fs.listdir(who, path))

    def settle_names(self, m, directory):
        if directory and directory.kind == "d":
            for d, name in [k for k, who in self.told.items()
                            if isinstance(k, tuple) and k[0] is directory and m in who]:
                self.settle_entry(m, d, name)

    def do_chmod(self, *a):
        self.on_path("chmod", os.chmod, touches=True)(*a)

    def do_truncate(self, m, who, path, size):
        inode = self.fs.lookup(path, True)
        self.on_path("truncate", os.truncate, touches=True)(m, who, path, size)
        if inode and inode.kind == "f" and inode not in self.dirty:
            self.stored(inode)

    def do_chown(self, *a):
        self.on_path("chown", lambda p, u, g, f: os.chown(p, u, g, follow_symlinks=f),
                     touches=True)(*a)

    def do_utimens(self, *a):
        self.on_path("utimens", lambda p, t, f: os.utime(p, ns=t, follow_symlinks=f) if t else
                     os.utime(p, follow_symlinks=f), touches=True)(*a)

    def do_setxattr(self, *a):
        self.on_path("setxattr", lambda p, n, v, fl, f: os.setxattr(p, n, v, fl, follow_symlinks=f))(*a)

    def do_getxattr(self, *a):
        self.on_path("getxattr", lambda p, n, f: os.getxattr(p, n, follow_symlinks=f))(*a)

    def do_removexattr(self, *a):
        self.on_path("removexattr", lambda p, n, f: os.removexattr(p, n, follow_symlinks=f))(*a)

    def do_listxattr(self, *a):
        self.on_path("listxattr", self.xattr_names)(*a)

    def do_stat(self, m, who, path, follow):
        p = self.prepare(m, path, follow)
        found = []
        wrong = self.both(m, who, lambda: found.append(os.stat(p, follow_symlinks=follow)),
                          lambda: found.append(self.fs.stat(who, path, follow)))
        if wrong is None and found:
            differs = self.stat_differs(m, path, found[1], found[0])
            if differs:
                raise Failure(f"mount {m} ({self.kinds[m]}): {differs}")

    def do_symlink(self, m, who, target, path):
        p = self.prepare(m, path, False)
        self.both(m, who, lambda: os.symlink(target, p), lambda: self.fs.symlink(who, target, path))

    def do_link(self, m, who, old, new):
        p, q = self.prepare(m, old, False), self.prepare(m, new, False)
        self.both(m, who, lambda: os.link(p, q, follow_symlinks=False),
                  lambda: self.fs.link(who, old, new))

    def do_unlink(self, m, who, path):
        p = self.prepare(m, path, False, removes=True)
        self.both(m, who, lambda: os.unlink(p), lambda: self.fs.unlink(who, path))

    def do_rename(self, m, who, old, new, flags):
        p, q = self.prepare(m, old, False), self.prepare(m, new, False, removes=not flags)
        if self.kinds[m] == "strict":
            # As mv(1) does. Where a kernel knows a directory under a name from which another mount moved
            # it, its rename() answers ESTALE until it has looked at the new name.
            os.path.lexists(p), os.path.lexists(q)
        for path in (old, new):     # the kernel looks whether a directory that goes away is empty
            self.settle_names(m, self.fs.lookup(path))
        if flags & EXCHANGE and self.shards > 1:
            got = self.outcome(lambda: self.as_who(who, lambda: renameat2(p, q, flags)))
            if got in ("EOPNOTSUPP", "ENOTSUP"):
                raise Skip          # within a shard only
            real = (lambda: None) if got is None else (
                lambda: posix_model.fail(getattr(errno, got)))
            self.both(m, ROOT, real, lambda: self.fs.rename(who, old, new, flags))
            return
        self.both(m, who, lambda: renameat2(p, q, flags),
                  lambda: self.fs.rename(who, old, new, flags))

    # --- open files --------------------------------------------------------------------------------
    def do_open(self, m, who, slot, path, flags, mode):
        self.close_slot(slot)
        self.actor = m
        follow = not (flags & os.O_CREAT and flags & os.O_EXCL) and not flags & os.O_NOFOLLOW
        p = self.prepare(m, path, follow, touches=True)
        inode = self.fs.lookup(path, follow)
        if inode and inode.kind == "f" and self.kinds[m] == "relaxed":
            self.check_bytes(m, path, inode)
        opened = []
        got = self.both(m, who, lambda: opened.append(os.open(p, flags, mode)),
                        lambda: opened.append(self.fs.open(who, path, flags, mode)))
        if got is not None:
            return
        fd, inode = opened
        if inode.kind == "d":
            os.close(fd)
            return
        h = self.handles[slot] = Handle(fd, inode, m, flags)
        if flags & os.O_TRUNC:
            self.wrote(h)
        self.told_data.get(inode, set()).discard(m)
        wrong = self.stat_differs(m, path, inode, os.fstat(fd))
        if not wrong and h.reads:
            wrong = self.bytes_differ(path, os.pread(fd, len(inode.data) + 1, 0), bytes(inode.data))
        if wrong:
            raise Failure(f"mount {m} ({self.kinds[m]}), just opened: {wrong}")

    def close_slot(self, slot):
        h = self.handles.pop(slot, None)
        if h is None:
            return
        self.actor = h.mount
        os.close(h.fd)
        writers = self.dirty.get(h.inode)
        if writers and h in writers:
            writers.discard(h)
            if not writers:
                self.stored(h.inode)

    def wrote(self, h):
        self.dirty.setdefault(h.inode, set()).add(h)

    def handle(self, slot):
        """An open file that shows what it has to."""
        h = self.handles.get(slot)
        if h is None:
            raise Skip
        self.actor = h.mount
        self.settle_handle(h)
        return h

    def on_writer(self, who, slot, real, model, refused):
        """refused: the errno for a descriptor that can't write."""
        h = self.handle(slot)
        if not h.writes:
            self.both(h.mount, who, lambda: real(h), lambda: posix_model.fail(refused))
            return
        self.both(h.mount, who, lambda: real(h), lambda: model(h))
        self.wrote(h)

    def do_close(self, m, who, slot):
        if slot not in self.handles:
            raise Skip
        self.close_slot(slot)

    def do_fsync(self, m, who, slot):
        h = self.handle(slot)
        os.fsync(h.fd)
        if h.inode in self.dirty:
            self.stored(h.inode)

    def do_fstat(self, m, who, slot):
        h = self.handle(slot)
        wrong = self.stat_differs(h.mount, "open file", h.inode, os.fstat(h.fd))
        if wrong:
            raise Failure(f"mount {h.mount} ({self.kinds[h.mount]}): {wrong}")

    def do_read(self, m, who, slot, off, n):
        h = self.handle(slot)
        if h.reads:
            got = os.pread(h.fd, n, off)
            wrong = self.bytes_differ(f"read of {n} at {off}", got, bytes(h.inode.data[off:off + n]))
            if wrong:
                raise Failure(f"mount {h.mount} ({self.kinds[h.mount]}): {wrong}")

    def do_write(self, m, who, slot, off, n, seed):
        data = content(seed, n)
        self.on_writer(who, slot, lambda h: os.pwrite(h.fd, data, off),
                       lambda h: self.fs.write(who, h.inode, off, data, h.append), errno.EBADF)

    def do_ftruncate(self, m, who, slot, size):
        self.on_writer(who, slot, lambda h: os.ftruncate(h.fd, size),
                       lambda h: self.fs.resize(who, h.inode, size), errno.EINVAL)

    def do_fallocate(self, m, who, slot, mode, off, n):
        self.on_writer(who, slot, lambda h: fallocate(h.fd, mode, off, n),
                       lambda h: self.fs.fallocate(who, h.inode, mode, off, n), errno.EBADF)

    def do_copy(self, m, who, slot, off, to_slot, to, n):
        a, b = self.handle(slot), self.handle(to_slot)
        if a.mount != b.mount:
            raise Skip
        self.actor = a.mount
        if not a.reads or not b.writes or b.append:
            self.both(a.mount, who, lambda: os.copy_file_range(a.fd, b.fd, n, off, to),
                      lambda: posix_model.fail(errno.EBADF))
            return
        # What a copy appends to the file that it reads is not copied in turn.
        limit = max(1, min(n, len(a.inode.data) - off)) if a.inode is b.inode else n
        self.both(a.mount, who, lambda: self.copy_all(a.fd, b.fd, limit, off, to),
                  lambda: self.fs.copy_range(who, a.inode, off, b.inode, to, n))
        self.wrote(b)

    @staticmethod
    def copy_all(a, b, n, off, to):
        """A copy may be short; all of it is what counts."""
        done = 0
        while done < n:
            got = os.copy_file_range(a, b, n - done, off + done, to + done)
            if got == 0:
                break
            done += got
        return done

    def do_map(self, m, who, slot, off, n, seed):
        """Bytes are changed through a shared map."""
        h = self.handle(slot)
        n = min(n, len(h.inode.data) - off)
        if not h.reads or not h.writes or n <= 0:
            raise Skip
        data = content(seed, n)
        with mmap.mmap(h.fd, len(h.inode.data), mmap.MAP_SHARED) as view:
            wrong = self.bytes_differ("map", view[off:off + n], bytes(h.inode.data[off:off + n]))
            view[off:off + n] = data
            view.flush()
        if wrong:
            raise Failure(f"mount {h.mount} ({self.kinds[h.mount]}): {wrong}")
        h.inode.data[off:off + n] = data
        h.inode.mtime = None
        self.fs.changed(h.inode)
        self.wrote(h)

    def do_compare(self, m, who):
        """The whole tree as mount m shows it."""
        for path, inode in self.fs.all():
            if path:
                self.settle_entry(m, *self.fs.walk(ROOT, path)[:2])
            else:
                self.settle_root(m)
            wrong = self.attributes_differ(m, path, inode)
            if wrong:
                raise Failure(f"mount {m} ({self.kinds[m]}): {wrong}")
            if inode.kind == "d":
                self.do_listdir(m, ROOT, path)
            elif inode.kind == "l":
                self.do_readlink(m, ROOT, path)
            elif not self.dirty_elsewhere(inode, m):
                self.check_bytes(m, path, inode)
            self.do_listxattr(m, ROOT, path, False)
            for name in inode.xattrs:
                self.do_getxattr(m, ROOT, path, name, False)

    def finish(self):
        """All closed, the whole tree on every mount, and once more."""
        for slot in list(self.handles):
            self.close_slot(slot)
        for m in range(len(self.roots)):
            self.play(("compare", m, 0))

    def abandon(self):
        for h in self.handles.values():
            try:
                os.close(h.fd)
            except OSError:
                pass
        self.handles.clear()
