//! What an input is read from: a file as it is, one that is compressed, or what comes once, such as stdin or a FIFO.
//!
//! Whether a file is compressed is told by its first bytes, whatever its name. Places in it are those of what comes out,
//! so a file may be compressed or unpacked between runs.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use task_api::system::SystemError;

use super::files::Place;
use super::position::TRACE;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What lines come from.
pub(crate) enum Input {
    /// A file as it is.
    Plain(Counted),
    /// A file of gzip members.
    Gzip(Box<MultiGzDecoder<BufReader<Counted>>>),
    /// A file of Zstandard frames.
    Zstd(Box<Zstd>),
    /// What comes once: stdin, a FIFO, a device.
    Once(File),
}

/// A file whose bytes are counted as they are read, for people who wait.
pub(crate) struct Counted {
    pub(crate) file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Input {
    /// Opens `place`; `read` counts the bytes of the file that are read.
    ///
    /// # Errors
    /// It cannot be read, or is nothing to read lines from.
    pub(crate) fn open(place: &Place, read: &Arc<AtomicU64>) -> Result<Input, SystemError> {
        let Place::At(path) = place else {
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|e| fatal(place, &e))?;
            return Ok(Input::Once(File::from(stdin)));
        };
        // A FIFO without a writer would hold up who opens it: it is waited for where a stop is seen.
        let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
        let file = opened.map_err(|e| unreadable(path, &e))?;
        let kind = file.metadata().map_err(|e| fatal(place, &e))?.file_type();
        if kind.is_dir() {
            return Err(SystemError::Fatal(format!(
                "{place} is a folder where a file is to be; the partitions of a stream are files"
            )));
        }
        if !kind.is_file() {
            return Ok(Input::Once(file));
        }
        let mut first = [0; 4];
        let count = read_at_most(&file, &mut first, 0).map_err(|e| fatal(place, &e))?;
        let counted = Counted { file, read: Arc::clone(read) };
        Ok(match first {
            _ if count >= 2 && first[..2] == GZIP => {
                Input::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 << 10, counted))))
            }
            _ if count == 4 && (first == ZSTD || is_skippable(first)) => {
                Input::Zstd(Box::new(Zstd::new(counted)))
            }
            _ => Input::Plain(counted),
        })
    }

    /// The file, if it can be read again.
    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Input::Plain(counted) => Some(&counted.file),
            Input::Gzip(gzip) => Some(&gzip.get_ref().get_ref().file),
            Input::Zstd(zstd) => Some(&zstd.source.get_ref().file),
            Input::Once(_) => None,
        }
    }

    /// Whether places in it are those of the file.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Input::Plain(_))
    }

    /// Reads once; none if nothing comes within `timeout`, zero bytes at the end.
    ///
    /// # Errors
    /// The disk failed, or what is compressed is damaged or ends too early.
    pub(crate) fn read(&mut self, buffer: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        if let Input::Once(file) = self
            && !is_readable(file, timeout)?
        {
            return Ok(None);
        }
        loop {
            let read = match self {
                Input::Plain(counted) => counted.read(buffer),
                Input::Gzip(gzip) => gzip.read(buffer).map_err(|e| damaged("gzip", &e)),
                Input::Zstd(zstd) => zstd.read(buffer).map_err(|e| damaged("zstd", &e)),
                Input::Once(file) => file.read(buffer),
            };
            match read {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                read => return read.map(Some),
            }
        }
    }

    /// Goes on at byte `place` of what it holds; returns where it is then (its end, if that comes first), and what is
    /// before that.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn go_to(&mut self, place: u64) -> io::Result<(u64, Vec<u8>)> {
        if let Input::Plain(counted) = self {
            let at = place.min(counted.file.metadata()?.len());
            counted.read.fetch_add(at, Ordering::Relaxed);
            counted.file.seek(SeekFrom::Start(at))?;
            return Ok((at, bytes_before(&counted.file, at, TRACE)?));
        }
        let (mut at, mut chunk, mut before) = (0, vec![0; 256 << 10], Vec::new());
        while at < place {
            let most = usize::try_from(place - at).unwrap_or(usize::MAX).min(chunk.len());
            let Some(read @ 1..) = self.read(&mut chunk[..most], Duration::ZERO)? else { break };
            at += read as u64;
            before.extend_from_slice(&chunk[read.saturating_sub(TRACE)..read]);
            before.drain(..before.len().saturating_sub(TRACE));
        }
        Ok((at, before))
    }

    /// How many bytes it holds; of what comes once nobody knows.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn length(mut self) -> io::Result<Option<u64>> {
        match &self {
            Input::Plain(counted) => counted.file.metadata().map(|m| Some(m.len())),
            Input::Gzip(_) | Input::Zstd(_) => self.go_to(u64::MAX).map(|(end, _)| Some(end)),
            Input::Once(_) => Ok(None),
        }
    }
}

/// The last `most` bytes before `place`, or fewer at the beginning of the file.
pub(crate) fn bytes_before(file: &File, place: u64, most: usize) -> io::Result<Vec<u8>> {
    let start = place.saturating_sub(most as u64);
    let mut bytes = vec![0; (place - start) as usize];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

fn read_at_most(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], at + count as u64)? {
            0 => break,
            read => count += read,
        }
    }
    Ok(count)
}

fn is_skippable(first: [u8; 4]) -> bool {
    first[1..] == [0x2a, 0x4d, 0x18] && first[0] & 0xf0 == 0x50
}

fn damaged(kind: &str, error: &io::Error) -> io::Error {
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            "ends before its data does: was it cut off, or is it still being written?"
        }
        _ => "is damaged",
    };
    io::Error::other(format!("the {kind} file {what} ({error}); `{kind} -t` checks it"))
}

fn fatal(place: &Place, error: &io::Error) -> SystemError {
    SystemError::Fatal(format!("{place}: {error}"))
}

fn unreadable(path: &Path, error: &io::Error) -> SystemError {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => format!("; `chmod u+r {}` lets its owner read it", path.display()),
        io::ErrorKind::NotFound if path.is_symlink() => {
            let to = std::fs::read_link(path).unwrap_or_default();
            format!("; it is a link to {}, which is not there", to.display())
        }
        io::ErrorKind::NotFound => "; it was there when the run began".to_owned(),
        _ if std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket()) => {
            "; it is a socket, which cannot be opened as a file".to_owned()
        }
        _ => String::new(),
    };
    SystemError::Fatal(format!("cannot read {}: {error}{hint}", path.display()))
}

fn is_readable(file: &File, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Frames one after the other, each with its checksum if it has one.
pub(crate) struct Zstd {
    source: BufReader<Counted>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl Zstd {
    fn new(source: Counted) -> Zstd {
        let source = BufReader::with_capacity(64 << 10, source);
        Zstd { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Whether there was another frame to begin.
    fn begin(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped =
                        io::copy(&mut self.source.by_ref().take(u64::from(length)), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    /// The decoder tells an early end only in words.
    fn failed(&mut self, error: &dyn std::error::Error) -> io::Error {
        match self.source.fill_buf() {
            Ok([]) => io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string()),
            Ok(_) | Err(_) => io::Error::other(error.to_string()),
        }
    }
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let decoded = self
                    .decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBytes(buffer.len()));
                if let Err(error) = decoded {
                    return Err(self.failed(&error));
                }
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            let told = self.decoder.get_checksum_from_data();
            if told.is_some() && told != self.decoder.get_calculated_checksum() {
                return Err(io::Error::other("a checksum does not match"));
            }
            self.in_frame = false;
        }
    }
}
