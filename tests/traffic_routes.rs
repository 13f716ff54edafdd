//! The effect of VirtualServices on requests, with a real Envoy and backends that report what they received.

use crate::support::mesh::{Tally, until};
use crate::support::sidecar::Options;
use crate::support::traffic::{Mesh, entry, tally};
use hyper::StatusCode;
use tokio::sync::OnceCell;

/// One mesh for all tests; each test has its own hosts, and `one.test` to `three.test` are shared.
async fn mesh() -> &'static Mesh {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    MESH.get_or_init(async || {
        let backends = [("one.test", 1), ("two.test", 2), ("three.test", 3)];
        let mut objects: Vec<_> =
            backends.map(|(host, n)| entry(host, "web", "HTTP", &[n])).to_vec();
        let own = [
            "paths",
            "headers",
            "requests",
            "sources",
            "gateways",
            "rewrites",
            "redirects",
            "direct",
            "operations",
            "each",
            "canary",
            "roots",
            "mirrors",
            "cors",
            "zero",
        ];
        objects.extend(own.map(|name| entry(&format!("{name}.test"), "web", "HTTP", &[1, 2])));
        let own = [
            PATHS, HEADERS, REQUESTS, PORTS, SOURCES, GATEWAYS, REWRITES, REDIRECTS, DIRECT,
            OPERATIONS, EACH, CANARY, DELEGATES, MIRRORS, CORS, ZERO,
        ];
        objects.extend(own.map(str::to_owned));
        let serve = ["--outbound-policy", "registry-only"];
        Mesh::start(&objects, Options { serve: &serve, ..Options::default() }).await
    })
    .await
}

const PATHS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: paths, namespace: shop}
spec:
  hosts: [paths.test]
  http:
  - match: [{uri: {exact: /exact}}, {uri: {exact: /folded}, ignoreUriCase: true}]
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /prefix/}}, {uri: {regex: '/v[0-9]+/[a-z]+'}}]
    route: [{destination: {host: two.test}}]
  - route: [{destination: {host: three.test}}]
";

#[tokio::test]
async fn paths_choose_the_route() {
    let mesh = mesh().await;
    for (path, backend) in [
        ("/exact", 1),
        ("/exact?query=1", 1),
        ("/Exact", 3),
        ("/exact/more", 3),
        ("/Folded", 1),
        ("/prefix/more", 2),
        ("/prefix", 3),
        ("/v12/ab", 2),
        ("/v12/ab/c", 3),
        ("/", 3),
    ] {
        let answer = mesh.get("paths.test", path).send().await;
        assert_eq!(answer.backend(), backend, "{path}");
        let seen = answer.only();
        assert_eq!(
            (seen.path.as_str(), seen.host.as_str(), seen.method.as_str()),
            (path, "paths.test", "GET")
        );
    }
}

const HEADERS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: headers, namespace: shop}
spec:
  hosts: [headers.test]
  http:
  - match:
    - headers: {x-user: {exact: alice}, x-group: {prefix: staff-}}
    - headers: {x-version: {regex: 'v[12]'}}
    route: [{destination: {host: one.test}}]
  - match: [{headers: {x-debug: {}}, withoutHeaders: {x-user: {exact: bob}}}]
    route: [{destination: {host: two.test}}]
  - route: [{destination: {host: three.test}}]
";

#[tokio::test]
async fn headers_choose_the_route() {
    let mesh = mesh().await;
    for (headers, backend) in [
        (vec![("x-user", "alice"), ("x-group", "staff-7")], 1),
        (vec![("x-user", "alice"), ("x-group", "guests")], 3),
        (vec![("x-user", "alice")], 3),
        (vec![("x-version", "v2")], 1),
        (vec![("x-version", "v22")], 3),
        (vec![("x-debug", "anything")], 2),
        (vec![("x-debug", "anything"), ("x-user", "carol")], 2),
        (vec![("x-debug", "anything"), ("x-user", "bob")], 3),
        (vec![], 3),
    ] {
        let mut request = mesh.get("headers.test", "/");
        for (name, value) in &headers {
            request = request.header(name, value);
        }
        assert_eq!(request.send().await.backend(), backend, "{headers:?}");
    }
}

