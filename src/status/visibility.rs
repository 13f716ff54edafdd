//! Which proxies see which VirtualServices and DestinationRules. Pure.
//!
//! Who sees an object is found when it is asked for, and remembered until something changes that it depends on. So a
//! question costs what it is about, whatever the number of objects and namespaces.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::report::{ObjectState, Verdict};
use crate::api::{Kind, ObjectKey};
use crate::mesh::{Host, Mesh, MeshChange, Scope, ScopeView, VirtualService, diff};
use crate::revision::{MeshRevision, Revision};
use crate::xds::connections::ProxyStatus;

/// What decides which objects a proxy sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Viewpoint {
    namespace: Arc<str>,
    labels: BTreeMap<String, String>,
    sidecar: Option<(ObjectKey, Revision)>,
}

impl Viewpoint {
    fn of(scope: &Scope) -> Self {
        let Scope { namespace, labels, sidecar, .. } = scope;
        Self { namespace: namespace.clone(), labels: labels.clone(), sidecar: sidecar.clone() }
    }
}

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Bits(Vec<u64>);

impl Bits {
    fn insert(&mut self, n: usize) {
        let (word, bit) = (n / 64, n % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << bit;
        }
    }

    fn remove(&mut self, n: usize) {
        if let Some(word) = self.0.get_mut(n / 64) {
            *word &= !(1 << (n % 64));
        }
    }

    fn contains(&self, n: usize) -> bool {
        self.0.get(n / 64).is_some_and(|word| word & (1 << (n % 64)) != 0)
    }
}

/// Which viewpoints see which objects, remembered from one mesh to the next.
#[derive(Debug, Default)]
pub(crate) struct VisibleObjects {
    mesh: Option<Mesh>,
    index: Index,
    /// The number of each viewpoint, with a scope that has it.
    viewpoints: HashMap<Viewpoint, (usize, Scope)>,
    /// Numbers that are free again.
    free: Vec<usize>,
    /// How many numbers were given, free ones included.
    count: usize,
    /// The numbers of the viewpoints that see an object, for those that were asked for.
    seeing: HashMap<ObjectKey, Bits>,
}

/// Where objects are found in a mesh; each part is made when it is needed first.
#[derive(Debug, Default)]
struct Index {
    /// The VirtualServices that delegate to each VirtualService.
    roots: Option<HashMap<ObjectKey, Vec<ObjectKey>>>,
    /// The hosts of each DestinationRule.
    hosts: Option<HashMap<ObjectKey, BTreeSet<Host>>>,
}

impl Index {
    fn roots(&mut self, mesh: &Mesh, delegate: &ObjectKey) -> &[ObjectKey] {
        let roots = self.roots.get_or_insert_with(|| {
            let mut roots: HashMap<ObjectKey, Vec<ObjectKey>> = HashMap::new();
            for root in mesh.virtual_services.iter() {
                let delegates: BTreeSet<&ObjectKey> =
                    root.http().map(|http| http.key).filter(|key| **key != root.key).collect();
                for delegate in delegates {
                    roots.entry(delegate.clone()).or_default().push(root.key.clone());
                }
            }
            roots
        });
        roots.get(delegate).map_or(&[], |roots| roots)
    }

    fn hosts(&mut self, mesh: &Mesh, rule: &ObjectKey) -> Option<&BTreeSet<Host>> {
        let hosts = self.hosts.get_or_insert_with(|| {
            let mut hosts: HashMap<ObjectKey, BTreeSet<Host>> = HashMap::new();
            for rule in mesh.destination_rules.iter() {
                for key in &rule.keys {
                    hosts.entry(key.clone()).or_default().insert(rule.host.clone());
                }
            }
            hosts
        });
        hosts.get(rule)
    }
}

/// What makes an object visible.
enum Through<'a> {
    /// One of these VirtualServices applies: the object, or one that delegates to it.
    Routes(Vec<&'a Arc<VirtualService>>),
    /// It is among the rules for a visible service of one of these hosts.
    Hosts(BTreeSet<Host>),
}

impl<'a> Through<'a> {
    fn of(mesh: &'a Mesh, index: &mut Index, object: &ObjectKey) -> Self {
        if object.kind != Kind::VirtualService {
            let hosts = index.hosts(mesh, object).into_iter().flatten();
            let hosts = hosts.flat_map(|host| mesh.hosts_covered_by(host));
            return Self::Hosts(hosts.collect());
        }
        let own = mesh.virtual_services.get(object);
        // One with hosts is no delegate.
        let roots = match own {
            Some(own) if !own.hosts.is_empty() => &[],
            _ => index.roots(mesh, object),
        };
        let roots = roots.iter().filter_map(|root| mesh.virtual_services.get(root));
        Self::Routes(own.into_iter().chain(roots).collect())
    }

