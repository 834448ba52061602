# Sourced by the Makefile, .ci/run and people: where builds go and where RocksDB's static library is.
#   usage: . deploy/env.sh
export SAMZA_CACHE="${SAMZA_CACHE:-$HOME/.cache/samza-rs}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$SAMZA_CACHE/target}"
export ROCKSDB_LIB_DIR="$SAMZA_CACHE/rocksdb/0.25.0-$(uname -m)"
export ROCKSDB_STATIC=1
