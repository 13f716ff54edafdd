//! `weir bench canary`.
use std::process::ExitCode;
/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs.
pub async fn run(_: Args) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
