//! What brokers and connections say when nobody has asked: librdkafka retries such things by itself, and whoever waits
//! in vain is told of them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The last thing that went wrong with a connection.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    last: Mutex<Option<(Instant, String)>>,
    /// What is wrong with the certificate of a broker: that a connection failed for one is told without it.
    certificate: Mutex<Option<String>>,
}

/// librdkafka tells of the same trouble once in half a minute.
const FRESH: Duration = Duration::from_secs(35);

impl Trouble {
    /// Notes what one of librdkafka's logs says of a connection.
    pub(crate) fn note(&self, text: &str) {
        let mut text = text.to_owned();
        if text.contains(VERIFY_FAILED)
            && let Some(why) = &*self.certificate.lock().unwrap_or_else(PoisonError::into_inner)
        {
            text = format!("{text}: {why}");
        }
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), text));
    }

    /// Notes what is wrong with a certificate that was just looked at.
    pub(crate) fn note_certificate(&self, why: &str) {
        *self.certificate.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// A broker has answered.
    pub(crate) fn over(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What went wrong lately, with the key of the job file to look at.
    pub(crate) fn last(&self) -> Option<Cause> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, text) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH)?;
        Some(Cause::of(text))
    }
}

/// Why no broker answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// The key of a system in the job file that it is about.
    pub(crate) key: &'static str,
    /// What librdkafka said and what that means.
    pub(crate) text: String,
    /// Whether another try can do nothing about it.
    pub(crate) lasting: bool,
}

/// How OpenSSL says that a broker's certificate is not taken.
const VERIFY_FAILED: &str = "certificate verify failed";

/// What becomes of a client without TLS where it is needed; of one with TLS it says nothing.
const NO_TLS: &str = "in state APIVERSION_QUERY";

/// Words of librdkafka and OpenSSL: the key they are about, and what they mean.
const CAUSES: &[(&str, &str, &str)] = &[
    // Before the others: OpenSSL says of a plaintext listener's answer that it is no handshake.
    (
        "wrong version number",
        "security.protocol",
        "the listener does not speak TLS; give \"plaintext\" or \"sasl_plaintext\", or the address of a TLS listener",
    ),
    (
        "connecting to a PLAINTEXT broker listener",
        "security.protocol",
        "the listener does not speak TLS; give \"plaintext\" or \"sasl_plaintext\", or the address of a TLS listener",
    ),
    (
        "connecting to a SSL listener",
        "security.protocol",
        "the listener seems to speak TLS; give \"ssl\" or \"sasl_ssl\"",
    ),
    (
        "might require SASL authentication",
        "security.protocol",
        "the listener asks clients who they are; give \"sasl_ssl\" or \"sasl_plaintext\" and a `mechanism`",
    ),
    (
        "certificate has expired",
        "security.ca",
        "a certificate has expired: the broker's or that of who vouches for it",
    ),
    ("certificate is not yet valid", "security.ca", "the certificate's time has not come: is a clock wrong?"),
    ("ostname mismatch", "bootstrap", "the broker's certificate is for another host name"),
    ("IP address mismatch", "bootstrap", "the broker's certificate is not for this address"),
    ("certificate required", "security.certificate", "the brokers ask for a client's certificate"),
    ("bad certificate", "security.certificate", "the brokers do not take the client's certificate"),
    (VERIFY_FAILED, "security.ca", "nobody in `ca` vouches for the broker's certificate"),
    ("unable to get local issuer", "security.ca", "nobody in `ca` vouches for the broker's certificate"),
    ("self signed certificate", "security.ca", "nobody in `ca` vouches for the broker's certificate"),
    ("self-signed certificate", "security.ca", "nobody in `ca` vouches for the broker's certificate"),
    ("SSL handshake failed", "security.protocol", "the two sides cannot agree on TLS"),
    ("Unsupported SASL mechanism", "security.mechanism", "the brokers do not have this mechanism"),
    ("OAUTHBEARER token", "security.token-file", "there is no token that could be sent"),
    ("SASL authentication error", "security.password", "the brokers do not take the name and what proves it"),
    ("SASL", "security.mechanism", "the two sides cannot agree on who the client is"),
    ("Failed to resolve", "bootstrap", "no such host is known"),
    // What some listeners do with a handshake, which is no request to them: they hang up.
    (
        "in state SSL_HANDSHAKE",
        "security.protocol",
        "the listener does not speak TLS, or ends the handshake; give \"plaintext\" or \"sasl_plaintext\" if it does not",
    ),
    // What a listener of TLS does with words that are none of its own.
    (NO_TLS, "security.protocol", "the listener seems to speak TLS; give \"ssl\" or \"sasl_ssl\""),
    (
        "in state UP",
        "security.protocol",
        "the listener ends the connection when it is asked something: does it ask clients who they are? give a `mechanism`",
    ),
    ("Connection refused", "bootstrap", "nobody listens there"),
    // Its first question. librdkafka takes it for a broker of ten years ago.
    (
        "ApiVersionRequest failed: Local: Timed out",
        "bootstrap",
        "somebody listens there but no broker answers",
    ),
];

impl Cause {
    fn of(text: &str) -> Cause {
        // Whoever says nothing may be slow: the state in which it does tells nothing of its listener.
        let is_silent = text.to_lowercase().contains("timed out");
        let speaks_tls = text.contains("ssl://");
        let is_about = |words: &str| match words {
            NO_TLS => !is_silent && !speaks_tls,
            _ => !(is_silent && words.starts_with("in state")),
        };
        let known = CAUSES.iter().find(|(words, ..)| text.contains(words) && is_about(words));
        match known {
            Some((_, key, meaning)) => Cause {
                key,
                text: format!("{meaning}; look at the system's `{key}` in the job file ({text})"),
                lasting: !is_silent && (key.starts_with("security.") || meaning.contains("certificate")),
            },
            None => Cause { key: "bootstrap", text: text.to_owned(), lasting: false },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_says_is_told_with_its_key_until_a_broker_answers() {
        let trouble = Trouble::default();
        assert_eq!(trouble.last(), None);
        trouble.note(
            "sasl_ssl://b:9092/bootstrap: SASL authentication error: Authentication failed (after 5ms)",
        );
        let cause = trouble.last().expect("noted");
        assert_eq!((cause.key, cause.lasting), ("security.password", true));
        for (text, key) in [
            ("b:9092/bootstrap: Disconnected (after 3ms in state APIVERSION_QUERY)", "security.protocol"),
            ("ssl://b:9092/bootstrap: Disconnected (after 3ms in state APIVERSION_QUERY)", "bootstrap"),
            ("b:9092/bootstrap: Local: Timed out (after 9ms in state APIVERSION_QUERY)", "bootstrap"),
            ("ssl://b:9092/bootstrap: Connection setup timed out in state SSL_HANDSHAKE", "bootstrap"),
            ("ssl://b:9092/bootstrap: Disconnected (after 2ms in state SSL_HANDSHAKE)", "security.protocol"),
        ] {
            trouble.note(text);
            let cause = trouble.last().expect("noted");
            assert_eq!((cause.key, cause.lasting), (key, key != "bootstrap"), "{text}");
        }
        trouble.note("b:9092/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms)");
        let cause = trouble.last().expect("noted");
        assert_eq!((cause.key, cause.lasting), ("bootstrap", false));
        trouble.over();
        assert_eq!(trouble.last(), None);
    }
}
