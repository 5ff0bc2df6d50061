//! How endpoints are asked whether they are well, and judged.

use http::uri::PathAndQuery;
use thalweg_filters::units::Count;

use super::{Resolve, or};
use crate::config::{HealthCheck, Outlier, Protocol, Question, raw};

impl Resolve<'_> {
    /// Of a cluster that speaks `protocol`.
    pub(super) fn health_check(
        &mut self,
        raw: raw::HealthCheck,
        protocol: Protocol,
        path: &str,
    ) -> HealthCheck {
        let at = |key: &str| format!("{path}.{key}");
        let ways = [
            ("grpc", raw.grpc.is_some()),
            ("http", raw.http.is_some()),
            ("tcp", raw.tcp.is_some()),
        ];
        let mut written = ways.iter().filter(|(_, written)| *written);
        match (written.next(), written.next()) {
            (Some((first, _)), Some((second, _))) => {
                let message = format!("`{first}` is here as well");
                self.faults
                    .add_key(&at(second), &message, "keep one of the two");
            }
            (None, _) if !ways.iter().any(|(key, _)| self.faults.covers(&at(key))) => {
                let hint = "add `grpc: {}`, `http: {path: /healthz}` or `tcp: {}`";
                self.faults.add(path, "it does not say what to ask", hint);
            }
            _ => {}
        }
        if raw.grpc.is_some() && protocol == Protocol::Http1 {
            let message = "the endpoints speak HTTP/1.1, which cannot carry gRPC";
            self.faults
                .add_key(&at("grpc"), message, "ask with `http`, or with `tcp`");
        }
        let question = if let Some(grpc) = raw.grpc {
            Question::Grpc {
                service: grpc.service.unwrap_or_default(),
            }
        } else if let Some(http) = raw.http {
            Question::Http {
                path: self.path_and_query(&http.path, &at("http.path")),
                expect: http
                    .expect
                    .map(|status| u16::try_from(status.0).unwrap_or(0)),
            }
        } else {
            Question::Tcp
        };
        HealthCheck {
            question,
            interval: or(raw.interval, HealthCheck::INTERVAL),
            timeout: or(raw.timeout, HealthCheck::TIMEOUT),
            healthy: raw.healthy.map_or(HealthCheck::HEALTHY, Count::u32),
            unhealthy: raw.unhealthy.map_or(HealthCheck::UNHEALTHY, Count::u32),
            dismiss: raw.dismiss.unwrap_or(false),
        }
    }

    pub(super) fn outlier(&mut self, raw: raw::Outlier, path: &str) -> Outlier {
        let default = Outlier::default();
        let statuses = raw
            .statuses
            .map(|statuses| self.statuses(&statuses, &format!("{path}.statuses")));
        Outlier {
            consecutive: raw.consecutive.map_or(default.consecutive, Count::u32),
            young: or(raw.young, default.young),
            statuses: statuses.unwrap_or(default.statuses),
            ejection: or(raw.ejection, default.ejection),
            max_ejection: or(raw.max_ejection, default.max_ejection),
            max_ejected_percent: raw
                .max_ejected_percent
                .map_or(default.max_ejected_percent, Count::u32),
        }
    }

    fn path_and_query(&mut self, text: &str, path: &str) -> PathAndQuery {
        match text.parse::<PathAndQuery>() {
            Ok(parsed) if text.starts_with('/') => parsed,
            _ => {
                let message = format!("`{text}` is no path");
                self.faults
                    .add(path, message, "write one such as `/healthz`");
                PathAndQuery::from_static("/")
            }
        }
    }
}
