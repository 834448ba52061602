//! The allocator of every job's binary.
#![allow(unsafe_code)] // jemalloc finds its settings by the name of a symbol: nothing else sets how many arenas it has.

/// For Rust, and for the C and C++ that is linked: librdkafka makes each message on one thread and frees it on another,
/// where glibc's heaps wait for each other's locks and keep what others need.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An arena keeps what its threads freed, so that the next of them need not ask the kernel. jemalloc's own settings are
/// four arenas for each core of the machine, and ten seconds: where most of a heap is messages and rows on their way, more
/// was kept than in use. Fewer arenas use again what another thread freed, and a second is still long beside a batch.
// SAFETY: nothing else has this name but jemalloc's own symbol, which is weak and gives way. It is read as the address of
// a text that ends with a zero byte.
#[unsafe(export_name = "malloc_conf")]
static SETTINGS: &[u8; 30] = b"narenas:2,dirty_decay_ms:1000\0";
