//! [`Access`]: what every client of a system needs to get in, its secrets included.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use task_api::system::SystemError;
use types::{Given, SaslMechanism, SecurityKey as Key, SecuritySpec, SystemSpec};

use crate::native;

/// The brokers of one system, and the settings of clients that they let in. It holds secrets: it is never stored and
/// prints no setting.
#[derive(Clone)]
pub struct Access {
    /// host:port, comma separated.
    pub bootstrap: String,
    /// Of consumers and administrators.
    pub consumer: BTreeMap<String, String>,
    /// Of producers.
    pub producer: BTreeMap<String, String>,
}

/// Tells the content of a job's secret by its name, or why it cannot.
pub type SecretOf<'a> = dyn Fn(&str) -> Result<String, String> + 'a;

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("bootstrap", &self.bootstrap).finish_non_exhaustive()
    }
}

impl Access {
    /// Access to the system `name` of a job.
    ///
    /// # Errors
    /// A secret is not there or empty, or librdkafka was built without what the system asks for; the text names the
    /// key of the job file.
    pub fn of(name: &str, spec: &SystemSpec, secret: &SecretOf<'_>) -> Result<Access, SystemError> {
        let shared = match &spec.security {
            Some(security) => settings(security, secret, &native::features()).map_err(|(key, why)| {
                SystemError::Fatal(format!("`systems.{name}.security.{key}`: {why}"))
            })?,
            None => BTreeMap::new(),
        };
        let with = |own: &BTreeMap<String, String>| own.clone().into_iter().chain(shared.clone()).collect();
        Ok(Access {
            bootstrap: spec.bootstrap.clone(),
            consumer: with(&spec.consumer),
            producer: with(&spec.producer),
        })
    }
}

/// The content of a secret of the job in the folder that a node manager names in `SAMZA_SECRETS_DIR`.
///
/// # Errors
/// There is no such folder or file.
pub fn environments_secret(name: &str) -> Result<String, String> {
    let folder = std::env::var_os("SAMZA_SECRETS_DIR")
        .ok_or("SAMZA_SECRETS_DIR is not set, so there are no secrets")?;
    let path = Path::new(&folder).join(name);
    std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// librdkafka's settings; an error tells the key and why.
fn settings(
    security: &SecuritySpec,
    secret: &SecretOf<'_>,
    features: &str,
) -> Result<BTreeMap<String, String>, (&'static str, String)> {
    let mut settings = security.settings.clone();
    let mut set = |name: &str, value: &str| drop(settings.insert(name.to_owned(), value.to_owned()));
    set("security.protocol", &security.protocol.to_string());
    if let Some(mechanism) = security.mechanism {
        set("sasl.mechanisms", &mechanism.to_string());
        let oidc = security.values.contains_key(&Key::TokenEndpoint);
        if let Some((feature, cargo)) = needs(mechanism, oidc)
            && !features.split(',').any(|built| built.trim() == feature)
        {
            let what = if oidc { "tokens from an endpoint" } else { "GSSAPI" };
            let instead = if oidc { "give `token-file`, which another program keeps fresh, or" } else { "" };
            return Err((
                "mechanism",
                format!(
                    "{what} cannot be used by this program: its librdkafka was built without `{feature}`; {instead} build it with cargo's feature `{cargo}`"
                ),
            ));
        }
        if oidc {
            set("sasl.oauthbearer.method", "oidc");
        }
    }
    for (key, given) in &security.values {
        let value = match given {
            Given::Text(text) => text.clone(),
            Given::Secret(name) => secret(name).map_err(|why| (key.name(), why))?,
        };
        // Editors end a file with a line's end that is no part of a password.
        let value = if key.is_pem() { value.as_str() } else { value.trim_end_matches(['\n', '\r']) };
        if value.is_empty() {
            return Err((key.name(), "its file is empty".to_owned()));
        }
        if key.is_pem() && !value.contains("-----BEGIN ") {
            return Err((
                key.name(),
                "its file is not in PEM form, which has a line `-----BEGIN …-----`".to_owned(),
            ));
        }
        set(setting(*key), value);
    }
    Ok(settings)
}

/// librdkafka's feature that a mechanism needs beyond what is always built, and cargo's that builds it.
fn needs(mechanism: SaslMechanism, oidc: bool) -> Option<(&'static str, &'static str)> {
    match mechanism {
        SaslMechanism::Gssapi => Some(("sasl_gssapi", "gssapi")),
        SaslMechanism::OauthBearer if oidc => Some(("oidc", "oidc")),
        _ => None,
    }
}

fn setting(key: Key) -> &'static str {
    match key {
        Key::Ca => "ssl.ca.pem",
        Key::Certificate => "ssl.certificate.pem",
        Key::Key => "ssl.key.pem",
        Key::KeyPassword => "ssl.key.password",
        Key::Username => "sasl.username",
        Key::Password => "sasl.password",
        Key::TokenFile => native::TOKEN_FILE,
        Key::TokenEndpoint => "sasl.oauthbearer.token.endpoint.url",
        Key::ClientId => "sasl.oauthbearer.client.id",
        Key::ClientSecret => "sasl.oauthbearer.client.secret",
        Key::Scope => "sasl.oauthbearer.scope",
    }
}

