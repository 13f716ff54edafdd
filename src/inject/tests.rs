use proptest::prelude::*;
use serde_json::{Map, json};

use super::documents::{Input, Rewritten, rewrite};
use super::*;
use crate::api::Labels;
use crate::source::yaml;

/// What becomes of a pod in the namespace `shop`.
fn outcome(pod: &Value, options: &Options) -> Outcome {
    inject(pod, "shop", None, Chosen::ByWebhook, options)
}

/// A pod with a sidecar.
fn injected(pod: &Value, options: &Options) -> Value {
    match outcome(pod, options) {
        Outcome::Injected(injected) => injected.pod,
        other => panic!("{other:?}"),
    }
}

/// Why a pod is refused, and whether it has asked for a sidecar.
fn refused(pod: &Value) -> (Vec<String>, bool) {
    match outcome(pod, &Options::default()) {
        Outcome::Refused(Refusal { problems, asked }) => {
            (problems.iter().map(ToString::to_string).collect(), asked)
        }
        other => panic!("{other:?}"),
    }
}

fn pod(metadata: Value, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

fn app() -> Value {
    pod(
        json!({"name": "web", "labels": {"app": "web"}}),
        json!({"containers": [{"name": "app", "image": "i"}]}),
    )
}

fn annotated(annotations: Value) -> Value {
    let mut pod = app();
    pod["metadata"]["annotations"] = annotations;
    pod
}

/// The names of the members of a list.
fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

/// The container of the proxy.
fn sidecar(pod: &Value) -> &Value {
    let lists = ["initContainers", "containers"];
    let mut all = lists.iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    all.find(|container| container["name"] == "istio-proxy").expect("a sidecar")
}

/// A variable of the proxy.
fn env<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    let env = sidecar(pod)["env"].as_array().expect("a list");
    env.iter().find(|variable| variable["name"] == name)?["value"].as_str()
}

