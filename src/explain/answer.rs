//! The answer of [`super::explain`].

use crate::rollout_guard::HeldChange;

/// The result.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The listener that accepts the connection.
    pub listener: String,
    /// The route configuration, for HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_configuration: Option<String>,
    /// The virtual host, for HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_host: Option<String>,
    /// The domain of the virtual host that matched the authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The routes that were considered, in order; the last one matched, if any did.
    pub considered: Vec<ConsideredRoute>,
    /// VirtualServices for the same host that are overridden by another one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overruled: Vec<String>,
    /// The weight changes of the route's object that are held back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldChange>,
    /// The outcome.
    pub outcome: Outcome,
}

impl Explanation {
    /// Adds the changes in `held` that concern the matching route.
    pub fn add_held(&mut self, held: &[HeldChange]) {
        let Some(taken) = self.considered.iter().find(|item| item.not.is_none()) else {
            return;
        };
        let Some(object) = &taken.object else { return };
        let route = taken.field.split(".match[").next().unwrap_or_default();
        let of_route = held.iter().filter(|change| {
            change.object.to_string() == *object
                && change.field.strip_prefix(route).is_some_and(|rest| rest.starts_with(".route["))
        });
        self.held = of_route.cloned().collect();
    }
}

/// A route that was considered.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsideredRoute {
    /// The object that defines it; `None` for the default route of a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field in the object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its index among the routes of the virtual host; `None` if this proxy does not get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// Why it did not match; `None` if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<String>,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Outcome {
    /// It is forwarded.
    #[serde(rename_all = "camelCase")]
    Forward {
        /// The destinations, with their shares.
        destinations: Vec<Destination>,
        /// The mirror destinations, with the percentage of requests.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        copies: Vec<Destination>,
        /// Other settings of the route, as name and text.
        policies: Vec<(&'static str, String)>,
    },
    /// The proxy responds with a redirect.
    Redirect {
        /// The status code.
        status: u32,
        /// The new URL, as far as the route defines it.
        location: String,
    },
    /// The proxy responds directly.
    Respond {
        /// The status code.
        status: u32,
        /// The body.
        body: String,
    },
    /// No route matches: the proxy responds with 404.
    NoRoute,
    /// No filter chain matches: the connection is closed.
    #[default]
    Closed,
}

/// A destination cluster.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Its name.
    pub cluster: String,
    /// Its share in percent.
    pub percent: f64,
    /// Whether the proxy does not have the cluster; requests then get 503.
    pub missing: bool,
    /// Whether every healthy endpoint refuses the connection, because it takes only mutual TLS.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Load balancing, TLS and limits, as name and text.
    pub policies: Vec<(&'static str, String)>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address and port.
    pub address: String,
    /// Additional addresses of the endpoint, which Envoy also tries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_addresses: Vec<String>,
    /// Its locality.
    pub locality: String,
    /// Its priority; 0 is the highest.
    pub priority: u32,
    /// Its weight within its locality.
    pub weight: u32,
    /// Whether it accepts traffic.
    pub healthy: bool,
}
