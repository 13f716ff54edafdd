//! `weir explain`: what happens to a request, by the resources that Envoy gets.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;

use super::objects::Objects;
use crate::explain::{self, Destination, Explanation, Outcome, Question, Request};
use crate::mesh::View;
use crate::snapshot::SnapshotBuilder;

/// Say what happens to a request: which route takes it, why not the ones before, and where it goes
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir explain -f objects/ --from shop/client-0 --request 'GET http://web/api/x' -H 'x-user: alice'
  weir explain -f objects/ --from shop/client-0 --tcp db.shop:5432
  weir explain -f objects/ --from shop/client-0 --tcp api.example.com:443 --sni api.example.com

The answer is read from the very resources that the client's Envoy gets from a weir serve that starts
on these objects: weight for a subset without a ready endpoint is held back, as --empty-subset says.
Exit status 1 where the request ends in an error: no route, a missing cluster, or no healthy endpoint.")]
pub struct Args {
    /// The objects: a YAML file, or a folder of them
    #[arg(short, long, value_name = "FILE|DIR")]
    file: PathBuf,
    /// The client: a pod, among the objects or not
    #[arg(long, value_name = "NAMESPACE/POD")]
    from: String,
    /// The request
    #[arg(long, value_name = "METHOD URL", required_unless_present = "tcp")]
    request: Option<String>,
    /// A header of the request
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", requires = "request")]
    headers: Vec<String>,
    /// A connection that is not HTTP, instead of a request
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "request")]
    tcp: Option<String>,
    /// The server name that a TLS client asks for
    #[arg(long, value_name = "NAME", requires = "tcp")]
    sni: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
    #[command(flatten)]
    mesh: super::MeshArgs,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// As one JSON object.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let question = match (&args.request, &args.tcp) {
        (Some(request), _) => Request::parse(request, &args.headers).map(Question::Http).map_err(super::usage)?,
        (None, Some(to)) => tcp(to, args.sni.clone()).map_err(super::usage)?,
        (None, None) => bail!("neither --request nor --tcp is given"),
    };
    let objects = Objects::load(&args.file, args.mesh.config())?;
    let proxy = objects.proxy(&args.from, false)?;
    if !objects.has_pod(&args.from) {
        eprintln!("weir: no pod {} is among the objects: it is taken to have no labels", args.from);
    }
    let scope = objects.mesh.scope(&proxy);
    let snapshot = SnapshotBuilder::default().snapshot(&objects.mesh, &scope, 1);
    let view = View::new(&objects.mesh, &scope);
    let mut answer = explain::explain(&view, &snapshot, &question);
    answer.add_held(&objects.held);
    super::print(&match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&answer)?),
        Output::Yaml => super::to_yaml(&serde_json::to_value(&answer)?)?,
        Output::Table => text(&answer),
    })?;
    Ok(if ends_well(&answer.outcome) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tcp(to: &str, sni: Option<String>) -> Result<Question, String> {
    let parsed = to.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    match parsed.filter(|(host, port)| !host.is_empty() && *port > 0) {
        Some((host, port)) => Ok(Question::Tcp { host: host.to_ascii_lowercase(), port, sni }),
        None => Err(format!("--tcp `{to}` is not of the form HOST:PORT")),
    }
}

fn ends_well(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Forward { destinations, .. } => destinations.iter().all(|to| !to.missing && has_endpoint(to)),
        Outcome::Redirect { .. } => true,
        Outcome::Respond { status, .. } => *status < 500,
        Outcome::NoRoute | Outcome::Closed => false,
    }
}

fn has_endpoint(to: &Destination) -> bool {
    goes_where_it_wants(to) || to.endpoints.iter().any(|one| one.healthy)
}

/// Clusters that go where the client wanted have no endpoints of their own.
fn goes_where_it_wants(to: &Destination) -> bool {
    to.policies.iter().any(|(name, text)| *name == "load balancer" && text == "CLUSTER_PROVIDED")
}

