//! How many files and connections this process may have open.

/// Connections, libraries, what is open for a moment.
const OURS: u64 = 128;
/// What a database has open besides its tables: its lock and ours, its log, its manifest, its folder, an empty
/// write-ahead log, and files that are being made.
const OF_A_DATABASE: u64 = 10;
/// Tables that it must be able to have open, and the most that it may: others are opened when they are read.
const LEAST_TABLES: u64 = 6;
const MOST_TABLES: u64 = 256;

/// How many tables each of so many databases may have open, in a process that may open `files`.
///
/// # Errors
/// There are too few, and what helps.
pub(crate) fn tables_of_each(databases: usize, files: u64) -> Result<u64, String> {
    let count = databases.max(1) as u64;
    let each = (files.saturating_sub(OURS) / count).saturating_sub(OF_A_DATABASE);
    if each >= LEAST_TABLES {
        // Half of what is left is not ours to plan with: the task's own files, more brokers.
        return Ok((each / 2).clamp(LEAST_TABLES, MOST_TABLES));
    }
    let need = OURS + count * (OF_A_DATABASE + LEAST_TABLES);
    Err(format!(
        "the databases of {databases} tasks need {need} open files, and the hard limit allows {files}: raise it \
         (`ulimit -Hn`; `LimitNOFILE=` of the node manager's unit), or have more `[containers] count`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_share_the_files_that_may_be_open_and_too_few_are_refused_by_name() {
        assert_eq!(tables_of_each(1, 1 << 20), Ok(MOST_TABLES));
        for (databases, files) in [(1, 1_024), (16, 1_024), (300, 8_192), (300, 5_000), (1_000, 65_536)] {
            let each = tables_of_each(databases, files).unwrap_or_else(|why| panic!("{why}"));
            let all = OURS + databases as u64 * (OF_A_DATABASE + each);
            assert!(each >= LEAST_TABLES && all <= files, "{databases} of {files}: {each} each");
        }
        let why = tables_of_each(300, 1_024).expect_err("too few");
        assert!(why.contains("300 tasks need 4928 open files") && why.contains("allows 1024"), "{why}");
    }
}
