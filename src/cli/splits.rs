//! `weir splits`: lists weighted routes with desired and effective weights, their liveness, and what was observed.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::remote::{AdminArgs, Output, status_error};
use super::table::{table, width, wrapped};
use crate::admin::api::v1;
use crate::proto_json;
use crate::text::listed;

/// Show each weighted route: desired and effective weights, on how many proxies it is live, and what its destinations get
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weir splits
  weir splits -n shop -w

EFFECTIVE differs from WANTED while a subset has no ready endpoint: see --empty-subset of weir serve.
LIVE counts the proxies that have ACKed the effective weights, of those connected to the
replica that is asked that see them.
OBSERVED is the share of requests that proxies report since they have the effective weights, ERRORS
the part of those that failed; ± is what is uncertain about either at 99 %. The last column compares
the errors with those of the first destination: worse, no worse (by more than 2 points), or too few
requests to tell. docs/observed-shares.md says what counts.

Exit status: 0 success, 1 weir cannot be reached.")]
pub(crate) struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    /// Only this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Keep running and print again on every change, and when proxies report
    #[arg(short, long)]
    watch: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = args.admin.client().await?;
    let request = v1::ListSplitsRequest { namespace: args.namespace.unwrap_or_default() };
    if !args.watch {
        let answer = client.list_splits(request).await.map_err(status_error)?.into_inner();
        args.output.print(&proto_json::message_to_json(&answer)?, || text(&answer))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut updates = client.watch_splits(request).await.map_err(status_error)?.into_inner();
    let mut first = true;
    loop {
        tokio::select! {
            update = updates.message() => match update.map_err(status_error)? {
                Some(answer) => {
                    match args.output {
                        _ if std::mem::take(&mut first) => {}
                        Output::Table => super::print("\n")?,
                        Output::Yaml => super::print("---\n")?,
                        Output::Json => {}
                    }
                    args.output.print(&proto_json::message_to_json(&answer)?, || text(&answer))?;
                }
                None => anyhow::bail!("weir closed the stream"),
            },
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

pub(super) fn text(answer: &v1::ListSplitsResponse) -> String {
    if answer.splits.is_empty() {
        return "no weighted routes\n".to_owned();
    }
    let head = [
        "ROUTE",
        "DESTINATION",
        " WANTED",
        " EFFECTIVE",
        "LIVE",
        " OBSERVED",
        " ERRORS",
        "THAN FIRST",
    ];
    let mut out = table(head, answer.splits.iter().flat_map(rows));
    for line in answer.splits.iter().filter_map(remark) {
        out.push_str(&wrapped(&line, &[' '], width()));
    }
    let invalid: BTreeMap<String, &[String]> = answer
        .splits
        .iter()
        .map(|split| (object(&split.object), split.invalid.as_slice()))
        .collect();
    for (object, problems) in invalid {
        for problem in problems {
            let line =
                format!("VirtualService {object}: the newest version is rejected: {problem}");
            out.push_str(&wrapped(&line, &[' '], width()));
        }
    }
    out
}

/// What one has to know about the observed shares of a route; `None` if there is nothing.
fn remark(split: &v1::Split) -> Option<String> {
    let seen = split.observation.as_ref()?;
    let mut parts = Vec::new();
    if seen.reporting < seen.in_scope {
        parts.push(format!("{} of {} proxies report", seen.reporting, seen.in_scope));
    }
    parts.extend(seen.missing_replicas.iter().cloned());
    if seen.left_out {
        parts.push("reports are missing for lack of room".to_owned());
    }
    let others = seen.shared_with.iter().map(|route| {
        format!("{} {}", object(&route.object), route.field.trim_start_matches("spec."))
    });
    let others: Vec<String> = others.collect();
    if !others.is_empty() {
        parts.push(format!("the counts include requests of {}", listed(&others, "and")));
    }
    let route = format!("{} {}", object(&split.object), split.field.trim_start_matches("spec."));
    (!parts.is_empty()).then(|| format!("{route}: {}", parts.join("; ")))
}

/// `NAMESPACE/NAME`: all are VirtualServices.
fn object(object: &Option<v1::ObjectRef>) -> String {
    object
        .as_ref()
        .map(|object| format!("{}/{}", object.namespace, object.name))
        .unwrap_or_default()
}

/// A row for each share; the first row names the route.
fn rows(split: &v1::Split) -> impl Iterator<Item = [String; 8]> {
    let mut names =
        vec![format!("{} {}", object(&split.object), split.field.trim_start_matches("spec."))];
    if split.defined_in != split.object {
        names.push(format!("  in {}", object(&split.defined_in)));
    }
    if !split.name.is_empty() {
        names.push(format!("  {}", split.name));
    }
    let rows = split.shares.len().max(names.len());
    let names = names.into_iter().chain(std::iter::repeat(String::new()));
    let shares = split.shares.iter().map(Some).chain(std::iter::repeat(None));
    names.zip(shares).take(rows).enumerate().map(|(n, (name, share))| {
        let [to, wanted, effective] = share.map(share_cells).unwrap_or_default();
        let observed = share.and_then(|share| share.observed.as_ref());
        let [got, errors, verdict] = observed.map(observed_cells).unwrap_or_default();
        let live =
            if n == 0 { format!("{}/{}", split.live, split.in_scope) } else { String::new() };
        [name, to, wanted, effective, live, got, errors, verdict]
    })
}

fn share_cells(share: &v1::Share) -> [String; 3] {
    let port = if share.port > 0 { format!(":{}", share.port) } else { String::new() };
    let subset = if share.subset.is_empty() { String::new() } else { format!(" {}", share.subset) };
    [format!("{}{port}{subset}", share.host), percent(share.wanted), percent(share.effective)]
}

fn observed_cells(observed: &v1::Observed) -> [String; 3] {
    let v1::Observed { lower, upper, error_lower, error_upper, .. } = *observed;
    let verdict = match observed.verdict() {
        v1::Verdict::Worse => "worse",
        v1::Verdict::NoWorse => "no worse",
        v1::Verdict::TooFewRequests => "too few",
        v1::Verdict::Unspecified => "",
    };
    [
        with_bound(observed.percent, lower, upper),
        with_bound(observed.error_percent, error_lower, error_upper),
        verdict.to_owned(),
    ]
}

/// A value with the farther one of its bounds; `-` if there is none.
fn with_bound(value: Option<f64>, lower: f64, upper: f64) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    let bound = (value - lower).max(upper - value);
    // Never narrower than it is.
    format!("{:.1} ±{:.1} %", value, (bound * 10.0 + 0.5).ceil() / 10.0)
}

fn percent(value: f64) -> String {
    format!("{} %", (value * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split() -> v1::Split {
        let object = v1::ObjectRef {
            kind: "VirtualService".to_owned(),
            namespace: "your-namespace".to_owned(),
            name: "my-app".to_owned(),
        };
        let share = |subset: &str, percent: f64, verdict: v1::Verdict| v1::Share {
            host: "my-app.your-namespace.svc.cluster.local".to_owned(),
            subset: subset.to_owned(),
            port: 8080,
            wanted: percent,
            effective: percent,
            observed: Some(v1::Observed {
                percent: Some(percent),
                lower: percent - 1.02,
                upper: percent + 1.01,
                error_percent: None,
                verdict: verdict.into(),
                ..Default::default()
            }),
        };
        v1::Split {
            object: Some(object.clone()),
            defined_in: Some(object.clone()),
            field: "spec.http[0]".to_owned(),
            shares: vec![
                share("v1", 99.5, v1::Verdict::Unspecified),
                share("v2", 0.5, v1::Verdict::TooFewRequests),
            ],
            live: 1000,
            in_scope: 1000,
            observation: Some(v1::Observation {
                reporting: 3,
                in_scope: 5,
                shared_with: vec![v1::RouteRef {
                    object: Some(object),
                    field: "spec.http[1]".to_owned(),
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_table_fits_its_width_and_says_what_is_missing() {
        let text = text(&v1::ListSplitsResponse { splits: vec![split()] });
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("99.5 ±1.1 %") && text.contains("too few"), "{text}");
        let remark = remark(&split()).unwrap();
        assert_eq!(
            remark,
            "your-namespace/my-app http[0]: 3 of 5 proxies report; the counts include requests of \
             your-namespace/my-app http[1]"
        );
    }

    #[test]
    fn a_bound_is_never_shown_narrower_than_it_is() {
        assert_eq!(with_bound(Some(20.04), 19.01, 21.10), "20.0 ±1.2 %");
        assert_eq!(with_bound(Some(0.0), 0.0, 0.01), "0.0 ±0.1 %");
        assert_eq!(with_bound(None, 0.0, 100.0), "-");
    }
}
