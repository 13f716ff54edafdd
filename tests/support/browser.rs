//! A real Chromium, driven by the DevTools protocol over a pipe: `$CHROMIUM`, then `chromium`, `chromium-browser` or
//! `google-chrome` on PATH.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Skip;
use super::cache::on_path;

/// How long a page may take to show something.
const DEADLINE: Duration = Duration::from_secs(60);

/// The browser with one page.
pub(crate) struct Browser {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    /// What went wrong within the page: exceptions, failed requests, violations of its policy.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser for the test called `test`; `None` if this machine has none, which is then reported as skipped.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let named = std::env::var_os("CHROMIUM").filter(|value| !value.is_empty());
        let found = named.map(PathBuf::from).or_else(|| {
            ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(on_path)
        });
        let Some(program) = found else {
            let why = "there is no Chromium: install one (on Debian: apt install chromium)";
            Skip { why: why.to_owned() }.report(test);
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        // Chromium reads commands from descriptor 3 and writes answers to 4. It ends when they are closed, so it does not
        // outlive the test. Root has no sandbox, and the pages are this project's own.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#])
            .arg(&program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut browser = Self {
            process,
            commands,
            answers,
            session: None,
            last_id: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol.
    pub(crate) fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_call(&mut self, method: &str, parameters: Value) -> Result<Value, Value> {
        self.last_id += 1;
        let mut message = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut answer = Vec::new();
            self.answers.read_until(0, &mut answer).unwrap();
            assert_eq!(answer.pop(), Some(0), "the browser has ended");
            let mut answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == self.last_id {
                return match answer.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(answer["result"].take()),
                };
            }
            let event = answer["method"].as_str().unwrap_or_default();
            if matches!(event, "Runtime.exceptionThrown" | "Log.entryAdded") {
                self.complaints.push(answer["params"].to_string());
            }
        }
    }

    /// Opens an address.
    pub(crate) fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
    }

    /// The value of an expression, awaited if it is a promise.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        self.try_value(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    fn try_value(&mut self, expression: &str) -> Result<Value, Value> {
        let parameters =
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.try_call("Runtime.evaluate", parameters)?;
        match answer.get("exceptionDetails") {
            Some(thrown) => Err(thrown.clone()),
            None => Ok(answer["result"]["value"].take()),
        }
    }

    /// Waits until a condition holds, which is tried again whenever the document changes.
    pub(crate) fn wait(&mut self, condition: &str) {
        let millis = DEADLINE.as_millis();
        let expression = format!(
            "new Promise((done) => {{
                const watch = new MutationObserver(() => tried());
                const tried = () => {{
                    let holds = false;
                    try {{ holds = Boolean({condition}); }} catch {{ }}
                    if (holds) {{ watch.disconnect(); done(true); }}
                }};
                const all = {{ subtree: true, childList: true, attributes: true, characterData: true }};
                watch.observe(document, all);
                addEventListener('hashchange', tried);
                setTimeout(() => done(false), {millis});
                tried();
            }})"
        );
        let begun = Instant::now();
        loop {
            match self.try_value(&expression) {
                Ok(holds) if holds == true => return,
                // The document was replaced meanwhile.
                Err(_) if begun.elapsed() < DEADLINE => {}
                failed => {
                    let shown = self.try_value("document.body?.innerText");
                    panic!("{condition}: {failed:?}; the page shows {shown:?}");
                }
            }
        }
    }

    /// Presses a key that stands for itself.
    pub(crate) fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "text": key});
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Sets the size of the window in pixels, and whether the person prefers dark colours.
    pub(crate) fn appear(&mut self, width: u32, height: u32, dark: bool) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1,
            "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.call("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
