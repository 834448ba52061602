//! [`Tx`] and [`Rx`], the two halves of a session, over streams of frames.
//!
//! One writer task per session collects what is queued into one frame, so that an item leaves at once and a burst
//! leaves together; it also carries the acknowledgements. The reader is the [`Rx`] itself.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use session::{Inbound, Outbound};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::pb::Frame;

/// More unacknowledged items than this end a session: its peer is stuck.
const MAX_UNACKED: u64 = 65_536;
/// Items in one frame, so that none comes near the message limit.
const MAX_ITEMS: usize = 512;
/// Frames on their way to the transport: enough to keep it busy, few enough to feel its back-pressure.
const FRAMES: usize = 4;
/// Taken items are acknowledged at the latest after so many, or so long.
const ACK_ITEMS: u64 = 64;
const ACK_EVERY: Duration = Duration::from_millis(100);

/// The streams that sessions read.
pub(crate) type BoxStream = std::pin::Pin<Box<dyn Stream<Item = Result<Frame, tonic::Status>> + Send>>;
/// What a dialler hands to tonic.
pub(crate) type Frames = ReceiverStream<Frame>;

/// The session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session is over")]
pub struct Closed;

/// What both halves and the writer share.
#[derive(Debug)]
struct Shared {
    over: CancellationToken,
    numbers: Mutex<(Outbound, Inbound)>,
    /// Wakes the writer to acknowledge.
    owed: Notify,
    reason: Mutex<Option<String>>,
}

impl Shared {
    fn numbers(&self) -> MutexGuard<'_, (Outbound, Inbound)> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: &str) {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
        self.over.cancel();
    }
}

/// The sending half; clones send into the same session. Dropping all of them ends it.
#[derive(Debug)]
pub struct Tx<T> {
    queue: mpsc::UnboundedSender<T>,
    shared: Arc<Shared>,
}

impl<T> Clone for Tx<T> {
    fn clone(&self) -> Self {
        Tx { queue: self.queue.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<T> Tx<T> {
    /// Queues an item; never blocks. Sent does not mean delivered. Ends the session if its peer is stuck.
    ///
    /// # Errors
    /// The session is over.
    pub fn send(&self, item: T) -> Result<(), Closed> {
        if self.shared.over.is_cancelled() {
            return Err(Closed);
        }
        let counted = self.shared.numbers().0.queue();
        if let Err(stuck) = counted {
            self.shared.end(&stuck.to_string());
            return Err(Closed);
        }
        self.queue.send(item).map_err(|_| Closed)
    }

    /// Ends the session from this side.
    pub fn close(&self) {
        self.shared.end("closed on this side");
    }
}

/// The receiving half. Dropping it ends the session.
pub struct Rx<T> {
    stream: BoxStream,
    buffer: VecDeque<Bytes>,
    shared: Arc<Shared>,
    items: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for Rx<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rx").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl<T> Drop for Rx<T> {
    fn drop(&mut self) {
        self.shared.end("closed on this side");
    }
}

impl<T: DeserializeOwned> Rx<T> {
    /// The next item; none once the session is over, for whatever reason. Cancel-safe.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            if let Some(bytes) = self.buffer.pop_front() {
                match serde_json::from_slice(&bytes) {
                    Ok(item) => return Some(item),
                    Err(e) => {
                        self.shared.end(&format!("an item cannot be read: {e}"));
                        return None;
                    }
                }
            }
            let frame = tokio::select! {
                biased;
                () = self.shared.over.cancelled() => return None,
                frame = self.stream.next() => frame,
            };
            match frame {
                Some(Ok(frame)) => self.take(frame),
                Some(Err(status)) => self.shared.end(status.message()),
                None => self.shared.end("closed by the peer"),
            }
        }
    }

    fn take(&mut self, frame: Frame) {
        let mut numbers = self.shared.numbers();
        let (out, taken) = &mut *numbers;
        out.acknowledged(frame.ack);
        if let Err(gap) = taken.take(frame.first_seq, frame.items.len() as u64) {
            drop(numbers);
            return self.shared.end(&gap.to_string());
        }
        if taken.owed() > 0 {
            self.shared.owed.notify_one();
        }
        drop(numbers);
        self.buffer.extend(frame.items);
    }

    /// Why the session is over, for the log.
    #[must_use]
    pub fn reason(&self) -> String {
        let reason = self.shared.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or_else(|| "still open".to_owned())
    }
}

/// A session's sending side before its receiving side is known.
pub(crate) struct Outgoing<O> {
    tx: Tx<O>,
}

