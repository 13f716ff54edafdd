//! A real Envoy accepts every resource of every case under `tests/cases`, both as a static configuration and from weir
//! over ADS.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::certs::Certificates;
use crate::support::network::is_inside;
use crate::support::sds;
use crate::support::sidecar::{Options, Sidecar};
use serde_json::{Value, json};
use weir::envoy::{EnvoyBinary, Error};
use weir::mesh::{Locality, MeshBuilder, MeshConfig, NodeMetadata, Proxy};
use weir::snapshot::{ResourceType, SnapshotBuilder};
use weir::store::Store;

/// The certificate files that cases reference, and their replacements.
const FILES: [(&str, &str); 3] = [
    ("/etc/certs/ca.pem", "ca.pem"),
    ("/etc/certs/c.pem", "client.pem"),
    ("/etc/certs/k.pem", "client-key.pem"),
];

/// The objects of a case and its proxy.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    input: PathBuf,
    ip: &'static str,
    pod: &'static str,
    labels: &'static [(&'static str, &'static str)],
    redirected: bool,
}

/// Every folder with objects, and for each folder `as-WHO` below it the same objects again.
fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut found = Vec::new();
    for folder in folders(&root) {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let client = Case {
            input: folder.join("input.yaml"),
            name: name.clone(),
            ip: "10.9.0.1",
            pod: "client-0",
            labels: &[("app", "client"), ("version", "v1")],
            redirected: true,
        };
        assert!(client.input.exists(), "{} contains no objects", folder.display());
        for other in folders(&folder) {
            let who = other.file_name().unwrap().to_str().unwrap();
            let name = format!("{name}/{who}");
            found.push(match who {
                "as-multi-0" => Case {
                    name,
                    ip: "10.1.4.1",
                    pod: "multi-0",
                    labels: &[("app", "multi")],
                    ..client.clone()
                },
                "as-unintercepted" => Case { name, redirected: false, ..client.clone() },
                _ => panic!("{}: who is that?", other.display()),
            });
        }
        found.push(client);
    }
    found
}

fn folders(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

impl Case {
    fn node_id(&self) -> String {
        format!("sidecar~{}~{}.shop~shop.svc.cluster.local", self.ip, self.pod)
    }

    /// The objects, with existing certificate files.
    fn objects(&self, certificates: &Certificates) -> String {
        let text = std::fs::read_to_string(&self.input).unwrap();
        let text =
            FILES.iter().fold(text, |text, (from, to)| text.replace(from, &certificates.file(to)));
        assert!(
            !text.contains("/etc/certs"),
            "{}: certificate files that are not listed",
            self.name
        );
        text
    }

    fn translate(&self, objects: &Path) -> Resources {
        let (mut store, mut dirty) = (Store::default(), BTreeSet::new());
        for change in weir::source::directory::load_once(objects).unwrap() {
            store.apply(change, &mut dirty);
        }
        let mesh = MeshBuilder::new(MeshConfig::default()).update(&store, &dirty);
        let labels: BTreeMap<_, _> = self.labels.iter().copied().collect();
        let mode = if self.redirected { "REDIRECT" } else { "NONE" };
        let metadata =
            NodeMetadata::from_json(&json!({"LABELS": labels, "INTERCEPTION_MODE": mode}));
        let proxy = Proxy::new(&self.node_id(), metadata, Locality::parse("eu/eu-a")).unwrap();
        let snapshot = SnapshotBuilder::default().snapshot(&mesh, &mesh.scope(&proxy));
        let all = |kind, name| {
            let list = weir::cli::translate::to_json(&snapshot, kind).unwrap();
            let named = |item: Value| (item[name].as_str().unwrap().to_owned(), item);
            list.into_iter().map(named).collect::<BTreeMap<_, _>>()
        };
        Resources {
            clusters: all(ResourceType::Cluster, "name"),
            endpoints: all(ResourceType::Endpoints, "clusterName"),
            listeners: all(ResourceType::Listener, "name"),
            routes: all(ResourceType::Route, "name"),
        }
    }
}

/// The expected resources of a proxy, by name.
#[derive(Debug, Clone)]
struct Resources {
    clusters: BTreeMap<String, Value>,
    endpoints: BTreeMap<String, Value>,
    listeners: BTreeMap<String, Value>,
    routes: BTreeMap<String, Value>,
}

impl Resources {
    /// A static bootstrap with all resources: endpoints inside their clusters, routes inside the listeners that
    /// reference them.
    fn bootstrap(&self) -> Value {
        let mut endpoints = self.endpoints.clone();
        let mut clusters = vec![sds::cluster(9)];
        for cluster in self.clusters.values() {
            let mut cluster = cluster.clone();
            let fields = cluster.as_object_mut().unwrap();
            if let Some(eds) = fields.remove("edsClusterConfig") {
                let name = eds["serviceName"].as_str().unwrap();
                let assignment =
                    endpoints.remove(name).unwrap_or_else(|| panic!("no endpoints named {name}"));
                fields.insert("type".to_owned(), "STATIC".into());
                fields.insert("loadAssignment".to_owned(), assignment);
            }
            clusters.push(cluster);
        }
        assert!(endpoints.is_empty(), "endpoints without a cluster: {endpoints:?}");
        let mut used = BTreeSet::new();
        let mut listeners: Vec<_> = self.listeners.values().cloned().collect();
        listeners.iter_mut().for_each(|listener| self.inline_routes(listener, &mut used));
        assert_eq!(
            used,
            self.routes.keys().cloned().collect(),
            "routes referenced by listeners, and existing routes"
        );
        json!({
            "node": {"id": "valid", "cluster": "valid"},
            "static_resources": {"clusters": clusters, "listeners": listeners},
        })
    }

    fn inline_routes(&self, value: &mut Value, used: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(rds) = fields.remove("rds") {
                    let name = rds["routeConfigName"].as_str().unwrap();
                    let routes =
                        self.routes.get(name).unwrap_or_else(|| panic!("no routes named {name}"));
                    fields.insert("routeConfig".to_owned(), routes.clone());
                    used.insert(name.to_owned());
                }
                fields.values_mut().for_each(|value| self.inline_routes(value, used));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.inline_routes(item, used)),
            _ => {}
        }
    }
}

