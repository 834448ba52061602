//! Files as people have them: marked, compressed, cut, written over, with long lines; folders with anything in them;
//! projects that are copied, moved and restored.

use std::io::Write as _;
use std::os::unix::fs::symlink;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn read(stage: &Stage) -> Vec<String> {
    values(consume(stage, StartAt::Oldest).expect("read").0)
}

fn told(stage: &Stage) -> String {
    consume(stage, StartAt::Oldest).expect_err("refused").to_string()
}

fn described(stage: &Stage, topic: &str) -> Result<usize, String> {
    let input = InputSpec { stream: "files.in".into(), ..InputSpec::default() };
    let files = Files { inputs: [(topic.to_owned(), input)].into(), ..files(stage.folder.path()) };
    let system = Jsonl::new(&stage.system.home, files, &Arc::default());
    let found = system.admin().describe(&[topic.to_owned()]).map_err(|e| e.to_string())?;
    Ok(found.first().map_or(0, |topic| topic.partitions.len()))
}

#[test]
fn marks_and_ends_of_lines_of_other_systems_are_none_of_a_message() {
    let stage = Stage::new();
    stage.write("in.jsonl", "\u{feff}{\"a\":1}\r\n\r\n  \n\u{feff}{\"a\":2}\r\n{\"a\":3}");
    assert_eq!(read(&stage), ["{\"a\":1}", "{\"a\":2}", "{\"a\":3}"]);
    assert_eq!(stage.system.tally.blank.get(), 2);
    for bytes in [b"\xff\xfe{\0}\0\n\0".as_slice(), b"\xfe\xff\0{\0}\0\n"] {
        stage.write("in.jsonl", bytes);
        assert!(told(&stage).contains("iconv -f UTF-16 -t UTF-8"), "{}", told(&stage));
    }
    stage.write("in.jsonl", "");
    assert_eq!(read(&stage), [""; 0]);
    stage.write("in.jsonl", "1\n\0\0\0\n2\n");
    assert!(read(&stage)[1].contains("line 2, column 1: not JSON"), "NUL bytes are no message");
}

#[test]
fn compressed_files_are_read_as_what_is_in_them_whatever_their_names() {
    let stage = Stage::new();
    let text: String = (0..20_000).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let (first, second) = text.as_bytes().split_at(text.len() / 3);
    let skippable = [b"\x50\x2a\x4d\x18\x03\0\0\0abc".as_slice(), &zstd(text.as_bytes())].concat();
    for bytes in [
        gzip(text.as_bytes()),
        [gzip(first), gzip(second)].concat(),
        zstd(text.as_bytes()),
        [zstd(first), zstd(second)].concat(),
        skippable,
    ] {
        stage.write("in.jsonl", &bytes);
        let (taken, end) = consume(&stage, StartAt::Oldest).expect("read");
        assert_eq!((taken.len(), byte(&end)), (20_000, text.len() as u64));
        let ends = stage.system.admin().watermarks(&[at("in.jsonl", 0)]).expect("ends");
        assert_eq!(ends[0].high, text.len() as u64, "a bounded input ends where its lines do");
        // A place in the plain file is one in the compressed one.
        let place = Offset(first.iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1).to_string());
        assert_eq!(stage.system.admin().lost(&[(at("in.jsonl", 0), place.clone())]), Ok(vec![None]));
        assert!(consume(&stage, StartAt::At(place)).expect("read").0.len() < 14_000);
        stage.write("in.jsonl", &bytes[..bytes.len() - 9]);
        assert!(
            told(&stage).contains("in.jsonl: the ") && told(&stage).contains("cut off"),
            "{}",
            told(&stage)
        );
    }
    let mut damaged = gzip(text.as_bytes());
    let middle = damaged.len() / 2;
    damaged[middle..middle + 20].fill(0);
    stage.write("in.jsonl", &damaged);
    assert!(told(&stage).contains("gzip -t"), "{}", told(&stage));
}

