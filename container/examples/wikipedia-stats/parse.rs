//! One edit, out of the line that Wikimedia's IRC feed gives of it. Pure: bytes to values.
//!
//! A message is `{"channel":"#en.wikipedia","raw":"…","time":…,"source":"…"}`, its `raw` is
//! `[[Title]] flags diff-url * user * (+bytes) summary`.

use std::borrow::Cow;

use serde::Deserialize;

/// What an edit can be, by the names of the output's `counts`.
pub const KINDS: [&str; 6] = ["is-minor", "is-new", "is-unpatrolled", "is-bot-edit", "is-special", "is-talk"];

/// The part of a message that is counted; the rest may be missing.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    raw: Cow<'a, str>,
}

/// An edit.
#[derive(Debug, PartialEq, Eq)]
pub struct Edit<'a> {
    /// The page.
    pub title: &'a str,
    /// Its page with the difference.
    pub diff_url: &'a str,
    /// Who did it.
    pub user: &'a str,
    /// By how much the page grew, bytes; below 0 if it shrank.
    pub bytes: i64,
    /// Why.
    pub summary: &'a str,
    /// Which of [`KINDS`] it is, in their order.
    pub kinds: [bool; KINDS.len()],
}

/// The line in a message, if it is a message at all.
pub fn raw(message: &[u8]) -> Option<Cow<'_, str>> {
    serde_json::from_slice::<Event<'_>>(message).ok().map(|event| event.raw)
}

/// Reads `[[Title]] flags diff-url * user * (+bytes) summary`; none if the line is something else.
pub fn edit(raw: &str) -> Option<Edit<'_>> {
    let (title, rest) = raw.trim().strip_prefix("[[")?.split_once("]] ")?;
    let (head, rest) = rest.split_once(" * ")?;
    let (user, rest) = rest.split_once(" * ")?;
    // Without flags there may be one blank or two before the address.
    let (flags, diff_url) = match head.rsplit_once(' ') {
        Some(both) => both,
        None if head.contains("://") => ("", head),
        None => return None,
    };
    let (bytes, summary) = rest.strip_prefix('(')?.split_once(')')?;
    if title.is_empty() || diff_url.is_empty() || user.is_empty() {
        return None;
    }
    let kinds = [
        flags.contains('M'),
        flags.contains('N'),
        flags.contains('!'),
        flags.contains('B'),
        title.starts_with("Special:"),
        title.starts_with("Talk:"),
    ];
    Some(Edit { title, diff_url, user, bytes: bytes.parse().ok()?, summary: summary.trim_start(), kinds })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const URL: &str = "https://en.wikipedia.org/w/index.php?diff=2&oldid=1";

    fn kinds(raw: &str) -> Vec<&'static str> {
        let edit = edit(raw).expect("an edit");
        KINDS.into_iter().zip(edit.kinds).filter_map(|(name, is)| is.then_some(name)).collect()
    }

    #[test]
    fn a_line_has_title_flags_address_user_bytes_and_summary() {
        let raw = format!("[[Ada Lovelace]] M {URL} * Jane Doe * (+12) /* Life */ a * b");
        let expected = Edit {
            title: "Ada Lovelace",
            diff_url: URL,
            user: "Jane Doe",
            bytes: 12,
            summary: "/* Life */ a * b",
            kinds: [true, false, false, false, false, false],
        };
        assert_eq!(edit(&raw), Some(expected));
    }

    #[test]
    fn flags_and_titles_tell_the_kind() {
        assert_eq!(kinds(&format!("[[A]] !NMB {URL} * u * (-3) s")), KINDS[..4]);
        assert_eq!(kinds(&format!("[[Special:Log/x]]  {URL} * u * (0) s")), ["is-special"]);
        assert_eq!(kinds(&format!("[[Talk:A]] {URL} * u * (+1)")), ["is-talk"]);
        assert_eq!(kinds(&format!("[[User talk:N]]  {URL} * MB! * (+1) N")), [] as [&str; 0]);
    }

    #[test]
    fn bytes_have_either_sign() {
        let bytes = |text: &str| edit(&format!("[[A]]  {URL} * u * ({text}) s")).map(|edit| edit.bytes);
        assert_eq!([bytes("+7"), bytes("-7"), bytes("7")], [Some(7), Some(-7), Some(7)]);
        assert_eq!([bytes(""), bytes("+"), bytes("many")], [None; 3]);
    }

    #[test]
    fn other_lines_are_no_edits() {
        for raw in [
            "",
            "hello",
            "[[A]]",
            "[[]] M http://x * u * (+1) s",
            "[[A]] M * u * (+1) s",
            "[[A]] M  * u * (+1) s",
            "[[A] M http://x * u * (+1) s",
            "[[A]] M http://x * u (+1) s",
            "[[A]] M http://x * u * +1 s",
            "[[Special:Log/newusers]] create  * Zoë *  New user account",
        ] {
            assert_eq!(edit(raw), None, "{raw}");
        }
    }

    #[test]
    fn a_message_needs_a_raw_text_only() {
        assert_eq!(raw(br#"{"raw":"[[A]]"}"#).as_deref(), Some("[[A]]"));
        assert_eq!(
            raw(br#"{"channel":"c","raw":"a \"b\"","time":1,"source":"s"}"#).as_deref(),
            Some("a \"b\"")
        );
        for message in ["", "{", "[]", "{}", r#"{"raw":7}"#] {
            assert_eq!(raw(message.as_bytes()), None, "{message}");
        }
    }
    proptest! {
        #[test]
        fn any_bytes_and_any_text_are_an_edit_or_none(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            text in ".*",
            parts in prop::collection::vec(
                prop::sample::select(vec!["[[", "]] ", "A", " ", " * ", "(", ")", "+1", "-9", "://", "M!", "é"]), 0..14,
            ),
        ) {
            let _ = raw(&bytes).as_deref().map(edit);
            for line in [text, parts.concat()] {
                let message = serde_json::json!({ "raw": &line }).to_string();
                let read = raw(message.as_bytes());
                prop_assert_eq!(read.as_deref(), Some(line.as_str()));
                if let Some(edit) = edit(&line) {
                    prop_assert!(line.contains(edit.title) && line.contains(edit.user) && !edit.user.is_empty());
                }
            }
        }
    }
}
