"""usage: postgres.py reads|sorts ROWS CLIENTS

A PostgreSQL server over a table of so many rows; its clients, all at the same time, each read the whole table, or sort it in memory.
"""
import glob
import os
import shutil
import subprocess
import sys

import lab

way, rows, clients = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = os.path.join(os.getcwd(), "data")
versions = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
programs = os.pathsep.join([*versions[-1:], os.environ["PATH"]])
as_user = []
if os.geteuid() == 0:
    # PostgreSQL refuses to be root.
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    shutil.chown(os.getcwd(), "nobody", "nogroup")


def psql(**options):
    command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--host", os.getcwd(), "--dbname", "postgres"]
    return subprocess.Popen([*as_user, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def asked(session, command):
    """The answer, one line, to a command that has one."""
    session.stdin.write(command + "\n")
    session.stdin.flush()
    return session.stdout.readline().strip()


def ended(session):
    session.stdin.close()
    if session.wait(lab.PATIENCE) != 0:
        sys.exit(f"psql ended with {session.returncode}")


environment = dict(os.environ, PATH=programs, LC_ALL="C")
make = ["initdb", "--pgdata", folder, "--no-sync", "--auth", "trust"]
subprocess.run([*as_user, *make], env=environment, check=True, stdout=subprocess.DEVNULL)
settings = ["listen_addresses=", f"unix_socket_directories={os.getcwd()}", "shared_buffers=256MB", "work_mem=512MB", "fsync=off"]
settings += ["max_parallel_workers_per_gather=0", "autovacuum=off", "jit=off"]
# Who changes its user loses what was to end it with its parent: the server asks for that once more.
command = [*as_user, "setpriv", "--pdeathsig", "KILL", "postgres", "-D", folder, *(word for setting in settings for word in ("-c", setting))]
server = lab.started(command, env=environment, stderr=subprocess.PIPE, text=True)
lab.wait_for(server.stderr, "ready to accept connections")
first = psql(env=environment)
asked(first, f"create table rows as select n, n::text || ' and more' as text from generate_series(1, {rows}) n; select 1;")
ended(first)
work = {
    "reads": "select sum(n), max(length(text)) from rows;",
    "sorts": "select sum(n), max(length(text)) from (select n, text from rows order by text offset 0) sorted;",
}
sessions = [psql(env=environment) for _ in range(clients)]
for session in sessions:
    asked(session, "select 1;")
for session in sessions:
    session.stdin.write(work[way] + "\n")
    session.stdin.flush()
(answer,) = {session.stdout.readline().strip() for session in sessions}
together = lab.together(server.pid)
for session in sessions:
    ended(session)
server.send_signal(lab.signal.SIGINT)
server.stderr.read()
if server.wait(lab.PATIENCE) != 0:
    sys.exit(f"postgres ended with {server.returncode}")
lab.tell(answer=answer, together_bytes=together)
