//! When a disk fails, the instance leaves service: whichever thread saw the failure reports it
//! here once, and the instance ends with exit code 74. Nothing is retried on a file whose sync
//! failed, for the kernel may have dropped the very pages that it could not write.

use std::{io, path::PathBuf, sync::Arc};

use tokio::sync::watch;

/// A write or sync that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct DiskFault {
    /// What was tried, as a verb: "write", "sync", "create".
    pub operation: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// The sending side, one for each thread that writes.
#[derive(Clone, Debug)]
pub struct FaultReporter(Arc<watch::Sender<Option<Arc<DiskFault>>>>);

/// The receiving side: the instance waits on it.
#[derive(Clone, Debug)]
pub struct FaultWatch(watch::Receiver<Option<Arc<DiskFault>>>);

/// Both sides of a new channel.
pub fn channel() -> (FaultReporter, FaultWatch) {
    let (sender, receiver) = watch::channel(None);
    (FaultReporter(Arc::new(sender)), FaultWatch(receiver))
}

impl FaultReporter {
    /// Reports a failure; only the first is kept. Gives back an error to hand on to openraft.
    pub fn report(&self, fault: DiskFault) -> io::Error {
        let error = io::Error::new(fault.source.kind(), fault.to_string());
        self.0.send_if_modified(|slot| {
            let first = slot.is_none();
            slot.get_or_insert_with(|| Arc::new(fault));
            first
        });
        error
    }
}

impl FaultWatch {
    /// The failure, if one was reported.
    pub fn current(&self) -> Option<Arc<DiskFault>> {
        self.0.borrow().clone()
    }

    /// Waits for the first failure; for ever if all reporters are gone without one.
    pub async fn wait(&mut self) -> Arc<DiskFault> {
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