#[test]
fn a_file_may_be_compressed_between_runs_but_not_be_another_one() {
    let stage = Stage::new();
    stage.write("in.jsonl", "{\"n\":1}\n{\"n\":2}\n");
    let (_, end) = consume(&stage, StartAt::Oldest).expect("read");
    let lost = || stage.system.admin().lost(&[(at("in.jsonl", 0), end.clone())]);
    stage.write("in.jsonl", gzip(b"{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n"));
    assert_eq!(lost(), Ok(vec![None]));
    assert_eq!(values(consume(&stage, StartAt::At(end.clone())).expect("read").0), ["{\"n\":3}"]);
    for other in [b"{\"n\":7}\n{\"n\":8}\n{\"n\":9}\n".to_vec(), gzip(b"{\"n\":7}\n{\"n\":8}\n{\"n\":9}\n")] {
        stage.write("in.jsonl", other);
        let told = lost().expect_err("another file").to_string();
        assert!(told.contains("in.jsonl is not the file that the job has read up to byte 16"), "{told}");
        assert!(told.contains("--fresh") && told.contains("offset-lost = \"oldest\""), "{told}");
    }
    let input = InputSpec { must_be_the_same: false, ..InputSpec::default() };
    let files = Files { inputs: [("in.jsonl".to_owned(), input)].into(), ..files(stage.folder.path()) };
    let system = Jsonl::new(&stage.system.home, files, &Arc::default());
    let lost = system.admin().lost(&[(at("in.jsonl", 0), end)]);
    assert_eq!(lost, Ok(vec![Some(Lost::Recreated { high: 16 })]), "what follows is up to offset-lost");
}

#[test]
fn a_file_that_grows_is_read_on_and_one_that_is_changed_is_told() {
    let stage = Stage::new();
    stage.write("in.jsonl", "{\"n\":1}\n{\"n\":");
    let mut consumer = stage.system.consumer("me", "job-1").expect("a consumer");
    consumer.assign(&[(at("in.jsonl", 0), StartAt::Oldest)]).expect("assigned");
    let mut taken = Vec::new();
    let poll = |consumer: &mut dyn SystemConsumer, taken: &mut Vec<String>| {
        consumer.poll(NOW, &mut |messages| {
            taken.extend(messages.iter().map(|m| text(m.value)));
            Ok(())
        })
    };
    assert_eq!(poll(&mut *consumer, &mut taken), Ok(1));
    assert_eq!(poll(&mut *consumer, &mut taken), Ok(0), "the line may still get its end");
    stage.append("in.jsonl", "2}\n");
    while !consumer.has_ended(0) {
        poll(&mut *consumer, &mut taken).expect("read");
    }
    assert_eq!(taken, ["{\"n\":1}", "{\"n\":2}"]);
    for change in ["", "{\"m\":1}\n{\"m\":2}\n{\"m\":3}\n"] {
        stage.write("in.jsonl", "{\"n\":1}\n{\"n\":2}\n");
        consumer.assign(&[(at("in.jsonl", 0), StartAt::Oldest)]).expect("assigned");
        assert_eq!(poll(&mut *consumer, &mut taken), Ok(2));
        stage.write("in.jsonl", change);
        let told = poll(&mut *consumer, &mut taken).expect_err("changed").to_string();
        assert!(told.contains("was cut or written over while it was read"), "{told}");
    }
    // One that is renamed meanwhile is read to its end.
    stage.write("in.jsonl", "{\"n\":1}\n");
    consumer.assign(&[(at("in.jsonl", 0), StartAt::Oldest)]).expect("assigned");
    fs::rename(stage.folder.path().join("in.jsonl"), stage.folder.path().join("old")).expect("renamed");
    stage.append("old", "{\"n\":2}\n");
    assert_eq!(values(drain(&mut *consumer).expect("read").0).len(), 2);
}

