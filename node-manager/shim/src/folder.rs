//! Folders by handle. What a container can write in is hostile ground: links that lead elsewhere, pipes that nobody
//! writes to, files without an end, folders that are deeper than a path may be long. A [`Folder`] takes one name at a
//! time, below its handle, and never follows a link, never waits for a reader or a writer, never reads more than it was
//! told, and never recurses.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, IFlags, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat,
    fchmod, fchown, fstat, futimens, ioctl_getflags, ioctl_setflags, linkat, mkdirat, open, openat, renameat,
    statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::User;

/// To read a file of: a link is none, and a pipe without a writer is no reason to wait.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// A folder, and not a link to one.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How long a removal may take before it is left for later.
const REMOVAL: Duration = Duration::from_secs(600);
/// Levels that are removed where they are, where nothing can be moved.
const LEVELS: usize = 64;
/// The least that a file takes on most disks, bytes.
const BLOCK: u64 = 4096;
/// How a folder is called on its way out, below that which is removed.
const LEAVING: &str = ".leaving-";

/// A folder that is open.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// One name of a folder. It may be another thing by the time it is opened: who opens it looks again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: CString,
    /// What it is, without following it.
    pub kind: FileType,
}

impl Entry {
    /// The name, if it is text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.name.to_str().ok()
    }
}

/// What a folder holds, and how fresh that is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes that its files take: of one with holes, without them.
    pub bytes: u64,
    /// When one of them was last changed.
    pub newest: Option<SystemTime>,
    /// Files and folders that were looked at.
    pub entries: u64,
    /// Whether there was more than a look may take.
    pub cut: bool,
}

