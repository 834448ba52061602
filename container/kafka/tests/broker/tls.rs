//! What TLS refuses, told with the key of the job file that it is about. The other side is OpenSSL's own server: none of
//! this comes as far as Kafka.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, NoContact};

use crate::SOON;

/// A server that ends with the test.
struct Server {
    process: Child,
    port: u16,
    /// With `ca.pem`, and for each name `name.pem`, which has key and certificate.
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn openssl(folder: &Path, line: &str) {
    let told = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
    let told = told.expect("openssl runs");
    assert!(told.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&told.stderr));
}

/// A certificate that the CA vouches for, of `127.0.0.1`, for so many days from now.
fn certificate(folder: &Path, name: &str, days: i32) {
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(folder, &format!("req -new {new} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").expect("our own folder");
    let ca = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile names";
    openssl(folder, &format!("x509 -req -in {name}.csr {ca} -days {days} -out {name}.pem"));
}

impl Server {
    /// With a certificate for so many days.
    fn start(days: i32, options: &[&str]) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(folder.path(), &format!("req -x509 {new} -days 9 -subj /CN=ca -keyout ca.key -out ca.pem"));
        certificate(folder.path(), "server", days);
        certificate(folder.path(), "client", 9);
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let process = Command::new("openssl")
            .args(["s_server", "-accept", &format!("127.0.0.1:{port}"), "-quiet"])
            .args(["-cert", "server.pem", "-key", "server.key", "-CAfile", "ca.pem"])
            .args(options)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs");
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < SOON, "it does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Server { process, port, folder }
    }

    /// What a client with these settings is told.
    fn refusal(&self, more: &[(&str, &str)]) -> NoContact {
        let text = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).expect("it was made");
        let mut settings = BTreeMap::from([
            ("security.protocol".to_owned(), "ssl".to_owned()),
            ("ssl.ca.pem".to_owned(), text("ca.pem")),
        ]);
        settings.extend(more.iter().map(|(key, name)| ((*key).to_owned(), text(name))));
        let admin =
            KafkaAdmin::new(&format!("127.0.0.1:{}", self.port), &settings).expect("settings are right");
        admin.first_contact(Duration::from_secs(10)).expect_err("it is no broker")
    }
}

#[test]
fn a_certificate_that_has_expired_is_told_as_that() {
    let told = Server::start(-1, &[]).refusal(&[]);
    assert_eq!(told.key, "security.ca", "{told:?}");
    assert!(told.why.contains("a certificate has expired"), "{told:?}");
}

#[test]
fn who_is_asked_for_a_certificate_and_has_none_is_told_which_key_gives_one() {
    let server = Server::start(9, &["-Verify", "1", "-verify_return_error"]);
    let told = server.refusal(&[]);
    assert_eq!(told.key, "security.certificate", "{told:?}");
    assert!(told.why.contains("the brokers ask for a client's certificate"), "{told:?}");
    // With one it comes further, to where a broker would answer.
    let told = server.refusal(&[("ssl.certificate.pem", "client.pem"), ("ssl.key.pem", "client.key")]);
    assert_ne!(told.key, "security.certificate", "{told:?}");
}
