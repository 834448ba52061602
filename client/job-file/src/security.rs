//! `[systems.<name>.security]`: what goes together, and that nothing secret stands in the job file.

use std::collections::BTreeMap;

use toml::de::DeValue;
use types::{
    Given, SYSTEM_SECRETS, SaslMechanism, Secrets, SecurityKey as Key, SecurityProtocol, SecuritySpec,
    security_key,
};

use crate::client_settings::{no_such_setting, valid_value};
use crate::table::Section;
use crate::value::{Refusal, hinted, one_of, shown, text, wrong_type};

/// The security of the system named `system`; the files that its secrets are read from are added to `files`.
pub(crate) fn security(
    outer: &Section<'_, '_>,
    system: &str,
    files: &mut BTreeMap<String, String>,
) -> Option<SecuritySpec> {
    let given = outer.holds("security");
    let section = outer.section("security", "systems.*.security");
    section.finish();
    let mut spec = SecuritySpec {
        mechanism: section.optional("mechanism", |value| one_of(value, &SaslMechanism::ALL)),
        ..SecuritySpec::default()
    };
    for (name, key) in Key::ALL {
        let Some(value) = value(&section, name, key) else { continue };
        let value = match value {
            Value::Here(text) => Given::Text(text),
            Value::Secret(name) => Given::Secret(name),
            Value::File(path) => {
                let secret = format!("{SYSTEM_SECRETS}{system}.{name}");
                if !Secrets::is_name(&secret) {
                    section.bad(
                        name,
                        "the system's name is too long to name its secrets; give it a shorter one",
                    );
                }
                files.insert(secret.clone(), path);
                Given::Secret(secret)
            }
        };
        spec.values.insert(key, value);
    }
    spec.settings = section.settings("settings", &|name, value, _| setting(name, value));
    // Whoever says who it is is heard by nobody else, unless asked for by name.
    let derived = if spec.mechanism.is_some()
        || [Key::Username, Key::Password].iter().any(|key| spec.values.contains_key(key))
    {
        SecurityProtocol::SaslSsl
    } else {
        SecurityProtocol::Ssl
    };
    spec.protocol =
        section.optional("protocol", |value| one_of(value, &SecurityProtocol::ALL)).unwrap_or(derived);
    if given && !section.file.has_problem_under(&section.path) {
        together(&section, &spec);
    }
    given.then_some(spec)
}

enum Value {
    Here(String),
    File(String),
    Secret(String),
}

/// A text, `{ file = "…" }` or `{ secret = "…" }`, as far as the key takes it.
fn value(section: &Section<'_, '_>, name: &'static str, key: Key) -> Option<Value> {
    let instead = format!("write `{name} = {{ file = \"kafka-{name}\" }}`, which is read at submit");
    section.optional(name, |value| match value {
        DeValue::String(_) if key.is_secret() => {
            Err(format!("a secret must not stand in the job file, which everyone may read; {instead}"))
        }
        DeValue::String(_) if key.is_pem() => {
            Err(format!("it is the content of a file in PEM form; {instead}"))
        }
        DeValue::String(_) => text(value).and_then(|text| plain(key, text)).map(Value::Here),
        DeValue::Table(table) if matches!(key, Key::TokenFile | Key::TokenEndpoint) => {
            let _ = table;
            Err(wrong_type(value, "a string"))
        }
        DeValue::Table(table) => {
            let mut entries = table.iter();
            let (Some((from, value)), None) = (entries.next(), entries.next()) else {
                return Err(format!("expected one of `file` and `secret`; {instead}"));
            };
            let named = text(value.get_ref())?;
            match (&**from.get_ref(), named.trim().is_empty()) {
                ("file", false) => Ok(Value::File(named)),
                ("secret", false) => Ok(Value::Secret(named)),
                ("file" | "secret", true) => Err("names nothing".to_owned()),
                (other, _) => Err(hinted(
                    &format!("unknown key `{}`", shown(other)),
                    crate::keys::nearest(other, ["file", "secret"]).map(|near| format!("`{near}`")),
                    "keys: file, secret",
                )),
            }
        }
        other => Err(format!("{}; {instead}", wrong_type(other, "{ file = \"…\" }"))),
    })
}

