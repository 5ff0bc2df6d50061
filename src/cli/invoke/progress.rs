//! How far a call is: a line on the terminal that is written anew several times a second, and metadata for those who ask.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    io::{IsTerminal, stderr},
    time::Duration,
};

use tokio::time::{Instant, interval_at};

use crate::cli::exit::visible;

/// How often the line is written. It does not appear before that: what is over at once needs none.
const REDRAW: Duration = Duration::from_millis(250);

/// The columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

const ERASE: &str = "\r\x1b[K";

/// Counts what passes, and shows it.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    verbose: bool,
    started: Instant,
    drawn: Cell<bool>,
    state: RefCell<State>,
}

/// How far a call is.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    sent: u64,
    received: u64,
    to_send: Option<u64>,
    to_receive: Option<u64>,
}

// === impl Progress ===

impl Progress {
    /// It is shown on a terminal, and then only if it is wanted.
    pub(super) fn new(wanted: bool, verbose: bool, to_send: Option<u64>) -> Self {
        Self {
            shown: wanted && stderr().is_terminal(),
            verbose,
            started: Instant::now(),
            drawn: Cell::new(false),
            state: RefCell::new(State {
                to_send: to_send.filter(|&size| size > 0),
                ..State::default()
            }),
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.state.borrow_mut().sent += bytes as u64;
    }

    pub(super) fn received(&self, bytes: usize) {
        self.state.borrow_mut().received += bytes as u64;
    }

    /// What the server says of its answer. Its size is told by `size`, if the server knows it.
    pub(super) fn told(&self, metadata: &BTreeMap<String, String>) {
        let size = metadata.get("size").and_then(|size| size.parse().ok());
        if size.is_some() {
            self.state.borrow_mut().to_receive = size;
        }
        if !self.verbose {
            return;
        }
        self.erase();
        for (key, value) in metadata {
            eprintln!("{}: {}", visible(key), visible(value));
        }
    }

    /// Shows the line for as long as it is polled.
    pub(super) async fn show(&self) -> Infallible {
        if !self.shown {
            return std::future::pending().await;
        }
        let mut ticks = interval_at(self.started + REDRAW, REDRAW);
        loop {
            ticks.tick().await;
            self.draw("");
        }
    }

    /// The call is over. What it has come to stays on the terminal if it went well.
    pub(super) fn end(&self, well: bool) {
        match well && self.drawn.get() {
            true => self.draw("\n"),
            false => self.erase(),
        }
    }

    fn draw(&self, end: &str) {
        let columns = terminal_size::terminal_size_of(stderr())
            .map_or(COLUMNS, |(width, _)| usize::from(width.0));
        let line = self.state.borrow().line(self.started.elapsed(), columns);
        eprint!("{ERASE}{line}{end}");
        self.drawn.set(true);
    }

    fn erase(&self) {
        if self.drawn.get() {
            eprint!("{ERASE}");
        }
    }
}

// === impl State ===

impl State {
    /// The line after so long, on a terminal with so many columns.
    fn line(&self, elapsed: Duration, columns: usize) -> String {
        /// Between the brackets.
        const BAR: u64 = 12;

        let seconds = elapsed.as_secs_f64().max(0.001);
        // What is uploaded has a size more often, and then the answer is the lesser part.
        let (done, all) = match (self.to_send, self.to_receive) {
            (Some(all), _) if self.sent < all || self.to_receive.is_none() => {
                (self.sent, Some(all))
            }
            (_, Some(all)) => (self.received, Some(all)),
            _ => (self.sent.max(self.received), None),
        };
        let rate = done as f64 / seconds;
        let mut bar = String::new();
        let mut line = format!("up {}, down {}", size(self.sent), size(self.received));
        let _ = write!(line, ", {}/s", size(rate as u64));
        if let Some(all) = all.filter(|&all| all > 0) {
            let done = done.min(all);
            let part = |of: u64| (u128::from(done) * u128::from(of) / u128::from(all)) as u64;
            let full = "#".repeat(part(BAR) as usize);
            bar = format!("{:3}% [{full:-<12}] ", part(100));
            if done < all && rate >= 1.0 {
                let left = ((all - done) as f64 / rate).ceil() as u64;
                let _ = write!(line, ", {} left", clock(left));
            }
        }
        // One column stays free, or some terminals would begin another line.
        let room = columns.saturating_sub(1);
        if bar.len() + line.len() <= room {
            line.insert_str(0, &bar);
        }
        line.truncate(room);
        line
    }
}

/// `1.5 MiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];

    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// `1:02:03`, or `2:03`.
fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn state(sent: u64, received: u64, to_send: Option<u64>, to_receive: Option<u64>) -> State {
        State {
            sent,
            received,
            to_send,
            to_receive,
        }
    }

