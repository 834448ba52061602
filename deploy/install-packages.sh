#!/usr/bin/env bash
# Installs the Debian packages that a task needs and that are missing; says which.
#   usage: deploy/install-packages.sh build|kafka|data|browser|network|peers|vm
set -euo pipefail
case "${1:-}" in
  build)   wanted="build-essential pkg-config libclang-dev libssl-dev zlib1g-dev" ;;
  kafka)   wanted="maven python3 openssl" ; command -v java >/dev/null 2>&1 || wanted="openjdk-17-jre-headless $wanted"
           command -v mvn >/dev/null 2>&1 && wanted=${wanted/maven/} ;
           command -v python3 >/dev/null 2>&1 && wanted=${wanted/python3/} ;;
  data)    wanted="python3 python3-pip python3-setuptools python3-wheel" ;;
  peers)   wanted="maven" ; command -v javac >/dev/null 2>&1 || wanted="openjdk-17-jdk-headless $wanted"
           command -v mvn >/dev/null 2>&1 && wanted=${wanted/maven/} ;;
  vm)      wanted="qemu-system-x86 busybox-static cpio ca-certificates" ;;
  network) wanted="iproute2" ;;
  browser) wanted="chromium chromium-driver fonts-dejavu-core" ;;
  *) echo "usage: $0 build|kafka|data|browser|network|peers|vm" >&2; exit 2 ;;
esac
missing=""
for package in $wanted; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "missing packages:$missing; install them as root: apt-get install$missing" >&2; exit 1
fi
echo "installing Debian packages:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
# shellcheck disable=SC2086  # a list of words on purpose
apt-get install -y -qq --no-install-recommends $missing >&2
