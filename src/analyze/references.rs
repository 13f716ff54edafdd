//! Checks the references of VirtualServices: hosts, ports, subsets, delegates and namespaces that do not exist or are
//! not visible.

use std::collections::{BTreeSet, HashSet};

use super::index::{
    ELSEWHERE, Index, IndexedDestinationRule, IndexedService, IndexedVirtualService, Match, shown,
    wildcards,
};
use super::{Findings, any_of, code};
use crate::api::{Delegate, Destination, Kind, ObjectKey};
use crate::mesh::{self, Visibility};

pub(super) fn check(
    virtual_service: &IndexedVirtualService<'_>,
    index: &Index<'_>,
    found: &mut Findings,
) {
    namespaces(virtual_service, index, found);
    ports(virtual_service, index, found);
    for (path, to) in virtual_service.destinations() {
        destination(virtual_service, to, &path, index, found);
    }
    for (n, route) in virtual_service.spec.http.iter().enumerate() {
        if let Some(to) = &route.delegate {
            delegate(virtual_service, to, &format!("spec.http[{n}].delegate"), index, found);
        }
    }
}

/// Namespaces that do not exist.
fn namespaces(
    virtual_service: &IndexedVirtualService<'_>,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let exported = virtual_service
        .spec
        .export_to
        .iter()
        .enumerate()
        .map(|(n, name)| (format!("spec.exportTo[{n}]"), name.as_str()));
    let matched = virtual_service
        .matches()
        .map(|(path, conditions)| (format!("{path}.sourceNamespace"), conditions.source_namespace));
    for (path, name) in exported.chain(matched) {
        unknown_namespace(virtual_service.entry, name, path, index, found);
    }
}

/// Reports `name` if it is a namespace that does not exist.
pub(super) fn unknown_namespace(
    entry: &crate::store::Entry,
    name: &str,
    path: String,
    index: &Index<'_>,
    found: &mut Findings,
) {
    if !matches!(name, "" | "*" | "." | "~") && index.is_unknown_namespace(name) {
        let message = format!("namespace `{name}` does not exist");
        found.add(
            &code::UNKNOWN_NAMESPACE,
            entry,
            path,
            message,
            "check its spelling, or create it",
        );
    }
}

/// Ports that none of the VirtualService's services has.
fn ports(virtual_service: &IndexedVirtualService<'_>, index: &Index<'_>, found: &mut Findings) {
    let matched: Vec<_> =
        virtual_service.matches().filter(|(_, conditions)| conditions.port != 0).collect();
    if matched.is_empty() || virtual_service.hosts.is_empty() || !virtual_service.is_for_mesh() {
        return;
    }
    let mut known = HashSet::new();
    for host in &virtual_service.hosts {
        match index
            .service(host)
            .filter(|service| !mesh::is_wildcard(host) && !service.ports.is_empty())
        {
            Some(service) => {
                known.extend(service.ports.iter().map(|(number, _)| u32::from(*number)));
            }
            // Nothing is known about such a host, so any port may be valid.
            None => return,
        }
    }
    let mut list: Vec<_> = known.iter().copied().collect();
    list.sort_unstable();
    for (path, Match { port, .. }) in matched {
        if !known.contains(&port) {
            let message = format!("none of the hosts has port {port}, so it matches nothing");
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            let advice = format!("use the port of the service, {}", any_of(&list));
            found.add(
                &code::UNKNOWN_PORT,
                virtual_service.entry,
                format!("{path}.port"),
                message,
                advice,
            );
        }
    }
}

