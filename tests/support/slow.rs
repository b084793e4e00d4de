//! Syncs that take as long as a test wants, and those that never end. A library that stands before
//! the C library waits before each; no other call is touched, and a process whose syncs hang ends
//! like any other. (A tracer that delays calls holds up the end of the process, and the calls of
//! its other threads.)

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and says why")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A time that no test waits for.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(3600);

/// Looks into a file, which may change meanwhile: how many milliseconds the sync takes, and what
/// the file's path must contain.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long wanted(const char *path) {
    char text[256] = {0}, of[200] = {0};
    long time = 0;
    int file = open(getenv("SYNCS_TAKE"), O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    long count = read(file, text, sizeof text - 1);
    close(file);
    if (count <= 0 || sscanf(text, "%ld %199s", &time, of) < 1) return 0;
    return strstr(path, of) ? time : 0;
}

static void take_time(int file) {
    struct timespec piece = {0, 5000000};
    char link[64], path[512] = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    if (readlink(link, path, sizeof path - 1) < 0) return;
    for (long taken = 0; taken < wanted(path); taken += 5) nanosleep(&piece, 0);
}

int fsync(int file) { take_time(file); return syscall(SYS_fsync, file); }
int fdatasync(int file) { take_time(file); return syscall(SYS_fdatasync, file); }
"#;

/// Compiles the library in a folder, and returns where it is.
pub(crate) fn make_library(dir: &Path) -> PathBuf {
    let (source, library) = (dir.join("slow.c"), dir.join("slow.so"));
    fs::write(&source, LIBRARY).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]);
    assert!(compiler.status().unwrap().success());
    library
}

/// The syncs of one instance.
#[derive(Debug)]
pub(crate) struct Syncs {
    library: PathBuf,
    /// Where the time stands that they take.
    dir: PathBuf,
}

impl Syncs {
    /// Syncs that take no time for now. The time stands in `dir`, which is there.
    pub(crate) fn new(library: &Path, dir: &Path) -> Self {
        Self { library: library.to_owned(), dir: dir.to_owned() }
    }

    /// What the instance is started through.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        let (library, takes) = (self.library.display(), self.dir.join("takes"));
        let set = [format!("LD_PRELOAD={library}"), format!("SYNCS_TAKE={}", takes.display())];
        ["env".to_owned()].into_iter().chain(set).collect()
    }

    /// From now on each sync takes this time, those included that have begun.
    pub(crate) fn take(&self, time: Duration) {
        self.take_of("/", time);
    }

    /// As [`Self::take`], for files whose path contains this; others take no time.
    pub(crate) fn take_of(&self, file: &str, time: Duration) {
        let draft = self.dir.join("draft");
        fs::write(&draft, format!("{} {file}", time.as_millis())).unwrap();
        fs::rename(draft, self.dir.join("takes")).unwrap();
    }
}
