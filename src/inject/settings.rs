//! The settings of one pod's sidecar: those of the mesh, changed by the pod's annotations.

use serde_json::{Map, Value};

use super::pod::PodView;
use super::proxy_config::{self, ProxyConfig};
use super::{
    EXPECTED_INTERCEPTION, Options, ProxyKind, Resources, interception, is_image, quantity,
};
use crate::agent::AGENT_PORT;
use crate::api::{Labels, Problem};
use crate::mesh::Interception;
use crate::redirect::{InterfaceName, Network, Port};

/// Annotations that Istio reads and weir does not.
const NOT_READ: [&str; 9] = [
    "istio.io/reroute-virtual-interfaces",
    "sidecar.istio.io/agentLogLevel",
    "sidecar.istio.io/bootstrapOverride",
    "sidecar.istio.io/capNetBindService",
    "sidecar.istio.io/discoveryAddress",
    "sidecar.istio.io/enableCoreDump",
    "sidecar.istio.io/proxyImageType",
    "sidecar.istio.io/statsInclusionPrefixes",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
];

/// Which traffic is redirected. Lists are separated by commas.
#[derive(Debug)]
pub(super) struct Redirect {
    pub include_inbound_ports: String,
    pub exclude_inbound_ports: String,
    pub include_outbound_ranges: String,
    pub exclude_outbound_ranges: String,
    pub include_outbound_ports: String,
    pub exclude_outbound_ports: String,
    pub exclude_interfaces: String,
}

/// How the sidecar's readiness is probed.
#[derive(Debug)]
pub(super) struct Readiness {
    pub initial_delay: u32,
    pub period: u32,
    pub failures: u32,
}

/// The settings of one pod's sidecar.
#[derive(Debug)]
pub(super) struct Settings {
    pub kind: ProxyKind,
    pub image: String,
    pub native: bool,
    pub interception: Interception,
    pub redirect: Redirect,
    pub resources: Resources,
    pub readiness: Readiness,
    pub log_level: Option<String>,
    pub component_log_level: Option<String>,
    pub rewrite_probes: bool,
    pub merge_prometheus: bool,
    pub config: ProxyConfig,
    /// Volumes for the sidecar by name, and where it mounts them.
    pub volumes: Map<String, Value>,
    pub mounts: Map<String, Value>,
    /// What is probably not meant.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Reads the annotations of a pod.
    ///
    /// # Errors
    /// All that are wrong.
    pub(crate) fn read(pod: &PodView<'_>, options: &Options) -> Result<Self, Vec<Problem>> {
        let mut annotations = Annotations { all: &pod.annotations, problems: Vec::new() };
        annotations.check("inject.istio.io/templates", only_sidecar);
        annotations.check("status.sidecar.istio.io/port", agent_port);
        let config = match annotations.all.get(proxy_config::ANNOTATION) {
            None => ProxyConfig::default(),
            Some(text) => ProxyConfig::parse(text).unwrap_or_else(|problems| {
                annotations.problems.extend(problems);
                ProxyConfig::default()
            }),
        };
        let (kind, image) = annotations.proxy(options);
        let mode = annotations.read("sidecar.istio.io/interceptionMode", |text| {
            interception(text).ok_or(EXPECTED_INTERCEPTION)
        });
        let merge_prometheus = annotations
            .read("prometheus.istio.io/merge-metrics", truth)
            .unwrap_or(options.merge_prometheus);
        if merge_prometheus {
            annotations.check("prometheus.io/port", metrics_port);
        }
        let settings = Self {
            kind,
            image,
            native: annotations
                .read("sidecar.istio.io/nativeSidecar", truth)
                .unwrap_or(options.native_sidecars),
            interception: mode.or(config.interception).unwrap_or_default(),
            redirect: annotations.redirect(),
            resources: annotations.resources(&options.resources),
            readiness: annotations.readiness(),
            log_level: annotations.read("sidecar.istio.io/logLevel", log_level),
            component_log_level: annotations
                .read("sidecar.istio.io/componentLogLevel", component_log_level),
            rewrite_probes: annotations
                .read("sidecar.istio.io/rewriteAppHTTPProbers", truth)
                .unwrap_or(options.rewrite_probes),
            merge_prometheus,
            config,
            volumes: annotations.map("sidecar.istio.io/userVolume"),
            mounts: annotations.map("sidecar.istio.io/userVolumeMount"),
            warnings: Vec::new(),
        };
        if !annotations.problems.is_empty() {
            return Err(annotations.problems);
        }
        let warnings = settings.doubts(pod);
        Ok(Self { warnings, ..settings })
    }

