//! Tokens of OAUTHBEARER, read from a file that another program keeps fresh.

use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka_sys::bindings as rd;

use super::{TEXT, rust_text};

/// The setting that carries the file's path: librdkafka hands it to [`on_token`] as it is.
pub(crate) const TOKEN_FILE: &str = "sasl.oauthbearer.config";

/// A token that does not say when it ends is read again after less than this, ms.
const UNTOLD_LIFETIME: i64 = 300_000;

/// A token, whose it is, and when it ends, unix ms.
#[derive(Debug, PartialEq)]
struct Token {
    text: String,
    principal: String,
    ends: i64,
}

impl Token {
    /// What the text says of itself if it is a JSON web token; brokers alone judge whether it is true.
    fn of(text: &str, now: i64) -> Token {
        let claims =
            text.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok());
        let claims: serde_json::Value =
            claims.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        #[expect(clippy::cast_possible_truncation, reason = "a time in seconds")]
        let ends = claims["exp"].as_f64().map(|seconds| (seconds * 1000.0) as i64);
        Token {
            text: text.to_owned(),
            principal: claims["sub"].as_str().unwrap_or("samza").to_owned(),
            ends: ends.unwrap_or(now + UNTOLD_LIFETIME),
        }
    }

    fn read(path: &Path) -> Result<Token, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        match Token::of(text.trim(), now) {
            token if token.text.is_empty() => Err(format!("{shown} is empty")),
            token if token.ends <= now => {
                Err(format!("the token in {shown} ended {} s ago", (now - token.ends) / 1000))
            }
            token => Ok(token),
        }
    }
}

/// Called by librdkafka, on a thread of its own, when it needs a token and again before that one ends.
pub(super) unsafe extern "C" fn on_token(
    rk: *mut rd::rd_kafka_t,
    path: *const c_char,
    _mailbox: *mut c_void,
) {
    let given = Token::read(Path::new(&rust_text(path))).and_then(|token| {
        let zero = |_| "the token has a zero byte".to_owned();
        let (text, principal) =
            (CString::new(token.text).map_err(zero)?, CString::new(token.principal).map_err(zero)?);
        let mut why = [0 as c_char; TEXT];
        // SAFETY: the handle is alive during its callback; all texts are copied.
        let code = unsafe {
            rd::rd_kafka_oauthbearer_set_token(
                rk,
                text.as_ptr(),
                token.ends,
                principal.as_ptr(),
                std::ptr::null_mut(),
                0,
                why.as_mut_ptr(),
                TEXT,
            )
        };
        if code == rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(rust_text(why.as_ptr()))
        }
    });
    if let Err(why) = given {
        let why = CString::new(why).unwrap_or_default();
        // SAFETY: as above. It is told as an error of the client and tried again in ten seconds.
        unsafe { rd::rd_kafka_oauthbearer_set_token_failure(rk, why.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_whose_it_is_and_when_it_ends() {
        let claims = URL_SAFE_NO_PAD.encode(br#"{"sub":"job","exp":1700000000}"#);
        let token = Token::of(&format!("header.{claims}.signature"), 5);
        assert_eq!((token.principal.as_str(), token.ends), ("job", 1_700_000_000_000));
        assert_eq!(Token::of("opaque", 5).ends, 5 + UNTOLD_LIFETIME);
    }

    #[test]
    fn a_token_that_cannot_be_sent_is_told_with_its_file() {
        let folder = std::env::temp_dir().join(format!("samza-token-{}", std::process::id()));
        let says = |text: &str| {
            std::fs::write(&folder, text).expect("writable");
            Token::read(&folder).expect_err("no token")
        };
        assert!(says("\n").ends_with("is empty"));
        let claims = URL_SAFE_NO_PAD.encode(br#"{"sub":"job","exp":1700000000}"#);
        assert!(says(&format!("h.{claims}.s")).contains("ended"));
        std::fs::remove_file(&folder).expect("it is there");
        assert!(Token::read(&folder).expect_err("gone").starts_with("cannot read"));
    }
}
