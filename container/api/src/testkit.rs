//! Runs a task against streams and stores in memory, with virtual time.
