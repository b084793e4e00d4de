//! Whether a file with a secret in it is kept from all but its owner.

use std::{fs::Metadata, os::unix::fs::MetadataExt as _};

/// The owner of files that the system hands to a service.
const ROOT: u32 = 0;

/// The permissions of a file that others can read; `None` if it is private. A file of root's may be
/// readable by its group: so Kubernetes and systemd hand secrets to a service that is not root.
pub fn exposure(file: &Metadata) -> Option<u32> {
    exposed(file.mode() & 0o777, file.uid())
}

fn exposed(mode: u32, owner: u32) -> Option<u32> {
    let forbidden = if owner == ROOT { 0o037 } else { 0o077 };
    (mode & forbidden != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

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
