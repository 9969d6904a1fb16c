"""Drills: restore, start a server, replay some hundred MB of WAL to a time, until the copy stands there and accepts a
session. pgproof's own count of it (`rto_seconds`: the checks are apart) against pgBackRest, which restores, and fetches
the WAL with its own restore_command, ahead; its server runs with production's settings, as it does in the hands of
whoever restores with it.

All tools archive the same WAL at once. The repositories are not in the page cache when a drill begins.
"""

import dataclasses
import json
import os
import shutil
import time

from measure import CommandFailed
from rounds import say
from tools import PgBackRestAsync, PgProof

ROW = "drill to a time, checks apart"
PORT = 54400


def wait_until_archived(cluster, name):
    end = time.monotonic() + 300
    while cluster.sql("select coalesce(last_archived_wal, '') from pg_stat_archiver") < name:
        if time.monotonic() > end:
            raise CommandFailed(f"{name} was not archived within five minutes")
        time.sleep(0.2)


def load_until_time(cluster, segments):
    """Runs pgbench for so many segments of WAL; a time behind all of it, as SQL has it. Archived WAL is behind that."""
    cluster.write_wal(segments)
    at = cluster.sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'")
    time.sleep(0.1)
    cluster.program("pgbench", "-c", "1", "-t", "50", "-n", cluster.conninfo)
    last = cluster.sql("select pg_walfile_name(pg_current_wal_lsn())")
    cluster.sql("select pg_switch_wal()")
    wait_until_archived(cluster, last)
    return at


def read_json(output):
    """The document in what a command printed, its notices apart."""
    at = output.find("\n{\n") + 1 if not output.startswith("{") else 0
    return json.JSONDecoder().raw_decode(output[at:])[0]


def drills(bench, cluster, segments, rounds):
    say(f"Drills: {segments} segments of WAL, {rounds} rounds")
    tools = []
    if bench.arguments.pgproof != "none":
        tools.append(PgProof(bench.arguments.pgproof, cluster, bench.runner, os.path.join(cluster.folder, "pd")))
    if bench.arguments.pgbackrest:
        tools.append(PgBackRestAsync(bench.arguments.pgbackrest, True, cluster, bench.runner,
                                     os.path.join(cluster.folder, "rd")))
    tools = [tool for tool in tools if bench.begin(tool)]
    try:
        cluster.archive_with(" && ".join(tool.archive for tool in tools))
        for tool in tools:
            bench.runner.run(tool.full, cluster.folder)
        at = load_until_time(cluster, segments)
        cluster.archive_with(None)
        for number in range(rounds):
            for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
                tool.forget_cache()
                drill_of_pgproof(bench, tool, at) if isinstance(tool, PgProof) else recovery(bench, tool, at)
    except CommandFailed as error:
        bench.measurements.failed(ROW, tools[0], error)
    finally:
        cluster.archive_with(None)
        for tool in tools:
            shutil.rmtree(tool.home, ignore_errors=True)


def drill_of_pgproof(bench, tool, at):
    """Without the checks that a profile adds; those that belong to every drill are made, and are apart."""
    tool.configure("drill.measured", "[drill.measured]\nchecks = []\n")
    directory = os.path.join(tool.home, "drills")
    bench.runner.run(["mkdir", "-p", directory], tool.cluster.folder)
    cost = bench.measure("drill to a time, the whole command", tool, tool.drill_to(at, directory))
    if cost is None:
        return
    document = read_json(cost.output)
    if document.get("rto_seconds") is None:
        bench.measurements.failed(ROW, tool, CommandFailed(f"the drill reached nothing: {document.get('reasons')}"))
        return
    bench.measurements.add(ROW, tool, dataclasses.replace(cost, wall_s=document["rto_seconds"]))


def recovery(bench, tool, at):
    """Restores into a new directory, and ends its server once it stands at the time."""
    into = os.path.join(tool.home, "drilled")
    sockets = os.path.join(tool.home, "s")
    bench.runner.run(["mkdir", "-p", sockets], tool.cluster.folder)
    options = f"-c archive_mode=off -c port={PORT} -c unix_socket_directories={sockets}"
    conninfo = f"host={sockets} port={PORT} user=postgres dbname=postgres"
    try:
        bench.measure(ROW, tool, tool.recover_to(into, at, (options, conninfo)))
    finally:
        if os.path.exists(os.path.join(into, "postmaster.pid")):
            tool.cluster.program("pg_ctl", "-D", into, "-m", "immediate", "-w", "stop")
        shutil.rmtree(into, ignore_errors=True)
