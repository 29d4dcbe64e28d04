"""Moments in which the machine itself stood still.

Redis times its calls by the clock, so on a shared machine a call's time also has the turns of other
processes and of other machines on the same host. Redis gets the first out of the way (real-time priority: in
use it has a machine of its own); the second is watched: one process a core, of a higher priority
still, sleeps a millisecond at a time and notes when it woke up late. A call that took long while the
machine stood still as long says nothing about the call."""
import ctypes
import multiprocessing
import os
import time

TICK, LATE = 0.001, 0.003


def _watch(cpu, stop, out):
    os.sched_setaffinity(0, {cpu})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
    ctypes.CDLL(None).mlockall(3)
    seen = []
    before = time.monotonic()
    while not stop.is_set():
        time.sleep(TICK)
        now = time.monotonic()
        if now - before > TICK + LATE:
            seen.append((time.time(), now - before))
        before = now
    out.put(seen)


class Stalls:
    """Watches from begin() to end(); without the right to, `watching` is False and nothing is seen."""

    def begin(self, redis):
        self.seen, self._procs, self.watching = [], [], False
        try:
            os.sched_setscheduler(redis.proc.pid, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            return
        self.watching, self._since = True, time.monotonic()
        ctx = multiprocessing.get_context("fork")
        self._stop, self._out = ctx.Event(), ctx.Queue()
        for cpu in sorted(os.sched_getaffinity(0)):
            p = ctx.Process(target=_watch, args=(cpu, self._stop, self._out), daemon=True)
            p.start()
            self._procs.append(p)

    def end(self):
        if self.watching:
            self._stop.set()
            for _ in self._procs:
                self.seen += self._out.get()
            for p in self._procs:
                p.join()
            self.watched = time.monotonic() - self._since

    def explains(self, second, seconds):
        """Would a call that ended in this second (unix time) and took so long have been one of 10 ms
        at most, had the machine not stood still in that second?"""
        return any(second - 0.01 <= at <= second + 1.01 and seconds - late <= 0.010
                   for at, late in self.seen)