const REQUESTS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: requests, namespace: shop}
spec:
  hosts: [requests.test]
  http:
  - match: [{scheme: {exact: https}}]
    route: [{destination: {host: requests.test}}]
  - match: [{method: {exact: DELETE}}, {method: {regex: 'P(UT|ATCH)'}, scheme: {exact: http}}]
    route: [{destination: {host: one.test}}]
  - match:
    - queryParams: {user: {exact: alice}, page: {regex: '[0-9]+'}}
    - queryParams: {debug: {}}
    - authority: {regex: '.*:[0-9]+'}
    route: [{destination: {host: two.test}}]
  - route: [{destination: {host: three.test}}]
";

#[tokio::test]
async fn method_query_authority_and_scheme_choose_the_route() {
    let mesh = mesh().await;
    for (method, host, path, backend) in [
        ("DELETE", "requests.test", "/", 1),
        ("PATCH", "requests.test", "/", 1),
        ("POST", "requests.test", "/", 3),
        ("GET", "requests.test", "/?user=alice&page=12", 2),
        ("GET", "requests.test", "/?user=alice&page=x", 3),
        ("GET", "requests.test", "/?user=alice", 3),
        ("GET", "requests.test", "/?debug=1", 2),
        ("GET", "requests.test:8080", "/", 2),
        ("GET", "requests.test", "/", 3),
    ] {
        let answer = mesh.request(method, "web", host, path).send().await;
        assert_eq!(answer.backend(), backend, "{method} {host}{path}");
        assert_eq!((answer.only().method.as_str(), answer.only().host.as_str()), (method, host));
    }
}

const PORTS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ports, namespace: shop}
spec:
  hosts: [ports.test]
  resolution: STATIC
  ports:
  - {number: $web, name: web, protocol: HTTP, targetPort: $HTTP}
  - {number: $alternate, name: alternate, protocol: HTTP, targetPort: $HTTP}
  endpoints: [{address: 127.0.1.4}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ports, namespace: shop}
spec:
  hosts: [ports.test]
  http:
  - match: [{port: $alternate}]
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /other}}]
    route: [{destination: {host: ports.test, port: {number: $alternate}}}]
  - route: [{destination: {host: two.test}}]
";

#[tokio::test]
async fn the_port_chooses_the_route() {
    let mesh = mesh().await;
    assert_eq!(mesh.request("GET", "alternate", "ports.test", "/").send().await.backend(), 1);
    assert_eq!(mesh.get("ports.test", "/").send().await.backend(), 2);
    assert_eq!(mesh.get("ports.test", "/other").send().await.backend(), 4);
    assert_eq!(mesh.cluster_stat("alternate", "", "ports.test", "upstream_rq_total").await, 1);
}

const SOURCES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: sources, namespace: shop}
spec:
  hosts: [sources.test]
  http:
  - match: [{sourceLabels: {app: other}}, {sourceNamespace: other}, {sourceLabels: {app: client, version: v9}}]
    route: [{destination: {host: one.test}}]
  - match: [{sourceLabels: {app: client}, sourceNamespace: shop, uri: {prefix: /mine}}]
    route: [{destination: {host: two.test}}]
  - route: [{destination: {host: three.test}}]
";

#[tokio::test]
async fn the_source_chooses_the_route() {
    let mesh = mesh().await;
    assert_eq!(mesh.get("sources.test", "/mine").send().await.backend(), 2);
    assert_eq!(mesh.get("sources.test", "/").send().await.backend(), 3);
}

