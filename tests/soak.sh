#!/usr/bin/env bash
# Repeats the tests that profit from it until SAMZA_SOAK_MINUTES have passed; ends at the first failure.
#   usage: tests/soak.sh            (make soak starts the brokers around it)
set -euo pipefail
export SAMZA_SOAK_MINUTES=${SAMZA_SOAK_MINUTES:-30}
end=$((SECONDS + SAMZA_SOAK_MINUTES * 60))
# Once: a gigabyte of state under a tenth of that in memory.
cargo test --quiet --workspace --test e2e_memory -- --ignored --nocapture
# Once: two million timers (ten, which its name says, take half an hour), and the restore of ten million keys, in little
# memory.
SAMZA_TIMERS=2000000 cargo test --quiet --workspace --lib ten_million -- --ignored --nocapture
SAMZA_RESTORE_KEYS=10000000 cargo test --quiet --workspace --test real_broker a_restore_of -- --ignored --nocapture
# Once: the crate that `samza new` makes, built anew as a user would.
cargo test --quiet --workspace --test new_job -- --ignored --nocapture
# Once: nm under systemd, as root and as a user, in a virtual machine.
cargo test --quiet --workspace --test node -- --ignored vm::nm_is
round=0
# One round whatever the time: without it most was not run.
while [ $round -eq 0 ] || [ $SECONDS -lt $end ]; do
  round=$((round + 1))
  echo "soak: round $round"
  SIM_SEEDS=${SIM_SEEDS:-20000} cargo test --quiet --workspace --test sim
  cargo test --quiet --workspace --test e2e_recovery --test e2e_fencing -- --test-threads 1
  SAMZA_LEASE_CUTS=100 cargo test --quiet --workspace --test e2e_lease -- --nocapture
  # Crashes at every named point, broken brokers and disks; it tells how often each point was hit.
  cargo test --quiet --workspace --test real_broker -- --nocapture --include-ignored
done
echo "soak: $round rounds, no failure"
