//! A durable log of transactions in one file: the home of checkpoints and changelogs in local runs.
//!
//! A commit appends one frame ([`super::frame`]) with its rows and the lengths of its output files, and waits until it
//! is on disk; so it is there as a whole or not at all, and a torn last frame is cut off when the file is opened. When
//! most of the file is rows that newer ones have replaced, it is written anew, beside itself, and renamed: a row keeps
//! its offset for ever, and tombstones stay for as long as their topic says.
//!
//! In memory are only the places of the rows (one entry per commit and partition), never the rows.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hashbrown::HashMap;
use task_api::Headers;
use task_api::system::{Configs, Message, SystemError, configs_of};
use tracing::{debug, info};

use super::frame::{self, Frame, HEAD, Item, Items, MAGIC, Row, Rows, RowsHead};
use super::origin::Origin;

/// A file is not rewritten before it is this much longer than twice what it was after it was rewritten last.
const SPARE: u64 = 8 << 20;
/// Rows that go into one block: what a reader has in memory.
pub(crate) const BLOCK_BYTES: usize = 1 << 20;
/// Keys that a rewrite has in memory at once.
const KEYS_AT_ONCE: u64 = 4_000_000;

/// The setting of a topic that says for how long tombstones are kept, and Kafka's default of it.
const TOMBSTONES: &str = "delete.retention.ms";
const KEEPS_TOMBSTONES_MS: u64 = 86_400_000;

/// The log.
pub(crate) struct Log {
    path: PathBuf,
    file: Arc<File>,
    len: u64,
    /// Its length when it was last rewritten.
    base: u64,
    spare: u64,
    /// A write failed: what is in the file beyond `len` is not known.
    broken: bool,
    pub(crate) topics: Vec<Topic>,
    /// Paths in the project's folder are relative to it.
    pub(crate) outputs: BTreeMap<PathBuf, Output>,
    /// By folder that is an input: the names of its partitions, by number.
    pub(crate) inputs: BTreeMap<PathBuf, Vec<String>>,
    pub(crate) origin: Option<Origin>,
    /// Whether a run has begun that has not ended in order: then there may be more in outputs than was committed.
    pub(crate) run_is_open: bool,
}

/// A topic of rows.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) id: String,
    keeps_tombstones_ms: u64,
    /// The settings that it was given; the time for tombstones alone has an effect.
    config: BTreeMap<String, String>,
    pub(crate) partitions: Vec<Partition>,
}

#[derive(Debug, Default)]
pub(crate) struct Partition {
    blocks: Vec<Block>,
    /// One past the last offset in the file.
    pub(crate) next: u64,
    /// One past the last offset that was given away.
    pub(crate) reserved: u64,
}

/// Rows in the file.
#[derive(Debug, Clone, Copy)]
struct Block {
    first: u64,
    end: u64,
    unix_ms: u64,
    at: u64,
    bytes: usize,
}

/// What the log knows of an output file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Output {
    /// Whether what is beyond `len` was never committed.
    pub(crate) exact: bool,
    /// It belongs to the job of which this one is a copy.
    pub(crate) foreign: bool,
    /// Its length before the job wrote to it.
    pub(crate) start: u64,
    /// Its length at the last commit that wrote to it.
    pub(crate) len: u64,
}

impl Output {
    /// Adds what is known of the output at `path` to a frame.
    pub(crate) fn tell(&self, path: &Path, frame: &mut Frame) {
        let Output { exact, foreign, start, len } = *self;
        frame.push(&Item::Output { path: path.as_os_str().as_bytes(), exact, foreign, start, len });
    }
}

/// What a read of committed rows needs, without the log.
pub(crate) struct Snapshot {
    file: Arc<File>,
    path: PathBuf,
    blocks: Vec<Block>,
}

impl Log {
    /// Opens the log at `path`, or makes it.
    ///
    /// # Errors
    /// The disk failed, or the file is damaged other than by a torn last frame.
    pub(crate) fn open(path: &Path) -> Result<Log, SystemError> {
        Log::open_with(path, SPARE)
    }

    fn open_with(path: &Path, spare: u64) -> Result<Log, SystemError> {
        // Of a rewrite that a crash has interrupted.
        let _ = fs::remove_file(beside(path));
        let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut log = Log::new(path, open.map_err(|e| at(path, &e))?, spare);
        log.load()?;
        log.rewrite_if_due()?;
        Ok(log)
    }