#[test]
fn a_line_that_is_too_long_is_left_out_and_takes_no_memory() {
    let mut stage = Stage::new();
    let long = format!("\"{}\"", "x".repeat(3 << 20));
    stage.write("in.jsonl", format!("1\n{long}\n2\n{long}"));
    let files = Files { malformed_is_fatal: false, ..files(stage.folder.path()) };
    stage.system = Jsonl::new(&stage.system.home, files, &Arc::default());
    let mut consumer = stage.system.consumer("me", "job-1").expect("a consumer");
    consumer.assign(&[(at("in.jsonl", 0), StartAt::Oldest)]).expect("assigned");
    let (taken, end) = drain(&mut *consumer).expect("read");
    assert_eq!((taken[0].clone(), taken[2].1.as_str()), ((1, "1".to_owned()), "2"));
    assert!(
        taken[1].1.contains("in.jsonl line 2, column 1048577: a line of more than 1048576 bytes"),
        "{}",
        taken[1].1
    );
    assert_eq!(taken[1].0, 2 + long.len() as u64, "the next line begins after it");
    assert!(taken[3].1.contains("line 4"), "{}", taken[3].1);
    assert_eq!(byte(&end), fs::metadata(stage.folder.path().join("in.jsonl")).expect("there").len());
    assert_eq!(stage.system.tally.lines.get(), 4);
}

#[test]
fn a_key_that_no_row_has_is_told_before_anything_is_processed() {
    let shape = |key: &str| Shape { key_field: Some(key.into()), ..Shape::default() };
    let stage = Stage::with_input("{\"user\":1,\"n\":2}\n{\"n\":3}\n", shape("usr"));
    let error = told(&stage);
    assert!(error.contains("none of its first 2 rows has the field \"usr\""), "{error}");
    assert!(error.contains("did you mean `key = \"user\"`?") && error.contains("user, n"), "{error}");
    let stage = Stage::with_input("{\"user\":1,\"n\":2}\n{\"n\":3}\n", shape("user"));
    assert_eq!(read(&stage).len(), 2, "some rows may be without");
    let stage = Stage::with_input("{\"key\":1,\"value\":2}\n", shape("user"));
    assert_eq!(read(&stage), ["2"], "envelopes have keys of their own");
    let timed = Shape { time_field: Some("tiem".into()), ..Shape::default() };
    let error = told(&Stage::with_input("{\"time\":1}\n", timed));
    assert!(error.contains("`timestamp = \"time\"`"), "{error}");
}

#[test]
fn a_path_that_is_no_file_to_read_is_told_and_never_waited_for() {
    let stage = Stage::new();
    let path = |name: &str| stage.folder.path().join(name);
    let error = |topic: &str| described(&stage, topic).expect_err("refused");
    stage.write("Edits.jsonl", "1\n");
    assert!(error("edits.jsonl").contains("did you mean") && error("edits.jsonl").contains("Edits.jsonl"));
    stage.write("other.jsonl.gz", "1\n");
    assert!(error("other.jsonl").contains("other.jsonl.gz"));
    symlink("nowhere", path("link.jsonl")).expect("linked");
    assert!(error("link.jsonl").contains("is a link to nowhere, which is not there"));
    symlink(path("loop.jsonl"), path("loop.jsonl")).expect("linked");
    assert!(error("loop.jsonl").contains("loop.jsonl"));
    fs::create_dir(path("empty")).expect("made");
    assert!(error("empty").contains("has no files of JSON lines"));
    fs::create_dir_all(path("gap.jsonl")).expect("made");
    ["0", "2"].iter().for_each(|n| stage.write(&format!("gap.jsonl/{n}.jsonl"), "1\n"));
    assert!(error("gap.jsonl").contains("touch 1.jsonl"));
    symlink(path("Edits.jsonl"), path("good.jsonl")).expect("linked");
    assert_eq!(described(&stage, "good.jsonl"), Ok(1));
    let lock = std::os::unix::net::UnixListener::bind(path("socket")).expect("bound");
    assert!(Input::open(&Place::At(path("socket")), &Arc::default()).is_err());
    drop(lock);
    // A FIFO that nobody writes to has nothing yet, and is over when its writer goes.
    let made = std::process::Command::new("mkfifo").arg(path("in.jsonl")).status().expect("it runs");
    assert!(made.success());
    let mut consumer = stage.system.consumer("me", "job-1").expect("a consumer");
    consumer.assign(&[(at("in.jsonl", 0), StartAt::Oldest)]).expect("assigned");
    let mut taken = 0;
    let mut count = |messages: &[Message<'_>]| {
        taken += messages.len();
        Ok(())
    };
    assert_eq!(consumer.poll(NOW, &mut count), Ok(0));
    assert!(!consumer.has_ended(0));
    let mut writer = fs::OpenOptions::new().write(true).open(path("in.jsonl")).expect("its reader is there");
    writer.write_all(b"1\n2\n").expect("written");
    drop(writer);
    while !consumer.has_ended(0) {
        consumer.poll(NOW, &mut count).expect("read");
    }
    assert_eq!(taken, 2);
}

