//! `weir serve` on a folder, and an Envoy that gets its configuration from it. Both end with this value and with this
//! process, so that the tests of one binary can share an instance that is never dropped.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use weir::admin::api::v1;
use weir::envoy::{Admin, EnvoyBinary};

use super::mesh::{DEADLINE, proxies};
use super::process::{Launch, Supervised, free_port};

/// How to start them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options<'a> {
    /// More arguments for `weir serve`.
    pub serve: &'a [&'a str],
    /// More arguments for `weir bootstrap`.
    pub bootstrap: &'a [&'a str],
    /// Additional clusters in Envoy's bootstrap.
    pub clusters: Vec<Value>,
}

/// The two processes.
#[derive(Debug)]
pub(crate) struct Sidecar {
    envoy: Supervised,
    weir: Supervised,
    envoy_admin: SocketAddr,
    weir_admin: SocketAddr,
    folder: PathBuf,
}

impl Sidecar {
    /// Starts them with the objects in `folder/config` and waits until Envoy is up to date. `folder` is removed with
    /// them.
    ///
    /// # Panics
    /// If that does not happen, with weir's status of the proxy and the ends of both logs.
    pub(crate) async fn start(folder: &Path, options: Options<'_>) -> Self {
        let (xds, admin) = (free_port(), free_port());
        let weir = Path::new(env!("CARGO_BIN_EXE_weir"));
        let mut serve = ["serve", "--config-dir"].map(str::to_owned).to_vec();
        serve.push(path(&folder.join("config")));
        serve.extend(["--xds-listen".into(), format!("127.0.0.1:{xds}")]);
        serve.extend(["--admin-listen".into(), format!("127.0.0.1:{admin}")]);
        serve.extend(options.serve.iter().map(|&arg| arg.to_owned()));

        let printed = Command::new(weir)
            .args(["bootstrap", "-o", "json", "--xds", &format!("127.0.0.1:{xds}")])
            .args(options.bootstrap)
            .output()
            .unwrap();
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        let mut bootstrap: Value = serde_json::from_slice(&printed.stdout).unwrap();
        bootstrap["admin"]["address"]["socket_address"]["port_value"] = 0.into();
        bootstrap["static_resources"]["clusters"].as_array_mut().unwrap().extend(options.clusters);
        std::fs::write(folder.join("bootstrap.json"), bootstrap.to_string()).unwrap();

        let weir = spawn(weir, serve, &folder.join("weir.log"), None);
        let envoy = start_envoy(folder, "envoy", &folder.join("bootstrap.json")).await;
        let mut this = Self {
            envoy,
            weir,
            envoy_admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            weir_admin: SocketAddr::from(([127, 0, 0, 1], admin)),
            folder: folder.to_owned(),
        };
        this.wait("its admin address", async |this| {
            this.envoy_admin = admin_address(&this.folder, "envoy")?;
            Some(())
        })
        .await;
        this.wait("the proxy has ACKed everything and rejected nothing", async |this| {
            let proxy = this.status().await?;
            let has_all = proxy.acked.is_some_and(|acked| acked > 0) && proxy.acked == proxy.wanted;
            (has_all && proxy.rejected.is_empty()).then_some(())
        })
        .await;
        this.wait("Envoy is live", async |this| this.envoy().ready().await.ok()?.0.then_some(()))
            .await;
        this.wait("every listener is warm", async |this| {
            let warming =
                this.envoy().stats("^listener_manager.total_listeners_warming$").await.ok()?;
            (warming.values().sum::<u64>() == 0).then_some(())
        })
        .await;
        this
    }

    /// The folder that holds `config`, from which weir reads objects.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until a counter or gauge of Envoy is at least as large as this.
    pub(crate) async fn stat_reaches(&mut self, name: &str, least: u64) {
        self.wait(name, async |this| (this.stat(name).await >= least).then_some(())).await;
    }

    /// The number of weir's admin port.
    pub(crate) fn weir_port(&self) -> u16 {
        self.weir_admin.port()
    }

    /// weir's admin interface.
    pub(crate) fn weir(&self) -> Admin {
        // Not cached, because its connections belong to the runtime of one test.
        Admin::new(self.weir_admin)
    }

    /// Envoy's admin interface.
    pub(crate) fn envoy(&self) -> Admin {
        Admin::new(self.envoy_admin)
    }

    /// A counter or gauge of Envoy by its full name; 0 if absent.
    pub(crate) async fn stat(&self, name: &str) -> u64 {
        let stats = self
            .envoy()
            .stats(&format!("^{}$", name.replace('.', r"\.").replace('|', r"\|")))
            .await
            .unwrap();
        stats.get(name).copied().unwrap_or(0)
    }

    /// weir's status of the proxy.
    async fn status(&self) -> Option<v1::Proxy> {
        proxies(&self.weir()).await?.into_iter().next()
    }

    async fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl AsyncFnMut(&mut Self) -> Option<T>,
    ) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self).await {
                return found;
            }
            let ended = [self.weir.exited().unwrap(), self.envoy.exited().unwrap()];
            if begun.elapsed() > DEADLINE || ended.iter().any(Option::is_some) {
                panic!(
                    "waited for: {what}; weir and Envoy ended: {ended:?}; the proxy: {:?}\n{}\n{}",
                    self.status().await,
                    log(&self.folder.join("weir.log")),
                    log(&self.folder.join("envoy.log"))
                );
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// Starts Envoy with a bootstrap file; it writes its log to `folder/NAME.log` and its admin address to
/// `folder/NAME.admin`.
pub(crate) async fn start_envoy(folder: &Path, name: &str, bootstrap: &Path) -> Supervised {
    let binary = tokio::task::spawn_blocking(|| EnvoyBinary::find(None)).await.unwrap().unwrap();
    let mut args = vec!["-c".to_owned(), path(bootstrap)];
    args.extend(["--admin-address-path".into(), path(&folder.join(format!("{name}.admin")))]);
    // No shared memory, so that any number of Envoys can run concurrently.
    args.extend(
        ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
            .map(str::to_owned),
    );
    spawn(binary.path(), args, &folder.join(format!("{name}.log")), Some(folder))
}

/// The address that Envoy wrote, once it has.
pub(crate) fn admin_address(folder: &Path, name: &str) -> Option<SocketAddr> {
    std::fs::read_to_string(folder.join(format!("{name}.admin"))).ok()?.trim().parse().ok()
}

fn spawn(program: &Path, args: Vec<String>, log: &Path, remove: Option<&Path>) -> Supervised {
    let file = File::options().create(true).append(true).open(log).unwrap();
    let stderr = file.try_clone().unwrap();
    Supervised::spawn(Launch {
        program,
        args,
        stdout: file.into(),
        stderr: stderr.into(),
        grace_tenths: 30,
        remove,
    })
    .unwrap()
}

/// The end of a log.
pub(crate) fn log(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    format!("{}:\n{}", file.display(), lines[lines.len().saturating_sub(30)..].join("\n"))
}

fn path(path: &Path) -> String {
    path.to_str().expect("temporary folders have names in UTF-8").to_owned()
}