    fn new(path: &Path, file: File, spare: u64) -> Log {
        Log {
            path: path.to_owned(),
            file: Arc::new(file),
            len: 0,
            base: 0,
            spare,
            broken: false,
            topics: Vec::new(),
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            origin: None,
            run_is_open: false,
        }
    }

    fn load(&mut self) -> Result<(), SystemError> {
        let path = self.path.clone();
        let fail = |e: io::Error| at(&path, &e);
        let file = Arc::clone(&self.file);
        let size = file.metadata().map_err(fail)?.len();
        let mut reader = io::BufReader::with_capacity(1 << 20, &*file);
        let mut magic = Vec::new();
        reader.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(fail)?;
        if !MAGIC.starts_with(&magic) {
            return Err(SystemError::Fatal(format!("{} is not a log of this program", path.display())));
        }
        if magic.len() < MAGIC.len() {
            file.set_len(0).and_then(|()| file.write_all_at(MAGIC, 0)).map_err(fail)?;
            file.sync_all().and_then(|()| sync_folder(&path)).map_err(fail)?;
            self.len = MAGIC.len() as u64;
            return Ok(());
        }
        self.len = MAGIC.len() as u64;
        let mut body = Vec::new();
        while self.len < size {
            let mut head = [0; HEAD];
            let left = size - self.len;
            let whole = left >= HEAD as u64;
            if whole {
                reader.read_exact(&mut head).map_err(fail)?;
            }
            let (length, crc) = frame::head(head);
            let fits = whole && length > 0 && HEAD as u64 + u64::from(length) <= left;
            if fits {
                body.resize(length as usize, 0);
                reader.read_exact(&mut body).map_err(fail)?;
            }
            if !fits || crc32fast::hash(&body) != crc {
                // Frames before the last were on disk before the next was begun.
                let is_last = !fits || HEAD as u64 + u64::from(length) == left;
                return if is_last { self.cut(size) } else { Err(self.damaged()) };
            }
            let body_at = self.len + HEAD as u64;
            self.apply(&body, body_at).map_err(|()| self.damaged())?;
            self.len = body_at + u64::from(length);
        }
        Ok(())
    }

    fn cut(&mut self, size: u64) -> Result<(), SystemError> {
        info!(log = %self.path.display(), bytes = size - self.len, "a commit that was not finished is taken back");
        let cut = self.file.set_len(self.len).and_then(|()| self.file.sync_all());
        cut.map_err(|e| at(&self.path, &e))
    }

    fn damaged(&self) -> SystemError {
        SystemError::Fatal(format!(
            "{} is damaged at byte {}: restore the folder from a copy, or start over with --fresh",
            self.path.display(),
            self.len
        ))
    }

    /// Takes a frame's body, which is in the file at `body_at`, into memory.
    fn apply(&mut self, body: &[u8], body_at: u64) -> Result<(), ()> {
        for item in Items::of(body) {
            let (item, rows_at) = item.map_err(|_| ())?;
            match item {
                Item::Topic { name, id, partitions, keeps_tombstones_ms } => {
                    if let Some(known) = self.topics.iter_mut().find(|t| t.name == name) {
                        known.keeps_tombstones_ms = keeps_tombstones_ms;
                        continue;
                    }
                    let partitions = (0..partitions).map(|_| Partition::default()).collect();
                    let (name, id) = (name.to_owned(), id.to_owned());
                    let config = BTreeMap::new();
                    self.topics.push(Topic { name, id, keeps_tombstones_ms, config, partitions });
                }
                Item::Rows { head, rows } => {
                    let RowsHead { first, end, unix_ms, .. } = head;
                    let at = body_at + rows_at as u64;
                    let of = self.partition_mut(head.topic, head.partition).ok_or(())?;
                    of.blocks.push(Block { first, end, unix_ms, at, bytes: rows.len() });
                    of.next = of.next.max(end);
                    of.reserved = of.reserved.max(end);
                }
                Item::Next { topic, partition, next } => {
                    let of = self.partition_mut(topic, partition).ok_or(())?;
                    of.next = of.next.max(next);
                    of.reserved = of.reserved.max(next);
                }
                Item::Output { path, exact, foreign, start, len } => {
                    self.outputs
                        .insert(OsStr::from_bytes(path).into(), Output { exact, foreign, start, len });
                }
                Item::Base(len) => self.base = len,
                Item::Config { topic, settings } => {
                    let known = self.topics.iter_mut().find(|t| t.name == topic).ok_or(())?;
                    known.config = serde_json::from_slice(settings).map_err(|_| ())?;
                }
                Item::Inputs { folder, names } => {
                    let names = names.lines().map(str::to_owned).collect();
                    self.inputs.insert(OsStr::from_bytes(folder).into(), names);
                }
                Item::Origin { device, inode, state, project } => {
                    let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
                    let (state, project) = (path(state), path(project));
                    self.origin = Some(Origin { device, inode, state, project });
                }
                Item::Run { open } => self.run_is_open = open,
            }
        }
        Ok(())
    }

