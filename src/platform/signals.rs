//! The signals by which an operator or a supervisor speaks to a process.
//!
//! Windows has console events in their place: Ctrl-C, Ctrl-Break, a console that is closed and a
//! system that shuts down all ask the process to stop. None of them asks for a reload.

use std::io;

/// The request that a signal makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Read the configuration again.
    Reload,
    /// Stop.
    Stop,
}

/// The signals that an instance obeys.
pub(crate) struct Signals {
    stop: system::Stop,
    reload: system::Reload,
}

impl Signals {
    /// Takes the signals over; from now on none of them ends the process by itself.
    ///
    /// # Errors
    /// If the system does not deliver them.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { stop: system::Stop::new()?, reload: system::Reload::new()? })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            () = self.stop.recv() => Asked::Stop,
            () = self.reload.recv() => Asked::Reload,
        }
    }

    /// Waits until the process is told to stop.
    pub(crate) async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

/// Waits until a command is told to stop. Without signals it never returns, and the command is
/// ended as any program is.
pub(crate) async fn stopped() {
    match system::Stop::new() {
        Ok(mut stop) => stop.recv().await,
        Err(_) => std::future::pending().await,
    }
}

#[cfg(unix)]
mod system {
    use std::io;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// SIGTERM and SIGINT.
    pub(super) struct Stop {
        terminate: Signal,
        interrupt: Signal,
    }

    impl Stop {
        pub(super) fn new() -> io::Result<Self> {
            let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
            Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
        }

        pub(super) async fn recv(&mut self) {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        }
    }

    /// SIGHUP.
    pub(super) struct Reload(Signal);

    impl Reload {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self(signal(SignalKind::hangup())?))
        }

        pub(super) async fn recv(&mut self) {
            self.0.recv().await;
        }
    }
}

#[cfg(windows)]
mod system {
    use std::io;

    use tokio::signal::windows::{
        CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown,
    };

    /// The console events that end a process.
    pub(super) struct Stop {
        interrupt: CtrlC,
        quit: CtrlBreak,
        close: CtrlClose,
        shutdown: CtrlShutdown,
    }

    impl Stop {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self {
                interrupt: ctrl_c()?,
                quit: ctrl_break()?,
                close: ctrl_close()?,
                shutdown: ctrl_shutdown()?,
            })
        }

        pub(super) async fn recv(&mut self) {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.quit.recv() => {}
                _ = self.close.recv() => {}
                _ = self.shutdown.recv() => {}
            }
        }
    }

    /// No event asks for this.
    pub(super) struct Reload;

    impl Reload {
        #[expect(clippy::unnecessary_wraps, reason = "other systems may refuse it")]
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        #[expect(clippy::unused_self, reason = "other systems have a signal here")]
        pub(super) async fn recv(&mut self) {
            std::future::pending().await
        }
    }
}