    fn is_seen(&self, view: &ScopeView<'_>, object: &ObjectKey) -> bool {
        match self {
            Self::Routes(routes) => routes.iter().any(|route| view.rules.includes(route)),
            Self::Hosts(hosts) => hosts.iter().any(|host| {
                let service = view.service(host);
                let rule = service.and_then(|service| view.destination_rule(service.known));
                rule.is_some_and(|rule| rule.keys.contains(object))
            }),
        }
    }
}

impl VisibleObjects {
    /// The connected proxies by what they see of `mesh`.
    pub(crate) fn by_viewpoint<'v, 'a>(
        &'v mut self,
        mesh: &'a Mesh,
        connected: &'a [ProxyStatus],
    ) -> ProxiesByViewpoint<'v, 'a> {
        self.follow(mesh);
        let scopes: Vec<Scope> = connected.iter().map(|status| mesh.scope(&status.proxy)).collect();
        let numbers = self.numbers(mesh, scopes);
        let mut groups: Vec<(usize, ProxyGroup<'a>)> = Vec::new();
        let mut places: HashMap<usize, usize> = HashMap::new();
        for (status, number) in connected.iter().zip(&numbers) {
            let place = *places.entry(*number).or_insert(groups.len());
            if place == groups.len() {
                groups.push((*number, ProxyGroup::default()));
            }
            if let Some((_, group)) = groups.get_mut(place) {
                group.add(status);
            }
        }
        ProxiesByViewpoint { visible: self, mesh, connected, numbers, groups }
    }

    /// Forgets what may differ in this mesh.
    fn follow(&mut self, mesh: &Mesh) {
        let Some(before) = self.mesh.replace(mesh.clone()) else { return };
        if !Arc::ptr_eq(&before.virtual_services, &mesh.virtual_services) {
            self.index.roots = None;
        }
        if !Arc::ptr_eq(&before.destination_rules, &mesh.destination_rules) {
            self.index.hosts = None;
        }
        if self.seeing.is_empty() {
            return;
        }
        let change = MeshChange::between(&before, mesh);
        if change.reshaped.len() >= self.seeing.len() {
            self.seeing.clear();
            return;
        }
        let (old, new) = (before.virtual_services.by_key(), mesh.virtual_services.by_key());
        diff(old, new, |key, before, after| {
            self.seeing.remove(key);
            for http in before.into_iter().chain(after).flat_map(|rules| rules.http()) {
                self.seeing.remove(http.key);
            }
        });
        before.destination_rules.diff(&mesh.destination_rules, |before, after| {
            let rules = before.into_iter().chain(after).flat_map(|rules| rules.iter());
            rules.flat_map(|rule| &rule.keys).for_each(|key| drop(self.seeing.remove(key)));
        });
        // Which of the rules for a host applies depends on the service, and on the other rules for it.
        for host in &change.reshaped {
            for rule in
                [&before, mesh].into_iter().flat_map(|mesh| mesh.destination_rules.all(host))
            {
                rule.keys.iter().for_each(|key| drop(self.seeing.remove(key)));
            }
        }
    }

    /// The numbers of the viewpoints of these scopes. Forgets all other viewpoints.
    fn numbers(&mut self, mesh: &Mesh, scopes: Vec<Scope>) -> Vec<usize> {
        let mut known = std::mem::take(&mut self.viewpoints);
        let mut unknown = Vec::new();
        let mut numbers = Vec::with_capacity(scopes.len());
        for scope in scopes {
            let viewpoint = Viewpoint::of(&scope);
            if let Some((number, _)) = self.viewpoints.get(&viewpoint) {
                numbers.push(*number);
                continue;
            }
            let of = known.remove(&viewpoint).unwrap_or_else(|| {
                let number = self.free.pop().unwrap_or(self.count);
                self.count = self.count.max(number + 1);
                unknown.push((number, scope.clone()));
                (number, scope)
            });
            numbers.push(of.0);
            self.viewpoints.insert(viewpoint, of);
        }
        for (number, _) in known.into_values() {
            self.seeing.values_mut().for_each(|bits| bits.remove(number));
            self.free.push(number);
        }
        self.look(mesh, &unknown);
        numbers
    }

    /// Finds what new viewpoints see of the objects that were asked for.
    fn look(&mut self, mesh: &Mesh, unknown: &[(usize, Scope)]) {
        if unknown.is_empty() {
            return;
        }
        let views = unknown.iter().map(|(number, scope)| (*number, ScopeView::new(mesh, scope)));
        let views: Vec<(usize, ScopeView<'_>)> = views.collect();
        for (object, bits) in &mut self.seeing {
            let through = Through::of(mesh, &mut self.index, object);
            let seeing = views.iter().filter(|(_, view)| through.is_seen(view, object));
            seeing.for_each(|(number, _)| bits.insert(*number));
        }
    }

    /// The viewpoints that see an object.
    fn seeing(&mut self, mesh: &Mesh, object: &ObjectKey) -> &Bits {
        self.seeing.entry(object.clone()).or_insert_with(|| {
            let through = Through::of(mesh, &mut self.index, object);
            let mut bits = Bits::default();
            for (number, scope) in self.viewpoints.values() {
                if through.is_seen(&ScopeView::new(mesh, scope), object) {
                    bits.insert(*number);
                }
            }
            bits
        })
    }
}

/// The proxies that see the same objects.
#[derive(Debug, Default)]
pub(crate) struct ProxyGroup<'a> {
    /// At least one proxy.
    pub proxies: Vec<&'a ProxyStatus>,
    /// What all of them have ACKed; `None` if one of them has ACKed nothing.
    pub acked: Option<MeshRevision>,
}

impl<'a> ProxyGroup<'a> {
    fn add(&mut self, status: &'a ProxyStatus) {
        self.acked = match self.proxies.is_empty() {
            true => status.acked,
            false => self.acked.zip(status.acked).map(|(all, own)| all.min(own)),
        };
        self.proxies.push(status);
    }

