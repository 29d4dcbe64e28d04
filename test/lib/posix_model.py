"""What Linux says a file system does, in memory: a tree of inodes and the operations on it, each with
its result or its errno, for root and for others. The oracle of test_checker; `test_checker.py --local
DIR` holds it against an ordinary file system.

    fs = Model()
    fs.mkdir(ROOT, "d", 0o755)
    fs.lookup("d").mode

An operation takes who does it and a path below the root, changes the model and returns what the system
call returns, or raises OSError. Nothing changes when it raises. What an operation changed is said to
`fs.changed(inode)` and `fs.renamed(directory, name)`, which the checker sets: it knows about mounts,
the model does not.

Left out: "..", special files, ACLs, flags, times but for those that were set, and links made by others
than root (fs.protected_hardlinks)."""

import errno
import os
import stat

ISUID, ISGID, ISVTX = stat.S_ISUID, stat.S_ISGID, stat.S_ISVTX
NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
R, W, X = 4, 2, 1
MAX_LINKS = 40
UMASK = 0o022


class Who:
    def __init__(self, uid, gid, groups=()):
        self.uid, self.gid, self.groups = uid, gid, {gid, *groups}

    def in_group(self, gid):
        """In the group, or may do without (CAP_FSETID)."""
        return self.uid == 0 or gid in self.groups


ROOT = Who(0, 0)
ALICE = Who(1001, 1001, [2000])
BOB = Who(1002, 1002, [2000])
PEOPLE = [ROOT, ALICE, BOB]


def fail(number):
    raise OSError(number, os.strerror(number))


class Inode:
    """kind: f, d or l. mtime and atime are exact, or None where only bounds are known."""

    def __init__(self, kind, mode, uid, gid, now=0):
        self.kind, self.mode, self.uid, self.gid = kind, mode, uid, gid
        self.nlink = 1
        self.data, self.target, self.entries = bytearray(), "", {}
        self.parent, self.name = None, None     # of directories
        self.xattrs = {}
        self.atime = self.mtime = None
        self.mtime_from = self.ctime_from = now
        self.ino = None                         # once it was seen

    def links(self):
        if self.kind == "d":
            return 2 + sum(1 for e in self.entries.values() if e.kind == "d")
        return self.nlink

    def size(self):
        return len(self.data) if self.kind == "f" else len(self.target.encode())

    def touch(self, now):
        """Its content changed."""
        self.mtime = None
        self.mtime_from = self.ctime_from = now

    def may(self, who, mask):
        if who.uid == 0:
            return True
        shift = 6 if who.uid == self.uid else 3 if self.gid in who.groups else 0
        return self.mode >> shift & mask == mask

    def drops_sgid(self, who):
        return self.mode & ISGID and (self.mode & 0o010 or not who.in_group(self.gid))

    def written_by(self, who):
        """The set-id bits go, unless root wrote."""
        if who.uid != 0:
            self.mode &= ~((ISUID if self.mode & ISUID else 0)
                           | (ISGID if self.drops_sgid(who) else 0))


