//! The `weir` program. All of it is in the library, so that it is compiled once.

use std::process::ExitCode;

/// Returns memory to the system soon after a peak, unlike the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    weir::cli::main()
}
