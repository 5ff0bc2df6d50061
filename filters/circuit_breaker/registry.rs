//! The breakers of all workers, and what `/metrics` prints of them.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderValue, header::RETRY_AFTER};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use thalweg_proto::status::Code;
use tokio::time::Instant;

use super::{
    Config, Whole,
    state::{Machine, Outcome, Phase, Rejection, Ticket},
};
use crate::{Error, Side};

/// All breakers, by what they guard and how they are set: chains of several routes and workers that agree in both share
/// one.
pub struct Registry {
    app_id: String,
    namespace: String,
    breakers: Mutex<Vec<Breaker>>,
}

/// A handle to one breaker; a clone is another handle to the same.
#[derive(Clone)]
pub struct Breaker(Arc<Shared>);

struct Shared {
    target: String,
    purpose: &'static str,
    /// Dapr's label `name`, which keeps apart what guards one target with different settings.
    name: String,
    config: Config,
    guarded: Mutex<Guarded>,
}

/// Locked once when a stream starts and once when it ends, never in between.
struct Guarded {
    machine: Machine,
    /// Streams that asked, by the state they found.
    asked: [u64; Phase::ALL.len()],
    /// Changes, by the state they led to.
    changed: [u64; Phase::ALL.len()],
}

/// The right to one stream. Judges the upstream once; dropped without a word, it is as if the stream had never been.
#[must_use]
pub struct Permit {
    breaker: Breaker,
    ticket: Option<Ticket>,
}

// === impl Registry ===

impl Registry {
    /// Without breakers yet. The metrics bear `app_id` and `namespace` as labels.
    pub fn new(app_id: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            app_id: app_id.into(),
            namespace: namespace.into(),
            breakers: Mutex::default(),
        }
    }

    /// The breaker of a target, such as `cluster greeter` or `binding orders`, with these settings.
    pub fn breaker(&self, target: &str, config: &Config) -> Breaker {
        self.named("circuit_breaker", target, config)
    }

    /// The breaker of a target's handshakes. It is another than that of its streams, which may have the same settings.
    pub fn handshake_breaker(&self, target: &str, config: &Config) -> Breaker {
        self.named("resiliency", target, config)
    }

    /// Forgets those that guard nothing any more.
    pub fn forget_unused(&self) {
        lock(&self.breakers).retain(|breaker| Arc::strong_count(&breaker.0) > 1);
    }

    fn named(&self, name: &'static str, target: &str, config: &Config) -> Breaker {
        let mut breakers = lock(&self.breakers);
        let alike = |breaker: &&Breaker| breaker.0.target == target && breaker.0.purpose == name;
        let others: Vec<&Breaker> = breakers.iter().filter(alike).collect();
        if let Some(same) = others.iter().find(|other| other.0.config == *config) {
            return Breaker::clone(same);
        }
        let labels =
            std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}-{number}")));
        let label = labels
            .into_iter()
            .find(|label| others.iter().all(|other| other.0.name != *label));
        let label = label.expect("numbers do not end");
        let breaker = Breaker::new(target, name, label, config);
        breakers.push(breaker.clone());
        breaker
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new("thalweg", "")
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.breakers).iter()).finish()
    }
}

// === impl Breaker ===

impl Breaker {
    fn new(target: &str, purpose: &'static str, name: String, config: &Config) -> Self {
        Self(Arc::new(Shared {
            target: target.to_owned(),
            purpose,
            name,
            config: config.clone(),
            guarded: Mutex::new(Guarded {
                machine: Machine::new(config.clone(), Instant::now()),
                asked: Default::default(),
                changed: Default::default(),
            }),
        }))
    }

    /// Admits a stream, or tells its client why not and when to come back.
    pub fn admit(&self) -> Result<Permit, Error> {
        let now = Instant::now();
        let mut guarded = lock(&self.0.guarded);
        let found = guarded.machine.phase(now);
        guarded.asked[found as usize] += 1;
        let admitted = guarded.update(|machine| machine.admit(now));
        drop(guarded);
        match admitted {
            Ok(ticket) => Ok(Permit {
                breaker: self.clone(),
                ticket: Some(ticket),
            }),
            Err(rejection) => Err(self.refusal(rejection)),
        }
    }

