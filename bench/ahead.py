"""WAL under load: what the server's archiver needs for a segment when many wait, and what recovery waits for one.

`python3 -B bench/ahead.py --account A --postgresql BIN --pgproof P [--pgbackrest P] [--segments N]` prints two tables.
Pushing: N segments wait, then the tool becomes the archive_command, and the time until the server has marked all of
them as archived is divided by N; rounds go from tool to tool, and the files are marked as waiting again. Getting: a
directory that looks as if a server recovered in it; one call after the other, with a pause in which a server would
replay, and only the calls are timed. pgBackRest runs with archive-async=y and two processes.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time

from measure import CommandFailed, Runner
from servers import Cluster
from tools import Copy, PgBackRest, PgProof


class PgBackRestAsync(PgBackRest):
    def __init__(self, *rest):
        super().__init__(*rest)
        self.name = "pgBackRest, async" + (", encrypted" if self.best else "")

    def options(self):
        return super().options() | {"archive-async": "y"}


class PgProofPlain(PgProof):
    """Neither pushes nor fetches ahead."""

    def __init__(self, *rest):
        super().__init__(*rest)
        self.name = "pgproof, nothing ahead"

    def begin(self):
        super().begin()
        path = f"{self.home}/pgproof.toml"
        with open(path) as lines:
            text = lines.read()
        with open(path, "w") as lines:
            lines.write(text.replace("\n[copy.", '\narchive = { push_ahead = 0, prefetch = "0 MB" }\n\n[copy.', 1))


def write_wal(cluster, count):
    """Names of so many complete segments, of updates all over a table."""
    cluster.program("pgbench", "-i", "-q", "-s", "5", cluster.conninfo)
    first = cluster.sql("select pg_walfile_name(pg_switch_wal() + 16777216)")
    while True:
        current = cluster.sql("select pg_walfile_name(pg_current_wal_lsn())")
        complete = sorted(name for name in os.listdir(os.path.join(cluster.data, "pg_wal"))
                          if len(name) == 24 and first <= name < current)
        if len(complete) >= count:
            return complete[:count]
        cluster.sql("update pgbench_accounts set abalance = (random() * 1e9)::int where random() < 0.3")


def push_all(cluster, tool, names):
    """Seconds until the server has archived all of them."""
    status = os.path.join(cluster.data, "pg_wal", "archive_status")
    time.sleep(2)  # an archiver that was at work notices that the command is another one
    for name in names:
        if os.path.exists(f"{status}/{name}.done"):
            os.rename(f"{status}/{name}.done", f"{status}/{name}.ready")
    started = time.perf_counter()
    cluster.sql(f"alter system set archive_command = $c${tool.archive}$c$")
    cluster.sql("select pg_reload_conf()")
    waiting = list(names)
    while waiting:
        if time.perf_counter() - started > 300:
            raise CommandFailed(f"{len(waiting)} segments still wait")
        waiting = [name for name in waiting if not os.path.exists(f"{status}/{name}.done")]
        time.sleep(0.005)
    elapsed = time.perf_counter() - started
    cluster.sql("alter system set archive_command = 'exit 1'")
    cluster.sql("select pg_reload_conf()")
    time.sleep(6)  # what was left behind ends
    return elapsed


def get_all(cluster, tool, names, pause_s):
    """Seconds of each call."""
    directory = os.path.join(cluster.folder, "recovering")
    shutil.rmtree(directory, ignore_errors=True)
    for folder in ("global", "pg_wal"):
        os.makedirs(os.path.join(directory, folder))
    shutil.copy(os.path.join(cluster.data, "global/pg_control"), os.path.join(directory, "global"))
    shutil.copy(os.path.join(cluster.data, "PG_VERSION"), directory)
    with open(os.path.join(directory, "postmaster.pid"), "w") as lines:
        lines.write(f"{os.getpid()}\n{directory}\n{time.time_ns()}\n")
    if os.geteuid() == 0:
        for at, _, files in os.walk(directory):
            for path in (at, *(os.path.join(at, file) for file in files)):
                shutil.chown(path, cluster.runner.identity["user"], cluster.runner.identity["group"])
    destination = "pg_wal/RECOVERYXLOG"
    seconds = []
    for name in names:
        command = tool.wal_get(name, destination)
        if isinstance(tool, PgBackRest):
            command = [*command[:-3], f"--pg1-path={directory}", *command[-3:]]
        cost = cluster.runner.run(command, directory)
        seconds.append(cost.wall_s)
        with open(os.path.join(directory, destination), "rb") as placed:
            with open(os.path.join(cluster.data, "pg_wal", name), "rb") as original:
                if placed.read() != original.read():
                    raise CommandFailed(f"{tool.name}: {name} came back different")
        time.sleep(pause_s)
    os.unlink(os.path.join(directory, "postmaster.pid"))
    time.sleep(1.5)
    return seconds


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--account", required=True)
    arguments.add_argument("--postgresql", required=True)
    arguments.add_argument("--pgproof", required=True)
    arguments.add_argument("--pgbackrest")
    arguments.add_argument("--segments", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--pause", type=float, default=0.1, help="seconds of replay between two segments")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="pgproof-bench-", dir="/var/tmp") as folder:
        runner = Runner(given.account, {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"})
        if os.geteuid() == 0:
            shutil.chown(folder, given.account)
        cluster = Cluster(runner, given.postgresql, folder, 54329)
        cluster.start()
        try:
            tools = [PgProof(given.pgproof, cluster, runner, f"{folder}/ahead"),
                     PgProofPlain(given.pgproof, cluster, runner, f"{folder}/plain")]
            if given.pgbackrest:
                tools.append(PgBackRestAsync(given.pgbackrest, True, cluster, runner, f"{folder}/rest"))
            copy = Copy(cluster, runner, f"{folder}/cp")
            copy.archive = "sh -c 'cp %p {0}/%f.tmp && sync {0}/%f.tmp && mv {0}/%f.tmp {0}/%f && sync {0}'".format(
                copy.repository)
            tools.append(copy)
            for tool in tools:
                tool.begin()
            cluster.archive_with("exit 1")
            names = write_wal(cluster, given.segments)
            pushed = {tool.name: [] for tool in tools}
            got = {tool.name: [] for tool in tools}
            for number in range(given.rounds):
                for tool in tools:
                    if number > 0:
                        # A new archive: pushing again what is there costs little.
                        shutil.rmtree(tool.home)
                        tool.begin()
                        cluster.archive_with("exit 1")
                    pushed[tool.name].append(push_all(cluster, tool, names) / len(names))
            for tool in tools:
                got[tool.name] = get_all(cluster, tool, names, given.pause)
            print(f"{len(names)} segments, {given.rounds} rounds, load {os.getloadavg()[0]:.1f}")
            for tool in tools:
                seconds = sorted(got[tool.name])
                p95 = seconds[round(0.95 * (len(seconds) - 1))]
                print(f"{tool.name:32} push {statistics.median(pushed[tool.name]) * 1000:6.1f} ms a segment "
                      f"(least {min(pushed[tool.name]) * 1000:.1f})   get p50 {statistics.median(seconds) * 1000:6.1f} "
                      f"ms, p95 {p95 * 1000:.1f} ms")
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
