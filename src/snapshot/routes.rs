//! Route configurations as lists of encoded virtual hosts, so that one can be put together of old and new ones.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::route::v3 as route;
use prost::Message;

use super::{Refers, Resource};

/// An encoded virtual host, as a field of its route configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The virtual host's name.
    pub name: Arc<str>,
    /// The domains it answers for.
    pub domains: Arc<[String]>,
    /// The field's bytes.
    pub field: Bytes,
    /// The clusters it leads to.
    pub refers: Refers,
}

impl Part {
    /// Encodes a virtual host.
    pub fn new(host: route::VirtualHost) -> Self {
        let mut field = Vec::with_capacity(host.encoded_len() + 6);
        // `RouteConfiguration.virtual_hosts`, field 2: messages put together from encoded fields are valid Protobuf.
        prost::encoding::message::encode(2, &host, &mut field);
        let refers = Refers::of_virtual_host(&host);
        Self { name: host.name.into(), domains: host.domains.into(), field: field.into(), refers }
    }

    /// Whether both have the same bytes; quick where they are the very same.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.field.as_ptr(), self.field.len()) == (other.field.as_ptr(), other.field.len())
            || self.field == other.field
    }

    /// Whether it has no routes.
    pub fn is_empty(&self) -> bool {
        route::RouteConfiguration::decode(self.field.clone())
            .is_ok_and(|of| of.virtual_hosts.iter().all(|host| host.routes.is_empty()))
    }

    /// The same host without the domains that others have; nothing where no domain is left.
    fn without(&self, taken: &BTreeSet<String>) -> Option<Self> {
        let wrapped = route::RouteConfiguration::decode(self.field.clone()).ok()?;
        let mut host = wrapped.virtual_hosts.into_iter().next()?;
        host.domains.retain(|domain| !taken.contains(&domain.to_ascii_lowercase()));
        (!host.domains.is_empty()).then(|| Self::new(host))
    }
}

impl Resource {
    /// The route configuration of `head`, its fields but for virtual hosts, and `hosts`. A domain may stand only once
    /// in it, whatever its case, or Envoy refuses it whole: the first host that says it keeps it.
    pub fn of_hosts(name: Arc<str>, head: Bytes, hosts: Vec<Part>) -> Arc<Self> {
        let mut taken: BTreeSet<String> = BTreeSet::new();
        let mut parts = Vec::with_capacity(hosts.len());
        for host in &hosts {
            if host.domains.iter().any(|domain| taken.contains(&domain.to_ascii_lowercase())) {
                parts.extend(host.without(&taken));
            } else {
                parts.push(host.clone());
            }
            taken.extend(host.domains.iter().map(|domain| domain.to_ascii_lowercase()));
        }
        let body = std::iter::once(head).chain(parts.iter().map(|part| part.field.clone())).collect();
        let refers = Refers::union(parts.iter().map(|part| &part.refers));
        Self::composed(name, body, refers, parts.into())
    }

    /// This route configuration with other virtual hosts.
    pub fn with_hosts(&self, hosts: Vec<Part>) -> Arc<Self> {
        Self::of_hosts(self.name.clone(), self.body.first().cloned().unwrap_or_default(), hosts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, domains: &[&str]) -> Part {
        let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
        Part::new(route::VirtualHost { name: name.into(), domains, ..Default::default() })
    }

    fn decoded(resource: &Resource) -> Vec<(String, Vec<String>)> {
        let message = route::RouteConfiguration::decode(&*resource.bytes()).unwrap();
        message.virtual_hosts.into_iter().map(|host| (host.name, host.domains)).collect()
    }

    #[test]
    fn a_domain_stands_once_and_the_first_host_keeps_it() {
        let hosts = vec![part("a", &["x", "y"]), part("b", &["y", "z"]), part("c", &["x"])];
        let made = Resource::of_hosts("80".into(), Bytes::new(), hosts);
        let wanted = [("a".to_owned(), vec!["x".to_owned(), "y".to_owned()]), ("b".to_owned(), vec!["z".to_owned()])];
        assert_eq!(decoded(&made), wanted);
        let again = made.with_hosts(made.parts.to_vec());
        assert_eq!((again.version, again.bytes()), (made.version, made.bytes()));
    }
}
