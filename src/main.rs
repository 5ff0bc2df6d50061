//! The `thalweg` binary.

use std::process::ExitCode;

/// Frees across threads are rare here, and many small allocations die young: what this allocator is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    thalweg::cli::main()
}
