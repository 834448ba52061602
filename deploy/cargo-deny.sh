#!/usr/bin/env bash
# Runs cargo-deny; installs it into the cache first if neither PATH nor the cache has it (some minutes, once).
#   usage: deploy/cargo-deny.sh --offline check licenses bans sources
set -euo pipefail
version=0.20.2
tools=${SAMZA_CACHE:-$HOME/.cache/samza-rs}/tools
PATH=$PATH:$tools/bin
if ! command -v cargo-deny > /dev/null; then
  echo "cargo-deny: building $version once into $tools" >&2
  env -u CARGO_TARGET_DIR cargo install cargo-deny --version "$version" --locked --quiet --no-default-features --root "$tools" >&2
fi
# It looks at every crate of Cargo.lock, those of other platforms too, and with --offline it fetches none.
cargo fetch --locked --quiet
exec cargo-deny "$@"
