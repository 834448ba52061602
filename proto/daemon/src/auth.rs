//! Who may call: on loopback anyone, elsewhere whoever has the token.

use std::net::SocketAddr;

use proto::Token;
use tonic::Status;

/// Refuses a listener that strangers can reach without a token.
///
/// # Errors
/// `listen` is not loopback and there is no token; the text names `--token-file`.
pub fn require_token_unless_loopback(listen: SocketAddr, token: Option<&Token>) -> anyhow::Result<()> {
    anyhow::ensure!(
        listen.ip().is_loopback() || token.is_some(),
        "{listen} is reachable from other machines: give --token-file FILE (make one with `head -c 32 /dev/urandom | \
         base64 > FILE; chmod 600 FILE`), or listen on 127.0.0.1"
    );
    Ok(())
}

/// Whether a request is a call of gRPC, and not one for a page.
pub(crate) fn is_grpc<B>(request: &http::Request<B>) -> bool {
    let kind = request.headers().get("content-type");
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Lets a request pass if it carries the token, or none is needed.
pub(crate) fn check<B>(token: Option<&Token>, request: &http::Request<B>) -> Result<(), Status> {
    let Some(token) = token else { return Ok(()) };
    match request.headers().get("authorization") {
        Some(header) if token.matches(header.as_bytes()) => Ok(()),
        Some(_) => Err(Status::unauthenticated("wrong token: give the same --token-file as the server's")),
        None => Err(Status::unauthenticated("this server wants a token: give --token-file FILE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_is_not_loopback_needs_a_token() {
        let all: SocketAddr = "0.0.0.0:8030".parse().expect("an address");
        let error = require_token_unless_loopback(all, None).expect_err("no token").to_string();
        assert!(error.contains("--token-file"), "{error}");
        let token = Token::from_text("secret").expect("printable");
        assert!(require_token_unless_loopback(all, Some(&token)).is_ok());
        assert!(require_token_unless_loopback("127.0.0.1:0".parse().expect("an address"), None).is_ok());
    }
}