    fn partition_mut(&mut self, topic: u32, partition: u32) -> Option<&mut Partition> {
        self.topics.get_mut(topic as usize)?.partitions.get_mut(partition as usize)
    }

    /// The number of topic `name` and of its partition `partition`.
    pub(crate) fn find(&self, name: &str, partition: i32) -> Option<(u32, u32)> {
        let topic = self.topics.iter().position(|t| t.name == name)?;
        let partition = u32::try_from(partition).ok()?;
        ((partition as usize) < self.topics[topic].partitions.len()).then_some((topic as u32, partition))
    }

    /// The number of topic `name`, and how many partitions it has.
    pub(crate) fn partitions(&self, name: &str) -> Option<(u32, u32)> {
        let topic = self.topics.iter().position(|t| t.name == name)?;
        Some((topic as u32, self.topics[topic].partitions.len() as u32))
    }

    /// Gives away the next `count` offsets of a partition; returns the first.
    pub(crate) fn reserve(&mut self, topic: u32, partition: u32, count: u64) -> Result<u64, SystemError> {
        let of = self.partition_mut(topic, partition);
        let of = of.ok_or_else(|| SystemError::Fatal("a row for a partition that is not there".into()))?;
        let first = of.reserved;
        of.reserved += count;
        Ok(first)
    }

    /// Appends a frame and waits until it is on disk; with no frame, nothing happens.
    ///
    /// # Errors
    /// The disk failed: the log takes nothing more, and what of the frame is there is not known.
    pub(crate) fn append(&mut self, frame: Frame) -> Result<(), SystemError> {
        self.append_unsynced(frame)?;
        if let Err(error) = self.file.sync_data() {
            self.broken = true;
            return Err(at(&self.path, &error));
        }
        self.rewrite_if_due()
    }

    fn append_unsynced(&mut self, frame: Frame) -> Result<(), SystemError> {
        if frame.is_empty() {
            return Ok(());
        }
        if self.broken {
            return Err(SystemError::Fatal(format!("{}: an earlier write failed", self.path.display())));
        }
        let Some(bytes) = frame.finish() else {
            return Err(SystemError::Fatal("a commit of more than 4 GiB: commit more often".into()));
        };
        if let Err(error) = self.file.write_all_at(&bytes, self.len) {
            self.broken = true;
            // What is left is a torn frame, should this fail too.
            let _ = self.file.set_len(self.len);
            return Err(at(&self.path, &error));
        }
        self.apply(&bytes[HEAD..], self.len + HEAD as u64).map_err(|()| self.damaged())?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// The committed rows of a partition that have an offset from `from` to below `until`.
    pub(crate) fn snapshot(&self, topic: u32, partition: u32, from: u64, until: u64) -> Snapshot {
        let blocks = &self.topics[topic as usize].partitions[partition as usize].blocks;
        let blocks = blocks.iter().filter(|b| b.end > from && b.first < until).copied().collect();
        Snapshot { file: Arc::clone(&self.file), path: self.path.clone(), blocks }
    }

    fn rewrite_if_due(&mut self) -> Result<(), SystemError> {
        if self.len < 2 * self.base + self.spare {
            return Ok(());
        }
        self.rewrite(crate::clock::unix_ms())
    }

    /// Writes the log anew, without rows that newer ones have replaced and tombstones that are old enough.
    fn rewrite(&mut self, now_unix_ms: u64) -> Result<(), SystemError> {
        let (before, path, new_path) = (self.len, self.path.clone(), beside(&self.path));
        let open = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&new_path);
        let mut new = Log::new(&new_path, open.map_err(|e| at(&new_path, &e))?, self.spare);
        new.load()?;
        let mut frame = Frame::default();
        for topic in &self.topics {
            let partitions = topic.partitions.len() as u32;
            let Topic { name, id, keeps_tombstones_ms, .. } = topic;
            frame.push(&Item::Topic { name, id, partitions, keeps_tombstones_ms: *keeps_tombstones_ms });
            configure(name, &topic.config, &mut frame);
        }
        for (path, output) in &self.outputs {
            output.tell(path, &mut frame);
        }
        for (folder, names) in &self.inputs {
            frame.push(&Item::Inputs { folder: folder.as_os_str().as_bytes(), names: &names.join("\n") });
        }
        if let Some(origin) = &self.origin {
            origin.tell(&mut frame);
        }
        frame.push(&Item::Run { open: self.run_is_open });
        new.append_unsynced(frame)?;
        for topic in 0..self.topics.len() as u32 {
            for partition in 0..self.topics[topic as usize].partitions.len() as u32 {
                self.copy_live(topic, partition, now_unix_ms, &mut new)?;
            }
        }
        let mut frame = Frame::default();
        frame.push(&Item::Base(new.len));
        new.append_unsynced(frame)?;
        let renamed = new.file.sync_all().and_then(|()| fs::rename(&new_path, &path));
        renamed.and_then(|()| sync_folder(&path)).map_err(|e| at(&path, &e))?;
        new.path = path;
        *self = new;
        debug!(before, after = self.len, "the log is rewritten");
        Ok(())
    }

