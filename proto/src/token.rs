//! The cluster's shared secret, sent with every call as `authorization: Bearer <token>`.

use std::path::Path;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// A shared secret. Prints as `***`.
#[derive(Clone)]
pub struct Token {
    text: Arc<str>,
    header: MetadataValue<Ascii>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A token that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token file {path}: {source}")]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is empty or has characters that a header cannot carry.
    #[error(
        "a token is one line of printable ASCII, at least one character; make one with `head -c 32 /dev/urandom | base64`"
    )]
    Malformed,
}

impl Token {
    /// A token of this text, without the white space around it.
    ///
    /// # Errors
    /// It is empty or not printable ASCII.
    pub fn from_text(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TokenError::Malformed);
        }
        let header = format!("Bearer {text}").parse().map_err(|_| TokenError::Malformed)?;
        Ok(Token { text: text.into(), header })
    }

    /// Reads a token file.
    ///
    /// # Errors
    /// It cannot be read, or does not hold a token.
    pub fn load(path: &Path) -> Result<Token, TokenError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenError::Unreadable { path: path.display().to_string(), source })?;
        Token::from_text(&text)
    }

    /// The secret itself, for files that containers are given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether an `authorization` header carries this token; takes the same time wherever they differ.
    #[must_use]
    pub fn matches(&self, header: &[u8]) -> bool {
        let ours = self.header.as_encoded_bytes();
        ours.len() == header.len() && ours.iter().zip(header).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
    }
}

/// Adds the token to every call of a client.
#[derive(Debug, Clone, Default)]
pub struct AddToken(pub(crate) Option<Token>);

impl Interceptor for AddToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.header.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_matches_only_itself() {
        let token = Token::from_text(" secret\n").expect("printable");
        assert!(token.matches(b"Bearer secret"));
        for other in [&b"Bearer secreT"[..], b"Bearer secre", b"secret", b""] {
            assert!(!token.matches(other));
        }
    }

    #[test]
    fn an_empty_or_odd_token_is_refused() {
        assert!(Token::from_text(" \n").is_err());
        assert!(Token::from_text("two words").is_err());
    }
}
