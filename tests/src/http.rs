//! HTTP as far as tests need it: one request, one answer, on the loopback.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// Sends `method path` with `body` to `address` (host:port) and returns status and body.
///
/// # Errors
/// Nobody answers within 30 s, or not in HTTP.
pub fn request(
    address: &str,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    let mut buffer = [0; 65_536];
    while !is_complete(&answer) {
        match stream.read(&mut buffer)? {
            0 => break,
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
    parse(&answer)
}

/// Whether `answer` has all that its Content-Length promises; one without it ends with the connection.
fn is_complete(answer: &[u8]) -> bool {
    let Some(split) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..split]).to_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= split + 4 + length)
}

fn parse(answer: &[u8]) -> anyhow::Result<(u16, String)> {
    let split =
        answer.windows(4).position(|w| w == b"\r\n\r\n").context("an answer without an end of headers")?;
    let head = String::from_utf8_lossy(&answer[..split]).to_lowercase();
    let status = head.split_whitespace().nth(1).context("an answer without a status")?.parse()?;
    let body = &answer[split + 4..];
    let body = if head.contains("transfer-encoding: chunked") { unchunk(body)? } else { body.to_vec() };
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn unchunk(mut body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let line = body.windows(2).position(|w| w == b"\r\n").context("a chunk without a size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..line])?.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        let Some(chunk) = body.get(line + 2..line + 2 + size) else { bail!("a chunk cut short") };
        whole.extend_from_slice(chunk);
        body = body.get(line + 4 + size..).context("a chunk without an end")?;
    }
}
