//! The messages of the admin API, as specified in `proto/weir/admin/v1/admin.proto`.

/// The generated messages, client and server.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("weir.admin.v1");
}