fn args(container: &Value) -> Vec<&str> {
    container["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn a_native_sidecar_starts_after_redirection_and_before_all_of_the_application() {
    let mut pod = app();
    pod["spec"]["initContainers"] = json!([{"name": "migrate"}]);
    let pod = injected(&pod, &Options::default());
    let init = ["istio-init", "weir-install", "istio-proxy", "migrate"];
    assert_eq!(names(&pod["spec"]["initContainers"]), init);
    assert_eq!(names(&pod["spec"]["containers"]), ["app"]);
    let sidecar = sidecar(&pod);
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(
        sidecar["startupProbe"]["httpGet"],
        json!({"path": "/healthz/ready", "port": 15021})
    );
    assert_eq!(sidecar["lifecycle"], Value::Null);
    assert_eq!(sidecar["image"], ENVOY_IMAGE);
    assert_eq!(sidecar["command"], json!(["/var/run/weir/weir"]));
    assert_eq!(args(sidecar), ["agent", "run", "--interception", "REDIRECT", "--concurrency", "2"]);
    assert_eq!(env(&pod, "WEIR_XDS"), Some("weir.weir-system.svc:15012"));
    assert_eq!(env(&pod, "ISTIO_KUBE_APP_PROBERS"), None);
    let volumes = ["weir-agent", "istio-envoy", "istio-podinfo", "istio-token", "istiod-ca-cert"];
    assert_eq!(names(&pod["spec"]["volumes"]), volumes);
}

#[test]
fn an_ordinary_sidecar_comes_first_if_the_application_waits_for_it() {
    for (config, holds) in [
        (json!({}), true),
        (json!({"proxy.istio.io/config": "holdApplicationUntilProxyStarts: true"}), true),
        (json!({"proxy.istio.io/config": "holdApplicationUntilProxyStarts: false"}), false),
    ] {
        let mut pod = annotated(config);
        pod["metadata"]["annotations"]["sidecar.istio.io/nativeSidecar"] = json!("false");
        pod["spec"]["initContainers"] = json!([{"name": "migrate"}]);
        let pod = injected(&pod, &Options::default());
        let init = ["migrate", "weir-install", "istio-init"];
        assert_eq!(names(&pod["spec"]["initContainers"]), init);
        let order = if holds { ["istio-proxy", "app"] } else { ["app", "istio-proxy"] };
        assert_eq!(names(&pod["spec"]["containers"]), order);
        assert_eq!(sidecar(&pod)["restartPolicy"], Value::Null);
        let waits = json!(["/var/run/weir/weir", "agent", "wait"]);
        let hook = &sidecar(&pod)["lifecycle"]["postStart"]["exec"]["command"];
        assert_eq!(*hook, if holds { waits } else { Value::Null });
    }
}

#[test]
fn a_job_does_not_end_while_an_ordinary_sidecar_runs() {
    for (kind, native, warned) in [
        ("Job", "false", true),
        ("CronJob", "false", true),
        ("Job", "true", false),
        ("Deployment", "false", false),
    ] {
        let pod = annotated(json!({"sidecar.istio.io/nativeSidecar": native}));
        let owner = Owner {
            api_version: "batch/v1".to_owned(),
            kind: kind.to_owned(),
            name: "web".to_owned(),
        };
        let outcome = inject(&pod, "shop", Some(&owner), Chosen::ByWebhook, &Options::default());
        let Outcome::Injected(result) = outcome else { panic!() };
        assert_eq!(result.warnings.len(), usize::from(warned), "{kind}: {:?}", result.warnings);
    }
}

#[test]
fn without_interception_nothing_needs_privileges() {
    let pod = injected(
        &annotated(json!({"sidecar.istio.io/interceptionMode": "NONE"})),
        &Options::default(),
    );
    assert_eq!(names(&pod["spec"]["initContainers"]), ["weir-install", "istio-proxy"]);
    assert_eq!(args(sidecar(&pod))[..4], ["agent", "run", "--interception", "NONE"]);
}

#[test]
fn annotations_reach_redirection_and_the_agent() {
    let pod = annotated(json!({
        "traffic.sidecar.istio.io/includeInboundPorts": "80,443",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9090",
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
        "traffic.sidecar.istio.io/includeOutboundPorts": "5432",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
        "traffic.sidecar.istio.io/excludeInterfaces": "eth1",
        "sidecar.istio.io/logLevel": "debug",
        "sidecar.istio.io/proxyCPULimit": "1500m",
        "proxy.istio.io/config": "terminationDrainDuration: 20s\ndrainDuration: 30s\nproxyMetadata: {A: b, ISTIO_META_CLUSTER_ID: east}",
    }));
    let pod = injected(&pod, &Options::default());
    assert_eq!(
        args(&pod["spec"]["initContainers"][0]),
        [
            "redirect",
            "--inbound-ports=80,443",
            "--exclude-inbound-ports=15008,15020,15021,15090,9090",
            "--outbound-ranges=10.0.0.0/8",
            "--exclude-outbound-ranges=10.1.0.0/16",
            "--outbound-ports=5432",
            "--exclude-outbound-ports=3306",
            "--exclude-interfaces=eth1",
        ]
    );
    let agent = [
        "agent",
        "run",
        "--interception",
        "REDIRECT",
        "--concurrency",
        "2",
        "--",
        "--log-level",
        "debug",
        "--drain-time-s",
        "30",
    ];
    assert_eq!(args(sidecar(&pod)), agent);
    assert_eq!(env(&pod, "TERMINATION_DRAIN_DURATION_SECONDS"), Some("20"));
    assert_eq!(env(&pod, "A"), Some("b"));
    assert_eq!(env(&pod, "ISTIO_META_CLUSTER_ID"), Some("east"));
    assert_eq!(sidecar(&pod)["resources"], json!({"limits": {"cpu": "1500m"}}));
    let volume = annotated(json!({
        "sidecar.istio.io/userVolume": r#"{"certs": {"secret": {"secretName": "certs"}}}"#,
        "sidecar.istio.io/userVolumeMount": r#"{"certs": {"mountPath": "/certs", "readOnly": true}}"#,
    }));
    let pod = injected(&volume, &Options::default());
    let mounts = sidecar(&pod)["volumeMounts"].as_array().unwrap();
    assert_eq!(
        *mounts.last().unwrap(),
        json!({"name": "certs", "mountPath": "/certs", "readOnly": true})
    );
    assert!(names(&pod["spec"]["volumes"]).contains(&"certs"));
}

#[test]
fn istio_proxy_takes_weir_for_istiod() {
    let mut pod = annotated(json!({
        "sidecar.istio.io/proxyImage": "docker.io/istio/proxyv2:1.31.4",
        "proxy.istio.io/config": "concurrency: 3",
    }));
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "name": "http"}]);
    let pod = injected(&pod, &Options::default());
    assert_eq!(names(&pod["spec"]["initContainers"]), ["istio-init", "istio-proxy"]);
    let init = &pod["spec"]["initContainers"][0];
    assert_eq!(init["image"], "docker.io/istio/proxyv2:1.31.4");
    assert_eq!(args(init)[..3], ["istio-iptables", "-p", "15001"]);
    assert_eq!(
        args(sidecar(&pod))[..4],
        ["proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local"]
    );
    assert_eq!(env(&pod, "CA_ADDR"), Some("weir.weir-system.svc:15012"));
    let config: Value = serde_json::from_str(env(&pod, "PROXY_CONFIG").unwrap()).unwrap();
    assert_eq!(config, json!({"concurrency": 3, "discoveryAddress": "weir.weir-system.svc:15012"}));
    assert_eq!(
        env(&pod, "ISTIO_META_POD_PORTS"),
        Some(r#"[{"containerPort":8080,"name":"http"}]"#)
    );
    assert_eq!(
        env(&pod, "ISTIO_META_OWNER"),
        Some("kubernetes://apis/v1/namespaces/shop/pods/web")
    );
    let mounted = names(&sidecar(&pod)["volumeMounts"]);
    let volumes = names(&pod["spec"]["volumes"]);
    assert!(mounted.iter().all(|name| volumes.contains(name)), "{mounted:?} {volumes:?}");
    let plain = Options { xds_tls: false, ..Options::default() };
    let Outcome::Refused(refusal) =
        outcome(&annotated(json!({"weir.dev/proxy": "istio-proxy"})), &plain)
    else {
        panic!()
    };
    assert!(refusal.problems[0].message.contains("needs TLS"), "{refusal:?}");
}

