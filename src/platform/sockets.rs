//! Sockets, where the systems differ.

use std::{io, time::Duration};

use quinn_udp::{UdpSockRef, UdpSocketState};
use socket2::{Socket, TcpKeepalive};

/// Questions to a silent far end before a connection counts as broken.
const PROBES: u32 = 3;

/// Counts the bytes written to a connection that the far kernel has not acknowledged. Our own FIN
/// counts as one while it is under way.
///
/// A half-closed client may be alive and reading, or its process may be gone. Only the far kernel
/// knows: it acknowledges bytes that a process can still read, and answers bytes for a closed
/// socket with a reset.
///
/// Returns `None` on Windows and the BSDs, which do not tell: there, an answer to a half-closed
/// client counts as taken once it was sent.
///
/// # Errors
/// If the descriptor is not a connected TCP socket.
pub(crate) fn unacknowledged(socket: &Socket) -> io::Result<Option<usize>> {
    system::unacknowledged(socket)
}

/// Has a connection given up once sent bytes stay unacknowledged beyond a time. Systems other than
/// Linux go by their own patience, of ten seconds (Windows) or some minutes (macOS).
///
/// # Errors
/// If the system refuses it.
pub(crate) fn give_up_after(socket: &Socket, timeout: Duration) -> io::Result<()> {
    system::give_up_after(socket, timeout)
}

/// Has the system look after a silent connection: after `idle` it asks the far end, thrice, at this
/// interval. Windows before 10 asks ten times.
///
/// # Errors
/// If the system refuses it.
pub(crate) fn keep_alive(socket: &Socket, idle: Duration, interval: Duration) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
    match socket.set_tcp_keepalive(&keepalive.clone().with_retries(PROBES)) {
        Err(_) if cfg!(windows) => socket.set_tcp_keepalive(&keepalive),
        set => set,
    }
}

/// Lets a listener bind while connections of an earlier process end. Windows permits that always;
/// its option of this name would let another program take the port over.
///
/// # Errors
/// If the system refuses it.
pub(crate) fn reuse_address(socket: &Socket) -> io::Result<()> {
    if cfg!(windows) { Ok(()) } else { socket.set_reuse_address(true) }
}

/// Has the system tell of each datagram to which address of the host it was sent. Returns `None`
/// on a Windows that does not tell (before 10, and wine): then an answer leaves from the address
/// that the system chooses, and a host with several may answer from another than it was asked at.
///
/// # Errors
/// If the system refuses it.
pub(crate) fn packet_info(socket: UdpSockRef<'_>) -> io::Result<Option<UdpSocketState>> {
    /// `WSAENOPROTOOPT`, `WSAEOPNOTSUPP`.
    const UNKNOWN: [i32; 2] = [10042, 10045];
    let is_unknown = |error: &io::Error| {
        error.kind() == io::ErrorKind::Unsupported
            || error.raw_os_error().is_some_and(|code| UNKNOWN.contains(&code))
    };
    match UdpSocketState::new(socket) {
        Err(error) if cfg!(windows) && is_unknown(&error) => Ok(None),
        state => state.map(Some),
    }
}

/// The meaning of a failed accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcceptFailure {
    /// That connection is gone; the next one may be fine.
    Connection,
    /// The listener itself is broken.
    Listener,
    /// The system is short of descriptors or memory, or its network is down.
    Shortage,
}

/// Tells what a failed accept means.
pub(crate) fn accept_failure(error: &io::Error) -> AcceptFailure {
    match error.raw_os_error() {
        Some(code) if system::CONNECTION_FAILURES.contains(&code) => AcceptFailure::Connection,
        Some(code) if system::LISTENER_FAILURES.contains(&code) => AcceptFailure::Listener,
        Some(_) | None => AcceptFailure::Shortage,
    }
}

#[cfg(unix)]
mod system {
    use std::{io, time::Duration};

    use socket2::Socket;

    /// accept(2): a connection that broke before it was accepted reports its own error.
    pub(super) const CONNECTION_FAILURES: [i32; 5] =
        [libc::ECONNABORTED, libc::ECONNRESET, libc::EPROTO, libc::EPERM, libc::EINTR];

    pub(super) const LISTENER_FAILURES: [i32; 5] =
        [libc::EBADF, libc::EFAULT, libc::EINVAL, libc::ENOTSOCK, libc::EOPNOTSUPP];

