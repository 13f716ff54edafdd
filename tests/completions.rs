//! The scripts of `weir completions` in real shells, and the pages of `weir man` in a real `man`.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::say;

fn weir(args: &[&str]) -> Output {
    let made = Command::new(env!("CARGO_BIN_EXE_weir")).args(args).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    made
}

/// Runs a program; `None` if it is not installed, which is said.
fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8").output()
    {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            say(&format!("not tried: {program} is not installed"));
            None
        }
        made => Some(made.unwrap()),
    }
}

fn script(folder: &Path, shell: &str) -> String {
    let file = folder.join(format!("weir.{shell}"));
    std::fs::write(&file, weir(&["completions", shell]).stdout).unwrap();
    file.to_str().unwrap().to_owned()
}

/// What a shell prints, which must go well without a word on standard error.
fn clean(made: &Output) -> String {
    assert!(made.status.success() && made.stderr.is_empty(), "{made:?}");
    String::from_utf8(made.stdout.clone()).unwrap()
}

#[test]
fn shells_take_the_scripts_and_complete_with_them() {
    let folder = tempfile::tempdir().unwrap();
    let bash = script(folder.path(), "bash");
    let complete = format!(
        "source {bash}; COMP_WORDS=(weir split); COMP_CWORD=1; _weir weir split weir; echo \"${{COMPREPLY[@]}}\""
    );
    if let Some(made) = run("bash", &["--norc", "-c", &complete]) {
        assert_eq!(clean(&made).trim(), "splits");
    }
    let flags = format!(
        "source {bash}; COMP_WORDS=(weir log --fol); COMP_CWORD=2; _weir weir --fol log; echo \"${{COMPREPLY[@]}}\""
    );
    if let Some(made) = run("bash", &["--norc", "-c", &flags]) {
        assert_eq!(clean(&made).trim(), "--follow");
    }
    let zsh = script(folder.path(), "zsh");
    if let Some(made) = run("zsh", &["-f", "-n", &zsh]) {
        clean(&made);
    }
    let loads =
        format!("autoload -Uz compinit && compinit -u -D && source {zsh} && whence -w _weir");
    if let Some(made) = run("zsh", &["-f", "-c", &loads]) {
        assert_eq!(clean(&made).trim(), "_weir: function");
    }
    let fish = script(folder.path(), "fish");
    let complete = format!("source {fish}; complete -C 'weir split'");
    if let Some(made) = run("fish", &["--no-config", "-c", &complete]) {
        assert!(clean(&made).starts_with("splits\t"), "{made:?}");
    }
}

#[test]
fn man_renders_each_page_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    weir(&["man", pages.to_str().unwrap()]);
    let mut count = 0;
    for page in std::fs::read_dir(&pages).unwrap() {
        let path = page.unwrap().path();
        let Some(made) = run("man", &["--warnings", "-l", path.to_str().unwrap()]) else { return };
        let text = clean(&made);
        assert!(text.contains("SYNOPSIS"), "{}: {text}", path.display());
        count += 1;
    }
    assert!(count > 20, "{count} pages");
    let log = std::fs::read_to_string(pages.join("weir-log.1")).unwrap();
    assert!(log.contains("why did v2 get no traffic"), "{log}");
}
