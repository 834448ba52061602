//! What the container says: read from its pipes and written into files of a bounded size, the oldest of which go.
//!
//! The shim stands between so that a container can neither fill a disk nor be stopped by a full one: what cannot be
//! written is read all the same, and how much was lost is told in its place.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use nm_shim::Folder;
use nm_shim::files::{STREAMS, segment_name};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// How many files a stream's bytes are in at most. The oldest goes at once, so this is how exact the bound is.
const SEGMENTS: u64 = 8;
/// The least a file holds, bytes.
const SEGMENT_MIN: u64 = 4 << 10;
/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// How often one stream is read at the end: the largest pipe has a mebibyte, and a read may bring little.
const LAST_READS: usize = 4_096;
/// How often one stream is read before the shim looks at anything else.
const READS: usize = 16;

/// Both streams of a container.
pub(crate) struct Output {
    streams: [Stream; 2],
    logs: Rc<Folder>,
    buffer: Vec<u8>,
}

struct Stream {
    name: &'static str,
    /// By handle, so that nothing that a container does leads it elsewhere.
    logs: Rc<Folder>,
    /// None once every writer has closed it.
    pipe: Option<OwnedFd>,
    file: Option<File>,
    /// Where each file begins, the oldest first.
    starts: VecDeque<u64>,
    /// Where the next byte will be.
    end: u64,
    segment: u64,
    /// Bytes that could not be written, since the last that could.
    lost: u64,
}

impl Output {
    /// Streams that keep `bytes` each, and the ends that the container writes to.
    pub(crate) fn new(logs: &Path, bytes: u64) -> io::Result<(Output, [OwnedFd; 2])> {
        let logs = Rc::new(Folder::open(logs)?);
        let (out, out_end) = Stream::new(STREAMS[0], &logs, bytes)?;
        let (err, err_end) = Stream::new(STREAMS[1], &logs, bytes)?;
        Ok((Output { streams: [out, err], logs, buffer: Vec::new() }, [out_end, err_end]))
    }

    /// Notes the container's end: logs are as old as that, which may be long after its last word.
    pub(crate) fn ended(&self) {
        // If it cannot be noted they go a little earlier.
        let _ = self.logs.touch();
    }

    /// Those that may still bring something.
    pub(crate) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.streams.iter().filter_map(|stream| stream.pipe.as_ref().map(AsFd::as_fd))
    }

    /// Takes what is there, or much of it.
    pub(crate) fn pump(&mut self) {
        self.buffer.resize(CHUNK, 0);
        for stream in &mut self.streams {
            for _ in 0..READS {
                if !stream.pump(&mut self.buffer) {
                    break;
                }
            }
        }
    }

    /// Takes all that is there. It is no more than a pipe holds, unless somebody else writes who was given its end.
    pub(crate) fn drain(&mut self) {
        self.buffer.resize(CHUNK, 0);
        for stream in &mut self.streams {
            for _ in 0..LAST_READS {
                if !stream.pump(&mut self.buffer) {
                    break;
                }
            }
            stream.tell_lost();
        }
    }
}

impl Stream {
    fn new(name: &'static str, logs: &Rc<Folder>, bytes: u64) -> io::Result<(Stream, OwnedFd)> {
        let (pipe, end) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        let mut stream = Stream {
            name,
            logs: logs.clone(),
            pipe: Some(pipe),
            end: 0,
            file: None,
            starts: VecDeque::from([0]),
            segment: (bytes / SEGMENTS).max(SEGMENT_MIN),
            lost: 0,
        };
        // Made at once, so that a container that says nothing has its files too.
        let file = stream.open()?;
        stream.end = file.metadata()?.len();
        stream.file = Some(file);
        Ok((stream, end))
    }

    /// Reads once; whether there may be more.
    fn pump(&mut self, buffer: &mut [u8]) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(size) => {
                self.take(&buffer[..size]);
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = self.starts.back().map_or(0, |start| (start + self.segment).saturating_sub(self.end));
            if room == 0 {
                self.next_segment();
                continue;
            }
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.tell_lost();
            self.write(now);
            rest = later;
        }
    }

    /// What cannot be written has no place in the stream; the next that can be written follows a line that tells how
    /// much is missing.
    fn write(&mut self, bytes: &[u8]) {
        let written = if self.lost == 0 { self.append(bytes) } else { 0 };
        self.lost += (bytes.len() - written) as u64;
    }

    fn tell_lost(&mut self) {
        if self.lost == 0 {
            return;
        }
        let told = format!("\n[{} bytes of output could not be written here and are lost]\n", self.lost);
        if self.append(told.as_bytes()) == told.len() {
            self.lost = 0;
        }
    }

    /// Writes what goes; how much that was.
    fn append(&mut self, bytes: &[u8]) -> usize {
        if self.file.is_none() {
            self.file = self.open().ok();
        }
        let written = self.file.as_mut().map_or(0, |file| write_some(file, bytes));
        self.end += written as u64;
        written
    }

    /// The file of the newest segment.
    fn open(&self) -> io::Result<File> {
        let start = self.starts.back().copied().unwrap_or_default();
        self.logs.append(segment_name(self.name, start).as_str(), 0o640)
    }

    fn next_segment(&mut self) {
        self.starts.push_back(self.end);
        while self.starts.len() as u64 > SEGMENTS {
            let oldest = segment_name(self.name, self.starts.pop_front().unwrap_or_default());
            // One that is gone already is what we want.
            let _ = self.logs.remove_file(oldest.as_str());
        }
        self.file = None;
    }
}

/// Writes what goes; how much that was. On a full disk a part may go.
fn write_some(file: &mut File, bytes: &[u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => break,
            Ok(size) => done += size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}
