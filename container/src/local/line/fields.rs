//! The fields of an object in a text that is known to be JSON, and which of them make it an envelope.

use std::ops::Range;

/// The fields of an object in a text that is known to be JSON: where their names (with quotes) and values are.
pub(super) struct Fields<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn of(text: &'a str, start: usize) -> Fields<'a> {
        Fields { text: text.as_bytes(), at: start + 1 }
    }
    fn byte(&self, at: usize) -> u8 {
        // Past the end only if the text were no JSON; a brace ends every loop.
        self.text.get(at).copied().unwrap_or(b'}')
    }
    fn skip(&mut self, what: &[u8]) {
        while what.contains(&self.byte(self.at)) {
            self.at += 1;
        }
    }
    /// The end of the string that begins at `at`.
    fn string_end(&self, at: usize) -> usize {
        let mut end = at + 1;
        while end < self.text.len() && self.text[end] != b'"' {
            end += if self.text[end] == b'\\' { 2 } else { 1 };
        }
        (end + 1).min(self.text.len())
    }
    fn value_end(&self, at: usize) -> usize {
        let (mut end, mut depth) = (at, 0usize);
        while end < self.text.len() {
            match self.text[end] {
                b'"' => {
                    end = self.string_end(end);
                    if depth == 0 {
                        return end;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 1 => depth -= 1,
                b'}' | b']' => return end + depth,
                b',' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return end,
                _ => {}
            }
            end += 1;
        }
        end
    }
}

impl Iterator for Fields<'_> {
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        self.skip(b" \t\r\n,");
        if self.byte(self.at) != b'"' {
            return None;
        }
        let name = self.at..self.string_end(self.at);
        self.at = name.end;
        self.skip(b" \t\r\n:");
        let value = self.at..self.value_end(self.at);
        self.at = value.end;
        Some((name, value))
    }
}

/// What a quoted name says.
pub(super) fn unquoted(quoted: &str) -> std::borrow::Cow<'_, str> {
    let plain = &quoted[1..quoted.len() - 1];
    match plain.contains('\\').then(|| serde_json::from_str::<String>(quoted)) {
        Some(Ok(text)) => text.into(),
        Some(Err(_)) | None => plain.into(),
    }
}

/// The names that an envelope's fields may have.
pub(super) const ENVELOPE: [&str; 6] = ["key", "key-base64", "value", "value-base64", "timestamp", "headers"];

/// Where the fields of an envelope are.
#[derive(Default)]
pub(super) struct Envelope {
    pub(super) key: Option<Range<usize>>,
    pub(super) key_base64: Option<Range<usize>>,
    pub(super) value: Option<Range<usize>>,
    pub(super) value_base64: Option<Range<usize>>,
    pub(super) timestamp: Option<Range<usize>>,
    pub(super) headers: Option<Range<usize>>,
}

/// Why an object is no envelope, and where that is seen.
pub(super) struct NoEnvelope {
    pub(super) at: usize,
    pub(super) what: String,
}

impl Envelope {
    /// The fields of the object that begins at `start`.
    pub(super) fn of(text: &str, start: usize) -> Result<Envelope, NoEnvelope> {
        let mut found = Envelope::default();
        let wrong = |at: usize, what: String| Err(NoEnvelope { at, what });
        for (name, at) in Fields::of(text, start) {
            let quoted = &text[name.clone()];
            let field = match quoted {
                "\"key\"" => &mut found.key,
                "\"key-base64\"" => &mut found.key_base64,
                "\"value\"" => &mut found.value,
                "\"value-base64\"" => &mut found.value_base64,
                "\"timestamp\"" => &mut found.timestamp,
                "\"headers\"" => &mut found.headers,
                _ => return wrong(name.start, format!("it has a field {quoted}")),
            };
            if field.replace(at).is_some() {
                return wrong(name.start, format!("it has two fields {quoted}"));
            }
        }
        if found.value.is_some() == found.value_base64.is_some() {
            return wrong(start, "it has not one of `value` and `value-base64`".into());
        }
        if found.key.is_some() && found.key_base64.is_some() {
            return wrong(start, "it has both `key` and `key-base64`".into());
        }
        Ok(found)
    }

    pub(super) fn has_key(&self) -> bool {
        self.key.is_some() || self.key_base64.is_some()
    }
}
