//! The bytes of [`super::log`]: frames of items, each frame with its length and checksum. Pure; reading never panics.
//!
//! ```text
//! file   "samza log 1\n" frame*
//! frame  u32 length of body, u32 crc of body, body = item*
//! item   1 Topic   u32 partitions, u64 ms that tombstones are kept, text name, text id
//!        2 Rows    u32 topic, u32 partition, u64 first offset, u64 end offset, u64 unix ms, u32 bytes, row*
//!        3 Next    u32 topic, u32 partition, u64 next offset
//!        4 Output  u8 exact (1) and foreign (2), u64 start, u64 length, text path
//!        5 Base    u64 length of the file when it was rewritten
//!        6 Config  text name of the topic, text its settings as a JSON object of texts
//!        7 Inputs  text folder, text names, a line each
//!        8 Origin  u64 device, u64 inode, text state folder, text project folder
//!        9 Run     u8 whether one has begun and not ended in order
//! row    v offsets left out before it, v length of key + 1 or 0, v length of value + 1 or 0, key, value
//! ```
//!
//! `u32` and `u64` are little-endian, `v` is a number in groups of seven bits, a text is its `u32` length and bytes.

/// How a file begins.
pub(crate) const MAGIC: &[u8; 12] = b"samza log 1\n";
/// Length and checksum.
pub(crate) const HEAD: usize = 8;

/// A part of a frame, borrowed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// A topic is made, or what is known of it is changed. Topics are numbered as they come.
    Topic { name: &'a str, id: &'a str, partitions: u32, keeps_tombstones_ms: u64 },
    /// Rows of a partition.
    Rows { head: RowsHead, rows: &'a [u8] },
    /// The next offset of a partition, where its last rows are gone.
    Next { topic: u32, partition: u32, next: u64 },
    /// An output file: `exact` if nothing may be in it beyond `len`; `start` is its length before the job wrote to it;
    /// `foreign` if it belongs to the job of which this one is a copy.
    Output { path: &'a [u8], exact: bool, foreign: bool, start: u64, len: u64 },
    /// So long was the file when it was last rewritten.
    Base(u64),
    /// All settings that a topic was given.
    Config { topic: &'a str, settings: &'a [u8] },
    /// The files of a folder that are partitions of an input, by number.
    Inputs { folder: &'a [u8], names: &'a str },
    /// Where the state folder is, which one it is there, and of which project.
    Origin { device: u64, inode: u64, state: &'a [u8], project: &'a [u8] },
    /// Whether a run has begun that has not ended in order.
    Run { open: bool },
}

/// Whose rows, and where they belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowsHead {
    pub(crate) topic: u32,
    pub(crate) partition: u32,
    pub(crate) first: u64,
    /// One past the last offset.
    pub(crate) end: u64,
    /// When they were written; of merged rows, the newest.
    pub(crate) unix_ms: u64,
}

/// A frame being made.
#[derive(Debug, Default)]
pub(crate) struct Frame(Vec<u8>);

