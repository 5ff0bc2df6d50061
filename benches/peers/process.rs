//! Child processes, and what `/proc` says of them.
//!
//! **Why.** The processor time of the proxy alone is the one figure that other work on the machine does not blur.
//!
//! **How.** A proxy is its first process and all that descend from it. Time comes from each thread's `schedstat`, in
//! nanoseconds, or from `stat`, in hundredths of a second, if that is more: threads that have ended are lost to `schedstat`, and some
//! kernels have none.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::grpc::Failure;

/// The unit of `stat`, the same on every Linux that user space sees.
const TICK: Duration = Duration::from_millis(10);

/// Memory of one process and its descendants, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) peak: u64,
}

/// A command with as many open files as the system allows, and which ends with its parent's handle.
///
/// The shell only raises the limit: it becomes the program itself, under the same process id.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", r#"ulimit -n "$(ulimit -H -n)"; exec "$0" "$@""#])
        .arg(program)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Ends a child and waits until it is gone.
pub(crate) async fn end(mut child: Child) {
    // It may have ended by itself, which is as good.
    let _ = child.kill().await;
}

/// Processor time, user and system, that the process and its descendants have used.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration, Failure> {
    family(pid)?.into_iter().map(process_cpu_time).sum()
}

/// Memory that the process and its descendants hold, and the most they ever held.
pub(crate) fn memory(pid: u32) -> Result<Memory, Failure> {
    let mut memory = Memory::default();
    for pid in family(pid)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        memory.resident += kib_field(&status, "VmRSS:").ok_or("no VmRSS")? * 1024;
        memory.peak += kib_field(&status, "VmHWM:").ok_or("no VmHWM")? * 1024;
    }
    Ok(memory)
}

fn kib_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn process_cpu_time(pid: u32) -> Result<Duration, Failure> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // Threads come and go while they are listed.
        let Ok(schedstat) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let running = schedstat.split(' ').next().ok_or("schedstat is empty")?;
        nanos += running.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos).max(process_cpu_time_in_ticks(pid)?))
}

fn process_cpu_time_in_ticks(pid: u32) -> Result<Duration, Failure> {
    let fields = stat_fields(pid)?;
    let field = |index: usize| -> Result<u32, Failure> {
        Ok(fields.get(index).ok_or("stat is short")?.parse()?)
    };
    // utime and stime, fields 14 and 15 of proc(5).
    Ok(TICK * (field(11)? + field(12)?))
}

/// Fields of `stat` from the third on: those after the name, which may hold anything.
fn stat_fields(pid: u32) -> io::Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_whitespace().map(str::to_owned).collect())
}

/// The process and all that descend from it.
fn family(pid: u32) -> Result<Vec<u32>, Failure> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // Processes come and go while they are listed.
        let Ok(fields) = stat_fields(child) else {
            continue;
        };
        if let Some(parent) = fields.get(1).and_then(|parent| parent.parse::<u32>().ok()) {
            parents.push((child, parent));
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(child, _)| *child),
        );
        next += 1;
    }
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();

        assert!(cpu_time(pid).unwrap() > Duration::ZERO);
        assert!(memory(pid).unwrap().peak >= memory(pid).unwrap().resident / 2);
    }
}
