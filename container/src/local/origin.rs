//! Whether a state folder is the one that it was: a project may be copied, moved or restored from a backup, and outputs
//! may be outside it. Pure, but for [`Origin::of`].

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::frame::{Frame, Item};

/// Where a state folder is, which one it is there, and of which project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Those of its lock: a copy has others.
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) state: PathBuf,
    /// The folder of the job file.
    pub(crate) project: PathBuf,
}

/// What a state folder is, by what it knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// The one that it was; it may have been moved, or restored in its place.
    Same,
    /// A copy of one that is still there.
    Copy,
    /// The one that it was, and another project uses it now.
    OtherProject,
}

impl Origin {
    /// That of the state folder at `state`, whose lock is `lock`.
    pub(crate) fn of(state: &Path, project: &Path, lock: &std::fs::File) -> io::Result<Origin> {
        let metadata = lock.metadata()?;
        Ok(Origin {
            device: metadata.dev(),
            inode: metadata.ino(),
            state: state.canonicalize()?,
            project: project.canonicalize()?,
        })
    }

    /// What the folder is that knew itself as `known` and is `self` now; `is_there` tells whether a path still exists.
    pub(crate) fn relation(&self, known: &Origin, is_there: impl Fn(&Path) -> bool) -> Relation {
        let is_it = self.state == known.state || (self.device, self.inode) == (known.device, known.inode);
        if !is_it && is_there(&known.state.join("log")) {
            return Relation::Copy;
        }
        // A project that was moved is not where it was.
        let is_other = self.project != known.project && is_there(&known.project);
        if is_it && is_other && !self.state.starts_with(&self.project) {
            return Relation::OtherProject;
        }
        Relation::Same
    }

    pub(crate) fn tell(&self, frame: &mut Frame) {
        let Origin { device, inode, state, project } = self;
        let (state, project) = (state.as_os_str().as_bytes(), project.as_os_str().as_bytes());
        frame.push(&Item::Origin { device: *device, inode: *inode, state, project });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(inode: u64, project: &str, state: &str) -> Origin {
        Origin { device: 1, inode, state: state.into(), project: project.into() }
    }

    #[test]
    fn a_copy_is_told_from_what_was_moved_or_restored() {
        let known = origin(7, "/a", "/a/.samza/j-1");
        let all = |_: &Path| true;
        let none = |_: &Path| false;
        assert_eq!(known.relation(&known, all), Relation::Same);
        assert_eq!(origin(9, "/b", "/b/.samza/j-1").relation(&known, all), Relation::Copy);
        assert_eq!(
            origin(9, "/b", "/b/.samza/j-1").relation(&known, none),
            Relation::Same,
            "moved to another disk"
        );
        assert_eq!(origin(7, "/b", "/b/.samza/j-1").relation(&known, none), Relation::Same, "moved");
        assert_eq!(
            origin(9, "/a", "/a/.samza/j-1").relation(&known, all),
            Relation::Same,
            "restored in its place"
        );
    }

    #[test]
    fn a_state_folder_that_two_projects_name_belongs_to_the_first() {
        let known = origin(7, "/a", "/state");
        assert_eq!(origin(7, "/b", "/state").relation(&known, |_| true), Relation::OtherProject);
        assert_eq!(
            origin(7, "/b", "/state").relation(&known, |path| path != Path::new("/a")),
            Relation::Same
        );
    }
}
