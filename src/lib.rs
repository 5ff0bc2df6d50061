//! Thalweg: a proxy for streams.
