//! Readers of single values: what is expected, said in the error when it is not there.

use std::collections::BTreeMap;

use toml::de::DeValue;
use types::{StateLost, SystemStream};

use crate::keys::nearest;
use crate::units::{DURATION_FORM, MEMORY_FORM, duration_ms, memory_bytes, print_memory};

/// Serdes that tools know by name.
pub(crate) const SERDES: &[&str] = &["string", "bytes", "i64", "f64", "json"];

/// What a reader says of a value it refuses.
pub(crate) type Refusal = String;

/// `expected …, found an integer`.
pub(crate) fn wrong_type(value: &DeValue<'_>, expected: &str) -> Refusal {
    let found = match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    format!("expected {expected}, found {found}")
}

/// `what; did you mean hint? valid: …`; `valid` begins with what follows that word.
pub(crate) fn hinted(what: &str, hint: Option<String>, valid: &str) -> String {
    let space = if valid.starts_with(':') { "" } else { " " };
    match hint {
        Some(hint) => format!("{what}; did you mean {hint}? valid{space}{valid}"),
        None => format!("{what}; valid{space}{valid}"),
    }
}

pub(crate) fn text(value: &DeValue<'_>) -> Result<String, Refusal> {
    value.as_str().map(str::to_owned).ok_or_else(|| wrong_type(value, "a string"))
}

/// `state-lost`.
pub(crate) fn state_lost(value: &DeValue<'_>) -> Result<StateLost, Refusal> {
    one_of(value, &[("fail", StateLost::Fail), ("local", StateLost::Local), ("empty", StateLost::Empty)])
}

pub(crate) fn boolean(value: &DeValue<'_>) -> Result<bool, Refusal> {
    value.as_bool().ok_or_else(|| wrong_type(value, "true or false"))
}

/// An integer from `least` to `most`.
pub(crate) fn integer(value: &DeValue<'_>, least: i64, most: i64) -> Result<i64, Refusal> {
    let Some(integer) = value.as_integer() else {
        return Err(wrong_type(value, &format!("an integer from {least} to {most}")));
    };
    let shown = integer.to_string();
    i64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("{shown} is out of range; valid: {least} to {most}"))
}

pub(crate) fn duration(value: &DeValue<'_>) -> Result<u64, Refusal> {
    let Some(text) = value.as_str() else {
        let hint = match value {
            DeValue::Integer(number) => format!("; did you mean \"{number}s\"?"),
            _ => String::new(),
        };
        return Err(format!("{}{hint}", wrong_type(value, &format!("a duration: {DURATION_FORM}"))));
    };
    duration_ms(text).ok_or_else(|| format!("\"{}\" is not a duration; valid: {DURATION_FORM}", shown(text)))
}

/// A duration that is not zero.
pub(crate) fn some_duration(value: &DeValue<'_>) -> Result<u64, Refusal> {
    match duration(value)? {
        0 => Err(format!("must be longer than zero; valid: {DURATION_FORM}")),
        ms => Ok(ms),
    }
}

/// Memory for a container.
pub(crate) fn memory(value: &DeValue<'_>) -> Result<u64, Refusal> {
    const LEAST: u64 = 16 << 20;
    let bytes = memory_amount(value)?;
    if bytes < LEAST {
        let text = value.as_str().unwrap_or_default();
        return Err(format!("\"{}\" is too little for a container; the least is \"16MiB\"", shown(text)));
    }
    Ok(bytes)
}

/// A size from `least` to `most` bytes.
pub(crate) fn size(value: &DeValue<'_>, least: u64, most: u64) -> Result<u64, Refusal> {
    let bytes = memory_amount(value)?;
    if !(least..=most).contains(&bytes) {
        return Err(format!(
            "\"{}\" is out of range; valid: \"{}\" to \"{}\"",
            shown(value.as_str().unwrap_or_default()),
            print_memory(least),
            print_memory(most)
        ));
    }
    Ok(bytes)
}

fn memory_amount(value: &DeValue<'_>) -> Result<u64, Refusal> {
    let Some(text) = value.as_str() else {
        return Err(wrong_type(value, &format!("an amount of memory: {MEMORY_FORM}")));
    };
    let Some(bytes) = memory_bytes(text) else {
        let hint = meant_memory(text).map(|meant| format!("\"{meant}\""));
        return Err(hinted(
            &format!("\"{}\" is not an amount of memory", shown(text)),
            hint,
            &format!(": {MEMORY_FORM}"),
        ));
    };
    Ok(bytes)
}

