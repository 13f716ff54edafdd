//! `weir translate`: everything one proxy gets, at a shell.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use crate::mesh::{Builder, Locality, NodeMetadata, Proxy};
use crate::snapshot::{Memo, ResourceType, Snapshot};
use crate::store::Store;
use crate::{api, proto_json, source};

/// Flags of `weir translate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir translate -f deploy/examples/canary --proxy your-namespace/my-app-v1-0 -o table
  weir translate -f mesh.yaml --type routes -o yaml
  weir translate -f mesh.yaml --node-id 'sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local' \\
      --node-metadata '{\"LABELS\": {\"app\": \"client\"}, \"INTERCEPTION_MODE\": \"NONE\"}'")]
pub struct Args {
    /// A YAML or JSON file, or a folder of them, with Kubernetes and Istio objects
    #[arg(short, long, value_name = "FILE|DIR")]
    file: PathBuf,
    /// The proxy, by its pod; its labels and address come from the objects
    #[arg(long, value_name = "NAMESPACE/POD", conflicts_with = "node_id")]
    proxy: Option<String>,
    /// The proxy, by the node id it connects with: sidecar~IP~POD.NAMESPACE~DNSDOMAIN
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// The node metadata it connects with, as JSON
    #[arg(long, value_name = "JSON", requires = "node_id")]
    node_metadata: Option<String>,
    /// Only this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<TypeName>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "json")]
    output: Output,
    #[command(flatten)]
    mesh: super::MeshArgs,
}

/// A resource type on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TypeName {
    /// CDS.
    Clusters,
    /// EDS.
    Endpoints,
    /// LDS.
    Listeners,
    /// RDS.
    Routes,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Canonical proto3 JSON with every `Any` opened.
    Json,
    /// The same as YAML.
    Yaml,
    /// Names and sizes.
    Table,
}

const TYPES: [(TypeName, &str, ResourceType); 4] = [
    (TypeName::Clusters, "clusters", ResourceType::Cluster),
    (TypeName::Endpoints, "endpoints", ResourceType::Endpoints),
    (TypeName::Listeners, "listeners", ResourceType::Listener),
    (TypeName::Routes, "routes", ResourceType::Route),
];

/// Runs the command: prints the answer, and what is wrong with the objects on standard error (exit status 1).
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut store = Store::default();
    let mut dirty = std::collections::BTreeSet::new();
    let changes =
        source::directory::load_once(&args.file).with_context(|| format!("can not read {}", args.file.display()))?;
    for change in changes {
        store.apply(change, &mut dirty);
    }
    let mut problems = 0;
    for (key, list) in store.refused() {
        list.iter().for_each(|one| eprintln!("{}: {key}: {}", one.origin, one.problem));
        problems += list.len();
    }
    for (_, list) in store.trouble() {
        list.iter().for_each(|one| eprintln!("{one}"));
        problems += list.len();
    }
    for (key, list) in store.warnings() {
        list.iter().for_each(|one| eprintln!("{}: {key}: warning: {}", one.origin, one.problem));
    }
    let proxy = proxy(&args, &store)?;
    let mesh = Builder::new(args.mesh.config()).update(&store, &dirty);
    let snapshot = Memo::default().snapshot(&mesh, &mesh.scope(&proxy), 1);
    print(&args, &snapshot)?;
    Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(args: &Args, snapshot: &Snapshot) -> anyhow::Result<()> {
    let wanted = TYPES.into_iter().filter(|(name, ..)| args.kind.is_none_or(|kind| kind == *name));
    if args.output == Output::Table {
        let mut rows = vec![("TYPE".to_owned(), "NAME".to_owned(), "BYTES".to_owned())];
        for (_, name, kind) in wanted {
            let resources = snapshot.get(kind).values();
            rows.extend(resources.map(|one| (name.to_owned(), one.name.to_string(), one.len().to_string())));
        }
        let width = rows.iter().map(|(_, name, _)| name.len()).max().unwrap_or(0);
        for (kind, name, bytes) in rows {
            println!("{kind:<10} {name:<width$} {bytes:>8}");
        }
        return Ok(());
    }
    let mut all = Map::new();
    for (_, name, kind) in wanted {
        all.insert(name.to_owned(), to_json(snapshot, kind)?.into());
    }
    let all = Value::Object(all);
    match args.output {
        Output::Yaml => print!("{}", super::to_yaml(&all)?),
        _ => println!("{}", serde_json::to_string_pretty(&all)?),
    }
    Ok(())
}

/// The resources of one type as canonical JSON, sorted by name.
pub fn to_json(snapshot: &Snapshot, kind: ResourceType) -> anyhow::Result<Vec<Value>> {
    let full_name = kind.type_url().rsplit('/').next().unwrap_or_default();
    let all = snapshot.get(kind).values().map(|one| Ok(proto_json::bytes_to_json(full_name, &one.bytes())?));
    all.collect()
}

fn proxy(args: &Args, store: &Store) -> anyhow::Result<Proxy> {
    if let Some(id) = &args.node_id {
        let metadata = args.node_metadata.as_deref().unwrap_or("{}");
        let metadata: Value = serde_json::from_str(metadata).context("--node-metadata is not JSON")?;
        if !metadata.is_object() {
            bail!("--node-metadata is not a JSON object; expected something like {{\"NAMESPACE\": \"shop\"}}");
        }
        return Ok(Proxy::new(id, NodeMetadata::from_json(&metadata), Locality::default())?);
    }
    let name = args.proxy.as_deref().unwrap_or("default/weir-translate");
    let Some((namespace, pod)) =
        name.split_once('/').filter(|(namespace, pod)| !namespace.is_empty() && !pod.is_empty())
    else {
        bail!("--proxy `{name}` is not of the form NAMESPACE/POD");
    };
    let key = api::ObjectKey::new(api::Kind::Pod, namespace, pod);
    let labels = store.get(&key).map(|entry| entry.object.meta.labels.clone());
    if labels.is_none() && args.proxy.is_some() {
        bail!("there is no {key} in {}", args.file.display());
    }
    let address = pod_address(store, namespace, pod).unwrap_or_else(|| Arc::from("127.0.0.1"));
    let id = format!("sidecar~{address}~{pod}.{namespace}~{namespace}.svc.{}", args.mesh.config().domain);
    let metadata = NodeMetadata { labels: labels.unwrap_or_default(), ..Default::default() };
    Ok(Proxy::new(&id, metadata, Locality::default())?)
}

/// A pod's address as the slices know it; only a pod's metadata is read.
fn pod_address(store: &Store, namespace: &str, pod: &str) -> Option<Arc<str>> {
    let slices = store.all(api::Kind::EndpointSlice).filter(|entry| *entry.object.meta.namespace == *namespace);
    slices.into_iter().find_map(|entry| match &entry.object.spec {
        api::Spec::EndpointSlice(slice) => slice.endpoints.iter().find_map(|one| {
            let target = one.target_ref.as_ref()?;
            (target.kind == "Pod" && target.name == pod)
                .then(|| one.addresses.first().map(|address| address.as_str().into()))?
        }),
        _ => None,
    })
}