#[test]
fn labels_and_annotations_are_those_of_istio() {
    let pod = injected(&app(), &Options { revision: Some("weir".into()), ..Options::default() });
    let labels = json!({
        "app": "web", "security.istio.io/tlsMode": "istio",
        "service.istio.io/canonical-name": "web", "service.istio.io/canonical-revision": "latest",
    });
    assert_eq!(pod["metadata"]["labels"], labels);
    let annotations = pod["metadata"]["annotations"].as_object().unwrap();
    assert_eq!(annotations["kubectl.kubernetes.io/default-container"], "app");
    assert_eq!(annotations["istio.io/rev"], "weir");
    assert_eq!(annotations["weir.dev/service-account"], "default");
    let status: Value = serde_json::from_str(annotations[STATUS].as_str().unwrap()).unwrap();
    assert_eq!(
        status,
        json!({
            "initContainers": ["istio-init", "weir-install", "istio-proxy"], "containers": null,
            "volumes": ["weir-agent", "istio-envoy", "istio-podinfo", "istio-token", "istiod-ca-cert"],
            "imagePullSecrets": null, "revision": "weir",
        })
    );
    // What the user has written stays, and long names become labels.
    let name = "a".repeat(62);
    let own = json!({"generateName": format!("{name}-web-"), "labels": {
        "security.istio.io/tlsMode": "disabled", "version": "v2"
    }});
    let pod = injected(&self::pod(own, app()["spec"].clone()), &Options::default());
    let labels = json!({
        "security.istio.io/tlsMode": "disabled", "version": "v2",
        "service.istio.io/canonical-name": name, "service.istio.io/canonical-revision": "v2",
    });
    assert_eq!(pod["metadata"]["labels"], labels);
    // Without an identity it has neither token nor roots.
    let pod = injected(&app(), &Options { xds_tls: false, ..Options::default() });
    assert_eq!(names(&pod["spec"]["volumes"]), ["weir-agent", "istio-envoy", "istio-podinfo"]);
}

