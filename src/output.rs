//! Lines for stdout and stderr, written by a thread of their own.
//!
//! A terminal that is stopped, a pipe that nobody reads, a full disk or a closed descriptor must neither block nor
//! end a node: a line that cannot be queued or written is dropped, and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the stream. Overflow policy: the line is dropped and counted.
const LINES_MAX: usize = 1024;

/// Lines dropped by all outputs of the process.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines the process has dropped because a stream did not take them.
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

enum Job {
    Line(Vec<u8>),
    /// Everything before has been written.
    Flush(SyncSender<()>),
}

/// The way to one stream. Cheap to clone.
#[derive(Clone)]
pub struct Output(SyncSender<Job>);

impl Output {
    /// Starts the thread that writes to `stream`; it ends with the process, or with the last clone.
    pub fn start(name: &str, stream: impl Write + Send + 'static) -> io::Result<Self> {
        let (jobs, queue) = sync_channel(LINES_MAX);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || write_all(queue, stream))?;
        Ok(Self(jobs))
    }

    /// Queues a line, which brings its line end. Never waits.
    pub fn line(&self, line: Vec<u8>) {
        if self.0.try_send(Job::Line(line)).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was queued is written, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Job::Flush(done)).is_ok() {
            // Too late or too long: the process ends all the same.
            let _ = written.recv_timeout(patience);
        }
    }
}

fn write_all(queue: Receiver<Job>, mut stream: impl Write) {
    for job in queue {
        match job {
            Job::Line(line) => {
                if stream.write_all(&line).and_then(|()| stream.flush()).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Nobody may wait any more.
            Job::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// One event of the log, queued as a whole when it is dropped.
pub struct LineWriter<'a> {
    output: &'a Output,
    line: Vec<u8>,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter<'_> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.output.line(std::mem::take(&mut self.line));
        }
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { output: self, line: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_whole_and_in_order() {
        let written = Shared::default();
        let output = Output::start("test", written.clone()).unwrap();
        for part in ["one\n", "two\n"] {
            let mut writer = output.make_writer();
            part.bytes().for_each(|byte| writer.write_all(&[byte]).unwrap());
        }
        output.flush(Duration::from_secs(10));
        assert_eq!(*written.0.lock().unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn a_stream_that_takes_nothing_costs_lines_and_no_time() {
        struct Stuck(Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, held) = sync_channel(0);
        let output = Output::start("test", Stuck(held)).unwrap();
        let before = dropped_lines();
        for _ in 0..LINES_MAX * 2 {
            output.line(b"x\n".to_vec());
        }
        assert!(dropped_lines() - before >= LINES_MAX as u64 - 1);
        output.flush(Duration::from_millis(1));
        drop(release);
        output.flush(Duration::from_secs(10));
    }
}
