//! The admin API over HTTP: each path calls the gRPC method for which `proto/weir/admin/v1/admin.proto` names it, and
//! prints the response as ProtoJSON.

use std::collections::BTreeSet;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prost::{Message, Name};
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value,
};
use serde_json::json;
use tonic::{Code, Request, Status};

use super::api::v1;
use super::api::v1::admin_server::Admin as Methods;
use super::{Admin, page};
use crate::proto_json;
use crate::text::listed;

/// The paths below `/api/v1`.
pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/proxies", get(proxies))
        .route("/readiness", get(readiness))
        .route("/events", get(page::events))
        .route("/dump", get(dump))
        .route("/diff", get(diff))
        .route("/splits", get(splits))
        .route("/history/{namespace}/{name}", get(history))
        .route("/explain", get(explain))
        .route("/findings", get(findings))
        .route("/observed/{namespace}/{name}", get(observed))
        .route("/objects/{kind}/{namespace}/{name}", get(object))
        .route("/timeline", get(timeline))
        .route("/timeline/{kind}/{namespace}/{name}", get(timeline_of_object))
        .fallback(async || refuse(&Status::not_found(NO_SUCH_PATH)))
        .method_not_allowed_fallback(async || {
            refuse(&Status::unimplemented("this path takes GET only"))
        })
}

async fn proxies(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.list_proxies(request).await).await
}

async fn dump(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.dump_proxy(request).await).await
}

async fn diff(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.diff_proxy(request).await).await
}

async fn splits(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.list_splits(request).await).await
}

async fn explain(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.explain(request).await).await
}

async fn findings(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.list_findings(request).await).await
}

async fn readiness(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.get_readiness(request).await).await
}

const NO_SUCH_PATH: &str = "no such path; expected one of /api/v1/proxies, /api/v1/dump, /api/v1/diff, \
                            /api/v1/splits, /api/v1/observed/NAMESPACE/NAME, \
                            /api/v1/history/NAMESPACE/NAME, /api/v1/explain, /api/v1/findings, \
                            /api/v1/readiness, /api/v1/timeline, /api/v1/timeline/KIND/NAMESPACE/NAME and \
                            /api/v1/objects/KIND/NAMESPACE/NAME";

/// Fields of a request with their values. Any query string can be read as these.
type Fields = Vec<(String, String)>;

type Place = Path<(String, String, String)>;

/// A namespace and a name.
type NamedPlace = Path<(String, String)>;

/// The fields of a request whose namespace and name are in its path.
fn named_fields(
    place: Result<NamedPlace, PathRejection>,
    mut more: Fields,
) -> Result<Fields, Status> {
    let Path((namespace, name)) =
        place.map_err(|rejection| Status::invalid_argument(rejection.body_text()))?;
    more.extend([("namespace".to_owned(), namespace), ("name".to_owned(), name)]);
    Ok(more)
}

async fn observed(
    State(admin): State<Admin>,
    place: Result<NamedPlace, PathRejection>,
    Query(more): Query<Fields>,
) -> Response {
    match named_fields(place, more) {
        Ok(fields) => call(fields, async |request| admin.get_observed(request).await).await,
        Err(status) => refuse(&status),
    }
}

async fn history(
    State(admin): State<Admin>,
    place: Result<NamedPlace, PathRejection>,
    Query(more): Query<Fields>,
) -> Response {
    match named_fields(place, more) {
        Ok(fields) => call(fields, async |request| admin.get_history(request).await).await,
        Err(status) => refuse(&status),
    }
}

async fn object(
    State(admin): State<Admin>,
    place: Result<Place, PathRejection>,
    Query(more): Query<Fields>,
) -> Response {
    // The path has every field of the request.
    if let Some((name, _)) = more.first() {
        return refuse(&Status::invalid_argument(format!(
            "parameter `{name}`: this path takes none"
        )));
    }
    let fields = match fields_of(place) {
        Ok(fields) => fields,
        Err(status) => return refuse(&status),
    };
    call(fields, async |request: Request<v1::GetObjectRequest>| admin.get_object(request).await)
        .await
}

