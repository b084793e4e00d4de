//! What an operator can tell a running instance by signals.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{cluster::tcp::Security, config::Sources, logging::LogHandle};

/// What SIGHUP does.
pub(super) struct Reload {
    pub(super) sources: Sources,
    pub(super) logs: LogHandle,
}

impl Reload {
    pub(super) fn carry_out(&self, security: Option<&Security>) {
        match self.sources.read() {
            Ok(config) => {
                self.logs.set_level(&config.log_level);
                tracing::info!("the log level was read again");
            }
            Err(faults) => tracing::error!("the log level stays as it is: {faults}"),
        }
        if let Some(Security::Tls(tls)) = security {
            match tls.reload() {
                Ok(()) => tracing::info!("the certificates were read again"),
                Err(error) => tracing::error!("the certificates stay as they are: {error}"),
            }
        }
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Reload,
    Stop,
}

/// The signals that an instance obeys.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    pub(super) async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}
