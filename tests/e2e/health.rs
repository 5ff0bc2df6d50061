//! Who is asked for its health, and who finds out about that of others.

mod keepalive;
mod service;
