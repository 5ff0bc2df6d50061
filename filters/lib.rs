//! What may be said about one stream.
