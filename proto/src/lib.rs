//! The wire: generated gRPC messages ([`pb`]), and sessions as pairs of [`Tx`] and [`Rx`].
//!
//! Whoever dials calls [`connect`] and one of `dial_node`, `dial_app_master`, `dial_container`. Whoever listens
//! adds one of `node_service`, `app_master_service`, `container_service` to its server and is handed an
//! [`Incoming`] for each stream whose Hello could be read; it accepts or refuses. This crate decides nothing.

mod channel;
mod dial;
mod serve;
mod services;
mod token;

/// Generated from the `.proto` files.
#[expect(missing_docs, reason = "generated; the .proto files say what each is")]
pub mod pb {
    tonic::include_proto!("samza.v1");
}

pub use channel::{Closed, Halves, Rx, Tx, pipe};
pub use dial::{
    DialError, Dialled, Link, connect, connect_leased, dial_app_master, dial_container, dial_node, read_page,
};
pub use serve::{Incoming, Sessions, app_master_service, container_service, node_service};
pub use services::{
    artefact_service, artefact_service_client, client_service, client_service_client, node_log_service,
    node_log_service_client,
};
pub use token::{AddToken, Token, TokenError};

/// The largest message either side takes, bytes.
pub const MAX_MESSAGE: usize = 64 << 20;
