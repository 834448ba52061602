//! Applications' secrets.

use std::io::Read;

/// A fresh secret of 128 bits, in hexadecimal.
pub(crate) fn fresh() -> std::io::Result<String> {
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
