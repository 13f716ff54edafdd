//! Which objects a resource, or a virtual host in one, was made from.

use std::sync::Arc;

use crate::api::{Kind, ObjectKey};
use crate::mesh::{Host, Mesh, VirtualService, covers};
use crate::translate::virtual_host::host_and_port;

/// What is made from one object.
pub(super) struct Origin {
    /// The hosts that the object speaks for.
    hosts: Vec<Host>,
}

impl Origin {
    /// What is made from the object `key`.
    pub fn new(mesh: &Mesh, key: &ObjectKey) -> Self {
        let hosts = match key.kind {
            Kind::VirtualService => {
                let of = |rule: &Arc<VirtualService>| {
                    rule.key == *key || rule.http().any(|http| *http.key == *key)
                };
                mesh.virtual_services
                    .iter()
                    .filter(|rule| of(rule))
                    .flat_map(|rule| rule.hosts.clone())
                    .collect()
            }
            _ => {
                let rules = mesh
                    .destination_rules
                    .iter()
                    .filter(|rule| rule.keys.contains(key));
                rules.map(|rule| rule.host.clone()).collect()
            }
        };
        Self { hosts }
    }

    /// Whether a resource of the type `kind` (`cds`, `eds`, `lds` or `rds`), or the virtual host in it, may be made from
    /// the object.
    pub fn includes(&self, kind: &str, name: &str, virtual_host: Option<&str>) -> bool {
        match virtual_host {
            Some(virtual_host) => self.is_about(virtual_host),
            // A whole listener or route table holds many hosts; any of them may be what is meant.
            None => kind == "rds" || kind == "lds" || self.is_about(name),
        }
    }

    /// Whether the name of a virtual host (`HOST:PORT`) or of a cluster is about one of the hosts.
    fn is_about(&self, name: &str) -> bool {
        let own = match name.rsplit_once('|') {
            Some((_, own)) => own,
            None => host_and_port(name).map_or(name, |(own, _)| own),
        };
        self.hosts.iter().any(|host| covers(host, own))
    }
}
