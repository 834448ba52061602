#!/usr/bin/env bash
# Cleans up after a test's cluster, however the test ended. Its input is two lines, a folder and a cgroup's name; when
# the input ends, it kills every process that names the folder in its command line or environment, and removes the
# cgroups of that name and the folder. (By input, not by arguments: it must not name the folder itself.)
#   usage: tests/sweep.sh < a pipe that its starter holds open
set -u
trap '' INT TERM HUP
read -r folder || exit 0
read -r cgroup || exit 0
cat > /dev/null
for _ in $(seq 400); do
  left=$(grep -l -s -a -F -f <(printf '%s\n' "$folder") /proc/[0-9]*/environ /proc/[0-9]*/cmdline | cut -d/ -f3 | sort -u)
  [ -n "$left" ] || break
  # shellcheck disable=SC2086  # pids
  kill -KILL $left 2> /dev/null
  sleep 0.02
done
for _ in $(seq 100); do
  groups=$(find /sys/fs/cgroup -depth -type d \( -path "*/$cgroup" -o -path "*/$cgroup/*" \) 2> /dev/null)
  [ -n "$groups" ] || break
  for group in $groups; do
    rmdir "$group" 2> /dev/null || xargs -r kill -KILL < "$group/cgroup.procs" 2> /dev/null
  done
done
if [ -n "${SAMZA_TEST_KEEP:-}" ]; then echo "kept: $folder" >&2; else rm -rf "$folder"; fi