/// `512M`, `512Mi` and `512m` name a unit of other systems.
fn meant_memory(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
    let unit = match &text[digits..].trim().to_ascii_lowercase()[..] {
        "k" | "ki" => "KiB",
        "m" | "mi" => "MiB",
        "g" | "gi" => "GiB",
        _ => return None,
    };
    Some(format!("{}{unit}", &text[..digits]))
}

/// Cores, as thousandths.
pub(crate) fn cpu(value: &DeValue<'_>) -> Result<u32, Refusal> {
    const FORM: &str = "a number of cores from 0.01 to 1024, such as 0.5 or 2";
    let cores: f64 = match value {
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
        DeValue::Float(number) => number.as_str().parse().ok(),
        _ => return Err(wrong_type(value, FORM)),
    }
    .unwrap_or(f64::NAN);
    if !(0.01..=1024.0).contains(&cores) {
        return Err(format!("out of range; valid: {FORM}"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    Ok((cores * 1000.0).round() as u32)
}

/// One of named choices.
pub(crate) fn one_of<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Result<T, Refusal> {
    let names = || choices.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let Some(text) = value.as_str() else {
        return Err(wrong_type(value, &format!("one of {}", names())));
    };
    choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice).ok_or_else(|| {
        let hint = nearest(text, choices.iter().map(|(name, _)| *name)).map(|name| format!("\"{name}\""));
        hinted(&format!("\"{}\" is not known", shown(text)), hint, &format!(": {}", names()))
    })
}

pub(crate) fn serde_name(value: &DeValue<'_>) -> Result<String, Refusal> {
    let choices: Vec<(&str, &str)> = SERDES.iter().map(|name| (*name, *name)).collect();
    one_of(value, &choices).map(str::to_owned)
}

/// A table of strings; numbers and booleans are taken as their text, and `a.b = 1` as the key `a.b`.
pub(crate) fn settings(value: &DeValue<'_>) -> Result<BTreeMap<String, String>, Refusal> {
    let Some(table) = value.as_table() else {
        return Err(wrong_type(value, "a table of settings, such as { key = \"value\" }"));
    };
    let mut settings = BTreeMap::new();
    for (key, value) in table {
        let key = key.get_ref();
        match value.get_ref() {
            DeValue::Table(_) => {
                let inner = self::settings(value.get_ref())?;
                settings.extend(inner.into_iter().map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            DeValue::String(text) => drop(settings.insert(key.to_string(), text.to_string())),
            DeValue::Integer(number) => drop(settings.insert(key.to_string(), decimal(number))),
            DeValue::Float(number) => drop(settings.insert(key.to_string(), number.as_str().to_owned())),
            DeValue::Boolean(flag) => drop(settings.insert(key.to_string(), flag.to_string())),
            other @ (DeValue::Datetime(_) | DeValue::Array(_)) => {
                return Err(format!("`{key}`: {}", wrong_type(other, "a string, a number or a boolean")));
            }
        }
    }
    Ok(settings)
}

fn decimal(number: &toml::de::DeInteger<'_>) -> String {
    i64::from_str_radix(number.as_str(), number.radix())
        .map_or_else(|_| number.to_string(), |number| number.to_string())
}

/// Letters, digits, `.`, `_` and `-`, beginning with a letter or a digit: it becomes part of topic and folder names.
pub(crate) fn name(value: &DeValue<'_>) -> Result<String, Refusal> {
    let name = text(value)?;
    valid_name(&name).map(|()| name)
}

/// See [`name`].
pub(crate) fn valid_name(name: &str) -> Result<(), Refusal> {
    const MOST: usize = 100;
    if name.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if name.len() > MOST {
        return Err(format!("is {} characters long; the most is {MOST}", name.len()));
    }
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !begins_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return Err(format!(
            "\"{}\" is not a valid name; valid: letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
            shown(name)
        ));
    }
    Ok(())
}

/// A job's id. Without `-`, so that `<name>-<id>` names one job only.
pub(crate) fn id(value: &DeValue<'_>) -> Result<String, Refusal> {
    if let DeValue::Integer(number) = value {
        return Err(format!("{}; did you mean \"{number}\"?", wrong_type(value, "a string")));
    }
    let id = name(value)?;
    if id.contains('-') {
        return Err(format!("\"{id}\" holds a `-`, which would make <name>-<id> ambiguous; use `_` or `.`"));
    }
    Ok(id)
}

/// A Kafka topic.
pub(crate) fn topic(value: &DeValue<'_>) -> Result<String, Refusal> {
    let topic = text(value)?;
    valid_topic(&topic).map(|()| topic)
}

/// See [`topic`].
pub(crate) fn valid_topic(topic: &str) -> Result<(), Refusal> {
    let legal = topic.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if topic.is_empty() || topic.len() > 249 || topic == "." || topic == ".." || !legal {
        return Err(format!(
            "\"{}\" is not a topic name; valid: 1 to 249 letters, digits, `.`, `_` and `-`",
            shown(topic)
        ));
    }
    Ok(())
}

/// The path of a stream of files, `-` for stdin or stdout.
pub(crate) fn file_path(value: &DeValue<'_>) -> Result<String, Refusal> {
    let path = text(value)?;
    if path.trim().is_empty() || path.contains('\0') {
        return Err(format!(
            "\"{}\" is not a path; valid: a file of JSON lines, a folder of them, or \"-\" for stdin and stdout",
            shown(&path)
        ));
    }
    Ok(path)
}

/// The folder of a system of files.
pub(crate) fn folder(value: &DeValue<'_>) -> Result<String, Refusal> {
    let path = text(value)?;
    if path.trim().is_empty() || path.contains('\0') {
        return Err(format!("\"{}\" names no folder; valid: a path, such as \"data\"", shown(&path)));
    }
    Ok(path)
}

/// The name of a field of a JSON object.
pub(crate) fn field(value: &DeValue<'_>) -> Result<String, Refusal> {
    let name = text(value)?;
    if name.is_empty() { Err("must not be empty; valid: the name of a field".to_owned()) } else { Ok(name) }
}

/// A stream's full name.
pub(crate) fn stream_name(value: &DeValue<'_>) -> Result<String, Refusal> {
    let name = text(value)?;
    stream(&name).map(|_| name)
}

/// `<system>.<stream>`.
pub(crate) fn stream(text: &str) -> Result<SystemStream, Refusal> {
    let Some(stream) = SystemStream::parse(text) else {
        return Err(format!(
            "\"{}\" is not a stream; valid: <system>.<stream>, such as \"kafka.flights\"",
            shown(text)
        ));
    };
    valid_topic(&stream.stream).map(|()| stream)
}

/// `<system>.<stream>`, or `<system>./<regex>/` for every topic whose whole name matches.
pub(crate) fn input(text: &str) -> Result<SystemStream, Refusal> {
    let parsed = SystemStream::parse(text);
    let Some((parsed, begun)) =
        parsed.as_ref().and_then(|parsed| Some((parsed, parsed.stream.strip_prefix('/')?)))
    else {
        return stream(text);
    };
    const FORM: &str =
        "valid: <system>./<regex>/, such as \"kafka./^orders-.*/\", which must match the whole name";
    let Some(pattern) = begun.strip_suffix('/').filter(|pattern| !pattern.is_empty()) else {
        return Err(format!("\"{}\" begins a pattern and does not end it; {FORM}", shown(text)));
    };
    match types::whole_name(pattern) {
        Ok(_) => Ok(parsed.clone()),
        Err(why) => {
            Err(format!("\"{}\" is not a regular expression: {}; {FORM}", shown(pattern), shown(&why)))
        }
    }
}

/// `host:port`, comma separated.
pub(crate) fn bootstrap(value: &DeValue<'_>) -> Result<String, Refusal> {
    const FORM: &str = "host:port, comma separated, such as \"127.0.0.1:9092,127.0.0.2:9092\"";
    let Some(list) = value.as_str() else { return Err(wrong_type(value, FORM)) };
    for address in list.split(',').map(str::trim) {
        let parts = address.rsplit_once(':');
        let valid = parts.is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(char::is_whitespace)
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !valid {
            return Err(format!("\"{}\" is not an address; valid: {FORM}", shown(address)));
        }
    }
    Ok(list.split(',').map(str::trim).collect::<Vec<_>>().join(","))
}

/// The environment of a container.
pub(crate) fn environment(value: &DeValue<'_>) -> Result<BTreeMap<String, String>, Refusal> {
    let env = settings(value)?;
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("\"{}\" cannot be an environment variable", shown(name)));
        }
        if name.starts_with("SAMZA_") {
            return Err(format!("`{name}` is set by the cluster; names beginning with SAMZA_ are reserved"));
        }
    }
    Ok(env)
}

/// User text for a message: on one line, and not endless.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().count() > 60 {
        shown.push('…');
    }
    shown
}