impl Folder {
    /// Opens the folder at a path that nobody but us can change.
    ///
    /// # Errors
    /// It is no folder, or may not be opened.
    pub fn open(path: &Path) -> io::Result<Folder> {
        Ok(Folder(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Opens a folder in this one.
    ///
    /// # Errors
    /// It is none, or a link.
    pub fn folder(&self, name: impl Name) -> io::Result<Folder> {
        Ok(Folder(openat(&self.0, name.one()?.as_c_str(), FOLDER, Mode::empty())?))
    }

    /// The folder that this one is in. For file systems in which nothing moves: elsewhere that may be anywhere by now.
    ///
    /// # Errors
    /// It may not be opened.
    pub fn above(&self) -> io::Result<Folder> {
        Ok(Folder(openat(&self.0, c"..", FOLDER, Mode::empty())?))
    }

    /// Opens a folder in this one, making it with exactly this mode if it is not there.
    ///
    /// # Errors
    /// Something else has its name.
    pub fn make(&self, name: impl Name, mode: u32) -> io::Result<Folder> {
        let name = name.one()?;
        match mkdirat(&self.0, name.as_c_str(), Mode::from_raw_mode(mode)) {
            Ok(()) => {
                let made = self.folder(name.as_c_str())?;
                // Whatever the umask.
                fchmod(&made.0, Mode::from_raw_mode(mode))?;
                Ok(made)
            }
            Err(Errno::EXIST) => self.folder(name.as_c_str()),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a regular file of this folder for reading.
    ///
    /// # Errors
    /// It is something else than a file, or may not be read.
    pub fn file(&self, name: impl Name) -> io::Result<File> {
        let name = name.one()?;
        // What is no file is not even opened: to open a device can do something.
        regular(&statat(&self.0, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?, &name)?;
        let file = openat(&self.0, name.as_c_str(), READ, Mode::empty())?;
        regular(&fstat(&file)?, &name)?;
        Ok(File::from(file))
    }

    /// Opens a file of this folder to write at its end, making it if it is not there.
    ///
    /// # Errors
    /// It is something else than a file, or may not be written.
    pub fn append(&self, name: impl Name, mode: u32) -> io::Result<File> {
        self.writable(name, mode, OFlags::APPEND)
    }

    /// Opens a file of this folder to write into it, making it if it is not there.
    ///
    /// # Errors
    /// It is something else than a file, or may not be written.
    pub fn open_to_write(&self, name: impl Name, mode: u32) -> io::Result<File> {
        self.writable(name, mode, OFlags::empty())
    }

    fn writable(&self, name: impl Name, mode: u32, how: OFlags) -> io::Result<File> {
        let name = name.one()?;
        let flags = how | OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW;
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(&self.0, name.as_c_str(), flags, Mode::from_raw_mode(mode))?;
        regular(&fstat(&file)?, &name)?;
        Ok(File::from(file))
    }

    /// Makes a file that was not there, with exactly this mode.
    ///
    /// # Errors
    /// Something has its name.
    pub fn create(&self, name: impl Name, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.0, name.one()?.as_c_str(), flags, Mode::from_raw_mode(mode))?;
        fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(File::from(file))
    }

    /// Reads a file of at most `most` bytes; none if it is not there.
    ///
    /// # Errors
    /// It is something else than a file, larger, or cannot be read.
    pub fn read(&self, name: impl Name, most: u64) -> io::Result<Option<Vec<u8>>> {
        let name = name.one()?;
        let file = match self.file(name.as_c_str()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut content = Vec::new();
        file.take(most + 1).read_to_end(&mut content)?;
        if content.len() as u64 > most {
            return Err(odd(&name, &format!("is larger than {most} bytes")));
        }
        Ok(Some(content))
    }

    /// Replaces a file: a reader sees the old content or the new. Its owner is `user`, if one is told; `durable`
    /// survives a crash of the machine.
    ///
    /// # Errors
    /// It cannot be written; the old one is as it was.
    pub fn replace(&self, name: &str, content: &[u8], how: Replace) -> io::Result<()> {
        let draft = format!("{name}.draft");
        // One that a former process left, or something that a container put there.
        self.remove_file(draft.as_str())?;
        let mut file = self.create(draft.as_str(), how.mode)?;
        file.write_all(content)?;
        if let Some(user) = how.user {
            chown(&file, user)?;
        }
        if how.durable {
            file.sync_all()?;
        }
        renameat(&self.0, draft.as_str(), &self.0, name)?;
        if how.durable {
            self.sync()?;
        }
        Ok(())
    }

    /// Gives a second name, in this folder, to a file of another one.
    ///
    /// # Errors
    /// The new name is taken, or the folders are on different disks.
    pub fn link(&self, name: impl Name, from: &Folder, old: impl Name) -> io::Result<()> {
        let (old, name) = (old.one()?, name.one()?);
        Ok(linkat(&from.0, old.as_c_str(), &self.0, name.as_c_str(), AtFlags::empty())?)
    }

    /// Makes a symbolic link; nothing of ours follows it.
    ///
    /// # Errors
    /// Its name is taken.
    pub fn symlink(&self, name: impl Name, target: &Path) -> io::Result<()> {
        Ok(symlinkat(target, &self.0, name.one()?.as_c_str())?)
    }

    /// Renames something of this folder, within it.
    ///
    /// # Errors
    /// It is not there, or the new name is that of something else.
    pub fn rename(&self, old: impl Name, new: impl Name) -> io::Result<()> {
        Ok(renameat(&self.0, old.one()?.as_c_str(), &self.0, new.one()?.as_c_str())?)
    }

    /// Removes a file, or whatever else is no folder. What is not there is removed.
    ///
    /// # Errors
    /// It may not be removed, or is a folder.
    pub fn remove_file(&self, name: impl Name) -> io::Result<()> {
        match unlinkat(&self.0, name.one()?.as_c_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// It is not empty.
    pub fn remove_empty(&self, name: impl Name) -> io::Result<()> {
        Ok(unlinkat(&self.0, name.one()?.as_c_str(), AtFlags::REMOVEDIR)?)
    }

    /// What is at a name, without following it.
    ///
    /// # Errors
    /// There is nothing.
    pub fn stat(&self, name: impl Name) -> io::Result<Stat> {
        Ok(statat(&self.0, name.one()?.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Of the folder itself.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn own_stat(&self) -> io::Result<Stat> {
        Ok(fstat(&self.0)?)
    }

    /// The names in it as they come, `.` and `..` left out.
    ///
    /// # Errors
    /// It may not be read.
    pub fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<Entry>> + use<>> {
        // A descriptor of its own: where a listing is belongs to the descriptor.
        let dir = Dir::new(openat(&self.0, c".", FOLDER, Mode::empty())?)?;
        let own = self.0.try_clone()?;
        let is_name = |name: &CStr| name != c"." && name != c"..";
        Ok(dir.filter_map(move |entry| match entry {
            Ok(entry) if !is_name(entry.file_name()) => None,
            Ok(entry) => {
                let name = entry.file_name().to_owned();
                let kind = match entry.file_type() {
                    // Some file systems do not say.
                    FileType::Unknown => match statat(&own, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                        Err(Errno::NOENT) => return None,
                        Err(error) => return Some(Err(error.into())),
                    },
                    kind => kind,
                };
                Some(Ok(Entry { name, kind }))
            }
            Err(error) => Some(Err(error.into())),
        }))
    }

    /// Gives the folder itself to a user.
    ///
    /// # Errors
    /// Only root may.
    pub fn give(&self, user: User) -> io::Result<()> {
        chown(&self.0, user)
    }

    /// Sets the folder's own mode.
    ///
    /// # Errors
    /// It is another's.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.0, Mode::from_raw_mode(mode))?)
    }

    /// Notes that the folder was used now.
    ///
    /// # Errors
    /// It is another's.
    pub fn touch(&self) -> io::Result<()> {
        Ok(futimens(&self.0, &now())?)
    }

    /// Makes what was done to its names durable.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// Adds up what is below, as far as `most` entries and `deepest` levels go. What vanishes meanwhile, and what may
    /// not be looked at, is left out.
    #[must_use]
    pub fn measure(&self, most: u64, deepest: usize) -> Size {
        let mut size = Size::default();
        let begin = |folder: Folder| folder.entries().map(|entries| (folder, entries)).ok();
        let mut open: Vec<_> = self.folder(c".").ok().and_then(begin).into_iter().collect();
        while let Some((at, entries)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            let Ok(entry) = entry else { continue };
            if size.entries == most {
                size.cut = true;
                break;
            }
            size.entries += 1;
            let name = entry.name.as_c_str();
            if entry.kind != FileType::Directory {
                if let Ok(stat) = at.stat(name) {
                    size.add(&stat);
                }
                continue;
            }
            let below = at.folder(name).ok().and_then(begin);
            if open.len() < deepest {
                open.extend(below);
            } else {
                size.cut = true;
            }
        }
        size
    }

    /// Removes a folder of this one with all that is in it, or whatever has its name: also what may not be entered or
    /// changed, and however deep it is. What is deep is brought up first, so that two handles are enough. It may take
    /// long, and goes on where it stopped when it is begun again.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn remove_all(&self, name: impl Name) -> io::Result<()> {
        let name = name.one()?;
        let top = match self.folder_to_empty(&name) {
            Ok(top) => top,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if is_no_folder(&error) => return self.insist(&name, AtFlags::empty()),
            Err(error) => return Err(error),
        };
        let mut fresh = 0u64;
        // What was brought up shows in the next look.
        let until = Instant::now() + REMOVAL;
        while top.empty_once(&mut fresh, until)? {}
        drop(top);
        self.insist(&name, AtFlags::REMOVEDIR)
    }

    /// Removes files and empties folders, whose folders come up here. Whether there was anything.
    fn empty_once(&self, fresh: &mut u64, until: Instant) -> io::Result<bool> {
        let mut any = false;
        for entry in self.entries()? {
            let entry = entry?;
            any = true;
            if entry.kind != FileType::Directory {
                self.insist(&entry.name, AtFlags::empty())?;
                continue;
            }
            // Two may remove the same.
            let below = match self.folder_to_empty(&entry.name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            for inner in below.entries()? {
                let inner = inner?;
                if Instant::now() > until {
                    return Err(odd(
                        &entry.name,
                        "is too much, or still written into; its removal goes on later",
                    ));
                }
                if inner.kind == FileType::Directory {
                    self.bring_up(&below, &inner.name, fresh)?;
                } else {
                    below.insist(&inner.name, AtFlags::empty())?;
                }
            }
            self.insist(&entry.name, AtFlags::REMOVEDIR)?;
        }
        Ok(any)
    }

    fn bring_up(&self, below: &Folder, name: &CStr, fresh: &mut u64) -> io::Result<()> {
        let mut opened = false;
        loop {
            *fresh += 1;
            let up = format!("{LEAVING}{fresh}");
            match renameat(&below.0, name, &self.0, up.as_str()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The container's own, or of a removal that was cut off.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::PERM | Errno::ACCESS) if !opened => {
                    opened = true;
                    drop(below.folder_to_empty(name)?);
                    below.loosen(name);
                    below.loosen(c".");
                }
                // No room for the new name, or it may not leave its folder: then it goes where it is.
                Err(Errno::XDEV | Errno::NOSPC | Errno::DQUOT | Errno::MLINK) => {
                    return below.empty_where_it_is(name, LEVELS);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn empty_where_it_is(&self, name: &CStr, levels: usize) -> io::Result<()> {
        let folder = self.folder_to_empty(name)?;
        for entry in folder.entries()? {
            let entry = entry?;
            if entry.kind != FileType::Directory {
                folder.insist(&entry.name, AtFlags::empty())?;
            } else if levels > 0 {
                folder.empty_where_it_is(&entry.name, levels - 1)?;
            } else {
                return Err(odd(&entry.name, "is deeper than can be removed without room on the disk"));
            }
        }
        self.insist(name, AtFlags::REMOVEDIR)
    }

    /// Opens a folder that is to be emptied, whatever its mode and flags.
    fn folder_to_empty(&self, name: &CStr) -> io::Result<Folder> {
        let opened = self.folder(name);
        let is_denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        if opened.as_ref().is_err_and(is_denied) {
            // Followed, should it have become a link meanwhile; who may not enter what it owns is not root.
            chmodat(&self.0, name, Mode::RWXU, AtFlags::empty())?;
        }
        let folder = if opened.as_ref().is_err_and(is_denied) { self.folder(name)? } else { opened? };
        if folder.own_stat()?.st_mode & 0o700 != 0o700 {
            folder.loosen(c".");
            fchmod(&folder.0, Mode::RWXU)?;
        }
        Ok(folder)
    }

    /// Removes a name, also of what must not change.
    fn insist(&self, name: &CStr, flags: AtFlags) -> io::Result<()> {
        match unlinkat(&self.0, name, flags) {
            Err(Errno::PERM | Errno::ACCESS) => {
                self.loosen(c".");
                self.loosen(name);
                match unlinkat(&self.0, name, flags) {
                    Err(Errno::NOENT) => Ok(()),
                    other => Ok(other?),
                }
            }
            Err(Errno::NOENT) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Takes the flags away that keep even root from changing a file or folder; whether that helped shows in what is
    /// tried next.
    fn loosen(&self, name: &CStr) {
        let stat = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW);
        let has_flags = |stat: Stat| {
            matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
        };
        if !stat.is_ok_and(has_flags) {
            return;
        }
        let Ok(file) = openat(&self.0, name, READ, Mode::empty()) else { return };
        if let Ok(flags) = ioctl_getflags(&file) {
            let without = flags - IFlags::IMMUTABLE - IFlags::APPEND;
            if without != flags {
                let _ = ioctl_setflags(&file, without);
            }
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a file is replaced.
#[derive(Debug, Clone, Copy)]
pub struct Replace {
    /// Its mode.
    pub mode: u32,
    /// Whose it is, if not the writer's.
    pub user: Option<User>,
    /// Whether it survives a crash of the machine.
    pub durable: bool,
}

/// One name below a folder: not empty, not `..`, and no path.
pub trait Name {
    /// The name.
    ///
    /// # Errors
    /// It is a path.
    fn one(self) -> io::Result<CString>;
}

impl Name for &CStr {
    fn one(self) -> io::Result<CString> {
        if self.is_empty() || self == c".." || self.to_bytes().contains(&b'/') {
            return Err(odd(self, "is no name of a file"));
        }
        Ok(self.to_owned())
    }
}

impl Name for &str {
    fn one(self) -> io::Result<CString> {
        CString::new(self)?.as_c_str().one()
    }
}

impl Size {
    fn add(&mut self, stat: &Stat) {
        let taken = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        // What is small may lie beside its name and take no block.
        self.bytes = self.bytes.saturating_add(length.min(taken.max(BLOCK)));
        self.newest = self.newest.max(modified(stat));
    }
}

/// When something was last changed; none before 1970.
#[must_use]
pub fn modified(stat: &Stat) -> Option<SystemTime> {
    let seconds = u64::try_from(stat.st_mtime).ok()?;
    let nanos = u32::try_from(stat.st_mtime_nsec).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

fn regular(stat: &Stat, name: &CStr) -> io::Result<()> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(odd(name, "is a link, not a file")),
        _ => Err(odd(name, "is no regular file")),
    }
}

fn odd(name: &CStr, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("`{}` {what}", name.to_string_lossy()))
}

/// A link at the end of an open without following is ELOOP, also to a folder.
fn is_no_folder(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotADirectory || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// Gives an open file or folder to a user.
///
/// # Errors
/// Only root may.
pub fn chown(file: impl AsFd, user: User) -> io::Result<()> {
    Ok(fchown(file, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?)
}

fn now() -> Timestamps {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: now }
}