    fn report(&self, ticket: Ticket, outcome: Outcome) {
        let now = Instant::now();
        lock(&self.0.guarded).update(|machine| machine.report(ticket, outcome, now));
    }

    fn refusal(&self, rejection: Rejection) -> Error {
        let Shared { target, config, .. } = &*self.0;
        let seconds = whole_seconds(rejection.retry_after);
        let (reason, message) = match rejection.phase {
            Phase::Rejecting => (
                "circuit_open",
                format!(
                    "{target}: the circuit breaker is open for another {seconds}s (circuit_breaker.timeout)"
                ),
            ),
            Phase::Probing | Phase::Admitting => (
                "circuit_probing",
                format!(
                    "{target}: the circuit breaker is half-open and has let {} through to probe \
                     (circuit_breaker.max_requests)",
                    match config.max_requests.0 {
                        0 | 1 => "one stream".to_owned(),
                        several => format!("{several} streams"),
                    }
                ),
            ),
        };
        Error::new(Code::Unavailable, reason, Side::Proxy, message)
            .with_header(RETRY_AFTER, HeaderValue::from(seconds))
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = lock(&self.0.guarded).machine.phase(Instant::now());
        write!(f, "Breaker({}, {phase:?})", self.0.target)
    }
}

impl Guarded {
    /// Counts the change of state that `step` brings about, if it does.
    fn update<T>(&mut self, step: impl FnOnce(&mut Machine) -> T) -> T {
        let before = self.machine.entered();
        let result = step(&mut self.machine);
        let after = self.machine.entered();
        if after != before {
            self.changed[after as usize] += 1;
        }
        result
    }
}

// === impl Permit ===

impl Permit {
    /// The upstream served the stream.
    pub fn success(self) {
        self.judge(Outcome::Success);
    }

    /// The upstream failed the stream.
    pub fn failure(self) {
        self.judge(Outcome::Failure);
    }

    /// The target has answered a handshake with this status.
    pub fn judge_status(self, code: Code, request: &Whole) {
        let outcome = match code {
            Code::DeadlineExceeded => self.config().of_failure(code, request),
            _ => self.config().of_status(code),
        };
        self.judge(outcome);
    }

    /// The target is at fault for the end of a handshake with this status.
    pub fn judge_failure(self, code: Code, request: &Whole) {
        let outcome = self.config().of_failure(code, request);
        self.judge(outcome);
    }

    /// The answer has begun, and not with a failure.
    pub fn answered(&self) {
        if let Some(ticket) = self.ticket.as_ref().filter(|ticket| ticket.is_probe()) {
            let now = Instant::now();
            lock(&self.breaker.0.guarded).update(|machine| machine.answered(ticket, now));
        }
    }

    /// How the breaker is set.
    pub fn config(&self) -> &Config {
        &self.breaker.0.config
    }

    /// What the stream's end says.
    pub fn judge(mut self, outcome: Outcome) {
        self.report(outcome);
    }

    fn report(&mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.report(ticket, outcome);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.report(Outcome::Neutral);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Permit({})", self.breaker.0.target)
    }
}

// === metrics, in Dapr's words ===