    /// What has no effect.
    fn doubts(&self, pod: &PodView<'_>) -> Vec<String> {
        let unread = NOT_READ.into_iter().filter(|name| pod.annotations.contains_key(*name));
        let unread = unread.map(|name| {
            format!("metadata.annotations[{name}]: has no effect; weir does not read it")
        });
        let members = match self.kind {
            ProxyKind::Envoy => self.config.of_istio_alone(),
            ProxyKind::IstioProxy => Vec::new(),
        };
        let members = members.into_iter().map(|name| {
            format!(
                "metadata.annotations[{}].{name}: has no effect; only istio-proxy reads it",
                proxy_config::ANNOTATION
            )
        });
        unread.chain(members).collect()
    }

    /// Whether the application's containers wait for the sidecar. A native sidecar starts first by itself.
    pub(crate) fn holds_application(&self) -> bool {
        !self.native && self.config.hold_application.unwrap_or(true)
    }

    /// Whether rules redirect the pod's traffic.
    pub(crate) fn redirects(&self) -> bool {
        self.interception == Interception::Redirect
    }
}

/// Reads annotations, and collects what is wrong with them.
struct Annotations<'a> {
    all: &'a Labels,
    problems: Vec<Problem>,
}

impl<'a> Annotations<'a> {
    /// An annotation, if it is there and `parse` accepts it. The error of `parse` is what is expected.
    fn read<T, E: ToString>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.all.get(name)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(expected) => {
                let shown: String = text.chars().take(80).collect();
                self.problem(name, format!("is `{shown}`"), &expected.to_string());
                None
            }
        }
    }

    fn check<E: ToString>(&mut self, name: &str, parse: impl FnOnce(&'a str) -> Result<(), E>) {
        let _ = self.read(name, parse);
    }

    fn problem(&mut self, name: &str, message: String, expected: &str) {
        let path = format!("metadata.annotations[{name}]");
        self.problems.push(Problem::new(path, message, format!("expected {expected}")));
    }

    /// Which proxy it is, and its image.
    fn proxy(&mut self, options: &Options) -> (ProxyKind, String) {
        let given = self.read("sidecar.istio.io/proxyImage", image);
        // A name without a registry stands for the usual image, as in Istio.
        let kind = given.and_then(ProxyKind::of_image);
        let said = self
            .read("weir.dev/proxy", |text| ProxyKind::parse(text).ok_or("envoy or istio-proxy"));
        let kind = said.or(kind).unwrap_or(options.proxy);
        if kind == ProxyKind::IstioProxy && !options.xds_tls {
            let what =
                if said.is_some() { "weir.dev/proxy" } else { "sidecar.istio.io/proxyImage" };
            let message = "asks for istio-proxy, whose agent needs TLS to weir".to_owned();
            self.problem(what, message, "another proxy, or weir with --proxy-xds-tls on");
        }
        let image = given.filter(|image| image.contains('/')).map(str::to_owned);
        (kind, image.unwrap_or_else(|| options.image(kind).to_owned()))
    }

    fn redirect(&mut self) -> Redirect {
        let all = "*".to_owned();
        Redirect {
            include_inbound_ports: self
                .traffic("includeInboundPorts", ports_or_all)
                .unwrap_or(all.clone()),
            exclude_inbound_ports: self.traffic("excludeInboundPorts", ports).unwrap_or_default(),
            include_outbound_ranges: self
                .traffic("includeOutboundIPRanges", ranges_or_all)
                .unwrap_or(all),
            exclude_outbound_ranges: self
                .traffic("excludeOutboundIPRanges", ranges)
                .unwrap_or_default(),
            include_outbound_ports: self.traffic("includeOutboundPorts", ports).unwrap_or_default(),
            exclude_outbound_ports: self.traffic("excludeOutboundPorts", ports).unwrap_or_default(),
            exclude_interfaces: self.traffic("excludeInterfaces", interfaces).unwrap_or_default(),
        }
    }

    fn traffic(&mut self, name: &str, parse: fn(&str) -> Result<String, String>) -> Option<String> {
        self.read(&format!("traffic.sidecar.istio.io/{name}"), parse)
    }

    /// The resources. As in Istio, one annotation replaces all of the mesh's.
    fn resources(&mut self, usual: &Resources) -> Resources {
        let names = ["proxyCPU", "proxyMemory", "proxyCPULimit", "proxyMemoryLimit"];
        let names = names.map(|name| format!("sidecar.istio.io/{name}"));
        if !names.iter().any(|name| self.all.contains_key(name)) {
            return usual.clone();
        }
        let [cpu, memory, cpu_limit, memory_limit] =
            names.each_ref().map(|name| self.read(name, amount));
        for (request, limit, at) in [(0, 2, &names[0]), (1, 3, &names[1])] {
            let amounts = [&cpu, &memory, &cpu_limit, &memory_limit];
            let (Some(request), Some(limit)) = (amounts[request], amounts[limit]) else { continue };
            if quantity::parse(request) > quantity::parse(limit) {
                self.problem(
                    at,
                    format!("is `{request}`"),
                    &format!("at most the limit `{limit}`"),
                );
            }
        }
        Resources { cpu, memory, cpu_limit, memory_limit }
    }

    fn readiness(&mut self) -> Readiness {
        Readiness {
            initial_delay: self.number("initialDelaySeconds", 0, 0),
            period: self.number("periodSeconds", 1, 15),
            failures: self.number("failureThreshold", 1, 4),
        }
    }

    fn number(&mut self, name: &str, least: u32, usual: u32) -> u32 {
        let name = format!("readiness.status.sidecar.istio.io/{name}");
        let number = self.read(&name, |text| {
            let number = text.parse().ok().filter(|number| (least..=86_400).contains(number));
            number.ok_or_else(|| format!("a number from {least} to 86400"))
        });
        number.unwrap_or(usual)
    }

    /// A map of maps, in JSON.
    fn map(&mut self, name: &str) -> Map<String, Value> {
        self.read(name, map_of_maps).unwrap_or_default()
    }
}

