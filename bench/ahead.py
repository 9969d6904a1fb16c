"""WAL under load: what the server's archiver needs for a segment when many wait, and what recovery waits for one.

`python3 -B bench/ahead.py --account A --postgresql BIN --pgproof P [--pgbackrest P] [--segments N]` prints two
tables; `bench/run` takes the same figures into its own run. Pushing: N segments wait, then the tool becomes the
archive_command, and the time until the server has marked all of them as archived is divided by N; rounds go from tool
to tool, and the files are marked as waiting again. Getting: a directory that looks as if a server recovered in it;
one call after the other, with a pause in which a server would replay, and only the calls are timed. pgBackRest runs
with archive-async=y and two processes. What pgproof leaves behind to work ahead is watched for its memory in rounds
of their own, since watching costs CPU.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time

from measure import CommandFailed, Cost, Runner, Watch
from servers import Cluster
from tools import Copy, PgBackRestAsync, PgProof, PgProofPlain


class DurableCopy(Copy):
    """What a careful shell command as archive_command costs."""

    def __init__(self, *rest):
        super().__init__(*rest)
        self.archive = "sh -c 'cp %p {0}/%f.tmp && sync {0}/%f.tmp && mv {0}/%f.tmp {0}/%f && sync {0}'".format(
            self.repository)


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


def mark_as_waiting(cluster, names):
    status = os.path.join(cluster.data, "pg_wal", "archive_status")
    for name in names:
        if os.path.exists(f"{status}/{name}.done"):
            os.rename(f"{status}/{name}.done", f"{status}/{name}.ready")


def push_all(cluster, tool, names):
    """Seconds until the server has archived all of them."""
    status = os.path.join(cluster.data, "pg_wal", "archive_status")
    time.sleep(2)  # an archiver that was at work notices that the command is another one
    mark_as_waiting(cluster, names)
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
    time.sleep(tool.ends_after_s)
    return elapsed


def recovering_directory(cluster):
    """A directory in which a server seems to recover: this program stands for its postmaster."""
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
    return directory


def get_all(cluster, tool, names, pause_s):
    """Seconds of each call."""
    directory = recovering_directory(cluster)
    destination = "pg_wal/RECOVERYXLOG"
    seconds = []
    for name in names:
        command = tool.wal_get(name, destination)
        if isinstance(tool, PgBackRestAsync):
            command = [*command[:-3], f"--pg1-path={directory}", *command[-3:]]
        cost = cluster.runner.run(command, directory)
        seconds.append(cost.wall_s)
        with open(os.path.join(directory, destination), "rb") as placed:
            with open(os.path.join(cluster.data, "pg_wal", name), "rb") as original:
                if placed.read() != original.read():
                    raise CommandFailed(f"{tool.name}: {name} came back different")
        # As the server does before it asks for the next one.
        os.unlink(os.path.join(directory, destination))
        time.sleep(pause_s)
    os.unlink(os.path.join(directory, "postmaster.pid"))
    time.sleep(1.5)
    return seconds


def begin_again(cluster, tool):
    """A new archive: pushing again what is there costs little."""
    shutil.rmtree(tool.home, ignore_errors=True)
    tool.begin()
    cluster.archive_with("exit 1")


def compare(cluster, tools, segments, rounds, pause_s, take):
    """Calls `take(row, tool, cost)` for each round of pushing (a segment's share of it) and each call of getting.
    Returns the names of the segments, which are marked as waiting."""
    cluster.archive_with("exit 1")
    names = write_wal(cluster, segments)
    for number in range(rounds):
        for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
            begin_again(cluster, tool)
            take("wal push, many wait", tool, Cost(push_all(cluster, tool, names) / len(names)))
    for tool in tools:
        for wall_s in get_all(cluster, tool, names, pause_s):
            take("wal get, prefetched", tool, Cost(wall_s))
    for tool in tools:
        # Not of those that inherit from it.
        if type(tool) is PgProof:
            begin_again(cluster, tool)
            with Watch("push-ahead", tool.home) as pushing:
                wall_s = push_all(cluster, tool, names) / len(names)
            take("wal push, many wait (memory sampled)", tool, Cost(wall_s, peak_rss_mb=pushing.peak_rss_mb))
            with Watch("fetch-ahead", tool.home) as fetching:
                wall_s = statistics.median(get_all(cluster, tool, names[:20], pause_s))
            take("wal get, prefetched (memory sampled)", tool, Cost(wall_s, peak_rss_mb=fetching.peak_rss_mb))
    mark_as_waiting(cluster, names)
    return names


def tools_for(cluster, runner, folder, pgproof, pgbackrest):
    tools = []
    if pgproof != "none":
        tools += [PgProof(pgproof, cluster, runner, f"{folder}/ahead"),
                  PgProofPlain(pgproof, cluster, runner, f"{folder}/plain")]
    if pgbackrest:
        tools.append(PgBackRestAsync(pgbackrest, True, cluster, runner, f"{folder}/rest"))
    return tools + [DurableCopy(cluster, runner, f"{folder}/cp")]


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
    found = {}
    with tempfile.TemporaryDirectory(prefix="pgb.", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        runner = Runner(given.account, {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"})
        if os.geteuid() == 0:
            shutil.chown(folder, given.account)
        cluster = Cluster(runner, given.postgresql, folder, 54329)
        cluster.start()
        try:
            tools = tools_for(cluster, runner, folder, given.pgproof, given.pgbackrest)
            compare(cluster, tools, given.segments, given.rounds, given.pause,
                    lambda row, tool, cost: found.setdefault((row, tool.name), []).append(cost))
        finally:
            cluster.stop()
    print(f"{given.segments} segments, {given.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    for (row, name), costs in found.items():
        ms = sorted(cost.wall_s * 1000 for cost in costs)
        memory = max(cost.peak_rss_mb for cost in costs)
        print(f"{row:38} {name:32} p50 {statistics.median(ms):6.1f} ms, p95 {ms[round(0.95 * (len(ms) - 1))]:.1f} ms"
              + (f", {memory:.0f} MB" if memory else ""))


if __name__ == "__main__":
    main()