#[test]
fn the_files_of_a_folder_are_the_same_in_every_run() {
    let stage = Stage::new();
    fs::create_dir(stage.folder.path().join("days")).expect("made");
    ["b", "a"].iter().for_each(|n| stage.write(&format!("days/{n}.jsonl"), "1\n"));
    assert_eq!(described(&stage, "days"), Ok(2));
    let stage = stage.restart();
    stage.write("days/c.jsonl", "1\n");
    assert!(described(&stage, "days").expect_err("new").contains("`c.jsonl` is new in it"));
    fs::remove_file(stage.folder.path().join("days/c.jsonl")).expect("there");
    stage.write("days/.hidden", "?");
    assert_eq!(described(&stage, "days"), Ok(2));
    fs::remove_file(stage.folder.path().join("days/b.jsonl")).expect("there");
    assert!(described(&stage, "days").expect_err("gone").contains("`b`, which was its partition 1"));
}

/// One exactly-once line in each of these outputs.
fn commit(system: &Jsonl, outputs: &[&str]) -> Result<(), SystemError> {
    let mut producer = system.transactional("me").expect("a producer");
    producer.begin()?;
    for output in outputs {
        let out = producer.topic(output)?;
        producer.send(&ProducerRecord::new(out, None, Some(b"1")))?;
    }
    producer.commit(NOW)
}

fn open(project: &Path) -> Jsonl {
    let home = Home::open(&project.join("state"), project).expect("a home");
    Jsonl::new(&Arc::new(home), files(project), &Arc::default())
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status().expect("it runs");
    assert!(copied.success());
}

#[test]
fn a_copy_of_a_project_leaves_the_originals_outputs_alone() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let outside = path("outside.jsonl").to_string_lossy().into_owned();
    fs::create_dir(path("a")).expect("made");
    let original = open(&path("a"));
    commit(&original, &["out.jsonl", &outside]).expect("committed");
    // The original has not ended in order when it is copied, and goes on afterwards.
    copy(&path("a"), &path("b"));
    commit(&original, &["out.jsonl", &outside]).expect("committed");
    drop(original);
    let lines = |name: &str| fs::read_to_string(path(name)).expect("there").lines().count();
    let copied = open(&path("b"));
    assert_eq!((lines("a/out.jsonl"), lines("b/out.jsonl"), lines("outside.jsonl")), (2, 1, 2));
    let error = commit(&copied, &[&outside]).expect_err("it is the original's").to_string();
    assert!(error.contains("is a copy") && error.contains("--output"), "{error}");
    commit(&copied, &["out.jsonl"]).expect("committed");
    drop(copied);
    let error = commit(&open(&path("b")), &[&outside]).expect_err("still").to_string();
    assert!(error.contains("is a copy"), "{error}");
    Home::forget(&path("b/state"), &path("b")).expect("forgotten");
    assert_eq!((lines("a/out.jsonl"), lines("b/out.jsonl"), lines("outside.jsonl")), (2, 0, 2));
}

