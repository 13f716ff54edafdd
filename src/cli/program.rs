//! The program: its commands, its log, and its exit status.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};

use super::logging::LogArgs;
use crate::cli;

/// Envoy control plane for Istio's VirtualService and DestinationRule
///
/// weir watches VirtualServices, DestinationRules and the Services, EndpointSlices and Pods they reference, translates
/// them into Envoy configuration, and streams it to sidecars over ADS.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Getting started:
  weir demo                                        a canary demo in under a minute
  weir serve --config-dir deploy/examples/canary   serve a folder of YAML
  weir bootstrap --intercept none > envoy.yaml     then run: envoy -c envoy.yaml
  weir ps                                          show the connected sidecars
  weir splits -w                                   watch the weights go live
  weir log vs/my-app -n shop                       what happened to an object, and when

Every command has --help with examples. Exit status: 0 success, 1 problems found, 2 usage error."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the control plane
    Serve(Box<cli::serve::Args>),
    /// Demonstrate a canary rollout with a real Envoy
    Demo(cli::demo::Args),
    /// Print the full configuration of one proxy for some objects
    Translate(cli::translate::Args),
    Explain(cli::explain::Args),
    /// Report problems in objects, from files or a cluster
    Analyze(cli::analyze::Args),
    Preflight(cli::preflight::Args),
    Inject(Box<cli::inject::Args>),
    Doctor(cli::doctor::Args),
    Bootstrap(Box<cli::bootstrap::Args>),
    Ps(cli::ps::Args),
    Dump(cli::dump::Args),
    Diff(cli::diff::Args),
    Splits(cli::splits::Args),
    Top(cli::top::Args),
    Wait(cli::wait::Args),
    Log(cli::log::Args),
    BugReport(cli::bug_report::Args),
    Bench(Box<cli::bench::Args>),
    Redirect(Box<cli::redirect::Args>),
    Agent(cli::agent::Args),
    Completions(cli::completions::CompletionsArgs),
    Man(cli::completions::ManArgs),
}

/// Runs the command that the arguments of the process name, and returns its exit status.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let reports = matches!(cli.command, Command::Serve(_) | Command::Agent(_));
    let usual = if reports { "info" } else { "warn" };
    if let Err(wrong) = cli.log.start(usual) {
        eprintln!("weir: {wrong}");
        return ExitCode::from(2);
    }
    let result = match cli.command {
        Command::Translate(args) => cli::translate::run(args),
        Command::Explain(args) => block_on(cli::explain::run(args)),
        Command::Inject(args) => cli::inject::run(*args),
        Command::Bootstrap(args) => cli::bootstrap::run(*args),
        Command::Redirect(args) => cli::redirect::run(*args),
        Command::Agent(args) => {
            without_huge_pages();
            cli::agent::run(args)
        }
        Command::Analyze(args) => block_on(cli::analyze::run(args)),
        Command::Doctor(args) => block_on(cli::doctor::run(args)),
        Command::Preflight(args) => block_on(cli::preflight::run(args)),
        Command::Ps(args) => block_on(cli::ps::run(args)),
        Command::Diff(args) => block_on(cli::diff::run(args)),
        Command::Dump(args) => block_on(cli::dump::run(args)),
        Command::Top(args) => block_on(cli::top::run(args)),
        Command::Splits(args) => block_on(cli::splits::run(args)),
        Command::Wait(args) => block_on(cli::wait::run(args)),
        Command::Log(args) => block_on(cli::log::run(args)),
        Command::BugReport(args) => block_on(cli::bug_report::run(args)),
        Command::Completions(args) => cli::completions::completions(&args, &mut Cli::command()),
        Command::Man(args) => cli::completions::man(&args, Cli::command()),
        Command::Serve(args) => {
            without_huge_pages();
            block_on(returning_memory(cli::serve::run(*args)))
        }
        Command::Bench(args) => block_on(cli::bench::run(*args)),
        Command::Demo(args) => block_on(cli::demo::run(args)),
    };
    result.unwrap_or_else(|error| {
        if error.is::<cli::OutputClosed>() {
            return ExitCode::SUCCESS;
        }
        eprintln!("weir: {error:#}");
        if error.is::<cli::Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

/// Keeps the kernel from backing the heap with huge pages: they nearly double resident memory, because few of them are
/// ever full, and clearing them costs more than they save. Child processes inherit this.
fn without_huge_pages() {
    #[cfg(target_os = "linux")]
    {
        // If this fails, weir still works, but needs more memory.
        let _ = nix::sys::prctl::set_thp_disable(true);
    }
}

/// Runs a command and lets the allocator return memory meanwhile. mimalloc returns freed memory a moment later, when it is
/// next called, so a process that becomes idle after a peak would keep it.
async fn returning_memory<T>(command: impl Future<Output = T>) -> T {
    const INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);
    /// Large enough that the allocator cannot serve it from a page in use.
    const OWN_PAGE: usize = 1 << 20;
    let tick = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            drop(std::hint::black_box(Vec::<u8>::with_capacity(OWN_PAGE)));
        }
    };
    tokio::select! {
        result = command => result,
        () = tick => std::future::pending().await,
    }
}

fn block_on(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A blocked thread, for example on an unresponsive file system, must not keep the process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_examples_within_100_columns() {
        let mut weir = Cli::command();
        weir.build();
        let mut all = vec![(String::new(), weir)];
        while let Some((name, mut command)) = all.pop() {
            let nested = command.get_subcommands().filter(|command| command.get_name() != "help");
            all.extend(nested.map(|command| {
                (format!("{name} {}", command.get_name()).trim().to_owned(), command.clone())
            }));
            let help = command.render_long_help().to_string();
            assert!(help.contains(&format!("  weir {name}")), "no example:\n{help}");
            let long = help.lines().find(|line| line.chars().count() > 100);
            assert_eq!(long, None, "weir {name} --help");
        }
    }
}
