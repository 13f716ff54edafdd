//! Says on standard error what is being done, if it takes longer than a second.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

/// How often a terminal is told, and a file.
const TERMINAL: Duration = Duration::from_secs(1);
const FILE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Activity {
    what: String,
    since: Instant,
}

/// What is being done. The reports end when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    activity: Arc<Mutex<Activity>>,
    command: &'static str,
    terminal: bool,
    _reports: AbortOnDropHandle<()>,
}

impl Progress {
    /// Begins to report, in the name of a command such as `weir bench`. Needs a runtime.
    pub(crate) fn start(command: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let activity =
            Arc::new(Mutex::new(Activity { what: String::new(), since: Instant::now() }));
        let seen = activity.clone();
        let reports = tokio::spawn(async move {
            let every = if terminal { TERMINAL } else { FILE };
            let mut first = TERMINAL;
            loop {
                tokio::time::sleep(std::mem::replace(&mut first, every)).await;
                let (what, since) = {
                    let now = seen.lock();
                    (now.what.clone(), now.since)
                };
                if !what.is_empty() && since.elapsed() >= TERMINAL {
                    say(command, terminal, &format!("{what}, {} s", since.elapsed().as_secs()));
                }
            }
        });
        Self { activity, command, terminal, _reports: AbortOnDropHandle::new(reports) }
    }

    /// This is being done now.
    pub(crate) fn is(&self, what: &str) {
        let mut activity = self.activity.lock();
        *activity = Activity { what: what.to_owned(), since: Instant::now() };
    }

    /// The same, further on; the time goes on as well.
    pub(crate) fn further(&self, what: &str) {
        what.clone_into(&mut self.activity.lock().what);
    }

    /// Removes what a terminal shows.
    pub(crate) fn clear(&self) {
        self.is("");
        if self.terminal {
            say(self.command, true, "");
        }
    }
}

/// That standard error is closed is no reason to stop.
fn say(command: &str, terminal: bool, text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = match terminal {
        true => write!(out, "\r\x1b[K{text}"),
        false => writeln!(out, "{command}: {text}"),
    };
    let _ = out.flush();
}