    /// Whether all of them have ACKed mesh `since`.
    pub(crate) fn all_acked(&self, since: MeshRevision) -> bool {
        self.acked.is_some_and(|acked| acked >= since)
    }

    /// How many of them have an object that came into its present form with mesh `since`.
    pub(crate) fn live(&self, object: &ObjectKey, since: MeshRevision) -> usize {
        if self.all_acked(since) {
            return self.proxies.len();
        }
        let verdicts = self.proxies.iter().map(|status| Verdict::of(status, object, since));
        verdicts.filter(|verdict| verdict.state() == ObjectState::Live).count()
    }
}

/// The connected proxies by what they see.
#[derive(Debug)]
pub(crate) struct ProxiesByViewpoint<'v, 'a> {
    visible: &'v mut VisibleObjects,
    mesh: &'a Mesh,
    connected: &'a [ProxyStatus],
    /// The number of the viewpoint of each of them.
    numbers: Vec<usize>,
    /// With the number of the viewpoint, in order of connection.
    groups: Vec<(usize, ProxyGroup<'a>)>,
}

impl<'a> ProxiesByViewpoint<'_, 'a> {
    /// The proxies that see an object, by what they see.
    pub(crate) fn groups(&mut self, object: &ObjectKey) -> impl Iterator<Item = &ProxyGroup<'a>> {
        let bits = self.visible.seeing(self.mesh, object);
        self.groups.iter().filter(|(number, _)| bits.contains(*number)).map(|(_, group)| group)
    }

