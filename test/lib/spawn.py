"""Starts processes for a test that has files of a mount open.

Between fork and exec a child closes the descriptors that it got from its parent, and a close() of a file
on a FUSE mount is a request to the daemon (FLUSH), which may have to wait for Redis. A test that has such
files open and starts the very Redis that the daemon waits for would wait for itself. No flag helps:
close-on-exec closes too. So a small process, started before there is any mount, starts all others;
the descriptors that they are to have are sent to it.

    p = spawn.Process(["redis-server", ...], stdout=log)     # like subprocess.Popen, with what tests need
    p = spawn.run([...], input=b"...", timeout=60)           # like subprocess.run with output caught
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading

DEVNULL, PIPE = subprocess.DEVNULL, subprocess.PIPE


# --- The small process ---------------------------------------------------------------------------------


def serve(sock):
    """Answers requests until the test has ended. What it started stays, as a child of subprocess would."""
    children = {}
    while True:
        _, fds, _, _ = socket.recv_fds(sock, 1, 4)
        if not fds:
            return
        with open(fds[0], "rb") as f:
            request = json.load(f)
        reply = {"seq": request["seq"]}
        try:
            if "reap" in request:
                reply["status"] = children.pop(request["reap"]).wait()
            else:
                p = subprocess.Popen(request["args"], stdin=fds[1], stdout=fds[2], stderr=fds[3],
                                     env=request["env"], cwd=request["cwd"], umask=request["umask"],
                                     start_new_session=request["session"])
                children[p.pid] = p
                reply["pid"] = p.pid
        except OSError as e:
            reply["errno"], reply["error"] = e.errno, f"{e.strerror}: {e.filename}"
        for fd in fds[1:]:
            os.close(fd)
        sock.sendall(json.dumps(reply).encode() + b"\n")


# --- The test's side -----------------------------------------------------------------------------------


class Spawner:
    def __init__(self):
        self.lock, self.seq = threading.Lock(), 0
        self.sock, theirs = socket.socketpair()
        with theirs:
            subprocess.Popen([sys.executable, "-E", "-S", os.path.abspath(__file__), str(theirs.fileno())],
                             pass_fds=[theirs.fileno()], stdin=DEVNULL, stdout=DEVNULL, cwd="/",
                             start_new_session=True)
        self.replies = self.sock.makefile("rb")

    def ask(self, request, fds=()):
        with self.lock:
            self.seq += 1
            body = os.memfd_create("spawn")
            try:
                with open(body, "wb", closefd=False) as f:
                    f.write(json.dumps({**request, "seq": self.seq}).encode())
                os.lseek(body, 0, os.SEEK_SET)
                socket.send_fds(self.sock, [b"r"], [body, *fds])
            finally:
                os.close(body)
            while True:
                line = self.replies.readline()
                if not line:
                    raise RuntimeError("the process that starts others has ended")
                reply = json.loads(line)
                if reply["seq"] == self.seq:  # not one whose asker was interrupted by a signal
                    break
        if "error" in reply:
            raise OSError(reply["errno"], reply["error"])
        return reply


_first = threading.Lock()
_spawner = None


def spawner():
    """Started with the first process of a test, which is before its first mount."""
    global _spawner
    with _first:
        if _spawner is None:
            _spawner = Spawner()
    return _spawner


def text(x):
    return os.fsdecode(x) if isinstance(x, (bytes, os.PathLike)) else str(x)


def here():
    try:
        return os.getcwd()
    except OSError:
        return "/"


def current_umask():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1], 8) for line in f if line.startswith("Umask"))


class Process:
    """A running process. stdin, stdout, stderr: None (as ours), DEVNULL, a descriptor or a file; stdin
    may be PIPE."""

    def __init__(self, args, stdin=None, stdout=None, stderr=None, env=None, start_new_session=False):
        self.args, self.returncode, self.stdin = args, None, None
        env = os.environ if env is None else env
        request = {"args": [text(a) for a in args], "env": {text(k): text(v) for k, v in env.items()},
                   "cwd": here(), "umask": current_umask(), "session": start_new_session}
        with contextlib.ExitStack() as stack:
            def own(fd):
                stack.callback(os.close, fd)
                return fd
            null = own(os.open("/dev/null", os.O_RDWR))

            def descriptor(x, default):
                return default if x is None else null if x == DEVNULL else \
                    x if isinstance(x, int) else x.fileno()
            if stdin == PIPE:
                theirs, ours = os.pipe()
                own(theirs)
                self.stdin = open(ours, "wb", buffering=0)
                stdin = theirs
            reply = spawner().ask(request, [descriptor(stdin, 0), descriptor(stdout, 1),
                                            descriptor(stderr, 2)])
        self.pid = reply["pid"]
        # It is not reaped before we ask for it, so this is the process that was meant.
        self.pidfd = os.pidfd_open(self.pid)

    def poll(self):
        return self._ended(0)

    def _ended(self, milliseconds):
        if self.returncode is None:
            events = select.poll()
            events.register(self.pidfd, select.POLLIN)
            if not events.poll(milliseconds):
                return None
            self.returncode = spawner().ask({"reap": self.pid})["status"]
            os.close(self.pidfd)
            if self.stdin:
                self.stdin.close()
        return self.returncode

    def wait(self, timeout=None):
        if self._ended(None if timeout is None else max(0, timeout) * 1000) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(args, env=None, input=None, timeout=None):
    """Runs it to its end. The result has returncode, stdout and stderr (bytes)."""
    with contextlib.ExitStack() as stack:
        def memory(name):
            return stack.enter_context(open(os.memfd_create(name), "w+b"))
        out, err = memory("stdout"), memory("stderr")
        given = DEVNULL
        if input is not None:
            given = memory("stdin")
            given.write(input)
            given.seek(0)
        p = Process(args, stdin=given, stdout=out, stderr=err, env=env)
        try:
            p.wait(timeout)
        except BaseException:
            p.kill()
            p.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(args, p.returncode, out.read(), err.read())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as s:
        serve(s)
