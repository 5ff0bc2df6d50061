//! What the system knows of this process, under the names that client libraries of Prometheus give it everywhere.
//!
//! It is read when it is asked for. Where there is no `/proc`, there are no such metrics.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// The kernel tells processes of time in hundredths of a second, whatever it counts in itself.
const TICKS_PER_SECOND: f64 = 100.0;

/// Prints `process_...`.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// Name, help, and what was read.
type Gauge = (&'static str, &'static str, f64);

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some((cpu_seconds, gauges)) = read() else {
            return Ok(());
        };
        encoder
            .encode_descriptor(
                "process_cpu_seconds",
                "Time of the processors that the process has taken, in seconds",
                None,
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, u64>(&cpu_seconds, None)?;
        for (name, help, value) in gauges {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&value)?;
        }
        Ok(())
    }
}

fn read() -> Option<(f64, [Gauge; 6])> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the process stands in brackets, and may have any characters in it.
    let (_, behind_name) = stat.rsplit_once(')')?;
    let fields: Vec<f64> = (behind_name.split_ascii_whitespace().skip(1))
        .map_while(|field| field.parse().ok())
        .collect();
    // By their numbers in proc(5), of which the fourth is the first here.
    let field = |number: usize| fields.get(number - 4).copied();
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let files = (limits.lines()).find_map(|line| line.strip_prefix("Max open files"))?;
    let files = files.split_ascii_whitespace().next()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let booted = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let booted: f64 = booted.parse().ok()?;
    // The look itself has one open.
    let open = fs::read_dir("/proc/self/fd").ok()?.skip(1).count();
    let gauges = [
        (
            "process_start_time_seconds",
            "When the process began, in seconds since 1970",
            booted + field(22)? / TICKS_PER_SECOND,
        ),
        ("process_threads", "Threads now", field(20)?),
        (
            "process_virtual_memory_bytes",
            "Addresses that the process has taken",
            kibibytes("VmSize:")? * 1024.0,
        ),
        (
            "process_resident_memory_bytes",
            "Memory that the process occupies",
            kibibytes("VmRSS:")? * 1024.0,
        ),
        (
            "process_open_fds",
            "Files and sockets that are open now",
            open as f64,
        ),
        (
            "process_max_fds",
            "The most that may be open",
            files.parse().unwrap_or(f64::INFINITY),
        ),
    ];
    Some(((field(14)? + field(15)?) / TICKS_PER_SECOND, gauges))
}
