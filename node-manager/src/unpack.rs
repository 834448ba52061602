//! Archives among a container's artefacts: unpacked into its work directory, and nowhere else.
//!
//! Files, folders, and links that stay inside are taken. What would lead out of the directory, devices and pipes are
//! refused, and with them the launch. Nothing is written through a link, and none of it without a bound: bytes, names,
//! levels and time.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nm_shim::User;
use nm_shim::folder::{Folder, chown};
use tar::EntryType;

/// Levels of folders in an archive.
const LEVELS: usize = 64;
/// The longest target of a link, bytes.
const LINK: u64 = 4096;
/// The most that is read between two files of a tar: their headers, and what an entry without content should not have.
const BETWEEN: u64 = 1 << 20;
/// The most that is read of a zip's list of files.
const DIRECTORY: u64 = 32 << 20;
/// The largest zip: the memory for its list is bounded by its size alone.
const ZIP: u64 = 1 << 30;

/// What an archive may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Of all its files together.
    pub(crate) bytes: u64,
    /// Files, folders and links.
    pub(crate) entries: u64,
    pub(crate) time: Duration,
}

impl Bounds {
    /// Those of a node whose artefacts may have `bytes` each.
    pub(crate) fn of(bytes: u64) -> Bounds {
        Bounds { bytes, entries: 200_000, time: Duration::from_secs(300) }
    }
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    Tar,
    TarGz,
    TarZst,
    Zip,
}

/// What the name of an artefact says it is; none for a plain file.
pub(crate) fn packed(name: &str) -> Option<Packed> {
    let endings = [
        (".tar", Packed::Tar),
        (".tar.gz", Packed::TarGz),
        (".tgz", Packed::TarGz),
        (".tar.zst", Packed::TarZst),
        (".zip", Packed::Zip),
    ];
    endings.into_iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, packed)| packed)
}

/// Unpacks `archive` into the folder `into`, which is there and which nobody else can enter. All of it is `user`'s.
///
/// # Errors
/// It is no such archive, something in it is refused, it is beyond a bound, or the disk is full.
pub(crate) fn unpack(
    archive: File,
    packed: Packed,
    into: &Folder,
    user: Option<User>,
    bounds: Bounds,
) -> Result<()> {
    let mut target = Target { into, user, bounds, begun: Instant::now(), entries: 0, bytes: 0 };
    let is_zip = packed == Packed::Zip;
    ensure!(!is_zip || archive.metadata()?.len() <= ZIP, "a zip of more than 1 GiB: pack it as tar.gz");
    let file = BufReader::new(archive);
    match packed {
        Packed::Tar => untar(file, &mut target),
        Packed::TarGz => untar(flate2::bufread::MultiGzDecoder::new(file), &mut target),
        Packed::TarZst => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file);
            let broken = |error: ruzstd::decoding::errors::FrameDecoderError| {
                io::Error::new(io::ErrorKind::InvalidData, error.to_string())
            };
            untar(decoder.map_err(broken)?, &mut target)
        }
        Packed::Zip => unzip(file, &mut target),
    }
}

fn untar(packed: impl Read, target: &mut Target) -> Result<()> {
    let (packed, left) = Metered::new(packed, target);
    let mut archive = tar::Archive::new(packed);
    let mut entries = archive.entries()?;
    loop {
        left.set(BETWEEN);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let to = |entry: &tar::Entry<_>| -> Result<_> {
            Ok(entry.link_name()?.context("a link to nothing")?.into_owned())
        };
        match entry.header().entry_type() {
            EntryType::Directory => target.folder(&name)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mode = entry.header().mode()?;
                // Its file's bytes are counted where they are written.
                left.set(u64::MAX);
                target.file(&name, mode, &mut entry)?;
            }
            EntryType::Symlink => {
                let to = to(&entry)?;
                target.symlink(&name, &to)?;
            }
            EntryType::Link => {
                let to = to(&entry)?;
                target.hard_link(&name, &to)?;
            }
            // Words about the archive itself.
            EntryType::XGlobalHeader | EntryType::XHeader => {}
            _ => bail!("`{}` is a device or a pipe, which is refused", name.display()),
        }
    }
}