fn destination(
    virtual_service: &IndexedVirtualService<'_>,
    to: &Destination,
    path: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let host = mesh::resolve(&to.host, virtual_service.namespace(), &index.config.domain);
    let Some(service) = index.services.get(&host) else {
        if !index.is_rejected_host(&host) {
            let (message, advice) = no_service(&host, index);
            found.add(
                &code::REFERENCE,
                virtual_service.entry,
                format!("{path}.host"),
                message,
                advice,
            );
        }
        return;
    };
    visibility(virtual_service, &host, path, index, found);
    let Some((canonical_host, real)) = index.real_service(&host) else {
        if let Some(target) =
            service.alias_of.as_ref().filter(|target| !index.is_rejected_host(target))
        {
            let what = match index.services.contains_key(target) {
                true => "is an ExternalName as well",
                false => "is not a known service",
            };
            let message = format!(
                "{} is an alias of `{target}`, which {what}: requests get 503",
                shown(&host, index.config)
            );
            let advice = format!("add a ServiceEntry for `{target}`, or route to a service");
            found.add(
                &code::REFERENCE,
                virtual_service.entry,
                format!("{path}.host"),
                message,
                advice,
            );
        }
        return;
    };
    port(virtual_service, to, path, (service, real), canonical_host, index, found);
    if !to.subset.is_empty() {
        subset(
            virtual_service,
            (&host, canonical_host),
            &to.subset,
            &format!("{path}.subset"),
            index,
            found,
        );
    }
}

/// Clients that use the route but do not see the service `host`.
fn visibility(
    virtual_service: &IndexedVirtualService<'_>,
    host: &str,
    path: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let name = shown(host, index.config);
    if !index.is_seen(host, virtual_service.namespace()) {
        let message = format!(
            "the service {name} is not exported to the namespace {}",
            virtual_service.namespace()
        );
        let advice = format!("add {} to its exportTo", virtual_service.namespace());
        found.add(&code::REFERENCE, virtual_service.entry, format!("{path}.host"), message, advice);
    } else if let Some(client) =
        other_clients(virtual_service).into_iter().find(|client| !index.is_seen(host, client))
    {
        let message = format!(
            "clients in {} use this route too, and do not see the service {name}: they get 503",
            namespace_name(client)
        );
        let advice = "export the service to them, or set spec.exportTo: [.] here";
        found.add(
            &code::SERVICE_VISIBILITY,
            virtual_service.entry,
            format!("{path}.host"),
            message,
            advice,
        );
    }
}

/// Why a destination's host does not resolve, and what to do.
fn no_service(host: &str, index: &Index<'_>) -> (String, String) {
    if let Some(wildcard) =
        wildcards(host).find(|wildcard| index.services.contains_key(wildcard.as_str()))
    {
        let message = format!(
            "service `{host}` does not exist: `{wildcard}` covers it, which is not a routable name"
        );
        return (message, format!("route to `{wildcard}`, or add a ServiceEntry for `{host}`"));
    }
    let advice = match index.similar(host).as_slice() {
        [] => {
            "check its spelling and namespace, or add a Service or ServiceEntry for it".to_owned()
        }
        similar => format!("did you mean {}?", any_of(similar)),
    };
    (format!("service `{host}` does not exist"), advice)
}

/// The port of a destination. `service` is the one it names, `real` the one that has the clusters.
fn port(
    virtual_service: &IndexedVirtualService<'_>,
    to: &Destination,
    path: &str,
    (service, real): (&IndexedService, &IndexedService),
    canonical_host: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let (numbers, name) = (real.port_numbers(), shown(canonical_host, index.config));
    // Without a port, the only port of the named service is used, or the port of the request if it has several.
    let only = match service.ports.as_slice() {
        [(number, _)] => Some(u32::from(*number)),
        _ => None,
    };
    match (to.port.map(|port| port.number), only) {
        (Some(number), _) if !real.may_have_port(number) => {
            let message = format!("the service {name} has no port {number}");
            let advice = format!("use {}", any_of(&numbers));
            found.add(
                &code::REFERENCE,
                virtual_service.entry,
                format!("{path}.port.number"),
                message,
                advice,
            );
        }
        (None, Some(number)) if !real.may_have_port(number) => {
            let message = format!(
                "the only port of this ExternalName is {number}, which {name} does not have"
            );
            let advice = format!("add port: {{number: {}}}", any_of(&numbers));
            found.add(&code::REFERENCE, virtual_service.entry, path, message, advice);
        }
        (None, None) if numbers.len() == 1 && service.alias_of.is_some() => {
            let requests = request_ports(virtual_service, index);
            let other = requests.into_iter().find(|number| !real.may_have_port(u32::from(*number)));
            if let Some(other) = other {
                let message = format!(
                    "this ExternalName has no port and none is specified, so the port of the request is used, and {name} \
                     does not have port {other}"
                );
                let advice = format!("add port: {{number: {}}}", any_of(&numbers));
                found.add(&code::PORT_REQUIRED, virtual_service.entry, path, message, advice);
            }
        }
        (None, None) if numbers.len() > 1 => {
            let message = format!(
                "the service {name} has the ports {}, and none is specified",
                numbers.join(", ")
            );
            let advice = format!("add port: {{number: {}}}", any_of(&numbers));
            found.add(&code::PORT_REQUIRED, virtual_service.entry, path, message, advice);
        }
        _ => {}
    }
}

