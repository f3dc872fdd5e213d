#!/usr/bin/env bash
# Ceph's S3 server on one machine, without systemd, in memory: a monitor, one OSD and radosgw below one folder. For tests, never for data.
#
#   apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
#   infra/local/radosgw.sh start [FOLDER]     prints what to export; the default folder is a temporary one
#   infra/local/radosgw.sh stop FOLDER        ends what it started, by pid, and removes the folder
set -euo pipefail

command=${1:-}
folder=${2:-}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

stop() {
  for daemon in radosgw osd mon; do
    [ -f "$folder/$daemon.pid" ] || continue
    pid=$(cat "$folder/$daemon.pid")
    # A pid may have been given to another process since: ours was started with this folder's configuration.
    tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$folder/ceph.conf" || continue
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do [ -e "/proc/$pid" ] || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  rm -rf "$folder"
}

# Starts a daemon in the background and keeps its pid.
run() {
  local name=$1
  shift
  nohup "$@" -c "$folder/ceph.conf" -f > "$folder/$name.out" 2>&1 < /dev/null &
  echo $! > "$folder/$name.pid"
}

# Waits until a command succeeds; shows the log of a daemon if it never does.
wait_for() {
  local name=$1
  shift
  for _ in $(seq 120); do
    "$@" > /dev/null 2>&1 && return
    [ -e "/proc/$(cat "$folder/$name.pid")" ] || break
    sleep 0.5
  done
  echo "$name does not answer:" >&2
  tail -n 20 "$folder/$name.out" "$folder/$name.log" >&2 || true
  stop
  exit 1
}

start() {
  folder=${folder:-$(mktemp -d -t mtv-radosgw-XXXXXX)}
  mkdir -p "$folder/mon" "$folder/osd"
  folder=$(realpath "$folder")
  fsid=$(cat /proc/sys/kernel/random/uuid)
  monitor=$(free_port)
  gateway=$(free_port)
  cat > "$folder/ceph.conf" << CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$monitor]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = $folder
admin socket = $folder/\$name.asok
log file = $folder/\$type.log
crash dir = $folder
keyring = $folder/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon allow pool delete = true
mon data = $folder/mon
mon data avail crit = 1
osd data = $folder/osd
osd objectstore = memstore
memstore device bytes = 8589934592
rgw frontends = beast endpoint=127.0.0.1:$gateway
rgw enable ops log = false
CONF
  key() { ceph-authtool "$folder/keyring" --gen-key -n "$@" > /dev/null; }
  ceph-authtool --create-keyring "$folder/keyring" > /dev/null
  key mon. --cap mon 'allow *'
  key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  key client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
  key osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
  ceph() { command ceph -c "$folder/ceph.conf" --connect-timeout 5 "$@"; }
  monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor]" "$folder/monmap" > /dev/null
  ceph-mon -c "$folder/ceph.conf" --mkfs -i a --monmap "$folder/monmap" --keyring "$folder/keyring" > "$folder/mkfs.out" 2>&1
  run mon ceph-mon -i a
  wait_for mon ceph mon stat
  ceph osd new "$(cat /proc/sys/kernel/random/uuid)" > /dev/null
  ceph-osd -c "$folder/ceph.conf" --mkfs -i 0 --osd-uuid "$(ceph osd dump | sed -n 's/^osd\.0 .* \([0-9a-f-]\{36\}\)$/\1/p')" >> "$folder/mkfs.out" 2>&1
  run osd ceph-osd -i 0
  wait_for osd sh -c "command ceph -c '$folder/ceph.conf' --connect-timeout 5 osd stat | grep -q '1 up'"
  run radosgw radosgw -n client.rgw.a
  wait_for radosgw python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$gateway', timeout=2)"
  secret=$(head -c 30 /dev/urandom | base64 | tr -dc 'A-Za-z0-9')
  radosgw-admin -c "$folder/ceph.conf" user create --uid mtv --display-name mtv --access-key mtv-key --secret "$secret" > "$folder/user.json" 2> "$folder/user.err"
  echo "# $(radosgw --version)"
  echo "export MTV_TEST_S3_ENDPOINT=http://127.0.0.1:$gateway AWS_ACCESS_KEY_ID=mtv-key AWS_SECRET_ACCESS_KEY=$secret"
  echo "# end it: $0 stop $folder"
}

case $command in
  start) start ;;
  stop) [ -f "$folder/ceph.conf" ] || { echo "no radosgw was started in '$folder'" >&2; exit 2; }; folder=$(realpath "$folder"); stop ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
