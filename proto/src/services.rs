//! Clients and servers of the services that are no sessions, with the message limits of both sides set.

use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use crate::dial::Link;
use crate::pb::artefact_service_client::ArtefactServiceClient;
use crate::pb::artefact_service_server::{ArtefactService, ArtefactServiceServer};
use crate::pb::client_service_client::ClientServiceClient;
use crate::pb::client_service_server::{ClientService, ClientServiceServer};
use crate::pb::node_log_service_client::NodeLogServiceClient;
use crate::pb::node_log_service_server::{NodeLogService, NodeLogServiceServer};
use crate::{AddToken, MAX_MESSAGE};

type Intercepted = InterceptedService<Channel, AddToken>;

/// A client of the resource manager's client service.
#[must_use]
pub fn client_service_client(link: &Link) -> ClientServiceClient<Intercepted> {
    ClientServiceClient::new(link.intercepted()).max_decoding_message_size(MAX_MESSAGE)
}

/// The resource manager's client service.
pub fn client_service<S: ClientService>(service: S) -> ClientServiceServer<S> {
    ClientServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE)
}

/// A client of the resource manager's artefact store.
#[must_use]
pub fn artefact_service_client(link: &Link) -> ArtefactServiceClient<Intercepted> {
    ArtefactServiceClient::new(link.intercepted()).max_decoding_message_size(MAX_MESSAGE)
}

/// The resource manager's artefact store.
pub fn artefact_service<S: ArtefactService>(service: S) -> ArtefactServiceServer<S> {
    ArtefactServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE)
}

/// A client of a node's log service.
#[must_use]
pub fn node_log_service_client(link: &Link) -> NodeLogServiceClient<Intercepted> {
    NodeLogServiceClient::new(link.intercepted()).max_decoding_message_size(MAX_MESSAGE)
}

/// A node's log service.
pub fn node_log_service<S: NodeLogService>(service: S) -> NodeLogServiceServer<S> {
    NodeLogServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE)
}
