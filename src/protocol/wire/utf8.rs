//! How far a text is valid UTF-8 when its end may still be missing.

use super::Violation;

/// The length of the longest prefix of `bytes` made of complete characters. At most three bytes follow it: a
/// character whose rest may still come. Anything that no further byte could repair fails here, at once
/// (RFC 6455 section 8.1 asks to fail, and a client that sent garbage need not be read to the end).
pub(super) fn valid_prefix(bytes: &[u8]) -> Result<usize, Violation> {
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(bytes.len()),
        Err(error) if error.error_len().is_none() => Ok(error.valid_up_to()),
        Err(_) => Err(Violation::Utf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_characters_wait_for_their_rest() {
        let text = "κόσμε€𝄞".as_bytes();
        for end in 0..=text.len() {
            let valid = valid_prefix(&text[..end]).unwrap();
            assert!(end - valid <= 3);
            assert!(std::str::from_utf8(&text[..valid]).is_ok());
        }
    }

    #[test]
    fn what_no_byte_can_repair_fails_at_its_first_wrong_byte() {
        // Surrogates, beyond U+10FFFF, overlong forms, five-byte forms, a lone continuation byte.
        let wrong: [&[u8]; 8] =
            [b"\xed\xa0", b"\xf4\x90", b"\xf5", b"\xc0", b"\xe0\x80", b"\xf0\x80", b"\xf8", b"\x80"];
        for bytes in wrong {
            assert_eq!(valid_prefix(bytes), Err(Violation::Utf8), "{bytes:x?}");
        }
    }
}
