//! `weir dump`: what a proxy was sent.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::remote::{AdminArgs, Output, refused};
use super::translate::TypeName;
use crate::admin::api::v1;
use crate::proto_json;
use crate::snapshot::ResourceType;

/// Print what a proxy was sent, as weir knows it from its answers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir dump shop/client-0 --type routes
  weir dump client-0 -o table
  weir dump shop/client-0 --diff

With --diff it prints where that differs from a translation from scratch. It does while a change is
under way, while something is held back, or because of a mistake in weir.

Exit status 0; 1 where no such proxy is connected, or --diff found a difference.")]
pub struct Args {
    /// The proxy: NAMESPACE/POD, a pod's name where that is enough, or a node id
    #[arg(value_name = "POD")]
    pod: String,
    /// Only this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<TypeName>,
    /// Where it differs from a translation from scratch, instead
    #[arg(long)]
    diff: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print [default: json; table with --diff, a line for each difference]
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// Runs the command.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let request = v1::DumpProxyRequest { proxy: args.pod.clone(), fresh: args.diff };
    let answer = client.dump_proxy(request).await.map_err(refused)?.into_inner();
    let wanted = |resource: &&v1::Resource| args.kind.is_none_or(|kind| kind.is(&resource.type_url));
    if args.diff {
        let sent = by_name(answer.sent.iter().filter(wanted))?;
        let fresh = by_name(answer.fresh.iter().filter(wanted))?;
        let lines = differences(&sent, &fresh);
        let text = || lines.iter().map(|line| format!("{line}\n")).collect();
        args.output.unwrap_or(Output::Table).print(&lines.clone().into(), text)?;
        return Ok(if lines.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut all = Map::new();
    for (name, kind) in [
        ("clusters", ResourceType::Cluster),
        ("endpoints", ResourceType::Endpoints),
        ("listeners", ResourceType::Listener),
        ("routes", ResourceType::Route),
    ] {
        if args.kind.is_some_and(|one| !one.is(kind.type_url())) {
            continue;
        }
        let mut own: Vec<&v1::Resource> = answer.sent.iter().filter(|one| one.type_url == kind.type_url()).collect();
        own.sort_by(|a, b| a.name.cmp(&b.name));
        let list: anyhow::Result<Vec<Value>> = own.into_iter().map(to_json).collect();
        all.insert(name.to_owned(), list?.into());
    }
    args.output.unwrap_or(Output::Json).print(&all.into(), || {
        let mut rows = vec![["TYPE", "NAME", "VERSION", "STATE", "BYTES"].map(str::to_owned).to_vec()];
        for one in answer.sent.iter().filter(wanted) {
            let kind = ResourceType::from_type_url(&one.type_url).map_or("?", ResourceType::short_name);
            let bytes = one.value.len().to_string();
            rows.push(vec![kind.to_owned(), one.name.clone(), one.version.clone(), one.state.clone(), bytes]);
        }
        super::remote::table(&rows)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn to_json(one: &v1::Resource) -> anyhow::Result<Value> {
    Ok(proto_json::bytes_to_json(one.type_url.rsplit('/').next().unwrap_or_default(), &one.value)?)
}

type ByName = BTreeMap<(String, String), Value>;

fn by_name<'a>(all: impl Iterator<Item = &'a v1::Resource>) -> anyhow::Result<ByName> {
    all.map(|one| {
        let kind = ResourceType::from_type_url(&one.type_url).map_or("?", ResourceType::short_name);
        Ok(((kind.to_owned(), one.name.clone()), to_json(one)?))
    })
    .collect()
}

fn differences(sent: &ByName, fresh: &ByName) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, value) in sent {
        let name = format!("{} {}", key.0, key.1);
        match fresh.get(key) {
            None => lines.push(format!("- {name}: the proxy has it, a fresh translation does not")),
            Some(other) => compare(&name, value, other, &mut lines),
        }
    }
    let missing = fresh.keys().filter(|key| !sent.contains_key(*key));
    lines
        .extend(missing.map(|(kind, name)| format!("+ {kind} {name}: a fresh translation has it, the proxy does not")));
    lines
}

fn compare(path: &str, sent: &Value, fresh: &Value, lines: &mut Vec<String>) {
    match (sent, fresh) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let none = json!(null);
                let (a, b) = (a.get(name).unwrap_or(&none), b.get(name).unwrap_or(&none));
                compare(&format!("{path}.{name}"), a, b, lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(n, (a, b))| compare(&format!("{path}[{n}]"), a, b, lines));
        }
        (a, b) if a == b => {}
        (a, b) => lines.push(format!("~ {path}: sent {a}, fresh {b}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_by_resource_and_field() {
        let one = |name: &str, value: Value| (("rds".to_owned(), name.to_owned()), value);
        let sent = BTreeMap::from([one("80", json!({"a": [1, 2]})), one("81", json!({}))]);
        let fresh = BTreeMap::from([one("80", json!({"a": [1, 3]})), one("82", json!({}))]);
        let lines = differences(&sent, &fresh);
        assert_eq!(lines[0], "~ rds 80.a[1]: sent 2, fresh 3");
        assert!(lines[1].starts_with("- rds 81") && lines[2].starts_with("+ rds 82") && lines.len() == 3, "{lines:?}");
        assert!(differences(&sent, &sent).is_empty());
    }
}
