//! Failure handling: faults, retries, timeouts, outlier detection, limits; and load balancing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::support::mesh::{Tally, until};
use crate::support::sidecar::Options;
use crate::support::traffic::{Answer, Mesh, Request, entry, tally};
use hyper::StatusCode;
use tokio::sync::OnceCell;

/// One mesh for all tests; each test has its own hosts.
async fn mesh() -> &'static Mesh {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    MESH.get_or_init(async || {
        let mut objects = vec![
            entry("delayed.test", "delayed", "HTTP", &[1]),
            entry("aborted.test", "aborted", "HTTP", &[1]),
        ];
        let hosts = [
            ("one.test", &[1][..]),
            ("retried.test", &[1]),
            ("defaults.test", &[1]),
            ("slow.test", &[1]),
            ("tries.test", &[1, 2, 3]),
            ("errors.test", &[1, 2]),
            ("gateway.test", &[1, 2]),
            ("codes.test", &[1, 2]),
            ("local.test", &[1, 2]),
            ("pending.test", &[1]),
            ("requests.test", &[1]),
            ("budget.test", &[1]),
            ("share.test", &[1]),
            ("short.test", &[1]),
            ("header.test", &[1, 2, 3]),
            ("cookie.test", &[1, 2, 3]),
            ("source.test", &[1, 2, 3]),
            ("query.test", &[1, 2, 3]),
            ("maglev.test", &[1, 2, 3]),
            ("ring.test", &[1, 2, 3]),
            ("subset.test", &[1, 2, 3]),
            ("turns.test", &[1, 2, 3]),
        ];
        objects.extend(hosts.map(|(host, backends)| entry(host, "web", "HTTP", backends)));
        let own = [FAULTS, RETRIES, UNREACHABLE, TIMEOUTS, OUTLIERS, LIMITS, HASHES, LOCALITIES];
        objects.extend(own.map(str::to_owned));
        Mesh::start(&objects, Options::default()).await
    })
    .await
}