#[test]
fn a_project_that_is_moved_or_restored_goes_on_where_it_was() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let outside = path("outside.jsonl").to_string_lossy().into_owned();
    fs::create_dir(path("a")).expect("made");
    commit(&open(&path("a")), &["out.jsonl", &outside]).expect("committed");
    fs::rename(path("a"), path("b")).expect("moved");
    fs::write(path("b/out.jsonl"), "1\ntorn").expect("written");
    commit(&open(&path("b")), &["out.jsonl", &outside]).expect("committed");
    let text = |name: &str| fs::read_to_string(path(name)).expect("there");
    assert_eq!((text("b/out.jsonl"), text("outside.jsonl")), ("1\n1\n".into(), "1\n1\n".into()));
    // To another disk, and back from a backup.
    copy(&path("b"), &path("backup"));
    fs::remove_dir_all(path("b")).expect("there");
    copy(&path("backup"), &path("b"));
    commit(&open(&path("b")), &["out.jsonl", &outside]).expect("committed");
    assert_eq!((text("b/out.jsonl"), text("outside.jsonl")), ("1\n1\n1\n".into(), "1\n1\n1\n".into()));
    let error = Home::open(&path("b/state"), folder.path()).err().map(|e| e.to_string());
    assert_eq!(error, None, "the folder above is the project of what is in it too");
}

#[test]
fn what_others_have_written_to_an_output_is_never_cut_after_a_run_that_ended_in_order() {
    let stage = Stage::new();
    commit(&stage.system, &["out.jsonl"]).expect("committed");
    stage.system.home.end(false).expect("what failed was not a commit");
    stage.append("out.jsonl", "theirs\n");
    let (state, project) = (stage.folder.path().join("state"), stage.folder.path().to_owned());
    drop(stage.system);
    for refused in [Home::open(&state, &project).err(), Home::forget(&state, &project).err()] {
        let told = refused.expect("refused").to_string();
        assert!(told.contains("7 bytes more") && told.contains("truncate -s 2"), "{told}");
    }
    assert_eq!(fs::read_to_string(project.join("out.jsonl")).expect("there"), "1\ntheirs\n");
    fs::rename(project.join("out.jsonl"), project.join("kept")).expect("moved");
    commit(&open(&project), &["out.jsonl"]).expect("committed");
}

#[test]
fn an_output_is_a_file_of_its_own() {
    let stage = Stage::new();
    stage.write("in.jsonl", "1\n");
    stage.system.admin().describe(&["in.jsonl".to_owned()]).expect("described");
    symlink("in.jsonl", stage.folder.path().join("link")).expect("linked");
    fs::hard_link(stage.folder.path().join("in.jsonl"), stage.folder.path().join("hard")).expect("linked");
    for output in ["in.jsonl", "link", "hard", "sub/../in.jsonl"] {
        fs::create_dir_all(stage.folder.path().join("sub")).expect("made");
        let error = commit(&stage.system, &[output]).expect_err("it is read").to_string();
        assert!(error.contains("is the same file as an input"), "{error}");
    }
    let error = commit(&stage.system, &["sub"]).expect_err("a folder").to_string();
    assert!(error.contains("cannot write to") && error.contains("a folder"), "{error}");
    let error = commit(&stage.system, &["in.jsonl/out"]).expect_err("below a file").to_string();
    assert!(error.contains("cannot write to"), "{error}");
    let error = commit(&stage.system, &["/dev/full"]).expect_err("no room").to_string();
    assert!(error.contains("/dev/full: No space left") && error.contains("make room"), "{error}");
    commit(&stage.system, &["/dev/null"]).expect("written");
}