#[cfg(test)]
mod tests {
    use types::{SecurityProtocol, SystemKind};

    use super::*;

    fn system(mechanism: SaslMechanism, values: &[(Key, Given)]) -> SystemSpec {
        SystemSpec {
            kind: SystemKind::Kafka,
            bootstrap: "127.0.0.1:9092".into(),
            consumer: BTreeMap::from([("fetch.min.bytes".into(), "1".into())]),
            producer: BTreeMap::new(),
            replication: None,
            path: None,
            security: Some(SecuritySpec {
                protocol: SecurityProtocol::SaslSsl,
                mechanism: Some(mechanism),
                values: values.iter().cloned().collect(),
                settings: BTreeMap::new(),
            }),
        }
    }

    fn password(name: &str) -> (Key, Given) {
        (Key::Password, Given::Secret(name.into()))
    }

    #[test]
    fn security_given_once_is_every_clients_and_is_not_printed() {
        let secret =
            |name: &str| if name == "pw" { Ok("swordfish\n".to_owned()) } else { Err("none".to_owned()) };
        let values = [password("pw"), (Key::Username, Given::Text("job".into()))];
        let access =
            Access::of("kafka", &system(SaslMechanism::ScramSha512, &values), &secret).expect("good");
        for settings in [&access.consumer, &access.producer] {
            assert_eq!(settings["sasl.password"], "swordfish", "without its line's end");
            assert_eq!(settings["security.protocol"], "sasl_ssl");
            assert_eq!(settings["sasl.mechanisms"], "SCRAM-SHA-512");
        }
        assert!(access.consumer.contains_key("fetch.min.bytes"));
        assert!(!format!("{access:?}").contains("swordfish"));
    }

    #[test]
    fn a_secret_that_is_not_there_is_told_by_its_key() {
        let told = |values: &[(Key, Given)], content: Result<&str, &str>| {
            let secret = |_: &str| content.map(str::to_owned).map_err(str::to_owned);
            Access::of("kafka", &system(SaslMechanism::Plain, values), &secret).expect_err("bad").to_string()
        };
        assert!(
            told(&[password("x")], Err("it is gone"))
                .contains("`systems.kafka.security.password`: it is gone")
        );
        assert!(told(&[password("x")], Ok("\n")).contains("security.password`: its file is empty"));
        assert!(
            told(&[(Key::Ca, Given::Secret("x".into()))], Ok("text"))
                .contains("security.ca`: its file is not in PEM")
        );
    }

    #[test]
    fn what_the_library_was_built_without_is_told_by_name() {
        let security = system(SaslMechanism::Gssapi, &[]).security.expect("some");
        let none = |_: &str| Err(String::new());
        let (key, why) = settings(&security, &none, "ssl,sasl_plain").expect_err("not built");
        assert!(
            key == "mechanism" && why.contains("without `sasl_gssapi`") && why.contains("feature `gssapi`"),
            "{why}"
        );
        assert!(settings(&security, &none, "ssl, sasl_gssapi").is_ok());
    }
}