const GATEWAYS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: gateways, namespace: shop}
spec:
  hosts: [gateways.test]
  gateways: [mesh, edge]
  http:
  - match: [{gateways: [edge]}]
    route: [{destination: {host: two.test}}]
  - match: [{gateways: [mesh], uri: {prefix: /mesh}}]
    route: [{destination: {host: three.test}}]
  - route: [{destination: {host: one.test}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: gateways-only, namespace: shop}
spec:
  hosts: [three.test]
  gateways: [edge]
  http: [{route: [{destination: {host: two.test}}]}]
";

#[tokio::test]
async fn gateway_only_routes_do_not_apply_to_sidecars() {
    let mesh = mesh().await;
    assert_eq!(mesh.get("gateways.test", "/").send().await.backend(), 1);
    assert_eq!(mesh.get("gateways.test", "/mesh").send().await.backend(), 3);
    assert_eq!(mesh.get("three.test", "/").send().await.backend(), 3);
}

const REWRITES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rewrites, namespace: shop}
spec:
  hosts: [rewrites.test]
  http:
  - match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {exact: /exact}}]
    rewrite: {uri: /all/of/it, authority: rewritten.test}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /user/}}]
    rewrite: {uriRegexRewrite: {match: '^/user/([^/]+)/(.*)$', rewrite: '/\\2/of/\\1'}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /authority}}]
    rewrite: {authority: rewritten.test}
    route: [{destination: {host: one.test}, headers: {request: {set: {':authority': each.test}}}}]
  - route: [{destination: {host: one.test}, headers: {request: {set: {':authority': each.test}}}}]
";

#[tokio::test]
async fn paths_and_authorities_are_rewritten() {
    let mesh = mesh().await;
    for (path, seen_path, seen_host) in [
        ("/old/a/b?q=1", "/new/a/b?q=1", "rewrites.test"),
        ("/exact?q=1", "/all/of/it?q=1", "rewritten.test"),
        ("/user/alice/orders/1?q=1", "/orders/1/of/alice?q=1", "rewrites.test"),
        ("/authority", "/authority", "rewritten.test"),
        ("/", "/", "each.test"),
    ] {
        let answer = mesh.get("rewrites.test", path).send().await;
        let seen = answer.only();
        assert_eq!((seen.path.as_str(), seen.host.as_str()), (seen_path, seen_host), "{path}");
    }
}

const REDIRECTS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: redirects, namespace: shop}
spec:
  hosts: [redirects.test]
  http:
  - match: [{uri: {prefix: /to}}]
    redirect: {uri: /target, authority: elsewhere.test}
  - match: [{uri: {prefix: /prefix/}}]
    redirect: {prefixRewrite: /other/}
  - match: [{uri: {prefix: /port}}]
    redirect: {scheme: https, port: 8443, redirectCode: 307}
  - match: [{uri: {prefix: /secure}}]
    redirect: {scheme: https, port: 443, redirectCode: 308}
  - match: [{uri: {prefix: /default}}]
    redirect: {scheme: https, derivePort: FROM_PROTOCOL_DEFAULT, redirectCode: 302}
  - match: [{uri: {prefix: /moved}}]
    redirect: {authority: elsewhere.test, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT, redirectCode: 303}
  - match: [{uri: {prefix: /request}}]
    redirect: {authority: elsewhere.test, derivePort: FROM_REQUEST_PORT}
";

#[tokio::test]
async fn redirects_say_where_to_go() {
    let mesh = mesh().await;
    let port = mesh.port("web");
    let host = format!("redirects.test:{port}");
    for (host, path, status, location) in [
        ("redirects.test", "/to?q=1", 301, "http://elsewhere.test/target?q=1".to_owned()),
        ("redirects.test", "/prefix/a?q=1", 301, "http://redirects.test/other/a?q=1".to_owned()),
        (&host, "/prefix/a", 301, format!("http://redirects.test:{port}/other/a")),
        (&host, "/port", 307, "https://redirects.test:8443/port".to_owned()),
        (&host, "/secure", 308, "https://redirects.test:443/secure".to_owned()),
        (&host, "/default", 302, "https://redirects.test:443/default".to_owned()),
        (&host, "/moved", 303, "https://elsewhere.test/moved".to_owned()),
        (&host, "/request", 301, format!("http://elsewhere.test:{port}/request")),
    ] {
        let answer = mesh.get(host, path).send().await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("location")),
            (status, location),
            "{path}"
        );
        assert!(answer.seen.is_empty(), "{answer:?}");
    }
}

const DIRECT: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: direct, namespace: shop}
spec:
  hosts: [direct.test]
  http:
  - match: [{uri: {prefix: /text}}]
    directResponse: {status: 503, body: {string: closed for today}}
    headers: {response: {set: {retry-after: '60'}}}
  - match: [{uri: {prefix: /bytes}}]
    directResponse: {status: 418, body: {bytes: aSBhbSBhIHRlYXBvdA==}}
  - directResponse: {status: 404}
