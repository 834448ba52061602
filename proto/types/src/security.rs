//! How a job's processes prove to Kafka who they are, and Kafka to them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// `[systems.<name>.security]`. What is secret is not in it: it says by which name the job's
/// [`Secrets`](crate::Secrets) hold it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecuritySpec {
    /// `protocol`.
    pub protocol: SecurityProtocol,
    /// `mechanism`: how clients say who they are, with the protocols of SASL.
    pub mechanism: Option<SaslMechanism>,
    /// By key of the table: the other values that are given.
    pub values: BTreeMap<SecurityKey, Given>,
    /// `settings`: of librdkafka, for what has no key of its own.
    pub settings: BTreeMap<String, String>,
}

/// A value, or where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Given {
    /// This text.
    Text(String),
    /// The content of the job's secret of this name.
    Secret(String),
}

/// Secrets whose names begin so are those of `{ file = "…" }` in `[systems.<name>.security]`; the whole name is
/// `systems.<name>.<key>`.
pub const SYSTEM_SECRETS: &str = "systems.";

/// What is spoken between clients and brokers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    /// Nothing is hidden, nobody is known.
    #[default]
    Plaintext,
    /// TLS; clients may be known by certificates.
    Ssl,
    /// Clients say who they are; nothing is hidden.
    SaslPlaintext,
    /// TLS, and clients say who they are.
    SaslSsl,
}

impl SecurityProtocol {
    /// All, by the names that Kafka has for them, in lower case.
    pub const ALL: [(&'static str, SecurityProtocol); 4] = [
        ("plaintext", SecurityProtocol::Plaintext),
        ("ssl", SecurityProtocol::Ssl),
        ("sasl_plaintext", SecurityProtocol::SaslPlaintext),
        ("sasl_ssl", SecurityProtocol::SaslSsl),
    ];

    /// Whether it is over TLS.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, SecurityProtocol::Ssl | SecurityProtocol::SaslSsl)
    }

    /// Whether clients say who they are by SASL.
    #[must_use]
    pub fn is_sasl(self) -> bool {
        matches!(self, SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl)
    }
}

impl fmt::Display for SecurityProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_in(&SecurityProtocol::ALL, self))
    }
}

/// How clients say who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    /// Name and password as they are.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Name and password, the password never sent.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// The same with a longer digest.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A token.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
    /// Kerberos.
    #[serde(rename = "GSSAPI")]
    Gssapi,
}

impl SaslMechanism {
    /// All, by the names that Kafka has for them.
    pub const ALL: [(&'static str, SaslMechanism); 5] = [
        ("PLAIN", SaslMechanism::Plain),
        ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
        ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
        ("OAUTHBEARER", SaslMechanism::OauthBearer),
        ("GSSAPI", SaslMechanism::Gssapi),
    ];

    /// Whether it takes a name and a password.
    #[must_use]
    pub fn takes_a_password(self) -> bool {
        matches!(self, SaslMechanism::Plain | SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512)
    }
}

impl fmt::Display for SaslMechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_in(&SaslMechanism::ALL, self))
    }
}

/// A key of `[systems.<name>.security]` that holds a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecurityKey {
    /// Certificates of those who may vouch for brokers, PEM.
    Ca,
    /// The client's own certificate, PEM.
    Certificate,
    /// The client's private key, PEM.
    Key,
    /// What opens the key.
    KeyPassword,
    /// Who the client is.
    Username,
    /// What proves it.
    Password,
    /// A file on every machine that holds a token, kept fresh by somebody else.
    TokenFile,
    /// Where tokens are asked for.
    TokenEndpoint,
    /// Who asks for them.
    ClientId,
    /// What proves it.
    ClientSecret,
    /// What they are asked for.
    Scope,
}

impl SecurityKey {
    /// All, by their names in the job file.
    pub const ALL: [(&'static str, SecurityKey); 11] = [
        ("ca", SecurityKey::Ca),
        ("certificate", SecurityKey::Certificate),
        ("key", SecurityKey::Key),
        ("key-password", SecurityKey::KeyPassword),
        ("username", SecurityKey::Username),
        ("password", SecurityKey::Password),
        ("token-file", SecurityKey::TokenFile),
        ("token-endpoint", SecurityKey::TokenEndpoint),
        ("client-id", SecurityKey::ClientId),
        ("client-secret", SecurityKey::ClientSecret),
        ("scope", SecurityKey::Scope),
    ];

    /// Its name in the job file.
    #[must_use]
    pub fn name(self) -> &'static str {
        name_in(&SecurityKey::ALL, &self)
    }

    /// Whether its value may not stand in the job file.
    #[must_use]
    pub fn is_secret(self) -> bool {
        use SecurityKey as K;
        matches!(self, K::Key | K::KeyPassword | K::Password | K::ClientSecret)
    }

    /// Whether its value always is a file's content: PEM is no text for a line.
    #[must_use]
    pub fn is_pem(self) -> bool {
        matches!(self, SecurityKey::Ca | SecurityKey::Certificate | SecurityKey::Key)
    }
}

impl fmt::Display for SecurityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn name_in<T: PartialEq>(all: &[(&'static str, T)], one: &T) -> &'static str {
    all.iter().find(|(_, other)| other == one).map_or("", |(name, _)| name)
}
