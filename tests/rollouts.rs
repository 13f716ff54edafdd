//! Canaries by the real Flagger and the real Argo Rollouts, through real Envoys under load: every weight that they wait at is
//! in force on all proxies, and no request fails. The objects are those of `deploy/examples`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::routing::post;
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::wait::await_condition;
use parking_lot::Mutex;
use regex::Regex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use weir::canary::load::{Load, Tally};
use weir::envoy::{Admin, EnvoyBinary, EnvoyProcess};

use crate::support::Skip;
use crate::support::kube::KubeCluster;
use crate::support::kube_binaries::{KubeBinaries, kube_controller_manager};
use crate::support::mesh::{Serve, assert_share, start_envoy, until};
use crate::support::network::is_inside_of_pods;
use crate::support::process::Supervised;
use crate::support::rollout_tools::{self, Tool};
use crate::support::workloads::{Workloads, supervised};

/// The ports, all of which are free in a network of its own.
const SERVICE: u16 = 80;
const XDS: u16 = 15010;
const ADMIN: u16 = 15014;
const GATES: u16 = 15018;
const HOOKS: u16 = 9000;

/// How long a step of a rollout may take. Flagger looks every 10 s.
const STEP: Duration = Duration::from_secs(180);

/// How many requests a pause counts.
const REQUESTS: u64 = 400;

/// What weir's gates are in the examples.
const EXAMPLE_GATES: &str = "http://weir.weir-system:15018";

/// Everything that takes minutes to get, outside the network of the test, which leads nowhere.
struct Parts {
    manager: PathBuf,
    tool: Tool,
}

/// The parts if this process is inside the network of the test. Otherwise the test runs inside one, or is skipped.
fn parts(test: &str, tool: impl FnOnce() -> Result<Tool, String>) -> Option<Parts> {
    let found = KubeBinaries::find().map_err(|skip| skip.why).and_then(|_| {
        EnvoyBinary::find(None).map_err(|error| error.to_string())?;
        Ok(Parts { manager: kube_controller_manager()?, tool: tool()? })
    });
    match found {
        Ok(parts) => is_inside_of_pods().then_some(parts),
        Err(why) => {
            Skip { why }.report(test);
            None
        }
    }
}

/// A cluster with workloads, weir, and two Envoys, of which one gets weights as runtime values and one in routes.
struct World {
    envoys: Vec<EnvoyProcess>,
    _weir: Serve,
    _workloads: Workloads,
    client: kube::Client,
    cluster: KubeCluster,
    folder: tempfile::TempDir,
}

impl World {
    async fn start(test: &str, parts: &Parts) -> Option<Self> {
        let cluster = KubeCluster::start(test)?;
        cluster.apply_crds();
        // Too large for the annotation of a plain apply.
        let definitions = parts.tool.crds.to_str().unwrap();
        let applied =
            cluster.kubectl_ok(&["apply", "--server-side", "-f", definitions, "-o", "name"]);
        for definition in applied.lines() {
            let kind = definition.rsplit('/').next().unwrap();
            until("the API serves a kind", async || {
                cluster.kubectl(&["get", kind, "-A"]).status.success()
            })
            .await;
        }
        let client = cluster.client().await;
        let workloads = Workloads::start(&client, cluster.kubeconfig_path(), &parts.manager).await;
        let kubeconfig = cluster.kubeconfig_path().to_str().unwrap().to_owned();
        let gates = format!("127.0.0.1:{GATES}");
        let weir =
            Serve::start(&["--kubeconfig", &kubeconfig, "--gates-listen", &gates], XDS, ADMIN);
        weir.ready().await;
        let folder = tempfile::tempdir().unwrap();
        let mut envoys = Vec::new();
        for way in ["runtime", "routes"] {
            let own = folder.path().join(way);
            std::fs::create_dir(&own).unwrap();
            // Both listen on the port of the Service, and the kernel spreads the connections.
            envoys.push(start_envoy(&own, weir.xds, &["--pod", way, "--weights", way]).await);
        }
        Some(Self { envoys, _weir: weir, _workloads: workloads, client, cluster, folder })
    }

    fn kubeconfig(&self) -> String {
        self.cluster.kubeconfig_path().to_str().unwrap().to_owned()
    }

