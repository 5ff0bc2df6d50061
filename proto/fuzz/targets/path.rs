//! What has been normalised is plain, and stays as it is.

#![no_main]

use libfuzzer_sys::fuzz_target;
use thalweg_proto::path::{check, normalized};

fuzz_target!(|path: &str| {
    let Ok(once) = normalized(path) else {
        check(path).expect_err("what is plain can be normalised");
        return;
    };
    assert_eq!(check(&once), Ok(()));
    assert_eq!(normalized(&once).as_deref(), Ok(&*once));
});
