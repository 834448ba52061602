#!/usr/bin/env bash
# Fetches Debian's kernel for virtual machines once into the cache and prints where it is: the tests of cgroup v2 boot
# it, whatever this machine's own kernel and cgroups are. Nothing is installed but the packages that run it.
#   usage: deploy/vm/kernel.sh      the path is printed on stdout, progress on stderr
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${SAMZA_CACHE:-$HOME/.cache/samza-rs}/vm
kernel=$cache/vmlinuz
"$here/../install-packages.sh" vm >&2
if [ -f "$kernel" ]; then echo "$kernel"; exit 0; fi
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9                                     # two at once: the second waits and finds it done
if [ -f "$kernel" ]; then echo "$kernel"; exit 0; fi
echo "vm: fetching Debian's cloud kernel once into $cache" >&2
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"                           # apt downloads as a user of its own
cd "$work"
package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
[ -n "$package" ] || { apt-get update -qq >&2; package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }'); }
[ -n "$package" ] || { echo "vm: Debian has no linux-image-cloud-amd64 here" >&2; exit 1; }
apt-get download -qq -o APT::Sandbox::User=root "$package" >&2
dpkg -x ./*.deb unpacked
cp unpacked/boot/vmlinuz-* "$kernel.part"
mv "$kernel.part" "$kernel"
echo "$kernel"
