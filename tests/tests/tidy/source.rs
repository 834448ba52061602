//! Rust source as far as the rules need it: comments and literals blanked, functions found by their braces.

use std::path::Path;

/// One file.
pub struct SourceFile {
    /// Its path from the repository's root.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Its text with comments, strings and characters blanked, line by line as before.
    pub code: String,
}

/// One function with a body.
pub struct Function {
    pub name: String,
    /// Where its `fn` is, from 1.
    pub line: usize,
    /// From there to its closing brace.
    pub lines: usize,
}

impl SourceFile {
    pub fn read(root: &Path, path: &Path) -> SourceFile {
        let text =
            std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let code = blank(&text);
        SourceFile { name: path.to_string_lossy().into_owned(), text, code }
    }

    pub fn lines(&self) -> usize {
        self.text.lines().count()
    }

    /// Whether all of it is test code.
    pub fn is_test(&self) -> bool {
        self.name.contains("/tests/") || self.name.ends_with("_test.rs") || self.name.ends_with("/tests.rs")
    }

    /// Whether its code has `word` as a word.
    pub fn names(&self, word: &str) -> bool {
        positions(&self.code, word).next().is_some()
    }

    /// Its code before the first `#[cfg(test)] mod … {`; by custom that is its last item.
    pub fn code_outside_tests(&self) -> &str {
        let end = self.code.match_indices("#[cfg(test)]").find(|(at, marker)| {
            let next = self.code[at + marker.len()..].trim_start();
            next.starts_with("mod ") && next.find('{') < next.find(';').or(Some(usize::MAX))
        });
        &self.code[..end.map_or(self.code.len(), |(at, _)| at)]
    }

    /// Its functions outside tests.
    pub fn functions(&self) -> Vec<Function> {
        let code = self.code_outside_tests();
        positions(code, "fn").filter_map(|at| function(code, at)).collect()
    }
}

/// Where `word` stands in `code` with no letter, digit or underscore beside it.
fn positions<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| !code[..*at].ends_with(in_word) && !code[at + word.len()..].starts_with(in_word))
}

/// The function whose `fn` is at `at`; none if it has no body or is a type.
fn function(code: &str, at: usize) -> Option<Function> {
    let rest = &code[at + 2..];
    let name: String = rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if name.is_empty() {
        return None;
    }
    let mut depth = 0_u32; // of parentheses and brackets before the body, of braces in it
    let mut in_body = false;
    for (offset, c) in rest.char_indices() {
        match c {
            '(' | '[' if !in_body => depth += 1,
            ')' | ']' if !in_body => depth -= 1,
            ';' if !in_body && depth == 0 => return None,
            '{' => {
                in_body = true;
                depth += 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    let line = code[..at].matches('\n').count() + 1;
                    return Some(Function { name, line, lines: rest[..offset].matches('\n').count() + 1 });
                }
            }
            _ => {}
        }
    }
    None
}

/// `text` with comments and literals replaced by blanks; line breaks stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Where the comment or literal that begins at `at` ends; `at` if none begins there.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |n: usize| chars.get(at + n).copied().unwrap_or('\0');
    let find = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        let found = chars[from..].windows(end.len()).position(|window| window == end);
        found.map_or(chars.len(), |offset| from + offset + end.len())
    };
    let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next(1) == '/' => find(at, "\n") - 1,
        '/' if next(1) == '*' => find(at, "*/"),
        '"' => string_end(chars, at + 1),
        'r' if !after_word || chars[at - 1] == 'b' => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if next(1 + hashes) != '"' {
                return at;
            }
            find(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes)))
        }
        // A character, not a lifetime: 'x' or an escape.
        '\'' if next(1) == '\\' => find(at + 3, "'"),
        '\'' if next(2) == '\'' => at + 3,
        _ => at,
    }
}

fn string_end(chars: &[char], from: usize) -> usize {
    let mut at = from;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

#[test]
fn literals_are_blanked_and_functions_measured() {
    let text = "fn a() { // fn b() {\n  let c = ['{', '\\'', '\\u{7b}'];\n  let s = r#\"}\"#; let t = \"\\\"}\";\n}\nfn d<'a>(x: &'a [u8; 2]) -> u8 {\n x[0] }\n";
    let file = SourceFile { name: "x.rs".into(), text: text.into(), code: blank(text) };
    let functions: Vec<_> = file.functions().into_iter().map(|f| (f.name, f.line, f.lines)).collect();
    assert_eq!(functions, [("a".to_owned(), 1, 4), ("d".to_owned(), 5, 2)]);
    assert!(!file.names("b") && !file.code.contains("}\"#"));
}
