//! A path is a method only if it is exactly `/service/method`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_proto::method::{Method, is_grpc_content_type};

fuzz_target!(|path: &str| {
    if let Ok(Method { service, method }) = Method::parse(path) {
        assert!(!service.is_empty() && !service.contains('/'));
        assert!(!method.is_empty() && !method.contains('/'));
        assert_eq!(format!("/{service}/{method}"), path);
    }
    is_grpc_content_type(path.as_bytes());
});
