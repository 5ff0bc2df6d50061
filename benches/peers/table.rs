//! The table: samples in, medians with their spread and their ratio out: to Envoy's, or of a binding's to those of the plain
//! route.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::measure::Measurement;
use crate::process::Memory;
use crate::proxy::Kind;
use crate::work::Work;

/// Widest reason for a failure that still fits into a cell.
const REASON_MAX: usize = 70;

/// A row: what was measured, in which unit. The order is the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    /// `None` for what is read after the first four workloads together.
    after: Option<Work>,
    quantity: Quantity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Quantity {
    CpuMicros,
    CpuPerGigabyte,
    MedianMicros,
    P99Micros,
    ResidentBefore,
    Resident,
    PeakResident,
    Growth,
    PerStream,
    Opened,
    Refused,
    LastSeconds,
    CpuSeconds,
}

/// All samples of a run.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Kind>,
    samples: BTreeMap<(Row, Kind), Vec<f64>>,
    failures: BTreeMap<(Row, Kind), String>,
}

// === impl Table ===

impl Table {
    pub(crate) fn new(columns: &[Kind]) -> Self {
        Self {
            columns: columns.to_vec(),
            samples: BTreeMap::new(),
            failures: BTreeMap::new(),
        }
    }

    /// Takes what one measurement says about its workload.
    pub(crate) fn record(&mut self, work: Work, kind: Kind, measurement: &Measurement) {
        for &quantity in quantities(work) {
            let row = Row {
                after: Some(work),
                quantity,
            };
            self.samples
                .entry((row, kind))
                .or_default()
                .push(value(quantity, measurement));
        }
    }

    /// Takes the memory of a proxy that has done all the workloads before the memory ones.
    pub(crate) fn record_memory(&mut self, kind: Kind, memory: Memory) {
        for (quantity, bytes) in [
            (Quantity::Resident, memory.resident),
            (Quantity::PeakResident, memory.peak),
        ] {
            let row = Row {
                after: None,
                quantity,
            };
            self.samples
                .entry((row, kind))
                .or_default()
                .push(mebibytes(bytes));
        }
    }

    /// Takes a measurement that came to nothing.
    pub(crate) fn fail(&mut self, work: Work, kind: Kind, reason: &str) {
        let reason: String = reason
            .chars()
            .filter(|c| *c != '|')
            .take(REASON_MAX)
            .collect();
        for &quantity in quantities(work) {
            self.failures.insert(
                (
                    Row {
                        after: Some(work),
                        quantity,
                    },
                    kind,
                ),
                reason.clone(),
            );
        }
    }

    /// The whole table, as Markdown or with columns padded for a terminal.
    pub(crate) fn render(&self, markdown: bool) -> String {
        let header = std::iter::once("work".to_owned())
            .chain(self.columns.iter().map(|kind| kind.name().to_owned()));
        let mut grid = vec![header.collect::<Vec<_>>()];
        for row in self.rows() {
            let cells = self.columns.iter().map(|kind| self.cell(row, *kind));
            grid.push(std::iter::once(row.title()).chain(cells).collect());
        }
        if markdown {
            render_markdown(&grid)
        } else {
            render_padded(&grid)
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .samples
            .keys()
            .chain(self.failures.keys())
            .map(|(row, _)| *row)
            .collect();
        // What is read after the first four stands below them.
        rows.sort_by_key(|row| {
            (
                row.after.unwrap_or(Work::PingPong),
                row.after.is_none(),
                row.quantity,
            )
        });
        rows.dedup();
        rows
    }

    fn cell(&self, row: Row, kind: Kind) -> String {
        if let Some(reason) = self.failures.get(&(row, kind)) {
            return format!("failed: {reason}");
        }
        let Some((median, low, high)) = self.summary(row, kind) else {
            return "-".into();
        };
        let mut cell = number(median);
        if let Some(plain) = row.after.and_then(Work::plain) {
            if let Some(ratio) = self.ratio_to_plain(row, plain, kind) {
                let _ = write!(cell, " ({ratio:.2}x)");
            }
        } else if kind != Kind::Envoy
            && let Some((envoy, ..)) = self.summary(row, Kind::Envoy)
        {
            let _ = write!(cell, " ({:.2}x)", median / envoy);
        }
        if low < high {
            let _ = write!(cell, " {}..{}", number(low), number(high));
        }
        cell
    }

    /// Median, least and greatest sample.
    fn summary(&self, row: Row, kind: Kind) -> Option<(f64, f64, f64)> {
        summary(self.samples.get(&(row, kind))?.clone())
    }

    /// The median of the rounds' ratios: the two of a round were taken one after the other, so a busy minute hit both.
    fn ratio_to_plain(&self, row: Row, plain: Work, kind: Kind) -> Option<f64> {
        let plain = Row {
            after: Some(plain),
            ..row
        };
        let samples = self.samples.get(&(row, kind))?;
        let ratios = samples.iter().zip(self.samples.get(&(plain, kind))?);
        let (median, ..) = summary(ratios.map(|(sample, plain)| sample / plain).collect())?;
        Some(median)
    }
}

/// Median, least and greatest sample.
fn summary(mut samples: Vec<f64>) -> Option<(f64, f64, f64)> {
    samples.sort_by(f64::total_cmp);
    let median = samples.get(samples.len() / 2)?;
    Some((*median, *samples.first()?, *samples.last()?))
}

fn quantities(work: Work) -> &'static [Quantity] {
    match work {
        Work::Unary
        | Work::PingPong
        | Work::Handshakes
        | Work::BindingPingPongPlain
        | Work::BindingPingPongDapr
        | Work::BindingPingPongComponent => &[
            Quantity::CpuMicros,
            Quantity::MedianMicros,
            Quantity::P99Micros,
        ],
        Work::Upload
        | Work::Download
        | Work::BindingUploadPlain
        | Work::BindingUploadDapr
        | Work::BindingUploadComponent
        | Work::ObjectPlain => &[Quantity::CpuPerGigabyte],
        Work::Uploads80 => &[Quantity::CpuPerGigabyte, Quantity::PeakResident],
        Work::IdleStreams | Work::IdleConnections => &[Quantity::PerStream],
        Work::Storm10k | Work::Storm100k => &[
            Quantity::Opened,
            Quantity::Refused,
            Quantity::LastSeconds,
            Quantity::CpuSeconds,
            Quantity::Resident,
            Quantity::PeakResident,
        ],
        Work::BindingFile
        | Work::BindingFileHttp
        | Work::ObjectFile
        | Work::ObjectFileHttp
        | Work::ObjectFileGet
        | Work::ObjectS3
        | Work::ObjectS3Get => &[
            Quantity::CpuPerGigabyte,
            Quantity::ResidentBefore,
            Quantity::Resident,
            Quantity::PeakResident,
            Quantity::Growth,
        ],
    }
}