    /// Applies a file of the repository in another namespace, with its documents changed.
    fn apply_example(&self, file: &str, namespace: &str, change: impl FnMut(&mut Value)) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let text = text
            .replace("your-namespace", namespace)
            .replace(EXAMPLE_GATES, &format!("http://127.0.0.1:{GATES}"));
        let mut all = documents(&text);
        all.iter_mut().for_each(change);
        all.retain(|document| !document.is_null());
        if !all.is_empty() {
            self.cluster
                .apply(&json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string());
        }
    }

    /// Waits until an object is as it should be.
    async fn until(
        &self,
        what: &str,
        (api, kind): (&str, &str),
        namespace: &str,
        name: &str,
        holds: impl Fn(&Value) -> bool + Sync,
    ) -> Value {
        let (group, version) = api.split_once('/').unwrap();
        let plural = if kind == "Canary" {
            "canaries".to_owned()
        } else {
            format!("{}s", kind.to_lowercase())
        };
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api.to_owned(),
            kind: kind.to_owned(),
            plural,
        };
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let last = Mutex::new(Value::Null);
        let found = |object: Option<&DynamicObject>| {
            let Some(object) = object else { return false };
            let object = serde_json::to_value(object).unwrap();
            let is_so = holds(&object);
            *last.lock() = object;
            is_so
        };
        let waited = tokio::time::timeout(STEP, await_condition(api, name, found)).await;
        let last = last.into_inner();
        assert!(
            waited.is_ok_and(|ended| ended.is_ok()),
            "waited {STEP:?} for: {what} of {kind} {namespace}/{name}; its status: {:#}",
            last["status"]
        );
        last
    }

    /// What the gate says of the route of the application.
    async fn gate(&self, namespace: &str) -> Value {
        let gates = Admin::new(([127, 0, 0, 1], GATES).into());
        let path = format!("/gates/live?namespace={namespace}&name=my-app&timeout=20s");
        serde_json::from_slice(&gates.get(&path).await.unwrap()).unwrap()
    }

    /// Fails unless this share of v2, in percent, is in force on both proxies, by weir and by the answers. `canary` says
    /// which destination is the canary's, and gets this weight.
    async fn assert_weight(
        &self,
        namespace: &str,
        load: &Load,
        weight: u32,
        canary: impl Fn(&Value) -> bool,
        v2: u32,
    ) {
        let gate = self.gate(namespace).await;
        assert_eq!((&gate["live"], &gate["proxies"]), (&json!(true), &json!(2)), "{gate:#}");
        let destinations = gate["routes"][0]["destinations"].as_array().unwrap();
        let found = destinations.iter().find(|to| canary(to)).map(|to| to["weight"].as_f64());
        assert_eq!(found, Some(Some(f64::from(weight))), "{gate:#}");
        load.step_begins();
        let mut tally = Tally::default();
        until("enough requests", async || {
            tally = load.tally();
            tally.total() >= REQUESTS
        })
        .await;
        load.edit_begins();
        assert!(load.failures().is_empty(), "{:?}: {}", load.failures(), self.causes().await);
        assert_share(tally.v2, tally.total(), v2);
    }

    /// Fails if a request has failed, or an Envoy has served none or rejected something.
    async fn end(&self, loads: Vec<Load>) {
        for load in loads {
            assert!(load.sent() > REQUESTS);
            assert!(load.failures().is_empty(), "{:?}: {}", load.failures(), self.causes().await);
            load.end().await;
        }
        for envoy in &self.envoys {
            let rejected = envoy.stats("update_rejected").await.unwrap();
            assert!(rejected.values().all(|count| *count == 0), "{rejected:?}");
        }
    }

    /// What may have failed requests, by Envoy's counters.
    async fn causes(&self) -> String {
        let filter =
            "none_healthy|reset|connect_fail|overflow|no_route|no_cluster|_503|timeout|eject";
        let mut text = String::new();
        for envoy in &self.envoys {
            let stats = envoy.stats(filter).await.unwrap();
            for (name, count) in stats.into_iter().filter(|(_, count)| *count > 0) {
                text += &format!("\n{name}: {count}");
            }
        }
        text
    }

    /// Waits until the route of the application is live on both proxies, and starts load on both.
    async fn load(&self, namespace: &str) -> Load {
        let client: HttpClient = Client::builder(TokioExecutor::new())
            // A new connection each time.
            .pool_max_idle_per_host(0)
            .build_http();
        until("both proxies serve the application", async || {
            let gate = self.gate(namespace).await;
            let request = http::Request::get(format!("http://127.0.0.1:{SERVICE}/"))
                .header("host", format!("my-app.{namespace}"))
                .body(Empty::<Bytes>::new());
            let answered = client.request(request.unwrap()).await;
            let is_fine = answered.is_ok_and(|answer| answer.status() == StatusCode::OK);
            is_fine && gate["live"] == true && gate["proxies"] == 2 && self.all_serve().await
        })
        .await;
        // Light, because it runs beside other tests.
        Load::paced(&format!("my-app.{namespace}"), SERVICE, 400_000, Duration::from_millis(25))
    }

    /// Fails unless the proxies count everything that the queries in a file of the examples name.
    async fn assert_measured(&self, file: &str, names: &[(&str, &str)]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let mut text = std::fs::read_to_string(path).unwrap();
        for (name, value) in names {
            text = text.replace(name, value);
        }
        let selectors = selectors(&text);
        assert!(!selectors.is_empty(), "{file} queries nothing");
        let mut counted = Vec::new();
        for envoy in &self.envoys {
            let stats = envoy.admin_get("/stats/prometheus").await.unwrap();
            counted.extend(String::from_utf8_lossy(&stats).lines().filter_map(series));
        }
        for selector in selectors {
            assert!(counted.iter().any(|item| selector.matches(item)), "no series is {selector:?}");
        }
    }

    /// Whether each Envoy has answered requests.
    async fn all_serve(&self) -> bool {
        for envoy in &self.envoys {
            let stats = envoy.stats("^http.outbound.*downstream_rq_2xx").await.unwrap();
            if stats.values().sum::<u64>() == 0 {
                return false;
            }
        }
        true
    }
}

