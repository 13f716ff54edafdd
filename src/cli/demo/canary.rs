//! The demo's objects in a temporary folder.

use std::io;
use std::path::PathBuf;

use tempfile::TempDir;

/// The folder and its files; removed on drop.
#[derive(Debug)]
pub struct CanaryObjects {
    folder: TempDir,
    port: u16,
    backends: u16,
}

impl CanaryObjects {
    /// Creates a folder for a service on a free port, whose endpoints listen on port `backends`.
    pub fn new(backends: u16) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-demo-").tempdir()?;
        std::fs::create_dir(folder.path().join("config"))?;
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        Ok(Self { folder, port, backends })
    }

    /// The service's port, which Envoy binds on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder with the objects.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// A path outside the folder with the objects.
    pub fn outside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file with the VirtualService.
    pub fn route_file(&self) -> PathBuf {
        self.folder().join("virtual-service.yaml")
    }

    /// Writes all objects, with this percentage to v1.
    pub fn write_all(&self, v1: u32) -> io::Result<()> {
        self.write("service.yaml", &self.service())?;
        self.write("endpoints.yaml", &self.endpoints())?;
        self.rule(&["v1", "v2"])?;
        self.route(v1)
    }

    /// Writes the VirtualService with this percentage to v1.
    pub fn route(&self, v1: u32) -> io::Result<()> {
        self.routes(&[("v1", v1), ("v2", 100 - v1)])
    }

    /// Writes the VirtualService without v1.
    pub fn route_to_v2_alone(&self) -> io::Result<()> {
        self.routes(&[("v2", 100)])
    }

    /// Writes the DestinationRule without v1.
    pub fn rule_without_v1(&self) -> io::Result<()> {
        self.rule(&["v2"])
    }

    fn routes(&self, weights: &[(&str, u32)]) -> io::Result<()> {
        let mut text = String::from(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: my-app, namespace: shop}\n\
             spec:\n  hosts: [my-app]\n  http:\n  - route:\n",
        );
        for (subset, weight) in weights {
            text += &format!(
                "    - destination: {{host: my-app, subset: {subset}}}\n      weight: {weight}\n"
            );
        }
        self.write("virtual-service.yaml", &text)
    }

    fn rule(&self, subsets: &[&str]) -> io::Result<()> {
        let mut text = String::from(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: my-app, namespace: shop}\n\
             spec:\n  host: my-app\n  subsets:\n",
        );
        for subset in subsets {
            text += &format!("  - name: {subset}\n    labels: {{version: {subset}}}\n");
        }
        self.write("destination-rule.yaml", &text)
    }

    fn service(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: my-app, namespace: shop}}\nspec:\n  \
             clusterIP: 10.96.0.10\n  selector: {{app: my-app}}\n  ports:\n  \
             - {{name: http, port: {}, targetPort: {}}}\n",
            self.port, self.backends
        )
    }

    fn endpoints(&self) -> String {
        let pods = [1, 2].into_iter().flat_map(|version| [1, 2, 3].map(|n| (version, n)));
        let mut text = String::from(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: my-app-1\n  namespace: shop\n  \
             labels: {kubernetes.io/service-name: my-app}\naddressType: IPv4\nendpoints:\n",
        );
        for (version, n) in pods.clone() {
            text += &format!(
                "- addresses: [127.0.{version}.{n}]\n  conditions: {{ready: true}}\n  \
                 targetRef: {{kind: Pod, name: my-app-v{version}-{n}}}\n"
            );
        }
        text += &format!("ports:\n- {{name: http, port: {}, protocol: TCP}}\n", self.backends);
        for (version, n) in pods {
            text += &format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: my-app-v{version}-{n}\n  namespace: shop\n  \
                 labels: {{app: my-app, version: v{version}}}\n"
            );
        }
        text
    }

    /// Writes by rename, so that the file is never seen half written.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let whole = self.outside(name);
        std::fs::write(&whole, text)?;
        std::fs::rename(whole, self.folder().join(name))
    }
}
