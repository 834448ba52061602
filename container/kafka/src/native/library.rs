//! What the linked librdkafka is: its features, and the settings that it knows.

use std::ffi::c_char;

use rdkafka_sys::bindings as rd;

use super::rust_text;

/// The features that it was built with, comma separated.
pub(crate) fn features() -> String {
    let mut text = [0 as c_char; 512];
    let mut size = text.len();
    // SAFETY: the configuration is ours and destroyed here; the buffer is as long as we say.
    unsafe {
        let conf = rd::rd_kafka_conf_new();
        rd::rd_kafka_conf_get(conf, c"builtin.features".as_ptr(), text.as_mut_ptr(), &raw mut size);
        rd::rd_kafka_conf_destroy(conf);
    }
    rust_text(text.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's own table of its settings, in Markdown.
    fn properties() -> String {
        let (mut at, mut size) = (std::ptr::null_mut::<c_char>(), 0_usize);
        // SAFETY: the stream writes to memory of its own, which is there and ends with a zero once it is closed, and is
        // ours to free.
        unsafe {
            let stream = libc::open_memstream(&raw mut at, &raw mut size);
            rd::rd_kafka_conf_properties_show(stream.cast());
            libc::fclose(stream);
            let text = rust_text(at);
            libc::free(at.cast());
            text
        }
    }

    /// A line of its table as [`types::LIBRDKAFKA`] has it.
    fn line(row: &str) -> Option<String> {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (name, of, valid) = (*cells.first()?, *cells.get(1)?, *cells.get(2)?);
        if !["C", "P", "*"].contains(&of) {
            return None;
        }
        let kind = row.rsplit_once("*Type: ")?.1.trim_end_matches('*');
        let valid = match kind {
            "see dedicated API" => "api".to_owned(),
            "CSV flags" if !valid.is_empty() => format!("csv {valid}"),
            "float" => format!("float {valid}"),
            _ => valid.to_owned(),
        };
        let alias =
            row.split_once("Alias for `").and_then(|(_, rest)| rest.split_once('`')).map_or("", |(of, _)| of);
        Some(format!("{name}\t{of}\t{alias}\t{valid}"))
    }

    #[test]
    fn the_table_of_settings_is_the_linked_librarys() {
        let mut known = std::collections::BTreeSet::new();
        // Of the settings that clients and topics share, the clients' come first.
        let lines = properties();
        let lines = lines.lines().filter_map(line);
        let lines: Vec<String> = lines
            .filter(|line| known.insert(line.split('\t').next().unwrap_or_default().to_owned()))
            .collect();
        let (found, kept): (Vec<&str>, Vec<&str>) =
            (lines.iter().map(String::as_str).collect(), types::LIBRDKAFKA.lines().collect());
        assert!(found.len() > 150, "{found:?}");
        assert_eq!(found, kept, "proto/types/src/librdkafka.tsv is to hold what is on the left");
    }
}
