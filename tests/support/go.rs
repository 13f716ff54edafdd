//! Builds programs from Go modules below `tests/`, which takes minutes, with progress on stderr.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::cache::{at, on_path};
use super::process::{Launch, Supervised};
use super::say;

/// What to build.
pub(crate) struct GoBuild<'a> {
    /// The folder of the module.
    pub folder: &'a Path,
    /// The programs, for messages.
    pub programs: &'a str,
    /// About how long it takes.
    pub minutes: u32,
    pub ldflags: &'a str,
    pub packages: &'a [&'a str],
}

impl GoBuild<'_> {
    /// Builds the programs into `out`.
    pub(crate) fn run(&self, out: &Path) -> Result<(), String> {
        let programs = self.programs;
        let go = on_path("go")
            .ok_or_else(|| format!("{programs} not found, and no go on PATH to build them with"))?;
        say(&format!("building {programs} once, about {} minutes", self.minutes));
        let utf8 = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| format!("{}: not UTF-8", path.display()))
        };
        let (folder, out) = (utf8(self.folder)?, format!("{}/", utf8(out)?));
        let args =
            ["build", "-C", &folder, "-v", "-trimpath", "-ldflags", self.ldflags, "-o", &out];
        let mut build = Supervised::spawn(Launch {
            program: &go,
            args: args.iter().chain(self.packages).map(|arg| (*arg).to_owned()).collect(),
            stdout: Stdio::null(),
            stderr: Stdio::piped(),
            grace_tenths: 20,
            remove: None,
        })
        .map_err(at(&go))?;

        let began = Instant::now();
        let mut said = began;
        let mut lines = 0;
        let mut last = VecDeque::new();
        let stderr = build.take_stderr().ok_or("go: no stderr")?;
        for line in BufReader::new(stderr).lines() {
            let line = line.map_err(at(&go))?;
            lines += 1;
            last.push_back(line);
            if last.len() > 20 {
                last.pop_front();
            }
            if said.elapsed() > Duration::from_secs(20) {
                said = Instant::now();
                let seconds = began.elapsed().as_secs();
                say(&format!("building {programs}: {lines} packages after {seconds} s"));
            }
        }
        if build.wait().map_err(at(&go))?.success() {
            return Ok(());
        }
        let last = Vec::from(last).join("\n");
        Err(format!("go could not build {}:\n{last}", self.folder.display()))
    }
}
