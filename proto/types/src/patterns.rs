//! Inputs that are patterns: `kafka./^orders-.*/` stands for every topic of system `kafka` whose whole name matches.

use regex::Regex;

use crate::{JobSpec, StreamSpec, SystemStream};

impl SystemStream {
    /// The regular expression of an input that stands for several topics.
    #[must_use]
    pub fn pattern(&self) -> Option<&str> {
        self.stream.strip_prefix('/')?.strip_suffix('/')
    }
}

/// What a whole name must match, as in Samza and Kafka's own clients.
///
/// # Errors
/// It is no regular expression; the text says why in one line.
pub fn whole_name(pattern: &str) -> Result<Regex, String> {
    // Alone first: `)(` must not close the group that is put around it.
    let compiled = Regex::new(pattern).and_then(|_| Regex::new(&format!("^(?:{pattern})$")));
    compiled.map_err(|error| {
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// `spec` with each pattern among its inputs replaced by the topics that match it; `topics` lists those of a system.
/// A topic that several inputs name is read once, by the settings of the first.
#[must_use]
pub fn expand(spec: &JobSpec, topics: &dyn Fn(&str) -> Vec<String>) -> JobSpec {
    if !spec.has_patterns() {
        return spec.clone();
    }
    let mut expanded = spec.clone();
    let is_plain = |input: &&String| SystemStream::parse(input).is_some_and(|s| s.pattern().is_none());
    let explicit: Vec<String> = spec.task.inputs.iter().filter(is_plain).cloned().collect();
    expanded.task.inputs.clear();
    for input in &spec.task.inputs {
        let stream = SystemStream::parse(input);
        let Some((stream, regex)) = stream.and_then(|s| Some((s.clone(), whole_name(s.pattern()?).ok()?)))
        else {
            expanded.task.inputs.push(input.clone());
            continue;
        };
        let mut matching = topics(&stream.system);
        matching.retain(|topic| regex.is_match(topic) && !spec.is_its_own(topic));
        matching.sort();
        for topic in matching {
            let found = SystemStream { system: stream.system.clone(), stream: topic };
            let name = found.to_string();
            if !explicit.contains(&name) && !expanded.task.inputs.contains(&name) {
                expanded.streams.entry(name.clone()).or_insert_with(|| spec.stream(&found));
                expanded.task.inputs.push(name);
            }
        }
    }
    expanded
}

impl JobSpec {
    /// Whether some input stands for several topics.
    #[must_use]
    pub fn has_patterns(&self) -> bool {
        self.task.inputs.iter().any(|input| input.contains("./"))
    }

    /// The pattern among the inputs by which `stream` is one; the first that matches.
    #[must_use]
    pub fn pattern_of(&self, stream: &SystemStream) -> Option<SystemStream> {
        let matches = |input: &SystemStream| {
            let regex = input.pattern().filter(|_| input.system == stream.system);
            regex.and_then(|text| whole_name(text).ok()).is_some_and(|regex| regex.is_match(&stream.stream))
        };
        let patterns = self.task.inputs.iter().filter(|input| input.contains("./"));
        patterns.filter_map(|input| SystemStream::parse(input)).find(matches)
    }

    pub(crate) fn stream_of_pattern(&self, stream: &SystemStream) -> Option<StreamSpec> {
        let settings = self.streams.get(&self.pattern_of(stream)?.to_string())?;
        Some(StreamSpec { topic: stream.stream.clone(), ..settings.clone() })
    }

    /// Whether a topic is one that no pattern stands for: internal, or written by the job itself.
    fn is_its_own(&self, topic: &str) -> bool {
        let is_changelog = self.stores.values().any(|store| store.changelog.as_deref() == Some(topic));
        let is_output = self.streams.iter().any(|(name, spec)| {
            !self.task.inputs.contains(name) && !name.contains("./") && spec.topic == topic
        });
        topic.starts_with("__")
            || is_changelog
            || is_output
            || self.dead_letter_topic().as_deref() == Some(topic)
    }

    fn dead_letter_topic(&self) -> Option<String> {
        let name = self.errors.dead_letter.as_ref()?;
        let stream = SystemStream::parse(name)?;
        Some(self.streams.get(name).map_or(stream.stream, |spec| spec.topic.clone()))
    }
}