    fn copy_live(&self, topic: u32, partition: u32, now: u64, new: &mut Log) -> Result<(), SystemError> {
        let of = &self.topics[topic as usize].partitions[partition as usize];
        let keeps_ms = self.topics[topic as usize].keeps_tombstones_ms;
        let all = self.snapshot(topic, partition, 0, u64::MAX);
        let live = all.last_of_each_key()?;
        let mut head = RowsHead { topic, partition, first: 0, end: 0, unix_ms: 0 };
        let mut made = Rows::default();
        let mut number = 0;
        for block in &all.blocks {
            let is_old = block.unix_ms.saturating_add(keeps_ms) <= now;
            let bytes = all.read(block)?;
            for row in frame::rows(&bytes, block.first) {
                let stays = live.get(number) && !(row.value.is_none() && is_old);
                number += 1;
                if !stays {
                    continue;
                }
                if made.count == 0 {
                    head = RowsHead { first: row.offset, end: row.offset, unix_ms: 0, ..head };
                }
                made.push(row.offset - head.end, row.key, row.value);
                head.end = row.offset + 1;
                head.unix_ms = head.unix_ms.max(block.unix_ms);
                if made.bytes.len() >= BLOCK_BYTES {
                    new.put(head, &std::mem::take(&mut made))?;
                }
            }
        }
        new.put(head, &made)?;
        let mut frame = Frame::default();
        frame.push(&Item::Next { topic, partition, next: of.next });
        new.append_unsynced(frame)?;
        if let Some(copy) = new.partition_mut(topic, partition) {
            copy.reserved = of.reserved;
        }
        Ok(())
    }

    fn put(&mut self, head: RowsHead, rows: &Rows) -> Result<(), SystemError> {
        let mut frame = Frame::default();
        if rows.count > 0 {
            frame.push(&Item::Rows { head, rows: &rows.bytes });
        }
        self.append_unsynced(frame)
    }

    /// Makes a topic, unless it is there.
    pub(crate) fn topic(
        &mut self,
        name: &str,
        partitions: u32,
        config: &BTreeMap<String, String>,
        frame: &mut Frame,
    ) -> Result<(), SystemError> {
        types::check_topic_settings(config).map_err(SystemError::Fatal)?;
        let Some(known) = self.topics.iter().find(|t| t.name == name) else {
            let id = format!("{}-{}", crate::clock::unix_ms(), self.topics.len());
            let keeps_tombstones_ms = keeps_tombstones_ms(config).unwrap_or(KEEPS_TOMBSTONES_MS);
            frame.push(&Item::Topic { name, id: &id, partitions, keeps_tombstones_ms });
            configure(name, config, frame);
            return Ok(());
        };
        if (known.partitions.len() as u32) < partitions {
            return Err(SystemError::Fatal(format!(
                "the job has run with {} tasks and now has {partitions}: keys would part from their state; run it \
                 under a new [job] id, or start over with --fresh",
                known.partitions.len()
            )));
        }
        Ok(())
    }

