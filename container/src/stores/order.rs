//! Sorting by key without looking at keys: eight bytes of each, as a number, settle almost every comparison, and a look
//! at a key misses the processor's caches. The eight are those after what all keys have in common, so that `user-` or
//! leading zeros before a counter cost nothing.

/// The first eight bytes of a key as a number that sorts as they do; a shorter key is filled up with zeros.
pub(super) fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let n = key.len().min(8);
    bytes[..n].copy_from_slice(&key[..n]);
    u64::from_be_bytes(bytes)
}

/// How many bytes all keys begin with.
pub(super) fn in_common<'k>(mut keys: impl Iterator<Item = &'k [u8]>) -> usize {
    let Some(first) = keys.next() else { return 0 };
    let mut common = first.len();
    for key in keys {
        common = first[..common].iter().zip(key).take_while(|(a, b)| a == b).count();
        if common == 0 {
            break;
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prefixes_after_what_is_common_sort_as_keys_do(keys in proptest::collection::vec("a?b?[ab\0]{0,12}", 1..8)) {
            let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
            let common = in_common(keys.iter().copied());
            prop_assert!(keys.iter().all(|key| key[..common] == keys[0][..common]));
            for a in &keys {
                for b in &keys {
                    let order = prefix(&a[common..]).cmp(&prefix(&b[common..]));
                    prop_assert!(order.is_eq() || order == a.cmp(b), "{a:?} {b:?}");
                }
            }
        }
    }
}