fn map_of_maps(text: &str) -> Result<Map<String, Value>, &'static str> {
    let map = serde_json::from_str::<Map<String, Value>>(text).ok();
    let map = map.filter(|map| map.values().all(Value::is_object));
    map.ok_or("a map of maps in JSON, such as {\"certs\": {...}}")
}

fn only_sidecar(text: &str) -> Result<(), &'static str> {
    if text.trim() == "sidecar" { Ok(()) } else { Err("sidecar, the only template of weir") }
}

fn agent_port(text: &str) -> Result<(), &'static str> {
    if text.parse() == Ok(AGENT_PORT) { Ok(()) } else { Err("15020, which is not configurable") }
}

fn metrics_port(text: &str) -> Result<(), &'static str> {
    if is_port(text) { Ok(()) } else { Err("a port from 1 to 65535") }
}

/// As Go's `strconv.ParseBool`.
fn truth(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false"),
    }
}

fn image(text: &str) -> Result<&str, &'static str> {
    if is_image(text) { Ok(text) } else { Err("an image") }
}

fn log_level(text: &str) -> Result<String, &'static str> {
    let levels = ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"];
    match text {
        level if levels.contains(&level) => Ok(level.to_owned()),
        _ => Err("trace, debug, info, warning, error, critical or off"),
    }
}

fn component_log_level(text: &str) -> Result<String, String> {
    list(text, "components with levels such as http:debug, separated by commas", is_component)
}

fn is_component(text: &str) -> bool {
    let parts = text.split_once(':');
    parts.is_some_and(|(component, level)| !component.is_empty() && log_level(level).is_ok())
}

fn amount(text: &str) -> Result<String, &'static str> {
    let expected = "an amount such as 100m, 2, 128Mi or 1Gi";
    quantity::parse(text).map(|_| text.to_owned()).ok_or(expected)
}

