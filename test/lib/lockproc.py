#!/usr/bin/env python3
"""A process that does what it is told with files and locks: one JSON list a line on stdin, one JSON
answer a line on stdout. Names stand for descriptors. An error is answered as {"errno": "EAGAIN"}."""
import errno
import fcntl
import json
import os
import signal
import struct
import sys

FLOCK = "hh4xqqi4x"
GETLK, SETLK, SETLKW = 5, 6, 7
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
TYPES = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}
NAMES = {v: k for k, v in TYPES.items()}
fds = {}
busy = False


class Interrupted(Exception):
    pass


def on_signal(*_):
    if busy:
        raise Interrupted


def lock(name, kind, start=0, length=0, wait=False, ofd=False):
    cmd = (OFD_SETLKW if wait else OFD_SETLK) if ofd else (SETLKW if wait else SETLK)
    fcntl.fcntl(fds[name], cmd, struct.pack(FLOCK, TYPES[kind], os.SEEK_SET, start, length, 0))


def getlk(name, kind, start=0, length=0, ofd=False):
    got = fcntl.fcntl(fds[name], OFD_GETLK if ofd else GETLK,
                      struct.pack(FLOCK, TYPES[kind], os.SEEK_SET, start, length, 0))
    kind, _, start, length, pid = struct.unpack(FLOCK, got)
    return None if kind == fcntl.F_UNLCK else [NAMES[kind], start, length, pid]


def flock(name, kind, wait=False):
    op = {"r": fcntl.LOCK_SH, "w": fcntl.LOCK_EX, "u": fcntl.LOCK_UN}[kind]
    fcntl.flock(fds[name], op if wait else op | fcntl.LOCK_NB)


def open_(name, path, flags=os.O_RDWR):
    fds[name] = os.open(path, flags, 0o644)


def close(name):
    os.close(fds.pop(name))


def dup(name, other):
    fds[other] = os.dup(fds[name])


def read(name, length=65536, off=0):
    return os.pread(fds[name], length, off).decode()


def write(name, text, off=0):
    return os.pwrite(fds[name], text.encode(), off)


def fork():
    """A child that holds all descriptors until stdin of ours ends; its pid."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def add(path, rounds, how):
    """Adds 1 to the number in a file, `rounds` times, under a lock of it."""
    for i in range(rounds):
        fds["add"] = os.open(path, os.O_RDWR)
        if how == "flock":
            flock("add", "w", True)
        else:
            lock("add", "w", 0, 0 if how == "all" else 8, True, how == "ofd")
        n = int(os.pread(fds["add"], 8, 0) or b"0")
        os.pwrite(fds["add"], b"%08d" % (n + 1), 0)
        if i % 3 == 0:
            (flock if how == "flock" else lock)("add", "u")
        os.close(fds["add"])


def main():
    global busy
    functions = {f.__name__.rstrip("_"): f for f in (lock, getlk, flock, open_, close, dup, read, write,
                                                     fork, add)}
    functions["fsync"] = lambda name: os.fsync(fds[name])
    functions["pid"] = os.getpid
    functions["catch"] = lambda: signal.signal(signal.SIGUSR1, on_signal) and None
    for line in sys.stdin:
        what, *args = json.loads(line)
        try:
            busy = True
            value = functions[what](*args)
            busy = False
            answer = {"ok": value}
        except Interrupted:
            answer = {"errno": "EINTR"}
        except OSError as e:
            name = errno.errorcode.get(e.errno, str(e.errno))
            answer = {"errno": "EDEADLK" if name == "EDEADLOCK" else name}
        busy = False
        print(json.dumps(answer), flush=True)


main()
