"""The throw-away cluster that is backed up, and its data: pgbench's tables, JSON rows, optionally many tables.

Every page is checksummed; nothing but the measurements runs in it (no autovacuum, no timed checkpoint). Its
archive_command is whatever `archive_with` named last.
"""

import os
import struct
import time

PAGE_BYTES = 8192

# Rows as an application writes them: words, numbers, times, an identifier that does not compress.
JSON_ROWS = """
insert into documents (id, version, body)
select i, 0, jsonb_build_object(
  'order', md5(random()::text || i),
  'customer', jsonb_build_object(
    'id', (random() * 200000)::int,
    'name', initcap(w[1 + (random() * 39)::int]) || ' ' || initcap(w[1 + (random() * 39)::int]),
    'email', w[1 + (random() * 39)::int] || (random() * 9999)::int || '@example.org'),
  'placed_at', timestamptz '2026-01-01' + random() * interval '300 days',
  'state', (array['open', 'paid', 'shipped', 'returned'])[1 + (random() * 3)::int],
  'lines', (select jsonb_agg(jsonb_build_object(
              'article', (random() * 90000)::int, 'quantity', 1 + (random() * 8)::int,
              'price', round((random() * 400)::numeric, 2), 'text', w[1 + ((random() * 39)::int + n + i) % 40]))
            from generate_series(1, 2 + i % 4) n),
  'note', (select string_agg(w[1 + ((random() * 39)::int + n + i) % 40], ' ') from generate_series(1, 12) n))
from generate_series({first}, {last}) i,
  (select string_to_array('amber anchor basket bridge candle carbon copper cotton delta ember falcon forest garden '
    'glacier harbor hollow island jacket kettle ladder lantern marble meadow nickel orange paper pepper quartz '
    'river saddle silver summer timber tunnel umbrella valley velvet walnut winter yellow', ' ') as w) words;
"""


class Cluster:
    def __init__(self, runner, programs, folder, port):
        self.runner = runner
        self.programs = programs
        self.folder = folder
        self.port = port
        self.data = os.path.join(folder, "data")
        self.sockets = os.path.join(folder, "s")
        self.archive_script = os.path.join(folder, "archive.sql")
        self.conninfo = f"host={self.sockets} port={port} user=postgres dbname=postgres"

    def program(self, name, *arguments, **options):
        return self.runner.run([os.path.join(self.programs, name), *arguments], self.folder, **options)

    def start(self):
        self.runner.run(["mkdir", "-p", self.sockets], self.folder)
        self.program("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-k", "-N",
                     "--locale=C", "-E", "UTF8")
        settings = {
            "listen_addresses": "", "unix_socket_directories": self.sockets, "port": self.port,
            "shared_buffers": "256MB", "max_wal_size": "16GB", "checkpoint_timeout": "1h", "autovacuum": "off",
            "wal_keep_size": "8GB", "synchronous_commit": "off", "archive_mode": "on",
            "archive_command": "/bin/true", "maintenance_work_mem": "128MB", "max_connections": 20}
        with open(os.path.join(self.data, "postgresql.conf"), "a") as configuration:
            for name, value in settings.items():
                configuration.write(f"{name} = '{value}'\n")
        with open(self.archive_script, "w") as script:
            script.write("alter system set archive_command = :'command';\nselect pg_reload_conf() \\g /dev/null\n")
        self.program("pg_ctl", "-D", self.data, "-l", os.path.join(self.folder, "log"), "-w", "-t", "300", "start")

    def stop(self):
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            self.program("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    @property
    def pid(self):
        with open(os.path.join(self.data, "postmaster.pid")) as lines:
            return int(lines.readline())

    def sql(self, text):
        cost = self.program("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.conninfo, "-c", text)
        return cost.output.strip()

    def archive_with(self, command):
        """From now on this is the archive_command; None: nothing is kept."""
        self.program("psql", "-X", "-q", "-d", self.conninfo, "-v", f"command={command or '/bin/true'}",
                     "-f", self.archive_script)
        time.sleep(0.5)

    def size_bytes(self):
        return int(self.sql("select sum(pg_database_size(oid)) from pg_database"))

    def fill(self, pgbench_scale, json_mb, tables):
        """fillfactor 90, so that an update finds room in its own page, as it does in a database in use."""
        if pgbench_scale:
            self.program("pgbench", "-i", "-q", "-s", str(pgbench_scale), "-F", "90", self.conninfo)
        if json_mb:
            self.sql("create table documents (id bigint primary key, version int, body jsonb) with (fillfactor = 90)")
            first, step = 1, 20000
            while int(self.sql("select pg_table_size('documents')")) < json_mb * 1_000_000:
                self.sql(JSON_ROWS.format(first=first, last=first + step - 1))
                first += step
        for first in range(0, tables, 500):
            self.sql(f"do $$ begin for i in {first}..{min(first + 500, tables) - 1} loop "
                     "execute format('create table t%s (id int primary key, note text)', i); "
                     "execute format('insert into t%s values (1, md5(random()::text))', i); end loop; end $$")
        # Small tables stay as they are after their first row: vacuum would give each a visibility map.
        self.sql("analyze" if tables and not pgbench_scale else "vacuum (analyze)")
        self.sql("checkpoint")

    def change_pages(self, round_number, every):
        """Updates one row in every `every`-th page of the big tables; returns (changed pages, all pages) as the
        pages' LSNs tell it."""
        before = int(self.sql("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
        for table, column in (("pgbench_accounts", "abalance"), ("documents", "version")):
            if self.sql(f"select to_regclass('{table}')") == "":
                continue
            self.sql(f"update {table} set {column} = {column} + 1 where ctid = any (array("
                     f"select ('(' || b || ',{round_number + 2})')::tid from generate_series({round_number}, "
                     f"pg_relation_size('{table}') / {PAGE_BYTES} - 1, {every}) b))")
        self.sql("checkpoint")
        changed = total = 0
        for folder, _, names in os.walk(os.path.join(self.data, "base")):
            for name in names:
                if not name.replace(".", "").isdigit():
                    continue
                with open(os.path.join(folder, name), "rb", buffering=0) as relation:
                    while chunk := relation.read(128 * PAGE_BYTES):
                        for at in range(0, len(chunk) - PAGE_BYTES + 1, PAGE_BYTES):
                            high, low = struct.unpack_from("<II", chunk, at)
                            total += 1
                            changed += (high << 32 | low) > before
        return changed, total

    def write_wal(self, segments):
        """Runs pgbench until that many more segments are complete; returns their paths, oldest first."""
        first = self.sql("select pg_walfile_name(pg_switch_wal() + 16777216)")
        if self.sql("select to_regclass('pgbench_accounts')") == "":
            self.program("pgbench", "-i", "-q", "-s", "5", self.conninfo)
        folder = os.path.join(self.data, "pg_wal")
        while True:
            current = self.sql("select pg_walfile_name(pg_current_wal_lsn())")
            ready = sorted(name for name in os.listdir(folder) if len(name) == 24 and first <= name < current)
            if len(ready) >= segments:
                return [os.path.join(folder, name) for name in ready[:segments]]
            self.program("pgbench", "-c", "4", "-j", "2", "-T", "5", "-n", self.conninfo)

    def relation_files(self, data=None):
        """The sizes of all relation files in a data directory, to hold a restored one against this one."""
        data = data or self.data
        found = {}
        for folder, _, names in os.walk(os.path.join(data, "base")):
            for name in names:
                if name.split("_")[0].replace(".", "").isdigit():
                    path = os.path.join(folder, name)
                    found[os.path.relpath(path, data)] = os.path.getsize(path)
        return found
