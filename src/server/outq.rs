//! The one kernel question that no safe library asks: how many bytes sent on a TCP connection has
//! the far end's kernel not yet acknowledged?
//!
//! A half-closed client may be alive and reading, or its process may be gone. Only the far kernel
//! knows: it acknowledges bytes that a process can still read, and answers bytes for a closed
//! socket with a reset.

#![expect(unsafe_code, reason = "ioctl(SIOCOUTQ) has no safe wrapper among our dependencies")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Bytes written to the connection that the far kernel has not acknowledged. Our own FIN counts
/// as one while it is under way.
///
/// # Errors
/// If the descriptor is not a connected TCP socket.
pub(super) fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and SIOCOUTQ (the same
    // number as TIOCOUTQ) writes one int to the pointer that follows, which is ours alone.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).expect("the kernel counts from zero"))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net};

    use super::*;

    #[test]
    fn counts_what_a_full_receiver_has_not_taken() {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _far = listener.accept().unwrap();
        assert_eq!(unacknowledged(&near).unwrap(), 0);
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65536]).is_ok() {}
        assert!(unacknowledged(&near).unwrap() > 0);
    }

    #[test]
    fn refuses_what_is_no_socket() {
        assert!(unacknowledged(&std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