#[test]
fn probes_of_the_application_go_through_the_agent() {
    let mut pod = app();
    pod["spec"]["containers"][0] = json!({
        "name": "app", "image": "i", "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"path": "/live", "port": "http", "scheme": "HTTPS"}, "timeoutSeconds": 3},
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 5},
        "startupProbe": {"grpc": {"port": 9000, "service": "s"}},
        "lifecycle": {
            "preStop": {"httpGet": {"path": "/stop", "port": 8080}},
            "postStart": {"exec": {"command": ["true"]}},
        },
    });
    let exec =
        json!({"name": "other", "image": "i", "livenessProbe": {"exec": {"command": ["true"]}}});
    pod["spec"]["containers"].as_array_mut().unwrap().push(exec.clone());
    let result = injected(&pod, &Options::default());
    let container = &result["spec"]["containers"][0];
    let to_agent = |page: &str| json!({"path": format!("/app-health/app/{page}"), "port": 15020});
    assert_eq!(
        container["livenessProbe"],
        json!({"timeoutSeconds": 3, "httpGet": to_agent("livez")})
    );
    assert_eq!(
        container["readinessProbe"],
        json!({"periodSeconds": 5, "httpGet": to_agent("readyz")})
    );
    assert_eq!(container["startupProbe"], json!({"httpGet": to_agent("startupz")}));
    let stop = json!({"httpGet": {"path": "/app-lifecycle/app/prestopz", "port": 15020}});
    assert_eq!(container["lifecycle"]["preStop"], stop);
    assert_eq!(
        container["lifecycle"]["postStart"],
        pod["spec"]["containers"][0]["lifecycle"]["postStart"]
    );
    assert_eq!(result["spec"]["containers"][1], exec);
    let probers: Value =
        serde_json::from_str(env(&result, "ISTIO_KUBE_APP_PROBERS").unwrap()).unwrap();
    assert_eq!(
        probers,
        json!({
            "/app-health/app/livez": {
                "httpGet": {"path": "/live", "port": 8080, "scheme": "HTTPS"}, "timeoutSeconds": 3,
            },
            "/app-health/app/readyz": {"tcpSocket": {"port": 8080}},
            "/app-health/app/startupz": {"grpc": {"port": 9000, "service": "s"}},
            "/app-lifecycle/app/prestopz": {"httpGet": {"path": "/stop", "port": 8080}},
        })
    );
    // Not if the pod does not want that.
    pod["metadata"]["annotations"] = json!({"sidecar.istio.io/rewriteAppHTTPProbers": "false"});
    let result = injected(&pod, &Options::default());
    assert_eq!(result["spec"]["containers"], pod["spec"]["containers"]);
    assert_eq!(env(&result, "ISTIO_KUBE_APP_PROBERS"), None);
}

#[test]
fn a_probe_that_the_agent_cannot_take_stays() {
    for (probe, warned) in [
        (json!({"httpGet": {"path": "/", "port": "nothing"}}), true),
        (json!({"httpGet": {"path": "/", "port": 70_000}}), true),
        (json!({"httpGet": {"path": "/", "port": 80, "host": "other"}}), false),
        (json!({"httpGet": {"path": "/", "port": 15020}}), false),
    ] {
        let mut pod = app();
        pod["spec"]["containers"][0]["livenessProbe"] = probe.clone();
        let Outcome::Injected(result) = outcome(&pod, &Options::default()) else { panic!() };
        assert_eq!(result.pod["spec"]["containers"][0]["livenessProbe"], probe);
        let expected = format!(
            "spec.containers[0].livenessProbe.httpGet.port: is {}; expected a port, or the name of one of the container",
            probe["httpGet"]["port"]
        );
        let expected: &[String] = if warned { &[expected] } else { &[] };
        assert_eq!(result.warnings, expected);
    }
}

