//! Meshes at random, and what is asked of them.

use serde_json::{Value, json};

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Http { host: String, port: u16, path: &'static str, user: bool },
    Tcp { host: String, port: u16 },
}

impl Asked {
    /// As `weir explain` takes it: method and URL, and headers.
    pub(super) fn request(&self) -> (String, Vec<String>) {
        match self {
            Asked::Http { host, port, path, user } => {
                let headers = user.then(|| "x-user: alice".to_owned());
                (format!("GET http://{host}:{port}{path}"), headers.into_iter().collect())
            }
            Asked::Tcp { .. } => unreachable!("a connection is no request"),
        }
    }

    /// As it is sent.
    pub(super) fn text(&self) -> String {
        match self {
            Asked::Http { host, port, path, user } => {
                let user = if *user { "x-user: alice\r\n" } else { "" };
                format!("GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\n{user}\r\n")
            }
            Asked::Tcp { .. } => unreachable!("a connection is no request"),
        }
    }
}

/// Objects, and how they are served.
#[derive(Debug)]
pub(super) struct Generated {
    /// `hold` or `allow`.
    pub mode: &'static str,
    documents: Vec<Value>,
    http: [u16; 2],
    tcp: u16,
}

const SERVICES: [(&str, &str); 6] =
    [("shop", "s0"), ("shop", "s1"), ("shop", "s2"), ("shop", "s3"), ("pay", "p0"), ("pay", "p1")];
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];
const PATHS: [&str; 5] = ["/", "/a", "/a/b?x=1", "/b/%2e%2e/a", "/c"];