    /// The proxies that see an object, in order of connection.
    pub(crate) fn proxies(&mut self, object: &ObjectKey) -> impl Iterator<Item = &'a ProxyStatus> {
        let bits = self.visible.seeing(self.mesh, object);
        let all = self.connected.iter().zip(&self.numbers);
        all.filter(|(_, number)| bits.contains(**number)).map(|(status, _)| status)
    }

    /// Whether proxies of a scope see an object, connected or not.
    pub(crate) fn sees(&mut self, scope: &Scope, object: &ObjectKey) -> bool {
        let through = Through::of(self.mesh, &mut self.visible.index, object);
        through.is_seen(&ScopeView::new(self.mesh, scope), object)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::mesh::{Locality, NodeMetadata, Proxy};
    use crate::source::SourceEvent;
    use crate::status::tests::{World, event, proxy, route, web};

    fn service(name: &str, namespace: &str, export_to: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Service",
               "metadata": {"name": name, "namespace": namespace,
                            "annotations": {"networking.istio.io/exportTo": export_to}},
               "spec": {"clusterIP": "10.0.0.2", "ports": [{"name": "http", "port": 80}]}})
    }

    fn of_istio(kind: &str, name: &str, namespace: &str, spec: Value) -> Value {
        json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
               "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    }

    fn root(export_to: &str, delegate: &str) -> Value {
        of_istio(
            "VirtualService",
            "root",
            "shop",
            json!({"hosts": ["api.pay"], "exportTo": [export_to],
                   "http": [{"match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": delegate}},
                            {"route": [{"destination": {"host": "web"}}]}]}),
        )
    }

    fn rule(name: &str, namespace: &str, host: &str, more: &Value) -> Value {
        let mut spec = json!({"host": host});
        more.as_object().unwrap().iter().for_each(|(name, value)| spec[name] = value.clone());
        of_istio("DestinationRule", name, namespace, spec)
    }

    /// Another name in `pay` for this host.
    fn alias(host: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias", "namespace": "pay"},
               "spec": {"type": "ExternalName", "externalName": host,
                        "ports": [{"name": "http", "port": 80}]}})
    }

    fn entry(host: &str, export_to: &str) -> Value {
        of_istio(
            "ServiceEntry",
            "far",
            "far",
            json!({"hosts": [host], "exportTo": [export_to], "resolution": "STATIC",
                   "ports": [{"name": "http", "number": 80, "protocol": "HTTP"}]}),
        )
    }

    /// The forms that each object may have.
    fn forms() -> Vec<Vec<Value>> {
        let web = "web.shop.svc.cluster.local";
        let delegate = |name: &str| {
            let to = json!({"http": [{"route": [{"destination": {"host": "web"}}]}]});
            vec![of_istio("VirtualService", name, "shop", to)]
        };
        let sidecar =
            |egress: Value| of_istio("Sidecar", "default", "pay", json!({"egress": egress}));
        let port = json!({"number": 80, "name": "http", "protocol": "HTTP"});
        let selector = json!({"workloadSelector": {"matchLabels": {"app": "x"}}});
        vec![
            ["*", ".", "pay"].map(|to| service("web", "shop", to)).into(),
            ["*", "."].map(|to| service("api", "pay", to)).into(),
            vec![route(1, 90, json!(10)), route(2, 80, json!(20))],
            [("*", "d1"), (".", "d1"), ("pay", "d2"), ("*", "d2")]
                .map(|(to, d)| root(to, d))
                .into(),
            delegate("d1"),
            delegate("d2"),
            vec![
                rule("own", "pay", web, &json!({})),
                rule("own", "pay", web, &json!({"exportTo": ["."]})),
                rule("own", "pay", web, &selector),
            ],
            vec![
                rule("more", "shop", web, &json!({})),
                rule("more", "shop", "*.local", &json!({})),
            ],
            vec![
                rule("all", "istio-system", "*.local", &json!({})),
                rule(
                    "all",
                    "istio-system",
                    "*.pay.svc.cluster.local",
                    &json!({"exportTo": ["shop"]}),
                ),
            ],
            [
                json!([{"hosts": ["./*"]}]),
                json!([{"hosts": ["shop/*"]}]),
                json!([{"hosts": ["*/api.pay.svc.cluster.local"]}]),
                json!([{"port": port, "hosts": ["shop/*"]}, {"hosts": ["./*"]}]),
            ]
            .map(sidecar)
            .into(),
            [web, "api.pay.svc.cluster.local", "example.com"].map(alias).into(),
            [("web.shop.svc.cluster.local", "."), ("far.example", "*"), ("far.example", "pay")]
                .map(|(host, to)| entry(host, to))
                .into(),
            ["far.example", "alias.pay.svc.cluster.local"]
                .map(|host| rule("named", "pay", host, &json!({})))
                .into(),
        ]
    }

    fn key_of(document: &Value) -> ObjectKey {
        match event(document.clone()) {
            SourceEvent::Apply { object, .. } => object.key(),
            other => panic!("{other:?}"),
        }
    }

    fn labelled(pod: &str) -> ProxyStatus {
        let mut status = proxy("pay", pod, 1);
        let metadata = NodeMetadata::from_json(&json!({"LABELS": {"app": "x"}}));
        let labelled = Proxy::new(&status.id, metadata, Locality::default()).unwrap();
        status.proxy = Arc::new(labelled);
        status
    }

    /// What the proxy sees, found by a look at everything.
    fn sees(mesh: &Mesh, status: &ProxyStatus, object: &ObjectKey) -> bool {
        let scope = mesh.scope(&status.proxy);
        let view = ScopeView::new(mesh, &scope);
        let mut routes = mesh.virtual_services.iter().filter(|rules| view.rules.includes(rules));
        let services = mesh.services.keys().filter_map(|host| view.service(host));
        let mut rules = services.filter_map(|seen| view.destination_rule(seen.known));
        routes.any(|rules| rules.key == *object || rules.http().any(|http| http.key == object))
            || rules.any(|rule| rule.keys.contains(object))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_remembered_is_what_a_look_at_everything_finds(
            steps in proptest::collection::vec((0..13_usize, 0..5_usize, 0..16_u8, any::<u16>()), 1..40)
        ) {
            let (mut world, forms) = (World::new(), forms());
            let all = [proxy("shop", "a", 1), proxy("pay", "b", 1), labelled("c"), proxy("far", "d", 1)];
            let mut visible = VisibleObjects::default();
            for (object, form, present, asked) in steps {
                match forms[object].get(form) {
                    Some(document) => world.apply(document.clone()),
                    None => world.delete(&key_of(&forms[object][0])),
                }
                world.publish();
                let state = world.published.state();
                let mesh = state.mesh.unwrap();
                let connected: Vec<ProxyStatus> = (0..4)
                    .filter(|n| present & (1 << n) != 0)
                    .map(|n| all[n].clone())
                    .collect();
                let mut proxies = visible.by_viewpoint(&mesh, &connected);
                for (n, key) in state.active.keys().enumerate().filter(|(n, _)| asked & (1 << n) != 0) {
                    let found: Vec<&str> = proxies.proxies(key).map(|status| &*status.id).collect();
                    let expected = connected.iter().filter(|status| sees(&mesh, status, key));
                    let expected: Vec<&str> = expected.map(|status| &*status.id).collect();
                    prop_assert_eq!(found, expected, "{} {}", n, key);
                    let in_groups: usize = proxies.groups(key).map(|group| group.proxies.len()).sum();
                    prop_assert_eq!(in_groups, proxies.proxies(key).count());
                }
            }
        }
    }

    #[test]
    fn a_change_makes_what_it_touches_alone_be_looked_at_again() {
        let mut world = World::new();
        for n in 0..50 {
            world.apply(service(&format!("other-{n}"), "shop", "*"));
            world.apply(rule(&format!("other-{n}"), "shop", &format!("other-{n}"), &json!({})));
        }
        world.publish();
        let connected = [proxy("shop", "a", 1), proxy("far", "b", 1)];
        let mut visible = VisibleObjects::default();
        let state = world.published.state();
        let mut proxies = visible.by_viewpoint(state.mesh.as_ref().unwrap(), &connected);
        state.active.keys().for_each(|key| assert_eq!(proxies.proxies(key).count(), 2, "{key}"));
        assert_eq!(visible.seeing.len(), 52);
        for (document, forgotten) in [
            // A Sidecar may make destinations visible through the route.
            (
                route(2, 80, json!(20)),
                vec![web(), ObjectKey::new(Kind::DestinationRule, "shop", "web")],
            ),
            (
                rule("other-7", "shop", "other-7", &json!({"exportTo": ["."]})),
                vec![ObjectKey::new(Kind::DestinationRule, "shop", "other-7")],
            ),
        ] {
            world.apply(document);
            world.publish();
            let state = world.published.state();
            let before: BTreeSet<ObjectKey> = visible.seeing.keys().cloned().collect();
            let mut proxies = visible.by_viewpoint(state.mesh.as_ref().unwrap(), &connected);
            let after: BTreeSet<ObjectKey> = proxies.visible.seeing.keys().cloned().collect();
            assert_eq!(before.difference(&after).cloned().collect::<Vec<_>>(), forgotten);
            state.active.keys().for_each(|key| assert!(proxies.proxies(key).count() > 0, "{key}"));
        }
        // A viewpoint is forgotten with its last proxy, and looked at when it comes again.
        let state = world.published.state();
        let mesh = state.mesh.as_ref().unwrap();
        visible.by_viewpoint(mesh, &connected[..1]);
        assert_eq!((visible.viewpoints.len(), visible.free.len()), (1, 1));
        let mut proxies = visible.by_viewpoint(mesh, &connected);
        assert_eq!(proxies.proxies(&web()).count(), 2);
        assert_eq!((visible.viewpoints.len(), visible.free.len(), visible.count), (2, 0, 2));
    }
}
