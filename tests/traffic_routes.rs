//! What VirtualServices do to requests: a real Envoy beside weir, and backends that say what they got.

mod support;

use support::sidecar::Options;
use support::traffic::{Mesh, entry, tally};
use tokio::sync::OnceCell;

/// One mesh for all tests: each has hosts of its own in it.
async fn mesh() -> &'static Mesh {
    static MESH: OnceCell<Mesh> = OnceCell::const_new();
    let hosts = ["one", "two", "three"].into_iter().zip(1..);
    let mut objects: Vec<String> = hosts.map(|(name, n)| entry(&format!("{name}.test"), "web", "HTTP", &[n])).collect();
    for host in [
        "paths", "headers",
    ] {
        objects.push(entry(&format!("{host}.test"), "web", "HTTP", &[1, 2, 3]));
    }
    objects.extend([PATHS, HEADERS].map(str::to_owned));
    let serve = ["--outbound-policy", "registry-only"];
    MESH.get_or_init(async || Mesh::start(&objects, Options { serve: &serve, ..Options::default() }).await).await
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
        assert_eq!((seen.path.as_str(), seen.host.as_str(), seen.method.as_str()), (path, "paths.test", "GET"));
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
        let request = headers.iter().fold(mesh.get("headers.test", "/"), |request, (name, value)| request.header(name, value));
        assert_eq!(request.send().await.backend(), backend, "{headers:?}");
    }
}