class Model:
    def __init__(self):
        self.root = Inode("d", 0o755, 0, 0)
        self.now = 0        # ns; what times that change are at least
        self.changed = lambda inode: None
        self.renamed = lambda directory, name: None

    # --- paths ---------------------------------------------------------------------------------------
    def walk(self, who, path, follow=False, seen=None):
        """(directory, name, inode or None) of the last component. `seen` collects what was looked up
        on the way, as (directory, name)."""
        todo, at, links = path.split("/"), self.root, 0
        if todo == [""]:
            return None, None, self.root
        while True:
            name = todo.pop(0)
            if at.kind != "d":
                fail(errno.ENOTDIR)
            if not at.may(who, X):
                fail(errno.EACCES)
            if len(name.encode()) > 255:
                fail(errno.ENAMETOOLONG)
            if seen is not None:
                seen.append((at, name))
            child = at.entries.get(name)
            if child is None:
                if todo:
                    fail(errno.ENOENT)
                return at, name, None
            if child.kind == "l" and (todo or follow):
                links += 1
                if links > MAX_LINKS:
                    fail(errno.ELOOP)
                todo = child.target.split("/") + todo
            elif not todo:
                return at, name, child
            else:
                at = child

    def existing(self, who, path, follow=False):
        found = self.walk(who, path, follow)
        return found if found[2] else fail(errno.ENOENT)

    def lookup(self, path, follow=False):
        """The inode, whoever asks, or None."""
        try:
            return self.walk(ROOT, path, follow)[2]
        except OSError:
            return None

    @staticmethod
    def path_of(directory, name=None):
        parts = [] if name is None else [name]
        while directory.parent is not None:
            parts.append(directory.name)
            directory = directory.parent
        return "/".join(reversed(parts))

    def all(self, at=None, path=""):
        """(path, inode) of everything, the root first."""
        at = at or self.root
        yield path, at
        if at.kind == "d":
            for name, child in sorted(at.entries.items()):
                yield from self.all(child, f"{path}/{name}" if path else name)

    # --- entries -------------------------------------------------------------------------------------
    def put(self, directory, name, inode):
        directory.entries[name] = inode
        if inode.kind == "d":
            inode.parent, inode.name = directory, name
        directory.touch(self.now)
        self.changed(directory)
        self.renamed(directory, name)

    def take(self, directory, name):
        directory.touch(self.now)
        self.changed(directory)
        self.renamed(directory, name)
        return directory.entries.pop(name)

    def unlinked(self, inode):
        if inode.kind == "d":
            return
        inode.nlink -= 1
        inode.ctime_from = self.now
        self.changed(inode)

    def new(self, who, directory, name, kind, mode):
        if not directory.may(who, W | X):
            fail(errno.EACCES)
        gid = directory.gid if directory.mode & ISGID else who.gid
        if kind == "d" and directory.mode & ISGID:
            mode |= ISGID
        inode = Inode(kind, mode, who.uid, gid, self.now)
        self.put(directory, name, inode)
        self.changed(inode)
        return inode

    def new_name(self, who, path):
        directory, name, inode = self.walk(who, path)
        return (directory, name) if inode is None else fail(errno.EEXIST)

    @staticmethod
    def may_delete(who, directory, victim, as_dir):
        """as_dir: it must be a directory; False: must not be; None: either."""
        if not directory.may(who, W | X):
            fail(errno.EACCES)
        if directory.mode & ISVTX and who.uid not in (0, directory.uid, victim.uid):
            fail(errno.EPERM)
        if as_dir is True and victim.kind != "d":
            fail(errno.ENOTDIR)
        if as_dir is False and victim.kind == "d":
            fail(errno.EISDIR)

    def mkdir(self, who, path, mode):
        self.new(who, *self.new_name(who, path), "d", mode & 0o1777 & ~UMASK)

    def symlink(self, who, target, path):
        directory, name = self.new_name(who, path)
        self.new(who, directory, name, "l", 0o777).target = target

    def link(self, who, old, new):
        inode = self.existing(who, old)[2]
        directory, name = self.new_name(who, new)
        if not directory.may(who, W | X):
            fail(errno.EACCES)
        if inode.kind == "d":
            fail(errno.EPERM)
        inode.nlink += 1
        inode.ctime_from = self.now
        self.changed(inode)
        self.put(directory, name, inode)

    def unlink(self, who, path):
        directory, name, inode = self.existing(who, path)
        self.may_delete(who, directory, inode, False)
        self.unlinked(self.take(directory, name))

    def rmdir(self, who, path):
        directory, name, inode = self.existing(who, path)
        self.may_delete(who, directory, inode, True)
        if inode.entries:
            fail(errno.ENOTEMPTY)
        self.take(directory, name)

    def rename(self, who, old, new, flags):
        try:
            from_dir, from_name, inode = self.walk(who, old)
        except OSError as e:    # the new name's directory is looked for before the old name in its own
            if e.errno == errno.ENAMETOOLONG:
                self.walk(who, new)
            raise
        try:
            to_dir, to_name, over = self.walk(who, new)
        except OSError as e:    # the directories are looked for before the names in them
            if inode is None and e.errno == errno.ENAMETOOLONG:
                fail(errno.ENOENT)
            raise
        if inode is None:
            fail(errno.ENOENT)
        if over and flags & NOREPLACE:
            fail(errno.EEXIST)
        if not over and flags & EXCHANGE:
            fail(errno.ENOENT)
        if self.holds(inode, to_dir):
            fail(errno.EINVAL)
        if over and self.holds(over, from_dir):
            fail(errno.EINVAL if flags & EXCHANGE else errno.ENOTEMPTY)
        if inode is over:
            return
        self.may_delete(who, from_dir, inode, None)
        if over is None:
            if not to_dir.may(who, W | X):
                fail(errno.EACCES)
        else:
            self.may_delete(who, to_dir, over, None if flags & EXCHANGE else inode.kind == "d")
        if from_dir is not to_dir:
            for moves in (inode, over if flags & EXCHANGE else None):
                if moves and moves.kind == "d" and not moves.may(who, W):
                    fail(errno.EACCES)
        if over and not flags & EXCHANGE and over.kind == "d" and over.entries:
            fail(errno.ENOTEMPTY)
        self.move(from_dir, from_name, to_dir, to_name, flags & EXCHANGE)

    @staticmethod
    def holds(inode, directory):
        """Is `directory` the inode or below it?"""
        while directory is not None and directory is not inode:
            directory = directory.parent
        return directory is inode

    def move(self, from_dir, from_name, to_dir, to_name, exchange):
        inode, over = self.take(from_dir, from_name), None
        if to_name in to_dir.entries:
            over = self.take(to_dir, to_name)
            if not exchange:
                self.unlinked(over)
        self.put(to_dir, to_name, inode)
        self.changed(inode)
        if exchange:
            self.put(from_dir, from_name, over)
            self.changed(over)

    # --- attributes ----------------------------------------------------------------------------------
    def modified(self, inode):
        inode.ctime_from = self.now
        self.changed(inode)

    def stat(self, who, path, follow):
        return self.existing(who, path, follow)[2]

    def readlink(self, who, path):
        inode = self.existing(who, path)[2]
        return inode.target if inode.kind == "l" else fail(errno.EINVAL)

    def listdir(self, who, path):
        inode = self.existing(who, path, True)[2]
        if inode.kind != "d":
            fail(errno.ENOTDIR)
        if not inode.may(who, R):
            fail(errno.EACCES)
        return sorted(inode.entries)

    def chmod(self, who, path, mode):
        inode = self.existing(who, path, True)[2]
        if who.uid not in (0, inode.uid):
            fail(errno.EPERM)
        inode.mode = mode if who.in_group(inode.gid) else mode & ~ISGID
        self.modified(inode)

    def chown(self, who, path, uid, gid, follow):
        """-1 leaves one of them as it is, not both."""
        inode = self.existing(who, path, follow)[2]
        if who.uid != 0:
            if who.uid != inode.uid or uid not in (-1, inode.uid) or \
                    gid != -1 and gid not in who.groups | {inode.gid}:
                fail(errno.EPERM)
        if inode.kind != "d":
            drop = ISGID if inode.drops_sgid(who) else 0
            inode.mode &= ~(ISUID | drop)
        inode.uid = uid if uid != -1 else inode.uid
        inode.gid = gid if gid != -1 else inode.gid
        self.modified(inode)

    def utimens(self, who, path, times, follow):
        """times: (atime, mtime) in ns, or None for now."""
        inode = self.existing(who, path, follow)[2]
        if who.uid not in (0, inode.uid):
            if times:
                fail(errno.EPERM)
            if not inode.may(who, W):
                fail(errno.EACCES)
        inode.atime, inode.mtime = times or (None, None)
        inode.mtime_from = self.now
        self.modified(inode)

    # --- extended attributes -------------------------------------------------------------------------
    @staticmethod
    def xattr_allowed(who, inode, name, mask):
        if name.startswith("trusted."):
            if who.uid != 0:
                fail(errno.EPERM if mask == W else errno.ENODATA)
            return
        if inode.kind not in "fd":
            fail(errno.EPERM if mask == W else errno.ENODATA)
        if inode.kind == "d" and inode.mode & ISVTX and mask == W and who.uid not in (0, inode.uid):
            fail(errno.EPERM)
        if not inode.may(who, mask):
            fail(errno.EACCES)

    def setxattr(self, who, path, name, value, flags, follow):
        inode = self.existing(who, path, follow)[2]
        self.xattr_allowed(who, inode, name, W)
        if flags == os.XATTR_CREATE and name in inode.xattrs:
            fail(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in inode.xattrs:
            fail(errno.ENODATA)
        inode.xattrs[name] = value
        self.modified(inode)

    def getxattr(self, who, path, name, follow):
        inode = self.existing(who, path, follow)[2]
        self.xattr_allowed(who, inode, name, R)
        return inode.xattrs[name] if name in inode.xattrs else fail(errno.ENODATA)

    def removexattr(self, who, path, name, follow):
        inode = self.existing(who, path, follow)[2]
        self.xattr_allowed(who, inode, name, W)
        if name not in inode.xattrs:
            fail(errno.ENODATA)
        del inode.xattrs[name]
        self.modified(inode)

    def listxattr(self, who, path, follow):
        inode = self.existing(who, path, follow)[2]
        return sorted(n for n in inode.xattrs if who.uid == 0 or not n.startswith("trusted."))

    # --- contents ------------------------------------------------------------------------------------
    def open(self, who, path, flags, mode):
        """The inode. Descriptors are the checker's."""
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        follow = not exclusive and not flags & os.O_NOFOLLOW
        directory, name, inode = self.walk(who, path, follow)
        if inode is None:
            if not flags & os.O_CREAT:
                fail(errno.ENOENT)
            return self.new(who, directory, name, "f", mode & ~UMASK)
        if exclusive:
            fail(errno.EEXIST)
        if inode.kind == "l":
            fail(errno.ELOOP)
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if inode.kind == "d" and (writes or flags & os.O_CREAT):
            fail(errno.EISDIR)
        mask = {os.O_RDONLY: R, os.O_WRONLY: W, os.O_RDWR: R | W}[flags & os.O_ACCMODE]
        if not inode.may(who, mask):
            fail(errno.EACCES)
        if flags & os.O_TRUNC:
            self.resize(who, inode, 0)
        return inode

    def truncate(self, who, path, size):
        inode = self.existing(who, path, True)[2]
        if inode.kind == "d":
            fail(errno.EISDIR)
        if not inode.may(who, W):
            fail(errno.EACCES)
        self.resize(who, inode, size)

    def resize(self, who, inode, size):
        if size != len(inode.data):
            inode.touch(self.now)
        inode.mtime = None
        inode.written_by(who)
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        self.changed(inode)

    def write(self, who, inode, off, data, append=False):
        if append:
            off = len(inode.data)
        inode.data.extend(bytes(max(0, off - len(inode.data))))
        inode.data[off:off + len(data)] = data
        inode.touch(self.now)
        inode.written_by(who)
        self.changed(inode)
        return len(data)

    def fallocate(self, who, inode, mode, off, n):
        if not mode & KEEP_SIZE:
            inode.data.extend(bytes(max(0, off + n - len(inode.data))))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            end = min(off + n, len(inode.data))
            inode.data[off:end] = bytes(max(0, end - off))
        inode.mtime, inode.mtime_from = None, 0
        inode.written_by(who)
        self.changed(inode)

    def copy_range(self, who, source, off, inode, to, n):
        data = bytes(source.data[off:off + n])
        if source is inode and data and off < to + len(data) and to < off + len(data):
            fail(errno.EINVAL)
        if data:
            self.write(who, inode, to, data)
        return len(data)
