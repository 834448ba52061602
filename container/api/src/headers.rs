//! Headers of messages: borrowed, and not looked at by the runtime unless a task does.

use std::fmt;

/// One header: a name, which may come several times in a message, and a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header<'a> {
    /// Its name, as it came: Kafka says that it is UTF-8, but no broker looks.
    pub name: &'a [u8],
    /// Its value; none is null, which is not the same as empty.
    pub value: Option<&'a [u8]>,
}

impl<'a> Header<'a> {
    /// A header with a value.
    #[must_use]
    pub fn new(name: &'a str, value: &'a [u8]) -> Header<'a> {
        Header { name: name.as_bytes(), value: Some(value) }
    }
}

impl fmt::Debug for Header<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.name.escape_ascii())?;
        match self.value {
            Some(value) => write!(f, "\"{}\"", value.escape_ascii()),
            None => f.write_str("null"),
        }
    }
}

/// Where a system keeps the headers of one message until somebody asks; for systems.
pub trait HeaderSource {
    /// The header at `cursor`, which moves on to the next; 0 is the first. What the number means is the source's.
    fn next(&self, cursor: &mut usize) -> Option<Header<'_>>;
}

/// The headers of one message, in their order; cheap to copy. A message that comes from Kafka has them read when they
/// are first iterated, so who does not look pays nothing.
#[derive(Clone, Copy)]
pub struct Headers<'a>(Place<'a>);

#[derive(Clone, Copy)]
enum Place<'a> {
    Slice(&'a [Header<'a>]),
    Packed(&'a [u8]),
    Source(&'a dyn HeaderSource),
}

impl<'a> Headers<'a> {
    /// No headers.
    pub const NONE: Headers<'static> = Headers(Place::Slice(&[]));

    /// These headers.
    #[must_use]
    pub const fn new(headers: &'a [Header<'a>]) -> Headers<'a> {
        Headers(Place::Slice(headers))
    }
    /// For systems: what `source` has.
    #[must_use]
    pub fn of(source: &'a dyn HeaderSource) -> Headers<'a> {
        Headers(Place::Source(source))
    }
    /// For runtimes: what [`Self::pack`] has written.
    #[must_use]
    pub const fn packed(bytes: &'a [u8]) -> Headers<'a> {
        Headers(Place::Packed(bytes))
    }
    /// For runtimes: appends them to `out`, to be read by [`Self::packed`]; nothing if there are none.
    pub fn pack(self, out: &mut Vec<u8>) {
        for Header { name, value } in self {
            out.extend_from_slice(&length(name).to_le_bytes());
            // One more than the length, so that null has a number too.
            out.extend_from_slice(&value.map_or(0, |value| length(value) + 1).to_le_bytes());
            out.extend_from_slice(name);
            out.extend_from_slice(value.unwrap_or_default());
        }
    }
    /// One after the other.
    #[must_use]
    pub fn iter(self) -> HeadersIter<'a> {
        HeadersIter { headers: self, cursor: 0 }
    }
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.iter().next().is_none()
    }
    /// The last header of this name: of a name that comes several times Kafka's clients take the last.
    #[must_use]
    pub fn last(self, name: &str) -> Option<Header<'a>> {
        self.iter().filter(|header| header.name == name.as_bytes()).last()
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX - 1)
}

impl<'a> From<&'a [Header<'a>]> for Headers<'a> {
    fn from(headers: &'a [Header<'a>]) -> Self {
        Headers::new(headers)
    }
}
impl<'a, const N: usize> From<&'a [Header<'a>; N]> for Headers<'a> {
    fn from(headers: &'a [Header<'a>; N]) -> Self {
        Headers::new(headers)
    }
}
impl<'a> From<&'a Vec<Header<'a>>> for Headers<'a> {
    fn from(headers: &'a Vec<Header<'a>>) -> Self {
        Headers::new(headers)
    }
}

impl<'a> IntoIterator for Headers<'a> {
    type Item = Header<'a>;
    type IntoIter = HeadersIter<'a>;
    fn into_iter(self) -> HeadersIter<'a> {
        self.iter()
    }
}

impl PartialEq for Headers<'_> {
    fn eq(&self, other: &Headers<'_>) -> bool {
        self.iter().eq(other.iter())
    }
}
impl Eq for Headers<'_> {}

impl fmt::Debug for Headers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// See [`Headers::iter`].
#[derive(Debug, Clone, Copy)]
pub struct HeadersIter<'a> {
    headers: Headers<'a>,
    cursor: usize,
}

impl<'a> Iterator for HeadersIter<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        match self.headers.0 {
            Place::Slice(headers) => {
                let header = headers.get(self.cursor)?;
                self.cursor += 1;
                Some(*header)
            }
            Place::Packed(bytes) => next_packed(bytes, &mut self.cursor),
            Place::Source(source) => source.next(&mut self.cursor),
        }
    }
}

fn next_packed<'a>(bytes: &'a [u8], cursor: &mut usize) -> Option<Header<'a>> {
    let (name, rest) = bytes.get(*cursor..)?.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*value).checked_sub(1);
    let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name) as usize)?;
    let value = match length {
        Some(length) => Some(rest.get(..length as usize)?),
        None => None,
    };
    *cursor += 8 + name.len() + value.map_or(0, <[u8]>::len);
    Some(Header { name, value })
}

/// Headers that outlive their message.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct OwnedHeaders(Vec<u8>);

impl OwnedHeaders {
    /// A copy of `headers`; without an allocation if there are none.
    #[must_use]
    pub fn of(headers: Headers<'_>) -> OwnedHeaders {
        let mut packed = Vec::new();
        headers.pack(&mut packed);
        OwnedHeaders(packed)
    }
    /// To look at them or to send them.
    #[must_use]
    pub fn get(&self) -> Headers<'_> {
        Headers::packed(&self.0)
    }
}

impl fmt::Debug for OwnedHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_a_name_that_comes_twice_the_last_counts_and_null_is_not_empty() {
        let all = [
            Header::new("a", b"1"),
            Header { name: b"a", value: None },
            Header::new("b", b""),
            Header { name: b"\xff", value: Some(b"no text") },
        ];
        let headers = Headers::from(&all);
        assert_eq!(headers.last("a"), Some(all[1]));
        assert_eq!(headers.last("b").map(|header| header.value), Some(Some(b"".as_slice())));
        assert_eq!(headers.last("c"), None);
        assert_eq!(format!("{headers:?}"), "[a=\"1\", a=null, b=\"\", \\xff=\"no text\"]");
        assert!(!headers.is_empty() && Headers::NONE.is_empty());
        assert_eq!(OwnedHeaders::of(headers).get(), headers);
        assert_eq!(OwnedHeaders::of(Headers::NONE), OwnedHeaders::default());
    }

    proptest! {
        #[test]
        fn copies_are_as_the_headers_were(
            all in proptest::collection::vec((any::<Vec<u8>>(), any::<Option<Vec<u8>>>()), 0..5),
        ) {
            let all: Vec<Header<'_>> =
                all.iter().map(|(name, value)| Header { name, value: value.as_deref() }).collect();
            let owned = OwnedHeaders::of(Headers::from(&all));
            prop_assert_eq!(owned.get().iter().collect::<Vec<_>>(), all);
        }

        #[test]
        fn bytes_that_are_no_headers_end_the_list(bytes in any::<Vec<u8>>()) {
            let _ = Headers::packed(&bytes).iter().count();
        }
    }
}
