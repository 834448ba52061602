//! Whom containers run as. A root nm gives each job a user and a group of its own, from a range that nobody else uses,
//! so that jobs can do nothing to each other, nor to the machine; who is not root runs them as itself.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use nm_shim::User;

/// User and group ids for jobs. The last one is no job's: nm tries things out as it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    first: u32,
    last: u32,
}

/// Far above people, services, and what container engines and systemd hand out.
pub(crate) const RANGE: &str = "1900000000-1900065535";

impl FromStr for Range {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Range> {
        let valid = || format!("--uids `{text}`: valid is FIRST-LAST, such as {RANGE}");
        let (first, last) = text.split_once('-').with_context(valid)?;
        let number = |text: &str| text.trim().parse::<u32>().with_context(valid);
        let (first, last) = (number(first)?, number(last)?);
        // The highest is no user: system calls take it for none.
        ensure!(0 < first && first < last && last < u32::MAX, valid());
        Ok(Range { first, last })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Range {
    /// The next after `last` that is free, from the beginning on if there is none.
    pub(crate) fn free(self, last: u32, is_taken: impl Fn(u32) -> bool) -> Option<u32> {
        let from = if self.has(last) { last + 1 } else { self.first };
        (from..self.last).chain(self.first..from).find(|uid| !is_taken(*uid))
    }

    pub(crate) fn has(self, uid: u32) -> bool {
        (self.first..self.last).contains(&uid)
    }
}

/// Whom containers run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Users {
    /// As nm itself.
    Own,
    /// All as one user, who is in these other groups.
    One(User, Vec<u32>),
    /// Each job as a user of its own.
    PerJob(Range),
}

impl Users {
    /// What the command line and nm's own rights make of it.
    ///
    /// # Errors
    /// No such user, or nm has not the rights to become it.
    pub(crate) fn choose(user: Option<&str>, allow_root: bool, range: Range) -> Result<Users> {
        let is_root = rustix::process::geteuid().is_root();
        match user {
            Some(_) if !is_root => {
                bail!("--user needs an nm that is root: without it containers run as nm's own user")
            }
            Some(name) => {
                let (user, groups) = find(name)?;
                ensure!(
                    user.uid != 0 || allow_root,
                    "--user {name} is root, and what runs as root owns the machine; name another user, leave \
                     --user out for one per job, or say --allow-root as well"
                );
                Ok(Users::One(user, groups))
            }
            None if !is_root || allow_root => Ok(Users::Own),
            None => {
                let mapped = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
                ensure!(
                    is_mapped(&mapped, range),
                    "this nm is root of a user namespace that has no users {range}; give it a range that it has \
                     with --uids, or --user NAME"
                );
                Ok(Users::PerJob(range))
            }
        }
    }

    /// Whether what nm itself owns is beyond what containers may write.
    pub(crate) fn are_others(&self) -> bool {
        match self {
            Users::Own => false,
            Users::One(user, _) => user.uid != 0,
            Users::PerJob(_) => true,
        }
    }

    /// Some user that containers run as, to try things out with; none: as nm itself.
    pub(crate) fn example(&self) -> Option<User> {
        match self {
            Users::Own => None,
            Users::One(user, _) => Some(*user),
            Users::PerJob(range) => Some(User { uid: range.last, gid: range.last }),
        }
    }

    /// The groups that a container's user is in besides its own.
    pub(crate) fn groups(&self) -> Vec<u32> {
        match self {
            Users::One(_, groups) => groups.clone(),
            Users::Own | Users::PerJob(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Users::Own if rustix::process::geteuid().is_root() => write!(f, "root"),
            Users::Own => write!(f, "nm's own user, {}", rustix::process::geteuid().as_raw()),
            Users::One(user, groups) if groups.is_empty() => {
                write!(f, "user {}, group {}", user.uid, user.gid)
            }
            Users::One(user, groups) => {
                write!(f, "user {}, group {}, in groups {groups:?} too", user.uid, user.gid)
            }
            Users::PerJob(range) => write!(f, "a user per job, of {range}"),
        }
    }
}

/// Whether the lines of a `uid_map` have all of a range.
fn is_mapped(map: &str, range: Range) -> bool {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    map.is_empty()
        || map.lines().any(|line| {
            let mut words = line.split_ascii_whitespace();
            let (inside, _, count) = (number(words.next()), words.next(), number(words.next()));
            inside.zip(count).is_some_and(|(inside, count)| {
                inside <= u64::from(range.first) && u64::from(range.last) < inside + count
            })
        })
}

/// Finds a user by name in /etc/passwd with the groups it is in by /etc/group, or takes `UID:GID`.
fn find(text: &str) -> Result<(User, Vec<u32>)> {
    if let Some((uid, gid)) = text.split_once(':')
        && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
    {
        return Ok((User { uid, gid }, Vec::new()));
    }
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let user = in_passwd(&read("/etc/passwd"), text);
    let user =
        user.with_context(|| format!("--user `{text}` is neither in /etc/passwd nor of the form UID:GID"))?;
    let groups = in_group(&read("/etc/group"), text, user.gid);
    Ok((user, groups))
}

fn in_passwd(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.first() == Some(&name)).then_some(())?;
        Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
    })
}

fn in_group(group: &str, name: &str, own: u32) -> Vec<u32> {
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            fields.get(3)?.split(',').any(|member| member == name).then_some(())?;
            fields.get(2)?.parse().ok()
        })
        .filter(|gid| *gid != own)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_with_their_groups() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nsamza:x:7:8::/:/bin/false\n";
        assert_eq!(in_passwd(passwd, "samza"), Some(User { uid: 7, gid: 8 }));
        assert_eq!(in_passwd(passwd, "sam"), None);
        let group = "samza:x:8:\ndisk:x:6:other,samza\nlogs:x:4:samza\nold:x:3:samzas\n";
        assert_eq!(in_group(group, "samza", 8), [4, 6]);
        assert_eq!(find("7:8").unwrap(), (User { uid: 7, gid: 8 }, Vec::new()));
        assert!(find("no-such-user").unwrap_err().to_string().contains("UID:GID"));
    }

    #[test]
    fn a_range_is_two_numbers_that_can_be_users() {
        let range: Range = "10-12".parse().unwrap();
        assert_eq!(
            [0, 10, 11, 12].map(|last| range.free(last, |_| false)),
            [Some(10), Some(11), Some(10), Some(10)]
        );
        assert_eq!(range.free(10, |uid| uid == 11), Some(10));
        assert_eq!(range.free(0, |_| true), None);
        for bad in ["", "10", "12-10", "10-10", "0-5", "1-4294967295", "a-b"] {
            let told = bad.parse::<Range>().unwrap_err().to_string();
            assert!(told.contains(RANGE), "{told}");
        }
        assert_eq!(RANGE.parse::<Range>().unwrap().to_string(), RANGE);
    }

    #[test]
    fn a_namespace_must_have_the_range() {
        let range: Range = "100-200".parse().unwrap();
        assert!(is_mapped("         0          0 4294967295\n", range) && is_mapped("", range));
        assert!(!is_mapped("0 1000 1\n1 100000 150\n", range));
        assert!(is_mapped("0 1000 1\n1 100000 65536\n", range));
    }
}
