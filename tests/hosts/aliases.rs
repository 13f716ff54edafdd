//! Hosts that are aliases of other services (ExternalName), and hosts that are addresses.

use super::*;

fn alias(name: &str, namespace: &str, minute: u32, target: &str, ports: &str) -> String {
    object(
        "Service",
        name,
        namespace,
        minute,
        &format!("type: ExternalName, externalName: {target}, ports: [{ports}]"),
    )
}

/// The service `web` in `shop` on port 80 and 8080.
fn web() -> String {
    object(
        "Service",
        "web",
        "shop",
        0,
        "clusterIP: 10.96.0.10, ports: [{name: http, port: 80}, {name: http-b, port: 8080}]",
    )
}

fn rule(name: &str, namespace: &str, minute: u32, host: &str, seconds: u32, to: &str) -> String {
    let spec = format!(
        "hosts: ['{host}'], http: [{{timeout: {seconds}s, route: [{{destination: {{host: {to}}}}}]}}]"
    );
    object("VirtualService", name, namespace, minute, &spec)
}

const WEB: &str = "web.shop.svc.cluster.local";

#[test]
fn rules_for_an_alias_hold_for_all_its_names_at_all_its_ports() {
    let timeouts = |text: &str, port: u16, client: &str| {
        let got = Got::of(&World::default().write("all.yaml", text), client, &json!({}));
        let mut names = vec![
            "alias.other",
            "alias.other.svc",
            "alias.other.svc.cluster.local",
            "alias.other.svc.cluster.local.",
        ];
        names.extend((client == "other").then_some("alias"));
        let found =
            names.into_iter().map(|name| got.route(ANYWHERE, port, name)).collect::<BTreeSet<_>>();
        assert_eq!(
            got.route(ANYWHERE, port, "web.shop"),
            (format!("outbound|{port}||{WEB}"), "0s".to_owned())
        );
        found.into_iter().collect::<Vec<_>>()
    };
    let to =
        |port: u16, timeout: &str| vec![(format!("outbound|{port}||{WEB}"), timeout.to_owned())];
    let both = "{name: http, port: 80}, {name: http-b, port: 8080}";
    let text = |ports: &str, host: &str| {
        web()
            + &alias("alias", "other", 1, WEB, ports)
            + &rule("al", "other", 2, host, 4, "alias.other.svc.cluster.local")
    };
    for client in ["other", "shop"] {
        for host in ["alias.other.svc.cluster.local", "*.other.svc.cluster.local"] {
            assert_eq!(timeouts(&text(both, host), 80, client), to(80, "4s"));
            assert_eq!(timeouts(&text(both, host), 8080, client), to(8080, "4s"));
        }
    }
    // A port of which nobody says the protocol may carry HTTP.
    let unnamed = "{name: x, port: 80}, {name: http-b, port: 8080}";
    assert_eq!(
        timeouts(&text(unnamed, "alias.other.svc.cluster.local"), 80, "other"),
        to(80, "4s")
    );
    // At a port that the alias does not have it is called as what it stands for.
    let single = text("{name: http, port: 80}", "alias.other.svc.cluster.local");
    assert_eq!(timeouts(&single, 80, "other"), to(80, "4s"));
    assert_eq!(timeouts(&single, 8080, "other"), to(8080, "0s"));
    let bytes =
        text("{name: tcp, port: 8080}, {name: http, port: 80}", "alias.other.svc.cluster.local");
    assert_eq!(timeouts(&bytes, 8080, "other"), to(8080, "0s"));
}

#[test]
fn an_alias_without_ports_is_a_host_of_no_service_to_rules() {
    let text = web()
        + &alias("alias", "other", 1, WEB, "")
        + &rule("al", "other", 2, "alias.other.svc.cluster.local", 4, "alias");
    let got = Got::of(&World::default().write("all.yaml", &text), "other", &json!({}));
    assert_eq!(
        got.route(ANYWHERE, 80, "alias.other.svc.cluster.local"),
        (format!("outbound|80||{WEB}"), "4s".to_owned())
    );
    assert_eq!(got.route(ANYWHERE, 80, "alias"), (format!("outbound|80||{WEB}"), "0s".to_owned()));
    assert_eq!(got.route(ANYWHERE, 8080, "alias.other.svc.cluster.local").1, "0s");
}

#[test]
fn of_rules_for_an_alias_and_for_what_it_stands_for_the_older_has_its_names() {
    let named = |web_first: bool| {
        let (a, b) = if web_first { (2, 3) } else { (3, 2) };
        let text = web()
            + &alias("alias", "other", 1, WEB, "{name: http, port: 80}")
            + &rule("web", "shop", a, WEB, 9, WEB)
            + &rule("al", "other", b, "alias.other.svc.cluster.local", 4, WEB);
        let got = Got::in_shop(&text);
        [got.route(ANYWHERE, 80, "alias.other").1, got.route(ANYWHERE, 80, "web").1]
    };
    assert_eq!(named(true), ["9s", "9s"]);
    assert_eq!(named(false), ["4s", "9s"]);
}

