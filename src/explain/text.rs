//! The answer of [`super::explain`] as text for people.

use std::collections::BTreeMap;

use super::{ConsideredRoute, Destination, Explanation, Outcome};

/// Whether the request is answered without an error: it has a route, the clusters exist, and each has a healthy
/// endpoint that does not refuse the connection.
pub(crate) fn succeeds(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Forward { destinations, .. } => {
            destinations.iter().all(|to| trouble(to).is_none())
        }
        Outcome::Redirect { .. } => true,
        Outcome::Respond { status, .. } => *status < 500,
        Outcome::NoRoute | Outcome::Closed => false,
    }
}

fn has_healthy_endpoint(to: &Destination) -> bool {
    uses_original_destination(to) || to.endpoints.iter().any(|endpoint| endpoint.healthy)
}

/// Clusters that use the original destination have no endpoints of their own.
fn uses_original_destination(to: &Destination) -> bool {
    to.policies.iter().any(|(name, text)| *name == "load balancer" && text == "CLUSTER_PROVIDED")
}

/// Lines with a label in front.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, label: &str, text: &str) {
        self.0.push_str(format!("{label:<18}{text}").trim_end());
        self.0.push('\n');
    }
}

/// The answer as lines for people.
pub(crate) fn text(answer: &Explanation) -> String {
    let mut lines = Lines::default();
    let listener = if answer.listener.is_empty() { "none" } else { &answer.listener };
    lines.add("listener", listener);
    if let Some(routes) = &answer.route_configuration {
        lines.add("routes", routes);
    }
    if let Some(host) = &answer.virtual_host {
        let domain = answer.domain.as_deref().unwrap_or_default();
        lines.add("host", &format!("{host}, matched by domain {domain}"));
    }
    add_considered(&answer.considered, &mut lines);
    for held in &answer.held {
        lines.add("held", &format!("{}: {}", held.field, held.reason()));
    }
    if !answer.overruled.is_empty() {
        lines.add("overruled", &answer.overruled.join(", "));
    }
    match &answer.outcome {
        Outcome::Forward { destinations, copies, policies } => {
            for (name, value) in policies {
                lines.add(name, value);
            }
            let failure = failure(answer);
            for (label, list) in [("to", destinations), ("mirrored to", copies)] {
                for to in list {
                    add_destination(label, to, failure, &mut lines);
                }
            }
        }
        other => lines.add("response", &response(other)),
    }
    lines.0
}

/// What happens to traffic that a destination cannot take.
fn failure(answer: &Explanation) -> &'static str {
    if answer.route_configuration.is_some() { "503" } else { "the connection is closed" }
}

/// The answer of the proxy itself.
fn response(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Redirect { status, location } => format!("{status}, to {location}"),
        Outcome::Respond { status, body } => format!("{status} {body}"),
        Outcome::NoRoute => "404: no route matches".to_owned(),
        Outcome::Closed => "the connection is closed: nothing matches".to_owned(),
        Outcome::Forward { .. } => String::new(),
    }
}

/// Where traffic ends up, for people: a line for each destination with its share in percent, or one for the response.
/// It is the same for two requests that differ only in what happens on the way.
pub(crate) fn ends(answer: &Explanation) -> Vec<String> {
    let Outcome::Forward { destinations, copies, .. } = &answer.outcome else {
        return vec![response(&answer.outcome)];
    };
    let failure = failure(answer);
    // By what is the same to the request: neither the order of destinations nor how often one is named matters.
    let mut shares: BTreeMap<(&str, String), f64> = BTreeMap::new();
    let labelled = [("", destinations), ("mirrored to ", copies)].into_iter();
    for (label, to) in labelled.flat_map(|(label, list)| list.iter().map(move |to| (label, to))) {
        let end = match trouble(to) {
            Some(trouble) => format!("{}: {trouble}: {failure}", to.cluster),
            None => to.cluster.clone(),
        };
        *shares.entry((label, end)).or_default() += to.percent;
    }
    let lines =
        shares.into_iter().map(|((label, to), share)| format!("{label}{share:>6.2} %  {to}"));
    lines.collect()
}

