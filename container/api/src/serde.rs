//! Serdes: how keys and values become bytes. Numbers are big-endian, as Kafka's and Samza's serdes write them,
//! with the sign bit flipped in [`OrderedI64`] only.

use std::marker::PhantomData;

use ::serde::{Serialize, de::DeserializeOwned};

/// Bytes that are not what the serde reads.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(pub String);

/// Writes and reads values of `T`.
pub trait Serde<T> {
    /// Appends the bytes of `value` to `out`.
    fn encode(&self, value: &T, out: &mut Vec<u8>);
    /// Reads a value.
    ///
    /// # Errors
    /// The bytes are not a `T`.
    fn decode(&self, bytes: &[u8]) -> Result<T, DecodeError>;
}

/// UTF-8 text.
#[derive(Debug, Clone, Copy, Default)]
pub struct StringSerde;

impl Serde<String> for StringSerde {
    fn encode(&self, value: &String, out: &mut Vec<u8>) {
        out.extend_from_slice(value.as_bytes());
    }
    fn decode(&self, bytes: &[u8]) -> Result<String, DecodeError> {
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|e| DecodeError(format!("not UTF-8: {e}")))
    }
}

/// Bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct BytesSerde;

impl Serde<Vec<u8>> for BytesSerde {
    fn encode(&self, value: &Vec<u8>, out: &mut Vec<u8>) {
        out.extend_from_slice(value);
    }
    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
        Ok(bytes.to_vec())
    }
}

fn eight(bytes: &[u8]) -> Result<[u8; 8], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError(format!("{} bytes where 8 were expected", bytes.len())))
}

/// A 64-bit integer, big-endian.
#[derive(Debug, Clone, Copy, Default)]
pub struct I64Serde;

impl Serde<i64> for I64Serde {
    fn encode(&self, value: &i64, out: &mut Vec<u8>) {
        out.extend_from_slice(&value.to_be_bytes());
    }
    fn decode(&self, bytes: &[u8]) -> Result<i64, DecodeError> {
        eight(bytes).map(i64::from_be_bytes)
    }
}

/// A 64-bit integer whose bytes sort as the numbers do; for keys that are scanned.
#[derive(Debug, Clone, Copy, Default)]
pub struct OrderedI64;

impl Serde<i64> for OrderedI64 {
    fn encode(&self, value: &i64, out: &mut Vec<u8>) {
        out.extend_from_slice(&(value ^ i64::MIN).to_be_bytes());
    }
    fn decode(&self, bytes: &[u8]) -> Result<i64, DecodeError> {
        eight(bytes).map(|bytes| i64::from_be_bytes(bytes) ^ i64::MIN)
    }
}

/// A 64-bit float, big-endian IEEE 754.
#[derive(Debug, Clone, Copy, Default)]
pub struct F64Serde;

impl Serde<f64> for F64Serde {
    fn encode(&self, value: &f64, out: &mut Vec<u8>) {
        out.extend_from_slice(&value.to_be_bytes());
    }
    fn decode(&self, bytes: &[u8]) -> Result<f64, DecodeError> {
        eight(bytes).map(f64::from_be_bytes)
    }
}

/// JSON of anything that serde knows. JSON has no word for floats that are no number or infinite: they are written as
/// `null`, which is read as an `Option` only; a row that may hold one is kept as [`F64Serde`] or with `Option<f64>`.
#[derive(Debug)]
pub struct JsonSerde<T>(PhantomData<T>);

impl<T> Default for JsonSerde<T> {
    fn default() -> Self {
        JsonSerde(PhantomData)
    }
}

impl<T: Serialize + DeserializeOwned> Serde<T> for JsonSerde<T> {
    fn encode(&self, value: &T, out: &mut Vec<u8>) {
        // Into a Vec only a value that refuses to be serialised can fail, e.g. a map with keys that are no text.
        serde_json::to_writer(out, value).expect("a value kept as JSON must serialise");
    }
    fn decode(&self, bytes: &[u8]) -> Result<T, DecodeError> {
        serde_json::from_slice(bytes).map_err(|e| DecodeError(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn written<T>(serde: &impl Serde<T>, value: &T) -> Vec<u8> {
        let mut bytes = b"before".to_vec();
        serde.encode(value, &mut bytes);
        assert!(bytes.starts_with(b"before"), "encoding appends");
        bytes.split_off(6)
    }
    fn again<T>(serde: &impl Serde<T>, value: &T) -> T {
        serde.decode(&written(serde, value)).expect("what was written is read")
    }

    #[test]
    fn numbers_have_the_bytes_of_javas_serdes() {
        assert_eq!(written(&I64Serde, &-2), (-2_i64).to_be_bytes());
        assert_eq!(written(&F64Serde, &1.5), 1.5_f64.to_be_bytes());
    }

    #[test]
    fn a_float_that_is_no_number_is_null_in_json() {
        assert_eq!(written(&JsonSerde::default(), &f64::NAN), b"null");
        assert!(JsonSerde::<f64>::default().decode(b"null").is_err());
        assert_eq!(again(&JsonSerde::default(), &Some(f64::INFINITY)), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            text in ".*", bytes: Vec<u8>, int: i64, bits: u64, map: BTreeMap<String, Option<i64>>,
        ) {
            prop_assert_eq!(again(&StringSerde, &text), text);
            prop_assert_eq!(again(&BytesSerde, &bytes), bytes);
            prop_assert_eq!(again(&I64Serde, &int), int);
            prop_assert_eq!(again(&OrderedI64, &int), int);
            prop_assert_eq!(again(&F64Serde, &f64::from_bits(bits)).to_bits(), bits);
            prop_assert_eq!(again(&JsonSerde::default(), &map), map);
        }

        #[test]
        fn ordered_integers_sort_as_numbers_do(a: i64, b: i64) {
            prop_assert_eq!(written(&OrderedI64, &a).cmp(&written(&OrderedI64, &b)), a.cmp(&b));
        }

        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let is_text = std::str::from_utf8(&bytes).is_ok();
            prop_assert_eq!(StringSerde.decode(&bytes).is_ok(), is_text);
            prop_assert_eq!(I64Serde.decode(&bytes).is_ok(), bytes.len() == 8);
            prop_assert_eq!(OrderedI64.decode(&bytes).is_ok(), bytes.len() == 8);
            prop_assert_eq!(F64Serde.decode(&bytes).is_ok(), bytes.len() == 8);
            let _ = JsonSerde::<BTreeMap<String, f64>>::default().decode(&bytes);
        }
    }
}
