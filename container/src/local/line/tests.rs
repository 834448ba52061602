//! Lines as people write them, and as they are written.

use proptest::prelude::*;
use task_api::system::{ProducerRecord, TopicHandle};
use task_api::{Header, Headers};

use super::*;

type Named = Vec<(String, Vec<u8>)>;
type Row = (Option<Vec<u8>>, Option<Vec<u8>>, Option<u64>, Named);

fn read(line: &[u8], shape: &Shape) -> Result<Option<Row>, Malformed> {
    let mut made = Vec::new();
    let parsed = parse(line, shape, &mut made)?;
    let bytes = |part: &Part| part.bytes(line, &made).map(<[u8]>::to_vec);
    let named = |h: Header<'_>| {
        (String::from_utf8(h.name.to_vec()).expect("text"), h.value.map(<[u8]>::to_vec).unwrap_or_default())
    };
    Ok(parsed.map(|p| {
        let headers = Headers::packed(&made[p.headers.clone()]).iter().map(named).collect();
        (bytes(&p.key), bytes(&p.value), p.timestamp_ms, headers)
    }))
}

fn text(line: &str, shape: &Shape) -> (Option<String>, Option<String>) {
    let (key, value, ..) = read(line.as_bytes(), shape).expect("a message").expect("not blank");
    let text = |bytes: Option<Vec<u8>>| bytes.map(|b| String::from_utf8(b).expect("text"));
    (text(key), text(value))
}

fn row(key: Option<&str>, value: Option<&str>) -> (Option<String>, Option<String>) {
    (key.map(str::to_owned), value.map(str::to_owned))
}

fn told(line: &[u8], shape: &Shape) -> Malformed {
    read(line, shape).expect_err("malformed")
}

fn said(envelope: bool) -> Shape {
    Shape { envelope: Some(envelope), ..Shape::default() }
}

