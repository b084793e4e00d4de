//! The process, as the system sees it.

use std::io;

/// Raises the limit of open files as far as the system lets the process: shells hand out few
/// descriptors by default, and allow many more to a process that asks. Windows has no such limit.
///
/// # Errors
/// If the limit stays as it is.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    system::raise_descriptor_limit()
}

/// Returns the number of files that the process may have open; [`usize::MAX`] without a limit.
pub(crate) fn descriptors_max() -> usize {
    system::descriptors_max().unwrap_or(usize::MAX)
}

/// Returns the metrics of the process itself: its time, memory and descriptors, from `/proc`. Only
/// Linux has that; elsewhere `/metrics` has no line named `process_*`.
pub(crate) fn figures() -> Vec<prometheus::proto::MetricFamily> {
    #[cfg(target_os = "linux")]
    return prometheus::core::Collector::collect(
        &prometheus::process_collector::ProcessCollector::for_self(),
    );
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

#[cfg(unix)]
mod system {
    use std::io;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    /// macOS tells a process that it may have any number, and refuses more than this (`OPEN_MAX`).
    const APPLE_DESCRIPTORS_MAX: u64 = 10_240;

    pub(super) fn raise_descriptor_limit() -> io::Result<()> {
        let limit = getrlimit(Resource::Nofile);
        let wanted = match limit.maximum {
            None if cfg!(target_vendor = "apple") => Some(APPLE_DESCRIPTORS_MAX),
            maximum => maximum,
        };
        let is_enough = limit.current.is_none() || wanted.is_some_and(|w| limit.current >= Some(w));
        if !is_enough {
            setrlimit(Resource::Nofile, Rlimit { current: wanted, ..limit })?;
        }
        Ok(())
    }

    pub(super) fn descriptors_max() -> Option<usize> {
        getrlimit(Resource::Nofile).current?.try_into().ok()
    }
}

#[cfg(windows)]
mod system {
    use std::io;

    #[expect(clippy::unnecessary_wraps, reason = "other systems may refuse it")]
    pub(super) fn raise_descriptor_limit() -> io::Result<()> {
        Ok(())
    }

    pub(super) fn descriptors_max() -> Option<usize> {
        None
    }
}

/// Figures of other processes, for tests; they are read from `/proc`, so only Linux has them.
#[cfg(test)]
pub(crate) mod of {
    use std::fs;

    /// Returns the processor time of a process, in ticks.
    pub(crate) fn cpu_ticks(process: u32) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Returns the resident memory of a process, in KiB.
    pub(crate) fn resident_kib(process: u32) -> usize {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_limit_of_open_files_is_what_the_kernel_says() {
        raise_descriptor_limit().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let soft = line.split_whitespace().nth(3).unwrap();
        assert_eq!(soft.parse().unwrap_or(usize::MAX), descriptors_max());
        assert!(figures().iter().any(|family| family.name() == "process_open_fds"));
    }
}
