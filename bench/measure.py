"""Runs one command and says what it cost: wall time, CPU of its whole process tree, peak memory of the tree.

Memory is sampled (every 5 ms) only when asked for, because sampling costs CPU on a small machine. It is the sum
of the resident sets of the processes alive at one moment, shared pages counted for each process, and never below
the kernel's own high-water mark of the largest process. (The mark in the command's resource usage is of no use: it
includes this program's own memory between fork and exec.) What a command leaves behind is in no tree: `Watch` finds it
by the words of its command line.
"""

import os
import pwd
import subprocess
import threading
import time
from dataclasses import dataclass

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    wall_s: float
    cpu_s: float | None = None  # None: not measured
    peak_rss_mb: float = 0.0  # 0: not sampled
    output: str = ""
    written_mb: float = 0.0  # what the command's processes gave the kernel to write, to the page cache or past it


class CommandFailed(Exception):
    """The first line says it in short; what the command printed follows."""


def descendants(pid):
    """The process and all that it started and that still run."""
    found = [pid]
    for each in found:
        try:
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children") as children:
                    found.extend(int(child) for child in children.read().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def resident_bytes(pid):
    """(sum of the tree's resident sets, the largest high-water mark in it)"""
    total = highest = 0
    for each in descendants(pid):
        try:
            with open(f"/proc/{each}/status") as status:
                for line in status:
                    if line.startswith("VmHWM:"):
                        highest = max(highest, int(line.split()[1]) * 1024)
                    elif line.startswith("VmRSS:"):
                        total += int(line.split()[1]) * 1024
                        break
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total, highest


def tree_cpu_s(pid):
    """CPU seconds of a process and of all its children, ended ones included."""
    ticks = 0
    for each in descendants(pid):
        try:
            with open(f"/proc/{each}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
            ticks += sum(int(value) for value in fields[11:15])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / TICKS_PER_SECOND


def high_water_mark_mb(pid):
    """The most memory that a process has had; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM:")), 0.0)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


class Watch:
    """While it is open: the most memory of any process whose command line holds all of these words."""

    def __init__(self, *words):
        self.words = [word.encode() for word in words]
        self.peak_rss_mb = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self.ended.wait(0.02):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/cmdline", "rb") as words:
                        line = words.read()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if all(word in line for word in self.words):
                    self.peak_rss_mb = max(self.peak_rss_mb, high_water_mark_mb(pid))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


class Runner:
    """Runs commands as one account, in an environment of its own."""

    def __init__(self, account, environment):
        self.environment = environment
        self.identity = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam(account)
            self.identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def run(self, command, cwd, server_pid=None, memory=False):
        """Raises CommandFailed with the command's own words when it does not end with 0."""
        server_before_s = tree_cpu_s(server_pid) if server_pid else 0.0
        with open(os.path.join(cwd, ".output"), "w+b") as output:
            started = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=cwd, env=self.environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, **self.identity)
            peak = [0]
            ended = threading.Event()
            if memory:
                def sample():
                    while not ended.wait(0.005):
                        peak[0] = max(peak[0], *resident_bytes(process.pid))
                sampler = threading.Thread(target=sample)
                sampler.start()
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            ended.set()
            if memory:
                sampler.join()
            output.seek(0)
            text = output.read().decode(errors="replace")
        if process.returncode != 0:
            lines = [line for line in text.splitlines() if line.strip()] or ["it printed nothing"]
            told = next((line for line in lines if "error" in line.lower()), lines[-1])
            raise CommandFailed(f"exit code {process.returncode}: {told}\n{' '.join(command)}\n{text[-4000:]}")
        server_s = (tree_cpu_s(server_pid) - server_before_s) if server_pid else 0.0
        # getrusage(2): blocks of 512 bytes, those of children that were waited for included.
        written_mb = usage.ru_oublock * 512 / 1e6
        return Cost(wall_s, usage.ru_utime + usage.ru_stime + server_s, peak[0] / 1e6, text, written_mb)
