#!/usr/bin/env bash
# Builds RocksDB's static library once, outside every checkout, and prints the folder it is in.
# Every build, profile and clean clone then links it (ROCKSDB_LIB_DIR, ROCKSDB_STATIC=1), so that
# the ten minutes of C++ are paid once per machine and version.
#   usage: deploy/rocksdb/build.sh          the folder is printed on stdout, progress on stderr
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
crate_version=0.25.0   # the `rocksdb` crate; Cargo.lock pins the same one, tests/tidy.rs compares
cache=${SAMZA_CACHE:-$HOME/.cache/samza-rs}
out=$cache/rocksdb/$crate_version-$(uname -m)

if [ -f "$out/librocksdb.a" ]; then echo "$out"; exit 0; fi
mkdir -p "$cache/rocksdb"
exec 9>"$cache/rocksdb/lock"
flock 9                                     # two builds at once: the second waits and finds it done
if [ -f "$out/librocksdb.a" ]; then echo "$out"; exit 0; fi

echo "rocksdb: compiling librocksdb.a once into $out (about ten minutes on two cores)" >&2
"$here/../install-packages.sh" build >&2
work=$(mktemp -d "$cache/rocksdb/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/src"
cat > "$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-once"
version = "0.0.0"
edition = "2021"
[dependencies]
rocksdb = { version = "=$crate_version", default-features = false, features = ["zstd", "lz4", "bindgen-runtime"] }
[workspace]
TOML
echo 'fn main() {}' > "$work/src/main.rs"
# Release code generation whatever the caller's profile: the archive serves them all.
env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_TARGET_DIR="$work/target" \
    cargo build --quiet --release --manifest-path "$work/Cargo.toml" >&2
lib=$(find "$work/target/release/build" -name librocksdb.a | head -n 1)
[ -n "$lib" ] || { echo "rocksdb: the build made no librocksdb.a" >&2; exit 1; }
mkdir -p "$out"
cp "$lib" "$out/librocksdb.a.part"
mv "$out/librocksdb.a.part" "$out/librocksdb.a"
echo "$out"
