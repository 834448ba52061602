//! The page of a running container and docs/metrics.md say the same: every metric of one is in the other, with its kind and
//! its labels.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use task_api::system::{NewTopic, SystemAdmin};
use types::{Delivery, StoreSpec, TIMERS_STORE};

use crate::container::Container;
use crate::job::PARTITIONS;
use crate::master::Master;
use crate::{PATIENCE, counter, is_running};

/// By name: kind and names of labels.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// What docs/metrics.md has of containers: all but what is under `The job`.
fn documented() -> Metrics {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let (_, of_containers) = text.split_once("### Tasks").expect("a heading");
    let rows = of_containers.lines().filter(|line| line.starts_with("| `samza_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let ticked = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        (ticked(cells[1])[0].clone(), (cells[2].to_owned(), ticked(cells[3]).into_iter().collect()))
    })
    .collect()
}

/// What a page has of the runtime; of a summary, without its quantiles.
fn shown(page: &str) -> Metrics {
    let mut metrics = Metrics::new();
    let mut family = None;
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a kind");
            family = name.starts_with("samza_").then(|| name.to_owned());
            metrics.extend(family.clone().map(|name| (name, (kind.to_owned(), BTreeSet::new()))));
        } else if let Some((_, labels)) = family.as_ref().and_then(|name| metrics.get_mut(name)) {
            // No value of a label has such characters here.
            let inside =
                line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(of, _)| of);
            let names =
                inside.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
            labels.extend(names.filter(|name| name != "quantile"));
        }
    }
    metrics
}

fn page(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asked");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    text
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_is_there() {
    let (mut job, master) = (counter("metrics", Delivery::ExactlyOnce), Master::start());
    job.spec.task.window_ms = Some(1_000);
    job.spec.task.timers = true;
    let timers = StoreSpec { changelog: Some(job.topic("timers")), ..job.spec.stores["counts"].clone() };
    job.spec.stores.insert(TIMERS_STORE.into(), timers);
    let (topic, config) = (job.topic("timers"), BTreeMap::new());
    job.admin.create(&[NewTopic { topic, partitions: PARTITIONS, replication: 1, config }]).expect("a topic");
    let system = job.spec.systems.get_mut("kafka").expect("it has one");
    for settings in [&mut system.consumer, &mut system.producer] {
        // Soon.
        settings.insert("statistics.interval.ms".into(), "500".into());
    }
    job.feed(0, 2_000);
    let work = job.folder.path().join("work");
    std::fs::create_dir_all(&work).expect("a folder");
    let folder = work.display().to_string();
    let container = Container::start(&job, &master, 1, "state", &[("SAMZA_WORK_DIR", &folder)]);
    master.wait(&container, "processing", |status| is_running(status) && status.processed >= 2_000);
    let address = std::fs::read_to_string(work.join("metrics-address")).expect("it is told");
    let (documented, since) = (documented(), Instant::now());
    assert!(documented.len() > 30, "{documented:?}");
    loop {
        let text = page(address.trim());
        let shown = shown(&text);
        if shown == documented {
            break;
        }
        let differ = |a: &Metrics, b: &Metrics| {
            a.iter()
                .filter(|(name, of)| b.get(*name) != Some(of))
                .map(|(name, of)| format!("{name} {of:?}"))
                .collect::<Vec<_>>()
        };
        assert!(
            since.elapsed() < PATIENCE,
            "only on the page: {:#?}\nonly in the document: {:#?}",
            differ(&shown, &documented),
            differ(&documented, &shown)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = page(address.trim());
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    let timed = sum("samza_task_process_seconds_count");
    assert!(timed > 0.0 && timed <= sum("samza_task_messages_processed_total"), "{text}");
    assert!(sum("samza_kafka_broker_received_bytes_total") > 0.0, "{text}");
    assert!(sum("samza_thread_seconds_total") > 0.0 && sum("samza_commit_seconds_count") >= 1.0, "{text}");
    container.kill();
}
