//! Files with secrets: whether one is kept from all but its owner, and the operators' token.

use std::{
    fs::{self, Metadata},
    ops::RangeInclusive,
    path::Path,
};

use crate::platform::files::mode_and_owner;

/// A token, in bytes: what the rate of wrong tokens keeps from being guessed at least, and what
/// fits into a header with room to spare at most.
const TOKEN_BYTES: RangeInclusive<usize> = 8..=4096;

/// The owner of files that the system hands to a service.
const ROOT: u32 = 0;

/// Returns the permissions of a file that others can read; `None` if it is private. A file of
/// root's may be readable by its group: so Kubernetes and systemd hand secrets to a service that is
/// not root.
/// On Windows, where a file has no such permissions, it counts as private.
pub fn exposure(file: &Metadata) -> Option<u32> {
    mode_and_owner(file).and_then(|(mode, owner)| exposed(mode, owner))
}

/// Reads the operators' token from its file.
///
/// # Errors
/// The fault of the file, and the way out.
pub fn read_token(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let wrong = |why: String| format!("{}: {why}", path.display());
    if let Some(mode) = exposure(&fs::metadata(path).map_err(unreadable)?) {
        return Err(wrong(format!("other users can read it (mode {mode:03o}); `chmod 600` it")));
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let token = text.trim();
    // It travels in a header, where nothing else stands for itself (RFC 9110, 5.5).
    let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if token.is_empty() || !is_visible {
        return Err(wrong("it must hold one line of visible ASCII characters".to_owned()));
    }
    if !TOKEN_BYTES.contains(&token.len()) {
        let (length, least, most) = (token.len(), TOKEN_BYTES.start(), TOKEN_BYTES.end());
        return Err(wrong(format!(
            "a token of {length} characters; it must have {least} at least and {most} at \
             most: make one with `head -c 32 /dev/urandom | base64`"
        )));
    }
    Ok(token.to_owned())
}

fn exposed(mode: u32, owner: u32) -> Option<u32> {
    let forbidden = if owner == ROOT { 0o037 } else { 0o077 };
    (mode & forbidden != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::files::set_mode;

    #[test]
    fn a_token_is_what_a_header_can_carry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            set_mode(&path, 0o600);
            read_token(&path)
        };
        assert_eq!(read(" s3cret!!\n"), Ok("s3cret!!".to_owned()));
        assert_eq!(read("open sesame"), Ok("open sesame".to_owned()));
        for text in ["", " \n", "a\nb", "a\tb", "a\u{1}", "ä"] {
            assert!(read(text).unwrap_err().contains("visible ASCII"), "{text:?}");
        }
        for (length, is_good) in [(1, false), (7, false), (8, true), (4096, true), (4097, false)] {
            match read(&"x".repeat(length)) {
                Ok(token) => assert!(is_good && token.len() == length),
                Err(why) => {
                    let told = format!("{length} characters; it must have 8 at least and 4096");
                    assert!(!is_good && why.contains(&told), "{why}");
                }
            }
        }
        assert!(read_token(dir.path()).is_err(), "a directory is no file");
    }

    #[test]
    fn the_owner_reads_and_a_group_only_what_is_roots() {
        for (mode, owner, is_private) in [
            (0o600, 1000, true),
            (0o400, 1000, true),
            (0o640, 1000, false),
            (0o604, 1000, false),
            (0o600, ROOT, true),
            (0o440, ROOT, true),
            (0o640, ROOT, true),
            (0o660, ROOT, false),
            (0o644, ROOT, false),
        ] {
            assert_eq!(exposed(mode, owner).is_none(), is_private, "{mode:o} of {owner}");
        }
    }
}