impl<O> Outgoing<O> {
    /// Joins it with what the peer sends, after the peer's first frame.
    pub(crate) fn into_session<I>(
        self,
        stream: impl Stream<Item = Result<Frame, tonic::Status>> + Send + 'static,
    ) -> (Tx<O>, Rx<I>) {
        let rx = Rx {
            stream: Box::pin(stream),
            buffer: VecDeque::new(),
            shared: Arc::clone(&self.tx.shared),
            items: PhantomData,
        };
        (self.tx, rx)
    }
}

/// Starts a session's sending side; `first` (a Hello or a Welcome) travels in its first frame, unnumbered.
pub(crate) fn outgoing<O: Serialize + Send + 'static, F: Serialize>(first: &F) -> (Outgoing<O>, Frames) {
    let (queue, queued) = mpsc::unbounded_channel();
    let (frames_in, frames) = mpsc::channel(FRAMES);
    let shared = Arc::new(Shared {
        over: CancellationToken::new(),
        numbers: Mutex::new((Outbound::new(MAX_UNACKED), Inbound::default())),
        owed: Notify::new(),
        reason: Mutex::new(None),
    });
    frames_in
        .try_send(Frame { first_seq: 0, ack: 0, items: vec![encode(first)] })
        .expect("a new channel has room for one frame");
    tokio::spawn(write(queued, frames_in, Arc::clone(&shared)));
    (Outgoing { tx: Tx { queue, shared } }, ReceiverStream::new(frames))
}

/// Moves what is queued into frames until the session is over.
async fn write<O: Serialize>(
    mut queued: mpsc::UnboundedReceiver<O>,
    frames: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = shared.over.cancelled() => return,
            () = frames.closed() => return shared.end("closed by the peer"),
            n = queued.recv_many(&mut batch, MAX_ITEMS) => if n == 0 {
                return shared.end("closed on this side");
            },
            () = ack_due(&shared) => {}
        }
        let frame = {
            let mut numbers = shared.numbers();
            let (out, taken) = &mut *numbers;
            let first_seq = out.number(batch.len() as u64);
            Frame { first_seq, ack: taken.acknowledge(), items: batch.iter().map(encode).collect() }
        };
        batch.clear();
        tokio::select! {
            biased;
            () = shared.over.cancelled() => return,
            sent = frames.send(frame) => if sent.is_err() {
                return shared.end("closed by the peer");
            },
        }
    }
}

/// Ends when an acknowledgement should leave by itself.
async fn ack_due(shared: &Shared) {
    shared.owed.notified().await;
    let many = || shared.numbers().1.owed() >= ACK_ITEMS;
    let soon = tokio::time::sleep(ACK_EVERY);
    tokio::pin!(soon);
    while !many() {
        tokio::select! {
            () = &mut soon => return,
            () = shared.owed.notified() => {}
        }
    }
}

fn encode<T: Serialize>(item: &T) -> Bytes {
    serde_json::to_vec(item).expect("the words of sessions always serialise").into()
}

/// Reads a Hello or a Welcome.
pub(crate) fn decode_first<T: DeserializeOwned>(frame: &Frame) -> Result<T, String> {
    let [first] = &frame.items[..] else {
        return Err(format!("the first frame has {} items instead of one", frame.items.len()));
    };
    serde_json::from_slice(first).map_err(|e| format!("the first words of the session cannot be read: {e}"))
}

/// The two halves at one end of a session.
pub type Halves<O, I> = (Tx<O>, Rx<I>);

/// A session in memory, for tests: its two ends.
#[must_use]
pub fn pipe<A, B>() -> (Halves<A, B>, Halves<B, A>)
where
    A: Serialize + DeserializeOwned + Send + 'static,
    B: Serialize + DeserializeOwned + Send + 'static,
{
    let (here, to_there) = outgoing::<A, ()>(&());
    let (there, to_here) = outgoing::<B, ()>(&());
    let skip_first = |frames: Frames| frames.skip(1).map(Ok);
    (here.into_session(skip_first(to_here)), there.into_session(skip_first(to_there)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_found_stuck_and_the_queue_stays_bounded() {
        let ((tx, mut rx), _there) = pipe::<u64, u64>();
        let taken = (0..2 * MAX_UNACKED).take_while(|n| tx.send(*n).is_ok()).count();
        assert_eq!(taken as u64, MAX_UNACKED);
        assert_eq!(rx.recv().await, None);
        assert!(rx.reason().contains("stuck"), "{}", rx.reason());
    }
}