impl Collector for Registry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = Instant::now();
        let breakers = lock(&self.breakers).clone();
        // OpenMetrics has no counter whose name lacks `_total`, and Dapr's name lacks it; a reader that trusts the type
        // would refuse the whole page. Rates of an untyped number are computed all the same.
        let mut family = encoder.encode_descriptor(
            "dapr_resiliency_count",
            "Streams that asked a circuit breaker, by the state they found it in",
            None,
            MetricType::Unknown,
        )?;
        for breaker in &breakers {
            let asked = lock(&breaker.0.guarded).asked;
            for phase in Phase::ALL {
                let labels = self.labels(breaker, phase.label());
                let asked = asked[phase as usize];
                family.encode_family(&labels)?.encode_gauge(&asked)?;
            }
        }

        let mut family = encoder.encode_descriptor(
            "dapr_resiliency_activations",
            "Changes of a circuit breaker's state, by the state they led to",
            None,
            MetricType::Counter,
        )?;
        for breaker in &breakers {
            let changed = lock(&breaker.0.guarded).changed;
            for phase in Phase::ALL {
                let labels = self.labels(breaker, phase.label());
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&changed[phase as usize], None)?;
            }
        }

        let mut family = encoder.encode_descriptor(
            "dapr_resiliency_cb_state",
            "1 for the state that a circuit breaker is in",
            None,
            MetricType::Gauge,
        )?;
        for breaker in &breakers {
            let active = lock(&breaker.0.guarded).machine.phase(now).label();
            let states = Phase::ALL.map(Phase::label).into_iter().chain(["unknown"]);
            for status in states {
                let labels = self.labels(breaker, status);
                let is_active = u64::from(status == active);
                family.encode_family(&labels)?.encode_gauge(&is_active)?;
            }
        }
        Ok(())
    }
}

impl Registry {
    fn labels<'a>(&'a self, breaker: &'a Breaker, status: &'a str) -> [(&'static str, String); 7] {
        [
            ("app_id", self.app_id.clone()),
            ("name", breaker.0.name.clone()),
            ("policy", "circuitbreaker".to_owned()),
            ("namespace", self.namespace.clone()),
            ("flow_direction", "outbound".to_owned()),
            ("target", target_label(&breaker.0.target)),
            ("status", status.to_owned()),
        ]
    }
}

/// `binding orders` as Dapr writes it: `Binding_orders`.
fn target_label(target: &str) -> String {
    let (kind, name) = target.split_once(' ').unwrap_or(("", target));
    let mut letters = kind.chars();
    match letters.next() {
        Some(first) => format!("{}{}_{name}", first.to_ascii_uppercase(), letters.as_str()),
        None => name.to_owned(),
    }
}

