//! Where artefacts may be fetched from. A node reaches more than who submits a job: its own disk, services on its
//! loopback and in its network, the cloud's word on its rights. What is fetched for a container is what its job could
//! have had anyway, unless the operator says more.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{Action, Attempt, Policy};
use url::{Host, Url};

/// Every host with a public address.
pub(crate) const PUBLIC: &str = "*";
/// How often a server may send on to another place.
const REDIRECTS: usize = 10;

/// What the operator allows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    /// Names and addresses of web servers, wherever they are; [`PUBLIC`] stands for all that are public.
    pub(crate) hosts: Vec<String>,
    /// Buckets that are read with nm's own rights; others are read as anybody may.
    pub(crate) buckets: Vec<String>,
    /// Folders of this node.
    pub(crate) folders: Vec<PathBuf>,
    /// Hosts of the proxies that nm was told of in its environment.
    pub(crate) proxies: Vec<String>,
}

/// The hosts of the proxies of this process's environment.
pub(crate) fn proxies() -> Vec<String> {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let names = names.into_iter().flat_map(|name| [name.to_owned(), name.to_ascii_lowercase()]);
    let host = |text: String| {
        let url = if text.contains("://") { text } else { format!("http://{text}") };
        Some(url.parse::<Url>().ok()?.host()?.to_string())
    };
    names.filter_map(|name| std::env::var(name).ok()).filter_map(host).collect()
}

/// It is not allowed, and how it would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

impl Origins {
    /// Whether a URL may be asked for, as far as it can be seen from it: a name may have any address.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Refused> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refused(format!(
                "it leads to {}, and only http and https are followed",
                url.scheme()
            )));
        }
        let Some(host) = url.host() else { return Err(Refused("it names no host".to_owned())) };
        match host {
            _ if self.names(&host.to_string()) => Ok(()),
            Host::Ipv4(address) => self.check_address(&host.to_string(), IpAddr::V4(address)),
            Host::Ipv6(address) => self.check_address(&host.to_string(), IpAddr::V6(address)),
            Host::Domain(_) if self.allows_public() => Ok(()),
            Host::Domain(name) => Err(refused(name, "is not among nm's --artefact-host")),
        }
    }

    fn check_address(&self, host: &str, address: IpAddr) -> Result<(), Refused> {
        if !self.allows_public() {
            return Err(refused(host, "is not among nm's --artefact-host"));
        }
        if !is_public(address) {
            let what = format!("is {address}, of this machine or a private network");
            return Err(refused(host, &what));
        }
        Ok(())
    }

    fn allows_public(&self) -> bool {
        self.hosts.iter().any(|host| host == PUBLIC)
    }

    fn names(&self, host: &str) -> bool {
        let plain = |host: &str| host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        self.hosts.iter().any(|named| plain(named) == plain(host))
    }

    /// How the web is to be asked: names that are not allowed have no address, and a server sends on only to what is.
    pub(crate) fn rules(self: &Arc<Self>) -> (Arc<Names>, Policy) {
        let origins = self.clone();
        let follow = move |attempt: Attempt| -> Action {
            if attempt.previous().len() > REDIRECTS {
                return attempt.error(Refused(format!("it was sent on more than {REDIRECTS} times")));
            }
            match origins.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(refused) => attempt.error(refused),
            }
        };
        (Arc::new(Names(self.clone())), Policy::custom(follow))
    }

    /// The file at a path, if it is below a folder that is allowed, wherever links on the way lead.
    pub(crate) fn file(&self, path: &Path) -> Result<PathBuf, Refused> {
        let refused = || {
            let folders: Vec<_> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
            let allowed = if folders.is_empty() { "none".to_owned() } else { folders.join(", ") };
            Refused(format!(
                "this node gives files of {allowed} only; the operator allows more with nm's --artefact-folder"
            ))
        };
        // Before the first look: what there is elsewhere is nobody's business.
        let below = |path: &Path| self.folders.iter().any(|folder| path.starts_with(folder));
        if !below(path) || path.components().any(|part| part == std::path::Component::ParentDir) {
            return Err(refused());
        }
        let unreadable = |error: io::Error| Refused(error.to_string());
        let real = path.canonicalize().map_err(unreadable)?;
        let is_below =
            self.folders.iter().filter_map(|folder| folder.canonicalize().ok()).any(|f| real.starts_with(f));
        if !is_below {
            return Err(refused());
        }
        if !real.metadata().map_err(unreadable)?.is_file() {
            return Err(Refused("it is no regular file".to_owned()));
        }
        Ok(real)
    }

    /// Whether a bucket is read with nm's own rights.
    pub(crate) fn trusts_bucket(&self, bucket: &str) -> bool {
        self.buckets.iter().any(|trusted| trusted == bucket)
    }
}

fn refused(host: &str, what: &str) -> Refused {
    Refused(format!("{host} {what}; the operator allows it with nm's --artefact-host {host}"))
}