    /// Changes settings of a topic and leaves its others as they are.
    pub(crate) fn alter(
        &self,
        name: &str,
        set: &BTreeMap<String, String>,
        frame: &mut Frame,
    ) -> Result<(), SystemError> {
        types::check_topic_settings(set).map_err(SystemError::Fatal)?;
        let known = self.topics.iter().find(|t| t.name == name);
        let known =
            known.ok_or_else(|| SystemError::Fatal(format!("no topic {name} in the state folder")))?;
        if let Some(keeps_tombstones_ms) = keeps_tombstones_ms(set) {
            let partitions = known.partitions.len() as u32;
            frame.push(&Item::Topic { name, id: &known.id, partitions, keeps_tombstones_ms });
        }
        let mut config = known.config.clone();
        config.extend(set.clone());
        configure(name, &config, frame);
        Ok(())
    }
}

impl Topic {
    /// Its whole configuration.
    pub(crate) fn configs(&self) -> Configs {
        let mut config = self.config.clone();
        config.insert(TOMBSTONES.into(), self.keeps_tombstones_ms.to_string());
        configs_of(&config)
    }
}

fn keeps_tombstones_ms(config: &BTreeMap<String, String>) -> Option<u64> {
    config.get(TOMBSTONES)?.parse().ok()
}

fn configure(topic: &str, config: &BTreeMap<String, String>, frame: &mut Frame) {
    let settings = serde_json::to_vec(config).expect("a map of texts always serialises");
    frame.push(&Item::Config { topic, settings: &settings });
}

impl Snapshot {
    fn read(&self, block: &Block) -> Result<Vec<u8>, SystemError> {
        let mut bytes = vec![0; block.bytes];
        self.file.read_exact_at(&mut bytes, block.at).map_err(|e| at(&self.path, &e))?;
        Ok(bytes)
    }

    /// Hands over the rows from `from` to below `until`, a block at a time.
    pub(crate) fn rows(
        &self,
        from: u64,
        until: u64,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        for block in &self.blocks {
            let bytes = self.read(block)?;
            let wanted = frame::rows(&bytes, block.first).filter(|row| (from..until).contains(&row.offset));
            let message = |Row { offset, key, value }| Message {
                source: 0,
                offset,
                key,
                value,
                timestamp_ms: Some(block.unix_ms),
                headers: Headers::NONE,
            };
            let messages: Vec<Message<'_>> = wanted.map(message).collect();
            if !messages.is_empty() {
                take(&messages)?;
            }
        }
        Ok(())
    }

    /// Of all rows, counted through, those after which none has the same key. Keys are told apart by 128 bits of
    /// hash, so many at once as memory shall be used for.
    fn last_of_each_key(&self) -> Result<Bits, SystemError> {
        let mut count = 0;
        for block in &self.blocks {
            count += frame::rows(&self.read(block)?, block.first).count() as u64;
        }
        let mut live = Bits(vec![0; count.div_ceil(64) as usize]);
        let passes = count / KEYS_AT_ONCE + 1;
        for pass in 0..passes {
            let mut last: HashMap<u128, u64> = HashMap::new();
            let mut number = 0;
            for block in &self.blocks {
                let bytes = self.read(block)?;
                for row in frame::rows(&bytes, block.first) {
                    match row.key.map(hash) {
                        Some(hash) if hash % u128::from(passes) == u128::from(pass) => {
                            last.insert(hash, number);
                        }
                        Some(_) => {}
                        None => live.set(number),
                    }
                    number += 1;
                }
            }
            last.into_values().for_each(|number| live.set(number));
        }
        Ok(live)
    }
}

struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, bit: u64) {
        self.0[(bit / 64) as usize] |= 1 << (bit % 64);
    }
    fn get(&self, bit: u64) -> bool {
        self.0[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }
}

fn hash(key: &[u8]) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        key.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_data()
}

fn at(path: &Path, error: &io::Error) -> SystemError {
    SystemError::Fatal(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