";

#[tokio::test]
async fn direct_responses_reach_no_backend() {
    let mesh = mesh().await;
    for (path, status, body, after) in [
        ("/text", 503, "closed for today", "60"),
        ("/bytes", 418, "i am a teapot", ""),
        ("/", 404, "", ""),
    ] {
        let answer = mesh.get("direct.test", path).send().await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (status, body));
        assert_eq!(answer.header("retry-after"), after);
        assert!(answer.seen.is_empty(), "{answer:?}");
    }
}

const OPERATIONS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: operations, namespace: shop}
spec:
  hosts: [operations.test]
  http:
  - headers:
      request:
        set: {x-set: ours, x-percent: 100%, x-command: '%REQ(x-id)%'}
        add: {x-add: ours}
        remove: [x-remove]
      response:
        set: {x-set: ours}
        add: {x-add: ours}
        remove: [x-remove]
    route:
    - destination: {host: one.test}
      headers:
        request: {set: {x-only: destination}, remove: [x-remove-too]}
        response: {set: {x-only: destination}}
";

#[tokio::test]
async fn headers_are_set_added_and_removed() {
    let mesh = mesh().await;
    let names = ["x-set", "x-add", "x-remove", "x-remove-too", "x-keep"];
    let mut request = mesh.get("operations.test", "/");
    for name in names {
        request = request.header(name, "theirs").reply(name, "theirs");
    }
    let answer = request.clone().send().await;
    let seen = answer.only();
    for (name, asked, answered) in [
        ("x-set", "ours", "ours"),
        ("x-add", "theirs,ours", "theirs,ours"),
        ("x-remove", "", ""),
        ("x-remove-too", "", "theirs"),
        ("x-keep", "theirs", "theirs"),
        ("x-only", "destination", "destination"),
        ("x-percent", "100%", ""),
        ("x-command", &request.id, ""),
    ] {
        assert_eq!(
            (seen.header(name), answer.header(name)),
            (asked.to_owned(), answered.to_owned()),
            "{name}"
        );
    }
}

const EACH: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: each, namespace: shop}
spec:
  host: each.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: each, namespace: shop}
spec:
  hosts: [each.test]
  http:
  - match: [{uri: {prefix: /authority}}]
    rewrite: {authority: route.test}
    route:
    - {destination: {host: each.test, subset: v1}, weight: 50, headers: {request: {set: {host: one.test}}}}
    - {destination: {host: each.test, subset: v2}, weight: 50, headers: {request: {set: {host: two.test}}}}
  - headers: {request: {set: {x-both: route}}, response: {add: {x-all: 'yes'}}}
    route:
    - destination: {host: each.test, subset: v1}
      weight: 50
      headers:
        request: {add: {x-version: v1}, set: {x-both: v1, host: one.test}}
        response: {set: {x-version: v1}}
    - destination: {host: each.test, subset: v2}
      weight: 50
      headers:
        request: {add: {x-version: v2}, remove: [x-client]}
        response: {set: {x-version: v2}}
";

#[tokio::test]
async fn each_destination_has_header_operations_of_its_own() {
    let mesh = mesh().await;
    let mut found = std::collections::BTreeSet::new();
    // The probability that one of two equal shares is never picked in 64 attempts is negligible.
    for _ in 0..64 {
        let answer = mesh
            .get("each.test", "/")
            .header("x-client", "kept")
            .header("x-version", "theirs")
            .send()
            .await;
        let seen = answer.only();
        let received = [seen.header("x-version"), seen.header("x-client"), seen.host.clone()];
        let backend = answer.backend();
        match backend {
            1 => assert_eq!(received, ["theirs,v1", "kept", "one.test"]),
            _ => assert_eq!(received, ["theirs,v2", "", "each.test"]),
        }
        // Headers of the route are applied after those of the destination.
        assert_eq!(seen.header("x-both"), "route");
        assert_eq!(
            (answer.header("x-version"), answer.header("x-all")),
            (format!("v{backend}"), "yes".to_owned())
        );
        // The route's authority takes precedence.
        assert_eq!(mesh.get("each.test", "/authority").send().await.only().host, "route.test");
        found.insert(backend);
        if found.len() == 2 {
            return;
        }
    }
    panic!("only {found:?} answered");
}

