//! Standard output, with every failure to write to it. Rust hides two of them: its runtime opens
//! `/dev/null` in the place of a standard stream that is closed, so that no file gets its number,
//! and its `Stdout` takes a descriptor that cannot be written to for a sink. To a script both look
//! like an answer.
//!
//! On Windows a standard output that is closed is not told from one that is there: a full disk is
//! still an error, and an answer that goes nowhere is none.

use std::io;

/// Writes all of the text.
///
/// # Errors
/// If standard output is closed, or takes no bytes.
pub(crate) fn write_all(text: &str) -> io::Result<()> {
    system::write_all(text)
}

#[cfg(unix)]
mod system {
    #![expect(
        unsafe_code,
        reason = "what runs before `main` is unsafe to declare, and fcntl is foreign"
    )]

    use std::{
        io,
        os::fd::AsFd as _,
        sync::atomic::{AtomicBool, Ordering},
    };

    use rustix::io::{Errno, retry_on_intr, write};

    /// Whether standard output was closed when the process began.
    static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

    /// Looks before Rust's runtime does: the loader calls what is in this section before `main`.
    #[used]
    #[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
    #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
    static BEFORE_MAIN: extern "C" fn() = look;

    extern "C" fn look() {
        // SAFETY: the call takes a number and touches no memory of ours; -1 says that it is closed.
        let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
        WAS_CLOSED.store(flags < 0, Ordering::Relaxed);
    }

    pub(super) fn write_all(text: &str) -> io::Result<()> {
        if WAS_CLOSED.load(Ordering::Relaxed) {
            return Err(Errno::BADF.into());
        }
        let stdout = io::stdout().lock();
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let written = retry_on_intr(|| write(stdout.as_fd(), rest))?;
            rest = &rest[written..];
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

#[cfg(windows)]
mod system {
    use std::io::{self, Write as _};

    pub(super) fn write_all(text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}
