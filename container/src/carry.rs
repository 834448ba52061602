//! Messages that were fetched but must wait for a commit: copies of the rest of a batch.

use task_api::system::Message;

struct Carried {
    reader: usize,
    source: usize,
    offset: u64,
    timestamp_ms: i64,
    /// Lengths of key and value, in this order in the bytes.
    key: Option<usize>,
    value: Option<usize>,
}

/// The messages, in order.
#[derive(Default)]
pub(crate) struct Carry {
    bytes: Vec<u8>,
    messages: Vec<Carried>,
    /// How many messages, and of how many bytes, are gone.
    next: usize,
    next_byte: usize,
}

impl Carry {
    pub(crate) fn is_empty(&self) -> bool {
        self.next == self.messages.len()
    }

    /// Adds copies of `messages` of consumer `reader`.
    pub(crate) fn add(&mut self, reader: usize, messages: &[Message<'_>]) {
        if self.is_empty() {
            self.clear();
        }
        for m in messages {
            self.bytes.extend_from_slice(m.key.unwrap_or_default());
            self.bytes.extend_from_slice(m.value.unwrap_or_default());
            self.messages.push(Carried {
                reader,
                source: m.source,
                offset: m.offset,
                timestamp_ms: m.timestamp_ms,
                key: m.key.map(<[u8]>::len),
                value: m.value.map(<[u8]>::len),
            });
        }
    }

    /// The next message with its consumer.
    pub(crate) fn pop(&mut self) -> Option<(usize, Message<'_>)> {
        let carried = self.messages.get(self.next)?;
        self.next += 1;
        let mut cut = |len: Option<usize>| {
            let start = self.next_byte;
            self.next_byte += len.unwrap_or(0);
            len.map(|len| start..start + len)
        };
        let (key, value) = (cut(carried.key), cut(carried.value));
        let message = Message {
            source: carried.source,
            offset: carried.offset,
            key: key.map(|at| &self.bytes[at]),
            value: value.map(|at| &self.bytes[at]),
            timestamp_ms: carried.timestamp_ms,
        };
        Some((carried.reader, message))
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.bytes.clear();
        // A rare large batch shall not pin its memory.
        self.bytes.shrink_to(1 << 20);
        (self.next, self.next_byte) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_in_order_and_as_they_were() {
        let message = |source, key, value| Message { source, offset: 7, key, value, timestamp_ms: 3 };
        let mut carry = Carry::default();
        carry.add(1, &[message(0, Some(b"k".as_slice()), None), message(1, None, Some(b"value".as_slice()))]);
        carry.add(0, &[message(2, Some(b"".as_slice()), Some(b"".as_slice()))]);
        let (reader, first) = carry.pop().expect("three were added");
        assert_eq!((reader, first.source, first.key, first.value), (1, 0, Some(b"k".as_slice()), None));
        let (_, second) = carry.pop().expect("three were added");
        assert_eq!((second.key, second.value, second.offset), (None, Some(b"value".as_slice()), 7));
        let (reader, third) = carry.pop().expect("three were added");
        assert_eq!((reader, third.key, third.value), (0, Some(b"".as_slice()), Some(b"".as_slice())));
        assert!(carry.pop().is_none() && carry.is_empty());
        carry.add(0, &[message(5, None, None)]);
        assert_eq!(carry.pop().map(|(_, m)| m.source), Some(5));
    }
}