type HttpClient = Client<HttpConnector, Empty<Bytes>>;

/// A selector of a query in PromQL: the name of a metric, and what its labels must be.
#[derive(Debug)]
struct Selector {
    metric: String,
    labels: Vec<(String, String, String)>,
}

/// A metric and its labels.
type Series = (String, BTreeMap<String, String>);

impl Selector {
    fn matches(&self, (metric, labels): &Series) -> bool {
        *metric == self.metric
            && self.labels.iter().all(|(name, operator, value)| {
                let Some(found) = labels.get(name) else { return false };
                let fits = || Regex::new(&format!("^(?:{value})$")).unwrap().is_match(found);
                match operator.as_str() {
                    "=" => found == value,
                    "!=" => found != value,
                    "=~" => fits(),
                    "!~" => !fits(),
                    other => panic!("{other}"),
                }
            })
    }
}

/// All selectors in a text.
fn selectors(text: &str) -> Vec<Selector> {
    let selector = Regex::new(r#"(envoy_[a-z_]+)\{([^}]*)\}"#).unwrap();
    let found = selector.captures_iter(text);
    found.map(|found| Selector { metric: found[1].to_owned(), labels: labels(&found[2]) }).collect()
}

fn labels(text: &str) -> Vec<(String, String, String)> {
    let label = Regex::new(r#"([a-z_]+)(=~|!=|!~|=)"([^"]*)""#).unwrap();
    let found = label.captures_iter(text);
    found.map(|found| (found[1].to_owned(), found[2].to_owned(), found[3].to_owned())).collect()
}

/// A line of the Prometheus text format; `None` for a comment.
fn series(line: &str) -> Option<Series> {
    let (metric, rest) = line.split_once('{').filter(|_| !line.starts_with('#'))?;
    let (all, _) = rest.rsplit_once('}')?;
    let all = labels(all).into_iter().map(|(name, _, value)| (name, value));
    Some((metric.to_owned(), all.collect()))
}

/// The documents of a YAML file.
fn documents(text: &str) -> Vec<Value> {
    let parts = text
        .split("\n---\n")
        .filter(|part| part.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')));
    parts.map(|part| serde_saphyr::from_str(part).unwrap()).collect()
}

/// A person who approves each step of Flagger, and an acceptance test that fails when it is told so.
#[derive(Clone, Default)]
struct Hooks(Arc<Mutex<BTreeMap<String, Hook>>>);

#[derive(Clone, Copy, Default)]
struct Hook {
    approvals: u32,
    fails: bool,
}

impl Hooks {
    async fn serve(self) {
        let router = Router::new()
            .route("/approve/{namespace}", post(Self::approve))
            .route("/accept/{namespace}", post(Self::accept))
            .with_state(self);
        let listener = TcpListener::bind(("127.0.0.1", HOOKS)).await.unwrap();
        axum::serve(listener, router).await.unwrap();
    }

    /// Each approval is for one step.
    async fn approve(State(hooks): State<Self>, UrlPath(namespace): UrlPath<String>) -> StatusCode {
        let mut all = hooks.0.lock();
        let hook = all.entry(namespace).or_default();
        if hook.approvals == 0 {
            return StatusCode::FORBIDDEN;
        }
        hook.approvals -= 1;
        StatusCode::OK
    }

    async fn accept(State(hooks): State<Self>, UrlPath(namespace): UrlPath<String>) -> StatusCode {
        let fails = hooks.0.lock().get(&namespace).is_some_and(|hook| hook.fails);
        if fails { StatusCode::FORBIDDEN } else { StatusCode::OK }
    }

    fn change(&self, namespace: &str, change: impl FnOnce(&mut Hook)) {
        change(self.0.lock().entry(namespace.to_owned()).or_default());
    }
}

const CANARY: (&str, &str) = ("flagger.app/v1beta1", "Canary");

/// The Canary of the example, with the shortest interval, with approvals, and without the metrics of a Prometheus.
fn for_flagger(document: &mut Value, namespace: &str) {
    if document["kind"] == "MetricTemplate" {
        *document = Value::Null;
        return;
    }
    if document["kind"] != "Canary" {
        return;
    }
    let analysis = &mut document["spec"]["analysis"];
    analysis["interval"] = json!("10s");
    analysis["threshold"] = json!(1);
    analysis["metrics"] = json!([]);
    let hooks = analysis["webhooks"].as_array_mut().unwrap();
    let hook = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "url": format!("http://127.0.0.1:{HOOKS}/{path}/{namespace}")});
    hooks.push(hook("approval", "confirm-traffic-increase", "approve"));
    hooks.push(hook("acceptance", "rollout", "accept"));
}

fn phase_is(phase: &str) -> impl Fn(&Value) -> bool + Sync {
    move |object| object["status"]["phase"] == phase
}

/// A Canary of Flagger that is promoted, or fails at its first weight.
async fn flagger_canary(world: &World, hooks: &Hooks, namespace: &str, succeeds: bool) -> Load {
    world.cluster.kubectl_ok(&["create", "namespace", namespace]);
    for file in ["01-app", "02-metrics", "03-canary"] {
        let file = format!("deploy/examples/flagger/{file}.yaml");
        world.apply_example(&file, namespace, |document| for_flagger(document, namespace));
    }
    world.until("it is initialized", CANARY, namespace, "my-app", phase_is("Initialized")).await;
    let load = world.load(namespace).await;
    let is_canary =
        |to: &Value| to["host"].as_str().is_some_and(|host| host.starts_with("my-app-canary."));
    world.assert_weight(namespace, &load, 0, is_canary, 0).await;

    let image = ["-n", namespace, "set", "image", "deployment/my-app", "my-app=my-app:v2"];
    world.cluster.kubectl_ok(&image);
    for weight in [20, 50] {
        hooks.change(namespace, |hook| hook.approvals += 1);
        let what = format!("weight {weight}");
        world
            .until(&what, CANARY, namespace, "my-app", |canary| {
                canary["status"]["canaryWeight"] == weight
            })
            .await;
        world.assert_weight(namespace, &load, weight, is_canary, weight).await;
        if !succeeds {
            hooks.change(namespace, |hook| hook.fails = true);
            world.until("it has failed", CANARY, namespace, "my-app", phase_is("Failed")).await;
            world.assert_weight(namespace, &load, 0, is_canary, 0).await;
            return load;
        }
    }
    hooks.change(namespace, |hook| hook.approvals += 1);
    world.until("it is promoted", CANARY, namespace, "my-app", phase_is("Succeeded")).await;
    // The primary has the new version by now.
    world.assert_weight(namespace, &load, 0, is_canary, 100).await;
    load
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flagger_promotes_one_canary_and_rolls_back_another() {
    let name = "flagger_promotes_one_canary_and_rolls_back_another";
    let Some(parts) = parts(name, rollout_tools::flagger) else { return };
    let Some(world) = World::start(name, &parts).await else { return };
    let hooks = Hooks::default();
    let mut served = tokio::task::JoinSet::new();
    served.spawn(hooks.clone().serve());
    let args = [
        format!("-kubeconfig={}", world.kubeconfig()),
        "-mesh-provider=istio".into(),
        "-control-loop-interval=1s".into(),
        // There is no Prometheus.
        format!("-metrics-server=http://127.0.0.1:{HOOKS}"),
        "-log-level=info".into(),
        // Its own port is that of the pods.
        "-port=18080".into(),
    ];
    let _flagger = supervised(&parts.tool.program, args.to_vec());
    let loads = tokio::join!(
        flagger_canary(&world, &hooks, "good", true),
        flagger_canary(&world, &hooks, "bad", false),
    );
    for namespace in ["good", "bad"] {
        let names = [("{{ service }}", "my-app"), ("{{ namespace }}", namespace)];
        world.assert_measured("deploy/examples/flagger/02-metrics.yaml", &names).await;
    }
    world.end(vec![loads.0, loads.1]).await;
}

const ROLLOUT: (&str, &str) = ("argoproj.io/v1alpha1", "Rollout");

/// The Rollout of the example with pauses that a person ends, and without the metrics of a Prometheus.
fn for_argo(document: &mut Value) {
    if document["kind"] == "AnalysisTemplate" {
        let metric = &mut document["spec"]["metrics"][0];
        (metric["count"], metric["failureLimit"]) = (json!(1), json!(0));
        if metric["provider"].get("prometheus").is_some() {
            *document = Value::Null;
        }
        return;
    }
    if document["kind"] != "Rollout" {
        return;
    }
    let canary = &mut document["spec"]["strategy"]["canary"];
    // The old pods go soon after the last step, still under load.
    canary["scaleDownDelaySeconds"] = json!(1);
    let steps = canary["steps"].as_array_mut().unwrap();
    for step in steps {
        if step.get("pause").is_some() {
            *step = json!({"pause": {}});
        }
        if let Some(templates) = step.pointer_mut("/analysis/templates") {
            templates.as_array_mut().unwrap().retain(|item| item["templateName"] == "weir-live");
        }
    }
}

/// The controller of Argo Rollouts with weir's plugin.
fn argo_controller(world: &World, tool: &Tool, plugin: &Path) -> Supervised {
    world.cluster.kubectl_ok(&["create", "namespace", "argo-rollouts"]);
    let location = format!("file://{}", plugin.display());
    world.apply_example("deploy/argo-rollouts-plugin/config-map.yaml", "", |document| {
        let list = document["data"]["trafficRouterPlugins"].as_str().unwrap();
        let placeholder =
            list.lines().find_map(|line| line.trim().strip_prefix("location: ")).unwrap();
        document["data"]["trafficRouterPlugins"] = list.replace(placeholder, &location).into();
    });
    // It copies plugins into a folder below its own.
    let args = [
        format!("--chdir={}", world.folder.path().display()),
        "ROLLOUT_VERIFY_RETRY_INTERVAL=1s".into(),
        tool.program.to_str().unwrap().to_owned(),
        format!("--kubeconfig={}", world.kubeconfig()),
        "--leader-elect=false".into(),
        // Its own ports may be those of the pods.
        "--healthzPort=18080".into(),
        "--metricsPort=18090".into(),
    ];
    supervised(Path::new("env"), args.to_vec())
}

/// A Rollout of Argo that is driven by a person.
struct ArgoRollout<'a> {
    world: &'a World,
    namespace: &'a str,
    load: Load,
}

impl ArgoRollout<'_> {
    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool + Sync) -> Value {
        self.world.until(what, ROLLOUT, self.namespace, "my-app", holds).await
    }

    fn patch(&self, more: &[&str], patch: &Value) {
        let patch = patch.to_string();
        let args =
            ["-n", self.namespace, "patch", "rollout", "my-app", "--type=merge", "-p", &patch];
        self.world.cluster.kubectl_ok(&[&args, more].concat());
    }

    /// Begins the rollout of an image.
    fn begin(&self, image: &str, run: &str) {
        let container = json!({"name": "my-app", "image": image, "ports": [{"name": "http", "containerPort": 8080}]});
        self.patch(
            &[],
            &json!({"spec": {"template": {
                "metadata": {"annotations": {"run": run}},
                "spec": {"containers": [container]},
            }}}),
        );
    }

    /// Waits until it pauses at this step, where the plugin has verified the weight, and checks the weight.
    async fn pauses(&self, step: u32, weight: u32, v2: u32) {
        let what = format!("a pause at step {step}");
        let status = self
            .until(&what, |rollout| {
                let status = &rollout["status"];
                let pauses =
                    status["pauseConditions"].as_array().is_some_and(|list| !list.is_empty());
                pauses && status["currentStepIndex"] == step
            })
            .await;
        let weights = &status["status"]["canary"]["weights"];
        assert_eq!(
            (&weights["canary"]["weight"], &weights["verified"]),
            (&json!(weight), &json!(true))
        );
        self.assert_weight(weight, v2).await;
    }

    async fn assert_weight(&self, weight: u32, v2: u32) {
        let is_canary = |to: &Value| to["subset"] == "canary";
        self.world.assert_weight(self.namespace, &self.load, weight, is_canary, v2).await;
    }

    /// Ends a pause, as `kubectl argo rollouts promote` does.
    fn promote(&self) {
        self.patch(&["--subresource=status"], &json!({"status": {"pauseConditions": null}}));
    }

    /// Waits until it is promoted, and all weight is with the stable subset, which has the new version.
    async fn is_healthy(&self) {
        self.until("it is healthy", |rollout| {
            let status = &rollout["status"];
            status["phase"] == "Healthy"
                && status["availableReplicas"] == 2
                && status["stableRS"] == status["currentPodHash"]
                && status["canary"]["weights"]["canary"]["weight"] == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argo_rollouts_promotes_a_rollout_and_aborts_the_next() {
    let name = "argo_rollouts_promotes_a_rollout_and_aborts_the_next";
    let mut plugin = PathBuf::new();
    let tool = || {
        plugin = rollout_tools::argo_plugin()?;
        rollout_tools::argo_rollouts()
    };
    let Some(parts) = parts(name, tool) else { return };
    let Some(world) = World::start(name, &parts).await else { return };
    let _argo = argo_controller(&world, &parts.tool, &plugin);
    let namespace = "shop";
    world.cluster.kubectl_ok(&["create", "namespace", namespace]);
    for file in ["01-app", "02-analysis", "03-rollout"] {
        let file = format!("deploy/examples/argo-rollouts/{file}.yaml");
        world.apply_example(&file, namespace, for_argo);
    }
    world.until("it is healthy", ROLLOUT, namespace, "my-app", phase_is("Healthy")).await;
    let load = world.load(namespace).await;
    let rollout = ArgoRollout { world: &world, namespace, load };
    rollout.assert_weight(0, 0).await;

    rollout.begin("my-app:v2", "1");
    rollout.pauses(1, 20, 20).await;
    rollout.promote();
    // After an analysis that asks weir.
    rollout.pauses(4, 60, 60).await;
    rollout.promote();
    rollout.is_healthy().await;
    rollout.assert_weight(0, 100).await;

    // The other way, until an analysis fails: there are two proxies.
    let template = json!({"spec": {"metrics": [{"name": "live", "count": 1, "failureLimit": 0,
        "successCondition": "result.proxies > 2",
        "provider": {"web": {"url": format!("http://127.0.0.1:{GATES}/gates/live?namespace={namespace}&name=my-app"),
                             "jsonPath": "{$}"}}}]}});
    let args = ["-n", namespace, "patch", "analysistemplate", "weir-live", "--type=merge", "-p"];
    world.cluster.kubectl_ok(&[&args[..], &[&template.to_string()]].concat());
    rollout.begin("my-app:v1", "2");
    rollout.pauses(1, 20, 80).await;
    rollout.promote();
    rollout
        .until("it is aborted", |rollout| {
            rollout["status"]["abort"] == true
                && rollout["status"]["phase"] == "Degraded"
                && rollout["status"]["canary"]["weights"]["canary"]["weight"] == 0
        })
        .await;
    rollout.assert_weight(0, 100).await;
    // As the arguments of the Rollout say.
    let names = [("{{args.host}}", "my-app[.]shop[.]svc[.].+"), ("{{args.subset}}", "canary")];
    world.assert_measured("deploy/examples/argo-rollouts/02-analysis.yaml", &names).await;
    let load = rollout.load;
    world.end(vec![load]).await;
}