    fn line(state: State, seconds: u64) -> String {
        state.line(Duration::from_secs(seconds), 120)
    }

    #[test]
    fn upload_of_a_known_size_has_a_bar_and_the_time_left() {
        assert_eq!(
            line(state(5 * MIB, 100, Some(20 * MIB), None), 5),
            " 25% [###---------] up 5.0 MiB, down 100 B, 1.0 MiB/s, 0:15 left"
        );
        assert_eq!(
            line(state(20 * MIB, 0, Some(20 * MIB), None), 10),
            "100% [############] up 20.0 MiB, down 0 B, 2.0 MiB/s"
        );
    }

    #[test]
    fn download_whose_size_was_told_has_them_too() {
        assert_eq!(
            line(state(0, MIB, None, Some(3600 * MIB)), 1),
            "  0% [------------] up 0 B, down 1.0 MiB, 1.0 MiB/s, 59:59 left"
        );
    }

    #[test]
    fn answer_counts_once_all_is_sent() {
        let line = line(state(MIB, 5 * MIB, Some(MIB), Some(10 * MIB)), 5);

        assert!(line.starts_with(" 50% [######------] "), "{line}");
    }

    #[test]
    fn unknown_sizes_have_neither() {
        assert_eq!(
            line(state(1536, 2048, None, None), 1),
            "up 1.5 KiB, down 2.0 KiB, 2.0 KiB/s"
        );
    }

    #[test]
    fn nothing_moved_yet_tells_no_time() {
        assert_eq!(
            line(state(0, 0, Some(MIB), None), 0),
            "  0% [------------] up 0 B, down 0 B, 0 B/s"
        );
    }

    #[test]
    fn line_fits_into_any_terminal() {
        let state = state(u64::MAX, u64::MAX / 3, Some(u64::MAX), None);
        for columns in 0..150 {
            let line = state.line(Duration::from_secs(7), columns);
            assert!(line.len() <= columns.saturating_sub(1), "{columns}: {line}");
        }
        let narrow = state.line(Duration::from_secs(7), 60);
        assert!(narrow.starts_with("up "), "{narrow}");
    }

    #[test]
    fn widest_line_of_less_than_an_hour_fits_into_a_common_terminal_with_its_bar() {
        let state = state(1023 * MIB, 1023 * MIB, Some(2046 * MIB), None);
        let line = state.line(Duration::from_secs(3599), COLUMNS);

        assert!(
            line.starts_with(" 50% [######------] up 1023.0 MiB, "),
            "{line}"
        );
        assert!(line.ends_with(", 59:59 left"), "{line}");
    }

    #[test]
    fn sizes_and_times_are_written_for_people() {
        let sizes = [0, 1023, 1024, 1536, MIB - 1, MIB, 1 << 40].map(size);
        let expected = [
            "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "1.0 TiB",
        ];
        assert_eq!(sizes, expected);
        assert_eq!(
            [0, 59, 60, 3599, 3600, 3723].map(clock),
            ["0:00", "0:59", "1:00", "59:59", "1:00:00", "1:02:03"]
        );
    }
}
