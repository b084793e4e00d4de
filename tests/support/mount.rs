//! File systems of a test's own, which no other process sees, and whose power can be cut.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// Has ext4 drop everything that is not on the disk yet, as a power cut does. All file systems are
/// opened before the first is cut, so that they are cut at the same moment, as far as there is one.
const CUT_POWER: &str = "
import fcntl, os, struct, sys
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587d, 2
for disk in [os.open(path, os.O_RDONLY) for path in sys.argv[1:]]:
    fcntl.ioctl(disk, EXT4_IOC_SHUTDOWN, struct.pack('I', NO_LOG_FLUSH))
";

/// A file system of its own in a mount namespace of its own, which ends with this.
#[derive(Debug)]
pub(crate) struct Mount {
    holder: Child,
    dir: TempDir,
    /// `nsenter` into the namespace.
    enter: Vec<String>,
}

impl Mount {
    /// Mounts by a shell command, which finds the mount point in `$0`.
    pub(crate) fn new(mount: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let script = format!("{mount}\necho mounted\nread _");
        let (holder, line) = keep(&["unshare", "-m", "sh", "-ec", &script, path(dir.path())]);
        assert_eq!(line, "mounted\n", "{mount}");
        let namespace = format!("--mount=/proc/{}/ns/mnt", holder.id());
        Self { holder, dir, enter: vec!["nsenter".to_owned(), namespace] }
    }

    /// An ext4 file system in a file.
    pub(crate) fn ext4(image: &Path) -> Self {
        let file = fs::File::create(image).unwrap();
        file.set_len(64 << 20).unwrap();
        run(&["mkfs.ext4", "-q", "-F", path(image)]);
        Self::new(&format!("mount -o loop {} \"$0\"", path(image)))
    }

    /// Where the service keeps its data, as it is called within.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A program that goes into the namespace and does this there.
    pub(crate) fn wrapper<'a>(&'a self, then: &[&'a str]) -> Vec<&'a str> {
        self.enter.iter().map(String::as_str).chain(then.iter().copied()).collect()
    }

    /// Runs a shell command within, with the mount point in `$0`.
    pub(crate) fn run(&self, command: &str) {
        run(&self.wrapper(&["sh", "-ec", command, path(self.dir.path())]));
    }

    /// Loses what is not on the disk. Afterwards the file system knows only errors.
    pub(crate) fn cut_power(&self) {
        cut_power_of([self]);
    }

    /// Has every write wait, as a snapshot of the volume or a storage network that is gone does.
    pub(crate) fn freeze(&self) -> Frozen {
        // Any end of the test closes the pipe that is read from.
        let script = "fsfreeze -f \"$0\"; echo frozen; read _ || true; fsfreeze -u \"$0\"";
        let command = self.wrapper(&["sh", "-ec", script, path(self.dir.path())]);
        let (keeper, line) = keep(&command);
        let frozen = Frozen(keeper);
        assert_eq!(line, "frozen\n");
        frozen
    }

    /// Mounts again what the disk has.
    pub(crate) fn restore_power(&self, image: &Path) {
        self.run(&format!("umount \"$0\"; mount -o loop {} \"$0\"", path(image)));
    }
}

/// As [`Mount::cut_power`], of several at once.
pub(crate) fn cut_power_of<'a>(mounts: impl IntoIterator<Item = &'a Mount>) {
    // The root of a process in the namespace shows what is mounted there.
    let seen =
        |mount: &Mount| format!("/proc/{}/root{}", mount.holder.id(), mount.dir.path().display());
    let paths: Vec<String> = mounts.into_iter().map(seen).collect();
    let command = ["python3", "-c", CUT_POWER].into_iter().chain(paths.iter().map(String::as_str));
    run(&command.collect::<Vec<_>>());
}

/// A file system on which all writes wait until this is dropped.
#[derive(Debug)]
pub(crate) struct Frozen(Child);

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let status = self.0.wait().unwrap();
        assert!(std::thread::panicking() || status.success(), "it is frozen still: {status}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The namespace ends with its last process, and the mounts with it.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A path as an argument.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Runs a command, which must succeed.
pub(crate) fn run(command: &[&str]) {
    let status = Command::new(command[0]).args(&command[1..]).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// Starts a program that does something, says so in a line, and keeps it so until its input ends.
fn keep(command: &[&str]) -> (Child, String) {
    let mut keeper = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(keeper.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (keeper, line)
}
