//! A running canary: objects in a folder, backends, weir, and an Envoy that accepts requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use weir::canary::patterns::APART;
use weir::envoy::EnvoyProcess;

use super::cutter::Cutter;
use super::mesh::{Backends, Objects, Serve, Tally, send, start_envoy, start_envoy_from};
use super::process::free_port;

pub(crate) struct Canary {
    pub folder: tempfile::TempDir,
    pub objects: Objects,
    pub weir: Serve,
    pub envoy: EnvoyProcess,
    flags: Vec<String>,
}

impl Canary {
    /// With more flags for `weir bootstrap`.
    pub(crate) async fn start(more: &[&str]) -> Self {
        Self::with(more, &[]).await
    }

    /// With more flags for `weir bootstrap` and for `weir serve`.
    pub(crate) async fn with(more: &[&str], flags: &[&str]) -> Self {
        Self::on(None, more, flags).await
    }

    /// The same with this program for Envoy; `None` for the usual one.
    pub(crate) async fn on(program: Option<PathBuf>, more: &[&str], flags: &[&str]) -> Self {
        Self::build(flags, async |folder, xds| start_envoy_from(program, folder, xds, more).await)
            .await
    }

    /// The same with a proxy between Envoy and weir.
    pub(crate) async fn behind_cutter(more: &[&str], flags: &[&str]) -> (Self, Cutter) {
        let mut cutter = None;
        let canary = Self::build(flags, async |folder, xds| {
            let port = cutter.insert(Cutter::start(xds).await).port;
            start_envoy(folder, port, more).await
        })
        .await;
        (canary, cutter.expect("it was started"))
    }

    async fn build(flags: &[&str], envoy: impl AsyncFnOnce(&Path, u16) -> EnvoyProcess) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        std::fs::create_dir(&config).unwrap();
        let objects = Objects {
            folder: config.clone(),
            service: free_port(),
            backend: Backends::start().port,
        };
        objects.write_all(100, 0);
        let mut args = vec!["--config-dir", config.to_str().unwrap()];
        args.extend(flags);
        let weir = Serve::start(&args, free_port(), free_port());
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        weir.ready().await;
        let envoy = envoy(folder.path(), weir.xds).await;
        weir.acked_after(0).await;
        Self { folder, objects, weir, envoy, flags }
    }

    /// Writes a file and waits until the proxy has ACKed the result.
    pub(crate) async fn edit(&self, file: &str, text: &str) {
        let before = self.weir.revision().await;
        self.objects.write(file, text);
        self.weir.acked_after(before).await;
    }

    /// Writes one file, and the other 9 ms later as rollout tools do, and waits until the proxy has ACKed both.
    pub(crate) async fn pair(&self, first: (&str, &str), then: (&str, &str)) {
        let before = self.weir.events().await;
        self.objects.write(first.0, first.1);
        tokio::time::sleep(APART).await;
        self.objects.write(then.0, then.1);
        self.weir.live_with(before + 2).await;
    }

    pub(crate) async fn send(&self, count: u64) -> Tally {
        let port = self.objects.service;
        tokio::task::spawn_blocking(move || send(port, count)).await.unwrap()
    }

    /// Kills weir; [`Canary::revive`] starts it again.
    pub(crate) fn kill_weir(&mut self) {
        self.weir.kill();
    }

    /// Restarts weir on the same ports and waits until it is ready.
    pub(crate) async fn revive(&mut self) {
        self.revive_with(&[]).await;
    }

    /// The same with more flags for `weir serve`.
    pub(crate) async fn revive_with(&mut self, more: &[&str]) {
        let mut args = vec!["--config-dir", self.objects.folder.to_str().unwrap()];
        args.extend(self.flags.iter().map(String::as_str));
        args.extend(more);
        self.weir = Serve::start(&args, self.weir.xds, self.weir.admin);
        self.weir.ready().await;
    }

    /// Continuous requests until stopped.
    pub(crate) fn load(&self) -> Load {
        Load::start(self.objects.service)
    }
}

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Tally>,
}

impl Load {
    /// Continuous requests to this port until stopped.
    pub(crate) fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sum = Tally::default();
            // Bounded, so that a hanging test does not send forever.
            for _ in 0..200_000 {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                for (answer, count) in send(port, 50).answers {
                    *sum.answers.entry(answer).or_default() += count;
                }
            }
            sum
        });
        Self { stop, thread }
    }

    pub(crate) fn end(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
