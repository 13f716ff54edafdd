use super::*;
use crate::analyze::tests::{base, store};
use crate::explain::Request;
use crate::mesh;

fn route(weights: [u32; 2]) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{hosts: [web], http: [{{route: [{{destination: {{host: web, subset: v1}}, weight: {}}}, \
         {{destination: {{host: web, subset: v2}}, weight: {}}}]}}]}}\n",
        weights[0], weights[1]
    )
}

/// The slices that make both subsets of `web` ready.
const SLICE: &str = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
    metadata: {name: web, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
    ports: [{name: http, port: 80}]\nendpoints:\n\
    - {addresses: [10.2.0.1], conditions: {ready: true}, targetRef: {kind: Pod, name: web-v1, namespace: shop}}\n\
    - {addresses: [10.2.0.2], conditions: {ready: true}, targetRef: {kind: Pod, name: web-v2, namespace: shop}}\n";

fn previewed(files: &str) -> Preview {
    replayed(files, &[])
}

/// The preview with requests that `shop/client-0` sent so often before.
fn replayed(files: &str, recorded: &[(&str, u64)]) -> Preview {
    asked(files, recorded, false)
}

/// The same, with or without what is not about requests.
fn asked(files: &str, recorded: &[(&str, u64)], alone: bool) -> Preview {
    let store = store(&(base() + SLICE + &route([90, 10])));
    let config = MeshConfig::default();
    let names = [("shop", "client-0"), ("shop", "client-1"), ("third", "client-0")];
    let proxies = names.map(|(namespace, pod)| {
        Arc::new(mesh::proxy_of_pod(&store, &config, namespace, pod).unwrap())
    });
    let traffic = Request::parse("GET http://web.shop/", &[]).map(TrafficQuery::Http).unwrap();
    let sample = Sample { proxy: proxies[0].clone(), traffic };
    let recorded = recorded.iter().map(|(request, count)| {
        let traffic = Request::parse(request, &[]).map(TrafficQuery::Http).unwrap();
        Recorded { sample: Sample { traffic, ..sample.clone() }, count: *count }
    });
    let recorded: Vec<_> = recorded.collect();
    let files = vec![(PathBuf::from("new.yaml"), files.as_bytes().to_vec())];
    let requests = Requests { samples: &[sample], recorded: &recorded, alone };
    preview(&store, &config, files, &proxies, requests)
}

fn places(preview: &Preview) -> Vec<(&str, &str, &str, ResourceChange, usize)> {
    let all = preview.resources.iter();
    all.map(|item| {
        (item.kind.short_name(), &*item.name, &*item.virtual_host, item.change, item.proxies)
    })
    .collect()
}

#[test]
fn a_weight_changes_one_virtual_host_of_every_proxy_that_sees_it() {
    let preview = previewed(&route([50, 50]));
    assert!(matches!(&*preview.objects, [(_, ObjectChange::Changed(..))]), "{preview:?}");
    let host = "web.shop.svc.cluster.local:80";
    assert_eq!(places(&preview), [("rds", "80", host, ResourceChange::Changed, 3)]);
    assert_eq!(preview.proxies, 3);
    let [[before, after]] = &*preview.samples else { panic!("{preview:?}") };
    assert!(before.contains("90.00 %") && after.contains("50.00 %"), "{before}\n{after}");
    assert!(preview.findings.is_empty() && preview.held.is_empty(), "{preview:?}");
}

#[test]
fn what_is_there_already_changes_nothing() {
    let preview = previewed(&(base() + &route([90, 10])));
    assert!(preview.objects.iter().all(|(_, change)| matches!(change, ObjectChange::Unchanged)));
    assert!(preview.resources.is_empty() && preview.proxies == 0, "{preview:?}");
    let [[before, after]] = &*preview.samples else { panic!("{preview:?}") };
    assert_eq!(before, after);
}

#[test]
fn an_invalid_object_changes_nothing_and_is_named_with_its_field() {
    let preview = previewed(&route([50, 50]).replace("weight: 50", "weight: many"));
    let [(key, ObjectChange::Invalid(problems))] = &*preview.objects else { panic!("{preview:?}") };
    assert_eq!(key.to_string(), "VirtualService shop/web");
    assert!(problems[0].to_string().contains("weight"), "{problems:?}");
    assert!(preview.resources.is_empty());
}

#[test]
fn a_new_subset_without_endpoints_is_found_and_held_back() {
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
        metadata: {name: web, namespace: shop}\nspec: {host: web, subsets: [\
        {name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]}\n";
    let preview =
        previewed(&(rule.to_owned() + &route([50, 50]).replace("subset: v2", "subset: v3")));
    let cluster = "outbound|80|v3|web.shop.svc.cluster.local";
    let added = places(&preview).into_iter().filter(|place| place.3 == ResourceChange::Added);
    let added: Vec<_> = added.map(|place| (place.0, place.1, place.4)).collect();
    assert_eq!(added, [("cds", cluster, 3), ("eds", cluster, 3)]);
    assert!(!preview.held.is_empty(), "{preview:?}");
    assert!(preview.findings.iter().any(|finding| finding.message.contains("v3")), "{preview:?}");
}

#[test]
fn a_file_that_is_not_yaml_is_a_problem_of_its_own() {
    let preview = previewed("{[");
    assert!(preview.objects.is_empty() && preview.problems.len() == 1, "{preview:?}");
    assert!(preview.problems[0].to_string().starts_with("new.yaml:1"), "{preview:?}");
}

/// The route with one for `/api` before it, which goes to v2.
fn with_api(timeout: &str) -> String {
    let api = format!(
        "http: [{{match: [{{uri: {{prefix: /api}}}}], route: [{{destination: {{host: web, subset: v2}}}}]}}, {{{timeout}"
    );
    route([90, 10]).replace("http: [{", &api)
}

#[test]
fn recorded_requests_are_grouped_by_where_they_go_now_and_then() {
    let recorded = [
        ("GET http://web.shop/", 7),
        ("GET http://web.shop/api/a", 2),
        ("GET http://web.shop/api/b", 40),
        ("POST http://web.shop/api", 8),
        ("GET http://nothing.example/", 1),
    ];
    let replay = replayed(&with_api(""), &recorded).replay;
    assert_eq!((replay.requests, replay.other_settings), (58, 0), "{replay:?}");
    let [group] = &*replay.moves else { panic!("{replay:?}") };
    assert_eq!((group.requests, group.example), (50, 2), "{replay:?}");
    let [v1, v2] = &*group.before else { panic!("{replay:?}") };
    assert!(v1.contains("90.00 %") && v1.contains("|v1|") && v2.contains("|v2|"), "{replay:?}");
    let [only] = &*group.after else { panic!("{replay:?}") };
    assert!(only.contains("100.00 %  outbound|80|v2|"), "{replay:?}");
}

#[test]
fn recorded_requests_with_another_timeout_do_not_go_elsewhere() {
    let recorded = [("GET http://web.shop/", 7), ("GET http://web.shop/api", 3)];
    let replay = replayed(&with_api("timeout: 3s, "), &recorded).replay;
    assert_eq!(replay.other_settings, 7, "{replay:?}");
    assert_eq!(replay.moves.iter().map(|group| group.requests).sum::<u64>(), 3, "{replay:?}");
}

#[test]
fn destinations_in_another_order_take_no_request_elsewhere() {
    let swapped = route([10, 90]).replace("subset: v1", "subset: other");
    let swapped =
        swapped.replace("subset: v2", "subset: v1").replace("subset: other", "subset: v2");
    let replay = replayed(&swapped, &[("GET http://web.shop/", 7)]).replay;
    assert!(replay.moves.is_empty(), "{replay:?}");
}

#[test]
fn a_question_about_requests_alone_is_answered_as_with_all_others() {
    let recorded = [("GET http://web.shop/", 7), ("GET http://web.shop/api", 3)];
    let files = with_api("");
    let [alone, all] = [true, false].map(|alone| asked(&files, &recorded, alone));
    assert_eq!((&alone.replay, &alone.samples), (&all.replay, &all.samples));
    assert!(alone.resources.is_empty() && !all.resources.is_empty(), "{alone:?}");
}