#[test]
fn an_output_whose_reader_has_gone_is_told_as_that() {
    let stage = Stage::new();
    let path = stage.folder.path().join("out");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("it runs");
    assert!(made.success());
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            let file = fs::File::open(path).expect("opened");
            std::io::BufRead::read_line(&mut std::io::BufReader::new(file), &mut line).expect("read");
            line
        })
    };
    let mut producer = stage.transactional();
    producer.begin().expect("begun");
    let out = producer.topic("out").expect("it waits for a reader");
    producer.send(&ProducerRecord::new(out, None, Some(b"1"))).expect("sent");
    producer.commit(NOW).expect("committed");
    assert_eq!(reader.join().expect("it reads"), "1\n");
    producer.begin().expect("begun");
    producer.send(&ProducerRecord::new(out, None, Some(b"2"))).expect("sent");
    assert!(producer.commit(NOW).is_err());
    assert!(stage.system.home.reader_gone().is_some_and(|place| place.ends_with("/out")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a file's lines are, how they end, how it is packed and in what pieces it is read: each line is a message
    /// or is told, in order, and reading can go on after any of them.
    #[test]
    fn lines_are_the_same_however_they_are_packed_and_read(
        lines in proptest::collection::vec(prop_oneof![
            "[a-z0-9]{0,9}".prop_map(|text| format!("\"{text}\"")),
            (0..1_000_u32).prop_map(|n| format!("{{\"key\":{n},\"value\":{n}}}")),
            Just(String::new()),
            Just("oops".to_owned()),
            Just("x".repeat(60)),
        ], 0..12),
        ending in prop_oneof![Just("\n"), Just("\r\n"), Just("\n\n")],
        has_last in any::<bool>(),
        bom in any::<bool>(),
        chunk in 1..40_usize,
        packed in 0..3_u8,
        restart in 0..12_usize,
    ) {
        let mut text = lines.join(ending);
        if has_last && !lines.is_empty() {
            text.push_str(ending);
        }
        if bom {
            text.insert(0, '\u{feff}');
        }
        let bytes = match packed {
            0 => text.clone().into_bytes(),
            1 => gzip(text.as_bytes()),
            _ => zstd(text.as_bytes()),
        };
        let mut stage = Stage::new();
        let path = stage.folder.path().join("in.jsonl");
        fs::write(&path, &bytes).expect("written");
        // Not fresh: nobody is writing to it.
        let old = std::time::SystemTime::now() - Duration::from_secs(60);
        fs::File::options().write(true).open(&path).and_then(|f| f.set_modified(old)).expect("made old");
        let files = Files { chunk, longest_line: 50, malformed_is_fatal: false, ..files(stage.folder.path()) };
        stage.system = Jsonl::new(&stage.system.home, files, &Arc::default());
        let (taken, end) = consume(&stage, StartAt::Oldest).expect("read");
        let expected: Vec<&String> = lines.iter().filter(|line| !line.is_empty()).collect();
        prop_assert_eq!(taken.len(), expected.len());
        for ((_, is), line) in taken.iter().zip(&expected) {
            match line.as_str() {
                "oops" => prop_assert!(is.contains("not JSON"), "{}", is),
                long if long.len() == 60 => prop_assert!(is.contains("in.jsonl line "), "{}", is),
                value if value.starts_with('"') => prop_assert_eq!(is.as_str(), value.trim_matches('"')),
                envelope => prop_assert!(envelope.contains(&format!("\"value\":{is}}}")), "{}", is),
            }
        }
        if !taken.is_empty() {
            prop_assert!(byte(&end) <= text.len() as u64);
            let after = restart % taken.len();
            let from = Offset((taken[after].0 + 1).to_string());
            prop_assert_eq!(stage.system.admin().lost(&[(at("in.jsonl", 0), from.clone())]), Ok(vec![None]));
            let (rest, _) = consume(&stage, StartAt::At(from)).expect("read");
            prop_assert_eq!(rest, taken[after + 1..].to_vec());
        }
    }
}
