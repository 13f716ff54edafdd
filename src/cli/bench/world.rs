//! What a run of the bench starts, so that all of it ends whatever happens.

use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{Args, Source};
use crate::admission::descriptors;
use crate::bench::mesh::{Mesh, Size};
use crate::bench::objects::{Cluster, Objects};
use crate::bench::phases::{Bench, Kind};
use crate::bench::process::{Launch, Weir, usage};
use crate::bench::proxies::Proxies;
use crate::bench::report::Run;
use crate::bench::stream::Shared;
use crate::cli::progress::Progress;
use crate::cli::signals::Signals;
use crate::envoy::Admin;
use crate::source::kubernetes;

/// How long weir may take to read all objects.
const READY: Duration = Duration::from_secs(600);

/// What is running.
#[derive(Default)]
pub(crate) struct World {
    weir: Option<Weir>,
    objects: Option<Objects>,
    folder: Option<tempfile::TempDir>,
}

/// The server that is measured.
struct Server {
    address: String,
    pid: Option<u32>,
    /// Its admin port, if it was started for the bench.
    admin: Option<Admin>,
    ready: Option<Duration>,
}

impl World {
    /// An error, with the reason why weir has ended if it has.
    pub(crate) fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.weir.as_mut().and_then(Weir::ended) {
            Some(why) => error.context(why),
            None => error,
        }
    }

    /// Makes a mesh of this size and measures it.
    ///
    /// # Errors
    /// See [`super::run`].
    pub(crate) async fn measure(
        &mut self,
        args: &Args,
        size: Size,
        progress: &Progress,
    ) -> anyhow::Result<Run> {
        // Each proxy has a connection; errors name the limit if it is too low.
        descriptors::raise();
        let source = args.source()?;
        let prefix = format!("weir-bench-{:05x}", RandomState::new().hash_one(()) & 0xf_ffff);
        let mesh = Mesh::new(size, &prefix, source == Source::Kubernetes);
        let shared = Shared::new(args.mode.variant(), args.runtime_layers());
        let shared = Arc::new(shared);
        let server = self.start(args, source, &mesh, &shared, progress).await?;
        let alone = server.pid.and_then(usage).filter(|_| server.ready.is_some());
        let objects = self.objects.as_ref().context("no objects were written")?;
        let nodes = (0..size.streams).map(|n| mesh.node(n)).collect();
        let proxies = Proxies::new(&server.address, &shared, nodes);
        let settings = args.settings();
        let mut bench = Bench {
            settings,
            mesh,
            objects,
            proxies,
            shared,
            pid: server.pid,
            admin: server.admin,
            progress: &|what: &str| progress.is(what),
        };
        let mut phases = Vec::new();
        if args.phases().first() != Some(&Kind::Start) {
            phases.push(bench.phase(Kind::Start).await?);
        }
        for kind in args.phases() {
            if *kind == Kind::Start && !phases.is_empty() {
                bench.proxies.forget().await;
            }
            phases.push(bench.phase(*kind).await?);
        }
        bench.proxies.disconnect().await;
        Ok(Run {
            size,
            ready_ms: server.ready.map(|ready| ready.as_secs_f64() * 1000.0),
            ready_cpu_s: alone.map(|usage| usage.cpu),
            ready_resident_bytes: alone.map(|usage| usage.resident),
            client_cpu_percent: Run::client_share(&phases),
            phases,
        })
    }

    /// Writes the objects and starts weir, or waits until the server at the address serves them.
    async fn start(
        &mut self,
        args: &Args,
        source: Source,
        mesh: &Mesh,
        shared: &Arc<Shared>,
        progress: &Progress,
    ) -> anyhow::Result<Server> {
        let mut launch = Launch {
            program: args.weir.clone().map_or_else(std::env::current_exe, Ok)?,
            source: Vec::new(),
            from_stdin: source == Source::Memory,
            more: args.serve_flags(),
        };
        match source {
            Source::Memory => launch.source.push("--objects-from-stdin".to_owned()),
            Source::Folder => {
                let folder = tempfile::Builder::new().prefix("weir-bench-").tempdir()?;
                launch.source.extend(["--config-dir".to_owned(), path(folder.path().to_owned())?]);
                self.objects = Some(Objects::Folder(folder.path().to_owned()));
                self.folder = Some(folder);
            }
            Source::Kubernetes => {
                let client = kubernetes::client(args.kubeconfig.as_deref())
                    .await
                    .map_err(|error| super::usage(error.to_string()))?;
                progress.is("creating namespaces");
                let namespaces = mesh.namespaces().collect();
                self.objects =
                    Some(Objects::Kubernetes(Box::new(Cluster::new(client, namespaces).await?)));
                if let Some(Objects::Kubernetes(cluster)) = &self.objects {
                    cluster.create_namespaces().await?;
                }
                if let Some(file) = &args.kubeconfig {
                    launch.source.extend(["--kubeconfig".to_owned(), path(file.clone())?]);
                }
            }
        }
        if source != Source::Memory {
            self.write_all(mesh, progress).await?;
        }
        if let Some(address) = &args.address {
            self.wait_for(address, args, mesh, shared, progress).await?;
            let (address, pid) = (address.clone(), args.pid);
            return Ok(Server { address, pid, admin: None, ready: None });
        }
        let (weir, input) = Weir::start(&launch)?;
        let weir = self.weir.insert(weir);
        let (address, pid, admin) = (weir.xds.to_string(), weir.id(), Some(weir.admin.clone()));
        if let Some(input) = input {
            self.objects = Some(Objects::Memory(tokio::sync::Mutex::new(Box::new(input))));
            self.write_all(mesh, progress).await?;
        }
        progress.is("waiting for weir to be ready");
        let weir = self.weir.as_mut().context("weir was started")?;
        let ready = weir.ready(READY).await?;
        Ok(Server { address, pid, admin, ready: Some(ready) })
    }

    async fn write_all(&self, mesh: &Mesh, progress: &Progress) -> anyhow::Result<()> {
        let objects = self.objects.as_ref().context("there is no place for objects")?;
        let services = mesh.services();
        progress.is("writing objects");
        let written = AtomicUsize::new(0);
        let counter = &written;
        let edits = mesh.all().map(|edit| async move {
            objects.write(&edit).await?;
            let edits = counter.fetch_add(1, Ordering::Relaxed) + 1;
            progress.further(&format!("writing objects, {} of {services} services", edits / 3));
            anyhow::Ok(())
        });
        futures::stream::iter(edits)
            .buffer_unordered(objects.concurrency())
            .try_collect::<Vec<()>>()
            .await?;
        objects.complete().await
    }

    /// Waits until the server at the address serves all of the mesh.
    async fn wait_for(
        &self,
        address: &str,
        args: &Args,
        mesh: &Mesh,
        shared: &Arc<Shared>,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        progress.is(&format!("waiting for {address} to serve the mesh"));
        let mut probe = Proxies::new(address, shared, vec![mesh.node(mesh.services())]);
        probe.expect(mesh.everything());
        probe.connect();
        let arrivals = probe.satisfied(READY.max(args.timeout)).await;
        probe.disconnect().await;
        if let Some(why) = arrivals.lost.first() {
            bail!("{why}");
        }
        if arrivals.at.is_empty() {
            bail!(
                "{address} does not serve the mesh: does it read the API that the objects are in?"
            );
        }
        Ok(())
    }

    /// Ends everything. A second signal leaves the objects in the API.
    ///
    /// # Errors
    /// The objects cannot be deleted.
    pub(crate) async fn close(self, signals: &mut Signals) -> anyhow::Result<()> {
        if let Some(weir) = self.weir {
            weir.stop().await;
        }
        match &self.objects {
            Some(objects) => objects.close(signals.any()).await,
            None => Ok(()),
        }
    }
}

/// A path as an argument.
fn path(path: PathBuf) -> anyhow::Result<String> {
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))
}
