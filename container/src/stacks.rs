//! What the threads of this process are at, for the log of a process that hangs and is about to end itself.
//!
//! The kernel tells of every thread its state and where it waits. Stacks come from a profiler's signal handler, which
//! notes the stack of the thread that the signal is sent to; names are looked up afterwards, on the asking thread. It is
//! armed only now, when there is nothing to lose any more.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::Signal;

/// How long a thread may take to note its stack.
const NOTE: Duration = Duration::from_millis(100);

/// By number: threads that are alive, for they take themselves out of it.
static THREADS: Mutex<BTreeMap<u64, Pthread>> = Mutex::new(BTreeMap::new());

struct Registered(u64);

impl Registered {
    fn new() -> Registered {
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        let number = threads.last_key_value().map_or(0, |(last, _)| last + 1);
        threads.insert(number, pthread_self());
        Registered(number)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        THREADS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// From now on the stack of the calling thread is among those that [`of_threads`] shows, until the thread ends.
pub(crate) fn register() {
    thread_local! {
        static ME: Registered = Registered::new();
    }
    ME.with(|_| ());
}

/// Every thread with its name, its state and where in the kernel it waits; and the stacks of those that are registered.
pub(crate) fn of_threads() -> String {
    let mut text = String::new();
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default().trim();
        let wchan = Some(read("wchan")).filter(|at| !at.is_empty() && at != "0");
        let at = wchan.map_or_else(String::new, |at| format!(", in the kernel at {at}"));
        let _ =
            writeln!(text, "{} ({}): {state}{at}", read("comm").trim(), thread.file_name().to_string_lossy());
    }
    text + &stacks().unwrap_or_else(|why| format!("no stacks: {why}\n"))
}

fn stacks() -> Result<String, pprof::Error> {
    // The timer is a formality: it ticks once in a second of processor time.
    let profiler = pprof::ProfilerGuardBuilder::default().frequency(1).build()?;
    let threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    for thread in threads.values() {
        // One after the other, because only one at a time notes its stack. None is over while the lock is held.
        let _ = pthread_kill(*thread, Signal::SIGPROF);
        std::thread::sleep(NOTE);
    }
    drop(threads);
    let mut text = String::new();
    for frames in profiler.report().build()?.data.keys() {
        let _ = writeln!(text, "stack of {}, innermost first:", frames.thread_name);
        for symbol in frames.frames.iter().flatten() {
            let at = symbol.filename.as_ref().map_or_else(String::new, |file| {
                format!(" ({}:{})", file.display(), symbol.lineno.unwrap_or_default())
            });
            let _ = writeln!(text, "    {}{at}", symbol.name());
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[inline(never)]
    fn waits_for_ever_by_this_name(ends: &mpsc::Receiver<()>) {
        // Something follows the call, so that the compiler cannot jump there and leave this frame out.
        std::hint::black_box(ends.recv()).expect_err("nothing is sent");
    }

    #[inline(never)]
    fn spins_for_ever_by_this_name(ends: &mpsc::Receiver<()>) {
        while ends.try_recv() == Err(mpsc::TryRecvError::Empty) {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn stacks_of_threads_that_wait_and_of_threads_that_spin_are_shown_by_name() {
        std::thread::scope(|scope| {
            let (ready, is_ready) = mpsc::channel();
            let (_end_waiting, waiting_ends) = mpsc::channel();
            let (_end_spinning, spinning_ends) = mpsc::channel();
            let of_spinning = ready.clone();
            let thread = |name: &str| std::thread::Builder::new().name(name.into());
            let waits = thread("waits").spawn_scoped(scope, move || {
                register();
                let _ = ready.send(());
                waits_for_ever_by_this_name(&waiting_ends);
            });
            let spins = thread("spins").spawn_scoped(scope, move || {
                register();
                let _ = of_spinning.send(());
                spins_for_ever_by_this_name(&spinning_ends);
            });
            assert!(waits.is_ok() && spins.is_ok());
            (0..2).for_each(|_| is_ready.recv().expect("both start"));
            let text = of_threads();
            for word in ["waits_for_ever_by_this_name", "spins_for_ever_by_this_name", "waits (", "futex"] {
                assert!(text.contains(word), "{word} is not in\n{text}");
            }
        });
    }
}
