//! Runs the proxies side by side.
fn main() {}
