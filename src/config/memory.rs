//! How much memory the process may use: the machine's, or what its control group leaves it of that.

use std::{fs, path::Path};

/// What is assumed where the system does not say; only Linux is asked.
const UNKNOWN: u64 = 2 << 30;

/// The limits of this process, and the machine's memory; the least of them.
pub(super) fn available() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| machine(&text));
    let group = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let limits = (limit_files(&group).into_iter())
        .filter_map(|path| read(Path::new(&path)))
        .filter_map(|text| text.trim().parse().ok());
    limits.chain(machine).min().unwrap_or(UNKNOWN)
}

/// The memory of the machine, by `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Where limits may stand, by `/proc/self/cgroup`: of the process's group and all above it, in version 2 and in version 1. A
/// limit that is none is a word, or a number larger than any memory.
fn limit_files(groups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|it| it == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // In a container the path may be the one outside, which is not there inside; its root is.
        let groups = Path::new(group).ancestors();
        files.extend(groups.map(|group| {
            let group = group.to_string_lossy();
            format!("{root}{}/{name}", group.trim_end_matches('/'))
        }));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_tells_its_memory_in_kib() {
        let meminfo = "MemTotal:       24576000 kB\nMemFree:         1000 kB\n";

        assert_eq!(machine(meminfo), Some(24_576_000 << 10));
        assert_eq!(machine("MemTotal: much"), None);
    }

    #[test]
    fn limits_of_all_groups_above_count() {
        assert_eq!(
            limit_files("0::/a/b\n"),
            [
                "/sys/fs/cgroup/a/b/memory.max",
                "/sys/fs/cgroup/a/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(
            limit_files("3:cpu,cpuacct:/x\n2:memory:/\n"),
            ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
    }

    #[test]
    fn there_is_some() {
        assert!(available() >= 64 << 20);
    }
}