const CANARY: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: canary, namespace: shop}
spec:
  host: canary.test
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [canary.test]
  http:
  - match: [{headers: {x-tester: {exact: 'true'}}}]
    route:
    - {destination: {host: canary.test, subset: v1}, weight: 0}
    - {destination: {host: canary.test, subset: v2}, weight: 100}
  - route:
    - {destination: {host: canary.test, subset: v1}, weight: 3}
    - {destination: {host: canary.test, subset: v2}, weight: 1}
";

#[tokio::test]
async fn weights_split_requests_and_a_header_match_overrides_them() {
    let mesh = mesh().await;
    tally(400, || mesh.get("canary.test", "/")).await.assert_split(25);
    tally(20, || mesh.get("canary.test", "/").header("x-tester", "true")).await.assert_split(100);
}

const ZERO: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: zero, namespace: shop}
spec:
  hosts: [zero.test]
  http:
  - match: [{uri: {prefix: /zero}}]
    route: [{destination: {host: one.test}, weight: 0}, {destination: {host: two.test}, weight: 0}]
  - route: [{destination: {host: one.test}, weight: 0}]
";

#[tokio::test]
async fn all_zero_weights_disable_only_that_route() {
    let mesh = mesh().await;
    let answer = mesh.get("zero.test", "/zero").send().await;
    assert_eq!((answer.status, answer.seen.len()), (StatusCode::SERVICE_UNAVAILABLE, 0));
    // The weight of a single destination is ignored.
    assert_eq!(mesh.get("zero.test", "/").send().await.backend(), 1);
}

const DELEGATES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: roots, namespace: shop}
spec:
  hosts: [roots.test]
  http:
  - match: [{uri: {prefix: /team}, headers: {x-user: {}}}]
    delegate: {name: team, namespace: other}
  - match: [{uri: {prefix: /gone}}]
    delegate: {name: gone}
  - route: [{destination: {host: three.test}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: team, namespace: other}
spec:
  http:
  - match: [{uri: {prefix: /team/orders}}]
    rewrite: {uri: /orders}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /elsewhere}}]
    route: [{destination: {host: three.test}}]
  - route: [{destination: {host: two.test}}]
";

#[tokio::test]
async fn delegates_say_the_routes_below_their_roots_match() {
    let mesh = mesh().await;
    for (path, user, backend, seen) in [
        ("/team/orders/1", true, 1, "/orders/1"),
        ("/team/else", true, 2, "/team/else"),
        ("/team/orders/1", false, 3, "/team/orders/1"),
        ("/gone", true, 3, "/gone"),
        ("/elsewhere", true, 3, "/elsewhere"),
    ] {
        let request = mesh.get("roots.test", path);
        let answer = if user { request.header("x-user", "alice") } else { request }.send().await;
        assert_eq!((answer.backend(), answer.only().path.as_str()), (backend, seen), "{path}");
    }
}

const MIRRORS: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shadows, namespace: shop}
spec:
  hosts: [never.test, first.test, second.test, half.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.2}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: mirrors, namespace: shop}
spec:
  hosts: [mirrors.test]
  http:
  - match: [{uri: {prefix: /all}}]
    route: [{destination: {host: one.test}}]
    mirror: {host: first.test}
  - match: [{uri: {prefix: /several}}]
    route: [{destination: {host: one.test}}]
    mirrors:
    - {destination: {host: first.test}, percentage: {value: 100}}
    - {destination: {host: second.test}}
    - {destination: {host: never.test}, percentage: {value: 0}}
  - match: [{uri: {prefix: /none}}]
    route: [{destination: {host: one.test}}]
    mirror: {host: never.test}
    mirrorPercentage: {value: 0}
  - route: [{destination: {host: one.test}}]
    mirror: {host: half.test}
    mirrorPercentage: {value: 50}
";

