//! Lines on their way to standard error or standard output. A thread of its own writes them, so
//! that a reader that does not read, such as a stalled pipe, holds up no request and no stop: what
//! has no room is dropped and counted, and so is what cannot be written.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use crate::clock;

/// Bytes of lines that wait to be written.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// Interval between looks of [`Queue::finish`].
const LOOK: Duration = Duration::from_millis(2);

/// Takes lines and never waits.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    lines: Sender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    dropped: &'static AtomicU64,
}

impl Queue {
    /// Creates a queue to `out`; lines that have no room, or cannot be written, are counted in
    /// `dropped`, and `failed` hears why they cannot.
    ///
    /// # Errors
    /// If the process cannot have one more thread.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        dropped: &'static AtomicU64,
        failed: fn(&io::Error),
    ) -> io::Result<Self> {
        let (lines, queue) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&waiting);
        thread::Builder::new()
            .name("lines".to_owned())
            .spawn(move || write_all(out, &queue, &written, dropped, failed))?;
        Ok(Self { lines, waiting, dropped })
    }

    /// Takes a line, or drops it.
    pub(super) fn put(&self, line: &[u8]) {
        let before = self.waiting.fetch_add(line.len(), Ordering::AcqRel);
        let has_room = before + line.len() <= WAITING_BYTES_MAX;
        if !(has_room && self.lines.send(line.to_vec()).is_ok()) {
            self.waiting.fetch_sub(line.len(), Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines are written, for this time at most.
    pub(super) fn finish(&self, within: Duration) {
        let deadline = clock::now() + within;
        while self.waiting.load(Ordering::Acquire) > 0 && clock::now() < deadline {
            thread::sleep(LOOK);
        }
    }
}

fn write_all(
    mut out: impl Write,
    queue: &Receiver<Vec<u8>>,
    waiting: &AtomicUsize,
    dropped: &AtomicU64,
    failed: fn(&io::Error),
) {
    let mut told = 0;
    while let Ok(line) = queue.recv() {
        let outcome = out.write_all(&line).and_then(|()| out.flush());
        if let Err(error) = &outcome {
            dropped.fetch_add(1, Ordering::Relaxed);
            failed(error);
        }
        let left = waiting.fetch_sub(line.len(), Ordering::AcqRel) - line.len();
        let now = dropped.load(Ordering::Relaxed);
        // While no line gets through, this one would not either.
        if outcome.is_ok() && left == 0 && now > told {
            let lines = now - told;
            told = now;
            tracing::warn!(
                lines,
                "log lines were dropped because standard error did not take them"
            );
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// The bytes written, once they may be.
    #[derive(Clone, Default)]
    struct Pipe(Arc<Mutex<Vec<u8>>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_no_time() {
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        let pipe = Pipe::default();
        let mut queue = Queue::start(pipe.clone(), &DROPPED, |_| {}).unwrap();
        let line = [b'x'; 1024];
        let stalled = pipe.0.lock().unwrap();
        let fit = WAITING_BYTES_MAX / line.len();
        for _ in 0..fit + 7 {
            assert_eq!(queue.write(&line).unwrap(), line.len());
        }
        assert_eq!(DROPPED.load(Ordering::Relaxed), 7);
        queue.finish(Duration::from_millis(1));
        drop(stalled);
        queue.finish(Duration::from_secs(30));
        assert_eq!(pipe.0.lock().unwrap().len(), fit * line.len(), "what had room is written");
    }

    /// Takes lines only while it has room, as a full disk does.
    #[derive(Clone, Default)]
    struct Disk {
        room: Arc<AtomicUsize>,
        pipe: Pipe,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room.load(Ordering::Relaxed) == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.pipe.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        static DROPPED: AtomicU64 = AtomicU64::new(0);
        static FAILED: AtomicU64 = AtomicU64::new(0);
        let disk = Disk::default();
        let failed = |error: &io::Error| {
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            FAILED.fetch_add(1, Ordering::Relaxed);
        };
        let queue = Queue::start(disk.clone(), &DROPPED, failed).unwrap();
        for _ in 0..3 {
            queue.put(b"line\n");
        }
        queue.finish(Duration::from_secs(30));
        assert_eq!([&DROPPED, &FAILED].map(|count| count.load(Ordering::Relaxed)), [3, 3]);
        disk.room.store(1, Ordering::Relaxed);
        queue.put(b"line\n");
        queue.finish(Duration::from_secs(30));
        assert_eq!(DROPPED.load(Ordering::Relaxed), 3);
        assert_eq!(*disk.pipe.0.lock().unwrap(), b"line\n");
    }
}