#[test]
fn prometheus_is_pointed_to_the_agent_only_if_asked() {
    let own = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/path": "/m"});
    let pod = injected(&annotated(own.clone()), &Options::default());
    for name in ["prometheus.io/scrape", "prometheus.io/port", "prometheus.io/path"] {
        assert_eq!(pod["metadata"]["annotations"][name], own[name]);
    }
    let merging = Options { merge_prometheus: true, ..Options::default() };
    let pod = injected(&annotated(own), &merging);
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], "15020");
    let target = r#"{"scrape":"true","path":"/m","port":"9090"}"#;
    assert_eq!(env(&pod, "ISTIO_PROMETHEUS_ANNOTATIONS"), Some(target));
    let pod = injected(&app(), &merging);
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/path"], "/stats/prometheus");
    assert_eq!(env(&pod, "ISTIO_PROMETHEUS_ANNOTATIONS"), None);
    let (problems, asked) = refused(&annotated(json!({
        "prometheus.istio.io/merge-metrics": "true", "prometheus.io/port": "metrics",
    })));
    let said =
        "metadata.annotations[prometheus.io/port]: is `metrics`; expected a port from 1 to 65535";
    assert_eq!((problems, asked), (vec![said.to_owned()], true));
    let pod = injected(&annotated(json!({"prometheus.io/scrape": "false"})), &merging);
    assert_eq!(pod["metadata"]["annotations"]["prometheus.io/port"], Value::Null);
}

#[test]
fn what_a_sidecar_cannot_work_with_is_named() {
    let spec = json!({
        "securityContext": {"runAsGroup": 1337},
        "containers": [
            {"name": "app", "ports": [{"containerPort": 15001}, {"containerPort": 15021, "protocol": "UDP"}]},
            {"name": "istio-proxy", "securityContext": {"runAsUser": 1337}},
        ],
        "initContainers": [{"name": "weir-install", "ports": [{"containerPort": 15090, "protocol": "TCP"}]}],
        "volumes": [{"name": "istio-token"}, {"name": "data"}],
    });
    let (problems, asked) = refused(&pod(json!({"labels": {"istio.io/rev": "default"}}), spec));
    assert!(asked);
    assert_eq!(
        problems,
        [
            "spec.containers[0].ports[0].containerPort: is 15001, which the sidecar listens on for outbound traffic; have the application listen on another port",
            "spec.containers[1].name: is `istio-proxy`, the name of the sidecar; take it out: annotations change the sidecar, and weir merges no container into it",
            "spec.initContainers[0].name: is `weir-install`, the name of a container that comes with the sidecar; give it another name",
            "spec.initContainers[0].ports[0].containerPort: is 15090, which the sidecar listens on for Envoy's metrics; have the application listen on another port",
            "spec.volumes[0].name: is `istio-token`, the name of a volume of the sidecar; give it another name",
            "spec.containers[1].securityContext.runAsUser: is 1337, that of the sidecar, whose traffic is not redirected; run the application as another",
            "spec.securityContext.runAsGroup: is 1337, that of the sidecar, whose traffic is not redirected; run the application as another",
        ]
    );
    let (problems, asked) = refused(&pod(json!({}), json!({"containers": []})));
    assert_eq!(
        (problems, asked),
        (vec!["spec.containers: is empty; expected a container".to_owned()], false)
    );
    // Its user matters to redirection only.
    let mut same = annotated(json!({"sidecar.istio.io/interceptionMode": "NONE"}));
    same["spec"]["securityContext"] = json!({"runAsUser": 1337});
    injected(&same, &Options::default());
}

#[test]
fn every_port_that_the_sidecar_listens_on_is_refused() {
    for port in [15000, 15001, 15006, 15020, 15021, 15090] {
        let mut pod = app();
        pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": port}]);
        assert!(refused(&pod).0[0].contains(&port.to_string()));
    }
}