/// A text that stands in the job file.
fn plain(key: Key, text: String) -> Result<String, Refusal> {
    if text.is_empty() {
        return Err("must not be empty".to_owned());
    }
    let web = text.starts_with("https://") || text.starts_with("http://");
    match key {
        Key::TokenFile if !text.starts_with('/') => {
            Err(format!("\"{}\" is no path from the root; valid: a file that is on every machine", shown(&text)))
        }
        Key::TokenEndpoint if !web => Err(format!("\"{}\" is no URL; valid: https://host/path", shown(&text))),
        Key::TokenEndpoint if text.contains('@') => {
            Err("holds credentials, and everyone who sees the job sees its URL; give `client-id` and `client-secret`".to_owned())
        }
        _ => Ok(text),
    }
}

/// A setting of librdkafka that has no key of its own.
fn setting(name: &str, value: &str) -> Result<(), Refusal> {
    match security_key(name) {
        Some("settings") => valid_value(name, value, &|name| security_key(name) == Some("settings")),
        Some(key) => Err(format!("has a key of its own: `security.{key}`")),
        None if types::ClientSetting::find(name).is_some() => {
            Err("has nothing to do with security; give it in `consumer` or `producer`".to_owned())
        }
        None => Err(no_such_setting(name, &|name| security_key(name) == Some("settings"))),
    }
}

/// Reports what is missing for the protocol and the mechanism, and what they have no use for.
fn together(section: &Section<'_, '_>, spec: &SecuritySpec) {
    let protocol = spec.protocol;
    let has = |key: Key| spec.values.contains_key(&key);
    let useless = |key: Key, why: &str| {
        if has(key) {
            section.bad(key.name(), &format!("{why}; leave it out"));
        }
    };
    if !protocol.is_tls() {
        for key in [Key::Ca, Key::Certificate, Key::Key, Key::KeyPassword] {
            useless(key, &format!("protocol \"{protocol}\" has no TLS"));
        }
    }
    needs(section, spec, Key::Certificate, Key::Key);
    needs(section, spec, Key::Key, Key::Certificate);
    needs(section, spec, Key::KeyPassword, Key::Key);
    let mechanisms = SaslMechanism::ALL.map(|(name, _)| format!("\"{name}\"")).join(", ");
    let Some(mechanism) = spec.mechanism else {
        if protocol.is_sasl() {
            let at = section.file.line_of(&section.full("protocol")).or(section.file.line_of(&section.path));
            let key = section.full("mechanism");
            let told =
                format!("missing key `{key}`, which protocol \"{protocol}\" needs; valid: {mechanisms}");
            section.file.problem(at, &key, told);
        } else {
            for (_, key) in Key::ALL.into_iter().skip(4) {
                useless(
                    key,
                    &format!("protocol \"{protocol}\" asks nobody who they are (\"sasl_ssl\" does)"),
                );
            }
        }
        return;
    };
    if !protocol.is_sasl() {
        section.bad(
            "mechanism",
            &format!("protocol \"{protocol}\" has none; valid with it: \"sasl_ssl\", \"sasl_plaintext\""),
        );
        return;
    }
    let (needed, known): (&[Key], &[Key]) = match mechanism {
        m if m.takes_a_password() => (&[Key::Username, Key::Password], &[]),
        SaslMechanism::OauthBearer if has(Key::TokenEndpoint) => {
            (&[Key::TokenEndpoint, Key::ClientId, Key::ClientSecret], &[Key::Scope])
        }
        SaslMechanism::OauthBearer => (&[Key::TokenFile], &[]),
        _ => (&[], &[]),
    };
    for key in needed {
        if !has(*key) {
            let full = section.full(key.name());
            let example = if key.is_secret() { "{ file = \"kafka-secret\" }" } else { "\"…\"" };
            let at = section.file.line_of(&section.full("mechanism"));
            let told = format!(
                "missing key `{full}`, which mechanism \"{mechanism}\" needs; write, for example, `{} = {example}`",
                key.name()
            );
            section.file.problem(at, &full, told);
        }
    }
    for (_, key) in Key::ALL.into_iter().skip(4) {
        if !needed.contains(&key) && !known.contains(&key) {
            useless(key, &format!("mechanism \"{mechanism}\" takes none"));
        }
    }
}

fn needs(section: &Section<'_, '_>, spec: &SecuritySpec, one: Key, other: Key) {
    if spec.values.contains_key(&one) && !spec.values.contains_key(&other) {
        section.bad(one.name(), &format!("needs `{}` beside it, as `{{ file = \"…\" }}`", other.name()));
    }
}

/// The full path of the key that names the file of the secret `name`.
pub(crate) fn secret_key(name: &str) -> String {
    let of_system = name.strip_prefix(SYSTEM_SECRETS).and_then(|rest| rest.split_once('.'));
    match of_system {
        Some((system, key)) => format!("systems.{system}.security.{key}"),
        None => format!("package.secrets.{name}.file"),
    }
}