#[tokio::test]
async fn mirrors_get_what_the_backend_gets() {
    let mesh = mesh().await;
    let request =
        mesh.request("POST", "web", "mirrors.test", "/all?q=1").body("order").answer_of(2, "500");
    let answer = request.clone().send().await;
    assert_eq!(answer.backend(), 1, "the mirror's response is ignored");
    let mut seen = mesh.backends.wait(&request.id, 2).await;
    seen.sort_by_key(|seen| seen.backend);
    assert_eq!([seen[0].backend, seen[1].backend], [1, 2]);
    for item in &seen {
        assert_eq!(
            (item.path.as_str(), item.host.as_str(), &*item.body),
            ("/all?q=1", "mirrors.test", &b"order"[..])
        );
    }

    let request = mesh.get("mirrors.test", "/several");
    assert_eq!(request.clone().send().await.backend(), 1);
    assert_eq!(mesh.backends.wait(&request.id, 3).await.len(), 3);
}

#[tokio::test]
async fn mirrors_get_their_percentage() {
    let mesh = mesh().await;
    for _ in 0..50 {
        assert_eq!(mesh.get("mirrors.test", "/none").send().await.backend(), 1);
        assert_eq!(mesh.get("mirrors.test", "/several").send().await.backend(), 1);
    }
    assert_eq!(mesh.cluster_stat("web", "", "never.test", "upstream_cx_total").await, 0);

    let count = 200;
    for _ in 0..count {
        assert_eq!(mesh.get("mirrors.test", "/half").send().await.backend(), 1);
    }
    let stat = async |name| mesh.cluster_stat("web", "", "half.test", name).await;
    until("no mirrored request waits for a connection", async || {
        stat("upstream_rq_pending_active").await == 0
    })
    .await;
    let mirrored = stat("upstream_rq_total").await;
    Tally { answers: [("v1".to_owned(), count - mirrored), ("v2".to_owned(), mirrored)].into() }
        .assert_split(50);
}

const CORS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cors, namespace: shop}
spec:
  hosts: [cors.test]
  http:
  - match: [{uri: {prefix: /ignore}}]
    corsPolicy:
      allowOrigins: [{exact: 'https://shop.example'}]
      allowMethods: [GET]
      unmatchedPreflights: IGNORE
    route: [{destination: {host: one.test}}]
  - corsPolicy:
      allowOrigins: [{exact: 'https://shop.example'}, {regex: 'https://.*[.]b[.]example'}]
      allowMethods: [GET, POST]
      allowHeaders: [x-a, x-b]
      exposeHeaders: [x-c]
      maxAge: 24h
      allowCredentials: true
    route: [{destination: {host: one.test}}]
";

#[tokio::test]
async fn cors_preflights_are_answered_for_allowed_origins() {
    let mesh = mesh().await;
    let preflight = |path: &str, origin: &str| {
        let request = mesh.request("OPTIONS", "web", "cors.test", path).header("origin", origin);
        request.header("access-control-request-method", "POST")
    };
    for origin in ["https://shop.example", "https://a.b.example"] {
        let answer = preflight("/", origin).send().await;
        assert_eq!((answer.status, answer.seen.len()), (StatusCode::OK, 0), "{answer:?}");
        for (name, value) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "GET,POST"),
            ("access-control-allow-headers", "x-a,x-b"),
            ("access-control-max-age", "86400"),
            ("access-control-allow-credentials", "true"),
        ] {
            assert_eq!(answer.header(name), value, "{name}");
        }
        let answer = mesh.get("cors.test", "/").header("origin", origin).send().await;
        assert_eq!(answer.backend(), 1);
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        assert_eq!(answer.header("access-control-expose-headers"), "x-c");
    }

    // Disallowed origins are forwarded to the backend and get no CORS headers from Envoy.
    let answer = preflight("/", "https://evil.example").send().await;
    assert_eq!(
        (answer.backend(), answer.header("access-control-allow-origin")),
        (1, String::new())
    );
    let answer = mesh.get("cors.test", "/").header("origin", "https://evil.example").send().await;
    assert_eq!(
        (answer.backend(), answer.header("access-control-allow-origin")),
        (1, String::new())
    );
    let answer = preflight("/ignore", "https://evil.example").send().await;
    assert_eq!(
        (answer.seen.len(), answer.header("access-control-allow-origin")),
        (0, String::new()),
        "{answer:?}"
    );
}
