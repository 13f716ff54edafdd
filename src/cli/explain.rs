//! `weir explain`: shows how a request is routed, based on the resources that Envoy gets.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

use super::objects::Objects;
use super::remote::{AdminArgs, Output, status_error};
use crate::admin::api::v1;
use crate::explain::{self, Request, TrafficQuery};
use crate::mesh::{MeshConfig, ScopeView};
use crate::proto_json;
use crate::snapshot::SnapshotBuilder;

/// Explain how a request is routed: which route matches, why earlier ones do not, and where it goes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir explain --from shop/client-0 --request 'GET http://web/api/x'
  weir explain -f objects/ --from shop/client-0 --request 'GET http://web/api/x' -H 'x-user: alice'
  weir explain -f objects/ --from shop/client-0 --tcp db.shop:5432
  weir explain -f objects/ --from shop/client-0 --tcp api.example.com:443 --sni api.example.com

Without -f, the running weir answers, by what it serves now. With -f, the result is computed from the
resources that the client's Envoy gets from a weir serve started with these objects: weight for a
subset without a ready endpoint is held back, see --empty-subset.
Exit status 1 if the request ends in an error: no route, a missing cluster, no healthy endpoint, or
none that takes the connection.")]
pub(crate) struct Args {
    /// A YAML file, or a folder of them, with the objects [default: ask the running weir]
    #[arg(short, long, value_name = "FILE|DIR", conflicts_with = "admin")]
    file: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
    /// The client pod; it need not be among the objects
    #[arg(long, value_name = "NAMESPACE/POD")]
    from: String,
    /// The HTTP request
    #[arg(long, value_name = "METHOD URL", required_unless_present = "tcp")]
    request: Option<String>,
    /// A request header
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", requires = "request")]
    headers: Vec<String>,
    /// A non-HTTP connection instead of a request
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "request")]
    tcp: Option<String>,
    /// The server name (SNI) of a TLS client
    #[arg(long, value_name = "NAME", requires = "tcp")]
    sni: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    mesh: super::MeshArgs,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let traffic = match (&args.request, &args.tcp) {
        (Some(request), _) => {
            Request::parse(request, &args.headers).map(TrafficQuery::Http).map_err(super::usage)?
        }
        (None, Some(to)) => TrafficQuery::tcp(to, args.sni.clone())
            .map_err(|why| super::usage(format!("--tcp {why}")))?,
        (None, None) => bail!("one of --request and --tcp is required"),
    };
    let (json, text, succeeds) = match args.file.clone() {
        Some(file) => by_files(args.mesh.config(), &args.from, &file, &traffic)?,
        None => by_weir(&args).await?,
    };
    args.output.print(&json, || text)?;
    Ok(if succeeds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The answer as JSON and as text, and whether the request ends without an error.
type Answer = (serde_json::Value, String, bool);

fn by_files(
    config: MeshConfig,
    from: &str,
    file: &Path,
    traffic: &TrafficQuery,
) -> anyhow::Result<Answer> {
    let objects = Objects::load(file, config)?;
    let proxy = objects.proxy(from, false)?;
    if !objects.has_pod(from) {
        eprintln!("weir: pod {from} is not among the objects: assuming that it has no labels");
    }
    let scope = objects.mesh.scope(&proxy);
    let snapshot = SnapshotBuilder::default().snapshot(&objects.mesh, &scope);
    let view = ScopeView::new(&objects.mesh, &scope);
    let mut answer = explain::explain(&view, &snapshot, traffic);
    answer.add_held(&objects.held);
    let succeeds = explain::succeeds(&answer.outcome);
    Ok((serde_json::to_value(&answer)?, explain::text(&answer), succeeds))
}

async fn by_weir(args: &Args) -> anyhow::Result<Answer> {
    let mut client = args.admin.client().await?;
    let request = v1::ExplainRequest {
        from: args.from.clone(),
        request: args.request.clone().unwrap_or_default(),
        headers: args.headers.clone(),
        tcp: args.tcp.clone().unwrap_or_default(),
        sni: args.sni.clone().unwrap_or_default(),
    };
    let answer = client.explain(request).await.map_err(status_error)?.into_inner();
    if answer.proxy.is_empty() {
        eprintln!("weir: the proxy of {} is not connected: this is what it would get", args.from);
    }
    let mut json = proto_json::message_to_json(&answer)?;
    let explanation = json.get_mut("explanation").context("the answer has no explanation")?.take();
    Ok((explanation, answer.text, answer.succeeds))
}