#[test]
fn a_line_is_a_value_or_an_envelope() {
    let plain = Shape::default();
    assert_eq!(text(r#" {"a": 1} "#, &plain), row(None, Some(r#"{"a": 1}"#)));
    assert_eq!(text(r#""a\nb""#, &plain), row(None, Some("a\nb")));
    assert_eq!(text("12.50", &plain), row(None, Some("12.50")));
    assert_eq!(
        text(r#"{"key":"k","value":{"n": [1, "}"]}}"#, &plain),
        row(Some("k"), Some(r#"{"n": [1, "}"]}"#))
    );
    assert_eq!(text(r#"{"value" : "x" , "key" : 7}"#, &plain), row(Some("7"), Some("x")));
    assert_eq!(text(r#"{"key":"k","value":null}"#, &plain), row(Some("k"), None));
    assert_eq!(text(r#"{"key":null,"value":1}"#, &plain), row(None, Some("1")));
    assert_eq!(read(b"  \r", &plain), Ok(None));
}

#[test]
fn a_row_that_happens_to_have_an_envelopes_fields_keeps_them_all() {
    let plain = Shape::default();
    for line in [
        r#"{"timestamp":"2026-01-31T12:00:00Z","value":20.5}"#,
        r#"{"timestamp":1769860800,"value":20.5}"#,
        r#"{"value":1}"#,
        r#"{"value":1,"headers":{"a":"b"}}"#,
        r#"{"key":"k","value":1,"other":2}"#,
        r#"{"key":"k","value":1,"timestamp":"yesterday"}"#,
        r#"{"key":"k","value":1,"headers":"none"}"#,
        r#"{"key":"k","value":1,"value":2}"#,
        r#"{"key":"k","timestamp":1}"#,
    ] {
        assert_eq!(text(line, &plain), row(None, Some(line)), "{line}");
    }
    let line = r#"{"key":"k","value":1}"#;
    assert_eq!(text(line, &said(false)), row(None, Some(line)));
    let mut stream = StreamSpec::default_for("s");
    stream.key = Some("key".into());
    assert_eq!(
        text(line, &Shape::read(&stream)),
        row(Some("k"), Some(line)),
        "the job says that `key` is of a row"
    );
    assert_eq!(Shape::written(&stream).envelope, None);
}

#[test]
fn a_stream_of_envelopes_takes_nothing_else() {
    assert_eq!(text(r#"{"value":1}"#, &said(true)), row(None, Some("1")));
    let more = told(br#"{"value":1,"n":2}"#, &said(true));
    assert!(more.column == 12 && more.what.contains("not an envelope, for it has a field \"n\""), "{more:?}");
    assert!(told(b"17", &said(true)).what.contains("it is no object"));
    assert!(told(br#"{"key":1}"#, &said(true)).what.contains("not one of `value` and `value-base64`"));
    assert!(told(br#"{"value":1,"timestamp":"soon"}"#, &said(true)).what.contains("not a time: \"soon\""));
    assert!(told(br#"{"value":1,"headers":[1]}"#, &said(true)).what.contains("headers must be an object"));
}

#[test]
fn times_and_headers_come_with_an_envelope() {
    let line = br#"{"key":null,"value":1,"timestamp":1700000000,"headers":{"a":"x","b":"base64:/w=="}}"#;
    let (_, value, time, headers) = read(line, &Shape::default()).expect("read").expect("a message");
    assert_eq!((value, time), (Some(b"1".to_vec()), Some(1_700_000_000_000)));
    assert_eq!(headers, [("a".to_owned(), b"x".to_vec()), ("b".into(), vec![255])]);
    let twice = br#"{"key":"k","value":1,"headers":[["a","1"],["a","2"]]}"#;
    let headers = read(twice, &Shape::default()).expect("read").expect("a message").3;
    assert_eq!(headers, [("a".to_owned(), b"1".to_vec()), ("a".into(), b"2".to_vec())]);
}

#[test]
fn fields_of_the_row_are_key_and_time_where_the_stream_says_so() {
    let by_user = Shape { key_field: Some("user".into()), time_field: Some("at".into()), ..Shape::default() };
    let line = r#"{"user":"ann","n":1}"#;
    assert_eq!(text(line, &by_user), row(Some("ann"), Some(line)));
    let line = r#"{"n":{"user":"no"},"\u0075ser":[1]}"#;
    assert_eq!(text(line, &by_user), row(Some("[1]"), Some(line)));
    assert_eq!(text(r#"{"n":1}"#, &by_user), row(None, Some(r#"{"n":1}"#)));
    assert_eq!(text(r#"{"key":"k","value":1}"#, &by_user), row(Some("k"), Some("1")), "an envelope is one");
    let time = |line: &str| read(line.as_bytes(), &by_user).map(|row| row.expect("a message").2);
    assert_eq!(time(r#"{"at":"2026-01-31T12:00:00Z"}"#), Ok(Some(1_769_860_800_000)));
    assert_eq!(time(r#"{"at":null}"#), Ok(None));
    assert_eq!(time("{}"), Ok(None));
    let wrong = time(r#"{"at":"31.1.2026"}"#).expect_err("no time");
    assert!(
        wrong.column == 7 && wrong.what.contains("not a time: \"31.1.2026\"; valid: from 1970 on"),
        "{wrong:?}"
    );
    let kind = |line: &[u8]| parse(line, &by_user, &mut Vec::new()).expect("read").expect("a message").kind;
    assert_eq!(kind(b"{}"), Kind::Row { keyed: false, timed: false });
    assert_eq!(kind(br#"{"user":null,"at":1}"#), Kind::Row { keyed: true, timed: true });
    assert_eq!(
        (kind(b"1"), names(br#"{"a":1,"\u0062":2}"#)),
        (Kind::Plain, vec!["a".to_owned(), "b".into()])
    );
}

#[test]
fn what_is_no_message_is_told_with_its_column_and_what_may_be_wrong() {
    let plain = Shape::default();
    assert_eq!(told(b"{\"a\": oops}", &plain).column, 7);
    assert_eq!(told(b"  {\"a\": oops}", &plain).column, 9);
    assert_eq!(told(b"\"a\xff\"", &plain), Malformed { column: 3, what: "not UTF-8".into() });
    assert!(told(b"{} {}", &plain).what.starts_with("not JSON: trailing characters"));
    assert_eq!(told(br#"{"key":1,"value-base64":"?"}"#, &plain).what, "not base64");
    assert_eq!(told(br#""\ud800""#, &plain).what, "a string that is not Unicode");
    let number = Shape { value: Form::I64, ..Shape::default() };
    assert_eq!(told(b"1.5", &number), Malformed { column: 1, what: "not an i64: 1.5".into() });
    for (line, hint) in [
        (b"{\0\"\0".as_slice(), "iconv -f UTF-16"),
        (b"{}\r{}", "tr '\\r' '\\n'"),
        (b"[", "jq -c '.[]'"),
        (b"{\"a\":1},", "jq -c '.[]'"),
        (b"{", "jq -c .`"),
    ] {
        assert!(told(line, &plain).what.contains(hint), "{:?}", told(line, &plain));
    }
}

fn record<'a>(
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    timestamp_ms: Option<u64>,
    headers: &'a [Header<'a>],
) -> ProducerRecord<'a> {
    let headers = Headers::new(headers);
    ProducerRecord { timestamp_ms, headers, ..ProducerRecord::new(TopicHandle(0), key, value) }
}

fn written(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    time: Option<u64>,
    headers: &[Header<'_>],
    shape: &Shape,
) -> String {
    let mut out = Vec::new();
    write(&record(key, value, time, headers), shape, &mut out).expect("it can be written");
    String::from_utf8(out).expect("text")
}

#[test]
fn messages_are_written_for_people() {
    let plain = Shape::default();
    let plainly = |key, value| written(key, value, None, &[], &plain);
    assert_eq!(plainly(Some(b"k"), Some(b"{\"n\":1}")), "{\"key\":\"k\",\"value\":{\"n\":1}}\n");
    assert_eq!(plainly(None, Some(b"17")), "17\n");
    assert_eq!(plainly(None, Some(b"{\"value\":1}")), "{\"value\":1}\n");
    assert_eq!(plainly(None, Some(b"two words")), "\"two words\"\n");
    assert_eq!(plainly(None, Some(b"\xff")), "{\"key\":null,\"value-base64\":\"/w==\"}\n");
    assert_eq!(plainly(Some(b"k"), None), "{\"key\":\"k\",\"value\":null}\n");
    assert_eq!(
        written(None, Some(b"x"), Some(1_700_000_000_000), &[Header::new("error", b"no number")], &plain),
        "{\"key\":null,\"value\":\"x\",\"timestamp\":1700000000000,\"headers\":{\"error\":\"no number\"}}\n"
    );
    let numbers = Shape { key: Form::I64, value: Form::F64, ..Shape::default() };
    let (key, value) = (7_i64.to_be_bytes(), 2.5_f64.to_be_bytes());
    assert_eq!(written(Some(&key), Some(&value), None, &[], &numbers), "{\"key\":7,\"value\":2.5}\n");
    assert_eq!(written(None, Some(b"1"), None, &[], &said(true)), "{\"key\":null,\"value\":1}\n");
    assert_eq!(written(Some(b"k"), Some(b"1"), Some(9), &[Header::new("a", b"b")], &said(false)), "1\n");
    assert!(write(&record(None, Some(b"\xff"), None, &[]), &said(false), &mut Vec::new()).is_err());
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let json = prop_oneof![
        Just("null".to_owned()),
        Just("\"text\"".to_owned()),
        Just("base64:text".to_owned()),
        Just("{\"value\":1}".to_owned()),
        Just("{\"key\":null,\"value\":1}".to_owned()),
        Just("{\"value-base64\":\"?\",\"key\":2}".to_owned()),
        Just("{\"user\":\"u\",\"at\":0}".to_owned()),
        Just("\u{feff}{}".to_owned()),
        Just("[1,\n2]".to_owned()),
        Just(" 1".to_owned()),
        Just("-0".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}")),
    ];
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..12),
        any::<[u8; 8]>().prop_map(|b| b.to_vec()),
        ".{0,8}".prop_map(String::into_bytes),
        json.prop_map(String::into_bytes),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    let form = || prop_oneof![Just(Form::Json), Just(Form::Text), Just(Form::I64), Just(Form::F64)];
    let field = |name: &str| proptest::option::of(Just(name.to_owned()));
    let envelope = prop_oneof![Just(None), Just(Some(true)), Just(Some(false))];
    (form(), form(), field("user"), field("at"), envelope).prop_map(
        |(key, value, key_field, time_field, envelope)| Shape { key, value, key_field, time_field, envelope },
    )
}

fn named() -> impl Strategy<Value = Named> {
    proptest::collection::vec(("[ab\"é]{0,2}", bytes()), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_written_is_read_as_the_same_bytes(
        key in proptest::option::of(bytes()), value in proptest::option::of(bytes()), shape in shape(),
        time in proptest::option::of(prop_oneof![any::<u64>(), 0..1_u64 << 48]), named in named(), ending in prop_oneof![Just(""), Just("\r"), Just(" ")],
        bom in any::<bool>(),
    ) {
        let headers: Vec<Header<'_>> = named.iter().map(|(name, value)| Header::new(name, value)).collect();
        let mut line = if bom { "\u{feff}".as_bytes().to_vec() } else { Vec::new() };
        let done = write(&record(key.as_deref(), value.as_deref(), time, &headers), &shape, &mut line);
        if shape.envelope == Some(false) {
            // A row is its value and nothing else.
            if done.is_ok() {
                line.pop();
                // A number of the row's own may be what was no text.
                if let Ok(Some((_, found, ..))) = read(&line, &Shape { key_field: None, time_field: None, ..shape }) {
                    prop_assert_eq!(found, value);
                }
            }
        } else {
            prop_assert_eq!(done, Ok(()));
            prop_assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            prop_assert_eq!(line.pop(), Some(b'\n'));
            line.extend_from_slice(ending.as_bytes());
            prop_assert_eq!(read(&line, &shape), Ok(Some((key, value, time, named))));
        }
    }

    #[test]
    fn no_line_makes_it_panic(line in proptest::collection::vec(any::<u8>(), 0..64), shape in shape()) {
        let _ = read(&line, &shape);
        let _ = names(&line);
    }

    #[test]
    fn no_line_of_json_letters_makes_it_panic(line in "[\\[\\]{}\":,\\\\ 0-9a-euln.-]{0,24}", shape in shape()) {
        let _ = read(line.as_bytes(), &shape);
        let _ = read(format!("{{\"value\":{line}}}").as_bytes(), &shape);
        let _ = read(format!("{{\"key\":1,\"value\":1,\"headers\":{line}}}").as_bytes(), &shape);
        let _ = read(format!("{{\"key\":1,\"value\":1,\"timestamp\":{line}}}").as_bytes(), &shape);
    }
}
