//! Thalweg: a proxy for streams.

mod admin;
pub mod app;
pub mod cli;
pub mod config;
mod eager;
mod forward;
mod headers;
mod listener;
mod pump;
mod receive;
mod respond;
mod router;
mod serve;
mod stage;
mod stall;
mod telemetry;
mod transport;
mod upstream;
mod worker;
