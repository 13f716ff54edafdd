//! Failure handling: faults, retries, timeouts, outlier detection and limits.

use std::collections::BTreeMap;

use crate::support::mesh::until;
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
        ];
        objects.extend(hosts.map(|(host, backends)| entry(host, "web", "HTTP", backends)));
        let own = [FAULTS, RETRIES, UNREACHABLE, TIMEOUTS, OUTLIERS, LIMITS];
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
        assert_eq!(mesh.ejected(host).await, [""; 0], "{host}");
        // Every second request goes to the second backend.
        let found = tally(2 * times, || request(harmful)).await;
        assert_eq!(
            (found.of("v1"), found.of(harmful)),
            (times as u64, times as u64),
            "{host} {found:?}"
        );
        until("it is ejected", async || mesh.ejected(host).await == ["127.0.1.2"]).await;
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
    mesh.eject("local.test", &[1, 2]).await;
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