fn unzip(packed: impl Read + io::Seek, target: &mut Target) -> Result<()> {
    let (packed, left) = Metered::new(packed, target);
    left.set(DIRECTORY);
    let mut archive = zip::ZipArchive::new(packed)?;
    left.set(u64::MAX);
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at)?;
        let name = Path::new(entry.name()).to_owned();
        if entry.is_dir() {
            target.folder(&name)?;
        } else if entry.is_symlink() {
            let mut to = String::new();
            entry.take(LINK).read_to_string(&mut to)?;
            target.symlink(&name, Path::new(&to))?;
        } else {
            let mode = entry.unix_mode().unwrap_or(0o644);
            target.file(&name, mode, &mut entry)?;
        }
    }
    Ok(())
}

/// What is read, up to a point and for a time: libraries read lists of files into memory before they tell of one.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
    begun: Instant,
    time: Duration,
}

impl<R> Metered<R> {
    fn new(inner: R, target: &Target<'_>) -> (Metered<R>, Rc<Cell<u64>>) {
        let left = Rc::new(Cell::new(u64::MAX));
        let metered = Metered { inner, left: left.clone(), begun: target.begun, time: target.bounds.time };
        (metered, left)
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.begun.elapsed() > self.time {
            return Err(io::Error::other(format!("unpacking it takes more than {} s", self.time.as_secs())));
        }
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other("its list of files, or what is said of one, is too large"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// Where an archive is unpacked, and how much of it there is so far.
struct Target<'a> {
    into: &'a Folder,
    user: Option<User>,
    bounds: Bounds,
    begun: Instant,
    entries: u64,
    bytes: u64,
}

impl Target<'_> {
    fn folder(&mut self, path: &Path) -> Result<()> {
        let names = inside(path)?;
        self.open(&names).with_context(|| path.display().to_string())?;
        Ok(())
    }

    /// Without the bits that would give rights to who runs it.
    fn file(&mut self, path: &Path, mode: u32, content: &mut impl Read) -> Result<()> {
        let (folder, name) = self.place(path)?;
        let file = folder.create(name.as_str(), mode & 0o777);
        let mut file = file.with_context(|| path.display().to_string())?;
        let mut buffer = vec![0u8; 64 << 10];
        loop {
            let read = content.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            self.bytes += read as u64;
            ensure!(
                self.bytes <= self.bounds.bytes,
                "unpacked it is larger than nm's --cache-size of {} bytes",
                self.bounds.bytes
            );
            self.in_time()?;
            io::Write::write_all(&mut file, &buffer[..read])?;
        }
        if let Some(user) = self.user {
            chown(&file, user)?;
        }
        Ok(())
    }

    fn symlink(&mut self, path: &Path, to: &Path) -> Result<()> {
        let levels = inside(path)?.len().saturating_sub(1);
        ensure!(
            stays_inside(to, levels),
            "`{}` is a link to `{}`, which leads out of the work directory",
            path.display(),
            to.display()
        );
        let (folder, name) = self.place(path)?;
        folder.symlink(name.as_str(), to).with_context(|| path.display().to_string())
    }

    fn hard_link(&mut self, path: &Path, to: &Path) -> Result<()> {
        let mut names = inside(to)?;
        let old = names.pop().context("a link to nothing")?;
        let from = self.open(&names).with_context(|| to.display().to_string())?;
        // A file: what a link is to is another matter.
        from.file(old.as_str()).with_context(|| to.display().to_string())?;
        let (folder, name) = self.place(path)?;
        folder.link(name.as_str(), &from, old.as_str()).with_context(|| path.display().to_string())
    }

    /// The folder that a path is in, made if need be, and its last name.
    fn place(&mut self, path: &Path) -> Result<(Folder, String)> {
        let mut names = inside(path)?;
        let name = names.pop().with_context(|| format!("`{}` is no name", path.display()))?;
        let folder = self.open(&names).with_context(|| path.display().to_string())?;
        self.count()?;
        Ok((folder, name))
    }

    /// Opens the folder with these names, making what is not there. A link among them is refused.
    fn open(&mut self, names: &[String]) -> Result<Folder> {
        ensure!(names.len() <= LEVELS, "it has more than {LEVELS} levels of folders");
        let mut folder = self.into.folder(c".")?;
        for name in names {
            if folder.stat(name.as_str()).is_err() {
                self.count()?;
                let made = folder.make(name.as_str(), 0o755)?;
                if let Some(user) = self.user {
                    made.give(user)?;
                }
            }
            folder = folder.folder(name.as_str())?;
        }
        Ok(folder)
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        let most = self.bounds.entries;
        ensure!(self.entries <= most, "it has more than {most} files, folders and links");
        self.in_time()
    }

    fn in_time(&self) -> Result<()> {
        let most = self.bounds.time;
        ensure!(self.begun.elapsed() <= most, "unpacking it takes more than {} s", most.as_secs());
        Ok(())
    }
}

/// The names of a path that leads straight down: not from the root, and never up.
fn inside(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                let name = name.to_str().with_context(|| format!("`{}` is no UTF-8", path.display()))?;
                names.push(name.to_owned());
            }
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("`{}` leads out of the work directory", path.display())
            }
        }
    }
    Ok(names)
}