#[test]
fn a_pod_that_shares_the_network_of_its_node_is_refused_only_if_it_asks() {
    let mut pod = app();
    pod["spec"]["hostNetwork"] = json!(true);
    let skipped = outcome(&pod, &Options::default());
    assert!(matches!(skipped, Outcome::Skipped(Reason::HostNetwork)), "{skipped:?}");
    pod["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("true");
    let (problems, asked) = refused(&pod);
    assert!(asked && problems[0].starts_with("spec: spec.hostNetwork is true"), "{problems:?}");
}

/// Applies a patch that has only `add` operations on members.
fn patched(pod: &Value, patch: &Value) -> Value {
    let mut pod = pod.clone();
    for operation in patch.as_array().expect("a list") {
        assert_eq!(operation["op"], "add");
        let path = operation["path"].as_str().expect("a path");
        let (parent, name) = path.rsplit_once('/').expect("a member");
        let parent = pod.pointer_mut(parent).and_then(Value::as_object_mut).expect("the parent");
        parent.insert(name.to_owned(), operation["value"].clone());
    }
    pod
}

fn any_probe() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        (1u16..20_000).prop_map(|port| json!({"httpGet": {"path": "/", "port": port}})),
        Just(json!({"httpGet": {"path": "/", "port": "http"}})),
        Just(json!({"tcpSocket": {"port": "none"}, "timeoutSeconds": 2})),
        Just(json!({"grpc": {"port": 9000}})),
        Just(json!({"exec": {"command": ["true"]}})),
    ]
}

fn any_container(name: &'static str) -> impl Strategy<Value = Value> {
    (any_probe(), any_probe(), proptest::option::of(1u16..20_000)).prop_map(move |(live, ready, port)| {
        let ports: Vec<Value> =
            port.into_iter().map(|port| json!({"name": "http", "containerPort": port})).collect();
        json!({"name": name, "image": "i", "livenessProbe": live, "readinessProbe": ready, "ports": ports})
    })
}