impl Frame {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, item: &Item<'_>) {
        let out = &mut self.0;
        if out.is_empty() {
            out.extend_from_slice(&[0; HEAD]);
        }
        match item {
            Item::Topic { name, id, partitions, keeps_tombstones_ms } => {
                out.push(1);
                out.extend_from_slice(&partitions.to_le_bytes());
                out.extend_from_slice(&keeps_tombstones_ms.to_le_bytes());
                text(name.as_bytes(), out);
                text(id.as_bytes(), out);
            }
            Item::Rows { head, rows } => {
                out.push(2);
                out.extend_from_slice(&head.topic.to_le_bytes());
                out.extend_from_slice(&head.partition.to_le_bytes());
                out.extend_from_slice(&head.first.to_le_bytes());
                out.extend_from_slice(&head.end.to_le_bytes());
                out.extend_from_slice(&head.unix_ms.to_le_bytes());
                text(rows, out);
            }
            Item::Next { topic, partition, next } => {
                out.push(3);
                out.extend_from_slice(&topic.to_le_bytes());
                out.extend_from_slice(&partition.to_le_bytes());
                out.extend_from_slice(&next.to_le_bytes());
            }
            Item::Output { path, exact, foreign, start, len } => {
                out.push(4);
                out.push(u8::from(*exact) | u8::from(*foreign) << 1);
                out.extend_from_slice(&start.to_le_bytes());
                out.extend_from_slice(&len.to_le_bytes());
                text(path, out);
            }
            Item::Base(len) => {
                out.push(5);
                out.extend_from_slice(&len.to_le_bytes());
            }
            Item::Config { topic, settings } => {
                out.push(6);
                text(topic.as_bytes(), out);
                text(settings, out);
            }
            Item::Inputs { folder, names } => {
                out.push(7);
                text(folder, out);
                text(names.as_bytes(), out);
            }
            Item::Origin { device, inode, state, project } => {
                out.push(8);
                out.extend_from_slice(&device.to_le_bytes());
                out.extend_from_slice(&inode.to_le_bytes());
                text(state, out);
                text(project, out);
            }
            Item::Run { open } => out.extend_from_slice(&[9, u8::from(*open)]),
        }
    }

    /// Its bytes in the file; none if it is larger than a frame may be.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        let length = u32::try_from(self.0.len() - HEAD).ok()?;
        let crc = crc32fast::hash(&self.0[HEAD..]);
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0[4..HEAD].copy_from_slice(&crc.to_le_bytes());
        Some(self.0)
    }
}

fn text(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Length and checksum of the body that follows.
pub(crate) fn head(bytes: [u8; HEAD]) -> (u32, u32) {
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (number(0), number(4))
}

/// The items of a body, each with where its rows begin in the body; ends with an error if the body is none.
pub(crate) struct Items<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Items<'a> {
    pub(crate) fn of(body: &'a [u8]) -> Items<'a> {
        Items { body, at: 0 }
    }
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.body.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }
    fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|b| b[0])
    }
    fn u32(&mut self) -> Option<u32> {
        self.bytes(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")))
    }
    fn u64(&mut self) -> Option<u64> {
        self.bytes(8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
    }
    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(length as usize)
    }
    fn item(&mut self) -> Option<(Item<'a>, usize)> {
        let item = match self.u8()? {
            1 => {
                let (partitions, keeps_tombstones_ms) = (self.u32()?, self.u64()?);
                let name = std::str::from_utf8(self.text()?).ok()?;
                let id = std::str::from_utf8(self.text()?).ok()?;
                Item::Topic { name, id, partitions, keeps_tombstones_ms }
            }
            2 => {
                let (topic, partition) = (self.u32()?, self.u32()?);
                let (first, end, unix_ms) = (self.u64()?, self.u64()?, self.u64()?);
                let head = RowsHead { topic, partition, first, end, unix_ms };
                Item::Rows { head, rows: self.text()? }
            }
            3 => Item::Next { topic: self.u32()?, partition: self.u32()?, next: self.u64()? },
            4 => {
                let (flags, start, len) = (self.u8()?, self.u64()?, self.u64()?);
                let (exact, foreign) = (flags & 1 != 0, flags & 2 != 0);
                Item::Output { path: self.text()?, exact, foreign, start, len }
            }
            5 => Item::Base(self.u64()?),
            6 => {
                let topic = std::str::from_utf8(self.text()?).ok()?;
                Item::Config { topic, settings: self.text()? }
            }
            7 => {
                let (folder, names) = (self.text()?, self.text()?);
                Item::Inputs { folder, names: std::str::from_utf8(names).ok()? }
            }
            8 => {
                let (device, inode) = (self.u64()?, self.u64()?);
                Item::Origin { device, inode, state: self.text()?, project: self.text()? }
            }
            9 => Item::Run { open: self.u8()? != 0 },
            _ => return None,
        };
        let rows_at = match &item {
            Item::Rows { rows, .. } => self.at - rows.len(),
            Item::Topic { .. }
            | Item::Next { .. }
            | Item::Output { .. }
            | Item::Base(_)
            | Item::Config { .. }
            | Item::Inputs { .. }
            | Item::Origin { .. }
            | Item::Run { .. } => self.at,
        };
        Some((item, rows_at))
    }
}

/// A body that is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoItem;

