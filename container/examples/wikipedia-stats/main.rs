//! What is being edited? The classic demo of stream processing: edits of Wikipedia, Wiktionary and Wikinews, merged
//! and counted in windows of ten seconds.
//!
//! Reads `wikipedia`, `wiktionary` and `wikinews` (events of Wikimedia's IRC feed, see [`parse`]) in one task that
//! has every partition of all three (`grouper = "single"`), and at each window sends to `wikipedia-stats`:
//!
//! ```text
//! {"edits":98,"editsAllTime":287,"bytesAdded":5120,"uniqueTitles":61,"malformed":4,"counts":{"is-minor":30,…}}
//! ```
//!
//! `edits`, `bytesAdded`, `uniqueTitles`, `malformed` (lines that are no edits; they are counted and left behind) and
//! `counts` are those of the window. Store `sums` has the sums of all time and of the window so far, store `titles`
//! the window's titles: after a kill the window goes on where the last commit left it.
//!
//! The program is also the source of its own input: `--feed FILE` sends the lines of a file to the three topics, which
//! it creates if need be. `edits.jsonl` beside this file is such a file; some of its lines are malformed on purpose.
//!
//! ```text
//! deploy/kafka/kafka.sh start --data /tmp/kafka                 # brokers on 127.0.0.1:9092, and a cluster
//! cargo build -p samza --example wikipedia-stats
//! cargo run -p samza --example wikipedia-stats -- --feed container/examples/wikipedia-stats/edits.jsonl --rate 20
//! samza-submit container/examples/wikipedia-stats/job.toml --wait
//! ```

mod feed;
mod parse;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use samza::{
    I64Serde, IncomingMessageEnvelope, JsonSerde, KeyValueStore, MessageCollector, OutgoingMessage,
    StreamTask, StringSerde, TaskContext, TaskCoordinator, TaskResult,
};
use serde::{Deserialize, Serialize};

use crate::parse::KINDS;

const OUTPUT: &str = "kafka.wikipedia-stats";
const ALL_TIME: &str = "all-time";
const WINDOW: &str = "window";

/// What is added up, over some time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sums {
    edits: i64,
    bytes_added: i64,
    malformed: i64,
    /// By the names of [`KINDS`], all of them.
    counts: BTreeMap<String, i64>,
}

impl Sums {
    fn none() -> Sums {
        Sums { counts: KINDS.iter().map(|kind| ((*kind).to_owned(), 0)).collect(), ..Sums::default() }
    }

    /// Counts an edit, or a line that is none.
    fn add(&mut self, edit: Option<&parse::Edit<'_>>) {
        let Some(edit) = edit else {
            self.malformed += 1;
            return;
        };
        self.edits += 1;
        // Nonsense in one line must not stop the job.
        self.bytes_added = self.bytes_added.saturating_add(edit.bytes);
        for (kind, is) in KINDS.iter().zip(edit.kinds) {
            *self.counts.entry((*kind).to_owned()).or_default() += i64::from(is);
        }
    }
}

/// A message of the output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    edits: i64,
    edits_all_time: i64,
    bytes_added: i64,
    unique_titles: usize,
    malformed: i64,
    counts: &'a BTreeMap<String, i64>,
}

/// The task.
#[derive(Default)]
struct WikipediaStats {
    stores: Option<Stores>,
    all_time: Sums,
    window: Sums,
}

struct Stores {
    sums: KeyValueStore<String, Sums>,
    /// The window's titles; the numbers mean nothing.
    titles: KeyValueStore<String, i64>,
}

impl Stores {
    fn sums(&mut self, of: &str) -> Result<Sums, samza::StoreError> {
        Ok(self.sums.get(&of.to_owned())?.unwrap_or_else(Sums::none))
    }
}

impl StreamTask for WikipediaStats {
    fn init(&mut self, context: &mut TaskContext) -> TaskResult {
        let mut stores = Stores {
            sums: context.store("sums", StringSerde, JsonSerde::default())?,
            titles: context.store("titles", StringSerde, I64Serde)?,
        };
        (self.all_time, self.window) = (stores.sums(ALL_TIME)?, stores.sums(WINDOW)?);
        self.stores = Some(stores);
        Ok(())
    }

    fn process(
        &mut self,
        envelope: &IncomingMessageEnvelope<'_>,
        _collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let raw = parse::raw(envelope.value.unwrap_or_default());
        let edit = raw.as_deref().and_then(parse::edit);
        self.all_time.add(edit.as_ref());
        self.window.add(edit.as_ref());

        let stores = self.stores.as_mut().ok_or("process before init")?;
        stores.sums.put(&ALL_TIME.to_owned(), &self.all_time)?;
        stores.sums.put(&WINDOW.to_owned(), &self.window)?;
        if let Some(edit) = edit {
            stores.titles.put(&edit.title.to_owned(), &1)?;
        }
        Ok(())
    }

    fn window(
        &mut self,
        collector: &mut dyn MessageCollector,
        _coordinator: &mut TaskCoordinator,
    ) -> TaskResult {
        let stores = self.stores.as_mut().ok_or("window before init")?;
        let titles: Vec<String> =
            stores.titles.all()?.map(|row| row.map(|(title, _)| title)).collect::<Result<_, _>>()?;
        let report = Report {
            edits: self.window.edits,
            edits_all_time: self.all_time.edits,
            bytes_added: self.window.bytes_added,
            unique_titles: titles.len(),
            malformed: self.window.malformed,
            counts: &self.window.counts,
        };
        let value = serde_json::to_vec(&report)?;
        collector.send(OutgoingMessage::new(OUTPUT, None, Some(&value)))?;
        for title in titles {
            stores.titles.delete(&title)?;
        }
        self.window = Sums::none();
        stores.sums.put(&WINDOW.to_owned(), &self.window)?;
        Ok(())
    }
}

/// Counts the edits of Wikipedia, Wiktionary and Wikinews. A cluster runs it without options, as job.toml says.
#[derive(Parser)]
#[command(after_help = "example: wikipedia-stats --feed edits.jsonl --rate 20")]
struct Options {
    /// Sends the lines of FILE to the topics wikipedia, wiktionary and wikinews, by their channel, and ends.
    #[arg(long, value_name = "FILE")]
    feed: Option<PathBuf>,
    /// The brokers, for --feed.
    #[arg(long, value_name = "HOST:PORT,…", default_value = "127.0.0.1:9092")]
    bootstrap: String,
    /// Lines a second, for --feed; without it as fast as they go.
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
}

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--local") {
        samza::run(WikipediaStats::default);
    }
    let options = Options::parse();
    let Some(file) = options.feed else { samza::run(WikipediaStats::default) };
    match feed::feed(&file, &options.bootstrap, options.rate) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wikipedia-stats: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
