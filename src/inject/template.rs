//! The containers and volumes of a sidecar. Names are those of Istio, so that tools find them.

use serde_json::{Map, Value, json};

use super::pod::{PodView, list_mut, text};
use super::proxy_config::seconds;
use super::settings::Settings;
use super::{Options, Owner, ProxyKind, Resources, quantity};
use crate::agent::{AGENT_PORT, READY_PORT};
use crate::ports;

/// The container of the proxy.
pub(super) const SIDECAR: &str = "istio-proxy";
/// The init container that redirects traffic.
const REDIRECT: &str = "istio-init";
/// The init container that installs weir's agent beside Envoy.
const INSTALL: &str = "weir-install";
/// The names of containers that an application cannot use.
pub(super) const CONTAINERS: [&str; 4] = [SIDECAR, REDIRECT, "istio-validation", INSTALL];

/// The user and group of the proxy, whose traffic is not redirected.
pub(super) const PROXY_ID: u64 = 1337;
/// The cluster's domain that weir's agent assumes.
const USUAL_DOMAIN: &str = "cluster.local";
/// Where weir's agent is installed.
const AGENT_FOLDER: &str = "/var/run/weir";

/// The names of the volumes of a sidecar.
pub(super) fn volume_names(settings: &Settings) -> Vec<String> {
    let own: &[&str] = match settings.kind {
        ProxyKind::Envoy => &["weir-agent"],
        ProxyKind::IstioProxy => {
            &["workload-socket", "credential-socket", "workload-certs", "istio-data"]
        }
    };
    let shared = ["istio-envoy", "istio-podinfo", "istio-token", "istiod-ca-cert"];
    let fixed = own.iter().chain(&shared).map(|name| (*name).to_owned());
    fixed.chain(settings.volumes.keys().cloned()).collect()
}

/// What the parts of a sidecar depend on.
pub(super) struct Template<'a> {
    pub view: &'a PodView<'a>,
    pub settings: &'a Settings,
    pub options: &'a Options,
    pub namespace: &'a str,
    pub owner: Option<&'a Owner>,
}

/// The parts of a sidecar.
#[derive(Debug)]
pub(super) struct Parts {
    redirect: Option<Value>,
    install: Option<Value>,
    sidecar: Value,
    volumes: Vec<Value>,
    pull_secrets: Vec<Value>,
    native: bool,
}

