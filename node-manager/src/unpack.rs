//! Archives among a container's artefacts: unpacked into its work directory, and nowhere else.
//!
//! Files, directories, and links that lead straight down are taken. What would lead out of the directory, devices and
//! pipes are refused, and with them the launch.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use tar::EntryType;

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

/// Unpacks `archive` into the folder `into`, which is there.
///
/// # Errors
/// It is no such archive, something in it is refused, or the disk is full.
pub(crate) fn unpack(archive: &Path, packed: Packed, into: &Path) -> Result<()> {
    let file = BufReader::new(File::open(archive)?);
    match packed {
        Packed::Tar => untar(file, into),
        Packed::TarGz => untar(flate2::bufread::MultiGzDecoder::new(file), into),
        Packed::TarZst => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file);
            untar(
                decoder.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?,
                into,
            )
        }
        Packed::Zip => unzip(file, into),
    }
}

fn untar(packed: impl Read, into: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(packed);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let target = into.join(inside(&name)?);
        match entry.header().entry_type() {
            EntryType::Directory => fs::create_dir_all(&target)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mode = entry.header().mode()?;
                write(&mut entry, &target, mode)
            }?,
            EntryType::Symlink => {
                let to = entry.link_name()?.context("a link to nothing")?;
                make_parent(&target)?;
                symlink(inside(&to)?, &target)?;
            }
            EntryType::Link => {
                let to = entry.link_name()?.context("a link to nothing")?;
                make_parent(&target)?;
                fs::hard_link(into.join(inside(&to)?), &target)?;
            }
            // Words about the archive itself.
            EntryType::XGlobalHeader | EntryType::XHeader => {}
            _ => bail!("`{}` is a device or a pipe, which is refused", name.display()),
        }
    }
    Ok(())
}

fn unzip(packed: impl Read + io::Seek, into: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(packed)?;
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at)?;
        let target = into.join(inside(Path::new(entry.name()))?);
        if entry.is_dir() {
            fs::create_dir_all(&target)?;
        } else if entry.is_symlink() {
            bail!("`{}` is a link in a zip, which is refused; pack it as tar.gz", entry.name());
        } else {
            let mode = entry.unix_mode().unwrap_or(0o644);
            write(&mut entry, &target, mode)?;
        }
    }
    Ok(())
}

/// `path`, if it leads straight down: not from the root, and never up. With links that lead straight down too, nothing
/// that is unpacked later can be led out through one.
fn inside(path: &Path) -> Result<PathBuf> {
    let mut down = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => down.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                bail!("`{}` leads out of the work directory", path.display())
            }
        }
    }
    Ok(down)
}

fn make_parent(target: &Path) -> io::Result<()> {
    target.parent().map_or(Ok(()), fs::create_dir_all)
}

/// Without the bits that would give rights to who runs it.
fn write(content: &mut impl Read, target: &Path, mode: u32) -> io::Result<()> {
    make_parent(target)?;
    let mut file = File::create_new(target)?;
    io::copy(content, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

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
        let dir = tempfile::tempdir().unwrap();
        let (archive, into) = (dir.path().join("archive"), dir.path().join("work"));
        fs::write(&archive, bytes).unwrap();
        fs::create_dir(&into).unwrap();
        let result = unpack(&archive, packed, &into);
        (dir, result)
    }

    fn good() -> Vec<u8> {
        tar_of(&[
            (EntryType::Directory, "bin", ""),
            (EntryType::Regular, "./bin/run", "#!/bin/sh\n"),
            (EntryType::Regular, "lib/deep/file", "text"),
            (EntryType::Symlink, "link", "lib/deep/file"),
            (EntryType::Link, "hard", "bin/run"),
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
        let bad: [&[(E, &str, &str)]; 8] = [
            &[(E::Regular, "../out", "x")],
            &[(E::Regular, "/out", "x")],
            &[(E::Regular, "a/../../out", "x")],
            &[(E::Symlink, "link", "/etc")],
            &[(E::Symlink, "link", "../..")],
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
    fn what_is_no_archive_is_an_error() {
        for packed in [Packed::Tar, Packed::TarGz, Packed::TarZst, Packed::Zip] {
            assert!(unpacked(packed, &[b'x'; 2000]).1.is_err(), "{packed:?}");
        }
        assert_eq!(packed("job.tar.gz"), Some(Packed::TarGz));
        assert_eq!(packed("job"), None);
    }
}