fn full(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

impl Generated {
    pub(super) fn new(seed: u64, [first, second, tcp]: [u16; 3], backend: u16) -> Self {
        // A seed of 0 would give nothing but zeros.
        let mut make = Make {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            http: [first, second],
            tcp,
            backend,
            documents: Vec::new(),
        };
        for namespace in ["shop", "pay"] {
            make.add("v1", "Namespace", "", namespace, json!({}));
        }
        let client = json!({"metadata": {"name": "client-0", "namespace": "shop", "labels": {"app": "client"}}});
        make.documents.push(merge(json!({"apiVersion": "v1", "kind": "Pod"}), client));
        for (namespace, name) in SERVICES {
            make.service(namespace, name);
        }
        make.db();
        make.others();
        for (namespace, name) in SERVICES.into_iter().chain([("shop", "db"), ("shop", "alias")]) {
            make.rule(namespace, name);
        }
        for n in 0..10 {
            make.virtual_service(n);
        }
        make.connections();
        let mode = if make.one_in(3) { "allow" } else { "hold" };
        Self { mode, documents: make.documents, http: [first, second], tcp }
    }

    pub(super) fn text(&self) -> String {
        self.documents.iter().map(|document| format!("---\n{document}\n")).collect()
    }

    /// The objects where `WEIR_SHOW` is set, to look at a contradiction.
    pub(super) fn text_if_asked(&self) -> String {
        if std::env::var_os("WEIR_SHOW").is_some() { self.text() } else { String::new() }
    }

    /// Requests to every host by one of its names, on each port.
    pub(super) fn questions(&self) -> Vec<Asked> {
        let names = SERVICES.map(|(namespace, name)| format!("{name}.{namespace}"));
        let others = [
            "s0",
            "s1",
            "alias",
            "alias2",
            "ext.example",
            "a.wild.example",
            "h0.example",
            "h1.example",
            "no.example",
        ];
        let mut asked = vec![Asked::Tcp { host: "db".to_owned(), port: self.tcp }];
        let hosts = names.into_iter().chain(others.map(str::to_owned));
        for (n, host) in hosts.enumerate() {
            for (m, port) in self.http.into_iter().enumerate() {
                for (k, path) in PATHS.into_iter().enumerate() {
                    let user = (n + m + k) % 2 == 0;
                    asked.push(Asked::Http { host: host.clone(), port, path, user });
                }
            }
        }
        asked
    }
}

/// The fields of `b` in `a`, deeply.
fn merge(mut a: Value, b: Value) -> Value {
    if let (Value::Object(own), Value::Object(more)) = (&mut a, &b) {
        for (key, value) in more {
            let merged = merge(own.remove(key).unwrap_or(Value::Null), value.clone());
            own.insert(key.clone(), merged);
        }
        return a;
    }
    b
}

struct Make {
    random: u64,
    http: [u16; 2],
    tcp: u16,
    backend: u16,
    documents: Vec<Value>,
}

impl Make {
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    fn add(&mut self, api: &str, kind: &str, namespace: &str, name: &str, more: Value) {
        let mut document = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}});
        if !namespace.is_empty() {
            document["metadata"]["namespace"] = namespace.into();
        }
        self.documents.push(merge(document, more));
    }

    fn istio(&mut self, kind: &str, namespace: &str, name: &str, more: Value) {
        let day = self.below(28) + 1;
        let age = json!({"metadata": {"creationTimestamp": format!("2024-01-{day:02}T00:00:00Z")}});
        self.add("networking.istio.io/v1", kind, namespace, name, merge(age, more));
    }

    fn service(&mut self, namespace: &str, name: &str) {
        let [first, second] = self.http;
        let ports = match self.below(4) {
            0 => vec![("http-a", first)],
            1 => vec![("http-b", second)],
            _ => vec![("http-a", first), ("http-b", second)],
        };
        self.service_with(namespace, name, &ports);
    }

    fn db(&mut self) {
        let port = self.tcp;
        self.service_with("shop", "db", &[("tcp-db", port)]);
    }

    /// A Service, its pods of some of the versions, and their slice.
    fn service_with(&mut self, namespace: &str, name: &str, ports: &[(&str, u16)]) {
        let backend = self.backend;
        let of_service: Vec<_> = ports
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port, "targetPort": backend}))
            .collect();
        let ip = format!("10.96.0.{}", self.documents.len() % 250 + 1);
        let mut spec =
            json!({"spec": {"clusterIP": ip, "selector": {"app": name}, "ports": of_service}});
        if self.one_in(10) {
            spec["metadata"]["annotations"]["networking.istio.io/exportTo"] = ".".into();
        }
        self.add("v1", "Service", namespace, name, spec);
        let mut endpoints = Vec::new();
        for (n, version) in VERSIONS.into_iter().enumerate() {
            let conditions = match self.below(8) {
                0 | 1 => continue,
                2 => json!({"ready": false, "terminating": false}),
                3 => json!({"ready": false, "terminating": true}),
                _ => json!({"ready": true}),
            };
            let pod = format!("{name}-{version}");
            let labels = json!({"metadata": {"labels": {"app": name, "version": version}}});
            self.add("v1", "Pod", namespace, &pod, labels);
            // Where backends listen: 127.0.1.1 to 3, and 127.0.2.1 to 3.
            endpoints.push(json!({"addresses": [format!("127.0.{}.{}", n % 2 + 1, n + 1)], "conditions": conditions,
                "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace}}));
        }
        let ports: Vec<_> = ports
            .iter()
            .map(|(name, _)| json!({"name": name, "port": backend, "protocol": "TCP"}))
            .collect();
        let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": ports});
        self.add("discovery.k8s.io/v1", "EndpointSlice", namespace, &format!("{name}-1"), slice);
    }

    /// ExternalNames and ServiceEntries.
    fn others(&mut self) {
        let target = self.of(&[
            full("shop", "s0"),
            full("pay", "p1"),
            "nobody.example".to_owned(),
            full("shop", "alias2"),
        ]);
        let [first, _] = self.http;
        let ports =
            if self.one_in(2) { json!([{"name": "http", "port": first}]) } else { json!([]) };
        let external = |name: &str, ports: Value| json!({"spec": {"type": "ExternalName", "externalName": name, "ports": ports}});
        self.add("v1", "Service", "shop", "alias", external(&target, ports));
        self.add("v1", "Service", "shop", "alias2", external(&full("pay", "p0"), json!([])));
        let backend = self.backend;
        for (name, host) in [("ext", "ext.example"), ("wild", "*.wild.example")] {
            let spec = json!({"spec": {"hosts": [host], "resolution": "STATIC",
                "ports": [{"number": first, "name": "http", "protocol": "HTTP"}],
                "endpoints": [{"address": "127.0.1.1", "ports": {"http": backend}}]}});
            self.istio("ServiceEntry", "shop", name, spec);
        }
    }

    fn rule(&mut self, namespace: &str, name: &str) {
        if self.one_in(5) {
            return;
        }
        let mut subsets = Vec::new();
        for version in ["v1", "v2", "v3", "v9"] {
            if !self.one_in(4) {
                subsets.push(json!({"name": version, "labels": {"version": version}}));
            }
        }
        if self.one_in(3) {
            subsets.push(json!({"name": "all"}));
        }
        let place = match self.below(6) {
            0 => "pay",
            1 => "istio-system",
            2 => "shop",
            _ => namespace,
        };
        let mut spec = json!({"host": full(namespace, name), "subsets": subsets});
        if self.one_in(5) {
            spec["exportTo"] = json!(["."]);
        }
        self.istio("DestinationRule", place, name, json!({"spec": spec}));
    }

    fn destination(&mut self) -> Value {
        let services = SERVICES.map(|(namespace, name)| full(namespace, name));
        let host = match self.below(12) {
            0 => self.of(&["alias", "alias2"].map(|name| full("shop", name))),
            1 => "ext.example".to_owned(),
            2 => self.of(&["nobody", "a.wild.example", "*.wild.example"]).to_owned(),
            _ => self.of(&services),
        };
        let mut to = json!({"host": host});
        if !self.one_in(3) {
            to["subset"] = self.of(&["v1", "v2", "v3", "v9", "all"]).into();
        }
        let [first, second] = self.http;
        if self.one_in(3) {
            to["port"] = json!({"number": self.of(&[first, second, 9])});
        }
        to
    }

    fn match_of(&mut self) -> Value {
        let [first, second] = self.http;
        match self.below(7) {
            0 => json!({"headers": {"x-user": {"exact": "alice"}}}),
            1 => json!({"port": self.of(&[first, second])}),
            2 => json!({"sourceLabels": {"app": self.of(&["client", "other"])}}),
            3 => json!({"sourceNamespace": self.of(&["shop", "pay"])}),
            4 => json!({"uri": {"exact": "/a"}}),
            _ => json!({"uri": {"prefix": self.of(&["/a", "/b", "/"])}}),
        }
    }

    fn weighted(&mut self, most: usize) -> Vec<Value> {
        let count = self.below(most) + 1;
        (0..count).map(|_| json!({"destination": self.destination(), "weight": self.of(&[0, 1, 10, 50, 90])})).collect()
    }

    fn http_route(&mut self, last: bool) -> Value {
        let mut route = match self.below(9) {
            0 => json!({"directResponse": {"status": 299}}),
            1 => json!({"redirect": {"uri": "/elsewhere"}}),
            _ => {
                let mut route = json!({"route": self.weighted(3)});
                if self.one_in(5) {
                    route["mirror"] = self.destination();
                }
                route
            }
        };
        if !last || self.one_in(4) {
            route["match"] = json!([self.match_of()]);
            if self.one_in(4) {
                let more = self.match_of();
                route["match"].as_array_mut().unwrap().push(more);
            }
        }
        route
    }

    fn virtual_service(&mut self, n: usize) {
        let services = SERVICES.map(|(namespace, name)| full(namespace, name));
        let mut hosts = Vec::new();
        for _ in 0..=self.below(2) {
            let host = match self.below(8) {
                0 => self.of(&["h0.example", "h1.example"]).to_owned(),
                1 => self.of(&["ext.example", "*.wild.example"]).to_owned(),
                2 => full("shop", "alias"),
                _ => self.of(&services),
            };
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let count = self.below(3) + 1;
        let mut http: Vec<Value> = (0..count).map(|at| self.http_route(at + 1 == count)).collect();
        let namespace = if self.one_in(4) { "pay" } else { "shop" };
        let mut spec = json!({"hosts": hosts});
        if self.one_in(5) {
            let name = format!("leaf{n}");
            let leaf = json!({"spec": {"http": [self.http_route(false), self.http_route(true)]}});
            self.istio("VirtualService", namespace, &name, leaf);
            http.insert(
                0,
                json!({"match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": name}}),
            );
        }
        spec["http"] = http.into();
        if self.one_in(3) {
            spec["exportTo"] = self.of(&[json!(["."]), json!(["shop"]), json!(["*"])]);
        }
        let mut object = json!({"spec": spec});
        if self.one_in(3) {
            object["metadata"]["annotations"]["weir.dev/empty-subset"] =
                self.of(&["hold", "allow"]).into();
        }
        self.istio("VirtualService", namespace, &format!("vs{n}"), object);
    }

    /// Routes of connections.
    fn connections(&mut self) {
        let count = self.below(3) + 1;
        let route: Vec<_> = (0..count)
            .map(|_| {
                let subset = self.of(&["v1", "v2", "v3", "v9"]);
                json!({"destination": {"host": "db", "subset": subset}, "weight": self.of(&[0, 10, 90])})
            })
            .collect();
        let object = json!({"spec": {"hosts": ["db"], "tcp": [{"route": route}]}});
        self.istio("VirtualService", "shop", "db", object);
    }
}
