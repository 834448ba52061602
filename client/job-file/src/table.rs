//! Walks TOML tables: hands out typed values, notes the line of every key, and reports what is missing, wrong or
//! unknown.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::keys::{NOT_YET, keys_of, nearest, section_with};
use crate::problem::{Problem, Source};
use crate::value::{Refusal, hinted, settings, shown, wrong_type};

/// A file being read: collects problems and lines.
pub(crate) struct File<'s> {
    source: &'s Source,
    problems: RefCell<Vec<Problem>>,
    /// Full paths that an unknown key was probably meant to be.
    meant: RefCell<BTreeSet<String>>,
    lines: RefCell<BTreeMap<String, usize>>,
}

impl<'s> File<'s> {
    pub(crate) fn new(source: &'s Source) -> File<'s> {
        File { source, problems: RefCell::default(), meant: RefCell::default(), lines: RefCell::default() }
    }

    /// Notes a problem at a line.
    pub(crate) fn problem(&self, line: Option<usize>, key: &str, message: String) {
        let problem = Problem { file: self.source.name.clone(), line, key: key.to_owned(), message };
        self.problems.borrow_mut().push(problem);
    }

    /// Notes a problem with the value of `key`, at its line if the file has it.
    pub(crate) fn bad(&self, key: &str, message: &str) {
        self.problem(self.line_of(key), key, format!("`{key}`: {message}"));
    }

    pub(crate) fn line_of(&self, key: &str) -> Option<usize> {
        self.lines.borrow().get(key).copied()
    }

    pub(crate) fn has_problem_with(&self, key: &str) -> bool {
        self.problems.borrow().iter().any(|problem| problem.key == key)
    }

    /// Whether something at or below `key` was reported.
    pub(crate) fn has_problem_under(&self, key: &str) -> bool {
        self.problems.borrow().iter().any(|problem| {
            problem.key.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.source.line(span.start)
    }

    /// All problems by line, those without one last; and the line of every key.
    pub(crate) fn finish(self) -> (Vec<Problem>, BTreeMap<String, usize>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        (problems, self.lines.into_inner())
    }
}

/// Says of a setting's name and value, among all settings of its table, what is wrong with it.
pub(crate) type Judge<'j> = dyn Fn(&str, &str, &BTreeMap<String, String>) -> Result<(), Refusal> + 'j;

/// One table of the file, or its absence.
pub(crate) struct Section<'f, 't> {
    pub(crate) file: &'f File<'f>,
    /// Full path, empty for the root.
    pub(crate) path: String,
    pattern: &'static str,
    table: Option<&'t DeTable<'t>>,
    missing: Vec<(&'static str, &'static str)>,
}

impl<'f, 't> Section<'f, 't> {
    pub(crate) fn root(file: &'f File<'f>, table: &'t DeTable<'t>) -> Section<'f, 't> {
        Section { file, path: String::new(), pattern: "", table: Some(table), missing: Vec::new() }
    }

    /// The full path of one of its keys.
    pub(crate) fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Whether the file has the key, valid or not.
    pub(crate) fn holds(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Reports what is wrong with one of its keys.
    pub(crate) fn bad(&self, key: &str, message: &str) {
        self.file.bad(&self.full(key), message);
    }

    fn entry(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        debug_assert!(keys_of(self.pattern).contains(&key), "`{key}` is not in the list of keys");
        let (name, value) = self.table?.get_key_value(key)?;
        self.file.lines.borrow_mut().insert(self.full(key), self.file.line(&name.span()));
        Some(value)
    }

    /// The value of `key` as `read` takes it; none if it is absent or refused, which is reported.
    pub(crate) fn optional<T>(
        &self,
        key: &'static str,
        read: impl FnOnce(&'t DeValue<'t>) -> Result<T, Refusal>,
    ) -> Option<T> {
        let value = self.entry(key)?;
        match read(value.get_ref()) {
            Ok(value) => Some(value),
            Err(refusal) => {
                self.file.bad(&self.full(key), &refusal);
                None
            }
        }
    }

    /// As [`Section::optional`]; an absent one is reported with what to write.
    pub(crate) fn required<T: Default>(
        &mut self,
        key: &'static str,
        example: &'static str,
        read: impl FnOnce(&'t DeValue<'t>) -> Result<T, Refusal>,
    ) -> T {
        if !self.holds(key) {
            self.missing.push((key, example));
        }
        self.optional(key, read).unwrap_or_default()
    }

    /// The table below `key`; an absent one has no keys.
    pub(crate) fn section(&self, key: &'static str, pattern: &'static str) -> Section<'f, 't> {
        let expected = format!("a table, written as [{}]", self.full(key));
        let table = self.optional(key, |value| value.as_table().ok_or_else(|| wrong_type(value, &expected)));
        Section { file: self.file, path: self.full(key), pattern, table, missing: Vec::new() }
    }

    /// The strings of an array, each with its line, as `key[0]`, `key[1]`, ….
    pub(crate) fn strings(&self, key: &'static str, example: &str) -> Option<Vec<String>> {
        let expected = format!("an array of strings, such as {example}");
        let array =
            self.optional(key, |value| value.as_array().ok_or_else(|| wrong_type(value, &expected)))?;
        let mut strings = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let path = format!("{}[{index}]", self.full(key));
            self.file.lines.borrow_mut().insert(path.clone(), self.file.line(&element.span()));
            match element.get_ref().as_str() {
                Some(text) => strings.push(text.to_owned()),
                None => self.file.bad(&path, &wrong_type(element.get_ref(), "a string")),
            }
        }
        Some(strings)
    }

    /// The settings in the table `key`, but for those that `judge` refuses, which are reported at their own lines. It is
    /// given name, value and all settings of the table.
    pub(crate) fn settings(&self, key: &'static str, judge: &Judge<'_>) -> BTreeMap<String, String> {
        let Some(settings) = self.optional(key, settings) else { return BTreeMap::new() };
        if let Some(table) =
            self.table.and_then(|table| table.get(key)).and_then(|value| value.get_ref().as_table())
        {
            self.note_lines(&self.full(key), table);
        }
        let judged = settings.iter().filter(|(name, value)| match judge(name, value, &settings) {
            Ok(()) => true,
            Err(refusal) => {
                self.bad(&format!("{key}.{name}"), &refusal);
                false
            }
        });
        judged.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn note_lines(&self, path: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = format!("{path}.{}", name.get_ref());
            self.file.lines.borrow_mut().insert(path.clone(), self.file.line(&name.span()));
            if let Some(inner) = value.get_ref().as_table() {
                self.note_lines(&path, inner);
            }
        }
    }

    /// The tables below `key` by the names that the user gave them.
    pub(crate) fn named(&self, key: &'static str, pattern: &'static str) -> Vec<(String, Section<'f, 't>)> {
        let outer = self.section(key, pattern);
        let mut sections = Vec::new();
        for (name, value) in outer.table.into_iter().flatten() {
            let path = outer.full(name.get_ref());
            self.file.lines.borrow_mut().insert(path.clone(), self.file.line(&name.span()));
            let Some(table) = value.get_ref().as_table() else {
                self.file.bad(&path, &wrong_type(value.get_ref(), &format!("a table, written as [{path}]")));
                continue;
            };
            let section = Section { file: self.file, path, pattern, table: Some(table), missing: Vec::new() };
            sections.push((name.get_ref().to_string(), section));
        }
        sections
    }

    /// Whether it holds nothing but tables: `[streams.kafka.flights]` instead of `[streams."kafka.flights"]`.
    pub(crate) fn holds_only_tables(&self) -> Option<String> {
        let table = self.table.filter(|table| !table.is_empty())?;
        let first = table.keys().next()?.get_ref().to_string();
        table.values().all(|value| value.get_ref().is_table()).then_some(first)
    }

    /// Reports keys that do not exist, and those that are missing and were not misspelled. To be called on outer
    /// tables first.
    pub(crate) fn finish(&self) {
        let valid = keys_of(self.pattern);
        for name in self.table.into_iter().flat_map(DeTable::keys) {
            let key: &str = name.get_ref();
            if !valid.contains(&key) {
                self.unknown(key, self.file.line(&name.span()), valid);
            }
        }
        for (key, example) in &self.missing {
            let full = self.full(key);
            let meant = self.file.meant.borrow();
            if !meant.contains(&full) && !meant.contains(&self.path) {
                let line = self.file.line_of(&self.path);
                self.file.problem(
                    line,
                    &full,
                    format!("missing key `{full}`; write, for example, `{example}`"),
                );
            }
        }
    }

    fn unknown(&self, key: &str, line: usize, valid: &[&str]) {
        let full = self.full(&shown(key));
        if let Some((_, instead)) = NOT_YET.iter().find(|(name, _)| *name == full) {
            return self.file.problem(Some(line), &full, format!("`{full}` is not supported: {instead}"));
        }
        let kind = if self.path.is_empty() { "section" } else { "key" };
        let elsewhere = section_with(key).filter(|section| !section.is_empty() && *section != self.pattern);
        let near = nearest(key, valid.iter().copied());
        let hint = match (elsewhere, near) {
            (Some(section), _) => Some(format!("`{}.{key}`", section.replace('*', "<name>"))),
            (None, Some(near)) => {
                self.file.meant.borrow_mut().insert(self.full(near));
                Some(format!("`{near}`"))
            }
            (None, None) => None,
        };
        let message =
            hinted(&format!("unknown {kind} `{full}`"), hint, &format!("{kind}s: {}", valid.join(", ")));
        self.file.problem(Some(line), &full, message);
    }
}
