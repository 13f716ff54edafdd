//! `weir completions` and `weir man`: what a shell and `man` know of the commands.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Command;

/// Print a script with which a shell completes commands, flags and their values
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  source <(weir completions bash)                                     in ~/.bashrc
  weir completions zsh > \"${fpath[1]}/_weir\"                          then start zsh anew
  weir completions fish > ~/.config/fish/completions/weir.fish

Names of objects and proxies are not completed.

Exit status: 0 success, 2 usage error.")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// The shells for which there is a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Write a man page for each command
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir man /usr/local/share/man/man1
  weir man . && man -l weir-log.1

Exit status: 0 success, 1 the folder cannot be written to, 2 usage error.")]
pub(crate) struct ManArgs {
    /// The folder, which is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the script for `command`.
///
/// # Errors
/// It cannot be written.
pub(crate) fn completions(
    args: &CompletionsArgs,
    command: &mut Command,
) -> anyhow::Result<ExitCode> {
    use clap_complete::Shell as For;
    let shell = match args.shell {
        Shell::Bash => For::Bash,
        Shell::Zsh => For::Zsh,
        Shell::Fish => For::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "weir", &mut script);
    super::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the pages for `command` and those in it.
///
/// # Errors
/// The folder cannot be written to.
pub(crate) fn man(args: &ManArgs, command: Command) -> anyhow::Result<ExitCode> {
    let ManArgs { folder } = args;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}