/// The ports of the requests that reach a VirtualService, directly or through those that delegate to it.
fn request_ports(virtual_service: &IndexedVirtualService<'_>, index: &Index<'_>) -> BTreeSet<u16> {
    let key = virtual_service.entry.object.key();
    let delegating = index.virtual_services.iter().filter(|root| {
        let mut delegates = root.spec.http.iter().filter_map(|route| route.delegate.as_ref());
        virtual_service.hosts.is_empty() && delegates.any(|to| target(root, to) == key)
    });
    let mut ports = BTreeSet::new();
    for host in virtual_service.hosts.iter().chain(delegating.flat_map(|root| &root.hosts)) {
        let covered = index.services.iter().filter(|(known, _)| mesh::covers(host, known));
        let own: Vec<u16> =
            covered.flat_map(|(_, service)| &service.ports).map(|(number, _)| *number).collect();
        // A name without a service is routed on the default HTTP port.
        ports.extend(if own.is_empty() { vec![80] } else { own });
    }
    ports
}

/// The subset `name` of a destination, given the host that it names and the host that has the clusters.
fn subset(
    virtual_service: &IndexedVirtualService<'_>,
    (named, host): (&str, &str),
    name: &str,
    path: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    let short = shown(host, index.config);
    let rules = index.rules(host, virtual_service.namespace());
    if virtual_service.visibility.includes(virtual_service.namespace())
        && !rules.iter().any(|rule| rule.has_subset(name))
    {
        if index.is_rejected_subset(host, name) {
            return;
        }
        let of_alias = index.rules_by_host.get(named).into_iter().flatten();
        let mut of_alias =
            of_alias.filter_map(|n| index.destination_rules.get(*n)).filter(|_| named != host);
        let (message, advice) = match of_alias.find(|rule| rule.has_subset(name)) {
            Some(rule) => (
                format!(
                    "subset `{name}` is defined in {}, which is not used: {} is an ExternalName and has the subsets \
                        of {short}",
                    rule.entry.object.key(),
                    shown(named, index.config)
                ),
                format!("add the subset to a DestinationRule for {short}"),
            ),
            None => missing_subset(virtual_service, host, name, &rules, index),
        };
        found.add(&code::REFERENCE, virtual_service.entry, path, message, advice);
        return;
    }
    let mut clients = other_clients(virtual_service).into_iter();
    if let Some(client) =
        clients.find(|client| !index.rules(host, client).iter().any(|rule| rule.has_subset(name)))
    {
        let who = namespace_name(client);
        let message = format!(
            "clients in {who} also use this route but see no DestinationRule that defines subset `{name}` of {short}: \
                they get 503"
        );
        let advice = "move the DestinationRule to the service's namespace and export it, or set spec.exportTo: [.] here";
        found.add(&code::SUBSET_VISIBILITY, virtual_service.entry, path, message, advice);
    }
}

/// The namespaces other than its own whose clients use a VirtualService.
fn other_clients<'a>(virtual_service: &'a IndexedVirtualService<'_>) -> Vec<&'a str> {
    match &virtual_service.visibility {
        Visibility::Public => vec![ELSEWHERE],
        Visibility::Namespaces(names) => names
            .iter()
            .map(|name| &**name)
            .filter(|name| **name != **virtual_service.namespace())
            .collect(),
    }
}

fn namespace_name(client: &str) -> String {
    if client == ELSEWHERE { "other namespaces".to_owned() } else { format!("namespace {client}") }
}

