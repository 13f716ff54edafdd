//! Which inbound connections of a pod go through its proxy, by the annotations that redirection reads.

use std::collections::BTreeSet;

use crate::api::Labels;
use crate::ports::NOT_REDIRECTED;
use crate::redirect::{List, Port, Selection};

/// The ports of a pod whose inbound connections are redirected to its proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CapturedPorts {
    /// Only these; `None` for all.
    only: Option<BTreeSet<u16>>,
    /// Never these.
    except: BTreeSet<u16>,
}

impl CapturedPorts {
    /// Those of a pod with these annotations. What redirection would refuse counts as absent. Source: Istio's
    /// documentation of `traffic.sidecar.istio.io/includeInboundPorts` and `excludeInboundPorts`.
    pub(crate) fn of(annotations: &Labels) -> Self {
        let value = |name: &str| annotations.get(&format!("traffic.sidecar.istio.io/{name}"));
        let included = value("includeInboundPorts").and_then(|text| text.parse().ok());
        let excluded = value("excludeInboundPorts").and_then(|text| text.parse().ok());
        let List(excluded) = excluded.unwrap_or_default();
        Self {
            only: match included {
                Some(Selection::Only(ports)) => Some(numbers(ports)),
                Some(Selection::All) | None => None,
            },
            except: numbers(excluded),
        }
    }

    /// Whether connections to a port go through the proxy.
    pub(crate) fn include(&self, port: u16) -> bool {
        !NOT_REDIRECTED.contains(&port)
            && self.only.as_ref().is_none_or(|only| only.contains(&port))
            && !self.except.contains(&port)
    }
}

fn numbers(ports: BTreeSet<Port>) -> BTreeSet<u16> {
    ports.into_iter().map(|port| port.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(list: &[(&str, &str)], port: u16) -> bool {
        let annotations = list
            .iter()
            .map(|(name, value)| (format!("traffic.sidecar.istio.io/{name}"), (*value).to_owned()));
        CapturedPorts::of(&annotations.collect()).include(port)
    }

    #[test]
    fn ports_are_captured_as_redirection_does() {
        assert!(captured(&[], 80));
        assert!(!captured(&[], 15020));
        assert!(captured(&[("includeInboundPorts", "*")], 80));
        assert!(!captured(&[("includeInboundPorts", "")], 80));
        assert!(captured(&[("includeInboundPorts", "80, 81")], 81));
        assert!(!captured(&[("includeInboundPorts", "81")], 80));
        assert!(!captured(&[("excludeInboundPorts", "22,80")], 80));
        assert!(!captured(&[("includeInboundPorts", "80"), ("excludeInboundPorts", "80")], 80));
        assert!(captured(&[("excludeInboundPorts", "http")], 80));
    }
}
