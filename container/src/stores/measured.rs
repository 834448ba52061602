//! What a restore costs, without Kafka: `cargo test -p samza measured -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::disk::{DiskMemory, TaskDisk};
use super::fill::Fill;
use super::tests::log_with_overwrites;

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// 8-byte keys and 14-byte values, 30 % overwrites, 10 % tombstones; the merging that it leaves to do included.
#[test]
#[ignore = "a measurement"]
fn restore_of_a_million_keys() {
    let spec = types::StoreSpec::with_changelog(None, "kafka");
    let rows = log_with_overwrites(1_000_000).count() as u64;
    for chunk_mib in [4, 16, 48] {
        let state = tempfile::tempdir().expect("a folder");
        let memory = DiskMemory::new(48 << 20, 32 << 20);
        let disk =
            TaskDisk::open(state.path(), "Partition-0", "1-1", &[("rows", &spec)], &memory).expect("opens");
        let (start, before) = (Instant::now(), cpu());
        let mut fill = Fill::new(&disk, "rows", true, None, chunk_mib << 20);
        for (key, value) in log_with_overwrites(1_000_000) {
            fill.take((&key, value.as_ref().map(<[u8; 14]>::as_slice))).expect("takes");
        }
        fill.finish(b"here").expect("finishes");
        let (took, used) = (start.elapsed(), cpu() - before);
        disk.wait_for_compactions();
        let all = cpu() - before;
        let per_row = |time: Duration| time.as_nanos() / u128::from(rows);
        println!(
            "chunks of {chunk_mib} MiB, {rows} rows: {} ns per row on the clock, {} ns of CPU, {} with the merging after it",
            per_row(took), per_row(used), per_row(all),
        );
    }
}
