//! The network between a server and everybody else: a proxy that can stop forwarding, as a cut cable does: no
//! connection is closed, nothing arrives.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How soon a change is seen.
const TICK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct State {
    cut: AtomicBool,
    over: AtomicBool,
}

/// Forwards connections until it is dropped.
pub struct Proxy {
    state: Arc<State>,
}

impl Proxy {
    /// Listens at `at` (host:port) and forwards to `target` (host:port).
    ///
    /// # Panics
    /// The address is taken.
    #[must_use]
    pub fn start(at: &str, target: &str) -> Proxy {
        let listener = TcpListener::bind(at).expect("the address is free");
        listener.set_nonblocking(true).expect("a socket");
        let (state, target) = (Arc::new(State::default()), target.to_owned());
        let proxy = Proxy { state: Arc::clone(&state) };
        std::thread::spawn(move || {
            while !state.over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((near, _)) => join(&near, &target, &state),
                    Err(_) => std::thread::sleep(TICK),
                }
            }
        });
        proxy
    }

    /// Stops, or goes on, forwarding.
    pub fn cut(&self, cut: bool) {
        self.state.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
    }
}

/// Forwards both ways; a client of a server that is not there is hung up on.
fn join(near: &TcpStream, target: &str, state: &Arc<State>) {
    let Ok(far) = TcpStream::connect(target) else { return };
    for (from, to) in [(near, &far), (&far, near)] {
        let (from, to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
        from.set_nonblocking(false).expect("a socket");
        from.set_read_timeout(Some(TICK)).expect("a socket");
        from.set_nodelay(true).expect("a socket");
        let state = Arc::clone(state);
        std::thread::spawn(move || forward(from, to, &state));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, state: &State) {
    let mut bytes = vec![0; 64 << 10];
    while !state.over.load(Ordering::Relaxed) {
        let read = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        while state.cut.load(Ordering::Relaxed) && !state.over.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    // The other way ends with this one.
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}