fn validate(envoy: &EnvoyBinary, folder: &Path, bootstrap: &Value) -> Result<(), Error> {
    let file = folder.join("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    envoy.validate(&file)
}

#[test]
fn envoy_accepts_every_case_as_static_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let envoy = EnvoyBinary::find(None).unwrap();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for case in cases() {
        let objects = folder.path().join("objects.yaml");
        std::fs::write(&objects, case.objects(&certificates)).unwrap();
        let resources = case.translate(&objects);
        count += resources.clusters.len() + resources.listeners.len() + resources.routes.len();
        if let Err(error) = validate(&envoy, folder.path(), &resources.bootstrap()) {
            wrong.push(format!("{}: {error}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 350, "only {count} resources were checked");
}

/// Without this the test above could pass because nothing is checked.
#[test]
fn envoy_rejects_the_same_configuration_with_one_wrong_value() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let envoy = EnvoyBinary::find(None).unwrap();
    let case = cases().into_iter().find(|case| case.name == "tutorial-90-10").unwrap();
    let objects = folder.path().join("objects.yaml");
    std::fs::write(&objects, case.objects(&certificates)).unwrap();
    let good = case.translate(&objects);

    let mut bad = good.clone();
    let host =
        bad.routes.values_mut().flat_map(|routes| routes["virtualHosts"].as_array_mut().unwrap());
    let routes = host.flat_map(|host| host["routes"].as_array_mut().unwrap());
    let weighted = routes
        .filter_map(|route| route.pointer_mut("/route/weightedClusters/clusters")?.as_array_mut());
    weighted.flatten().for_each(|cluster| cluster["weight"] = 0.into());
    let rejected = validate(&envoy, folder.path(), &bad.bootstrap()).unwrap_err().to_string();
    assert!(rejected.contains("Sum of weights"), "{rejected}");

    let mut bad = good.clone();
    for assignment in bad.endpoints.values_mut() {
        for group in assignment["endpoints"].as_array_mut().into_iter().flatten() {
            group["lbEndpoints"][0]["endpoint"]["address"]["socketAddress"]["address"] =
                "no-address".into();
        }
    }
    let rejected = validate(&envoy, folder.path(), &bad.bootstrap()).unwrap_err().to_string();
    assert!(rejected.contains("no-address"), "{rejected}");
}

#[tokio::test]
async fn envoy_accepts_every_case_over_ads() {
    for case in cases().into_iter().filter(|case| case.redirected) {
        over_ads(&case).await;
    }
}

/// In its own network namespace, because it binds the services' ports, which need root and may be in use.
#[tokio::test]
async fn envoy_accepts_every_case_that_binds_ports_over_ads() {
    if !is_inside() {
        return;
    }
    let bound: Vec<_> = cases().into_iter().filter(|case| !case.redirected).collect();
    assert!(!bound.is_empty());
    for case in bound {
        over_ads(&case).await;
    }
}

async fn over_ads(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let agent = sds::start(&certificates);
    let own = tempfile::tempdir().unwrap().keep();
    let config = own.join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("objects.yaml"), case.objects(&certificates)).unwrap();
    let wanted = case.translate(&config);

    let id = case.node_id();
    let labels: Vec<_> =
        case.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mode = if case.redirected { "redirect" } else { "none" };
    let mut bootstrap = vec!["--node-id", &id, "--intercept", mode, "--locality", "eu/eu-a"];
    bootstrap.extend(labels.iter().flat_map(|label| ["--label", label]));
    let clusters = vec![sds::cluster(agent)];
    let sidecar =
        Sidecar::start(&own, Options { bootstrap: &bootstrap, clusters, ..Options::default() })
            .await;

    let name = &case.name;
    let metrics =
        String::from_utf8(sidecar.weir().get("/metrics").await.unwrap().to_vec()).unwrap();
    let rejects: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("pilot_total_xds_rejects")).collect();
    assert_eq!(rejects, [""; 0], "{name}");
    let rejected = sidecar.envoy().stats("update_rejected").await.unwrap();
    assert!(
        rejected.len() >= 3 && rejected.values().all(|count| *count == 0),
        "{name}: {rejected:?}"
    );

    let dump = sidecar.envoy().config_dump().await.unwrap();
    let keys = |map: &BTreeMap<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(
        active(&dump, "dynamic_active_clusters", "/cluster/name"),
        keys(&wanted.clusters),
        "{name}"
    );
    assert_eq!(
        active(&dump, "dynamic_listeners", "/active_state/listener/name"),
        keys(&wanted.listeners),
        "{name}"
    );
    assert_eq!(
        active(&dump, "dynamic_route_configs", "/route_config/name"),
        keys(&wanted.routes),
        "{name}"
    );
    let endpoints = active(&dump, "dynamic_endpoint_configs", "/endpoint_config/cluster_name");
    assert!(endpoints.is_superset(&keys(&wanted.endpoints)), "{name}: {endpoints:?}");
}

/// The names of the active resources.
fn active(dump: &Value, list: &str, name: &str) -> BTreeSet<String> {
    let parts = dump["configs"].as_array().unwrap().iter().filter_map(|part| part[list].as_array());
    let names = parts.flatten().filter_map(|item| item.pointer(name)?.as_str());
    names.map(str::to_owned).collect()
}