fn text(answer: &Explanation) -> String {
    let mut out = String::new();
    let failure = if answer.route_configuration.is_some() { "503" } else { "the connection is closed" };
    let mut line = |label: &str, text: &str| {
        out.push_str(format!("{label:<18}{text}").trim_end());
        out.push('\n');
    };
    if answer.listener.is_empty() {
        line("listener", "none");
    } else {
        line("listener", &answer.listener);
    }
    if let Some(routes) = &answer.route_configuration {
        line("routes", routes);
    }
    if let Some(host) = &answer.virtual_host {
        line("host", &format!("{host}, by its domain {}", answer.domain.as_deref().unwrap_or_default()));
    }
    for (n, one) in answer.considered.iter().enumerate() {
        let label = if n == 0 { "tried" } else { "" };
        let name = if one.name.is_empty() { String::new() } else { format!(" ({})", one.name) };
        let what = match &one.object {
            Some(object) => format!("{object} {}{name}", one.field),
            None => format!("the host's own route{name}"),
        };
        match &one.not {
            Some(reason) => {
                line(label, &format!("no   {what}"));
                line("", &format!("     {reason}"));
            }
            None => line(label, &format!("yes  {what}")),
        }
    }
    for held in &answer.held {
        line("held", &format!("{}: {}", held.field, held.reason()));
    }
    if !answer.overruled.is_empty() {
        line("overruled", &answer.overruled.join(", "));
    }
    match &answer.outcome {
        Outcome::Forward { destinations, copies, policies } => {
            for (name, value) in policies {
                line(name, value);
            }
            for (label, list) in [("to", destinations), ("copies to", copies)] {
                for one in list {
                    line(label, &format!("{:>6.2} %  {}", one.percent, one.cluster));
                    if one.missing {
                        line("", &format!("          there is no such cluster: {failure}"));
                        continue;
                    }
                    let policies: Vec<String> =
                        one.policies.iter().map(|(name, value)| format!("{name} {value}")).collect();
                    line("", &format!("          {}", policies.join("; ")));
                    for endpoint in &one.endpoints {
                        let state = if endpoint.healthy { "" } else { "  not ready" };
                        let priority = if endpoint.priority > 0 {
                            format!("  priority {}", endpoint.priority)
                        } else {
                            String::new()
                        };
                        let addresses = [std::slice::from_ref(&endpoint.address), &endpoint.other_addresses].concat();
                        let at = format!("{:<24} {}", addresses.join(" or "), endpoint.locality);
                        line("", &format!("            {}{priority}{state}", at.trim_end()));
                    }
                    if goes_where_it_wants(one) {
                        line("", "            the address that the client connects to");
                    } else if !has_endpoint(one) {
                        line("", &format!("            no endpoint takes traffic: {failure}"));
                    }
                }
            }
        }
        Outcome::Redirect { status, location } => line("answer", &format!("{status}, to {location}")),
        Outcome::Respond { status, body } => line("answer", &format!("{status} {body}")),
        Outcome::NoRoute => line("answer", "404: no route takes the request"),
        Outcome::Closed => line("answer", "the connection is closed: nothing takes it"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_traffic_without_an_endpoint_is_said() {
        let to = |balancer: &str, missing: bool| Destination {
            cluster: "c".into(),
            percent: 100.0,
            missing,
            policies: vec![("load balancer", balancer.into())],
            endpoints: Vec::new(),
        };
        let answer = |to: Destination, routes: Option<&str>| {
            let outcome = Outcome::Forward { destinations: vec![to], copies: Vec::new(), policies: Vec::new() };
            text(&Explanation { route_configuration: routes.map(str::to_owned), outcome, ..Explanation::default() })
        };
        let lines = [
            (answer(to("LEAST_REQUEST", false), Some("80")), "no endpoint takes traffic: 503"),
            (answer(to("LEAST_REQUEST", false), None), "no endpoint takes traffic: the connection is closed"),
            (answer(to("LEAST_REQUEST", true), Some("80")), "there is no such cluster: 503"),
            (answer(to("CLUSTER_PROVIDED", false), None), "the address that the client connects to"),
        ];
        for (text, wanted) in lines {
            assert_eq!(text.lines().last().unwrap().trim(), wanted);
        }
    }
}