    pub(super) fn unacknowledged(socket: &Socket) -> io::Result<Option<usize>> {
        #[cfg(target_os = "linux")]
        return super::linux::unacknowledged(socket).map(Some);
        #[cfg(target_vendor = "apple")]
        return super::apple::unacknowledged(socket).map(Some);
        #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
        return socket.peer_addr().map(|_| None);
    }

    pub(super) fn give_up_after(socket: &Socket, timeout: Duration) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        return socket.set_tcp_user_timeout(Some(timeout));
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (socket, timeout);
            Ok(())
        }
    }
}

#[cfg(windows)]
mod system {
    use std::{io, time::Duration};

    use socket2::Socket;

    /// `WSAEINTR`, `WSAEACCES`, `WSAECONNABORTED`, `WSAECONNRESET`.
    pub(super) const CONNECTION_FAILURES: [i32; 4] = [10004, 10013, 10053, 10054];

    /// `WSAEBADF`, `WSAEFAULT`, `WSAEINVAL`, `WSAENOTSOCK`, `WSAEOPNOTSUPP`, `WSANOTINITIALISED`.
    pub(super) const LISTENER_FAILURES: [i32; 6] = [10009, 10014, 10022, 10038, 10045, 10093];

    pub(super) fn unacknowledged(socket: &Socket) -> io::Result<Option<usize>> {
        socket.peer_addr().map(|_| None)
    }

    #[expect(clippy::unnecessary_wraps, reason = "other systems may refuse it")]
    pub(super) fn give_up_after(_socket: &Socket, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    #![expect(unsafe_code, reason = "ioctl(SIOCOUTQ) has no safe wrapper among our dependencies")]

    use std::{io, os::fd::AsRawFd as _};

    use socket2::Socket;

    pub(super) fn unacknowledged(socket: &Socket) -> io::Result<usize> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open for as long as `socket` is borrowed, and SIOCOUTQ (the
        // same number as TIOCOUTQ) writes one int to the pointer that follows, which is ours alone.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(usize::try_from(bytes).expect("the kernel counts from zero"))
    }
}

#[cfg(target_vendor = "apple")]
mod apple {
    #![expect(unsafe_code, reason = "SO_NWRITE has no safe wrapper among our dependencies")]

    use std::{io, os::fd::AsRawFd as _};

    use socket2::Socket;

    pub(super) fn unacknowledged(socket: &Socket) -> io::Result<usize> {
        let mut bytes: libc::c_int = 0;
        let mut length = size_of_val(&bytes) as libc::socklen_t;
        // SAFETY: the descriptor is open for as long as `socket` is borrowed, and SO_NWRITE writes
        // one int, whose size is told, to the pointer, which is ours alone.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NWRITE,
                (&raw mut bytes).cast(),
                &raw mut length,
            )
        };
        if result == -1 {
            return Err(io::Error::last_os_error());
        }
        Ok(usize::try_from(bytes).expect("the kernel counts from zero"))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, net};

    use socket2::SockRef;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn counts_what_a_full_receiver_has_not_taken() {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _far = listener.accept().unwrap();
        assert_eq!(unacknowledged(&SockRef::from(&near)).unwrap(), Some(0));
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65536]).is_ok() {}
        assert!(unacknowledged(&SockRef::from(&near)).unwrap() > Some(0));
    }

    #[cfg(unix)]
    #[test]
    fn refuses_what_is_no_socket() {
        let none = std::fs::File::open("/dev/null").unwrap();
        assert!(unacknowledged(&SockRef::from(&none)).is_err());
    }

    #[test]
    fn only_a_broken_listener_ends_the_loop() {
        let of = |code| accept_failure(&io::Error::from_raw_os_error(code));
        for code in system::CONNECTION_FAILURES {
            assert_eq!(of(code), AcceptFailure::Connection, "{code}");
        }
        for code in system::LISTENER_FAILURES {
            assert_eq!(of(code), AcceptFailure::Listener, "{code}");
        }
        // Out of descriptors, of this process and of the system, and of memory.
        let short = if cfg!(windows) { [10024, 10055, 14] } else { [24, 23, 12] };
        for code in short {
            assert_eq!(of(code), AcceptFailure::Shortage, "{code}");
        }
    }
}