/// Looks up names, and forgets addresses that nothing may be fetched from.
pub(crate) struct Names(Arc<Origins>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let origins = self.0.clone();
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            let allowed = |address: &&SocketAddr| {
                let is_proxy = origins.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(&host));
                is_proxy || origins.names(&host) || origins.check_address(&host, address.ip()).is_ok()
            };
            let good: Vec<SocketAddr> = found.iter().filter(allowed).copied().collect();
            match found.first() {
                Some(first) if good.is_empty() => Err(origins
                    .check_address(&host, first.ip())
                    .err()
                    .map_or_else(|| io::Error::other("it has no address").into(), |refused| refused.into())),
                _ => Ok(Box::new(good.into_iter()) as Addrs),
            }
        })
    }
}

/// Whether everybody on the internet can reach an address, by IANA's registries of special ones.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || (a == 100 && b & 0xc0 == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && b & 0xfe == 18)
        || a >= 240;
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4() {
        // Mapped and compatible; the latter has loopback and no address at all too.
        return is_public_v4(v4);
    }
    let parts = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // Ways to IPv4: NAT64, 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => v4(high, low),
        [0x64, 0xff9b, ..] | [0x2001, 0xdb8, ..] | [0x2001, 0..=0x1ff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(hosts: &[&str]) -> Origins {
        Origins { hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..Origins::default() }
    }

    fn check(hosts: &[&str], url: &str) -> Result<(), String> {
        origins(hosts).check(&url.parse().unwrap()).map_err(|refused| refused.to_string())
    }

    #[test]
    fn what_is_of_this_machine_or_its_network_is_refused_however_it_is_written() {
        let bad = [
            "http://127.0.0.1:8030/x",
            "http://169.254.169.254/latest/meta-data",
            "http://10.1.2.3/",
            "http://172.16.0.1/",
            "http://192.168.0.1/",
            "http://100.64.0.1/",
            "http://0.0.0.0/",
            "http://0/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://017700000001/",
            "http://224.0.0.1/",
            "http://255.255.255.255/",
            "http://[::1]/",
            "http://[::]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::127.0.0.1]/",
            "http://[64:ff9b::a00:1]/",
            "http://[2002:7f00:1::]/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://[ff02::1]/",
            "http://[2001:db8::1]/",
            "file:///etc/shadow",
            "ftp://example.org/",
        ];
        for url in bad {
            assert!(check(&["*"], url).is_err(), "{url}");
        }
        for url in ["https://example.org/x", "http://93.184.216.34/", "http://[2606:2800:220:1::1]/"] {
            assert_eq!(check(&["*"], url), Ok(()), "{url}");
        }
    }

    #[test]
    fn what_the_operator_names_is_allowed_and_nothing_else_unless_all_that_is_public_is_too() {
        let named = ["store.internal", "10.0.0.5", "fd00::5"];
        for url in ["http://Store.Internal./x", "http://10.0.0.5:99/", "http://[fd00::5]/"] {
            assert_eq!(check(&named, url), Ok(()), "{url}");
        }
        for url in ["http://example.org/", "http://10.0.0.6/", "http://93.184.216.34/"] {
            let told = check(&named, url).unwrap_err();
            assert!(told.contains("--artefact-host"), "{told}");
        }
        assert_eq!(check(&["*", "10.0.0.5"], "http://example.org/"), Ok(()));
    }

    #[tokio::test]
    async fn a_name_of_this_machine_has_no_address_unless_it_is_named() {
        let resolve = |hosts: &[&str]| Names(Arc::new(origins(hosts))).resolve("localhost".parse().unwrap());
        let told = resolve(&["*"]).await.err().unwrap().to_string();
        assert!(told.contains("private network") && told.contains("--artefact-host localhost"), "{told}");
        assert!(resolve(&["localhost"]).await.unwrap().next().is_some());
    }

    #[test]
    fn files_are_given_only_of_the_folders_that_are_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let (given, other) = (dir.path().join("given"), dir.path().join("other"));
        for folder in [&given, &other] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("job"), "x").unwrap();
        }
        std::os::unix::fs::symlink(other.join("job"), given.join("link")).unwrap();
        let origins = Origins { folders: vec![given.clone()], ..Origins::default() };
        assert_eq!(origins.file(&given.join("job")), Ok(given.join("job").canonicalize().unwrap()));
        for bad in [other.join("job"), given.join("../other/job"), given.join("link"), "/etc/shadow".into()] {
            let told = origins.file(&bad).unwrap_err().to_string();
            assert!(told.contains("--artefact-folder") && told.contains("given"), "{told}");
        }
        assert!(origins.file(&given).unwrap_err().to_string().contains("regular"));
        assert!(Origins::default().file(&given.join("job")).unwrap_err().to_string().contains("none"));
    }
}