/// The fields of a request that its path names.
fn fields_of(place: Result<Place, PathRejection>) -> Result<Fields, Status> {
    let Path((kind, namespace, name)) =
        place.map_err(|rejection| Status::invalid_argument(rejection.body_text()))?;
    let fields = [("kind", kind), ("namespace", namespace), ("name", name)];
    Ok(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

async fn timeline(State(admin): State<Admin>, Query(fields): Query<Fields>) -> Response {
    call(fields, async |request| admin.get_timeline(request).await).await
}

async fn timeline_of_object(
    State(admin): State<Admin>,
    place: Result<Place, PathRejection>,
    Query(more): Query<Fields>,
) -> Response {
    match fields_of(place) {
        Ok(fields) => timeline(State(admin), Query(fields.into_iter().chain(more).collect())).await,
        Err(status) => refuse(&status),
    }
}

/// Calls a method with these fields of its request.
async fn call<Q, A>(
    fields: Fields,
    method: impl AsyncFnOnce(Request<Q>) -> Result<tonic::Response<A>, Status>,
) -> Response
where
    Q: Message + Name + Default,
    A: Message + Name + 'static,
{
    let answer = match read(&fields) {
        Ok(request) => method(Request::new(request)).await,
        Err(status) => Err(status),
    };
    let answer = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return refuse(&status),
    };
    // A dump is large enough to keep a thread busy.
    match tokio::task::spawn_blocking(move || proto_json::message_to_text(&answer)).await {
        Ok(Ok(text)) => json_response(StatusCode::OK, text),
        Ok(Err(error)) => refuse(&internal(error)),
        Err(error) => refuse(&internal(error)),
    }
}

fn internal(error: impl std::error::Error) -> Status {
    Status::internal(error.to_string())
}

/// The HTTP status of an answer with this status.
pub(super) fn http_status(status: &Status) -> StatusCode {
    match status.code() {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::Unimplemented => StatusCode::METHOD_NOT_ALLOWED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A status as a `google.rpc.Status`.
pub(crate) fn refuse(status: &Status) -> Response {
    let code = i32::from(status.code());
    json_response(
        http_status(status),
        proto_json::to_text(&json!({"code": code, "message": status.message(), "details": []})),
    )
}

pub(super) fn json_response(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The request with these fields, by their JSON names.
fn read<Q: Message + Name + Default>(fields: &[(String, String)]) -> Result<Q, Status> {
    let descriptor = proto_json::descriptor(&Q::full_name()).map_err(internal)?;
    let mut message = DynamicMessage::new(descriptor.clone());
    let mut seen = BTreeSet::new();
    for (name, text) in fields {
        let field =
            descriptor.get_field_by_json_name(name).ok_or_else(|| unknown(name, &descriptor))?;
        let value = value(&field, text)?;
        if !field.is_list() && !seen.insert(name) {
            return Err(Status::invalid_argument(format!("parameter `{name}`: is given twice")));
        }
        match message.get_field_mut(&field) {
            Value::List(values) => values.push(value),
            single => *single = value,
        }
    }
    message.transcode_to().map_err(internal)
}

fn unknown(name: &str, request: &MessageDescriptor) -> Status {
    let known: Vec<String> =
        request.fields().map(|field| format!("`{}`", field.json_name())).collect();
    let right = match known.as_slice() {
        [] => "this path takes none".to_owned(),
        known => format!("expected {}", listed(known, "or")),
    };
    Status::invalid_argument(format!("parameter `{name}`: is unknown; {right}"))
}

fn value(field: &FieldDescriptor, text: &str) -> Result<Value, Status> {
    match field.kind() {
        Kind::String => Ok(Value::String(text.to_owned())),
        Kind::Enum(kind) if !field.is_list() => enum_value(&kind, text).map_err(|right| {
            Status::invalid_argument(format!(
                "parameter `{}`: is `{text}`; expected {right}",
                field.json_name()
            ))
        }),
        _ => Err(Status::internal(format!("{} has no form in a query", field.full_name()))),
    }
}

/// The enum value of a name, or the known names in an error.
fn enum_value(kind: &EnumDescriptor, text: &str) -> Result<Value, String> {
    match kind.get_value_by_name(text) {
        Some(value) => Ok(Value::EnumNumber(value.number())),
        None => {
            let named = kind
                .values()
                .filter(|value| value.number() != 0)
                .map(|value| value.name().to_owned());
            Err(named.collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(query: &str) -> Fields {
        Query::try_from_uri(&format!("/?{query}").parse().unwrap()).unwrap().0
    }

    #[test]
    fn a_query_is_the_request() {
        let request: v1::DumpProxyRequest =
            read(&fields("proxy=shop%2Fclient-0&type=RDS")).unwrap();
        assert_eq!((&*request.proxy, request.r#type()), ("shop/client-0", v1::ResourceType::Rds));
        assert_eq!(read::<v1::ListProxiesRequest>(&fields("")).unwrap(), v1::ListProxiesRequest {});
        let request: v1::ExplainRequest = read(&fields("headers=a:%20b&headers=c:%20d")).unwrap();
        assert_eq!(request.headers, ["a: b", "c: d"]);
    }

    #[test]
    fn errors_in_a_query_name_the_parameter_and_the_expected_value() {
        for (query, said) in [
            ("name=x", "parameter `name`: is unknown; expected `proxy` or `type`"),
            ("type=rds", "parameter `type`: is `rds`; expected CDS, EDS, LDS, RDS, RTDS"),
            ("proxy=a&proxy=b", "parameter `proxy`: is given twice"),
        ] {
            let status = read::<v1::DumpProxyRequest>(&fields(query)).unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::InvalidArgument, said), "{query}");
        }
        let status = read::<v1::ListProxiesRequest>(&fields("namespace=shop")).unwrap_err();
        assert_eq!(status.message(), "parameter `namespace`: is unknown; this path takes none");
    }

    #[test]
    fn every_field_of_every_request_has_a_form_in_a_query() {
        let descriptor = proto_json::descriptor(&v1::ListProxiesRequest::full_name()).unwrap();
        let service = descriptor.parent_pool().get_service_by_name("weir.admin.v1.Admin").unwrap();
        // Files and lists of objects are for gRPC alone.
        let grpc_only = ["PreviewObjects", "ListObserved"];
        let methods = service.methods().filter(|method| !grpc_only.contains(&method.name()));
        for field in methods.flat_map(|method| method.input().fields().collect::<Vec<_>>()) {
            let text = match field.kind() {
                Kind::Enum(kind) => kind.default_value().name().to_owned(),
                _ => "text".to_owned(),
            };
            assert!(value(&field, &text).is_ok(), "{}", field.full_name());
        }
    }
}
