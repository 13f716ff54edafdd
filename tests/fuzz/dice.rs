//! Objects, changes and proxies chosen by bytes.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use weir::api::{self, Identity};
use weir::source::{Origin, SourceEvent, event_from};

/// Bytes as a sequence of choices; when they are exhausted, every choice is the first.
pub(super) struct Dice<'a> {
    pub left: &'a [u8],
    pub order: u64,
}

/// Generates a field value.
type Make<T> = fn(&mut T) -> Value;

const NAMESPACES: [&str; 3] = ["shop", "pay", "istio-system"];
const NAMES: [&str; 4] = ["web", "cart", "a", "b"];
const HOSTS: [&str; 14] = [
    "web",
    "web.shop.svc.cluster.local",
    "cart.pay.svc.cluster.local",
    "a.example.com",
    "*.example.com",
    "cart",
    "WEB.shop.svc.cluster.local",
    "b.example.com",
    "a.example.com.",
    "*.com",
    "10.0.0.1",
    "web.shop",
    "*-b.example.com",
    "*.svc.cluster.local",
];
const TEXTS: [&str; 22] = [
    "a", "x-y", "", "*", "%", "100%", "%REQ(x)%", "%FOO%", "a:b", ":path", "host", "a\nb", "\u{0}",
    "é", "💥", "..", "a b", "/", "|", "%%", "*.x", "\u{202e}",
];
const PATTERNS: [&str; 12] =
    ["a.*", "(", "*", "[", "(?=a)", "a{1001}", "\\1", "", "(a+)+", "\\d{2,1}", "[[:x:]]", "é+"];
const NUMBERS: [i64; 14] = [
    0,
    1,
    -1,
    80,
    100,
    101,
    443,
    599,
    600,
    65_535,
    65_536,
    i32::MAX as i64,
    u32::MAX as i64,
    i64::MIN,
];
const PORTS: [u64; 8] = [80, 443, 8080, 9000, 15_001, 15_006, 65_535, 1];
const TIMES: [&str; 9] =
    ["5s", "1ms", "0s", "1ns", "2562047h47m16s", "9223372035s", "1.5ms", "-1s", "x"];
const ADDRESSES: [&str; 14] = [
    "10.1.0.1",
    "10.1.0.2",
    "10.9.0.1",
    "fd00::1",
    "FD00::1",
    "0:0::1",
    "a.example.com",
    "unix:///a",
    "0.0.0.0",
    "::",
    "unix://@a",
    "",
    "10.0.0.0/8",
    "10.1.2.3/8",
];
const PROTOCOLS: [&str; 9] = ["HTTP", "TCP", "TLS", "HTTPS", "GRPC", "", "UDP", "mongo", "x"];

