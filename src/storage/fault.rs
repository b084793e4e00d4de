//! The ends of an instance: a disk that fails (exit code 74), or data that contradict each other
//! (exit code 78). The thread that sees it first reports it here once. Nothing is retried on a
//! file whose sync failed, because the kernel may have dropped the very pages that it could not
//! write; and with two histories at hand nothing may be written at all.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

/// A write or sync that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct DiskFault {
    /// The operation, as a verb: "write", "sync", "create".
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// Data that contradict what this instance has applied. It reads as a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DataFault(String);

impl DataFault {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// A reason for the instance to end.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Disk(#[from] DiskFault),
    /// The data are refused.
    #[error("the data are refused: {0}")]
    Data(#[from] DataFault),
}

impl Fault {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Disk(fault) => fault.source.kind(),
            Self::Data(_) => io::ErrorKind::InvalidData,
        }
    }
}

/// The sending side, one for each thread that writes.
#[derive(Clone, Debug)]
pub struct FaultReporter(Arc<watch::Sender<Option<Arc<Fault>>>>);

/// The receiving side: the instance waits on it.
#[derive(Clone, Debug)]
pub struct FaultWatch(watch::Receiver<Option<Arc<Fault>>>);

/// Both sides of a new channel.
pub fn channel() -> (FaultReporter, FaultWatch) {
    let (sender, receiver) = watch::channel(None);
    (FaultReporter(Arc::new(sender)), FaultWatch(receiver))
}

impl FaultReporter {
    /// Reports a failure; only the first is kept. Gives back an error to hand on to openraft.
    pub fn report(&self, fault: impl Into<Fault>) -> io::Error {
        let fault = fault.into();
        let error = io::Error::new(fault.kind(), fault.to_string());
        self.0.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert_with(|| Arc::new(fault));
            first
        });
        error
    }

    /// Reports that data are refused; the text reads as a sentence, and says the way out.
    pub fn refuse(&self, why: impl ToString) -> io::Error {
        self.report(DataFault::new(why.to_string()))
    }
}

impl DiskFault {
    /// Returns the fault of an operation that has not ended for longer than it may take. Nothing
    /// can be concluded from it about what is on the disk.
    pub fn hung(path: PathBuf, pending: Duration) -> Self {
        let text = format!("the disk has not answered for {} s", pending.as_secs());
        let source = io::Error::new(io::ErrorKind::TimedOut, text);
        Self { operation: "write", path, source }
    }
}

impl FaultWatch {
    /// Returns the failure, if one was reported.
    pub fn current(&self) -> Option<Arc<Fault>> {
        self.0.borrow().clone()
    }

    /// Waits for the first failure; for ever if all reporters are gone without one.
    pub async fn wait(&mut self) -> Arc<Fault> {
        loop {
            if let Some(fault) = self.current() {
                return fault;
            }
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