/// Rounded up: who comes back then is not refused for the same reason again.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry};

    use super::*;
    use crate::circuit_breaker::Trip;

    fn touchy() -> Config {
        Config {
            trip: Trip::parse("true").unwrap(),
            ..Config::default()
        }
    }

    fn printed(registry: Arc<Registry>) -> String {
        let mut all = registry::Registry::default();
        all.register_collector(Box::new(registry));
        let mut printed = String::new();
        text::encode(&mut printed, &all).unwrap();
        printed
    }

    #[tokio::test(start_paused = true)]
    async fn same_target_and_settings_share_one_breaker() {
        let registry = Registry::default();

        let mine = registry.breaker("cluster a", &touchy());
        let yours = registry.breaker("cluster a", &touchy());
        mine.admit().unwrap().failure();

        assert!(yours.admit().is_err());
        assert!(registry.breaker("cluster b", &touchy()).admit().is_ok());
        let calmer = Config::default();
        assert!(registry.breaker("cluster a", &calmer).admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn workers_on_threads_of_their_own_share_one_breaker() {
        let registry = Arc::new(Registry::default());
        let config = Config {
            trip: Trip::parse("totalFailures >= 1000").unwrap(),
            ..Config::default()
        };
        let breaker = registry.breaker("cluster a", &config);

        std::thread::scope(|scope| {
            for share in [500, 499] {
                let breaker = registry.breaker("cluster a", &config);
                scope.spawn(move || (0..share).for_each(|_| breaker.admit().unwrap().failure()));
            }
        });

        breaker.admit().unwrap().failure();
        assert_eq!(breaker.admit().unwrap_err().reason(), "circuit_open");
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_names_the_target_the_setting_and_the_time() {
        let breaker = Registry::default().breaker("binding orders", &touchy());
        breaker.admit().unwrap().failure();
        tokio::time::advance(Duration::from_millis(18_500)).await;

        let open = breaker.admit().unwrap_err();

        assert_eq!(
            open.message(),
            "binding orders: the circuit breaker is open for another 42s (circuit_breaker.timeout)"
        );
        assert_eq!(
            (open.code(), open.reason(), open.side(), open.http_status()),
            (Code::Unavailable, "circuit_open", Side::Proxy, 503)
        );
        let retry_after = HeaderValue::from_static("42");
        assert_eq!(open.header(), Some((&RETRY_AFTER, &retry_after)));

        tokio::time::advance(Duration::from_secs(42)).await;
        let probe = breaker.admit().unwrap();
        let probing = breaker.admit().unwrap_err();

        assert_eq!(
            probing.message(),
            "binding orders: the circuit breaker is half-open and has let one stream through to probe \
             (circuit_breaker.max_requests)"
        );
        assert_eq!(
            (probing.code(), probing.reason(), probing.side()),
            (Code::Unavailable, "circuit_probing", Side::Proxy)
        );
        let retry_after = HeaderValue::from_static("1");
        assert_eq!(probing.header(), Some((&RETRY_AFTER, &retry_after)));
        drop(probe);
        assert!(breaker.admit().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn metrics_are_dapr_s() {
        let registry = Arc::new(Registry::new("shop", "prod"));
        let breaker = registry.breaker("binding orders", &touchy());
        breaker.admit().unwrap().success();
        breaker.admit().unwrap().failure();
        let _refused = breaker.admit().unwrap_err();

        let text = printed(Arc::clone(&registry));
        let labels = r#"app_id="shop",name="circuit_breaker",policy="circuitbreaker",namespace="prod",flow_direction="outbound",target="Binding_orders""#;
        let expected = format!(
            "\
# HELP dapr_resiliency_count Streams that asked a circuit breaker, by the state they found it in
# TYPE dapr_resiliency_count unknown
dapr_resiliency_count{{{labels},status=\"closed\"}} 2
dapr_resiliency_count{{{labels},status=\"half-open\"}} 0
dapr_resiliency_count{{{labels},status=\"open\"}} 1
# HELP dapr_resiliency_activations Changes of a circuit breaker's state, by the state they led to
# TYPE dapr_resiliency_activations counter
dapr_resiliency_activations_total{{{labels},status=\"closed\"}} 0
dapr_resiliency_activations_total{{{labels},status=\"half-open\"}} 0
dapr_resiliency_activations_total{{{labels},status=\"open\"}} 1
# HELP dapr_resiliency_cb_state 1 for the state that a circuit breaker is in
# TYPE dapr_resiliency_cb_state gauge
dapr_resiliency_cb_state{{{labels},status=\"closed\"}} 0
dapr_resiliency_cb_state{{{labels},status=\"half-open\"}} 0
dapr_resiliency_cb_state{{{labels},status=\"open\"}} 1
dapr_resiliency_cb_state{{{labels},status=\"unknown\"}} 0
# EOF
"
        );
        assert_eq!(text, expected);

        // What the clock has brought about is shown before anybody asks.
        tokio::time::advance(Duration::from_secs(60)).await;
        breaker.admit().unwrap().success();
        let text = printed(registry);
        for line in [
            format!("dapr_resiliency_count{{{labels},status=\"half-open\"}} 1"),
            format!("dapr_resiliency_activations_total{{{labels},status=\"half-open\"}} 1"),
            format!("dapr_resiliency_activations_total{{{labels},status=\"closed\"}} 1"),
            format!("dapr_resiliency_cb_state{{{labels},status=\"closed\"}} 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn no_two_breakers_print_the_same_series() {
        let registry = Arc::new(Registry::default());
        registry.breaker("cluster a", &touchy());
        registry.breaker("cluster a", &Config::default());

        let text = printed(registry);

        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let all = lines.len();
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), all, "{text}");
        assert!(text.contains(r#"name="circuit_breaker-2""#));
        assert!(text.contains(r#"target="Cluster_a""#));
    }
}