const FAULTS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: delayed, namespace: shop}
spec:
  hosts: [delayed.test]
  http:
  - match: [{uri: {prefix: /never}}]
    fault: {delay: {fixedDelay: 3600s, percentage: {value: 0}}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /long}}]
    fault: {delay: {fixedDelay: 3600s, percentage: {value: 100}}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /short}}]
    fault: {delay: {fixedDelay: 10ms, percentage: {value: 100}}}
    route: [{destination: {host: one.test}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: aborted, namespace: shop}
spec:
  hosts: [aborted.test]
  http:
  - match: [{uri: {prefix: /all}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /unsaid}}]
    fault: {abort: {httpStatus: 418}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /none}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 0}}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /half}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 50}}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /grpc}}]
    fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}
    route: [{destination: {host: one.test}}]
  - match: [{uri: {prefix: /retried}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
    retries: {attempts: 3, retryOn: 5xx}
    route: [{destination: {host: one.test}}]
";

#[tokio::test]
async fn delays_hold_requests_before_backends_see_them() {
    let mesh = mesh().await;
    let delayed = |path| mesh.request("GET", "delayed", "delayed.test", path);
    assert_eq!(delayed("/never").send().await.backend(), 1);
    assert_eq!(mesh.http_stat("delayed", "fault.delays_injected").await, 0);

    assert_eq!(delayed("/short").send().await.backend(), 1);
    assert_eq!(mesh.http_stat("delayed", "fault.delays_injected").await, 1);

    let request = delayed("/long");
    let waiting = request.clone().spawn();
    until("the request is held", async || {
        mesh.http_stat("delayed", "fault.active_faults").await == 1
    })
    .await;
    assert_eq!(mesh.http_stat("delayed", "fault.delays_injected").await, 2);
    assert_eq!(mesh.backends.seen(&request.id).len(), 0);
    waiting.abort();
    until("the client is gone", async || {
        mesh.http_stat("delayed", "fault.active_faults").await == 0
    })
    .await;
    assert_eq!(mesh.backends.seen(&request.id).len(), 0);
}

#[tokio::test]
async fn aborts_respond_instead_of_backends() {
    let mesh = mesh().await;
    let aborted = |path| mesh.request("GET", "aborted", "aborted.test", path);
    for _ in 0..20 {
        let answer = aborted("/all").send().await;
        assert_eq!((answer.status, answer.seen.len()), (StatusCode::IM_A_TEAPOT, 0));
        assert_eq!(aborted("/none").send().await.backend(), 1);
        // Without a percentage the fault applies to no request, as documented by Istio.
        assert_eq!(aborted("/unsaid").send().await.backend(), 1);
    }
    assert_eq!(mesh.http_stat("aborted", "fault.aborts_injected").await, 20);

    let mut found = tally(200, || aborted("/half")).await;
    let rejected = found.answers.remove("418").unwrap_or_default();
    found.answers.insert("v2".to_owned(), rejected);
    found.assert_split(50);

    let grpc = aborted("/grpc").http2().header("content-type", "application/grpc").send().await;
    assert_eq!((grpc.status, grpc.header("grpc-status")), (StatusCode::OK, "8".to_owned()));

    // An injected fault is not a backend failure, so it is not retried.
    let before = mesh.http_stat("aborted", "fault.aborts_injected").await;
    assert_eq!(aborted("/retried").send().await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(mesh.http_stat("aborted", "fault.aborts_injected").await, before + 1);
}

const RETRIES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: retried, namespace: shop}
spec:
  hosts: [retried.test]
  http:
  - match: [{uri: {prefix: /5xx}}]
    retries: {attempts: 3, retryOn: 5xx, backoff: 1ms}
    route: [{destination: {host: retried.test}}]
  - match: [{uri: {prefix: /codes}}]
    retries: {attempts: 2, retryOn: '429,gateway-error', backoff: 1ms}
    route: [{destination: {host: retried.test}}]
  - match: [{uri: {prefix: /off}}]
    retries: {attempts: 0}
    route: [{destination: {host: retried.test}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: heavy, namespace: shop}
spec:
  hosts: [elsewhere.test, anywhere.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints: [{address: 127.0.1.1, weight: 3}, {address: 127.0.1.2, weight: 1}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: elsewhere, namespace: shop}
spec: {host: elsewhere.test, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: anywhere, namespace: shop}
spec: {host: anywhere.test, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: elsewhere, namespace: shop}
spec:
  hosts: [elsewhere.test]
  http: [{retries: {attempts: 1, retryOn: 5xx, backoff: 1ms}, route: [{destination: {host: elsewhere.test}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: anywhere, namespace: shop}
spec:
  hosts: [anywhere.test]
  http:
  - retries: {attempts: 1, retryOn: 5xx, backoff: 1ms, retryIgnorePreviousHosts: false}
    route: [{destination: {host: anywhere.test}}]
";

#[tokio::test]
async fn a_503_is_retried_as_often_as_configured() {
    let mesh = mesh().await;
    for (path, answers, status, tries) in [
        ("/5xx", "503", 503, 4),
        ("/5xx", "503,500,200", 200, 3),
        ("/5xx", "404", 404, 1),
        ("/codes", "429", 429, 3),
        ("/codes", "429,200", 200, 2),
        ("/codes", "502,503,200", 200, 3),
        ("/codes", "500", 500, 1),
        ("/off", "503", 503, 1),
    ] {
        let answer = mesh.get("retried.test", path).answer(answers).send().await;
        assert_eq!(
            (answer.status.as_u16(), answer.seen.len()),
            (status, tries),
            "{path} {answers}"
        );
        let counts: Vec<_> =
            answer.seen.iter().map(|seen| seen.header("x-envoy-attempt-count")).collect();
        assert_eq!(counts, (1..=tries).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_retry_uses_another_host_by_default() {
    let mesh = mesh().await;
    // The first endpoint gets three of four turns, so with round robin alone many retries would hit it again.
    for (host, elsewhere) in [("elsewhere.test", 20..=20), ("anywhere.test", 0..=12)] {
        let mut count = 0;
        for _ in 0..20 {
            let answer = mesh.get(host, "/").answer("503").send().await;
            assert_eq!(answer.seen.len(), 2, "{answer:?}");
            count += u32::from(answer.seen[0].backend != answer.seen[1].backend);
        }
        assert!(
            elsewhere.contains(&count),
            "{host}: {count} of 20 retries went to the other endpoint"
        );
    }
}

#[tokio::test]
async fn without_a_word_on_retries_an_answer_is_an_answer() {
    let mesh = mesh().await;
    let answer = mesh.get("defaults.test", "/").answer("503").send().await;
    assert_eq!((answer.status.as_u16(), answer.seen.len()), (503, 1));
    // These two gRPC statuses mean that the request had no effect.
    for (status, tries) in [("14", 3), ("1", 3), ("13", 1)] {
        let request = mesh.get("defaults.test", "/").reply("content-type", "application/grpc");
        let answer = request.reply("grpc-status", status).send().await;
        assert_eq!((answer.header("grpc-status").as_str(), answer.seen.len()), (status, tries));
    }
}

const UNREACHABLE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: half, namespace: shop}
spec:
  hosts: [half.test, strict.test, named.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP}]
  endpoints:
  - {address: 127.0.1.1, ports: {web: $HTTP}}
  - {address: 127.0.1.2, ports: {web: $CLOSED}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: strict, namespace: shop}
spec:
  hosts: [strict.test]
  http: [{retries: {attempts: 0}, route: [{destination: {host: strict.test}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: named, namespace: shop}
spec:
  hosts: [named.test]
  http: [{retries: {attempts: 1, retryOn: connect-failure}, route: [{destination: {host: named.test}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: strict, namespace: shop}
spec: {host: strict.test, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
# By chance a retry could choose the same host six times.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: named, namespace: shop}
spec: {host: named.test, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
";

#[tokio::test]
async fn failed_connections_are_retried_on_another_host() {
    let mesh = mesh().await;
    for host in ["half.test", "named.test"] {
        for _ in 0..20 {
            let answer = mesh.get(host, "/").send().await;
            assert_eq!((answer.backend(), answer.seen.len()), (1, 1), "{host}");
        }
        assert!(
            mesh.cluster_stat("web", "", host, "upstream_rq_retry").await > 0,
            "{host} was never retried"
        );
    }
    let found = tally(20, || mesh.get("strict.test", "/")).await;
    assert_eq!((found.of("v1"), found.of("503")), (10, 10), "{found:?}");
}

const TIMEOUTS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: slow, namespace: shop}
spec:
  hosts: [slow.test]
  http:
  - match: [{uri: {prefix: /timeout}}]
    timeout: 0.2s
    route: [{destination: {host: slow.test}}]
  - route: [{destination: {host: slow.test}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tries, namespace: shop}
spec:
  hosts: [tries.test]
  http:
  - retries: {attempts: 2, perTryTimeout: 0.2s, retryOn: gateway-error, backoff: 1ms}
    route: [{destination: {host: tries.test}}]
";

#[tokio::test]
async fn a_timeout_answers_while_the_backend_still_has_the_request() {
    let mesh = mesh().await;
    let answer = mesh.get("slow.test", "/timeout").hold(1).send().await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(!answer.only().answered);
    assert_eq!(mesh.cluster_stat("web", "", "slow.test", "upstream_rq_timeout").await, 1);

    // Without a timeout a request may take any time.
    let request = mesh.get("slow.test", "/").hold(1);
    let waiting = request.clone().spawn();
    mesh.backends.wait(&request.id, 1).await;
    let again = mesh.get("slow.test", "/timeout").hold(1).send().await;
    assert_eq!(again.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(!waiting.is_finished());
    mesh.backends.release(&request.id);
    assert_eq!(waiting.await.unwrap().backend(), 1);
}

#[tokio::test]
async fn every_try_has_a_timeout_of_its_own() {
    let mesh = mesh().await;
    let answer = mesh.get("tries.test", "/").hold(1).send().await;
    assert_eq!((answer.status, answer.seen.len()), (StatusCode::GATEWAY_TIMEOUT, 3));
    assert!(answer.seen.iter().all(|seen| !seen.answered));
    assert_eq!(mesh.cluster_stat("web", "", "tries.test", "upstream_rq_per_try_timeout").await, 3);
}

const OUTLIERS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: errors, namespace: shop}
spec:
  host: errors.test
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 3600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: gateway, namespace: shop}
spec:
  host: gateway.test
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection:
      consecutiveGatewayErrors: 2
      consecutive5xxErrors: 0
      baseEjectionTime: 3600s
      maxEjectionPercent: 100
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: codes, namespace: shop}
spec:
  host: codes.test
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection:
      consecutive5xxErrors: 2
      outlierDetectionHttpErrorCodes: [429]
      baseEjectionTime: 3600s
      maxEjectionPercent: 100
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: local, namespace: shop}
spec:
  host: local.test
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3600s, maxEjectionPercent: 100}
";

/// The addresses of the endpoints that are ejected.
async fn ejected(mesh: &Mesh, host: &str) -> Vec<String> {
    let all = mesh.endpoints("web", "", host).await;
    let out =
        all.into_iter().filter(|(_, item)| item["health_status"]["failed_outlier_check"] == true);
    out.map(|(address, _)| address).collect()
}

/// Makes these backends fail, in addition to those already ejected, until they are ejected too.
async fn eject(mesh: &Mesh, host: &str, backends: &[u8]) {
    let all = ejected(mesh, host).await.len() + backends.len();
    until("they are ejected", async || {
        let request = backends
            .iter()
            .fold(mesh.get(host, "/"), |request, backend| request.answer_of(*backend, "500"));
        request.send().await;
        ejected(mesh, host).await.len() == all
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected() {
    let mesh = mesh().await;
    for (host, harmless, harmful, times) in [
        ("errors.test", "404", "500", 3),
        ("gateway.test", "500", "503", 2),
        ("codes.test", "404", "429", 2),
    ] {
        let request = |status| mesh.get(host, "/").answer_of(2, status);
        for _ in 0..12 {
            request(harmless).send().await;
        }
        assert_eq!(ejected(mesh, host).await, [""; 0], "{host}");
        // Every second request goes to the second backend.
        let found = tally(2 * times, || request(harmful)).await;
        assert_eq!(
            (found.of("v1"), found.of(harmful)),
            (times as u64, times as u64),
            "{host} {found:?}"
        );
        until("it is ejected", async || ejected(mesh, host).await == ["127.0.1.2"]).await;
        until("the worker knows", async || tally(2, || request(harmful)).await.of("v1") == 2).await;
        let found = tally(20, || request(harmful)).await;
        assert_eq!(found.of("v1"), 20, "{host} {found:?}");
        assert_eq!(
            mesh.cluster_stat("web", "", host, "outlier_detection.ejections_active").await,
            1
        );
    }
}

#[tokio::test]
async fn no_backend_is_used_when_all_are_ejected() {
    let mesh = mesh().await;
    eject(mesh, "local.test", &[1, 2]).await;
    let mut answer = None;
    until("no backend answers", async || {
        let last = mesh.get("local.test", "/").send().await;
        let rejected = last.status != 200;
        answer = Some(last);
        rejected
    })
    .await;
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.seen.len()), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert_eq!(answer.body, "no healthy upstream");
}

const LIMITS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: pending, namespace: shop}
spec:
  host: pending.test
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: requests, namespace: shop}
spec:
  host: requests.test
  trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE, http2MaxRequests: 2}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: budget, namespace: shop}
spec:
  host: budget.test
  trafficPolicy: {connectionPool: {http: {maxRetries: 1}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: share, namespace: shop}
spec:
  host: share.test
  trafficPolicy: {retryBudget: {percent: 10, minRetryConcurrency: 1}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: budget, namespace: shop}
spec:
  hosts: [budget.test]
  http: [{retries: {attempts: 1, retryOn: 5xx, backoff: 1ms}, route: [{destination: {host: budget.test}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: share, namespace: shop}
spec:
  hosts: [share.test]
  http: [{retries: {attempts: 1, retryOn: 5xx, backoff: 1ms}, route: [{destination: {host: share.test}}]}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: short, namespace: shop}
spec:
  host: short.test
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 2}}}
";

/// Sends a request that its backend holds.
async fn held(mesh: &Mesh, request: Request) -> (String, tokio::task::JoinHandle<Answer>) {
    let id = request.id.clone();
    let waiting = request.hold(1).spawn();
    mesh.backends.wait(&id, 1).await;
    (id, waiting)
}

#[tokio::test]
async fn excess_pending_requests_are_rejected() {
    let mesh = mesh().await;
    let stat = async |name| mesh.cluster_stat("web", "", "pending.test", name).await;
    let (id, first) = held(mesh, mesh.get("pending.test", "/")).await;
    let second = mesh.get("pending.test", "/");
    let (second_id, second) = (second.id.clone(), second.spawn());
    until("one waits for the connection", async || stat("upstream_rq_pending_active").await == 1)
        .await;

    let answer = mesh.get("pending.test", "/").send().await;
    assert_eq!((answer.status, answer.seen.len()), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert_eq!(answer.header("x-envoy-overloaded"), "true");
    assert_eq!(stat("upstream_rq_pending_overflow").await, 1);

    assert_eq!(mesh.backends.seen(&second_id).len(), 0);
    mesh.backends.release(&id);
    assert_eq!((first.await.unwrap().backend(), second.await.unwrap().backend()), (1, 1));
    assert_eq!(mesh.get("pending.test", "/").send().await.backend(), 1);
    assert_eq!(stat("upstream_cx_total").await, 1);
}

#[tokio::test]
async fn excess_requests_are_rejected() {
    let mesh = mesh().await;
    let (first, item) = held(mesh, mesh.get("requests.test", "/")).await;
    let (second, other) = held(mesh, mesh.get("requests.test", "/")).await;
    let answer = mesh.get("requests.test", "/").send().await;
    assert_eq!((answer.status, answer.seen.len()), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert_eq!(answer.header("x-envoy-overloaded"), "true");
    mesh.backends.release(&first);
    mesh.backends.release(&second);
    assert_eq!((item.await.unwrap().backend(), other.await.unwrap().backend()), (1, 1));
}

#[tokio::test]
async fn more_retries_than_allowed_are_not_made() {
    let mesh = mesh().await;
    for host in ["budget.test", "share.test"] {
        // The first attempt fails, and the backend holds the retry.
        let request = mesh.get(host, "/").hold(2).answer("503,200");
        let waiting = request.clone().spawn();
        mesh.backends.wait(&request.id, 2).await;
        let answer = mesh.get(host, "/").answer("503,200").send().await;
        assert_eq!(
            (answer.status, answer.seen.len()),
            (StatusCode::SERVICE_UNAVAILABLE, 1),
            "{host}"
        );
        assert_eq!(
            mesh.cluster_stat("web", "", host, "upstream_rq_retry_overflow").await,
            1,
            "{host}"
        );
        mesh.backends.release(&request.id);
        assert_eq!(waiting.await.unwrap().backend(), 1);
    }
}

#[tokio::test]
async fn max_requests_per_connection_is_respected() {
    let mesh = mesh().await;
    let mut peers = BTreeMap::new();
    for _ in 0..6 {
        let answer = mesh.get("short.test", "/").send().await;
        *peers.entry(answer.only().peer).or_insert(0) += 1;
    }
    assert_eq!(peers.values().copied().collect::<Vec<_>>(), [2, 2, 2]);
}

const HASHES: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: header, namespace: shop}
spec: {host: header.test, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cookie, namespace: shop}
spec:
  host: cookie.test
  trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: session, path: /here, ttl: 60s}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: source, namespace: shop}
spec: {host: source.test, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: query, namespace: shop}
spec: {host: query.test, trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: user}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: maglev, namespace: shop}
spec:
  host: maglev.test
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, maglev: {tableSize: 1021}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ring, namespace: shop}
spec:
  host: ring.test
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, ringHash: {minimumRingSize: 2048}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: subset, namespace: shop}
spec:
  host: subset.test
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
  subsets:
  - {name: sticky, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: subset, namespace: shop}
spec:
  hosts: [subset.test]
  http:
  - match: [{uri: {prefix: /sticky}}]
    route: [{destination: {host: subset.test, subset: sticky}}]
  - route: [{destination: {host: subset.test}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: turns, namespace: shop}
spec: {host: turns.test, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
";

/// Sends the requests of 40 clients and checks that each client always reaches the same backend and that not all reach
/// the same one.
async fn sticks(request: impl Fn(u8) -> Request) -> Vec<u8> {
    let mut found = Vec::new();
    for client in 1..=40 {
        let first = request(client).send().await.backend();
        for _ in 0..3 {
            assert_eq!(request(client).send().await.backend(), first, "client {client}");
        }
        found.push(first);
    }
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 3, "{found:?}");
    found
}

fn user(request: Request, client: u8) -> Request {
    request.header("x-user", &format!("user-{client}"))
}

#[tokio::test]
async fn a_header_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| user(mesh.get("header.test", "/"), client)).await;
    sticks(|client| user(mesh.get("subset.test", "/sticky"), client)).await;
}

#[tokio::test]
async fn a_cookie_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| {
        mesh.get("cookie.test", "/").header("cookie", &format!("a=b; session=s{client}"))
    })
    .await;
    // A client without the cookie receives one.
    let answer = mesh.get("cookie.test", "/").send().await;
    let given = answer.header("set-cookie");
    assert!(given.starts_with("session="), "{answer:?}");
    assert!(given.contains("Max-Age=60") && given.contains("Path=/here"), "{given}");
    let cookie = given.split(';').next().unwrap().replace('"', "");
    let (backend, request) =
        (answer.backend(), mesh.get("cookie.test", "/").header("cookie", &cookie));
    for _ in 0..5 {
        let answer = request.clone().send().await;
        assert_eq!((answer.backend(), answer.header("set-cookie")), (backend, String::new()));
    }
}

#[tokio::test]
async fn the_source_address_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| mesh.get("source.test", "/").from(Ipv4Addr::new(127, 0, 2, client))).await;
}

#[tokio::test]
async fn a_query_parameter_decides_about_the_endpoint() {
    let mesh = mesh().await;
    sticks(|client| mesh.get("query.test", &format!("/{client}?other={client}&user=u{client}")))
        .await;
    let first = mesh.get("query.test", "/a?user=x").send().await.backend();
    assert_eq!(mesh.get("query.test", "/b?page=2&user=x").send().await.backend(), first);
}

#[tokio::test]
async fn maglev_and_ring_hash_are_two_ways_to_stick() {
    let mesh = mesh().await;
    let maglev = sticks(|client| user(mesh.get("maglev.test", "/"), client)).await;
    let ring = sticks(|client| user(mesh.get("ring.test", "/"), client)).await;
    assert_ne!(maglev, ring, "one table is the other");
    let stat = async |host, name| mesh.cluster_stat("web", "", host, name).await;
    assert!(stat("maglev.test", "maglev_lb.min_entries_per_host").await > 300);
    assert!(stat("ring.test", "ring_hash_lb.size").await >= 2048);
}

#[tokio::test]
async fn round_robin_takes_turns() {
    let mesh = mesh().await;
    for host in ["turns.test", "subset.test"] {
        let found = tally(30, || mesh.get(host, "/")).await;
        assert_eq!([found.of("v1"), found.of("v2"), found.of("v3")], [10, 10, 10], "{host}");
    }
}

const LOCALITIES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: near, namespace: shop}
spec:
  hosts: [near.test, shares.test, labelled.test, regions.test]
  resolution: STATIC
  ports: [{number: $web, name: web, protocol: HTTP, targetPort: $HTTP}]
  endpoints:
  - {address: 127.0.1.1, locality: eu/eu-a, labels: {app: other}}
  - {address: 127.0.1.2, locality: eu/eu-b, labels: {app: client}}
  - {address: 127.0.1.3, locality: us/us-a, labels: {app: other}}
  - {address: 127.0.1.4, locality: as/as-a, labels: {app: other}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: near, namespace: shop}
spec:
  host: near.test
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: regions, namespace: shop}
spec:
  host: regions.test
  trafficPolicy:
    loadBalancer: {localityLbSetting: {failover: [{from: eu, to: as}]}}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: labelled, namespace: shop}
