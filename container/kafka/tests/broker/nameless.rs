//! A cluster whose controller has lost sight of every broker: they answer, and name none of them. A real one does so
//! only for moments that nobody can time, so here somebody answers who knows two of Kafka's requests.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kafka::KafkaAdmin;
use task_api::system::SystemAdmin;

const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
const UNSUPPORTED_VERSION: i16 = 35;

/// Answers `Metadata` with no broker as long as `blind` says, then with itself; returns where it listens.
fn listen(blind: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let asked = Arc::clone(&asked);
            // A client that goes ends it.
            std::thread::spawn(move || drop(serve(connection, port, &asked, blind)));
        }
    });
    (port, count)
}

fn serve(mut connection: TcpStream, port: u16, asked: &AtomicUsize, blind: usize) -> std::io::Result<()> {
    loop {
        let mut length = [0; 4];
        connection.read_exact(&mut length)?;
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        connection.read_exact(&mut request)?;
        let mut answer = request[4..8].to_vec();
        match i16::from_be_bytes([request[0], request[1]]) {
            API_VERSIONS => {
                let is_first = request[3] > 0;
                answer.extend((if is_first { UNSUPPORTED_VERSION } else { 0 }).to_be_bytes());
                answer.extend(2_i32.to_be_bytes());
                for number in [API_VERSIONS, 0, 0, METADATA, 0, 1] {
                    answer.extend(number.to_be_bytes());
                }
            }
            METADATA => {
                let is_named = asked.fetch_add(1, Ordering::Relaxed) >= blind;
                answer.extend(i32::from(is_named).to_be_bytes());
                if is_named {
                    // Id, host, port, no rack.
                    answer.extend(1_i32.to_be_bytes());
                    answer.extend([&[0, 9], b"127.0.0.1".as_slice()].concat());
                    answer.extend(i32::from(port).to_be_bytes());
                    answer.extend((-1_i16).to_be_bytes());
                }
                // The controller, and no topics.
                answer.extend((if is_named { 1_i32 } else { -1 }).to_be_bytes());
                answer.extend(0_i32.to_be_bytes());
            }
            other => panic!("request {other} is not known here"),
        }
        let length = u32::try_from(answer.len()).expect("short");
        connection.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())?;
    }
}

fn admin(port: u16) -> KafkaAdmin {
    KafkaAdmin::new(&format!("127.0.0.1:{port}"), &BTreeMap::new()).expect("settings are right")
}

#[test]
fn a_cluster_that_names_no_broker_is_asked_until_it_names_one() {
    let (port, asked) = listen(3);
    assert_eq!(admin(port).live_brokers(), Ok(1));
    assert!(asked.load(Ordering::Relaxed) > 3);
}

#[test]
fn a_cluster_that_goes_on_naming_no_broker_is_one_that_does_not_answer() {
    let (port, asked) = listen(usize::MAX);
    let start = Instant::now();
    let none = admin(port).first_contact(Duration::from_secs(2)).expect_err("there is no broker");
    assert!(none.why.contains("no broker answered in time"), "{none:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "it is not waited for ever");
    assert!(asked.load(Ordering::Relaxed) > 1);
}