fn add_considered(considered: &[ConsideredRoute], lines: &mut Lines) {
    for (n, route) in considered.iter().enumerate() {
        let label = if n == 0 { "tried" } else { "" };
        let name = match route.name.as_str() {
            "" => String::new(),
            name => format!(" ({name})"),
        };
        let what = match &route.object {
            Some(object) => format!("{object} {}{name}", route.field),
            None => format!("the default route of the host{name}"),
        };
        match &route.not {
            Some(reason) => {
                lines.add(label, &format!("no   {what}"));
                lines.add("", &format!("     {reason}"));
            }
            None => lines.add(label, &format!("yes  {what}")),
        }
    }
}

/// `failure` is what happens to traffic that the destination cannot take.
fn add_destination(label: &str, to: &Destination, failure: &str, lines: &mut Lines) {
    lines.add(label, &format!("{:>6.2} %  {}", to.percent, to.cluster));
    let trouble = trouble(to).map(|trouble| format!("{trouble}: {failure}"));
    if to.missing {
        lines.add("", &format!("          {}", trouble.unwrap_or_default()));
        return;
    }
    let policies: Vec<String> =
        to.policies.iter().map(|(name, value)| format!("{name} {value}")).collect();
    lines.add("", &format!("          {}", policies.join("; ")));
    for endpoint in &to.endpoints {
        let state = if endpoint.healthy { "" } else { "  not ready" };
        let priority = match endpoint.priority {
            0 => String::new(),
            priority => format!("  priority {priority}"),
        };
        let addresses =
            [std::slice::from_ref(&endpoint.address), &endpoint.other_addresses].concat();
        let at = format!("{:<24} {}", addresses.join(" or "), endpoint.locality);
        lines.add("", &format!("            {}{priority}{state}", at.trim_end()));
    }
    if uses_original_destination(to) {
        lines.add("", "            the original destination address");
    }
    if let Some(trouble) = trouble {
        lines.add("", &format!("            {trouble}"));
    }
}

/// Why a destination takes no traffic; `None` if it does.
fn trouble(to: &Destination) -> Option<&'static str> {
    if to.missing {
        Some("this cluster does not exist")
    } else if to.refused {
        Some("every endpoint refuses the connection")
    } else if !has_healthy_endpoint(to) {
        Some("no endpoint is ready")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(balancer: &str, missing: bool) -> Destination {
        Destination {
            cluster: "c".into(),
            percent: 100.0,
            missing,
            refused: false,
            policies: vec![("load balancer", balancer.into())],
            endpoints: Vec::new(),
        }
    }

    fn answer(to: Destination, routes: Option<&str>) -> String {
        let outcome =
            Outcome::Forward { destinations: vec![to], copies: Vec::new(), policies: Vec::new() };
        text(&Explanation {
            route_configuration: routes.map(str::to_owned),
            outcome,
            ..Explanation::default()
        })
    }

    #[test]
    fn traffic_without_an_endpoint_is_explained() {
        let lines = [
            (answer(to("LEAST_REQUEST", false), Some("80")), "no endpoint is ready: 503"),
            (
                answer(to("LEAST_REQUEST", false), None),
                "no endpoint is ready: the connection is closed",
            ),
            (answer(to("LEAST_REQUEST", true), Some("80")), "this cluster does not exist: 503"),
            (answer(to("CLUSTER_PROVIDED", false), None), "the original destination address"),
            (
                answer(Destination { refused: true, ..to("LEAST_REQUEST", false) }, Some("80")),
                "every endpoint refuses the connection: 503",
            ),
        ];
        for (text, wanted) in lines {
            assert_eq!(text.lines().last().unwrap().trim(), wanted);
        }
    }
}