spec:
  host: labelled.test
  trafficPolicy:
    loadBalancer: {localityLbSetting: {failoverPriority: [app]}}
    outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 3600s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shares, namespace: shop}
spec:
  host: shares.test
  trafficPolicy:
    loadBalancer:
      localityLbSetting: {distribute: [{from: 'eu/eu-a/*', to: {'eu/*': 75, 'us/*': 25}}]}
";

/// Checks at each step that exactly these backends respond, then makes them fail.
async fn one_after_the_other(mesh: &Mesh, host: &str, steps: &[&[u8]]) {
    let mut gone: Option<&[u8]> = None;
    for step in steps {
        let wanted: BTreeSet<u8> = step.iter().copied().collect();
        // Envoy's workers may learn of an ejection up to a second late if another one just happened.
        until("the ejected backends do not respond", async || {
            let backend = mesh.get(host, "/").send().await.backend();
            !gone.is_some_and(|gone| gone.contains(&backend))
        })
        .await;
        let mut found = BTreeSet::new();
        until("all backends have responded", async || {
            found.insert(mesh.get(host, "/").send().await.backend());
            found.len() >= wanted.len()
        })
        .await;
        for _ in 0..20 {
            found.insert(mesh.get(host, "/").send().await.backend());
        }
        assert_eq!(found, wanted, "{host} after {gone:?} are gone");
        if step != steps.last().unwrap() {
            eject(mesh, host, step).await;
        }
        gone = Some(step);
    }
}

#[tokio::test]
async fn the_nearest_locality_that_works_gets_the_requests() {
    one_after_the_other(mesh().await, "near.test", &[&[1], &[2], &[3, 4]]).await;
}

#[tokio::test]
async fn a_region_fails_over_to_its_target() {
    one_after_the_other(mesh().await, "regions.test", &[&[1], &[2], &[4], &[3]]).await;
}

#[tokio::test]
async fn labels_make_priorities() {
    one_after_the_other(mesh().await, "labelled.test", &[&[2], &[1, 3, 4]]).await;
}

#[tokio::test]
async fn localities_get_their_shares() {
    let mesh = mesh().await;
    let found = tally(400, || mesh.get("shares.test", "/")).await;
    let near = found.of("v1") + found.of("v2");
    Tally { answers: [("v1".to_owned(), near), ("v2".to_owned(), found.of("v3"))].into() }
        .assert_split(25);
    assert_eq!((near + found.of("v3"), found.of("v4")), (400, 0), "{found:?}");
    assert!(found.of("v1") > 0 && found.of("v2") > 0, "{found:?}");
}
