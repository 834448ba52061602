# Sourced by the Makefile, .ci/run and people: where builds go and where RocksDB's static library is.
#   usage: . deploy/env.sh
export SAMZA_CACHE="${SAMZA_CACHE:-$HOME/.cache/samza-rs}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$SAMZA_CACHE/target}"
export ROCKSDB_LIB_DIR="$SAMZA_CACHE/rocksdb/0.25.0-$(uname -m)"
export ROCKSDB_STATIC=1
# Tests know the checkout that they were compiled in; cargo does not, where two share the target folder. Those of
# another checkout are compiled again.
samza_checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ "$(cat "$CARGO_TARGET_DIR/checkout" 2> /dev/null)" != "$samza_checkout" ]; then
  mkdir -p "$CARGO_TARGET_DIR"
  echo "$samza_checkout" > "$CARGO_TARGET_DIR/checkout"
  grep -rlF --include='*.rs' --exclude-dir=target CARGO_MANIFEST_DIR "$samza_checkout" | xargs touch
fi