fn value(quantity: Quantity, measurement: &Measurement) -> f64 {
    let Measurement {
        report,
        cpu,
        before,
        after,
    } = measurement;
    match quantity {
        Quantity::CpuMicros => cpu.as_secs_f64() * 1e6 / report.operations as f64,
        Quantity::CpuPerGigabyte => cpu.as_secs_f64() * 1e9 / report.bytes as f64,
        Quantity::MedianMicros => report.p50_ns as f64 / 1e3,
        Quantity::P99Micros => report.p99_ns as f64 / 1e3,
        Quantity::ResidentBefore => mebibytes(before.resident),
        Quantity::Resident => mebibytes(after.resident),
        Quantity::Growth => mebibytes(after.peak) - mebibytes(before.resident),
        Quantity::PeakResident => mebibytes(after.peak),
        Quantity::Opened => report.operations as f64,
        Quantity::Refused => report.refused as f64,
        Quantity::LastSeconds => report.last_ns as f64 / 1e9,
        Quantity::CpuSeconds => cpu.as_secs_f64(),
        Quantity::PerStream => {
            (after.resident as f64 - before.resident as f64) / 1024.0 / report.operations as f64
        }
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Three significant digits, and no more than the noise deserves.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn render_markdown(grid: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in grid.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
        }
    }
    text
}

fn render_padded(grid: &[Vec<String>]) -> String {
    let columns = grid.first().map_or(0, Vec::len);
    let width = |column: usize| {
        grid.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in grid {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

// === impl Row ===

impl Row {
    fn title(self) -> String {
        let what = match self.quantity {
            Quantity::CpuMicros if self.after == Some(Work::Unary) => "CPU us a call",
            Quantity::CpuMicros if self.after == Some(Work::Handshakes) => "CPU us a connection",
            Quantity::CpuMicros => "CPU us a message",
            Quantity::CpuPerGigabyte => "CPU s a GB",
            Quantity::MedianMicros => "p50 us",
            Quantity::P99Micros => "p99 us",
            Quantity::ResidentBefore => "RSS before, MiB",
            Quantity::Resident if self.after.is_some() => "RSS after, MiB",
            Quantity::Resident => "RSS, MiB",
            Quantity::Growth => "peak over before, MiB",
            Quantity::PeakResident => "peak RSS, MiB",
            Quantity::PerStream if self.after == Some(Work::IdleConnections) => "KiB a connection",
            Quantity::PerStream => "KiB a stream",
            Quantity::Opened => "streams open",
            Quantity::Refused => "streams refused",
            Quantity::LastSeconds => "until the last is open, s",
            Quantity::CpuSeconds => "CPU s",
        };
        format!("{}: {what}", self.after.map_or("after these", Work::name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Report;
    use std::time::Duration;

    fn micros(cpu: u64) -> Measurement {
        Measurement {
            report: Report {
                operations: 1,
                ..Report::default()
            },
            cpu: Duration::from_micros(cpu),
            before: Memory::default(),
            after: Memory::default(),
        }
    }

    #[test]
    fn cells_hold_median_ratio_and_spread() {
        let mut table = Table::new(&[Kind::Envoy, Kind::Nginx]);
        for cpu in [30, 10, 20] {
            table.record(Work::Unary, Kind::Envoy, &micros(cpu));
            table.record(Work::Unary, Kind::Nginx, &micros(2 * cpu));
        }

        let text = table.render(true);

        assert!(
            text.contains("| unary: CPU us a call | 20.0 10.0..30.0 | 40.0 (2.00x) 20.0..60.0 |"),
            "{text}"
        );
    }

    #[test]
    fn failure_is_said_in_its_cell_alone() {
        let mut table = Table::new(&[Kind::Envoy, Kind::Nginx]);
        table.record(Work::Upload, Kind::Envoy, &micros(1));
        table.fail(Work::Upload, Kind::Nginx, "ended");

        assert!(table.render(false).contains("failed: ended"));
        assert!(table.render(false).contains("upload: CPU s a GB"));
    }
}