impl Template<'_> {
    /// All parts. `env` is more environment of the sidecar.
    pub(crate) fn parts(&self, env: Vec<Value>) -> Parts {
        let Self { settings, options, .. } = self;
        let mut sidecar = match settings.kind {
            ProxyKind::Envoy => self.envoy(),
            ProxyKind::IstioProxy => self.istio_proxy(),
        };
        if let Some(sidecar) = sidecar.as_object_mut() {
            self.complete(sidecar, env);
        }
        let secrets = options.image_pull_secrets.iter();
        Parts {
            redirect: settings.redirects().then(|| self.redirect()),
            install: (settings.kind == ProxyKind::Envoy).then(|| self.install()),
            sidecar,
            volumes: self.volumes(),
            pull_secrets: secrets.map(|name| json!({"name": name})).collect(),
            native: settings.native,
        }
    }

    /// The init container that redirects traffic.
    fn redirect(&self) -> Value {
        let rules = &self.settings.redirect;
        let never = ports::NOT_REDIRECTED.map(|port| port.to_string()).join(",");
        let excluded = match rules.exclude_inbound_ports.as_str() {
            "" => never,
            more => format!("{never},{more}"),
        };
        // The last three are only given if they have a value.
        let lists = [
            ("--inbound-ports", "-b", &rules.include_inbound_ports, false),
            ("--exclude-inbound-ports", "-d", &excluded, false),
            ("--outbound-ranges", "-i", &rules.include_outbound_ranges, false),
            ("--exclude-outbound-ranges", "-x", &rules.exclude_outbound_ranges, false),
            ("--outbound-ports", "-q", &rules.include_outbound_ports, true),
            ("--exclude-outbound-ports", "-o", &rules.exclude_outbound_ports, true),
            ("--exclude-interfaces", "-c", &rules.exclude_interfaces, true),
        ];
        let lists = lists.iter().filter(|(.., value, optional)| !optional || !value.is_empty());
        let istio = self.settings.kind == ProxyKind::IstioProxy;
        let [outbound, inbound] = [ports::OUTBOUND, ports::INBOUND].map(|port| port.to_string());
        let (image, mut args) = match istio {
            true => (
                &self.settings.image,
                texts(["istio-iptables", "-p", &outbound, "-z", &inbound, "-u", "1337"]),
            ),
            false => (&self.options.weir_image, texts(["redirect"])),
        };
        if istio {
            args.extend(texts(["-m", "REDIRECT"]));
        }
        for (long, short, value, _) in lists {
            match istio {
                true => args.extend([(*short).to_owned(), (*value).clone()]),
                false => args.push(format!("{long}={value}")),
            }
        }
        json!({
            "name": REDIRECT,
            "image": image,
            "args": args,
            "resources": resources(&self.settings.resources),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": false,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "runAsUser": 0,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        })
    }

    /// The init container that puts weir's agent where Envoy's container finds it.
    fn install(&self) -> Value {
        json!({
            "name": INSTALL,
            "image": self.options.weir_image,
            "args": ["agent", "install", AGENT_FOLDER],
            "resources": resources(&self.settings.resources),
            "securityContext": unprivileged(),
            "volumeMounts": [{"name": "weir-agent", "mountPath": AGENT_FOLDER}],
        })
    }

    /// Plain Envoy, which weir's agent starts.
    fn envoy(&self) -> Value {
        let agent = format!("{AGENT_FOLDER}/weir");
        let mut container = json!({
            "name": SIDECAR,
            "image": self.settings.image,
            "command": [agent],
            "args": self.agent_args(),
            "env": self.agent_env(),
            "volumeMounts": [
                {"name": "weir-agent", "mountPath": AGENT_FOLDER, "readOnly": true},
                {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
                {"name": "istio-podinfo", "mountPath": "/etc/istio/pod"},
            ],
        });
        if self.settings.holds_application() {
            container["lifecycle"] =
                json!({"postStart": {"exec": {"command": [agent, "agent", "wait"]}}});
        }
        if self.options.xds_tls
            && let Some(mounts) = container["volumeMounts"].as_array_mut()
        {
            mounts.extend(identity_mounts());
        }
        container
    }

    /// The arguments of weir's agent, and after `--` those of Envoy.
    fn agent_args(&self) -> Vec<String> {
        let Self { settings, options, .. } = self;
        let mut args = texts(["agent", "run", "--interception", settings.interception.as_str()]);
        if options.domain != USUAL_DOMAIN {
            args.extend(["--domain".to_owned(), options.domain.clone()]);
        }
        if let Some(threads) = self.concurrency() {
            args.extend(["--concurrency".to_owned(), threads.to_string()]);
        }
        let of_envoy: Vec<String> = [
            ("--log-level", settings.log_level.clone()),
            ("--component-log-level", settings.component_log_level.clone()),
            ("--drain-time-s", settings.config.drain.map(|drain| seconds(drain).to_string())),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some([flag.to_owned(), value?]))
        .flatten()
        .collect();
        if !of_envoy.is_empty() {
            args.push("--".to_owned());
            args.extend(of_envoy);
        }
        args
    }

    /// The environment of weir's agent.
    fn agent_env(&self) -> Vec<Value> {
        let Self { settings, options, .. } = self;
        let mut env = vec![
            value("WEIR_XDS", &options.xds),
            value("WEIR_XDS_TLS", if options.xds_tls { "on" } else { "off" }),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("INSTANCE_IPS", "status.podIPs"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("NODE_NAME", "spec.nodeName"),
            value("ISTIO_META_CLUSTER_ID", &options.cluster),
        ];
        if let Some(drain) = settings.config.termination_drain {
            env.push(value("TERMINATION_DRAIN_DURATION_SECONDS", &seconds(drain).to_string()));
        }
        env
    }

    /// The number of Envoy's threads; by default as many as its limit has CPUs, not as many as the node has.
    fn concurrency(&self) -> Option<u64> {
        match self.settings.config.concurrency {
            Some(0) => None,
            Some(threads) => Some(threads.into()),
            None => {
                let limit = quantity::parse(self.settings.resources.cpu_limit.as_ref()?)?;
                // No node has more.
                (0.0..=4096.0).contains(&limit).then(|| limit.ceil().max(1.0) as u64)
            }
        }
    }

    /// Istio's proxy, whose agent takes weir for Istiod.
    fn istio_proxy(&self) -> Value {
        let Self { settings, options, .. } = self;
        let level = settings.log_level.as_deref().unwrap_or("warning");
        let of_components = settings.component_log_level.as_deref().unwrap_or("misc:error");
        let mut container = json!({
            "name": SIDECAR,
            "image": settings.image,
            "args": [
                "proxy",
                "sidecar",
                "--domain",
                format!("$(POD_NAMESPACE).svc.{}", options.domain),
                format!("--proxyLogLevel={level}"),
                format!("--proxyComponentLogLevel={of_components}"),
                "--log_output_level=default:info",
            ],
            "env": self.istio_env(),
            "volumeMounts": [
                {"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"},
                {"name": "credential-socket", "mountPath": "/var/run/secrets/credential-uds"},
                {"name": "workload-certs", "mountPath": "/var/run/secrets/workload-spiffe-credentials"},
                {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
                {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
                {"name": "istio-podinfo", "mountPath": "/etc/istio/pod"},
            ],
        });
        if settings.holds_application() {
            container["lifecycle"] =
                json!({"postStart": {"exec": {"command": ["pilot-agent", "wait"]}}});
        } else if settings.native {
            // It is asked to drain when the pod begins to end, and ends after the application has.
            let port = format!("--debug-port={AGENT_PORT}");
            let drain = ["pilot-agent", "request", &port, "POST", "drain"];
            container["lifecycle"] = json!({"preStop": {"exec": {"command": drain}}});
        }
        if let Some(mounts) = container["volumeMounts"].as_array_mut() {
            mounts.extend(identity_mounts());
        }
        container
    }

    /// The environment of Istio's agent.
    fn istio_env(&self) -> Vec<Value> {
        let Self { options, .. } = self;
        let mut config = self.settings.config.raw.clone();
        config.entry("discoveryAddress").or_insert_with(|| options.xds.clone().into());
        let ports: Vec<&Value> = self
            .view
            .items("containers")
            .flat_map(|(_, container)| {
                container.get("ports").and_then(Value::as_array).into_iter().flatten()
            })
            .collect();
        let apps: Vec<&str> =
            self.view.items("containers").filter_map(|(_, app)| text(app, "name")).collect();
        let mut env = vec![
            value("PILOT_CERT_PROVIDER", "istiod"),
            value("CA_ADDR", &options.xds),
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("INSTANCE_IP", "status.podIP"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("HOST_IP", "status.hostIP"),
            limit("ISTIO_CPU_LIMIT", "limits.cpu"),
            value("PROXY_CONFIG", &Value::Object(config).to_string()),
            value("ISTIO_META_POD_PORTS", &json!(ports).to_string()),
            value("ISTIO_META_APP_CONTAINERS", &apps.join(",")),
            limit("GOMEMLIMIT", "limits.memory"),
            value("ISTIO_META_CLUSTER_ID", &options.cluster),
            field("ISTIO_META_NODE_NAME", "spec.nodeName"),
            value("ISTIO_META_INTERCEPTION_MODE", self.settings.interception.as_str()),
        ];
        if let Some(owner) = self.owner {
            let label = self.view.labels.get("service.istio.io/workload-name");
            env.push(value("ISTIO_META_WORKLOAD_NAME", label.unwrap_or(&owner.name)));
            env.push(value("ISTIO_META_OWNER", &owner.uri(self.namespace)));
        }
        env.push(value("ISTIO_META_MESH_ID", &options.trust_domain));
        env.push(value("TRUST_DOMAIN", &options.trust_domain));
        env
    }

    /// What both proxies have.
    fn complete(&self, sidecar: &mut Map<String, Value>, more: Vec<Value>) {
        let settings = self.settings;
        let metadata = &settings.config.metadata;
        if let Some(env) = list_mut(sidecar, "env") {
            // The user's values replace weir's.
            env.retain(|variable| {
                variable["name"].as_str().is_none_or(|name| !metadata.contains_key(name))
            });
            env.extend(metadata.iter().map(|(name, text)| value(name, text)));
            env.extend(more);
        }
        if let Some(mounts) = list_mut(sidecar, "volumeMounts") {
            mounts.extend(settings.mounts.iter().map(|(name, mount)| named(name, mount)));
        }
        let ready = json!({"path": "/healthz/ready", "port": READY_PORT});
        let readiness = &settings.readiness;
        let common = json!({
            "ports": [{"name": "http-envoy-prom", "containerPort": ports::METRICS, "protocol": "TCP"}],
            "resources": resources(&settings.resources),
            "securityContext": unprivileged(),
            // The application starts when this has succeeded once.
            "startupProbe": {
                "httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600,
            },
            "readinessProbe": {
                "httpGet": ready,
                "initialDelaySeconds": readiness.initial_delay,
                "periodSeconds": readiness.period,
                "timeoutSeconds": 3,
                "failureThreshold": readiness.failures,
            },
        });
        if let Value::Object(common) = common {
            sidecar.extend(common);
        }
        if settings.native {
            sidecar.insert("restartPolicy".to_owned(), "Always".into());
        }
    }

    fn volumes(&self) -> Vec<Value> {
        let mut volumes = match self.settings.kind {
            ProxyKind::Envoy => vec![json!({"name": "weir-agent", "emptyDir": {}})],
            ProxyKind::IstioProxy => vec![
                json!({"name": "workload-socket", "emptyDir": {}}),
                json!({"name": "credential-socket", "emptyDir": {}}),
                json!({"name": "workload-certs", "emptyDir": {}}),
                json!({"name": "istio-data", "emptyDir": {}}),
            ],
        };
        volumes.extend([
            json!({"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}),
            json!({"name": "istio-podinfo", "downwardAPI": {"items": [pod_metadata("labels"), pod_metadata("annotations")]}}),
        ]);
        if self.has_identity() {
            let token =
                json!({"path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca"});
            volumes.extend([
                json!({"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}}),
                json!({"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}}),
            ]);
        }
        volumes.extend(self.settings.volumes.iter().map(|(name, volume)| named(name, volume)));
        volumes
    }

    /// Whether the proxy proves who it is.
    pub(super) fn has_identity(&self) -> bool {
        self.options.xds_tls || self.settings.kind == ProxyKind::IstioProxy
    }
}

impl Parts {
    /// What an injector writes into the pod's annotation. Source: Istio's `SidecarInjectionStatus`.
    pub(crate) fn status(&self, options: &Options) -> String {
        let before = [&self.redirect, &self.install].into_iter().flatten();
        let native = self.native.then_some(&self.sidecar);
        let ordinary = (!self.native).then_some(&self.sidecar);
        json!({
            "initContainers": names(&before.chain(native).collect::<Vec<_>>()),
            "containers": names(&ordinary.into_iter().collect::<Vec<_>>()),
            "volumes": names(&self.volumes.iter().collect::<Vec<_>>()),
            "imagePullSecrets": names(&self.pull_secrets.iter().collect::<Vec<_>>()),
            "revision": options.revision(),
        })
        .to_string()
    }

    /// Adds the parts to the spec of a pod. `None` if a list of it is none.
    pub(crate) fn add_to(self, spec: &mut Map<String, Value>, settings: &Settings) -> Option<()> {
        let before = [self.redirect, self.install].into_iter().flatten();
        if self.native {
            // The application's init containers have a sidecar, too.
            let init = list_mut(spec, "initContainers")?;
            init.splice(0..0, before.chain([self.sidecar]));
        } else {
            let mut before: Vec<Value> = before.collect();
            // There is no proxy yet when the application's init containers run, so their traffic is redirected last.
            before.reverse();
            if !before.is_empty() {
                list_mut(spec, "initContainers")?.extend(before);
            }
            let containers = list_mut(spec, "containers")?;
            let at = if settings.holds_application() { 0 } else { containers.len() };
            containers.insert(at, self.sidecar);
        }
        list_mut(spec, "volumes")?.extend(self.volumes);
        if !self.pull_secrets.is_empty() {
            let secrets = list_mut(spec, "imagePullSecrets")?;
            let new = self.pull_secrets.into_iter();
            let new: Vec<Value> = new.filter(|secret| !secrets.contains(secret)).collect();
            secrets.extend(new);
        }
        Some(())
    }
}

fn texts<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).to_vec()
}

/// A variable with a value.
fn value(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

/// A variable with a field of the pod.
fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

/// A variable with a limit of the container.
fn limit(name: &str, resource: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": "1"}}})
}

/// A volume or mount that an annotation gives, with its name.
fn named(name: &str, of: &Value) -> Value {
    let mut named = Map::from_iter([("name".to_owned(), name.into())]);
    named.extend(of.as_object().cloned().unwrap_or_default());
    Value::Object(named)
}

/// The labels or annotations of the pod, as a file.
fn pod_metadata(of: &str) -> Value {
    json!({"path": of, "fieldRef": {"fieldPath": format!("metadata.{of}")}})
}

/// The names of parts; null if there are none, as Istio writes it.
fn names(items: &[&Value]) -> Value {
    match items {
        [] => Value::Null,
        items => items.iter().map(|item| item["name"].clone()).collect(),
    }
}

fn identity_mounts() -> [Value; 2] {
    [
        json!({"name": "istio-token", "mountPath": "/var/run/secrets/tokens"}),
        json!({"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"}),
    ]
}

/// What the Pod Security Standard `restricted` asks for.
fn unprivileged() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": PROXY_ID,
        "runAsNonRoot": true,
        "runAsUser": PROXY_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn resources(resources: &Resources) -> Value {
    let requests = amounts(&resources.cpu, &resources.memory);
    let limits = amounts(&resources.cpu_limit, &resources.memory_limit);
    let parts = [("requests", requests), ("limits", limits)].into_iter();
    let parts = parts.filter(|(_, part)| !part.is_empty());
    parts.map(|(name, part)| (name.to_owned(), Value::Object(part))).collect::<Map<_, _>>().into()
}

/// Amounts that are given.
fn amounts(cpu: &Option<String>, memory: &Option<String>) -> Map<String, Value> {
    let members = [("cpu", cpu), ("memory", memory)].into_iter();
    let members =
        members.filter_map(|(name, amount)| Some((name.to_owned(), amount.clone()?.into())));
    Map::from_iter(members)
}
