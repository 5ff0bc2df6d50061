//! Dapr's numbers of output bindings, so that its dashboards go on working.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Most operations that are told apart for one binding.
const OPERATIONS_MAX: usize = 64;
/// Most bytes of an operation's name that are kept.
const NAME_MAX: usize = 64;
/// What the rest of them is counted as.
const OTHER: &str = "other";

/// Dapr's default upper bounds, in milliseconds.
const BOUNDS: [u32; 34] = [
    1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400,
    500, 650, 800, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
];

/// What all workers have counted for one binding. Written once a stream, hence the lock.
///
/// The names of operations come from clients, and a name that is kept once is printed for ever. So only those are told apart
/// which the target is known to have, or, where nobody knows, which have succeeded there.
#[derive(Default)]
pub struct BindingStats(Mutex<Operations>);

#[derive(Clone, Default)]
struct Operations {
    by_name: BTreeMap<Arc<str>, [Series; 2]>,
    /// There are no others than those that are in `by_name`.
    known: bool,
}

/// One operation that ended one way.
#[derive(Clone)]
struct Series {
    count: u64,
    sum_ms: u64,
    buckets: [u64; BOUNDS.len()],
    beyond: u64,
}

/// The bindings, and what their metrics bear as labels.
pub(super) struct Bindings {
    app_id: String,
    namespace: String,
    all: Mutex<BTreeMap<String, Arc<BindingStats>>>,
}

// === impl BindingStats ===

impl BindingStats {
    /// Says which operations the target has; `None` if only trying can tell.
    pub fn know(&self, operations: Option<&[impl AsRef<str>]>) {
        let mut all = lock(&self.0);
        all.known = operations.is_some();
        for name in operations.unwrap_or_default() {
            all.tell_apart(cut(name.as_ref()));
        }
    }

    /// Counts a stream at its real end.
    pub(super) fn ended(&self, operation: &str, success: bool, elapsed: Duration) {
        let mut all = lock(&self.0);
        let mut name = cut(operation);
        if success && !all.known {
            all.tell_apart(name);
        }
        if !all.by_name.contains_key(name) {
            name = OTHER;
        }
        let series = match all.by_name.get_mut(name) {
            Some(series) => series,
            None => all.by_name.entry(name.into()).or_default(),
        };
        series[usize::from(success)].observe(elapsed);
    }
}

impl Operations {
    /// Counts an operation under its name from now on, if there is room.
    fn tell_apart(&mut self, name: &str) {
        if self.by_name.len() < OPERATIONS_MAX && !self.by_name.contains_key(name) {
            self.by_name.insert(name.into(), Default::default());
        }
    }
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_MAX)]
}

impl Default for Series {
    fn default() -> Self {
        Self {
            count: 0,
            sum_ms: 0,
            buckets: [0; BOUNDS.len()],
            beyond: 0,
        }
    }
}

impl Series {
    fn observe(&mut self, elapsed: Duration) {
        self.count += 1;
        // Dapr knows whole milliseconds only, and leaves out what took none.
        let elapsed = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        if elapsed > 0 {
            self.sum_ms = self.sum_ms.saturating_add(elapsed);
            let bucket = BOUNDS.iter().position(|bound| elapsed <= u64::from(*bound));
            *bucket.map_or(&mut self.beyond, |bucket| &mut self.buckets[bucket]) += 1;
        }
    }
}

impl fmt::Debug for BindingStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BindingStats({} operations)",
            lock(&self.0).by_name.len()
        )
    }
}

// === impl Bindings ===

impl Bindings {
    pub(super) fn new(app_id: String, namespace: String) -> Self {
        Self {
            app_id,
            namespace,
            all: Mutex::default(),
        }
    }

    pub(super) fn binding(&self, name: &str) -> Arc<BindingStats> {
        Arc::clone(lock(&self.all).entry(name.to_owned()).or_default())
    }

