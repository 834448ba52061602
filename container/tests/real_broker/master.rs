//! The application master, played by the test.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use types::{ContainerHello, ContainerModel, ContainerStatus, ContainerWelcome, FromContainer, ToContainer};

use crate::PATIENCE;
use crate::container::Container;
use crate::job::{PARTITIONS, model};

/// Welcomes every container with the same tasks and keeps what each says last.
pub struct Master {
    pub address: String,
    statuses: Arc<Mutex<BTreeMap<String, ContainerStatus>>>,
    _runtime: tokio::runtime::Runtime,
}

type Incoming = proto::Incoming<ContainerHello, ContainerWelcome, ToContainer, FromContainer>;

impl Master {
    /// Of a job with the one input `kafka.in`.
    pub fn start() -> Master {
        Master::of(&["kafka.in".to_owned()])
    }

    pub fn of(inputs: &[String]) -> Master {
        Master::with(model(inputs, PARTITIONS))
    }

    /// Of a job whose tasks are these.
    pub fn with(model: ContainerModel) -> Master {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let statuses = Arc::new(Mutex::new(BTreeMap::new()));
        let kept = Arc::clone(&statuses);
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let address = listener.local_addr().expect("bound").to_string();
            let (to, hellos) = mpsc::channel(8);
            let routes = tonic::service::Routes::new(proto::container_service(to));
            tokio::spawn(daemon::serve_grpc(listener, routes, None, daemon::Shutdown::new()));
            tokio::spawn(welcome_all(hellos, model, kept));
            address
        });
        Master { address, statuses, _runtime: runtime }
    }

    pub fn status(&self, container: &Container) -> Option<ContainerStatus> {
        self.statuses.lock().expect("no panic").get(&container.id).cloned()
    }

    pub fn wait(
        &self,
        container: &Container,
        what: &str,
        is: impl Fn(&ContainerStatus) -> bool,
    ) -> ContainerStatus {
        self.wait_long(container, PATIENCE, what, is)
    }

    pub fn wait_long(
        &self,
        container: &Container,
        patience: Duration,
        what: &str,
        is: impl Fn(&ContainerStatus) -> bool,
    ) -> ContainerStatus {
        let start = Instant::now();
        loop {
            let status = self.status(container);
            if let Some(status) = status.as_ref().filter(|status| is(status)) {
                return status.clone();
            }
            assert!(
                start.elapsed() < patience,
                "{} is not {what}: {status:?}\n{}",
                container.id,
                container.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn welcome_all(
    mut hellos: mpsc::Receiver<Incoming>,
    model: ContainerModel,
    statuses: Arc<Mutex<BTreeMap<String, ContainerStatus>>>,
) {
    while let Some(incoming) = hellos.recv().await {
        let id = incoming.hello.container.to_string();
        let (tx, mut rx) =
            incoming.accept(ContainerWelcome { attempt: 1, model: model.clone(), beat_ms: 50 });
        let statuses = Arc::clone(&statuses);
        tokio::spawn(async move {
            let _open = tx;
            while let Some(FromContainer::Status(status)) = rx.recv().await {
                statuses.lock().expect("no panic").insert(id.clone(), status);
            }
        });
    }
}