/// Why the subset does not exist, and what to do.
fn missing_subset(
    virtual_service: &IndexedVirtualService<'_>,
    host: &str,
    name: &str,
    rules: &[&IndexedDestinationRule<'_>],
    index: &Index<'_>,
) -> (String, String) {
    let short = shown(host, index.config);
    let places = index.rules_by_host.get(host).into_iter().flatten();
    let unseen =
        places.filter_map(|n| index.destination_rules.get(*n)).find(|rule| rule.has_subset(name));
    if let Some(rule) = unseen {
        let key = rule.entry.object.key();
        let message = format!(
            "subset `{name}` of {short} is defined in {key}, which clients in {} do not \
                use",
            virtual_service.namespace()
        );
        let advice = if rule.visibility.includes(virtual_service.namespace()) {
            format!(
                "move the rule to the service's namespace, or add the subset to a rule in \
                {}",
                virtual_service.namespace()
            )
        } else {
            format!("add {} to the rule's exportTo", virtual_service.namespace())
        };
        return (message, advice);
    }
    let Some(rule) = rules.first() else {
        let message = format!(
            "subset `{name}` of {short} does not exist: there is no DestinationRule for the host"
        );
        return (message, format!("add a DestinationRule for {short} that defines the subset"));
    };
    let known = rules.iter().flat_map(|rule| &rule.spec.subsets);
    let known: Vec<_> = known.map(|subset| format!("`{}`", subset.name)).take(8).collect();
    let key = rule.entry.object.key();
    let message = format!("subset `{name}` of {short} does not exist in {key}");
    let advice = if known.is_empty() {
        "add it there".to_owned()
    } else {
        format!("add it there, or use {}", any_of(&known))
    };
    (message, advice)
}

/// The VirtualService that a route delegates to.
fn target(virtual_service: &IndexedVirtualService<'_>, to: &Delegate) -> ObjectKey {
    let namespace =
        if to.namespace.is_empty() { &**virtual_service.namespace() } else { &to.namespace };
    ObjectKey::new(Kind::VirtualService, namespace, &to.name)
}

fn delegate(
    virtual_service: &IndexedVirtualService<'_>,
    to: &Delegate,
    path: &str,
    index: &Index<'_>,
    found: &mut Findings,
) {
    if to.name.is_empty() {
        return;
    }
    let key = target(virtual_service, to);
    let at = index.virtual_services.binary_search_by(|other| {
        let meta = &other.entry.object.meta;
        (&meta.namespace, &meta.name).cmp(&(&key.namespace, &key.name))
    });
    let (message, advice) = match at.ok().and_then(|at| index.virtual_services.get(at)) {
        None if index.is_rejected(&key) => return,
        None => (format!("{key} does not exist"), "check its name and namespace"),
        Some(other) if !other.spec.hosts.is_empty() => (
            format!("{key} has hosts, so it is not a delegate"),
            "remove its hosts, or create a copy without hosts",
        ),
        Some(other) if !other.visibility.includes(virtual_service.namespace()) => (
            format!("{key} is not exported to the namespace {}", virtual_service.namespace()),
            "add it to its exportTo",
        ),
        Some(_) => return,
    };
    found.add(
        &code::REFERENCE,
        virtual_service.entry,
        path,
        format!("{message}; the route is ignored"),
        advice,
    );
}

/// Unused delegates.
pub(super) fn delegates(index: &Index<'_>, found: &mut Findings) {
    let mut used: HashSet<ObjectKey> = index.rejected_delegates().cloned().collect();
    for virtual_service in &index.virtual_services {
        used.extend(
            virtual_service
                .spec
                .http
                .iter()
                .filter_map(|route| route.delegate.as_ref())
                .map(|to| target(virtual_service, to)),
        );
    }
    for delegate in index
        .virtual_services
        .iter()
        .filter(|virtual_service| virtual_service.spec.hosts.is_empty())
    {
        if !used.contains(&delegate.entry.object.key()) {
            let message =
                "has no hosts, and no VirtualService delegates to it: its routes are unused";
            found.add(
                &code::UNUSED_DELEGATE,
                delegate.entry,
                "",
                message,
                "add hosts, or delegate to it",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::tests::{
        base, found, found_in_route as route, found_in_virtual_service as spec, store,
    };
    use crate::mesh::MeshConfig;

    #[test]
    fn destinations_resolve() {
        for (to, code, path) in [
            ("host: nobody", "IST0101", "host"),
            ("host: web.shop", "IST0101", "host"),
            ("host: web.shop.svc.cluster.local, subset: v3", "IST0101", "subset"),
            ("host: other, subset: v1", "IST0101", "subset"),
            ("host: web, port: {number: 81}", "IST0101", "port.number"),
            ("host: many", "IST0112", ""),
            ("host: hidden", "IST0101", "host"),
        ] {
            for (before, after, place) in [
                ("route: [{destination: {", "}}]", "route[0].destination"),
                ("route: [{destination: {host: web}}], mirror: {", "}", "mirror"),
                (
                    "route: [{destination: {host: web}}], mirrors: [{destination: {",
                    "}}]",
                    "mirrors[0].destination",
                ),
            ] {
                let path = format!("spec.http[0].{place}.{path}").trim_end_matches('.').to_owned();
                assert_eq!(route(&format!("{before}{to}{after}")), [(code, path)], "{to}");
            }
            for kind in ["tcp", "tls"] {
                let matches = if kind == "tls" { "match: [{sniHosts: [x.a.b]}], " } else { "" };
                let got = spec(&format!(
                    "hosts: ['*.a.b'], {kind}: [{{{matches}route: [{{destination: {{{to}}}}}]}}]"
                ));
                let path = format!("spec.{kind}[0].route[0].destination.{path}")
                    .trim_end_matches('.')
                    .to_owned();
                assert_eq!(got, [(code, path)], "{kind} {to}");
            }
        }
        for fine in [
            "host: many, port: {number: 81}",
            "host: WEB",
            "host: web, subset: v2",
            "host: web.shop.svc.cluster.local",
        ] {
            assert_eq!(route(&format!("route: [{{destination: {{{fine}}}}}]")), [], "{fine}");
        }
    }

    const TO: &str =
        "http: [{route: [{destination: {host: web.pay.svc.cluster.local, subset: v1}}]}]";

    /// A subset of a service in `pay` as the namespace `shop` sees it, with the rule in `rule_namespace`.
    fn elsewhere(rule_namespace: &str, rule: &str, service: &str) -> Vec<(&'static str, String)> {
        found(&format!(
            "{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: pay}}\n\
             spec: {{clusterIP: 10.0.0.9, ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: r, namespace: {rule_namespace}}}\n\
             spec: {{host: web.pay.svc.cluster.local, subsets: [{{name: v1, labels: {{version: v1}}}}], {rule}}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
             spec: {{hosts: ['*.x.y'], {TO}, {service}}}\n",
            base()
        ))
    }

    #[test]
    fn a_subset_is_visible_where_its_rule_applies() {
        let path = "spec.http[0].route[0].destination.subset".to_owned();
        assert_eq!(elsewhere("pay", "", ""), []);
        assert_eq!(elsewhere("istio-system", "", ""), []);
        assert_eq!(elsewhere("third", "", ""), [("IST0101", path.clone())]);
        assert_eq!(elsewhere("pay", "exportTo: [.]", ""), [("IST0101", path.clone())]);
        assert_eq!(elsewhere("shop", "", ""), [("WEIR0104", path.clone())]);
        assert_eq!(elsewhere("shop", "", "exportTo: [.]"), []);
        assert_eq!(elsewhere("shop", "", "exportTo: [., third]"), [("WEIR0104", path.clone())]);
        assert_eq!(elsewhere("pay", "exportTo: [shop]", ""), [("WEIR0104", path)]);
    }

    fn object(host: &str) -> String {
        format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
             spec: {{hosts: ['*.a.b'], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}\n",
            base()
        )
    }

    fn advice_for(host: &str) -> String {
        analyze(&store(&object(host)), &MeshConfig::default()).remove(0).advice
    }

    #[test]
    fn similar_names_are_suggested() {
        assert_eq!(advice_for("wbe"), "did you mean `web.shop.svc.cluster.local`?");
        assert_eq!(advice_for("web.shop"), "did you mean `web.shop.svc.cluster.local`?");
        assert!(advice_for("nothing-like-it").starts_with("check its spelling"));
    }

    fn found_at_port(host: &str, port: u16) -> Vec<(&'static str, String)> {
        let to = "route: [{destination: {host: web}}]";
        spec(&format!("hosts: [{host}], http: [{{match: [{{port: {port}}}], {to}}}]"))
    }

    #[test]
    fn a_port_that_no_host_has_matches_nothing() {
        assert_eq!(found_at_port("web", 80), []);
        assert_eq!(found_at_port("web", 81), [("WEIR0106", "spec.http[0].match[0].port".into())]);
        assert_eq!(found_at_port("'*.a.b'", 81), []);
    }

    fn delegate(meta: &str, spec: &str) -> String {
        let to = "http: [{route: [{destination: {host: web}}]}]";
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{{meta}}}\nspec: {{{spec}{to}}}\n"
        )
    }

    fn found_with_root(delegate: &str) -> Vec<(&'static str, String)> {
        let root = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: root, namespace: shop}\n\
                    spec: {hosts: ['*.a.b'], http: [{delegate: {name: d, namespace: shop}}]}\n";
        found(&format!("{}{root}{delegate}", base()))
    }

    #[test]
    fn delegates_exist_and_have_no_hosts() {
        let missing = [("IST0101", "spec.http[0].delegate".to_owned())];
        assert_eq!(found_with_root(&delegate("name: d, namespace: shop", "")), []);
        assert_eq!(
            found_with_root(&delegate("name: d, namespace: shop", "hosts: ['*.c.d'], ")),
            missing
        );
        assert_eq!(
            found_with_root(&delegate("name: d, namespace: shop", "exportTo: [pay], ")),
            missing
        );
        let both = found_with_root(&delegate("name: other, namespace: shop", ""));
        assert_eq!(
            both,
            [("IST0101", "spec.http[0].delegate".to_owned()), ("WEIR0108", String::new())]
        );
    }

    #[test]
    fn a_delegate_does_not_delegate_further() {
        let got = spec("http: [{delegate: {name: other}}]");
        assert_eq!(got, [("IST0106", "spec.http[0].delegate".to_owned())]);
    }

    fn exported_to(to: &str) -> String {
        format!(
            "{}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: shop}}\n\
             spec: {{hosts: ['*.a.b'], exportTo: [{to}], http: [{{route: [{{destination: {{host: web}}}}]}}]}}\n",
            base()
        )
    }

    #[test]
    fn namespaces_exist() {
        let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: pay}\n";
        assert_eq!(found(&exported_to("nowhere")), [], "the namespaces are unknown");
        assert_eq!(found(&(exported_to("pay, shop") + namespace)), []);
        assert_eq!(
            found(&(exported_to("nowhere") + namespace)),
            [("WEIR0109", "spec.exportTo[0]".into())]
        );
        let matched =
            exported_to("pay").replace("http: [{", "http: [{match: [{sourceNamespace: nowhere}], ");
        assert_eq!(
            found(&(matched + namespace)),
            [("WEIR0109", "spec.http[0].match[0].sourceNamespace".into())]
        );
    }

    fn external_name(name: &str, to: &str, ports: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{type: ExternalName, externalName: {to}{ports}}}\n"
        )
    }

    /// The base objects and ExternalNames.
    fn with_external_names() -> String {
        let at = ".shop.svc.cluster.local";
        base()
            + &external_name("same", &format!("web{at}"), "")
            + &external_name("upper", &format!("Web{at}"), ", ports: [{name: http, port: 80}]")
            + &external_name("several", &format!("many{at}"), "")
            + &external_name(
                "other-port",
                &format!("web{at}"),
                ", ports: [{name: http, port: 8080}]",
            )
            + &external_name("nowhere", "nobody.example", ", ports: [{name: http, port: 80}]")
            + &external_name("round-a", &format!("round-b{at}"), "")
            + &external_name("round-b", &format!("round-a{at}"), "")
    }

    /// The findings in a route of `host` to a destination, besides ExternalNames and `objects`.
    fn found_beside_external_names(
        host: &str,
        destination: &str,
        objects: &str,
    ) -> Vec<(&'static str, String)> {
        let virtual_service = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: v, namespace: shop}}\n\
             spec: {{hosts: [{host}], http: [{{route: [{{destination: {{{destination}}}}}]}}]}}\n"
        );
        found(&(with_external_names() + objects + &virtual_service))
    }

    #[test]
    fn an_external_name_stands_for_its_service() {
        for fine in [
            "host: same",
            "host: upper",
            "host: same, subset: v1",
            "host: several, port: {number: 81}",
        ] {
            let found = found_beside_external_names("'*.a.b'", fine, "");
            assert_eq!(found, [], "{fine}");
        }
        for (fields, code, field) in [
            ("host: nowhere", "IST0101", ".host"),
            ("host: round-a", "IST0101", ".host"),
            ("host: several", "IST0112", ""),
            ("host: several, port: {number: 82}", "IST0101", ".port.number"),
            ("host: other-port", "IST0101", ""),
            ("host: same, subset: v3", "IST0101", ".subset"),
        ] {
            let path = format!("spec.http[0].route[0].destination{field}");
            let found = found_beside_external_names("'*.a.b'", fields, "");
            assert_eq!(found, [(code, path)], "{fields}");
        }
        // The request's port is used if neither the destination nor the ExternalName has one.
        let found = found_beside_external_names("many", "host: same, port: {number: 80}", "");
        assert_eq!(found, []);
        let found = found_beside_external_names("many", "host: same", "");
        assert_eq!(found, [("IST0112", "spec.http[0].route[0].destination".to_owned())]);
    }

    #[test]
    fn a_rule_for_an_external_name_is_unused() {
        let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                    metadata: {name: same, namespace: shop}\n\
                    spec: {host: same, subsets: [{name: v7, labels: {version: v1}}]}\n";
        let unused = ("IST0174", "spec.host".to_owned());
        let subset = ("IST0101", "spec.http[0].route[0].destination.subset".to_owned());
        assert_eq!(
            found_beside_external_names("'*.a.b'", "host: same, subset: v7", rule),
            [unused, subset]
        );
    }

    fn found_near(service: &str, fields: &str) -> Vec<(&'static str, String)> {
        found(&format!(
            "{}---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: near, namespace: shop, annotations: {{networking.istio.io/exportTo: '{service}'}}}}\n\
             spec: {{clusterIP: 10.0.0.9, ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: v, namespace: shop}}\n\
             spec: {{hosts: ['*.a.b'], http: [{{route: [{{destination: {{host: near}}}}]}}], {fields}}}\n",
            base()
        ))
    }

    #[test]
    fn a_service_must_be_visible_to_every_client_of_the_route() {
        let others = [("WEIR0115", "spec.http[0].route[0].destination.host".to_owned())];
        let nobody = [("IST0101", "spec.http[0].route[0].destination.host".to_owned())];
        assert_eq!(found_near("*", ""), []);
        assert_eq!(found_near(".", ""), others);
        assert_eq!(found_near(".", "exportTo: [.]"), []);
        assert_eq!(found_near("., pay", "exportTo: [., pay]"), []);
        assert_eq!(found_near("., pay", "exportTo: [., bank]"), others);
        assert_eq!(found_near("pay", ""), nobody);
    }

    fn found_beside_wildcard(host: &str) -> Vec<(&'static str, String)> {
        let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                     metadata: {name: all, namespace: shop}\n\
                     spec: {hosts: ['*.x.y'], ports: [{number: 80, name: http, protocol: HTTP}]}\n";
        let service = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
             metadata: {{name: v, namespace: shop}}\n\
             spec: {{hosts: [a.x.y], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}\n"
        );
        found(&(base() + entry + &service))
    }

    #[test]
    fn a_wildcard_is_not_a_destination_for_other_names() {
        assert_eq!(
            found_beside_wildcard("a.x.y"),
            [("IST0101", "spec.http[0].route[0].destination.host".to_owned())]
        );
        assert_eq!(found_beside_wildcard("'*.x.y'"), []);
    }
}
