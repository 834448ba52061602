//! Messages of one partition that were fetched but must wait: for a commit, or for their task to take them. Copies, in
//! order; bounded by what one fetch hands over, because a partition that has any is not fetched from.

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

/// The messages.
#[derive(Default)]
pub(crate) struct Held {
    bytes: Vec<u8>,
    messages: Vec<Place>,
    /// How many are gone.
    taken: usize,
}

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == self.messages.len()
    }

    /// Adds copies of `messages`.
    pub(crate) fn add(&mut self, messages: &[Message<'_>]) {
        for m in messages {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(m.key.unwrap_or_default());
            self.bytes.extend_from_slice(m.value.unwrap_or_default());
            let (key, value) = (m.key.map(<[u8]>::len), m.value.map(<[u8]>::len));
            let before = self.bytes.len();
            m.headers.pack(&mut self.bytes);
            let headers = self.bytes.len() - before;
            self.messages.push(Place {
                offset: m.offset,
                timestamp_ms: m.timestamp_ms,
                start,
                key,
                value,
                headers,
            });
        }
    }

    /// The messages that are left.
    pub(crate) fn messages(&self) -> Vec<Message<'_>> {
        let cut = |start: usize, len: usize| &self.bytes[start..start + len];
        let message = |m: &Place| {
            let value_at = m.start + m.key.unwrap_or(0);
            Message {
                source: 0,
                offset: m.offset,
                key: m.key.map(|len| cut(m.start, len)),
                value: m.value.map(|len| cut(value_at, len)),
                timestamp_ms: m.timestamp_ms,
                headers: Headers::packed(cut(value_at + m.value.unwrap_or(0), m.headers)),
            }
        };
        self.messages[self.taken..].iter().map(message).collect()
    }

    /// The next `count` are gone.
    pub(crate) fn took(&mut self, count: usize) {
        self.taken += count;
        if self.is_empty() {
            self.messages.clear();
            self.bytes.clear();
            // A rare large batch shall not pin its memory.
            self.bytes.shrink_to(1 << 20);
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use task_api::Header;

    use super::*;

    #[test]
    fn messages_come_back_in_order_and_as_they_were() {
        let message = |offset, key, value| Message {
            source: 4,
            offset,
            key,
            value,
            timestamp_ms: Some(3),
            headers: Headers::NONE,
        };
        let mut held = Held::default();
        held.add(&[message(7, Some(b"k".as_slice()), None), message(8, None, Some(b"value".as_slice()))]);
        held.add(&[message(9, Some(b"".as_slice()), Some(b"".as_slice()))]);
        let seen = |held: &Held| -> Vec<(u64, Option<Vec<u8>>, Option<Vec<u8>>)> {
            let of = held.messages();
            of.iter().map(|m| (m.offset, m.key.map(<[u8]>::to_vec), m.value.map(<[u8]>::to_vec))).collect()
        };
        assert_eq!(seen(&held)[0], (7, Some(b"k".to_vec()), None));
        held.took(1);
        assert_eq!(
            seen(&held),
            [(8, None, Some(b"value".to_vec())), (9, Some(Vec::new()), Some(Vec::new()))]
        );
        held.took(2);
        assert!(held.is_empty());
        held.add(&[message(10, None, None)]);
        assert_eq!(seen(&held), [(10, None, None)]);
        held.took(1);
        let of = [Header::new("a", b"1"), Header { name: b"a", value: None }];
        let headers = Headers::from(&of);
        held.add(&[Message { headers, ..message(11, Some(b"k".as_slice()), None) }, message(12, None, None)]);
        let times: Vec<_> = held.messages().iter().map(|m| m.timestamp_ms).collect();
        assert_eq!(times, [Some(3), Some(3)]);
        let back: Vec<Vec<Header<'_>>> = held.messages().iter().map(|m| m.headers.iter().collect()).collect();
        assert_eq!(back, [of.to_vec(), Vec::new()]);
    }
}
