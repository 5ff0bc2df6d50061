//! The two formats in which counters are printed.
//!
//! **Why.** Prometheus asks for OpenMetrics and reads either. Agents and tools that are older, or know one format only, take what they
//! understand of it, and lose types and help without a word.
//!
//! **How.** What is asked for by `Accept` counts; whoever asks for nothing gets the older format, as everywhere. It is made of the newer
//! one, line by line: counters keep their `_total` in the name of the family, too, and what is of no known type is `untyped`.

use std::fmt;

use http::{HeaderMap, header};
use prometheus_client::{encoding::text, registry::Registry};

/// What a client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// `application/openmetrics-text`
    OpenMetrics,
    /// `text/plain; version=0.0.4`
    Text,
}

impl Format {
    /// The one that a request asks for.
    pub(super) fn asked_for(headers: &HeaderMap) -> Self {
        let mut wanted = [0.0; 2];
        let accepted = headers.get_all(header::ACCEPT).iter();
        let accepted = accepted.filter_map(|value| value.to_str().ok());
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let place = match parts.next() {
                Some(kind) if kind.eq_ignore_ascii_case("application/openmetrics-text") => 0,
                Some(kind) if kind.eq_ignore_ascii_case("text/plain") => 1,
                _ => continue,
            };
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            let quality = quality.map_or(Ok(1.0_f32), str::parse).unwrap_or(0.0);
            wanted[place] = quality.max(wanted[place]);
        }
        if wanted[0] > 0.0 && wanted[0] >= wanted[1] {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    pub(super) fn print(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut printed = String::new();
        text::encode(&mut printed, registry)?;
        Ok(match self {
            Self::OpenMetrics => printed,
            Self::Text => older(&printed),
        })
    }
}

/// The same in the older format.
fn older(printed: &str) -> String {
    let mut older = String::with_capacity(printed.len());
    let mut help = "";
    for line in printed.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            older.extend([line, "\n"]);
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (what, name) = (words.next(), words.next().unwrap_or_default());
        match (what, words.next().unwrap_or_default()) {
            (Some("HELP"), text) => help = text,
            (Some("TYPE"), kind) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                let help = help.replace("\\\"", "\"");
                older.push_str(&format!(
                    "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"
                ));
            }
            // The end, and units, which the name says as well.
            _ => {}
        }
    }
    older
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked_for(accept: &[&'static str]) -> Format {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, HeaderValue::from_static(value));
        }
        Format::asked_for(&headers)
    }

    #[test]
    fn openmetrics_is_for_those_who_know_it() {
        for accept in [
            &["application/openmetrics-text"][..],
            &[
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ],
            &["text/html", "Application/OpenMetrics-Text; version=1.0.0"],
            &["text/plain;q=0.5, application/openmetrics-text;q=0.5"],
        ] {
            assert_eq!(asked_for(accept), Format::OpenMetrics, "{accept:?}");
        }
        for accept in [
            &[][..],
            &["*/*"],
            &["text/plain"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=0.1, text/plain;q=0.9"],
            &["application/openmetrics-text;q=much"],
            &["text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"],
        ] {
            assert_eq!(asked_for(accept), Format::Text, "{accept:?}");
        }
    }

    #[test]
    fn older_format_names_families_as_their_samples() {
        let printed = "# HELP a Some \\\"words\\\" and \\\\\n# TYPE a counter\na_total{b=\"c\"} 1\n\
                       # HELP d How many\n# TYPE d unknown\nd 2\n\
                       # HELP e What it is\n# TYPE e info\ne_info{v=\"1\"} 1\n\
                       # HELP f_seconds How long\n# TYPE f_seconds histogram\n# UNIT f_seconds seconds\nf_seconds_sum 0.5\n\
                       # EOF\n";

        assert_eq!(
            older(printed),
            "# HELP a_total Some \"words\" and \\\\\n# TYPE a_total counter\na_total{b=\"c\"} 1\n\
             # HELP d How many\n# TYPE d untyped\nd 2\n\
             # HELP e_info What it is\n# TYPE e_info gauge\ne_info{v=\"1\"} 1\n\
             # HELP f_seconds How long\n# TYPE f_seconds histogram\nf_seconds_sum 0.5\n"
        );
    }
}