#[test]
fn a_chain_of_aliases_leads_to_its_end() {
    let mut world = World::default();
    let text = web() + &rule("v", "shop", 5, "a.example", 4, "first.other.svc.cluster.local");
    world.write("web.yaml", &text);
    world.write("first.yaml", &alias("first", "other", 1, "Second.shop.svc.cluster.local.", ""));
    let got = |mesh: &Mesh| {
        let got = Got::of(mesh, "shop", &json!({}));
        [got.cluster_of(ANYWHERE, 80, "first.other"), got.cluster_of(ANYWHERE, 80, "a.example")]
    };
    let whole = format!("outbound|80||{WEB}");
    let nowhere = |host: &str| {
        ["PassthroughCluster".to_owned(), format!("outbound|80||{host}.shop.svc.cluster.local")]
    };
    let second = |target: &str| alias("second", "shop", 2, target, "");
    assert_eq!(
        got(&world.write("second.yaml", &second("third.shop.svc.cluster.local"))),
        nowhere("third")
    );
    assert_eq!(
        got(&world.write("third.yaml", &alias("third", "shop", 3, WEB, ""))),
        [whole.clone(), whole.clone()]
    );
    // One in a circle is nobody's name.
    assert_eq!(
        got(&world.write("second.yaml", &second("first.other.svc.cluster.local"))),
        nowhere("second")
    );
    assert_eq!(got(&world.write("second.yaml", &second(WEB))), [whole.clone(), whole]);
    assert_eq!(got(&world.write("second.yaml", "")), nowhere("second"));
}

#[test]
fn names_of_an_alias_for_a_headless_service_are_those_of_pods_too() {
    let text =
        object("Service", "hl", "shop", 0, "clusterIP: None, ports: [{name: http, port: 8081}]")
            + &alias("alias", "other", 1, "hl.shop.svc.cluster.local", "");
    let got = Got::in_shop(&text);
    for name in ["hl", "pod-0.hl", "alias.other", "pod-0.alias.other"] {
        assert_eq!(
            got.cluster_of(ANYWHERE, 8081, name),
            "outbound|8081||hl.shop.svc.cluster.local"
        );
    }
}

#[test]
fn addresses_as_hosts_are_written_as_clients_write_them() {
    let rule = |hosts: &str| {
        let spec = format!(
            "hosts: [{hosts}], http: [{{timeout: 5s, route: [{{destination: {{host: {WEB}}}}}]}}]"
        );
        object("VirtualService", "v", "shop", 0, &spec)
    };
    let timeout = |text: &str, host: &str| Got::in_shop(text).route(ANYWHERE, 80, host).1;
    for (host, called) in [
        ("'2001:db8::77'", "[2001:db8::77]"),
        ("'2001:DB8::77'", "[2001:db8::77]"),
        ("'[2001:db8::77]'", "[2001:db8::77]"),
        ("'2001:0db8:0::77'", "[2001:db8::77]"),
        ("'2001:0db8:0::77'", "[2001:0db8:0::77]"),
        ("203.0.113.77", "203.0.113.77"),
    ] {
        let text = web() + &rule(host);
        assert_eq!(timeout(&text, called), "5s", "{host}");
        assert_eq!(timeout(&text, "web"), "0s");
    }
    // Among other hosts, and where the address is that of a service.
    assert_eq!(
        timeout(&(web() + &rule("web.shop.svc.cluster.local, '2001:db8::77'")), "[2001:db8::77]"),
        "5s"
    );
    let six = web().replace("10.96.0.10", "'fd00::10'");
    assert_eq!(timeout(&(six.clone() + &rule("'fd00::10'")), "[fd00::10]"), "5s");
    assert_eq!(timeout(&(six + &rule("web")), "[fd00::10]"), "5s");
}

#[test]
fn addresses_of_entries_are_domains() {
    let port = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let text = entry(
        "a",
        0,
        &format!("hosts: [a.example], addresses: ['2001:db8:0::1', 203.0.113.1], {port}"),
    ) + &entry("b", 1, &format!("hosts: ['2001:db8::2'], {port}"))
        + &entry("c", 2, &format!("hosts: [203.0.113.3], {port}"));
    let got = Got::in_shop(&text);
    for (called, host) in [
        ("[2001:db8::1]", "a.example"),
        ("203.0.113.1", "a.example"),
        ("[2001:db8::2]", "2001:db8::2"),
        ("203.0.113.3", "203.0.113.3"),
    ] {
        assert_eq!(
            got.cluster_of(ANYWHERE, 80, called),
            format!("outbound|80||{host}"),
            "{called}"
        );
    }
    let domains = got.routes["80"].to_string();
    assert!(!domains.contains("\"203.0.113.3.\""), "only names have a dot at their end: {domains}");
}
