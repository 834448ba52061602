//! Messages of one partition that were fetched but must wait: for a commit, for their task to take them, or for inputs
//! that go first. Copies, in order; how many there may be, the reader decides that fetches them.

use std::collections::VecDeque;

use task_api::Headers;
use task_api::system::Message;

struct Place {
    offset: u64,
    timestamp_ms: Option<u64>,
    /// Where it begins in the bytes; the lengths of key, value and headers, in this order there.
    start: usize,
    key: Option<usize>,
    value: Option<usize>,
    headers: usize,
}

/// What one fetch has brought.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    messages: Vec<Place>,
    /// How many are gone.
    taken: usize,
}

/// The messages.
#[derive(Default)]
pub(crate) struct Held {
    chunks: VecDeque<Chunk>,
    size: usize,
}

/// A task is shown so many at once: what it does not take is laid out for it again the next time.
const SLICE: usize = 256;

impl Chunk {
    fn of(messages: &[Message<'_>]) -> Chunk {
        let mut chunk = Chunk::default();
        for m in messages {
            let start = chunk.bytes.len();
            chunk.bytes.extend_from_slice(m.key.unwrap_or_default());
            chunk.bytes.extend_from_slice(m.value.unwrap_or_default());
            let (key, value) = (m.key.map(<[u8]>::len), m.value.map(<[u8]>::len));
            let before = chunk.bytes.len();
            m.headers.pack(&mut chunk.bytes);
            let headers = chunk.bytes.len() - before;
            let (offset, timestamp_ms) = (m.offset, m.timestamp_ms);
            chunk.messages.push(Place { offset, timestamp_ms, start, key, value, headers });
        }
        chunk
    }

    fn size(&self) -> usize {
        self.bytes.len() + self.messages.len() * size_of::<Place>()
    }

    fn message(&self, m: &Place) -> Message<'_> {
        let cut = |start: usize, len: usize| &self.bytes[start..start + len];
        let value_at = m.start + m.key.unwrap_or(0);
        Message {
            source: 0,
            offset: m.offset,
            key: m.key.map(|len| cut(m.start, len)),
            value: m.value.map(|len| cut(value_at, len)),
            timestamp_ms: m.timestamp_ms,
            headers: Headers::packed(cut(value_at + m.value.unwrap_or(0), m.headers)),
        }
    }
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What they take in memory, bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The offset of the first message.
    pub(crate) fn first(&self) -> Option<u64> {
        self.chunks.front().map(|chunk| chunk.messages[chunk.taken].offset)
    }

    /// Adds copies of `messages`.
    pub(crate) fn add(&mut self, messages: &[Message<'_>]) {
        if !messages.is_empty() {
            let chunk = Chunk::of(messages);
            self.size += chunk.size();
            self.chunks.push_back(chunk);
        }
    }

    /// The first messages that are left.
    pub(crate) fn messages(&self) -> Vec<Message<'_>> {
        let Some(chunk) = self.chunks.front() else { return Vec::new() };
        chunk.messages[chunk.taken..].iter().take(SLICE).map(|place| chunk.message(place)).collect()
    }

    /// The next `count` are gone, of those that [`Self::messages`] has shown.
    pub(crate) fn took(&mut self, count: usize) {
        let Some(chunk) = self.chunks.front_mut() else { return };
        chunk.taken += count;
        if chunk.taken >= chunk.messages.len() {
            self.size -= chunk.size();
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use task_api::Header;

    use super::*;

    type Seen = (u64, Option<Vec<u8>>, Option<Vec<u8>>);

    fn message<'a>(offset: u64, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Message<'a> {
        Message { source: 4, offset, key, value, timestamp_ms: Some(3), headers: Headers::NONE }
    }

    /// Takes everything, `count` at a time.
    fn drain(held: &mut Held, count: usize) -> Vec<Seen> {
        let mut all = Vec::new();
        while !held.is_empty() {
            let of = held.messages();
            assert_eq!(Some(of[0].offset), held.first());
            let count = count.min(of.len());
            let seen = |m: &Message<'_>| (m.offset, m.key.map(<[u8]>::to_vec), m.value.map(<[u8]>::to_vec));
            all.extend(of[..count].iter().map(seen));
            held.took(count);
        }
        assert_eq!((held.size(), held.first()), (0, None));
        all
    }

    #[test]
    fn messages_come_back_in_order_and_as_they_were() {
        for count in [1, 2, 10] {
            let mut held = Held::default();
            held.add(&[message(7, Some(b"k"), None), message(8, None, Some(b"value"))]);
            held.add(&[]);
            held.add(&[message(9, Some(b""), Some(b""))]);
            let expected: [Seen; 3] = [
                (7, Some(b"k".to_vec()), None),
                (8, None, Some(b"value".to_vec())),
                (9, Some(Vec::new()), Some(Vec::new())),
            ];
            assert!(held.size() > 6);
            assert_eq!(drain(&mut held, count), expected);
            held.add(&[message(10, None, None)]);
            assert_eq!(drain(&mut held, count), [(10, None, None)]);
        }
    }

    #[test]
    fn times_and_headers_are_kept() {
        let of = [Header::new("a", b"1"), Header { name: b"a", value: None }];
        let headers = Headers::from(&of);
        let mut held = Held::default();
        held.add(&[Message { headers, ..message(11, Some(b"k"), None) }, message(12, None, None)]);
        let times: Vec<_> = held.messages().iter().map(|m| m.timestamp_ms).collect();
        assert_eq!(times, [Some(3), Some(3)]);
        let back: Vec<Vec<Header<'_>>> = held.messages().iter().map(|m| m.headers.iter().collect()).collect();
        assert_eq!(back, [of.to_vec(), Vec::new()]);
    }

    #[test]
    fn of_many_only_some_are_laid_out_at_once_and_all_come() {
        let many: Vec<_> = (0..1_000).map(|n| message(n, None, Some(b"v"))).collect();
        let mut held = Held::default();
        held.add(&many);
        assert_eq!(held.messages().len(), SLICE);
        let offsets = drain(&mut held, SLICE).into_iter().map(|(offset, ..)| offset);
        assert!(offsets.eq(0..1_000));
    }
}