/// Whether a link that lies `levels` below the directory leads to something in it. It may go up first, and then only
/// down: what it goes down through may be a link itself, and what is up from there is not known.
fn stays_inside(to: &Path, levels: usize) -> bool {
    let mut up = 0;
    let mut down = false;
    to.components().all(|component| match component {
        Component::Normal(_) => {
            down = true;
            true
        }
        Component::CurDir => true,
        Component::ParentDir => {
            up += 1;
            !down && up <= levels
        }
        Component::RootDir | Component::Prefix(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 100, time: Duration::from_secs(60) };

    fn header(kind: EntryType, size: u64, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header
    }

    /// A tar whose names are taken as they are: a well-behaved writer refuses bad ones.
    fn tar_of(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let is_file = *kind == EntryType::Regular;
            let mut header = header(*kind, if is_file { content.len() as u64 } else { 0 }, 0o4755);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            if !is_file {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, if is_file { content.as_bytes() } else { b"" }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(packed: Packed, bytes: &[u8]) -> (tempfile::TempDir, Result<()>) {
        unpacked_within(BOUNDS, packed, bytes)
    }

    fn unpacked_within(bounds: Bounds, packed: Packed, bytes: &[u8]) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let (archive, into) = (dir.path().join("archive"), dir.path().join("work"));
        fs::write(&archive, bytes).unwrap();
        fs::create_dir(&into).unwrap();
        let result =
            unpack(File::open(&archive).unwrap(), packed, &Folder::open(&into).unwrap(), None, bounds);
        (dir, result)
    }

    fn good() -> Vec<u8> {
        tar_of(&[
            (EntryType::Directory, "bin", ""),
            (EntryType::Regular, "./bin/run", "#!/bin/sh\n"),
            (EntryType::Regular, "lib/deep/file", "text"),
            (EntryType::Symlink, "link", "lib/deep/file"),
            (EntryType::Link, "hard", "bin/run"),
            (EntryType::Symlink, "lib/up", "../bin/run"),
        ])
    }

    #[test]
    fn archives_of_every_kind_are_unpacked_with_their_modes() {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&good()).unwrap();
        let zst =
            ruzstd::encoding::compress_to_vec(good().as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        for (packed, bytes) in
            [(Packed::Tar, good()), (Packed::TarGz, gz.finish().unwrap()), (Packed::TarZst, zst)]
        {
            let (dir, result) = unpacked(packed, &bytes);
            result.unwrap_or_else(|error| panic!("{packed:?}: {error:#}"));
            let work = dir.path().join("work");
            assert_eq!(fs::read_to_string(work.join("link")).unwrap(), "text");
            assert_eq!(fs::read_to_string(work.join("hard")).unwrap(), "#!/bin/sh\n");
            let mode = fs::metadata(work.join("bin/run")).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o755, "it runs, and gives no rights");
        }
    }

    #[test]
    fn a_zip_is_unpacked_with_its_modes() {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
        zip.start_file("bin/run", options).unwrap();
        zip.write_all(b"#!/bin/sh\n").unwrap();
        let (dir, result) = unpacked(Packed::Zip, &zip.finish().unwrap().into_inner());
        result.unwrap();
        let run = dir.path().join("work/bin/run");
        assert_eq!(fs::read_to_string(&run).unwrap(), "#!/bin/sh\n");
        assert_eq!(fs::metadata(run).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn what_leads_out_of_the_directory_is_refused_and_so_are_devices() {
        use EntryType as E;
        let bad: [&[(E, &str, &str)]; 10] = [
            &[(E::Regular, "../out", "x")],
            &[(E::Regular, "/out", "x")],
            &[(E::Regular, "a/../../out", "x")],
            &[(E::Symlink, "link", "/etc")],
            &[(E::Symlink, "link", "../..")],
            &[(E::Symlink, "a/b/link", "../../../archive")],
            &[(E::Symlink, "s", "."), (E::Symlink, "link", "s/../archive")],
            &[(E::Link, "hard", "../archive")],
            &[(E::Char, "null", "")],
            &[(E::Fifo, "pipe", "")],
        ];
        for entries in bad {
            let (dir, result) = unpacked(Packed::Tar, &tar_of(entries));
            let told = result.expect_err("it was unpacked").to_string();
            assert!(told.contains("leads out") || told.contains("refused"), "{told}");
            let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
            assert_eq!(names.len(), 2, "{names:?}");
        }
    }

    #[test]
    fn nothing_is_written_or_linked_through_a_link() {
        use EntryType as E;
        let bad: [&[(E, &str, &str)]; 3] = [
            &[(E::Symlink, "a", "."), (E::Regular, "a/file", "x")],
            &[(E::Regular, "d/file", "x"), (E::Symlink, "a", "d"), (E::Link, "hard", "a/file")],
            &[(E::Symlink, "a", "b"), (E::Link, "hard", "a")],
        ];
        for entries in bad {
            let (dir, result) = unpacked(Packed::Tar, &tar_of(entries));
            assert!(result.is_err(), "{entries:?}");
            assert!(!dir.path().join("work/file").exists() && !dir.path().join("work/hard").exists());
        }
    }

    #[test]
    fn what_is_beyond_a_bound_is_refused_with_its_name() {
        let deep = ["d/"; 30].concat();
        let small = Bounds { bytes: 100, entries: 20, time: Duration::from_secs(60) };
        let many: Vec<String> = (0..21).map(|n| format!("f{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (EntryType::Regular, name.as_str(), "")).collect();
        let text = "x".repeat(101);
        let cases: [(&[(EntryType, &str, &str)], &str); 3] = [
            (&[(EntryType::Directory, &deep, "")], "more than 20 files"),
            (&many, "more than 20 files"),
            (&[(EntryType::Regular, "big", &text)], "--cache-size of 100 bytes"),
        ];
        for (entries, expected) in cases {
            let told = format!("{:#}", unpacked_within(small, Packed::Tar, &tar_of(entries)).1.unwrap_err());
            assert!(told.contains(expected), "{told}");
        }
        let levels = Path::new(&["d"; LEVELS + 2].join("/")).to_owned();
        let dir = tempfile::tempdir().unwrap();
        let into = Folder::open(dir.path()).unwrap();
        let mut target =
            Target { into: &into, user: None, bounds: BOUNDS, begun: Instant::now(), entries: 0, bytes: 0 };
        assert!(format!("{:#}", target.folder(&levels).unwrap_err()).contains("levels"));
        target.bounds.time = Duration::ZERO;
        assert!(format!("{:#}", target.folder(Path::new("d")).unwrap_err()).contains("takes more than"));
    }

    #[test]
    fn what_is_said_of_files_is_bounded_too() {
        // A name of megabytes, a folder with content, and the same packed small.
        for kind in [EntryType::GNULongName, EntryType::XHeader, EntryType::Directory, EntryType::Symlink] {
            let mut bytes = header(kind, 2 << 20, 0o755);
            bytes.set_path("d").unwrap();
            bytes.set_link_name("e").unwrap();
            bytes.set_cksum();
            let mut tar = bytes.as_bytes().to_vec();
            tar.resize(tar.len() + (2 << 20), b'x');
            tar.extend(good());
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(&tar).unwrap();
            let told = format!("{:#}", unpacked(Packed::TarGz, &gz.finish().unwrap()).1.unwrap_err());
            assert!(told.contains("too large"), "{kind:?}: {told}");
        }
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        for packed in [Packed::Tar, Packed::TarGz, Packed::TarZst, Packed::Zip] {
            assert!(unpacked(packed, &[b'x'; 2000]).1.is_err(), "{packed:?}");
        }
        assert_eq!(packed("job.tar.gz"), Some(Packed::TarGz));
        assert_eq!(packed("job"), None);
    }
}