fn any_annotations() -> impl Strategy<Value = Map<String, Value>> {
    let pairs = [
        ("sidecar.istio.io/nativeSidecar", "false"),
        ("sidecar.istio.io/interceptionMode", "NONE"),
        ("weir.dev/proxy", "istio-proxy"),
        ("prometheus.istio.io/merge-metrics", "true"),
        ("prometheus.io/port", "9090"),
        ("proxy.istio.io/config", "holdApplicationUntilProxyStarts: false"),
        ("sidecar.istio.io/inject", "false"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "wrong"),
        ("note", "y: 1 # \n no\t"),
    ];
    proptest::sample::subsequence(pairs.to_vec(), 0..=4).prop_map(|pairs| {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let lists = (any_container("app"), proptest::option::of(any_container("init")));
    (lists, any_annotations(), any::<bool>()).prop_map(|((app, init), annotations, bare)| {
        let metadata = if bare {
            json!({})
        } else {
            json!({"labels": {"version": "017"}, "annotations": annotations})
        };
        let mut pod =
            pod(metadata, json!({"containers": [app], "unknown": {"kept": [1, 2.5, "on"]}}));
        if let Some(init) = init {
            pod["spec"]["initContainers"] = json!([init]);
        }
        pod
    })
}

proptest! {
    #[test]
    fn injecting_twice_changes_nothing_and_the_patch_gives_the_pod(pod in any_pod()) {
        let options = Options::default();
        if let Outcome::Injected(first) = outcome(&pod, &options) {
            let second = outcome(&first.pod, &options);
            prop_assert!(matches!(second, Outcome::Skipped(Reason::AlreadyInjected)), "{second:?}");
            prop_assert_eq!(patched(&pod, &patch(&pod, &first.pod)), first.pod.clone());
            // Nothing that the pod has is lost.
            prop_assert_eq!(&first.pod["spec"]["unknown"], &pod["spec"]["unknown"]);
            for list in ["containers", "initContainers"] {
                let kept = names(&first.pod["spec"][list]);
                prop_assert!(names(&pod["spec"][list]).iter().all(|name| kept.contains(name)));
            }
            // The names of all that is added are unique, and every mount has its volume.
            let mut all = [names(&first.pod["spec"]["containers"]), names(&first.pod["spec"]["initContainers"])].concat();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len(), count);
            let volumes = names(&first.pod["spec"]["volumes"]);
            prop_assert!(names(&sidecar(&first.pod)["volumeMounts"]).iter().all(|name| volumes.contains(name)));
        }
    }

    #[test]
    fn the_yaml_that_is_written_is_read_as_the_pod_that_was_injected(pod in any_pod()) {
        let options = Options::default();
        let Rewritten { text, injected, notes } = rewritten(&pod.to_string(), &options);
        let read = yaml::documents(text.as_bytes()).unwrap().pop().unwrap().value;
        let none = Labels::new();
        match inject(&pod, "shop", None, Chosen::ByUser(&none), &options) {
            Outcome::Injected(result) => prop_assert_eq!(read, result.pod),
            _ => prop_assert_eq!((read, injected), (pod, 0), "{:?}", notes),
        }
    }
}

fn rewritten(text: &str, options: &Options) -> Rewritten {
    let input = Input { file: Arc::new("x.yaml".into()), text: text.to_owned() };
    rewrite(&[input], "shop", options)
}

const DOCUMENTS: &str = "# Licence\n---\n# A comment\nkind:   ConfigMap  # odd blanks\napiVersion: v1\ndata: {a: \"yes\"}\n\
    ...\n--- # next\n\n# The application\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  template:\n    \
    spec:\n      containers:\n      - {name: app, image: i}\n---\napiVersion: argoproj.io/v1alpha1\nkind: Rollout\n\
    metadata: {name: r}\nspec: {workloadRef: {kind: Deployment, name: web}}\n--- {a: 1}\n";

#[test]
fn documents_without_pods_stay_byte_for_byte() {
    let Rewritten { text, injected, notes } = rewritten(DOCUMENTS, &Options::default());
    assert_eq!((injected, notes.len()), (1, 0), "{notes:?}");
    let (before, rest) = DOCUMENTS.split_once("--- # next").unwrap();
    let after = rest.split_once("---\napiVersion: argoproj").unwrap().1;
    assert!(
        text.starts_with(&format!("{before}---\n\n# The application\napiVersion: apps/v1\n")),
        "{text}"
    );
    assert!(text.ends_with(&format!("---\napiVersion: argoproj{after}")), "{text}");
    let again = rewritten(&text, &Options::default());
    assert_eq!((again.text, again.injected), (text, 0));
    assert!(again.notes[0].to_string().contains("has a sidecar already"), "{:?}", again.notes);
}

#[test]
fn every_kind_with_pods_gets_sidecars() {
    let pod = r#"{"spec": {"containers": [{"name": "app", "image": "i"}]}}"#;
    for (api_version, kind, path) in [
        ("apps/v1", "Deployment", "/spec/template"),
        ("apps/v1", "StatefulSet", "/spec/template"),
        ("apps/v1", "DaemonSet", "/spec/template"),
        ("apps/v1", "ReplicaSet", "/spec/template"),
        ("v1", "ReplicationController", "/spec/template"),
        ("v1", "PodTemplate", "/template"),
        ("batch/v1", "Job", "/spec/template"),
        ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
        ("argoproj.io/v1alpha1", "Rollout", "/spec/template"),
    ] {
        let inner = path.rsplit('/').filter(|name| !name.is_empty());
        let spec = inner.fold(pod.to_owned(), |inner, name| format!(r#"{{"{name}": {inner}}}"#));
        let mut object: Value = serde_json::from_str(&spec).unwrap();
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(kind);
        object["metadata"] = json!({"name": "web"});
        let list =
            json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Service"}, object]});
        for (text, prefix) in [(object.to_string(), ""), (list.to_string(), "/items/1")] {
            let Rewritten { text, injected, notes } = rewritten(&text, &Options::default());
            assert_eq!((injected, notes.len()), (1, 0), "{kind} {notes:?}");
            let read = yaml::documents(text.as_bytes()).unwrap().pop().unwrap().value;
            let template = read.pointer(&format!("{prefix}{path}")).unwrap();
            assert_eq!(names(&template["spec"]["initContainers"]).len(), 3, "{kind}");
            assert_eq!(template["metadata"]["labels"]["service.istio.io/canonical-name"], "web");
        }
    }
    let typed = r#"{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "web"}, "spec": {"containers": [{"name": "app"}]}}]}"#;
    assert_eq!(rewritten(typed, &Options::default()).injected, 1);
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_field() {
    let text = "a: 1\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: lab}\nspec:\n  template:\n    \
                metadata:\n      annotations:\n        sidecar.istio.io/proxyCPU: fast\n        sidecar.istio.io/bootstrapOverride: x\n    \
                spec:\n      containers:\n      - name: app\n        ports:\n        - containerPort: 15001\n";
    let said = |text: &str| -> Vec<String> {
        rewritten(text, &Options::default()).notes.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        said(text),
        [
            "x.yaml:10: Deployment lab/web: spec.template.metadata.annotations[sidecar.istio.io/proxyCPU]: is `fast`; \
          expected an amount such as 100m, 2, 128Mi or 1Gi"
        ]
    );
    let text = text.replace("fast", "100m");
    assert_eq!(
        said(&text),
        [
            "x.yaml:16: Deployment lab/web: spec.template.spec.containers[0].ports[0].containerPort: is 15001, which the \
          sidecar listens on for outbound traffic; have the application listen on another port"
        ]
    );
    let text = text.replace("15001", "80");
    assert_eq!(
        said(&text),
        [
            "x.yaml:11: Deployment lab/web: warning: spec.template.metadata.annotations[sidecar.istio.io/bootstrapOverride]: \
          has no effect; weir does not read it"
        ]
    );
    let broken = said(&format!("a: 1\n---\nb: [\n---\n{text}"));
    assert!(broken[0].starts_with("x.yaml:3: column "), "{broken:?}");
    let off = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: lab, labels: {istio-injection: disabled}}\n";
    let skipped = said(&format!("{text}{off}"));
    assert_eq!(
        skipped,
        [
            "x.yaml:7: Deployment lab/web: not injected: its namespace has the label istio-injection=disabled"
        ]
    );
}

#[test]
fn files_are_joined_to_one_stream_of_documents() {
    let input = |text: &str| Input { file: Arc::new("x.yaml".into()), text: text.to_owned() };
    let inputs = [input("a: 1"), input("{\"b\": 2}\n"), input("# c\n---\nc: 3\n"), input("")];
    let text = rewrite(&inputs, "shop", &Options::default()).text;
    assert_eq!(text, "a: 1\n---\n{\"b\": 2}\n# c\n---\nc: 3\n");
    let windows = "a: 1\r\n---\r\nb: 2\r\n";
    assert_eq!(rewritten(windows, &Options::default()).text, windows);
}

#[test]
fn clients_send_mutual_tls_only_to_what_can_take_it() {
    let plain = Options { xds_tls: false, ..Options::default() };
    let unintercepted = annotated(json!({"sidecar.istio.io/interceptionMode": "NONE"}));
    for (pod, options, expected) in [
        (app(), &Options::default(), "istio"),
        (app(), &plain, "disabled"),
        (unintercepted, &Options::default(), "disabled"),
    ] {
        let pod = injected(&pod, options);
        assert_eq!(pod["metadata"]["labels"]["security.istio.io/tlsMode"], expected);
    }
}

#[test]
fn the_annotation_names_the_service_account_of_the_pod_whatever_it_said() {
    for (field, expected) in
        [("serviceAccountName", "pay"), ("serviceAccount", "pay"), ("x", "default")]
    {
        let mut pod = annotated(json!({"weir.dev/service-account": "admin"}));
        pod["spec"][field] = "pay".into();
        let pod = injected(&pod, &Options::default());
        assert_eq!(pod["metadata"]["annotations"]["weir.dev/service-account"], expected);
    }
}
