//! Origins of web pages: where a browser says that a page comes from.

use std::str::FromStr;

use http::{HeaderValue, Uri};
use serde::Serialize;

/// `https://app.example.test`, as browsers write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WebOrigin(String);

// === impl WebOrigin ===

impl WebOrigin {
    /// Whether a browser means this one.
    pub fn is(&self, header: &HeaderValue) -> bool {
        header.as_bytes().eq_ignore_ascii_case(self.0.as_bytes())
    }
}

impl FromStr for WebOrigin {
    type Err = (String, String);

    /// A fault comes with the way out.
    fn from_str(text: &str) -> Result<Self, (String, String)> {
        let bad = || {
            let hint = "write scheme and host, and the port if it is not the usual one: `https://app.example.test`";
            (
                format!("`{text}` is not the origin of a web page"),
                hint.to_owned(),
            )
        };
        let (scheme, authority) = text.split_once("://").ok_or_else(bad)?;
        let uri: Uri = text.parse().map_err(|_| bad())?;
        if uri.authority().is_none_or(|found| found != authority) || authority.contains('@') {
            return Err(bad());
        }
        // Browsers leave out the port that goes without saying.
        let usual = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        let authority = authority.strip_suffix(usual).unwrap_or(authority);
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_read_as_browsers_write_it() {
        for (text, header) in [
            ("https://app.example.test", "https://app.example.test"),
            ("https://App.example.test:443", "https://app.example.test"),
            ("http://app.test:80", "http://app.test"),
            ("http://app.test:8080", "http://app.test:8080"),
            ("http://[::1]:3000", "http://[::1]:3000"),
        ] {
            let origin: WebOrigin = text.parse().unwrap();
            assert!(origin.is(&HeaderValue::from_static(header)), "{text}");
        }
        let origin: WebOrigin = "https://app.test".parse().unwrap();
        for header in [
            "http://app.test",
            "https://app.test:8443",
            "https://app.test.evil.test",
            "null",
            "",
        ] {
            assert!(!origin.is(&HeaderValue::from_static(header)), "{header}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in [
            "",
            "*",
            "null",
            "app.test",
            "https://",
            "https://a.test/",
            "https://a.test/x",
            "https://me@a.test",
            "https://a.test?x",
        ] {
            assert!(text.parse::<WebOrigin>().is_err(), "{text}");
        }
    }
}
