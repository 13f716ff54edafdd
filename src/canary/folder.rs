//! The objects of the demo in a temporary folder.

use std::io;
use std::path::PathBuf;

use tempfile::TempDir;

use super::objects::{self, NAMESPACE, Ports};

/// The folder and its files; removed on drop.
#[derive(Debug)]
pub(crate) struct CanaryFolder {
    folder: TempDir,
    ports: Ports,
}

impl CanaryFolder {
    /// Creates a folder for a service on a free port, whose endpoints listen on port `backend`.
    ///
    /// # Errors
    /// There is no place for it, or no port.
    pub(crate) fn new(backend: u16) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-demo-").tempdir()?;
        std::fs::create_dir(folder.path().join("config"))?;
        let ports = Ports { service: free_port()?, backend };
        Ok(Self { folder, ports })
    }

    /// The service's port, which Envoy binds on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.ports.service
    }

    /// The folder with the objects.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// A path outside the folder with the objects.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The file with the VirtualService.
    pub(crate) fn route_file(&self) -> PathBuf {
        self.folder().join("virtual-service.yaml")
    }

    /// Writes all objects, with this percentage to v1.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn write_all(&self, v1: u32) -> io::Result<()> {
        self.write("service.yaml", &objects::service(NAMESPACE, self.ports))?;
        self.write("endpoints.yaml", &objects::endpoints(NAMESPACE, self.ports, &[1, 2]))?;
        self.rule(&[("v1", "v1"), ("v2", "v2")])?;
        self.route(v1)
    }

    /// Writes the VirtualService with this percentage to v1.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn route(&self, v1: u32) -> io::Result<()> {
        self.routes(&[("v1", v1), ("v2", 100 - v1)])
    }

    /// Writes the VirtualService without v1.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn route_to_v2_alone(&self) -> io::Result<()> {
        self.routes(&[("v2", 100)])
    }

    /// Writes the DestinationRule without v1.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn rule_without_v1(&self) -> io::Result<()> {
        self.rule(&[("v2", "v2")])
    }

    fn routes(&self, weights: &[(&str, u32)]) -> io::Result<()> {
        self.write("virtual-service.yaml", &objects::route(NAMESPACE, weights))
    }

    fn rule(&self, subsets: &[(&str, &str)]) -> io::Result<()> {
        self.write("destination-rule.yaml", &objects::rule(NAMESPACE, subsets))
    }

    /// Writes by rename, so that the file is never seen half written.
    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let whole = self.outside(name);
        std::fs::write(&whole, text)?;
        std::fs::rename(whole, self.folder().join(name))
    }
}

/// A port of loopback that nothing listens on at the moment.
///
/// # Errors
/// There is none.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