impl Dice<'_> {
    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.left.split_first() else {
            return 0;
        };
        self.left = rest;
        *first
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n.max(1)
    }

    pub(super) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// Usually one of the first `good`, sometimes any: objects with a single odd value find the most.
    pub(super) fn mostly<T: Copy>(&mut self, all: &[T], good: usize) -> T {
        if self.once_in(40) { self.of(all) } else { self.of(all.get(..good).unwrap_or(all)) }
    }

    pub(super) fn list(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> Value) -> Value {
        let n = self.below(most + 1);
        (0..n).map(|_| make(self)).collect()
    }

    pub(super) fn host(&mut self) -> Value {
        if self.once_in(60) { json!(self.of(&TEXTS)) } else { json!(self.of(&HOSTS)) }
    }

    pub(super) fn text(&mut self) -> Value {
        json!(self.mostly(&TEXTS, 2))
    }

    pub(super) fn number(&mut self) -> Value {
        json!(self.mostly(&NUMBERS, 2))
    }

    pub(super) fn percent(&mut self) -> Value {
        json!(self.mostly(&[50.0, 100.0, 0.0, 0.00001, -1.0, 100.1, 1e300], 3))
    }

    pub(super) fn time(&mut self) -> Value {
        json!(self.mostly(&TIMES, 2))
    }

    pub(super) fn port(&mut self) -> Value {
        if self.once_in(50) { self.number() } else { json!(self.of(&PORTS)) }
    }

    pub(super) fn labels(&mut self) -> Value {
        let mut map = Map::new();
        for _ in 0..self.below(3) {
            let name = self.mostly(&["app", "version", "a/b", "istio-locality", "", "a b", "*"], 2);
            let value = self.mostly(&["web", "v1", "", "eu.a", "é", "*", "a b"], 2);
            map.insert(name.into(), json!(value));
        }
        Value::Object(map)
    }

    pub(super) fn string_match(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"exact": self.text()}),
            1 => json!({"prefix": self.mostly(&["/", "/a", "", "\n"], 2)}),
            2 => json!({"regex": self.mostly(&PATTERNS, 1)}),
            _ if self.once_in(30) => json!({"exact": "a", "regex": "("}),
            _ => json!({}),
        }
    }

    pub(super) fn matches(&mut self) -> Value {
        let mut map = Map::new();
        for _ in 0..self.below(3) {
            let name = self.mostly(&["x-a", "cookie", ":path", "", "X-A", "a b", ":x", "é"], 2);
            map.insert(name.into(), self.string_match());
        }
        Value::Object(map)
    }

    /// Some of these fields.
    pub(super) fn some(&mut self, fields: &[(&str, Make<Self>)]) -> Value {
        let mut map = Map::new();
        for (name, make) in fields {
            if self.once_in(3) {
                map.insert((*name).into(), make(self));
            }
        }
        Value::Object(map)
    }

    pub(super) fn destination(&mut self) -> Value {
        let mut map = json!({"host": self.host()});
        if self.once_in(2) {
            map["subset"] = json!(self.mostly(&["v1", "v2", "", "a|b", "é"], 2));
        }
        if self.once_in(2) {
            map["port"] = json!({"number": self.port()});
        }
        map
    }

    pub(super) fn weighted(&mut self) -> Value {
        let mut map = json!({"destination": self.destination(),
            "weight": self.mostly(&[50_i64, 50, 0, -1, i64::from(i32::MAX), 1 << 40], 3)});
        if self.once_in(4) {
            map["headers"] = self.headers();
        }
        map
    }

    pub(super) fn plain_weighted(&mut self) -> Value {
        json!({"destination": self.destination(), "weight": self.mostly(&[50_i64, 0, -1, i64::from(i32::MAX)], 2)})
    }

    pub(super) fn operations(&mut self) -> Value {
        let of = |this: &mut Self| {
            let name =
                this.mostly(&["x-a", "x-b", "host", ":authority", ":path", "", "a\nb", "é"], 3);
            let value =
                if this.once_in(20) { "v".repeat(9000) + "%" } else { this.of(&TEXTS).to_owned() };
            json!({name: value})
        };
        json!({"set": of(self), "add": of(self), "remove": [self.mostly(&["x-c", "host", ":a", "", "\n"], 1)]})
    }

    pub(super) fn headers(&mut self) -> Value {
        self.some(&[("request", Self::operations), ("response", Self::operations)])
    }

    pub(super) fn http_match(&mut self) -> Value {
        self.some(&[
            ("name", Self::text),
            ("uri", Self::string_match),
            ("scheme", Self::string_match),
            ("method", Self::string_match),
            ("authority", Self::string_match),
            ("headers", Self::matches),
            ("withoutHeaders", Self::matches),
            ("queryParams", Self::matches),
            ("port", Self::port),
            ("sourceLabels", Self::labels),
            ("ignoreUriCase", |_| json!(true)),
            ("sourceNamespace", |this| json!(this.mostly(&["shop", "pay", "é", "*"], 2))),
            ("statPrefix", Self::text),
            ("gateways", |this| json!([this.mostly(&["mesh", "gw", "a/b", "", "/"], 3)])),
        ])
    }

    pub(super) fn cors_policy(&mut self) -> Value {
        self.some(&[
            ("allowOrigins", |this| this.list(2, Self::string_match)),
            ("allowOrigin", |this| json!([this.text()])),
            ("allowMethods", |this| json!([this.mostly(&["GET", "*", "a b"], 2)])),
            ("allowHeaders", |this| json!([this.text()])),
            ("exposeHeaders", |this| json!([this.text()])),
            ("maxAge", Self::time),
            ("unmatchedPreflights", |_| json!("IGNORE")),
        ])
    }

    pub(super) fn retries(&mut self) -> Value {
        let mut retries = self.some(&[
            ("perTryTimeout", Self::time),
            ("retryOn", |this| {
                json!(this.mostly(&["5xx,503", "reset, 429,", "x", "700", "\n"], 2))
            }),
            ("retryRemoteLocalities", |_| json!(true)),
            ("retryIgnorePreviousHosts", |_| json!(false)),
            ("backoff", Self::time),
        ]);
        retries["attempts"] = self.mostly(&[3, 1, 0, -1, i32::MAX], 2).into();
        retries
    }

    pub(super) fn redirect(&mut self) -> Value {
        self.some(&[
            ("uri", |this| json!(this.mostly(&["/a", "", "\n"], 1))),
            ("authority", Self::text),
            ("scheme", |this| json!(this.mostly(&["http", "https", "ftp"], 2))),
            ("port", Self::port),
            ("prefixRewrite", |this| json!(this.mostly(&["/b", "\r"], 1))),
            ("redirectCode", |this| json!(this.mostly(&[301, 308, 304, 0], 2))),
        ])
    }

    pub(super) fn direct_response(&mut self) -> Value {
        let body = if self.once_in(9) {
            json!("x".repeat((1 << 20) + self.below(2)))
        } else {
            self.text()
        };
        let kind = self.of(&["string", "bytes"]);
        json!({"status": self.mostly(&[200, 503, 100, 600], 2), "body": {kind: body}})
    }

    pub(super) fn rewrite(&mut self) -> Value {
        self.some(&[
            ("uri", Self::text),
            ("authority", Self::text),
            ("uriRegexRewrite", |this| {
                json!({"match": this.mostly(&PATTERNS, 1), "rewrite": this.mostly(&["\\1", "", "\\9", "\n"], 1)})
            }),
        ])
    }

    pub(super) fn fault(&mut self) -> Value {
        json!({
            "delay": {"fixedDelay": self.time(), "percentage": {"value": self.percent()}},
            "abort": {self.of(&["httpStatus", "httpStatus"]): self.mostly(&[500, 599, 600, 0], 2)}})
    }

    pub(super) fn http_route(&mut self) -> Value {
        let mut route = self.some(&[
            ("name", Self::text),
            ("match", |this| this.list(2, Self::http_match)),
            ("timeout", Self::time),
            ("headers", Self::headers),
            ("mirror", Self::destination),
            ("mirrorPercentage", |this| json!({"value": this.percent()})),
            ("corsPolicy", Self::cors_policy),
            ("retries", Self::retries),
        ]);
        match self.below(10) {
            0 => route["redirect"] = self.redirect(),
            1 => route["directResponse"] = self.direct_response(),
            2 => {
                route["delegate"] =
                    json!({"name": self.of(&NAMES), "namespace": self.of(&["", "shop", "pay"])});
            }
            _ => {
                route["route"] = self.list(2, Self::weighted);
                if let Some(list) = route["route"].as_array_mut() {
                    list.push(json!({"destination": {"host": "web"}, "weight": 1}));
                }
                if self.once_in(3) {
                    route["rewrite"] = self.rewrite();
                }
                if self.once_in(4) {
                    route["fault"] = self.fault();
                }
            }
        }
        route
    }

    pub(super) fn virtual_service(&mut self) -> Value {
        let hosts = self.list(2, Self::host);
        let first = hosts.get(0).cloned().unwrap_or(json!("web"));
        let mut spec = json!({"hosts": hosts});
        if self.once_in(6) {
            spec["gateways"] = json!([self.of(&["mesh", "gw"]), "mesh"]);
        }
        if !self.once_in(4) {
            spec["http"] = self.list(3, Self::http_route);
        }
        if self.once_in(3) {
            let sni = json!([first, self.of(&HOSTS)]);
            let subnets = self.list(2, |this| {
                json!(this.mostly(&["10.0.0.0/8", "10.1.2.3/8", "fd00::/8", "x"], 3))
            });
            spec["tls"] = json!([
                {"match": [{"sniHosts": [first], "destinationSubnets": subnets, "port": self.port()},
                    {"sniHosts": if self.once_in(3) { sni } else { json!([first]) }}],
                 "route": [self.plain_weighted(), self.plain_weighted()]}]);
        }
        if self.once_in(3) {
            spec["tcp"] = json!([{"match": self.list(2, |this| this.some(&[
                    ("port", Self::port),
                    ("destinationSubnets", |this| this.list(2, |this| json!(this.mostly(&ADDRESSES, 3)))),
                    ("sourceLabels", Self::labels),
                ])), "route": [self.plain_weighted()]}]);
        }
        self.exported(spec)
    }

    pub(super) fn exported(&mut self, mut spec: Value) -> Value {
        if self.once_in(5) {
            spec["exportTo"] = json!([self.mostly(&["*", ".", "shop", "~", "é"], 3)]);
        }
        spec
    }

    pub(super) fn load_balancer(&mut self) -> Value {
        let mut balancer = match self.below(4) {
            0 => {
                json!({"simple": self.of(&["RANDOM", "ROUND_ROBIN", "LEAST_REQUEST", "PASSTHROUGH", "LEAST_CONN"])})
            }
            1 => {
                let mut hash = match self.below(4) {
                    0 => json!({"httpHeaderName": self.text()}),
                    1 => {
                        json!({"httpCookie": {"name": self.text(), "path": self.text(), "ttl": self.time(),
                        "attributes": [{"name": self.text(), "value": self.text()}]}})
                    }
                    2 => json!({"useSourceIp": true}),
                    _ => json!({"httpQueryParameterName": self.text()}),
                };
                match self.below(4) {
                    0 => hash["ringHash"] = json!({"minimumRingSize": self.number()}),
                    1 => {
                        hash["maglev"] = json!({"tableSize": self.mostly(&[65_537, 5_000_011, 0, 4, 5_000_012], 2)});
                    }
                    2 => hash["minimumRingSize"] = self.number(),
                    _ => {}
                }
                json!({"consistentHash": hash})
            }
            _ => json!({}),
        };
        match self.below(5) {
            0 => {
                balancer["localityLbSetting"] = json!({"distribute": [
                    {"from": self.mostly(&["eu/*", "eu/a/b", "*", "eu//", "*/x"], 3), "to": {"eu/a": 60, "us": 40}}]});
            }
            1 => {
                balancer["localityLbSetting"] = json!({"failover": [{"from": self.text(), "to": self.text()}], "failoverPriority": [self.text()]});
            }
            2 => {
                balancer["zoneAwareLbSetting"] = json!({"enabled": self.once_in(2), "minClusterSize": self.number(),
                    "failover": [{"from": "eu", "to": self.text()}]});
            }
            _ => {}
        }
        if self.once_in(4) {
            balancer["warmup"] = json!({"duration": self.time(), "minimumPercent": self.percent(),
                "aggression": self.mostly(&[1.0, 0.5, 0.0, -1.0], 2)});
        } else if self.once_in(8) {
            balancer["warmupDurationSecs"] = self.time();
        }
        balancer
    }

    pub(super) fn pool(&mut self) -> Value {
        let tcp = self.some(&[
            ("maxConnections", Self::number),
            ("connectTimeout", Self::time),
            ("maxConnectionDuration", Self::time),
            ("idleTimeout", Self::time),
            ("tcpKeepalive", |this| json!({"probes": this.number(), "time": this.time(), "interval": this.time()})),
        ]);
        let http = self.some(&[
            ("http1MaxPendingRequests", Self::number),
            ("http2MaxRequests", Self::number),
            ("maxRequestsPerConnection", Self::number),
            ("maxRetries", Self::number),
            ("maxConcurrentStreams", Self::number),
            ("idleTimeout", Self::time),
            ("h2UpgradePolicy", |this| json!(this.of(&["UPGRADE", "DEFAULT", "DO_NOT_UPGRADE"]))),
            ("useClientProtocol", |this| json!(this.once_in(3))),
            ("http2KeepAlive", |this| json!({"interval": this.time(), "timeout": this.time()})),
        ]);
        json!({"tcp": tcp, "http": http})
    }

    pub(super) fn outlier(&mut self) -> Value {
        self.some(&[
            ("consecutive5xxErrors", Self::number),
            ("consecutiveGatewayErrors", Self::number),
            ("interval", Self::time),
            ("baseEjectionTime", Self::time),
            ("maxEjectionPercent", Self::number),
            ("minHealthPercent", Self::number),
            ("splitExternalLocalOriginErrors", |_| json!(true)),
            ("outlierDetectionHttpErrorCodes", |this| {
                this.list(2, |this| json!(this.mostly(&[500, 599, 600, 0], 2)))
            }),
        ])
    }

    pub(super) fn tls(&mut self) -> Value {
        let mut tls = self.some(&[
            ("clientCertificate", |_| json!("/c")),
            ("privateKey", |_| json!("/k")),
            ("caCertificates", |this| json!(this.of(&["/ca", "system"]))),
            ("caCrl", |_| json!("/crl")),
            ("credentialName", |_| json!("secret")),
            ("subjectAltNames", |this| this.list(2, Self::text)),
            ("sni", |this| if this.once_in(9) { json!("s".repeat(256)) } else { this.text() }),
            ("insecureSkipVerify", |this| json!(this.once_in(2))),
        ]);
        tls["mode"] = json!(self.of(&["SIMPLE", "DISABLE", "MUTUAL", "ISTIO_MUTUAL"]));
        tls
    }

    pub(super) fn policy(&mut self) -> Value {
        self.some(&[
            ("loadBalancer", Self::load_balancer),
            ("connectionPool", Self::pool),
            ("outlierDetection", Self::outlier),
            ("tls", Self::tls),
            ("portLevelSettings", |this| {
                this.list(2, |this| {
                    json!({"port": {"number": this.port()}, "loadBalancer": this.load_balancer(), "tls": this.tls()})
                })
            }),
            ("tunnel", |this| json!({"targetHost": this.host(), "targetPort": this.port()})),
            ("proxyProtocol", |this| json!({"version": this.of(&["V1", "V2"])})),
            ("retryBudget", |this| {
                json!({"percent": this.percent(), "minRetryConcurrency": this.number(), "budgetInterval": this.time()})
            }),
        ])
    }

    pub(super) fn destination_rule(&mut self) -> Value {
        let mut spec = json!({"host": self.host()});
        if self.once_in(2) {
            spec["trafficPolicy"] = self.policy();
        }
        let names = ["v1", "v2"];
        let n = self.below(3);
        let subsets = names.iter().take(n).map(|name| {
            let mut subset = json!({"name": name, "labels": self.labels()});
            if self.once_in(2) {
                subset["trafficPolicy"] = self.policy();
            }
            subset
        });
        spec["subsets"] = subsets.collect();
        if self.once_in(6) {
            spec["workloadSelector"] = json!({"matchLabels": self.labels()});
        }
        self.exported(spec)
    }

    pub(super) fn workload(&mut self) -> Value {
        let mut entry = json!({"address": self.mostly(&ADDRESSES, 8), "labels": self.labels()});
        if self.once_in(2) {
            entry["weight"] = json!(self.of(&[0_u32, 1, u32::MAX, u32::MAX / 2]));
        }
        if self.once_in(3) {
            entry["ports"] = json!({"p0": self.port()});
        }
        if self.once_in(3) {
            entry["locality"] = json!(self.of(&["eu/a/b", "us", "//", "é/é"]));
        }
        entry
    }

    pub(super) fn service_entry(&mut self) -> Value {
        let resolution =
            self.mostly(&["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"], 4);
        let n = self.below(3);
        let ports = (0..n).map(|n| {
            json!({"number": self.port(), "name": format!("p{n}"), "protocol": self.mostly(&PROTOCOLS, 6),
                "targetPort": self.mostly(&[0, 8080, 70_000], 2)})
        });
        let mut spec = json!({"ports": ports.collect::<Value>(), "resolution": resolution});
        spec["hosts"] = self.list(1, Self::host);
        if let Some(hosts) = spec["hosts"].as_array_mut() {
            hosts.push(json!("c.example.com"));
        }
        if self.once_in(2) {
            spec["addresses"] = self.list(2, |this| json!(this.mostly(&ADDRESSES, 6)));
        }
        if resolution != "NONE" {
            match self.below(3) {
                0 => spec["endpoints"] = self.list(2, Self::workload),
                1 => spec["workloadSelector"] = json!({"labels": self.labels()}),
                _ => {}
            }
        }
        if self.once_in(3) {
            spec["subjectAltNames"] = json!([self.text()]);
        }
        self.exported(spec)
    }

    pub(super) fn sidecar(&mut self) -> Value {
        let egress = self.list(2, |this| {
            let mut listener =
                json!({"hosts": [this.mostly(&["*/*", "./*", "shop/*.example.com", "~/*", "x", "é/é"], 4)]});
            if this.once_in(2) {
                listener["port"] = json!({"number": this.port(), "protocol": "HTTP"});
            }
            listener
        });
        json!({"egress": egress, "outboundTrafficPolicy": {"mode": self.of(&["ALLOW_ANY", "REGISTRY_ONLY"])}})
    }

    pub(super) fn peer_authentication(&mut self) -> Value {
        let modes = ["STRICT", "PERMISSIVE", "DISABLE", "UNSET"];
        let mut spec = json!({"mtls": {"mode": self.of(&modes)}});
        if self.once_in(2) {
            spec["selector"] = json!({"matchLabels": self.labels()});
            let port = self.mostly(&["8080", "80", "0", "x"], 4);
            spec["portLevelMtls"] = json!({port: {"mode": self.of(&modes)}});
        }
        spec
    }

    pub(super) fn service(&mut self) -> Value {
        let n = self.below(3);
        let ports = (0..n).map(|n| {
            json!({"name": format!("{}-p{n}", self.of(&["http", "tcp", "x", "tls", "grpc"])), "port": self.port(),
                "targetPort": self.of(&[8080, 15_006, 80])})
        });
        let ports: Value = ports.collect();
        let mut spec = json!({"ports": ports, "selector": self.labels(),
            "clusterIP": self.of(&["10.0.0.1", "None", "10.0.0.2", "fd00::9", "FD00::9", "0.0.0.0"])});
        if self.once_in(8) {
            spec["type"] = json!("ExternalName");
            spec["externalName"] = self.host();
        }
        if self.once_in(5) {
            spec["trafficDistribution"] = json!("PreferClose");
        }
        spec
    }

    pub(super) fn slice(&mut self) -> Value {
        let endpoints = self.list(3, |this| {
            json!({"addresses": [this.mostly(&ADDRESSES, 6)], "zone": this.of(&["eu-a", ""]),
                "conditions": {"ready": this.once_in(2), "terminating": this.once_in(3)},
                "targetRef": {"kind": "Pod", "name": this.of(&NAMES)}})
        });
        let names: Vec<Value> = ["http", "tcp", "x", "tls", "grpc"]
            .iter()
            .flat_map(|kind| {
                (0..2).map(move |n| json!({"name": format!("{kind}-p{n}"), "port": 8080}))
            })
            .collect();
        json!({"addressType": "IPv4", "endpoints": endpoints, "ports": names})
    }

    /// Any object.
    pub(super) fn object(&mut self) -> Value {
        let kinds = [
            "VirtualService",
            "DestinationRule",
            "Service",
            "ServiceEntry",
            "VirtualService",
            "DestinationRule",
            "EndpointSlice",
            "WorkloadEntry",
            "Sidecar",
            "PeerAuthentication",
            "Pod",
        ];
        let kind = self.of(&kinds);
        let (name, namespace) = (self.of(&NAMES), self.of(&NAMESPACES));
        let mut metadata = json!({"name": name, "namespace": namespace, "labels": self.labels()});
        if self.once_in(2) {
            let day = 1 + self.below(3);
            metadata["creationTimestamp"] = json!(format!("2024-01-0{day}T00:00:00Z"));
        }
        let istio = "networking.istio.io/v1";
        let (version, spec) = match kind {
            "VirtualService" => (istio, self.virtual_service()),
            "DestinationRule" => (istio, self.destination_rule()),
            "ServiceEntry" => (istio, self.service_entry()),
            "WorkloadEntry" => (istio, self.workload()),
            "Sidecar" => (istio, self.sidecar()),
            "PeerAuthentication" => ("security.istio.io/v1", self.peer_authentication()),
            "Service" => ("v1", self.service()),
            "Pod" => {
                if self.once_in(2) {
                    metadata["labels"]["security.istio.io/tlsMode"] = json!("istio");
                }
                let address = self.of(&["10.1.0.1", "10.1.0.2", "10.9.0.1"]);
                return json!({"apiVersion": "v1", "kind": kind, "metadata": metadata,
                    "spec": {"nodeName": "n", "serviceAccountName": self.of(&["sa", ""])}, "status": {"podIP": address}});
            }
            _ => {
                metadata["labels"]["kubernetes.io/service-name"] = json!(self.of(&NAMES));
                let mut slice = self.slice();
                slice["apiVersion"] = json!("discovery.k8s.io/v1");
                slice["kind"] = json!(kind);
                slice["metadata"] = metadata;
                return slice;
            }
        };
        json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
    }

    pub(super) fn change(&mut self) -> Option<SourceEvent> {
        let document = self.object();
        let Ok(Identity::Known(key)) = api::identify(&document) else {
            return None;
        };
        if self.once_in(5) {
            return Some(SourceEvent::Delete(key));
        }
        self.order += 1;
        let origin = Origin::File { path: Arc::new(PathBuf::from("fuzz")), line: 1 };
        let parsed = api::parse(&key, document, self.order);
        Some(event_from(key, parsed, origin.clone(), |_| origin.clone()))
    }
}