    pub(super) fn forget_unused(&self) {
        lock(&self.all).retain(|_, stats| Arc::strong_count(stats) > 1);
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = lock(&self.all).clone();
        // OpenMetrics has no counter whose name lacks `_total`, and Dapr's name lacks it; a reader that trusts the type
        // would refuse the whole page. Rates of an untyped number are computed all the same.
        let mut family = encoder.encode_descriptor(
            "dapr_component_output_binding_count",
            "Streams to a binding, by whether they ended with OK",
            None,
            MetricType::Unknown,
        )?;
        self.each(&all, |labels, series| {
            family.encode_family(labels)?.encode_gauge(&series.count)
        })?;

        let mut family = encoder.encode_descriptor(
            "dapr_component_output_binding_latencies",
            "Milliseconds from a stream's headers to its real end",
            None,
            MetricType::Histogram,
        )?;
        self.each(&all, |labels, series| {
            let bounds = BOUNDS.iter().map(|bound| f64::from(*bound));
            let mut buckets: Vec<(f64, u64)> = bounds.zip(series.buckets).collect();
            buckets.push((f64::INFINITY, series.beyond));
            let count = buckets.iter().map(|(_, count)| count).sum();
            if count == 0 {
                return Ok(());
            }
            family
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(series.sum_ms as f64, count, &buckets, None)
        })
    }

    /// Visits what has been counted at least once.
    fn each(
        &self,
        all: &BTreeMap<String, Arc<BindingStats>>,
        mut visit: impl FnMut(&[(&str, &str); 5], &Series) -> fmt::Result,
    ) -> fmt::Result {
        for (component, stats) in all {
            let operations = lock(&stats.0).clone();
            for (operation, series) in &operations.by_name {
                for (success, series) in ["false", "true"].into_iter().zip(series) {
                    let labels = [
                        ("app_id", self.app_id.as_str()),
                        ("component", component),
                        ("namespace", &self.namespace),
                        ("operation", operation),
                        ("success", success),
                    ];
                    if series.count > 0 {
                        visit(&labels, series)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Default for Bindings {
    fn default() -> Self {
        Self::new("thalweg".to_owned(), String::new())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often an operation was counted as having failed, and as having succeeded.
    fn counts(stats: &BindingStats, operation: &str) -> [u64; 2] {
        let operations = lock(&stats.0);
        let series = operations.by_name.get(operation);
        series.map_or([0; 2], |series| [series[0].count, series[1].count])
    }

    #[test]
    fn names_that_succeed_are_told_apart_up_to_a_bound() {
        let stats = BindingStats::default();
        for index in 0..100 {
            stats.ended(&format!("operation {index}"), true, Duration::ZERO);
        }
        stats.ended("operation 3", false, Duration::ZERO);

        assert_eq!(lock(&stats.0).by_name.len(), OPERATIONS_MAX + 1);
        assert_eq!(counts(&stats, OTHER), [0, 36]);
        assert_eq!(counts(&stats, "operation 3"), [1, 1]);
    }

    #[test]
    fn names_that_fail_take_no_room() {
        let stats = BindingStats::default();
        for index in 0..100 {
            stats.ended(&format!("garbage {index}"), false, Duration::ZERO);
        }
        stats.ended("list", true, Duration::ZERO);
        stats.ended("list", false, Duration::ZERO);

        assert_eq!(lock(&stats.0).by_name.len(), 2);
        assert_eq!(counts(&stats, OTHER), [100, 0]);
        assert_eq!(counts(&stats, "list"), [1, 1]);
    }

    #[test]
    fn known_operations_are_told_apart_before_they_succeed_and_no_others_ever() {
        let stats = BindingStats::default();
        stats.know(Some(&["create", "list"]));
        stats.ended("list", false, Duration::ZERO);
        stats.ended("whatever", true, Duration::ZERO);

        assert_eq!(counts(&stats, "list"), [1, 0]);
        assert_eq!(counts(&stats, OTHER), [0, 1]);
        assert_eq!(counts(&stats, "whatever"), [0, 0]);

        stats.know(None::<&[&str]>);
        stats.ended("whatever", true, Duration::ZERO);
        assert_eq!(counts(&stats, "whatever"), [0, 1]);
    }

    #[test]
    fn names_are_cut_between_two_characters() {
        let stats = BindingStats::default();
        let long = format!("{}{}", "x".repeat(NAME_MAX - 1), "é".repeat(30_000));
        stats.ended(&long, true, Duration::ZERO);

        assert_eq!(counts(&stats, &"x".repeat(NAME_MAX - 1)), [0, 1]);
    }

    #[test]
    fn latency_counts_whole_milliseconds_and_no_less() {
        let mut series = Series::default();
        for micros in [999, 1000, 1999, 2000, 100_000_000, 100_001_000] {
            series.observe(Duration::from_micros(micros));
        }

        assert_eq!(series.count, 6);
        assert_eq!(series.buckets[0], 2);
        assert_eq!(series.buckets[1], 1);
        assert_eq!(series.buckets[BOUNDS.len() - 1], 1);
        assert_eq!(series.beyond, 1);
        assert_eq!(series.sum_ms, 200_005);
    }
}