/// The parts of a list that is separated by commas, without blanks.
fn list(text: &str, expected: &str, accepted: impl Fn(&str) -> bool) -> Result<String, String> {
    if text.trim().is_empty() {
        return Ok(String::new());
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    match parts.iter().find(|part| !accepted(part)) {
        None => Ok(parts.join(",")),
        Some(_) if parts.len() == 1 => Err(expected.to_owned()),
        Some(part) => Err(format!("{expected}; `{part}` is none")),
    }
}

fn ports(text: &str) -> Result<String, String> {
    list(text, "ports from 1 to 65535, separated by commas", is_port)
}

fn is_port(text: &str) -> bool {
    text.parse::<Port>().is_ok()
}

fn ports_or_all(text: &str) -> Result<String, String> {
    if text == "*" { Ok(text.to_owned()) } else { ports(text).map_err(|why| format!("* or {why}")) }
}

fn ranges(text: &str) -> Result<String, String> {
    list(text, "ranges of addresses such as 10.0.0.0/8, separated by commas", is_range)
}

fn is_range(text: &str) -> bool {
    // As in Istio, an address alone is no range.
    text.contains('/') && text.parse::<Network>().is_ok()
}

fn ranges_or_all(text: &str) -> Result<String, String> {
    if text == "*" {
        Ok(text.to_owned())
    } else {
        ranges(text).map_err(|why| format!("* or {why}"))
    }
}

fn interfaces(text: &str) -> Result<String, String> {
    list(text, "names of network interfaces, separated by commas", is_interface)
}

/// Whether `weir redirect` takes the name, and the kernel, too. Source: Linux, `dev_valid_name()`.
fn is_interface(text: &str) -> bool {
    text.parse::<InterfaceName>().is_ok() && ![".", ".."].contains(&text) && !text.contains(':')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(annotations: Value) -> Result<Settings, String> {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {}});
        let settings = Settings::read(&PodView::of(&pod).unwrap(), &Options::default());
        let text = |problems: Vec<Problem>| {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        settings.map_err(text)
    }

    #[test]
    fn without_annotations_the_mesh_decides() {
        let settings = read(json!({})).unwrap();
        assert!(settings.native && settings.rewrite_probes && !settings.merge_prometheus);
        assert_eq!(
            (settings.kind, settings.interception),
            (ProxyKind::Envoy, Interception::Redirect)
        );
        assert_eq!(settings.redirect.include_inbound_ports, "*");
        assert_eq!(settings.redirect.include_outbound_ranges, "*");
        assert_eq!(settings.resources, Options::default().resources);
        assert_eq!(settings.warnings, [""; 0]);
    }

    #[test]
    fn annotations_decide_for_one_pod() {
        let settings = read(json!({
            "sidecar.istio.io/nativeSidecar": "false",
            "sidecar.istio.io/interceptionMode": "NONE",
            "sidecar.istio.io/rewriteAppHTTPProbers": "false",
            "prometheus.istio.io/merge-metrics": "true",
            "sidecar.istio.io/proxyCPU": "200m",
            "sidecar.istio.io/logLevel": "debug",
            "readiness.status.sidecar.istio.io/periodSeconds": "3",
            "traffic.sidecar.istio.io/includeInboundPorts": "80, 443",
            "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.0.0.0/8,fd00::/8",
            "traffic.sidecar.istio.io/excludeInterfaces": "eth1,net.2",
            "sidecar.istio.io/bootstrapOverride": "x",
            "proxy.istio.io/config": "tracing: {}\nholdApplicationUntilProxyStarts: false",
        }))
        .unwrap();
        assert!(!settings.native && !settings.rewrite_probes && settings.merge_prometheus);
        assert!(!settings.holds_application() && !settings.redirects());
        assert_eq!(settings.redirect.include_inbound_ports, "80,443");
        assert_eq!(settings.redirect.exclude_outbound_ranges, "10.0.0.0/8,fd00::/8");
        assert_eq!(settings.readiness.period, 3);
        let resources = Resources { cpu: Some("200m".to_owned()), ..Resources::none() };
        assert_eq!(settings.resources, resources, "one annotation replaces all");
        assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
        assert!(
            read(json!({"sidecar.istio.io/nativeSidecar": "false"})).unwrap().holds_application()
        );
    }

    #[test]
    fn the_image_decides_which_proxy_it_is() {
        let usual = Options::default();
        for (image, said, kind, expected) in [
            (
                "docker.io/istio/proxyv2:1.31.4",
                None,
                ProxyKind::IstioProxy,
                "docker.io/istio/proxyv2:1.31.4",
            ),
            (
                "r.example:5000/a/proxyv2@sha256:00",
                None,
                ProxyKind::IstioProxy,
                "r.example:5000/a/proxyv2@sha256:00",
            ),
            ("proxyv2", None, ProxyKind::IstioProxy, usual.image(ProxyKind::IstioProxy)),
            ("r.example/envoy:v1", None, ProxyKind::Envoy, "r.example/envoy:v1"),
            ("r.example/mine:1", None, ProxyKind::Envoy, "r.example/mine:1"),
            ("r.example/mine:1", Some("istio-proxy"), ProxyKind::IstioProxy, "r.example/mine:1"),
        ] {
            let mut annotations = json!({"sidecar.istio.io/proxyImage": image});
            if let Some(said) = said {
                annotations["weir.dev/proxy"] = json!(said);
            }
            let settings = read(annotations).unwrap();
            assert_eq!((settings.kind, &*settings.image), (kind, expected), "{image}");
        }
    }

    /// Each of these values is refused, with what is expected.
    fn are_refused(cases: &[(&str, &str, &str)]) {
        for (name, value, said) in cases {
            let found = read(json!({*name: value})).unwrap_err();
            let begin = format!("metadata.annotations[{name}]: is `{value}`; ");
            assert!(found.starts_with(&begin) && found.contains(said), "{found}");
        }
    }

    #[test]
    fn wrong_annotations_about_redirection_are_named_with_what_would_be_right() {
        are_refused(&[
            (
                "traffic.sidecar.istio.io/includeInboundPorts",
                "80,http",
                "expected * or ports from 1 to 65535, separated by commas; `http` is none",
            ),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "*", "expected ports from 1 to 65535"),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "0", "expected ports from 1 to 65535"),
            (
                "traffic.sidecar.istio.io/includeOutboundPorts",
                "70000",
                "expected ports from 1 to 65535",
            ),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "80,", "`` is none"),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                "10.0.0.0",
                "expected * or ranges of addresses",
            ),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                "10.0.0.0/33",
                "expected * or ranges",
            ),
            (
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                "*",
                "expected ranges of addresses",
            ),
            (
                "traffic.sidecar.istio.io/excludeInterfaces",
                "eth0/1",
                "expected names of network interfaces",
            ),
            (
                "traffic.sidecar.istio.io/excludeInterfaces",
                "a-very-long-interface",
                "expected names of",
            ),
        ]);
    }

    #[test]
    fn other_wrong_annotations_are_named_with_what_would_be_right() {
        are_refused(&[
            ("sidecar.istio.io/interceptionMode", "TPROXY", "expected REDIRECT or NONE"),
            ("sidecar.istio.io/proxyCPU", "1 core", "expected an amount such as 100m"),
            ("sidecar.istio.io/proxyMemoryLimit", "1gi", "expected an amount such as 100m"),
            ("sidecar.istio.io/nativeSidecar", "yes", "expected true or false"),
            ("sidecar.istio.io/proxyImage", "a b", "expected an image"),
            ("sidecar.istio.io/logLevel", "loud", "expected trace, debug"),
            ("sidecar.istio.io/userVolume", "[]", "expected a map of maps in JSON"),
            ("status.sidecar.istio.io/port", "0", "expected 15020"),
            ("inject.istio.io/templates", "gateway", "expected sidecar"),
            ("readiness.status.sidecar.istio.io/periodSeconds", "0", "expected a number from 1"),
            ("weir.dev/proxy", "nginx", "expected envoy or istio-proxy"),
        ]);
        let both =
            json!({"sidecar.istio.io/proxyCPU": "2", "sidecar.istio.io/proxyCPULimit": "1500m"});
        let found = read(both).unwrap_err();
        assert!(
            found.ends_with("proxyCPU]: is `2`; expected at most the limit `1500m`"),
            "{found}"
        );
    }
}