impl<'a> Iterator for Items<'a> {
    type Item = Result<(Item<'a>, usize), NoItem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let item = self.item().ok_or(NoItem);
        if item.is_err() {
            self.at = self.body.len();
        }
        Some(item)
    }
}

/// Rows with rising offsets of one partition, being made.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: u64,
    /// Offsets from the first row's to one past the last's.
    pub(crate) span: u64,
}

impl Rows {
    /// Adds a row, `gap` offsets after the one before it.
    pub(crate) fn push(&mut self, gap: u64, key: Option<&[u8]>, value: Option<&[u8]>) {
        varint(gap, &mut self.bytes);
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, |b| b.len() as u64 + 1);
        varint(length(key), &mut self.bytes);
        varint(length(value), &mut self.bytes);
        self.bytes.extend_from_slice(key.unwrap_or_default());
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.count += 1;
        self.span += gap + 1;
    }
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) offset: u64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
}

/// The rows in `bytes`, the first of which has offset `first` (plus its gap).
pub(crate) fn rows(bytes: &[u8], first: u64) -> impl Iterator<Item = Row<'_>> {
    let mut items = Items::of(bytes);
    let mut next = first;
    std::iter::from_fn(move || {
        let gap = items.varint()?;
        let (key, value) = (items.varint()?, items.varint()?);
        let mut part = |length: u64| match length.checked_sub(1) {
            None => Some(None),
            Some(length) => items.bytes(usize::try_from(length).ok()?).map(Some),
        };
        let (key, value) = (part(key)?, part(value)?);
        let offset = next.checked_add(gap)?;
        next = offset.checked_add(1)?;
        Some(Row { offset, key, value })
    })
}

impl Items<'_> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300))
    }

    proptest! {
        #[test]
        fn rows_come_back_with_their_offsets(
            first in 0..1_u64 << 40,
            many in proptest::collection::vec((0..1_000_u64, bytes(), bytes()), 0..20),
        ) {
            let mut made = Rows::default();
            let (mut next, mut expected) = (first, Vec::new());
            for (gap, key, value) in &many {
                made.push(*gap, key.as_deref(), value.as_deref());
                expected.push(Row { offset: next + gap, key: key.as_deref(), value: value.as_deref() });
                next += gap + 1;
            }
            prop_assert_eq!(made.span, next - first);
            prop_assert_eq!(made.count, many.len() as u64);
            prop_assert_eq!(rows(&made.bytes, first).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn bytes_that_are_no_frame_make_nothing_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(Items::of(&body).count() <= body.len());
            prop_assert!(rows(&body, u64::MAX - 3).count() <= body.len());
        }
    }

    #[test]
    fn items_come_back_as_they_were() {
        let head = RowsHead { topic: 1, partition: 2, first: 3, end: 5, unix_ms: 6 };
        let items = [
            Item::Topic { name: "t", id: "id", partitions: 4, keeps_tombstones_ms: 9 },
            Item::Rows { head, rows: b"rows" },
            Item::Next { topic: 1, partition: 0, next: 17 },
            Item::Output { path: b"out.jsonl", exact: true, foreign: false, start: 1, len: 2 },
            Item::Output { path: b"/out.jsonl", exact: false, foreign: true, start: 1, len: 2 },
            Item::Base(99),
            Item::Config { topic: "t", settings: b"{}" },
            Item::Inputs { folder: b"in.jsonl", names: "a\nb" },
            Item::Origin { device: 1, inode: 2, state: b"/job/.samza/j-1", project: b"/job" },
            Item::Run { open: true },
        ];
        let mut frame = Frame::default();
        assert!(frame.is_empty());
        items.iter().for_each(|item| frame.push(item));
        let whole = frame.finish().expect("small");
        let body = &whole[HEAD..];
        let (length, crc) = super::head(whole[..HEAD].try_into().expect("a head"));
        assert_eq!((length as usize, crc), (body.len(), crc32fast::hash(body)));
        let found: Vec<_> = Items::of(body).map(|item| item.expect("an item")).collect();
        assert!(found.iter().map(|(item, _)| item).eq(&items));
        assert_eq!(&body[found[1].1..found[1].1 + 4], b"rows");
    }
}
