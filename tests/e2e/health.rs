//! Who is asked for its health, and who finds out about that of others.

mod checks;
mod keepalive;
mod outliers;
mod service;
