//! Lines on their way to standard error. A thread of its own writes them, so that a reader that
//! does not read, such as a stalled pipe, holds up no request and no stop: what has no room is
//! dropped and counted.

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

/// How often [`Queue::finish`] looks.
const LOOK: Duration = Duration::from_millis(2);

/// Takes lines and never waits.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    lines: Sender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    dropped: &'static AtomicU64,
}

impl Queue {
    /// A queue to `out`; lines that have no room are counted in `dropped`.
    ///
    /// # Errors
    /// If the process cannot have one more thread.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        dropped: &'static AtomicU64,
    ) -> io::Result<Self> {
        let (lines, queue) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let written = Arc::clone(&waiting);
        thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || write_all(out, &queue, &written, dropped))?;
        Ok(Self { lines, waiting, dropped })
    }

    /// Waits until all lines are written, for so long at the most.
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
) {
    let mut told = 0;
    while let Ok(line) = queue.recv() {
        // A reader that has closed its end wants no lines.
        let _ = out.write_all(&line);
        let left = waiting.fetch_sub(line.len(), Ordering::AcqRel) - line.len();
        let now = dropped.load(Ordering::Relaxed);
        if left == 0 && now > told {
            let lines = now - told;
            told = now;
            tracing::warn!(lines, "log lines were dropped, for standard error was not read");
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let before = self.waiting.fetch_add(line.len(), Ordering::AcqRel);
        let has_room = before + line.len() <= WAITING_BYTES_MAX;
        if !(has_room && self.lines.send(line.to_vec()).is_ok()) {
            self.waiting.fetch_sub(line.len(), Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
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

    /// What was written, once it may be.
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
        let mut queue = Queue::start(pipe.clone(), &DROPPED).unwrap();
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
}
