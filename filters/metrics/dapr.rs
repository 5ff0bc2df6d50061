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

/// Most operations that are told apart for one binding: their names come from clients.
const OPERATIONS_MAX: usize = 64;
/// What the rest of them is counted as.
const OTHER: &str = "other";

/// Dapr's default upper bounds, in milliseconds.
const BOUNDS: [u32; 34] = [
    1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400,
    500, 650, 800, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000,
];

/// What all workers have counted for one binding. Written once a stream, hence the lock.
#[derive(Default)]
pub struct BindingStats(Mutex<BTreeMap<Arc<str>, [Series; 2]>>);

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
    /// Counts a stream at its real end.
    pub(super) fn ended(&self, operation: &str, success: bool, elapsed: Duration) {
        let mut operations = lock(&self.0);
        let name = if operations.contains_key(operation) || operations.len() < OPERATIONS_MAX {
            operation
        } else {
            OTHER
        };
        if !operations.contains_key(name) {
            operations.insert(name.into(), Default::default());
        }
        if let Some(series) = operations.get_mut(name) {
            series[usize::from(success)].observe(elapsed);
        }
    }
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
        write!(f, "BindingStats({} operations)", lock(&self.0).len())
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
            for (operation, series) in &operations {
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

    #[test]
    fn names_from_clients_are_bounded() {
        let stats = BindingStats::default();
        for index in 0..100 {
            stats.ended(&format!("operation {index}"), true, Duration::ZERO);
        }
        stats.ended("operation 3", true, Duration::ZERO);

        let operations = lock(&stats.0).clone();

        assert_eq!(operations.len(), OPERATIONS_MAX + 1);
        assert_eq!(operations[OTHER][1].count, 36);
        assert_eq!(operations["operation 3"][1].count, 2);
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
