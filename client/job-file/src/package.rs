//! `[package]`: what is run, and where it comes from.

use std::collections::BTreeMap;

use types::{Artefact, Digest, PackageSpec, SYSTEM_SECRETS, Secrets};

use crate::table::Section;
use crate::value::{environment, shown, text};

/// Where nodes can fetch a package.
const SCHEMES: &[&str] = &["https", "http", "s3", "file"];

pub(crate) fn package(mut section: Section<'_, '_>) -> PackageSpec {
    let url = section.optional("url", |value| text(value).and_then(url));
    let digest = section.optional("sha256", |value| text(value).and_then(digest));
    let (source, artefact) = if section.holds("url") {
        // Reading it notes its line.
        if section.optional("path", text).is_some() {
            section.bad("path", "and `url` are both given; valid: one of them");
        }
        if !section.holds("sha256") {
            section.bad("url", "needs `sha256`, the digest of what it holds, as `sha256sum` prints it");
        }
        let (url, name) = url.unwrap_or_default();
        let digest = digest.unwrap_or_else(|| Digest(String::new()));
        (url.clone(), Some(Artefact { name, digest, bytes: 0, from: Some(url) }))
    } else {
        if section.holds("sha256") {
            section
                .bad("sha256", "is that of a `url`; the content of a `path` is digested when it is uploaded");
        }
        (
            section.required("path", "path = \"target/debug/flight-delays\"", |value| {
                text(value).and_then(path)
            }),
            None,
        )
    };
    let command = section.strings("command", "[\"./flight-delays\", \"--verbose\"]").unwrap_or_default();
    if command.first().is_some_and(|program| program.is_empty()) {
        section.bad("command[0]", "must not be empty");
    }
    let env = section.optional("env", environment).unwrap_or_default();
    let secrets = secrets(&section);
    section.finish();
    PackageSpec { source, artefact, command, env, secrets }
}

fn path(path: String) -> Result<String, String> {
    if path.trim().is_empty() || path.ends_with('/') {
        return Err(format!("\"{path}\" names no file; valid: the path of the job's binary"));
    }
    Ok(path)
}

/// A URL that nodes can fetch, and the name of what it holds.
fn url(url: String) -> Result<(String, String), String> {
    const VALID: &str =
        "valid: https://, http:// or s3:// with a host or bucket, or file:/// with a path on every node";
    let shown = shown(&url);
    let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("\"{shown}\" is no URL; {VALID}"))?;
    if !SCHEMES.contains(&scheme) || url.contains(char::is_whitespace) {
        return Err(format!("\"{shown}\" cannot be fetched; {VALID}"));
    }
    let whole = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = whole.split_once('/').unwrap_or((whole, ""));
    if host.is_empty() != (scheme == "file") {
        return Err(format!("\"{shown}\" cannot be fetched; {VALID}"));
    }
    if host.contains('@') {
        return Err(
            "holds credentials, and everyone who sees the job sees its URL; give them to the nodes: \
                    S3's as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in nm's environment"
                .to_owned(),
        );
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    if name.is_empty() || name == "." || name == ".." {
        return Err(format!(
            "\"{shown}\" names no file; valid: a URL that ends with the name of a binary or archive"
        ));
    }
    Ok((url, name))
}

fn digest(digest: String) -> Result<Digest, String> {
    let digest = Digest(digest);
    if !digest.is_sha256() {
        let shown = shown(&digest.0);
        return Err(format!(
            "\"{shown}\" is no digest; valid: 64 lower-case hexadecimal digits, as `sha256sum` prints"
        ));
    }
    Ok(digest)
}

/// The files that secrets are read from, by the secrets' names.
fn secrets(section: &Section<'_, '_>) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for (name, mut secret) in section.named("secrets", "package.secrets.*") {
        if !Secrets::is_name(&name) {
            let told = format!(
                "\"{}\" cannot be a file's name; valid: letters, digits, `.`, `_`, `-`",
                shown(&name)
            );
            section.bad(&format!("secrets.{name}"), &told);
        }
        if name.starts_with(SYSTEM_SECRETS) {
            let told = format!(
                "names that begin with `{SYSTEM_SECRETS}` are those of secrets in [systems.<name>.security]"
            );
            section.bad(&format!("secrets.{name}"), &told);
        }
        let file = secret.required("file", "file = \"kafka-password\"", text);
        secret.finish();
        files.insert(name, file);
    }
    files
}
