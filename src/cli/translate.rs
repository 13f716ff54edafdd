//! `weir translate`: prints the full configuration of one proxy.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum as _;
use serde_json::{Map, Value};

use super::objects::Objects;
use super::table::table;
use super::usage;
use crate::mesh::{Locality, NodeMetadata, Proxy};
use crate::proto_json;
use crate::snapshot::{ResourceType, Snapshot, SnapshotBuilder};

/// Flags of `weir translate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir translate -f deploy/examples/canary --proxy your-namespace/my-app-v1-0 -o table
  weir translate -f mesh.yaml --type routes -o yaml
  weir translate -f mesh.yaml --node-id 'sidecar~10.9.0.1~client-0.shop~shop.svc.cluster.local' \\
      --node-metadata '{\"LABELS\": {\"app\": \"client\"}, \"INTERCEPTION_MODE\": \"NONE\"}'

Without --proxy and --node-id the proxy is in namespace default and has no labels.
The result is what a weir serve started with these objects sends: weight for a subset without a ready
endpoint is held back, see --empty-subset. Standard error lists held-back changes and invalid objects;
the latter set the exit status to 1.")]
pub struct Args {
    /// A YAML or JSON file, or a folder of them, with Kubernetes and Istio objects
    #[arg(short, long, value_name = "FILE|DIR")]
    file: PathBuf,
    /// The proxy's pod; its labels and address come from the objects
    #[arg(long, value_name = "NAMESPACE/POD", conflicts_with = "node_id")]
    proxy: Option<String>,
    /// The proxy's node id: sidecar~IP~POD.NAMESPACE~DNSDOMAIN
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// The proxy's node metadata, as JSON
    #[arg(long, value_name = "JSON", requires = "node_id")]
    node_metadata: Option<String>,
    /// Only this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<TypeName>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "json")]
    output: Output,
    #[command(flatten)]
    mesh: super::MeshArgs,
}

/// A resource type on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TypeName {
    /// CDS.
    Clusters,
    /// EDS.
    Endpoints,
    /// LDS.
    Listeners,
    /// RDS.
    Routes,
}

impl TypeName {
    /// The type.
    pub(crate) fn resource_type(self) -> ResourceType {
        match self {
            TypeName::Clusters => ResourceType::Cluster,
            TypeName::Endpoints => ResourceType::Endpoints,
            TypeName::Listeners => ResourceType::Listener,
            TypeName::Routes => ResourceType::Route,
        }
    }

    /// The name in the output.
    fn as_str(self) -> &'static str {
        match self {
            TypeName::Clusters => "clusters",
            TypeName::Endpoints => "endpoints",
            TypeName::Listeners => "listeners",
            TypeName::Routes => "routes",
        }
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// Canonical proto3 JSON with every `Any` expanded.
    Json,
    /// The same as YAML.
    Yaml,
    /// A table of names and sizes.
    Table,
}

/// Runs the command: prints the configuration, and problems with the objects on standard error (exit status 1).
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let objects = Objects::load(&args.file, args.mesh.config())?;
    let proxy = match &args.node_id {
        Some(id) => by_node(id, args.node_metadata.as_deref())?,
        None => match &args.proxy {
            Some(name) => objects.proxy(name, true)?,
            None => objects.proxy("default/weir-translate", false)?,
        },
    };
    objects.held.iter().for_each(|held| eprintln!("held: {held}"));
    let mesh = &objects.mesh;
    let snapshot = SnapshotBuilder::default().snapshot(mesh, &mesh.scope(&proxy));
    print(&args, &snapshot)?;
    Ok(if objects.problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(args: &Args, snapshot: &Snapshot) -> anyhow::Result<()> {
    let wanted = TypeName::value_variants()
        .iter()
        .filter(|name| args.kind.is_none_or(|kind| kind == **name));
    if args.output == Output::Table {
        let rows = wanted.flat_map(|name| {
            let resources = snapshot.get(name.resource_type()).values();
            resources.map(|item| {
                [name.as_str().to_owned(), item.name.to_string(), item.len().to_string()]
            })
        });
        return super::print(&table(["TYPE", "NAME", " BYTES"], rows));
    }
    let mut all = Map::new();
    for name in wanted {
        all.insert(name.as_str().to_owned(), to_json(snapshot, name.resource_type())?.into());
    }
    let all = Value::Object(all);
    super::print(&match args.output {
        Output::Yaml => super::to_yaml(&all)?,
        _ => proto_json::to_text(&all),
    })
}

/// The resources of one type as canonical JSON, sorted by name.
pub fn to_json(snapshot: &Snapshot, kind: ResourceType) -> anyhow::Result<Vec<Value>> {
    let full_name = kind.type_url().rsplit('/').next().unwrap_or_default();
    let all = snapshot
        .get(kind)
        .values()
        .map(|item| Ok(proto_json::bytes_to_json(full_name, &item.bytes())?));
    all.collect()
}

fn by_node(id: &str, metadata: Option<&str>) -> anyhow::Result<Proxy> {
    let like = r#"expected a JSON object like {"NAMESPACE": "shop"}"#;
    let metadata: Value = serde_json::from_str(metadata.unwrap_or("{}"))
        .map_err(|error| usage(format!("--node-metadata is not JSON: {error}; {like}")))?;
    if !metadata.is_object() {
        return Err(usage(format!("--node-metadata is {metadata}; {like}")));
    }
    let proxy = Proxy::new(id, NodeMetadata::from_json(&metadata), Locality::default());
    proxy.map_err(|error| usage(format!("--node-id: {error}")))
}
