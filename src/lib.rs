//! Thalweg: a proxy for streams.

pub mod config;
