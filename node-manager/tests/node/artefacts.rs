//! Artefacts from elsewhere than the resource manager's store, the cache they are kept in, and secrets.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use types::{Artefact, Digest, ExitCause, Secrets, StartContainer, ToNode};

use crate::stage::{FakeRm, Node, id, shell, until};

/// A web server that answers each path with the next of its answers, the last of them for ever, and notes what it was
/// asked.
#[derive(Clone)]
struct Web {
    addr: String,
    answers: Arc<Mutex<BTreeMap<String, Vec<Vec<u8>>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Web {
    async fn start() -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let web = Web { addr, answers: Arc::default(), asked: Arc::default() };
        let serving = web.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let web = serving.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await?);
                    }
                    let answer = web.answer(String::from_utf8(head).unwrap());
                    stream.write_all(&answer).await?;
                    stream.shutdown().await
                });
            }
        });
        web
    }

    fn answer(&self, head: String) -> Vec<u8> {
        let path = head.split(' ').nth(1).unwrap().to_owned();
        self.asked.lock().unwrap().push(head);
        let mut answers = self.answers.lock().unwrap();
        match answers.get_mut(&path) {
            Some(of_path) if of_path.len() > 1 => of_path.remove(0),
            Some(of_path) => of_path[0].clone(),
            None => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
        }
    }

    /// Adds an answer to a path: `body`, of which `length` bytes are promised.
    fn put(&self, path: &str, body: &[u8], length: usize) {
        let head = format!(
            "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nLast-Modified: Sat, 28 Nov 2026 00:00:00 GMT\r\n\
                            Content-Length: {length}\r\n\r\n"
        );
        let answer = [head.as_bytes(), body].concat();
        self.answers.lock().unwrap().entry(path.into()).or_default().push(answer);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn artefact(url: &str, content: &[u8]) -> Artefact {
    let digest = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    Artefact { name: "job.sh".into(), digest: Digest(digest), bytes: 0, from: Some(url.into()) }
}

/// A container that is nothing but an artefact.
fn running(seq: u64, artefact: Artefact) -> StartContainer {
    let mut start = shell(seq, seq as u32, "");
    (start.artefacts, start.command) = (vec![artefact], Vec::new());
    start
}

/// A program that ends with `code`, of `size` bytes.
fn program(code: u8, size: usize) -> Vec<u8> {
    let mut content = format!("#!/bin/sh\nexit {code}\n").into_bytes();
    content.resize(content.len().max(size), b'#');
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artefact_on_the_web_is_fetched_and_a_download_that_breaks_off_is_begun_anew() {
    let mut rm = FakeRm::start().await;
    let web = Web::start().await;
    let node = Node::start(&rm, &["--artefact-host", "127.0.0.1"]);
    let mut session = rm.join().await;
    let content = program(7, 1 << 20);
    // It ends too early, then has other bytes, then is right.
    web.put("/jobs/7?version=2", &content[..1000], content.len());
    web.put("/jobs/7?version=2", &program(8, 1 << 20), content.len());
    web.put("/jobs/7?version=2", &content, content.len());
    session.start(&running(1, artefact(&format!("http://{}/jobs/7?version=2", web.addr), &content)));
    assert_eq!(session.exit(id(1)).await, ExitCause::Failed { code: 7 });
    assert_eq!(web.asked().len(), 3);
    let cache: Vec<_> = fs::read_dir(node.root.path().join("cache")).unwrap().collect();
    assert_eq!(cache.len(), 1, "{cache:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_too_large_is_told_at_once_with_its_url() {
    let mut rm = FakeRm::start().await;
    let web = Web::start().await;
    let node = Node::start(
        &rm,
        &["--cache-size", "1MiB", "--artefact-host", "127.0.0.1", "--artefact-folder", "/no/such"],
    );
    let mut session = rm.join().await;
    let missing = format!("http://{}/missing", web.addr);
    session.start(&running(1, artefact(&missing, b"x")));
    let ExitCause::LaunchFailed { reason } = session.exit(id(1)).await else { panic!("it ran") };
    assert!(reason.contains(&missing) && reason.contains("404"), "{reason}");
    let large = program(0, 2 << 20);
    web.put("/large", &large, large.len());
    session.start(&running(2, artefact(&format!("http://{}/large", web.addr), &large)));
    let ExitCause::LaunchFailed { reason } = session.exit(id(2)).await else { panic!("it ran") };
    assert!(reason.contains("--cache-size"), "{reason}");
    session.start(&running(3, artefact("ftp://somewhere/job.sh", b"x")));
    let ExitCause::LaunchFailed { reason } = session.exit(id(3)).await else { panic!("it ran") };
    assert!(reason.contains("s3"), "{reason}");
    session.start(&running(4, artefact("file:///no/such/file", b"x")));
    let ExitCause::LaunchFailed { reason } = session.exit(id(4)).await else { panic!("it ran") };
    assert!(reason.contains("file:///no/such/file"), "{reason}");
    assert_eq!(web.asked().len(), 2, "once each");
    assert_eq!(fs::read_dir(node.root.path().join("cache")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artefact_in_s3_is_fetched_with_the_nodes_credentials_and_one_on_its_disk_without() {
    let mut rm = FakeRm::start().await;
    let web = Web::start().await;
    let allowed = ["--artefact-bucket", "jobs", "--artefact-folder", "/var/tmp"];
    let mut node = Node::below("/var/tmp".as_ref(), &rm, &allowed);
    node.env = [
        ("AWS_ENDPOINT", format!("http://{}", web.addr)),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_REGION", "eu-north-1".into()),
        ("AWS_ACCESS_KEY_ID", "the-nodes-key".into()),
        ("AWS_SECRET_ACCESS_KEY", "the-nodes-secret".into()),
    ]
    .into();
    node.run();
    let mut session = rm.join().await;
    let content = program(9, 100_000);
    web.put("/jobs/flights/1/job.sh", &content, content.len());
    session.start(&running(1, artefact("s3://jobs/flights/1/job.sh", &content)));
    assert_eq!(session.exit(id(1)).await, ExitCause::Failed { code: 9 });
    let asked = web.asked().concat();
    assert!(
        asked.contains("AWS4-HMAC-SHA256 Credential=the-nodes-key/") && asked.contains("/eu-north-1/s3/")
    );
    session.start(&running(2, artefact("s3://jobs/missing.sh", b"x")));
    let ExitCause::LaunchFailed { reason } = session.exit(id(2)).await else { panic!("it ran") };
    assert!(reason.contains("s3://jobs/missing.sh") && !reason.contains("the-nodes-secret"), "{reason}");
    // Of a bucket that nobody named it is asked without credentials.
    let open = program(11, 0);
    web.put("/others/job.sh", &open, open.len());
    session.start(&running(4, artefact("s3://others/job.sh", &open)));
    assert_eq!(session.exit(id(4)).await, ExitCause::Failed { code: 11 });
    let asked = web.asked();
    let of_others: Vec<_> = asked.iter().filter(|asked| asked.contains("/others/")).collect();
    assert!(
        !of_others.is_empty() && !of_others.iter().any(|asked| asked.contains("Credential")),
        "{asked:?}"
    );
    let on_disk = node.root.path().join("job.sh");
    fs::write(&on_disk, program(10, 0)).unwrap();
    session.start(&running(3, artefact(&format!("file://{}", on_disk.display()), &program(10, 0))));
    assert_eq!(session.exit(id(3)).await, ExitCause::Failed { code: 10 });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_could_not_get_itself_is_not_fetched_for_it() {
    let mut rm = FakeRm::start().await;
    let web = Web::start().await;
    let node = Node::start(&rm, &["--artefact-host", "127.0.0.1", "--artefact-folder", "/var/tmp"]);
    let mut session = rm.join().await;
    let content = program(0, 0);
    let port = web.addr.rsplit_once(':').unwrap().1;
    let sent_on =
        format!("HTTP/1.1 302 Found\r\nLocation: http://localhost:{port}/job\r\nContent-Length: 0\r\n\r\n");
    web.answers.lock().unwrap().insert("/on".into(), vec![sent_on.into_bytes()]);
    web.put("/job", &content, content.len());
    let secret = node.root.path().join("secret");
    fs::write(&secret, &content).unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let pipe = node.root.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let refused = [
        (format!("http://{}/on", web.addr), "--artefact-host localhost"),
        (format!("http://localhost:{port}/job"), "--artefact-host localhost"),
        ("http://169.254.169.254/latest".into(), "--artefact-host 169.254.169.254"),
        (format!("file://{}", secret.display()), "Permission denied"),
        (format!("file://{}", pipe.display()), "no regular file"),
        ("file:///etc/shadow".into(), "--artefact-folder"),
        ("file:///dev/zero".into(), "--artefact-folder"),
    ];
    for (seq, (url, expected)) in (1..).zip(refused) {
        session.start(&running(seq, artefact(&url, &content)));
        let ExitCause::LaunchFailed { reason } = session.exit(id(seq)).await else { panic!("{url} ran") };
        assert!(reason.contains(expected), "{url}: {reason}");
    }
    // Nor is told what it would be.
    session.start(&running(90, artefact(&format!("http://{}/job", web.addr), b"a guess")));
    let ExitCause::LaunchFailed { reason } = session.exit(id(90)).await else { panic!("it ran") };
    assert!(
        reason.contains("not that of digest") && !reason.contains(&artefact("", &content).digest.0),
        "{reason}"
    );
    assert_eq!(fs::read_dir(node.root.path().join("cache")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_keeps_to_its_bound_by_least_recent_use_and_takes_nothing_from_who_starts() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &["--cache-size", "3MiB"]);
    let mut session = rm.join().await;
    // Each a mebibyte, and told apart by its exit code.
    let artefacts: Vec<Artefact> = (0..40).map(|code| rm.upload("job.sh", &program(code, 1 << 20))).collect();
    let fetched = || rm.fetches.load(Ordering::SeqCst);
    let mut next = 0;
    // Many at once, half of them new: what is fetched displaces what is not used, never what is about to be.
    for round in 0..3 {
        let begun = next;
        for artefact in &artefacts[round * 10..round * 10 + 20] {
            next += 1;
            session.start(&running(next, artefact.clone()));
        }
        for seq in begun + 1..=next {
            let code = i32::try_from(round as u64 * 10 + seq - begun - 1).unwrap();
            let expected = if code == 0 { ExitCause::Success } else { ExitCause::Failed { code } };
            assert_eq!(session.exit(id(seq)).await, expected);
            session.send(ToNode::Forget { container: id(seq) });
        }
    }
    until("no container", || (1..=next).all(|seq| !node.work(id(seq)).exists())).await;
    // One after the other. The last is new and displaces all but those that were used last.
    let mut was_cached = Vec::new();
    for code in [21, 22, 23, 24, 22, 0, 24, 22, 21] {
        let before = fetched();
        next += 1;
        session.start(&running(next, artefacts[code].clone()));
        session.exit(id(next)).await;
        session.send(ToNode::Forget { container: id(next) });
        until("its end", || !node.work(id(next)).exists()).await;
        was_cached.push(fetched() == before);
    }
    assert_eq!(was_cached[5..], [false, true, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_files_for_the_containers_user_and_nowhere_else() {
    let mut rm = FakeRm::start().await;
    let node = Node::start(&rm, &["--user", "65534:65534"]);
    let mut session = rm.join().await;
    let script = "cd $SAMZA_SECRETS_DIR && stat -c '%a %u' . kafka-password && cat kafka-password && \
                  ! env | grep sword[f]ish && ! grep -r sword[f]ish $SAMZA_JOB_FILE /proc/$$/cmdline && exit 5";
    let mut start = shell(1, 1, script);
    start.secrets = Secrets([("kafka-password".to_owned(), "swordfish".to_owned())].into());
    session.start(&start);
    assert_eq!(session.exit(id(1)).await, ExitCause::Failed { code: 5 });
    let logs = node.root.path().join("logs/application_1_1").join(id(1).to_string());
    assert_eq!(fs::read_to_string(logs.join("stdout")).unwrap(), "500 65534\n400 65534\nswordfish");
    session.send(ToNode::Forget { container: id(1) });
    until("the removal of its folder", || !node.work(id(1)).exists()).await;
}
